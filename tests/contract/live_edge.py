"""An edge's machine in real time between a browser on a real WebSocket and a real rtpengine; carrier, nodes
and etcd are those of `tests.support.edge_world`. The caller's audio is a socket of this process."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import socket
import time
from dataclasses import replace
from typing import Any

from containers import Container, docker, free_port, media_ports

from ari_ha.adapters.sip import SipSockets
from ari_ha.adapters.sip_websocket import WebSocketListener
from ari_ha.core.machine import Done, Effect, Refused, Unreachable
from ari_ha.core.ports.media import MediaReach, NgCommand
from ari_ha.core.ports.sip import CloseSip, SendSip
from ari_ha.farend.rtp import DIGIT, PACKET_MS, VOICE, classify, digit_packet, set_voice, voice_buffer
from ari_ha.machines.edge import EdgeMachine
from ari_ha.machines.edge_config import EdgeConfig
from ari_ha.sip.sdp import SessionDescription, build_audio_sdp
from ari_ha.wire import link, ng
from tests.support.edge_world import EdgeWorld

IMAGE = "ari-ha/edge"
HOST = "127.0.0.1"
TICK_S = 0.01
ASK_LIMIT_S = 0.5
PING_S, DEAD_S = 0.1, 0.3
"""rtpengine stays away for longer than it takes to be missed."""
CALLER = 2
"""The caller's stream."""


class Relay(Container):
    """rtpengine with a valkey beside it, as on an edge's host; rtpengine is started again when it dies."""

    def __init__(self) -> None:
        self.port, self.store = free_port(), free_port()
        super().__init__(
            IMAGE,
            f"""valkey-server --bind {HOST} --port {self.store} --save "" --appendonly no \
                 --notify-keyspace-events 'Kg$xe' --daemonize yes >/dev/null
            until valkey-cli -p {self.store} ping; do sleep 0.02; done
            while :; do
              rtpengine --foreground --log-stderr --log-level=5 --config-file=none --table=-1 \
                --pidfile=/run/rtpengine.pid --listen-ng={HOST}:{self.port} --interface=public/{HOST} \
                --interface=public-2/{HOST} --interface=public-3/{HOST} \
                --interface=core/{HOST} {media_ports()} --timeout=86400 \
                --silent-timeout=86400 --delete-delay=0 --num-threads=2 --redis={HOST}:{self.store}/1 \
                --no-redis-required --redis-cmd-timeout=300 --redis-connect-timeout=300
              sleep {DEAD_S}
            done""",
        )

    def dies(self, forgets: bool = False) -> None:
        """rtpengine is killed, and begins anew; with its calls, or without."""
        flush = f"valkey-cli -p {self.store} flushall;" if forgets else ""
        docker("exec", self.name, "sh", "-c", f"{flush} kill -9 $(cat /run/rtpengine.pid)")


