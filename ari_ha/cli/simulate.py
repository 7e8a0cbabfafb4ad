"""``ari-ha simulate``: the whole cluster in one process, from a seed, no containers."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ari_ha.cli.output import BAD, GOOD, JsonFlag, fail, print_json, say, table

if TYPE_CHECKING:
    from ari_ha.simulation.run import Plan, Result

STORY_TAIL_LINES = 400
SEEDS_AT_ONCE = 8
DEFAULT_SEEDS = 100
DEFAULT_PLAN = "whole"


@dataclass(frozen=True)
class Wanted:
    """What to do with the results."""

    story: bool
    coverage: bool
    keep: Path | None
    stop: bool
    """At the first seed that fails."""


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
    plan_name: Annotated[
        str,
        typer.Option(
            "--plan",
            help="whole: everything people do, and every fault; everything, full: without the newest faults; "
            "recorded: full, and calls are recorded; hard: no transfers, conferences and calls out; "
            "easy: no IVR, supervisors, slow servers and several faults at once either.",
        ),
    ] = DEFAULT_PLAN,
    only: Annotated[str, typer.Option("--faults", help="Only these faults, comma separated.")] = "",
    pause_s: Annotated[
        float, typer.Option("--pause", help="All those faults, this many seconds apart, in fair weather.")
    ] = 0.0,
    weather: Annotated[
        str, typer.Option("--weather", help="With this weather instead: loss=0.05,lag_s=0.5 and so on.")
    ] = "",
    plant: Annotated[
        str, typer.Option("--plant", help="Puts a known bug in and stops when it is found; list: names them.")
    ] = "",
    coverage: Annotated[
        bool, typer.Option("--coverage", help="Tell in which states calls were when something went wrong.")
    ] = False,
    keep: Annotated[
        Path | None, typer.Option("--keep", help="Write the story of each failing seed into this directory.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", help="Processes at once.")] = 1,
    demo: Annotated[
        bool, typer.Option("--demo", help="Tell how one call survives the death of its Asterisk.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Run seeds of the simulated cluster: random faults, then everything must come
    together. Nothing of it is real: no container, no network, no Asterisk."""
    if demo:
        _demo(seed or 1, as_json)
        return
    plan = _planted(plant, as_json) if plant else _plan(plan_name, only, pause_s, weather, as_json)
    first = 1 if seed is None else seed
    count = seeds or (DEFAULT_SEEDS if seed is None else 1)
    runs = _results(range(first, first + count), plan, jobs)
    _seeds(runs, Tally(plan, first), Wanted(story or count == 1, coverage, keep, bool(plant)), as_json)


def _plan(name: str, only: str, pause_s: float, weather: str, as_json: bool) -> Plan:
    from ari_ha.simulation.faults import KNOWN_KINDS, WEATHER, Odds
    from ari_ha.simulation.run import PLANS

    if name not in PLANS:
        fail(f"no such plan: {name}; there are {', '.join(PLANS)}", as_json, 2)
    chosen = tuple(kind for kind in only.split(",") if kind)
    if unknown := sorted(set(chosen) - set(KNOWN_KINDS)):
        fail(f"no such fault: {', '.join(unknown)}; there are {', '.join(KNOWN_KINDS)}", as_json, 2)
    plan = PLANS[name]
    kinds = chosen or plan.kinds
    odds = Odds(kinds=() if weather and not chosen else kinds, pause_s=pause_s or Odds.pause_s)
    for part in [part for part in weather.split(",") if part]:
        what, _, value = part.partition("=")
        if what not in WEATHER or not value.replace(".", "", 1).replace("e-", "", 1).isdigit():
            fail(f"no such weather: {part}; there is {', '.join(WEATHER)}, each =NUMBER", as_json, 2)
        setattr(odds, what, float(value))
    return replace(plan, kinds=kinds, odds=odds if pause_s or weather else None)


def _planted(name: str, as_json: bool) -> Plan:
    from ari_ha.simulation.planted import PLANTED

    if name == "list":
        for known, bug in PLANTED.items():
            say(f"{known:<18} {bug.what}; found by: {', '.join(bug.rules)}")
        raise typer.Exit(0)
    if name not in PLANTED:
        fail(f"no such bug: {name}; there are {', '.join(PLANTED)}", as_json, 2)
    return PLANTED[name].plan


