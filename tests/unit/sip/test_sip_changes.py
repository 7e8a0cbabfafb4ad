"""Confirmed calls that change: re-INVITE both ways, glare, UPDATE, INFO, other requests, session timers."""

from __future__ import annotations

import pytest
from sipworld import Party, World, sdp

from ari_ha.sip.auth import Credentials, DigestAuthority
from ari_ha.sip.events import (
    InDialogRequest,
    InfoReceived,
    InviteReceived,
    LegAcked,
    LegAnswered,
    LegEnded,
    LegFailed,
    LocalError,
    ReinviteAnswered,
    ReinviteFailed,
    ReinviteReceived,
    RequestFailed,
    ResponseReceived,
)
from ari_ha.sip.message import Message


def connected(
    offer_options: dict[str, object] | None = None, **options: object
) -> tuple[World, Party, Party, str]:
    world = World()
    a, b = world.party("10.0.0.1", **options), world.party("10.0.0.2", **options)
    a.call(b, **(offer_options or {}))
    world.transfer()
    leg = b.take(InviteReceived).leg
    b.agent.answer(leg, sdp(b.name), world.now)
    world.transfer()
    a.take(LegAnswered)
    b.take(LegAcked)
    return world, a, b, leg


def altered(message: Message, cseq: str, branch: str) -> bytes:
    """The same message as a new transaction."""
    message.set("CSeq", cseq)
    message.set("Via", f"SIP/2.0/UDP 10.0.0.1:5060;branch=z9hG4bK{branch};rport")
    return message.serialise()


def test_a_reinvite_is_offered_and_answered() -> None:
    world, a, b, leg = connected()
    hold = sdp(a.name, 2, "sendonly")
    a.agent.reinvite("a", hold, world.now, headers=[("X-Why", "hold")])
    with pytest.raises(LocalError):
        a.agent.reinvite("a", hold, world.now)
    world.transfer()
    received = b.take(ReinviteReceived)
    assert received.sdp == hold and ("X-Why", "hold") in received.headers
    b.agent.accept_reinvite(leg, sdp(b.name, 2, "recvonly"), world.now)
    world.transfer()
    assert a.take() == ReinviteAnswered("a", sdp(b.name, 2, "recvonly"))
    assert a.agent.local_sdp("a") == b.agent.remote_sdp(leg) == hold
    assert not b.has(LegAcked) and len(a.messages("ACK")) == 2
    world.advance(100)
    assert a.agent.deadline() is None and b.agent.deadline() is None


def test_a_reinvite_gets_a_100_when_its_answer_takes_long() -> None:
    """Until then it is repeated, and heard by whoever goes on where this process dies."""
    world, a, b, leg = connected()
    trying = len(b.messages(100))
    a.agent.reinvite("a", sdp(a.name, 2, "sendonly"), world.now)
    world.transfer()
    assert b.has(ReinviteReceived) and len(b.messages(100)) == trying
    world.advance(0.25)
    assert len(b.messages(100)) == trying + 1
    world.advance(10)
    assert len(a.messages("INVITE")) == 2, "nor is it repeated then"
    b.agent.accept_reinvite(leg, sdp(b.name, 2, "recvonly"), world.now)
    world.transfer()
    assert a.take(ReinviteAnswered)


def test_a_reinvite_without_sdp_brings_an_offer() -> None:
    world, a, b, leg = connected()
    a.agent.reinvite("a", None, world.now)
    world.transfer()
    assert b.take(ReinviteReceived).sdp is None
    b.agent.accept_reinvite(leg, sdp(b.name, 2), world.now)
    world.transfer()
    assert a.take() == ReinviteAnswered("a", sdp(b.name, 2))
    a.agent.ack("a", sdp(a.name, 2), world.now)
    world.transfer()
    assert b.take() == LegAcked(leg, sdp(a.name, 2))


def test_a_refused_reinvite_changes_nothing() -> None:
    world, a, b, leg = connected()
    a.agent.reinvite("a", sdp(a.name, 2), world.now)
    world.transfer()
    b.agent.reject_reinvite(leg, 488, world.now)
    world.transfer()
    assert a.take() == ReinviteFailed("a", 488)
    assert a.agent.local_sdp("a") == sdp(a.name) and a.agent.leg_state("a") == "confirmed"
    a.agent.reinvite("a", sdp(a.name, 2), world.now)


