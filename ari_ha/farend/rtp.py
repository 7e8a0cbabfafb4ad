"""RTP as the far ends send it (RFC 3550, RFC 3551, RFC 4733): every voice packet says whose it is and its
number.

The first bytes of a voice payload are a marker, the sending stream's id and a number counting up from 1;
the rest is a tone. Nothing between two ends of the same codec changes a payload byte, so what arrives can
be compared with what was sent. A payload without the marker is somebody else's audio: music, an
announcement, silence, or several voices that Asterisk has mixed, which keep their tones."""

from __future__ import annotations

import math
import struct
from operator import mul

PACKET_MS = 20
SAMPLES_PER_PACKET = 160
HEADER_BYTES = 12
PT_PCMA = 8
PT_PCMU = 0

CARRIER_HERTZ, PHONE_HERTZ = 400, 1_000
PITCHES_HZ = (CARRIER_HERTZ, PHONE_HERTZ)
"""Tones of the far ends' voices. Whole periods of each fill a packet: neither is found in the other."""
AMPLITUDE = 6_000
HEARD_AMPLITUDE = AMPLITUDE / 2
"""A voice louder than this is in a mix; of the lab's music, a fifth lower is found there (440 Hz)."""

MARKER = b"\xa5ARIHA\x5a\x91"
_HEADER = struct.Struct("!BBHII")
_MARK = struct.Struct("!8sII")
_EVENT = struct.Struct("!BBH")
NUMBER_OFFSET = HEADER_BYTES + len(MARKER) + 4

DIGITS = "0123456789*#ABCD"
DIGIT_PACKETS = 6
"""Packets of a digit before its end: 120 ms, above the 80 ms Asterisk takes for the shortest."""
DIGIT_END_PACKETS = 3
"""RFC 4733 section 2.5.1.4: the final packet is sent three times."""
DIGIT_VOLUME = 10

VOICE, OTHER, SILENCE, DIGIT, FOREIGN = 1, 2, 3, 4, 5
"""What a received packet is: numbered voice, other audio, silence, a digit's event, something unreadable."""

_QUIET_ALAW = frozenset(code ^ 0x55 for code in (*range(0, 3), *range(0x80, 0x83)))
_QUIET_MULAW = frozenset((*range(0xFC, 0x100), *range(0x7C, 0x80)))
QUIET = _QUIET_ALAW | _QUIET_MULAW


def alaw(sample: int) -> int:
    """One 16-bit sample as an A-law byte (ITU-T G.711)."""
    sign = 0x80 if sample >= 0 else 0
    magnitude = min(abs(sample) >> 3, 0xFFF)
    exponent = max(magnitude.bit_length() - 5, 0)
    mantissa = (magnitude >> max(exponent, 1)) & 0x0F if exponent else (magnitude >> 1) & 0x0F
    return (sign | (exponent << 4) | mantissa) ^ 0x55


def from_alaw(code: int) -> int:
    """The 16-bit sample of an A-law byte."""
    code ^= 0x55
    exponent, mantissa = code >> 4 & 7, (code & 0x0F) << 4
    magnitude = (mantissa + 0x108) << exponent - 1 if exponent else mantissa + 8
    return magnitude if code & 0x80 else -magnitude


def from_mulaw(code: int) -> int:
    """The 16-bit sample of a mu-law byte."""
    code ^= 0xFF
    magnitude = (((code & 0x0F) << 3) + 0x84 << (code >> 4 & 7)) - 0x84
    return -magnitude if code & 0x80 else magnitude


