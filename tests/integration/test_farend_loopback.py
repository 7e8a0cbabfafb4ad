"""The far ends call each other directly over loopback: no edge, no Asterisk, real sockets and real RTP."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import ClientSession

from ari_ha.farend.main import serve
from ari_ha.farend.settings import BadSettings, FarEndSettings, load

TOKEN = "loopback"
LIMIT_S = 30.0


def free_port(kind: socket.SocketKind = socket.SOCK_DGRAM) -> int:
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Ends:
    """One process's worth of far ends: the carrier's proxy is the phone, and the other way about."""

    def __init__(self, session: ClientSession, base: str) -> None:
        self.session, self.base = session, base

    async def ask(self, path: str, body: dict[str, Any] | None = None, status: int = 200) -> Any:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        method = "GET" if body is None else "POST"
        async with self.session.request(method, self.base + path, json=body, headers=headers) as reply:
            assert reply.status == status, await reply.text()
            return await reply.json()

    async def until(self, path: str, wanted: Callable[[Any], bool]) -> Any:
        end = time.monotonic() + LIMIT_S
        while True:
            found = await self.ask(path)
            if wanted(found):
                return found
            assert time.monotonic() < end, f"{path}: still {found}"
            await asyncio.sleep(0.02)

    async def connected(self, **more: Any) -> str:
        made = await self.ask("/calls", {"did": "1001", **more})
        (ident,) = made["calls"]
        await self.until(f"/calls/{ident}", lambda call: call["state"] == "up")
        return ident


@pytest_asyncio.fixture
async def ends() -> AsyncIterator[Ends]:
    phone_port, http_port = free_port(), free_port(socket.SOCK_STREAM)
    settings = FarEndSettings(
        edge_host="127.0.0.1",
        edge_port=phone_port,
        carrier_host="127.0.0.1",
        carrier_port=free_port(),
        phones_host="127.0.0.1",
        phones_base_port=phone_port,
        phones=("1001",),
        register=False,
        http_host="127.0.0.1",
        http_port=http_port,
        token=TOKEN,
    )
    stop = asyncio.Event()
    task = asyncio.create_task(serve(settings, stop))
    async with ClientSession() as session:
        found = Ends(session, f"http://127.0.0.1:{http_port}")
        end = time.monotonic() + LIMIT_S
        while True:
            try:
                await found.ask("/health")
                break
            except OSError:
                assert time.monotonic() < end and not task.done()
                await asyncio.sleep(0.02)
        yield found
    stop.set()
    await asyncio.wait_for(task, LIMIT_S)


async def test_a_call_with_voice_both_ways_and_digits(ends: Ends) -> None:
    ident = await ends.connected()
    since = time.time()
    await asyncio.sleep(0.6)
    await ends.ask(f"/calls/{ident}/dtmf", {"digits": "42#"})
    await ends.ask("/phones/1001/dtmf", {"digits": "9"})
    await asyncio.sleep(1.4)
    measured = (await ends.ask(f"/measure?since={since}"))["calls"]
    assert len(measured) == 2
    for call in measured:
        (heard,) = call["hears"]
        assert heard["lost_packets"] == heard["duplicates"] == heard["ssrc_changes"] == 0
        assert heard["received"] > 50
        assert heard["longest_gap_ms"] < 1000
        assert not call["other_audio"]
        assert heard["call"] in {c["call"] for c in measured} - {call["call"]}
    by_owner = {call["owner"]: call for call in measured}
    assert [d["digit"] for d in by_owner["1001"]["digits"]] == ["4", "2", "#"]
    assert [d["digit"] for d in by_owner["carrier"]["digits"]] == ["9"]


async def test_an_ear_says_when_it_heard_none_of_those_it_should(ends: Ends) -> None:
    ident = await ends.connected()
    (other,) = [c["call"] for c in (await ends.ask("/calls"))["calls"] if c["way"] == "in"]
    await asyncio.sleep(0.3)
    since = time.time()
    await asyncio.sleep(1.5)
    rows = (await ends.ask(f"/measure?since={since}&ear={ident}:{other}&ear={other}:{other}"))["calls"]
    found = {row["call"]: row["any_voice"] for row in rows}
    assert found[ident]["packets"] > 50 and found[ident]["silent_ms"] < 500, found
    assert found[other]["packets"] == 0 and found[other]["silent_ms"] > 800, (
        "its own voice is not what it hears"
    )
    rows = (await ends.ask(f"/measure?since={since}"))["calls"]
    assert [row["any_voice"] for row in rows] == [None, None]


async def test_hold_stops_both_voices_and_unhold_resumes(ends: Ends) -> None:
    await ends.connected()
    await ends.ask("/phones/1001/hold", {})
    await ends.until("/calls?owner=carrier", lambda found: found["calls"][0]["held_by_them"])
    await asyncio.sleep(0.5)
    held = time.time()
    await asyncio.sleep(0.5)
    assert all(not call["packets"] for call in (await ends.ask(f"/measure?since={held}"))["calls"])
    await ends.ask("/phones/1001/unhold", {})
    await ends.until("/calls?owner=carrier", lambda found: not found["calls"][0]["held_by_them"])
    await asyncio.sleep(0.5)
    back = time.time()
    await asyncio.sleep(0.5)
    assert all(
        call["hears"][0]["lost_packets"] == 0 for call in (await ends.ask(f"/measure?since={back}"))["calls"]
    )


async def test_messages_are_counted_per_call(ends: Ends) -> None:
    ident = await ends.connected()
    quiet = time.time()
    await asyncio.sleep(0.3)
    measured = (await ends.ask(f"/measure?since={quiet}"))["calls"]
    assert [call["sip_received_in_window"] for call in measured] == [0, 0]
    await ends.ask(f"/calls/{ident}/hangup", {})
    await ends.until("/calls?owner=1001", lambda found: found["calls"][0]["state"] == "ended")
    measured = (await ends.ask(f"/measure?since={quiet}"))["calls"]
    assert sorted(call["sip_received_in_window"] for call in measured) == [1, 1]
    call = await ends.ask(f"/calls/{ident}")
    assert [m["what"] for m in call["messages"] if m["way"] == "sent"] == ["INVITE", "ACK", "BYE"]


async def test_orders_that_do_not_fit_are_refused(ends: Ends) -> None:
    await ends.ask("/phones/1001/hangup", {}, status=409)
    await ends.ask("/phones/9999/hangup", {}, status=404)
    await ends.ask("/calls/carrier-77", status=404)
    await ends.ask("/calls", {}, status=400)
    await ends.ask("/calls", {"did": "1", "n": 100_000}, status=400)
    await ends.ask("/phones/1001/manner", {"mode": "sing"}, status=400)
    ident = await ends.connected()
    await ends.ask(f"/calls/{ident}/answer", {}, status=409)
    await ends.ask(f"/calls/{ident}/sing", {}, status=404)


async def test_without_the_token_nothing_is_said(ends: Ends) -> None:
    async with ends.session.get(ends.base + "/calls") as reply:
        assert reply.status == 401


def test_settings_of_the_lab_are_read(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t\n")
    (tmp_path / "passwords.json").write_text('{"1001": "p", "carrier1": "q"}')
    file = tmp_path / "settings.json"
    file.write_text(
        json.dumps(
            {
                "edge": {"host": "192.0.2.1", "port": 5060},
                "carrier": {"trunk": "carrier1", "host": "192.0.2.50", "port": 5060},
                "phones": {"host": "192.0.2.60", "realm": "lab", "users": ["1001", "1002"]},
                "passwords_file": str(tmp_path / "passwords.json"),
                "http": {"listen": "192.0.2.50:8090", "token_file": str(tmp_path / "token")},
            }
        )
    )
    settings = load(str(file))
    assert settings.phones == ("1001", "1002")
    assert (settings.passwords["1001"], settings.token, settings.http_port) == ("p", "t", 8090)
    file.write_text("{}")
    with pytest.raises(BadSettings):
        load(str(file))


async def test_srtp_is_heard_when_its_numbers_begin_anew(ends: Ends) -> None:
    since = (await ends.ask("/measure/mark", {"name": "call"}))["now"]
    await ends.ask("/phones/manner", {"users": ["carrier", "1001"], "sequence": 65_526})
    ident = await ends.connected(srtp=True)
    (other,) = [c["call"] for c in (await ends.ask("/calls"))["calls"] if c["way"] == "in"]

    def heard(rows: Any) -> bool:
        found = {row["call"]: [h for h in row["hears"] if h["call"]] for row in rows["calls"]}
        return all(found.get(one) and found[one][0]["received"] >= 50 for one in (ident, other))

    rows = await ends.until(f"/measure?since={since}", heard)
    assert all(h["lost_ms"] <= 20 for row in rows["calls"] for h in row["hears"]), rows
    await ends.ask(f"/calls/{ident}/dtmf", {"digits": "5"})
    await ends.until(
        f"/measure?since={since}&call={other}", lambda rows: rows["calls"][0]["digits"][:1] != []
    )
