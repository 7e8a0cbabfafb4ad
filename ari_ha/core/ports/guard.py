"""The edge guard's world: heartbeats, the kernel's fence, addresses, the relay beside it.

All effects are idempotent: doing one again changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ari_ha.core.machine import Effect, Event


@dataclass(frozen=True, slots=True, kw_only=True)
class PairWord(Event):
    """An authenticated word (ari_ha.wire.beat) of the peer's guard, of our edge process,
    or of our guard."""

    word: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class SendBeat(Effect):
    """A heartbeat on every path to the peer. Fire and forget."""

    beat: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class TellEdge(Effect):
    """A `RoleWord` to the edge process beside us. Fire and forget."""

    word: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class TellGuard(Effect):
    """An `EdgeWord` to the guard beside us. Fire and forget."""

    word: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenFence(Effect):
    """The kernel lets packets of the addresses pass for ``ttl_s`` more; then it stops
    by itself, whatever becomes of us. Fire and forget: not done is fenced."""

    ttl_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseFence(Effect):
    """The kernel stops packets of the addresses now. Fire and forget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressesUp(Effect):
    """This host has all addresses of the pair. Done when the kernel says so."""

    tag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressesDown(Effect):
    """This host has none of them. Done when the kernel says so."""

    tag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnounceAddresses(Effect):
    """Gratuitous ARP on every network (RFC 5227 §3): neighbours learn where the
    addresses are now. Fire and forget; repeated by the machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayActive(Effect):
    """Tell rtpengine that all its calls are its own now. Done(its answer)."""

    tag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayClean(Effect):
    """Empty the local valkey and start rtpengine anew: as standby it must know nothing
    but what the peer's valkey says. Done when both were done."""

    tag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StandDown(Effect):
    """The process is not the active edge any more: it ends, and its next life stands by
    with nothing of the old one. Fire and forget."""

    why: str
