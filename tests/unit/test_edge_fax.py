"""T.38: passed through between two carriers that may, refused everywhere else."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ari_ha.sip import events as sip
from ari_ha.sip.sdp import SessionDescription, build_audio_sdp
from ari_ha.wire.sip_values import TrunkValue
from tests.support.edge_world import CARRIER, EdgeWorld, Party, kill
from tests.unit.test_edge_machine import talking
from tests.unit.test_edge_trunks import A, carrier, invites, put

SAID = "a=T38FaxVersion:0\r\na=T38MaxBitRate:{rate}\r\na=T38FaxUdpEC:t38UDPRedundancy\r\n"


def image(party: Party, port: int, rate: int = 14_400, audio: bool = False) -> str:
    head = build_audio_sdp(7, 2, party.host, port).partition("m=")[0]
    refused = "m=audio 0 RTP/AVP 8\r\n" if audio else ""
    return f"{head}{refused}m=image {port} udptl t38\r\n{SAID.format(rate=rate)}"


def faxing_world(here: bool = True, there: bool = True) -> tuple[EdgeWorld, str, Any, Party, str]:
    """A caller of carrier1 talks to a number at a second carrier."""
    world = EdgeWorld()
    put(world, world.keys.trunk("carrier1"), TrunkValue(trunk="carrier1", hosts=[CARRIER[0]], t38=here))
    far = carrier(world, "fax", A, t38=there)
    far.takes_changes = world.carrier.takes_changes = False
    caller, call = world.call_in()
    node = world.nodes[call.owner.name]
    world.dial(node, call, "t1", "", target="number:+4930")
    (invite,) = invites(far)
    far.sip.answer(invite.leg, far.sdp(41_000), world.now)
    world.settle()
    return world, caller, call, far, invite.leg


def offer(world: EdgeWorld, party: Party, leg: str, sdp: str) -> None:
    party.sip.reinvite(leg, sdp, world.now)
    world.settle()


def asked(party: Party) -> list[Any]:
    return party.of(sip.ReinviteReceived)


def ports(text: str) -> list[tuple[str, int]]:
    return [(media.kind, media.port) for media in SessionDescription.parse(text).media]


def fax_graph(world: EdgeWorld, call: Any) -> set[tuple[str, str]]:
    return {pair for pair in world.hears[call.call] if "/fax" in pair[0] + pair[1]}


def taught(world: EdgeWorld, tag: str) -> list[str]:
    told = [c for c in world.ng if c.command == "create answer" and c.body["from-tag"] == tag]
    return [str(command.body["sdp"]) for command in told]


@pytest.mark.parametrize("from_called", [False, True])
def test_an_offer_goes_on_and_its_answer_comes_back(from_called):
    world, caller, call, far, far_leg = faxing_world()
    one, two = (world.carrier, caller, "c"), (far, far_leg, "t1")
    if from_called:
        one, two = two, one
    offer(world, one[0], one[1], image(one[0], 51_000))
    (received,) = asked(two[0])
    ours = world.tag_ports[call.call, f"{two[2]}/fax"]
    assert ports(received.sdp) == [("image", ours)] and SAID.format(rate=14_400) in received.sdp
    two[0].sip.accept_reinvite(two[1], image(two[0], 52_000, rate=9_600), world.now)
    world.settle()
    (answer,) = one[0].of(sip.ReinviteAnswered)
    assert ports(answer.sdp) == [("image", world.tag_ports[call.call, f"{one[2]}/fax"])]
    assert "T38MaxBitRate:9600" in answer.sdp
    assert fax_graph(world, call) == {("c/fax", "t1/fax"), ("t1/fax", "c/fax")}
    assert "m=image 51000 udptl t38" in taught(world, f"{one[2]}/fax")[-1]
    assert "m=image 52000 udptl t38" in taught(world, f"{two[2]}/fax")[-1]


def fax(world: EdgeWorld, caller: str, far: Party, far_leg: str, audio: bool = False) -> None:
    offer(world, world.carrier, caller, image(world.carrier, 51_000, audio=audio))
    far.sip.accept_reinvite(far_leg, image(far, 52_000), world.now)
    world.settle()


def test_a_refused_audio_line_is_answered_too():
    world, caller, call, far, far_leg = faxing_world()
    fax(world, caller, far, far_leg, audio=True)
    answer = world.carrier.of(sip.ReinviteAnswered)[-1]
    assert ports(answer.sdp) == [("audio", 0), ("image", world.tag_ports[call.call, "c/fax"])]


@pytest.mark.parametrize("from_far", [False, True])
def test_back_to_audio_on_either_word(from_far):
    world, caller, call, far, far_leg = faxing_world()
    fax(world, caller, far, far_leg)
    one, two = (world.carrier, caller), (far, far_leg)
    if from_far:
        one, two = two, one
    offer(world, *one, one[0].sdp(45_000))
    received = asked(two[0])[-1]
    assert ports(received.sdp) == [("audio", call.legs["c" if from_far else "t1"].port)]
    two[0].sip.accept_reinvite(two[1], two[0].sdp(46_000), world.now)
    world.settle()
    assert ports(one[0].of(sip.ReinviteAnswered)[-1].sdp)[0][0] == "audio"
    assert fax_graph(world, call) == set()
    assert "m=audio 46000 " in taught(world, "c" if from_far else "t1")[-1]
    versions = [int(re.search(r"o=- 1 (\d+) ", e.sdp).group(1)) for e in asked(two[0])]
    assert versions == sorted(set(versions)), "every description has a higher number (RFC 3264 §8)"


@pytest.mark.parametrize("status", [415, 488, 606])
def test_the_other_end_refuses(status):
    world, caller, call, far, far_leg = faxing_world()
    before = set(world.hears[call.call])
    offer(world, world.carrier, caller, image(world.carrier, 51_000))
    far.sip.reject_reinvite(far_leg, status, world.now)
    world.settle()
    assert world.carrier.of(sip.ReinviteFailed)[-1].status == 488
    assert world.hears[call.call] == before and {leg.state for leg in call.living()} == {"up"}
    offer(world, world.carrier, caller, image(world.carrier, 51_002))
    assert len(asked(far)) == 2, "it may be asked again"


def test_the_other_end_says_nothing():
    world, caller, call, far, far_leg = faxing_world()
    offer(world, world.carrier, caller, image(world.carrier, 51_000))
    world.run(8.5)
    assert world.carrier.of(sip.ReinviteFailed)[-1].status == 488
    far.sip.accept_reinvite(far_leg, image(far, 52_000), world.now)
    world.settle()
    assert ports(asked(far)[-1].sdp)[0][0] == "audio", "whoever switched late is taken back"


def test_an_answer_without_fax():
    world, caller, _, far, far_leg = faxing_world()
    offer(world, world.carrier, caller, image(world.carrier, 51_000))
    far.sip.accept_reinvite(far_leg, far.sdp(53_000), world.now)
    world.settle()
    assert world.carrier.of(sip.ReinviteFailed)[-1].status == 488
    assert ports(asked(far)[-1].sdp)[0][0] == "audio"


@pytest.mark.parametrize(("here", "there"), [(True, False), (False, True), (False, False)])
def test_only_between_two_that_may(here, there):
    world, caller, call, far, _ = faxing_world(here, there)
    offer(world, world.carrier, caller, image(world.carrier, 51_000))
    assert world.carrier.of(sip.ReinviteFailed)[-1].status == 488 and not asked(far)
    assert {leg.state for leg in call.living()} == {"up"}


def test_a_phone_is_no_fax():
    world = EdgeWorld().with_users("1001")
    put(world, world.keys.trunk("carrier1"), TrunkValue(trunk="carrier1", hosts=[CARRIER[0]], t38=True))
    caller, _, _, phone, _ = talking(world)
    offer(world, world.carrier, caller, image(world.carrier, 51_000))
    assert world.carrier.of(sip.ReinviteFailed)[-1].status == 488 and not asked(phone)


def test_rtpengine_gives_no_port():
    world, caller, call, far, _ = faxing_world()
    world.ng_refuse = lambda command: command.body.get("transport-protocol") == "UDPTL"
    offer(world, world.carrier, caller, image(world.carrier, 51_000))
    assert world.carrier.of(sip.ReinviteFailed)[-1].status == 488 and not asked(far)


def test_the_node_dies_and_the_fax_goes_on():
    world, caller, call, far, far_leg = faxing_world()
    fax(world, caller, far, far_leg)
    before, sent = fax_graph(world, call), len(world.sip_log)
    kill(world, call.owner.name)
    assert fax_graph(world, call) == before
    assert [item for item in world.sip_log[sent:] if item[2].startswith("10.0.1.")] == []


def test_a_restarted_edge_takes_them_back():
    world, caller, call, far, far_leg = faxing_world()
    fax(world, caller, far, far_leg)
    world.boot()
    offer(world, world.carrier, caller, world.carrier.sdp(45_000))
    assert ports(asked(far)[-1].sdp)[0][0] == "audio"
    assert fax_graph(world, call) == set()


def test_hanging_up_while_it_is_asked():
    world, caller, call, far, far_leg = faxing_world()
    offer(world, world.carrier, caller, image(world.carrier, 51_000))
    world.carrier.sip.hangup(caller, world.now)
    world.settle()
    world.run(1.0)
    assert not world.edge.calls.by_id and far.of(sip.LegEnded)


def test_asked_anew_after_the_relay_had_no_port():
    world, caller, call, far, far_leg = faxing_world()
    world.ng_refuse = lambda command: command.command == "create"
    offer(world, world.carrier, caller, image(world.carrier, 51_000))
    assert world.carrier.of(sip.ReinviteFailed)[-1].status == 488
    world.ng_refuse = lambda command: False
    fax(world, caller, far, far_leg)
    assert fax_graph(world, call)
