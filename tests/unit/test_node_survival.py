"""Calls that move, apps that restart, Asterisks that die, a store that is away."""

from __future__ import annotations

from collections import deque

import msgspec
import pytest

from ari_ha.core.machine import Effect, Event, Outcome, OutcomeOf, Refused, Unknown
from ari_ha.core.ports.ari import AriCall, AriDown, AriEvent, AriRefusedUs
from ari_ha.core.ports.link import LinkReceived, LinkUp
from ari_ha.core.ports.store import StoreChanged, StoreReach
from ari_ha.machines.node import FAMILIES
from ari_ha.machines.node_model import ChannelName, failure_kind, next_leg, parse_bridge_id
from ari_ha.wire import ari, link
from ari_ha.wire.keyspace import (
    AgentValue,
    AttemptOfAgent,
    AttemptValue,
    BindingValue,
    LegValue,
    OwnerValue,
    RecordValue,
    UserValue,
    VipValue,
    WaitingValue,
    decode,
)
from tests.support.node_bench import EDGE, LOST, UTC0, Bench


def moved(
    bench: Bench, stage: str, *, leg_state: str = "up", attempt_state: str = "answered", rings_s: float = 1000
) -> None:
    """Another node served k1 until now: its record, its agent's state, its place. ``rings_s``: how much
    longer a phone may ring."""
    attempts, legs = {}, {"c": LegValue(leg="c", role="customer")}
    if stage != "waiting":
        attempts = {
            "t1": AttemptValue(attempt="t1", agent="1001", device="1001", leg="a1", state=attempt_state)
        }
        legs["a1"] = LegValue(leg="a1", role="agent", agent="1001", state=leg_state)
    record = RecordValue(
        call="k1", epoch="7.1", node="ast2#x", stage="talking" if stage == "talking" else "queued",
        verb=["queue", "support"], queue="support", entered=UTC0, did="6000", context="from-trunk",
        extension="6000", attempts=attempts, legs=legs, want_media="hitless",
    )  # fmt: skip
    bench.store.put(bench.keys.record("k1"), record)
    if stage != "talking":
        place = WaitingValue(
            call="k1", queue="support", entered=UTC0, node="ast2#x",
            attempt="t1" if attempts else "", agent="1001" if attempts else "",
        )  # fmt: skip
        bench.store.put(bench.keys.waiting("support", "k1"), place)
    if attempts:
        work = {"talking": "talking", "ringing": "ringing", "reserved": "reserved"}[stage]
        busy = AgentValue(
            agent="1001", intent="available", device="1001", logged_in=1.0, queues={"support": 0}, work=work,
            work_since=UTC0, attempt=AttemptOfAgent(attempt="t1", call="k1", queue="support", node="ast2#x",
            since=UTC0, deadline=UTC0 + bench.now + rings_s),
        )  # fmt: skip
        bench.store.put(bench.keys.agent("1001"), busy)
    bench.store_back()
    bench.own("k1", epoch="7.2")


def test_two_people_who_talk_are_bridged_again() -> None:
    bench = Bench()
    moved(bench, "talking")
    before = bench.agent()
    channels = bench.resume("k1", "7.2", {"c": "up", "a1": "up"})
    assert bench.hears(channels["c"]) == bench.hears(channels["a1"]) == "people"
    (bridged,) = bench.said(link.Bridged)
    assert (bridged.epoch, sorted(bridged.legs)) == ("7.2", ["a1", "c"])
    assert "k1.7.2" in bench.asterisk.bridges
    assert not bench.said(link.WantMedia, state="through"), "their media need not change"
    record = bench.record()
    assert record is not None and (record.node, record.epoch) == ("ast1#life1", "7.2")
    after = bench.agent()
    assert (after.work, after.work_since, after.intent) == (before.work, before.work_since, before.intent)
    bench.sleep(1)
    assert bench.agent().recovering is None


BY_T1 = {"a1": link.Rung("t1", "1001", "1001", "support")}
"""The edge's word on why a leg was rung"""


def unwritten(bench: Bench, *, store: bool, record: str = "queued") -> None:
    """Another node had 1001 rung for k1 by the attempt t1, of which no record knows. ``store``: the agent's
    value says it; else he is idle there. ``record``: where it has the caller; empty: there is none."""
    moved(bench, "ringing" if store else "waiting", leg_state="ringing", attempt_state="ringing")
    found = bench.record()
    assert found is not None
    key = bench.keys.record("k1")
    if record == "queued":
        bench.store.put(key, msgspec.structs.replace(found, attempts={}, legs={}))
    else:
        bench.store.data.pop(key)
    if record == "dialplan":
        none = RecordValue(call="k1", epoch="7.1", node="ast2#x", stage="dialplan", did="6000")
        bench.store.put(key, none)
    bench.store_back()


@pytest.mark.parametrize("record", ["queued", "dialplan", ""])
@pytest.mark.parametrize("store", [True, False])
def test_a_phone_of_which_no_record_knows_rings_on_and_can_answer(store: bool, record: str) -> None:
    """Its node could not write that it had it rung: he is rung neither again nor beside somebody else, and
    it is known who answers."""
    bench = Bench()
    unwritten(bench, store=store, record=record)
    channels = bench.resume("k1", "7.2", {"c": "up", "a1": "ringing"}, rung=BY_T1, trunk="carrier1")
    bench.sleep(0.5)
    assert not bench.dialled() and not bench.said(link.EndLeg)
    agent = bench.agent()
    assert agent.work == "ringing" and agent.attempt is not None and agent.attempt.attempt == "t1"
    assert agent.attempt.queue == "support" and bench.waiting() == ["k1"]
    bench.frame(link.LegAnswered("k1", "a1", "7.2"))
    assert bench.hears(channels["c"]) == bench.hears(channels["a1"]) == "people"
    assert bench.agent().work == "talking" and bench.waiting() == []
    bench.gone("k1", "a1", "7.2")
    assert (bench.agent().handled, bench.agent("1002").handled, bench.agent("1002").work) == (1, 0, "idle")


@pytest.mark.parametrize("store", [True, False])
def test_a_phone_of_which_no_record_knows_does_not_ring_for_ever(store: bool) -> None:
    bench = Bench(("1001",))
    unwritten(bench, store=store)
    bench.resume("k1", "7.2", {"c": "up", "a1": "ringing"}, rung=BY_T1)
    bench.sleep(1001.0 if store else 5.5)
    assert [(frame.leg, frame.reason) for frame in bench.said(link.EndLeg)][:1] == [("a1", "no-answer")]
    assert bench.agent().missed == 0, "of a ring that moved nobody knows how long it was heard"


@pytest.mark.parametrize("state", ["ringing", "up"])
def test_who_is_there_is_whom_the_edge_names_and_not_who_was_to_be_rung_by_the_store(state: str) -> None:
    """The node before had given another agent up, and could not write that either."""
    bench = Bench()
    moved(bench, "reserved", leg_state="trying", attempt_state="intent")
    rung = {"a2": link.Rung("t2", "1002", "1002", "support")}
    bench.resume("k1", "7.2", {"c": "up", "a2": state}, rung=rung)
    bench.sleep(0.5)
    assert not bench.dialled() and not bench.said(link.EndLeg)
    second = bench.agent("1002")
    assert second.attempt is not None and second.attempt.attempt == "t2"
    assert second.work == {"ringing": "ringing", "up": "talking"}[state]
    assert bench.agent().work == "idle"
    record = bench.record()
    assert record is not None and {a: v.state for a, v in record.attempts.items()} == {
        "t1": "ended",
        "t2": {"ringing": "ringing", "up": "answered"}[state],
    }


def test_a_phone_of_which_no_record_knows_is_silent_where_its_agent_has_another_caller() -> None:
    bench = Bench()
    unwritten(bench, store=False)
    part = AttemptOfAgent(attempt="t9", call="k9", queue="support", node="ast3#x", since=UTC0)
    bench.store.put(bench.keys.agent("1001"), busy := talks(bench.agent(), part))
    bench.store_back()
    bench.resume("k1", "7.2", {"c": "up", "a1": "ringing"}, rung=BY_T1)
    bench.sleep(0.1)
    assert [(frame.leg, frame.reason) for frame in bench.said(link.EndLeg)] == [("a1", "lost")]
    assert bench.agent() == busy
    assert [bench.target(channel) for channel in bench.dialled()] == ["device:1002"]


