"""The NG client, against the few words of rtpengine it needs."""

from __future__ import annotations

import asyncio

from ari_ha.adapters.rtpengine import Rtpengine
from ari_ha.core.ports.media import MediaReach

LIMIT_S = 10.0


class Answers(asyncio.DatagramProtocol):
    """Says ok to everything."""

    def connection_made(self, transport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.transport.sendto(data.partition(b" ")[0] + b" d6:result2:oke", addr)


async def test_that_it_answers_is_told_until_there_is_room_for_it() -> None:
    """Nothing else would say it: what is told is only that it began to answer, or ceased to."""
    loop = asyncio.get_running_loop()
    server, _ = await loop.create_datagram_endpoint(Answers, local_addr=("127.0.0.1", 0))
    offered: list[MediaReach] = []
    relay = Rtpengine(
        "127.0.0.1",
        server.get_extra_info("sockname")[1],
        lambda event: offered.append(event) or len(offered) > 2,
    )
    await relay.start()
    try:
        end = loop.time() + LIMIT_S
        while len(offered) < 3:
            assert loop.time() < end
            await asyncio.sleep(0.02)
        assert {event.reachable for event in offered} == {True}
    finally:
        relay.close()
        server.close()
