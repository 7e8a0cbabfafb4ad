"""The calls of a node and how they come to an end here: found by id and by
channel, moved away, given up, forgotten."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeVar

from ari_ha.core.ids import Epoch, NodeId
from ari_ha.core.ports.store import KeyValue, StoreChanged, StoreSnapshot
from ari_ha.core.utc import STEP_S
from ari_ha.machines.acd import Acd
from ari_ha.machines.node_call import NodeCall
from ari_ha.machines.node_config import NodeConfig
from ari_ha.machines.node_context import NodeContext
from ari_ha.machines.node_desk import AcdDesk
from ari_ha.machines.node_model import LOST, OVER, parse_bridge_id
from ari_ha.machines.node_recorder import NodeRecorder
from ari_ha.machines.node_records import Records, epoch_of
from ari_ha.machines.node_resume import Arriving, Resumes, rebuild, resume
from ari_ha.machines.node_supervisors import Supervisors
from ari_ha.wire import link
from ari_ha.wire.ivr import IvrMenuValue
from ari_ha.wire.keyspace import (
    BadValue,
    EdgeValue,
    OwnerValue,
    QueueConfigValue,
    SupervisorValue,
    UserValue,
    Value,
    VipValue,
    decode,
)

V = TypeVar("V", bound=Value)
LISTED_VALID_S = 30.0
DEAF = "its Asterisk takes no digits: the wall clock has gone back"


TIMERS_OF_A_CALL = ("settle", "media", "queued", "over", "retired", "stale", "feature", "won", "ivr",
                    "supervise")  # fmt: skip


def is_bridge_of(bridge: str, call: NodeCall) -> bool:
    """Whether a bridge is one of this call's, under this epoch."""
    return parse_bridge_id(bridge) == (call.call, call.epoch)


