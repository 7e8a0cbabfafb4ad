"""A recorded call: two recorders of every voice, whatever serves the call and whoever dies."""

from __future__ import annotations

from collections import Counter
from copy import copy

import msgspec
import pytest

from ari_ha.core.machine import Note
from ari_ha.core.ports.link import LinkDown
from ari_ha.core.ports.operator import OperatorRequest
from ari_ha.core.ports.probe import WallClock
from ari_ha.core.ports.store import KeyValue, StoreChanged, StoreReach
from ari_ha.machines.edge import EdgeMachine
from ari_ha.sip import events as sip
from ari_ha.wire import link
from ari_ha.wire.keyspace import DrainValue, encode
from tests.support.edge_world import NODES, EdgeWorld, Node, kill
from tests.unit.test_edge_machine import talking


@pytest.fixture
def world() -> EdgeWorld:
    world = EdgeWorld()
    for node in world.nodes.values():
        node.records = True
        world.post_link(node, f"{node.name}-1")
    return world.with_users("1001", "1002")


def act(world: EdgeWorld) -> None:
    """What was done to the machine directly is carried out."""
    world.post(OperatorRequest(request="r", verb="status"))
    world.settle()


def want(world: EdgeWorld, call, on: bool = True) -> None:
    node = world.nodes[call.owner.name]
    world.say(node, link.WantRecording(call=call.call, epoch=str(call.epoch), on=on))
    world.settle()


def recorded(world: EdgeWorld):
    """A conversation that is recorded."""
    found = talking(world)
    want(world, found[1])
    return found


def writing(world: EdgeWorld) -> Counter:
    """leg -> recorders that get its voice now: rtpengine copies it there, and the node writes."""
    there = {name for node in world.nodes.values() if node.reachable for name in node.recordings}
    found: Counter = Counter()
    for call in world.edge.calls.by_id.values():
        for one in call.recorders.values():
            if (one.tag, one.leg) in world.hears[call.call] and one.recording in there:
                found[one.leg] += 1
    return found


def nodes_of(call) -> set[str]:
    return {one.node for one in call.recorders.values()}


def drain(world: EdgeWorld, name: str) -> None:
    world.revision += 1
    key = world.keys.drain(name)
    item = KeyValue(key, encode(DrainValue(node=name)), world.revision)
    world.store[key] = item
    world.post(StoreChanged(key=key, value=item, revision=world.revision))


def unlink(world: EdgeWorld, node: Node, forget: bool = True) -> None:
    """The node's app dies (and is restarted by its parent), Asterisk does not."""
    if forget:
        node.recordings.clear()
    world.post(LinkDown(peer=node.name, reason="closed", clean=True))


def test_two_nodes_record_both_voices(world: EdgeWorld) -> None:
    _, call, node, _, _ = talking(world)
    assert not call.recorders and writing(world) == {}
    before = set(world.hears[call.call])
    want(world, call)
    assert writing(world) == {"c": 2, "a1": 2}
    assert len(nodes_of(call)) == 2, "the same two"
    assert before < world.hears[call.call]
    people = {pair for pair in world.hears[call.call] if pair[0] in ("c", "a1")}
    assert people == {("c", "a1"), ("a1", "c")}, "nobody hears a recorder"
    taught = [c for c in world.ng if c.command == "create answer" and "/rec@" in str(c.body["from-tag"])]
    assert all(" 42" in str(c.body["sdp"]) and "recvonly" in str(c.body["sdp"]) for c in taught)
    world.run(5.0)
    assert len(taught) == len(
        [c for c in world.ng if c.command == "create answer" and "/rec@" in str(c.body["from-tag"])]
    ), "said once"


def test_the_serving_node_dies(world: EdgeWorld) -> None:
    """Its recorder dies with it; the other one writes on, and another joins it."""
    _, call, node, _, _ = recorded(world)
    gone = next(name for name in nodes_of(call))
    ticks: list[Counter] = []
    original = world.perform

    def watched(effect) -> None:
        original(effect)
        if world.nodes[gone].gone:
            ticks.append(writing(world))

    world.perform = watched  # type: ignore[method-assign]
    kill(world, gone)
    world.run(1.0)
    assert ticks and all(tick["c"] >= 1 and tick["a1"] >= 1 for tick in ticks), "no moment without one"
    assert writing(world) == {"c": 2, "a1": 2} and gone not in nodes_of(call)
    assert call.recorded and not call.lost


