"""Who is next, and what two histories merge to."""

from __future__ import annotations

import msgspec
import pytest

from ari_ha.machines.acd_agents import Not
from ari_ha.machines.acd_merge import merge_agent
from ari_ha.machines.acd_queue import Match, in_order, matches, why_not_routable
from ari_ha.wire.keyspace import AgentValue, AttemptOfAgent, QueueConfigValue, WaitingValue

UTC = 1_700_000_000.0


def entry(call: str, entered: float, priority: int = 0, queue: str = "a") -> WaitingValue:
    return WaitingValue(call=call, queue=queue, entered=entered, priority=priority)


def config(name: str) -> QueueConfigValue:
    weights = {"heavy": 5}
    strategies = {"fewest": "fewest-calls"}
    return QueueConfigValue(
        queue=name, weight=weights.get(name, 0), strategy=strategies.get(name, "longest-idle")
    )


def agent(idle_since: float, **fields: object) -> AgentValue:
    base: dict[str, object] = {"queues": {"a": 0}, "intent": "available", "device": "d"}
    return AgentValue(agent="x", idle_since=idle_since, **{**base, **fields})


def pairs(found: list[Match]) -> list[tuple[str, str]]:
    return [(match.entry.call, match.agent) for match in found]


def test_priority_then_the_longer_wait() -> None:
    entries = [entry("new", 30), entry("old", 10), entry("vip", 40, priority=1), entry("mid", 20)]
    assert [e.call for e in in_order(entries, config)] == ["vip", "old", "mid", "new"]


def test_a_heavier_queue_goes_first() -> None:
    entries = [entry("old", 10), entry("heavy", 20, queue="heavy")]
    assert [e.call for e in in_order(entries, config)] == ["heavy", "old"]


def test_longest_idle_agent_first_and_nobody_twice() -> None:
    agents = [("late", agent(50)), ("early", agent(10)), ("mid", agent(20))]
    found = matches([entry("1", 1), entry("2", 2), entry("3", 3), entry("4", 4)], agents, config)
    assert pairs(found) == [("1", "early"), ("2", "mid"), ("3", "late")]


def test_lower_penalty_beats_idle_time() -> None:
    agents = [("far", agent(10, queues={"a": 5})), ("near", agent(90, queues={"a": 0}))]
    assert pairs(matches([entry("1", 1)], agents, config)) == [("1", "near")]


def test_fewest_calls() -> None:
    agents = [
        ("much", agent(10, queues={"fewest": 0}, handled=9)),
        ("little", agent(90, queues={"fewest": 0}, handled=1)),
    ]
    assert pairs(matches([entry("1", 1, queue="fewest")], agents, config)) == [("1", "little")]


def test_only_members_serve_a_queue() -> None:
    agents = [("b-only", agent(10, queues={"b": 0}))]
    found = matches([entry("1", 1), entry("2", 2, queue="b")], agents, config)
    assert pairs(found) == [("2", "b-only")]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({}, ""),
        ({"intent": "not_ready"}, "not_ready"),
        ({"intent": "logged_out"}, "logged_out"),
        ({"work": "acw"}, "acw"),
        ({"delay_until": UTC + 1}, "delay"),
        ({"delay_until": UTC + 11, "work_since": UTC + 1}, "delay"),
        ({"delay_until": UTC + 3610, "work_since": UTC + 3600}, ""),  # began where it is an hour later
        ({"device": ""}, "device"),
        ({"device": "gone"}, "device"),
    ],
)
def test_routable(fields: dict[str, object], why: str) -> None:
    assert why_not_routable(agent(1, **fields), UTC, lambda aor: aor == "d") == why


# --- merging --------------------------------------------------------------------------

BASE = AgentValue(agent="x", intent="available", intent_since=UTC, handled=5, misses=1, seq=10, device="d")


def with_(value: AgentValue, **changes: object) -> AgentValue:
    return msgspec.structs.replace(value, **changes)


def busy(value: AgentValue, call: str, work: str, since: float) -> AgentValue:
    attempt = AttemptOfAgent(attempt=f"t-{call}", call=call)
    return with_(value, work=work, work_since=since, attempt=attempt)


def merged(mine: AgentValue, theirs: AgentValue, *held: str) -> AgentValue:
    result = merge_agent(BASE, mine, theirs, lambda call: call in held, UTC + 100)
    assert not isinstance(result, Not), result
    assert isinstance(result[0], AgentValue)
    assert result[0].seq == theirs.seq + 1
    return result[0]


def test_nothing_new_writes_nothing() -> None:
    theirs = with_(BASE, handled=6, seq=11)
    assert isinstance(merge_agent(BASE, BASE, theirs, lambda call: True, UTC), Not)


def test_intent_is_the_newer_writers() -> None:
    mine = with_(BASE, intent="not_ready", intent_since=UTC + 5)
    theirs = with_(BASE, intent="logged_out", intent_since=UTC + 9, seq=11)
    assert isinstance(merge_agent(BASE, mine, theirs, lambda call: True, UTC), Not)
    assert merged(with_(mine, intent_since=UTC + 10), theirs).intent == "not_ready"
    assert merged(mine, BASE).intent == "not_ready"


