"""How calls and nodes look to people and tools (HTTP API of the edge)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ari_ha.machines.edge_model import EdgeCall
from ari_ha.machines.node_watch import WatchedNode

if TYPE_CHECKING:
    from ari_ha.machines.edge import EdgeMachine


def edge_view(edge: EdgeMachine) -> dict[str, Any]:
    """The edge itself as JSON."""
    context = edge.context
    return {
        "edge": context.config.edge,
        "vip": context.config.vip,
        "active": bool(context.edge_revision),
        "serving": edge.serving,
        "edge_revision": context.edge_revision,
        "warm": edge.warm,
        "etcd": context.store_ok,
        "rtpengine": context.media_ok,
        "calls": len(edge.calls.by_id),
        "phones": edge.registrar.counts(),
        "moving": edge.takeover.moving_count(),
        "waiting_for_a_node": edge.takeover.waiting_count(),
        "banned": edge.doorkeeper.banned(),
        "sip": dict(context.sip.counters),
    }


def call_view(call: EdgeCall) -> dict[str, Any]:
    """One call as JSON."""
    return {
        "call": call.call,
        "kind": call.kind,
        "caller": call.caller,
        "did": call.did,
        "trunk": call.trunk,
        "started": call.started_utc,
        "node": call.owner.name if call.owner else "",
        "incarnation": call.owner.incarnation if call.owner else "",
        "epoch": str(call.epoch),
        "media": call.media.state,
        "want": call.want,
        "lost": call.lost,
        "moving_to": call.move.to.name if call.move else "",
        "legs": {
            leg.leg: {"role": leg.role, "state": leg.state, "held": leg.held, "muted": leg.muted,
                      "aor": leg.aor, "attempt": leg.attempt, "target": leg.target, "trunk": leg.trunk,
                      "srtp": leg.side.suite, "fax": bool(leg.fax.get("on"))}
            for leg in call.living()
        },
        "node_legs": {
            half.leg: {"node": half.node.name, "state": half.state, "epoch": str(half.epoch), "tag": half.tag}
            for half in call.halves.values()
        },
        "recorded": {
            leg.leg: sorted(one.node for one in call.recorders.values() if one.on and one.leg == leg.leg)
            for leg in call.recorded_legs()
        },
        "tombstones": dict(call.tombstones),
        "digits": list(call.digits),
        "moves": list(call.moves),
    }  # fmt: skip


def node_view(node: WatchedNode, calls: int) -> dict[str, Any]:
    """One node as this edge sees it."""
    return {
        "node": node.config.name,
        "incarnation": node.incarnation,
        "state": node.state,
        "usable": node.usable,
        "app_ready": node.app_ready,
        "reason": node.app_reason,
        "cordoned": node.cordoned,
        "draining": node.draining,
        "link": node.link_up,
        "calls": calls,
        "lost_why": node.lost_why,
    }
