"""Somebody listens to an agent's call, whispers to the agent, or speaks to both.

Who supervises which call, and how, is a key of the call in etcd: whoever serves the
call does it, a survivor as well. The supervisor's phone is a leg of the call (`s1`,
`s2` …), kept by the edge like any other. In Asterisk it is bridged with a snoop
channel on the agent's channel, never with the people themselves: what is whispered
cannot reach the customer in any state of the media. The edge goes `coach` before we
whisper, `through` before we speak to both; a listener changes nothing for the people.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ari_ha.core.machine import Done, Outcome, Refused
from ari_ha.core.ports.store import Delete
from ari_ha.machines.node_model import (
    COACH,
    NORMAL,
    SUPERVISOR_LEG,
    TALKING,
    THROUGH,
    UP,
    ChannelName,
    Leg,
    bridge_id,
    next_leg,
)
from ari_ha.machines.node_parts import Parts
from ari_ha.wire.keyspace import SupervisorValue

if TYPE_CHECKING:
    from ari_ha.machines.node_call import NodeCall

LISTEN, WHISPER, BARGE = "listen", "whisper", "barge"
MODES = (LISTEN, WHISPER, BARGE)
SPEAKS = {LISTEN: "none", WHISPER: "out", BARGE: "both"}
"""Into which direction of the agent's channel the supervisor's voice goes."""
SUFFIX = "~s"
"""Marks the bridge of a call's supervisor."""
RING_LIMIT_S = 30.0
RING_TRIES_MAX = 4
"""A supervisor who has just dialled the code is still on that short call."""
RETRY_S = 1.0
RETRY_MAX_S = 10.0
"""Tries to bring Asterisk there get this slow: who is on the line is not left with silence for good."""
ORDER_LIMIT_S = 3.0
"""A supervisor found on a call that was taken up stays so long without an order: etcd's news may be late."""


