"""Which life of rtpengine answers: by its age in whole seconds, and by who was refused meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from ari_ha.adapters.rtpengine import Life, Rtpengine
from ari_ha.core.machine import Event
from ari_ha.core.ports.media import MediaReach
from ari_ha.wire import ng


def answered(life: Life, began: float, at: float, late_s: float = 0.0) -> bool:
    """An answer at ``at`` of a process that began at ``began``; it was given ``late_s`` before."""
    return life.began_anew(float(int(at - late_s - began)), at)


def asked_twice_a_second(life: Life, began: float, since: float, until: float) -> list[float]:
    """When it was taken for another life."""
    times = [since + 0.5 * n for n in range(round((until - since) / 0.5) + 1)]
    return [at for at in times if answered(life, began, at)]


@pytest.fixture
def life() -> Life:
    found = Life()
    assert asked_twice_a_second(found, began=100.3, since=1000.1, until=1060.1) == []
    return found


@pytest.mark.parametrize("lived_s", [1.2, 2.0, 3.1, 4.9, 30.0])
@pytest.mark.parametrize("away_s", [0.05, 1.0])
def test_two_deaths_in_a_row_are_two_lives(life: Life, lived_s: float, away_s: float) -> None:
    """Nobody asked while it was away: each time its age alone says so."""
    names = {life.name}
    second = 1060.2 + away_s
    assert asked_twice_a_second(life, second, second + 0.1, second + lived_s) == [second + 0.1]
    names.add(life.name)
    third = second + lived_s + away_s
    assert asked_twice_a_second(life, third, third + 0.1, third + 20.0) == [third + 0.1]
    assert len({*names, life.name}) == 3


def test_one_that_died_at_once_is_known_by_who_was_refused(life: Life) -> None:
    life.refused()
    assert answered(life, 1060.3, 1060.4)
    life.refused()
    assert answered(life, 1060.6, 1060.7)
    assert not answered(life, 1060.6, 1061.2)


def test_a_refusal_alone_is_no_new_life(life: Life) -> None:
    """As where a packet filter refused for a moment."""
    life.refused()
    assert asked_twice_a_second(life, 100.3, 1060.6, 1080.1) == []


@pytest.mark.parametrize("late_s", [0.3, 0.9])
def test_a_late_answer_is_no_new_life(life: Life, late_s: float) -> None:
    assert not answered(life, 100.3, 1060.7, late_s)
    assert asked_twice_a_second(life, 100.3, 1061.2, 1080.2) == []


class Relay(asyncio.DatagramProtocol):
    """Answers as rtpengine does; its age is what the test says."""

    age_s = 500
    transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        cookie, _ = ng.decode(data)
        body = {"result": "ok", "statistics": {"totalstatistics": {"uptime": str(self.age_s)}}}
        self.transport.sendto(ng.encode(cookie, "", body), addr)


async def test_deaths_that_come_quickly_are_told_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that is closed refuses; each life that follows is told by another name."""
    monkeypatch.setattr("ari_ha.adapters.rtpengine.PING_INTERVAL_S", 0.02)
    events: asyncio.Queue[Event] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    async def life(port: int, age_s: int) -> Relay:
        _, relay = await loop.create_datagram_endpoint(Relay, local_addr=("127.0.0.1", port))
        relay.age_s = age_s
        return relay

    async def reached(whether: bool) -> str:
        async with asyncio.timeout(10):
            while True:
                event = await events.get()
                if isinstance(event, MediaReach) and event.reachable is whether:
                    return event.started

    relay = await life(0, 500)
    port = relay.transport.get_extra_info("sockname")[1]
    adapter = Rtpengine("127.0.0.1", port, events.put_nowait)
    await adapter.start()
    try:
        names = [await reached(True)]
        for _ in range(3):
            relay.transport.close()
            await reached(False)
            relay = await life(port, 0)
            names.append(await reached(True))
        assert len(set(names)) == 4
    finally:
        adapter.close()
        relay.transport.close()
