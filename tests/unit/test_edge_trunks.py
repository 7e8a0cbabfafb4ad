"""Carriers: registration, keep-alive, which one a number leaves by, limits, identity."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from ari_ha.core.ports.store import KeyValue, StoreChanged, StoreTxn
from ari_ha.machines.trunks import rewritten
from ari_ha.sip import events as sip
from ari_ha.sip.auth import Credentials, DigestAuthority, ha1
from ari_ha.wire.keyspace import UserValue, encode
from ari_ha.wire.sip_values import SecretTrunkValue, TrunkValue
from tests.support.edge_world import EDGE_PUBLIC, EdgeWorld, Party

A, B = "10.0.1.71", "10.0.1.72"


def put(world: EdgeWorld, key: str, value: Any) -> None:
    world.revision += 1
    item = KeyValue(key, encode(value), world.revision)
    world.store[key] = item
    world.post(StoreChanged(key=key, value=item, revision=world.revision))
    world.settle()


def carrier(world: EdgeWorld, name: str, host: str, **fields: Any) -> Party:
    party = Party(host, 5060, world.new_id)
    world.phones[name] = party
    values: dict[str, Any] = {"prefixes": ["+"], "options_interval_s": 0, **fields}
    put(world, world.keys.trunk(name), TrunkValue(trunk=name, address=f"{host}:5060", **values))
    return party


def served(world: EdgeWorld) -> tuple[Any, Any]:
    """A call that some node serves, and the node."""
    _, call = world.call_in()
    world.run(0.3)
    return call, world.nodes[call.owner.name]


def dial(world: EdgeWorld, number: str = "+4930123", leg: str = "t1") -> tuple[Any, Any, str]:
    call, node = served(world)
    return call, node, world.dial(node, call, leg, "", target=f"number:{number}")


def invites(party: Party) -> list[Any]:
    return party.of(sip.InviteReceived)


def header(request: Any, name: str) -> str:
    return str(request.get(name))


def test_a_number_leaves_by_the_trunk_of_its_longest_prefix() -> None:
    world = EdgeWorld()
    germany = carrier(world, "germany", A, prefixes=["+49"], priority=500, outbound_rules={"+49": "0"})
    rest = carrier(world, "rest", B, prefixes=["+", ""], priority=1)
    call, node, key = dial(world, "+4930123")
    assert not invites(rest)
    (invite,) = invites(germany)
    assert invite.request.uri == f"sip:030123@{A}:5060"
    germany.sip.answer(invite.leg, germany.sdp(), world.now)
    world.settle()
    assert call.legs["t1"].state == "up" and call.legs["t1"].trunk == "germany"
    assert node.of(sip.LegAnswered)[-1].leg == key
    assert (call.halves["t1"].tag, "t1") in world.hears[call.call]
    # the carrier hangs up: the node hears of it
    germany.sip.hangup(invite.leg, world.now)
    world.settle()
    assert "t1" in call.tombstones


@pytest.mark.parametrize("status", [500, 503, 408])
def test_a_carrier_that_fails_is_passed_over(status: int) -> None:
    world = EdgeWorld()
    first = carrier(world, "first", A, priority=1)
    second = carrier(world, "second", B, priority=2)
    call, _, _ = dial(world)
    first.sip.reject(invites(first)[0].leg, status, world.now, headers=(("Retry-After", "60"),))
    world.settle()
    (invite,) = invites(second)
    second.sip.answer(invite.leg, second.sdp(), world.now)
    world.settle()
    assert call.legs["t1"].state == "up" and call.legs["t1"].tried == ["first", "second"]
    # and for its Retry-After it is tried last
    assert world.edge.trunks.candidates("+1") == ["second", "first"]
    world.run(61, step=0.5)
    assert world.edge.trunks.candidates("+1") == ["first", "second"]


@pytest.mark.parametrize("status", [486, 404, 603, 302])
def test_a_word_about_the_number_is_final(status: int) -> None:
    world = EdgeWorld()
    first = carrier(world, "first", A, priority=1)
    second = carrier(world, "second", B, priority=2)
    _, node, key = dial(world)
    first.sip.reject(invites(first)[0].leg, status, world.now, headers=(("Contact", "<sip:1@x>"),))
    world.settle()
    assert not invites(second)
    failed = node.of(sip.LegFailed)[-1]
    assert (failed.leg, failed.status) == (key, 480 if status == 302 else status)


def test_a_silent_carrier_is_given_up_and_its_late_answer_ends_nothing() -> None:
    world = EdgeWorld()
    first = carrier(world, "first", A, priority=1)
    second = carrier(world, "second", B, priority=2)
    first.silent = True
    call, _, _ = dial(world)
    world.run(3.0)
    assert not invites(second)
    world.run(1.5)
    (invite,) = invites(second)
    second.sip.answer(invite.leg, second.sdp(), world.now)
    world.settle()
    first.silent = False
    world.run(2.0)  # the INVITE was sent again meanwhile, and is cancelled now
    assert call.legs["t1"].state == "up"
    assert not first.of(sip.InviteReceived) or first.of(sip.LegCancelled)


def test_after_progress_no_other_trunk_is_tried() -> None:
    world = EdgeWorld()
    first = carrier(world, "first", A, priority=1)
    second = carrier(world, "second", B, priority=2)
    _, node, _ = dial(world)
    first.sip.ring(invites(first)[0].leg, world.now)
    world.settle()
    first.sip.reject(invites(first)[0].leg, 503, world.now)
    world.settle()
    assert not invites(second)
    assert node.of(sip.LegFailed)[-1].status == 503


def test_early_media_reaches_the_node() -> None:
    world = EdgeWorld()
    first = carrier(world, "first", A)
    call, node, key = dial(world)
    first.sip.ring(invites(first)[0].leg, world.now, 183, sdp=first.sdp(port=45_000))
    world.settle()
    early = [e for e in node.of(sip.LegRinging) if e.leg == key]
    assert early[-1].status == 183 and early[-1].sdp
    assert (call.halves["t1"].tag, "t1") in world.hears[call.call]
    assert call.legs["t1"].state == "ringing"


def test_a_redirect_is_followed_where_the_trunk_says_so() -> None:
    world = EdgeWorld()
    first = carrier(world, "first", A, redirects="follow")
    dial(world)
    first.sip.reject(invites(first)[0].leg, 302, world.now, headers=(("Contact", "<sip:777@10.9.9.9>"),))
    world.settle()
    assert [i.request.uri for i in invites(first)] == [f"sip:+4930123@{A}:5060", "sip:777@10.9.9.9"]


def test_weights_share_the_load() -> None:
    world = EdgeWorld()
    carrier(world, "heavy", A, weight=3)
    carrier(world, "light", B, weight=1)
    world.edge.context.rand = random.Random(4).random
    first = [world.edge.trunks.candidates("+1")[0] for _ in range(400)]
    assert 260 <= first.count("heavy") <= 340


def test_full_and_fast_trunks_refuse_both_ways() -> None:
    world = EdgeWorld()
    small = carrier(world, "small", A, max_calls=1, hosts=[A], dids=[])
    dial(world)
    assert len(invites(small)) == 1
    assert world.edge.trunks.candidates("+1") == []
    key = world.new_id()
    small.sip.invite(key, flow=world.carrier_flow(), target="sip:6000@edge", from_="<sip:1@x>",
                     to="<sip:6000@x>", sdp=small.sdp(), now=world.now)  # fmt: skip
    world.settle()
    assert small.of(sip.LegFailed)[-1].status == 503
    carrier(world, "slow", B, calls_per_second=2)
    assert [world.edge.trunks.refusal("slow") for _ in range(3)] == ["", "", "trunk_too_fast"]
    world.run(0.6)
    assert world.edge.trunks.refusal("slow") == ""


def test_options_find_a_dead_carrier_and_its_return() -> None:
    world = EdgeWorld()
    first = carrier(world, "first", A, priority=1, options_interval_s=10)
    carrier(world, "second", B, priority=2)
    answer_requests(world, first)
    assert world.edge.trunks.state("first").reach == "up"
    first.silent = True
    world.run(25, step=0.1)
    assert world.edge.trunks.state("first").reach == "down"
    assert world.edge.trunks.candidates("+1") == ["second"]
    first.silent = False
    for _ in range(12):
        world.run(1, step=0.1)
        answer_requests(world, first)
    assert world.edge.trunks.candidates("+1") == ["first", "second"]


def answer_requests(world: EdgeWorld, party: Party, status: int = 200) -> list[Any]:
    """The carrier answers what it was asked."""
    asked = [event for event in party.heard if isinstance(event, sip.RequestReceived)]
    for event in asked:
        party.heard.remove(event)
        party.sip.respond(event.txn, status, world.now)
    world.settle()
    return asked


def test_registration_with_digest_refresh_and_service_route() -> None:
    world = EdgeWorld()
    registrar = carrier(world, "carrier2", A, user="acme", register=True, domain="carrier.example",
                        register_expires_s=100)  # fmt: skip
    secret = SecretTrunkValue(trunk="carrier2", ha1_sha256=ha1("SHA-256", "acme", "carrier.example", "pw"))
    put(world, world.keys.secret_trunk("carrier2"), secret)
    authority = DigestAuthority("carrier.example", b"s")
    known = {"acme": {"SHA-256": secret.ha1_sha256}}
    seen: list[Any] = []

    def serve() -> None:
        for event in [e for e in registrar.heard if isinstance(e, sip.RequestReceived)]:
            registrar.heard.remove(event)
            seen.append(event.request)
            if authority.verify(event.request, known, world.now).ok:
                headers = [("Contact", f"{header(event.request, 'Contact')};expires=60"),
                           ("Service-Route", f"<sip:{A};lr>")]  # fmt: skip
                registrar.sip.respond(event.txn, 200, world.now, headers=headers)
            else:
                values = authority.challenge(world.now, world.new_id())
                headers = [("WWW-Authenticate", value) for value in values]
                registrar.sip.respond(event.txn, 401, world.now, headers=headers)
        world.settle()

    for _ in range(4):
        serve()
    state = world.edge.trunks.state("carrier2")
    assert state.registration == "in"
    assert seen[-1].uri == "sip:carrier.example"
    assert header(seen[-1], "Contact") == f"<sip:acme@{EDGE_PUBLIC[0]}:{EDGE_PUBLIC[1]}>"
    assert len({header(request, "Call-ID") for request in seen}) == 1
    numbers = [request.cseq[0] for request in seen]
    assert numbers == sorted(set(numbers))
    before = len(seen)
    for _ in range(50):
        world.run(1, step=0.25)
        serve()
    assert len(seen) > before, "renewed before 60 s"
    _, _, _ = dial(world)
    assert header(invites(registrar)[0].request, "Route") == f"<sip:{A};lr>"


def test_a_refused_registration_is_tried_again_more_and_more_slowly() -> None:
    world = EdgeWorld()
    registrar = carrier(world, "carrier2", A, user="acme", register=True)
    times: list[float] = []
    for _ in range(300):
        world.run(1, step=0.5)
        times += [world.now for _ in answer_requests(world, registrar, 403)]
    waits = [b - a for a, b in itertools.pairwise(times)]
    assert world.edge.trunks.state("carrier2").registration == "refused"
    assert len(times) >= 4 and waits == sorted(waits) and waits[-1] > 4 * waits[0]
    assert world.edge.trunks.candidates("+1") == [], "not registered, not used"


def test_a_carrier_that_challenges_calls_gets_credentials() -> None:
    world = EdgeWorld()
    first = carrier(world, "first", A, user="acme")
    put(world, world.keys.secret_trunk("first"), SecretTrunkValue(trunk="first", password="pw"))
    dial(world)
    challenge = 'Digest realm="carrier", nonce="abc", algorithm=MD5, qop="auth"'
    first.sip.reject(invites(first)[0].leg, 407, world.now, headers=(("Proxy-Authenticate", challenge),))
    world.settle()
    again = invites(first)[1].request
    assert 'username="acme"' in header(again, "Proxy-Authorization")


def test_a_carrier_may_be_known_by_its_digest() -> None:
    world = EdgeWorld()
    world.add_user("carrier9")
    put(world, world.keys.user("carrier9"), UserValue(user="carrier9", roles=["trunk"]))
    world.snapshots()
    put(world, world.keys.trunk("dyn"), TrunkValue(trunk="dyn", inbound_user="carrier9",
                                                    inbound_rules={"49": "+49"}))  # fmt: skip
    party = Party("10.0.1.99", 5060, world.new_id)
    world.phones["carrier9"] = party
    party.sip.invite("k", flow=world.carrier_flow(), target="sip:6000@edge", from_="<sip:4930@x>",
                     to="<sip:6000@x>", sdp=party.sdp(), credentials=Credentials("carrier9", "pw"),
                     now=world.now)  # fmt: skip
    world.settle()
    (call,) = world.edge.calls.by_id.values()
    assert (call.kind, call.trunk, call.caller, call.did) == ("trunk", "dyn", "+4930", "6000")


IDENTITY = (
    ("P-Asserted-Identity", "<sip:+4911@trusted>"),
    ("Privacy", "id"),
    ("Diversion", "<sip:+4999@x>;reason=unconditional"),
    ("History-Info", "<sip:+4999@x>;index=1, <sip:6000@x>;index=1.1;rc=1"),
)


@pytest.mark.parametrize("trusted", [True, False])
def test_identity_is_believed_from_the_trusted_and_hidden_from_the_rest(trusted: bool) -> None:
    world = EdgeWorld()
    source = carrier(world, "in", A, hosts=[A], prefixes=[], trusted=trusted, diversion=trusted,
                     history=trusted)  # fmt: skip
    friend = carrier(world, "friend", B, prefixes=["+1"], trusted=True, diversion=True, history=True)
    stranger = carrier(world, "stranger", "10.0.1.73", prefixes=["+2"])
    curious = carrier(world, "curious", "10.0.1.74", prefixes=["+3"], history=True)
    source.sip.invite("k", flow=world.carrier_flow(), target="sip:6000@edge",
                      from_="<sip:anonymous@anonymous.invalid>", to="<sip:6000@x>", sdp=source.sdp(),
                      headers=IDENTITY, now=world.now)  # fmt: skip
    world.settle()
    world.run(0.3)
    (call,) = world.edge.calls.by_id.values()
    assert call.caller == ("+4911" if trusted else "anonymous")
    node = world.nodes[call.owner.name]
    world.dial(node, call, "t1", "", target="number:+1555")
    world.dial(node, call, "t2", "", target="number:+2555")
    world.dial(node, call, "t3", "", target="number:+3555")
    known, unknown = invites(friend)[0].request, invites(stranger)[0].request
    assert not header(invites(curious)[0].request, "History-Info"), "he asked for privacy"
    if trusted:
        assert header(known, "P-Asserted-Identity") == f"<sip:+4911@{B}>"
        assert header(known, "Privacy") == "id"
        assert header(known, "Diversion") == IDENTITY[2][1]
        assert header(known, "History-Info") == IDENTITY[3][1]
    for request in [unknown] if trusted else [known, unknown]:
        assert "anonymous.invalid" in header(request, "From")
        assert not header(request, "P-Asserted-Identity") and not header(request, "Diversion")
        assert not header(request, "History-Info")
    world.add_user("1001")
    world.snapshots()
    phone = world.register("1001")
    world.dial(node, call, "a1", "1001")
    assert "anonymous@" in header(invites(phone)[0].request, "From")


@pytest.mark.parametrize("private", [True, False])
def test_a_phone_may_hide_itself_and_be_nobody_else(private: bool) -> None:
    """Its name is its digest's; what it asserts of itself is not passed on, its wish for privacy is."""
    world = EdgeWorld().with_users("1001")
    known = carrier(
        world, "known", A, prefixes=["+1"], trusted=True, diversion=True, history=True, caller="+4940"
    )
    other = carrier(world, "other", B, prefixes=["+2"], outbound_rules={"+2": "002"})
    wish = IDENTITY[1:2] if private else ()
    call = phone_calls(world, "1001", (*IDENTITY[:1], *IDENTITY[2:], *wish))
    node = world.nodes[call.owner.name]
    world.dial(node, call, "t1", "", target="number:+1555")
    world.dial(node, call, "t2", "", target="number:+2555")
    to_known, to_other = invites(known)[0].request, invites(other)[0].request
    assert header(to_known, "P-Asserted-Identity") == f"<sip:+4940@{A}>"
    assert header(to_known, "Privacy") == ("id" if private else "")
    hidden = "anonymous.invalid" in header(to_known, "From")
    assert hidden is private is ("anonymous.invalid" in header(to_other, "From"))
    if not private:
        assert "<sip:1001@" in header(to_other, "From") and to_other.uri.startswith("sip:002555@")
    for request in (to_known, to_other):
        assert not header(request, "Diversion") and not header(request, "History-Info")
    assert not header(to_other, "P-Asserted-Identity")


