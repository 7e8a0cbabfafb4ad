"""Two pairs side by side: a call at one, the phone at the other."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest

from ari_ha.core.ports.link import LinkDown
from ari_ha.core.ports.sip import SendSip, SipBytes, SipFlowClosed
from ari_ha.core.ports.store import KeyValue, StoreChanged
from ari_ha.sip import events as sip
from ari_ha.sip.auth import Credentials
from ari_ha.sip.flow import Flow
from ari_ha.wire import link
from ari_ha.wire.keyspace import AttemptValue, EdgeValue, RecordValue, VipValue, encode
from ari_ha.wire.sip_values import TrunkValue
from tests.support.edge_world import Party, kill
from tests.support.two_pairs import TwoPairs

PHONE = "10.0.1.60"


@pytest.fixture
def two() -> TwoPairs:
    return TwoPairs("1001", "1002")


@dataclass
class Talk:
    """A caller at pair a, an agent whose phone is at pair b."""

    two: TwoPairs
    caller: str
    call: Any
    node: Any
    phone: Party
    leg: str

    @property
    def hears(self) -> set[tuple[str, str]]:
        return self.two.a.hears[self.call.call]


def ringing(two: TwoPairs) -> Talk:
    phone = two.b.register("1001")
    caller, call = two.a.call_in()
    node = two.nodes[call.owner.name]
    two.a.dial(node, call, "a1", "1001")
    leg = phone.of(sip.InviteReceived)[-1].leg
    phone.sip.ring(leg, two.a.now)
    two.a.settle()
    return Talk(two, caller, call, node, phone, leg)


def talking(two: TwoPairs) -> Talk:
    talk = ringing(two)
    talk.phone.sip.answer(talk.leg, talk.phone.sdp(), two.a.now)
    two.a.settle()
    frame = link.WantMedia(call=talk.call.call, epoch=str(talk.call.epoch), state="hitless", request=1)
    two.a.say(talk.node, frame)
    two.a.settle()
    return talk


def both_hear(talk: Talk) -> bool:
    return {("c", "a1"), ("a1", "c")} <= talk.hears


def messages(edge: Any, start: bytes, to: str) -> list[bytes]:
    return [data for _, _, host, data in edge.sip_log if host == to and data.startswith(start)]


def test_the_phone_rings_through_its_own_pair(two):
    talk = ringing(two)
    assert not messages(two.a, b"INVITE", PHONE) and len(messages(two.b, b"INVITE", PHONE)) == 1
    request = talk.phone.of(sip.InviteReceived)[-1].request
    assert not request.values("Route") and request.uri.startswith("sip:1001@10.0.1.60")
    first, second = request.values("Record-Route")
    assert "@10.0.1.21:5060;lr" in first and "@10.0.2.21:5076;lr" in second
    assert two.b.edge.calls.by_id == {}
    assert talk.node.got(link.LegRinging)


def test_they_talk_and_all_of_it_is_the_callers_pairs(two):
    talk = talking(two)
    assert both_hear(talk) and two.b.hears == {}
    assert [key for key in two.a.store if f"dialogs/pair1/{talk.call.call}" in key]
    assert not [key for key in two.a.store if "dialogs/pair2" in key]


@pytest.mark.parametrize("who", ["phone", "caller"])
def test_either_side_hangs_up(two, who):
    talk = talking(two)
    party, key = (talk.phone, talk.leg) if who == "phone" else (two.carrier, talk.caller)
    party.sip.hangup(key, two.a.now)
    two.a.settle()
    two.a.run(0.5)
    if who == "phone":
        frame = link.EndLeg(call=talk.call.call, leg="c", epoch=str(talk.call.epoch), cause="16")
        two.a.say(talk.node, frame)
        two.a.settle()
        two.a.run(0.5)
    assert talk.phone.of(sip.LegEnded) and two.carrier.of(sip.LegEnded)
    assert two.a.edge.calls.by_id == {}
    assert not [data for data in messages(two.b, b"SIP/2.0 4", PHONE) if b" BYE" in data]


def test_the_caller_gives_up_while_it_rings(two):
    talk = ringing(two)
    two.carrier.sip.hangup(talk.caller, two.a.now)
    two.a.settle()
    two.a.run(0.5)
    assert talk.phone.of(sip.LegCancelled)
    assert two.a.edge.context.sip.counters.get("out.ACK", 0) >= 1
    two.a.run(5.0)
    assert not messages(two.b, b"INVITE", PHONE)[1:]


def test_the_phone_refuses(two):
    talk = ringing(two)
    talk.phone.sip.reject(talk.leg, 486, two.a.now)
    two.a.settle()
    assert two.a.edge.calls.by_id[talk.call.call].tombstones["a1"] == "failed"
    two.a.run(5.0)
    acks = messages(two.b, b"ACK", PHONE)
    assert acks and len({data.split(b"\r\n")[1] for data in acks}) == 1, "the ACK is of the same branch"
    branch = next(line for line in acks[0].split(b"\r\n") if line.startswith(b"Via"))
    assert branch.split(b";flow")[0] in messages(two.b, b"INVITE", PHONE)[0]


def test_hold_and_back(two):
    talk = talking(two)
    for direction, held in (("sendonly", True), ("sendrecv", False)):
        talk.phone.sip.reinvite(talk.leg, talk.phone.sdp(direction=direction), two.a.now)
        two.a.settle()
        two.a.run(0.3)
        assert talk.phone.of(sip.ReinviteAnswered)
        assert talk.call.legs["a1"].held is held
        assert talk.node.got(link.LegHeld)[-1].held is held
    two.a.say(talk.node, link.WantMedia(call=talk.call.call, epoch=str(talk.call.epoch), state="hitless",
                                        request=2))  # fmt: skip
    two.a.settle()
    assert both_hear(talk)


def test_the_node_is_killed(two):
    talk = talking(two)
    phone_heard = len(messages(two.b, b"", PHONE))
    two.b.post(LinkDown(peer=talk.node.name, reason="closed", clean=True))
    kill(two.a, talk.node.name)
    assert talk.call.owner.name != talk.node.name and both_hear(talk)
    assert len(messages(two.b, b"", PHONE)) == phone_heard


def test_the_phones_edge_is_started_again_while_they_talk(two):
    """Nothing but the registration is needed to go on."""
    talk = talking(two)
    two.b.dead = True
    two.a.run(0.3)
    assert both_hear(talk)
    two.b.restart()
    talk.phone.sip.reinvite(talk.leg, talk.phone.sdp(direction="sendonly"), two.a.now)
    two.a.settle()
    assert talk.phone.of(sip.ReinviteAnswered)
    two.carrier.sip.hangup(talk.caller, two.a.now)
    two.a.settle()
    two.a.run(0.5)
    assert talk.phone.of(sip.LegEnded)


def test_a_bye_while_the_phones_edge_is_away_arrives_when_it_is_back(two):
    talk = talking(two)
    two.b.dead = True
    talk.phone.sip.hangup(talk.leg, two.a.now)
    two.a.run(1.0)
    assert talk.call.call in two.a.edge.calls.by_id and both_hear(talk)
    two.b.restart()
    two.a.run(5.0)
    assert "a1" in talk.call.tombstones and talk.phone.of(sip.LegEnded)


def test_the_calls_edge_is_started_again_while_they_talk(two):
    talk = talking(two)
    two.a.dead = True
    two.a.restart()
    two.a.run(1.0)
    again = two.a.edge.calls.by_id[talk.call.call]
    assert both_hear(talk) and again.legs["a1"].state == "up"
    talk.phone.sip.reinvite(talk.leg, talk.phone.sdp(direction="sendonly"), two.a.now)
    two.a.settle()
    two.a.run(0.3)
    assert again.legs["a1"].held
    talk.phone.sip.hangup(talk.leg, two.a.now)
    two.a.settle()
    assert "a1" in again.tombstones


def test_an_edge_away_is_not_forgotten_when_its_key_is(two):
    """Its lease runs out before it is back: the phone's BYE must not be refused meanwhile."""
    talk = talking(two)
    two.a.dead = True
    del two.a.store[two.a.keys.edge("edge-pair1")]
    two.b.snapshots()
    talk.phone.sip.hangup(talk.leg, two.a.now)
    two.a.run(1.0)
    assert not messages(two.b, b"SIP/2.0", PHONE)[-1].startswith(b"SIP/2.0 4")
    two.a.restart()
    two.a.run(6.0)
    assert talk.phone.of(sip.LegEnded)


