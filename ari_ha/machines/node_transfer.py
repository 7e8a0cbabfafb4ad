"""Consulting, transferring, conferring: people who come into a call and leave it.

A side conversation (``consult``) belongs to the leg of the phone that leads it. Every
step is in the record before it is done; a survivor reads there how far a transfer was
and goes on. Whoever was to be transferred stays in any case: with the target, with whoever
asked, rung back, or first in the queue he came from.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import msgspec

from ari_ha.core.ids import PRIMARY_LEG
from ari_ha.machines.node_model import (
    AGENT_LEG,
    DIALING,
    ENDED,
    NORMAL,
    QUEUED,
    RINGING,
    TALKING,
    UP,
    Leg,
    next_leg,
)
from ari_ha.machines.node_parts import Parts
from ari_ha.wire import link
from ari_ha.wire.keyspace import RecordValue
from ari_ha.wire.transfer import TransferValue

if TYPE_CHECKING:
    from ari_ha.machines.node_call import NodeCall

ASKED, RINGS, BACK, OVER = "asked", "ringing", "back", "over"
STATUS_OF_KIND = {"busy": 486, "reject": 603, "no-answer": 480, "unreachable": 480, "canceled": 487}
REQUEST_PENDING = 491
"""RFC 3261 §21.4.27"""
CUSTOMER = "customer"
MAIN_LETTERS = (PRIMARY_LEG, AGENT_LEG)
"""First letters of legs that may be of the main conversation"""
CONFERENCE_DIGITS = "*3"
"""Typed by whoever consults: all three talk."""


class Transfers:
    """See the module; one per call."""

    def __init__(self, parts: Parts, call: NodeCall) -> None:
        self._parts = parts
        self._call = call
        self.now: TransferValue | None = None
        """The transfer under way, or the last one"""
        self._failed: dict[str, tuple[str, int]] = {}
        """leg -> the last transfer its phone asked for in vain, and what it was told"""
        self._typed = ""
        self._awaited = False
        """A phone waits for one that we have not heard of"""

    @property
    def open(self) -> bool:
        """Whether one is under way."""
        return self.now is not None and self.now.state != OVER

    @property
    def pending(self) -> bool:
        """Whether one is under way, or a phone waits for one that its edge will tell us of."""
        return self.open or self._awaited

    def _set(self, **changes: object) -> None:
        assert self.now is not None
        self.now = msgspec.structs.replace(self.now, **changes)

    def _say(self, status: int) -> None:
        if self.now is not None:
            self._tell(self.now.leg, self.now.transfer, status)

    def _fail(self, status: int) -> None:
        """The transfer under way comes to nothing, and whoever asked is there to be told."""
        self._say(status)
        self.now = None
        if self._awaited and self._alone():
            self._other_side_left()
        self._awaited = False

    def _tell(self, leg: str, transfer: str, status: int) -> None:
        call, epoch = self._call, str(self._call.epoch)
        if status >= 300:
            self._failed[leg] = (transfer, status)
        call.say(link.TransferIs(call=call.call, leg=leg, epoch=epoch, transfer=transfer, status=status))

    def say_conversations(self) -> None:
        """Tells the edge who belongs to whom."""
        call = self._call
        consult = {leg.leg: leg.consult for leg in call.living() if leg.consult}
        call.say(link.Conversations(call=call.call, epoch=str(call.epoch), head=call.head, consult=consult))

    def _others(self, leg: Leg) -> list[Leg]:
        return [o for o in self._call.living() if o is not leg and o.consult == leg.consult and not o.aside]

    def heard(self, frame: link.Asked) -> None:
        """What a phone asked for, or did, as its edge says."""
        if self._call.quiet():
            return  # the dialplan has the caller, or nobody has: there is nobody to be brought to him
        match frame:
            case link.TransferAsked():
                self.asked(frame)
            case link.ConsultAsked():
                self.consult_asked(frame)
            case link.LegTaken(leg=name, device=device):
                if (leg := self._call.legs.get(name)) is not None:
                    self._call.phone_taken(leg, device)

    # --- consulting ----------------------------------------------------------------

    def consult_channel(self, name: str) -> Leg:
        """The leg of a phone's second dialog, whose channel is here."""
        call = self._call
        return call.legs.get(name) or call.add_leg(Leg(name, "user", state=RINGING, consult=name))

    def consult_asked(self, frame: link.ConsultAsked) -> None:
        """A phone in the call wants to speak to ``number`` meanwhile."""
        if frame.leg in self._call.over_before:
            return  # asked while the call was being taken up, and given up since
        call, leg = self._call, self.consult_channel(frame.leg)
        if leg.leg == call.head:  # what it was beside has ended meanwhile: a call like any he makes
            if call.stage == DIALING and leg.alive and not self._others(leg):
                call.outbound.ring(frame.number)
            return
        leg.consult, leg.of = frame.leg, frame.of
        main = call.legs.get(leg.of)
        beside = call.stage == DIALING and main is not None and main.consult  # in a side conversation
        if not leg.alive or not (call.stage in (QUEUED, TALKING) or beside) or self._others(leg):
            return  # whoever has answered may consult before the caller is his
        call.note("consulting", leg=leg.leg, of=leg.of, number=frame.number)
        self._agent_state(leg, "consult")
        call.outbound.ring(frame.number, consult=leg.leg)

    def _agent_state(self, leg: Leg, rule: str) -> None:
        if (main := self._call.legs.get(leg.of)) is not None and main.agent:
            self._parts.acd.conversation_state(self._call.call, main.agent, rule)

    def consult_failed(self, party: Leg, kind: str) -> None:
        """The consulted party did not answer: the phone hears why, and has its caller still."""
        leg = self._call.legs.get(party.consult)
        if leg is not None and leg.alive:
            status = party.status if party.status >= 400 else STATUS_OF_KIND.get(kind, 480)
            self._call.end_leg(leg, str(status), f"not answered: {kind}")
            self._agent_state(leg, "consult-end")

    # --- people who leave ----------------------------------------------------------

    def left(self, leg: Leg, head: str = "") -> bool:
        """A phone has gone; True when that is a matter of transfers or consulting. ``head``: who
        leads the call now, where its edge says that others go on."""
        call, t = self._call, self.now
        if self.open and t is not None and (leg.leg == t.leg or (leg.leg == t.other and not leg.of)):
            self._gone(leg)
            self._set(left=True)
            call.save()
            return True
        if leg.leg == call.head and self.side_goes_on(leg):
            return True
        if leg.leg == call.head and (goes_on := call.legs.get(head)) is not None and goes_on.alive:
            self._goes_on(leg, goes_on)
            return True
        if leg.consult and (leg.consult == leg.leg or leg.state == UP):
            self._consult_over(leg)
            return True
        alone = leg.state == UP and not (leg.consult or leg.aside) and any(o.consult for o in call.living())
        if alone and [o.leg for o in self._others(leg)] == [call.head]:
            self._other_side_left()
            return True
        return False

    def _gone(self, leg: Leg, cause: str = "transfer") -> None:
        leg.state = ENDED
        self._call.hang_up_later(leg)
        self._free(leg, cause)

    def _free(self, leg: Leg, cause: str = "transfer") -> None:
        self._call.attempt_over(leg)
        self._call.left_by(leg, cause)

    def _main_ended(self, leg: Leg, consult: str) -> None:
        """The main conversation is over while an agent consults: the side conversation goes on."""
        call = self._call
        call.note("the main conversation is over, the consultation goes on", leg=leg.leg, head=consult)
        if call.stage == QUEUED:  # he waited there, and hung up the line he waited on
            call.queue = ""
            self._parts.acd.caller_leaves(call.call, "abandoned", goes_on=True)
        leader = call.legs[consult]
        main = call.legs.get(leader.of)
        if main is not None:
            leader.agent, main.agent = main.agent, ""
            self._parts.acd.conversation_state(call.call, leader.agent, "consult-end")
            call.attempt_over(main)
        for other in [leg, *self._others(leg)]:
            self._gone(other, "caller")
        call.head = consult
        self._nobody_waits()
        for other in call.living():
            other.consult = "" if other.consult == consult else other.consult
        # whom he wanted to consult still rings: a call like any he makes
        call.stage = TALKING if leader.state == UP else DIALING
        call.save()

    def _nobody_waits(self) -> None:
        """Whoever was to be transferred is gone: where neither the target nor whoever asked is there, nobody
        is called (back) for him."""
        t, alive = self.now, {leg.leg for leg in self._call.living()}
        if t is not None and self.open and not alive & {t.leg, t.party}:
            self._set(state=OVER)

    def side_goes_on(self, head: Leg) -> bool:
        """Nobody is left in the main conversation but ``head``, whose end was announced: whether there
        is a side conversation, which goes on."""
        side = sorted({o.consult for o in self._call.living() if o.consult})
        if side:
            self._main_ended(head, side[0])
        return bool(side)

    def _goes_on(self, leg: Leg, head: Leg) -> None:
        """Three were brought together here, and for the edge, which had not heard of it, the one who
        consulted and his party go on without the caller: so they do."""
        self._call.note("the caller is gone, the others go on", leg=leg.leg, head=head.leg)
        self._call.head = head.leg
        self._gone(leg, "caller")
        self._call.save()
        self._call.touch()

    def _consult_over(self, leg: Leg) -> None:
        call, others = self._call, self._others(leg)
        leg.state = ENDED
        call.hang_up_later(leg)
        call.left_by(leg, "consult")
        if leg.consult != leg.leg and len(others) > 1:
            call.save()  # of three who were brought together two stay
            call.touch()
            return
        for other in others:
            call.end_leg(other, NORMAL, "the consultation is over")
            call.left_by(other, "consult")
        leader = call.legs.get(leg.consult)
        if leader is not None:
            self._agent_state(leader, "consult-end")
        call.save()

    # --- transferring --------------------------------------------------------------

    def asked(self, frame: link.TransferAsked) -> None:
        """A phone wants its partner to be somebody else's: intent first."""
        call, t = self._call, self.now
        leg, failed = call.legs.get(frame.leg), self._failed.get(frame.leg)
        if failed is not None and failed[0] == frame.transfer:
            self._tell(frame.leg, *failed)  # his edge had not heard it yet: it is not tried anew
            return
        if t is not None and t.transfer == frame.transfer:
            if t.state != ASKED:
                self._say(200)
            return
        if self.open:  # whoever asks must not take silence for yes, and hang up
            call.note("transfer refused: another is under way", leg=frame.leg, number=frame.number)
            self._tell(frame.leg, frame.transfer, REQUEST_PENDING)
            return
        self.now = TransferValue(
            transfer=frame.transfer, leg=frame.leg, number=frame.number, other=frame.other
        )
        if leg is None or not leg.alive or call.stage != TALKING:
            self._fail(481)
            return
        self._set(device=self._device(leg))
        call.note("transfer", leg=frame.leg, number=frame.number, other=frame.other)
        self._parts.context.count("node_transfers", kind="attended" if frame.other else "blind")
        call.save(self._act)

    def _device(self, leg: Leg) -> str:
        agent = self._parts.acd.acd.agents().get(leg.agent)
        return agent.device if agent is not None else leg.target.removeprefix("device:")

    def _act(self) -> None:
        t, call = self.now, self._call
        if t is None or t.state != ASKED or t.party or call.quiet():
            return
        if t.other:
            self._attended(t)
        elif queue := self._parts.queue_of_number(t.number):
            leg = call.legs.get(t.leg)
            if leg is not None and len(self._others(leg)) > 1:
                self._fail(480)  # of three people nobody can wait for the others
            else:
                self._into_queue(queue)
        elif (leg := self._dialled(t)) is not None:
            self._set(party=leg.leg)
            call.save()
            if leg.state == UP:
                self.party_answered(leg)
            elif leg.state == RINGING:
                self.party_rings(leg)
        else:
            self._ring(t.number)
            call.save()

    def _ring(self, number: str) -> None:
        """Which leg it will be is in the record before it is dialled."""
        self._set(party=next_leg([*self._call.legs_used]))
        self._call.outbound.ring(number)

    def _dialled(self, t: TransferValue) -> Leg | None:
        """The target, where the node before us had dialled it and we have no record of that."""
        call, target = self._call, self._parts.dial_target(t.number)
        return next((o for o in call.living() if o.unrecorded and o.target == target and not o.consult), None)

    def _attended(self, t: TransferValue) -> None:
        call = self._call
        legs = [leg for name in (t.leg, t.other) if (leg := call.legs.get(name)) is not None]
        leader = next((leg for leg in legs if leg.consult == leg.leg), None)
        party = next((o for o in self._others(leader) if o.leg != t.leg), None) if leader else None
        both = {leg.leg for leg in legs}
        main = call.legs.get(leader.of) if leader else None
        into = main.consult if main else ""  # who was consulted may consult in turn
        stays = [o for o in call.living() if o.leg not in both and o.consult == into and not o.aside]
        if party is None or not stays:
            self._fail(480)  # there is nobody to be connected
            return
        party.consult, self._awaited = into, False
        self._set(party=party.leg, state=OVER if party.state == UP else RINGS, left=True)
        self._new_head({leg.leg for leg in legs})
        self.say_conversations()
        self._say(200)
        for leg in [leg for leg in legs if leg.alive]:
            call.end_leg(leg, NORMAL, "transferred")
            self._free(leg)
        call.note("transferred", to=party.target, leg=party.leg, answered=party.state == UP)
        call.save()
        call.touch()

    def _new_head(self, leaving: set[str]) -> None:
        """Whoever stays leads the call now."""
        call, t = self._call, self.now
        party = t.party if t is not None else ""
        if call.head in leaving:
            stays = [o for o in call.living() if o.leg not in leaving and not o.consult and not o.aside]
            stays.sort(key=lambda o: o.leg == party)
            if stays:
                call.head = stays[0].leg

    def _into_queue(self, queue: str) -> None:
        """Into a queue: the caller waits there like any other, an agent whom a colleague hands over too."""
        call, context = self._call, self._parts.context
        self._leave()
        self._set(state=OVER)
        self._will_wait()
        call.note("transferred into a queue", queue=queue)
        call.queue, call.entered, call.stage = queue, context.utc, QUEUED
        self._parts.acd.caller_enters(call.call, queue, call.entered, call.queue_priority, call.caller)
        call.save()
        call.touch()

    def _will_wait(self) -> None:
        """Whoever leads the call is a caller in a queue now: an agent too, and one with a second line."""
        call = self._call
        if (head := call.legs.get(call.head)) is not None and head.agent:
            call.attempt_over(head)
            self._parts.acd.conversation_ended(call.call, head.agent, "transfer")
            head.agent, head.attempt = "", ""

    def _leave(self) -> None:
        """Whoever asked is released: the target is reached."""
        t, call = self.now, self._call
        assert t is not None
        self._say(200)
        leg = call.legs.get(t.leg)
        self._new_head({t.leg})
        self.say_conversations()
        if leg is not None and leg.alive:
            call.end_leg(leg, NORMAL, "transferred")
            self._free(leg)
        self._set(left=True)

    # --- the target ----------------------------------------------------------------

    def party_rings(self, leg: Leg) -> None:
        """The target rings."""
        t = self.now
        if t is not None and t.party == leg.leg and t.state == ASKED and not self._for_nobody(t):
            self._leave()
            self._set(state=RINGS)
            self._call.save()
            self._call.touch()

    def party_answered(self, leg: Leg) -> None:
        """The target is there."""
        t = self.now
        if t is not None and t.party == leg.leg and t.state != OVER and not self._for_nobody(t):
            if not t.left:
                self._leave()
            self._set(state=OVER)
            self._call.note("transfer done", leg=leg.leg, target=leg.target)

    def _for_nobody(self, t: TransferValue) -> bool:
        """Whoever was to be transferred has hung up: who asked hears that it failed, and has the target."""
        asker = self._call.legs.get(t.leg)
        if t.left or asker is None or any(o.leg != t.party for o in self._others(asker)):
            return False
        self._fail(480)
        return True

    def party_failed(self, leg: Leg, kind: str) -> bool:
        """The target did not answer. Whoever asked is told, or rung again when he has left;
        True when the leg was a transfer's."""
        t, call = self.now, self._call
        if t is None or t.party != leg.leg or t.state == OVER:
            return False
        asker = call.legs.get(t.leg)
        if asker is not None and asker.alive and not t.left:
            self._fail(leg.status if leg.status >= 400 else STATUS_OF_KIND.get(kind, 480))
        elif t.state != BACK and t.device:
            call.note("transfer failed: whoever asked is rung again", device=t.device, kind=kind)
            self._set(state=BACK, party="")
            self._ring(t.device)
        else:
            self._set(state=OVER)
            self.nowhere(kind)
            return True
        call.save()
        call.touch()
        return True

    def nowhere(self, kind: str) -> None:
        """Nobody takes whoever leads the call: back into his queue, first; a carrier's caller of whom no
        queue is known to where his number leads, but to nobody's phone; else he is sent home."""
        call = self._call
        head = call.legs[call.head]
        if any(o.state == UP for o in self._others(head)):
            call.note("nobody took the transfer: the others go on", kind=kind)  # of three, one has left
            call.save()
            call.touch()
            return
        if call.queue:
            self._will_wait()
            call.requeue("nobody took the transfer")
            return
        elsewhere = "dial" in call.facts.verb or any(o.consult for o in call.living())
        if not elsewhere and head.role == CUSTOMER and head.channel is not None:
            for other in [o for o in call.living() if o is not head]:
                call.end_leg(other, NORMAL, "the dialplan serves the caller anew")
            call.note("nobody took the transfer: the dialplan serves the caller anew", level="warning")
            call.to_dialplan("no record", call.context_name, call.facts.did)
            return
        call.end_leg(head, NORMAL, f"nobody took the transfer: {kind}")
        if not self.side_goes_on(head):
            call.over("nobody took the transfer")

    # --- three people --------------------------------------------------------------

    def digit(self, leg: Leg, digit: str) -> None:
        """Typed by whoever consults."""
        if leg.consult != leg.leg:
            return
        self._typed = (self._typed + digit)[-len(CONFERENCE_DIGITS) :]
        if self._typed == CONFERENCE_DIGITS:
            self._typed = ""
            self.conference(leg)

    def conference(self, leader: Leg) -> bool:
        """The side conversation that ``leader`` leads joins the one its phone is in beside it, which
        may be a side conversation too. Of the phone that has both the dialog that is not on hold
        stays; False when there is nobody to be joined: who waits in a queue has nobody there yet."""
        call = self._call
        main = call.legs.get(leader.of)
        if leader.state != UP or main is None or not main.alive or not self._others(leader):
            return False
        if call.stage != TALKING and not main.consult:
            return False
        for other in self._others(leader):
            other.consult = main.consult
        leaves, stays = (main, leader) if main.held else (leader, main)
        leader.consult = main.consult
        if stays is leader:
            leader.agent, leader.attempt, main.agent = main.agent, main.attempt, ""
            if leader.attempt in call.attempts:
                call.attempts[leader.attempt].leg = leader.leg
            if call.head == main.leg:
                call.head = leader.leg
        call.note("conference", legs=",".join(leg.leg for leg in call.living()), instead_of=leaves.leg)
        self._parts.context.count("node_conferences")
        self._parts.acd.conversation_state(call.call, stays.agent, "consult-end")
        self.say_conversations()
        call.end_leg(leaves, NORMAL, "conference")
        call.save()
        call.touch()
        return True

    # --- taken up ------------------------------------------------------------------

    def asking(self, legs: Collection[str], alive: Collection[str]) -> None:
        """``legs``: whose phones wait for a transfer, as their edge says, which will say what for. Where
        whoever asked is there and does not wait, the one of the record has failed; nobody is called for it
        any more."""
        t, self._awaited = self.now, any(leg in alive for leg in legs)
        if t is not None and t.leg in alive and t.leg not in legs and t.party not in alive:
            self._set(state=OVER)

    def not_wanted(self, leg: str) -> bool:
        """Whether the leg was to be dialled for a transfer that is over."""
        return self.now is not None and self.now.state == OVER and self.now.party == leg

    def lead_on(self, record: RecordValue, at_edge: str) -> None:
        """Being rebuilt: the caller, or the only one who talked to him, hung up while the call
        moved. The side conversation is the main one now; a caller who is left is sent home.
        ``at_edge``: who leads the call there."""
        call = self._call
        head, leader = call.legs.get(call.head), call.legs.get(at_edge)
        if head is not None or leader is None:
            leader = next((leg for leg in call.living() if leg.consult == leg.leg), None)
        if leader is None:
            return
        if head is not None:
            waits = record.stage == QUEUED and leader.of == head.leg  # in a queue, and consults meanwhile
            if self._others(head) or self.pending or waits:
                return
            call.ending[head.leg] = NORMAL
        main = record.legs.get(leader.of)
        if main is not None and leader.of not in call.legs:
            leader.agent = main.agent
        call.head = leader.leg
        if head is None:
            self._nobody_waits()
        for leg in [leg for leg in call.living() if leg.consult == leader.leg]:
            leg.consult = ""

    def resumed(self, record: RecordValue, ended: Mapping[str, str]) -> None:
        """After a takeover: goes on where the record says it was. ``ended``: the legs that are
        over, in their order, and who ended them."""
        call, t = self._call, self.now
        head = call.legs.get(call.head)
        if head is not None and head.of and not head.consult:
            self._parts.acd.conversation_state(call.call, head.agent, "consult-end")
            if head.state == RINGING:  # the queue may have him free: it did not know that he had answered
                self._parts.acd.conversation_state(call.call, head.agent, "dial")
        for leg in [leg for leg in call.living() if leg.consult and leg.leg != leg.consult]:
            leader = call.legs.get(leg.consult)
            if leader is None or not leader.alive:
                call.end_leg(leg, NORMAL, "whoever consulted is gone")
                call.left_by(leg, "consult")
        if t is not None and t.party in ended:
            self._set(state=OVER)  # he had answered, and handed the caller over in turn
        if not self.open or t is None:
            self._left_alone(ended, record)
            return
        asker = call.legs.get(t.leg)
        if (asker is None or not asker.alive) and not t.left:
            self._set(left=True)
            known = record.legs.get(t.leg)
            if known is not None and known.agent:
                self._parts.acd.conversation_ended(call.call, known.agent, "transfer")
        party = call.legs.get(t.party)
        if party is not None and party.state == UP:
            self.party_answered(party)
        elif not t.party:
            self._act()

    def _left_alone(self, ended: Mapping[str, str], record: RecordValue) -> None:
        """The record is older than how the conversation ended, and nobody is there for whoever leads
        the call. Whom he talked to last has hung up; else he was being handed over, nobody knows where,
        or to somebody who did not answer."""
        call = self._call
        if not self._alone():
            return
        known = {name for name, leg in record.legs.items() if leg.consult not in ("", call.head)}
        last = [by for name, by in ended.items() if name[0] in MAIN_LETTERS and name not in known]
        if not last:
            return
        here = {leg.agent for leg in call.living()}
        for leg in [leg for leg in record.legs.values() if leg.leg in ended and leg.agent not in here]:
            self._parts.acd.conversation_ended(call.call, leg.agent, "transfer")
        if self._awaited:
            return  # who talked to him asked for it, and hung up
        if last[-1] != "phone":
            self.nowhere("handed over, and the record of it is lost")
        else:
            self._other_side_left()

    def _alone(self) -> bool:
        """Whether nobody is with whoever leads the call."""
        call = self._call
        main = [leg.leg for leg in call.living() if not (leg.consult or leg.aside)]
        return call.stage == TALKING and main == [call.head]

    def _other_side_left(self) -> None:
        call = self._call
        head = call.legs[call.head]
        call.end_leg(head, NORMAL, "the other side hung up")
        if not self.side_goes_on(head):
            call.over("the other side left meanwhile")
