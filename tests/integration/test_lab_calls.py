"""Calls through the edge, rtpengine and Asterisk, as their far ends see them."""

from __future__ import annotations

import time
from typing import Any

import pytest

from ari_ha.cli.agents import ask_a_node
from ari_ha.cli.chaos_judge import Pair
from ari_ha.cli.chaos_stage import Stage, until
from ari_ha.cli.cluster import decode_json
from ari_ha.core.ports.store import Compare, Put
from ari_ha.wire.keyspace import QueueConfigValue, encode

pytestmark = pytest.mark.lab


def connected(stage: Stage, state: str = "talking") -> Pair:
    (pair,) = stage.place(1, state, 1)
    return pair


def what(stage: Stage, ident: str, way: str) -> list[str]:
    return [message["what"] for message in stage.far.call(ident)["messages"] if message["way"] == way]


def ended(stage: Stage, ident: str) -> dict[str, Any]:
    return until(f"{ident} has ended", 30, lambda: (c := stage.far.call(ident))["state"] == "ended" and c)


@pytest.mark.parametrize("state", ["talking", "through"])
def test_customer_and_agent_hear_each_other(stage: Stage, state: str) -> None:
    pair = connected(stage, state)
    since = stage.far.now()
    time.sleep(3)  # the measured window
    rows = stage.measure(since, [pair])
    for mine, other in ((pair.customer, pair.agent_call), (pair.agent_call, pair.customer)):
        (heard,) = rows[mine]["hears"]
        assert heard["call"] == other
        assert (heard["lost_packets"], heard["duplicates"]) == (0, 0)
        assert not rows[mine]["other_audio"]
        assert not stage.far.call(mine)["leaked_headers"]
    assert what(stage, pair.agent_call, "received").count("INVITE") == 1
    assert stage.edge_call(pair.call)["media"] == ("through" if state == "through" else "hitless")


@pytest.mark.parametrize("state", ["talking", "through"])
@pytest.mark.parametrize("event_pt", [101, 96])
def test_digits_reach_the_other_side_and_asterisk(stage: Stage, state: str, event_pt: int) -> None:
    stage.agents_in(["1001"])
    did = "6001" if state == "through" else "6000"
    (ident,) = stage.far.place(did, "15559001", event_pt=event_pt)
    pair = Pair(ident, "15559001", state)
    until("they talk", 30, lambda: stage.reached([pair]), 0.2)
    since = stage.far.now()
    stage.far.digits({pair.customer: "159", pair.agent_call: "#"})

    def digits(mine: str) -> list[str]:
        return [digit["digit"] for digit in stage.measure(since, [pair])[mine]["digits"]]

    until("the agent's phone has the digits", 30, lambda: digits(pair.agent_call) == ["1", "5", "9"])
    until("the customer has the digit", 30, lambda: digits(pair.customer) == ["#"])

    def at_asterisk(leg: str) -> str:
        return "".join(d["digit"] for d in stage.edge_call(pair.call)["digits"] if d["leg"] == leg)

    until("Asterisk heard the customer's digits", 30, lambda: at_asterisk("c") == "159")
    until("Asterisk heard the agent's digit", 30, lambda: at_asterisk(pair.agent_leg) == "#")


def test_hold_gives_music_and_unhold_gives_the_voice_back(stage: Stage) -> None:
    pair = connected(stage, "held")
    assert stage.edge_call(pair.call)["media"] == "through"
    stage.far.order(pair.agent_call, "unhold")
    until("they talk again", 30, lambda: stage.talking([pair]), 0.1)
    until("hitless again", 30, lambda: stage.edge_call(pair.call)["media"] == "hitless")
    since = stage.far.now()
    time.sleep(1.5)  # the measured window
    rows = stage.measure(since, [pair])
    assert not rows[pair.customer]["other_audio"]
    assert rows[pair.customer]["hears"][0]["lost_packets"] == 0


def test_the_customer_holds_too(stage: Stage) -> None:
    pair = connected(stage)
    stage.far.order(pair.customer, "hold")
    agents_ear = Pair(pair.agent_call, "")
    until("the agent hears music", 30, lambda: stage.hearing_music([agents_ear]), 0.1)
    stage.far.order(pair.customer, "unhold")
    until("they talk again", 30, lambda: stage.talking([pair]), 0.1)


@pytest.mark.parametrize("state", ["talking", "through", "held"])
@pytest.mark.parametrize("by", ["customer", "agent"])
def test_either_side_ends_both(stage: Stage, state: str, by: str) -> None:
    pair = connected(stage, state)
    mine, other = (pair.customer, pair.agent_call) if by == "customer" else (pair.agent_call, pair.customer)
    stage.far.order(mine, "hangup")
    assert ended(stage, other)["ended_by"] == "them"
    until("no channel is left", 30, lambda: not stage.channels(), 0.2)
    until("the call is gone from etcd", 30, lambda: not stage.view().calls, 0.2)
    until("the agent is idle again", 30, lambda: stage.agents()["1001"].get("work", "idle") == "idle", 0.2)