class CallSupervision:
    """Supervision of one call. See the module."""

    def __init__(self, parts: Parts, call: NodeCall) -> None:
        self._parts = parts
        self._call = call
        self.order: SupervisorValue | None = None
        self.left_by = 0.0
        """UTC: whoever was ordered by then has been here and left, and is not rung again."""
        self._unordered_until: float | None = None
        self.snoop = ""
        self.snoops = 0
        """How many were made; a name comes never again, for the end of one may be told late"""
        self._heard_of = False
        """The snoop channel is in the app: it can be bridged."""
        self._as: tuple[str, str] = ("", "")
        """Mode, and agent's channel, the snoop was made for."""
        self._joined = ""
        """Supervisor's channel that is bridged with it."""
        self._tries = 0
        self._asks = 0
        self._busy = False
        self._made_bridge = False

    @property
    def bridge(self) -> str:
        """The bridge of the supervisor and the snoop."""
        return bridge_id(self._call.call + SUFFIX, self._call.epoch)

    def leg(self) -> Leg | None:
        """The supervisor's leg, while it lives."""
        return next((leg for leg in self._call.living() if leg.aside), None)

    def media(self, wanted: str) -> str:
        """The media state wanted of the edge, with the supervisor in mind."""
        leg, order = self.leg(), self.order
        if order is None or leg is None or leg.state != UP:
            return wanted
        if order.mode == WHISPER and any(other.held for other in self._call.people()):
            return THROUGH
        return THROUGH if wanted == THROUGH else self._needed(order) or wanted

    def _needed(self, order: SupervisorValue) -> str:
        """What the edge must be in before he speaks; empty: that does not matter."""
        if order.mode == WHISPER:
            agent = self._agent(order)
            # an edge that coaches speaks to whoever was called
            return THROUGH if agent is not None and agent.leg == self._call.head else COACH
        return THROUGH if order.mode == BARGE else ""

    # --- what is wanted ------------------------------------------------------------

    def ordered(self, order: SupervisorValue | None) -> None:
        """The key of the call says this now."""
        if order is not None and (self.order is None or order.since != self.order.since):
            self._tries = 0  # asked for anew
        if order is not None and self._unordered_until is not None:
            self._unordered_until = None
            self._parts.context.cancel(f"supervise/{self._call.call}")
        self.order, self._asks = order, 0
        self._call.touch()

    def settle(self) -> None:
        """Brings leg and snoop to what is wanted."""
        call, order, leg = self._call, self.order, self.leg()
        if call.quiet() or not self._parts.context.ari_state.up:
            return
        if order is None or call.stage != TALKING:
            if leg is not None and not call.recovering and not self._order_may_come():
                call.end_leg(leg, NORMAL, "supervision over")
                self._drop()
            return
        if leg is None:
            self._drop()
            if order.since > self.left_by and not call.recovering and not self._armed:
                self._ring(order)
        elif leg.joined and leg.channel is not None:
            self._join(order, leg)

    def found(self, order: SupervisorValue | None) -> None:
        """What the store is known to say as the call begins here."""
        self.order = order
        if order is None:
            self._unordered_until = self._parts.context.now + ORDER_LIMIT_S

    def _order_may_come(self) -> bool:
        """He came with the call, and what he does here is in etcd, which we may not have read yet."""
        context, until = self._parts.context, self._unordered_until
        if self.order is not None or until is None or self._call.stage != TALKING:
            return False
        if not (context.store_ok and self._parts.records.seen):
            until = self._unordered_until = context.now + ORDER_LIMIT_S  # nothing is read meanwhile
        elif context.now >= until:
            return False
        context.after(f"supervise/{self._call.call}", max(RETRY_S, until - context.now), self._call.touch)
        return True

    @property
    def _armed(self) -> bool:
        return self._parts.context.armed(f"supervise/{self._call.call}")

    # --- the phone -----------------------------------------------------------------

    def _ring(self, order: SupervisorValue) -> None:
        call, context = self._call, self._parts.context
        if self._tries >= RING_TRIES_MAX:
            self._close("not reached")
            return
        self._tries += 1
        name = next_leg([*call.legs_used], SUPERVISOR_LEG)
        leg = call.add_leg(Leg(name, "supervisor", target=f"device:{order.device}"))
        call.note("ringing a supervisor", device=order.device, by=order.by, mode=order.mode, leg=name)
        context.count("node_supervisors_rung", mode=order.mode)
        limit_s = RING_LIMIT_S + context.timings.dial_margin_s
        context.after(f"lost/{call.call}/{name}/ring", RING_LIMIT_S, lambda: self._rang_out(leg))
        call.save(lambda: call.dialling.dial(leg, leg.target, "", limit_s))

    def _rang_out(self, leg: Leg) -> None:
        if leg.alive and leg.state != UP:
            self._call.end_leg(leg, NORMAL, "supervisor does not answer")
            self._close("no answer")

    def answered(self, leg: Leg) -> None:
        """The supervisor is there."""
        self._call.note("supervisor there", leg=leg.leg)
        self._call.save()
        self._call.touch()

    def failed(self, leg: Leg, kind: str) -> None:
        """His phone was not reached."""
        call, context = self._call, self._parts.context
        call.note("supervisor not reached", kind=kind, leg=leg.leg)
        if kind in ("busy", "edge-refused") and self._tries < RING_TRIES_MAX:
            context.after(f"supervise/{call.call}", RETRY_S, call.touch)
        else:
            self._close(kind)

    def left(self, leg: Leg, by: str) -> None:
        """He hung up (or his phone never answered): the people talk on."""
        was, leg.state, leg.by = leg.state, "ended", by or "phone"
        self._call.hang_up_later(leg)
        self._drop()
        if was == UP or by == "timeout":
            self._close("supervisor left")
        else:
            self.failed(leg, "busy" if by == "edge" else "reject")
        self._call.save()
        self._call.touch()

    def _close(self, why: str) -> None:
        """It is over, and the key goes."""
        call, context = self._call, self._parts.context
        self.left_by = max(self.left_by, self.order.since if self.order is not None else 0.0)
        call.note("supervision over", why=why)

        def deleted(outcome: Outcome) -> None:
            if not isinstance(outcome, Done):
                context.count("node_supervisor_keys_left")  # it goes with the call's other keys

        key = context.keys.supervisor(call.call)
        context.txn(f"supervise/{call.call}", deleted, deletes=(Delete(key),))

    # --- Asterisk ------------------------------------------------------------------

    def _agent(self, order: SupervisorValue) -> Leg | None:
        """Whose channel he hears, and whispers to: the agent's he asked for, in whichever part of the call;
        when that one has left, whoever was called."""
        there = sorted((leg for leg in self._call.people() if leg.joined), key=lambda leg: bool(leg.consult))
        # an agent whom a colleague handed over into a queue is a caller there, without his name
        named = [(leg, leg.agent or self._parts.agent_at(leg.target)) for leg in there]
        asked = [leg for leg, agent in named if agent and agent == order.agent]
        head = self._call.legs.get(self._call.head)
        if not asked and head in there and (head.role == "user" or head.of):
            return head  # he has dialled: on a second line, or where no record is left, he has no name
        return next(iter(asked or [leg for leg in there if leg is not head]), None)

    def _join(self, order: SupervisorValue, leg: Leg) -> None:
        agent = self._agent(order)
        if agent is None or agent.channel is None or leg.channel is None or self._busy or self._armed:
            return
        wanted = (order.mode, agent.channel.id)
        if self.snoop and self._as != wanted:
            self._drop()
        if self._joined == leg.channel.id:
            return
        needed = self._needed(order)
        if needed and not self._call.media.heard(needed):
            return
        if not self.snoop:
            self._make(wanted)
        elif self._heard_of:
            self._bridge(leg.channel.id)

    def _make(self, wanted: tuple[str, str]) -> None:
        call, context = self._call, self._parts.context
        mode, target = wanted
        self.snoops += 1
        self.snoop = str(ChannelName(call.call, f"x{self.snoops}", call.epoch))
        self._as, self._heard_of, self._busy = wanted, False, True
        self._parts.index(self.snoop, call, f"x{self.snoops}")
        params = {"channelId": target, "snoopId": self.snoop, "spy": "both", "whisper": SPEAKS[mode],
                  "app": context.config.app, "appArgs": "snoop"}  # fmt: skip
        context.ari(f"supervise/{call.call}", "channels.snoopChannelWithId", params, self._made)

    def _made(self, outcome: Outcome) -> None:
        self._busy = False
        if isinstance(outcome, Done):
            self._call.touch()
        else:
            self._not_done("snoop", outcome)

    def entered(self, channel: str) -> bool:
        """A snoop channel is in the app; False when it is not ours (any more)."""
        if channel != self.snoop:
            return False
        self._heard_of = True
        self._call.touch()
        return True

    def _bridge(self, channel: str) -> None:
        call, context, snoop = self._call, self._parts.context, self.snoop
        self._busy, bridge, lane = True, self.bridge, f"supervise/{call.call}"

        def made(outcome: Outcome) -> None:
            if isinstance(outcome, Done) or (isinstance(outcome, Refused) and outcome.code == 409):
                self._made_bridge = True
                both = {"bridgeId": bridge, "channel": f"{channel},{snoop}",
                        "inhibitConnectedLineUpdates": "true"}  # fmt: skip
                context.ari(lane, "bridges.addChannel", both, joined)
            else:
                joined(outcome)

        def joined(outcome: Outcome) -> None:
            self._busy = False
            if snoop != self.snoop:
                call.touch()  # it has gone meanwhile
            elif isinstance(outcome, Done):
                self._joined, self._asks = channel, 0
                call.note("supervised", mode=self._as[0], agent=self._as[1])
                context.count("node_supervised", mode=self._as[0])
                call.touch()
            else:
                self._not_done("bridge", outcome)

        name = call.call + SUFFIX
        params = {"bridgeId": bridge, "type": "mixing,dtmf_events", "name": name}
        context.ari(lane, "bridges.createWithId", params, made)

    def _not_done(self, what: str, outcome: Outcome) -> None:
        """Made anew, ever more slowly: the agent's channel may just have gone."""
        self._asks += 1
        self._call.note("supervisor not connected", level="warning", what=what, outcome=outcome)
        self._drop()
        delay_s = min(RETRY_S * self._asks, RETRY_MAX_S)
        self._parts.context.after(f"supervise/{self._call.call}", delay_s, self._call.touch)

    def gone(self, channel: str) -> None:
        """Asterisk has no such snoop channel any more: the agent's channel went, or we ended it."""
        if channel == self.snoop:
            self.snoop, self._joined, self._heard_of = "", "", False
            self._call.touch()

    def all_gone(self) -> None:
        """Asterisk is gone, and everything in it."""
        self.snoop, self._joined, self._heard_of, self._made_bridge = "", "", False, False

    def _drop(self) -> None:
        """Ends the snoop. Nobody's from now on: it is ended also when Asterisk does not hear that now."""
        if self.snoop:
            ident, self.snoop = self.snoop, ""
            self._parts.unindex(ident)
            self._parts.context.hang_up(ident)
        self._joined, self._heard_of = "", False

    def forget(self) -> None:
        """The call leaves this node: nothing of it may stay in Asterisk."""
        if self._made_bridge:
            self._made_bridge = False
            self._parts.context.ari(f"hangup/{self.bridge}", "bridges.destroy", {"bridgeId": self.bridge})
        self._drop()
