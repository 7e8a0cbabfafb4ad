"""Calls to a number: an agent dials a colleague or the world, a caller an extension.

The caller is answered when the called party answers, by the edge itself. What is
dialled is in the record before it is dialled, under a leg's name that the edge
takes once: asking again after a takeover rings nobody twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ari_ha.core.ids import is_supervisor
from ari_ha.machines.node_model import DIALING, NORMAL, RINGING, TALKING, UP, Leg, next_leg
from ari_ha.machines.node_parts import Parts
from ari_ha.wire.keyspace import LegValue, RecordValue

if TYPE_CHECKING:
    from ari_ha.machines.node_call import NodeCall

DIAL_LIMIT_S = 60.0
"""A number is rung this long."""
PARTY = "party"
"""Role of a leg that was dialled because somebody asked for its number."""
CAUSE_OF_KIND = {"busy": "486", "reject": "603", "no-answer": "480", "unreachable": "480", "canceled": "487"}
"""What the caller hears of it, as a SIP status, where the edge named none."""


class Outbound:
    """The legs of one call that were dialled by number."""

    def __init__(self, parts: Parts, call: NodeCall) -> None:
        self._parts = parts
        self._call = call

    # --- dialling ------------------------------------------------------------------

    def begin(self, number: str, user: str = "") -> None:
        """The caller wants ``number``; ``user``: the phone's account, where one dials."""
        call, parts = self._call, self._parts
        head = call.legs[call.head]
        head.agent = parts.agent_of(user) if user else ""
        call.stage = DIALING
        if head.agent:
            parts.acd.conversation_state(call.call, head.agent, "dial")
        self.ring(number)

    def ring(self, number: str, consult: str = "") -> Leg:
        """Intent into the record, then a leg to ``number``."""
        call, parts = self._call, self._parts
        target = parts.dial_target(number)
        leg = call.add_leg(Leg(next_leg([*call.legs_used]), PARTY, target=target, consult=consult))
        call.note("dialling", target=target, leg=leg.leg)
        parts.context.count("node_numbers_dialled", kind=target.partition(":")[0])
        call.save(lambda: self._dial(leg))
        return leg

    def _dial(self, leg: Leg) -> None:
        limit_s = DIAL_LIMIT_S + self._parts.context.timings.dial_margin_s
        self._call.dialling.dial(leg, leg.target, "", limit_s)

    # --- what becomes of it --------------------------------------------------------

    def answered(self, leg: Leg) -> None:
        """The party is there."""
        call, parts = self._call, self._parts
        if call.stage == DIALING and not leg.consult:
            call.stage, call.answered = TALKING, call.answered or parts.context.utc
        head = call.legs.get(call.head)
        if head is not None and head.agent and not leg.consult:
            parts.acd.conversation_state(call.call, head.agent, "connect")
        leg.agent = leg.agent or parts.agent_at(leg.target)
        # taken up with an older record, he may be all that is left: whoever ended the rest has counted it
        if leg.agent and [o for o in call.living() if o is not leg and not o.aside]:
            parts.acd.conversation_state(call.call, leg.agent, "join")
        call.note("the party answered", leg=leg.leg, target=leg.target)
        call.transfers.party_answered(leg)
        call.save()
        call.touch()

    def failed(self, leg: Leg, kind: str) -> None:
        """Nobody answered: whoever waits for it hears why."""
        call = self._call
        call.note("the party did not answer", leg=leg.leg, target=leg.target, kind=kind, status=leg.status)
        if call.transfers.party_failed(leg, kind):
            return
        if leg.consult:
            call.transfers.consult_failed(leg, kind)
        if call.stage == TALKING and not [o for o in call.living() if o.leg != call.head and not o.aside]:
            call.transfers.nowhere(kind)  # a transfer of which we have not heard
            return
        if call.stage != DIALING or leg.consult:
            call.save()
            return
        head = call.legs[call.head]
        cause = str(leg.status) if leg.status >= 400 else CAUSE_OF_KIND.get(kind, "480")
        call.end_leg(head, cause, f"not answered: {kind}")
        if not call.transfers.side_goes_on(head):
            call.over("not answered")

    # --- taken up ------------------------------------------------------------------

    def resumed(self, ended: Mapping[str, str], record: RecordValue) -> None:
        """After a takeover, or when a newer record comes. ``ended``: legs that are over, and by whom. The
        edge's word about the party is true: it rings, talks, or has ended; of a leg it never had,
        nothing was dialled."""
        call = self._call
        dialled = [v for v in record.legs.values() if v.target and not is_supervisor(v.leg)]
        for value in [v for v in dialled if v.state != "ended"]:
            leg = call.legs.get(value.leg)
            if leg is not None and leg.alive:
                leg.target = value.target
                if leg.state == UP and call.stage == DIALING:
                    self.answered(leg)
            elif value.leg in ended or value.state != "trying":
                self._gone(value, ended.get(value.leg, ""))
            elif not call.transfers.not_wanted(value.leg):
                consult = value.consult if value.consult != call.head else ""  # leads the call meanwhile
                leg = call.add_leg(Leg(value.leg, PARTY, target=value.target, consult=consult))
                call.note("dialling, which the last node had not done yet", leg=leg.leg, target=leg.target)
                call.save(lambda leg=leg: self._dial(leg))  # type: ignore[misc]

    def _gone(self, value: LegValue, by: str) -> None:
        """The party ended while the call moved: ``by`` the app where it had handed the caller over."""
        call, t = self._call, self._call.transfers.now
        asked = call.transfers.open and t is not None and t.leg == value.leg
        main = value.consult in ("", call.head)
        if by == "app" and main and call.stage == DIALING and not _rings(call):
            call.stage = TALKING  # he had answered: who called him, and rings no more, was handed over
            call.answered = call.answered or self._parts.context.utc
        if asked or (call.stage == TALKING and by == "app"):
            return  # to whom is a matter of transfers
        gone = Leg(value.leg, PARTY, state="ended", target=value.target, consult=value.consult)
        if call.transfers.party_failed(gone, "no-answer"):
            return
        leader = call.legs.get(value.consult)
        if leader is not None and leader.consult == leader.leg:
            call.transfers.consult_failed(gone, "no-answer")
            return
        if [leg for leg in call.living() if leg.leg != call.head and not leg.aside]:
            return
        call.note("the party is gone", leg=value.leg)
        cause = "480" if call.stage == DIALING else NORMAL
        call.end_leg(call.legs[call.head], cause, "the other side is gone")
        call.over("the party left meanwhile")


def stage_after(call: NodeCall, record: RecordValue) -> str:
    """Whether a call that was dialling still is; empty when it was not."""
    if record.stage != DIALING:
        return ""
    parties = [leg for leg in call.living() if leg.leg != call.head]
    return TALKING if any(leg.state == UP for leg in parties) and not _rings(call) else DIALING


def _rings(call: NodeCall) -> bool:
    head = call.legs.get(call.head)
    return head is not None and head.state == RINGING
