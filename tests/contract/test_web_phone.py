"""A phone in a browser against the edge's machine and a real rtpengine: what it hears when something dies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from containers import why_not
from live_edge import HOST, IMAGE, LiveEdge, Relay

from tests.support.edge_world import kill
from tests.support.web_phone import WebPhone

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]
USER = "1001"
LIMIT_S = 20.0
UNNOTICED_S = 0.5
"""Far above a packet, and above a busy machine's stalls."""


@pytest.fixture
def relay() -> Iterator[Relay]:
    if why := why_not(IMAGE):
        pytest.skip(why)
    one = Relay()
    yield one
    one.remove()


async def until(what: str, check: Callable[[], Any]) -> None:
    end = time.monotonic() + LIMIT_S
    while not check():
        assert time.monotonic() < end, what
        await asyncio.sleep(0.02)


class Talk:
    """A caller and the browser's agent."""

    def __init__(self, edge: LiveEdge, phone: WebPhone, key: str, call: Any, node: Any) -> None:
        self.edge, self.phone, self.key, self.node, self.ident = edge, phone, key, node, call.call

    @property
    def call(self) -> Any:
        return self.edge.edge.calls.by_id.get(self.ident)

    @property
    def leg(self) -> Any:
        return self.call.legs["a1"]

    def silence(self, since: float) -> tuple[float, float]:
        """The longest at the browser and at the caller until now."""
        now, shift = time.monotonic() - 0.1, time.time() - time.monotonic()
        return self.phone.heard(since + shift, now + shift)[1], self.edge.silence(since, now)

    async def both_hear(self) -> None:
        """For half a second, nearly everything."""
        await until("both hear", lambda: max(self.silence(time.monotonic() - 0.6)) < 0.1)

    async def ends(self) -> None:
        """The caller hangs up, and the browser is told."""
        self.edge.carrier.sip.hangup(self.key, time.monotonic())
        await until("the browser was hung up on", lambda: not self.phone.talking)


@pytest.fixture
async def edge(relay: Relay) -> AsyncIterator[LiveEdge]:
    one = LiveEdge(relay)
    one.add_user(USER)
    await one.start()
    one.snapshots()
    await until("rtpengine is there", lambda: one.reachable)
    yield one
    await one.close()


@pytest.fixture
async def phone(edge: LiveEdge) -> AsyncIterator[WebPhone]:
    one = WebPhone(f"ws://{HOST}:{edge.port}/", USER, "pw", "test", ())
    await until("it is registered", lambda: one.registrations)
    yield one
    await asyncio.to_thread(one.close)
    assert not one.errors


@pytest.fixture
async def talk(edge: LiveEdge, phone: WebPhone) -> Talk:
    key, call, node = edge.call_phone(USER)
    await until("it has answered", lambda: phone.talking and call.legs["a1"].state == "up")
    edge.without_node(call, node)
    one = Talk(edge, phone, key, call, node)
    await one.both_hear()
    assert phone.browser and phone.browser.handshakes == 1
    return one


async def test_it_talks_holds_and_is_hung_up_on(talk: Talk) -> None:
    assert (talk.leg.side.suite, talk.leg.side.setup) == ("DTLS", "passive")
    await asyncio.to_thread(talk.phone.change, "sendonly")
    await until("it is on hold", lambda: talk.leg.held)
    await asyncio.to_thread(talk.phone.change, "sendrecv")
    await until("it is back", lambda: not talk.leg.held)
    await talk.both_hear()
    browser = talk.phone.browser
    assert browser and (browser.handshakes, browser.ice_connects, browser.heard.unreadable) == (1, 1, 0)
    await talk.ends()


async def test_it_moves_to_another_network(talk: Talk) -> None:
    since, browser = time.monotonic(), talk.phone.browser
    assert browser
    await asyncio.to_thread(talk.phone.move)
    await until("it was asked for another", lambda: talk.phone.changes)
    await until("that one is there", lambda: browser.ice_connects >= 2 and not talk.leg.elsewhere)
    await talk.both_hear()
    assert max(talk.silence(since)) < 2.0
    assert (browser.handshakes, browser.heard.unreadable, talk.phone.changes) == (1, 0, 1)
    await asyncio.to_thread(talk.phone.change, "sendonly")
    await until("it is on hold", lambda: talk.leg.held)
    await talk.ends()


async def test_it_calls(edge: LiveEdge, phone: WebPhone) -> None:
    await asyncio.to_thread(phone.call, "6000")
    await until("a node has answered", lambda: phone.talking)
    assert phone.browser
    await phone_up(phone)
    await asyncio.to_thread(phone.hang_up)
    await until("its call is over", lambda: not edge.edge.calls.by_id)


async def phone_up(phone: WebPhone) -> None:
    """ICE and DTLS are through."""
    await until("ICE and DTLS", lambda: phone.browser and phone.browser.handshakes == 1)


async def test_a_node_dies_and_it_notices_nothing(talk: Talk) -> None:
    since = time.monotonic()
    kill(talk.edge, talk.node.name)
    await until("another node has the call", lambda: talk.call.owner.name != talk.node.name)
    await asyncio.sleep(0.5)
    assert max(talk.silence(since)) < UNNOTICED_S
    assert (talk.phone.changes, talk.phone.connections) == (0, 1)
    await talk.ends()


async def test_the_edge_process_dies_and_its_dialog_follows_it(talk: Talk) -> None:
    since, before = time.monotonic(), talk.phone.registrations
    await talk.edge.process_dies()
    await until("it has come back", lambda: talk.phone.registrations > before)
    await asyncio.sleep(1.0)
    assert max(talk.silence(since)) < UNNOTICED_S
    assert talk.phone.changes == 0, "rtpengine lives: nothing is to be agreed on anew"
    await talk.ends()


@pytest.mark.parametrize("forgets", [False, True])
async def test_rtpengine_dies_and_keys_are_agreed_on_anew(relay: Relay, talk: Talk, forgets: bool) -> None:
    """With a valkey that has the call, and without: then even the port is another."""
    since, port = time.monotonic(), talk.leg.port
    await asyncio.to_thread(relay.dies, forgets)
    await until("it was asked", lambda: talk.phone.changes)
    await until("it has agreed", lambda: talk.phone.browser and talk.phone.browser.handshakes == 2)
    assert (talk.leg.port == port) is not forgets
    if not forgets:  # the caller, a script here, does not follow to another port
        await talk.both_hear()
        assert max(talk.silence(since)) < 2.0
    assert not talk.leg.elsewhere and talk.phone.changes == 1
    await asyncio.to_thread(talk.phone.change, "sendonly")
    await until("it may still hold", lambda: talk.leg.held)
    await talk.ends()


async def test_both_die_and_it_is_asked_when_it_has_come_back(relay: Relay, talk: Talk) -> None:
    """As when a pair's host dies: another life of both, with the calls of before."""
    await asyncio.to_thread(relay.dies)
    await talk.edge.process_dies()
    await until("it was asked", lambda: talk.phone.changes)
    await until("it has agreed", lambda: talk.phone.browser and talk.phone.browser.handshakes == 2)
    await talk.both_hear()
    await talk.ends()
