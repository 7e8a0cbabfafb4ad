"""Requests outside dialogs, refusals, and messages like those RFC 4475 describes (written anew)."""

from __future__ import annotations

import pytest
from sipworld import Party, World, sdp

from ari_ha.sip.events import (
    InviteReceived,
    RequestFailed,
    RequestReceived,
    ResponseReceived,
    StreamBroken,
)
from ari_ha.sip.flow import Flow
from ari_ha.sip.message import Request, Response, parse_message
from ari_ha.sip.settings import EndpointSettings

SOURCE = Flow("main", "udp", "192.0.2.1", 5071)


@pytest.fixture
def pair() -> tuple[World, Party, Party]:
    world = World()
    return world, world.party("10.0.0.1"), world.party("10.0.0.2")


def send(
    party: Party, method: str, uri: str = "sip:bob@10.0.0.2", *extra: tuple[str, str], body: str = ""
) -> list[Response]:
    """Give a request to an engine; the responses."""
    headers = {
        "Via": "SIP/2.0/UDP client.example:5071;branch=z9hG4bK" + party.new_id(),
        "From": "<sip:alice@example.com>;tag=f",
        "To": "<sip:bob@example.com>",
        "Call-ID": "call-" + party.new_id(),
        "CSeq": f"1 {method}",
        "Max-Forwards": "70",
    }
    headers.update(extra)
    request = Request(method, uri, [(k, v) for k, v in headers.items() if v], body.encode())
    return give(party, request.serialise())


def give(party: Party, data: bytes, flow: Flow = SOURCE) -> list[Response]:
    party.agent.receive(data, flow, party.world.now)
    found = [parse_message(item) for item, _ in party.agent.output()]
    return [item for item in found if isinstance(item, Response)]


def test_a_request_and_its_answer(pair: tuple[World, Party, Party]) -> None:
    world, a, b = pair
    a.agent.request(
        "reg",
        "REGISTER",
        flow=a.flow(b),
        target="sip:b",
        from_="<sip:a@b>",
        to="<sip:a@b>",
        now=world.now,
        headers=[("Contact", "<sip:a@10.0.0.1>"), ("Expires", "60")],
        call_id="fixed",
        cseq=7,
    )
    world.transfer()
    received = b.take(RequestReceived)
    assert received.request.cseq == (7, "REGISTER") and received.request.call_id == "fixed"
    b.agent.respond(
        received.txn,
        200,
        world.now,
        headers=[("Contact", "<sip:a@10.0.0.1>;expires=60")],
        body=b"x",
        content_type="text/plain",
    )
    world.transfer()
    answer = a.take(ResponseReceived)
    assert (answer.key, answer.status, answer.body) == ("reg", 200, b"x") and (
        "Content-Type",
        "text/plain",
    ) in answer.headers
    world.advance(100)
    assert a.agent.deadline() is None and b.agent.deadline() is None


def test_a_request_nobody_answers(pair: tuple[World, Party, Party]) -> None:
    world, a, b = pair
    options = {"flow": a.flow(b), "target": "sip:b", "from_": "<sip:a>", "to": "<sip:b>"}
    a.agent.request("o", "OPTIONS", now=world.now, **options)
    world.advance(33, deliver=False)
    assert a.take() == RequestFailed("o", "timeout")
    a.agent.request("o", "OPTIONS", now=world.now, **options)
    a.agent.transport_error(a.flow(b), "refused", world.now)
    assert a.take() == RequestFailed("o", "refused")


@pytest.mark.parametrize(
    ("method", "uri", "extra", "status"),
    [
        ("FROB", "sip:b", [], 405),
        ("PRACK", "sip:b", [], 481),
        ("OPTIONS", "nobody:b", [], 416),
        ("OPTIONS", "x.y-z://h:10", [], 416),
        ("INVITE", "sip:b", [("Require", "precondition")], 420),
        ("INVITE", "sip:b", [("Require", "timer, x-unheard, replaces")], 420),
        ("OPTIONS", "sip:b", [("Replaces", "a;to-tag=1;from-tag=2")], 400),
        ("OPTIONS", "sip:b", [("Max-Forwards", "0")], 483),
        ("OPTIONS", "sip:b", [("Max-Forwards", "many")], 400),
        ("OPTIONS", "sip:b", [("CSeq", "1 INVITE")], 400),
        ("OPTIONS", "sip:b", [("CSeq", "36893488147419103232 OPTIONS")], 400),
        ("INVITE", "sip:b", [("To", "<sip:b>;tag=unknown")], 481),
        ("BYE", "sip:b", [("To", "<sip:b>;tag=unknown")], 481),
        ("BYE", "sip:b", [], 481),
        ("CANCEL", "sip:b", [], 481),
        ("SUBSCRIBE", "sip:b", [("To", "<sip:b>;tag=unknown")], 481),
        ("INVITE", "sip:b", [("Content-Type", "application/unknown")], 415),
        ("INVITE", "sip:b", [("Content-Type", "application/sdp"), ("Content-Encoding", "gzip")], 415),
        (
            "INVITE",
            "sip:b",
            [("Session-Expires", "10"), ("Supported", "timer"), ("Content-Type", "application/sdp")],
            422,
        ),
    ],
)
def test_refusals(
    pair: tuple[World, Party, Party], method: str, uri: str, extra: list[tuple[str, str]], status: int
) -> None:
    _, _, b = pair
    answers = send(b, method, uri, *extra, body="v=0" if dict(extra).get("Content-Type") else "")
    assert [answer.status for answer in answers] == [status]
    assert answers[0].to_tag and not b.agent.events()
    if status == 420:
        assert answers[0].get("Unsupported") == (
            "precondition" if "precondition" in extra[0][1] else "x-unheard, replaces"
        )
    if status == 405:
        assert "INVITE" in answers[0].get("Allow") and "FROB" not in answers[0].get("Allow")


