"""A new process goes on with legs: exported and imported at every point of a call, through JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from sipworld import Party, World, sdp

from ari_ha.sip.auth import Credentials, DigestAuthority
from ari_ha.sip.events import (
    InviteReceived,
    LegAcked,
    LegAnswered,
    LegCancelled,
    LegEnded,
    LegFailed,
    LegRinging,
    ReinviteAcked,
    ReinviteAnswered,
    ReinviteReceived,
)
from ari_ha.sip.message import Request


@pytest.fixture
def trio() -> tuple[World, Party, Party]:
    world = World()
    return world, world.party("10.0.0.1"), world.party("10.0.0.2")


def restart(world: World, party: Party, lose: bool = False, **options: object) -> None:
    """The process dies; another one with the same address has the records."""
    world.collect()
    records = {leg: json.loads(json.dumps(party.agent.export_leg(leg))) for leg in party.agent.legs()}
    if lose:
        world.wire = [item for item in world.wire if item[0] is not party]
    party.agent = party.start()
    for leg, record in records.items():
        party.agent.import_leg(leg, record, world.now, **options)


def ringing(world: World, a: Party, b: Party) -> str:
    """``a`` calls, and ``b`` rings; its leg."""
    a.call(b)
    world.transfer()
    leg = b.take(InviteReceived).leg
    b.agent.ring(leg, world.now)
    world.transfer()
    return leg


def connected(world: World, a: Party, b: Party) -> str:
    """``a`` calls, and ``b`` answers; its leg."""
    a.call(b)
    world.transfer()
    leg = b.take(InviteReceived).leg
    b.agent.answer(leg, sdp(b.name), world.now)
    world.transfer()
    return leg


def finish(world: World, a: Party, b: Party, leg: str) -> None:
    """Both sides can still end it normally."""
    b.agent.hangup(leg, world.now)
    world.advance(2)
    assert a.take(LegEnded).cause == "bye" and b.take(LegEnded).cause == "local"
    world.advance(100)
    assert a.agent.deadline() is None and b.agent.deadline() is None


@pytest.mark.parametrize("side", ["caller", "callee", "both"])
@pytest.mark.parametrize("point", ["calling", "early", "answered", "confirmed"])
def test_a_restart_at_any_point_of_the_set_up(
    trio: tuple[World, Party, Party], side: str, point: str
) -> None:
    world, a, b = trio

    def at(now: str) -> None:
        if now == point:
            for party in (a, b):
                if side in ("both", "caller" if party is a else "callee"):
                    restart(world, party)

    a.call(b)
    world.transfer()
    leg = b.take(InviteReceived).leg
    at("calling")
    b.agent.ring(leg, world.now)
    world.transfer()
    a.take(LegRinging)
    at("early")
    b.agent.answer(leg, sdp(b.name), world.now)
    at("answered")
    world.advance(1)
    a.take(LegAnswered)
    b.take(LegAcked)
    at("confirmed")
    assert a.agent.leg_state("a") == b.agent.leg_state(leg) == "confirmed"
    a.agent.reinvite("a", sdp(a.name, 2), world.now)
    world.transfer()
    b.take(ReinviteReceived)
    b.agent.accept_reinvite(leg, sdp(b.name, 2), world.now)
    world.transfer()
    a.take(ReinviteAnswered)
    finish(world, a, b, leg)


def test_a_callers_retransmission_and_cancel_find_the_new_process(trio: tuple[World, Party, Party]) -> None:
    world, a, b = trio
    world.losing(180)
    leg = ringing(world, a, b)
    restart(world, b)
    again = a.messages("INVITE")[0]
    b.agent.receive(again.serialise(), b.flow(a), world.now)
    world.transfer()
    assert a.take(LegRinging) and not b.has(InviteReceived)
    a.agent.hangup("a", world.now)
    world.transfer()
    assert b.take() == LegCancelled(leg) and a.take(LegEnded)


def test_the_new_caller_process_can_cancel(trio: tuple[World, Party, Party]) -> None:
    world, a, b = trio
    leg = ringing(world, a, b)
    restart(world, a)
    a.agent.hangup("a", world.now)
    world.transfer()
    assert b.take(LegCancelled) == LegCancelled(leg) and a.take(LegEnded).cause == "local"


def test_an_unacked_answer_is_sent_on(trio: tuple[World, Party, Party]) -> None:
    world, a, b = trio
    a.call(b)
    world.transfer()
    leg = b.take(InviteReceived).leg
    b.agent.answer(leg, sdp(b.name), world.now)
    restart(world, b, lose=True)
    assert b.agent.leg_state(leg) == "answered"
    world.advance(2)
    assert a.take(LegAnswered) and b.take(LegAcked)
    finish(world, a, b, leg)


def test_an_answer_that_comes_again_to_a_new_process_gets_its_ack(trio: tuple[World, Party, Party]) -> None:
    world, a, b = trio
    a.call(b)
    world.transfer()
    leg = b.take(InviteReceived).leg
    b.agent.answer(leg, sdp(b.name), world.now)
    world.losing("ACK")
    world.transfer()
    a.take(LegAnswered)
    restart(world, a)
    world.advance(2)
    assert b.take(LegAcked) and a.agent.leg_state("a") == "confirmed"
    assert not a.messages("BYE")


@pytest.mark.parametrize("written", [False, True])
def test_an_answer_is_not_lost_with_the_process_whose_ack_was_held_back(
    trio: tuple[World, Party, Party], written: bool
) -> None:
    """Its owner acknowledges what it has written down; else the far side sends its 2xx again."""
    world, a, b = trio
    a.call(b, "a", holds_ack=True)
    world.transfer()
    leg = b.take(InviteReceived).leg
    b.agent.ring(leg, world.now)
    world.transfer()
    before = json.loads(json.dumps(a.agent.export_leg("a")))
    b.agent.answer(leg, sdp("10.0.0.2"), world.now)
    world.advance(1.2)
    assert a.take(LegAnswered) and not a.has(LegAnswered), "the 2xx came three times"
    assert not a.messages("ACK") and not b.has(LegAcked)
    record = json.loads(json.dumps(a.agent.export_leg("a"))) if written else before
    a.agent = a.start()
    a.agent.import_leg("a", record, world.now)
    if not written:
        world.advance(4.1)
        assert a.take(LegAnswered)
        a.agent.acknowledge("a", world.now)
    world.transfer()
    assert b.take(LegAcked)
    finish(world, a, b, leg)


@pytest.mark.parametrize("who", ["first", "second", "both"])
def test_an_invite_that_is_held_back_is_sent_by_whoever_has_the_leg(
    trio: tuple[World, Party, Party], who: str
) -> None:
    """And where both have sent it, it was one."""
    world, a, b = trio
    a.call(b, "a", held=True)
    world.advance(40)
    assert not a.messages("INVITE") and not a.has(LegFailed), "nor does it time out"
    record = json.loads(json.dumps(a.agent.export_leg("a")))
    if who != "second":
        a.agent.release("a", world.now)
        world.transfer()
    if who != "first":
        a.agent = a.start()
        a.agent.import_leg("a", record, world.now)
    world.transfer()
    leg = b.take(InviteReceived).leg
    assert not b.has(InviteReceived)
    a.agent.release("a", world.now)
    world.transfer()
    assert len(a.messages("INVITE")) == (2 if who == "both" else 1)
    b.agent.answer(leg, sdp(b.name), world.now)
    world.transfer()
    assert a.take(LegAnswered)
    finish(world, a, b, leg)


def test_a_held_invite_that_is_given_up_is_never_sent(trio: tuple[World, Party, Party]) -> None:
    world, a, b = trio
    a.call(b, "a", held=True)
    a.agent.hangup("a", world.now)
    a.agent.release("a", world.now)
    world.advance(100)
    assert a.take(LegEnded).cause == "local" and not a.sent and not b.has(InviteReceived)
    assert a.agent.deadline() is None


def test_a_held_ack_goes_before_the_bye(trio: tuple[World, Party, Party]) -> None:
    world, a, b = trio
    a.call(b, "a", holds_ack=True)
    world.transfer()
    leg = b.take(InviteReceived).leg
    b.agent.answer(leg, sdp("10.0.0.2"), world.now)
    world.transfer()
    a.agent.hangup("a", world.now)
    world.transfer()
    assert [m.method for m in a.sent if isinstance(m, Request)] == ["INVITE", "ACK", "BYE"]
    assert b.take(LegAcked) and b.take(LegEnded).cause == "bye"


def test_the_margin_keeps_numbers_apart(trio: tuple[World, Party, Party]) -> None:
    world, a, b = trio
    connected(world, a, b)
    record = a.agent.export_leg("a")
    for _ in range(5):
        a.agent.info("a", "text/plain", b"x", world.now)
    world.transfer()
    a.agent = a.start()
    a.agent.import_leg("a", record, world.now)
    a.agent.info("a", "text/plain", b"y", world.now)
    world.transfer()
    assert not b.messages(500) and a.messages("INFO")[-1].cseq[0] == 12


def test_open_reinvites_survive_on_both_sides(trio: tuple[World, Party, Party]) -> None:
    world, a, b = trio
    leg = connected(world, a, b)
    a.take(LegAnswered)
    b.take(LegAcked)
    a.agent.reinvite("a", sdp(a.name, 2), world.now)
    world.transfer()
    b.take(ReinviteReceived)
    restart(world, a)
    restart(world, b)
    b.agent.accept_reinvite(leg, sdp(b.name, 2), world.now)
    restart(world, b)
    world.advance(2)
    assert a.take() == ReinviteAnswered("a", sdp(b.name, 2))
    finish(world, a, b, leg)


def test_a_hangup_under_way_is_finished(trio: tuple[World, Party, Party]) -> None:
    world, a, b = trio
    leg = connected(world, a, b)
    a.agent.hangup("a", world.now)
    restart(world, a, lose=True)
    world.advance(1)
    assert a.take(LegEnded).cause == "local"
    b.take(LegAcked)
    assert b.take() == LegEnded(leg, "bye")


def test_a_cancel_under_way_is_finished(trio: tuple[World, Party, Party]) -> None:
    for before in (True, False):
        world = World()
        a, b = world.party("10.0.0.1"), world.party("10.0.0.2")
        a.call(b)
        if not before:
            world.transfer()
        a.agent.hangup("a", world.now)
        restart(world, a, lose=not before)
        world.advance(2)
        assert a.take(LegEnded).cause == "local" and b.take(InviteReceived) and b.take(LegCancelled)


def accept_refreshes(world: World, party: Party) -> None:
    """Each life is told of the first one: what it knows of the other's audio may be old."""
    while party.has(object):
        event = party.take()
        if isinstance(event, ReinviteReceived):
            party.agent.accept_reinvite(event.leg, sdp(party.name), world.now)
        else:
            assert isinstance(event, ReinviteAcked)


