"""OPTIONS on connected UDP sockets, one per node: replies and ICMP refusals."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

from ari_ha.core.machine import Event
from ari_ha.core.ports.probe import ProbeRefused, ProbeReply, SendProbe

USER_AGENT = "ari-ha-edge-probe"
"""Nodes tell a probe from a call by this name (asterisk-conf/pjsip.conf)."""


class Probes:
    """The probe sockets of one edge."""

    def __init__(self, local_host: str, post: Callable[[Event], object]) -> None:
        self._local_host = local_host
        self._post = post
        self._sockets: dict[str, _Probe] = {}
        self._opening: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, effect: SendProbe) -> None:
        """Sends one probe; opens the node's socket first where needed."""
        probe = self._sockets.get(effect.node)
        if probe:
            probe.send(effect.n)
        elif effect.node not in self._opening:
            self._opening.add(effect.node)
            task = asyncio.ensure_future(self._open(effect))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _open(self, effect: SendProbe) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, probe = await loop.create_datagram_endpoint(
                lambda: _Probe(effect.node, self._local_host, effect.host, effect.port, self._post),
                local_addr=(self._local_host, 0),
                remote_addr=(effect.host, effect.port),
            )
            self._sockets[effect.node] = probe
            probe.send(effect.n)
        except OSError:
            # no route: says nothing of the node's process; silence will
            pass
        finally:
            self._opening.discard(effect.node)

    def close(self) -> None:
        """Closes every probe socket."""
        for probe in self._sockets.values():
            probe.close()


class _Probe(asyncio.DatagramProtocol):
    def __init__(
        self, node: str, local_host: str, host: str, port: int, post: Callable[[Event], object]
    ) -> None:
        self._node = node
        self._local_host = local_host
        self._host = host
        self._port = port
        self._post = post
        self._id = secrets.token_hex(6)
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def send(self, n: int) -> None:
        """One OPTIONS (RFC 3261 §11)."""
        if self._transport is None or self._transport.is_closing():
            return
        port = self._transport.get_extra_info("sockname")[1]
        message = (
            f"OPTIONS sip:{self._host}:{self._port} SIP/2.0\r\n"
            f"Via: SIP/2.0/UDP {self._local_host}:{port};branch=z9hG4bK{self._id}{n};rport\r\n"
            f"Max-Forwards: 70\r\n"
            f"From: <sip:probe@{self._local_host}>;tag={self._id}\r\n"
            f"To: <sip:{self._host}:{self._port}>\r\n"
            f"Call-ID: {self._id}-{n}\r\n"
            f"CSeq: {n} OPTIONS\r\n"
            f"Contact: <sip:probe@{self._local_host}:{port}>\r\n"
            f"User-Agent: {USER_AGENT}\r\n"
            f"Content-Length: 0\r\n\r\n"
        )
        self._transport.sendto(message.encode())

    def datagram_received(self, data: bytes, addr: object) -> None:
        if not data.startswith(b"SIP/2.0 "):
            return
        for line in data.split(b"\r\n", 24)[1:]:
            name, _, value = line.partition(b":")
            if name.strip().lower() == b"cseq":
                number = value.split()[:1]
                if number and number[0].isdigit():
                    self._post(ProbeReply(node=self._node, n=int(number[0])))
                return

    def error_received(self, exc: Exception) -> None:
        if isinstance(exc, ConnectionRefusedError):
            self._post(ProbeRefused(node=self._node))

    def close(self) -> None:
        """Closes the socket."""
        if self._transport:
            self._transport.close()
