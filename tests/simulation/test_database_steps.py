"""A watcher killed between any two steps is continued by the next one."""

from __future__ import annotations

import pytest

from ari_ha.machines.database_config import ASYNC, FLAVOURS, SYNC
from ari_ha.simulation.database.faults import Odds
from ari_ha.simulation.database.pair import Shape
from ari_ha.simulation.database.run import Plan, run_seed
from ari_ha.simulation.database.steps import SCENARIOS, every_step

STEPS_MIN = {"failover": 12, "switchover": 10, "degrade": 5, "rebuild": 8}


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_at_every_step(scenario: str, flavour: str) -> None:
    bad, kills = [], 0
    for at, after, what, result in every_step(scenario, flavour):
        kills += 1
        if not result.good:
            problems = "; ".join(map(str, result.problems))
            bad.append(f"step {at} ({'after' if after else 'before'} {what}): {problems}")
    assert not bad, "\n".join(bad)
    assert kills >= STEPS_MIN[scenario], kills


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("mode", [SYNC, ASYNC])
def test_a_switchover_opens_one_server_once(flavour: str, mode: str) -> None:
    """The old primary knows that it has handed over before its mirror tells."""
    shape = Shape(flavour=flavour, mode=mode, slow_commits=0.0)
    for seed, lag_s in ((0, 0.0), (1, 0.0), (2, 0.5)):
        odds = Odds(kinds=(), lag_s=lag_s)
        plan = Plan(odds=odds, shape=shape, script=SCENARIOS["switchover"], safety_s=8.0)
        result = run_seed(seed, plan)
        assert result.good and result.reigns == 2 and result.lost == 0, result.problems
        # Its limit in fair weather, and what two watches that lag cost more.
        assert result.longest_gap_s < 1.5 + 2 * lag_s
