"""The ACD and its store: lost and refused transactions, a store that is away, checkers that find it."""

from __future__ import annotations

import pytest

from ari_ha.checkers.acd import check_failover, check_store, check_talks
from ari_ha.core.ports.store import Compare, Put, StoreTxn
from ari_ha.machines import acd_calls
from ari_ha.machines.acd_agents import AgentValue
from ari_ha.machines.acd_orders import (
    AttemptWon,
    CallerQueued,
    PutsRefused,
    StartAttempt,
)
from ari_ha.simulation.acd_cluster import Cluster, Memory
from ari_ha.wire.keyspace import WaitingValue, encode
from tests.support.acd_bench import attempt_of, orders, queued, quiet, result, talking, two_nodes


@pytest.fixture
def cluster() -> Cluster:
    return two_nodes()


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


@pytest.mark.parametrize("fate", ["request-lost", "reply-lost"])
def test_a_caller_who_is_handed_on_before_that_is_written_waits_no_more(cluster: Cluster, fate: str) -> None:
    """An agent answers him and hands him to a party, while etcd does not answer: nobody else is tried."""
    c = cluster
    one = c.nodes["n1"]
    queued(c)
    c.ring(attempt := attempt_of(c))
    c.flow()
    c.pick_up(attempt)
    c._took(one, one.acd.conversation_ended("k1", "alice", "transfer", c.now, c.utc))
    c.perform(one, fate)
    c.advance(20)
    assert not c.picture().entries and len(orders(c, "n1", StartAttempt)) == 1
    place = WaitingValue(call="k1", queue="support", entered=c.utc, node="n2#1")
    c.put(c.keys.waiting("support", "k1"), place)  # written late by the node that had him before
    c.advance(20)
    assert not c.picture().entries and len(orders(c, "n1", StartAttempt)) == 1


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


def test_what_was_kept_is_merged_also_where_something_of_him_was_under_way(cluster: Cluster) -> None:
    """An agent's break is on its way to etcd when that goes, and his caller hangs up meanwhile."""
    c = cluster
    one = c.nodes["n1"]
    talking(c)
    c.verb("n1", "not-ready", "alice", reason="1")
    c.lose_store(one)
    c.legs.clear()
    c.hang_up("k1")
    c.find_store(one)
    c.advance(10.0)
    assert not one.acd.unwritten
    alice = c.agent_now("alice")
    assert (alice.work, alice.handled, alice.intent) == ("idle", 1, "not_ready")


def test_a_place_is_free_again_also_where_what_was_kept_of_it_is_not_merged_yet() -> None:
    """A node that was cut off from etcd takes a caller up from the second one since, and has not read who is
    rung for him. It hears of that first and gives it up; what it had kept of his place goes."""
    c = Cluster(3)
    c.queue("support")
    c.agent("alice", "support")
    c.start()
    two = c.nodes["n2"]
    c.verb("n1", "not-ready", "alice", reason="1")
    queued(c, "k1", "n3")
    c.lose_store(two)
    c.take_over("k1", "n1")
    c.verb("n1", "available", "alice")
    c.flow()
    c.ring(attempt_of(c))
    c.verb("n1", "not-ready", "alice", reason="1")
    c.flow()
    c.legs.clear()
    c.kill("n1")
    c.take_over("k1", "n2")
    c.find_store(two)
    c.deliver(two, len(c.store.log))
    two.effects.reverse()  # the merge is the last to be answered
    c.flow()
    assert c.agent_now("alice").attempt is None
    assert c.picture().entries["k1"].attempt == ""


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


def test_a_caller_who_went_before_his_place_was_read_leaves_none(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    c = cluster
    queued(c)
    c.ring(attempt_of(c))
    c.flow()
    away(c)
    c.kill("n1")
    with monkeypatch.context() as nothing:
        nothing.setattr(c, "read_all", c.lose_store)  # its app starts again, and the store is away
        node = c.start_node("n1")
    c.hang_up("k1")
    c.flow()
    assert set(c.picture().entries) == {"k1"}
    back(c)
    c.read_all(node)
    c.flow()
    assert not c.picture().entries
    assert c.agent_now("alice").work == "idle", "nobody looks for him, and nobody waits for the reconciler"
    quiet(c)


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
    c.advance(1.1)
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
