"""The ARI adapter against a small ARI server in this process (the real one: tests/contract)."""

from __future__ import annotations

import asyncio
import base64
import subprocess
import time
from pathlib import Path

import pytest
from aiohttp import WSMsgType, web

from ari_ha.adapters.ari import AriAdapter
from ari_ha.adapters.ari_config import REQUIRED_MODULES, AriSettings
from ari_ha.core.machine import Done, Refused, Unknown, Unreachable
from ari_ha.core.ports.ari import AriCall, AriDown, AriEvent, AriRefusedUs, AriSnapshot
from ari_ha.wire import ari
from ari_ha.wire.ari_operations import AriParamsError

FAST = {
    "ping_every_ms": 50,
    "silence_limit_ms": 300,
    "retry_first_ms": 20,
    "retry_last_ms": 50,
    "pid_file": "",
}


class Mail(list):
    """A mailbox; with ``room`` False it takes nothing."""

    room = True

    def post(self, event) -> bool:
        if self.room:
            self.append(event)
        return self.room

    def all(self, kind: type) -> list:
        return [event for event in self if isinstance(event, kind)]

    async def until(self, kind: type, number: int = 1, limit_s: float = 30.0):
        end = time.monotonic() + limit_s
        while len(self.all(kind)) < number:
            assert time.monotonic() < end, f"no {kind.__name__} number {number} in {self}"
            await asyncio.sleep(0.005)
        return self.all(kind)[number - 1]


class FakeAri:
    """Serves what the adapter asks for. Set ``hang`` and nothing is answered."""

    def __init__(self) -> None:
        self.password, self.hang, self.slow_s = "secret", False, 0.0
        self.modules = list(REQUIRED_MODULES)
        self.startup = "2026-01-01T00:00:00.000+0000"
        self.channels = [{"id": "k1-c", "name": "PJSIP/x-1", "state": "Up"}]
        self.app: dict = {"name": "ari-ha", "channel_ids": [], "bridge_ids": []}
        self.websockets: list[web.WebSocketResponse] = []
        self.asked: list[tuple[str, str, dict, bytes]] = []
        self.events_while_listing: list[ari.Event] = []
        self.pings = 0

    async def start(self, port: int = 0) -> None:
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/ari/events", self._events)
        app.router.add_route("*", "/ari/{path:.*}", self._rest)
        self._runner = web.AppRunner(app, shutdown_timeout=0.01)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port, reuse_address=True).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        await self.cut()
        await self._runner.cleanup()

    async def cut(self) -> None:
        for ws in self.websockets:
            if ws._req is not None and ws._req.transport is not None:
                ws._req.transport.abort()
        self.websockets.clear()

    async def send(self, *events: ari.Event) -> None:
        for event in events:
            await self.websockets[-1].send_str(ari.encode_event(event).decode())

    @web.middleware
    async def _guard(self, request, handler):
        while self.hang:
            await asyncio.sleep(0.01)
        _, _, token = request.headers.get("Authorization", "").partition(" ")
        if base64.b64decode(token).decode() != f"ari-ha:{self.password}":
            return web.Response(status=401, headers={"WWW-Authenticate": "Basic"})
        assert "api_key" not in request.query
        return await handler(request)

    async def _events(self, request):
        assert request.query == {"app": "ari-ha", "subscribeAll": "false"}
        ws = web.WebSocketResponse(autoping=False)
        await ws.prepare(request)
        self.websockets.append(ws)
        async for message in ws:
            if message.type is WSMsgType.PING and not self.hang:
                self.pings += 1
                await ws.pong(message.data)
        return ws

    async def _rest(self, request):
        path, body = request.match_info["path"], await request.read()
        self.asked.append((request.method, path, dict(request.query), body))
        if path == "asterisk/info":
            return web.json_response({"status": {"startup_time": self.startup, "last_reload_time": ""}})
        if path == "asterisk/modules":
            return web.json_response([{"name": name, "status": "Running"} for name in self.modules])
        if path == "asterisk/ping":
            return web.json_response({"ping": "pong"})
        if path == "channels" and request.method == "GET":
            await self.send(*self.events_while_listing)
            await asyncio.sleep(self.slow_s)
            return web.json_response(self.channels)
        if path == "bridges":
            return web.json_response([])
        if path == "applications/ari-ha/subscription":
            self.app["channel_ids"] += [
                s.removeprefix("channel:") for s in request.query["eventSource"].split(",")
            ]
        if path.startswith("applications/"):
            return web.json_response(self.app)
        if path == "channels/nobody/answer":
            return web.json_response({"message": "Channel not found"}, status=404)
        if path == "channels/slow/answer":
            await asyncio.sleep(5)
        if path == "channels/dies/answer":
            request.transport.abort()
        return web.Response(status=204)


