"""A whole cluster in one world: the real edge and node machines, and fakes of all that
surrounds them, wired as the real processes are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ari_ha.core.machine import Effect, Event, Outcome, Refused, Unreachable
from ari_ha.core.ports.ari import AriCall, SetMaintenance
from ari_ha.core.ports.guard import PairWord, StandDown, TellGuard
from ari_ha.core.ports.link import SendLink
from ari_ha.core.ports.media import MediaReach, NgCommand
from ari_ha.core.ports.operator import OperatorReply
from ari_ha.core.ports.probe import ProbeRefused, ProbeReply, SendProbe, WallClock
from ari_ha.core.ports.recording import CloseRecording, OpenRecording
from ari_ha.core.ports.sip import SendSip, SipBytes, SipFlowClosed
from ari_ha.core.ports.store import StoreRead, StoreTxn, StoreUnwatch
from ari_ha.core.ports.web import WebRequest
from ari_ha.machines.acd_orders import AcdSettings
from ari_ha.machines.edge import FAMILIES as EDGE_FAMILIES
from ari_ha.machines.edge import EdgeMachine
from ari_ha.machines.edge_config import EdgeConfig, EdgeNode
from ari_ha.machines.node import FAMILIES as NODE_FAMILIES
from ari_ha.machines.node import NodeMachine
from ari_ha.machines.node_config import NodeConfig
from ari_ha.simulation import packets
from ari_ha.simulation.ears import Ears
from ari_ha.simulation.fake_asterisk import FakeAsterisk
from ari_ha.simulation.fake_phones import Phones
from ari_ha.simulation.fake_rtpengine import FakeRtpengine
from ari_ha.simulation.fake_site import FakeSite
from ari_ha.simulation.fake_store import Store, StoreClient
from ari_ha.simulation.links import AriLink, NodeLink
from ari_ha.simulation.office import Office
from ari_ha.simulation.process import DEAD, MachineProcess, Settle
from ari_ha.simulation.recorders import FakeRecorder
from ari_ha.simulation.replaced import Replaced
from ari_ha.simulation.sip_wire import Wire
from ari_ha.simulation.world import UTC_AT_START_S, Network, World
from ari_ha.sip.auth import ha1
from ari_ha.sip.flow import Flow
from ari_ha.wire.beat import RoleWord
from ari_ha.wire.ivr import IvrMenuValue, IvrStep
from ari_ha.wire.keyspace import (
    AgentValue,
    BindingValue,
    Keys,
    QueueConfigValue,
    ReachValue,
    SecretUserValue,
    UserValue,
    VipValue,
    encode,
)
from ari_ha.wire.sip_values import TrunkValue

CLUSTER = "sim"
VIP, EDGES = "pair1", ("edge1", "edge2")
EDGE_HOSTS = (("192.0.2.11", "10.0.0.11"), ("192.0.2.12", "10.0.0.12"))
"""Public and core address of each host the edge may be on"""
CARRIER, PHONES = "192.0.2.50", "192.0.2.60"
EDGE_PORTS = {"public-udp": 5060, "node-trunk": 5070, "node-agent": 5072, "node-resume": 5074}
HEADER_KEY = b"simulated header key"
QUEUE, NUMBER, IVR_NUMBER = "support", "6000", "6200"
QUEUE_NUMBER = "6999"
"""Transferred to it, a caller waits in the queue again."""
REALM, PASSWORD, TRUNK = "sim", "simulated", "carrier1"
MENUS = {
    "main": IvrMenuValue(
        menu="main", prompts=["sound:hello"], wait_ms=3_000, tries_max=2,
        choices={"1": IvrStep(do="queue", to=QUEUE), "2": IvrStep(do="menu", to="account")},
        otherwise=IvrStep(do="queue", to=QUEUE),
    ),
    "account": IvrMenuValue(
        menu="account", prompts=["sound:number"], wait_ms=3_000, between_ms=2_500, tries_max=2,
        collect="ACCOUNT", digits_max=8, otherwise=IvrStep(do="queue", to=QUEUE),
        collected=IvrStep(
            do="request", to="http://site/charge", lookup="http://site/outcome", timeout_ms=2_000,
            done=IvrStep(do="queue", to=QUEUE), failed=IvrStep(do="queue", to=QUEUE),
            unsure=IvrStep(do="queue", to=QUEUE),
        ),
    ),
}  # fmt: skip
"""The IVR everybody leaves for the queue, some by a step that must not happen twice."""
SUPERVISOR = "1900"
"""Address of record of a phone nobody is logged in at."""
GUARD_MIN_S, GUARD_MAX_S = 0.005, 0.08
"""From the start of an edge process to its guard's word."""
MEDIA_PING_S = 0.5
MEDIA_TIMEOUT_S = 60.0
"""rtpengine's own default"""
LEASE_TTL_S = 4.0


