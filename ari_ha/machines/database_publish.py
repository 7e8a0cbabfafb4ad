"""What a watcher tells the world of its server: its member value, and status."""

from __future__ import annotations

from typing import Any

from ari_ha.core.machine import Instant, Outcome
from ari_ha.core.ports.store import Put, StoreTxn
from ari_ha.machines.database_authority import Authority
from ari_ha.machines.database_checksum import Checksums
from ari_ha.machines.database_config import TWO_WRITERS
from ari_ha.machines.database_context import Context
from ari_ha.wire.database_keys import ErrantValue, HistoryValue, MemberValue, encode

PUBLISH_LANE = "member"


class Publisher:
    """Writes `members/<server>`: at every change of substance at once, otherwise with
    the looks at the server, one write at a time."""

    def __init__(self, ctx: Context, authority: Authority, checksums: Checksums) -> None:
        self._ctx = ctx
        self._authority = authority
        self._checksums = checksums
        self._written: MemberValue | None = None
        self._at: Instant = -1e9
        self._under_way = False
        self._look: Instant = -1.0

    def role(self, now: Instant) -> str:
        """In a word."""
        model = self._ctx.model
        if model.rebuild is not None:
            return "rebuilding"
        if not model.alive:
            return "down" if model.alive is False else "unknown"
        seen = model.server
        if seen is None or not model.running(now):
            return "unknown"
        if seen.writable and self._ctx.config.shape == TWO_WRITERS:
            return "writer"
        if seen.writable:
            return "primary" if model.primary == model.me and self._authority.may_write(now) else "closed"
        return "replica" if seen.source else "closed"

    def value(self, now: Instant) -> MemberValue:
        """The member as it is now."""
        ctx, model = self._ctx, self._ctx.model
        running = model.running(now) and model.rebuild is None
        common: dict[str, Any] = {
            "server": model.me, "process": ctx.config.process, "running": running, "role": self.role(now),
            "flavour": ctx.config.flavour, "http": ctx.config.http,
            "term": model.sync.value.term if model.sync else 0, "basis": model.basis,
            "confirming": self._authority.confirming,
        }  # fmt: skip
        seen = model.server
        if seen is None:
            return MemberValue(**common)
        return MemberValue(
            **common,
            writable=seen.writable, life=seen.life, uuid=seen.uuid, server_id=seen.server_id,
            version=seen.version, position=seen.position, history=seen.history, received=seen.received,
            source=seen.source, io=seen.io, applying=seen.applying, error=seen.apply_error or seen.io_error,
            semi_source=seen.semi_source, semi_clients=seen.semi_clients, semi_waiting=seen.semi_waiting,
            semi_replica=seen.semi_replica, lag_ms=None if seen.lag_s is None else round(seen.lag_s * 1000),
            increment=seen.increment, offset=seen.offset, errant=model.errant() or "",
            problems=model.problems(), disk_free_share=round(seen.disk_free_share, 2),
            connections=seen.connections, shape=ctx.config.shape, diverged=self._checksums.diverged,
        )  # fmt: skip

    def tick(self, now: Instant) -> None:
        """Writes when there is something to say."""
        model = self._ctx.model
        if self._under_way or not model.lease_held or not model.reachable or now >= model.lease_until:
            return
        if self._written is not None and model.member(model.me) is None and now - self._at < 1.0:
            return
        value = self.value(now)
        old = self._written
        gone = model.loaded and model.member(model.me) is None
        fresh = model.asked_at != self._look
        urgent = old is None or gone or any(
            getattr(old, name) != getattr(value, name) for name in ("running", "role", "life", "io", "term")
        )  # fmt: skip
        # A leader answers every look; a replica what has changed.
        changed = fresh and (model.leads or (old is not None and value != old and self._differs(old, value)))
        if not (urgent or changed or now >= self._at + self._ctx.timings.publish_s):
            return
        self._look, self._at, self._written, self._under_way = model.asked_at, now, value, True
        self._ctx.emit(
            StoreTxn(
                puts=(Put(model.keys.member(model.me), encode(value), leased=True),),
                tag="member", lane=PUBLISH_LANE,
            )
        )  # fmt: skip

    @staticmethod
    def _differs(old: MemberValue, value: MemberValue) -> bool:
        names = ("position", "received", "source", "applying", "error", "semi_source", "semi_clients",
                 "errant", "problems", "confirming", "writable", "diverged")  # fmt: skip
        return any(getattr(old, name) != getattr(value, name) for name in names)

    def outcome(self, outcome: Outcome) -> None:
        """The write ended, somehow: the next one says everything again."""
        self._under_way = False
        if type(outcome).__name__ != "Done":
            self._written = None

    def deadline(self) -> Instant:
        """When it is due whatever happens."""
        return self._at + self._ctx.timings.publish_s


def status(ctx: Context, authority: Authority, publisher: Publisher, now: Instant) -> dict[str, Any]:
    """Everything `ari-ha db status` shows of one database."""
    model = ctx.model
    sync, leader = model.sync, model.leader
    return {
        "name": ctx.config.database,
        "mode": ctx.config.mode,
        "shape": ctx.config.shape,
        "flavour": ctx.config.flavour,
        "server": model.me,
        "leader": leader.value.server if leader else None,
        "stage": leader.value.stage if leader else None,
        "primary": sync.value.primary if sync else None,
        "standby": (sync.value.standby or None) if sync else None,
        "term": sync.value.term if sync else 0,
        "held": bool(model.hold),
        "order": model.order.value.kind if model.order else None,
        "may_write": authority.may_write(now),
        "confirmed": authority.confirmed(now),
        "doing": ctx.steps.kind or None,
        "step": ctx.steps.current.step if ctx.steps.current else None,
        "members": [member_status(member) for member in model.members.values()],
        "counts": dict(ctx.counts),
        "unreadable": dict(model.unreadable),
    }


def member_status(member: MemberValue) -> dict[str, Any]:
    """One server for people and `--json`."""
    return {
        "name": member.server,
        "role": member.role,
        "running": member.running,
        "writable": member.writable,
        "follows": member.source or None,
        "io": member.io,
        "applying": member.applying,
        "lag_ms": member.lag_ms,
        "errant": member.errant or None,
        "error": member.error or None,
        "problems": member.problems,
        "diverged": member.diverged,
        "waiting": member.semi_waiting,
        "position": member.position,
        "version": member.version,
        "disk_free_share": member.disk_free_share,
        "connections": member.connections,
    }


def history(ctx: Context) -> list[dict[str, Any]]:
    """Changes of primary, the newest last."""
    found = [s.value for _, s in sorted(ctx.model.stored.items()) if isinstance(s.value, HistoryValue)]
    return [
        {"term": v.term, "new": v.new, "old": v.old, "why": v.why, "at": v.at, "took_ms": v.took_ms}
        for v in found
    ]


def errant_notes(ctx: Context) -> list[dict[str, Any]]:
    """What was taken out of servers, and where it can be read."""
    found = [s.value for _, s in sorted(ctx.model.stored.items()) if isinstance(s.value, ErrantValue)]
    return [{"server": v.server, "gtids": v.gtids, "file": v.file, "at": v.at} for v in found]
