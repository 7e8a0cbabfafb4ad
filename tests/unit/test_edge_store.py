"""The copy of the calls in etcd: what becomes of it when etcd does not take it, or forgets it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ari_ha.core.machine import DeadlineReached, Done, Effect, OutcomeOf, Refused, Unknown
from ari_ha.core.ports.store import KeyValue, StoreChanged, StoreReach, StoreSnapshot, StoreTxn, TxnResult
from ari_ha.machines import edge_store
from ari_ha.machines.edge_config import EdgeConfig
from ari_ha.machines.edge_store import STORE_RETRY_S
from ari_ha.sip import events as sip
from tests.support.edge_world import EdgeWorld


class SlowStore(EdgeWorld):
    """etcd answers a write of calls when the test says so."""

    def __init__(self) -> None:
        self.open: list[StoreTxn] = []
        self.slow = False
        super().__init__()

    def config(self) -> EdgeConfig:
        return replace(super().config(), call_records=True)

    def perform(self, effect: Effect) -> None:
        if self.slow and isinstance(effect, StoreTxn) and (effect.lane or "").startswith("store/"):
            self.open.append(effect)
        else:
            super().perform(effect)

    def take(self) -> list[StoreTxn]:
        """The writes under way."""
        taken, self.open = self.open, []
        return taken

    def answer(self, effect: StoreTxn, outcome: Any = None) -> None:
        outcome = outcome or Done(TxnResult(True, self.revision + 1))
        self.post(OutcomeOf(effect=effect, outcome=outcome))

    def change(self, *calls: Any) -> None:
        """Something of these calls changes in one event."""
        for call in calls:
            call.recorded = not call.recorded
            self.edge.calls.touch(call)
        self.post(DeadlineReached())

    def pause(self) -> None:
        self.now += STORE_RETRY_S
        self.post(DeadlineReached())


@pytest.fixture
def world() -> SlowStore:
    world = SlowStore()
    world.add_user("1001")
    world.snapshots()
    return world


def calls_in(effect: StoreTxn, world: SlowStore) -> set[str]:
    return {call for call in world.edge.calls.by_id for put in effect.puts if f"/{call}" in put.key}


def test_who_refuses_at_once_is_not_asked_again_in_the_same_breath(world: SlowStore) -> None:
    _, call = world.call_in()
    world.slow = True
    world.change(call)
    (first,) = world.take()
    world.answer(first, Refused("etcdserver: permission denied"))
    world.now += STORE_RETRY_S / 2
    world.change(call)
    assert not world.take()
    world.pause()
    (second,) = world.take()
    world.answer(second)
    assert calls_in(second, world) == {call.call}


def test_an_end_that_is_refused_is_told_again_later(world: SlowStore) -> None:
    key, call = world.call_in()
    world.slow = True
    world.carrier.sip.hangup(key, world.now)
    world.settle()
    (first,) = [txn for txn in world.take() if txn.deletes]
    world.answer(first, Refused("etcdserver: permission denied"))
    assert not world.take()
    world.pause()
    (second,) = world.take()
    assert second.deletes == first.deletes and second.puts == first.puts


def test_after_a_while_without_etcd_calls_that_ended_are_told_of_a_few_at_a_time(
    world: SlowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_store, "ENDS_AT_ONCE_MAX", 2)
    monkeypatch.setattr(edge_store, "ENDS_KEPT_MAX", 3)
    calls = [world.call_in() for _ in range(5)]
    world.slow = True
    world.post(StoreReach(reachable=False))
    for key, _ in calls:
        world.carrier.sip.hangup(key, world.now)
    world.settle()
    assert not world.edge.calls.by_id and not world.take()
    world.post(StoreReach(reachable=True))
    told = []
    while world.open:
        assert len(world.open) <= 2
        told.append(world.open.pop(0))
        world.answer(told[-1])
    ended = [call.call for _, call in calls]
    assert [txn.lane for txn in told] == [f"store/{call}" for call in ended]
    assert [bool(txn.puts) for txn in told] == [True, True, True, False, False]


def test_nobody_is_left_without_an_answer_while_etcd_gives_none(world: SlowStore) -> None:
    """It has no majority and nobody knows yet: every write hangs for its whole limit."""
    phone = world.register("1001")
    key, call = world.call_in()
    world.slow = True
    world.dial(world.nodes[call.owner.name], call, "a1", "1001")
    timings = world.edge.context.timings
    world.run(timings.invite_limit_s + 0.1)
    invite = phone.of(sip.InviteReceived)[-1]
    phone.sip.answer(invite.leg, phone.sdp(), world.now)
    world.settle()
    world.run(2 * timings.persist_limit_s + 0.1)
    assert phone.of(sip.LegAcked) and world.carrier.of(sip.LegAnswered)
    _, other = world.call_in()
    world.run(timings.persist_limit_s + 0.1)
    assert other.owner is not None and other.legs["c"].state == "up"
    world.carrier.sip.hangup(key, world.now)
    world.run(timings.end_limit_s + 0.1)
    assert [event.leg for event in world.carrier.of(sip.LegEnded)] == [key]
    assert phone.of(sip.LegEnded)


def test_what_is_wrong_with_one_call_does_not_keep_the_others_out(world: SlowStore) -> None:
    calls = [world.call_in()[1] for _ in range(3)]
    world.slow = True
    world.change(*calls)
    (together,) = world.take()
    world.answer(together, Refused("etcdserver: request is too large"))
    world.pause()
    alone = world.take()
    assert sorted(map(len, [calls_in(txn, world) for txn in alone])) == [1, 1, 1]
    bad, *good = alone
    world.answer(bad, Refused("etcdserver: request is too large"))
    for txn in good:
        world.answer(txn)
    world.pause()
    (again,) = world.take()
    assert calls_in(again, world) == calls_in(bad, world)
    world.answer(again)
    world.change(*calls)
    (together,) = world.take()
    assert len(calls_in(together, world)) == 3, "whoever is taken goes with the others again"


def test_what_etcd_has_forgotten_is_written_again(world: SlowStore) -> None:
    """etcd was set back to a copy of it: what is written there is not there any more."""
    calls = [world.call_in()[1] for _ in range(2)]
    lost = calls[0].call
    prefix = world.keys.prefix("calls")
    items = {key: item for key, item in world.store.items() if key.startswith(prefix)}
    world.slow = True
    world.post(StoreSnapshot(prefix=prefix, revision=world.revision, items=items))
    assert not world.take()
    older = {
        key: KeyValue(key, b"{}" if key == world.keys.media(lost) else item.value, item.mod_revision)
        for key, item in items.items()
    }
    world.post(StoreSnapshot(prefix=prefix, revision=world.revision, items=older))
    (txn,) = world.take()
    assert calls_in(txn, world) == {lost}
    assert {put.key for put in txn.puts} >= {world.keys.owner(lost), world.keys.dialogs("pair1", lost)}


def late(world: SlowStore, txn: StoreTxn) -> None:
    """What was given up for unknown is done after all, and etcd's stream tells it."""
    world.txn(txn)
    for put in txn.puts:
        world.post(StoreChanged(key=put.key, value=world.store[put.key], revision=world.revision))


