"""One run of the simulator: a seed in, a verdict out, the same every time.

Safety first: while people call, anything in the seed's mix goes wrong, and nothing that
must not happen may. Then faults stop and everything is mended: the cluster must come
together by itself, and leave nothing behind when people have gone.
"""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ari_ha.simulation.checkers import Checkers, Problem
from ari_ha.simulation.cluster import Cluster, Shape
from ari_ha.simulation.coverage import Coverage, Covered
from ari_ha.simulation.faults import (
    EVERYTHING_KINDS,
    FULL_KINDS,
    HARD_KINDS,
    KINDS,
    KNOWN_KINDS,
    Faults,
    Odds,
    draw_odds,
)
from ari_ha.simulation.people import Habits, People
from ari_ha.simulation.world import StoryLine, World

SETTLE_S = 2.0
"""From the start until everything is connected."""
SAFETY_MIN_S, SAFETY_MAX_S = 10.0, 20.0
COME_TOGETHER_S = 8.0
"""After the mending, people who talk hear each other by then."""
GO_HOME_S = 3.0
STALE_S = 30.0
"""Nothing may be left of a call this long after it."""
SWEPT_S = 210.0
"""Records of no call are gone by then (a node looks every minute and waits for two)."""


@dataclass
class Result:
    """What became of one seed."""

    seed: int
    problems: list[Problem] = field(default_factory=list)
    odds: str = ""
    faults: list[str] = field(default_factory=list)
    calls: int = 0
    talked: int = 0
    unserved: int = 0
    covered: Covered = field(default_factory=Counter)
    happened: int = 0
    took_s: float = 0.0
    story: list[StoryLine] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """No rule was broken."""
        return not self.problems


@dataclass(frozen=True)
class Plan:
    """What kind of runs are wanted."""

    kinds: tuple[str, ...] = KINDS
    plant: Callable[[Cluster], None] | None = None
    """Puts a bug into the cluster, to see that the checkers see it."""
    planted: str = ""
    """Its name."""
    odds: Odds | None = None
    """Instead of odds drawn from the seed."""
    hard: bool = False
    """People use the IVR and are supervised, and `HARD_KINDS` are in the mix."""
    records: bool = False
    """The queue's conversations are recorded."""
    full: bool = False
    """Agents call out, consult, transfer and confer, and people act just when something
    goes wrong. With `hard`, everything there is."""


EASY = Plan()
HARD = Plan(kinds=(*KINDS, *HARD_KINDS), hard=True)
FULL = Plan(kinds=FULL_KINDS, hard=True, full=True)
RECORDED = replace(FULL, records=True)
EVERYTHING = replace(FULL, kinds=EVERYTHING_KINDS)
"""Also what came after the first seeds of the full plan were kept by name: a kind more is another draw."""
WHOLE = replace(FULL, kinds=KNOWN_KINDS)
"""And what came after those of `EVERYTHING` were."""
PLANS = {
    "easy": EASY, "hard": HARD, "full": FULL, "recorded": RECORDED, "everything": EVERYTHING, "whole": WHOLE,
}  # fmt: skip


def run_seed(seed: int, plan: Plan = Plan(), tell: bool = False) -> Result:
    """Runs one seed. ``tell`` keeps the story, which costs time."""
    began = time.perf_counter()
    world = World(seed, tell=tell)
    cluster = Cluster(world, _draw_shape(world, plan))
    people = People(cluster, _draw_habits(world, plan))
    odds = plan.odds or draw_odds(cluster, plan.kinds, plan.full)
    faults = Faults(cluster, odds)
    checkers = Checkers(cluster, people, faults)
    coverage = Coverage(cluster, people.circles)
    faults.on_fault += [coverage.fault, lambda kind: people.work.startle()]
    for phones in (cluster.carrier, cluster.phones):
        phones.on_act.append(lambda talk, what: faults.aim(what))
    result = Result(seed, odds=str(odds))
    world.say("run", f"seed {seed}: {odds}")
    try:
        _run(world, cluster, people, faults, checkers, plan)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error} ({where.filename.rsplit('/', 1)[-1]}:{where.lineno})"
        world.say("run", traceback.format_exc())
        checkers.problem("nothing breaks", text)
    result.problems = checkers.problems
    result.faults = faults.done
    result.calls = len(people.customers)
    result.talked = sum(people.answered.values())
    result.unserved = checkers.unserved
    result.covered = coverage.counted
    result.happened = world.happened
    result.took_s = time.perf_counter() - began
    result.story = world.story
    return result


def _run(
    world: World, cluster: Cluster, people: People, faults: Faults, checkers: Checkers, plan: Plan
) -> None:
    if plan.plant is not None:
        plan.plant(cluster)
    cluster.start()
    world.run_until(SETTLE_S)
    checkers.begin()
    people.begin(world.now)
    people.begin_pauses(world.now)
    people.begin_supervision(world.now)
    people.work.begin(world.now)
    faults.begin()
    world.run_until(world.now + world.between(SAFETY_MIN_S, SAFETY_MAX_S))
    faults.stop()
    world.run_until(world.now + COME_TOGETHER_S)
    people.send_home(GO_HOME_S)
    world.run_until(world.now + GO_HOME_S + STALE_S)
    people.send_home(0.1)
    if not people.everybody_over() or people.last_over_s() > world.now - STALE_S + GO_HOME_S:
        # somebody called, or was rung, after the others had been sent home
        world.run_until(world.now + STALE_S)
    checkers.final()
    if checkers.records_left():
        world.run_until(world.now + SWEPT_S)
        checkers.swept()


def _draw_shape(world: World, plan: Plan) -> Shape:
    full = plan.full
    return Shape(
        records=plan.records,
        dials_out=full,
        pair=full,
        refusals=not full,
        nodes=world.rng.choice((2, 2, 3)),
        agents=world.rng.choice((2, 3, 4) if full else (1, 2, 3)),
        clock_skew=world.rng.choice((0.0, 0.0, 0.001)),
        wall_offset_s=world.rng.choice((0.0, 0.05, 0.5)),
    )


def _draw_habits(world: World, plan: Plan) -> Habits:
    hard, full = plan.hard, plan.full
    return Habits(
        hold_max_s=world.rng.choice((1.5, 15.0)) if full else 1.5,
        arrive_s=world.rng.choice((3.0, 12.0)) if full else 12.0,
        works=world.rng.choice((0.5, 0.95)) if full else 0.0,
        calls_out=world.rng.choice((0, 1, 3)) if full else 0,
        startled=world.rng.choice((0.0, 0.1, 0.25)) if full else 0.0,
        ivr=world.rng.choice((0.3, 0.8)) if hard else 0.0,
        supervises=world.rng.choice((0, 1, 3)) if hard else 0,
        calls=world.rng.choice((2, 3, 5) if full else (1, 2, 3, 5)),
        ignores=world.rng.choice((0.0, 0.05, 0.1 if full else 0.3)),
        rejects=world.rng.choice((0.0, 0.05, 0.15 if full else 0.3)),
        holds=world.rng.choice((0.0, 0.2, 0.8)),
        talk_max_s=world.rng.choice((15.0, 40.0, 60.0) if full else (6.0, 30.0, 60.0)),
        pauses=world.rng.choice((0, 0, 1, 3)),
    )