@pytest.mark.parametrize("over", [True, False])
def test_whom_he_talked_to_by_an_attempt_that_etcd_has_as_a_ring_has_no_place_any_more(over: bool) -> None:
    """The node that took the call up had not read that its agent was rung, and had no etcd."""
    bench = Bench()
    bench.store_away()
    part = AttemptOfAgent(attempt="t1", call="k1", queue="support", node="ast2#x", since=UTC0)
    rings = msgspec.structs.replace(bench.agent(), work="ringing", attempt=part)
    bench.store.put(bench.keys.agent("1001"), rings)
    place = WaitingValue(call="k1", queue="support", entered=UTC0, node="ast2#x", attempt="t1", agent="1001")
    bench.store.put(bench.keys.waiting("support", "k1"), place)
    bench.resume("k1", "7.2", {"c": "up", "a1": "up"}, rung=BY_T1)
    if over:
        bench.gone("k1", "c", "7.2")
    bench.store_back()
    assert bench.waiting() == []
    assert (bench.agent().work, bench.agent().handled) == (("acw", 1) if over else ("talking", 0))


def talks(agent: AgentValue, part: AttemptOfAgent) -> AgentValue:
    """The agent, in that conversation."""
    return msgspec.structs.replace(agent, work="talking", work_since=UTC0, attempt=part)


def test_an_agent_who_is_being_rung_again_is_not_once_more_where_the_record_does_not_know_that() -> None:
    bench = Bench()
    moved(bench, "talking")
    rung = {"a2": link.Rung("t1", "1001", "1001", "support")}
    channels = bench.resume("k1", "7.2", {"c": "up", "a2": "ringing"}, rung=rung)
    assert not bench.dialled()
    bench.frame(link.LegAnswered("k1", "a2", "7.2"))
    assert bench.hears(channels["c"]) == bench.hears(channels["a2"]) == "people"
    assert (bench.agent().work, bench.agent().handled) == ("talking", 0)


def test_a_phone_of_which_no_record_knows_rings_on_when_the_app_was_started_again() -> None:
    """The edge's list says it, too; and the edge knows it from who dialled."""
    bench = Bench()
    bench.trunk()
    (ringing,) = bench.dialled()
    bench.ring(ringing)
    token = bench.token_of(ringing)
    assert (token.agent, token.queue) == ("1001", "support")
    first = bench.record()
    assert first is not None
    bench.store.put(bench.keys.record("k1"), msgspec.structs.replace(first, attempts={}, legs={}))
    before = bench.agent()
    bench.restart_app()
    legs = {"c": link.LegAtEdge("answered"), "a1": link.LegAtEdge("ringing")}
    rung = {"a1": link.Rung(token.attempt, token.agent, "1001", token.queue)}
    bench.link({"k1": link.CallAtEdge("7.1", legs, head="c", rung=rung)})
    assert bench.dialled() == [ringing] and not bench.said(link.EndLeg)
    bench.pick_up(ringing)
    after = bench.agent()
    assert after.work == "talking" and after.attempt is not None and before.attempt is not None
    assert after.attempt.attempt == before.attempt.attempt


@pytest.mark.parametrize("order", [["c", "a1"], ["a1", "c"]])
def test_legs_may_arrive_in_any_order(order: list[str]) -> None:
    bench = Bench()
    moved(bench, "talking")
    facts = {"c": "up", "a1": "up"}
    first = bench.resume("k1", "7.2", facts, [order[0]])
    assert not bench.said(link.Bridged) and bench.asterisk.channels[first[order[0]]]["state"] == "Up"
    bench.sleep(0.5)
    bench.resume("k1", "7.2", facts, [order[1]])
    assert bench.said(link.Bridged, epoch="7.2")


def test_a_leg_that_never_arrives_makes_the_edge_try_again() -> None:
    bench = Bench()
    moved(bench, "talking")
    bench.resume("k1", "7.2", {"c": "up", "a1": "up"}, ["c"])
    bench.sleep(3.1)
    (refused,) = bench.said(link.ResumeRefused)
    assert (refused.epoch, refused.leg) == ("7.2", "a1")
    assert not bench.asterisk.channels and not bench.machine.core.calls
    record = bench.record()
    assert record is not None and record.node == "ast2#x", "nothing was written"


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_leg_that_ends_before_the_others_arrive_leaves_no_channel(elsewhere: bool) -> None:
    """The edge's BYE for it may not come through."""
    bench = Bench()
    moved(bench, "talking")
    bench.resume("k1", "7.2", {"c": "up", "a1": "up"}, ["a1"])
    bench.frame(link.LegGone("k1", "a1", "7.2", cause="16", by="phone"))
    if elsewhere:
        bench.own("k1", node="ast2#x", epoch="7.3")
    else:
        bench.resume("k1", "7.2", {"c": "up", "a1": "up"}, ["c"])
        bench.sleep(4.0)
    assert not bench.asterisk.channels


def test_a_queued_caller_keeps_his_place_and_hears_music() -> None:
    bench = Bench(())
    moved(bench, "waiting")
    channels = bench.resume("k1", "7.2", {"c": "up"})
    assert bench.hears(channels["c"]) == "music" and bench.waiting() == ["k1"]
    assert bench.said(link.Bridged, epoch="7.2")
    record = bench.record()
    assert record is not None and record.entered == UTC0


def test_a_phone_that_rings_goes_on_ringing_and_can_answer() -> None:
    bench = Bench()
    moved(bench, "ringing", leg_state="ringing", attempt_state="ringing")
    channels = bench.resume("k1", "7.2", {"c": "up", "a1": "ringing"})
    assert bench.hears(channels["c"]) == "music" and not bench.dialled()
    assert bench.agent().work == "ringing"
    bench.frame(link.LegAnswered("k1", "a1", "7.2"))
    assert bench.hears(channels["c"]) == bench.hears(channels["a1"]) == "people"
    assert bench.agent().work == "talking" and bench.waiting() == []


@pytest.mark.parametrize("store", [True, False])
def test_the_time_a_phone_rings_is_not_begun_anew(store: bool) -> None:
    """Its deadline is a time of day: the survivor gives it up when the old node would have."""
    bench = Bench(ring_timeout_ms=30_000)
    moved(bench, "ringing", leg_state="ringing", attempt_state="ringing", rings_s=8)
    if not store:
        bench.store_away()
    bench.resume("k1", "7.2", {"c": "up", "a1": "ringing"})
    bench.sleep(7.9)
    assert not bench.said(link.EndLeg)
    bench.sleep(0.2)
    assert [(frame.leg, frame.epoch) for frame in bench.said(link.EndLeg)] == [("a1", "7.2")]


def test_a_reserved_agent_is_rung_by_the_same_attempt() -> None:
    bench = Bench()
    moved(bench, "reserved", leg_state="trying", attempt_state="intent")
    bench.resume("k1", "7.2", {"c": "up"})
    (agent,) = bench.dialled()
    assert agent == "k1.a2.7.2"
    record = bench.record()
    assert record is not None and record.attempts["t1"].leg == "a2"


def test_held_stays_held() -> None:
    bench = Bench()
    moved(bench, "talking")
    channels = bench.resume("k1", "7.2", {"c": "up", "a1": "held"})
    assert bench.hears(channels["c"]) == "music"
    bench.frame(link.LegHeld("k1", "a1", "7.2", False))
    assert bench.hears(channels["c"]) == "people"


def test_an_agent_who_hung_up_meanwhile_is_not_rung_again() -> None:
    bench = Bench()
    moved(bench, "talking")
    bench.resume("k1", "7.2", {"c": "up"}, ended={"a1": "phone"})
    assert not bench.dialled()
    assert bench.said(link.EndLeg, leg="c", epoch="7.2")


def test_an_agent_who_refused_is_not_rung_again_where_the_record_does_not_know_the_attempt() -> None:
    bench = Bench(agents=("1001",))
    moved(bench, "ringing", leg_state="ringing", attempt_state="ringing")
    record = bench.record()
    assert record is not None
    bench.store.put(bench.keys.record("k1"), msgspec.structs.replace(record, attempts={}, legs={}))
    bench.store_back()
    bench.resume("k1", "7.2", {"c": "up"}, ended={"a1": "failed"}, turned_down="t1")
    after = bench.record()
    assert after is not None and "t1" not in after.attempts and bench.waiting() == ["k1"]


