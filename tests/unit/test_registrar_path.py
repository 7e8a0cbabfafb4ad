"""REGISTER through a proxy (RFC 3327): the way back is kept and used."""

from __future__ import annotations

from typing import Any

import pytest

from ari_ha.sip import events as sip
from ari_ha.sip.flow import Flow
from ari_ha.wire.keyspace import BindingValue, decode
from tests.support.edge_world import EDGE_PUBLIC, EdgeWorld, Party, digest_header

NEAR, FAR = "<sip:10.0.1.60:6001;lr>", "<sip:edge.branch.example;lr;ob>"
PHONE = "sip:1001@192.168.1.20:5060"


def register(world: EdgeWorld, path: list[str], require: str = "") -> tuple[Party, Any]:
    """A phone behind a proxy registers; the proxy, and the last answer."""
    proxy = world.phones.setdefault("1001", Party("10.0.1.60", 6001, world.new_id))
    arguments: dict[str, Any] = {
        "flow": Flow("l", "udp", *EDGE_PUBLIC), "target": "sip:test", "from_": "<sip:1001@test>",
        "to": "<sip:1001@test>", "now": world.now,
    }  # fmt: skip
    headers = [("Contact", f"<{PHONE}>"), ("Supported", "path"), *(("Path", hop) for hop in path)]
    if require:
        headers.append(("Require", require))
    proxy.sip.request(world.new_id(), "REGISTER", headers=headers, **arguments)
    world.settle()
    reply = proxy.of(sip.ResponseReceived)[-1]
    if reply.status == 401:
        proof = digest_header(reply, "1001", "pw", "REGISTER", "sip:test")
        proxy.sip.request(
            world.new_id(), "REGISTER", headers=[*headers, ("Authorization", proof)], **arguments
        )
        world.settle()
    return proxy, proxy.of(sip.ResponseReceived)[-1]


def invite(world: EdgeWorld, proxy: Party) -> Any:
    _, call = world.call_in()
    world.dial(world.nodes[call.owner.name], call, "a1", "1001")
    return proxy.of(sip.InviteReceived)[-1].request


@pytest.mark.parametrize("path", [[NEAR, FAR], [f"{NEAR}, {FAR}"]])
def test_the_way_is_kept_and_used(world, path):
    proxy, answer = register(world, path, require="path")
    assert answer.status == 200
    assert [value for name, value in answer.headers if name == "Path"] == [NEAR, FAR]
    (stored,) = [decode(i.value, BindingValue) for k, i in world.store.items() if "/bindings/1001/" in k]
    assert stored.path == [NEAR, FAR] and stored.contact == PHONE
    request = invite(world, proxy)
    assert request.uri == PHONE and request.values("Route") == [NEAR, FAR]


def test_a_restarted_edge_still_knows_the_way(world):
    proxy, _ = register(world, [NEAR])
    world.boot()
    assert invite(world, proxy).values("Route") == [NEAR]


def test_the_caller_gives_up(world):
    proxy, _ = register(world, [NEAR])
    caller, call = world.call_in()
    world.dial(world.nodes[call.owner.name], call, "a1", "1001")
    event = proxy.of(sip.InviteReceived)[-1]
    proxy.sip.ring(event.leg, world.now)
    world.settle()
    world.carrier.sip.hangup(caller, world.now)
    world.settle()
    assert proxy.of(sip.LegCancelled)
    cancels = [
        data for _, _, host, data in world.sip_log if data.startswith(b"CANCEL") and host == "10.0.1.60"
    ]
    assert f"Route: {NEAR}\r\n".encode() in cancels[-1]


def test_without_a_path_none_is_used(world):
    register(world, [NEAR])
    world.now += 1
    proxy, answer = register(world, [])
    assert answer.status == 200 and not [n for n, _ in answer.headers if n == "Path"]
    assert not invite(world, proxy).values("Route")


@pytest.mark.parametrize("path", [["nonsense<"], [NEAR] * 9, ["<tel:+49>"]])
def test_a_path_that_is_none_is_refused(world, path):
    _, answer = register(world, path)
    assert answer.status == 400 and world.edge.registrar.binding_of("1001") is None
