"""What a guard says to the kernel, to the relay and to its peer, byte by byte."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from ari_ha.adapters.addresses import (
    ARP_REPLY,
    ARP_REQUEST,
    RTM_NEWADDR,
    AddressError,
    SharedAddress,
    address_message,
    arp_frame,
    device_of,
)
from ari_ha.adapters.datagrams import WordSocket
from ari_ha.adapters.fence import Fenced, opening, rules
from ari_ha.adapters.relay_control import RelayControl, RelayControlSettings
from ari_ha.core.machine import Done, Refused, Unreachable
from ari_ha.runtime.settings import SettingsError, build
from ari_ha.wire.beat import Beat, EdgeWord, RoleWord, seal, unseal
from sidecars.guard.settings import GuardSettings

KEY = b"0123456789abcdef"
SHARED = SharedAddress("192.0.2.10", "eth7", 7, b"\x02\x00\x00\x00\x00\x07")


@pytest.mark.parametrize(
    "word",
    [
        Beat(vip="pair1", edge="edge1", process="a", n=3, active=True, revision=9, heard=2),
        EdgeWord(edge="edge1", process="p", warm=True),
        RoleWord(edge="edge1", process="p", revision=9, after=8),
    ],
)
def test_a_word_arrives_as_it_was_said(word: Any) -> None:
    data = seal(KEY, word)
    assert unseal(KEY, data) == word and len(data) < 500


@pytest.mark.parametrize("n", [0, 31, 32, 40])
def test_a_changed_datagram_is_nobodys(n: int) -> None:
    data = bytearray(seal(KEY, Beat(vip="pair1", edge="edge1", process="a", n=3)))
    data[n] ^= 1
    assert unseal(KEY, bytes(data)) is None
    assert unseal(b"another key of it", bytes(data)) is None and unseal(KEY, b"") is None


def test_a_field_of_a_later_version_is_ignored() -> None:
    import hashlib
    import hmac

    body = b'{"type":"RoleWord","edge":"e","process":"p","revision":4,"later":{"x":[1]}}'
    word = unseal(KEY, hmac.digest(KEY, body, hashlib.sha256) + body)
    assert word == RoleWord(edge="e", process="p", revision=4)


def test_an_arp_announcement() -> None:
    frame = arp_frame(SHARED.hardware, SHARED.address, ARP_REQUEST)
    assert frame[:6] == b"\xff" * 6 and frame[6:12] == SHARED.hardware and frame[12:14] == b"\x08\x06"
    assert struct.unpack("!HHBBH", frame[14:22]) == (1, 0x0800, 6, 4, ARP_REQUEST)
    assert frame[22:28] == SHARED.hardware
    assert frame[28:32] == frame[38:42] == socket.inet_aton(SHARED.address)
    assert arp_frame(SHARED.hardware, SHARED.address, ARP_REPLY)[20:22] == b"\x00\x02"


def test_an_address_request_is_what_the_kernel_reads() -> None:
    message = address_message(RTM_NEWADDR, 0x400, 5, SHARED)
    length, kind, flags, serial, _ = struct.unpack_from("=IHHII", message)
    assert (length, kind, flags, serial) == (len(message), 20, 0x405, 5)
    assert struct.unpack_from("=BBBBI", message, 16) == (socket.AF_INET, 32, 0, 0, 7)
    assert message.count(socket.inet_aton(SHARED.address)) == 2


def test_a_device_is_found_by_its_first_address() -> None:
    assert device_of("127.0.0.1")[0] == "lo"
    with pytest.raises(AddressError):
        device_of("192.0.2.77")


def test_the_fence_covers_arp_and_ip_both_ways() -> None:
    text = rules([Fenced(SHARED.address, SHARED.device)])
    for needed in ("hook ingress device eth7", "hook egress device eth7", "arp daddr ip", "arp saddr ip",
                   "ip daddr 192.0.2.10 ip daddr != @alive drop", "ip saddr"):  # fmt: skip
        assert needed in text
    add, delete, again = opening([SHARED.address], 0.25).splitlines()
    assert add == again and "timeout 250ms" in add and delete.startswith("delete element")


def test_of_an_address_that_stays_only_the_ports_are_fenced() -> None:
    text = rules([Fenced("192.0.2.11", "eth7", ("5060", "30000-34999"))])
    for protocol in ("udp", "tcp"):
        for side, port in (("daddr", "dport"), ("saddr", "sport")):
            ports = f"{protocol} {port} {{ 5060, 30000-34999 }}"
            assert f"ip {side} 192.0.2.11 ip {side} != @alive {ports} drop;" in text
    assert "arp" not in text, "its host must be found while it stands by"


async def test_words_go_both_ways_and_strangers_are_not_heard() -> None:
    heard: list[Any] = []
    ear = WordSocket(KEY, ("127.0.0.1", 9), heard.append)
    await ear.start("127.0.0.1", 0)
    for number, key in enumerate((KEY, b"another key of it"), 1):
        mouth = WordSocket(key, ("127.0.0.1", ear.port), heard.append)
        await mouth.start("127.0.0.1", 0)
        mouth.send(EdgeWord(edge="e", process="p"))
        async with asyncio.timeout(30):
            while len(heard) + ear.refused < number:
                await asyncio.sleep(0.005)
        mouth.close()
    assert [event.word for event in heard] == [EdgeWord(edge="e", process="p")] and ear.refused == 1
    ear.close()
    with pytest.raises(ValueError, match="key"):
        WordSocket(b"short", ("127.0.0.1", 9), heard.append)


class Far:
    """rtpengine's control port and valkey, as far as a guard speaks to them."""

    def __init__(self, events: str = "xeg$K") -> None:
        self.events = events
        self.heard: list[str] = []

    async def __aenter__(self) -> RelayControl:
        self.cli = await asyncio.start_server(self._cli, "127.0.0.1", 0)
        self.valkey = await asyncio.start_server(self._valkey, "127.0.0.1", 0)
        return RelayControl(
            RelayControlSettings(
                cli=self.cli.sockets[0].getsockname(),
                store=self.valkey.sockets[0].getsockname(),
                password="secret",
                database=1,
                restart=("true",),
            )
        )

    async def __aexit__(self, *_: object) -> None:
        self.cli.close()
        self.valkey.close()

    async def _cli(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heard.append((await reader.readline()).decode().strip())
        writer.write(b"Ok, all calls set to 'owned (active)'\n")
        writer.close()

    async def _valkey(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readline():
            words = []
            for _ in range(int(head[1:])):
                await reader.readline()
                words.append((await reader.readline()).decode().strip())
            self.heard.append(" ".join(words))
            if words[0] == "CONFIG":
                writer.write(b"*2\r\n$22\r\nnotify-keyspace-events\r\n$%d\r\n%s\r\n"
                             % (len(self.events), self.events.encode()))  # fmt: skip
            else:
                writer.write(b"+OK\r\n" if words != ["AUTH", "wrong"] else b"-WRONGPASS no\r\n")
        writer.close()


async def test_the_relay_is_told_and_its_store_emptied() -> None:
    far = Far()
    async with far as control:
        assert isinstance(await control.active(), Done)
        assert isinstance(await control.clean(), Done)
        assert await control.complaint() == ""
    assert far.heard[:4] == ["active", "AUTH secret", "SELECT 1", "FLUSHDB"]


@pytest.mark.parametrize(("events", "lacks"), [("", "$Kegx"), ("Kx", "$eg"), ("AK", ""), ("AKE", "")])
async def test_a_store_that_notifies_of_too_little_is_found(events: str, lacks: str) -> None:
    async with Far(events) as control:
        assert (await control.complaint()).endswith(lacks)


async def test_a_relay_that_is_away_is_an_outcome() -> None:
    far = Far()
    async with far as control:
        pass
    assert isinstance(await control.active(), Unreachable)
    assert isinstance(await control.clean(), Unreachable | Refused)
    assert await control.complaint() == ""


MOVES = {"shared": "10.0.0.10", "own": "10.0.0.11", "peer": "10.0.0.12"}
STAYS = {"own": "10.0.0.11", "peer": "10.0.0.12", "ports": ["5060", "30000-34999"]}


def settings(**changes: Any) -> GuardSettings:
    given = {
        "cluster": "c", "edge": "edge1", "peer": "edge2", "vip": "pair1",
        "etcd": {"endpoints": ["127.0.0.1:2379"]}, "key_file": "/k",
        "networks": {"core": {"shared": "10.0.0.10", "own": "10.0.0.11", "peer": "10.0.0.12"}},
    }  # fmt: skip
    return build(GuardSettings, {**given, **changes})


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"peer": "edge1"}, "its own name"),
        ({"networks": {}}, "no address"),
        ({"networks": {"core": {**MOVES, "own": "10.0.0.10"}}}, "different"),
        ({"networks": {"core": {"own": "10.0.0.11", "peer": "10.0.0.11", "ports": ["5060"]}}}, "different"),
        ({"networks": {"core": {"own": "10.0.0.11", "peer": "10.0.0.12"}}}, "ports"),
        ({"networks": {"core": {"own": "10.0.0.11", "peer": "10.0.0.12", "ports": ["6-5"]}}}, "'6-5'"),
        ({"networks": {"core": {**MOVES, "ports": ["5060"]}}}, "as a whole"),
        ({"networks": {"core": MOVES, "public": STAYS}}, "either every"),
        ({"timings": {"fence_ttl_s": 0.4}}, "frozen owner"),
        ({"timings": {"fence_ttl_s": 0.1}}, "living calls"),
    ],
)
def test_settings_that_could_do_harm_are_refused(changes: dict[str, Any], why: str) -> None:
    assert settings().timings.detect_s == pytest.approx(0.3)
    with pytest.raises(SettingsError, match=why):
        settings(**changes)


def test_a_pair_without_an_address_that_moves() -> None:
    both = settings(networks={"core": STAYS, "public": {**STAYS, "own": "10.1.0.11"}})
    assert not any(network.shared for network in both.networks.values())


def test_the_example_can_be_used() -> None:
    root = Path(__file__).resolve().parents[2]
    example = build(GuardSettings, json.loads((root / "sidecars/guard/guard.example.json").read_text()))
    assert (example.peer, example.relay.store.database) == ("edge2", 1)
