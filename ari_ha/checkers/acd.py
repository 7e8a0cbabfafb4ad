"""What must always be true of agents and queues: pure checkers over stored values.

`check_store` looks at one moment, `check_alive` compares it with the calls that
live, `History` follows every commit. Each returns findings in words; none is good.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple, TypeVar

import msgspec

from ari_ha.core.ids import NodeId
from ari_ha.machines.acd_agents import BUSY, IN_CALL, TRYING
from ari_ha.machines.acd_queue import caller_order
from ari_ha.wire.keyspace import (
    AgentValue,
    Keys,
    NodeValue,
    OwnerValue,
    QueueConfigValue,
    WaitingValue,
    decode,
)

V = TypeVar("V")
OVERLAY = {"recovering"}
"""What failover may set of an agent"""


class Picture(NamedTuple):
    """The part of the store the ACD is about, decoded."""

    agents: dict[str, AgentValue]
    entries: dict[str, WaitingValue]
    queues: dict[str, QueueConfigValue]
    nodes: dict[str, NodeValue]
    owners: dict[str, OwnerValue]
    calls: set[str]


def picture(keys: Keys, items: Mapping[str, bytes]) -> Picture:
    """Decodes the store's keys."""
    found = Picture({}, {}, {}, {}, {}, set())
    for key, data in items.items():
        _learn(keys, found, key, data)
    return found


def _learn(keys: Keys, into: Picture, key: str, data: bytes | None) -> None:
    """Brings one key of the picture up to date."""
    match keys.split(key):
        case ("agents", name):
            _set(into.agents, name, decode(data, AgentValue, key) if data is not None else None)
        case ("queues", _, "waiting", call):
            _set(into.entries, call, decode(data, WaitingValue, key) if data is not None else None)
        case ("queues", name, "config"):
            _set(into.queues, name, decode(data, QueueConfigValue, key) if data is not None else None)
        case ("nodes", name):
            _set(into.nodes, name, decode(data, NodeValue, key) if data is not None else None)
        case ("calls", call, what):
            into.calls.add(call)
            if what == "owner":
                _set(into.owners, call, decode(data, OwnerValue, key) if data is not None else None)


def _set(table: dict[str, V], name: str, value: V | None) -> None:
    if value is None:
        table.pop(name, None)
    else:
        table[name] = value


def check_store(now: Picture) -> list[str]:
    """One attempt per agent and per call; agents and places agree."""
    found: list[str] = []
    by_call: dict[str, list[str]] = defaultdict(list)
    by_attempt: dict[str, list[str]] = defaultdict(list)
    for name, agent in now.agents.items():
        part = agent.attempt
        if agent.work not in BUSY:
            continue
        if part is None:
            found.append(f"agent {name} is {agent.work} without attempt or call")
            continue
        if part.attempt != part.call:  # else he came by no queue: called, or was called by somebody in it
            by_call[part.call].append(name)
            by_attempt[part.attempt].append(name)
        entry = now.entries.get(part.call)
        if agent.work in TRYING and entry is not None and entry.attempt not in ("", part.attempt):
            found.append(f"place of {part.call} names {entry.attempt}, agent {name} has {part.attempt}")
        if agent.work in IN_CALL and entry is not None and entry.attempt:
            found.append(f"call {part.call} talks to {name} and is tried elsewhere too")
    found += [f"call {call} has agents {names}" for call, names in by_call.items() if len(names) > 1]
    found += [f"attempt {ident} is of {names}" for ident, names in by_attempt.items() if len(names) > 1]
    for call, entry in now.entries.items():
        if entry.attempt and (entry.agent not in now.agents or entry.attempt not in by_attempt):
            found.append(f"place of {call} names attempt {entry.attempt}, which no agent has")
    return found


def check_talks(talks: Mapping[str, Collection[str]]) -> list[str]:
    """``talks``: call -> agents who hear it. No agent is in two calls."""
    calls: dict[str, list[str]] = defaultdict(list)
    for call, agents in talks.items():
        for agent in agents:
            calls[agent].append(call)
    return [f"agent {name} is in calls {in_calls}" for name, in_calls in calls.items() if len(in_calls) > 1]


def check_alive(now: Picture, live: Mapping[str, Collection[str]]) -> list[str]:
    """``live``: call -> agents with a living leg or attempt. Nobody is busy with nothing,
    nobody waits who is not there, nobody talks unseen."""
    found: list[str] = []
    for name, agent in now.agents.items():
        if agent.work in BUSY and agent.attempt is not None:
            if name not in live.get(agent.attempt.call, ()):
                found.append(f"agent {name} is {agent.work} in {agent.attempt.call}, which has no such leg")
    for call, agents in live.items():
        for name in agents:
            seen = now.agents.get(name)
            if seen is None or seen.attempt is None or seen.attempt.call != call or seen.work not in BUSY:
                found.append(f"agent {name} has a leg in {call} and is {seen.work if seen else 'unknown'}")
    found += [f"call {call} waits and does not live" for call in now.entries if call not in live]
    return found


