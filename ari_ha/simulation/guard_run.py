"""One run of the guard pair: a seed in, a verdict out, the same every time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ari_ha.machines.guard_config import GuardTimings
from ari_ha.simulation.guard_pair import EDGES, GuardPair
from ari_ha.simulation.world import StoryLine, World

KINDS = (
    "host-kill",
    "host-freeze",
    "guard-kill",
    "guard-freeze",
    "edge-kill",
    "edge-freeze",
    "cut",
    "heartbeats-lost",
    "etcd-away",
    "etcd-cut",
    "switchover",
)
SETTLE_S = 6.0
SAFETY_MIN_S, SAFETY_MAX_S = 20.0, 45.0
TOGETHER_S = 25.0
LOOK_EVERY_S = 0.01
LAST_MIN_S, LAST_MAX_S = 0.1, 7.0
"""How long a fault lasts."""
OVERLAP_MAX_S = 0.2
"""Two that cannot hear each other may both answer until etcd's word has arrived."""


@dataclass
class GuardResult:
    """What became of one seed."""

    seed: int
    problems: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    revisions: int = 0
    overlap_s: float = 0.0
    """Longest time two hosts answered."""
    stale_openings: int = 0
    """Times a host opened its fence while the other answered by a newer revision: only two
    that cannot hear each other may."""
    story: list[StoryLine] = field(default_factory=list)


@dataclass(frozen=True)
class GuardPlan:
    """What kind of runs."""

    kinds: tuple[str, ...] = KINDS
    pause_s: float = 4.0
    plant: Callable[[GuardPair], None] | None = None
    script: Callable[[GuardPair], None] | None = None
    safety_s: float = 0.0


def run_guards(seed: int, plan: GuardPlan = GuardPlan(), tell: bool = False) -> GuardResult:
    """Runs one seed."""
    world = World(seed, tell=tell)
    pair = GuardPair(world, clock_skew=world.rng.choice((0.0, 0.001)))
    pair.network.loss = world.rng.choice((0.0, 0.0, 0.02))
    pair.store.lag_max_s = world.rng.choice((0.0, 0.05))
    if plan.plant is not None:
        plan.plant(pair)
    result = GuardResult(seed)
    watch = _Watch(pair, result)
    pair.start()
    world.run_until(SETTLE_S)
    watch.begin()
    if plan.script is not None:
        plan.script(pair)
    faults = _Faults(pair, plan, result)
    faults.next()
    world.run_until(world.now + (plan.safety_s or world.between(SAFETY_MIN_S, SAFETY_MAX_S)))
    faults.on = False
    pair.network.lossless = True
    pair.heal()
    world.run_until(world.now + TOGETHER_S)
    watch.final()
    result.stale_openings = pair.stale_openings
    result.revisions, result.story = len(pair.served), world.story
    return result


class _Faults:
    """One thing after another goes wrong, sometimes two at once, and is mended."""

    def __init__(self, pair: GuardPair, plan: GuardPlan, result: GuardResult) -> None:
        self._pair, self._plan, self._result = pair, plan, result
        self.on = True

    def next(self) -> None:
        world = self._pair.world
        if self._plan.kinds:
            world.after(world.between(0.2, 2 * self._plan.pause_s), self._strike)

    def _strike(self) -> None:
        if not self.on:
            return
        world = self._pair.world
        kind = world.rng.choice(self._plan.kinds)
        edge = world.rng.choice(EDGES)
        lasts_s = world.between(LAST_MIN_S, LAST_MAX_S)
        self._result.faults.append(f"{world.now:.2f} {kind} {edge}")
        world.say("fault", f"{kind} {edge} for {lasts_s:.2f} s")
        mend = self._begin(kind, edge)
        if mend is not None:
            world.after(lasts_s, lambda: self.on and mend())
        self.next()

    def _begin(self, kind: str, edge: str) -> Callable[[], None] | None:
        pair = self._pair
        guard, process = pair.guards[edge], pair.edges[edge]
        match kind:
            case "host-kill":
                if not all(pair.alive.values()):
                    return None
                pair.kill_host(edge)
                return lambda: None if pair.alive[edge] else pair.start_host(edge)
            case "host-freeze":
                guard.freeze()
                process.freeze()

                def thaw() -> None:
                    guard.thaw()
                    process.thaw()

                return thaw
            case "guard-freeze" | "edge-freeze":
                one = guard if kind == "guard-freeze" else process
                one.freeze()
                return one.thaw
            case "guard-kill":
                pair.kill_guard(edge)
            case "edge-kill":
                pair.kill_edge(edge)
            case "cut":
                pair.cut(edge)
                return pair.network.heal
            case "heartbeats-lost":
                pair.deafen()
                return pair.network.heal
            case "etcd-away":
                pair.store.available = False
                return self._etcd_back
            case "etcd-cut":
                pair.network.cut_off(edge, ["etcd"])
                return pair.network.heal
            case "switchover":
                pair.switchover()
        return None

    def _etcd_back(self) -> None:
        self._pair.store.available = True


class _Watch:
    """Looks from outside, every hundredth of a second."""

    def __init__(self, pair: GuardPair, result: GuardResult) -> None:
        self._pair, self._result = pair, result
        self._both_since: float | None = None
        self._blind = False
        self._told = False

    def begin(self) -> None:
        """From now on."""
        if len(self._pair.speakers()) != 1:
            self._problem(f"after the start {self._pair.speakers() or 'nobody'} answers")
        self._look()

    def _look(self) -> None:
        pair, world, result = self._pair, self._pair.world, self._result
        speakers = pair.speakers()
        if len(speakers) > 1:
            if self._both_since is None:
                self._both_since, self._blind, self._told = world.now, False, False
            # an owner that hears neither peer nor etcd keeps the address for its limit
            self._blind = (
                self._blind
                or not pair.store.available
                or any(pair.network.cut(edge, "etcd") for edge in EDGES)
            )
            lasts_s = world.now - self._both_since
            result.overlap_s = max(result.overlap_s, lasts_s)
            limit_s = OVERLAP_MAX_S + (GuardTimings().hold_s if self._blind else 0.0)
            if lasts_s > limit_s and not self._told:
                self._told = True
                self._problem(f"both hosts answer for {lasts_s * 1000:.0f} ms")
        else:
            self._both_since = None
        for edge in EDGES:
            self._served(edge, pair.serving(edge))
        world.after(LOOK_EVERY_S, self._look)

    def _served(self, edge: str, revision: int) -> None:
        if not revision:
            return
        life = f"{edge}.{self._pair.edges[edge].life}"
        known = self._pair.served.setdefault(revision, life)
        if known != life:
            self._problem(f"{life} serves by revision {revision}, which was {known}'s")

    def final(self) -> None:
        """With nothing broken any more one host answers, and its edge process serves."""
        pair = self._pair
        speakers = pair.speakers()
        if len(speakers) != 1:
            self._problem(f"in the end {speakers or 'nobody'} answers")
            return
        revision = pair.serving(speakers[0])
        if revision != pair.guard(speakers[0]).revision:
            self._problem(f"in the end {speakers[0]} answers and its edge serves by {revision}")
        other = next(edge for edge in EDGES if edge not in speakers)
        if pair.serving(other):
            self._problem(f"in the end {other} still serves")

    def _problem(self, text: str) -> None:
        self._pair.world.say("checker", text)
        self._result.problems.append(f"{self._pair.world.now:.2f} {text}")
