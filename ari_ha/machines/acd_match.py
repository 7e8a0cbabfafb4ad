"""Bringing callers and agents together, from this node's point of view."""

from __future__ import annotations

from dataclasses import dataclass

from ari_ha.machines.acd_agents import in_delay
from ari_ha.machines.acd_attempts import Attempts, call_lock
from ari_ha.machines.acd_desk import Desk
from ari_ha.machines.acd_orders import ClaimDevice
from ari_ha.machines.acd_queue import Match, matches, why_not_routable
from ari_ha.machines.acd_writes import Writes
from ari_ha.wire.keyspace import AgentValue, WaitingValue


@dataclass(slots=True, kw_only=True)
class Claim:
    """The edge that holds the device was asked for it."""

    entry: WaitingValue
    agent: str
    attempt: str
    until: float


class Matcher:
    """Decides matches: at once for callers of this node, after a grace for others'."""

    def __init__(self, desk: Desk, writes: Writes, attempts: Attempts) -> None:
        self.desk = desk
        self.writes = writes
        self.attempts = attempts
        self.claims: dict[str, Claim] = {}
        self._avoid: dict[str, float] = {}
        self._others: dict[str, float] = {}

    def run(self) -> None:
        """Submits every match this node may make now."""
        desk = self.desk
        desk.match_wanted = False
        if not desk.view.seen("agents", "queues", "bindings", "nodes"):
            return
        held = self.writes.held()
        entries = [entry for entry in desk.view.entries() if self._wants(entry, held)]
        agents = desk.view.agents() if entries else ()
        free = [(name, agent) for name, agent in agents if self._free(name, agent, held)]
        found = matches(entries, free, desk.queue) if free else []
        foreign = {match.entry.call for match in found if match.entry.call not in self.attempts.callers}
        for call in [call for call in self._others if call not in foreign]:
            del self._others[call]
        for match in found:
            self._make(match)

    def _free(self, name: str, agent: AgentValue, held: set[str]) -> bool:
        desk = self.desk
        if self._avoid.get(name, 0.0) > desk.now or desk.keys.agent(name) in held:
            return False
        if any(claim.agent == name for claim in self.claims.values()):
            return False
        if self.attempts.elsewhere(name, "") is not None:
            return False  # he talks here, and the store does not say so yet
        return not why_not_routable(agent, desk.utc, desk.device_ok)

    def _wants(self, entry: WaitingValue, held: set[str]) -> bool:
        """Whether an agent may be tried for the caller now. One whose node is not ready keeps his
        place and is passed over."""
        view = self.desk.view
        if entry.attempt or call_lock(entry.call) in held:
            return False
        if any(claim.entry.call == entry.call for claim in self.claims.values()):
            return False
        if (caller := self.attempts.callers.get(entry.call)) is not None:
            owner = view.owner(entry.call)
            leaves = owner is not None and owner.moving and self.desk.is_me(owner.node)
            return caller.waits and not caller.attempt and self.desk.is_me(entry.node) and not leaves
        if self.desk.away or self.desk.is_me(entry.node):
            return False
        if view.seen("calls") and not view.call_exists(entry.call):
            return False
        owner = view.owner(entry.call)
        return view.node_ready(entry.node) and (owner is None or not owner.moving)

    def _make(self, match: Match) -> None:
        desk, entry = self.desk, match.entry
        if entry.call not in self.attempts.callers:
            settings = desk.settings
            spread = settings.others_grace_max_s - settings.others_grace_min_s
            grace = settings.others_grace_min_s + spread * desk.rand()
            due = self._others.setdefault(entry.call, desk.now + grace)
            if due > desk.now:
                return
            del self._others[entry.call]
            desk.count("acd_matched_for_others")
        attempt = desk.new_id()
        if desk.away:
            self._claim(match, attempt)
        else:
            self.attempts.reserve(entry, match.agent, attempt)

    # --- while the store is away -------------------------------------------------------

    def _claim(self, match: Match, attempt: str) -> None:
        desk = self.desk
        agent = desk.view.agent(match.agent)
        assert agent is not None
        until = desk.now + desk.settings.claim_limit_s
        self.claims[attempt] = Claim(entry=match.entry, agent=match.agent, attempt=attempt, until=until)
        desk.order(
            ClaimDevice(call=match.entry.call, attempt=attempt, agent=match.agent, device=agent.device)
        )

    def claim_answered(self, attempt: str, granted: bool, holder: str) -> None:
        claim = self.claims.pop(attempt, None)
        if claim is None:
            return
        self.desk.match_wanted = True
        if granted and claim.entry.call in self.attempts.callers:
            self.attempts.reserve(claim.entry, claim.agent, attempt, away="apply")
        elif not granted:
            self._avoid[claim.agent] = self.desk.now + self.desk.settings.avoid_s
            self.desk.note(claim.agent, "the edge refused the device", holder=holder)

    # --- time --------------------------------------------------------------------------

    def fire(self) -> None:
        now = self.desk.now
        for claim in [claim for claim in self.claims.values() if claim.until <= now]:
            self.claim_answered(claim.attempt, False, "no answer")
        for name in [name for name, until in self._avoid.items() if until <= now]:
            del self._avoid[name]
            self.desk.match_wanted = True
        if any(due <= now for due in self._others.values()):
            self.desk.match_wanted = True

    def next_time(self) -> float | None:
        """When `fire` is wanted: graces, claims, and the end of agents' delays."""
        desk = self.desk
        times = [*self._others.values(), *self._avoid.values(), *(c.until for c in self.claims.values())]
        if any(not entry.attempt for entry in desk.view.entries()):
            times += [
                desk.now + agent.delay_until - desk.utc + 0.001
                for _, agent in desk.view.agents()
                if in_delay(agent, desk.utc) and agent.work == "idle" and agent.intent == "available"
            ]
        return min(times, default=None)
