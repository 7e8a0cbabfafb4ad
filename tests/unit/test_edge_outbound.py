"""Calls out: an agent dials a colleague or a number at the carrier."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ari_ha.core.ports.store import KeyValue
from ari_ha.sip import events as sip
from ari_ha.sip.flow import Flow
from ari_ha.wire import link
from ari_ha.wire.keyspace import encode
from ari_ha.wire.sip_values import TrunkValue
from ari_ha.wire.token import HEADER, LegToken, sign
from tests.support.edge_world import (
    CARRIER,
    EDGE_CORE,
    EDGE_PUBLIC,
    KEY,
    EdgeWorld,
    digest_header,
    kill,
)


@pytest.fixture
def world() -> EdgeWorld:
    w = EdgeWorld()
    for user in ("1001", "1002"):
        w.add_user(user)
    w.revision += 1
    trunk = TrunkValue(trunk="out", hosts=[CARRIER[0]], address=f"{CARRIER[0]}:{CARRIER[1]}", prefixes=["+"])
    w.store[w.keys.trunk("out")] = KeyValue(w.keys.trunk("out"), encode(trunk), w.revision)
    w.snapshots()
    for node in w.nodes.values():
        node.auto_answer_new = False
    return w


def phone_dials(world: EdgeWorld, user: str, number: str) -> tuple[str, Any]:
    """An agent's phone calls ``number``; its leg and the edge's call."""
    phone = world.phones.get(user) or world.register(user)
    before = set(world.edge.calls.by_id)
    arguments: dict[str, Any] = {
        "flow": Flow("l", "udp", *EDGE_PUBLIC), "target": f"sip:{number}@{EDGE_PUBLIC[0]}",
        "from_": f"<sip:{user}@test>", "to": f"<sip:{number}@test>", "sdp": phone.sdp(), "now": world.now,
    }  # fmt: skip
    phone.sip.invite(world.new_id(), **arguments)
    world.settle()
    refusal = phone.of(sip.LegFailed)[-1]
    header = digest_header(refusal, user, "pw", "INVITE", str(arguments["target"]))
    key = world.new_id()
    phone.sip.invite(key, headers=(("Authorization", header),), **arguments)
    world.settle()
    (new,) = set(world.edge.calls.by_id) - before
    return key, world.edge.calls.by_id[new]


def dial(world: EdgeWorld, call: Any, leg: str, target: str, consult: str = "") -> str:
    """Its node's app dials ``target`` for the call."""
    node = world.nodes[call.owner.name]
    token = LegToken(
        kind="dial", call=call.call, leg=leg, epoch=str(call.epoch), target=target, consult=consult
    )
    key = world.new_id()
    node.sip.invite(
        key, flow=Flow("l", "udp", EDGE_CORE, 5070), target=f"sip:{leg}@{EDGE_CORE}:5070",
        from_="<sip:app@node>", to=f"<sip:{leg}@edge>", sdp=node.sdp(),
        headers=((HEADER, sign(token, KEY)),), now=world.now,
    )  # fmt: skip
    world.settle()
    return key


def ringing_out(world: EdgeWorld, early: bool = False) -> tuple[str, Any, str]:
    """1001 has dialled a number; the carrier rings."""
    key, call = phone_dials(world, "1001", "+4930")
    dial(world, call, "a1", "number:+4930")
    (invite,) = world.carrier.of(sip.InviteReceived)
    if early:
        world.carrier.sip.ring(invite.leg, world.now, status=183, sdp=world.carrier.sdp(41_000))
    else:
        world.carrier.sip.ring(invite.leg, world.now)
    world.settle()
    return key, call, invite.leg


def test_the_caller_hears_ringing_and_is_answered_when_the_party_is(world):
    key, call, carrier_leg = ringing_out(world)
    phone = world.phones["1001"]
    assert [r.status for r in phone.of(sip.LegRinging)] == [180]
    assert not phone.of(sip.LegAnswered)
    world.carrier.sip.answer(carrier_leg, world.carrier.sdp(), world.now)
    world.settle()
    assert phone.of(sip.LegAnswered) and call.legs["c"].state == call.legs["a1"].state == "up"
    answered = [f.leg for f in world.nodes[call.owner.name].got(link.LegAnswered)]
    assert answered == ["a1", "c"]


def test_early_media_goes_straight_to_the_caller(world):
    _, call, _ = ringing_out(world, early=True)
    phone = world.phones["1001"]
    (progress,) = phone.of(sip.LegRinging)
    assert progress.status == 183 and progress.sdp
    assert ("c", "a1") in world.hears[call.call]


def test_a_colleague_is_rung_by_his_number(world):
    world.register("1002")
    _, call = phone_dials(world, "1001", "1002")
    dial(world, call, "a1", "device:1002")
    (invite,) = world.phones["1002"].of(sip.InviteReceived)
    world.phones["1002"].sip.answer(invite.leg, world.phones["1002"].sdp(), world.now)
    world.settle()
    assert world.phones["1001"].of(sip.LegAnswered)


