"""Browsers at the edge: ICE and DTLS-SRTP towards them, plain RTP behind, and what another life of rtpengine
means for them."""

from __future__ import annotations

from typing import Any

import pytest

from ari_ha.core.machine import Done
from ari_ha.core.ports.media import MediaReach
from ari_ha.machines.edge_audio import DTLS, AudioSide, CodecRefused, narrowed
from ari_ha.sip import events as sip
from ari_ha.sip.sdp import SessionDescription, build_audio_sdp
from ari_ha.sip.web_sdp import PROTO, secured
from tests.support.edge_world import EdgeWorld
from tests.unit.test_edge_srtp import call_in
from tests.unit.test_edge_trunks import invites, served

PRINT = "sha-256 " + ":".join(["AB"] * 32)


class WebWorld(EdgeWorld):
    """An rtpengine that speaks ICE and DTLS. Its next life has other words for both."""

    life = 1

    def boot(self) -> None:
        self.sessions: dict[str, str] = {}
        super().boot()

    def relay(self, command: Any) -> Any:
        outcome = super().relay(command)
        tag = command.body.get("from-tag")
        if command.command == "publish" and command.body["ICE"] == "remove":
            self.sessions[tag] = self.sessions.get(tag, "") + "x"
        if (
            isinstance(outcome, Done)
            and command.command == "create"
            and command.body.get("transport-protocol") == PROTO
        ):
            port = self.tag_ports[command.body["call-id"], command.body["from-tag"]]
            session = f"ours{self.life}{self.sessions.get(tag, '')}"
            lines = [
                "setup:actpass", f"fingerprint:{PRINT[:-2]}0{self.life}", f"ice-ufrag:{session}",
                "ice-pwd:" + "o" * 24, f"candidate:x 1 UDP 2130706431 10.0.9.9 {port} typ host",
            ]  # fmt: skip
            outcome.value["sdp"] = secured(build_audio_sdp(1, 1, "10.0.9.9", port), lines)
        return outcome

    def another_life(self) -> None:
        """rtpengine died and has read its calls back."""
        self.post(MediaReach(reachable=False))
        self.life += 1
        self.post(MediaReach(reachable=True, started=str(self.life)))
        self.run(0.3)

    def taught(self, tag: str = "c") -> list[str]:
        """What rtpengine was told of the far end, oldest first."""
        return [c.body["sdp"] for c in self.ng if c.command == "publish" and c.body["from-tag"] == tag]


def web(ufrag: str = "them", setup: str = "actpass", direction: str = "sendrecv", more: str = "") -> str:
    """A browser's description; it would rather speak Opus, and has a camera."""
    lines = [
        "v=0", "o=- 77 2 IN IP4 127.0.0.1", "s=-", "t=0 0", "a=group:BUNDLE 0 1",
        f"m=audio 9 {PROTO} 111 0 8 126", "c=IN IP4 0.0.0.0", f"a=ice-ufrag:{ufrag}", "a=ice-pwd:" + "p" * 24,
        f"a=fingerprint:{PRINT}", f"a=setup:{setup}", "a=mid:0", "a=rtcp-mux",
        "a=candidate:1 1 udp 2122260223 10.0.1.50 40000 typ host generation 0",
        "a=candidate:2 1 udp 2122260222 0b1c.local 40002 typ host",
        "a=candidate:3 1 tcp 1518280447 10.0.1.50 9 typ host tcptype active",
        "a=rtpmap:111 opus/48000/2", "a=rtpmap:126 telephone-event/8000", f"a={direction}",
        f"m=video 9 {PROTO} 96", "a=mid:1",
    ]  # fmt: skip
    return "\r\n".join(lines) + "\r\n" + more


def said(text: str, name: str) -> str:
    audio = SessionDescription.parse(text).audio()
    assert audio is not None
    return next(iter(audio.attributes(name)), "")


def test_an_offer_is_answered_in_kind_and_the_node_hears_plain_rtp() -> None:
    world = WebWorld()
    call_in(world, web())
    (answered,) = world.carrier.of(sip.LegAnswered)
    audio = SessionDescription.parse(answered.sdp).audio()
    assert audio and (audio.proto, audio.payload_types) == (PROTO, [0, 126])
    assert [said(answered.sdp, n) for n in ("ice-ufrag", "setup", "mid")] == ["ours1", "passive", "0"]
    assert "a=group:BUNDLE 0\r\n" in answered.sdp and "a=rtcp-mux" in answered.sdp
    assert f"m=video 0 {PROTO} 96\r\na=mid:1\r\n" in answered.sdp
    (told,) = world.taught()
    assert (said(told, "setup"), said(told, "ice-ufrag"), said(told, "mid")) == ("active", "them", "")
    told_audio = SessionDescription.parse(told).audio()
    assert told_audio and len(told_audio.attributes("candidate")) == 1, "what leads nowhere is left out"
    (call,) = world.edge.calls.by_id.values()
    node = world.nodes[call.owner.name]
    assert " RTP/AVP " in node.of(sip.InviteReceived)[0].request.body.decode()