def test_digits_by_info_reach_the_other_side(stage: Stage) -> None:
    pair = connected(stage)
    stage.far.order(pair.customer, "info", type="application/dtmf-relay", body="Signal=5\r\nDuration=160\r\n")
    until("INFO arrives", 30, lambda: stage.far.call(pair.agent_call)["infos"])
    (info,) = stage.far.call(pair.agent_call)["infos"]
    assert "Signal=5" in info["body"]


def test_an_unknown_number_is_refused(stage: Stage) -> None:
    (ident,) = stage.far.place("4242", "15550001")
    call = ended(stage, ident)
    assert (call["ended_by"], call["status"]) == ("refused", 404)


def test_a_caller_who_gives_up_while_it_rings_costs_nobody_anything(stage: Stage) -> None:
    pair = connected(stage, "ringing")
    before = stage.agents()[pair.agent]
    stage.far.order(pair.customer, "hangup")
    call = ended(stage, pair.agent_call)
    assert call["ended_by"] == "canceled"
    until("the agent is idle", 30, lambda: stage.agents()[pair.agent].get("work", "idle") == "idle")
    after = stage.agents()[pair.agent]
    for unchanged in ("intent", "misses", "missed", "delay_until", "device"):
        assert after.get(unchanged) == before.get(unchanged), unchanged


def test_a_caller_who_gives_up_in_the_queue_is_forgotten(stage: Stage) -> None:
    pair = connected(stage, "queued")
    until("the place is in etcd", 30, lambda: stage.view().waiting.get("support"))
    stage.far.order(pair.customer, "hangup")
    until("the place is gone", 30, lambda: not stage.view().waiting.get("support"))
    calls_before = set(stage.far_calls())
    stage.agents_in(["1001"])
    (ident,) = stage.far.place("6000", "15559002")
    until("the next caller is served", 30, lambda: stage.reached([Pair(ident, "15559002")]), 0.2)
    rung = [c for i, c in stage.far_calls().items() if i not in calls_before and c["way"] == "in"]
    assert len(rung) == 1, "nobody rang for the one who had gone"


@pytest.mark.parametrize("mode", ["reject", "busy"])
def test_when_an_agent_refuses_the_next_one_is_tried(stage: Stage, mode: str) -> None:
    stage.agents_in(["1011", "1012"])
    stage.far.manner(["1011"], mode=mode)
    for serial in range(2):  # whoever is idle longest is tried first: one of the two calls meets the refuser
        (ident,) = stage.far.place("6000", f"1555800{serial}")
        pair = Pair(ident, f"1555800{serial}")
        until("they talk", 30, lambda pair=pair: stage.reached([pair]), 0.2)
        assert pair.agent == "1012"
        stage.far.order(ident, "hangup")
        until("1012 is idle", 30, lambda: stage.agents()["1012"].get("work", "idle") == "idle", 0.2)
    assert stage.agents()["1011"].get("intent") == "available"


def queue_config(stage: Stage, **changes: Any) -> QueueConfigValue:
    """Changes the support queue's configuration; returns what it was."""
    key = stage.cluster.keys.queue_config("support")
    item = stage.cluster.get(key)
    assert item is not None
    fields = {k: v for k, v in decode_json(item).items() if k in QueueConfigValue.__struct_fields__}
    old = QueueConfigValue(**fields)
    put = Put(key, encode(QueueConfigValue(**{**fields, **changes})))
    assert stage.cluster.txn([Compare(key, item.mod_revision)], [put]).succeeded
    return old


def test_a_phone_that_nobody_answers_passes_the_call_on(stage: Stage) -> None:
    old = queue_config(stage, ring_timeout_ms=2_000)
    try:
        stage.agents_in(["1013", "1014"])
        stage.far.manner(["1013"], mode="ring")
        for serial in range(2):
            (ident,) = stage.far.place("6000", f"1555700{serial}")
            pair = Pair(ident, f"1555700{serial}")
            until("they talk", 30, lambda pair=pair: stage.reached([pair]), 0.2)
            assert pair.agent == "1014"
            stage.far.order(ident, "hangup")
            until("1014 is idle", 30, lambda: stage.agents()["1014"].get("work", "idle") == "idle", 0.2)
        missed = stage.agents()["1013"]
        assert missed.get("missed", 0) >= 1 or missed.get("misses", 0) >= 1
    finally:
        queue_config(stage, ring_timeout_ms=old.ring_timeout_ms)


