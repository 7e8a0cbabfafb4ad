"""SIP under everything: codecs round-trip, bytes never raise, and calls keep their invariants through loss,
reordering, doubling, crashes and whatever the owner does."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit" / "sip"))
from sipworld import Party, World, sdp

from ari_ha.sip.auth import Credentials, authorization, parse_digest
from ari_ha.sip.events import (
    InDialogRequest,
    InviteReceived,
    LegCancelled,
    LegEnded,
    LegFailed,
    LocalError,
    ReinviteReceived,
    RequestReceived,
)
from ari_ha.sip.message import Request, Response, SipParseError, parse_message
from ari_ha.sip.sdp import SdpError, SessionDescription
from ari_ha.sip.stream import StreamFramer
from ari_ha.sip.timers import SessionTimer, negotiate_uac, negotiate_uas, uac_headers, uas_headers
from ari_ha.sip.uri import NameAddr, SipUri

FINAL = (LegFailed, LegCancelled, LegEnded)
token = st.text("abcXYZ019-.!%*_+`'~", min_size=1, max_size=12)
value = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=60).map(str.strip)
names = token.filter(lambda name: name.lower() not in ("l", "content-length"))
headers = st.lists(st.tuples(names, value), max_size=12)


@given(token, token, headers, st.binary(max_size=200))
def test_messages_round_trip(method: str, user: str, fields: list[tuple[str, str]], body: bytes) -> None:
    for message in (Request(method, f"sip:{user}", fields, body), Response(200, user, fields, body)):
        again = parse_message(message.serialise())
        assert type(again) is type(message) and again.body == body
        assert [(n, " ".join(v.split())) for n, v in again.headers if n != "Content-Length"] == [
            (n, " ".join(v.split())) for n, v in fields
        ]


@given(headers, st.text(max_size=40), st.text(max_size=40))
def test_nothing_is_smuggled(fields: list[tuple[str, str]], name: str, content: str) -> None:
    message = Request("INFO", "sip:x", [*fields, (name, content)])
    head, _, rest = message.serialise().partition(b"\r\n\r\n")
    assert rest == b"" and head.count(b"\r\n") <= len(fields) + 2
    assert head.count(b"\n") == head.count(b"\r") == head.count(b"\r\n")


@given(st.binary(max_size=400))
def test_parsers_refuse_or_read(data: bytes) -> None:
    try:
        parse_message(data)
    except SipParseError:
        pass
    text = data.decode("latin-1")
    for parse, error in (
        (SipUri.parse, SipParseError),
        (NameAddr.parse, SipParseError),
        (SessionDescription.parse, SdpError),
    ):
        try:
            again = parse(text)
        except error:
            continue
        str(again)
    parse_digest("Digest " + text)
    authorization(Credentials("a", "b"), ["Digest " + text], "INVITE", "sip:x", "c")


@given(st.text("v=0o-sc tm:a.1/IPN4\r\nxudiRTVrpmap", max_size=300))
def test_sdp_that_is_read_is_read_again(text: str) -> None:
    try:
        found = SessionDescription.parse("v=0\r\no=- 1 1 IN IP4 x\r\n" + text)
    except SdpError:
        return
    again = SessionDescription.parse(found.serialise())
    assert again == found
    assert (again.direction, again.is_hold(), again.connection) == (
        found.direction,
        found.is_hold(),
        found.connection,
    )
    for media in found.media:
        assert media.rtpmap is not None and media.fmtp is not None and (media.ptime or 0) >= 0
        assert media.telephone_event != -1


@given(st.lists(st.binary(max_size=60), max_size=5), st.lists(st.integers(1, 50), min_size=1, max_size=30))
def test_streams_are_cut_the_same_wherever_they_break(bodies: list[bytes], sizes: list[int]) -> None:
    whole = [Request("INFO", "sip:x", [("X", "y")], body).serialise() for body in bodies]
    framer, data, found, turn = StreamFramer(), b"".join(whole), [], 0
    while data:
        size = sizes[turn % len(sizes)]
        found += framer.feed(data[:size])
        data, turn = data[size:], turn + 1
    assert found == whole and framer.broken is None


@given(st.binary(max_size=300), st.integers(1, 64))
def test_a_framer_takes_anything(data: bytes, size: int) -> None:
    framer = StreamFramer()
    for start in range(0, len(data), size):
        framer.feed(data[start : start + size])
    framer.take_pings()


@given(st.integers(90, 90_000), st.sampled_from([None, "local", "remote"]), st.booleans())
def test_both_sides_agree_on_the_refresher(interval: int, wanted: str | None, supported: bool) -> None:
    request = Request("INVITE", "sip:x", uac_headers(interval, wanted, None))
    if supported:
        request.add("Supported", "timer")
    callee = negotiate_uas(request, 90)
    assert callee is not None
    caller = negotiate_uac(Response(200, "", uas_headers(callee, request)), SessionTimer(interval, "local"))
    assert caller is not None and {caller.refresher, callee.refresher} == {"local", "remote"}
    assert caller.interval_s == callee.interval_s == interval
    assert (
        min(callee.action_at(0), caller.action_at(0))
        < max(callee.action_at(0), caller.action_at(0))
        <= interval
    )


# engines under fire


def live(seed: int) -> tuple[World, Party, Party, list[bytes]]:
    """Two engines with legs in several states, and every message that led there."""
    world = World()
    a, b = world.party("10.0.0.1"), world.party("10.0.0.2")
    record: list[bytes] = []

    def step() -> None:
        for _ in range(30):
            world.collect()
            record.extend(data for _, _, data in world.wire)
            while world.wire:
                world.deliver()

    for number in range(4):
        a.call(b, f"c{number}", headers=[("Session-Expires", "1800")])
        step()
        leg = b.take(InviteReceived).leg
        if number > 0:
            b.agent.ring(leg, world.now)
        if number > 1:
            b.agent.answer(leg, sdp(b.name), world.now)
        step()
        if number > 2:
            a.agent.reinvite(f"c{number}", sdp(a.name, 2), world.now)
            a.agent.request_in_dialog(f"c{number}", "REFER", world.now)
            a.agent.info(f"c{number}", "text/plain", b"x", world.now)
            step()
    return world, a, b, record


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A message somewhat like it: bytes changed, lines lost, doubled, swapped, values replaced."""
    lines = data.split(b"\r\n")
    for _ in range(rng.randint(1, 4)):
        spot = rng.randrange(len(lines))
        choice = rng.randrange(8)
        if choice == 0:
            lines[spot] = b""
        elif choice == 1:
            lines.insert(spot, lines[rng.randrange(len(lines))])
        elif choice == 2 and lines[spot]:
            at = rng.randrange(len(lines[spot]))
            lines[spot] = lines[spot][:at] + bytes([rng.randrange(256)]) + lines[spot][at + 1 :]
        elif choice == 3:
            name = lines[spot].partition(b":")[0]
            odd = [
                b"",
                b"*",
                b"0",
                b"-1",
                b'"',
                b"<",
                b"<>",
                b"\xff\xfe",
                b";;;",
                b",",
                b"99999999999",
                b"\xc2\xb2",
            ]
            lines[spot] = name + b": " + rng.choice(odd)
        elif choice == 4:
            other = rng.randrange(len(lines))
            lines[spot], lines[other] = lines[other], lines[spot]
        elif choice == 5:
            methods = [
                b"INVITE",
                b"BYE",
                b"ACK",
                b"CANCEL",
                b"UPDATE",
                b"PRACK",
                b"INFO",
                b"REFER",
                b"OPTIONS",
            ]
            old, new = rng.choice(methods), rng.choice(methods)
            lines = [line.replace(old, new) for line in lines]
        elif choice == 6:
            lines = [line.replace(b"z9hG4bK", b"z9hG4bK%d" % rng.randrange(9)) for line in lines]
        elif b"CSeq" in lines[spot]:
            lines[spot] = b"CSeq: %d %s" % (
                rng.randrange(12),
                rng.choice([b"INVITE", b"BYE", b"INFO", b"UPDATE"]),
            )
        else:
            lines = [line.replace(b"SIP/2.0 180", b"SIP/2.0 %d" % rng.randrange(90, 700)) for line in lines]
    return b"\r\n".join(lines)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.binary(max_size=80), max_size=4))
