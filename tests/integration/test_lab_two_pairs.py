"""Two pairs side by side: the carrier at one, the agent's phone at the other.

Needs the overlay ``two-pairs`` (``ARI_HA_OVERLAYS=two-pairs docker/lab up``): phones with even numbers
register at the second edge."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ari_ha.cli.agents import ask_a_node
from ari_ha.cli.chaos_judge import Pair
from ari_ha.cli.chaos_stage import Stage, until
from ari_ha.cli.lab import FAULTS, NETWORK, PAIR
from tests.integration import test_lab_other_programs as others

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]

TRUNK_SIDE, PHONE_SIDE = PAIR
UDP, TCP = "1002", "1058"
QUEUES = {UDP: "6000", TCP: "6100"}
WINDOW_S = 2.0


@pytest.fixture
def two(stage: Stage) -> Stage:
    edges = stage.view().edges
    if edges.get(PHONE_SIDE, {}).get("vip") in ("", None, edges[TRUNK_SIDE].get("vip")):
        pytest.skip("the lab has no overlay 'two-pairs'")
    for agent in (UDP, TCP):
        until(
            f"{agent} is registered at the second pair", 30, lambda agent=agent: at(stage, agent) == "pair2"
        )
    return stage


def ask(stage: Stage, edge: str, path: str) -> Any:
    return stage.cluster.http(stage.cluster.settings.processes[edge], path, limit_s=1.5)


def at(stage: Stage, agent: str) -> str:
    """The pair where the phone is registered."""
    rows = ask(stage, TRUNK_SIDE, "/v1/bindings")
    return next((row["pair"] for row in rows if row["aor"] == agent), "")


def passed(stage: Stage) -> int:
    """Requests the phone's edge passed on."""
    return int(ask(stage, PHONE_SIDE, "/v1/status")["sip"].get("hop.requests", 0))


def connected(stage: Stage, agent: str = UDP, state: str = "talking", serial: int = 0) -> Pair:
    stage.agents_in([agent])
    stage.far.manner([agent], mode="ring" if state == "ringing" else "answer", after_s=0.3)
    before = passed(stage)
    caller = f"1577{serial:04}"
    (ident,) = stage.far.place(QUEUES[agent], caller)
    pair = Pair(ident, caller, state, queue="support" if agent == UDP else "sales")
    stage.bring([pair], state)
    assert pair.agent == agent and passed(stage) > before
    assert pair.caller in stage.edge_calls(), "the carrier's pair has the call"
    assert not ask(stage, PHONE_SIDE, "/v1/calls"), "and the phone's has none"
    return pair


def lost_ms(stage: Stage, pair: Pair, since: float) -> list[int]:
    """Lost packets of each direction since then, as time."""
    rows = stage.measure(since, [pair])
    heard = []
    for mine, other in ((pair.customer, pair.agent_call), (pair.agent_call, pair.customer)):
        (row,) = rows[mine]["hears"]
        assert row["call"] == other and row["duplicates"] == 0
        heard.append(row["lost_packets"] * 20)
    return heard


def both_end(stage: Stage, pair: Pair, by: str) -> None:
    mine, other = (pair.customer, pair.agent_call) if by == "customer" else (pair.agent_call, pair.customer)
    stage.far.order(mine, "hangup")
    until("the other side has ended", 40, lambda: stage.far.call(other)["state"] == "ended", 0.1)
    assert stage.far.call(other)["ended_by"] == "them"
    until("no channel is left", 30, lambda: not stage.channels(), 0.3)
    until("the call is gone from etcd", 30, lambda: not stage.owned_calls(), 0.2)


def held_and_back(stage: Stage, pair: Pair) -> None:
    """Requests within the dialog still go both ways."""
    stage.far.order(pair.agent_call, "hold")
    until("the customer hears music", 20, lambda: stage.hearing_music([pair]), 0.1)
    stage.far.order(pair.agent_call, "unhold")
    until("they talk again", 20, lambda: stage.talking([pair]), 0.1)


@pytest.mark.parametrize("agent", [UDP, TCP])
@pytest.mark.parametrize("by", ["customer", "agent"])
def test_they_talk(two: Stage, agent: str, by: str) -> None:
    pair = connected(two, agent)
    since = two.far.now()
    time.sleep(WINDOW_S)  # the measured window
    assert lost_ms(two, pair, since) == [0, 0]
    assert two.edge_call(pair.call)["media"] == "hitless"
    assert not two.far.call(pair.agent_call)["leaked_headers"]
    held_and_back(two, pair)
    both_end(two, pair, by)


