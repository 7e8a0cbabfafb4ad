"""Calls in every other state than a queue's: dialled out, transferred, consulting; and their node dies."""

from __future__ import annotations

import time
from typing import Any

import pytest

from ari_ha.cli.chaos_stage import Stage, until
from ari_ha.cli.lab import FAULTS

pytestmark = pytest.mark.lab


def call_of(stage: Stage, owner: str, way: str) -> dict[str, Any] | None:
    """The newest living call of a far end that came in, or went out."""
    rows = [c for c in stage.far.calls(living="1") if c["owner"] == owner and c["way"] == way]
    return rows[-1] if rows else None


def in_state(stage: Stage, owner: str, way: str, state: str, limit_s: float = 30) -> str:
    def look() -> dict[str, Any] | None:
        call = call_of(stage, owner, way)
        return call if call and call["state"] == state else None

    return until(f"{owner}'s call ({way}) is {state}", limit_s, look)["call"]


def hear_each_other(stage: Stage, one: str, other: str, limit_s: float = 30) -> None:
    """Both hear the other's numbered voice now."""

    def look() -> bool:
        end = stage.far.now() - 0.1
        rows = {r["call"]: r for r in stage.far.measure(end - 0.6, end, [one, other])["calls"]}
        return (
            all(
                any(h["call"] == theirs and h["received"] > 10 for h in rows[mine]["hears"])
                for mine, theirs in ((one, other), (other, one))
                if mine in rows
            )
            and len(rows) == 2
        )

    until(f"{one} and {other} hear each other", limit_s, look, 0.2)


def strike(stage: Stage, caller: str) -> None:
    """The Asterisk that serves this caller's call is killed, and comes back."""
    node = stage.edge_calls()[caller]["node"]
    struck = FAULTS["asterisk-kill"](stage.lab, node)

    def moved() -> bool:
        row = stage.edge_calls()[caller]
        return bool(row["node"] != node and not row["lost"] and not row["moving_to"])

    until("another serves", 30, moved)
    if struck.mend is not None:
        struck.mend()


def messages(stage: Stage, ident: str, way: str) -> list[str]:
    return [m["what"] for m in stage.far.call(ident)["messages"] if m["way"] == way]


def works(stage: Stage, *agents: str) -> set[str]:
    return {stage.agents()[agent].get("work", "idle") for agent in agents}


def ended(stage: Stage, ident: str) -> dict[str, Any]:
    return until(f"{ident} has ended", 30, lambda: (c := stage.far.call(ident))["state"] == "ended" and c)


@pytest.mark.parametrize(("number", "owner"), [("1002", "1002"), ("+4930123", "carrier")])
@pytest.mark.parametrize("when", ["never", "ringing", "talking"])
def test_an_agent_dials(stage: Stage, number: str, owner: str, when: str) -> None:
    stage.agents_in(["1001", "1002"])
    stage.far.ask(f"/phones/{owner}/manner", "POST", {"mode": "ring", "ring": True})
    stage.far.phone_order("1001", "dial", number=number)
    theirs = in_state(stage, owner, "in", "ringing")
    mine = in_state(stage, "1001", "out", "ringing")
    assert stage.agents()["1001"]["work"] == "dialing"
    if when == "ringing":
        strike(stage, "1001")
        time.sleep(0.5)
        assert messages(stage, theirs, "received").count("INVITE") == 1
    stage.far.order(theirs, "answer")
    in_state(stage, "1001", "out", "up")
    hear_each_other(stage, mine, theirs)
    if when == "talking":
        strike(stage, "1001")
        hear_each_other(stage, mine, theirs)
    until("hitless", 30, lambda: stage.edge_calls()["1001"]["media"] == "hitless")
    assert stage.agents()["1001"]["work"] == "talking"
    assert not [w for w in messages(stage, theirs, "received") if w.startswith(("BYE", "CANCEL"))]
    stage.far.order(theirs, "hangup")
    assert ended(stage, mine)["ended_by"] == "them"
    until("no channel is left", 30, lambda: not stage.channels(), 0.2)
    until("both are idle", 30, lambda: works(stage, "1001", "1002") == {"idle"}, 0.2)


