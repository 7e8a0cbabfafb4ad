"""Two edges at two addresses: the second takes the calls over, and tells every far end its own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ari_ha.core.machine import Note
from ari_ha.core.ports.media import MediaReach, NgCommand
from ari_ha.core.ports.probe import WallClock
from ari_ha.core.ports.sip import SipFlowClosed
from ari_ha.core.ports.store import StoreReach
from ari_ha.machines.edge import EdgeMachine
from ari_ha.machines.edge_config import EdgeConfig
from ari_ha.runtime.settings import build
from ari_ha.sip import events as sip
from ari_ha.sip.flow import Flow
from ari_ha.sip.message import Request, parse_message
from ari_ha.sip.sdp import SessionDescription
from ari_ha.wire import link
from ari_ha.wire.keyspace import DialogsValue, decode
from sidecars.edge.settings import EdgeSettings
from sidecars.edge.wiring import machine_config
from tests.support.edge_world import HOMES, Node, kill
from tests.unit.test_edge_machine import talking
from tests.unit.test_edge_role import Pair
from tests.unit.test_edge_srtp import OURS, SUITE, THEIRS, call_in, secure

PUBLIC_2, CORE_2, RELAY_2 = HOMES[1].public, HOMES[1].core, HOMES[1].relay


class TwoAddresses(Pair):
    """The second edge has other addresses and a relay that knows nothing."""

    def config(self) -> EdgeConfig:
        """The standby is made when the first edge runs already."""
        config = super().config()
        return replace(config, public_host=PUBLIC_2, core_host=CORE_2) if hasattr(self, "first") else config

    def take_over(self) -> None:
        """The first edge's host is gone, with its relay."""
        self.mirror()
        self.leave()
        self.ng.clear()
        super().take_over()
        for node in self.nodes.values():
            self.link_up(node)
        self.run(0.2)

    def requests(self, host: str, method: str, since: float) -> list[Request]:
        """What the edge sent to a host."""
        found = [parse_message(data) for at, _, to, data in self.sip_log if to == host and at >= since]
        return [m for m in found if isinstance(m, Request) and m.method == method]


@pytest.fixture
def pair() -> TwoAddresses:
    return TwoAddresses()


def audio_of(request: Request) -> tuple[str, str]:
    """Origin and connection address of a request's SDP."""
    text = request.body.decode()
    session = SessionDescription.parse(text)
    return text.split("o=")[1].split("\r\n")[0].split()[-1], session.connection or ""


def test_both_ends_and_the_node_are_told_the_new_address(pair: TwoAddresses) -> None:
    caller, call, node, phone, leg = talking(pair)
    dialog = pair.carrier.sip.dialog_of(caller)
    since = pair.now
    pair.now += 1
    pair.take_over()
    for host, count in ((pair.carrier.host, 1), (phone.host, 1), (node.host, 2)):
        asked = pair.requests(host, "INVITE", since + 0.5)
        assert len(asked) == count, host
        for request in asked:
            assert audio_of(request) == ("10.0.9.9", RELAY_2), "same origin, new place (RFC 3264 §8)"
            assert (CORE_2 if host == node.host else PUBLIC_2) in request.get("Contact")
    here = pair.edge.calls.by_id[call.call]
    assert pair.carrier.sip.dialog_of(caller) == dialog and here.epoch == call.epoch
    assert not [side for side in (*here.living(), *here.halves.values()) if side.elsewhere]
    n = node.name
    assert pair.hears[call.call] == {("c", "a1"), ("a1", "c"), (f"c@{n}.1", "c"), (f"a1@{n}.1", "a1")}
    taught = [c.body["from-tag"] for c in pair.ng if c.command == "create answer"]
    assert set(taught) == {"c", "a1", f"c@{n}.1", f"a1@{n}.1"}
    assert not node.got(link.CallMoved) and here.owner == call.owner


