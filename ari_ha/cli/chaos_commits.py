"""Chaos, every commit: what was written to etcd during a run, held to the same rules as the simulator's
store (`ari_ha.checkers`), and to what only the run knows: who asked agents for what, and when nobody did
anything."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ari_ha.checkers.acd import changed_fields, check_counters
from ari_ha.checkers.commits import Commits
from ari_ha.cli.chaos_history import Commit, Reader
from ari_ha.cli.chaos_judge import Verdict
from ari_ha.cli.chaos_stage import Stage
from ari_ha.farend.client import FarEndError
from ari_ha.wire.keyspace import AgentValue, BadValue, Keys, WaitingValue, decode

INTENT_OF = {"login": "available", "available": "available", "logout": "logged_out"}
"""Order to an agent -> the intent it stands for"""
PLACE_FIELDS = ("queue", "entered", "priority")


@dataclass(slots=True)
class Quiet:
    """A time in which nobody logs in or out, answers or ends anything, given by revisions: after the first,
    up to the last (0: to the end)."""

    first: int
    last: int = 0
    fields: Collection[str] = ()
    """What is kept of an agent's record; empty: all of it"""
    places: bool = True
    """Whether callers who wait keep their places"""

    def holds(self, revision: int) -> bool:
        """Whether this commit fell into it."""
        return self.first < revision and (not self.last or revision <= self.last)


@dataclass(slots=True)
class Told:
    """What the commits of a run tell."""

    broken: list[str] = field(default_factory=list)
    """Rules that did not hold, in words"""
    agents: dict[str, set[str]] = field(default_factory=dict)
    """Agents of whom something changed that nobody asked for, with its fields"""
    places: dict[str, str] = field(default_factory=dict)
    """Call -> what became of its place in the queue"""
    items: Mapping[str, bytes] = field(default_factory=dict)
    """What was there at the end"""


def tell(
    keys: Keys,
    before: Mapping[str, bytes],
    commits: Iterable[Commit],
    orders: Sequence[tuple[str, str]] = (),
    quiet: Quiet | None = None,
    calm: Callable[[float], bool] = lambda utc: True,
) -> Told:
    """Follows the commits from ``before`` on. ``orders``: what agents were asked for, as (agent, verb), in
    their order; ``calm``: whether at that time (UTC) nothing was broken, so that a queue's order is kept."""
    told = Told()
    asked: dict[str, list[str]] = {}
    for agent, verb in orders:
        asked.setdefault(agent, []).append(INTENT_OF[verb])
    now = 0.0

    def was_asked(agent: AgentValue) -> bool:
        """Whether the new intent is the next, or a later, of his orders: each makes one change at most."""
        wanted = asked.get(agent.agent, [])
        if agent.intent not in wanted:
            told.agents.setdefault(agent.agent, set()).add("intent")
            return False
        del wanted[: wanted.index(agent.intent) + 1]
        return True

    def problem(rule: str, text: str) -> None:
        if f"{rule}: {text}" not in told.broken:
            told.broken.append(f"{rule}: {text}")

    def there(call: str) -> bool:
        return calm(now) and call in follow.picture.owners

    follow = Commits(keys, problem, was_asked, there)
    follow.begin(before)
    for commit in commits:
        now = commit.utc
        follow.look(now)
        if quiet is not None and quiet.holds(commit.revision):
            _quiet(keys, told, follow.history.items, commit, quiet)
        try:
            if commit.anew:
                follow.begin({key: data for key, data in commit.changes.items() if data is not None})
            else:
                follow.commit(commit.changes, now)
        except BadValue as error:
            problem("every value can be read", str(error))
        follow.look(now)
    told.items = follow.history.items
    return told


def _quiet(keys: Keys, told: Told, items: Mapping[str, bytes], commit: Commit, quiet: Quiet) -> None:
    """What this commit does to agents and places, while nobody does anything."""
    gone = {key: None for key in items if commit.anew and key not in commit.changes}
    for key, data in (commit.changes | gone).items():
        match keys.split(key):
            case ("agents", name):
                fields = set(changed_fields(items.get(key), data))
                if fields := fields & set(quiet.fields or fields):
                    told.agents.setdefault(name, set()).update(fields)
            case ("queues", _, "waiting", call) if quiet.places and key in items:
                was, found = _place(items[key]), _place(data)
                if was != found:
                    told.places.setdefault(call, f"place in the queue was {was}, is {found}")


def _place(data: bytes | None) -> tuple[Any, ...] | None:
    value = decode(data, WaitingValue) if data is not None else None
    return value and tuple(getattr(value, name) for name in PLACE_FIELDS)


def counters(
    keys: Keys, before: Mapping[str, bytes], after: Mapping[str, bytes], calls: Iterable[Mapping[str, Any]]
) -> list[str]:
    """Agents are charged and credited with no more than happened at their phones. ``calls``: the far ends'
    calls since ``before``."""
    answered: dict[str, int] = {}
    missed: dict[str, int] = {}
    for call in calls:
        count = answered if call["answered_at"] else missed
        count[call["owner"]] = count.get(call["owner"], 0) + 1
    found: list[str] = []
    for key, data in after.items():
        match keys.split(key):
            case ("agents", name) if key in before:
                was, now = decode(before[key], AgentValue, key), decode(data, AgentValue, key)
                grown = (now.missed - was.missed, now.handled - was.handled)
                found += check_counters(name, *grown, missed.get(name, 0), answered.get(name, 0))
    return found


class Watched:
    """The commits of one run."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.reader = Reader(stage.cluster)
        self.quiet: Quiet | None = None
        """From the fault until people act again"""
        self._began = time.time()
        self._struck_at = self._acting_at = math.inf
        self._judged = False

    def begin(self) -> None:
        """Reads from now on; nothing of the run has happened yet. Raises ClusterError."""
        self.stage.orders.clear()
        self._began = time.time()
        self.reader.begin()

    def strike(self, quiet: Quiet) -> None:
        """Something breaks now, and nobody acts."""
        self._struck_at, self.quiet = time.time(), quiet

    def acting(self) -> None:
        """All is well again, and people go on."""
        self._acting_at = time.time()

    def is_quiet_until_now(self) -> None:
        """Whoever acts does it from now on."""
        if self.quiet is not None:
            self.quiet.last = self.stage.cluster.revision()

    def _calm(self, utc: float) -> bool:
        return not self._struck_at <= utc <= self._acting_at

    def judge(self, verdicts: Iterable[Verdict]) -> tuple[dict[str, int], list[str]]:
        """What the commits tell, counted and in words; the second time nothing."""
        self.reader.end()
        if self._judged:
            return {}, []
        self._judged = True
        keys, before = self.stage.cluster.keys, self.reader.before
        told = tell(keys, before, self.reader.commits, self.stage.orders, self.quiet, self._calm)
        try:
            calls = [call for call in self.stage.far_calls().values() if call["started"] >= self._began]
            told.broken += counters(keys, before, told.items, calls)
        except FarEndError as error:  # a run that stopped: what etcd tells counts all the same
            self.stage.say(f"counters are not judged: {error}")
        for verdict in verdicts:
            if verdict.pair.call in told.places:
                verdict.against.append(told.places[verdict.pair.call])
        left = [
            f"agent {name} changed: {', '.join(sorted(told.agents[name]))}" for name in sorted(told.agents)
        ]
        left += told.broken
        if self.reader.not_seen:
            left.append(f"{self.reader.not_seen} revisions of etcd were not seen")
        return {"agents_changed": len(told.agents), "rules_broken": len(told.broken)}, left
