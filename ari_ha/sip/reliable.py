"""Reliable provisional responses (RFC 3262), as UAS and as UAC.

As UAS one response is under way at a time: the next waits until the last has its PRACK, and so
does a 2xx while an SDP in a provisional response is not acknowledged (section 3).
"""

from __future__ import annotations

from collections.abc import Sequence

from ari_ha.sip.core import Core
from ari_ha.sip.dialog import Dialog
from ari_ha.sip.early import ANSWERED, OPEN, Early
from ari_ha.sip.events import LegEnded
from ari_ha.sip.fields import Via, canonical
from ari_ha.sip.flow import Flow
from ari_ha.sip.leg import IncomingInvite, Leg, OutgoingInvite, Provisional, sdp_of
from ari_ha.sip.message import Request, Response

TAG = "100rel"
RSEQ_START_MAX = 2**31 - 1
"""Section 3: the first RSeq is chosen between 1 and this."""
WAITING_MAX_COUNT = 4
"""Provisional responses that wait for a PRACK; of further ones only the last is kept."""

HeaderFields = list[tuple[str, str]]


def wanted(request: Request) -> bool:
    """Whether an INVITE asks that provisional responses be reliable."""
    return TAG in {item.lower() for item in request.values("Require")}


class Reliable:
    """RSeq, RAck and PRACK of all legs."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.stack = core.stack
        self.early = Early(core)

    # as UAS

    def send(
        self,
        leg: Leg,
        inc: IncomingInvite,
        status: int,
        reason: str | None,
        fields: HeaderFields,
        body: bytes,
    ) -> None:
        """Send a provisional response until its PRACK comes, or let it wait for its turn."""
        last = leg.provisional
        if last is not None and not last.acknowledged:
            del last.waiting[WAITING_MAX_COUNT - 1 :]
            last.waiting.append((status, reason, fields, body))
            return
        rseq = last.rseq + 1 if last else 1 + int(self.stack.rand() * (RSEQ_START_MAX - 1))
        more = [("Require", TAG), ("RSeq", str(rseq))]
        now = self.stack.now
        inc.response = self.stack.reply(inc.txn, status, now, reason, [*fields, *more], body)
        leg.provisional = Provisional(rseq, inc.cseq, inc.response, bool(body), self.stack.settings.t1_s)
        self._arm(leg, leg.provisional, now)

    def _arm(self, leg: Leg, provisional: Provisional, now: float) -> None:
        self.core.start(leg, "reliable", now + provisional.interval_s)
        self.core.start(leg, "no-prack", now + 64 * self.stack.settings.t1_s)

    def resume(self, leg: Leg, now: float) -> None:
        """Go on sending what another process has sent."""
        if leg.provisional is not None and not leg.provisional.acknowledged:
            self._arm(leg, leg.provisional, now)

    def due(self, leg: Leg, now: float) -> None:
        """Send it again, the wait doubling (section 3)."""
        provisional = leg.provisional
        if provisional is None or provisional.acknowledged or leg.inc is None or leg.inc.accepted:
            return
        self.stack.count("retransmissions")
        self.stack.transmit(provisional.data, leg.inc.txn.flow)
        provisional.interval_s *= 2
        self.core.start(leg, "reliable", now + provisional.interval_s)

    def unheard(self, leg: Leg, now: float) -> None:
        """64*T1 without a PRACK: the INVITE is refused with a 5xx (section 3)."""
        if leg.inc is None or leg.inc.accepted:
            return
        self.stack.reply(leg.inc.txn, 504, now, "No PRACK")
        leg.inc = None
        self.core.finish(leg, LegEnded(leg.key, "no-prack"), now)

    def holds(self, leg: Leg) -> bool:
        """Whether a 2xx has to wait: an SDP in a provisional response is not acknowledged yet, or another
        offer not answered."""
        provisional = leg.provisional
        if leg.changing is not None:
            return True
        return provisional is not None and provisional.has_sdp and not provisional.acknowledged

    def on_prack(self, leg: Leg, request: Request, via: Via, flow: Flow, now: float) -> bool:
        """A PRACK; whether something that waited for it may go on."""
        txn = self.stack.open_server(request, via, flow)
        provisional = leg.provisional
        rack = request.get("RAck").split()
        expected = [str(provisional.rseq), str(provisional.cseq), "INVITE"] if provisional else []
        if provisional is None or provisional.acknowledged or rack != expected:
            self.stack.reply(txn, 481, now)
            return False
        provisional.acknowledged = True
        self.early.in_prack(leg, request, txn, now)
        self.core.stop(leg, "reliable", "no-prack")
        if provisional.waiting and leg.inc is not None and not leg.inc.accepted:
            status, reason, fields, body = provisional.waiting[0]
            rest = provisional.waiting[1:]
            self.send(leg, leg.inc, status, reason, fields, body)
            if leg.provisional is not None:
                leg.provisional.waiting = rest
        return True

    # as UAC

    def accepts(self, leg: Leg, out: OutgoingInvite, response: Response, now: float) -> bool:
        """Whether a provisional response counts. A reliable one gets its PRACK; one out of order is
        ignored until those before it have come again (section 4)."""
        if TAG not in {item.lower() for item in response.values("Require")} or not response.to_tag:
            return True
        text = response.get("RSeq").strip()
        if not (text.isascii() and text.isdigit()) or len(text) > 10:
            self.stack.drop("rseq")
            return False
        number, tag = int(text), response.to_tag
        last = out.rseqs.get(tag)
        if last is not None and number != last + 1:
            self.stack.drop("rseq-order")
            return False
        if last is None and len(out.rseqs) >= self.stack.settings.early_dialogs_max:
            self.stack.drop("early-dialogs-limit")
            return False
        out.rseqs[tag] = number
        if leg.early == OPEN and out.sdp is not None and sdp_of(response) is not None:
            leg.early = ANSWERED
        self._prack(leg, out, response, number, now)
        return True

    def _prack(self, leg: Leg, out: OutgoingInvite, response: Response, number: int, now: float) -> None:
        dialog = leg.dialog
        if not dialog.remote_tag:
            dialog.establish(response)
        if response.to_tag != dialog.remote_tag:  # another fork: a dialog of its own, for this request
            dialog = Dialog.from_dict(dialog.to_dict())
            dialog.establish(response)
        branch, flow = self.stack.new_branch(), self.core.way(leg)
        via = self.stack.via(flow, branch)
        request = dialog.build("PRACK", leg.dialog.next_cseq(), via, self.stack.settings.max_forwards)
        request.headers += _credentials(out.request)
        request.add("RAck", f"{number} {out.cseq} INVITE")
        request.add("User-Agent", self.stack.user_agent)
        self.stack.open_client(request, branch, flow, "none", leg, now)


def _credentials(request: Request) -> Sequence[tuple[str, str]]:
    return [
        item for item in request.headers if canonical(item[0]) in ("authorization", "proxy-authorization")
    ]
