"""May this server be writable now, and what ends it when it may not.

A lead is a key leased by this process; it ends `fence_before_s` before the lease may.
While etcd is away, a standby's watcher that confirms to follow stands in for it: it
promises not to take the lead for a while, and without it no commit is confirmed anyway.
The fence asks for read-only first and ends in killing the server's process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ari_ha.core.machine import Done, Instant, Outcome
from ari_ha.core.ports.database import DatabaseDo, KillServer, SendPeer
from ari_ha.machines.database_context import Context

FENCE_LANE, KILL_LANE = "fence", "kill"


class Authority:
    """Of one watcher over its server."""

    def __init__(self, ctx: Context, born: Instant) -> None:
        self._ctx = ctx
        self._born = born
        self._ok_until: Instant = born
        self.confirmed_until: Instant = 0.0
        self.promised_until: Instant = born + ctx.timings.promise_s
        """A life before this one may have promised; nobody remembers."""
        self.confirming = ""
        self._asked: dict[int, Instant] = {}
        self._ask_number = 0
        self._ask_at: Instant = 0.0
        self.fence_began: Instant | None = None
        self._killing = False
        self._kill_again_at: Instant = 0.0

    # -- may it be writable

    def lease_ok(self, now: Instant) -> bool:
        """The lead is ours and will be for longer than a fence takes."""
        model = self._ctx.model
        return model.leads and model.lease_held and now < model.lease_until - self._ctx.timings.fence_before_s

    def confirmed(self, now: Instant) -> bool:
        """The standby's watcher confirmed, and nobody else leads."""
        return now < self.confirmed_until and self.armed and not self._ctx.model.led_by_other

    @property
    def armed(self) -> bool:
        """Nothing is confirmed to a client that the named standby has not received."""
        model, seen = self._ctx.model, self._ctx.model.server
        return (
            seen is not None and seen.semi_source and model.primary == model.me
            and bool(model.standby) and model.waits
        )  # fmt: skip

    def may_write(self, now: Instant) -> bool:
        """Whether the server may be writable at this instant."""
        if self.lease_ok(now) or self.confirmed(now):
            return True
        if self._ctx.model.led_by_other or not self.armed:
            return False
        ctx = self._ctx
        leader = ctx.model.leader
        ours = leader is None or leader.value.server == ctx.model.me
        if ours and now < self._born + ctx.timings.adopt_s:
            return True
        return now < self._ok_until + ctx.timings.uncertain_s

    # -- the peer

    def _doubtful(self, now: Instant) -> bool:
        model = self._ctx.model
        short = model.lease_until - now < self._ctx.timings.ask_below_s
        return not model.reachable or not model.lease_held or not model.leads or short

    def _ask(self, now: Instant) -> None:
        """Asks the standby's watcher while it matters."""
        model, timings = self._ctx.model, self._ctx.timings
        seen = model.server
        if seen is None or not seen.writable or not self.armed or not self._doubtful(now):
            self._ask_at = 0.0
            return
        if now < self._ask_at:
            return
        self._ask_at = now + timings.ask_every_s
        self._ask_number += 1
        self._asked = {n: at for n, at in self._asked.items() if now - at < timings.confirm_s}
        self._asked[self._ask_number] = now
        self._ctx.emit(SendPeer(peer=model.standby, message=self._message("ask", self._ask_number)))

    def _message(self, kind: str, number: int, process: str = "") -> dict[str, Any]:
        sync = self._ctx.model.sync
        return {
            "kind": kind,
            "n": number,
            "process": process or self._ctx.config.process,
            "sync": sync.mod_revision if sync else 0,
        }

    def heard(self, peer: str, message: Mapping[str, Any], taking: bool, now: Instant) -> None:
        """A datagram of the other watcher."""
        model = self._ctx.model
        number = message.get("n")
        if (
            not isinstance(number, int)
            or model.sync is None
            or message.get("sync") != model.sync.mod_revision
        ):
            return
        if message.get("kind") == "ask":
            if peer == model.primary and not taking and self._follows(peer, now):
                self.promised_until = max(self.promised_until, now + self._ctx.timings.promise_s)
                self.confirming = peer
                reply = self._message("confirm", number, str(message.get("process", "")))
                self._ctx.emit(SendPeer(peer=peer, message=reply))
        elif message.get("kind") == "confirm" and message.get("process") == self._ctx.config.process:
            asked = self._asked.pop(number, None)
            if asked is not None and peer == model.standby:
                self.confirmed_until = max(self.confirmed_until, asked + self._ctx.timings.confirm_s)

    def _follows(self, peer: str, now: Instant) -> bool:
        """This server is the standby `sync` names, and receives from ``peer``."""
        model, seen = self._ctx.model, self._ctx.model.server
        return (
            seen is not None
            and model.running(now)
            and now - model.asked_at <= self._ctx.timings.confirm_fresh_s
            and model.sync is not None
            and model.standby == model.me
            and model.sync.value.standby_life == seen.life
            and seen.source == peer
            and seen.io == "yes"
            and not model.leads
        )

    def promised(self, now: Instant) -> bool:
        """Somebody builds on our not taking the lead."""
        released, sync = self._ctx.model.released, self._ctx.model.sync
        if released is not None and sync is not None and released.value.sync_revision == sync.mod_revision:
            return False
        return now < self.promised_until

    # -- the fence

    def tick(self, now: Instant) -> None:
        """Asks, and fences what may not be writable."""
        ctx, model = self._ctx, self._ctx.model
        if now >= self.promised_until:
            self.confirming = ""
        if self.lease_ok(now) or self.confirmed(now):
            self._ok_until = now
        self._ask(now)
        if self.may_write(now) or not self._perhaps_writable():
            self.fence_began = None
            return
        if self.fence_began is None:
            self.fence_began = now
            ctx.count("fences")
            ctx.note("may not be writable any more", leader=model.led_by_other, lease=str(model.lease_held))
            if ctx.steps.open_tag:
                self.kill("an open is under way", now)
                return
            ctx.steps.drop("fence", now)
            effect = DatabaseDo(
                verb="close", args={"lock_wait_s": ctx.timings.lock_wait_s}, tag="fence",
                lane=FENCE_LANE, limit_s=ctx.timings.close_limit_s,
            )  # fmt: skip
            ctx.emit(effect)
            ctx.emit(DatabaseDo(verb="disconnect", tag="fence", lane=FENCE_LANE, limit_s=1.0))
        elif now >= self.fence_began + ctx.timings.close_limit_s + 0.1:
            self.kill("not read-only in time", now)

    def _perhaps_writable(self) -> bool:
        ctx, model = self._ctx, self._ctx.model
        if model.alive is False:
            return False
        if ctx.steps.open_tag:
            return True
        return bool(model.alive) and model.seen is not None and model.seen.writable

    def kill(self, why: str, now: Instant) -> None:
        """Ends the server's process."""
        if self._killing or now < self._kill_again_at or self._ctx.model.alive is False:
            return
        self._killing = True
        self._ctx.count("kills")
        self._ctx.note("server killed", why=why)
        self._ctx.steps.drop("the server is killed", now)
        self._ctx.emit(KillServer(tag="kill", lane=KILL_LANE, limit_s=5.0))

    def killed(self, outcome: Outcome, now: Instant) -> None:
        """The outcome of a kill; tried until it is Done."""
        self._killing = False
        if isinstance(outcome, Done):
            self._ctx.steps.open_tag = ""
            self.fence_began = None
        else:
            self._kill_again_at = now + self._ctx.timings.retry_s

    def closed(self, outcome: Outcome, now: Instant) -> None:
        """The outcome of the fence's `close`."""
        if not isinstance(outcome, Done):
            self.kill("commits wait, read-only is impossible", now)

    def deadline(self, now: Instant) -> Instant | None:
        """When something changes by time alone."""
        model, timings = self._ctx.model, self._ctx.timings
        seen = model.server
        if seen is None or not (seen.writable or self._ctx.steps.open_tag):
            return None
        times = [
            model.lease_until - timings.fence_before_s,
            model.lease_until - timings.ask_below_s,
            self.confirmed_until,
            self._ok_until + timings.uncertain_s,
            self._born + timings.adopt_s,
            self._ask_at,
            self._kill_again_at,
        ]
        if self.fence_began is not None:
            times.append(self.fence_began + timings.close_limit_s + 0.1)
        return min((at for at in times if at > now), default=None)
