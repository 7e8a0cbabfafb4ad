"""The cases of RFC 4475, each in words of our own: what is valid though it looks odd is served, what is
invalid gets the answer the RFC asks of a UAS, and nothing raises or is answered twice."""

from __future__ import annotations

import random

import pytest

from ari_ha.sip import events
from ari_ha.sip.message import Request, Response, parse_message
from tests.unit.sip.sipworld import Party, World

HEAD = {
    "Via": "SIP/2.0/UDP 10.0.0.1;branch=z9hG4bKtorture;rport",
    "From": "<sip:one@a.example>;tag=f1",
    "To": "<sip:two@b.example>",
    "Call-ID": "torture-1",
    "CSeq": "9 OPTIONS",
    "Max-Forwards": "70",
    "Content-Length": "0",
}
SDP = "v=0\r\no=x 1 1 IN IP4 10.0.0.1\r\ns=-\r\nc=IN IP4 10.0.0.1\r\nt=0 0\r\nm=audio 4000 RTP/AVP 0 12\r\n"


def text(start: str = "OPTIONS sip:two@b.example SIP/2.0", body: str = "", **headers: str | None) -> bytes:
    """A message; headers replace those of HEAD, None removes one."""
    fields = dict(HEAD)
    for name, value in headers.items():
        key = {"Call_ID": "Call-ID", "Max_Forwards": "Max-Forwards", "Content_Length": "Content-Length"}
        name = key.get(name, name.replace("_", "-"))
        if value is None:
            fields.pop(name, None)
        else:
            fields[name] = value
    if body and "Content_Length" not in headers:
        fields["Content-Length"] = str(len(body))
    lines = [start, *(f"{name}: {value}" for name, value in fields.items()), "", body]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape")


def invite(body: str = SDP, **headers: str | None) -> bytes:
    more = {"CSeq": "9 INVITE", "Contact": "<sip:one@10.0.0.1>", "Content_Type": "application/sdp"}
    return text("INVITE sip:two@b.example SIP/2.0", body, **{**more, **headers})


@pytest.fixture
def party() -> Party:
    world = World()
    world.party("10.0.0.1")
    return world.party("10.0.0.2")


def answers(party: Party, data: bytes) -> list[int]:
    """Statuses sent in answer, 100 left out."""
    party.agent.receive(data, party.flow(party.world.parties["10.0.0.1"]), party.world.now)
    party.seen += party.agent.events()
    sent = [parse_message(raw) for raw, _ in party.agent.output()]
    return [m.status for m in sent if isinstance(m, Response) and m.status != 100]


def offered(party: Party) -> Request | None:
    """The request the owner was given."""
    kinds = (events.RequestReceived, events.InviteReceived)
    return next((event.request for event in party.seen if isinstance(event, kinds)), None)


TORTUOUS = (
    b"INVITE sip:two@b.example;unheardof SIP/2.0\r\nTO :\r\n sip:two@b.example ;   tag    = 77\r\n"
    b'from   : "J \\\\\\""       <sip:one@a.example>\r\n  ;\r\n  tag = 98asjd8\r\nMaX-fOrWaRdS: 0068\r\n'
    b"Call-ID: t.1\r\nContent-Length   : 0\r\ncseq: 0009\r\n  INVITE\r\nVia  : SIP  /   2.0\r\n /UDP\r\n"
    b"    10.0.0.1;branch=390skdjuw\r\ns :\r\nNewFangledHeader:   newfangled value\r\n continued\r\n"
    b"Odd: ;;,,;;,;\r\nRoute:\r\n <sip:services.example;lr;unknownwith=value;unknown-no-value>\r\n"
    b"v:  SIP  / 2.0  / TCP     host.example   ;\r\n  branch  =   z9hG4bK9ikj8  ,\r\n"
    b" SIP  /    2.0   / UDP  192.168.255.111   ; branch=\r\n z9hG4bK30239\r\n"
    b'm:"Quoted \\"\\"" <sip:one@a.example> ; newparam =\r\n      newvalue ;\r\n'
    b"  secondparam ; q = 0.33\r\n\r\n"
)


