"""A call's facts, its record, and its endings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import msgspec

from ari_ha.core.ids import PRIMARY_LEG, Epoch
from ari_ha.core.machine import Done, InvariantBroken, Outcome, Refused
from ari_ha.machines.node_model import DIALPLAN, ENDED, HITLESS, OVER, SETUP, UP, Attempt, Leg
from ari_ha.machines.node_parts import Parts
from ari_ha.machines.node_records import Act
from ari_ha.wire import link
from ari_ha.wire.keyspace import AttemptValue, IvrPlace, LegValue, RecordValue

if TYPE_CHECKING:
    from ari_ha.machines.node_call import NodeCall

OVER_LIMIT_S = 3.0
"""Channels of an ended call that are still there after this are hung up."""
CONTINUE = "HA_CONTINUE"
"""In the record's variables: how the dialplan took the call, ``extension`` or ``label``."""
ATTEMPTS_KEPT_MAX = 16
"""Attempts in the record; the oldest ended ones are left out."""


@dataclass(frozen=True, slots=True)
class CallFacts:
    """What is known of a call when it comes."""

    call: str
    epoch: Epoch
    caller: str = ""
    did: str = ""
    verb: tuple[str, ...] = ()
    context: str = ""
    extension: str = ""
    priority: int = 0
    started: float = 0.0


