"""Callers who come while something is broken are served too."""

from __future__ import annotations

import pytest

from ari_ha.cli.chaos_stage import Stage, until
from ari_ha.cli.lab import FAULTS

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

AGENTS = [str(number) for number in range(1001, 1007)]
CALLER = "15557770"


def test_new_calls_are_served_while_etcd_has_no_majority(stage: Stage) -> None:
    stage.agents_in(AGENTS)
    stage.far.manner(mode="answer", after_s=0.3)
    struck = FAULTS["etcd-quorum-loss"](stage.lab, "etcd1")
    try:
        until("the edge knows that etcd is away", 15, lambda: stage.edge_status()["etcd"] is False)
        stage.far.place("6000", CALLER, 3, spacing_ms=200)

        def talking() -> bool:
            calls = [row for caller, row in stage.edge_calls().items() if caller.startswith(CALLER)]
            return len(calls) == 3 and all(row["media"] == "hitless" for row in calls)

        until("three new calls talk", 15, talking)
    finally:
        assert struck.mend is not None
        struck.mend()
    ours = {row["call"] for caller, row in stage.edge_calls().items() if caller.startswith(CALLER)}
    assert len(ours) == 3, "nobody was cut off when etcd came back"
    until("the calls are in etcd", 20, lambda: ours <= set(stage.view().calls))
