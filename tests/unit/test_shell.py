"""The shell's promises: lanes, limits, outcomes, deadlines, shedding, faults."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field

import pytest

from ari_ha.core.machine import (
    Count,
    DeadlineReached,
    Done,
    Effect,
    Event,
    InvariantBroken,
    Note,
    OutcomeOf,
    Refused,
    ShellStall,
    Unknown,
)
from ari_ha.core.story import Story
from ari_ha.runtime.shell import DEADLINE_FLOOR_S, EVENTS_PER_TURN_MAX, Shell


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin(Event):
    effects: tuple[Effect, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Work(Effect):
    name: str
    takes_s: float = 0.0
    outcome: object = field(default_factory=Done)


@dataclass(frozen=True, slots=True, kw_only=True)
class Send(Effect):
    name: str


class Recorder:
    """A machine that writes down what it is told and emits what `Begin` carries."""

    def __init__(self) -> None:
        self.seen: list[Event] = []
        self.wanted: float | None = None
        self.broken = False
        self.on_outcome: dict[str, tuple[Effect, ...]] = {}

    def handle(self, event, now):
        self.seen.append(event)
        if isinstance(event, DeadlineReached):
            self.wanted = None
        if isinstance(event, OutcomeOf):
            return self.on_outcome.pop(getattr(event.effect, "name", ""), ())
        if isinstance(event, Begin):
            if event.cause == "fault":
                raise ValueError("a bug")
            return event.effects
        return ()

    def deadline(self):
        return self.wanted

    def check(self):
        if self.broken:
            raise InvariantBroken("broken")

    def outcomes(self):
        return [(e.effect.name, e.outcome) for e in self.seen if isinstance(e, OutcomeOf)]


class Bench:
    """A shell over a recorder, with a perform that sleeps and answers as told."""

    def __init__(self, **settings) -> None:
        self.machine = Recorder()
        self.done: list[str] = []
        self.sent: list[str] = []
        self.story = Story()
        self.shell = Shell(
            self.machine, self.perform, story=self.story, perform_now=self.perform_now, **settings
        )

    async def perform(self, effect):
        if effect.takes_s:
            await asyncio.sleep(effect.takes_s)
        self.done.append(effect.name)
        if isinstance(effect.outcome, Exception):
            raise effect.outcome
        return effect.outcome

    def perform_now(self, effect):
        self.sent.append(effect.name)

    async def until_idle(self, limit_s=30.0):
        async with asyncio.timeout(limit_s):
            while not self.shell.idle():
                await asyncio.sleep(0.002)

    async def __aenter__(self):
        self.task = asyncio.create_task(self.shell.run())
        return self

    async def __aexit__(self, *_):
        self.shell.stop()
        await asyncio.wait_for(self.task, 30)


async def test_a_lane_runs_in_order_and_lanes_run_side_by_side():
    async with Bench() as b:
        b.shell.post(
            Begin(
                effects=(
                    Work(name="a1", lane="a", takes_s=0.05),
                    Work(name="a2", lane="a"),
                    Work(name="b1", lane="b"),
                )
            )
        )
        await asyncio.sleep(0.01)
        assert b.shell.lanes == 1  # lane b is done and forgotten
        await b.until_idle()
    assert b.done == ["b1", "a1", "a2"]
    assert b.shell.lanes == 0


async def test_with_previous_runs_beside_it_and_what_is_behind_waits_for_both():
    async with Bench() as b:
        b.shell.post(
            Begin(
                effects=(
                    Work(name="a1", lane="a", takes_s=0.05),
                    Work(name="a2", lane="a", with_previous=True),
                    Work(name="a3", lane="a"),
                )
            )
        )
        await b.until_idle()
    assert b.done == ["a2", "a1", "a3"]


async def test_a_refusal_beside_another_effect_stops_what_is_behind_both():
    async with Bench() as b:
        b.shell.post(
            Begin(
                effects=(
                    Work(name="1", lane="x", outcome=Refused("no")),
                    Work(name="2", lane="x", with_previous=True),
                    Work(name="3", lane="x"),
                )
            )
        )
        await b.until_idle()
    assert b.done == ["1", "2"]
    assert b.machine.outcomes()[-1] == ("3", Refused("lane stopped"))


async def test_a_lane_stops_at_the_first_outcome_that_is_not_done():
    async with Bench() as b:
        b.machine.on_outcome["1"] = (Work(name="later", lane="x"),)
        b.shell.post(
            Begin(
                effects=(
                    Work(name="1", lane="x", outcome=Refused("no", 409)),
                    Work(name="2", lane="x"),
                    Work(name="3", lane="x"),
                )
            )
        )
        await b.until_idle()
    assert b.machine.outcomes() == [
        ("1", Refused("no", 409)),
        ("2", Refused("lane stopped")),
        ("3", Refused("lane stopped")),
        ("later", Done()),
    ]
    assert b.done == ["1", "later"]


async def test_a_limit_and_a_fault_of_the_adapter_end_in_unknown():
    async with Bench() as b:
        b.shell.post(
            Begin(
                effects=(
                    Work(name="slow", lane="a", takes_s=1, limit_s=0.02),
                    Work(name="bug", lane="b", outcome=KeyError("x")),
                )
            )
        )
        await b.until_idle()
    outcomes = dict(b.machine.outcomes())
    assert isinstance(outcomes["slow"], Unknown) and isinstance(outcomes["bug"], Unknown)
    assert b.shell.faults == 1


async def test_without_a_lane_it_is_done_at_once_and_has_no_outcome():
    async with Bench() as b:
        b.shell.post(Begin(effects=(Send(name="s1"), Send(name="s2"))))
        await b.until_idle()
    assert b.sent == ["s1", "s2"]
    assert b.machine.outcomes() == []


async def test_instant_types_are_sent_at_once_and_other_laneless_effects_report():
    async with Bench(instant=(Send,)) as b:
        b.shell.post(Begin(effects=(Send(name="s", lane="x"), Work(name="w"))))
        await b.until_idle()
    assert b.sent == ["s"]
    assert b.machine.outcomes() == [("w", Done())]


async def test_a_full_mailbox_refuses_events_but_never_outcomes():
    b = Bench(mailbox_max=10, reserved=4)
    b.shell._enqueue(Begin(effects=tuple(Work(name=str(n), lane=str(n)) for n in range(20))))
    assert [b.shell.post(Begin()) for _ in range(7)] == [True] * 5 + [False] * 2
    assert b.shell.refused_events == 2
    async with b:
        await b.until_idle()
    assert len(b.machine.outcomes()) == 20


async def test_one_deadline_event_per_deadline_and_it_follows_changes():
    async with Bench() as b:
        started = time.monotonic()
        b.machine.wanted = started + 5
        b.shell.post(Begin())
        await asyncio.sleep(0.01)
        b.machine.wanted = started + 0.05
        b.shell.post(Begin())
        async with asyncio.timeout(30):
            while b.machine.wanted is not None:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
    fired = [e for e in b.machine.seen if isinstance(e, DeadlineReached)]
    assert len(fired) == 1
    assert b.machine.wanted is None


async def test_a_deadline_that_never_moves_does_not_starve_the_loop():
    b = Bench()
    b.machine.handle = lambda event, now: b.machine.seen.append(event) or ()
    b.machine.wanted = 0.0
    async with b:
        began, turns = time.monotonic(), 0
        async with asyncio.timeout(30):
            while turns < 20 or len(b.machine.seen) <= 5:
                await asyncio.sleep(0.002)
                turns += 1
        took_s = time.monotonic() - began
    assert len(b.machine.seen) <= took_s / DEADLINE_FLOOR_S + 1


async def test_a_fault_in_the_machine_is_told_and_the_process_goes_on(caplog):
    caplog.set_level(logging.INFO, "ari_ha.shell")
    async with Bench() as b:
        b.shell.post(Begin(effects=(Note(subject="call/1", text="before", facts=(("kind", "x"),)),)))
        b.shell.post(Begin(cause="fault"))
        b.shell.post(Begin(effects=(Send(name="after"),)))
        await b.until_idle()
    assert b.sent == ["after"] and b.shell.faults == 1
    lines = [r.facts for r in caplog.records]
    assert [line["kind"] for line in lines] == ["note", "fault"]
    assert lines[1]["error"] == "ValueError: a bug"
    assert lines[1]["story"][0]["text"] == "before"
    assert "fault" in lines[1]["about"]


@pytest.mark.parametrize("what", ["raise", "invariant"])
async def test_with_check_a_fault_ends_the_run(what):
    b = Bench(check=True)
    b.machine.broken = what == "invariant"
    b.shell.post(Begin(cause="fault" if what == "raise" else ""))
    with pytest.raises(ValueError if what == "raise" else InvariantBroken):
        await asyncio.wait_for(b.shell.run(), 30)


def stalled_s(b: Bench) -> float:
    return sum(event.lag_s for event in b.machine.seen if isinstance(event, ShellStall))


async def test_a_stall_is_told_and_measured():
    async with Bench() as b:
        before = time.monotonic()
        await asyncio.sleep(0.1)
        # A busy machine stalls this test as well: never more is told than there was.
        told_s, took_s = stalled_s(b), time.monotonic() - before
        assert told_s == 0 if took_s < 0.15 else told_s <= took_s
        time.sleep(0.3)
        await asyncio.sleep(0.1)
        assert 0.2 < stalled_s(b) <= time.monotonic() - before
    stalls = [e for e in b.machine.seen if isinstance(e, ShellStall)]
    assert any(stall.lag_s > 0.2 for stall in stalls)


async def test_counts_reach_the_metrics_and_notes_the_story():
    counted = []

    class Counters:
        def count(self, name, by, labels):
            counted.append((name, by, labels))

    async with Bench(metrics=Counters()) as b:
        b.shell.post(Begin(effects=(Count(name="calls", by=2), Note(subject="n", text="t", cause="c"))))
        await b.until_idle()
    assert counted == [("calls", 2, ())]
    assert [(line.subject, line.cause) for line in b.story] == [("n", "c")]


async def test_many_events_keep_the_loop_alive():
    async with Bench(mailbox_max=60_000) as b:
        for _ in range(50_000):
            b.shell.post(Begin())
        turns = 0
        while not b.shell.idle():
            await asyncio.sleep(0)
            turns += 1
    assert turns >= 50_000 // EVENTS_PER_TURN_MAX, "others had their turn after each batch"
    assert len(b.machine.seen) == 50_000
