"""Chaos, people who call while something is broken: one after the other, until it is mended."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ari_ha.cli.chaos_judge import Pair, hearing, spread
from ari_ha.cli.chaos_stage import SUPPORT, Stage, StageError
from ari_ha.cli.cluster import ClusterError

AGENTS = 8
"""Each of them talks for a moment, then has the queue's wrap-up time, then the next caller."""
EVERY_S = 2.0
TALKS_S = 1.0
SERVED_LIMIT_S = 15.0
WATCHED_AT_LEAST_S = 10.0
"""Of a fault that is mended at once people notice as much."""
POLL_S = 0.2


@dataclass(slots=True)
class Caller:
    """One of them."""

    pair: Pair
    placed_at: float
    """UTC, of the far ends' clock"""
    talking_at: float | None = None
    hung_up: bool = False


@dataclass(slots=True)
class Callers:
    """All that came."""

    stage: Stage
    first: str
    """Begin of their numbers"""
    came: list[Caller] = field(default_factory=list)
    against: list[str] = field(default_factory=list)
    """Who was not served, and why."""

    def agents_in(self, busy: Sequence[str]) -> None:
        """Agents log in for them, besides those who are on calls: the last of the queue's."""
        self.stage.agents_in(SUPPORT[-AGENTS:], busy)
        self.stage.far.manner(SUPPORT[-AGENTS:], mode="answer", after_s=0.3)

    def come(self, until_utc: float) -> None:
        """A call every `EVERY_S` until then; returns when the last one has been served or given up."""
        due = time.time()
        while time.time() < until_utc or any(not caller.hung_up for caller in self.came):
            if due <= time.time() < until_utc:
                due += EVERY_S
                self._call()
            for caller in self.came:
                if not caller.hung_up:
                    self._look(caller)
            time.sleep(POLL_S)

    def _call(self) -> None:
        placed_at = self.stage.far.now()
        (pair,) = self.stage.dial("support", 1, "talking", f"{self.first}{len(self.came):03}")
        self.came.append(Caller(pair, placed_at))

    def _look(self, caller: Caller) -> None:
        now, stage, pair = self.stage.far.now(), self.stage, caller.pair
        if caller.talking_at is not None:
            if now >= caller.talking_at + TALKS_S:
                caller.hung_up = True
                stage.far.order(pair.customer, "hangup")
            return
        why = f"not served in {SERVED_LIMIT_S:.0f} s" if now > caller.placed_at + SERVED_LIMIT_S else ""
        try:
            if stage.reached([pair]):
                caller.talking_at = now
        except ClusterError:
            pass  # an edge that does not answer us may serve callers all the same
        except StageError as error:
            why = str(error)
        if why and caller.talking_at is None:
            caller.hung_up = True
            self.against.append(f"new caller {pair.caller}: {why}")
            if stage.far.call(pair.customer)["state"] != "ended":
                stage.far.order(pair.customer, "hangup")

    def to_dict(self) -> dict[str, Any]:
        """How many came and were served, and how long it took: from the INVITE to the agent's first packet at
        the caller, milliseconds."""
        served = [caller for caller in self.came if caller.talking_at is not None]
        waited = [(at - caller.placed_at) * 1000 for caller in served if (at := self._heard_at(caller))]
        return {"came": len(self.came), "served": len(served), "waited_ms": spread(waited)}

    def _heard_at(self, caller: Caller) -> float | None:
        rows = self.stage.measure(caller.placed_at, [caller.pair])
        heard = hearing(rows.get(caller.pair.customer), caller.pair.agent_call)
        return heard["first"] if heard else None
