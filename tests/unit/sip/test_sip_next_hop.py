"""Where requests within a dialog go: the route set or the Contact, or back to the source behind NAT."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from ari_ha.sip.endpoint import Endpoint
from ari_ha.sip.events import InviteReceived, LegEnded, ReinviteAnswered
from ari_ha.sip.flow import Flow, Listener
from ari_ha.sip.message import Request, Response, parse_message
from ari_ha.sip.nexthop import ROUTE, SOURCE, Hop
from tests.unit.sip.sipworld import sdp

US, THEM = "203.0.113.1", "198.51.100.7"
LISTENERS = {
    "public-udp": Listener("public-udp", "udp", US, 5060, "public"),
    "public-tcp": Listener("public-tcp", "tcp", US, 5060, "public"),
    "public-tls": Listener("public-tls", "tls", US, 5061, "public"),
    "node-trunk": Listener("node-trunk", "tcp", US, 5080, "node"),
}


INNER_HOSTS = {"203.0.113.31", "10.0.2.31"}


class Us:
    """Our endpoint, what it sends, and a carrier written by hand."""

    def __init__(self, resolve: Any = lambda hop: ()) -> None:
        self.now, self._number, self.resolve = 1000.0, 0, resolve
        self.sip = self.fresh()

    def fresh(self) -> Endpoint:
        return Endpoint(
            LISTENERS, self.new_id, resolve=lambda hop: self.resolve(hop), inner_hosts=INNER_HOSTS
        )

    def new_id(self) -> str:
        self._number += 1
        return f"id{self._number}"

    def sent(self) -> list[tuple[Request | Response, Flow]]:
        return [(parse_message(data), flow) for data, flow in self.sip.output()]

    def requests(self, method: str) -> list[tuple[Request, Flow]]:
        return [(m, flow) for m, flow in self.sent() if isinstance(m, Request) and m.method == method]

    def hears(self, message: Request | Response, flow: Flow) -> None:
        if flow.transport == "udp":
            self.sip.receive(message.serialise(), flow, self.now)
        else:
            self.sip.receive_stream(message.serialise(), flow, self.now)

    def passes(self, seconds: float) -> None:
        end = self.now + seconds
        while (at := self.sip.deadline()) is not None and at <= end:
            self.now = max(at, self.now)
            self.sip.handle_timer(self.now)
        self.now = end


def invite(contact: str, routes: Sequence[str] = (), transport: str = "UDP") -> Request:
    headers = [
        ("Via", f"SIP/2.0/{transport} {THEM}:5060;branch=z9hG4bKone;rport"),
        *[("Record-Route", route) for route in routes],
        ("From", "<sip:1@carrier>;tag=theirs"),
        ("To", "<sip:2@us>"),
        ("Call-ID", "call-1"),
        ("CSeq", "1 INVITE"),
        ("Contact", f"<{contact}>"),
        ("Max-Forwards", "70"),
        ("Content-Type", "application/sdp"),
    ]
    return Request("INVITE", "sip:2@us", headers, sdp(THEM).encode())


SOURCE_FLOW = Flow("public-udp", "udp", THEM, 31000)


def called(
    us: Us, contact: str, routes: Sequence[str] = (), *, flow: Flow = SOURCE_FLOW, rule: str = ROUTE
) -> str:
    """A carrier's call, answered and acknowledged."""
    us.hears(invite(contact, routes, flow.transport.upper()), flow)
    (event,) = [e for e in us.sip.events() if isinstance(e, InviteReceived)]
    us.sip.set_next_hop(event.leg, rule)
    us.sip.answer(event.leg, sdp(US), us.now)
    answer = next(m for m, f in us.sent() if isinstance(m, Response) and m.status == 200)
    ack = [
        item
        for item in invite(contact, (), flow.transport.upper()).headers
        if item[0] not in ("To", "CSeq", "Via")
    ]
    ack += [("Via", f"SIP/2.0/{flow.transport.upper()} {THEM};branch=z9hG4bKack")]
    us.hears(Request("ACK", "sip:2@us", [*ack, ("To", answer.get("To")), ("CSeq", "1 ACK")], b""), flow)
    us.sip.events()
    return event.leg


