"""A phone of the far ends over TCP: it registers, is called, and comes back when its connection breaks."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from itertools import count

import pytest

from ari_ha.farend import network
from ari_ha.farend.farends import FarEnds
from ari_ha.farend.settings import FarEndSettings
from ari_ha.sip import Endpoint, Flow, Listener, events

LIMIT_S = 8.0
KEEP_ALIVE_S = 0.1


class Registrar:
    """A TCP registrar that lets everybody in and calls them back."""

    def __init__(self, port: int) -> None:
        ids = count(1)
        self.port = port
        self.endpoint = Endpoint({"tcp": Listener("tcp", "tcp", "127.0.0.1", port)}, lambda: f"r{next(ids)}")
        self.writers: dict[str, asyncio.StreamWriter] = {}
        self.flow: Flow | None = None
        self.registrations = 0
        self.deaf = ""
        """A connection whose words are not heard any more"""
        self.seen: list[events.SipEvent] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conn = f"c{len(self.writers) + 1}"
        self.writers[conn] = writer
        host, port = writer.get_extra_info("peername")
        flow = Flow("tcp", "tcp", host, port, conn)
        while data := await reader.read(65_536):
            if conn != self.deaf:
                self.endpoint.receive_stream(data, flow, time.monotonic())
                self.react(flow)

    def react(self, flow: Flow) -> None:
        for event in self.endpoint.events():
            self.seen.append(event)
            if isinstance(event, events.RequestReceived):
                self.flow = flow
                self.registrations += 1
                self.endpoint.respond(event.txn, 200, time.monotonic())
        for data, to in self.endpoint.output():
            self.writers[to.conn].write(data)


async def until(what: str, look: Callable[[], object]) -> None:
    end = time.monotonic() + LIMIT_S
    while not look():
        assert time.monotonic() < end, what
        await asyncio.sleep(0.02)


async def test_a_phone_over_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "KEEP_ALIVE_S", KEEP_ALIVE_S)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    registrar = Registrar(port)
    settings = FarEndSettings(
        edge_host="127.0.0.1",
        edge_port=port,
        carrier_port=0,
        phones_base_port=7_001,
        phones=("1001",),
        tcp_phones=frozenset({"1001"}),
    )
    server = await asyncio.start_server(registrar.serve, "127.0.0.1", port)
    ends = FarEnds(settings)
    try:
        await ends.open()
        await until("registered", lambda: registrar.registrations == 1)
        assert registrar.flow is not None
        sdp = (
            "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
            "m=audio 9 RTP/AVP 8 101\r\na=rtpmap:101 telephone-event/8000\r\n"
        )
        registrar.endpoint.invite(
            "leg",
            flow=registrar.flow,
            target="sip:1001@127.0.0.1",
            from_="<sip:a@lab>",
            to="<sip:1001@lab>",
            sdp=sdp,
            now=time.monotonic(),
        )
        registrar.react(registrar.flow)
        phone = ends.drivers["1001"].agent
        await until("the phone is up", lambda: (c := phone.living_call()) and c.state == "up")
        await until(
            "we were answered", lambda: any(isinstance(e, events.LegAnswered) for e in registrar.seen)
        )
        registrar.writers["c1"].close()
        await until("registered again over a new connection", lambda: registrar.registrations == 2)
        assert registrar.flow.conn == "c2"
        await asyncio.sleep(5 * KEEP_ALIVE_S)  # many questions, all answered
        assert registrar.registrations == 2
        registrar.deaf = "c2"
        await until("the silent connection is given up", lambda: registrar.registrations == 3)
        assert registrar.flow.conn == "c3"
    finally:
        ends.close()
        server.close()
