"""Messages, URIs, SDP, streams: what goes in comes out, and nonsense is refused."""

from __future__ import annotations

import pytest

from ari_ha.sip.message import (
    HEADERS_MAX_COUNT,
    LINE_MAX_BYTES,
    MESSAGE_MAX_BYTES,
    Request,
    Response,
    SipParseError,
    parse_message,
    parse_via,
    split_values,
)
from ari_ha.sip.sdp import (
    SdpError,
    SessionDescription,
    build_audio_sdp,
    may_answer,
    same_media,
)
from ari_ha.sip.stream import StreamFramer
from ari_ha.sip.uri import NameAddr, SipUri

PLAIN = (
    b"INVITE sip:bob@example.com SIP/2.0\r\n"
    b"v: SIP/2.0/UDP 10.0.0.1:5070;branch=z9hG4bKx;rport, SIP/2.0/TCP p\r\n"
    b'f: "A, B" <sip:a@x;tag=no>;tag=1\r\nTO: <sip:b@y>\r\ni: id@x\r\nCSeq: 7 INVITE\r\n'
    b"Subject: one\r\n\ttwo\r\nm: <sip:a@10.0.0.1>\r\n"
    b"Supported: timer, replaces\r\nk: path\r\nl: 4\r\n\r\nbodyextra"
)


def test_a_message_is_read_and_written() -> None:
    request = parse_message(PLAIN)
    assert isinstance(request, Request)
    assert (request.method, request.uri, request.body) == ("INVITE", "sip:bob@example.com", b"body")
    assert request.cseq == (7, "INVITE") and request.call_id == "id@x"
    assert request.from_tag == "1" and request.to_tag == ""
    assert request.get("subject") == "one two"
    assert request.top_via.sent_by == "10.0.0.1:5070" and request.top_via.branch == "z9hG4bKx"
    assert len(request.values("Via")) == 2
    assert request.values("Supported") == ["timer", "replaces", "path"] and "path" in request.tokens("k")
    again = parse_message(request.serialise())
    assert again.body == b"body" and again.get("From") == request.get("From")


def test_headers_change_in_place() -> None:
    message = Response(200, "OK", [("Via", "a"), ("X", "1"), ("x", "2"), ("To", "t")])
    message.set("X", "3")
    assert [name for name, _ in message.headers] == ["Via", "X", "To"] and message.get_all("x") == ["3"]
    message.add("X", "4")
    assert message.get_all("x") == ["3", "4"]
    message.remove("x")
    assert not message.has("X")


def test_no_header_smuggles_in_a_line() -> None:
    request = Request(
        "INFO", "sip:x\r\nEvil: 1", [("X", "a\r\nEvil: 2\r\n\r\nbody"), ("Y\r\nEvil", "3\n4\0")]
    )
    text = request.serialise()
    assert text.count(b"\r\n") == 5 and b"\nEvil" not in text


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", None),
        (b"hello", None),
        (b"INVITE sip:x SIP/3.0\r\n\r\n", 505),
        (b"INVITE <sip:x> SIP/2.0\r\n\r\n", 400),
        (b"INVITE sip:x y SIP/2.0\r\n\r\n", 400),
        (b"IN[ITE sip:x SIP/2.0\r\n\r\n", None),
        (b"SIP/2.0 99 Low\r\n\r\n", None),
        (b"SIP/2.0 4294967301 High\r\n\r\n", None),
        (b"SIP/2.0 \xd9\xa2\xd9\xa0\xd9\xa0 x\r\n\r\n", None),
        (b"SIP/7.0 200 OK\r\n\r\n", None),
        (b"BYE sip:x SIP/2.0\r\nno colon\r\n\r\n", 400),
        (b"BYE sip:x SIP/2.0\r\nb ad: x\r\n\r\n", 400),
        (b"BYE sip:x SIP/2.0\r\n folded: x\r\n\r\n", 400),
        (b"BYE sip:x SIP/2.0\r\nContent-Length: 5\r\n\r\nabc", 400),
        (b"BYE sip:x SIP/2.0\r\nContent-Length: -1\r\n\r\nabc", 400),
        (b"BYE sip:x SIP/2.0\r\nX: a\rb\r\n\r\n", None),
        (b"BYE sip:x SIP/2.0\r\nX: a\nY: b\r\n\r\n", None),
        (b"BYE sip:x SIP/2.0\r\nX: a\0b\r\n\r\n", None),
        (b"BYE sip:x SIP/2.0\r\nX: " + b"a" * LINE_MAX_BYTES + b"\r\n\r\n", 400),
        (b"BYE sip:x SIP/2.0\r\n" + b"X: a\r\n" * (HEADERS_MAX_COUNT + 1) + b"\r\n", None),
        (b"BYE sip:x SIP/2.0\r\n\r\n" + b"x" * MESSAGE_MAX_BYTES, None),
    ],
)
def test_what_is_no_message_is_refused(data: bytes, status: int | None) -> None:
    with pytest.raises(SipParseError) as error:
        parse_message(data)
    assert error.value.status == status


