"""What the far ends say they heard: every figure from packets whose fate is known."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from ari_ha.farend import rtp
from ari_ha.farend.measure import Report, report
from ari_ha.farend.streamlog import HEARD_MAX_RECORDS, SENT_MAX_RECORDS, StreamLog

T0 = 1_000_000_000_000
MS = 1_000_000
SOURCE, SSRC = 7, 99


@pytest.fixture
def make_log() -> Iterator[Callable[[], StreamLog]]:
    made: list[StreamLog] = []

    def make() -> StreamLog:
        fd = StreamLog.make_fd()
        log = StreamLog(fd)
        os.close(fd)
        made.append(log)
        return log

    yield make
    for log in made:
        log.close()


class Pair:
    """A talker and a listener with 1 ms between them."""

    def __init__(self, talker: StreamLog, listener: StreamLog) -> None:
        self.talker, self.listener = talker, listener
        self.number = 0
        self.at = T0

    def say(self, packets: int, heard: bool = True, late_ms: int = 1) -> None:
        for _ in range(packets):
            self.number += 1
            self.talker.add_sent(self.at)
            if heard:
                self.hear(self.number, self.at + late_ms * MS)
            self.at += 20 * MS

    def hear(self, number: int, at: int, ssrc: int = SSRC) -> None:
        self.listener.add_heard(at, rtp.VOICE, SOURCE, number, ssrc)

    def digit(self, at: int, packets: int = 7, code: int = 5) -> None:
        for step in range(packets):
            end = 0x80000000 if step == packets - 1 else 0
            self.listener.add_heard(at + step * 20 * MS, rtp.DIGIT, code, 4242, 160 * step | end)

    def report(self, since: int = T0, until: int | None = None) -> Report:
        logs = {SOURCE: self.talker}
        return report(self.listener, logs.get, since, self.at if until is None else until)


@pytest.fixture
def pair(make_log: Callable[[], StreamLog]) -> Pair:
    return Pair(make_log(), make_log())


def test_nothing_lost(pair: Pair) -> None:
    pair.say(100)
    (heard,) = pair.report().hears
    assert (heard.received, heard.lost, heard.duplicates, heard.ssrc_changes) == (100, 0, 0, 0)
    assert heard.longest_gap_ms == 0
    assert heard.delay_ms_max == 1


def test_a_hole_is_counted_and_timed(pair: Pair) -> None:
    pair.say(50)
    pair.say(5, heard=False)
    pair.say(50)
    (heard,) = pair.report().hears
    assert heard.lost == 5
    assert heard.lost_ms == 100
    assert heard.longest_gap_ms == 100
    assert heard.longest_gap_at == pytest.approx((T0 + 49 * 20 * MS + MS) / 1e9)


def test_a_hole_that_never_ends_counts_to_the_end_of_the_window(pair: Pair) -> None:
    pair.say(50)
    pair.say(100, heard=False)
    (heard,) = pair.report().hears
    assert 75 <= heard.lost <= 85  # all but what may still be under way
    assert heard.longest_gap_ms > 1_500


def test_packets_under_way_at_the_end_are_not_lost(pair: Pair) -> None:
    pair.say(50)
    pair.say(10, heard=False)
    assert pair.report().hears[0].lost == 0


def test_what_was_lost_before_the_window_is_not_in_it(pair: Pair) -> None:
    pair.say(20)
    pair.say(10, heard=False)
    pair.say(20)
    window = pair.at
    pair.say(50)
    assert pair.report(since=window).hears[0].lost == 0


def test_a_talker_who_pauses_makes_no_gap(pair: Pair) -> None:
    pair.say(50)
    pair.at += 2_000 * MS
    pair.say(50)
    (heard,) = pair.report().hears
    assert (heard.lost, heard.longest_gap_ms) == (0, 0)


def test_duplicates_and_ssrc_changes(pair: Pair) -> None:
    pair.say(10)
    pair.hear(10, pair.at - 15 * MS)
    pair.hear(9, pair.at - 14 * MS, ssrc=SSRC + 1)
    (heard,) = pair.report().hears
    assert heard.duplicates == 2
    assert heard.ssrc_changes == 1


def test_voice_replaced_by_a_digit_is_not_lost(pair: Pair) -> None:
    pair.say(50)
    pair.digit(pair.at + MS)
    pair.say(7, heard=False)
    pair.say(50)
    result = pair.report()
    (heard,) = result.hears
    assert (heard.lost, heard.replaced_by_digit) == (0, 7)
    assert heard.longest_gap_ms <= 20
    assert [(digit.digit, digit.ended) for digit in result.digits] == [("5", True)]


def test_a_digit_excuses_only_its_own_time(pair: Pair) -> None:
    pair.say(50)
    pair.digit(pair.at + MS)
    pair.say(30, heard=False)
    pair.say(50)
    (heard,) = pair.report().hears
    assert heard.lost == 30 - heard.replaced_by_digit
    assert heard.replaced_by_digit <= 10
    assert heard.longest_gap_ms == 600


def test_other_audio_is_told_from_voice(pair: Pair) -> None:
    at = T0
    for block in (50, 25):
        for _ in range(block):
            pair.listener.add_heard(at, rtp.OTHER, 0, 0, 1)
            at += 20 * MS
        at += 1_000 * MS
    pair.listener.add_heard(at, rtp.SILENCE, 0, 0, 1)
    pair.listener.add_heard(at + 1, rtp.FOREIGN, 0, 0, 1)
    result = pair.report(until=at + 2)
    assert [span.packets for span in result.other_audio] == [50, 25]
    assert (result.silence_packets, result.foreign_packets, result.packets) == (1, 1, 77)


def music(pair: Pair, *packets: tuple[int, int], ssrc: int = 7) -> None:
    """(arrival in ms, place in the stream in ms) of each packet."""
    for at_ms, stream_ms in packets:
        stamp = (4_294_967_000 + stream_ms * 8) & 0xFFFFFFFF
        pair.listener.add_heard(T0 + at_ms * MS, rtp.OTHER, 0, stamp, ssrc)


def steady(begin_ms: int, end_ms: int, behind_ms: int = 0) -> list[tuple[int, int]]:
    return [(at, at - behind_ms) for at in range(begin_ms, end_ms, 20)]


def test_music_that_stood_still_and_catches_up_is_late_and_not_lost(pair: Pair) -> None:
    music(pair, *steady(0, 500), (581, 500), (581, 520), (582, 540), (582, 560), *steady(600, 1000))
    result = pair.report(until=T0 + 1_000 * MS)
    assert result.other_silent_ms == 0
    assert result.other_longest_gap_ms == 81
    assert result.other_longest_gap_at == pytest.approx((T0 + 480 * MS) / 1e9)


@pytest.mark.parametrize("case", ["shifted", "left out", "another stream"])
def test_music_that_stood_still_and_does_not_catch_up_is_lost(pair: Pair, case: str) -> None:
    music(pair, *steady(0, 500))
    ssrc = 8 if case == "another stream" else 7
    music(pair, *steady(580, 1000, behind_ms=80 if case == "shifted" else 0), ssrc=ssrc)
    result = pair.report(until=T0 + 1_000 * MS)
    assert result.other_silent_ms == result.other_longest_gap_ms == 80


def test_music_later_than_a_phone_waits_is_lost(pair: Pair) -> None:
    owed = [(700, at) for at in range(500, 700, 20)]
    music(pair, *steady(0, 500), *owed, *steady(700, 1000))
    result = pair.report(until=T0 + 1_000 * MS)
    assert result.other_silent_ms == 200


def test_music_that_ends_is_lost_from_then_on(pair: Pair) -> None:
    music(pair, *steady(0, 500))
    assert pair.report(until=T0 + 1_000 * MS).other_silent_ms == 500


CUSTOMER, THIRD = SOURCE, 8
TONES = {CUSTOMER: rtp.CARRIER_HERTZ, THIRD: rtp.PHONE_HERTZ}
OF_CUSTOMER, OF_THIRD = (rtp.pitch_bit(hertz) for hertz in (rtp.CARRIER_HERTZ, rtp.PHONE_HERTZ))


class Company(Pair):
    """Two who talk, and somebody who should hear any of them: each by himself, or mixed by Asterisk."""

    def __init__(self, customer: StreamLog, third: StreamLog, listener: StreamLog) -> None:
        super().__init__(customer, listener)
        self.third = third

    def speak(self, packets: int, hear: Callable[[int], None] = lambda _: None) -> None:
        """Both speak; ``hear`` says what comes of each packet."""
        for _ in range(packets):
            self.number += 1
            self.talker.add_sent(self.at)
            self.third.add_sent(self.at)
            hear(self.at + MS)
            self.at += 20 * MS

    def mixed(self, at: int, tones: int = OF_CUSTOMER | OF_THIRD) -> None:
        self.listener.add_heard(at, rtp.OTHER, tones, at // 125_000 & 0xFFFFFFFF, 5)

    def music(self, at: int) -> None:
        self.mixed(at, 0)

    def third_alone(self, at: int) -> None:
        self.listener.add_heard(at, rtp.VOICE, THIRD, self.number, 6)

    def stranger(self, at: int) -> None:
        self.listener.add_heard(at, rtp.VOICE, 77, self.number, 6)

    def any_voice(self) -> tuple[int, float, float]:
        """Packets, silence and longest gap in milliseconds."""
        logs = {CUSTOMER: self.talker, THIRD: self.third}
        found = report(self.listener, logs.get, T0, self.at, TONES).any_voice
        assert found is not None
        return found.packets, found.silent_ms, found.longest_gap_ms


@pytest.fixture
def company(make_log: Callable[[], StreamLog]) -> Company:
    return Company(make_log(), make_log(), make_log())


def test_who_is_in_company_hears_a_mix_and_a_voice_alone_alike(company: Company) -> None:
    company.speak(50, company.mixed)
    company.speak(50, company.third_alone)
    company.speak(50, company.mixed)
    assert company.any_voice() == (150, 0, 1)


@pytest.mark.parametrize("instead", ["nothing", "music", "stranger", "silence"])
def test_what_is_nobodys_of_the_company_is_silence(company: Company, instead: str) -> None:
    def silence(at: int) -> None:
        company.listener.add_heard(at, rtp.SILENCE, 0, 0, 5)

    ways = {"nothing": lambda _: None, "music": company.music, "stranger": company.stranger}
    company.speak(50, company.mixed)
    company.speak(15, ways.get(instead, silence))
    company.speak(50, company.third_alone)
    assert company.any_voice() == (100, 300, 300)


@pytest.mark.parametrize(("tones", "silent_ms"), [(OF_CUSTOMER, 0), (OF_THIRD, 0), (0, 300)])
def test_one_voice_of_a_mix_is_enough(company: Company, tones: int, silent_ms: float) -> None:
    company.speak(50, company.mixed)
    company.speak(15, lambda at: company.mixed(at, tones))
    company.speak(50, company.mixed)
    assert company.any_voice()[1] == silent_ms


def test_only_the_tones_of_those_asked_for_count(company: Company) -> None:
    company.speak(50, lambda at: company.mixed(at, OF_CUSTOMER))
    found = report(company.listener, {}.get, T0, company.at, {THIRD: rtp.PHONE_HERTZ}).any_voice
    assert found is not None and found.packets == 0
    assert found.silent_ms == 600  # a second, less what may still be under way


def test_the_begin_of_the_window_counts(company: Company) -> None:
    company.speak(20)
    company.speak(50, company.mixed)
    assert company.any_voice() == (50, 401, 401)


def test_company_that_falls_silent_for_good_is_missed_to_the_end(company: Company) -> None:
    company.speak(50, company.mixed)
    company.speak(100)
    packets, silent_ms, gap_ms = company.any_voice()
    assert packets == 50 and 1_550 <= silent_ms == gap_ms <= 1_600


def test_nobody_is_missed_while_nobody_speaks_and_is_as_soon_as_one_does(company: Company) -> None:
    company.speak(50, company.mixed)
    company.at += 800 * MS
    company.speak(50, company.mixed)
    assert company.any_voice()[1] == 0
    since = company.at
    company.at += 300 * MS
    company.say(25, heard=False)
    company.speak(50, company.mixed)
    logs = {CUSTOMER: company.talker, THIRD: company.third}
    found = report(company.listener, logs.get, since, company.at, TONES).any_voice
    assert found is not None and found.silent_ms == pytest.approx(501, abs=20)


def test_a_digit_takes_the_place_of_any_voice(company: Company) -> None:
    company.speak(50, company.mixed)
    company.digit(company.at + MS)
    company.speak(7)
    company.speak(50, company.mixed)
    assert company.any_voice()[1:] == (0, 1)


@pytest.mark.parametrize("third_types", [True, False])
def test_who_types_is_not_missed_in_a_mix(company: Company, third_types: bool) -> None:
    """Asterisk leaves out the voice of whoever types, and passes no digit on to who only listens."""
    company.speak(50, company.mixed)
    for packet in range(9):
        company.number += 1
        company.talker.add_sent(company.at, typing=packet < 7)
        company.third.add_sent(company.at, typing=third_types and packet < 7)
        company.at += 20 * MS
    company.speak(50, company.mixed)
    assert company.any_voice()[1] == (0 if third_types else 180)


@pytest.mark.parametrize(("late", "silent_ms"), [(5, 0), (9, 61)])
def test_a_pause_is_heard_later_in_a_mix(company: Company, late: int, silent_ms: float) -> None:
    """By what Asterisk holds back (100 ms were seen), and not by more; its length stays as it was."""
    company.speak(50, company.mixed)
    for packet in range(9 + late):
        company.number += 1
        for log in (company.talker, company.third):
            log.add_sent(company.at, typing=packet < 7)
        if packet < late:
            company.mixed(company.at)
        company.at += 20 * MS
    company.speak(50, company.mixed)
    assert company.any_voice()[1] == pytest.approx(silent_ms, abs=1)


@pytest.mark.parametrize("way", ["mixed", "alone"])
def test_company_that_comes_late_and_all_at_once_is_not_lost(company: Company, way: str) -> None:
    company.speak(50, company.mixed if way == "mixed" else company.third_alone)
    owed: list[int] = []
    company.speak(4, owed.append)
    numbers = range(company.number - 3, company.number + 1)
    for number, at in zip(numbers, owed, strict=True):
        if way == "mixed":
            company.listener.add_heard(company.at, rtp.OTHER, OF_THIRD, at // 125_000 & 0xFFFFFFFF, 5)
        else:
            company.listener.add_heard(company.at, rtp.VOICE, THIRD, number, 6)
    company.speak(50, company.mixed if way == "mixed" else company.third_alone)
    packets, silent_ms, gap_ms = company.any_voice()
    assert (packets, silent_ms) == (104, 0) and gap_ms >= 79


def test_nobody_asked_for_company() -> None:
    assert Report().to_dict()["any_voice"] is None


def test_a_digit_repeated_later_is_two_digits(pair: Pair) -> None:
    pair.digit(T0)
    pair.digit(T0 + 1_000 * MS)
    assert len(pair.report(until=T0 + 3_000 * MS).digits) == 2


def test_rings_forget_the_oldest_and_stay_right(make_log: Callable[[], StreamLog]) -> None:
    pair = Pair(make_log(), make_log())
    pair.say(HEARD_MAX_RECORDS + 1_000)
    assert pair.talker.sent_at(1) is None
    assert pair.talker.sent_at(SENT_MAX_RECORDS + 1_000) == pair.at - 20 * MS
    window = pair.at - 10_000 * MS
    (heard,) = pair.report(since=window).hears
    assert (heard.received, heard.lost) == (500, 0)
    assert pair.report(since=0).hears[0].lost == 0


def test_packets_are_recognised_after_a_round_trip() -> None:
    packet = rtp.voice_buffer(SOURCE, SSRC, 1_000)
    rtp.set_voice(packet, rtp.PT_PCMA, 65_535, 4_294_967_295, 123_456, marker=True)
    assert len(packet) == rtp.HEADER_BYTES + rtp.SAMPLES_PER_PACKET
    assert rtp.classify(packet, len(packet), 101) == (rtp.VOICE, SOURCE, 123_456, SSRC)
    event = rtp.digit_packet("#", 96, 1, 2, SSRC, 480, first=True, end=True)
    assert rtp.classify(event, len(event), 96) == (rtp.DIGIT, 11, 2, 480 | 0x80000000)
    assert rtp.classify(event, len(event), 101)[0] != rtp.DIGIT


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (bytes([0xD5]) * 160, rtp.SILENCE),
        (bytes([0x55, 0xD5]) * 80, rtp.SILENCE),
        (bytes([0xFF]) * 160, rtp.SILENCE),
        (rtp.tone(400), rtp.OTHER),
        (b"\x01" * 160, rtp.OTHER),
    ],
)
def test_payloads_without_the_marker(payload: bytes, kind: int) -> None:
    packet = bytes([0x80, 8]) + bytes(10) + payload
    assert rtp.classify(packet, len(packet), 101)[0] == kind


def spoken(hertz: int, law: int = rtp.PT_PCMA) -> list[int]:
    """The samples of a far end's packet."""
    linear = {rtp.PT_PCMA: rtp.from_alaw, rtp.PT_PCMU: rtp.from_mulaw}[law]
    packet = rtp.voice_buffer(SOURCE, SSRC, hertz)
    rtp.set_voice(packet, law, 1, 160, 4_711, marker=False)
    return [linear(code) for code in packet[rtp.HEADER_BYTES :]]


