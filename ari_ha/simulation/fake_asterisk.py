"""An Asterisk as its node app and the edge see it: SIP by a real endpoint, the node's
dialplan, channels and bridges, ARI operations and events.

What it knows of media is which channel sits in which bridge, what is played to it, and
the two addresses of its RTP; the packets themselves are `ears`' business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ari_ha.core.machine import Done, Outcome, Refused
from ari_ha.core.ports.ari import NO_ENDPOINT
from ari_ha.simulation.sip_wire import SipProcess, Wire
from ari_ha.simulation.world import Clock, World
from ari_ha.sip import events as sip
from ari_ha.sip.flow import Flow
from ari_ha.sip.sdp import SessionDescription, build_audio_sdp
from ari_ha.wire import ari
from ari_ha.wire.token import HEADER

APP = "ari-ha"
SIP_PORT = 5060
FIRST_RTP_PORT = 10_000
KIND_OF_PORT = {5070: "trunk", 5072: "agent", 5074: "resume"}
CONTEXT_OF_KIND = {"trunk": "from-trunk", "agent": "from-agent", "resume": "resume"}
ENDPOINTS = (*(f"edge-in-{kind}" for kind in CONTEXT_OF_KIND), "edge-out")
CAUSE_TO_STATUS = {1: 404, 3: 404, 17: 486, 18: 408, 19: 480, 20: 480, 21: 403, 22: 410, 27: 502, 28: 484,
                   31: 480, 34: 503, 38: 500, 42: 503, 58: 488, 127: 500}  # fmt: skip
OTHER_CAUSE_STATUS = 603
STATUS_TO_CAUSE = {404: 1, 408: 18, 480: 19, 486: 17, 487: 127, 488: 58, 503: 34, 600: 17, 603: 21}
CHANNEL_VARIABLES = ("HA_CALL", "HA_LEG", "HA_EPOCH")
REFUSED_CAUSE, NORMAL_CAUSE, NO_ANSWER_CAUSE, CANCELLED_CAUSE = 34, 16, 19, 127
SOFT_HANGUP = 32
"""What a ChannelHangupRequest gives as its cause when the app, or a limit of Asterisk's own, asked for it."""
DIGITS_APART_S = 0.045
"""A digit less than that after the last one, by the wall clock, is none: so none is while that is behind."""
PLAY_S = 0.5
FIRST_PACKET_S = 0.03
"""Asterisk says that music or a prompt is begun before it begins: the first packet comes a packet's time
later or more, depending on how busy its host is."""
SORRY_S = 2.0
ENTER_S = 0.001
"""A channel that was created is in the app a moment later; dialled before that it is refused."""
ASKED_TIMES, ASK_EVERY_S = 3, 1.0
"""How often the dialplan asks for an app after the first time."""
VERBS = {"6000": "queue,support", "6001": "through,support", "6100": "queue,sales", "6101": "through,sales",
         "6200": "ivr,main", "6201": "ivr,collect", "6300": "voicemail,support"}  # fmt: skip

Sink = Callable[[ari.Event], None]


def verb_of(number: str) -> str:
    """What extensions.conf does with a number: [verbs]."""
    if number in VERBS or len(number) < 2:
        return VERBS.get(number, "")
    return f"dial,{number[1:] if len(number) == 5 and number[0] == '7' else number}"


@dataclass
class Channel:
    """One channel. Its SIP leg has the same name."""

    ident: str
    incoming: bool
    state: str = "Down"
    context: str = ""
    extension: str = ""
    in_app: bool = False
    variables: dict[str, str] = field(default_factory=dict)
    caller: str = ""
    target: str = ""
    """Where an outgoing one is dialled to."""
    dialled: bool = False
    bridge: str = ""
    music: bool = False
    music_from: float = 0.0
    """When its first packet goes out"""
    plays: dict[str, float] = field(default_factory=dict)
    played: bool = False
    """A prompt has been said to its end."""
    rtp: tuple[str, int] = ("", 0)
    remote: tuple[str, int] | None = None
    digit_utc: float = 0.0
    """When its last digit was"""
    app_data: str = ""
    """The arguments of Stasis() while it runs there."""
    tech_cause: int = 0
    """The SIP status it ended with."""
    spies: str = ""
    """A snoop channel: the channel it hears, and into which directions of it it whispers."""
    whisper: str = "none"
    followed: bool = False
    """The app made it, or asked about it: it hears of its end after it has left Stasis."""
    headers: tuple[str, str] = ("", "")
    """What the edge said of the verb and of other nodes."""