@pytest.mark.parametrize("seed", range(6))
def test_a_fifth_of_the_messages_gets_lost_on_every_way(two, seed):
    """Nobody retransmits in the middle: the ends do, and what is passed on twice is one transaction."""
    chance = random.Random(seed)
    phone = two.b.register("1001")
    _, call = two.a.call_in()
    two.a.loses = two.b.loses = lambda: chance.random() < 0.2
    two.a.dial(two.nodes[call.owner.name], call, "a1", "1001")
    two.a.run(8.0)
    invites = phone.of(sip.InviteReceived)
    assert len(invites) == 1, "rung once"
    phone.sip.ring(invites[0].leg, two.a.now)
    phone.sip.answer(invites[0].leg, phone.sdp(), two.a.now)
    two.a.run(20.0)
    assert call.legs["a1"].state == "up" and phone.of(sip.LegAcked)
    phone.sip.hangup(invites[0].leg, two.a.now)
    two.a.run(20.0)
    assert "a1" in call.tombstones and phone.of(sip.LegEnded)


def test_the_phone_has_another_connection_by_now(two):
    """Where the phone is registered counts, not where it was when it was called."""
    talk = talking(two)
    binding = two.b.edge.registrar.binding_of("1001")
    assert binding is not None
    moved = Party(PHONE, 7001, two.a.new_id)
    two.a.phones["moved"] = moved
    binding.port = 7001
    two.carrier.sip.hangup(talk.caller, two.a.now)
    two.a.settle()
    two.a.run(0.5)
    assert [data for _, _, host, data in two.b.sip_log if data.startswith(b"BYE")]
    assert moved.sip.counters.get("in.BYE")


