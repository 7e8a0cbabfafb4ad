"""A phone in a call consults and transfers: what ends at the edge, and what a fault leaves of it."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from ari_ha.core.ports.link import LinkDown
from ari_ha.core.ports.media import NgCommand
from ari_ha.core.ports.store import KeyValue, StoreChanged
from ari_ha.sip import events as sip
from ari_ha.sip.flow import Flow
from ari_ha.wire import link
from ari_ha.wire.keyspace import LegValue, RecordValue, encode
from tests.support.edge_world import EDGE_PUBLIC, EdgeWorld, digest_header, kill
from tests.unit.test_edge_machine import talking
from tests.unit.test_edge_outbound import dial


@pytest.fixture
def world() -> EdgeWorld:
    return EdgeWorld().with_users("1001", "1002")


def refer(world: EdgeWorld, phone: Any, leg: str, target: str, **headers: str) -> None:
    given = [("Refer-To", target), *((name.replace("_", "-"), value) for name, value in headers.items())]
    phone.sip.request_in_dialog(leg, "REFER", world.now, headers=given)
    world.settle()


def fragments(phone: Any) -> list[str]:
    """What the NOTIFYs of a transfer said."""
    requests = [e.request for e in phone.of(sip.InDialogRequest) if e.request.method == "NOTIFY"]
    return [request.body.decode().split("\r\n")[0] for request in requests]


def consult(world: EdgeWorld, phone: Any, number: str = "1002", user: str = "1001") -> str:
    """The phone holds nobody and calls somebody else: the key of its second dialog."""
    arguments: dict[str, Any] = {
        "flow": Flow("l", "udp", *EDGE_PUBLIC), "target": f"sip:{number}@{EDGE_PUBLIC[0]}",
        "from_": f"<sip:{user}@test>", "to": f"<sip:{number}@test>", "sdp": phone.sdp(42_000),
        "now": world.now,
    }  # fmt: skip
    phone.sip.invite(world.new_id(), **arguments)
    world.settle()
    header = digest_header(phone.of(sip.LegFailed)[-1], user, "pw", "INVITE", str(arguments["target"]))
    key = world.new_id()
    phone.sip.invite(key, headers=(("Authorization", header),), **arguments)
    world.settle()
    return key


def consulting(world: EdgeWorld, attempt: str = "t1") -> tuple[str, Any, Any, Any, str, str, str]:
    """Carrier and 1001 talk; 1001 holds and talks to 1002. No ``attempt``: he was called by his number."""
    caller, call, node, phone, leg = talking(world, attempt=attempt)
    for other in world.nodes.values():
        other.auto_answer_new = False
    colleague = world.register("1002")
    phone.sip.reinvite(leg, phone.sdp(direction="sendonly"), world.now)
    world.settle()
    second = consult(world, phone)
    dial(world, call, "a2", "device:1002", consult="k1")
    (invite,) = colleague.of(sip.InviteReceived)
    colleague.sip.ring(invite.leg, world.now)
    colleague.sip.answer(invite.leg, colleague.sdp(), world.now)
    world.settle()
    for key in [k for k, t in node.tokens.items() if t.leg == "k1"]:
        node.sip.answer(key, node.sdp(), world.now)
    world.settle()
    return caller, call, node, phone, leg, second, invite.leg


def test_a_blind_transfer_is_accepted_and_told_to_the_app(world):
    _, call, node, phone, leg = talking(world)
    refer(world, phone, leg, "<sip:1002@test>")
    (response,) = [r for r in phone.of(sip.ResponseReceived) if r.key == leg]
    assert response.status == 202
    assert fragments(phone) == ["SIP/2.0 100 Trying"]
    (asked,) = node.got(link.TransferAsked)
    assert (asked.leg, asked.number, asked.other) == ("a1", "1002", "")
    frame = link.TransferIs(call.call, "a1", str(call.epoch), asked.transfer, 200)
    world.say(node, frame)
    world.settle()
    assert fragments(phone)[-1] == "SIP/2.0 200 OK" and not call.legs["a1"].refer


NOBODYS = "<sip:1@t?Replaces=nobody%3Bto-tag%3D1%3Bfrom-tag%3D2>"


@pytest.mark.parametrize(
    ("target", "status"), [("", 400), ("<mailto:x@y>", 400), ("<sip:test>", 400), (NOBODYS, 603)]
)
def test_what_makes_no_sense_is_refused(world, target, status):
    _, _, node, phone, leg = talking(world)
    refer(world, phone, leg, target)
    assert [r.status for r in phone.of(sip.ResponseReceived) if r.key == leg] == [status]
    assert not node.got(link.TransferAsked) and not fragments(phone)


def test_a_refer_that_overtakes_a_lost_200_ends_no_call(world):
    """A 481 would end the phone's dialog, and with it nothing at the edge (RFC 3261 §12.2.1.2)."""
    phone = world.register("1001")
    _, call = world.call_in()
    world.dial(world.nodes[call.owner.name], call, "a1", "1001")
    ringing = phone.of(sip.InviteReceived)[-1]
    phone.sip.ring(ringing.leg, world.now)
    world.settle()
    phone.silent = True
    phone.sip.answer(ringing.leg, phone.sdp(), world.now)
    world.settle()
    phone.silent = False
    refer(world, phone, ringing.leg, "<sip:1002@test>")
    assert [r.status for r in phone.of(sip.ResponseReceived) if r.key == ringing.leg] == [491]
    world.run(1.0)
    assert call.legs["a1"].state == "up" and not phone.of(sip.LegEnded)


