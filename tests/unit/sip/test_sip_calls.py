"""Calls between two endpoints: set up, refused, cancelled, ended; with loss and reordering."""

from __future__ import annotations

import pytest
from sipworld import Party, World, sdp

from ari_ha.sip.auth import Credentials, DigestAuthority, ha1
from ari_ha.sip.events import (
    InviteReceived,
    LegAcked,
    LegAnswered,
    LegCancelled,
    LegEnded,
    LegFailed,
    LegRinging,
    LocalError,
    SecondAnswer,
)
from ari_ha.sip.flow import Flow
from ari_ha.sip.message import Response, parse_message


@pytest.fixture(params=["udp", "tcp"])
def pair(request: pytest.FixtureRequest) -> tuple[World, Party, Party]:
    world = World()
    return (
        world,
        world.party("10.0.0.1", transport=request.param),
        world.party("10.0.0.2", transport=request.param),
    )


@pytest.fixture
def udp() -> tuple[World, Party, Party]:
    world = World()
    return world, world.party("10.0.0.1"), world.party("10.0.0.2")


def connect(world: World, caller: Party, callee: Party, leg: str = "a", **options: object) -> str:
    """A confirmed call; returns the callee's leg."""
    caller.call(callee, leg, **options)
    world.transfer()
    incoming: str = callee.take(InviteReceived).leg
    callee.agent.answer(incoming, sdp(callee.name), world.now)
    world.transfer()
    caller.take(LegAnswered)
    callee.take(LegAcked)
    return incoming


def test_a_call_from_ring_to_bye(pair: tuple[World, Party, Party]) -> None:
    world, a, b = pair
    a.call(b, headers=[("X-Call", "7")])
    assert a.agent.leg_state("a") == "calling"
    world.transfer()
    invite = b.take(InviteReceived)
    assert invite.request.get("x-call") == "7"
    assert b.messages(100), "100 Trying is sent at once"
    b.agent.ring(invite.leg, world.now, sdp=sdp(b.name), headers=[("X-Ring", "1")])
    world.transfer()
    ringing = a.take(LegRinging)
    assert (ringing.status, ringing.sdp) == (180, sdp(b.name))
    assert ("X-Ring", "1") in ringing.headers
    assert a.agent.leg_state("a") == b.agent.leg_state(invite.leg) == "early"
    b.agent.answer(invite.leg, sdp(b.name), world.now)
    assert b.agent.leg_state(invite.leg) == "answered"
    world.transfer()
    assert a.take(LegAnswered).sdp == sdp(b.name)
    assert b.take(LegAcked).sdp is None
    assert a.agent.leg_state("a") == b.agent.leg_state(invite.leg) == "confirmed"
    assert a.agent.remote_sdp("a") == sdp(b.name) and a.agent.local_sdp("a") == sdp(a.name)
    a.agent.hangup("a", world.now, reason_header='Q.850;cause=16;text="bye"')
    assert a.agent.leg_state("a") == "ending"
    world.transfer()
    assert a.take() == LegEnded("a", "local")
    assert b.take() == LegEnded(invite.leg, "bye", 'Q.850;cause=16;text="bye"')
    assert a.agent.leg_state("a") == "ended"
    world.advance(200)
    assert not a.seen and not b.seen and not list(a.agent.legs())
    assert a.agent.deadline() is None and b.agent.deadline() is None


def test_the_callee_may_hang_up(pair: tuple[World, Party, Party]) -> None:
    world, a, b = pair
    leg = connect(world, a, b)
    b.agent.hangup(leg, world.now)
    world.transfer()
    assert a.take() == LegEnded("a", "bye") and b.take() == LegEnded(leg, "local")


