"""The one pattern: event -> decision -> effect.

A machine is pure and synchronous. It is told what happened (`Event`) and the
time, and answers with what to do (`Effect`). A shell performs the effects and
brings back exactly one outcome for each, as an `OutcomeOf` event.

Fields common to all effects:

``lane``
    Effects of one lane run one after the other, in order, and the lane stops
    at the first outcome that is not `Done`: everything still waiting in it
    comes back as `Refused("lane stopped")`. ``None`` means fire and forget:
    performed at once, its outcome is Done by definition (a datagram given to
    the socket; losing it is normal and the protocol's business).
``with_previous``
    May be performed at the same time as the effect before it in its lane; what
    comes behind waits for both.
``limit_s``
    Seconds the shell waits before the outcome is `Unknown`.
``cause``
    Id of the first event in the chain, for the story.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Instant = float
"""Seconds on one process's monotonic clock."""

DEFAULT_EFFECT_LIMIT_S = 2.0
LANE_STOPPED = "lane stopped"
"""Reason of the `Refused` that effects behind a failed one of their lane come back with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened. Subclasses add the facts."""

    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """Something to do in the world. Subclasses say what."""

    lane: str | None = None
    with_previous: bool = False
    cause: str = ""
    limit_s: float = DEFAULT_EFFECT_LIMIT_S


@dataclass(frozen=True, slots=True)
class Done:
    """It was done; ``value`` is what the outside system answered."""

    value: Any = None


@dataclass(frozen=True, slots=True)
class Refused:
    """The outside system answered, and the answer is no. ``code`` is its own."""

    reason: str
    code: int = 0
    value: Any = None


@dataclass(frozen=True, slots=True)
class Unreachable:
    """It was certainly not done: nobody was there to do it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """It may have been done. Look again before deciding anew."""

    reason: str


Outcome = Done | Refused | Unreachable | Unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeOf(Event):
    """The one outcome of ``effect``."""

    effect: Effect
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlineReached(Event):
    """The instant the machine asked for has come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellStall(Event):
    """The process itself stood still: its loop came back ``lag_s`` seconds late.

    What looks like silence of others in that time may be our own deafness."""

    lag_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Note(Effect):
    """A line of the story: a decision worth explaining later (never parsed)."""

    subject: str
    text: str
    facts: tuple[tuple[str, str], ...] = ()
    level: str = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class Count(Effect):
    """Adds ``by`` to the process's counter ``name`` (see runtime.metrics)."""

    name: str
    by: float = 1
    labels: tuple[tuple[str, str], ...] = ()


class InvariantBroken(AssertionError):
    """A machine found itself in a state that must not exist; a local mistake."""


class Machine(Protocol):
    """What a shell can run."""

    def handle(self, event: Event, now: Instant) -> Sequence[Effect]:
        """The only method that changes the machine."""
        ...

    def deadline(self) -> Instant | None:
        """When `DeadlineReached` is wanted next, or None."""
        ...

    def check(self) -> None:
        """Raises `InvariantBroken` when the state contradicts itself."""
        ...
