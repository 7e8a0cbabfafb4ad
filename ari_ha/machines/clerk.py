"""The clerk: writes each ended call, and the queue log, from etcd's outbox into the database, once.

Several candidates run, a leased key says who writes. An entry leaves the outbox only
after its row was read back from the database, and only as it was written (its
mod_revision is compared). Rows are keyed, so whatever dies in between, writing again
changes nothing: two clerks at once do double work and no harm. Entries are written in the
order of the transactions that made them. While no database is writable the outbox waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ari_ha.core.machine import (
    Count,
    DeadlineReached,
    Done,
    Effect,
    Event,
    Instant,
    InvariantBroken,
    Note,
    OutcomeOf,
    Refused,
)
from ari_ha.core.ports.probe import WallClock
from ari_ha.core.ports.records import MigrateTables, Row, WriteRows
from ari_ha.core.ports.store import (
    Compare,
    Delete,
    KeyValue,
    LeaseState,
    Put,
    StoreChanged,
    StoreReach,
    StoreSnapshot,
    StoreTxn,
    TxnResult,
)
from ari_ha.wire.keyspace import BadValue, Keys, decode, encode
from ari_ha.wire.outbox import CdrValue, ClerkValue, QueueLogValue

BATCH_ENTRIES_MAX = 50
"""Entries in one commit; etcd takes 128 operations in one transaction."""
BATCH_ROWS_MAX = 200
"""Rows in one commit after which no further entry is added."""
RETRY_S = 1.0
"""Pause after anything that was not done."""
ASIDE_S = 60.0
"""An entry the database does not take is tried again after this long; the others go on."""
DATA_COLUMNS = 5
TEXT_CHARS_MAX = 128
"""Of what strangers can choose the length of: the columns are not longer."""
LEASE_MARGIN_S = 1.0
"""Nothing is begun this shortly before the lease may end."""
WRITE_LIMIT_S, STORE_LIMIT_S, MIGRATE_LIMIT_S = 5.0, 2.0, 60.0


CALLS, QUEUE_LOG = "calls", "queue_log"
KEY_OF = {CALLS: "ha_call_id", QUEUE_LOG: "ha_line"}
"""The column that names a row, by table."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """One key of the outbox, and the rows that are made of it."""

    item: KeyValue
    table: str
    rows: tuple[Row, ...]

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(row[KEY_OF[self.table]] for row in self.rows)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Entries on their way: written with the one effect, deleted with the next."""

    entries: tuple[_Entry, ...]


