"""Emptying a node on purpose: make before break, at a pace, called off, continued."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from ari_ha.core.ids import Epoch
from ari_ha.core.ports.media import MediaReach
from ari_ha.core.ports.operator import OperatorReply, OperatorRequest
from ari_ha.core.ports.store import KeyValue, StoreChanged, StoreReach
from ari_ha.sip import events as sip
from ari_ha.wire import link
from ari_ha.wire.keyspace import OwnerValue, decode, encode
from ari_ha.wire.sip_values import TrunkValue
from tests.support.edge_world import CARRIER, EdgeWorld, drain
from tests.unit.test_edge_machine import kill, talking
from tests.unit.test_edge_outbound import dial, phone_dials
from tests.unit.test_edge_transfer import consulting


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


@pytest.mark.parametrize("target", ["device:1002", "number:+4930"])
def test_a_call_out_is_moved_while_it_rings(world, target):
    """Whoever rings is not called again, and answers the caller from wherever the call is."""
    world.with_users("1001", "1002")
    trunk = TrunkValue(trunk="out", hosts=[CARRIER[0]], address=f"{CARRIER[0]}:{CARRIER[1]}", prefixes=["+"])
    world.store[world.keys.trunk("out")] = KeyValue(world.keys.trunk("out"), encode(trunk), world.revision)
    world.snapshots()
    for node in world.nodes.values():
        node.auto_answer_new = False
    callee = world.carrier if target.startswith("number:") else world.register("1002")
    _, call = phone_dials(world, "1001", target.partition(":")[2])
    old = call.owner.name
    drain(world, old)
    world.run(1)
    assert call.owner.name == old, "nobody is called for him yet"
    dial(world, call, "a1", target)
    (invite,) = callee.of(sip.InviteReceived)
    callee.sip.ring(invite.leg, world.now)
    world.settle()
    world.run(1)
    assert call.owner.name != old and call.move is None and not call.lost
    assert callee.of(sip.InviteReceived) == [invite] and not callee.of(sip.LegCancelled)
    callee.sip.answer(invite.leg, callee.sdp(), world.now)
    world.settle()
    assert world.phones["1001"].of(sip.LegAnswered)
    answered = {frame.leg for frame in world.nodes[call.owner.name].got(link.LegAnswered)}
    assert answered == {"c", "a1"}


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


def test_what_the_old_node_joins_during_the_move_stays_together(world):
    """It says who belongs to whom, then ends the line the colleague was asked on: only that one goes."""
    world.with_users("1001", "1002")
    _, call, node, phone, _, second, party = consulting(world)
    old = str(call.epoch)
    for other in world.nodes.values():
        other.auto_bridge = False
    drain(world, node.name)
    assert call.move and str(call.epoch) != old
    world.say(node, link.Conversations(call=call.call, epoch=old, head="c", consult={"k1": "k1"}))
    world.say(node, link.EndLeg(call=call.call, leg="k1", epoch=old, cause="16"))
    for other in world.nodes.values():
        other.auto_bridge = True
    world.run(3)
    assert phone.of(sip.LegEnded)[-1].leg == second and not world.phones["1002"].of(sip.LegEnded)
    assert {name: leg.consult for name, leg in call.legs.items()} == {"c": "", "a1": "", "a2": ""}
    assert call.owner.name != node.name and not call.move
    (sides,) = [t.sides for t in world.nodes[call.owner.name].tokens.values()
                if (t.leg, t.epoch) == ("a2", str(call.epoch))]  # fmt: skip
    assert sides == {}, "the next node knows"


def test_between_two_tries_of_a_move_the_old_nodes_word_counts(world):
    _, call, node, phone, _ = talking(world)
    old = str(call.epoch)
    for other in world.nodes.values():
        other.auto_bridge = False
    drain(world, node.name)
    assert call.move
    for other in world.nodes.values():
        if other is not node:
            kill(world, other.name)
    world.run(1)
    assert call.move is None and not call.lost
    world.say(node, link.EndLeg(call=call.call, leg="a1", epoch=old, cause="16"))
    world.settle()
    assert phone.of(sip.LegEnded)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_move_that_came_to_nothing_leaves_the_call_to_its_node_as_it_was(world, restarted):
    """Nobody else is there, perhaps for long. The node knows of no other epoch than its own: by that it is
    told of a hold, and may dial; the survivor's word is none, and its record is older than the owner key."""
    world.with_users("1001", "1002")
    _, call, node, phone, leg = talking(world)
    colleague, old = world.register("1002"), call.epoch
    for other in world.nodes.values():
        other.auto_bridge = False
    drain(world, node.name)
    survivor, tried = call.move.to, call.epoch
    for other in world.nodes.values():
        if other is not node:
            kill(world, other.name)
    world.run(1)
    world.say(world.nodes[survivor.name], link.ResumeRefused(call=call.call, epoch=str(tried), leg="c"))
    if restarted:
        world.boot()
        call = world.edge.calls.by_id[call.call]
    owner = decode(world.store[world.keys.owner(call.call)].value, OwnerValue)
    assert owner.node.startswith(node.name) and not owner.moving and Epoch.parse(owner.epoch) > tried > old
    assert call.owner.name == node.name and not call.lost and call.epoch == old
    phone.sip.reinvite(leg, phone.sdp(direction="sendonly"), world.now)
    world.settle()
    assert node.got(link.LegHeld)[-1].epoch == str(old)
    dial(world, call, "a2", "device:1002")
    assert colleague.of(sip.InviteReceived)
    undrain(world, node.name)
    world.run(1)
    assert not world.edge.takeover.waits(call.call)
    other = world.nodes[survivor.name]
    other.gone = False
    world.link_up(other)
    world.say(other, link.NodeCalls(calls={call.call: link.CallOnNode(epoch=str(tried))}))
    assert other.got(link.CallMoved)[-1].epoch == owner.epoch, "it has lost the call"


