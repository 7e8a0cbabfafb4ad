"""Two pairs of two hosts each: the carrier at one, the agent's phone at the other; a host of either dies.

Needs the overlays ``pair`` and ``second-pair`` (``ARI_HA_OVERLAYS="pair second-pair" docker/lab up``): phones
with even numbers register at the second pair."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ari_ha.cli import lab_pair
from ari_ha.cli.chaos_judge import Pair
from ari_ha.cli.chaos_stage import Stage, until
from ari_ha.cli.cluster import ClusterError, decode_json
from ari_ha.cli.lab import PAIR, SECOND_PAIR
from tests.integration.test_lab_two_pairs import QUEUES, TCP, UDP, both_end, held_and_back, lost_ms

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

LIMIT_S = 60.0
LOST_MAX_MS = {"pair1": 900, "pair2": 0}
"""The audio of these calls goes through the relay of the carrier's pair only."""
HOSTS = {"pair1": PAIR, "pair2": SECOND_PAIR}
WINDOW_S = 2.0


@pytest.fixture
def pairs(stage: Stage) -> Iterator[Stage]:
    if any(edge not in stage.cluster.settings.processes for edge in SECOND_PAIR):
        pytest.skip("the lab has no second pair")
    for agent in (UDP, TCP):
        until(f"{agent} is registered", 30, lambda agent=agent: registered_at(stage, agent) == "pair2")
    yield stage
    stage.lab.heal()
    until("both pairs are whole", LIMIT_S, stage.pair_is_whole, 0.2)


def registered_at(stage: Stage, agent: str) -> str:
    found = [decode_json(item) for item in stage.cluster.family("bindings")]
    return next((value["pair"] for value in found if value["aor"] == agent), "")


def ask(stage: Stage, edge: str, path: str) -> Any:
    return stage.cluster.http(stage.cluster.settings.processes[edge], path, limit_s=1.5)


def active(stage: Stage, pair: str) -> str:
    """The edge that serves for a pair; empty while none does."""
    for edge in HOSTS[pair]:
        try:
            if ask(stage, edge, "/v1/status")["serving"]:
                return edge
        except ClusterError:
            continue
    return ""


def connected(stage: Stage, agent: str, state: str = "talking") -> Pair:
    stage.agents_in([agent])
    stage.far.manner([agent], mode="ring" if state == "ringing" else "answer", after_s=0.3)
    caller = f"1578{agent}"
    (ident,) = stage.far.place(QUEUES[agent], caller)
    pair = Pair(ident, caller, state, queue="support" if agent == UDP else "sales")
    stage.bring([pair], state)
    assert pair.agent == agent and pair.caller in stage.edge_calls(), "the carrier's pair has the call"
    assert not ask(stage, active(stage, "pair2"), "/v1/calls"), "and the phone's has none"
    return pair


def kill_active(stage: Stage, pair: str) -> Callable[[], None]:
    """The pair's active host is gone at once, and its other one serves; how to mend it."""
    dead = active(stage, pair)
    heir = next(edge for edge in HOSTS[pair] if edge != dead)
    struck = lab_pair.kill(stage.lab, dead)
    until(f"{heir} serves", LIMIT_S, lambda: active(stage, pair) == heir, 0.05)
    assert struck.mend is not None
    return struck.mend


@pytest.mark.parametrize("by", ["customer", "agent"])
@pytest.mark.parametrize("which", ["pair1", "pair2"])
def test_a_host_dies_while_they_talk(pairs: Stage, which: str, by: str) -> None:
    """They talk on; hold and its end, and a hang-up, go both ways through the pairs afterwards."""
    pair = connected(pairs, UDP)
    claims, since = pairs.claims(), pairs.far.now()
    mend = kill_active(pairs, which)
    until("they talk", LIMIT_S, lambda: pairs.talking([pair]), 0.1)
    time.sleep(WINDOW_S)  # the measured window
    lost = lost_ms(pairs, pair, since)
    print(f"{which} host killed: lost_ms={lost}")
    assert max(lost) <= LOST_MAX_MS[which]
    assert pairs.claims() == claims + 1, "only the pair whose host died was taken over"
    held_and_back(pairs, pair)
    mend()
    until("both pairs are whole", LIMIT_S, pairs.pair_is_whole, 0.2)
    both_end(pairs, pair, by)


@pytest.mark.parametrize("which", ["pair1", "pair2"])
def test_a_host_dies_while_the_phone_rings(pairs: Stage, which: str) -> None:
    pair = connected(pairs, UDP, "ringing")
    kill_active(pairs, which)
    pairs.far.order(pair.agent_call, "answer")
    until("they talk", LIMIT_S, lambda: pairs.talking([pair]), 0.1)
    both_end(pairs, pair, "agent")


@pytest.mark.parametrize("which", ["pair1", "pair2"])
def test_a_host_dies_and_the_next_call_is_served(pairs: Stage, which: str) -> None:
    """The other pair finds the one that took over by its address, or its key in etcd."""
    kill_active(pairs, which)
    both_end(pairs, connected(pairs, UDP), "customer")


def test_a_host_of_each_pair_dies(pairs: Stage) -> None:
    """One after the other, as a rack does that has one of each."""
    pair = connected(pairs, UDP)
    for which in HOSTS:
        kill_active(pairs, which)
    until("they talk", LIMIT_S, lambda: pairs.talking([pair]), 0.1)
    held_and_back(pairs, pair)
    both_end(pairs, pair, "agent")
