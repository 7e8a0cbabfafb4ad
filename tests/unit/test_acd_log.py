"""The queue log: each transaction tells what it means, once."""

from __future__ import annotations

import pytest

from ari_ha.machines.acd_log import Around, lines
from ari_ha.machines.acd_orders import AcdSettings
from ari_ha.simulation.acd_cluster import Cluster
from ari_ha.wire.keyspace import AgentValue
from tests.support.acd_bench import attempt_of, queued, talking
from tests.support.queue_log import events, told, wrong_in_log


def cluster(**config: int) -> Cluster:
    c = Cluster(2, AcdSettings(queue_log=True))
    c.queue("support", **config)
    c.agent("alice", "support")
    c.start()
    c.advance(1.0)
    return c


def test_a_caller_is_served() -> None:
    c = cluster()
    c.call("k1", "support", "n1")
    c.flow()
    c.ring(attempt_of(c))
    c.advance(4.0)
    c.pick_up(attempt_of(c))
    c.advance(60.0)
    c.agent_hangs_up(attempt_of(c))
    c.flow()
    enter, connect, complete = told(c)
    assert (enter.event, enter.call, enter.queue, enter.agent, enter.data) == (
        "ENTERQUEUE", "k1", "support", "NONE", ["", "4930", "1"],
    )  # fmt: skip
    assert (connect.event, connect.agent) == ("CONNECT", "Agent/alice")
    assert (connect.data[0], connect.data[2]) == ("4", "4")
    assert (complete.event, complete.data[:2]) == ("COMPLETEAGENT", ["4", "60"])
    assert wrong_in_log(c) == []


def test_the_caller_ends_it() -> None:
    c = cluster()
    talking(c)
    c.hang_up("k1")
    c.flow()
    assert events(c)[-1] == ("COMPLETECALLER", "alice", "k1")


def test_he_gives_up_while_a_phone_rings() -> None:
    c = cluster()
    queued(c)
    c.ring(attempt_of(c))
    c.advance(2.0)
    c.hang_up("k1")
    c.flow()
    assert events(c)[1:] == [("RINGCANCELED", "alice", "k1"), ("ABANDON", "k1")]
    ring, abandon = told(c)[1:]
    assert (ring.data, abandon.data) == (["2000"], ["1", "", "2"])


def test_nobody_answers() -> None:
    c = cluster(rona_max=1)
    queued(c)
    c.ring(attempt_of(c))
    c.advance(16.0)
    assert events(c)[1:] == [("RINGNOANSWER", "alice", "k1"), ("PAUSEALL", "alice")]
    assert told(c)[1].data == ["15000"] and told(c)[2].data == ["rona"]
    assert wrong_in_log(c) == []


def test_what_agents_do() -> None:
    c = cluster()
    for verb, args in (
        ("not-ready", {"reason": "1"}), ("not-ready", {"reason": "2"}), ("available", {}),
        ("logout", {}), ("login", {"device": "dev-alice"}),
    ):  # fmt: skip
        c.verb("n2", verb, "alice", **args)
        c.advance(1.0)
    assert [(line.event, line.data) for line in told(c)] == [
        ("PAUSEALL", ["break"]), ("PAUSEALL", ["lunch"]), ("UNPAUSEALL", []),
        ("AGENTLOGOFF", ["dev-alice", "4"]), ("AGENTLOGIN", ["dev-alice"]),
    ]  # fmt: skip


def test_a_pause_asked_for_in_a_call_is_told_when_it_begins() -> None:
    c = cluster(wrapup_ms=0)
    attempt = talking(c)
    c.verb("n1", "not-ready", "alice", reason="1")
    c.flow()
    assert "PAUSEALL" not in {line.event for line in told(c)}
    c.agent_hangs_up(attempt)
    c.flow()
    assert events(c)[-2:] == [("COMPLETEAGENT", "alice", "k1"), ("PAUSEALL", "alice")]


@pytest.mark.parametrize("fate", ["reply-lost", "request-lost", "unreachable"])
def test_a_lost_answer_tells_nothing_twice(fate: str) -> None:
    c = cluster()
    c.call("k1", "support", "n1")
    c.perform(c.nodes["n1"], fate)
    c.advance(5.0)
    assert events(c)[0] == ("ENTERQUEUE", "k1") and events(c).count(("ENTERQUEUE", "k1")) == 1