def test_lone_line_feeds_and_a_missing_end_are_tolerated() -> None:
    assert parse_message(b"\r\n\r\nBYE sip:x SIP/2.0\nVia: v\n\nbody").body == b"body"
    assert parse_message(b"BYE sip:x SIP/2.0\r\nVia: v\r\n").get("Via") == "v"


@pytest.mark.parametrize(
    "value", ["9999999999 INVITE", "x INVITE", "1", "-1 INVITE", "", "2147483648 INVITE"]
)
def test_a_cseq_that_is_none(value: str) -> None:
    with pytest.raises(SipParseError):
        assert Request("INVITE", "sip:x", [("CSeq", value)]).cseq


@pytest.mark.parametrize(
    ("value", "sent_by"),
    [
        ("SIP/2.0/UDP Host", "host:5060"),
        ("SIP / 2.0 / UDP h : 5070 ;branch=x", "h:5070"),
        ("SIP/2.0/TCP [2001:DB8::1]:5", "[2001:db8::1]:5"),
    ],
)
def test_vias(value: str, sent_by: str) -> None:
    assert parse_via(value).sent_by == sent_by


@pytest.mark.parametrize(
    "value", ["", "SIP/2.0/UDP", "HTTP/2.0/UDP x", "SIP/2.0/UDP ;x", "SIP/2.0/UDP x:99999"]
)
def test_vias_that_are_none(value: str) -> None:
    with pytest.raises(SipParseError):
        parse_via(value)


def test_values_are_split_outside_quotes_and_brackets() -> None:
    assert split_values('"a,b" <sip:x,y>, <sip:z>,,c') == ['"a,b" <sip:x,y>', "<sip:z>", "c"]
    assert split_values('"a\\",b", c') == ['"a\\",b"', "c"]


@pytest.mark.parametrize(
    "text",
    [
        "sip:alice@example.com",
        "sip:alice:pw@example.com:5070;transport=tcp;lr?X=y",
        "sips:[2001:db8::1]:5061",
        "tel:+1234;phone-context=x",
        "sip:user;par=u%40example.net@example.com",
    ],
)
def test_uris_round_trip(text: str) -> None:
    assert str(SipUri.parse(text)) == text and SipUri.parse(text) == SipUri.parse(text)


def test_what_a_uri_says() -> None:
    uri = SipUri.parse("SIP:Al@Host:5070;LR")
    assert (uri.user, uri.host, uri.port, uri.loose, uri.aor) == ("Al", "Host", 5070, True, "sip:Al@host")
    assert uri.same_target(SipUri("host", "Al", 5070)) and not uri.same_target(SipUri("host", "al", 5070))


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("", 400),
        ("sip:", 400),
        ("alice", 400),
        ("http://x", 416),
        ("sip:a b@c", 400),
        ("sip:x:0", 400),
        ("sip:[::1", 400),
    ],
)
def test_uris_that_are_none(text: str, status: int) -> None:
    with pytest.raises(SipParseError) as error:
        SipUri.parse(text)
    assert error.value.status == status


def test_name_addrs() -> None:
    full = NameAddr.parse('"Q \\"x\\" <y>" <sip:a@b;lr>;tag=7;q="a;b"')
    assert (full.display, full.uri, full.tag, full.params["q"]) == ('Q "x" <y>', "sip:a@b;lr", "7", '"a;b"')
    assert str(NameAddr.parse(str(full))) == str(full)
    short = NameAddr.parse("sip:a@b;tag=8")
    assert (short.uri, short.tag) == ("sip:a@b", "8")
    assert NameAddr.parse("Bell <sip:x>").display == "Bell" and NameAddr.parse("*").uri == "*"
    for text in ("", '"open <sip:x>', '"a" sip:x', "<sip:x", "<>"):
        with pytest.raises(SipParseError):
            NameAddr.parse(text)