_STEP = 256
_LINEAR = {
    pt: bytes(sample(code) // _STEP + 128 for code in range(256))
    for pt, sample in ((PT_PCMA, from_alaw), (PT_PCMU, from_mulaw))
}
"""Every second sample, with eight bits, is enough to find a voice in, and `sum` is quick with them."""
_PERIODS = [4000 // hertz for hertz in PITCHES_HZ]
_WAVES = [
    (period, *([turn(2 * math.pi * n / period) for n in range(period)] for turn in (math.cos, math.sin)))
    for period in _PERIODS
]
_WHOLE = math.lcm(*_PERIODS)


def pitch_bit(hertz: int) -> int:
    """A voice's bit in what `pitches` finds; 0: it would not be found."""
    return 1 << PITCHES_HZ.index(hertz) if hertz in PITCHES_HZ else 0


def pitches(payload: bytes, pt: int) -> int:
    """Which of `PITCHES_HZ` are in a payload of G.711: one bit of each (`pitch_bit`)."""
    samples = payload[::2].translate(_LINEAR.get(pt, _LINEAR[PT_PCMA]))
    end = len(samples) - len(samples) % _WHOLE
    found = 0
    for bit, (period, cosine, sine) in enumerate(_WAVES):
        folded = [sum(samples[n:end:period]) for n in range(period)]
        strength = math.hypot(sum(map(mul, folded, cosine)), sum(map(mul, folded, sine)))
        if strength * 2 * _STEP > HEARD_AMPLITUDE * end:
            found |= 1 << bit
    return found


def tone(hertz: int, amplitude: int = AMPLITUDE) -> bytes:
    """One packet's samples of a tone; multiples of 50 Hz repeat seamlessly."""
    step = 2 * math.pi * hertz / 8000
    return bytes(alaw(int(amplitude * math.sin(step * n))) for n in range(SAMPLES_PER_PACKET))


def voice_buffer(stream: int, ssrc: int, hertz: int) -> bytearray:
    """A whole packet of ``stream`` whose header and number `set_voice` fills in."""
    packet = bytearray(_HEADER.pack(0x80, PT_PCMA, 0, 0, ssrc))
    samples = bytearray(tone(hertz))
    _MARK.pack_into(samples, 0, MARKER, stream, 0)
    return packet + samples


def set_voice(packet: bytearray, pt: int, sequence: int, timestamp: int, number: int, marker: bool) -> None:
    """Makes ``packet`` the one numbered ``number``."""
    struct.pack_into("!BHI", packet, 1, pt | 0x80 if marker else pt, sequence, timestamp)
    struct.pack_into("!I", packet, NUMBER_OFFSET, number)


def digit_packet(
    digit: str, pt: int, sequence: int, timestamp: int, ssrc: int, duration: int, *, first: bool, end: bool
) -> bytes:
    """One telephone-event packet (RFC 4733 section 2.3); ``duration`` in samples so far."""
    header = _HEADER.pack(0x80, pt | 0x80 if first else pt, sequence & 0xFFFF, timestamp & 0xFFFFFFFF, ssrc)
    return header + _EVENT.pack(DIGITS.index(digit), (0x80 if end else 0) | DIGIT_VOLUME, duration)


def classify(packet: bytes | bytearray | memoryview, size: int, event_pt: int) -> tuple[int, int, int, int]:
    """(kind, source, number, extra) of a received packet.

    Voice: source stream, number, SSRC. Digit: event code, RTP timestamp, duration with bit 31 for the end.
    Other audio: the `pitches` in it, RTP timestamp, SSRC. The rest: SSRC in ``extra``.
    """
    if size < HEADER_BYTES or packet[0] & 0xC0 != 0x80:
        return FOREIGN, 0, 0, 0
    _, second, _, timestamp, ssrc = _HEADER.unpack_from(packet)
    start = HEADER_BYTES + 4 * (packet[0] & 0x0F)
    if packet[0] & 0x10:
        if size < start + 4:
            return FOREIGN, 0, 0, ssrc
        start += 4 + 4 * int.from_bytes(packet[start + 2 : start + 4], "big")
    if second & 0x7F == event_pt:
        if size < start + 4:
            return FOREIGN, 0, 0, ssrc
        event, flags, duration = _EVENT.unpack_from(packet, start)
        return DIGIT, event, timestamp, duration | (0x80000000 if flags & 0x80 else 0)
    if size >= start + 16:
        marker, source, number = _MARK.unpack_from(packet, start)
        if marker == MARKER:
            return VOICE, source, number, ssrc
    payload = bytes(packet[start:size])
    if QUIET.issuperset(payload):
        return SILENCE, 0, 0, ssrc
    return OTHER, pitches(payload, second & 0x7F), timestamp, ssrc
