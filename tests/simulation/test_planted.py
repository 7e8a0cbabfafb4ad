"""The checkers find the bugs they are there for, and only when they are there."""

from __future__ import annotations

import dataclasses

import pytest

from ari_ha.simulation.planted import PLANTED, Planted
from ari_ha.simulation.run import run_seed

SEEDS_MAX = 100


def first_found(planted: Planted) -> int | None:
    """The first seed in which a rule meant for this bug speaks."""
    for seed in range(SEEDS_MAX):
        result = run_seed(seed, planted.plan)
        if any(problem.rule in planted.rules for problem in result.problems):
            return seed
    return None


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(name: str) -> None:
    planted = PLANTED[name]
    seed = first_found(planted)
    assert seed is not None, f"{SEEDS_MAX} seeds with {planted.what}, and no checker noticed"
    clean = run_seed(seed, dataclasses.replace(planted.plan, plant=None))
    assert not [p for p in clean.problems if p.rule in planted.rules], "it fails without the bug too"
