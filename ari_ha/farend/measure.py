"""From what was sent and heard to what a person would have noticed. Pure: logs and a window in, figures
out."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ari_ha.farend import rtp
from ari_ha.farend.streamlog import Heard, StreamLog

PACKET_NS = rtp.PACKET_MS * 1_000_000
SENDER_PAUSE_MIN_NS = 2 * PACKET_NS
"""A spacing of the sender's own above this was meant (a hold) or its own stall; it is not the network's
gap."""
BUFFER_NS = 100_000_000
"""A phone's jitter buffer: music that is late by up to this is heard all the same."""
MIX_LATE_NS = 120_000_000
"""What Asterisk mixes is later than the voices it is made of by up to this, as the pauses in it are."""
NS_PER_SAMPLE = 125_000
SETTLE_NS = 400_000_000
"""Packets sent this short before the end of the window may still be under way: they are not judged."""
DIGIT_BEFORE_NS, DIGIT_AFTER_NS = PACKET_NS, 2 * PACKET_NS
"""Voice that should have come this long before or after a digit's packet may have been replaced by it:
Asterisk sends no voice while it sends a digit."""
DIGIT_JOIN_NS = 250_000_000
OTHER_JOIN_NS = 200_000_000


@dataclass(slots=True)
class Hearing:
    """What one stream heard of one other stream."""

    source: int
    received: int = 0
    sent: int | None = None
    """Numbers the source sent within the window; None: its log is not at hand"""
    duplicates: int = 0
    lost: int = 0
    replaced_by_digit: int = 0
    """Missing numbers at the time of a digit that arrived instead; not counted as lost."""
    longest_gap_ms: float = 0.0
    longest_gap_at: float = 0.0
    first: float = 0.0
    last: float = 0.0
    ssrc_changes: int = 0
    delay_ms_max: float = 0.0

    @property
    def lost_ms(self) -> int:
        """Lost packets in milliseconds of audio."""
        return self.lost * rtp.PACKET_MS

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "source": self.source,
            "received": self.received,
            "sent": self.sent,
            "duplicates": self.duplicates,
            "lost_packets": self.lost,
            "lost_ms": self.lost_ms,
            "replaced_by_digit": self.replaced_by_digit,
            "longest_gap_ms": round(self.longest_gap_ms, 1),
            "longest_gap_at": self.longest_gap_at,
            "first": self.first,
            "last": self.last,
            "ssrc_changes": self.ssrc_changes,
            "delay_ms_max": round(self.delay_ms_max, 1),
        }


@dataclass(slots=True)
class Digit:
    """A digit that arrived as RTP events."""

    digit: str
    at: float
    until: float
    ended: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"digit": self.digit, "at": self.at, "ended": self.ended}


@dataclass(slots=True)
class Span:
    """A time of other audio."""

    begin: float
    end: float
    packets: int

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"from": self.begin, "until": self.end, "packets": self.packets}


@dataclass(slots=True)
class AnyVoice:
    """What one stream heard of several others, whoever of them: by their numbered packets, or by their
    tone in what Asterisk mixes. A digit that came in their place counts as one of them."""

    packets: int = 0
    silent_ms: float = 0.0
    """Within the window: time nothing of them came though one of them spoke, gaps up to 60 ms left out, and
    what came late but in time for a phone's buffer."""
    longest_gap_ms: float = 0.0
    longest_gap_at: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "packets": self.packets,
            "silent_ms": round(self.silent_ms, 1),
            "longest_gap_ms": round(self.longest_gap_ms, 1),
            "longest_gap_at": self.longest_gap_at,
        }


@dataclass(slots=True)
class Report:
    """What one stream heard in a window."""

    hears: list[Hearing] = field(default_factory=list)
    digits: list[Digit] = field(default_factory=list)
    other_audio: list[Span] = field(default_factory=list)
    other_silent_ms: float = 0.0
    """Within and after the other audio: time nothing of it came, gaps up to 60 ms left out, and what came
    late but in time for a phone's buffer."""
    other_longest_gap_ms: float = 0.0
    other_longest_gap_at: float = 0.0
    silence_packets: int = 0
    foreign_packets: int = 0
    packets: int = 0
    sent: int = 0
    """Voice packets this stream sent itself"""
    any_voice: AnyVoice | None = None
    """None: not asked for"""

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "hears": [item.to_dict() for item in self.hears],
            "digits": [item.to_dict() for item in self.digits],
            "other_audio": [item.to_dict() for item in self.other_audio],
            "other_silent_ms": round(self.other_silent_ms, 1),
            "other_longest_gap_ms": round(self.other_longest_gap_ms, 1),
            "other_longest_gap_at": self.other_longest_gap_at,
            "silence_packets": self.silence_packets,
            "foreign_packets": self.foreign_packets,
            "packets": self.packets,
            "sent": self.sent,
            "any_voice": self.any_voice and self.any_voice.to_dict(),
        }