def test_without_its_registration_the_phone_is_where_it_was(two):
    talk = talking(two)
    two.b.edge.registrar._bindings.clear()
    two.carrier.sip.hangup(talk.caller, two.a.now)
    two.a.settle()
    two.a.run(0.5)
    assert talk.phone.of(sip.LegEnded)


def test_the_phones_pair_is_active_at_another_address(two):
    """Where no address moves, its phones are reached through whichever edge is active."""
    talk = talking(two)
    keys, a = two.a.keys, two.a.edge
    for key, value in (
        (keys.edge("edge9"), EdgeValue(edge="edge9", vip="pair2", sip="x", hop="10.0.2.22:5076")),
        (keys.vip("pair2"), VipValue(edge="edge9", since=1.0)),
    ):
        assert a.context.sip.leg_flow(talk.call.legs["a1"].key).host == "10.0.2.21"
        two.a.revision += 1
        item = KeyValue(key, encode(value), two.a.revision)
        two.a.post(StoreChanged(key=key, revision=two.a.revision, value=item))
    assert a.context.sip.leg_flow(talk.call.legs["a1"].key).host == "10.0.2.22"
    assert a.registrar.route(a.registrar.binding_of("1001"))[0].host == "10.0.2.22"
    customer = a.context.sip.leg_flow(talk.call.legs["c"].key)
    assert customer.host == two.carrier.host


def test_it_is_so_while_the_calls_edge_is_away(two):
    talk = talking(two)
    two.a.dead = True
    keys = two.a.keys
    for key, value in (
        (keys.edge("edge9"), EdgeValue(edge="edge9", vip="pair2", sip="x", hop="10.0.2.22:5076")),
        (keys.vip("pair2"), VipValue(edge="edge9", since=1.0)),
    ):
        two.a.revision += 1
        two.a.store[key] = KeyValue(key, encode(value), two.a.revision)
    del two.a.store[keys.edge("edge-pair2")]
    two.a.restart()
    leg = two.a.edge.calls.by_id[talk.call.call].legs["a1"]
    assert two.a.edge.context.sip.leg_flow(leg.key).host == "10.0.2.22"


