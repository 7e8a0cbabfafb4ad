"""An etcd cluster in memory, with everything that goes wrong with one.

`FakeEtcd` is the cluster: one linear history, leases, compaction, elections.
`FakeEtcdClient` behaves towards a process's machine as `EtcdStore` does, without
tasks or sockets: `submit` says now what the outcome will be and when it arrives,
`poll` returns the events that are due, `next_at` when to poll again.

All times are the simulated world's. The same contract tests run against this and
against a real cluster.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from ari_ha.core.machine import Done, Event, Instant, Outcome, Refused, Unknown, Unreachable
from ari_ha.core.ports.store import (
    Compare,
    KeyValue,
    LeaseState,
    StoreChanged,
    StoreReach,
    StoreRead,
    StoreSnapshot,
    StoreTxn,
    TxnResult,
)

LATENCY_MIN_S, LATENCY_MAX_S = 0.0005, 0.004
#: How long a client needs to notice that its member is of no use, and to find one.
NOTICE_MIN_S, NOTICE_MAX_S = 0.2, 2.0
RECOVER_MIN_S, RECOVER_MAX_S = 0.01, 0.4
#: An attempt whose answer was lost may be applied this much later.
LATE_MAX_S = 3.0
LEASE_MARGIN_S = 0.5
LEASE_RENEWALS_PER_TTL = 4
ATTEMPT_MAX_S = 1.0


class Compacted(Exception):
    """The revision is no longer there."""


class NoLease(Exception):
    """The lease does not exist."""


class BadRequest(Exception):
    """etcd would answer INVALID_ARGUMENT."""


@dataclass(frozen=True, slots=True)
class Change:
    """One key's change in the history."""

    revision: int
    at: Instant
    key: str
    value: KeyValue | None


@dataclass(slots=True)
class FakeLease:
    """A lease as the cluster knows it."""

    ttl_s: float
    expires_at: Instant
    keys: set[str] = field(default_factory=set)


