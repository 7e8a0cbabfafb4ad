"""Who may speak to the public side at all: rate per source, bans, scanners met with silence.

A source's address can be forged over UDP, so a ban must never silence somebody we know:
hosts of carriers and of registered phones are limited, generously, and not banned.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from ari_ha.machines.edge_context import EdgeContext

BYTES_PER_MESSAGE = 1_024
"""What is longer counts as several: one read of a connection may hold hundreds of messages, one message what
hundreds of others take to read and to keep."""
HEAD_BYTES = 2_048
"""A scanner's name is looked for in this much of a message."""


@dataclass(slots=True)
class Source:
    """What one address has done lately."""

    tokens: float
    at: float
    failures: int = 0
    unknown: int = 0
    failures_since: float = 0.0
    banned_until: float = 0.0


class Doorkeeper:
    """Judges every public message before it is parsed."""

    def __init__(self, context: EdgeContext, known: Callable[[str], bool]) -> None:
        self._context = context
        self._limits = context.config.protection
        self._known = known
        self._sources: OrderedDict[str, Source] = OrderedDict()
        self._agents = tuple(name.lower().encode() for name in self._limits.scanners)

    def admits(self, data: bytes, host: str) -> bool:
        """Whether a message from this host is looked at."""
        limits, now = self._limits, self._context.now
        known = self._known(host)
        rate = limits.known_messages_per_second if known else limits.messages_per_second
        source = self._source(host, rate * limits.burst_s)
        if source.banned_until > now and not known:
            return self._silence("banned")
        source.tokens = min(rate * limits.burst_s, source.tokens + rate * (now - source.at))
        source.at = now
        cost = 1 + len(data) // BYTES_PER_MESSAGE
        if source.tokens < cost:
            return self._silence("rate")
        source.tokens -= cost
        return known or self._polite(data, host, source)

    def _polite(self, data: bytes, host: str, source: Source) -> bool:
        head = data[:HEAD_BYTES].lower()
        if any(name in head for name in self._agents):
            self._ban(host, source, "scanner")
            return self._silence("scanner")
        if not self._limits.options_for_strangers and head.startswith(b"options "):
            return self._silence("stranger")
        return True

    def failed(self, host: str, unknown: bool) -> None:
        """Somebody there gave a wrong digest; ``unknown``: for a user there is not."""
        limits, now = self._limits, self._context.now
        source = self._source(host, limits.messages_per_second * limits.burst_s)
        if now - source.failures_since > limits.auth_window_s:
            source.failures = source.unknown = 0
            source.failures_since = now
        if unknown:
            source.unknown += 1
        else:
            source.failures += 1
        guesses = source.failures >= limits.auth_failures_max or source.unknown >= limits.unknown_users_max
        if guesses and not self._known(host):
            source.failures = source.unknown = 0
            self._ban(host, source, "auth")

    def _ban(self, host: str, source: Source, why: str) -> None:
        context = self._context
        if source.banned_until <= context.now:
            context.note("edge", "source banned", level="warning", host=host, why=why, s=self._limits.ban_s)
            context.count("edge_sources_banned", why=why)
        source.banned_until = context.now + self._limits.ban_s

    def _silence(self, why: str) -> bool:
        self._context.count("edge_messages_ignored", why=why)
        return False

    def _source(self, host: str, tokens: float) -> Source:
        source = self._sources.get(host)
        if source is None:
            source = self._sources[host] = Source(tokens, self._context.now)
            if len(self._sources) > self._limits.sources_max:
                self._sources.popitem(last=False)
        else:
            self._sources.move_to_end(host)
        return source

    def banned(self) -> list[str]:
        """Hosts that are met with silence now."""
        return [host for host, source in self._sources.items() if source.banned_until > self._context.now]
