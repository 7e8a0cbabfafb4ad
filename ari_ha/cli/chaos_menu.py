"""Chaos, callers in an IVR: every digit a node heard of them, before and after the fault,
must have been taken once, and the menu must lead on to an agent."""

from __future__ import annotations

from typing import Any

from ari_ha.cli.chaos_judge import PRIMARY, Verdict
from ari_ha.cli.chaos_stage import Stage, until
from ari_ha.cli.cluster import quote

END_DIGIT = "#"
VARIABLE = "TYPED"
"""What the lab's menu `collect` keeps them in (docker/labs/make-credentials)."""
LEAVE_LIMIT_S = 10.0


def leave_menu(stage: Stage, verdicts: list[Verdict]) -> None:
    """Everybody ends his entry, one after the other, and is in the queue then."""
    for verdict in verdicts:
        pair = verdict.pair
        heard = heard_digits(stage.edge_call(pair.call))
        stage.far.digits({pair.customer: END_DIGIT})
        until("the menu leads to the queue", LEAVE_LIMIT_S, lambda pair=pair: _queued(stage, pair.call))  # type: ignore[misc]
        stage.refresh([pair])
        record = stage.node_http(pair.node, f"/v1/calls/{quote(pair.call)}")["record"]
        taken = record.get("variables", {}).get(VARIABLE, "")
        if taken != heard:
            verdict.against.append(f"digits heard {heard!r}, taken {taken!r}")


def heard_digits(call: dict[str, Any]) -> str:
    """The caller's digits that any node heard, in order."""
    return "".join(entry["digit"] for entry in call["digits"] if entry["leg"] == PRIMARY)


def _queued(stage: Stage, call: str) -> bool:
    return any(entry["call"] == call for entries in stage.view().waiting.values() for entry in entries)
