"""What HAProxy asks: GET /writable and GET /readable, 200 or 503, no token, no cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aiohttp import web

Check = Callable[[], tuple[bool, str]]


class DatabaseChecks:
    """A listener of its own: load balancers need no secret, and get no other answer."""

    def __init__(self, host: str, port: int, checks: Mapping[str, Check]) -> None:
        self._address = (host, port)
        app = web.Application(client_max_size=1024)
        for path, check in checks.items():
            app.router.add_get(path, self._handler(check))
            app.router.add_route("OPTIONS", path, self._handler(check))
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)

    @staticmethod
    def _handler(check: Check):  # type: ignore[no-untyped-def]
        async def serve(request: web.Request) -> web.Response:
            good, why = check()
            headers = {"Cache-Control": "no-store"}
            return web.Response(status=200 if good else 503, text=(why or "ok") + "\n", headers=headers)

        return serve

    @property
    def port(self) -> int:
        """The port listened on."""
        return int(self._runner.addresses[0][1])

    async def start(self) -> None:
        """Listens. Raises OSError when the address is not ours or taken."""
        await self._runner.setup()
        await web.TCPSite(self._runner, *self._address, reuse_address=True).start()

    async def stop(self) -> None:
        """Stops."""
        await self._runner.cleanup()
