"""The lab is what its files say: a node tells edges' ports apart, carries the app's headers, plays music
nobody has to transcode, and comes back after a kill. Needs a lab that is up (``make lab-up``).

A second edge's address (172.30.2.12) is free in the base lab; the test speaks SIP from there, so that it
disturbs neither the edge nor its calls.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ari_ha.cli.lab import NETWORK, PREFIX

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]

ROOT = Path(__file__).resolve().parents[2]
NODE, NODE_ADDRESS = PREFIX + "ast3", NETWORK + ".2.33"
EDGE_ADDRESS = NETWORK + ".2.12"
ETCD_ADDRESS = NETWORK + ".2.21"
FAKE_EDGE = PREFIX + "test-edge"
PYTHON = "/opt/ari-ha/bin/python"
RESTART_LIMIT_S = 10.0

SIP = (
    textwrap.dedent(
        """
    import json, socket, sys, time
    HOST, NODE = "@EDGE@", "@NODE@"
    def bound(port):
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind((HOST, port)); s.settimeout(5); return s
    SDP = "\\r\\n".join(["v=0", f"o=- 1 1 IN IP4 {HOST}", "s=-", f"c=IN IP4 {HOST}", "t=0 0",
                          "m=audio 30000 RTP/AVP 8", ""])
    def request(method, port, extra=""):
        unique, sdp = f"{time.time_ns()}-{port}", SDP if method == "INVITE" else ""
        return (f"{method} sip:9999@{NODE} SIP/2.0\\r\\n"
                f"Via: SIP/2.0/UDP {HOST}:{port};branch=z9hG4bK{unique};rport\\r\\n"
                f"Max-Forwards: 70\\r\\nFrom: <sip:t@{HOST}>;tag={unique}\\r\\nTo: <sip:9999@{NODE}>\\r\\n"
                f"Call-ID: {unique}\\r\\nCSeq: 1 {method}\\r\\nContact: <sip:t@{HOST}:{port}>\\r\\n{extra}"
                + ("Content-Type: application/sdp\\r\\n" if sdp else "")
                + f"Content-Length: {len(sdp)}\\r\\n\\r\\n{sdp}").encode()
    def lines(data, *names):
        return [l for l in data.decode().split("\\r\\n") if l.split(":")[0] in names]
    def answer(data, status, body="", more=()):
        to = lines(data, "To")[0]
        head = [f"SIP/2.0 {status}", *lines(data, "Via", "From", "Call-ID", "CSeq"), to + ";tag=edge", *more,
                f"Contact: <sip:t@{HOST}:5070>", f"Content-Length: {len(body)}", "", body]
        return "\\r\\n".join(head).encode()
    """
    )
    .replace("@EDGE@", EDGE_ADDRESS)
    .replace("@NODE@", NODE_ADDRESS)
)


def docker(*arguments: str, stdin: str | None = None, check: bool = True) -> str:
    done = subprocess.run(["docker", *arguments], input=stdin, capture_output=True, text=True, timeout=60)
    if check and done.returncode:
        raise AssertionError(f"docker {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def edge() -> Iterator[None]:
    """Something with a second edge's address, or a skip where no lab runs."""
    if shutil.which("docker") is None or NODE not in docker("ps", "--format", "{{.Names}}", check=False):
        pytest.skip("the lab is not up: make lab-up")
    docker("rm", "-f", FAKE_EDGE, check=False)
    place = ("--network", PREFIX.rstrip("-") + "_core", "--ip", EDGE_ADDRESS)
    docker(
        "run",
        "-d",
        "--rm",
        "--init",
        "--name",
        FAKE_EDGE,
        *place,
        "--entrypoint",
        "sleep",
        "ari-ha/base",
        "120",
    )
    try:
        yield
    finally:
        docker("rm", "-f", FAKE_EDGE, check=False)


def at_edge(program: str) -> str:
    return docker("exec", "-i", FAKE_EDGE, "python3", "-", stdin=SIP + textwrap.dedent(program))


def status_of_invite_from(port: int) -> str:
    """Asterisk's final word to an INVITE. With an app or without, it is short: the token is missing, and
    `X-ARI-HA-Fallback: no` keeps the dialplan from serving the caller itself."""
    return at_edge(
        f"""
        s = bound({port})
        s.sendto(request("INVITE", {port}, "X-ARI-HA-Fallback: no\\r\\n"), (NODE, 5060))
        while (data := s.recv(9000)).startswith(b"SIP/2.0 1"):
            pass
        print(data.decode().split()[1])
        """
    ).strip()


def test_only_the_three_ports_of_an_edge_may_call() -> None:
    assert status_of_invite_from(5099) == "401", "another port of an edge is a stranger"
    for port in (5070, 5072, 5074):
        assert status_of_invite_from(port) != "401"
    shown = docker("exec", NODE, "asterisk", "-rx", "pjsip show identifies")
    for port in (5070, 5072, 5074):
        assert f"{EDGE_ADDRESS}:{port}/32" in shown


def test_a_probe_is_answered_from_any_port_when_it_says_who_it_is() -> None:
    status = at_edge(
        """
        s = bound(6123)
        s.sendto(request("OPTIONS", 6123, "User-Agent: ari-ha-edge\\r\\n"), (NODE, 5060))
        print(s.recv(9000).decode().split()[1])
        """
    ).strip()
    assert status in ("200", "404")


