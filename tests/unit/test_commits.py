"""The rules every commit is held to, in simulator and lab: each finds the history planted for it."""

from __future__ import annotations

from typing import Any

import pytest

from ari_ha.checkers.acd import changed_fields, check_counters, check_failover
from ari_ha.checkers.commits import DISAGREE_MAX_S, SETTLE_S, Commits
from ari_ha.wire.keyspace import (
    AgentValue,
    AttemptOfAgent,
    Keys,
    NodeValue,
    OwnerValue,
    RecordValue,
    WaitingValue,
    encode,
)

KEYS = Keys("t")
NODE = NodeValue(node="n1", incarnation="1", sip="", link="", ready=True)


class Watched:
    """The rules, and what they said."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []
        self.asked: set[str] = set()
        self.gone: set[str] = set()
        self.rules = Commits(
            KEYS,
            lambda rule, text: self.said.append((rule, text)),
            lambda agent: agent.agent in self.asked,
            lambda call: call not in self.gone,
        )
        self.rules.begin({KEYS.node("n1"): encode(NODE), **agent("a")})
        self.utc = 100.0

    def commit(self, *changes: dict[str, Any], later_s: float = 0.0) -> list[str]:
        """One commit; the rules it broke."""
        self.utc += later_s
        self.rules.look(self.utc)
        self.rules.commit({key: value for part in changes for key, value in part.items()}, self.utc)
        self.rules.look(self.utc)
        said, self.said = self.said, []
        return [rule for rule, _ in dict.fromkeys(said)]


@pytest.fixture
def watched() -> Watched:
    return Watched()


def agent(name: str, seq: int = 1, **more: Any) -> dict[str, bytes]:
    more = {"intent": "available", "queues": {"q": 0}} | more
    return {KEYS.agent(name): encode(AgentValue(agent=name, seq=seq, **more))}


def place(call: str, entered: float, **more: Any) -> dict[str, bytes]:
    value = WaitingValue(call=call, queue="q", entered=entered, node="n1#1", **more)
    return {KEYS.waiting("q", call): encode(value)}


def owner(call: str, epoch: str, node: str = "n1#1", **more: Any) -> dict[str, bytes]:
    return {KEYS.owner(call): encode(OwnerValue(call=call, node=node, epoch=epoch, edge="e1", **more))}


def record(call: str, epoch: str, node: str) -> dict[str, bytes]:
    return {KEYS.record(call): encode(RecordValue(call=call, epoch=epoch, node=node))}


def rung(call: str) -> AttemptOfAgent:
    return AttemptOfAgent(attempt=f"t-{call}", call=call, queue="q")


def served(call: str, entered: float, seq: int) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Agent a is tried for the caller."""
    return (
        agent("a", seq, work="reserved", attempt=rung(call)),
        place(call, entered, attempt=f"t-{call}", agent="a"),
    )


def test_an_ordinary_life_breaks_nothing(watched: Watched) -> None:
    assert watched.commit(place("k1", 1.0), owner("k1", "5.1"), record("k1", "5.1", "n1#1")) == []
    assert watched.commit(*served("k1", 1.0, 2)) == []
    assert (
        watched.commit(agent("a", 3, work="talking", attempt=rung("k1")), {KEYS.waiting("q", "k1"): None})
        == []
    )
    moving = owner("k1", "5.2", "n1#1", moving=True, moving_from="n1#1")
    assert watched.commit(moving, later_s=9) == []
    assert watched.commit(owner("k1", "5.2", "n2#1"), record("k1", "5.2", "n2#1")) == []
    recovering = {"since": 1.0, "from": "n1"}
    assert watched.commit(agent("a", 3, work="talking", attempt=rung("k1"), recovering=recovering)) == []
    watched.asked.add("a")
    assert watched.commit(agent("a", 4, intent="not_ready", work="talking", attempt=rung("k1"))) == []
    assert watched.commit({KEYS.owner("k1"): None, KEYS.record("k1"): None}, agent("a", 5)) == []
    assert watched.commit(owner("k1", "5.1")) == [], "a key that was gone begins anew"


