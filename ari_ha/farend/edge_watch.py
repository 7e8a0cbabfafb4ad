"""Which of several edges serves: what a carrier, or a phone with a second registrar, finds out by OPTIONS.

One watch for all far ends of the process; real ones do it one by one."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Any

EVERY_S = 0.5
SILENT_S = 2.0
"""The edge in use did not answer for this long: another that answers is used."""
FRESH_S = 1.2
"""An answer is this long a reason to go there."""

Address = tuple[str, int]


class EdgeWatch(asyncio.DatagramProtocol):
    """Asks every edge; ``moved`` is called with the one to use from now on."""

    def __init__(self, own: str, edges: Sequence[Address], moved: Callable[[Address], None]) -> None:
        self.current = edges[0]
        self._own = own
        self._edges = tuple(edges)
        self._moved = moved
        self._heard: dict[Address, float] = {}
        self._transport: asyncio.DatagramTransport | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        """Begins to ask. Raises OSError when the own address is not there."""
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(self._own, 0))
        self._heard[self.current] = loop.time()
        self._ask()

    def close(self) -> None:
        """Asks nobody any more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.close()

    def _ask(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(EVERY_S, self._ask)
        if self._transport is None or self._transport.is_closing():
            return
        self._judge(loop.time())
        port = self._transport.get_extra_info("sockname")[1]
        for host, edge_port in self._edges:
            self._transport.sendto(_options(self._own, port, host, edge_port), (host, edge_port))

    def _judge(self, now: float) -> None:
        if now - self._heard.get(self.current, 0.0) < SILENT_S:
            return
        answering = [edge for edge in self._edges if now - self._heard.get(edge, -FRESH_S) < FRESH_S]
        if answering:
            self.current = answering[0]
            self._moved(self.current)

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        """From asyncio: any response is a sign of life (RFC 3261 §11)."""
        if data.startswith(b"SIP/2.0 "):
            self._heard[(str(addr[0]), addr[1])] = asyncio.get_running_loop().time()

    def error_received(self, exc: OSError) -> None:
        """From asyncio: a host that refuses, or is gone, does not answer."""


def _options(own: str, port: int, host: str, edge_port: int) -> bytes:
    """An OPTIONS outside any dialog (RFC 3261 §11.1)."""
    lines = (
        f"OPTIONS sip:{host}:{edge_port} SIP/2.0",
        f"Via: SIP/2.0/UDP {own}:{port};branch=z9hG4bK{secrets.token_hex(8)};rport",
        "Max-Forwards: 70",
        f"From: <sip:watch@{own}>;tag={secrets.token_hex(4)}",
        f"To: <sip:{host}:{edge_port}>",
        f"Call-ID: {secrets.token_hex(8)}@{own}",
        "CSeq: 1 OPTIONS",
        "Content-Length: 0",
        "",
        "",
    )
    return "\r\n".join(lines).encode()
