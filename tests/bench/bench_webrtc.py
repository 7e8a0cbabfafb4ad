"""What a browser's call hears when its rtpengine dies: a browser (`tests.support.browser`) and a plain RTP
far end talk through an rtpengine that writes to a valkey beside it. Containers of their own, on a network of
their own; SRTP's counters can be made to wrap first.

Run: python -m tests.bench.bench_webrtc [--runs N]"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import platform
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from ari_ha import __version__
from ari_ha.adapters.rtpengine import Rtpengine
from ari_ha.core.machine import Done
from ari_ha.core.ports.media import NgCommand
from ari_ha.farend.rtp import VOICE, classify, set_voice, voice_buffer
from ari_ha.machines.edge_audio import AudioSide, narrowed
from ari_ha.machines.media import WEB_PORT, teaching
from ari_ha.sip.sdp import SessionDescription, build_audio_sdp
from tests.support.browser import EVENT_PT, Browser

NETWORK, SUBNET, GATEWAY = "ari-ha-bench-webrtc", "172.33.50.0/24", "172.33.50.1"
HOSTS = {"one": "172.33.50.11", "two": "172.33.50.12"}
SHARED = "172.33.50.10"
IMAGE = "ari-ha/edge"
START_LIMIT_S = 10.0
BEFORE_S, AFTER_S = 3.0, 6.0
WRAPS_AFTER = 60
"""Packets until the 16 bits of the sequence number begin anew, where they shall."""
TAKES_ADDRESS = (
    "from ari_ha.adapters.addresses import HostAddresses as H; h = H([('{0}', '{1}')]); h.up(); h.announce()"
)
CODEC = {"offer": ["PCMA", "telephone-event"]}
CALL = "bench"


def docker(*words: str) -> str:
    """What one docker command prints. Raises CalledProcessError."""
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=True, timeout=60).stdout


def relay_script(host: str, peer: str) -> str:
    """An edge's rtpengine and valkey, as docker/images/edge/service has them; rtpengine is started again
    when it dies."""
    return f"""
valkey-server --bind 127.0.0.1 {host} --port 6379 --protected-mode no --save "" --appendonly no \\
  --notify-keyspace-events 'Kg$xe' --daemonize yes >/dev/null
until valkey-cli ping >/dev/null 2>&1; do sleep 0.02; done
while :; do
  rtpengine --foreground --log-stderr --log-level=5 --config-file=none --table=-1 --num-threads=2 \\
    --interface=public/{SHARED} --listen-ng={host}:2223 --listen-cli=127.0.0.1:2224 \\
    --port-min=30000 --port-max=34999 --timeout=86400 --silent-timeout=86400 --delete-delay=0 \\
    --redis=127.0.0.1:6379/1 --no-redis-required --redis-cmd-timeout=300 --redis-connect-timeout=300 {peer}
  sleep 0.02
done"""


class Relays:
    """Two hosts like a pair's edges; the first has the shared address."""

    def __init__(self) -> None:
        self.names = {name: f"{NETWORK}-{name}" for name in HOSTS}

    def up(self, pair: bool) -> None:
        docker("network", "create", "--subnet", SUBNET, NETWORK)
        for name in list(HOSTS)[: 2 if pair else 1]:
            other = HOSTS["two" if name == "one" else "one"]
            docker(
                "run", "--detach", "--name", self.names[name], "--network", NETWORK, "--ip", HOSTS[name],
                "--cap-add=NET_ADMIN", "--cap-add=NET_RAW", "--sysctl", "net.ipv4.ip_nonlocal_bind=1",
                "--entrypoint", "sh", IMAGE, "-c",
                relay_script(HOSTS[name], f"--redis-subscribe={other}:6379/1" if pair else ""),
            )  # fmt: skip
        self.takes_address("one")

    def down(self) -> None:
        names = " ".join(self.names.values())
        subprocess.run(f"docker rm -f {names}; docker network rm {NETWORK}", shell=True, capture_output=True)

    def takes_address(self, name: str) -> None:
        code = TAKES_ADDRESS.format(SHARED, HOSTS[name])
        docker("exec", "--workdir", "/opt/ari-ha/app", self.names[name], "/opt/ari-ha/bin/python", "-c", code)


