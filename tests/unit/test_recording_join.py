"""Parts of a recording, and the one file made of them."""

from __future__ import annotations

import json
import math
import random
import struct
import warnings
import wave
from array import array

import pytest
from typer.testing import CliRunner

from ari_ha.cli.main import app
from ari_ha.farend.rtp import alaw
from ari_ha.wire import rtpdump
from ari_ha.wire.recording import (
    RATE_HZ,
    Part,
    PartName,
    alaw_sample,
    join,
    ulaw_sample,
)
from ari_ha.wire.rtpdump import NotRtpdump, Packet, read

START = 1_760_000_000.0
HZ = {"c": 400, "a1": 1000, "a2": 600}
RTP = struct.Struct("!BBHII")


def tone(leg: str, number: int) -> bytes:
    step = 2 * math.pi * HZ[leg] / RATE_HZ
    return bytes(alaw(int(6000 * math.sin(step * n))) for n in range(number * 160, number * 160 + 160))


def packets(
    leg: str, numbers, *, at: float = START, ssrc: int = 7, first: int = 0, late=lambda n: 0.0
) -> list[Packet]:
    """Packets of a phone that began to send at ``at``; ``first`` is its first RTP timestamp."""
    return [
        Packet(
            at + n * 0.02 + late(n),
            8,
            (first + n) & 0xFFFF,
            (first + n * 160) & 0xFFFFFFFF,
            ssrc,
            tone(leg, n),
        )
        for n in numbers
    ]


def part(leg: str, node: str, some: list[Packet], ended: bool = False) -> Part:
    return Part(PartName("k1", leg, "20251009T085320-000000Z", f"r{node}{leg}", node), some, ended)


def strength(samples: array, begin: float, hertz: int) -> float:
    """How much of a tone is in 0.2 s (Goertzel)."""
    window = samples[int(begin * RATE_HZ) : int((begin + 0.2) * RATE_HZ)]
    step = 2 * math.pi * hertz / RATE_HZ
    cos = sum(s * math.cos(step * n) for n, s in enumerate(window))
    sin = sum(s * math.sin(step * n) for n, s in enumerate(window))
    return 2 * math.hypot(cos, sin) / max(len(window), 1)


def in_every_window(samples: array, hertz: int) -> bool:
    windows = int(len(samples) / RATE_HZ / 0.2)
    return all(strength(samples, 0.2 * n, hertz) > 4000 for n in range(windows))


def test_one_node_dies_and_a_third_comes_later() -> None:
    """ast1 stops at packet 150, ast3 begins at 160; ast2 has everything."""
    parts = []
    for leg, ssrc in (("c", 7), ("a1", 9)):
        parts += [
            part(leg, "ast1", packets(leg, range(150), ssrc=ssrc)),
            part(leg, "ast2", packets(leg, range(300), ssrc=ssrc)),
            part(leg, "ast3", packets(leg, range(160, 300), ssrc=ssrc)),
        ]
    joined = join(parts)
    assert joined.gaps == [] and joined.legs == {"c": 300, "a1": 300}
    assert joined.seconds == pytest.approx(6.0, abs=0.001)
    assert in_every_window(joined.left, 400) and in_every_window(joined.right, 1000)
    assert strength(joined.left, 1.0, 1000) < 100


def test_what_one_part_lacks_another_has() -> None:
    """Each of two recorders stood still for a second, at different times."""
    one = packets("c", [n for n in range(300) if not 50 <= n < 100])
    two = packets("c", [n for n in range(300) if not 200 <= n < 250])
    joined = join([part("c", "ast1", one), part("c", "ast2", two)])
    assert joined.gaps == [] and in_every_window(joined.left, 400)


