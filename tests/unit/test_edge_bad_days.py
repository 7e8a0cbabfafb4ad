"""Bad input and bad days at the edge: each has one defined answer."""

from __future__ import annotations

import dataclasses

import pytest

from ari_ha.core.machine import Note, Unknown
from ari_ha.core.ports.link import LinkDown
from ari_ha.core.ports.media import MediaReach
from ari_ha.core.ports.probe import ProbeRefused
from ari_ha.core.ports.sip import SipBytes
from ari_ha.core.ports.store import KeyValue, StoreChanged, StoreReach, StoreTxn
from ari_ha.machines.edge import FAMILIES
from ari_ha.machines.node_watch import SILENT
from ari_ha.sip import events as sip
from ari_ha.sip.auth import ha1
from ari_ha.sip.flow import Flow
from ari_ha.sip.sdp import build_audio_sdp
from ari_ha.wire import link
from ari_ha.wire.keyspace import RecordValue, SecretUserValue, encode
from ari_ha.wire.token import HEADER, LegToken, sign
from tests.support.edge_world import EDGE_PUBLIC, KEY, EdgeWorld, Party, digest_header, kill
from tests.unit.test_edge_machine import talking


def stranger(world: EdgeWorld) -> Party:
    party = Party("10.0.1.99", 5060, world.new_id)
    world.phones["stranger"] = party
    return party


def invite(world: EdgeWorld, party: Party, did: str = "6000", **more) -> str:
    key = world.new_id()
    arguments = {
        "flow": Flow("l", "udp", *EDGE_PUBLIC), "target": f"sip:{did}@{EDGE_PUBLIC[0]}",
        "from_": "<sip:9@stranger>", "to": f"<sip:{did}@edge>", "sdp": party.sdp(), "now": world.now,
    }  # fmt: skip
    party.sip.invite(key, **{**arguments, **more})
    world.settle()
    return key


@pytest.mark.parametrize(
    ("kept", "asked"),
    [(("md5", "sha256"), ["SHA-256", "MD5"]), (("md5",), ["MD5"]), ((), ["SHA-256", "MD5"])],
)
def test_a_phone_is_asked_for_the_digests_its_user_has(world, kept, asked):
    """Some phones give up at a challenge they do not know; nobody learns which users there are."""
    if kept:
        digests = {
            f"ha1_{kind}": ha1({"md5": "MD5", "sha256": "SHA-256"}[kind], "1009", "test", "pw")
            for kind in kept
        }
        world.store[world.keys.secret_user("1009")] = KeyValue(
            world.keys.secret_user("1009"), encode(SecretUserValue(user="1009", realm="test", **digests)), 50
        )
    world.snapshots()
    phone = Party("10.0.1.60", 6009, world.new_id)
    world.phones["1009"] = phone
    phone.sip.request(
        "r1", "REGISTER", flow=Flow("l", "udp", *EDGE_PUBLIC), target="sip:test", from_="<sip:1009@test>",
        to="<sip:1009@test>", headers=(("Contact", "<sip:1009@10.0.1.60:6009>"),), now=world.now,
    )  # fmt: skip
    world.settle()
    (answer,) = phone.of(sip.ResponseReceived)
    values = [value for name, value in answer.headers if name.lower() == "www-authenticate"]
    assert [value.split("algorithm=")[1].split(",")[0] for value in values] == asked


def test_an_unknown_source_is_challenged_and_gets_no_call(world):
    party = stranger(world)
    invite(world, party)
    failed = party.of(sip.LegFailed)[-1]
    assert failed.status == 401
    assert world.edge.calls.by_id == {}


def test_a_forged_token_from_a_phone_gets_nothing(world):
    _, call, node, _, _ = talking(world)
    genuine = LegToken(kind="dial", call=call.call, leg="a9", epoch=str(call.epoch), target="device:1001")
    for party in (stranger(world), world.carrier):
        before = set(world.edge.calls.by_id)
        invite(world, party, "6000", headers=((HEADER, sign(genuine, KEY)),))
        assert set(call.legs) == {"c", "a1"}
        for ident in set(world.edge.calls.by_id) - before:
            # the carrier's is an ordinary new call; the header did nothing and went nowhere
            fresh = world.edge.calls.by_id[ident]
            served = world.nodes[fresh.owner.name]
            assert {t.call for t in served.tokens.values() if t.leg == "a9"} == set()