def test_what_is_done_later_than_what_was_written_next_is_put_right(world: SlowStore) -> None:
    """A member of etcd stood still with a write in its hands, and another one took the next."""
    _, call = world.call_in()
    world.slow = True
    call.want = "hitless"
    call.media.state = "direct"
    world.change(call)
    (first,) = world.take()
    assert world.keys.media(call.call) in {put.key for put in first.puts}
    world.answer(first, Unknown("no outcome within 2 s"))
    call.media.state = "through"
    world.slow = False
    world.pause()
    right = {key: item.value for key, item in world.store.items() if f"/{call.call}" in key}
    late(world, first)
    assert {key: item.value for key, item in world.store.items() if f"/{call.call}" in key} == right


def test_a_call_that_is_written_after_its_end_is_deleted_again(world: SlowStore) -> None:
    key, call = world.call_in()
    world.slow = True
    call.media.state = "direct"
    world.change(call)
    (first,) = world.take()
    world.answer(first, Unknown("no outcome within 2 s"))
    world.slow = False
    world.carrier.sip.hangup(key, world.now)
    world.settle()
    world.pause()
    assert not [key for key in world.store if f"/{call.call}" in key and "/cdr" not in key]
    late(world, first)
    assert not [key for key in world.store if f"/{call.call}" in key and "/cdr" not in key]


def test_the_stream_that_is_behind_moves_nothing(world: SlowStore) -> None:
    """It tells an edge its own older words while newer ones are in etcd."""
    _, call = world.call_in()
    key = world.keys.media(call.call)
    older = world.store[key]
    call.media.state = "direct"
    world.change(call)
    world.slow = True
    world.post(StoreChanged(key=key, value=older, revision=older.mod_revision))
    world.post(StoreChanged(key=key, value=world.store[key], revision=world.store[key].mod_revision))
    assert not world.take()