@pytest.mark.parametrize("consults", [False, True])
def test_who_talks_by_the_store_alone_in_an_attempt_that_is_over_talks_no_more(consults: bool) -> None:
    """A node without the store wrote late that he had answered: the caller has another agent by then. Not
    while he may be on a second line."""
    bench = Bench()
    moved(bench, "talking")
    record = bench.record()
    assert record is not None
    second = AttemptValue(attempt="t2", agent="1002", device="1002", leg="a2", state="answered")
    legs = {"c": record.legs["c"], "a2": LegValue(leg="a2", role="agent", agent="1002", state="up")}
    known = msgspec.structs.replace(record, attempts={"t2": second}, legs=legs)
    bench.store.put(bench.keys.record("k1"), known)
    bench.store_back()
    facts, lines = {"c": "up", "a2": "up"}, {}
    if consults:
        facts, lines = {**facts, "k1": "ringing"}, {"k1": "a1"}
    bench.resume(
        "k1",
        "7.2",
        facts,
        ended={"a1": "phone"},
        turned_down="t1",
        lines=lines,
        sides=dict.fromkeys(lines, "k1"),
    )
    assert (bench.agent().work, bench.agent().handled) == (("talking", 0) if consults else ("acw", 1))
    assert bench.agent("1002").work == "talking"


@pytest.mark.parametrize("tried", [True, False])
def test_a_caller_whom_somebody_else_has_than_an_agent_of_the_queue_keeps_no_place(tried: bool) -> None:
    """An agent answered and handed him to a colleague while etcd was away: there he waits still."""
    bench = Bench(agents=("1001", "1002"))
    moved(bench, "ringing" if tried else "waiting", leg_state="ringing", attempt_state="ringing")
    targets = {"a2": "device:1002"}
    bench.resume("k1", "7.2", {"c": "up", "a2": "up"}, ended={"a1": "app"}, targets=targets)
    bench.sleep(1.0)
    assert bench.waiting() == [] and bench.agent().work == "idle"
    assert bench.agent("1002").work == "talking"


def test_an_agent_who_dialled_and_handed_his_party_over_is_in_the_call_no_more() -> None:
    """A survivor cut off from the store knows him as one who talks; the edge says that his leg is over, by a
    name of our record. Who came from the queue meanwhile is the only agent in it."""
    bench = Bench()
    agent = msgspec.structs.replace(bench.agent(), work="talking", work_since=UTC0)
    part = AttemptOfAgent(attempt="k1", call="k1", queue="", node="ast2#x")
    bench.store.put(bench.keys.agent("1001"), msgspec.structs.replace(agent, attempt=part))
    legs = {
        "c": LegValue(leg="c", role="user", agent="1001", state="up"),
        "a1": LegValue(leg="a1", role="party", target="number:+4940", state="up"),
    }
    record = RecordValue(call="k1", epoch="7.1", node="ast2#x", stage="talking", verb=["dial", "+4940"],
                         did="+4940", legs=legs)  # fmt: skip
    bench.store.put(bench.keys.record("k1"), record)
    bench.store_back()
    bench.store_away()
    bench.own("k1", epoch="7.2")
    facts, targets = {"a1": "up", "a2": "up"}, {"a1": "number:+4940"}
    channels = bench.resume("k1", "7.2", facts, ended={"c": "app"}, head="a1", targets=targets)
    assert bench.machine.core.acd.acd.agents()["1001"].work != "talking"
    bench.store.put(bench.keys.agent("1001"), msgspec.structs.replace(agent, work="idle", handled=1))
    part = AttemptOfAgent(attempt="t2", call="k1", queue="support", node="ast2#x", since=UTC0)
    rings = msgspec.structs.replace(bench.agent("1002"), work="ringing", attempt=part)
    bench.store.put(bench.keys.agent("1002"), rings)
    second = AttemptValue(attempt="t2", agent="1002", device="1002", leg="a2", state="ringing")
    newer = msgspec.structs.replace(record, queue="support", attempts={"t2": second}, head="a1")
    bench.store.put(bench.keys.record("k1"), newer)
    bench.store_back()
    bench.sleep(1)
    assert (bench.agent("1001").work, bench.agent("1001").handled) == ("idle", 1)
    assert bench.agent("1002").work == "talking" and bench.hears(channels["a2"]) == "people"


def test_an_agent_whose_leg_was_lost_is_rung_again() -> None:
    bench = Bench()
    moved(bench, "talking")
    channels = bench.resume("k1", "7.2", {"c": "up"})
    assert bench.hears(channels["c"]) == "music" and bench.agent().work == "talking"
    (agent,) = bench.dialled()
    bench.pick_up(agent)
    assert bench.hears(channels["c"]) == bench.hears(agent) == "people"
    assert bench.agent().work == "talking" and bench.agent().handled == 0


def test_a_lost_agent_who_does_not_answer_leaves_his_caller_first_in_the_queue() -> None:
    bench = Bench(("1001",))
    moved(bench, "talking")
    channels = bench.resume("k1", "7.2", {"c": "up"})
    bench.sleep(10.5)
    assert bench.waiting() == ["k1"] and bench.hears(channels["c"]) == "music"
    record = bench.record()
    assert record is not None and record.queue_priority >= 100 and record.entered == UTC0


def test_without_any_record_two_people_are_connected() -> None:
    bench = Bench()
    bench.own("k9", epoch="7.2")
    channels = bench.resume("k9", "7.2", {"c": "up", "a1": "up"})
    assert bench.hears(channels["c"]) == "people"


def test_without_any_record_a_lone_caller_goes_where_his_number_leads() -> None:
    bench = Bench()
    bench.store_away()
    bench.resume("k9", "7.2", {"c": "up"})
    (went,) = bench.operations("channels.continueInDialplan")
    assert (went["context"], went["extension"]) == ("from-trunk", "6000")
    (customer,) = bench.asterisk.channels
    bench.asterisk.channels[customer]["app_data"] = "x"
    token = bench.token("k9", "c", "7.2", "resume", facts={"c": "up"})
    again = ari.StasisStart(
        args=["trunk", token, "queue", "support"], channel=bench.asterisk.channel(customer)
    )
    bench.post(AriEvent(event=again))
    bench.sleep(1)
    assert bench.hears(customer) in ("music", "people")
    assert bench.said(link.Bridged, call="k9", epoch="7.2")


def test_a_takeover_overtakes_a_takeover() -> None:
    bench = Bench()
    moved(bench, "talking")
    facts = {"c": "up", "a1": "up"}
    (old,) = bench.resume("k1", "7.2", facts, ["c"]).values()
    channels = bench.resume("k1", "7.3", facts)
    assert bench.hears(channels["c"]) == "people" and bench.said(link.Bridged, epoch="7.3")
    bench.resume("k1", "7.2", facts, ["a1"])
    bench.sleep(5)
    assert old not in bench.asterisk.channels and len(bench.asterisk.channels) == 2
    assert not bench.said(link.EndLeg)


def test_the_same_node_may_take_its_call_again() -> None:
    bench = Bench()
    customer, agent = bench.talk()
    channels = bench.resume("k1", "7.2", {"c": "up", "a1": "up"})
    assert bench.hears(channels["c"]) == "people"
    bench.sleep(5)
    assert not {customer, agent} & set(bench.asterisk.channels)
    assert bench.hears(channels["c"]) == "people" and not bench.said(link.EndLeg)
    bench.sleep(20)
    assert list(bench.asterisk.bridges) == ["k1.7.2"]


@pytest.mark.parametrize("how", ["frame", "owner", "record"])
def test_a_moved_call_is_dropped_in_silence(how: str) -> None:
    bench = Bench()
    bench.talk()
    record = bench.record()
    assert record is not None
    if how == "frame":
        bench.frame(link.CallMoved("k1", "7.2", "ast2"))
    elif how == "owner":
        bench.own("k1", "ast2#y", "7.2")
    else:
        taken = msgspec.structs.replace(record, epoch="7.2", node="ast2#y")
        bench.store.put(bench.keys.record("k1"), taken)
        bench.frame(link.LegHeld("k1", "a1", "7.1", True))  # makes it write
    assert not bench.machine.core.calls and not bench.asterisk.channels
    assert not bench.said(link.EndLeg) and bench.agent().work in ("talking", "hold")
    if how != "record":
        assert bench.record() == record