def phone_calls(world: EdgeWorld, user: str, headers: Any) -> Any:
    """A registered phone calls 6000 with these headers, in its second INVITE; the edge's call."""
    phone = world.register(user)
    arguments: dict[str, Any] = {
        "flow": world.carrier_flow(), "target": f"sip:6000@{EDGE_PUBLIC[0]}", "from_": f"<sip:{user}@test>",
        "to": "<sip:6000@test>", "sdp": phone.sdp(), "headers": headers, "now": world.now,
    }  # fmt: skip
    phone.sip.invite(world.new_id(), credentials=Credentials(user, "pw"), **arguments)
    world.settle()
    world.run(0.3)
    (call,) = world.edge.calls.by_id.values()
    return call


@pytest.mark.parametrize("status", [301, 302, 380])
def test_a_phone_sends_nobody_elsewhere(status: int) -> None:
    """Its 3xx is a refusal: whom a queue's call goes to next is not a phone's to say."""
    world = EdgeWorld().with_users("1001")
    phone = world.register("1001")
    call, node = served(world)
    key = world.dial(node, call, "a1", "1001")
    (invite,) = invites(phone)
    phone.sip.reject(invite.leg, status, world.now, headers=(("Contact", "<sip:+1900@premium.example>"),))
    world.settle()
    failed = node.of(sip.LegFailed)[-1]
    assert (failed.leg, failed.status) == (key, 480) and call.primary.state == "up"