OUTGOING = textwrap.dedent(
    """
    import base64, json, sys, time, urllib.request
    secret = open("/run/ari-ha/secrets/ari-password").read()
    def ari(method, path, body=None):
        request = urllib.request.Request("http://127.0.0.1:8088/ari/" + path, method=method,
            data=json.dumps(body).encode() if body is not None else None,
            headers={"Authorization": "Basic " + base64.b64encode(f"ari-ha:{secret}".encode()).decode(),
                     "Content-Type": "application/json"})
        return urllib.request.urlopen(request, timeout=5).read()
    import asyncio, aiohttp
    LATE = "PJSIP_HEADER(add,X-ARI-HA-Late)"
    async def main():
        login = {"Authorization": "Basic " + base64.b64encode(f"ari-ha:{secret}".encode()).decode()}
        async with aiohttp.ClientSession(headers=login) as session:
            async with session.ws_connect("http://127.0.0.1:8088/ari/events?app=lab-test") as socket:
                ari("POST", "channels/create", {
                    "endpoint": "PJSIP/edge-out/sip:1001@@EDGE@:5070", "app": "lab-test",
                    "channelId": "lab-test-leg", "formats": "alaw",
                    "variables": {"PJSIP_HEADER(add,X-ARI-HA-Token)": "t" * 2000, "HA_LEG": "lab-test"}})
                ari("POST", "channels/lab-test-leg/variable?value=yes&variable=" + LATE)
                ari("POST", "channels/lab-test-leg/dial?timeout=10")
                async for message in socket:
                    event = json.loads(message.data)
                    if event["type"] == "ChannelStateChange" and event["channel"]["state"] == "Up":
                        assert event["channel"]["channelvars"]["HA_LEG"] == "lab-test"
                        ari("POST", "channels/lab-test-leg/moh")
                        await asyncio.sleep(2)
                        ari("DELETE", "channels/lab-test-leg")
                        return
    asyncio.run(asyncio.wait_for(main(), 15))
    """
).replace("@EDGE@", EDGE_ADDRESS)


def test_an_outgoing_leg_carries_the_apps_headers_and_music() -> None:
    command = ["docker", "exec", "-i", FAKE_EDGE, "python3", "-"]
    listener = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert listener.stdin is not None
    program = """
        import math
        media, s = bound(30000), bound(5070)
        def receive(method):  # what earlier tests left behind is passed over
            while not (data := s.recv(9000)).startswith(method):
                pass
            return data
        invite = receive(b"INVITE")
        s.sendto(answer(invite, "200 OK", SDP, ["Content-Type: application/sdp"]), (NODE, 5060))
        receive(b"ACK")
        heard, kinds = [], set()
        while len(heard) < 8000:
            packet = media.recv(2000)
            kinds.add(packet[1] & 127)
            for code in packet[12:]:  # A-law (G.711)
                code ^= 0x55
                exponent, mantissa = code >> 4 & 7, code & 15
                size = mantissa * 2 + 1 if exponent == 0 else (mantissa * 2 + 33) << exponent - 1
                heard.append(size * 8 if code & 128 else -size * 8)
        def level(hz):
            angle = [2 * math.pi * hz * i / 8000 for i in range(len(heard))]
            return math.hypot(sum(h * math.cos(a) for h, a in zip(heard, angle)),
                              sum(h * math.sin(a) for h, a in zip(heard, angle))) / len(heard)
        bye = receive(b"BYE")
        s.sendto(answer(bye, "200 OK"), (NODE, 5060))
        print(json.dumps({"headers": lines(invite, "X-ARI-HA-Token", "X-ARI-HA-Late"), "kinds": sorted(kinds),
                          "note": level(440), "other": level(370),
                          "media": [l for l in invite.decode().split("\\r\\n") if l.startswith("m=audio")]}))
        """
    listener.stdin.write(SIP + textwrap.dedent(program))
    listener.stdin.close()
    time.sleep(0.5)
    docker("exec", "-i", NODE, PYTHON, "-", stdin=OUTGOING)
    assert listener.stdout is not None
    seen = json.loads(listener.stdout.read())
    listener.wait(timeout=10)
    assert seen["headers"] == ["X-ARI-HA-Token: " + "t" * 2000, "X-ARI-HA-Late: yes"]
    assert seen["kinds"] == [8]
    assert seen["media"][0].split()[3] == "8"
    assert seen["note"] > 10 * seen["other"]


def test_a_killed_asterisk_comes_back() -> None:
    """What ``ari-ha chaos`` does to a node, on an idle one."""
    before = docker("exec", NODE, "cat", "/run/asterisk/asterisk.pid").strip()
    docker("exec", NODE, "kill", "-9", before)
    until = time.monotonic() + RESTART_LIMIT_S
    while True:
        after = docker("exec", NODE, "cat", "/run/asterisk/asterisk.pid", check=False).strip()
        booted = docker("exec", NODE, "asterisk", "-rx", "core waitfullybooted", check=False)
        if after not in ("", before) and booted:
            return
        assert time.monotonic() < until, "Asterisk did not come back"
        time.sleep(0.1)


def test_etcd_asks_for_a_certificate() -> None:
    refused = subprocess.run(
        [
            "docker",
            "exec",
            FAKE_EDGE,
            "python3",
            "-c",
            textwrap.dedent(
                f"""
            import socket, ssl
            context = ssl._create_unverified_context()
            link = context.wrap_socket(socket.create_connection(("{ETCD_ADDRESS}", 2379), 3))
            link.sendall(b"GET /version HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
            print(link.recv(100))
            """
            ),
        ],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert "certificate required" in refused.stderr.lower().replace("_", " ")


def test_credentials_are_made_once() -> None:
    made = subprocess.run([ROOT / "docker/labs/make-credentials"], capture_output=True, text=True, timeout=60)
    assert made.stdout.strip() == "credentials: up to date"
