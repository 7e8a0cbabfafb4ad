"""A node's recorder as its machine sees it: takes RTP that rtpengine copies and writes it to a file."""

from __future__ import annotations

from dataclasses import dataclass

from ari_ha.core.machine import Effect, Event


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRecording(Effect):
    """Record one leg from now on: what comes from ``host:port``, of this RTP payload type. Outcome:
    Done((host, port)) where it listens, Refused (no room, no port), Unreachable."""

    recording: str
    call: str
    leg: str
    host: str
    port: int
    payload: int
    tag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseRecording(Effect):
    """The recording is over; one nobody has is none. Always Done."""

    recording: str
    tag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingFailed(Event):
    """A recording has ended by itself (disk full): what was written stays."""

    recording: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecorderDown(Event):
    """The process that wrote them all is gone, and every recording with it."""

    reason: str