def test_rules_rewrite_once_by_the_longest_prefix() -> None:
    rules = {"": "x", "0": "+49", "00": "+"}
    assert [rewritten(n, rules) for n in ("0301", "00441", "5", "")] == ["+49301", "+441", "x5", "x"]
    assert rewritten("123", {}) == "123"


def test_a_restarted_edge_goes_on_dialling() -> None:
    world = EdgeWorld()
    first = carrier(world, "first", A)
    call, _, _ = dial(world)
    first.sip.ring(invites(first)[0].leg, world.now)
    world.settle()
    world.boot()
    world.run(0.5)
    again = world.edge.calls.by_id[call.call]
    assert again.legs["t1"].trunk == "first" and again.legs["t1"].progress
    first.sip.answer(invites(first)[0].leg, first.sdp(), world.now)
    world.settle()
    assert again.legs["t1"].state == "up"
    assert len(invites(first)) == 1


def test_a_trunk_this_edge_cannot_speak_to():
    """TLS at the trunk, none at the edge: not chosen, and said; its own calls come in."""
    world = EdgeWorld()
    value = TrunkValue(trunk="tls", address=A, transport="tls", prefixes=["+"], options_interval_s=5)
    put(world, world.keys.trunk("tls"), value)
    world.run(6.0)
    (row,) = [row for row in world.edge.trunks.view() if row["trunk"] == "tls"]
    assert row["reach"] == "down" and row["why"] == "this edge does not speak tls"
    assert world.edge.trunks.candidates("+4930") == [] and world.edge.trunks.of_host(A) == "tls"


def test_a_number_is_dialled_when_that_is_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    world = EdgeWorld()
    party = carrier(world, "germany", A)
    call, node = served(world)
    perform, waiting = world.perform, []

    def slow(effect: Any) -> None:
        waiting.append(effect) if isinstance(effect, StoreTxn) else perform(effect)

    monkeypatch.setattr(world, "perform", slow)
    world.dial(node, call, "t1", "", target="number:+4930123")
    world.run(1.0)
    assert call.legs["t1"].state == "ringing" and not invites(party)
    while waiting:
        perform(waiting.pop(0))
    world.settle()
    assert len(invites(party)) == 1
    monkeypatch.undo()
    world.boot()
    world.run(1.2)
    assert len(invites(party)) == 1, "the successor's INVITE is the same one"
    party.sip.answer(invites(party)[0].leg, party.sdp(), world.now)
    world.settle()
    assert world.edge.calls.by_id[call.call].legs["t1"].state == "up"
