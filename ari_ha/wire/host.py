"""The value of a host's key."""

from __future__ import annotations

import msgspec

from ari_ha.wire.keyspace import Value


class HostValue(Value):
    """``hosts/<host>``, leased by the process that runs there, for people and monitoring:
    nothing is decided by it. Shares are between 0 and 1."""

    host: str
    at: float = 0.0
    """UTC seconds by its own clock"""
    cpus: int = 1
    load_1m: float = 0.0
    memory_free_share: float = 1.0
    disks: dict[str, float] = msgspec.field(default_factory=dict)
    """path -> free share of its file system"""
    clock_synchronized: bool = False
    clock_error_ms: int = 0
    """The kernel's bound of its clock's error"""
    clocks_ahead_ms: dict[str, int] = msgspec.field(default_factory=dict)
    """peer -> how far its clock was ahead of this one's, by its last datagram"""
    versions: dict[str, str] = msgspec.field(default_factory=dict)