@pytest.mark.parametrize("shift", [0, 13, 80])
@pytest.mark.parametrize(
    ("said", "tones"),
    [((400,), 1), ((1_000,), 2), ((400, 1_000), 3), ((1_000, 1_000), 2), ((400, 1_000, 1_000), 3)],
)
def test_voices_are_found_in_a_mix_by_their_tones(said: tuple[int, ...], tones: int, shift: int) -> None:
    """What Asterisk does: it adds samples, and its packets may begin elsewhere."""
    summed = [sum(column) for column in zip(*map(spoken, said), strict=True)] * 2
    payload = bytes(rtp.alaw(sample) for sample in summed[shift : shift + rtp.SAMPLES_PER_PACKET])
    assert rtp.pitches(payload, rtp.PT_PCMA) == tones
    packet = bytes([0x80, rtp.PT_PCMA]) + bytes(10) + payload
    if len(said) > 1:
        assert rtp.classify(packet, len(packet), 101)[:2] == (rtp.OTHER, tones)


def test_a_voice_is_found_in_mu_law_too() -> None:
    packet = rtp.voice_buffer(SOURCE, SSRC, 400)
    assert rtp.pitches(bytes(packet[rtp.HEADER_BYTES :]), rtp.PT_PCMU) == 1


@pytest.mark.parametrize("hertz", [440.0, 554.37, 659.25, 880.0, 950.0])
def test_what_the_lab_plays_is_nobodys_voice(hertz: float) -> None:
    """docker/images/asterisk/make-sounds, wherever in a note a packet begins."""
    for begin in range(0, 800, 7):
        samples = [8_192 * math.sin(2 * math.pi * hertz * (begin + n) / 8_000) for n in range(160)]
        assert rtp.pitches(bytes(rtp.alaw(int(sample)) for sample in samples), rtp.PT_PCMA) == 0


