"""The watcher of one database server of a pair.

Everything is decided from what etcd and the server say now (level, not edge): a watcher
that is killed anywhere is continued by the next one without any memory. The rules that
keep every confirmed write:

* `sync` in etcd names who has them all. A standby is named only after commits wait for
  it, and unnamed before they stop to; nobody else takes the lead.
* A server is opened only with the lead, and closed, or killed, before the lead may be
  another's.
* A server that has what the primary has not never follows as it is: its transactions
  are archived, and it is rebuilt.
"""

from __future__ import annotations

from collections.abc import Sequence

from ari_ha.core.machine import (
    DeadlineReached,
    Done,
    Effect,
    Event,
    Instant,
    InvariantBroken,
    Outcome,
    OutcomeOf,
    ShellStall,
)
from ari_ha.core.ports.database import (
    KillServer,
    Observation,
    Observe,
    PeerSaid,
    Rebuild,
    ServerLife,
    StartServer,
)
from ari_ha.core.ports.operator import OperatorRequest
from ari_ha.core.ports.probe import WallClock
from ari_ha.core.ports.store import LeaseState, StoreChanged, StoreReach, StoreSnapshot
from ari_ha.machines.database_authority import Authority
from ari_ha.machines.database_checksum import TAG as CHECKSUMS
from ari_ha.machines.database_checksum import Checksums
from ari_ha.machines.database_config import TWO_WRITERS, DatabaseConfig
from ari_ha.machines.database_context import Context
from ari_ha.machines.database_operator import Operator
from ari_ha.machines.database_primary import Primary
from ari_ha.machines.database_publish import Publisher
from ari_ha.machines.database_replica import Replica
from ari_ha.machines.database_steps import StepList
from ari_ha.machines.database_writers import TwoWriters

FAST_KINDS = frozenset({"promote", "certify", "switchover", "rejoin", "restart", "degrade", "follow"})


