"""What the edge and the nodes do with those who should get nothing."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import time
from pathlib import Path

import pytest

from ari_ha.cli.chaos_stage import Stage, until
from ari_ha.cli.lab import EDGES, NETWORK
from ari_ha.wire.token import LegToken, sign

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]
EDGE = (f"{NETWORK}.1.11", 5060)
EDGE_CORE = f"{NETWORK}.2.11"
NODE = (f"{NETWORK}.2.31", 5060)
ANSWER_LIMIT_S = 3.0


def password_of(user: str) -> str:
    return json.loads((ROOT / ".lab/shared/passwords.json").read_text())[user]


def invite(target: tuple[str, int], sock: socket.socket, number: str, *headers: str) -> bytes:
    host, port = sock.getsockname()
    serial = random.getrandbits(40)
    lines = [
        f"INVITE sip:{number}@{target[0]}:{target[1]} SIP/2.0",
        f"Via: SIP/2.0/UDP {host}:{port};branch=z9hG4bK{serial:x};rport",
        f"From: <sip:1001@lab>;tag={serial:x}",
        f"To: <sip:{number}@lab>",
        f"Call-ID: {serial:x}@{host}",
        "CSeq: 1 INVITE",
        f"Contact: <sip:1001@{host}:{port}>",
        "Max-Forwards: 70",
        *headers,
        "Content-Length: 0",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def final_status(target: tuple[str, int], number: str, *headers: str) -> int:
    """Final status an unknown host gets for an INVITE; 0 when nobody answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(target)
        sock.settimeout(ANSWER_LIMIT_S)
        sock.send(invite(target, sock, number, *headers))
        try:
            while True:
                status = int(sock.recv(65_536).split(b" ", 2)[1])
                if status >= 200:
                    return status
        except (TimeoutError, ConnectionRefusedError):
            return 0


def forged(key: bytes = b"0" * 64) -> str:
    token = LegToken(kind="resume", call="forged", leg="c", epoch="999999.1", did="6000", user="1001")
    return f"X-ARI-HA-Token: {sign(token, key)}"


def nothing_happened(stage: Stage) -> None:
    assert not stage.edge_calls()
    assert not stage.owned_calls()
    assert "forged" not in stage.view().calls
    assert not stage.channels()


def test_a_stranger_with_a_forged_header_gets_nothing_from_the_edge(stage: Stage) -> None:
    assert final_status(EDGE, "6000", forged()) in (0, 401, 403, 407)
    nothing_happened(stage)


def test_a_stranger_gets_nothing_from_the_edges_inner_ports(stage: Stage) -> None:
    for port in (5070, 5072, 5074):
        status = final_status((EDGE_CORE, port), "6000", forged())
        assert status == 0 or status >= 400
    nothing_happened(stage)


def test_a_stranger_gets_nothing_from_a_node(stage: Stage) -> None:
    status = final_status(NODE, "6000", forged())
    assert status == 0 or status >= 400
    nothing_happened(stage)


def test_a_wrong_password_registers_nobody(stage: Stage) -> None:
    stage.far.phone_order("1060", "unregister")
    try:
        stage.far.phone_order("1060", "register", password="wrong")
        phone = until(
            "the registration is refused",
            30,
            lambda: (p := stage.far.phone("1060"))["registration"]["state"] == "refused" and p,
        )
        assert phone["registration"]["status"] in (401, 403)
    finally:
        stage.far.phone_order("1060", "register", password=password_of("1060"))
        until("1060 is back", 30, lambda: stage.far.phone("1060")["registration"]["state"] == "in")


def test_somebody_elses_name_registers_nobody(stage: Stage) -> None:
    """A valid user may not register another's address of record."""
    try:
        stage.far.phone_order("1060", "register", user="1059", password=password_of("1059"))
        until(
            "the registration is refused",
            30,
            lambda: stage.far.phone("1060")["registration"]["state"] == "refused",
        )
    finally:
        stage.far.phone_order("1060", "register", user="1060", password=password_of("1060"))
        until("1060 is back", 30, lambda: stage.far.phone("1060")["registration"]["state"] == "in")


JUNK = [
    b"",
    b"\x00" * 40,
    b"\xff" * 1_400,
    b"INVITE",
    b"INVITE sip:6000@lab SIP/2.0\r\n\r\n",
    b"INVITE sip:6000@lab SIP/9.9\r\nVia: SIP/2.0/UDP x\r\n\r\n",
    b"SIP/2.0 200 OK\r\n\r\n",
    b"SIP/2.0 999 Odd\r\nVia: SIP/2.0/UDP 1.2.3.4;branch=z9hG4bK1\r\nCSeq: 1 INVITE\r\n\r\n",
    b"REGISTER sip:lab SIP/2.0\r\nVia: SIP/2.0/UDP h\r\nCSeq: x REGISTER\r\nCall-ID: a\r\n\r\n",
    b"OPTIONS sip:lab SIP/2.0\r\n" + b"X: y\r\n" * 3_000 + b"\r\n",
    b"INVITE sip:6000@lab SIP/2.0\r\nContent-Length: 9999\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK2\r\n\r\nshort",
    b"BYE sip:6000@lab SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK3\r\nFrom: <sip:a@b>;tag=1\r\n"
    b"To: <sip:c@d>;tag=2\r\nCall-ID: none\r\nCSeq: 1 BYE\r\n\r\n",
    b"d7:command4:pinge",
]


def test_malformed_datagrams_disturb_nobody(stage: Stage) -> None:
    (pair,) = stage.place(1, "talking", 5)
    pid = stage.lab.run(EDGES[0], "pgrep", "-f", "sidecars.edge|run edge")
    noise = random.Random(7)
    since = stage.far.now()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for target in (EDGE, (EDGE_CORE, 5070), (EDGE_CORE, 5074)):
            for junk in JUNK:
                sock.sendto(junk, target)
            good = invite(target, sock_named(), "6000", forged())
            for _ in range(150):
                broken = bytearray(good)
                for _ in range(noise.randrange(1, 12)):
                    broken[noise.randrange(len(broken))] = noise.randrange(256)
                sock.sendto(bytes(broken[: noise.randrange(1, len(broken))]), target)
    until("the edge still answers", 30, stage.edge_status)
    assert stage.lab.run(EDGES[0], "pgrep", "-f", "sidecars.edge|run edge") == pid
    until(
        "a second of undisturbed talk",
        30,
        lambda: time.time() - since > 2 and stage.talking([pair]),
    )
    rows = stage.measure(since, [pair])
    assert rows[pair.customer]["hears"][0]["lost_packets"] == 0
    assert list(stage.edge_calls()) == [pair.caller]


def sock_named() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock


def test_without_the_token_the_http_interfaces_say_nothing(stage: Stage) -> None:
    for base in stage.cluster.settings.processes.values():
        done = subprocess.run(
            [
                "curl",
                "-s",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                "--noproxy",
                "*",
                "-m",
                "3",
                base + "/v1/status",
            ],
            capture_output=True,
            text=True,
        )
        assert done.stdout in ("401", "403"), base
