"""The edge as one machine: SIP, media, node links, etcd and people come in as
events, and everything it does goes out as effects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ari_ha.core.machine import (
    DeadlineReached,
    Effect,
    Event,
    Instant,
    InvariantBroken,
    OutcomeOf,
)
from ari_ha.core.ports.guard import PairWord
from ari_ha.core.ports.link import LinkDown, LinkReceived, LinkUp
from ari_ha.core.ports.media import MediaReach
from ari_ha.core.ports.operator import OperatorReply, OperatorRequest
from ari_ha.core.ports.probe import ProbeRefused, ProbeReply, WallClock
from ari_ha.core.ports.sip import CloseSip, SendSip, SipBytes, SipFlowClosed
from ari_ha.core.ports.store import (
    LeaseState,
    StoreChanged,
    StoreReach,
    StoreSnapshot,
    StoreUnwatch,
)
from ari_ha.machines.doorkeeper import Doorkeeper
from ari_ha.machines.edge_calls import Calls
from ari_ha.machines.edge_claims import Claims
from ari_ha.machines.edge_config import EdgeConfig
from ari_ha.machines.edge_context import INNER, EdgeContext
from ari_ha.machines.edge_dialling import Dialling
from ari_ha.machines.edge_dialogs import Dialogs
from ari_ha.machines.edge_drain import Drains
from ari_ha.machines.edge_fax import Fax
from ari_ha.machines.edge_pairs import Pairs
from ari_ha.machines.edge_recording import Recordings
from ari_ha.machines.edge_rehome import Rehome
from ari_ha.machines.edge_replacing import Replacing
from ari_ha.machines.edge_restore import restore_call
from ari_ha.machines.edge_role import GUARD_WORD_EVERY_S, VIP_RETRY_S, Role
from ari_ha.machines.edge_setup import Setup
from ari_ha.machines.edge_srtp import SrtpKeys
from ari_ha.machines.edge_sweep import RelaySweep
from ari_ha.machines.edge_transfer import Transfers, asked_frames
from ari_ha.machines.edge_view import call_view, edge_view, node_view
from ari_ha.machines.next_hops import NextHops
from ari_ha.machines.node_watch import NodeWatch, WatchedNode
from ari_ha.machines.phone_care import PhoneCare
from ari_ha.machines.registrar import Registrar
from ari_ha.machines.sentinels import Sentinels
from ari_ha.machines.subscriptions import Subscriptions
from ari_ha.machines.takeover import Takeover
from ari_ha.machines.trunk_care import TrunkCare
from ari_ha.machines.trunks import Trunks
from ari_ha.sip.flow import Flow
from ari_ha.wire import link
from ari_ha.wire.keyspace import (
    BadValue,
    DialogsValue,
    MediaValue,
    OwnerValue,
    SecretDialogsValue,
    decode,
)
from ari_ha.wire.media_keys import show

EARLY_EVENTS_MAX = 4_000
"""SIP bytes kept while the calls are still being read back from etcd."""
EARLY_INVITE_S = 2.0
"""A caller whose INVITE waited longer for us has given up, or is asked again by its carrier."""
APP_AWAY = "node app away"
FAMILIES = ("drains", "vips", "edges", "calls", "bindings", "users", "secret", "trunks", "dialogs",
            "subscriptions", "mailboxes")  # fmt: skip
"""Prefixes the process mirrors for this machine; all must be read before it serves."""


class EdgeMachine:
    """One active edge (design: the edge)."""

    def __init__(
        self, config: EdgeConfig, new_id: Callable[[], str], rand: Callable[[], float] = lambda: 0.5
    ) -> None:
        self.context = EdgeContext(config, new_id, rand)
        self.calls = Calls(self.context)
        self.watch = NodeWatch(self.context, Sentinels(self.context, self.calls.by_id), self._node_lost,
                               self._node_back, self._app_absent, self._node_doubted)  # fmt: skip
        self.context.node_doubted = self.watch.doubted
        self.context.asterisk_gone = self.watch.gone
        self.pairs = Pairs(self.context)
        self.registrar = Registrar(self.context, self.pairs)
        self.registrar.in_call = lambda aor: aor in self.calls.device_of
        self.pairs.serve(self.registrar)
        self.trunks = Trunks(self.context, self.pairs)
        self.context.trunk_credentials = self.trunks.credentials
        self.context.trunk_next_hop = self.trunks.next_hop
        self.trunk_care = TrunkCare(self.context, self.trunks)
        self.doorkeeper = Doorkeeper(
            self.context, lambda host: host in self.registrar.hosts or bool(self.trunks.of_host(host))
        )
        self.next_hops = NextHops(self.context)
        self.phone_care = PhoneCare(self.context, self.registrar)
        self.registrar.on_failure = self.doorkeeper.failed
        self.registrar.on_flow = self._phone_reconnected
        self.setup = Setup(self.context, self.calls, self.watch, self.registrar, self.trunks)
        self.takeover = Takeover(self.context, self.calls, self.setup)
        self.drains = Drains(self.context, self.calls, self.watch, self.takeover)
        self.sweep = RelaySweep(self.context, self.calls)
        self.setup.on_moving_half_failed = self.takeover.half_failed
        self.dialling = Dialling(self.context, self.calls, self.setup, self.registrar, self.trunks)
        self.transfers = Transfers(self.context, self.calls, self.setup, self.registrar)
        self.takeover.on_served = self.transfers.second_lines
        self.setup.on_second_call = self.transfers.consult
        self.dialling.on_party_failed = self.transfers.party_failed
        self.replacing = Replacing(self.context, self.calls, self.setup, self.dialling, self.registrar)
        self.setup.on_replaces = self.replacing.invite
        self.subscriptions = Subscriptions(self.context, self.calls, self.registrar)
        self.context.on_time_moved += [self.registrar.time_moved, self.subscriptions.time_moved]
        self.srtp = SrtpKeys(self.context, self.calls, self.setup)
        self.calls.on_published = self.srtp.published
        self.rehome = Rehome(self.context, self.calls, self.setup, self.dialling, self.takeover, self.srtp)
        self.calls.on_media_refused = self.rehome.look
        self.dialogs = Dialogs(self.context, self.calls, self.setup, self.dialling, self.takeover,
                               self.registrar, self.trunk_care, self.transfers,
                               self.subscriptions, self.phone_care, self.rehome, self.srtp,
                               Fax(self.context, self.calls, self.trunks), self.pairs)  # fmt: skip
        self._early: list[tuple[Instant, SipBytes]] = []
        self._read: dict[str, dict[str, bytes]] = {}
        """family -> key -> value, until everything has been read"""
        self.serving = False
        self.claims = Claims(self.context, self.calls, self.registrar)
        self.recordings = Recordings(self.context, self.calls, self.setup, self.watch)
        self.rehome.on_relay_has = self.recordings.relay_has
        self.role = Role(self.context, self._role_taken)
        self.calls.store.on_fenced = self.role.stored
        self._routes: dict[type[Event], Callable[[Any], None]] = {
            SipBytes: self._sip_bytes,
            SipFlowClosed: self._flow_closed,
            OutcomeOf: self.context.outcome,
            DeadlineReached: lambda event: None,
            LinkUp: self._link_up,
            LinkDown: self._link_down,
            LinkReceived: self._link_received,
            ProbeReply: lambda event: self.watch.replied(event.node),
            ProbeRefused: lambda event: self.watch.refused(event.node),
            MediaReach: self._media_reach,
            StoreSnapshot: self._snapshot,
            StoreChanged: self._changed,
            StoreReach: self._store_reach,
            LeaseState: self._lease,
            OperatorRequest: self._operator,
            PairWord: lambda event: self.role.guard_word(event.word),
        }

    # --- the machine ---------------------------------------------------------------

    def handle(self, event: Event, now: Instant) -> Sequence[Effect]:
        """One event in, what to do out."""
        context = self.context
        if self.role.down:
            return ()
        if context.config.guarded and not context.now:
            context.at("guard", now, self._tell_guard)
        context.now, context.cause = now, event.cause
        if isinstance(event, WallClock):
            context.wall_clock(event.utc_s)
        elif not self.serving and isinstance(event, SipBytes):
            self._keep_early(event)
        else:
            route = self._routes.get(type(event))
            if route:
                route(event)
            elif type(event).__name__ == "ShellStall":
                self.watch.stalled()
            else:
                context.count("edge_events_unknown", kind=type(event).__name__)
        if not self.role.down:
            self._settle()
        return context.take_effects()

    def _settle(self) -> None:
        """Timers that are due, what the SIP engine has to say, and what to store."""
        context = self.context
        context.fire()
        sip = context.sip
        due = sip.deadline()
        if due is not None and due <= context.now:
            sip.handle_timer(context.now)
        for _ in range(1000):
            events = sip.events()
            if not events:
                break
            for event in events:
                self.dialogs.heard(event)
        self.dialling.forks.sweep()
        for data, flow in sip.output():
            tls = flow.transport == "tls"
            name = (self.trunks.name_at(flow) or self.next_hops.name_at(flow)) if tls else ""
            context.emit(SendSip(data=data, flow=flow, name=name))
        self.calls.store.flush()

    def deadline(self) -> Instant | None:
        """When something of ours is due."""
        return self.context.deadline()

    def check(self) -> None:
        """Every call has a home, a move, or a reason for neither; keys agree."""
        for call in self.calls.by_id.values():
            if call.ended or not call.living():
                raise InvariantBroken(f"{call.call}: ended, and still here")
            for leg in call.living():
                if self.calls.by_key.get(leg.key) != (call.call, leg.leg):
                    raise InvariantBroken(f"{call.call}/{leg.leg}: not found by its SIP key")
                if leg.leg in call.tombstones:
                    raise InvariantBroken(f"{call.call}/{leg.leg}: alive after its end")
            if call.move and call.move.epoch != call.epoch:
                raise InvariantBroken(f"{call.call}: moves to an epoch that is not its own")
        for aor, (ident, name) in self.calls.device_of.items():
            call = self.calls.by_id.get(ident)
            if call is None or name not in call.legs or not call.legs[name].alive:
                raise InvariantBroken(f"device {aor} held by nobody")

    # --- SIP -----------------------------------------------------------------------

    def _keep_early(self, event: SipBytes) -> None:
        if len(self._early) < EARLY_EVENTS_MAX:
            self._early.append((self.context.now, event))
        else:
            self.context.count("edge_early_dropped")

    def _sip_bytes(self, event: SipBytes) -> None:
        sip, now = self.context.sip, self.context.now
        flow = event.flow
        if flow.listener.startswith("public-") and not self.doorkeeper.admits(event.data, flow.host):
            if flow.reliable:  # what follows could not be framed any more
                self.context.emit(CloseSip(flow=flow))
            return
        if flow.framed:
            sip.receive(event.data, event.flow, now)
        else:
            sip.receive_stream(event.data, event.flow, now)

    def _flow_closed(self, event: SipFlowClosed) -> None:
        sip, now = self.context.sip, self.context.now
        if event.flow.transport != "udp":
            self.registrar.flow_closed(event.flow)
            sip.stream_closed(event.flow, now)
        elif not event.flow.listener.startswith(INNER):
            # a refusal on a node listener is the watch's to judge: a leg there is lost with its
            # node, not one by one. Another pair's edge that is being started again is asked again
            sip.transport_error(event.flow, event.reason, now)

    def _phone_reconnected(self, aor: str, flow: Flow) -> None:
        """A phone registered over a new connection: what its old one carried goes over
        this one from now on (RFC 5626 §4.2 would name the phone; its address has to do)."""
        sip = self.context.sip
        for call in self.calls.by_id.values():
            for leg in call.living():
                if aor not in (leg.aor, leg.user) or sip.leg_state(leg.key) == "ended":
                    continue
                old = sip.leg_flow(leg.key)
                if not old.conn and (old.host, old.transport) == (flow.host, flow.transport):
                    sip.move_flow(leg.key, flow)
                    self.rehome.reconnected(call, leg)

    # --- nodes ---------------------------------------------------------------------

    def _node_lost(self, node: WatchedNode, why: str) -> None:
        self.context.count("edge_nodes_lost")
        self.takeover.node_lost(node, why)

    def _node_back(self, node: WatchedNode) -> None:
        self.takeover.node_back(node.config.name)

    def _node_doubted(self, node: WatchedNode) -> None:
        """The node fell silent, or is heard again: two people talking through it are
        connected directly for as long as that lasts."""
        for call in self.calls.of_node(node.config.name):
            self.calls.apply_media(call)

    def _app_absent(self, node: WatchedNode) -> None:
        """The app stays away: its calls are moved while their Asterisk still runs."""
        for call in self.calls.of_node(node.config.name):
            if not call.by_dialplan:
                self.takeover.move(call, APP_AWAY)

    def _link_up(self, event: LinkUp) -> None:
        self.watch.link_up(event.peer)
        self._hello(event.peer)
        if self.serving:
            self._send_calls(event.peer)

    def _link_down(self, event: LinkDown) -> None:
        self.watch.link_down(event.peer, event.clean, event.reason)
        self.recordings.node_unlinked(event.peer)

    def _hello(self, node: str) -> None:
        context, config = self.context, self.context.config
        hello = link.EdgeHello(
            edge=config.edge,
            vip=config.vip,
            edge_revision=context.edge_revision,
            version=config.version,
            sip=f"{config.core_host}:{config.trunk_port}",
        )
        context.link(node, hello)

    def _send_calls(self, node: str) -> None:
        """Snapshot for a node app: what it serves, with the facts of the legs."""
        calls = {}
        for call in self.calls.of_node(node):
            if call.lost or call.by_dialplan or call.primary is None or call.fresh:
                continue
            legs = {
                leg.leg: link.LegAtEdge(state="answered" if leg.state == "up" else leg.fact, held=leg.held)
                for leg in call.living()
            }
            calls[call.call] = link.CallAtEdge(
                epoch=str(call.epoch), legs=legs, ended=call.ended_lately(), **call.grouping()
            )
        for ident in calls:  # what a phone asked for before it hung up goes before that it has
            for frame in asked_frames(self.calls.by_id[ident]):
                self.context.link(node, frame)
        self.context.link(node, link.EdgeCalls(calls=calls))

    def _link_received(self, event: LinkReceived) -> None:
        frame, node = event.frame, event.peer
        match frame:
            case link.NodeHello():
                self.watch.hello(node, frame.incarnation, frame.features)
            case link.NodeState():
                self.watch.app_state(node, frame)
                if frame.ready:
                    self.takeover.stay(node, APP_AWAY)
                    self.transfers.node_ready(node)
                self.takeover.pump()
            case link.AsteriskGone():
                self.watch.asterisk_gone(node, frame.incarnation, frame.reason)
            case link.Bridged():
                self._app_took(frame.call, node)
                self.takeover.bridged(frame)
            case link.ResumeRefused():
                self.takeover.refused(frame)
            case link.MoveWanted():
                self.drains.wanted(node, frame)
            case link.EndLeg():
                self.calls.announced_end(frame)
            case link.WantMedia():
                self._app_took(frame.call, node)
                self.calls.media_wanted(frame)
            case link.Conversations():
                self.calls.conversations(frame)
            case link.TransferIs():
                self.transfers.transfer_is(frame)
            case link.DigitHeard():
                self.calls.digit_heard(node, frame)
            case link.ClaimAgent():
                self.claims.claim(node, frame, self.serving)
            case link.WantRecording() | link.RecorderAt() | link.RecordingOver() | link.NodeRecordings():
                self.recordings.heard(node, frame)
            case link.NodeCalls():
                self._node_calls(node, frame)
            case _:
                self.context.count("edge_frames_unknown", kind=type(frame).__name__)

    def _app_took(self, ident: str, node: str) -> None:
        """The app came back while the dialplan still asked for it, and serves the call now."""
        call = self.calls.by_id.get(ident)
        if call and call.by_dialplan and call.owner and call.owner.name == node:
            call.by_dialplan = False
            self.calls.touch(call)

    def _node_calls(self, node: str, frame: link.NodeCalls) -> None:
        """What the node has, against what it should have."""
        if not self.serving:
            return
        for ident, on_node in frame.calls.items():
            call = self.calls.by_id.get(ident)
            if call is None:
                self.context.link(node, link.Relinquish(call=ident, epoch=on_node.epoch))
            elif call.owner and call.owner.name != node and not (call.move and call.move.to.name == node):
                moved = link.CallMoved(call=ident, epoch=str(call.newest), to_node=call.owner.name)
                self.context.link(node, moved)

    # --- media relay ---------------------------------------------------------------

    def _media_reach(self, event: MediaReach) -> None:
        context = self.context
        if event.reachable != context.media_ok:
            level = "info" if event.reachable else "error"
            text = "media relay answers" if event.reachable else "media relay away: new calls get 503"
            context.note("edge", text, level=level, why=event.why)
        context.media_ok = event.reachable
        self.srtp.relay_reached(event)
        if event.reachable:
            self.calls.media_back()

    # --- etcd ----------------------------------------------------------------------

    def _lease(self, event: LeaseState) -> None:
        if event.held:
            self.role.announce()

    def _store_reach(self, event: StoreReach) -> None:
        context = self.context
        if event.reachable != context.store_ok:
            text = "etcd answers" if event.reachable else "etcd away: calls go on, writes wait"
            context.note("edge", text, level="info" if event.reachable else "warning", why=event.why)
        context.store_ok = event.reachable
        if event.reachable:
            self.role.announce()
            self.role.take()

    def _snapshot(self, event: StoreSnapshot) -> None:
        parts = self.context.keys.split(event.prefix)
        family = parts[0] if parts else ""
        self.role.begin_snapshot(family)
        self.pairs.begin_snapshot(family, event.items)
        self.registrar.begin_snapshot(event.prefix, event.items)
        self.trunks.begin_snapshot(family, event.items)
        self.subscriptions.begin_snapshot(family, event.items)
        self.drains.begin_snapshot(family, event.items)
        for key, item in event.items.items():
            self.drains.stored(key, item)
            self.pairs.stored(key, item)
            self.registrar.stored(key, item)
            self.trunks.stored(key, item)
            self.subscriptions.stored(key, item)
            self.role.stored(key, item)
            if self.serving:
                self.calls.record_stored(key, item.value)
        if self.role.down:
            return
        if family in ("vips", "edges"):
            self.role.take()
        if self.serving and family == "calls":
            self.calls.store.compare({key: item.value for key, item in event.items.items()})
        if not self.serving:
            self._read[family] = {key: item.value for key, item in event.items.items()}
            self._maybe_serve()

    def _changed(self, event: StoreChanged) -> None:
        self.drains.stored(event.key, event.value)
        self.pairs.stored(event.key, event.value)
        self.registrar.stored(event.key, event.value)
        self.trunks.stored(event.key, event.value)
        self.subscriptions.stored(event.key, event.value)
        self.role.stored(event.key, event.value)
        value = event.value.value if event.value else None
        if self.serving:
            self.calls.store.changed(event.key, value, event.revision)
        family = (self.context.keys.split(event.key) or ("",))[0]
        if not self.serving and family in self._read:
            # standing by: what the active edge writes is here before it is needed
            if event.value:
                self._read[family][event.key] = event.value.value
            else:
                self._read[family].pop(event.key, None)
        elif event.value:
            self.calls.record_stored(event.key, event.value.value)

    @property
    def warm(self) -> bool:
        """Every stored call is here: serving can begin without reading anything."""
        return self.serving or all(family in self._read for family in FAMILIES)

    def _tell_guard(self) -> None:
        self.role.tell_guard(self.warm)
        self.context.at("guard", self.context.now + GUARD_WORD_EVERY_S, self._tell_guard)

    def _role_taken(self) -> None:
        """We are the active edge by a new revision; where we were by an older one, every
        call is written again under the new."""
        if self.serving:
            for call in self.calls.by_id.values():
                self.calls.touch(call)
        self._maybe_serve()

    def _maybe_serve(self) -> None:
        """Begins to serve when we are active and every stored call has been read."""
        context, keys = self.context, self.context.keys
        if self.serving or not context.edge_revision:
            return
        missing = [family for family in FAMILIES if family not in self._read]
        if missing:
            return
        self._restore()
        self.serving = True
        self.watch.start()
        self.drains.start()
        self.sweep.start()
        self.recordings.start()
        self.registrar.start()
        self.pairs.start()
        self.trunk_care.start()
        self.phone_care.start()
        self.subscriptions.start()
        for node in self.watch.nodes.values():
            if node.link_up:
                self._hello(node.config.name)
                self._send_calls(node.config.name)
        context.note("edge", "serving", calls=len(self.calls.by_id))
        early, self._early = self._early, []
        for at, event in early:
            if context.now - at < EARLY_INVITE_S or not event.data.startswith(b"INVITE "):
                self._sip_bytes(event)
        self._read.clear()
        # Nobody writes there but us as long as we are the active edge, and who was that once
        # does not stand by in the same life.
        context.emit(StoreUnwatch(prefix=keys.prefix("dialogs")))
        context.at("pump", context.now + VIP_RETRY_S, self.takeover.pump)

    def _restore(self) -> None:
        """Continues every call of this pair from etcd."""
        context, keys = self.context, self.context.keys
        dialogs = self._read["dialogs"]
        for key, raw in dialogs.items():
            parts = keys.split(key)
            if len(parts) != 3 or parts[1] != context.config.vip:
                continue
            try:
                secret = self._read["secret"].get(keys.secret_dialog(parts[1], parts[2]))
                crypto = decode(secret, SecretDialogsValue, key).keys if secret else []
                raw = show(raw, crypto)
                value = decode(raw, DialogsValue, key)
                owner = self._stored_value(keys.owner(value.call), OwnerValue)
                media = self._stored_value(keys.media(value.call), MediaValue)
                restore_call(context, self.calls, self.takeover, self.rehome, value, owner, media)
                call = self.calls.by_id.get(value.call)
                if call:
                    there = self._read["calls"]
                    beside = {
                        k: there[k] for k in (keys.owner(call.call), keys.media(call.call)) if k in there
                    }
                    self.calls.store.found(call.call, {key: raw, **beside})
                for leg in call.living() if call else ():
                    if call:
                        self.dialling.forks.watch(call, leg)
                    if call and leg.state == "ringing" and leg.target:
                        self.dialling.limit_ringing(call, leg)
                        self.dialling.outbound.watch(call, leg)
                record = keys.record(value.call)
                if call and owner and owner.edge != context.config.edge:
                    self.calls.touch(call)  # nodes look there for whose word counts
                if record in self._read["calls"]:
                    self.calls.record_stored(record, self._read["calls"][record])
            except (BadValue, KeyError, ValueError, TypeError) as error:
                context.note("edge", "a stored call could not be continued", level="error",
                             key=key, error=repr(error))  # fmt: skip
                context.count("edge_calls_unreadable")

    def _stored_value(self, key: str, kind: Any) -> Any:
        raw = self._read["calls"].get(key)
        return decode(raw, kind, key) if raw else None

    # --- people --------------------------------------------------------------------

    def _operator(self, event: OperatorRequest) -> None:
        status, body = self._answer(event.verb, event.args)
        self.context.emit(OperatorReply(request=event.request, status=status, body=body))

    def _answer(self, verb: str, args: Any) -> tuple[int, Any]:
        match verb:
            case "status":
                return 200, edge_view(self)
            case "calls":
                return 200, [call_view(call) for call in self.calls.by_id.values()]
            case "call":
                call = self.calls.by_id.get(str(args.get("call", "")))
                return (200, call_view(call)) if call else (404, {"error": "no such call at this edge"})
            case "mute":
                return self._mute(args)
            case "nodes":
                return 200, [
                    node_view(n, self.calls.load(name)) | self.watch.sentinels.view(name)
                    for name, n in self.watch.nodes.items()
                ]
            case "takeover":
                return self.drains.takeover(str(args.get("call", "")), str(args.get("to", "")))
            case "bindings":
                return 200, self.registrar.snapshot()
            case "trunks":
                return 200, self.trunks.view()
            case _:
                return 404, {"error": f"unknown verb {verb}"}

    def _mute(self, args: Any) -> tuple[int, Any]:
        call = self.calls.by_id.get(str(args.get("call", "")))
        leg = call.legs.get(str(args.get("leg", ""))) if call else None
        if call is None or leg is None or not leg.alive:
            return 404, {"error": "no such call at this edge" if call is None else "no such leg"}
        if not isinstance(args.get("muted"), bool):
            return 422, {"error": "muted: true or false?"}
        self.calls.mute(call, leg, args["muted"])
        return 200, call_view(call)