@dataclass
class Shape:
    """How big the cluster is."""

    nodes: int = 2
    agents: int = 3
    ring_timeout_ms: int = 8_000
    wrapup_ms: int = 500
    rona_max: int = 3
    clock_skew: float = 0.0
    """Monotonic clocks run up to this share too fast or too slow."""
    wall_offset_s: float = 0.0
    """Wall clocks are wrong by up to this much."""
    refusals: bool = True
    """Phones hear that a port was refused (ICMP) and give a request up; most do not, and repeat it."""
    pair: bool = False
    """Two hosts for the edge, and a guard that says which of them serves."""
    dials_out: bool = False
    """The carrier takes calls from us too."""
    records: bool = False
    """Nodes have recorders, and the queue's conversations are recorded."""


@dataclass
class Node:
    """One node: its Asterisk, its app, and the connection between them."""

    name: str
    host: str
    asterisk: FakeAsterisk
    app: MachineProcess
    ari: AriLink
    link: NodeLink
    recorder: FakeRecorder


@dataclass
class Traffic:
    """What was said, for checkers."""

    frames: list[tuple[float, str, str, Any]] = field(default_factory=list)


class Cluster:
    """Everything of one run. Build it, `start`, then let the world run."""

    def __init__(self, world: World, shape: Shape) -> None:
        self.world = world
        self.shape = shape
        self.network = Network(world)
        self.wire = Wire(world, self.network)
        self.store = Store(world, self.network)
        self.keys = Keys(CLUSTER)
        self.edge_host = 0
        """Which of `EDGE_HOSTS` the edge is on"""
        self.rehomed: list[float] = []
        """When its host died, and the other took over with its own addresses; or when only
        rtpengine lost its calls; and each look of a checker at it until an edge serves again"""
        self.relays: list[FakeRtpengine] = []
        self.relays += [self._new_relay(host) for host in range(len(EDGE_HOSTS))]
        self.media_away = False
        self.media_slow_s = 0.0
        """rtpengine's answers take up to this."""
        self.site = FakeSite(world)
        self.office = Office(world, self.store, CLUSTER)
        self._quiet_since: dict[str, float] = {}
        self.traffic = Traffic()
        self.replies: dict[str, OperatorReply] = {}
        self.at_relay: Callable[[NgCommand], Outcome] = self._at_relay
        """What rtpengine does with a command: for checkers, who look before and after"""
        self.on_edge: list[Callable[[EdgeMachine], None]] = []
        """Called with every edge machine that is made: planted bugs."""
        self.on_node: list[Callable[[NodeMachine], None]] = []
        """The same for node machines."""
        self.on_command: list[Callable[[NgCommand], None]] = []
        """Called after everything rtpengine was told."""
        self.edge = self._process(EDGES[0], EDGES[0], self._make_edge, self._edge_effect, self._edge_now)
        self.edge_client: StoreClient | None = None
        self.replaced: Replaced | None = None
        """The edge process that was replaced last while it was alive"""
        self.vip_key = self.keys.vip(VIP)
        self.vip_life = 0
        """The life of the edge that is the active one by etcd"""
        self.clients: dict[str, StoreClient] = {}
        self.nodes = [self._node(n) for n in range(1, shape.nodes + 1)]
        self.by_name = {node.name: node for node in self.nodes}
        self.carrier = Phones(world, self.wire, "carrier", CARRIER, self.edge_at("public-udp"))
        self.phones = Phones(world, self.wire, "phones", PHONES, self.edge_at("public-udp"))
        self.carrier.refusals = self.phones.refusals = shape.refusals
        self.ears = Ears(
            self.relays, [node.asterisk for node in self.nodes], [self.carrier, self.phones],
            self.network, EDGES[0],
        )  # fmt: skip
        self.agents = [f"{1001 + n}" for n in range(shape.agents)]

    # -- building

    def _new_relay(self, host: int) -> FakeRtpengine:
        public, core = EDGE_HOSTS[host]
        before = self.relays[host] if host < len(self.relays) else None
        return FakeRtpengine({"public": public, "core": core}, f"{self.world.now:.3f}", before)

    @property
    def relay(self) -> FakeRtpengine:
        """The media relay beside the edge."""
        return self.relays[self.edge_host]

    def edge_at(self, listener: str) -> tuple[str, int]:
        """Address and port of one of the edge's listeners, where it is now."""
        return EDGE_HOSTS[self.edge_host][listener != "public-udp"], EDGE_PORTS[listener]

    def _process(self, name: str, host: str, make: Any, perform: Any, perform_now: Any) -> MachineProcess:
        process = MachineProcess(
            self.world, name, host, make=make, perform=perform, perform_now=perform_now,
            instant=(SendSip, SendLink, SendProbe, OperatorReply, TellGuard, StandDown, StoreUnwatch),
        )  # fmt: skip
        skew, offset = self.shape.clock_skew, self.shape.wall_offset_s
        process.clock.rate = 1.0 + (self.world.between(-skew, skew) if skew else 0.0)
        process.clock.wall_offset_s = self.world.between(-offset, offset) if offset else 0.0
        return process

    def _node(self, number: int) -> Node:
        world, name, address = self.world, f"ast{number}", f"10.0.0.{30 + number}"
        asterisk = FakeAsterisk(world, self.wire, name, name, address)
        app = self._process(name, name, self._make_node, self._node_effect, self._node_now)
        asterisk.wall, link = app.clock, self._link(app)
        recorder = FakeRecorder(world, app, address)
        return Node(name, name, asterisk, app, AriLink(world, app, asterisk), link, recorder)

    def _link(self, app: MachineProcess) -> NodeLink:
        link, frames = NodeLink(self.world, self.network, self.edge, app), self.traffic.frames
        link.taps.append(lambda one, two, frame: frames.append((self.world.now, one, two, frame)))
        return link

    def _ids(self, process: MachineProcess, letter: str) -> Any:
        life, count = process.life, [0]

        def new_id() -> str:
            count[0] += 1
            return f"{letter}{life}x{count[0]}"

        return new_id

    def _make_edge(self, process: MachineProcess) -> EdgeMachine:
        nodes = {
            f"ast{n}": EdgeNode(f"ast{n}", f"10.0.0.{30 + n}", 5060) for n in range(1, self.shape.nodes + 1)
        }
        config = EdgeConfig(
            cluster=CLUSTER, edge=process.name, vip=VIP, realm=REALM,
            public_host=self.edge_at("public-udp")[0], public_port=5060,
            core_host=self.edge_at("node-trunk")[0], trunk_port=5070, agent_port=5072, resume_port=5074,
            nodes=nodes,
            trunks={TRUNK: {"hosts": [CARRIER], "dids": [NUMBER, IVR_NUMBER]}}, header_key=HEADER_KEY,
            process=f"life{process.life}", call_records=True, guarded=self.shape.pair,
        )  # fmt: skip
        machine = EdgeMachine(config, self._ids(process, "k"), self.world.rng.random)
        for change in self.on_edge:
            change(machine)
        return machine

    def _make_node(self, process: MachineProcess) -> NodeMachine:
        number = int(process.name.removeprefix("ast"))
        config = NodeConfig(
            cluster=CLUSTER, node=process.name, sip=f"10.0.0.{30 + number}:5060", link="link",
            edges=tuple((name, f"{EDGE_HOSTS[0][1]}:5070") for name in EDGES[: 1 + self.shape.pair]),
            header_key=HEADER_KEY,
            acd=AcdSettings(queue_log=True), new_call_endpoints=("edge-in-trunk",),
            records=self.shape.records,
        )  # fmt: skip
        machine = NodeMachine(config, self._ids(process, process.name), self.world.rng.random)
        for change in self.on_node:
            change(machine)
        return machine

    # -- starting

    def start(self) -> None:
        """Everything starts, etcd's directory first."""
        self._directory()
        self.carrier.begin()
        self.phones.begin()
        for node in self.nodes:
            node.asterisk.start()
            self.start_app(node)
        self.start_edge()
        self.office.start()

    def start_edge(self) -> None:
        """The edge process starts on its host; rtpengine there is another process."""
        for name in EDGE_PORTS:
            self.wire.listen(self.edge, *self.edge_at(name), self._sip_in(name), self._sip_refused(name))
        self.edge.start(WallClock(utc_s=self.edge.clock.utc()))
        prefixes = [
            f"{self.keys.prefix(f)}{VIP}/" if f == "dialogs" else self.keys.prefix(f) for f in EDGE_FAMILIES
        ]
        self.edge_client = StoreClient(self.store, self.edge, prefixes, LEASE_TTL_S)
        self.edge.post(self._reach())
        self.edge.tell_time()
        if self.shape.pair:
            self.world.after(self.world.between(GUARD_MIN_S, GUARD_MAX_S), self.edge.in_life(self._appoint))
        self._ping_media()
        if self.edge.life == 1:
            self.world.after(MEDIA_TIMEOUT_S / 4, self._media_timeout)

    def lose_relay(self) -> None:
        """rtpengine dies, and the next life of it knows nothing."""
        self.relays[self.edge_host] = self._new_relay(self.edge_host)
        self.rehomed.append(self.world.now)

    def rehome_edge(self) -> None:
        """The edge's host is gone with its addresses and its relay. The next life of the edge is
        on the other host, and far ends that try both addresses find it there."""
        self.edge.kill()
        self._end_replaced()
        self.wire.gone |= set(EDGE_HOSTS[self.edge_host])
        self.relays[self.edge_host] = self._new_relay(self.edge_host)
        self.edge_host = 1 - self.edge_host
        self.wire.gone -= set(EDGE_HOSTS[self.edge_host])
        self.relays[self.edge_host] = self._new_relay(self.edge_host)
        self.carrier.edge = self.phones.edge = self.edge_at("public-udp")
        self.rehomed.append(self.world.now)

    def switch_edge(self) -> None:
        """The edge process stops, and its address goes to the other host; call `start_edge`
        when it is there. rtpengine's calls are there already, by their own replication."""
        self.edge.kill()
        self._end_replaced()
        self.edge.name = self.edge.host = self.ears.relay_host = EDGES[self.edge.name == EDGES[0]]

    def replace_edge(self, relay: FakeRtpengine) -> Replaced:
        """The other host takes the address while the edge process stands still, or hears nobody: another
        life begins there, with ``relay``, and the old one runs on when it can."""
        self._end_replaced()
        old, self.replaced = self.edge, Replaced(self, self.relay)
        self.relays[self.edge_host] = relay
        other = self.ears.relay_host = EDGES[old.name == EDGES[0]]
        self.edge = self._process(other, other, self._make_edge, self._edge_effect, self._edge_now)
        self.edge.life = old.life
        for node in self.nodes:
            before, node.link = node.link, self._link(node.app)
            node.link.before, node.link.number, node.link.drop = before, before.number, before.drop
        self.start_edge()
        return self.replaced

    def _end_replaced(self) -> None:
        """The host of a life that was replaced is needed again: it is gone."""
        if self.replaced is not None:
            self.replaced.process.kill()

    def _appoint(self) -> None:
        """The guard beside the edge writes it into etcd, and says so."""
        self.store.led(self.edge.in_life(self._appointed))

    def _appointed(self) -> None:
        edge, process = self.edge.name, f"life{self.edge.life}"
        value = VipValue(edge=edge, since=UTC_AT_START_S + self.world.now, process=process)
        self.vip_life = self.edge.life
        self.store.put(self.vip_key, encode(value))
        self.edge.post(PairWord(word=RoleWord(edge=edge, process=process, revision=self.store.revision)))

    def start_app(self, node: Node) -> None:
        """The node app starts beside its Asterisk."""
        node.app.start(WallClock(utc_s=node.app.clock.utc()))
        prefixes = [self.keys.prefix(family) for family in NODE_FAMILIES]
        self.clients[node.name] = StoreClient(self.store, node.app, prefixes, LEASE_TTL_S)
        node.app.tell_time()

    def _reach(self) -> MediaReach:
        return MediaReach(reachable=not self.media_away, started=self.relay.started)

    def _ping_media(self) -> None:
        told, edge = [self._reach()], self.edge

        def ping() -> None:
            reach = self._reach()
            if reach != told[0]:
                told[0] = reach
                edge.post(reach)
            self.world.after(MEDIA_PING_S, edge.in_life(ping))

        self.world.after(MEDIA_PING_S, edge.in_life(ping))

    def _media_timeout(self) -> None:
        """rtpengine forgets a call by itself when nobody has spoken for a while."""
        talks = [t for phones in (self.carrier, self.phones) for t in phones.talks.values() if t.alive]
        spoken_to = {talk.remote for talk in talks}
        for ident, call in list(self.relay.calls.items()):
            if any((tag.host, tag.port) in spoken_to for tag in call.tags.values()):
                self._quiet_since.pop(ident, None)
            elif self.world.now - self._quiet_since.setdefault(ident, self.world.now) > MEDIA_TIMEOUT_S:
                del self.relay.calls[ident]
        self.world.after(MEDIA_TIMEOUT_S / 4, self._media_timeout)

    def _directory(self) -> None:
        """Agents at work, their phones registered, one queue."""
        put, keys, start = self.store.put, self.keys, UTC_AT_START_S - 100.0
        put(
            keys.queue_config(QUEUE),
            encode(
                QueueConfigValue(
                    queue=QUEUE, ring_timeout_ms=self.shape.ring_timeout_ms, wrapup_ms=self.shape.wrapup_ms,
                    rona_max=self.shape.rona_max, no_answer_delay_ms=500, reject_delay_ms=500,
                    busy_delay_ms=500, numbers=[QUEUE_NUMBER], record=self.shape.records,
                )
            ),
        )  # fmt: skip
        if self.shape.dials_out:
            trunk = TrunkValue(
                trunk=TRUNK, hosts=[CARRIER], dids=[NUMBER, IVR_NUMBER], address=f"{CARRIER}:5060",
                prefixes=["+49"],
            )  # fmt: skip
            put(keys.trunk(TRUNK), encode(trunk))
        for name, menu in MENUS.items():
            put(keys.ivr(name), encode(menu))
        self._phone(SUPERVISOR)
        for n, agent in enumerate(self.agents):
            put(keys.user(agent), encode(UserValue(user=agent, aor=agent, agent=agent)))
            secret = SecretUserValue(
                user=agent, realm=REALM, ha1_md5=ha1("MD5", agent, REALM, PASSWORD),
                ha1_sha256=ha1("SHA-256", agent, REALM, PASSWORD),
            )  # fmt: skip
            put(keys.secret_user(agent), encode(secret))
            self._phone(agent)
            put(
                keys.agent(agent),
                encode(
                    AgentValue(
                        agent=agent, intent="available", device=agent, queues={QUEUE: 0}, logged_in=start,
                        intent_since=start, work_since=start, idle_since=start + n,
                    )
                ),
            )  # fmt: skip
            put(keys.reach(agent), encode(ReachValue(agent=agent, device="ok", device_since=start)))

    def _phone(self, aor: str) -> None:
        """A registered phone."""
        binding = BindingValue(
            aor=aor, contact=f"sip:{aor}@{PHONES}:5060", host=PHONES, port=5060, pair=VIP,
            expires=UTC_AT_START_S + 86_400.0, edge=EDGES[0],
        )  # fmt: skip
        self.store.put(self.keys.binding(aor, "contact"), encode(binding))

    # -- the edge's effects

    def _sip_in(self, listener: str) -> Any:
        edge = self.edge

        def receive(data: bytes, host: str, port: int) -> None:
            edge.post(SipBytes(data=data, flow=Flow(listener, "udp", host, port)))  # type: ignore[arg-type]

        return receive

    def _sip_refused(self, listener: str) -> Any:
        edge = self.edge

        def refused(host: str, port: int) -> None:
            flow: Any = Flow(listener, "udp", host, port)
            edge.post(SipFlowClosed(flow=flow, reason="connection refused", refused=True))

        return refused

    def _at_relay(self, effect: NgCommand) -> Outcome:
        return self.relay.command(effect.command, effect.body)

    def _edge_effect(self, process: MachineProcess, effect: Effect, settle: Settle) -> None:
        world = self.world
        if process is not self.edge:
            assert self.replaced is not None
            self.replaced.perform(effect, settle)
        elif isinstance(effect, NgCommand):
            if self.media_away:
                world.after(0.001, lambda: settle(Unreachable("connection refused")))
                return

            def arrive() -> None:
                if effect.command == "query":
                    packets.count(self.relay, self.ears, str(effect.body["call-id"]), world.now)
                outcome = self.at_relay(effect)
                for told in self.on_command:
                    told(effect)
                slow_s = world.between(0.0, self.media_slow_s) if self.media_slow_s else 0.0
                world.after(slow_s + way_s(), lambda: settle(outcome))

            def way_s() -> float:
                # so many questions would leave no seed's weather as it was
                return 0.0003 if effect.command == "query" else world.between(0.0001, 0.0005)

            world.after(way_s(), arrive)
        elif isinstance(effect, StoreTxn | StoreRead):
            assert self.edge_client is not None
            self.edge_client.perform(effect, settle)
        else:
            self._nobody(effect, settle)

    def _edge_now(self, process: MachineProcess, effect: Effect) -> None:
        if process is not self.edge:
            assert self.replaced is not None
            self.replaced.perform_now(effect)
        elif isinstance(effect, SendSip):
            flow = effect.flow
            self.wire.send(self.edge_at(flow.listener), (flow.host, flow.port), effect.data)
        elif isinstance(effect, SendLink):
            node = self.by_name.get(effect.peer)
            if node:
                node.link.send(process, effect.frame)
        elif isinstance(effect, SendProbe):
            self._probe(effect)
        elif isinstance(effect, StoreUnwatch):
            assert self.edge_client is not None
            self.edge_client.unwatch(effect.prefix)
        elif isinstance(effect, OperatorReply):
            self.replies[effect.request] = effect

    def _probe(self, probe: SendProbe) -> None:
        """OPTIONS on a connected socket: a reply, a refusal of the kernel, or nothing."""
        node, network, edge = self.by_name[probe.node], self.network, self.edge

        def back(event: Event) -> None:
            network.datagram(node.host, edge.host, lambda: edge.deliver(event))

        def arrive() -> None:
            if node.host in self.wire.hosts_down:
                return
            if node.asterisk.state == DEAD:
                back(ProbeRefused(node=probe.node))
            else:
                node.asterisk.in_life(lambda: back(ProbeReply(node=probe.node, n=probe.n)))()

        network.datagram(edge.host, node.host, arrive)

    # -- a node's effects

    def _node_effect(self, process: MachineProcess, effect: Effect, settle: Settle) -> None:
        node = self.by_name[process.name]
        if isinstance(effect, AriCall | SetMaintenance):
            if node.ari.up:
                node.ari.perform(effect, settle)
            else:
                self.world.after(0.001, lambda: settle(Unreachable("not connected")))
        elif isinstance(effect, WebRequest):
            self.site.perform(effect, settle)
        elif isinstance(effect, OpenRecording | CloseRecording):
            node.recorder.perform(effect, settle)
        elif isinstance(effect, StoreTxn | StoreRead):
            self.clients[node.name].perform(effect, settle)
        else:
            self._nobody(effect, settle)

    def _node_now(self, process: MachineProcess, effect: Effect) -> None:
        if isinstance(effect, SendLink):
            links = [self.by_name[process.name].link]
            if self.replaced is not None:
                links.append(self.replaced.links[process.name])
            for link in [link for link in links if link.edge.name == effect.peer][:1]:
                link.send(process, effect.frame)
        elif isinstance(effect, OperatorReply):
            self.replies[effect.request] = effect

    def _nobody(self, effect: Effect, settle: Settle) -> None:
        outcome: Outcome = Refused(f"nobody performs {type(effect).__name__}")
        self.world.after(0.0, lambda: settle(outcome))
