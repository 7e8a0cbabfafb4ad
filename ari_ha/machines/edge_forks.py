"""A phone that is registered at several places rings at all of them (RFC 3261 §16.6).

They are one leg: one port, one offer, one half at the node. The dialog that is the leg's is
the one that was answered first; until then it is that of the contact that would be rung
alone. The others are `PhoneLeg.forks`, stored with it, and end when the leg rings no more.
"""

from __future__ import annotations

from collections.abc import Callable

from ari_ha.machines.edge_audio import suite_towards
from ari_ha.machines.edge_calls import Calls
from ari_ha.machines.edge_context import EdgeContext
from ari_ha.machines.edge_model import EdgeCall, PhoneLeg
from ari_ha.machines.registrar import Registrar
from ari_ha.sip.events import LegFailed
from ari_ha.wire.keyspace import BindingValue

ELSEWHERE = 'SIP;cause=200;text="Call completed elsewhere"'
"""Reason (RFC 3326) of the CANCEL to a phone whose call was answered at another: none was missed."""
Invite = Callable[[str, BindingValue], None]


class Forks:
    """The dialogs of ringing legs beside their first."""

    def __init__(self, context: EdgeContext, calls: Calls, registrar: Registrar) -> None:
        self._context = context
        self._calls = calls
        self._registrar = registrar
        self._legs: dict[tuple[str, str], tuple[EdgeCall, PhoneLeg]] = {}
        self._refusals: dict[tuple[str, str], int] = {}

    def ring(self, call: EdgeCall, leg: PhoneLeg, invite: Invite) -> None:
        """Rings the leg's further contacts. Those that would need another offer (SRTP or
        not) than the first are left out."""
        first, *others = self._registrar.bindings_of(leg.aor)
        policy = self._context.config.srtp_to_phones
        wanted = suite_towards(first.transport, policy)
        for binding in others[: max(0, self._context.config.contacts_rung_max - 1)]:
            if suite_towards(binding.transport, policy) == wanted:
                key = self._context.new_id()
                leg.forks.append(key)
                invite(key, binding)
        self.watch(call, leg)

    def watch(self, call: EdgeCall, leg: PhoneLeg) -> None:
        """The leg may ring at several places."""
        if leg.forks:
            self._legs[call.call, leg.leg] = (call, leg)

    def of(self, key: str) -> tuple[EdgeCall, PhoneLeg] | None:
        """The leg a further dialog belongs to."""
        return next((found for found in self._legs.values() if key in found[1].forks), None)

    def answered(self, key: str) -> None:
        """Where it was answered first is the leg's dialog now; a second answer that came in
        the same breath is nobody's."""
        if found := self.of(key):
            if found[1].state == "ringing":
                self._swap(*found, key)
            else:
                found[1].forks.remove(key)

    def _swap(self, call: EdgeCall, leg: PhoneLeg, key: str) -> None:
        leg.forks.remove(key)
        leg.forks.append(leg.key)
        self._calls.rekey(call, leg, key)

    def failed(self, event: LegFailed) -> int:
        """One place refused: 0 while it rings at another, else the status that counts. A 6xx
        speaks for all of them (§16.7)."""
        found = self.of(event.leg)
        if found is not None:
            call, leg = found
            if event.status >= 600 and leg.state == "ringing":
                self._swap(call, leg, event.leg)
                return event.status
            leg.forks.remove(event.leg)
            self._remember(call, leg, event.status)
            return 0
        for call, leg in self._legs.values():
            if leg.key != event.leg:
                continue
            status = self._remember(call, leg, event.status)
            if leg.forks and event.status < 600:
                self._calls.rekey(call, leg, leg.forks.pop(0))
                return 0
            return status
        return event.status

    def _remember(self, call: EdgeCall, leg: PhoneLeg, status: int) -> int:
        known = self._refusals.get((call.call, leg.leg), status)
        best = self._refusals[call.call, leg.leg] = min(known, status, key=_rank)
        return best

    def stop(self, leg: PhoneLeg) -> None:
        """Nobody is to answer at its further places any more."""
        reason = ELSEWHERE if leg.state == "up" else None
        for key in leg.forks:
            self._context.sip.hangup(key, self._context.now, reason_header=reason)
        leg.forks = []

    def sweep(self) -> None:
        """After every event: a leg that rings no more rings nowhere."""
        for name, (call, leg) in list(self._legs.items()):
            if call.ended or leg.state != "ringing":
                self.stop(leg)
                del self._legs[name]
                self._refusals.pop(name, None)


def _rank(status: int) -> tuple[bool, bool, int]:
    """Which refusal says most of the person: busy or no, before not there, before a failure."""
    return status < 600, status in (408, 480) or 500 <= status < 600, status
