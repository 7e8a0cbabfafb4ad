"""HTTP requests of IVR steps. Nothing is sent twice here: what to do about an outcome
that is not known is a decision."""

from __future__ import annotations

import aiohttp

from ari_ha.core.machine import Done, Outcome, Refused, Unknown, Unreachable
from ari_ha.core.ports.web import ANSWER_MAX_BYTES, WebAnswer, WebRequest

CONNECTIONS_MAX = 50
REASON_MAX_CHARS = 200
NOT_SENT = (aiohttp.ClientConnectorError, aiohttp.InvalidURL)
"""Raised before a byte of the request has left."""


class Web:
    """One pool of connections. A connection is used once: a request on one that the far
    end was just closing would have an outcome nobody knows."""

    def __init__(self) -> None:
        self._pool: aiohttp.ClientSession | None = None

    async def perform(self, effect: WebRequest) -> Outcome:
        """One request."""
        if self._pool is None:
            connector = aiohttp.TCPConnector(limit=CONNECTIONS_MAX, force_close=True)
            self._pool = aiohttp.ClientSession(connector=connector)
        headers = {"Idempotency-Key": effect.key} if effect.key else {}
        if effect.body:
            headers["Content-Type"] = "application/json"
        method, body = ("POST", effect.body) if effect.body else ("GET", None)
        try:
            async with self._pool.request(
                method, effect.url, data=body, headers=headers, allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=effect.limit_s),
            ) as answer:  # fmt: skip
                content = await answer.content.read(ANSWER_MAX_BYTES)
                if 200 <= answer.status < 300:
                    return Done(WebAnswer(answer.status, content))
                text = content[:REASON_MAX_CHARS].decode("utf-8", "replace")
                return Refused(text or answer.reason or "refused", answer.status)
        except NOT_SENT as error:
            return Unreachable(str(error)[:REASON_MAX_CHARS])
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            return Unknown(f"{type(error).__name__}: {error}"[:REASON_MAX_CHARS])

    async def close(self) -> None:
        """Ends the pool."""
        if self._pool is not None:
            await self._pool.close()
