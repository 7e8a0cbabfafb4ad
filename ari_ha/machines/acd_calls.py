"""The callers this node serves: entering, leaving, and being taken over."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from ari_ha.core.ports.store import Compare, Put
from ari_ha.machines.acd_agents import IN_CALL, TRYING, Not, ending_rule, recover, recovered
from ari_ha.machines.acd_attempts import Attempt, Attempts, Caller, call_lock
from ari_ha.machines.acd_desk import Desk
from ari_ha.machines.acd_log import BY_CALLER
from ari_ha.machines.acd_orders import CallerQueued, CancelAttempt, QueueFull
from ari_ha.machines.acd_writes import Plan, Result, Writes
from ari_ha.wire.keyspace import AgentValue, Value, WaitingValue
from ari_ha.wire.link import Rung

OF_A_CALLER = ("agents", "queues")
"""Families that say who waits, and who is busy with whom."""


@dataclass(frozen=True, slots=True)
class Moved:
    """An agent whose call is being rebuilt: since when (UTC), from which node; and when
    (monotonic) that is written down, because it lasts."""

    due: float
    since: float
    from_node: str


class Calls(Attempts):
    """Adds the callers to the attempts made for them."""

    def __init__(self, desk: Desk, writes: Writes) -> None:
        super().__init__(desk, writes)
        self._moved: dict[tuple[str, str], Moved] = {}
        """Agents of calls that are being rebuilt, by call and name"""

    # --- callers -----------------------------------------------------------------------

    def enter(
        self, caller: Caller, with_puts: Sequence[Put] = (), with_compares: Sequence[Compare] = ()
    ) -> None:
        desk = self.desk
        config = desk.view.queue(caller.queue)
        if config is None and desk.view.seen("queues"):
            desk.count("acd_queue_unknown")
            desk.order(QueueFull(call=caller.call, queue=caller.queue, action="busy", why="no such queue"))
            return
        config = config or desk.queue(caller.queue)
        inside = sum(e.queue == caller.queue and e.call != caller.call for e in desk.view.entries())
        inside += sum(1 for op in self.writes.ops if op.name == f"enter/{caller.queue}")
        if inside >= config.max_waiting:
            desk.count("acd_queue_full", queue=caller.queue)
            desk.order(QueueFull(call=caller.call, queue=caller.queue, action=config.full_action))
            return
        self.callers[caller.call] = caller

        def done(result: Result) -> None:
            self._tell_extras(caller.call, result)
            if caller.call in self.callers and result.ok:
                desk.order(CallerQueued(call=caller.call, queue=caller.queue, revision=result.revision))

        self._submit(
            f"enter/{caller.queue}", caller.call, "", lambda: self._plan_place(caller), done,
            extra_compares=tuple(with_compares), extra_puts=tuple(with_puts),
        )  # fmt: skip

    def _plan_place(self, caller: Caller) -> Plan | Not:
        """The caller's place: made, or only its node updated."""
        view, me = self.desk.view, str(self.desk.me)
        key = self.desk.keys.waiting(caller.queue, caller.call)
        entry = view.value(key)
        if caller.leaving:
            return Not("the caller left")
        if any(agent.work in IN_CALL for _, agent in view.agents_of(caller.call)):
            return Not("talks to an agent", already=True)
        if entry is None:
            entry = WaitingValue(
                call=caller.call, queue=caller.queue, entered=caller.entered, priority=caller.priority,
                caller=caller.caller, node=me,
            )  # fmt: skip
            return Plan({key: entry}, "enters the queue")
        if entry.node == me:
            return Not("has his place", already=True)
        return Plan({key: msgspec.structs.replace(entry, node=me)}, "keeps his place on another node")

    def _plan_no_place(self, call: str) -> Plan | Not:
        """He waits no more. While somebody is still to be rung for him that one may be who talks to him."""
        writes = self.place_freed(call, "")
        return Plan(writes, "waits no more") if writes else Not("has no place, or is tried", already=True)

    def leave(self, call: str, why: str, goes_on: bool = False) -> None:
        """The caller is gone: his place, and whoever was busy with him; where the call ``goes_on``
        between others, whoever was to be rung for him."""
        self._forget_moved(call)
        caller = self.callers.pop(call, None)
        if caller is not None:
            caller.leaving = True
        for attempt in self._attempts_of(call):
            del self.attempts[attempt.attempt]
            attempt.closing = True
            if attempt.state in ("started", "ringing"):
                self._cancel(attempt, "caller-left")

        def decide() -> Plan | Not:
            entry_key = self.desk.view.entry_key(call)
            writes: dict[str, Value | None] = {entry_key: None} if entry_key else {}
            for name, agent in self.desk.view.agents_of(call):
                if goes_on and agent.work not in TRYING:
                    continue
                rule = ending_rule(agent)
                new = self._change(name, rule, self._facts(agent))
                if not isinstance(new, Not):
                    writes[self.desk.keys.agent(name)] = new
            if not writes:
                return Not("nothing left", already=True)
            reads = self.place_read(call, caller.queue) if caller is not None else ()
            return Plan(writes, f"caller leaves ({why})", reads, cause=BY_CALLER)

        self._submit("leave", call, "", decide)
        if not self.desk.view.seen(*OF_A_CALLER):
            # an app that started while the store was away: what a life before wrote of him is not known yet
            self._submit("leave", call, "", decide, needs=OF_A_CALLER, away="keep")

    def forget(self, call: str) -> None:
        """Another node serves the call: nothing is written, nothing ordered."""
        self._forget_moved(call)
        self.callers.pop(call, None)
        for attempt in self._attempts_of(call):
            del self.attempts[attempt.attempt]
        self.writes.forget(call_lock(call))

    # --- takeover ----------------------------------------------------------------------

    def resume(
        self, caller: Caller, alive: Mapping[str, str], ended: Collection[str],
        talking: Collection[str], from_node: str, rung: Sequence[Rung] = (),
    ) -> None:  # fmt: skip
        """This node serves the call now. Of the agents' values only `recovering` changes."""
        desk, call = self.desk, caller.call
        self.callers[call] = caller
        caller.ended = frozenset(ended)
        parties = desk.view.agents_of(call)
        older = self._older([party for party in parties if party[0] not in talking], alive)
        parts = [(agent.work, agent.attempt.attempt) for _, agent in parties if agent.attempt is not None]
        in_talk = bool(talking) or any(work in IN_CALL and part not in ended for work, part in parts)
        rings_on = None if in_talk else self._rings_on(caller, parties, alive, rung)
        for name, agent in parties:
            assert agent.attempt is not None
            self.attempts.pop(agent.attempt.attempt, None)
            for other in [a for a in self._attempts_of(call) if a.agent == name]:
                del self.attempts[other.attempt]  # taken up before his name in the store was known
            talks = self.elsewhere(name, call)
            # the store may not know yet that somebody else has the caller, whom he was to be rung for
            here = agent.attempt.attempt in alive or name in talking
            late = name in older or ((in_talk or rings_on is not None) and not here)
            late = late and agent.work in TRYING
            if agent.attempt.attempt in ended or talks is not None or late:
                self._fail_agent(call, name, agent.attempt.attempt, "release", 0.0)
                if talks is not None:
                    self.readopt(talks)
                continue
            self._resume_attempt(name, agent, alive, talking)
            due = desk.now + desk.settings.recovering_after_s
            self._moved[call, name] = Moved(due, desk.utc, from_node)
        # whoever is there talks, whatever is known of him: only a phone that still rings is taken back
        ringing = [attempt for attempt, state in alive.items() if state == "ringing"]
        known = {*self.attempts, rings_on.attempt if rings_on is not None else ""}
        for lost in [a for a in ringing if a not in known and not talking]:
            desk.order(CancelAttempt(call=call, attempt=lost, agent="", why="lost"))
        for name in talking:
            if not any(a.agent == name for a in self._attempts_of(call)):
                by = next((one.attempt for one in rung if one.agent == name and one.attempt in alive), "")
                self.adopt(call, caller.queue, name, by or self._ended_one(name, alive) or desk.new_id())
        if not caller.waits:
            self._submit("resume", call, "", lambda: self._plan_no_place(call))
        elif caller.queue and not in_talk:
            self._submit("resume", call, "", lambda: self._plan_place(caller))
        if rings_on is not None:
            self._keep_ringing(caller, rings_on)
        desk.match_wanted = True

    def _rings_on(
        self, caller: Caller, parties: Sequence[tuple[str, AgentValue]], alive: Mapping[str, str],
        rung: Sequence[Rung],
    ) -> Rung | None:  # fmt: skip
        """The attempt that rings a phone, and of which the store knows nothing: whoever made it was lost
        before it could write that."""
        if any(agent.attempt is not None and agent.attempt.attempt in alive for _, agent in parties):
            return None
        busy = {attempt.agent for attempt in self.attempts.values() if attempt.call != caller.call}
        ringing = [one for one in rung if alive.get(one.attempt) == "ringing" and one.agent not in busy]
        return ringing[-1] if ringing else None

    def _keep_ringing(self, caller: Caller, one: Rung) -> None:
        """Caller and agent are given to each other as they were; if they are not free for that, it rings
        no more."""
        for older in self._attempts_of(caller.call):
            self._drop(older)
        attempt = Attempt(
            attempt=one.attempt, call=caller.call, agent=one.agent, device=one.device, queue=caller.queue,
            until=self.desk.now + self.desk.settings.reserve_ttl_s, resumed=True,
        )  # fmt: skip
        self.attempts[one.attempt] = attempt
        caller.attempt = one.attempt

        def done(result: Result) -> None:
            if self.attempts.get(one.attempt) is not attempt or attempt.state != "started":
                return  # it was answered meanwhile, which says more
            if result.ok:
                self.ringing(one.attempt)
            else:
                self._drop(attempt)
                self._cancel(attempt, "lost")

        place = WaitingValue(call=caller.call, queue=caller.queue, entered=0.0)
        self.reserve(place, one.agent, one.attempt, away="apply", done=done)

    def _ended_one(self, name: str, alive: Mapping[str, str]) -> str:
        """The attempt by which an agent came into a conversation that lives, and that was ended for him."""
        agent = self.desk.view.agent(name)
        part = agent.attempt if agent is not None else None
        return part.attempt if part is not None and part.attempt in alive else ""

    def _older(self, parties: Sequence[tuple[str, AgentValue]], alive: Mapping[str, str]) -> set[str]:
        """Of several agents to be rung for one call, all but one. A call has one attempt; the store may have
        kept another, and the mirror may: a leg that lives, else the newer value, says which it is."""

        def order(party: tuple[str, AgentValue]) -> tuple[bool, int]:
            name, agent = party
            lives = agent.attempt is not None and agent.attempt.attempt in alive
            return lives, self.desk.view.revision(self.desk.keys.agent(name))

        trying = sorted((party for party in parties if party[1].work in TRYING), key=order)
        return {name for name, _ in trying[:-1]}

    def _resume_attempt(
        self, name: str, agent: AgentValue, alive: Mapping[str, str], talking: Collection[str]
    ) -> None:
        desk, part = self.desk, agent.attempt
        assert part is not None
        attempt = Attempt(
            attempt=part.attempt, call=part.call, agent=name, device=agent.device, queue=part.queue,
            resumed=True,
        )  # fmt: skip
        self.attempts[part.attempt] = attempt
        if part.call in self.callers:
            self.callers[part.call].attempt = part.attempt
        if agent.work in IN_CALL:
            attempt.state, attempt.told = "won", True
            return
        if name in talking:
            attempt.told = True
            self.answered(part.attempt)
            return
        # not longer than it was to ring, whatever time of day it is where it began
        left = min(part.deadline - desk.utc, part.deadline - part.since)
        attempt.until = desk.now + max(left, desk.settings.resumed_ring_min_s)
        if part.attempt in alive:
            attempt.state = "ringing"
            if agent.work == "reserved":
                self.ringing(part.attempt)
        else:
            self._start(attempt, agent, again=True)

    def _overlay(self, call: str, name: str, change: Callable[[AgentValue], AgentValue | Not]) -> None:
        key = self.desk.keys.agent(name)

        def decide() -> Plan | Not:
            agent = self.desk.view.agent(name)
            new = change(agent) if agent is not None else Not("no such agent", already=True)
            return new if isinstance(new, Not) else Plan({key: new})

        self._submit("overlay", call, name, decide, away="drop")

    def fire(self) -> None:
        """Attempts whose time is over, and calls that take long to rebuild: people may know."""
        super().fire()
        for (call, name), moved in list(self._moved.items()):
            if moved.due <= self.desk.now:
                del self._moved[call, name]
                self._mark(call, name, moved)

    def _mark(self, call: str, name: str, moved: Moved) -> None:
        self._overlay(call, name, lambda a: recover(a, call, moved.since, moved.from_node))

    def next_time(self) -> float | None:
        times = [moved.due for moved in self._moved.values()]
        attempt = super().next_time()
        return min(times if attempt is None else [*times, attempt], default=None)

    def _forget_moved(self, call: str) -> None:
        self._moved = {key: moved for key, moved in self._moved.items() if key[0] != call}

    def recovered(self, call: str) -> None:
        self._forget_moved(call)
        for name, agent in self.desk.view.agents():
            mine = agent.attempt is not None and agent.attempt.call == call
            if mine and (agent.recovering is not None or self.writes.has(self.desk.keys.agent(name))):
                self._overlay(call, name, recovered)
