"""The node machine: serves calls on one Asterisk.

Composes what the edge says (links), what Asterisk says (channels), what agents
and queues say (the ACD), and the store; its calls live in `node_call`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ari_ha.core.machine import (
    DeadlineReached,
    Effect,
    Event,
    Instant,
    InvariantBroken,
    OutcomeOf,
    ShellStall,
)
from ari_ha.core.ports.ari import AriDown, AriEvent, AriRefusedUs, AriSnapshot
from ari_ha.core.ports.link import LinkDown, LinkReceived, LinkUp
from ari_ha.core.ports.operator import OperatorRequest
from ari_ha.core.ports.probe import WallClock
from ari_ha.core.ports.recording import RecorderDown, RecordingFailed
from ari_ha.core.ports.store import LeaseState, StoreChanged, StoreReach, StoreSnapshot
from ari_ha.machines.acd_orders import (
    AgentNotice,
    AttemptWon,
    CallerQueued,
    CancelAttempt,
    ClaimDevice,
    Order,
    PutsRefused,
    QueueFull,
    StartAttempt,
    VerbResult,
)
from ari_ha.machines.node_channels import Channels
from ari_ha.machines.node_config import NodeConfig
from ari_ha.machines.node_core import NodeCore
from ari_ha.machines.node_features import PREFIX, feature_done
from ari_ha.machines.node_links import Links
from ari_ha.machines.node_maintenance import Maintenance
from ari_ha.machines.node_model import OVER
from ari_ha.machines.node_operator import Operator
from ari_ha.machines.node_presence import Presence

ROUNDS_MAX = 1_000
"""More orders and settling than this for one event is a local mistake."""
FAMILIES = ("nodes", "edges", "vips", "agents", "queues", "bindings", "users", "ivrs", "calls", "drains")
"""Prefixes a node mirrors."""
STALE_RECORD_S = 20.0
"""A record of ours whose call nobody claims is removed after this: an edge that comes
back from a time without the store writes its journal well before."""
STALE_RECORDS_EVERY_S = 5.0


class NodeMachine:
    """One node. ``new_id`` and ``rand`` are the process's randomness."""

    def __init__(self, config: NodeConfig, new_id: Callable[[], str], rand: Callable[[], float]) -> None:
        self.config = config
        self.core = NodeCore(config, new_id, rand)
        self.context = self.core.context
        self.links = Links(self.core)
        self.channels = Channels(self.core, self._state_changed, self.links.hello)
        self.maintenance = Maintenance(self.core)
        self.presence = Presence(self.core, self.links, self.maintenance)
        self.operator = Operator(self.core, self.links, self.maintenance)
        self._stale: dict[str, float] = {}

    # --- Machine -------------------------------------------------------------------

    def handle(self, event: Event, now: Instant) -> Sequence[Effect]:
        """One event; see `ari_ha.core.machine`."""
        self.context.now = now
        self.context.cause = event.cause
        self._dispatch(event)
        self._finish()
        return self.context.take_effects()

    def deadline(self) -> Instant | None:
        """The earliest of our timers and the ACD's."""
        times = [self.context.deadline(), self.core.acd.acd.deadline()]
        return min((when for when in times if when is not None), default=None)

    def check(self) -> None:
        """Raises `InvariantBroken` when the state contradicts itself."""
        for ident, call in self.core.calls.items():
            if call.call != ident:
                raise InvariantBroken(f"call {call.call} under {ident}")
            if ident in self.core.resumes.by_call and call.stage != OVER:
                raise InvariantBroken(f"call {ident} is served and being taken up at once")
            for leg in call.legs.values():
                if leg.channel is not None and self.core.by_channel.get(leg.channel.id) != (ident, leg.leg):
                    raise InvariantBroken(f"channel {leg.channel.id} of {ident} cannot be found")
            call.check()
        for channel, (ident, _) in self.core.by_channel.items():
            if ident not in self.core.calls and ident not in self.core.resumes.by_call:
                raise InvariantBroken(f"channel {channel} leads to no call")
        self.core.acd.acd.check()

    # --- events --------------------------------------------------------------------

    def _dispatch(self, event: Event) -> None:
        match event:
            case OutcomeOf():
                if not self.core.acd.outcome(event):
                    self.context.outcome(event)
            case AriEvent(event=said):
                self.channels.event(said)
            case LinkReceived(peer=peer, frame=frame):
                self.links.frame(peer, frame)
            case DeadlineReached():
                self.context.fire()
                self.core.acd.fire()
            case StoreChanged() | StoreSnapshot():
                self._store(event)
            case AriSnapshot():
                self.channels.snapshot(event)
                self.maintenance.connected()
                for peer in list(self.context.links):
                    self.links.compare(peer)
            case AriDown():
                self.channels.down(event)
            case AriRefusedUs():
                self.channels.refused_us(event)
            case LinkUp(peer=peer):
                self.links.up(peer)
            case LinkDown(peer=peer, reason=reason, clean=clean):
                self.links.down(peer, reason, clean)
            case OperatorRequest():
                self.operator.request(event)
            case RecordingFailed():
                self.core.recorder.failed(event)
            case RecorderDown():
                self.core.recorder.down(event)
            case _:
                self._rare(event)

    def _rare(self, event: Event) -> None:
        match event:
            case WallClock(utc_s=utc_s):
                self.context.wall_clock(utc_s)
                self.core.ask_for_new_channels()
                if not self.context.armed("stale-records"):
                    self.context.after("stale-records", STALE_RECORDS_EVERY_S, self._stale_records)
            case StoreReach():
                self._reach(event)
            case LeaseState():
                self.presence.lease(event)
            case ShellStall(lag_s=lag_s):
                self.context.count("node_stalls")
                if lag_s > 1.0:
                    self.context.note(
                        "node", "this process stood still", level="warning", lag_s=f"{lag_s:.2f}"
                    )
            case _:
                self.context.count("node_events_ignored", type=type(event).__name__)

    def _store(self, event: StoreSnapshot | StoreChanged) -> None:
        self.core.store_event(event)
        self.core.acd.store(event)
        if isinstance(event, StoreSnapshot):
            self.core.resumes.agents_came()
        self.presence.store(event)

    def _reach(self, event: StoreReach) -> None:
        if event.reachable != self.context.store_ok:
            level = "info" if event.reachable else "warning"
            text = "the store answers" if event.reachable else "the store is away: calls go on without it"
            self.context.note("node", text, level=level, why=event.why, no_leader=event.no_leader)
        if event.reachable and not self.context.store_ok:
            self.context.store_since = self.context.now
        self.context.store_ok = event.reachable
        self.core.acd.store(event)
        if event.reachable:
            self.core.records.flush()
        else:
            self.core.records.release_all()
        if not self.context.store_heard:
            self.context.store_heard = True
            self.core.resumes.store_heard()

    def _state_changed(self) -> None:
        """Readiness may have changed: `Presence.update` tells at the end of the event."""

    # --- the end of an event -------------------------------------------------------

    def _finish(self) -> None:
        """Orders of the ACD and calls to settle, until there are none."""
        for _ in range(ROUNDS_MAX):
            if self.core.acd.orders:
                self._order(self.core.acd.orders.popleft())
            elif touched := self.core.take_touched():
                for call in touched:
                    call.settle()
            else:
                break
        else:
            raise InvariantBroken("orders and calls keep each other busy")
        self.maintenance.update(wish_known=self.presence.wish_known)
        self.presence.update()

    def _order(self, order: Order) -> None:
        match order:
            case VerbResult(request=request):
                if request.startswith(PREFIX):
                    call = self.core.calls.get(request.removeprefix(PREFIX))
                    if call is not None:
                        feature_done(call, order)
                else:
                    self.operator.verb_done(order)
            case ClaimDevice():
                self.links.claim(order)
            case AgentNotice():
                self.context.note(f"agent/{order.agent}", order.text)
            case _:
                self._call_order(order)

    def _call_order(self, order: Order) -> None:
        call = self.core.calls.get(getattr(order, "call", ""))
        if call is None:
            if isinstance(order, StartAttempt):
                self.core.acd.attempt_failed(order.attempt.attempt, "canceled")
                self.core.acd.call_moved(order.call)  # it is not here: no further agent for it
            return
        match order:
            case CallerQueued():
                call.caller_queued(order)
            case QueueFull():
                call.queue_full(order)
            case StartAttempt():
                call.start_attempt(order)
            case CancelAttempt():
                call.cancel_attempt(order)
            case AttemptWon():
                call.attempt_won(order)
            case PutsRefused(current=current):
                call.puts_refused(current)

    # --- records nobody serves -----------------------------------------------------

    def _stale_records(self) -> None:
        """A record of ours whose call is neither here nor at any edge, for some time."""
        self.context.after("stale-records", STALE_RECORDS_EVERY_S, self._stale_records)
        if not self.context.store_ok or not self.context.links:
            self._stale.clear()
            return
        now = self.context.now
        mine = {
            ident
            for ident, record in self.core.records.all_records().items()
            if record.node.partition("#")[0] == self.config.node
            and ident not in self.core.calls
            and ident not in self.core.resumes.by_call
            and self.core.records.owner(ident) is None
            and not self.core.listed(ident)
        }
        self._stale = {ident: self._stale.get(ident, now) for ident in mine}
        for ident, since in list(self._stale.items()):
            if now - since > STALE_RECORD_S:
                del self._stale[ident]
                self.context.note(f"call/{ident}", "record of no call removed", level="warning")
                self.core.records.delete_stale(ident)
                self.core.acd.caller_leaves(ident, "nobody claims it")