def test_a_node_without_a_true_token_is_refused(world):
    node = world.nodes["ast1"]
    key = world.new_id()
    node.sip.invite(
        key, flow=Flow("l", "udp", "10.0.2.11", 5070), target="sip:x@10.0.2.11", from_="<sip:a@b>",
        to="<sip:x@b>", sdp=node.sdp(), headers=((HEADER, "bm90LWEtdG9rZW4.00"),), now=world.now,
    )  # fmt: skip
    world.settle()
    assert node.of(sip.LegFailed)[-1].status == 403


def test_wrong_digest_is_refused_and_counted(world):
    party = stranger(world)
    arguments = {
        "flow": Flow("l", "udp", *EDGE_PUBLIC), "target": "sip:test", "from_": "<sip:1001@test>",
        "to": "<sip:1001@test>", "now": world.now,
    }  # fmt: skip
    party.sip.request("r1", "REGISTER", **arguments)
    world.settle()
    header = digest_header(party.of(sip.ResponseReceived)[-1], "1001", "wrong", "REGISTER", "sip:test")
    party.sip.request("r2", "REGISTER", headers=(("Authorization", header),), **arguments)
    world.settle()
    assert party.of(sip.ResponseReceived)[-1].status == 401
    assert world.edge.registrar.binding_of("1001") is None


def test_a_registration_is_stored_and_reaped_after_it_expired(world):
    world.register("1001")
    binding = world.edge.registrar.binding_of("1001")
    assert binding and [key for key in world.store if "/bindings/1001/" in key]
    world.run(140.0, step=1.0)
    assert world.edge.registrar.binding_of("1001") is None
    assert not [key for key in world.store if "/bindings/1001/" in key]


def test_a_registration_survives_a_restart_of_the_edge(world):
    world.register("1001")
    world.boot()
    assert world.edge.registrar.binding_of("1001")


def test_no_phone_rings_before_that_is_written_down(world, monkeypatch):
    """An edge that dies while etcd takes its time has rung nobody; one that dies later has a successor
    that knows."""
    party = world.register("1001")
    _, call = world.call_in()
    node, rang = world.nodes[call.owner.name], len(party.of(sip.InviteReceived))
    perform, waiting = world.perform, []

    def slow(effect):
        waiting.append(effect) if isinstance(effect, StoreTxn) else perform(effect)

    monkeypatch.setattr(world, "perform", slow)
    world.dial(node, call, "a1", "1001")
    world.run(1.0)
    assert call.legs["a1"].state == "ringing" and len(party.of(sip.InviteReceived)) == rang
    while waiting:
        perform(waiting.pop(0))
    world.settle()
    assert len(party.of(sip.InviteReceived)) == rang + 1
    monkeypatch.undo()
    world.boot()
    world.run(1.2)
    party.sip.ring(party.of(sip.InviteReceived)[-1].leg, world.now)
    party.sip.answer(party.of(sip.InviteReceived)[-1].leg, party.sdp(), world.now)
    world.settle()
    assert world.edge.calls.by_id[call.call].legs["a1"].state == "up"
    assert len(party.of(sip.InviteReceived)) == rang + 1, "the successor's INVITE is the same one"


@pytest.mark.parametrize("etcd", ["away", "silent"])
def test_a_phone_rings_whatever_etcd_does(world, etcd):
    phone = world.register("1001")
    _, call = world.call_in()
    world.lose_etcd(etcd)
    world.dial(world.nodes[call.owner.name], call, "a1", "1001")
    assert bool(phone.of(sip.InviteReceived)) == (etcd == "away")
    world.run(2.1)
    assert phone.of(sip.InviteReceived)


def test_a_phone_whose_ringing_was_given_up_before_it_was_written_down_never_rings(world):
    phone = world.register("1001")
    _, call = world.call_in()
    world.lose_etcd("silent")
    node = world.nodes[call.owner.name]
    world.dial(node, call, "a1", "1001")
    world.say(node, link.EndLeg(call=call.call, leg="a1", epoch=str(call.epoch), cause="16", reason="over"))
    world.run(2.5)
    assert "a1" not in call.legs and not phone.of(sip.InviteReceived)