def report(
    log: StreamLog,
    source_log: Callable[[int], StreamLog | None],
    since_ns: int,
    until_ns: int,
    voices_of: Mapping[int, int] = {},
) -> Report:
    """What the stream of ``log`` heard between the two instants (UTC nanoseconds). ``voices_of``: streams of
    which it should hear any, with the tone of each in hertz."""
    result = Report(sent=len(log.sent(since_ns, until_ns)))
    voices: dict[int, list[Heard]] = {}
    digits: list[Heard] = []
    music: list[Heard] = []
    heard = list(log.heard(since_ns, until_ns))
    result.packets = len(heard)
    for packet in heard:
        if packet.kind == rtp.VOICE:
            voices.setdefault(packet.source, []).append(packet)
        elif packet.kind == rtp.DIGIT:
            digits.append(packet)
        elif packet.kind == rtp.OTHER:
            music.append(packet)
            _extend(result.other_audio, packet.at_ns)
        elif packet.kind == rtp.SILENCE:
            result.silence_packets += 1
        else:
            result.foreign_packets += 1
    _music(result, music, until_ns)
    result.digits = _digits(digits)
    for source, packets in voices.items():
        result.hears.append(_hearing(source, packets, source_log(source), since_ns, until_ns, digits))
    result.hears.sort(key=lambda item: -item.received)
    if voices_of:
        logs = [source_log(source) for source in voices_of]
        result.any_voice = _any_voice(heard, voices_of, _pauses(logs, since_ns, until_ns), since_ns, until_ns)
    return result


def _music(result: Report, packets: Sequence[Heard], until_ns: int) -> None:
    """Times without music: by arrival, and what of them nothing made up for."""
    for at_ns, gap_ns, silent_ns in _gaps(packets, until_ns):
        if gap_ns / 1e6 > result.other_longest_gap_ms:
            result.other_longest_gap_ms, result.other_longest_gap_at = gap_ns / 1e6, at_ns / 1e9
        if silent_ns > 2 * PACKET_NS:
            result.other_silent_ms += silent_ns / 1e6


def _any_voice(
    heard: Iterable[Heard],
    voices_of: Mapping[int, int],
    pauses: Sequence[tuple[int, int]],
    since_ns: int,
    until_ns: int,
) -> AnyVoice:
    """Times without any of the voices, from the window's begin to what may still be under way at its end."""
    tones = 0
    for hertz in voices_of.values():
        tones |= rtp.pitch_bit(hertz)
    packets = [packet for packet in heard if _is_of(packet, voices_of, tones)]
    result = AnyVoice(len(packets))
    nobody = Heard(since_ns - PACKET_NS, 0, 0, 0, 0)
    for at_ns, gap_ns, silent_ns in _gaps([nobody, *packets], until_ns - SETTLE_NS):
        if not silent_ns and gap_ns / 1e6 <= result.longest_gap_ms:
            continue
        first, last = at_ns + PACKET_NS, at_ns + PACKET_NS + gap_ns
        paused_ns = _paused_ns(pauses, first, last)
        if (gap_ns - paused_ns) / 1e6 > result.longest_gap_ms:
            result.longest_gap_ms, result.longest_gap_at = (gap_ns - paused_ns) / 1e6, at_ns / 1e9
        if silent_ns - paused_ns > 2 * PACKET_NS:
            result.silent_ms += (silent_ns - paused_ns) / 1e6
    return result


def _paused_ns(pauses: Sequence[tuple[int, int]], first_ns: int, last_ns: int) -> int:
    """Time of a gap in which nobody spoke. A mix is later than what is mixed, by the same time at either
    end of a pause: by the one that explains most of the gap."""
    return max(
        sum(max(0, min(end + late, last_ns) - max(begin + late, first_ns)) for begin, end in pauses)
        for late in range(0, MIX_LATE_NS + 1, PACKET_NS)
    )


