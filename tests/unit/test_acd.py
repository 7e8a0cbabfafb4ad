"""The ACD on a store: one caller's and one agent's stories."""

from __future__ import annotations

import pytest

from ari_ha.core.machine import Count, OutcomeOf, Unreachable
from ari_ha.core.ports.store import StoreTxn
from ari_ha.machines.acd_agents import AgentValue
from ari_ha.machines.acd_orders import (
    AcdSettings,
    AttemptWon,
    CancelAttempt,
    QueueFull,
)
from ari_ha.simulation.acd_cluster import Cluster
from ari_ha.wire.keyspace import UserValue, WaitingValue, decode
from tests.support.acd_bench import attempt_of, orders, queued, quiet, result, talking, two_nodes


@pytest.fixture
def cluster() -> Cluster:
    return two_nodes()


# --- a call's way ---------------------------------------------------------------------


def test_a_call_from_queue_to_idle(cluster: Cluster) -> None:
    c = cluster
    commits = c.history.commits
    queued(c)
    assert c.picture().entries["k1"].agent == "alice"
    assert c.agent_now("alice").work == "reserved"
    attempt = attempt_of(c)
    c.ring(attempt)
    c.flow()
    agent = c.agent_now("alice")
    assert agent.work == "ringing"
    assert agent.attempt is not None and agent.attempt.deadline == c.utc + 15
    c.advance(4)
    c.pick_up(attempt)
    c.flow()
    assert "k1" not in c.picture().entries
    assert [won.certain for won in orders(c, "n1", AttemptWon)] == [True]
    c.advance(20)
    c.hold(attempt, True)
    c.flow()
    assert c.agent_now("alice").work == "hold"
    c.hold(attempt, False)
    c.advance(10)
    c.agent_hangs_up(attempt)
    quiet(c)
    agent = c.agent_now("alice")
    assert (agent.work, agent.acw_deadline, agent.handled, agent.talk_s) == ("acw", c.utc + 3, 1, 30.0)
    c.advance(2.9)
    assert c.agent_now("alice").work == "acw"
    c.advance(0.2)
    assert c.agent_now("alice").work == "idle"
    quiet(c)
    assert c.counted.get("acd_stuck_seconds", 0) == 0
    # enter, match, ring, answer, hold, unhold, end, idle; owner, record and their end besides
    assert c.history.commits - commits == 8 + 3


def test_matching_waits_for_an_agent_and_keeps_order(cluster: Cluster) -> None:
    c = cluster
    attempt = talking(c)
    for number, priority in ((2, 0), (3, 5), (4, 0)):
        queued(c, f"k{number}", f"n{number % 2 + 1}", priority=priority)
        c.advance(1)
    assert [e.call for e in c.nodes["n1"].acd.waiting("support")] == ["k3", "k2", "k4"]
    assert [c.nodes["n2"].acd.position(call) for call in ("k3", "k2", "k4", "k1")] == [1, 2, 3, 0]
    served = []
    for _ in range(3):
        c.agent_hangs_up(attempt)
        c.advance(4)
        attempt = attempt_of(c)
        served.append(c.legs[attempt].call)
        c.ring(attempt)
        c.pick_up(attempt)
        c.flow()
    assert served == ["k3", "k2", "k4"]
    quiet(c)


def test_longest_idle_agent_first(cluster: Cluster) -> None:
    c = cluster
    c.agent("bob", "support", idle_since=c.utc - 500)
    c.flow()
    queued(c)
    assert c.picture().entries["k1"].agent == "bob"


def test_full_queue_and_unknown_queue(cluster: Cluster) -> None:
    c = cluster
    c.queue("support", max_waiting=1, full_action="6999")
    c.agent("alice", "support", login=False)
    c.flow()
    queued(c, "k1", "n1")
    queued(c, "k2", "n2")
    c.call("k3", "nowhere", "n1")
    c.flow()
    assert [(o.call, o.action, o.why) for o in orders(c, "n2", QueueFull)] == [("k2", "6999", "full")]
    assert [(o.call, o.why) for o in orders(c, "n1", QueueFull)] == [("k3", "no such queue")]


