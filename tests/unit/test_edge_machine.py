"""The edge between real SIP endpoints: set-up, media, takeover, endings, restart."""

from __future__ import annotations

import dataclasses

import pytest

from ari_ha.core.machine import Count, Note
from ari_ha.core.ports.link import LinkDown, LinkReceived
from ari_ha.core.ports.media import NgCommand
from ari_ha.machines.edge_config import EdgeConfig, EdgeTimings
from ari_ha.sip import events as sip
from ari_ha.sip.sdp import SessionDescription, build_audio_sdp
from ari_ha.wire import link
from tests.support.edge_world import EdgeWorld, kill


def talking(world: EdgeWorld, state: str = "hitless", attempt: str = "t1", agent: str = "1001"):
    """A call between the carrier and an agent, served by a node, in ``state``."""
    phone = world.register(agent)
    caller, call = world.call_in()
    node = world.nodes[call.owner.name]
    world.dial(node, call, "a1", agent, attempt)
    ringing = phone.of(sip.InviteReceived)[-1]
    phone.sip.ring(ringing.leg, world.now)
    phone.sip.answer(ringing.leg, phone.sdp(), world.now)
    world.settle()
    world.say(node, link.WantMedia(call=call.call, epoch=str(call.epoch), state=state, request=1))
    world.settle()
    return caller, call, node, phone, ringing.leg


def test_a_trunk_call_is_answered_by_a_node(world):
    caller, call = world.call_in()
    assert world.carrier.of(sip.LegAnswered)
    assert call.owner.name in world.nodes
    assert world.hears[call.call] == {("c", f"c@{call.owner.name}.1"), (f"c@{call.owner.name}.1", "c")}
    assert world.keys.dialogs("pair1", call.call) in world.store


def test_an_unknown_number_and_an_unknown_source(world):
    _, call = world.call_in(did="9999")
    assert call is None
    assert world.carrier.of(sip.LegFailed)[-1].status == 404


def test_two_people_talk_hitless(world):
    _, call, node, _, _ = talking(world)
    n = node.name
    assert world.hears[call.call] == {("c", "a1"), ("a1", "c"), (f"c@{n}.1", "c"), (f"a1@{n}.1", "a1")}
    assert node.got(link.MediaIs)[-1].state == "hitless"
    assert node.got(link.LegAnswered)


def test_asterisk_killed_while_talking(world):
    caller, call, node, phone, leg = talking(world)
    sent = len(world.sip_log)
    before = set(world.hears[call.call])
    kill(world, node.name)
    assert call.owner.name != node.name and not call.lost and call.move is None
    s = call.owner.name
    assert world.hears[call.call] == {("c", "a1"), ("a1", "c"), (f"c@{s}.1", "c"), (f"a1@{s}.1", "a1")}
    assert before & world.hears[call.call] == {("c", "a1"), ("a1", "c")}
    to_people = [item for item in world.sip_log[sent:] if item[2].startswith("10.0.1.")]
    assert to_people == []
    facts = [t.facts for t in world.nodes[s].tokens.values() if t.kind == "resume"]
    assert facts == [{"c": "up", "a1": "up"}] * 2
    # and the call still ends as any call
    world.carrier.sip.hangup(caller, world.now)
    world.settle()
    world.run(0.5)
    assert phone.of(sip.LegEnded)
    assert world.edge.calls.by_id == {}
    assert not [key for key in world.store if call.call in key]


def test_through_goes_direct_at_once(world):
    _, call, node, _, _ = talking(world, "through")
    world.nodes["ast1"].auto_answer = world.nodes["ast2"].auto_answer = False
    world.nodes["ast3"].auto_answer = False
    kill(world, node.name)
    assert world.hears[call.call] == {("c", "a1"), ("a1", "c")}
    assert call.media.state == "direct"


def test_a_ringing_phone_keeps_ringing_on_the_same_invite(world):
    phone = world.register("1001")
    _, call = world.call_in()
    node = world.nodes[call.owner.name]
    world.dial(node, call, "a1", "1001")
    invite = phone.of(sip.InviteReceived)[-1]
    phone.sip.ring(invite.leg, world.now)
    world.settle()
    kill(world, node.name)
    survivor = world.nodes[call.owner.name]
    assert survivor is not node
    assert len(phone.of(sip.InviteReceived)) == 1 and not phone.of(sip.LegCancelled)
    assert {t.facts["a1"] for t in survivor.tokens.values()} == {"ringing"}
    phone.sip.answer(invite.leg, phone.sdp(), world.now)
    world.settle()
    assert survivor.got(link.LegAnswered)[-1].epoch == str(call.epoch)
    assert call.legs["a1"].state == "up"


