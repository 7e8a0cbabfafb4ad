"""A phone with SRTP keys in SDP against the edge's machine and a real rtpengine: what it hears when rtpengine
or the host has died after the numbers of what it is sent had gone round."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from containers import why_not
from live_edge import HOST, IMAGE, LiveEdge, Relay

from ari_ha.sip import events
from tests.support.edge_world import Party
from tests.support.srtp_voice import SrtpVoice

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]
USER = "1001"
LIMIT_S = 20.0
BEFORE_ROUND = 60
"""Packets until the caller's numbers begin anew."""


@pytest.fixture(scope="module")
def relay() -> Iterator[Relay]:
    if why := why_not(IMAGE):
        pytest.skip(why)
    one = Relay()
    yield one
    one.remove()


async def until(what: str, check: Any) -> None:
    end = time.monotonic() + LIMIT_S
    while not check():
        assert time.monotonic() < end, what
        await asyncio.sleep(0.02)


class Phone(Party):
    """A phone of the edge's world, with a voice."""

    def __init__(self, around: Party, new_id: Any, voice: SrtpVoice) -> None:
        super().__init__(around.host, around.port, new_id)
        self.sip, self.voice = around.sip, voice

    def sdp(self, port: int = 0, direction: str = "sendrecv") -> str:
        return self.voice.sdp(direction)

    def changed(self, offer: str | None) -> str:
        self.voice.take(offer or "")
        return self.voice.sdp()


class Talk:
    """A caller and the phone's agent."""

    def __init__(self, edge: LiveEdge, phone: Phone, key: str, ident: str) -> None:
        self.edge, self.phone, self.key, self.ident = edge, phone, key, ident

    @property
    def leg(self) -> Any:
        return self.edge.edge.calls.by_id[self.ident].legs["a1"]

    @property
    def asked(self) -> int:
        """Re-INVITEs that came to the phone."""
        return len(self.phone.of(events.ReinviteReceived))

    def silence(self, since: float) -> tuple[float, float]:
        """The longest at the phone and at the caller until now."""
        now = time.monotonic() - 0.1
        marks = [since, *(at for at in self.phone.voice.at if since < at < now), now]
        return max(b - a for a, b in itertools.pairwise(marks)), self.edge.silence(since, now)

    async def both_hear(self) -> None:
        """For half a second, nearly everything."""
        await until("both hear", lambda: max(self.silence(time.monotonic() - 0.6)) < 0.1)


SPARE = ("public-2", "public-3")


@asynccontextmanager
async def begin(
    relay: Relay, spare: tuple[str, ...], older: bool = True, **voice: Any
) -> AsyncIterator[Talk]:
    """Two talk past Asterisk; on an older call the numbers of what the phone hears have gone round."""
    edge = LiveEdge(relay, 0x10000 - BEFORE_ROUND if older else 0, spare)
    edge.add_user(USER)
    await edge.start()
    edge.snapshots()
    await until("rtpengine is there", lambda: edge.reachable)
    one = SrtpVoice(HOST, 77, **voice)
    phone = edge.phones[USER] = Phone(edge.register(USER), edge.new_id, one)
    try:
        key, call, node = edge.call_phone(USER)
        (invite,) = phone.of(events.InviteReceived)
        one.take(invite.request.body.decode())
        phone.sip.answer(invite.leg, one.sdp(), time.monotonic())
        edge.settle()
        one.start()
        edge.without_node(call, node)
        talk = Talk(edge, phone, key, call.call)
        await talk.both_hear()
        await until("the numbers have gone round", lambda: one.rounds or not older)
        yield talk
        edge.carrier.sip.hangup(key, time.monotonic())
        edge.settle()
        await until("the phone was hung up on", lambda: phone.of(events.LegEnded))
        assert not one.clear, "never without encryption"
    finally:
        one.close()
        await edge.close()


@pytest.fixture(
    params=[
        {}, {"keeps_key": False}, {"counts_on": True}, {"counts_on": True, "keeps_key": False},
        {"first": 0x10000 - BEFORE_ROUND, "counts_on": True},
    ],
    ids=["a-key-is-a-stream", "changes-its-own", "counts-on", "counts-on-and-changes", "own-rounds"],
)  # fmt: skip
async def talk(request: pytest.FixtureRequest, relay: Relay) -> AsyncIterator[Talk]:
    async with begin(relay, SPARE, **request.param) as one:
        yield one


async def test_rtpengine_dies_and_the_phone_is_told_another_key(relay: Relay, talk: Talk) -> None:
    since, port, key = time.monotonic(), talk.leg.port, talk.leg.key_line
    await asyncio.to_thread(relay.dies)
    await until("it was told", lambda: talk.asked)
    await talk.both_hear()
    assert talk.leg.port != port and talk.leg.key_line != key and talk.asked == 1
    print(f"longest silence at the phone, at the caller: {talk.silence(since)}")
    assert max(talk.silence(since)) < 2.0
    again = talk.leg.port, talk.leg.key_line
    await asyncio.to_thread(relay.dies)
    await until("it was told once more", lambda: talk.asked == 2)
    await talk.both_hear()
    assert talk.leg.port not in (port, again[0]) and talk.leg.key_line not in (key, again[1])


