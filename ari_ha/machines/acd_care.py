"""Looking after agents and callers whose state nobody else will move on.

Every non-idle state has somebody responsible. This part fires absolute
deadlines, undoes what a dead node left reserved, keeps `reach` true, and
compares each state with reality, so that no agent stays locked in a call that
is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import msgspec

from ari_ha.machines.acd_agents import (
    BUSY,
    REASON_DEVICE,
    TRYING,
    Facts,
    Not,
    advance,
    ending_rule,
    recovered,
)
from ari_ha.machines.acd_attempts import Attempts, call_lock
from ari_ha.machines.acd_desk import Desk
from ari_ha.machines.acd_orders import AgentNotice
from ari_ha.machines.acd_writes import Op, Plan, Result, Writes
from ari_ha.wire.keyspace import AgentValue, ReachValue, Value, WaitingValue

LiveCalls = Mapping[str, Collection[str]]

CONFIRM_SHARE = 0.9
"""A mismatch counts when seen again after this share of the reconciler's period."""


class Since:
    """How long a suspicion has been true without a break."""

    def __init__(self) -> None:
        self._first: dict[str, float] = {}
        self._marked: set[str] = set()

    def mark(self, what: str, now: float) -> float:
        """``what`` is (still) so; returns for how many seconds."""
        self._marked.add(what)
        return now - self._first.setdefault(what, now)

    def sweep(self) -> None:
        """Forgets what was not marked since the last sweep."""
        self._first = {what: first for what, first in self._first.items() if what in self._marked}
        self._marked.clear()


