"""Chaos, calls in several states at once on one node: some people talk, some wait, some are on hold."""

from __future__ import annotations

from ari_ha.cli.chaos_judge import Pair
from ari_ha.cli.chaos_stage import SUPPORT, Stage

WITH_AGENTS = {"talking": 0.3, "through": 0.2, "held": 0.15, "ringing": 0.1}
"""State -> share of the calls; talking also gets what rounding leaves."""
ALONE = {"ivr": 0.15, "queued": 0.1}
QUEUE_OF_WAITERS = "sales"
"""Nobody of it is logged in: its callers wait."""


def shares(count: int) -> dict[str, int]:
    """State -> calls of it; of very few calls all are talking."""
    found = {state: int(count * share) for state, share in (WITH_AGENTS | ALONE).items()}
    found["talking"] += count - sum(found.values())
    return found


def place(stage: Stage, count: int, state: str, serial: int) -> list[Pair]:
    """Brings ``count`` calls to their states, group by group: whoever is free belongs to the next group."""
    groups, pairs, busy = shares(count), [], list[str]()
    for number, (each, size) in enumerate(groups.items()):
        first = f"1556{serial:03}{number}"
        if each in WITH_AGENTS:
            agents = SUPPORT[len(busy) : len(busy) + size]
            stage.agents_in(agents, busy)
            stage.far.manner(agents, mode="ring" if each == "ringing" else "answer", after_s=0.3, ring=True)
            busy += agents
        queue = QUEUE_OF_WAITERS if each == "queued" else "support"
        placed = stage.dial(queue, size, each, first)
        stage.bring(placed, each)
        pairs += placed
    return pairs
