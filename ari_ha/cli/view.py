"""What etcd holds about a cluster, read once and turned into plain values that can be
printed as they are. Nothing here asks anything; `read` does, with one range per family."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ari_ha.cli.cluster import Cluster, decode_json
from ari_ha.core.ports.store import KeyValue

FAMILIES = ("nodes", "drains", "edges", "vips", "calls", "agents", "queues", "hosts", "databases")


@dataclass
class View:
    """The cluster's families by name; every value is the JSON object etcd holds."""

    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    drains: dict[str, dict[str, Any]] = field(default_factory=dict)
    """node -> how it is emptied"""
    edges: dict[str, dict[str, Any]] = field(default_factory=dict)
    vips: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """call -> ``owner``, ``record``, ``media``"""
    agents: dict[str, dict[str, Any]] = field(default_factory=dict)
    reach: dict[str, dict[str, Any]] = field(default_factory=dict)
    queues: dict[str, dict[str, Any]] = field(default_factory=dict)
    """queue -> its configuration"""
    waiting: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """queue -> entries in the order they will be served"""

    hosts: dict[str, dict[str, Any]] = field(default_factory=dict)
    databases: dict[str, dict[str, Any]] = field(default_factory=dict)
    """pair -> path below its key -> value"""

    def active_edge(self, vip: str) -> str:
        """The edge that holds ``vip`` and is registered, or ''."""
        edge = str(self.vips.get(vip, {}).get("edge", ""))
        return edge if edge in self.edges else ""

    def edge_of(self, call: str) -> str:
        """The edge that serves a call's phones: who holds its pair's place now, whoever wrote its owner key.
        '' of a call that nobody serves."""
        owner = self.calls.get(call, {}).get("owner", {})
        return self.active_edge(str(owner.get("vip", ""))) or str(owner.get("edge", ""))

    def node_state(self, node: str) -> str:
        """not ready, draining, cordoned, or ready: only then it takes calls."""
        value = self.nodes.get(node, {})
        if not value.get("ready"):
            return "not ready"
        if node in self.drains:
            return "draining"
        return "cordoned" if value.get("cordoned") else "ready"

    def calls_of(self) -> Counter[str]:
        """Calls per serving node."""
        return Counter(node_of(call) for call in self.calls.values() if "owner" in call)

    def call_rows(self) -> list[dict[str, Any]]:
        """One flat line per call, oldest first."""
        rows = [call_row(call, parts, self.agents) for call, parts in self.calls.items()]
        return sorted(rows, key=lambda row: (row["started"], row["call"]))

    def agent_rows(self) -> list[dict[str, Any]]:
        """One flat line per agent."""
        return [agent_row(value, self.reach.get(name, {})) for name, value in sorted(self.agents.items())]

    def queue_rows(self) -> list[dict[str, Any]]:
        """One flat line per queue."""
        return [self._queue_row(name) for name in sorted({*self.queues, *self.waiting})]

    def _queue_row(self, name: str) -> dict[str, Any]:
        waiting = self.waiting.get(name, [])
        members = [value for value in self.agents.values() if name in value.get("queues", {})]
        present = [value for value in members if value.get("intent", "logged_out") != "logged_out"]
        return {
            "queue": name,
            "strategy": self.queues.get(name, {}).get("strategy", "longest-idle"),
            "waiting": len(waiting),
            "oldest": min((entry.get("entered", 0.0) for entry in waiting), default=0.0),
            "members": len(members),
            "logged_in": len(present),
            "free": sum(
                value.get("intent") == "available" and value.get("work", "idle") == "idle"
                for value in present
            ),
        }

    def agent_states(self) -> Counter[str]:
        """Agents by the one word people use for their state."""
        return Counter(state_word(value) for value in self.agents.values())


def read(cluster: Cluster) -> View:
    """The cluster as etcd has it now. Raises EtcdAway or ClusterError."""
    return build(
        (cluster.keys.split(item.key), item) for family in FAMILIES for item in cluster.family(family)
    )