@pytest.mark.parametrize("by", ["customer", "agent"])
def test_asterisk_is_killed(two: Stage, by: str) -> None:
    pair = connected(two, serial=1)
    before = pair.epoch
    since = two.far.now()
    two.lab.asterisk_kill(pair.node.partition("#")[0])
    until("the call has moved", 20, lambda: (two.refresh([pair]), pair.epoch != before)[1], 0.1)
    time.sleep(WINDOW_S)
    lost = lost_ms(two, pair, since)
    print(f"asterisk-kill lost_ms={lost}")
    assert max(lost) <= 200
    assert two.far.call(pair.agent_call)["state"] == "up"
    held_and_back(two, pair)
    both_end(two, pair, by)


@pytest.mark.parametrize("agent", [UDP, TCP])
@pytest.mark.parametrize("edge", [TRUNK_SIDE, PHONE_SIDE])
def test_the_edge_process_of_either_pair_is_killed(two: Stage, edge: str, agent: str) -> None:
    pair = connected(two, agent, serial=2)
    since, registered = two.far.now(), registrations(two, agent)
    two.lab.edge_process_kill(edge)
    until("it serves again", 30, lambda: ask(two, edge, "/v1/status")["serving"], 0.1)
    time.sleep(WINDOW_S)
    lost = lost_ms(two, pair, since)
    print(f"edge-process-kill {edge} {agent} lost_ms={lost}")
    assert max(lost) <= 200
    if agent == TCP and edge == PHONE_SIDE:
        until("it has connected again", 30, lambda: registrations(two, agent) > registered, 0.2)
    held_and_back(two, pair)
    both_end(two, pair, "agent" if edge == PHONE_SIDE else "customer")


def registrations(stage: Stage, agent: str) -> int:
    return int(stage.far.phone(agent)["registration"]["successes"])


@pytest.mark.parametrize("by", ["customer", "agent"])
def test_a_bye_100_ms_after_the_phones_edge_process_died(two: Stage, by: str) -> None:
    pair = connected(two, serial=3)
    struck = two.lab.edge_process_kill(PHONE_SIDE)
    time.sleep(max(0.0, struck.at + 0.1 - time.time()))
    both_end(two, pair, by)


@pytest.mark.parametrize("edge", [TRUNK_SIDE, PHONE_SIDE])
def test_a_phone_that_rings_while_an_edge_process_dies(two: Stage, edge: str) -> None:
    pair = connected(two, state="ringing", serial=4)
    two.lab.edge_process_kill(edge)
    until("it serves again", 30, lambda: ask(two, edge, "/v1/status")["serving"], 0.1)
    two.far.order(pair.agent_call, "answer")
    until("they talk", 30, lambda: two.talking([pair]), 0.1)
    both_end(two, pair, "customer")


def test_the_phones_relay_is_not_in_the_way(two: Stage) -> None:
    """The audio is the carrier's pair's alone."""
    pair = connected(two, serial=5)
    since = two.far.now()
    two.lab.rtpengine_kill(PHONE_SIDE)
    time.sleep(WINDOW_S)
    assert lost_ms(two, pair, since) == [0, 0]
    both_end(two, pair, "agent")


@pytest.mark.parametrize("by", ["carrier", "phone"])
def test_a_number_leaves_through_the_carriers_pair(two: Stage, by: str) -> None:
    two.agents_out()
    calls_before = set(two.far_calls())
    mine = two.far.phone_order(UDP, "dial", number="+4930123")["call"]
    until("the phone talks", 30, lambda: two.far.call(mine)["state"] == "up", 0.1)
    (theirs,) = [
        ident for ident, call in two.far_calls().items()
        if ident not in calls_before and call["owner"] == "carrier" and call["state"] == "up"
    ]  # fmt: skip
    assert [row["caller"] for row in ask(two, PHONE_SIDE, "/v1/calls")] == [UDP]
    assert not ask(two, TRUNK_SIDE, "/v1/calls"), "the carrier's pair passes on and has no call"
    pair = Pair(theirs, UDP, "talking")
    pair.agent_call = mine
    until("they hear each other", 20, lambda: two.talking([pair]), 0.1)
    two.lab.edge_process_kill(TRUNK_SIDE)
    until("it serves again", 30, lambda: ask(two, TRUNK_SIDE, "/v1/status")["serving"], 0.1)
    both_end(two, pair, "customer" if by == "carrier" else "agent")


