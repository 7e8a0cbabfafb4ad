"""SIP over WebSocket (RFC 7118): browsers connect, one message of theirs is one SIP message. We never connect
to them, so a connection that is gone is a way that is gone."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

from aiohttp import WSMsgType, web

from ari_ha.adapters.doors import Door
from ari_ha.adapters.sip import TCP_WRITE_BUFFER_MAX_BYTES, SipSockets
from ari_ha.core.ports.sip import SipBytes
from ari_ha.sip.flow import Flow
from ari_ha.sip.message import MESSAGE_MAX_BYTES

SUBPROTOCOL = "sip"
PING_EVERY_S = 10.0
"""A browser answers these by itself; one that does not within half of this is gone."""
UPGRADE_LIMIT_S = 5.0
"""From the end of its TLS handshake to its being a WebSocket; more is a way to hold it for nothing."""
STOP_LIMIT_S = 0.2


class WebSocketListener:
    """One address on which browsers are served. Every method belongs to the event loop."""

    def __init__(self, sockets: SipSockets, name: str, transport: str) -> None:
        """``name``: the listener's in flows. ``transport``: ws or wss."""
        self._sockets = sockets
        self._name = name
        self._transport = transport
        self._upgraded: set[Any] = set()
        self._door: Door | None = None
        app = web.Application()
        app.router.add_get("/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=STOP_LIMIT_S)

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        """Begins to listen. Raises OSError when the address is not ours."""
        await self._runner.setup()
        assert self._runner.server is not None
        self._door = Door(self._sockets.room, self._runner.server, tls, self._connected)
        self._door.open(host, port)

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._door is not None
        return self._door.port

    async def stop(self) -> None:
        """Stops listening and closes every connection."""
        if self._door:
            self._door.close()
        await self._runner.cleanup()

    def _connected(self, handler: Any) -> None:
        asyncio.get_running_loop().call_later(UPGRADE_LIMIT_S, self._impatient, handler)

    def _impatient(self, handler: Any) -> None:
        if handler not in self._upgraded and handler.transport is not None:
            handler.transport.abort()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(
            protocols=(SUBPROTOCOL,), heartbeat=PING_EVERY_S, max_msg_size=MESSAGE_MAX_BYTES, compress=False
        )
        ready, transport = socket.can_prepare(request), request.transport
        if not ready or ready.protocol != SUBPROTOCOL or transport is None:
            return web.Response(status=426, headers={"Upgrade": "websocket"}, text="SIP over WebSocket\n")
        host, port = transport.get_extra_info("peername")[:2]
        self._upgraded.add(request.protocol)
        try:
            await socket.prepare(request)
            await self._talk(socket, transport, host, port)
        finally:
            self._upgraded.discard(request.protocol)
        return socket

    async def _talk(self, socket: web.WebSocketResponse, transport: Any, host: str, port: int) -> None:
        stream = _WebStream(transport)
        name = self._sockets.opened(stream)
        stream.flow = Flow(self._name, self._transport, host, port, name)
        writing = asyncio.create_task(stream.send_on(socket))
        try:
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    data = message.data.encode("utf-8", "surrogateescape")
                elif message.type is WSMsgType.BINARY:
                    data = message.data
                else:
                    break
                self._sockets.post(SipBytes(data=data, flow=stream.flow))
        finally:
            writing.cancel()
            error = socket.exception()
            self._sockets.closed(stream, str(error) if error else "closed by the far end")


class _WebStream:
    """One browser's connection, as `SipSockets` knows streams."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._waiting = 0
        self.flow: Flow | None = None

    def write(self, data: bytes) -> None:
        """Sends; a far end that does not read is let go."""
        self._waiting += len(data)
        if self._waiting > TCP_WRITE_BUFFER_MAX_BYTES:
            self.abort()
            return
        self._queue.put_nowait(data)

    async def send_on(self, socket: web.WebSocketResponse) -> None:
        """Sends what is written, in order, as text where it is UTF-8."""
        while True:
            data = await self._queue.get()
            try:
                try:
                    await socket.send_str(data.decode())
                except UnicodeDecodeError:
                    await socket.send_bytes(data)
            except (ConnectionError, RuntimeError):  # it is closing
                return
            self._waiting -= len(data)

    def abort(self) -> None:
        """Drops the connection."""
        self._transport.abort()
