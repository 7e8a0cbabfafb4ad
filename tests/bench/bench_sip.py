"""Speed of the SIP engine on one core; prints JSON.

    python tests/bench/bench_sip.py [--seconds 2]

`parse_route_serialise`: one 1 kB INVITE is parsed, the headers a B2BUA routes by are read, its server
transaction is looked up, and it is written again. `engine`: two endpoints in one process set up and end calls
(INVITE, 100, 180, 200, ACK, BYE, 200, and the time that lets the transactions go); a message counts once for
both ends.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import time

from ari_ha.sip.endpoint import Endpoint
from ari_ha.sip.events import InviteReceived
from ari_ha.sip.flow import Flow, Listener
from ari_ha.sip.message import Request, parse_message
from ari_ha.sip.sdp import build_audio_sdp
from ari_ha.sip.settings import DEFAULT_ALLOW, EndpointSettings
from ari_ha.sip.stack import Stack

SDP = build_audio_sdp(1, 1, "192.0.2.10", 20000, [(9, "G722/8000"), (8, "PCMA/8000"), (0, "PCMU/8000")])
HEADERS = [
    ("Via", "SIP/2.0/UDP proxy.example.net:5060;branch=z9hG4bKp1;rport"),
    ("Via", "SIP/2.0/UDP 192.0.2.10:5062;branch=z9hG4bKc1;received=192.0.2.10"),
    ("Record-Route", "<sip:proxy.example.net;lr>"),
    ("Max-Forwards", "69"),
    ("From", '"Customer" <sip:+4930123456@carrier.example.net>;tag=as6f7d8e9'),
    ("To", "<sip:+4930999999@center.example.net>"),
    ("Call-ID", "3c26-8f2a-1b77@192.0.2.10"),
    ("CSeq", "102 INVITE"),
    ("Contact", "<sip:+4930123456@192.0.2.10:5062;transport=udp>"),
    ("User-Agent", "Carrier-SBC/9.1"),
    ("Allow", "INVITE, ACK, CANCEL, OPTIONS, BYE, REFER, NOTIFY, INFO, UPDATE"),
    ("Supported", "timer, path, replaces"),
    ("Session-Expires", "1800;refresher=uac"),
    ("P-Asserted-Identity", "<sip:+4930123456@carrier.example.net>"),
    ("Date", "Mon, 23 Nov 2026 09:00:00 GMT"),
    ("Content-Type", "application/sdp"),
]
INVITE = Request("INVITE", "sip:+4930999999@192.0.2.1:5060", HEADERS, SDP.encode()).serialise()


def rate(work: int, seconds: float) -> float:
    return round(work / seconds, 1)


def parse_only(seconds: float) -> float:
    end, done, start = time.perf_counter() + seconds, 0, time.perf_counter()
    while time.perf_counter() < end:
        for _ in range(100):
            parse_message(INVITE)
        done += 100
    return rate(done, time.perf_counter() - start)


def parse_route_serialise(seconds: float) -> float:
    listener = Listener("l", "udp", "192.0.2.1", 5060)
    ids = map(str, itertools.count())
    stack = Stack({"l": listener}, lambda: next(ids), lambda: 0.5, "x", DEFAULT_ALLOW, EndpointSettings())
    flow = Flow("l", "udp", "192.0.2.10", 5060)
    first = parse_message(INVITE)
    assert isinstance(first, Request)
    stack.open_server(first, first.top_via, flow)
    end, done, start = time.perf_counter() + seconds, 0, time.perf_counter()
    while time.perf_counter() < end:
        for _ in range(100):
            message = parse_message(INVITE)
            assert isinstance(message, Request)
            via, cseq = message.top_via, message.cseq
            facts = (message.call_id, message.from_tag, message.to_tag, message.get("Contact"))
            more = (message.values("Record-Route"), message.values("Require"), message.get("Max-Forwards"))
            txn = stack.servers.get(stack.server_key(message, via, "INVITE"))
            assert txn is not None and cseq and facts and more
            message.serialise()
        done += 100
    return rate(done, time.perf_counter() - start)


def engine(seconds: float) -> tuple[float, float]:
    """Calls and messages per second, both ends in this process."""
    ids = map(str, itertools.count())
    ends = [
        Endpoint(
            {"l": Listener("l", "udp", f"10.0.0.{n}", 5060)}, lambda: next(ids), settings=EndpointSettings()
        )
        for n in (1, 2)
    ]
    a, b = ends
    flows = [Flow("l", "udp", f"10.0.0.{n}", 5060) for n in (1, 2)]
    now, calls, messages = 0.0, 0, 0
    headers = [item for item in HEADERS if item[0] in ("P-Asserted-Identity", "Date")]

    def transfer() -> int:
        moved = 0
        while True:
            step = 0
            for index in (0, 1):
                for data, _ in ends[index].output():
                    ends[1 - index].receive(data, flows[index], now)
                    step += 1
            if not step:
                return moved
            moved += step

    start = time.perf_counter()
    end = start + seconds
    while time.perf_counter() < end:
        for _ in range(20):
            leg = f"c{calls}"
            a.invite(
                leg, flow=flows[1], target="sip:b@10.0.0.2", from_="<sip:a@x>", to="<sip:b@x>", sdp=SDP,
                headers=headers, now=now,
            )  # fmt: skip
            messages += transfer()
            incoming = next(event.leg for event in b.events() if isinstance(event, InviteReceived))
            b.ring(incoming, now)
            messages += transfer()
            b.answer(incoming, SDP, now)
            messages += transfer()
            a.hangup(leg, now)
            messages += transfer()
            a.events()
            b.events()
            calls += 1
        now += 0.5
        for side in ends:
            side.handle_timer(now)
    spent = time.perf_counter() - start
    assert not list(a.legs()) and not list(b.legs())
    return rate(calls, spent), rate(messages, spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    seconds = parser.parse_args().seconds
    calls, messages = engine(seconds)
    print(
        json.dumps(
            {
                "message_bytes": len(INVITE),
                "parse_per_s": parse_only(seconds),
                "parse_route_serialise_per_s": parse_route_serialise(seconds),
                "engine_calls_per_s": calls,
                "engine_messages_per_s": messages,
                "python": platform.python_version(),
                "machine": f"{platform.machine()} {platform.processor()}".strip(),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