@pytest.mark.parametrize("seq", [1, 3, 0])
def test_a_transition_that_is_not_counted(watched: Watched, seq: int) -> None:
    assert watched.commit(agent("a", seq, misses=1)) == ["queue and agents' history"]


@pytest.mark.parametrize("intent", ["logged_out", "not_ready"])
def test_an_intent_nobody_asked_for_even_there_and_back(watched: Watched, intent: str) -> None:
    assert watched.commit(agent("a", 2, intent=intent)) == ["agents keep their state"]
    assert watched.commit(agent("a", 3)) == ["agents keep their state"]


def test_a_place_that_moved_back(watched: Watched) -> None:
    watched.commit(place("k1", 1.0))
    assert watched.commit(place("k1", 1.0, attempt="")) == []
    assert watched.commit(place("k1", 2.0)) == ["places are kept"]


def test_a_caller_who_is_passed_over(watched: Watched) -> None:
    watched.commit(place("k1", 1.0), place("k2", 2.0), owner("k1", "5.1"), owner("k2", "5.2"))
    assert watched.commit(*served("k2", 2.0, 2), later_s=SETTLE_S) == []
    assert watched.commit(owner("k3", "5.3"), later_s=SETTLE_S) == ["queue and agents' history"]


@pytest.mark.parametrize("why", ["served in time", "not there", "his call moves"])
def test_a_caller_who_is_not(watched: Watched, why: str) -> None:
    watched.commit(place("k1", 1.0), place("k2", 2.0), owner("k1", "5.1"), owner("k2", "5.2"))
    if why == "his call moves":
        watched.commit(owner("k1", "5.2", moving=True))
    watched.commit(*served("k2", 2.0, 2), later_s=SETTLE_S)
    if why == "served in time":
        more = agent("b", work="reserved", attempt=rung("k1"))
        watched.commit(more, place("k1", 1.0, attempt="t-k1", agent="b"), later_s=SETTLE_S / 2)
    if why == "not there":
        watched.gone.add("k1")
    assert watched.commit(owner("k3", "5.3"), later_s=SETTLE_S) == []


def test_an_epoch_that_goes_back(watched: Watched) -> None:
    watched.commit(owner("k1", "5.9"))
    assert watched.commit(owner("k1", "5.10")) == []
    assert watched.commit(owner("k1", "5.9")) == ["epochs only grow"]


def test_an_epoch_with_two_nodes(watched: Watched) -> None:
    watched.commit(owner("k1", "5.1"), record("k1", "5.1", "n1#1"))
    assert watched.commit(record("k1", "5.1", "n1#2")) == ["one owner"]


def test_places_and_agents_that_disagree_for_long(watched: Watched) -> None:
    watched.commit(place("k1", 1.0, attempt="t-k1", agent="a"))
    assert watched.commit(owner("k2", "5.1"), later_s=DISAGREE_MAX_S) == []
    assert watched.commit(owner("k2", "5.2"), later_s=0.1) == ["agents and places agree"]
    watched.commit(place("k1", 1.0))
    assert watched.commit(owner("k2", "5.3"), later_s=0.1) == []


def test_one_call_with_two_agents(watched: Watched) -> None:
    watched.commit(agent("b", work="talking", attempt=rung("k1")), *served("k1", 1.0, 2))
    assert "agents and places agree" in watched.commit(later_s=DISAGREE_MAX_S + 1)


def test_failover_may_set_the_overlay_and_nothing_else() -> None:
    before, marked = agent("a"), agent("a", recovering={"since": 1.0})
    assert check_failover(before, marked) == []
    assert check_failover(before, agent("a", misses=1)) == [f"{KEYS.agent('a')} changed: misses"]
    assert changed_fields(before[KEYS.agent("a")], None) == ["agent", "intent", "queues", "seq"]
    assert changed_fields(b'{"unknown": 1}', b'{"unknown": 2}') == ["unknown"]


def test_counters_tell_of_no_more_than_there_was() -> None:
    assert check_counters("a", charged=1, credited=2, missed=1, answered=2) == []
    assert check_counters("a", charged=1, credited=3, missed=0, answered=2) == [
        "a missed 0, charged 1",
        "a handled 2, has 3",
    ]
