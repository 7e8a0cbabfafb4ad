"""Changing an existing call: re-INVITE both ways (RFC 3261 section 14), UPDATE (RFC 3311), session timers
(RFC 4028)."""

from __future__ import annotations

from collections.abc import Sequence

from ari_ha.sip.core import SESSION_RETRY_S, TRYING_S, Core, owner_headers, unacceptable_body
from ari_ha.sip.early import CHANGED, Early
from ari_ha.sip.events import LocalError, ReinviteAnswered, ReinviteFailed, ReinviteReceived
from ari_ha.sip.fields import Via
from ari_ha.sip.flow import Flow
from ari_ha.sip.leg import IncomingInvite, Leg, OutgoingInvite, Waiting, header_list, plain, sdp_of
from ari_ha.sip.message import Request, Response, parse_message
from ari_ha.sip.outgoing import MIN_SE_MAX_S
from ari_ha.sip.sdp import may_answer, same_media
from ari_ha.sip.timers import (
    SessionTimer,
    negotiate_uac,
    negotiate_uas,
    parse_delta,
    parse_session_expires,
    too_small,
    uac_headers,
    uas_headers,
)
from ari_ha.sip.transaction import ClientTransaction


class Modify:
    """re-INVITE, UPDATE and refreshes of confirmed legs."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.stack = core.stack
        self.early = Early(core)

    # ours

    def reinvite(self, leg: Leg, sdp: str | None, now: float, headers: Sequence[tuple[str, str]]) -> None:
        """The owner's re-INVITE. While the far side's own is open, or our 200 not yet ACKed, it waits. Where
        nobody knows whether the caller has heard that 200 it is sent again before, with our address and the
        same description: he waits for it, and takes no other INVITE until then (section 14.2). Whoever has
        heard it sends his ACK once more (section 13.2.2.4)."""
        owner_headers(headers)
        if leg.state not in ("confirmed", "answered") or leg.ack_owed is not None:
            raise LocalError(f"leg {leg.key!r} is {leg.state}, not confirmed")
        refreshing = leg.out is not None and leg.out.purpose == "refresh"
        if (leg.out is not None and not refreshing) or (
            leg.waiting is not None and leg.waiting.purpose == "reinvite"
        ):
            raise LocalError(f"leg {leg.key!r} has a re-INVITE open")
        waiting = Waiting("reinvite", sdp, plain(headers), 1)
        if leg.inc is not None or refreshing:
            self.core.postpone(leg, waiting, now + self._glare_wait(leg))
            return
        self.core.stop(leg, "reinvite")
        leg.waiting = None
        self._send(leg, waiting, now)

    def _answer_again(self, leg: Leg, sdp: str) -> None:
        if leg.unheard is not None:
            data, flow = leg.unheard
            response = parse_message(data)
            response.set("Contact", self.stack.contact(leg.flow, leg.contact_user))
            response.body = sdp.encode("utf-8", "replace")
            self.stack.count("retransmissions")
            self.stack.transmit(response.serialise(), flow)

    def _send(self, leg: Leg, waiting: Waiting, now: float) -> None:
        if waiting.sdp is not None:
            self._answer_again(leg, waiting.sdp)
        headers = list(waiting.headers)
        if leg.timer is not None:
            headers += uac_headers(leg.timer.interval_s, leg.timer.refresher, leg.min_se_s)
        body = b"" if waiting.sdp is None else waiting.sdp.encode("utf-8", "replace")
        kind = None if waiting.sdp is None else "application/sdp"
        txn = self.core.send(leg, "INVITE", waiting.purpose, now, headers, body, kind)
        leg.out = OutgoingInvite(txn.request, waiting.purpose, waiting.sdp, txn, waiting.headers)
        leg.out.attempts = waiting.attempts
        self.core.start(leg, "change", now + self.stack.settings.reinvite_limit_s)

    def unanswered(self, leg: Leg, now: float) -> None:
        """Our re-INVITE got no final response within its limit."""
        out = leg.out
        if out is None or out.purpose == "invite":
            return
        leg.out = None
        out.txn.step("abandon", now)
        if out.purpose == "reinvite":
            self.stack.emit(ReinviteFailed(leg.key, 408))

    def waited(self, leg: Leg, now: float) -> None:
        """The time for a postponed re-INVITE has come."""
        waiting = leg.waiting
        if waiting is None or leg.state not in ("confirmed", "answered"):
            return
        if leg.inc is not None or leg.out is not None or leg.ack_owed is not None:
            self.core.start(leg, "reinvite", now + self._glare_wait(leg))
            return
        leg.waiting = None
        self._send(leg, waiting, now)

    def _glare_wait(self, leg: Leg) -> float:
        """Section 14.1: 2.1 to 4 s for the owner of the Call-ID, up to 2 s for the other, in units of 10
        ms."""
        if leg.dialog.role == "uac":
            return 2.1 + round(self.stack.rand() * 190) / 100
        return round(self.stack.rand() * 200) / 100

    def on_response(
        self, leg: Leg, txn: ClientTransaction, response: Response, flow: Flow, now: float
    ) -> None:
        """A response to our re-INVITE or refresh."""
        status, out = response.status, leg.out
        if status < 200:
            if out is not None:
                out.provisional = True
            return
        if out is None or out.txn is not txn:
            cseq = txn.request.cseq[0]
            if status < 300 and leg.ack_owed != cseq and not self.core.ack_again(leg, cseq):
                self.core.ack_late(leg, cseq, now)
            return
        leg.out = None
        self.core.stop(leg, "change")
        if status < 300:
            self._accepted(leg, out, response, flow, now)
        elif leg.state != "ending":
            self._refused(leg, out, response, now)

    def _accepted(self, leg: Leg, out: OutgoingInvite, response: Response, flow: Flow, now: float) -> None:
        leg.unheard = None
        leg.dialog.refresh_target(response)
        leg.answered_from(flow)
        if leg.state == "ending":
            self.core.ack(leg, out.cseq, None)
            return
        sdp = sdp_of(response)
        changed = sdp is not None and not same_media(sdp, leg.remote_sdp)
        leg.remote_sdp = sdp if sdp is not None else leg.remote_sdp
        if out.sdp is None:
            leg.ack_owed = out.cseq
        else:
            leg.local_sdp = out.sdp
            self.core.ack(leg, out.cseq, None)
        self.core.arm_session(leg, negotiate_uac(response, leg.timer), now)
        if out.purpose == "reinvite" or changed:
            self.stack.emit(ReinviteAnswered(leg.key, leg.remote_sdp))

    def _refused(self, leg: Leg, out: OutgoingInvite, response: Response, now: float) -> None:
        status = response.status
        if status in (401, 407) and not (out.authenticated and out.attempts > 2):
            txn = self.core.send_again(leg, out.txn, response, now)
            if txn is not None:
                leg.out = OutgoingInvite(txn.request, out.purpose, out.sdp, txn, out.headers)
                leg.out.attempts, leg.out.authenticated = out.attempts + 1, True
                self.core.start(leg, "change", now + self.stack.settings.reinvite_limit_s)
                return
        if status == 422 and self._longer_interval(leg, out, response, now):
            return
        if status == 491 and out.attempts < self.stack.settings.reinvite_attempts_max:
            waiting = Waiting(out.purpose, out.sdp, out.headers, out.attempts + 1)
            if leg.waiting is None:
                self.core.postpone(leg, waiting, now + self._glare_wait(leg))
            return
        if status == 481:
            self.core.end(leg, "gone", now)
        elif status == 408 and "INVITE" in self.stack.settings.timeout_ends_methods:
            self.core.bye_and_end(leg, "gone", now)
        elif out.purpose == "reinvite":
            self.stack.emit(ReinviteFailed(leg.key, status))

    def _longer_interval(self, leg: Leg, out: OutgoingInvite, response: Response, now: float) -> bool:
        """RFC 4028 section 7.3, within a dialog."""
        asked = parse_delta(response.get("Min-SE"))
        if asked is None or asked > MIN_SE_MAX_S or out.attempts >= self.stack.settings.reinvite_attempts_max:
            return False
        leg.min_se_s = max(asked, leg.min_se_s or 0)
        refresher = leg.timer.refresher if leg.timer is not None else "local"
        leg.timer = SessionTimer(max(asked, leg.timer.interval_s if leg.timer is not None else 0), refresher)
        self._send(leg, Waiting(out.purpose, out.sdp, out.headers, out.attempts + 1), now)
        return True

    # the far side's

    def on_reinvite(self, leg: Leg, request: Request, via: Via, flow: Flow, now: float) -> None:
        """A re-INVITE (section 14.2) or an UPDATE with an offer (RFC 3311 section 5.2)."""
        settings = self.stack.settings
        refusal = self._conflict(leg)
        if refusal is None and unacceptable_body(request):
            refusal = 415, [("Accept", "application/sdp")]
        if refusal is None and too_small(request, settings.min_session_expires_s):
            refusal = 422, [("Min-SE", str(settings.min_session_expires_s))]
        txn = self.stack.open_server(request, via, flow)
        self.stack.bind(txn, leg)
        if refusal is not None:
            self.stack.reply(txn, refusal[0], now, None, refusal[1])
            return
        leg.dialog.refresh_target(request)
        sdp = sdp_of(request)
        inc = IncomingInvite(request, txn, sdp, initial=False)
        leg.inc = inc
        if request.method == "INVITE":
            self.core.start(leg, "trying", now + TRYING_S)
        else:
            txn.wait_for_owner(now)
        local = leg.local_sdp
        if (
            sdp is not None
            and local is not None
            and not leg.copied
            and same_media(sdp, leg.remote_sdp)
            and may_answer(sdp, local)
        ):
            self.stack.count("refreshes-answered")
            self._accept(leg, inc, local, now, ())
            return
        inc.told = True
        leg.copied = leg.copied and sdp is None
        self.stack.emit(ReinviteReceived(leg.key, sdp, header_list(request)))

    def trying(self, leg: Leg, now: float) -> None:
        """A re-INVITE has waited for its answer for a while."""
        inc = leg.inc
        if inc is not None and not (inc.initial or inc.accepted or inc.response):
            inc.response = self.stack.reply(inc.txn, 100, now)

    def _conflict(self, leg: Leg) -> tuple[int, list[tuple[str, str]]] | None:
        """Glare and haste (section 14.2; RFC 6141 and RFC 5407 section 3.1 for an ACK still missing)."""
        if leg.out is not None or leg.ack_owed is not None:
            return 491, []
        if leg.inc is not None:
            if leg.inc.accepted:
                return 491, []
            wait = int(self.stack.rand() * self.stack.settings.reinvite_retry_s)
            return 500, [("Retry-After", str(wait))]
        return None

    def _open(self, leg: Leg) -> IncomingInvite | None:
        """The re-INVITE to answer; None when it went away meanwhile (cancelled, or too late for an
        UPDATE)."""
        if leg.changing is not None:
            return leg.changing
        inc = leg.inc
        if inc is None or inc.initial or inc.accepted:
            self.stack.count("command.no-reinvite")
            return None
        return inc

    def accept(self, leg: Leg, sdp: str, now: float, headers: Sequence[tuple[str, str]]) -> None:
        """The owner accepts."""
        owner_headers(headers)
        inc = self._open(leg)
        if inc is not None:
            self._accept(leg, inc, sdp, now, headers)

    def _accept(
        self, leg: Leg, inc: IncomingInvite, sdp: str, now: float, headers: Sequence[tuple[str, str]]
    ) -> None:
        timer = negotiate_uas(inc.request, self.stack.settings.min_session_expires_s)
        fields = [("Contact", self.stack.contact(leg.flow, leg.contact_user)), *self.stack.capabilities()]
        if inc is leg.changing:
            leg.changing, leg.early = None, CHANGED
            leg.local_sdp, leg.remote_sdp = sdp, inc.sdp
            self.stack.reply(inc.txn, 200, now, None, [*fields, *headers], sdp.encode("utf-8", "replace"))
            return
        self.core.accept(leg, inc, sdp, now, [*fields, *headers, *uas_headers(timer, inc.request)])
        self.core.arm_session(leg, timer, now)

    def reject(self, leg: Leg, status: int, now: float, headers: Sequence[tuple[str, str]]) -> None:
        """The owner refuses: nothing changes (section 14.2)."""
        if not 300 <= status < 700:
            raise LocalError(f"{status} does not refuse")
        owner_headers(headers)
        inc = self._open(leg)
        if inc is None:
            return
        self.stack.reply(inc.txn, status, now, None, headers)
        if inc is leg.changing:
            leg.changing = None
        else:
            leg.inc = None

    def on_update(self, leg: Leg, request: Request, via: Via, flow: Flow, now: float) -> None:
        """UPDATE: with an offer as a re-INVITE without ACK, without one a refresh we answer ourselves."""
        if request.body:
            if leg.state == "confirmed" or leg.state == "answered":
                self.on_reinvite(leg, request, via, flow, now)
                return
            self.early.in_update(leg, request, via, flow, now)
            return
        minimum = self.stack.settings.min_session_expires_s
        txn = self.stack.open_server(request, via, flow)
        if too_small(request, minimum):
            self.stack.reply(txn, 422, now, None, [("Min-SE", str(minimum))])
            return
        leg.dialog.refresh_target(request)
        timer = negotiate_uas(request, minimum)
        fields = [("Contact", self.stack.contact(leg.flow, leg.contact_user)), *self.stack.capabilities()]
        self.stack.reply(txn, 200, now, None, [*fields, *uas_headers(timer, request)])
        if parse_session_expires(request) is not None:
            self.core.arm_session(leg, timer, now)

    # session timers

    def session_due(self, leg: Leg, now: float) -> None:
        """Half the interval, or its end, has come."""
        timer = leg.timer
        if timer is None or leg.state not in ("confirmed", "answered"):
            return
        if timer.refresher == "remote":
            self.core.bye_and_end(leg, "session-expired", now)
            return
        busy = (
            leg.out is not None or leg.inc is not None or leg.waiting is not None or leg.ack_owed is not None
        )
        if busy or leg.local_sdp is None:
            self.core.start(leg, "session", now + SESSION_RETRY_S)
            return
        self.stack.count("refreshes-sent")
        # Should this one fail for a passing reason, the next is due at half of what is left.
        end = self.stack.timers.at((leg.key, "session-end"))
        left = (end - now) if end is not None else 0.0
        self.core.start(leg, "session", now + max(SESSION_RETRY_S, left / 2))
        self._send(leg, Waiting("refresh", leg.local_sdp, (), 1), now)
