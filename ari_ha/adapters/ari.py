"""Asterisk's ARI: events by a websocket we open, operations by HTTP.

After every (re)connect one `AriSnapshot` is posted before any event of that
connection; events that arrive while it is read wait for it. The reader only
posts, so a slow machine never stops it; an event the mailbox refuses is made
good by another snapshot. `AriDown` comes from the fastest of three signs: the
process has ended (pidfd), the websocket has closed, pings are not answered.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Coroutine
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, get_origin
from urllib.parse import quote, urlencode

import aiohttp
import msgspec
from yarl import URL

from ari_ha.adapters.ari_config import AriSettings
from ari_ha.adapters.mailbox import Count, Outbox, Post, no_count
from ari_ha.adapters.process_watch import ProcessWatch
from ari_ha.core.machine import Done, Outcome, Refused, Unknown, Unreachable
from ari_ha.core.ports.ari import AriCall, AriDown, AriEvent, AriRefusedUs, AriSnapshot
from ari_ha.wire import ari as wire
from ari_ha.wire.ari_operations import OPERATIONS, decode_reply, encode

SUBSCRIBE_MAX_SOURCES = 50
SNAPSHOT_PASSES_MAX = 3
RESYNC_EVERY_MS = 100
CLOSE_LIMIT_MS = 50
BOOT_ID_FILE = "/proc/sys/kernel/random/boot_id"
BOOT_ID_CHARS = 8
REPLY_TEXT_MAX_CHARS = 500


class _Over(Exception):
    """This connection, or the attempt to make it, has ended."""


class _Closed(_Over):
    """The websocket was closed from the other side: perhaps the process is ending."""


class _Taken(_Over):
    """Another process opened a websocket for the same application."""


class _NotAdmitted(_Over):
    """Asterisk answered and does not want us, or cannot serve us, as configured."""

    def __init__(self, status: int, advice: str) -> None:
        super().__init__(f"HTTP {status}: {advice}")
        self.status = status
        self.advice = advice


class _Reply(NamedTuple):
    status: int
    reason: str
    content: bytes


class AriAdapter:
    """The one user of an Asterisk's ARI. ``post`` may answer False: not taken."""

    def __init__(self, settings: AriSettings, post: Post, *, count: Count | None = None) -> None:
        settings.check()
        self.settings = settings
        self.incarnation = ""
        """Boot and start of the Asterisk last connected to."""
        self.version = ""
        """Of the Asterisk last connected to."""
        self.trouble = ""
        """Why the last connection ended or failed; for people."""
        self._outbox = Outbox(post)
        self._count = count or no_count
        self._watch = ProcessWatch(
            settings.pid_file, settings.process_name, self._process_ended, by_threads=True
        )
        self._slots = asyncio.Semaphore(settings.requests_max)
        self._calls: aiohttp.ClientSession | None = None
        self._own: aiohttp.ClientSession | None = None
        self._task: asyncio.Task[None] | None = None
        self._ws: aiohttp.ClientWebSocketResponse | None = None
        self._ws_heard_at = 0.0
        self._buffer: list[AriEvent] | None = None
        self._resync: asyncio.Event = asyncio.Event()
        self._process_over = asyncio.Event()
        self._missing: list[str] = []
        self._authorization = ""
        self._up = False
        self._served = False
        self._said_anything = False
        self._refused_status = 0

    @property
    def connected(self) -> bool:
        """The snapshot was posted and events flow."""
        return self._up

    async def start(self) -> None:
        """Begins to connect and never gives up."""
        keepalive_s = self.settings.keepalive_s
        limit = self.settings.requests_max
        self._calls = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=limit, keepalive_timeout=keepalive_s)
        )
        self._own = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=8, keepalive_timeout=keepalive_s)
        )
        self._task = asyncio.create_task(self._run(), name="ari")
        self._task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """Closes the websocket (channels stay in Stasis) and posts nothing more."""
        self._outbox.close()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._watch.detach()
        for session in (self._calls, self._own):
            if session is not None:
                await session.close()

    # --- operations ------------------------------------------------------------------

    async def perform(self, call: AriCall) -> Outcome:
        """Carries out one operation. Raises AriParamsError on a call ARI does not know."""
        request = encode(call.operation, call.params)
        assert self._calls is not None, "not started"
        sent = False
        try:
            # A little before the shell's own limit, so that the outcome can say more.
            async with asyncio.timeout(call.limit_s * 0.95):
                async with self._slots:
                    sent = True
                    reply = await self._request(self._calls, *request)
        except aiohttp.ClientConnectorError as error:
            return Unreachable(str(error))
        except TimeoutError:
            if not sent:
                return Unreachable(f"{self.settings.requests_max} requests are under way")
            return Unknown(f"no reply within {call.limit_s:g} s")
        except (aiohttp.ClientError, OSError) as error:
            return Unknown(f"{type(error).__name__}: {error}")
        if 200 <= reply.status < 300:
            return Done(decode_reply(call.operation, reply.content))
        return Refused(_message(reply), code=reply.status)

    async def _request(
        self,
        session: aiohttp.ClientSession,
        method: str,
        path: str,
        query: dict[str, str],
        body: bytes | None,
    ) -> _Reply:
        url = self._url(path, query)
        headers = {"Authorization": self._authorization}
        if body is not None:
            headers["Content-Type"] = "application/json"
        async with session.request(method, url, data=body, headers=headers) as response:
            return _Reply(response.status, response.reason or "", await response.read())

    def _url(self, path: str, query: dict[str, str]) -> URL:
        text = self.settings.url.rstrip("/") + "/ari" + path
        return URL(text + "?" + urlencode(query, quote_via=quote) if query else text, encoded=True)

    def _read_password(self) -> None:
        password = self.settings.password
        if self.settings.password_file:
            try:
                password = Path(self.settings.password_file).read_text().strip()
            except OSError as error:
                raise _NotAdmitted(401, f"cannot read the password file: {error}") from None
        token = base64.b64encode(f"{self.settings.username}:{password}".encode()).decode()
        self._authorization = f"Basic {token}"

    async def _ask(self, operation: str, **params: Any) -> Any:
        """One request of our own while connecting; raises `_Over`."""
        assert self._own is not None
        try:
            async with asyncio.timeout(self.settings.connect_limit_ms / 1000):
                reply = await self._request(self._own, *encode(operation, params))
        except TimeoutError:
            raise _Over(f"{operation}: no reply within {self.settings.connect_limit_ms} ms") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _Over(f"{operation}: {error}") from None
        if reply.status in (401, 403, 404):
            raise _NotAdmitted(reply.status, _advice(self.settings, reply.status, operation))
        if not 200 <= reply.status < 300:
            raise _Over(f"{operation}: HTTP {reply.status} {_message(reply)}")
        value = decode_reply(operation, reply.content)
        if not _fits(value, OPERATIONS[operation].response):
            raise _Over(f"{operation}: unexpected reply {str(value)[:REPLY_TEXT_MAX_CHARS]}")
        return value

    # --- the connection --------------------------------------------------------------

    async def _run(self) -> None:
        pause_ms = self.settings.retry_first_ms
        while True:
            self._served = False
            try:
                await self._connection()
            except _Over as over:
                self.trouble = str(over)
                await self._down(over)
                if self._served:
                    pause_ms = self.settings.retry_first_ms
                if isinstance(over, _Taken | _NotAdmitted):
                    pause_ms = self.settings.retry_last_ms
            await asyncio.sleep(pause_ms / 1000)
            pause_ms = min(pause_ms * 2, self.settings.retry_last_ms)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A local mistake ended the adapter: nobody may believe that ARI is up."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._tell_down(f"local fault: {type(error).__name__}: {error}", process_gone=False)
            task.get_loop().call_exception_handler({"message": "ARI adapter", "exception": error})

    async def _connection(self) -> None:
        """One connection from its first request to its end; always raises `_Over`."""
        self._read_password()
        info = await self._ask("asterisk.getInfo")
        incarnation = _incarnation(info)
        self.version = info.system.version if info.system else ""
        self._missing = await self._missing_modules()
        self._buffer = []
        self._resync.clear()
        self._ws = await self._open_websocket()
        self._process_over.clear()
        self._watch.attach()
        try:
            await _first_to_end(self._read(self._ws), self._serve(incarnation), self._process_ends())
        finally:
            await self._close_websocket()

    async def _open_websocket(self) -> aiohttp.ClientWebSocketResponse:
        assert self._own is not None
        url = self._url("/events", {"app": self.settings.app, "subscribeAll": "false"})
        try:
            async with asyncio.timeout(self.settings.connect_limit_ms / 1000):
                return await self._own.ws_connect(
                    url,
                    headers={"Authorization": self._authorization},
                    autoping=False,
                    max_msg_size=self.settings.message_max_bytes,
                )
        except aiohttp.WSServerHandshakeError as error:
            advice = _advice(self.settings, error.status, "events")
            raise _NotAdmitted(error.status, advice) from None
        except TimeoutError:
            raise _Over("websocket: no answer") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _Over(f"websocket: {error}") from None

    async def _close_websocket(self) -> None:
        """Without a closing handshake: nobody may be there to take part in it."""
        ws, self._ws = self._ws, None
        if ws is not None and not ws.closed:
            with contextlib.suppress(TimeoutError, aiohttp.ClientError, OSError):
                async with asyncio.timeout(CLOSE_LIMIT_MS / 1000):
                    await ws.close()

    async def _read(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        """Posts what comes; waits for nobody but the network."""
        loop = asyncio.get_running_loop()
        self._ws_heard_at = loop.time()
        while True:
            message = await ws.receive()
            self._ws_heard_at = loop.time()
            if message.type is aiohttp.WSMsgType.TEXT:
                self._take(wire.decode_event(message.data))
            elif message.type is aiohttp.WSMsgType.PING:
                await ws.pong(message.data)
            elif message.type is not aiohttp.WSMsgType.PONG:
                raise _Closed(f"websocket closed ({ws.close_code or message.type.name})")

    def _take(self, event: wire.AnyEvent | wire.RawEvent) -> None:
        if isinstance(event, wire.RawEvent):
            self._count("ari_events_raw", 1, (("fits", str(not event.problem).lower()),))
        self._deliver(AriEvent(event=event))
        if isinstance(event, wire.ApplicationReplaced) and event.application == self.settings.app:
            raise _Taken(f"another process took the application {self.settings.app!r}")

    def _deliver(self, event: AriEvent) -> None:
        """Posts, or keeps while a snapshot is on its way. What the mailbox does not
        take is lost, and makes a new snapshot necessary."""
        if self._buffer is None:
            if self._outbox.offer(event):
                return
            self._count("ari_events_refused", 1, ())
            self._buffer = []
            self._resync.set()
        elif len(self._buffer) < self.settings.buffer_max_events:
            self._buffer.append(event)
        else:
            self._count("ari_events_overflowed", 1, ())
            self._buffer.clear()
            self._resync.set()

    async def _serve(self, incarnation: str) -> None:
        await self._filter_events()
        await self._snapshot(incarnation)
        await _first_to_end(self._ping(), self._snapshots_again(incarnation), self._modules_again())

    # --- snapshots -------------------------------------------------------------------

    async def _missing_modules(self) -> list[str]:
        modules = await self._ask("asterisk.listModules")
        running = {module.name for module in modules if module.status != "Not Running"}
        return [name for name in self.settings.required_modules if name not in running]

    async def _modules_again(self) -> None:
        """Somebody may load what is missing, or unload what is needed."""
        while True:
            every_ms = self.settings.missing_every_ms if self._missing else self.settings.modules_every_ms
            await asyncio.sleep(every_ms / 1000)
            missing = await self._missing_modules()
            if missing != self._missing:
                self._missing = missing
                self._resync.set()

    async def _filter_events(self) -> None:
        """Asterisk forgets the filter with every connection."""
        unwanted = [{"type": name} for name in self.settings.events_unwanted]
        if unwanted:
            await self._ask(
                "applications.filter", applicationName=self.settings.app, filter={"disallowed": unwanted}
            )

    async def _snapshot(self, incarnation: str) -> None:
        """Reads what Asterisk has, posts it, then what came meanwhile."""
        channels, bridges = await self._channels_and_bridges()
        snapshot = AriSnapshot(
            incarnation=incarnation, channels=channels, bridges=bridges, missing_modules=tuple(self._missing)
        )
        while not self._outbox.offer(snapshot):
            await asyncio.sleep(RESYNC_EVERY_MS / 1000)
        self._up = self._served = True
        self._said_anything = True
        self._refused_status = 0
        self.incarnation = incarnation
        kept, self._buffer = self._buffer or [], None
        for event in kept:
            self._deliver(event)

    async def _channels_and_bridges(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """All channels and bridges; subscribes first to those of ours that were left
        without a subscriber."""
        for _ in range(SNAPSHOT_PASSES_MAX):
            channels = _only(wire.Channel, await self._ask("channels.list"))
            bridges = _only(wire.Bridge, await self._ask("bridges.list"))
            app = await self._ask("applications.get", applicationName=self.settings.app)
            ours = [f"channel:{c.id}" for c in channels if self._is_ours(c) and c.id not in app.channel_ids]
            made = [b for b in bridges if b.creator == "Stasis" and b.id not in app.bridge_ids]
            sources = ours + [f"bridge:{b.id}" for b in made]
            if not sources or not await self._subscribe(sources):
                break
        return channels, bridges

    def _is_ours(self, channel: wire.Channel) -> bool:
        where = channel.dialplan
        return where.app_name == "Stasis" and where.app_data.partition(",")[0] == self.settings.app

    async def _subscribe(self, sources: list[str]) -> bool:
        """Whether anything was subscribed (what ended meanwhile cannot be)."""
        subscribed = False
        for start in range(0, len(sources), SUBSCRIBE_MAX_SOURCES):
            some = sources[start : start + SUBSCRIBE_MAX_SOURCES]
            with contextlib.suppress(_Over):
                await self._ask("applications.subscribe", applicationName=self.settings.app, eventSource=some)
                subscribed = True
        return subscribed

    async def _snapshots_again(self, incarnation: str) -> None:
        while True:
            await self._resync.wait()
            self._resync.clear()
            await asyncio.sleep(RESYNC_EVERY_MS / 1000)
            await self._snapshot(incarnation)

    # --- is it there -----------------------------------------------------------------

    async def _ping(self) -> None:
        """Asks by HTTP and by the websocket, each round; raises `_Over` on silence."""
        loop = asyncio.get_running_loop()
        every_s, limit_s = self.settings.ping_every_ms / 1000, self.settings.silence_limit_ms / 1000
        stall_s = self.settings.stall_limit_ms / 1000
        answered_at = self._ws_heard_at = loop.time()
        due = answered_at + every_s
        while True:
            await asyncio.sleep(max(0.0, due - loop.time()))
            late_s = loop.time() - due
            due = max(due + every_s, loop.time() + every_s / 2)
            if late_s <= stall_s:
                deadline = max(answered_at + limit_s, loop.time())
                answered = await self._pinged(deadline)
                late_s = 0.0 if answered else loop.time() - deadline
                if answered:
                    answered_at = loop.time()
                    self._watch_late_process()
            if late_s > stall_s:
                # what came while we stood still is read now: that time, and one round, do not count
                self._count("ari_rounds_discarded", 1, ())
                answered_at = min(loop.time(), answered_at + late_s + every_s)
                self._ws_heard_at = min(loop.time(), self._ws_heard_at + late_s + every_s)
            if loop.time() - answered_at >= limit_s:
                self._watch.look()
                raise _Over(f"silent for {(loop.time() - answered_at) * 1000:.0f} ms")
            if loop.time() - self._ws_heard_at > 2 * limit_s:
                raise _Over("the websocket is silent although pings are answered")

    async def _pinged(self, deadline: float) -> bool:
        assert self._own is not None and self._ws is not None
        try:
            async with asyncio.timeout_at(deadline):
                await self._ws.ping()
                reply = await self._request(self._own, *encode("asterisk.ping", {}))
        except (TimeoutError, aiohttp.ClientError, OSError):
            return False
        return reply.status == 200

    def _watch_late_process(self) -> None:
        """Its pid file may be written, or its name be set, after its first answer."""
        if self.settings.pid_file and (self._watch.pid is None or self._watch.gone):
            self._watch.attach()

    def _process_ended(self) -> None:
        """The kernel's word, the fastest of all signs."""
        self._tell_down(f"process {self._watch.pid} ended", process_gone=True)
        self._process_over.set()

    async def _process_ends(self) -> None:
        await self._process_over.wait()
        raise _Over(f"process {self._watch.pid} ended")

    async def _down(self, over: _Over) -> None:
        """After a connection ended: says so, once, and whether for good."""
        if isinstance(over, _NotAdmitted):
            self._not_admitted(over)
        if self._up:
            if isinstance(over, _Closed):
                await self._watch.wait_gone(self.settings.gone_recheck_ms)
            if self._up:
                self._tell_down(str(over), process_gone=False)
        elif not self._said_anything:
            gone = bool(self.settings.pid_file) and self._watch.nobody()
            self._tell_down(str(over), process_gone=gone)

    def _tell_down(self, reason: str, *, process_gone: bool) -> None:
        self._up = False
        self._said_anything = True
        self.trouble = reason
        self._count("ari_down", 1, (("process_gone", str(process_gone).lower()),))
        self._outbox.insist(AriDown(reason=reason, process_gone=process_gone))

    def _not_admitted(self, refusal: _NotAdmitted) -> None:
        if refusal.status != self._refused_status:
            self._refused_status = refusal.status
            self._said_anything = True
            self._outbox.insist(AriRefusedUs(status=refusal.status, advice=refusal.advice))


async def _first_to_end(*parts: Coroutine[Any, Any, None]) -> None:
    """Runs all until one ends (by raising, here), and ends the others."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _only(kind: type, values: list[Any]) -> tuple[Any, ...]:
    """Items that fit their struct; one that does not must not hide the others."""
    return tuple(value for value in values if isinstance(value, kind))


def _fits(value: Any, kind: Any) -> bool:
    return kind is None or isinstance(value, get_origin(kind) or kind)


def _message(reply: _Reply) -> str:
    """What Asterisk says about a refusal: ``{"message": …}`` or its reason phrase."""
    try:
        value = msgspec.json.decode(reply.content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return reply.reason
    text = value.get("message") if isinstance(value, dict) else None
    return text[:REPLY_TEXT_MAX_CHARS] if isinstance(text, str) else reply.reason


def _incarnation(info: wire.AsteriskInfo) -> str:
    """One life of this Asterisk: the machine's boot and Asterisk's start in ms."""
    if info.status is None or not info.status.startup_time:
        raise _Over("asterisk.getInfo: no startup time")
    text = info.status.startup_time
    try:
        started = f"{int(datetime.strptime(text, '%Y-%m-%dT%H:%M:%S.%f%z').timestamp() * 1000):x}"
    except ValueError:
        started = "".join(char for char in text if char.isalnum())
    return f"{Path(BOOT_ID_FILE).read_text()[:BOOT_ID_CHARS]}-{started}"


def _advice(settings: AriSettings, status: int, asked: str) -> str:
    """What to change so that Asterisk takes us."""
    if status == 401:
        return f"user {settings.username!r}: make the password here and in ari.conf the same"
    if status == 403:
        return f"user {settings.username!r}: set read_only = no in ari.conf; look for an ACL there"
    return (
        f"{asked} is not there: load res_ari.so, res_ari_asterisk.so, res_ari_events.so and the other"
        f" res_ari_*.so in modules.conf, set enabled = yes in ari.conf and http.conf, and compare"
        f" {settings.url} with prefix in http.conf"
    )