def check_failover(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> list[str]:
    """Agents' values before and after a takeover: equal but for `recovering`."""
    return [
        f"{key} changed: {', '.join(fields)}"
        for key in before.keys() | after.keys()
        if (fields := changed_fields(before.get(key), after.get(key)))
    ]


def check_counters(agent: str, charged: int, credited: int, missed: int, answered: int) -> list[str]:
    """An agent's counters tell of no more calls than he missed, and answered."""
    found = [f"{agent} missed {missed}, charged {charged}"] if charged > missed else []
    return found + ([f"{agent} handled {answered}, has {credited}"] if credited > answered else [])


def changed_fields(before: bytes | None, after: bytes | None) -> list[str]:
    """The fields in which an agent's stored value differs, but for the overlay that failover may set."""
    old, new = (msgspec.json.decode(data) if data is not None else {} for data in (before, after))
    return sorted(name for name in (old.keys() | new.keys()) - OVERLAY if old.get(name) != new.get(name))


class History:
    """Follows every commit. ``settle_s``: a caller counts as passed over only when he
    could have been served this long before, and is not served this long after (two
    nodes decide in the same moment, and transactions overtake each other). ``there``: whether
    he is (nobody keeps an order he cannot see, and a place outlives its caller for a moment)."""

    def __init__(
        self, keys: Keys, settle_s: float = 1.0, there: Callable[[str], bool] = lambda call: True
    ) -> None:
        self.keys = keys
        self.settle_s = settle_s
        self.there = there
        self.found: list[str] = []
        self.items: dict[str, bytes] = {}
        self.picture = picture(keys, {})
        self.commits = 0
        self._ready_since: dict[str, float] = {}
        self._passed_over: list[tuple[float, str, str]] = []

    def begin(self, items: Mapping[str, bytes]) -> None:
        """What is there before the first commit."""
        self.items = dict(items)
        self.picture = picture(self.keys, items)

    def commit(self, changes: Mapping[str, bytes | None], utc: float) -> None:
        """One revision of the store: key -> value, None when deleted."""
        before = dict(self.picture.entries)
        for key, data in changes.items():
            self._seq(key, self.items.get(key), data)
            _set(self.items, key, data)
            _learn(self.keys, self.picture, key, data)
        self.commits += 1
        self._order(before, utc)
        self._ready(utc)

    def _seq(self, key: str, old: bytes | None, new: bytes | None) -> None:
        parts = self.keys.split(key)
        if len(parts) != 2 or parts[0] != "agents" or old is None or new is None:
            return
        was, now = decode(old, AgentValue, key), decode(new, AgentValue, key)
        if now.seq == was.seq:
            if changed_fields(old, new):
                self.found.append(f"{key}: changed without counting seq {now.seq}")
        elif now.seq != was.seq + 1:
            self.found.append(f"{key}: seq {was.seq} -> {now.seq}")

    def _order(self, before: Mapping[str, WaitingValue], utc: float) -> None:
        after = self.picture
        for call, entry in after.entries.items():
            was = before.get(call)
            if not entry.attempt or was is None or was.attempt:
                continue
            agent = after.agents.get(entry.agent)
            config = after.queues.get(entry.queue) or QueueConfigValue(queue=entry.queue)
            for other in before.values():
                queue = after.queues.get(other.queue) or QueueConfigValue(queue=other.queue)
                if other.call == call or agent is None or other.queue not in agent.queues:
                    continue
                since = self._ready_since.get(other.call, utc)
                earlier = caller_order(other, queue) < caller_order(entry, config)
                if earlier and utc - since >= self.settle_s:
                    self._passed_over.append((utc + self.settle_s, call, other.call))

    def _ready(self, utc: float) -> None:
        now, ready = self.picture, {}
        for call, entry in now.entries.items():
            ident = NodeId.parse(entry.node)
            node = now.nodes.get(ident.name)
            owner = now.owners.get(call)
            there = node is not None and node.ready and ident.incarnation in ("", node.incarnation)
            if not entry.attempt and there and (owner is None or not owner.moving):
                ready[call] = self._ready_since.get(call, utc)
        self._ready_since = ready
        self.settle(utc)

    def settle(self, utc: float) -> None:
        """Time passed: whoever is still passed over counts."""
        waiting = []
        for until, call, other in self._passed_over:
            if other in self._ready_since and until <= utc and self.there(other):
                self.found.append(f"{call} was served before {other}, who waited longer")
            elif other in self._ready_since and until > utc:
                waiting.append((until, call, other))
        self._passed_over = waiting
