"""An edge and a node app at either end of one Asterisk, the fake or a real one: what both can be asked."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import time
import uuid
from collections.abc import Callable
from typing import Any

from real_asterisk import HOST, PASSWORD, RealAsterisk

from ari_ha.adapters.ari import AriAdapter
from ari_ha.adapters.ari_config import AriSettings
from ari_ha.adapters.control_socket import set_maintenance
from ari_ha.core.machine import Done, Outcome
from ari_ha.core.ports.ari import AriCall, AriEvent, AriSnapshot, SetMaintenance
from ari_ha.farend.rtp import DIGIT_END_PACKETS, DIGIT_PACKETS, SAMPLES_PER_PACKET, digit_packet
from ari_ha.simulation.fake_ari import FakeAri
from ari_ha.simulation.fake_asterisk import FakeAsterisk
from ari_ha.simulation.sip_wire import SipProcess, Wire
from ari_ha.simulation.world import Network, World
from ari_ha.sip import events as sip
from ari_ha.sip.endpoint import Endpoint
from ari_ha.sip.flow import Flow, Listener
from ari_ha.sip.sdp import SessionDescription, build_audio_sdp
from ari_ha.wire.token import HEADER

LIMIT_S = 30.0
"""How long a state is waited for; far more than either Asterisk needs."""
PROBE_S = 2.0
"""How long a call may take to be refused."""
QUIET_S = 0.5
"""How long nothing is waited for to happen."""
PACKET_S = 0.02
FAKE_PORTS = {"node-trunk": 5070, "node-agent": 5072, "node-resume": 5074}


class EdgeSide:
    """The far side: an endpoint on the edge's three ports, fake or real."""

    sip: Endpoint
    mono: float
    said: list[tuple[float, Any]]
    asterisk_at: tuple[str, int]
    here: str

    def pump(self) -> None:
        """Carries out what the endpoint wants."""
        raise NotImplementedError

    def media_port(self, leg: str) -> int:
        """Where the leg takes its voice."""
        raise NotImplementedError

    def sdp(self, leg: str) -> str:
        """Our offer or answer for a leg."""
        return build_audio_sdp(1, 1, self.here, self.media_port(leg), [(8, "PCMA/8000")], 101)

    def invite(self, leg: str, number: str = "6000", listener: str = "node-trunk", **headers: str) -> None:
        """A new call to the node; ``X_ARI_HA_Fallback`` for that header."""
        extra = [(name.replace("_", "-"), value) for name, value in headers.items()]
        host, port = self.asterisk_at
        self.sip.invite(
            leg, flow=Flow(listener, "udp", host, port), target=f"sip:{number}@{host}:{port}",
            from_=f"<sip:+49301@{self.here}>", to=f"<sip:{number}@{host}>", sdp=self.sdp(leg),
            headers=[(HEADER, "token"), *extra], now=self.mono,
        )  # fmt: skip
        self.pump()

    def ring(self, leg: str) -> None:
        self.sip.ring(leg, self.mono)
        self.pump()

    def answer(self, leg: str) -> None:
        self.sip.answer(leg, self.sdp(leg), self.mono)
        self.pump()

    def reject(self, leg: str, status: int) -> None:
        self.sip.reject(leg, status, self.mono)
        self.pump()

    def hangup(self, leg: str) -> None:
        self.sip.hangup(leg, self.mono)
        self.pump()

    def of(self, kind: type, leg: str = "") -> list[Any]:
        """What was said of that kind, about that leg."""
        return [event for _, event in self.said if isinstance(event, kind) and leg in ("", event.leg)]

    def when(self, kind: type, leg: str) -> float:
        """When the first of them was said."""
        return next(at for at, event in self.said if isinstance(event, kind) and event.leg == leg)


