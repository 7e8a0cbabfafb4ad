"""The ACD on a store: one caller's and one agent's stories, and what may go wrong."""

from __future__ import annotations

import pytest

from ari_ha.core.machine import Count, OutcomeOf, Unreachable
from ari_ha.core.ports.store import Compare, Put, StoreTxn
from ari_ha.machines import acd_calls
from ari_ha.machines.acd_agents import AgentValue
from ari_ha.machines.acd_orders import (
    AcdSettings,
    AttemptWon,
    CallerQueued,
    CancelAttempt,
    PutsRefused,
    QueueFull,
    StartAttempt,
    VerbResult,
)
from ari_ha.simulation.acd_cluster import Cluster, Memory
from ari_ha.simulation.checkers_acd import check_failover, check_store, check_talks
from ari_ha.wire.keyspace import UserValue, WaitingValue, decode, encode


@pytest.fixture
def cluster() -> Cluster:
    c = Cluster(2)
    c.queue("support")
    c.agent("alice", "support")
    c.start()
    c.advance(1.0)
    return c


def attempt_of(c: Cluster, agent: str = "alice") -> str:
    return next(leg.attempt for leg in c.legs.values() if leg.agent == agent)


def queued(c: Cluster, call: str = "k1", node: str = "n1", **more: int) -> None:
    c.call(call, "support", node, **more)
    c.flow()


def talking(c: Cluster, call: str = "k1", node: str = "n1", agent: str = "alice") -> str:
    queued(c, call, node)
    attempt = attempt_of(c, agent)
    c.ring(attempt)
    c.flow()
    c.pick_up(attempt)
    c.flow()
    assert c.agent_now(agent).work == "talking"
    return attempt


def orders(c: Cluster, node: str, kind: type) -> list:
    return [order for order in c.nodes[node].orders if isinstance(order, kind)]


def result(c: Cluster, node: str, request: str) -> VerbResult:
    return c.nodes[node].results[request]


def quiet(c: Cluster) -> None:
    c.flow()
    assert c.findings(quiet=True) == []


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


# --- transactions ---------------------------------------------------------------------


def test_record_goes_with_the_place(cluster: Cluster) -> None:
    c = cluster
    acd = c.nodes["n1"].acd
    key = c.keys.record("k9")
    effects = acd.caller_enters(
        "k9", "support", c.utc, 0, "49", c.now, c.utc,
        with_puts=[Put(key, b"{}")], with_compares=[Compare(key, 0)],
    )  # fmt: skip
    (txn,) = [e for e in effects if isinstance(e, StoreTxn)]
    assert {put.key for put in txn.puts} == {key, c.keys.waiting("support", "k9")}
    assert acd.owns(txn)
    c._took(c.nodes["n1"], effects)
    c.flow()
    assert key in c.store.items
    assert orders(c, "n1", CallerQueued)[0].revision > 0


def test_a_record_that_is_newer_does_not_stop_the_act(cluster: Cluster) -> None:
    c = cluster
    node = c.nodes["n1"]
    key = c.keys.record("k9")
    c.store.put({key: b'{"call":"k9","epoch":"1.2","node":"n1"}'}, c.utc)
    effects = node.acd.caller_enters(
        "k9", "support", c.utc, 0, "49", c.now, c.utc,
        with_puts=[Put(key, b"{}")], with_compares=[Compare(key, 0)],
    )  # fmt: skip
    c._took(node, effects)
    c.flow()
    (refused,) = orders(c, "n1", PutsRefused)
    assert [kv.key for kv in refused.current] == [key]
    assert orders(c, "n1", CallerQueued)


@pytest.mark.parametrize("fate", ["request-lost", "reply-lost", "late", "unreachable"])
@pytest.mark.parametrize("lost", range(5))
def test_any_transaction_may_get_lost(cluster: Cluster, fate: str, lost: int) -> None:
    """The lost-th transaction of a call's way meets its fate; the call goes its way."""
    c = cluster
    node = c.nodes["n1"]
    done = 0

    def step() -> None:
        nonlocal done
        for _ in range(10):
            while node.effects:
                is_txn = isinstance(node.effects[0], StoreTxn)
                c.perform(node, fate if is_txn and done == lost else "ok")
                done += is_txn
            c.flow()
            c.advance(0.2)

    c.call("k1", "support", "n1")
    step()
    attempt = attempt_of(c)
    c.ring(attempt)
    step()
    if attempt in c.legs:
        c.pick_up(attempt)
        step()
        c.agent_hangs_up(attempt)
    else:
        c.hang_up("k1")
    step()
    while c.later:
        c.arrive_late()
    c.advance(60)
    quiet(c)
    assert c.agent_now("alice").work == "idle"
    assert c.agent_now("alice").missed == 0


