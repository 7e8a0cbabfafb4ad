"""The UAS side of a call: an INVITE until its ACK (RFC 3261 sections 9.2 and 13.3)."""

from __future__ import annotations

from collections.abc import Sequence

from ari_ha.sip.core import Core, owner_headers, unacceptable_body
from ari_ha.sip.dialog import Dialog
from ari_ha.sip.early import ANSWERED
from ari_ha.sip.events import (
    InviteReceived,
    LegAcked,
    LegCancelled,
    LocalError,
    ReinviteAcked,
    ReinviteFailed,
)
from ari_ha.sip.fields import Via
from ari_ha.sip.flow import Flow
from ari_ha.sip.leg import IncomingInvite, Leg, sdp_of
from ari_ha.sip.message import Request
from ari_ha.sip.reliable import Reliable, wanted
from ari_ha.sip.timers import negotiate_uas, parse_delta, too_small, uas_headers
from ari_ha.sip.transaction import ServerTransaction


class Incoming:
    """Legs that call us."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.stack = core.stack
        self.reliable = Reliable(core)

    def on_invite(self, request: Request, via: Via, flow: Flow, now: float) -> None:
        """An INVITE outside any dialog."""
        stack = self.stack
        refusal = self._refusal(request)
        if refusal is not None:
            status, headers = refusal
            stack.reply_statelessly(request, via, flow, status, headers)
            return
        txn = stack.open_server(request, via, flow)
        txn.local_tag = stack.new_id()
        leg = Leg(stack.new_id(), "uas", flow, Dialog.for_uas(request, txn.local_tag))
        leg.remote_sdp = sdp_of(request)
        leg.inc = IncomingInvite(request, txn, leg.remote_sdp, initial=True)
        stack.bind(txn, leg)
        self.core.add(leg)
        leg.inc.response = stack.reply(txn, 100, now)
        expires = parse_delta(request.get("Expires")) if request.has("Expires") else None
        if expires:
            self.core.start(leg, "expires", now + expires)
        stack.emit(InviteReceived(leg.key, request, flow))

    def _refusal(self, request: Request) -> tuple[int, list[tuple[str, str]]] | None:
        """What this INVITE is refused with before anybody hears of it."""
        settings = self.stack.settings
        known = self.core.callers.get((request.call_id, request.from_tag))
        if known is not None and known.dialog.remote_cseq == request.cseq[0]:
            return 482, []  # section 8.2.2.2: the same request over two paths
        if unacceptable_body(request):
            return 415, [("Accept", "application/sdp")]
        if too_small(request, settings.min_session_expires_s):
            return 422, [("Min-SE", str(settings.min_session_expires_s))]
        if len(self.core.legs) >= settings.legs_max:
            return 503, [("Retry-After", "5")]
        return None

    def _open(self, leg: Leg) -> IncomingInvite:
        inc = leg.inc
        if inc is None or not inc.initial or inc.accepted:
            raise LocalError(f"leg {leg.key!r} has no INVITE to answer")
        return inc

    def _dialog_headers(
        self, leg: Leg, inc: IncomingInvite, headers: Sequence[tuple[str, str]]
    ) -> list[tuple[str, str]]:
        """What responses that open a dialog carry (section 12.1.1)."""
        fields = [("Record-Route", value) for value in inc.request.get_all("Record-Route")]
        fields.append(("Contact", self.stack.contact(leg.flow, leg.contact_user)))
        return [*fields, *self.stack.capabilities(), *headers]

    def ring(
        self,
        leg: Leg,
        now: float,
        status: int,
        reason: str | None,
        sdp: str | None,
        headers: Sequence[tuple[str, str]],
    ) -> None:
        """A provisional response."""
        if not 100 < status < 200:
            raise LocalError(f"{status} is no provisional status")
        owner_headers(headers)
        inc = self._open(leg)
        body = b"" if sdp is None else sdp.encode("utf-8", "replace")
        fields = self._dialog_headers(leg, inc, headers)
        if wanted(inc.request):
            self.reliable.send(leg, inc, status, reason, fields, body)
        else:
            inc.response = self.stack.reply(inc.txn, status, now, reason, fields, body)
        leg.local_sdp = sdp if sdp is not None else leg.local_sdp
        leg.state = "early"
        self.core.start(leg, "remind", now + self.stack.settings.ring_reminder_s)

    def remind(self, leg: Leg, now: float) -> None:
        """Section 13.3.1.1: the provisional response again, lest a proxy gives up."""
        inc = leg.inc
        if inc is None or inc.accepted or not inc.response:
            return
        if leg.provisional is not None:
            # a reliable one may not come again with its old RSeq; a plain 100 keeps proxies waiting
            self.stack.reply(inc.txn, 100, now)
            self.core.start(leg, "remind", now + self.stack.settings.ring_reminder_s)
            return
        self.stack.transmit(inc.response, inc.txn.flow)
        self.stack.count("reminders")
        self.core.start(leg, "remind", now + self.stack.settings.ring_reminder_s)

    def answer(self, leg: Leg, sdp: str | None, now: float, headers: Sequence[tuple[str, str]]) -> None:
        """Answer the call."""
        owner_headers(headers)
        inc = self._open(leg)
        if self.reliable.holds(leg):
            leg.held_answer = (sdp, tuple(headers))
            return
        self.core.stop(leg, "reliable", "no-prack")
        timer = negotiate_uas(inc.request, self.stack.settings.min_session_expires_s)
        fields = [*self._dialog_headers(leg, inc, headers), *uas_headers(timer, inc.request)]
        self.core.stop(leg, "remind", "expires")
        leg.state = "answered"
        if leg.early:
            # section 13.2.1: no second answer, and no second offer: the description is said already, and only
            # one that is still the same may be said again
            sdp = sdp if leg.early == ANSWERED and inc.sdp is not None else None
            inc.sdp = leg.remote_sdp
        self.core.accept(leg, inc, sdp, now, fields)
        self.core.arm_session(leg, timer, now)

    def on_prack(self, leg: Leg, request: Request, via: Via, flow: Flow, now: float) -> None:
        """A PRACK within a dialog; an answer that waited for it goes out."""
        if self.reliable.on_prack(leg, request, via, flow, now):
            self.go_on(leg, now)

    def go_on(self, leg: Leg, now: float) -> None:
        """Send the answer that waited, if nothing holds it any more."""
        if leg.held_answer and leg.inc is not None and not self.reliable.holds(leg):
            (sdp, headers), leg.held_answer = leg.held_answer, None
            self.answer(leg, sdp, now, headers)

    def reject(
        self, leg: Leg, status: int, now: float, reason: str | None, headers: Sequence[tuple[str, str]]
    ) -> None:
        """Refuse the call; the leg is over."""
        if not 300 <= status < 700:
            raise LocalError(f"{status} does not refuse")
        owner_headers(headers)
        inc = self._open(leg)
        inc.response = self.stack.reply(inc.txn, status, now, reason, headers)
        self.core.end(leg, "local", now)

    def on_cancel(self, request: Request, via: Via, flow: Flow, now: float) -> None:
        """CANCEL (section 9.2): 200 whenever its INVITE is known, 487 only while that has no final
        response."""
        invite = self.stack.servers.get(self.stack.server_key(request, via, "INVITE"))
        if invite is None:
            self.stack.reply_statelessly(request, via, flow, 481)
            return
        cancel = self.stack.open_server(request, via, flow)
        cancel.local_tag = invite.local_tag
        self.stack.reply(cancel, 200, now)
        leg = invite.leg
        if invite.final or leg is None or leg.inc is None or leg.inc.txn is not invite:
            return
        self._cancelled(leg, invite, now, request.get("Reason") or None)

    def _cancelled(self, leg: Leg, invite: ServerTransaction, now: float, reason_header: str | None) -> None:
        self.stack.reply(invite, 487, now)
        initial = leg.inc is not None and leg.inc.initial
        leg.inc = None
        if initial:
            self.core.finish(leg, LegCancelled(leg.key, reason_header), now)
        else:
            self.stack.emit(ReinviteFailed(leg.key, 487))

    def expired(self, leg: Leg, now: float) -> None:
        """The INVITE's Expires passed unanswered (section 13.3.1)."""
        if leg.inc is not None and leg.inc.initial and not leg.inc.accepted:
            self._cancelled(leg, leg.inc.txn, now, None)

    def on_ack(self, leg: Leg, request: Request, flow: Flow, now: float) -> bool:
        """An ACK within a dialog; returns whether it was the one awaited."""
        inc = leg.inc
        if inc is None or not inc.accepted or request.cseq[0] != inc.cseq:
            self.stack.drop("ack-unexpected")
            return False
        leg.inc = None
        leg.flow = flow
        self.core.stop(leg, "answer", "no-ack")
        sdp = sdp_of(request)
        if inc.sdp is None and sdp is not None:
            leg.remote_sdp = sdp
        if inc.initial:
            leg.state = "confirmed"
        if leg.bye_wanted:
            # Section 15: the callee must not send BYE before the ACK came.
            self.core.begin_ending(leg, now)
            return True
        if inc.initial or inc.sdp is None:
            self.stack.emit(LegAcked(leg.key, sdp))
        elif inc.told:
            self.stack.emit(ReinviteAcked(leg.key))
        return True

    def no_ack(self, leg: Leg, now: float) -> None:
        """64*T1 without an ACK (section 13.3.1.4): the dialog is confirmed, the call should be ended."""
        if leg.inc is None or not leg.inc.accepted:
            return
        leg.inc = None
        self.core.bye_and_end(leg, "local" if leg.bye_wanted else "no-ack", now)