@pytest.mark.parametrize("stage", ["waiting", "reserved", "ringing", "talking"])
def test_caller_hangs_up(cluster: Cluster, stage: str) -> None:
    c = cluster
    if stage == "waiting":
        c.agent("alice", "support", login=False, seq=1)
        c.flow()
    queued(c)
    if stage in ("ringing", "talking"):
        c.ring(attempt_of(c))
        c.flow()
    if stage == "talking":
        c.pick_up(attempt_of(c))
        c.flow()
    c.hang_up("k1")
    quiet(c)
    agent = c.agent_now("alice")
    assert (agent.misses, agent.missed) == (0, 0)
    assert agent.work == ("acw" if stage == "talking" else "idle")
    assert not c.picture().entries
    assert [o.why for o in orders(c, "n1", CancelAttempt)] == (
        ["caller-left"] if stage in ("reserved", "ringing") else []
    )


def test_caller_hangs_up_while_the_match_is_under_way(cluster: Cluster) -> None:
    c = cluster
    c.call("k1", "support", "n1")
    c.perform(c.nodes["n1"])
    assert len(c.nodes["n1"].effects) == 1, "the match was sent"
    c.hang_up("k1")
    quiet(c)
    assert c.agent_now("alice").work == "idle" and not c.picture().entries


def test_no_answer(cluster: Cluster) -> None:
    c = cluster
    c.queue("support", rona_max=2, no_answer_delay_ms=10_000)
    queued(c)
    c.ring(attempt_of(c))
    c.advance(14.9)
    assert c.agent_now("alice").work == "ringing"
    c.advance(0.2)
    agent = c.agent_now("alice")
    assert (agent.work, agent.misses, agent.intent) == ("idle", 1, "available")
    assert [o.why for o in orders(c, "n1", CancelAttempt)] == ["no-answer"]
    assert c.picture().entries["k1"].attempt == ""
    c.advance(9.5)
    assert not c.legs, "he is in the delay"
    c.advance(1)
    c.ring(attempt_of(c))
    c.advance(15.1)
    agent = c.agent_now("alice")
    assert (agent.intent, agent.reason, agent.misses, agent.missed) == ("not_ready", "rona", 2, 2)
    c.advance(60)
    quiet(c)
    assert c.picture().entries["k1"].entered == c.phones["k1"].entered


@pytest.mark.parametrize(
    ("kind", "delay"),
    [("reject", 10), ("busy", 60), ("unreachable", 5), ("edge-refused", 2), ("canceled", 0)],
)
def test_turned_down(cluster: Cluster, kind: str, delay: float) -> None:
    c = cluster
    c.agent("bob", "support", idle_since=c.utc + 1)
    c.flow()
    queued(c)
    c.turn_down(attempt_of(c, "alice"), kind)
    c.flow()
    agent = c.agent_now("alice")
    assert agent.delay_until == (c.utc + delay if delay else 0.0)
    assert (agent.misses, agent.missed) == (0, 0)
    assert [leg.agent for leg in c.legs.values()] == (["bob"] if delay else ["alice"])


def test_a_phone_that_never_rings(cluster: Cluster) -> None:
    c = cluster
    queued(c)
    c.advance(5.1)
    assert [o.why for o in orders(c, "n1", CancelAttempt)] == ["unreachable"]
    assert c.agent_now("alice").missed == 0


def test_a_second_answer_loses(cluster: Cluster) -> None:
    """Somebody freed the agent and another got the caller: the leg is ended."""
    c = cluster
    queued(c)
    attempt = attempt_of(c)
    c.agent("alice", "support", intent="not_ready", seq=9)
    c.put(c.keys.waiting("support", "k1"), None)
    c.pick_up(attempt)
    c.flow()
    assert [o.why for o in orders(c, "n1", CancelAttempt)] == ["lost"]
    assert not orders(c, "n1", AttemptWon)


