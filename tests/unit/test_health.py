"""The HTTP side of a process."""

from __future__ import annotations

import aiohttp
import pytest

from ari_ha.core.ports.operator import OperatorReply, OperatorRequest
from ari_ha.runtime.health import Asked, HealthServer, OperatorDesk
from ari_ha.runtime.metrics import Metrics


@pytest.fixture
async def serve():
    servers, session = [], aiohttp.ClientSession()

    async def start(**options):
        metrics = Metrics()
        metrics.count("moves")
        server = HealthServer("127.0.0.1", 0, metrics, **options)
        await server.start()
        servers.append(server)

        async def ask(method: str, path: str, token: str = "", **arguments):
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            url = f"http://127.0.0.1:{server.port}{path}"
            async with session.request(method, url, headers=headers, **arguments) as response:
                is_json = response.content_type == "application/json"
                return response.status, await (response.json() if is_json else response.text())

        return ask

    yield start
    await session.close()
    for server in servers:
        await server.stop()


async def test_metrics_health_and_readiness(serve):
    ready = [False, "no Asterisk"]
    ask = await serve(ready=lambda: tuple(ready))
    status, body = await ask("GET", "/metrics")
    assert status == 200 and "ari_ha_moves_total 1.0" in body
    assert await ask("GET", "/healthz") == (200, {"ok": True})
    assert await ask("GET", "/readyz") == (503, {"ready": False, "reason": "no Asterisk"})
    ready[:] = [True, ""]
    assert (await ask("GET", "/readyz"))[0] == 200


async def test_json_routes_ask_for_the_token(serve):
    async def call(asked: Asked):
        return 200, {"call": asked.path["call"], "full": asked.query.get("full"), "body": asked.body}

    ask = await serve(token="t0ken\n", routes={"POST /v1/calls/{call}": call})
    assert (await ask("POST", "/v1/calls/k1"))[0] == 401
    assert (await ask("POST", "/v1/calls/k1", token="wrong"))[0] == 401
    assert await ask("POST", "/v1/calls/k1?full=1", token="t0ken", json={"a": 1}) == (
        200,
        {"call": "k1", "full": "1", "body": {"a": 1}},
    )
    assert (await ask("POST", "/v1/calls/k1", token="t0ken", data=b"{"))[0] == 400


async def test_without_a_token_json_routes_are_closed(serve):
    ask = await serve(routes={"GET /v1/x": None})
    assert (await ask("GET", "/v1/x"))[0] == 403


async def test_a_question_to_the_machine_and_its_answer(serve):
    asked = []

    def post(event: OperatorRequest) -> bool:
        asked.append(event)
        if event.verb == "full":
            return False
        desk.reply(OperatorReply(request=event.request, status=202, body={"verb": event.verb}))
        return True

    desk = OperatorDesk(post)
    routes = {"POST /v1/drain/{node}": desk.route("drain"), "GET /v1/full": desk.route("full")}
    ask = await serve(token="t", routes=routes)
    assert await ask("POST", "/v1/drain/node-a", token="t", json={"rate": 5}) == (202, {"verb": "drain"})
    assert asked[0].args == {"node": "node-a", "rate": 5}
    assert (await ask("GET", "/v1/full", token="t"))[0] == 503
    desk.reply(OperatorReply(request="http-99", status=200))
