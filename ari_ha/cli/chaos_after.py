"""Chaos, besides what people hear: who serves the calls, agents' records, places in queues, what is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ari_ha.checkers.acd import check_alive, check_store, picture
from ari_ha.cli.chaos_judge import Pair, Verdict
from ari_ha.cli.chaos_stage import Stage
from ari_ha.cli.cluster import ClusterError
from ari_ha.cli.lab import NODES, LabError
from ari_ha.machines.node_core import DEAF

OWNERS_LIMIT_S = 5.0
"""A node that was cut off or frozen has let go of everything by then."""
LEFTOVER_LIMIT_S = 30.0
OWN_FIELDS = ("intent", "intent_since", "reason", "next_intent", "next_reason", "device", "logged_in",
                 "misses", "missed")  # fmt: skip
"""What a hang-up or a hold, in or out of the gap, leaves as it was in an agent's record."""


@dataclass(frozen=True, slots=True)
class Before:
    """What the cluster held just before the fault."""

    revision: int
    """etcd's"""
    app_pid: int
    """Process id of the struck node's app; 0 where no app is struck"""
    claims: int
    """How often an edge's place has been claimed"""


def before(stage: Stage, app_of: str = "") -> Before:
    """Looks now. ``app_of``: the node whose app will be struck."""
    pid = stage.lab.child_pid(app_of, "app") if app_of else 0
    return Before(stage.cluster.revision(), pid, stage.claims())


def judge_stayed(stage: Stage, verdicts: Iterable[Verdict]) -> None:
    """No call moved, but for a node that asked for that itself: the absence was short."""
    rows = stage.edge_calls()
    for verdict in verdicts:
        pair, row = verdict.pair, rows.get(verdict.pair.caller)
        asked = row is not None and any(move["why"] == DEAF for move in row["moves"][-1:])
        if row is not None and row["epoch"] != pair.epoch and not asked:
            verdict.against.append(f"moved: epoch was {pair.epoch}, is {row['epoch']} at {row['node']}")


def needless_claims(stage: Stage, then: Before) -> tuple[int, list[str]]:
    """How often an edge was replaced, by its peer or by another life of its own, for a fault that asks for
    neither; and in words. One there and back counts as two."""
    count = stage.claims() - then.claims
    return count, [f"{stage.active_edge()} serves after {count} claims of its place"] if count else []


def double_owners(stage: Stage, pairs: Iterable[Pair]) -> dict[str, set[str]]:
    """Calls that more than one node still serves some seconds after the mending."""
    ours = {pair.call for pair in pairs}
    end = time.monotonic() + OWNERS_LIMIT_S
    while (double := _owners(stage, ours)) and time.monotonic() < end:
        time.sleep(0.3)
    return double


def _owners(stage: Stage, ours: set[str]) -> dict[str, set[str]]:
    """Calls that more than one node serves, by its app's word or by a bridge it still has."""
    nodes_of: dict[str, set[str]] = {}
    for node in NODES:
        served = set(stage.node_http(node, "/v1/calls")["calls"])
        served |= {bridge.split(".")[0] for bridge in stage.lab.bridges(node)}
        for call in served:
            nodes_of.setdefault(call, set()).add(node)
    return {call: nodes for call, nodes in nodes_of.items() if call in ours and len(nodes) > 1}


def channels_kept(stage: Stage, node: str, mended_at: float) -> list[str]:
    """Channels the node still has 5 s after it came back; every call of it has moved.
    ``mended_at``: monotonic seconds."""

    def found() -> list[str] | None:
        try:
            return stage.lab.channels(node)
        except LabError:
            return None  # not yet back

    while (kept := found()) != [] and time.monotonic() < mended_at + OWNERS_LIMIT_S:
        time.sleep(0.3)
    return [f"{node} kept {name}" for name in (kept or ([] if kept is not None else ["silence"]))]


def leftovers(stage: Stage) -> tuple[dict[str, int], list[str]]:
    """What is still there half a minute after the last call ended, counted and in words."""
    left: list[str] = []
    stale = _settles_s(lambda: sum(len(names) for names in stage.channels().values()))
    stale += _settles_s(lambda: len(stage.edge_calls()))
    if stale:
        left += [f"{node}: {name}" for node, names in stage.channels().items() for name in names]
    stale += _settles_s(lambda: len(stage.view().calls))
    left += [f"call {call} is still in etcd" for call in stage.view().calls]
    ghosts = _settles_s(lambda: len(_ghosts(stage)))
    left += _ghosts(stage) if ghosts else []
    return {"stale_legs": stale, "ghost_agents": ghosts}, left


def _ghosts(stage: Stage) -> list[str]:
    """Agents and places of calls that are not there any more, or that do not agree."""
    cluster = stage.cluster
    now = picture(
        cluster.keys,
        {item.key: item.value for family in ("agents", "queues") for item in cluster.family(family)},
    )
    live = {
        row["call"]: [leg["aor"] for leg in row["legs"].values() if leg["role"] == "agent"]
        for row in stage.edge_calls().values()
    }
    return check_store(now) + check_alive(now, live)


def _settles_s(count: Callable[[], int], limit_s: float = LEFTOVER_LIMIT_S) -> int:
    """The count once it is zero, or at the limit."""
    end = time.monotonic() + limit_s
    while True:
        try:
            found = count()
        except (ClusterError, LabError):
            found = -1
        if found == 0 or time.monotonic() >= end:
            return abs(found)
        time.sleep(0.3)
