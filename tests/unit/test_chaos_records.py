"""What the judge holds against a call's rows in the database."""

from __future__ import annotations

from typing import Any

import pytest

from ari_ha.cli.chaos_judge import Pair, Verdict
from ari_ha.cli.chaos_records import against, log_against, times_against


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
        ("transfer", "ENTERQUEUE CONNECT COMPLETEAGENT", True),
        ("transfer", "ENTERQUEUE CONNECT", False),
        ("consult", "ENTERQUEUE CONNECT CONNECT COMPLETEAGENT", False),
        ("ivr", "CONNECT COMPLETECALLER COMPLETECALLER", False),
    ],
)
def test_the_queue_log_of_a_call(state: str, events: str, good: bool) -> None:
    verdict = Verdict(Pair("far1", "155", state=state, call="c1"))
    log = [{"callid": "c1", "agent": "1001", "event": event} for event in events.split()]
    assert (not log_against(verdict, log)) is good


NOON = 1_767_268_800.0  # 2026-01-01T12:00:00Z


@pytest.mark.parametrize(
    ("times", "log", "good"),
    [
        ({"started": "12:00:01", "answered": "12:00:02", "ended": "12:00:09"}, "12:00:03", True),
        ({"started": "12:00:01", "answered": None, "ended": "12:00:01"}, "12:00:03", True),
        ({"started": "12:00:01", "answered": "13:00:02", "ended": "12:00:09"}, "12:00:03", False),
        ({"started": "12:00:01", "answered": "12:00:02", "ended": "13:00:09"}, "12:00:03", False),
        ({"started": "12:00:05", "answered": "12:00:02", "ended": "12:00:09"}, "12:00:03", False),
        ({"started": "12:00:02", "entered": "12:00:01", "ended": "12:00:09"}, "12:00:03", True),
        ({"started": "12:00:05", "entered": "12:00:01", "ended": "12:00:09"}, "12:00:03", False),
        ({"started": "12:00:01", "answered": "12:00:02", "ended": "12:00:09"}, "11:00:03", False),
    ],
)
def test_the_times_of_a_call_lie_within_the_run(times: dict[str, Any], log: str, good: bool) -> None:
    row = {name: f"2026-01-01T{at}.000" if at else None for name, at in times.items()}
    told = [{"event": "CONNECT", "time": f"2026-01-01T{log}.000"}]
    assert (not times_against([row], told, NOON, NOON + 10)) is good
