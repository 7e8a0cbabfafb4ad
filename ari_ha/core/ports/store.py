"""etcd as machines see it: transactions that compare, leases, mirrored prefixes.

Semantics follow etcd's v3 KV API: every key carries the ``mod_revision`` of its
last change, and a transaction applies all of its writes or none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ari_ha.core.machine import Effect, Event


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A key with its value and the revisions etcd gives it."""

    key: str
    value: bytes
    mod_revision: int
    create_revision: int = 0
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Compare:
    """True when the key's mod_revision (0: the key is absent) has this relation."""

    key: str
    mod_revision: int
    op: str = "="  # "=", "<", ">" , "!="


@dataclass(frozen=True, slots=True)
class Put:
    """Write ``value``; with ``leased`` the key dies with the process's own lease."""

    key: str
    value: bytes
    leased: bool = False


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove ``key``, or every key that starts with it."""

    key: str
    prefix: bool = False


@dataclass(frozen=True, slots=True)
class TxnResult:
    """``succeeded``: the compares held and the writes are in. ``current`` holds,
    when they did not, the compared keys as they are (absent keys are left out)."""

    succeeded: bool
    revision: int
    current: tuple[KeyValue, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreTxn(Effect):
    """If all ``compares`` hold, apply ``puts`` and ``deletes`` atomically.

    Outcome: Done(TxnResult) either way (look at ``succeeded``); Unreachable when
    no member took it; Unknown when it may have been applied.
    """

    compares: tuple[Compare, ...] = ()
    puts: tuple[Put, ...] = ()
    deletes: tuple[Delete, ...] = ()
    tag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRead(Effect):
    """Read a key or prefix now (linearizable). Outcome: Done(tuple[KeyValue, ...])."""

    key: str
    prefix: bool = False
    tag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreUnwatch(Effect):
    """Nothing under ``prefix`` is of interest any more: its mirrors end. No outcome; a
    change that is already on its way may still be told."""

    prefix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSnapshot(Event):
    """All of ``prefix`` as of ``revision``; sent at start and whenever the stream
    of changes had to be begun again. Keys not in ``items`` do not exist."""

    prefix: str
    revision: int
    items: Mapping[str, KeyValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreChanged(Event):
    """One key changed; ``value`` is None when it was deleted."""

    key: str
    value: KeyValue | None
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreReach(Event):
    """Whether a member with a leader answers. ``no_leader``: members answer, but
    say there is no leader (then nobody else can commit either)."""

    reachable: bool
    no_leader: bool = False
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseState(Event):
    """The process's own lease. Authority by it ends at ``until`` (this process's
    monotonic clock); ``held`` False: it is gone and must be taken anew."""

    held: bool
    until: float = 0.0
    lease: int = 0
