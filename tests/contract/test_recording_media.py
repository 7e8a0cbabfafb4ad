"""Two voices through a real rtpengine into real recorder processes that are killed, frozen and replaced: what
the joined file has of them. The commands are those of the edge."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from array import array
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from containers import why_not
from real_rtpengine import IMAGE, RealRtpengine

from ari_ha.adapters.recorder import Recorder, RecorderOptions
from ari_ha.adapters.rtpengine import Rtpengine
from ari_ha.cli.recording import find
from ari_ha.core.machine import Done
from ari_ha.core.ports.media import NgCommand
from ari_ha.core.ports.recording import CloseRecording, OpenRecording
from ari_ha.farend.rtp import set_voice, voice_buffer
from ari_ha.machines.edge_audio import AudioSide
from ari_ha.machines.edge_recorder import RecorderLeg
from ari_ha.sip.sdp import SessionDescription, build_audio_sdp
from ari_ha.wire.recording import RATE_HZ, Joined, join

pytestmark = pytest.mark.lab
CALL = "k1"
HZ = {"c": 400, "a1": 1000}
WINDOW_S, LOUD = 0.2, 1000
NODES = ("ast1", "ast2", "ast3")
BEFORE_S, AFTER_S = 2.0, 3.0


class Conversation:
    """Two phones that talk without a pause, and the recorders of three nodes."""

    def __init__(self, relay: Rtpengine, spool: Path) -> None:
        self.relay = relay
        self.spool = spool
        self.recorders = {node: self._recorder(node) for node in NODES}
        self.phones: dict[str, socket.socket] = {}
        self.to: dict[str, tuple[str, int]] = {}
        self.number = 0
        self.talking: asyncio.Task[None] | None = None
        self.copies: dict[tuple[str, str], RecorderLeg] = {}

    def _recorder(self, node: str) -> Recorder:
        options = RecorderOptions(node, str(self.spool / node), "127.0.0.1", (42_000, 49_998), 1, 10)
        return Recorder(options, lambda event: None)

    async def ng(self, command: str, **body: Any) -> Any:
        said = {"call-id": CALL, **{name.replace("_", "-"): value for name, value in body.items()}}
        outcome = await self.relay.perform(NgCommand(lane="m", command=command, body=said, limit_s=5.0))
        assert isinstance(outcome, Done), (command, body, outcome)
        return outcome.value

    async def create(self, tag: str, interface: str) -> tuple[str, int]:
        codec = {"offer": ["PCMA", "telephone-event"]}
        reply = await self.ng("create", from_tag=tag, interface=interface, codec=codec)
        session = SessionDescription.parse(reply["sdp"])
        audio = session.audio()
        assert audio is not None
        return audio.connection or session.connection or "", audio.port

    async def connect(self, listener: str, speaker: str, command: str = "connect") -> None:
        await self.ng(command, from_tag=speaker, to_tag=listener, flags=["directional"])

    async def begin(self) -> None:
        """The two hear each other; ast1 and ast2 record both."""
        for leg in HZ:
            sock = self.phones[leg] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind(("127.0.0.1", 0))
            self.to[leg] = await self.create(leg, "public")
            sdp = build_audio_sdp(1, 1, *sock.getsockname(), [(8, "PCMA/8000")], 101, "sendrecv")
            await self.ng("create answer", from_tag=leg, sdp=sdp)
        await self.connect("c", "a1")
        await self.connect("a1", "c")
        self.talking = asyncio.create_task(self._talk())
        for node in NODES[:2]:
            await self.record(node)

    async def _talk(self) -> None:
        packets = {leg: voice_buffer(n, 1000 + n, hertz) for n, (leg, hertz) in enumerate(HZ.items())}
        begin = time.monotonic()
        while True:
            self.number += 1
            for leg, packet in packets.items():
                timestamp = self.number * 160 & 0xFFFFFFFF
                set_voice(packet, 8, self.number & 0xFFFF, timestamp, self.number, False)
                self.phones[leg].sendto(packet, self.to[leg])
            await asyncio.sleep(max(0.0, begin + self.number * 0.02 - time.monotonic()))

    async def record(self, node: str) -> None:
        """As the edge does it."""
        for leg in HZ:
            one = RecorderLeg(f"{node}{leg}{self.number}", leg, node, f"{leg}/rec@{node}.1", AudioSide())
            one.host, one.port = await self.create(one.tag, "core")
            order = OpenRecording(
                recording=one.recording, call=CALL, leg=leg, host=one.host, port=one.port, payload=8
            )
            outcome = await self.recorders[node].perform(order)
            assert isinstance(outcome, Done), outcome
            one.at = outcome.value
            await self.ng("create answer", from_tag=one.tag, sdp=one.remote_sdp())
            await self.connect(one.tag, leg)
            self.copies[node, leg] = one

    async def lose(self, node: str) -> None:
        for leg in HZ:
            await self.connect(self.copies.pop((node, leg)).tag, leg, "unsubscribe")

    async def end(self) -> Joined:
        for (node, _), one in self.copies.items():
            await self.recorders[node].perform(CloseRecording(recording=one.recording))
        end = time.monotonic() + 10
        parts = find(CALL, [self.spool])
        while sum(part.ended for part in parts) < len(self.copies):
            assert time.monotonic() < end, [(part.name.text, part.ended) for part in parts]
            await asyncio.sleep(0.05)
            parts = find(CALL, [self.spool])
        return join(parts)


@pytest.fixture
async def conversation(tmp_path: Path) -> AsyncIterator[Conversation]:
    if why := why_not(IMAGE):
        pytest.skip(why)
    container = RealRtpengine()
    relay = Rtpengine("127.0.0.1", container.port, lambda event: None)
    await relay.start()
    talk = Conversation(relay, tmp_path)
    end = time.monotonic() + 20
    while not isinstance(
        await relay.perform(NgCommand(lane="m", command="ping", body={}, limit_s=1.0)), Done
    ):
        assert time.monotonic() < end, "rtpengine does not answer"
    await talk.begin()
    yield talk
    if talk.talking:
        talk.talking.cancel()
    for recorder in talk.recorders.values():
        recorder.close()
    for sock in talk.phones.values():
        sock.close()
    relay.close()
    container.remove()


def silent(side: array, seconds: float) -> list[float]:
    """Begins of the windows in which nobody speaks, first and last moments left out."""
    found = []
    for n in range(1, int((seconds - 0.2) / WINDOW_S)):
        window = side[int(n * WINDOW_S * RATE_HZ) : int((n + 1) * WINDOW_S * RATE_HZ)]
        if (sum(s * s for s in window) / len(window)) ** 0.5 < LOUD:
            found.append(round(n * WINDOW_S, 1))
    return found


def whole(joined: Joined) -> None:
    print(f"{joined.seconds:.2f} s, packets {joined.legs}, gaps {joined.gaps}, clocks {joined.clocks}")
    assert joined.gaps == [] and joined.seconds > BEFORE_S + AFTER_S
    assert silent(joined.left, joined.seconds) == [] and silent(joined.right, joined.seconds) == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_one_of_two_is_lost_and_a_third_comes_later(conversation: Conversation, how: int) -> None:
    """Killed, or hung: for half a second only one is left."""
    await asyncio.sleep(BEFORE_S)
    os.kill(conversation.recorders["ast1"].pid or 0, how)
    await asyncio.sleep(0.5)
    await conversation.lose("ast1")
    await conversation.record("ast3")
    await asyncio.sleep(AFTER_S)
    joined = await conversation.end()
    whole(joined)
    assert set(joined.clocks) == set(NODES)


async def test_all_are_exchanged_one_after_the_other(conversation: Conversation) -> None:
    """A drain of one node, then of the next: make before break."""
    await asyncio.sleep(BEFORE_S)
    for leaves, comes in (("ast1", "ast3"), ("ast2", "ast1")):
        gone = [one for (node, _), one in conversation.copies.items() if node == leaves]
        await conversation.record(comes)
        await conversation.lose(leaves)
        for one in gone:
            await conversation.recorders[leaves].perform(CloseRecording(recording=one.recording))
        await asyncio.sleep(AFTER_S / 2)
    whole(await conversation.end())


async def test_both_are_lost_at_once_and_it_is_told(conversation: Conversation) -> None:
    """What is missing is as long as nobody recorded, and no longer."""
    await asyncio.sleep(BEFORE_S)
    for node in ("ast1", "ast2"):
        os.kill(conversation.recorders[node].pid or 0, signal.SIGKILL)
    killed = time.monotonic()
    await asyncio.sleep(0.4)
    await conversation.record("ast3")
    away_ms = (time.monotonic() - killed) * 1000
    for node in ("ast1", "ast2"):
        await conversation.lose(node)
    await asyncio.sleep(AFTER_S)
    joined = await conversation.end()
    print(f"nobody recorded for {away_ms:.0f} ms: {joined.gaps}")
    assert {gap.leg for gap in joined.gaps} == {"c", "a1"} and len(joined.gaps) == 2
    assert all(300 < gap.ms < away_ms + 100 for gap in joined.gaps)
