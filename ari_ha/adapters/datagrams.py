"""Authenticated words between two guards, and between a guard and its edge process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ari_ha.core.machine import Event
from ari_ha.core.ports.guard import PairWord
from ari_ha.wire.beat import KEY_MIN_BYTES, Word, seal, unseal


class WordSocket(asyncio.DatagramProtocol):
    """One UDP socket, bound to one address, speaking to one other."""

    def __init__(self, key: bytes, to: tuple[str, int], post: Callable[[Event], object]) -> None:
        if len(key) < KEY_MIN_BYTES:
            raise ValueError(f"the pair's key has {len(key)} bytes; at least {KEY_MIN_BYTES}")
        self._key = key
        self._to = to
        self._post = post
        self._transport: asyncio.DatagramTransport | None = None
        self.refused = 0
        """Datagrams that were not from somebody with the key."""

    async def start(self, host: str, port: int) -> None:
        """Listens. Raises OSError when the address is not ours or taken."""
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(host, port))

    @property
    def port(self) -> int:
        """The port listened on."""
        assert self._transport is not None
        return int(self._transport.get_extra_info("sockname")[1])

    def send(self, word: Word) -> None:
        """Sends, or not."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(seal(self._key, word), self._to)

    def close(self) -> None:
        """Stops."""
        if self._transport is not None:
            self._transport.close()

    def datagram_received(self, data: bytes, addr: object) -> None:
        word = unseal(self._key, data)
        if word is None:
            self.refused += 1
        else:
            self._post(PairWord(word=word))

    def error_received(self, exc: Exception) -> None:
        """Nobody listens at the other end, or there is no way to it: its silence says so."""
