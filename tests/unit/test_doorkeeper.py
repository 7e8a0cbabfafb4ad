"""The public door: rates, bans, scanners, and who is never shut out."""

from __future__ import annotations

from ari_ha.core.ports.sip import SipBytes
from ari_ha.machines.edge_config import Protection
from ari_ha.sip import events as sip
from ari_ha.sip.flow import Flow
from tests.support.edge_world import EdgeWorld, Party, digest_header

LIMITS = Protection()
STRANGER = "192.0.2.66"


def send(world: EdgeWorld, data: bytes, host: str = STRANGER) -> int:
    """How many messages the edge said in answer."""
    before = len(world.sip_log)
    world.post(SipBytes(data=data, flow=Flow("public-udp", "udp", host, 5060)))
    return len(world.sip_log) - before


def request(method: str, n: int = 1, agent: str = "phone", host: str = STRANGER) -> bytes:
    return (
        f"{method} sip:6000@edge SIP/2.0\r\nVia: SIP/2.0/UDP {host}:5060;branch=z9hG4bK{n}\r\n"
        f"From: <sip:a@b>;tag=1\r\nTo: <sip:c@d>\r\nCall-ID: {n}\r\nCSeq: {n} {method}\r\n"
        f"User-Agent: {agent}\r\nContact: <sip:a@{host}>\r\nContent-Length: 0\r\n\r\n"
    ).encode()


def test_a_scanner_hears_nothing_now_or_later() -> None:
    world = EdgeWorld()
    assert send(world, request("REGISTER", 1)) == 1, "a stranger with manners is asked for a digest"
    assert send(world, request("OPTIONS", 2, "friendly-scanner")) == 0
    assert send(world, request("REGISTER", 3)) == 0, "banned"
    assert world.edge.doorkeeper.banned() == [STRANGER]
    world.run(LIMITS.ban_s + 1, step=5)
    assert send(world, request("REGISTER", 4)) == 1


def test_options_of_strangers_get_silence_and_of_carriers_an_answer() -> None:
    world = EdgeWorld()
    assert send(world, request("OPTIONS", 1)) == 0
    assert send(world, request("OPTIONS", 2, host="10.0.1.50"), "10.0.1.50") == 1


def test_a_flood_is_cut_to_its_rate_and_heals() -> None:
    world = EdgeWorld()
    answered = sum(send(world, request("REGISTER", n)) for n in range(1_000))
    burst = LIMITS.messages_per_second * LIMITS.burst_s
    assert answered == burst
    assert send(world, request("REGISTER", 2_000), "192.0.2.67") == 1, "others are not cut"
    world.run(2, step=0.5)
    assert send(world, request("REGISTER", 3_000)) == 1


def wrong_password(world: EdgeWorld, user: str, party: Party) -> int:
    """Registers with a wrong digest; the status, 0 for silence."""
    party.heard.clear()
    more = {"flow": world.carrier_flow(), "target": "sip:test", "from_": f"<sip:{user}@test>",
            "to": f"<sip:{user}@test>"}  # fmt: skip
    party.sip.request("r1", "REGISTER", now=world.now, **more)
    world.settle()
    challenge = party.of(sip.ResponseReceived)
    if not challenge:
        return 0
    header = digest_header(challenge[-1], user, "wrong", "REGISTER", "sip:test")
    party.sip.request("r2", "REGISTER", headers=(("Authorization", header),), now=world.now, **more)
    world.settle()
    return int(party.of(sip.ResponseReceived)[-1].status)


def test_guessing_passwords_is_banned_for_a_while() -> None:
    world = EdgeWorld().with_users("1001")
    guesser = world.phones["guesser"] = Party("10.0.1.90", 5060, world.new_id)
    tried = [wrong_password(world, "1001", guesser) for _ in range(LIMITS.auth_failures_max + 2)]
    assert tried == [401] * LIMITS.auth_failures_max + [0, 0]


def test_phones_that_come_before_the_directory_are_not_banned() -> None:
    world = EdgeWorld().with_users("1001")
    office = world.phones["office"] = Party("10.0.1.91", 5060, world.new_id)
    assert [wrong_password(world, "1002", office) for _ in range(60)] == [401] * 60
    world.add_user("1002")
    world.snapshots()
    tried = [wrong_password(world, "1003", office) for _ in range(LIMITS.unknown_users_max)]
    assert tried[-1] == 0, "but whoever tries names is"


def test_a_registered_phones_host_is_never_banned() -> None:
    world = EdgeWorld()
    for user in ("1001", "1002"):
        world.add_user(user)
    world.snapshots()
    phone = world.register("1001")
    neighbour = world.phones["n"] = Party(phone.host, 5099, world.new_id)
    for _ in range(LIMITS.auth_failures_max * 2):
        assert wrong_password(world, "1002", neighbour) == 401
    assert world.edge.doorkeeper.banned() == []
    assert send(world, request("OPTIONS", 9, host=phone.host), phone.host) == 1


def test_sources_are_remembered_up_to_a_limit() -> None:
    world = EdgeWorld()
    for n in range(LIMITS.sources_max + 50):
        world.edge.doorkeeper.admits(b"\r\n", f"h{n}")
    assert len(world.edge.doorkeeper._sources) == LIMITS.sources_max


def test_what_one_read_of_a_connection_holds_is_counted_by_its_length() -> None:
    world = EdgeWorld()
    flow = Flow("public-tcp", "tcp", STRANGER, 40_000, "c1")
    budget = int(LIMITS.messages_per_second * LIMITS.burst_s)
    read = b"".join(request("REGISTER", n) for n in range(200))
    before = len(world.sip_log)
    for _ in range(50):
        world.post(SipBytes(data=read, flow=flow))
    answered = len(world.sip_log) - before
    assert 200 <= answered < 5 * budget, "each KiB is at least one message; before: 200 for every read"
    assert send(world, request("REGISTER", 9_001), "192.0.2.67") == 1
