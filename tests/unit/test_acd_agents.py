"""The agent's transition table, row by row."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from ari_ha.machines.acd_agents import RULES, Facts, Not, advance, diagram, recover, recovered
from ari_ha.wire.keyspace import AgentValue, AttemptOfAgent

UTC = 1_700_000_000.0
WORKS = ("idle", "reserved", "ringing", "talking", "hold", "consult", "dialing", "acw")
MINE = AttemptOfAgent(attempt="t1", call="k1", queue="support", node="n1#1", since=UTC - 20)


def agent(work: str = "idle", intent: str = "available", **fields: object) -> AgentValue:
    attempt = None if work == "idle" else MINE
    values: dict[str, object] = {
        "device": "dev-alice", "idle_since": UTC - 100, "acw_deadline": UTC if work == "acw" else 0.0,
    }  # fmt: skip
    return AgentValue(agent="alice", intent=intent, work=work, attempt=attempt, **{**values, **fields})


FACTS = Facts(attempt="t1", call="k1", queue="support", node="n1#1", deadline=0.0, wrapup_s=5, rona_max=1)

TABLE = [
    # rule, from, to (None: refused, "=": already so)
    ("reserve", "idle", "reserved"), ("reserve", "reserved", "="), ("reserve", "acw", None),
    ("ring", "reserved", "ringing"), ("ring", "ringing", "="), ("ring", "talking", "="), 
    ("ring", "idle", None),
    ("answer", "reserved", "talking"), ("answer", "ringing", "talking"), ("answer", "hold", "="),
    ("answer", "idle", None), ("answer", "acw", None),
    ("adopt", "idle", "talking"), ("adopt", "acw", "talking"), ("adopt", "talking", "="),
    ("release", "reserved", "idle"), ("release", "ringing", "idle"), ("release", "idle", "="),
    ("release", "talking", "="),
    ("excused", "ringing", "idle"), ("no-answer", "ringing", "idle"), ("no-answer", "idle", "="),
    ("reject", "ringing", "idle"), ("busy", "reserved", "idle"), ("unreachable", "reserved", "idle"),
    ("hold", "talking", "hold"), ("hold", "hold", "="), ("hold", "ringing", None), ("hold", "idle", None),
    ("unhold", "hold", "talking"), ("unhold", "talking", "="), ("unhold", "acw", None),
    ("end", "talking", "acw"), ("end", "hold", "acw"), ("end", "consult", "acw"), ("end", "dialing", "="),
    ("end", "idle", "="), ("end", "acw", "="),
    ("acw-done", "acw", "idle"), ("acw-done", "idle", "="), ("acw-extend", "idle", "="),
    ("void", "idle", None),
    ("dial", "idle", "dialing"), ("dial", "acw", "dialing"), ("dial", "talking", "="),
    ("connect", "dialing", "talking"), ("connect", "talking", "="), ("connect", "idle", None),
    ("join", "idle", "talking"), ("join", "hold", "="), ("join", "ringing", None),
    ("consult", "talking", "consult"), ("consult", "hold", "consult"), ("consult", "dialing", None),
    ("consult-end", "consult", "talking"), ("consult-end", "hold", "="), ("unhold", "consult", "="),
    ("undial", "dialing", "idle"), ("undial", "idle", "="),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "work", "to"), TABLE)
def test_transition(rule: str, work: str, to: str | None) -> None:
    before = agent(work, seq=7)
    after = advance(before, rule, FACTS, UTC)
    if to is None or to == "=":
        assert isinstance(after, Not)
        assert after.already is (to == "=")
    else:
        assert isinstance(after, AgentValue)
        assert (after.work, after.seq, after.work_since) == (to, 8, UTC)
        assert (after.attempt is None) == (to == "idle")


@pytest.mark.parametrize(("rule", "work"), list(itertools.product(RULES, WORKS)))
def test_every_rule_has_an_answer_in_every_state(rule: str, work: str) -> None:
    for intent in ("available", "not_ready", "logged_out"):
        after = advance(agent(work, intent), rule, FACTS, UTC)
        if isinstance(after, AgentValue):
            assert work in RULES[rule].works
            assert after.seq == 1


@pytest.mark.parametrize("rule", [name for name, rule in RULES.items() if rule.own])
def test_another_attempt_or_call_is_never_touched(rule: str) -> None:
    others = Facts(attempt="t9", call="k9", wrapup_s=5)
    for work in WORKS:
        assert isinstance(advance(agent(work), rule, others, UTC), Not)


@pytest.mark.parametrize("rule", [n for n in RULES if n not in ("intend", "login", "acw-extend")])
def test_asking_twice_changes_once(rule: str) -> None:
    for work in WORKS:
        once = advance(agent(work), rule, FACTS, UTC)
        if isinstance(once, AgentValue):
            assert isinstance(advance(once, rule, FACTS, UTC + 1), Not)


def test_reserve_wants_an_available_agent_out_of_delay() -> None:
    assert isinstance(advance(agent(intent="not_ready"), "reserve", FACTS, UTC), Not)
    assert isinstance(advance(agent(delay_until=UTC + 1), "reserve", FACTS, UTC), Not)
    assert isinstance(advance(agent(delay_until=UTC), "reserve", FACTS, UTC), AgentValue)
    ahead = agent(delay_until=UTC + 3610, work_since=UTC + 3600)
    assert isinstance(advance(ahead, "reserve", FACTS, UTC), AgentValue), "a wrong clock locks nobody out"


def changed(before: AgentValue, rule: str, facts: Facts = FACTS) -> AgentValue:
    after = advance(before, rule, facts, UTC)
    assert isinstance(after, AgentValue), after
    return after


def test_nobodys_fault_keeps_the_place_among_the_idle() -> None:
    after = changed(agent("ringing", misses=0), "release")
    assert (after.misses, after.missed, after.idle_since, after.delay_until) == (0, 0, UTC - 100, 0.0)


def test_a_miss_counts_and_delays() -> None:
    facts = Facts(attempt="t1", call="k1", rona_max=2, delay_s=10)
    after = changed(agent("ringing"), "no-answer", facts)
    assert (after.misses, after.missed, after.intent) == (1, 1, "available")
    assert (after.delay_until, after.idle_since) == (UTC + 10, UTC)


def test_the_last_allowed_miss_makes_him_not_ready() -> None:
    facts = Facts(attempt="t1", call="k1", rona_max=2)
    after = changed(agent("ringing", misses=1), "no-answer", facts)
    assert (after.intent, after.reason, after.by, after.misses) == ("not_ready", "rona", "acd", 2)
    ready = changed(after, "intend", Facts(intent="available", by="alice"))
    assert (ready.intent, ready.misses, ready.idle_since) == ("available", 0, UTC)


def test_rona_yields_to_a_pending_intent() -> None:
    after = changed(agent("ringing", next_intent="logged_out"), "no-answer")
    assert (after.intent, after.device, after.missed) == ("logged_out", "", 1)


@pytest.mark.parametrize("rule", ["reject", "busy", "excused"])
def test_turning_down_is_not_a_miss(rule: str) -> None:
    facts = Facts(attempt="t1", call="k1", delay_s=60)
    after = changed(agent("ringing", misses=0), rule, facts)
    assert (after.misses, after.missed, after.delay_until, after.idle_since) == (0, 0, UTC + 60, UTC)


def test_an_answer_forgives_misses_and_starts_the_talk_clock() -> None:
    after = changed(agent("ringing", misses=1), "answer")
    assert after.misses == 0
    assert after.attempt is not None and after.attempt.since == UTC


def test_end_books_the_call_and_wraps_up_until_an_absolute_time() -> None:
    after = changed(agent("hold", handled=3, talk_s=10.0), "end")
    assert (after.work, after.acw_deadline, after.handled, after.talk_s) == ("acw", UTC + 5, 4, 30.0)
    done = advance(after, "acw-done", Facts(deadline=UTC + 5), UTC + 5)
    assert isinstance(done, AgentValue)
    assert (done.work, done.idle_since, done.acw_deadline) == ("idle", UTC + 5, 0.0)


def test_no_wrap_up_goes_straight_to_idle() -> None:
    after = changed(agent("talking"), "end", Facts(call="k1", wrapup_s=0))
    assert (after.work, after.attempt, after.handled) == ("idle", None, 1)


def test_wrap_up_that_was_extended_does_not_end_at_the_old_deadline() -> None:
    extend = Facts(extend_s=60, acw_max_s=300)
    longer = changed(agent("acw", work_since=UTC - 5), "acw-extend", extend)
    assert longer.acw_deadline == UTC + 60
    assert isinstance(advance(longer, "acw-done", Facts(deadline=UTC), UTC), Not)
    most = changed(agent("acw", work_since=UTC - 299), "acw-extend", extend)
    assert most.acw_deadline == UTC + 1
    assert isinstance(advance(most, "acw-extend", extend, UTC), Not)


@pytest.mark.parametrize("work", [work for work in WORKS if work != "idle"])
def test_an_intent_waits_until_work_is_over(work: str) -> None:
    lunch = Facts(intent="not_ready", reason="lunch", by="alice")
    before = agent(work, intent_since=UTC - 50)
    after = changed(before, "intend", lunch)
    assert (after.intent, after.next_intent, after.next_reason) == ("available", "not_ready", "lunch")
    assert (after.intent_since, after.work, after.attempt) == (before.intent_since, work, before.attempt)
    again = advance(after, "intend", lunch, UTC)
    assert isinstance(again, Not) and again.already
    back = changed(after, "intend", Facts(intent="available", by="alice"))
    assert (back.next_intent, back.intent) == ("", "available")


def test_a_pending_intent_takes_effect_after_wrap_up() -> None:
    talking = agent("talking", next_intent="not_ready", next_reason="lunch")
    wrapping = changed(talking, "end")
    assert (wrapping.intent, wrapping.next_intent) == ("available", "not_ready")
    idle = changed(wrapping, "acw-done", Facts())
    assert (idle.intent, idle.reason, idle.next_intent) == ("not_ready", "lunch", "")


def test_login() -> None:
    here = Facts(device="dev-a", intent="available", by="alice")
    out = agent(intent="logged_out", device="")
    into = changed(out, "login", here)
    assert (into.intent, into.device, into.logged_in, into.idle_since) == ("available", "dev-a", UTC, UTC)
    again = advance(into, "login", here, UTC)
    assert isinstance(again, Not) and again.already
    elsewhere = Facts(device="dev-b", intent="available", by="alice")
    refused = advance(into, "login", elsewhere, UTC)
    assert isinstance(refused, Not) and not refused.already and "dev-a" in refused.why
    moved = changed(into, "login", Facts(device="dev-b", intent="available", take_over=True))
    assert (moved.device, moved.intent) == ("dev-b", "available")
    busy = advance(agent("talking"), "login", Facts(device="dev-b", take_over=True), UTC)
    assert isinstance(busy, Not)


def test_logout_forgets_the_device() -> None:
    after = changed(agent(misses=1), "intend", Facts(intent="logged_out", by="alice"))
    assert (after.intent, after.device, after.logged_in, after.misses) == ("logged_out", "", 0.0, 0)


def test_device_lost_and_back() -> None:
    lost = changed(agent(), "device-lost", Facts())
    assert (lost.intent, lost.reason, lost.by, lost.idle_since) == ("not_ready", "device", "acd", UTC - 100)
    back = changed(lost, "device-back", Facts())
    assert (back.intent, back.reason) == ("available", "")
    assert isinstance(advance(agent(intent="not_ready", reason="lunch"), "device-back", Facts(), UTC), Not)
    assert isinstance(advance(agent(intent="not_ready"), "device-lost", Facts(), UTC), Not)


@pytest.mark.parametrize("work", WORKS)
def test_the_overlay_is_all_that_failover_changes(work: str) -> None:
    before = agent(work, misses=1, handled=4, seq=9)
    during = recover(before, "k1", UTC, "n1#1")
    if work in ("idle", "acw"):
        assert isinstance(during, Not)
        return
    assert isinstance(during, AgentValue)
    assert msgspec.structs.replace(during, recovering=None) == before
    assert during.recovering == {"since": UTC, "from": "n1#1"}
    assert isinstance(recover(during, "k1", UTC + 1, "n2#1"), Not)
    assert recovered(during) == before


def test_leaving_work_takes_the_overlay_away() -> None:
    assert changed(agent("ringing", recovering={"since": UTC}), "release").recovering is None
    assert changed(agent("talking", recovering={"since": UTC}), "end").recovering is None


def test_the_table_draws_itself() -> None:
    text = diagram()
    assert "ringing --> talking: answer" in text
    assert text.count("\n") > len(RULES)