def test_who_wants_no_subscription_gets_none(world):
    _, _, node, phone, leg = talking(world)
    refer(world, phone, leg, "<sip:1002@test>", Refer_Sub="false", Supported="norefersub")
    assert node.got(link.TransferAsked) and not fragments(phone)


def test_a_refer_that_crosses_the_takeover_reaches_the_survivor(world):
    _, call, node, phone, leg = talking(world)
    for other in world.nodes.values():
        other.auto_bridge = False
    kill(world, node.name)
    refer(world, phone, leg, "<sip:1002@test>")
    assert fragments(phone) == ["SIP/2.0 100 Trying"]
    assert call.move is not None
    survivor = world.nodes[call.move.to.name]
    world.say(survivor, link.Bridged(call=call.call, epoch=str(call.epoch), legs=["a1", "c"]))
    world.settle()
    assert {f.transfer for f in survivor.got(link.TransferAsked)} == {call.legs["a1"].refer["id"]}


def test_a_transfer_done_by_a_node_that_has_lost_the_call_is_asked_of_the_next(world):
    """Its app does not know yet. What it ends is not ended, so what it says of the transfer is not true."""
    _, call, node, phone, leg = talking(world)
    for other in world.nodes.values():
        other.auto_bridge = False
    before = str(call.epoch)
    refer(world, phone, leg, "<sip:6000@test>")
    kill(world, node.name)
    world.say(node, link.TransferIs(call.call, "a1", before, call.legs["a1"].refer["id"], 200))
    world.say(node, link.EndLeg(call=call.call, leg="a1", epoch=before, cause="16"))
    world.settle()
    assert fragments(phone) == ["SIP/2.0 100 Trying"] and call.legs["a1"].alive
    survivor = world.nodes[call.move.to.name]
    world.say(survivor, link.Bridged(call=call.call, epoch=str(call.epoch), legs=["a1", "c"]))
    world.settle()
    assert {f.transfer for f in survivor.got(link.TransferAsked)} == {call.legs["a1"].refer["id"]}


def test_a_refer_survives_the_edge(world):
    _, call, _, phone, leg = talking(world)
    refer(world, phone, leg, "<sip:1002@test>")
    world.boot()
    again = world.edge.calls.by_id[call.call]
    node = world.nodes[again.owner.name]
    asked = node.got(link.TransferAsked)
    assert len(asked) == 2 and asked[0].transfer == asked[1].transfer
    world.say(node, link.TransferIs(call.call, "a1", str(again.epoch), asked[0].transfer, 486))
    world.settle()
    assert fragments(phone)[-1] == "SIP/2.0 486 Busy Here"


