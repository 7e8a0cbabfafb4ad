"""The one piece of glue between a machine and the event loop.

events -> bounded mailbox -> `Machine.handle` -> story, log, metrics, lanes -> outcomes

The shell decides nothing about calls. It keeps the promises written in
`ari_ha.core.machine`: lanes run in order and stop at the first outcome that is
not Done, every effect of a lane ends in exactly one `OutcomeOf`, limits end in
`Unknown`, one timer is armed for `Machine.deadline`, and a full mailbox refuses
new events while outcomes and deadlines always find room.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from ari_ha.core.machine import (
    LANE_STOPPED,
    Count,
    DeadlineReached,
    Done,
    Effect,
    Event,
    Instant,
    Machine,
    Note,
    Outcome,
    OutcomeOf,
    Refused,
    ShellStall,
    Unknown,
)
from ari_ha.core.story import Story

MAILBOX_MAX_EVENTS = 20_000
MAILBOX_RESERVED_EVENTS = 2_000
EVENTS_PER_TURN_MAX = 64
LANE_MAX_EFFECTS = 1_000
FREE_EFFECTS_MAX = 2_000
HEARTBEAT_S = 0.05
STALL_MIN_S = 0.1
DEADLINE_FLOOR_S = 0.001
STORY_TAIL_LINES = 20
EVENT_TEXT_MAX_CHARS = 1_000


class Counters(Protocol):
    """Where counts go (runtime.metrics)."""

    def count(self, name: str, by: float, labels: tuple[tuple[str, str], ...]) -> None:
        """Adds ``by`` to the counter."""
        ...


class _Lane:
    """Effects of one lane that wait, and the task that performs them."""

    __slots__ = ("task", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[Effect] = deque()
        self.task: asyncio.Task[None] | None = None


class Shell:
    """Runs one machine on the running event loop. All methods belong to that loop.

    ``perform`` carries out an effect that has a lane and returns its outcome.
    ``perform_now`` carries out, synchronously, what is fire and forget: effects
    without a lane and the types in ``instant``; these have no outcome event.
    Where ``instant`` is given, an effect without a lane that is of none of its
    types runs by ``perform`` on its own, in no order, and its outcome comes back.
    """

    def __init__(
        self,
        machine: Machine,
        perform: Callable[[Effect], Awaitable[Outcome]],
        *,
        story: Story,
        perform_now: Callable[[Effect], None] | None = None,
        clock: Callable[[], Instant] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        metrics: Counters | None = None,
        log: logging.Logger | None = None,
        mailbox_max: int = MAILBOX_MAX_EVENTS,
        reserved: int = MAILBOX_RESERVED_EVENTS,
        check: bool = False,
        instant: tuple[type[Effect], ...] = (),
    ) -> None:
        if not 0 < reserved < mailbox_max:
            raise ValueError("reserved must lie between 0 and mailbox_max")
        self.machine = machine
        self.story = story
        self._perform = perform
        self._perform_now = perform_now
        self._clock = clock
        self._wall_clock = wall_clock
        self._metrics = metrics
        self._log = log or logging.getLogger("ari_ha.shell")
        self._ordinary_max = mailbox_max - reserved
        self._check = check
        self._instant = instant
        self._mailbox: deque[Event] = deque()
        self._wake = asyncio.Event()
        self._lanes: dict[str, _Lane] = {}
        self._free: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for: Instant | None = None
        self._deadline_queued = False
        self._tasks_begun = False
        self._stopping = False
        self._failure: BaseException | None = None
        self.refused_events = 0
        self.faults = 0

    # -- what adapters and operators use

    def post(self, event: Event) -> bool:
        """Queues an event. False: the mailbox is full and the event was refused
        (the one who brought it must say so to the far end, e.g. with a 503)."""
        if len(self._mailbox) >= self._ordinary_max:
            self.refused_events += 1
            self._count("shell_events_refused", (("event", type(event).__name__),))
            return False
        self._enqueue(event)
        return True

    def stop(self) -> None:
        """Makes `run` return after the events it is handling now."""
        self._stopping = True
        self._wake.set()

    def idle(self) -> bool:
        """Nothing is queued and no effect is under way."""
        return not self._mailbox and not self._lanes and not self._free

    @property
    def queued(self) -> int:
        """Events waiting in the mailbox."""
        return len(self._mailbox)

    @property
    def lanes(self) -> int:
        """Lanes with work."""
        return len(self._lanes)

    async def run(self) -> None:
        """Handles events until `stop`. With ``check`` a fault of the machine ends
        it with that exception; otherwise it is logged and the process goes on."""
        loop = asyncio.get_running_loop()
        heart = loop.create_task(self._heartbeat())
        try:
            self._arm()
            while not self._stopping:
                if not self._mailbox:
                    self._wake.clear()
                    await self._wake.wait()
                self._tasks_begun = False
                for _ in range(min(len(self._mailbox), EVENTS_PER_TURN_MAX)):
                    self._handle(self._mailbox.popleft())
                    if self._failure is not None:
                        raise self._failure
                    if self._tasks_begun:
                        break  # what an event decided is done before the next event is looked at
                self._arm()
                await asyncio.sleep(0)
        finally:
            self._stopping = True
            if self._timer is not None:
                self._timer.cancel()
            tasks = [heart, *self._free, *(lane.task for lane in self._lanes.values() if lane.task)]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # -- events in

    def _enqueue(self, event: Event) -> None:
        self._mailbox.append(event)
        self._wake.set()

    def _handle(self, event: Event) -> None:
        if isinstance(event, DeadlineReached):
            self._deadline_queued = False
        if self._log.isEnabledFor(logging.DEBUG):
            self._line(logging.DEBUG, "event", {"event": type(event).__name__, "cause": event.cause})
        try:
            effects = self.machine.handle(event, self._clock())
            if self._check:
                self.machine.check()
        except Exception as error:
            self._fault("handle", error, event)
            if self._check:
                self._failure = error
            return
        for effect in effects:
            self._begin(effect)

    def _arm(self) -> None:
        """Keeps exactly one timer, for the machine's next deadline."""
        try:
            wanted = self.machine.deadline()
        except Exception as error:
            self._fault("deadline", error, None)
            if self._check:
                raise
            wanted = self._clock() + 1.0
        if wanted == self._armed_for and (self._timer is not None or wanted is None):
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._armed_for = wanted
        if wanted is None or self._deadline_queued:
            self._armed_for = None
            return
        wait_s = max(wanted - self._clock(), DEADLINE_FLOOR_S)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(loop.time() + wait_s, self._deadline_came)

    def _deadline_came(self) -> None:
        self._timer = None
        self._armed_for = None
        if not self._deadline_queued:
            self._deadline_queued = True
            self._enqueue(DeadlineReached())

    async def _heartbeat(self) -> None:
        """Notices that the loop itself was late."""
        while True:
            before = self._clock()
            await asyncio.sleep(HEARTBEAT_S)
            now = self._clock()
            lag_s = now - before - HEARTBEAT_S
            if lag_s > STALL_MIN_S:
                self._count("shell_stalls")
                self._enqueue(ShellStall(lag_s=lag_s))

    # -- effects out

    def _begin(self, effect: Effect) -> None:
        if isinstance(effect, Note):
            self.note(effect)
        elif isinstance(effect, Count):
            if self._metrics is not None:
                self._metrics.count(effect.name, effect.by, effect.labels)
        elif isinstance(effect, self._instant) or (effect.lane is None and not self._instant):
            self._now(effect)
        elif effect.lane is None:
            self._begin_free(effect)
        else:
            self._begin_in_lane(effect, effect.lane)

    def _now(self, effect: Effect) -> None:
        try:
            if self._perform_now is None:
                raise RuntimeError(f"{type(effect).__name__} has no lane and there is no perform_now")
            self._perform_now(effect)
        except Exception as error:
            self._fault("perform_now", error, effect)
            if self._check:
                self._failure = error

    def _begin_free(self, effect: Effect) -> None:
        if len(self._free) >= FREE_EFFECTS_MAX:
            self._outcome(effect, Refused("too many effects under way"))
            return
        task = asyncio.get_running_loop().create_task(self._run_free(effect))
        self._tasks_begun = True
        self._free.add(task)
        task.add_done_callback(self._free.discard)

    async def _run_free(self, effect: Effect) -> None:
        self._outcome(effect, await self._limited(effect))

    def _begin_in_lane(self, effect: Effect, name: str) -> None:
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = _Lane()
        if len(lane.waiting) >= LANE_MAX_EFFECTS:
            self._outcome(effect, Refused("lane full"))
            return
        lane.waiting.append(effect)
        if lane.task is None:
            lane.task = asyncio.get_running_loop().create_task(self._run_lane(name, lane))
            self._tasks_begun = True

    async def _run_lane(self, name: str, lane: _Lane) -> None:
        while lane.waiting:
            together = [lane.waiting.popleft()]
            while lane.waiting and lane.waiting[0].with_previous:
                together.append(lane.waiting.popleft())
            if len(together) == 1:
                outcomes = [await self._limited(together[0])]
            else:
                outcomes = await asyncio.gather(*map(self._limited, together))
            for effect, outcome in zip(together, outcomes, strict=True):
                self._outcome(effect, outcome)
            if not all(isinstance(outcome, Done) for outcome in outcomes):
                stopped, lane.waiting = lane.waiting, deque()
                for behind in stopped:
                    self._outcome(behind, Refused(LANE_STOPPED))
        # No await since the queue was seen empty: nothing can slip in between.
        del self._lanes[name]

    async def _limited(self, effect: Effect) -> Outcome:
        try:
            async with asyncio.timeout(effect.limit_s):
                return await self._perform(effect)
        except TimeoutError:
            return Unknown(f"no outcome within {effect.limit_s:g} s")
        except Exception as error:
            self._fault("perform", error, effect)
            return Unknown(f"local fault: {type(error).__name__}")

    def _outcome(self, effect: Effect, outcome: Outcome) -> None:
        if not isinstance(outcome, Done):
            self._count(
                "shell_effects_not_done",
                (("effect", type(effect).__name__), ("outcome", type(outcome).__name__)),
            )
            facts = {"effect": type(effect).__name__, "lane": effect.lane, "cause": effect.cause}
            facts |= {"outcome": type(outcome).__name__, "reason": outcome.reason}
            self._line(logging.INFO, "outcome", facts)
        self._enqueue(OutcomeOf(effect=effect, outcome=outcome, cause=effect.cause))

    # -- story, log, metrics

    def note(self, note: Note) -> None:
        """Writes a line of the story and of the log; adapters use it too."""
        line = self.story.add(note, self._wall_clock())
        level = logging.getLevelNamesMapping().get(note.level.upper(), logging.INFO)
        if self._log.isEnabledFor(level):
            self._line(level, "note", line.to_dict())

    def _count(self, name: str, labels: tuple[tuple[str, str], ...] = ()) -> None:
        if self._metrics is not None:
            self._metrics.count(name, 1, labels)

    def _fault(self, where: str, error: Exception, about: Event | Effect | None) -> None:
        """A local mistake: say everything we know, count it, go on."""
        self.faults += 1
        self._count("shell_faults", (("where", where),))
        tail = list(self.story)[-STORY_TAIL_LINES:]
        facts = {
            "where": where,
            "error": f"{type(error).__name__}: {error}",
            "about": repr(about)[:EVENT_TEXT_MAX_CHARS],
            "story": [line.to_dict() for line in tail],
            "traceback": _traceback(error),
        }
        self._line(logging.ERROR, "fault", facts)

    def _line(self, level: int, kind: str, facts: Mapping[str, Any]) -> None:
        """One line of facts; programs read the fields, nobody parses sentences."""
        if self._log.isEnabledFor(level):
            line = {"at": self._wall_clock(), **facts, "kind": kind}
            self._log.log(level, kind, extra={"facts": line})


def _traceback(error: BaseException) -> list[str]:
    """``file:line function`` of each frame, innermost last."""
    frames, at = [], error.__traceback__
    while at is not None:
        code = at.tb_frame.f_code
        frames.append(f"{code.co_filename.rsplit('/', 1)[-1]}:{at.tb_lineno} {code.co_name}")
        at = at.tb_next
    return frames
