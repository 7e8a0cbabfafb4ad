"""From bytes to the part of the engine they concern: request and response routing, timers, transport
errors."""

from __future__ import annotations

from dataclasses import replace

from ari_ha.sip.core import Core, cseq_of
from ari_ha.sip.events import (
    InDialogRequest,
    InfoReceived,
    LegEnded,
    RequestFailed,
    RequestReceived,
    ResponseReceived,
    StreamBroken,
)
from ari_ha.sip.fields import SipParseError, Via
from ari_ha.sip.flow import Flow, same_path
from ari_ha.sip.incoming import Incoming
from ari_ha.sip.leg import Leg, header_list
from ari_ha.sip.message import Request, Response, parse_message
from ari_ha.sip.modify import Modify
from ari_ha.sip.outgoing import Outgoing
from ari_ha.sip.proxy import Proxy
from ari_ha.sip.stack import KNOWN_METHODS
from ari_ha.sip.stream import StreamFramer
from ari_ha.sip.transaction import ClientTransaction, Transaction
from ari_ha.sip.uri import SCHEMES

FAILURES = {"timeout": (408, "Request Timeout"), "failed": (503, "Service Unavailable")}
"""What a timeout and a transport error stand for (section 8.1.3.1)."""
WITHIN_DIALOG = frozenset(("reinvite", "refresh", "bye", "info", "request"))
"""Purposes of requests that may go another way when nobody is where the dialog leads. A PRACK is not: its
response is sent again, and its own time is over with the request's."""
_SINGLE = ("call-id", "cseq", "from", "to", "max-forwards", "content-length", "content-type")
"""Fields that may be there once only (section 7.3.1): two of them mean two readers see two messages."""
IN_DIALOG_SHARE = 4
"""A fourth as many server transactions again as there may be at once, for requests within calls alone."""
_ONLY_IN_DIALOG = frozenset(("BYE", "UPDATE", "PRACK"))


PING = b"\r\n\r\n"
"""A keep-alive that is answered over a connection (RFC 5626 section 4.4.1; RFC 7118 section 6 leaves it to
WebSocket's own, but browsers' programs have no way to send those)."""


