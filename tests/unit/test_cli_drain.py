# ruff: noqa: F811
"""`ari-ha drain`, `undrain`, `takeover`, `topology` against etcd's gateway and an edge's answers."""

from __future__ import annotations

import json
import threading
import time

import pytest

from ari_ha.wire.keyspace import (
    AgentValue,
    AttemptOfAgent,
    AttemptValue,
    DrainValue,
    EdgeValue,
    LegValue,
    NodeValue,
    OwnerValue,
    RecordValue,
    SupervisorValue,
    VipValue,
    decode,
)
from tests.unit.test_cli import KEYS, Stand, ari_ha, stand  # noqa: F401


def populate(stand: Stand, calls: int = 2, features: tuple[str, ...] = ("drain",)) -> None:
    for name in ("ast1", "ast2"):
        stand.put(
            KEYS.node(name),
            NodeValue(node=name, incarnation="i", sip="s", link="l", ready=True, features=list(features)),
        )
    edge = EdgeValue(edge="edge1", vip="pair1", sip="s", http=stand.address, features=list(features))
    stand.put(KEYS.edge("edge1"), edge)
    stand.put(KEYS.vip("pair1"), VipValue(edge="edge1", since=1.0))
    for n in range(calls):
        own(stand, f"k{n}", "ast1")


def own(stand: Stand, call: str, node: str, **how) -> None:
    owner = OwnerValue(call=call, node=f"{node}#i", epoch="9.1", edge="edge1", vip="pair1", **how)
    stand.put(KEYS.owner(call), owner)


def later(act, wait_s: float = 0.2) -> None:
    threading.Thread(target=lambda: (time.sleep(wait_s), act()), daemon=True).start()


def test_a_dry_run_lists_and_writes_nothing(stand, ari_ha):
    populate(stand)
    status, text = ari_ha("drain", "ast1", "--dry-run", "--json")
    document = json.loads(text)
    assert status == 0
    assert [row["call"] for row in document["calls"]] == ["k0", "k1"]
    assert (document["to"], document["against"]) == (["ast2"], [])
    assert KEYS.drain("ast1") not in stand.items


def test_a_dry_run_lists_every_agent_a_call_touches(stand, ari_ha):
    """Not only who talks: whoever is reserved, rung, consulted or supervises is touched as well."""
    populate(stand, calls=3)
    on_it = LegValue(leg="a1", role="agent", agent="alice")
    gone = LegValue(leg="a2", role="agent", agent="gone", state="ended")
    consulted = LegValue(leg="k1", role="agent", target="device:1003", consult="k1")
    outside = LegValue(leg="k2", role="party", target="number:+4930", consult="k1")
    legs = {leg.leg: leg for leg in (LegValue(leg="c", role="customer"), on_it, gone, consulted, outside)}
    record = RecordValue(call="k0", epoch="9.1", node="ast1", stage="talking", queue="support", legs=legs)
    stand.put(KEYS.record("k0"), record)
    stand.put(KEYS.supervisor("k0"), SupervisorValue(call="k0", mode="listen", device="1004"))
    attempt = AttemptValue(attempt="t1", agent="rung", device="1005", leg="a1", state="ringing")
    record = RecordValue(call="k1", epoch="9.1", node="ast1", stage="queued", attempts={"t1": attempt})
    stand.put(KEYS.record("k1"), record)
    for name, device, work, call in (
        ("alice", "1001", "talking", "k0"),
        ("carol", "1003", "idle", ""),
        ("sue", "1004", "idle", ""),
        ("booked", "1006", "reserved", "k1"),
        ("writes", "1007", "acw", "k2"),
    ):
        busy = AttemptOfAgent(attempt="t", call=call) if call else None
        stand.put(KEYS.agent(name), AgentValue(agent=name, device=device, work=work, attempt=busy))
    document = json.loads(ari_ha("drain", "ast1", "--dry-run", "--json")[1])
    assert [(row["call"], row["agent"]) for row in document["calls"]] == [
        ("k0", "alice,carol,+4930,sue"),
        ("k1", "rung,booked"),
        ("k2", ""),
    ]
    text = ari_ha("drain", "ast1", "--dry-run")[1]
    assert all(name in text for name in ("alice", "carol", "sue", "rung", "booked"))
    assert "gone" not in text and "writes" not in text


def test_it_is_written_and_watched_until_empty(stand, ari_ha):
    populate(stand)
    later(lambda: [own(stand, f"k{n}", "ast2") for n in range(2)], 0.5)
    status, text = ari_ha("drain", "ast1", "--yes", "--rate", "7", "--json")
    assert (status, json.loads(text)["left"]) == (0, 0)
    value = decode(stand.items[KEYS.drain("ast1")][0], DrainValue)
    assert (value.node, value.when, value.rate_per_s, value.move_at) == ("ast1", "now", 7.0, 0.0)
    assert "draining" in ari_ha("status")[1]
    assert ari_ha("undrain", "ast1")[0] == 0
    assert KEYS.drain("ast1") not in stand.items
    assert json.loads(ari_ha("undrain", "ast1", "--json")[1]) == {"node": "ast1", "was_draining": False}