class ClerkMachine:
    """Decisions of one clerk process. ``process`` is unique to this life of it;
    ``migrate``: whoever begins to write brings the tables up to date first, and does so
    before there is a call to write, because others write into tables of the schema too."""

    def __init__(self, cluster: str, clerk: str, process: str, migrate: bool = False) -> None:
        self.keys = Keys(cluster)
        self._me = (clerk, process)
        self.outbox: dict[str, KeyValue] = {}
        self._leader: KeyValue | None = None
        self._leader_known = False
        self._lease: LeaseState = LeaseState(held=False)
        self.reachable = False
        self._utc_offset: float | None = None
        self._batch: _Batch | None = None
        self._claiming = False
        self._tables_old = migrate
        self._migrating = False
        self._single = False
        self._wait_until: Instant = 0.0
        self._aside: dict[str, Instant] = {}
        self.written = 0
        self._out: list[Effect] = []

    # --- the pattern -------------------------------------------------------------------

    def handle(self, event: Event, now: Instant) -> Sequence[Effect]:
        """The only method that changes the machine."""
        match event:
            case StoreSnapshot():
                self._snapshot(event)
            case StoreChanged():
                self._changed(event.key, event.value)
            case LeaseState():
                self._lease = event
            case StoreReach():
                self.reachable = event.reachable
            case WallClock():
                self._utc_offset = event.utc_s - now
            case OutcomeOf(effect=WriteRows()):
                self._wrote(event.outcome, now)
            case OutcomeOf(effect=MigrateTables()):
                self._migrated(event.outcome, now)
            case OutcomeOf(effect=StoreTxn(tag="claim")):
                self._claiming = False
                self._wait_until = now + RETRY_S
            case OutcomeOf(effect=StoreTxn(tag="delete")):
                self._deleted(event.outcome, now)
            case DeadlineReached():
                pass
            case _:
                self._out.append(Count(name="clerk_events_unknown"))
        self._next(now)
        out, self._out = self._out, []
        return out

    def deadline(self) -> Instant | None:
        """When something that waits may be tried again."""
        if self._batch or self._claiming or self._migrating or not self._lease.held:
            return None
        if self._leader_known and self._leader is None:
            return self._wait_until
        if self._mine() and self._tables_old:
            return self._wait_until
        if not self._mine() or not self.outbox:
            return None
        return max(self._wait_until, min(self._aside.get(key, 0.0) for key in self.outbox))

    def check(self) -> None:
        """One batch at a time, never more than its limit."""
        if self._batch and not 0 < len(self._batch.entries) <= BATCH_ENTRIES_MAX:
            raise InvariantBroken("a batch has no rows, or too many")

    def leads(self, now: Instant) -> bool:
        """Whether this clerk may begin to write."""
        return self._mine() and self._lease.held and now < self._lease.until - LEASE_MARGIN_S

    # --- etcd --------------------------------------------------------------------------

    def _snapshot(self, event: StoreSnapshot) -> None:
        if event.prefix == self.keys.prefix("clerk"):
            self._leader_known = True
            self._leader = event.items.get(self.keys.clerk())
        elif event.prefix == self.keys.prefix("outbox"):
            self.outbox = {key: item for key, item in event.items.items() if self._table(key)}
            self._aside = {key: at for key, at in self._aside.items() if key in self.outbox}

    def _changed(self, key: str, item: KeyValue | None) -> None:
        if key == self.keys.clerk():
            self._leader_known, self._leader = True, item
        elif self._table(key):
            self._aside.pop(key, None)
            if item is None:
                self.outbox.pop(key, None)
            else:
                self.outbox[key] = item

    def _table(self, key: str) -> str:
        """Where an entry of the outbox goes; empty for what is not known here."""
        if key.startswith(self.keys.cdr("")):
            return CALLS
        return QUEUE_LOG if key.startswith(self.keys.queue_log("")) else ""

    def _mine(self) -> bool:
        if self._leader is None:
            return False
        try:
            value = decode(self._leader.value, ClerkValue, self._leader.key)
        except BadValue:
            return False
        return (value.clerk, value.process) == self._me and self._leader.lease == self._lease.lease

    # --- what next ---------------------------------------------------------------------

    def _next(self, now: Instant) -> None:
        if self._batch or self._claiming or self._migrating or not self.reachable or now < self._wait_until:
            return
        if self._leader_known and self._leader is None:
            self._claim(now)
        elif self.leads(now) and self._tables_old:
            self._migrating = True
            self._out.append(MigrateTables(lane="records", limit_s=MIGRATE_LIMIT_S))
        elif self.leads(now):
            self._write(now)

    def _claim(self, now: Instant) -> None:
        if not self._lease.held or now >= self._lease.until - LEASE_MARGIN_S:
            return
        self._claiming = True
        since = now + self._utc_offset if self._utc_offset is not None else 0.0
        clerk, process = self._me
        value = encode(ClerkValue(clerk=clerk, process=process, since=since))
        key = self.keys.clerk()
        self._out.append(
            StoreTxn(
                lane="store", limit_s=STORE_LIMIT_S, tag="claim",
                compares=(Compare(key, 0),), puts=(Put(key, value, leased=True),),
            )
        )  # fmt: skip

    def _write(self, now: Instant) -> None:
        """The oldest entries that go into one table, as many as one commit takes."""
        ready = [item for key, item in self.outbox.items() if self._aside.get(key, 0.0) <= now]
        ready.sort(key=lambda item: (item.create_revision, item.key))
        entries: list[_Entry] = []
        for item in ready:
            table = self._table(item.key)
            if entries and table != entries[0].table:
                break
            try:
                entries.append(_Entry(item, table, self._rows(table, item)))
            except BadValue as error:
                self._put_aside(item.key, str(error), now)
                continue
            full = len(entries) >= (1 if self._single else BATCH_ENTRIES_MAX)
            if full or sum(len(entry.rows) for entry in entries) >= BATCH_ROWS_MAX:
                break
        if entries:
            self._batch = _Batch(tuple(entries))
            table = entries[0].table
            rows = tuple(row for entry in entries for row in entry.rows)
            self._out.append(
                WriteRows(lane="records", limit_s=WRITE_LIMIT_S, table=table, key=KEY_OF[table], rows=rows)
            )
        self._single = False

    def _rows(self, table: str, item: KeyValue) -> tuple[Row, ...]:
        """Raises BadValue."""
        if table == CALLS:
            return (row_of(decode(item.value, CdrValue, item.key)),)
        value = decode(item.value, QueueLogValue, item.key)
        if not value.lines:
            raise BadValue(f"{item.key}: no lines")
        return log_rows(item.key.removeprefix(self.keys.queue_log("")), value)

    def _put_aside(self, key: str, why: str, now: Instant) -> None:
        self._aside[key] = now + ASIDE_S
        self._out.append(Count(name="clerk_entries_refused"))
        self._out.append(Note(subject="clerk", text="an entry was not taken", level="error",
                              facts=(("key", key), ("why", why))))  # fmt: skip

    # --- what came of it ---------------------------------------------------------------

    def _migrated(self, outcome: Any, now: Instant) -> None:
        self._migrating = False
        if isinstance(outcome, Done):
            self._tables_old = False
            self._out.append(Note(subject="clerk", text="the tables are up to date",
                                  facts=(("applied", " ".join(outcome.value) or "nothing"),)))  # fmt: skip
        else:
            self._wait_until = now + RETRY_S

    def _wrote(self, outcome: Any, now: Instant) -> None:
        batch, self._batch = self._batch, None
        if batch is None:
            return
        if not isinstance(outcome, Done):
            self._not_written(batch, outcome, now)
            return
        found = tuple(entry for entry in batch.entries if entry.keys <= outcome.value)
        if len(found) < len(batch.entries):
            self._out.append(Count(name="clerk_rows_missing", by=len(batch.entries) - len(found)))
            self._wait_until = now + RETRY_S
        if not found or self._leader is None:
            return
        self._batch = _Batch(found)
        self._out.append(
            StoreTxn(
                lane="store", limit_s=STORE_LIMIT_S, tag="delete",
                compares=tuple(Compare(entry.item.key, entry.item.mod_revision) for entry in found),
                deletes=tuple(Delete(entry.item.key) for entry in found),
            )
        )  # fmt: skip

    def _not_written(self, batch: _Batch, outcome: Any, now: Instant) -> None:
        if not isinstance(outcome, Refused):
            self._out.append(Count(name="clerk_writes_failed"))
            self._wait_until = now + RETRY_S
        elif len(batch.entries) > 1:
            # one of them is bad: the first alone now, and each until it is found
            self._single = True
            self._out.append(Count(name="clerk_batches_split"))
        else:
            self._put_aside(batch.entries[0].item.key, outcome.reason, now)

    def _deleted(self, outcome: Any, now: Instant) -> None:
        batch, self._batch = self._batch, None
        if batch and isinstance(outcome, Done) and isinstance(outcome.value, TxnResult):
            if outcome.value.succeeded:
                self.written += len(batch.entries)
                table, rows = batch.entries[0].table, sum(len(entry.rows) for entry in batch.entries)
                self._out.append(Count(name="clerk_rows_written", by=rows, labels=(("table", table),)))
                for entry in batch.entries:
                    if self.outbox.get(entry.item.key) == entry.item:
                        del self.outbox[entry.item.key]
                return
            # somebody else was quicker: the mirror brings what is there now
            self._out.append(Count(name="clerk_compares_lost"))
        self._wait_until = now + RETRY_S


