"""Connections to the public side, counted from the moment they are accepted.

What is counted later can be held for nothing: a TLS handshake that is never finished and a request that never
comes take a descriptor like any phone, and one process has a limited number of them, for etcd and its nodes
too. Where there is no room, whoever has said nothing for longer than any registered phone does makes it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

CONNECTIONS_MAX = 5_000
CONNECTIONS_PER_HOST_MAX = 500
"""Many phones may sit behind one address; one address may not take every connection."""
SILENT_S = 180.0
"""A registered phone says something sooner: its registration is renewed (`EdgeTimings.registration_s`)."""
TLS_HANDSHAKE_LIMIT_S = 10.0
"""More is a way to hold connections for nothing."""
ACCEPT_PAUSE_S = 0.1
"""Before the next try when the process has no descriptor left."""
BACKLOG_MAX = 512
ACCEPTED_PER_TURN_MAX = 16
"""Whoever knocks without end must not keep the loop from its other work."""


class Place:
    """One connection's place."""

    __slots__ = ("_room", "at", "host", "transport")

    def __init__(self, room: Room, host: str, at: float) -> None:
        self._room = room
        self.host = host
        self.at = at
        """When something was heard last, or when it was accepted"""
        self.transport: asyncio.Transport | None = None

    def heard(self) -> None:
        """Somebody is there."""
        self._room.heard(self)

    def leave(self) -> None:
        """Gives the place back; once is enough."""
        self._room.left(self)


class Room:
    """How many there are, and from where."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._all: OrderedDict[Place, None] = OrderedDict()
        """The one heard longest ago first"""
        self._of: dict[str, OrderedDict[Place, None]] = {}
        """Address -> the same"""

    def __len__(self) -> int:
        return len(self._all)

    def take(self, host: str) -> Place | None:
        """A place for a connection from this address; None: there is no room."""
        now, mine = self._clock(), self._of.get(host, OrderedDict())
        if len(mine) >= CONNECTIONS_PER_HOST_MAX:
            crowded = mine
        else:
            crowded = self._all if len(self._all) >= CONNECTIONS_MAX else OrderedDict()
        if crowded:
            silent = next(iter(crowded))
            if now - silent.at < SILENT_S:
                return None
            if silent.transport is not None:
                silent.transport.abort()
            silent.leave()
        place = Place(self, host, now)
        self._all[place] = None
        self._of.setdefault(host, OrderedDict())[place] = None
        return place

    def heard(self, place: Place) -> None:
        """Puts the place behind those that are silent for longer."""
        if place in self._all:
            place.at = self._clock()
            self._all.move_to_end(place)
            self._of[place.host].move_to_end(place)

    def left(self, place: Place) -> None:
        """Forgets the place."""
        if self._all.pop(place, self) is not self:
            mine = self._of[place.host]
            del mine[place]
            if not mine:
                del self._of[place.host]


class Door:
    """One TCP port. Every method belongs to the event loop."""

    def __init__(
        self,
        room: Room,
        make: Callable[[], asyncio.Protocol],
        tls: ssl.SSLContext | None = None,
        came: Callable[[Any], None] = lambda protocol: None,
    ) -> None:
        """``make``: the protocol of a new connection; ``came`` is called with it once it can be spoken to."""
        self._room = room
        self._make = make
        self._came = came
        self._tls: dict[str, Any] = {}
        if tls is not None:
            self._tls = {"ssl": tls, "ssl_handshake_timeout": TLS_HANDSHAKE_LIMIT_S}
        self._socket: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self, host: str, port: int) -> None:
        """Begins to listen. Raises OSError when the address is not ours."""
        self._socket = socket.create_server((host, port), backlog=BACKLOG_MAX)
        self._socket.setblocking(False)
        self._listen()

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._socket is not None
        return int(self._socket.getsockname()[1])

    def close(self) -> None:
        """Stops listening; who is in stays."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        for task in self._tasks:
            task.cancel()

    def _listen(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().add_reader(self._socket, self._accept, self._socket)

    def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(ACCEPTED_PER_TURN_MAX):
            try:
                connection, address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:
                loop.remove_reader(listening)
                loop.call_later(ACCEPT_PAUSE_S, self._listen)
                return
            place = self._room.take(address[0])
            if place is None:
                connection.close()
                continue
            connection.setblocking(False)
            # without it a 200 waits until the 100 before it is acknowledged
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = loop.create_task(self._let_in(connection, place))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _let_in(self, connection: socket.socket, place: Place) -> None:
        """From here the connection is the loop's to close."""
        guest = _Guest(self._make(), place)
        try:
            loop = asyncio.get_running_loop()
            await loop.connect_accepted_socket(lambda: guest, connection, **self._tls)
        except (OSError, ssl.SSLError, TimeoutError):
            place.leave()
        except asyncio.CancelledError:
            place.leave()
            raise
        else:
            self._came(guest.inner)


class _Guest(asyncio.Protocol):
    """A protocol, and its place."""

    def __init__(self, inner: asyncio.Protocol, place: Place) -> None:
        self.inner = inner
        self._place = place

    def connection_made(self, transport: Any) -> None:
        self._place.transport = transport
        self.inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._place.heard()
        self.inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self.inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._place.leave()
        self.inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self.inner.pause_writing()

    def resume_writing(self) -> None:
        self.inner.resume_writing()
