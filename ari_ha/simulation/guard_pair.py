"""Two edge hosts in a world: the real guards and edge machines, two kernels with fence and
addresses, heartbeats on two networks, and the store.

What counts is looked at from outside: which hosts would answer for the pair's address at
this instant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ari_ha.core.machine import Done, Effect, Outcome, Refused
from ari_ha.core.ports.guard import (
    AddressesDown,
    AddressesUp,
    AnnounceAddresses,
    CloseFence,
    OpenFence,
    PairWord,
    RelayActive,
    RelayClean,
    SendBeat,
    StandDown,
    TellEdge,
    TellGuard,
)
from ari_ha.core.ports.link import SendLink
from ari_ha.core.ports.media import MediaReach, NgCommand
from ari_ha.core.ports.operator import OperatorReply, OperatorRequest
from ari_ha.core.ports.probe import SendProbe, WallClock
from ari_ha.core.ports.sip import CloseSip, SendSip
from ari_ha.core.ports.store import StoreRead, StoreTxn, StoreUnwatch
from ari_ha.machines.edge import FAMILIES as EDGE_FAMILIES
from ari_ha.machines.edge import EdgeMachine
from ari_ha.machines.edge_config import EdgeConfig
from ari_ha.machines.guard import FAMILIES as GUARD_FAMILIES
from ari_ha.machines.guard import GuardMachine
from ari_ha.machines.guard_config import GuardConfig, GuardTimings
from ari_ha.simulation.database.pair import SteadyClient
from ari_ha.simulation.fake_store import HOST as ETCD
from ari_ha.simulation.fake_store import Store
from ari_ha.simulation.process import DEAD, RUNNING, MachineProcess, Settle
from ari_ha.simulation.world import Network, World
from ari_ha.wire.keyspace import Keys

CLUSTER, VIP = "sim", "pair1"
EDGES = ("edge1", "edge2")
WORLD = "callers"
"""Where carriers and phones are."""
SECOND = "-public"
"""A host's second network; its first is where etcd is."""
LEASE_TTL_S = 5.0
EDGE_START_S, GUARD_START_S = 1.5, 1.0
KERNEL_MIN_S, KERNEL_MAX_S = 0.0005, 0.005
RELAY_MIN_S, RELAY_MAX_S = 0.01, 0.1
RELAY_START_MIN_S, RELAY_START_MAX_S = 0.1, 1.2


@dataclass
class Kernel:
    """What of a host goes on when its processes do not."""

    addresses: bool = False
    fence_until: float = 0.0
    lost: Callable[[], bool] = field(default=lambda: False)
    """Whether the next change of addresses is refused."""