def test_an_answer_is_not_wasted_when_both_are_still_free(cluster: Cluster) -> None:
    c = cluster
    queued(c)
    attempt = attempt_of(c)
    node = c.nodes["n1"]
    c.agent("alice", "support", seq=9)
    c.pick_up(attempt)
    c.flow()
    assert [o.attempt for o in orders(c, "n1", AttemptWon)] == [attempt]
    assert c.agent_now("alice").work == "talking"
    assert not node.effects


def test_two_people_are_connected_even_when_the_store_is_silent(cluster: Cluster) -> None:
    c = cluster
    queued(c)
    attempt = attempt_of(c)
    c.ring(attempt)
    c.flow()
    c.pick_up(attempt)
    node = c.nodes["n1"]
    assert not orders(c, "n1", AttemptWon)
    c.now += 0.41
    c.fire()
    assert [(o.certain, o.revision) for o in orders(c, "n1", AttemptWon)] == [(False, 0)]
    c.perform(node, "reply-lost")
    quiet(c)
    assert len(orders(c, "n1", AttemptWon)) == 1
    assert c.agent_now("alice").work == "talking"


# --- people ---------------------------------------------------------------------------


def test_verbs(cluster: Cluster) -> None:
    c = cluster

    def ask(verb: str, agent: str = "alice", **args: object) -> tuple[int, AgentValue]:
        request = c.verb("n2", verb, agent, **args)
        c.flow()
        return result(c, "n2", request).status, c.agent_now("alice")

    assert ask("not-ready", reason="2")[1].reason == "lunch"
    assert ask("not-ready", reason="dentist")[1].reason == "dentist"
    assert ask("not-ready", reason="9")[0] == 422
    assert ask("toggle")[1].intent == "available"
    assert ask("available")[0] == 200
    assert ask("toggle", reason="1")[1].reason == "break"
    assert ask("force", intent="available", by="sup")[0] == 422
    status, agent = ask("force", intent="available", by="sup", reason="needed")
    assert (status, agent.intent, agent.by) == (200, "available", "sup")
    assert ask("dance")[0] == 422
    assert ask("acw-done")[0] == 200, "already done"
    assert ask("logout")[1].intent == "logged_out"
    assert ask("available")[0] == 409
    assert ask("available", "nobody")[0] == 404
    assert ask("login", device="dev-nowhere")[0] == 409, "no phone is registered there"
    assert ask("login", device="dev-alice")[1].intent == "available"


def test_logout_during_a_call_waits_until_wrap_up_is_over(cluster: Cluster) -> None:
    c = cluster
    attempt = talking(c)
    request = c.verb("n2", "logout", "alice")
    c.flow()
    assert result(c, "n2", request).status == 200
    assert "after this call" in result(c, "n2", request).text
    assert (c.agent_now("alice").intent, c.agent_now("alice").work) == ("available", "talking")
    c.agent_hangs_up(attempt)
    c.flow()
    assert c.agent_now("alice").intent == "available"
    c.advance(4)
    assert (c.agent_now("alice").intent, c.agent_now("alice").device) == ("logged_out", "")


def test_a_phone_finds_its_agent(cluster: Cluster) -> None:
    c = cluster
    node = c.nodes["n1"]
    c.put(c.keys.user("desk7"), UserValue(user="desk7", aor="dev-alice"))
    c.flow()
    for user, status in (("dev-alice", 200), ("desk7", 200), ("ghost", 404)):
        c._took(node, node.acd.agent_verb(user, "toggle", {}, c.now, c.utc, user=user))
        c.flow()
        assert result(c, "n1", user).status == status, user


