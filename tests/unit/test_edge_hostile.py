"""What a carrier's forged address, a registered phone or a stranger may say without harm to anybody else: no
message raises, none costs more than a moment, and none changes what is stored of a call."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ari_ha.core.ports.sip import SipBytes
from ari_ha.machines.edge_audio import AudioSide, narrowed
from ari_ha.machines.identity import shown_to_trunk
from ari_ha.sip import events as sip
from ari_ha.sip.fields import parse_via
from ari_ha.sip.flow import Flow
from ari_ha.sip.message import LINE_MAX_BYTES, SipParseError
from ari_ha.sip.nexthop import takes_media
from ari_ha.sip.sdp import SdpError, SessionDescription
from ari_ha.sip.web_sdp import PROTO, without_ice
from ari_ha.wire.media_keys import KEYS_MAX, hide, show
from ari_ha.wire.sip_values import TrunkValue
from tests.support.edge_world import CARRIER, EdgeWorld, digest_header
from tests.unit.test_edge_srtp import call_in
from tests.unit.test_edge_trunks import carrier, dial, invites

CPU_MAX_S = 0.02
"""One message of 8 kB, or of 64 kB, on a slow and shared processor. Before: 0.1 s, and 1.5 s."""
HEAD = "v=0\r\no=- 1 1 IN IP4 10.0.1.50\r\ns=-\r\nc=IN IP4 10.0.1.50\r\nt=0 0\r\n"
AUDIO = HEAD + "m=audio 40000 RTP/AVP 8\r\n"
SUPERSCRIPT = "\u00b2"
"""str.isdigit says yes, int() raises."""


def cpu_s(act: Any) -> float:
    begun = time.process_time()
    act()
    return time.process_time() - begun


@pytest.mark.parametrize("value", ["SIP" + " " * (LINE_MAX_BYTES - 50) + "x", "SIP/2.0/ " + "/ " * 4_000])
def test_a_via_of_spaces_costs_no_time(value: str) -> None:
    def read() -> None:
        with pytest.raises(SipParseError):
            parse_via(value)

    assert cpu_s(read) < CPU_MAX_S


def test_spaces_around_the_slashes_of_a_via_are_read() -> None:
    via = parse_via("SIP  /\t2.0 / UDP  10.0.0.1:5070 ;branch=a / b")
    assert (via.transport, via.host, via.port, via.branch) == ("UDP", "10.0.0.1", 5070, "a / b")


def test_a_description_of_many_formats_and_maps_costs_no_time() -> None:
    maps = "".join(f"a=rtpmap:{number} x/8000\r\n" for number in range(900))
    text = f"{HEAD}m=audio 40000 RTP/AVP {'8 ' * 20_000}\r\n{maps}"
    with pytest.raises(SdpError, match="formats"):
        SessionDescription.parse(text)
    few = SessionDescription.parse(f"{HEAD}m=audio 40000 RTP/AVP {'8 ' * 128}\r\n{maps}").audio()
    assert few is not None
    assert cpu_s(lambda: few.rtpmap) < CPU_MAX_S


ODD = [
    f"{HEAD}m=audio 40000 RTP/AVP 8 {'1' * 5_000}\r\n",
    f"{HEAD}m=audio 40000 RTP/AVP {'1' * 5_000}\r\n",
    f"{HEAD}m=audio 40000 RTP/SAVP 8\r\na=crypto:{SUPERSCRIPT} AES_CM_128_HMAC_SHA1_80 inline:{'k' * 40}\r\n",
    f"{AUDIO}a=rtpmap:999 telephone-event/8000\r\n",
    AUDIO + "".join(f"a=crypto:1 X inline:{number:040}\r\n" for number in range(KEYS_MAX + 50)),
    f"{AUDIO}a=note:inline:@0@ inline:@999@ inline:@@\r\n",
    f"{HEAD}m=audio 40000 RTP/AVP 8\r\nm=video 0 inline:@0@ inline:@999@\r\na=mid:inline:@0@\r\n",
]


@pytest.mark.parametrize("offer", ODD)
def test_an_odd_offer_is_answered_and_leaves_nothing_behind(offer: str) -> None:
    world = EdgeWorld()
    call_in(world, offer)
    refused = world.carrier.of(sip.LegFailed)
    assert (refused and refused[-1].status == 488) or world.carrier.of(sip.LegAnswered)
    world.carrier.sip.hangup("k", world.now)
    world.settle()
    world.run(1.0)
    assert not list(world.edge.context.sip.legs()), "a leg nobody owns would never end"


@pytest.mark.parametrize("offer", ODD)
def test_an_odd_call_is_there_after_a_restart(offer: str) -> None:
    world = EdgeWorld()
    call_in(world, offer)
    if not world.carrier.of(sip.LegAnswered):
        return
    (before,) = world.edge.calls.by_id.values()
    lines, said = before.legs["c"].media_lines, world.edge.context.sip.remote_sdp(before.legs["c"].key)
    world.boot()
    (after,) = world.edge.calls.by_id.values()
    assert after.legs["c"].media_lines == lines
    if "@" in offer:
        assert world.edge.context.sip.remote_sdp(after.legs["c"].key) == said


def test_what_looks_like_a_mark_never_becomes_a_key() -> None:
    data = f'{{"key":"inline:{"A" * 40}","said":"inline:@0@ inline:@999@ inline:@@"}}'.encode()
    hidden, keys = hide(data)
    assert b"A" * 40 not in hidden and hidden.count(b"inline:@0@") == 1
    assert show(hidden, keys) == data


def test_more_keys_than_a_call_has_are_neither_shown_nor_kept() -> None:
    data = " ".join(f"inline:{number:040}" for number in range(KEYS_MAX + 5)).encode()
    hidden, keys = hide(data)
    assert len(keys) == KEYS_MAX and b"0" * 16 not in hidden
    assert show(hidden, keys).startswith(data[: 40 * KEYS_MAX])


@pytest.mark.parametrize("seconds", [SUPERSCRIPT, "9" * 5_000, "-1", "1e3", "\u0663"])
def test_odd_numbers_of_seconds_are_the_default(seconds: str) -> None:
    world = EdgeWorld().with_users("1001")
    phone = world.register("1001")
    for place, (header, fields) in enumerate(
        (
            ("<sip:1001@10.0.1.60:6001>", (("Expires", seconds),)),
            (f"<sip:1001@10.0.1.60:6001>;expires={seconds}", ()),
        )
    ):
        arguments: dict[str, Any] = {
            "flow": world.carrier_flow(), "target": "sip:test", "from_": "<sip:1001@test>",
            "to": "<sip:1001@test>",
        }  # fmt: skip
        headers = (("Contact", header), *fields)
        phone.sip.request(f"q{place}", "REGISTER", headers=headers, now=world.now, **arguments)
        world.settle()
        given = digest_header(phone.of(sip.ResponseReceived)[-1], "1001", "pw", "REGISTER", "sip:test")
        headers = (*headers, ("Authorization", given))
        phone.sip.request(f"p{place}", "REGISTER", headers=headers, now=world.now, **arguments)
        world.settle()
        assert phone.of(sip.ResponseReceived)[-1].status == 200
    (held,) = world.edge.registrar._bindings["1001"].values()
    assert held.value.expires == pytest.approx(world.edge.context.utc + 120, abs=1)


def test_a_carrier_that_refuses_with_an_odd_retry_after_rests_all_the_same() -> None:
    world = EdgeWorld()
    first = carrier(world, "first", "10.0.1.71", prefixes=[""])
    dial(world)
    first.sip.reject(invites(first)[0].leg, 503, world.now, headers=(("Retry-After", SUPERSCRIPT),))
    world.settle()
    assert world.edge.trunks.state("first").rests_until > world.now


OURS = [
    "127.0.0.1", "::1", "::ffff:127.0.0.1", "10.0.2.31", "10.0.2.11", "10.9.9.9", "224.1.1.1",
    "240.0.0.1", "0.1.2.3", "localhost",
]  # fmt: skip
"""Loopback, a node, the edge's inner side, an etcd member, and what is nobody's address"""


class Guarded(EdgeWorld):
    def config(self) -> Any:
        return replace(super().config(), inner_hosts=frozenset({"10.9.9.9"}))


def told(world: EdgeWorld, tag: str) -> list[str]:
    return [str(c.body["sdp"]) for c in world.ng if "sdp" in c.body and c.body["from-tag"] == tag]


@pytest.mark.parametrize("address", OURS)
def test_no_audio_is_sent_to_our_own_side(address: str) -> None:
    """rtpengine passes packets on as they are: to the port of its own control, that is a command."""
    world = Guarded()
    offer = AUDIO.replace("c=IN IP4 10.0.1.50", f"c=IN IP4 {address}").replace("40000", "2223")
    call_in(world, offer)
    assert told(world, "c") and all("c=IN IP4 0.0.0.0\r\n" in text for text in told(world, "c"))
    (call,) = world.edge.calls.by_id.values()
    before = len(told(world, "c"))
    world.carrier.sip.reinvite("k", AUDIO, world.now)
    world.settle()
    world.carrier.sip.reinvite("k", offer.replace("IP4 10", "IP4  10").replace("1 1 IN", "1 2 IN"), world.now)
    world.settle()
    world.run(0.5)
    good, *bad = told(world, "c")[before:]
    assert "c=IN IP4 10.0.1.50\r\n" in good and bad and all("c=IN IP4 0.0.0.0" in text for text in bad)
    assert call.call in world.edge.calls.by_id


@pytest.mark.parametrize("address", OURS)
def test_nor_to_whoever_is_called_and_says_so(address: str) -> None:
    world = Guarded()
    far = carrier(world, "first", "10.0.1.71", prefixes=[""])
    dial(world)
    answer = AUDIO.replace("10.0.1.50", address).replace("m=audio 40000", "m=audio 6379")
    far.sip.answer(invites(far)[0].leg, answer, world.now)
    world.settle()
    assert told(world, "t1") and all("c=IN IP4 0.0.0.0\r\n" in text for text in told(world, "t1"))


@pytest.mark.parametrize(
    "address", ["10.0.1.50", "192.168.0.7", "203.0.113.5", "0.0.0.0", "2001:db8::5", "::"]
)
def test_audio_is_sent_to_anybody_elses_address(address: str) -> None:
    assert takes_media(address, "10.0.1.50", {"10.0.2.31"})
    assert not takes_media("127.0.0.1", "") and not takes_media("127.0.0.1", "2001:db8::5")
    assert takes_media("127.0.0.60", "127.0.0.50", {"127.0.0.1"}), "all on one host"


def test_a_call_that_comes_back_to_us_is_heard_but_none_is_sent_to_itself() -> None:
    """A carrier that stays out of the audio names our own relay; the call's own ports would be a circle."""
    world = EdgeWorld()
    call_in(world, AUDIO.replace("10.0.1.50", "10.0.1.11"))
    assert "c=IN IP4 10.0.1.11\r\n" in told(world, "c")[-1]
    (call,) = world.edge.calls.by_id.values()
    leg = call.legs["c"]
    circle = AUDIO.replace("10.0.1.50", leg.host).replace("m=audio 40000", f"m=audio {leg.port}")
    world.carrier.sip.reinvite("k", circle, world.now)
    world.settle()
    assert "c=IN IP4 0.0.0.0\r\n" in told(world, "c")[-1]
    world.carrier.sip.reinvite("k", circle.replace(f"{leg.port}", "29998"), world.now)
    world.settle()
    assert f"c=IN IP4 {leg.host}\r\n" in told(world, "c")[-1]


