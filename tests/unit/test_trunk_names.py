"""Carriers behind names: DNS as data, several places of one carrier, names that lead nowhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ari_ha.core.machine import LANE_STOPPED, Effect, Outcome, OutcomeOf, Refused, Unknown, Unreachable
from ari_ha.core.machine import Done as Answered
from ari_ha.core.ports.names import Found, LookUp, Service
from ari_ha.machines.edge_config import EdgeConfig
from ari_ha.machines.names import Place
from ari_ha.machines.trunk_targets import Target, pick
from ari_ha.sip import events as sip
from ari_ha.sip.flow import Flow
from ari_ha.wire.sip_values import TrunkValue
from tests.support.edge_world import EdgeWorld, Party
from tests.unit.test_edge_trunks import A, B, dial, invites, put

NAME = "sip.carrier.example"
SRV = f"_sip._udp.{NAME}"
C = "10.0.1.73"


class Dns(EdgeWorld):
    """A world with name servers."""

    def __init__(self) -> None:
        self.zone: dict[tuple[str, str], Outcome] = {}
        self.asked: list[tuple[str, str]] = []
        self.held: list[LookUp] | None = None
        """Questions the test answers itself"""
        super().__init__()

    def config(self) -> EdgeConfig:
        return replace(super().config(), public_tls_port=5061)

    def perform(self, effect: Effect) -> None:
        if not isinstance(effect, LookUp):
            super().perform(effect)
            return
        key = (effect.kind, effect.name)
        self.asked.append(key)
        if self.held is not None:
            self.held.append(effect)
            return
        outcome = self.zone.get(key, Refused(f"{effect.name} does not exist"))
        self.post(OutcomeOf(effect=effect, outcome=outcome))

    def host(self, name: str, *addresses: str, ttl_s: float = 60.0) -> None:
        self.zone["A", name] = Answered(Found(ttl_s, addresses=addresses))

    def service(self, *records: tuple[int, int, int, str], ttl_s: float = 60.0) -> None:
        self.zone["SRV", SRV] = Answered(Found(ttl_s, services=tuple(Service(*r) for r in records)))


@pytest.fixture
def world() -> Dns:
    return Dns()


def trunk(world: EdgeWorld, **fields: Any) -> None:
    values = {"prefixes": ["+"], "options_interval_s": 0, "address": NAME, **fields}
    put(world, world.keys.trunk("named"), TrunkValue(trunk="named", **values))


def party(world: EdgeWorld, host: str, port: int = 5060) -> Party:
    return world.phones.setdefault(f"{host}:{port}", Party(host, port, world.new_id))


def view(world: EdgeWorld) -> dict[str, Any]:
    return next(row for row in world.edge.trunks.view() if row["trunk"] == "named")


def refuse(world: EdgeWorld, far: Party, status: int) -> None:
    far.sip.reject(invites(far)[-1].leg, status, world.now)
    world.settle()


def test_a_name_without_a_port_is_a_service(world):
    world.service((10, 1, 5080, "a.carrier.example"))
    world.host("a.carrier.example", A)
    far = party(world, A, 5080)
    trunk(world)
    assert world.asked == [("SRV", SRV), ("A", "a.carrier.example")]
    dial(world)
    (invite,) = invites(far)
    assert invite.request.uri == f"sip:+4930123@{NAME}", "the name stays the name (RFC 3263 §4)"
    assert invite.request.get("From").endswith(f"@{NAME}>;tag=" + invite.request.from_tag)


@pytest.mark.parametrize("records", [[], [(0, 0, 0, "")]])
def test_without_such_a_service(world, records):
    """No SRV record: the name's own address. The record that says no: nothing (RFC 2782)."""
    if records:
        world.service(*records)
    world.host(NAME, A)
    trunk(world)
    assert view(world)["at"] == ({} if records else {f"{A}:5060": "unknown"})
    assert ("offers no" in view(world)["why"]) is bool(records)


