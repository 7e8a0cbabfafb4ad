"""A call to a number on a node: dialled, answered, refused, taken up elsewhere."""

from __future__ import annotations

import msgspec
import pytest

from ari_ha.core.ports.ari import AriEvent
from ari_ha.wire import link
from ari_ha.wire.keyspace import AttemptOfAgent, LegValue, RecordValue, WaitingValue
from ari_ha.wire.transfer import TransferValue
from tests.support.node_bench import UTC0, Bench


def agent_dials(bench: Bench, number: str = "+4930", call: str = "k1") -> str:
    """1001's phone dials; the channel of his leg."""
    bench.own(call)
    token = bench.token(call, kind="agent", user="1001", did=number, caller="1001")
    start = bench.asterisk.enter(f"ari-ha,agent,{token},dial,{number}", number)
    bench.post(AriEvent(event=start))
    return start.channel.id


def moved_while_dialling(bench: Bench, state: str = "trying") -> None:
    record = RecordValue(
        call="k1", epoch="7.1", node="ast2#x", stage="dialing", verb=["agent", "dial", "+4930"], did="+4930",
        context="from-agent", extension="+4930",
        legs={"c": LegValue(leg="c", role="user", agent="1001"),
              "a1": LegValue(leg="a1", role="party", state=state, target="number:+4930")},
    )  # fmt: skip
    bench.store.put(bench.keys.record("k1"), record)
    bench.store_back()
    bench.own("k1", epoch="7.2")


def test_the_intent_is_stored_before_the_number_is_dialled() -> None:
    bench = Bench()
    agent_dials(bench)
    (channel,) = bench.dialled()
    assert bench.target(channel) == "number:+4930"
    record = bench.record()
    assert record is not None and (record.stage, record.legs["a1"].target) == ("dialing", "number:+4930")
    assert bench.agent().work == "dialing"


def test_the_caller_is_not_answered_before_the_party() -> None:
    bench = Bench()
    head = agent_dials(bench)
    (channel,) = bench.dialled()
    bench.ring(channel)
    assert bench.asterisk.channels[head]["state"] == "Ring"
    bench.pick_up(channel)
    assert bench.hears(head) == bench.hears(channel) == "people"
    assert bench.said(link.WantMedia, state="hitless")
    assert bench.agent().work == "talking"
    bench.gone("k1", "a1")
    bench.sleep(0.1)
    assert bench.said(link.EndLeg, leg="c") and bench.agent().work == "idle"


def test_a_colleague_is_busy_too() -> None:
    bench = Bench()
    agent_dials(bench, "1002")
    (channel,) = bench.dialled()
    assert bench.target(channel) == "device:1002"
    bench.pick_up(channel)
    assert bench.agent("1002").work == "talking"
    bench.gone("k1", "c")
    bench.sleep(1.5)
    assert {bench.agent(a).work for a in ("1001", "1002")} == {"idle"}


@pytest.mark.parametrize(("status", "heard"), [(486, "486"), (404, "404"), (603, "603")])
def test_the_caller_hears_why_not(status: int, heard: str) -> None:
    bench = Bench()
    agent_dials(bench)
    bench.gone("k1", "a1", status=status, by="failed")
    assert [f.cause for f in bench.said(link.EndLeg, leg="c")] == [heard]
    bench.sleep(0.1)
    assert bench.agent().work == "idle" and bench.agent().handled == 0


def test_taken_up_while_it_rings_nothing_is_dialled() -> None:
    bench = Bench()
    moved_while_dialling(bench)
    facts = {"c": "ringing", "a1": "ringing"}
    channels = bench.resume("k1", "7.2", facts)
    assert not bench.dialled()
    assert bench.said(link.Bridged, epoch="7.2"), "the call is whole: two people wait"
    assert bench.hears(channels["c"]) == "nothing"
    bench.frame(link.LegAnswered("k1", "a1", "7.2"))
    bench.frame(link.LegAnswered("k1", "c", "7.2"))
    assert bench.hears(channels["c"]) == bench.hears(channels["a1"]) == "people"
    record = bench.record()
    assert record is not None and record.stage == "talking"