def test_a_tortuous_invite_is_read_to_its_last_comma(party: Party) -> None:
    """3.1.1.1. It has a To tag of no dialog here: 481 is the well-formed answer."""
    message = parse_message(TORTUOUS)
    assert isinstance(message, Request)
    assert message.cseq == (9, "INVITE") and message.to_tag == "77" and message.from_tag == "98asjd8"
    assert len(message.values("Via")) == 3 and message.get("Contact").startswith('"Quoted')
    assert answers(party, TORTUOUS) == [481]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(
            text("OPTIONS sip:sips%3Auser%40x@b.example SIP/2.0", To="sip:%75se%72@b.example"),
            id="3.1.1.3-escapes",
        ),
        pytest.param(
            text(From="<sip:null-%00-null@a.example>;tag=1", Contact="<sip:%00@a.example>"),
            id="3.1.1.4-escaped-nulls",
        ),
        pytest.param(
            text(To="<sip:two@b.example>", From="caller<sip:one@a.example>;tag=323"),
            id="3.1.1.6-no-space-before-angle",
        ),
        pytest.param(
            text(**{"Long": "x" * 6_000, "From": f"<sip:one@a.example>;tag={'9' * 900}"}),
            id="3.1.1.7-long-values",
        ),
        pytest.param(text() + b"\r\n\r\nmore that is no message\r\n", id="3.1.1.8-something-follows"),
        pytest.param(text("OPTIONS sip:user;par=u%40x@b.example SIP/2.0"), id="3.1.1.9-semicolon-in-user"),
        pytest.param(
            text(
                Via="SIP/2.0/UDP 10.0.0.1;branch=z9hG4bKa, SIP/2.0/UNKNOWN h;branch=z9hG4bKb,"
                " SIP/2.0/SCTP i;branch=z9hG4bKc"
            ),
            id="3.1.1.10-odd-transports",
        ),
        pytest.param(
            text("OPTIONS sip:two@b.example SIP/2.0", Date="Fri, 01 Jan 2010 16:00:00 EST"),
            id="3.1.2.12-date-of-another-zone",
        ),
        pytest.param(text(Via="SIP/2.0/UDP 10.0.0.1;branch=z9hG4bK"), id="3.2.1-empty-branch"),
        pytest.param(
            text(From="nosuchscheme:one;tag=1", To="mailto:two@b.example"), id="3.3.4-other-schemes"
        ),
        pytest.param(
            text(From="<sip:one@a.example>;tag=1;tag2", Accept="application/sdp, text/plain;q=.x"),
            id="odd-parameters",
        ),
    ],
)
def test_what_is_odd_and_valid_is_served(party: Party, data: bytes) -> None:
    assert answers(party, data) == []
    request = offered(party)
    assert request is not None and request.method == "OPTIONS"


def test_wide_characters_in_a_method_are_a_method_nobody_serves(party: Party) -> None:
    """3.1.1.2: the grammar allows it."""
    odd = "!interesting-Method0123456789_*+`.%indeed'~"
    uri = "sip:1_unusual.URI~(to-be!sure)&isn't+it$/crazy?,/;;*:&it+has=1,weird!*pas$wo~d_too.@b.example"
    data = text(
        f"{odd} {uri} SIP/2.0", CSeq=f"9 {odd}", Call_ID="intmeth.word%ZK-!.*_+'@word`~)(><:\\/\"][?}{"
    )
    assert answers(party, data) == [405]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(invite(Via="SIP/2.0/UDP 10.0.0.1;;,;,,"), (400, "served"), id="3.1.2.1-separators"),
        pytest.param(invite(Content_Length="9999"), (400,), id="3.1.2.2-length-beyond-the-datagram"),
        pytest.param(invite(Content_Length="-999"), (400,), id="3.1.2.3-negative-length"),
        pytest.param(
            text(CSeq="36893488147419103232 OPTIONS", Max_Forwards="300"),
            (400,),
            id="3.1.2.4-numbers-too-large",
        ),
        pytest.param(text(To='"Mr. J. User <sip:two@b.example>'), (400, "served"), id="3.1.2.6-open-quote"),
        pytest.param(text("OPTIONS <sip:two@b.example> SIP/2.0"), (400, 416), id="3.1.2.7-angles-around-uri"),
        pytest.param(text("OPTIONS sip:two@b.example; lr SIP/2.0"), (400,), id="3.1.2.8-space-in-uri"),
        pytest.param(text("OPTIONS  sip:two@b.example  SIP/2.0"), (400, "served"), id="3.1.2.9-two-spaces"),
        pytest.param(
            text("OPTIONS sip:two@b.example SIP/2.0  "), (400, "served"), id="3.1.2.10-spaces-after"
        ),
        pytest.param(
            text("OPTIONS sip:two@b.example SIP/7.0", Via="SIP/7.0/UDP 10.0.0.1;branch=z9hG4bKv"),
            (505, None),
            id="3.1.2.16-version",
        ),
        pytest.param(text(CSeq="9 INVITE"), (400,), id="3.1.2.17-method-of-cseq"),
        pytest.param(
            text("NEWMETHOD sip:two@b.example SIP/2.0", CSeq="9 INVITE"),
            (400, 501, 405),
            id="3.1.2.18-unknown-method-of-cseq",
        ),
        pytest.param(text(Call_ID=None), (400, None), id="3.3.1-no-call-id"),
        pytest.param(text(From=None), (400, None), id="3.3.1-no-from"),
        pytest.param(text(To=None), (400, None), id="3.3.1-no-to"),
        pytest.param(text("OPTIONS nobodyKnows:two SIP/2.0"), (416,), id="3.3.2-unknown-scheme"),
        pytest.param(
            text("OPTIONS soap.beep://192.0.2.103:3002 SIP/2.0"), (416,), id="3.3.3-known-elsewhere"
        ),
        pytest.param(text(Require="nothingSupportsThis, nor_this"), (420,), id="3.3.5-require"),
        pytest.param(invite("<audio/>", Content_Type="application/unknownformat"), (415,), id="3.3.6-body"),
        pytest.param(
            text("REGISTER sip:b.example SIP/2.0", CSeq="9 REGISTER", Authorization="NoOneKnows x=1"),
            ("served",),
            id="3.3.7-unknown-auth-scheme",
        ),
        pytest.param(
            text().replace(b"Call-ID: torture-1", b"Call-ID: torture-1\r\nCall-ID: another"),
            (400,),
            id="3.3.8-call-id-twice",
        ),
        pytest.param(
            text().replace(b"Content-Length: 0", b"Content-Length: 0\r\nl: 44"),
            (400,),
            id="3.3.9-length-twice",
        ),
        pytest.param(text(Max_Forwards="0"), (483,), id="3.3.11-no-hops-left"),
        pytest.param(b"OPTIONS\r\n\r\n", (None,), id="nothing-but-a-word"),
    ],
)
def test_what_is_invalid_gets_its_answer(party: Party, data: bytes, status: tuple[object, ...]) -> None:
    """Where "served" is allowed our reader is more patient than the RFC asks: what is meant is clear."""
    sent = answers(party, data)
    assert len(sent) <= 1
    found = sent[0] if sent else ("served" if offered(party) else None)
    assert found in status
    assert not party.agent.legs() or "served" in status