@pytest.mark.parametrize("strike", ["nothing", PHONE_SIDE, TRUNK_SIDE, "asterisk"])
def test_the_agent_consults_and_hands_the_caller_over(two: Stage, strike: str) -> None:
    """His second call goes to his own pair, and from there to that of the caller."""
    pair = connected(two, serial=6)
    two.far.order(pair.agent_call, "hold")
    until("the customer hears music", 20, lambda: two.hearing_music([pair]), 0.1)
    two.far.manner(["1003"], mode="answer", after_s=0.3)
    second = two.far.phone_order(UDP, "dial", number="1003")["call"]
    theirs = until("the colleague talks", 30, lambda: two.came_in("up").get("1003"), 0.1)
    asked = Pair(second, UDP, "talking")
    asked.agent_call = theirs
    until("they hear each other", 30, lambda: two.talking([asked]), 0.1)
    assert not ask(two, PHONE_SIDE, "/v1/calls")
    if strike in PAIR:
        two.lab.edge_process_kill(strike)
        until("it serves again", 30, lambda: ask(two, strike, "/v1/status")["serving"], 0.1)
    elif strike == "asterisk":
        two.refresh([pair])
        before = pair.epoch
        two.lab.asterisk_kill(pair.node.partition("#")[0])
        until("the call has moved", 20, lambda: (two.refresh([pair]), pair.epoch != before)[1], 0.1)
        until("they hear each other again", 30, lambda: two.talking([asked]), 0.1)
    two.far.order(pair.agent_call, "refer", number="1003", other=second)
    pair.agent_call, agent_calls = theirs, (pair.agent_call, second)
    until("customer and colleague talk", 30, lambda: two.talking([pair]), 0.1)
    for ident in agent_calls:
        until(f"{ident} has ended", 30, lambda ident=ident: two.far.call(ident)["state"] == "ended", 0.1)
    both_end(two, pair, "agent")


def test_the_phones_whole_pair_is_gone(two: Stage) -> None:
    """The two go on talking; the customer's end is an end, and his pair keeps nothing of the call."""
    pair = connected(two, serial=7)
    since = two.far.now()
    struck = FAULTS["edge-kill"](two.lab, PHONE_SIDE)
    try:
        time.sleep(WINDOW_S)
        assert lost_ms(two, pair, since) == [0, 0]
        two.far.order(pair.customer, "hangup")
        until("no channel is left", 30, lambda: not two.channels(), 0.3)
        until("the call is gone from etcd", 60, lambda: not two.owned_calls(), 0.3)
    finally:
        assert struck.mend is not None
        struck.mend()
    until("it serves again", 60, lambda: ask(two, PHONE_SIDE, "/v1/status")["serving"], 0.3)


@pytest.fixture
def stranger(two: Stage, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Starts baresip, which shares none of our code, as a phone of the second pair."""
    monkeypatch.setattr(others, "EDGE", f"{NETWORK}.1.12")
    with others.lent(two, others.BARESIP_USER) as password:
        yield from others.baresip_phone(two, password)


def test_a_phone_that_is_not_ours(two: Stage, stranger: Callable[[], None]) -> None:
    stranger()
    user = others.BARESIP_USER
    until("it is at the second pair", 30, lambda: at(two, user) == "pair2", 0.2)
    two.agents_out()
    ask_a_node(two.cluster, two.view(), user, "login", {"device": user})
    before = passed(two)
    (ident,) = two.far.place("6100", "15771059")
    until("the customer hears its tone", 30, lambda: two.hearing_music([Pair(ident, "")]), 0.2)
    until("it hears the customer", 30, lambda: others.heard_bytes(two) > others.HEARD_MIN_BYTES, 0.2)
    assert passed(two) > before
    two.far.order(ident, "hangup")
    until("it was hung up on", 30, lambda: not two.edge_calls() and not two.channels(), 0.2)
    log = others.read(two, "/tmp/baresip.log")
    assert "session closed" in log or "terminated" in log.lower()