def test_an_answer_that_was_not_written_down_comes_again(world):
    """The process dies between a phone's 200 and the write: no ACK went out, so the phone repeats it."""
    phone = world.register("1001")
    _, call = world.call_in()
    world.dial(world.nodes[call.owner.name], call, "a1", "1001")
    invite = phone.of(sip.InviteReceived)[-1]
    phone.sip.ring(invite.leg, world.now)
    world.settle()
    with world.unwritten():
        phone.sip.answer(invite.leg, phone.sdp(), world.now)
        world.settle()
    assert call.legs["a1"].state == "up" and not phone.of(sip.LegAcked)
    world.boot()
    world.run(1.2)
    assert world.edge.calls.by_id[call.call].legs["a1"].state == "up"
    assert phone.of(sip.LegAcked) and not phone.of(sip.LegEnded)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_node_hears_of_an_answer_that_was_written_down_and_not_passed_on(world, monkeypatch, elsewhere):
    """The process dies when a phone's answer is in etcd, and before the node that dialled it has its own."""
    phone = world.register("1001")
    _, call = world.call_in()
    node = world.nodes[call.owner.name]
    dialled = world.dial(node, call, "a1", "1001")
    invite = phone.of(sip.InviteReceived)[-1]
    phone.sip.ring(invite.leg, world.now)
    world.settle()
    perform = world.perform
    with monkeypatch.context() as dying:
        dying.setattr(world, "perform", lambda e: world.txn(e) if isinstance(e, StoreTxn) else perform(e))
        phone.sip.answer(invite.leg, phone.sdp(), world.now)
        world.settle()
    assert not [e for e in node.of(sip.LegAnswered) if e.leg == dialled]
    world.rehome() if elsewhere else world.boot()
    world.run(1.2)
    (answer,) = [e for e in node.of(sip.LegAnswered) if e.leg == dialled]
    assert f"c=IN IP4 {world.home.relay}" in answer.sdp
    half = world.edge.calls.by_id[call.call].halves["a1"]
    assert half.state == "up" and not half.elsewhere and half.port in world.tag_ports.values()
    assert not phone.of(sip.LegEnded) and world.edge.calls.by_id[call.call].epoch == call.epoch


def hold_unwritten(world, phone, leg, for_s: float = 0.0):
    """The phone holds, and for so long no write gets to etcd."""
    with world.unwritten():
        phone.sip.reinvite(leg, phone.sdp(direction="sendonly"), world.now)
        world.settle()
        if for_s:
            world.run(for_s)


def test_a_hold_is_confirmed_when_it_is_written_down(world):
    """The process dies between a hold and the write: its successor is asked again. It would not know who
    holds, and take the unhold, which says what it thinks is so, for a refresh."""
    _, call, _, phone, leg = talking(world)
    hold_unwritten(world, phone, leg)
    assert not phone.of(sip.ReinviteAnswered)
    world.boot()
    world.run(1.2)
    assert phone.of(sip.ReinviteAnswered) and world.edge.calls.by_id[call.call].legs["a1"].held
    assert world.edge.calls.by_id[call.call].media.state == "through"


@pytest.mark.parametrize("etcd", ["away", "silent"])
def test_a_hold_is_confirmed_whatever_etcd_does(world, etcd):
    _, call, _, phone, leg = talking(world)
    world.lose_etcd(etcd)
    phone.sip.reinvite(leg, phone.sdp(direction="sendonly"), world.now)
    world.settle()
    world.run(0.3)
    assert phone.of(sip.ReinviteAnswered) and call.legs["a1"].held


def test_whoever_takes_his_call_back_hears_again_though_his_hold_was_never_written_down(world):
    """Confirmed when etcd had not answered in time, and the process dies then: for its successor the unhold
    changes nothing, but rtpengine sends nothing to whoever holds."""
    _, call, _, phone, leg = talking(world)
    hold_unwritten(world, phone, leg, 0.3)
    assert phone.of(sip.ReinviteAnswered)
    world.boot()
    world.run(1.2)
    assert not world.edge.calls.by_id[call.call].legs["a1"].held

    def told() -> list[str]:
        bodies = [c.body for c in world.ng if c.command == "create answer" and c.body["from-tag"] == "a1"]
        return [str(body["sdp"]) for body in bodies]

    before = len(told())
    phone.sip.reinvite(leg, phone.sdp(), world.now)
    world.settle()
    assert len(phone.of(sip.ReinviteAnswered)) == 2
    assert ["sendonly" in sdp for sdp in told()[before:]] == [False]


def test_where_far_ends_are_is_said_again_by_a_restarted_edge(world):
    """rtpengine is slow, a phone that held takes its call back, and the process dies before that is told."""
    _, call, node, phone, leg = talking(world)
    phone.sip.reinvite(leg, phone.sdp(direction="sendonly"), world.now)
    world.settle()
    world.ng_refuse = lambda command: command.command == "create answer"
    phone.sip.reinvite(leg, phone.sdp(), world.now)
    world.settle()
    assert len(phone.of(sip.ReinviteAnswered)) == 2
    world.ng_refuse = lambda command: False
    before = len(world.ng)
    world.boot()
    world.run(0.5)
    bodies = [c.body for c in world.ng[before:] if c.command == "create answer"]
    told = {str(body["from-tag"]): str(body["sdp"]) for body in bodies}
    assert told.keys() == {"c", "a1", f"c@{node.name}.1", f"a1@{node.name}.1"}
    assert all("a=sendrecv" in sdp for sdp in told.values())