def test_a_lost_compare_decides_anew_on_what_it_was_told(cluster: Cluster) -> None:
    c = cluster
    c.call("k1", "support", "n1")
    c.perform(c.nodes["n1"])
    c.agent("alice", "support", handled=77, seq=40)
    c.perform(c.nodes["n1"])
    c.perform(c.nodes["n1"])
    assert (c.agent_now("alice").work, c.agent_now("alice").handled) == ("reserved", 77)


def test_compares_lost_again_and_again_wait_for_the_watch(cluster: Cluster) -> None:
    c = cluster
    node = c.nodes["n1"]
    c.call("k1", "support", "n1")
    c.perform(node)
    for seq in range(4):
        c.agent("alice", "support", seq=50 + seq)
        c.perform(node)
    assert not node.effects, "four tries, then patience"
    c.deliver(node, 50)
    assert not node.effects, "nothing new"
    c.agent("alice", "support", seq=54)
    c.deliver(node, 50)
    assert node.effects, "the watch brought news"
    c.flow()
    assert c.agent_now("alice").work == "reserved"


def test_fields_of_a_newer_version_are_kept(cluster: Cluster) -> None:
    c = cluster
    key = c.keys.agent("alice")
    newer = encode(c.agent_now("alice"))[:-1] + b',"mood":"good"}'
    c.store.put({key: newer}, c.utc)
    c.flow()
    queued(c)
    assert b'"mood":"good"' in c.store.items[key].value
    assert c.agent_now("alice").work == "reserved"


def test_an_unreadable_agent_is_left_alone(cluster: Cluster) -> None:
    c = cluster
    key = c.keys.agent("alice")
    node = c.nodes["n1"]
    node.acd.commands()
    c.history._seq = lambda *args: None  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="alice"):
        c.store.put({key: b"[]"}, c.utc)
    c.flow()
    request = c.verb("n1", "available", "alice")
    assert result(c, "n1", request).status == 404


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


# --- several nodes --------------------------------------------------------------------


def test_another_node_matches_when_the_callers_own_does_not(cluster: Cluster) -> None:
    c = cluster
    one, two = c.nodes["n1"], c.nodes["n2"]
    c.call("k1", "support", "n1")
    c.perform(one)
    c.deliver(two, 50)
    c.now += 0.14
    c.fire()
    assert not two.effects, "the caller's node goes first"
    c.now += 0.30
    c.fire()
    c.perform(two)
    assert c.picture().entries["k1"].agent == "alice"
    c.deliver(one, 50)
    assert not orders(c, "n1", StartAttempt), "its own match is still under way"
    c.perform(one)
    assert [o.call for o in orders(c, "n1", StartAttempt)] == ["k1"]
    assert not orders(c, "n2", StartAttempt)


def test_callers_of_a_node_that_is_gone_keep_their_place_and_are_passed_over(cluster: Cluster) -> None:
    c = cluster
    attempt = talking(c, "k1", "n2")
    queued(c, "k2", "n1")
    c.advance(2)
    queued(c, "k3", "n2")
    before = c.picture().entries["k2"]
    c.kill("n1")
    c.lease_out("n1")
    c.agent_hangs_up(attempt)
    c.advance(4)
    assert [leg.call for leg in c.legs.values()] == ["k3"]
    assert c.picture().entries["k2"] == before
    c.take_over("k2", "n2")
    c.flow()
    after = c.picture().entries["k2"]
    assert (after.entered, after.node, before.node) == (before.entered, "n2#1", "n1#1")
    assert c.nodes["n2"].acd.position("k2") == 1


def test_a_reservation_of_a_dead_node_is_undone_and_is_not_a_miss(cluster: Cluster) -> None:
    c = cluster
    queued(c)
    assert c.agent_now("alice").work == "reserved"
    c.kill("n1")
    c.legs.clear()
    c.advance(4)
    assert c.agent_now("alice").work == "reserved", "its key is still there"
    c.lease_out("n1")
    c.advance(4)
    assert c.agent_now("alice").work == "reserved", "a grace for the takeover"
    c.advance(12)
    agent = c.agent_now("alice")
    assert (agent.work, agent.misses, agent.missed, agent.intent) == ("idle", 0, 0, "available")
    assert c.picture().entries["k1"].attempt == ""