@pytest.mark.parametrize("what", ["INVITE", 100, 180, 200, "ACK", "BYE"])
def test_one_lost_message_costs_nothing(udp: tuple[World, Party, Party], what: str | int) -> None:
    world, a, b = udp
    world.losing(what)
    a.call(b)
    world.advance(0.6)
    leg = b.take(InviteReceived).leg
    b.agent.ring(leg, world.now)
    world.advance(0.6)
    b.agent.answer(leg, sdp(b.name), world.now)
    world.advance(1.6)
    a.take(LegAnswered)
    b.take(LegAcked)
    a.agent.hangup("a", world.now)
    world.advance(2)
    assert a.take(LegEnded).cause == "local" and b.take(LegEnded).cause == "bye"
    assert not b.has(InviteReceived)


def test_a_reordered_ringing_after_the_answer_changes_nothing(udp: tuple[World, Party, Party]) -> None:
    world, a, b = udp
    a.call(b)
    world.transfer()
    leg = b.take(InviteReceived).leg
    b.agent.ring(leg, world.now)
    b.agent.answer(leg, sdp(b.name), world.now)
    world.collect()
    world.wire.reverse()
    world.transfer()
    assert a.take().__class__ is LegAnswered
    assert not a.has(LegRinging) and a.agent.leg_state("a") == "confirmed"


def test_refused(pair: tuple[World, Party, Party]) -> None:
    world, a, b = pair
    a.call(b)
    world.transfer()
    leg = b.take(InviteReceived).leg
    b.agent.reject(leg, 486, world.now, headers=[("Retry-After", "9")])
    assert b.take() == LegEnded(leg, "local")
    world.transfer()
    failed = a.take()
    assert (failed.status, failed.reason) == (486, "Busy Here") and ("Retry-After", "9") in failed.headers
    assert isinstance(failed, LegFailed)
    world.advance(100)
    assert len(a.messages("ACK")) == 1 and a.agent.deadline() is None and b.agent.deadline() is None


def test_a_lost_refusal_and_a_lost_ack_are_sent_again(udp: tuple[World, Party, Party]) -> None:
    world, a, b = udp
    world.losing(486, "ACK")
    a.call(b)
    world.transfer()
    b.agent.reject(b.take(InviteReceived).leg, 486, world.now)
    world.advance(5)
    assert a.take(LegFailed).status == 486
    assert len(b.messages(486)) == 3 and len(a.messages("ACK")) == 2
    world.advance(100)
    assert a.agent.deadline() is None and b.agent.deadline() is None


def test_silence_is_408_after_64_t1(udp: tuple[World, Party, Party]) -> None:
    world, a, b = udp
    a.call(b)
    world.advance(31.9, deliver=False)
    assert not a.has(LegFailed)
    world.advance(0.2, deliver=False)
    assert a.take(LegFailed).status == 408
    assert len(a.messages("INVITE")) == 7, "T1, doubling (17.1.1.2)"


def test_a_refused_datagram_is_503_at_once(udp: tuple[World, Party, Party]) -> None:
    world, a, b = udp
    a.call(b)
    a.agent.transport_error(a.flow(b), "refused", world.now)
    failed = a.take(LegFailed)
    assert (failed.status, failed.reason) == (503, "refused")


def test_a_closed_connection_fails_only_what_had_no_reaction() -> None:
    world = World()
    a, b = world.party("10.0.0.1", transport="tcp"), world.party("10.0.0.2", transport="tcp")
    a.call(b, "heard")
    world.transfer()
    a.call(b, "unheard")
    a.agent.stream_closed(a.flow(b), world.now)
    assert a.take(LegFailed).leg == "unheard" and a.agent.leg_state("heard") == "calling"


def test_cancel_waits_for_a_provisional_response(udp: tuple[World, Party, Party]) -> None:
    world, a, b = udp
    a.call(b)
    a.agent.hangup("a", world.now, reason_header="SIP;cause=200")
    assert not a.messages("CANCEL") and a.agent.leg_state("a") == "ending"
    world.transfer()
    assert len(a.messages("CANCEL")) == 1
    leg = b.take(InviteReceived).leg
    assert b.take() == LegCancelled(leg, "SIP;cause=200")
    assert a.take() == LegEnded("a", "local")
    assert b.messages(487) and len(a.messages("ACK")) == 1
    world.advance(100)
    assert a.agent.deadline() is None and b.agent.deadline() is None