def build(items: Iterable[tuple[tuple[str, ...], KeyValue]]) -> View:
    """A view of keys already split; keys it does not know are left out."""
    view = View()
    for parts, item in items:
        value = decode_json(item)
        match parts:
            case ("hosts", name):
                view.hosts[name] = value
            case ("databases", name, *path):
                view.databases.setdefault(name, {})["/".join(path)] = value
            case ("nodes", name):
                view.nodes[name] = value
            case ("drains", name):
                view.drains[name] = value
            case ("edges", name):
                view.edges[name] = value
            case ("vips", name):
                view.vips[name] = {**value, "revision": item.mod_revision}
            case ("calls", call, part):
                view.calls.setdefault(call, {})[part] = value
            case ("agents", name):
                view.agents[name] = value
            case ("agents", name, "reach"):
                view.reach[name] = value
            case ("queues", name, "config"):
                view.queues[name] = value
            case ("queues", name, "waiting", _):
                view.waiting.setdefault(name, []).append(value)
    for entries in view.waiting.values():
        entries.sort(key=lambda e: (-e.get("priority", 0), e.get("entered", 0.0), e.get("call", "")))
    return view


def node_of(parts: dict[str, dict[str, Any]]) -> str:
    """The name of the node that serves a call."""
    return str(parts.get("owner", {}).get("node", "")).partition("#")[0]


def agents_of(call: str, parts: dict[str, dict[str, Any]], agents: dict[str, dict[str, Any]]) -> list[str]:
    """Everybody but the caller whom the call touches: who is on it, is rung or reserved for it, is consulted,
    or supervises it. By the agent's name; a phone that is no agent's, or a number outside, by itself."""
    from ari_ha.machines.acd_agents import BUSY

    record = parts.get("record", {})
    at = {value["device"]: name for name, value in agents.items() if value.get("device")}
    legs = [leg for leg in record.get("legs", {}).values() if leg.get("state", "up") != "ended"]
    targets = [str(leg.get("target", "")).partition(":")[2] for leg in legs]
    attempts = record.get("attempts", {}).values()
    supervisor = str(parts.get("supervisor", {}).get("device", ""))
    found = [leg.get("agent") or at.get(target, target) for leg, target in zip(legs, targets, strict=True)]
    found += [a["agent"] for a in attempts if a.get("state", "intent") in ("intent", "ringing")]
    found += [
        name
        for name, value in sorted(agents.items())
        if value.get("work", "idle") in BUSY and (value.get("attempt") or {}).get("call") == call
    ]
    found.append(at.get(supervisor, supervisor))
    return [name for name in dict.fromkeys(found) if name]


def call_row(
    call: str, parts: dict[str, dict[str, Any]], agents: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """A call's keys as one flat line."""
    owner, record, media = (parts.get(name, {}) for name in ("owner", "record", "media"))
    return {
        "call": call,
        "stage": record.get("stage", "setup"),
        "node": node_of(parts),
        "epoch": owner.get("epoch", ""),
        "edge": owner.get("edge", ""),
        "moving": bool(owner.get("moving", False)),
        "caller": record.get("caller", ""),
        "did": record.get("did", ""),
        "queue": record.get("queue", ""),
        "agent": ",".join(agents_of(call, parts, agents)),
        "media": media.get("state", ""),
        "started": record.get("started", 0.0) or owner.get("since", 0.0),
    }


def agent_row(value: dict[str, Any], reach: dict[str, Any]) -> dict[str, Any]:
    """An agent's keys as one flat line."""
    attempt = value.get("attempt") or {}
    return {
        "agent": value.get("agent", ""),
        "name": value.get("name", ""),
        "state": state_word(value),
        "intent": value.get("intent", "logged_out"),
        "reason": value.get("reason", ""),
        "work": value.get("work", "idle"),
        "since": max(value.get("intent_since", 0.0), value.get("work_since", 0.0)),
        "device": value.get("device", ""),
        "reach": reach.get("device", "lost"),
        "queues": sorted(value.get("queues", {})),
        "call": attempt.get("call", ""),
        "handled": value.get("handled", 0),
        "missed": value.get("missed", 0),
        "recovering": value.get("recovering") is not None,
    }


def state_word(value: dict[str, Any]) -> str:
    """The one word people use: work goes before intent."""
    work = value.get("work", "idle")
    intent = value.get("intent", "logged_out")
    return str(intent if work == "idle" else work)