def test_that_a_transfer_failed_is_told_when_it_is_written_down(world):
    """The process dies between its node's word and the write: its successor asks for the transfer again, so
    the phone must not have been told that it keeps its call."""
    _, call, node, phone, leg = talking(world)
    refer(world, phone, leg, "<sip:1002@test>")
    (asked,) = node.got(link.TransferAsked)
    failed = link.TransferIs(call.call, "a1", str(call.epoch), asked.transfer, 486)
    with world.unwritten():
        world.say(node, failed)
        world.run(1.0)
        assert fragments(phone) == ["SIP/2.0 100 Trying"] and not call.legs["a1"].refer
    world.boot()
    assert [frame.transfer for frame in node.got(link.TransferAsked)] == [asked.transfer] * 2
    world.say(node, failed)
    world.settle()
    assert fragments(phone) == ["SIP/2.0 100 Trying", "SIP/2.0 486 Busy Here"]


@pytest.mark.parametrize("etcd", ["away", "silent"])
def test_that_a_transfer_failed_is_told_whatever_etcd_does(world, etcd):
    _, call, node, phone, leg = talking(world)
    refer(world, phone, leg, "<sip:1002@test>")
    world.lose_etcd(etcd)
    world.say(node, link.TransferIs(call.call, "a1", str(call.epoch), call.legs["a1"].refer["id"], 486))
    world.settle()
    world.run(0.0 if etcd == "away" else world.edge.context.timings.end_limit_s + 0.1)
    assert fragments(phone)[-1] == "SIP/2.0 486 Busy Here"


def test_a_phone_that_forgot_its_subscription_keeps_its_call(world):
    _, call, _, phone, leg = talking(world)
    refer(world, phone, leg, "<sip:1002@test>")
    (notify,) = [e for e in phone.of(sip.InDialogRequest) if e.request.method == "NOTIFY"]
    phone.sip.respond(notify.txn, 481, world.now)
    world.settle()
    assert call.legs["a1"].state == "up", "RFC 5057: the 481 speaks of the subscription"


def test_a_second_call_of_a_phone_belongs_to_the_first(world):
    _, call, node, phone, _, _, _ = consulting(world)
    assert set(world.edge.calls.by_id) == {call.call}
    (asked,) = node.got(link.ConsultAsked)
    assert (asked.leg, asked.of, asked.number) == ("k1", "a1", "1002")
    assert [leg.leg for leg in call.conversation("k1")] == ["k1", "a2"]
    assert {leg.state for leg in call.living()} == {"up"}
    assert {("k1", "a2"), ("a2", "k1")} <= world.hears[call.call], "two people talk hitless"
    n = node.name
    assert ("c", f"c@{n}.1") in world.hears[call.call] and ("c", "a1") not in world.hears[call.call]


def test_consulting_when_the_node_dies(world):
    _, call, node, phone, _, _, _ = consulting(world)
    sent = len(world.sip_log)
    kill(world, node.name)
    assert call.owner.name != node.name and not call.lost
    assert {("k1", "a2"), ("a2", "k1")} <= world.hears[call.call]
    assert [item for item in world.sip_log[sent:] if item[2].startswith("10.0.1.")] == []
    s = call.owner.name
    assert ("c", f"c@{s}.1") in world.hears[call.call]


def replaces(phone: Any, second: str) -> str:
    call_id, local, remote = phone.sip.dialog_of(second)
    return f"<sip:1002@test?Replaces={quote(f'{call_id};to-tag={remote};from-tag={local}')}>"