@pytest.mark.parametrize("who", ["caller", "agent"])
def test_either_end_can_still_end_it(pair: TwoAddresses, who: str) -> None:
    caller, call, node, phone, leg = talking(pair)
    pair.take_over()
    if who == "caller":
        pair.carrier.sip.hangup(caller, pair.now)
    else:
        phone.sip.hangup(leg, pair.now)
    pair.settle()
    pair.run(0.5)
    here = pair.edge.calls.by_id.get(call.call)
    assert here is None or who == "agent"
    if here:
        pair.say(node, link.EndLeg(call=call.call, leg="c", epoch=str(here.epoch), cause="16"))
        pair.run(0.5)
    assert pair.carrier.of(sip.LegEnded) and phone.of(sip.LegEnded) and not pair.edge.calls.by_id


def test_who_does_not_know_the_dialog_any_more_is_gone(pair: TwoAddresses) -> None:
    caller, call, node, phone, leg = talking(pair)
    phone.sip.forget(leg)
    pair.take_over()
    here = pair.edge.calls.by_id[call.call]
    assert here.tombstones == {"a1": "phone"} and [leg.leg for leg in here.living()] == ["c"]
    gone = [frame for frame in node.got(link.LegGone) if frame.leg == "a1"]
    assert gone and gone[-1].cause == "gone"


def test_a_far_end_that_is_silent_is_lost_and_not_before_its_time(pair: TwoAddresses) -> None:
    _, call, _, phone, _ = talking(pair)
    phone.silent = True
    pair.take_over()
    pair.run(20, step=0.1)
    assert {leg.leg for leg in pair.edge.calls.by_id[call.call].living()} == {"c", "a1"}
    pair.run(20, step=0.1)
    here = pair.edge.calls.by_id.get(call.call)
    assert here is None or "a1" in here.tombstones


def test_who_refuses_for_now_is_asked_again(pair: TwoAddresses) -> None:
    caller, call, _, phone, leg = talking(pair)
    pair.mirror()
    answering = phone.sip.receive
    refused: list[bytes] = []

    def refuse_once(data: bytes, flow: Any, now: float) -> None:
        if data.startswith(b"INVITE") and not refused:
            refused.append(data)
            request = parse_message(data)
            head = [f"{name}: {value}" for name, value in request.headers
                    if name in ("Via", "From", "To", "Call-ID", "CSeq")]  # fmt: skip
            text = "\r\n".join(["SIP/2.0 500 Not now", *head, "Content-Length: 0", "", ""])
            pair.later = lambda: pair.arrive(phone, text.encode(), flow)
            return
        answering(data, flow, now)

    phone.sip.receive = refuse_once
    pair.take_over()
    pair.later()
    assert pair.edge.calls.by_id[call.call].legs["a1"].elsewhere
    pair.run(1.5)
    here = pair.edge.calls.by_id[call.call]
    assert not here.legs["a1"].elsewhere and refused


def test_a_held_call_stays_held(pair: TwoAddresses) -> None:
    _, call, node, phone, leg = talking(pair)
    phone.sip.reinvite(leg, phone.sdp().replace("a=sendrecv", "a=sendonly"), pair.now)
    pair.settle()
    pair.run(0.2)
    since = pair.now
    pair.now += 1
    phone_sdp = phone.sdp().replace("a=sendrecv", "a=sendonly")
    phone.sdp = lambda *_: phone_sdp
    pair.take_over()
    asked = pair.requests(phone.host, "INVITE", since + 0.5)[-1]
    assert SessionDescription.parse(asked.body.decode()).direction == "recvonly"
    here = pair.edge.calls.by_id[call.call]
    assert here.legs["a1"].held and not here.legs["a1"].elsewhere
    assert here.media.state == "through"


def test_a_phone_that_rings_is_rung_from_here(pair: TwoAddresses) -> None:
    phone = pair.register("1001")
    _, call = pair.call_in()
    node = pair.nodes[call.owner.name]
    dialled = pair.dial(node, call, "a1", "1001")
    first = phone.of(sip.InviteReceived)[-1]
    phone.sip.ring(first.leg, pair.now)
    pair.settle()
    pair.take_over()
    assert phone.of(sip.LegCancelled) and len(phone.of(sip.InviteReceived)) == 2
    second = phone.of(sip.InviteReceived)[-1]
    assert PUBLIC_2 in second.request.get("Contact") and audio_of(second.request) == (RELAY_2, RELAY_2)
    assert not node.got(link.LegGone)
    phone.sip.answer(second.leg, phone.sdp(), pair.now)
    pair.settle()
    pair.run(0.2)
    here = pair.edge.calls.by_id[call.call]
    assert here.legs["a1"].state == "up"
    answered = [event for event in node.of(sip.LegAnswered) if event.leg == dialled]
    assert answered and RELAY_2 in (answered[-1].sdp or "")


