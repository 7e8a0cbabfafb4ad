"""Offers and answers before the final response: in PRACK (RFC 3262 §5) and UPDATE (RFC 3311 §5)."""

from __future__ import annotations

import json

import pytest

from ari_ha.sip import events
from ari_ha.sip.message import Request, Response
from tests.unit.sip.sipworld import Party, World, sdp

A, B = "10.0.0.1", "10.0.0.2"
REQUIRED = (("Require", "100rel"),)


class Early:
    """A call that rings with early media: b answered a's offer in a reliable 183."""

    def __init__(self, offer: bool = True, hold_prack: bool = False) -> None:
        self.world = World()
        self.a, self.b = self.world.party(A), self.world.party(B)
        self.a.call(self.b, headers=REQUIRED, sdp=sdp(A) if offer else None)
        self.world.transfer()
        self.leg = self.b.take(events.InviteReceived).leg
        self.b.agent.ring(self.leg, self.world.now, 183, sdp=sdp(B))
        if hold_prack:
            self.world.losing("PRACK")
        self.world.transfer()
        self.a.seen.clear()

    def prack(self, body: str) -> None:
        """The PRACK that got lost, with a description."""
        lost = self.a.messages("PRACK")[0]
        assert isinstance(lost, Request)
        said = Request("PRACK", lost.uri, list(lost.headers), body.encode())
        said.add("Content-Type", "application/sdp")
        self.b.agent.receive(said.serialise(), self.b.flow(self.a), self.world.now)

    def update(self, party: Party, leg: str, body: str) -> None:
        party.agent.request_in_dialog(
            leg, "UPDATE", self.world.now, content_type="application/sdp", body=body.encode()
        )
        self.world.transfer()

    def answers(self, party: Party, method: str, status: int = 200) -> list[Response]:
        return [m for m in party.messages(status) if isinstance(m, Response) and m.cseq[1] == method]


def test_a_caller_updates_his_offer_while_it_rings() -> None:
    early = Early()
    world, a, b, leg = early.world, early.a, early.b, early.leg
    held = sdp(A, 2, "sendonly")
    early.update(a, "a", held)
    assert b.take(events.ReinviteReceived).sdp == held
    b.agent.accept_reinvite(leg, sdp(B, 2, "recvonly"), world.now)
    world.transfer()
    assert a.take(events.ResponseReceived).body.decode() == sdp(B, 2, "recvonly")
    assert (b.agent.remote_sdp(leg), b.agent.leg_state(leg)) == (held, "early")
    b.agent.answer(leg, sdp(B, 3), world.now)
    world.transfer()
    (final,) = early.answers(b, "INVITE")
    assert not final.body, "an answer that is none any more (RFC 3261 §13.2.1)"
    assert a.take(events.LegAnswered) and b.take(events.LegAcked).sdp is None
    assert b.agent.remote_sdp(leg) == held, "not that of the INVITE"
    world.advance(100)
    assert b.agent.leg_state(leg) == "confirmed"


def test_a_callee_updates_his_before_he_answers() -> None:
    early = Early()
    world, a, b, leg = early.world, early.a, early.b, early.leg
    offer = sdp(B, 2)
    early.update(b, leg, offer)
    assert a.take(events.ReinviteReceived).sdp == offer
    a.agent.accept_reinvite("a", sdp(A, 2), world.now)
    world.transfer()
    assert b.take(events.ResponseReceived).body.decode() == sdp(A, 2)
    b.agent.answer(leg, sdp(B), world.now)
    world.transfer()
    assert a.take(events.LegAnswered).sdp == offer, "what the 200 repeats is older"
    assert (a.agent.local_sdp("a"), a.agent.remote_sdp("a")) == (sdp(A, 2), offer)


def test_an_offer_in_a_prack_is_answered_in_its_200() -> None:
    early = Early(hold_prack=True)
    world, b, leg = early.world, early.b, early.leg
    early.prack(sdp(A, 2))
    assert b.take(events.ReinviteReceived).sdp == sdp(A, 2)
    b.agent.answer(leg, sdp(B), world.now)
    world.transfer()
    assert not early.answers(b, "INVITE"), "first the offer, then the call"
    b.agent.accept_reinvite(leg, sdp(B, 2), world.now)
    world.transfer()
    assert [m.body.decode() for m in early.answers(b, "PRACK")] == [sdp(B, 2)]
    assert [m.body for m in early.answers(b, "INVITE")] == [b""]
    assert b.take(events.LegAcked)