def test_a_phone_on_a_connection(two):
    """Requests go over the connection it has now; what it sends is answered over the same."""
    talk = talking(two)
    binding = two.b.edge.registrar.binding_of("1001")
    binding.listener, binding.transport, binding.conn = "public-tcp", "tcp", "life.7"
    sent: list[SendSip] = []
    perform = two.b.perform
    two.b.perform = lambda effect: (isinstance(effect, SendSip) and sent.append(effect), perform(effect))
    two.a.say(talk.node, link.EndLeg(call=talk.call.call, leg="a1", epoch=str(talk.call.epoch), cause="16"))
    (bye,) = [effect for effect in sent if effect.data.startswith(b"BYE")]
    assert (bye.flow.transport, bye.flow.conn) == ("tcp", "life.7")
    assert bye.data.split(b"\r\n")[1].startswith(b"Via: SIP/2.0/TCP 10.0.1.21:5060")
    invite = talk.phone.of(sip.InviteReceived)[-1].request
    lines = (
        "BYE sip:10.0.2.11:5076 SIP/2.0", "Via: SIP/2.0/TCP 192.168.1.9;branch=z9hG4bKx",
        f"Route: {', '.join(invite.values('Record-Route'))}", "Max-Forwards: 70",
        f"From: {invite.get('To')};tag=x", f"To: {invite.get('From')}", f"Call-ID: {invite.call_id}",
        "CSeq: 900 BYE", "X-ARI-HA-Token: false", "Content-Length: 0", "", "",
    )  # fmt: skip
    passed: list[bytes] = []
    receive = two.a.post
    two.a.post = lambda event: (passed.append(getattr(event, "data", b"")), receive(event))
    back: list[bytes] = []
    hear = two.b.post
    two.b.post = lambda event: (back.append(getattr(event, "data", b"")), hear(event))
    connection = Flow("public-tcp", "tcp", PHONE, 5099, "life.8")
    two.b.post(SipBytes(data="\r\n".join(lines).encode(), flow=connection))
    assert any(data.startswith(b"BYE") for data in passed)
    assert not any(b"X-ARI-HA" in data or b"\r\nRoute" in data for data in passed)
    (answer,) = [effect for effect in sent if effect.flow.conn == "life.8"]
    assert answer.data.count(b"Via:") == 1 and b"received=10.0.1.60" in answer.data
    assert b"flow=" not in answer.data
    # once more when that one is gone, and the phone has registered over another
    again = next(data for data in back if data.startswith(b"SIP/2.0"))
    two.b.post(SipFlowClosed(flow=connection, reason="closed"))
    two.b.post(SipBytes(data=again, flow=Flow("edge-hop", "udp", "10.0.2.11", 5076)))
    answers = [e.flow.conn for e in sent if e.data.startswith(b"SIP/2.0") and e.flow.conn]
    assert answers == ["life.8", "life.7"]


def test_a_phone_in_a_call_of_its_own_pair_is_busy(two):
    phone = two.b.register("1001")
    _, own = two.b.call_in("6001")
    two.b.dial(two.nodes[own.owner.name], own, "a1", "1001")
    assert len(phone.of(sip.InviteReceived)) == 1
    _, call = two.a.call_in()
    two.a.dial(two.nodes[call.owner.name], call, "a1", "1001", attempt="t2")
    assert len(phone.of(sip.InviteReceived)) == 1
    assert call.tombstones["a1"] == "failed"


def test_no_way_to_the_other_pair(two):
    two.b.register("1001")
    del two.a.store[two.a.keys.edge("edge-pair2")]
    two.a.snapshots()
    _, call = two.a.call_in()
    node = two.nodes[call.owner.name]
    key = two.a.dial(node, call, "a1", "1001")
    failed = [event for event in node.of(sip.LegFailed) if event.leg == key]
    assert [event.status for event in failed] == [480]


def test_claims_are_the_business_of_the_pair_that_has_the_phone(two):
    two.b.register("1001")
    node = two.nodes["ast1"]
    for edge, granted in ((two.a, False), (two.b, True)):
        frame = link.ClaimAgent(agent="1001", device="1001", attempt="t1", call="c1")
        edge.say(node, frame)
        assert node.got(link.ClaimAnswer)[-1].granted is granted