@pytest.mark.parametrize("how", ["tried again", "later", "with an agent"])
def test_a_record_of_a_newer_epoch_is_not_overwritten(how: str) -> None:
    """Whether its node tries a write again whose outcome it does not know, has heard of the newer record
    before it writes, or hears of it as the answer to a match."""
    bench = Bench(ring_timeout_ms=60_000)
    if how == "with an agent":
        bench.trunk()
        (agent,) = bench.dialled()
        bench.ring(agent)
    else:
        bench.talk()
    record = bench.record()
    assert record is not None
    perform = bench.store.perform
    unanswered = []
    if how == "tried again":
        bench.store.perform = lambda effect: (unanswered.append(effect), [])  # type: ignore[method-assign]
        bench.frame(link.LegHeld("k1", "a1", "7.1", True))
        bench.asterisk_dies()
        bench.store.perform = perform  # type: ignore[method-assign]
    taken = msgspec.structs.replace(record, epoch="7.2", node="ast2#y", legs={})
    kv = bench.store.put(bench.keys.record("k1"), taken)
    if how == "with an agent":
        bench.pick_up(agent)
    else:
        bench.post(StoreChanged(key=kv.key, value=kv, revision=kv.mod_revision))
    if how == "later":
        bench.frame(link.LegHeld("k1", "a1", "7.1", True))
    bench.post(*(OutcomeOf(effect=effect, outcome=LOST) for effect in unanswered))
    bench.sleep(2)
    assert bench.record() == taken and not bench.machine.core.calls


def moved_on(bench: Bench, stage: str) -> None:
    """k1 is served by the other node again, under a higher epoch than ours."""
    moved(bench, stage)
    bench.own("k1", "ast2#x", "7.3")
    record = bench.record()
    assert record is not None
    bench.store.put(bench.keys.record("k1"), msgspec.structs.replace(record, epoch="7.3"))
    bench.store_back()


def test_legs_of_a_move_given_up_long_ago_take_nothing() -> None:
    bench = Bench()
    moved_on(bench, "waiting")
    place = bench.store.data[bench.keys.waiting("support", "k1")]
    bench.resume("k1", "7.2", {"c": "up"})
    assert not bench.machine.core.calls and not bench.asterisk.channels
    assert bench.store.data[bench.keys.waiting("support", "k1")] == place
    assert not bench.said(link.Bridged) and not bench.said(link.ResumeRefused)


def test_an_invite_of_before_the_move_takes_nothing() -> None:
    """It lay in a frozen Asterisk, or in a cut network, while another node took the caller."""
    bench = Bench()
    moved_on(bench, "talking")
    came = bench.trunk()
    assert came not in bench.asterisk.channels and not bench.machine.core.calls
    kept = bench.record()
    assert kept is not None and (kept.epoch, kept.node) == ("7.3", "ast2#x")


@pytest.mark.parametrize("moved_here", [True, False])
@pytest.mark.parametrize("away", [True, False])
def test_an_invite_that_the_life_before_had_too_takes_nothing(moved_here: bool, away: bool) -> None:
    """Its answers were lost, and Asterisk with them: the edge repeats it still, or has given the call up."""
    bench = Bench()
    bench.talk()
    epoch, facts = "7.2" if moved_here else "7.1", {"c": "up", "a1": "up"}
    if moved_here:
        bench.own("k1", epoch=epoch)
        bench.resume("k1", epoch, facts)
    before = bench.record()
    bench.asterisk_dies()
    if away:
        bench.store_away()
    bench.asterisk_back()
    came = bench.resume("k1", epoch, facts).values() if moved_here else [bench.trunk(own=False)]
    bench.sleep(5)
    assert not set(came) & set(bench.asterisk.channels) and not bench.machine.core.calls
    assert bench.record() == before and before is not None and before.epoch == epoch


def test_an_app_that_restarts_drops_nothing() -> None:
    bench = Bench()
    customer, agent = bench.talk()
    before = bench.agent()
    bench.restart_app()
    legs = {"c": link.LegAtEdge("answered"), "a1": link.LegAtEdge("answered")}
    bench.link({"k1": link.CallAtEdge("7.1", legs)})
    assert bench.hears(customer) == bench.hears(agent) == "people"
    assert bench.machine.core.calls["k1"].stage == "talking"
    assert not bench.said(link.ResumeRefused) and not bench.operations("channels.hangup")
    assert bench.agent() == before
    bench.gone("k1", "a1")
    assert bench.said(link.EndLeg, leg="c")


def test_an_app_that_has_not_read_its_agents_yet_lets_phones_ring() -> None:
    """Its calls may be there first: a phone that rings is somebody's all the same."""
    bench = Bench()
    bench.trunk()
    (ringing,) = bench.dialled()
    bench.ring(ringing)
    before = bench.agent()
    late = ("agents", "queues")
    bench.restart_app([family for family in FAMILIES if family not in late])
    legs = {"c": link.LegAtEdge("answered"), "a1": link.LegAtEdge("ringing")}
    bench.link({"k1": link.CallAtEdge("7.1", legs, head="c")})
    bench.read(*late)
    assert ringing in bench.asterisk.channels and not bench.said(link.EndLeg)
    assert bench.agent() == before
    bench.pick_up(ringing)
    assert bench.agent().work == "talking"


def test_an_app_that_cannot_read_its_agents_goes_on_without() -> None:
    bench = Bench()
    customer, agent = bench.talk()
    bench.restart_app(["calls"])
    legs = {"c": link.LegAtEdge("answered"), "a1": link.LegAtEdge("answered")}
    bench.link({"k1": link.CallAtEdge("7.1", legs)})
    bench.sleep(3)
    assert bench.hears(customer) == bench.hears(agent) == "people"


def test_a_ring_refused_while_the_app_was_away_is_not_repeated() -> None:
    """The edge's word on who ended what comes with its list of our calls."""
    bench = Bench()
    customer = bench.trunk()
    (ringing,) = bench.dialled()
    bench.ring(ringing)
    first = bench.agent().attempt
    assert first is not None and bench.agent().work == "ringing"
    bench.asterisk.channels.pop(ringing)
    bench.restart_app()
    legs = {"c": link.LegAtEdge("answered")}
    bench.link({"k1": link.CallAtEdge("7.1", legs, ended={"a1": "failed"}, head="c")})
    assert bench.hears(customer) == "music" and bench.agent().missed == 0
    (again,) = bench.dialled()
    now = bench.agent().attempt
    assert again != ringing and now is not None and now.attempt != first.attempt


def in_the_dialplan(bench: Bench, facts: dict[str, str], **record: object) -> dict[str, str]:
    """Taken up with a record of ours that says: the dialplan has the caller."""
    value = RecordValue(call="k1", epoch="7.1", node="ast1#life1", stage="dialplan", did="6000")
    bench.store.put(bench.keys.record("k1"), msgspec.structs.replace(value, **record))
    bench.store_back()
    bench.own("k1", epoch="7.3")
    return bench.resume("k1", "7.3", facts, head="c", trunk="carrier1")


@pytest.mark.parametrize("answers", [False, True])
def test_for_whom_somebody_rings_is_not_in_the_dialplan_as_an_older_record_says(answers: bool) -> None:
    """The node in between, which the record does not know, led him into a queue."""
    bench = Bench(())
    channels = in_the_dialplan(bench, {"c": "up", "a1": "ringing"})
    assert not bench.operations("channels.continueInDialplan") and bench.said(link.Bridged, epoch="7.3")
    if answers:
        bench.frame(link.LegAnswered("k1", "a1", "7.3"))
        assert bench.hears(channels["c"]) == "people"
    else:
        bench.gone("k1", "a1", "7.3", by="timeout")
        assert bench.operations("channels.continueInDialplan"), "where his number leads"


@pytest.mark.parametrize("facts", [{"c": "up"}, {"c": "up", "a1": "up"}], ids=["alone", "with an agent"])
def test_whoever_is_in_the_dialplan_stays_when_only_his_agent_was_to_go(facts: dict[str, str]) -> None:
    bench = Bench(())
    in_the_dialplan(bench, facts, ending={"a1": "16"})
    assert bench.operations("channels.continueInDialplan") and not bench.said(link.EndLeg, leg="c")
    assert len(bench.said(link.EndLeg, leg="a1")) == len(facts) - 1


