"""Offers and answers before the final response: in reliable provisional responses and their PRACKs (RFC 3262
section 5), and in UPDATE (RFC 3311 section 5). RFC 6337 section 2 lists what may come where.

The INVITE's own offer comes first. Once it has its answer, reliably, the far side may make another one.
"""

from __future__ import annotations

from ari_ha.sip.core import Core, unacceptable_body
from ari_ha.sip.events import EarlyAnswer, ReinviteReceived
from ari_ha.sip.fields import Via
from ari_ha.sip.flow import Flow
from ari_ha.sip.leg import IncomingInvite, Leg, header_list, sdp_of
from ari_ha.sip.message import Request
from ari_ha.sip.transaction import ServerTransaction

OPEN, ANSWERED, CHANGED = "", "answered", "changed"
"""How far a leg is: no answer yet, the INVITE's offer has its own, another offer had one after it."""


class Early:
    """What the far side's PRACK or UPDATE says of media before the call is up."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.stack = core.stack

    def in_prack(self, leg: Leg, request: Request, txn: ServerTransaction, now: float) -> None:
        """A PRACK that is in order; it is answered here, or by the owner when it makes an offer."""
        inc, had_sdp = leg.inc, leg.provisional is not None and leg.provisional.has_sdp
        offered_by_us = leg.early == OPEN and inc is not None and inc.sdp is None
        sdp = sdp_of(request)
        if had_sdp and leg.early == OPEN and (sdp is not None or not offered_by_us):
            leg.early = ANSWERED
        if not request.body:
            self.stack.reply(txn, 200, now)
        elif had_sdp and offered_by_us and sdp is not None:
            leg.remote_sdp = sdp
            self.stack.reply(txn, 200, now)
            self.stack.emit(EarlyAnswer(leg.key, sdp))
        elif leg.early == OPEN:
            self.stack.reply(txn, 488, now)  # there is an offer without an answer: not its turn
        else:
            self.offered(leg, request, txn, now)

    def in_update(self, leg: Leg, request: Request, via: Via, flow: Flow, now: float) -> None:
        """An UPDATE with an offer, before the final response (RFC 3311 section 5.2)."""
        txn = self.stack.open_server(request, via, flow)
        if leg.early != OPEN and request.from_tag == leg.dialog.remote_tag:
            leg.dialog.refresh_target(request)
            self.offered(leg, request, txn, now)
        elif leg.role == "uac":
            self.stack.reply(txn, 491, now)
        else:
            self.stack.reply(txn, 500, now, None, [("Retry-After", "2")])

    def offered(self, leg: Leg, request: Request, txn: ServerTransaction, now: float) -> None:
        """The owner is asked, as for a re-INVITE."""
        self.stack.bind(txn, leg)
        if leg.changing is not None:
            wait = int(self.stack.rand() * self.stack.settings.reinvite_retry_s)
            self.stack.reply(txn, 500, now, None, [("Retry-After", str(wait))])
        elif unacceptable_body(request):
            self.stack.reply(txn, 415, now, None, [("Accept", "application/sdp")])
        else:
            leg.changing = IncomingInvite(request, txn, sdp_of(request), initial=False, told=True)
            txn.wait_for_owner(now)
            self.stack.emit(ReinviteReceived(leg.key, leg.changing.sdp, header_list(request)))
