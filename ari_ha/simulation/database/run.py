"""One run: a seed in, a verdict out, the same every time."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from ari_ha.machines.database_config import ASYNC, CIRCULAR, MARIADB, MYSQL, REPLICA, STRICT, SYNC
from ari_ha.simulation.database.checkers import Checkers, Problem
from ari_ha.simulation.database.clients import Clients
from ari_ha.simulation.database.faults import KINDS, Faults, Odds
from ari_ha.simulation.database.pair import Pair, Shape
from ari_ha.simulation.world import StoryLine, World

SETTLE_S = 4.0
SAFETY_MIN_S, SAFETY_MAX_S = 12.0, 30.0
TOGETHER_S = 40.0
LOOK_EVERY_S = 1.0
UNWATCHED = frozenset({"watcher-kill", "watcher-freeze", "host-freeze", "host-kill"})
LAST_LOOKS_MAX = 500
QUIET_S = 4.0
"""Without writes, so that both servers can be compared."""


@dataclass
class Result:
    """What became of one seed."""

    seed: int
    problems: list[Problem] = field(default_factory=list)
    shape: str = ""
    faults: list[str] = field(default_factory=list)
    acks: int = 0
    reigns: int = 0
    lost: int = 0
    """Confirmed writes that are not there in the end (allowed without confirmations)."""
    together_s: float = 0.0
    longest_gap_s: float = 0.0
    happened: int = 0
    took_s: float = 0.0
    story: list[StoryLine] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """No rule was broken."""
        return not self.problems


@dataclass(frozen=True)
class Plan:
    """What kind of runs."""

    kinds: tuple[str, ...] = KINDS
    odds: Odds | None = None
    shape: Shape | None = None
    plant: Callable[[Pair], None] | None = None
    script: Callable[[Pair, Faults], None] | None = None
    """Called when the pair has settled, beside the odds."""
    safety_s: float = 0.0


def run_seed(seed: int, plan: Plan = Plan(), tell: bool = False) -> Result:
    """Runs one seed."""
    began = time.perf_counter()
    world = World(seed, tell=tell)
    shape = plan.shape or _draw_shape(world)
    pair = Pair(world, shape)
    if plan.plant is not None:
        plan.plant(pair)
    odds = plan.odds or _draw_odds(world, plan.kinds)
    clients = Clients(pair, count=3, pause_s=world.rng.choice((0.08, 0.2, 0.5)))
    faults = Faults(pair, odds)
    checkers = Checkers(pair, clients)
    result = Result(seed, shape=f"{shape.flavour} {shape.shape} {shape.mode} {odds}")
    world.say("run", f"seed {seed}: {result.shape}")
    try:
        _run(world, pair, clients, faults, checkers, plan, result)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        world.say("run", traceback.format_exc())
        checkers.problem("nothing breaks", f"{type(error).__name__}: {error} ({where.name}:{where.lineno})")
    result.problems, result.faults, result.acks = checkers.problems, faults.done, len(clients.acks)
    result.lost = checkers.lost
    result.reigns, result.longest_gap_s = pair.reign, clients.longest_gap_s
    result.happened, result.story = world.happened, world.story
    result.took_s = time.perf_counter() - began
    return result


def _run(
    world: World,
    pair: Pair,
    clients: Clients,
    faults: Faults,
    checkers: Checkers,
    plan: Plan,
    result: Result,
) -> None:
    pair.start()
    world.run_until(SETTLE_S)
    clients.begin()
    faults.begin()
    if plan.script is not None:
        plan.script(pair, faults)
    world.run_until(world.now + (plan.safety_s or world.between(SAFETY_MIN_S, SAFETY_MAX_S)))
    faults.stop()
    stopped = world.now
    while world.now < stopped + TOGETHER_S:
        world.run_until(world.now + LOOK_EVERY_S)
        if not checkers.together():
            break
    result.together_s = world.now - stopped
    before = len(clients.acks)
    world.run_until(world.now + LOOK_EVERY_S)
    if len(clients.acks) == before:
        checkers.problem("comes together", "nobody can write")
    clients.writing = False
    world.run_until(world.now + QUIET_S)
    # What was found only now is mended too; the heartbeat goes on, so look when nothing
    # is under way.
    for _ in range(LAST_LOOKS_MAX):
        one, two = pair.servers.values()
        if one.disk.has == two.disk.has and not checkers.together():
            break
        world.run_until(world.now + 0.07)
    checkers.unwatched = bool(UNWATCHED & set(faults.done))
    checkers.final()


def _draw_shape(world: World) -> Shape:
    shape = world.rng.choice((REPLICA, REPLICA, REPLICA, CIRCULAR))
    return Shape(
        flavour=world.rng.choice((MYSQL, MARIADB)),
        shape=shape,
        mode=world.rng.choice((SYNC, SYNC, SYNC, STRICT, ASYNC)),
        clock_skew=world.rng.choice((0.0, 0.0, 0.001)),
    )


def _draw_odds(world: World, kinds: tuple[str, ...]) -> Odds:
    rng = world.rng
    mix = kinds if rng.random() < 0.3 else tuple(rng.sample(kinds, min(len(kinds), rng.choice((1, 2, 3, 5)))))
    return Odds(
        kinds=mix,
        pause_s=rng.choice((1.5, 4.0, 8.0)),
        lost=rng.choice((0.0, 0.0, 0.03)),
        lag_s=rng.choice((0.0, 0.0, 0.5)),
    )