class FakeEtcd:
    """The cluster."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.revision = 1
        self.compacted = 0
        self.keys: dict[str, KeyValue] = {}
        self.history: list[Change] = []
        self.leases: dict[int, FakeLease] = {}
        self.clients: dict[str, FakeEtcdClient] = {}
        #: share of transactions whose answer is lost: a third each is never applied,
        #: applied, applied later
        self.unknown_odds = 0.0
        #: leases taken away though they were renewed in time
        self.wrongful_revokes = 0
        self.no_leader_until: Instant = 0.0
        self._versions: dict[str, list[tuple[int, KeyValue | None]]] = {}
        self._late: list[tuple[Instant, int, StoreTxn, int]] = []
        self._now: Instant = 0.0
        self._last_lease = 0

    def client(self, name: str) -> FakeEtcdClient:
        """The client of the process ``name`` (the same one each time)."""
        if name not in self.clients:
            self.clients[name] = FakeEtcdClient(self, name)
        return self.clients[name]

    # -- what goes wrong

    def lose_leader(self, until: Instant) -> None:
        """Nobody can commit before ``until``; leases begin anew then."""
        self.no_leader_until = max(self.no_leader_until, until)

    def cut(self, client: str, until: Instant) -> None:
        """``client`` reaches no member before ``until``."""
        one = self.client(client)
        one.cut_until = max(one.cut_until, until)

    def lag(self, client: str, seconds: float) -> None:
        """``client`` learns of changes this much later."""
        self.client(client).lag_s = seconds

    def compact(self, revision: int = 0) -> None:
        """Forgets the history up to ``revision`` (all but the newest)."""
        self.compacted = max(self.compacted, revision or self.revision)
        at = bisect_right(self.history, self.compacted, key=lambda change: change.revision)
        del self.history[:at]
        for key, versions in list(self._versions.items()):
            keep = max(bisect_right(versions, self.compacted, key=lambda pair: pair[0]) - 1, 0)
            del versions[:keep]
            if versions[-1][1] is None and versions[-1][0] <= self.compacted:
                del self._versions[key]

    def wrongful_revoke(self, client: str, now: Instant) -> None:
        """Takes the client's lease and its keys away, though it was renewed."""
        lease = self.client(client).lease_id
        if lease in self.leases:
            self.wrongful_revokes += 1
            self.revoke(lease, now)

    # -- time

    def advance(self, now: Instant) -> None:
        """Everything the cluster does by itself up to ``now``."""
        self._now = max(self._now, now)
        while True:
            steps: list[tuple[Instant, int, int]] = [
                (at, 0, index) for index, (at, *_) in enumerate(self._late)
            ]
            if self.no_leader_until == 0.0:
                steps += [(lease.expires_at, 1, name) for name, lease in self.leases.items()]
            else:
                steps.append((self.no_leader_until, 2, 0))
            due = min((step for step in steps if step[0] <= now), default=None)
            if due is None:
                return
            at, what, which = due
            if what == 0:
                _, _, txn, lease = self._late.pop(which)
                try:
                    self.txn(txn, at, lease)
                except (NoLease, BadRequest):
                    pass
            elif what == 1:
                self.revoke(which, at)
            else:
                # The new leader does not know how old the leases are: all begin anew.
                self.no_leader_until = 0.0
                for lease_ in self.leases.values():
                    lease_.expires_at = at + lease_.ttl_s

    def has_leader(self, now: Instant) -> bool:
        """Whether anybody can commit."""
        return now >= self.no_leader_until

    def apply_late(self, txn: StoreTxn, lease: int, now: Instant) -> None:
        """The transaction will be applied, some time after its sender gave up."""
        at = max(now, self.no_leader_until) + self.rng.uniform(0.0, LATE_MAX_S)
        self._late.append((at, len(self._late), txn, lease))

    def next_at(self) -> Instant | None:
        """When the cluster does something by itself next."""
        times = [at for at, *_ in self._late]
        if self.no_leader_until:
            times.append(self.no_leader_until)
        else:
            times += [lease.expires_at for lease in self.leases.values()]
        return min(times, default=None)

    # -- the key-value store

    def txn(self, txn: StoreTxn, now: Instant, lease: int = 0) -> TxnResult:
        """Compares and writes, atomically, at this point of the one history."""
        put_keys = [put.key for put in txn.puts]
        if len(set(put_keys)) != len(put_keys) or any(
            self._covers(d.key, d.prefix, key) for d in txn.deletes for key in put_keys
        ):
            raise BadRequest("duplicate key given in txn request")
        if not all(self._holds(compare) for compare in txn.compares):
            keys = dict.fromkeys(compare.key for compare in txn.compares)
            current = tuple(self.keys[key] for key in keys if key in self.keys)
            return TxnResult(False, self.revision, current)
        if any(put.leased for put in txn.puts) and lease not in self.leases:
            raise NoLease(lease)
        revision = self.revision + 1
        for put in txn.puts:
            self._put(put.key, put.value, lease if put.leased else 0, revision, now)
        for delete in txn.deletes:
            for key in sorted(k for k in self.keys if self._covers(delete.key, delete.prefix, k)):
                self._delete(key, revision, now)
        return TxnResult(True, self.revision)

    @staticmethod
    def _covers(key: str, prefix: bool, other: str) -> bool:
        return other.startswith(key) if prefix else other == key

    def _holds(self, compare: Compare) -> bool:
        found = self.keys.get(compare.key)
        actual = found.mod_revision if found else 0
        wanted = compare.mod_revision
        return {
            "=": actual == wanted,
            "!=": actual != wanted,
            ">": actual > wanted,
            "<": actual < wanted,
        }[compare.op]

    def _put(self, key: str, value: bytes, lease: int, revision: int, now: Instant) -> None:
        before = self.keys.get(key)
        created = before.create_revision if before else revision
        if before and before.lease in self.leases:
            self.leases[before.lease].keys.discard(key)
        if lease:
            self.leases[lease].keys.add(key)
        self._write(Change(revision, now, key, KeyValue(key, value, revision, created, lease)))

    def _delete(self, key: str, revision: int, now: Instant) -> None:
        before = self.keys.pop(key)
        if before.lease in self.leases:
            self.leases[before.lease].keys.discard(key)
        self._write(Change(revision, now, key, None))

    def _write(self, change: Change) -> None:
        self.revision = change.revision
        if change.value is not None:
            self.keys[change.key] = change.value
        self.history.append(change)
        self._versions.setdefault(change.key, []).append((change.revision, change.value))

    def read(self, key: str, *, prefix: bool = False, revision: int = 0) -> tuple[KeyValue, ...]:
        """A key or prefix, now or as of ``revision`` (a stale member's view)."""
        if not revision or revision >= self.revision:
            return tuple(self.keys[k] for k in sorted(self.keys) if self._covers(key, prefix, k))
        if revision < self.compacted:
            raise Compacted(self.compacted)
        found = []
        for name in sorted(k for k in self._versions if self._covers(key, prefix, k)):
            versions = self._versions[name]
            at = bisect_right(versions, revision, key=lambda pair: pair[0])
            value = versions[at - 1][1] if at else None
            if value is not None:
                found.append(value)
        return tuple(found)

    def changes(self, prefix: str, start: int) -> list[Change]:
        """The history of ``prefix`` from revision ``start`` on."""
        if start <= self.compacted:
            raise Compacted(self.compacted)
        at = bisect_right(self.history, start - 1, key=lambda change: change.revision)
        return [change for change in self.history[at:] if change.key.startswith(prefix)]

    # -- leases

    def lease_grant(self, ttl_s: float, now: Instant) -> int:
        """A new lease."""
        self._last_lease += 1
        self.leases[self._last_lease] = FakeLease(ttl_s, now + ttl_s)
        return self._last_lease

    def keepalive(self, lease: int, now: Instant) -> bool:
        """Renews; False when there is no such lease."""
        found = self.leases.get(lease)
        if found is not None:
            found.expires_at = now + found.ttl_s
        return found is not None

    def revoke(self, lease: int, now: Instant) -> None:
        """Ends a lease: all its keys go at one revision."""
        found = self.leases.pop(lease)
        revision = self.revision + 1
        for key in sorted(found.keys):
            self._delete(key, revision, now)