def test_a_number_nobody_has(stage: Stage) -> None:
    stage.agents_in(["1001"])
    stage.far.phone_order("1001", "dial", number="7777")
    ident = stage.far.phone("1001")["calls"][-1]["call"]
    assert ended(stage, ident)["status"] == 480
    until("idle again", 30, lambda: stage.agents()["1001"].get("work", "idle") == "idle", 0.2)


# --- transfers -------------------------------------------------------------------------


def a_talk(stage: Stage, agents: list[str]) -> tuple[str, str, str, str, str]:
    """A customer and the agent the queue chose: customer, agent's call, agent, the other agent, caller."""
    stage.agents_in(agents)
    caller = "15551234"
    (ident,) = stage.far.place("6000", caller)

    def talks() -> list[str]:
        return [a for a in agents if (c := call_of(stage, a, "in")) and c["state"] == "up"]

    (agent,) = until("an agent talks", 30, talks)
    (other,) = [a for a in agents if a != agent]
    mine = in_state(stage, agent, "in", "up")
    hear_each_other(stage, ident, mine)
    return ident, mine, agent, other, caller


def consulting(stage: Stage) -> tuple[str, str, str, str, str, str]:
    """The agent holds his customer and talks to a colleague: all four ends, the caller, the agent."""
    customer, mine, agent, other, caller = a_talk(stage, ["1001", "1002"])
    stage.far.order(mine, "hold")
    stage.far.phone_order(agent, "dial", number=other)
    second = in_state(stage, agent, "out", "up")
    theirs = in_state(stage, other, "in", "up")
    hear_each_other(stage, second, theirs)
    until("music on hold", 30, lambda: music(stage, customer))
    return customer, mine, second, theirs, caller, agent


def music(stage: Stage, ident: str) -> bool:
    end = stage.far.now() - 0.1
    (row,) = stage.far.measure(end - 0.5, end, [ident])["calls"]
    return sum(span["packets"] for span in row["other_audio"]) > 12


def nothing_left(stage: Stage) -> None:
    until("no channel is left", 30, lambda: not stage.channels(), 0.2)
    until("no call is left", 30, lambda: not stage.edge_calls(), 0.2)
    until("all agents are idle", 30, lambda: works(stage, "1001", "1002") == {"idle"}, 0.2)


@pytest.mark.parametrize("when", ["never", "ringing"])
def test_a_blind_transfer(stage: Stage, when: str) -> None:
    customer, mine, _, other, caller = a_talk(stage, ["1001", "1002"])
    stage.far.ask(f"/phones/{other}/manner", "POST", {"mode": "ring"})
    stage.far.order(mine, "refer", number=other)
    theirs = in_state(stage, other, "in", "ringing")
    if when == "ringing":
        strike(stage, caller)
    until("the asker is released", 30, lambda: stage.far.call(mine)["state"] == "ended")
    assert stage.far.call(mine)["refer"]["said"][-1] == "SIP/2.0 200 OK"
    stage.far.order(theirs, "answer")
    hear_each_other(stage, customer, theirs)
    assert messages(stage, theirs, "received").count("INVITE") == 1
    assert not [w for w in messages(stage, customer, "received") if w.startswith(("BYE", "INVITE"))]
    stage.far.order(customer, "hangup")
    assert ended(stage, theirs)["ended_by"] == "them"
    nothing_left(stage)


def test_a_blind_transfer_into_a_queue(stage: Stage) -> None:
    customer, mine, _, _, _ = a_talk(stage, ["1001", "1002"])
    stage.far.order(mine, "refer", number="6100")
    until("the asker is released", 30, lambda: stage.far.call(mine)["state"] == "ended")
    until("music in the queue", 30, lambda: music(stage, customer))
    until("a place in the other queue", 30, lambda: stage.view().waiting.get("sales"))
    stage.far.order(customer, "hangup")
    nothing_left(stage)


