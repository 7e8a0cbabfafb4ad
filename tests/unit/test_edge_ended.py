"""What an edge leaves in the outbox for each ended call."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ari_ha.core.ports.store import StoreReach
from ari_ha.machines.edge_config import EdgeConfig
from ari_ha.sip import events as sip
from ari_ha.wire.keyspace import decode
from ari_ha.wire.outbox import CdrValue
from tests.support.edge_world import EdgeWorld, kill


class RecordingWorld(EdgeWorld):
    """An edge that leaves records."""

    def config(self) -> EdgeConfig:
        return replace(super().config(), call_records=True)

    def records(self) -> list[CdrValue]:
        prefix = self.keys.cdr("")
        return [decode(item.value, CdrValue) for key, item in self.store.items() if key.startswith(prefix)]


@pytest.fixture
def world() -> RecordingWorld:
    return RecordingWorld().with_users("1001")


def talk(world: EdgeWorld) -> tuple[str, Any, Any, Any]:
    """A caller and an agent's phone, connected."""
    phone = world.register("1001")
    caller, call = world.call_in()
    world.run(2.0)
    world.dial(world.nodes[call.owner.name], call, "a1", "1001", agent="anna")
    invite = phone.of(sip.InviteReceived)[-1]
    phone.sip.answer(invite.leg, phone.sdp(), world.now)
    world.settle()
    return caller, call, phone, invite.leg


def test_the_caller_hangs_up(world: RecordingWorld) -> None:
    caller, call, _, _ = talk(world)
    world.run(3.0)
    world.carrier.sip.hangup(caller, world.now)
    world.run(0.5)
    (record,) = world.records()
    assert record.call == call.call and record.did == "6000" and record.trunk == "carrier1"
    assert record.disposition == "answered" and record.ended_by == "caller"
    assert record.started <= record.answered < record.connected < record.ended
    assert record.ended - record.connected == pytest.approx(3.0, abs=0.6)
    assert not [key for key in world.store if "/calls/" in key or "/dialogs/" in key]


def test_a_moved_call_says_who_served_it(world: RecordingWorld) -> None:
    caller, call, _, _ = talk(world)
    first = call.owner
    kill(world, first.name)
    second = call.owner
    world.carrier.sip.hangup(caller, world.now)
    world.run(0.5)
    (record,) = world.records()
    assert (record.agent, record.agents) == ("anna", ["anna"])
    assert record.nodes == [str(first), str(second)] and record.epoch == str(call.epoch)


def test_the_times_outlive_the_edge_process(world: RecordingWorld) -> None:
    caller, call, _, _ = talk(world)
    connected, served = call.connected_utc, list(call.served)
    assert connected and served
    world.boot()
    again = world.edge.calls.by_id[call.call]
    assert again.connected_utc == connected and again.served == served and again.agents == ["anna"]


def test_nothing_is_left_unless_asked_for() -> None:
    world = EdgeWorld()
    caller, _ = world.call_in()
    world.carrier.sip.hangup(caller, world.now)
    world.run(0.5)
    assert not [key for key in world.store if "/outbox/" in key]


def test_while_etcd_is_away_the_record_waits_with_the_deletion(world: RecordingWorld) -> None:
    caller, call, _, _ = talk(world)
    world.etcd = False
    world.post(StoreReach(reachable=False))
    world.carrier.sip.hangup(caller, world.now)
    world.run(2.0)
    assert not world.records()
    world.etcd = True
    world.post(StoreReach(reachable=True))
    world.run(2.0)
    (record,) = world.records()
    assert record.call == call.call
    assert not [key for key in world.store if "/dialogs/" in key]
