"""The records of this node's calls: read from the mirror, written with a compare.

One write per record is under way at a time, and always the latest value is
written. While the store is away the latest value waits; acts that follow an
intent wait for it only so long (the claim itself was made by the ACD).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ari_ha.core.ids import NO_EPOCH, Epoch, NodeId
from ari_ha.core.machine import Done, Outcome
from ari_ha.core.ports.store import Compare, Delete, KeyValue, Put, StoreChanged, StoreSnapshot, TxnResult
from ari_ha.machines.node_context import NodeContext
from ari_ha.wire.keyspace import BadValue, OwnerValue, RecordValue, decode, encode
from ari_ha.wire.unknown_fields import merge_unknown

RETRY_S = 0.5
LATE_S = 0.1
"""A write not confirmed by then is counted as unwritten: edges do not move its call on purpose."""
DELETIONS_KEPT_MAX = 1_000

Act = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Stored:
    """A record as the store has it."""

    value: RecordValue
    raw: bytes
    revision: int


@dataclass(slots=True)
class _Pen:
    """Writing one record."""

    revision: int
    """What the next write compares; never that of a record of a newer epoch, which is not overwritten"""
    epoch: Epoch
    latest: RecordValue | None = None
    """What is to be written; None when the store has it."""
    writing: RecordValue | None = None
    """What is on its way to the store"""
    busy: bool = False
    closing: bool = False
    gone: bool = False
    """The record was deleted: the edge has ended the call. Nothing is written again."""
    acts: list[Act] = field(default_factory=list)
    """What waits for the latest value to be stored."""


def epoch_of(text: str) -> Epoch:
    """The epoch written in a value; the lowest when it is not one."""
    try:
        return Epoch.parse(text)
    except ValueError:
        return NO_EPOCH


class Records:
    """Mirror of ``calls/`` and the pens of our own records."""

    def __init__(self, context: NodeContext) -> None:
        self._context = context
        self._stored: dict[str, Stored] = {}
        self._owners: dict[str, OwnerValue] = {}
        self._pens: dict[str, _Pen] = {}
        self._deleted: dict[str, int] = {}
        """Records deleted lately, and at which revision."""
        self._unwritten: dict[str, RecordValue] = {}
        """Of calls we serve no more: the last value, which the store may not have"""
        self.late: set[str] = set()
        """Calls whose newest record the store has not confirmed in time"""
        self.seen = False
        """A snapshot of ``calls/`` has come."""
        self.on_superseded: Callable[[str, Epoch, str], None] = lambda call, epoch, node: None
        self.on_owner: Callable[[str, OwnerValue | None], None] = lambda call, owner: None
        self.on_gone: Callable[[str], None] = lambda call: None
        self.on_record: Callable[[str], None] = lambda call: None

    # --- reading -------------------------------------------------------------------

    def record(self, call: str) -> RecordValue | None:
        """The record as last seen in the store."""
        stored = self._stored.get(call)
        return stored.value if stored else None

    def latest(self, call: str) -> RecordValue | None:
        """The record as last seen in the store, or as we knew it ourselves when we served the call last and
        could not write it any more."""
        stored, ours = self.record(call), self._unwritten.get(call)
        if ours is None or (stored is not None and epoch_of(stored.epoch) > epoch_of(ours.epoch)):
            return stored
        return ours

    def owner(self, call: str) -> OwnerValue | None:
        """Who serves the call, as its edge wrote it."""
        return self._owners.get(call)

    def newest(self, call: str) -> Epoch:
        """The highest epoch under which the call was served, as far as the store has told:
        an INVITE of an older one was long under way, and is nobody's."""
        record, owner = self.record(call), self.owner(call)
        return max(epoch_of(value.epoch) if value else NO_EPOCH for value in (record, owner))

    def of_another(self, call: str, epoch: Epoch) -> RecordValue | None:
        """The call's record, where it is of a newer epoch, or of this one and not ours: another node had the
        call, or a life of this one that is over. Its edge has given that up, and INVITEs of it come through
        late, from queues or retransmission."""
        record = self.latest(call)
        if record is None or epoch_of(record.epoch) < epoch:
            return None
        return record if epoch_of(record.epoch) > epoch or record.node != self._context.me else None

    def ended(self, call: str) -> bool:
        """Whether the edge has ended the call, as the store has told lately: an INVITE for it is nobody's,
        whatever its epoch."""
        return call in self._deleted and self.record(call) is None and self.owner(call) is None

    def all_records(self) -> dict[str, RecordValue]:
        """Every record in the mirror."""
        return {call: stored.value for call, stored in self._stored.items()}

    def snapshot(self, event: StoreSnapshot) -> None:
        """The whole of a prefix that covers ``calls/``."""
        keys = self._context.keys
        if not keys.prefix("calls").startswith(event.prefix):
            return
        self.seen = True
        for call in [c for c in self._stored if keys.record(c) not in event.items]:
            self._take(keys.record(call), None)
        for call in [c for c in self._owners if keys.owner(c) not in event.items]:
            self._take(keys.owner(call), None)
        for key, kv in event.items.items():
            self._take(key, kv)

    def changed(self, event: StoreChanged) -> None:
        """One key changed."""
        self._take(event.key, event.value)
        match self._context.keys.split(event.key):
            case ("calls", call, "record") if event.value is None:
                self._unwritten.pop(call, None)
                self._deleted[call] = event.revision
                while len(self._deleted) > DELETIONS_KEPT_MAX:
                    del self._deleted[next(iter(self._deleted))]

    def _take(self, key: str, kv: KeyValue | None) -> None:
        match self._context.keys.split(key):
            case ("calls", call, "record"):
                self._take_record(call, kv)
            case ("calls", call, "owner"):
                self._take_owner(call, kv)

    def _take_record(self, call: str, kv: KeyValue | None) -> None:
        if kv is None:
            self._stored.pop(call, None)
            pen = self._pens.get(call)
            if pen is not None and pen.revision and not pen.busy:
                self._lost(call, pen)
            return
        self.learn(call, kv)
        stored = self._stored.get(call)
        pen = self._pens.get(call)
        if stored is None or pen is None or stored.revision < pen.revision:
            return
        if not self._newer(call, stored, pen):
            pen.revision = stored.revision
        self.on_record(call)

    def _take_owner(self, call: str, kv: KeyValue | None) -> None:
        if kv is None:
            self._owners.pop(call, None)
            self._unwritten.pop(call, None)
            self.on_owner(call, None)
            return
        try:
            owner = decode(kv.value, OwnerValue, kv.key)
        except BadValue as error:
            self._context.note(f"call/{call}", "owner key cannot be read", level="error", error=error)
            return
        self._owners[call] = owner
        self.on_owner(call, owner)

    def learn(self, call: str, kv: KeyValue) -> None:
        """A record as some answer of the store showed it."""
        old = self._stored.get(call)
        if old is not None and old.revision >= kv.mod_revision:
            return
        if kv.mod_revision < self._deleted.get(call, 0):
            return  # the answer to our write came after the news of its deletion
        try:
            value = decode(kv.value, RecordValue, kv.key)
        except BadValue as error:
            self._context.note(f"call/{call}", "record cannot be read", level="error", error=error)
            return
        self._stored[call] = Stored(value, kv.value, kv.mod_revision)

    # --- writing -------------------------------------------------------------------

    def open(self, call: str, epoch: Epoch) -> None:
        """Begins to write this call's record under ``epoch``."""
        stored, pen = self._stored.get(call), _Pen(0, epoch)
        if stored is not None and not self._newer(call, stored, pen):
            pen.revision = stored.revision
        self._pens[call] = pen

    def _newer(self, call: str, stored: Stored, pen: _Pen) -> bool:
        """Whether the store's record is of a decision after ours: somebody else serves the call."""
        return epoch_of(stored.value.epoch) > pen.epoch and not self.came_to_nothing(call)

    def came_to_nothing(self, call: str) -> bool:
        """Whether a move of the call did for which its record was written: its edge has given it to us since,
        who had it before."""
        owner = self.owner(call)
        if owner is None or owner.moving or owner.why:
            return False
        here = NodeId.parse(owner.node).name == self._context.config.node
        record = self.record(call)
        return here and record is not None and epoch_of(owner.epoch) > epoch_of(record.epoch)

    def kept(self, call: str) -> RecordValue | None:
        """The record of a survivor to which the call has not moved: it is ours to write again."""
        stored, pen = self._stored.get(call), self._pens.get(call)
        if stored is None or pen is None or epoch_of(stored.value.epoch) <= pen.epoch:
            return None
        if not self.came_to_nothing(call):
            return None
        pen.gone, pen.revision = False, stored.revision
        return stored.value

    def close(self, call: str, discard: bool = False) -> None:
        """The call is over here: its last value is still written. ``discard``: it is served under another
        epoch, or elsewhere, and nothing may be written any more; should it come back to us before the store
        knows more, what we knew is not lost."""
        pen = self._pens.get(call)
        if pen is None:
            return
        pen.closing = True
        if discard:
            self._keep(call, pen)
            pen.latest = None
            self._confirmed(call)
        self._release(pen)
        self._settle(call, pen)

    def _keep(self, call: str, pen: _Pen) -> None:
        if (value := pen.latest or pen.writing) is not None and not pen.gone:
            self._unwritten[call] = value
            while len(self._unwritten) > self._context.config.dirty_max:
                del self._unwritten[next(iter(self._unwritten))]

    def _settle(self, call: str, pen: _Pen) -> None:
        if pen.latest is not None or pen.busy or self._pens.get(call) is not pen:
            return
        self._confirmed(call)
        if pen.closing:
            del self._pens[call]
            self._context.cancel(f"record/{call}")

    def _sent(self, call: str) -> None:
        if call not in self.late:
            self._context.after(f"late/{call}", LATE_S, lambda: self.late.add(call))

    def _confirmed(self, call: str) -> None:
        self.late.discard(call)
        self._context.cancel(f"late/{call}")

    def put(self, call: str, value: RecordValue, then: Act | None = None) -> None:
        """Writes ``value``. ``then`` runs once: when it is stored, or the store is away
        or slow, or the record is not to be written any more."""
        pen = self._pens.get(call)
        if pen is None or pen.gone:
            if then:
                then()
            return
        self._unwritten.pop(call, None)
        pen.latest = value
        if then:
            if self._context.store_ok:
                self._wait(call, pen, then)
            else:
                then()
        if not self._context.store_ok:
            self.late.add(call)
        self._write(call, pen)
        self._bound()

    def _wait(self, call: str, pen: _Pen, then: Act) -> None:
        done = [False]

        def once() -> None:
            if not done[0]:
                done[0] = True
                then()

        pen.acts.append(once)
        context = self._context
        context.after(f"intent/{call}/{context.new_id()}", context.timings.intent_limit_s, once)

    def _bound(self) -> None:
        """Records that cannot be written are kept up to a number."""
        waiting = [call for call, pen in self._pens.items() if pen.latest is not None]
        for call in waiting[: max(0, len(waiting) - self._context.config.dirty_max)]:
            self._pens[call].latest = None
            self._context.count("node_records_dropped")

    def _raw(self, call: str, value: RecordValue) -> bytes:
        stored = self._stored.get(call)
        data = encode(value)
        return merge_unknown(stored.raw, data, RecordValue) if stored else data

    def _write(self, call: str, pen: _Pen) -> None:
        context = self._context
        if pen.busy or pen.gone or pen.latest is None or not context.store_ok:
            return
        if self._pens.get(call) is not pen:
            return
        value, pen.latest, pen.busy = pen.latest, None, True
        pen.writing = value
        acts, pen.acts = pen.acts, []
        key, data = context.keys.record(call), self._raw(call, value)

        def written(outcome: Outcome) -> None:
            pen.busy, pen.writing = False, None
            self._written(call, pen, value, outcome)
            for act in acts:
                act()
            self._write(call, pen)
            self._settle(call, pen)

        self._sent(call)
        context.txn(f"record/{call}", written, compares=(Compare(key, pen.revision),), puts=(Put(key, data),))

    def _written(self, call: str, pen: _Pen, value: RecordValue, outcome: Outcome) -> None:
        context = self._context
        key = context.keys.record(call)
        if isinstance(outcome, Done) and isinstance(outcome.value, TxnResult):
            if outcome.value.succeeded:
                pen.revision = outcome.value.revision
                self.learn(call, KeyValue(key, self._raw(call, value), outcome.value.revision))
            else:
                self._refused(call, pen, value, outcome.value.current)
            return
        if pen.latest is None:
            pen.latest = value
        # `_write` would try at once: the pause keeps it from spinning
        pen.busy = True
        context.after(f"record/{call}", RETRY_S, lambda: self._again(call, pen))

    def _again(self, call: str, pen: _Pen) -> None:
        pen.busy = False
        self._write(call, pen)
        self._settle(call, pen)

    def _refused(self, call: str, pen: _Pen, value: RecordValue, current: tuple[KeyValue, ...]) -> None:
        """Somebody else wrote it: the edge ended the call, a survivor took it, or our
        own earlier write came through after all."""
        context = self._context
        key = context.keys.record(call)
        kv = next((kv for kv in current if kv.key == key), None)
        if kv is None:
            self._stored.pop(call, None)
            if pen.revision:
                self._lost(call, pen)
            else:
                pen.latest = pen.latest or value
            return
        self.learn(call, kv)
        stored = self._stored.get(call)
        if stored is not None and self._newer(call, stored, pen):
            pen.gone = True
            self.on_superseded(call, epoch_of(stored.value.epoch), stored.value.node)
            return
        pen.revision = max(pen.revision, kv.mod_revision)
        pen.latest = pen.latest or value
        self.on_record(call)  # may put a newer value, and begins to write it

    def _lost(self, call: str, pen: _Pen) -> None:
        pen.gone = True
        pen.latest = None
        self._confirmed(call)
        self._release(pen)
        self.on_gone(call)

    @staticmethod
    def _release(pen: _Pen) -> None:
        acts, pen.acts = pen.acts, []
        for act in acts:
            act()

    def flush(self) -> None:
        """The store is reachable again: what waits, also after a write that failed, is written at once."""
        for call, pen in list(self._pens.items()):
            if self._context.armed(f"record/{call}"):
                self._context.cancel(f"record/{call}")
                pen.busy = False
            self._write(call, pen)

    def release_all(self) -> None:
        """The store is away: nothing waits for it."""
        for pen in list(self._pens.values()):
            self._release(pen)

    # --- together with the ACD -----------------------------------------------------

    def lend(self, call: str, value: RecordValue) -> tuple[tuple[Put, ...], tuple[Compare, ...]]:
        """The write of this record for the ACD to put into its transaction; nothing when
        one of our own is under way. Ends with `given_back`."""
        pen = self._pens.get(call)
        if pen is None or pen.gone:
            return (), ()
        self._unwritten.pop(call, None)
        pen.latest = value
        if pen.busy or not self._context.store_ok:
            return (), ()
        pen.latest, pen.writing, pen.busy = None, value, True
        self._sent(call)
        key = self._context.keys.record(call)
        return (Put(key, self._raw(call, value)),), (Compare(key, pen.revision),)

    def given_back(self, call: str, value: RecordValue, revision: int) -> None:
        """The ACD's transaction is over; ``revision`` 0: our record is not in it."""
        pen = self._pens.get(call)
        if pen is None:
            return
        pen.busy, pen.writing = False, None
        if revision:
            pen.revision = max(pen.revision, revision)
            key = self._context.keys.record(call)
            self.learn(call, KeyValue(key, self._raw(call, value), revision))
        elif pen.latest is None:
            pen.latest = value
        self._write(call, pen)
        self._settle(call, pen)

    def refused_by_acd(self, call: str, current: tuple[KeyValue, ...]) -> None:
        """Our compare inside the ACD's transaction failed."""
        pen = self._pens.get(call)
        key = self._context.keys.record(call)
        kv = next((kv for kv in current if kv.key == key), None)
        if pen is not None and kv is not None:
            self.learn(call, kv)
            stored = self._stored.get(call)
            if stored is None or not self._newer(call, stored, pen):
                pen.revision = max(pen.revision, kv.mod_revision)

    def delete_stale(self, call: str) -> None:
        """Removes a record nobody serves."""
        stored = self._stored.get(call)
        if stored is None:
            return
        key = self._context.keys.record(call)

        def removed(outcome: Outcome) -> None:
            if isinstance(outcome, Done) and not any(kv.key == key for kv in outcome.value.current):
                self._stored.pop(call, None)

        compares = (Compare(key, stored.revision), Compare(self._context.keys.owner(call), 0))
        self._context.txn(f"record/{call}", removed, compares=compares, deletes=(Delete(key),))
