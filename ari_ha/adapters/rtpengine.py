"""rtpengine over NG/UDP: one command, one outcome; same cookie when repeated."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable

from ari_ha.core.machine import Done, Event, Outcome, Refused, Unknown, Unreachable
from ari_ha.core.ports.media import MediaReach, NgCommand
from ari_ha.wire import ng

RETRANSMIT_S = (0.1, 0.3, 0.6, 1.0)
PING_INTERVAL_S = 0.5
PING_LIMIT_S = 1.0


class Rtpengine(asyncio.DatagramProtocol):
    """The NG client of one process.

    ``post`` receives `MediaReach` whenever the relay appears, disappears, or
    proves to be another life of it (its uptime went back).
    """

    def __init__(self, host: str, port: int, post: Callable[[Event], object]) -> None:
        self._address = (host, port)
        self._post = post
        self._prefix = secrets.token_hex(6)
        self._serial = 0
        self._waiting: dict[str, asyncio.Future[dict[str, ng.NgValue]]] = {}
        self._transport: asyncio.DatagramTransport | None = None
        self._pinger: asyncio.Task[None] | None = None
        self._reachable: bool | None = None
        self._started = ""

    async def start(self) -> None:
        """Opens the socket and begins to ping."""
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, remote_addr=self._address)
        self._pinger = asyncio.create_task(self._ping())

    def close(self) -> None:
        """Stops pinging and closes the socket."""
        if self._pinger:
            self._pinger.cancel()
        if self._transport:
            self._transport.close()

    def datagram_received(self, data: bytes, addr: object) -> None:
        try:
            cookie, reply = ng.decode(data)
        except ng.NgError:
            return
        waiting = self._waiting.pop(cookie, None)
        if waiting and not waiting.done():
            waiting.set_result(reply)

    def error_received(self, exc: Exception) -> None:
        """ICMP says nobody listens: every command under way was not done."""
        for waiting in list(self._waiting.values()):
            if not waiting.done():
                waiting.set_exception(ConnectionRefusedError(str(exc)))
        self._waiting.clear()

    async def perform(self, effect: NgCommand) -> Outcome:
        """Runs one command; the effect's limit is the whole time it may take."""
        try:
            reply = await self._ask(effect.command, effect.body, effect.limit_s)
        except ConnectionRefusedError as error:
            return Unreachable(f"rtpengine refused the datagram: {error}")
        except TimeoutError:
            return Unknown(f"no reply to {effect.command} in {effect.limit_s} s")
        if reply.get("result") in ("ok", "pong"):
            return Done(reply)
        return Refused(str(reply.get("error-reason", reply.get("result", "?"))), value=reply)

    async def _ask(self, command: str, body: object, limit_s: float) -> dict[str, ng.NgValue]:
        assert self._transport is not None
        self._serial += 1
        cookie = f"{self._prefix}_{self._serial}"
        data = ng.encode(cookie, command, body)  # type: ignore[arg-type]
        waiting: asyncio.Future[dict[str, ng.NgValue]] = asyncio.get_running_loop().create_future()
        self._waiting[cookie] = waiting
        ends = time.monotonic() + limit_s
        try:
            for pause in (*RETRANSMIT_S, limit_s):
                self._transport.sendto(data)
                left = min(pause, ends - time.monotonic())
                if left <= 0:
                    break
                try:
                    return await asyncio.wait_for(asyncio.shield(waiting), left)
                except TimeoutError:
                    continue
            raise TimeoutError
        finally:
            self._waiting.pop(cookie, None)
            if not waiting.done():
                waiting.cancel()
            elif not waiting.cancelled():
                waiting.exception()

    async def _ping(self) -> None:
        while True:
            why = ""
            try:
                reply = await self._ask("statistics", {}, PING_LIMIT_S)
                reachable = reply.get("result") == "ok"
                started = _started(reply)
            except (TimeoutError, ConnectionRefusedError) as error:
                reachable, started, why = False, "", str(error) or "no reply"
            restarted = reachable and self._started and abs(float(started) - float(self._started)) > 5.0
            if reachable != self._reachable or restarted:
                self._reachable = reachable
                if reachable:
                    self._started = started
                self._post(MediaReach(reachable=reachable, started=self._started, why=why))
            await asyncio.sleep(PING_INTERVAL_S)


def _started(reply: dict[str, ng.NgValue]) -> str:
    """Wall-clock start of this life of rtpengine, from its uptime in seconds."""
    total = reply.get("statistics", {})
    for name in ("totalstatistics", "totalStatistics"):
        if isinstance(total, dict) and isinstance(total.get(name), dict):
            total = total[name]
    uptime = total.get("uptime", 0) if isinstance(total, dict) else 0
    return str(int(time.time() - float(str(uptime) or 0)))
