"""A phone in a browser: SIP over one WebSocket (RFC 7118) and `Browser` for its media, in a thread of its
own, so that a test may wait as it likes. It comes back by itself when its connection is gone."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import ssl
import threading
import time
from collections.abc import Coroutine
from typing import Any

import aiohttp

from ari_ha.sip import Credentials, Endpoint, Flow, Listener, events
from ari_ha.sip.auth import authorization
from tests.support.browser import Browser

RECONNECT_S = 0.5
CONNECT_LIMIT_S = 2.0
HEARTBEAT_S = 2.0
EXPIRES_S = 60
LIMIT_S = 10.0
LOOK_S = 0.02


class WebPhone:
    """One account, one call at a time; a call that comes in is answered."""

    def __init__(
        self, url: str, user: str, password: str, domain: str, networks: tuple[str, ...], ca: str = ""
    ) -> None:
        """`networks`: which of this machine's addresses its media may use. `ca`: path of the authority of
        the edge's certificate."""
        self.url, self.user, self.domain, self.networks = url, user, domain, networks
        self.credentials = Credentials(user, password)
        self.browser: Browser | None = None
        self.leg = ""
        self.talking = False
        self.registrations = self.connections = 0
        self.changes = 0
        """Offers in the dialog that came from the far side"""
        self.failed = 0
        self.errors: list[str] = []
        self._flow = Flow("l", "ws", "edge", 80, "0")
        self._host = f"{secrets.token_hex(5)}.invalid"
        self._endpoint = Endpoint({"l": Listener("l", "ws", self._host, 80)}, lambda: secrets.token_hex(6))
        self._tls = ssl.create_default_context(cafile=ca) if ca else None
        if self._tls:
            self._tls.check_hostname = False
        self._call_id, self._cseq = secrets.token_hex(8), 0
        self._ws: aiohttp.ClientWebSocketResponse | None = None
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._loop.call_soon_threadsafe(self._spawn, self._live())
        self._loop.call_soon_threadsafe(self._spawn, self._tick())

    # orders of the test

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(LIMIT_S)

    def call(self, number: str) -> None:
        """Dials."""
        self._do(self._call(number))

    def change(self, direction: str) -> None:
        """Holds (sendonly), or takes off hold (sendrecv)."""

        async def change() -> None:
            assert self.browser
            while not self._endpoint.steady(self.leg):
                await asyncio.sleep(LOOK_S)
            self._endpoint.reinvite(self.leg, self.browser.offer_again(direction), time.monotonic())
            await self._pump()

        self._do(change())

    def move(self) -> None:
        """It has other addresses: its call goes on by another ICE session."""

        async def move() -> None:
            assert self.browser
            while not self._endpoint.steady(self.leg):
                await asyncio.sleep(LOOK_S)
            self._endpoint.reinvite(self.leg, await self.browser.offer_moved(), time.monotonic())
            await self._pump()

        self._do(move())

    def hang_up(self) -> None:
        """Ends its call."""

        async def hang_up() -> None:
            self._endpoint.hangup(self.leg, time.monotonic())
            await self._pump()

        self._do(hang_up())

    def heard(self, since: float, until: float) -> tuple[int, float]:
        """Packets heard between two instants (UTC), and the longest time without one."""
        browser, off = self.browser, time.time() - time.monotonic()
        times = [at + off for at in (browser.heard.at if browser else ()) if since <= at + off <= until]
        marks = [since, *times, until]
        return len(times), max(b - a for a, b in itertools.pairwise(marks))

    def close(self) -> None:
        """The tab is closed."""

        async def close() -> None:
            for task in self._tasks:
                task.cancel()
            if self.browser:
                await self.browser.close()
            if self._ws:
                await self._ws.close()

        self._do(close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LIMIT_S)

    # its life

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            self.errors.append(repr(task.exception()))

    async def _live(self) -> None:
        async with aiohttp.ClientSession() as session:
            while True:
                try:
                    async with asyncio.timeout(CONNECT_LIMIT_S):
                        ws = await session.ws_connect(
                            self.url, protocols=("sip",), ssl=self._tls or True, heartbeat=HEARTBEAT_S
                        )
                    async with ws:
                        await self._connected(ws)
                        await self._read(ws)
                except (aiohttp.ClientError, OSError, TimeoutError):
                    pass
                self._ws = None
                self._endpoint.stream_closed(self._flow, time.monotonic())
                await self._pump()
                await asyncio.sleep(RECONNECT_S)

    async def _connected(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self._ws = ws
        self.connections += 1
        self._flow = Flow("l", "ws", "edge", 80, str(self.connections))
        if self.leg and self._endpoint.leg_state(self.leg) != "ended":
            self._endpoint.move_flow(self.leg, self._flow)
        await self._register()

    async def _read(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        async for message in ws:
            data = message.data.encode() if isinstance(message.data, str) else message.data
            self._endpoint.receive(data, self._flow, time.monotonic())
            await self._pump()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            due = self._endpoint.deadline()
            if due is not None and due <= time.monotonic():
                self._endpoint.handle_timer(time.monotonic())
                await self._pump()

    async def _register(self, proof: str = "") -> None:
        self._cseq += 1
        aor = f"<sip:{self.user}@{self.domain}>"
        contact = f"<sip:{self.user}@{self._host};transport=ws>"
        headers = [("Contact", contact), ("Expires", str(EXPIRES_S))]
        headers += [("Authorization", proof)] if proof else []
        self._endpoint.request(
            "register", "REGISTER", flow=self._flow, target=f"sip:{self.domain}", from_=aor, to=aor,
            headers=headers, now=time.monotonic(), call_id=self._call_id, cseq=self._cseq,
        )  # fmt: skip
        await self._pump()

    async def _call(self, number: str) -> None:
        await self._begin()
        assert self.browser
        self.leg = secrets.token_hex(4)
        self._endpoint.invite(
            self.leg, flow=self._flow, target=f"sip:{number}@{self.domain}",
            from_=f"<sip:{self.user}@{self.domain}>", to=f"<sip:{number}@{self.domain}>",
            sdp=await self.browser.offer(), credentials=self.credentials, now=time.monotonic(),
        )  # fmt: skip
        await self._pump()

    async def _begin(self) -> None:
        if self.browser:
            await self.browser.close()
        self.browser = Browser(stream=900_001, networks=self.networks)

    async def _pump(self) -> None:
        """Whatever the engine has to say."""
        for event in self._endpoint.events():
            await self._heard(event)
        for data, flow in self._endpoint.output():
            if self._ws is not None and flow.conn == self._flow.conn:
                try:
                    await self._ws.send_str(data.decode())
                except (ConnectionError, aiohttp.ClientError):
                    return

    async def _heard(self, event: Any) -> None:
        match event:
            case events.ResponseReceived(key="register", status=401):
                asked = [value for name, value in event.headers if name.lower() == "www-authenticate"]
                uri = f"sip:{self.domain}"
                proof = authorization(self.credentials, asked, "REGISTER", uri, secrets.token_hex(6))
                self._spawn(self._register(proof or ""))
            case events.ResponseReceived(key="register", status=200):
                self.registrations += 1
            case events.InviteReceived():
                self._spawn(self._answer(event.leg, event.request.body.decode()))
            case events.ReinviteReceived():
                self.changes += 1
                self._spawn(self._accept(event.leg, event.sdp or ""))
            case events.LegAnswered() | events.ReinviteAnswered() if self.browser and event.sdp:
                self.browser.answered(event.sdp)
                self._talk()
            case events.LegFailed():
                self.failed, self.talking = event.status, False
            case events.LegEnded() if event.leg == self.leg:
                self.talking = False
                if self.browser:
                    self.browser.sending = False

    async def _answer(self, leg: str, offer: str) -> None:
        await self._begin()
        assert self.browser
        self.leg = leg
        self._endpoint.ring(leg, time.monotonic())
        self._endpoint.answer(leg, await self.browser.answer(offer), time.monotonic())
        await self._pump()
        self._talk()

    async def _accept(self, leg: str, offer: str) -> None:
        assert self.browser
        self._endpoint.accept_reinvite(leg, await self.browser.answer(offer), time.monotonic())
        await self._pump()

    def _talk(self) -> None:
        if not self.talking and self.browser:
            self.talking = True
            self._spawn(self.browser.talk())