def test_a_moved_call_without_a_record_goes_on_in_the_context_of_its_number() -> None:
    """The app restarts, and neither record nor etcd is there: the leg came through a context
    that leads nowhere else."""
    bench = Bench(())
    bench.own("k1", epoch="7.2")
    bench.store.up = False
    bench.resume("k1", "7.2", {"c": "up"})
    bench.restart_app()
    bench.link({"k1": link.CallAtEdge("7.2", {"c": link.LegAtEdge("answered")}, head="c")})
    bench.sleep(3)
    assert {p["context"] for p in bench.operations("channels.continueInDialplan")} == {"from-trunk"}


def test_what_was_let_go_is_not_a_new_call_when_asterisk_is_back() -> None:
    """The call could not be taken up, and its channels are still there: nobody is dialled."""
    bench = Bench()
    bench.talk()
    core = bench.machine.core
    there = bench.asterisk.snapshot()
    core.drop(core.calls["k1"], "let go")
    bench.post(AriDown(reason="not read", process_gone=False), there)
    assert "k1" not in core.calls and not bench.dialled()


def test_an_app_that_restarts_alone_goes_by_what_asterisk_has() -> None:
    """No store and no edge: people go on talking."""
    bench = Bench()
    customer, agent = bench.talk()
    bench.store.up = False
    bench.restart_app()
    bench.sleep(3)
    assert bench.hears(customer) == bench.hears(agent) == "people"
    assert bench.machine.core.calls["k1"].stage == "talking"


def test_an_app_that_restarts_alone_with_a_moved_caller() -> None:
    """No store: his channel came through the context of resumed legs, which leads nowhere."""
    bench = Bench(())
    moved(bench, "waiting")
    bench.resume("k1", "7.2", {"c": "up"})
    bench.store.up = False
    bench.restart_app()
    bench.sleep(3)
    (went,) = bench.operations("channels.continueInDialplan")
    assert (went["context"], went["extension"]) == ("from-trunk", "6000")


def test_a_queued_call_after_a_restart_of_the_app() -> None:
    bench = Bench(())
    customer = bench.trunk()
    bench.restart_app()
    bench.link({"k1": link.CallAtEdge("7.1", {"c": link.LegAtEdge("answered")})})
    assert bench.hears(customer) == "music" and bench.waiting() == ["k1"]


def test_calls_the_edge_lists_and_we_lack_are_asked_for_again() -> None:
    bench = Bench()
    bench.link({"k5": link.CallAtEdge("7.4", {"c": link.LegAtEdge("answered")})})
    (refused,) = bench.said(link.ResumeRefused)
    assert (refused.call, refused.epoch, refused.leg) == ("k5", "7.4", "")


def test_calls_the_edge_does_not_know_are_dropped_after_a_while() -> None:
    bench = Bench()
    bench.talk()
    bench.sleep(2)
    bench.link_down()
    bench.link({})
    bench.sleep(1)
    assert bench.machine.core.calls
    bench.sleep(2)
    assert not bench.machine.core.calls and not bench.asterisk.channels


def test_edges_are_told_of_calls_that_etcd_does_not_have_as_we_do() -> None:
    bench = Bench()
    bench.talk()
    bench.sleep(1)
    assert not bench.said(link.NodeState)[-1].unwritten
    bench.store.up = False  # and nobody has noticed
    bench.frame(link.LegHeld("k1", "a1", "7.1", True))
    bench.sleep(0.2)
    assert bench.said(link.NodeState)[-1].unwritten == ["k1"]
    bench.store.up = True
    bench.sleep(1)
    state = bench.said(link.NodeState)[-1]
    assert not state.unwritten and not state.store_away and bench.record().legs["a1"].state == "held"


def test_no_agent_is_tried_for_a_caller_who_leaves_on_purpose() -> None:
    """The next node has him by now, and would take the agent back; and so on, as long as the move takes."""
    bench = Bench(agents=())
    bench.trunk()
    assert bench.waiting() == ["k1"]

    def owned(moving: bool) -> None:
        owner = OwnerValue(call="k1", node="ast1#life1", epoch="7.2", edge=EDGE, vip="v1", moving=moving)
        kv = bench.store.put(bench.keys.owner("k1"), owner)
        bench.post(StoreChanged(key=kv.key, value=kv, revision=kv.mod_revision))

    owned(moving=True)
    agent = AgentValue(
        agent="1001", intent="available", device="1001", logged_in=1.0, idle_since=1.0, queues={"support": 0}
    )
    for key, value in (
        (bench.keys.user("1001"), UserValue(user="1001", aor="1001", agent="1001")),
        (bench.keys.binding("1001", "h"), BindingValue(aor="1001", contact="sip:x", host="h", port=5060)),
        (bench.keys.agent("1001"), agent),
    ):
        kv = bench.store.put(key, value)
        bench.post(StoreChanged(key=kv.key, value=kv, revision=kv.mod_revision))
    bench.sleep(1)
    assert not bench.dialled() and bench.agent("1001").work == "idle"
    owned(moving=False)
    bench.sleep(0.1)
    assert len(bench.dialled()) == 1


def test_edges_are_told_that_etcd_is_away_until_what_was_kept_is_written() -> None:
    bench = Bench()
    bench.talk()
    bench.store_away()
    assert bench.said(link.NodeState)[-1].store_away
    bench.gone("k1", "a1")
    bench.store.up = True
    bench.post(StoreReach(reachable=True))
    bench.sleep(0.5)
    assert bench.agent().handled == 1
    state = bench.said(link.NodeState)[-1]
    assert not state.store_away and not state.unwritten


def test_an_invite_of_a_move_given_up_arrives_when_the_call_is_over() -> None:
    """An Asterisk that stood still reads it then: nobody is in a call, and no agent counts one."""
    bench = Bench()
    bench.talk()
    bench.asterisk_dies()
    bench.asterisk_back()
    bench.disown("k1")
    before = bench.agent()
    bench.resume("k1", "7.2", {"c": "up", "a1": "up"})
    bench.sleep(1)
    assert not bench.machine.core.calls and not bench.asterisk.channels
    assert bench.agent().handled == before.handled and bench.record() is None


def test_a_mirror_that_may_be_behind_is_not_taken_for_the_record() -> None:
    """etcd has just come back, and its watch has not told yet what happened meanwhile."""
    bench = Bench()
    bench.talk()
    bench.asterisk_dies()
    bench.asterisk_back()
    stored = bench.record()
    assert stored is not None and stored.stage == "talking"
    newer = msgspec.structs.replace(stored, node="ast2#x", epoch="7.2", variables={"CUSTOMER": "7"})
    bench.store.put(bench.keys.record("k1"), newer)
    bench.store_away()
    bench.store.up = True
    bench.post(StoreReach(reachable=True))
    bench.own("k1", epoch="7.3")
    bench.resume("k1", "7.3", {"c": "up", "a1": "up"})
    assert bench.machine.core.calls["k1"].variables == {"CUSTOMER": "7"}


def test_a_dead_asterisk_is_announced_and_nothing_else_happens() -> None:
    bench = Bench()
    bench.talk()
    agent, record = bench.agent(), bench.record()
    bench.asterisk_dies()
    assert bench.said(link.AsteriskGone, incarnation="life1")
    assert not bench.said(link.NodeState)[-1].ready
    assert not bench.machine.core.calls
    bench.sleep(1)
    assert (bench.agent(), bench.record()) == (agent, record)
    bench.asterisk_back()
    assert bench.said(link.NodeHello)[-1].incarnation == "life2" and bench.said(link.NodeState)[-1].ready


def test_a_silent_asterisk_loses_no_call() -> None:
    bench = Bench()
    customer, _ = bench.talk()
    bench.post(AriDown(reason="silent", process_gone=False))
    assert bench.said(link.NodeState)[-1].asterisk == "silent" and not bench.said(link.AsteriskGone)
    bench.post(bench.asterisk.snapshot())
    assert bench.said(link.NodeState)[-1].ready and bench.hears(customer) == "people"


def test_what_happened_while_ari_was_away_is_made_up_for() -> None:
    bench = Bench()
    customer, agent = bench.talk()
    bench.post(AriDown(reason="closed", process_gone=False))
    bench.asterisk.bridges.clear()
    missed = bench.asterisk.enter(f"ari-ha,trunk,{bench.token('k2')},queue,support", "6000").channel.id
    bench.post(bench.asterisk.snapshot())
    assert bench.hears(customer) == bench.hears(agent) == "people"
    assert bench.hears(missed) == "music"