class LiveEdge(EdgeWorld):
    """`EdgeWorld` on the clock, with what a browser can really reach."""

    def __init__(self, relay: Relay, first: int = 0, spare: tuple[str, ...] = ()) -> None:
        """``first``: the caller's first sequence number."""
        self.first, self.spare = first, spare
        self._ng = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._ng.connect((HOST, relay.port))
        self._ng.settimeout(ASK_LIMIT_S)
        self._prefix, self._serial = secrets.token_hex(4), itertools.count()
        self.reachable: bool | None = None
        """Whether rtpengine answers; None: not asked yet."""
        self.port = free_port()
        self.sockets: SipSockets | None = None
        self.listener: WebSocketListener | None = None
        self.digits: list[int] = []
        """Events (RFC 4733) that reached the caller"""
        self._pressed: list[str] = []
        self.heard: list[float] = []
        """When the browser's voice reached the caller (monotonic)."""
        self._ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._ear.bind((HOST, 0))
        self._ear.setblocking(False)
        self._tasks: list[asyncio.Task[Any]] = []
        super().__init__()
        self.carrier.sdp = self._callers_sdp  # type: ignore[method-assign]

    def config(self) -> EdgeConfig:
        config = super().config()
        return replace(
            config, public_ws_port=self.port, public_interface="public", core_interface="core",
            spare_public_interfaces=self.spare, srtp_to_phones="always",
        )  # fmt: skip

    def _callers_sdp(self, port: int = 0, direction: str = "sendrecv") -> str:
        return build_audio_sdp(7, 1, *self._ear.getsockname(), [(8, "PCMA/8000")], 101, direction)

    def machine(self) -> EdgeMachine:
        machine = super().machine()
        # SIP comes from addresses in memory, audio from loopback, which they could not have named
        machine.context.takes_media = lambda host, heard: True  # type: ignore[method-assign]
        return machine

    def boot(self) -> None:
        self.now = time.monotonic()
        super().boot()

    # --- effects

    def perform(self, effect: Effect) -> None:
        if isinstance(effect, SendSip | CloseSip) and effect.flow.transport != "udp":
            if self.sockets and isinstance(effect, SendSip):
                self.sockets.send(effect.data, effect.flow)
            elif self.sockets:
                self.sockets.drop(effect.flow)
            return
        super().perform(effect)

    def relay(self, command: NgCommand) -> Any:
        self.ng.append(command)
        try:
            reply = self._ask(command.command, dict(command.body))
        except OSError as error:
            return Unreachable(str(error))
        if reply.get("result") == "ok":
            return Done(reply)
        return Refused(str(reply.get("error-reason")), value=reply)

    def _ask(self, command: str, body: dict[str, Any]) -> dict[str, Any]:
        cookie = f"{self._prefix}_{next(self._serial)}"
        self._ng.send(ng.encode(cookie, command, body))
        while True:
            answered, reply = ng.decode(self._ng.recv(65_536))
            if answered == cookie:
                return reply

    # --- life

    async def start(self) -> None:
        """Serves."""
        await self._listen()
        asyncio.get_running_loop().add_reader(self._ear, self._hear)
        self._tasks = [asyncio.ensure_future(work) for work in (self._live(), self._look())]

    async def _listen(self) -> None:
        self.sockets = SipSockets(self._arrived)
        self.listener = WebSocketListener(self.sockets, "public-ws", "ws")
        await self.listener.start(HOST, self.port)

    def _arrived(self, event: Any) -> None:
        self.now = time.monotonic()
        self.post(event)
        self.settle()

    async def _live(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.now = time.monotonic()
            self.tick()
            for party in (self.carrier, *self.phones.values(), *self.nodes.values()):
                if (when := party.sip.deadline()) is not None and when <= self.now:
                    party.sip.handle_timer(self.now)
            self.settle()

    async def _look(self) -> None:
        """Whether rtpengine is there, as the edge's adapter finds out."""
        while True:
            try:
                reachable = self._ask("ping", {}).get("result") == "pong"
            except OSError:
                reachable = False
            if reachable != self.reachable:
                self.reachable = reachable
                self._arrived(MediaReach(reachable=reachable, started=str(time.time())))
            await asyncio.sleep(PING_S)

    async def process_dies(self) -> None:
        """The edge process is killed, with its connections, and a new one takes its calls up."""
        await self._stop()
        self.reachable = None
        self.boot()
        await self._listen()

    async def _stop(self) -> None:
        if self.sockets and self.listener:
            self.sockets.close()
            await self.listener.stop()
        self.sockets = None

    async def close(self) -> None:
        """Leaves nothing open."""
        for task in self._tasks:
            task.cancel()
        await self._stop()
        asyncio.get_running_loop().remove_reader(self._ear)
        self._ear.close()
        self._ng.close()

    # --- people

    def call_phone(self, user: str) -> tuple[str, Any, Any]:
        """A caller is given to the phone's agent: his leg at the carrier, the call, its node."""
        key, call = self.call_in()
        assert call, [note.text for note in self.notes[-8:]] + self.carrier.heard[-3:]
        node = self.nodes[call.owner.name]
        self.dial(node, call, "a1", user)
        return key, call, node

    def without_node(self, call: Any, node: Any) -> None:
        """The app wants the two to talk past Asterisk; the caller begins to speak."""
        self.say(node, link.WantMedia(call=call.call, epoch=str(call.epoch), state="hitless", request=1))
        self.settle()
        leg = next(iter(self.carrier.sip.legs()))
        session = SessionDescription.parse(self.carrier.sip.remote_sdp(leg) or "")
        audio = session.audio()
        assert audio
        self._tasks.append(asyncio.ensure_future(self._talk(audio.port)))

    async def _talk(self, port: int) -> None:
        packet, due = voice_buffer(CALLER, 2000, 500), time.monotonic()
        for number in itertools.count(1):
            due += PACKET_MS / 1000
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if self._pressed:
                digit, at, numbers = self._pressed.pop(), number * 160, itertools.count(self.first + number)
                for step in (1, 2, 3):
                    event = digit_packet(
                        digit, 101, next(numbers), at, 2000, 160 * step, first=step == 1, end=step == 3
                    )  # fmt: skip
                    self._ear.sendto(event, (HOST, port))
            set_voice(packet, 8, self.first + number & 0xFFFF, number * 160, number, False)
            self._ear.sendto(packet, (HOST, port))

    def press(self, digit: str) -> None:
        """The caller sends a digit by telephone-event."""
        self._pressed.append(digit)

    def _hear(self) -> None:
        data = self._ear.recv(2000)
        kind, event, _, _ = classify(data, len(data), 101)
        if kind == VOICE:
            self.heard.append(time.monotonic())
        elif kind == DIGIT:
            self.digits.append(event)

    def silence(self, since: float, until: float) -> float:
        """The longest time the caller heard nothing of the browser, in seconds (monotonic instants)."""
        marks = [since, *(at for at in self.heard if since < at < until), until]
        return max(b - a for a, b in itertools.pairwise(marks))
