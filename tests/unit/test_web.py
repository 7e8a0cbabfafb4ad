"""The adapter for requests of IVR steps, against a real HTTP server on loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiohttp import web

from ari_ha.adapters.web import Web
from ari_ha.core.machine import Done, Refused, Unknown, Unreachable
from ari_ha.core.ports.web import ANSWER_MAX_BYTES, WebRequest


class Site:
    """What it was asked, and how it answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, bytes]] = []
        self.url = ""

    async def charge(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.method, request.headers.get("Idempotency-Key", ""), await request.read()))
        match request.query.get("how", ""):
            case "no":
                return web.Response(status=402, text="no money")
            case "late":
                await asyncio.sleep(1)
            case "cut":
                assert request.transport is not None
                request.transport.abort()
            case "much":
                return web.Response(body=b"x" * (ANSWER_MAX_BYTES + 10))
            case "elsewhere":
                return web.Response(status=307, headers={"Location": "/charge"})
        return web.json_response({"variables": {"A": "1"}})


@pytest_asyncio.fixture
async def site() -> AsyncIterator[Site]:
    site, app = Site(), web.Application()
    app.router.add_route("*", "/charge", site.charge)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    site.url = f"http://127.0.0.1:{runner.addresses[0][1]}/charge"
    yield site
    await runner.cleanup()


@pytest_asyncio.fixture
async def adapter() -> AsyncIterator[Web]:
    adapter = Web()
    yield adapter
    await adapter.close()


@pytest.mark.asyncio
async def test_a_request_with_its_key_and_its_answer(site: Site, adapter: Web) -> None:
    outcome = await adapter.perform(WebRequest(url=site.url, key="k1.2", body=b"{}"))
    assert isinstance(outcome, Done) and b"variables" in outcome.value.body
    assert site.asked == [("POST", "k1.2", b"{}")]


@pytest.mark.asyncio
async def test_a_lookup_is_a_get(site: Site, adapter: Web) -> None:
    assert isinstance(await adapter.perform(WebRequest(url=site.url, key="k1.2")), Done)
    assert site.asked == [("GET", "k1.2", b"")]


@pytest.mark.asyncio
@pytest.mark.parametrize(("how", "code"), [("no", 402), ("elsewhere", 307)])
async def test_any_other_status_is_a_refusal(site: Site, adapter: Web, how: str, code: int) -> None:
    outcome = await adapter.perform(WebRequest(url=f"{site.url}?how={how}", body=b"{}"))
    assert isinstance(outcome, Refused) and outcome.code == code
    assert len(site.asked) == 1, "no redirect is followed: that would be a second request"


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["late", "cut"])
async def test_an_answer_that_does_not_come_is_unknown(site: Site, adapter: Web, how: str) -> None:
    outcome = await adapter.perform(WebRequest(url=f"{site.url}?how={how}", body=b"{}", limit_s=0.3))
    assert isinstance(outcome, Unknown)
    assert len(site.asked) == 1


@pytest.mark.asyncio
async def test_nobody_there_is_certainly_not_done(adapter: Web) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    outcome = await adapter.perform(WebRequest(url=f"http://127.0.0.1:{port}/", body=b"{}", limit_s=1.0))
    assert isinstance(outcome, Unreachable)


@pytest.mark.asyncio
async def test_an_answer_is_read_up_to_a_limit(site: Site, adapter: Web) -> None:
    outcome = await adapter.perform(WebRequest(url=f"{site.url}?how=much", body=b"{}"))
    assert isinstance(outcome, Done) and len(outcome.value.body) <= ANSWER_MAX_BYTES
