"""Reliable provisional responses (RFC 3262), both roles, with loss and with a new process."""

from __future__ import annotations

import json

import pytest

from ari_ha.sip import events
from tests.unit.sip.sipworld import Party, World, sdp

OFFERED = (("Supported", "timer, 100rel"),)
REQUIRED = (("Require", "100rel"),)


@pytest.fixture
def pair() -> tuple[World, Party, Party]:
    world = World()
    return world, world.party("10.0.0.1"), world.party("10.0.0.2")


def called(world: World, a: Party, b: Party, headers: object = REQUIRED) -> str:
    a.call(b, headers=headers)
    world.transfer()
    return b.take(events.InviteReceived).leg


def test_a_required_reliable_ringing_gets_its_prack(pair: tuple[World, Party, Party]) -> None:
    world, a, b = pair
    leg = called(world, a, b)
    b.agent.ring(leg, world.now)
    world.transfer()
    (ringing,) = b.messages(180)
    assert ringing.get("Require") == "100rel" and 1 <= int(ringing.get("RSeq")) < 2**31
    (prack,) = a.messages("PRACK")
    assert prack.get("RAck") == f"{ringing.get('RSeq')} 1 INVITE"
    assert prack.cseq == (2, "PRACK")
    assert a.take(events.LegRinging).status == 180
    b.agent.answer(leg, sdp("10.0.0.2"), world.now)
    world.transfer()
    assert a.take(events.LegAnswered) and b.take(events.LegAcked)
    world.advance(40)
    assert len(b.messages(180)) == 1, "nothing is sent again once it is acknowledged"


def test_without_require_nothing_changes(pair: tuple[World, Party, Party]) -> None:
    world, a, b = pair
    leg = called(world, a, b, OFFERED)
    b.agent.ring(leg, world.now)
    world.transfer()
    assert not a.messages("PRACK") and not b.messages(180)[0].has("RSeq")


def test_lost_responses_and_lost_pracks_come_again(pair: tuple[World, Party, Party]) -> None:
    world, a, b = pair
    leg = called(world, a, b)
    world.losing(180, "PRACK", times=2)
    b.agent.ring(leg, world.now)
    world.advance(10)
    assert len({m.get("RSeq") for m in b.messages(180)}) == 1 and len(b.messages(180)) >= 3
    assert a.take(events.LegRinging)
    assert not a.has(events.LegRinging), "the owner hears of it once"
    before = len(b.messages(180))
    world.advance(20)
    assert len(b.messages(180)) == before


def test_numbers_rise_by_one_and_one_is_under_way(pair: tuple[World, Party, Party]) -> None:
    world, a, b = pair
    leg = called(world, a, b)
    for status in (180, 181, 183):
        b.agent.ring(leg, world.now, status)
    assert len(b.messages(180)) == 1 and not b.messages(181)
    world.transfer()
    numbers = [int(b.messages(status)[0].get("RSeq")) for status in (180, 181, 183)]
    assert numbers == [numbers[0], numbers[0] + 1, numbers[0] + 2]
    assert [a.take(events.LegRinging).status for _ in range(3)] == [180, 181, 183]


def test_an_answer_waits_for_the_prack_of_early_media(pair: tuple[World, Party, Party]) -> None:
    world, a, b = pair
    leg = called(world, a, b)
    world.losing("PRACK")
    b.agent.ring(leg, world.now, 183, sdp=sdp("10.0.0.2"))
    world.transfer()
    b.agent.answer(leg, sdp("10.0.0.2"), world.now)
    world.transfer()
    assert not [m for m in b.messages(200) if m.cseq[1] == "INVITE"]
    world.advance(2)
    assert a.take(events.LegAnswered) and b.take(events.LegAcked)


def test_an_answer_does_not_wait_for_the_prack_of_a_ringing_without_sdp(
    pair: tuple[World, Party, Party],
) -> None:
    world, a, b = pair
    leg = called(world, a, b)
    world.losing("PRACK", times=99)
    b.agent.ring(leg, world.now)
    b.agent.answer(leg, sdp("10.0.0.2"), world.now)
    world.transfer()
    assert a.take(events.LegAnswered)
    world.advance(40)
    assert b.agent.leg_state(leg) == "confirmed"