def test_login_conflicts(cluster: Cluster) -> None:
    c = cluster
    c.agent("bob", "support", login=False)
    c.flow()
    used = c.verb("n1", "login", "bob", device="dev-alice")
    c.flow()
    assert (result(c, "n1", used).status, "alice" in result(c, "n1", used).text) == (409, True)
    elsewhere = c.verb("n1", "login", "alice", device="dev-bob")
    c.flow()
    assert (result(c, "n1", elsewhere).status, c.agent_now("alice").device) == (409, "dev-alice")
    taken = c.verb("n1", "login", "alice", device="dev-bob", take_over=True)
    c.flow()
    assert (result(c, "n1", taken).status, c.agent_now("alice").device) == (200, "dev-bob")


def test_two_agents_log_in_on_one_phone_in_the_same_moment(cluster: Cluster) -> None:
    c = cluster
    c.agent("alice", "support", login=False)
    c.agent("bob", "support", login=False)
    c.flow()
    c.verb("n1", "login", "alice", device="dev-bob")
    c.now += 0.01
    c.verb("n2", "login", "bob", device="dev-bob")
    c.flow()
    c.advance(10)
    assert (c.agent_now("alice").intent, c.agent_now("bob").intent) == ("available", "logged_out")


def test_verbs_answer_when_the_store_does_not(cluster: Cluster) -> None:
    c = cluster
    node = c.nodes["n1"]
    request = c.verb("n1", "not-ready", "alice")
    for _ in range(12):
        if node.effects:
            c.perform(node, "unreachable")
        c.tick(0.5)
    assert result(c, "n1", request).status == 503


# --- devices --------------------------------------------------------------------------


def test_an_agent_whose_phone_is_lost(cluster: Cluster) -> None:
    c = cluster
    c.register("alice", expires=c.utc + 30)
    c.flow()
    c.advance(45)
    queued(c)
    assert not c.legs, "not routable at once"
    assert c.agent_now("alice").intent == "available"
    c.advance(85)
    assert c.agent_now("alice").intent == "available"
    c.advance(15)
    agent = c.agent_now("alice")
    assert (agent.intent, agent.reason, agent.by) == ("not_ready", "device", "acd")
    c.register("alice", expires=c.utc + 3600)
    c.advance(10)
    assert c.agent_now("alice").intent == "available"
    assert attempt_of(c)


def test_a_phone_lost_for_long_does_not_bring_the_agent_back(cluster: Cluster) -> None:
    c = cluster
    c.register("alice", expires=c.utc + 1)
    c.advance(120)
    assert c.agent_now("alice").reason == "device"
    c.advance(1000)
    c.register("alice", expires=c.utc + 3600)
    c.advance(10)
    assert c.agent_now("alice").intent == "not_ready"


# --- limits ---------------------------------------------------------------------------


def test_too_many_writes_are_refused() -> None:
    c = Cluster(1, AcdSettings(ops_max=1))
    c.queue("support")
    c.agent("alice", "support")
    c.agent("bob", "support")
    c.start()
    c.flow()
    first, second = c.verb("n1", "not-ready", "alice"), c.verb("n1", "not-ready", "bob")
    c.flow()
    assert (result(c, "n1", first).status, result(c, "n1", second).status) == (200, 503)


def test_outcomes_nobody_waits_for_are_ignored(cluster: Cluster) -> None:
    acd = cluster.nodes["n1"].acd
    stray = OutcomeOf(effect=StoreTxn(tag="acd:999:1:txn"), outcome=Unreachable("late"))
    assert not [e for e in acd.outcome(stray, cluster.now, cluster.utc) if not isinstance(e, Count)]
    assert not acd.owns(StoreTxn(tag="other"))


def test_values_are_json_readers_know(cluster: Cluster) -> None:
    queued(cluster)
    key = cluster.keys.waiting("support", "k1")
    assert decode(cluster.store.items[key].value, WaitingValue, key).agent == "alice"
