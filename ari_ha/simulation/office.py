"""The office where ended calls become rows: two clerks, the database they write to, and
what goes wrong there, beside and independent of what goes wrong elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ari_ha.core.machine import Done, Effect, Refused, Unknown, Unreachable
from ari_ha.core.ports.probe import WallClock
from ari_ha.core.ports.records import MigrateTables, Row, WriteRows
from ari_ha.core.ports.store import StoreRead, StoreTxn
from ari_ha.machines.clerk import CALLS, QUEUE_LOG, ClerkMachine
from ari_ha.simulation.fake_store import Store, StoreClient
from ari_ha.simulation.process import DEAD, MachineProcess, Settle
from ari_ha.simulation.world import World
from ari_ha.wire.keyspace import Keys

CLERKS = ("clerk1", "clerk2")
LEASE_TTL_S = 4.0
COMMIT_MIN_S, COMMIT_MAX_S = 0.0005, 0.01


@dataclass(slots=True)
class FakeDatabase:
    """Tables with a unique key each, on whichever server is writable. It may be away, and
    a commit may be in doubt: done or not, told as Unknown or never told."""

    world: World
    away: bool = False
    doubt: float = 0.0
    """Share of commits whose client does not hear what became of them."""
    migrated: bool = False
    rows: dict[str, dict[str, Row]] = field(default_factory=lambda: {CALLS: {}, QUEUE_LOG: {}})
    """Table -> key -> row, in the order they were first written."""
    on_row: list[Callable[[str, Row], None]] = field(default_factory=list)

    def perform(self, effect: MigrateTables | WriteRows, settle: Settle) -> None:
        """Carries it out a moment later, or not."""
        delay_s = self.world.between(COMMIT_MIN_S, COMMIT_MAX_S)
        self.world.after(delay_s, lambda: self._arrived(effect, settle))

    def _arrived(self, effect: MigrateTables | WriteRows, settle: Settle) -> None:
        if self.away:
            settle(Unreachable("no server is writable"))
        elif isinstance(effect, MigrateTables):
            self.migrated = True
            settle(Done(["0001_calls.sql"]))
        elif not self.migrated:
            settle(Refused("no such table", 1146))
        elif self.world.chance(self.doubt):
            if self.world.chance(0.5):
                self._commit(effect)
            if self.world.chance(0.5):
                settle(Unknown("connection lost in commit"))
        else:
            settle(Done(self._commit(effect)))

    def _commit(self, effect: WriteRows) -> frozenset[str]:
        table = self.rows[effect.table]
        for row in effect.rows:
            key = row[effect.key]
            if key not in table:
                table[key] = row
                for tell in self.on_row:
                    tell(effect.table, row)
        return frozenset(row[effect.key] for row in effect.rows)


class Office:
    """Clerks and database of one run; `begin` and `stop` faults, like the rest of it."""

    def __init__(self, world: World, store: Store, cluster: str) -> None:
        self.world = world
        self.store = store
        self.cluster = cluster
        self.keys = Keys(cluster)
        self.database = FakeDatabase(world)
        self.on_clerk: list[Callable[[ClerkMachine], None]] = []
        """Called with every clerk that is made: planted bugs."""
        self.clerks = [
            MachineProcess(
                world, name, name, make=self._make, perform=self._perform, instant=(),
                perform_now=lambda process, effect: None,
            )
            for name in CLERKS
        ]  # fmt: skip
        self._clients: dict[str, StoreClient] = {}
        self._bad = False
        self._pause_s = 0.0

    def start(self) -> None:
        """Both clerks begin."""
        for clerk in self.clerks:
            self._hire(clerk)

    def _hire(self, clerk: MachineProcess) -> None:
        clerk.start(WallClock(utc_s=clerk.clock.utc()))
        prefixes = [self.keys.prefix(family) for family in ("outbox", "clerk")]
        self._clients[clerk.name] = StoreClient(self.store, clerk, prefixes, LEASE_TTL_S)
        clerk.tell_time()

    def _make(self, process: MachineProcess) -> ClerkMachine:
        machine = ClerkMachine(self.cluster, process.name, f"life{process.life}", migrate=True)
        for change in self.on_clerk:
            change(machine)
        return machine

    def _perform(self, process: MachineProcess, effect: Effect, settle: Settle) -> None:
        if isinstance(effect, StoreTxn | StoreRead):
            self._clients[process.name].perform(effect, settle)
        elif isinstance(effect, MigrateTables | WriteRows):
            self.database.perform(effect, settle)
        else:
            self.world.after(0.0, lambda: settle(Refused(f"nobody performs {type(effect).__name__}")))

    # -- what goes wrong

    def begin_faults(self, pause_s: float, doubt: float) -> None:
        """A clerk dies or stands still, or the database is away, every ``pause_s`` or so;
        0: never. ``doubt``: share of commits nobody hears of."""
        self.database.doubt = doubt
        self._bad, self._pause_s = pause_s > 0, pause_s
        self._next()

    def stop_faults(self) -> None:
        """Everything is mended."""
        self._bad = False
        self.database.away, self.database.doubt = False, 0.0
        for clerk in self.clerks:
            clerk.thaw()
            if clerk.state == DEAD:
                self._hire(clerk)

    def _next(self) -> None:
        if self._bad:
            self.world.after(self.world.rng.expovariate(1.0 / self._pause_s), self._strike)

    def _strike(self) -> None:
        if not self._bad:
            return
        world, database = self.world, self.database
        clerk = world.rng.choice(self.clerks)
        what = world.rng.choice(("kill", "freeze", "away"))
        world.say("office", f"{what} ({clerk.name})")
        if what == "kill":
            clerk.kill()
            self._later(0.3, 6.0, lambda: self._hire(clerk) if clerk.state == DEAD else None)
        elif what == "freeze":
            clerk.freeze()
            self._later(0.1, 8.0, clerk.thaw)
        else:
            database.away = True

            def back() -> None:
                database.away = False

            self._later(0.2, 8.0, back)
        self._next()

    def _later(self, least_s: float, most_s: float, act: Callable[[], object]) -> None:
        self.world.after(self.world.between(least_s, most_s), lambda: act() if self._bad else None)