@dataclass
class Tally:
    """What came of all seeds."""

    plan: Plan
    first: int
    seeds: int = 0
    calls: int = 0
    talked: int = 0
    took_s: float = 0.0
    covered: Counter[tuple[str, str]] = field(default_factory=Counter)
    bad: list[Result] = field(default_factory=list)

    def add(self, result: Result) -> None:
        """One more seed."""
        self.seeds += 1
        self.calls, self.talked = self.calls + result.calls, self.talked + result.talked
        self.covered.update(result.covered)
        if not result.good:
            self.bad.append(result)

    def document(self) -> dict[str, Any]:
        """For programs."""
        from ari_ha.simulation.coverage import never

        covered: dict[str, dict[str, int]] = {}
        for (state, fault), times in sorted(self.covered.items()):
            covered.setdefault(state, {})[fault] = times
        return {
            "simulated": True,
            "seeds": self.seeds,
            "first": self.first,
            "calls": self.calls,
            "talked": self.talked,
            "covered": covered,
            "never_covered": never(self.covered),
            "failed": [_failed(result, self.plan) for result in self.bad],
            "seeds_per_s": round(self.seeds / self.took_s, 1),
        }


def _seeds(runs: Iterable[Result], tally: Tally, wanted: Wanted, as_json: bool) -> None:
    from ari_ha.simulation.run import run_seed

    began, plan, bad = time.perf_counter(), tally.plan, tally.bad
    for result in runs:
        tally.add(result)
        if not result.good:
            if not as_json:
                _say_failure(result, plan)
            if wanted.keep is not None:
                _keep(result, plan, wanted.keep)
            if wanted.stop:
                break
    tally.took_s = time.perf_counter() - began
    if as_json:
        print_json(tally.document())
        raise typer.Exit(1 if bad else 0)
    if bad or wanted.story:
        told = run_seed(bad[0].seed if bad else tally.first, plan, tell=True)
        for line in told.story[-STORY_TAIL_LINES:]:
            say(str(line))
    if wanted.coverage:
        _say_coverage(tally)
    text = f"{tally.seeds} seeds, {tally.calls} calls, {tally.talked} talked: {len(bad)} failed"
    say(f"SIMULATED  {text} ({tally.seeds / tally.took_s:.1f} seeds/s)", BAD if bad else GOOD)
    raise typer.Exit(1 if bad else 0)


def _results(seeds: range, plan: Plan, jobs: int) -> Iterator[Result]:
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
    from ari_ha.simulation.faults import WEATHER, Odds
    from ari_ha.simulation.run import PLANS

    words = ["ari-ha", "simulate", "--seed", str(seed)]
    if plan.planted:
        return " ".join([*words, "--plant", plan.planted])
    people = attrgetter("hard", "full", "records")
    alike = [(name, known) for name, known in PLANS.items() if people(known) == people(plan)]
    name, usual = next((one for one in alike if one[1].kinds == plan.kinds), alike[0])
    kinds = plan.odds.kinds if plan.odds else plan.kinds
    words += ["--plan", name] if name != DEFAULT_PLAN else []
    words += ["--faults", ",".join(kinds)] if kinds and (plan.odds or kinds != usual.kinds) else []
    if plan.odds:
        given = {what: getattr(plan.odds, what) for what in WEATHER}
        given = {what: value for what, value in given.items() if value != getattr(Odds, what)}
        only_pause = bool(kinds) and set(given) <= {"pause_s"}
        weather = ",".join(f"{what}={value!r}" for what, value in given.items()) or "loss=0.0"
        words += ["--pause", f"{plan.odds.pause_s:g}"] if only_pause else ["--weather", weather]
    return " ".join(words)


def _say_failure(result: Result, plan: Plan) -> None:
    say(f"seed {result.seed} failed ({result.odds})", BAD)
    for problem in result.problems:
        say(f"  {problem}", BAD)
    say(f"  again, with its story: {replay(result.seed, plan)}")


def _keep(result: Result, plan: Plan, directory: Path) -> None:
    """One file per failing seed: how to run it again, what is wrong, and its story."""
    from ari_ha.simulation.run import run_seed

    directory.mkdir(parents=True, exist_ok=True)
    lines = [replay(result.seed, plan), result.odds, *map(str, result.problems), ""]
    lines += map(str, run_seed(result.seed, plan, tell=True).story)
    (directory / f"seed-{result.seed}.txt").write_text("\n".join(lines) + "\n")


def _say_coverage(tally: Tally) -> None:
    from ari_ha.simulation.coverage import table as rows

    head = ("state of a call when something went wrong", "times", "kinds of faults", "most often")
    table(f"coverage of {tally.seeds} seeds", head, rows(tally.covered))


def _failed(result: Result, plan: Plan) -> dict[str, Any]:
    return {
        "seed": result.seed,
        "odds": result.odds,
        "faults": result.faults,
        "problems": [{"rule": p.rule, "text": p.text, "at_s": round(p.at_s, 3)} for p in result.problems],
        "replay": replay(result.seed, plan),
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
