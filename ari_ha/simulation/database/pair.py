"""Two servers, their real watchers, the store, and the wires between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ari_ha.core.machine import Done, Effect, Outcome, Refused
from ari_ha.core.ports.database import (
    ArchiveErrant,
    DatabaseDo,
    KillServer,
    Observe,
    PeerSaid,
    Rebuild,
    SendPeer,
    ServerLife,
    StartServer,
)
from ari_ha.core.ports.operator import OperatorReply, OperatorRequest
from ari_ha.core.ports.probe import WallClock
from ari_ha.core.ports.store import KeyValue, LeaseState, StoreRead, StoreTxn
from ari_ha.machines.database import DatabaseMachine
from ari_ha.machines.database_config import (
    CIRCULAR,
    MYSQL,
    REPLICA,
    SYNC,
    DatabaseConfig,
    DatabaseTimings,
    Server,
)
from ari_ha.machines.database_steps import LANE
from ari_ha.simulation.database.fake_server import FakeServer
from ari_ha.simulation.fake_store import HOST as ETCD
from ari_ha.simulation.fake_store import LEASE_MARGIN_S, LOOK_EVERY_S, RENEWALS_PER_TTL, Store, StoreClient
from ari_ha.simulation.process import DEAD, RUNNING, MachineProcess, Settle
from ari_ha.simulation.world import Network, World
from ari_ha.wire.database_keys import DatabaseKeys

CLUSTER, DATABASE = "sim", "cdr"
NAMES = ("db1", "db2")
START_MIN_S, START_MAX_S = 0.3, 1.5


class SteadyClient(StoreClient):
    """A client that goes on renewing after an absence too short to be noticed, and gets
    the changes it missed in that time, as the real one resumes its stream."""

    _chain = 0
    _missed = False

    def _committed(self, changes: list[tuple[int, str, KeyValue | None]]) -> None:
        self._missed = self._missed or not self._connected()
        if not self._missed:
            super()._committed(changes)

    def _catch_up(self) -> None:
        self._missed = False
        super()._catch_up()

    def _look(self) -> None:
        if self._missed and self.reachable is True and self._connected():
            self._catch_up()
        super()._look()

    def _renew(self) -> None:
        self._chain += 1
        self._renew_again(self._chain)

    def _renew_again(self, chain: int) -> None:
        if chain != self._chain:
            return
        if self._connected() and self.reachable is True:
            self._renew_now()
            pause_s = self.ttl_s / RENEWALS_PER_TTL
        else:
            pause_s = LOOK_EVERY_S
        self._again(pause_s, lambda: self._renew_again(chain))

    def _renew_now(self) -> None:
        sent = self.process.clock.monotonic()
        if not self.lease or not self.store.renew(self.lease):
            if self._held:
                self._held = False
                self.process.post(LeaseState(held=False, lease=self.lease))
            self.lease = self.store.grant(self.ttl_s)
        self._held, self._held_until = True, sent + self.ttl_s - LEASE_MARGIN_S
        self.process.post(LeaseState(held=True, until=self._held_until, lease=self.lease))


@dataclass
class Shape:
    """What kind of pair."""

    flavour: str = MYSQL
    shape: str = REPLICA
    mode: str = SYNC
    clock_skew: float = 0.0
    slow_commits: float = 0.03
    timings: DatabaseTimings = field(default_factory=DatabaseTimings)


class Pair:
    """Everything of one run but the clients."""

    def __init__(self, world: World, shape: Shape) -> None:
        self.world = world
        self.shape = shape
        self.network = Network(world)
        self.store = Store(world, self.network)
        self.keys = DatabaseKeys(CLUSTER, DATABASE)
        self.servers: dict[str, FakeServer] = {}
        self.watchers: dict[str, MachineProcess] = {}
        self.clients: dict[str, StoreClient] = {}
        self.replies: list[OperatorReply] = []
        self.on_machine: list[Callable[[DatabaseMachine], None]] = []
        """Called with every machine that is made: planted bugs."""
        self.before_step: Callable[[str, Effect], bool] = lambda name, effect: False
        """True: the watcher dies before this step is carried out."""
        self.after_step: Callable[[str, Effect], bool] = lambda name, effect: False
        """True: it dies when the step is carried out, before it knows."""
        self.reign = 0
        self.reigns: dict[str, int] = {}
        self._requests = 0
        for number, name in enumerate(NAMES, 1):
            server = FakeServer(
                world, self.network, name, number, shape.flavour, own_domain=shape.shape == CIRCULAR
            )
            server.slow_commits = shape.slow_commits
            server.told = self._teller(name)
            server.on_open = self._opened
            self.servers[name] = server
            self.watchers[name] = self._watcher(name)
        for server in self.servers.values():
            server.peers = self.servers

    # -- building

    def _watcher(self, name: str) -> MachineProcess:
        process = MachineProcess(
            self.world, f"watch-{name}", name, make=lambda p: self._make(name, p),
            perform=lambda p, effect, settle: self._perform(name, effect, settle),
            perform_now=lambda p, effect: self._perform_now(name, effect),
            instant=(SendPeer, OperatorReply),
        )  # fmt: skip
        skew = self.shape.clock_skew
        process.clock.rate = 1.0 + (self.world.between(-skew, skew) if skew else 0.0)
        return process

    def config(self, name: str, process: str) -> DatabaseConfig:
        """What the watcher of ``name`` is told."""
        return DatabaseConfig(
            cluster=CLUSTER, database=DATABASE, server=name, process=process,
            servers={server: Server(server) for server in NAMES},
            flavour=self.shape.flavour, shape=self.shape.shape, mode=self.shape.mode,
            timings=self.shape.timings,
        )  # fmt: skip

    def _make(self, name: str, process: MachineProcess) -> DatabaseMachine:
        config = self.config(name, f"{name}-{process.life}")
        machine = DatabaseMachine(config, process.clock.monotonic())
        for change in self.on_machine:
            change(machine)
        return machine

    def machine(self, name: str) -> DatabaseMachine:
        """The machine of the present life."""
        machine = self.watchers[name].machine
        assert isinstance(machine, DatabaseMachine)
        return machine

    def start(self) -> None:
        """Everything, at once."""
        for name in NAMES:
            self.servers[name].start()
            self.start_watcher(name)

    def start_watcher(self, name: str) -> None:
        """A new life of a watcher."""
        process, server = self.watchers[name], self.servers[name]
        if process.state != DEAD:
            return
        alive = server.state != DEAD
        process.start(
            WallClock(utc_s=process.clock.utc()),
            ServerLife(alive=alive, life=server.life_name if alive else ""),
        )
        ttl_s = self.shape.timings.lease_ttl_s
        self.clients[name] = SteadyClient(self.store, process, [self.keys.root], ttl_s=ttl_s)

    def _teller(self, name: str) -> Callable[[bool, str], None]:
        def tell(alive: bool, life: str) -> None:
            if self.watchers[name].state != DEAD:
                self.watchers[name].deliver(ServerLife(alive=alive, life=life))

        return tell

    def _opened(self, server: FakeServer) -> None:
        self.reign += 1
        self.reigns[server.name] = self.reign
        self.world.say(server.name, f"is open (reign {self.reign})")

    # -- effects

    def _perform(self, name: str, effect: Effect, settle: Settle) -> None:
        process = self.watchers[name]
        step = effect.lane == LANE
        if step and self.before_step(name, effect):
            process.kill()
            return
        if self.world.tell and not isinstance(effect, Observe) and step:
            what = effect.verb if isinstance(effect, DatabaseDo) else type(effect).__name__
            self.world.say(process.name, f"-> {what} {getattr(effect, 'tag', '')}")
        if step:
            inner = settle

            def settle(outcome: Outcome) -> None:
                if self.after_step(name, effect):
                    process.kill()
                else:
                    inner(outcome)

        self._carry_out(name, effect, settle)

    def _carry_out(self, name: str, effect: Effect, settle: Settle) -> None:
        server, process = self.servers[name], self.watchers[name]
        world = self.world
        if isinstance(effect, StoreTxn | StoreRead):
            self.clients[name].perform(effect, settle)
        elif isinstance(effect, Observe):
            server.observe(settle)
        elif isinstance(effect, DatabaseDo):
            server.do(effect.verb, effect.args, settle)
        elif isinstance(effect, KillServer):

            def killed() -> None:
                server.kill()
                settle(Done())

            world.after(0.01, killed)
        elif isinstance(effect, StartServer):
            self._start_server(server, effect.truncate, settle)
        elif isinstance(effect, ArchiveErrant):
            server.archive(settle)
        elif isinstance(effect, Rebuild):
            life = process.life
            server.rebuild(effect.donor, lambda: process.life == life and process.state == RUNNING, settle)
        else:
            settle(Refused(f"nobody performs {type(effect).__name__}"))

    def _start_server(self, server: FakeServer, truncate: bool, settle: Settle) -> None:
        life = server.life

        def up() -> None:
            if server.state == DEAD and server.life == life:
                server.start(truncate)
            settle(Done(server.life_name))

        self.world.after(self.world.between(START_MIN_S, START_MAX_S), up)

    def _perform_now(self, name: str, effect: Effect) -> None:
        if isinstance(effect, SendPeer):
            message, peer = effect.message, effect.peer
            if peer in self.watchers:
                self.network.datagram(name, peer, lambda: self._heard(peer, name, message))
        elif isinstance(effect, OperatorReply):
            self.replies.append(effect)
            self.world.say("operator", f"{effect.request}: {effect.status} {effect.body}")

    def _heard(self, peer: str, sender: str, message: Mapping[str, Any]) -> None:
        if self.watchers[peer].state != DEAD:
            self.watchers[peer].deliver(PeerSaid(peer=sender, message=message))

    # -- operators

    def ask(self, name: str, verb: str, **args: Any) -> str:
        """An operator asks a watcher."""
        self._requests += 1
        request = f"r{self._requests}"
        if self.watchers[name].state == RUNNING:
            self.watchers[name].post(OperatorRequest(request=request, verb=verb, args=args))
        return request

    # -- looking

    def says_writable(self, name: str) -> bool:
        """What the health check of ``name`` answers now."""
        process = self.watchers[name]
        if process.state != RUNNING or process.machine is None:
            return False
        return self.machine(name).writable(process.clock.monotonic())[0]

    def value(self, key: str) -> Any:
        """What the store has under ``key``, decoded."""
        import msgspec

        item = self.store.keys.get(key)
        return msgspec.json.decode(item.value) if item else None

    def cut(self, one: str, two: str, both: bool = True) -> None:
        """Nothing gets from one host to the other."""
        self.network.cut_off(one, [two], both)


__all__ = ["CLUSTER", "DATABASE", "ETCD", "NAMES", "Pair", "Shape"]
