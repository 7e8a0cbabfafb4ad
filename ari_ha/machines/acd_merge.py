"""What was done while the store was away, merged with what it holds now.

Three versions of a value: the ``base`` both sides began from, ``mine`` and
``theirs``. Groups of fields are merged apart: intent goes to the newer writer,
work to whoever holds the call, counters add up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from ari_ha.machines.acd_agents import BUSY, Not, to_idle
from ari_ha.machines.acd_view import Dirty
from ari_ha.wire.keyspace import AgentValue, Value, WaitingValue

INTENT = ("intent", "reason", "intent_since", "by", "next_intent", "next_reason", "device", "logged_in")
WORK = (
    "work", "work_since", "attempt", "acw_deadline", "delay_until", "idle_since", "last_end", "misses",
)  # fmt: skip
COUNTERS = ("handled", "missed", "talk_s")

Holds = Callable[[str], bool]


def merge_dirty(dirty: Dirty, theirs: Any, holds: Holds, utc: float) -> Not | tuple[Value | None]:
    """The value to write over ``theirs`` (None in the tuple: delete), or Not."""
    if isinstance(dirty.value, AgentValue):
        if theirs is None:
            return Not("the agent was removed", already=True)
        return merge_agent(dirty.base, dirty.value, theirs, holds, utc)
    if isinstance(dirty.value, WaitingValue):
        return _merge_place(dirty.value, theirs, holds)
    if dirty.value is None:
        return Not("gone already", already=True) if theirs is None else (None,)
    return (dirty.value,)


def _merge_place(mine: WaitingValue, theirs: Any, holds: Holds) -> Not | tuple[Value | None]:
    if not holds(mine.call):
        return Not("the caller is another node's now", already=True)
    if theirs == mine:
        return Not("stored already", already=True)
    return (mine,)


def _group(agent: AgentValue, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(agent, name) for name in names}


def _intent(base: AgentValue, mine: AgentValue, theirs: AgentValue) -> dict[str, Any]:
    was, ours, others = (_group(agent, INTENT) for agent in (base, mine, theirs))
    if ours == was:
        return others
    if others == was:
        return ours
    return ours if mine.intent_since > theirs.intent_since else others


def _work(base: AgentValue, mine: AgentValue, theirs: AgentValue, holds: Holds) -> dict[str, Any]:
    was, ours, others = (_group(agent, WORK) for agent in (base, mine, theirs))
    if ours == was:
        return others
    if others == was:
        return ours
    if _holds(mine, holds):
        return ours
    if theirs.work in BUSY and not _same_attempt(mine, theirs, base):
        return others
    return ours if mine.work_since >= theirs.work_since else others


def _holds(agent: AgentValue, holds: Holds) -> bool:
    return agent.work in BUSY and agent.attempt is not None and holds(agent.attempt.call)


def _same_attempt(mine: AgentValue, theirs: AgentValue, base: AgentValue) -> bool:
    """Whether what they have is only an earlier stage of what we did."""
    if theirs.attempt is None:
        return False
    ids = {a.attempt.attempt for a in (mine, base) if a.attempt is not None}
    return theirs.attempt.attempt in ids


def merge_agent(
    base: AgentValue, mine: AgentValue, theirs: AgentValue, holds: Holds, utc: float
) -> Not | tuple[Value | None]:
    """One transition that brings the store up to what happened while it was away."""
    added = {name: getattr(theirs, name) + getattr(mine, name) - getattr(base, name) for name in COUNTERS}
    merged = msgspec.structs.replace(
        theirs, **_intent(base, mine, theirs), **_work(base, mine, theirs, holds), **added
    )
    if merged.work == "idle" and merged.next_intent:
        merged = to_idle(merged, utc)
    if merged.work not in BUSY and merged.recovering is not None:
        merged = msgspec.structs.replace(merged, recovering=None)
    if merged == theirs:
        return Not("stored already", already=True)
    return (msgspec.structs.replace(merged, seq=theirs.seq + 1),)
