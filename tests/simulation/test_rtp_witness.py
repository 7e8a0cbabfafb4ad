"""The RTP of sentinel calls as a witness, in whole clusters."""

from __future__ import annotations

import pytest

from ari_ha.simulation.faults import HARD_KINDS, KINDS, PURPOSE_KINDS, Odds
from ari_ha.simulation.run import Plan, run_seed

SEEDS = 10
STOPPED, WITNESS = "RTP has stopped", "silent (OPTIONS and RTP)"
HARMLESS = tuple(
    kind
    for kind in (*KINDS, *HARD_KINDS, *PURPOSE_KINDS)
    if kind.startswith(("app-", "etcd-", "relay-", "edge-", "lease", "compaction", "clock", "drain"))
)
"""Nothing happens to an Asterisk or to the way to it."""


def stories(odds: Odds, hard: bool = False) -> list[str]:
    plan = Plan(kinds=odds.kinds, odds=odds, hard=hard)
    return ["\n".join(map(str, run_seed(seed, plan, tell=True).story)) for seed in range(SEEDS)]


@pytest.mark.parametrize("kind", ["asterisk-freeze", "node-cut"])
def test_a_silent_node_is_known_by_it(kind: str) -> None:
    told = stories(Odds(kinds=(kind,), pause_s=3.0))
    assert any(WITNESS in story for story in told)


@pytest.mark.parametrize(
    "odds",
    [Odds(kinds=HARMLESS, pause_s=2.0), Odds(kinds=(), loss=0.05), Odds(kinds=(), slow=0.1, lag_s=0.5)],
    ids=["faults-elsewhere", "loss", "slow"],
)
def test_it_is_no_alarm_where_asterisk_serves(odds: Odds) -> None:
    """People hold, hang up, are moved, type into an IVR, and are supervised meanwhile."""
    told = stories(odds, hard=True)
    assert [line for story in told for line in story.splitlines() if STOPPED in line] == []
