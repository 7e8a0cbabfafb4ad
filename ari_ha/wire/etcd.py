"""etcd's v3 API in our words: codecs, what its errors mean, and the vocabulary
between the client machine (machines.etcd_client) and whatever carries its calls
(adapters.etcd, or a test)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ari_ha.core.machine import Effect, Event, Outcome
from ari_ha.core.ports.store import Compare, Delete, KeyValue, Put, StoreTxn, TxnResult
from ari_ha.wire.etcd_proto import messages as pb

# ---- what can go wrong


class Trouble(Enum):
    """Why a call has no answer, or a bad one. The first group was certainly not done."""

    REFUSED_CONNECTION = "connection refused"  # no process listens there
    NOT_SENT = "not sent"
    NO_LEADER = "no leader"
    NO_SPACE = "no space"
    BUSY = "too many requests"
    TOKEN = "token refused"
    # etcd answered, and the answer is no
    NO_LEASE = "no lease"
    COMPACTED = "compacted"
    REFUSED = "refused"
    # it may have been done
    TIMED_OUT = "timed out"
    LOST = "connection lost"


#: Certainly not done, and another member (or a later moment) may do it.
NOT_DONE = frozenset(
    {
        Trouble.REFUSED_CONNECTION,
        Trouble.NOT_SENT,
        Trouble.NO_LEADER,
        Trouble.NO_SPACE,
        Trouble.BUSY,
        Trouble.TOKEN,
    }
)
MAYBE_DONE = frozenset({Trouble.TIMED_OUT, Trouble.LOST})

#: Texts etcd and gRPC put into the status, in the order they are looked for.
_DETAILS = (
    ("etcdserver: no leader", Trouble.NO_LEADER),
    ("etcdserver: not leader", Trouble.NO_LEADER),
    ("requested lease not found", Trouble.NO_LEASE),
    ("required revision has been compacted", Trouble.COMPACTED),
    ("database space exceeded", Trouble.NO_SPACE),
    ("too many requests", Trouble.BUSY),
    ("invalid auth token", Trouble.TOKEN),
    ("user name is empty", Trouble.TOKEN),
    ("revision of auth store is old", Trouble.TOKEN),
    ("etcdserver: request timed out", Trouble.TIMED_OUT),
    ("etcdserver: leader changed", Trouble.LOST),
)
_NEVER_CONNECTED = ("failed to connect to all addresses", "connections to all backends failing")
_ANSWERED_NO = frozenset(
    {
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "FAILED_PRECONDITION",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "UNAUTHENTICATED",
    }
)


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed call: what it means and the words it came with."""

    trouble: Trouble
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.trouble.value}: {self.detail}" if self.detail else self.trouble.value


def failure(status: str, detail: str) -> Failure:
    """What a gRPC status (its name) and text mean. In doubt: it may have been done."""
    for text, trouble in _DETAILS:
        if text in detail:
            return Failure(trouble, detail)
    if status == "UNAVAILABLE" and any(text in detail for text in _NEVER_CONNECTED):
        refused = "Connection refused" in detail
        return Failure(Trouble.REFUSED_CONNECTION if refused else Trouble.NOT_SENT, detail)
    if status in _ANSWERED_NO:
        return Failure(Trouble.REFUSED, detail)
    if status == "DEADLINE_EXCEEDED":
        return Failure(Trouble.TIMED_OUT, detail)
    return Failure(Trouble.LOST, detail or status)


# ---- between the client machine and its carrier


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdCall(Effect):
    """One request to one member, answered by one `EtcdAnswer` within ``limit_s``.

    A method that streams both ways (LeaseKeepAlive) is asked once and answered once.
    """

    call: int
    endpoint: str
    method: str
    request: Any
    token: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdAnswer(Event):
    """The answer to call ``call``: a message, or a `Failure`."""

    call: int
    result: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOpen(Effect):
    """Open a Watch stream; ends in exactly one `StreamEnded`, except when we close it."""

    stream: int
    endpoint: str
    token: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSend(Effect):
    """Write a WatchRequest (queued until the stream is up)."""

    stream: int
    request: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamClose(Effect):
    """Forget the stream; nothing of it is reported any more."""

    stream: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSaid(Event):
    """A WatchResponse."""

    stream: int
    response: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEnded(Event):
    """The stream broke or was ended by etcd."""

    stream: int
    why: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberReset(Effect):
    """Drop the connection to a member: it looks open and carries nothing."""

    endpoint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Deliver(Effect):
    """Give ``event`` to the process's machine; `DeliveryRefused` when it has no room."""

    event: Event


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryRefused(Event):
    """``event`` was not taken: what it said must be said again."""

    event: Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle(Effect):
    """The outcome of the store effect submitted under ``ticket``."""

    ticket: int
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Start(Event):
    """Begin to look for members."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop(Event):
    """End the watch, and the lease too when ``revoke``."""

    revoke: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorWanted(Event):
    """Keep the process's machine informed of everything under ``prefix``."""

    prefix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorUnwanted(Event):
    """End every mirror under ``prefix``."""

    prefix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseWanted(Event):
    """Keep one lease of ``ttl_s`` for the process."""

    ttl_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted(Event):
    """A StoreTxn or StoreRead to carry out; ends in one `Settle` with ``ticket``."""

    ticket: int
    effect: Effect