def _is_of(packet: Heard, sources: Container[int], tones: int) -> bool:
    """Whether a packet carries a voice of these streams, or a digit, which takes its place."""
    if packet.kind == rtp.VOICE:
        return packet.source in sources
    return packet.kind == rtp.DIGIT or (packet.kind == rtp.OTHER and packet.source & tones != 0)


def _pauses(logs: Sequence[StreamLog | None], since_ns: int, until_ns: int) -> list[tuple[int, int]]:
    """Times in which nobody spoke; whoever types does not, in a mix. Of one whose log is not at hand we
    cannot say so."""
    known = [log for log in logs if log is not None]
    if len(known) < len(logs):
        return []
    spoken = sorted(at_ns for log in known for at_ns in _spoken(log, since_ns - PACKET_NS, until_ns))
    marks = [since_ns - PACKET_NS, *spoken, until_ns]
    return [(a + PACKET_NS, b) for a, b in itertools.pairwise(marks) if b - a > SENDER_PAUSE_MIN_NS]


def _spoken(log: StreamLog, since_ns: int, until_ns: int) -> list[int]:
    """When voice was sent that no digit takes the place of."""
    sent = log.sent(since_ns, until_ns)
    digits = [at_ns for number, at_ns in sent if log.typed_with(number)]
    return [at_ns for _, at_ns in sent if not _near_digit(at_ns, digits)]


def _gaps(packets: Sequence[Heard], until_ns: int) -> Iterator[tuple[int, int, int]]:
    """After each packet: when it came, the time to the next beyond its own 20 ms, and how much of that time
    the listener misses."""
    for index, packet in enumerate(packets):
        end = packets[index + 1].at_ns if index + 1 < len(packets) else until_ns
        gap_ns = end - packet.at_ns - PACKET_NS
        yield packet.at_ns, gap_ns, _not_made_up(packets, index, gap_ns) if gap_ns > 2 * PACKET_NS else 0


def _not_made_up(packets: Sequence[Heard], index: int, gap_ns: int) -> int:
    """Of the gap after a packet, what the listener misses. A sender that stood still may send what it owes
    at once, by the timestamps of its stream (RFC 3550 section 5.1): then nothing is missing. Another
    stream owes nothing."""
    before, later = packets[index], packets[index + 1 :]
    if not later or not _same_stream(later[0], before) or gap_ns > BUFFER_NS:
        return gap_ns
    late_ns = gap_ns
    for packet in later:
        if not _same_stream(packet, before) or packet.at_ns > later[0].at_ns + BUFFER_NS:
            break
        late_ns = min(late_ns, packet.at_ns - before.at_ns - _stream_ns(before, packet))
    left_out_ns = _stream_ns(before, later[0]) - PACKET_NS
    return min(gap_ns, max(0, late_ns) + max(0, left_out_ns))


def _same_stream(one: Heard, other: Heard) -> bool:
    """Whether the places of two packets in their stream can be compared."""
    same = (one.kind, one.extra) == (other.kind, other.extra)
    return same and (one.kind != rtp.VOICE or one.source == other.source)


def _stream_ns(before: Heard, after: Heard) -> int:
    """Time between two packets by their stream's own clock, or by its count."""
    if after.kind == rtp.VOICE:
        return (after.number - before.number) * PACKET_NS
    return ((after.number - before.number) & 0xFFFFFFFF) * NS_PER_SAMPLE


def _extend(spans: list[Span], at_ns: int) -> None:
    at = at_ns / 1e9
    if spans and at_ns - spans[-1].end * 1e9 <= OTHER_JOIN_NS:
        spans[-1].end = at
        spans[-1].packets += 1
    else:
        spans.append(Span(at, at, 1))


def _digits(packets: Iterable[Heard]) -> list[Digit]:
    """Digits out of event packets: same event and RTP timestamp, close in time, is the same digit."""
    found: list[Digit] = []
    last: tuple[int, int] = (-1, -1)
    for packet in packets:
        key = (packet.source, packet.number)
        ended = bool(packet.extra & 0x80000000)
        at = packet.at_ns / 1e9
        if found and key == last and packet.at_ns - found[-1].until * 1e9 <= DIGIT_JOIN_NS:
            found[-1].until = at
            found[-1].ended = found[-1].ended or ended
            continue
        last = key
        text = rtp.DIGITS[packet.source] if packet.source < len(rtp.DIGITS) else f"event-{packet.source}"
        found.append(Digit(text, at, at, ended))
    return found