def test_an_old_invite_without_branch_is_a_call(party: Party) -> None:
    """3.4.1: RFC 2543 knew neither branch nor tag rules nor Max-Forwards."""
    data = invite(Via="SIP/2.0/UDP 10.0.0.1", Max_Forwards=None)
    assert answers(party, data) == []
    assert isinstance(party.seen[0], events.InviteReceived)
    assert answers(party, data) == [], "a retransmission is one"
    assert sum(isinstance(event, events.InviteReceived) for event in party.seen) == 1


def test_a_multipart_body_is_searched_for_sdp(party: Party) -> None:
    """3.1.1.11, with the part an INVITE is about."""
    body = (
        "--b1\r\nContent-Type: text/plain\r\n\r\nhello\r\n--b1\r\nContent-Type: application/sdp\r\n\r\n"
        f"{SDP}\r\n--b1--\r\n"
    )
    assert answers(party, invite(body, Content_Type='multipart/mixed;boundary="b1"')) == []
    assert isinstance(party.seen[0], events.InviteReceived)


@pytest.mark.parametrize(
    "start",
    [
        "SIP/2.0 200 = 2**3 * 5**2 \u043d\u043e \u0441\u0442\u043e",
        "SIP/2.0 100 ",
        "SIP/2.0 4294967301 better not break the receiver",
        "SIP/2.0 999 beyond",
        "SIP/2.0 200 OK",
    ],
)
def test_responses_nobody_asked_for_lead_to_nothing(party: Party, start: str) -> None:
    """3.1.1.12, 3.1.1.13, 3.1.2.19 and 3.3.10."""
    for via in (
        HEAD["Via"],
        "SIP/2.0/UDP 10.0.0.2:5060;branch=z9hG4bKx",
        "SIP/2.0/UDP 192.0.2.255;branch=z9hG4bKb",
    ):
        assert answers(party, text(start, Via=via, CSeq="9 OPTIONS")) == []
    assert not party.seen


def test_any_damage_to_any_of_them_is_survived(party: Party) -> None:
    """Bytes changed, removed, doubled: never an exception, never more than one answer and a 100."""
    chance = random.Random(4475)
    seeds = [
        TORTUOUS,
        invite(),
        text(),
        invite(Require="100rel"),
        text("REGISTER sip:b SIP/2.0", CSeq="9 REGISTER"),
    ]
    for _ in range(4_000):
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randrange(1, 8)):
            at = chance.randrange(len(data))
            match chance.randrange(3):
                case 0:
                    data[at] = chance.randrange(256)
                case 1:
                    del data[at : at + chance.randrange(1, 30)]
                case 2:
                    data[at:at] = data[max(0, at - chance.randrange(1, 30)) : at]
            if not data:
                data = bytearray(b"\r\n")
        assert len(answers(party, bytes(data))) <= 1
    assert len(party.agent._stack.servers) < 10_000
