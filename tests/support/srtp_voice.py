"""One stream of numbered voice with SRTP keys in SDP (RFC 4568), or without: what a phone's media does.

Two kinds of phone are in use. One begins a new stream with every new key. The other keeps to RFC 3711 section
3.3.1: how often the numbers have gone round outlives a key, and only a far side at another address or port is
a new stream (RFC 4568 section 7.1.4)."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import time
from collections import Counter

from pylibsrtp import Error as SrtpError
from pylibsrtp import Policy, Session

from ari_ha.farend.rtp import (
    DIGIT,
    DIGIT_END_PACKETS,
    DIGIT_PACKETS,
    DIGITS,
    PACKET_MS,
    SAMPLES_PER_PACKET,
    VOICE,
    classify,
    digit_packet,
    set_voice,
    voice_buffer,
)  # fmt: skip
from ari_ha.sip.sdp import SessionDescription, build_audio_sdp, usable_crypto

SUITE = "AES_CM_128_HMAC_SHA1_80"
KEY_BYTES = 30
EVENT_PT = 101
STEP = 0x4000
"""A receiver follows a jump of less than half of the numbers."""


def _session(key: str, kind: int) -> Session:
    raw = base64.b64decode(key.removeprefix("inline:"))[:KEY_BYTES]
    return Session(Policy(key=raw, ssrc_type=kind, srtp_profile=Policy.SRTP_PROFILE_AES128_CM_SHA1_80))


def _packet(ssrc: int, sequence: int) -> bytes:
    packet = voice_buffer(0, ssrc, 400)
    set_voice(packet, 8, sequence & 0xFFFF, 0, 0, False)
    return bytes(packet)


class SrtpVoice:
    """A socket, what it sends and what it hears."""

    def __init__(
        self, host: str, stream: int, first: int = 0, *, srtp: bool = True, counts_on: bool = False,
        keeps_key: bool = True,
    ) -> None:  # fmt: skip
        """``first``: its first sequence number. ``counts_on``: the second kind of phone. ``keeps_key``: it
        answers a change with the key it had."""
        self.host, self.stream, self.ssrc = host, stream, 0x51000000 + stream
        self.number, self.first = 0, first
        self.srtp, self.counts_on, self.keeps_key = srtp, counts_on, keeps_key
        self.at: list[float] = []
        """When a voice packet was heard (monotonic)"""
        self.unreadable = 0
        self.clear = 0
        """Packets that came without encryption"""
        self.digits: Counter[tuple[int, int]] = Counter()
        """(event, timestamp) -> packets of it"""
        self.rounds = 0
        """How often the numbers of what it hears have gone round, at most"""
        self.keys = 0
        """Keys the far side has had"""
        self.talking = True
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((host, 0))
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]
        self._packet = voice_buffer(stream, self.ssrc, 350)
        self._version = 0
        self._tag = 1
        self._key = self._theirs = ""
        self._new_key()
        self._in: Session | None = None
        self._to: tuple[str, int] | None = None
        self._event_pt = EVENT_PT
        self._heard: dict[int, int] = {}
        """SSRC -> its last sequence number with the rounds"""
        self._due: list[str] = []
        self._tasks: list[asyncio.Task[None]] = []

    # its description

    def sdp(self, direction: str = "sendrecv") -> str:
        """What it says of itself."""
        self._version += 1
        line = f"{self._tag} {SUITE} {self._key}" if self.srtp else ""
        formats = [(8, "PCMA/8000")]
        return build_audio_sdp(
            self.stream, self._version, self.host, self.port, formats, EVENT_PT, direction, line
        )

    def take(self, sdp: str) -> None:
        """The far side's."""
        audio = SessionDescription.parse(sdp).audio()
        assert audio, sdp
        crypto = usable_crypto(audio)
        host = audio.connection or SessionDescription.parse(sdp).connection
        assert host and bool(crypto) == self.srtp, sdp
        moved, self._to = self._to not in (None, (host, audio.port)), (host, audio.port)
        self._event_pt = audio.telephone_event or EVENT_PT
        if crypto:
            self._tag = crypto.tag
            if crypto.key != self._theirs:
                self._new_far_key(crypto.key, moved)

    def _new_key(self) -> None:
        self._key = "inline:" + base64.b64encode(os.urandom(KEY_BYTES)).decode()
        self._out = _session(self._key, Policy.SSRC_ANY_OUTBOUND)

    def _new_far_key(self, key: str, moved: bool) -> None:
        self._theirs, self._in = key, _session(key, Policy.SSRC_ANY_INBOUND)
        self.keys += 1
        if self.keys > 1 and not self.keeps_key:
            self._new_key()
        if moved or not self.counts_on:
            self._heard = {}
            return
        helper = _session(key, Policy.SSRC_ANY_OUTBOUND)  # libsrtp is told the rounds by packets only
        for ssrc, index in self._heard.items():
            for number in (*range(index & 0xFFFF & ~(STEP - 1), index & ~(STEP - 1), STEP), index):
                self._in.unprotect(helper.protect(_packet(ssrc, number)))

    # packets

    def start(self) -> None:
        """It listens, and speaks."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._socket, self._read)
        self._tasks = [loop.create_task(self._talk())]

    def close(self) -> None:
        """It falls silent."""
        for task in self._tasks:
            task.cancel()
            task.get_loop().remove_reader(self._socket)
        self._socket.close()

    def press(self, digit: str) -> None:
        """Sends a digit by telephone-event (RFC 4733)."""
        self._due.append(digit)

    def digits_heard(self) -> str:
        """Every digit that came, once each, by their time."""
        return "".join(DIGITS[event] for event, _ in sorted(self.digits, key=lambda item: item[1]))

    def _read(self) -> None:
        while True:
            try:
                data = self._socket.recv(2000)
            except BlockingIOError:
                return
            if len(data) > 1 and 192 <= data[1] < 224:
                continue  # RTCP
            if self.srtp:
                self.clear += classify(data, len(data), self._event_pt)[0] == VOICE
                try:
                    data = self._in.unprotect(data) if self._in else b""
                except SrtpError:
                    self.unreadable += 1
                    continue
            self._take(data)

    def _take(self, data: bytes) -> None:
        kind, first, second, _ = classify(data, len(data), EVENT_PT)
        if kind in (VOICE, DIGIT):
            sequence, ssrc = int.from_bytes(data[2:4], "big"), int.from_bytes(data[8:12], "big")
            last = self._heard.get(ssrc, sequence)
            step = (sequence - last + 0x8000) % 0x10000 - 0x8000
            self._heard[ssrc] = last + max(step, 0)
            self.rounds = max(self.rounds, self._heard[ssrc] >> 16)
        if kind == VOICE:
            self.at.append(time.monotonic())
        elif kind == DIGIT:
            self.digits[first, second] += 1

    async def _talk(self) -> None:
        due, event, step = time.monotonic(), 0, 0
        while True:
            due += PACKET_MS / 1000
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self.number += 1
            stamp = self.number * SAMPLES_PER_PACKET
            if self._due:
                event = event or stamp
                step += 1
                end = step > DIGIT_PACKETS
                packet = digit_packet(
                    self._due[0], self._event_pt, self.first + self.number, event, self.ssrc,
                    min(step, DIGIT_PACKETS) * SAMPLES_PER_PACKET, first=step == 1, end=end,
                )  # fmt: skip
                if step == DIGIT_PACKETS + DIGIT_END_PACKETS:
                    self._due.pop(0)
                    event = step = 0
            else:
                set_voice(
                    self._packet, 8, self.first + self.number & 0xFFFF, stamp, self.number, self.number == 1
                )
                packet = bytes(self._packet)
            if self._to and self.talking:
                self._socket.sendto(self._out.protect(packet) if self.srtp else packet, self._to)
