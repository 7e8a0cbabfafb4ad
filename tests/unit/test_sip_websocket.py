"""SIP over WebSocket on real sockets (RFC 7118)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from ari_ha.adapters import sip_websocket
from ari_ha.adapters.sip import SipSockets
from ari_ha.adapters.sip_websocket import WebSocketListener
from ari_ha.core.ports.sip import SipBytes, SipFlowClosed
from ari_ha.sip.endpoint import Endpoint
from ari_ha.sip.flow import Flow, Listener


async def until(check: Any) -> None:
    async with asyncio.timeout(5):
        while not check():
            await asyncio.sleep(0.01)


class Server:
    """A listener on loopback, and what it told."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.sockets = SipSockets(self.told.append)
        self.listener = WebSocketListener(self.sockets, "public-ws", "ws")
        self.url = ""

    async def start(self) -> None:
        await self.listener.start("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.listener.port}/sip"

    def heard(self) -> list[SipBytes]:
        return [event for event in self.told if isinstance(event, SipBytes)]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    one = Server()
    await one.start()
    yield one
    one.sockets.close()
    await one.listener.stop()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as one:
        yield one


async def test_one_message_is_one_message_both_ways(server: Server, session: aiohttp.ClientSession) -> None:
    async with session.ws_connect(server.url, protocols=("sip",)) as phone:
        assert phone.protocol == "sip"
        await phone.send_str("OPTIONS sip:ä SIP/2.0\r\n\r\n")
        await phone.send_bytes(b"\xff")
        await until(lambda: len(server.heard()) == 2)
        one, other = server.heard()
        assert (one.data, other.data) == ("OPTIONS sip:ä SIP/2.0\r\n\r\n".encode(), b"\xff")
        assert (one.flow.listener, one.flow.transport, one.flow.framed) == ("public-ws", "ws", True)
        assert one.flow.reliable and one.flow.conn and one.flow == other.flow
        for text in (b"one", b"two", b"\xff"):
            server.sockets.send(text, one.flow)
        assert [(await phone.receive()).data for _ in range(3)] == ["one", "two", b"\xff"]
    await until(lambda: isinstance(server.told[-1], SipFlowClosed))
    assert server.told[-1].flow == one.flow
    server.sockets.send(b"late", one.flow)
    assert server.told[-1].refused, "nobody connects to a browser"


async def test_what_is_dropped_is_gone_for_both(server: Server, session: aiohttp.ClientSession) -> None:
    async with session.ws_connect(server.url, protocols=("sip",)) as phone:
        await phone.send_str("x")
        await until(server.heard)
        server.sockets.drop(server.heard()[0].flow)
        kind = (await phone.receive(timeout=5)).type
        assert kind in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR, aiohttp.WSMsgType.CLOSE)
    await until(lambda: isinstance(server.told[-1], SipFlowClosed))


@pytest.mark.parametrize("protocols", [(), ("chat",)])
async def test_who_does_not_speak_sip_is_sent_away(
    server: Server, session: aiohttp.ClientSession, protocols: tuple[str, ...]
) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await session.ws_connect(server.url, protocols=protocols)
    assert refused.value.status == 426
    async with session.get(server.url) as answer:
        assert answer.status == 426
    assert not server.told


async def test_a_message_too_long_closes(server: Server, session: aiohttp.ClientSession) -> None:
    async with session.ws_connect(server.url, protocols=("sip",)) as phone:
        await phone.send_str("x" * (sip_websocket.MESSAGE_MAX_BYTES + 1))
        assert (await phone.receive(timeout=5)).type is aiohttp.WSMsgType.CLOSE
    assert not server.heard()


async def test_a_connection_that_becomes_nothing_is_closed(
    server: Server, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sip_websocket, "UPGRADE_LIMIT_S", 0.1)
    host, _, port = server.url.removeprefix("http://").removesuffix("/sip").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    async with session.ws_connect(server.url, protocols=("sip",)) as phone:
        assert await asyncio.wait_for(reader.read(), 5) == b""
        await phone.send_str("still here")
        await until(server.heard)
    writer.close()


def test_the_engine_speaks_of_it_as_the_standard_does() -> None:
    listeners = {
        f"public-{kind}": Listener(f"public-{kind}", kind, "10.0.0.1", 443) for kind in ("ws", "wss")
    }
    ids = iter(range(100))
    edge = Endpoint(listeners, lambda: f"id{next(ids)}")
    flow = Flow("public-wss", "wss", "10.0.0.9", 50_000, "c1")
    target = "sip:1001@7a.invalid;transport=ws"
    edge.request("k", "OPTIONS", flow=flow, target=target, from_="<sip:x>", to="<sip:y>", now=0.0)
    ((data, _),) = edge.output()
    assert b"\r\nVia: SIP/2.0/WSS 10.0.0.1:443;" in data
    assert edge.contact(flow) == "<sip:10.0.0.1:443;transport=ws>"
    edge.receive(b"\r\n\r\n", flow, 1.0)
    assert edge.output() == [(b"\r\n", flow)], "its keep-alive is answered"
    edge.receive(b"\r\n", flow, 1.0)
    edge.receive(b"\r\n\r\n", Flow("public-ws", "udp", "10.0.0.9", 1), 1.0)
    assert not edge.output()
