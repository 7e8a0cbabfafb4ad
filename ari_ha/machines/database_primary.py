"""What a watcher does that holds the lead: open, keep a standby certified, hand over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ari_ha.core.machine import Effect, Instant
from ari_ha.core.ports.database import DatabaseDo, Observation
from ari_ha.core.ports.store import Compare, Delete, Put, StoreTxn
from ari_ha.machines.database_authority import Authority
from ari_ha.machines.database_config import ASYNC, CIRCULAR, STRICT
from ari_ha.machines.database_context import Context
from ari_ha.machines.database_model import covers
from ari_ha.machines.database_steps import Step, StepFailed
from ari_ha.wire.database_keys import (
    HistoryValue,
    LeaderValue,
    MemberValue,
    OrderValue,
    PositionValue,
    ReleasedValue,
    SyncValue,
    encode,
)

STORE_LIMIT_S = 2.0


class Primary:
    """The leading watcher's lists of steps."""

    def __init__(self, ctx: Context, authority: Authority) -> None:
        self._ctx = ctx
        self._authority = authority
        self._stuck_since: Instant | None = None
        self._acked = -1
        self._moved = True
        self._judged_at: Instant = -1.0
        self._heartbeat_at: Instant = 0.0
        self.heartbeat_under_way = False
        self._position_at: Instant = 0.0
        self._position = ""
        self._certify_again_at: Instant = 0.0
        self._semi_on_at: Instant = 0.0
        self.took_at: Instant = 0.0

    # -- what is next

    def plan(self, now: Instant) -> None:
        """Begins the list of steps that is due, if any."""
        ctx, model = self._ctx, self._ctx.model
        seen = model.server
        if seen is None or (model.sync is None and not model.leads):
            return
        if not model.leads:
            self._retake(now)
            return
        if not self._authority.lease_ok(now):
            return
        leader = model.leader
        assert leader is not None
        if not (leader.value.stage == "open" and seen.writable and model.primary == model.me):
            if not seen.writable and model.order and model.order.value.stage == "asked":
                self._begin("cancel", [self._txn("forget the order", deletes=(model.keys.order,))], now)
            elif why := self._unfit(seen):
                ctx.steps.begin("release", self.release(why), self.leading, now)
            else:
                self._begin("promote", self._promotion(seen), now)
            return
        if model.standby and not seen.semi_source:
            # Somebody turned waiting off: nobody else has everything then.
            self._begin("disarm", [self._alone()], now)
        elif self._degrade_due(seen, now):
            self._begin("degrade", self._degrade(), now)
        elif (order := model.order) and order.value.kind == "switchover" and order.value.stage == "asked":
            if order.value.by == ctx.config.process:
                self._begin("switchover", self._switchover(order.value.server), now)
            else:
                self._begin("cancel", [self._txn("forget the order", deletes=(model.keys.order,))], now)
        elif self._certify_due(seen, now):
            self._begin("certify", self._certify(), now)
        elif self._follow_due(seen):
            self._begin("follow", self._follow_peer(seen), now)
        elif model.misnumbered:
            self._begin("number", [self.number()], now)

    def _unfit(self, seen: Observation) -> str:
        """Why this server cannot be promoted any more, though it has the lead."""
        model = self._ctx.model
        leader, sync = model.leader, model.sync
        if model.primary == model.me:
            return ""  # a peer that comes up with our identity is the one who has to yield
        if model.same_identity:
            return "its identity is not its own"
        if sync is None or (leader is not None and leader.value.forced):
            return ""
        if seen.apply_error:
            return f"it cannot apply: {seen.apply_error}"
        named = (sync.value.standby, sync.value.standby_life) == (model.me, seen.life)
        if not named and (sync.value.mode != "async" or model.waits):
            return "it was restarted: what it had received may be gone"
        return ""

    def _begin(self, kind: str, steps: list[Step], now: Instant) -> None:
        def wanted(at: Instant) -> bool:
            if not (self._ctx.model.leads and self._authority.lease_ok(at) and self._ctx.model.alive):
                return False
            # Waiting for a standby to catch up must not outlast the standby.
            server = self._ctx.model.server
            return not (kind == "certify" and server and self._degrade_due(server, at))

        self._ctx.steps.begin(kind, steps, wanted, now)

    def leading(self, now: Instant) -> bool:
        """The lead is ours and etcd may be written."""
        model = self._ctx.model
        return model.leads and model.lease_held and now < model.lease_until

    def _retake(self, now: Instant) -> None:
        """The key names this server, but a watcher before this one wrote it."""
        ctx, model = self._ctx, self._ctx.model
        leader = model.leader
        if leader is None or leader.value.server != model.me or not model.lease_held or not model.reachable:
            return
        seen = model.server
        stage = "open" if seen and seen.writable and model.primary == model.me else "promoting"
        value = LeaderValue(
            server=model.me, process=ctx.config.process, stage=stage, since=leader.value.since
        )
        steps = [
            self._txn(
                "take the lead over", puts=(self._leader_put(value),), compares=(model.compare_leader(),)
            )
        ]
        ctx.steps.begin("retake", steps, lambda at: model.lease_held and model.reachable, now)

    # -- steps

    def _leader_put(self, value: LeaderValue) -> Put:
        return Put(self._ctx.model.keys.leader, encode(value), leased=True)

    def _txn(
        self,
        name: str,
        puts: tuple[Put, ...] = (),
        deletes: tuple[str, ...] = (),
        compares: tuple[Compare, ...] | None = None,
    ) -> Step:
        """A transaction that compares the lead, as it is when it is sent."""

        def act(now: Instant) -> Effect:
            given = compares if compares is not None else (self._ctx.model.compare_leader(),)
            return StoreTxn(
                compares=given,
                puts=puts,
                deletes=tuple(Delete(key) for key in deletes),
                limit_s=STORE_LIMIT_S,
            )

        return Step(name, act)

    def do(
        self,
        verb: str,
        limit_s: float = 2.0,
        unless: Callable[[Observation], bool] | None = None,
        **args: Any,
    ) -> Step:
        """A verb on the server, left out when ``unless`` holds already."""

        def act(now: Instant) -> Effect | None:
            seen = self._ctx.model.server
            if seen is None:
                raise StepFailed("the server is not seen")
            if unless is not None and unless(seen):
                return None
            return DatabaseDo(verb=verb, args=args, limit_s=limit_s)

        return Step(verb, act)

    def seen(self, name: str, condition: Callable[[Observation], bool], limit_s: float) -> Step:
        """Waits for a look at the server, asked after this step began, that shows it."""

        def until() -> bool:
            running = self._ctx.steps.current
            seen = self._ctx.model.server
            return (
                running is not None and seen is not None
                and self._ctx.model.asked_at >= running.step_began and condition(seen)
            )  # fmt: skip

        return Step(name, until=until, limit_s=limit_s)

    def number(self) -> Step:
        """Keys apart from the other server's."""
        config = self._ctx.config
        self._ctx.note(
            "auto_increment mended", increment=str(len(config.servers)), offset=str(config.offset),
            why="; ".join(self._ctx.model.problems()), level="warning",
        )  # fmt: skip
        return self.do("number", increment=len(config.servers), offset=config.offset)

    def release(self, why: str) -> list[Step]:
        """Gives the lead back at once; promises to this server are void then."""
        ctx, model = self._ctx, self._ctx.model

        def act(now: Instant) -> Effect:
            sync = model.sync.mod_revision if model.sync else 0
            value = ReleasedValue(server=model.me, sync_revision=sync, why=why)
            return StoreTxn(
                compares=(model.compare_leader(),),
                puts=(Put(model.keys.released, encode(value)),),
                deletes=(Delete(model.keys.leader),),
                limit_s=STORE_LIMIT_S,
            )

        ctx.note("lead given back", why=why)
        return [Step("release", act)]

    # -- promotion

    def _promotion(self, seen: Observation) -> list[Step]:
        """From whatever state: drained, alone, numbered, open."""
        ctx, model = self._ctx, self._ctx.model
        returning = model.primary == model.me
        steps: list[Step] = []
        if seen.writable and not returning:
            steps.append(self.do("close", lock_wait_s=ctx.timings.lock_wait_s))
        if not seen.writable or not returning:
            if not returning:
                steps += self._drain(seen)
            if seen.source and ctx.config.shape != CIRCULAR:
                steps += [self.do("follow_stop"), self.do("follow_forget")]
            steps += self._semi(returning)
            if model.misnumbered:
                steps.append(self.number())
            steps.append(self._open())
            steps.append(self.seen("open seen", lambda now_seen: now_seen.writable, 3.0))
        steps.append(self._opened(seen, returning))
        return steps

    def _drain(self, seen: Observation) -> list[Step]:
        """Nothing more is received, and what was is applied."""
        life = self._ctx.model.sync.value.standby_life if self._ctx.model.sync else ""
        steps = [self.do("receive_stop", limit_s=10.0)] if seen.source else []

        def drained(now_seen: Observation) -> bool:
            if now_seen.apply_error:
                raise StepFailed(f"cannot apply: {now_seen.apply_error}")
            if life and now_seen.life != life and self._ctx.model.standby == self._ctx.model.me:
                raise StepFailed("another life: what was received may be gone")
            return now_seen.io == "no" and covers(now_seen.history, now_seen.received)

        if seen.source and not seen.applying:
            steps.append(self.do("apply_start", unless=lambda now_seen: now_seen.applying))
        steps.append(self.seen("everything applied", drained, self._ctx.timings.drain_limit_s))
        return steps

    def _semi(self, returning: bool) -> list[Step]:
        """Who has every write is decided in etcd before commits may stop waiting."""
        ctx, model = self._ctx, self._ctx.model
        sync = model.sync
        if returning and sync is not None and sync.value.standby and model.waits:
            return [self.do("semi_on", unless=lambda seen: seen.semi_source)]
        steps = [self._alone(new_term=not returning)]
        if ctx.config.mode == STRICT:
            return [*steps, self.do("semi_on", unless=lambda seen: seen.semi_source)]
        return [*steps, self.do("semi_off", limit_s=5.0, unless=lambda seen: not seen.semi_source)]

    def _alone(self, new_term: bool = False) -> Step:
        """`sync` names this server alone, freshly written, so that nothing sent before
        can apply any more."""
        ctx, model = self._ctx, self._ctx.model

        def act(now: Instant) -> Effect:
            old = model.sync.value if model.sync else None
            life = model.server.life if model.server else ""
            named = old is not None and (old.standby, old.standby_life) == (model.me, life)
            lossless = old is None or not new_term or (named and old.mode != ASYNC)
            value = SyncValue(
                primary=model.me,
                term=(old.term if old else 0) + (1 if new_term or old is None else 0),
                lossless=lossless if new_term or old is None else old.lossless,
                mode="async" if ctx.config.mode == ASYNC else "sync",
            )
            return StoreTxn(
                compares=(model.compare_leader(), model.compare_sync()),
                puts=(Put(model.keys.sync, encode(value)),),
                limit_s=STORE_LIMIT_S,
            )

        return Step("alone in etcd", act)

    def _open(self) -> Step:
        def act(now: Instant) -> Effect:
            if not self._authority.lease_ok(now):
                raise StepFailed("no authority")
            return DatabaseDo(verb="open", limit_s=2.0)

        return Step("open", act)

    def _opened(self, before: Observation, returning: bool) -> Step:
        ctx, model = self._ctx, self._ctx.model

        def act(now: Instant) -> Effect:
            leader, sync = model.leader, model.sync
            if leader is None or sync is None:
                raise StepFailed("the lead is gone")
            since = leader.value.since or ctx.utc_s
            value = LeaderValue(server=model.me, process=ctx.config.process, stage="open", since=since)
            puts = [self._leader_put(value)]
            if not returning:
                took_ms = round((now - self.took_at) * 1000) if self.took_at else 0
                why = "" if sync.value.lossless else "confirmed writes may be missing"
                history = HistoryValue(
                    term=sync.value.term, new=model.me, old=before.source, at=ctx.utc_s, took_ms=took_ms,
                    position=before.history, why=why,
                )  # fmt: skip
                puts.append(Put(model.keys.history(sync.value.term), encode(history)))
            return StoreTxn(compares=(model.compare_leader(),), puts=tuple(puts), limit_s=STORE_LIMIT_S)

        return Step("opened in etcd", act)

    # -- a standby

    def _peer(self) -> MemberValue | None:
        stored = self._ctx.model.member(self._ctx.config.peer)
        return stored.value if stored else None

    def _degrade_due(self, seen: Observation, now: Instant) -> bool:
        """Commits wait, or will wait, for a standby that is not there."""
        ctx, model = self._ctx, self._ctx.model
        if not seen.semi_source or ctx.config.mode == STRICT:
            self._stuck_since = None
            return False
        if not model.waits:
            return True
        peer = self._peer()
        if model.asked_at != self._judged_at:
            self._judged_at = model.asked_at
            self._moved, self._acked = seen.semi_acked != self._acked, seen.semi_acked
        waits = seen.semi_clients == 0 or (seen.semi_waiting > 0 and not self._moved)
        if not waits:
            self._stuck_since = None
            return False
        if self._stuck_since is None:
            self._stuck_since = now
        if peer is None or not peer.running:
            return True
        return now - self._stuck_since >= ctx.timings.degrade_after_s

    def _degrade(self) -> list[Step]:
        self._ctx.count("degraded")
        self._ctx.note("goes on without a standby", standby=self._ctx.model.standby, level="warning")
        self._certify_again_at = 0.0
        return [
            self._alone(),
            self.do("semi_off", limit_s=5.0),
            self.seen("off", lambda s: not s.semi_source, 3.0),
        ]

    def certifiable(self, seen: Observation) -> MemberValue | None:
        """The other server, when it could be the standby."""
        ctx, model = self._ctx, self._ctx.model
        peer = self._peer()
        if peer is None or not peer.running or peer.source != model.me or peer.io != "yes":
            return None
        if not peer.semi_replica or peer.errant or not peer.applying or not peer.life:
            return None
        if peer.disk_free_share < ctx.timings.disk_free_share_min or (
            seen.semi_clients < 1 and seen.semi_source
        ):
            return None
        return peer

    def _certify_due(self, seen: Observation, now: Instant) -> bool:
        model = self._ctx.model
        sync = model.sync
        if not model.waits or sync is None or now < self._certify_again_at:
            return False
        peer = self.certifiable(seen)
        if peer is None:
            return False
        return sync.value.standby != peer.server or sync.value.standby_life != peer.life

    def _certify(self) -> list[Step]:
        """Commits wait first; then the standby must have all there was; then etcd is told."""
        ctx, model = self._ctx, self._ctx.model
        goal: dict[str, str] = {}
        acked: list[int] = []
        self._certify_again_at = 0.0

        def on(value: Any) -> None:
            self._semi_on_at = ctx.steps.current.step_began if ctx.steps.current else 0.0

        def aim(seen: Observation) -> bool:
            if model.asked_at < self._semi_on_at + ctx.timings.settle_s or not seen.semi_source:
                return False
            if seen.semi_clients < 1:
                return False
            if not acked:
                acked.append(seen.semi_acked)
            if seen.semi_acked <= acked[0]:
                # A commit that was under way when waiting began may not wait, and may not be
                # in the position yet. One that waited, and was confirmed, lies behind it in
                # the binary log; the heartbeat is one at the latest.
                return False
            peer = self._peer()
            if peer is None:
                raise StepFailed("the standby has gone")
            goal["position"], goal["life"], goal["server"] = seen.position, peer.life, peer.server
            return True

        def caught_up() -> bool:
            peer = self._peer()
            if peer is None or not peer.running or peer.life != goal["life"]:
                raise StepFailed("the standby has gone")
            return peer.source == model.me and covers(peer.received, goal["position"])

        def act(now: Instant) -> Effect:
            assert model.sync is not None
            old = model.sync.value
            value = SyncValue(
                primary=model.me, standby=goal["server"], standby_life=goal["life"], term=old.term,
                lossless=old.lossless, mode="sync",
            )  # fmt: skip
            return StoreTxn(
                compares=(model.compare_leader(), model.compare_sync()),
                puts=(Put(model.keys.sync, encode(value)),),
                limit_s=STORE_LIMIT_S,
            )

        semi_on = self.do("semi_on", unless=lambda seen: seen.semi_source)
        return [
            Step("semi_on", semi_on.act, after=on),
            self.seen("commits wait", aim, 5.0),
            Step("standby has everything", until=caught_up, limit_s=ctx.timings.certify_limit_s),
            Step("standby in etcd", act),
        ]

    def certify_failed(self, now: Instant) -> None:
        """Not again at once: commits go on without it meanwhile."""
        self._certify_again_at = now + 2.0

    # -- circular

    def _follow_due(self, seen: Observation) -> bool:
        """The open server follows the other one too: what it wrote alone flows back."""
        peer = self._peer()
        if self._ctx.config.shape != CIRCULAR or peer is None or not peer.running or peer.writable:
            return False
        return seen.source != peer.server or (seen.io == "no" and not seen.apply_error)

    def _follow_peer(self, seen: Observation) -> list[Step]:
        config = self._ctx.config
        steps = []
        if seen.source != config.peer:
            server = config.servers[config.peer]
            steps = [
                self.do("follow_stop", limit_s=10.0),
                self.do("follow", source=config.peer, host=server.host, port=server.port),
            ]
        return [*steps, *self.follow_start(), self.seen("follows", lambda s: s.io != "no", 3.0)]

    def follow_start(self) -> list[Step]:
        """Starts following. Where each follows the other, a row may come twice: written by a server that
        died before anybody was told, and again, with the same key, on the other one."""
        tolerate = [self.do("tolerate")] if self._ctx.config.shape == CIRCULAR else []
        return [*tolerate, self.do("follow_start")]

    # -- switchover

    def refusal(self, server: str, now: Instant) -> str:
        """Why the lead cannot be handed to ``server`` without loss now; "" when it can."""
        ctx, model = self._ctx, self._ctx.model
        seen = model.server
        if not model.leads or not self._authority.lease_ok(now) or seen is None or not seen.writable:
            return "this server is not the open primary"
        if model.order is not None:
            return f"order {model.order.value.id} is under way"
        if server == model.me:
            return f"{server} is primary already"
        stored = model.member(server)
        if stored is None or not stored.value.running:
            return f"{server} is not there"
        peer, sync = stored.value, model.sync
        if peer.source != model.me or peer.io != "yes" or not peer.applying:
            return f"{server} does not follow: {peer.error or peer.io}"
        if peer.errant:
            return f"{server} has transactions of its own: {peer.errant}"
        if peer.lag_ms is not None and peer.lag_ms > ctx.timings.max_lag_s * 1000:
            return f"{server} is {peer.lag_ms} ms behind, limit {ctx.timings.max_lag_s * 1000:.0f}"
        if model.waits and (
            sync is None or sync.value.standby != server or sync.value.standby_life != peer.life
        ):
            return f"{server} is not the certified standby"
        return ""

    def _switchover(self, server: str) -> list[Step]:
        ctx, model = self._ctx, self._ctx.model
        goal: dict[str, str] = {}
        timings = ctx.timings

        def closed(seen: Observation) -> bool:
            goal["position"] = seen.position
            return not seen.writable

        def caught_up() -> bool:
            stored = model.member(server)
            if stored is None or not stored.value.running or stored.value.source != model.me:
                raise StepFailed("the candidate has gone")
            return covers(stored.value.history, goal["position"])

        def hand(now: Instant) -> Effect:
            order, sync = model.order, model.sync
            if order is None or sync is None:
                raise StepFailed("the order is gone")
            value = OrderValue(
                id=order.value.id, kind="switchover", server=server, stage="handed", by=ctx.config.process,
                since=order.value.since,
            )  # fmt: skip
            released = ReleasedValue(server=model.me, sync_revision=sync.mod_revision, why="switchover")
            return StoreTxn(
                compares=(
                    model.compare_leader(),
                    model.compare_sync(),
                    Compare(model.keys.order, order.mod_revision),
                ),
                puts=(Put(model.keys.order, encode(value)), Put(model.keys.released, encode(released))),
                deletes=(Delete(model.keys.leader),),
                limit_s=STORE_LIMIT_S,
            )  # fmt: skip

        lock_wait_s = timings.switchover_lock_wait_s
        return [
            self.do("close", limit_s=lock_wait_s + 1.0, lock_wait_s=lock_wait_s),
            self.do("disconnect"),
            self.seen("closed", closed, 3.0),
            Step("candidate has everything", until=caught_up, limit_s=timings.switchover_limit_s),
            Step("hand over", hand),
        ]

    # -- beside the steps

    def beside(self, now: Instant) -> None:
        """Heartbeat row, and without confirmations the newest position."""
        ctx, model = self._ctx, self._ctx.model
        seen = model.server
        if seen is None or not seen.writable or not self._authority.may_write(now):
            return
        if now >= self._heartbeat_at and not self.heartbeat_under_way:
            self._heartbeat_at = now + ctx.timings.heartbeat_s
            self.heartbeat_under_way = True
            term = model.sync.value.term if model.sync else 0
            ctx.emit(
                DatabaseDo(
                    verb="heartbeat", args={"term": term}, tag="heartbeat", lane="heartbeat", limit_s=1.0
                )
            )
        if not model.waits and model.leads and now >= self._position_at and seen.history != self._position:
            self._position_at = now + ctx.timings.heartbeat_s
            self._position = seen.history
            value = PositionValue(
                server=model.me,
                history=seen.history,
                term=model.sync.value.term if model.sync else 0,
                at=ctx.utc_s,
            )
            ctx.emit(
                StoreTxn(
                    compares=(model.compare_leader(),), puts=(Put(model.keys.position, encode(value)),),
                    tag="position", lane="position",
                )
            )  # fmt: skip

    def deadline(self, now: Instant) -> Instant | None:
        """Next heartbeat, next patience."""
        seen = self._ctx.model.server
        if seen is None or not seen.writable:
            return None
        times = [self._heartbeat_at, self._certify_again_at]
        if self._stuck_since is not None:
            times.append(self._stuck_since + self._ctx.timings.degrade_after_s)
        return min((at for at in times if at > now), default=None)
