"""The people outside: carriers with customers, and agents' phones. Their SIP is real
endpoints; what they do is drawn at random, and they only see what real ones see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from urllib.parse import quote

from ari_ha.simulation.sip_wire import Refused, SipProcess, Wire
from ari_ha.simulation.world import World
from ari_ha.sip import events as sip
from ari_ha.sip.auth import Credentials
from ari_ha.sip.flow import Flow
from ari_ha.sip.sdp import SessionDescription, build_audio_sdp

SIP_PORT = 5060
FIRST_RTP_PORT = 40_000
TRYING, RINGING, UP, ENDED = "trying", "ringing", "up", "ended"
TAKEN_BACK_S = 1.0
"""A phone whose answer was heard this shortly ago may have answered what was just being taken back."""


@dataclass
class Talk:
    """One person's side of one call, as that person's phone has it."""

    leg: str
    who: str
    """``customer`` or the address of record of an agent's phone"""
    rtp: tuple[str, int]
    state: str = TRYING
    remote: tuple[str, int] | None = None
    """Where this phone sends its voice: the edge's media port."""
    held: bool = False
    """This phone put the far end on hold."""
    started_s: float = 0.0
    answered_s: float = 0.0
    acked_s: float = 0.0
    """When the far end had heard that it answered, and this phone that it had; 0 for who dialled"""
    unheard: bool = False
    """It was called and has answered, and that was lost as often as it was said"""
    ended_s: float = 0.0
    ended_by: str = ""
    """self, far, failed, or lost (the phone itself is gone)"""
    status: int = 0
    requests: list[tuple[float, str]] = field(default_factory=list)
    """In-dialog requests that came from the edge, and when."""
    call: str = ""
    """Which call it turned out to be; for checkers, phones do not know it."""
    dialled: str = ""
    """The number this phone dialled, when it called."""
    busy: bool = False
    """A re-INVITE of ours is under way."""
    referred: str = ""
    """To whom this phone asked its far end to be transferred, until it hears that it failed"""
    accepted: bool = False
    """The far end has heard that (RFC 3515 §2.4.2: 202)."""
    attended: bool = False
    """Asked with Replaces: to whoever this phone consults"""
    main: Talk | None = None
    """The call beside which this phone made this one: it consults."""
    joining: bool = False
    """The digits of a conference were typed here."""
    joined: bool = False
    """It is in one, although its other line was hung up before anybody could know."""

    @property
    def connected_s(self) -> float:
        """Since when both ends know of the answer, as far as this one can tell; infinite for who was called
        and whose answer was never acknowledged."""
        if not self.dialled and not self.acked_s:
            return inf
        return max(self.answered_s, self.acked_s)

    def taken_back(self, now_s: float) -> bool:
        """Whether nobody heard that it had answered, or so late that it was just being taken back."""
        return now_s - self.connected_s < TAKEN_BACK_S

    @property
    def calls_out(self) -> bool:
        """A phone of ours called somebody; a feature code is nobody."""
        return self.who != "customer" and bool(self.dialled) and not self.dialled.startswith("*")

    @property
    def alive(self) -> bool:
        """The phone still has a dialog, or is making one."""
        return self.state != ENDED


