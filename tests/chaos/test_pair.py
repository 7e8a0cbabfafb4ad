"""The edge pair in the lab (`ARI_HA_OVERLAYS=pair docker/lab up`), judged like all chaos."""

from __future__ import annotations

import pytest

from ari_ha.cli.chaos_stage import Stage, until
from ari_ha.cli.lab import FAULTS, NETWORK, PAIR
from tests.support.chaos_runs import survives_within

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

CALLS = 3
LOST_MAX_MS = {
    "edge-kill": 900,
    "edge-cut": 900,
    "edge-freeze": 900,
    "edge-and-asterisk-kill": 1_200,
    "rtpengine-kill": 1_200,
    "rtpengine-kill-twice": 3_000,
    "edge-heartbeats-lost": 300,
    "edge-switchover": 300,
    "edge-clock-step": 300,
    "edge-starved": 3_000,
}
"""Far above what a quiet machine shows (docs/operate/edge-pair.md): a test machine is busy."""


@pytest.fixture
def pair(running_lab: Stage) -> Stage:
    if len(running_lab.edges) < 2:
        pytest.skip("this lab has one edge")
    if not running_lab.address_moves():
        pytest.skip("this lab's edges have an address each")
    until("the pair is whole", 60, running_lab.pair_is_whole, 0.2)
    return running_lab


def perform(stage: Stage, fault: str, state: str, serial: int = 0) -> None:
    survives_within(stage, fault, state, CALLS, serial, LOST_MAX_MS)


@pytest.mark.parametrize("fault", LOST_MAX_MS)
def test_people_talk(pair: Stage, fault: str) -> None:
    perform(pair, fault, "talking")


@pytest.mark.parametrize("state", ["ringing", "held", "through"])
def test_the_host_dies(pair: Stage, state: str) -> None:
    perform(pair, "edge-kill", state, 1)


@pytest.mark.parametrize("fault", ["edge-kill", "rtpengine-kill"])
def test_whose_srtp_has_gone_round(pair: Stage, fault: str) -> None:
    """Customers with keys in SDP, on calls older than 22 minutes: without another key they hear nothing."""
    pair.ends = frozenset({"srtp", "wrapped"})
    try:
        perform(pair, fault, "talking", 2)
    finally:
        pair.ends = frozenset()


def test_over_back_and_over_again(pair: Stage) -> None:
    for serial in range(3):
        perform(pair, "edge-kill", "talking", serial)


def test_a_frozen_host_is_silent(pair: Stage) -> None:
    """Its kernel runs on, and would answer ARP for the address but for the fence."""
    frozen = pair.active_edge()
    other = next(edge for edge in PAIR if edge != frozen)
    FAULTS["edge-freeze"](pair.lab, frozen)
    try:
        until("the other serves", 10, lambda: pair.active_edge() == other, 0.05)
        ours = pair.lab.run(other, "sh", "-c", "cat /sys/class/net/eth*/address").split()
        for _ in range(20):
            pair.lab.run("farend", "sh", "-c", f"ip neigh flush all; ping -c1 -W1 {NETWORK}.1.10; true")
            said = pair.lab.run("farend", "ip", "neigh", "show", f"{NETWORK}.1.10")
            assert any(hardware in said for hardware in ours), said
    finally:
        pair.lab.unpause(frozen)
    until("the pair is whole again", 60, pair.pair_is_whole, 0.2)
