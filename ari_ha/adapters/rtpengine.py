"""rtpengine over NG/UDP: one command, one outcome; same cookie when repeated."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable

from ari_ha.adapters.mailbox import Outbox
from ari_ha.core.machine import Done, Event, Outcome, Refused, Unknown, Unreachable
from ari_ha.core.ports.media import MediaReach, NgCommand
from ari_ha.wire import ng

RETRANSMIT_S = (0.1, 0.3, 0.6, 1.0)
"""Pauses before a command is sent again."""
PING_INTERVAL_S = 0.5
PING_LIMIT_S = 1.0
AGE_ERROR_S = 2.0
"""Its age is in whole seconds, and an answer may be late (`PING_LIMIT_S`)."""


class Rtpengine(asyncio.DatagramProtocol):
    """The NG client of one process.

    ``post`` receives `MediaReach` whenever the relay appears, disappears, or
    proves to be another `Life` of it.
    """

    def __init__(self, host: str, port: int, post: Callable[[Event], object]) -> None:
        self._address = (host, port)
        self._outbox = Outbox(post)
        self._prefix = secrets.token_hex(6)
        self._serial = 0
        self._waiting: dict[str, asyncio.Future[dict[str, ng.NgValue]]] = {}
        self._transport: asyncio.DatagramTransport | None = None
        self._pinger: asyncio.Task[None] | None = None
        self._reachable: bool | None = None
        self._life = Life()

    async def start(self) -> None:
        """Opens the socket and begins to ping."""
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, remote_addr=self._address)
        self._pinger = asyncio.create_task(self._ping())

    def close(self) -> None:
        """Stops pinging and closes the socket."""
        self._outbox.close()
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
        if isinstance(exc, ConnectionRefusedError):
            self._life.refused()
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
        transport = self._transport
        assert transport is not None
        self._serial += 1
        cookie = f"{self._prefix}_{self._serial}"
        data = ng.encode(cookie, command, body)  # type: ignore[arg-type]
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[dict[str, ng.NgValue]] = loop.create_future()
        pauses = iter(RETRANSMIT_S)
        again: asyncio.TimerHandle | None = None

        def send() -> None:
            nonlocal again
            transport.sendto(data)
            pause = next(pauses, None)
            again = loop.call_later(pause, send) if pause else None

        self._waiting[cookie] = waiting
        try:
            send()
            async with asyncio.timeout(limit_s):
                return await waiting
        finally:
            if again:
                again.cancel()
            self._waiting.pop(cookie, None)
            if waiting.done() and not waiting.cancelled():
                waiting.exception()  # seen, also where the time was over in the same moment

    async def _ping(self) -> None:
        while True:
            why = ""
            try:
                reply = await self._ask("statistics", {}, PING_LIMIT_S)
                reachable, age_s = reply.get("result") == "ok", _age_s(reply)
            except (TimeoutError, ConnectionRefusedError) as error:
                reachable, age_s, why = False, 0.0, str(error) or "no reply"
            restarted = reachable and self._life.began_anew(age_s, time.monotonic())
            if reachable != self._reachable or restarted:
                self._reachable = reachable
                self._outbox.insist(MediaReach(reachable=reachable, started=self._life.name, why=why))
            await asyncio.sleep(PING_INTERVAL_S)


class Life:
    """Which life of rtpengine answers. Its age is its word, by its wall clock. A step of that clock, or
    of ours, begins no life: one that is new began after the old one's last answer. That it is another,
    and not the one before in its first seconds, is known by one of: somebody was refused in between; it is
    younger; it began more than `AGE_ERROR_S` after the other. So two deaths within seconds are two, unless
    the second comes within about a second of life and the third life begins before anybody asks."""

    def __init__(self) -> None:
        self.name = ""
        """Of this life; empty before the first answer"""
        self._began = self._answered = 0.0
        """Monotonic seconds"""
        self._age_s = 0.0
        self._refused = False

    def refused(self) -> None:
        """Nobody listens where it listened (ICMP, RFC 1122 section 4.1.3.3): the process has ended."""
        self._refused = True

    def began_anew(self, age_s: float, now: float) -> bool:
        """An answer of a process of this age; whether it is not the one that answered before."""
        began, first = now - age_s, not self.name
        another = self._refused or age_s < self._age_s or began - self._began > AGE_ERROR_S
        anew = not first and another and self._answered - AGE_ERROR_S < began < now + AGE_ERROR_S
        if first or anew:
            self.name = f"{began:.3f}"
        self._began, self._answered, self._age_s, self._refused = began, now, age_s, False
        return anew


def _age_s(reply: dict[str, ng.NgValue]) -> float:
    """Its uptime."""
    total = reply.get("statistics", {})
    for name in ("totalstatistics", "totalStatistics"):
        if isinstance(total, dict) and isinstance(total.get(name), dict):
            total = total[name]
    uptime = total.get("uptime", 0) if isinstance(total, dict) else 0
    return float(str(uptime) or 0)