class Phones(SipProcess):
    """Many phones (or a carrier's lines) behind one address."""

    def __init__(self, world: World, wire: Wire, name: str, address: str, edge: tuple[str, int]) -> None:
        super().__init__(world, wire, name, "outside", address, {"udp": SIP_PORT})
        self.edge = edge
        self.talks: dict[str, Talk] = {}
        self.on_ringing: Callable[[Talk], None] = lambda talk: None
        self.on_answered: Callable[[Talk], None] = lambda talk: None
        self.on_ended: Callable[[Talk], None] = lambda talk: None
        self.on_act: list[Callable[[Talk, str], None]] = []
        """Called with what a person does with a call that there is."""
        self.refusals = True
        """Whether it hears that a port is refused."""
        self._answers: dict[bytes, Talk] = {}
        """Call-ID -> who has answered that call"""
        wire.on_read.append(self._read)
        self._rtp_port = FIRST_RTP_PORT
        self._dialled = 0

    def _refusal(self, listener: str) -> Refused:
        refused = super()._refusal(listener)
        return lambda host, port: refused(host, port) if self.refusals else None

    # -- acts of people

    def call(
        self, number: str, caller: str, credentials: Credentials | None = None, main: Talk | None = None
    ) -> Talk:
        """Dials the contact center; an agent's phone with its password, perhaps beside the
        call it is in (``main``)."""
        self._dialled += 1
        talk = self._talk(f"{self.name}-call-{self._dialled}", caller if credentials else "customer")
        talk.dialled, talk.main = number, main
        if main is not None:
            self.acts(main, "dials")
        self.sip.invite(
            talk.leg,
            flow=Flow("udp", "udp", *self.edge),
            target=f"sip:{number}@{self.edge[0]}",
            from_=f"<sip:{caller}@{self.address}>",
            to=f"<sip:{number}@{self.edge[0]}>",
            sdp=self._sdp(talk, "sendrecv"),
            credentials=credentials,
            now=self.mono,
        )
        self.world.say(self.name, f"{talk.leg} dials {number}")
        self.pump()
        return talk

    def answer(self, talk: Talk) -> None:
        """Picks up."""
        if talk.state == RINGING:
            self.acts(talk, "answers")
            talk.state, talk.answered_s, talk.unheard = UP, self.world.now, True
            self.sip.answer(talk.leg, self._sdp(talk, "sendrecv"), self.mono)
            if dialog := self.sip.dialog_of(talk.leg):
                self._answers[dialog[0].encode()] = talk
            self.world.say(self.name, f"{talk.leg} ({talk.who}) answers")
            self.pump()
            self.on_answered(talk)

    def _read(self, source: tuple[str, int], data: bytes) -> None:
        """Somebody has read a datagram: perhaps an answer of ours."""
        if source[0] == self.address and data.startswith(b"SIP/2.0 2") and b" INVITE\r\n" in data:
            ident = data.partition(b"\r\nCall-ID: ")[2].partition(b"\r\n")[0]
            if talk := self._answers.pop(ident, None):
                talk.unheard = False

    def reject(self, talk: Talk, status: int) -> None:
        """Does not want the call."""
        if talk.state == RINGING:
            self.sip.reject(talk.leg, status, self.mono)
            self._over(talk, "self", status)
            self.pump()

    def hang_up(self, talk: Talk) -> None:
        """Hangs up, or gives up waiting."""
        if talk.alive:
            self.acts(talk, "hangs up")
            self.sip.hangup(talk.leg, self.mono)
            self._over(talk, "self", 0)
            self.pump()

    def hold(self, talk: Talk, held: bool) -> None:
        """Presses hold, or takes the far end back."""
        if talk.state == UP and talk.held != held and not talk.busy:
            self.acts(talk, "holds" if held else "unholds")
            talk.held, talk.busy = held, True
            self.sip.reinvite(talk.leg, self._sdp(talk, "sendonly" if held else "sendrecv"), self.mono)
            self.world.say(self.name, f"{talk.leg} ({talk.who}) {'holds' if held else 'unholds'}")
            self.pump()

    def refer(self, talk: Talk, number: str, replaces: Talk | None = None) -> None:
        """Asks that the far end be connected to ``number`` instead, or to whoever this
        phone talks to in another dialog of its own (RFC 3891)."""
        if talk.state != UP or talk.referred:
            return
        target = f"sip:{number}@{self.edge[0]}"
        if replaces is not None:
            dialog = self.sip.dialog_of(replaces.leg)
            if dialog is None or not all(dialog):
                return
            text = f"{dialog[0]};to-tag={dialog[2]};from-tag={dialog[1]}"
            target += f"?Replaces={quote(text, safe='')}"
            replaces.attended = True
        talk.referred, talk.attended = number, replaces is not None
        self.acts(talk, "refers")
        headers = (("Refer-To", f"<{target}>"),)
        self.sip.request_in_dialog(talk.leg, "REFER", self.mono, headers=headers)
        self.world.say(self.name, f"{talk.leg} ({talk.who}) transfers to {number}")
        self.pump()

    def acts(self, talk: Talk, what: str) -> None:
        """A person does something with a call."""
        for tell in self.on_act:
            tell(talk, what)

    # -- the endpoint

    def heard(self, event: sip.SipEvent) -> None:
        """What arrives at the phone."""
        match event:
            case sip.InviteReceived():
                self._invited(event)
            case sip.RequestReceived(txn=txn):
                self.sip.respond(txn, 200, self.mono)
            case sip.InDialogRequest():
                self._told(event)
            case sip.ResponseReceived(key=key, status=status):
                if key in self.talks:
                    self.talks[key].accepted = status < 300
                    if status >= 300:
                        self._not_transferred(self.talks[key])
            case _:
                talk = self.talks.get(getattr(event, "leg", ""))
                if talk is not None:
                    self._of_talk(talk, event)

    def _told(self, event: sip.InDialogRequest) -> None:
        """A NOTIFY of how a transfer goes (RFC 3515 §2.4.5)."""
        self.sip.respond(event.txn, 200, self.mono)
        status = event.request.body[8:11]
        talk = self.talks.get(event.leg)
        if talk is not None and status.isdigit() and int(status) >= 300:
            self._not_transferred(talk)

    def _not_transferred(self, talk: Talk) -> None:
        talk.referred = ""
        for line in self.talks.values():
            if line is talk or line.main is talk or talk.main is line:
                line.attended = False

    def _of_talk(self, talk: Talk, event: sip.SipEvent) -> None:
        now = self.world.now
        match event:
            case sip.LegRinging():
                if talk.state == TRYING:
                    talk.state = RINGING
                    self.on_ringing(talk)
            case sip.LegAnswered(sdp=sdp):
                talk.state, talk.answered_s = UP, now
                talk.remote = _rtp_of(sdp)
                self.on_answered(talk)
            case sip.LegAcked(sdp=sdp):
                talk.acked_s, talk.remote = now, _rtp_of(sdp) or talk.remote
            case sip.LegFailed(status=status):
                self._over(talk, "failed", status)
            case sip.LegCancelled():
                self._over(talk, "far", 487)
            case sip.LegEnded(cause=cause):
                talk.requests.append((now, "BYE"))
                self._over(talk, "far" if cause == "bye" else cause, 0)
            case sip.ReinviteReceived(sdp=sdp):
                talk.requests.append((now, "INVITE"))
                talk.remote = _rtp_of(sdp) or talk.remote
                direction = "sendonly" if talk.held else "sendrecv"
                self.sip.accept_reinvite(talk.leg, self._sdp(talk, direction), self.mono)
            case sip.ReinviteAnswered(sdp=sdp):
                talk.remote, talk.busy = _rtp_of(sdp) or talk.remote, False
            case sip.ReinviteFailed():
                talk.held, talk.busy = not talk.held if talk.busy else talk.held, False
            case _:
                pass

    def _invited(self, event: sip.InviteReceived) -> None:
        user = event.request.uri.partition(":")[2].partition("@")[0]
        talk = self._talk(event.leg, user)
        talk.state = RINGING
        talk.remote = _rtp_of(event.request.body.decode()) if event.request.body else None
        self.sip.ring(event.leg, self.mono)
        self.world.say(self.name, f"{talk.leg} ({user}) rings")
        self.on_ringing(talk)

    def _talk(self, leg: str, who: str) -> Talk:
        self._rtp_port += 2
        talk = Talk(leg, who, (self.address, self._rtp_port), started_s=self.world.now)
        self.talks[leg] = talk
        return talk

    def _over(self, talk: Talk, by: str, status: int) -> None:
        if talk.alive:
            talk.state, talk.ended_by, talk.status, talk.ended_s = ENDED, by, status, self.world.now
            self.world.say(self.name, f"{talk.leg} ({talk.who}) over: {by} {status or ''}".rstrip())
            self.on_ended(talk)

    def _sdp(self, talk: Talk, direction: str) -> str:
        return build_audio_sdp(
            1, int(self.world.now * 1000) + 1, *talk.rtp, [(8, "PCMA/8000")], 101, direction
        )


def _rtp_of(sdp: str | None) -> tuple[str, int] | None:
    if not sdp:
        return None
    session = SessionDescription.parse(sdp)
    audio = session.audio()
    return (audio.connection or session.connection or "", audio.port) if audio else None
