"""A call's recording, joined from the parts that several recorders wrote of it.

Every recorder gets the same packets: rtpengine copies them with their SSRC, sequence number and timestamp
(RFC 3550 §5.1). So what one part lacks is taken from another packet by packet, and what two have in common
tells how far their clocks are apart. Within one stream the timestamps say where a packet belongs; its
arrival only says where the stream as a whole does.
"""

from __future__ import annotations

import statistics
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from ari_ha.core.ids import PRIMARY_LEG
from ari_ha.wire.rtpdump import Packet

RATE_HZ = 8000
SUFFIX = ".rtp"
ANEW_S = 0.2
"""A stream whose timestamps jump by so much more, or less, than time has passed has begun anew."""
PAUSE_S = 1.0
"""After a pause this long a stream is placed by its arrival again: no two clocks run alike for ever."""
LAST_S = 1.0
"""Of the parts that had ended when a gap begins, those that ended so shortly before tell why."""
LENGTH_MAX_S = 24 * 3600.0

Key = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class PartName:
    """What a part's file is called: of which leg of which call, since when, by whom."""

    call: str
    leg: str
    start: str
    """UTC, ``20260102T030405-123456Z`` with microseconds"""
    recording: str
    node: str

    @property
    def text(self) -> str:
        """The file's name."""
        return f"{self.call}.{self.leg}.{self.start}.{self.recording}.{self.node}{SUFFIX}"

    @property
    def is_sound(self) -> bool:
        """Whether it is the name of one file, and can be read back."""
        return self.parse(self.text) == self and not set(self.text) & {"/", "\0"}

    @classmethod
    def parse(cls, text: str) -> PartName | None:
        """The reverse; None when it is no part's name."""
        fields = text.removesuffix(SUFFIX).split(".", 4)
        if not text.endswith(SUFFIX) or len(fields) != 5 or not all(fields):
            return None
        return cls(*fields)


@dataclass(frozen=True, slots=True)
class Part:
    """One file."""

    name: PartName
    packets: list[Packet]
    ended: bool = False
    """In order: the edge wanted no more of it"""


@dataclass(frozen=True, slots=True)
class Gap:
    """Packets that were sent and that no part has."""

    leg: str
    at_s: float
    """Seconds after the recording's start"""
    ms: float


@dataclass(slots=True)
class Joined:
    """One recording: the caller on the left, everybody else on the right."""

    start_utc: float = 0.0
    left: array[int] = field(default_factory=lambda: array("h"))
    right: array[int] = field(default_factory=lambda: array("h"))
    gaps: list[Gap] = field(default_factory=list)
    legs: dict[str, int] = field(default_factory=dict)
    """leg -> its packets, each once"""
    clocks: dict[str, float] = field(default_factory=dict)
    """node -> seconds by which its clock was corrected"""

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.left) / RATE_HZ

    def interleaved(self) -> bytes:
        """Both channels as 16-bit samples, for a WAV file."""
        both = array("h", bytes(4 * len(self.left)))
        both[0::2], both[1::2] = self.left, self.right
        return both.tobytes()


@dataclass(slots=True)
class _Placed:
    """A packet and where it belongs."""

    leg: str
    at: float
    """UTC seconds of its first sample"""
    payload: bytes
    law: int


def join(parts: Iterable[Part]) -> Joined:
    """One recording out of all its parts, in any order."""
    known = [part for part in parts if part.packets]
    joined = Joined(clocks=_clocks(known))
    placed: list[_Placed] = []
    gaps: list[tuple[str, float, float]] = []
    for leg in sorted({part.name.leg for part in known}):
        packets = _each_once([part for part in known if part.name.leg == leg], joined.clocks)
        joined.legs[leg] = len(packets)
        for ssrc in sorted({packet.ssrc for packet in packets}):
            _place(leg, [packet for packet in packets if packet.ssrc == ssrc], placed, gaps)
    if not placed:
        return joined
    joined.start_utc = min(one.at for one in placed)
    end = max(one.at + len(one.payload) / RATE_HZ for one in placed)
    if end - joined.start_utc > LENGTH_MAX_S:
        raise ValueError(f"{end - joined.start_utc:.0f} s from the first packet to the last: one call?")
    ends = _ends(known, joined.clocks)
    gaps = [gap for gap in gaps if not _wanted(gap, ends)]
    joined.gaps = [Gap(leg, at - joined.start_utc, ms) for leg, at, ms in sorted(gaps, key=lambda g: g[1])]
    size = round((end - joined.start_utc) * RATE_HZ) + 1
    joined.left, joined.right = array("h", bytes(2 * size)), array("h", bytes(2 * size))
    for one in placed:
        side = joined.left if one.leg == PRIMARY_LEG else joined.right
        _mix(side, round((one.at - joined.start_utc) * RATE_HZ), _decoded(one.payload, one.law))
    return joined


def _ends(parts: list[Part], clocks: dict[str, float]) -> dict[str, list[tuple[float, bool]]]:
    """leg -> when each of its parts had its last packet, and whether it was ended in order."""
    ends: dict[str, list[tuple[float, bool]]] = {}
    for part in parts:
        last = max(packet.arrived for packet in part.packets) + clocks[part.name.node]
        ends.setdefault(part.name.leg, []).append((last, part.ended))
    return ends


def _wanted(gap: tuple[str, float, float], ends: dict[str, list[tuple[float, bool]]]) -> bool:
    """Whether every part that was being written until then was ended in order: nobody was to be recorded."""
    leg, at, _ = gap
    ended = [in_order for last, in_order in ends[leg] if abs(at - last) < LAST_S]
    return bool(ended) and all(ended)


