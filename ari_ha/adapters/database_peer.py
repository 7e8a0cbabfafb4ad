"""Datagrams between the two watchers: small, authenticated, lost without harm.

A datagram is an HMAC-SHA256 and JSON. What it says names an etcd revision and a
process, so that an old one, sent again, is of no use.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping

from ari_ha.core.machine import Event
from ari_ha.core.ports.database import PeerSaid, SendPeer

DATAGRAM_MAX_BYTES = 1200
TAG_BYTES = 32
KEY_MIN_BYTES = 16


class DatabasePeer(asyncio.DatagramProtocol):
    """This watcher's socket. ``peers``: host and port by server."""

    def __init__(
        self, name: str, peers: Mapping[str, tuple[str, int]], key: bytes, post: Callable[[Event], object]
    ) -> None:
        if len(key) < KEY_MIN_BYTES:
            raise ValueError(f"the peer key has {len(key)} bytes; at least {KEY_MIN_BYTES}")
        self._name = name
        self._peers = peers
        self._key = key
        self._post = post
        self._transport: asyncio.DatagramTransport | None = None
        self.refused = 0
        self.ahead_s: dict[str, float] = {}
        """peer -> how far its wall clock is ahead of ours, less the way of its last datagram"""

    async def start(self, host: str, port: int) -> None:
        """Listens. Raises OSError when the address is not ours."""
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(host, port))

    @property
    def port(self) -> int:
        """The port listened on."""
        assert self._transport is not None
        return int(self._transport.get_extra_info("sockname")[1])

    def send(self, effect: SendPeer) -> None:
        """Sends, or not."""
        self._send(effect.peer, {"say": dict(effect.message)})

    def tell_time(self) -> None:
        """Tells every peer our time, so that it knows how far our clocks are apart."""
        for peer in self._peers:
            if peer != self._name:
                self._send(peer, {})

    def _send(self, peer: str, more: Mapping[str, object]) -> None:
        if self._transport is None or peer not in self._peers:
            return
        body = json.dumps({"from": self._name, "to": peer, "at": time.time(), **more}).encode()
        self._transport.sendto(self._tag(body) + body, self._peers[peer])

    def close(self) -> None:
        """Stops."""
        if self._transport is not None:
            self._transport.close()

    def _tag(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, hashlib.sha256)

    def datagram_received(self, data: bytes, addr: object) -> None:
        tag, body = data[:TAG_BYTES], data[TAG_BYTES:]
        if len(data) > DATAGRAM_MAX_BYTES or not hmac.compare_digest(tag, self._tag(body)):
            self.refused += 1
            return
        try:
            said = json.loads(body)
        except ValueError:
            self.refused += 1
            return
        if isinstance(said, dict) and said.get("to") == self._name and said.get("from") in self._peers:
            if isinstance(at := said.get("at"), float):
                self.ahead_s[said["from"]] = at - time.time()
            message = said.get("say")
            if isinstance(message, dict):
                self._post(PeerSaid(peer=said["from"], message=message))