class Care:
    """See the module."""

    def __init__(self, desk: Desk, writes: Writes, attempts: Attempts) -> None:
        self.desk = desk
        self.writes = writes
        self.attempts = attempts
        self._suspect = Since()
        self._stuck: dict[str, float] = {}
        self._due: dict[str, tuple[float, float]] = {}

    # --- deadlines ---------------------------------------------------------------------

    def look_at(self, name: str) -> None:
        """An agent changed: is there a wrap-up to end?"""
        agent = self.desk.view.agent(name)
        if agent is None or agent.work != "acw":
            self._due.pop(name, None)
        else:
            self._acw_due(name, agent)

    def deadlines(self) -> int:
        """Fires wrap-ups that are over: the node that served the call at once, the
        others after a grace. Returns how many."""
        desk, fired = self.desk, 0
        for name, (deadline, due) in list(self._due.items()):
            if due <= desk.now and not self.writes.has(desk.keys.agent(name)):
                fired += self._advance(name, "acw-done", "wrap-up is over", Facts(deadline=deadline))
        return fired

    def _acw_due(self, name: str, agent: AgentValue) -> None:
        """On this process's clock: a step of the wall clock does not move it, and what another node says that
        it lasts, lasts as long here, whatever time of day it is there."""
        desk = self.desk
        known = self._due.get(name)
        if known is None or known[0] != agent.acw_deadline:
            due = desk.now + self._acw_left_s(agent)
            if known is not None and desk.live:
                due = known[1] + agent.acw_deadline - known[0]  # extended
            elif not self._fires_first(name, agent):
                due += desk.settings.timer_grace_s * (1.0 + desk.rand())
                if not desk.clock_trusted:
                    due += desk.settings.clock_hold_s
            self._due[name] = (agent.acw_deadline, due)

    def _acw_left_s(self, agent: AgentValue) -> float:
        lasts_s = max(0.0, agent.acw_deadline - agent.work_since)
        return lasts_s if self.desk.live else min(max(0.0, agent.acw_deadline - self.desk.utc), lasts_s)

    def _fires_first(self, name: str, agent: AgentValue) -> bool:
        """The node the agent worked with; when that is gone, one of the others."""
        node = agent.attempt.node if agent.attempt is not None else ""
        if node and self.desk.is_me(node):
            return True
        return not (node and self.desk.view.node_alive(node)) and self.desk.first_of_nodes(name)

    def _advance(self, name: str, rule: str, text: str, facts: Facts | None = None) -> bool:
        key = self.desk.keys.agent(name)

        def decide() -> Plan | Not:
            agent = self.desk.view.agent(name)
            if agent is None:
                return Not("no such agent", already=True)
            new = advance(agent, rule, facts or Facts(), self.desk.utc)
            return new if isinstance(new, Not) else Plan({key: new}, text)

        return self.writes.submit(Op(name=rule, lock=(key,), decide=decide, done=lambda result: None))

    def next_time(self) -> float | None:
        """When `deadlines` is wanted; what is due already waits for its op or the round."""
        return min((due for _, due in self._due.values() if due > self.desk.now), default=None)

    # --- the round, every few seconds --------------------------------------------------

    def round(self, live: LiveCalls | None) -> None:
        """One round over every agent and every caller."""
        desk = self.desk
        if not desk.view.seen("agents", "queues", "nodes"):
            return
        stuck: dict[str, float] = {}
        for name, agent in list(desk.view.agents()):
            lasted = self._look(name, agent, live)
            if lasted > 0:
                stuck[name] = lasted
            if desk.view.seen("bindings") and not desk.away:
                self._device(name, agent)
        for entry in list(desk.view.entries()):
            self._place(entry, live)
        self._suspect.sweep()
        self._count_stuck(stuck)

    def _count_stuck(self, stuck: dict[str, float]) -> None:
        """The public measure: seconds agents spent in a state that was not true."""
        seconds = sum(max(0.0, lasted - self._stuck.get(name, 0.0)) for name, lasted in stuck.items())
        self._stuck = stuck
        if seconds > 0:
            self.desk.count("acd_stuck_seconds", by=seconds)

    def _look(self, name: str, agent: AgentValue, live: LiveCalls | None) -> float:
        """Frees the agent when his state has no ground; returns for how long he has been stuck."""
        desk, part = self.desk, agent.attempt
        if agent.work not in BUSY:
            self._adopt(name, agent, live)
            if agent.recovering is not None:
                self._overlay_off(name)
            return 0.0
        if part is None:
            return self._stuck_for(f"void/{name}", name, agent, desk.settings.ghost_grace_s, "no attempt")
        served = desk.serves(agent)
        owner = desk.view.owner(part.call)
        moving = owner is not None and owner.moving
        if desk.is_me(served) and not moving:
            return self._look_own(name, agent, live)
        if desk.away:
            return 0.0
        if part.call not in self.attempts.callers and not desk.view.call_exists(part.call):
            if not desk.view.seen("calls"):
                return 0.0
            return self._stuck_for(f"ghost/{name}/{part.call}", name, agent, self._ghost_grace(), "ghost")
        if agent.work in TRYING and not moving and not desk.view.node_alive(served):
            late = agent.work == "reserved" or part.deadline + desk.settings.timer_grace_s < desk.utc
            grace = desk.settings.orphan_grace_s
            if late and desk.clock_trusted:
                self._stuck_for(f"orphan/{name}/{part.attempt}", name, agent, grace, "its node is gone")
        return 0.0

    def _look_own(self, name: str, agent: AgentValue, live: LiveCalls | None) -> float:
        assert agent.attempt is not None
        call = agent.attempt.call
        if live is None or name in live.get(call, ()) or self.writes.has(self.desk.keys.agent(name)):
            if live is not None and agent.recovering is not None:
                self._stale_overlay(name, call)
            return 0.0
        grace = self.desk.settings.reconcile_every_s * CONFIRM_SHARE
        return self._stuck_for(f"own/{name}/{call}", name, agent, grace, "not in the call")

    def _stale_overlay(self, name: str, call: str) -> None:
        """A recovery that nobody reported whole, though the call lives here."""
        if self._suspect.mark(f"overlay/{name}/{call}", self.desk.now) >= self.desk.settings.ghost_grace_s:
            self._overlay_off(name)

    def _ghost_grace(self) -> float:
        desk = self.desk
        if desk.back_at is None:
            return desk.settings.ghost_grace_s + desk.rand()
        fresh = desk.now - desk.back_at < desk.settings.ghost_return_grace_s
        return desk.settings.ghost_return_grace_s if fresh else desk.settings.ghost_grace_s + desk.rand()

    def _stuck_for(self, what: str, name: str, agent: AgentValue, grace_s: float, why: str) -> float:
        """Marks the suspicion, and frees the agent once it has lasted ``grace_s``."""
        lasted = self._suspect.mark(what, self.desk.now)
        if lasted < grace_s:
            return 0.0
        if not self.writes.has(self.desk.keys.agent(name)):
            self._free(name, agent, why)
        return lasted

    def _free(self, name: str, seen: AgentValue, why: str) -> None:
        """Undoes the attempt (never a miss) or ends the conversation, if it is still
        the one that was looked at."""
        desk, part = self.desk, seen.attempt
        key = desk.keys.agent(name)
        call, attempt = (part.call, part.attempt) if part is not None else ("", "")
        owner = desk.view.owner(call)

        def decide() -> Plan | Not:
            agent = desk.view.agent(name)
            if agent is None or agent.work != seen.work or agent.attempt != part:
                return Not("moved on", already=True)
            # who serves the call was the ground: a lost compare may have taught us another
            if desk.view.owner(call) != owner:
                return Not("the call is served elsewhere", already=True)
            queue = desk.queue(part.queue if part is not None else "")
            facts = Facts(attempt=attempt, call=call, wrapup_s=queue.wrapup_ms / 1000)
            new = self._freed(agent, facts)
            if isinstance(new, Not):
                return new
            writes: dict[str, Value | None] = {key: new}
            writes |= self.attempts.place_freed(call, attempt)
            reads = (desk.keys.owner(call), *self.attempts.place_read(call, queue.queue)) if call else ()
            return Plan(writes, f"freed: {why}", reads)

        def done(result: Result) -> None:
            if result.ok:
                self.attempts.freed(attempt, name)

        desk.count("acd_agents_freed", why=why)
        lock = (call_lock(call), key)
        self.writes.submit(Op(name="free", lock=lock, decide=decide, done=done, away="drop"))
        desk.order(AgentNotice(agent=name, text=f"freed: {why}"))

    def _freed(self, agent: AgentValue, facts: Facts) -> AgentValue | Not:
        if agent.attempt is not None:
            rule = ending_rule(agent)
            return advance(agent, rule, facts, self.desk.utc)
        return advance(agent, "void", facts, self.desk.utc)

    def _adopt(self, name: str, agent: AgentValue, live: LiveCalls | None) -> None:
        """An agent in a living conversation of ours whom the store calls idle."""
        for attempt in self.attempts.attempts.values():
            won = attempt.agent == name and attempt.state == "won"
            if not won or live is None or name not in live.get(attempt.call, ()):
                continue
            busy = self.writes.has(self.desk.keys.agent(name))
            if not busy and self._suspect.mark(f"adopt/{attempt.attempt}", self.desk.now) > 0:
                self.attempts.readopt(attempt)
            return

    def _overlay_off(self, name: str) -> None:
        key = self.desk.keys.agent(name)

        def decide() -> Plan | Not:
            agent = self.desk.view.agent(name)
            new = recovered(agent) if agent is not None else Not("no such agent", already=True)
            return new if isinstance(new, Not) else Plan({key: new})

        self.writes.submit(
            Op(name="overlay", lock=(key,), decide=decide, done=lambda result: None, away="drop")
        )

    # --- callers -----------------------------------------------------------------------

    def _place(self, entry: WaitingValue, live: LiveCalls | None) -> None:
        """Takes away the place of a caller who is nowhere, and frees a place whose
        attempt no agent has."""
        desk, now = self.desk, self.desk.now
        if desk.away:
            return
        if entry.call in self.attempts.callers:
            if not self.writes.has(call_lock(entry.call)):
                self._own_place(entry)
            return
        owner = desk.view.owner(entry.call)
        mine = desk.is_me(entry.node) and (owner is None or (desk.is_me(owner.node) and not owner.moving))
        lost = mine and live is not None and entry.call not in live
        ghost = desk.view.seen("calls") and not desk.view.call_exists(entry.call)
        if not lost and not ghost:
            return
        # also while something is written about it: others match it as often as its agent is freed
        if self._suspect.mark(f"place/{entry.call}", now) >= self._ghost_grace():
            self._remove_place(entry)

    def _remove_place(self, seen: WaitingValue) -> None:
        """The caller is nowhere: his place goes, and whoever is to be rung for him is free."""
        desk, call = self.desk, seen.call
        key = desk.keys.waiting(seen.queue, call)
        owner = desk.view.owner(call)

        def decide() -> Plan | Not:
            entry = desk.view.value(key)
            if entry is None or (entry.node, entry.entered) != (seen.node, seen.entered):
                return Not("moved on", already=True)
            if call in self.attempts.callers or desk.view.owner(call) != owner:
                return Not("the call is served", already=True)
            writes: dict[str, Value | None] = {key: None}
            for name, agent in desk.view.agents_of(call):
                if agent.work in TRYING and agent.attempt is not None:
                    facts = Facts(attempt=agent.attempt.attempt, call=call)
                    freed = advance(agent, "release", facts, desk.utc)
                    if not isinstance(freed, Not):
                        writes[desk.keys.agent(name)] = freed
            return Plan(writes, "the caller of this place is nowhere", (desk.keys.owner(call),))

        lock = (call_lock(call),)
        self.writes.submit(Op(name="place", lock=lock, decide=decide, done=lambda r: None, away="drop"))

    def place_changed(self, call: str) -> None:
        """A place of a caller of ours that names another node is matched by nobody: the node
        that had him before wrote late what it had done without the store. Who waits no more has none."""
        desk = self.desk
        entry, owner = desk.view.entry(call), desk.view.owner(call)
        caller = self.attempts.callers.get(call)
        if desk.away or entry is None or caller is None:
            return
        if not caller.waits and not entry.attempt and not self.writes.has(call_lock(call)):
            self._submit_place(entry, lambda: self.attempts.place_freed(call, ""))
        if desk.is_me(entry.node) or not caller.waits:
            return
        if owner is not None and desk.is_me(owner.node) and not self.writes.has(call_lock(call)):
            ours = msgspec.structs.replace(entry, node=str(desk.me))
            self._submit_place(entry, lambda: {desk.keys.waiting(entry.queue, call): ours})

    def _own_place(self, entry: WaitingValue) -> None:
        """A caller of ours: tried by nobody, or talking already?"""
        self.place_changed(entry.call)
        desk, now = self.desk, self.desk.now
        known = self.attempts.attempts.get(self.attempts.callers[entry.call].attempt)
        if known is not None and known.state == "won":
            if self._suspect.mark(f"twice/{entry.call}", now) > 0:
                self.attempts.readopt(known)
        elif entry.attempt and not self._attempt_lives(entry):
            if self._suspect.mark(f"attempt/{entry.attempt}", now) >= desk.settings.reserve_ttl_s:
                self._submit_place(entry, lambda: self.attempts.place_freed(entry.call, entry.attempt))

    def _attempt_lives(self, entry: WaitingValue) -> bool:
        agent = self.desk.view.agent(entry.agent)
        return (
            agent is not None
            and agent.work in BUSY
            and agent.attempt is not None
            and agent.attempt.attempt == entry.attempt
        )

    def _submit_place(self, seen: WaitingValue, change: Callable[[], dict[str, Value | None]]) -> None:
        key = self.desk.keys.waiting(seen.queue, seen.call)

        def decide() -> Plan | Not:
            if self.desk.view.value(key) != seen:
                return Not("moved on", already=True)
            writes = {} if self.attempts.is_anothers(seen.call) else change()
            reads = self.attempts.owner_read(seen.call)
            return Plan(writes, "place put right", reads) if writes else Not("nothing to do", already=True)

        lock = (call_lock(seen.call),)
        self.writes.submit(Op(name="place", lock=lock, decide=decide, done=lambda r: None, away="drop"))

    # --- devices -----------------------------------------------------------------------

    def _device(self, name: str, agent: AgentValue) -> None:
        """Keeps `reach` true; an agent whose phone stays away is not ready until it
        is back."""
        desk, settings = self.desk, self.desk.settings
        if agent.intent == "logged_out" or not agent.device or self.writes.has(desk.keys.agent(name)):
            return
        users = desk.view.device_users(agent.device)
        if agent.work == "idle" and users and users[0] != name and self._turn(f"twice/{name}"):
            self._advance(name, "device-taken", "device is another agent's", Facts(device=agent.device))
            return
        ok = desk.device_ok(agent.device)
        reach = desk.view.reach(name)
        word = "ok" if ok else "lost"
        if reach is None or reach.device != word:
            if self._turn(f"reach/{name}/{word}"):
                self._write_reach(name, word)
            return
        lasted = desk.utc - reach.device_since
        waits = agent.intent == "available" and agent.work == "idle"
        if not ok and waits and lasted >= settings.device_grace_s:
            if self._turn(f"lost/{name}"):
                self._advance(name, "device-lost", "device lost")
                desk.order(AgentNotice(agent=name, text="not ready: device lost"))
        away_s = desk.utc - agent.intent_since
        if ok and agent.reason == REASON_DEVICE and away_s <= settings.device_return_s:
            if self._turn(f"back/{name}"):
                self._advance(name, "device-back", "device is back")

    def _turn(self, what: str) -> bool:
        """Whether it is this node's turn: at once for one node, later for the others."""
        lasted = self._suspect.mark(what, self.desk.now)
        return self.desk.first_of_nodes(what) or lasted >= self.desk.settings.timer_grace_s

    def _write_reach(self, name: str, word: str) -> None:
        key = self.desk.keys.reach(name)

        def decide() -> Plan | Not:
            agent, reach = self.desk.view.agent(name), self.desk.view.reach(name)
            if agent is None or (reach is not None and reach.device == word):
                return Not("reach is right", already=True)
            old = reach or ReachValue(agent=name)
            return Plan(
                {
                    key: ReachValue(
                        agent=name, device=word, device_since=self.desk.utc,
                        desktop=old.desktop, desktop_since=old.desktop_since,
                    )
                }
            )  # fmt: skip

        self.writes.submit(Op(name="reach", lock=(key,), decide=decide, done=lambda r: None, away="drop"))
