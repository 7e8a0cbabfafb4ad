"""Chaos, callers in an IVR: every digit a node heard of them, before and after the fault,
must have been taken once, and the menu must lead on to an agent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ari_ha.cli.chaos_judge import PRIMARY, Pair, Verdict
from ari_ha.cli.chaos_stage import Stage, until
from ari_ha.cli.cluster import quote

END_DIGIT = "#"
VARIABLE = "TYPED"
"""What the lab's menu `collect` keeps them in (docker/labs/make-credentials)."""
LEAVE_LIMIT_S = 10.0


@dataclass(slots=True)
class Typed:
    """What callers in menus typed, by customer, and who saw it."""

    sent: dict[str, str] = field(default_factory=dict)
    """All that their phones sent"""
    before: dict[str, str] = field(default_factory=dict)
    """What nodes had heard before the fault"""
    edge: int = 0
    """The edge's revision then"""

    def note(self, digits: Mapping[str, str]) -> None:
        """These digits were sent."""
        for customer, typed in digits.items():
            self.sent[customer] = self.sent.get(customer, "") + typed

    def begin(self, stage: Stage, pairs: Iterable[Pair]) -> None:
        """What is known right before the fault."""
        self.edge = int(stage.edge_status()["edge_revision"])
        self.before = {
            pair.customer: heard_digits(stage.edge_call(pair.call)) for pair in pairs if pair.state == "ivr"
        }


def leave_menu(stage: Stage, verdicts: Iterable[Verdict], typed: Typed, since: float) -> None:
    """Everybody ends his entry, one after the other, and is in the queue then. ``since``: when the
    fault struck."""
    same_edge = int(stage.edge_status()["edge_revision"]) == typed.edge
    for verdict in verdicts:
        pair = verdict.pair
        sent, before = typed.sent.get(pair.customer, ""), typed.before.get(pair.customer, "")
        heard = all_digits(stage.edge_call(pair.call), before, since)
        stage.far.digits({pair.customer: END_DIGIT})
        until("the menu leads to the queue", LEAVE_LIMIT_S, lambda pair=pair: _queued(stage, pair.call))  # type: ignore[misc]
        stage.refresh([pair])
        record = stage.node_http(pair.node, f"/v1/calls/{quote(pair.call)}")["record"]
        taken = record.get("variables", {}).get(VARIABLE, "")
        if not taken_rightly(taken, heard, sent, same_edge):
            verdict.against.append(f"digits sent {sent!r}, heard {heard!r}, taken {taken!r}")


def taken_rightly(taken: str, heard: str, sent: str, same_edge: bool) -> bool:
    """Whether each digit was taken once, in order. The edge notes what nodes hear: all of it where it lived
    throughout. What they heard while there was none nobody has noted: then nothing that was heard may be
    missing, and nothing taken that was not sent."""
    return taken == heard if same_edge else _within(heard, taken) and _within(taken, sent)


def _within(some: str, all_: str) -> bool:
    """Whether ``some`` is left when parts of ``all_`` are taken out."""
    rest = iter(all_)
    return all(digit in rest for digit in some)


def heard_digits(call: dict[str, Any]) -> str:
    """The caller's digits that any node heard, in order."""
    return "".join(entry["digit"] for entry in call["digits"] if entry["leg"] == PRIMARY)


def all_digits(call: dict[str, Any], before: str, since: float) -> str:
    """The same, with those from before where the edge only knows later ones."""
    kept = any(entry["at_utc"] <= since for entry in call["digits"] if entry["leg"] == PRIMARY)
    return heard_digits(call) if kept else before + heard_digits(call)


def _queued(stage: Stage, call: str) -> bool:
    return any(entry["call"] == call for entries in stage.view().waiting.values() for entry in entries)