def test_cancel_while_ringing(pair: tuple[World, Party, Party]) -> None:
    world, a, b = pair
    a.call(b)
    world.transfer()
    leg = b.take(InviteReceived).leg
    b.agent.ring(leg, world.now)
    world.transfer()
    a.agent.hangup("a", world.now)
    world.transfer()
    assert a.take(LegEnded).cause == "local" and b.take() == LegCancelled(leg)
    b.agent.answer(leg, sdp(b.name), world.now)
    world.transfer()
    assert b.agent.counters["command.leg-gone"] == 1 and not b.messages(200)[1:]


def test_a_200_crossing_the_cancel_is_acked_and_ended(pair: tuple[World, Party, Party]) -> None:
    world, a, b = pair
    a.call(b)
    world.transfer()
    leg = b.take(InviteReceived).leg
    b.agent.ring(leg, world.now)
    world.transfer()
    b.agent.answer(leg, sdp(b.name), world.now)
    a.agent.hangup("a", world.now)
    world.transfer()
    assert not a.has(LegAnswered)
    assert a.take(LegEnded) == LegEnded("a", "local")
    assert b.take(LegAcked) and b.take() == LegEnded(leg, "bye")
    assert len(a.messages("BYE")) == 1 and not b.messages(487)


def test_a_cancel_nobody_reacts_to_is_given_up(udp: tuple[World, Party, Party]) -> None:
    world, a, b = udp
    a.call(b)
    world.transfer()
    b.agent.forget(b.take(InviteReceived).leg)
    a.agent.hangup("a", world.now)
    world.advance(33)
    assert a.take(LegEnded).cause == "local" and not list(a.agent.legs())


def test_hangup_before_the_ack_waits_for_it(udp: tuple[World, Party, Party]) -> None:
    world, a, b = udp
    a.call(b)
    world.transfer()
    leg = b.take(InviteReceived).leg
    b.agent.answer(leg, sdp(b.name), world.now)
    b.agent.hangup(leg, world.now)
    assert not b.messages("BYE")
    world.transfer()
    assert len(b.messages("BYE")) == 1
    assert b.take() == LegEnded(leg, "local")
    a.take(LegAnswered)
    assert a.take() == LegEnded("a", "bye")


def test_an_answer_never_acked_ends_with_bye(udp: tuple[World, Party, Party]) -> None:
    world, a, b = udp
    world.losing("ACK", times=99)
    a.call(b)
    world.transfer()
    leg = b.take(InviteReceived).leg
    b.agent.answer(leg, sdp(b.name), world.now)
    world.advance(40)
    assert b.take() == LegEnded(leg, "no-ack")
    assert len(b.messages(200)) >= 10
    a.take(LegAnswered)
    assert a.take() == LegEnded("a", "bye")


def test_an_ack_of_another_number_is_ignored(udp: tuple[World, Party, Party]) -> None:
    world, a, b = udp
    a.call(b)
    world.transfer()
    leg = b.take(InviteReceived).leg
    b.agent.answer(leg, sdp(b.name), world.now)
    world.transfer()
    ack = a.messages("ACK")[0]
    b.take(LegAcked)
    ack.set("CSeq", "9 ACK")
    b.agent.receive(ack.serialise(), b.flow(a), world.now)
    assert b.agent.counters["drop.ack-unexpected"] == 1 and not b.has(LegAcked)


def test_late_offer(udp: tuple[World, Party, Party]) -> None:
    world, a, b = udp
    a.call(b, sdp=None)
    world.transfer()
    leg = b.take(InviteReceived).leg
    b.agent.answer(leg, sdp(b.name), world.now)
    world.transfer()
    assert a.take(LegAnswered).sdp == sdp(b.name)
    assert a.agent.leg_state("a") == "answered" and not a.messages("ACK")
    a.agent.ack("a", sdp(a.name), world.now)
    world.transfer()
    assert b.take(LegAcked).sdp == sdp(a.name)
    assert b.agent.remote_sdp(leg) == sdp(a.name) and a.agent.leg_state("a") == "confirmed"
    with pytest.raises(LocalError):
        a.agent.ack("a", sdp(a.name), world.now)


