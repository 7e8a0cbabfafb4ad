"""Two writers: what both changed at once differs in silence; checksums tell.

The servers are never looked at in the same moment, so only tables that stand still are judged: one that
had its sum unchanged for a while on both servers, the same while, and not the same sum, has diverged. One
that is written to all the time is not judged here; `ari-ha db checksum`, asked for in a quiet hour, does.
"""

from __future__ import annotations

from collections.abc import Mapping

from ari_ha.core.machine import Done, Instant, Outcome
from ari_ha.core.ports.database import DatabaseDo
from ari_ha.core.ports.store import Put, StoreTxn
from ari_ha.machines.database_config import TWO_WRITERS
from ari_ha.machines.database_context import Context
from ari_ha.wire.database_keys import ChecksumsValue, encode

LANE = TAG = "checksums"
TABLES_MAX = 1000
"""Published; the rest is not judged."""


class Checksums:
    """Takes them, publishes them, compares them."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._at: Instant = 0.0
        self._under_way = False
        self._mine = ChecksumsValue(server=ctx.config.server)
        self._compared = (0.0, 0.0)
        self.diverged: list[str] = []

    def tick(self, now: Instant) -> None:
        """Asks for them when they are due; compares what is there."""
        ctx, model = self._ctx, self._ctx.model
        if ctx.config.shape != TWO_WRITERS:
            return
        self._compare()
        if self._under_way or now < self._at or not model.running(now) or not model.lease_held:
            return
        self._under_way, self._at = True, now + ctx.timings.checksum_every_s
        ctx.emit(DatabaseDo(verb="checksum", tag=TAG, lane=LANE, limit_s=ctx.timings.checksum_limit_s))

    def outcome(self, outcome: Outcome) -> None:
        """Sums by table."""
        ctx = self._ctx
        self._under_way = False
        if not isinstance(outcome, Done):
            ctx.note("no checksums", why=f"{type(outcome).__name__}: {outcome.reason}", level="warning")
            return
        sums = dict(sorted(outcome.value.items())[:TABLES_MAX])
        old = self._mine
        since = {
            table: old.since[table] if old.sums.get(table) == value and table in old.since else ctx.utc_s
            for table, value in sums.items()
        }
        self._mine = ChecksumsValue(server=ctx.config.server, at=ctx.utc_s, sums=sums, since=since)
        put = Put(ctx.model.keys.checksums(ctx.config.server), encode(self._mine))
        ctx.emit(StoreTxn(puts=(put,), tag="sums", lane=LANE))

    def _compare(self) -> None:
        theirs = self._ctx.model.checksums(self._ctx.config.peer)
        if theirs is None or (looks := (self._mine.at, theirs.at)) == self._compared:
            return
        self._compared = looks
        found = diverged(self._mine, theirs, self._ctx.timings.checksum_settle_s)
        if found != self.diverged:
            what = {"tables": ", ".join(found)[:500], "were": ", ".join(self.diverged)[:500]}
            text = "tables differ on the two servers" if found else "tables are the same again"
            self._ctx.note(text, level="warning" if found else "info", **what)
        self.diverged = found

    def deadline(self, now: Instant) -> Instant | None:
        """When the next are due."""
        return self._at if self._ctx.config.shape == TWO_WRITERS and not self._under_way else None


def diverged(mine: ChecksumsValue, theirs: ChecksumsValue, settle_s: float) -> list[str]:
    """Tables that stood still on both for ``settle_s`` at the same time, and differ. One that the other
    server has not counts as one that differs."""
    seen_until = min(mine.at, theirs.at)

    def still(since: Mapping[str, float], other: Mapping[str, float], table: str) -> float:
        return seen_until - max(since.get(table, 0.0), other.get(table, 0.0))

    return [
        table
        for table in sorted({*mine.sums, *theirs.sums})
        if mine.sums.get(table) != theirs.sums.get(table)
        and still(mine.since, theirs.since, table) >= settle_s
        and mine.sums and theirs.sums
    ]  # fmt: skip
