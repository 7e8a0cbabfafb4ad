"""Chaos judges: figures and reasons from known measurements."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ari_ha.cli import chaos_judge as judge
from ari_ha.cli.chaos import report
from ari_ha.cli.chaos_faults import ABOUT
from ari_ha.cli.chaos_inside import answer_times
from ari_ha.cli.chaos_judge import Pair, Verdict
from ari_ha.cli.chaos_menu import all_digits, taken_rightly


def row(*hears: dict[str, Any], music: int = 0, silent_ms: float = 0.0, sent: int = 50) -> dict[str, Any]:
    spans = [{"from": 0.0, "until": 1.0, "packets": music}] if music else []
    return {
        "hears": list(hears),
        "other_audio": spans,
        "other_silent_ms": silent_ms,
        "other_longest_gap_ms": silent_ms,
        "digits": [],
        "sent": sent,
        "any_voice": None,
    }


def of_any(silent_ms: float, *hears: dict[str, Any], music: int = 50) -> dict[str, Any]:
    """The row of an ear of which it was asked when it heard nobody."""
    voices = {"packets": 500, "silent_ms": silent_ms, "longest_gap_ms": silent_ms, "longest_gap_at": 0.0}
    return {**row(*hears, music=music), "any_voice": voices}


def heard(call: str, received: int = 50, lost_ms: int = 0, gap_ms: float = 1.0) -> dict[str, Any]:
    return {"call": call, "received": received, "lost_ms": lost_ms, "longest_gap_ms": gap_ms}


def far_call(state: str = "up", **more: Any) -> dict[str, Any]:
    return {"state": state, "ended_by": "", "status": 0, "cause": "", "leaked_headers": [], **more}


@pytest.fixture
def verdict() -> Verdict:
    return Verdict(Pair("carrier-1", "1555", "talking", "k1", "1001", "1001-1", "a1", "ast1", "5.1"))


def test_two_who_hear_each_other_survive(verdict: Verdict) -> None:
    rows = {"carrier-1": row(heard("1001-1", lost_ms=40, gap_ms=44)), "1001-1": row(heard("carrier-1"))}
    judge.judge_audio(verdict, rows, 10, rows)
    assert not verdict.against
    assert verdict.lost_ms == {"to_customer": 40, "to_agent": 0}
    assert verdict.gap_ms == {"to_customer": 44, "to_agent": 1}


def test_silence_counts_as_the_whole_window(verdict: Verdict) -> None:
    rows = {"carrier-1": row(heard("1001-1")), "1001-1": row()}
    judge.judge_audio(verdict, rows, 10, rows)
    assert verdict.lost_ms["to_agent"] == 10_000
    assert verdict.against == ["the agent does not hear the customer"]


def test_a_strange_voice_is_against_it(verdict: Verdict) -> None:
    rows = {"carrier-1": row(heard("1001-1"), heard("1002-7")), "1001-1": row(heard("carrier-1"))}
    judge.judge_audio(verdict, rows, 10, rows)
    assert verdict.against == ["heard 1002-7"]


@pytest.mark.parametrize("state", ["queued", "held", "ringing", "ivr"])
def test_who_waits_must_hear_music(state: str, verdict: Verdict) -> None:
    verdict.pair.state = state
    rows = {"carrier-1": row(music=500, silent_ms=260)}
    judge.judge_audio(verdict, rows, 10, {"carrier-1": row(music=49)})
    assert not verdict.against
    assert verdict.lost_ms["to_customer"] == 260
    judge.judge_audio(verdict, rows, 10, {"carrier-1": row(music=3)})
    assert verdict.against == ["the customer hears no music"]


@pytest.mark.parametrize("state", ["conference", "barged"])
def test_a_mix_in_which_one_voice_is_late_at_times_is_heard(state: str, verdict: Verdict) -> None:
    verdict.pair.state = state
    last = {
        "1001-1": row(heard("carrier-1", received=50)),
        "s-1": row(music=50),
        "carrier-1": row(heard("1001-1", received=15), music=30),
    }
    verdict.pair.supervisor_call = "s-1"
    judge.judge_hearing(verdict, last, 1.0)
    assert not verdict.against
    last["carrier-1"] = row(heard("1001-1", received=45), music=3)
    judge.judge_hearing(verdict, last, 1.0)
    assert verdict.against == ["the customer does not hear the others"]


@pytest.mark.parametrize(
    ("state", "lost"),
    [
        ("supervised", {"to_customer": 20, "to_agent": 40, "to_supervisor": 300}),
        ("whispered", {"to_customer": 20, "to_agent": 200, "to_supervisor": 300}),
        ("barged", {"to_customer": 100, "to_agent": 200, "to_supervisor": 300}),
        ("conference", {"to_customer": 100, "to_agent": 200, "to_third": 400}),
    ],
)
def test_every_ear_has_its_figure(verdict: Verdict, state: str, lost: dict[str, float]) -> None:
    """Numbered packets where a voice is heard as it was sent; else the time without any voice."""
    pair = verdict.pair
    pair.state = state
    if state == "conference":
        pair.side = ("1001-1", "1041-1")
    else:
        pair.supervisor_call = "1060-1"
    rows = {
        "carrier-1": of_any(100, heard("1001-1", lost_ms=20)),
        "1001-1": of_any(200, heard("carrier-1", lost_ms=40)),
        "1060-1": of_any(300),
        "1041-1": of_any(400),
    }
    judge.judge_audio(verdict, rows, 10, rows)
    assert verdict.lost_ms == lost
    assert verdict.gap_ms.keys() == lost.keys()
    (figure,) = judge.worst([verdict.to_dict()], "lost_audio_ms")
    assert figure == max(lost.values())
    del rows["1060-1" if state != "conference" else "1041-1"]
    judge.judge_audio(verdict, rows, 10, rows)
    assert verdict.lost_ms["to_third" if state == "conference" else "to_supervisor"] == 10_000


def test_each_ear_of_a_mix_is_told_whom_it_should_hear(verdict: Verdict) -> None:
    pair = verdict.pair
    assert pair.ears == {}
    pair.state, pair.supervisor_call = "barged", "1060-1"
    assert dict(pair.ears.values()) == {
        "carrier-1": ("1001-1", "1060-1"),
        "1001-1": ("carrier-1", "1060-1"),
        "1060-1": ("carrier-1", "1001-1"),
    }
    pair.state, pair.supervisor_call, pair.side = "conference", "", ("1001-1", "1041-1")
    assert dict(pair.ears.values()) == {
        "carrier-1": ("1001-1", "1041-1"),
        "1001-1": ("carrier-1", "1041-1"),
        "1041-1": ("carrier-1", "1001-1"),
    }


@pytest.mark.parametrize(
    ("state", "ear", "why"), [("barged", 0, ""), ("whispered", 1, ""), ("whispered", 0, "!")]
)
def test_a_supervisor_heard_by_himself_is_a_stranger_only_to_whom_he_does_not_speak(
    verdict: Verdict, state: str, ear: int, why: str
) -> None:
    verdict.pair.state, verdict.pair.supervisor_call = state, "1060-1"
    rows = [of_any(0, heard("1001-1")), of_any(0, heard("carrier-1")), of_any(0)]
    rows[ear]["hears"].append(heard("1060-1"))
    judge.judge_audio(verdict, dict(zip(["carrier-1", "1001-1", "1060-1"], rows, strict=True)), 10, {})
    assert ("heard 1060-1" in verdict.against) is bool(why)


def test_a_dialog_that_ended_is_against_it(verdict: Verdict) -> None:
    calls = {"carrier-1": far_call("ended", ended_by="them", cause="bye"), "1001-1": far_call()}
    judge.judge_dialogs(verdict, calls)
    assert verdict.against == ["carrier-1 ended: them 0 bye"]


def test_a_ringing_phone_must_still_ring(verdict: Verdict) -> None:
    verdict.pair.state = "ringing"
    calls = {"carrier-1": far_call(), "1001-1": far_call("ringing")}
    judge.judge_dialogs(verdict, calls)
    assert not verdict.against
    calls["1001-1"] = far_call("ended", ended_by="canceled", status=487)
    judge.judge_dialogs(verdict, calls)
    assert verdict.against == ["1001-1 ended: canceled 487"]


def test_inside_headers_outside_are_against_it(verdict: Verdict) -> None:
    calls = {"carrier-1": far_call(), "1001-1": far_call(leaked_headers=["X-ARI-HA-Token"])}
    judge.judge_dialogs(verdict, calls)
    assert verdict.against == ["1001-1 saw X-ARI-HA-Token"]


def test_only_a_digit_heard_later_and_under_a_new_decision_counts() -> None:
    digits = [
        {"leg": "c", "at_utc": 99.0, "epoch": "5.1"},
        {"leg": "c", "at_utc": 100.1, "epoch": "5.1"},
        {"leg": "a1", "at_utc": 100.2, "epoch": "5.2"},
        {"leg": "c", "at_utc": 100.5, "epoch": "5.2"},
    ]
    assert judge.first_digit_ms(digits, "c", 100.0, "5.1") == pytest.approx(500)
    assert judge.first_digit_ms(digits, "c", 100.0, "") == pytest.approx(100)
    assert judge.first_digit_ms(digits, "a2", 100.0, "") is None


def test_waiting_callers_are_expected_in_their_queues_order_not_as_they_were_placed() -> None:
    pairs = [Pair(f"carrier-{n}", f"1555{n}", "queued", call=f"k{n}") for n in range(4)]
    pairs.append(Pair("carrier-9", "15559", "queued", call="s1", queue="sales"))
    waiting = {"support": [{"call": "k2"}, {"call": "k0"}, {"call": "k1"}], "sales": [{"call": "s1"}]}
    served = judge.as_served(pairs, waiting)
    assert [pair.call for pair in served if pair.queue == "support"] == ["k2", "k0", "k1", "k3"]
    assert sorted(map(id, served)) == sorted(map(id, pairs))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], {}),
        ([7], {"p50": 7, "p95": 7, "p99": 7, "max": 7}),
        (list(range(1, 101)), {"p50": 50, "p95": 95, "p99": 99, "max": 100}),
    ],
)
def test_percentiles_are_nearest_rank(values: list[float], expected: dict[str, float]) -> None:
    assert judge.spread(values) == expected


def run_of(*verdicts: Verdict, **after: int) -> dict[str, Any]:
    none = {"double_owners": 0, "stale_legs": 0, "ghost_agents": 0, "agents_changed": 0}
    return {
        "fault": "asterisk-kill",
        "state": "talking",
        "at": "",
        "baseline": {"lost_ms_max": 20},
        "calls": [v.to_dict() for v in verdicts],
        "after": {**none, **after},
    }


def test_the_report_has_the_form_of_the_design(verdict: Verdict) -> None:
    verdict.same_agent, verdict.resumed_ms = True, 310.4
    verdict.lost_ms = {"to_customer": 0, "to_agent": 0}
    verdict.gap_ms = {"to_customer": 0, "to_agent": 0}
    verdict.carrier_messages = verdict.phone_messages = 0
    document = report([run_of(verdict)], {"asterisk": "22"}, "here")
    (call,) = document["runs"][0]["calls"]
    assert call == {
        "call": "k1",
        "survived": True,
        "same_agent": True,
        "lost_audio_ms": {"to_customer": 0, "to_agent": 0},
        "longest_gap_ms": {"to_customer": 0, "to_agent": 0},
        "carrier_messages": 0,
        "phone_messages": 0,
        "answered_ms": None,
        "resumed_ms": 310,
        "why": "",
    }
    assert document["summary"] == {
        "calls": 1,
        "survived": 1,
        "same_agent": 1,
        "lost_audio_ms": {"p50": 0, "p95": 0, "p99": 0, "max": 0},
        "resumed_ms": {"p50": 310, "p95": 310, "p99": 310, "max": 310},
        "answered_ms": {},
        "baseline_lost_ms": 20,
    }
    assert set(document) == {"runs", "summary", "versions", "machine"}


def test_one_lost_call_or_one_thing_left_fails_it(verdict: Verdict) -> None:
    assert judge.passed([run_of(verdict)])
    assert not judge.passed([run_of(verdict, stale_legs=1)])
    assert not judge.passed([run_of()])
    assert not judge.passed([])
    lost = Verdict(verdict.pair, against=["gone"])
    assert not judge.passed([run_of(verdict, lost)])


def test_what_was_not_measured_is_no_zero(verdict: Verdict) -> None:
    document = report([run_of(verdict)], {}, "here")
    assert document["runs"][0]["calls"][0]["lost_audio_ms"] == {"to_customer": None, "to_agent": None}
    assert judge.worst(document["runs"][0]["calls"], "lost_audio_ms") == []


@pytest.mark.parametrize(
    ("received", "sent", "heard_now"),
    [
        (50, 50, True),
        (39, 50, False),
        (30, 32, True),
        (20, 32, False),
        (12, 12, False),
        (40, None, True),
        (39, None, False),
    ],
)
def test_a_voice_is_heard_when_what_was_sent_arrives(
    received: int, sent: int | None, heard_now: bool
) -> None:
    listener = row({**heard("k1", received), "sent": sent})
    assert judge.hears_now(listener, "k1", 1.0) is heard_now


def test_messages_that_were_not_counted_are_not_zero() -> None:
    counted, not_counted = Verdict(Pair("c1", "1")), Verdict(Pair("c2", "2"))
    counted.carrier_messages, counted.phone_messages = 1, 2
    assert judge.messages_of([counted.to_dict()]) == "1 / 2"
    assert judge.messages_of([counted.to_dict(), not_counted.to_dict()]) == "–"


def test_a_request_is_answered_by_its_first_final_response() -> None:
    messages = [
        {"at": 1.0, "way": "sent", "what": "INVITE"},
        {"at": 9.0, "way": "received", "what": "200 BYE"},
        {"at": 10.0, "way": "sent", "what": "BYE"},
        {"at": 10.5, "way": "sent", "what": "BYE"},
        {"at": 10.6, "way": "received", "what": "100 BYE"},
        {"at": 10.75, "way": "received", "what": "200 BYE"},
    ]
    assert answer_times(messages, "BYE", 9.5) == [0.75]
    assert answer_times(messages, "INVITE", 9.5) == []


def test_the_titles_of_the_table_say_how_long_the_fault_lasts() -> None:
    text = (Path(__file__).resolve().parents[2] / "tools" / "survival-table").read_text()
    for fault, words in (("asterisk-freeze", "thawed {:g} s later"), ("etcd-quorum-loss", "for {:g} s")):
        titles = re.findall(rf'Row\("([^"]+)", "{fault}"', text)
        assert titles
        for title in titles:
            assert words.format(ABOUT[fault].mend_after_s) in title


@pytest.mark.parametrize(("kept", "expected"), [(True, "1111"), (False, "111111")])
def test_digits_from_before_the_fault_count_where_the_edge_is_another(kept: bool, expected: str) -> None:
    """An edge that took over knows only what nodes heard since."""
    at = (9.0, 9.5, 11.0, 12.0) if kept else (11.0, 11.5, 12.0, 12.5)
    digits = [{"leg": "c", "digit": "1", "at_utc": utc} for utc in at]
    digits.append({"leg": "a1", "digit": "2", "at_utc": 8.0})
    assert all_digits({"digits": digits}, "11", 10.0) == expected


@pytest.mark.parametrize(
    ("taken", "heard", "sent", "same_edge", "right"),
    [
        ("12", "12", "123", True, True),
        ("123", "12", "123", True, False),
        ("1", "12", "123", True, False),
        ("123", "13", "1234", False, True),
        ("113", "13", "134", False, False),
        ("1", "13", "134", False, False),
        ("31", "1", "134", False, False),
    ],
)
def test_digits_nobody_noted_may_have_been_taken_but_none_twice(
    taken: str, heard: str, sent: str, same_edge: bool, right: bool
) -> None:
    assert taken_rightly(taken, heard, sent, same_edge) is right


@pytest.mark.parametrize(
    ("agent", "supervisor", "sent", "against"),
    [
        (50, (50, 0), 50, []),
        (30, (24, 6), 32, []),
        (30, (24, 6), 50, ["the agent does not hear Asterisk", "the supervisor hears nobody"]),
        (50, (10, 40), 50, ["the supervisor hears nobody"]),
        (50, (0, 0), 50, ["the supervisor hears nobody"]),
    ],
)
def test_a_mix_is_judged_by_what_was_spoken(
    verdict: Verdict, agent: int, supervisor: tuple[int, int], sent: int, against: list[str]
) -> None:
    """Of far ends that got no processor less is heard; and of two voices one alone may come now and then."""
    verdict.pair.state, verdict.pair.supervisor_call = "whispered", "1060-1"
    mixed, alone = supervisor
    last = {
        "carrier-1": row({**heard("1001-1", received=sent), "sent": sent}, sent=sent),
        "1001-1": row(music=agent, sent=sent),
        "1060-1": row(*[heard("carrier-1", received=alone)] * (alone > 0), music=mixed, sent=sent),
    }
    judge.judge_hearing(verdict, last, 1.0)
    assert verdict.against == against
