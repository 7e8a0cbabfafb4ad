"""INVITE with Replaces: who may take whose place, and what becomes of the call."""

from __future__ import annotations

from typing import Any

import pytest

from ari_ha.core.machine import Effect
from ari_ha.core.ports.store import StoreTxn
from ari_ha.sip import events as sip
from ari_ha.sip.flow import Flow
from ari_ha.wire import link
from tests.support.edge_world import CARRIER, EDGE_PUBLIC, EdgeWorld, Party, digest_header, kill
from tests.unit.test_edge_machine import talking


@pytest.fixture
def world() -> EdgeWorld:
    return EdgeWorld().with_users("1001", "1002")


def name_of(party: Party, leg: str, more: str = "", swapped: bool = False) -> tuple[str, str]:
    """The header that names a party's dialog, its tags as the other end has them."""
    call_id, local, remote = party.sip.dialog_of(leg)
    if swapped:
        local, remote = remote, local
    return "Replaces", f"{call_id};to-tag={remote};from-tag={local}{more}"


def replace(
    world: EdgeWorld, phone: Party, user: str, *headers: tuple[str, str], sdp: str | None = "own"
) -> str:
    """The phone's INVITE with these headers, challenge and all: the key of its dialog."""
    target = f"sip:any@{EDGE_PUBLIC[0]}"
    arguments: dict[str, Any] = {
        "flow": Flow("l", "udp", *EDGE_PUBLIC), "target": target, "from_": f"<sip:{user}@test>",
        "to": "<sip:any@test>", "sdp": phone.sdp(43_000) if sdp == "own" else sdp, "now": world.now,
    }  # fmt: skip
    phone.sip.invite(world.new_id(), headers=headers, **arguments)
    world.settle()
    proof = ("Authorization", digest_header(phone.of(sip.LegFailed)[-1], user, "pw", "INVITE", target))
    key = world.new_id()
    phone.sip.invite(key, headers=(*headers, proof), **arguments)
    world.settle()
    return key


def statuses(party: Party) -> list[int]:
    return [event.status for event in party.of(sip.LegFailed) if event.status != 401]


def other_phone(world: EdgeWorld) -> Party:
    """A second device of user 1001."""
    phone = Party("10.0.1.61", 6100, world.new_id)
    world.phones["1001 other"] = phone
    return phone


def ringing(world: EdgeWorld, attempt: str = "") -> tuple[str, Any, Any, Party, str]:
    """The app rings 1001 for a caller whom it has not answered."""
    phone = world.register("1001")
    caller, call = world.call_in()
    node = world.nodes[call.owner.name]
    world.dial(node, call, "a1", "1001", attempt=attempt)
    invite = phone.of(sip.InviteReceived)[-1]
    phone.sip.ring(invite.leg, world.now)
    world.settle()
    return caller, call, node, phone, invite.leg


@pytest.mark.parametrize("swapped", [False, True])
def test_a_call_goes_to_the_users_other_phone(world, swapped):
    caller, call, node, phone, leg = talking(world)
    before, frames = set(world.hears[call.call]), len(node.frames)
    port = call.legs["a1"].port
    other = other_phone(world)
    key = replace(world, other, "1001", name_of(phone, leg, swapped=swapped))
    answer = other.of(sip.LegAnswered)[-1]
    assert answer.leg == key and f"m=audio {port} " in answer.sdp
    assert [e.leg for e in phone.of(sip.LegEnded)] == [leg]
    assert sorted(call.legs) == ["a1", "c"] and call.legs["a1"].state == "up"
    assert world.hears[call.call] == before and len(node.frames) == frames, "the app is not asked"
    taught = [c.body["sdp"] for c in world.ng if c.command == "create answer" and c.body["from-tag"] == "a1"]
    assert "10.0.1.61" in str(taught[-1]) and "m=audio 43000 " in str(taught[-1])
    world.carrier.sip.hangup(caller, world.now)
    world.settle()
    assert [e.leg for e in other.of(sip.LegEnded)] == [key] and not world.edge.calls.by_id


def test_in_the_gap_of_a_takeover(world):
    _, call, node, phone, leg = talking(world)
    for survivor in world.nodes.values():
        survivor.auto_bridge = False
    kill(world, node.name)
    key = replace(world, other_phone(world), "1001", name_of(phone, leg))
    assert world.phones["1001 other"].of(sip.LegAnswered)[-1].leg == key
    assert call.move is not None and {leg.state for leg in call.living()} == {"up"}
    survivor = world.nodes[call.move.to.name]
    world.say(survivor, link.Bridged(call=call.call, epoch=str(call.epoch), legs=["a1", "c"]))
    world.settle()
    assert call.move is None and {("c", "a1"), ("a1", "c")} <= world.hears[call.call]