@pytest.mark.parametrize("stage", ["reserved", "ringing", "talking", "hold", "acw", "idle", "not_ready"])
def test_takeover_changes_nothing_but_the_overlay(cluster: Cluster, stage: str) -> None:
    c = cluster
    c.queue("support", wrapup_ms=60_000)
    c.agent("alice", "support", misses=1, missed=4, handled=9, talk_s=12.5, idle_since=c.utc - 40)
    c.agent("bob", "support", intent="not_ready", reason="lunch", device="dev-bob", misses=2)
    c.queue("support", wrapup_ms=60_000, rona_max=5)
    c.flow()
    if stage not in ("idle", "not_ready"):
        queued(c)
        attempt = attempt_of(c)
        if stage != "reserved":
            c.ring(attempt)
            c.flow()
        if stage in ("talking", "hold", "acw"):
            c.pick_up(attempt)
            c.flow()
        if stage == "hold":
            c.hold(attempt, True)
        if stage == "acw":
            c.agent_hangs_up(attempt)
    c.flow()
    before, entries = c.agents_data(), dict(c.picture().entries)
    c.kill("n1")
    c.advance(0.8)
    for call in list(c.phones):
        c.take_over(call, "n2")
    c.flow()
    assert check_failover(before, c.agents_data()) == []
    if c.phones:
        assert c.agent_now("alice").recovering == {"since": c.utc, "from": "n1#1"}
    for call in list(c.phones):
        c.rebuilt(call)
    c.advance(0.5)
    c.lease_out("n1")
    c.advance(2)
    assert c.agents_data() == before, "byte for byte, counters and clocks"
    for call, entry in entries.items():
        now = c.picture().entries[call]
        assert (now.entered, now.attempt, now.priority) == (entry.entered, entry.attempt, entry.priority)
    starts = orders(c, "n2", StartAttempt)
    assert [(o.again, o.attempt.attempt) for o in starts] == ([(True, "t1")] if stage == "reserved" else [])


def test_an_attempt_that_outlived_its_node_is_never_a_miss(cluster: Cluster) -> None:
    c = cluster
    queued(c)
    attempt = attempt_of(c)
    c.ring(attempt)
    c.advance(14)
    c.kill("n1")
    c.take_over("k1", "n2")
    c.flow()
    c.advance(4)
    assert c.agent_now("alice").work == "ringing", "the phone rings a little longer"
    c.advance(2)
    agent = c.agent_now("alice")
    assert (agent.work, agent.misses, agent.missed, agent.intent) == ("idle", 0, 0, "available")


def test_answer_after_takeover(cluster: Cluster) -> None:
    c = cluster
    queued(c)
    attempt = attempt_of(c)
    c.ring(attempt)
    c.flow()
    c.kill("n1")
    c.take_over("k1", "n2")
    c.flow()
    c.pick_up(attempt)
    c.flow()
    assert [o.attempt for o in orders(c, "n2", AttemptWon)] == [attempt]
    assert c.agent_now("alice").work == "talking"
    c.lease_out("n1")
    c.advance(60)
    quiet(c)


def test_wrap_up_ends_though_the_node_is_gone(cluster: Cluster) -> None:
    c = cluster
    attempt = talking(c)
    c.agent_hangs_up(attempt)
    c.flow()
    deadline = c.agent_now("alice").acw_deadline
    c.kill("n1")
    c.lease_out("n1")
    c.advance(2)
    assert (c.agent_now("alice").work, c.agent_now("alice").acw_deadline) == ("acw", deadline)
    c.advance(8)
    assert c.agent_now("alice").work == "idle"


def test_a_clock_that_stepped_fires_nothing_of_others(cluster: Cluster) -> None:
    c = cluster
    attempt = talking(c)
    c.agent_hangs_up(attempt)
    c.flow()
    two = c.nodes["n2"].acd
    two.fire(c.now, c.utc + 3600)
    assert two.agents()["alice"].work == "acw"
    assert not [e for e in two.fire(c.now + 1, c.utc + 3601) if isinstance(e, StoreTxn)]