class FakeEtcdClient:
    """What `EtcdStore` is to a process, in simulated time."""

    def __init__(self, etcd: FakeEtcd, name: str) -> None:
        self.name = name
        self.lag_s = 0.001
        self.cut_until: Instant = 0.0
        self.lease_id = 0
        #: world time -> this process's own clock (LeaseState.until is told in it)
        self.clock: Callable[[Instant], Instant] = lambda now: now
        self._etcd = etcd
        self._positions: dict[str, int] = {}
        self._reach: bool | None = None
        self._turns_at: Instant | None = None
        self._no_leader_said = False
        self._ttl_s = 0.0
        self._held = False
        self._until: Instant = 0.0
        self._renew_at: Instant = 0.0

    # -- what a process uses

    def mirror(self, prefix: str) -> None:
        """Keep the process informed of ``prefix``."""
        self._positions.setdefault(prefix, 0)

    def lease(self, ttl_s: float) -> None:
        """Keep one lease for the process."""
        self._ttl_s = ttl_s

    def close(self, now: Instant, *, revoke: bool = True) -> None:
        """The process ends; without ``revoke`` (a crash) its lease runs out."""
        if revoke and self.lease_id in self._etcd.leases and self._works(now):
            self._etcd.revoke(self.lease_id, now)
        self._positions.clear()
        self._ttl_s, self.lease_id, self._held, self._reach = 0.0, 0, False, None
        self._turns_at = None

    def submit(self, effect: StoreTxn | StoreRead, now: Instant) -> tuple[Instant, Outcome]:
        """When the outcome arrives, and what it is."""
        self._etcd.advance(now)
        soon = now + self._etcd.rng.uniform(LATENCY_MIN_S, LATENCY_MAX_S)
        late = now + min(effect.limit_s, ATTEMPT_MAX_S)
        leased = isinstance(effect, StoreTxn) and any(put.leased for put in effect.puts)
        if leased and not (self._held and now < self._until):
            return soon, Refused("no lease")
        if self._reach is False:
            return soon, Unreachable("no leader" if self._no_leader_said else "timed out")
        if isinstance(effect, StoreRead):
            if not self._works(now):
                return late, Unreachable("timed out")
            return soon, Done(self._etcd.read(effect.key, prefix=effect.prefix))
        lease = self.lease_id if leased else 0
        if not self._works(now):
            # Not noticed yet: the request is under way on a connection that is dead,
            # or with a member that has lost its leader.
            if now >= self.cut_until and self._etcd.rng.random() < 0.3:
                self._etcd.apply_late(effect, lease, now)
            return late, Unknown("timed out")
        if self._etcd.rng.random() < self._etcd.unknown_odds:
            fate = self._etcd.rng.random()
            if fate < 1 / 3:
                self._etcd.apply_late(effect, lease, now)
            elif fate < 2 / 3:
                self._apply(effect, lease, now)
            return late, Unknown("connection lost")
        return soon, self._apply(effect, lease, now)

    def _apply(self, effect: StoreTxn, lease: int, now: Instant) -> Outcome:
        try:
            return Done(self._etcd.txn(effect, now, lease))
        except NoLease:
            return Refused("no lease")
        except BadRequest as error:
            return Refused(str(error))

    def poll(self, now: Instant) -> list[Event]:
        """What the process is told now."""
        self._etcd.advance(now)
        events: list[Event] = []
        self._poll_reach(events, now)
        self._poll_lease(events, now)
        if self._reach and self._works(now):
            for prefix in self._positions:
                self._poll_mirror(events, prefix, now)
        return events

    def next_at(self, now: Instant) -> Instant | None:
        """When `poll` may have something again, as far as is known now."""
        times: list[Instant] = []
        for at in (self._turns_at, self._etcd.next_at()):
            if at is not None:
                times.append(at)
        if self.cut_until > now:
            times.append(self.cut_until)
        if self._held:
            times.append(self._until)
        if self._reach and self._ttl_s:
            times.append(self._renew_at)
        if self._reach and self._works(now):
            for prefix, position in self._positions.items():
                if position == 0 or position <= self._etcd.compacted:
                    times.append(now)
                else:
                    pending = self._etcd.changes(prefix, position)
                    times += [change.at + self.lag_s for change in pending[:1]]
        return max(min(times), now) if times else None

    # -- parts of poll

    def _works(self, now: Instant) -> bool:
        return now >= self.cut_until and self._etcd.has_leader(now)

    def _poll_reach(self, events: list[Event], now: Instant) -> None:
        works = self._works(now)
        if works == self._reach:
            self._turns_at = None
            return
        if self._turns_at is None:
            rng = self._etcd.rng
            slow = self._reach is not None and not works
            pause_s = (
                rng.uniform(NOTICE_MIN_S, NOTICE_MAX_S) if slow else rng.uniform(RECOVER_MIN_S, RECOVER_MAX_S)
            )
            self._turns_at = now + pause_s
        if now >= self._turns_at:
            self._turns_at = None
            self._reach = works
            self._no_leader_said = not works and now >= self.cut_until
            why = "" if works else "no leader" if self._no_leader_said else "timed out"
            events.append(StoreReach(reachable=works, no_leader=self._no_leader_said, why=why))

    def _poll_lease(self, events: list[Event], now: Instant) -> None:
        if self._held and now >= self._until:
            self._held = False
            events.append(LeaseState(held=False, lease=self.lease_id))
        if not self._ttl_s or now < self._renew_at or not (self._reach and self._works(now)):
            return
        if self.lease_id and not self._etcd.keepalive(self.lease_id, now):
            if self._held:
                events.append(LeaseState(held=False, lease=self.lease_id))
            self._held, self.lease_id = False, 0
        if not self.lease_id:
            self.lease_id = self._etcd.lease_grant(self._ttl_s, now)
        self._held = True
        self._until = now + self._ttl_s - LEASE_MARGIN_S
        self._renew_at = now + self._ttl_s / LEASE_RENEWALS_PER_TTL
        events.append(LeaseState(held=True, until=self.clock(self._until), lease=self.lease_id))

    def _poll_mirror(self, events: list[Event], prefix: str, now: Instant) -> None:
        position = self._positions[prefix]
        if position:
            try:
                changes = self._etcd.changes(prefix, position)
            except Compacted:
                position = 0
        if not position:
            items = {kv.key: kv for kv in self._etcd.read(prefix, prefix=True)}
            events.append(StoreSnapshot(prefix=prefix, revision=self._etcd.revision, items=items))
            self._positions[prefix] = self._etcd.revision + 1
            return
        for change in changes:
            # A revision is told whole: its changes all have the same instant.
            if change.at + self.lag_s > now:
                return
            events.append(StoreChanged(key=change.key, value=change.value, revision=change.revision))
            self._positions[prefix] = change.revision + 1