def test_lost_reinvite_messages_are_made_good() -> None:
    for what in ("INVITE", 200, "ACK"):
        world, a, b, leg = connected()
        world.losing(what)
        a.agent.reinvite("a", sdp(a.name, 2), world.now)
        world.advance(0.6)
        b.take(ReinviteReceived)
        b.agent.accept_reinvite(leg, sdp(b.name, 2), world.now)
        world.advance(1.2)
        a.take(ReinviteAnswered)
        assert not b.has(ReinviteReceived)
        world.advance(100)
        assert a.agent.leg_state("a") == "confirmed" == b.agent.leg_state(leg)
        assert a.agent.deadline() is None and b.agent.deadline() is None


def test_glare_is_491_both_ways_and_settles() -> None:
    world, a, b, leg = connected()
    a.agent.reinvite("a", sdp(a.name, 2), world.now)
    b.agent.reinvite(leg, sdp(b.name, 2), world.now)
    world.transfer()
    assert len(a.messages(491)) == len(b.messages(491)) == 1
    for party, other, key in ((b, a, "a"), (a, b, leg)):
        world.advance(3.2)
        other.take(ReinviteReceived)
        other.agent.accept_reinvite(key, sdp(other.name, 3), world.now)
        world.transfer()
        party.take(ReinviteAnswered)
    assert not a.has(ReinviteFailed) and not b.has(ReinviteFailed)


def test_eternal_glare_is_given_up() -> None:
    world, a, b, leg = connected()
    a.agent.reinvite("a", sdp(a.name, 2), world.now)
    for _ in range(4):
        world.transfer()
        b.agent.reject_reinvite(leg, 491, world.now)
        world.transfer()
        world.advance(4.1)
    assert a.take() == ReinviteFailed("a", 491) and len(a.messages("INVITE")) == 5


def test_our_reinvite_waits_while_theirs_is_open() -> None:
    world, a, b, leg = connected()
    a.agent.reinvite("a", sdp(a.name, 2), world.now)
    world.transfer()
    b.agent.reinvite(leg, sdp(b.name, 3), world.now)
    b.agent.accept_reinvite(leg, sdp(b.name, 2), world.now)
    world.transfer()
    a.take(ReinviteAnswered)
    world.advance(0.01)
    a.take(ReinviteReceived)


def test_an_early_second_reinvite_is_500_with_retry_after() -> None:
    world, a, b, leg = connected()
    a.agent.reinvite("a", sdp(a.name, 2), world.now)
    world.transfer()
    again = a.messages("INVITE")[-1]
    b.agent.receive(altered(again, "3 INVITE", "second"), b.flow(a), world.now)
    refused = b.messages(500)[0]
    assert 0 <= int(refused.get("Retry-After")) <= 10


def test_requests_out_of_order_are_500() -> None:
    world, a, b, leg = connected()
    a.agent.info("a", "text/plain", b"1", world.now)
    world.transfer()
    info = a.messages("INFO")[0]
    b.agent.receive(altered(info, "2 INFO", "late"), b.flow(a), world.now)
    b.agent.receive(altered(info, "1 INFO", "later"), b.flow(a), world.now)
    assert len(b.messages(500)) == 2
    b.take(InfoReceived)
    assert not b.has(InfoReceived)


def test_a_cancelled_reinvite_leaves_the_call() -> None:
    world, a, b, leg = connected()
    a.agent.reinvite("a", sdp(a.name, 2), world.now)
    world.transfer()
    b.take(ReinviteReceived)
    cancel = a.messages("INVITE")[-1]
    cancel.method = "CANCEL"
    cancel.set("CSeq", "2 CANCEL")
    b.agent.receive(cancel.serialise(), b.flow(a), world.now)
    assert b.take() == ReinviteFailed(leg, 487)
    world.transfer()
    assert a.take() == ReinviteFailed("a", 487)
    b.agent.accept_reinvite(leg, sdp(b.name), world.now)
    assert b.agent.leg_state(leg) == "confirmed"


