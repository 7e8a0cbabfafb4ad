"""Is a node's Asterisk alive: OPTIONS on a connected UDP socket, so that the
kernel reports an ICMP refusal (nobody listens there any more)."""

from __future__ import annotations

from dataclasses import dataclass

from ari_ha.core.machine import Effect, Event


@dataclass(frozen=True, slots=True, kw_only=True)
class SendProbe(Effect):
    """Send OPTIONS number ``n`` to the node. Fire and forget."""

    node: str
    host: str
    port: int
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReply(Event):
    """Any SIP response to probe ``n``: any status proves life."""

    node: str
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRefused(Event):
    """The node's kernel answered that no process has the port."""

    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WallClock(Event):
    """UTC seconds at the instant of this event; posted about once a second and
    first of all, because machines have no clock of their own."""

    utc_s: float