class Rig:
    """One Asterisk between an edge and an app."""

    edge: EdgeSide
    edge_uri: str
    """Where the app finds the edge: ``host:port``."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self._ids = itertools.count(1)
        self._name = uuid.uuid4().hex[:6]

    def new(self, kind: str) -> str:
        """An id nobody else has."""
        return f"{kind}-{self._name}-{next(self._ids)}"

    async def until(self, what: str, holds: Callable[[], Any], limit_s: float = LIMIT_S) -> Any:
        """Waits for a state, and returns it."""
        raise NotImplementedError

    async def quiet(self) -> None:
        """Lets happen what was about to."""
        raise NotImplementedError

    async def register(self) -> Any:
        """The app connects; what there is."""
        raise NotImplementedError

    async def unregister(self) -> None:
        """The app is gone, and Asterisk knows."""
        raise NotImplementedError

    async def do(self, operation: str, **params: Any) -> Outcome:
        """One operation."""
        raise NotImplementedError

    async def maintain(self, *endpoints: str, on: bool) -> Outcome:
        """The app has endpoints refuse new calls, or take them again."""
        raise NotImplementedError

    async def press(self, leg: str, digit: str) -> None:
        """A telephone-event on a leg of the edge's."""
        raise NotImplementedError

    def apologised(self, leg: str) -> bool:
        """Whether it was told that the dialplan is sorry."""
        raise NotImplementedError

    def named(self, name: str, channel: str = "") -> list[Any]:
        """Events of a type, about one channel."""
        return [
            event
            for event in self.events
            if type(event).__name__ == name and (not channel or _channel_of(event) == channel)
        ]

    def order(self, channel: str, *names: str) -> list[str]:
        """The order in which these came about a channel."""
        return [
            type(event).__name__
            for event in self.events
            if type(event).__name__ in names and _channel_of(event) == channel
        ]

    async def seen(self, name: str, channel: str = "", times: int = 1) -> Any:
        """Waits for the ``times``-th event of a type."""
        await self.until(f"{name} {times}", lambda: len(self.named(name, channel)) >= times)
        return self.named(name, channel)[times - 1]

    async def told(self, kind: type, leg: str = "") -> Any:
        """Waits until the edge was told."""
        return (await self.until(kind.__name__, lambda: self.edge.of(kind, leg)))[0]

    async def incoming(self, leg: str = "leg", **kwargs: Any) -> str:
        """A call into the app; its channel."""
        before = len(self.named("StasisStart"))
        self.edge.invite(leg, **kwargs)
        return (await self.seen("StasisStart", times=before + 1)).channel.id

    async def dial(self, timeout: int = 60) -> str:
        """The app calls somebody at the edge; its channel."""
        channel, endpoint = self.new("out"), f"PJSIP/edge-out/sip:a1@{self.edge_uri}"
        made = await self.do(
            "channels.create", channelId=channel, app="ari-ha", endpoint=endpoint,
            variables={"PJSIP_HEADER(add,X-ARI-HA-Token)": "signed"},
        )  # fmt: skip
        assert isinstance(made, Done), made
        await self.seen("StasisStart", channel)
        dialled = await self.do("channels.dial", channelId=channel, timeout=timeout)
        assert isinstance(dialled, Done), dialled
        return channel

    async def channels(self) -> list[str]:
        """All there are."""
        listed = await self.do("channels.list")
        return [channel.id for channel in listed.value]

    async def close(self) -> None:
        """Leaves an empty Asterisk."""


def _channel_of(event: Any) -> str:
    about = getattr(event, "channel", None) or getattr(event, "peer", None)
    return about.id if about is not None else ""


class FakeEdge(SipProcess, EdgeSide):
    """In the simulated world."""

    def __init__(self, world: World, wire: Wire, here: str, asterisk_at: tuple[str, int]) -> None:
        super().__init__(world, wire, "edge", "edge", here, FAKE_PORTS)
        self.said, self.here, self.asterisk_at = [], here, asterisk_at
        self._media: dict[str, int] = {}

    def heard(self, event: sip.SipEvent) -> None:
        self.said.append((self.world.now, event))

    def media_port(self, leg: str) -> int:
        return self._media.setdefault(leg, 30_000 + 2 * len(self._media))


class FakeRig(Rig):
    ASTERISK, EDGE = "10.0.0.31", "10.0.0.11"

    def __init__(self) -> None:
        super().__init__()
        self.world = World(1)
        wire = Wire(self.world, Network(self.world))
        self.asterisk = FakeAsterisk(self.world, wire, "ast1", "ast1", self.ASTERISK)
        self.edge = FakeEdge(self.world, wire, self.EDGE, (self.ASTERISK, 5060))
        self.edge_uri = f"{self.EDGE}:5070"
        self.asterisk.start()
        self.edge.begin()
        self.ari = FakeAri(self.asterisk)

    async def until(self, what: str, holds: Callable[[], Any], limit_s: float = LIMIT_S) -> Any:
        end = self.world.now + limit_s
        while not (found := holds()):
            assert self.world.now < end, f"not within {limit_s} s: {what}"
            self.world.run_until(self.world.now + 0.05)
        return found

    async def quiet(self) -> None:
        self.world.run_until(self.world.now + QUIET_S)

    async def register(self) -> Any:
        return self.asterisk.connect(self.events.append)[0]

    async def unregister(self) -> None:
        self.asterisk.disconnect()

    async def do(self, operation: str, **params: Any) -> Outcome:
        outcome = self.ari.perform(operation, params)
        self.world.run_until(self.world.now + 0.05)
        return outcome

    async def maintain(self, *endpoints: str, on: bool) -> Outcome:
        return self.asterisk.set_maintenance(endpoints, on)

    async def press(self, leg: str, digit: str) -> None:
        place = (self.EDGE, self.edge.media_port(leg))
        (channel,) = [c for c in self.asterisk.channels.values() if c.remote == place]
        self.asterisk.digit(channel.ident, digit)

    def apologised(self, leg: str) -> bool:
        return bool(self.asterisk.apologies)

    async def freeze(self) -> None:
        self.asterisk.freeze()

    async def thaw(self) -> None:
        self.asterisk.thaw()

    async def kill(self) -> None:
        self.asterisk.kill()

    async def start(self) -> Any:
        """Starts it again; the app connects."""
        self.asterisk.start()
        return await self.register()

    async def incarnation(self) -> str:
        return self.asterisk.incarnation


