"""Two edges of two pairs on real sockets, between real far ends: over UDP and over a connection, and
either edge begins anew in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from ari_ha.adapters.sip import SipSockets
from ari_ha.core.machine import Effect
from ari_ha.core.ports.sip import CloseSip, SendSip, SipBytes
from ari_ha.farend.farends import CARRIER, FarEnds
from ari_ha.farend.settings import FarEndSettings
from ari_ha.machines.edge_config import EdgeConfig
from ari_ha.wire import link
from tests.support.edge_world import Home, Surroundings
from tests.support.two_pairs import PairEdge

PORT, HOP_PORT = 5560, 5576
CARRIER_HOST, PHONES_HOST = "127.0.0.50", "127.0.0.60"
HOMES = {
    "pair1": Home("127.0.0.11", "127.0.1.11", "127.0.0.9"),
    "pair2": Home("127.0.0.12", "127.0.1.12", "127.0.0.9"),
}
UDP, TCP = "1001", "1002"
LIMIT_S = 20.0
TICK_S = 0.02


async def until(what: str, look: Callable[[], object]) -> Any:
    end = asyncio.get_running_loop().time() + LIMIT_S
    while not (found := look()):
        assert asyncio.get_running_loop().time() < end, what
        await asyncio.sleep(TICK_S)
    return found


class SocketEdge(PairEdge):
    """Its nodes are in memory, everybody else is at the end of a socket."""

    sockets: SipSockets | None = None
    deaf_to = b"-"
    """How messages begin that it does not hear"""

    def config(self) -> EdgeConfig:
        config = replace(super().config(), hop_port=HOP_PORT, public_port=PORT)
        self.home = home = HOMES[self.pair]
        trunks = {"carrier1": {"hosts": [CARRIER_HOST], "dids": ["6000"]}}
        return replace(config, public_host=home.public, core_host=home.core, trunks=trunks)

    async def open(self) -> None:
        self.sockets = sockets = SipSockets(lambda event: self.post(event))
        await sockets.listen_udp("public-udp", self.home.public, PORT)
        await sockets.listen_tcp("public-tcp", self.home.public, PORT)
        await sockets.listen_udp("edge-hop", self.home.core, HOP_PORT)

    async def kill(self) -> None:
        """The process is gone: so are its sockets and connections."""
        self.dead = True
        assert self.sockets is not None
        self.sockets.close()
        self.sockets = None
        await asyncio.sleep(5 * TICK_S)

    async def begin_anew(self) -> None:
        self.restart()
        await self.open()

    def post(self, event: Any) -> None:
        deaf = isinstance(event, SipBytes) and event.data.startswith(self.deaf_to)
        if not self.dead and not deaf:
            self.now = asyncio.get_running_loop().time()
            super().post(event)

    def perform(self, effect: Effect) -> None:
        inner = isinstance(effect, SendSip) and effect.flow.listener.startswith("node-")
        if isinstance(effect, SendSip) and not inner:
            if self.sockets is not None:
                self.sockets.send(effect.data, effect.flow)
        elif isinstance(effect, CloseSip):
            if self.sockets is not None:
                self.sockets.drop(effect.flow)
        else:
            super().perform(effect)


class Rig:
    """Both edges, and the far ends: the carrier at one, the phones at the other."""

    def __init__(self) -> None:
        around = Surroundings()
        around.now = asyncio.get_running_loop().time()
        self.a, self.b = SocketEdge(around, "pair1"), SocketEdge(around, "pair2")
        self.a.others, self.b.others = [self.b], [self.a]
        self.a.with_users(UDP, TCP)
        self.b.snapshots()
        self.nodes = around.nodes
        self.ends = FarEnds(
            FarEndSettings(
                edge_host=self.a.home.public, edge_port=PORT,
                phones_at=dict.fromkeys((UDP, TCP), self.b.home.public),
                carrier_host=CARRIER_HOST, carrier_port=5561, phones_host=PHONES_HOST, phones_base_port=7_301,
                phones=(UDP, TCP), tcp_phones=frozenset({TCP}), domain="test",
                passwords=dict.fromkeys((UDP, TCP), "pw"),
            )
        )  # fmt: skip

    async def open(self) -> None:
        for edge in (self.a, self.b):
            await edge.open()
        self.ticking = asyncio.create_task(self.tick())
        await self.ends.open()

    async def tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.a.run(0.0001, 0.0001)

    async def close(self) -> None:
        self.ticking.cancel()
        self.ends.close()
        for edge in (self.a, self.b):
            if edge.sockets is not None:
                edge.sockets.close()

    def at_pair2(self, aor: str) -> bool:
        binding = self.a.edge.registrar.binding_of(aor)
        return binding is not None and binding.pair == "pair2"

    async def talking(self, aor: str) -> tuple[Any, Any, Any]:
        """The edge's call, the customer's and the phone's."""
        await until("registered", lambda: self.at_pair2(aor))
        carrier = self.ends.drivers[CARRIER]
        customer = carrier.agent.dial("6000", "15550001", carrier.now)
        carrier.flush()
        call = await until("the call", lambda: next(iter(self.a.edge.calls.by_id.values()), None))
        await until("answered", lambda: customer.state == "up")
        self.a.dial(self.nodes[call.owner.name], call, "a1", aor)
        await until("they talk", lambda: call.legs["a1"].state == "up")
        phone = self.ends.drivers[aor].agent.living_call()
        assert phone is not None and phone.state == "up" and not self.b.edge.calls.by_id
        return call, customer, phone

    def call(self, ident: str) -> Any:
        return self.a.edge.calls.by_id.get(ident)

    async def hold(self, ident: str, aor: str, phone: Any, on: bool) -> None:
        driver = self.ends.drivers[aor]
        await until("nothing is open", lambda: driver.agent.endpoint.steady(phone.leg))
        driver.agent.hold(phone, on, driver.now)
        driver.flush()
        await until(f"held: {on}", lambda: self.call(ident).legs["a1"].held is on)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    await rig.open()
    yield rig
    await rig.close()


