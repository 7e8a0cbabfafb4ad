"""A process of the world, and the synchronous shell that runs a real machine in it.

The shell keeps the promises of `ari_ha.core.machine`: lanes in order, stopped by the
first outcome that is not Done; one outcome for every effect; limits end in Unknown; a
bounded mailbox with room kept for outcomes and deadlines. A process can crash (all it
had is gone, what it sent goes on), freeze and thaw.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ari_ha.core.machine import (
    Count,
    DeadlineReached,
    Done,
    Effect,
    Event,
    Machine,
    Note,
    Outcome,
    OutcomeOf,
    Refused,
    ShellStall,
    Unknown,
)
from ari_ha.core.ports.probe import WallClock
from ari_ha.simulation.world import Clock, Timer, World

MAILBOX_MAX_EVENTS = 20_000
MAILBOX_RESERVED_EVENTS = 2_000
LANE_MAX_EFFECTS = 1_000
STALL_MIN_S = 0.1
WALL_CLOCK_EVERY_S = 1.0
DEADLINE_FLOOR_S = 0.001
SPIN_MAX = 5_000
"""Deadlines in a row without any time passing: the machine is stuck."""

RUNNING, FROZEN, DEAD = "running", "frozen", "dead"

Settle = Callable[[Outcome], None]


class Process:
    """Something that runs on a host: alive, frozen or dead. Calls made on it while it
    is frozen wait until it thaws; a dead one gets nothing."""

    def __init__(self, world: World, name: str, host: str) -> None:
        self.world = world
        self.name = name
        self.host = host
        self.state = DEAD
        self.life = 0
        """Counts its starts; what belonged to an earlier life is void."""
        self.clock = Clock(world)
        self._waiting: list[Callable[[], None]] = []
        self._frozen_at = 0.0

    def begin(self) -> None:
        """A new life."""
        self.life += 1
        self.state = RUNNING
        self._waiting = []
        self.clock.started_s = self.world.now
        self.clock.base_s = 1_000.0 * self.life
        self.world.say(self.name, f"starts (life {self.life})")

    def kill(self) -> None:
        """It is gone at once, without a word."""
        if self.state != DEAD:
            self.state = DEAD
            self._waiting = []
            self.world.say(self.name, "is killed")

    def freeze(self) -> None:
        """It stands still."""
        if self.state == RUNNING:
            self.state = FROZEN
            self._frozen_at = self.world.now
            self.world.say(self.name, "freezes")

    def thaw(self) -> None:
        """It goes on as if no time had passed."""
        if self.state == FROZEN:
            self.state = RUNNING
            self.world.say(self.name, f"thaws after {self.world.now - self._frozen_at:.3f} s")
            waiting, self._waiting = self._waiting, []
            self.thawed(self.world.now - self._frozen_at)
            for act in waiting:
                act()

    def thawed(self, stood_s: float) -> None:
        """Called first when it thaws."""

    @property
    def running(self) -> bool:
        """Alive and not frozen."""
        return self.state == RUNNING

    def in_life(self, act: Callable[[], None], life: int | None = None) -> Callable[[], None]:
        """``act`` bound to this life (or to ``life``): it does nothing in a later one,
        and waits while the process is frozen."""
        life = self.life if life is None else life

        def run() -> None:
            if self.life != life or self.state == DEAD:
                return
            if self.state == FROZEN:
                self._waiting.append(run)
                return
            act()

        return run


class MachineProcess(Process):
    """A process that is a shell with one machine.

    ``perform(effect, settle)`` carries out an effect and calls ``settle`` once;
    ``perform_now(effect)`` those of ``instant``, which have no outcome.
    """

    def __init__(
        self,
        world: World,
        name: str,
        host: str,
        *,
        make: Callable[[MachineProcess], Machine],
        perform: Callable[[MachineProcess, Effect, Settle], None],
        perform_now: Callable[[MachineProcess, Effect], None],
        instant: tuple[type[Effect], ...],
        check: bool = True,
    ) -> None:
        super().__init__(world, name, host)
        self._make = make
        self._perform = perform
        self._perform_now = perform_now
        self._instant = instant
        self._check = check
        self.machine: Machine | None = None
        self.counts: dict[str, float] = {}
        self._mailbox: deque[Event] = deque()
        self._lanes: dict[str, deque[Effect]] = {}
        self._turn_due = False
        self._timer: Timer | None = None
        self._armed_for: float | None = None
        self._deadline_queued = False
        self._spins = 0
        self._spun_at = -1.0

    def start(self, *first: Event) -> None:
        """A new life with a new machine."""
        self.begin()
        self._mailbox = deque()
        self._lanes = {}
        self._turn_due = False
        self._timer = None
        self._armed_for = None
        self._deadline_queued = False
        self.machine = self._make(self)
        for event in first:
            self._enqueue(event)
        self._arm()

    def tell_time(self) -> None:
        """The machine is told the wall clock's time every second of this life, from the next on."""

        def tell() -> None:
            self.post(WallClock(utc_s=self.clock.utc()))
            self.world.after(WALL_CLOCK_EVERY_S, self.in_life(tell))

        self.world.after(WALL_CLOCK_EVERY_S, self.in_life(tell))

    def thawed(self, stood_s: float) -> None:
        """The loop notices that it was late; before or after what waits in sockets."""
        if stood_s > STALL_MIN_S:
            stall = ShellStall(lag_s=stood_s * self.clock.rate)
            if self.world.chance(0.5):
                self._mailbox.appendleft(stall)
                self._enqueue_turn()
            else:
                self._enqueue(stall)

    # -- events in

    def post(self, event: Event) -> bool:
        """Queues an event from outside; False when the mailbox is full."""
        if self.state == DEAD:
            return False
        if len(self._mailbox) >= MAILBOX_MAX_EVENTS - MAILBOX_RESERVED_EVENTS:
            return False
        self._enqueue(event)
        return True

    def deliver(self, event: Event) -> None:
        """Posts an event that came over a wire: after thawing, never to a later life."""
        self.in_life(lambda: self.post(event))()

    def _enqueue(self, event: Event) -> None:
        self._mailbox.append(event)
        self._enqueue_turn()

    def _enqueue_turn(self) -> None:
        if not self._turn_due:
            self._turn_due = True
            self.world.after(0.0, self.in_life(self._turn))

    def _turn(self) -> None:
        self._turn_due = False
        while self._mailbox and self.state == RUNNING:
            self._handle(self._mailbox.popleft())
        if self.state == RUNNING:
            self._arm()

    def _handle(self, event: Event) -> None:
        machine = self.machine
        assert machine is not None
        if isinstance(event, DeadlineReached):
            self._deadline_queued = False
            self._watch_for_spin()
        effects = machine.handle(event, self.clock.monotonic())
        if self._check:
            machine.check()
        for effect in effects:
            self._begin(effect)

    def _watch_for_spin(self) -> None:
        if self.world.now - self._spun_at > 0.01:
            self._spun_at, self._spins = self.world.now, 0
        self._spins += 1
        if self._spins > SPIN_MAX:
            raise AssertionError(f"{self.name}: its deadline is always now")

    def _arm(self) -> None:
        assert self.machine is not None
        wanted = self.machine.deadline()
        if wanted == self._armed_for and (self._timer is not None or wanted is None):
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._armed_for = wanted
        if wanted is None or self._deadline_queued:
            self._armed_for = None
            return
        when = max(self.clock.true(wanted), self.world.now + DEADLINE_FLOOR_S)
        self._timer = self.world.at(when, self.in_life(self._deadline_came))

    def _deadline_came(self) -> None:
        self._timer = None
        self._armed_for = None
        if not self._deadline_queued:
            self._deadline_queued = True
            self._enqueue(DeadlineReached())

    # -- effects out

    def _begin(self, effect: Effect) -> None:
        if isinstance(effect, Note):
            if self.world.tell:
                facts = " ".join(f"{name}={value}" for name, value in effect.facts)
                self.world.say(self.name, f"[{effect.subject}] {effect.text} {facts}".rstrip())
        elif isinstance(effect, Count):
            self.counts[effect.name] = self.counts.get(effect.name, 0) + effect.by
        elif isinstance(effect, self._instant):
            self._perform_now(self, effect)
        elif effect.lane is None:
            self._perform_limited(effect, lambda outcome: self._outcome(effect, outcome))
        else:
            self._begin_in_lane(effect, effect.lane)

    def _begin_in_lane(self, effect: Effect, name: str) -> None:
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = deque()
            lane.append(effect)
            self._next_in_lane(name)
        elif len(lane) >= LANE_MAX_EFFECTS:
            self._outcome(effect, Refused("lane full"))
        else:
            lane.append(effect)

    def _next_in_lane(self, name: str) -> None:
        effect = self._lanes[name][0]
        self._perform_limited(effect, lambda outcome: self._settled_in_lane(name, effect, outcome))

    def _settled_in_lane(self, name: str, effect: Effect, outcome: Outcome) -> None:
        lane = self._lanes[name]
        lane.popleft()
        self._outcome(effect, outcome)
        if not isinstance(outcome, Done):
            for behind in lane:
                self._outcome(behind, Refused("lane stopped"))
            lane.clear()
        if lane:
            self._next_in_lane(name)
        else:
            del self._lanes[name]

    def _perform_limited(self, effect: Effect, settle: Settle) -> None:
        """Carries it out; exactly one outcome, in this life, at the latest at the limit."""
        done = False

        def once(outcome: Outcome) -> None:
            nonlocal done
            if not done:
                done = True
                limit.cancel()
                settle(outcome)

        in_life, life = self.in_life, self.life
        limit_s = effect.limit_s / self.clock.rate
        limit = self.world.after(
            limit_s, in_life(lambda: once(Unknown(f"no outcome within {effect.limit_s:g} s")))
        )
        self._perform(self, effect, lambda outcome: in_life(lambda: once(outcome), life)())

    def _outcome(self, effect: Effect, outcome: Outcome) -> None:
        if not isinstance(outcome, Done) and self.world.tell:
            what = getattr(effect, "operation", "") or getattr(effect, "command", "")
            self.world.say(
                self.name, f"{type(effect).__name__} {what} {type(outcome).__name__}: {outcome.reason}"
            )
        self._enqueue(OutcomeOf(effect=effect, outcome=outcome, cause=effect.cause))
