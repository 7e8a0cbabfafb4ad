"""Lists of steps, one list at a time, each step idempotent.

A list that fails, or is no longer wanted, is dropped; what comes next is decided anew
from what the server and etcd say then. So nothing has to be remembered to go on after
a crash between any two steps. All effects of steps share one lane: what a dropped list
still has under way ends before the next list begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ari_ha.core.machine import Done, Effect, Instant, Outcome, Refused, Unknown
from ari_ha.core.ports.database import DatabaseDo
from ari_ha.core.ports.store import StoreTxn, TxnResult

LANE = "steps"
POISON = frozenset({"open", "semi_off", "follow", "follow_forget"})
"""Verbs that must not happen late: when nobody knows whether they did, the server's
process is ended, and with it what it may still be about to do."""


@dataclass(frozen=True, slots=True)
class Step:
    """``act`` gives the effect (None: nothing to do here); or ``until`` is waited for."""

    name: str
    act: Callable[[Instant], Effect | None] | None = None
    until: Callable[[], bool] | None = None
    limit_s: float = 0.0
    """For ``until``."""
    after: Callable[[Any], None] | None = None
    """Told the value of Done."""


class StepFailed(Exception):
    """The step cannot be taken any more; the text says why."""


@dataclass(slots=True)
class StepList:
    """Steps under way."""

    kind: str
    steps: Sequence[Step]
    wanted: Callable[[Instant], bool]
    began: Instant = 0.0
    index: int = 0
    step_began: Instant = 0.0
    under_way: str = ""

    @property
    def step(self) -> str:
        """Name of the step it is at."""
        return self.steps[self.index].name if self.index < len(self.steps) else "end"


class Steps:
    """Runs at most one list."""

    def __init__(
        self,
        emit: Callable[[Effect], None],
        ended: Callable[[StepList, str, Instant], None],
        lease: Callable[[], int],
        written: Callable[[StoreTxn, int, int], None],
    ) -> None:
        self._emit = emit
        self._lease = lease
        self._written = written
        self._leases: dict[str, int] = {}
        self._ended = ended
        self._serial = 0
        self.current: StepList | None = None
        self.open_tag = ""
        """An `open` whose outcome is not known yet."""
        self.touched_at: Instant = -1e9
        """When something was last done to the server, or found out to be done."""

    @property
    def kind(self) -> str:
        """What is being done, "" for nothing."""
        return self.current.kind if self.current else ""

    def begin(
        self, kind: str, steps: Sequence[Step], wanted: Callable[[Instant], bool], now: Instant
    ) -> None:
        """Starts a list; there must be none."""
        assert self.current is None
        self.current = StepList(kind, steps, wanted, began=now, step_began=now)
        self.tick(now)

    def drop(self, why: str, now: Instant) -> None:
        """Ends the list where it is."""
        if self.current is not None:
            dropped, self.current = self.current, None
            self._ended(dropped, why, now)

    def tick(self, now: Instant) -> None:
        """Goes on as far as possible."""
        while (running := self.current) is not None:
            if running.index >= len(running.steps):
                self.current = None
                self._ended(running, "", now)
                return
            if not running.wanted(now):
                self.drop("not wanted any more", now)
                return
            if running.under_way:
                return
            try:
                if not self._take(running, running.steps[running.index], now):
                    return
            except StepFailed as failed:
                self.drop(f"{running.step}: {failed}", now)
                return

    def _take(self, running: StepList, step: Step, now: Instant) -> bool:
        """Takes a step; whether the next may follow at once."""
        if step.until is not None:
            if not step.until():
                if now - running.step_began > step.limit_s:
                    raise StepFailed(f"not within {step.limit_s:g} s")
                return False
        elif step.act is not None and (effect := step.act(now)) is not None:
            self._serial += 1
            tag = f"{running.kind}.{self._serial}"
            running.under_way = tag
            tagged = replace(effect, lane=LANE, tag=tag)  # type: ignore[call-arg]
            if isinstance(tagged, DatabaseDo) and tagged.verb == "open":
                self.open_tag = tag
            if isinstance(tagged, StoreTxn):
                self._leases[tag] = self._lease()
            self._emit(tagged)
            return False
        self._next(running, now)
        return True

    def _next(self, running: StepList, now: Instant) -> None:
        running.index += 1
        running.step_began = now

    def outcome(self, effect: Effect, outcome: Outcome, now: Instant) -> bool:
        """An effect of some list ended. True: the server must be killed, because it may
        still do what must not happen late."""
        tag = getattr(effect, "tag", "")
        if tag and tag == self.open_tag:
            self.open_tag = ""
        poison = isinstance(effect, DatabaseDo) and effect.verb in POISON and isinstance(outcome, Unknown)
        if isinstance(effect, DatabaseDo):
            self.touched_at = now
        if isinstance(effect, StoreTxn):
            lease = self._leases.pop(tag, 0)
            if isinstance(outcome, Done) and outcome.value.succeeded:
                self._written(effect, outcome.value.revision, lease)
        running = self.current
        if running is None or not tag or running.under_way != tag:
            return poison
        running.under_way = ""
        step = running.steps[running.index]
        if not isinstance(outcome, Done):
            code = f" ({outcome.code})" if isinstance(outcome, Refused) and outcome.code else ""
            self.drop(f"{step.name}: {type(outcome).__name__} {outcome.reason}{code}", now)
            return poison
        if isinstance(effect, StoreTxn) and isinstance(outcome.value, TxnResult):
            if not outcome.value.succeeded:
                self.drop(f"{step.name}: etcd has something else by now", now)
                return False
        if step.after is not None:
            step.after(outcome.value)
        self._next(running, now)
        return False

    def deadline(self) -> Instant | None:
        """When a wait has lasted too long."""
        running = self.current
        if running is None or running.under_way or running.index >= len(running.steps):
            return None
        step = running.steps[running.index]
        return running.step_began + step.limit_s + 0.01 if step.until is not None else None
