"""SRTP with keys in SDP (RFC 4568): whoever offers it, whatever the other side does."""

from __future__ import annotations

from typing import Any

import pytest

from ari_ha.sip import events as sip
from ari_ha.sip.flow import Flow
from ari_ha.sip.sdp import SessionDescription, build_audio_sdp, usable_crypto
from ari_ha.wire.media_keys import hide, show
from tests.support.edge_world import EdgeWorld
from tests.unit.test_edge_trunks import carrier, invites, served

THEIRS, OURS = "inline:" + "T" * 40, "inline:" + "O" * 40
SUITE = "AES_CM_128_HMAC_SHA1_80"


class SrtpWorld(EdgeWorld):
    """An rtpengine that gives keys when asked for them."""

    def relay(self, command: Any) -> Any:
        outcome = super().relay(command)
        if command.command == "create" and command.body.get("transport-protocol") == "RTP/SAVP":
            (suite,) = command.body["SDES"]
            line = f"1 {suite.removeprefix('only-')} {OURS}"
            port = self.tag_ports[command.body["call-id"], command.body["from-tag"]]
            outcome.value["sdp"] = build_audio_sdp(1, 1, "10.0.9.9", port, crypto=line)
        return outcome


def secure(tag: int = 1, suite: str = SUITE, port: int = 40_000) -> str:
    return build_audio_sdp(7, 1, "10.0.1.50", port, crypto=f"{tag} {suite} {THEIRS}")


def crypto_of(text: str) -> tuple[str, list[str]]:
    audio = SessionDescription.parse(text).audio()
    assert audio is not None
    return audio.proto, audio.crypto


def call_in(world: EdgeWorld, offer: str) -> str:
    world.carrier.sip.invite("k", flow=world.carrier_flow(), target="sip:6000@edge", from_="<sip:1@x>",
                             to="<sip:6000@x>", sdp=offer, now=world.now)  # fmt: skip
    world.settle()
    world.run(0.3)
    return "k"


@pytest.mark.parametrize("suite", [SUITE, "AES_CM_128_HMAC_SHA1_32"])
def test_an_offered_key_is_answered_in_kind_and_the_node_hears_plain_rtp(suite: str) -> None:
    world = SrtpWorld()
    call_in(world, secure(tag=3, suite=suite))
    (answered,) = world.carrier.of(sip.LegAnswered)
    assert crypto_of(answered.sdp) == ("RTP/SAVP", [f"3 {suite} {OURS}"])
    told = [c for c in world.ng if c.command == "publish" and c.body["from-tag"] == "c"]
    assert crypto_of(told[-1].body["sdp"]) == ("RTP/SAVP", [f"1 {suite} {THEIRS}"])
    (call,) = world.edge.calls.by_id.values()
    node = world.nodes[call.owner.name]
    offered = node.of(sip.InviteReceived)[0].request.body.decode()
    assert crypto_of(offered) == ("RTP/AVP", [])


@pytest.mark.parametrize(
    "offer",
    [
        secure(suite="AES_256_CM_HMAC_SHA1_80"),
        secure().replace(THEIRS, f"{THEIRS} UNENCRYPTED_SRTP"),
        secure().replace(f"a=crypto:1 {SUITE} {THEIRS}\r\n", ""),
        secure().replace("RTP/SAVP", "UDP/TLS/RTP/SAVPF"),
    ],
)
def test_what_cannot_be_protected_is_refused(offer: str) -> None:
    world = SrtpWorld()
    call_in(world, offer)
    assert world.carrier.of(sip.LegFailed)[-1].status == 488


def test_a_trunk_with_srtp_is_offered_a_key_and_must_take_it() -> None:
    world = SrtpWorld()
    secret = carrier(world, "secret", "10.0.1.71", srtp="sdes")
    plain = carrier(world, "plain", "10.0.1.72", priority=900)
    call, node = served(world)
    world.dial(node, call, "t1", "", target="number:+1")
    (invite,) = invites(secret)
    assert crypto_of(invite.request.body.decode()) == ("RTP/SAVP", [f"1 {SUITE} {OURS}"])
    secret.sip.answer(invite.leg, secure(), world.now)
    world.settle()
    assert call.legs["t1"].state == "up"
    world.dial(node, call, "t2", "", target="number:+2")
    secret.sip.answer(invites(secret)[1].leg, secret.sdp(), world.now)
    world.settle()
    assert "t2" in call.tombstones, "an answer without a key is no answer"
    assert not invites(plain)


