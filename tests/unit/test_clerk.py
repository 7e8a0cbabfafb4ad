"""The clerk: each ended call is in the database once, whatever dies in between."""

from __future__ import annotations

import random

import pytest

from ari_ha.core.machine import DeadlineReached, Done, OutcomeOf, Refused, Unknown, Unreachable
from ari_ha.core.ports.records import MigrateTables, WriteRows
from ari_ha.core.ports.store import (
    KeyValue,
    LeaseState,
    StoreChanged,
    StoreReach,
    StoreSnapshot,
    StoreTxn,
    TxnResult,
)
from ari_ha.machines.clerk import (
    ASIDE_S,
    BATCH_ENTRIES_MAX,
    BATCH_ROWS_MAX,
    RETRY_S,
    ClerkMachine,
    log_rows,
    row_of,
)
from ari_ha.wire.keyspace import Keys, encode
from ari_ha.wire.outbox import CdrValue, QueueLine, QueueLogValue

KEYS = Keys("test")


class Office:
    """Etcd, a database and some clerks, in virtual time; ``chance`` makes things fail."""

    def __init__(self, clerks: int = 1, chance: random.Random | None = None) -> None:
        self.now = 10.0
        self.revision = 1
        self.store: dict[str, KeyValue] = {}
        self.rows: dict[str, int] = {}
        self.log: list[str] = []
        """Lines of the queue log in the order they were first written"""
        self.chance = chance
        self.writable = True
        self.tables = False
        self.poison: set[str] = set()
        self.batches: list[int] = []
        self.clerks: list[ClerkMachine] = []
        self.effects: list[tuple[ClerkMachine, object]] = []
        for _ in range(clerks):
            self.hire()

    def hire(self) -> ClerkMachine:
        clerk = ClerkMachine("test", "c", f"life{self.revision}-{len(self.clerks)}", migrate=True)
        self.clerks.append(clerk)
        for family in ("outbox", "clerk"):
            prefix = KEYS.prefix(family)
            items = {key: item for key, item in self.store.items() if key.startswith(prefix)}
            self.post(clerk, StoreSnapshot(prefix=prefix, revision=self.revision, items=items))
        self.post(clerk, StoreReach(reachable=True))
        lease = 100 + id(clerk) % 100_000
        clerk.lease_number = lease  # type: ignore[attr-defined]
        self.post(clerk, LeaseState(held=True, until=1e9, lease=lease))
        return clerk

    def die(self, clerk: ClerkMachine) -> None:
        """Whatever it had asked for may still happen; its lease ends."""
        self.clerks.remove(clerk)
        for who, effect in list(self.effects):
            if who is clerk:
                self.effects.remove((who, effect))
                if self.chance and self.chance.random() < 0.5:
                    self.apply(clerk, effect)
        leader = self.store.get(KEYS.clerk())
        if leader and leader.lease == clerk.lease_number:  # type: ignore[attr-defined]
            self.write(KEYS.clerk(), None)

    def post(self, clerk: ClerkMachine, event: object) -> None:
        out = clerk.handle(event, self.now)  # type: ignore[arg-type]
        clerk.check()
        self.effects += [(clerk, e) for e in out if isinstance(e, StoreTxn | WriteRows | MigrateTables)]

    def write(self, key: str, value: bytes | None, lease: int = 0) -> None:
        self.revision += 1
        item = None if value is None else KeyValue(key, value, self.revision, self.revision, lease)
        if item is None:
            self.store.pop(key, None)
        else:
            self.store[key] = item
        for clerk in list(self.clerks):
            self.post(clerk, StoreChanged(key=key, value=item, revision=self.revision))

    def end_call(self, call: str, **facts: object) -> None:
        value = CdrValue(call=call, started=1.0, ended=9.0, **facts)  # type: ignore[arg-type]
        self.write(KEYS.cdr(call), encode(value))

    def tell(self, entry: str, lines: int = 1) -> None:
        line = QueueLine(time=1.0, call="k", queue="support", agent="NONE", event="ENTERQUEUE")
        self.write(KEYS.queue_log(entry), encode(QueueLogValue(lines=[line] * lines)))

    def apply(self, clerk: ClerkMachine, effect: object) -> object:
        if isinstance(effect, MigrateTables | WriteRows) and not self.writable:
            return Unreachable("no writable server")
        if isinstance(effect, MigrateTables):
            self.tables = True
            return Done(["0001.sql"])
        if isinstance(effect, WriteRows):
            assert self.tables, "nobody writes before the tables are there"
            ids = [row[effect.key] for row in effect.rows]
            if self.poison & set(ids):
                return Refused("too long", 1406)
            self.batches.append(len(ids))
            for ident in ids:
                self.rows[ident] = self.rows.get(ident, 0) + 1
            if effect.table == "queue_log":
                self.log += [ident for ident in ids if ident not in self.log]
            return Done(frozenset(ids))
        assert isinstance(effect, StoreTxn)
        for compare in effect.compares:
            item = self.store.get(compare.key)
            if (item.mod_revision if item else 0) != compare.mod_revision:
                return Done(TxnResult(False, self.revision))
        for put in effect.puts:
            self.write(put.key, put.value, clerk.lease_number)  # type: ignore[attr-defined]
        for delete in effect.deletes:
            ident = delete.key.removeprefix(KEYS.cdr("")).removeprefix(KEYS.queue_log(""))
            assert {ident, f"{ident}.0"} & set(self.rows), "left the outbox without a row"
            self.write(delete.key, None)
        return Done(TxnResult(True, self.revision))

    def step(self) -> bool:
        if not self.effects:
            return False
        clerk, effect = self.effects.pop(0)
        fate = self.chance.random() if self.chance else 1.0
        if fate < 0.1:
            outcome: object = Unreachable("chance")
        else:
            outcome = self.apply(clerk, effect)
            if fate < 0.3:
                outcome = Unknown("chance")
        if clerk in self.clerks:
            self.post(clerk, OutcomeOf(effect=effect, outcome=outcome))  # type: ignore[arg-type]
        return True

    def run(self, seconds: float = 5.0) -> None:
        until = self.now + seconds
        while self.now < until:
            while self.step():
                pass
            due = [at for clerk in self.clerks if (at := clerk.deadline()) is not None]
            self.now = min(until, max(self.now, min(due, default=until)))
            for clerk in list(self.clerks):
                self.post(clerk, DeadlineReached())
            if not self.effects and self.now < until and min(due, default=until) <= self.now:
                self.now += 0.01

    def waiting(self) -> list[str]:
        return [key for key in self.store if key.startswith(KEYS.prefix("outbox"))]