def test_whoever_hangs_up_during_a_move_that_comes_to_nothing_is_gone_for_the_old_node_too(world):
    """The next node is told of it, and does not take the call up."""
    world.with_users("1001")
    _, call, node, phone, leg = talking(world)
    before = call.epoch
    for other in world.nodes.values():
        other.auto_bridge = False
    drain(world, node.name)
    survivor = world.nodes[call.move.to.name]
    phone.sip.hangup(leg, world.now)
    world.settle()
    (told,) = survivor.got(link.LegGone)
    assert (told.leg, told.by) == ("a1", "phone") and Epoch.parse(told.epoch) > before
    (told,) = node.got(link.LegGone)
    assert (told.leg, told.by, told.epoch) == ("a1", "phone", str(before)), "it serves the call still"


def test_a_node_asks_for_its_call_to_be_moved(world):
    """Make before break, and not where the next node could not read of it: it is asked again then."""
    world.with_users("1001")
    _, call, node, *_ = talking(world)
    wanted = link.MoveWanted(call=call.call, epoch=str(call.epoch), reason="no digit is heard")
    world.say(node, link.NodeState(ready=True, asterisk="up", unwritten=[call.call]))
    world.say(node, wanted)
    assert call.move is None
    world.say(node, link.NodeState(ready=True, asterisk="up"))
    world.say(next(other for other in world.nodes.values() if other is not node), wanted)
    world.say(node, replace(wanted, epoch="1.1"))
    assert call.move is None, "it is not theirs"
    world.say(node, wanted)
    world.run(1)
    assert call.owner.name != node.name and not world.phones["1001"].of(sip.ReinviteReceived)
    assert call.moves[-1]["why"] == "no digit is heard"


@pytest.mark.parametrize("others", ["lost", "without etcd"])
def test_where_no_other_node_is_a_call_that_is_to_be_moved_stays(world, others):
    world.with_users("1001")
    _, call, node, *_ = talking(world)
    for other in world.nodes.values():
        if other is not node and others == "lost":
            kill(world, other.name)
        elif other is not node:
            world.say(other, link.NodeState(ready=True, asterisk="up", store_away=True))
    world.run(1)
    world.say(node, link.MoveWanted(call=call.call, epoch=str(call.epoch)))
    assert call.move is None and not world.edge.takeover.waits(call.call)


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


@pytest.mark.parametrize("away", [MediaReach, StoreReach])
def test_nobody_is_moved_while_etcd_or_the_relay_is_away(world, away):
    """What its app could not write down would be lost on the way; nor could anybody listen for the next."""
    _, call, node, _, _ = talking(world)
    world.post(away(reachable=False))
    drain(world, node.name)
    world.run(3)
    assert call.owner.name == node.name and not call.moves and ask(world, call.call).status == 409
    world.post(away(reachable=True))
    world.run(1.5)
    assert call.owner.name != node.name


