"""Another life of rtpengine: whose SRTP key is in SDP is told another (edge_srtp)."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

from ari_ha.core.machine import Unreachable
from ari_ha.core.ports.media import MediaReach
from ari_ha.machines.edge_config import EdgeConfig
from ari_ha.machines.edge_srtp import AGAIN_S, ANSWER_PATIENCE_S, AT_ONCE_MAX
from ari_ha.simulation.fake_rtpengine import FakeRtpengine
from ari_ha.sip import events as sip
from ari_ha.sip.flow import Flow
from ari_ha.sip.sdp import SUITES, SessionDescription, build_audio_sdp, usable_crypto
from tests.support.edge_world import EdgeWorld
from tests.unit.test_edge_trunks import invites, served

SUITE = SUITES[0]
THEIRS = "inline:" + "T" * 40
INTERFACES = {"public": "10.0.9.9", "public-2": "10.0.9.9", "core": "10.0.9.10"}


def secure(tag: int = 3, direction: str = "sendrecv") -> str:
    return build_audio_sdp(7, 1, "10.0.1.50", 40_000, direction=direction, crypto=f"{tag} {SUITE} {THEIRS}")


def ours(text: str) -> tuple[int, str, int, str]:
    """Tag, key, port and direction of what we say of ourselves."""
    session = SessionDescription.parse(text)
    audio = session.audio()
    crypto = usable_crypto(audio) if audio else None
    assert audio and crypto
    return crypto.tag, crypto.key, audio.port, session.media_direction(audio)


class World(EdgeWorld):
    """With an rtpengine that has lives, and a carrier with SRTP."""

    def __init__(self, spare: tuple[str, ...] = ("public-2",)) -> None:
        self.lives, self.spare = 1, spare
        self.rtpengine = FakeRtpengine(INTERFACES, "1")
        super().__init__()
        self.carrier.changed = lambda offer: secure()  # type: ignore[method-assign]
        self.post(MediaReach(reachable=True, started="1"))

    def config(self) -> EdgeConfig:
        return replace(super().config(), spare_public_interfaces=self.spare)

    def relay(self, command: Any) -> Any:
        self.ng.append(command)
        if self.ng_refuse(command):
            return Unreachable("test")
        return self.rtpengine.command(command.command, dict(command.body))

    def another_life(self, told: bool = True) -> None:
        """rtpengine is started again with the calls it had written down."""
        self.lives += 1
        calls, self.rtpengine = self.rtpengine.calls, FakeRtpengine(INTERFACES, str(self.lives))
        self.rtpengine.calls = copy.deepcopy(calls)
        self.rtpengine._next_port = 31_000
        if told:
            self.post(MediaReach(reachable=False))
            self.post(MediaReach(reachable=True, started=str(self.lives)))
            self.settle()

    def call(self, key: str = "k", offer: str = "") -> tuple[Any, tuple[int, str, int, str]]:
        before = set(self.edge.calls.by_id)
        self.carrier.sip.invite(key, flow=self.carrier_flow(), target="sip:6000@edge", from_="<sip:1@x>",
                                to="<sip:6000@x>", sdp=offer or secure(), now=self.now)  # fmt: skip
        self.settle()
        self.run(0.1)
        (ident,) = set(self.edge.calls.by_id) - before
        answered = self.carrier.of(sip.LegAnswered)
        return self.edge.calls.by_id[ident], ours(answered[-1].sdp) if answered else (0, "", 0, "")

    @property
    def asked(self) -> list[tuple[int, str, int, str]]:
        return [ours(event.sdp) for event in self.carrier.of(sip.ReinviteReceived)]


def test_another_life_is_another_key_and_another_port() -> None:
    world = World()
    call, first = world.call()
    world.another_life()
    (asked,) = world.asked
    assert asked[0] == first[0] == 3, "the tag of its own line"
    assert asked[1] != first[1] and asked[2] != first[2]
    tag = world.rtpengine.calls[call.call].tags["c"]
    assert tag.crypto == (2, SUITE, asked[1]) and tag.port == asked[2]
    assert call.legs["c"].key_line == asked[1]
    world.run(3.0)
    assert len(world.asked) == 1 and not any("life/" in ident for ident in world.rtpengine.calls)
    world.another_life()
    assert len(world.asked) == 2 and world.asked[1][1] not in (first[1], asked[1])
    assert world.asked[1][2] == asked[2], "no interface is left"


def test_without_a_spare_interface_the_port_stays() -> None:
    world = World(spare=())
    _, first = world.call()
    world.another_life()
    assert world.asked[0][1] != first[1] and world.asked[0][2] == first[2]


def test_another_process_of_the_edge_asks_nobody() -> None:
    world = World()
    call, _ = world.call()
    world.boot()
    world.run(2.0)
    assert not world.asked and world.edge.calls.by_id[call.call].legs["c"].state == "up"


def test_a_takeover_is_another_life() -> None:
    world = World()
    call, first = world.call()
    world.another_life(told=False)
    world.boot()
    world.run(0.2)
    (asked,) = world.asked
    assert asked[1] != first[1]
    world.run(2.0)
    world.boot()
    world.run(2.0)
    assert len(world.asked) == 1 and world.edge.calls.by_id[call.call].legs["c"].key_line == asked[1]


def test_a_record_that_names_no_life_is_of_another() -> None:
    world = World()
    world.call()
    for key, item in world.store.items():
        world.store[key] = replace(item, value=item.value.replace(b'"relay_life"', b'"nothing"'))
    world.boot()
    world.run(0.2)
    assert len(world.asked) == 1


def test_the_edge_dies_before_the_phone_has_answered() -> None:
    world = World()
    world.call()
    world.carrier.takes_changes = False
    world.another_life()
    assert len(world.asked) == 1
    for event in world.carrier.of(sip.ReinviteReceived):
        world.carrier.sip.reject_reinvite(event.leg, 500, world.now)
    world.carrier.takes_changes = True
    world.boot()
    world.run(AGAIN_S + 0.3)
    assert len(world.asked) == 2 and world.asked[0][1:3] == world.asked[1][1:3], "the same key, told again"


def test_who_refuses_keeps_his_call_and_is_told_with_his_next_change() -> None:
    world = World()
    call, first = world.call()
    world.carrier.takes_changes = False
    world.another_life()
    world.carrier.sip.reject_reinvite("k", 488, world.now)
    world.settle()
    world.run(70.0, step=0.5)
    assert len(world.asked) == 1 and call.legs["c"].state == "up"
    world.carrier.sip.reinvite("k", secure(direction="sendonly"), world.now)
    world.settle()
    world.run(1.2)
    answer = ours(world.carrier.of(sip.ReinviteAnswered)[-1].sdp)
    assert answer[1:] == (*world.asked[0][1:3], "recvonly") and answer[1] != first[1]


@pytest.mark.parametrize("status", [491, 500])
def test_who_says_not_now_is_asked_again(status: int) -> None:
    world = World()
    call, _ = world.call()
    world.carrier.takes_changes = False
    world.another_life()
    world.carrier.sip.reject_reinvite("k", status, world.now)
    world.carrier.takes_changes = True
    world.settle()
    world.run(5.0)
    assert len(world.asked) == 2 and world.asked[0][1] == world.asked[1][1]
    assert call.legs["c"].key_line == world.asked[1][1]


def test_who_holds_goes_on_holding() -> None:
    world = World()
    world.call()
    world.carrier.sip.reinvite("k", secure(direction="sendonly"), world.now)
    world.settle()
    world.run(1.2)
    world.another_life()
    assert world.asked[-1][3] == "recvonly"


@pytest.mark.parametrize(("said", "kept"), [("sendrecv", "sendonly"), ("inactive", "inactive")])
def test_who_holds_by_naming_no_address_is_where_he_was(said: str, kept: str) -> None:
    """For rtpengine, which otherwise forgets how often his numbers have gone round."""
    world = World()
    call, _ = world.call()
    tag = world.rtpengine.calls[call.call].tags["c"]
    assert (tag.remote, tag.direction) == (("10.0.1.50", 40_000), "sendrecv")
    world.carrier.sip.reinvite("k", secure(direction=said).replace("10.0.1.50", "0.0.0.0"), world.now)
    world.settle()
    world.run(1.2)
    assert call.legs["c"].held and (tag.remote, tag.direction) == (("10.0.1.50", 40_000), kept)
    world.carrier.sip.reinvite("k", secure(), world.now)
    world.settle()
    world.run(1.2)
    assert not call.legs["c"].held
    assert (tag.remote, tag.direction) == (("10.0.1.50", 40_000), "sendrecv")


def test_a_phone_that_rings_and_a_caller_who_waits_are_not_asked() -> None:
    """Nothing was encrypted for them yet."""
    world = World()
    for node in world.nodes.values():
        node.auto_answer_new = False
    call, _ = world.call()
    key = call.legs["c"].key_line
    world.another_life()
    node = world.nodes[call.owner.name]
    (invite,) = invites(node)
    node.sip.answer(invite.leg, node.sdp(), world.now)
    world.settle()
    world.run(2.0)
    assert call.legs["c"].state == "up" and not world.asked and call.legs["c"].key_line == key


def test_who_heard_something_before_the_answer_is_asked_after_it() -> None:
    world = World()
    for node in world.nodes.values():
        node.auto_answer_new = False
    call, _ = world.call()
    call.legs["c"].progress = True
    world.another_life()
    assert not world.asked
    node = world.nodes[call.owner.name]
    (invite,) = invites(node)
    node.sip.answer(invite.leg, node.sdp(), world.now)
    world.settle()
    world.run(2.0)
    assert len(world.asked) == 1


def test_a_phone_on_tls_keeps_its_key_until_it_has_come_back() -> None:
    world = World().with_users("1001")
    phone = world.register("1001")
    phone.changed = lambda offer: secure()  # type: ignore[method-assign]
    (held,) = world.edge.registrar._bindings["1001"].values()
    held.value.transport = "tls"
    call, node = served(world)
    world.dial(node, call, "a1", "1001")
    phone.sip.answer(invites(phone)[0].leg, secure(tag=1), world.now)
    world.settle()
    leg, sips = call.legs["a1"], world.edge.context.sip
    here = sips.leg_flow(leg.key)
    sips.move_flow(leg.key, replace(here, transport="tls", listener="public-udp"))
    key = leg.key_line
    world.another_life()
    world.run(3.0)
    assert not phone.of(sip.ReinviteReceived) and leg.key_line == key
    world.edge.registrar.on_flow("1001", Flow("public-udp", "tls", here.host, here.port, "two"))
    world.run(0.1)
    assert len(phone.of(sip.ReinviteReceived)) == 1 and leg.key_line != key


def test_rtpengine_that_does_not_answer_is_asked_again() -> None:
    world = World()
    _, first = world.call()
    away = [3]

    def refuse(command: Any) -> bool:
        away[0] -= command.command == "publish"
        return command.command == "publish" and away[0] >= 0

    world.ng_refuse = refuse
    world.another_life()
    world.run(5.0)
    assert [one[1] for one in world.asked][-1] != first[1]
    tag = next(iter(world.rtpengine.calls.values())).tags["c"]
    assert tag.crypto and tag.crypto[2] == world.asked[-1][1], "what counts is what rtpengine says"


def test_so_many_at_once() -> None:
    world, more = World(), 7
    for number in range(AT_ONCE_MAX + more):
        world.call(f"k{number}")
    world.carrier.takes_changes = False
    world.another_life()
    assert len(world.asked) == AT_ONCE_MAX
    world.run(ANSWER_PATIENCE_S + 0.2)
    assert len(world.asked) == AT_ONCE_MAX + more, "who does not answer makes nobody wait for ever"
    world.run(AGAIN_S)
    assert all(call.legs["c"].state == "up" for call in world.edge.calls.by_id.values())


def test_plain_audio_is_left_alone() -> None:
    world = World()
    key, _ = world.call_in()
    world.another_life()
    world.run(1.0)
    assert key and not world.carrier.of(sip.ReinviteReceived)
    assert not any(str(command.body.get("call-id", "")).startswith("life/") for command in world.ng)
