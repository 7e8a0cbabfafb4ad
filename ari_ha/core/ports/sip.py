"""Bytes to and from SIP sockets. The SIP engine itself lives in the machine.

``flow`` is an ``ari_ha.sip.flow.Flow``: which listener, transport and far address.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ari_ha.core.machine import Effect, Event


@dataclass(frozen=True, slots=True, kw_only=True)
class SipBytes(Event):
    """A datagram, or bytes of a stream, arrived."""

    data: bytes
    flow: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class SipFlowClosed(Event):
    """A stream closed, or the network refused a datagram (ICMP)."""

    flow: Any
    reason: str
    refused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SendSip(Effect):
    """Send bytes on a flow (opens the stream if it has none). Fire and forget.

    ``name``: whose certificate the far end must show when a TLS stream is opened."""

    data: bytes
    flow: Any
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseSip(Effect):
    """Close the stream of a flow: its bytes cannot be framed, or it asks too much."""

    flow: Any