def test_an_ended_call_is_written_and_leaves_the_outbox() -> None:
    office = Office()
    office.end_call("k1")
    office.run()
    assert office.rows == {"k1": 1} and not office.waiting()


def test_the_tables_are_made_before_a_call_ends_and_once() -> None:
    """Asterisk's own records go into tables of the same schema, from the first call on."""
    office = Office(clerks=2)
    office.writable = False
    office.run()
    assert not office.tables
    office.writable = True
    office.run()
    assert office.tables
    office.end_call("k1")
    assert not any(isinstance(effect, MigrateTables) for _, effect in office.effects)


def test_batches_are_bounded() -> None:
    office = Office()
    office.writable = False
    for n in range(BATCH_ENTRIES_MAX * 2 + 7):
        office.end_call(f"k{n}")
    office.run()
    assert not office.rows
    office.writable = True
    office.run()
    assert len(office.rows) == BATCH_ENTRIES_MAX * 2 + 7 and not office.waiting()
    assert max(office.batches) == BATCH_ENTRIES_MAX


def test_while_no_database_is_writable_it_waits_and_does_not_hammer() -> None:
    office = Office()
    office.writable = False
    office.end_call("k1")
    asked = 0
    until = office.now + 10 * RETRY_S
    while office.now < until:
        asked += sum(isinstance(effect, WriteRows) for _, effect in office.effects)
        office.run(0.1)
    assert asked <= 11 and office.waiting()
    office.writable = True
    office.run()
    assert office.rows == {"k1": 1} and not office.waiting()


