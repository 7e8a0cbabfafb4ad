"""Requests within calls at the edge: carriers by their dialog, phones by the flow they registered over."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ari_ha.core.ports.sip import SipBytes
from ari_ha.core.ports.store import KeyValue
from ari_ha.machines.next_hops import NAMES_MAX_COUNT, UNUSED_MAX_S
from ari_ha.sip import events as sip
from ari_ha.sip.flow import Flow
from ari_ha.sip.message import Request, parse_message
from ari_ha.sip.nexthop import Hop
from ari_ha.wire.sip_values import TrunkValue
from tests.support.edge_world import CARRIER, EdgeWorld, Party
from tests.unit.test_edge_machine import talking
from tests.unit.test_edge_trunks import A, carrier, dial, invites, put
from tests.unit.test_trunk_names import Dns

BEHIND = ("10.0.1.90", 5070)
"""Where the cluster takes requests, which calls from CARRIER"""


def cluster(
    world: EdgeWorld, contact: str = f"{BEHIND[0]}:{BEHIND[1]}", far: Party | None = None
) -> list[tuple[str, str, int]]:
    """The carrier names another place than it calls from; what was sent where, method, host and port."""
    party = far or world.carrier
    own, named = f"<sip:{party.host}:{party.port}>".encode(), f"<sip:{contact}>".encode()
    sent: list[tuple[str, str, int]] = []
    deliver, arrive = world.deliver, world.arrive

    def delivered(data: bytes, flow: Flow) -> None:
        message = parse_message(data)
        if isinstance(message, Request) and not flow.listener.startswith("node-"):
            sent.append((message.method, flow.host, flow.port))
        if (flow.host, flow.port) == BEHIND:
            flow = Flow(flow.listener, flow.transport, party.host, party.port)
        deliver(data, flow)

    def arrived(who: Party, data: bytes, flow: Flow) -> None:
        arrive(who, data.replace(own, named) if who is party else data, flow)

    world.deliver, world.arrive = delivered, arrived  # type: ignore[method-assign]
    return sent


def hung_up(world: EdgeWorld, call: Any, leg: str = "c") -> None:
    world.edge.calls.end_leg(call, call.legs[leg], "edge", "16")
    world.post(SipBytes(data=b"\r\n\r\n", flow=Flow("public-udp", "udp", "10.0.1.99", 5060)))
    world.settle()


def set_trunk(world: EdgeWorld, **fields: Any) -> None:
    trunk = TrunkValue(trunk="carrier1", hosts=[CARRIER[0]], **fields)
    put(world, world.keys.trunk("carrier1"), trunk)


@pytest.mark.parametrize(("rule", "place"), [("route", BEHIND), ("source", CARRIER)])
def test_a_carriers_call_is_ended_where_its_contact_leads(rule: str, place: tuple[str, int]) -> None:
    world = EdgeWorld()
    sent = cluster(world)
    set_trunk(world, next_hop=rule)
    key, call = world.call_in()
    world.run(0.3)
    hung_up(world, call)
    assert [item for item in sent if item[0] == "BYE"] == [("BYE", *place)]
    assert [e.leg for e in world.carrier.of(sip.LegEnded)] == [key]


@pytest.mark.parametrize(("rule", "place"), [("route", BEHIND), ("source", (A, 5060))])
def test_a_carriers_answer_is_acknowledged_and_ended_there(rule: str, place: tuple[str, int]) -> None:
    world = EdgeWorld()
    far = carrier(world, "far", A, next_hop=rule)
    sent = cluster(world, far=far)
    call, _, _ = dial(world)
    (invite,) = invites(far)
    far.sip.answer(invite.leg, far.sdp(), world.now)
    world.settle()
    assert call.legs["t1"].state == "up"
    hung_up(world, call, "t1")
    assert [item for item in sent if item[0] in ("ACK", "BYE")] == [("ACK", *place), ("BYE", *place)]


def test_a_takeover_does_not_lose_the_way() -> None:
    world = EdgeWorld().with_users("1001")
    sent = cluster(world)
    _, call, *_ = talking(world)
    world.run(1.0)
    world.boot()
    again = world.edge.calls.by_id[call.call]
    hung_up(world, again)
    assert [item for item in sent if item[0] == "BYE" and item[1] != "10.0.1.60"] == [("BYE", *BEHIND)]


def test_after_an_older_edge_the_trunks_setting_says_how() -> None:
    for rule, place in (("route", BEHIND), ("source", CARRIER)):
        world = EdgeWorld().with_users("1001")
        sent = cluster(world)
        set_trunk(world, next_hop=rule)
        _, call, *_ = talking(world)
        world.run(1.0)
        key = world.keys.dialogs("pair1", call.call)
        value = msgspec.json.decode(world.store[key].value)
        for leg in value["legs"].values():
            del leg["sip"]["next_hop"], leg["sip"]["silent"]
        world.store[key] = KeyValue(key, msgspec.json.encode(value), world.store[key].mod_revision)
        world.boot()
        hung_up(world, world.edge.calls.by_id[call.call])
        assert [item for item in sent if item[0] == "BYE" and item[1] != "10.0.1.60"] == [("BYE", *place)]


def test_a_phone_is_found_by_the_flow_it_registered_over() -> None:
    """Its Contact names where it believes to be; only the way it came is open."""
    world = EdgeWorld().with_users("1001")
    phone = world.register("1001")
    assert (
        world.edge.registrar.next_hop("1001", Flow("public-udp", "udp", phone.host, phone.port)) == "source"
    )
    assert world.edge.registrar.next_hop("1001", Flow("public-udp", "udp", phone.host, 9)) == "route"
    assert world.edge.registrar.next_hop("1002", Flow("public-udp", "udp", phone.host, phone.port)) == "route"


# --- names in dialogs


def test_a_contacts_name_is_looked_up_and_kept_known_while_a_call_has_it() -> None:
    world = Dns()
    world.host("sbc.carrier.example", BEHIND[0], ttl_s=60)
    sent = cluster(world, "sbc.carrier.example:5070")
    _, call = world.call_in()
    assert world.asked == [("A", "sbc.carrier.example")]
    world.run(400, step=0.5)
    assert len(world.asked) > 3, "asked again as its time runs out"
    hung_up(world, call)
    assert [item for item in sent if item[0] == "BYE"] == [("BYE", *BEHIND)]
    world.run(UNUSED_MAX_S + 130, step=0.5)
    known = len(world.asked)
    world.run(200, step=0.5)
    assert len(world.asked) == known, "and forgotten when no call has it"


def test_a_name_without_a_port_is_a_service() -> None:
    world = Dns()
    world.service((10, 0, 5072, "b.example"), (5, 0, 5070, "a.example"))
    world.host("a.example", BEHIND[0])
    world.host("b.example", "10.0.1.91")
    sent = cluster(world, "sip.carrier.example")
    _, call = world.call_in()
    hung_up(world, call)
    assert [item for item in sent if item[0] == "BYE"] == [("BYE", *BEHIND)]


def test_names_nobody_answers_for_cost_nothing() -> None:
    world = Dns()
    world.held = []
    sent = cluster(world, "sbc.carrier.example:5070")
    _, call = world.call_in()
    world.run(0.3)
    assert world.held
    hung_up(world, call)
    assert [item for item in sent if item[0] == "BYE"] == [("BYE", *CARRIER)], "nothing waits for DNS"


def test_names_are_limited() -> None:
    world = Dns()
    for number in range(NAMES_MAX_COUNT + 50):
        world.edge.next_hops.places(Hop(f"h{number}.example", 5060, "udp"))
    world.post(SipBytes(data=b"\r\n\r\n", flow=Flow("public-udp", "udp", "10.0.1.99", 5060)))
    assert len(world.asked) == NAMES_MAX_COUNT


def test_a_stranger_makes_nobody_look_up_a_name() -> None:
    world = Dns()
    stranger = Party("10.0.1.66", 5060, world.new_id)
    world.phones["stranger"] = stranger
    stranger.sip.invite(
        "s", flow=world.carrier_flow(), target="sip:6000@edge", from_="<sip:x@y>", to="<sip:6000@edge>",
        sdp=stranger.sdp(), headers=(("Contact", "<sip:x@evil.example>"),), now=world.now,
    )  # fmt: skip
    world.settle()
    assert not world.asked