class DatabaseMachine:
    """A `Machine`."""

    def __init__(self, config: DatabaseConfig, now: Instant) -> None:
        config.check()
        self.config = config
        self.ctx = Context(config, self._ended)
        self.model = self.ctx.model
        self.authority = Authority(self.ctx, now)
        self.primary = Primary(self.ctx, self.authority)
        self.replica = Replica(self.ctx, self.authority, self.primary)
        self.writers = TwoWriters(self.ctx, self.primary, self.replica)
        self.checksums = Checksums(self.ctx)
        self.publisher = Publisher(self.ctx, self.authority, self.checksums)
        self.operator = Operator(self.ctx, self.authority, self.primary, self.publisher)
        self._observing = False
        self._observe_at: Instant = now
        self._asked_at: Instant = now
        self._asked_basis = 0
        self._retry_at: Instant = now
        self._decided_at: Instant = now
        self._dead_life = ""
        """The last life that ended: a start that tells of it comes too late."""

    # -- events

    def handle(self, event: Event, now: Instant) -> Sequence[Effect]:
        """What to do about ``event``."""
        match event:
            case StoreSnapshot():
                self.model.take_snapshot(event)
            case StoreChanged():
                self.model.take_change(event)
            case StoreReach(reachable=reachable):
                self.model.reachable = reachable
            case LeaseState(held=held, until=until, lease=lease):
                self.model.lease_held, self.model.lease_until, self.model.lease = held, until, lease
            case ServerLife():
                self._life(event, now)
            case PeerSaid(peer=peer, message=message):
                taking = self.ctx.steps.kind in ("take", "promote")
                self.authority.heard(peer, message, taking, now)
            case OutcomeOf(effect=effect, outcome=outcome):
                self._outcome(effect, outcome, now)
            case WallClock(utc_s=utc_s):
                self.ctx.utc_s = utc_s
            case OperatorRequest():
                self.operator.asked(event, now)
            case DeadlineReached() | ShellStall():
                pass
            case _:
                raise TypeError(f"not for a database's watcher: {type(event).__name__}")
        self._decide(now)
        out, self.ctx.out = self.ctx.out, []
        return out

    def _life(self, event: ServerLife, now: Instant) -> None:
        model = self.model
        if event.alive and model.alive and event.life == model.life:
            return
        if not event.alive and model.life:
            self._dead_life = model.life
        model.alive, model.life = event.alive, event.life if event.alive else ""
        model.seen, model.silent_since = None, None
        self._observe_at = now
        if self._observing:
            # What is under way asks a server that is no more; its answer is not used.
            self._asked_at = -1.0
        if not event.alive:
            self.ctx.note("the server is dead", level="warning")
            self.authority.fence_began = None
            self.ctx.steps.open_tag = ""

    def _outcome(self, effect: Effect, outcome: Outcome, now: Instant) -> None:
        tag = getattr(effect, "tag", "")
        if isinstance(effect, Observe):
            self._observed(outcome, now)
        elif isinstance(effect, KillServer):
            self.authority.killed(outcome, now)
        elif tag == "member":
            self.publisher.outcome(outcome)
        elif tag == "fence":
            self._observe_at = now
            if getattr(effect, "verb", "") == "close":
                self.authority.closed(outcome, now)
        elif tag == CHECKSUMS:
            self.checksums.outcome(outcome)
        elif tag == "heartbeat":
            self.primary.heartbeat_under_way = False
        elif tag in ("position", "sums") or self.operator.outcome(tag, outcome):
            pass
        elif self.ctx.steps.outcome(effect, outcome, now):
            self.authority.kill("a step may still happen late", now)
            self._observe_at = now
        else:
            self._observe_at = now
        if isinstance(effect, StartServer | Rebuild) and isinstance(outcome, Done) and outcome.value:
            if str(outcome.value) == self._dead_life:
                return
            self._life(ServerLife(alive=True, life=str(outcome.value)), now)

    def _observed(self, outcome: Outcome, now: Instant) -> None:
        model = self.model
        self._observing = False
        if self._asked_at < 0:
            self._observe_at = now
            return
        fast = self.ctx.steps.kind in FAST_KINDS or model.order is not None
        pause_s = self.config.timings.observe_fast_s if fast else self.config.timings.observe_s
        self._observe_at = now + pause_s
        if isinstance(outcome, Done) and isinstance(outcome.value, Observation):
            if model.alive is not True or outcome.value.life == model.life:
                model.alive, model.life = True, outcome.value.life
                model.seen, model.seen_at = outcome.value, now
                model.asked_at, model.basis = self._asked_at, self._asked_basis
                model.silent_since = None
        elif model.silent_since is None:
            model.silent_since = self._asked_at

    def _ended(self, ended: StepList, why: str, now: Instant) -> None:
        """A list of steps is over."""
        self._observe_at = now
        if why:
            self._retry_at = now + self.config.timings.retry_s
            self.ctx.note(f"{ended.kind} stopped", step=ended.step, why=why)
            if ended.kind == "certify":
                self.primary.certify_failed(now)
        else:
            self.ctx.note(f"{ended.kind} done", took_ms=str(round((now - ended.began) * 1000)))
            if ended.kind == "rebuild":
                self.ctx.count("rebuilt")

    # -- decisions

    def _decide(self, now: Instant) -> None:
        self._decided_at = now
        model = self.model
        two = self.config.shape == TWO_WRITERS
        self.replica.watch(now)
        if not two:
            self.authority.tick(now)
        self._unresponsive(now)
        self.ctx.steps.tick(now)
        if self.ctx.steps.current is None and now >= self._retry_at:
            if model.alive and model.asked_at < self.ctx.steps.touched_at:
                pass  # what was done is not seen yet: it would be decided again
            elif two:
                self.writers.plan(now)
            else:
                self._plan(now)
        self.primary.beside(now)
        self.checksums.tick(now)
        self._observe(now)
        self.publisher.tick(now)

    def _plan(self, now: Instant) -> None:
        """The list of steps that is due: at most one."""
        model, steps = self.model, self.ctx.steps
        if self.authority.fence_began is not None:
            return
        if model.rebuild is not None and not model.leads:
            self.replica.go_on(now)
            return
        if model.alive is False:
            if model.leads and model.reachable:
                steps.begin("release", self.primary.release("the server is dead"), self.primary.leading, now)
            else:
                self.replica.start(now)
            return
        leader = model.leader
        if leader is not None and leader.value.server == model.me:
            self.primary.plan(now)
        elif model.loaded:
            seen = model.server
            if leader is None and seen and seen.writable and model.primary == model.me:
                # Still open, with the lead gone: the fence has its own opinion.
                if self.authority.may_write(now) and not self.replica.candidate(now):
                    self.replica.take(now)
            else:
                self.replica.plan(now)

    def _unresponsive(self, now: Instant) -> None:
        """A process that lives and does not answer. One that has not answered yet in this
        life recovers, which takes its time."""
        silent, timings = self.model.silent_since, self.config.timings
        if silent is None or self.model.alive is not True or self.ctx.steps.kind in ("rebuild", "start"):
            return
        limit_s = timings.start_limit_s if self.model.seen is None else timings.unresponsive_s
        if now - silent >= limit_s:
            self.authority.kill("it does not answer", now)

    def _observe(self, now: Instant) -> None:
        if self._observing or now < self._observe_at or self.model.alive is False:
            return
        self._observing = True
        self._asked_at, self._asked_basis = now, self.model.revision
        self.ctx.emit(Observe(tag="observe", lane="observe", limit_s=self.config.timings.observe_limit_s))

    # -- what HTTP says

    def writable(self, now: Instant) -> tuple[bool, str]:
        """Whether applications are to be sent here to write, and if not why."""
        seen = self.model.server
        if seen is None or not self.model.running(now):
            return False, "the server does not answer"
        if not seen.writable:
            return False, "read-only"
        if self.config.shape == TWO_WRITERS:
            return not self.model.problems(), "; ".join(self.model.problems())
        leader = self.model.leader
        if not self.authority.may_write(now):
            return False, "no authority"
        if self.model.leads and leader is not None and leader.value.stage != "open":
            return False, "being opened"
        return True, ""

    def readable(self, now: Instant) -> tuple[bool, str]:
        """Whether applications may read here, and if not why."""
        seen = self.model.server
        if seen is None or not self.model.running(now) or self.model.rebuild is not None:
            return False, "the server does not answer"
        if seen.writable:
            return self.writable(now)
        if not seen.follows:
            return False, "it does not follow"
        if seen.lag_s is None or seen.lag_s > self.config.timings.max_lag_s:
            return False, f"it is {seen.lag_s} s behind"
        return True, ""

    # -- the shell

    def deadline(self) -> Instant | None:
        """When `DeadlineReached` is wanted next."""
        now = self._decided_at
        times: list[Instant | None] = [
            self.authority.deadline(now),
            self.primary.deadline(now),
            self.replica.deadline(now),
            self.ctx.steps.deadline(),
            self.publisher.deadline(),
            self.checksums.deadline(now),
            self._retry_at,
        ]
        if not self._observing and self.model.alive is not False:
            times.append(self._observe_at)
        silent = self.model.silent_since
        if silent is not None:
            times.append(silent + self.config.timings.down_after_s)
            times.append(silent + self.config.timings.unresponsive_s)
            times.append(silent + self.config.timings.start_limit_s)
        later = [at for at in times if at is not None and at > now]
        return min(later, default=now + self.config.timings.publish_s)

    def check(self) -> None:
        """What must never be."""
        steps = self.ctx.steps
        if steps.open_tag and self.authority.fence_began is not None and steps.kind == "promote":
            raise InvariantBroken("opening and fencing at once")
        if steps.kind == "rebuild" and self.model.leads:
            raise InvariantBroken("the primary is being rebuilt")