@pytest.mark.parametrize("state", ["ringing", "up"])
@pytest.mark.parametrize("placed", [True, False])
def test_nobody_is_rung_for_who_dials_or_talks_and_waits_in_no_queue(state: str, placed: bool) -> None:
    """The node before, which had him in a queue without etcd, wrote late that 1002 was to be rung for him."""
    bench = Bench()
    moved_while_dialling(bench)
    part = AttemptOfAgent(
        attempt="t9", call="k1", queue="support", node="ast2#x", since=UTC0 + bench.now,
        deadline=UTC0 + bench.now + 5,
    )  # fmt: skip
    key = bench.keys.agent("1002")
    bench.store.put(key, msgspec.structs.replace(bench.agent("1002"), work="reserved", attempt=part))
    if placed:
        place = WaitingValue("k1", "support", entered=UTC0, node="ast2#x", attempt="t9", agent="1002")
        bench.store.put(bench.keys.waiting("support", "k1"), place)
    bench.read("agents", "queues")
    bench.resume("k1", "7.2", {"c": state, "a1": state})
    assert (bench.agent("1002").work, bench.agent("1002").missed) == ("idle", 0)
    assert not bench.waiting() and not bench.dialled()
    bench.sleep(10.0)
    assert bench.agent("1002").work == "idle" and not bench.waiting()


def test_answered_while_it_moved() -> None:
    bench = Bench()
    moved_while_dialling(bench)
    channels = bench.resume("k1", "7.2", {"c": "up", "a1": "up"})
    assert bench.hears(channels["c"]) == bench.hears(channels["a1"]) == "people"


def test_refused_while_it_moved_the_caller_is_told() -> None:
    bench = Bench()
    moved_while_dialling(bench)
    bench.resume("k1", "7.2", {"c": "ringing"}, ended={"a1": "failed"})
    assert bench.said(link.EndLeg, leg="c") and not bench.dialled()


def test_what_became_of_a_party_in_a_call_that_is_on_its_way_elsewhere_is_not_ours_to_say() -> None:
    """The party answered, and the edge died with our INVITE: for its next life we do not serve the call."""
    bench = Bench()
    agent_dials(bench)
    (channel,) = bench.dialled()
    bench.ring(channel)
    bench.link_down()
    bench.post(*bench.asterisk.destroy(channel, 34, 503))
    bench.sleep(1.0)
    bench.link()
    bench.sleep(1.0)
    assert not bench.said(link.EndLeg)


def test_nobody_is_called_again_where_no_record_says_who_was() -> None:
    """The edge says that somebody was, and is gone; a carrier's caller is served anew."""
    bench = Bench()
    bench.own("k1", epoch="7.2")
    bench.resume("k1", "7.2", {"c": "ringing"}, ended={"a1": "lost"}, did="+4930", user="1001")
    assert [f.cause for f in bench.said(link.EndLeg, leg="c")] == ["480"]
    bench.own("k2", epoch="7.3")
    bench.resume("k2", "7.3", {"c": "up"}, ended={"a1": "failed"}, trunk="carrier1")
    assert not bench.dialled() and not bench.said(link.EndLeg)[1:]
    assert [p["extension"] for p in bench.operations("channels.continueInDialplan")] == ["6000"]


def test_not_dialled_yet_it_is_dialled_under_the_same_name() -> None:
    bench = Bench()
    moved_while_dialling(bench)
    bench.resume("k1", "7.2", {"c": "ringing"})
    assert bench.dialled() == ["k1.a1.7.2"]


@pytest.mark.parametrize("dialled", ["agent", "number"])
def test_an_edge_that_died_before_anybody_rang_is_asked_again(dialled: str) -> None:
    """Its next life has heard of no such leg; the same one, whose link was away, may just be about to."""
    bench = Bench(("1001",))
    if dialled == "agent":
        bench.trunk()
    else:
        agent_dials(bench)
    (first,) = bench.dialled()
    head = {"k1": link.CallAtEdge("7.1", {"c": link.LegAtEdge("answered")})}
    bench.link_down()
    bench.link(head)
    assert bench.dialled() == [first]
    bench.link_down()
    bench.link(head, revision=50)
    (second,) = bench.dialled()
    assert second != first and bench.target(second) == bench.target(first)
    bench.ring(second)
    bench.pick_up(second)
    bench.sleep(1.0)
    assert bench.hears(second) == "people"