def test_keys_are_in_the_secret_part_of_etcd_only_and_a_restart_finds_them() -> None:
    world = SrtpWorld()
    call_in(world, secure())
    (call,) = world.edge.calls.by_id.values()
    for key, item in world.store.items():
        if "/secret/" not in key:
            assert b"TTTT" not in item.value and b"OOOO" not in item.value, key
    secret = world.keys.secret_dialog("pair1", call.call)
    assert b"TTTT" in world.store[secret].value
    world.boot()
    world.run(0.2)
    again = world.edge.calls.by_id[call.call].legs["c"]
    assert (again.key_line, again.side.suite) == (OURS, SUITE)
    hold = secure().replace("a=sendrecv", "a=sendonly")
    world.carrier.sip.reinvite("k", hold, world.now)
    world.settle()
    world.run(1.2)
    (changed,) = world.carrier.of(sip.ReinviteAnswered)
    assert crypto_of(changed.sdp)[1] == [f"1 {SUITE} {OURS}"], "the same key, the call is not keyed anew"
    world.carrier.sip.hangup("k", world.now)
    world.settle()
    assert secret not in world.store


def test_an_offer_may_not_drop_the_protection() -> None:
    world = SrtpWorld()
    call_in(world, secure())
    world.carrier.sip.reinvite("k", world.carrier.sdp(port=41_000), world.now)
    world.settle()
    assert world.carrier.of(sip.ReinviteFailed)[-1].status == 488
    assert world.edge.calls.by_id


def test_phones_on_tls_are_offered_srtp() -> None:
    world = SrtpWorld().with_users("1001")
    phone = world.register("1001")
    (held,) = world.edge.registrar._bindings["1001"].values()
    held.value.transport, held.value.conn = "tls", "c1"
    call, node = served(world)
    world.dial(node, call, "a1", "1001")
    assert crypto_of(invites(phone)[0].request.body.decode())[0] == "RTP/SAVP"


def test_a_phone_that_reconnects_keeps_its_dialogs() -> None:
    world = EdgeWorld().with_users("1001")
    phone = world.register("1001")
    call, node = served(world)
    world.dial(node, call, "a1", "1001")
    phone.sip.answer(invites(phone)[0].leg, phone.sdp(), world.now)
    world.settle()
    sips, leg = world.edge.context.sip, call.legs["a1"]
    old = Flow("public-tcp", "tcp", phone.host, 33_001, "one")
    sips.move_flow(leg.key, old)
    sips.stream_closed(old, world.now)
    assert sips.leg_flow(leg.key).conn == ""
    new = Flow("public-tcp", "tcp", phone.host, 33_002, "two")
    world.edge.registrar.on_flow("1001", new)
    assert sips.leg_flow(leg.key) == new
    world.edge.registrar.on_flow("1001", Flow("public-tcp", "tcp", phone.host, 33_003, "three"))
    assert sips.leg_flow(leg.key) == new, "its connection lives: another one changes nothing"


def test_hidden_keys_come_back() -> None:
    data = f'{{"a":"inline:{"A" * 40}|2^20|1:4 x","b":"inline:{"B" * 40}","c":"inline:{"A" * 40}|2^20|1:4"}}'
    hidden, keys = hide(data.encode())
    assert b"AAAA" not in hidden and b"BBBB" not in hidden and len(keys) == 2
    assert show(hidden, keys) == data.encode()
    with pytest.raises(ValueError, match="missing"):
        show(hidden, keys[:1])


def test_the_better_suite_is_taken() -> None:
    lines = [f"a=crypto:1 AES_CM_128_HMAC_SHA1_32 {OURS}", f"a=crypto:2 {SUITE} {THEIRS}"]
    text = secure().replace(f"a=crypto:1 {SUITE} {THEIRS}", "\r\n".join(lines))
    audio = SessionDescription.parse(text).audio()
    assert audio is not None
    found = usable_crypto(audio)
    assert found is not None and found.tag == 2