@pytest.mark.parametrize(
    "offer",
    [
        web().replace(f"a=fingerprint:{PRINT}\r\n", ""),
        web().replace(f"a=fingerprint:{PRINT}", "a=fingerprint:md5 AB"),
        web().replace("a=ice-pwd:" + "p" * 24, "a=ice-pwd:$(x)"),
        web().replace("a=rtcp-mux\r\n", ""),
        web(setup="holdconn"),
        web().replace("111 0 8 126", "111 126"),
    ],
)
def test_what_cannot_be_protected_or_heard_is_refused(offer: str) -> None:
    world = WebWorld()
    call_in(world, offer)
    assert world.carrier.of(sip.LegFailed)[-1].status == 488


def rung() -> tuple[WebWorld, Any, Any, Any]:
    """A browser's phone rings."""
    world = WebWorld().with_users("1001")
    phone = world.register("1001")
    (held,) = world.edge.registrar._bindings["1001"].values()
    held.value.transport = "wss"
    call, node = served(world)
    world.dial(node, call, "a1", "1001")
    phone.takes_changes = False
    return world, phone, call, call.legs["a1"]


def test_a_browser_is_offered_what_it_needs() -> None:
    world, phone, call, leg = rung()
    (invite,) = invites(phone)
    offer = invite.request.body.decode()
    assert f" {PROTO} " in offer and said(offer, "setup") == "actpass" and said(offer, "mid") == "0"
    phone.sip.answer(invite.leg, web(setup="active"), world.now)
    world.settle()
    assert (leg.state, leg.side.suite, leg.side.setup) == ("up", DTLS, "passive")
    assert said(world.taught("a1")[-1], "setup") == "active"


def test_a_browser_may_be_passive() -> None:
    world, phone, call, leg = rung()
    phone.sip.answer(invites(phone)[0].leg, web(setup="passive"), world.now)
    world.settle()
    assert leg.side.setup == "active" and said(world.taught("a1")[-1], "setup") == "passive"
    phone.sip.reinvite(invites(phone)[0].leg, web(direction="sendonly"), world.now)
    world.settle()
    world.run(1.2)
    (changed,) = phone.of(sip.ReinviteAnswered)
    assert said(changed.sdp, "setup") == "active", "a role does not change while its association lives"


def talking() -> tuple[WebWorld, Any, Any, str]:
    world, phone, call, leg = rung()
    key = invites(phone)[0].leg
    phone.sip.answer(key, web(setup="active"), world.now)
    world.settle()
    world.run(0.2)
    return world, phone, leg, key


def test_hold_changes_nothing_but_the_direction() -> None:
    world, phone, leg, key = talking()
    phone.sip.reinvite(key, web(direction="sendonly"), world.now)
    world.settle()
    world.run(1.2)
    (changed,) = phone.of(sip.ReinviteAnswered)
    assert leg.held and said(changed.sdp, "ice-ufrag") == "ours1" and said(changed.sdp, "setup") == "passive"
    assert SessionDescription.parse(changed.sdp).direction == "recvonly"


def test_another_network_is_another_ice_session_with_the_keys_of_before() -> None:
    world, phone, leg, key = talking()
    port = leg.port
    world.ng.clear()
    phone.sip.reinvite(key, web(ufrag="them2"), world.now)
    world.settle()
    world.run(1.2)
    (changed,) = phone.of(sip.ReinviteAnswered)
    assert said(changed.sdp, "ice-ufrag") == "ours1x" and leg.port == port
    ended, told, *_ = world.taught("a1")
    assert said(ended, "ice-ufrag") == "" and said(ended, "fingerprint") == PRINT
    assert said(told, "ice-ufrag") == "them2"
    assert [c.command for c in world.ng][:3] == ["publish", "create", "publish"]
    # and one that we offer: browsers may keep to our credentials of before, where the port is the same
    (asked,) = phone.of(sip.ReinviteReceived)
    assert said(asked.sdp, "ice-ufrag") == "ours1xx" and said(world.taught("a1")[-1], "ice-ufrag") == ""
    phone.sip.accept_reinvite(key, web(ufrag="them3", setup="active"), world.now)
    world.settle()
    world.run(2.0)
    assert said(world.taught("a1")[-1], "ice-ufrag") == "them3" and not leg.elsewhere
    assert len(phone.of(sip.ReinviteReceived)) == 1


