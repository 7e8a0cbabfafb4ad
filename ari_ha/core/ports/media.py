"""rtpengine's NG protocol as machines see it: one dictionary in, one out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ari_ha.core.machine import Effect, Event


@dataclass(frozen=True, slots=True, kw_only=True)
class NgCommand(Effect):
    """One NG command. Outcome: Done(reply dict) when result is ok/pong,
    Refused(error-reason) on an error reply, Unreachable/Unknown without a reply.

    ``tag`` lets the machine that asked recognise the outcome.
    """

    command: str
    body: Mapping[str, object]
    tag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaReach(Event):
    """Whether the media relay answers its ping; ``started`` identifies one life
    of it, so a restart is seen even when no ping was missed."""

    reachable: bool
    started: str = ""
    why: str = ""
