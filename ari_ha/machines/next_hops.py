"""Names that route sets and Contacts name (RFC 3263): asked for when a dialog first shows one, kept
known while a dialog has it. Until the answer is there a request goes where its far side was
last heard, so nothing ever waits for DNS."""

from __future__ import annotations

from collections.abc import Sequence

from ari_ha.machines.edge_context import EdgeContext
from ari_ha.machines.names import SERVICES, Names, Question
from ari_ha.sip.flow import Flow
from ari_ha.sip.nexthop import DEFAULT_PORTS, Hop

NAMES_MAX_COUNT = 256
"""Names kept known at once; of further ones the source is used."""
SWEEP_INTERVAL_S = 60.0
UNUSED_MAX_S = 300.0
"""A name no dialog has is forgotten after this."""


class NextHops:
    """What is known of the names in dialogs."""

    def __init__(self, context: EdgeContext) -> None:
        self._context = context
        self._names = Names(context, lambda question: None, "next-hop")
        self._used: dict[Question, float] = {}
        """Asked for last"""
        context.resolve = self.places

    def places(self, hop: Hop) -> Sequence[tuple[str, int]]:
        """Addresses and ports of a name, as far as they are known now, by priority and weight (RFC 2782)."""
        context, question = self._context, _question(hop)
        if question not in self._used:
            if len(self._used) >= NAMES_MAX_COUNT:
                context.count("edge_next_hops_not_asked")
                return ()
            if not self._used:
                self._sweep_later()
            self._used[question] = context.now
            self._names.want(self._used)
        self._used[question] = context.now
        places = self._names.known(question).places
        drawn = [
            (p.priority, -(context.rand() ** (1.0 / p.weight)) if p.weight else 0.0, p.host, p.port)
            for p in places
        ]
        return [(host, port) for _, _, host, port in sorted(drawn)]

    def _sweep_later(self) -> None:
        self._context.at("next-hops", self._context.now + SWEEP_INTERVAL_S, self._sweep)

    def _sweep(self) -> None:
        now = self._context.now
        for hop in self._context.sip.named_hops():
            question = _question(hop)
            if question in self._used:
                self._used[question] = now
        self._used = {q: when for q, when in self._used.items() if when + UNUSED_MAX_S > now}
        self._names.want(self._used)
        if self._used:
            self._sweep_later()

    def name_at(self, flow: Flow) -> str:
        """Whose certificate must be shown at the end of a TLS flow a name led to (RFC 5922 §4); empty:
        its address's."""
        for question in self._used:
            places = self._names.known(question).places
            if any((place.host, place.port) == (flow.host, flow.port) for place in places):
                return question.name
        return ""


def _question(hop: Hop) -> Question:
    if hop.port is None:
        return Question(hop.host, SERVICES[hop.transport], DEFAULT_PORTS[hop.transport])
    return Question(hop.host, "", hop.port)
