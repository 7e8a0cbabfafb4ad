"""Asterisk's ARI as machines see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ari_ha.core.machine import Effect, Event


@dataclass(frozen=True, slots=True, kw_only=True)
class AriCall(Effect):
    """One ARI operation, by its name in Asterisk's api-docs (``channels.answer``).

    Outcome: Done(decoded reply) on 2xx; Refused(text, code=HTTP status);
    Unreachable when Asterisk is not there; Unknown when the reply never came.
    """

    operation: str
    params: Mapping[str, Any] = field(default_factory=dict)
    tag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AriEvent(Event):
    """One event of the ARI websocket: a struct of ari_ha.wire.ari."""

    event: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class AriSnapshot(Event):
    """What Asterisk has, read after every (re)connect before any event of that
    connection is delivered. ``incarnation`` is Asterisk's own start."""

    incarnation: str
    channels: Sequence[Any] = ()
    bridges: Sequence[Any] = ()
    missing_modules: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AriDown(Event):
    """The websocket closed or Asterisk stopped answering pings.

    ``process_gone``: Asterisk's process is certainly gone (loss may be announced
    at once); False: it is there but silent."""

    reason: str
    process_gone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AriRefusedUs(Event):
    """Credentials or configuration are wrong; ``advice`` says what to change."""

    status: int
    advice: str


NO_COMMAND, NO_ENDPOINT, NO_PERMISSION = 501, 404, 403
"""Codes of a `SetMaintenance` that was refused: Asterisk has no such command (before
20.20, 22.10 and 23.4, or its module is not loaded), no endpoint of that name, or does
not let us in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetMaintenance(Effect):
    """Put PJSIP endpoints into maintenance, or take them out of it. ARI has no operation
    for that: it goes through Asterisk's control socket. In maintenance an endpoint
    answers every new request with 503 and is not dialled; dialogs there are go on.
    Asterisk keeps it in memory until it is restarted.

    Outcome: Done when all endpoints are as wanted; Refused(text, code) with a code above
    or 0; Unreachable when nobody listens; Unknown when no answer came."""

    endpoints: tuple[str, ...]
    on: bool
    tag: str = ""
