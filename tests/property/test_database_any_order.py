"""Whatever comes in whatever order, a watcher goes on, opens only with the lead, and
never lets commits stop waiting before etcd was told."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from ari_ha.core.machine import (
    DeadlineReached,
    Done,
    Effect,
    Event,
    OutcomeOf,
    Refused,
    ShellStall,
    Unknown,
    Unreachable,
)
from ari_ha.core.ports.database import DatabaseDo, Observation, Observe, PeerSaid, ServerLife
from ari_ha.core.ports.operator import OperatorRequest
from ari_ha.core.ports.store import KeyValue, LeaseState, StoreChanged, StoreReach, StoreTxn, TxnResult
from ari_ha.machines.database import DatabaseMachine
from ari_ha.machines.database_config import ASYNC, CIRCULAR, FLAVOURS, MODES, REPLICA, DatabaseConfig, Server
from ari_ha.wire.database_keys import (
    DatabaseKeys,
    HoldValue,
    LeaderValue,
    MemberValue,
    OrderValue,
    RebuildValue,
    SyncValue,
    encode,
)

KEYS = DatabaseKeys("main", "cdr")
UUID = "00000001-0000-0000-0000-000000000000"
NAMES = st.sampled_from(["db1", "db2"])
SETS = st.sampled_from(["", f"{UUID}:1-3", f"{UUID}:1-9", f"{UUID[:-1]}2:1", "1-1-4", "nonsense"])
LIVES = st.sampled_from(["L1", "L2"])
OBSERVATIONS = st.builds(
    Observation, life=LIVES, uuid=st.just(UUID), server_id=st.integers(1, 2), writable=st.booleans(),
    position=SETS, history=SETS, received=SETS, source=st.sampled_from(["", "db1", "db2"]),
    io=st.sampled_from(["yes", "no", "connecting"]), io_error=st.sampled_from(["", "1236 purged"]),
    applying=st.booleans(), apply_error=st.sampled_from(["", "1062 duplicate", "1950 order"]),
    semi_source=st.booleans(), semi_clients=st.integers(0, 1), semi_waiting=st.integers(0, 2),
    semi_acked=st.integers(0, 3), semi_replica=st.booleans(), lag_s=st.sampled_from([None, 0.1, 60.0]),
    increment=st.integers(1, 2), offset=st.integers(1, 2),
)  # fmt: skip
VALUES = st.one_of(
    st.builds(
        LeaderValue, server=NAMES, process=st.sampled_from(["p", "q"]),
        stage=st.sampled_from(["promoting", "open"]),
    ).map(lambda value: (KEYS.leader, value)),
    st.builds(
        SyncValue, primary=NAMES, standby=st.sampled_from(["", "db1", "db2"]), standby_life=LIVES,
        term=st.integers(0, 3), mode=st.sampled_from(["sync", "async"]),
    ).map(lambda value: (KEYS.sync, value)),
    st.builds(
        MemberValue, server=NAMES, process=st.just("q"), running=st.booleans(), life=LIVES, position=SETS,
        history=SETS, received=SETS, source=NAMES, io=st.sampled_from(["yes", "no"]), applying=st.booleans(),
        semi_replica=st.booleans(), basis=st.integers(0, 200), term=st.integers(0, 3),
        role=st.sampled_from(["primary", "replica"]),
    ).map(lambda value: (KEYS.member(value.server), value)),
    st.just((KEYS.hold, HoldValue())),
    st.builds(
        OrderValue, id=st.just("1"), kind=st.sampled_from(["switchover", "reinit", "failover"]), server=NAMES,
        stage=st.sampled_from(["asked", "handed"]), by=st.sampled_from(["p", "q"]),
    ).map(lambda value: (KEYS.order, value)),
    st.builds(RebuildValue, server=NAMES, donor=NAMES, stage=st.sampled_from(["archive", "copy"])).map(
        lambda value: (KEYS.rebuild(value.server), value)
    ),
)  # fmt: skip
EVENTS = st.one_of(
    st.just(DeadlineReached()),
    st.just(ShellStall(lag_s=3.0)),
    st.builds(StoreReach, reachable=st.booleans()),
    st.builds(ServerLife, alive=st.booleans(), life=LIVES),
    st.builds(
        OperatorRequest, request=st.just("r"),
        verb=st.sampled_from(["status", "switchover", "hold", "release", "reinit", "failover", "checksum"]),
        args=st.sampled_from([{}, {"to": "db2"}, {"server": "db1"}, {"to": "db1", "accept_loss": True}]),
    ),
    st.builds(
        PeerSaid, peer=NAMES,
        message=st.fixed_dictionaries(
            {"kind": st.sampled_from(["ask", "confirm"]), "n": st.integers(0, 5), "sync": st.integers(0, 200),
             "process": st.sampled_from(["p", "q"])}
        ),
    ),
)  # fmt: skip
STEPS = st.one_of(
    EVENTS,
    st.tuples(st.just("put"), VALUES, st.integers(1, 2)),
    st.tuples(st.just("gone"), VALUES),
    st.tuples(st.just("lease"), st.booleans(), st.floats(-1.0, 5.0), st.integers(1, 2)),
    st.tuples(st.just("outcome"), st.integers(0, 5), st.sampled_from(["done", "refused", "unknown", "away"])),
    st.tuples(st.just("look"), OBSERVATIONS),
    st.tuples(st.just("wait"), st.floats(0.0, 3.0)),
)


class Run:
    """A machine, what it has under way, and what was last told of its lead."""

    def __init__(self, mode: str, shape: str, flavour: str) -> None:
        self.now, self.revision = 50.0, 1
        self.machine = DatabaseMachine(
            DatabaseConfig(
                cluster="main", database="cdr", server="db1", process="p", mode=mode, shape=shape,
                flavour=flavour, servers={"db1": Server("h1"), "db2": Server("h2")},
            ),
            self.now,
        )  # fmt: skip
        self.under_way: list[Effect] = []
        self.told_alone = False

    def tell(self, event: Event) -> None:
        for effect in self.machine.handle(event, self.now):
            if isinstance(effect, DatabaseDo) and effect.verb == "open":
                assert self.machine.authority.lease_ok(self.now)
            if effect.lane is not None:
                self.under_way.append(effect)
        self.machine.check()
        at = self.machine.deadline()
        assert at is None or at > self.now - 1e-9
        assert len(self.under_way) < 400

    def step(self, step: object) -> None:
        match step:
            case Event():
                self.tell(step)
            case ("put", (key, value), lease):
                self.revision += 1
                item = KeyValue(key, encode(value), self.revision, self.revision, lease)
                self.tell(StoreChanged(key=key, value=item, revision=self.revision))
            case ("gone", (key, _)):
                self.revision += 1
                self.tell(StoreChanged(key=key, value=None, revision=self.revision))
            case ("lease", held, left, lease):
                self.tell(LeaseState(held=held, until=self.now + left, lease=lease))
            case ("look", seen):
                for effect in [e for e in self.under_way if isinstance(e, Observe)]:
                    self.under_way.remove(effect)
                    self.tell(
                        OutcomeOf(
                            effect=effect,
                            outcome=Done(replace(seen, life=self.machine.model.life or seen.life)),
                        )
                    )
            case ("outcome", index, kind):
                if index < len(self.under_way):
                    self.settle(self.under_way.pop(index), kind)
            case ("wait", seconds):
                self.now += seconds
                self.tell(DeadlineReached())

    def settle(self, effect: Effect, kind: str) -> None:
        outcome: Done | Refused | Unknown | Unreachable = Done()
        if kind == "done" and isinstance(effect, StoreTxn):
            outcome = Done(TxnResult(True, self.revision))
        elif kind == "done" and isinstance(effect, DatabaseDo) and effect.verb == "checksum":
            outcome = Done({"ours.calls": "1"})
        elif kind == "refused":
            outcome = (
                Done(TxnResult(False, self.revision)) if isinstance(effect, StoreTxn) else Refused("no", 1205)
            )
        elif kind == "unknown":
            outcome = Unknown("?")
        elif kind == "away":
            outcome = Unreachable("nobody")
        self.tell(OutcomeOf(effect=effect, outcome=outcome))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(MODES), st.sampled_from([REPLICA, CIRCULAR]), st.sampled_from(FLAVOURS),
    st.lists(STEPS, max_size=60),
)  # fmt: skip
def test_any_order_of_events(mode: str, shape: str, flavour: str, steps: list[object]) -> None:
    run = Run(mode, shape, flavour)
    for step in steps:
        run.step(step)


@settings(max_examples=50, deadline=None)
@given(st.lists(STEPS, max_size=60))
def test_two_writers(steps: list[object]) -> None:
    run = Run(ASYNC, "two-writers", "mysql")
    run.machine.authority.lease_ok = lambda now: True  # type: ignore[method-assign]
    for step in steps:
        run.step(step)
