"""``ari-ha simulate``: what it prints, and its exit status."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ari_ha.cli.main import app
from ari_ha.cli.simulate import DEFAULT_PLAN, STORY_TAIL_LINES, replay
from ari_ha.simulation.faults import KNOWN_KINDS, Odds
from ari_ha.simulation.planted import PLANTED
from ari_ha.simulation.run import EASY, EVERYTHING, FULL, HARD, PLANS, RECORDED, WHOLE, Plan, run_seed

TIMED = re.compile(r" *\d+\.\d{4}  ")


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["simulate", *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_seeds_without_faults_are_good() -> None:
    status, text = run("--seeds", "2", "--faults", "compaction", "--json")
    document = json.loads(text)
    assert status == 0
    assert document["simulated"] and document["seeds"] == 2 and document["failed"] == []


def test_one_seed_tells_its_story() -> None:
    status, text = run("--seed", "7", "--faults", "compaction")
    assert status == 0
    assert "carrier-call-1 dials" in text and "SIMULATED  1 seeds" in text


def test_an_unknown_fault_is_an_error() -> None:
    status, text = run("--faults", "rain")
    assert status == 2 and "no such fault: rain" in text


def test_the_replay_command_names_the_faults_chosen() -> None:
    assert replay(5, WHOLE) == "ari-ha simulate --seed 5"
    assert replay(5, FULL) == "ari-ha simulate --seed 5 --plan full"
    assert replay(5, EASY) == "ari-ha simulate --seed 5 --plan easy"
    assert replay(5, RECORDED) == "ari-ha simulate --seed 5 --plan recorded"
    assert replay(5, EVERYTHING) == "ari-ha simulate --seed 5 --plan everything"
    assert replay(5, Plan(kinds=("app-kill",))) == "ari-ha simulate --seed 5 --plan easy --faults app-kill"
    plan = Plan(kinds=("app-kill",), odds=Odds(kinds=("app-kill",), pause_s=2.5))
    assert replay(5, plan) == "ari-ha simulate --seed 5 --plan easy --faults app-kill --pause 2.5"


def test_nothing_is_left_out_that_was_not_asked_for() -> None:
    """But recording: it would be another run of every seed."""
    usual = PLANS[DEFAULT_PLAN]
    for plan in PLANS.values():
        assert {*plan.kinds} <= {*usual.kinds} == {*KNOWN_KINDS}
        assert (plan.hard, plan.full) <= (usual.hard, usual.full) == (True, True)


@pytest.mark.parametrize(
    "plan",
    [
        EASY,
        HARD,
        FULL,
        WHOLE,
        RECORDED,
        Plan(kinds=("app-kill", "drain")),
        Plan(kinds=("app-kill",), odds=Odds(kinds=("app-kill",), pause_s=2.5)),
        replace(HARD, odds=Odds(kinds=HARD.kinds, pause_s=2.0, loss=0.1 / 3)),
        replace(FULL, odds=Odds(kinds=(), lag_s=0.5, doubt=0.3)),
        replace(RECORDED, odds=Odds(kinds=("app-kill",), pause_s=2.5)),
        PLANTED["late-bye"].plan,
    ],
    ids=[
        "easy",
        "hard",
        "full",
        "whole",
        "recorded",
        "kinds",
        "pause",
        "weather",
        "no faults",
        "recorded pause",
        "planted",
    ],
)
def test_the_replay_command_runs_the_same_seed_in_the_same_way(plan: Plan) -> None:
    """The story it tells is the story of the seed that failed."""
    command = shlex.split(replay(3, plan))
    result = CliRunner().invoke(app, [*command[1:], "--story"])
    story = [str(line) for line in run_seed(3, plan, tell=True).story][-STORY_TAIL_LINES:]
    told = [line for line in result.output.splitlines() if TIMED.match(line)]
    assert told == [line for line in "\n".join(story).splitlines() if TIMED.match(line)]


def test_a_failing_seed_says_how_to_see_it_again_and_is_kept_with_its_story(tmp_path: Path) -> None:
    status, text = run("--plant", "late-bye", "--seeds", "40", "--keep", str(tmp_path))
    assert status == 1
    (kept,) = tmp_path.iterdir()
    lines = kept.read_text().splitlines()
    seed = int(kept.stem.removeprefix("seed-"))
    assert lines[0] == f"ari-ha simulate --seed {seed} --plant late-bye"
    assert lines[0] in text and any("only people end calls" in line for line in lines)
    again, told = run(*shlex.split(lines[0])[2:])
    assert again == 1 and any(line in told for line in lines if "checker" in line)


def test_coverage_is_told() -> None:
    status, text = run("--seeds", "3", "--coverage", "--json")
    document = json.loads(text)
    assert status == 0 and document["covered"] and isinstance(document["never_covered"], list)
    assert "talking" in run("--seeds", "3", "--coverage")[1]


@pytest.mark.parametrize(
    "words", [("--plan", "rain"), ("--weather", "sun=1"), ("--weather", "loss=much"), ("--plant", "rain")]
)
def test_what_there_is_not_is_an_error(words: tuple[str, str]) -> None:
    status, text = run(*words)
    assert status == 2 and "no such" in text


def test_the_demo_survives_and_says_that_it_is_simulated() -> None:
    status, text = run("--demo", "--json")
    document = json.loads(text)
    assert status == 0 and document["simulated"] and document["survived"]
    assert document["lost_audio_ms"] == {"to_customer": 0.0, "to_agent": 0.0}
    assert document["phone_messages"] == 0
    told = [line for line in run("--demo")[1].splitlines() if line.strip()]
    assert told and all(line.startswith("SIMULATED") for line in told)