def test_the_old_node_writes_nothing_about_a_call_that_moved(cluster: Cluster) -> None:
    c = cluster
    queued(c)
    c.take_over("k1", "n2")
    c.flow()
    commits = c.history.commits
    acd = c.nodes["n1"].acd
    acd.attempt_failed("t1", "no-answer", c.now, c.utc)
    acd.caller_leaves("k9", "gone", c.now, c.utc)
    c.advance(1)
    assert c.history.commits == commits
    assert c.agent_now("alice").work == "reserved"


# --- reconciling ----------------------------------------------------------------------


def test_an_agent_in_a_call_that_is_not_there_is_freed(cluster: Cluster) -> None:
    c = cluster
    attempt = talking(c)
    del c.legs[attempt]
    c.phones.pop("k1")
    c.advance(4.4)
    assert c.agent_now("alice").work == "talking", "seen twice before it counts"
    c.advance(6)
    assert c.agent_now("alice").work in ("acw", "idle")
    assert c.counted["acd_stuck_seconds"] > 0


def test_a_ghost_is_freed_by_any_node(cluster: Cluster) -> None:
    c = cluster
    attempt = talking(c)
    c.kill("n1")
    c.lease_out("n1")
    del c.legs[attempt]
    c.hang_up("k1")
    c.advance(20)
    assert c.agent_now("alice").work in ("acw", "idle")
    assert c.agent_now("alice").missed == 0
    c.advance(20)
    quiet(c)


def test_a_living_conversation_is_never_freed(cluster: Cluster) -> None:
    c = cluster
    talking(c)
    c.store.put({c.keys.owner("k1"): None, c.keys.record("k1"): None}, c.utc)
    c.advance(120)
    assert c.agent_now("alice").work == "talking"


def test_who_is_told_late_that_a_call_moved_does_not_free_its_agent(cluster: Cluster) -> None:
    c = cluster
    attempt = talking(c)
    c.take_over("k1", "n2")
    c.nodes["n1"].seen = len(c.store.log)  # the change of owner is still on its way to n1
    c.advance(12)
    assert c.counted["acd_agents_freed"] == 1, "n1 wanted to, and lost the compare"
    agent = c.agent_now("alice")
    assert agent.work == "talking" and agent.attempt is not None and agent.attempt.attempt == attempt
    quiet(c)


def test_nothing_is_judged_while_asterisk_is_not_known(cluster: Cluster) -> None:
    c = cluster
    talking(c)
    c.nodes["n1"].acd._live_calls = lambda: None
    c.legs.clear()
    c.advance(60)
    assert c.agent_now("alice").work == "talking"


def test_an_agent_in_conversation_whom_the_store_calls_idle_is_adopted(cluster: Cluster) -> None:
    c = cluster
    talking(c)
    c.agent("alice", "support", seq=4)
    c.advance(12)
    assert c.agent_now("alice").work == "talking"
    quiet(c)


def test_the_place_of_a_caller_who_is_nowhere_goes(cluster: Cluster) -> None:
    c = cluster
    c.put(
        c.keys.waiting("support", "k8"), WaitingValue(call="k8", queue="support", entered=c.utc, node="n7#1")
    )
    c.advance(20)
    assert not c.picture().entries


# --- the store is away ----------------------------------------------------------------


def away(c: Cluster) -> None:
    for node in c.nodes.values():
        c.lose_store(node)


def back(c: Cluster) -> None:
    for node in c.nodes.values():
        c.find_store(node)


def test_matching_goes_on_without_the_store(cluster: Cluster) -> None:
    c = cluster
    away(c)
    commits = c.history.commits
    c.phones.clear()
    c.call("k1", "support", "n1")
    attempt = attempt_of(c)
    c.ring(attempt)
    c.pick_up(attempt)
    assert [(o.certain, o.revision) for o in orders(c, "n1", AttemptWon)] == [(False, 0)]
    c.call("k2", "support", "n2")
    c.advance(30)
    assert [leg.call for leg in c.legs.values()] == ["k1"], "the edge refused the device to k2"
    request = c.verb("n1", "not-ready", "alice", reason="lunch")
    assert result(c, "n1", request).status == 202
    assert c.history.commits - commits == 4, "owners and records, which the test writes itself"
    back(c)
    c.flow()
    agent = c.agent_now("alice")
    assert (agent.work, agent.next_intent, agent.next_reason) == ("talking", "not_ready", "lunch")
    assert set(c.picture().entries) == {"k2"}
    quiet(c)


