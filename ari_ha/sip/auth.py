"""Digest authentication (RFC 7616, RFC 8760)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who we are to a far side that challenges us: a password, or the HA1 per algorithm."""

    username: str
    password: str = field(default="", repr=False)
    ha1: Mapping[str, str] = field(default_factory=dict, repr=False)