def test_a_move_of_the_call_touches_no_recorder(world: EdgeWorld) -> None:
    _, call, node, _, _ = recorded(world)
    before = dict(call.recorders)
    # its Asterisk dies, its app, and with it the recorder, does not
    world.say(node, link.AsteriskGone(incarnation=f"{node.name}-1", reason="killed"))
    world.run(1.0)
    assert call.owner.name != node.name
    assert call.recorders == before and writing(world) == {"c": 2, "a1": 2}


def test_an_app_that_is_restarted_is_replaced_meanwhile(world: EdgeWorld) -> None:
    _, call, _, _, _ = recorded(world)
    node = world.nodes[min(nodes_of(call))]
    unlink(world, node)
    assert node.name not in nodes_of(call)
    assert writing(world) == {"c": 2, "a1": 2}
    world.link_up(node)
    world.run(2.0)
    assert writing(world) == {"c": 2, "a1": 2} and not node.recordings


def test_a_link_that_broke_leaves_nothing_behind(world: EdgeWorld) -> None:
    """The node wrote on; when it is heard again it is told that somebody else does it."""
    _, call, _, _, _ = recorded(world)
    node = world.nodes[min(nodes_of(call))]
    unlink(world, node, forget=False)
    assert node.recordings
    world.link_up(node)
    world.run(1.0)
    assert not node.recordings


def test_both_recorders_are_lost_at_once(world: EdgeWorld) -> None:
    _, call, _, _, _ = recorded(world)
    lost = sorted(nodes_of(call))
    for name in lost:
        unlink(world, world.nodes[name])
    third = (set(NODES) - set(lost)).pop()
    assert nodes_of(call) == {third} and writing(world) == {"c": 1, "a1": 1}
    assert [note for note in world.notes if note.text == "recorded by one node only"]
    world.link_up(world.nodes[lost[0]])
    world.run(1.0)
    assert writing(world) == {"c": 2, "a1": 2}


def test_while_one_recorder_is_missing_nobody_counts_all_calls_for_each(world: EdgeWorld) -> None:
    """With many calls the edge would do nothing else."""

    class Counted(dict):
        looks = 0

        def values(self):
            Counted.looks += 1
            return super().values()

    for caller in ("1001", "1002"):
        _, call = world.call_in()
        world.register(caller)
        world.dial(world.nodes[call.owner.name], call, "a1", caller)
        invite = world.phones[caller].of(sip.InviteReceived)[-1]
        world.phones[caller].sip.answer(invite.leg, world.phones[caller].sdp(), world.now)
        world.settle()
        want(world, call)
    for name in ("ast2", "ast3"):
        unlink(world, world.nodes[name])
    assert {frozenset(nodes_of(call)) for call in world.edge.calls.by_id.values()} == {frozenset({"ast1"})}
    world.edge.calls.by_id = Counted(world.edge.calls.by_id)
    world.run(0.6)
    few = Counted.looks
    for n in range(20):
        call = copy(next(iter(world.edge.calls.by_id.values())))
        call.call, call.recorders = f"copy{n}", dict(call.recorders)
        world.edge.calls.by_id[call.call] = call
    Counted.looks = 0
    world.edge.recordings._look_all()
    assert 0 < Counted.looks <= few


def test_no_node_has_a_recorder(world: EdgeWorld) -> None:
    for node in world.nodes.values():
        node.records = False
        world.post_link(node, f"{node.name}-1")
    _, call, _, _, _ = recorded(world)
    assert call.recorded and not call.recorders
    told = [note for note in world.notes if note.text == "no node records it"]
    world.run(3.0)
    assert len(told) == 1 and len([n for n in world.notes if n.text == "no node records it"]) == 1
    for node in world.nodes.values():
        node.records = True
        world.post_link(node, f"{node.name}-1")
    world.run(1.0)
    assert writing(world) == {"c": 2, "a1": 2}


def test_a_node_that_refuses_is_left_in_peace_for_a_while(world: EdgeWorld) -> None:
    world.nodes["ast1"].auto_record = False
    _, call, _, _, _ = recorded(world)
    asked = [frame for frame in world.nodes["ast1"].frames if isinstance(frame, link.Record)]
    assert asked
    for frame in asked:
        over = link.RecordingOver(recording=frame.recording, call=frame.call, reason="2 MB free")
        world.say(world.nodes["ast1"], over)
    world.run(3.0)
    assert writing(world) == {"c": 2, "a1": 2} and nodes_of(call) == {"ast2", "ast3"}
    again = [frame for frame in world.nodes["ast1"].frames if isinstance(frame, link.Record)]
    assert len(again) <= len(asked) + 1, "of each voice one question was open when it refused"