@pytest.mark.parametrize("refresher", ["uac", "uas"])
def test_session_timers_go_on(trio: tuple[World, Party, Party], refresher: str) -> None:
    world, a, b = trio
    a.call(b, headers=[("Session-Expires", f"600;refresher={refresher}")])
    world.transfer()
    leg = b.take(InviteReceived).leg
    b.agent.answer(leg, sdp(b.name), world.now)
    world.transfer()
    a.take(LegAnswered)
    b.take(LegAcked)
    for _ in range(20):
        for _ in range(170):
            world.advance(1)
            for party in (a, b):
                accept_refreshes(world, party)
        restart(world, a)
        restart(world, b)
    assert not a.seen and not b.seen and a.agent.leg_state("a") == b.agent.leg_state(leg) == "confirmed"
    finish(world, a, b, leg)


def test_credentials_are_not_in_the_record_but_can_be_given_again(trio: tuple[World, Party, Party]) -> None:
    world, a, b = trio
    a.call(b, credentials=Credentials("alice", "secret"))
    world.transfer()
    leg = b.take(InviteReceived).leg
    assert "secret" not in json.dumps(a.agent.export_leg("a"))
    restart(world, a, credentials=Credentials("alice", "secret"))
    value = DigestAuthority("lab", b"k").challenge(world.now, "1")[0]
    b.agent.reject(leg, 401, world.now, headers=[("WWW-Authenticate", value)])
    world.transfer()
    assert b.take(InviteReceived).request.has("Authorization")