def test_receive_never_raises(seed: int, noise: list[bytes]) -> None:
    rng = random.Random(seed)
    world, a, b, record = live(seed)
    for party in (a, b):
        other = b if party is a else a
        for data in noise:
            party.agent.receive(data, party.flow(other), world.now)
            party.agent.receive_stream(data, party.flow(other), world.now)
        for _ in range(60):
            data = mutate(rng.choice(record), rng)
            party.agent.receive(data, party.flow(other), world.now)
            if rng.random() < 0.1:
                world.now += rng.choice([0.1, 1.0, 40.0, 1000.0])
                party.agent.handle_timer(world.now)
            for event in party.agent.events():
                react(world, party, event, rng)
            for sent, _ in party.agent.output():
                assert sent == b"\r\n" or parse_message(sent) is not None, "what we send can be read"
    for party in (a, b):
        for leg in party.agent.legs():
            record_of = json.loads(json.dumps(party.agent.export_leg(leg)))
            party.start().import_leg(leg, record_of, world.now)
            party.agent.hangup(leg, world.now)
        world.now += 5000
        for _ in range(4):
            party.agent.handle_timer(world.now)
            world.now += 200
        assert not list(party.agent.legs()) and party.agent.deadline() is None
        assert not party.agent._stack.clients and not party.agent._stack.servers
        assert not party.agent._stack.waiting and not party.agent._core.strays


