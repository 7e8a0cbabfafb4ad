"""rtpdump: RTP packets in a file, each with its arrival (the format of ``rtptools``, read by Wireshark).

A text line, a header with the start in UTC, then packets: each with its length and its milliseconds since
the start. Written only by appending, so a file that ends in the middle of a packet, because its writer was
killed or the disk was full, is good up to there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

LINE = b"#!rtpplay1.0 "
LINE_MAX_BYTES = 200
_START = struct.Struct("!II4sHH")
"""seconds, microseconds, source address, source port, padding"""
_PACKET = struct.Struct("!HHI")
"""length with this header, length of the RTP packet, milliseconds since the start"""
_RTP = struct.Struct("!BBHII")
PACKET_MAX_BYTES = 2_000
RTCP_BYE = 203


class NotRtpdump(ValueError):
    """The file does not begin as an rtpdump."""


@dataclass(frozen=True, slots=True)
class Packet:
    """One RTP packet (RFC 3550 §5.1)."""

    arrived: float
    """UTC seconds, by the clock of whoever recorded it"""
    payload_type: int
    sequence: int
    timestamp: int
    ssrc: int
    payload: bytes


def header(host: str, port: int, start_utc: float) -> bytes:
    """How a file of packets from ``host:port`` (IPv4) begins."""
    seconds, part = divmod(round(start_utc * 1_000_000), 1_000_000)
    address = bytes(int(number) for number in host.split("."))
    return LINE + f"{host}/{port}\n".encode() + _START.pack(seconds, part, address, port, 0)


def record(packet: bytes | memoryview, since_start_s: float) -> bytes:
    """One RTP packet as it is appended."""
    return _PACKET.pack(_PACKET.size + len(packet), len(packet), max(0, round(since_start_s * 1000))) + packet


def end_mark(since_start_s: float) -> bytes:
    """What is appended when the writer was told that this is the end: an RTCP BYE (RFC 3550 §6.6). A file
    without one was cut off."""
    bye = bytes((0x81, RTCP_BYE, 0, 1)) + bytes(4)
    return _PACKET.pack(_PACKET.size + len(bye), 0, max(0, round(since_start_s * 1000))) + bye


def audio_type(packet: bytes | memoryview) -> int:
    """The payload type of a packet that may be RTP; -1: it is none."""
    return packet[1] & 0x7F if len(packet) > _RTP.size and packet[0] & 0xC0 == 0x80 else -1


def read(data: bytes) -> tuple[list[Packet], bool]:
    """The RTP packets of a file, as far as it is whole, and whether it was ended in order. Raises
    NotRtpdump."""
    end = data.find(b"\n", 0, LINE_MAX_BYTES)
    if not data.startswith(LINE) or end < 0 or len(data) < end + 1 + _START.size:
        raise NotRtpdump("no rtpdump header")
    seconds, part, *_ = _START.unpack_from(data, end + 1)
    packets, ended = [], False
    for arrived, size, content in _records(data, end + 1 + _START.size, seconds + part / 1_000_000):
        ended = size == 0 and content[1:2] == bytes((RTCP_BYE,))
        if 0 < size <= len(content) and (packet := _parse(content[:size], arrived)):
            packets.append(packet)
    return packets, ended


def _records(data: bytes, at: int, start: float) -> Iterator[tuple[float, int, bytes]]:
    while at + _PACKET.size <= len(data):
        length, size, offset_ms = _PACKET.unpack_from(data, at)
        if length < _PACKET.size or size > PACKET_MAX_BYTES or at + length > len(data):
            return
        yield start + offset_ms / 1000, size, data[at + _PACKET.size : at + length]
        at += length


def _parse(packet: bytes, arrived: float) -> Packet | None:
    if audio_type(packet) < 0:
        return None
    first, second, sequence, timestamp, ssrc = _RTP.unpack_from(packet)
    begin = _RTP.size + 4 * (first & 0x0F)
    if first & 0x10 and len(packet) >= begin + 4:
        begin += 4 + 4 * int.from_bytes(packet[begin + 2 : begin + 4], "big")
    stop = len(packet) - (packet[-1] if first & 0x20 else 0)
    return Packet(arrived, second & 0x7F, sequence, timestamp, ssrc, packet[begin:stop])