def test_a_record_that_is_none_raises(trio: tuple[World, Party, Party]) -> None:
    world, a, b = trio
    a.call(b)
    record = a.agent.export_leg("a")
    a.agent = a.start()
    with pytest.raises(ValueError):
        a.agent.import_leg("a", {**record, "state": "nonsense"}, world.now)
    assert not list(a.agent.legs())


def test_a_reinvite_without_its_answer_is_asked_again(trio: tuple[World, Party, Party]) -> None:
    """It had its 100, so the far side does not repeat it."""
    world, a, b = trio
    leg = connected(world, a, b)
    a.take(LegAnswered)
    b.take(LegAcked)
    hold = sdp(a.name, 2, "sendonly")
    a.agent.reinvite("a", hold, world.now)
    world.transfer()
    b.take(ReinviteReceived)
    restart(world, b)
    assert b.take(ReinviteReceived).sdp == hold
    b.agent.accept_reinvite(leg, sdp(b.name, 2, "recvonly"), world.now)
    world.transfer()
    assert a.take(ReinviteAnswered) and b.take(ReinviteAcked).leg == leg
    finish(world, a, b, leg)


def rehomed(world: World, party: Party, leg: str) -> Party:
    """The process is gone with its address; one at another address has the record."""
    world.collect()
    record = json.loads(json.dumps(party.agent.export_leg(leg)))
    world.wire = [item for item in world.wire if party not in item[:2]]
    del world.parties[party.name]
    new = world.party("10.0.0.9")
    new.agent.import_leg(leg, record, world.now, moved=True)
    return new


