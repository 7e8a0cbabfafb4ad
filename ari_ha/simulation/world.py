"""The simulated world: one queue of happenings, drawn from one seed.

True time is seconds since the world began. Nobody in it sees true time: every process
has a monotonic clock of its own, slightly fast or slow, and a wall clock that may be
wrong and may step. Two runs of one seed are the same, event by event.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

UTC_AT_START_S = 1_900_000_000.0
EVENTS_MAX = 3_000_000
STORY_LINES_MAX = 50_000
RESEND_S, RESEND_MAX_S = 0.2, 3.0


class RunawayWorld(Exception):
    """More happened than `EVENTS_MAX`: something answers itself for ever."""


@dataclass(frozen=True, slots=True)
class StoryLine:
    """What happened: when in true time, to whom, in words."""

    at_s: float
    who: str
    text: str

    def __str__(self) -> str:
        return f"{self.at_s:9.4f}  {self.who:<10} {self.text}"


@dataclass(slots=True)
class Timer:
    """Something that will happen, unless it is called off."""

    when: float
    act: Callable[[], None] | None

    def cancel(self) -> None:
        """It will not happen."""
        self.act = None


class World:
    """Time, chance and the story of one run."""

    def __init__(self, seed: int, tell: bool = True) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.now = 0.0
        self.tell = tell
        self.story: list[StoryLine] = []
        self.happened = 0
        self._heap: list[tuple[float, int, Timer]] = []
        self._serial = 0

    def at(self, when: float, act: Callable[[], None]) -> Timer:
        """``act`` happens at true time ``when``, not before now."""
        self._serial += 1
        timer = Timer(max(when, self.now), act)
        heapq.heappush(self._heap, (timer.when, self._serial, timer))
        return timer

    def after(self, delay_s: float, act: Callable[[], None]) -> Timer:
        """``act`` happens ``delay_s`` from now."""
        return self.at(self.now + delay_s, act)

    def run_until(self, when: float) -> None:
        """Everything up to ``when`` happens, in order."""
        heap = self._heap
        while heap and heap[0][0] <= when:
            at, _, timer = heapq.heappop(heap)
            if timer.act is None:
                continue
            self.now = at
            self.happened += 1
            if self.happened > EVENTS_MAX:
                raise RunawayWorld(f"{self.happened} happenings by {self.now:.3f} s")
            act, timer.act = timer.act, None
            act()
        self.now = max(self.now, when)

    def say(self, who: str, text: str) -> None:
        """Adds a line to the story."""
        if self.tell and len(self.story) < STORY_LINES_MAX:
            self.story.append(StoryLine(self.now, who, text))

    # -- chance

    def chance(self, probability: float) -> bool:
        """True with this probability. Draws nothing when it is certain."""
        return probability > 0 and self.rng.random() < probability

    def between(self, least: float, most: float) -> float:
        """A number between the two."""
        return least + (most - least) * self.rng.random()


@dataclass(slots=True)
class Clock:
    """One process's clocks. ``rate`` is how fast its monotonic clock runs; the wall
    clock is wrong by ``wall_offset_s`` until it steps."""

    world: World
    started_s: float = 0.0
    base_s: float = 1_000.0
    rate: float = 1.0
    wall_offset_s: float = 0.0

    def monotonic(self) -> float:
        """Seconds on this process's monotonic clock."""
        return self.base_s + (self.world.now - self.started_s) * self.rate

    def utc(self) -> float:
        """What this process thinks the time is."""
        return UTC_AT_START_S + self.world.now + self.wall_offset_s

    def true(self, monotonic_s: float) -> float:
        """The true time at which the monotonic clock shows this."""
        return self.started_s + (monotonic_s - self.base_s) / self.rate


@dataclass
class Network:
    """Links between hosts: delay, loss, duplicates, cuts in either direction.

    A datagram to a host that is up but where nobody listens is refused; the sender's
    kernel hears of it."""

    world: World
    delay_min_s: float = 0.0002
    delay_max_s: float = 0.002
    loss: float = 0.0
    duplicate: float = 0.0
    slow: float = 0.0
    """Share of datagrams that take up to `slow_max_s`."""
    slow_max_s: float = 0.3
    cuts: set[tuple[str, str]] = field(default_factory=set)
    """(from, to) pairs of hosts; nothing gets through"""
    lossy: dict[str, float] = field(default_factory=dict)
    """host -> share of what goes to or from it that is lost on top"""
    lossless: bool = False
    """Faults have stopped."""
    dropped: int = 0

    def cut(self, one: str, two: str) -> bool:
        """Whether nothing gets from ``one`` to ``two``."""
        return (one, two) in self.cuts

    def cut_off(self, host: str, others: list[str], both_ways: bool = True) -> None:
        """Cuts ``host`` from ``others``; one way only: it still hears them."""
        for other in others:
            self.cuts.add((host, other))
            if both_ways:
                self.cuts.add((other, host))

    def heal(self, host: str = "") -> None:
        """Every cut of ``host`` (or of all) is gone."""
        self.cuts = {pair for pair in self.cuts if host and host not in pair}

    def delay(self) -> float:
        """How long a message takes."""
        world = self.world
        if not self.lossless and world.chance(self.slow):
            return world.between(self.delay_max_s, self.slow_max_s)
        return world.between(self.delay_min_s, self.delay_max_s)

    def stream_delay(self, one: str, two: str) -> float:
        """How long a message of a connection takes: what is lost is sent again (RFC 6298)."""
        delay_s, wait_s = self.delay(), RESEND_S
        if one in self.lossy or two in self.lossy:
            share = self.lossy.get(one, 0.0) + self.lossy.get(two, 0.0)
            while wait_s < RESEND_MAX_S and self.world.chance(share):
                delay_s, wait_s = delay_s + wait_s, 2 * wait_s
        return delay_s

    def datagram(self, one: str, two: str, deliver: Callable[[], None]) -> None:
        """Sends a datagram; it may be lost, late, or come twice."""
        if one != two:
            loss = self.loss + self.lossy.get(one, 0.0) + self.lossy.get(two, 0.0)
            if self.cut(one, two) or (not self.lossless and self.world.chance(loss)):
                self.dropped += 1
                return
        self.world.after(self.delay(), deliver)
        if one != two and not self.lossless and self.world.chance(self.duplicate):
            self.world.after(self.delay() * 2, deliver)