@pytest.mark.parametrize("who", ["caller", "agent"])
def test_an_end_that_was_not_written_down_is_told_again(world, who):
    """The process dies between a BYE and the write: the BYE had no answer, so it is repeated."""
    caller, call, _, phone, leg = talking(world)
    party, key = (world.carrier, caller) if who == "caller" else (phone, leg)
    with world.unwritten():
        party.sip.hangup(key, world.now)
        world.settle()
    assert not [e for e in party.of(sip.LegEnded) if e.leg == key]
    world.boot()
    world.run(1.2)
    assert [e.cause for e in party.of(sip.LegEnded) if e.leg == key] == ["local"]
    again = world.edge.calls.by_id.get(call.call)
    assert again is None if who == "caller" else "a1" not in again.legs


@pytest.mark.parametrize("over", [True, False])
def test_a_bye_that_is_lost_together_with_its_edge_is_said_by_the_next(world, over):
    """Whoever hears nothing of it would else be alone until his session timer."""
    caller, call, node, phone, leg = talking(world)
    phone.silent = True
    if over:
        world.carrier.sip.hangup(caller, world.now)
    else:  # handed over: the caller stays
        epoch = str(call.epoch)
        world.say(node, link.EndLeg(call=call.call, leg="a1", epoch=epoch, cause="16", reason="transferred"))
    world.settle()
    phone.silent = False
    world.boot()
    world.run(1.2)
    assert [event.leg for event in phone.of(sip.LegEnded)] == [leg]
    assert (call.call in world.edge.calls.by_id) != over
    assert bool([key for key in world.store if call.call in key]) != over


def test_what_is_left_of_an_ended_call_goes_with_the_next_write(world, monkeypatch):
    caller, call, _, _, _ = talking(world)
    _, other = world.call_in()
    writes, perform = [], world.perform

    def count(effect):
        writes.append(effect) if isinstance(effect, StoreTxn) else None
        perform(effect)

    monkeypatch.setattr(world, "perform", count)
    world.carrier.sip.hangup(caller, world.now)
    world.settle()
    kept = world.keys.dialogs("pair1", call.call)
    assert len(writes) == 1 and kept in world.store
    world.edge.calls.mute(other, other.legs["c"], True)
    world.settle()
    world.run(1.0)
    assert len(writes) == 2 and kept not in world.store


@pytest.mark.parametrize("unknown", [0, 1, 2])
def test_nothing_is_left_of_an_ended_call_whichever_write_is_in_doubt(world, monkeypatch, unknown):
    caller, call, _, _, _ = talking(world)
    txn, done = world.txn, []

    def in_doubt(effect):
        done.append(txn(effect))
        return Unknown("no answer") if len(done) == unknown else done[-1]

    monkeypatch.setattr(world, "txn", in_doubt)
    world.carrier.sip.hangup(caller, world.now)
    world.settle()
    world.run(2.0)
    assert not [key for key in world.store if call.call in key]


@pytest.mark.parametrize("etcd", ["away", "silent", "there"])
def test_an_end_is_confirmed_whatever_etcd_does(world, etcd):
    caller, _, _, _, _ = talking(world)
    world.lose_etcd(etcd)
    world.carrier.sip.hangup(caller, world.now)
    world.settle()
    assert bool(world.carrier.of(sip.LegEnded)) == (etcd != "silent")
    world.run(3.5)
    assert world.carrier.of(sip.LegEnded)


def test_dialling_an_unregistered_device(world):
    _, call = world.call_in()
    node = world.nodes[call.owner.name]
    world.dial(node, call, "a1", "1001")
    assert node.of(sip.LegFailed)[-1].status == 480
    assert call.primary


def test_no_common_codec(world):
    invite(world, world.carrier, sdp=build_audio_sdp(1, 1, "10.0.1.50", 4000, codecs=((9, "G722/8000"),)))
    assert world.carrier.of(sip.LegFailed)[-1].status == 488


def test_late_offer(world):
    key, call = world.call_in(sdp=False)
    answered = world.carrier.of(sip.LegAnswered)[-1]
    assert answered.sdp
    world.carrier.sip.ack(key, world.carrier.sdp(), world.now)
    world.settle()
    taught = [c for c in world.ng if c.command == "create answer" and c.body["from-tag"] == "c"]
    assert taught and call.legs["c"].state == "up"


