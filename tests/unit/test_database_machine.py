"""A watcher's decisions, one at a time."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ari_ha.core.machine import DeadlineReached, Done, Effect, OutcomeOf, Refused, Unknown
from ari_ha.core.ports.database import (
    LOCKED,
    DatabaseDo,
    KillServer,
    Observation,
    Observe,
    PeerSaid,
    SendPeer,
    ServerLife,
    StartServer,
)
from ari_ha.core.ports.operator import OperatorReply, OperatorRequest
from ari_ha.core.ports.probe import WallClock
from ari_ha.core.ports.store import (
    KeyValue,
    LeaseState,
    StoreChanged,
    StoreReach,
    StoreSnapshot,
    StoreTxn,
    TxnResult,
)
from ari_ha.machines.database import DatabaseMachine
from ari_ha.machines.database_checksum import diverged
from ari_ha.machines.database_config import DatabaseConfig, DatabaseTimings, Server
from ari_ha.wire.database_keys import (
    ChecksumsValue,
    DatabaseKeys,
    DatabaseValue,
    HoldValue,
    LeaderValue,
    MemberValue,
    RebuildValue,
    SyncValue,
    decode,
    encode,
)

KEYS = DatabaseKeys("main", "cdr")
UUIDS = {"db1": "00000001-0000-0000-0000-000000000000", "db2": "00000002-0000-0000-0000-000000000000"}
LEASE = 7
REPLICA = Observation(
    life="L1", uuid=UUIDS["db2"], server_id=2, position=f"{UUIDS['db1']}:1-9", history=f"{UUIDS['db1']}:1-9",
    received=f"{UUIDS['db1']}:1-9", source="db1", io="yes", applying=True, semi_replica=True, lag_s=0.1,
    increment=2, offset=2,
)  # fmt: skip
PRIMARY = replace(
    REPLICA, uuid=UUIDS["db1"], server_id=1, offset=1, writable=True, source="", io="no", applying=False,
    semi_source=True, semi_clients=1,
)  # fmt: skip


class Bench:
    """One machine, and etcd as it is told of it."""

    def __init__(self, server: str, seen: Observation, **config: Any) -> None:
        self.now, self.revision = 100.0, 10
        servers = {"db1": Server("h1"), "db2": Server("h2")}
        self.machine = DatabaseMachine(
            DatabaseConfig(
                cluster="main", database="cdr", server=server, process="p", servers=servers, **config
            ),
            self.now,
        )
        self.server, self.seen = server, seen
        self.out: list[Effect] = []
        self.keys: dict[str, KeyValue] = {}

    def tell(self, event: Any) -> list[Effect]:
        out = list(self.machine.handle(event, self.now))
        self.machine.check()
        self.out += out
        return out

    def put(self, key: str, value: DatabaseValue | None, lease: int = 0) -> list[Effect]:
        self.revision += 1
        item = None if value is None else KeyValue(key, encode(value), self.revision, self.revision, lease)
        return self.tell(StoreChanged(key=key, value=item, revision=self.revision))

    def begin(self, **values: tuple[DatabaseValue, int]) -> None:
        items = {}
        for name, (value, lease) in values.items():
            key = getattr(KEYS, name)
            items[key] = KeyValue(key, encode(value), self.revision, self.revision, lease)
        self.tell(StoreReach(reachable=True))
        self.tell(LeaseState(held=True, until=self.now + 4.5, lease=LEASE))
        self.tell(StoreSnapshot(prefix=KEYS.root, revision=self.revision, items=items))
        self.tell(ServerLife(alive=True, life=self.seen.life))
        self.look()  # asked before the life was known: not used
        self.look()

    def look(self) -> list[Effect]:
        """Every question under way is answered."""
        out: list[Effect] = []
        for effect in [effect for effect in self.out if isinstance(effect, Observe)]:
            self.out.remove(effect)
            out += self.tell(OutcomeOf(effect=effect, outcome=Done(self.seen)))
        return out

    def wait(self, seconds: float, look: bool = True) -> list[Effect]:
        """Time passes, deadline by deadline."""
        end, out = self.now + seconds, []
        while (at := self.machine.deadline()) is not None and at <= end:
            self.now = max(at, self.now)
            out += self.tell(DeadlineReached())
            if look:
                out += self.look()
        self.now = end
        return out

    def verbs(self) -> list[str]:
        return [effect.verb for effect in self.out if isinstance(effect, DatabaseDo)]

    def first(self, kind: type[Effect], **fields: Any) -> Any:
        for effect in self.out:
            if isinstance(effect, kind) and all(getattr(effect, k) == v for k, v in fields.items()):
                return effect
        raise AssertionError(f"no {kind.__name__} {fields} in {self.out}")

    def txns(self, kind: str) -> list[StoreTxn]:
        return [e for e in self.out if isinstance(e, StoreTxn) and e.tag.startswith(kind)]


def sync(**fields: Any) -> SyncValue:
    return SyncValue(**{"primary": "db1", "standby": "db2", "standby_life": "L1", "term": 4, **fields})


def leader(server: str = "db1", process: str = "p", stage: str = "open") -> LeaderValue:
    return LeaderValue(server=server, process=process, stage=stage)


def primary(**config: Any) -> Bench:
    bench = Bench("db1", PRIMARY, **config)
    bench.begin(leader=(leader(), LEASE), sync=(sync(), 0))
    return bench


def standby(**config: Any) -> Bench:
    bench = Bench("db2", REPLICA, **config)
    bench.begin(leader=(leader(process="q"), 1), sync=(sync(), 0))
    return bench


def test_a_dead_mariadb_primary_starts_when_etcd_has_said_who_leads() -> None:
    """Cut from etcd and killed by the fence: started without truncation it would keep what nobody was told
    yes for, and be copied anew."""
    bench = primary(flavour="mariadb")
    bench.tell(StoreReach(reachable=False))
    bench.tell(ServerLife(alive=False))
    bench.wait(20.0)
    assert not [effect for effect in bench.out if isinstance(effect, StartServer)]
    bench.tell(StoreReach(reachable=True))
    bench.put(KEYS.leader, leader("db2", "q"), 1)
    bench.put(KEYS.sync, sync(primary="db2", standby="", standby_life="", term=5))
    bench.wait(0.5)
    assert bench.first(StartServer).truncate


# --- the standby ----------------------------------------------------------------------------


def test_the_certified_standby_takes_a_free_lead() -> None:
    bench = standby()
    bench.wait(2.5)  # what a former life may have promised is over
    bench.tell(LeaseState(held=True, until=bench.now + 4.5, lease=LEASE))
    assert not bench.txns("take")
    bench.put(KEYS.leader, None)
    (take,) = bench.txns("take")
    assert {(c.key, c.mod_revision) for c in take.compares} == {(KEYS.leader, 0), (KEYS.sync, 10)}
    assert take.puts[0].leased


@pytest.mark.parametrize(
    "value",
    [sync(standby="", standby_life=""), sync(standby_life="L0"), sync(primary="db9", standby="db1")],
    ids=["alone", "another-life", "not-named"],
)
def test_nobody_else_does(value: SyncValue) -> None:
    bench = Bench("db2", REPLICA)
    bench.begin(leader=(leader(process="q"), 1), sync=(value, 0))
    bench.wait(2.5)
    bench.put(KEYS.leader, None)
    bench.tell(LeaseState(held=True, until=bench.now + 9, lease=LEASE))
    bench.wait(3.0)
    assert not bench.txns("take") and "open" not in bench.verbs()


def test_hold_and_promises_keep_it_from_taking() -> None:
    bench = standby()
    bench.wait(2.5)
    bench.put(KEYS.hold, HoldValue(by="me"))
    bench.put(KEYS.leader, None)
    bench.tell(LeaseState(held=True, until=bench.now + 9, lease=LEASE))
    bench.tell(PeerSaid(peer="db1", message={"kind": "ask", "n": 1, "process": "q", "sync": 10}))
    reply = bench.first(SendPeer)
    assert reply.peer == "db1" and reply.message["kind"] == "confirm" and reply.message["process"] == "q"
    bench.put(KEYS.hold, None)
    assert not bench.txns("take")
    bench.wait(2.1)
    assert bench.txns("take")


def test_it_does_not_confirm_what_it_does_not_do() -> None:
    bench = standby()
    bench.seen = replace(REPLICA, io="connecting")
    bench.wait(0.6)
    bench.tell(PeerSaid(peer="db1", message={"kind": "ask", "n": 1, "process": "q", "sync": 10}))
    bench.tell(PeerSaid(peer="db1", message={"kind": "ask", "n": "x", "sync": 10}))
    assert not [effect for effect in bench.out if isinstance(effect, SendPeer)]


# --- the fence ------------------------------------------------------------------------------


def test_a_lease_not_renewed_closes_and_then_kills() -> None:
    bench = primary()
    bench.tell(StoreReach(reachable=False, why="timed out"))
    bench.wait(2.4)
    assert "close" not in bench.verbs() and bench.first(SendPeer, peer="db2").message["kind"] == "ask"
    bench.wait(0.7)  # 4.5 s of lease - 2 s for the fence + half a second to look for it
    close = bench.first(DatabaseDo, verb="close")
    assert close.lane == "fence" and close.args == {"lock_wait_s": 1}
    assert not bench.machine.writable(bench.now)[0]
    bench.tell(OutcomeOf(effect=close, outcome=Refused("lock wait", LOCKED)))
    assert bench.first(KillServer)


def test_a_confirming_standby_keeps_it_open_without_etcd() -> None:
    bench = primary()
    bench.tell(StoreReach(reachable=False))
    for _ in range(40):
        for ask in [effect for effect in bench.out if isinstance(effect, SendPeer)]:
            bench.out.remove(ask)
            message = {**ask.message, "kind": "confirm"}
            bench.tell(PeerSaid(peer="db2", message=message))
        bench.wait(0.3)
    bench.tell(LeaseState(held=False, lease=LEASE))
    assert bench.machine.writable(bench.now) == (True, "") and "close" not in bench.verbs()
    bench.wait(2.5)
    assert "close" in bench.verbs()


def test_an_old_confirmation_is_worth_nothing() -> None:
    bench = primary()
    bench.tell(StoreReach(reachable=False))
    bench.wait(1.6)
    ask = bench.first(SendPeer)
    bench.wait(1.6)
    bench.tell(PeerSaid(peer="db2", message={**ask.message, "kind": "confirm"}))
    assert bench.machine.authority.confirmed_until < bench.now


def test_anothers_lead_closes_at_once() -> None:
    bench = primary()
    bench.put(KEYS.leader, leader("db2", "q", "promoting"), lease=1)
    assert "close" in bench.verbs()


def test_an_open_nobody_knows_of_ends_in_a_kill() -> None:
    bench = Bench("db1", replace(PRIMARY, writable=False))
    bench.begin(leader=(leader(stage="promoting"), LEASE), sync=(sync(), 0))
    bench.wait(0.3)
    opening = bench.first(DatabaseDo, verb="open")
    bench.tell(OutcomeOf(effect=opening, outcome=Unknown("no outcome")))
    assert bench.first(KillServer)


def test_a_lead_of_an_older_lease_is_not_ours() -> None:
    bench = Bench("db1", replace(PRIMARY, writable=False))
    bench.begin(leader=(leader(stage="promoting"), LEASE - 1), sync=(sync(), 0))
    bench.wait(1.0)
    assert "open" not in bench.verbs() and bench.txns("retake")


def silence(bench: Bench) -> bool:
    """Eight seconds without an answer; whether the server was killed for it."""
    for _ in range(8):
        bench.wait(0.6, look=False)
        bench.tell(LeaseState(held=True, until=bench.now + 4.5, lease=LEASE))
        for observe in [effect for effect in bench.out if isinstance(effect, Observe)]:
            bench.out.remove(observe)
            bench.now += 0.4
            bench.tell(OutcomeOf(effect=observe, outcome=Unknown("no outcome within 1 s")))
    return any(isinstance(effect, KillServer) for effect in bench.out)


def test_a_server_that_stops_answering_is_killed_and_one_that_recovers_is_not() -> None:
    assert silence(primary())
    recovering = Bench("db1", PRIMARY)
    recovering.tell(ServerLife(alive=True, life="L1"))
    assert not silence(recovering)


# --- the primary ----------------------------------------------------------------------------


def test_its_server_dies_and_the_lead_is_given_back_at_once() -> None:
    bench = primary()
    bench.tell(ServerLife(alive=False))
    (release,) = bench.txns("release")
    assert [delete.key for delete in release.deletes] == [KEYS.leader]
    assert [put.key for put in release.puts] == [KEYS.released]


def test_etcd_is_told_before_commits_stop_waiting() -> None:
    bench = primary()
    bench.put(KEYS.member("db2"), MemberValue(server="db2", process="q", running=False))
    bench.seen = replace(PRIMARY, semi_clients=0, semi_waiting=2)
    bench.wait(0.6)
    (txn,) = bench.txns("degrade")
    assert decode(txn.puts[0].value, SyncValue).standby == "" and "semi_off" not in bench.verbs()
    bench.tell(OutcomeOf(effect=txn, outcome=Unknown("timed out")))
    assert "semi_off" not in bench.verbs()
    bench.wait(0.5)
    txn = bench.txns("degrade")[-1]
    bench.tell(OutcomeOf(effect=txn, outcome=Done(TxnResult(True, 12))))
    assert "semi_off" in bench.verbs()


def test_a_strict_primary_waits_for_ever() -> None:
    bench = primary(mode="strict")
    bench.seen = replace(PRIMARY, semi_clients=0, semi_waiting=2)
    bench.wait(4.0)
    assert not bench.txns("degrade") and "semi_off" not in bench.verbs()


@pytest.mark.parametrize(
    ("member", "why"),
    [
        (None, "not there"),
        ({"io": "no"}, "does not follow"),
        ({"errant": "x:1"}, "transactions of its own"),
        ({"lag_ms": 60_000}, "ms behind"),
        ({"life": "L2"}, "not the certified standby"),
    ],
)
def test_a_switchover_is_refused_with_a_reason(member: dict[str, Any] | None, why: str) -> None:
    bench = primary()
    if member is not None:
        good = {"running": True, "life": "L1", "source": "db1", "io": "yes", "applying": True}
        bench.put(KEYS.member("db2"), MemberValue(server="db2", process="q", **(good | member)))
    bench.tell(OperatorRequest(request="1", verb="switchover", args={"to": "db2"}))
    reply = bench.first(OperatorReply)
    assert reply.status == 409 and why in reply.body["error"]


def test_a_standby_sends_the_operator_to_the_leader() -> None:
    bench = standby()
    bench.tell(OperatorRequest(request="1", verb="switchover", args={}))
    assert bench.first(OperatorReply).status == 421
    bench.tell(OperatorRequest(request="2", verb="nonsense"))
    assert bench.first(OperatorReply, request="2").status == 404
    bench.tell(OperatorRequest(request="3", verb="failover", args={"to": "db2"}))
    assert "leads" in bench.first(OperatorReply, request="3").body["error"]


# --- identity and configuration -------------------------------------------------------------


def test_equal_identities_and_offsets_are_told() -> None:
    bench = standby()
    member = MemberValue(
        server="db1", process="q", running=True, server_id=2, uuid=UUIDS["db2"], offset=2, flavour="mariadb"
    )
    bench.put(KEYS.member("db1"), member)
    bench.seen = replace(REPLICA, increment=1)
    bench.wait(0.6)
    text = "; ".join(bench.machine.model.problems())
    for word in ("auto_increment_increment 1 < 2", "server_id 2", "auto.cnf", "offset 2", "mariadb"):
        assert word in text
    assert bench.machine.model.same_identity


def test_a_small_increment_is_mended() -> None:
    bench = standby()
    bench.seen = replace(REPLICA, increment=1)
    bench.wait(1.2)
    assert bench.first(DatabaseDo, verb="number").args == {"increment": 2, "offset": 2}


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"flavour": "postgres"}, "flavour"),
        ({"shape": "two-writers"}, "async"),
        ({"timings": DatabaseTimings(lease_ttl_s=3.0)}, "election"),
        ({"timings": DatabaseTimings(fence_before_s=1.0)}, "kill"),
        ({"timings": DatabaseTimings(confirm_s=3.0)}, "promise"),
    ],
)
def test_what_does_not_add_up_is_refused(config: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Bench("db1", PRIMARY, **config)


def test_an_offset_that_is_taken_is_mended() -> None:
    bench = standby()
    bench.seen = replace(REPLICA, offset=1)
    bench.put(KEYS.member("db1"), MemberValue(server="db1", process="q", running=True, offset=1), 1)
    bench.wait(1.0)
    assert bench.first(DatabaseDo, verb="number").args == {"increment": 2, "offset": 2}
    bench = primary()
    bench.put(KEYS.member("db2"), MemberValue(server="db2", process="q", running=True, offset=1), 1)
    bench.wait(1.0)
    assert "number" not in bench.verbs(), "it is the other one whose offset is wrong"


def test_a_table_that_stands_still_and_differs_is_told() -> None:
    def sums(at: float, since: float, value: int) -> ChecksumsValue:
        since_by = {"a.t": since, "a.u": 0.0}
        return ChecksumsValue(server="x", at=at, sums={"a.t": value, "a.u": 7}, since=since_by)

    assert diverged(sums(100, 80, 1), sums(98, 85, 2), 6.0) == ["a.t"]
    assert not diverged(sums(100, 80, 1), sums(98, 95, 2), 6.0), "it was written to a moment ago"
    assert not diverged(sums(100, 80, 1), sums(82, 10, 2), 6.0), "they were not looked at together"
    assert not diverged(sums(100, 80, 1), sums(98, 85, 1), 6.0)
    assert not diverged(sums(100, 80, 1), ChecksumsValue(server="x"), 6.0)


def test_two_writers_take_checksums_and_alarm() -> None:
    bench = Bench("db1", replace(PRIMARY, semi_source=False, source="db2", io="yes", applying=True),
                  shape="two-writers", mode="async")  # fmt: skip
    bench.begin()
    for utc_s in (1000.0, 1300.0):
        bench.tell(WallClock(utc_s=utc_s))
        bench.wait(1.0 if utc_s == 1000.0 else 300.0)
        bench.tell(OutcomeOf(effect=bench.first(DatabaseDo, verb="checksum"), outcome=Done({"a.t": 1})))
        bench.out = [effect for effect in bench.out if getattr(effect, "verb", "") != "checksum"]
    written = decode(bench.txns("sums")[-1].puts[0].value, ChecksumsValue)
    assert written.sums == {"a.t": 1} and written.since == {"a.t": 1000.0} and written.at == 1300.0
    theirs = ChecksumsValue(server="db2", at=1290.0, sums={"a.t": 2}, since={"a.t": 900.0})
    bench.put(KEYS.checksums("db2"), theirs)
    assert bench.machine.checksums.diverged == ["a.t"]
    assert bench.machine.publisher.value(bench.now).diverged == ["a.t"]


def test_a_start_that_tells_of_a_life_that_is_over_changes_nothing() -> None:
    bench = standby()
    bench.tell(ServerLife(alive=False))
    bench.wait(1.0)
    start = bench.first(StartServer)
    bench.tell(ServerLife(alive=True, life="L2"))
    bench.tell(ServerLife(alive=False))
    bench.out.clear()
    bench.tell(OutcomeOf(effect=start, outcome=Done("L2")))
    bench.wait(2.0)
    assert bench.first(StartServer), "it is started again"


def test_what_is_never_sent_back_is_copied() -> None:
    """A server restored from an old copy: MySQL's receiver leaves out what bears its own server_id."""
    bench = standby()
    theirs = f"{UUIDS['db1']}:1-9,{UUIDS['db2']}:1-7"
    member = MemberValue(
        server="db1", process="q", running=True, role="primary", term=4, history=theirs, position=theirs,
        basis=99, server_id=1, offset=1, uuid=UUIDS["db1"],
    )  # fmt: skip
    bench.seen = replace(REPLICA, **{w: f"{UUIDS['db1']}:1-9,{UUIDS['db2']}:1-6" for w in
                                     ("position", "history", "received")})  # fmt: skip
    bench.wait(1.0)
    bench.put(KEYS.member("db1"), member, 1)
    intended = decode(bench.txns("intend")[0].puts[0].value, RebuildValue)
    assert f"{UUIDS['db2']}:7" in intended.why