def test_a_call_that_came_and_went_without_the_store(cluster: Cluster) -> None:
    c = cluster
    away(c)
    c.call("k1", "support", "n1")
    attempt = attempt_of(c)
    c.ring(attempt)
    c.pick_up(attempt)
    c.now += 20
    c.agent_hangs_up(attempt)
    c.advance(5)
    back(c)
    quiet(c)
    agent = c.agent_now("alice")
    assert (agent.work, agent.handled, agent.talk_s, agent.seq) == ("idle", 1, 20.0, 1)


def test_bindings_do_not_expire_while_nobody_can_renew_them(cluster: Cluster) -> None:
    c = cluster
    c.register("alice", expires=c.utc + 60)
    c.flow()
    away(c)
    c.advance(300)
    c.call("k1", "support", "n1")
    assert attempt_of(c)
    back(c)
    c.flow()
    c.advance(30)
    assert c.agent_now("alice").intent == "available"


def test_the_newer_intent_wins_when_the_store_is_back(cluster: Cluster) -> None:
    c = cluster
    c.lose_store(c.nodes["n1"])
    c.verb("n1", "not-ready", "alice", reason="lunch")
    c.now += 5
    c.verb("n2", "logout", "alice")
    c.flow()
    c.find_store(c.nodes["n1"])
    c.flow()
    assert c.agent_now("alice").intent == "logged_out"
    quiet(c)


# --- the checkers find what they are for ----------------------------------------------


class CarelessMemory(Memory):
    """A store that compares nothing."""

    def txn(self, effect: StoreTxn, utc: float) -> object:  # type: ignore[override]
        careless = StoreTxn(puts=effect.puts, deletes=effect.deletes)
        return super().txn(careless, utc)


def test_a_double_reservation_is_found(cluster: Cluster) -> None:
    c = cluster
    c.store.__class__ = CarelessMemory
    c.call("k1", "support", "n1")
    c.call("k2", "support", "n2")
    c.perform(c.nodes["n1"])
    c.perform(c.nodes["n2"])
    c.perform(c.nodes["n1"])
    assert c.findings() == []
    c.perform(c.nodes["n2"])
    found = c.findings()
    assert any("which no agent has" in line for line in found), found
    assert any("seq" in line or "without counting" in line for line in found), found


def test_with_compares_there_is_none(cluster: Cluster) -> None:
    c = cluster
    c.call("k1", "support", "n1")
    c.call("k2", "support", "n2")
    for name in ("n1", "n2", "n1", "n2"):
        c.perform(c.nodes[name])
    assert c.findings() == []
    c.flow()
    assert [leg.call for leg in c.legs.values()] == ["k1"]
    quiet(c)


def test_a_failover_that_counts_a_miss_is_found(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    real = acd_calls.recover

    def planted(agent: AgentValue, *more: object) -> object:
        return real(
            AgentValue(**{f: getattr(agent, f) for f in agent.__struct_fields__} | {"misses": 1}), *more
        )  # type: ignore[arg-type]

    monkeypatch.setattr(acd_calls, "recover", planted)
    c = cluster
    talking(c)
    before = c.agents_data()
    c.kill("n1")
    c.take_over("k1", "n2")
    c.flow()
    assert check_failover(before, c.agents_data())
    assert any("without counting" in line for line in c.findings())


def test_other_findings(cluster: Cluster) -> None:
    c = cluster
    c.agent("bob", "support")
    talking(c)
    assert check_talks({"k1": ["alice"], "k2": ["alice"]})
    part = c.agent_now("alice").attempt
    c.agent("bob", "support", work="talking", attempt=part)
    assert any("has agents" in line for line in check_store(c.picture()))
    c.agent("bob", "support", work="talking")
    assert any("without attempt" in line for line in check_store(c.picture()))
    c.legs.clear()
    assert any("no such leg" in line for line in c.findings(quiet=True))


def test_queue_jumping_is_found(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    from ari_ha.machines import acd_queue

    c = cluster
    attempt = talking(c)
    queued(c, "k2")
    c.advance(3)
    queued(c, "k3")
    c.advance(3)
    monkeypatch.setattr(acd_queue, "caller_order", lambda entry, config: (0, 0, -entry.entered, entry.call))
    c.agent_hangs_up(attempt)
    c.advance(4)
    c.ring(attempt_of(c))
    c.pick_up(attempt_of(c))
    c.advance(5)
    assert any("k3 was served before k2" in line for line in c.findings()), c.findings()


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