@pytest.mark.parametrize("fault", [False, True])
def test_an_attended_transfer(world, fault):
    caller, call, node, phone, leg, second, far = consulting(world)
    refer(world, phone, leg, replaces(phone, second))
    (asked,) = node.got(link.TransferAsked)
    assert (asked.leg, asked.other) == ("a1", "k1")
    if fault:
        kill(world, node.name)
        node = world.nodes[call.owner.name]
        assert node.got(link.TransferAsked)[-1].transfer == asked.transfer
    epoch = str(call.epoch)
    world.say(node, link.Conversations(call=call.call, epoch=epoch, head="c", consult={"k1": "k1"}))
    world.say(node, link.TransferIs(call.call, "a1", epoch, asked.transfer, 200))
    for gone in ("a1", "k1"):
        world.say(node, link.EndLeg(call=call.call, leg=gone, epoch=epoch, cause="16"))
    world.settle()
    assert sorted(call.legs) == ["a2", "c"] and len(phone.of(sip.LegEnded)) == 2
    assert {("c", "a2"), ("a2", "c")} <= world.hears[call.call]
    world.carrier.sip.hangup(caller, world.now)
    world.settle()
    assert world.phones["1002"].of(sip.LegEnded) and not world.edge.calls.by_id


@pytest.mark.parametrize("asks_in", ["a1", "k1"])
def test_an_attended_transfer_to_somebody_who_has_hung_up_is_refused(world, asks_in):
    """Also where no app is there that could end the line he was called by: whoever asks knows that he keeps
    his caller."""
    _, call, node, phone, leg, second, far = consulting(world)
    node.gone = True
    world.phones["1002"].sip.hangup(far, world.now)
    world.settle()
    asks, other = (leg, second) if asks_in == "a1" else (second, leg)
    refer(world, phone, asks, replaces(phone, other))
    assert [r.status for r in phone.of(sip.ResponseReceived) if r.key == asks] == [603]
    assert not any(o.refer for o in call.living()) and {"c", "a1", "k1"} <= set(call.legs)


def test_the_caller_leaves_while_his_agent_consults(world):
    caller, call, _, phone, leg, second, _ = consulting(world)
    world.carrier.sip.hangup(caller, world.now)
    world.settle()
    assert [e.leg for e in phone.of(sip.LegEnded)] == [leg]
    assert call.head == "k1" and {("k1", "a2"), ("a2", "k1")} <= world.hears[call.call]
    phone.sip.hangup(second, world.now)
    world.settle()
    assert world.phones["1002"].of(sip.LegEnded) and not world.edge.calls.by_id


def test_the_caller_leaves_before_the_consulted_one_is_dialled(world):
    """Whoever consults leads the call by then: whom he wanted is in it with him, and in nothing beside it."""
    caller, call, node, phone, _ = talking(world)
    for other in world.nodes.values():
        other.auto_answer_new = False
    world.register("1002")
    second = consult(world, phone)
    world.carrier.sip.hangup(caller, world.now)
    world.settle()
    dial(world, call, "a2", "device:1002", consult="k1")
    assert call.head == "k1" and call.legs["a2"].consult == ""
    phone.sip.hangup(second, world.now)
    world.settle()
    assert [(f.leg, f.head) for f in node.got(link.LegGone)][-2:] == [("k1", ""), ("a2", "")]
    assert not world.edge.calls.by_id


@pytest.mark.parametrize("before", ["served", "moving", "edge restarted"])
def test_whose_second_line_leads_is_taken_up_and_no_new_caller(world, before):
    """Nobody is called for him yet: to a node his line would be a call to where the caller had called."""
    caller, call, node, phone, _ = talking(world)
    for other in world.nodes.values():
        other.auto_answer_new = other.auto_bridge = False
    consult(world, phone)
    world.carrier.sip.hangup(caller, world.now)
    world.settle()
    if before == "moving":
        unknown = link.ResumeRefused(call=call.call, epoch=str(call.epoch), leg="", reason="unknown call")
        world.say(node, unknown)
    elif before == "edge restarted":
        world.boot()
        (call,) = world.edge.calls.by_id.values()
    kill(world, node.name)
    survivor = world.nodes[call.move.to.name]
    assert [(t.kind, t.head) for t in survivor.tokens.values() if t.leg == "k1"] == [("resume", "k1")]
    world.say(survivor, link.Bridged(call=call.call, epoch=str(call.epoch), legs=["k1"]))
    world.run(2)
    assert call.owner.name == survivor.name and survivor.got(link.ConsultAsked)[-1].number == "1002"