def test_strangers_send_nothing_through_us(two):
    """A route that is not sealed, a true one to somewhere else, and one for what is in no call."""
    talk = talking(two)
    route = talk.phone.of(sip.InviteReceived)[-1].request.values("Record-Route")[0]
    sent = len(two.b.sip_log)
    flow = Flow("l", "udp", two.b.home.public, 5060)
    arguments = {"flow": flow, "from_": "<sip:x@x>", "to": "<sip:y@y>", "now": two.a.now}
    false = route.replace("sip:", "sip:A", 1)
    for n, (target, given) in enumerate(
        [("sip:c@10.0.2.11:5076", false), ("sip:c@10.0.2.31:5060", route), ("sip:c@10.9.9.9:5060", route),
         ("sip:c@10.0.2.21:5076", route)]
    ):  # fmt: skip
        for tag in ("", ";tag=t"):
            talk.phone.sip.request(f"x{n}{tag}", "OPTIONS", target=target, headers=(("Route", given),),
                                   **{**arguments, "to": f"<sip:y@y>{tag}"})  # fmt: skip
            two.a.settle()
    assert {host for _, _, host, _ in two.b.sip_log[sent:]} <= {PHONE}
    talk.phone.sip.request("t", "OPTIONS", target="sip:c@10.0.2.11:5076", headers=(("Route", route),),
                           **{**arguments, "to": "<sip:y@y>;tag=t"})  # fmt: skip
    two.a.settle()
    assert [host for _, _, host, _ in two.b.sip_log[sent:] if host == "10.0.2.11"], "as of a call it goes on"
    sent = len(two.b.sip_log)
    phone_key = two.a.new_id()
    talk.phone.sip.invite(
        phone_key, target="sip:6000@10.0.2.11:5076", sdp=talk.phone.sdp(), headers=(("Route", route),),
        **arguments,
    )  # fmt: skip
    two.a.settle()
    two.a.run(0.5)
    assert [e.status for e in talk.phone.of(sip.LegFailed) if e.leg == phone_key] == [403]
    assert {data.split()[0] for _, _, host, data in two.b.sip_log[sent:] if host != PHONE} <= {b"ACK"}
    assert not two.a.edge.context.sip.counters.get("refused.403"), "the other pair never heard of it"
    assert len(two.a.edge.calls.by_id) == 1


def test_another_pairs_phone_does_not_have_audio_sent_to_its_edge(two):
    """It is heard from there, but it is not there."""
    talk = ringing(two)
    own = talk.phone.sdp().replace(PHONE, "10.0.2.21")
    assert "c=IN IP4 10.0.2.21" in own
    talk.phone.sip.answer(talk.leg, own, two.a.now)
    two.a.settle()
    told = [c.body["sdp"] for c in two.a.ng if c.body.get("from-tag") == "a1" and "sdp" in c.body]
    assert told and all("c=IN IP4 0.0.0.0\r\n" in text for text in told)


# --- a second call of a phone ------------------------------------------------------


def consulting(two: TwoPairs) -> tuple[Talk, str]:
    """The agent calls a colleague while he talks; the second call's key at his phone."""
    talk = talking(two)
    record = RecordValue(
        call=talk.call.call, epoch=str(talk.call.epoch), node=str(talk.call.owner), stage="talking",
        attempts={"t1": AttemptValue(attempt="t1", agent="1001", device="1001", leg="a1", state="answered")},
    )  # fmt: skip
    two.a.revision += 1
    item = KeyValue(two.a.keys.record(talk.call.call), encode(record), two.a.revision)
    two.a.store[item.key] = item
    for edge in (two.a, two.b):
        edge.post(StoreChanged(key=item.key, revision=two.a.revision, value=item))
    return talk, second_call(two, talk.phone)


