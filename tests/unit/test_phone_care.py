"""OPTIONS to phones: who answers nothing is marked, keeps its binding, and is found again."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ari_ha.core.machine import Note
from ari_ha.machines.acd_view import View
from ari_ha.machines.edge_config import EdgeConfig
from ari_ha.sip import events as sip
from ari_ha.wire.keyspace import BindingValue, decode
from tests.support.edge_world import EdgeWorld, Party


class Asking(EdgeWorld):
    """An edge that asks its phones every 10 s."""

    def config(self) -> EdgeConfig:
        config = super().config()
        return replace(config, timings=replace(config.timings, phone_options_s=10.0, registration_s=3_600))


@pytest.fixture
def world() -> EdgeWorld:
    return Asking().with_users("1001")


def asked(phone: Party) -> list[sip.RequestReceived]:
    return [e for e in phone.of(sip.RequestReceived) if e.request.method == "OPTIONS"]


def pass_time(world: EdgeWorld, phone: Party, seconds: float, status: int = 0) -> int:
    """The phone answers every OPTIONS with ``status`` (0: with nothing); how many came."""
    answered = len(asked(phone))
    before = answered
    for _ in range(int(seconds)):
        world.run(1.0, step=0.5)
        for event in asked(phone)[answered:]:
            if status:
                phone.sip.respond(event.txn, status, world.now)
        answered = len(asked(phone))
        world.settle()
    return answered - before


def binding(world: EdgeWorld) -> BindingValue:
    (raw,) = [item.value for key, item in world.store.items() if "/bindings/1001/" in key]
    return decode(raw, BindingValue)


def test_nobody_is_asked_unless_it_is_wanted():
    world = EdgeWorld().with_users("1001")
    phone = world.register("1001")
    world.run(90.0, step=1.0)
    assert not asked(phone)


@pytest.mark.parametrize("status", [200, 404, 486, 501])
def test_any_answer_is_an_answer(world, status):
    phone = world.register("1001")
    assert 4 <= pass_time(world, phone, 60, status) <= 6
    assert not binding(world).unreachable
    request = asked(phone)[0].request
    assert request.uri == f"sip:1001@{phone.host}:{phone.port}" and request.get("To") == "<sip:1001@test>"


def test_three_without_an_answer_and_one_with(world):
    phone = world.register("1001")
    pass_time(world, phone, 22)
    assert not binding(world).unreachable, "two may be lost"
    pass_time(world, phone, 20)
    since = binding(world).unreachable
    assert since and world.edge.registrar.snapshot()[0]["unreachable"] == since
    assert world.edge.registrar.binding_of("1001"), "it is still registered, and called"
    pass_time(world, phone, 12, 200)
    assert not binding(world).unreachable
    told = [n.text for n in world.notes if isinstance(n, Note) and n.text.startswith("phone ")]
    assert told == ["phone answers no OPTIONS", "phone answers again"]


def test_a_registration_is_an_answer(world):
    phone = world.register("1001")
    pass_time(world, phone, 45)
    assert binding(world).unreachable
    world.register("1001")
    assert not binding(world).unreachable


def test_a_restarted_edge_knows_who_is_unreachable(world):
    phone = world.register("1001")
    pass_time(world, phone, 45)
    world.boot()
    assert world.edge.registrar.snapshot()[0]["unreachable"]
    pass_time(world, phone, 12, 200)
    assert not binding(world).unreachable


def test_who_answers_is_rung_before_who_was_registered_later(world):
    phone = world.register("1001")
    world.phones |= {"the first": phone, "1001": Party("10.0.1.61", 6100, world.new_id)}
    world.now += 5.0
    world.register("1001")
    assert world.edge.registrar.binding_of("1001").host == "10.0.1.61"
    pass_time(world, phone, 45, 200)
    assert world.edge.registrar.binding_of("1001").host == phone.host


def test_the_acd_rings_nobody_at_a_phone_that_answers_nothing(world):
    phone = world.register("1001")
    view = View(world.keys)

    def device_ok() -> bool:
        for key, item in world.store.items():
            if "/bindings/" in key:
                view.learn(key, item, item.mod_revision)
        return view.device_ok("1001", 1_800_000_000 + world.now, 5.0)

    assert device_ok()
    pass_time(world, phone, 45)
    assert not device_ok()
    pass_time(world, phone, 12, 200)
    assert device_ok()


def test_what_a_newer_edge_wrote_of_a_phone_stays(world):
    """An older one that marks it writes it back."""
    phone = world.register("1001")
    (key,) = [key for key in world.store if "/bindings/1001/" in key]
    item = world.store[key]
    newer = {**json.loads(item.value), "instance": "urn:uuid:1"}
    world.store[key] = replace(item, value=json.dumps(newer).encode())
    world.snapshots()
    pass_time(world, phone, 45)
    assert binding(world).unreachable and json.loads(world.store[key].value)["instance"] == "urn:uuid:1"


def test_phones_of_an_edge_that_had_tls_stop_nothing(world):
    """This one has none: they are as if not registered, and all others are asked and rung."""
    world.add_user("1002")
    world.snapshots()
    world.register("1001")
    (key,) = [key for key in world.store if "/bindings/1001/" in key]
    item = world.store[key]
    value = {**json.loads(item.value), "listener": "public-tls", "transport": "tls"}
    world.store[key] = replace(item, value=json.dumps(value).encode())
    world.snapshots()
    other = world.register("1002")
    assert pass_time(world, other, 25, 200) >= 2
    assert world.edge.registrar.counts() == {"registered": 1, "unreachable": 0}
    assert world.edge.registrar.binding_of("1001") is None