@pytest.mark.parametrize("word", ["store_away", "unwritten"])
def test_a_call_of_which_its_app_knows_more_than_etcd_stays_until_that_is_written(world, word):
    """Its next node goes by the record, and would have the caller where he was before."""
    _, call, node, _, _ = talking(world)
    knows_more = {"store_away": True} if word == "store_away" else {"unwritten": [call.call]}
    world.say(node, link.NodeState(ready=True, asterisk="up", **knows_more))
    drain(world, node.name)
    world.run(3)
    reply = ask(world, call.call)
    assert call.owner.name == node.name and not call.moves and reply.status == 409
    world.say(node, link.NodeState(ready=True, asterisk="up", unwritten=["another"]))
    world.run(0.5)
    assert call.owner.name != node.name


def test_nobody_is_moved_on_purpose_to_a_node_without_etcd(world):
    """It would go by what it knew of him when it lost etcd."""
    _, call, node, _, _ = talking(world)
    others = [other for other in world.nodes.values() if other is not node]
    for other in others:
        world.say(other, link.NodeState(ready=True, asterisk="up", store_away=True))
    drain(world, node.name)
    world.run(3)
    assert call.owner.name == node.name and not call.lost and not call.moves
    world.say(others[-1], link.NodeState(ready=True, asterisk="up"))
    world.run(1)
    assert call.owner.name == others[-1].name


def test_a_lost_call_goes_to_a_node_without_etcd_only_where_there_is_no_other(world):
    _, call, node, _, _ = talking(world)
    first, second = (other for other in world.nodes.values() if other is not node)
    world.say(first, link.NodeState(ready=True, asterisk="up", store_away=True))
    kill(world, node.name)
    world.run(1)
    assert call.owner.name == second.name
    kill(world, second.name)
    world.run(1)
    assert call.owner.name == first.name


# --- nobody hears a hole ------------------------------------------------------------------


class Relay:
    """What rtpengine counts: 50 packets a second of whoever sends, and who hears whom after each command."""

    def __init__(self, world: EdgeWorld) -> None:
        self.world = world
        self.begin: dict[str, float] = {}
        """tag -> when it begins to send; the others have always sent"""
        self.seen: list[set[tuple[str, str]]] = []
        world.packets = self.count
        refuse = world.ng_refuse
        world.ng_refuse = lambda command: self.look(command.body) or refuse(command)

    def count(self, call: str, tag: str) -> int:
        return max(0, round((self.world.now - self.begin.get(tag, 0.0)) * 50))

    def look(self, body) -> None:
        call = str(body["call-id"])
        if call in self.world.hears:
            self.seen.append(set(self.world.hears[call]))

    def sends(self, tag: str) -> bool:
        return self.begin.get(tag, 0.0) < self.world.now

    def silent_from_now(self, *tags: str, for_s: float) -> None:
        self.begin |= {tag: self.world.now + for_s for tag in tags}


def never_alone(world: EdgeWorld, call, relay: Relay, seconds: float, *legs: str) -> None:
    """Time passes, and at every moment each of the legs hears somebody who sends."""
    end = world.now + seconds
    while world.now < end:
        relay.seen.clear()
        world.run(0.02)
        for graph in [*relay.seen, world.hears[call.call]]:
            for leg in legs:
                assert any(ear == leg and relay.sends(voice) for ear, voice in graph), (world.now, leg, graph)


def others(world: EdgeWorld, node: str) -> list[str]:
    return [name for name in world.nodes if name != node]


def test_not_more_than_two_are_on_their_way_however_fast_it_may_go(world):
    for name in ("ast2", "ast3"):
        drain(world, name, when="idle")
    calls = [world.call_in()[1] for _ in range(6)]
    assert {call.owner.name for call in calls} == {"ast1"}
    undrain(world, "ast2")
    Relay(world).silent_from_now(*[f"c@{name}.1" for name in others(world, "ast1")], for_s=0.3)
    drain(world, "ast1", rate_per_s=100.0)
    on_their_way = set()
    for _ in range(100):
        world.run(0.02)
        on_their_way.add(sum(call.move is not None for call in calls))
    assert max(on_their_way) == 2
    assert {call.owner.name for call in calls} == {"ast2"}