def test_who_always_refuses_is_asked_less_and_less(world: EdgeWorld) -> None:
    unlink(world, world.nodes["ast3"])
    node = world.nodes["ast1"]
    node.auto_record = False
    recorded(world)
    asked: list[link.Record] = []
    for _ in range(120):
        for frame in [f for f in node.frames if isinstance(f, link.Record)][len(asked) :]:
            asked.append(frame)
            over = link.RecordingOver(recording=frame.recording, call=frame.call, reason="2 MB free")
            world.say(node, over)
        world.run(1.0, step=0.25)
    assert 4 <= len(asked) <= 14, "of two voices, after 5, 10, 20 and 40 s"
    unlink(world, node)
    node.auto_record = True
    world.link_up(node)
    world.run(1.0)
    assert writing(world) == {"c": 2, "a1": 2}, "another app is asked at once"


def test_a_node_that_does_not_answer_is_given_up(world: EdgeWorld) -> None:
    world.nodes["ast1"].auto_record = False
    _, call, _, _, _ = recorded(world)
    assert "ast1" in nodes_of(call)
    world.run(4.0)
    assert nodes_of(call) == {"ast2", "ast3"} and writing(world) == {"c": 2, "a1": 2}
    assert world.nodes["ast1"].got(link.EndRecording), "if it began after all"


def test_a_recording_that_fails_is_replaced(world: EdgeWorld) -> None:
    _, call, _, _, _ = recorded(world)
    one = next(iter(call.recorders.values()))
    node = world.nodes[one.node]
    del node.recordings[one.recording]
    node.auto_record = False
    world.say(node, link.RecordingOver(recording=one.recording, call=call.call, reason="disk full"))
    assert writing(world)[one.leg] == 2


def test_a_drained_node_records_until_another_does(world: EdgeWorld) -> None:
    _, call, _, _, _ = recorded(world)
    name = min(nodes_of(call))
    third = (set(NODES) - nodes_of(call)).pop()
    world.nodes[third].auto_record = False
    drain(world, name)
    world.run(1.0)
    assert name in nodes_of(call) and writing(world) == {"c": 2, "a1": 2}
    for frame in list(world.nodes[third].got(link.Record)):
        world.nodes[third].recordings[frame.recording] = frame
        world.say(
            world.nodes[third],
            link.RecorderAt(recording=frame.recording, call=call.call, host="10.0.2.33", port=42_100),
        )
    world.run(1.0)
    assert name not in nodes_of(call) and not world.nodes[name].recordings
    assert writing(world) == {"c": 2, "a1": 2}


def test_a_drained_node_records_until_another_is_sent_the_voice(world: EdgeWorld) -> None:
    """The second of two may be dead, which nobody knows yet."""
    _, call, _, _, _ = recorded(world)
    name = min(nodes_of(call))
    ticks: list[Counter] = []
    original = world.perform

    def watched(effect) -> None:
        original(effect)
        ticks.append(writing(world))

    world.perform = watched  # type: ignore[method-assign]
    drain(world, name)
    world.run(2.0)
    assert name not in nodes_of(call) and not world.nodes[name].recordings
    assert writing(world) == {"c": 2, "a1": 2}
    assert all(tick["c"] >= 2 and tick["a1"] >= 2 for tick in ticks), "no moment with one alone"


def test_a_drained_node_goes_on_where_there_is_no_other(world: EdgeWorld) -> None:
    kill(world, "ast3")
    _, call, _, _, _ = recorded(world)
    drain(world, "ast1")
    world.run(2.0)
    assert writing(world) == {"c": 2, "a1": 2}


def test_the_only_node_left_is_drained(world: EdgeWorld) -> None:
    """It has nothing of the call yet, and is better than none."""
    _, call, _, _, _ = recorded(world)
    first, second = sorted(nodes_of(call))
    (third,) = set(NODES) - {first, second}
    drain(world, third)
    world.run(1.0)
    assert third not in nodes_of(call), "as long as there are others"
    for name in (first, second):
        unlink(world, world.nodes[name])
    assert writing(world) == {"c": 1, "a1": 1} and nodes_of(call) == {third}
    for name in (first, second):
        world.link_up(world.nodes[name])
    world.run(1.0)
    assert writing(world) == {"c": 2, "a1": 2} and third not in nodes_of(call)