def test_rtpengine_away_refuses_new_calls_and_keeps_the_others(world):
    _, call, _, _, _ = talking(world)
    world.post(MediaReach(reachable=False, why="refused"))
    _, second = world.call_in()
    assert second is None and world.carrier.of(sip.LegFailed)[-1].status == 503
    assert call.call in world.edge.calls.by_id
    world.post(MediaReach(reachable=True))
    assert world.call_in()[1]


def test_rtpengine_that_gives_no_port(world):
    world.ng_refuse = lambda command: command.command == "create"
    _, call = world.call_in()
    assert call is None and world.carrier.of(sip.LegFailed)[-1].status == 503


def test_a_full_edge(world):
    config = dataclasses.replace(world.edge.context.config, calls_max=1)
    world.edge.context.config = config
    world.call_in()
    _, second = world.call_in()
    assert second is None and world.carrier.of(sip.LegFailed)[-1].status == 503


def test_no_node_at_all(world):
    for name in world.nodes:
        kill(world, name)
    world.call_in()
    assert not world.carrier.of(sip.LegFailed)  # a node may be back in a moment
    world.run(2.5)
    assert world.carrier.of(sip.LegFailed)[-1].status == 503 and not world.edge.calls.by_id


def test_a_caller_waits_for_a_node_that_is_silent_for_a_moment(world):
    for node in world.edge.watch.nodes.values():
        node.state = SILENT
    _, call = world.call_in()
    assert call.owner is None and not world.carrier.of(sip.LegFailed)
    world.run(0.5)
    assert world.carrier.of(sip.LegAnswered)


def test_he_waits_as_long_the_next_time(world):
    """He was given to a node after a while, and that one died before anybody answered."""
    for node in world.nodes.values():
        node.auto_answer_new = False
    for node in world.edge.watch.nodes.values():
        node.state = SILENT
    _, call = world.call_in()
    world.run(0.5)
    assert call.owner
    world.run(5.0)
    for name in world.nodes:
        kill(world, name)
    world.run(0.5)
    assert not world.carrier.of(sip.LegFailed)
    world.run(2.5)
    assert world.carrier.of(sip.LegFailed)[-1].status == 503 and not world.edge.calls.by_id


def test_he_waits_over_a_restart(world):
    for node in world.edge.watch.nodes.values():
        node.state = SILENT
    _, call = world.call_in()
    assert call.owner is None
    world.boot()
    world.run(2.0)
    assert world.carrier.of(sip.LegAnswered) and list(world.edge.calls.by_id) == [call.call]
    assert world.edge.calls.by_id[call.call].served == ["ast1#ast1-1"]


def test_nobody_waits_for_nodes_that_are_wanted_empty(world):
    for node in world.edge.watch.nodes.values():
        node.cordoned = True
    world.call_in()
    assert world.carrier.of(sip.LegFailed)[-1].status == 503


def test_a_node_that_is_not_ready_yet_is_passed_over(world):
    for node in world.nodes.values():
        node.auto_answer = False
    key, call = world.call_in()
    first = world.nodes[call.owner.name]
    first.sip.reject(next(iter(first.tokens)), 503, world.now)
    world.settle()
    assert call.owner.name != first.name
    second = world.nodes[call.owner.name]
    second.sip.answer(next(iter(second.tokens)), second.sdp(), world.now)
    world.settle()
    assert world.carrier.of(sip.LegAnswered)


def test_a_busy_answer_of_a_node_reaches_the_caller(world):
    for node in world.nodes.values():
        node.auto_answer = False
    _, call = world.call_in()
    node = world.nodes[call.owner.name]
    node.sip.reject(next(iter(node.tokens)), 486, world.now)
    world.settle()
    assert world.carrier.of(sip.LegFailed)[-1].status == 486
    assert world.edge.calls.by_id == {}


def test_caller_cancels_before_the_answer(world):
    for node in world.nodes.values():
        node.auto_answer = False
    key, call = world.call_in()
    node = world.nodes[call.owner.name]
    world.carrier.sip.hangup(key, world.now)
    world.settle()
    world.run(0.3)
    assert world.edge.calls.by_id == {} and node.of(sip.LegCancelled)


def test_a_node_lost_before_the_answer_is_replaced_without_a_word(world):
    for node in world.nodes.values():
        node.auto_answer = False
    _, call = world.call_in()
    first = call.owner.name
    for node in world.nodes.values():
        node.auto_answer = True
    kill(world, first)
    assert call.owner.name != first and world.carrier.of(sip.LegAnswered)
    assert not world.carrier.of(sip.LegFailed)