def react(world: World, party: Party, event: Any, rng: random.Random) -> None:
    """An owner that does something, now and then."""
    agent, now = party.agent, world.now
    try:
        if isinstance(event, InviteReceived):
            rng.choice(
                [
                    lambda: agent.answer(event.leg, sdp(party.name), now),
                    lambda: agent.reject(event.leg, 486, now),
                    lambda: agent.ring(event.leg, now),
                    lambda: None,
                ]
            )()
        elif isinstance(event, ReinviteReceived):
            rng.choice(
                [
                    lambda: agent.accept_reinvite(event.leg, sdp(party.name, rng.randrange(9)), now),
                    lambda: agent.reject_reinvite(event.leg, 488, now),
                    lambda: None,
                ]
            )()
        elif isinstance(event, InDialogRequest | RequestReceived):
            agent.respond(event.txn, rng.choice([100, 200, 404]), now)
    except LocalError:
        pass


COMMANDS = (
    *("call", "late", "ring", "answer", "reject", "hangup", "reinvite", "accept", "refuse", "info", "refer"),
    *("ack", "forget", "restart", "error", "react", "swap", "lose", "double"),
    *("deliver", "deliver", "deliver", "time", "time"),
)
step = st.tuples(st.sampled_from(COMMANDS), st.integers(0, 1), st.integers(0, 5))


