"""The node link: frames between an edge and a node app (ari_ha.wire.link)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ari_ha.core.machine import Effect, Event


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkUp(Event):
    """A mutually authenticated link to ``peer`` is open; nothing was said yet."""

    peer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkDown(Event):
    """The link to ``peer`` closed. ``clean``: the far process said goodbye or its
    kernel closed the socket; False: silence, reset by a limit of ours."""

    peer: str
    reason: str
    clean: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkReceived(Event):
    """A frame of ari_ha.wire.link from ``peer``."""

    peer: str
    frame: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class SendLink(Effect):
    """Send a frame to ``peer``. Lost when the link is down: both ends compare
    snapshots whenever it comes up again."""

    peer: str
    frame: Any