def test_they_end_with_the_call(world: EdgeWorld) -> None:
    caller, _, _, _, _ = recorded(world)
    world.carrier.sip.hangup(caller, world.now)
    world.settle()
    assert world.edge.calls.by_id == {} and not any(node.recordings for node in world.nodes.values())


def test_the_call_ends_while_they_are_being_set_up(world: EdgeWorld) -> None:
    for node in world.nodes.values():
        node.auto_record = False
    caller, call, _, _, _ = recorded(world)
    asked = [(node, frame) for node in world.nodes.values() for frame in node.got(link.Record)]
    assert len(asked) == 4
    world.carrier.sip.hangup(caller, world.now)
    world.settle()
    for node, frame in asked:
        node.recordings[frame.recording] = frame
        at = link.RecorderAt(recording=frame.recording, call=call.call, host=node.host, port=42_000)
        world.say(node, at)
    assert not any(node.recordings for node in world.nodes.values()), "late ones are told, too"


def test_a_queue_that_does_not_want_it_any_more(world: EdgeWorld) -> None:
    _, call, _, _, _ = recorded(world)
    want(world, call, False)
    assert not call.recorders and writing(world) == {}
    assert not any(node.recordings for node in world.nodes.values())
    assert not [pair for pair in world.hears[call.call] if "/rec@" in pair[0]]


def test_a_word_of_an_old_epoch_counts_for_nothing(world: EdgeWorld) -> None:
    _, call, node, _, _ = talking(world)
    world.say(node, link.WantRecording(call=call.call, epoch="1.1", on=True))
    world.say(node, link.WantRecording(call="nobody's", epoch="1.1", on=True))
    assert not call.recorded


def test_the_agent_leaves_and_another_comes(world: EdgeWorld) -> None:
    """A caller who is alone is not recorded."""
    _, call, node, phone, leg = recorded(world)
    call.legs["a1"].attempt = ""
    phone.sip.hangup(leg, world.now)
    world.settle()
    assert writing(world) == {} and not any(node.recordings for node in world.nodes.values())
    second = world.register("1002")
    world.dial(node, call, "a2", "1002", attempt="t2")
    invite = second.of(sip.InviteReceived)[-1]
    second.sip.answer(invite.leg, second.sdp(), world.now)
    world.settle()
    assert writing(world) == {"c": 2, "a2": 2}


def test_hold_is_recorded_without_its_music(world: EdgeWorld) -> None:
    _, call, _, phone, leg = recorded(world)
    before = {pair for pair in world.hears[call.call] if "/rec@" in pair[0]}
    phone.sip.reinvite(leg, phone.sdp(direction="sendonly"), world.now)
    world.settle()
    assert call.media.state == "through"
    assert {pair for pair in world.hears[call.call] if "/rec@" in pair[0]} == before
    assert all("@" not in speaker for _, speaker in before), "of Asterisk nothing is copied"


def test_a_muted_leg_is_recorded_by_nobody(world: EdgeWorld) -> None:
    _, call, _, _, _ = recorded(world)
    world.edge.calls.mute(call, call.legs["a1"], True)
    act(world)
    assert writing(world) == {"c": 2}
    world.edge.calls.mute(call, call.legs["a1"], False)
    act(world)
    assert writing(world) == {"c": 2, "a1": 2}


def test_supervisors_and_consultations_are_not_recorded(world: EdgeWorld) -> None:
    _, call, _, _, _ = recorded(world)
    call.legs["a1"].consult = "a1"
    world.edge.calls.apply_media(call)
    act(world)
    assert writing(world) == {}
    call.legs["a1"].consult = ""
    world.edge.calls.apply_media(call)
    act(world)
    assert writing(world) == {"c": 2, "a1": 2}
    assert [leg.leg for leg in call.recorded_legs()] == ["c", "a1"]


def test_the_edge_is_restarted(world: EdgeWorld) -> None:
    _, call, _, _, _ = recorded(world)
    before = {one.recording: (one.node, one.tag) for one in call.recorders.values()}
    world.ng.clear()
    world.boot()
    world.run(5.0)
    after = world.edge.calls.by_id[call.call]
    assert {one.recording: (one.node, one.tag) for one in after.recorders.values()} == before
    assert writing(world) == {"c": 2, "a1": 2}
    assert not [c for c in world.ng if c.command == "unsubscribe" and "/rec@" in str(c.body["to-tag"])]
    assert all(not node.got(link.EndRecording) for node in world.nodes.values())