@pytest.mark.parametrize("side", ["caller", "callee"])
def test_a_far_side_learns_another_address_by_reinvite(trio: tuple[World, Party, Party], side: str) -> None:
    world, a, b = trio
    leg = connected(world, a, b)
    gone, ours, stays, theirs = (a, "a", b, leg) if side == "caller" else (b, leg, a, "a")
    dialog = stays.agent.dialog_of(theirs)
    new = rehomed(world, gone, ours)
    new.agent.reinvite(ours, sdp(new.name, 2), world.now)
    world.transfer()
    assert new.name in new.messages("INVITE")[0].get("Contact")
    stays.take(ReinviteReceived)
    stays.agent.accept_reinvite(theirs, sdp(stays.name, 2), world.now)
    world.transfer()
    assert new.take(ReinviteAnswered) and stays.agent.dialog_of(theirs) == dialog
    stays.seen.clear()
    stays.agent.hangup(theirs, world.now)
    world.transfer()
    assert new.take(LegEnded).cause == "bye"


@pytest.mark.parametrize("rung", [False, True])
def test_an_invite_whose_answer_has_no_way_back_is_cancelled(
    trio: tuple[World, Party, Party], rung: bool
) -> None:
    world, a, b = trio
    a.call(b)
    world.transfer()
    leg = b.take(InviteReceived).leg
    if rung:
        b.agent.ring(leg, world.now)
        world.transfer()
    new = rehomed(world, a, "a")
    world.advance(1)
    assert not new.messages("INVITE")
    new.agent.hangup("a", world.now)
    world.transfer()
    assert b.take(LegCancelled) == LegCancelled(leg)
    world.advance(100)
    assert new.take(LegEnded).cause == "local" and new.agent.deadline() is None


def test_an_answer_that_has_no_way_back_is_ended(trio: tuple[World, Party, Party]) -> None:
    """It rang when the record was written, and was answered at nobody's address."""
    world, a, b = trio
    leg = ringing(world, a, b)
    new = rehomed(world, a, "a")
    b.agent.answer(leg, sdp(b.name), world.now)
    world.transfer()
    new.agent.hangup("a", world.now)
    world.transfer()
    assert b.take(LegEnded).cause == "bye" and not b.agent.legs()


def test_an_unanswered_caller_can_be_refused_from_another_address(trio: tuple[World, Party, Party]) -> None:
    world, a, b = trio
    leg = ringing(world, a, b)
    new = rehomed(world, b, leg)
    new.agent.reject(leg, 503, world.now)
    world.transfer()
    assert a.take(LegFailed).status == 503


def test_a_reinvite_answered_from_another_address_is_acknowledged_there(
    trio: tuple[World, Party, Party],
) -> None:
    """A phone holds, and the edge's host dies: whoever has its dialogs now answers, and hears it hang up."""
    world, a, b = trio
    leg = connected(world, a, b)
    a.agent.reinvite("a", sdp(a.name, 2, "sendonly"), world.now)
    world.transfer()
    assert b.take(ReinviteReceived)
    new = rehomed(world, b, leg)
    new.agent.accept_reinvite(leg, sdp(new.name, 2, "recvonly"), world.now)
    world.transfer()
    assert a.take(ReinviteAnswered) and new.take(ReinviteAcked).leg == leg
    finish(world, a, new, leg)


def test_an_answer_from_another_address_is_acknowledged_there(trio: tuple[World, Party, Party]) -> None:
    """As an edge answers the open INVITE of a node, which has no NAT or filter in between."""
    world, a, b = trio
    leg = ringing(world, a, b)
    new = rehomed(world, b, leg)
    new.agent.answer(leg, sdp(new.name), world.now)
    world.transfer()
    assert a.take(LegAnswered) and new.take(LegAcked)
    finish(world, a, new, leg)


def test_an_answer_only_sent_from_another_address_is_not_followed(trio: tuple[World, Party, Party]) -> None:
    """As a cluster does: its Contact, or its Record-Route, is the way back."""
    world, a, b = trio
    key = a.call(b)
    world.transfer()
    b.agent.answer(b.take(InviteReceived).leg, sdp(b.name), world.now)
    for data, _ in b.agent.output():
        a.agent.receive(data, replace(a.flow(b), host="10.0.0.9", port=34_567), world.now)
    world.transfer()
    assert a.take(LegAnswered) and b.take(LegAcked)
    assert a.agent.leg_flow(key) == a.flow(b)


