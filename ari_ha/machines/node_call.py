"""One call on this node: who is on it, what it is doing, what comes next.

Facts come from three sides: the edge (phones), Asterisk (channels) and the ACD
(agents). Every method is the written answer to one of them; after each,
`settle` brings Asterisk to what the call wants now.
"""

from __future__ import annotations

from ari_ha.core.ports.store import Compare, KeyValue, Put
from ari_ha.machines.acd_orders import AttemptWon, CallerQueued, CancelAttempt, QueueFull, StartAttempt
from ari_ha.machines.node_asterisk import AsteriskSide, MediaWish
from ari_ha.machines.node_call_base import CallBase, CallFacts
from ari_ha.machines.node_dialling import Dialling
from ari_ha.machines.node_ivr import CallIvr
from ari_ha.machines.node_model import (
    DIALING,
    DIALPLAN,
    ENDED,
    FEATURE,
    HITLESS,
    IVR,
    LOST,
    NORMAL,
    OVER,
    QUEUED,
    RINGING,
    SETUP,
    TALKING,
    THROUGH,
    UP,
    USER_BUSY,
    Attempt,
    Channel,
    Leg,
    Wanted,
    failure_kind,
)
from ari_ha.machines.node_outbound import Outbound
from ari_ha.machines.node_parts import Parts
from ari_ha.machines.node_supervise import CallSupervision
from ari_ha.machines.node_transfer import Transfers
from ari_ha.wire import link
from ari_ha.wire.keyspace import RecordValue

SPEAKING = (QUEUED, TALKING, DIALING, FEATURE, IVR)
"""Stages in which the edge is told that Asterisk does what the call needs."""
QUEUE_ANSWER_LIMIT_S = 0.5
"""The caller is answered after this even when his place is not confirmed."""
WON_LIMIT_S = 1.0
"""An agent who answered and of whom the ACD says nothing is connected after this."""
RECOVERED_PRIORITY = 100
"""Added to the priority of a caller whose agent was lost with a node."""
RETIRED_LIMIT_S = 3.0
"""The edge ends the dialogs of an earlier epoch; we do when it has not by then."""