def test_etcd_unreachable_at_start_is_said_and_waited_for():
    w = EdgeWorld(etcd=False)
    assert not w.edge.serving
    w.carrier.sip.invite(
        "early", flow=Flow("l", "udp", *EDGE_PUBLIC), target="sip:6000@edge", from_="<sip:1@c>",
        to="<sip:6000@edge>", sdp=w.carrier.sdp(), now=w.now,
    )  # fmt: skip
    w.settle()
    assert w.edge.calls.by_id == {}
    w.etcd = True
    w.post(StoreReach(reachable=True))
    w.snapshots()
    w.run(0.5)
    assert w.edge.serving
    w.run(1.0)
    assert w.carrier.of(sip.LegAnswered), "what arrived early is served, not lost"


@pytest.mark.parametrize("late", FAMILIES)
def test_an_edge_that_has_begun_again_serves_when_it_has_read_everything(world, late):
    """Of a busy etcd one prefix comes later than the others: without it the edge would have half its calls,
    or take phones for unregistered. What people say meanwhile waits."""
    caller, call, _, phone, _ = talking(world)
    world.snapshots = lambda: None
    world.boot()
    EdgeWorld.snapshots(world, [family for family in FAMILIES if family != late])
    world.carrier.sip.hangup(caller, world.now)
    world.settle()
    world.run(1.0)
    assert not world.edge.serving and not phone.of(sip.LegEnded)
    EdgeWorld.snapshots(world, [late])
    world.settle()
    assert world.edge.serving and phone.of(sip.LegEnded)
    world.run(0.5)
    assert not [key for key in world.store if call.call in key]


@pytest.mark.parametrize("data", [b"", b"\r\n\r\n", b"INVITE", b"\x00" * 40, b"SIP/2.0 200 OK\r\n\r\n",
                                  b"INVITE sip:x SIP/2.0\r\nVia: x\r\n\r\n"])  # fmt: skip
def test_garbage_is_dropped(world, data):
    world.post(SipBytes(data=data, flow=Flow("public-udp", "udp", "10.0.1.99", 5060)))
    world.post(SipBytes(data=data, flow=Flow("node-trunk", "udp", "10.0.2.31", 5060)))
    assert world.edge.calls.by_id == {}


def test_one_refusal_loses_a_node_and_half_of_them_silent_does_not(world):
    _, call, node, _, _ = talking(world)
    for other in world.nodes.values():
        other.silent = True
        world.post(LinkDown(peer=other.name, reason="silent", clean=False))
    world.run(3.0)
    assert call.owner.name == node.name, "all silent at once: we suspect ourselves"
    for other in world.nodes.values():
        other.silent = False
        world.post_link(other, f"{other.name}-1")
    world.run(1.0)
    world.post(ProbeRefused(node=node.name))
    world.run(0.5)
    assert call.owner.name != node.name


def test_a_stalled_edge_does_not_judge(world):
    _, call, node, _, _ = talking(world)
    node.silent = True
    world.say(node, link.NodeState(ready=False, asterisk="silent"))
    world.now += 2.0  # this process stood still
    world.run(0.25)
    assert call.owner.name == node.name
    world.run(0.6)
    assert call.owner.name != node.name


def test_every_story_line_names_its_subject(world):
    talking(world)
    assert all(isinstance(note, Note) and note.subject for note in world.notes)


def test_an_attempt_given_up_before_its_invite_came_rings_nobody(world):
    phone = world.register("1001")
    _, call = world.call_in()
    node = world.nodes[call.owner.name]
    world.say(node, link.EndLeg(call=call.call, leg="a1", epoch=str(call.epoch), cause="16"))
    world.dial(node, call, "a1", "1001")
    assert node.of(sip.LegFailed)[-1].status == 487
    assert not phone.of(sip.InviteReceived) and "1001" not in world.edge.calls.device_of


def test_an_end_in_the_record_counts_while_the_link_is_down(world):
    _, call, node, phone, _ = talking(world)
    world.post(LinkDown(peer=node.name, reason="closed"))
    ending = {"a1": "16", "c": "16"}
    record = RecordValue(call=call.call, epoch=str(call.epoch), node=node.name, ending=ending)
    key = world.keys.record(call.call)
    world.post(StoreChanged(key=key, value=KeyValue(key, encode(record), 999), revision=999))
    world.settle()
    world.run(0.5)
    assert phone.of(sip.LegEnded) and world.edge.calls.by_id == {}


def test_nothing_is_said_to_an_asterisk_that_is_gone(world):
    _, call, node, _, _ = talking(world)
    kill(world, node.name)
    world.run(0.5)
    sent = len(world.sip_log)
    world.run(35.0, step=0.1)
    assert [entry for entry in world.sip_log[sent:] if entry[2] == node.host] == []