def test_queued_caller_is_taken_over(world):
    _, call = world.call_in()
    old = call.owner.name
    kill(world, old)
    s = call.owner.name
    assert s != old
    assert world.hears[call.call] == {("c", f"c@{s}.1"), (f"c@{s}.1", "c")}


def test_unannounced_bye_of_a_node_is_loss_of_a_leg(world):
    _, call, node, _, _ = talking(world)
    epoch = call.epoch
    for key in list(node.tokens):
        node.sip.hangup(key, world.now)
    world.settle()
    world.run(0.5)
    assert call.call in world.edge.calls.by_id and call.epoch > epoch
    assert call.owner.name != node.name, "a node that says BYE by itself is probably stopping"
    assert not world.carrier.of(sip.LegEnded)


def test_announced_end_is_an_end(world):
    _, call, node, phone, _ = talking(world)
    for leg in ("a1", "c"):
        world.say(node, link.EndLeg(call=call.call, leg=leg, epoch=str(call.epoch), cause="16"))
    world.settle()
    world.run(0.5)
    assert phone.of(sip.LegEnded) and world.carrier.of(sip.LegEnded)
    assert world.edge.calls.by_id == {}


def test_caller_hangs_up_in_the_gap(world):
    caller, call, node, phone, _ = talking(world)
    for other in world.nodes.values():
        other.auto_answer = False
    kill(world, node.name)
    world.carrier.sip.hangup(caller, world.now)
    world.settle()
    world.run(1.0)
    assert phone.of(sip.LegEnded)
    assert world.edge.calls.by_id == {}
    assert len(phone.of(sip.InviteReceived)) == 1


def test_agent_hangs_up_in_the_gap_and_is_not_dialled_again(world):
    _, call, node, phone, leg = talking(world)
    for other in world.nodes.values():
        other.auto_answer = False
    kill(world, node.name)
    phone.sip.hangup(leg, world.now)
    world.settle()
    for other in world.nodes.values():
        other.auto_answer = True
    world.run(6.0)
    tokens = [t for t in world.nodes[call.owner.name].tokens.values() if t.kind == "resume"]
    assert tokens[-1].facts == {"c": "up"} and tokens[-1].ended == {"a1": "phone"}
    assert len(phone.of(sip.InviteReceived)) == 1


def test_survivor_dies_during_the_takeover(world):
    _, call, node, _, _ = talking(world)
    for other in world.nodes.values():
        other.auto_bridge = False
    kill(world, node.name)
    first = call.move.to.name
    for other in world.nodes.values():
        other.auto_bridge = True
    kill(world, first)
    world.run(1.0)
    assert call.owner.name not in (node.name, first) and call.move is None


def test_no_survivor_keeps_people_talking(world):
    _, call, node, _, _ = talking(world)
    for name in world.nodes:
        if name != node.name:
            kill(world, name)
    kill(world, node.name)
    world.run(5.0)
    assert {("c", "a1"), ("a1", "c")} <= world.hears[call.call]
    back = world.nodes["ast2"]
    back.gone = False
    world.link_up(back)
    world.run(2.0)
    assert call.owner.name == "ast2" and not call.lost


def test_app_gone_moves_nothing_for_a_short_absence(world):
    _, call, node, _, _ = talking(world)
    epoch = call.epoch
    world.post(LinkDown(peer=node.name, reason="app killed", clean=True))
    world.run(3.0)
    assert call.epoch == epoch and call.owner.name == node.name
    world.link_up(node)
    world.run(30.0)
    assert call.epoch == epoch
    snapshot = node.got(link.EdgeCalls)[-1].calls[call.call]
    assert {name: leg.state for name, leg in snapshot.legs.items()} == {"c": "answered", "a1": "answered"}