class Run:
    """One random history of two parties."""

    def __init__(self) -> None:
        self.world = World()
        self.sides = [self.world.party("10.0.0.1"), self.world.party("10.0.0.2")]
        self.rng = random.Random(7)
        self.known: list[set[str]] = [set(), set()]
        self.finals: list[list[str]] = [[], []]
        self.forgotten: list[set[str]] = [set(), set()]
        self.calls = 0

    def listen(self) -> None:
        """Read events: one final each, nothing after it."""
        self.world.collect()
        for side, party in enumerate(self.sides):
            for event in party.seen:
                leg = getattr(event, "leg", None)
                if leg is None:
                    continue
                assert leg not in self.finals[side], f"{event} after the end"
                if isinstance(event, InviteReceived):
                    self.known[side].add(leg)
                if isinstance(event, FINAL):
                    self.finals[side].append(leg)
                    assert party.agent.leg_state(leg) == "ended"
                elif self.rng.random() < 0.3:
                    react(self.world, party, event, self.rng)
            party.seen.clear()
        for side, party in enumerate(self.sides):
            for leg in party.agent.legs():
                json.dumps(party.agent.export_leg(leg))
                assert party.agent.leg_state(leg) in ("calling", "early", "answered", "confirmed", "ending")
                assert leg not in self.finals[side]

    def restart(self, side: int) -> None:
        party = self.sides[side]
        self.listen()
        self.listen()
        party.seen += party.agent.events()
        records = {leg: json.loads(json.dumps(party.agent.export_leg(leg))) for leg in party.agent.legs()}
        party.agent = party.start()
        for leg, record in records.items():
            party.agent.import_leg(leg, record, self.world.now)

    def wire(self, what: str, number: int) -> None:
        self.world.collect()
        wire = self.world.wire
        if not wire:
            return
        if what == "lose":
            wire.pop(number % len(wire))
        elif what == "double":
            wire.append(wire[number % len(wire)])
        else:
            self.world.deliver(number % len(wire) if what == "swap" else 0)

    def do(self, what: str, side: int, number: int) -> None:
        party, other, now = self.sides[side], self.sides[1 - side], self.world.now
        if what in ("call", "late"):
            self.calls += 1
            leg = f"call{self.calls}"
            options = {"sdp": None} if what == "late" else {"session_expires": 100}
            party.call(other, leg, **options)
            self.known[side].add(leg)
        elif what in ("lose", "double", "swap", "deliver"):
            self.wire(what, number)
        elif what == "time":
            self.world.advance([0.1, 0.6, 3.0, 33.0, 70.0, 400.0][number], deliver=number % 2 == 0)
        elif what == "restart":
            self.restart(side)
        elif what == "error":
            party.agent.transport_error(party.flow(other), "refused", now)
        elif what != "react":
            legs = sorted(party.agent.legs())
            if legs:
                self.command(what, party, side, legs[number % len(legs)], number)

    def command(self, what: str, party: Party, side: int, leg: str, number: int) -> None:
        agent, now, name = party.agent, self.world.now, party.name
        commands = {
            "ring": lambda: agent.ring(leg, now),
            "answer": lambda: agent.answer(leg, sdp(name), now),
            "reject": lambda: agent.reject(leg, 486, now),
            "hangup": lambda: agent.hangup(leg, now),
            "reinvite": lambda: agent.reinvite(leg, sdp(name, number) if number else None, now),
            "accept": lambda: agent.accept_reinvite(leg, sdp(name, number), now),
            "refuse": lambda: agent.reject_reinvite(leg, 488, now),
            "info": lambda: agent.info(leg, "text/plain", b"x", now),
            "refer": lambda: agent.request_in_dialog(leg, "REFER", now),
            "ack": lambda: agent.ack(leg, sdp(name, number), now),
            "forget": lambda: agent.forget(leg),
        }
        if what == "forget":
            self.listen()
            if agent.leg_state(leg) != "ended":
                self.forgotten[side].add(leg)
        try:
            commands[what]()
        except LocalError:
            pass

    def settle(self) -> None:
        """Faults stop; everything is hung up; everything must end."""
        for _ in range(3):
            for side, party in enumerate(self.sides):
                for leg in party.agent.legs():
                    party.agent.hangup(leg, self.world.now)
                self.listen()
                del side
            self.world.advance(300)
            self.listen()
        for side, party in enumerate(self.sides):
            assert not list(party.agent.legs())
            assert sorted(self.finals[side]) == sorted(self.known[side] - self.forgotten[side])
            assert party.agent.deadline() is None
            assert not party.agent._stack.clients and not party.agent._stack.servers


@settings(max_examples=400, deadline=None)
@given(st.lists(step, max_size=60))
def test_every_leg_ends_exactly_once(steps: list[tuple[str, int, int]]) -> None:
    run = Run()
    for what, side, number in steps:
        run.do(what, side, number)
        run.listen()
    run.settle()


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(50, 200))
def test_long_histories(seed: int, length: int) -> None:
    rng = random.Random(seed)
    run = Run()
    run.rng = rng
    run.do("call", 0, 0)
    for _ in range(length):
        run.do(rng.choice(COMMANDS), rng.randrange(2), rng.randrange(6))
        run.listen()
    run.settle()