def test_a_caller_without_an_answer_is_refused(pair: TwoAddresses) -> None:
    for node in pair.nodes.values():
        node.auto_answer_new = False
    _, call = pair.call_in()
    assert call.legs["c"].waits
    pair.take_over()
    assert not pair.edge.calls.by_id and pair.carrier.of(sip.LegFailed)[-1].status == 503


def test_a_node_that_does_not_know_its_leg_gets_a_new_one(pair: TwoAddresses) -> None:
    _, call, node, _, _ = talking(pair)
    for key in list(node.tokens):
        node.sip.forget(key)
    epoch = call.epoch
    pair.take_over()
    pair.run(1)
    here = pair.edge.calls.by_id[call.call]
    assert here.epoch > epoch and not here.lost and here.move is None
    assert not [side for side in (*here.living(), *here.halves.values()) if side.elsewhere]
    s = here.owner.name
    assert {("c", "a1"), ("a1", "c")} <= pair.hears[call.call]
    assert {listener for listener, _ in pair.hears[call.call]} >= {f"c@{s}.1", f"a1@{s}.1"} or s == node.name


def test_a_node_that_died_with_the_edge(pair: TwoAddresses) -> None:
    """The people talk directly at once, and a survivor takes the call up."""
    _, call, node, _, _ = talking(pair)
    kill(pair, node.name)
    _revive(pair, node)
    pair.take_over()
    node.gone = True
    pair.run(2)
    here = pair.edge.calls.by_id[call.call]
    assert here.owner.name != node.name and not here.lost


def _revive(pair: TwoAddresses, node: Node) -> None:
    node.gone = False
    pair.link_up(node)
    pair.run(0.5)


def test_the_second_edge_restarts_in_the_middle(pair: TwoAddresses) -> None:
    """What is already at its address stays, the rest is asked again."""
    _, call, _, phone, _ = talking(pair)
    phone.silent = True
    pair.take_over()
    value = decode(pair.store[pair.keys.dialogs("pair1", call.call)].value, DialogsValue, "")
    assert value.at == PUBLIC_2
    assert value.legs["a1"]["elsewhere"] and not value.legs["c"]["elsewhere"]
    phone.silent = False
    since = pair.now
    pair.now += 1
    pair.edge = EdgeMachine(replace(pair.config(), edge="edge2", guarded=True, process="p3"), pair.new_id)
    pair.post(WallClock(utc_s=1_800_000_000 + pair.now))
    pair.post(StoreReach(reachable=True))
    pair.snapshots()
    pair.post(pair.named("edge2", "p3"))
    pair.settle()
    pair.run(1)
    assert len(pair.requests(phone.host, "INVITE", since + 0.5)) >= 1
    assert not pair.requests(pair.carrier.host, "INVITE", since + 0.5)
    assert not pair.edge.calls.by_id[call.call].legs["a1"].elsewhere


def test_the_same_address_asks_nobody_anything(pair: TwoAddresses) -> None:
    """A restart in place: no far end hears of it."""
    _, call, node, phone, _ = talking(pair)
    since = pair.now
    pair.now += 1
    pair.config = super(TwoAddresses, pair).config  # type: ignore[method-assign]
    pair.boot()
    pair.run(0.5)
    for host in (pair.carrier.host, phone.host, node.host):
        assert not pair.requests(host, "INVITE", since + 0.5)


def test_an_older_record_is_taken_for_ours(pair: TwoAddresses) -> None:
    """It does not say where its far ends were: nobody is asked."""
    value = decode(b'{"schema":1,"call":"k","started":1.0}', DialogsValue, "")
    assert value.at == ""


