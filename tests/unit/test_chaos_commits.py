"""What chaos reads out of a run's commits: planted histories, and the reading itself."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ari_ha.cli.chaos_commits import Quiet, Watched, counters, tell
from ari_ha.cli.chaos_history import Commit, Reader
from ari_ha.cli.chaos_judge import Pair, Verdict
from ari_ha.cli.cluster import CliSettings
from ari_ha.core.ports.store import KeyValue
from ari_ha.farend.client import FarEndError
from tests.unit.test_commits import KEYS, agent, owner, place, rung, served

BEFORE = {
    **agent("a", talk_s=1.0),
    **agent("b", intent="logged_out"),
    **place("k1", 1.0),
    **owner("k1", "5.1"),
}


def commits(*changes: dict[str, Any]) -> list[Commit]:
    """Revision 11 and on, a second apart."""
    return [Commit(11 + number, 100.0 + number, changed) for number, changed in enumerate(changes)]


def test_a_forced_logout_and_the_login_that_hides_it() -> None:
    history = commits(agent("a", 2, intent="logged_out"), agent("a", 3, talk_s=1.0))
    told = tell(KEYS, BEFORE, history)
    assert told.agents == {"a": {"intent"}}
    assert [line.partition(":")[0] for line in told.broken] == ["agents keep their state"] * 2


def test_what_was_asked_for_is_no_finding_and_once_only() -> None:
    in_and_out = commits(agent("b", 2), agent("b", 3, intent="logged_out"), agent("b", 4))
    assert tell(KEYS, BEFORE, in_and_out, [("b", "login"), ("b", "logout"), ("b", "login")]).agents == {}
    assert tell(KEYS, BEFORE, in_and_out, [("b", "login"), ("b", "logout")]).agents == {"b": {"intent"}}
    assert tell(KEYS, BEFORE, in_and_out[:1], [("a", "login")]).agents == {"b": {"intent"}}
    # an order that changed nothing is passed over
    assert tell(KEYS, BEFORE, in_and_out[:1], [("b", "logout"), ("b", "login")]).agents == {}


def test_while_nobody_acts_an_agents_record_stays_as_it_is() -> None:
    history = commits(agent("a", 2, work="hold", attempt=rung("k1"), talk_s=1.0), agent("a", 3, talk_s=1.0))
    assert tell(KEYS, BEFORE, history, quiet=Quiet(10)).agents == {"a": {"work", "attempt", "seq"}}
    assert tell(KEYS, BEFORE, history, quiet=Quiet(12)).agents == {}, "before it"
    assert tell(KEYS, BEFORE, history, quiet=Quiet(1, last=10)).agents == {}, "after it"
    assert tell(KEYS, BEFORE, history, quiet=Quiet(10, fields=("intent",))).agents == {}
    marked = commits(agent("a", talk_s=1.0, recovering={"since": 2.0}))
    assert tell(KEYS, BEFORE, marked, quiet=Quiet(10)).agents == {}


def test_while_nobody_acts_places_are_kept() -> None:
    gone = commits({KEYS.waiting("q", "k1"): None}, place("k1", 1.0))
    assert list(tell(KEYS, BEFORE, gone, quiet=Quiet(10)).places) == ["k1"]
    assert tell(KEYS, BEFORE, gone, quiet=Quiet(10, places=False)).places == {}
    moved = commits(place("k1", 1.0, priority=3))
    told = tell(KEYS, BEFORE, moved, quiet=Quiet(10))
    assert told.places == {"k1": "place in the queue was ('q', 1.0, 0), is ('q', 1.0, 3)"}
    taken_up = commits(place("k1", 1.0, attempt="t"), place("k1", 1.0, caller="x"))
    assert tell(KEYS, BEFORE, taken_up, quiet=Quiet(10)).places == {}


def test_a_queues_order_is_kept_in_calm() -> None:
    two = commits(place("k2", 2.0) | owner("k2", "5.2"))
    jumped = served("k2", 2.0, 2)
    node = {KEYS.node("n1"): b'{"node":"n1","incarnation":"1","sip":"","link":"","ready":true}'}
    later = [Commit(12, 110.0, jumped[0] | jumped[1]), Commit(13, 115.0, owner("k2", "5.3"))]
    told = tell(KEYS, BEFORE | node, two + later)
    assert told.broken == ["queue and agents' history: k2 was served before k1, who waited longer"]
    assert tell(KEYS, BEFORE | node, two + later, calm=lambda utc: utc < 112).broken == []


def test_epochs_and_what_was_compacted_away() -> None:
    back = commits(owner("k1", "5.3"), owner("k1", "5.2"))
    assert tell(KEYS, BEFORE, back).broken == ["epochs only grow: k1: 5.3 then 5.2"]
    anew = {**BEFORE, **agent("a", 7, misses=2, talk_s=1.0)}
    history = [Commit(20, 120.0, anew, anew=True), *commits(agent("a", 8, misses=2))]
    told = tell(KEYS, BEFORE, history, quiet=Quiet(10))
    assert told.broken == [], "transitions that nobody saw are not missed"
    assert told.agents["a"] >= {"misses", "seq"}, "but the records before and after are compared"
    without = {key: data for key, data in BEFORE.items() if key != KEYS.waiting("q", "k1")}
    assert list(tell(KEYS, BEFORE, [Commit(20, 120.0, without, anew=True)], quiet=Quiet(10)).places) == ["k1"]


def test_a_value_that_cannot_be_read_is_a_finding() -> None:
    told = tell(KEYS, BEFORE, commits({KEYS.agent("a"): b"[]"}, owner("k1", "5.0")))
    assert [line.partition(":")[0] for line in told.broken] == ["every value can be read", "epochs only grow"]


def test_counters_are_compared_with_what_rang() -> None:
    def call(who: str, answered: float) -> dict[str, Any]:
        return {"owner": who, "answered_at": answered}

    after = {**agent("a", 9, handled=2, missed=1), **agent("c", handled=7)}
    rung_at = [call("a", 5.0), call("a", 6.0), call("a", 0.0)]
    assert counters(KEYS, BEFORE, after, rung_at) == []
    assert counters(KEYS, BEFORE, after, rung_at[1:2]) == ["a missed 0, charged 1", "a handled 1, has 2"]


class Etcd:
    """As much of a `Cluster` as reading needs; of its two members one is dead."""

    keys = KEYS
    settings = CliSettings(endpoints=("dead", "alive"))

    def __init__(self) -> None:
        self.now = 10
        self.items: dict[str, bytes] = agent("a")
        self.said: list[dict[str, Any]] = []

    def snapshot(self, prefix: str) -> tuple[int, list[KeyValue]]:
        return self.now, [KeyValue(key, value, self.now) for key, value in self.items.items()]

    def revision(self) -> int:
        return self.now

    def write(self, changes: dict[str, bytes]) -> None:
        self.now += 1
        said = [event(key, self.now, value.decode()) for key, value in changes.items()]
        self.said.append({"result": {"events": said}})

    def stream(self, endpoint: str, method: str, body: Any, quiet_max_s: float) -> Iterator[bytes]:
        first = int(body["create_request"]["start_revision"])
        if endpoint == "alive":
            yield b'{"result": {"created": true}}'
            yield from [json.dumps(said).encode() for said in self.said[first - 11 :]]
            yield b'{"result": {"ev'


def event(key: str, revision: int, value: str | None = "v") -> dict[str, Any]:
    raw = {"key": base64.b64encode(key.encode()).decode(), "mod_revision": str(revision)}
    if value is None:
        return {"type": "DELETE", "kv": raw}
    return {"kv": {**raw, "value": base64.b64encode(value.encode()).decode()}}


@pytest.fixture
def reader() -> Reader:
    found = Reader(Etcd())  # type: ignore[arg-type]
    found.next = 11
    return found


def test_a_watch_is_read_by_revision(reader: Reader) -> None:
    reader.take({"header": {}, "created": True}, 1.0)
    reader.take({"events": [event("x", 11), event("y", 11, None), event("x", 13)]}, 2.0)
    reader.take({"events": [event("x", 13), event("x", 14)]}, 3.0)
    assert reader.commits == [
        Commit(11, 2.0, {"x": b"v", "y": None}),
        Commit(13, 2.0, {"x": b"v"}),
        Commit(14, 3.0, {"x": b"v"}),
    ]
    assert (reader.next, reader.not_seen) == (15, 0)


def test_what_was_compacted_away_is_counted_and_reading_goes_on(reader: Reader) -> None:
    reader._cluster.now = 30  # type: ignore[attr-defined]
    reader.take({"canceled": True, "compact_revision": "25"}, 5.0)
    assert reader.commits == [Commit(30, 5.0, agent("a"), anew=True)]
    assert (reader.next, reader.not_seen) == (31, 20)
    reader.take({"canceled": True, "compact_revision": "25"}, 6.0)
    assert reader.not_seen == 20


def test_a_run_is_read_along_and_judged_once() -> None:
    etcd = Etcd()
    etcd.items = dict(BEFORE)
    rung_at = [{"owner": "a", "answered_at": 0.0, "started": 0.0}]
    stage = SimpleNamespace(
        cluster=etcd, orders=[("b", "logout")], far_calls=lambda: dict(enumerate(rung_at))
    )
    watched = Watched(stage)  # type: ignore[arg-type]
    watched.begin()
    stage.orders.append(("b", "login"))
    etcd.write(agent("b", 2))
    watched.strike(Quiet(etcd.revision()))
    etcd.write(agent("a", 2, missed=1, talk_s=1.0))
    etcd.write(place("k1", 5.0))
    watched.is_quiet_until_now()
    etcd.write(agent("a", 3, missed=1, handled=1))
    verdict = Verdict(Pair("far1", "155", call="k1"))
    counts, left = watched.judge([verdict])
    assert counts == {"agents_changed": 1, "rules_broken": 3}
    assert left == [
        "agent a changed: missed, seq",
        "places are kept: k1 waits since 5.0, was 1.0",
        "a missed 0, charged 1",
        "a handled 0, has 1",
    ], "what rang before the run is not counted"
    assert verdict.against == ["place in the queue was ('q', 1.0, 0), is ('q', 5.0, 0)"]
    assert (len(watched.reader.commits), watched.reader.not_seen) == (4, 0)
    assert watched.judge([verdict]) == ({}, [])


def test_what_etcd_told_counts_when_the_far_ends_are_away() -> None:
    def away() -> None:
        raise FarEndError("away")

    stage = SimpleNamespace(cluster=Etcd(), orders=[], far_calls=away, say=lambda text: None)
    watched = Watched(stage)  # type: ignore[arg-type]
    watched.begin()
    stage.cluster.write(agent("a", 1))
    stage.cluster.write(agent("a", 5, intent="logged_out"))
    assert watched.judge([])[0] == {"agents_changed": 1, "rules_broken": 2}


def test_a_run_that_stopped_before_it_began_has_nothing_to_tell() -> None:
    stage = SimpleNamespace(cluster=Etcd(), orders=[], far_calls=dict)
    assert Watched(stage).judge([]) == ({"agents_changed": 0, "rules_broken": 0}, [])  # type: ignore[arg-type]
