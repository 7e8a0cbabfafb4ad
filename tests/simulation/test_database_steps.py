"""A watcher killed between any two steps is continued by the next one."""

from __future__ import annotations

import pytest

from ari_ha.machines.database_config import FLAVOURS
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