def test_an_edge_that_stands_by_ends_nothing(world: EdgeWorld) -> None:
    """Links are up long before it serves, and it knows no call until then."""
    _, call, _, _, _ = recorded(world)
    before = {name: dict(node.recordings) for name, node in world.nodes.items()}
    world.edge = EdgeMachine(world.config(), world.new_id)
    for node in world.nodes.values():
        world.link_up(node)
        for recording, frame in before[node.name].items():
            world.say(node, link.NodeRecordings(recordings={recording: call.call}))
            at = link.RecorderAt(recording=recording, call=call.call, host=node.host, port=frame.port)
            world.say(node, at)
    assert {name: node.recordings for name, node in world.nodes.items()} == before
    world.post(WallClock(utc_s=1_800_000_000 + world.now))
    world.post(StoreReach(reachable=True))
    world.snapshots()
    world.run(5.0)
    assert {name: node.recordings for name, node in world.nodes.items()} == before
    assert writing(world) == {"c": 2, "a1": 2}


def test_a_node_goes_while_the_edge_is_away(world: EdgeWorld) -> None:
    _, call, _, _, _ = recorded(world)
    gone = world.nodes[min(nodes_of(call))]
    gone.gone = True
    world.boot()
    world.run(5.0)
    after = world.edge.calls.by_id[call.call]
    assert gone.name not in nodes_of(after) and writing(world) == {"c": 2, "a1": 2}


def test_what_was_being_set_up_when_the_edge_died(world: EdgeWorld) -> None:
    for node in world.nodes.values():
        node.auto_record = False
    _, call, _, _, _ = recorded(world)
    for node in world.nodes.values():
        node.recordings = {frame.recording: frame for frame in node.got(link.Record)}
        node.auto_record = True
    old = {name for node in world.nodes.values() for name in node.recordings}
    world.boot()
    world.run(2.0)
    assert writing(world) == {"c": 2, "a1": 2}
    assert not old & {name for node in world.nodes.values() for name in node.recordings}


def test_the_other_edge_has_another_rtpengine(world: EdgeWorld) -> None:
    _, call, _, _, _ = recorded(world)
    old = set(call.recorders)
    world.rehome()
    world.run(2.0)
    after = world.edge.calls.by_id[call.call]
    assert not old & set(after.recorders) and writing(world) == {"c": 2, "a1": 2}
    assert not old & {name for node in world.nodes.values() for name in node.recordings}


def test_rtpengine_has_lost_everything(world: EdgeWorld) -> None:
    _, call, _, _, _ = recorded(world)
    old = set(call.recorders)
    world.relay_begins_anew()
    world.run(2.0)
    assert not old & set(call.recorders) and writing(world) == {"c": 2, "a1": 2}


def test_rtpengine_gives_no_port(world: EdgeWorld) -> None:
    _, call, _, _, _ = talking(world)
    world.ng_refuse = lambda c: c.command == "create" and "/rec@" in str(c.body["from-tag"])
    want(world, call)
    world.run(2.0)
    assert writing(world) == {}
    creates = [c for c in world.ng if c.command == "create" and "/rec@" in str(c.body["from-tag"])]
    assert len(creates) < 60, "it is not asked without end"
    world.ng_refuse = lambda c: False
    world.run(2.0)
    assert writing(world) == {"c": 2, "a1": 2}


def test_an_older_edge_keeps_what_it_does_not_know(world: EdgeWorld) -> None:
    _, call, _, _, _ = recorded(world)
    stored = msgspec.json.decode(world.store[world.keys.dialogs("pair1", call.call)].value)
    assert stored["recorded"] is True and set(stored["recorders"]) == set(call.recorders)


def test_a_far_end_with_another_codec_is_not_transcoded(world: EdgeWorld) -> None:
    _, call, _, _, _ = talking(world)
    call.legs["c"].side.payload = 0
    want(world, call)
    payloads = {(f.leg, f.payload) for n in world.nodes.values() for f in n.got(link.Record)}
    assert payloads == {("c", 0), ("a1", 8)}
    sdps = [one.remote_sdp() for one in call.recorders.values() if one.leg == "c"]
    assert all("PCMU/8000" in sdp and "PCMA" not in sdp for sdp in sdps)
    assert not [note for note in world.notes if isinstance(note, Note) and note.level == "error"]