def test_two_writers_open_and_follow_each_other() -> None:
    bench = Bench("db2", REPLICA, shape="two-writers", mode="async")
    bench.begin()
    bench.wait(1.0)
    assert "open" in bench.verbs() and "close" not in bench.verbs()


@pytest.mark.parametrize(("shape", "first"), [("replica", "follow_start"), ("circular", "tolerate")])
def test_where_each_follows_the_other_a_row_may_come_twice(shape: str, first: str) -> None:
    bench = Bench("db2", replace(REPLICA, io="no", applying=False), shape=shape, mode="async")
    bench.begin(leader=(leader(process="q"), 1), sync=(sync(standby="", standby_life=""), 0))
    bench.wait(1.0)
    assert bench.verbs()[0] == first


# --- the process ----------------------------------------------------------------------------


def test_the_example_settings_can_be_used(tmp_path: Path) -> None:
    from ari_ha.runtime.settings import SettingsError, build
    from sidecars.watcher.config import WatcherSettings

    example = Path(__file__).resolve().parents[2] / "sidecars/watcher/watcher.example.json"
    document = json.loads(example.read_text())
    assert build(WatcherSettings, document).machine_config("p").peer == "db2"
    with pytest.raises(SettingsError, match="start_truncating"):
        build(WatcherSettings, document | {"flavour": "mariadb"})
    with pytest.raises(SettingsError, match="lease_ttl_s"):
        build(WatcherSettings, document | {"etcd": document["etcd"] | {"election_ms": 2000}})