async def test_the_edge_process_dies_and_nobody_is_told_anything(relay: Relay, talk: Talk) -> None:
    since = time.monotonic()
    await talk.edge.process_dies()
    await asyncio.sleep(1.5)
    assert talk.asked == 0 and max(talk.silence(since)) < 0.5


async def test_both_die_as_a_host_does(relay: Relay, talk: Talk) -> None:
    await asyncio.to_thread(relay.dies)
    await talk.edge.process_dies()
    await until("it was told", lambda: talk.asked)
    await talk.both_hear()
    assert talk.asked == 1
    talk.phone.voice.press("7")
    await until("the caller hears a digit", lambda: talk.edge.digits)
    talk.edge.press("9")
    await until("the phone hears a digit", lambda: talk.phone.voice.digits_heard() == "9")


@pytest.mark.parametrize("address", [HOST, "0.0.0.0"])
async def test_it_holds_and_is_back_on_an_older_call(relay: Relay, address: str) -> None:
    """Nothing has died. 0.0.0.0 is a hold, too (RFC 2543)."""
    async with begin(relay, SPARE) as talk:
        leg, held = talk.leg, talk.phone.voice.sdp("sendonly").replace(f"IP4 {HOST}", f"IP4 {address}")
        key = talk.phone.of(events.InviteReceived)[0].leg
        talk.phone.sip.reinvite(key, held, time.monotonic())
        talk.edge.settle()
        await until("it is on hold", lambda: leg.held and talk.phone.of(events.ReinviteAnswered))
        since = time.monotonic()
        await until("it hears nothing", lambda: talk.silence(since)[0] > 0.5)
        talk.phone.sip.reinvite(key, talk.phone.voice.sdp(), time.monotonic())
        talk.edge.settle()
        await until("it is back", lambda: not leg.held)
        await talk.both_hear()
        assert talk.asked == 0


async def test_on_a_younger_call_little_is_missing(relay: Relay) -> None:
    async with begin(relay, SPARE, older=False) as talk:
        await asyncio.to_thread(relay.dies)
        await until("it was told", lambda: talk.asked)
        await talk.both_hear()
        print(f"packets a phone could not read, told in vain: {talk.phone.voice.unreadable}")
        assert talk.phone.voice.unreadable < 15


async def test_without_a_second_interface_the_key_alone_changes(relay: Relay) -> None:
    async with begin(relay, ()) as talk:
        port, key = talk.leg.port, talk.leg.key_line
        await asyncio.to_thread(relay.dies)
        await until("it was told", lambda: talk.asked)
        await talk.both_hear()
        assert talk.leg.port == port and talk.leg.key_line != key


async def test_to_a_phone_that_counts_on_a_key_alone_is_no_new_stream(relay: Relay) -> None:
    """Why the port moves as well."""
    async with begin(relay, (), counts_on=True) as talk:
        await asyncio.to_thread(relay.dies)
        await until("it was told", lambda: talk.asked)
        await asyncio.sleep(0.3)
        since, unreadable = time.monotonic(), talk.phone.voice.unreadable
        await asyncio.sleep(1.0)
        assert not [at for at in talk.phone.voice.at if at > since]
        assert talk.phone.voice.unreadable > unreadable + 30
        assert talk.edge.silence(since, time.monotonic() - 0.1) < 0.3, "it is still heard"


async def test_a_phone_that_refuses_keeps_its_call_and_is_heard(relay: Relay) -> None:
    async with begin(relay, SPARE) as talk:
        talk.phone.takes_changes = False
        await asyncio.to_thread(relay.dies)
        await until("it was asked", lambda: talk.asked)
        talk.phone.sip.reject_reinvite(talk.phone.of(events.ReinviteReceived)[0].leg, 488, time.monotonic())
        talk.edge.settle()
        since = time.monotonic()
        await asyncio.sleep(1.5)
        assert talk.asked == 1 and talk.leg.state == "up"
        assert talk.edge.silence(since, time.monotonic() - 0.1) < 0.3, "it still sends to the old port"
        talk.phone.takes_changes = True
        leg = talk.phone.of(events.ReinviteReceived)[0].leg
        talk.phone.sip.reinvite(leg, talk.phone.voice.sdp("sendonly"), time.monotonic())
        talk.edge.settle()
        await until("its hold was answered", lambda: talk.phone.of(events.ReinviteAnswered))
        talk.phone.voice.take(talk.phone.of(events.ReinviteAnswered)[-1].sdp)
        talk.phone.sip.reinvite(leg, talk.phone.voice.sdp(), time.monotonic())
        talk.edge.settle()
        await talk.both_hear()
