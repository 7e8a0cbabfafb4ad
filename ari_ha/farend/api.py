"""The HTTP interface of the far ends: orders for calls and phones, and what they measured.

Every request carries ``Authorization: Bearer <token>``. Times are UTC seconds.

| request | does |
|---|---|
| GET /health | who we are, how busy |
| GET /calls · GET /calls/{id} | calls; one with its SIP messages |
| POST /calls {did, from, n, spacing_ms, hangup_after_s, event_pt, codec, srtp} | customers call |
| POST /calls/{id}/{hangup,hold,unhold,dtmf,info,answer,reject,refer} | orders to any call |
| GET /phones · GET /phones/{user} | registrations and manners |
| POST /phones/{user}/{register,unregister,manner,power,dial} | orders to a phone |
| POST /phones/{user}/{answer,reject,hangup,hold,unhold,dtmf,info} | orders to its living call |
| POST /phones/manner {users, ...} | one manner for many |
| POST /digits {digits: {call: digits}} | many digits at once |
| GET /measure?since=&until=&call=&ear= · POST /measure/mark {name} | what was heard |
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from ari_ha.farend import rtp
from ari_ha.farend.call import Call
from ari_ha.farend.farends import CARRIER, FarEnds
from ari_ha.farend.network import Driver
from ari_ha.farend.useragent import Manner, NotPossible
from ari_ha.sip import LocalError

CALLS_PER_REQUEST_MAX = 500
BODY_MAX_BYTES = 262_144
CODECS = {"pcma": rtp.PT_PCMA, "pcmu": rtp.PT_PCMU}
MODES = ("answer", "ring", "early", "busy", "reject", "unavailable")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Api:
    """Routes over one `FarEnds`."""

    def __init__(self, ends: FarEnds) -> None:
        self.ends = ends
        self.application = web.Application(client_max_size=BODY_MAX_BYTES, middlewares=[self._guard])
        self.application.add_routes(
            [
                web.get("/health", self.health),
                web.get("/calls", self.calls),
                web.post("/calls", self.make_calls),
                web.get("/calls/{id}", self.call),
                web.post("/calls/{id}/{order}", self.order_call),
                web.get("/phones", self.phones),
                web.post("/phones/manner", self.manners),
                web.get("/phones/{user}", self.phone),
                web.post("/phones/{user}/{order}", self.order_phone),
                web.post("/digits", self.digits),
                web.get("/measure", self.measure),
                web.post("/measure/mark", self.mark),
            ]
        )

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        token = self.ends.settings.token
        if token:
            given = request.headers.get("Authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
                return _error(401, "bearer token missing or wrong")
        try:
            return await handler(request)
        except (NotPossible, LocalError) as error:
            return _error(409, str(error))
        except (KeyError, TypeError, ValueError) as error:
            return _error(400, repr(error))

    # --- looking ---

    async def health(self, _: web.Request) -> web.Response:
        """Who we are, how busy."""
        living = sum(1 for _, call in self.ends.calls() if call.living)
        phones = [d.agent for d in self.ends.drivers.values() if d.agent.registration is not None]
        return web.json_response(
            {
                "now": time.time(),
                "calls": living,
                "phones": len(phones),
                "registered": sum(1 for a in phones if a.registration and a.registration.state == "in"),
                "pids": [os.getpid(), *self.ends.media.worker_pids()],
            }
        )

    async def calls(self, request: web.Request) -> web.Response:
        """All calls; ``state``, ``owner``, ``living=1`` choose."""
        query = request.query
        rows = [
            call.to_dict()
            for _, call in self.ends.calls()
            if query.get("state", call.state) == call.state
            and query.get("owner", call.owner) == call.owner
            and (query.get("living") != "1" or call.living)
        ]
        return web.json_response({"now": time.time(), "calls": rows})

    async def call(self, request: web.Request) -> web.Response:
        """One call with its SIP messages."""
        _, call = self._find(request)
        return web.json_response(call.to_dict(with_messages=True))

    async def phones(self, _: web.Request) -> web.Response:
        """All phones."""
        drivers = self.ends.drivers.items()
        return web.json_response({"phones": [_phone(user, d) for user, d in drivers if user != CARRIER]})

    async def phone(self, request: web.Request) -> web.Response:
        """One phone with its calls and the messages that belong to none."""
        driver = self._driver(request)
        values = _phone(request.match_info["user"], driver)
        values["calls"] = [call.to_dict() for call in driver.agent.calls.values()]
        values["other_messages"] = [message.to_dict() for message in list(driver.agent.other_messages)[-100:]]
        return web.json_response(values)

    async def measure(self, request: web.Request) -> web.Response:
        """What was heard in a window; ``ear=A:B,C``: call A should hear any of B and C."""
        now = time.time()
        since = self._instant(request.query.get("since"), 0.0)
        until = self._instant(request.query.get("until"), now)
        only = frozenset(request.query.getall("call", []))
        ears = dict(map(_ear, request.query.getall("ear", [])))
        values = await asyncio.to_thread(self.ends.measure, since, min(until, now), only, ears)
        return web.json_response({"now": now, **values})

    async def mark(self, request: web.Request) -> web.Response:
        """Remembers this instant under a name usable as ``since``."""
        body = await _body(request)
        now = time.time()
        self.ends.marks[str(body.get("name", "mark"))] = now
        return web.json_response({"now": now})

    def _instant(self, text: str | None, default: float) -> float:
        if text is None:
            return default
        return self.ends.marks[text] if text in self.ends.marks else float(text)

    # --- orders ---

    async def make_calls(self, request: web.Request) -> web.Response:
        """Customers call."""
        body = await _body(request)
        count = int(body.get("n", 1))
        if not 0 < count <= CALLS_PER_REQUEST_MAX:
            return _error(400, f"n is 1 to {CALLS_PER_REQUEST_MAX}")
        driver = self.ends.drivers[CARRIER]
        first = str(body.get("from", "15550000"))
        made: list[str] = []
        for index in range(count):
            if index:
                await asyncio.sleep(float(body.get("spacing_ms", 20)) / 1000)
            call = driver.agent.dial(
                str(body["did"]),
                first if count == 1 else f"{first}{index:03}",
                driver.now,
                event_pt=int(body.get("event_pt", 101)),
                codec=CODECS[str(body.get("codec", "pcma"))],
                srtp=bool(body.get("srtp", False)),
                hangup_after_s=body.get("hangup_after_s"),
            )
            driver.flush()
            made.append(call.id)
        return web.json_response({"now": time.time(), "calls": made})

    async def order_call(self, request: web.Request) -> web.Response:
        """An order to one call."""
        driver, call = self._find(request)
        return self._order(request.match_info["order"], driver, call, await _body(request))

    async def order_phone(self, request: web.Request) -> web.Response:
        """An order to a phone, or to its living call."""
        driver, order, body = self._driver(request), request.match_info["order"], await _body(request)
        agent = driver.agent
        if order in ("register", "unregister"):
            if agent.registration is None:
                return _error(409, "not a phone")
            if "password" in body:
                agent.registration.credentials = type(agent.registration.credentials)(
                    str(body.get("user", agent.name)), str(body["password"])
                )
            agent.registration.want(order == "register", driver.now)
        elif order == "manner":
            _set_manner(driver, body)
        elif order == "power":
            agent.power = bool(body["on"])
        elif order == "dial":
            call = agent.dial(
                str(body["number"]), agent.name, driver.now, event_pt=int(body.get("event_pt", 101))
            )
            driver.flush()
            return web.json_response(call.to_dict())
        else:
            living = agent.living_call()
            if living is None:
                return _error(409, f"{agent.name} has no call")
            return self._order(order, driver, living, body)
        driver.flush()
        return web.json_response(_phone(agent.name, driver))

    def _order(self, order: str, driver: Driver, call: Call, body: dict[str, Any]) -> web.Response:
        agent, now = driver.agent, driver.now
        match order:
            case "hangup":
                agent.hangup(call, now)
            case "answer":
                agent.answer(call, now)
            case "reject":
                agent.refuse(call, int(body.get("status", 603)), now)
            case "refer":
                other = self.ends.find(str(body["other"])) if body.get("other") else None
                agent.refer(call, str(body["number"]), other[1] if other else None, now)
            case "hold" | "unhold":
                agent.hold(call, order == "hold", now)
            case "dtmf":
                agent.digits(call, str(body["digits"]))
            case "info":
                agent.info(call, str(body.get("type", "application/dtmf-relay")), str(body["body"]), now)
            case _:
                return _error(404, f"no order {order!r}")
        driver.flush()
        return web.json_response(call.to_dict())

    async def digits(self, request: web.Request) -> web.Response:
        """Digits on many calls; calls that are not up are left out and named."""
        body = await _body(request)
        skipped: list[str] = []
        for ident, digits in body["digits"].items():
            found = self.ends.find(ident)
            if found is None or found[1].state != "up":
                skipped.append(ident)
            else:
                found[0].agent.digits(found[1], str(digits))
        return web.json_response({"now": time.time(), "skipped": skipped})

    async def manners(self, request: web.Request) -> web.Response:
        """One manner for many (``users``; all phones when left out)."""
        body = await _body(request)
        users = body.get("users") or [user for user in self.ends.drivers if user != CARRIER]
        for user in users:
            _set_manner(self.ends.drivers[str(user)], body)
        return web.json_response({"phones": len(users)})

    def _find(self, request: web.Request) -> tuple[Driver, Call]:
        found = self.ends.find(request.match_info["id"])
        if found is None:
            raise web.HTTPNotFound(text='{"error": "no such call"}', content_type="application/json")
        return found

    def _driver(self, request: web.Request) -> Driver:
        driver = self.ends.drivers.get(request.match_info["user"])
        if driver is None:
            raise web.HTTPNotFound(text='{"error": "no such phone"}', content_type="application/json")
        return driver


def _ear(text: str) -> tuple[str, list[str]]:
    ear, _, voices = text.partition(":")
    return ear, voices.split(",")


def _set_manner(driver: Driver, body: dict[str, Any]) -> None:
    old = driver.agent.manner
    mode = str(body.get("mode", old.mode))
    if mode not in MODES:
        raise ValueError(f"mode is one of {', '.join(MODES)}")
    driver.agent.manner = Manner(
        mode,
        float(body.get("after_s", old.after_s)),
        bool(body.get("ring", old.ring)),
        int(body.get("calls_max", old.calls_max)),
        body.get("sequence", old.sequence),
    )


def _phone(user: str, driver: Driver) -> dict[str, Any]:
    agent = driver.agent
    living = agent.living_call()
    return {
        "user": user,
        "transport": agent.listener.transport,
        "address": f"{agent.listener.host}:{agent.listener.port}",
        "registration": agent.registration.to_dict() if agent.registration else None,
        "manner": {"mode": agent.manner.mode, "after_s": agent.manner.after_s},
        "power": agent.power,
        "call": living.to_dict() if living else None,
        "sip_received_total": agent.received_total,
    }


async def _body(request: web.Request) -> dict[str, Any]:
    text = await request.text()
    values = json.loads(text) if text.strip() else {}
    if not isinstance(values, dict):
        raise ValueError("the body is a JSON object")
    return values


def _error(status: int, text: str) -> web.Response:
    return web.json_response({"error": text}, status=status)
