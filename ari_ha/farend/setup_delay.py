"""How long a call takes from INVITE to 200: calls one after the other, plain SIP.

Run inside a host of the lab, so that the same program measures a call through an
edge and a call straight to an Asterisk: ``python -m ari_ha.farend.setup_delay``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import socket
import sys
import time

from ari_ha.sip import events
from ari_ha.sip.endpoint import Endpoint
from ari_ha.sip.flow import Flow, Listener
from ari_ha.sip.sdp import build_audio_sdp

CALL_LIMIT_S = 5.0
BETWEEN_CALLS_S = 0.05


class Caller(asyncio.DatagramProtocol):
    """One UDP user agent."""

    def __init__(self, host: str, port: int) -> None:
        self.sip = Endpoint({"l": Listener("l", "udp", host, port)}, lambda: secrets.token_hex(8))
        self.changed = asyncio.Event()
        self.heard: list[object] = []
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.sip.receive(data, Flow("l", "udp", *addr), time.monotonic())
        self.flush()

    def flush(self) -> None:
        """Sends what the engine has to say, keeps what it has heard."""
        for data, flow in self.sip.output():
            if self._transport:
                self._transport.sendto(data, (flow.host, flow.port))
        new = self.sip.events()
        if new:
            self.heard += new
            self.changed.set()

    async def ticks(self) -> None:
        """Runs the engine's timers."""
        while True:
            await asyncio.sleep(0.02)
            self.sip.handle_timer(time.monotonic())
            self.flush()

    async def until(self, leg: str, *kinds: type) -> object:
        """The first event of these kinds for the leg. Raises TimeoutError."""
        async with asyncio.timeout(CALL_LIMIT_S):
            while True:
                for event in self.heard:
                    if isinstance(event, kinds) and getattr(event, "leg", "") == leg:
                        return event
                self.changed.clear()
                await self.changed.wait()


async def measure(local: tuple[str, int], far: tuple[str, int], number: str, count: int) -> dict[str, object]:
    """Milliseconds from INVITE to 200 of each call that was answered."""
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(local)
    _, caller = await loop.create_datagram_endpoint(lambda: Caller(*local), sock=sock)
    ticks = asyncio.create_task(caller.ticks())
    took: list[float] = []
    failed: list[str] = []
    for _ in range(count):
        leg = secrets.token_hex(6)
        began = time.monotonic()
        caller.sip.invite(
            leg,
            flow=Flow("l", "udp", *far),
            target=f"sip:{number}@{far[0]}:{far[1]}",
            from_=f"<sip:bench@{local[0]}>",
            to=f"<sip:{number}@{far[0]}>",
            sdp=build_audio_sdp(1, 1, local[0], 45_000),
            now=began,
        )
        caller.flush()
        try:
            event = await caller.until(leg, events.LegAnswered, events.LegFailed)
        except TimeoutError:
            failed.append("no answer")
            continue
        if isinstance(event, events.LegAnswered):
            took.append((time.monotonic() - began) * 1000)
        else:
            failed.append(f"{getattr(event, 'status', '?')}")
        caller.sip.hangup(leg, time.monotonic())
        caller.flush()
        caller.heard.clear()
        await asyncio.sleep(BETWEEN_CALLS_S)
    ticks.cancel()
    return {"answer_ms": [round(ms, 2) for ms in took], "failed": failed}


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def main() -> None:
    """Command line: prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from", dest="local", type=_address, required=True, help="our host:port")
    parser.add_argument("--to", dest="far", type=_address, required=True, help="host:port of the far end")
    parser.add_argument("--number", required=True)
    parser.add_argument("--count", type=int, default=50)
    given = parser.parse_args()
    json.dump(asyncio.run(measure(given.local, given.far, given.number, given.count)), sys.stdout)


if __name__ == "__main__":
    main()