def test_a_small_interval_of_a_caller_without_timers_is_raised(pair: tuple[World, Party, Party]) -> None:
    world, _, b = pair
    send(b, "INVITE", "sip:b", ("Session-Expires", "10"))
    b.agent.answer(b.take(InviteReceived).leg, sdp(), world.now)
    assert b.messages(200)[0].get("Session-Expires") == "90;refresher=uas"


def test_a_merged_invite_is_482(pair: tuple[World, Party, Party]) -> None:
    _, _, b = pair
    same = ("Call-ID", "same")
    assert [r.status for r in send(b, "INVITE", "sip:b", same)] == [100]
    assert [r.status for r in send(b, "INVITE", "sip:b", same)] == [482]


def test_a_retransmitted_request_is_no_second_one(pair: tuple[World, Party, Party]) -> None:
    world, _, b = pair
    via = ("Via", "SIP/2.0/UDP client.example:5071;branch=z9hG4bKsame")
    call = ("Call-ID", "one")
    send(b, "OPTIONS", "sip:b", via, call)
    event = b.take(RequestReceived)
    assert send(b, "OPTIONS", "sip:b", via, call) == []
    b.agent.respond(event.txn, 200, world.now)
    b.agent.output()
    assert [r.status for r in send(b, "OPTIONS", "sip:b", via, call)] == [200]
    assert not b.has(RequestReceived)


@pytest.mark.parametrize("branch", ["", ";branch=z9hG4bK", ";branch=1"])
def test_without_a_usable_branch_rfc_2543_compares(pair: tuple[World, Party, Party], branch: str) -> None:
    _, _, b = pair
    via, call = ("Via", f"SIP/2.0/UDP client.example:5071{branch}"), ("Call-ID", "one")
    send(b, "OPTIONS", "sip:b", via, call)
    send(b, "OPTIONS", "sip:b", via, call)
    send(b, "OPTIONS", "sip:b", via, ("Call-ID", "two"))
    assert b.take(RequestReceived) and b.take(RequestReceived) and not b.has(RequestReceived)


def test_where_responses_go(pair: tuple[World, Party, Party]) -> None:
    _, _, b = pair
    answer = send(b, "FROB")[0]
    assert answer.top_via.params["received"] == "192.0.2.1" and "rport" not in answer.top_via.params
    strict = b.world.party("10.0.0.3", settings=EndpointSettings(symmetric_responses=False))
    data = Request(
        "FROB",
        "sip:b",
        [
            ("Via", "SIP/2.0/UDP x:5099;branch=z9hG4bK1"),
            ("From", "a"),
            ("To", "b"),
            ("Call-ID", "c"),
            ("CSeq", "1 FROB"),
        ],
    ).serialise()
    strict.agent.receive(data, SOURCE, 0.0)
    assert strict.agent.output()[0][1].port == 5099
    strict.agent.receive(data.replace(b";branch", b";rport;branch"), SOURCE, 0.0)
    assert strict.agent.output()[0][1].port == 5071


def test_owner_dialog_methods_reach_the_owner(pair: tuple[World, Party, Party]) -> None:
    b = pair[0].party("10.0.0.4", settings=EndpointSettings(owner_dialog_methods=("SUBSCRIBE",)))
    assert send(b, "SUBSCRIBE", "sip:b", ("To", "<sip:b>;tag=sub")) == []
    assert b.take(RequestReceived).request.to_tag == "sub"