def test_bye_with_a_reinvite_open() -> None:
    world, a, b, leg = connected()
    a.agent.reinvite("a", sdp(a.name, 2), world.now)
    world.transfer()
    a.agent.hangup("a", world.now)
    world.transfer()
    assert b.messages(487) and a.take() == LegEnded("a", "local")
    b.take(ReinviteReceived)
    assert b.take() == LegEnded(leg, "bye")


def test_481_and_408_mean_gone() -> None:
    for status in (481, 408):
        world, a, b, leg = connected()
        a.agent.reinvite("a", sdp(a.name, 2), world.now)
        world.transfer()
        b.agent.reject_reinvite(leg, status, world.now)
        world.transfer()
        assert a.take() == LegEnded("a", "gone")
        assert len(a.messages("BYE")) == (1 if status == 408 else 0)


def test_a_silent_far_side_is_found_gone_by_reinvite_but_not_by_info() -> None:
    world, a, b, leg = connected()
    world.losing("INVITE", "INFO", times=99)
    a.agent.info("a", "text/plain", b"1", world.now)
    world.advance(33)
    assert a.agent.leg_state("a") == "confirmed"
    a.agent.reinvite("a", sdp(a.name, 2), world.now)
    world.advance(33)
    assert a.take() == LegEnded("a", "gone")


def test_a_transport_error_does_not_end_a_call() -> None:
    world, a, b, leg = connected()
    a.agent.reinvite("a", sdp(a.name, 2), world.now)
    a.agent.transport_error(a.flow(b), "refused", world.now)
    assert a.take() == ReinviteFailed("a", 503) and a.agent.leg_state("a") == "confirmed"


def test_info() -> None:
    world, a, b, leg = connected()
    a.agent.info("a", "application/dtmf-relay", b"Signal=5", world.now, headers=[("X-N", "1")])
    world.transfer()
    info = b.take(InfoReceived)
    assert (info.content_type, info.body) == ("application/dtmf-relay", b"Signal=5")
    assert ("X-N", "1") in info.headers and b.messages(200)


def test_other_requests_go_to_the_owner_and_their_answers_back() -> None:
    world, a, b, leg = connected()
    a.agent.request_in_dialog("a", "REFER", world.now, headers=[("Refer-To", "<sip:x@y>")])
    world.transfer()
    refer = b.take(InDialogRequest)
    assert refer.leg == leg and refer.request.get("Refer-To") == "<sip:x@y>" and refer.request.has("Contact")
    b.agent.respond(refer.txn, 202, world.now, headers=[("X-A", "b")])
    world.transfer()
    answer = a.take(ResponseReceived)
    assert (answer.key, answer.status, answer.reason) == ("a", 202, "Accepted")
    b.agent.respond(refer.txn, 200, world.now)
    assert b.agent.counters["command.request-gone"] == 1


def test_an_unanswered_request_times_out_on_both_sides() -> None:
    world, a, b, leg = connected()
    a.agent.request_in_dialog("a", "MESSAGE", world.now, content_type="text/plain", body=b"hi")
    world.advance(33)
    assert a.take() == RequestFailed("a", "timeout") and a.agent.leg_state("a") == "confirmed"
    assert b.take(InDialogRequest).request.body == b"hi"
    assert b.agent.counters["requests-unanswered"] == 1 and b.agent.deadline() is None


def test_options_in_the_dialog_is_answered() -> None:
    world, a, b, leg = connected()
    a.agent.request_in_dialog("a", "OPTIONS", world.now)
    world.transfer()
    assert a.take(ResponseReceived).status == 200 and not b.seen


