"""Bytes to and from SIP sockets. The SIP engine itself lives in the machine."""

from __future__ import annotations

from dataclasses import dataclass

from ari_ha.core.machine import Effect, Event


@dataclass(frozen=True, slots=True)
class Flow:
    """Where bytes come from or go to.

    ``listener`` is the local socket's name (``public-udp``, ``node-trunk`` …);
    ``conn`` names a TCP connection and is empty on UDP.
    """

    listener: str
    transport: str
    host: str
    port: int
    conn: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SipBytes(Event):
    """A datagram, or bytes of a stream, arrived."""

    data: bytes
    flow: Flow


@dataclass(frozen=True, slots=True, kw_only=True)
class SipFlowClosed(Event):
    """A stream closed, or the network refused a datagram (ICMP)."""

    flow: Flow
    reason: str
    refused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SendSip(Effect):
    """Send bytes on a flow (opens the stream if it has none). Fire and forget."""

    data: bytes
    flow: Flow