def second_call(two: TwoPairs, phone: Party, number: str = "1002") -> str:
    arguments = {
        "flow": Flow("l", "udp", two.b.home.public, 5060), "target": f"sip:{number}@10.0.1.21",
        "from_": "<sip:1001@test>", "to": f"<sip:{number}@test>", "sdp": phone.sdp(),
        "credentials": Credentials("1001", "pw"), "now": two.a.now,
    }  # fmt: skip
    key = two.a.new_id()
    phone.sip.invite(key, **arguments)
    two.a.settle()
    return key


def test_an_agent_consults(two):
    """His second call is one of the call he talks in, though he sent it to his own pair."""
    talk, _ = consulting(two)
    assert two.b.edge.calls.by_id == {} and len(two.a.edge.calls.by_id) == 1
    line = talk.call.legs["k1"]
    assert (line.of, line.user, line.number_asked) == ("a1", "1001", "1002")
    assert talk.node.got(link.ConsultAsked)[-1].number == "1002"
    assert len(talk.phone.of(sip.LegFailed)) == 0, "the challenge went the same way"


def test_he_hands_the_caller_over(two):
    talk, second = consulting(two)
    colleague = two.b.register("1002")
    two.a.dial(talk.node, talk.call, "a2", "1002", consult="k1")
    colleague.sip.ring(colleague.of(sip.InviteReceived)[-1].leg, two.a.now)
    identity = talk.phone.sip.dialog_of(second)
    assert identity is not None
    two.a.run(0.3)
    replaces = f"{identity[0]}%3Bto-tag%3D{identity[2]}%3Bfrom-tag%3D{identity[1]}"
    header = ("Refer-To", f"<sip:1002@test?Replaces={replaces}>")
    talk.phone.sip.request_in_dialog(talk.leg, "REFER", two.a.now, (header,))
    two.a.settle()
    assert [e.status for e in talk.phone.of(sip.ResponseReceived)][-1] == 202
    asked = talk.node.got(link.TransferAsked)[-1]
    assert (asked.leg, asked.other) == ("a1", "k1")


def test_he_gives_his_second_call_up(two):
    talk, second = consulting(two)
    talk.phone.sip.hangup(second, two.a.now)
    two.a.settle()
    two.a.run(0.5)
    assert "k1" in talk.call.tombstones and talk.call.legs["a1"].state == "up" and both_hear(talk)


def test_a_word_that_is_old_costs_nothing(two):
    """The record says that he talks there, and he does not: it is a new call of that pair."""
    talk, second = consulting(two)
    talk.phone.sip.hangup(second, two.a.now)
    two.a.edge.calls.end_leg(talk.call, talk.call.legs["a1"], "edge", "16")
    two.a.settle()
    third = second_call(two, talk.phone, "6000")
    two.a.run(0.3)
    assert two.b.edge.calls.by_id == {} and len(two.a.edge.calls.by_id) == 2
    assert talk.phone.of(sip.LegAnswered)[-1].leg == third


def test_without_a_call_elsewhere_it_is_his_own_pairs(two):
    phone = two.b.register("1001")
    second_call(two, phone, "6000")
    two.a.run(0.3)
    assert len(two.b.edge.calls.by_id) == 1 and two.a.edge.calls.by_id == {}


def test_nobody_else_is_taken_for_him(two):
    """It has his password, and is not where his phone is: a call of its own."""
    consulting(two)
    stranger = Party("10.0.1.99", 5060, two.a.new_id)
    two.a.phones["stranger"] = stranger
    sent = len(two.b.sip_log)
    second_call(two, stranger)
    assert two.a.home.core not in {host for _, _, host, _ in two.b.sip_log[sent:]}
    assert len(two.a.edge.calls.by_id) == len(two.b.edge.calls.by_id) == 1


# --- carriers of one pair ----------------------------------------------------------


def carrier_of(two: TwoPairs, *pairs: str, **fields: Any) -> Party:
    """A carrier that only these pairs speak to."""
    party = Party("10.0.1.71", 5060, two.a.new_id)
    two.a.phones["acme"] = party
    values = {"prefixes": ["+"], "options_interval_s": 0, "address": "10.0.1.71:5060", **fields}
    trunk = TrunkValue(trunk="acme", pairs=list(pairs), **values)
    two.a.revision += 1
    key = two.a.keys.trunk("acme")
    two.a.store[key] = KeyValue(key, encode(trunk), two.a.revision)
    for edge in (two.a, two.b):
        edge.snapshots()
        edge.settle()
    return party


