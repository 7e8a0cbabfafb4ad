"""The node link over real sockets and TLS on loopback."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time

import pytest

from ari_ha.adapters.link import LinkDialer, LinkListener, LinkSettings
from ari_ha.core.ports.link import LinkDown, LinkReceived, LinkUp
from ari_ha.wire.link import Bridged, EdgeHello, LegRinging, NodeHello

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes the test certificates")


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="session")
def pki(tmp_path_factory):
    """Settings by name: ``pki("node-a")``; ``pki("x", "other")`` is of a foreign authority."""
    root = tmp_path_factory.mktemp("pki")

    def settings(name: str, authority: str = "ca", **changes) -> LinkSettings:
        ca, cert = root / authority, root / f"{authority}-{name}"
        new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
        if not ca.with_suffix(".pem").exists():
            openssl("req", "-x509", *new_key, "-days", "2", "-subj", f"/CN={authority}",
                    "-keyout", f"{ca}.key", "-out", f"{ca}.pem")  # fmt: skip
        if not cert.with_suffix(".pem").exists():
            openssl("req", *new_key, "-subj", f"/CN={name}", "-keyout", f"{cert}.key", "-out", f"{cert}.csr")
            openssl("x509", "-req", "-days", "2", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key",
                    "-CAcreateserial", "-in", f"{cert}.csr", "-out", f"{cert}.pem")  # fmt: skip
        values = {"ping_every_ms": 50, "silence_limit_ms": 400, "retry_first_ms": 20, "retry_last_ms": 50}
        return LinkSettings(
            ca_file=f"{root}/ca.pem", cert_file=f"{cert}.pem", key_file=f"{cert}.key", **(values | changes)
        )

    return settings


class Mail(list):
    """What an adapter posted; with ``room`` False it takes nothing."""

    room = True

    def post(self, event) -> bool:
        if self.room:
            self.append(event)
        return self.room

    async def until(self, kind: type, number: int = 1, limit_s: float = 30.0):
        end = time.monotonic() + limit_s
        while True:
            found = [event for event in self if isinstance(event, kind)]
            if len(found) >= number:
                return found[number - 1]
            assert time.monotonic() < end, f"no {kind.__name__} number {number} in {self}"
            await asyncio.sleep(0.01)


class Pair:
    """A listener ``node-a`` and a dialer ``edge-1``."""

    def __init__(self, pki, node="node-a", edge="edge-1", expected="node-a", edge_ca="ca", **changes):
        self.node_mail, self.edge_mail = Mail(), Mail()
        self.node = LinkListener(pki(node, **changes), "127.0.0.1", 0, self.node_mail.post)
        self.edge_settings, self.expected = pki(edge, edge_ca, **changes), expected
        self.edge = None

    async def __aenter__(self):
        await self.node.start()
        self.edge = self.dialer(self.node.port)
        await self.edge.start()
        return self

    def dialer(self, port: int) -> LinkDialer:
        return LinkDialer(
            self.edge_settings, self.expected, "127.0.0.1", port, self.edge_mail.post, jitter=lambda: 0.5
        )

    async def __aexit__(self, *exc):
        await self.edge.stop()
        await self.node.stop()

    async def up(self):
        await asyncio.gather(self.node_mail.until(LinkUp), self.edge_mail.until(LinkUp))

    async def greeted(self):
        await self.up()
        assert self.edge.send("node-a", EdgeHello("edge-1"))
        assert self.node.send("edge-1", NodeHello("node-a"))
        await asyncio.gather(self.node_mail.until(LinkReceived), self.edge_mail.until(LinkReceived))


async def test_up_hello_and_frames_both_ways(pki):
    async with Pair(pki) as pair:
        await pair.greeted()
        pair.edge.send("node-a", LegRinging("k1", "a", "7.1"))
        pair.node.send("edge-1", Bridged("k1", "7.1", ["c", "a"]))
        at_node = await pair.node_mail.until(LinkReceived, 2)
        at_edge = await pair.edge_mail.until(LinkReceived, 2)
        assert (at_node.peer, at_node.frame) == ("edge-1", LegRinging("k1", "a", "7.1"))
        assert (at_edge.peer, at_edge.frame) == ("node-a", Bridged("k1", "7.1", ["c", "a"]))
        assert pair.node.peers == ["edge-1"] and pair.edge.peers == ["node-a"]
        await asyncio.sleep(0.6)  # longer than the silence limit: pings keep it
        assert pair.edge.round_trip_s("node-a") < 0.4
        assert not [event for event in pair.edge_mail + pair.node_mail if isinstance(event, LinkDown)]


async def test_the_far_process_gone_is_seen_at_once_and_dialled_again(pki):
    async with Pair(pki) as pair:
        await pair.greeted()
        port = pair.node.port
        await pair.node.stop()
        down = await pair.edge_mail.until(LinkDown)
        assert down.clean and down.peer == "node-a", "told by the connection, not by silence"
        assert not pair.edge.send("node-a", LegRinging("k1"))
        pair.node = LinkListener(pki("node-a"), "127.0.0.1", port, pair.node_mail.post)
        await pair.node.start()
        await pair.edge_mail.until(LinkUp, 2)


async def test_what_was_sent_before_a_stop_arrives(pki):
    async with Pair(pki) as pair:
        await pair.greeted()
        for number in range(200):
            pair.node.send("edge-1", Bridged(f"k{number}", "7.1", ["c" * 1000]))
        await pair.node.stop()
        await pair.edge_mail.until(LinkDown)
        assert len([event for event in pair.edge_mail if isinstance(event, LinkReceived)]) == 201


async def test_full_mailbox_ends_the_link_and_is_told_later(pki):
    async with Pair(pki) as pair:
        await pair.greeted()
        pair.edge_mail.room = False
        pair.node.send("edge-1", Bridged("k1", "7.1", []))
        await asyncio.sleep(0.2)
        pair.edge_mail.room = True
        await pair.edge_mail.until(LinkUp, 2)
        kinds = [type(event).__name__ for event in pair.edge_mail]
        assert kinds[:4] == ["LinkUp", "LinkReceived", "LinkDown", "LinkUp"]


async def test_silence_is_a_link_lost_uncleanly(pki):
    """A relay between the two stops relaying, which is what a cut cable looks like."""
    async with Pair(pki) as pair:
        await pair.edge.stop()
        pair.edge_mail.clear()
        relay = Relay(pair.node.port)
        pair.edge = pair.dialer(await relay.start())
        await pair.edge.start()
        await pair.greeted()
        relay.frozen = True
        began = time.monotonic()
        down = await pair.edge_mail.until(LinkDown)
        assert not down.clean and "silent" in down.reason
        assert time.monotonic() - began > 0.35
        relay.frozen = False
        await pair.edge_mail.until(LinkUp, 2)
        await pair.edge.stop()
        relay.close()


async def test_own_stall_is_not_the_far_ends_silence(pki):
    async with Pair(pki) as pair:
        await pair.greeted()
        time.sleep(1.0)  # both ends live on this loop: neither could speak
        await asyncio.sleep(0.5)
        assert not [event for event in pair.edge_mail + pair.node_mail if isinstance(event, LinkDown)]


async def test_foreign_certificate_never_gets_a_link(pki):
    async with Pair(pki, edge_ca="foreign") as pair:
        await asyncio.sleep(0.5)
        assert pair.edge_mail == [] and pair.node_mail == []
        assert pair.edge.trouble


async def test_wrong_node_behind_the_address_is_refused(pki):
    async with Pair(pki, expected="node-b") as pair:
        await asyncio.sleep(0.4)
        assert pair.edge_mail == []
        assert "node-b" in pair.edge.trouble


async def test_hello_must_say_the_certificates_name(pki):
    async with Pair(pki) as pair:
        await pair.up()
        pair.edge.send("node-a", EdgeHello("edge-9"))
        down = await pair.node_mail.until(LinkDown)
        assert "edge-9" in down.reason and not down.clean
        assert not [event for event in pair.node_mail if isinstance(event, LinkReceived)]


async def test_hello_comes_first(pki):
    async with Pair(pki) as pair:
        await pair.up()
        pair.edge.send("node-a", LegRinging("k1", "a", "7.1"))
        assert "before EdgeHello" in (await pair.node_mail.until(LinkDown)).reason


async def test_second_link_of_an_edge_replaces_the_first(pki):
    async with Pair(pki) as pair:
        await pair.greeted()
        second = Mail()
        other = LinkDialer(pair.edge_settings, "node-a", "127.0.0.1", pair.node.port, second.post)
        await other.start()
        await second.until(LinkUp)
        await pair.node_mail.until(LinkUp, 2)
        kinds = [type(event).__name__ for event in pair.node_mail if not isinstance(event, LinkReceived)]
        assert kinds[:3] == ["LinkUp", "LinkDown", "LinkUp"]
        await pair.edge.stop()
        await other.stop()


async def test_far_end_that_does_not_read_loses_the_link(pki):
    async with Pair(pki, silence_limit_ms=5000, write_buffer_max_bytes=1_000_000) as pair:
        await pair.edge.stop()
        pair.edge_mail.clear()
        pair.node_mail.clear()
        relay = Relay(pair.node.port)
        pair.edge = pair.dialer(await relay.start())
        await pair.edge.start()
        await pair.greeted()
        relay.frozen = True
        big = LegRinging("k" * 500_000)
        for _ in range(60):
            pair.edge.send("node-a", big)
            await asyncio.sleep(0)
        assert "does not read" in (await pair.edge_mail.until(LinkDown)).reason
        await pair.edge.stop()
        relay.close()


async def test_link_silence_limit_must_leave_room_for_pings(pki):
    with pytest.raises(ValueError, match="ping more often"):
        LinkDialer(pki("edge-1", silence_limit_ms=100), "node-a", "127.0.0.1", 1, print)


class Relay:
    """Copies bytes between two sockets until ``frozen``."""

    def __init__(self, port: int) -> None:
        self._port, self.frozen, self._tasks, self._writers = port, False, [], []

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=65536)
        return self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader, writer):
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        for sock in (writer.get_extra_info("socket"), far_writer.get_extra_info("socket")):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        self._writers += [writer, far_writer]
        for ends in ((reader, far_writer), (far_reader, writer)):
            self._tasks.append(asyncio.create_task(self._copy(*ends)))

    async def _copy(self, reader, writer):
        while data := await reader.read(65536):
            while self.frozen:
                await asyncio.sleep(0.02)
            writer.write(data)
        writer.close()

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for writer in self._writers:
            writer.close()
        self._server.close()