class RealEdge(EdgeSide):
    """On sockets of this machine."""

    def __init__(self, asterisk: RealAsterisk) -> None:
        self.said, self.here, self.asterisk_at = [], HOST, (HOST, asterisk.sip_port)
        self._ports = asterisk.edge_ports
        life, ids = uuid.uuid4().hex[:8], itertools.count(1)
        listeners = {name: Listener(name, "udp", HOST, port) for name, port in self._ports.items()}
        self.sip = Endpoint(listeners, lambda: f"{life}-{next(ids)}", user_agent="contract")
        self._sockets: dict[str, asyncio.DatagramTransport] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._media: dict[str, socket.socket] = {}

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        for name, port in self._ports.items():
            self._sockets[name], _ = await loop.create_datagram_endpoint(
                lambda name=name: _Reader(self, name), local_addr=(HOST, port)
            )

    def close(self) -> None:
        if self._timer:
            self._timer.cancel()
        for transport in self._sockets.values():
            transport.close()
        for media in self._media.values():
            media.close()

    @property
    def mono(self) -> float:
        return time.monotonic()

    def pump(self) -> None:
        self.said += [(self.mono, event) for event in self.sip.events()]
        for data, flow in self.sip.output():
            self._sockets[flow.listener].sendto(data, (flow.host, flow.port))
        if self._timer:
            self._timer.cancel()
        due = self.sip.deadline()
        if due is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, due - self.mono), self._due)

    def _due(self) -> None:
        self.sip.handle_timer(self.mono)
        self.pump()

    def media(self, leg: str) -> socket.socket:
        """The leg's RTP socket."""
        if leg not in self._media:
            self._media[leg] = media = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            media.bind((HOST, 0))
            media.setblocking(False)
        return self._media[leg]

    def media_port(self, leg: str) -> int:
        return self.media(leg).getsockname()[1]


class _Reader(asyncio.DatagramProtocol):
    def __init__(self, edge: RealEdge, listener: str) -> None:
        self.edge, self.listener = edge, listener

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.edge.sip.receive(data, Flow(self.listener, "udp", *addr[:2]), self.edge.mono)
        self.edge.pump()