def test_both_are_away_and_the_gap_is_told() -> None:
    one, two = packets("c", range(100)), packets("c", range(130, 300))
    joined = join([part("c", "ast1", one), part("c", "ast2", two)])
    assert [(gap.leg, gap.at_s, gap.ms) for gap in joined.gaps] == [("c", pytest.approx(2.0), 600.0)]
    assert not in_every_window(joined.left, 400) and strength(joined.left, 2.2, 400) == 0.0


def test_a_long_gap_is_told_too() -> None:
    some = packets("c", range(100)) + packets("c", range(200, 300))
    (gap,) = join([part("c", "ast1", some)]).gaps
    assert gap.at_s == pytest.approx(2.0) and gap.ms == pytest.approx(2000.0, abs=1)


def test_many_gaps_cost_no_look_at_every_packet_each() -> None:
    class Counting(list):
        looks = 0

        def __iter__(self):
            Counting.looks += 1
            return super().__iter__()

    joined = join([part("c", "ast1", Counting(packets("c", [n for n in range(600) if n % 3])))])
    assert len(joined.gaps) == 199 and Counting.looks < 20


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_file_is_read_as_far_as_it_makes_sense(seed: int) -> None:
    """Whatever it says then: joined with a good one that is all there, or refused in words."""
    rand = random.Random(seed)
    some = packets("c", range(60))
    data = bytearray(dump(some))
    for _ in range(rand.randint(1, 8)):
        data[rand.randrange(len(dump([])), len(data))] = rand.randrange(256)
    damaged, _ = read(bytes(data))
    try:
        joined = join([part("c", "ast1", damaged), part("c", "ast2", some)])
    except ValueError as error:
        assert "one call?" in str(error)
    else:
        assert joined.legs["c"] >= 60


def test_two_clocks_an_hour_apart() -> None:
    """The packets both have tell how far; no seam is heard."""
    one, two = packets("c", range(160)), packets("c", range(140, 300), at=START + 3600.0)
    other = packets("a1", range(300), ssrc=9)
    joined = join([part("c", "ast1", one), part("c", "ast2", two), part("a1", "ast1", other)])
    assert joined.clocks == {"ast1": 0.0, "ast2": pytest.approx(-3600.0)}
    assert joined.seconds == pytest.approx(6.0, abs=0.001)
    assert joined.gaps == [] and in_every_window(joined.left, 400)


def test_late_packets_do_not_shift_the_rest() -> None:
    some = packets("c", range(300), late=lambda n: 0.09 if n % 50 == 1 else 0.001)
    joined = join([part("c", "ast1", some)])
    assert in_every_window(joined.left, 400) and joined.seconds == pytest.approx(6.0, abs=0.001)


def test_counters_that_wrap() -> None:
    some = packets("c", range(300), first=0xFFFFFFFF - 160 * 100)
    joined = join([part("c", "ast1", some)])
    assert joined.gaps == [] and in_every_window(joined.left, 400)


def test_a_pause_is_silence_and_no_gap() -> None:
    """On hold nothing is copied; a phone that sends nothing counts on in its sequence numbers."""
    before = packets("c", range(100))
    after = [Packet(START + 5 + n * 0.02, 8, 100 + n, 700_000 + n * 160, 7, tone("c", n)) for n in range(100)]
    joined = join([part("c", "ast1", before + after)])
    assert joined.gaps == [] and joined.seconds == pytest.approx(7.0, abs=0.001)
    assert strength(joined.left, 3.0, 400) == 0.0 and strength(joined.left, 5.2, 400) > 4000


def test_between_two_agents_nobody_was_to_be_recorded() -> None:
    before, after = packets("c", range(100)), packets("c", range(200, 300))
    ended = [part("c", node, before, ended=True) for node in ("ast1", "ast2")]
    assert join([*ended, part("c", "ast1", after)]).gaps == []
    one_died = [ended[0], part("c", "ast2", before), part("c", "ast1", after)]
    assert len(join(one_died).gaps) == 1, "when one ended in order and one did not, nobody knows"


