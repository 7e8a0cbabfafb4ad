"""A guard's configuration as its machine needs it: values, no files."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GuardTimings:
    """Limits and periods of a guard, in seconds unless the name says otherwise."""

    beat_every_s: float = 0.05
    """Between heartbeats."""
    beats_missed_max: int = 6
    """Heartbeats in a row that may be missing. On a busy host gaps of 200 ms were
    measured (so 3 x 50 ms would switch for nothing) and none above 300 ms."""
    fence_ttl_s: float = 0.25
    """The kernel lets packets pass this long after our last word. Shorter than the
    detection: a frozen owner is silent before its peer takes over."""
    start_wait_s: float = 1.0
    """After our own start the peer has this long to be heard before it counts as silent."""
    hold_s: float = 1.0
    """The addresses are kept this long after the last proof that they are ours: longer
    than an election of etcd, because the peer and etcd's leader may die together."""
    doubt_s: float = 0.3
    """After we ourselves stood still, this long without a proof before the rules for a
    lonely owner count again."""
    proof_every_s: float = 0.05
    """While the peer is silent etcd is asked this often whom it names."""
    call_limit_s: float = 0.3
    """One question to etcd; all members are asked at once."""
    unfit_wait_s: float = 1.0
    """A standby whose own edge process or relay does not answer waits this much longer:
    a half-working edge is better than none, and worse than the peer."""
    yield_after_s: float = 3.0
    """An active edge whose process or relay does not answer for this long asks a fit peer
    to take over; before, it is restarted in place."""
    yield_limit_s: float = 3.0
    """A planned switchover the peer did not take up by then is called off."""
    vacant_wait_s: float = 2.0
    """An address whose holder lives and does not hold it is left to it this long."""
    care_every_s: float = 1.0
    """How often addresses and relay are looked after while active."""
    announce_every_s: float = 10.0
    """Gratuitous ARP in quiet times; after a takeover see `ANNOUNCE_AT_S`."""
    clean_after_s: float = 1.0
    """After stepping down: the peer must have been active this long before our relay is
    emptied."""
    edge_silence_s: float = 1.0
    """Our edge process or relay not heard for this long does not answer."""

    @property
    def detect_s(self) -> float:
        """Silence of the peer that counts as its death."""
        return self.beat_every_s * self.beats_missed_max


ANNOUNCE_AT_S = (0.0, 0.05, 0.15, 0.35, 0.85, 1.85)
"""Gratuitous ARP after a takeover, seconds from it: one frame may be lost."""


@dataclass(frozen=True, slots=True)
class GuardConfig:
    """One guard."""

    cluster: str
    vip: str
    edge: str
    peer: str
    process: str
    """This life of the guard."""
    http: str = ""
    version: str = ""
    timings: GuardTimings = GuardTimings()