def test_refused_credentials_say_what_to_do() -> None:
    bench = Bench(start=False)
    bench.post(AriRefusedUs(status=401, advice="make the password the same"))
    assert bench.ask("status").body["reason"] == "make the password the same"


def test_missing_modules_say_what_to_do() -> None:
    import dataclasses

    bench = Bench(start=False)
    bench.post(dataclasses.replace(bench.asterisk.snapshot(), missing_modules=("res_musiconhold.so",)))
    body = bench.ask("status").body
    assert not body["ready"] and "res_musiconhold.so" in body["reason"]


def test_the_store_away_stops_nobody() -> None:
    bench = Bench()
    customer, agent = bench.talk("k1")
    bench.store_away()
    second = bench.trunk("k2", own=False)
    (other,) = bench.dialled()
    bench.pick_up(other)
    bench.sleep(1)
    assert bench.hears(second) == bench.hears(customer) == "people"
    bench.gone("k1", "a1")
    bench.sleep(3)
    assert agent not in bench.asterisk.channels and customer not in bench.asterisk.channels
    bench.own("k2")
    bench.store_back()
    bench.sleep(3)
    assert bench.agent("1001").work == "idle" and bench.agent("1002").work == "talking"
    record = bench.record("k2")
    assert record is not None and record.stage == "talking"


def test_a_node_that_starts_without_the_store_serves() -> None:
    bench = Bench(start=False)
    bench.store.up = False
    bench.post(bench.asterisk.snapshot())
    bench.link()
    assert bench.said(link.NodeState)[-1].ready
    channels = bench.resume("k1", "7.2", {"c": "up", "a1": "up"})
    bench.sleep(0.3)  # nobody has said yet that there is none
    assert bench.hears(channels["c"]) == "people"


def test_orphans_are_ended_when_seen_twice() -> None:
    bench = Bench()
    bench.asterisk.channels["k0.a1.6.1"] = {"state": "Up", "app_data": "", "exten": "", "music": ""}
    bench.asterisk.bridges["k0.6.1"] = set()
    bench.sleep(1.4)
    assert "k0.a1.6.1" in bench.asterisk.channels
    bench.sleep(1.4)
    assert not bench.asterisk.channels and not bench.asterisk.bridges


def test_a_record_nobody_claims_is_removed_with_its_place() -> None:
    bench = Bench(())
    bench.trunk()
    call = bench.machine.core.calls["k1"]
    del bench.store.data[bench.keys.owner("k1")]
    bench.machine.core.records._owners.clear()
    bench.machine.core.drop(call, "test")
    bench.sleep(40)
    assert bench.record() is None and bench.waiting() == []


@pytest.mark.parametrize("prefix", range(12))
def test_every_interrupted_prefix_of_a_resume_converges(prefix: int) -> None:
    """From the n-th request on Asterisk's replies are lost; then the app restarts."""
    bench = Bench()
    moved(bench, "talking")
    real, left = bench.asterisk.perform, [prefix]

    def perform(effect: object) -> object:
        left[0] -= 1
        return real(effect) if left[0] >= 0 else (LOST, [])  # type: ignore[arg-type]

    bench.asterisk.perform = perform  # type: ignore[method-assign, assignment]
    channels = bench.resume("k1", "7.2", {"c": "up", "a1": "up"})
    bench.sleep(0.3)
    bench.asterisk.perform = real  # type: ignore[method-assign]
    bench.restart_app()
    legs = {"c": link.LegAtEdge("answered"), "a1": link.LegAtEdge("answered")}
    bench.link({"k1": link.CallAtEdge("7.2", legs)})
    bench.sleep(4)
    assert bench.hears(channels["c"]) == bench.hears(channels["a1"]) == "people"
    assert bench.said(link.Bridged, epoch="7.2") and bench.agent().work == "talking"


@pytest.mark.parametrize(("text", "name"), [("k1.a12.7.3", ("k1", "a12")), ("x.y.a1~2.7.3", ("x.y", "a1"))])
def test_names_of_our_channels(text: str, name: tuple[str, str]) -> None:
    parsed = ChannelName.parse(text)
    assert parsed is not None and (parsed.call, parsed.leg) == name and str(parsed) == text


def test_names_that_are_not_ours() -> None:
    assert ChannelName.parse("ast1-1700000000.12") is None
    assert ChannelName.parse("k1.c.7.3") is None
    assert parse_bridge_id("ast1-17.12") is None and parse_bridge_id("k1.7.3") is not None


def test_small_words() -> None:
    assert next_leg(["c", "a1", "a10"]) == "a11"
    assert failure_kind(486, 17, False) == "edge-refused" and failure_kind(486, 17, True) == "busy"
    assert failure_kind(603, 21, True) == "reject" and failure_kind(408, 18, True) == "no-answer"
    assert failure_kind(480, 20, True) == "unreachable" and failure_kind(487, 16, True) == "canceled"
    assert EDGE


def test_a_feature_code_is_not_taken_up_again() -> None:
    bench = Bench()
    token = bench.token("f1", "c", "7.2", "resume", did="*21", facts={"c": "up"})
    bench.post(AriEvent(event=bench.asterisk.enter(f"ari-ha,resume,{token}", "*21")))
    bench.sleep(4)
    assert bench.said(link.EndLeg, call="f1") and not bench.machine.core.calls


def test_a_record_deleted_before_our_write_was_answered_stays_deleted() -> None:
    from ari_ha.core.ports.store import KeyValue, StoreChanged

    bench = Bench(())
    bench.trunk()
    records, key = bench.machine.core.records, bench.keys.record("k1")
    written = bench.store.data[key]
    bench.post(StoreChanged(key=key, value=None, revision=written.mod_revision + 5))
    records.learn("k1", KeyValue(key, written.value, written.mod_revision + 1))
    assert records.record("k1") is None


def test_two_pairs_while_the_store_is_away() -> None:
    """Whose call it is, its INVITE has said: it is dialled there, and the other pair, which has
    never heard of it, cannot take it away."""
    bench = Bench()
    other = "edge9"
    bench.post(LinkUp(peer=other))
    bench.post(LinkReceived(peer=other, frame=link.EdgeHello(edge=other, vip="v9", sip="10.0.0.19:5070")))
    bench.store_away()
    start = bench.asterisk.enter(f"ari-ha,trunk,{bench.token('k2', pair='v9')},queue,support", "6000")
    bench.post(AriEvent(event=start))
    core = bench.machine.core
    assert core.edge_sip(core.calls["k2"]) == "10.0.0.19:5070"
    assert core.edges_of(core.calls["k2"]) == [other]
    bench.frame(link.Relinquish(call="k2", epoch="7.1"))
    assert "k2" in core.calls
    bench.post(LinkReceived(peer=other, frame=link.Relinquish(call="k2", epoch="7.1")))
    assert "k2" not in core.calls


def _other_edge_is_active(bench: Bench, told_by: str) -> None:
    if told_by == "etcd":
        key = bench.keys.vip("v1")
        kv = bench.store.put(key, VipValue(edge="edge9", since=UTC0))
        bench.post(StoreChanged(key=key, value=kv, revision=kv.mod_revision))
    else:
        bench.post(LinkUp(peer="edge9"))
        hello = link.EdgeHello(edge="edge9", vip="v1", edge_revision=bench.store.revision)
        bench.post(LinkReceived(peer="edge9", frame=hello))


@pytest.mark.parametrize("told_by", ["etcd", "edge"])
@pytest.mark.parametrize("reconnects", [True, False])
def test_an_edge_that_was_replaced_ends_nobody(told_by: str, reconnects: bool) -> None:
    """It stood still, or was cut off, and is back: it does not know that the agent has answered."""
    bench = Bench()
    customer, agent = bench.talk()
    _other_edge_is_active(bench, told_by)
    heard = len(bench.sent)
    if reconnects:
        bench.link_down()
        bench.link({"k1": link.CallAtEdge(epoch="7.1", legs={"c": link.LegAtEdge(state="answered")})})
    bench.frame(link.LegGone(call="k1", leg="a1", epoch="7.1", cause="16", by="phone"))
    bench.frame(link.LegHeld(call="k1", leg="c", epoch="7.1", held=True))
    bench.frame(link.Relinquish(call="k1", epoch="7.1"))
    bench.sleep(5)
    assert bench.hears(customer) == bench.hears(agent) == "people"
    calls = (link.EndLeg, link.Conversations, link.WantMedia, link.Bridged)
    if told_by == "etcd":
        assert not [frame for frame in bench.sent[heard:] if isinstance(frame, calls)]