def test_frozen_asterisk_needs_two_witnesses(world):
    _, call, node, _, _ = talking(world)
    node.silent = True
    world.run(2.0)
    assert call.owner.name == node.name
    world.say(node, link.NodeState(ready=False, asterisk="silent", reason="ARI ping"))
    world.run(0.5)
    assert call.owner.name != node.name
    node.silent = False
    world.say(node, link.NodeState(ready=True, asterisk="up"))
    world.run(2.0)
    assert node.got(link.CallMoved)


def test_people_cut_off_are_connected_before_anything_else_is_done_for_them(world):
    _, call, node, _, _ = talking(world, "through")
    event = LinkReceived(
        peer=node.name, frame=link.AsteriskGone(incarnation=f"{node.name}-1", reason="ended")
    )
    effects = world.edge.handle(event, world.now)
    kinds = {type(effect) for effect in effects}
    assert kinds == {NgCommand, Note, Count} and call.move is None
    for effect in effects:
        world.perform(effect)
    world.say(node, link.NodeState(ready=False, asterisk="down"))
    assert call.move is None
    world.run(world.edge.context.timings.direct_first_s + 0.01)
    assert call.owner.name != node.name


def test_hold_goes_through_first_and_back(world):
    _, call, node, phone, leg = talking(world)
    phone.sip.reinvite(leg, phone.sdp(direction="sendonly"), world.now)
    world.settle()
    n = node.name
    assert ("c", f"c@{n}.1") in world.hears[call.call] and ("c", "a1") not in world.hears[call.call]
    assert node.got(link.LegHeld)[-1].held
    phone.sip.reinvite(leg, phone.sdp(), world.now)
    world.settle()
    assert ("c", "a1") in world.hears[call.call] and not node.got(link.LegHeld)[-1].held
    assert len(phone.of(sip.ReinviteAnswered)) == 2


def test_edge_process_killed_and_back(world):
    caller, call, node, phone, leg = talking(world)
    world.now += 0.3
    world.boot()
    world.run(0.2)
    again = world.edge.calls.by_id[call.call]
    assert again.epoch == call.epoch and again.owner.name == node.name and not again.lost
    assert {("c", "a1"), ("a1", "c")} <= world.hears[call.call]
    kill(world, node.name)
    assert again.owner.name != node.name
    phone.sip.hangup(leg, world.now)
    world.settle()
    world.run(0.5)
    assert "a1" not in again.legs and again.tombstones["a1"] == "phone"
    survivor = world.nodes[again.owner.name]
    assert survivor.got(link.LegGone)[-1].leg == "a1"
    world.say(survivor, link.EndLeg(call=call.call, leg="c", epoch=str(again.epoch), cause="16"))
    world.settle()
    assert world.carrier.of(sip.LegEnded)


def test_edge_process_killed_while_ringing(world):
    phone = world.register("1001")
    _, call = world.call_in()
    node = world.nodes[call.owner.name]
    world.dial(node, call, "a1", "1001")
    invite = phone.of(sip.InviteReceived)[-1]
    phone.sip.ring(invite.leg, world.now)
    world.settle()
    world.boot()
    phone.sip.answer(invite.leg, phone.sdp(), world.now)
    world.settle()
    world.run(1.0)
    again = world.edge.calls.by_id[call.call]
    assert again.legs["a1"].state == "up"
    assert node.of(sip.LegAnswered)
    assert phone.of(sip.LegAcked)


def test_calls_go_on_and_new_ones_are_served_while_etcd_is_away(world):
    from ari_ha.core.ports.store import StoreReach

    _, call, node, phone, leg = talking(world)
    world.etcd = False
    world.post(StoreReach(reachable=False, no_leader=True))
    _, second = world.call_in("6001")
    assert second.legs["c"].state == "up"
    kill(world, node.name)
    assert call.owner.name != node.name
    assert world.keys.dialogs("pair1", second.call) not in world.store
    world.etcd = True
    world.post(StoreReach(reachable=True))
    world.run(1.0)
    assert world.keys.dialogs("pair1", second.call) in world.store
    assert str(call.epoch).encode() in world.store[world.keys.owner(call.call)].value


def test_a_second_attempt_at_a_busy_device_is_refused(world):
    _, call, node, phone, _ = talking(world)
    world.dial(node, call, "a2", "1001", "t2")
    assert node.of(sip.LegFailed)[-1].status == 486
    assert len(phone.of(sip.InviteReceived)) == 1


