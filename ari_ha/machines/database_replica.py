"""What a watcher does that does not lead: take a free lead, follow, come back, be rebuilt."""

from __future__ import annotations

from typing import Any

from ari_ha.core.machine import Effect, Instant
from ari_ha.core.ports.database import ArchiveErrant, Observation, Rebuild, StartServer
from ari_ha.core.ports.store import Compare, Delete, Put, StoreTxn
from ari_ha.machines.database_authority import Authority
from ari_ha.machines.database_config import CIRCULAR, MARIADB
from ari_ha.machines.database_context import Context
from ari_ha.machines.database_model import covers
from ari_ha.machines.database_primary import STORE_LIMIT_S, Primary
from ari_ha.machines.database_steps import Step
from ari_ha.wire.database_keys import ErrantValue, LeaderValue, RebuildValue, encode

PURGED = "1236"
"""The primary has no longer what this server lacks (ER_SOURCE_FATAL_ERROR_READING_BINLOG)."""
FORKED = "1950"
"""MariaDB in strict mode: somebody wrote here (ER_GTID_STRICT_OUT_OF_ORDER)."""


class Replica:
    """The lists of steps of a watcher without the lead."""

    def __init__(self, ctx: Context, authority: Authority, primary: Primary) -> None:
        self._ctx = ctx
        self._authority = authority
        self._primary = primary
        self._free_since: Instant | None = None
        self._down_since: Instant | None = None
        self._start_at: Instant = 0.0
        self._rebuild_at: Instant = 0.0
        self._copied_life = ""
        self._away_at: Instant = -1e9

    # -- a free lead

    def watch(self, now: Instant) -> None:
        """Since when nobody leads, as far as etcd is read."""
        model = self._ctx.model
        if not model.reachable:
            self._away_at = now
        free = model.loaded and model.reachable and model.leader is None
        if not free:
            self._free_since = None
        elif self._free_since is None:
            self._free_since = now
        if model.alive is not False:
            self._down_since = None
        elif self._down_since is None:
            self._down_since = now

    def candidate(self, now: Instant) -> str:
        """Why this server may not take the free lead now; "" when it may."""
        ctx, model = self._ctx, self._ctx.model
        seen, timings = model.server, ctx.timings
        if self._free_since is None:
            return "it is not free"
        if not model.lease_held or now > model.lease_until - timings.fence_before_s - timings.retry_s:
            return "no lease"
        if seen is None or not model.running(now) or now - model.asked_at > timings.confirm_fresh_s:
            return "the server does not answer"
        if model.rebuild is not None:
            return "its data is being replaced"
        if model.same_identity:
            return "; ".join(model.problems())
        if seen.disk_free_share < timings.disk_free_share_min:
            return "its disk is full"
        if model.sync is None:
            return self._first()
        order = model.order
        if order is not None and order.value.stage == "handed" and order.value.server != model.me:
            if now < self._free_since + timings.handed_limit_s:
                return f"it was handed to {order.value.server}"
        if seen.writable and model.primary != model.me:
            return "it is writable and must be closed first"
        if order is not None and order.value.kind == "failover" and order.value.server == model.me:
            return ""
        if model.primary == model.me:
            return self._return(seen, now)
        return self._succeed(seen, now)

    def _first(self) -> str:
        """Nobody has ever led: the server that has everything the others have."""
        model = self._ctx.model
        seen, members = model.server, model.members
        assert seen is not None
        missing = [name for name in model.config.servers if name not in members or not members[name].running]
        if missing:
            return f"the first primary is chosen when all are there; missing: {', '.join(missing)}"
        for name, other in members.items():
            if name == model.me:
                continue
            if not covers(seen.history, other.position):
                return f"{name} has what this server has not"
            if covers(other.history, seen.position) and name < model.me:
                return f"{name} has as much"
        return ""

    def _return(self, seen: Observation, now: Instant) -> str:
        """The last primary has everything: it may always come back."""
        ctx, model = self._ctx, self._ctx.model
        assert self._free_since is not None
        peer = model.members.get(model.standby or ctx.config.peer)
        ready = peer is not None and peer.running and not model.hold
        if model.waits:
            ready = ready and bool(model.standby)
        if ready and not seen.writable and now < self._free_since + ctx.timings.return_grace_s:
            return f"{ctx.config.peer} is ready and comes first"
        return ""

    def _succeed(self, seen: Observation, now: Instant) -> str:
        model = self._ctx.model
        sync = model.sync
        assert sync is not None and self._free_since is not None
        if model.hold is not None:
            return "automation is held"
        if self._authority.promised(now):
            return f"{model.primary} was confirmed a moment ago"
        if seen.apply_error:
            return f"it cannot apply: {seen.apply_error}"
        if sync.value.mode != "async" or model.waits:
            if sync.value.standby != model.me:
                return "it may lack confirmed writes"
            if sync.value.standby_life != seen.life:
                return "it was restarted: what it had received may be gone"
            return ""
        return self._succeed_without(seen, now)

    def _succeed_without(self, seen: Observation, now: Instant) -> str:
        """Without confirmations: near enough, and without transactions of its own."""
        ctx, model = self._ctx, self._ctx.model
        last, other = model.position, model.members.get(model.primary)
        if (
            last is not None
            and ctx.config.shape != CIRCULAR
            and not covers(last.value.history, seen.position)
        ):
            if not (seen.source == model.primary or not seen.source):
                return "it has transactions the last primary did not have"
            if model.member(model.me) and model.member(model.me).value.errant:  # type: ignore[union-attr]
                return "it has transactions of its own"
        if seen.lag_s is not None and seen.lag_s > ctx.timings.max_lag_s + ctx.timings.lease_ttl_s:
            return f"it is {seen.lag_s:.1f} s behind"
        assert self._free_since is not None
        alive = other is not None and other.running
        released = model.released is not None and model.released.value.server == model.primary
        # Nothing but time keeps a primary from saying yes that has not heard yet.
        grace_s = ctx.timings.return_grace_s + (0.0 if alive or released else ctx.timings.close_limit_s)
        if (alive or not released) and now < self._free_since + grace_s:
            return f"{model.primary} may come back"
        return ""

    def take(self, now: Instant) -> None:
        """One transaction: the lead is free and `sync` is what was judged."""
        ctx, model = self._ctx, self._ctx.model
        seen = model.server
        assert seen is not None

        def act(at: Instant) -> Effect:
            writable = seen.writable and model.primary == model.me
            order = model.order
            forced = order is not None and order.value.kind == "failover" and model.primary != model.me
            value = LeaderValue(
                server=model.me, process=ctx.config.process, stage="open" if writable else "promoting",
                since=ctx.utc_s, forced=forced,
            )  # fmt: skip
            deletes = [Delete(model.keys.released)]
            if model.order is not None:
                deletes.append(Delete(model.keys.order))
            return StoreTxn(
                compares=(Compare(model.keys.leader, 0), model.compare_sync()),
                puts=(Put(model.keys.leader, encode(value), leased=True),),
                deletes=tuple(deletes),
                limit_s=STORE_LIMIT_S,
            )

        ctx.note("takes the lead", was=model.primary, standby=model.standby)
        self._primary.took_at = now
        ctx.steps.begin("take", [Step("take", act)], lambda at: model.leader is None or model.leads, now)

    # -- a server that is down

    def start(self, now: Instant) -> None:
        """Starts it; how, depends on who leads now."""
        ctx, model = self._ctx, self._ctx.model
        if now < self._start_at or not model.loaded or self._down_since is None:
            return
        if model.hold is not None and model.primary != model.me:
            return
        if self._start_waits(now):
            return
        sync = model.sync
        truncate = (
            ctx.config.flavour == MARIADB and ctx.config.shape != CIRCULAR and sync is not None
            and sync.value.primary != model.me and sync.value.lossless and model.waits
        )  # fmt: skip
        self._start_at = now + ctx.timings.start_again_s
        ctx.note("starts the server", truncate=str(truncate))
        effect = StartServer(truncate=truncate, limit_s=ctx.timings.start_limit_s)
        ctx.steps.begin("start", [Step("start", lambda at: effect)], lambda at: True, now)

    def _start_waits(self, now: Instant) -> bool:
        """MariaDB: a dead primary cannot be opened before etcd says who leads now, and if that is its
        standby, it must start otherwise (or it keeps what nobody was told yes for, and is copied)."""
        ctx, model = self._ctx, self._ctx.model
        if ctx.config.flavour != MARIADB or model.primary != model.me or not model.standby:
            return False
        wait_s = ctx.timings.start_wait_s
        if not model.reachable or now < self._away_at + wait_s:  # the mirror may be old yet
            return True
        other = model.members.get(model.standby)
        assert self._down_since is not None
        return not model.leads and other is not None and other.running and now < self._down_since + wait_s

    # -- following

    def plan(self, now: Instant) -> None:
        """Begins the list of steps that is due, if any."""
        model = self._ctx.model
        seen, leader = model.server, model.leader
        if seen is None or seen.writable or not model.running(now):
            return
        if leader is None:
            if not self.candidate(now):
                self.take(now)
            return
        other = model.led_by_other
        if not other or leader.value.stage != "open" or model.primary != other:
            return
        if model.order and model.order.value.kind == "reinit" and model.order.value.server == model.me:
            self._rebuild("ordered", seen.position, now)
            return
        if seen.semi_source:
            self._stop_waiting(seen, now)
            return
        if model.same_identity:
            return
        if self._errant(seen, other, now):
            return
        if missing := model.never_sent():
            self._rebuild(f"its own {missing[:100]} is only on the primary", model.own(), now)
        elif PURGED in seen.io_error or FORKED in seen.apply_error:
            why = "the primary has no longer what is missing here"
            # A number may have been used twice: archived even where it seems known.
            errant = model.own() or (seen.position if seen.apply_error else "")
            self._rebuild(seen.apply_error or why, errant, now)
        elif seen.source != other:
            self._begin("rejoin", self._rejoin(seen, other), now)
        elif seen.io == "no" or (not seen.applying and not seen.apply_error):
            self._begin("restart", [*self._primary.follow_start(), self._seen_following(other)], now)
        elif model.misnumbered:
            self._begin("number", [self._primary.number()], now)

    def _begin(self, kind: str, steps: list[Step], now: Instant) -> None:
        model = self._ctx.model
        other = model.led_by_other

        def wanted(at: Instant) -> bool:
            return bool(model.alive) and model.led_by_other == other and model.primary == other

        self._ctx.steps.begin(kind, steps, wanted, now)

    def _stop_waiting(self, seen: Observation, now: Instant) -> None:
        """A former primary: commits that still wait must not be told yes any more."""
        if seen.semi_waiting > 0:
            self._authority.kill("commits of a former primary wait", now)
            return
        self._begin("disarm", [self._primary.do("semi_off", limit_s=5.0)], now)

    def _errant(self, seen: Observation, other: str, now: Instant) -> bool:
        """Whether this server must not follow as it is (or nobody knows yet)."""
        ctx, model = self._ctx, self._ctx.model
        if ctx.config.shape == CIRCULAR:
            return False
        errant = model.errant()
        if errant is None:
            # One that follows already goes on; one that does not waits until it is known.
            return seen.source != other
        if not errant:
            return False
        self._rebuild("transactions the primary has not", errant, now)
        return True

    def _seen_following(self, other: str) -> Step:
        return self._primary.seen("follows", lambda seen: seen.source == other and seen.io != "no", 5.0)

    def _rejoin(self, seen: Observation, other: str) -> list[Step]:
        server = self._ctx.config.servers[other]
        steps: list[Step] = []
        if seen.source:
            steps.append(self._primary.do("receive_stop", limit_s=10.0))
            if not seen.applying and not seen.apply_error:
                steps.append(self._primary.do("apply_start"))
            steps.append(
                self._primary.seen(
                    "everything applied",
                    lambda now_seen: (
                        bool(now_seen.apply_error) or covers(now_seen.history, now_seen.received)
                    ),
                    self._ctx.timings.drain_limit_s,
                )
            )
            steps.append(self._primary.do("follow_stop", limit_s=10.0))
        return [
            *steps,
            self._primary.do("follow", limit_s=10.0, source=other, host=server.host, port=server.port),
            *self._primary.follow_start(),
            self._seen_following(other),
        ]

    # -- rebuilding

    def _rebuild(self, why: str, errant: str, now: Instant) -> None:
        """Writes down what is going to be done; `go_on` does it."""
        ctx, model = self._ctx, self._ctx.model
        ordered = why == "ordered"
        if not ordered and (model.hold is not None or not ctx.config.auto_rebuild):
            return
        value = RebuildValue(
            server=model.me, donor=model.led_by_other, errant="" if ordered else errant, why=why,
            since=ctx.utc_s, stage="archive" if errant and not ordered else "copy",
        )  # fmt: skip

        def act(at: Instant) -> Effect:
            deletes = (Delete(model.keys.order),) if ordered else ()
            return StoreTxn(
                compares=(model.compare_leader(), Compare(model.keys.rebuild(model.me), 0)),
                puts=(Put(model.keys.rebuild(model.me), encode(value)),),
                deletes=deletes,
                limit_s=STORE_LIMIT_S,
            )

        self._copied_life = ""
        ctx.count("rebuilds")
        ctx.note("will be rebuilt", why=why, errant=errant[:200], level="warning")
        self._begin("intend", [Step("intend", act)], now)

    def go_on(self, now: Instant) -> None:
        """A rebuild that is written down: archived first, copied then, from the start of
        the stage it had reached."""
        ctx, model = self._ctx, self._ctx.model
        stored, donor = model.rebuild, model.led_by_other
        leader = model.leader
        if stored is None or now < self._rebuild_at or model.hold is not None or not model.reachable:
            return
        if not donor or leader is None or leader.value.stage != "open" or model.primary != donor:
            return
        value = stored.value
        if model.alive and (model.server is None or not model.running(now)):
            return
        seen = model.server
        if seen is not None and seen.life == self._copied_life:
            # Copied, and etcd did not hear of it.
            ctx.steps.begin("rebuild", [Step("rebuilt", self._rebuilt)], lambda at: True, now)
            return
        errant = (value.errant if value.stage == "archive" else "") or model.own()
        archived: dict[str, str] = {}
        steps: list[Step] = []
        if errant:  # out of the files: the server need not run
            steps += [
                Step("archive", lambda at: ArchiveErrant(gtids=errant, limit_s=600.0),
                     after=lambda path: archived.update(file=str(path))),
                Step("archived", lambda at: self._archived(value, errant, archived["file"])),
            ]  # fmt: skip

        def copied(life: Any) -> None:
            self._copied_life = str(life)

        steps.append(
            Step("copy", lambda at: Rebuild(donor=donor, limit_s=ctx.timings.rebuild_limit_s), after=copied)
        )
        steps.append(Step("rebuilt", self._rebuilt))
        self._rebuild_at = now + ctx.timings.rebuild_again_s
        ctx.note("rebuild", stage=value.stage, donor=donor)
        ctx.steps.begin("rebuild", steps, lambda at: True, now)

    def _archived(self, value: RebuildValue, errant: str, file: str) -> Effect:
        ctx, model = self._ctx, self._ctx.model
        prefix = model.keys.errant(model.me, 0)[:-6]
        number = 1 + sum(key.startswith(prefix) for key in model.stored)
        term = model.sync.value.term if model.sync else 0
        note = ErrantValue(server=model.me, gtids=errant, file=file, term=term, at=ctx.utc_s)
        going_on = RebuildValue(
            server=value.server, donor=value.donor, stage="copy", errant=value.errant, archived=file,
            why=value.why, since=value.since,
        )  # fmt: skip
        return StoreTxn(
            compares=(
                Compare(model.keys.rebuild(model.me), model.rebuild.mod_revision if model.rebuild else 0),
            ),
            puts=(
                Put(model.keys.rebuild(model.me), encode(going_on)),
                Put(model.keys.errant(model.me, number), encode(note)),
            ),
            limit_s=STORE_LIMIT_S,
        )

    def _rebuilt(self, now: Instant) -> Effect:
        model = self._ctx.model
        key = model.keys.rebuild(model.me)
        self._ctx.note("rebuilt")
        mod_revision = model.rebuild.mod_revision if model.rebuild else 0
        return StoreTxn(compares=(Compare(key, mod_revision),), deletes=(Delete(key),), limit_s=STORE_LIMIT_S)

    def deadline(self, now: Instant) -> Instant | None:
        """When a grace ends."""
        timings = self._ctx.timings
        times: list[Any] = [self._start_at, self._rebuild_at]
        if self._free_since is not None:
            for grace_s in (timings.return_grace_s, timings.handed_limit_s):
                times += [self._free_since + grace_s, self._free_since + grace_s + timings.close_limit_s]
            times.append(self._authority.promised_until)
        if self._down_since is not None:
            times.append(self._down_since + timings.start_wait_s)
        return min((at for at in times if at > now), default=None)
