"""Two user agents of the far end talking to each other in memory: every order and what both ends then say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import pytest

from ari_ha.farend.call import Call, CodecRefused, RemoteSide, describe
from ari_ha.farend.registration import Registration
from ari_ha.farend.srtp import Keys
from ari_ha.farend.useragent import Manner, NotPossible, UserAgent
from ari_ha.sip import Credentials, Flow, Listener
from ari_ha.sip.auth import DigestAuthority, ha1
from ari_ha.sip.message import Request, Response, parse_message

CARRIER, PHONE = ("198.51.100.1", 5060), ("198.51.100.2", 6001)


@dataclass
class FakeStream:
    """Remembers what it was told."""

    id: int
    host: str
    port: int
    aimed: tuple[str, int, int, int, int] | None = None
    talking: bool = False
    sent_digits: str = ""
    keys: Keys | None = None
    closed: bool = False

    def aim(
        self, host: str, port: int, pt: int, event_pt: int, event_pt_in: int, keys: Keys | None = None
    ) -> None:
        self.aimed = (host, port, pt, event_pt, event_pt_in)
        self.keys = keys

    def talk(self, on: bool) -> None:
        self.talking = on

    def digits(self, digits: str) -> None:
        self.sent_digits += digits

    def close(self) -> None:
        self.closed = True


@dataclass
class FakeMedia:
    """Opens fake streams."""

    numbers: count[int] = field(default_factory=lambda: count(1))
    streams: list[FakeStream] = field(default_factory=list)

    def open(self, host: str, hertz: int, sequence: int | None = None) -> FakeStream:
        number = next(self.numbers)
        stream = FakeStream(number, host, 40_000 + 2 * number)
        self.streams.append(stream)
        return stream


class Wire:
    """Two agents, their clock, and a network that loses nothing unless told to."""

    def __init__(self, manner: Manner | None = None) -> None:
        self.now = 100.0
        ids = count(1)
        new_id = lambda: f"id{next(ids)}"  # noqa: E731
        self.media = FakeMedia()
        self.carrier = self._agent("carrier", CARRIER, PHONE, new_id, Manner())
        self.phone = self._agent("1001", PHONE, CARRIER, new_id, manner or Manner())
        self.log: list[tuple[str, str]] = []

    def _agent(
        self,
        name: str,
        at: tuple[str, int],
        proxy: tuple[str, int],
        new_id: Callable[[], str],
        manner: Manner,
    ) -> UserAgent:
        return UserAgent(
            name,
            Listener("udp", "udp", *at),
            Flow("udp", "udp", *proxy),
            self.media,
            new_id=new_id,
            utc=lambda: self.now,
            domain="lab",
            hertz=400,
            manner=manner,
        )

    def settle(self) -> None:
        """Delivers until nobody says anything more."""
        for _ in range(100):
            moved = False
            for sender, receiver, source in (
                (self.carrier, self.phone, CARRIER),
                (self.phone, self.carrier, PHONE),
            ):
                for data, _ in sender.output():
                    moved = True
                    self.log.append((sender.name, describe(data)[1]))
                    receiver.receive(data, Flow("udp", "udp", *source), self.now)
            if not moved:
                return
        raise AssertionError("they do not stop talking")

    def wait(self, seconds: float) -> None:
        """Lets time pass, firing what falls due."""
        end = self.now + seconds
        while True:
            due = min((a.deadline() or end for a in (self.carrier, self.phone)), default=end)
            self.now = max(self.now, min(due, end))
            for agent in (self.carrier, self.phone):
                if (agent.deadline() or end + 1) <= self.now:
                    agent.fire(self.now)
            self.settle()
            if due >= end:
                return

    def call(self, **more: int) -> tuple[Call, Call]:
        """A call set up; both ends' view of it."""
        out = self.carrier.dial("6000", "15550001", self.now, **more)
        self.settle()
        self.wait(1)
        return out, next(reversed(self.phone.calls.values()))


def test_a_call_is_answered_and_both_talk() -> None:
    wire = Wire()
    out, into = wire.call()
    assert (out.state, into.state) == ("up", "up")
    assert out.stream.aimed == (PHONE[0], into.stream.port, 8, 101, 101)
    assert into.stream.aimed == (CARRIER[0], out.stream.port, 8, 101, 101)
    assert out.stream.talking and into.stream.talking
    assert into.answered_at - into.started == pytest.approx(0.5, abs=0.01)
    assert [m.what for m in out.messages if m.way == "received"] == ["100 INVITE", "180 INVITE", "200 INVITE"]


def test_the_event_payload_number_is_the_offerers() -> None:
    out, into = Wire().call(event_pt=96)
    assert out.stream.aimed[3:] == (96, 96)
    assert into.stream.aimed[3:] == (96, 96)