def test_stale_epoch_and_forged_token_get_nothing(world):
    _, call, node, _, _ = talking(world)
    world.say(node, link.EndLeg(call=call.call, leg="c", epoch="1.1", cause="16"))
    assert call.legs["c"].alive
    from ari_ha.core.ids import Epoch

    real, call.epoch = call.epoch, Epoch(1, 1)
    key = world.dial(node, call, "a2", "1001")
    call.epoch = real
    assert world.nodes[node.name].of(sip.LegFailed)[-1].status in (481, 486)
    assert key


def test_media_command_that_fails_is_repeated(world):
    failed: list[str] = []

    def refuse(command) -> bool:
        if command.command == "connect" and len(failed) < 2:
            failed.append(command.command)
            return True
        return False

    world.ng_refuse = refuse
    _, call = world.call_in()
    world.run(1.0)
    n = call.owner.name
    assert world.hears[call.call] == {("c", f"c@{n}.1"), (f"c@{n}.1", "c")}


def test_a_survivor_that_never_completes_is_not_asked_again_first(world):
    _, call, node, _, _ = talking(world)
    others = sorted(name for name in world.nodes if name != node.name)
    world.nodes[others[0]].auto_bridge = False
    kill(world, node.name)
    world.run(6.0)
    assert call.owner.name == others[1] and call.move is None


def only(world: EdgeWorld, *names: str) -> None:
    """Of all nodes these take new calls."""
    for node in world.nodes.values():
        world.say(node, link.NodeState(ready=node.name in names, asterisk="up"))


def test_twenty_calls_move_together_and_each_that_is_done_makes_room(world):
    only(world, "ast1")
    calls = [world.call_in()[1] for _ in range(23)]
    assert {call.owner.name for call in calls} == {"ast1"}
    only(world, *world.nodes)
    for node in world.nodes.values():
        node.auto_bridge = False
    kill(world, "ast1")
    moving = [call for call in calls if call.move]
    assert len(moving) == world.edge.context.timings.moves_at_once_max == 20
    done = moving[0]
    survivor = world.nodes[done.move.to.name]
    world.say(survivor, link.Bridged(call=done.call, epoch=str(done.epoch), legs=["c"]))
    world.settle()
    assert done.owner.name == survivor.name and not done.lost
    assert len([call for call in calls if call.move]) == 20
    assert len([call for call in calls if call.lost and not call.move]) == 2


class OneAtATime(EdgeWorld):
    """Moves one call after the other."""

    def config(self) -> EdgeConfig:
        return dataclasses.replace(super().config(), timings=EdgeTimings(moves_at_once_max=1))


def test_who_hears_silence_moves_first_and_who_talks_hitless_last():
    """They were placed the other way round, and all are lost at the same moment."""
    world = OneAtATime().with_users("1001", "1002", "1003")
    only(world, "ast1")
    _, hitless, *_ = talking(world)
    _, through, *_ = talking(world, "through", agent="1002")
    _, held, _, phone, leg = talking(world, agent="1003")
    phone.sip.reinvite(leg, phone.sdp(direction="sendonly"), world.now)
    world.settle()
    _, queued = world.call_in()
    calls = {"hitless": hitless, "through": through, "held": held, "queued": queued}
    assert [call.media.state for call in calls.values()] == ["hitless", *["through"] * 3]
    only(world, *world.nodes)
    seen = len(world.notes)
    kill(world, "ast1")
    world.run(world.edge.context.timings.direct_first_s)
    names = {f"call/{call.call}": name for name, call in calls.items()}
    moved = [names[note.subject] for note in world.notes[seen:] if note.text.startswith("taken over by")]
    assert not any(call.lost for call in calls.values())
    assert {*moved[:2]} == {"held", "queued"} and moved[2:] == ["through", "hitless"]


def test_facts_that_changed_during_the_move_are_said_again(world):
    phone = world.register("1001")
    _, call = world.call_in()
    node = world.nodes[call.owner.name]
    world.dial(node, call, "a1", "1001")
    invite = phone.of(sip.InviteReceived)[-1]
    for other in world.nodes.values():
        other.auto_bridge = False
    kill(world, node.name)
    survivor = world.nodes[call.move.to.name]
    phone.sip.answer(invite.leg, phone.sdp(), world.now)
    world.settle()
    survivor.frames.clear()
    world.say(survivor, link.Bridged(call=call.call, epoch=str(call.epoch), legs=["c", "a1"]))
    world.settle()
    assert survivor.got(link.LegAnswered)[-1].leg == "a1"


