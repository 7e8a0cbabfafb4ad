"""The UAC side of a call: INVITE until its final response (RFC 3261 sections 9.1 and 13.2)."""

from __future__ import annotations

from collections.abc import Sequence

from ari_ha.sip.auth import Credentials
from ari_ha.sip.core import Core, owner_headers
from ari_ha.sip.dialog import Dialog, without_tag
from ari_ha.sip.early import CHANGED, OPEN
from ari_ha.sip.events import LegAnswered, LegEnded, LegFailed, LegRinging, LocalError
from ari_ha.sip.fields import canonical
from ari_ha.sip.flow import Flow
from ari_ha.sip.leg import Leg, OutgoingInvite, header_list, plain, sdp_of
from ari_ha.sip.message import Request, Response
from ari_ha.sip.reliable import Reliable
from ari_ha.sip.timers import SessionTimer, negotiate_uac, parse_delta, uac_headers
from ari_ha.sip.transaction import ClientTransaction, build_cancel

INITIAL_ROUTE = frozenset(("route",))
"""What the owner may write in an INVITE that it may not write elsewhere: the initial route set."""
MIN_SE_MAX_S = 86_400
"""A 422 asking for more than a day is not followed."""


class Outgoing:
    """Legs we call."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.stack = core.stack
        self.reliable = Reliable(core)

    def invite(
        self,
        key: str,
        flow: Flow,
        target: str,
        from_: str,
        to: str,
        sdp: str | None,
        headers: Sequence[tuple[str, str]],
        credentials: Credentials | None,
        session_expires: int | None,
        contact_user: str,
        next_hop: str,
        held: bool,
        now: float,
    ) -> None:
        """Start a call."""
        owner_headers(headers, INITIAL_ROUTE)
        stack = self.stack
        stack.listener(flow)
        dialog = Dialog(
            call_id=stack.new_id(),
            local_tag=stack.new_id(),
            local_uri=without_tag(from_),
            remote_uri=without_tag(to),
            role="uac",
            remote_target=target,
            secure=target.lower().startswith("sips:"),
        )
        leg = Leg(key, "uac", flow, dialog, local_sdp=sdp, credentials=credentials, contact_user=contact_user)
        leg.wanted_expires_s = session_expires
        leg.next_hop = next_hop
        self.core.add(leg)
        branch = stack.new_branch()
        request = dialog.build(
            "INVITE", dialog.next_cseq(), stack.via(flow, branch), stack.settings.max_forwards
        )
        fields = [("Contact", stack.contact(flow, contact_user)), *stack.capabilities()]
        if session_expires is not None:
            fields += uac_headers(session_expires, None, None)
        given = {canonical(name) for name, _ in headers}
        request.headers = [item for item in (*request.headers, *fields) if canonical(item[0]) not in given]
        request.headers += headers
        if sdp is not None:
            request.add("Content-Type", "application/sdp")
            request.body = sdp.encode("utf-8", "replace")
        txn = stack.open_client(request, branch, flow, "invite", leg, now, held=held)
        leg.out = OutgoingInvite(request, "invite", sdp, txn, plain(headers), held=held)

    def release(self, leg: Leg, now: float) -> None:
        """The INVITE that was held back."""
        if leg.out is not None and leg.out.held:
            leg.out.held = False
            leg.out.txn.open(leg.out.txn.data, now)

    def on_response(
        self, leg: Leg, txn: ClientTransaction, response: Response, flow: Flow, now: float
    ) -> None:
        """A response to the INVITE, or what stands for one (section 8.1.3.1)."""
        status = response.status
        if leg.out is None or leg.out.purpose != "invite":
            if 200 <= status < 300:
                self._answered_again(leg, response, flow, now)
            return
        if status < 200:
            self._provisional(leg, leg.out, response, now)
        elif status < 300:
            self._answered(leg, leg.out, response, flow, now)
        else:
            self._refused(leg, leg.out, response, now)

    def _provisional(self, leg: Leg, out: OutgoingInvite, response: Response, now: float) -> None:
        out.provisional = True
        if out.cancel == "wanted":
            self._send_cancel(leg, out, now)
        if response.status == 100 or not self.reliable.accepts(leg, out, response, now):
            return
        if leg.state == "ending":
            return
        sdp = sdp_of(response) if leg.early != CHANGED else None
        if response.to_tag and not leg.dialog.remote_tag:
            leg.dialog.establish(response)
            self.core.ways(leg)  # a name in it is asked for before the ACK has to go there
        if sdp is not None:
            leg.remote_sdp = sdp
        leg.state = "early"
        self.stack.emit(LegRinging(leg.key, response.status, sdp, header_list(response)))

    def _answered(self, leg: Leg, out: OutgoingInvite, response: Response, flow: Flow, now: float) -> None:
        if response.to_tag != leg.dialog.remote_tag:
            leg.early = OPEN  # another fork: what was agreed on was with somebody else
        leg.dialog.establish(response)
        if flow.reliable:
            leg.flow = flow
        leg.answered_from(flow)
        leg.authorization = tuple(
            item
            for item in out.request.headers
            if canonical(item[0]) in ("authorization", "proxy-authorization")
        )
        leg.out = None
        self.core.stop(leg, "cancel")
        if out.cancel:
            # Section 9.1: the 200 crossed the CANCEL; the call exists now, so it is ended with BYE.
            self.core.ack(leg, out.cseq, None)
            self.core.begin_ending(leg, now)
            return
        sdp = sdp_of(response) if leg.early != CHANGED else None  # section 13.2.1: an old answer
        leg.remote_sdp = sdp if sdp is not None else leg.remote_sdp
        asked = SessionTimer(leg.wanted_expires_s, "local") if leg.wanted_expires_s is not None else None
        if out.holds_ack or (out.sdp is None and leg.local_sdp is None):
            leg.state, leg.ack_owed = "answered", out.cseq
        else:
            leg.state = "confirmed"
            self.core.ack(leg, out.cseq, None)
        self.core.arm_session(leg, negotiate_uac(response, asked), now)
        self.stack.emit(LegAnswered(leg.key, leg.remote_sdp, header_list(response)))

    def _answered_again(self, leg: Leg, response: Response, flow: Flow, now: float) -> None:
        if response.to_tag != leg.dialog.remote_tag:
            self.core.second_answer(leg, response, flow, now)
            return
        cseq = response.cseq[0]
        if leg.ack_owed != cseq and not self.core.ack_again(leg, cseq):
            self.stack.drop("answer-without-ack")

    def _refused(self, leg: Leg, out: OutgoingInvite, response: Response, now: float) -> None:
        self.core.stop(leg, "cancel")
        if not out.cancel and leg.state != "ending":
            if response.status in (401, 407) and self._authenticate(leg, out, response, now):
                return
            if response.status == 422 and self._longer_interval(leg, out, response, now):
                return
        leg.out = None
        if leg.state == "ending":
            self.core.finish(leg, LegEnded(leg.key, "local"), now)
            return
        event = LegFailed(leg.key, response.status, response.reason, header_list(response))
        self.core.finish(leg, event, now)

    def _authenticate(self, leg: Leg, out: OutgoingInvite, response: Response, now: float) -> bool:
        extra = self.core.credentials_for(leg, out.request, response)
        if extra is None or (out.authenticated and out.attempts > 2):
            return False
        out.authenticated = True
        self._again(leg, out, [extra], now)
        return True

    def _longer_interval(self, leg: Leg, out: OutgoingInvite, response: Response, now: float) -> bool:
        """RFC 4028 section 7.3: try again with the interval the 422 asks for, once."""
        asked = parse_delta(response.get("Min-SE"))
        if asked is None or asked > MIN_SE_MAX_S or leg.min_se_s is not None or leg.wanted_expires_s is None:
            return False
        leg.min_se_s = asked
        leg.wanted_expires_s = max(asked, leg.wanted_expires_s)
        self._again(leg, out, uac_headers(leg.wanted_expires_s, None, asked), now)
        return True

    def _again(self, leg: Leg, out: OutgoingInvite, extra: Sequence[tuple[str, str]], now: float) -> None:
        """The same call in a new transaction: Call-ID and From tag stay, CSeq is the next (section
        8.1.3.5)."""
        leg.dialog.remote_tag = ""
        leg.dialog.route_set = []
        leg.early = OPEN
        out.txn = self.core.resend(leg, out.txn, extra, now)
        out.request = out.txn.request
        out.attempts += 1
        out.provisional = False
        out.rseqs = {}
        leg.state = "calling"

    def hold_ack(self, key: str, holds: bool) -> None:
        """Whether the leg's owner says when its 2xx is acknowledged."""
        leg = self.core.legs[key]
        assert leg.out is not None
        leg.out.holds_ack = holds

    def acknowledge(self, leg: Leg) -> None:
        """The ACK of an answer to our offer that was held back."""
        if leg.ack_owed is None or leg.local_sdp is None or leg.state != "answered":
            return
        cseq, leg.ack_owed = leg.ack_owed, None
        leg.state = "confirmed"
        self.core.ack(leg, cseq, None)

    def ack(self, leg: Leg, sdp: str, now: float) -> None:
        """The owner's answer to an offer that came in a 2xx."""
        if leg.ack_owed is None:
            raise LocalError(f"leg {leg.key!r}: no ACK is owed")
        cseq, leg.ack_owed = leg.ack_owed, None
        leg.local_sdp = sdp
        leg.state = "confirmed"
        self.core.ack(leg, cseq, sdp)

    def cancel(self, leg: Leg, reason_header: str | None, now: float) -> None:
        """Give up a call that has no final response (section 9.1): CANCEL, but not before a response came."""
        out = leg.out
        assert out is not None
        if out.held:  # nobody has heard of it
            out.txn.end()
            leg.out = None
            self.core.end(leg, "local", now)
            return
        leg.state = "ending"
        leg.reason_header = reason_header
        if out.provisional:
            self._send_cancel(leg, out, now)
        else:
            out.cancel = "wanted"

    def _send_cancel(self, leg: Leg, out: OutgoingInvite, now: float) -> None:
        out.cancel = "sent"
        cancel = build_cancel(out.request, leg.reason_header)
        self.stack.open_client(cancel, out.txn.branch, out.txn.flow, "none", leg, now)
        if out.unheard and leg.dialog.remote_tag:
            # Section 15: BYE ends an early dialog, and one of which we do not know that it is confirmed.
            self.core.send(leg, "BYE", "none", now)
        self.core.start(leg, "cancel", now + 64 * self.stack.settings.t1_s)

    def cancel_unheard(self, leg: Leg, now: float) -> None:
        """No final response 64*T1 after the CANCEL (section 9.1): the INVITE counts as cancelled."""
        if leg.out is not None:
            leg.out.txn.end()
            leg.out = None
        self.core.end(leg, "local", now)

    def resume(self, leg: Leg, record: dict[str, object], request: Request, flow: Flow, now: float) -> None:
        """Go on with an INVITE or re-INVITE another process has sent."""
        data = str(record["request"]).encode("latin-1")
        txn = ClientTransaction(self.stack, str(record["branch"]), request, flow, str(record["purpose"]))
        self.stack.bind(txn, leg)
        self.stack.clients[txn.key] = txn
        sdp = record.get("sdp")
        out = OutgoingInvite(request, txn.purpose, None if sdp is None else str(sdp), txn)
        out.headers = plain(record.get("headers", ()))  # type: ignore[arg-type]
        out.provisional = bool(record.get("provisional"))
        out.cancel = str(record.get("cancel", ""))
        out.attempts = int(str(record.get("attempts", 1)))
        out.authenticated = bool(record.get("authenticated"))
        rseqs = record.get("rseqs") or {}
        out.rseqs = {str(tag): int(number) for tag, number in rseqs.items()}  # type: ignore[attr-defined]
        out.unheard = bool(record.get("unheard"))
        out.holds_ack = bool(record.get("holds_ack"))
        leg.out = out
        txn.resume(data, out.provisional, now)
        if out.cancel == "sent":
            self._send_cancel(leg, out, now)