def test_what_was_open_at_the_old_address_is_not_waited_for(trio: tuple[World, Party, Party]) -> None:
    """A change of ours, and a 2xx whose ACK went there: the next request shows what became of them."""
    world, a, b = trio
    a.call(b)
    world.transfer()
    leg = b.take(InviteReceived).leg
    b.agent.answer(leg, sdp(b.name), world.now)
    world.collect()
    callee = json.loads(json.dumps(b.agent.export_leg(leg)))
    world.transfer()
    a.agent.reinvite("a", sdp(a.name, 2), world.now)
    world.collect()
    assert callee["state"] == "answered" and a.agent.export_leg("a")["out"]
    world.wire.clear()
    other = world.party("10.0.0.8")
    other.agent.import_leg(leg, callee, world.now, moved=True)
    assert other.agent.leg_state(leg) == "confirmed"
    new = rehomed(world, a, "a")
    world.advance(100)
    assert new.agent.leg_state("a") == "confirmed" and not new.messages("INVITE")
    assert not other.messages(200) and other.agent.leg_state(leg) == "confirmed"


@pytest.mark.parametrize("heard", [False, True])
def test_a_caller_who_may_not_have_heard_that_he_was_answered_is_told_from_another_address(
    trio: tuple[World, Party, Party], heard: bool
) -> None:
    """The process that answered died with its address before the ACK; so does the next one."""
    world, a, b = trio
    a.call(b)
    world.transfer()
    leg = b.take(InviteReceived).leg
    if not heard:
        world.losing(200)
    b.agent.answer(leg, sdp(b.name), world.now)
    world.collect()
    record = b.agent.export_leg(leg)
    world.transfer()
    record = json.loads(json.dumps(record))
    for address in ("10.0.0.7", "10.0.0.8"):
        new = world.party(address)
        new.agent.import_leg(leg, record, world.now, moved=True)
        record = json.loads(json.dumps(new.agent.export_leg(leg)))
    new.agent.reinvite(leg, sdp(new.name, 2), world.now)
    world.transfer()
    assert a.take(LegAnswered).sdp == (sdp(b.name) if heard else sdp(new.name, 2))
    if heard:
        assert a.take(ReinviteReceived)
        a.agent.accept_reinvite("a", sdp(a.name, 2), world.now)
        world.transfer()
    assert new.take(ReinviteAnswered) and new.agent.export_leg(leg)["unheard"] is None
    a.agent.hangup("a", world.now)
    world.transfer()
    assert new.take(LegEnded).cause == "bye"


@pytest.mark.parametrize("lost", ["ACK", 200])
def test_a_2xx_that_was_not_acknowledged_is_from_another_address(
    trio: tuple[World, Party, Party], lost: str | int
) -> None:
    """The ACK was lost and its sender died; or the sender died before it heard of the 2xx."""
    world, a, b = trio
    leg = connected(world, a, b)
    a.agent.reinvite("a", sdp(a.name, 2), world.now)
    world.losing(lost)
    world.transfer()
    b.take(ReinviteReceived)
    b.agent.accept_reinvite(leg, sdp(b.name, 2), world.now)
    world.transfer()
    new = rehomed(world, a, "a")
    new.agent.reinvite("a", sdp(new.name, 3), world.now)
    world.transfer()
    assert not b.messages(491)
    b.take(ReinviteReceived)
    b.agent.accept_reinvite(leg, sdp(b.name, 3), world.now)
    world.transfer()
    assert new.take(ReinviteAnswered)


@pytest.mark.parametrize("point", ["calling", "early", "confirmed"])
@pytest.mark.parametrize("side", ["caller", "callee"])
def test_a_leg_of_a_transport_that_is_off_is_taken_and_can_be_ended(
    trio: tuple[World, Party, Party], side: str, point: str
) -> None:
    world, a, b = trio
    a.call(b)
    world.transfer()
    leg = b.take(InviteReceived).leg
    if point != "calling":
        b.agent.ring(leg, world.now)
        world.transfer()
    if point == "confirmed":
        b.agent.answer(leg, sdp("10.0.0.2"), world.now)
        world.transfer()
    party = a if side == "caller" else b
    (key,) = party.agent.legs()
    gone = json.dumps(party.agent.export_leg(key)).replace('"listener": "main"', '"listener": "tls"')
    assert '"tls"' in gone
    party.agent = party.start()
    party.agent.import_leg(key, json.loads(gone), world.now)
    party.agent.hangup(key, world.now)
    world.advance(100)
    assert party.agent.leg_state(key) == "ended"