def test_rtpengine_away_for_seconds_learns_everything_afterwards(world):
    phone = world.register("1001")
    _, call = world.call_in()
    node = world.nodes[call.owner.name]
    world.dial(node, call, "a1", "1001")
    ringing = phone.of(sip.InviteReceived)[-1]
    refused: list[str] = []
    world.ng_refuse = lambda command: bool(refused.append(command.command) or True)
    phone.sip.answer(ringing.leg, phone.sdp(), world.now)
    world.settle()
    world.run(4.0)
    assert "create answer" in refused
    world.ng_refuse = lambda command: False
    learned = len(world.ng)
    world.run(3.0)
    taught = {c.body["from-tag"] for c in world.ng[learned:] if c.command == "create answer"}
    assert "a1" in taught
    n = node.name
    assert {("a1", f"a1@{n}.1"), (f"a1@{n}.1", "a1")} <= world.hears[call.call]


def test_a_delete_nobody_answered_is_said_again(world):
    key, call = world.call_in()
    world.ng_refuse = lambda command: command.command == "delete"
    world.carrier.sip.hangup(key, world.now)
    world.settle()
    world.run(1.0)
    assert call.call in world.hears
    world.ng_refuse = lambda command: False
    world.run(5.0)
    assert call.call not in world.hears


def test_an_unsubscribe_that_failed_is_said_again(world):
    fails = iter([True])

    phone = world.register("1001")
    _, call = world.call_in()
    node = world.nodes[call.owner.name]
    world.dial(node, call, "a1", "1001")
    ringing = phone.of(sip.InviteReceived)[-1]
    phone.sip.answer(ringing.leg, phone.sdp(), world.now)
    world.settle()
    world.ng_refuse = lambda command: command.command in ("unsubscribe",) and next(fails, False)
    world.say(node, link.WantMedia(call=call.call, epoch=str(call.epoch), state="hitless", request=1))
    world.settle()
    world.run(1.0)
    listeners = [who for who, _ in world.hears[call.call] if who in ("c", "a1")]
    assert sorted(listeners) == ["a1", "c"], "nobody hears two speakers"


def test_an_offer_with_video_is_answered_line_by_line(world):
    party = world.carrier
    offer = party.sdp().replace("m=audio", "m=video 5000 RTP/AVP 31\r\nm=audio")
    invite(world, party, sdp=offer)
    answer = party.of(sip.LegAnswered)[-1].sdp
    lines = [line for line in answer.split("\r\n") if line.startswith("m=")]
    assert lines[0] == "m=video 0 RTP/AVP 31" and lines[1].startswith("m=audio 3")
    assert len(lines) == 2


def test_the_address_is_asked_for_until_it_is_ours():
    w = EdgeWorld(etcd=False)
    unknown = iter([True, True])
    real = w.txn
    lost = lambda effect: effect.lane == "vip" and next(unknown, False)  # noqa: E731
    w.txn = lambda effect: Unknown("no reply") if lost(effect) else real(effect)
    w.etcd = True
    w.post(StoreReach(reachable=True))
    w.snapshots()
    assert not w.edge.serving
    w.run(2.0)
    assert w.edge.serving


def apps_down(world: EdgeWorld) -> None:
    for name in world.nodes:
        world.post(LinkDown(peer=name, reason="closed", clean=True))
    world.settle()


def test_without_any_app_the_dialplan_serves_the_caller(world):
    """Nobody takes the call from it, and its BYE is the end of the call."""
    apps_down(world)
    key, call = world.call_in()
    node = world.nodes[call.owner.name]
    assert world.carrier.of(sip.LegAnswered) and call.by_dialplan
    assert not any("x-ari-ha-fallback" in data.decode().lower() for _, _, _, data in world.sip_log)
    for other in world.nodes.values():
        world.post_link(other, f"{other.name}-1")
    world.settle()
    assert call.call not in [ident for frame in node.got(link.EdgeCalls) for ident in frame.calls]
    world.run(25.0)
    assert call.by_dialplan and call.move is None and not call.lost
    node.sip.hangup(next(iter(node.tokens)), world.now)
    world.settle()
    world.run(1.0)
    assert world.carrier.of(sip.LegEnded) and world.edge.calls.by_id == {}


def test_an_app_that_comes_back_in_time_takes_the_caller(world):
    apps_down(world)
    _, call = world.call_in()
    node = world.nodes[call.owner.name]
    world.post_link(node, f"{node.name}-1")
    world.say(node, link.WantMedia(call=call.call, epoch=str(call.epoch), state="through", request=1))
    assert not call.by_dialplan