def test_hangup_with_an_ack_owed_sends_ack_and_bye(udp: tuple[World, Party, Party]) -> None:
    world, a, b = udp
    a.call(b, sdp=None)
    world.transfer()
    b.agent.answer(b.take(InviteReceived).leg, sdp(b.name), world.now)
    world.transfer()
    a.take(LegAnswered)
    a.agent.hangup("a", world.now)
    world.transfer()
    assert a.take(LegEnded).cause == "local" and len(a.messages("ACK")) == len(a.messages("BYE")) == 1


def test_a_second_fork_that_answers_gets_ack_and_bye(udp: tuple[World, Party, Party]) -> None:
    world, a, b = udp
    a.call(b)
    world.transfer()
    b.agent.answer(b.take(InviteReceived).leg, sdp(b.name), world.now)
    world.transfer()
    a.take(LegAnswered)
    other = b.messages(200)[0]
    other.set("To", "<sip:10.0.0.2>;tag=other")
    a.agent.receive(other.serialise(), a.flow(b), world.now)
    assert a.take() == SecondAnswer("a", "other")
    bye = a.messages("BYE")[0]
    assert bye.to_tag == "other" and bye.cseq == (2, "BYE")
    a.agent.receive(other.serialise(), a.flow(b), world.now)
    assert not a.has(SecondAnswer) and len(a.messages("ACK")) == 3 and len(a.messages("BYE")) == 1
    assert a.agent.leg_state("a") == "confirmed"


def test_an_answer_to_a_forgotten_invite_gets_ack_and_bye(udp: tuple[World, Party, Party]) -> None:
    world, a, b = udp
    a.call(b)
    world.transfer()
    a.agent.forget("a")
    leg = b.take(InviteReceived).leg
    b.agent.answer(leg, sdp(b.name), world.now)
    world.transfer()
    assert b.take(LegAcked) and b.take() == LegEnded(leg, "bye")
    assert a.agent.events() == [] and a.agent.counters["stray-answers"] == 1
    world.advance(100)
    assert a.agent.deadline() is None


def test_an_answer_that_is_not_ours_is_dropped(udp: tuple[World, Party, Party]) -> None:
    world, a, b = udp
    a.call(b)
    world.transfer()
    b.agent.answer(b.take(InviteReceived).leg, sdp(b.name), world.now)
    world.collect()
    answer = b.messages(200)[0]
    answer.set("Via", "SIP/2.0/UDP 10.9.9.9:5060;branch=z9hG4bKother")
    b.agent.receive(answer.serialise(), b.flow(a), world.now)
    assert not b.messages("BYE") and b.agent.counters["drop.response-unmatched"] == 1


def test_forget_is_silent(udp: tuple[World, Party, Party]) -> None:
    world, a, b = udp
    leg = connect(world, a, b)
    b.agent.forget(leg)
    world.advance(60)
    assert not b.has(LegEnded) and not b.messages("BYE") and b.agent.leg_state(leg) == "ended"
    a.agent.hangup("a", world.now)
    world.transfer()
    assert a.take(LegEnded).cause == "local" and b.messages(481)


def test_a_forgotten_unanswered_caller_hears_nothing_and_makes_no_new_call(
    udp: tuple[World, Party, Party],
) -> None:
    world, a, b = udp
    world.losing(100)
    a.call(b)
    world.transfer()
    b.agent.forget(b.take(InviteReceived).leg)
    world.advance(20)
    assert not b.has(InviteReceived) and len(b.sent) == 1


