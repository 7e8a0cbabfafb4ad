"""What one watcher knows: its mirror of etcd, its lease, its server. No decisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from ari_ha.core.machine import Instant
from ari_ha.core.ports.database import Observation
from ari_ha.core.ports.store import Compare, KeyValue, StoreChanged, StoreSnapshot, StoreTxn
from ari_ha.machines.database_config import ASYNC, DatabaseConfig
from ari_ha.machines.database_gtid import BadGtids, extra, has_all
from ari_ha.wire.database_keys import (
    KINDS,
    ChecksumsValue,
    DatabaseKeys,
    DatabaseValue,
    HoldValue,
    LeaderValue,
    MemberValue,
    OrderValue,
    PositionValue,
    RebuildValue,
    ReleasedValue,
    SyncValue,
    decode,
)
from ari_ha.wire.keyspace import BadValue

V = TypeVar("V", bound=DatabaseValue)


@dataclass(frozen=True, slots=True)
class Stored(Generic[V]):
    """A value and when it was written."""

    value: V
    mod_revision: int
    lease: int = 0


class Model:
    """Facts. ``take_*`` are called by the machine, the rest reads."""

    def __init__(self, config: DatabaseConfig) -> None:
        self.config = config
        self.keys = DatabaseKeys(config.cluster, config.database)
        self.stored: dict[str, Stored[DatabaseValue]] = {}
        self.revision = 0
        self.loaded = False
        self.reachable = False
        self.lease_held = False
        self.lease_until: Instant = 0.0
        self.lease = 0
        self.alive: bool | None = None
        self.life = ""
        self.seen: Observation | None = None
        self.seen_at: Instant = 0.0
        self.asked_at: Instant = 0.0
        """When the question that `seen` answers was asked."""
        self.basis = 0
        """`revision` at that moment."""
        self.silent_since: Instant | None = None
        self.unreadable: dict[str, str] = {}
        self._floor: dict[str, int] = {}
        """Revisions of our own transactions, known before the mirror tells."""

    # -- etcd

    def take_snapshot(self, event: StoreSnapshot) -> None:
        """The whole mirror."""
        if event.prefix != self.keys.root:
            return
        kept = {key for key, revision in self._floor.items() if revision > event.revision}
        self.stored = {key: stored for key, stored in self.stored.items() if key in kept}
        for key, item in event.items.items():
            if key not in kept:
                self._take(key, item)
        self._floor = {key: self._floor[key] for key in kept}
        self.loaded = True
        self.revision = max(self.revision, event.revision)

    def take_change(self, event: StoreChanged) -> None:
        """One key."""
        self.revision = max(self.revision, event.revision)
        if event.revision < self._floor.get(event.key, 0):
            return
        self._floor.pop(event.key, None)
        if event.value is None:
            self.stored.pop(event.key, None)
        else:
            self._take(event.key, event.value)

    def take_written(self, txn: StoreTxn, revision: int, lease: int) -> None:
        """Our own transaction was applied: so it is, though the mirror lags behind, and
        tells the keys of one revision one by one. ``lease``: ours when it was asked for."""
        for put in txn.puts:
            if self._floor.get(put.key, 0) < revision:
                self._floor[put.key] = revision
                item = KeyValue(put.key, put.value, revision, revision, lease if put.leased else 0)
                self._take(put.key, item)
        for delete in txn.deletes:
            self._floor[delete.key] = revision
            self.stored.pop(delete.key, None)

    def _take(self, key: str, item: KeyValue) -> None:
        parts = self.keys.split(key)
        kind = KINDS.get(parts[0]) if parts else None
        if kind is None:
            return
        try:
            self.stored[key] = Stored(decode(item.value, kind, key), item.mod_revision, item.lease)
            self.unreadable.pop(key, None)
        except BadValue as error:
            self.stored.pop(key, None)
            self.unreadable[key] = str(error)

    def _get(self, key: str, kind: type[V]) -> Stored[V] | None:
        found = self.stored.get(key)
        return found if found is not None and isinstance(found.value, kind) else None  # type: ignore[return-value]

    @property
    def leader(self) -> Stored[LeaderValue] | None:
        return self._get(self.keys.leader, LeaderValue)

    @property
    def sync(self) -> Stored[SyncValue] | None:
        return self._get(self.keys.sync, SyncValue)

    @property
    def hold(self) -> Stored[HoldValue] | None:
        return self._get(self.keys.hold, HoldValue)

    @property
    def order(self) -> Stored[OrderValue] | None:
        return self._get(self.keys.order, OrderValue)

    @property
    def released(self) -> Stored[ReleasedValue] | None:
        return self._get(self.keys.released, ReleasedValue)

    @property
    def position(self) -> Stored[PositionValue] | None:
        return self._get(self.keys.position, PositionValue)

    @property
    def rebuild(self) -> Stored[RebuildValue] | None:
        return self._get(self.keys.rebuild(self.config.server), RebuildValue)

    def checksums(self, server: str) -> ChecksumsValue | None:
        """What the tables of ``server`` sum up to."""
        stored = self._get(self.keys.checksums(server), ChecksumsValue)
        return stored.value if stored else None

    def member(self, server: str) -> Stored[MemberValue] | None:
        return self._get(self.keys.member(server), MemberValue)

    @property
    def members(self) -> Mapping[str, MemberValue]:
        """Members that are registered."""
        found = ((name, self.member(name)) for name in self.config.servers)
        return {name: stored.value for name, stored in found if stored is not None}

    @property
    def me(self) -> str:
        return self.config.server

    @property
    def leads(self) -> bool:
        """The lead is this process's, and on the lease it keeps now: the key of an older
        lease may be gone already, whatever the mirror still shows."""
        leader = self.leader
        return (
            leader is not None
            and leader.value.server == self.me
            and leader.value.process == self.config.process
            and leader.lease == self.lease
        )

    @property
    def led_by_other(self) -> str:
        """The other server that leads, "" for none."""
        leader = self.leader
        return leader.value.server if leader is not None and leader.value.server != self.me else ""

    @property
    def primary(self) -> str:
        """Who has every confirmed write."""
        return self.sync.value.primary if self.sync else ""

    @property
    def standby(self) -> str:
        """Who has them too."""
        return self.sync.value.standby if self.sync else ""

    @property
    def waits(self) -> bool:
        """Commits are to wait for a standby, where there is one."""
        return self.config.mode != ASYNC

    def compare_leader(self) -> Compare:
        """The lead is as we know it."""
        return Compare(self.keys.leader, self.leader.mod_revision if self.leader else 0)

    def compare_sync(self) -> Compare:
        """`sync` is as we know it."""
        return Compare(self.keys.sync, self.sync.mod_revision if self.sync else 0)

    # -- the server

    @property
    def server(self) -> Observation | None:
        """The last look at the server in its present life."""
        return self.seen if self.alive and self.seen is not None else None

    @property
    def drained(self) -> bool:
        """Everything received is applied."""
        seen = self.server
        return seen is not None and covers(seen.history, seen.received)

    def running(self, now: Instant) -> bool:
        """It answers."""
        if not self.alive or self.seen is None:
            return False
        return self.silent_since is None or now - self.silent_since < self.config.timings.down_after_s

    # -- others

    def errant(self) -> str | None:
        """What this server has and the primary has not; "" for nothing, None while it
        cannot be known: the primary must have looked at itself after our own look was
        published, or what it wrote in between would seem too much."""
        mine, leader = self.member(self.me), self.led_by_other
        if not leader or leader != self.primary or mine is None or not mine.value.running:
            return None
        seen = self.server
        if seen is None or mine.value.life != seen.life:
            return None
        theirs = self.member(leader)
        if theirs is None or not theirs.value.running or theirs.value.role != "primary":
            return None
        if self.sync is None or theirs.value.term != self.sync.value.term:
            return None
        if theirs.value.basis < mine.mod_revision:
            return None
        try:
            return extra(mine.value.position, theirs.value.history)
        except BadGtids:
            return None

    def never_sent(self) -> str:
        """Transactions numbered by this server that the primary has and it has not (it was restored from an
        old copy); "" for none. MySQL's receiver leaves out what bears its own server_id: they never come."""
        seen, theirs = self.server, self.member(self.led_by_other)
        if seen is None or theirs is None or not seen.uuid or self.led_by_other != self.primary:
            return ""
        numbered = [part for part in theirs.value.history.split(",") if seen.uuid in part]
        try:
            return extra(",".join(numbered), seen.received)
        except BadGtids:
            return ""

    def own(self) -> str:
        """Everything here that the primary does not know: to be archived before this
        server's data is replaced for another reason. Rather too much than too little."""
        seen, theirs = self.server, self.member(self.led_by_other)
        if seen is None or theirs is None:
            return ""
        try:
            return extra(seen.history, theirs.value.history)
        except BadGtids:
            return seen.history

    def problems(self) -> list[str]:
        """What is wrong with the configuration of the servers, in words."""
        seen, found = self.server, []
        if seen is None:
            return []
        if seen.increment < len(self.config.servers):
            found.append(f"auto_increment_increment {seen.increment} < {len(self.config.servers)} servers")
        for name, other in self.members.items():
            if name == self.me or not other.running:
                continue
            if other.server_id == seen.server_id:
                found.append(f"server_id {seen.server_id} is also {name}'s")
            if other.uuid and other.uuid == seen.uuid:
                found.append(f"server_uuid {seen.uuid} is also {name}'s: remove auto.cnf and restart")
            if other.offset == seen.offset:
                found.append(f"auto_increment_offset {seen.offset} is also {name}'s")
            if other.flavour and other.flavour != self.config.flavour:
                found.append(f"{name} is {other.flavour}")
        return found

    @property
    def misnumbered(self) -> bool:
        """Two servers could make the same key, and this one is to be mended for it."""
        seen = self.server
        if seen is None:
            return False
        others = [other for name, other in self.members.items() if name != self.me and other.running]
        taken = any(other.offset == seen.offset for other in others)
        own = seen.offset == self.config.offset
        return seen.increment < len(self.config.servers) or (taken and not own)

    @property
    def same_identity(self) -> bool:
        """Another server has our server_id or UUID: it can neither lead nor follow."""
        return any("server_id" in text or "server_uuid" in text for text in self.problems())


def covers(theirs: str, mine: str) -> bool:
    """Whether ``theirs`` has everything in ``mine``; False when one cannot be read."""
    try:
        return has_all(theirs, mine)
    except BadGtids:
        return False
