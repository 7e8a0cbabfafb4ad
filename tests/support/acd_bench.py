"""A small ACD cluster on a store, and the steps its tests share."""

from __future__ import annotations

from ari_ha.machines.acd_orders import (
    VerbResult,
)
from ari_ha.simulation.acd_cluster import Cluster


def two_nodes() -> Cluster:
    """Two nodes, one queue, one agent who is ready."""
    c = Cluster(2)
    c.queue("support")
    c.agent("alice", "support")
    c.start()
    c.advance(1.0)
    return c


def attempt_of(c: Cluster, agent: str = "alice") -> str:
    return next(leg.attempt for leg in c.legs.values() if leg.agent == agent)


def queued(c: Cluster, call: str = "k1", node: str = "n1", **more: int) -> None:
    c.call(call, "support", node, **more)
    c.flow()


def talking(c: Cluster, call: str = "k1", node: str = "n1", agent: str = "alice") -> str:
    queued(c, call, node)
    attempt = attempt_of(c, agent)
    c.ring(attempt)
    c.flow()
    c.pick_up(attempt)
    c.flow()
    assert c.agent_now(agent).work == "talking"
    return attempt


def orders(c: Cluster, node: str, kind: type) -> list:
    return [order for order in c.nodes[node].orders if isinstance(order, kind)]


def result(c: Cluster, node: str, request: str) -> VerbResult:
    return c.nodes[node].results[request]


def quiet(c: Cluster) -> None:
    c.flow()
    assert c.findings(quiet=True) == []