class Dispatch:
    """Routing of everything that comes in."""

    def __init__(self, core: Core, outgoing: Outgoing, incoming: Incoming, modify: Modify) -> None:
        self.core = core
        self.stack = core.stack
        self.proxy = Proxy(core.stack)
        self.outgoing = outgoing
        self.incoming = incoming
        self.modify = modify
        self.streams: dict[tuple[str, str], StreamFramer] = {}
        self.framed: set[tuple[str, str]] = set()
        """Connections that frame by themselves, and were heard"""

    # bytes

    def receive(self, data: bytes, flow: Flow, now: float) -> None:
        """One message. Whatever is in it, nothing is raised."""
        if flow.conn and flow.framed:
            self.framed.add((flow.listener, flow.conn))
        if not data.strip(b"\r\n\0 "):
            self.stack.count("keep-alives")
            if flow.reliable and data == PING:
                self.stack.transmit(b"\r\n", flow)
            return
        try:
            message = parse_message(data)
        except SipParseError as error:
            self._refuse_malformed(error, flow)
            return
        if isinstance(message, Request):
            method = message.method if message.method in KNOWN_METHODS else "other"
            self.stack.count(f"in.{method}")
            try:
                if not self.proxy.takes(message, flow):
                    self.on_request(message, flow, now)
            except SipParseError as error:
                error.request = message
                self._refuse_malformed(error, flow)
        else:
            self.stack.count(f"in.{message.status // 100}xx")
            try:
                if not self.proxy.takes(message, flow):
                    self.on_response(message, flow, now)
            except SipParseError as error:
                self.stack.drop(error.reason)

    def _refuse_malformed(self, error: SipParseError, flow: Flow) -> None:
        """Answer what can be answered (section 21.4.1), drop the rest; the reason is counted either way."""
        self.stack.drop(error.reason)
        request = error.request
        if request is None or error.status is None or request.method == "ACK":
            return
        try:
            via = request.top_via
        except SipParseError:
            return
        if all(map(request.get, ("From", "To", "Call-ID", "CSeq"))):
            self.stack.reply_statelessly(request, via, flow, error.status, (), self._phrase(error))

    @staticmethod
    def _phrase(error: SipParseError) -> str | None:
        return f"Bad Request ({error.reason})" if error.status == 400 else None

    def receive_stream(self, data: bytes, flow: Flow, now: float) -> None:
        """Bytes of a TCP connection."""
        key = (flow.listener, flow.conn or f"{flow.host}:{flow.port}")
        framer = self.streams.get(key)
        if framer is None:
            if len(self.streams) >= self.stack.settings.streams_max:
                self.stack.drop("streams-limit")
                self.stack.emit(StreamBroken(flow, "streams-limit"))
                return
            framer = self.streams[key] = StreamFramer()
        broken = framer.broken
        for message in framer.feed(data):
            self.receive(message, flow, now)
        for _ in range(framer.take_pings()):
            self.stack.count("keep-alives")
            self.stack.transmit(b"\r\n", flow)
        if framer.broken is not None and broken is None:
            self.stack.drop(framer.broken)
            self.stack.emit(StreamBroken(flow, framer.broken))

    def stream_closed(self, flow: Flow, now: float) -> None:
        """A connection is gone: requests on it nobody has reacted to yet have failed. Answers to others may
        still come over a connection the far side opens (section 18.2.2)."""
        self.streams.pop((flow.listener, flow.conn or f"{flow.host}:{flow.port}"), None)
        self.framed.discard((flow.listener, flow.conn))
        for leg in self.core.legs.values():
            if flow.conn and leg.flow.conn == flow.conn:
                leg.flow = replace(flow, conn="")
        for txn in list(self.stack.clients.values()):
            if txn.state in ("calling", "trying") and same_path(txn.flow, flow):
                self._client_verdict(txn, txn.step("error", now), None, txn.flow, now, "connection closed")

    def transport_error(self, flow: Flow, reason: str, now: float) -> None:
        """Nothing gets through to a flow: its client transactions fail as with a 503 (section 8.1.3.1)."""
        self.stack.count("transport-errors")
        for txn in list(self.stack.clients.values()):
            if same_path(txn.flow, flow):
                self._client_verdict(txn, txn.step("error", now), None, txn.flow, now, reason)

    # requests

    def on_request(self, request: Request, flow: Flow, now: float) -> None:
        """A request: of a known transaction, of a dialog, or new."""
        via = request.top_via
        number, method = request.cseq
        if method != request.method:
            raise SipParseError("cseq-method", 400)
        if not request.call_id or not request.get("From") or not request.get("To"):
            raise SipParseError("mandatory-header", 400)
        if request.repeated(_SINGLE):
            raise SipParseError("repeated-header", 400)
        key = self.stack.server_key(request, via, "INVITE" if method == "ACK" else method)
        txn = self.stack.servers.get(key)
        if method == "ACK":
            if txn is None or txn.step("ack", now) == "pass":
                self._on_ack(request, flow, now)
            return
        if txn is not None:
            self.stack.count("in.retransmissions")
            txn.step("request", now)
            return
        if method == "CANCEL":
            self.incoming.on_cancel(request, via, flow, now)
            return
        if self._refused(request, via, flow):
            return
        if request.to_tag:
            self._in_dialog(request, number, via, flow, now)
        elif method == "INVITE":
            self.incoming.on_invite(request, via, flow, now)
        elif method in _ONLY_IN_DIALOG:
            self.stack.reply_statelessly(request, via, flow, 481)
        else:
            self._for_owner(request, via, flow, None, now)

    def _refused(self, request: Request, via: Via, flow: Flow) -> bool:
        """The checks of section 8.2 and 16.3 that end in a refusal."""
        stack = self.stack
        if request.method not in stack.allow:
            stack.reply_statelessly(request, via, flow, 405, [("Allow", stack.allow_value)])
        elif request.uri.partition(":")[0].lower() not in SCHEMES:
            stack.reply_statelessly(request, via, flow, 416)
        elif bad := self.core.unsupported(request):
            stack.reply_statelessly(request, via, flow, 420, [("Unsupported", ", ".join(bad))])
        elif request.method != "INVITE" and request.has("Replaces"):
            stack.reply_statelessly(request, via, flow, 400)  # RFC 3891 section 3
        elif len(stack.servers) >= self._transactions_max(request):
            stack.reply_statelessly(request, via, flow, 503, [("Retry-After", "5")])
        elif not request.to_tag and not self._may_hop(request):
            stack.reply_statelessly(request, via, flow, 483)
        else:
            return False
        return True

    def _transactions_max(self, request: Request) -> int:
        """Whoever fills the table with calls that are none must not keep those there are from being ended."""
        most = self.stack.settings.transactions_max
        return most + most // IN_DIALOG_SHARE if request.to_tag and self._leg_of(request) else most

    @staticmethod
    def _may_hop(request: Request) -> bool:
        """Max-Forwards above 0 (section 16.3 step 3: we may send the call on, so a loop must end here)."""
        value = request.get("Max-Forwards", "70").strip()
        if not (value.isascii() and value.isdigit()) or len(value) > 10:
            raise SipParseError("max-forwards", 400)
        return int(value) > 0

    def _leg_of(self, request: Request) -> Leg | None:
        """The leg a request with a To tag belongs to (section 12.2.2)."""
        leg = self.core.dialogs.get((request.call_id, request.to_tag))
        if leg is None:
            return None
        remote = leg.dialog.remote_tag
        if remote == request.from_tag or (leg.role == "uac" and leg.state in ("calling", "early")):
            return leg
        return None

    def _on_ack(self, request: Request, flow: Flow, now: float) -> None:
        leg = self._leg_of(request)
        if leg is None:
            self.stack.drop("ack-unmatched")
            return
        if self.incoming.on_ack(leg, request, flow, now) and leg.waiting is not None:
            self.core.start(leg, "reinvite", now)

    def _in_dialog(self, request: Request, number: int, via: Via, flow: Flow, now: float) -> None:
        """A request within a dialog (section 12.2.2)."""
        stack, method = self.stack, request.method
        leg = self._leg_of(request)
        if leg is None:
            if method in stack.settings.owner_dialog_methods:
                self._for_owner(request, via, flow, None, now)
            else:
                stack.reply_statelessly(request, via, flow, 481)
            return
        if not leg.dialog.accepts(number):
            stack.reply_statelessly(request, via, flow, 500, [("Retry-After", "0")], "CSeq out of order")
            return
        leg.flow = flow
        if method == "BYE":
            self._on_bye(leg, request, via, flow, now)
        elif leg.state == "ending":
            stack.reply_statelessly(request, via, flow, 481)
        elif method == "INVITE":
            self.modify.on_reinvite(leg, request, via, flow, now)
        elif method == "PRACK":
            self.incoming.on_prack(leg, request, via, flow, now)
        elif method == "UPDATE":
            self.modify.on_update(leg, request, via, flow, now)
        elif method == "INFO":
            stack.reply(stack.open_server(request, via, flow), 200, now)
            kind = request.get("Content-Type")
            stack.emit(InfoReceived(leg.key, kind, request.body, header_list(request)))
        elif method == "OPTIONS":
            stack.reply(stack.open_server(request, via, flow), 200, now, None, stack.capabilities())
        else:
            leg.dialog.refresh_target(request)
            self._for_owner(request, via, flow, leg, now)

    def _on_bye(self, leg: Leg, request: Request, via: Via, flow: Flow, now: float) -> None:
        """BYE (section 15.1.2); an INVITE still open gets 487 as the leg is finished."""
        txn = self.stack.open_server(request, via, flow)
        cause = "local" if leg.state == "ending" else "bye"
        if cause == "bye" and self.stack.settings.owner_answers_bye:
            txn.id = self.stack.new_id()
            self.stack.waiting[txn.id] = txn
            txn.wait_for_owner(now)
        else:
            self.stack.reply(txn, 200, now)
        self.core.finish(leg, LegEnded(leg.key, cause, request.get("Reason") or None, txn.id), now)

    def _for_owner(self, request: Request, via: Via, flow: Flow, leg: Leg | None, now: float) -> None:
        """A request the owner answers with `respond`."""
        txn = self.stack.open_server(request, via, flow)
        txn.id = self.stack.new_id()
        self.stack.waiting[txn.id] = txn
        txn.wait_for_owner(now)
        if leg is None:
            self.stack.emit(RequestReceived(txn.id, request, flow))
        else:
            self.stack.bind(txn, leg)
            self.stack.emit(InDialogRequest(leg.key, txn.id, request))

    # responses

    def on_response(self, response: Response, flow: Flow, now: float) -> None:
        """A response: of a known transaction, or a 2xx somebody has to answer for."""
        if len(response.values("Via")) != 1:
            self.stack.drop("via-count")  # section 8.1.3.3
            return
        via = response.top_via
        number, method = response.cseq
        txn = self.stack.clients.get((via.branch, method))
        if txn is None:
            self._unmatched(response, via, number, method, flow, now)
            return
        if response.call_id != txn.request.call_id or number != txn.request.cseq[0]:
            self.stack.drop("response-mismatch")
            return
        self._client_verdict(txn, txn.receive(response, now), response, flow, now)

    def _unmatched(
        self, response: Response, via: Via, number: int, method: str, flow: Flow, now: float
    ) -> None:
        """No transaction: after a restart, a leg may still know it; a 2xx to an INVITE is never left
        alone."""
        if method != "INVITE" or not self.stack.is_ours(via) or flow.listener not in self.stack.listeners:
            self.stack.drop("response-unmatched")
            return
        leg = self.core.dialogs.get((response.call_id, response.from_tag))
        if leg is None or (leg.role != "uac" and response.to_tag != leg.dialog.remote_tag):
            if 200 <= response.status < 300:
                self.core.stray_answer(response, flow, now)
            else:
                self.stack.drop("response-unmatched")
            return
        if leg.out is not None and leg.out.cseq == number and response.status < 300:
            self._client_verdict(leg.out.txn, leg.out.txn.receive(response, now), response, flow, now)
        elif not 200 <= response.status < 300:
            self.stack.drop("response-unmatched")
        elif response.to_tag == leg.dialog.remote_tag:
            self._answer_without_transaction(leg, number, now)
        else:
            self.core.second_answer(leg, response, flow, now)

    def _answer_without_transaction(self, leg: Leg, number: int, now: float) -> None:
        """A 2xx within a dialog whose ACK got lost with another process, or which came when nobody waited
        for it any more: the far side sends it until it is acknowledged."""
        if leg.ack_owed == number or self.core.ack_again(leg, number):
            return
        if leg.state in ("confirmed", "ending") and number <= leg.dialog.local_cseq:
            self.core.ack_late(leg, number, now)
        else:
            self.stack.drop("answer-without-ack")

    def _client_verdict(
        self,
        txn: ClientTransaction,
        verdict: str,
        response: Response | None,
        flow: Flow,
        now: float,
        why: str = "",
    ) -> None:
        """Tell the user of a client transaction; failures are told as the responses they stand for."""
        if not verdict:
            return
        leg, purpose = txn.leg, txn.purpose
        if verdict in FAILURES:
            within = leg is not None and purpose in WITHIN_DIALOG and self.core.alive(leg)
            if within and self.core.sent_elsewhere(leg, txn, now):
                return
            status, reason = FAILURES[verdict]
            response = Response(status, why or reason)
        if response is None:
            return
        if purpose == "outside":
            self._outside(txn, verdict, response)
        elif purpose == "none":
            return
        elif leg is None or not self.core.alive(leg):
            self._leg_gone(txn, response, flow, now)
        elif purpose == "invite":
            self.outgoing.on_response(leg, txn, response, flow, now)
        elif purpose in ("reinvite", "refresh"):
            self.modify.on_response(leg, txn, response, flow, now)
        elif response.status >= 200:
            self._in_dialog_response(leg, txn, verdict, response, now)

    def _leg_gone(self, txn: ClientTransaction, response: Response, flow: Flow, now: float) -> None:
        if 200 <= response.status < 300 and txn.purpose == "invite" and cseq_of(response)[0]:
            self.core.stray_answer(response, flow, now)
        else:
            self.stack.count("response-leg-gone")

    def _outside(self, txn: ClientTransaction, verdict: str, response: Response) -> None:
        if verdict in FAILURES:
            self.stack.emit(
                RequestFailed(txn.owner_key, "timeout" if verdict == "timeout" else response.reason)
            )
        elif response.status >= 200:
            self.stack.emit(
                ResponseReceived(
                    txn.owner_key, response.status, response.reason, header_list(response), response.body
                )
            )

    def _in_dialog_response(
        self, leg: Leg, txn: ClientTransaction, verdict: str, response: Response, now: float
    ) -> None:
        """A final response to BYE, INFO or the owner's own request."""
        status, method = response.status, txn.request.method
        if status in (401, 407) and self.core.send_again(leg, txn, response, now) is not None:
            return
        if txn.purpose == "bye":
            self.core.end(leg, "local", now)
            return
        if txn.purpose == "request":
            if verdict in FAILURES:
                reason = "timeout" if verdict == "timeout" else response.reason
                self.stack.emit(RequestFailed(leg.key, reason))
            else:
                headers = header_list(response)
                self.stack.emit(ResponseReceived(leg.key, status, response.reason, headers, response.body))
        elif status >= 300:
            self.stack.count("info-refused")
        if leg.state == "ending":
            return
        if status == 481 and method not in self.stack.settings.usage_methods:
            self.core.end(leg, "gone", now)
        elif status == 408 and method in self.stack.settings.timeout_ends_methods:
            self.core.bye_and_end(leg, "gone", now)

    # timers

    def on_timer(self, name: object, now: float) -> None:
        """A name of the timer queue is due."""
        if not isinstance(name, tuple):
            return
        if isinstance(name[0], Transaction):
            self._transaction_timer(name[0], str(name[1]), now)
        elif len(name) == 3:
            self.core.strays.pop((str(name[1]), str(name[2])), None)
        else:
            leg = self.core.legs.get(str(name[0]))
            if leg is not None:
                self._leg_timer(leg, str(name[1]), now)

    def _transaction_timer(self, txn: Transaction, letter: str, now: float) -> None:
        verdict = txn.step(f"timer {letter}", now)
        if isinstance(txn, ClientTransaction):
            self._client_verdict(txn, verdict, None, txn.flow, now)
        elif verdict == "unanswered":
            self.stack.count("requests-unanswered")
            leg = txn.leg
            if leg is not None and leg.inc is not None and leg.inc.txn is txn:
                leg.inc = None
            elif leg is not None and leg.changing is not None and leg.changing.txn is txn:
                leg.changing = None
                self.incoming.go_on(leg, now)

    def _leg_timer(self, leg: Leg, name: str, now: float) -> None:
        if name == "answer":
            self.core.answer_again(leg, now)
        elif name == "no-ack":
            self.incoming.no_ack(leg, now)
        elif name == "cancel":
            self.outgoing.cancel_unheard(leg, now)
        elif name == "expires":
            self.incoming.expired(leg, now)
        elif name == "remind":
            self.incoming.remind(leg, now)
        elif name == "reliable":
            self.incoming.reliable.due(leg, now)
        elif name == "no-prack":
            self.incoming.reliable.unheard(leg, now)
        elif name == "session":
            self.modify.session_due(leg, now)
        elif name == "session-end":
            self.core.bye_and_end(leg, "session-expired", now)
        elif name == "reinvite":
            self.modify.waited(leg, now)
        elif name == "change":
            self.modify.unanswered(leg, now)
        elif name == "trying":
            self.modify.trying(leg, now)
