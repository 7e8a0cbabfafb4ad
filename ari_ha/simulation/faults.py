"""What goes wrong, drawn per seed: every run has its own mix, its own pace, and faults
it never sees (a swarm finds more than one fixed storm).

Kept out on purpose, because they are stated limits: the edge dies while etcd is away, has
only just come back, or a write is in doubt; media relay and edge lose their host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ari_ha.machines.edge import EdgeMachine
from ari_ha.machines.edge_config import EdgeTimings
from ari_ha.simulation.cluster import Cluster, Node
from ari_ha.simulation.fake_store import HOST as ETCD
from ari_ha.simulation.fake_store import StoreClient
from ari_ha.simulation.process import DEAD, FROZEN, MachineProcess
from ari_ha.simulation.replaced import Comeback
from ari_ha.wire.keyspace import DrainValue, encode

ETCD_SETTLED_S = 4.0
"""After etcd was away, the edge's journal is taken to be written by then."""
KINDS = (
    "asterisk-kill", "asterisk-stop", "asterisk-freeze", "app-kill", "app-freeze", "node-reboot", "node-cut",
    "node-cut-one-way", "node-cut-etcd", "edge-kill", "edge-freeze", "etcd-away", "relay-away",
    "lease-revoked", "compaction", "clock-step",
)  # fmt: skip

HARD_KINDS = (
    "relay-slow", "etcd-slow", "compaction-behind", "two-nodes", "all-nodes", "survivor-kill", "host-crash",
)  # fmt: skip
"""Faults of the hard plan: slow servers, and more than one thing at a time."""
REHOME_KINDS = ("edge-rehome", "relay-lost")
"""Faults after which phones are told where to send: the edge's host where no address moves, or
an rtpengine that keeps its calls nowhere."""
CUT_KINDS = ("node-unheard", "node-deaf")
"""A node's network that carries one way only, for everything: edge and etcd."""
LEADER_KINDS = ("etcd-election",)
"""etcd's leader dies, and its members elect another."""
REPLACED_KINDS = ("edge-zombie",)
"""An edge process that stood still, or was cut off, runs on though another has taken its place."""
PURPOSE_KINDS = ("drain",)
"""What operators do, and may do while anything else goes wrong."""
PAIR_KINDS = ("edge-switch",)
"""Only where the edge has two hosts."""
MORE_KINDS = ("node-loss", "etcd-full", "all-hosts", "edge-and-node")
"""Faults of the full plan."""
FULL_KINDS = (*KINDS, *HARD_KINDS, *PURPOSE_KINDS, *PAIR_KINDS, *MORE_KINDS)
EVERYTHING_KINDS = (*FULL_KINDS, *REHOME_KINDS, *CUT_KINDS)
KNOWN_KINDS = (*EVERYTHING_KINDS, *LEADER_KINDS, *REPLACED_KINDS)
ELECTION_MIN_S, ELECTION_MAX_S = 0.05, 3.0
BEHIND_MAX_S = 2.0
"""A member that does not hear the new leader is left by its clients within that."""
AIMED_AT = ("dials", "refers", "types", "holds", "answers")
AIMED_WITHIN_S, AIMED_APART_S = (0.01, 1.0), 0.5
"""In the middle of it, or when it has just been done; not two at once"""
DRAINED_WITHIN_S = 3.0
"""A node that is drained is empty by then, if another takes calls and nothing else goes wrong."""


WEATHER = ("pause_s", "loss", "duplicate", "slow", "reply_lost", "request_lost", "lag_s", "office_s", "doubt",
           "aimed")  # fmt: skip
"""Names of what an `Odds` has beside its kinds."""


