"""The other guard, as heard: only heartbeats that are new change anything."""

from __future__ import annotations

from dataclasses import dataclass, field

from ari_ha.wire.beat import Beat

NEVER = float("-inf")
TICK_S = 0.001
READ_S = 0.002
"""Between finding the peer silent and believing it. Our own loop may have been late, with heartbeats waiting
in its sockets: a turn of it reads them."""
RETIRED_KEPT_MAX = 32


@dataclass(slots=True)
class Peer:
    """What the last new heartbeat said, and when it came."""

    process: str = ""
    n: int = 0
    at: float = NEVER
    active: bool = False
    active_since: float = NEVER
    passive_since: float = NEVER
    revision: int = 0
    fit: bool = False
    yields: bool = False
    silent_since: float | None = None
    """When it was found silent; None: it is not"""
    retired: dict[str, None] = field(default_factory=dict)
    """Lives that were followed by another: what still comes of them is old."""

    def hear(self, beat: Beat, now: float) -> bool:
        """Takes a heartbeat in; False when it is the copy of another path, or an old one
        sent again."""
        if beat.process in self.retired or (beat.process == self.process and beat.n <= self.n):
            return False
        if self.process and beat.process != self.process:
            self.retired[self.process] = None
            while len(self.retired) > RETIRED_KEPT_MAX:
                del self.retired[next(iter(self.retired))]
        if beat.active != self.active or beat.process != self.process:
            self.active_since, self.passive_since = (now, NEVER) if beat.active else (NEVER, now)
        self.process, self.n, self.at, self.active = beat.process, beat.n, now, beat.active
        self.revision, self.fit, self.yields = beat.revision, beat.fit, beat.yields
        return True

    def just_silent(self, now: float, limit_s: float) -> bool:
        """Whether it has only now been found silent for longer than the limit."""
        if now - self.at <= limit_s:
            self.silent_since = None
        elif self.silent_since is None:
            self.silent_since = now
        return self.silent_since is not None and now - self.silent_since < READ_S

    def next_look(self, limit_s: float) -> float:
        """When its silence changes from what it was at the last look."""
        return self.at + limit_s + TICK_S if self.silent_since is None else self.silent_since + READ_S