def test_one_leg_lost_and_then_the_node_is_one_move(world):
    _, call, node, _, _ = talking(world)
    node.sip.hangup(next(iter(node.tokens)), world.now)
    world.settle()
    world.say(node, link.AsteriskGone(incarnation=f"{node.name}-1", reason="ended"))
    world.settle()
    first = call.epoch
    world.run(2.0)
    assert call.epoch == first and not call.lost and call.move is None


def test_a_cut_node_is_lost_even_when_the_edge_was_restarted_meanwhile(world):
    _, call, node, _, _ = talking(world)
    node.silent = True
    world.boot()
    world.run(4.0)
    again = world.edge.calls.by_id[call.call]
    assert again.owner.name != node.name and not again.lost


def test_a_hold_is_answered_even_while_rtpengine_is_away(world):
    _, call, node, phone, leg = talking(world)
    world.ng_refuse = lambda command: True
    phone.sip.reinvite(leg, phone.sdp(direction="sendonly"), world.now)
    world.settle()
    world.run(1.5)
    assert phone.of(sip.ReinviteAnswered) and node.got(link.LegHeld)[-1].held


def test_the_codec_of_the_call_is_used_on_every_leg(world):
    """The carrier offers PCMA first, the node PCMU: one codec end to end."""
    world.register("1001")
    _, call = world.call_in()
    node = world.nodes[call.owner.name]
    node.sdp = lambda **k: build_audio_sdp(7, 1, node.host, 40_000, ((0, "PCMU/8000"), (8, "PCMA/8000")))
    world.dial(node, call, "a1", "1001")
    assert call.legs["c"].side.payload == call.halves["a1"].side.payload == call.legs["a1"].side.payload == 8


def event_number(sdp):
    """Of telephone-event in an offer or answer."""
    return SessionDescription.parse(sdp).audio().telephone_event


@pytest.mark.parametrize("phones", [96, 101])
def test_the_caller_numbers_telephone_events_for_everybody_who_can(world, phones):
    """One number at both ends where the phone takes it; else each keeps its own, and rtpengine maps them. It
    is the same after a takeover of the call, and for an edge that knows it from etcd only."""
    phone = world.register("1001")
    for party, number in ((world.carrier, 96), (phone, phones)):
        party.sdp = lambda host=party.host, number=number, **how: build_audio_sdp(
            7, 1, host, 40_000, telephone_event_pt=number, **how
        )
    _, call, node, _, leg = talking(world)
    assert event_number(phone.of(sip.InviteReceived)[-1].request.body.decode()) == 96
    assert event_number(world.carrier.of(sip.LegAnswered)[-1].sdp) == 96
    kill(world, node.name)
    world.boot()
    call = world.edge.calls.by_id[call.call]
    assert [call.legs[leg].side.telephone_event for leg in ("c", "a1")] == [96, phones]
    phone.sip.reinvite(leg, phone.sdp(direction="sendonly"), world.now)
    world.settle()
    assert event_number(phone.of(sip.ReinviteAnswered)[-1].sdp) == phones


def test_two_people_talking_through_a_silent_node_are_connected_before_it_is_lost(world):
    _, call, node, _, _ = talking(world, "through")
    node.silent = True
    world.run(0.8)
    assert call.media.state == "hitless" and call.owner.name == node.name
    assert {("c", "a1"), ("a1", "c")} <= world.hears[call.call]
    node.silent = False
    world.run(0.5)
    assert call.media.state == "through" and ("c", "a1") not in world.hears[call.call]


def test_many_unannounced_byes_are_a_node_that_stops(world):
    callers = [world.call_in() for _ in range(12)]
    by_node: dict[str, list] = {}
    for _, call in callers:
        by_node.setdefault(call.owner.name, []).append(call)
    name, calls = max(by_node.items(), key=lambda item: len(item[1]))
    node = world.nodes[name]
    assert len(calls) >= 3
    for key, token in list(node.tokens.items()):
        if token.call in {call.call for call in calls}:
            node.sip.hangup(key, world.now)
    world.settle()
    assert all(call.owner.name != name for call in calls), "moved before the grace was over"
    assert not world.carrier.of(sip.LegEnded)