def test_a_name_with_a_port_is_a_host(world):
    world.host(NAME, A)
    far = party(world, A, 5070)
    trunk(world, address=f"{NAME}:5070")
    assert world.asked == [("A", NAME)]
    dial(world)
    assert invites(far)[0].request.uri == f"sip:+4930123@{NAME}:5070"


def test_tls_asks_for_its_own_service_and_shows_the_name(world):
    world.zone["SRV", f"_sips._tcp.{NAME}"] = Answered(
        Found(60.0, services=(Service(0, 0, 5061, "tls.carrier.example"),))
    )
    world.host("tls.carrier.example", A)
    trunk(world, transport="tls")
    assert world.edge.trunks.name_at(Flow("public-tls", "tls", A, 5061)) == NAME


def test_a_place_that_fails_gives_the_call_to_the_next(world):
    world.service((1, 1, 5060, "a"), (2, 1, 5060, "b"), (3, 1, 5060, "c"))
    for name, host in (("a", A), ("b", B), ("c", C)):
        world.host(name, host)
    first, second, third = party(world, A), party(world, B), party(world, C)
    trunk(world)
    call, _, _ = dial(world)
    assert invites(first) and not invites(second)
    refuse(world, first, 503)
    assert invites(second) and not invites(third)
    second.sip.answer(invites(second)[-1].leg, second.sdp(), world.now)
    world.settle()
    assert call.legs["t1"].state == "up" and call.legs["t1"].tried == ["named"]
    dial(world, leg="t2")
    assert len(invites(second)) == 2 and len(invites(first)) == 1, "the first rests"


def test_when_every_place_has_failed_it_is_the_next_trunk(world):
    world.service((1, 1, 5060, "a"), (2, 1, 5060, "b"))
    world.host("a", A)
    world.host("b", B)
    first, second, other = party(world, A), party(world, B), party(world, C)
    trunk(world)
    put(world, world.keys.trunk("other"), TrunkValue(
        trunk="other", address=f"{C}:5060", prefixes=["+"], priority=900, options_interval_s=0))  # fmt: skip
    dial(world)
    refuse(world, first, 503)
    refuse(world, second, 500)
    assert invites(other) and view(world)["resting"]


def test_a_silent_place(world):
    world.service((1, 1, 5060, "a"), (2, 1, 5060, "b"))
    world.host("a", A)
    world.host("b", B)
    second = party(world, B)
    trunk(world)
    dial(world)
    world.run(4.5)
    assert invites(second)


def test_a_name_that_leads_nowhere_takes_the_trunk_down(world):
    world.zone["SRV", SRV] = Unreachable("no name server answers")
    trunk(world)
    assert (view(world)["reach"], view(world)["why"]) == ("down", "no name server answers")
    call, _, key = dial(world)
    assert "t1" not in call.legs
    world.service((1, 1, 5060, "a"))
    world.host("a", A)
    world.run(2.5)
    assert view(world)["reach"] == "unknown" and view(world)["at"] == {f"{A}:5060": "unknown"}


@pytest.mark.parametrize(
    ("outcome", "stays"),
    [(Unreachable("away"), True), (Unknown("too slow"), True), (Refused("does not exist"), False)],
)
def test_when_the_answer_runs_out(world, outcome, stays):
    world.host(NAME, A, ttl_s=30.0)
    trunk(world, address=f"{NAME}:5060")
    before = len(world.asked)
    world.run(29.0, step=1.0)
    assert len(world.asked) == before
    world.zone["A", NAME] = outcome
    world.run(3.0, step=1.0)
    assert len(world.asked) > before
    assert bool(view(world)["at"]) is stays
    if stays:
        world.run(3_700.0, step=10.0)
        assert not view(world)["at"], "not for ever"


def test_addresses_that_change_are_followed(world):
    world.host(NAME, A, ttl_s=30.0)
    trunk(world, address=f"{NAME}:5060", options_interval_s=10)
    world.host(NAME, B, ttl_s=30.0)
    world.run(31.0, step=1.0)
    assert list(view(world)["at"]) == [f"{B}:5060"]
    options = [e for e in party(world, B).of(sip.RequestReceived)]
    assert not options, "the party was not there yet"
    world.run(11.0, step=1.0)
    assert [e.request.method for e in party(world, B).of(sip.RequestReceived)][:1] == ["OPTIONS"]