def placed(
    us: Us, contact: str, routes: Sequence[str] = (), *, rule: str = ROUTE, status: int = 200
) -> Response:
    """A call of ours that the carrier answers; its answer."""
    us.sip.invite(
        "a", flow=Flow("public-udp", "udp", THEM, 5060), target=f"sip:9@{THEM}", from_="<sip:1@us>",
        to="<sip:9@carrier>", sdp=sdp(US), next_hop=rule, now=us.now,
    )  # fmt: skip
    ((request, flow),) = us.requests("INVITE")
    answer = answer_to(request, contact, routes, status)
    us.hears(answer, flow)
    return answer


def answer_to(request: Request, contact: str, routes: Sequence[str] = (), status: int = 200) -> Response:
    headers = [("Via", request.get("Via")), *[("Record-Route", route) for route in routes]]
    headers += [("From", request.get("From")), ("Call-ID", request.call_id), ("CSeq", request.get("CSeq"))]
    to = request.get("To")
    headers += [("To", to if request.to_tag else f"{to};tag=theirs"), ("Contact", f"<{contact}>")]
    headers += [("Content-Type", "application/sdp")]
    return Response(status, "OK", headers, sdp(THEM).encode())


def where(flow: Flow) -> tuple[str, str, int]:
    return flow.transport, flow.host, flow.port


CASES = [
    # contact, routes, where requests go
    (f"sip:x@{THEM}:5070", [], ("udp", THEM, 5070)),
    (f"sip:x@{THEM}", [], ("udp", THEM, 5060)),
    ("sip:x@198.51.100.9:5062", [], ("udp", "198.51.100.9", 5062)),
    ("sip:x@198.51.100.9;transport=tcp", [], ("tcp", "198.51.100.9", 5060)),
    ("sip:x@198.51.100.9:5061;transport=TLS", [], ("tls", "198.51.100.9", 5061)),
    ("sips:x@198.51.100.9", [], ("tls", "198.51.100.9", 5061)),
    ("sip:x@nowhere.invalid;maddr=198.51.100.10", [], ("udp", "198.51.100.10", 5060)),
    (
        "sip:x@10.0.0.1:5062",
        ["<sip:198.51.100.20:5080;lr>", "<sip:10.0.0.9;lr>"],
        ("udp", "198.51.100.20", 5080),
    ),
    ("sip:x@198.51.100.9", ["<sip:198.51.100.20:5080>"], ("udp", "198.51.100.20", 5080)),
    # behind NAT, or nothing that can be followed: the source
    ("sip:x@192.168.1.5:5062", [], where(SOURCE_FLOW)),
    ("sip:x@100.64.3.2:5062", [], where(SOURCE_FLOW)),
    ("sip:x@127.0.0.1:5062", [], where(SOURCE_FLOW)),
    ("sip:x@198.51.100.9", ["<sip:10.1.1.1;lr>"], where(SOURCE_FLOW)),
    ("sip:x@224.0.1.75:5060", [], where(SOURCE_FLOW)),
    ("sip:x@0.0.0.0:5060", [], where(SOURCE_FLOW)),
    ("sip:x@0.1.2.3:5060", [], where(SOURCE_FLOW)),
    (f"sip:x@{US}:5060", [], where(SOURCE_FLOW)),
    # our own side, at whatever port
    ("sip:x@203.0.113.31:2379;transport=tcp", [], where(SOURCE_FLOW)),
    ("sip:x@198.51.100.9", ["<sip:203.0.113.31:6379;transport=tcp;lr>"], where(SOURCE_FLOW)),
    ("sip:x@198.51.100.9;transport=sctp", [], where(SOURCE_FLOW)),
    ("tel:+4930123", [], where(SOURCE_FLOW)),
    ("sip:x@[2001:db8::1]:5060", [], where(SOURCE_FLOW)),
    ("sip:x@carrier.example", [], where(SOURCE_FLOW)),
]


