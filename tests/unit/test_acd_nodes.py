"""The ACD on several nodes: takeovers, nodes that are gone, and what is put right afterwards."""

from __future__ import annotations

import msgspec
import pytest

from ari_ha.checkers.acd import check_failover, check_store
from ari_ha.core.ports.store import StoreTxn
from ari_ha.machines.acd_orders import (
    AcdSettings,
    AttemptWon,
    CancelAttempt,
    StartAttempt,
)
from ari_ha.simulation.acd_cluster import Cluster, Leg
from ari_ha.wire.keyspace import AttemptOfAgent, RecordValue, WaitingValue
from ari_ha.wire.link import Rung
from tests.support.acd_bench import attempt_of, orders, queued, quiet, talking, two_nodes


@pytest.fixture
def cluster() -> Cluster:
    return two_nodes()


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
    assert c.agents_data() == before, "nothing is written about agents of a call that moves quickly"
    since = c.utc
    c.advance(1.1)
    assert check_failover(before, c.agents_data()) == []
    if c.phones:
        assert c.agent_now("alice").recovering == {"since": since, "from": "n1#1"}
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


@pytest.mark.parametrize("wrong_s", [3600.0, -3600.0])
def test_a_wrap_up_lasts_as_long_for_a_node_whose_clock_is_wrong(cluster: Cluster, wrong_s: float) -> None:
    c = cluster
    c.queue("support", wrapup_ms=20_000)
    attempt = talking(c)
    c.nodes["n2"].wrong_s = wrong_s
    c.advance(3 * AcdSettings().clock_hold_s)  # longer than a step is minded
    c.agent_hangs_up(attempt)
    c.flow()
    c.nodes["n1"].alive = False  # it stands still: what it should fire, the other one fires after a grace
    agent = c.agent_now("alice")
    lasts_s = agent.acw_deadline - agent.work_since
    assert agent.work == "acw" and lasts_s > 2.0
    c.advance(lasts_s - 0.5)
    assert c.agent_now("alice").work == "acw"
    c.advance(0.5 + 2 * AcdSettings().timer_grace_s + 0.5)
    assert c.agent_now("alice").work == "idle"


def test_the_old_node_writes_nothing_about_a_call_that_moved(cluster: Cluster) -> None:
    c = cluster
    queued(c)
    c.take_over("k1", "n2")
    c.rebuilt("k1")
    c.flow()
    commits = c.history.commits
    acd = c.nodes["n1"].acd
    acd.attempt_failed("t1", "no-answer", c.now, c.utc)
    acd.caller_leaves("k9", "gone", c.now, c.utc)
    c.advance(1)
    assert c.history.commits == commits
    assert c.agent_now("alice").work == "reserved"


@pytest.mark.parametrize("kind", ["no-answer", "reject", "unreachable"])
def test_what_a_ring_comes_to_at_a_node_that_does_not_know_yet_that_the_call_has_moved(
    cluster: Cluster, kind: str
) -> None:
    """Its stream is behind: the phone rings on at the next node, and nobody has missed anything."""
    c = cluster
    c.queue("support", rona_max=1)
    queued(c)
    c.ring(attempt := attempt_of(c))
    c.flow()
    one = c.nodes["n1"]
    one.alive = False
    c.take_over("k1", "n2")
    c.flow()
    one.alive = True
    before, place = c.agent_now("alice"), c.picture().entries["k1"]
    assert (before.work, place.node, place.attempt) == ("ringing", "n2#1", attempt)
    c._took(one, one.acd.attempt_failed(attempt, kind, c.now, c.utc))
    while one.effects:
        c.perform(one)
    assert (c.agent_now("alice"), c.picture().entries["k1"]) == (before, place)
    c.flow()
    c.pick_up(attempt)
    c.advance(1.0)
    assert c.agent_now("alice").work == "talking"
    quiet(c)


def test_a_conversation_that_was_ended_and_goes_on_is_counted_once(cluster: Cluster) -> None:
    """Its node had released the agent, its edge did not hear of it, and it was lost: he talks on."""
    c = cluster
    attempt = talking(c)
    c.advance(10.0)
    one = c.nodes["n1"]
    c._took(one, one.acd.conversation_ended("k1", "alice", "transfer", c.now, c.utc))
    c.flow()
    ended = c.agent_now("alice")
    assert (ended.work, ended.handled, ended.talk_s) == ("acw", 1, pytest.approx(10.0, abs=0.2))
    c.kill("n1")
    c.take_over("k1", "n2")
    c.flow()
    goes_on = c.agent_now("alice")
    assert (goes_on.work, goes_on.handled, goes_on.talk_s) == ("talking", 0, 0.0)
    c.advance(5.0)
    c.agent_hangs_up(attempt)
    c.flow()
    after = c.agent_now("alice")
    assert (after.work, after.handled, after.talk_s) == ("acw", 1, pytest.approx(15.0, abs=0.4))


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