def test_the_consultation_ends_the_caller_stays(world):
    _, call, _, phone, _, second, _ = consulting(world)
    phone.sip.hangup(second, world.now)
    world.settle()
    assert sorted(call.legs) == ["a1", "c"] and world.phones["1002"].of(sip.LegEnded)


def test_three_people_in_the_gap(world):
    _, call, node, _, _, _, _ = consulting(world)
    epoch = str(call.epoch)
    world.say(node, link.Conversations(call=call.call, epoch=epoch, head="c", consult={}))
    world.say(node, link.EndLeg(call=call.call, leg="a1", epoch=epoch, cause="16"))
    world.say(node, link.WantMedia(call=call.call, epoch=epoch, state="through", request=9))
    world.settle()
    n = node.name
    assert {("c", f"c@{n}.1"), ("k1", f"k1@{n}.1"), ("a2", f"a2@{n}.1")} <= world.hears[call.call]
    for other in world.nodes.values():
        other.auto_answer = False
    kill(world, node.name)
    assert call.media.state == "direct"
    heard = {listener: speaker for listener, speaker in world.hears[call.call]}
    assert heard["c"] in ("a2", "k1") and set(heard) == {"c", "a2", "k1"}, "nobody sits in silence"


def test_an_edge_that_restarts_while_three_are_brought_together_leaves_no_voice_twice(world):
    """Two of them heard each other before, and its relay had not taken that away yet."""
    _, call, node, _, _, _, _ = consulting(world)
    epoch = str(call.epoch)
    refuse, world.ng_refuse = world.ng_refuse, lambda command: command.command == "unsubscribe"
    world.say(node, link.Conversations(call=call.call, epoch=epoch, head="c", consult={}))
    world.say(node, link.EndLeg(call=call.call, leg="a1", epoch=epoch, cause="16"))
    world.say(node, link.WantMedia(call=call.call, epoch=epoch, state="through", request=9))
    world.settle()
    assert ("k1", "a2") in world.hears[call.call]
    world.ng_refuse = refuse
    world.boot()
    world.run(0.5)
    people = {"c", "k1", "a2"}
    assert not [hears for hears in world.hears[call.call] if people.issuperset(hears)]


def test_who_belongs_to_whom_was_said_before_a_second_line_was_heard_of(world):
    """1002, who has just been brought into the call, calls somebody at that moment: that line stays his."""
    caller, call, node, _, _, _, _ = consulting(world)
    epoch, colleague = str(call.epoch), world.phones["1002"]
    outside = consult(world, colleague, "+4940", user="1002")
    assert call.legs["k2"].of == "a2"
    world.say(node, link.Conversations(call=call.call, epoch=epoch, head="c", consult={}))
    world.say(node, link.EndLeg(call=call.call, leg="a1", epoch=epoch, cause="16"))
    assert (call.legs["k1"].consult, call.legs["k2"].consult) == ("", "k2")
    world.carrier.sip.hangup(caller, world.now)
    world.settle()
    assert call.legs["k2"].alive and outside not in [e.leg for e in colleague.of(sip.LegFailed)]


def test_whoever_rings_for_a_second_line_is_brought_into_the_call(world):
    _, call, node, phone, _ = talking(world)
    for other in world.nodes.values():
        other.auto_answer_new = False
    world.register("1002")
    consult(world, phone)
    dial(world, call, "a2", "device:1002", consult="k1")
    epoch = str(call.epoch)
    world.say(node, link.Conversations(call=call.call, epoch=epoch, head="c", consult={"k1": "k1"}))
    for name in ("a1", "k1"):
        world.say(node, link.EndLeg(call=call.call, leg=name, epoch=epoch, cause="16"))
    assert call.legs["a2"].alive and call.legs["a2"].consult == ""


def test_consulting_is_continued_by_a_restarted_edge(world):
    _, call, _, _, _, _, _ = consulting(world)
    before = set(world.hears[call.call])
    world.boot()
    again = world.edge.calls.by_id[call.call]
    assert [leg.leg for leg in again.conversation("k1")] == ["k1", "a2"]
    assert world.hears[call.call] == before


