"""``ari-ha simulate``: what it prints, and its exit status."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from ari_ha.cli.main import app
from ari_ha.cli.simulate import replay
from ari_ha.simulation.faults import Odds
from ari_ha.simulation.run import Plan


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
    assert replay(5, Plan()) == "ari-ha simulate --seed 5 --easy"
    assert replay(5, Plan(kinds=("app-kill",))) == "ari-ha simulate --seed 5 --easy --faults app-kill"
    plan = Plan(kinds=("app-kill",), odds=Odds(kinds=("app-kill",), pause_s=2.5))
    assert replay(5, plan) == "ari-ha simulate --seed 5 --easy --faults app-kill --pause 2.5"


def test_the_demo_survives_and_says_that_it_is_simulated() -> None:
    status, text = run("--demo", "--json")
    document = json.loads(text)
    assert status == 0 and document["simulated"] and document["survived"]
    assert document["lost_audio_ms"] == {"to_customer": 0.0, "to_agent": 0.0}
    assert document["phone_messages"] == 0
    told = [line for line in run("--demo")[1].splitlines() if line.strip()]
    assert told and all(line.startswith("SIMULATED") for line in told)