def test_update_without_and_with_sdp() -> None:
    world, a, b, leg = connected()
    a.agent.request_in_dialog("a", "UPDATE", world.now)
    world.transfer()
    assert a.take(ResponseReceived).status == 200 and not b.seen
    offer = sdp(a.name, 2, "sendonly")
    for body in (sdp(a.name), offer):
        a.agent.request_in_dialog(
            "a", "UPDATE", world.now, content_type="application/sdp", body=body.encode()
        )
        world.transfer()
    assert a.take(ResponseReceived).body.decode() == sdp(b.name), "unchanged: answered with the same SDP"
    assert b.take(ReinviteReceived).sdp == offer and not b.has(ReinviteReceived)
    b.agent.accept_reinvite(leg, sdp(b.name, 2, "recvonly"), world.now)
    world.transfer()
    assert a.take(ResponseReceived).body.decode() == sdp(b.name, 2, "recvonly")
    assert b.agent.remote_sdp(leg) == offer
    world.advance(100)
    assert b.agent.leg_state(leg) == "confirmed" and b.agent.deadline() is None


def test_update_with_sdp_nobody_answers_is_given_up() -> None:
    world, a, b, leg = connected()
    body = sdp(a.name, 2).encode()
    a.agent.request_in_dialog("a", "UPDATE", world.now, content_type="application/sdp", body=body)
    world.losing("BYE", times=99)
    world.advance(33)
    assert a.take() == RequestFailed("a", "timeout") and a.take() == LegEnded("a", "gone")
    b.agent.accept_reinvite(leg, sdp(b.name), world.now)
    assert b.agent.counters["command.no-reinvite"] == 1


def test_in_dialog_requests_are_authenticated() -> None:
    world, a, b, leg = connected({"credentials": Credentials("alice", "secret")})
    authority = DigestAuthority("lab", b"k")
    a.agent.request_in_dialog("a", "MESSAGE", world.now, body=b"x", content_type="text/plain")
    world.transfer()
    challenge = [("WWW-Authenticate", authority.challenge(world.now, "1")[0])]
    b.agent.respond(b.take(InDialogRequest).txn, 401, world.now, headers=challenge)
    world.transfer()
    again = b.take(InDialogRequest)
    assert again.request.has("Authorization") and again.request.cseq == (3, "MESSAGE")
    b.agent.respond(again.txn, 200, world.now)
    a.agent.reinvite("a", sdp(a.name, 2), world.now)
    world.transfer()
    b.agent.reject_reinvite(leg, 401, world.now, headers=challenge)
    world.transfer()
    b.take(ReinviteReceived)
    assert b.take(ReinviteReceived).sdp == sdp(a.name, 2)
    b.agent.accept_reinvite(leg, sdp(b.name, 2), world.now)
    world.transfer()
    assert a.take(ReinviteAnswered)


# session timers (RFC 4028)


@pytest.mark.parametrize("refresher", ["uac", "uas"])
def test_the_refresher_refreshes_and_nobody_is_bothered(refresher: str) -> None:
    expires = [("Session-Expires", f"1800;refresher={refresher}")]
    world, a, b, leg = connected({"headers": expires})
    world.advance(10_000)
    party, other = (a, b) if refresher == "uac" else (b, a)
    assert 10 <= len(party.messages("INVITE")) <= 12
    assert len(other.messages("INVITE")) <= 1 and other.agent.counters["refreshes-answered"] >= 10
    assert not a.seen and not b.seen
    assert a.agent.leg_state("a") == "confirmed" == b.agent.leg_state(leg)
    offers = {m.body for m in party.messages("INVITE") if m.to_tag}
    assert offers == {sdp(party.name).encode()}, "o= version unchanged"


def test_without_refreshes_the_call_ends_before_the_interval() -> None:
    world, a, b, leg = connected({"headers": [("Session-Expires", "1800;refresher=uac")]})
    start = world.now
    a.agent.forget("a")
    world.losing("INVITE", "BYE", times=999)
    world.advance(1767)
    assert b.agent.leg_state(leg) == "confirmed"
    world.advance(2)
    assert b.take() == LegEnded(leg, "session-expired") and b.messages("BYE")
    assert world.now - start < 1800


def test_a_refresher_nobody_answers_gives_up_with_gone() -> None:
    world, a, b, leg = connected({"session_expires": 1800, "headers": ()})
    b.agent.forget(leg)
    world.advance(1000)
    assert a.take() == LegEnded("a", "gone")