@pytest.mark.parametrize("supervised", [False, True])
def test_the_party_hung_up_in_the_gap(supervised: bool) -> None:
    """A supervisor is nobody to talk to."""
    bench = Bench()
    moved_while_dialling(bench)
    record = bench.record()
    assert record is not None
    bench.store.put(bench.keys.record("k1"), msgspec.structs.replace(record, stage="talking", answered=UTC0))
    bench.store_back()
    facts = {"c": "up", "s1": "up"} if supervised else {"c": "up"}
    bench.resume("k1", "7.2", facts, ended={"a1": "phone"})
    assert bench.said(link.EndLeg, leg="c") and not bench.dialled()


@pytest.mark.parametrize("brought", [False, True])
def test_a_second_line_to_nobody_is_ended_by_who_takes_the_call_up(brought: bool) -> None:
    """Its party hung up in the gap, where no record had him; or the edge heard who belongs to whom after an
    attended transfer, and not of the ends that the lost node announced with it."""
    bench = Bench()
    bench.talk()
    bench.asterisk_dies()
    bench.asterisk_back()
    bench.own("k1", epoch="7.2")
    stays, ended = ({"a2": "up"}, {"a1": "app"}) if brought else ({"a1": "held"}, {"a2": "phone"})
    channels = bench.resume(
        "k1", "7.2", {"c": "up", "k1": "up", **stays}, ended=ended, head="c", sides={"k1": "k1"},
        lines={"k1": "a1"}, targets={"a2": "number:+4940"} if brought else {},
    )  # fmt: skip
    bench.sleep(0.5)
    assert [frame.leg for frame in bench.said(link.EndLeg, epoch="7.2")] == ["k1"]
    assert bench.hears(channels["c"]) == ("people" if brought else "music")


@pytest.mark.parametrize("answered", [False, True])
def test_whoever_asked_for_a_transfer_of_somebody_who_has_hung_up_has_the_target(answered: bool) -> None:
    """He hung up in the gap, and the target answered there, or answers now."""
    bench = Bench()
    transfer = TransferValue(transfer="t9", leg="c", number="+4940", party="a2", device="1001")
    legs = {
        "c": LegValue(leg="c", role="user", agent="1001", state="up"),
        "a1": LegValue(leg="a1", role="party", target="device:1002", state="up"),
        "a2": LegValue(leg="a2", role="party", target="number:+4940"),
    }
    record = RecordValue(
        call="k1", epoch="7.1", node="ast2#x", stage="talking", verb=["agent", "dial", "1002"], legs=legs,
        transfer=transfer,
    )  # fmt: skip
    bench.store.put(bench.keys.record("k1"), record)
    bench.store_back()
    bench.own("k1", epoch="7.2")
    facts = {"c": "up", "a2": "up" if answered else "ringing"}
    channels = bench.resume("k1", "7.2", facts, ended={"a1": "phone"}, head="c", asking=["c"])
    if not answered:
        bench.frame(link.LegRinging("k1", "a2", "7.2"))
        bench.frame(link.LegAnswered("k1", "a2", "7.2"))
    bench.sleep(0.5)
    assert [frame.status for frame in bench.said(link.TransferIs)] == [480] and not bench.said(link.EndLeg)
    assert bench.hears(channels["c"]) == bench.hears(channels["a2"]) == "people"


def test_whom_a_second_line_wanted_is_dialled_for_it_when_it_leads_the_call() -> None:
    """His first conversation ended while what he asked for was being written down, and of that his edge hears
    later than of the INVITE: told whose party it is, it asks for none again."""
    bench = Bench()
    agent_dials(bench, "1002")
    (first,) = bench.dialled()
    bench.pick_up(first)
    bench.frame(link.LegHeld("k1", "c", "7.1", True))
    bench.store.perform = lambda effect: (None, [])  # type: ignore[method-assign]
    bench.frame(link.ConsultAsked("k1", "k1", "7.1", "c", "+4940"))
    assert not bench.dialled()
    bench.gone("k1", "a1")
    bench.sleep(2.0)
    (party,) = bench.dialled()
    assert bench.said(link.EndLeg, leg="c") and bench.token_of(party).consult == "k1"