@dataclass
class Bridge:
    """One bridge and who is in it."""

    ident: str
    kind: str
    channels: list[str] = field(default_factory=list)
    music: bool = False
    name: str = ""

    @property
    def gives_digits(self) -> bool:
        """Plain ``mixing`` of two relays RTP and shows no digits."""
        return "dtmf_events" in self.kind or "proxy_media" in self.kind


class FakeAsterisk(SipProcess):
    """One Asterisk. Every start is a new incarnation with nothing of the old one."""

    def __init__(self, world: World, wire: Wire, name: str, host: str, address: str) -> None:
        super().__init__(world, wire, f"asterisk/{name}", host, address, {"udp": SIP_PORT})
        self.node = name
        self.channels: dict[str, Channel] = {}
        self.bridges: dict[str, Bridge] = {}
        self.sink: Sink | None = None
        """The app's websocket, while one is connected."""
        self._numbers = 0
        self._rtp_port = FIRST_RTP_PORT
        self.digits_heard: list[tuple[str, str]] = []
        self.wall = Clock(world)
        """The wall clock of its host"""
        self.apologies: list[str] = []
        """Tokens of callers whom the dialplan told that it is sorry."""
        self.maintenance: set[str] = set()
        """Endpoints that refuse new calls."""

    def start(self) -> None:
        """Boots: nothing of an earlier life is left."""
        self.begin()
        self.channels, self.bridges, self.sink = {}, {}, None
        self.maintenance = set()

    def set_maintenance(self, endpoints: Iterable[str], on: bool) -> Outcome:
        """``pjsip set maintenance``."""
        if unknown := [name for name in endpoints if name not in ENDPOINTS]:
            return Refused(f"{unknown[0]}: Endpoint '{unknown[0]}' not found", NO_ENDPOINT)
        self.maintenance = self.maintenance | {*endpoints} if on else self.maintenance - {*endpoints}
        return Done()

    def stop_politely(self) -> None:
        """What SIGTERM does first: every channel is hung up, nobody asked for it."""
        for channel in list(self.channels.values()):
            if channel.ident in self.channels:
                self._hang_up(channel, NORMAL_CAUSE)
        self.pump()

    @property
    def incarnation(self) -> str:
        """Which start this is."""
        return f"boot1-{self.life}"

    # -- the app's websocket

    def connect(self, sink: Sink) -> tuple[list[ari.Channel], list[ari.Bridge]]:
        """The app registers; it gets what there is, and every event from now on."""
        self.sink = sink
        return (
            [self._model(channel) for channel in self.channels.values()],
            [self._bridge_model(bridge) for bridge in self.bridges.values()],
        )

    def disconnect(self) -> None:
        """The app's websocket is gone: new calls find no app, those in it stay."""
        self.sink = None

    def _emit(self, event: ari.Event) -> None:
        if self.sink is not None:
            self.sink(event)

    def _model(self, channel: Channel) -> ari.Channel:
        shown = {name: channel.variables.get(name, "") for name in CHANNEL_VARIABLES}
        shown |= {name: value for name, value in channel.variables.items() if name.startswith("HA_")}
        return ari.Channel(
            id=channel.ident,
            name=f"PJSIP/edge-{channel.ident}",
            state=channel.state,
            caller=ari.CallerID(number=channel.caller),
            dialplan=self._place(channel),
            channelvars=shown,
        )

    @staticmethod
    def _place(channel: Channel) -> ari.DialplanCEP:
        """Where it is in the dialplan; one the app created is in none."""
        if not channel.incoming:
            return ari.DialplanCEP(app_name="AppDial2", app_data="(Outgoing Line)")
        name = "Stasis" if channel.in_app else "Wait"
        return ari.DialplanCEP(
            context=channel.context, exten=channel.extension, priority=2, app_name=name,
            app_data=channel.app_data if channel.in_app else "1",
        )  # fmt: skip

    def _bridge_model(self, bridge: Bridge) -> ari.Bridge:
        return ari.Bridge(
            id=bridge.ident,
            name=bridge.name,
            bridge_type=bridge.kind,
            technology="simple_bridge",
            channels=list(bridge.channels),
        )

    # -- SIP

    def heard(self, event: sip.SipEvent) -> None:
        """What the endpoint says."""
        match event:
            case sip.InviteReceived():
                self._invited(event)
            case sip.LegRinging(leg=leg):
                self._rings(leg)
            case sip.LegAnswered(leg=leg, sdp=sdp):
                self._answered(leg, sdp)
            case sip.LegFailed(leg=leg, status=status):
                self._gone(leg, STATUS_TO_CAUSE.get(status, 38), status)
            case sip.LegCancelled(leg=leg):
                self._gone(leg, CANCELLED_CAUSE, 487)
            case sip.LegEnded(leg=leg):
                self._gone(leg, NORMAL_CAUSE, 0)
            case sip.ReinviteReceived(leg=leg, sdp=sdp):
                self._reinvited(leg, sdp)
            case sip.RequestReceived(txn=txn):
                self.sip.respond(txn, 200, self.mono)
            case _:
                pass

    def _invited(self, event: sip.InviteReceived) -> None:
        request = event.request
        kind = KIND_OF_PORT.get(event.flow.port)
        if kind is None or not request.body:
            self.sip.reject(event.leg, 403, self.mono)
            return
        if f"edge-in-{kind}" in self.maintenance:
            self.sip.reject(event.leg, 503, self.mono, headers=[("Retry-After", "300")])
            return
        channel = Channel(event.leg, incoming=True, state="Ring", context=CONTEXT_OF_KIND[kind])
        channel.extension = request.uri.partition(":")[2].partition("@")[0]
        channel.caller = request.get("from").partition("sip:")[2].partition("@")[0]
        channel.rtp = self._new_rtp()
        channel.remote = _rtp_of(request.body.decode())
        channel.variables["HA_TOKEN"] = request.get(HEADER)
        self.channels[channel.ident] = channel
        self._emit(ari.ChannelCreated(channel=self._model(channel)))
        channel.headers = (request.get("X-ARI-HA-Verb"), request.get("X-ARI-HA-Fallback"))
        if kind == "resume":
            self._answer(channel)
        self._ask_app(channel, kind)

    def _ask_app(self, channel: Channel, kind: str) -> None:
        """``Stasis(ari-ha,kind,token,verb)``; without an app, what the dialplan does."""
        verb, fallback = channel.headers
        if not verb and kind != "resume":
            verb = verb_of(channel.extension)
        if self.sink is not None:
            self._enter_app(channel, [kind, channel.variables["HA_TOKEN"], *verb.split(",")])
        elif kind == "trunk" and fallback != "no":
            if channel.state != "Up":
                self.sip.ring(channel.ident, self.mono)
            self._ask_again(channel, 1)
        else:
            self._hang_up(channel, REFUSED_CAUSE)

    def _ask_again(self, channel: Channel, time: int) -> None:
        """It rings, asks once a second, three times, and a second later says sorry."""

        def ask() -> None:
            if channel.ident not in self.channels:
                return
            if time > ASKED_TIMES:
                self.apologise(channel)
            elif self.sink is not None:
                self._ask_app(channel, "trunk")
            else:
                self._ask_again(channel, time + 1)
            self.pump()

        self.world.after(ASK_EVERY_S, self.in_life(ask))

    def apologise(self, channel: Channel) -> None:
        """The dialplan's last word: it answers, says sorry, hangs up."""
        self.apologies.append(channel.variables["HA_TOKEN"])
        self._answer(channel)
        self.world.after(SORRY_S, self.in_life(lambda: self._apologised(channel)))

    def _apologised(self, channel: Channel) -> None:
        if channel.ident in self.channels:
            self._hang_up(channel, NORMAL_CAUSE)
            self.pump()

    def _enter_app(self, channel: Channel, args: list[str]) -> None:
        channel.in_app, channel.app_data = True, ",".join([APP, *args])
        self._emit(ari.StasisStart(application=APP, args=args, channel=self._model(channel)))

    def _rings(self, leg: str) -> None:
        channel = self.channels.get(leg)
        if channel and channel.state != "Ringing":
            channel.state = "Ringing"
            self._emit(ari.ChannelStateChange(channel=self._model(channel)))
            self._emit(ari.Dial(peer=self._model(channel), dialstatus="RINGING"))

    def _answered(self, leg: str, sdp: str | None) -> None:
        channel = self.channels.get(leg)
        if channel:
            channel.state = "Up"
            channel.remote = _rtp_of(sdp or "")
            self._emit(ari.ChannelStateChange(channel=self._model(channel)))
            self._emit(ari.Dial(peer=self._model(channel), dialstatus="ANSWER"))

    def _gone(self, leg: str, cause: int, status: int) -> None:
        """The far end ended the SIP side: the channel goes."""
        channel = self.channels.get(leg)
        if channel is None:
            return
        channel.tech_cause = status
        # a BYE has no cause here, and one only when the channel is destroyed
        shown = cause if status else 0
        self._emit(ari.ChannelHangupRequest(cause=shown, tech_cause=status, channel=self._model(channel)))
        self._remove(channel, cause)

    def _remove(self, channel: Channel, cause: int) -> None:
        self._leave_bridge(channel)
        del self.channels[channel.ident]
        if channel.in_app:
            channel.in_app = False
            self._emit(ari.StasisEnd(application=APP, channel=self._model(channel)))
        if channel.followed:
            shown = self._model(channel)
            status = channel.tech_cause
            self._emit(
                ari.ChannelDestroyed(cause=cause, cause_txt=str(cause), tech_cause=status, channel=shown)
            )
        for snoop in [c for c in self.channels.values() if c.spies == channel.ident]:
            self._remove(snoop, cause)

    def _reinvited(self, leg: str, sdp: str | None) -> None:
        channel = self.channels.get(leg)
        if channel and sdp:
            channel.remote = _rtp_of(sdp)
            self.sip.accept_reinvite(leg, self._sdp(channel), self.mono)
        else:
            self.sip.reject_reinvite(leg, 488, self.mono)

    def _new_rtp(self) -> tuple[str, int]:
        self._rtp_port += 2
        return self.address, self._rtp_port

    def _sdp(self, channel: Channel) -> str:
        return build_audio_sdp(1, 1, *channel.rtp, [(8, "PCMA/8000")], 101)

    def _answer(self, channel: Channel) -> None:
        if channel.state != "Up":
            channel.state = "Up"
            self.sip.answer(channel.ident, self._sdp(channel), self.mono)
            self._emit(ari.ChannelStateChange(channel=self._model(channel)))

    def _hang_up(self, channel: Channel, cause: int) -> None:
        """Somebody in this Asterisk ends it."""
        if channel.in_app:
            self._emit(ari.ChannelHangupRequest(cause=SOFT_HANGUP, soft=True, channel=self._model(channel)))
        if not channel.incoming and not channel.dialled:
            self._remove(channel, cause)
            return
        status = CAUSE_TO_STATUS.get(cause, OTHER_CAUSE_STATUS)
        if channel.incoming and channel.state != "Up":
            self.sip.reject(channel.ident, status, self.mono)
            self._remove(channel, cause)
        else:
            self.sip.hangup(channel.ident, self.mono)
            if channel.ident in self.channels:
                self._remove(channel, cause)

    # -- digits

    def digit(self, ident: str, digit: str) -> None:
        """A telephone-event arrived on a channel's RTP; only some places show it."""
        channel = self.channels.get(ident)
        if channel is None or channel.state != "Up":
            return
        bridge = self.bridges.get(channel.bridge)
        hidden = bridge is not None and len(bridge.channels) == 2 and not bridge.gives_digits
        if self.wall.utc() - channel.digit_utc < DIGITS_APART_S:
            return
        channel.digit_utc = self.wall.utc()
        if channel.in_app and not hidden:
            self.digits_heard.append((ident, digit))
            at = datetime.fromtimestamp(channel.digit_utc, UTC).isoformat()
            event = ari.ChannelDtmfReceived(
                digit=digit, duration_ms=100, channel=self._model(channel), timestamp=at
            )
            self._emit(event)

    # -- ARI's operations (see fake_ari)

    def channel(self, ident: Any) -> Channel | None:
        """The channel of that id."""
        return self.channels.get(str(ident))

    def create(self, ident: str, endpoint: str, args: list[str], variables: dict[str, str]) -> Channel:
        """An outgoing channel, in the app, not dialled yet."""
        self._numbers += 1
        channel = Channel(ident or f"{self.node}-{self._numbers}", incoming=False)
        channel.target = endpoint
        channel.rtp = self._new_rtp()
        channel.variables.update(variables)
        self.channels[channel.ident] = channel
        channel.followed = True
        self._emit(ari.ChannelCreated(channel=self._model(channel)))
        self.world.after(ENTER_S, self.in_life(lambda: self._created(channel, args)))
        return channel

    def _created(self, channel: Channel, args: list[str]) -> None:
        if channel.ident in self.channels:
            self._enter_app(channel, args)

    def dial(self, channel: Channel, timeout_s: float) -> bool:
        """Sends the INVITE; False when the target makes no sense."""
        uri = channel.target.partition("/edge-out/")[2]
        address, _, port = uri.partition("@")[2].partition(":")
        if not address:
            return False
        header = "PJSIP_HEADER(add,"
        headers = [
            (name[len(header) :].rstrip(")"), value)
            for name, value in channel.variables.items()
            if name.startswith(header)
        ]
        channel.dialled = True
        self._emit(ari.Dial(peer=self._model(channel), dialstatus=""))
        self.sip.invite(
            channel.ident,
            flow=Flow("udp", "udp", address, int(port or 5060)),
            target=uri,
            from_=f"<sip:{channel.caller or 'asterisk'}@{self.address}>",
            to=f"<{uri}>",
            sdp=self._sdp(channel),
            headers=headers,
            now=self.mono,
        )
        if timeout_s > 0:
            self.world.after(timeout_s, self.in_life(lambda: self._dial_timeout(channel)))
        return True

    def _dial_timeout(self, channel: Channel) -> None:
        if channel.ident in self.channels and channel.state != "Up":
            channel.tech_cause = 480
            self._hang_up(channel, NO_ANSWER_CAUSE)
            self.pump()

    def _leave_bridge(self, channel: Channel) -> None:
        bridge = self.bridges.get(channel.bridge)
        channel.bridge = ""
        if bridge and channel.ident in bridge.channels:
            bridge.channels.remove(channel.ident)
            self._emit(ari.ChannelLeftBridge(bridge=self._bridge_model(bridge), channel=self._model(channel)))

    def enter_bridge(self, channel: Channel, bridge: Bridge) -> None:
        """Puts the channel into the bridge, out of the one it was in: the same one, too."""
        self._leave_bridge(channel)
        channel.bridge = bridge.ident
        bridge.channels.append(channel.ident)
        self._emit(ari.ChannelEnteredBridge(bridge=self._bridge_model(bridge), channel=self._model(channel)))


def _rtp_of(sdp: str) -> tuple[str, int] | None:
    if not sdp:
        return None
    session = SessionDescription.parse(sdp)
    audio = session.audio()
    return (audio.connection or session.connection or "", audio.port) if audio else None
