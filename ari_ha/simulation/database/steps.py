"""Kills a watcher before, or after, every single step of what a pair ever does."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ari_ha.core.machine import Effect
from ari_ha.machines.database_config import MYSQL
from ari_ha.simulation.database.faults import Faults, Odds
from ari_ha.simulation.database.pair import Pair, Shape
from ari_ha.simulation.database.run import Plan, Result, run_seed

SCENARIO_S = 9.0
STEPS_MAX = 80
BACK_S = 0.3
"""The watcher's parent starts it again."""

Script = Callable[[Pair, Faults], None]


def _failover(pair: Pair, faults: Faults) -> None:
    """The primary dies under load; it comes back as a replica."""
    faults.happen("server-kill", _primary(pair))


def _switchover(pair: Pair, faults: Faults) -> None:
    """An operator moves the primary."""
    for name in pair.servers:
        pair.ask(name, "switchover")


def _degrade(pair: Pair, faults: Faults) -> None:
    """The standby is lost, and certified again."""
    replica = next(name for name in pair.servers if name != _primary(pair))
    faults.happen("server-kill", replica)


def _rebuild(pair: Pair, faults: Faults) -> None:
    """Somebody writes on the replica."""
    replica = next(name for name in pair.servers if name != _primary(pair))
    faults.happen("errant", replica)


def _primary(pair: Pair) -> str:
    return next(name for name, server in pair.servers.items() if server.writable)


SCENARIOS: dict[str, Script] = {
    "failover": _failover,
    "switchover": _switchover,
    "degrade": _degrade,
    "rebuild": _rebuild,
}


class Killer:
    """Kills whoever takes the step number ``at``; once."""

    def __init__(self, pair: Pair, at: int, after: bool) -> None:
        self.pair = pair
        self.taken = 0
        self.killed = ""
        if after:
            pair.after_step = lambda name, effect: self._strikes(name, effect, at)
        else:
            pair.before_step = lambda name, effect: self._strikes(name, effect, at)

    def _strikes(self, name: str, effect: Effect, at: int) -> bool:
        self.taken += 1
        if self.taken - 1 != at:
            return False
        self.killed = f"{name} {getattr(effect, 'verb', type(effect).__name__)}"
        self.pair.world.after(BACK_S, lambda: self.pair.start_watcher(name))
        return True


def one(scenario: str, at: int, after: bool, flavour: str = MYSQL, seed: int = 3) -> tuple[Result, Killer]:
    """One scenario with one kill."""
    found: list[Killer] = []

    def script(pair: Pair, faults: Faults) -> None:
        found.append(Killer(pair, at, after))
        SCENARIOS[scenario](pair, faults)

    plan = Plan(odds=Odds(kinds=()), shape=Shape(flavour=flavour), script=script, safety_s=SCENARIO_S)
    return run_seed(seed, plan), found[0]


def every_step(scenario: str, flavour: str = MYSQL) -> Iterator[tuple[int, bool, str, Result]]:
    """Every step of a scenario, before and after: (number, after, what, result)."""
    for after in (False, True):
        for at in range(STEPS_MAX):
            result, killer = one(scenario, at, after, flavour)
            if not killer.killed:
                break
            yield at, after, killer.killed, result
