"""Connections to the public side on real sockets: whoever holds them for nothing."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from ari_ha.adapters import doors, sip_websocket
from ari_ha.adapters.doors import Door, Room
from ari_ha.adapters.sip import SipSockets
from ari_ha.adapters.sip_websocket import WebSocketListener
from ari_ha.core.ports.sip import SipBytes
from tests.unit.test_certificates import certificate, of, until

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


@pytest.fixture
async def sockets() -> AsyncIterator[SipSockets]:
    told: list[Any] = []
    one = SipSockets(told.append)
    one.told = told  # type: ignore[attr-defined]
    yield one
    one.close()


async def refused(reader: asyncio.StreamReader) -> bool:
    try:
        return await asyncio.wait_for(reader.read(1), 5) == b""
    except ConnectionError:
        return True


async def test_one_address_does_not_take_every_connection(
    sockets: SipSockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doors, "CONNECTIONS_PER_HOST_MAX", 3)
    await sockets.listen_tcp("public-tcp", "127.0.0.1", 0)
    port = sockets._doors[0].port
    some = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
    await until(lambda: len(sockets.room) == 3)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    assert await refused(reader)
    other = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
    other[1].write(b"x")
    await until(lambda: any(isinstance(e, SipBytes) for e in sockets.told))  # type: ignore[attr-defined]
    for _, one in (*some, other):
        one.close()
    writer.close()
    await until(lambda: len(sockets.room) == 0)


@needs_openssl
async def test_a_handshake_that_is_never_finished_is_counted(
    sockets: SipSockets, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doors, "CONNECTIONS_PER_HOST_MAX", 2)
    monkeypatch.setattr(doors, "TLS_HANDSHAKE_LIMIT_S", 0.3)
    ours = certificate(tmp_path / "a", "edge.example")
    certificates = of(ours, ours / "cert.pem")
    await sockets.listen_tls("public-tls", "127.0.0.1", 0, certificates)
    port = sockets._doors[0].port
    mute = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
    await until(lambda: len(sockets.room) == 2)
    assert await refused(mute[2][0])
    await until(lambda: len(sockets.room) == 0)
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=certificates.client, server_hostname="edge.example"
    )
    writer.write(b"y")
    await until(lambda: any(isinstance(e, SipBytes) for e in sockets.told))  # type: ignore[attr-defined]
    for _, one in (*mute, (reader, writer)):
        one.close()
    await until(lambda: len(sockets.room) == 0)


@needs_openssl
async def test_a_slow_handshake_gives_nobody_a_connection_for_good(
    sockets: SipSockets, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before: who took longer for TLS than the limit for becoming a WebSocket was never looked at again."""
    monkeypatch.setattr(sip_websocket, "UPGRADE_LIMIT_S", 0.2)
    ours = certificate(tmp_path / "a", "edge.example")
    certificates = of(ours, ours / "cert.pem")
    listener = WebSocketListener(sockets, "public-wss", "wss")
    await listener.start("127.0.0.1", 0, certificates.server)
    try:
        far = socket.create_connection(("127.0.0.1", listener.port))
        far.setblocking(False)
        await until(lambda: len(sockets.room) == 1)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await until(lambda: loop.time() > begun + 0.4)  # longer than the limit, shorter than a handshake may
        reader, writer = await asyncio.open_connection(
            sock=far, ssl=certificates.client, server_hostname="edge.example"
        )
        assert await refused(reader)
        await until(lambda: len(sockets.room) == 0)
        writer.close()
    finally:
        await listener.stop()


class Closed:
    """A transport that says when it was aborted."""

    def __init__(self) -> None:
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True


def taken(room: Room, host: str) -> tuple[doors.Place, Closed]:
    place, transport = room.take(host), Closed()
    assert place is not None
    place.transport = transport  # type: ignore[assignment]
    return place, transport


def test_where_there_is_no_room_whoever_is_silent_for_long_makes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "CONNECTIONS_MAX", 3)
    now = [0.0]
    clock: Callable[[], float] = lambda: now[0]  # noqa: E731
    room = Room(clock)
    first, second, third = (taken(room, f"10.0.0.{n}") for n in range(3))
    now[0] = doors.SILENT_S - 1
    first[0].heard()
    assert room.take("10.0.0.9") is None, "nobody has been silent for long"
    now[0] = doors.SILENT_S + 1
    taken(room, "10.0.0.9")
    assert second[1].aborted and not first[1].aborted and not third[1].aborted
    second[0].leave()
    second[0].heard()
    assert len(room) == 3, "whoever was sent away does not leave a second time"
    for place, _ in (first, third):
        place.leave()
    assert len(room) == 1


def test_one_address_makes_room_for_itself_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "CONNECTIONS_PER_HOST_MAX", 2)
    now = [0.0]
    room = Room(lambda: now[0])
    other = taken(room, "10.0.0.1")
    mine = [taken(room, "10.0.0.2") for _ in range(2)]
    now[0] = doors.SILENT_S + 1
    taken(room, "10.0.0.2")
    assert mine[0][1].aborted and not other[1].aborted


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_the_same_port_can_be_opened_again_at_once(loop: Any) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(opened_again())


async def opened_again() -> None:
    room = Room(asyncio.get_running_loop().time)
    heard: list[bytes] = []

    class Ear(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            heard.append(data)

    door = Door(room, Ear)
    door.open("127.0.0.1", 0)
    port = door.port
    for text in (b"one", b"two"):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(text)
        await until(lambda text=text: text in heard)
        writer.close()
        door.close()
        door = Door(room, Ear)
        door.open("127.0.0.1", port)
    door.close()