def test_a_phone_on_tcp_is_told_when_it_has_connected(pair: TwoAddresses) -> None:
    _, call, _, phone, _ = talking(pair)
    leg = call.legs["a1"]
    old = Flow("public-tcp", "tcp", phone.host, 33_001, "one")
    pair.edge.context.sip.move_flow(leg.key, old)
    pair.edge.calls.touch(call)
    pair.run(0.1)
    since = pair.now
    pair.now += 1
    pair.take_over()
    here, gone = pair.edge.calls.by_id[call.call], replace(old, conn="")
    for _ in range(2):  # nobody listens where it connected from
        pair.post(SipFlowClosed(flow=gone, reason="refused", refused=True))
        pair.run(1.2)
        assert here.legs["a1"].elsewhere and here.legs["a1"].alive
    pair.post(SipFlowClosed(flow=gone, reason="refused", refused=True))
    new = Flow("public-tcp", "tcp", phone.host, 33_002, "two")
    pair.edge.registrar.on_flow("1001", new)
    pair.run(0.1)
    asked = [data for at, _, to, data in pair.sip_log if at > since and to == phone.host]
    asked = [data for data in asked if data.startswith(b"INVITE")]
    assert len(asked) >= 3 and pair.edge.context.sip.leg_flow(leg.key) == new


def test_an_encrypted_leg_gets_the_new_relays_key(pair: TwoAddresses) -> None:
    """SDES (RFC 4568): a new stream, a new key of ours; the far end's is taken from its answer."""
    pair.key = OURS
    real = pair.relay

    def relay(command: NgCommand) -> Any:
        outcome = real(command)
        if command.command == "create" and command.body.get("transport-protocol") == "RTP/SAVP":
            line = f"a=crypto:1 {SUITE} {pair.key}\r\na=ptime"
            plain = outcome.value["sdp"].replace("RTP/AVP", "RTP/SAVP")
            outcome.value["sdp"] = plain.replace("a=ptime", line)
        return outcome

    pair.relay = relay
    pair.carrier.sdp = lambda *_: secure()
    call_in(pair, secure())
    (call,) = pair.edge.calls.by_id.values()
    since, pair.key = pair.now, "inline:" + "N" * 40
    pair.now += 1
    pair.take_over()
    asked = pair.requests(pair.carrier.host, "INVITE", since + 0.5)[-1]
    assert f"a=crypto:1 {SUITE} {pair.key}" in asked.body.decode()
    here = pair.edge.calls.by_id[call.call].legs["c"]
    assert here.key_line == pair.key and not here.elsewhere
    told = [c for c in pair.ng if c.command == "publish" and c.body["from-tag"] == "c"]
    assert THEIRS in told[-1].body["sdp"]


def notes(pair: TwoAddresses) -> list[Note]:
    return [note for note in pair.notes if "address" in note.text]


def test_it_is_told(pair: TwoAddresses) -> None:
    talking(pair)
    pair.take_over()
    assert [note.text for note in notes(pair)].count("a far end has our address") == 2


# --- an rtpengine that has lost the calls


def test_an_rtpengine_that_begins_anew_gets_the_call_and_people_the_ports(pair: TwoAddresses) -> None:
    _, call, node, phone, _ = talking(pair)
    since = pair.now
    before = set(pair.hears[call.call])
    pair.now += 1
    pair.relay_begins_anew()
    for host, count in ((pair.carrier.host, 1), (phone.host, 1), (node.host, 2)):
        asked = pair.requests(host, "INVITE", since + 0.5)
        assert len(asked) == count, host
    assert pair.hears[call.call] == before
    assert not [side for side in (*call.living(), *call.halves.values()) if side.elsewhere]
    ports = {pair.tag_ports[call.call, "c"], pair.tag_ports[call.call, "a1"]}
    assert ports == {call.legs["c"].port, call.legs["a1"].port} and not call.lost


def test_an_rtpengine_that_found_its_calls_again_changes_nothing(pair: TwoAddresses) -> None:
    _, call, _, phone, _ = talking(pair)
    since, before = pair.now, set(pair.hears[call.call])
    pair.now += 1
    pair.post(MediaReach(reachable=False))
    pair.post(MediaReach(reachable=True, started="2"))
    pair.run(0.3)
    assert pair.hears[call.call] == before
    assert not pair.requests(phone.host, "INVITE", since + 0.5)