def test_srtp_is_answered_in_kind_and_keys_stay_over_hold() -> None:
    wire = Wire()
    out, into = wire.call(srtp=True)
    first = out.stream.keys
    assert first is not None and into.stream.keys is not None
    assert (first.ours, first.theirs) == (into.stream.keys.theirs, into.stream.keys.ours)
    for on in (True, False):
        wire.phone.hold(into, on, wire.now)
        wire.settle()
    assert out.stream.keys == first
    assert out.reinvites == 2


def test_srtp_without_a_key_for_us_is_refused() -> None:
    text = "v=0\r\no=x 1 1 IN IP4 h\r\ns=-\r\nc=IN IP4 h\r\nt=0 0\r\nm=audio 4000 RTP/SAVP 8\r\n"
    with pytest.raises(CodecRefused):
        RemoteSide.of(text)
    with pytest.raises(CodecRefused):
        RemoteSide.of(text + "a=crypto:1 AEAD_AES_256_GCM inline:AAAA\r\n")


@pytest.mark.parametrize("ender", ["carrier", "phone"])
def test_either_side_ends_it(ender: str) -> None:
    wire = Wire()
    out, into = wire.call()
    agent, call = (wire.carrier, out) if ender == "carrier" else (wire.phone, into)
    agent.hangup(call, wire.now)
    wire.settle()
    mine, other = (out, into) if ender == "carrier" else (into, out)
    assert (mine.ended_by, other.ended_by) == ("us", "them")
    assert out.stream.closed and into.stream.closed
    with pytest.raises(NotPossible):
        agent.hangup(call, wire.now)


def test_hold_silences_both_and_unhold_brings_them_back() -> None:
    wire = Wire()
    out, into = wire.call()
    wire.phone.hold(into, True, wire.now)
    wire.settle()
    assert out.reinvites == 1
    assert not into.stream.talking
    assert not out.stream.talking, "the other side asked not to be spoken to"
    wire.phone.hold(into, False, wire.now)
    wire.settle()
    assert out.stream.talking and into.stream.talking
    assert out.reinvites == 2


def test_hold_twice_is_refused() -> None:
    wire = Wire()
    _, into = wire.call()
    wire.phone.hold(into, True, wire.now)
    wire.settle()
    with pytest.raises(NotPossible):
        wire.phone.hold(into, True, wire.now)


@pytest.mark.parametrize(("mode", "status"), [("busy", 486), ("reject", 603), ("unavailable", 480)])
def test_a_phone_may_refuse(mode: str, status: int) -> None:
    out, into = Wire(Manner(mode)).call()
    assert (out.state, out.ended_by, out.status) == ("ended", "refused", status)
    assert into.state == "ended"


def test_a_second_call_finds_the_phone_busy() -> None:
    wire = Wire()
    wire.call()
    out, _ = wire.call()
    assert (out.ended_by, out.status) == ("refused", 486)


def test_the_caller_gives_up_while_it_rings() -> None:
    wire = Wire(Manner("ring"))
    out, into = wire.call()
    assert (out.state, into.state) == ("ringing", "ringing")
    wire.carrier.hangup(out, wire.now)
    wire.settle()
    assert (into.state, into.ended_by) == ("ended", "canceled")
    assert ("carrier", "CANCEL") in wire.log


def test_a_ringing_phone_is_answered_by_order() -> None:
    wire = Wire(Manner("ring"))
    out, into = wire.call()
    wire.phone.answer(into, wire.now)
    wire.settle()
    assert out.state == into.state == "up"


def test_a_phone_without_power_says_nothing() -> None:
    wire = Wire()
    wire.phone.power = False
    out, _ = wire.carrier.dial("6000", "1", wire.now), None
    wire.wait(40)
    assert (out.state, out.status) == ("ended", 408)
    assert not wire.phone.calls


def test_info_arrives() -> None:
    wire = Wire()
    out, into = wire.call()
    wire.carrier.info(out, "application/dtmf-relay", "Signal=5\r\nDuration=100\r\n", wire.now)
    wire.settle()
    assert into.infos[0][1:] == ("application/dtmf-relay", "Signal=5\r\nDuration=100\r\n")


def test_digits_need_a_call_that_is_up() -> None:
    wire = Wire(Manner("ring"))
    out, _ = wire.call()
    with pytest.raises(NotPossible):
        wire.carrier.digits(out, "1")


