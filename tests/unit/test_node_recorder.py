"""A node's recorder as its machine runs it, and what the node says of recording."""

from __future__ import annotations

import pytest

from ari_ha.core.machine import Done, OutcomeOf, Refused
from ari_ha.core.ports.link import LinkDown, LinkReceived, LinkUp
from ari_ha.core.ports.recording import OpenRecording, RecorderDown, RecordingFailed
from ari_ha.wire import link
from tests.support.node_bench import EDGE, Bench


def record(bench: Bench, recording: str = "r1", call: str = "k9", leg: str = "c") -> None:
    """The edge asks."""
    bench.own(call, node="ast9#1")
    order = link.Record(recording=recording, call=call, leg=leg, host="10.0.0.11", port=30_002, payload=8)
    bench.frame(order)


@pytest.fixture
def bench() -> Bench:
    return Bench(record=True)


def test_it_records_calls_it_does_not_serve(bench: Bench) -> None:
    record(bench)
    (order,) = bench.recording.values()
    assert (order.call, order.leg, order.host, order.port, order.payload) == (
        "k9", "c", "10.0.0.11", 30_002, 8,
    )  # fmt: skip
    assert bench.said(link.RecorderAt, recording="r1", call="k9", host="10.0.0.31", port=42_000)
    assert not bench.machine.core.calls
    bench.frame(link.EndRecording(recording="r1", call="k9"))
    assert not bench.recording and bench.machine.core.recorder.count == 0
    bench.frame(link.EndRecording(recording="r1", call="k9"))


def test_asked_again_it_says_the_same(bench: Bench) -> None:
    record(bench)
    record(bench)
    assert len(bench.said(link.RecorderAt)) == 2 and len(bench.recording) == 1


def test_no_room(bench: Bench) -> None:
    bench.recorder = lambda order: Refused("2 MB free")
    record(bench)
    assert bench.said(link.RecordingOver)[-1].reason == "2 MB free"
    assert bench.machine.core.recorder.count == 0 and not bench.recording


def test_ended_before_it_had_begun(bench: Bench) -> None:
    orders: list[OpenRecording] = []
    bench.recorder = lambda order: orders.append(order)  # type: ignore[func-returns-value]
    record(bench)
    bench.frame(link.EndRecording(recording="r1", call="k9"))
    bench.recording["r1"] = orders[0]  # it begins all the same
    bench.post(OutcomeOf(effect=orders[0], outcome=Done(("10.0.0.31", 42_000))))
    assert not bench.recording and not bench.said(link.RecorderAt)


def test_a_node_without_a_recorder_says_so() -> None:
    bench = Bench(records=False)
    record(bench)
    assert bench.said(link.RecordingOver)[-1].reason == "no recorder here"
    assert link.RECORD not in bench.said(link.NodeHello)[-1].features
    assert not bench.said(link.NodeRecordings)


def test_a_recording_that_ends_by_itself_is_told(bench: Bench) -> None:
    record(bench, "r1")
    record(bench, "r2", leg="a1")
    bench.post(RecordingFailed(recording="r1", reason="no space left on device"))
    assert [frame.recording for frame in bench.said(link.RecordingOver)] == ["r1"]
    bench.post(RecorderDown(reason="its process ended"))
    assert [frame.recording for frame in bench.said(link.RecordingOver)] == ["r1", "r2"]
    assert bench.machine.core.recorder.count == 0


def test_asterisk_dies_and_recordings_go_on(bench: Bench) -> None:
    record(bench)
    bench.asterisk_dies()
    bench.asterisk_back()
    bench.sleep(60.0)
    assert list(bench.recording) == ["r1"] and not bench.said(link.RecordingOver)


def test_the_link_breaks_and_comes_back(bench: Bench) -> None:
    assert link.RECORD in bench.said(link.NodeHello)[-1].features
    record(bench)
    bench.link_down()
    bench.sleep(60.0)
    assert list(bench.recording) == ["r1"], "the edge is restarted; rtpengine goes on"
    bench.link()
    assert bench.said(link.NodeRecordings)[-1].recordings == {"r1": "k9"}


def test_the_call_ended_and_nobody_could_say_so(bench: Bench) -> None:
    record(bench)
    bench.link_down()
    bench.disown("k9")
    bench.sleep(25.0)
    assert not bench.recording and bench.machine.core.recorder.count == 0


def test_etcd_is_away_and_nothing_is_ended(bench: Bench) -> None:
    record(bench)
    bench.store_away()
    bench.sleep(120.0)
    assert list(bench.recording) == ["r1"]


def test_another_edge_hears_nothing_of_a_call_that_is_not_its_own(bench: Bench) -> None:
    record(bench)
    bench.sent.clear()
    another_edge(bench, "v2")
    assert [frame.recordings for frame in bench.said(link.NodeRecordings)] == [{}]
    bench.frame(link.EdgeCalls())
    assert bench.said(link.NodeRecordings)[-1].recordings == {"r1": "k9"}


def another_edge(bench: Bench, vip: str) -> None:
    """It serves: it says which calls it has."""
    hello, calls = link.EdgeHello(edge="edge9", vip=vip, edge_revision=9), link.EdgeCalls()
    bench.post(LinkUp(peer="edge9"), *(LinkReceived(peer="edge9", frame=frame) for frame in (hello, calls)))


def test_the_other_edge_of_the_pair_takes_over_and_recordings_go_on(bench: Bench) -> None:
    """The call's owner in etcd is still the edge that died."""
    record(bench)
    bench.post(LinkDown(peer=EDGE, reason="its host died"))
    bench.sent.clear()
    another_edge(bench, "v1")
    assert [frame.recordings for frame in bench.said(link.NodeRecordings)] == [{"r1": "k9"}]
    bench.sent.clear()
    bench.post(RecordingFailed(recording="r1", reason="no space left on device"))
    assert bench.said(link.RecordingOver)[-1].recording == "r1", "told to whoever serves now"


def test_the_edge_is_told_what_the_queue_says(bench: Bench) -> None:
    bench.talk()
    assert [frame.on for frame in bench.said(link.WantRecording)] == [True]
    bench.link_down()
    bench.sent.clear()
    legs = {leg: link.LegAtEdge("answered") for leg in ("c", "a1")}
    bench.link({"k1": link.CallAtEdge(epoch="7.1", legs=legs)})
    assert [frame.on for frame in bench.said(link.WantRecording)] == [True], "said again on a new link"


def test_nothing_is_said_of_a_queue_that_records_nothing() -> None:
    bench = Bench()
    bench.talk()
    assert not bench.said(link.WantRecording)


def test_a_caller_who_waits_is_not_recorded(bench: Bench) -> None:
    bench.trunk("k1")
    assert not bench.said(link.WantRecording)


def test_a_survivor_says_it_too(bench: Bench) -> None:
    bench.talk()
    bench.sent.clear()
    bench.own("k1", epoch="7.2")
    bench.resume("k1", "7.2", {"c": "up", "a1": "up"})
    assert [(frame.on, frame.epoch) for frame in bench.said(link.WantRecording)] == [(True, "7.2")]