class NodeCall(CallBase):
    """See the module."""

    def __init__(self, parts: Parts, facts: CallFacts) -> None:
        super().__init__(parts, facts)
        self.media = MediaWish(parts.context, self, THROUGH)
        self.media.on_limit = self.touch
        self.asterisk = AsteriskSide(parts.context, self, self.media)
        self.dialling = Dialling(parts, self)
        self.outbound = Outbound(parts, self)
        self.ivr = CallIvr(parts, self)
        self.supervision = CallSupervision(parts, self)
        self.transfers = Transfers(parts, self)
        self.lent: RecordValue | None = None
        """The record as the ACD writes it in its own transaction."""
        self.lent_refused = False
        self.recording_said: bool | None = None
        """What the edge was told of recording; None: nothing"""
        self.retired: list[str] = []
        """Channels of an earlier epoch on this same node; ended when this one is whole."""

    # --- what Asterisk should be doing ---------------------------------------------

    def settle(self) -> None:
        """Brings Asterisk to what is wanted."""
        self.asterisk.settle()
        self.supervision.settle()
        self._want_recording()

    def _want_recording(self) -> None:
        """The edge is told what the queue says of recording, once a queue has said something."""
        config = self.parts.queue(self.queue) if self.queue and self.stage == TALKING else None
        if config is None or config.record == (self.recording_said or False):
            return
        if self.say(link.WantRecording(call=self.call, epoch=str(self.epoch), on=config.record)):
            self.recording_said = config.record

    def quiet(self) -> bool:
        """A call that is over, or in the dialplan's hands, wants nothing."""
        return self.stage in (OVER, DIALPLAN)

    def wanted(self) -> Wanted:
        """What Asterisk should be doing now."""
        wanted = Wanted(media=THROUGH)
        if self.stage != SETUP:
            wanted.answer = tuple(
                leg.leg
                for leg in self.living()
                if leg.channel is not None
                and not leg.channel.answered
                and not leg.channel.dialled
                and (leg.state == UP if leg.consult else self.stage != DIALING)
            )
        # who waits may consult, and so may whoever was called by one whose own call rings still
        people = self.people() if self.stage in (QUEUED, TALKING, DIALING) else []
        main = [leg for leg in people if not leg.consult]
        names = sorted({leg.consult for leg in people if leg.consult or self.stage == TALKING})
        groups = {name: [leg for leg in people if leg.consult == name] for name in names}
        for consult, members in groups.items():
            # some of them may have no channel yet, or none any more: the others wait, with music where held
            there = [leg for leg in members if leg.joined]
            if len(there) >= 2:
                wanted.bridges[consult] = tuple(leg.leg for leg in there)
            wanted.music |= {
                leg.leg: self.music
                for leg in there
                if not leg.held and any(other.held for other in members if other is not leg)
            }
        if len(main) >= 2 and self.stage == TALKING:
            if self.media_policy == HITLESS and all(len(members) <= 2 for members in groups.values()):
                wanted.media = HITLESS
            wanted.media = self.supervision.media(wanted.media)
        elif self.stage in (QUEUED, TALKING):
            customer = self.legs.get(self.head)
            if customer is not None and customer.joined:
                wanted.music[self.head] = self.music
        return wanted

    def satisfied(self, wanted: Wanted) -> None:
        """Asterisk does what was wanted: the edge is told, and may move the media."""
        self.asterisk.succeeded()
        there = tuple(leg.leg for leg in self.living() if leg.channel is not None and leg.channel.up)
        if any(leg.state == UP and leg.leg not in there for leg in self.living()):
            if wanted.media == HITLESS and not self.recovering:
                self.media.ask(HITLESS)  # they hear each other without it
            return  # somebody's channel is missing: the call is not whole
        if there and there != self.bridged_said and self.stage in SPEAKING:
            self.bridged_said = there
            self.say(link.Bridged(call=self.call, epoch=str(self.epoch), legs=list(there)))
        if there and self.stage in (QUEUED, TALKING, IVR):
            self.media.ask(wanted.media)
        if self.recovering and there:
            self.recovering = False
            self.parts.acd.call_recovered(self.call)
            self.note("whole again", legs=",".join(there))
            self.parts.context.after(f"retired/{self.call}", RETIRED_LIMIT_S, self._end_retired)
        if there and self.stage == IVR:
            self.ivr.settled()

    def _end_retired(self) -> None:
        for channel in self.retired:
            self.parts.context.hang_up(channel)
        self.retired.clear()

    def channel_missing(self, leg: str) -> None:
        """Asterisk has no such channel: its end was missed."""
        found = self.legs.get(leg)
        if found is not None and found.channel is not None:
            self.channel_gone(found, 0, 0)

    # --- the queue -----------------------------------------------------------------

    def enter_queue(self, queue: str, media: str) -> None:
        """A new caller for ``queue``."""
        context = self.parts.context
        config = self.parts.queue(queue)
        self.queue, self.entered = queue, context.utc
        priority = self.variables.get("HA_PRIORITY", "")
        self.queue_priority = int(priority[:6]) if priority.isdigit() else self.queue_priority
        self.media_policy = media or (config.media if config else HITLESS)
        self.music = config.moh if config else self.music
        value = self.record_value(QUEUED)
        puts, compares = self._lend(value)
        context.after(f"queued/{self.call}", QUEUE_ANSWER_LIMIT_S, self._queued)
        self.parts.acd.caller_enters(
            self.call, queue, self.entered, self.queue_priority, self.caller, puts, compares
        )

    def caller_queued(self, order: CallerQueued) -> None:
        """The caller has his place."""
        self.give_back(order.revision)
        self._queued()

    def _queued(self) -> None:
        self.parts.context.cancel(f"queued/{self.call}")
        if self.stage == SETUP:
            self.stage = QUEUED
            self.answered = self.answered or self.parts.context.utc
            self.note("queued", queue=self.queue)
            self.touch()

    def queue_full(self, order: QueueFull) -> None:
        """The queue does not take the caller."""
        self.give_back(0)
        self.parts.context.cancel(f"queued/{self.call}")
        if self.stage not in (SETUP, QUEUED):
            return
        self.parts.context.count("node_callers_turned_away", why=order.why)
        if order.why != "full":
            self.note(
                f"no queue {order.queue!r} is configured: the dialplan serves the caller", level="error"
            )
            self.to_dialplan(order.why)
        elif order.action in ("", "busy"):
            self.note("queue full", queue=order.queue)
            self.end_leg(self.legs[self.head], USER_BUSY, "queue full")
            self.over("queue full")
        else:
            self.note("queue full", queue=order.queue, extension=order.action)
            self.to_dialplan(order.why, self.context_name, order.action)

    def _lend(self, value: RecordValue) -> tuple[tuple[Put, ...], tuple[Compare, ...]]:
        puts, compares = self.parts.records.lend(self.call, value)
        self.lent, self.lent_refused = (value if puts else None), False
        return puts, compares

    def puts_refused(self, current: tuple[KeyValue, ...]) -> None:
        """Our record was not in the ACD's transaction."""
        self.lent_refused = True
        self.parts.records.refused_by_acd(self.call, current)

    def give_back(self, revision: int) -> None:
        """The ACD is done with the record it was lent."""
        value, refused = self.lent, self.lent_refused
        self.lent, self.lent_refused = None, False
        if value is not None:
            self.parts.records.given_back(self.call, value, 0 if refused else revision)

    # --- attempts ------------------------------------------------------------------

    def start_attempt(self, order: StartAttempt) -> None:
        """The ACD wants an agent rung for this caller."""
        attempt = order.attempt.attempt
        known = self.attempts.get(attempt)
        if self._is_with_us(order):
            return
        if self.stage not in (SETUP, QUEUED):
            self.note("attempt not begun: the caller does not wait", attempt=attempt, stage=self.stage)
            self.parts.acd.caller_leaves(self.call, "does not wait", goes_on=True)
            return
        if known is not None and (leg := self.legs.get(known.leg)) is not None and leg.alive:
            return
        for other in [a for a in self.attempts.values() if a.state in ("intent", RINGING)]:
            if other.attempt != attempt:  # found after a takeover, and not the ACD's any more
                self._end_attempt(other, "superseded")
        self.dialling.begin(order)

    def _is_with_us(self, order: StartAttempt) -> bool:
        """Somebody talks here of whom the record did not say who it is: the agent the
        ACD thinks is still to be rung."""
        nameless = self.nameless()
        if self.stage != TALKING or len(nameless) != 1 or not order.again:
            return False
        self.introduce(nameless[0], order.agent, order.attempt.attempt)
        self.parts.acd.attempt_answered(order.attempt.attempt)
        self.save()
        return True

    def nameless(self) -> list[Leg]:
        """Agents of whom nobody has said yet who they are."""
        return [leg for leg in self.living() if leg.leg[:1] == "a" and not (leg.agent or leg.target)]

    def introduce(self, leg: Leg, agent: str, attempt: str, device: str = "") -> None:
        """It is known now whose leg this is."""
        leg.agent, leg.attempt = agent, attempt
        self.note("the agent is known now", leg=leg.leg, agent=agent, attempt=attempt)
        state = "answered" if leg.state == UP else RINGING
        self.attempts[attempt] = Attempt(attempt, agent, device, leg.leg, state)

    def record_came(self, record: RecordValue) -> None:
        """A newer record than the one we began with: it may know agents we do not, or a
        step of an IVR."""
        self.ivr.record_came(record)
        nameless = {leg.leg: leg for leg in self.nameless()}
        known = [a for a in record.attempts.values() if a.leg in nameless and a.state != ENDED]
        if not known:
            return
        for value in known:
            self.introduce(nameless[value.leg], value.agent, value.attempt, value.device)
        self.queue, self.entered = self.queue or record.queue, self.entered or record.entered
        self.parts.acd.caller_resumed(
            self.call, self.queue, self.entered, self.queue_priority, self.caller, from_node=record.node,
            alive={a.attempt: UP if nameless[a.leg].state == UP else RINGING for a in known}, ended=(),
            talking=[a.agent for a in known if nameless[a.leg].state == UP],
        )  # fmt: skip
        self.parts.acd.call_recovered(self.call)
        self.save()

    def cancel_attempt(self, order: CancelAttempt) -> None:
        """The ACD has given the attempt up (its own part is done)."""
        if order.why == "lost":
            self.give_back(0)
        attempt = self.attempts.get(order.attempt)
        if attempt is None or attempt.state == ENDED:
            return
        self._end_attempt(attempt, order.why)
        self.save()

    def _end_attempt(self, attempt: Attempt, why: str) -> None:
        attempt.state, attempt.outcome = ENDED, why
        leg = self.legs.get(attempt.leg)
        self.note("attempt given up", attempt=attempt.attempt, agent=attempt.agent, why=why)
        if leg is not None and leg.alive:
            self.end_leg(leg, NORMAL, why)

    def attempt_won(self, order: AttemptWon) -> None:
        """The agent has the caller: connect them."""
        self.give_back(order.revision)
        attempt = self.attempts.get(order.attempt)
        leg = self.legs.get(attempt.leg) if attempt else None
        if attempt is None or leg is None or not leg.alive or self.stage == OVER:
            self.note("won attempt has no leg any more", attempt=order.attempt)
            self.parts.acd.conversation_ended(self.call, order.agent, "lost")
            if self.stage == QUEUED:
                self.requeue("the agent was gone before the caller was there")
            return
        self._connect(leg, attempt, order.certain)

    def _connect(self, leg: Leg, attempt: Attempt, certain: bool) -> None:
        self.parts.context.cancel(f"won/{self.call}")
        attempt.state = "answered"
        if self.stage != TALKING:
            self.stage = TALKING
            self.note("talking", agent=attempt.agent, leg=leg.leg, certain=certain)
        self.touch()

    def _connect_anyway(self, leg: Leg, attempt: Attempt) -> None:
        """The ACD said nothing: certainty lost never keeps people apart."""
        if leg.state == UP and leg.alive and self.stage in (SETUP, QUEUED):
            self.note("connected without the ACD's word", level="warning", attempt=attempt.attempt)
            self.give_back(0)
            self._connect(leg, attempt, False)

    def redial_failed(self, attempt: Attempt) -> None:
        """The lost agent could not be reached again."""
        if attempt.state != LOST or self.stage == OVER:
            return
        attempt.state, attempt.outcome = ENDED, LOST
        self.parts.context.cancel(f"won/{self.call}")
        leg = self.legs.get(attempt.leg)
        if leg is not None and leg.alive:
            self.end_leg(leg, NORMAL, "not reached again")
        self.parts.acd.conversation_ended(self.call, attempt.agent, "lost")
        if self.queue:
            self.requeue("the agent's leg was lost")
            return
        self.end_leg(self.legs[self.head], NORMAL, "the other side was lost")
        self.over("agent lost")

    def requeue(self, why: str) -> None:
        """The caller waits again, before those who came after him."""
        self.note("waits again, first in the queue", why=why)
        self.stage = QUEUED
        self.queue_priority += RECOVERED_PRIORITY
        self.parts.acd.caller_enters(self.call, self.queue, self.entered, self.queue_priority, self.caller)
        self.save()
        self.touch()

    def leg_rings(self, leg: Leg) -> None:
        """The agent's phone rings."""
        if leg.state not in ("trying", RINGING):
            return
        leg.state = RINGING
        self.transfers.party_rings(leg)
        attempt = self.attempts.get(leg.attempt)
        if attempt is not None and attempt.state == "intent":
            attempt.state = RINGING
            self.parts.acd.attempt_ringing(attempt.attempt)

    def leg_answered(self, leg: Leg) -> None:
        """The agent's phone was answered."""
        if leg.state not in ("trying", RINGING):
            return
        leg.state = UP
        self.touch()
        attempt = self.attempts.get(leg.attempt)
        if leg.aside:
            self.supervision.answered(leg)
            return
        if leg.target:
            self.outbound.answered(leg)
            return
        if attempt is None:
            if not leg.consult and self.stage in (SETUP, QUEUED, DIALING):
                self.stage = TALKING
            return
        if attempt.state in ("answered", ENDED):
            return
        if attempt.state == LOST:
            self._connect(leg, attempt, True)
            self.save()
            return
        attempt.state = "answered"
        value = self.record_value(TALKING)
        self.parts.acd.attempt_answered(attempt.attempt, *self._lend(value))
        self.parts.context.after(f"won/{self.call}", WON_LIMIT_S, lambda: self._connect_anyway(leg, attempt))

    def leg_failed(self, leg: Leg, kind: str) -> None:
        """An unanswered agent's leg came to nothing."""
        leg.state = ENDED
        self.parts.context.cancel_all(f"lost/{self.call}/{leg.leg}")
        if leg.aside:
            self.supervision.failed(leg, kind)
            return
        if leg.target:
            self.outbound.failed(leg, kind)
            return
        attempt = self.attempts.get(leg.attempt)
        if attempt is None and self.stage == QUEUED and not self.queue and len(self.people()) < 2:
            self.note("no record, and the phone that rang is gone: the dialplan serves him anew", leg=leg.leg)
            self.to_dialplan("no record", self.context_name, self.facts.did)
        if attempt is None or attempt.state == ENDED:
            return
        if attempt.leg != leg.leg:
            self.note("rung a second time in vain: the first ring goes on", leg=leg.leg, first=attempt.leg)
            return
        if attempt.state == LOST:
            self.redial_failed(attempt)
            return
        attempt.state, attempt.outcome = ENDED, kind
        self.note("attempt failed", attempt=attempt.attempt, agent=attempt.agent, kind=kind)
        self.parts.acd.attempt_failed(attempt.attempt, kind)
        self.save()

    # --- phones, as the edge sees them ---------------------------------------------

    def phone_gone(self, leg: Leg, frame: link.LegGone) -> None:
        """The edge's word: this leg ended and will not come back."""
        if not leg.alive:
            return
        self.parts.context.cancel_all(f"lost/{self.call}/{leg.leg}")
        leg.by, leg.status = frame.by or "phone", frame.status
        if self.transfers.left(leg, frame.head):
            return
        if leg.leg == self.head:
            self._caller_gone(leg)
            return
        if leg.aside:
            self.supervision.left(leg, frame.by)
            return
        was, leg.state = leg.state, ENDED
        self.hang_up_later(leg)
        if was == UP and self.stage == TALKING:
            self._agent_gone(leg)
            return
        leg.state = was
        if was == UP:
            kind = "reject"  # answered and hung up before the caller was there
        elif frame.by == "timeout":
            kind = "no-answer"
        elif frame.by in ("edge", "app"):
            kind = "canceled"
        else:
            cause = int(frame.cause) if frame.cause.isdigit() else 0
            kind = failure_kind(frame.status, cause, by_phone=True)
        self.leg_failed(leg, kind)

    def _caller_gone(self, leg: Leg) -> None:
        """The edge ends every other leg by itself."""
        leg.state = ENDED
        why = "abandoned" if self.stage in (SETUP, QUEUED, DIALING) else "ended by the caller"
        self.note("the caller is gone", by=leg.by, stage=self.stage)
        for other in self.living():
            if other.state == UP and self.stage == TALKING:
                self.parts.acd.conversation_ended(self.call, other.agent, "caller")
                other.by = "edge"
                other.state = ENDED
            elif not other.attempt:
                other.state = ENDED
        self.over(why)

    def _agent_gone(self, leg: Leg) -> None:
        """The agent hung up: the conversation is over, and with it the call."""
        self.note("the agent is gone", agent=leg.agent, by=leg.by)
        self.left_by(leg, "agent")
        if len(self.people()) >= 2:
            self.save()
            self.touch()
            return
        for other in self.living():
            self.end_leg(other, NORMAL, "the other side hung up")
        self.over("ended by the agent")

    def phone_held(self, leg: Leg, held: bool) -> None:
        """A phone put its far end on hold, or took it back."""
        if leg.held == held or not leg.alive:
            return
        leg.held = held
        self.note("held" if held else "taken back", leg=leg.leg)
        if leg.agent and self.stage == TALKING:
            self.parts.acd.conversation_hold(self.call, leg.agent, held)
        self.save()
        self.touch()

    def phone_taken(self, leg: Leg, device: str) -> None:
        """Another phone has the leg now: whoever answered it leaves, and the agent at that phone,
        if there is one, is in the call."""
        acd, agent = self.parts.acd, self.parts.agent_at(device)
        if not leg.alive or leg.target == device or (leg.leg == self.head and leg.agent == agent):
            return
        self.note("taken over by another phone", leg=leg.leg, device=device, agent=agent)
        acd.conversation_ended(self.call, leg.agent, "transfer")
        self.attempt_over(leg)
        leg.agent, leg.attempt = "", ""
        if leg.leg != self.head:
            leg.target = device
        if leg.state == UP and agent:
            leg.agent = agent
            acd.conversation_state(self.call, agent, "join")
        self.save()
        self.touch()

    # --- channels, as Asterisk sees them -------------------------------------------

    def channel_came(self, leg: Leg, channel: Channel) -> None:
        """The leg has this channel now."""
        leg.channel = channel
        self.parts.index(channel.id, self, leg.leg)
        self.touch()

    def channel_up(self, leg: Leg) -> None:
        """Asterisk says the channel is up."""
        if leg.channel is None:
            return
        leg.channel.up = leg.channel.answered = True
        if leg.channel.dialled:
            self.leg_answered(leg)
        self.touch()

    def channel_gone(self, leg: Leg, status: int, cause: int) -> None:
        """Asterisk has destroyed the channel."""
        channel, leg.channel = leg.channel, None
        if channel is not None:
            self.parts.unindex(channel.id)
        if not leg.alive or self.stage == OVER:
            self.finish_if_empty()
        elif self.stage == DIALPLAN and leg.leg == self.head and not (channel and channel.left):
            self.end_leg(leg, NORMAL, "the dialplan has ended")
            self.over("ended in the dialplan")
        elif channel is not None and channel.dialled and leg.state in ("trying", RINGING):
            self._dial_ended(leg, status, cause)
        else:
            self._lost(leg, cause)

    def _dial_ended(self, leg: Leg, status: int, cause: int) -> None:
        """An unanswered leg failed. The edge's own word, if there is one, says more; and while no edge is
        there to say anything the phone may ring, or be answered: it is waited for."""
        if status < 400 and cause in (0, 16):
            self._lost(leg, cause)
            return
        kind, context = failure_kind(status, cause, by_phone=False), self.parts.context
        name, since, grace_s = f"lost/{self.call}/{leg.leg}", context.now, context.timings.refusal_grace_s

        def no_more_words() -> None:
            has = self.parts.edge_has(self, leg.leg, since)
            # a call that is taken away loses all of its legs: the phone rings on elsewhere
            taken_away = any(other.state == UP and other.channel is None for other in self.legs.values())
            if leg.alive and (has is None or taken_away):
                context.after(name, grace_s, no_more_words)
            elif leg.alive and not has:
                self.leg_failed(leg, kind)
                self.touch()

        context.after(name, grace_s, no_more_words)

    def _lost(self, leg: Leg, cause: int) -> None:
        """Nobody announced this end: the edge keeps the phone and makes the leg again,
        here or elsewhere, or it tells us that the person hung up."""
        context = self.parts.context
        self.note("channel went away unannounced", level="warning", leg=leg.leg, cause=cause)
        context.count("node_legs_lost")
        name, limit_s = f"lost/{self.call}/{leg.leg}", context.timings.lost_leg_limit_s

        def give_up() -> None:
            if leg.alive and leg.channel is None:
                self.parts.give_up(self, leg.leg, "leg lost")

        context.after(name, limit_s, give_up)
        self.touch()