class RealRig(Rig):
    """``caretaker`` is an app of its own: it looks and tidies up, and calls never enter it."""

    def __init__(self, asterisk: RealAsterisk) -> None:
        super().__init__()
        self.asterisk = asterisk
        self.edge = RealEdge(asterisk)
        self.edge_uri = f"{HOST}:{asterisk.edge_ports['node-trunk']}"
        self._snapshots: dict[str, list[AriSnapshot]] = {"ari-ha": [], "caretaker": []}
        self.caretaker, self.app = self._adapter("caretaker"), None
        self._pressed = 0

    def _adapter(self, app: str) -> AriAdapter:
        def post(event: Any) -> None:
            if isinstance(event, AriSnapshot):
                self._snapshots[app].append(event)
            elif isinstance(event, AriEvent) and app == "ari-ha":
                self.events.append(event.event)

        settings = AriSettings(
            url=self.asterisk.url, password=PASSWORD, app=app, pid_file=str(self.asterisk.pid_file),
            silence_limit_ms=120_000, connect_limit_ms=10_000,
        )  # fmt: skip
        return AriAdapter(settings, post)

    async def open(self) -> RealRig:
        await self.edge.open()
        await self.caretaker.start()
        await self.until("Asterisk is up", lambda: self._ready("caretaker"))
        await self._no_app()
        return self

    def _ready(self, app: str, times: int = 1) -> AriSnapshot | None:
        got = self._snapshots[app]
        return got[-1] if len(got) >= times and not got[-1].missing_modules else None

    async def until(self, what: str, holds: Callable[[], Any], limit_s: float = LIMIT_S) -> Any:
        end = time.monotonic() + limit_s
        while not (found := holds()):
            assert time.monotonic() < end, (
                f"not within {limit_s} s: {what}; edge: {[type(e).__name__ for _, e in self.edge.said]};"
                f" app: {[type(e).__name__ for e in self.events]}"
            )
            await asyncio.sleep(0.01)
        return found

    async def quiet(self) -> None:
        await asyncio.sleep(QUIET_S)

    async def register(self) -> Any:
        self.app = self._adapter("ari-ha")
        times = len(self._snapshots["ari-ha"]) + 1
        await self.app.start()
        return (await self.until("the app is in", lambda: self._ready("ari-ha", times))).channels

    async def unregister(self) -> None:
        if self.app is None:
            return
        await self.app.stop()
        self.app = None
        await self._no_app()

    async def _no_app(self) -> None:
        """Asterisk keeps an app in its list when its connection has ended; only a call finds out."""
        end = time.monotonic() + LIMIT_S
        said = len(self.edge.said)
        while True:
            leg = self.new("probe")
            self.edge.invite(leg, X_ARI_HA_Fallback="no")
            with contextlib.suppress(AssertionError):
                await self.until("it is refused", lambda leg=leg: self.edge.of(sip.LegFailed, leg), PROBE_S)
                break
            assert time.monotonic() < end, "Asterisk keeps the app"
            await self._hang_up_all()
        del self.edge.said[said:]

    async def _hang_up_all(self) -> None:
        end = time.monotonic() + LIMIT_S
        while (left := (await self._ask("channels.list")).value) and time.monotonic() < end:
            for channel in left:
                await self._ask("channels.hangup", channelId=channel.id)
            await asyncio.sleep(0.02)

    @staticmethod
    async def _perform(adapter: AriAdapter, operation: str, params: dict[str, Any]) -> Outcome:
        return await adapter.perform(AriCall(operation=operation, params=params, limit_s=LIMIT_S))

    async def _ask(self, operation: str, **params: Any) -> Outcome:
        return await self._perform(self.caretaker, operation, params)

    async def do(self, operation: str, **params: Any) -> Outcome:
        return await self._perform(self.app or self.caretaker, operation, params)

    async def maintain(self, *endpoints: str, on: bool) -> Outcome:
        effect = SetMaintenance(endpoints=endpoints, on=on, limit_s=LIMIT_S)
        return await set_maintenance(str(self.asterisk.control_socket), effect)

    async def press(self, leg: str, digit: str) -> None:
        (answered,) = self.edge.of(sip.LegAnswered, leg)
        self._pressed += 1
        session = SessionDescription.parse(answered.sdp)
        to = (session.connection, session.audio().port)
        for n in range(DIGIT_PACKETS + DIGIT_END_PACKETS):
            duration = min(n + 1, DIGIT_PACKETS) * SAMPLES_PER_PACKET
            sequence, at = self._pressed * 100 + n, self._pressed * 8_000
            packet = digit_packet(
                digit, 101, sequence, at, self._pressed, duration, first=n == 0, end=n >= DIGIT_PACKETS
            )
            self.edge.media(leg).sendto(packet, to)
            await asyncio.sleep(PACKET_S)

    def apologised(self, leg: str) -> bool:
        try:
            return bool(self.edge.media(leg).recv(2000))
        except BlockingIOError:
            return False

    async def freeze(self) -> None:
        await asyncio.to_thread(self.asterisk.pause)

    async def thaw(self) -> None:
        await asyncio.to_thread(self.asterisk.go_on)

    async def kill(self) -> None:
        await asyncio.to_thread(self.asterisk.kill)

    async def start(self) -> Any:
        """Starts it again; the app connects by itself."""
        times = {app: len(got) + 1 for app, got in self._snapshots.items()}
        await asyncio.to_thread(self.asterisk.start_again)
        await self.until("Asterisk is up", lambda: self._ready("caretaker", times["caretaker"]))
        return (await self.until("the app is in", lambda: self._ready("ari-ha", times["ari-ha"]))).channels

    async def incarnation(self) -> str:
        return self.caretaker.incarnation

    async def close(self) -> None:
        try:
            if self.app is not None:
                await self.app.stop()
            await self._hang_up_all()
            for bridge in (await self._ask("bridges.list")).value:
                await self._ask("bridges.destroy", bridgeId=bridge.id)
        finally:
            self.edge.close()
            await self.caretaker.stop()