@dataclass
class Odds:
    """One seed's mix."""

    kinds: tuple[str, ...] = KINDS
    pause_s: float = 3.0
    """Mean time between two faults."""
    loss: float = 0.0
    duplicate: float = 0.0
    slow: float = 0.0
    reply_lost: float = 0.0
    request_lost: float = 0.0
    lag_s: float = 0.0
    office_s: float = 0.0
    """Mean time between two faults of clerks and database; 0: there are none."""
    doubt: float = 0.0
    aimed: float = 0.0
    """How probable it is that a fault strikes just after somebody asked for something."""

    def __str__(self) -> str:
        weather = " ".join(f"{name}={getattr(self, name):.3g}" for name in WEATHER)
        return f"{','.join(self.kinds)} {weather}"


def draw_odds(cluster: Cluster, allowed: tuple[str, ...] = KINDS, aimed: bool = False) -> Odds:
    """This seed's mix."""
    world = cluster.world
    kinds = tuple(kind for kind in allowed if world.chance(0.5))

    def sometimes(share: float, most: float) -> float:
        return world.between(0.0, most) if world.chance(share) else 0.0

    return Odds(
        kinds=kinds,
        pause_s=world.between(1.0, 6.0),
        loss=sometimes(0.4, 0.05),
        duplicate=sometimes(0.3, 0.05),
        slow=sometimes(0.3, 0.05),
        reply_lost=sometimes(0.3, 0.05),
        request_lost=sometimes(0.3, 0.05),
        lag_s=sometimes(0.4, 0.5),
        office_s=world.rng.choice((0.0, 2.0, 5.0)),
        doubt=sometimes(0.5, 0.3),
        aimed=world.rng.choice((0.0, 0.2, 0.6)) if aimed else 0.0,
    )