def test_a_node_that_takes_nobody_up_does_not_keep_the_others_from_leaving(world):
    for name in ("ast2", "ast3"):
        drain(world, name, when="idle")
    calls = [world.call_in()[1] for _ in range(6)]
    undrain(world, "ast2")
    undrain(world, "ast3")
    world.nodes["ast2"].auto_bridge = False
    drain(world, "ast1", rate_per_s=100.0)

    def left() -> int:
        return sum(call.move is not None or call.owner.name == "ast3" for call in calls)

    world.run(0.9)
    before = left()
    world.run(0.6)
    assert before < left() and sum(call.move is not None for call in calls) > 2


def test_music_of_the_old_node_plays_until_that_of_the_next_one_comes(world):
    _, call = world.call_in()
    node, relay = call.owner.name, Relay(world)
    relay.silent_from_now(*[f"c@{name}.1" for name in others(world, node)], for_s=0.3)
    drain(world, node)
    never_alone(world, call, relay, 0.28, "c")
    assert call.owner.name == node and call.move.handing_over
    never_alone(world, call, relay, 0.3, "c")
    assert call.owner.name != node and call.move is None
    s = call.owner.name
    assert world.hears[call.call] == {("c", f"c@{s}.1"), (f"c@{s}.1", "c")}


def test_a_caller_alone_is_not_heard_by_two_nodes(world):
    """What he types would be counted twice."""
    _, call = world.call_in()
    node, relay = call.owner.name, Relay(world)
    relay.silent_from_now(*[f"c@{name}.1" for name in others(world, node)], for_s=0.2)
    drain(world, node)
    world.run(0.18)
    assert call.move.handing_over
    assert world.hears[call.call] == {("c", f"c@{node}.1"), (f"c@{node}.1", "c")}
    world.run(0.2)
    assert (f"c@{call.owner.name}.1", "c") in world.hears[call.call]


def test_voices_reach_the_next_node_before_it_is_heard(world):
    _, call, node, _, _ = talking(world, "through")
    relay, tags = (
        Relay(world),
        [f"{leg}@{name}.1" for name in others(world, node.name) for leg in ("c", "a1")],
    )
    relay.silent_from_now(*tags, for_s=0.1)
    drain(world, node.name)
    never_alone(world, call, relay, 0.08, "c", "a1")
    s, n = call.move.to.name, node.name
    through_old = {("c", f"c@{n}.1"), (f"c@{n}.1", "c"), ("a1", f"a1@{n}.1"), (f"a1@{n}.1", "a1")}
    assert world.hears[call.call] == through_old | {(f"c@{s}.1", "c"), (f"a1@{s}.1", "a1")}
    never_alone(world, call, relay, 0.3, "c", "a1")
    assert call.owner.name == s
    through_next = {("c", f"c@{s}.1"), (f"c@{s}.1", "c"), ("a1", f"a1@{s}.1"), (f"a1@{s}.1", "a1")}
    assert world.hears[call.call] == through_next


def test_what_the_old_node_has_in_hand_is_heard_though_it_hears_nobody_any_more(world):
    _, call, node, _, _ = talking(world, "through")
    n = node.name
    drain(world, n)
    s = call.owner.name
    assert s != n
    in_hand = {("c", f"c@{n}.1"), ("a1", f"a1@{n}.1")}
    assert in_hand <= world.hears[call.call]
    assert not {(f"c@{n}.1", "c"), (f"a1@{n}.1", "a1")} & world.hears[call.call]
    assert not node.got(link.CallMoved) and not node.of(sip.LegEnded)
    world.run(0.2)
    assert not in_hand & world.hears[call.call]
    assert node.got(link.CallMoved) and len(node.of(sip.LegEnded)) == 2


def test_music_is_not_heard_twice(world):
    _, call = world.call_in()
    n, relay = call.owner.name, Relay(world)
    drain(world, n)
    world.run(0.1)
    assert call.owner.name != n
    assert not [graph for graph in relay.seen[-1:] if ("c", f"c@{n}.1") in graph]
    assert ("c", f"c@{n}.1") not in world.hears[call.call]