@pytest.fixture
async def fake():
    server = FakeAri()
    await server.start()
    yield server
    server.hang = False
    await server.stop()


@pytest.fixture
async def start(fake):
    """Starts an adapter with its mailbox; ``start(**settings)``."""
    adapters = []

    async def run(**changes):
        values = {"url": f"http://127.0.0.1:{fake.port}", "password": "secret", **FAST, **changes}
        mail = Mail()
        adapter = AriAdapter(AriSettings(**values), mail.post)
        adapters.append(adapter)
        await adapter.start()
        return adapter, mail

    yield run
    for adapter in adapters:
        await adapter.stop()


def ring(channel: str) -> ari.StasisStart:
    return ari.StasisStart(application="ari-ha", args=["queue"], channel=ari.Channel(id=channel))


async def test_snapshot_first_then_events_that_came_before_it(fake, start):
    fake.events_while_listing = [ring("early-1"), ring("early-2")]
    fake.slow_s = 0.1
    adapter, mail = await start()
    snapshot = await mail.until(AriSnapshot)
    assert mail[0] is snapshot
    assert [channel.id for channel in snapshot.channels] == ["k1-c"]
    assert snapshot.missing_modules == ()
    await fake.send(ring("late"))
    await mail.until(AriEvent, 3)
    assert [event.event.channel.id for event in mail[1:]] == ["early-1", "early-2", "late"]
    assert adapter.connected and snapshot.incarnation == adapter.incarnation


async def test_unwanted_events_are_switched_off_at_every_connect(fake, start):
    _, mail = await start(events_unwanted=("ChannelVarset",))
    await mail.until(AriSnapshot)
    await fake.cut()
    await mail.until(AriSnapshot, 2)
    filters = [body for _, path, _, body in fake.asked if path == "applications/ari-ha/eventFilter"]
    assert filters == [b'{"disallowed":[{"type":"ChannelVarset"}]}'] * 2


async def test_channels_of_ours_without_subscriber_are_subscribed(fake, start):
    ours = {"context": "x", "exten": "1", "priority": 2, "app_name": "Stasis", "app_data": "ari-ha,queue"}
    fake.channels.append({"id": "orphan", "dialplan": ours})
    _, mail = await start()
    snapshot = await mail.until(AriSnapshot)
    assert fake.app["channel_ids"] == ["orphan"]
    assert [channel.id for channel in snapshot.channels] == ["k1-c", "orphan"]


async def test_missing_modules_are_named(fake, start):
    fake.modules.remove("res_stasis_snoop.so")
    _, mail = await start()
    assert (await mail.until(AriSnapshot)).missing_modules == ("res_stasis_snoop.so",)


async def test_incarnation_is_the_same_for_one_start_and_new_for_another(fake, start):
    _, mail = await start()
    first = await mail.until(AriSnapshot)
    await fake.cut()
    second = await mail.until(AriSnapshot, 2)
    fake.startup = "2026-01-01T01:00:00.000+0100"  # the same instant, told in another zone
    await fake.cut()
    third = await mail.until(AriSnapshot, 3)
    fake.startup = "2026-01-01T00:00:00.001+0000"
    await fake.cut()
    fourth = await mail.until(AriSnapshot, 4)
    assert first.incarnation == second.incarnation == third.incarnation != fourth.incarnation
    assert "#" not in first.incarnation


async def test_websocket_closed_is_told_once_and_mended(fake, start):
    _, mail = await start()
    await mail.until(AriSnapshot)
    await fake.cut()
    down = await mail.until(AriDown)
    assert not down.process_gone
    await mail.until(AriSnapshot, 2)
    assert [type(event) for event in mail] == [AriSnapshot, AriDown, AriSnapshot]


async def test_asterisk_not_there_is_told_once(fake, start):
    await fake.stop()
    _, mail = await start()
    await mail.until(AriDown)
    await asyncio.sleep(0.3)
    assert len(mail) == 1
    await fake.start(fake.port)
    await mail.until(AriSnapshot)


async def test_silence_is_told_within_its_limit_and_mended(fake, start):
    adapter, mail = await start()
    await mail.until(AriSnapshot)
    fake.hang, began = True, time.monotonic()
    down = await mail.until(AriDown)
    assert time.monotonic() - began > 0.2
    assert "silent" in down.reason and not down.process_gone
    assert not adapter.connected
    fake.hang = False
    await mail.until(AriSnapshot, 2)
    assert len(mail.all(AriDown)) == 1