@pytest.mark.parametrize(
    "packet", [b"", b"\x80\x08", b"INVITE sip:a@b SIP/2.0", bytes([0x90, 8]) + bytes(10)]
)
def test_what_is_no_rtp_is_foreign(packet: bytes) -> None:
    assert rtp.classify(packet, len(packet), 101)[0] == rtp.FOREIGN


def test_alaw_matches_known_values() -> None:
    # ITU-T G.711: zero is 0xD5, the largest positive value 0xAA, the largest negative one 0x2A.
    assert [rtp.alaw(value) for value in (0, 32_767, -32_767)] == [0xD5, 0xAA, 0x2A]
    assert [rtp.from_alaw(code) for code in (0xD5, 0xAA, 0x2A)] == [8, 32_256, -32_256]
    assert [rtp.from_mulaw(code) for code in (0xFF, 0x80, 0x00)] == [0, 32_124, -32_124]
    assert all(rtp.alaw(rtp.from_alaw(code)) == code for code in range(256))


_WRITER = """
import sys
from ari_ha.farend.streamlog import StreamLog
log = StreamLog(int(sys.argv[1]))
print("ready", flush=True)
for number in range(int(sys.argv[2])):
    log.add_heard(number, 1, 1, number, 0)
    log.add_sent(number)
"""


def test_a_reader_never_sees_fewer_packets_than_before() -> None:
    fd = StreamLog.make_fd()
    log, packets = StreamLog(fd), 150_000
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(fd), str(packets)], pass_fds=[fd], stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None and writer.stdout.readline()
        heard = sent = looks = 0
        while writer.poll() is None:
            now_heard, now_sent = log.heard_total(), log.sent_total()
            assert now_heard >= heard and now_sent >= sent
            heard, sent, looks = now_heard, now_sent, looks + 1
    assert log.heard_total() == log.sent_total() == packets and looks > 100
    log.close()
    os.close(fd)