def test_who_calls_is_known_by_his_name(world):
    world.host("in.carrier.example", A, B)
    trunk(world, address="", hosts=["in.carrier.example", C])
    trunks = world.edge.trunks
    assert [trunks.of_host(host) for host in (A, B, C, "10.0.1.99")] == ["named"] * 3 + [None]


def test_one_place_that_answers_keeps_the_trunk_up(world):
    world.service((1, 1, 5060, "a"), (2, 1, 5060, "b"))
    world.host("a", A)
    world.host("b", B)
    second = party(world, B)
    trunk(world, options_interval_s=5)
    answered = 0
    for _ in range(20):
        world.run(1.0, step=0.5)
        asked = second.of(sip.RequestReceived)
        for event in asked[answered:]:
            second.sip.respond(event.txn, 200, world.now)
        answered = len(asked)
        world.settle()
    assert view(world)["reach"] == "up" and view(world)["at"] == {f"{A}:5060": "down", f"{B}:5060": "up"}
    dial(world)
    assert invites(second)


def test_a_registration_goes_to_the_next_place_and_calls_follow_it(world):
    world.service((1, 1, 5060, "a"), (2, 1, 5060, "b"))
    world.host("a", A)
    world.host("b", B)
    first, second = party(world, A), party(world, B)
    trunk(world, register=True, user="acme")
    (asked,) = first.of(sip.RequestReceived)
    first.sip.respond(asked.txn, 503, world.now)
    world.settle()
    world.run(6.0)
    (asked,) = second.of(sip.RequestReceived)
    assert asked.request.uri == f"sip:{NAME}"
    second.sip.respond(asked.txn, 200, world.now, headers=(("Expires", "300"),))
    world.settle()
    assert view(world)["registration"] == "in"
    world.run(20.0, step=1.0)
    dial(world)
    assert invites(second) and not invites(first)


def test_a_name_nobody_uses_any_more_is_not_asked(world):
    world.host(NAME, A, ttl_s=10.0)
    trunk(world, address=f"{NAME}:5060")
    trunk(world, address=f"{B}:5060")
    before = len(world.asked)
    world.run(60.0, step=1.0)
    assert len(world.asked) == before and list(view(world)["at"]) == [f"{B}:5060"]


@pytest.mark.parametrize(("drawn", "chosen"), [(0.0, A), (0.24, A), (0.26, B), (0.99, B)])
def test_weights_share_the_calls(drawn, chosen):
    targets = [Target(Place(A, 5060, 1, 25)), Target(Place(B, 5060, 1, 75)), Target(Place(C, 5060, 2, 900))]
    assert pick(targets, (), "", 0.0, lambda: drawn).place.host == chosen


@pytest.mark.parametrize(("drawn", "chosen"), [(0.0, A), (0.6, B)])
def test_without_weights_chance_decides(drawn, chosen):
    targets = [Target(Place(A, 5060)), Target(Place(B, 5060))]
    assert pick(targets, (), "", 0.0, lambda: drawn).place.host == chosen
    assert pick(targets, {f"{A}:5060", f"{B}:5060"}, "", 0.0, lambda: drawn) is None


def test_two_questions_about_one_host_do_not_answer_each_other(world):
    """No name server answers; a lane that stops would have the second one count as "no such host"."""
    world.host(NAME, A, ttl_s=10.0)
    trunk(world, address=f"{NAME}:5060", hosts=[NAME])
    world.zone["A", NAME] = Unreachable("no name server answers")
    world.held = []
    world.run(11.0)
    stopped: set[str | None] = set()
    for effect in world.held:
        outcome = Refused(LANE_STOPPED) if effect.lane in stopped else world.zone["A", NAME]
        stopped.add(effect.lane)
        world.post(OutcomeOf(effect=effect, outcome=outcome))
    assert len(world.held) == 2
    assert view(world)["at"] == {f"{A}:5060": "unknown"}, "kept while nobody can be asked"