def test_a_second_line_whose_port_the_process_before_did_not_live_to_see(world, monkeypatch):
    """Its media would wait for a tag that rtpengine does not have, and that of the others with it."""
    _, call, node, phone, leg = talking(world)
    perform = world.perform

    def opens(e: object) -> bool:
        return isinstance(e, NgCommand) and (e.command, e.body.get("from-tag")) == ("create", "k1")

    with monkeypatch.context() as dying:
        dying.setattr(world, "perform", lambda e: None if opens(e) else perform(e))
        consult(world, phone)
        phone.sip.reinvite(leg, phone.sdp(direction="sendonly"), world.now)
        world.settle()
    assert not call.legs["k1"].port
    world.boot()
    world.run(1.2)
    again = world.edge.calls.by_id[call.call]
    assert again.legs["k1"].port and "k1" in again.halves


def test_a_third_call_of_a_phone_is_refused(world):
    _, call, _, phone, _, _, _ = consulting(world)
    consult(world, phone, "6000")
    assert phone.of(sip.LegFailed)[-1].status == 486
    assert len(call.living()) == 4


def test_an_older_record_parts_nobody(world):
    """etcd's stream is slower than the link: what the record said before the transfer comes after it."""
    _, call, node, phone, leg, _, party = consulting(world)
    assert call.legs["a2"].consult == "k1"
    aside = [LegValue(leg="a2", role="party", consult="k1"), LegValue(leg="k1", role="user", consult="k1")]
    old = RecordValue(
        call=call.call, epoch=str(call.epoch), node=node.name, head="c", ending={"s1": "16"},
        legs={leg.leg: leg for leg in aside},
    )  # fmt: skip
    merged = link.Conversations(call=call.call, epoch=str(call.epoch), head="c", consult={"k1": "k1"})
    world.say(node, merged)
    key = world.keys.record(call.call)
    world.post(StoreChanged(key=key, value=KeyValue(key, encode(old), 999), revision=999))
    for name in ("a1", "k1"):
        world.say(node, link.EndLeg(call=call.call, leg=name, epoch=str(call.epoch), cause="16"))
    world.settle()
    assert set(call.legs) == {"c", "a2"} and call.legs["a2"].state == "up"


@pytest.mark.parametrize("attempt", ["t1", ""])
@pytest.mark.parametrize("detected", [False, True])
@pytest.mark.parametrize("asks_in", ["a1", "k1"])
def test_an_attended_transfer_whose_asker_hangs_up_in_the_gap(world, detected, asks_in, attempt):
    """He was told 202: the caller and the consulted one are connected by the edge itself."""
    _, call, node, phone, leg, second, _ = consulting(world, attempt)
    for other in world.nodes.values():
        other.auto_bridge = False
    node.gone = True
    if detected:
        kill(world, node.name)
    asks, other = (leg, second) if asks_in == "a1" else (second, leg)
    refer(world, phone, asks, replaces(phone, other))
    phone.sip.hangup(leg, world.now)
    world.settle()
    if not detected:
        kill(world, node.name)
    world.run(1.0)
    assert {name: leg.consult for name, leg in call.legs.items() if leg.alive} == {"c": "", "a2": ""}
    tokens = [t for n in world.nodes.values() for t in n.tokens.values() if t.epoch == str(call.epoch)]
    assert tokens and all(t.ended["a1"] == "app" and not t.sides for t in tokens)


def test_the_app_acts_on_an_attended_transfer_whose_asker_has_left(world):
    _, call, node, phone, leg, second, _ = consulting(world)
    refer(world, phone, leg, replaces(phone, second))
    phone.sip.hangup(leg, world.now)
    world.settle()
    (asked,) = node.got(link.TransferAsked)
    assert call.legs["a2"].consult == "k1", "its node serves: that is for the app to do"
    world.say(node, link.Conversations(call.call, str(call.epoch), "c", {"k1": "k1"}))
    world.say(node, link.TransferIs(call.call, "a1", str(call.epoch), asked.transfer, 200))
    world.say(node, link.EndLeg(call.call, "k1", str(call.epoch), "16"))
    world.settle()
    kill(world, node.name)
    world.run(1.0)
    assert set(call.legs) == {"c", "a2"} and call.legs["a2"].consult == ""