class NodeCore:
    """Shared by the parts of `NodeMachine`; the calls' `Parts`."""

    def __init__(self, config: NodeConfig, new_id: Callable[[], str], rand: Callable[[], float]) -> None:
        self.config = config
        self.context = NodeContext(config, new_id, rand)
        self.records = Records(self.context)
        self.recorder = NodeRecorder(self.context, self.records)
        self.calls: dict[str, NodeCall] = {}
        self.by_channel: dict[str, tuple[str, str]] = {}
        """channel -> (call, leg)"""
        self.resumes = Resumes(
            self.context, self.records, self._resumed, self._refused, lambda: self.acd.acd.seen
        )  # fmt: skip
        self.acd = AcdDesk(
            self.context,
            Acd(
                self.context.keys, NodeId(config.node, ""), new_id=new_id, rand=rand, settings=config.acd,
                live_calls=self.live_calls,
            ),
        )  # fmt: skip
        self.supervisors = Supervisors(self)
        self.cordoned = False
        self.draining = False
        """An operator wants this node empty (``drains/``): the edges move its calls"""
        self.refusing = False
        """Its Asterisk refuses new calls; also for a moment after nobody wants that any more"""
        self._queues: dict[str, QueueConfigValue] = {}
        self._edges: dict[str, EdgeValue] = {}
        self._vips: dict[str, VipValue] = {}
        self._users: dict[str, UserValue] = {}
        self._ivrs: dict[str, IvrMenuValue] = {}
        self._supervisors: dict[str, SupervisorValue] = {}
        self._touched: dict[str, None] = {}
        self.records.on_superseded = self._superseded
        self.records.on_owner = self._owner_changed
        self.records.on_record = self._record_came

    @property
    def closed(self) -> bool:
        """Nobody wants new calls here: cordoned or draining."""
        return self.cordoned or self.draining

    # --- Parts ---------------------------------------------------------------------

    def queue(self, name: str) -> QueueConfigValue | None:
        """The queue's configuration, when it is known."""
        return self._queues.get(name)

    def ivr(self, menu: str) -> IvrMenuValue | None:
        """The menu, when it is known."""
        return self._ivrs.get(menu)

    def user(self, name: str) -> UserValue | None:
        """The account, when it is known."""
        return self._users.get(name)

    def device_of(self, user: str) -> str:
        """The address of record an authenticated user's phone is registered under."""
        known = self._users.get(user)
        return (known.aor if known else "") or user

    def queue_of_number(self, number: str) -> str:
        """The queue into which callers are transferred by this number; empty: none."""
        return next((name for name, config in self._queues.items() if number in config.numbers), "")

    def dial_target(self, number: str) -> str:
        """What a dialled number means: ``device:<aor>`` of a user here, else ``number:``."""
        ours = any(number in (name, user.aor) for name, user in self._users.items())
        return f"device:{self.device_of(number)}" if ours else f"number:{number}"

    def agent_of(self, user: str) -> str:
        """The agent logged in at this account's phone; empty: none."""
        return self.agent_at(f"device:{self.device_of(user)}")

    def agent_at(self, target: str) -> str:
        """The agent logged in at a dialled ``device:``; empty: none."""
        kind, _, device = target.partition(":")
        agents = self.acd.acd.agents().items()
        here = (name for name, a in agents if a.device == device and a.intent != "logged_out")
        return next(here, "") if kind == "device" and device else ""

    def edge_sip(self, call: NodeCall) -> str:
        """Where a leg of the call is dialled: host:port of its edge; empty: no edge."""
        return next((address for name in self.edges_of(call) if (address := self._sip_of(name))), "")

    def edges_of(self, call: NodeCall) -> list[str]:
        """The edges that may serve the call, the likeliest first: the active one of the
        pair that owns it, one that lists it, one that is linked, any."""
        owner, links = self.records.owner(call.call), self.context.links
        names, pair = [owner.edge] if owner else [], owner.vip if owner else call.vip
        if pair and (vip := self._vips.get(pair)):
            names.insert(0, vip.edge)
        others = {peer for peer, edge in links.items() if pair and edge.vip not in ("", pair)}
        linked = [peer for peer in links if peer not in others]
        listing = [peer for peer in linked if (said := links[peer].calls) and call.call in said.calls]
        known = [name for name, _ in self.config.edges if name not in others]
        names += [*listing, *(name for name in known if name in linked), *linked, *known]
        return list(dict.fromkeys(names))

    def edge_has(self, call: NodeCall, leg: str, since: float) -> bool | None:
        """Whether the call's edge has listed the leg since then; None: no edge is there that could say, or it
        has begun to serve and the call is not among ours, but on its way to another node, or over."""
        owner, links = self.records.owner(call.call), self.context.links
        peers = [owner.edge] if owner else self.edges_of(call)
        said = [links[peer] for peer in peers if peer in links and links[peer].calls is not None]
        if not said:
            return None
        lists = [edge.calls.calls for edge in said if edge.calls is not None and edge.calls_at > since]
        named = [calls[call.call].legs for calls in lists if call.call in calls]
        return None if lists and not named else any(leg in legs for legs in named)

    def _sip_of(self, edge: str) -> str:
        said = self.context.links[edge].sip if edge in self.context.links else ""
        stored = self._edges.get(edge)
        return said or (stored.sip if stored else "") or dict(self.config.edges).get(edge, "")

    def carry_out(self, call: NodeCall, verb: tuple[str, ...], user: str = "") -> None:
        """What the dialplan, or a step of an IVR, asks for; ``user``: of the phone that called."""
        call.ivr.leave()
        match verb:
            case ("queue", name, *_):
                call.enter_queue(name, "")
            case ("through", name, *_):
                call.enter_queue(name, "through")
            case ("ivr", menu, *_):
                call.ivr.begin(menu)
            case ("dial", number, *_):
                call.outbound.begin(number, user)
            case _:
                text = ",".join(verb) or "nothing"
                call.note(f"{text!r} is asked for, which this app does not do", level="error")
                self.context.count("node_verbs_unknown")
                call.to_dialplan("unknown verb")

    def touch(self, call: NodeCall) -> None:
        """The call is settled at the end of this event."""
        self._touched[call.call] = None

    def index(self, channel: str, call: NodeCall, leg: str) -> None:
        """Makes the call findable by a channel."""
        self.by_channel[channel] = (call.call, leg)

    def unindex(self, channel: str) -> None:
        """The channel is gone."""
        self.by_channel.pop(channel, None)

    def give_up(self, call: NodeCall, leg: str, why: str) -> None:
        """We cannot serve the call: its edge makes it again, here or elsewhere."""
        frame = link.ResumeRefused(call=call.call, epoch=str(call.epoch), leg="", reason=f"{leg}: {why}")
        call.say(frame)
        self.context.count("node_calls_given_up", why=why)
        self.drop(call, f"given up: {why}", unless_wanted=True)

    def ask_for_new_channels(self) -> None:
        """Asterisk measures by the wall clock how far apart two digits of a channel are. When that clock has
        gone back it takes no more of them until it is where it was at the last one: for an hour perhaps."""
        clock = self.context.stepped_clock
        if clock is None:
            return
        for call in self.calls.values():
            channels = [leg.channel for leg in call.living() if leg.channel is not None]
            if any(channel.digit_utc > clock + STEP_S for channel in channels):
                call.say(link.MoveWanted(call=call.call, epoch=str(call.epoch), reason=DEAF))

    def finished(self, call: NodeCall) -> None:
        """The call is over and nothing of it is left here."""
        self._forget(call, discard=False)

    # --- leaving -------------------------------------------------------------------

    def drop(self, call: NodeCall, why: str, unless_wanted: bool = False) -> None:
        """The call is not ours: its channels go, silently, and nothing is written. With
        ``unless_wanted`` a call that nobody claims, neither an owner key nor an edge,
        loses its place in the queue too: it is over."""
        call.note("dropped", why=why)
        self.context.count("node_calls_dropped")
        for leg in call.legs.values():
            if leg.channel is not None:
                self.context.hang_up(leg.channel.id)
        for channel in call.retired:
            self.context.hang_up(channel)
        claimed = self.records.owner(call.call) is not None or self.listed(call.call)
        if unless_wanted and not claimed and self.context.store_ok and self.records.seen:
            self.acd.caller_leaves(call.call, "nobody claims it")
        else:
            self.acd.call_moved(call.call)
        call.stage = OVER
        self._forget(call, discard=True)

    def _look_at_place(self, ident: str) -> None:
        """A place that says it is ours, of a call that is not here and that nobody claims."""
        limit_s = self.context.timings.stale_limit_s
        self.context.after(f"stale/{ident}", limit_s, lambda: self._place_of_nobody(ident))

    def _forget(self, call: NodeCall, discard: bool) -> None:
        if self.calls.get(call.call) is not call:
            return
        call.forgotten = True
        del self.calls[call.call]
        self._touched.pop(call.call, None)
        for channel in [c for c, (owner, _) in self.by_channel.items() if owner == call.call]:
            del self.by_channel[channel]
        for family in TIMERS_OF_A_CALL:
            self.context.cancel(f"{family}/{call.call}")
        for family in ("lost", "end", "dial"):
            self.context.cancel_all(f"{family}/{call.call}/")
        call.supervision.forget()
        for bridge in sorted(call.asterisk.existing):
            self.context.ari(f"hangup/{bridge}", "bridges.destroy", {"bridgeId": bridge})
        self.records.close(call.call, discard)
        if discard and self.records.owner(call.call) is None and self._waits_here(call.call):
            self._look_at_place(call.call)

    def forget_all(self) -> None:
        """Asterisk's life is over: its calls are the edge's to move. Nothing is ended,
        nothing is written."""
        for call in list(self.calls.values()):
            call.asterisk.existing.clear()
            call.supervision.all_gone()
            call.stage = OVER
            self.acd.call_moved(call.call)
            self._forget(call, discard=True)
        for ident in list(self.resumes.by_call):
            self.resumes.drop(ident)
        self.by_channel.clear()

    def moved(self, ident: str, epoch: Epoch, to: str) -> None:
        """The call is served elsewhere under a higher epoch."""
        call = self.calls.get(ident)
        if call is not None and call.epoch < epoch:
            self.drop(call, f"moved to {to} under {epoch}")
        arriving = self.resumes.by_call.get(ident)
        if arriving is not None and arriving.epoch < epoch:
            self.resumes.drop(ident)
            self._let_go(arriving)

    def _let_go(self, arriving: Arriving) -> None:
        for channel in [*(c.id for c in arriving.channels.values()), *arriving.retired]:
            self.by_channel.pop(channel, None)
            self.context.hang_up(channel)

    def _leaves_on_purpose(self, ident: str) -> bool:
        """Whether it moves away, or was to, and is not lost: ours is heard till its edge says it has gone."""
        owner = self.records.owner(ident)
        if owner is None or owner.why or not (owner.moving or self.records.came_to_nothing(ident)):
            return False
        return NodeId.parse(owner.node).name == self.config.node

    def _superseded(self, ident: str, epoch: Epoch, node: str) -> None:
        if not self._leaves_on_purpose(ident) and NodeId.parse(node).name != self.config.node:
            self.moved(ident, epoch, node)

    def _record_came(self, ident: str) -> None:
        call, record = self.calls.get(ident), self.records.record(ident)
        if call is None or record is None or call.stage == OVER:
            return
        if epoch_of(record.epoch) <= call.epoch or self.records.came_to_nothing(ident):
            call.record_came(record)
        elif not self._leaves_on_purpose(ident):
            # its edge has not told us yet; what its agents do is the next node's to write
            self.acd.call_moved(ident)

    def _owner_changed(self, ident: str, owner: OwnerValue | None) -> None:
        call = self.calls.get(ident)
        if owner is None:
            limit_s = self.context.timings.stale_limit_s
            if call is not None and call.stage != OVER:
                self.context.after(f"stale/{ident}", limit_s, lambda: self._owner_gone(ident))
            elif call is None and self._waits_here(ident):
                self._look_at_place(ident)
            return
        self.context.cancel(f"stale/{ident}")
        if call is not None:
            call.vip = owner.vip
        if NodeId.parse(owner.node).name != self.config.node:
            self.moved(ident, epoch_of(owner.epoch), owner.node)
        elif call is not None and (theirs := self.records.kept(ident)) is not None:
            call.note("goes on here: it has not moved", wrote=theirs.node)
            call.record_came(theirs)
            call.save()

    def _owner_gone(self, ident: str) -> None:
        """Its edge has deleted the call: it ended, and we did not hear."""
        call = self.calls.get(ident)
        if call is None or self.records.owner(ident) is not None or self.listed(ident):
            return
        call.note("its edge has no such call any more", level="warning")
        for leg in call.living():
            leg.state, leg.by = "ended", "edge"
            call.hang_up(leg)
        call.over("ended at the edge")

    def _waits_here(self, ident: str) -> bool:
        places = (entry for entry in self.acd.acd.waiting() if entry.call == ident)
        return any(NodeId.parse(entry.node).name == self.config.node for entry in places)

    def _place_of_nobody(self, ident: str) -> None:
        """A caller gave up between two nodes: his edge has ended the call, and his place,
        the last node of which we were, is nobody's. Without the store nobody can say so: another
        node may have him."""
        if not (self.context.store_ok and self.records.seen) or self.acd.acd.unwritten:
            self._look_at_place(ident)
            return
        served = ident in self.calls or ident in self.resumes.by_call
        claimed = self.records.owner(ident) is not None or self.listed(ident)
        if self._waits_here(ident) and not (served or claimed):
            self.acd.caller_leaves(ident, "ended between two nodes")

    def listed(self, ident: str) -> bool:
        """Whether a linked edge has said lately that we serve the call. It lists calls only
        when its link comes up: an old list proves nothing."""
        since = self.context.now - LISTED_VALID_S
        return any(
            edge.calls is not None and ident in edge.calls.calls and edge.calls_at >= since
            for edge in self.context.links.values()
        )

    # --- taking up -----------------------------------------------------------------

    def begin(self, call: NodeCall) -> None:
        """A call is served here from now on."""
        self.calls[call.call] = call
        call.supervision.found(self._supervisors.get(call.call))
        owner = self.records.owner(call.call)
        if owner is not None and epoch_of(owner.epoch) <= call.epoch:
            call.vip = owner.vip
        for leg in call.legs.values():
            if leg.channel is not None:
                self.index(leg.channel.id, call, leg.leg)
        for channel in call.retired:
            self.by_channel.pop(channel, None)
        self.touch(call)

    def _resumed(self, arriving: Arriving) -> None:
        record = self.records.of_another(arriving.call, arriving.epoch)
        if record is not None:
            self.context.note(
                f"call/{arriving.call}", "not taken up: another has had it", epoch=arriving.epoch,
                newer=record.epoch, by=record.node,
            )  # fmt: skip
            self._let_go(arriving)
            return
        call = rebuild(self, arriving)
        call.vip = arriving.pair
        bridges = {c.bridge for c in arriving.channels.values() if c.bridge}
        call.asterisk.existing = {bridge for bridge in bridges if is_bridge_of(bridge, call)}
        self.begin(call)
        if self.resumes.is_over(arriving):
            self.drop(call, f"{arriving.unknown_to[-1]} knows no such call", unless_wanted=True)
            return
        self.context.count("node_calls_resumed", kind=arriving.kind)
        resume(call, arriving)
        for frame in arriving.asked:
            call.transfers.heard(frame)

    def _refused(self, arriving: Arriving, missing: str) -> None:
        self.context.note(
            f"call/{arriving.call}", "cannot be taken up", level="warning", missing=missing,
            epoch=arriving.epoch,
        )  # fmt: skip
        self.context.count("node_resumes_refused")
        self._let_go(arriving)
        self.context.say(
            link.ResumeRefused(
                call=arriving.call, epoch=str(arriving.epoch), leg=missing.partition(",")[0],
                reason=f"no channel of {missing}",
            )
        )  # fmt: skip

    def supersede(self, ident: str) -> list[str]:
        """A newer epoch of a call we serve begins here: the old one's channels stay
        until the new one is whole; returns them."""
        call = self.calls.get(ident)
        if call is None:
            return []
        channels = [leg.channel.id for leg in call.legs.values() if leg.channel] + call.retired
        call.note("superseded by a newer epoch on this node")
        call.asterisk.existing.clear()  # destroyed by the sweep, with its channels
        call.stage = OVER
        self._forget(call, discard=True)
        return channels

    # --- the ACD's question --------------------------------------------------------

    def live_calls(self) -> dict[str, Collection[str]] | None:
        """call -> agents with a living leg; None while it is not known."""
        if not self.context.ari_state.up:
            return None
        live: dict[str, Collection[str]] = {
            call.call: {leg.agent for leg in call.living() if leg.agent}
            | {a.agent for a in call.attempts.values() if a.state in ("intent", "ringing", LOST)}
            for call in self.calls.values()
            if call.stage != OVER
        }
        for ident in self.resumes.by_call:
            record = self.records.record(ident)
            live[ident] = {a.agent for a in record.attempts.values()} if record else set()
        return live

    # --- the store -----------------------------------------------------------------

    def store_event(self, event: StoreSnapshot | StoreChanged) -> None:
        """News of the keys the node itself reads."""
        seen = self.records.seen
        if isinstance(event, StoreSnapshot):
            if event.prefix == self.context.keys.prefix("vips"):
                self.context.etcd_read(event.revision)
            for key in self._stale(event):
                self._take(key, None)
            for key, kv in event.items.items():
                self._take(key, kv)
            self.records.snapshot(event)
            self._supervised_all(event)
            if self.records.seen and not seen:
                self.resumes.records_seen()
            return
        self._take(event.key, event.value)
        self.records.changed(event)
        match self.context.keys.split(event.key):
            case ("calls", ident, "record") if event.value is not None:
                self.resumes.record_came(ident)
            case ("calls", ident, "supervisor"):
                self._supervised(ident, event.value)

    def _supervised(self, ident: str, kv: KeyValue | None) -> None:
        """Somebody is to hear a call, or no longer."""
        self._keep(self._supervisors, ident, kv, SupervisorValue)
        if call := self.calls.get(ident):
            call.supervision.ordered(self._supervisors.get(ident))

    def _supervised_all(self, event: StoreSnapshot) -> None:
        keys = self.context.keys
        if not keys.prefix("calls").startswith(event.prefix):
            return
        for ident in dict.fromkeys((*self._supervisors, *self.calls)):
            self._supervised(ident, event.items.get(keys.supervisor(ident)))
        for key, kv in event.items.items():
            match keys.split(key):
                case ("calls", ident, "supervisor"):
                    self._supervised(ident, kv)

    def _stale(self, event: StoreSnapshot) -> list[str]:
        keys = self.context.keys
        known = [keys.queue_config(q) for q in self._queues] + [keys.edge(e) for e in self._edges]
        known += [keys.vip(v) for v in self._vips] + [keys.user(u) for u in self._users]
        known += [keys.ivr(m) for m in self._ivrs]
        return [key for key in known if key.startswith(event.prefix) and key not in event.items]

    def _take(self, key: str, kv: KeyValue | None) -> None:
        match self.context.keys.split(key):
            case ("queues", name, "config"):
                self._keep(self._queues, name, kv, QueueConfigValue)
            case ("edges", name):
                self._keep(self._edges, name, kv, EdgeValue)
            case ("vips", name):
                self._keep(self._vips, name, kv, VipValue)
                if kv is not None and name in self._vips:
                    self.context.active_is(name, kv.mod_revision, self._vips[name].edge)
            case ("ivrs", name):
                self._keep(self._ivrs, name, kv, IvrMenuValue)
            case ("users", name):
                self._keep(self._users, name, kv, UserValue)

    def _keep(self, table: dict[str, V], name: str, kv: KeyValue | None, kind: type[V]) -> None:
        if kv is None:
            table.pop(name, None)
            return
        try:
            table[name] = decode(kv.value, kind, kv.key)
        except BadValue as error:
            self.context.note("store", "a value cannot be read", level="error", error=error)

    def queue_names(self) -> list[str]:
        """Queues that are configured."""
        return list(self._queues)

    # --- the end of an event -------------------------------------------------------

    def take_touched(self) -> list[NodeCall]:
        """Calls to settle."""
        touched = [self.calls[ident] for ident in self._touched if ident in self.calls]
        self._touched.clear()
        return touched