@pytest.mark.parametrize("aor", [UDP, TCP])
@pytest.mark.parametrize("anew", ["nobody", "a", "b"])
@pytest.mark.parametrize("by", ["phone", "node"])
async def test_a_call_across_pairs(rig: Rig, aor: str, anew: str, by: str) -> None:
    call, _, phone = await rig.talking(aor)
    await rig.hold(call.call, aor, phone, True)
    if anew != "nobody":
        edge: SocketEdge = getattr(rig, anew)
        registration = rig.ends.drivers[aor].agent.registration
        assert registration is not None
        before = registration.successes
        await edge.kill()
        await edge.begin_anew()
        if edge is rig.b and aor == TCP:
            await until("connected again", lambda: registration.successes > before)
            await until("and known", lambda: rig.at_pair2(aor))
    await rig.hold(call.call, aor, phone, False)
    if by == "phone":
        driver = rig.ends.drivers[aor]
        driver.agent.hangup(phone, driver.now)
        driver.flush()
    else:
        now = rig.call(call.call)
        frame = link.EndLeg(call=now.call, leg="a1", epoch=str(now.epoch), cause="16")
        rig.a.say(rig.nodes[now.owner.name], frame)
    await until("the leg has ended", lambda: "a1" in rig.call(call.call).tombstones)
    await until("the phone's call too", lambda: phone.state == "ended")


async def test_an_ack_that_died_with_an_edge_is_asked_for_over_the_next_connection(rig: Rig) -> None:
    call, _, phone = await rig.talking(TCP)
    registration = rig.ends.drivers[TCP].agent.registration
    assert registration is not None
    before = registration.successes
    rig.b.deaf_to = b"ACK "
    await rig.hold(call.call, TCP, phone, True)
    await rig.b.kill()
    rig.b.deaf_to = b"-"
    assert not rig.a.edge.context.sip.steady(call.legs["a1"].key)
    await rig.b.begin_anew()
    await until("connected again", lambda: registration.successes > before)
    await until("acknowledged", lambda: rig.a.edge.context.sip.steady(call.legs["a1"].key))
    await rig.hold(call.call, TCP, phone, False)