@pytest.mark.parametrize(
    "more", ["generation 0\x0ba=mid:0", "generation 0\u2028a=mid:0", "\x1ca=mid:0", "generation 0 x y", ""]
)
def test_a_candidate_says_what_the_grammar_says(more: str) -> None:
    """rtpengine 26.0.1 dies of a named stream: no line of a phone's may become one."""
    text = (
        f"{HEAD}m=audio 9 {PROTO} 8\r\na=ice-ufrag:them\r\na=ice-pwd:{'p' * 24}\r\na=setup:actpass\r\n"
        f"a=fingerprint:sha-256 {':'.join(['AB'] * 32)}\r\na=rtcp-mux\r\n"
        f"a=candidate:1 1 udp 2122260223 10.0.1.50 40000 typ host {more}\r\n"
        "a=candidate:2 1 udp \u00b2 10.0.1.50 \u00b2 typ host\r\n"
        "a=candidate:$(x) 1 udp 1 10.0.1.50 1 typ host\r\n"
        "a=candidate:3 1 udp 1 10.0.1.50 70000 typ host\r\na=candidate:3 1 udp 1 10.0.1.50 1 typ host,x\r\n"
    )
    for told_to_it in (known := narrowed(text, AudioSide.of(text)), without_ice(known)):
        assert "mid" not in told_to_it
    found = [line for line in known.splitlines() if line.startswith("a=candidate")]
    assert found == ["a=candidate:1 1 udp 2122260223 10.0.1.50 40000 typ host"]


