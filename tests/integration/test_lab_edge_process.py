"""The edge process dies while people act: it restarts in place and takes up every dialog."""

from __future__ import annotations

import time

import pytest

from ari_ha.cli.chaos_stage import Stage, until
from ari_ha.cli.lab import EDGES

pytestmark = pytest.mark.lab


@pytest.mark.parametrize("by", ["customer", "agent"])
def test_a_bye_100_ms_after_the_edge_process_died(stage: Stage, by: str) -> None:
    (pair,) = stage.place(1, "talking", 6)
    mine, other = (pair.customer, pair.agent_call) if by == "customer" else (pair.agent_call, pair.customer)
    struck = stage.lab.edge_process_kill(EDGES[0])
    time.sleep(max(0.0, struck.at + 0.1 - time.time()))
    stage.far.order(mine, "hangup")
    until("the other side is ended too", 30, lambda: stage.far.call(other)["state"] == "ended", 0.1)
    assert stage.far.call(other)["ended_by"] == "them"
    until("no channel is left", 30, lambda: not stage.channels(), 0.3)


def test_a_call_that_rings_while_the_edge_process_dies_can_be_answered(stage: Stage) -> None:
    (pair,) = stage.place(1, "ringing", 7)
    stage.lab.edge_process_kill(EDGES[0])
    until("the edge answers again", 30, lambda: stage.edge_calls().get(pair.caller), 0.1)
    stage.far.order(pair.agent_call, "answer")
    until("they talk", 30, lambda: stage.talking([pair]), 0.1)


def test_new_calls_come_in_soon_after(stage: Stage) -> None:
    stage.agents_in(["1001"])
    stage.lab.edge_process_kill(EDGES[0])
    (ident,) = stage.far.place("6000", "15557777")
    until("they talk", 30, lambda: (c := stage.far.phone("1001")["call"]) and c["state"] == "up", 0.1)
    assert stage.far.call(ident)["state"] == "up"