RICH = (
    "v=0\r\no=alice 1 5 IN IP4 10.0.0.1\r\ns=-\r\nc=IN IP4 10.0.0.1\r\nt=0 0\r\na=sendonly\r\n"
    "m=audio 5000/2 RTP/SAVP 8 96 101 9\r\nc=IN IP4 10.0.0.2\r\na=rtpmap:96 opus/48000/2\r\n"
    "a=rtpmap:101 telephone-event/8000\r\na=fmtp:101 0-16\r\na=ptime:20\r\na=crypto:1 AES inline:k\r\n"
    "m=video 0 RTP/AVP 99\r\na=x-unknown\r\n"
)


def test_sdp_is_read_and_kept() -> None:
    found = SessionDescription.parse(RICH)
    assert found.serialise() == RICH
    audio = found.audio()
    assert audio is not None and (audio.port, audio.proto, audio.ports) == (5000, "RTP/SAVP", 2)
    assert audio.rtpmap == {8: "PCMA/8000", 9: "G722/8000", 96: "opus/48000/2", 101: "telephone-event/8000"}
    assert audio.fmtp == {101: "0-16"} and audio.ptime == 20 and audio.telephone_event == 101
    assert audio.crypto == ["1 AES inline:k"] and found.media[1].rejected
    assert (found.session_id, found.version, found.connection) == ("1", "5", "10.0.0.2")
    assert found.direction == "sendonly" and found.is_hold()


def test_holding() -> None:
    plain = build_audio_sdp(1, 1, "10.0.0.1", 4000)
    assert not SessionDescription.parse(plain).is_hold()
    for text in (
        plain.replace("c=IN IP4 10.0.0.1", "c=IN IP4 0.0.0.0"),
        plain.replace("sendrecv", "inactive"),
    ):
        assert SessionDescription.parse(text).is_hold()
    assert SessionDescription.parse(build_audio_sdp(1, 1, "::1", 0)).audio() is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "v=1\r\n",
        "v=0\r\ns=-\r\n",
        "v=0\r\no=x\r\n",
        "v=0\r\no=- 1 1 IN IP4 x\r\nm=audio x RTP/AVP 0",
        "v=0\njunk",
    ],
)
def test_what_is_no_sdp(text: str) -> None:
    with pytest.raises(SdpError):
        SessionDescription.parse(text)


def test_offers_and_answers() -> None:
    def audio(direction: str, version: int = 1) -> str:
        return build_audio_sdp(1, version, "10.0.0.1", 4000, direction=direction)

    assert may_answer(audio("sendonly"), audio("recvonly")) and not may_answer(
        audio("sendonly"), audio("sendrecv")
    )
    assert not may_answer(audio("sendrecv"), RICH) and not may_answer("x", "y")
    assert same_media(audio("sendrecv"), audio("sendrecv", 9)) and not same_media(audio("sendrecv"), None)


def message(body: bytes = b"") -> bytes:
    return b"INFO sip:x SIP/2.0\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def test_a_stream_is_cut_anywhere() -> None:
    whole = b"\r\n" + message(b"abc") + b"\r\n\r\n" + message() + message(b"\r\n\r\nx")
    for size in range(1, 40):
        framer, found = StreamFramer(), []
        for start in range(0, len(whole), size):
            found += framer.feed(whole[start : start + size])
        assert found == [message(b"abc"), message(), message(b"\r\n\r\nx")] and framer.take_pings() == 1


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"INFO sip:x SIP/2.0\r\nX: y\r\n\r\n", "no-content-length"),
        (b"INFO sip:x SIP/2.0\r\nContent-Length: 99999\r\n\r\n", "message-too-large"),
        (b"x" * 70_000, "head-too-large"),
    ],
)
def test_a_stream_that_cannot_be_cut_is_broken(data: bytes, reason: str) -> None:
    framer = StreamFramer()
    assert framer.feed(data) == [] and framer.broken == reason and framer.feed(message()) == []