def test_work_is_whose_call_it_is() -> None:
    mine, theirs = busy(BASE, "k1", "talking", UTC + 1), busy(with_(BASE, seq=12), "k2", "ringing", UTC + 9)
    kept = merged(mine, theirs, "k1")
    assert kept.attempt is not None and (kept.work, kept.attempt.call) == ("talking", "k1")
    assert isinstance(merge_agent(BASE, mine, theirs, lambda call: False, UTC), Not)


def test_counters_add_up() -> None:
    mine = with_(BASE, handled=7, missed=1, talk_s=30.0, work_since=UTC + 1)
    theirs = with_(BASE, handled=6, talk_s=5.0, seq=13)
    both = merged(mine, theirs)
    assert (both.handled, both.missed, both.talk_s) == (8, 1, 35.0)


def test_a_conversation_that_two_nodes_ended_is_counted_once() -> None:
    """Its call moved while the store was away, and the second node has given him another since."""
    base = busy(BASE, "k1", "talking", UTC)
    mine = with_(BASE, handled=6, talk_s=30.0, work_since=UTC + 1)
    theirs = with_(busy(BASE, "k2", "talking", UTC + 9), handled=7, talk_s=45.0, seq=13)
    result = merge_agent(base, mine, theirs, lambda call: False, UTC + 100)
    assert isinstance(result, Not), "theirs has it all"
    result = merge_agent(base, with_(mine, handled=7, talk_s=50.0), theirs, lambda call: False, UTC + 100)
    assert not isinstance(result, Not) and isinstance(result[0], AgentValue)
    assert result[0].handled == 8, "one of his two was another"


def test_a_call_that_came_back_without_its_agent_is_not_his_again() -> None:
    base = busy(BASE, "k1", "ringing", UTC)
    mine = with_(base, work="talking", work_since=UTC + 2)
    theirs = with_(base, work="acw", work_since=UTC + 5, handled=6, last_end=UTC + 5, seq=13)
    assert isinstance(merge_agent(base, mine, theirs, lambda call: True, UTC + 9), Not)
    before = with_(theirs, last_end=UTC + 1)
    result = merge_agent(base, mine, before, lambda call: True, UTC + 9)
    assert not isinstance(result, Not) and isinstance(result[0], AgentValue)
    assert result[0].work == "talking"


@pytest.mark.parametrize(("work", "then"), [("talking", "hold"), ("ringing", "talking")])
def test_what_is_over_elsewhere_is_not_begun_again_by_what_was_heard_late(work: str, then: str) -> None:
    """Without the store: he holds, or has answered, and by then another node has the call and ended it."""
    base = busy(BASE, "k1", work, UTC)
    mine = with_(base, work=then, work_since=UTC + 9)
    theirs = with_(base, work="acw", work_since=UTC + 5, handled=6, last_end=UTC + 5, seq=13)
    assert isinstance(merge_agent(base, mine, theirs, lambda call: False, UTC + 9), Not)
    freed = with_(BASE, work_since=UTC + 5, seq=13)
    assert isinstance(merge_agent(base, mine, freed, lambda call: False, UTC + 9), Not)
    assert merged(mine, freed, "k1").work == then, "it is ours still"


def test_a_conversation_that_was_ended_here_and_goes_on_elsewhere_is_counted_by_whoever_ends_it() -> None:
    """He transferred his caller, and of that nobody heard but this node, which had neither edge nor store."""
    base = busy(BASE, "k1", "consult", UTC)
    mine = with_(BASE, work="acw", work_since=UTC + 5, handled=6, talk_s=605.0, last_end=UTC + 5)
    theirs = with_(base, work="talking", work_since=UTC + 6, seq=13)
    assert isinstance(merge_agent(base, mine, theirs, lambda call: False, UTC + 9), Not)
    over = with_(mine, handled=7, talk_s=700.0, work="idle", work_since=UTC + 8)
    result = merge_agent(base, over, with_(theirs, work_since=UTC + 3), lambda call: False, UTC + 9)
    assert not isinstance(result, Not) and isinstance(result[0], AgentValue)
    assert (result[0].work, result[0].handled) == ("idle", 7), "he is in it no more: both are told here"


def test_a_pending_intent_of_theirs_applies_to_work_that_ended_here() -> None:
    mine = with_(BASE, work="idle", work_since=UTC + 8, handled=6)
    theirs = with_(busy(BASE, "k1", "talking", UTC), next_intent="not_ready", next_reason="lunch")
    base = busy(BASE, "k1", "talking", UTC)
    result = merge_agent(base, mine, theirs, lambda call: False, UTC + 9)
    assert not isinstance(result, Not) and isinstance(result[0], AgentValue)
    assert (result[0].work, result[0].intent, result[0].reason) == ("idle", "not_ready", "lunch")