@pytest.mark.parametrize("asks_in", ["a1", "k1"])
def test_an_app_that_starts_again_is_told_of_a_transfer_whose_asker_has_left(world, asks_in):
    """Else it takes the caller for one on whom he hung up."""
    _, call, node, phone, leg, second, _ = consulting(world)
    world.post(LinkDown(peer=node.name, reason="closed by the far end", clean=True))
    asks, other = (leg, second) if asks_in == "a1" else (second, leg)
    refer(world, phone, asks, replaces(phone, other))
    phone.sip.hangup(leg, world.now)
    world.settle()
    node.frames.clear()
    world.link_up(node)
    world.settle()
    (listed,) = node.got(link.EdgeCalls)
    assert listed.calls[call.call].asking == ["k1"]
    assert [(f.leg, f.other) for f in node.got(link.TransferAsked)] == [("k1", "a1")]


def test_what_was_asked_while_the_link_was_down_goes_before_who_is_left(world):
    """The app lives and has not heard it: of whoever has hung up it would take the caller for left."""
    _, call, node, phone, leg, second, _ = consulting(world)
    world.post(LinkDown(peer=node.name, reason="silence", clean=False))
    refer(world, phone, leg, replaces(phone, second))
    phone.sip.hangup(leg, world.now)
    world.settle()
    world.post_link(node, f"{node.name}-1")
    world.settle()
    asked, listed = [f for f in node.frames if isinstance(f, link.TransferAsked | link.EdgeCalls)][-2:]
    assert (asked.leg, asked.other) == ("k1", "a1")
    assert set(listed.calls[call.call].legs) == {"c", "k1", "a2"}


def test_the_end_of_the_main_conversation_says_who_leads_the_call(world):
    caller, _, node, *_ = consulting(world)
    world.carrier.sip.hangup(caller, world.now)
    world.settle()
    assert [(f.leg, f.head) for f in node.got(link.LegGone)] == [("c", "k1"), ("a1", "")]


def test_a_takeover_says_who_belongs_to_whom(world):
    """A survivor's record may be older than the consultation."""
    _, call, node, phone, leg, *_ = consulting(world)
    refer(world, phone, leg, "<sip:1003@test>")
    kill(world, node.name)
    world.run(1)
    tokens = [t for n in world.nodes.values() for t in n.tokens.values() if t.kind == "resume"]
    assert {(t.head, *t.sides.items(), *t.lines.items()) for t in tokens} == {
        ("c", ("k1", "k1"), ("a2", "k1"), ("k1", "a1"))
    }
    assert {t.targets["a2"] for t in tokens} == {"device:1002"}
    assert [t.asking for t in tokens] == [["a1"]] * 4


@pytest.mark.parametrize("restarted", [False, True])
def test_a_takeover_says_which_attempt_a_phone_turned_down(world, restarted):
    """Whoever refused while nobody heard is not rung by the same attempt again."""
    phone = world.register("1001")
    _, call = world.call_in()
    node = world.nodes[call.owner.name]
    world.dial(node, call, "a1", "1001", "t7")
    phone.sip.reject(phone.of(sip.InviteReceived)[-1].leg, 486, world.now)
    world.settle()
    if restarted:
        world.boot()
    kill(world, node.name)
    world.run(1)
    tokens = [t for n in world.nodes.values() for t in n.tokens.values() if t.kind == "resume"]
    assert {t.turned_down for t in tokens} == {"t7"}


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("queue", ["support", ""])
def test_a_takeover_says_by_which_attempt_a_phone_was_rung(world, restarted, queue):
    """Its node may have been lost before it could write that. A node of an older version does not say
    for which queue it was, and nobody could go by the rest."""
    world.register("1001")
    _, call = world.call_in()
    node = world.nodes[call.owner.name]
    world.dial(node, call, "a1", "1001", "t7", agent="anna", queue=queue)
    if restarted:
        world.boot()
    rung = {"a1": link.Rung("t7", "anna", "1001", "support")} if queue else {}
    kill(world, node.name)
    world.run(1)
    (home,) = [n for n in world.nodes.values() if n is not node and n.tokens]
    assert [t.rung for t in home.tokens.values()] == [rung] * 2
    world.post(LinkDown(peer=home.name, reason="silence", clean=False))
    world.post_link(home, f"{home.name}-1")
    world.settle()
    listed = home.got(link.EdgeCalls)[-1]
    assert listed.calls[call.call].rung == rung


