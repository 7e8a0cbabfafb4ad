"""Two edges with an address each (`ARI_HA_OVERLAYS=two-addresses docker/lab up`): the other one takes the
calls over, and tells their far ends its own address."""

from __future__ import annotations

import pytest

from ari_ha.cli.chaos_stage import Stage, until
from ari_ha.cli.lab import FAULTS, NETWORK, PAIR
from tests.support.chaos_runs import survives_within

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

CALLS = 3
LOST_MAX_MS = {
    "edge-kill": 1_500,
    "edge-cut": 1_500,
    "edge-freeze": 1_500,
    "edge-switchover": 1_000,
    "edge-and-asterisk-kill": 2_000,
}
"""Far above what a quiet machine shows (docs/operate/edge-pair.md): a test machine is busy."""
ASK = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("{own}", 0))
s.settimeout(1)
port = s.getsockname()[1]
s.sendto((
    "OPTIONS sip:{host}:5060 SIP/2.0\\r\\nVia: SIP/2.0/UDP {own}:%d;branch=z9hG4bK-ask;rport\\r\\n"
    "From: <sip:ask@{own}>;tag=1\\r\\nTo: <sip:{host}>\\r\\nCall-ID: ask@{own}\\r\\nCSeq: 1 OPTIONS\\r\\n"
    "Max-Forwards: 70\\r\\nContent-Length: 0\\r\\n\\r\\n" % port).encode(), ("{host}", 5060))
try:
    print(s.recv(2000).split()[1].decode())
except TimeoutError:
    print("silent")
"""


@pytest.fixture
def two(running_lab: Stage) -> Stage:
    if len(running_lab.edges) < 2:
        pytest.skip("this lab has one edge")
    until("the pair is whole", 60, running_lab.pair_is_whole, 0.2)
    if running_lab.address_moves():
        pytest.skip("this lab's pair has one address")
    return running_lab


def perform(stage: Stage, fault: str, state: str, serial: int = 0) -> None:
    survives_within(stage, fault, state, CALLS, serial, LOST_MAX_MS)


@pytest.mark.parametrize("fault", LOST_MAX_MS)
def test_people_talk(two: Stage, fault: str) -> None:
    perform(two, fault, "talking")


@pytest.mark.parametrize("state", ["ringing", "held", "through", "queued"])
def test_the_host_dies(two: Stage, state: str) -> None:
    perform(two, "edge-kill", state, 1)


def test_over_and_back(two: Stage) -> None:
    for serial in range(2):
        perform(two, "edge-kill", "talking", serial)


def ask(stage: Stage, edge: str) -> str:
    host = f"{NETWORK}.1.{11 + PAIR.index(edge)}"
    script = ASK.format(own=f"{NETWORK}.1.50", host=host)
    return stage.lab.run("farend", "/opt/ari-ha/bin/python", "-c", script).strip()


def test_who_stands_by_or_comes_back_is_silent(two: Stage) -> None:
    """The standby, and an owner that was frozen and goes on after the other has taken over."""
    old = two.active_edge()
    other = next(edge for edge in PAIR if edge != old)
    assert (ask(two, old), ask(two, other)) == ("200", "silent")
    FAULTS["edge-freeze"](two.lab, old)
    try:
        until("the other serves", 10, lambda: two.active_edge() == other, 0.05)
        assert ask(two, other) == "200"
    finally:
        two.lab.unpause(old)
    for _ in range(3):
        assert ask(two, old) == "silent"
    until("the pair is whole again", 60, two.pair_is_whole, 0.2)
    assert (ask(two, old), ask(two, other)) == ("silent", "200")