# ---- codecs

_RESULTS = {
    "=": pb.Compare.EQUAL,
    "!=": pb.Compare.NOT_EQUAL,
    ">": pb.Compare.GREATER,
    "<": pb.Compare.LESS,
}


def prefix_end(prefix: bytes) -> bytes:
    """The first key after all keys that start with ``prefix`` (b"\\0": the last of all)."""
    trimmed = prefix.rstrip(b"\xff")
    if not trimmed:
        return b"\0"
    return trimmed[:-1] + bytes([trimmed[-1] + 1])


def key_value(kv: Any) -> KeyValue:
    """An mvccpb.KeyValue as ours. Keys that are not UTF-8 keep their bytes, escaped."""
    return KeyValue(
        kv.key.decode("utf-8", "surrogateescape"), kv.value, kv.mod_revision, kv.create_revision, kv.lease
    )


def key_bytes(key: str) -> bytes:
    """The key's bytes; the opposite of what `key_value` does."""
    return key.encode("utf-8", "surrogateescape")


def range_request(
    key: str, *, prefix: bool = False, revision: int = 0, limit: int = 0, count_only: bool = False
) -> Any:
    """Reads a key or a prefix; linearizable."""
    start = key_bytes(key)
    if prefix:
        return pb.RangeRequest(
            key=start or b"\0",
            range_end=prefix_end(start),
            revision=revision,
            limit=limit,
            count_only=count_only,
        )
    return pb.RangeRequest(key=start, revision=revision, limit=limit, count_only=count_only)


def compare_message(compare: Compare) -> Any:
    """Our comparison of mod_revision (0: absent) as etcd's."""
    return pb.Compare(
        result=_RESULTS[compare.op],
        target=pb.Compare.MOD,
        key=key_bytes(compare.key),
        mod_revision=compare.mod_revision,
    )


def put_op(put: Put, lease: int) -> Any:
    """A put, on the process's lease when it is leased."""
    request = pb.PutRequest(key=key_bytes(put.key), value=put.value, lease=lease if put.leased else 0)
    return pb.RequestOp(request_put=request)


def delete_op(delete: Delete) -> Any:
    """A delete of a key or a prefix."""
    key = key_bytes(delete.key)
    end = prefix_end(key) if delete.prefix else b""
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key or b"\0", range_end=end))


def compared_keys(compares: Iterable[Compare]) -> list[str]:
    """The compared keys, each once, in order."""
    return list(dict.fromkeys(compare.key for compare in compares))


def txn_request(txn: StoreTxn, lease: int) -> Any:
    """The transaction; where the compares fail it reads the compared keys instead."""
    return pb.TxnRequest(
        compare=[compare_message(compare) for compare in txn.compares],
        success=[*(put_op(put, lease) for put in txn.puts), *(delete_op(d) for d in txn.deletes)],
        failure=[
            pb.RequestOp(request_range=pb.RangeRequest(key=key_bytes(key)))
            for key in compared_keys(txn.compares)
        ],
    )


def txn_result(response: Any) -> TxnResult:
    """The answer to `txn_request`."""
    current: tuple[KeyValue, ...] = ()
    if not response.succeeded:
        current = tuple(key_value(kv) for r in response.responses for kv in r.response_range.kvs)
    return TxnResult(response.succeeded, response.header.revision, current)


def watch_create(prefix: str, start_revision: int, watch_id: int) -> Any:
    """Watch every key under ``prefix`` from ``start_revision`` on."""
    key = key_bytes(prefix)
    return pb.WatchRequest(
        create_request=pb.WatchCreateRequest(
            key=key or b"\0",
            range_end=prefix_end(key),
            start_revision=start_revision,
            watch_id=watch_id,
            progress_notify=True,
            fragment=True,
        )
    )


def watch_progress() -> Any:
    """Asks for one progress response."""
    return pb.WatchRequest(progress_request=pb.WatchProgressRequest())


def change(event: Any) -> tuple[str, KeyValue | None, int]:
    """A watch event as (key, value or None when deleted, revision)."""
    kv = event.kv
    if event.type == pb.Event.DELETE:
        return kv.key.decode("utf-8", "surrogateescape"), None, kv.mod_revision
    value = key_value(kv)
    return value.key, value, kv.mod_revision


def progress_is_sound(version: str) -> bool:
    """Whether a progress response of this server version may be resumed from.

    Before 3.4.25 and 3.5.8 it could overtake events not yet delivered.
    """
    parts = version.split("-", 1)[0].split(".")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
        return False
    major, minor, patch = (int(part) for part in parts)
    if (major, minor) == (3, 4):
        return patch >= 25
    if (major, minor) == (3, 5):
        return patch >= 8
    return (major, minor) >= (3, 6)