class SlowEtcd(EdgeWorld):
    """Once ``stuck``, etcd answers no transaction any more; ``deaf``: we hear no answer."""

    stuck = deaf = False

    def perform(self, effect: Effect) -> None:
        if self.deaf and isinstance(effect, StoreTxn):
            self.txn(effect)
        elif not (self.stuck and isinstance(effect, StoreTxn)):
            super().perform(effect)


def test_the_edge_dies_before_the_new_dialog_was_written():
    world = SlowEtcd().with_users("1001")
    _, call, _, phone, leg = talking(world)
    world.stuck = True
    other = other_phone(world)
    replace(world, other, "1001", name_of(phone, leg))
    assert not other.of(sip.LegAnswered) and not phone.of(sip.LegEnded), "not before it is written"
    world.stuck = False
    world.boot()
    again = world.edge.calls.by_id[call.call]
    assert {leg.state for leg in again.living()} == {"up"} and not phone.of(sip.LegEnded)
    taught = [c.body["sdp"] for c in world.ng if c.command == "create answer" and c.body["from-tag"] == "a1"]
    assert phone.host in str(taught[-1]), "and is heard"
    phone.sip.request_in_dialog(leg, "OPTIONS", world.now)
    world.settle()
    assert phone.of(sip.ResponseReceived)[-1].status == 200, "the old dialog lives"


@pytest.mark.parametrize("rang", [False, True])
def test_the_edge_dies_as_soon_as_the_new_dialog_was_written(rang):
    """The answer to the write is lost with it: the next life answers, and ends the old one."""
    world = SlowEtcd()
    for user in ("1001", "1002"):
        world.add_user(user)
    world.snapshots()
    caller, call, _, phone, leg = ringing(world) if rang else talking(world)
    other = other_phone(world)
    world.deaf = True
    key = replace(world, other, "1001", name_of(phone, leg))
    assert not other.of(sip.LegAnswered) and not phone.of(sip.LegEnded)
    world.deaf = False
    world.boot()
    world.run(1.0)
    assert [e.leg for e in other.of(sip.LegAnswered)] == [key] and other.sip.leg_state(key) == "confirmed"
    assert (phone.of(sip.LegCancelled) if rang else phone.of(sip.LegEnded))[-1].leg == leg
    again = world.edge.calls.by_id[call.call]
    assert {leg.state for leg in again.living()} == {"up"} and not again.legs["a1"].forks
    taught = [c.body["sdp"] for c in world.ng if c.command == "create answer" and c.body["from-tag"] == "a1"]
    assert other.host in str(taught[-1])
    world.carrier.sip.hangup(caller, world.now)
    world.settle()
    assert [e.leg for e in other.of(sip.LegEnded)] == [key] and not world.edge.calls.by_id


def test_the_old_dialog_ends_though_etcd_never_answers():
    world = SlowEtcd().with_users("1001")
    _, _, _, phone, leg = talking(world)
    world.stuck = True
    replace(world, other_phone(world), "1001", name_of(phone, leg))
    world.run(1.0)
    assert [e.leg for e in phone.of(sip.LegEnded)] == [leg]


def test_a_ringing_phone_is_picked_up_by_a_colleague(world):
    _, call, node, phone, leg = ringing(world)
    colleague = world.register("1002")
    key = replace(world, colleague, "1002", name_of(phone, leg, ";early-only"))
    assert colleague.of(sip.LegAnswered)[-1].leg == key
    cancelled = phone.of(sip.LegCancelled)[-1]
    assert cancelled.leg == leg and "Call completed elsewhere" in cancelled.reason_header
    taken, answered = node.got(link.LegTaken)[-1], node.got(link.LegAnswered)[-1]
    assert taken.device == "device:1002" and answered.leg == "a1"
    assert node.frames.index(taken) < node.frames.index(answered)
    assert call.legs["a1"].aor == "1002" and set(world.edge.calls.device_of) == {"1002"}
    assert node.of(sip.LegAnswered), "the node's own INVITE is answered"


def test_who_took_a_call_is_told_to_the_survivor(world):
    _, call, node, phone, leg = ringing(world)
    replace(world, world.register("1002"), "1002", name_of(phone, leg))
    world.boot()
    call = world.edge.calls.by_id[call.call]
    kill(world, call.owner.name)
    call = world.edge.calls.by_id[call.call]
    taken = world.nodes[call.owner.name].got(link.LegTaken)
    assert [frame.device for frame in taken] == ["device:1002"]


def test_the_agent_answers_his_queues_call_with_his_other_phone(world):
    _, call, node, phone, leg = ringing(world, attempt="t7")
    replace(world, other_phone(world), "1001", name_of(phone, leg))
    assert call.legs["a1"].state == "up" and call.legs["a1"].attempt == "t7"
    assert not node.got(link.LegTaken) and phone.of(sip.LegCancelled)