@pytest.mark.parametrize(("contact", "routes", "there"), CASES)
def test_requests_to_a_caller_go_where_its_dialog_leads(contact: str, routes: list[str], there: Any) -> None:
    us = Us()
    leg = called(us, contact, routes)
    us.sip.info(leg, "text/plain", b"x", us.now)
    us.sip.reinvite(leg, sdp(US, 2), us.now)
    sent = us.sent()
    assert [where(flow) for _, flow in sent] == [there, there]
    transport = there[0].upper()
    for request, flow in sent:
        assert request.get("Via").startswith(f"SIP/2.0/{transport} {US}:")
        assert flow.listener == f"public-{there[0]}"
    assert f"transport={there[0]}" in sent[1][0].get("Contact") or there[0] == "udp"


@pytest.mark.parametrize(("contact", "routes", "there"), CASES)
def test_the_ack_and_the_bye_to_a_callee_go_where_its_answer_leads(
    contact: str, routes: list[str], there: Any
) -> None:
    if there == where(SOURCE_FLOW):
        there = ("udp", THEM, 5060)  # where it was asked
    us = Us()
    placed(us, contact, routes[::-1])
    us.sip.hangup("a", us.now)
    assert [where(flow) for _, flow in us.sent()] == [there, there]


def test_the_source_can_be_insisted_on() -> None:
    us = Us()
    leg = called(us, f"sip:x@{THEM}:5070", rule=SOURCE)
    us.sip.hangup(leg, us.now)
    assert [where(f) for _, f in us.requests("BYE")] == [where(SOURCE_FLOW)]
    us = Us()
    placed(us, f"sip:x@{THEM}:5070", rule=SOURCE)
    assert [where(f) for _, f in us.requests("ACK")] == [("udp", THEM, 5060)]


def test_a_private_far_side_of_a_private_source_is_followed() -> None:
    us = Us()
    leg = called(us, "sip:x@10.1.1.2:5070", flow=Flow("public-udp", "udp", "172.16.4.4", 5060))
    us.sip.hangup(leg, us.now)
    assert [where(f) for _, f in us.requests("BYE")] == [("udp", "10.1.1.2", 5070)]


def test_a_private_far_side_does_not_lead_to_our_own_side_unless_it_is_there() -> None:
    us = Us()
    leg = called(us, "sip:x@10.0.2.31:6379;transport=tcp", flow=Flow("public-udp", "udp", "10.0.1.4", 5060))
    us.sip.hangup(leg, us.now)
    assert [where(f) for _, f in us.requests("BYE")] == [("udp", "10.0.1.4", 5060)]
    us = Us()
    leg = called(us, "sip:x@10.0.2.31:5070", flow=Flow("public-udp", "udp", "10.0.2.31", 5060))
    us.sip.hangup(leg, us.now)
    assert [where(f) for _, f in us.requests("BYE")] == [("udp", "10.0.2.31", 5070)]


def test_a_name_does_not_lead_to_our_own_side() -> None:
    us = Us(lambda hop: [("203.0.113.31", 2379), ("198.51.100.9", 5060)])
    leg = called(us, "sip:x@rebound.example")
    us.sip.hangup(leg, us.now)
    assert [where(f) for _, f in us.requests("BYE")] == [("udp", "198.51.100.9", 5060)]


def test_a_target_refresh_moves_them() -> None:
    us = Us()
    leg = called(us, f"sip:x@{THEM}:5070")
    us.sip.reinvite(leg, sdp(US, 2), us.now)
    ((request, flow),) = us.requests("INVITE")
    us.hears(answer_to(request, "sip:x@198.51.100.9:5090"), flow)
    assert [where(f) for _, f in us.requests("ACK")] == [("udp", "198.51.100.9", 5090)]


def test_a_prack_goes_there_too() -> None:
    us = Us()
    us.sip.invite(
        "a", flow=Flow("public-udp", "udp", THEM, 5060), target=f"sip:9@{THEM}", from_="<sip:1@us>",
        to="<sip:9@carrier>", sdp=sdp(US), next_hop=ROUTE, now=us.now,
    )  # fmt: skip
    ((request, flow),) = us.requests("INVITE")
    ringing = answer_to(request, "sip:x@198.51.100.9:5090", (), 183)
    ringing.headers += [("Require", "100rel"), ("RSeq", "1")]
    us.hears(ringing, flow)
    assert [where(f) for _, f in us.requests("PRACK")] == [("udp", "198.51.100.9", 5090)]
    us.sip.hangup("a", us.now)
    assert [where(f) for _, f in us.requests("CANCEL")] == [("udp", THEM, 5060)], "CANCEL follows its INVITE"


