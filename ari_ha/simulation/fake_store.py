"""etcd as a process sees it through its client: transactions that compare, a lease,
mirrored prefixes that lag, and every way of not getting an answer.

The cluster itself is one linear history. What goes wrong lies between it and its
clients: requests and replies get lost (so a transaction may be applied and its outcome
Unknown), watchers lag, a client finds out late that nobody answers, leases run out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ari_ha.core.machine import Done, Effect, Outcome, Refused, Unknown, Unreachable
from ari_ha.core.ports.store import (
    KeyValue,
    LeaseState,
    StoreChanged,
    StoreReach,
    StoreRead,
    StoreSnapshot,
    StoreTxn,
    TxnResult,
)
from ari_ha.machines.etcd_operations import LIMIT_SHARE
from ari_ha.simulation.process import MachineProcess
from ari_ha.simulation.world import Network, Timer, World

HOST = "etcd"
LEASE_MARGIN_S = 0.5
RENEWALS_PER_TTL = 4
LOOK_EVERY_S = 0.25
ATTEMPT_S = 1.0
"""A client waits so long for one member, and asks again."""
ASKED_AGAIN, PASSED_ON = 0.5, 0.3
"""Of what reaches the members while they have no leader, so much is asked again when there is one, and
so much was passed on by the last leader: the next one carries it out, and the answer is late. The rest
is lost."""
NOTICE_MIN_S, NOTICE_MAX_S = 0.2, 1.2
"""How long a client takes to be sure that nobody answers."""
HISTORY_MAX = 100_000


@dataclass(slots=True)
class LeaseOnServer:
    """A lease and when it runs out unless it is renewed."""

    ident: int
    ttl_s: float
    timer: Timer


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A transaction or a read, on its way to the members."""

    effect: Effect
    settle: Callable[[Outcome], None]
    sent_s: float


SLOWEST_OF_100 = 4.6
"""ln 100: an exponential delay of this rate exceeds 1 once in a hundred."""


