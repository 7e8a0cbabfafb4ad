"""What the judge holds against a call's rows in the database."""

from __future__ import annotations

from typing import Any

import pytest

from ari_ha.cli.chaos_judge import Pair, Verdict
from ari_ha.cli.chaos_records import against, log_against


def row(call: str = "c1", agents: str = "1001", caller: str = "155") -> dict[str, Any]:
    return {"ha_call_id": call, "caller": caller, "agents": agents}


@pytest.mark.parametrize(
    ("state", "agent", "rows", "word"),
    [
        ("talking", "1001", [row()], ""),
        ("talking", "1001", [row(agents="1007 1001")], ""),
        ("talking", "1001", [], "0 call records"),
        ("talking", "1001", [row(), row("c2")], "2 call records"),
        ("talking", "1001", [row("c2")], "is of c2"),
        ("ringing", "1001", [row(agents="")], ""),
        ("queued", "", [row(agents="")], ""),
        ("talking", "1001", [row(agents="1002")], "does not name agent 1001"),
        ("ringing-out", "1001", [row(agents="", caller="1001")], ""),
    ],
)
def test_one_row_of_that_call(state: str, agent: str, rows: list[dict[str, Any]], word: str) -> None:
    found = against(Verdict(Pair("far1", "155", state=state, call="c1", agent=agent)), rows)
    assert (not found) if not word else word in found[0]


@pytest.mark.parametrize(
    ("state", "events", "good"),
    [
        ("talking", "ENTERQUEUE CONNECT COMPLETEAGENT", True),
        ("talking", "ENTERQUEUE RINGNOANSWER CONNECT COMPLETECALLER", True),
        ("queued", "ENTERQUEUE ABANDON", True),
        ("talking", "ENTERQUEUE CONNECT", False),
        ("talking", "ENTERQUEUE CONNECT COMPLETEAGENT CONNECT COMPLETEAGENT", False),
        ("queued", "ENTERQUEUE", False),
        ("queued", "", False),
        ("transfer", "", True),
    ],
)
def test_the_queue_log_of_a_call(state: str, events: str, good: bool) -> None:
    verdict = Verdict(Pair("far1", "155", state=state, call="c1"))
    assert (not log_against(verdict, events.split())) is good
