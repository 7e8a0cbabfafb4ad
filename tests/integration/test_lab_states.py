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


def in_state(stage: Stage, owner: str, way: str, state: str, limit_s: float = 10) -> str:
    def look() -> dict[str, Any] | None:
        call = call_of(stage, owner, way)
        return call if call and call["state"] == state else None

    return until(f"{owner}'s call ({way}) is {state}", limit_s, look)["call"]


def hear_each_other(stage: Stage, one: str, other: str, limit_s: float = 8) -> None:
    """Both hear the other's numbered voice now."""

    def look() -> bool:
        end = stage.far.now() - 0.1
        rows = {r["call"]: r for r in stage.far.measure(end - 0.6, end, [one, other])["calls"]}
        return all(
            any(h["call"] == theirs and h["received"] > 10 for h in rows[mine]["hears"])
            for mine, theirs in ((one, other), (other, one))
            if mine in rows
        ) and len(rows) == 2

    until(f"{one} and {other} hear each other", limit_s, look, 0.2)


def strike(stage: Stage, caller: str) -> None:
    """The Asterisk that serves this caller's call is killed, and comes back."""
    node = stage.edge_calls()[caller]["node"]
    struck = FAULTS["asterisk-kill"](stage.lab, node)

    def moved() -> bool:
        row = stage.edge_calls()[caller]
        return bool(row["node"] != node and not row["lost"] and not row["moving_to"])

    until("another serves", 10, moved)
    if struck.mend is not None:
        struck.mend()


def messages(stage: Stage, ident: str, way: str) -> list[str]:
    return [m["what"] for m in stage.far.call(ident)["messages"] if m["way"] == way]


def works(stage: Stage, *agents: str) -> set[str]:
    return {stage.agents()[agent].get("work", "idle") for agent in agents}


def ended(stage: Stage, ident: str) -> dict[str, Any]:
    return until(f"{ident} has ended", 8, lambda: (c := stage.far.call(ident))["state"] == "ended" and c)



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
    in_state(stage, "1001", "out", "up", 5)
    hear_each_other(stage, mine, theirs)
    if when == "talking":
        strike(stage, "1001")
        hear_each_other(stage, mine, theirs)
    until("hitless", 5, lambda: stage.edge_calls()["1001"]["media"] == "hitless")
    assert stage.agents()["1001"]["work"] == "talking"
    assert not [w for w in messages(stage, theirs, "received") if w.startswith(("BYE", "CANCEL"))]
    stage.far.order(theirs, "hangup")
    assert ended(stage, mine)["ended_by"] == "them"
    until("no channel is left", 10, lambda: not stage.channels(), 0.2)
    until("both are idle", 15, lambda: works(stage, "1001", "1002") == {"idle"}, 0.2)


def test_a_number_nobody_has(stage: Stage) -> None:
    stage.agents_in(["1001"])
    stage.far.phone_order("1001", "dial", number="7777")
    ident = stage.far.phone("1001")["calls"][-1]["call"]
    assert ended(stage, ident)["status"] == 503
    until("idle again", 10, lambda: stage.agents()["1001"].get("work", "idle") == "idle", 0.2)