class Store:
    """The cluster: keys, one revision after the other, leases."""

    def __init__(self, world: World, network: Network) -> None:
        self.world = world
        self.network = network
        self.keys: dict[str, KeyValue] = {}
        self.revision = 1
        self.compacted = 0
        self.available = True
        """A majority of the members works."""
        self.electing = False
        """The members look for a leader: nothing is written, read or renewed, and no lease ends."""
        self.full = False
        """No room: reads, watches and leases go on, nothing is written."""
        self.reply_lost = 0.0
        """Share of transactions that are applied and whose answer never comes."""
        self.request_lost = 0.0
        """Share of transactions that never arrive, unknown to the sender."""
        self.lag_max_s = 0.0
        """A change takes up to this much longer to reach a watcher."""
        self.slow_s = 0.0
        """One request in a hundred takes longer than this; 0: none is slow."""
        self.last_lost_s = -1_000.0
        """When a request or a reply was lost last."""
        self.txns = 0
        self.compares = True
        """False is a planted bug: every transaction succeeds."""
        self.log: list[tuple[int, str, KeyValue | None]] = []
        self.on_commit: list[Callable[[list[tuple[int, str, KeyValue | None]]], None]] = []
        self._leases: dict[int, LeaseOnServer] = {}
        self._when_led: list[Callable[[], None]] = []
        self._next_lease = 100

    # -- its leader

    def lose_leader(self) -> None:
        """The leader is gone; `elect` ends that."""
        self.electing = True

    def elect(self) -> None:
        """There is one again. It does not know how old the leases are: all begin anew. What
        waited for it happens in the order in which it came."""
        if not self.electing:
            return
        self.electing = False
        for lease in self._leases.values():
            self._begin_anew(lease)
        waiting, self._when_led = self._when_led, []
        for act in waiting:
            act()

    def led(self, act: Callable[[], None]) -> None:
        """``act`` as soon as there is a leader: now, or when one is elected."""
        if self.electing:
            self._when_led.append(act)
        else:
            act()

    # -- what the cluster does

    def txn(self, effect: StoreTxn, lease: int = 0) -> Outcome:
        """Applies a transaction, or not; the answer as etcd gives it."""
        if any(put.leased for put in effect.puts) and lease not in self._leases:
            return Refused("requested lease not found")
        self.txns += 1
        for compare in effect.compares:
            now = self._mod_revision(compare.key)
            if self.compares and not _holds(compare.op, now, compare.mod_revision):
                current = {c.key: self.keys[c.key] for c in effect.compares if c.key in self.keys}
                return Done(TxnResult(False, self.revision, tuple(current.values())))
        if effect.puts or effect.deletes:
            self.revision += 1
            changes: list[tuple[int, str, KeyValue | None]] = []
            for put in effect.puts:
                changes.append(self._put(put.key, put.value, lease if put.leased else 0))
            for delete in effect.deletes:
                for key in self._matching(delete.key, delete.prefix):
                    del self.keys[key]
                    changes.append((self.revision, key, None))
            self._committed(changes)
        return Done(TxnResult(True, self.revision))

    def delete(self, key: str) -> None:
        """Removes a key from outside the world; nothing happens when it is not there."""
        if key in self.keys:
            self.revision += 1
            del self.keys[key]
            self._committed([(self.revision, key, None)])

    def put(self, key: str, value: bytes) -> None:
        """Writes a key from outside the world (configuration)."""
        self.revision += 1
        self._committed([self._put(key, value, 0)])

    def read(self, key: str, prefix: bool) -> tuple[KeyValue, ...]:
        """The key, or everything under it."""
        return tuple(self.keys[name] for name in self._matching(key, prefix))

    def _mod_revision(self, key: str) -> int:
        item = self.keys.get(key)
        return item.mod_revision if item else 0

    def _matching(self, key: str, prefix: bool) -> list[str]:
        if prefix:
            return sorted(name for name in self.keys if name.startswith(key))
        return [key] if key in self.keys else []

    def _put(self, key: str, value: bytes, lease: int) -> tuple[int, str, KeyValue | None]:
        old = self.keys.get(key)
        created = old.create_revision if old else self.revision
        item = KeyValue(key, value, self.revision, created, lease)
        self.keys[key] = item
        return self.revision, key, item

    def _committed(self, changes: list[tuple[int, str, KeyValue | None]]) -> None:
        self.log += changes
        if len(self.log) > HISTORY_MAX:
            self.compact(self.log[HISTORY_MAX // 2][0])
        for hear in self.on_commit:
            hear(changes)

    def compact(self, revision: int) -> None:
        """Forgets the changes up to ``revision``."""
        self.compacted = max(self.compacted, revision)
        self.log = [change for change in self.log if change[0] > revision]

    # -- leases

    def grant(self, ttl_s: float) -> int:
        """A new lease."""
        self._next_lease += 1
        ident = self._next_lease
        timer = self.world.after(ttl_s, lambda: self.revoke(ident))
        self._leases[ident] = LeaseOnServer(ident, ttl_s, timer)
        return ident

    def renew(self, ident: int) -> bool:
        """Whether the lease lives, and it lives anew."""
        lease = self._leases.get(ident)
        if lease is None:
            return False
        self._begin_anew(lease)
        return True

    def _begin_anew(self, lease: LeaseOnServer) -> None:
        lease.timer.cancel()
        lease.timer = self.world.after(lease.ttl_s, lambda: self.revoke(lease.ident))

    def revoke(self, ident: int) -> None:
        """The lease ends, and its keys with it. Without a majority nothing ends: it is
        tried again when there is one. Whoever is elected lets it begin anew."""
        lease = self._leases.get(ident)
        if lease is None or self.electing:
            return
        if not self.available:
            lease.timer = self.world.after(LOOK_EVERY_S, lambda: self.revoke(ident))
            return
        lease.timer.cancel()
        del self._leases[ident]
        gone = [key for key, item in self.keys.items() if item.lease == ident]
        if gone:
            self.revision += 1
            for key in gone:
                del self.keys[key]
            self._committed([(self.revision, key, None) for key in gone])

    def leases(self) -> list[int]:
        """Leases that live."""
        return list(self._leases)


def _holds(op: str, left: int, right: int) -> bool:
    if op == "=":
        return left == right
    if op == "<":
        return left < right
    return left > right if op == ">" else left != right


class StoreClient:
    """One process's client of the store: its mirrors, its lease, its opinion of whether
    anybody answers. Lives and dies with one life of its process."""

    def __init__(
        self, store: Store, process: MachineProcess, prefixes: Sequence[str], ttl_s: float = 3.0
    ) -> None:
        self.store = store
        self.process = process
        self.prefixes = tuple(prefixes)
        self.ttl_s = ttl_s
        self._unwatched: tuple[str, ...] = ()
        self._asked: list[Request] = []
        """What has not arrived"""
        self._stalled = False
        self._missed = self._unrenewed = False
        """Changes not delivered, and a renewal not sent, because nothing got through"""
        self.reachable: bool | None = None
        self.lease = 0
        self._held_until = 0.0
        self._held = False
        self._position: dict[str, int] = {}
        self._last_delivery = 0.0
        self._silent_since: float | None = None
        self._notice_s = 0.0
        self.on_write: Callable[[StoreTxn], None] = lambda effect: None
        """Called with every write that has been done."""
        self._life = process.life
        store.on_commit.append(self._committed)
        self._world = store.world
        self._again(self._world.between(0.001, 0.02), self._look)

    def _again(self, delay_s: float, act: Callable[[], None]) -> None:
        self._world.after(delay_s, self.process.in_life(act))

    @property
    def _alive(self) -> bool:
        return self.process.life == self._life and self.process.state != "dead"

    def _connected(self) -> bool:
        network, host = self.store.network, self.process.host
        return self.store.available and not network.cut(host, HOST) and not network.cut(HOST, host)

    def _open(self) -> bool:
        """Whether its watches are."""
        return self._alive and self.reachable is True and self._connected()

    # -- is anybody there

    def _look(self) -> None:
        """Now and then, and after a failure: is the store there."""
        world = self._world
        if self._connected() and self.store.full:
            self._silent_since = None
            if self.reachable is not False:
                self._reach(StoreReach(reachable=False, why="no space"))
        elif self._connected() and not self.store.electing:
            self._silent_since = None
            back = self.reachable is not True
            if back:
                self._reach(StoreReach(reachable=True))
            # an absence too short to notice: a watch resumes where it was, and renewals go on
            if back or (self._missed and not self._stalled):
                self._catch_up()
            if back or self._unrenewed:
                self._renew()
        else:
            if self._silent_since is None:
                self._silent_since = world.now
                self._notice_s = world.between(NOTICE_MIN_S, NOTICE_MAX_S)
            if self.reachable is not False and world.now - self._silent_since >= self._notice_s:
                no_leader = self.store.electing or not self.store.available
                why = "no leader" if no_leader else "no answer"
                self._reach(StoreReach(reachable=False, no_leader=no_leader, why=why))
        if self._held and self.process.clock.monotonic() >= self._held_until:
            self._held = False
            self.process.post(LeaseState(held=False, lease=self.lease))
        self._again(LOOK_EVERY_S * world.between(0.8, 1.2), self._look)

    def _reach(self, event: StoreReach) -> None:
        self.reachable = event.reachable
        self.process.post(event)

    def _renew(self) -> None:
        """Keeps the lease; takes a new one when it is gone."""
        full = self.store.full
        answered = self._connected() and not self.store.electing
        self._unrenewed = not answered or (self.reachable is not True and not full)
        if self._unrenewed:
            return
        sent = self.process.clock.monotonic()
        if not self.lease or not self.store.renew(self.lease):
            if full:  # no new lease is granted either
                self._unrenewed = True
                return
            if self._held:
                self._held = False
                self.process.post(LeaseState(held=False, lease=self.lease))
            self.lease = self.store.grant(self.ttl_s)
        self._held, self._held_until = True, sent + self.ttl_s - LEASE_MARGIN_S
        self.process.post(LeaseState(held=True, until=self._held_until, lease=self.lease))
        self._again(self.ttl_s / RENEWALS_PER_TTL, self._renew)

    # -- mirrors

    def _catch_up(self) -> None:
        """Brings every mirror to now: the changes it missed, or the whole prefix."""
        store = self.store
        self._missed = False
        for prefix in self.prefixes:
            position = self._position.get(prefix, 0)
            self._position[prefix] = store.revision
            if position and position >= store.compacted:
                missed = [c for c in store.log if c[0] > position and c[1].startswith(prefix)]
                for change in missed:
                    self._deliver_change(change)
            else:
                items = {item.key: item for item in store.read(prefix, True)}
                self._deliver(StoreSnapshot(prefix=prefix, revision=store.revision, items=items))

    def stall(self) -> None:
        """The watch falls silent: nothing more is delivered until `resume`."""
        self._stalled = True

    def resume(self) -> None:
        """It goes on where it was, or with everything when that is compacted."""
        if self._stalled:
            self._stalled = False
            if self._open():
                self._catch_up()

    def _committed(self, changes: list[tuple[int, str, KeyValue | None]]) -> None:
        # what comes after something missed waits for it: a watch leaves nothing out
        if self._stalled or self._missed or not self._open():
            self._missed = True
            return
        for change in changes:
            for prefix in self.prefixes:
                if change[1].startswith(prefix):
                    self._position[prefix] = change[0]
                    self._deliver_change(change)
                    break

    def _deliver_change(self, change: tuple[int, str, KeyValue | None]) -> None:
        revision, key, value = change
        self._deliver(StoreChanged(key=key, value=value, revision=revision))

    def _deliver(self, event: StoreSnapshot | StoreChanged) -> None:
        """In order, each a little later."""
        world, store = self._world, self.store
        lag = world.between(0.0, store.lag_max_s) if world.chance(0.2) and store.lag_max_s else 0.0
        when = max(world.now + store.network.delay() + lag, self._last_delivery)
        self._last_delivery = when
        of = event.key if isinstance(event, StoreChanged) else event.prefix

        def arrive() -> None:
            if not of.startswith(self._unwatched):
                self.process.post(event)

        # what the last leader had committed, members learn from the next one
        world.at(when, lambda: store.led(self.process.in_life(arrive, self._life)))

    def unwatch(self, prefix: str) -> None:
        """Nothing under ``prefix`` is told any more, in this life of the process. Chance is still
        asked about it: so every seed keeps its weather."""
        self._unwatched += (prefix,)

    def overdue(self, limit_s: float) -> bool:
        """Whether a write has been under way for longer than that."""
        now = self._world.now
        return any(now - r.sent_s > limit_s for r in self._asked if isinstance(r.effect, StoreTxn))

    # -- effects

    def perform(self, effect: Effect, settle: Callable[[Outcome], None]) -> None:
        """A transaction or a read. An answer that never comes is never settled: the
        shell's limit says Unknown."""
        if self.reachable is False:
            self._world.after(0.001, lambda: settle(Unreachable("no etcd member answers")))
            return
        if not self._connected():
            if self._world.chance(0.5):
                settle_at = self._world.between(0.05, 0.5)
                self._world.after(settle_at, lambda: settle(Unreachable("connection refused")))
            return
        store = self.store
        if isinstance(effect, StoreTxn) and any(put.leased for put in effect.puts) and not self._held:
            self._world.after(0.0, lambda: settle(Refused("no lease")))
            return
        if self._world.chance(store.request_lost):
            store.last_lost_s = self._world.now
            return
        delay_s = 2 * store.network.stream_delay(self.process.host, HOST)
        if store.slow_s:
            delay_s += self._world.rng.expovariate(SLOWEST_OF_100 / store.slow_s)
        request = Request(effect, settle, self._world.now)
        self._asked.append(request)
        self._world.after(delay_s, lambda: self._arrived(request))

    def _arrived(self, request: Request) -> None:
        """At a member. Without a leader it is asked again, passed on already, or lost."""
        store, world = self.store, self._world
        fate = world.rng.random() if store.electing and self._connected() else None
        if fate is not None and fate < ASKED_AGAIN:
            again_s = world.between(0.0, ATTEMPT_S)
            store.led(lambda: world.after(again_s, lambda: self._asks_again(request)))
        elif fate is not None and fate < ASKED_AGAIN + PASSED_ON:
            store.led(lambda: self._carry_out(request, world.between(0.0, ATTEMPT_S)))
        elif fate is not None:
            self._asked.remove(request)
            store.last_lost_s = world.now
        elif self._connected():
            self._carry_out(request)
        else:
            self._asked.remove(request)

    def _asks_again(self, request: Request) -> None:
        if self._world.now - request.sent_s < request.effect.limit_s * LIMIT_SHARE:
            self._arrived(request)
        else:
            self._asked.remove(request)

    def _carry_out(self, request: Request, late_s: float = 0.0) -> None:
        """The cluster does it; the answer takes ``late_s`` longer, or is lost."""
        store, effect = self.store, request.effect
        self._asked.remove(request)
        outcome: Outcome
        if isinstance(effect, StoreTxn) and store.full and effect.puts:
            outcome = Unreachable("no space")
        elif isinstance(effect, StoreTxn):
            outcome = store.txn(effect, self.lease)
            if isinstance(outcome, Done) and outcome.value.succeeded and (effect.puts or effect.deletes):
                self.on_write(effect)
        elif isinstance(effect, StoreRead):
            outcome = Done(store.read(effect.key, effect.prefix))
        else:
            outcome = Unknown(f"not for the store: {type(effect).__name__}")
        if isinstance(effect, StoreTxn) and self._world.chance(store.reply_lost):
            store.last_lost_s = self._world.now
            return
        self._world.after(store.network.delay() + late_s, lambda: request.settle(outcome))