def one_after_the_other(stage: Stage, count: int, serial: int) -> list[Pair]:
    """Callers who wait, each placed when the one before is in the queue: calls placed together may overtake
    each other on their way there."""
    pairs = stage.place(1, "queued", serial)
    for number in range(1, count):
        caller = f"1555{serial:03}9{number}"
        (ident,) = stage.far.place("6000", caller)
        pairs.append(Pair(ident, caller, "queued"))
        until("one more waits", 30, lambda: stage.reached(pairs), 0.2)
    return pairs


def test_a_full_queue_refuses_and_those_inside_keep_their_places(stage: Stage) -> None:
    old = queue_config(stage, max_waiting=2)
    try:
        pairs = one_after_the_other(stage, 2, 20)
        (ident,) = stage.far.place("6000", "15556666")
        call = ended(stage, ident)
        assert (call["ended_by"], call["status"]) in {("refused", 486), ("them", 200)}
        living = stage.far_calls()
        assert all(living[pair.customer]["state"] == "up" for pair in pairs)
        ask_a_node(stage.cluster, stage.view(), "1015", "login", {"device": "1015"})
        first, second = pairs
        until("the first caller is connected", 30, lambda: stage.far.phone("1015")["call"])
        first.state = "talking"
        until("it is the first", 30, lambda: stage.reached([first]))
        assert stage.far.call(second.customer)["state"] == "up"
    finally:
        queue_config(stage, max_waiting=old.max_waiting)


def test_callers_are_served_in_the_order_they_came(stage: Stage) -> None:
    pairs = one_after_the_other(stage, 3, 30)
    order: list[str] = []
    for agent in ("1001", "1002", "1003"):
        ask_a_node(stage.cluster, stage.view(), agent, "login", {"device": agent})
        heard = until(f"{agent} talks", 30, lambda agent=agent: _who(stage, agent), 0.1)
        order.append(heard)
    assert order == [pair.customer for pair in pairs]


def _who(stage: Stage, agent: str) -> str:
    """The customer's call an agent's phone hears."""
    call = stage.far.phone(agent)["call"]
    if not call or call["state"] != "up":
        return ""
    rows = stage.far.measure(stage.far.now() - 0.5, None, [call["call"]])["calls"]
    return rows[0]["hears"][0]["call"] if rows and rows[0]["hears"] else ""


def test_an_agent_logs_in_by_dialling_and_out_again(stage: Stage) -> None:
    stage.agents_out()
    stage.far.phone_order("1005", "dial", number="*21")
    until("1005 is available", 30, lambda: stage.agents()["1005"].get("intent") == "available")
    assert stage.agents()["1005"].get("device") == "1005"
    until("the short call is over", 30, lambda: not stage.far.calls(living="1"))
    stage.far.phone_order("1005", "dial", number="*22")
    agent = lambda: stage.agents()["1005"].get("intent", "logged_out")  # noqa: E731
    until("1005 is logged out", 30, lambda: agent() == "logged_out")


def test_logging_in_twice_changes_nothing(stage: Stage) -> None:
    stage.agents_in(["1003"])
    before = stage.agents()["1003"]
    stage.far.phone_order("1003", "dial", number="*21")
    until("the short call is over", 30, lambda: not stage.far.calls(living="1"))
    after = stage.agents()["1003"]
    for name in ("intent", "device", "logged_in", "idle_since", "work"):
        assert after.get(name) == before.get(name), name
    holders = [name for name, value in stage.agents().items() if value.get("device") == "1003"]
    assert holders == ["1003"]


def test_a_device_belongs_to_one_agent_at_a_time(stage: Stage) -> None:
    stage.agents_in(["1003"])
    try:
        ask_a_node(stage.cluster, stage.view(), "1004", "login", {"device": "1003"})
    except Exception as error:
        assert "1003" in str(error) or "409" in str(error)
    time.sleep(0.5)  # a write that should not come
    logged_in = [n for n, v in stage.agents().items() if v.get("intent", "logged_out") != "logged_out"]
    assert [n for n in logged_in if stage.agents()[n].get("device") == "1003"] in (["1003"], ["1004"])


def test_ten_calls_at_once_are_ten_separate_conversations(stage: Stage) -> None:
    pairs = stage.place(10, "talking", 4)
    since = stage.far.now()
    time.sleep(2)  # the measured window
    rows = stage.measure(since, pairs)
    for pair in pairs:
        for mine, other in ((pair.customer, pair.agent_call), (pair.agent_call, pair.customer)):
            assert [heard["call"] for heard in rows[mine]["hears"]] == [other]
            assert rows[mine]["hears"][0]["lost_packets"] == 0
    assert len({pair.agent for pair in pairs}) == 10