def test_keep_alives_and_noise_are_counted_not_answered(pair: tuple[World, Party, Party]) -> None:
    _, _, b = pair
    for data in (b"", b"\r\n\r\n", b"\0", b"noise", b"\x80\x01\x02", b"SIP/2.0 200 OK\r\n\r\n"):
        assert give(b, data) == []
    assert b.agent.counters["keep-alives"] == 3 and b.agent.counters["drop.start-line"] == 2


def test_responses_to_nobody_are_dropped(pair: tuple[World, Party, Party]) -> None:
    _, _, b = pair
    two = b"SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP a, SIP/2.0/UDP b\r\nCSeq: 1 INVITE\r\n\r\n"
    stranger = b"SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP a;branch=z9hG4bK1\r\nCSeq: 1 INVITE\r\n\r\n"
    ours = b"SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP 10.0.0.2:5060;branch=z9hG4bK1\r\nCSeq: 1 OPTIONS\r\n\r\n"
    for data in (two, stranger, ours):
        give(b, data)
    assert not b.agent.output()
    assert b.agent.counters["drop.via-count"] == 1 and b.agent.counters["drop.response-unmatched"] == 2


# like RFC 4475

HEAD = b"Via: SIP/2.0/UDP h;branch=z9hG4bK%d\r\nFrom: <sip:a@b>;tag=1\r\nTo: <sip:c@d>\r\nCall-ID: i%d\r\n"


def torture(number: int, start: bytes, rest: bytes, body: bytes = b"", head: bytes = HEAD) -> bytes:
    return start + b"\r\n" + head % (number, number) + rest + b"\r\n\r\n" + body


VALID = [
    b"OPTIONS sip:lamp@shelf;colour SIP/2.0\r\nTO\t:\r\n sip:c@d ; tag   = \r\n"
    b'from   : "A \\"Quoted\\" Name\\\\"       <sip:q@x>\r\n  ;\r\n  tag = zz9\r\n'
    b"MaX-fOrWaRdS: 0042\r\nCall-ID: spaced@x\r\ncseq: 0012\r\n  OPTIONS\r\n"
    b"Via  : SIP  /   2.0\r\n /UDP\r\n    192.0.2.9;branch=z9hG4bKspaced\r\nX: one\r\n two\r\nL: 0\r\n\r\n",
    torture(
        1,
        b"OPTIONS sip:why-not!(this~user)&that'one+$too/even?,;;*:pa&ss=wo+rd,1!@odd.example SIP/2.0",
        b"CSeq: 1 OPTIONS",
    ),
    torture(2, b"OPTIONS sip:sip%3Ainner%40one.example@two.example SIP/2.0", b"CSeq: 1 OPTIONS\r\nX: a%00b"),
    torture(3, b"OPTIONS sip:desk;floor=a%40b@example.com SIP/2.0", b"CSeq: 1 OPTIONS"),
    torture(
        4, b"OPTIONS sip:x SIP/2.0", b"CSeq: 1 OPTIONS\r\n" + b"Unknown-" + b"Long" * 20 + b": " + b"v" * 4000
    ),
    torture(
        5,
        b"MESSAGE sip:k SIP/2.0",
        b"CSeq: 1 MESSAGE\r\nContent-Type: text/plain\r\nl: 12",
        b"\xe4\xbd\xa0\0\xff!\r\n\r\n++",
    ),
    torture(
        6,
        b"OPTIONS sip:x SIP/2.0",
        b"CSeq: 1 OPTIONS\r\nDate: Fri, 01 Jan 2010 16:00:00 EST\r\nSupported:\r\nAccept: ;;,",
    ),
    torture(
        7,
        b"REGISTER sip:example.com SIP/2.0",
        b"CSeq: 1 REGISTER\r\nContact: sip:u@x?X=%3Csip:y%3E\r\n"
        b'Contact: <http://x>, <what:ever;q=0.5>\r\nAuthorization: Unheard-Of opaque="x", y=z',
    ),
    torture(8, b"OPTIONS sip:x  SIP/2.0 ", b"CSeq: 1 OPTIONS"),
]