def test_a_refresh_waits_while_something_else_is_open() -> None:
    world, a, b, leg = connected({"headers": [("Session-Expires", "1800;refresher=uac")]})
    world.advance(890)
    b.agent.reinvite(leg, sdp(b.name, 2), world.now)
    world.transfer()
    a.take(ReinviteReceived)
    world.advance(20)
    assert len(a.messages("INVITE")) == 1, "theirs is open: ours waits"
    a.agent.accept_reinvite("a", sdp(a.name, 2), world.now)
    world.advance(2000)
    assert len(a.messages("INVITE")) >= 2 and a.agent.leg_state("a") == "confirmed"


def test_a_refused_refresh_is_tried_again_and_the_call_ends_only_with_its_interval() -> None:
    world, a, b, leg = connected({"headers": [("Session-Expires", "1800;refresher=uac")]})
    b.agent._core.legs[leg].remote_sdp = "something else"
    start = world.now
    while a.agent.leg_state("a") == "confirmed" and world.now < start + 3000:
        world.advance(1)
        if b.has(ReinviteReceived):
            b.take(ReinviteReceived)
            b.agent.reject_reinvite(leg, 503, world.now)
    assert 1760 < world.now - start < 1801 and len(a.messages("INVITE")) > 4


def test_a_reinvite_nobody_answers_fails_and_a_late_answer_is_still_acked() -> None:
    world, a, b, leg = connected()
    a.agent.reinvite("a", sdp(a.name, 2), world.now)
    world.advance(61)
    assert a.take() == ReinviteFailed("a", 408) and a.agent.leg_state("a") == "confirmed"
    for wait in (1, 100):
        world.advance(wait)
        b.take(ReinviteReceived)
        b.agent.accept_reinvite(leg, sdp(b.name, 2), world.now)
        world.advance(2)
        assert b.agent.leg_state(leg) == a.agent.leg_state("a") == "confirmed"
        assert b.agent._core.legs[leg].inc is None, "the ACK came"
        a.agent.reinvite("a", sdp(a.name, wait), world.now)
        world.advance(61)
        a.take(ReinviteFailed)


def test_a_too_small_interval_is_422_and_followed() -> None:
    world, a, b = World(), None, None
    a, b = world.party("10.0.0.1"), world.party("10.0.0.2")
    a.call(b, session_expires=60)
    world.transfer()
    assert b.messages(422)[0].get("Min-SE") == "90"
    invite = b.take(InviteReceived)
    assert invite.request.get("Session-Expires") == "90" and invite.request.get("Min-SE") == "90"
    assert invite.request.cseq == (2, "INVITE") and not a.has(LegFailed)
    b.agent.answer(invite.leg, sdp(b.name), world.now)
    world.transfer()
    assert b.messages(200)[0].get("Session-Expires").startswith("90;refresher=ua")
    world.advance(1000)
    assert a.agent.leg_state("a") == "confirmed"


def test_a_refresh_whose_answer_changed_is_told() -> None:
    world, a, b, leg = connected({"headers": [("Session-Expires", "1800;refresher=uac")]})
    b.agent._core.legs[leg].remote_sdp = "something else"
    world.advance(901)
    b.take(ReinviteReceived)
    b.agent.accept_reinvite(leg, sdp(b.name, 2, port=6000), world.now)
    world.transfer()
    assert a.take() == ReinviteAnswered("a", sdp(b.name, 2, port=6000))


def test_a_refresh_offering_an_impossible_direction_is_the_owners() -> None:
    world, a, b, leg = connected()
    a.agent.reinvite("a", sdp(a.name, 2, "sendonly"), world.now)
    world.transfer()
    b.take(ReinviteReceived)
    b.agent.accept_reinvite(leg, sdp(b.name, 2, "recvonly"), world.now)
    world.transfer()
    a.agent.reinvite("a", sdp(a.name, 2, "sendonly"), world.now)
    world.transfer()
    assert not b.has(ReinviteReceived) and a.take(ReinviteAnswered) and a.take(ReinviteAnswered)
    b.agent._core.legs[leg].local_sdp = sdp(b.name, 3, "sendrecv")
    a.agent.reinvite("a", sdp(a.name, 2, "sendonly"), world.now)
    world.transfer()
    assert b.has(ReinviteReceived)