def row_of(value: CdrValue) -> Row:
    """The row of ``calls`` for one ended call. Times in UTC seconds, None: never."""
    talk_s = value.ended - value.connected if value.connected else 0.0
    wait_s = (value.connected or value.ended) - value.entered if value.entered else 0.0
    return {
        "ha_call_id": value.call,
        "kind": value.kind,
        "pair": value.vip,
        "edge": value.edge,
        "caller": value.caller[:TEXT_CHARS_MAX],
        "did": value.did[:TEXT_CHARS_MAX],
        "trunk": value.trunk,
        "queue": value.queue,
        "agent": value.agent,
        "agents": " ".join(value.agents),
        "started": value.started,
        "answered": value.answered or None,
        "entered": value.entered or None,
        "connected": value.connected or None,
        "ended": value.ended,
        "wait_ms": round(max(0.0, wait_s) * 1000),
        "talk_ms": round(max(0.0, talk_s) * 1000),
        "disposition": value.disposition,
        "ended_by": value.ended_by,
        "cause": value.cause,
        "epoch": value.epoch,
        "moves": max(0, len(value.nodes) - 1),
        "served": " ".join(value.nodes),
    }


def log_rows(entry: str, value: QueueLogValue) -> tuple[Row, ...]:
    """The rows of ``queue_log`` for one entry, named by it and their number in it."""
    rows = []
    for number, line in enumerate(value.lines):
        data = [text[:TEXT_CHARS_MAX] for text in [*line.data, *[""] * DATA_COLUMNS][:DATA_COLUMNS]]
        rows.append(
            {
                "time": line.time,
                "callid": line.call,
                "queuename": line.queue,
                "agent": line.agent,
                "event": line.event,
                **{f"data{n}": text for n, text in enumerate(data, start=1)},
                "ha_line": f"{entry}.{number}",
            }
        )
    return tuple(rows)