@pytest.mark.parametrize("fate", ["ok", "reply-lost", "request-lost"])
def test_what_happened_without_the_store_is_told_when_it_is_back(fate: str) -> None:
    c = cluster()
    attempt = talking(c)
    for node in c.nodes.values():
        c.lose_store(node)
    c.agent_hangs_up(attempt)
    c.advance(5.0)
    assert [event for event, *_ in events(c)] == ["ENTERQUEUE", "CONNECT"]
    for node in c.nodes.values():
        c.find_store(node)
    c.perform(c.nodes["n1"], fate)
    c.advance(10.0)
    assert [event for event, *_ in events(c)] == ["ENTERQUEUE", "CONNECT", "COMPLETEAGENT"]
    assert wrong_in_log(c) == []


def test_what_another_node_writes_of_what_the_agent_wants_tells_no_conversation() -> None:
    c = cluster()
    queued(c)
    attempt = attempt_of(c)
    c.ring(attempt)
    c.flow()
    c.lose_store(c.nodes["n1"])
    c.pick_up(attempt)
    c.advance(1.0)
    c.agent_hangs_up(attempt)
    c.verb("n2", "not-ready", "alice", reason="1")
    c.advance(1.0)
    c.find_store(c.nodes["n1"])
    c.advance(5.0)
    assert [event for event, *_ in events(c)] == ["ENTERQUEUE", "CONNECT", "COMPLETEAGENT", "PAUSEALL"]
    assert wrong_in_log(c) == []


def test_an_end_that_only_the_merge_knows_is_told_beside_what_the_agent_wants() -> None:
    """His answer was written after all, when the caller was gone and he had paused."""
    c = cluster()
    queued(c)
    attempt = attempt_of(c)
    c.ring(attempt)
    c.flow()
    n1 = c.nodes["n1"]
    c.pick_up(attempt)
    c.hang_up("k1")
    c.perform(n1, "late")
    c.lose_store(n1)
    c.verb("n1", "not-ready", "alice", reason="1")
    c.advance(1.0)
    c.arrive_late()
    c.find_store(n1)
    c.advance(5.0)
    assert sorted(event for event, *_ in events(c)) == ["COMPLETEAGENT", "CONNECT", "ENTERQUEUE", "PAUSEALL"]
    assert wrong_in_log(c) == []


def test_an_end_that_only_the_merge_knows_is_told_beside_the_next_conversation() -> None:
    """His node died without etcd, and the next one ended what he was in; the first is back first."""
    c = cluster(wrapup_ms=0)
    for node in c.nodes.values():
        c.lose_store(node)
    c.call("k1", "support", "n1")
    c.advance(2.0)
    c.ring(attempt_of(c))
    c.pick_up(attempt_of(c))
    c.take_over("k1", "n2")
    c.advance(1.0)
    c.hang_up("k1")
    c.call("k2", "support", "n2")
    c.advance(2.0)
    c.ring(attempt_of(c))
    c.pick_up(attempt_of(c))
    c.advance(1.0)
    for node in c.nodes.values():
        c.find_store(node)
        c.flow()
    assert {("COMPLETEAGENT", "alice", "k1"), ("CONNECT", "alice", "k2")} <= {*events(c)}
    assert wrong_in_log(c) == []


@pytest.mark.parametrize("first", ["n1", "n2"])
def test_what_two_nodes_saw_without_the_store_is_told_once(first: str) -> None:
    """The agent answers at the one node; his call moves, and is answered at the other too."""
    c = cluster()
    queued(c)
    attempt = attempt_of(c)
    c.ring(attempt)
    c.flow()
    for node in c.nodes.values():
        c.lose_store(node)
    c.pick_up(attempt)
    c.advance(1.0)
    c.take_over("k1", "n2")
    c.advance(1.0)
    for name in (first, *({"n1", "n2"} - {first})):
        c.find_store(c.nodes[name])
        c.advance(3.0)
    assert events(c) == [("ENTERQUEUE", "k1"), ("CONNECT", "alice", "k1")]
    assert wrong_in_log(c) == []


