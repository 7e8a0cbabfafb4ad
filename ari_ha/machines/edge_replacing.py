"""A phone takes the place of another (INVITE with Replaces, RFC 3891): pickup of a ringing
phone, a call moved to one's other phone, an attended transfer made by the far side.

The leg stays, only its phone's dialog is another: media, the node's half and everything a
takeover needs are the leg's. So no node is asked, and it works while the node is dead.
The new one is answered, and the old one ends, when the new one is written down. Until then
a process that starts anew still finds the old one, alive and with its audio.
"""

from __future__ import annotations

from ari_ha.core.ids import PRIMARY_LEG
from ari_ha.machines.edge_audio import MIRRORED, AudioSide, CodecRefused, answer_lines, narrowed
from ari_ha.machines.edge_calls import Calls
from ari_ha.machines.edge_context import EdgeContext
from ari_ha.machines.edge_dialling import Dialling
from ari_ha.machines.edge_forks import ELSEWHERE
from ari_ha.machines.edge_model import EdgeCall, PhoneLeg
from ari_ha.machines.edge_setup import Setup
from ari_ha.machines.edge_transfer import taken_frame
from ari_ha.machines.identity import user_part
from ari_ha.machines.registrar import Registrar
from ari_ha.sip.events import InviteReceived
from ari_ha.sip.message import SipParseError
from ari_ha.sip.replaces import Replaces
from ari_ha.sip.sdp import SdpError, SessionDescription
from ari_ha.sip.uri import NameAddr
from ari_ha.wire import link


