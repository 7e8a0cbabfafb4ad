"""Sockets and the clock for user agents: one driver each, UDP or a TCP connection to the proxy."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast

from ari_ha.farend.useragent import UserAgent
from ari_ha.sip import Flow

RECONNECT_S, CONNECT_LIMIT_S = 1.0, 3.0
KEEP_ALIVE_S = 5.0
"""A TCP connection that said nothing for so long is asked, by CRLF CRLF (RFC 5626 section 4.4.1)."""
UNANSWERED_MAX = 2
"""Questions without an answer: then the connection is dead."""
DATAGRAM_BUFFER_BYTES = 1_048_576


class Driver:
    """Gives one user agent its bytes and deadlines."""

    def __init__(self, agent: UserAgent) -> None:
        self.agent = agent
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        """Opens the socket and starts the clock."""
        raise NotImplementedError

    def close(self) -> None:
        """Closes the socket and stops the clock."""
        if self._timer is not None:
            self._timer.cancel()

    @property
    def now(self) -> float:
        """The agent's clock."""
        return self._loop.time()

    def use(self, host: str, port: int, register_at: float) -> None:
        """The proxy and registrar is another from now on."""
        agent = self.agent
        agent.proxy = Flow(agent.listener.name, agent.listener.transport, host, port)
        if agent.registration is not None and agent.registration.wanted:
            agent.registration.want(True, register_at)
        self.flush()

    def flush(self) -> None:
        """Sends what the agent has to say and arms its deadline. To be called after every order."""
        for data, flow in self.agent.output():
            self._send(data, flow)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.agent.deadline()
        if due is not None:
            self._timer = self._loop.call_at(max(due, self.now + 0.001), self._fire)

    def _fire(self) -> None:
        self._timer = None
        self.agent.fire(self.now)
        self.flush()

    def _send(self, data: bytes, flow: Flow) -> None:
        raise NotImplementedError


class UdpDriver(Driver, asyncio.DatagramProtocol):
    """One UDP socket."""

    _transport: asyncio.DatagramTransport | None = None

    async def open(self) -> None:
        """See `Driver.open`."""
        listener = self.agent.listener
        transport, _ = await self._loop.create_datagram_endpoint(
            lambda: self, local_addr=(listener.host, listener.port)
        )
        self._transport = transport
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, DATAGRAM_BUFFER_BYTES)
        self.flush()

    def close(self) -> None:
        """See `Driver.close`."""
        super().close()
        if self._transport is not None:
            self._transport.close()

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        """From asyncio."""
        self.agent.receive(data, Flow(self.agent.listener.name, "udp", addr[0], addr[1]), self.now)
        self.flush()

    def error_received(self, exc: OSError) -> None:
        """From asyncio: an ICMP refusal; the engine's own retransmissions deal with it."""

    def _send(self, data: bytes, flow: Flow) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(data, (flow.host, flow.port))


class TcpDriver(Driver):
    """One TCP connection to the proxy, made again whenever it breaks."""

    def __init__(self, agent: UserAgent) -> None:
        super().__init__(agent)
        self._writer: asyncio.StreamWriter | None = None
        self._flow = agent.proxy
        self._serial = 0
        self._waiting: list[bytes] = []
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """See `Driver.open`."""
        self._task = asyncio.create_task(self._run())
        self.flush()

    def close(self) -> None:
        """See `Driver.close`."""
        super().close()
        if self._task is not None:
            self._task.cancel()
        if self._writer is not None:
            self._writer.close()

    def use(self, host: str, port: int, register_at: float) -> None:
        """See `Driver.use`: over a new connection, which registers by itself."""
        super().use(host, port, register_at)
        if self._writer is not None:
            self._writer.transport.abort()

    async def _run(self) -> None:
        while True:
            proxy = self.agent.proxy
            try:
                async with asyncio.timeout(CONNECT_LIMIT_S):
                    reader, self._writer = await asyncio.open_connection(
                        proxy.host, proxy.port, local_addr=(self.agent.listener.host, 0)
                    )
            except (OSError, TimeoutError):
                await asyncio.sleep(RECONNECT_S)
                continue
            self._serial += 1
            self._flow = Flow(self.agent.listener.name, "tcp", proxy.host, proxy.port, str(self._serial))
            for data in self._waiting:
                self._writer.write(data)
            self._waiting.clear()
            await self._read(reader)
            self._writer.close()
            self._writer = None
            self.agent.stream_closed(self._flow, self.now)
            registration = self.agent.registration
            if registration is not None and registration.wanted:
                registration.want(True, self.now)
            self.flush()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        asked = 0
        while True:
            try:
                async with asyncio.timeout(KEEP_ALIVE_S):
                    data = await reader.read(65_536)
            except TimeoutError:
                if asked == UNANSWERED_MAX or self._writer is None:
                    return
                self._writer.write(b"\r\n\r\n")
                asked += 1
                continue
            except OSError:
                return
            if not data:
                return
            asked = 0
            self.agent.receive_stream(data, self._flow, self.now)
            self.flush()

    def _send(self, data: bytes, flow: Flow) -> None:
        if self._writer is not None:
            cast(asyncio.StreamWriter, self._writer).write(data)
        else:
            self._waiting = [*self._waiting[-20:], data]


def driver_for(agent: UserAgent) -> Driver:
    """The driver its listener's transport needs."""
    return TcpDriver(agent) if agent.listener.transport == "tcp" else UdpDriver(agent)