def watcher_settings(tmp_path: Path) -> Any:
    from ari_ha.runtime.settings import build
    from sidecars.watcher.config import WatcherSettings

    for name in ("ha", "repl", "peer"):
        (tmp_path / name).write_text("0123456789abcdef0")
        (tmp_path / name).chmod(0o600)
    servers = {
        name: {"host": f"h{n}", "peer": f"127.0.0.1:{n - 1}"} for n, name in enumerate(("db1", "db2"), 1)
    }
    local = {
        "password": str(tmp_path / "ha"), "repl_password": str(tmp_path / "repl"), "start": ["true"],
        "port": 1, "pid_file": str(tmp_path / "none"),
    }  # fmt: skip
    document = {
        "cluster": "main", "database": "cdr", "server": "db1", "servers": servers, "local": local,
        "peer_key": str(tmp_path / "peer"), "etcd": {"endpoints": ["127.0.0.1:1"]},
        "http": {"listen": "127.0.0.1:0", "checks": "127.0.0.1:0"},
    }  # fmt: skip
    return build(WatcherSettings, document)


async def test_a_watcher_is_put_together(tmp_path: Path) -> None:
    from sidecars.watcher.wiring import WatcherProcess

    process = WatcherProcess(watcher_settings(tmp_path))
    assert process._ready() == (False, "the server does not answer")
    assert not process._writable()[0] and not process._readable()[0]
    assert {"GET /v1/status", "POST /v1/switchover", "POST /v1/hold"} <= set(process._routes())
    process._measure()
    assert b"ari_ha_database_writable 0.0" in process.metrics.render()[0]


async def test_a_watcher_runs_with_nothing_there(tmp_path: Path) -> None:
    """No etcd, no server: it says so, opens nothing, and ends when told to."""
    from sidecars.watcher.wiring import WatcherProcess

    process = WatcherProcess(watcher_settings(tmp_path))
    running = asyncio.create_task(process.run())
    await asyncio.sleep(0.6)
    assert not running.done() and process.shell.faults == 0
    assert process.machine.model.alive is False and not process._writable()[0]
    status, body = await process.desk.ask("status", {})
    assert (status, body["leader"], body["may_write"]) == (200, None, False)
    process.shell.stop()
    await asyncio.wait_for(running, 10)
