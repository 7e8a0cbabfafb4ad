"""The HTTP side of a process: /metrics, /healthz, /readyz and its JSON routes.

The first three ask for nothing; JSON routes ask for ``Authorization: Bearer
<token>``, and answer 403 while no token is configured.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from ari_ha.core.machine import Event
from ari_ha.core.ports.operator import OperatorReply, OperatorRequest
from ari_ha.runtime.metrics import Metrics

BODY_MAX_BYTES = 1024 * 1024
ROUTE_LIMIT_S = 30.0
WAITING_MAX_REQUESTS = 200
STOP_LIMIT_S = 1.0


@dataclass(frozen=True, slots=True)
class Asked:
    """A request to a JSON route."""

    path: Mapping[str, str]
    query: Mapping[str, str]
    body: Any = None


Answer = tuple[int, Any]
Handler = Callable[[Asked], Awaitable[Answer]]
Ready = Callable[[], tuple[bool, str]]


class HealthServer:
    """Serves one process. ``ready`` says whether it can do its work, and if not why;
    ``routes`` are keyed ``"GET /v1/calls/{call}"``."""

    def __init__(
        self,
        host: str,
        port: int,
        metrics: Metrics,
        *,
        ready: Ready = lambda: (True, ""),
        routes: Mapping[str, Handler] | None = None,
        token: str = "",
    ) -> None:
        self._address = (host, port)
        self._metrics = metrics
        self._ready = ready
        self._token = token.strip().encode()
        self._app = web.Application(client_max_size=BODY_MAX_BYTES)
        self._app.router.add_get("/metrics", self._serve_metrics)
        self._app.router.add_get("/healthz", self._serve_health)
        self._app.router.add_get("/readyz", self._serve_ready)
        for route, handler in (routes or {}).items():
            method, _, path = route.partition(" ")
            self._app.router.add_route(method, path, self._json(handler))
        self._runner = web.AppRunner(self._app, access_log=None, shutdown_timeout=STOP_LIMIT_S)

    @property
    def port(self) -> int:
        """The port listened on (of use when 0 was asked for)."""
        return self._runner.addresses[0][1]

    async def start(self) -> None:
        """Listens. Raises OSError when the address is not ours or taken."""
        await self._runner.setup()
        await web.TCPSite(self._runner, *self._address, reuse_address=True).start()

    async def stop(self) -> None:
        """Finishes the requests under way, within a limit."""
        await self._runner.cleanup()

    async def _serve_metrics(self, request: web.Request) -> web.Response:
        body, content_type = self._metrics.render()
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _serve_health(self, request: web.Request) -> web.Response:
        return _json_response(200, {"ok": True})

    async def _serve_ready(self, request: web.Request) -> web.Response:
        ready, reason = self._ready()
        return _json_response(200 if ready else 503, {"ready": ready, "reason": reason})

    def _json(self, handler: Handler) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def serve(request: web.Request) -> web.Response:
            refusal = self._refusal(request)
            if refusal is not None:
                return refusal
            try:
                body = await request.json() if request.can_read_body else None
            except (json.JSONDecodeError, UnicodeDecodeError):
                return _json_response(400, {"error": "the body is not JSON"})
            asked = Asked(dict(request.match_info), dict(request.query), body)
            try:
                async with asyncio.timeout(ROUTE_LIMIT_S):
                    status, answer = await handler(asked)
            except TimeoutError:
                return _json_response(504, {"error": f"no answer within {ROUTE_LIMIT_S:g} s"})
            return _json_response(status, answer)

        return serve

    def _refusal(self, request: web.Request) -> web.Response | None:
        if not self._token:
            return _json_response(403, {"error": "no token is configured: set http.token_file"})
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._token):
            return None
        response = _json_response(401, {"error": "a bearer token is needed"})
        response.headers["WWW-Authenticate"] = "Bearer"
        return response


class OperatorDesk:
    """Turns an HTTP request into an `OperatorRequest` and the machine's
    `OperatorReply` into its answer."""

    def __init__(self, post: Callable[[Event], Any]) -> None:
        self._post = post
        self._numbers = itertools.count(1)
        self._waiting: dict[str, asyncio.Future[Answer]] = {}

    async def ask(self, verb: str, args: Mapping[str, Any]) -> Answer:
        """The machine's answer, or 503 when it has no room for the question."""
        if len(self._waiting) >= WAITING_MAX_REQUESTS:
            return 503, {"error": "too many requests wait"}
        request = f"http-{next(self._numbers)}"
        future = self._waiting[request] = asyncio.get_running_loop().create_future()
        try:
            if self._post(OperatorRequest(request=request, verb=verb, args=args, cause=request)) is False:
                return 503, {"error": "the process is overloaded"}
            return await future
        finally:
            del self._waiting[request]

    def reply(self, effect: OperatorReply) -> None:
        """Carries out the effect: whoever asked gets it (or has gone)."""
        future = self._waiting.get(effect.request)
        if future is not None and not future.done():
            future.set_result((effect.status, effect.body))

    def route(self, verb: str) -> Handler:
        """A route that asks the machine ``verb``; path, query and body are its args."""

        async def handle(asked: Asked) -> Answer:
            body = asked.body if isinstance(asked.body, dict) else {}
            return await self.ask(verb, {**asked.query, **body, **asked.path})

        return handle


def _json_response(status: int, body: Any) -> web.Response:
    text = json.dumps(body, default=str, ensure_ascii=False) + "\n"
    return web.Response(status=status, text=text, content_type="application/json")
