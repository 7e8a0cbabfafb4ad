"""``ari-ha simulate``: the whole cluster in one process, from a seed, no containers."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ari_ha.cli.output import BAD, GOOD, JsonFlag, fail, print_json, say

if TYPE_CHECKING:
    from ari_ha.simulation.run import Plan, Result

STORY_TAIL_LINES = 400
SEEDS_AT_ONCE = 8
DEFAULT_SEEDS = 100


def register(app: typer.Typer) -> None:
    """Adds ``simulate`` to the command line."""
    app.command("simulate")(simulate)


def simulate(
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="How many seeds to run (100, or 1 with --seed).")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="The first seed; alone: this one.")] = None,
    story: Annotated[
        bool, typer.Option("--story", help="Tell what happened, even when all is well.")
    ] = False,
    only: Annotated[str, typer.Option("--faults", help="Only these faults, comma separated.")] = "",
    pause_s: Annotated[
        float, typer.Option("--pause", help="All those faults, this many seconds apart, in fair weather.")
    ] = 0.0,
    hard: Annotated[
        bool,
        typer.Option(
            "--hard/--easy", help="With IVR, supervisors, slow servers, several faults at once; or not."
        ),
    ] = True,
    jobs: Annotated[int, typer.Option("--jobs", help="Processes at once.")] = 1,
    demo: Annotated[
        bool, typer.Option("--demo", help="Tell how one call survives the death of its Asterisk.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Run seeds of the simulated cluster: random faults, then everything must come
    together. Nothing of it is real: no container, no network, no Asterisk."""
    from ari_ha.simulation.faults import HARD_KINDS, KINDS, PURPOSE_KINDS, REHOME_KINDS, Odds
    from ari_ha.simulation.run import Plan

    if demo:
        _demo(seed or 1, as_json)
        return
    known = (*KINDS, *HARD_KINDS, *PURPOSE_KINDS, *REHOME_KINDS)
    unknown = set(only.split(",")) - {"", *known}
    if unknown:
        fail(f"no such fault: {', '.join(sorted(unknown))}; there are {', '.join(known)}", as_json, 2)
    kinds = tuple(only.split(",")) if only else (*KINDS, *HARD_KINDS) if hard else KINDS
    first = 1 if seed is None else seed
    count = seeds or (DEFAULT_SEEDS if seed is None else 1)
    plan = Plan(kinds=kinds, odds=Odds(kinds=kinds, pause_s=pause_s) if pause_s else None, hard=hard)
    _seeds(range(first, first + count), plan, jobs, story or count == 1, as_json)


def _seeds(seeds: Sequence[int], plan: Plan, jobs: int, story: bool, as_json: bool) -> None:
    from ari_ha.simulation.run import run_seed

    began = time.perf_counter()
    bad: list[Result] = []
    calls = talked = 0
    for result in _results(seeds, plan, jobs):
        calls, talked = calls + result.calls, talked + result.talked
        if not result.good:
            bad.append(result)
            if not as_json:
                _say_failure(result, plan, seeds)
    took = time.perf_counter() - began
    told = run_seed(bad[0].seed if bad else seeds[0], plan, tell=True) if bad or story else None
    if as_json:
        print_json(_document(seeds, bad, calls, talked, took, plan))
    else:
        if told is not None:
            for line in told.story[-STORY_TAIL_LINES:]:
                say(str(line))
        text = f"{len(seeds)} seeds, {calls} calls, {talked} talked: {len(bad)} failed"
        say(f"SIMULATED  {text} ({len(seeds) / took:.1f} seeds/s)", BAD if bad else GOOD)
    raise typer.Exit(1 if bad else 0)


def _results(seeds: Sequence[int], plan: Plan, jobs: int) -> Any:
    from ari_ha.simulation.run import run_seed

    if jobs <= 1:
        yield from (run_seed(seed, plan) for seed in seeds)
        return
    from concurrent.futures import ProcessPoolExecutor
    from functools import partial

    with ProcessPoolExecutor(min(jobs, os.cpu_count() or 1)) as pool:
        yield from pool.map(partial(run_seed, plan=plan), seeds, chunksize=SEEDS_AT_ONCE)


def replay(seed: int, plan: Plan) -> str:
    """The command that runs one seed again, with its story."""
    from ari_ha.simulation.faults import HARD_KINDS, KINDS

    usual = (*KINDS, *HARD_KINDS) if plan.hard else KINDS
    chosen = "" if plan.kinds == usual else f" --faults {','.join(plan.kinds)}"
    pause = f" --pause {plan.odds.pause_s:g}" if plan.odds else ""
    easy = "" if plan.hard else " --easy"
    return f"ari-ha simulate --seed {seed}{easy}{chosen}{pause}"


def _say_failure(result: Result, plan: Plan, seeds: Sequence[int]) -> None:
    say(f"seed {result.seed} failed ({result.odds})", BAD)
    for problem in result.problems:
        say(f"  {problem}", BAD)
    if len(seeds) > 1:
        say(f"  again, with its story: {replay(result.seed, plan)}")


def _document(
    seeds: Sequence[int], bad: list[Result], calls: int, talked: int, took: float, plan: Plan
) -> dict[str, Any]:
    return {
        "simulated": True,
        "seeds": len(seeds),
        "first": seeds[0],
        "calls": calls,
        "talked": talked,
        "failed": [
            {
                "seed": result.seed,
                "odds": result.odds,
                "faults": result.faults,
                "problems": [
                    {"rule": p.rule, "text": p.text, "at_s": round(p.at_s, 3)} for p in result.problems
                ],
                "replay": replay(result.seed, plan),
            }
            for result in bad
        ],
        "seeds_per_s": round(len(seeds) / took, 1),
    }


def _demo(seed: int, as_json: bool) -> None:
    from ari_ha.simulation.demo import tell_demo

    told = tell_demo(seed)
    if as_json:
        print_json(told.document())
    else:
        for step in told.steps:
            say(str(step))
        say(told.verdict, GOOD if told.survived else BAD)
    raise typer.Exit(0 if told.survived else 1)
