"""SIP on sockets: UDP listeners, TCP and TLS connections, bytes in and bytes out."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import socket
from collections.abc import Callable
from typing import Any, Protocol

from ari_ha.adapters.certificates import Certificates
from ari_ha.adapters.doors import Door, Room
from ari_ha.core.machine import Event
from ari_ha.core.ports.sip import SipBytes, SipFlowClosed
from ari_ha.sip.flow import Flow

RECEIVE_BUFFER_BYTES = 4 * 1024 * 1024
"""A burst (a node's death moves many calls) must wait in the kernel, not be lost."""
TCP_WRITE_BUFFER_MAX_BYTES = 1024 * 1024
TCP_CONNECT_LIMIT_S = 4.0
TCP_WAITING_MAX = 64
"""Messages that wait for one connection being opened."""

NEVER_OPENED = ("ws", "wss")
"""Transports on which the far end alone connects (RFC 7118 section 5)."""

Post = Callable[[Event], object]


class Stream(Protocol):
    """A connection."""

    flow: Flow | None

    def write(self, data: bytes) -> None:
        """Sends; a far end that does not read is let go."""
        ...

    def abort(self) -> None:
        """Drops the connection."""
        ...


class SipSockets:
    """All SIP sockets of one process. Every method belongs to the event loop."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self._udp: dict[str, asyncio.DatagramTransport] = {}
        self._doors: list[Door] = []
        self.room = Room(lambda: asyncio.get_running_loop().time())
        """Who is connected to us, over whatever is not UDP"""
        self._streams: dict[str, Stream] = {}
        self._by_address: dict[tuple[str, str, int], str] = {}
        self._connecting: dict[tuple[str, str, int], list[bytes]] = {}
        self._names = itertools.count(1)
        self._life = secrets.token_hex(3)
        """Begins every connection's name: one of an earlier process must not match."""
        self._certificates: Certificates | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen_udp(self, name: str, host: str, port: int) -> None:
        """Opens one UDP listener. Raises OSError when the address is not ours."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        sock.bind((host, port))
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: _Udp(name, self._post), sock=sock)
        self._udp[name] = transport

    async def listen_tcp(self, name: str, host: str, port: int) -> None:
        """Opens one TCP listener. Raises OSError when the address is not ours."""
        self._listen(Door(self.room, lambda: _Stream(self, name, None, "tcp")), host, port)

    async def listen_tls(self, name: str, host: str, port: int, certificates: Certificates) -> None:
        """Opens one TLS listener, and lets calls leave over TLS. Raises OSError."""
        self._certificates = certificates
        door = Door(self.room, lambda: _Stream(self, name, None, "tls"), certificates.server)
        self._listen(door, host, port)

    def _listen(self, door: Door, host: str, port: int) -> None:
        door.open(host, port)
        self._doors.append(door)

    def send(self, data: bytes, flow: Flow, name: str = "") -> None:
        """Sends on the flow; what cannot be sent is lost, as on any network. ``name``: whose
        certificate a new TLS connection must show."""
        if flow.transport == "udp":
            transport = self._udp.get(flow.listener)
            if transport and not transport.is_closing():
                transport.sendto(data, (flow.host, flow.port))
            return
        stream = self._streams.get(flow.conn or "") or self._streams.get(
            self._by_address.get((flow.listener, flow.host, flow.port), "")
        )
        if stream:
            stream.write(data)
        elif flow.transport in NEVER_OPENED:
            self._post(SipFlowClosed(flow=flow, reason="the phone is not connected", refused=True))
        else:
            self._connect(data, flow, name)

    def drop(self, flow: Flow) -> None:
        """Closes the stream of a flow, if it has one."""
        stream = self._streams.get(flow.conn or "")
        if stream:
            stream.abort()

    def _connect(self, data: bytes, flow: Flow, name: str) -> None:
        address = (flow.listener, flow.host, flow.port)
        waiting = self._connecting.get(address)
        if waiting is not None:
            if len(waiting) < TCP_WAITING_MAX:
                waiting.append(data)
            return
        self._connecting[address] = [data]
        task = asyncio.ensure_future(self._open(address, flow, name))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self, address: tuple[str, str, int], flow: Flow, name: str) -> None:
        loop = asyncio.get_running_loop()
        tls: dict[str, Any] = {}
        try:
            if flow.transport == "tls":
                if self._certificates is None:
                    raise OSError("no certificate: TLS is not set up")
                tls = {"ssl": self._certificates.client, "server_hostname": name or flow.host}
            async with asyncio.timeout(TCP_CONNECT_LIMIT_S):
                _, stream = await loop.create_connection(
                    lambda: _Stream(self, flow.listener, flow, flow.transport), flow.host, flow.port, **tls
                )
        except (OSError, TimeoutError) as error:
            self._post(SipFlowClosed(flow=flow, reason=str(error) or "connect timed out", refused=True))
        else:
            for data in self._connecting.get(address, []):
                stream.write(data)
        finally:
            self._connecting.pop(address, None)

    def opened(self, stream: Stream) -> str:
        """Names a new connection."""
        name = f"{self._life}.{next(self._names)}"
        self._streams[name] = stream
        return name

    def reached(self, stream: Stream) -> None:
        """The connection can be found by its far address from now on."""
        flow = stream.flow
        if flow:
            self._by_address[(flow.listener, flow.host, flow.port)] = flow.conn

    def closed(self, stream: Stream, reason: str) -> None:
        """Forgets a connection and says so."""
        flow = stream.flow
        if flow and self._streams.pop(flow.conn, None):
            address = (flow.listener, flow.host, flow.port)
            if self._by_address.get(address) == flow.conn:
                del self._by_address[address]
            self._post(SipFlowClosed(flow=flow, reason=reason))

    def post(self, event: Event) -> None:
        """Gives an event to the owner."""
        self._post(event)

    def close(self) -> None:
        """Closes every socket."""
        for door in self._doors:
            door.close()
        for stream in list(self._streams.values()):
            stream.abort()
        for transport in self._udp.values():
            transport.close()


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, name: str, post: Post) -> None:
        self._name = name
        self._post = post

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._post(SipBytes(data=data, flow=Flow(self._name, "udp", addr[0], addr[1])))


class _Stream(asyncio.Protocol):
    def __init__(self, sockets: SipSockets, listener: str, flow: Flow | None, transport: str) -> None:
        self._sockets = sockets
        self._kind = transport
        self._listener = listener
        self._wanted = flow
        self._transport: asyncio.Transport | None = None
        self.flow: Flow | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        peer = transport.get_extra_info("peername")
        if peer is None:  # gone already
            transport.abort()
            return
        host, port = peer[:2]
        name = self._sockets.opened(self)
        self.flow = Flow(self._listener, self._kind, host, port, name)
        self._sockets.reached(self)

    def data_received(self, data: bytes) -> None:
        if self.flow:
            self._sockets.post(SipBytes(data=data, flow=self.flow))

    def connection_lost(self, exc: Exception | None) -> None:
        self._sockets.closed(self, str(exc) if exc else "closed by the far end")

    def write(self, data: bytes) -> None:
        """Sends; a far end that does not read is let go."""
        if self._transport is None or self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size() > TCP_WRITE_BUFFER_MAX_BYTES:
            self._transport.abort()
            return
        self._transport.write(data)

    def abort(self) -> None:
        """Drops the connection."""
        if self._transport:
            self._transport.abort()