def _hearing(
    source: int,
    packets: Sequence[Heard],
    source_log: StreamLog | None,
    since_ns: int,
    until_ns: int,
    digits: Sequence[Heard],
) -> Hearing:
    heard = Hearing(source, received=len(packets))
    numbers = {packet.number for packet in packets}
    heard.duplicates = len(packets) - len(numbers)
    heard.first, heard.last = packets[0].at_ns / 1e9, packets[-1].at_ns / 1e9
    heard.ssrc_changes = sum(1 for a, b in itertools.pairwise(packets) if a.extra != b.extra)
    expected = _expected(packets, source_log, since_ns, until_ns)
    typed = sorted(packet.at_ns for packet in digits)
    for number, at_ns in expected:
        if number not in numbers:
            if _near_digit(at_ns, typed):
                heard.replaced_by_digit += 1
            else:
                heard.lost += 1
    if source_log is not None:
        heard.sent = len(source_log.sent(since_ns, until_ns))
        heard.delay_ms_max = max(
            ((p.at_ns - sent) / 1e6 for p in packets if (sent := source_log.sent_at(p.number)) is not None),
            default=0.0,
        )
    heard.longest_gap_ms, heard.longest_gap_at = _longest_gap(packets, source_log, until_ns, digits)
    return heard


def _expected(
    packets: Sequence[Heard], source_log: StreamLog | None, since_ns: int, until_ns: int
) -> list[tuple[int, int]]:
    """(number, sent at) of what should have arrived, from the first number heard in the window on; up to
    the window's end less what may be under way when the sender's log is at hand, else up to the last number
    heard."""
    first = min(packets[0].number, *(p.number for p in packets[:8]))
    if source_log is None:
        last = max(p.number for p in packets)
        return [(number, 0) for number in range(first, last + 1)]
    last = max(p.number for p in packets)
    sent = source_log.sent(since_ns - PACKET_NS, until_ns)
    return [(n, at) for n, at in sent if n >= first and (n <= last or at < until_ns - SETTLE_NS)]


def _near_digit(at_ns: int, digits: Sequence[int]) -> bool:
    """Whether a digit's packet may have taken the place of voice of that time. ``digits``: when there was
    one, in order."""
    place = bisect_left(digits, at_ns - DIGIT_AFTER_NS)
    return place < len(digits) and digits[place] <= at_ns + DIGIT_BEFORE_NS


def _longest_gap(
    packets: Sequence[Heard], source_log: StreamLog | None, until_ns: int, digits: Sequence[Heard]
) -> tuple[float, float]:
    """Longest time between two arrivals beyond a packet's 20 ms, less what the sender itself paused; the
    time since the last arrival counts when packets were sent in it."""
    longest, at = 0, 0
    for a, b in itertools.pairwise(packets):
        gap = b.at_ns - a.at_ns - PACKET_NS
        if gap <= longest:
            continue
        gap -= _sender_paused_ns(source_log, a.number, b.number)
        if gap > longest and not (gap > PACKET_NS and _digit_between(a.at_ns, b.at_ns, digits)):
            longest, at = gap, a.at_ns
    if source_log is not None:
        later = source_log.sent(packets[-1].at_ns + PACKET_NS, until_ns - SETTLE_NS)
        if later:
            silent = later[-1][1] - packets[-1].at_ns
            if silent > longest:
                longest, at = silent, packets[-1].at_ns
    return longest / 1e6, at / 1e9


def _digit_between(begin_ns: int, end_ns: int, digits: Sequence[Heard]) -> bool:
    """Whether a digit's packets fill the time between two voice packets."""
    marks = [begin_ns, *(p.at_ns for p in digits if begin_ns < p.at_ns < end_ns), end_ns]
    return len(marks) > 2 and all(b - a <= DIGIT_AFTER_NS for a, b in itertools.pairwise(marks))


def _sender_paused_ns(source_log: StreamLog | None, a: int, b: int) -> int:
    if source_log is None or b <= a:
        return 0
    paused = 0
    previous = source_log.sent_at(a)
    for number in range(a + 1, b + 1):
        at = source_log.sent_at(number)
        if previous is not None and at is not None and at - previous > SENDER_PAUSE_MIN_NS:
            paused += at - previous - PACKET_NS
        previous = at
    return paused
