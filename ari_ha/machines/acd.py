"""The ACD of one node: who gets which caller, and what every agent is doing.

There is no leader. Each node app runs one `Acd` over mirrors of the store; a
decision is one transaction that compares the keys it read, so whoever comes
second re-reads and decides anew. The machine is pure: `now` is this process's
monotonic clock, `utc` the wall clock (UTC seconds).

Methods return effects for the shell; orders for the node machine are taken
with `commands` after every call. Outcomes of effects for which `owns` is true
go to `outcome`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ari_ha.core.ids import NodeId
from ari_ha.core.machine import Effect, InvariantBroken, OutcomeOf
from ari_ha.core.ports.store import Compare, Put, StoreChanged, StoreReach, StoreSnapshot
from ari_ha.machines.acd_agents import BUSY
from ari_ha.machines.acd_attempts import Caller
from ari_ha.machines.acd_calls import Calls
from ari_ha.machines.acd_care import Care, LiveCalls
from ari_ha.machines.acd_desk import Desk
from ari_ha.machines.acd_match import Matcher
from ari_ha.machines.acd_orders import AcdSettings, Order
from ari_ha.machines.acd_people import People
from ari_ha.machines.acd_queue import in_order, position
from ari_ha.machines.acd_writes import TAG, Writes
from ari_ha.wire.keyspace import AgentValue, Keys, WaitingValue
from ari_ha.wire.link import Rung

STEP_ROUNDS_MAX = 100
"""Rounds of looking, matching and writing for one event; more is a local mistake."""


class Acd:
    """See the module. `live_calls` returns what this node serves now, or None while
    that is not known (Asterisk away, snapshot not read)."""

    def __init__(
        self,
        keys: Keys,
        node: NodeId,
        *,
        new_id: Callable[[], str],
        rand: Callable[[], float],
        settings: AcdSettings | None = None,
        live_calls: Callable[[], LiveCalls | None] | None = None,
    ) -> None:
        self._desk = Desk(keys, node, new_id, rand, settings or AcdSettings())
        self._writes = Writes(self._desk)
        self._calls = Calls(self._desk, self._writes)
        self._matcher = Matcher(self._desk, self._writes, self._calls)
        self._care = Care(self._desk, self._writes, self._calls)
        self._people = People(self._desk, self._writes)
        self._live_calls = live_calls
        self._round_at: float | None = None

    # --- the world ---------------------------------------------------------------------

    @property
    def seen(self) -> bool:
        """Whether agents and queues have been read from the store."""
        return self._desk.view.seen("agents", "queues")

    @property
    def unwritten(self) -> bool:
        """Whether something is kept that could not be written."""
        return bool(self._desk.view.dirty)

    @staticmethod
    def owns(effect: Effect) -> bool:
        """Whether the outcome of ``effect`` belongs to `outcome`."""
        return getattr(effect, "tag", "").startswith(TAG)

    def store(self, event: StoreSnapshot | StoreChanged | StoreReach, now: float, utc: float) -> list[Effect]:
        """Feed: nodes/, agents/, queues/, bindings/, users/, calls/ (owner and record keys)."""
        self._desk.begin(now, utc)
        if isinstance(event, StoreReach):
            self._reach(event)
        elif isinstance(event, StoreSnapshot):
            for key in self._desk.view.snapshot(event):
                self._changed(key)
        elif self._desk.view.changed(event):
            self._desk.live = True
            self._changed(event.key)
        return self._step()

    def _changed(self, key: str) -> None:
        self._desk.changed.add(key)
        self._desk.match_wanted = True
        self._writes.touched(key)

    def _reach(self, event: StoreReach) -> None:
        desk = self._desk
        if event.reachable == (not desk.away):
            return
        desk.match_wanted = True
        if not event.reachable:
            desk.went_away()
        else:
            desk.away, desk.back_at = False, desk.now
            self._writes.flush(self._calls.holds)
        desk.note("acd", "the store is away" if desk.away else "the store is back", why=event.why)

    def outcome(self, event: OutcomeOf, now: float, utc: float) -> list[Effect]:
        """The outcome of one of our effects."""
        self._desk.begin(now, utc)
        learnt = self._writes.outcome(event)
        self._desk.changed.update(learnt)
        self._desk.match_wanted = self._desk.match_wanted or bool(learnt)
        return self._step()

    def asterisk_started(self, incarnation: str, now: float, utc: float) -> list[Effect]:
        """This node has a new incarnation; its old calls are forgotten, not ended."""
        self._desk.begin(now, utc)
        if incarnation == self._desk.me.incarnation:
            return self._step()
        self._desk.me = NodeId(self._desk.me.name, incarnation)
        for call in list(self._calls.callers):
            self._calls.forget(call)
        return self._step()

    # --- callers -----------------------------------------------------------------------

    def caller_enters(
        self, call: str, queue: str, entered: float, priority: int, caller: str, now: float, utc: float,
        *, with_puts: Sequence[Put] = (), with_compares: Sequence[Compare] = (),
    ) -> list[Effect]:  # fmt: skip
        """-> CallerQueued | QueueFull (| PutsRefused first)."""
        self._desk.begin(now, utc)
        entering = Caller(call=call, queue=queue, entered=entered, priority=priority, caller=caller)
        self._calls.enter(entering, with_puts, with_compares)
        return self._step()

    def caller_resumed(
        self, call: str, queue: str, entered: float, priority: int, caller: str, now: float, utc: float,
        *, alive: Mapping[str, str] | None = None, ended: Collection[str] = (),
        talking: Collection[str] = (), from_node: str = "", waits: bool = True,
        rung: Sequence[Rung] = (),
    ) -> list[Effect]:  # fmt: skip
        """This node took the call over. ``alive``: attempt -> ``ringing``|``up`` whose
        legs live; ``ended``: attempts whose legs ended meanwhile; ``talking``: agents in
        conversation. ``queue`` is empty for a call that was never queued; ``waits`` is not true
        of one whom somebody talks to, or is called for, whom no queue gave him. ``rung``: attempts of
        which no record knows. Sets `recovering` until `call_recovered`."""
        self._desk.begin(now, utc)
        resumed = Caller(
            call=call, queue=queue, entered=entered, priority=priority, caller=caller, waits=waits
        )
        self._calls.resume(resumed, alive or {}, ended, talking, from_node, rung)
        return self._step()

    def caller_leaves(
        self, call: str, why: str, now: float, utc: float, *, goes_on: bool = False
    ) -> list[Effect]:
        """The caller is gone (abandoned, ended, continues in the dialplan). ``goes_on``: others,
        who came by no queue, still talk in his call."""
        self._desk.begin(now, utc)
        self._calls.leave(call, why, goes_on)
        return self._step()

    def call_moved(self, call: str, now: float, utc: float) -> list[Effect]:
        """Another node serves the call now: forget it, write nothing."""
        self._desk.begin(now, utc)
        self._calls.forget(call)
        return self._step()

    def call_recovered(self, call: str, now: float, utc: float) -> list[Effect]:
        """The call is whole again after a takeover: takes `recovering` away."""
        self._desk.begin(now, utc)
        self._calls.recovered(call)
        return self._step()

    # --- attempts and conversations ----------------------------------------------------

    def attempt_ringing(self, attempt: str, now: float, utc: float) -> list[Effect]:
        """The agent's phone rings."""
        self._desk.begin(now, utc)
        self._calls.ringing(attempt)
        return self._step()

    def attempt_answered(
        self, attempt: str, now: float, utc: float,
        *, with_puts: Sequence[Put] = (), with_compares: Sequence[Compare] = (),
    ) -> list[Effect]:  # fmt: skip
        """-> AttemptWon | CancelAttempt(why=lost)."""
        self._desk.begin(now, utc)
        self._calls.answered(attempt, with_puts, with_compares)
        return self._step()

    def attempt_failed(self, attempt: str, kind: str, now: float, utc: float) -> list[Effect]:
        """``kind``: no-answer, reject, busy, unreachable, canceled, edge-refused."""
        self._desk.begin(now, utc)
        self._calls.failed(attempt, kind)
        return self._step()

    def conversation_hold(self, call: str, agent: str, held: bool, now: float, utc: float) -> list[Effect]:
        self._desk.begin(now, utc)
        self._calls.hold(call, agent, held)
        return self._step()

    def conversation_ended(self, call: str, agent: str, cause: str, now: float, utc: float) -> list[Effect]:
        """The agent's part of the call is over: wrap-up or idle. The caller may go on;
        `caller_leaves` says when not."""
        self._desk.begin(now, utc)
        self._calls.ended(call, agent, cause)
        return self._step()

    def conversation_state(self, call: str, agent: str, rule: str, now: float, utc: float) -> list[Effect]:
        """The agent is in a call no queue gave him, and what he does there: dial,
        connect, join, consult, consult-end."""
        self._desk.begin(now, utc)
        self._calls.state(call, agent, rule)
        return self._step()

    def claim_answered(
        self, attempt: str, granted: bool, now: float, utc: float, holder: str = ""
    ) -> list[Effect]:
        """Answer to the order ClaimDevice."""
        self._desk.begin(now, utc)
        self._matcher.claim_answered(attempt, granted, holder)
        return self._step()

    # --- people ------------------------------------------------------------------------

    def agent_verb(
        self, request: str, verb: str, args: Mapping[str, Any], now: float, utc: float,
        *, agent: str = "", user: str = "",
    ) -> list[Effect]:  # fmt: skip
        """-> VerbResult(request). Verbs: login (device, take_over, available), logout,
        available, not-ready (reason), toggle, acw-done, acw-extend, force (intent, reason,
        by). The agent is named, or found by the phone's authenticated ``user``."""
        self._desk.begin(now, utc)
        self._people.ask(request, verb, args, agent, user)
        return self._step()

    # --- time --------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When `fire` is wanted next (monotonic)."""
        desk = self._desk
        times = [self._calls.next_time(), self._matcher.next_time(), self._care.next_time()]
        retry = self._writes.next_try()
        if retry is not None and retry > desk.now:
            times.append(retry)
        times.append(self._round_at if self._round_at is not None else desk.now)
        return min((time for time in times if time is not None), default=None)

    def fire(self, now: float, utc: float) -> list[Effect]:
        """Timers, retries, and every 5 s the reconciler."""
        self._desk.begin(now, utc)
        self._desk.match_wanted = True
        self._calls.fire()
        self._matcher.fire()
        if self._round_at is None or self._round_at <= now:
            self._round(self._live_calls() if self._live_calls is not None else None)
        return self._step()

    def _round(self, live: LiveCalls | None) -> None:
        desk = self._desk
        self._round_at = desk.now + desk.settings.reconcile_every_s
        self._care.round(live)

    def _step(self) -> list[Effect]:
        """Looks, matches and writes until nothing is left to do for this event."""
        desk = self._desk
        for _ in range(STEP_ROUNDS_MAX):
            self._writes.pump()
            if desk.changed:
                changed, desk.changed = desk.changed, set()
                self._look_at(changed)
            elif desk.match_wanted:
                self._matcher.run()
            elif self._care.deadlines() == 0:
                break
        else:
            raise InvariantBroken("the ACD does not come to rest")
        effects, desk.effects = desk.effects, []
        return effects

    def _look_at(self, changed: Collection[str]) -> None:
        for key in sorted(changed):
            parts = self._desk.keys.split(key)
            if len(parts) == 2 and parts[0] == "agents":
                self._calls.look_at(parts[1])
                self._care.look_at(parts[1])
            elif len(parts) == 4 and parts[2] == "waiting":
                self._care.place_changed(parts[3])

    # --- reading -----------------------------------------------------------------------

    def commands(self) -> list[Order]:
        """The orders since the last call, in order."""
        orders, self._desk.orders = self._desk.orders, []
        return orders

    def agents(self) -> dict[str, AgentValue]:
        """Every agent as this node sees him."""
        return dict(self._desk.view.agents())

    def waiting(self, queue: str = "") -> list[WaitingValue]:
        """Callers waiting (in ``queue``), in the order they are served."""
        entries = [e for e in self._desk.view.entries() if queue in ("", e.queue)]
        return in_order(entries, self._desk.queue)

    def position(self, call: str) -> int:
        """1 for the next caller of his queue; 0 when the call does not wait."""
        entry = self._desk.view.entry(call)
        return position(entry, self._desk.view.entries(), self._desk.queue) if entry is not None else 0

    def check(self) -> None:
        """Raises InvariantBroken when the state contradicts itself."""
        per_agent: set[str] = set()
        per_call: set[str] = set()
        for attempt in self._calls.attempts.values():
            if attempt.call not in self._calls.callers:
                raise InvariantBroken(f"attempt {attempt.attempt} of a call that is not here")
            if attempt.agent in per_agent:
                raise InvariantBroken(f"agent {attempt.agent} has two attempts")
            if attempt.state != "won" and attempt.call in per_call:
                raise InvariantBroken(f"call {attempt.call} has two attempts")
            per_agent.add(attempt.agent)
            per_call.add(attempt.call)
        for name, agent in self._desk.view.agents():
            if agent.work in BUSY and agent.attempt is None:
                raise InvariantBroken(f"agent {name} is {agent.work} without an attempt")