def test_tls_is_never_given_up_and_its_connection_is_used() -> None:
    flow = Flow("public-tls", "tls", THEM, 40_000, "c1")
    for contact in ("sip:x@198.51.100.9:5060;transport=udp", f"sips:x@{THEM}:5071", f"sip:x@{THEM}"):
        us = Us()
        leg = called(us, contact, flow=flow)
        us.sip.hangup(leg, us.now)
        assert [f for _, f in us.requests("BYE")] == [flow]
    us = Us()
    leg = called(us, "sip:x@198.51.100.9", flow=flow)
    us.sip.hangup(leg, us.now)
    assert [where(f) for _, f in us.requests("BYE")] == [("tls", "198.51.100.9", 5061)]


def test_tcp_goes_to_the_contact_and_over_its_connection_when_nobody_listens_there() -> None:
    flow = Flow("public-tcp", "tcp", THEM, 40_000, "c1")
    us = Us()
    leg = called(us, f"sip:x@{THEM}:5062;transport=tcp", flow=flow)
    us.sip.hangup(leg, us.now)
    ((_, asked),) = us.requests("BYE")
    assert (where(asked), asked.conn) == (("tcp", THEM, 5062), "")
    us.sip.stream_closed(asked, us.now)
    ((bye, again),) = us.requests("BYE")
    assert again == flow
    us.hears(answer_to(bye, f"sip:x@{THEM}"), flow)
    assert [e.cause for e in us.sip.events() if isinstance(e, LegEnded)] == ["local"]


# --- names


def test_a_name_is_asked_for_at_once_and_used_as_soon_as_it_is_known() -> None:
    known: dict[Hop, list[tuple[str, int]]] = {}
    asked: list[Hop] = []

    def resolve(hop: Hop) -> list[tuple[str, int]]:
        asked.append(hop)
        return known.get(hop, [])

    us = Us(resolve)
    leg = called(us, "sip:x@sbc.carrier.example")
    hop = Hop("sbc.carrier.example", None, "udp")
    assert asked and set(asked) == {hop} and us.sip.named_hops() == {hop}
    us.sip.info(leg, "text/plain", b"x", us.now)
    assert [where(f) for _, f in us.requests("INFO")] == [where(SOURCE_FLOW)], "nothing waits for DNS"
    known[hop] = [("10.0.0.8", 5060), ("198.51.100.30", 5075)]
    us.sip.info(leg, "text/plain", b"x", us.now)
    assert [where(f) for _, f in us.requests("INFO")] == [("udp", "198.51.100.30", 5075)], "not inside"
    us.sip.hangup(leg, us.now)
    assert us.requests("BYE")
    assert us.sip.named_hops() == {hop}


def test_an_answer_names_its_hop_while_it_rings() -> None:
    asked: list[Hop] = []
    us = Us(lambda hop: asked.append(hop) or ())
    placed(us, "sip:x@sbc.carrier.example:5070", status=180)
    assert asked == [Hop("sbc.carrier.example", 5070, "udp")]


def test_of_a_names_many_places_two_are_tried_before_the_source() -> None:
    places = [(f"198.51.100.{n}", 5060) for n in range(30, 36)]
    us = Us(lambda hop: places)
    leg = called(us, "sip:x@sbc.carrier.example")
    us.sip.hangup(leg, us.now)
    asked = []
    for _ in range(4):
        for _, flow in us.requests("BYE"):
            asked.append(where(flow)[1:])
            us.sip.transport_error(flow, "refused", us.now)
    assert asked == [*places[:2], where(SOURCE_FLOW)[1:]]


# --- nobody is there


def test_a_2xx_that_comes_again_is_acknowledged_both_ways() -> None:
    us = Us()
    answer = placed(us, f"sip:x@{THEM}:5070")
    assert [where(f) for _, f in us.requests("ACK")] == [("udp", THEM, 5070)]
    us.hears(answer, Flow("public-udp", "udp", THEM, 5060))
    assert [where(f) for _, f in us.requests("ACK")] == [("udp", THEM, 5070), ("udp", THEM, 5060)]