async def test_own_stall_is_not_asterisks_silence(fake, start):
    _, mail = await start()
    await mail.until(AriSnapshot)
    for _ in range(3):
        await asyncio.sleep(0.12)
        time.sleep(0.7)
    await asyncio.sleep(0.2)
    assert mail.all(AriDown) == []


async def test_websocket_is_pinged(fake, start):
    _, mail = await start()
    await mail.until(AriSnapshot)
    await asyncio.sleep(0.3)
    assert fake.pings >= 3


async def test_wrong_password_is_told_once_with_advice(fake, start):
    _, mail = await start(password="wrong")
    refused = await mail.until(AriRefusedUs)
    assert refused.status == 401 and "ari.conf" in refused.advice
    await asyncio.sleep(0.3)
    assert len(mail.all(AriRefusedUs)) == 1
    fake.password = "wrong"
    await mail.until(AriSnapshot)


async def test_password_file_is_read_at_every_connect(fake, start, tmp_path):
    file = tmp_path / "password"
    adapter, mail = await start(password_file=str(file))
    assert "password file" in (await mail.until(AriRefusedUs)).advice
    file.write_text("secret\n")
    await mail.until(AriSnapshot)
    assert isinstance(await adapter.perform(AriCall(operation="asterisk.ping")), Done)


async def test_nothing_under_that_address_is_told_with_advice(fake, start):
    _, mail = await start(url=f"http://127.0.0.1:{fake.port}/wrong")
    refused = await mail.until(AriRefusedUs)
    assert refused.status == 404 and "modules.conf" in refused.advice


async def test_another_process_took_the_application(fake, start):
    _, mail = await start()
    await mail.until(AriSnapshot)
    await fake.send(ari.ApplicationReplaced(application="ari-ha"))
    assert "another process" in (await mail.until(AriDown)).reason


async def test_full_mailbox_loses_events_but_ends_in_a_snapshot(fake, start):
    _, mail = await start()
    await mail.until(AriSnapshot)
    mail.room = False
    await fake.send(ring("lost"))
    await asyncio.sleep(0.2)
    mail.room = True
    await mail.until(AriSnapshot, 2)
    await fake.send(ring("seen"))
    await mail.until(AriEvent)
    assert [event.event.channel.id for event in mail.all(AriEvent)] == ["seen"]


async def test_down_reaches_a_full_mailbox_before_the_next_snapshot(fake, start):
    _, mail = await start()
    await mail.until(AriSnapshot)
    mail.room = False
    await fake.cut()
    await asyncio.sleep(0.3)
    mail.room = True
    await mail.until(AriSnapshot, 2)
    assert [type(event) for event in mail] == [AriSnapshot, AriDown, AriSnapshot]


async def test_too_many_events_during_a_snapshot_read_it_again(fake, start):
    fake.events_while_listing = [ring(str(n)) for n in range(20)]
    fake.slow_s = 0.1
    _, mail = await start(buffer_max_events=5)
    await mail.until(AriSnapshot, 2)


async def test_unknown_event_arrives_raw(fake, start):
    _, mail = await start()
    await mail.until(AriSnapshot)
    await fake.websockets[-1].send_str('{"type":"NewThing","x":1}')
    assert (await mail.until(AriEvent)).event == ari.RawEvent("NewThing", {"type": "NewThing", "x": 1})


async def test_outcomes(fake, start):
    adapter, mail = await start()
    await mail.until(AriSnapshot)

    async def perform(channel: str, limit_s: float = 2.0):
        return await adapter.perform(
            AriCall(operation="channels.answer", params={"channelId": channel}, limit_s=limit_s)
        )

    assert await perform("k1-c/ü 1") == Done(None)
    assert fake.asked[-1][:2] == ("POST", "channels/k1-c/ü 1/answer")
    assert await perform("nobody") == Refused("Channel not found", 404)
    assert isinstance(await perform("slow", 0.2), Unknown)
    assert isinstance(await perform("dies"), Unknown)
    listed = await adapter.perform(AriCall(operation="channels.list"))
    assert [channel.id for channel in listed.value] == ["k1-c"]
    with pytest.raises(AriParamsError):
        await adapter.perform(AriCall(operation="channels.fly"))
    await fake.stop()
    assert isinstance(await perform("k1-c"), Unknown | Unreachable)  # it may use a connection kept
    assert isinstance(await perform("k1-c"), Unreachable)
    await fake.start(fake.port)