def test_a_phone_that_rings_meanwhile_is_told_when_it_answers(pair: TwoAddresses) -> None:
    phone = pair.register("1001")
    _, call = pair.call_in()
    node = pair.nodes[call.owner.name]
    pair.dial(node, call, "a1", "1001")
    invite = phone.of(sip.InviteReceived)[-1]
    phone.sip.ring(invite.leg, pair.now)
    pair.settle()
    since = pair.now
    pair.now += 1
    pair.relay_begins_anew()
    assert not pair.requests(phone.host, "INVITE", since + 0.5) and not phone.of(sip.LegCancelled)
    phone.sip.answer(invite.leg, phone.sdp(), pair.now)
    pair.settle()
    pair.run(0.3)
    (asked,) = pair.requests(phone.host, "INVITE", since + 0.5)
    assert f"m=audio {pair.tag_ports[call.call, 'a1']} " in asked.body.decode()
    assert call.legs["a1"].state == "up" and not call.legs["a1"].elsewhere
    assert not call.halves["a1"].elsewhere


def test_a_caller_without_an_answer_gets_the_new_port_with_it(pair: TwoAddresses) -> None:
    for node in pair.nodes.values():
        node.auto_answer_new = False
    caller, call = pair.call_in()
    since = pair.now
    pair.now += 1
    pair.relay_begins_anew()
    pair.edge.calls.apply_media(call)
    node = pair.nodes[call.owner.name]
    invite = node.of(sip.InviteReceived)[-1]
    node.sip.answer(invite.leg, node.sdp(), pair.now)
    pair.settle()
    pair.run(0.5)
    (answered,) = pair.carrier.of(sip.LegAnswered)
    assert f"m=audio {pair.tag_ports[call.call, 'c']} " in answered.sdp
    assert {("c", f"c@{node.name}.1"), (f"c@{node.name}.1", "c")} == pair.hears[call.call]
    assert not pair.requests(pair.carrier.host, "INVITE", since + 0.5)
    offered = pair.requests(node.host, "INVITE", since + 0.5)
    assert f"m=audio {pair.tag_ports[call.call, f'c@{node.name}.1']} " in offered[-1].body.decode()


def test_a_host_that_comes_back_at_once_is_told_apart_from_a_process(pair: TwoAddresses) -> None:
    """Same address, but rtpengine has nothing: the restarted edge finds out by its first command."""
    _, call, _, phone, _ = talking(pair)
    since = pair.now
    pair.now += 1
    pair.hears.clear()
    pair.tag_ports.clear()
    pair.config = super(TwoAddresses, pair).config  # type: ignore[method-assign]
    pair.boot()
    pair.run(0.5)
    assert len(pair.requests(phone.host, "INVITE", since + 0.5)) == 1
    here = pair.edge.calls.by_id[call.call]
    assert {("c", "a1"), ("a1", "c")} <= pair.hears[call.call] and not here.legs["a1"].elsewhere


def test_a_caller_without_an_answer_when_the_host_comes_back_at_once(pair: TwoAddresses) -> None:
    """What is made for the node that he is given to proves nothing: his own port is gone."""
    for node in pair.nodes.values():
        node.auto_answer_new = False
    _, call = pair.call_in()
    pair.now += 1
    pair.hears.clear()
    pair.tag_ports.clear()
    pair.config = super(TwoAddresses, pair).config  # type: ignore[method-assign]
    pair.boot()
    for node in pair.nodes.values():
        node.auto_answer_new = True
    pair.run(2)
    (answered,) = pair.carrier.of(sip.LegAnswered)
    assert f"m=audio {pair.tag_ports[call.call, 'c']} " in answered.sdp


def test_an_edge_behind_a_nat_says_the_address_it_is_known_by(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    document = json.loads((root / "sidecars/edge/settings.example.json").read_text())
    (tmp_path / "key").write_text("k" * 32)
    document |= {"header_key_file": str(tmp_path / "key")}
    assert machine_config(build(EdgeSettings, document)).public_host == document["public"]["host"]
    document["public"]["advertised"] = "203.0.113.7"
    config = machine_config(build(EdgeSettings, document))
    sip = EdgeMachine(config, lambda: "x").context.sip
    assert "@203.0.113.7:" in sip.contact(Flow("public-udp", "udp", "192.0.2.1", 5060), "a")
    assert config.core_host == document["core"]["host"]
