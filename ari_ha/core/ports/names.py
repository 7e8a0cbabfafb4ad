"""Names of hosts and services in DNS (RFC 1035, RFC 2782)."""

from __future__ import annotations

from dataclasses import dataclass

from ari_ha.core.machine import Effect


@dataclass(frozen=True, slots=True)
class Service:
    """One SRV record: where a service is, and in which order and share to use it."""

    priority: int
    weight: int
    port: int
    name: str
    """Without the dot at its end; empty: the service is not offered (RFC 2782)."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a name has. ``ttl_s``: how long that may be believed."""

    ttl_s: float
    addresses: tuple[str, ...] = ()
    services: tuple[Service, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LookUp(Effect):
    """Ask DNS for the records of ``kind``, ``A`` or ``SRV``, at ``name``. Done with `Found`;
    Refused: there are none, certainly; Unreachable: nobody could say."""

    name: str
    kind: str
    tag: str = ""
