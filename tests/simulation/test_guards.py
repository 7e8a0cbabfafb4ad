"""Edge guards in bad days: seeds, single faults, planted bugs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ari_ha.core.ports.guard import OpenFence
from ari_ha.machines.guard import GuardMachine
from ari_ha.simulation.guard_pair import GuardPair
from ari_ha.simulation.guard_run import KINDS, GuardPlan, GuardResult, run_guards

SEEDS = 40
PLANTED_SEEDS_MAX = 25


def verdict(result: GuardResult) -> str:
    return "\n".join([f"seed {result.seed}", *result.problems, *result.faults])


@pytest.mark.parametrize("first", range(0, SEEDS, 10))
def test_swarm(first: int) -> None:
    bad = [result for result in map(run_guards, range(first, first + 10)) if result.problems]
    assert not bad, "\n\n".join(map(verdict, bad))


@pytest.mark.parametrize("kind", KINDS)
def test_one_kind_of_fault(kind: str) -> None:
    results = [run_guards(seed, GuardPlan(kinds=(kind,))) for seed in (1, 2)]
    bad = [result for result in results if result.problems]
    assert not bad, "\n\n".join(map(verdict, bad))


def test_fair_weather_has_one_owner() -> None:
    result = run_guards(3, GuardPlan(kinds=()))
    assert not result.problems and result.revisions == 1, verdict(result)


def test_heartbeats_that_never_arrive_move_the_address_once() -> None:
    """Two that cannot hear each other do not take it from each other in turn."""
    result = run_guards(4, GuardPlan(kinds=(), script=lambda pair: pair.deafen(), safety_s=40))
    assert not result.problems and result.revisions == 2, verdict(result)
    assert result.overlap_s <= 0.1


def test_a_switchover_never_leaves_both() -> None:
    result = run_guards(5, GuardPlan(kinds=("switchover",), pause_s=2))
    assert not result.problems and result.revisions >= 4, verdict(result)


def test_a_seed_is_the_same_every_time() -> None:
    one, two = run_guards(11, tell=True), run_guards(11, tell=True)
    assert [str(line) for line in one.story] == [str(line) for line in two.story]


def _thaws(plant: Callable[[GuardPair], None] | None = None) -> int:
    plan = GuardPlan(kinds=("host-freeze",), pause_s=2.0, plant=plant)
    return sum(run_guards(seed, plan).stale_openings for seed in range(10))


def test_a_thawed_owner_does_not_open_its_fence() -> None:
    """Not for a moment: what waited in its sockets is older than its sleep."""
    assert _thaws() == 0
    assert _thaws(_each_guard(_sleep_unnoticed)) > 0


def _each_guard(change: Callable[[GuardMachine], None]) -> Callable[[GuardPair], None]:
    return lambda pair: pair.on_guard.append(change)


def _fence_for_ever(machine: GuardMachine) -> None:
    """The dead man's switch without its spring."""
    handle = machine.handle
    machine.handle = lambda event, now: [  # type: ignore[method-assign]
        OpenFence(ttl_s=1e6) if isinstance(effect, OpenFence) else effect for effect in handle(event, now)
    ]


def _sleep_unnoticed(machine: GuardMachine) -> None:
    """It does not notice that it stood still."""
    machine._stood_still = lambda lag_s, now: None  # type: ignore[method-assign]


def _never_lets_go(machine: GuardMachine) -> None:
    """It believes in itself."""
    machine._step_down = lambda why, now: None  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("kinds", "plant"),
    [
        (("host-freeze",), _each_guard(_fence_for_ever)),
        (("guard-kill",), _each_guard(_fence_for_ever)),
        (("heartbeats-lost", "switchover"), _each_guard(_never_lets_go)),
    ],
    ids=["a fence that stays open", "an orphaned fence", "never lets go"],
)
def test_a_planted_bug_is_found(kinds: tuple[str, ...], plant: Callable[[GuardPair], None]) -> None:
    plan = GuardPlan(kinds=kinds, pause_s=2.0, plant=plant)
    found = any(_broken(seed, plan) for seed in range(PLANTED_SEEDS_MAX))
    assert found, f"not seen in {PLANTED_SEEDS_MAX} seeds"


def _broken(seed: int, plan: GuardPlan) -> bool:
    try:
        return bool(run_guards(seed, plan).problems)
    except AssertionError:
        return True