@pytest.mark.parametrize("answers", [False, True])
def test_a_target_that_refuses_in_the_gap_is_not_called_again(world, answers):
    _, call, node, phone, leg = talking(world)
    for other in world.nodes.values():
        other.auto_answer_new = False
    colleague = world.register("1002")
    refer(world, phone, leg, "<sip:1002@test>")
    dial(world, call, "a2", "device:1002")
    (invite,) = colleague.of(sip.InviteReceived)
    for other in world.nodes.values():
        other.auto_bridge = False
    kill(world, node.name)
    if answers:
        colleague.sip.answer(invite.leg, colleague.sdp(), world.now)
        world.settle()
        colleague.sip.hangup(invite.leg, world.now)
    else:
        colleague.sip.reject(invite.leg, 486, world.now)
    world.run(1)
    told = "SIP/2.0 480 Temporarily Unavailable" if answers else "SIP/2.0 486 Busy Here"
    assert fragments(phone)[-1] == told and not call.legs["a1"].refer
    assert [f for n in world.nodes.values() if n is not node for f in n.got(link.TransferAsked)] == []


def test_a_second_line_that_begins_while_its_nodes_app_is_away_gets_there_when_it_is_back(world):
    _, call, node, phone, _ = talking(world)
    world.post(LinkDown(peer=node.name, reason="silence", clean=False))
    for other in world.nodes.values():
        other.auto_answer_new = False
    consult(world, phone)
    assert call.legs["k1"].alive and "k1" not in call.halves
    world.post_link(node, f"{node.name}-1")
    world.settle()
    assert call.halves["k1"].node.name == node.name
    half = call.halves["k1"]
    world.say(node, link.NodeState(ready=True, asterisk="up"))
    world.settle()
    assert call.halves["k1"] is half


def test_a_second_line_that_begins_while_its_call_moves_gets_to_the_next_node(world):
    """The move had begun, and is not begun anew for it."""
    _, call, node, phone, _ = talking(world)
    for other in world.nodes.values():
        other.auto_bridge = False
    kill(world, node.name)
    survivor, epoch = world.nodes[call.move.to.name], call.epoch
    consult(world, phone)
    assert call.legs["k1"].alive and call.move.epoch == epoch
    world.say(survivor, link.Bridged(call=call.call, epoch=str(epoch), legs=["c", "a1"]))
    world.settle()
    assert call.move is None and call.halves["k1"].node.name == survivor.name


def test_both_ends_of_a_transfer_that_the_next_node_carries_out_while_it_takes_the_call_up(world):
    """The first of them changes the facts of the move; the second comes with it."""
    _, call, node, phone, leg, second, _ = consulting(world)
    for other in world.nodes.values():
        other.auto_bridge = False
    kill(world, node.name)
    refer(world, phone, leg, replaces(phone, second))
    survivor, epoch = world.nodes[call.move.to.name], call.epoch
    world.say(survivor, link.Conversations(call=call.call, epoch=str(epoch), head="c", consult={"k1": "k1"}))
    for gone in ("a1", "k1"):
        world.say(survivor, link.EndLeg(call=call.call, leg=gone, epoch=str(epoch), cause="16"))
        world.tick()
    world.run(0.5)
    assert sorted(call.legs) == ["a2", "c"] and len(phone.of(sip.LegEnded)) == 2
    assert call.move is not None and call.epoch.n == epoch.n + 1
