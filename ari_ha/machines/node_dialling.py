"""Ringing an agent: intent into the record, channel, dial."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from ari_ha.core.machine import Done, Outcome, Unknown
from ari_ha.machines.acd_orders import StartAttempt
from ari_ha.machines.node_model import LOST, NORMAL, Attempt, Channel, ChannelName, Leg, next_leg
from ari_ha.machines.node_parts import Parts
from ari_ha.wire.token import HEADER, LegToken, sign

if TYPE_CHECKING:
    from ari_ha.machines.node_call import NodeCall


REDIAL_LIMIT_S = 10.0
"""An agent whose leg was lost is rung again this long; then his caller is first in the queue."""
ENTER_LIMIT_S = 0.5
"""A created channel that has not been seen to enter Stasis is dialled after this."""


class Dialling:
    """The legs a call dials."""

    def __init__(self, parts: Parts, call: NodeCall) -> None:
        self._parts = parts
        self._call = call
        self._timeouts: dict[str, int] = {}
        """Channels that were created and not dialled yet, and Asterisk's limit for each."""
        self._dials: dict[str, Callable[[], None]] = {}
        """Leg -> how it was dialled"""
        self._times: Counter[str] = Counter()
        """Leg -> how often"""

    def begin(self, order: StartAttempt) -> None:
        """The intent is written first; the phone rings when it is stored, or may as
        well be (the claim on the agent is the ACD's and was made before)."""
        call, context = self._call, self._parts.context
        value = order.attempt
        name = next_leg([*call.legs_used])
        attempt = Attempt(
            value.attempt, order.agent, order.device, name,
            started=value.started or context.utc,
            deadline=value.deadline or context.utc + order.ring_timeout_s,
        )  # fmt: skip
        call.attempts.pop(value.attempt, None)
        call.attempts[value.attempt] = attempt
        leg = call.add_leg(Leg(name, "agent", agent=order.agent, attempt=value.attempt))
        call.note(
            "ringing an agent", agent=order.agent, device=order.device, leg=name, attempt=value.attempt,
            again=order.again,
        )  # fmt: skip
        timeout_s = max(1.0, order.ring_timeout_s) + context.timings.dial_margin_s
        call.save(lambda: self.dial(leg, f"device:{attempt.device}", attempt.attempt, timeout_s))

    def redial(self, attempt: Attempt) -> None:
        """The leg of an agent in conversation was lost with its node, ended by nobody:
        the same agent is rung again for this attempt; the caller hears music meanwhile."""
        call, context = self._call, self._parts.context
        attempt.leg, attempt.state = next_leg([*call.legs_used]), LOST
        attempt.deadline = context.utc + REDIAL_LIMIT_S
        leg = call.add_leg(Leg(attempt.leg, "agent", agent=attempt.agent, attempt=attempt.attempt))
        call.note("ringing the agent again", agent=attempt.agent, leg=leg.leg, attempt=attempt.attempt)
        context.count("node_agents_redialled")
        self.watch_redial(attempt, False)
        limit_s = REDIAL_LIMIT_S + context.timings.dial_margin_s
        call.save(lambda: self.dial(leg, f"device:{attempt.device}", attempt.attempt, limit_s))

    def watch_redial(self, attempt: Attempt, failed: bool) -> None:
        """Being rung again has a limit; ``failed``: it is over already."""
        call = self._call
        if failed:
            call.redial_failed(attempt)
        else:
            context = self._parts.context
            context.after(f"won/{call.call}", REDIAL_LIMIT_S, lambda: call.redial_failed(attempt))

    def dial(self, leg: Leg, target: str, attempt: str, timeout_s: float) -> None:
        """Creates the leg's channel and dials ``target`` at the edge."""
        call, context = self._call, self._parts.context
        if not leg.alive or leg.channel is not None or call.legs.get(leg.leg) is not leg or call.quiet():
            return
        address = self._parts.edge_sip(call)
        if not address:
            call.note("no edge to dial through", level="error")
            call.leg_failed(leg, "unreachable")
            return
        self._times[leg.leg] += 1
        channel = str(ChannelName(call.call, leg.leg, call.epoch, self._times[leg.leg]))
        token = LegToken(
            kind="dial", call=call.call, leg=leg.leg, epoch=str(call.epoch),
            target=target, attempt=attempt, caller=call.caller, consult=self._rung_for(leg, attempt),
            agent=leg.agent or self._parts.agent_at(target), queue=call.queue if attempt else "",
        )  # fmt: skip
        through = context.revision_of(call.vip)
        leg.channel = Channel(channel, dialled=True, answered=True, through=through)
        self._dials[leg.leg] = lambda: self.dial(leg, target, attempt, timeout_s)
        self._parts.index(channel, call, leg.leg)
        lane = f"dial/{channel}"
        create = {
            "endpoint": f"PJSIP/{context.config.out_endpoint}/sip:{leg.leg}@{address}",
            "app": context.config.app,
            "appArgs": "dial",
            "channelId": channel,
            "variables": {
                f"PJSIP_HEADER(add,{HEADER})": sign(token, context.config.header_key),
                "CHANNEL(accountcode)": channel,
                "HA_CALL": call.call,
                "HA_LEG": leg.leg,
                "HA_EPOCH": str(call.epoch),
            },
        }
        self._timeouts[channel] = round(timeout_s)
        context.ari(lane, "channels.create", create, lambda o: self._created(leg, channel, o))

    def _rung_for(self, leg: Leg, attempt: str) -> str:
        """Whose second line wants the leg: one that leads the call by now too, of which its edge may not
        have heard yet."""
        head = self._call.legs.get(self._call.head)
        leads = head is not None and head.of and not (attempt or leg.aside)
        return leg.consult or (self._call.head if leads else "")

    def anew(self, leg: Leg) -> None:
        """The edge through which it was dialled has died before anybody rang, and the INVITE with it: it is
        sent again. Should the one before come after all, of the two of one leg the edge takes the first."""
        old = leg.channel
        if old is None or old.id in self._timeouts:
            return  # not sent yet
        self._call.note("dialled again: its edge died with the INVITE", leg=leg.leg)
        self._parts.unindex(old.id)
        leg.channel = None
        self._parts.context.hang_up(old.id)
        self._dials[leg.leg]()

    def _created(self, leg: Leg, channel: str, outcome: Outcome) -> None:
        context = self._parts.context
        if not isinstance(outcome, Done):
            self._timeouts.pop(channel, None)
            self._failed(leg, channel, "channels.create", outcome)
        elif not self._is_wanted(leg):
            self._timeouts.pop(channel, None)
            context.hang_up(channel)
        elif channel in self._timeouts:
            # its StasisStart says when; a missed one must not leave the phone silent
            name = f"dial/{self._call.call}/{channel}"
            context.after(name, ENTER_LIMIT_S, lambda: self.entered(leg))

    def _is_wanted(self, leg: Leg) -> bool:
        """Whether somebody still waits for the phone, here and under this epoch."""
        return leg.alive and not self._call.forgotten

    def entered(self, leg: Leg) -> None:
        """The channel is in Stasis now: before that ARI refuses to dial it (409)."""
        channel = leg.channel.id if leg.channel is not None else ""
        timeout_s = self._timeouts.pop(channel, None)
        self._parts.context.cancel(f"dial/{self._call.call}/{channel}")
        if timeout_s is None or not self._is_wanted(leg):
            return
        params = {"channelId": channel, "timeout": str(timeout_s)}
        self._parts.context.ari(
            f"dial/{channel}", "channels.dial", params, lambda o: self._dialled(leg, channel, o)
        )

    def _dialled(self, leg: Leg, channel: str, outcome: Outcome) -> None:
        if not isinstance(outcome, Done):
            self._failed(leg, channel, "channels.dial", outcome)

    def _failed(self, leg: Leg, channel: str, what: str, outcome: Outcome) -> None:
        """Not dialled. When that is not certain the phone may ring: its end is announced
        and the channel ended."""
        call, context = self._call, self._parts.context
        call.note(f"{what} failed", level="warning", leg=leg.leg, outcome=outcome)
        context.count("node_dials_failed")
        if call.forgotten or (leg.channel is not None and leg.channel.id != channel):
            context.hang_up(channel)
            return
        was_alive = leg.alive
        if was_alive and (isinstance(outcome, Unknown) or what == "channels.dial"):
            call.end_leg(leg, NORMAL, "not dialled")
            context.hang_up(channel)
        self._parts.unindex(channel)
        if leg.channel is not None and leg.channel.id == channel:
            leg.channel = None
        if was_alive:
            call.leg_failed(leg, "unreachable")
        call.finish_if_empty()
