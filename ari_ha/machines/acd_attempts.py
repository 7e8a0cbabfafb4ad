"""Attempts to reach an agent, and the conversations they become."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from ari_ha.core.ports.store import Compare, Put
from ari_ha.machines.acd_agents import BUSY, IN_CALL, TRYING, Facts, Not, advance, ending_rule
from ari_ha.machines.acd_desk import Desk
from ari_ha.machines.acd_orders import AgentNotice, AttemptWon, CancelAttempt, PutsRefused, StartAttempt
from ari_ha.machines.acd_writes import Op, Plan, Result, Writes
from ari_ha.wire.keyspace import AgentValue, AttemptValue, Value, WaitingValue

FAILURES = {
    "no-answer": "no-answer",
    "reject": "reject",
    "busy": "busy",
    "unreachable": "unreachable",
    "canceled": "release",
    "edge-refused": "unreachable",
}
"""Kind of a failed attempt -> rule."""


@dataclass(slots=True)
class Caller:
    """A call this node serves."""

    call: str
    queue: str = ""
    entered: float = 0.0
    priority: int = 0
    caller: str = ""
    attempt: str = ""
    leaving: bool = False
    waits: bool = True
    """False: somebody talks to him, or is called for him, whom no queue gave him"""
    ended: frozenset[str] = frozenset()
    """Attempts that ended before we served the call, whatever the store says of them yet"""


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One attempt of this node; ``until`` is on the monotonic clock."""

    attempt: str
    call: str
    agent: str
    device: str
    queue: str
    state: str = "started"
    """started, ringing, answered (the store has not said so), won"""
    until: float | None = None
    resumed: bool = False
    told: bool = False
    closing: bool = False


def call_lock(call: str) -> str:
    return f"call/{call}"