@dataclass(slots=True)
class CallBase:
    """State of a call and the acts every stage shares."""

    parts: Parts
    facts: CallFacts
    stage: str = SETUP
    queue: str = ""
    queue_priority: int = 0
    entered: float = 0.0
    answered: float = 0.0
    media_policy: str = HITLESS
    music: str = "default"
    vip: str = ""
    head: str = PRIMARY_LEG
    """The leg whose end ends the call"""
    legs: dict[str, Leg] = field(default_factory=dict)
    attempts: dict[str, Attempt] = field(default_factory=dict)
    legs_used: set[str] = field(default_factory=set)
    over_before: dict[str, str] = field(default_factory=dict)
    """Legs that had ended when the call was taken up, and who ended them, as its edge says"""
    ending: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    recovering: bool = False
    """Taken up from elsewhere and not whole yet."""
    bridged_said: tuple[str, ...] = ()
    """Legs of the last `Bridged`."""
    forgotten: bool = False
    """Not served here any more, under this epoch: what is still heard of it means nothing."""
    continue_at: tuple[str, str] = ("", "")
    """Context and extension where the dialplan took the call."""

    @property
    def call(self) -> str:
        """The call's id."""
        return self.facts.call

    @property
    def epoch(self) -> Epoch:
        """The decision under which we serve it."""
        return self.facts.epoch

    @property
    def caller(self) -> str:
        """The number that calls."""
        return self.facts.caller

    @property
    def context_name(self) -> str:
        """The dialplan context the call came through."""
        return self.facts.context or self.parts.context.config.trunk_context

    # --- small things --------------------------------------------------------------

    def _self(self) -> NodeCall:
        return cast("NodeCall", self)

    def touch(self) -> None:
        """Something changed: settle at the end of this event."""
        self.parts.touch(self._self())

    def note(self, text: str, level: str = "info", **facts: Any) -> None:
        """A line of the call's story."""
        self.parts.context.note(f"call/{self.call}", text, level=level, **facts)

    def say(self, frame: link.Frame) -> bool:
        """A frame about this call to its edge."""
        return self.parts.context.say(frame, self.vip)

    def living(self) -> list[Leg]:
        """Legs somebody is, or may soon be, on."""
        return [leg for leg in self.legs.values() if leg.alive]

    def people(self) -> list[Leg]:
        """Legs with a person who has answered and, if an agent, has won the caller."""
        return [
            leg
            for leg in self.living()
            if leg.state == UP
            and not leg.aside
            and (leg.attempt not in self.attempts or self.attempts[leg.attempt].state == "answered")
        ]

    def attempt_over(self, leg: Leg) -> None:
        """What the leg was dialled for, if a queue wanted it, is over."""
        if leg.attempt in self.attempts:
            self.attempts[leg.attempt].state = ENDED

    def left_by(self, leg: Leg, cause: str) -> None:
        """Whoever was on ``leg`` is on it no more: on his second line, if he has one beside it, or his part
        of the call is over."""
        line = next((o for o in self.living() if o.of == leg.leg), None)
        if line is not None and leg.agent:
            line.agent, leg.agent = leg.agent, ""
        else:
            self.parts.acd.conversation_ended(self.call, leg.agent, cause)

    def add_leg(self, leg: Leg) -> Leg:
        """A leg joins the call. Its name is never used again."""
        self.legs[leg.leg] = leg
        self.legs_used.add(leg.leg)
        return leg

    # --- the record ----------------------------------------------------------------

    def record_value(self, stage: str) -> RecordValue:
        """All a survivor needs."""
        facts = self.facts
        kept = list(self.attempts.values())[-ATTEMPTS_KEPT_MAX:]
        context, extension = self.continue_at
        return RecordValue(
            call=facts.call, epoch=str(facts.epoch), node=self.parts.context.me, verb=list(facts.verb),
            stage=stage, caller=facts.caller, did=facts.did, context=context or facts.context,
            extension=extension or facts.extension, priority=facts.priority, started=facts.started,
            answered=self.answered, queue=self.queue, queue_priority=self.queue_priority,
            entered=self.entered,
            attempts={
                a.attempt: AttemptValue(
                    attempt=a.attempt, agent=a.agent, device=a.device, leg=a.leg, state=a.state,
                    deadline=a.deadline, started=a.started, outcome=a.outcome,
                )
                for a in kept
            },
            legs={leg.leg: self._leg_value(leg) for leg in self.legs.values()},
            bridge=f"{facts.call}.{facts.epoch}", want_media=self.media_policy,
            head=self.head, transfer=self._self().transfers.now, ending=dict(self.ending),
            variables=dict(self.variables), ivr=self._place(),
        )  # fmt: skip

    def _place(self) -> IvrPlace | None:
        place = self._self().ivr.place
        return msgspec.structs.replace(place) if place else None

    @staticmethod
    def _leg_value(leg: Leg) -> LegValue:
        state = "held" if leg.held and leg.alive else leg.state
        channel = leg.channel.id if leg.channel is not None else ""
        return LegValue(
            leg=leg.leg, role=leg.role, agent=leg.agent, state=state, channel=channel, ended_by=leg.by,
            target=leg.target, consult=leg.consult, of=leg.of,
        )  # fmt: skip

    def save(self, then: Act | None = None) -> None:
        """Writes the record as it is now. ``then``: when it is stored, or may as well be."""
        self.parts.records.put(self.call, self.record_value(self.stage), then)

    # --- endings -------------------------------------------------------------------

    def end_leg(self, leg: Leg, cause: str, reason: str) -> None:
        """The app ends a leg: announced first, because nothing else a node does may end
        a phone's side; the edge acts on it, and the channel follows."""
        if leg.announced:
            return
        leg.state, leg.announced, leg.by = ENDED, True, leg.by or "app"
        self.ending[leg.leg] = cause
        frame = link.EndLeg(call=self.call, leg=leg.leg, epoch=str(self.epoch), cause=cause, reason=reason)
        if self.say(frame):
            self.save()
        else:
            # no link: the record is the announcement, the channel's end the message
            self.save(lambda: self.hang_up(leg))
        self.hang_up_later(leg)

    def hang_up(self, leg: Leg) -> None:
        """Ends the leg's channel."""
        if leg.channel is not None:
            self.parts.context.hang_up(leg.channel.id)

    def hang_up_later(self, leg: Leg) -> None:
        """The edge ends the channel; we do when it has not within the limit."""
        context = self.parts.context
        context.after(f"end/{self.call}/{leg.leg}", context.timings.end_limit_s, lambda: self.hang_up(leg))

    def over(self, why: str) -> None:
        """Nobody is left, or nobody whom we serve: the call leaves this node."""
        if self.stage == OVER:
            return
        if self.ending:
            self.save()
        self.stage = OVER
        self.note("over", why=why)
        self.parts.context.count("node_calls_ended", why=why.split(" ")[0])
        self.parts.acd.caller_leaves(self.call, why)
        self.parts.context.after(f"over/{self.call}", OVER_LIMIT_S, self._clear)
        self.finish_if_empty()

    def _clear(self) -> None:
        for leg in self.legs.values():
            leg.state = ENDED
            self.hang_up(leg)
            leg.channel = None
        self.finish_if_empty()

    def finish_if_empty(self) -> None:
        """Forgets the call when nothing of it is left."""
        if self.stage == OVER and not any(leg.channel for leg in self.legs.values()):
            self.parts.finished(self._self())

    # --- the dialplan goes on ------------------------------------------------------

    def to_dialplan(self, why: str, context: str = "", extension: str = "") -> None:
        """The call leaves Stasis and goes on in the dialplan: at ``extension``, or at
        the label for callers the app cannot serve."""
        leg = self.legs.get(self.head)
        if leg is None or leg.channel is None:
            return
        self.stage = DIALPLAN
        self.continue_at = (context, extension)
        self.parts.acd.caller_leaves(self.call, why)
        channel = leg.channel.id
        lane = f"call/{self.call}"
        node = self.parts.context
        app = node.config.app
        # its end must be heard of after it has left Stasis
        source = {"applicationName": app, "eventSource": f"channel:{channel}"}
        node.ari(lane, "applications.subscribe", source)
        reason = {"channelId": channel, "variable": "HA_REASON", "value": why}
        node.ari(lane, "channels.setChannelVar", reason)
        for name, value in self.variables.items():
            if name != CONTINUE:
                given = {"channelId": channel, "variable": name, "value": value}
                node.ari(lane, "channels.setChannelVar", given)
        self.variables[CONTINUE] = "extension" if extension else "label"
        where = {"channelId": channel, "context": context or self.context_name}
        if extension:
            where |= {"extension": extension, "priority": "1"}
        else:
            here = self.facts.extension or self.facts.did
            where |= {"extension": here, "label": node.config.fallback_label}
        node.ari(lane, "channels.continueInDialplan", where, lambda o: self._continued(channel, o))
        self.save()

    def _continued(self, channel: str, outcome: Outcome) -> None:
        if isinstance(outcome, Done):
            self.note("goes on in the dialplan", extension=self.continue_at[1])
            if self.recovering:
                self.recovering = False
                self.say(link.Bridged(call=self.call, epoch=str(self.epoch), legs=[self.head]))
            return
        self.note("the dialplan has no place for it; the next line it is", level="warning", outcome=outcome)
        node, where = self.parts.context, {"channelId": channel}
        node.ari(f"call/{self.call}", "channels.continueInDialplan", where, self._continued_anyhow)

    def _continued_anyhow(self, outcome: Outcome) -> None:
        """Of a channel that went before we were subscribed to it nobody tells its end. It was not the
        dialplan's, which never had it."""
        leg = self.legs.get(self.head)
        if leg is None or leg.channel is None or self.stage != DIALPLAN:
            return
        if isinstance(outcome, Refused) and outcome.code == 404:
            leg.channel.left = True
            self._self().channel_gone(leg, 0, 0)

    def check(self) -> None:
        """The call must not contradict itself."""
        for name, leg in self.legs.items():
            if name != leg.leg:
                raise InvariantBroken(f"{self.call}: leg {leg.leg} under {name}")
            if leg.announced and leg.alive:
                raise InvariantBroken(f"{self.call}: leg {name} lives although its end was announced")
        if self.stage == DIALPLAN and any(leg.alive and leg.leg != self.head for leg in self.living()):
            raise InvariantBroken(f"{self.call}: in the dialplan with an agent")
        if len([a for a in self.attempts.values() if a.state in ("intent", "ringing")]) > 1:
            raise InvariantBroken(f"{self.call}: two attempts at once")
