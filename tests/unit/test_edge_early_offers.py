"""Offers before the answer at the edge: carriers' and callers' UPDATE and PRACK while it rings."""

from __future__ import annotations

from typing import Any

import pytest

from ari_ha.sip import events as sip
from ari_ha.sip.message import Request, parse_message
from ari_ha.sip.sdp import SessionDescription
from tests.support.edge_world import EDGE_PUBLIC, EdgeWorld, Party
from tests.unit import test_edge_outbound
from tests.unit.test_edge_outbound import dial, ringing_out

world = test_edge_outbound.world
RELIABLE = (("Require", "100rel"), ("RSeq", "7"))


def taught(world: EdgeWorld, tag: str) -> int:
    """The port rtpengine was told last for a tag."""
    said = [str(c.body["sdp"]) for c in world.ng if c.body.get("from-tag") == tag and "sdp" in c.body]
    audio = SessionDescription.parse(said[-1]).audio()
    assert audio is not None
    return audio.port


def updates(world: EdgeWorld, party: Party, leg: str, body: str) -> Any:
    party.sip.request_in_dialog(leg, "UPDATE", world.now, content_type="application/sdp", body=body.encode())
    world.settle()
    return party.of(sip.ResponseReceived)[-1]


def test_a_carrier_moves_its_early_media(world: EdgeWorld) -> None:
    _, call, far = ringing_out(world)
    carrier = world.carrier
    carrier.sip.ring(far, world.now, status=183, sdp=carrier.sdp(41_000), headers=RELIABLE)
    world.settle()
    assert taught(world, "a1") == 41_000
    answer = updates(world, carrier, far, carrier.sdp(42_000))
    assert answer.status == 200 and taught(world, "a1") == 42_000
    told = SessionDescription.parse(answer.body.decode()).audio()
    assert told is not None and told.port == call.legs["a1"].port, "our port stays"
    assert call.legs["a1"].state == "ringing" and ("c", "a1") in world.hears[call.call]
    # and the answer that repeats where it was at first does not take it back
    carrier.sip.answer(far, carrier.sdp(41_000), world.now)
    world.settle()
    assert call.legs["a1"].state == call.legs["c"].state == "up" and taught(world, "a1") == 42_000


@pytest.mark.parametrize("reliable", [True, False])
def test_what_cannot_be_taken_is_refused_and_it_rings_on(world: EdgeWorld, reliable: bool) -> None:
    _, call, far = ringing_out(world)
    carrier = world.carrier
    headers = RELIABLE if reliable else ()
    carrier.sip.ring(far, world.now, status=183, sdp=carrier.sdp(41_000), headers=headers)
    world.settle()
    body = carrier.sdp(42_000)
    if reliable:
        body = body.replace("RTP/AVP 8 0", "RTP/AVP 18 9")
    assert updates(world, carrier, far, body).status == (488 if reliable else 491)
    carrier.sip.answer(far, carrier.sdp(41_000), world.now)
    world.settle()
    assert call.legs["a1"].state == "up"


def calls_in(world: EdgeWorld, offer: bool) -> tuple[str, Any]:
    """A carrier's caller who requires reliable responses; a number is rung for him, with early media."""
    before, key, caller = set(world.edge.calls.by_id), world.new_id(), Party("10.0.1.51", 5060, world.new_id)
    world.phones["caller"] = caller
    world.edge.trunks.table["out"].hosts.append(caller.host)
    world.edge.trunks._locate()
    caller.sip.invite(
        key, flow=world.carrier_flow(), target=f"sip:6000@{EDGE_PUBLIC[0]}", from_="<sip:5551234@carrier>",
        to="<sip:6000@edge>", sdp=caller.sdp() if offer else None, headers=(("Require", "100rel"),),
        now=world.now,
    )  # fmt: skip
    world.settle()
    (new,) = set(world.edge.calls.by_id) - before
    call = world.edge.calls.by_id[new]
    dial(world, call, "a1", "number:+4930")
    (invite,) = world.carrier.of(sip.InviteReceived)
    world.carrier.sip.ring(invite.leg, world.now, status=183, sdp=world.carrier.sdp(41_000))
    return key, call


def test_a_caller_moves_while_he_hears_early_media(world: EdgeWorld) -> None:
    key, call = calls_in(world, offer=True)
    world.settle()
    caller = world.phones["caller"]
    answer = updates(world, caller, key, caller.sdp(45_000))
    assert answer.status == 200 and taught(world, "c") == 45_000
    (invite,) = world.carrier.of(sip.InviteReceived)
    world.carrier.sip.answer(invite.leg, world.carrier.sdp(41_000), world.now)
    world.settle()
    assert caller.of(sip.LegAnswered) and call.legs["c"].state == "up" and taught(world, "c") == 45_000


def test_a_caller_without_an_offer_answers_in_his_prack(world: EdgeWorld) -> None:
    arrive, caller_answers = world.arrive, []

    def with_answer(party: Party, data: bytes, flow: Any) -> None:
        message = parse_message(data)
        if isinstance(message, Request) and message.method == "PRACK" and not caller_answers:
            message.body = party.sdp(46_000).encode()
            message.add("Content-Type", "application/sdp")
            caller_answers.append(party)
            data = message.serialise()
        arrive(party, data, flow)

    world.arrive = with_answer  # type: ignore[method-assign]
    _, call = calls_in(world, offer=False)
    world.settle()
    assert caller_answers and taught(world, "c") == 46_000 and not call.legs["c"].late_offer
    (invite,) = world.carrier.of(sip.InviteReceived)
    world.carrier.sip.answer(invite.leg, world.carrier.sdp(41_000), world.now)
    world.settle()
    finals = [m for _, _, host, data in world.sip_log if host == "10.0.1.51" and b"200 OK" in data
              and (m := parse_message(data)).cseq[1] == "INVITE"]  # fmt: skip
    assert len(finals) == 1 and not finals[0].body, "no second offer"
    assert call.legs["c"].state == "up"