class Replacing:
    """Answers every INVITE that names a dialog to replace."""

    def __init__(
        self, context: EdgeContext, calls: Calls, setup: Setup, dialling: Dialling, registrar: Registrar
    ) -> None:
        self._context = context
        self._calls = calls
        self._setup = setup
        self._dialling = dialling
        self._registrar = registrar

    def invite(self, event: InviteReceived, trunk: str, user: str) -> None:
        """RFC 3891 §3. The sender is known: a carrier's ``trunk``, or a ``user`` by digest."""
        request = event.request
        try:
            if request.repeated(("replaces",)) or request.has("join"):
                raise SipParseError("replaces", 400)
            name = Replaces.parse(request.get("replaces"))
        except SipParseError:
            self._setup.refuse(event, 400, "bad_replaces")
            return
        key = self._context.sip.dialog_named(name.call_id, name.to_tag, name.from_tag)
        found = self._calls.phone(key) or self._dialling.forks.of(key) if key else None
        if found is None or not found[1].alive:
            self._setup.refuse(event, *((481, "no_such_dialog") if key is None else (603, "dialog_over")))
            return
        call, leg = found
        refusal = self._refusal(call, leg, name, event, trunk, user)
        if refusal is not None:
            self._setup.refuse(event, *refusal)
            return
        offer = request.body.decode("utf-8", "replace")
        try:
            side = AudioSide.of(offer, leg.side.payload)
            # a running SRTP stream cannot be joined: its new listener does not know how often
            # its numbers have gone round (RFC 3711 §3.3.1)
            if side.suite != leg.side.suite or (side.suite and leg.state == "up"):
                raise CodecRefused("keying")
        except CodecRefused:
            self._setup.refuse(event, 488, "replaces_media")
            return
        self._replace(call, leg, event, user, offer, side)

    # --- who may -------------------------------------------------------------------

    def _refusal(
        self, call: EdgeCall, leg: PhoneLeg, name: Replaces, event: InviteReceived, trunk: str, user: str
    ) -> tuple[int, str] | None:
        """Why this dialog is not replaced: a status, and a word to count."""
        if leg.state != "up" and not (leg.state == "ringing" and leg.target):
            return 481, "early_not_ours"  # who calls us has not begun a dialog of ours
        if leg.state == "up" and name.early_only:
            return 486, "not_early"
        if leg.elsewhere:
            return 480, "comes_from_another_address"
        if leg.fax.get("on"):
            return 488, "fax"
        if not user:
            own = leg.trunk or (call.trunk if leg.leg == PRIMARY_LEG else "")
            return None if own == trunk else (403, "not_its_dialog")
        phone, own = self._registrar.aor_of(user), self._phone_of(leg)
        if leg.refer:
            return 486, "transfer_under_way"
        if phone == own:
            return None
        if not own or not self._may_take(call, leg, event, own):
            return 403, "not_its_dialog"
        return (486, "device_busy") if phone in self._calls.device_of else None

    def _phone_of(self, leg: PhoneLeg) -> str:
        return leg.aor or (self._registrar.aor_of(leg.user) if leg.user else "")

    def _may_take(self, call: EdgeCall, leg: PhoneLeg, event: InviteReceived, own: str) -> bool:
        """Whether a colleague may: what rings, unless a queue gave it to somebody; what is
        answered if whoever answered sent him (Referred-By, RFC 3892)."""
        if leg.aside or leg.of or any(other.of == leg.leg for other in call.living()):
            return False  # a phone's two dialogs belong together
        if leg.state == "ringing":
            return not leg.attempt
        try:
            sender = NameAddr.parse(event.request.get("referred-by")).uri
        except SipParseError:
            return False
        return user_part(sender) == own

    # --- doing it ------------------------------------------------------------------

    def _replace(
        self, call: EdgeCall, leg: PhoneLeg, event: InviteReceived, user: str, offer: str, side: AudioSide
    ) -> None:
        context, old, rang = self._context, leg.key, leg.state == "ringing"
        was, held, direction = leg.held, *_direction(offer)
        self._calls.rekey(call, leg, event.leg)
        if not leg.forks:  # a successor finds the old one there, and ends it
            leg.forks.append(old)
        leg.held, leg.late_offer, leg.media_lines = held, False, answer_lines(offer)
        if user:
            self._change_phone(call, leg, user)
        context.note(f"call/{call.call}", "replaced", leg=leg.leg, by=user or call.trunk, rang=rang)
        context.count("edge_replaced_dialogs", kind="early" if rang else "confirmed")
        if rang:
            self._dialling.phone_answered(call, leg, narrowed(offer, side))
        side.relay_tag, leg.side = leg.side.relay_tag, side

        def written() -> None:
            if leg.key == event.leg and leg.alive and not call.ended:
                if not rang:
                    self._calls.teach(call, leg.leg, narrowed(offer, side))
                context.sip.answer(leg.key, leg.local_sdp(direction, bump=True), context.now)
                home = call.home()
                if was != held and home and not rang:
                    frame = link.LegHeld(call=call.call, leg=leg.leg, epoch=str(call.epoch), held=held)
                    context.link(home.name, frame)
            if old in leg.forks:
                leg.forks.remove(old)
            context.sip.hangup(old, context.now, reason_header=ELSEWHERE if rang else None)
            self._calls.touch(call)

        self._calls.touch(call, written)

    def _change_phone(self, call: EdgeCall, leg: PhoneLeg, user: str) -> None:
        """The leg is another account's phone; the app hears whose."""
        phone = self._registrar.aor_of(user)
        if phone == self._phone_of(leg):
            return
        if self._calls.device_of.get(leg.aor) == (call.call, leg.leg):
            del self._calls.device_of[leg.aor]
        leg.aor, leg.user, leg.taken = phone, user if leg.user else "", True
        leg.agent, leg.attempt = self._registrar.agent_of(user), ""
        self._calls.index(call, leg)
        home = call.home()
        if home:
            self._context.link(home.name, taken_frame(call, leg))


def _direction(offer: str) -> tuple[bool, str]:
    """Whether the offer holds the call, and the direction that answers it."""
    try:
        session = SessionDescription.parse(offer)
    except SdpError:
        return False, "sendrecv"
    return session.is_hold(), MIRRORED.get(session.direction, "sendrecv")
