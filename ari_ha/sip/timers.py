"""Timers: the queue all deadlines of an endpoint live in, and session timers (RFC 4028)."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from dataclasses import dataclass

from ari_ha.sip.message import Message

SLACK_MAX_COUNT = 1_024
"""Stopped entries the heap may hold beyond twice the live ones before it is rebuilt."""
EXPIRES_MAX_S = 2**31 - 1
"""The largest delta-seconds taken (RFC 3261 section 20.19 allows 2**32-1; nobody waits longer)."""


class TimerQueue:
    """Named deadlines; starting a name again moves it."""

    __slots__ = ("_at", "_heap", "_order")

    def __init__(self) -> None:
        self._at: dict[Hashable, tuple[float, int]] = {}
        self._heap: list[tuple[float, int, Hashable]] = []
        self._order = 0

    def start(self, name: Hashable, at: float) -> None:
        """Set or move a deadline."""
        self._order += 1
        self._at[name] = (at, self._order)
        heapq.heappush(self._heap, (at, self._order, name))
        if len(self._heap) > 2 * len(self._at) + SLACK_MAX_COUNT:
            self._heap = [(when, order, key) for key, (when, order) in self._at.items()]
            heapq.heapify(self._heap)

    def stop(self, name: Hashable) -> None:
        """Remove a deadline, if set."""
        self._at.pop(name, None)

    def at(self, name: Hashable) -> float | None:
        """When a name is due."""
        entry = self._at.get(name)
        return entry[0] if entry is not None else None

    def deadline(self) -> float | None:
        """The earliest deadline."""
        heap = self._heap
        while heap:
            when, order, name = heap[0]
            if self._at.get(name) == (when, order):
                return when
            heapq.heappop(heap)
        return None

    def pop_due(self, now: float) -> Hashable | None:
        """The next name due at `now`, removed; None when there is none."""
        when = self.deadline()
        if when is None or when > now:
            return None
        name = heapq.heappop(self._heap)[2]
        del self._at[name]
        return name

    def __len__(self) -> int:
        return len(self._at)


@dataclass(frozen=True, slots=True)
class SessionTimer:
    """What two sides agreed on: who refreshes, and how long silence may last."""

    interval_s: int
    refresher: str
    """"local" or "remote"."""

    def action_at(self, now: float) -> float:
        """When to act next: refresh at half the interval (RFC 4028 section 7.2), or give up with a BYE
        min(32 s, a third) before the end (section 10)."""
        if self.refresher == "local":
            return now + self.interval_s / 2
        return now + self.interval_s - min(32.0, self.interval_s / 3)

    def expires_at(self, now: float) -> float:
        """When the interval is over for the refresher too, its refreshes having failed."""
        return now + self.interval_s


def parse_delta(value: str) -> int | None:
    """delta-seconds at the start of a header value, parameters ignored."""
    text = value.partition(";")[0].strip()
    if not (text.isascii() and text.isdigit()) or len(text) > 12:
        return None
    return min(int(text), EXPIRES_MAX_S)


def parse_session_expires(message: Message) -> tuple[int, str | None] | None:
    """Interval and refresher ("uac", "uas" or None) of Session-Expires (RFC 4028 section 4)."""
    value = message.get("Session-Expires")
    interval = parse_delta(value) if value else None
    if interval is None:
        return None
    for item in value.split(";")[1:]:
        name, _, content = item.partition("=")
        if name.strip().lower() == "refresher" and content.strip().lower() in ("uac", "uas"):
            return interval, content.strip().lower()
    return interval, None


def too_small(request: Message, min_se_s: int) -> bool:
    """Whether a request deserves 422 (section 9): only a UAC that supports timers can be told."""
    asked = parse_session_expires(request)
    return asked is not None and asked[0] < min_se_s and "timer" in request.tokens("Supported")


def negotiate_uas(request: Message, min_se_s: int) -> SessionTimer | None:
    """The timer a UAS agrees to (section 9, table 2)."""
    asked = parse_session_expires(request)
    if asked is None:
        return None
    interval, refresher = asked
    if "timer" not in request.tokens("Supported"):
        refresher = "uas"
    return SessionTimer(max(interval, min_se_s), "local" if refresher == "uas" else "remote")


def uas_headers(timer: SessionTimer | None, request: Message) -> list[tuple[str, str]]:
    """What the 2xx says about the timer (section 9: Require when the UAC must refresh)."""
    if timer is None:
        return []
    refresher = "uas" if timer.refresher == "local" else "uac"
    headers = [("Session-Expires", f"{timer.interval_s};refresher={refresher}")]
    if refresher == "uac" and "timer" in request.tokens("Supported"):
        headers.append(("Require", "timer"))
    return headers


def negotiate_uac(response: Message, asked: SessionTimer | None) -> SessionTimer | None:
    """The timer a 2xx sets up (section 7.2); without Session-Expires there is none any more."""
    given = parse_session_expires(response)
    if given is None or given[0] <= 0:
        return None
    interval, refresher = given
    if refresher is None and asked is not None:
        return SessionTimer(interval, asked.refresher)
    return SessionTimer(interval, "remote" if refresher == "uas" else "local")


def uac_headers(interval_s: int, refresher: str | None, min_se_s: int | None) -> list[tuple[str, str]]:
    """What an INVITE asks for; `refresher` is "local", "remote" or None to leave it to the far side."""
    role = {"local": ";refresher=uac", "remote": ";refresher=uas"}.get(refresher or "", "")
    headers = [("Session-Expires", f"{interval_s}{role}")]
    if min_se_s is not None:
        headers.append(("Min-SE", str(min_se_s)))
    return headers
