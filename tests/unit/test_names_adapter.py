"""The DNS adapter against a name server on the loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from ari_ha.adapters.names import Names
from ari_ha.core.machine import Done, Outcome, Refused, Unreachable
from ari_ha.core.ports.names import Found, LookUp, Service

ZONE = {
    ("_sip._udp.carrier.example.", "SRV"): (
        300,
        ["1 60 5060 a.carrier.example.", "1 40 5061 b.carrier.example.", "2 0 5060 c.carrier.example."],
    ),
    ("_sip._tcp.carrier.example.", "SRV"): (300, ["0 0 0 ."]),
    ("a.carrier.example.", "A"): (40, ["192.0.2.1", "192.0.2.2"]),
    ("alias.carrier.example.", "CNAME"): (7, ["a.carrier.example."]),
    ("b.carrier.example.", "TXT"): (40, ['"only text"']),
}
NAMES = {name for name, _ in ZONE}


class Server(asyncio.DatagramProtocol):
    """Answers from `ZONE`; ``silent`` and ``broken`` names as they are called."""

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        name = query.question[0].name.to_text()
        kind = dns.rdatatype.to_text(query.question[0].rdtype)
        if name.startswith("silent"):
            return
        reply = dns.message.make_response(query)
        reply.flags |= dns.flags.RA
        if name.startswith("broken"):
            reply.set_rcode(dns.rcode.SERVFAIL)
        elif name not in NAMES:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        while (name, "CNAME") in ZONE:
            ttl, (target,) = ZONE[name, "CNAME"]
            reply.answer.append(dns.rrset.from_text(name, ttl, "IN", "CNAME", target))
            name = target
        if (name, kind) in ZONE:
            ttl, values = ZONE[name, kind]
            reply.answer.append(dns.rrset.from_text(name, ttl, "IN", kind, *values))
        self.transport.sendto(reply.to_wire(), addr)


@pytest.fixture
async def names() -> AsyncIterator[Names]:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Server, local_addr=("127.0.0.1", 0))
    yield Names(["127.0.0.1"], transport.get_extra_info("sockname")[1])
    transport.close()


async def ask(names: Names, name: str, kind: str = "A", limit_s: float = 2.0) -> Outcome:
    return await names.perform(LookUp(name=name, kind=kind, limit_s=limit_s))


async def test_services_and_addresses(names: Names) -> None:
    found = await ask(names, "_sip._udp.carrier.example", "SRV")
    assert isinstance(found, Done) and found.value.ttl_s == 300.0
    assert sorted(found.value.services, key=lambda s: s.name) == [
        Service(1, 60, 5060, "a.carrier.example"), Service(1, 40, 5061, "b.carrier.example"),
        Service(2, 0, 5060, "c.carrier.example"),
    ]  # fmt: skip
    assert await ask(names, "a.carrier.example") == Done(Found(40.0, ("192.0.2.1", "192.0.2.2")))


async def test_the_shortest_time_of_a_chain_counts(names: Names) -> None:
    assert await ask(names, "alias.carrier.example") == Done(Found(7.0, ("192.0.2.1", "192.0.2.2")))


async def test_a_service_that_is_not_offered(names: Names) -> None:
    found = await ask(names, "_sip._tcp.carrier.example", "SRV")
    assert isinstance(found, Done) and found.value.services == (Service(0, 0, 0, ""),)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nobody.example", "does not exist"),
        ("b.carrier.example", "has no A record"),
        ("a..example", "a..example"),
        ("x" * 64 + ".example", "x" * 64),
    ],
)
async def test_what_is_certainly_not_there(names: Names, name: str, why: str) -> None:
    outcome = await ask(names, name)
    assert isinstance(outcome, Refused) and why in outcome.reason


@pytest.mark.parametrize("name", ["silent.example", "broken.example"])
async def test_nobody_can_say(names: Names, name: str) -> None:
    outcome = await ask(names, name, limit_s=0.6)
    assert isinstance(outcome, Unreachable) and name in outcome.reason