def test_nobody_acknowledges(pair: tuple[World, Party, Party]) -> None:
    world, a, b = pair
    leg = called(world, a, b)
    world.losing("PRACK", times=99)
    b.agent.ring(leg, world.now)
    world.advance(33)
    assert b.take(events.LegEnded).cause == "no-prack"
    assert a.take(events.LegFailed).status == 504
    assert b.agent.leg_state(leg) == "ended"


def test_a_cancel_ends_the_waiting(pair: tuple[World, Party, Party]) -> None:
    world, a, b = pair
    leg = called(world, a, b)
    world.losing("PRACK", times=99)
    b.agent.ring(leg, world.now)
    world.transfer()
    a.agent.hangup("a", world.now)
    world.transfer()
    assert b.take(events.LegCancelled).leg == leg
    before = len(b.messages(180))
    world.advance(40)
    assert len(b.messages(180)) == before


def test_a_wrong_or_second_prack_gets_481(pair: tuple[World, Party, Party]) -> None:
    world, a, b = pair
    leg = called(world, a, b)
    b.agent.ring(leg, world.now)
    world.transfer()
    (prack,) = a.messages("PRACK")
    again = prack.serialise().replace(b"CSeq: 2", b"CSeq: 3").replace(b"branch=z9hG4bK", b"branch=z9hG4bKx")
    b.agent.receive(again, b.flow(a), world.now)
    assert [m.status for m in b.messages(481)] == [481]


def test_out_of_order_is_ignored_until_what_is_missing_came(pair: tuple[World, Party, Party]) -> None:
    world, a, b = pair
    leg = called(world, a, b)
    b.agent.ring(leg, world.now)
    world.transfer()
    first = b.messages(180)[0]
    number = int(first.get("RSeq"))
    skipped = first.serialise().replace(f"RSeq: {number}".encode(), f"RSeq: {number + 2}".encode())
    a.agent.receive(skipped, a.flow(b), world.now)
    assert len(a.messages("PRACK")) == 1
    following = first.serialise().replace(f"RSeq: {number}".encode(), f"RSeq: {number + 1}".encode())
    a.agent.receive(following, a.flow(b), world.now)
    assert len(a.messages("PRACK")) == 2


def test_another_process_goes_on_with_the_next_number(pair: tuple[World, Party, Party]) -> None:
    world, a, b = pair
    leg = called(world, a, b)
    world.losing("PRACK", times=2)
    b.agent.ring(leg, world.now)
    world.transfer()
    number = int(b.messages(180)[0].get("RSeq"))
    record = json.loads(json.dumps(b.agent.export_leg(leg)))
    b.agent = b.start()
    b.agent.import_leg(leg, record, world.now)
    world.advance(5)
    assert {int(m.get("RSeq")) for m in b.messages(180)} == {number}
    b.agent.ring(leg, world.now, 183)
    world.transfer()
    assert int(b.messages(183)[0].get("RSeq")) == number + 1, "never skipped"
    b.agent.answer(leg, sdp("10.0.0.2"), world.now)
    world.transfer()
    assert a.take(events.LegAnswered)


def test_the_caller_is_another_process_now(pair: tuple[World, Party, Party]) -> None:
    world, a, b = pair
    leg = called(world, a, b)
    b.agent.ring(leg, world.now)
    world.transfer()
    record = json.loads(json.dumps(a.agent.export_leg("a")))
    a.agent = a.start()
    a.agent.import_leg("a", record, world.now)
    b.agent.ring(leg, world.now, 183, sdp=sdp("10.0.0.2"))
    world.transfer()
    pracks = a.messages("PRACK")
    assert len(pracks) == 2 and pracks[1].cseq[0] > pracks[0].cseq[0]
    b.agent.answer(leg, sdp("10.0.0.2"), world.now)
    world.transfer()
    assert a.take(events.LegAnswered)
