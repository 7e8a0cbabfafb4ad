"""The time of day as one process tells it: the wall clock's, but for steps of it.

A wall clock that jumps by more than `STEP_S` is not followed at once: the monotonic clock carries
the time on as it was known. A clock that is put right within `HOLD_S` was never believed; one that
stays has been corrected, or is wrong for good, which nobody can tell from inside: it is followed.
What is smaller is followed at once forwards, and slowly backwards."""

from __future__ import annotations

from ari_ha.core.machine import Instant

STEP_S = 2.0
HOLD_S = 60.0
BACK_MAX_S = 0.01
"""Each time the clock is told, once a second; what is told late on a busy machine looks like a clock that
went back, and no time told here may come before one told earlier."""
STEPPED = "the wall clock stepped: the time goes on as it was known"
BACK = "the wall clock is back where it was"
FOLLOWED = "the wall clock stays where it stepped to: it is followed"


class Utc:
    """See the module."""

    def __init__(self) -> None:
        self._offset_s: float | None = None
        """UTC less the monotonic clock"""
        self._apart_s = 0.0
        """How far the wall clock has stepped away from the time told here"""
        self._since: Instant = 0.0
        self.has_stepped = False
        """Whether the wall clock ever did, since this process started"""

    @property
    def known(self) -> bool:
        """Whether anybody has told the time yet."""
        return self._offset_s is not None

    def at(self, now: Instant) -> float:
        """UTC seconds; 0 before the first word about the time."""
        return now + self._offset_s if self._offset_s is not None else 0.0

    def wall(self, now: Instant) -> float:
        """What the wall clock says, wherever it has stepped to; 0 before the first word about the time."""
        return self.at(now) + self._apart_s

    def told(self, utc_s: float, now: Instant) -> tuple[str, float]:
        """The wall clock says ``utc_s``. What happened to it (`STEPPED`, `BACK`, `FOLLOWED` or nothing) and
        by how many seconds; after `FOLLOWED` `at` has jumped by as much."""
        if self._offset_s is None:
            self._offset_s = utc_s - now
        apart = utc_s - self.at(now)
        if abs(apart) <= STEP_S:
            was, self._apart_s = self._apart_s, 0.0
            self._offset_s = max(utc_s - now, self._offset_s - BACK_MAX_S)
            return (BACK, -was) if was else ("", 0.0)
        if abs(apart - self._apart_s) > STEP_S:
            by, self._apart_s, self._since = apart - self._apart_s, apart, now
            self.has_stepped = True
            return STEPPED, by
        if now - self._since < HOLD_S:
            return "", 0.0
        self._apart_s, self._offset_s = 0.0, utc_s - now
        return FOLLOWED, apart