class Attempts:
    """Attempts of this node, and every write they cause."""

    def __init__(self, desk: Desk, writes: Writes) -> None:
        self.desk = desk
        self.writes = writes
        self.callers: dict[str, Caller] = {}
        self.attempts: dict[str, Attempt] = {}

    # --- what every write needs -------------------------------------------------------

    def holds(self, call: str) -> bool:
        """Whether this node serves the call."""
        return call in self.callers

    def _submit(
        self, name: str, call: str, agent: str, decide: Callable[[], Plan | Not],
        done: Callable[[Result], None] | None = None, **more: object,
    ) -> bool:  # fmt: skip
        lock = (call_lock(call), self.desk.keys.agent(agent)) if agent else (call_lock(call),)
        return self.writes.submit(
            Op(name=name, lock=lock, decide=decide, done=done or (lambda result: None), **more)  # type: ignore[arg-type]
        )

    def _change(self, agent: str, rule: str, facts: Facts) -> AgentValue | Not:
        value = self.desk.view.agent(agent)
        if value is None:
            return Not("no such agent", already=True)
        return advance(value, rule, facts, self.desk.utc)

    def place_freed(self, call: str, attempt: str) -> dict[str, Value | None]:
        """The write that makes the caller's place free again, if ``attempt`` has it; who waits no more has
        none."""
        view, caller = self.desk.view, self.callers.get(call)
        key, entry = view.entry_key(call), view.entry(call)
        kept = entry is not None and key in view.dirty and entry.attempt not in self.attempts
        if attempt and entry is not None and entry.attempt != attempt and kept:
            stored = view.stored(key)  # what is kept of it here is not merged yet
            entry = stored.value if stored is not None else None
        if entry is None or entry.attempt != attempt:
            return {}
        if caller is not None and not caller.waits:
            return {key: None}
        new = msgspec.structs.replace(entry, attempt="", agent="")
        return {} if new == entry else {key: new}

    def place_read(self, call: str, queue: str) -> tuple[str, ...]:
        """The caller's place as a key to compare: what frees an agent must not overlook
        a place this node has not seen yet."""
        return (self.desk.keys.waiting(queue, call),) if queue and not self.desk.away else ()

    def owner_read(self, call: str) -> tuple[str, ...]:
        """Who serves the call as a key to compare: what we do about its caller must not overlook that another
        node has it by now."""
        owner = self.desk.keys.owner(call)
        return (owner,) if self.desk.view.stored(owner) is not None and not self.desk.away else ()

    def is_anothers(self, call: str) -> bool:
        """Whether another node has the caller, by his place and by who serves the call."""
        entry, owner = self.desk.view.entry(call), self.desk.view.owner(call)
        if entry is None or owner is None or self.desk.is_me(entry.node):
            return False
        return bool(owner.why) or not self.desk.is_me(owner.node)

    def _tell_extras(self, call: str, result: Result) -> None:
        if result.extras_refused is not None and not result.local:
            self.desk.order(PutsRefused(call=call, current=result.extras_refused))

    def _facts(self, agent: AgentValue) -> Facts:
        """Facts of the agent's own attempt, as its queue is configured."""
        assert agent.attempt is not None
        queue = self.desk.queue(agent.attempt.queue)
        return Facts(
            attempt=agent.attempt.attempt, call=agent.attempt.call, queue=queue.queue,
            wrapup_s=queue.wrapup_ms / 1000 if agent.attempt.queue else 0.0, rona_max=queue.rona_max,
        )  # fmt: skip

    def _attempts_of(self, call: str) -> list[Attempt]:
        return [attempt for attempt in self.attempts.values() if attempt.call == call]

    def _cancel(self, attempt: Attempt, why: str) -> None:
        self.desk.order(
            CancelAttempt(call=attempt.call, attempt=attempt.attempt, agent=attempt.agent, why=why)
        )

    def adopt(self, call: str, queue: str, name: str, attempt_id: str) -> None:
        """The agent is in this conversation and the store does not say so."""
        agent = self.desk.view.agent(name)
        if agent is None or self.elsewhere(name, call) is not None:
            return
        for other in [a for a in self.attempts.values() if a.agent == name and a.call != call]:
            self._drop(other)  # he cannot be rung for another caller: he is here
            self._cancel(other, "elsewhere")
            self._fail_agent(other.call, name, other.attempt, "release", 0.0)
        attempt = Attempt(
            attempt=attempt_id, call=call, agent=name, device=agent.device, queue=queue,
            state="won", told=True,
        )  # fmt: skip
        self.attempts[attempt_id] = attempt
        self.callers[call].attempt = attempt_id
        self.readopt(attempt)

    def elsewhere(self, name: str, call: str) -> Attempt | None:
        """The agent's part in a conversation of another call here, whatever the store says yet."""
        mine = (a for a in self.attempts.values() if a.agent == name and a.state == "won")
        return next((a for a in mine if a.call != call), None)

    def readopt(self, attempt: Attempt) -> None:
        """Makes the store say what is so: the agent talks in this conversation."""
        self._submit("adopt", attempt.call, attempt.agent, lambda: self._plan_answer(attempt))

    # --- attempts ----------------------------------------------------------------------

    def reserve(
        self, entry: WaitingValue, name: str, attempt: str, away: str = "drop",
        done: Callable[[Result], None] | None = None,
    ) -> None:  # fmt: skip
        """One transaction gives the caller and the agent to each other. ``away=apply``:
        the edge that holds the device has given its word, the store is not there."""
        keys, view, desk = self.desk.keys, self.desk.view, self.desk
        key = keys.waiting(entry.queue, entry.call)

        def decide() -> Plan | Not:
            agent, place = view.agent(name), view.value(key)
            if agent is None or place is None:
                return Not("agent or caller is gone")
            if place.attempt:
                return Not("an agent is being tried for the caller", already=place.attempt == attempt)
            if not desk.device_ok(agent.device):
                return Not("device is lost")
            facts = Facts(
                attempt=attempt, call=entry.call, queue=entry.queue, node=place.node,
                deadline=desk.utc + desk.settings.reserve_ttl_s, entered=place.entered,
            )  # fmt: skip
            new = advance(agent, "reserve", facts, desk.utc)
            if isinstance(new, Not):
                return new
            taken = msgspec.structs.replace(place, attempt=attempt, agent=name)
            reads = self.owner_read(entry.call)
            return Plan({keys.agent(name): new, key: taken}, "agent and caller are matched", reads)

        self._submit("match", entry.call, name, decide, done, away=away)

    def look_at(self, name: str) -> None:
        """Compares what the store says of an agent with the attempts of this node."""
        agent = self.desk.view.agent(name)
        part = agent.attempt if agent is not None else None
        for attempt in [a for a in self.attempts.values() if a.agent == name]:
            if agent is not None and self._has(agent, attempt.attempt):
                continue
            if attempt.state in ("started", "ringing") and not self._busy_with(name):
                self._drop(attempt)
                self._cancel(attempt, "lost")
        if agent is None or part is None or agent.work not in TRYING or part.call not in self.callers:
            return
        if part.attempt in self.attempts or self._busy_with(name):
            return
        caller = self.callers[part.call]
        entry = self.desk.view.entry(part.call)
        over = part.attempt in caller.ended
        if over or caller.attempt or entry is None or entry.attempt != part.attempt:
            self._fail_agent(part.call, name, part.attempt, "release", 0.0)
        elif agent.work == "reserved" and self.elsewhere(name, part.call) is None:
            self._start(
                Attempt(
                    attempt=part.attempt, call=part.call, agent=name, device=agent.device, queue=part.queue,
                    until=self.desk.now + self.desk.settings.reserve_ttl_s,
                ),
                agent,
            )  # fmt: skip

    @staticmethod
    def _has(agent: AgentValue, attempt: str) -> bool:
        return agent.work in BUSY and agent.attempt is not None and agent.attempt.attempt == attempt

    def _busy_with(self, name: str) -> bool:
        return self.writes.has(self.desk.keys.agent(name))

    def _start(self, attempt: Attempt, agent: AgentValue, again: bool = False) -> None:
        desk, part = self.desk, agent.attempt
        assert part is not None
        self.attempts[attempt.attempt] = attempt
        self.callers[attempt.call].attempt = attempt.attempt
        value = AttemptValue(
            attempt=attempt.attempt, agent=attempt.agent, device=attempt.device, leg="",
            deadline=part.deadline, started=part.since,
        )  # fmt: skip
        desk.order(
            StartAttempt(
                call=attempt.call, attempt=value, agent=attempt.agent, device=attempt.device,
                queue=attempt.queue, ring_timeout_s=desk.queue(attempt.queue).ring_timeout_ms / 1000,
                again=again,
            )
        )  # fmt: skip

    def _drop(self, attempt: Attempt) -> None:
        self.attempts.pop(attempt.attempt, None)
        caller = self.callers.get(attempt.call)
        if caller is not None and caller.attempt == attempt.attempt:
            caller.attempt = ""
        self.desk.match_wanted = True

    def freed(self, attempt: str, agent: str) -> None:
        """The agent was found not to be in that attempt (any more): it is none of ours."""
        known = self.attempts.get(attempt)
        if known is not None and known.agent == agent:
            self._drop(known)

    def find(self, attempt: str) -> Attempt | None:
        """A living attempt; after a restart of this process it is found in the store."""
        if attempt in self.attempts:
            return self.attempts[attempt]
        for name, agent in self.desk.view.agents():
            part = agent.attempt
            if part is None or not self._has(agent, attempt) or part.call not in self.callers:
                continue
            found = Attempt(
                attempt=attempt, call=part.call, agent=name, device=agent.device, queue=part.queue,
                state="won" if agent.work in IN_CALL else "ringing" if agent.work == "ringing" else "started",
            )  # fmt: skip
            self.attempts[attempt] = found
            self.callers[part.call].attempt = attempt
            return found
        return None

    def _find_or_cancel(self, attempt_id: str) -> Attempt | None:
        """A phone of an attempt nobody knows must not go on ringing."""
        attempt = self.find(attempt_id)
        if attempt is None:
            self.desk.order(CancelAttempt(call="", attempt=attempt_id, agent="", why="lost"))
        return attempt

    def ringing(self, attempt_id: str) -> None:
        attempt = self._find_or_cancel(attempt_id)
        if attempt is None or attempt.state in ("answered", "won"):
            return
        timeout_s = self.desk.queue(attempt.queue).ring_timeout_ms / 1000
        if attempt.state == "started":
            attempt.until = self.desk.now + timeout_s
        attempt.state = "ringing"
        facts = Facts(attempt=attempt_id, call=attempt.call, deadline=self.desk.utc + timeout_s)
        self._agent_only("ring", attempt.call, attempt.agent, "ring", facts)

    def _agent_only(self, name: str, call: str, agent: str, rule: str, facts: Facts) -> None:
        key = self.desk.keys.agent(agent)

        def decide() -> Plan | Not:
            new = self._change(agent, rule, facts)
            return new if isinstance(new, Not) else Plan({key: new}, rule)

        self._submit(name, call, agent, decide)

    def answered(
        self, attempt_id: str, with_puts: Sequence[Put] = (), with_compares: Sequence[Compare] = ()
    ) -> None:
        attempt = self._find_or_cancel(attempt_id)
        if attempt is None or attempt.state in ("answered", "won"):
            return
        attempt.state = "answered"
        attempt.until = self.desk.now + self.desk.settings.answer_limit_s
        self._submit(
            "answer", attempt.call, attempt.agent, lambda: self._plan_answer(attempt),
            lambda result: self._answer_done(attempt, result),
            extra_puts=tuple(with_puts), extra_compares=tuple(with_compares),
        )  # fmt: skip

    def _plan_answer(self, attempt: Attempt) -> Plan | Not:
        """The agent talks, the caller's place is gone, and nobody else is tried for him. An
        agent whose attempt was taken back meanwhile still wins when both are free."""
        view, keys = self.desk.view, self.desk.keys
        if attempt.closing:
            return Not("the conversation is over")
        caller = self.callers.get(attempt.call)
        facts = Facts(
            attempt=attempt.attempt, call=attempt.call, queue=attempt.queue, node=str(self.desk.me),
            entered=caller.entered if caller is not None else 0.0,
        )  # fmt: skip
        new = self._change(attempt.agent, "answer", facts)
        if isinstance(new, Not) and not new.already and self._may_adopt(attempt):
            new = self._change(attempt.agent, "adopt", facts)
        # who talks to the caller already: that one waits no more, whatever else the agent is said to do
        if isinstance(new, Not) and not new.already and not (attempt.told and view.entry_key(attempt.call)):
            return new
        writes: dict[str, Value | None] = {} if isinstance(new, Not) else {keys.agent(attempt.agent): new}
        entry_key = view.entry_key(attempt.call)
        if entry_key:
            writes[entry_key] = None
        for name, other in view.agents_of(attempt.call):
            if name != attempt.agent and other.work in TRYING:
                freed = self._change(name, "release", self._facts(other))
                if not isinstance(freed, Not):
                    writes[keys.agent(name)] = freed
        if not writes:
            return Not("talks already", already=True)
        reads = (keys.agent(attempt.agent), *self.place_read(attempt.call, attempt.queue))
        return Plan(writes, "agent answers", reads)

    def _may_adopt(self, attempt: Attempt) -> bool:
        """Whether an agent whose attempt is not his any more may have the caller still."""
        agent, entry = self.desk.view.agent(attempt.agent), self.desk.view.entry(attempt.call)
        if agent is None or (agent.intent == "logged_out" and not attempt.told):
            return False
        same_call = agent.attempt is not None and agent.attempt.call == attempt.call
        if agent.work not in ("idle", "acw") and not (agent.work in TRYING and same_call):
            return False
        return attempt.told or (entry is not None and entry.attempt in ("", attempt.attempt))

    def _answer_done(self, attempt: Attempt, result: Result) -> None:
        self._tell_extras(attempt.call, result)
        if attempt.attempt not in self.attempts:
            return
        if result.ok:
            self._won(attempt, result.revision, certain=not result.local)
        elif attempt.told:
            self._won(attempt, 0, certain=False)
        else:
            self._drop(attempt)
            self._cancel(attempt, "lost")

    def _won(self, attempt: Attempt, revision: int, certain: bool) -> None:
        attempt.state, attempt.until = "won", None
        if not attempt.told:
            attempt.told = True
            self.desk.order(
                AttemptWon(
                    call=attempt.call, attempt=attempt.attempt, agent=attempt.agent,
                    revision=revision, certain=certain,
                )
            )  # fmt: skip

    def failed(self, attempt_id: str, kind: str) -> None:
        attempt = self.find(attempt_id)
        if attempt is None or attempt.state in ("answered", "won"):
            return
        rule = FAILURES.get(kind, "release")
        queue = self.desk.queue(attempt.queue)
        delays = {
            "no-answer": queue.no_answer_delay_ms / 1000,
            "reject": queue.reject_delay_ms / 1000,
            "busy": queue.busy_delay_ms / 1000,
            "unreachable": self.desk.settings.unreachable_delay_s,
            "edge-refused": self.desk.settings.avoid_s,
        }
        if attempt.resumed and kind == "no-answer":
            rule = "excused"
        self._drop(attempt)
        self._fail_agent(attempt.call, attempt.agent, attempt_id, rule, delays.get(kind, 0.0), ours=True)
        if rule == "no-answer":
            self.desk.order(AgentNotice(agent=attempt.agent, text="missed call"))

    def _fail_agent(
        self, call: str, name: str, attempt: str, rule: str, delay_s: float, ours: bool = False
    ) -> None:
        """The attempt is over: the agent, and the caller's place, are free again. ``ours``: it was begun, or
        taken up, here; where another node has taken it up since it is that one's to tell of."""

        def decide() -> Plan | Not:
            if ours and self.is_anothers(call):
                return Not("the caller is another node's")
            agent = self.desk.view.agent(name)
            queue = agent.attempt.queue if agent is not None and agent.attempt is not None else ""
            facts = Facts(
                attempt=attempt, call=call, delay_s=delay_s, rona_max=self.desk.queue(queue).rona_max
            )
            writes: dict[str, Value | None] = {}
            new = self._change(name, rule, facts)
            if not isinstance(new, Not):
                writes[self.desk.keys.agent(name)] = new
            writes |= self.place_freed(call, attempt)
            if not writes:
                return Not("ended already", already=True)
            return Plan(writes, f"attempt ends: {rule}", self.place_read(call, queue) + self.owner_read(call))

        self._submit("fail", call, name, decide)

    # --- conversations -----------------------------------------------------------------

    def hold(self, call: str, agent: str, held: bool) -> None:
        self._agent_only("hold", call, agent, "hold" if held else "unhold", Facts(call=call))

    def state(self, call: str, agent: str, rule: str) -> None:
        """A transition of an agent in a call that no queue gave him."""
        facts = Facts(call=call, attempt=call, node=str(self.desk.me))
        self._agent_only(rule, call, agent, rule, facts)

    def ended(self, call: str, agent: str, cause: str) -> None:
        for attempt in self._attempts_of(call):
            if attempt.agent == agent:
                attempt.closing = True
                self._drop(attempt)
                if attempt.state in ("answered", "won") and call in self.callers:
                    self.callers[call].waits = False  # also where the answer is not written yet
        key = self.desk.keys.agent(agent)

        def decide() -> Plan | Not:
            value = self.desk.view.agent(agent)
            if value is None or value.attempt is None or value.attempt.call != call:
                return Not("not in this call", already=True)
            rule = ending_rule(value)
            new = self._change(agent, rule, self._facts(value))
            if isinstance(new, Not):
                return new
            writes: dict[str, Value | None] = {key: new}
            writes |= self.place_freed(call, value.attempt.attempt)
            reads = self.place_read(call, value.attempt.queue) if rule == "release" else ()
            return Plan(writes, f"conversation ends ({cause})", reads, cause=cause)

        self._submit("end", call, agent, decide)

    # --- time --------------------------------------------------------------------------

    def fire(self) -> None:
        """Attempts whose time is over."""
        for attempt in [a for a in self.attempts.values() if a.until is not None]:
            assert attempt.until is not None
            if attempt.until > self.desk.now:
                continue
            if attempt.state == "answered":
                attempt.until = None
                if not attempt.told:
                    attempt.told = True
                    self._tell_uncertain(attempt)
            else:
                kind = "no-answer" if attempt.state == "ringing" else "unreachable"
                self.failed(attempt.attempt, kind)
                self._cancel(attempt, kind)

    def _tell_uncertain(self, attempt: Attempt) -> None:
        self.desk.note(attempt.call, "agent and caller connected before the store confirmed it")
        self.desk.order(
            AttemptWon(
                call=attempt.call, attempt=attempt.attempt, agent=attempt.agent, revision=0, certain=False
            )
        )

    def next_time(self) -> float | None:
        return min((a.until for a in self.attempts.values() if a.until is not None), default=None)