@dataclass
class Faults:
    """Makes things go wrong between `begin` and `stop`; `stop` mends everything."""

    cluster: Cluster
    odds: Odds
    active: bool = False
    not_emptied: list[str] = field(default_factory=list)
    """What the drained nodes still had, though nothing was in their way."""
    calm_since: float = 0.0
    """When the last fault began or was mended."""
    done: list[str] = field(default_factory=list)
    on_fault: list[Callable[[str], None]] = field(default_factory=list)
    """Called with each fault's kind when it happens."""
    _etcd_back_at: float = -ETCD_SETTLED_S
    _acts: dict[str, Callable[[], None]] = field(default_factory=dict)

    def begin(self) -> None:
        """The weather turns bad, and faults begin."""
        cluster, odds = self.cluster, self.odds
        network, store = cluster.network, cluster.store
        network.loss, network.duplicate, network.slow = odds.loss, odds.duplicate, odds.slow
        store.reply_lost, store.request_lost, store.lag_max_s = odds.reply_lost, odds.request_lost, odds.lag_s
        cluster.office.begin_faults(odds.office_s, odds.doubt)
        self.active = True
        self._next()

    def stop(self) -> None:
        """Everything is mended at once, and stays so."""
        self.active = False
        cluster, world = self.cluster, self.cluster.world
        network, store = cluster.network, cluster.store
        network.lossless, network.loss, network.duplicate, network.slow = True, 0.0, 0.0, 0.0
        network.heal()
        store.reply_lost = store.request_lost = store.lag_max_s = 0.0
        store.available, store.full = True, False
        store.elect()
        network.lossy.clear()
        store.slow_s = cluster.media_slow_s = 0.0
        cluster.media_away = False
        cluster.office.stop_faults()
        for client in self._clients():
            client.resume()
        for node in cluster.nodes:
            store.delete(cluster.keys.drain(node.name))
            node.asterisk.thaw()
            node.app.thaw()
            self._boot(node)
        cluster.edge.thaw()
        if cluster.replaced is not None:
            cluster.replaced.wake(0.0)
            cluster.replaced.tell()
        if cluster.edge.state == DEAD:
            cluster.start_edge()
        self.calm_since = world.now
        world.say("faults", "stop; everything is mended")

    def _next(self) -> None:
        if not self.odds.kinds:
            return
        world = self.cluster.world
        world.after(world.rng.expovariate(1.0 / self.odds.pause_s), self._strike)

    def _strike(self) -> None:
        if not self.active:
            return
        kind = self.cluster.world.rng.choice(self.odds.kinds)
        self.happen(kind)
        self._next()

    def aim(self, what: str) -> None:
        """Somebody asked for something that takes its time: now would be a bad moment."""
        world, odds = self.cluster.world, self.odds
        calm_s = world.now - self.calm_since
        if self.active and odds.kinds and what in AIMED_AT and calm_s > AIMED_APART_S:
            if world.chance(odds.aimed):
                kind = world.rng.choice(odds.kinds)
                within_s = world.rng.choice(AIMED_WITHIN_S)
                world.after(world.between(0.0, within_s), lambda: self.happen(kind, now_only=True))

    def happen(self, kind: str, node: Node | None = None, now_only: bool = False) -> None:
        """One fault of this kind, now, at ``node`` or at one drawn; ``now_only``: unless faults
        have stopped."""
        cluster = self.cluster
        if now_only and not self.active:
            return
        node = node or cluster.world.rng.choice(cluster.nodes)
        cluster.world.say("faults", f"{kind} ({node.name})")
        self.done.append(kind)
        self.calm_since = cluster.world.now
        for tell in self.on_fault:
            tell(kind)
        getattr(self, "_" + kind.replace("-", "_"))(node)

    def _later(self, least_s: float, most_s: float, act: Callable[[], object]) -> None:
        """Mends it after a while, unless everything has been mended meanwhile."""
        world = self.cluster.world

        def mend() -> None:
            if self.active:
                act()
                self.calm_since = world.now

        world.after(world.between(least_s, most_s), mend)

    def _boot(self, node: Node) -> None:
        cluster = self.cluster
        cluster.wire.hosts_down.discard(node.host)
        if node.asterisk.state == DEAD:
            node.asterisk.start()
        if node.app.state == DEAD:
            cluster.start_app(node)

    # -- one node

    def _asterisk_kill(self, node: Node) -> None:
        if node.asterisk.state != DEAD:
            node.asterisk.kill()
            self._later(0.5, 4.0, lambda: self._boot(node))

    def _asterisk_stop(self, node: Node) -> None:
        """SIGTERM: it hangs up every channel by itself, and is gone."""
        asterisk = node.asterisk
        if not asterisk.running:
            return
        asterisk.stop_politely()

        def gone() -> None:
            asterisk.kill()
            if not self.active:
                self._boot(node)

        self.cluster.world.after(0.05, asterisk.in_life(gone))
        self._later(0.5, 4.0, lambda: self._boot(node))

    def _asterisk_freeze(self, node: Node) -> None:
        node.asterisk.freeze()
        self._later(0.1, 3.0, node.asterisk.thaw)

    def _app_kill(self, node: Node) -> None:
        if node.app.state != DEAD:
            node.app.kill()
            self._later(0.3, 3.0, lambda: self._boot(node))

    def _app_freeze(self, node: Node) -> None:
        node.app.freeze()
        self._later(0.1, 3.0, node.app.thaw)

    def _node_reboot(self, node: Node) -> None:
        """The whole host goes dark: nobody is there to refuse anything."""
        if node.host in self.cluster.wire.hosts_down:
            return
        node.asterisk.kill()
        node.app.kill()
        self.cluster.wire.hosts_down.add(node.host)
        self.cluster.network.cut_off(node.host, [self.cluster.edge.host, ETCD])

        def back() -> None:
            self.cluster.network.heal(node.host)
            self._boot(node)

        self._later(2.0, 6.0, back)

    def _node_cut(self, node: Node) -> None:
        network = self.cluster.network
        network.cut_off(node.host, [self.cluster.edge.host, ETCD])
        self._later(0.2, 5.0, lambda: network.heal(node.host))

    def _node_cut_one_way(self, node: Node) -> None:
        network, world = self.cluster.network, self.cluster.world
        if world.chance(0.5):
            network.cut_off(node.host, [self.cluster.edge.host], both_ways=False)
        else:
            network.cut_off(self.cluster.edge.host, [node.host], both_ways=False)
        self._later(0.2, 5.0, lambda: network.heal(node.host))

    def _node_unheard(self, node: Node) -> None:
        """It hears everybody, and nobody hears it."""
        network = self.cluster.network
        network.cut_off(node.host, [self.cluster.edge.host, ETCD], both_ways=False)
        self._later(0.2, 6.0, lambda: network.heal(node.host))

    def _node_deaf(self, node: Node) -> None:
        network = self.cluster.network
        for host in (self.cluster.edge.host, ETCD):
            network.cut_off(host, [node.host], both_ways=False)
        self._later(0.2, 6.0, lambda: network.heal(node.host))

    def _node_loss(self, node: Node) -> None:
        """A bad cable: some of what goes to and from the node is lost."""
        network, world = self.cluster.network, self.cluster.world
        network.lossy[node.host] = world.between(0.02, 0.4)
        self._later(0.5, 5.0, lambda: network.lossy.pop(node.host, None))

    def _all_hosts(self, node: Node) -> None:
        """Every node's host, as when the power of a rack goes; they come back in any order."""
        for one in self.cluster.nodes:
            self._node_reboot(one)

    def _node_cut_etcd(self, node: Node) -> None:
        network = self.cluster.network
        network.cut_off(node.host, [ETCD])
        self._later(0.2, 8.0, lambda: network.heal(node.host))

    def _drain(self, node: Node) -> None:
        """An operator wants the node empty, and calls it off: in the middle, or later."""
        cluster, world = self.cluster, self.cluster.world
        key = cluster.keys.drain(node.name)
        rate = world.rng.choice((0.5, 5.0, 100.0))
        value = encode(DrainValue(node=node.name, rate_per_s=rate))
        cluster.store.led(lambda: cluster.store.put(key, value))
        begun = world.now

        def look() -> None:
            if self.active and self.calm_since == begun and key in cluster.store.keys and rate > 1:
                self.not_emptied += self.left_on(node)

        world.after(DRAINED_WITHIN_S, look)
        self._later(0.02, 5.0, lambda: cluster.store.led(lambda: cluster.store.delete(key)))

    def left_on(self, node: Node) -> list[str]:
        """Answered calls of a drained node that another node could have taken. Nobody is moved on purpose
        while edge or node cannot write to etcd, or the relay is away."""
        cluster, edge = self.cluster, self.cluster.edge.machine
        if not isinstance(edge, EdgeMachine) or not edge.serving or cluster.media_away:
            return []
        if not (self._writes(cluster.edge.host) and self._writes(node.host)):
            return []
        could = any(
            n.takes_new
            and cluster.world.now - n.lost_at > DRAINED_WITHIN_S
            and self._writes(cluster.by_name[n.config.name].host)
            for n in edge.watch.nodes.values()
        )
        return [
            f"{call.call} is on {node.name} {DRAINED_WITHIN_S:.0f} s after its drain began"
            for call in edge.calls.of_node(node.name)
            if could and call.primary and call.primary.state == "up"
            and edge.context.utc - call.started_utc > DRAINED_WITHIN_S
        ]  # fmt: skip

    def _writes(self, host: str) -> bool:
        """Whether who is at this host can write to etcd."""
        store, network = self.cluster.store, self.cluster.network
        there = store.available and not (store.full or store.electing)
        return there and not (network.cut(host, ETCD) or network.cut(ETCD, host))

    # -- the edge, etcd, the relay

    def _etcd_safe(self) -> bool:
        """Whether the edge may die: not while what it has let happen is not in etcd, because that is away
        or takes longer than the edge waits (`EdgeTimings.persist_limit_s`). These are stated limits."""
        cluster, client = self.cluster, self.cluster.edge_client
        return (
            cluster.store.available
            and not (client and client.overdue(EdgeTimings().persist_limit_s))
            and not (client and cluster.store.electing and client.reachable is False)
            and not cluster.store.full
            and cluster.world.now - self._etcd_back_at > ETCD_SETTLED_S
            and cluster.world.now - cluster.store.last_lost_s > ETCD_SETTLED_S
            and not cluster.network.cut(cluster.edge.host, ETCD)
        )

    def _edge_kill(self, node: Node) -> None:
        edge = self.cluster.edge
        if edge.state == DEAD or not self._etcd_safe():
            return
        edge.kill()

        def back() -> None:
            if edge.state == DEAD:
                self.cluster.start_edge()

        self._later(0.1, 1.5, back)

    def _edge_rehome(self, node: Node) -> None:
        """The edge's host dies; another one takes over, at its own addresses."""
        cluster = self.cluster
        if cluster.edge.state == DEAD or not self._etcd_safe():
            return
        cluster.rehome_edge()

        def back() -> None:
            if cluster.edge.state == DEAD:
                cluster.start_edge()

        self._later(0.3, 0.6, back)

    def _relay_lost(self, node: Node) -> None:
        """rtpengine dies and is started again without its calls."""
        cluster = self.cluster
        if cluster.media_away:
            return
        cluster.lose_relay()
        cluster.media_away = True

        def back() -> None:
            cluster.media_away = False
            cluster.rehomed.append(cluster.world.now)

        self._later(0.05, 1.0, back)

    def _edge_switch(self, node: Node) -> None:
        """The address goes to the other host: because somebody wants it, or because the first
        is gone."""
        edge = self.cluster.edge
        if edge.state == DEAD or not self._etcd_safe():
            return
        self.cluster.switch_edge()

        def there() -> None:
            if edge.state == DEAD:
                self.cluster.start_edge()

        self._later(0.02, 0.8, there)

    def _edge_and_node(self, node: Node) -> None:
        """The edge process and an Asterisk, nearly together."""
        world = self.cluster.world
        first, second = (self._edge_kill, self._asterisk_kill)[:: world.rng.choice((1, -1))]
        first(node)
        world.after(world.between(0.0, 0.6), lambda: second(node) if self.active else None)

    def _edge_freeze(self, node: Node) -> None:
        self.cluster.edge.freeze()
        self._later(0.1, 1.5, self.cluster.edge.thaw)

    def _edge_zombie(self, node: Node) -> None:
        """The edge's host stands still, or is cut off from all; the other takes its place, and then it
        is back. See `ari_ha.simulation.replaced`."""
        cluster = self.cluster
        machine, wakes = cluster.edge.machine, Comeback(cluster, self._later)
        serves = isinstance(machine, EdgeMachine) and machine.serving
        if cluster.edge.running and serves and self._etcd_safe():
            wakes.begin()

    def _etcd_away(self, node: Node) -> None:
        store = self.cluster.store
        if not store.available or self.cluster.edge.state in (DEAD, FROZEN):
            return
        store.available = False

        def back() -> None:
            store.available = True
            self._etcd_back_at = self.cluster.world.now

        self._later(0.3, 6.0, back)

    def _etcd_full(self, node: Node) -> None:
        """A disk is full: etcd takes no more writes until somebody made room."""
        store = self.cluster.store
        if not store.available or self.cluster.edge.state in (DEAD, FROZEN):
            return
        store.full = True

        def room() -> None:
            store.full = False
            self._etcd_back_at = self.cluster.world.now

        self._later(0.5, 6.0, room)

    def _etcd_election(self, node: Node) -> None:
        """etcd's leader dies. Whoever was connected to it finds another member, and one member may not
        hear of the new leader: the watches of these go on later than the others'."""
        cluster, store, world = self.cluster, self.cluster.store, self.cluster.world
        if store.electing or not store.available:
            return
        store.lose_leader()
        behind = [client for client in self._clients() if world.chance(0.4)]
        for client in behind:
            client.stall()

        def elected() -> None:
            store.elect()
            if cluster.edge_client is not None and cluster.edge_client.reachable is False:
                self._etcd_back_at = world.now
            for client in behind:
                world.after(world.between(0.0, BEHIND_MAX_S), client.resume)

        self._later(ELECTION_MIN_S, ELECTION_MAX_S, elected)

    def _clients(self) -> list[StoreClient]:
        """Clients of etcd, the edge's first."""
        clients = (self.cluster.edge_client, *self.cluster.clients.values())
        return [client for client in clients if client is not None]

    def _relay_away(self, node: Node) -> None:
        """rtpengine's control port does not answer; media flows on."""
        cluster = self.cluster
        cluster.media_away = True

        def back() -> None:
            cluster.media_away = False

        self._later(0.1, 1.0, back)

    def _lease_revoked(self, node: Node) -> None:
        leases = self.cluster.store.leases()
        if leases:
            self.cluster.store.revoke(self.cluster.world.rng.choice(leases))

    def _compaction(self, node: Node) -> None:
        store = self.cluster.store
        store.led(lambda: store.compact(store.revision))

    # -- slow servers, several faults at once

    def _relay_slow(self, node: Node) -> None:
        """rtpengine's control port answers late."""
        cluster = self.cluster
        cluster.media_slow_s = cluster.world.between(0.05, 0.6)

        def back() -> None:
            cluster.media_slow_s = 0.0

        self._later(0.5, 4.0, back)

    def _etcd_slow(self, node: Node) -> None:
        """One transaction in a hundred takes more than a second."""
        store = self.cluster.store
        store.slow_s = 1.0

        def back() -> None:
            store.slow_s = 0.0

        self._later(1.0, 6.0, back)

    def _compaction_behind(self, node: Node) -> None:
        """A watch falls silent, and what it has missed is compacted before it goes on."""
        cluster = self.cluster
        victim = cluster.world.rng.choice(self._clients())
        victim.stall()

        def back() -> None:
            self._compaction(node)
            victim.resume()

        self._later(0.2, 2.0, back)

    def _two_nodes(self, node: Node) -> None:
        """Two Asterisks, nearly together."""
        cluster = self.cluster
        self._asterisk_kill(node)
        other = cluster.world.rng.choice([n for n in cluster.nodes if n is not node])
        cluster.world.after(cluster.world.between(0.0, 0.4), lambda: self._kill_while_bad(other))

    def _kill_while_bad(self, node: Node) -> None:
        if self.active:
            self.calm_since = self.cluster.world.now
            self._asterisk_kill(node)

    def _all_nodes(self, node: Node) -> None:
        """Every Asterisk at once; they come back one after the other."""
        for one in self.cluster.nodes:
            self._asterisk_kill(one)

    def _survivor_kill(self, node: Node) -> None:
        """The node that is just taking calls up dies too."""
        cluster, world = self.cluster, self.cluster.world
        self._asterisk_kill(node)

        def look() -> None:
            edge = cluster.edge.machine
            moves = [call.move.to.name for call in edge.calls.by_id.values() if call.move] if edge else []
            if moves:
                self._kill_while_bad(cluster.by_name[world.rng.choice(moves)])

        world.after(world.between(0.02, 0.5), look)

    def _host_crash(self, node: Node) -> None:
        """Asterisk and its app together, the host stays."""
        self._app_kill(node)
        self._asterisk_kill(node)

    def _clock_step(self, node: Node) -> None:
        """Somebody's wall clock jumps, and is put right later."""
        world = self.cluster.world
        victim: MachineProcess = world.rng.choice([self.cluster.edge, node.app])
        step = world.rng.choice((-3600.0, -3.0, 3.0, 3600.0))
        victim.clock.wall_offset_s += step

        def back() -> None:
            victim.clock.wall_offset_s -= step

        self._later(0.5, 5.0, back)