async def test_requests_beyond_the_limit_wait_and_are_certainly_not_sent(fake, start):
    adapter, mail = await start(requests_max=1)
    await mail.until(AriSnapshot)
    slow = AriCall(operation="channels.answer", params={"channelId": "slow"}, limit_s=1.0)
    quick = AriCall(operation="channels.answer", params={"channelId": "x"}, limit_s=0.2)
    first = asyncio.create_task(adapter.perform(slow))
    await asyncio.sleep(0.05)
    assert isinstance(await adapter.perform(quick), Unreachable)
    assert isinstance(await first, Unknown)


# --- the process -------------------------------------------------------------------------


@pytest.fixture
def process(tmp_path):
    """Stands for Asterisk's process; its pid is in ``process.file``."""
    child = subprocess.Popen(["sleep", "60"])
    name, limit = Path(f"/proc/{child.pid}/comm"), time.monotonic() + 10
    while name.read_text() != "sleep\n":  # a new program has its name a moment after it was started
        assert time.monotonic() < limit
    child.file = tmp_path / "asterisk.pid"
    child.file.write_text(f"{child.pid}\n")
    yield child
    child.kill()
    child.wait()


def watching(process) -> dict:
    return {"pid_file": str(process.file), "process_name": "sleep"}


async def test_end_of_the_process_is_told_at_once_and_once(fake, start, process):
    _, mail = await start(**watching(process))
    await mail.until(AriSnapshot)
    process.kill()
    # The websocket stays open and its pings are answered: only the process' end can tell.
    down = await mail.until(AriDown)
    assert down.process_gone and str(process.pid) in down.reason
    await fake.stop()
    await asyncio.sleep(0.3)
    assert len(mail.all(AriDown)) == 1
    await fake.start(fake.port)


async def test_websocket_closing_just_before_the_process_ends(fake, start, process):
    adapter, mail = await start(**watching(process), gone_recheck_ms=30_000)
    await mail.until(AriSnapshot)
    await fake.cut()
    async with asyncio.timeout(30):
        while not adapter.trouble:
            await asyncio.sleep(0.005)
    assert mail.all(AriDown) == [], "known, and not told before it is clear whether the process lives"
    process.kill()
    assert (await mail.until(AriDown)).process_gone
    assert len(mail.all(AriDown)) == 1


async def test_a_pid_file_written_after_the_first_answer_is_found(fake, start, process):
    content = process.file.read_text()
    process.file.unlink()
    _, mail = await start(**watching(process))
    await mail.until(AriSnapshot)
    process.file.write_text(content)
    pings = fake.pings
    while fake.pings < pings + 3:
        await asyncio.sleep(0.01)
    process.kill()
    assert (await mail.until(AriDown)).process_gone


async def test_websocket_closed_and_the_process_stays(fake, start, process):
    _, mail = await start(**watching(process))
    await mail.until(AriSnapshot)
    await fake.cut()
    assert not (await mail.until(AriDown)).process_gone
    await mail.until(AriSnapshot, 2)
    process.kill()
    assert (await mail.until(AriDown, 2)).process_gone


async def test_silent_first_and_gone_later_are_both_told(fake, start, process):
    _, mail = await start(**watching(process))
    await mail.until(AriSnapshot)
    fake.hang = True
    assert not (await mail.until(AriDown)).process_gone
    process.kill()
    assert (await mail.until(AriDown, 2)).process_gone


async def test_stale_pid_file_of_another_program_is_not_believed(fake, start, process):
    _, mail = await start(pid_file=str(process.file), process_name="asterisk")
    await mail.until(AriSnapshot)
    process.kill()
    await asyncio.sleep(0.2)
    assert mail.all(AriDown) == []


def test_silence_limit_must_leave_room_for_pings():
    with pytest.raises(ValueError, match="ping more often"):
        AriSettings(ping_every_ms=500).check()


async def test_a_module_loaded_later_is_found_without_a_new_connection(fake, start):
    gone = fake.modules.pop()
    _, mail = await start(missing_every_ms=20)
    assert (await mail.until(AriSnapshot)).missing_modules == (gone,)
    fake.modules.append(gone)
    assert (await mail.until(AriSnapshot, 2)).missing_modules == ()
    assert mail.all(AriDown) == []


async def test_a_module_unloaded_later_is_missed(fake, start):
    _, mail = await start(modules_every_ms=20)
    await mail.until(AriSnapshot)
    gone = fake.modules.pop()
    assert (await mail.until(AriSnapshot, 2)).missing_modules == (gone,)