def test_a_caller_with_the_dialplan_is_taken_up_when_its_asterisk_dies(world):
    apps_down(world)
    _, call = world.call_in()
    first = call.owner.name
    for other in world.nodes.values():
        if other.name != first:
            world.post_link(other, f"{other.name}-1")
    world.settle()
    kill(world, first)
    world.run(1.0)
    assert call.owner.name != first and not call.by_dialplan and not call.lost


@pytest.mark.parametrize("says", ["app", "asterisk"])
def test_a_caller_with_the_dialplan_is_kept_where_his_asterisk_stops(world, says):
    """Its BYE comes before the word that it is gone, or that its app has taken him."""
    apps_down(world)
    _, call = world.call_in()
    node = world.nodes[call.owner.name]
    for other in world.nodes.values():
        if other is not node:
            world.post_link(other, f"{other.name}-1")
    world.settle()
    first = call.owner.name
    node.sip.hangup(next(iter(node.tokens)), world.now)
    world.settle()
    if says == "app":
        world.post_link(node, f"{node.name}-1")
        world.say(node, link.Bridged(call=call.call, epoch=str(call.epoch), legs=["c"]))
    else:
        kill(world, first)
    world.run(1.0)
    assert not world.carrier.of(sip.LegEnded) and not call.by_dialplan and call.epoch.n > 1


def test_that_is_remembered_by_the_next_edge_process(world):
    apps_down(world)
    _, call = world.call_in()
    world.run(0.5)
    world.boot()
    world.run(1.0)
    assert world.edge.calls.by_id[call.call].by_dialplan


def test_a_survivor_that_is_slow_while_it_takes_calls_up_is_not_taken_for_dead(world):
    _, call, node, _, _ = talking(world)
    kill(world, node.name)
    survivor = world.nodes[call.owner.name]
    assert survivor is not node
    survivor.silent = True
    world.post(LinkDown(peer=survivor.name, reason="silent", clean=False))
    timings = world.edge.context.timings
    world.run(2 * timings.silence_s)
    assert call.owner.name == survivor.name and call.move is None and not call.lost
    world.run(timings.silence_s * timings.taking_up_patience)
    assert call.lost or call.move or call.owner.name != survivor.name, "dead after all"


def test_only_what_changed_is_written_and_all_of_it_after_a_write_in_doubt(world, monkeypatch):
    _, call, *_ = talking(world)
    world.run(1.0)
    puts: list[set[str]] = []
    real, fate = world.txn, []

    def watched(effect):
        puts.append({put.key for put in effect.puts})
        return fate.pop() if fate else real(effect)

    monkeypatch.setattr(world, "txn", watched)
    dialogs, media = world.keys.dialogs("pair1", call.call), world.keys.media(call.call)

    def changed() -> None:
        call.want_request += 1
        call.tombstones[f"x{call.want_request}"] = "phone"
        world.edge.calls.touch(call)
        world.run(0.1)

    changed()
    assert puts.pop() == {dialogs}
    fate.append(Unknown("no answer"))
    changed()
    world.run(2.0)
    assert puts[0] == {dialogs} and puts[1] == {dialogs, media, world.keys.owner(call.call)}


@pytest.mark.parametrize("answers", [True, False])
def test_what_the_relay_holds_and_nobody_knows_is_deleted(world, answers):
    call = talking(world)[1]
    world.hears["left-over"] = set()
    world.ng_refuse = lambda command: command.command == "list" and not answers
    world.boot()
    world.run(6.0)
    assert ("left-over" in world.hears) is not answers
    world.ng_refuse = lambda command: False
    world.run(6.0)
    assert "left-over" not in world.hears and call.call in world.hears


@pytest.mark.parametrize("decided", [True, False])
def test_a_transport_that_is_off_since_the_restart_keeps_nobody_from_being_served(decided: bool) -> None:
    """The old life had TLS, and may have written an answer it never said."""
    world = EdgeWorld()
    for node in world.nodes.values():
        node.auto_answer = False
    world.call_in()
    for key, item in list(world.store.items()):
        if "/dialogs/" in key:
            text = item.value.replace(b"public-udp", b"public-tls")
            text = text.replace(b'"state":"trying"', b'"state":"up"', 1) if decided else text
            assert text != item.value
            world.store[key] = dataclasses.replace(item, value=text)
    world.boot()
    assert world.edge.serving
    world.run(1.0)
    (call,) = world.edge.calls.by_id.values()
    world.edge.calls.end_leg(call, call.legs["c"], "edge", "16")
    world.run(40.0, step=0.5)
    assert not world.edge.calls.by_id and not list(world.edge.context.sip.legs())
