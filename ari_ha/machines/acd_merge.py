"""What was done while the store was away, merged with what it holds now.

Three versions of a value: the ``base`` both sides began from, ``mine`` and
``theirs``. Groups of fields are merged apart: intent goes to the newer writer,
work to whoever holds the call, counters add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from ari_ha.machines.acd_agents import (
    BUSY,
    BY_ACD,
    IN_CALL,
    REASON_RONA,
    TRYING,
    Facts,
    Not,
    advance,
    to_idle,
)
from ari_ha.machines.acd_log import NONE
from ari_ha.machines.acd_view import Dirty, Stored, View
from ari_ha.wire.keyspace import AgentValue, Value, WaitingValue
from ari_ha.wire.outbox import QueueLine

INTENT = ("intent", "reason", "intent_since", "by", "next_intent", "next_reason", "device", "logged_in")
WORK = (
    "work", "work_since", "attempt", "acw_deadline", "delay_until", "idle_since", "last_end", "misses",
)  # fmt: skip
COUNTERS = ("handled", "missed", "talk_s")

Holds = Callable[[str], bool]


GROUP_KEYS_MAX = 60
"""etcd takes 128 operations in a transaction: as many compares, as many writes."""


def groups(view: View, keys: Iterable[str]) -> list[tuple[str, ...]]:
    """Dirty keys that belong together: an agent and the places of the calls he was or
    is busy with, written in one transaction so that they never contradict each other."""
    found: list[tuple[set[str], list[str]]] = []
    for key in sorted(keys):
        calls, members = _calls_of(view, key), [key]
        apart = []
        for other in found:
            if other[0].isdisjoint(calls) or len(members) + len(other[1]) > GROUP_KEYS_MAX:
                apart.append(other)
            else:
                calls |= other[0]
                members = other[1] + members
        found = [*apart, (calls, members)]
    return [tuple(members) for _, members in found]


def _calls_of(view: View, key: str) -> set[str]:
    dirty, stored = view.dirty[key], view.stored(key)
    calls = {line.call for _, line in dirty.lines if line.call != NONE}
    for value in (dirty.base, dirty.value, stored.value if stored is not None else None):
        if isinstance(value, WaitingValue):
            calls.add(value.call)
        elif isinstance(value, AgentValue) and value.attempt is not None:
            calls.add(value.attempt.call)
    return calls


def merge_group(
    view: View, dirty: Mapping[str, Dirty], holds: Holds, utc: float
) -> tuple[dict[str, Value | None], tuple[str, ...]]:
    """The writes that bring the store up to date about ``dirty``, free of contradictions,
    and the keys they depend on."""
    writes: dict[str, Value | None] = {}
    reads: set[str] = set()
    for key, value in dirty.items():
        stored = view.stored(key)
        merged = merge_dirty(value, stored.value if stored is not None else None, holds, utc)
        if not isinstance(merged, Not):
            writes[key] = merged[0]
    for key in dirty:
        _release_ousted(view, key, writes, utc)
        reads.update(_free_ousted(view, key, writes))
    for key in dirty:
        place = _after(view, key, writes)
        if isinstance(place, WaitingValue) and place.attempt and not _has(view, place, writes):
            writes[key] = msgspec.structs.replace(place, attempt="", agent="")
    return writes, tuple(sorted(reads))


def own_part(view: View, dirty: Mapping[str, Dirty], me: str) -> tuple[dict[str, Dirty], tuple[str, ...]]:
    """``dirty`` without what became here of rings that are others' to tell of, and the keys that this
    depends on. ``me``: this node, as places name it."""
    found: dict[str, Dirty] = {}
    reads: list[str] = []
    for key, value in dirty.items():
        place = _taken_up(view, value, me)
        told = _told_by_others(value, view.stored(key))
        found[key] = _without_the_ring(value) if place or told else value
        reads += [place] if place else []
    return found, tuple(reads)


def _taken_up(view: View, dirty: Dirty, me: str) -> str:
    """The place of a caller whom another node took over, with the very phone of this agent ringing on: that
    it came to nothing here was the move, and no word about the phone. Empty: there is none."""
    base = dirty.base
    if not isinstance(base, AgentValue) or base.attempt is None or base.work not in TRYING:
        return ""
    key = view.keys.waiting(base.attempt.queue, base.attempt.call)
    stored = view.stored(key)
    place = stored.value if stored is not None else None
    rings_on = isinstance(place, WaitingValue) and place.attempt == base.attempt.attempt
    return key if rings_on and place.node != me else ""


def _told_by_others(dirty: Dirty, stored: Stored | None) -> bool:
    """Whether the ring that he missed here came to something else by the word of who has served its caller
    since: he answered there, perhaps, or it was not let ring to its end."""
    base, mine, theirs = dirty.base, dirty.value, stored.value if stored is not None else None
    if not all(isinstance(value, AgentValue) for value in (base, mine, theirs)):
        return False
    missed = base.work in TRYING and mine.missed > base.missed
    return missed and not (theirs.work in TRYING and _in_the_same(base, theirs))


def _without_the_ring(dirty: Dirty) -> Dirty:
    """``dirty`` without what became of the attempt in its base: neither a miss nor what follows from one.
    What he has been in since stays."""
    base, mine = dirty.base, dirty.value
    if not isinstance(mine, AgentValue):
        return dirty
    without: dict[str, Any] = {"missed": max(base.missed, mine.missed - 1)}
    if (mine.reason, mine.by) == (REASON_RONA, BY_ACD):
        without |= _group(base, INTENT)
    if mine.work not in BUSY and mine.handled == base.handled:
        without |= _group(base, WORK)
    lines = tuple((n, line) for n, line in dirty.lines if not _is_of_the_ring(line, base.attempt.call))
    return replace(dirty, value=msgspec.structs.replace(mine, **without), lines=lines)


def _is_of_the_ring(line: QueueLine, call: str) -> bool:
    not_reached = line.event in ("RINGNOANSWER", "RINGCANCELED") and line.call == call
    return not_reached or (line.event == "PAUSEALL" and line.data == [REASON_RONA])


def _after(view: View, key: str, writes: Mapping[str, Value | None]) -> Value | None:
    """What ``key`` will be."""
    stored = view.stored(key)
    return writes.get(key, stored.value if stored is not None else None)


def _has(view: View, place: WaitingValue, writes: Mapping[str, Value | None]) -> bool:
    agent = _after(view, view.keys.agent(place.agent), writes)
    return (
        isinstance(agent, AgentValue)
        and agent.work in BUSY
        and agent.attempt is not None
        and agent.attempt.attempt == place.attempt
    )


def _release_ousted(view: View, key: str, writes: dict[str, Value | None], utc: float) -> None:
    """A place the store had given to an agent meanwhile and that goes elsewhere now."""
    stored = view.stored(key)
    place = stored.value if stored is not None else None
    if key not in writes or not isinstance(place, WaitingValue) or not place.attempt:
        return
    new = writes[key]
    if isinstance(new, WaitingValue) and new.attempt == place.attempt:
        return
    other = view.keys.agent(place.agent)
    agent = _after(view, other, writes)
    if isinstance(agent, AgentValue) and agent.work in TRYING:
        facts = Facts(attempt=place.attempt, call=place.call)
        freed = advance(agent, "release", facts, utc)
        if not isinstance(freed, Not):
            was = view.stored(other)
            counted = was.value.seq + 1 if was is not None else freed.seq
            writes[other] = msgspec.structs.replace(freed, seq=counted)


def _free_ousted(view: View, key: str, writes: dict[str, Value | None]) -> tuple[str, ...]:
    """An agent the store had given to another caller meanwhile: that place is free again. The place of one to
    whom he has talked, by the very attempt that the store has as a ring still, is over."""
    stored = view.stored(key)
    agent = stored.value if stored is not None else None
    if key not in writes or not isinstance(agent, AgentValue) or agent.attempt is None:
        return ()
    new, part = writes[key], agent.attempt
    same = isinstance(new, AgentValue) and _in_the_same(agent, new)
    if same and (new.work in TRYING or agent.work not in TRYING):
        return ()
    place_key = view.keys.waiting(part.queue, part.call)
    place = _after(view, place_key, writes)
    if isinstance(place, WaitingValue) and place.attempt == part.attempt:
        writes[place_key] = None if same else msgspec.structs.replace(place, attempt="", agent="")
    return (place_key,)


def merge_dirty(dirty: Dirty, theirs: Any, holds: Holds, utc: float) -> Not | tuple[Value | None]:
    """The value to write over ``theirs`` (None in the tuple: delete), or Not."""
    if isinstance(dirty.value, AgentValue):
        if theirs is None:
            return Not("the agent was removed", already=True)
        return merge_agent(dirty.base, dirty.value, theirs, holds, utc, dirty.had)
    if isinstance(dirty.value, WaitingValue):
        return _merge_place(dirty.base, dirty.value, theirs, holds)
    if dirty.value is None:
        return Not("gone already", already=True) if theirs is None else (None,)
    return (dirty.value,)


def _merge_place(base: Any, mine: WaitingValue, theirs: Any, holds: Holds) -> Not | tuple[Value | None]:
    taken = isinstance(theirs, WaitingValue) and isinstance(base, WaitingValue)
    taken = taken and theirs.node not in (base.node, mine.node)
    if taken or not holds(mine.call):
        return Not("the caller is another node's now", already=True)
    if isinstance(theirs, WaitingValue):
        # whoever took the call up without its record could not know how long it has waited
        priority, entered = max(mine.priority, theirs.priority), min(mine.entered, theirs.entered)
        mine = msgspec.structs.replace(mine, priority=priority, entered=entered)
    if theirs == mine:
        return Not("stored already", already=True)
    return (mine,)


def ours_to_tell(dirty: Dirty, theirs: Any, written: bool) -> tuple[tuple[int, QueueLine], ...]:
    """The lines of the queue log that were kept with ``dirty`` and that no other node tells."""
    if isinstance(dirty.value, WaitingValue):  # a place that is not written is another node's
        return dirty.lines if written and theirs == dirty.base else ()
    if theirs == dirty.base:
        return dirty.lines
    if not (isinstance(theirs, AgentValue) and isinstance(dirty.base, AgentValue)):
        return ()
    if theirs.handled > dirty.base.handled:
        return ()  # another node has told of a conversation, perhaps of this one
    if _group(theirs, WORK) == _group(dirty.base, WORK):
        return dirty.lines  # another node has written, but of nothing he did in a call
    told = theirs.attempt.call if theirs.attempt is not None else ""
    return tuple((n, line) for n, line in dirty.lines if line.call != told)


def cut_short(dirty: Dirty, told: Iterable[QueueLine], after: Value | None) -> bool:
    """Whether a conversation of which the ``told`` lines say that it began is left out of what the merge
    makes of it (``after``): nobody else knows of it, and nobody will tell its end."""
    mine = dirty.value
    if not isinstance(mine, AgentValue) or mine.work not in IN_CALL or mine.attempt is None:
        return False
    call = mine.attempt.call
    goes_on = isinstance(after, AgentValue) and after.attempt is not None and after.attempt.call == call
    return not goes_on and any(line.event == "CONNECT" and line.call == call for line in told)


def _group(agent: AgentValue, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(agent, name) for name in names}


def _intent(base: AgentValue, mine: AgentValue, theirs: AgentValue) -> dict[str, Any]:
    was, ours, others = (_group(agent, INTENT) for agent in (base, mine, theirs))
    if ours == was:
        return others
    if others == was:
        return ours
    return ours if mine.intent_since > theirs.intent_since else others


def _work(
    base: AgentValue, mine: AgentValue, theirs: AgentValue, holds: Holds, had: frozenset[str]
) -> dict[str, Any]:
    was, ours, others = (_group(agent, WORK) for agent in (base, mine, theirs))
    if ours == was:
        return others
    if others == was:
        return ours
    if _holds(mine, holds) and not _is_over(base, mine, theirs):
        return ours
    if theirs.work in BUSY and not _is_stage(theirs, (base, mine), had):
        return others
    if _is_left(base, mine, theirs):
        return others
    return ours if mine.work_since >= theirs.work_since else others


def _holds(agent: AgentValue, holds: Holds) -> bool:
    return agent.work in BUSY and agent.attempt is not None and holds(agent.attempt.call)


def _in_the_same(base: AgentValue, mine: AgentValue) -> bool:
    """Whether he has been in one attempt, or its conversation, from ``base`` to ``mine``."""
    was, now = base.attempt, mine.attempt
    return was is not None and now is not None and was.attempt == now.attempt


def _is_over(base: AgentValue, mine: AgentValue, theirs: AgentValue) -> bool:
    """Whether another node has ended since what we knew as his conversation: the call has been there
    meanwhile, and came back without him."""
    ended = theirs.handled > base.handled and theirs.last_end > mine.work_since
    return ended and _in_the_same(base, mine)


def _is_left(base: AgentValue, mine: AgentValue, theirs: AgentValue) -> bool:
    """Whether he is in nothing any more by the word of those who have served his call since, whatever
    we heard of it later than they wrote."""
    return mine.work in BUSY and theirs.work not in BUSY and _in_the_same(base, mine)


def _is_stage(theirs: AgentValue, ours: Iterable[AgentValue], had: frozenset[str]) -> bool:
    """Whether what they have may be only an earlier stage of what we did, also of what is over here: the
    node that had the call before us tells of it when the store is back."""
    known = had.union(agent.attempt.attempt for agent in ours if agent.attempt is not None)
    return theirs.attempt is not None and theirs.attempt.attempt in known


def _both_ended(base: AgentValue, mine: AgentValue, theirs: AgentValue) -> bool:
    """Whether the conversation of ``base`` was ended, and counted, here and by the node its call moved
    to: whoever was in one cannot have ended another before it."""
    in_one = base.attempt is not None and base.work in IN_CALL
    return in_one and all(agent.handled > base.handled for agent in (mine, theirs))


def _goes_on(base: AgentValue, mine: AgentValue, merged: AgentValue) -> bool:
    """Whether the conversation of ``base``, which was ended, and counted, here, goes on by the word of those
    who have served its call since: whoever ends it there counts it."""
    in_one = all(agent.work in IN_CALL for agent in (base, merged))
    return in_one and mine.handled > base.handled and _in_the_same(base, merged)


def merge_agent(
    base: AgentValue, mine: AgentValue, theirs: AgentValue, holds: Holds, utc: float,
    had: frozenset[str] = frozenset(),
) -> Not | tuple[Value | None]:  # fmt: skip
    """One transition that brings the store up to what happened while it was away. ``had``: the attempts
    he has had here on the way from ``base`` to ``mine``."""
    added = {name: getattr(theirs, name) + getattr(mine, name) - getattr(base, name) for name in COUNTERS}
    merged = msgspec.structs.replace(
        theirs, **_intent(base, mine, theirs), **_work(base, mine, theirs, holds, had)
    )
    if _both_ended(base, mine, theirs):
        added["handled"] -= 1
        added["talk_s"] -= min(mine.talk_s - base.talk_s, theirs.talk_s - base.talk_s)
    elif _goes_on(base, mine, merged):
        added["handled"] -= 1
        added["talk_s"] -= mine.talk_s - base.talk_s
    merged = msgspec.structs.replace(merged, **added)
    if merged.work == "idle" and merged.next_intent:
        merged = to_idle(merged, utc)
    if merged.work not in BUSY and merged.recovering is not None:
        merged = msgspec.structs.replace(merged, recovering=None)
    if merged == theirs:
        return Not("stored already", already=True)
    return (msgspec.structs.replace(merged, seq=theirs.seq + 1),)
