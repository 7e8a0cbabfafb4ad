"""Two writers that follow each other: no lead, no promise about conflicts.

Only by explicit setting. Each watcher keeps its own server open and following; what
both changed at once differs silently, which only checksums show.
"""

from __future__ import annotations

from ari_ha.core.machine import Instant
from ari_ha.machines.database_context import Context
from ari_ha.machines.database_primary import Primary
from ari_ha.machines.database_replica import Replica
from ari_ha.machines.database_steps import Step


class TwoWriters:
    """The lists of steps of a server in this shape."""

    def __init__(self, ctx: Context, primary: Primary, replica: Replica) -> None:
        self._ctx = ctx
        self._primary = primary
        self._replica = replica

    def plan(self, now: Instant) -> None:
        """Begins the list of steps that is due, if any."""
        ctx, model = self._ctx, self._ctx.model
        if model.alive is False:
            self._replica.start(now)
            return
        seen = model.server
        if seen is None or not model.running(now):
            return
        config = ctx.config
        if model.misnumbered:
            # Connections that are there go on with the old numbers.
            self._begin("number", [self._primary.number(), self._primary.do("disconnect")], now)
        elif model.problems():
            if seen.writable:
                self._begin("close", [self._primary.do("close", lock_wait_s=ctx.timings.lock_wait_s)], now)
        elif seen.source != config.peer:
            server = config.servers[config.peer]
            follow = self._primary.do("follow", source=config.peer, host=server.host, port=server.port)
            self._begin(
                "follow", [self._primary.do("follow_stop"), follow, self._primary.do("follow_start")], now
            )
        elif seen.io == "no" or (not seen.applying and not seen.apply_error):
            self._begin("follow", [self._primary.do("follow_start")], now)
        elif seen.semi_source:
            self._begin("number", [self._primary.do("semi_off", limit_s=5.0)], now)
        elif not seen.writable and not model.hold:
            self._begin("open", [self._primary.do("open")], now)

    def _begin(self, kind: str, steps: list[Step], now: Instant) -> None:
        self._ctx.steps.begin(kind, steps, lambda at: bool(self._ctx.model.alive), now)