def test_calls_left_at_the_end_of_the_wait_are_said(stand, ari_ha):
    populate(stand)
    status, text = ari_ha("drain", "ast1", "--yes", "--wait", "0.3", "--json")
    assert (status, json.loads(text)["left"]) == (1, 2)
    assert KEYS.drain("ast1") in stand.items


def test_the_last_ready_node_is_refused(stand, ari_ha):
    populate(stand)
    stand.put(KEYS.drain("ast2"), DrainValue(node="ast2"))
    status, text = ari_ha("drain", "ast1", "--yes")
    assert status == 1 and "last ready one" in text
    assert KEYS.drain("ast1") not in stand.items
    ari_ha("drain", "ast1", "--yes", "--force", "--wait", "0")
    assert KEYS.drain("ast1") in stand.items


@pytest.mark.parametrize("force", [False, True])
def test_of_two_operators_who_drain_two_nodes_at_once_the_second_is_refused(stand, ari_ha, force):
    """Each has seen the other node ready: only the transaction can tell."""
    populate(stand)
    gateway = stand.gateway

    def another_is_quicker(method, body):
        if method == "kv/txn":
            stand.put(KEYS.drain("ast2"), DrainValue(node="ast2"))
        return gateway(method, body)

    stand.gateway = another_is_quicker
    status, text = ari_ha("drain", "ast1", "--yes", "--wait", "0", *["--force"] * force)
    assert (KEYS.drain("ast1") in stand.items) == force
    assert status == (0 if force else 1)
    assert force or "just changed the drain of ast2: look again" in text


def test_too_many_calls_for_the_others_are_refused(stand, ari_ha):
    """Of nodes of several sizes the smallest one counts: each gets as many."""
    populate(stand, calls=5)
    small = {"sip": "s", "link": "l", "ready": True, "features": ["drain"], "capacity_calls": 2}
    stand.put(KEYS.node("ast3"), NodeValue(node="ast3", incarnation="i", **small))
    status, text = ari_ha("drain", "ast1", "--yes")
    assert status == 1 and "ast3 would have 3 calls: more than its 2" in text and "ast2 would" not in text
    assert KEYS.drain("ast1") not in stand.items
    assert json.loads(ari_ha("drain", "ast1", "--dry-run", "--capacity", "3", "--json")[1])["against"] == []
    assert "ast2 would have" in ari_ha("drain", "ast1", "--dry-run", "--capacity", "2")[1]


def test_a_node_that_announces_no_capacity_may_have_a_hundred_calls(stand, ari_ha):
    """As one of an older version."""
    populate(stand, calls=101)
    assert "capacity_calls" not in json.loads(stand.items[KEYS.node("ast2")][0])
    assert "more than its 100" in ari_ha("drain", "ast1", "--yes")[1]


def test_before_every_member_knows_drains_none_is_begun(stand, ari_ha):
    populate(stand, features=())
    status, text = ari_ha("drain", "ast1", "--yes")
    assert status == 1 and "edge1 does not know drains yet" in text and "ast1 does not know" in text


def test_a_time_to_move_at_and_moving_nobody_exclude_each_other(stand, ari_ha):
    populate(stand)
    status, text = ari_ha("drain", "ast1", "--yes", "--when", "idle", "--after", "600")
    assert status == 2 and "choose one" in text
    assert KEYS.drain("ast1") not in stand.items


def test_calls_are_moved_after_a_time(stand, ari_ha):
    populate(stand)
    before = time.time()
    ari_ha("drain", "ast1", "--yes", "--after", "600", "--wait", "0")
    value = decode(stand.items[KEYS.drain("ast1")][0], DrainValue)
    assert value.when == "now" and before + 600 <= value.move_at <= time.time() + 600


def test_an_unknown_node(stand, ari_ha):
    populate(stand)
    assert ari_ha("drain", "ast9", "--yes")[0] == 2


def test_one_call_is_moved(stand, ari_ha):
    populate(stand)
    stand.answers["/v1/calls/k1/takeover"] = {"call": "k1"}
    api = stand.api

    def moves(*asked):
        own(stand, "k1", "ast1", moving=True)
        later(lambda: own(stand, "k1", "ast2"))
        return api(*asked)

    stand.api = moves
    status, text = ari_ha("takeover", "k1", "--to", "ast2", "--json")
    assert (status, json.loads(text)) == (0, {"call": "k1", "from": "ast1", "to": "ast2"})
    assert stand.asked[-1][:3] == ("POST", "/v1/calls/k1/takeover", {"to": "ast2"})
    assert ari_ha("takeover", "nobody", "--yes")[0] == 2


def test_a_refused_move_is_said(stand, ari_ha):
    populate(stand)
    stand.answers["/v1/calls/k1/takeover"] = (409, {"error": "ast2 takes no calls now"})
    status, text = ari_ha("takeover", "k1", "--yes")
    assert status == 1 and "ast2 takes no calls now" in text


def test_topology(stand, ari_ha):
    populate(stand)
    stand.put(KEYS.drain("ast2"), DrainValue(node="ast2"))
    document = json.loads(ari_ha("topology", "--json")[1])
    assert document["pairs"]["pair1"]["calls_by_node"] == {"ast1": 2}
    assert document["pairs"]["pair1"]["edges"]["edge1"]["role"] == "active"
    assert document["nodes"]["ast2"]["state"] == "draining"
    assert "ast1: 2 calls" in ari_ha("topology")[1]