def test_an_edge_that_takes_its_address_back_is_heard_again() -> None:
    bench = Bench()
    bench.talk()
    _other_edge_is_active(bench, "edge")
    bench.link_down()
    bench.post(LinkUp(peer=EDGE))
    bench.frame(link.EdgeHello(edge=EDGE, vip="v1", edge_revision=bench.store.revision + 5))
    bench.frame(link.Relinquish(call="k1", epoch="7.1"))
    assert "k1" not in bench.machine.core.calls


def test_an_etcd_that_was_restored_from_a_backup_replaces_no_edge() -> None:
    """Its revisions begin again where they were then."""
    bench = Bench()
    bench.talk()
    bench.link_down()
    bench.post(LinkUp(peer="edge9"))
    hello = link.EdgeHello(edge="edge9", vip="v1", edge_revision=1_000_000)
    bench.post(LinkReceived(peer="edge9", frame=hello))
    bench.read("vips")
    bench.link({"k1": link.CallAtEdge(epoch="7.1", legs={"c": link.LegAtEdge(state="answered")})})
    bench.frame(link.Relinquish(call="k1", epoch="7.1"))
    assert "k1" not in bench.machine.core.calls


@pytest.mark.parametrize("asterisk_dies", [False, True])
def test_a_caller_who_gave_up_while_his_node_heard_nothing_leaves_no_place(asterisk_dies: bool) -> None:
    """His edge has ended the call; when the link is up again it only says that it is not ours, and
    not even that of a call in a life of Asterisk that is over."""
    bench = Bench(())
    bench.trunk()
    assert bench.waiting() == ["k1"]
    bench.link_down()
    bench.disown("k1")
    if asterisk_dies:
        bench.asterisk_dies()
        bench.asterisk_back()
    bench.link()
    if not asterisk_dies:
        bench.frame(link.Relinquish("k1", "7.1"))
    assert "k1" not in bench.machine.core.calls
    bench.sleep(10)
    assert bench.waiting() == []


def test_an_agent_whose_caller_hung_up_while_his_node_heard_nothing_is_free_when_it_hears() -> None:
    bench = Bench()
    bench.talk()
    bench.link_down()
    bench.disown("k1")
    assert bench.agent().work == "talking"
    bench.link()
    bench.frame(link.Relinquish("k1", "7.1"))
    assert "k1" not in bench.machine.core.calls
    assert (bench.agent().work, bench.agent().handled) == ("acw", 1)


@pytest.mark.parametrize("talks", [True, False])
def test_an_app_that_restarts_takes_nobody_up_whose_call_is_over(talks: bool) -> None:
    """He hung up while his node was cut off: Asterisk has his channel, and no living app heard the end."""
    bench = Bench() if talks else Bench(())
    _ = bench.talk() if talks else bench.trunk()
    bench.link_down()
    bench.disown("k1")
    bench.restart_app()
    bench.link()
    assert list(bench.said(link.NodeCalls)[-1].calls) == ["k1"]
    bench.frame(link.Relinquish("k1", "7.1"))
    assert not bench.asterisk.channels and not bench.machine.core.calls and not bench.waiting()
    assert not talks or (bench.agent().work, bench.agent().handled) == ("acw", 1)
    bench.sleep(5)
    assert not bench.machine.core.calls and not bench.operations("channels.continueInDialplan")


def test_an_edge_that_begins_to_serve_hears_which_calls_are_here() -> None:
    """While it stood by it could not say that one is over. And Asterisk may be seen after it was heard."""
    bench = Bench(())
    bench.trunk()
    bench.frame(link.EdgeCalls())
    assert list(bench.said(link.NodeCalls)[-1].calls) == ["k1"]
    said = len(bench.said(link.NodeCalls))
    bench.post(AriDown(reason="not read", process_gone=False))
    bench.frame(link.EdgeCalls())
    assert len(bench.said(link.NodeCalls)) == said
    bench.post(bench.asterisk.snapshot())
    assert list(bench.said(link.NodeCalls)[-1].calls) == ["k1"]


def test_another_pair_cannot_end_a_call_that_is_being_adopted() -> None:
    """With the store away only the token of its channel says whose it is."""
    bench = Bench(())
    entered = bench.asterisk.enter(f"ari-ha,trunk,{bench.token('k1', pair='v1')},queue,support", "6000")
    bench.post(AriEvent(event=entered))
    (caller,) = bench.asterisk.channels
    bench.store.up = False
    bench.restart_app()
    bench.post(LinkUp(peer="edge9"))
    bench.post(LinkReceived(peer="edge9", frame=link.EdgeHello(edge="edge9", vip="v9")))
    bench.post(LinkReceived(peer="edge9", frame=link.Relinquish("k1", "7.1")))
    bench.sleep(5)
    assert caller in bench.asterisk.channels and "k1" in bench.machine.core.calls


def dialled_only(bench: Bench) -> None:
    """Two people talk who were both dialled by us: no token says whose call it is."""
    customer, agent = bench.talk()
    bench.asterisk.channels.pop(customer)
    bench.asterisk.channels["k1.a2.7.1"] = {**bench.asterisk.channels[agent]}
    bench.link_down()


def another_pair_knows_no_such_call(bench: Bench) -> None:
    hello = link.EdgeHello(edge="edge9", vip="v9", edge_revision=3)
    said = [hello, link.EdgeCalls(), link.Relinquish("k1", "7.1")]
    bench.post(LinkUp(peer="edge9"), *(LinkReceived(peer="edge9", frame=frame) for frame in said))


TWO_LEGS = {"a1": link.LegAtEdge("answered"), "a2": link.LegAtEdge("answered")}


@pytest.mark.parametrize("first", [True, False])
def test_another_pair_cannot_end_a_call_of_which_only_dialled_legs_are_left(first: bool) -> None:
    bench = Bench(media="through")
    dialled_only(bench)
    bench.store.up = False
    bench.restart_app()
    if first:
        another_pair_knows_no_such_call(bench)
    bench.link({"k1": link.CallAtEdge("7.1", TWO_LEGS, head="a2", ended={"c": "phone"})})
    if not first:
        another_pair_knows_no_such_call(bench)
    bench.link_down()
    bench.sleep(10.0)
    assert len(bench.asterisk.channels) == 2 and "k1" in bench.machine.core.calls


def test_another_pair_is_no_reason_to_take_a_call_up_before_its_own_edge_has_spoken() -> None:
    """It spoke before the app had read whose call it is; a phone that is over does not come back."""
    bench = Bench(media="through")
    dialled_only(bench)
    bench.restart_app([family for family in FAMILIES if family != "calls"])
    another_pair_knows_no_such_call(bench)
    bench.store_back()
    assert "k1" not in bench.machine.core.calls
    legs = {"a1": link.LegAtEdge("answered"), "a2": link.LegAtEdge("answered", held=True)}
    bench.link({"k1": link.CallAtEdge("7.1", legs, head="a2", ended={"c": "phone"})})
    assert bench.machine.core.calls["k1"].legs["a2"].held


def test_a_call_that_no_pair_knows_is_over() -> None:
    bench = Bench(media="through")
    dialled_only(bench)
    bench.disown("k1")
    bench.restart_app()
    bench.link()
    another_pair_knows_no_such_call(bench)
    assert "k1" in bench.machine.core.resumes.by_call
    bench.frame(link.Relinquish("k1", "7.1"))
    assert not bench.asterisk.channels and not bench.machine.core.calls


def test_an_invite_that_came_late_is_no_word_about_a_call_that_another_node_has() -> None:
    """An app that has just started, without the store, gives up whom it never had: he talks elsewhere."""
    bench = Bench()
    moved(bench, "talking")
    bench.own("k1", node="ast2#x", epoch="7.2")
    bench.store.up = False
    bench.restart_app()
    bench.post(StoreReach(reachable=False, why="no space"))
    bench.link()
    channel = bench.trunk(own=False)
    assert "k1" in bench.machine.core.calls
    bench.post(*bench.asterisk.destroy(channel))
    bench.sleep(6.0)
    assert not bench.machine.core.calls
    bench.store_back()
    bench.sleep(6.0)
    assert (bench.agent().work, bench.agent().handled) == ("talking", 0)