def test_both_hang_up_at_once(udp: tuple[World, Party, Party]) -> None:
    world, a, b = udp
    leg = connect(world, a, b)
    a.agent.hangup("a", world.now)
    b.agent.hangup(leg, world.now)
    world.advance(1)
    assert a.take(LegEnded).cause == "local" and b.take(LegEnded).cause == "local"
    assert not a.seen and not b.seen


def test_bye_of_a_caller_that_gives_up_early(udp: tuple[World, Party, Party]) -> None:
    world, a, b = udp
    a.call(b)
    world.transfer()
    leg = b.take(InviteReceived).leg
    b.agent.ring(leg, world.now)
    world.transfer()
    to = b.messages(180)[0].get("To")
    bye = a.messages("INVITE")[0]
    bye = parse_message(bye.serialise().replace(b"INVITE", b"BYE"))
    bye.set("To", to)
    bye.set("CSeq", "2 BYE")
    bye.set("Via", "SIP/2.0/UDP 10.0.0.1:5060;branch=z9hG4bKbye")
    b.agent.receive(bye.serialise(), b.flow(a), world.now)
    assert b.take() == LegEnded(leg, "bye") and b.messages(487)


def test_an_unanswered_bye_still_ends_the_leg(udp: tuple[World, Party, Party]) -> None:
    world, a, b = udp
    connect(world, a, b)
    world.losing("BYE", times=99)
    a.agent.hangup("a", world.now)
    world.advance(33)
    assert a.take() == LegEnded("a", "local")


def test_ringing_is_repeated_and_expires_is_kept(udp: tuple[World, Party, Party]) -> None:
    world, a, b = udp
    a.call(b, headers=[("Expires", "150")])
    world.transfer()
    leg = b.take(InviteReceived).leg
    b.agent.ring(leg, world.now)
    world.advance(149)
    assert len(b.messages(180)) == 3 and a.take(LegRinging)
    world.advance(2)
    assert b.take() == LegCancelled(leg) and a.take(LegFailed).status == 487


def test_a_challenge_is_answered_once(udp: tuple[World, Party, Party]) -> None:
    world, a, b = udp
    authority = DigestAuthority("lab", b"k")
    stored = {"alice": {"SHA-256": ha1("SHA-256", "alice", "lab", "secret")}}
    a.call(b, credentials=Credentials("alice", "secret"))
    world.transfer()
    leg = b.take(InviteReceived).leg
    challenge = [("WWW-Authenticate", value) for value in authority.challenge(world.now, "n")]
    b.agent.reject(leg, 401, world.now, headers=challenge)
    b.take(LegEnded)
    world.transfer()
    second = b.take(InviteReceived)
    assert second.request.cseq == (2, "INVITE") and authority.verify(second.request, stored, world.now).ok
    first, again = a.messages("INVITE")
    assert first.call_id == again.call_id and first.from_tag == again.from_tag
    assert not a.has(LegFailed)
    b.agent.answer(second.leg, sdp(b.name), world.now)
    world.transfer()
    a.take(LegAnswered)
    assert a.messages("ACK")[-1].has("Authorization"), "section 22.1"


def test_wrong_credentials_fail_with_the_second_challenge(udp: tuple[World, Party, Party]) -> None:
    world, a, b = udp
    authority = DigestAuthority("lab", b"k")
    a.call(b, credentials=Credentials("alice", "wrong"))
    for salt in ("1", "2"):
        world.transfer()
        leg = b.take(InviteReceived).leg
        value = authority.challenge(world.now, salt)[0]
        b.agent.reject(leg, 407, world.now, headers=[("Proxy-Authenticate", value)])
    world.transfer()
    assert a.take(LegFailed).status == 407 and len(a.messages("INVITE")) == 2


def test_local_mistakes_raise(udp: tuple[World, Party, Party]) -> None:
    world, a, b = udp
    leg = connect(world, a, b)
    with pytest.raises(LocalError):
        a.call(b, "a")
    with pytest.raises(LocalError):
        b.agent.answer(leg, sdp(), world.now)
    with pytest.raises(LocalError):
        b.agent.ring(leg, world.now)
    with pytest.raises(LocalError):
        a.call(b, "c", headers=[("Call-ID", "mine")])
    with pytest.raises(LocalError):
        a.agent.export_leg("nobody")
    a.agent.hangup("nobody", world.now)
    assert a.agent.counters["command.leg-gone"] == 1


