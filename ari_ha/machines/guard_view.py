"""A guard as people and tests see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ari_ha.machines.guard import GuardMachine


def guard_view(guard: GuardMachine, now: float) -> dict[str, Any]:
    """Its role, what it knows, and what would keep it from taking over."""
    config, peer = guard.config, guard.peer
    return {
        "edge": config.edge,
        "vip": config.vip,
        "role": guard.role,
        "revision": guard.revision,
        "active": guard.vip.edge,
        "fit": guard.fit(now),
        "edge_process": now - guard.edge_at <= guard.timings.edge_silence_s,
        "warm": guard.edge_warm,
        "relay": guard.relay,
        "clean": guard.clean,
        "addresses": guard.addresses,
        "peer": {
            "edge": config.peer,
            "heard": guard.peer_fresh(now),
            "active": peer.active,
            "fit": peer.fit,
        },
        "conflict": guard.conflict,
    }