def test_a_next_node_that_has_nothing_to_say_is_not_waited_for_for_long(world):
    _, call = world.call_in()
    node, relay = call.owner.name, Relay(world)
    relay.silent_from_now(*[f"c@{name}.1" for name in others(world, node)], for_s=60)
    drain(world, node)
    world.run(world.edge.context.timings.handover_limit_s - 0.1)
    assert call.owner.name == node
    world.run(0.2)
    assert call.owner.name != node
    asked = [command for command in world.ng if command.command == "query"]
    assert 3 < len(asked) < 12


def test_a_relay_that_does_not_tell_is_not_waited_for(world):
    _, call = world.call_in()
    node = call.owner.name
    world.packets = lambda call, tag: None
    drain(world, node)
    assert call.owner.name != node


def test_a_relay_of_which_nobody_knows_yet_that_it_is_back_is_asked(world):
    _, call = world.call_in()
    node, relay = call.owner.name, Relay(world)
    for other in world.nodes.values():
        other.auto_bridge = False
    drain(world, node)
    move = call.move
    world.post(MediaReach(reachable=False))
    relay.silent_from_now(f"c@{move.to.name}.1", for_s=0.1)
    world.say(world.nodes[move.to.name], link.Bridged(call=call.call, epoch=str(move.epoch), legs=["c"]))
    never_alone(world, call, relay, 0.3, "c")
    assert call.owner.name == move.to.name


def test_who_holds_the_line_is_not_waited_for(world):
    """A phone that does not listen hears nothing of the next node."""
    _, call, node, _, _ = talking(world, "through")
    call.legs["a1"].held = True
    relay = Relay(world)
    relay.silent_from_now(*[f"a1@{name}.1" for name in others(world, node.name)], for_s=60)
    drain(world, node.name)
    world.run(0.1)
    assert call.owner.name != node.name


def test_the_old_node_dies_while_the_next_one_is_listened_for(world):
    _, call = world.call_in()
    node, relay = call.owner.name, Relay(world)
    relay.silent_from_now(*[f"c@{name}.1" for name in others(world, node)], for_s=60)
    drain(world, node)
    world.run(0.1)
    s, epoch = call.move.to.name, call.epoch
    kill(world, node)
    assert call.owner.name == s and call.epoch == epoch and not call.lost and call.move is None
    assert world.hears[call.call] == {("c", f"c@{s}.1"), (f"c@{s}.1", "c")}


def test_the_next_node_dies_while_it_is_listened_for(world):
    _, call, node, _, _ = talking(world, "through")
    relay, tags = (
        Relay(world),
        [f"{leg}@{name}.1" for name in others(world, node.name) for leg in ("c", "a1")],
    )
    relay.silent_from_now(*tags, for_s=0.4)
    drain(world, node.name)
    world.run(0.1)
    first = call.move.to.name
    kill(world, first)
    never_alone(world, call, relay, 1.0, "c", "a1")
    assert call.owner.name not in (first, node.name) and call.move is None
    assert not [hears for hears in world.hears[call.call] if f"@{first}" in "".join(hears)]


def test_the_caller_hangs_up_while_the_next_node_is_listened_for(world):
    caller, call = world.call_in()
    node, relay = call.owner.name, Relay(world)
    relay.silent_from_now(*[f"c@{name}.1" for name in others(world, node)], for_s=60)
    drain(world, node)
    world.run(0.1)
    world.carrier.sip.hangup(caller, world.now)
    world.settle()
    world.run(1.0)
    assert call.ended and call.call not in world.edge.calls.by_id and call.call not in world.hears


def test_the_next_nodes_app_may_speak_before_its_node_is_heard(world):
    """A prompt is begun when the edge has said that it is heard; it is, as soon as it begins."""
    _, call = world.call_in()
    node, relay = call.owner.name, Relay(world)
    relay.silent_from_now(*[f"c@{name}.1" for name in others(world, node)], for_s=0.3)
    drain(world, node)
    to = world.nodes[call.move.to.name]
    world.say(to, link.WantMedia(call=call.call, epoch=str(call.epoch), state="through", request=1))
    world.settle()
    assert call.owner.name == node
    assert [(frame.state, frame.request) for frame in to.got(link.MediaIs)] == [("through", 1)]
    assert not world.nodes[node].got(link.MediaIs)
