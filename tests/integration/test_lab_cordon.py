"""A cordoned node: who does not know of it is refused by its Asterisk; calls that live there go on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ari_ha.cli.agents import ask_a_node
from ari_ha.cli.chaos_judge import Pair
from ari_ha.cli.chaos_stage import Stage, until
from ari_ha.cli.drain import remove, write
from ari_ha.cli.lab import EDGES, NETWORK, NODES

pytestmark = pytest.mark.lab

NODE = NODES[1]
NODE_ADDRESS = f"{NETWORK}.2.32"
STRANGER = f"{NETWORK}.2.12"
"""The second edge of a pair, which this lab does not have: Asterisk takes it for an edge."""
TRUNK, AGENT, RESUME = 5070, 5072, 5074
LIMIT_S = 60.0
INVITE = """
import socket, sys
here, port, node, call = sys.argv[1:]
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind((here, int(port)))
udp.settimeout(4)

def say(method, to, body=""):
    lines = [
        f"{method} sip:6000@{node} SIP/2.0",
        f"Via: SIP/2.0/UDP {here}:{port};branch=z9hG4bK-{call}-{method}",
        "Max-Forwards: 70",
        f"From: <sip:x@{here}>;tag={call}",
        f"To: {to}",
        f"Call-ID: {call}",
        f"CSeq: 1 {method}",
        f"Contact: <sip:x@{here}:{port}>",
        "X-ARI-HA-Fallback: no",
        "Content-Type: application/sdp",
        f"Content-Length: {len(body)}",
    ]
    udp.sendto("\\r\\n".join([*lines, "", body]).encode(), (node, 5060))

sdp = ["v=0", f"o=- 1 1 IN IP4 {here}", "s=-", f"c=IN IP4 {here}", "t=0 0", "m=audio 30000 RTP/AVP 8", ""]
say("INVITE", f"<sip:6000@{node}>", "\\r\\n".join(sdp))
while True:
    first, *lines = udp.recv(4000).decode().partition("\\r\\n\\r\\n")[0].split("\\r\\n")
    if first.startswith("SIP/2.0 ") and not first.startswith("SIP/2.0 1"):
        headers = dict(line.split(": ", 1) for line in lines)
        say("ACK", headers["To"])
        print(first.split()[1], headers.get("Retry-After", ""))
        break
"""
"""One INVITE and its final answer."""


@pytest.fixture
def closed(stage: Stage) -> Iterator[Stage]:
    """A second address, so that there is an edge which was told nothing; and no wish left afterwards."""
    if len(stage.edges) > 1:
        pytest.skip("the lab of a pair has an edge at that address")
    route = stage.lab.run(EDGES[0], "ip", "-o", "route", "get", NODE_ADDRESS).split()
    cidr = (f"{STRANGER}/24", "dev", route[route.index("dev") + 1])
    stage.lab.run(EDGES[0], "ip", "address", "add", *cidr)
    try:
        yield stage
    finally:
        stage.lab.run(EDGES[0], "ip", "address", "del", *cidr)
        stage.uncordon([NODE])
        remove(stage.cluster, NODE)


serial = iter(range(1_000))


def invited(stage: Stage, port: int) -> str:
    """What the node's Asterisk says to an INVITE of an edge that was told nothing: status and Retry-After."""
    words = (STRANGER, str(port), NODE_ADDRESS, f"stranger-{next(serial)}")
    return stage.lab.run(EDGES[0], "/opt/ari-ha/bin/python", "-c", INVITE, *words).strip()


def maintenance(stage: Stage) -> str:
    return str(stage.node_http(NODE, "/v1/status")["maintenance"])


def cordon(stage: Stage) -> None:
    stage.node_http(NODE, "/v1/cordon", "POST", {})
    until("Asterisk refuses new calls", LIMIT_S, lambda: maintenance(stage) == "on", 0.1)


def test_who_does_not_know_of_the_cordon_is_refused(closed: Stage) -> None:
    before = invited(closed, TRUNK)
    assert before and not before.startswith("503"), before
    cordon(closed)
    assert invited(closed, TRUNK) == "503 300"
    assert invited(closed, RESUME).startswith("200"), "a leg that moves is taken"
    until("status says so", LIMIT_S, lambda: closed.view().nodes[NODE].get("maintenance") == "on", 0.2)
    closed.uncordon([NODE])
    until("it is over", LIMIT_S, lambda: maintenance(closed) == "", 0.1)
    assert invited(closed, TRUNK) == before


def test_it_is_there_again_after_asterisk_and_after_the_app(closed: Stage) -> None:
    cordon(closed)
    closed.lab.asterisk_kill(NODE)
    until("it is away", LIMIT_S, lambda: maintenance(closed) != "on", 0.02)
    until("it is there again", LIMIT_S, lambda: maintenance(closed) == "on", 0.1)
    assert invited(closed, TRUNK) == "503 300"
    closed.lab.app_kill(NODE)
    assert invited(closed, TRUNK) == "503 300", "Asterisk needs no app for that"
    until(
        "the app is back", LIMIT_S, lambda: NODE in closed.view().nodes and maintenance(closed) == "on", 0.1
    )
    assert invited(closed, TRUNK) == "503 300"


def test_a_drained_node_refuses_them_too(closed: Stage) -> None:
    write(closed.cluster, NODE)
    until("Asterisk refuses new calls", LIMIT_S, lambda: maintenance(closed) == "on", 0.1)
    assert invited(closed, TRUNK) == "503 300"
    remove(closed.cluster, NODE)
    until("it is over", LIMIT_S, lambda: maintenance(closed) == "", 0.1)


def test_who_lives_there_is_served_on(closed: Stage) -> None:
    """A caller waits on the node; it is cordoned; an agent is dialled from there, and consults from there."""
    closed.agents_out()
    closed.only(NODE)
    (ident,) = closed.far.place("6000", "15558301")
    pair = Pair(ident, "15558301", "queued")
    until("the caller waits", LIMIT_S, lambda: closed.reached([pair]), 0.2)
    closed.uncordon([node for node in NODES if node != NODE])
    cordon(closed)
    closed.far.manner(mode="answer", after_s=0.1)
    ask_a_node(closed.cluster, closed.view(), "1001", "login", {"device": "1001"})
    pair.state = "talking"
    until("an agent answers", LIMIT_S, lambda: closed.reached([pair]) and closed.talking([pair]), 0.2)
    closed.refresh([pair])
    assert pair.node == NODE
    closed.far.phone_order("1001", "dial", number="1002")

    def consulting() -> bool:
        calls = {(c["owner"], c["way"]): c["state"] for c in closed.far.calls(living="1")}
        return (calls.get(("1001", "out")), calls.get(("1002", "in"))) == ("up", "up")

    until("the agent consults a colleague", LIMIT_S, consulting, 0.2)
    row = closed.edge_call(pair.call)
    assert row["epoch"] == pair.epoch and row["node"].startswith(NODE)