def test_a_caller_who_went_before_the_dialplan_had_him_leaves_nothing() -> None:
    """Nobody tells the end of a channel that was not subscribed to yet."""
    bench = Bench(())
    bench.own("k1", epoch="7.2")
    perform = bench.asterisk.perform

    def gone(effect: AriCall) -> tuple[Outcome, list[Event]]:
        if effect.operation == "applications.subscribe":
            bench.asterisk.channels.clear()
            return Refused("Event source does not exist", 422), []
        return perform(effect)

    bench.asterisk.perform = gone  # type: ignore[method-assign]
    bench.resume("k1", "7.2", {"c": "up"}, head="c", trunk="carrier1")
    bench.sleep(4.0)
    assert not bench.machine.core.calls and not bench.said(link.EndLeg), "the dialplan has ended nobody"


@pytest.mark.parametrize("by_dialplan", [False, True])
def test_only_the_dialplan_itself_ends_a_caller_it_has(by_dialplan: bool) -> None:
    """Its edge hangs up where it has given the move up, and cannot say so without a link. Nothing may be
    left in the record that ends him at the next node."""
    bench = Bench(())
    bench.own("k1", epoch="7.2")
    channel = bench.resume("k1", "7.2", {"c": "up"}, head="c", trunk="carrier1")["c"]
    assert bench.operations("channels.continueInDialplan")
    bench.link_down()
    shown = bench.asterisk.channel(channel)
    bench.asterisk.channels.clear()
    requests = [ari.ChannelHangupRequest(cause=32, soft=True, channel=shown)]
    if not by_dialplan:
        requests.insert(0, ari.ChannelHangupRequest(channel=shown))
    bench.post(*[AriEvent(event=event) for event in (*requests, ari.ChannelDestroyed(channel=shown))])
    record = bench.record()
    assert record is not None and bool(record.ending) == by_dialplan
    bench.sleep(4.0)
    assert not bench.machine.core.calls


@pytest.mark.parametrize("rings", [False, True])
def test_what_failed_while_no_edge_was_there_may_ring(rings: bool) -> None:
    """The edge died with our INVITE; what it had done about that its next life says."""
    bench = Bench(("1001",))
    bench.trunk()
    (agent,) = bench.dialled()
    bench.link_down()
    bench.post(*bench.asterisk.destroy(agent, 34, 503))
    bench.sleep(2.0)
    assert bench.agent().work == "reserved", "nobody knows yet"
    legs = {"c": link.LegAtEdge("answered")} | ({"a1": link.LegAtEdge("ringing")} if rings else {})
    bench.link({"k1": link.CallAtEdge("7.1", legs)})
    bench.sleep(0.2)
    assert (bench.agent().work == "reserved") == rings
    if rings:
        bench.frame(link.LegAnswered("k1", "a1", "7.1"))
        assert bench.agent().work == "talking"


def test_an_answer_that_was_not_written_when_another_node_took_the_call_up_is_its_own_to_write() -> None:
    """By then the conversation is over there, and counted."""
    bench = Bench(("1001",))
    bench.trunk()
    (agent,) = bench.dialled()
    perform = bench.store.perform
    unanswered = []
    bench.store.perform = lambda effect: (unanswered.append(effect), [])  # type: ignore[method-assign]
    bench.ring(agent)
    bench.store.perform = perform  # type: ignore[method-assign]
    bench.link_down()
    bench.post(*bench.asterisk.up(agent))
    owner = OwnerValue(
        call="k1", node="ast1#life1", epoch="7.2", edge=EDGE, vip="v1", moving=True, why="silent"
    )
    record = RecordValue(call="k1", epoch="7.2", node="ast2#x", stage="queued")
    done = msgspec.structs.replace(bench.agent(), work="acw", handled=1, acw_deadline=UTC0 + 1000)
    keys = bench.keys
    for key, value in ((keys.owner("k1"), owner), (keys.record("k1"), record), (keys.agent("1001"), done)):
        kv = bench.store.put(key, value)
        bench.post(StoreChanged(key=kv.key, value=kv, revision=kv.mod_revision))
    bench.post(*(OutcomeOf(effect=effect, outcome=LOST) for effect in unanswered))
    bench.sleep(1.0)
    assert bench.agent().work == "acw"


@pytest.mark.parametrize("away", [False, True])
@pytest.mark.parametrize("back", [False, True])
def test_an_app_that_has_just_started_does_not_take_a_call_for_one_without_record(
    away: bool, back: bool
) -> None:
    """It takes up a call before it knows whether there is a store, or was cut off from it as soon as it had
    started: a step of an IVR that is done would be done again. Not for long: nobody may wait for a store."""
    bench = Bench(())
    moved(bench, "waiting")
    bench.store.up = False
    bench.restart_app()
    bench.asterisk_back()
    if away:
        bench.post(StoreReach(reachable=False, why="away"))
    (channel,) = bench.resume("k1", "7.2", {"c": "up"}).values()
    assert not bench.operations("channels.continueInDialplan")
    if back:
        bench.store_back()
        assert bench.hears(channel) == "music" and bench.waiting() == ["k1"]
    bench.sleep(0.4)
    assert bool(bench.operations("channels.continueInDialplan")) is not back


def test_a_phone_that_is_taken_away_with_its_call_has_not_failed() -> None:
    """A node that hears and is not heard: the edge brings both legs elsewhere, and its word does not come."""
    bench = Bench(("1001",))
    customer = bench.trunk()
    (ringing,) = bench.dialled()
    bench.ring(ringing)
    before = bench.agent()
    bench.post(*bench.asterisk.destroy(customer))
    bench.post(*bench.asterisk.destroy(ringing, 17, 480))
    bench.sleep(2)
    assert bench.agent() == before and before.work == "ringing"
    bench.sleep(3)
    assert not bench.machine.core.calls and bench.agent() == before


def test_what_a_ring_came_to_here_is_no_word_about_a_phone_that_rings_on_elsewhere() -> None:
    bench = Bench(("1001",))
    bench.trunk()
    (ringing,) = bench.dialled()
    bench.ring(ringing)
    before = bench.agent()
    assert before.work == "ringing" and before.attempt is not None
    bench.store_away()
    bench.gone("k1", "a1", by="failed", status=480)
    assert bench.agent() == before
    key = bench.keys.waiting("support", "k1")
    place = decode(bench.store.data[key].value, WaitingValue)
    bench.store.put(key, msgspec.structs.replace(place, node="ast2#2"))
    bench.own("k1", node="ast2#2", epoch="7.2")
    bench.link_down()
    bench.link({})
    bench.store_back()
    bench.sleep(1)
    assert not bench.machine.core.calls and bench.agent() == before


def test_what_becomes_of_a_dial_of_asterisks_last_life_is_nothing_to_the_call_that_goes_on() -> None:
    bench = Bench(("1001",))
    dials: list[AriCall] = []
    perform = bench._perform

    def held(work: deque[Effect], queue: deque[Event]) -> None:
        effect = work[0]
        if isinstance(effect, AriCall) and effect.operation == "channels.create" and not dials:
            dials.append(effect)
            work.popleft()
        else:
            perform(work, queue)

    bench._perform = held  # type: ignore[method-assign]
    bench.trunk()
    bench.asterisk_dies()
    bench.asterisk_back()
    bench.own("k1", epoch="7.2")
    bench.resume("k1", "7.2", {"c": "up"})
    taken_up = bench.record()
    assert taken_up is not None and taken_up.epoch == "7.2"
    agent = bench.agent()
    assert agent.work == "reserved", "he is rung again under the same attempt"
    bench.post(OutcomeOf(effect=dials[0], outcome=Unknown("no outcome within 2 s")))
    bench.sleep(0.5)
    assert bench.record() == taken_up and bench.agent() == agent


def test_an_edge_that_stood_by_is_told_what_was_said_to_nobody() -> None:
    """Its link was up before it began to serve."""
    bench = Bench()
    bench.talk()
    wished, bridged = len(bench.said(link.WantMedia)), len(bench.said(link.Bridged))
    legs = {leg: link.LegAtEdge(state="answered") for leg in ("c", "a1")}
    bench.frame(link.EdgeCalls({"k1": link.CallAtEdge(epoch="7.1", legs=legs)}))
    assert [wish.state for wish in bench.said(link.WantMedia)[wished:]] == ["hitless"]
    assert len(bench.said(link.Bridged)) == bridged + 1