def test_headers_of_the_inside_are_noticed() -> None:
    wire = Wire()
    wire.carrier.dial("6000", "1", wire.now)
    ((data, _),) = wire.carrier.output()
    leaking = data.replace(b"\r\nMax-Forwards", b"\r\nX-ARI-HA-Token: secret\r\nMax-Forwards")
    assert leaking != data
    wire.phone.receive(leaking, Flow("udp", "udp", *CARRIER), wire.now)
    assert next(iter(wire.phone.calls.values())).leaked_headers == ["X-ARI-HA-Token"]


def test_a_description_without_our_codecs_is_refused() -> None:
    wire = Wire()
    wire.carrier.dial("6000", "1", wire.now)
    ((data, _),) = wire.carrier.output()
    wire.phone.receive(
        data.replace(b"RTP/AVP 8 101", b"RTP/AVP 9 101"), Flow("udp", "udp", *CARRIER), wire.now
    )
    assert next(iter(wire.phone.calls.values())).status == 488


def test_remote_description_is_read() -> None:
    text = (
        "v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nc=IN IP4 192.0.2.9\r\nt=0 0\r\n"
        "m=audio 3000 RTP/AVP 9 0 96\r\na=rtpmap:96 telephone-event/8000\r\na=sendonly\r\n"
    )
    side = RemoteSide.of(text)
    assert (side.host, side.port, side.codec, side.event_pt, side.direction) == (
        "192.0.2.9",
        3000,
        0,
        96,
        "sendonly",
    )
    assert not side.wants_audio


class Registrar:
    """The smallest registrar that asks for a digest."""

    def __init__(self, password: str) -> None:
        self.authority = DigestAuthority("lab", b"secret")
        self.secrets = {"1001": {name: ha1(name, "1001", "lab", password) for name in ("MD5", "SHA-256")}}
        self.seen: list[Request] = []

    def reply(self, data: bytes, now: float) -> bytes:
        request = parse_message(data)
        assert isinstance(request, Request)
        self.seen.append(request)
        verdict = self.authority.verify(request, self.secrets, now)
        copied = [(n, request.get(n)) for n in ("Via", "From", "To", "Call-ID", "CSeq")]
        if verdict.ok:
            return Response(200, "OK", copied).serialise()
        status = 403 if verdict.reason == "wrong" else 401
        challenges = [
            ("WWW-Authenticate", value) for value in self.authority.challenge(now, f"salt{len(self.seen)}")
        ]
        return Response(status, "No", [*copied, *challenges]).serialise()


def registering(password: str, wire: Wire) -> tuple[Registrar, Registration]:
    ids = count(1)
    registration = Registration(
        "1001", Credentials("1001", password), lambda: f"r{next(ids)}", registrar="sip:lab", expires_s=100
    )
    wire.phone.registration = registration
    return Registrar("right"), registration


def exchange(wire: Wire, registrar: Registrar) -> None:
    for _ in range(6):
        wire.phone.fire(wire.now)
        for data, _ in wire.phone.output():
            wire.phone.receive(registrar.reply(data, wire.now), Flow("udp", "udp", *CARRIER), wire.now)


def test_registration_with_digest_and_its_refresh() -> None:
    wire = Wire()
    registrar, registration = registering("right", wire)
    exchange(wire, registrar)
    assert registration.state == "in"
    assert [r.has("Authorization") for r in registrar.seen] == [False, True]
    assert registration.due == pytest.approx(wire.now + 70)
    wire.now += 70
    exchange(wire, registrar)
    assert registration.successes == 2
    registration.want(False, wire.now)
    exchange(wire, registrar)
    assert registrar.seen[-1].get("Expires") == "0"
    assert (registration.state, registration.due) == ("out", None)


def test_registration_with_a_wrong_password_is_refused_and_asked_again_later() -> None:
    wire = Wire()
    registrar, registration = registering("wrong", wire)
    exchange(wire, registrar)
    assert (registration.state, registration.status) == ("refused", 403)
    assert registration.due == pytest.approx(wire.now + 3)
    assert len(registrar.seen) == 2


def test_an_answer_to_an_older_order_does_not_stand_for_the_newer_one() -> None:
    """The registration is taken away and asked for again, with another password, before
    the first answer is there."""
    wire = Wire()
    registrar, registration = registering("right", wire)
    exchange(wire, registrar)
    registration.want(False, wire.now)
    wire.phone.fire(wire.now)
    ((challenged, _),) = wire.phone.output()
    wire.phone.receive(registrar.reply(challenged, wire.now), Flow("udp", "udp", *CARRIER), wire.now)
    ((asked, _),) = wire.phone.output()
    registration.credentials = Credentials("1001", "wrong")
    registration.want(True, wire.now)
    wire.phone.receive(registrar.reply(asked, wire.now), Flow("udp", "udp", *CARRIER), wire.now)
    exchange(wire, registrar)
    assert (registration.state, registration.status) == ("refused", 403)