def test_a_colleague_and_his_caller_are_told_apart_after_a_takeover(world):
    """Both are phones, and legs of the same node and of the next one; from one host even."""
    colleague = world.register("1002")
    key, call = phone_dials(world, "1001", "1002")
    dial(world, call, "a1", "device:1002")
    (invite,) = colleague.of(sip.InviteReceived)
    colleague.sip.answer(invite.leg, colleague.sdp(), world.now)
    world.settle()
    caller, old = world.phones["1001"], call.owner.name
    assert caller.host == colleague.host
    kill(world, old)
    world.run(1)
    survivor = world.nodes[call.owner.name]
    assert survivor.name != old and not call.lost and call.move is None
    assert sorted(t.leg for t in survivor.tokens.values()) == ["a1", "c"]
    s, graph = survivor.name, world.hears[call.call]
    assert {("c", f"c@{s}.1"), ("a1", f"a1@{s}.1"), (f"c@{s}.1", "c"), (f"a1@{s}.1", "a1")} <= graph
    world.say(survivor, link.EndLeg(call=call.call, leg="a1", epoch=str(call.epoch), cause="16"))
    world.settle()
    assert colleague.of(sip.LegEnded) and not caller.of(sip.LegEnded)
    world.say(survivor, link.EndLeg(call=call.call, leg="c", epoch=str(call.epoch), cause="16"))
    world.settle()
    assert [ended.leg for ended in caller.of(sip.LegEnded)] == [key]


@pytest.mark.parametrize("early", [False, True])
def test_the_node_dies_while_the_far_end_rings(world, early):
    _, call, carrier_leg = ringing_out(world, early)
    phone, old = world.phones["1001"], call.owner.name
    kill(world, old)
    assert call.owner.name != old and not call.lost
    assert len(world.carrier.of(sip.InviteReceived)) == 1, "the same INVITE rings on"
    assert not phone.of(sip.LegFailed)[1:] and not world.carrier.of(sip.LegCancelled)
    survivor = world.nodes[call.owner.name]
    assert {str(sorted(t.facts.items())) for t in survivor.tokens.values()} == {
        "[('a1', 'ringing'), ('c', 'ringing')]"
    }
    assert (("c", "a1") in world.hears[call.call]) == early
    world.carrier.sip.answer(carrier_leg, world.carrier.sdp(), world.now)
    world.settle()
    assert phone.of(sip.LegAnswered)
    assert {f.leg for f in survivor.got(link.LegAnswered)} == {"a1", "c"}


def test_the_party_answers_in_the_gap(world):
    _, call, carrier_leg = ringing_out(world)
    for node in world.nodes.values():
        node.auto_answer = False
    kill(world, call.owner.name)
    world.carrier.sip.answer(carrier_leg, world.carrier.sdp(), world.now)
    world.settle()
    assert world.phones["1001"].of(sip.LegAnswered), "no node is needed for that"
    assert {("c", "a1"), ("a1", "c")} <= world.hears[call.call]


def test_a_number_is_never_dialled_twice(world):
    _, call, _ = ringing_out(world)
    dial(world, call, "a1", "number:+4930")
    assert len(world.carrier.of(sip.InviteReceived)) == 1
    kill(world, call.owner.name)
    dial(world, call, "a1", "number:+4930")
    assert len(world.carrier.of(sip.InviteReceived)) == 1


def test_a_restarted_edge_does_not_dial_again_what_may_ring(world):
    """The intent is stored, the INVITE was about to go out: nobody knows."""
    _, call, _ = ringing_out(world)
    key = world.keys.dialogs("pair1", call.call)
    stored = json.loads(world.store[key].value)
    stored["legs"]["a1"]["sip"] = None
    world.store[key] = KeyValue(key, json.dumps(stored).encode(), world.store[key].mod_revision)
    world.boot()
    again = world.edge.calls.by_id[call.call]
    assert again.tombstones == {"a1": "lost"}
    dial(world, again, "a1", "number:+4930")
    assert len(world.carrier.of(sip.InviteReceived)) == 1


def test_no_trunk_for_the_number(world):
    _, call = phone_dials(world, "1001", "77")
    key = dial(world, call, "a1", "number:77")
    node = world.nodes[call.owner.name]
    assert [e.status for e in node.of(sip.LegFailed) if e.leg == key] == [503]


@pytest.mark.parametrize("who", ["caller", "party"])
def test_hanging_up_in_the_gap(world, who):
    key, call, carrier_leg = ringing_out(world)
    for node in world.nodes.values():
        node.auto_answer = False
    kill(world, call.owner.name)
    if who == "caller":
        world.phones["1001"].sip.hangup(key, world.now)
        world.settle()
        assert world.carrier.of(sip.LegCancelled) and not world.edge.calls.by_id
        return
    world.carrier.sip.reject(carrier_leg, 486, world.now)
    world.settle()
    heard = [e.status for e in world.phones["1001"].of(sip.LegFailed) if e.leg == key]
    assert heard == [486] and not world.edge.calls.by_id, "no node is needed to tell the caller"