def test_a_third_voice_is_mixed_in_on_the_right() -> None:
    joined = join([
        part("a1", "ast1", packets("a1", range(100), ssrc=9)),
        part("a2", "ast1", packets("a2", range(100), ssrc=11)),
        part("c", "ast1", packets("c", range(100))),
    ])  # fmt: skip
    assert in_every_window(joined.right, 1000) and in_every_window(joined.right, 600)
    assert in_every_window(joined.left, 400)


def test_nothing_at_all() -> None:
    assert join([]).seconds == 0.0 and join([part("c", "ast1", [])]).gaps == []


def test_g711_is_decoded_as_the_standard_library_does() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        audioop = pytest.importorskip("audioop")
    codes = bytes(range(256))
    assert [alaw_sample(c) for c in codes] == list(array("h", audioop.alaw2lin(codes, 2)))
    assert [ulaw_sample(c) for c in codes] == list(array("h", audioop.ulaw2lin(codes, 2)))


def dump(some: list[Packet], start: float = START) -> bytes:
    data = rtpdump.header("10.0.0.11", 30002, start)
    for one in some:
        rtp = RTP.pack(0x80, one.payload_type, one.sequence, one.timestamp, one.ssrc) + one.payload
        data += rtpdump.record(rtp, one.arrived - start)
    return data


def test_a_file_reads_as_it_was_written() -> None:
    some = packets("c", range(3))
    assert read(dump(some)) == (some, False)
    assert read(dump(some) + rtpdump.end_mark(1.0)) == (some, True)


def test_a_file_cut_off_anywhere_is_good_up_to_there() -> None:
    some = packets("c", range(3))
    data = dump(some)
    header = len(dump([]))
    for end in range(header, len(data)):
        assert read(data[:end])[0] == some[: (end - header) // 180]
    with pytest.raises(NotRtpdump):
        read(data[: header - 1])
    with pytest.raises(NotRtpdump):
        read(b"RIFF....WAVE")


@pytest.mark.parametrize("name", ["k1.c.20251009T085320-000000Z.r1.ast1.example.rtp", "k1.a1.x.y.ast-2.rtp"])
def test_names_of_parts(name: str) -> None:
    parsed = PartName.parse(name)
    assert parsed is not None and parsed.text == name and parsed.call == "k1"


@pytest.mark.parametrize("name", ["k1.c.x.y.rtp", "notes.txt", "k1.c.x..ast1.rtp", "k1.c.x.y.ast1.wav"])
def test_other_names(name: str) -> None:
    assert PartName.parse(name) is None


def test_the_command(tmp_path) -> None:
    for node, numbers in (("ast1", range(60)), ("ast2", range(40, 100))):
        (tmp_path / node).mkdir()
        name = PartName("k1", "c", "20251009T085320-000000Z", "r1", node).text
        (tmp_path / node / name).write_bytes(dump(packets("c", numbers)))
    (tmp_path / "ast1" / PartName("k1", "a1", "x", "r2", "ast1").text).write_bytes(b"broken")
    spools = ["--from", str(tmp_path / "ast1"), "--from", str(tmp_path / "ast2")]
    out = tmp_path / "k1.wav"
    done = CliRunner().invoke(app, ["recording", "join", "k1", *spools, "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["seconds"] == pytest.approx(2.0, abs=0.001) and told["gaps"] == [] and told["parts"] == 2
    assert "left out" in done.stderr
    with wave.open(str(out)) as file:
        assert (file.getnchannels(), file.getframerate(), file.getsampwidth()) == (2, 8000, 2)
        samples = array("h", file.readframes(file.getnframes()))
    assert in_every_window(samples[0::2], 400) and not any(samples[1::2])
    for other in ("k2", "*", "k[1]", "/k1", "../ast1/k1"):
        missing = CliRunner().invoke(app, ["recording", "join", other, *spools])
        assert missing.exit_code == 1 and "no part of" in missing.stderr, other