def test_a_refused_offer_changes_nothing() -> None:
    early = Early(hold_prack=True)
    world, b, leg = early.world, early.b, early.leg
    early.prack(sdp(A, 2))
    b.agent.answer(leg, sdp(B), world.now)
    b.agent.reject_reinvite(leg, 488, world.now)
    world.transfer()
    assert early.answers(b, "PRACK", 488) and b.agent.remote_sdp(leg) == sdp(A)
    assert [m.body.decode() for m in early.answers(b, "INVITE")] == [sdp(B)]


def test_an_offer_the_owner_never_answers_holds_the_call_up_for_a_while_only() -> None:
    early = Early(hold_prack=True)
    world, a, b, leg = early.world, early.a, early.b, early.leg
    early.prack(sdp(A, 2))
    b.agent.answer(leg, sdp(B), world.now)
    world.advance(33)
    assert a.take(events.LegAnswered) and b.agent.leg_state(leg) == "confirmed"


def test_a_late_offer_is_answered_in_the_prack() -> None:
    early = Early(offer=False, hold_prack=True)
    world, b, leg = early.world, early.b, early.leg
    early.prack(sdp(A))
    assert b.take(events.EarlyAnswer) == events.EarlyAnswer(leg, sdp(A))
    assert not early.answers(b, "PRACK")[0].body
    b.agent.answer(leg, sdp(B), world.now)
    world.transfer()
    (final,) = early.answers(b, "INVITE")
    assert not final.body, "no second offer (RFC 3261 §13.2.1)"
    assert b.agent.remote_sdp(leg) == sdp(A)


@pytest.mark.parametrize("who", ["a", "b"])
def test_while_the_first_offer_has_no_answer_it_is_nobodys_turn(who: str) -> None:
    world = World()
    a, b = world.party(A), world.party(B)
    a.call(b)
    world.transfer()
    leg = b.take(events.InviteReceived).leg
    b.agent.ring(leg, world.now, 183, sdp=sdp(B))  # not reliable: it counts for nothing yet
    world.transfer()
    party, key = (a, "a") if who == "a" else (b, leg)
    party.agent.request_in_dialog(
        key, "UPDATE", world.now, content_type="application/sdp", body=sdp(party.name, 2).encode()
    )
    world.transfer()
    assert party.take(events.ResponseReceived).status == (500 if who == "a" else 491)
    assert not a.has(events.ReinviteReceived) and not b.has(events.ReinviteReceived)


def test_a_second_offer_waits_for_the_first() -> None:
    early = Early()
    early.update(early.a, "a", sdp(A, 2))
    early.update(early.a, "a", sdp(A, 3))
    assert early.a.take(events.ResponseReceived).status == 500


def test_a_cancel_takes_the_offer_with_it() -> None:
    early = Early()
    world, a, b, leg = early.world, early.a, early.b, early.leg
    early.update(a, "a", sdp(A, 2))
    a.agent.hangup("a", world.now)
    world.transfer()
    assert b.take(events.LegCancelled) and early.answers(b, "UPDATE", 487)
    b.agent.accept_reinvite(leg, sdp(B, 2), world.now)
    assert b.agent.counters["command.leg-gone"] == 1


def test_another_process_knows_how_far_they_are() -> None:
    early = Early()
    world, a, b, leg = early.world, early.a, early.b, early.leg
    early.update(a, "a", sdp(A, 2))
    assert b.take(events.ReinviteReceived)
    b.agent.accept_reinvite(leg, sdp(B, 2), world.now)
    world.transfer()
    record = json.loads(json.dumps(b.agent.export_leg(leg)))
    b.agent = b.start()
    b.agent.import_leg(leg, record, world.now)
    early.update(a, "a", sdp(A, 3))
    assert b.take(events.ReinviteReceived).sdp == sdp(A, 3)
    b.agent.accept_reinvite(leg, sdp(B, 3), world.now)
    b.agent.answer(leg, sdp(B, 3), world.now)
    world.transfer()
    assert not early.answers(b, "INVITE")[-1].body and b.agent.remote_sdp(leg) == sdp(A, 3)