def test_the_place_of_a_caller_who_is_nowhere_goes_though_others_match_him_again_and_again(
    cluster: Cluster,
) -> None:
    c = cluster
    c.put(c.keys.record("k8"), RecordValue(call="k8", epoch="1.1", node="n1#1"))  # left behind, swept later
    place = WaitingValue(call="k8", queue="support", entered=c.utc, node="n1#1")
    c.put(c.keys.waiting("support", "k8"), place)
    c.advance(1)
    assert c.agent_now("alice").work == "reserved", "matched by n2, and n1 knows of no such call"
    c.advance(20)
    assert not c.picture().entries
    assert c.agent_now("alice").work == "idle"
    quiet(c)


def test_who_talks_in_one_call_is_not_rung_for_another_that_is_taken_up(cluster: Cluster) -> None:
    """Of two calls taken up together the store names only one, and he is in the other."""
    c = cluster
    queued(c, "k1", "n1")
    assert c.agent_now("alice").work == "reserved"
    c.call("k2", "", "n2")
    node = c.nodes["n2"]
    c._took(node, node.acd.caller_resumed("k2", "", 0.0, 0, "4930", c.now, c.utc, talking=["alice"]))
    c.kill("n1")
    c.legs.clear()
    c.take_over("k1", "n2")
    node.acd.check()
    c.flow()
    node.acd.check()
    assert not [order for order in orders(c, "n2", StartAttempt) if order.agent == "alice"]


def test_an_agent_taken_up_twice_in_one_call_has_one_part_in_it(cluster: Cluster) -> None:
    """The first survivor's mirror did not know yet under which name he had come into the call."""
    c = cluster
    c.agent("alice", "support")
    c.call("k1", "", "n1")
    node = c.nodes["n1"]
    part = AttemptOfAgent(attempt="k1", call="k1", queue="", node="n2#1", since=c.utc)
    joined = msgspec.structs.replace(c.agent_now("alice"), work="talking", attempt=part)
    c._took(node, node.acd.caller_resumed("k1", "", 0.0, 0, "4930", c.now, c.utc, talking=["alice"]))
    c.put(c.keys.agent("alice"), joined)
    c.flow()
    c._took(node, node.acd.caller_resumed("k1", "", 0.0, 0, "4930", c.now, c.utc, talking=["alice"]))
    node.acd.check()
    assert c.agent_now("alice").attempt == part


def test_a_caller_who_talks_to_an_agent_of_another_call_waits_no_more(cluster: Cluster) -> None:
    c = cluster
    queued(c, node="n2")
    c.turn_down(
        attempt := attempt_of(c), "unreachable"
    )  # its edge died, and the phone was answered meanwhile
    c.flow()
    n1 = c.nodes["n1"]
    c._took(n1, n1.acd.conversation_state("k2", "alice", "dial", c.now, c.utc))
    c.flow()
    c.legs[attempt] = Leg("k1", "alice", attempt, "up")
    c.take_over("k1", "n1")
    c.flow()
    assert not c.picture().entries
    agent = c.agent_now("alice")
    assert agent.work == "dialing" and agent.attempt is not None and agent.attempt.call == "k2"


def test_nobody_is_rung_for_a_caller_who_talks_when_he_is_taken_up(cluster: Cluster) -> None:
    """The store still says that alice is to be rung: her part in the call is over, and bob has him."""
    c = cluster
    queued(c, "k1", "n1")
    assert c.agent_now("alice").work == "reserved"
    c.agent("bob", "support")
    part = AttemptOfAgent(attempt="k1", call="k1", queue="", node="n1#1", since=c.utc)
    c.put(c.keys.agent("bob"), msgspec.structs.replace(c.agent_now("bob"), work="talking", attempt=part))
    c.kill("n1")
    c.legs.clear()
    node = c.nodes["n2"]
    c.deliver(node, 50)
    c._took(node, node.acd.caller_resumed("k1", "", 0.0, 0, "4930", c.now, c.utc))
    node.acd.check()
    assert not [order for order in orders(c, "n2", StartAttempt) if order.agent == "alice"]


