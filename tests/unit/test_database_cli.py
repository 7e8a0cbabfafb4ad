"""``ari-ha db``, against keys as the watchers write them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from ari_ha.cli import db
from ari_ha.cli.cluster import Cluster, HttpRefused
from ari_ha.core.ports.store import KeyValue
from ari_ha.wire.database_keys import (
    DatabaseKeys,
    DatabaseValue,
    ErrantValue,
    HistoryValue,
    HoldValue,
    LeaderValue,
    MemberValue,
    SyncValue,
    encode,
)
from ari_ha.wire.keyspace import Keys

KEYS = DatabaseKeys("main", "cdr")


class FakeCluster(Cluster):
    """etcd's keys and the watchers' answers."""

    def __init__(self, values: dict[str, DatabaseValue], answers: dict[str, Any]) -> None:
        self.keys = Keys("main")
        self.values, self.answers, self.asked = values, answers, []

    def family(self, family: str) -> list[KeyValue]:
        return [KeyValue(key, encode(value), 1) for key, value in sorted(self.values.items())]

    def http(self, base: str, path: str, method: str = "GET", body: Any = None) -> Any:
        self.asked.append((base, path, method, body))
        answer = self.answers.get((base, path), self.answers.get(path))
        if isinstance(answer, Exception):
            raise answer
        if callable(answer):
            answer = answer()
        return answer


def good() -> dict[str, DatabaseValue]:
    common = {"process": "p", "running": True, "io": "yes", "applying": True}
    return {
        KEYS.leader: LeaderValue(server="db1", process="p", stage="open"),
        KEYS.sync: SyncValue(primary="db1", standby="db2", standby_life="L", term=2),
        KEYS.member("db1"): MemberValue(server="db1", role="primary", writable=True, http="h1", **common),
        KEYS.member("db2"): MemberValue(
            server="db2", role="replica", source="db1", lag_ms=120, http="h2", **common
        ),
        KEYS.history(2): HistoryValue(term=2, new="db1", old="db2", at=1.0, took_ms=800),
        KEYS.errant("db2", 1): ErrantValue(server="db2", gtids="u:7", file="/x.sql"),
    }


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    def run(values: dict[str, DatabaseValue], *words: str, answers: dict[str, Any] | None = None) -> Any:
        cluster = FakeCluster(values, answers or {})
        monkeypatch.setattr(Cluster, "open", classmethod(lambda cls, path: cluster))
        app = typer.Typer()
        db.register(app)
        app.command("other")(lambda: None)
        result = CliRunner().invoke(app, ["db", *words])
        return result, cluster

    return run


def test_status_for_programs(run: Any) -> None:
    result, _ = run(good(), "status", "--json")
    assert result.exit_code == 0
    (pair,) = json.loads(result.output)["clusters"]
    assert (pair["name"], pair["mode"], pair["standby"]) == ("cdr", "sync", "db2")
    one, two = pair["members"]
    assert (one["name"], one["role"], one["writable"], one["errant"]) == ("db1", "primary", True, None)
    assert (two["lag_ms"], two["writable"]) == (120, False)


def test_status_for_people(run: Any) -> None:
    result, _ = run(good(), "status")
    assert "primary and certified standby" in result.output
    result, _ = run({**good(), KEYS.hold: HoldValue()}, "status")
    assert "automation is held" in result.output and result.exit_code == 0


def test_a_lost_server_is_named(run: Any) -> None:
    values = good()
    del values[KEYS.member("db1")]
    result, _ = run(values, "status")
    assert result.exit_code == 1
    assert "no server is writable" in result.output and "db1 is lost" in result.output
    result, _ = run({}, "status")
    assert result.exit_code == 1 and "no database" in result.output


def test_lists(run: Any) -> None:
    result, _ = run(good(), "history", "--json")
    assert json.loads(result.output)[0]["took_ms"] == 800
    result, _ = run(good(), "errant")
    assert "/x.sql" in result.output


def test_a_switchover_waits_until_it_happened(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db, "LOOK_EVERY_S", 0.001)
    values = good()

    def move() -> dict[str, str]:
        values[KEYS.leader] = LeaderValue(server="db2", process="q", stage="open")
        values[KEYS.member("db1")] = MemberValue(server="db1", process="p", running=True, role="replica")
        values[KEYS.member("db2")] = MemberValue(server="db2", process="q", running=True, writable=True)
        return {"order": "switchover"}

    result, cluster = run(values, "switchover", "db2", "--json", answers={"/v1/switchover": move})
    assert json.loads(result.output)["primary"] == "db2" and result.exit_code == 0
    assert cluster.asked[0] == ("h1", "/v1/switchover", "POST", {"to": "db2"})


def test_a_refusal_is_told(run: Any) -> None:
    refused = HttpRefused(409, {"error": "db2 is not the certified standby"})
    result, _ = run(good(), "switchover", answers={"/v1/switchover": refused})
    assert result.exit_code == 1


@pytest.mark.parametrize(
    ("words", "body"),
    [
        (("hold", "--reason", "upgrade"), {"reason": "upgrade"}),
        (("release",), {}),
        (("reinit", "db2"), {"server": "db2"}),
        (("failover", "db2", "--accept-loss"), {"to": "db2", "accept_loss": True}),
    ],
)
def test_what_is_asked_of_a_watcher(run: Any, words: tuple[str, ...], body: dict[str, Any]) -> None:
    result, cluster = run(good(), *words, answers={f"/v1/{words[0]}": {"done": True}})
    assert result.exit_code == 0
    assert cluster.asked == [("h1", f"/v1/{words[0]}", "POST", body)]


def test_checksums_are_compared(run: Any) -> None:
    answers = {
        ("h1", "/v1/checksum"): {"tables": {"a.t": 1, "a.u": 2}},
        ("h2", "/v1/checksum"): {"tables": {"a.t": 1, "a.u": 3}},
    }
    result, _ = run(good(), "checksum", "--json", answers=answers)
    assert result.exit_code == 1 and json.loads(result.output)["differ"] == ["a.u"]
    answers[("h2", "/v1/checksum")] = answers[("h1", "/v1/checksum")]
    result, _ = run(good(), "checksum", answers=answers)
    assert result.exit_code == 0
