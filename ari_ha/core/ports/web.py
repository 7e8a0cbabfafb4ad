"""Requests to systems of the site: what an IVR step does outside."""

from __future__ import annotations

from dataclasses import dataclass

from ari_ha.core.machine import Effect

ANSWER_MAX_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class WebAnswer:
    """What came back with a 2xx status."""

    status: int
    body: bytes = b""
    """At most `ANSWER_MAX_BYTES` of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebRequest(Effect):
    """POST ``body`` to ``url``, or GET where ``body`` is empty. ``key`` is sent as
    ``Idempotency-Key``: the same for every try of one step of one call.

    Outcome: Done(`WebAnswer`); Refused(text, code=HTTP status) for any other status;
    Unreachable when no connection came about; Unknown when it was sent and no answer came.
    """

    url: str
    key: str = ""
    body: bytes = b""
    tag: str = ""
