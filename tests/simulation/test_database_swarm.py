"""Pairs of databases in bad days: seeds, single faults, planted bugs."""

from __future__ import annotations

import pytest

from ari_ha.machines.database_config import ASYNC, CIRCULAR, FLAVOURS, MARIADB, MYSQL, STRICT, SYNC
from ari_ha.simulation.database.__main__ import HARD
from ari_ha.simulation.database.faults import KINDS, Odds
from ari_ha.simulation.database.pair import Shape
from ari_ha.simulation.database.planted import PLANTED
from ari_ha.simulation.database.run import Plan, Result, run_seed

SWARM_SEEDS = 75
SEEDS_PER_BLOCK = 15
PLANTED_SEEDS_MAX = 40


def verdict(result: Result) -> str:
    """What is wrong, and how to see it again."""
    lines = [f"seed {result.seed} ({result.shape})", *map(str, result.problems)]
    return "\n".join([*lines, f"again: python -m ari_ha.simulation.database --seed {result.seed}"])


@pytest.mark.parametrize("first", range(1, 1 + SWARM_SEEDS, SEEDS_PER_BLOCK))
def test_swarm(first: int) -> None:
    results = [run_seed(seed) for seed in range(first, first + SEEDS_PER_BLOCK)]
    bad = [result for result in results if not result.good]
    assert not bad, "\n\n".join(map(verdict, bad))
    assert sum(result.acks for result in results) > 1000


@pytest.mark.parametrize("kind", KINDS)
def test_one_kind_of_fault(kind: str) -> None:
    plan = Plan(odds=Odds(kinds=(kind,), pause_s=3.0))
    results = [run_seed(seed, plan) for seed in (1, 2)]
    bad = [result for result in results if not result.good]
    assert not bad, "\n\n".join(map(verdict, bad))
    assert any(result.faults for result in results)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("mode", [SYNC, STRICT, ASYNC])
def test_fair_weather_has_one_promotion(flavour: str, mode: str) -> None:
    plan = Plan(odds=Odds(kinds=()), shape=Shape(flavour=flavour, mode=mode))
    result = run_seed(5, plan)
    assert result.good, verdict(result)
    assert result.reigns == 1 and result.longest_gap_s < 1.5


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(name: str) -> None:
    bug = PLANTED[name]
    for seed in range(PLANTED_SEEDS_MAX):
        if any(problem.rule in bug.rules for problem in run_seed(seed, bug.plan).problems):
            return
    pytest.fail(f"{bug.what}: not seen in {PLANTED_SEEDS_MAX} seeds")


def test_a_seed_is_the_same_every_time() -> None:
    one, two = run_seed(11, tell=True), run_seed(11, tell=True)
    assert [str(line) for line in one.story] == [str(line) for line in two.story]


KEPT = {
    "a lead of an older lease, with a mirror that lags": 25,
    "a rebuild whose end etcd did not hear of copies again": 249,
    "the same, with a strict pair": 876,
    "a revoked lease without confirmations": 120,
}
"""Seeds that failed once, by what was wrong."""


def test_a_start_told_too_late() -> None:
    """A server that dies while it is said to have started is started again."""
    plan = Plan(odds=Odds(KINDS, *HARD))
    result = run_seed(61528, plan)
    assert result.good, verdict(result)


@pytest.mark.parametrize("name", KEPT)
def test_what_failed_once(name: str) -> None:
    result = run_seed(KEPT[name])
    assert result.good, verdict(result)


def test_circular_keeps_the_tail_without_confirmations() -> None:
    """What the dead primary had written alone is there again when it is back."""
    shape = Shape(flavour=MYSQL, shape=CIRCULAR, mode=ASYNC)
    for flavour in (MYSQL, MARIADB):
        shape = Shape(flavour=flavour, shape=CIRCULAR, mode=ASYNC)
        plan = Plan(odds=Odds(kinds=("cut-peer", "server-kill"), pause_s=2.0), shape=shape, safety_s=15.0)
        for seed in range(3):
            result = run_seed(seed, plan)
            assert result.good, verdict(result)
            assert result.lost == 0