class GuardPair:
    """Everything of one run."""

    def __init__(self, world: World, clock_skew: float = 0.0) -> None:
        self.world = world
        self.network = Network(world)
        self.store = Store(world, self.network)
        self.keys = Keys(CLUSTER)
        self.kernels = {edge: Kernel() for edge in EDGES}
        self.guards: dict[str, MachineProcess] = {}
        self.edges: dict[str, MachineProcess] = {}
        self.clients: dict[str, SteadyClient] = {}
        self.alive = dict.fromkeys(EDGES, True)
        """Hosts with power."""
        self.on_guard: list[Callable[[GuardMachine], None]] = []
        """Called with every guard that is made: planted bugs."""
        self.served: dict[int, str] = {}
        """revision -> life of the edge process that served by it"""
        self.stale_openings = 0
        for edge in EDGES:
            self.guards[edge] = self._process(f"guard-{edge}", edge, self._make_guard, self._guard, (
                SendBeat, TellEdge, OpenFence, CloseFence, AnnounceAddresses, OperatorReply))  # fmt: skip
            self.edges[edge] = self._process(f"edge-{edge}", edge, self._make_edge, self._edge, (
                SendSip, CloseSip, SendLink, SendProbe, OperatorReply, TellGuard, StandDown,
                StoreUnwatch))  # fmt: skip
            for process in (self.guards[edge], self.edges[edge]):
                process.clock.rate = 1.0 + (world.between(-clock_skew, clock_skew) if clock_skew else 0.0)

    # -- building

    def _process(
        self,
        name: str,
        host: str,
        make: Callable[[MachineProcess], GuardMachine | EdgeMachine],
        perform: Callable[[MachineProcess, Effect, Settle], None],
        instant: tuple[type[Effect], ...],
    ) -> MachineProcess:
        return MachineProcess(
            self.world, name, host, make=make, perform=perform, perform_now=self._now, instant=instant
        )

    def _make_guard(self, process: MachineProcess) -> GuardMachine:
        peer = next(edge for edge in EDGES if edge != process.host)
        life = f"{process.name}.{process.life}"
        machine = GuardMachine(GuardConfig(CLUSTER, VIP, process.host, peer, life, GuardTimings()))
        for change in self.on_guard:
            change(machine)
        return machine

    def _make_edge(self, process: MachineProcess) -> EdgeMachine:
        config = EdgeConfig(
            cluster=CLUSTER, edge=process.host, vip=VIP, realm="sim", public_host="10.0.0.10",
            public_port=5060, core_host="10.0.1.10", trunk_port=5070, agent_port=5072, resume_port=5074,
            header_key=b"k" * 16,
            process=f"{process.name}.{process.life}", guarded=True,
        )  # fmt: skip
        serial = iter(range(10**9))
        return EdgeMachine(config, lambda: f"{process.life}-{next(serial)}", self.world.rng.random)

    def start(self) -> None:
        """Both hosts, not quite at once."""
        for edge in EDGES:
            self.world.after(self.world.between(0.0, 0.5), lambda edge=edge: self.start_host(edge))

    def start_host(self, edge: str) -> None:
        """Power: an empty kernel, then the processes."""
        self.alive[edge] = True
        self.kernels[edge] = Kernel()
        self.start_edge(edge)
        self.start_guard(edge)

    def start_edge(self, edge: str) -> None:
        """A new life of the edge process."""
        self._start(self.edges[edge], [self.keys.prefix(family) for family in EDGE_FAMILIES])

    def start_guard(self, edge: str) -> None:
        """A new life of the guard."""
        process = self.guards[edge]
        self._start(process, [self.keys.prefix(family) for family in GUARD_FAMILIES])
        process.post(MediaReach(reachable=True, started="1"))

    def _start(self, process: MachineProcess, prefixes: list[str]) -> None:
        if process.state != DEAD or not self.alive[process.host]:
            return
        process.start(WallClock(utc_s=process.clock.utc()))
        client = SteadyClient(self.store, process, prefixes, ttl_s=LEASE_TTL_S)
        self.clients[process.name] = client

    # -- effects

    def _guard(self, process: MachineProcess, effect: Effect, settle: Settle) -> None:
        world, kernel = self.world, self.kernels[process.host]
        match effect:
            case StoreTxn() | StoreRead():
                self.clients[process.name].perform(effect, settle)
            case AddressesUp() | AddressesDown():
                up = isinstance(effect, AddressesUp)

                def changed() -> None:
                    if kernel.lost():
                        settle(Refused("device busy"))
                        return
                    kernel.addresses = up
                    settle(Done())

                world.after(world.between(KERNEL_MIN_S, KERNEL_MAX_S), process.in_life(changed))
            case RelayActive() | RelayClean():
                world.after(world.between(RELAY_MIN_S, RELAY_MAX_S), lambda: settle(Done()))
                if isinstance(effect, RelayClean):
                    began = MediaReach(reachable=True, started=f"{world.now:.3f}")
                    wait_s = RELAY_MAX_S + world.between(RELAY_START_MIN_S, RELAY_START_MAX_S)
                    world.after(wait_s, process.in_life(lambda: process.post(began)))
            case _:
                settle(Refused(f"nobody performs {type(effect).__name__}"))

    def _edge(self, process: MachineProcess, effect: Effect, settle: Settle) -> None:
        if isinstance(effect, StoreTxn | StoreRead):
            self.clients[process.name].perform(effect, settle)
        elif isinstance(effect, NgCommand):
            done: Outcome = Done({"result": "ok"})
            self.world.after(0.001, lambda: settle(done))
        else:
            settle(Refused(f"nobody performs {type(effect).__name__}"))

    def _now(self, process: MachineProcess, effect: Effect) -> None:
        host, kernel = process.host, self.kernels[process.host]
        match effect:
            case SendBeat(beat=beat):
                peer = next(edge for edge in EDGES if edge != host)
                for path in ("", SECOND):
                    self._word(host + path, peer + path, self.guards[peer], beat)
            case TellEdge(word=word):
                self._word(host, host, self.edges[host], word)
            case TellGuard(word=word):
                self._word(host, host, self.guards[host], word)
            case OpenFence(ttl_s=ttl_s):
                kernel.fence_until = self.world.now + ttl_s
                self._opened(host)
            case CloseFence():
                kernel.fence_until = 0.0
            case StoreUnwatch(prefix=prefix):
                self.clients[process.name].unwatch(prefix)
            case StandDown():
                self.world.after(0.0, lambda: self._stood_down(process))
            case _:
                pass  # what a guard announces or an edge sends is of no interest here

    def _opened(self, host: str) -> None:
        """Counts openings by a host while the other answers by a newer revision."""
        for other in self.speakers():
            if other != host and self.guard(other).revision > self.guard(host).revision:
                self.stale_openings += 1
                self.world.say(host, "opens its fence although another answers")

    def _word(self, one: str, two: str, to: MachineProcess, word: object) -> None:
        self.network.datagram(one, two, lambda: to.deliver(PairWord(word=word)))

    def _stood_down(self, process: MachineProcess) -> None:
        if process.state == RUNNING:
            process.kill()
            self.world.after(EDGE_START_S, lambda: self.start_edge(process.host))

    # -- faults

    def kill_host(self, edge: str) -> None:
        """The power is gone."""
        self.alive[edge] = False
        self.guards[edge].kill()
        self.edges[edge].kill()
        self.kernels[edge] = Kernel()

    def kill_guard(self, edge: str) -> None:
        """Its parent starts it again."""
        self.guards[edge].kill()
        self.world.after(GUARD_START_S, lambda: self.start_guard(edge))

    def kill_edge(self, edge: str) -> None:
        """Its parent starts it again."""
        self.edges[edge].kill()
        self.world.after(EDGE_START_S, lambda: self.start_edge(edge))

    def cut(self, edge: str) -> None:
        """Both cables are pulled."""
        peer = next(other for other in EDGES if other != edge)
        self.network.cut_off(edge, [peer, ETCD])
        self.network.cut_off(edge + SECOND, [peer + SECOND, WORLD])

    def deafen(self) -> None:
        """No heartbeat arrives."""
        for path in ("", SECOND):
            self.network.cut_off(EDGES[0] + path, [EDGES[1] + path])

    def heal(self) -> None:
        """Everything is plugged in, thawed, powered."""
        self.network.heal()
        self.store.available = True
        for edge in EDGES:
            for process in (self.guards[edge], self.edges[edge]):
                process.thaw()
            if not self.alive[edge]:
                self.start_host(edge)

    def switchover(self) -> None:
        """Somebody asks for it."""
        for edge in EDGES:
            if self.guards[edge].state == RUNNING:
                self.guards[edge].post(OperatorRequest(request="r", verb="switchover"))

    # -- looking

    def speakers(self) -> list[str]:
        """Hosts that would answer for the address now."""
        now = self.world.now
        return [
            edge
            for edge in EDGES
            if self.alive[edge]
            and self.kernels[edge].addresses
            and self.kernels[edge].fence_until > now
            and not self.network.cut(edge + SECOND, WORLD)
        ]

    def guard(self, edge: str) -> GuardMachine:
        """The guard's machine of the present life."""
        machine = self.guards[edge].machine
        assert isinstance(machine, GuardMachine)
        return machine

    def serving(self, edge: str) -> int:
        """The revision the edge process serves by, 0 for none."""
        process = self.edges[edge]
        machine = process.machine
        if process.state == DEAD or not isinstance(machine, EdgeMachine) or machine.role.down:
            return 0
        return machine.context.edge_revision if machine.serving else 0