def test_a_conversation_that_the_merge_leaves_out_has_an_end_too() -> None:
    """The caller hung up while his node heard nothing, and the agent talks in another node's call."""
    c = cluster()
    queued(c)
    c.ring(attempt := attempt_of(c))
    c.flow()
    n1 = c.nodes["n1"]
    c.lose_store(n1)
    c.pick_up(attempt)
    alice = c.agent_now("alice")
    c.agent("alice", "support", seq=alice.seq)  # n2 undid her attempt, and she calls somebody
    c.flow()
    n2 = c.nodes["n2"]
    c._took(n2, n2.acd.conversation_state("k2", "alice", "dial", c.now, c.utc))
    c.advance(7.0)
    c._took(n1, n1.acd.call_moved("k1", c.now, c.utc))
    c.find_store(n1)
    c.flow()
    assert events(c) == [("ENTERQUEUE", "k1"), ("CONNECT", "alice", "k1"), ("COMPLETEAGENT", "alice", "k1")]
    assert told(c)[-1].data[1] == "7"
    assert wrong_in_log(c) == []


@pytest.mark.parametrize("then", ["rings on", "answered", "over", "given up"])
def test_a_ring_that_a_node_let_go_when_it_had_lost_the_call_is_no_miss(then: str) -> None:
    """It had neither edge nor store, and took the phone for unanswered that rang on at the next node."""
    c = cluster(rona_max=1)
    queued(c)
    c.ring(attempt := attempt_of(c))
    c.flow()
    n1 = c.nodes["n1"]
    c.lose_store(n1)
    n1.alive = False  # nobody can tell it that the call moves
    c.take_over("k1", "n2")
    c.flow()
    n1.alive = True
    c._took(n1, n1.acd.attempt_failed(attempt, "no-answer", c.now, c.utc))
    if then in ("answered", "over"):
        c.advance(0.5)
        c.pick_up(attempt)
        c.flow()
    if then in ("over", "given up"):
        c.advance(0.5)
        c.hang_up("k1")
        c.flow()
    c._took(n1, n1.acd.call_moved("k1", c.now, c.utc))
    c.find_store(n1)
    c.flow()
    agent = c.agent_now("alice")
    assert (agent.missed, agent.misses, agent.intent) == (0, 0, "available")
    work = {"rings on": "ringing", "answered": "talking", "over": "acw", "given up": "idle"}
    assert agent.work == work[then]
    assert not {"RINGNOANSWER", "PAUSEALL"} & {event for event, *_ in events(c)}
    assert wrong_in_log(c) == []


def test_a_miss_without_the_store_is_one_where_nobody_else_has_told_of_the_ring() -> None:
    c = cluster(rona_max=1)
    queued(c)
    c.ring(attempt_of(c))
    c.flow()
    for node in c.nodes.values():
        c.lose_store(node)
    c.advance(16.0)
    for node in c.nodes.values():
        c.find_store(node)
    c.flow()
    agent = c.agent_now("alice")
    assert (agent.missed, agent.intent, agent.reason) == (1, "not_ready", "rona")
    assert events(c)[1:] == [("RINGNOANSWER", "alice", "k1"), ("PAUSEALL", "alice")]


def test_what_began_and_ended_without_the_store_is_told_too() -> None:
    c = cluster()
    for node in c.nodes.values():
        c.lose_store(node)
    c.call("k1", "support", "n1")
    c.advance(2.0)
    c.hang_up("k1")
    c.advance(2.0)
    for node in c.nodes.values():
        c.find_store(node)
    c.advance(10.0)
    names = [event for event, *_ in events(c)]
    assert names[0] == "ENTERQUEUE" and names[-1] == "ABANDON" and wrong_in_log(c) == []


def test_a_takeover_tells_nothing() -> None:
    c = cluster()
    talking(c)
    before = events(c)
    c.kill("n1")
    c.take_over("k1", "n2")
    c.advance(1.0)
    c.rebuilt("k1")
    c.advance(1.0)
    assert events(c) == before


def test_calls_no_queue_gave_are_not_in_it() -> None:
    agent = AgentValue(agent="alice", intent="available", work="dialing")
    assert lines({"a": agent}, {"a": AgentValue(agent="alice", intent="available")}, Around(5.0)) == []