def test_what_a_queue_gave_to_somebody_is_nobody_elses(world):
    _, call, _, phone, leg = ringing(world, attempt="t7")
    colleague = world.register("1002")
    replace(world, colleague, "1002", name_of(phone, leg))
    assert statuses(colleague) == [403] and call.legs["a1"].state == "ringing"
    assert not phone.of(sip.LegCancelled)


@pytest.mark.parametrize(("by", "status"), [("1001", 0), ("1009", 403), ("", 403)])
def test_whoever_was_sent_by_the_one_who_talks(world, by, status):
    caller, call, node, phone, leg = talking(world)
    colleague = world.register("1002")
    referred = (("Referred-By", f"<sip:{by}@test>"),) if by else ()
    replace(world, colleague, "1002", name_of(phone, leg), *referred)
    assert statuses(colleague) == ([status] if status else [])
    assert bool(phone.of(sip.LegEnded)) is not bool(status)
    assert [f.device for f in node.got(link.LegTaken)] == ([] if status else ["device:1002"])
    assert call.legs["a1"].state == "up"


def test_a_carrier_replaces_its_own_dialog_only(world):
    caller, call, _, phone, leg = talking(world)
    for party, dialog, status in ((phone, leg, 403), (world.carrier, caller, 0)):
        key, failed = world.new_id(), len(world.carrier.of(sip.LegFailed))
        world.carrier.sip.invite(
            key, flow=world.carrier_flow(), target=f"sip:6000@{EDGE_PUBLIC[0]}", from_="<sip:9@carrier>",
            to="<sip:6000@edge>", sdp=world.carrier.sdp(44_000), headers=(name_of(party, dialog),),
            now=world.now,
        )  # fmt: skip
        world.settle()
        if status:
            assert world.carrier.of(sip.LegFailed)[failed].status == status
    assert world.carrier.of(sip.LegAnswered)[-1].leg == key
    assert [e.leg for e in world.carrier.of(sip.LegEnded)] == [caller]
    assert CARRIER[0] in str(world.ng[-1].body)
    assert len(world.edge.calls.by_id) == 1 and call.legs["c"].state == "up"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ((("Replaces", "a;to-tag=1"),), 400),
        ((("Replaces", "a;to-tag=1;from-tag=2"), ("Replaces", "b;to-tag=1;from-tag=2")), 400),
        ((("Replaces", "a;to-tag=1;to-tag=3;from-tag=2"),), 400),
        ((("Replaces", "a;to-tag=1;from-tag=2"), ("Join", "a;to-tag=1;from-tag=2")), 400),
        ((("Replaces", "a;to-tag=1;from-tag=2"),), 481),
        ((("Replaces", "a;to-tag=1;from-tag=2"), ("Require", "replaces")), 481),
    ],
)
def test_what_names_nothing_is_refused(world, headers, status):
    _, call, _, phone, _ = talking(world)
    replace(world, phone, "1001", *headers)
    assert statuses(phone) == [status]
    assert len(world.edge.calls.by_id) == 1 and {leg.state for leg in call.living()} == {"up"}


def test_early_only_busy_over_and_no_audio(world):
    caller, call, _, phone, leg = talking(world)
    other = other_phone(world)
    name = name_of(phone, leg)
    replace(world, other, "1001", (name[0], name[1] + ";early-only"))
    replace(world, other, "1001", name, sdp=None)
    phone.sip.request_in_dialog(leg, "REFER", world.now, headers=[("Refer-To", "<sip:1002@test>")])
    world.settle()
    replace(world, other, "1001", name)
    assert statuses(other) == [486, 488, 486] and call.legs["a1"].state == "up"
    world.carrier.sip.hangup(caller, world.now)
    world.settle()
    replace(world, other, "1001", name)
    assert statuses(other)[-1] == 603, "a dialog that ended is declined"


def test_a_caller_nobody_has_answered_cannot_be_replaced(world):
    for node in world.nodes.values():
        node.auto_answer_new = False
    key, call = world.call_in()
    node = world.nodes[call.owner.name]
    (dialog,) = [leg for leg, token in node.tokens.items() if token.call == call.call]
    node.sip.ring(dialog, world.now)
    world.settle()
    name = name_of(world.carrier, key)
    phone = world.register("1001")
    replace(world, phone, "1001", name)
    assert statuses(phone) == [481] and call.legs["c"].state in ("trying", "ringing")


def test_a_phone_that_has_another_call_takes_none(world):
    _, _, _, phone, leg = talking(world)
    busy = world.register("1002")
    _, second = world.call_in()
    world.dial(world.nodes[second.owner.name], second, "a1", "1002")
    invite = busy.of(sip.InviteReceived)[-1]
    busy.sip.answer(invite.leg, busy.sdp(), world.now)
    world.settle()
    replace(world, busy, "1002", name_of(phone, leg), ("Referred-By", "<sip:1001@test>"))
    assert statuses(busy) == [486]