def _key(packet: Packet) -> Key:
    return packet.ssrc, packet.timestamp, packet.sequence


def _clocks(parts: list[Part]) -> dict[str, float]:
    """node -> what to add to its times. Nodes without a common packet are believed."""
    arrivals: dict[str, dict[tuple[str, Key], float]] = {}
    for part in parts:
        seen = arrivals.setdefault(part.name.node, {})
        seen.update({(part.name.leg, _key(packet)): packet.arrived for packet in part.packets})
    clocks: dict[str, float] = {}
    true: dict[tuple[str, Key], float] = {}
    while arrivals:
        # the one that has most in common with those whose clocks are known; the first: the longest
        node = max(sorted(arrivals), key=lambda n: (len(arrivals[n].keys() & true.keys()), len(arrivals[n])))
        times = arrivals.pop(node)
        common = [true[key] - times[key] for key in times.keys() & true.keys()]
        clocks[node] = statistics.median(common) if common else 0.0
        for key, at in times.items():
            true.setdefault(key, at + clocks[node])
    return clocks


def _each_once(parts: list[Part], clocks: dict[str, float]) -> list[Packet]:
    """A leg's packets in the order of their arrival; of several copies the one that came first."""
    best: dict[Key, tuple[float, Packet]] = {}
    for part in parts:
        for packet in part.packets:
            at = packet.arrived + clocks[part.name.node]
            known = best.get(_key(packet))
            if known is None or at < known[0]:
                best[_key(packet)] = at, packet
    return [
        Packet(at, packet.payload_type, packet.sequence, packet.timestamp, packet.ssrc, packet.payload)
        for at, packet in sorted(best.values(), key=lambda item: item[0])
    ]


def _signed(value: int, bits: int) -> int:
    """The difference of two counters that wrap."""
    half = 1 << (bits - 1)
    return ((value + half) & ((1 << bits) - 1)) - half


def _place(
    leg: str, packets: list[Packet], placed: list[_Placed], gaps: list[tuple[str, float, float]]
) -> None:
    """One stream. The packet that came with the least delay says where all of a stretch belong."""
    stretch: list[tuple[int, Packet]] = []
    for packet in packets:
        if stretch:
            unwrapped, last = stretch[-1]
            step = _signed(packet.timestamp - last.timestamp, 32)
            passed = packet.arrived - last.arrived
            if passed > PAUSE_S or abs(passed - step / RATE_HZ) > ANEW_S:
                _place_stretch(leg, stretch, placed, gaps)
                stretch = []
            else:
                stretch.append((unwrapped + step, packet))
                continue
        stretch = [(0, packet)]
    _place_stretch(leg, stretch, placed, gaps)
    for before, after in pairwise(packets):
        # between stretches only the arrivals tell how long it was
        passed = after.arrived - before.arrived
        step = _signed(after.timestamp - before.timestamp, 32)
        apart = passed > PAUSE_S or abs(passed - step / RATE_HZ) > ANEW_S
        if apart and _signed(after.sequence - before.sequence, 16) != 1:
            length_s = len(before.payload) / RATE_HZ
            gaps.append((leg, before.arrived + length_s, round((passed - length_s) * 1000, 1)))


def _place_stretch(
    leg: str,
    stretch: list[tuple[int, Packet]],
    placed: list[_Placed],
    gaps: list[tuple[str, float, float]],
) -> None:
    if not stretch:
        return
    begin = min(packet.arrived - at / RATE_HZ for at, packet in stretch)
    stretch.sort(key=lambda item: item[0])
    for at, packet in stretch:
        placed.append(_Placed(leg, begin + at / RATE_HZ, packet.payload, packet.payload_type))
    for (at, packet), (after, following) in pairwise(stretch):
        missing = after - at - len(packet.payload)
        if missing > 0 and _signed(following.sequence - packet.sequence, 16) > 1:
            gaps.append((leg, begin + (at + len(packet.payload)) / RATE_HZ, missing * 1000 / RATE_HZ))


def _mix(side: array[int], at: int, samples: array[int]) -> None:
    """Adds a packet to a channel; two at once are summed as far as 16 bits reach."""
    there = side[at : at + len(samples)]
    if any(there):
        samples = array("h", [max(-32768, min(32767, a + b)) for a, b in zip(there, samples, strict=False)])
    side[at : at + len(samples)] = samples[: len(there)]


# --- G.711 --------------------------------------------------------------------------


def ulaw_sample(code: int) -> int:
    """One byte of mu-law as a 16-bit sample (ITU-T G.711)."""
    code = ~code & 0xFF
    magnitude = (((code & 0x0F) << 3) + 0x84) << ((code & 0x70) >> 4)
    return 0x84 - magnitude if code & 0x80 else magnitude - 0x84


def alaw_sample(code: int) -> int:
    """One byte of A-law as a 16-bit sample (ITU-T G.711)."""
    code ^= 0x55
    exponent, magnitude = (code & 0x70) >> 4, (code & 0x0F) << 4
    magnitude = magnitude + 8 if not exponent else (magnitude + 0x108) << (exponent - 1)
    return magnitude if code & 0x80 else -magnitude


def _table(sample: Callable[[int], int]) -> list[int]:
    return [sample(code) for code in range(256)]


_LAWS = {0: _table(ulaw_sample), 8: _table(alaw_sample)}
"""By static payload type (RFC 3551 §6)"""


def _decoded(payload: bytes, law: int) -> array[int]:
    table = _LAWS.get(law)
    return array("h", map(table.__getitem__, payload) if table else bytes(2 * len(payload)))
