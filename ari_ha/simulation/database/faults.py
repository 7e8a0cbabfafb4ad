"""What goes wrong with a pair of databases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ari_ha.simulation.database.pair import ETCD, NAMES, Pair
from ari_ha.simulation.process import DEAD

KINDS = (
    "server-kill", "server-freeze", "watcher-kill", "watcher-freeze", "host-freeze", "host-kill", "cut-peer",
    "cut-etcd", "cut-both", "cut-one-way", "etcd-away", "lease-revoked", "errant", "slow-replica",
    "switchover", "hold",
)  # fmt: skip


@dataclass(frozen=True)
class Odds:
    """The weather of a run."""

    kinds: tuple[str, ...] = KINDS
    pause_s: float = 4.0
    lost: float = 0.0
    """Share of transactions whose request or reply is lost."""
    lag_s: float = 0.0


class Faults:
    """Draws faults while active, and mends everything at the end."""

    def __init__(self, pair: Pair, odds: Odds) -> None:
        self.pair = pair
        self.odds = odds
        self.active = False
        self.done: list[str] = []

    def begin(self) -> None:
        """From now on."""
        self.active = True
        store = self.pair.store
        store.reply_lost = store.request_lost = self.odds.lost
        store.lag_max_s = self.odds.lag_s
        self._next()

    def stop(self) -> None:
        """No more; all that is broken is mended."""
        pair = self.pair
        self.active = False
        pair.network.heal()
        pair.store.available = True
        pair.store.reply_lost = pair.store.request_lost = pair.store.lag_max_s = 0.0
        pair.store.keys.pop(pair.keys.hold, None) and self._release()
        for name in NAMES:
            pair.servers[name].apply_s = 0.003
            pair.servers[name].thaw()
            pair.watchers[name].thaw()
            pair.start_watcher(name)
        pair.world.say("faults", "stop; everything is mended")

    def _release(self) -> None:
        store = self.pair.store
        store.revision += 1
        store._committed([(store.revision, self.pair.keys.hold, None)])

    def _next(self) -> None:
        if self.odds.kinds:
            world = self.pair.world
            world.after(world.rng.expovariate(1.0 / self.odds.pause_s), self._strike)

    def _strike(self) -> None:
        if self.active:
            self.happen(self.pair.world.rng.choice(self.odds.kinds), self.pair.world.rng.choice(NAMES))
            self._next()

    def happen(self, kind: str, name: str) -> None:
        """One fault, now."""
        self.pair.world.say("faults", f"{kind} ({name})")
        self.done.append(kind)
        getattr(self, "_" + kind.replace("-", "_"))(name)

    def _later(self, least_s: float, most_s: float, act: Callable[[], None]) -> None:
        world = self.pair.world
        world.after(world.between(least_s, most_s), lambda: act() if self.active else None)

    @staticmethod
    def _other(name: str) -> str:
        return NAMES[1 - NAMES.index(name)]

    # -- processes

    def _server_kill(self, name: str) -> None:
        self.pair.servers[name].kill()

    def _server_freeze(self, name: str) -> None:
        self.pair.servers[name].freeze()
        self._later(0.3, 8.0, self.pair.servers[name].thaw)

    def _watcher_kill(self, name: str) -> None:
        self.pair.watchers[name].kill()
        most_s = self.pair.world.rng.choice((0.5, 8.0))
        self._later(0.1, most_s, lambda: self.pair.start_watcher(name))

    def _watcher_freeze(self, name: str) -> None:
        self.pair.watchers[name].freeze()
        self._later(0.3, 9.0, self.pair.watchers[name].thaw)

    def _host_freeze(self, name: str) -> None:
        """A virtual machine that stands still."""
        parts = [self.pair.servers[name], self.pair.watchers[name]]
        for part in parts:
            part.freeze()

        def thaw() -> None:
            self.pair.world.rng.shuffle(parts)
            for part in parts:
                part.thaw()

        self._later(0.5, 10.0, thaw)

    def _host_kill(self, name: str) -> None:
        self.pair.servers[name].kill()
        self.pair.watchers[name].kill()
        self._later(1.0, 9.0, lambda: self.pair.start_watcher(name))

    # -- wires

    def _heal(self, *pairs: tuple[str, str]) -> Callable[[], None]:
        return lambda: self.pair.network.cuts.difference_update(pairs)

    def _cut(self, *pairs: tuple[str, str]) -> None:
        self.pair.network.cuts.update(pairs)
        self._later(0.3, 10.0, self._heal(*pairs))

    def _cut_peer(self, name: str) -> None:
        other = self._other(name)
        self._cut((name, other), (other, name))

    def _cut_etcd(self, name: str) -> None:
        self._cut((name, ETCD), (ETCD, name))

    def _cut_both(self, name: str) -> None:
        other = self._other(name)
        self._cut((name, other), (other, name), (name, ETCD), (ETCD, name))

    def _cut_one_way(self, name: str) -> None:
        hosts = [self._other(name), ETCD]
        other = self.pair.world.rng.choice(hosts)
        self._cut((name, other) if self.pair.world.chance(0.5) else (other, name))

    # -- etcd

    def _etcd_away(self, name: str) -> None:
        self.pair.store.available = False

        def back() -> None:
            self.pair.store.available = True

        self._later(0.3, 15.0, back)

    def _lease_revoked(self, name: str) -> None:
        client = self.pair.clients.get(name)
        if client is not None and client.lease:
            self.pair.store.revoke(client.lease)

    # -- data

    def _errant(self, name: str) -> None:
        server = self.pair.servers[name]
        if server.running and not server.writable:
            server.errant()

    def _slow_replica(self, name: str) -> None:
        server = self.pair.servers[name]
        server.apply_s = self.pair.world.rng.choice((0.05, 0.3))

        def fast() -> None:
            server.apply_s = 0.003

        self._later(1.0, 6.0, fast)

    # -- operators

    def _switchover(self, name: str) -> None:
        for watcher in NAMES:
            self.pair.ask(watcher, "switchover", to=name)

    def _hold(self, name: str) -> None:
        if self.pair.watchers[name].state == DEAD:
            return
        self.pair.ask(name, "hold", by="faults")
        self._later(1.0, 6.0, lambda: self.pair.ask(name, "release") and None)
