"""The part of the key space that belongs to databases: ``databases/<db>/…``.

`leader` is leased by the watcher of the one server that may be writable. `sync` is not:
it says who has every confirmed write, so it outlives everybody. Both change only in
transactions that compare their mod_revision.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from ari_ha.wire.keyspace import BadValue, Keys

SCHEMA = 1


class DatabaseKeys:
    """Keys of one database (a pair of servers)."""

    def __init__(self, cluster: str, database: str) -> None:
        self.root = f"{Keys(cluster).prefix('databases')}{database}/"
        self.leader = f"{self.root}leader"
        self.sync = f"{self.root}sync"
        self.hold = f"{self.root}hold"
        self.order = f"{self.root}order"
        self.released = f"{self.root}released"
        self.position = f"{self.root}position"

    def member(self, server: str) -> str:
        return f"{self.root}members/{server}"

    def rebuild(self, server: str) -> str:
        return f"{self.root}rebuilds/{server}"

    def errant(self, server: str, number: int) -> str:
        return f"{self.root}errant/{server}/{number:06d}"

    def checksums(self, server: str) -> str:
        return f"{self.root}checksums/{server}"

    def history(self, term: int) -> str:
        return f"{self.root}history/{term:08d}"

    def split(self, key: str) -> tuple[str, ...]:
        """The parts below the root; empty when it is not ours."""
        return tuple(key[len(self.root) :].split("/")) if key.startswith(self.root) else ()


class DatabaseValue(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """Base of all values."""

    schema: int = SCHEMA


class LeaderValue(DatabaseValue):
    """``leader``, leased: whose server may be writable."""

    server: str
    process: str
    """One life of the watcher that holds it."""
    stage: str = "promoting"
    """promoting, open"""
    since: float = 0.0
    forced: bool = False
    """An operator accepted that confirmed writes may be missing."""


class SyncValue(DatabaseValue):
    """``sync``: who has every write a client was told yes for. ``primary`` always;
    ``standby`` too, while it is in its life ``standby_life``. Nobody else may be
    promoted."""

    primary: str
    standby: str = ""
    standby_life: str = ""
    term: int = 0
    """Counts changes of primary."""
    lossless: bool = True
    """The primary had every confirmed write when it was promoted."""
    mode: str = "sync"
    """sync, async"""
    why: str = ""


class MemberValue(DatabaseValue):
    """``members/<server>``, leased: what its watcher sees."""

    server: str
    process: str
    running: bool = False
    role: str = "unknown"
    """primary, replica, writer, closed, down, rebuilding, unknown"""
    writable: bool = False
    life: str = ""
    uuid: str = ""
    server_id: int = 0
    version: str = ""
    flavour: str = ""
    position: str = ""
    history: str = ""
    received: str = ""
    source: str = ""
    io: str = "no"
    applying: bool = False
    error: str = ""
    semi_source: bool = False
    semi_clients: int = 0
    semi_waiting: int = 0
    semi_replica: bool = False
    lag_ms: int | None = None
    increment: int = 1
    offset: int = 1
    errant: str = ""
    problems: list[str] = []
    basis: int = 0
    """Newest revision of etcd its watcher had seen when it asked the server."""
    term: int = 0
    http: str = ""
    confirming: str = ""
    """The primary it confirms to follow while etcd is away."""
    disk_free_share: float = 1.0
    connections: int = 0
    shape: str = "replica"
    diverged: list[str] = []
    """Two writers: tables that differ."""


class HoldValue(DatabaseValue):
    """``hold``: no failover and no rebuild by itself until it is released."""

    by: str = ""
    reason: str = ""
    since: float = 0.0


class OrderValue(DatabaseValue):
    """``order``: what an operator wants done, and how far it is."""

    id: str
    kind: str
    """switchover, reinit"""
    server: str
    """The server to become primary, or to be rebuilt."""
    stage: str = "asked"
    """asked, handed"""
    by: str = ""
    since: float = 0.0


class ReleasedValue(DatabaseValue):
    """``released``: its primary gave the lead back by itself; promises to it are void."""

    server: str
    sync_revision: int
    why: str = ""


class PositionValue(DatabaseValue):
    """``position``: what the primary had last, for a choice without confirmations."""

    server: str
    history: str
    term: int = 0
    at: float = 0.0


class RebuildValue(DatabaseValue):
    """``rebuilds/<server>``: its data is being replaced; until the key is gone the data
    is nobody's, whatever it looks like."""

    server: str
    donor: str
    stage: str = "archive"
    """archive, copy"""
    errant: str = ""
    archived: str = ""
    why: str = ""
    since: float = 0.0


class ErrantValue(DatabaseValue):
    """``errant/<server>/<n>``: transactions that were taken out of a server, and the
    file where an operator can read them."""

    server: str
    gtids: str
    file: str
    term: int = 0
    at: float = 0.0


class ChecksumsValue(DatabaseValue):
    """``checksums/<server>``: two writers only; what its tables sum up to, and since when."""

    server: str
    at: float = 0.0
    sums: dict[str, int | None] = {}
    since: dict[str, float] = {}
    """UTC of the first of the looks in a row that found the same sum."""


class HistoryValue(DatabaseValue):
    """``history/<term>``: a change of primary, or why one did not happen."""

    term: int
    new: str
    old: str = ""
    why: str = ""
    at: float = 0.0
    took_ms: int = 0
    position: str = ""


KINDS: dict[str, type[DatabaseValue]] = {
    "leader": LeaderValue,
    "sync": SyncValue,
    "hold": HoldValue,
    "order": OrderValue,
    "released": ReleasedValue,
    "position": PositionValue,
    "members": MemberValue,
    "rebuilds": RebuildValue,
    "errant": ErrantValue,
    "history": HistoryValue,
    "checksums": ChecksumsValue,
}
"""First part of a key below the root -> its values."""

D = TypeVar("D", bound=DatabaseValue)
_encoder = msgspec.json.Encoder()


def encode(value: DatabaseValue) -> bytes:
    """The JSON bytes stored for ``value``."""
    return _encoder.encode(value)


def decode(data: bytes, kind: type[D], key: str = "") -> D:
    """The value under ``key``. Raises BadValue when it is not one."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise BadValue(f"{key or kind.__name__}: {error}") from error
