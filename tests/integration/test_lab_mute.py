"""A leg that an operator mutes is heard by nobody, whoever serves the call; and it hears on."""

from __future__ import annotations

import time
from typing import Any

import pytest
from typer.testing import CliRunner

from ari_ha.cli.chaos_judge import PRIMARY, Pair, hears_now
from ari_ha.cli.chaos_stage import Stage, until
from ari_ha.cli.lab import FAULTS
from ari_ha.cli.main import app

pytestmark = pytest.mark.lab


def mute(stage: Stage, pair: Pair, *options: str) -> None:
    """What an operator types."""
    settings = stage.cluster.settings.source
    done = CliRunner().invoke(app, ["mute", pair.call, pair.agent_leg, *options, "--settings", settings])
    assert done.exit_code == 0, done.output


def silent(stage: Stage, pair: Pair, since: float, end: float | None = None) -> bool:
    """Whether the customer heard nothing in the window: no voice, no digit, no music; silence may come."""
    (row,) = stage.far.measure(since, end, [pair.customer], {pair.customer: [pair.agent_call]})["calls"]
    return not (row["any_voice"]["packets"] or row["hears"] or row["other_audio"] or row["digits"])


def silent_lately(stage: Stage, pair: Pair) -> bool:
    end = stage.far.now() - 0.1
    return silent(stage, pair, end - 0.4, end)


def digits_at_node(stage: Stage, pair: Pair, leg: str, since: float) -> list[dict[str, Any]]:
    return [d for d in stage.edge_call(pair.call)["digits"] if d["leg"] == leg and d["at_utc"] > since]


def strike(stage: Stage, pair: Pair) -> None:
    """The Asterisk that serves the call is killed; another serves it, and the dead one comes back."""
    struck = FAULTS["asterisk-kill"](stage.lab, pair.node)

    def taken_over() -> bool:
        row = stage.edge_call(pair.call)
        return bool(row["node"] != pair.node and not row["lost"] and not row["moving_to"])

    until("another node serves", 30, taken_over)
    if struck.mend is not None:
        struck.mend()


@pytest.mark.parametrize("state", ["talking", "through"])
def test_a_muted_agent_stays_muted_over_a_takeover_and_hears_on(stage: Stage, state: str) -> None:
    (pair,) = stage.place(1, state, 1)
    assert not silent_lately(stage, pair)
    mute(stage, pair)
    until("the customer hears nothing", 5, lambda: silent_lately(stage, pair), 0.1)
    since = stage.far.now() - 0.4
    assert stage.edge_call(pair.call)["legs"][pair.agent_leg]["muted"]

    strike(stage, pair)
    row = stage.edge_call(pair.call)
    assert row["legs"][pair.agent_leg]["muted"] and row["epoch"] != pair.epoch
    media = "through" if state == "through" else "hitless"
    until(f"{media} again", 30, lambda: stage.edge_call(pair.call)["media"] == media)

    def survivor_hears() -> bool:
        stage.far.digits({pair.customer: "1", pair.agent_call: "2"})
        return any(d["epoch"] != pair.epoch for d in digits_at_node(stage, pair, PRIMARY, since))

    until("the survivor hears the customer", 30, survivor_hears, 0.4)
    time.sleep(1.5)  # the measured window: nothing but voices
    assert silent(stage, pair, since), "from the mute on, the gap of the takeover included"
    assert not digits_at_node(stage, pair, pair.agent_leg, since), "nobody hears him: Asterisk neither"
    agents_ear = stage.measure(since, [pair])[pair.agent_call]
    assert hears_now(stage.heard_lately([pair])[pair.agent_call], pair.customer, 1.0)
    if state == "talking":
        (heard,) = agents_ear["hears"]
        assert (heard["call"], heard["lost_packets"]) == (pair.customer, 0)

    mute(stage, pair, "--off")
    until("they hear each other", 5, lambda: stage.talking([pair]), 0.1)
    assert not stage.edge_call(pair.call)["legs"][pair.agent_leg]["muted"]
    back = stage.far.now()
    stage.far.digits({pair.agent_call: "3"})
    until(
        "the survivor hears the agent",
        10,
        lambda: [d["digit"] for d in digits_at_node(stage, pair, pair.agent_leg, back)] == ["3"],
    )
