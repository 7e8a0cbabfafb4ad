"""A phone registered at several places: all ring, one answers, the others stop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ari_ha.core.ports.sip import SipBytes
from ari_ha.machines.edge_config import EdgeConfig
from ari_ha.sip import events as sip
from ari_ha.sip.flow import Flow
from ari_ha.wire import link
from tests.support.edge_world import EdgeWorld, Node, Party, kill


class Forking(EdgeWorld):
    """An edge that rings up to three contacts of a phone."""

    def config(self) -> EdgeConfig:
        return replace(super().config(), contacts_rung_max=3)


def at_places(world: EdgeWorld, count: int) -> list[Party]:
    """1001 registered at so many places, the newest last."""
    places = []
    for n in range(count):
        world.phones["1001"] = Party("10.0.1.61", 6100 + n, world.new_id)
        places.append(world.register("1001"))
        world.phones[f"place {n}"] = places[-1]
        world.now += 1.0
    return places


@pytest.fixture
def world() -> Forking:
    return Forking().with_users("1001")


def ring(world: EdgeWorld, attempt: str = "t1") -> tuple[str, Any, Node]:
    caller, call = world.call_in()
    node = world.nodes[call.owner.name]
    world.dial(node, call, "a1", "1001", attempt=attempt)
    return caller, call, node


def invited(places: list[Party]) -> list[str]:
    """The key of each place's dialog, empty where it does not ring."""
    return [(p.of(sip.InviteReceived) or [None])[-1].leg if p.of(sip.InviteReceived) else "" for p in places]


def refuse(world: EdgeWorld, place: Party, status: int) -> None:
    place.sip.reject(place.of(sip.InviteReceived)[-1].leg, status, world.now)
    world.settle()


@pytest.mark.parametrize("registered", [1, 2, 3, 5])
def test_the_newest_ring(world, registered):
    places = at_places(world, registered)
    ring(world)
    assert [bool(key) for key in invited(places)] == [n >= registered - 3 for n in range(registered)]


def test_one_alone_unless_it_is_wanted():
    world = EdgeWorld().with_users("1001")
    places = at_places(world, 2)
    ring(world)
    assert [bool(key) for key in invited(places)] == [False, True]


@pytest.mark.parametrize("winner", [0, 1, 2])
def test_whoever_answers_first_has_the_call(world, winner):
    places = at_places(world, 3)
    caller, call, node = ring(world)
    keys = invited(places)
    for place, key in zip(places, keys, strict=True):
        place.sip.ring(key, world.now)
    world.settle()
    assert len(node.got(link.LegRinging)) == 1
    places[winner].sip.answer(keys[winner], places[winner].sdp(47_000), world.now)
    world.settle()
    assert call.legs["a1"].state == "up" and not call.legs["a1"].forks
    for place, key in zip(places, keys, strict=True):
        if place is not places[winner]:
            (cancelled,) = place.of(sip.LegCancelled)
            assert cancelled.leg == key and "elsewhere" in cancelled.reason_header
    assert places[winner].of(sip.LegAcked) and len(node.got(link.LegAnswered)) == 1
    world.carrier.sip.hangup(caller, world.now)
    world.settle()
    assert [e.leg for e in places[winner].of(sip.LegEnded)] == [keys[winner]]
    assert not world.edge.calls.by_id and not world.edge.calls.by_key


def test_two_answer_at_the_same_time(world):
    places = at_places(world, 2)
    _, call, _ = ring(world)
    keys = invited(places)
    for place, key in zip(places, keys, strict=True):
        place.sip.answer(key, place.sdp(), world.now)
    world.settle()
    assert call.legs["a1"].state == "up"
    ended = [place for place in places if place.of(sip.LegEnded)]
    assert len(ended) == 1, "the second one gets its ACK, and a BYE"


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_leg_ends_when_the_last_has_refused(world, order):
    places = at_places(world, 3)
    _, call, node = ring(world)
    for n, status in zip(order, (480, 486, 503), strict=True):
        assert "a1" in call.legs
        refuse(world, places[n], status)
    assert "a1" not in call.legs
    (gone,) = node.got(link.LegGone)
    assert gone.status == 486, "busy says more of the person than a failure"


def test_one_refuses_another_answers(world):
    places = at_places(world, 2)
    _, call, _ = ring(world)
    refuse(world, places[1], 486)
    key = invited(places)[0]
    places[0].sip.answer(key, places[0].sdp(), world.now)
    world.settle()
    assert call.legs["a1"].state == "up"


@pytest.mark.parametrize("place", [0, 1])
def test_a_decline_speaks_for_all(world, place):
    places = at_places(world, 2)
    _, _, node = ring(world)
    refuse(world, places[place], 603)
    assert places[1 - place].of(sip.LegCancelled)
    assert node.got(link.LegGone)[-1].status == 603


@pytest.mark.parametrize("by", ["caller", "app", "time"])
def test_all_stop_when_the_attempt_is_over(world, by):
    places = at_places(world, 3)
    caller, call, node = ring(world)
    for place, key in zip(places, invited(places), strict=True):
        place.sip.ring(key, world.now)
    world.settle()
    if by == "caller":
        world.carrier.sip.hangup(caller, world.now)
    elif by == "app":
        world.say(node, link.EndLeg(call=call.call, leg="a1", epoch=str(call.epoch), cause="18"))
    else:
        world.run(181.0, step=1.0)
    world.settle()
    assert [len(place.of(sip.LegCancelled)) for place in places] == [1, 1, 1]


def test_the_node_dies_while_they_ring(world):
    places = at_places(world, 2)
    _, call, node = ring(world)
    keys = invited(places)
    for place, key in zip(places, keys, strict=True):
        place.sip.ring(key, world.now)
    world.settle()
    kill(world, node.name)
    assert not any(place.of(sip.LegCancelled) for place in places)
    places[0].sip.answer(keys[0], places[0].sdp(), world.now)
    world.settle()
    assert call.legs["a1"].state == "up" and places[1].of(sip.LegCancelled)


@pytest.mark.parametrize("winner", [0, 1])
def test_a_restarted_edge_knows_them_all(world, winner):
    places = at_places(world, 2)
    _, call, _ = ring(world)
    keys = invited(places)
    for place, key in zip(places, keys, strict=True):
        place.sip.ring(key, world.now)
    world.settle()
    world.boot()
    places[winner].sip.answer(keys[winner], places[winner].sdp(), world.now)
    world.settle()
    call = world.edge.calls.by_id[call.call]
    assert call.legs["a1"].state == "up"
    assert places[1 - winner].of(sip.LegCancelled) and not places[winner].of(sip.LegEnded)


def test_two_answers_in_one_breath(world):
    """As a proxy may send them, in one segment: the first counts."""
    places = at_places(world, 2)
    _, call, _ = ring(world)
    keys = invited(places)
    answers = []
    for n in (1, 0):
        places[n].sip.answer(keys[n], places[n].sdp(), world.now)
        answers += [(places[n], data) for data, _ in places[n].sip.output()]
    (first, data), (second, behind) = answers
    world.edge.context.sip.receive(data, Flow("public-udp", "udp", first.host, first.port), world.now)
    world.post(SipBytes(data=behind, flow=Flow("public-udp", "udp", second.host, second.port)))
    world.settle()
    assert call.legs["a1"].state == "up"
    assert second.of(sip.LegEnded) and not first.of(sip.LegEnded)