def test_responses_follow_the_source_and_requests_the_last_source(udp: tuple[World, Party, Party]) -> None:
    world, a, b = udp
    leg = connect(world, a, b)
    b.agent.info(leg, "text/plain", b"x", world.now)
    info = b.messages("INFO")[0]
    moved = a.flow(b).__class__("main", "udp", "192.0.2.7", 31000)
    a.agent.receive(info.serialise(), moved, world.now)
    data, flow = a.agent.output()[-1]
    answer = parse_message(data)
    assert flow == moved and isinstance(answer, Response)
    assert answer.top_via.params["received"] == "192.0.2.7" and answer.top_via.params["rport"] == "31000"
    assert a.agent.leg_flow("a") == moved
    a.agent.hangup("a", world.now)
    assert a.agent.output()[-1][1] == moved


def test_route_sets_loose_and_strict(udp: tuple[World, Party, Party]) -> None:
    world, a, b = udp
    a.call(b, headers=[("Route", "<sip:proxy;lr>")])
    world.transfer()
    assert a.messages("INVITE")[0].get("Route") == "<sip:proxy;lr>"
    leg = b.take(InviteReceived).leg
    b.agent.answer(leg, sdp(b.name), world.now)
    world.collect()
    answer = b.messages(200)[0]
    answer.add("Record-Route", "<sip:p2;lr>, <sip:p1;lr>")
    world.drop()
    a.agent.receive(answer.serialise(), a.flow(b), world.now)
    ack = a.messages("ACK")[0]
    assert ack.uri == "sip:10.0.0.2:5060" and ack.get_all("Route") == ["<sip:p1;lr>", "<sip:p2;lr>"]


def test_limits_refuse_new_calls_only() -> None:
    from ari_ha.sip.settings import EndpointSettings

    world = World()
    a, b = world.party("10.0.0.1"), world.party("10.0.0.2", settings=EndpointSettings(legs_max=1))
    connect(world, a, b, "a")
    a.call(b, "c")
    world.transfer()
    failed = a.take(LegFailed)
    assert (failed.leg, failed.status) == ("c", 503) and ("Retry-After", "5") in failed.headers


def test_a_full_table_keeps_no_call_from_being_ended() -> None:
    from ari_ha.sip.settings import EndpointSettings

    world = World()
    a, b = world.party("10.0.0.1"), world.party("10.0.0.2", settings=EndpointSettings(transactions_max=8))
    connect(world, a, b, "a")
    world.advance(40)
    stranger = world.party("10.0.0.3")
    for n in range(12):
        stranger.agent.request(
            f"r{n}", "MESSAGE", flow=stranger.flow(b), target="sip:10.0.0.2", from_="<sip:s>", to="<sip:b>",
            now=world.now,
        )  # fmt: skip
    world.transfer()
    assert b.agent.counters["refused.503"] == 4
    a.agent.hangup("a", world.now)
    world.transfer()
    assert a.take(LegEnded).cause == "local" and b.take(LegEnded).cause == "bye"


def test_an_answer_goes_over_the_connection_there_is_now() -> None:
    world = World()
    a, b = world.party("10.0.0.1", transport="tcp"), world.party("10.0.0.2", transport="tcp")
    a.call(b)
    world.transfer()
    leg = b.take(InviteReceived).leg
    gone = b.agent.leg_flow(leg)
    b.agent.stream_closed(gone, world.now)
    now = Flow("main", "tcp", "10.0.0.1", 40_000, "new")
    b.agent.move_flow(leg, now)
    b.agent.answer(leg, sdp("10.0.0.2"), world.now)
    assert [flow for data, flow in b.agent.output() if data.startswith(b"SIP/2.0 200")] == [now]