def test_one_bad_entry_holds_up_nobody() -> None:
    office = Office()
    office.poison = {"k2"}
    for n in range(5):
        office.end_call(f"k{n}")
    office.write(KEYS.cdr("broken"), b"{not json")
    office.run()
    assert set(office.rows) == {"k0", "k1", "k3", "k4"}
    assert sorted(office.waiting()) == [KEYS.cdr("broken"), KEYS.cdr("k2")]
    office.poison = set()
    office.run(ASIDE_S + 5)
    assert "k2" in office.rows and office.waiting() == [KEYS.cdr("broken")]


def test_an_unknown_commit_is_written_again_and_is_one_row() -> None:
    office = Office()
    office.end_call("k1")
    while office.effects:
        clerk, effect = office.effects[0]
        if isinstance(effect, WriteRows):
            office.effects.pop(0)
            office.apply(clerk, effect)
            office.post(clerk, OutcomeOf(effect=effect, outcome=Unknown("limit")))
            break
        office.step()
    assert office.waiting(), "not before it was read back"
    office.run()
    assert set(office.rows) == {"k1"} and not office.waiting()


def test_one_of_several_writes() -> None:
    office = Office(clerks=3)
    office.end_call("k1")
    office.run()
    assert office.rows == {"k1": 1}
    assert sum(clerk.leads(office.now) for clerk in office.clerks) == 1


def test_without_a_lease_nothing_is_begun() -> None:
    office = Office()
    office.run()
    clerk = office.clerks[0]
    office.post(clerk, LeaseState(held=False))
    office.end_call("k1")
    assert not office.effects and not clerk.leads(office.now)


@pytest.mark.parametrize("seed", range(60))
def test_whatever_dies_each_call_has_its_row(seed: int) -> None:
    """Clerks die mid-batch, outcomes are lost, the database goes away; then it calms
    down, and each call has its row and none is left. `Office.apply` checks that no
    entry leaves before its row is there."""
    chance = random.Random(seed)
    office = Office(clerks=2, chance=chance)
    ended = told = 0
    for _ in range(120):
        match chance.randrange(7):
            case 6:
                office.tell(f"{'zyx'[told % 3]}{told}")
                told += 1
            case 0 | 1:
                office.end_call(f"k{ended}")
                ended += 1
            case 2:
                office.writable = not office.writable
            case 3 if len(office.clerks) > 1:
                office.die(chance.choice(office.clerks))
            case 4 if len(office.clerks) < 3:
                office.hire()
            case _:
                office.step()
        if chance.random() < 0.2:
            office.run(0.7)
    office.chance, office.writable = None, True
    office.run(30.0)
    lines = [f"{'zyx'[n % 3]}{n}.0" for n in range(told)]
    assert set(office.rows) == {f"k{n}" for n in range(ended)} | set(lines) and not office.waiting()
    assert office.log == lines, "in the order they were told, whatever their names"


def test_a_long_entry_is_a_batch_of_its_own() -> None:
    office = Office()
    office.tell("a", BATCH_ROWS_MAX + 50)
    office.tell("b", 2)
    office.run()
    assert office.batches == [BATCH_ROWS_MAX + 50, 2] and not office.waiting()


def test_a_line_has_five_columns_of_data() -> None:
    data = ["1", "x" * 500]
    line = QueueLine(time=5.5, call="k1", queue="support", agent="Agent/1", event="CONNECT", data=data)
    (row,) = log_rows("e", QueueLogValue(lines=[line]))
    assert (row["data1"], len(row["data2"]), row["data5"], row["ha_line"]) == ("1", 128, "", "e.0")
    assert (row["callid"], row["queuename"], row["event"]) == ("k1", "support", "CONNECT")


def test_the_row_says_how_long_one_waited_and_talked() -> None:
    value = CdrValue(
        call="k", started=100.0, answered=100.5, entered=101.0, connected=121.25, ended=181.25,
        caller="9" * 500, nodes=["ast1#1", "ast2#1"], agents=["1001", "1002"],
    )  # fmt: skip
    row = row_of(value)
    assert (row["wait_ms"], row["talk_ms"], row["moves"]) == (20_250, 60_000, 1)
    assert len(row["caller"]) == 128 and row["agents"] == "1001 1002"
    lost = row_of(CdrValue(call="k", started=1.0, entered=2.0, ended=12.0))
    assert (lost["wait_ms"], lost["talk_ms"], lost["answered"]) == (10_000, 0, None)