@pytest.mark.parametrize("over", [(), ("t-bob",)])
def test_of_two_to_be_rung_for_one_caller_who_is_taken_up_none_is_forgotten(
    cluster: Cluster, over: tuple[str, ...]
) -> None:
    """The node before wrote late that it had rung alice, when another had bob rung for the same caller."""
    c = cluster
    queued(c, "k1", "n1")
    assert c.agent_now("alice").work == "reserved"
    part = AttemptOfAgent(attempt="t-bob", call="k1", queue="support", node="n1#1", since=c.utc)
    c.agent("bob", "support", work="ringing", attempt=part)
    place = msgspec.structs.replace(c.picture().entries["k1"], attempt="t-bob", agent="bob")
    c.put(c.keys.waiting("support", "k1"), place)
    c.kill("n1")
    c.legs.clear()
    node = c.nodes["n2"]
    c.deliver(node, 50)
    c._took(node, node.acd.caller_resumed("k1", "support", 0.0, 0, "4930", c.now, c.utc, ended=over))
    node.acd.check()
    c.flow()
    assert c.agent_now("alice").work == ("reserved" if over else "idle")
    assert [order.agent for order in orders(c, "n2", StartAttempt)] == (["alice"] if over else ["bob"])
    assert check_store(c.picture()) == []


@pytest.mark.parametrize(("state", "cancelled"), [("up", 0), ("ringing", 1)])
def test_only_a_phone_that_rings_is_taken_back_when_its_attempt_is_over(
    cluster: Cluster, state: str, cancelled: int
) -> None:
    """He has two conversations, and the store names the other one: nobody who talks is cut off."""
    c = cluster
    c.agent("alice", "support")
    for call in ("k1", "k2"):
        c.call(call, "", "n1")
    node = c.nodes["n1"]
    c._took(node, node.acd.caller_resumed("k2", "", 0.0, 0, "4930", c.now, c.utc, talking=["alice"]))
    before = len(orders(c, "n1", CancelAttempt))
    alive = {"x1": state}
    c._took(node, node.acd.caller_resumed("k1", "", 0.0, 0, "4931", c.now, c.utc, alive=alive))
    assert len(orders(c, "n1", CancelAttempt)) - before == cancelled


def test_who_answers_while_he_is_being_given_to_the_caller_talks_to_him(cluster: Cluster) -> None:
    """Of the ring that goes on the store knew nothing, and the agent has asked for a break since."""
    c = cluster
    c.agent("bob", "support", intent="not_ready", reason="break")
    c.call("k1", "", "n1")
    node, alive, rung = c.nodes["n1"], {"t-bob": "ringing"}, [Rung("t-bob", "bob", "bob", "support")]
    who = ("k1", "support", 0.0, 0, "4930")
    c._took(node, node.acd.caller_resumed(*who, c.now, c.utc, alive=alive, rung=rung))
    c._took(node, node.acd.attempt_answered("t-bob", c.now, c.utc))
    node.acd.check()
    c.flow()
    assert c.agent_now("bob").work == "talking" and not orders(c, "n1", CancelAttempt)
    assert [order.attempt for order in orders(c, "n1", AttemptWon)] == ["t-bob"]


@pytest.mark.parametrize("first", ["n1", "n2"])
def test_what_is_over_here_is_not_begun_again_by_the_node_that_had_it_before(
    cluster: Cluster, first: str
) -> None:
    """A colleague calls alice while nobody reaches the store; the call moves, and ends at the second node."""
    c = cluster
    one, two = c.nodes["n1"], c.nodes["n2"]
    for node in (one, two):
        c.lose_store(node)
    for node in (one, two):
        c._took(node, node.acd.conversation_state("k2", "alice", "join", c.now, c.utc))
        c.advance(1.0)
    c._took(one, one.acd.call_moved("k2", c.now, c.utc))
    c._took(two, two.acd.conversation_ended("k2", "alice", "16", c.now, c.utc))
    c.advance(1.0)
    for name in (first, *({"n1", "n2"} - {first})):
        c.find_store(c.nodes[name])
        c.flow()
    agent = c.agent_now("alice")
    assert (agent.work, agent.handled, agent.talk_s) == ("idle", 1, pytest.approx(1.0))
    c.advance(60.0)
    assert c.agent_now("alice").handled == 1
    assert c.findings(quiet=True) == []