INVALID = [
    (torture(1, b"INVITE sip:u SIP/2.0", b"CSeq: 1 INVITE\r\nContent-Length: 9999", b"v=0"), 400),
    (torture(2, b"INVITE sip:u SIP/2.0", b"CSeq: 1 INVITE\r\nContent-Length: -999", b"v=0"), 400),
    (torture(3, b"INVITE <sip:u@x> SIP/2.0", b"CSeq: 1 INVITE"), 400),
    (torture(4, b"INVITE sip:u@x; lr SIP/2.0", b"CSeq: 1 INVITE"), 400),
    (torture(5, b"OPTIONS sip:t SIP/7.0", b"CSeq: 1 OPTIONS"), 505),
    (torture(6, b"OPTIONS sip:t SIP/2.0", b"CSeq: 8 FROBNICATE"), 400),
    (torture(7, b"FROBNICATE sip:t SIP/2.0", b"CSeq: 8 FROBNICATE"), 405),
    (torture(8, b"OPTIONS sip:t SIP/2.0", b"CSeq: 1 OPTIONS\r\nCSeq: 2 OPTIONS"), 400),
    (torture(9, b"OPTIONS sip:t SIP/2.0", b"CSeq: 1 OPTIONS\r\nCall-ID: second"), 400),
    (torture(10, b"OPTIONS sip:t SIP/2.0", b"CSeq: 1 OPTIONS\r\nContent-Length: 0\r\nl: 5", b"hello"), 400),
    (torture(11, b"OPTIONS sip:t SIP/2.0", b"CSeq: 1 OPTIONS\r\nBroken header"), 400),
    (torture(12, b"OPTIONS strange:with a space SIP/2.0", b"CSeq: 1 OPTIONS"), 400),
    (torture(13, b"OPTIONS sip:t SIP/2.0", b"X: y"), None),
    (b"INVITE sip:u SIP/2.0\r\nCSeq: 1 INVITE\r\n\r\n", None),
    (
        b"INVITE sip:u SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=z9hG4bKm\r\n"
        b"CSeq: 1 INVITE\r\nTo: x\r\nFrom: y\r\n\r\n",
        None,
    ),
    (torture(14, b"OPTIONS sip:t", b"CSeq: 1 OPTIONS"), None),
    (torture(15, b"SIP/2.0 4294967301 overflowing", b"CSeq: 1 OPTIONS"), None),
    (
        torture(
            16,
            b"OPTIONS sip:t SIP/2.0",
            b"CSeq: 1 OPTIONS",
            head=b"Via: garbage\r\nFrom: a\r\nTo: b\r\nCall-ID: %d%d\r\n",
        ),
        None,
    ),
]


@pytest.mark.parametrize("data", VALID)
def test_strange_but_valid(pair: tuple[World, Party, Party], data: bytes) -> None:
    _, _, b = pair
    assert give(b, data) == []
    event = b.take(RequestReceived)
    b.agent.respond(event.txn, 200, 0.0)
    answer = b.messages(200)[0]
    assert answer.get("Call-ID") == event.request.call_id and answer.to_tag


@pytest.mark.parametrize(("data", "status"), INVALID)
def test_invalid_is_answered_or_dropped(
    pair: tuple[World, Party, Party], data: bytes, status: int | None
) -> None:
    _, _, b = pair
    assert [answer.status for answer in give(b, data)] == ([status] if status else [])
    assert not b.agent.events()
    counted = [name for name in b.agent.counters if name.startswith(("drop.", "refused."))]
    assert counted


def test_an_unterminated_quote_does_no_harm(pair: tuple[World, Party, Party]) -> None:
    world, _, b = pair
    send(b, "INVITE", "sip:b", ("To", '"No End <sip:j@x>'), ("Contact", '"Joe <sip:joe@x>;;;;'))
    leg = b.take(InviteReceived).leg
    b.agent.answer(leg, sdp(), world.now)
    b.agent.hangup(leg, world.now)
    world.advance(40)
    assert b.agent.leg_state(leg) == "ended"


def test_multipart_sdp_is_found(pair: tuple[World, Party, Party]) -> None:
    _, _, b = pair
    first = "--x\r\nContent-Type: text/plain\r\n\r\nhi\r\n"
    body = f"{first}--x\r\nContent-Type: application/sdp\r\n\r\n{sdp()}\r\n--x--\r\n"
    send(b, "INVITE", "sip:b", ("Content-Type", 'multipart/mixed;boundary="x"'), body=body)
    assert b.agent.remote_sdp(b.take(InviteReceived).leg) == sdp()


def test_streams(pair: tuple[World, Party, Party]) -> None:
    _, _, b = pair
    flow = Flow("main", "tcp", "192.0.2.1", 4000, "c1")
    data = torture(1, b"OPTIONS sip:x SIP/2.0", b"CSeq: 1 OPTIONS\r\nContent-Length: 0")
    for position in range(0, len(data), 7):
        b.agent.receive_stream(data[position : position + 7], flow, 0.0)
    event = b.take(RequestReceived)
    assert event.flow == flow
    b.agent.receive_stream(b"\r\n\r\n", flow, 0.0)
    assert b.agent.output() == [(b"\r\n", flow)]
    b.agent.receive_stream(b"garbage\r\n\r\n", flow, 0.0)
    assert b.take() == StreamBroken(flow, "no-content-length")
    b.agent.receive_stream(data, flow, 0.0)
    assert not b.agent.events()
    b.agent.stream_closed(flow, 0.0)
    b.agent.receive_stream(data.replace(b"bK1", b"bK2"), flow, 0.0)
    assert b.take(RequestReceived)