@dataclass
class Case:
    """One way for it to happen."""

    name: str
    pair: bool = False
    client: bool = False
    """Whether rtpengine is the client of DTLS."""
    mend_s: float = 0.0
    """A new offer is sent this long after the death; 0: never."""
    wrap: bool = False
    touch: bool = False
    """Whether rtpengine is told something after the wrap: it writes the call again then."""
    after_s: float = AFTER_S
    results: list[str] = field(default_factory=list)


CASES = (
    Case("restarted in place"),
    Case("restarted in place, rtpengine was DTLS's client", client=True),
    Case("restarted in place, looked at for 40 s", after_s=40.0),
    Case("restarted in place, new offer after 1 s", mend_s=1.0, after_s=40.0),
    Case("the peer takes the address", pair=True),
    Case("the peer takes the address, new offer after 1 s", pair=True, mend_s=1.0, after_s=40.0),
    Case("restarted in place, sequence numbers began anew before", wrap=True),
    Case("restarted in place, the same, and a command after that", wrap=True, touch=True),
    Case("restarted in place, the same, and a new offer after 1 s", wrap=True, mend_s=1.0),
)


class Plain:
    """The far end without encryption."""

    def __init__(self, first: int) -> None:
        self.at: list[float] = []
        self.target: tuple[str, int] = ("", 0)
        self._first = first
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind((GATEWAY, 0))
        self._sock.setblocking(False)
        self.port = self._sock.getsockname()[1]
        asyncio.get_running_loop().add_reader(self._sock, self._read)

    def _read(self) -> None:
        data = self._sock.recv(2000)
        if classify(data, len(data), EVENT_PT)[0] == VOICE:
            self.at.append(time.monotonic())

    async def talk(self) -> None:
        packet, due = voice_buffer(2, 2000, 500), time.monotonic()
        number = self._first
        while True:
            due += 0.02
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            number += 1
            set_voice(packet, 8, number & 0xFFFF, number * 160, number, False)
            self._sock.sendto(packet, self.target)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._sock)
        self._sock.close()


