"""Muting is an act of the edge: in every state, through a takeover and a restart."""

from __future__ import annotations

import pytest

from ari_ha.core.ports.operator import OperatorRequest
from tests.support.edge_world import EdgeWorld, kill
from tests.unit.test_edge_machine import talking


def ask(world: EdgeWorld, call: str, leg: str, muted: object) -> int:
    status, _ = world.edge._answer("mute", {"call": call, "leg": leg, "muted": muted})
    world.post(OperatorRequest(request="r", verb="status"))
    world.settle()
    return status


def heard(world: EdgeWorld, call: str, leg: str) -> bool:
    return any(speaker == leg for _, speaker in world.hears[call])


@pytest.mark.parametrize("state", ["hitless", "through", "coach"])
def test_nobody_hears_a_muted_leg_and_it_hears_everybody(world: EdgeWorld, state: str) -> None:
    _, call, _, _, _ = talking(world, state)
    before = set(world.hears[call.call])
    assert ask(world, call.call, "a1", True) == 200
    assert not heard(world, call.call, "a1")
    assert world.hears[call.call] == {(x, y) for x, y in before if y != "a1"}
    assert ask(world, call.call, "a1", False) == 200
    assert world.hears[call.call] == before


def test_it_stays_muted_when_its_node_dies(world: EdgeWorld) -> None:
    _, call, node, _, _ = talking(world)
    ask(world, call.call, "c", True)
    kill(world, node.name)
    world.run(0.5)
    assert call.owner.name != node.name or call.move is not None
    assert not heard(world, call.call, "c")


def test_it_stays_muted_over_a_restart_of_the_edge(world: EdgeWorld) -> None:
    _, call, _, _, _ = talking(world)
    ask(world, call.call, "a1", True)
    world.boot()
    leg = world.edge.calls.by_id[call.call].legs["a1"]
    assert leg.muted


def test_what_makes_no_sense(world: EdgeWorld) -> None:
    _, call, _, _, _ = talking(world)
    assert ask(world, call.call, "a7", True) == 404
    assert ask(world, "nothing", "c", True) == 404
    assert ask(world, call.call, "c", "yes") == 422