def test_what_a_newer_edge_wrote_of_a_browser_is_passed_over() -> None:
    side = AudioSide().with_web_facts({"ufrag": "u", "setup": "active", "of_tomorrow": 1})
    assert (side.ufrag, side.setup) == ("u", "active")


@pytest.mark.parametrize(
    ("privacy", "history"),
    [("history", "<sip:+4999@x>;index=1"), ("none", "<sip:+4999@x?Privacy=history>;index=1"),
     ("none", "<sip:+4999@x?Privacy%3Dhistory>;index=1")],
)  # fmt: skip
def test_a_history_that_is_nobodys_business_stays_here(privacy: str, history: str) -> None:
    kept = {"privacy": privacy, "history": history}
    for trusted in (True, False):
        trunk = TrunkValue(trunk="t", address="10.0.1.71", history=True, trusted=trusted)
        names = [name for name, _ in shown_to_trunk("+4930", kept, trunk, "x")[1]]
        assert ("History-Info" in names) is trusted


PIECES = st.one_of(
    st.sampled_from(
        [
            "Via: SIP/2.0/UDP 10.0.1.50:5060;branch=z9hG4bKx;rport\r\n", "Via: SIP / 2.0 / TCP x\r\n",
            "From: <sip:1@x>;tag=a\r\n", "To: <sip:6000@x>\r\n", "To: <sip:6000@x>;tag=b\r\n",
            "Call-ID: c\r\n", "CSeq: 1 INVITE\r\n", "CSeq: 2 OPTIONS\r\n", "CSeq: 1 ACK\r\n",
            "Contact: <sip:1@10.0.1.50>\r\n", "Contact: <sips:[::1]:0;maddr=x>\r\n", "Contact: *\r\n",
            "Record-Route: <sip:10.0.2.11;lr>, <sip:x>\r\n", "Route: <sip:a.b@10.0.2.11:5076;lr>\r\n",
            "Replaces: c;to-tag=b;from-tag=a\r\n", "Require: 100rel, timer\r\n", "Max-Forwards: \u00b2\r\n",
            "Session-Expires: 90;refresher=uac\r\nSupported: timer\r\n", "Expires: \u00b2\r\n",
            "RAck: 1 1 INVITE\r\n", "Event: dialog\r\n", "Refer-To: <sip:x?Replaces=a>\r\n",
            "Privacy: id;history\r\n", "History-Info: <sip:a?Privacy=none>;index=1\r\n",
            "Authorization: Digest realm=\"test\", nonce=\"1.a.b\", uri=\"\u00e4\", response=\"\u00e4\", "
            "qop=auth, nc=\u00b2, cnonce=x, username=1001\r\n",
            "Content-Type: application/sdp\r\n", "Content-Type: multipart/mixed;boundary=-\r\n",
            "Content-Encoding: gzip\r\n", "Content-Length: 9\r\n", " folded\r\n",
        ]
    ),
    st.text(max_size=12).map(lambda text: f"X-{text}: {text}\r\n"),
)  # fmt: skip
STARTS = st.sampled_from(
    [
        *(f"{method} sip:6000@10.0.1.11 SIP/2.0\r\n" for method in
          ("INVITE", "ACK", "BYE", "CANCEL", "OPTIONS", "REGISTER", "UPDATE", "PRACK", "SUBSCRIBE", "REFER",
           "NOTIFY", "INFO", "MESSAGE", "X")),
        "INVITE tel:+1;x SIP/2.0\r\n", "INVITE sip:\u00b2:\u00b2@h:\u00b2 SIP/2.0\r\n",
        "SIP/2.0 200 OK\r\n", "SIP/2.0 180 R\r\n",
    ]
)  # fmt: skip
BODIES = st.one_of(
    st.sampled_from(["", *(text for text in ODD if len(text) < 400), AUDIO, "v=0", HEAD]),
    st.lists(st.sampled_from(["m=audio 9 UDP/TLS/RTP/SAVPF 8", "a=mid:0", "a=group:BUNDLE 0", "c=IN IP4 x",
                              "a=candidate:1 1 udp \u00b2 10.0.0.1 \u00b2 typ host", "a=rtcp-mux", "v=0",
                              "m=image 9 udptl t38", "m=audio 0/\u00b2 x 8", "a=setup:actpass",
                              "o=- 1 1 a b c", "a=rtpmap:8 telephone-event/8000", "a=inactive"]), max_size=12)
    .map("\r\n".join),
)  # fmt: skip
SOURCES = st.sampled_from(
    [CARRIER, ("10.0.1.60", 6001), ("10.0.1.60", 6002), ("198.51.100.7", 5060), (CARRIER[0], 5062)]
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(STARTS, st.lists(PIECES, max_size=14), BODIES, SOURCES), min_size=1, max_size=4))
def test_no_message_raises(messages: list[tuple[str, list[str], str, tuple[str, int]]]) -> None:
    world = EdgeWorld().with_users("1001")
    world.register("1001")
    world.call_in()
    for start, fields, body, (host, port) in messages:
        data = f"{start}{''.join(fields)}\r\n{body}".encode("utf-8", "replace")
        world.post(SipBytes(data=data, flow=Flow("public-udp", "udp", host, port)))
    world.settle()
    world.run(1.0)
