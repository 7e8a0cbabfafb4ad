"""Requests from people and tools (CLI, HTTP API): one verb in, one answer out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ari_ha.core.machine import Effect, Event


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorRequest(Event):
    """``verb`` with ``args``; to be answered by exactly one `OperatorReply`."""

    request: str
    verb: str
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorReply(Effect):
    """The answer to ``request``. ``status`` is an HTTP status."""

    request: str
    status: int
    body: Any = None
