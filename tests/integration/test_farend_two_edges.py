"""Far ends that know two edges: they go to the other one when theirs falls silent."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from itertools import count
from typing import Any

from ari_ha.farend.farends import FarEnds
from ari_ha.farend.settings import FarEndSettings
from ari_ha.sip import Endpoint, Flow, Listener, events

LIMIT_S = 10.0
ONE, TWO = "127.0.0.1", "127.0.0.2"


class Edge(asyncio.DatagramProtocol):
    """Lets everybody in over UDP and TCP, until it is silent."""

    def __init__(self, host: str, port: int) -> None:
        ids = count(1)
        listeners = {kind: Listener(kind, kind, host, port) for kind in ("udp", "tcp")}
        self.host, self.port = host, port
        self.endpoint = Endpoint(listeners, lambda: f"{host}-{next(ids)}")
        self.writers: dict[str, asyncio.StreamWriter] = {}
        self.registered: list[tuple[str, str]] = []
        self.silent = False

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self.udp, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(self.host, self.port))
        self.server = await asyncio.start_server(self.serve, self.host, self.port)

    def close(self) -> None:
        self.udp.close()
        self.server.close()
        for writer in self.writers.values():
            writer.close()

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        if not self.silent:
            self.endpoint.receive(data, Flow("udp", "udp", str(addr[0]), addr[1]), time.monotonic())
            self.react()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conn = f"c{len(self.writers) + 1}"
        self.writers[conn] = writer
        while data := await reader.read(65_536):
            if not self.silent:
                flow = Flow("tcp", "tcp", *writer.get_extra_info("peername")[:2], conn)
                self.endpoint.receive_stream(data, flow, time.monotonic())
                self.react()

    def react(self) -> None:
        for event in self.endpoint.events():
            if isinstance(event, events.RequestReceived):
                if event.request.method == "REGISTER":
                    self.registered.append((event.request.get("To"), event.flow.transport))
                self.endpoint.respond(event.txn, 200, time.monotonic())
        for data, to in self.endpoint.output():
            if to.transport == "tcp":
                self.writers[to.conn].write(data)
            else:
                self.udp.sendto(data, (to.host, to.port))


async def until(what: str, look: Callable[[], object]) -> None:
    end = time.monotonic() + LIMIT_S
    while not look():
        assert time.monotonic() < end, what
        await asyncio.sleep(0.02)


async def test_phones_register_where_somebody_answers() -> None:
    with socket.socket() as sock:
        sock.bind((ONE, 0))
        port = sock.getsockname()[1]
    one, two = Edge(ONE, port), Edge(TWO, port)
    two.silent = True
    settings = FarEndSettings(
        edge_host=ONE,
        edge_port=port,
        edge_others=(TWO,),
        carrier_port=0,
        phones_base_port=7_101,
        phones=("1001", "1002"),
        tcp_phones=frozenset({"1002"}),
    )
    await one.open()
    await two.open()
    ends = FarEnds(settings)
    try:
        await ends.open()
        await until("both are registered", lambda: {way for _, way in one.registered} == {"udp", "tcp"})
        assert not two.registered and ends.drivers["carrier"].agent.proxy.host == ONE
        one.silent, two.silent = True, False
        await until("both are at the other", lambda: {way for _, way in two.registered} == {"udp", "tcp"})
        assert {driver.agent.proxy.host for driver in ends.drivers.values()} == {TWO}
    finally:
        ends.close()
        one.close()
        two.close()


async def test_some_phones_register_at_another_pair() -> None:
    with socket.socket() as sock:
        sock.bind((ONE, 0))
        port = sock.getsockname()[1]
    one, two = Edge(ONE, port), Edge(TWO, port)
    settings = FarEndSettings(
        edge_host=ONE,
        edge_port=port,
        phones_at={"1002": TWO},
        carrier_port=0,
        phones_base_port=7_111,
        phones=("1001", "1002"),
    )
    await one.open()
    await two.open()
    ends = FarEnds(settings)
    try:
        await ends.open()
        await until("both are registered", lambda: one.registered and two.registered)
        assert ("1001" in one.registered[0][0]) and ("1002" in two.registered[0][0])
        assert ends.drivers["carrier"].agent.proxy.host == ONE
    finally:
        ends.close()
        one.close()
        two.close()
