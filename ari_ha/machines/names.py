"""Where the hosts behind names are (RFC 3263 §4.2), kept as long as DNS says.

The transport is known before a name is asked, so NAPTR is not (§4.1). A name without a port
is a service: SRV, and where it has none the name's address with the default port. What was
known once is kept while nobody answers, for a named time; what certainly is not there any
more is forgotten at once.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ari_ha.core.machine import Done, Outcome, Refused
from ari_ha.core.ports.names import Found, Service
from ari_ha.machines.edge_context import EdgeContext

PLACES_MAX = 8
"""Places of one name that are used, the best first."""
TTL_MIN_S, TTL_MAX_S = 5.0, 86_400.0
RETRY_FIRST_S, RETRY_MAX_S = 2.0, 120.0
STALE_MAX_S = 3_600.0
"""An answer is used this long after it ran out, if nobody can be asked (RFC 8767)."""
SERVICES = {"udp": "_sip._udp", "tcp": "_sip._tcp", "tls": "_sips._tcp"}


@dataclass(frozen=True, slots=True)
class Question:
    """A name, and the service there; without a service its ``port``."""

    name: str
    service: str = ""
    port: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """An address and a port, and when it is to be used (RFC 2782)."""

    host: str
    port: int
    priority: int = 0
    weight: int = 0

    @property
    def text(self) -> str:
        """host:port"""
        return f"{self.host}:{self.port}"


@dataclass(slots=True)
class Entry:
    """What is known of a question."""

    places: tuple[Place, ...] = ()
    why: str = "not asked yet"
    """Why it is not known, or not renewed; empty: it is known."""
    good_until: float = 0.0
    failures: int = 0


def is_name(host: str) -> bool:
    """Whether a host is written as a name, not as an address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return bool(host)
    return False


class Names:
    """Asks, keeps, asks again."""

    def __init__(
        self, context: EdgeContext, on_change: Callable[[Question], None], owner: str = "name"
    ) -> None:
        """``owner`` tells the timers of several of these apart."""
        self._context = context
        self._owner = owner
        self._on_change = on_change
        self._entries: dict[Question, Entry] = {}

    def want(self, questions: Iterable[Question]) -> None:
        """These and no others are kept known."""
        wanted = set(questions)
        for question in [q for q in self._entries if q not in wanted]:
            del self._entries[question]
            self._context.cancel(self._timer(question))
        for question in sorted(wanted - set(self._entries), key=lambda q: (q.name, q.service, q.port)):
            self._entries[question] = Entry()
            self._ask(question)

    def known(self, question: Question) -> Entry:
        """What is known of it now."""
        return self._entries.get(question, Entry())

    # --- asking --------------------------------------------------------------------

    def _ask(self, question: Question) -> None:
        if question.service:
            name = f"{question.service}.{question.name}"
            self._context.look_up(name, "SRV", lambda outcome: self._services(question, outcome))
        else:
            self._addresses(question, (_itself(question),), TTL_MAX_S)

    def _services(self, question: Question, outcome: Outcome) -> None:
        if isinstance(outcome, Done):
            found: Found = outcome.value
            offered = sorted((s for s in found.services if s.name), key=lambda s: (s.priority, -s.weight))
            if offered:
                self._addresses(question, tuple(offered[:PLACES_MAX]), found.ttl_s)
            else:
                self._failed(question, f"{question.name} offers no {question.service}", True)
        elif isinstance(outcome, Refused):
            self._addresses(question, (_itself(question),), TTL_MAX_S)  # §4.2: no SRV, so its address
        else:
            self._failed(question, outcome.reason, False)

    def _addresses(self, question: Question, services: tuple[Service, ...], ttl_s: float) -> None:
        answers: dict[str, Outcome] = {}
        names = sorted({service.name for service in services})

        def answered(name: str, outcome: Outcome) -> None:
            answers[name] = outcome
            if len(answers) == len(names):
                self._gathered(question, services, answers, ttl_s)

        for name in names:
            self._context.look_up(name, "A", lambda outcome, name=name: answered(name, outcome))  # type: ignore[misc]

    def _gathered(
        self, question: Question, services: tuple[Service, ...], answers: dict[str, Outcome], ttl_s: float
    ) -> None:
        places: list[Place] = []
        for service in services:
            outcome = answers[service.name]
            if isinstance(outcome, Done):
                ttl_s = min(ttl_s, outcome.value.ttl_s)
                places += [
                    Place(address, service.port, service.priority, service.weight)
                    for address in sorted(outcome.value.addresses)
                ]
        if places:
            self._found(question, tuple(places[:PLACES_MAX]), ttl_s)
            return
        reasons = [outcome.reason for outcome in answers.values() if not isinstance(outcome, Done)]
        definite = all(isinstance(outcome, Done | Refused) for outcome in answers.values())
        self._failed(question, reasons[0] if reasons else f"{question.name} has no address", definite)

    # --- keeping -------------------------------------------------------------------

    def _found(self, question: Question, places: tuple[Place, ...], ttl_s: float) -> None:
        entry, context = self._entries.get(question), self._context
        if entry is None:
            return
        context.count("edge_name_lookups", result="found")
        ttl_s = min(max(ttl_s, TTL_MIN_S), TTL_MAX_S)
        changed = set(entry.places) != set(places) or bool(entry.why)
        if changed:
            where = " ".join(place.text for place in places)
            context.note(f"name/{question.name}", "found", service=question.service, at=where, ttl_s=ttl_s)
        entry.places, entry.why, entry.failures = places, "", 0
        entry.good_until = context.now + ttl_s
        context.at(self._timer(question), entry.good_until, lambda: self._ask(question))
        if changed:
            self._on_change(question)

    def _failed(self, question: Question, why: str, definite: bool) -> None:
        entry, context = self._entries.get(question), self._context
        if entry is None:
            return
        context.count("edge_name_lookups", result="not there" if definite else "no answer")
        if entry.why != why:
            context.note(f"name/{question.name}", "not found", level="error", why=why)
        gone = definite or context.now > entry.good_until + STALE_MAX_S
        changed = entry.why != why or (gone and bool(entry.places))
        entry.why = why
        if gone:
            entry.places = ()
        wait = min(RETRY_FIRST_S * 2 ** min(entry.failures, 10), RETRY_MAX_S)
        entry.failures += 1
        context.at(self._timer(question), context.now + wait, lambda: self._ask(question))
        if changed:
            self._on_change(question)

    def _timer(self, question: Question) -> str:
        return f"{self._owner}/{question.service}.{question.name}:{question.port}"


def _itself(question: Question) -> Service:
    return Service(0, 0, question.port, question.name)