def test_another_ice_session_that_rtpengine_refuses_is_asked_for_again() -> None:
    world, phone, leg, key = talking()
    world.ng_refuse = lambda command: command.command == "create"
    phone.sip.reinvite(key, web(ufrag="them2"), world.now)
    world.settle()
    assert phone.of(sip.ReinviteFailed)[-1].status == 488
    world.ng_refuse = lambda command: False
    world.run(2.5)
    (asked,) = phone.of(sip.ReinviteReceived)
    assert said(asked.sdp, "ice-ufrag") == "ours1x"
    phone.sip.accept_reinvite(key, web(ufrag="them3", setup="active"), world.now)
    world.settle()
    world.run(0.2)
    assert said(world.taught("a1")[-1], "ice-ufrag") == "them3" and leg.state == "up"


def test_another_life_of_rtpengine_is_made_known_and_learns_the_answer_only() -> None:
    world, phone, leg, key = talking()
    before = len(world.taught("a1"))
    world.another_life()
    (asked,) = phone.of(sip.ReinviteReceived)
    assert said(asked.sdp, "ice-ufrag") == "ours2" and leg.elsewhere
    assert len(world.taught("a1")) == before, "its old ICE session is over: rtpengine would keep to it"
    phone.sip.accept_reinvite(key, web(ufrag="them2", setup="active"), world.now)
    world.settle()
    world.run(0.2)
    assert not leg.elsewhere and leg.side.ufrag == "them2"
    assert said(world.taught("a1")[-1], "ice-ufrag") == "them2"
    world.run(70)
    assert leg.state == "up" and len(phone.of(sip.ReinviteReceived)) == 1


def test_who_rings_through_another_life_is_asked_when_it_has_answered() -> None:
    world, phone, call, leg = rung()
    world.another_life()
    key = invites(phone)[0].leg
    phone.sip.answer(key, web(setup="active"), world.now)
    world.settle()
    world.run(0.2)
    (asked,) = phone.of(sip.ReinviteReceived)
    assert said(asked.sdp, "ice-ufrag") == "ours2" and not world.taught("a1")
    phone.sip.accept_reinvite(key, web(ufrag="them2", setup="active"), world.now)
    world.settle()
    assert [said(text, "ice-ufrag") for text in world.taught("a1")] == ["them2"]


def test_a_browser_that_calls_and_is_not_answered_hears_it_with_the_answer() -> None:
    world = WebWorld()
    for node in world.nodes.values():
        node.auto_answer_new = False
    call_in(world, web())
    world.another_life()
    assert not world.carrier.of(sip.ReinviteReceived)
    (call,) = world.edge.calls.by_id.values()
    node = world.nodes[call.owner.name]
    node.sip.answer(node.of(sip.InviteReceived)[0].leg, node.sdp(), world.now)
    world.settle()
    (answered,) = world.carrier.of(sip.LegAnswered)
    assert said(answered.sdp, "ice-ufrag") == "ours2" and len(world.taught()) == 2


def test_an_edge_that_restarts_beside_a_living_rtpengine_asks_for_nothing() -> None:
    world, phone, leg, key = talking()
    world.boot()
    world.run(0.5)
    again = next(iter(world.edge.calls.by_id.values())).legs["a1"]
    assert (again.side, again.web_lines) == (leg.side, leg.web_lines)
    assert not phone.of(sip.ReinviteReceived)
    phone.sip.reinvite(key, web(direction="sendonly"), world.now)
    world.settle()
    world.run(1.2)
    assert said(phone.of(sip.ReinviteAnswered)[0].sdp, "ice-ufrag") == "ours1"


def test_an_edge_that_takes_over_beside_another_rtpengine_asks_at_once() -> None:
    world, phone, leg, key = talking()
    world.life += 1
    world.boot()
    world.run(0.5)
    assert said(phone.of(sip.ReinviteReceived)[0].sdp, "ice-ufrag") == "ours2"


def test_no_candidate_and_too_many() -> None:
    side = AudioSide.of(web())
    many = "".join(f"a=candidate:{n} 1 udp 1 10.0.0.{n} 4000 typ host\r\n" for n in range(1, 60))
    text = web().replace("a=rtcp-mux\r\n", f"a=rtcp-mux\r\n{many}")
    audio = SessionDescription.parse(narrowed(text, side)).audio()
    assert audio and len(audio.attributes("candidate")) == 16
    with pytest.raises(CodecRefused):
        side.answered(build_audio_sdp(1, 1, "10.0.1.50", 4000))