def dialled(two: TwoPairs) -> tuple[Any, Any]:
    """A call of pair b, whose node dials a number."""
    _, call = two.b.call_in("6001")
    two.b.dial(two.nodes[call.owner.name], call, "t1", "", target="number:+4930123")
    return call, two.nodes[call.owner.name]


@pytest.mark.parametrize(("rule", "port"), [("route", 5099), ("source", 5060)])
def test_a_carrier_that_listens_elsewhere(two, rule, port):
    """The pair the carrier knows finds it by its dialog, as it would in a call of its own."""
    acme = carrier_of(two, "pair1", next_hop=rule)
    call, node = dialled(two)
    (invite,) = acme.of(sip.InviteReceived)
    own, arrive = f"<sip:{acme.host}:5060>".encode(), two.a.arrive
    two.a.arrive = lambda who, data, flow: arrive(
        who, data.replace(own, own.replace(b":5060", b":5099")), flow
    )
    acme.sip.answer(invite.leg, acme.sdp(), two.a.now)
    two.a.settle()
    sent: list[SendSip] = []
    perform = two.a.perform
    two.a.perform = lambda effect: (isinstance(effect, SendSip) and sent.append(effect), perform(effect))
    two.b.say(node, link.EndLeg(call=call.call, leg="t1", epoch=str(call.epoch), cause="16"))
    two.b.settle()
    byes = [e.flow.port for e in sent if e.data.startswith(b"BYE") and e.flow.host == acme.host]
    assert set(byes) == {port}


@pytest.mark.parametrize("who", ["carrier", "caller"])
def test_a_number_leaves_through_the_pair_the_carrier_knows(two, who):
    acme = carrier_of(two, "pair1")
    call, node = dialled(two)
    assert not messages(two.b, b"INVITE", acme.host) and len(messages(two.a, b"INVITE", acme.host)) == 1
    (invite,) = acme.of(sip.InviteReceived)
    assert invite.request.uri == f"sip:+4930123@{acme.host}:5060"
    acme.sip.answer(invite.leg, acme.sdp(), two.a.now)
    two.a.settle()
    assert call.legs["t1"].state == "up" and node.of(sip.LegAnswered)
    if who == "carrier":
        acme.sip.hangup(invite.leg, two.a.now)
    else:
        two.b.say(node, link.EndLeg(call=call.call, leg="t1", epoch=str(call.epoch), cause="16"))
    two.a.settle()
    two.a.run(0.5)
    assert "t1" in call.tombstones and acme.of(sip.LegEnded)


def test_a_carrier_without_its_pair_is_no_candidate(two):
    acme = carrier_of(two, "pair1")
    del two.a.store[two.a.keys.edge("edge-pair1")]
    two.b.snapshots()
    dialled(two)
    assert not acme.of(sip.InviteReceived)
    assert two.b.edge.trunks.candidates("+4930123") == []


def test_of_two_carriers_the_own_pairs_is_tried_first(two):
    carrier_of(two, "pair1", priority=1)
    own = TrunkValue(trunk="own", address="10.0.1.72:5060", prefixes=["+"], priority=500, pairs=["pair2"])
    two.a.revision += 1
    two.a.store[two.a.keys.trunk("own")] = KeyValue(two.a.keys.trunk("own"), encode(own), two.a.revision)
    two.b.snapshots()
    assert two.b.edge.trunks.candidates("+49") == ["own", "acme"]


@pytest.mark.parametrize("fields", [{"register": True, "user": "us"}, {"options_interval_s": 1}])
def test_only_a_pair_the_carrier_knows_speaks_to_it_unasked(two, fields):
    acme = carrier_of(two, "pair1", **fields)
    two.a.run(3.0)
    method = b"REGISTER" if "register" in fields else b"OPTIONS"
    assert messages(two.a, method, acme.host) and not messages(two.b, method, acme.host)
    # registered there and not here: it may carry our calls all the same
    assert two.b.edge.trunks.candidates("+49") == ["acme"]