class Run:
    """One run of one case."""

    def __init__(self, case: Case) -> None:
        """Starts the containers."""
        self.case = case
        self.relays = Relays()
        self.relays.down()
        self.relays.up(case.pair)
        first = 0x10000 - WRAPS_AFTER if case.wrap else 0
        self.plain = Plain(first)
        self.browser = Browser(networks=(GATEWAY,), first=first)
        self.ng: Rtpengine | None = None
        self.side = AudioSide()

    async def do(self, command: str, tag: str, **body: object) -> dict:
        """One command, repeated until rtpengine is there. Raises TimeoutError and RuntimeError."""
        assert self.ng
        async with asyncio.timeout(START_LIMIT_S):
            while True:
                out = await self.ng.perform(
                    NgCommand(
                        lane=CALL,
                        command=command,
                        body={"call-id": CALL, **body, "from-tag": tag},
                        limit_s=2.0,
                    )
                )
                if isinstance(out, Done):
                    return out.value
                if "refused the datagram" not in out.reason:
                    raise RuntimeError(f"{command}: {out.reason}")
                await asyncio.sleep(0.02)

    async def listen(self, name: str) -> None:
        if self.ng:
            self.ng.close()
        self.ng = Rtpengine(HOSTS[name], 2223, lambda event: None)
        await self.ng.start()

    async def web_port(self) -> str:
        reply = await self.do("create", "web", **web_body())
        return str(reply["sdp"])

    async def taught(self, answer: str) -> None:
        for command, body in teaching("web", narrowed(answer, self.side), "public"):
            await self.do(command, "web", **{key: value for key, value in body.items() if key != "from-tag"})

    async def call(self) -> None:
        offer = await self.web_port()
        if self.case.client:
            offer = offer.replace("a=setup:actpass", "a=setup:active")
        answer = await self.browser.answer(offer)
        self.side = AudioSide.of(answer)
        await self.taught(answer)
        made = await self.do("create", "plain", interface="public", codec=CODEC, ICE="remove")
        audio = SessionDescription.parse(str(made["sdp"])).audio()
        assert audio
        self.plain.target = (SHARED, audio.port)
        theirs = build_audio_sdp(1, 1, GATEWAY, self.plain.port, [(8, "PCMA/8000")], 101)
        await self.do("create answer", "plain", sdp=theirs)
        await self.connect()
        await self.browser.connected()

    async def connect(self) -> None:
        for one, other in (("web", "plain"), ("plain", "web")):
            await self.do("connect", one, **{"to-tag": other, "flags": ["directional"]})

    async def strike(self) -> float:
        """The death; when it was, by this process's clock."""
        name, one = self.relays.names["one"], self.case
        if not one.pair:
            there = docker("top", name, "-eo", "pid,comm").splitlines()
            pid = next(int(line.split()[0]) for line in there if line.endswith("rtpengine"))
            os.kill(pid, signal.SIGKILL)
            return time.monotonic()
        at = time.monotonic()
        await asyncio.to_thread(docker, "kill", name)
        await asyncio.to_thread(self.relays.takes_address, "two")
        await self.listen("two")
        await asyncio.to_thread(
            docker, "exec", self.relays.names["two"], "/opt/ari-ha/bin/python", "-c", ACTIVE
        )
        return at

    async def go(self) -> str:
        case = self.case
        tasks: list[asyncio.Task[None]] = []
        try:
            await self.listen("one")
            await self.call()
            tasks = [asyncio.ensure_future(work) for work in (self.plain.talk(), self.browser.talk())]
            await asyncio.sleep(BEFORE_S)
            if case.touch:
                await self.connect()
                await asyncio.sleep(0.2)
            at = await self.strike()
            ends = at + case.after_s
            if case.mend_s:
                await asyncio.sleep(max(0.0, at + case.mend_s - time.monotonic()))
                await self.taught(await self.browser.answer(await self.web_port()))
            await asyncio.sleep(max(0.0, ends - time.monotonic()))
            return self.told(at, ends)
        finally:
            for task in tasks:
                task.cancel()
            await self.browser.close()
            self.plain.close()
            if self.ng:
                self.ng.close()
            self.relays.down()

    def told(self, at: float, ends: float) -> str:
        """Longest silences per direction and when they began; handshakes; packets nobody could read."""
        browser = self.browser
        words = []
        for who, times in (("browser hears", browser.heard.at), ("far end hears", self.plain.at)):
            worst, began = longest(times, at - 0.5, ends)
            quiet = f"{worst * 1000:.0f} ms from {began - at:+.1f} s"
            words.append(f"{who}: {quiet}{', to the end' if began + worst >= ends else ''}")
        words.append(f"handshakes {browser.handshakes}, unreadable {browser.heard.unreadable}")
        return "; ".join(words)


ACTIVE = (
    "import socket; s = socket.create_connection(('127.0.0.1', 2224)); s.sendall(b'active\\n'); s.recv(200)"
)


def web_body() -> dict[str, object]:
    """NG ``create`` for a browser, as the edge says it."""
    return {"interface": "public", "codec": CODEC, **WEB_PORT}


def longest(times: Sequence[float], since: float, ends: float) -> tuple[float, float]:
    """The longest time without a packet, and when it began."""
    marks = [since, *(moment for moment in times if since < moment < ends), ends]
    return max((later - earlier, earlier) for earlier, later in itertools.pairwise(marks))


async def main(runs: int, only: str) -> None:
    """Every case, so many times."""
    print(f"ari-ha {__version__}, {platform.python_implementation()} {platform.python_version()}")
    print(docker("run", "--rm", "--entrypoint", "sh", IMAGE, "-c", "rtpengine --version 2>&1").strip())
    for case in CASES:
        if only not in case.name:
            continue
        for _ in range(runs):
            print(f"{case.name}: {await Run(case).go()}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="", help="cases with this in their name")
    given = parser.parse_args()
    asyncio.run(main(given.runs, given.only))
