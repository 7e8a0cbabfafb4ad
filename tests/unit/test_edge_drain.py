"""Emptying a node on purpose: make before break, at a pace, called off, continued."""

from __future__ import annotations

import pytest

from ari_ha.core.ports.operator import OperatorReply, OperatorRequest
from ari_ha.core.ports.store import KeyValue, StoreChanged
from ari_ha.sip import events as sip
from ari_ha.wire import link
from ari_ha.wire.keyspace import DrainValue, OwnerValue, decode, encode
from tests.support.edge_world import EdgeWorld
from tests.unit.test_edge_machine import talking


def drain(world: EdgeWorld, node: str, **how) -> None:
    world.revision += 1
    key = world.keys.drain(node)
    item = world.store[key] = KeyValue(key, encode(DrainValue(node=node, **how)), world.revision)
    world.post(StoreChanged(key=key, value=item, revision=world.revision))
    world.settle()


def undrain(world: EdgeWorld, node: str) -> None:
    world.revision += 1
    del world.store[world.keys.drain(node)]
    world.post(StoreChanged(key=world.keys.drain(node), value=None, revision=world.revision))
    world.settle()


@pytest.mark.parametrize("state", ["hitless", "through"])
def test_people_who_talk_hear_each_other_all_the_way(world, state):
    caller, call, node, phone, _ = talking(world, state)
    sent, said = len(world.sip_log), len(world.ng)
    seen = []
    refuse = world.ng_refuse
    world.ng_refuse = lambda command: seen.append(set(world.hears[call.call])) or refuse(command)
    drain(world, node.name)
    world.run(0.5)
    assert call.owner.name != node.name and call.move is None and call.moves[-1]["why"] == "drained"
    assert [item for item in world.sip_log[sent:] if item[2].startswith("10.0.1.")] == []
    n, s = node.name, call.owner.name
    for graph in seen:  # at every moment the customer hears the agent: directly, or through one node
        direct = ("c", "a1") in graph
        through = any({("c", f"c@{m}.1"), (f"a1@{m}.1", "a1")} <= graph for m in (n, s))
        assert direct or through, graph
    assert len(world.ng) > said
    ended = [e for e in node.of(sip.LegEnded)]
    assert len(ended) == 2  # both its legs, by us


def test_the_old_node_is_told_after_the_media_has_moved(world):
    _, call, node, _, _ = talking(world, "through")
    graphs = []
    world.ng_refuse = lambda command: graphs.append(bool(node.got(link.CallMoved)))
    drain(world, node.name)
    world.run(0.5)
    unsubscribed = [told for command, told in zip(world.ng[-len(graphs):], graphs, strict=True)
                    if command.command in ("connect", "unsubscribe")]  # fmt: skip
    assert unsubscribed and not any(unsubscribed)
    assert node.got(link.CallMoved)[-1].to_node == call.owner.name


def test_no_new_call_and_no_survivor_leg_goes_there(world):
    drain(world, "ast1", when="idle")
    for _ in range(4):
        _, call = world.call_in()
        assert call.owner.name != "ast1"
    undrain(world, "ast1")
    _, call = world.call_in()
    assert call.owner.name == "ast1"


def test_idle_moves_nobody(world):
    _, call, node, _, _ = talking(world)
    drain(world, node.name, when="idle")
    world.run(5)
    assert call.owner.name == node.name


def test_after_a_time(world):
    _, call, node, _, _ = talking(world)
    drain(world, node.name, move_at=world.edge.context.utc + 3.0)
    world.run(2.5)
    assert call.owner.name == node.name
    world.run(1.0)
    assert call.owner.name != node.name


def test_the_pace_is_kept_and_calling_off_stops_it(world):
    for name in ("ast2", "ast3"):
        drain(world, name, when="idle")
    calls = [world.call_in()[1] for _ in range(6)]
    assert {call.owner.name for call in calls} == {"ast1"}
    undrain(world, "ast2")
    drain(world, "ast1", rate_per_s=2.0)
    world.run(0.9)
    assert sum(call.owner.name == "ast1" for call in calls) == 4
    undrain(world, "ast1")
    world.run(5)
    assert sum(call.owner.name == "ast1" for call in calls) == 4


def test_without_another_node_calls_stay_and_are_served(world):
    _, call, node, _, _ = talking(world, "through")
    for name in sorted(world.nodes, key=lambda name: name == node.name):
        drain(world, name)
    world.run(3)
    assert call.owner.name == node.name and not call.lost and call.move is None
    undrain(world, next(name for name in world.nodes if name != node.name))
    world.run(1)
    assert call.owner.name != node.name


def test_an_unanswered_call_is_waited_for(world):
    for node in world.nodes.values():
        node.auto_answer_new = False
    _, call = world.call_in()
    node = world.nodes[call.owner.name]
    drain(world, node.name)
    world.run(1)
    assert call.owner.name == node.name
    leg = node.of(sip.InviteReceived)[-1].leg
    node.sip.answer(leg, node.sdp(), world.now)
    world.settle()
    world.run(0.6)
    assert call.owner.name != node.name


def test_an_edge_killed_in_the_middle_goes_on(world):
    _, call, node, _, _ = talking(world)
    for other in world.nodes.values():
        other.auto_bridge = False
    drain(world, node.name)
    world.run(0.2)
    owner = decode(world.store[world.keys.owner(call.call)].value, OwnerValue)
    assert owner.moving and owner.moving_from.startswith(node.name)
    for other in world.nodes.values():
        other.auto_bridge = True
    world.boot()
    world.run(2)
    again = world.edge.calls.by_id[call.call]
    assert again.owner.name != node.name and not again.lost and again.move is None
    assert world.edge.watch.nodes[node.name].draining


def test_an_end_the_old_node_announces_during_the_move_counts(world):
    _, call, node, phone, leg = talking(world)
    old = str(call.epoch)
    for other in world.nodes.values():
        other.auto_bridge = False
    drain(world, node.name)
    assert call.move and str(call.epoch) != old
    world.say(node, link.EndLeg(call=call.call, leg="a1", epoch=old, cause="16"))
    world.run(0.5)
    assert phone.of(sip.LegEnded)


def ask(world: EdgeWorld, call: str, to: str = "") -> OperatorReply:
    request = OperatorRequest(request="r1", verb="takeover", args={"call": call, "to": to})
    effects = list(world.edge.handle(request, world.now))
    for effect in effects:
        world.perform(effect)
    world.settle()
    return next(effect for effect in effects if isinstance(effect, OperatorReply))


def test_one_call_to_a_node_of_choice(world):
    _, call, node, _, _ = talking(world)
    to = sorted(name for name in world.nodes if name != node.name)[-1]
    assert ask(world, call.call, node.name).status == 409
    assert ask(world, "nobody").status == 404
    assert ask(world, call.call, to).status == 202
    world.run(0.5)
    assert call.owner.name == to
