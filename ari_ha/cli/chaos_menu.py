"""Chaos, callers in an IVR: every digit a node heard of them, before and after the fault,
must have been taken once, and the menu must lead on to an agent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ari_ha.cli.chaos_judge import PRIMARY, Verdict
from ari_ha.cli.chaos_stage import Stage, until
from ari_ha.cli.cluster import quote

END_DIGIT = "#"
VARIABLE = "TYPED"
"""What the lab's menu `collect` keeps them in (docker/labs/make-credentials)."""
LEAVE_LIMIT_S = 10.0


def leave_menu(stage: Stage, verdicts: list[Verdict], typed: Mapping[str, str], since: float) -> None:
    """Everybody ends his entry, one after the other, and is in the queue then. ``typed``: what nodes
    had heard by call before the fault at ``since``; an edge that was replaced does not know it."""
    for verdict in verdicts:
        pair = verdict.pair
        heard = all_digits(stage.edge_call(pair.call), typed.get(pair.call, ""), since)
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


def all_digits(call: dict[str, Any], before: str, since: float) -> str:
    """The same, with those from before where the edge only knows later ones."""
    kept = any(entry["at_utc"] <= since for entry in call["digits"] if entry["leg"] == PRIMARY)
    return heard_digits(call) if kept else before + heard_digits(call)


def _queued(stage: Stage, call: str) -> bool:
    return any(entry["call"] == call for entries in stage.view().waiting.values() for entry in entries)