def test_nobody_takes_the_transfer_the_asker_is_rung_again(stage: Stage) -> None:
    customer, mine, agent, other, _ = a_talk(stage, ["1001", "1002"])
    stage.far.ask(f"/phones/{other}/manner", "POST", {"mode": "ring"})
    stage.far.order(mine, "refer", number=other)
    theirs = in_state(stage, other, "in", "ringing")
    until("the asker is released", 30, lambda: stage.far.call(mine)["state"] == "ended")
    stage.far.order(theirs, "reject", status=486)
    back = in_state(stage, agent, "in", "up")
    hear_each_other(stage, customer, back)
    stage.far.order(back, "hangup")
    assert ended(stage, customer)["ended_by"] == "them"
    nothing_left(stage)


@pytest.mark.parametrize("when", ["never", "consulting", "asked"])
def test_an_attended_transfer(stage: Stage, when: str) -> None:
    customer, mine, second, theirs, caller, _ = consulting(stage)
    if when == "consulting":
        strike(stage, caller)
        hear_each_other(stage, second, theirs)
        until("music again", 30, lambda: music(stage, customer))
    if when == "asked":
        node = stage.edge_calls()[caller]["node"]
        struck = FAULTS["asterisk-kill"](stage.lab, node)
        stage.far.order(mine, "refer", number="1002", other=second)
        if struck.mend is not None:
            struck.mend()
    else:
        stage.far.order(mine, "refer", number="1002", other=second)
    hear_each_other(stage, customer, theirs)
    for gone in (mine, second):
        assert ended(stage, gone)["ended_by"] == "them"
    stage.far.order(theirs, "hangup")
    assert ended(stage, customer)["ended_by"] == "them"
    nothing_left(stage)


@pytest.mark.parametrize("who", ["customer", "agent"])
def test_hanging_up_in_the_gap_of_a_consultation(stage: Stage, who: str) -> None:
    customer, mine, second, theirs, caller, _ = consulting(stage)
    node = stage.edge_calls()[caller]["node"]
    struck = FAULTS["asterisk-kill"](stage.lab, node)
    stage.far.order(customer if who == "customer" else second, "hangup")
    if struck.mend is not None:
        struck.mend()
    if who == "customer":
        assert ended(stage, mine)["ended_by"] == "them"
        hear_each_other(stage, second, theirs)
        stage.far.order(theirs, "hangup")
        assert ended(stage, second)["ended_by"] == "them"
    else:
        assert ended(stage, theirs)["ended_by"] == "them"
        stage.far.order(mine, "unhold")
        hear_each_other(stage, customer, mine)
        stage.far.order(customer, "hangup")
    nothing_left(stage)


def all_three_hear(stage: Stage, *idents: str) -> None:
    """Asterisk mixes three voices: nobody's numbers come through, but everybody hears something."""
    for ident in idents:
        until(f"{ident} hears", 30, lambda ident=ident: music(stage, ident), 0.2)  # type: ignore[misc]


@pytest.mark.parametrize("fault", [False, True])
def test_a_conference(stage: Stage, fault: bool) -> None:
    customer, mine, second, theirs, caller, _ = consulting(stage)
    stage.far.digits({second: "*3"})
    assert ended(stage, mine)["ended_by"] == "them"
    all_three_hear(stage, customer, second, theirs)
    assert stage.edge_calls()[caller]["media"] == "through"
    if fault:
        strike(stage, caller)
        all_three_hear(stage, customer, second, theirs)
        assert not [w for w in messages(stage, customer, "received") if w.startswith(("BYE", "INVITE"))]
    stage.far.order(second, "hangup")
    hear_each_other(stage, customer, theirs)
    stage.far.order(customer, "hangup")
    assert ended(stage, theirs)["ended_by"] == "them"
    nothing_left(stage)


def test_a_restarted_edge_goes_on_with_a_consultation(stage: Stage) -> None:
    customer, mine, second, theirs, caller, _ = consulting(stage)
    struck = FAULTS["edge-process-kill"](stage.lab, "edge1")
    until("the edge answers again", 30, lambda: caller in stage.edge_calls())
    hear_each_other(stage, second, theirs)
    until("music", 30, lambda: music(stage, customer))
    time.sleep(1.0)
    assert stage.edge_calls()[caller]["moves"] == [], "nothing was lost, nothing need move"
    stage.far.order(mine, "refer", number="1002", other=second)
    hear_each_other(stage, customer, theirs)
    if struck.mend is not None:
        struck.mend()
    stage.far.order(customer, "hangup")
    nothing_left(stage)
