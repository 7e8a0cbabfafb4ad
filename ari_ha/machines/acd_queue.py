"""Who is next: the order of callers and of agents, pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from ari_ha.machines.acd_agents import in_delay
from ari_ha.wire.keyspace import AgentValue, QueueConfigValue, WaitingValue


class Match(NamedTuple):
    """A caller and the agent who should get him."""

    entry: WaitingValue
    agent: str


STRATEGIES: dict[str, Callable[[AgentValue], float]] = {
    "longest-idle": lambda agent: agent.idle_since,
    "fewest-calls": lambda agent: agent.handled,
    "least-recent": lambda agent: agent.last_end,
}
"""Among agents of equal penalty the lowest comes first; ties go by idle time, then name."""


def caller_order(entry: WaitingValue, config: QueueConfigValue) -> tuple[int, int, float, str]:
    """Heavier queues first, then higher priority, then the longer wait."""
    return (-config.weight, -entry.priority, entry.entered, entry.call)


def agent_order(name: str, agent: AgentValue, config: QueueConfigValue) -> tuple[int, float, float, str]:
    """Lower penalty first, then the queue's strategy."""
    rank = STRATEGIES.get(config.strategy, STRATEGIES["longest-idle"])
    return (agent.queues[config.queue], rank(agent), agent.idle_since, name)


def why_not_routable(agent: AgentValue, utc: float, device_ok: Callable[[str], bool]) -> str:
    """Empty when the agent may be tried for a caller now."""
    if agent.intent != "available":
        return agent.intent
    if agent.work != "idle":
        return agent.work
    if in_delay(agent, utc):
        return "delay"
    if not agent.device or not device_ok(agent.device):
        return "device"
    return ""


def position(
    place: WaitingValue, entries: Iterable[WaitingValue], config: Callable[[str], QueueConfigValue]
) -> int:
    """1 for the next caller of his queue; ``place`` need not be among ``entries``."""
    others = [entry for entry in entries if entry.queue == place.queue and entry.call != place.call]
    return in_order([*others, place], config).index(place) + 1


def in_order(
    entries: Iterable[WaitingValue], config: Callable[[str], QueueConfigValue]
) -> list[WaitingValue]:
    """Callers in the order they are served."""
    return sorted(entries, key=lambda entry: caller_order(entry, config(entry.queue)))


def matches(
    entries: Collection[WaitingValue],
    agents: Iterable[tuple[str, AgentValue]],
    config: Callable[[str], QueueConfigValue],
) -> list[Match]:
    """Pairs free callers with free agents: every caller, in order, takes the first
    agent of his queue's order whom no earlier caller has taken."""
    free = dict(agents)
    found: list[Match] = []
    for entry in in_order(entries, config):
        if not free:
            break
        queue = config(entry.queue)
        members = [name for name, agent in free.items() if entry.queue in agent.queues]
        if not members:
            continue
        best = min(members, key=lambda name: agent_order(name, free[name], queue))
        found.append(Match(entry, best))
        del free[best]
    return found