def test_the_ack_of_another_transport_says_so() -> None:
    us = Us()
    answer = placed(us, "sip:x@198.51.100.9;transport=tcp")
    us.hears(answer, Flow("public-udp", "udp", THEM, 5060))
    acks = us.requests("ACK")
    assert [m.get("Via")[:11] for m, _ in acks] == ["SIP/2.0/TCP", "SIP/2.0/TCP", "SIP/2.0/UDP"]


def test_a_contact_nobody_answers_at_costs_no_call() -> None:
    """A session refresh that times out would end the call: first the source is asked."""
    us = Us()
    leg = called(us, "sip:x@198.51.100.99:5070")
    us.sip.reinvite(leg, sdp(US, 2), us.now)
    us.requests("INVITE")
    us.passes(31.9)
    assert {where(f) for _, f in us.requests("INVITE")} == {("udp", "198.51.100.99", 5070)}
    us.passes(0.2)
    ((request, flow),) = us.requests("INVITE")
    assert where(flow) == where(SOURCE_FLOW) and request.cseq[0] == 2
    us.hears(answer_to(request, "sip:x@198.51.100.99:5070"), flow)
    assert [type(e) for e in us.sip.events()] == [ReinviteAnswered]
    assert [where(f) for _, f in us.requests("ACK")] == [where(SOURCE_FLOW)], "that place is passed over"
    us.sip.hangup(leg, us.now)
    assert {where(f) for _, f in us.requests("BYE")} == {where(SOURCE_FLOW)}
    us.passes(40)
    assert {where(f) for _, f in us.requests("BYE")} == {where(SOURCE_FLOW)}, "and each way is tried once"
    assert [e.cause for e in us.sip.events() if isinstance(e, LegEnded)] == ["local"]


def test_a_refused_way_is_left_at_once_and_both_refused_is_the_end() -> None:
    us = Us()
    leg = called(us, "sip:x@198.51.100.99:5070")
    us.sip.reinvite(leg, sdp(US, 2), us.now)
    ((_, flow),) = us.requests("INVITE")
    us.sip.transport_error(flow, "refused", us.now)
    ((_, flow),) = us.requests("INVITE")
    assert where(flow) == where(SOURCE_FLOW)
    us.sip.transport_error(flow, "refused", us.now)
    assert not us.requests("INVITE")


# --- another process


def test_the_record_is_enough_for_another_process() -> None:
    us = Us()
    leg = called(us, "sip:x@10.0.0.5", ["<sip:198.51.100.20:5080;lr>"])
    record = json.loads(json.dumps(us.sip.export_leg(leg)))
    us.sip = us.fresh()
    us.sip.import_leg("b", record, us.now)
    us.sip.hangup("b", us.now)
    assert [where(f) for _, f in us.requests("BYE")] == [("udp", "198.51.100.20", 5080)]


def test_what_was_found_silent_stays_so_and_an_older_record_is_read() -> None:
    us = Us()
    leg = called(us, "sip:x@198.51.100.99:5070")
    us.sip.info(leg, "text/plain", b"x", us.now)
    us.sip.transport_error(us.requests("INFO")[0][1], "refused", us.now)
    record = json.loads(json.dumps(us.sip.export_leg(leg)))
    assert record["silent"] == ["198.51.100.99:5070"]
    us.sip = us.fresh()
    us.sip.import_leg("b", record, us.now)
    us.sip.hangup("b", us.now)
    assert [where(f) for _, f in us.requests("BYE")] == [where(SOURCE_FLOW)]
    older = {name: value for name, value in record.items() if name not in ("next_hop", "silent")}
    us.sip = us.fresh()
    us.sip.import_leg("b", older, us.now)
    us.sip.info("b", "text/plain", b"x", us.now)
    assert [where(f) for _, f in us.requests("INFO")] == [where(SOURCE_FLOW)]
    us.sip.set_next_hop("b", ROUTE)
    us.sip.info("b", "text/plain", b"x", us.now)
    assert [where(f) for _, f in us.requests("INFO")] == [("udp", "198.51.100.99", 5070)]
