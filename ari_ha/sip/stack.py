"""The layer below legs: transactions by their keys, Via and response building, the queues in and out."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from ari_ha.sip.dialog import Dialog
from ari_ha.sip.events import LocalError, SipEvent
from ari_ha.sip.fields import Via, split_values
from ari_ha.sip.flow import Flow, Listener
from ari_ha.sip.message import Request, Response
from ari_ha.sip.nexthop import Resolve, ways
from ari_ha.sip.reasons import REASONS
from ari_ha.sip.settings import EndpointSettings
from ari_ha.sip.timers import TimerQueue
from ari_ha.sip.transaction import COOKIE, ClientTransaction, ServerTransaction, Transaction

HeaderFields = Sequence[tuple[str, str]]
ServerKey = tuple[str, ...]


class Stack:
    """Transactions, timers, counters and the two output queues of one endpoint."""

    def __init__(
        self,
        listeners: Mapping[str, Listener],
        new_id: Callable[[], str],
        rand: Callable[[], float],
        user_agent: str,
        allow: Sequence[str],
        settings: EndpointSettings,
        resolve: Resolve = lambda hop: (),
        inner_hosts: Container[str] = (),
    ) -> None:
        self.listeners = dict(listeners)
        self.new_id = new_id
        self.rand = rand
        self.user_agent = user_agent
        self.allow = tuple(allow)
        self.allow_value = ", ".join(allow)
        self.supported_value = ", ".join(settings.extensions)
        self.settings = settings
        self.resolve = resolve
        self.inner_hosts = inner_hosts
        self.timers = TimerQueue()
        self.counters: dict[str, int] = {}
        self.clients: dict[tuple[str, str], ClientTransaction] = {}
        self.servers: dict[ServerKey, ServerTransaction] = {}
        self.waiting: dict[str, ServerTransaction] = {}
        """Server transactions the owner has to answer, by the id it was given."""
        self.now = 0.0
        """The last time we were told."""
        self._events: list[SipEvent] = []
        self._out: list[tuple[bytes, Flow]] = []
        self._ours = {f"{item.host.lower()}:{item.port}" for item in self.listeners.values()}

    # queues

    def emit(self, event: SipEvent) -> None:
        """Tell the owner."""
        self._events.append(event)

    def transmit(self, data: bytes, flow: Flow) -> None:
        """Send bytes."""
        self._out.append((data, flow))

    def count(self, name: str) -> None:
        """Count something; names are from a closed set."""
        self.counters[name] = self.counters.get(name, 0) + 1

    def drop(self, reason: str) -> None:
        """Count a message that led to nothing."""
        self.count(f"drop.{reason}")

    def drain_events(self) -> list[SipEvent]:
        """The events since the last call."""
        events, self._events = self._events, []
        return events

    def drain_output(self) -> list[tuple[bytes, Flow]]:
        """The bytes to send since the last call."""
        out, self._out = self._out, []
        return out

    # what we say of ourselves

    def new_branch(self) -> str:
        """A branch nobody else has (section 8.1.1.7)."""
        return COOKIE + self.new_id()

    def listener(self, flow: Flow) -> Listener:
        """Our end of a flow."""
        found = self.listeners.get(flow.listener)
        if found is None:
            raise LocalError(f"no listener {flow.listener!r}")
        return found

    def via(self, flow: Flow, branch: str) -> str:
        """Our Via for a request on a flow; rport is asked for (RFC 3581 section 3)."""
        own = self.listener(flow)
        return f"SIP/2.0/{flow.transport.upper()} {own.host}:{own.port};branch={branch};rport"

    def contact(self, flow: Flow, user: str) -> str:
        """Our Contact on a flow."""
        own = self.listener(flow)
        named = "ws" if flow.transport == "wss" else flow.transport  # RFC 7118 section 5.3
        transport = "" if named == "udp" else f";transport={named}"
        return f"<sip:{user}{'@' if user else ''}{own.host}:{own.port}{transport}>"

    def ways(self, dialog: Dialog, heard: Flow, resolve: Resolve | None = None) -> list[Flow]:
        """The ways a dialog names, as of `nexthop.ways`."""
        return ways(dialog, heard, self.listeners, resolve or self.resolve, self.inner_hosts)

    def is_ours(self, via: Via) -> bool:
        """Whether a sent-by is one of our addresses (section 18.1.2)."""
        return via.sent_by in self._ours

    def capabilities(self) -> list[tuple[str, str]]:
        """Allow, Supported and User-Agent."""
        fields = [("Allow", self.allow_value)]
        if self.supported_value:
            fields.append(("Supported", self.supported_value))
        fields.append(("User-Agent", self.user_agent))
        return fields

    # client transactions

    def open_client(
        self,
        request: Request,
        branch: str,
        flow: Flow,
        purpose: str,
        leg: Any,
        now: float,
        owner_key: str = "",
        held: bool = False,
    ) -> ClientTransaction:
        """Send a request in a new client transaction; a ``held`` one when it is opened."""
        txn = ClientTransaction(self, branch, request, flow, purpose)
        txn.owner_key = owner_key
        self.bind(txn, leg)
        self.clients[txn.key] = txn
        self.count(f"out.{request.method}" if request.method in KNOWN_METHODS else "out.other")
        txn.data = request.serialise()
        if not held:
            txn.open(txn.data, now)
        return txn

    def send_ack(self, request: Request, flow: Flow) -> bytes:
        """Send the ACK of a 2xx; it has no transaction of its own (section 13.2.2.4)."""
        data = request.serialise()
        self.count("out.ACK")
        self.transmit(data, flow)
        return data

    # server transactions

    def server_key(self, request: Request, via: Via, method: str) -> ServerKey:
        """Section 17.2.3; without the cookie, what RFC 2543 compared."""
        branch = via.branch
        if branch.startswith(COOKIE) and len(branch) > len(COOKIE):
            return (branch, via.sent_by, method)
        number = request.get("CSeq").partition(" ")[0]
        return (branch, via.sent_by, method, request.call_id, request.from_tag, number, request.uri)

    def open_server(self, request: Request, via: Via, flow: Flow) -> ServerTransaction:
        """A new server transaction for a request that matches none."""
        key = self.server_key(request, via, request.method)
        txn = ServerTransaction(
            self, key, request, self.reply_flow(via, flow), self.reply_vias(request, via, flow)
        )
        self.servers[key] = txn
        return txn

    def reply_flow(self, via: Via, flow: Flow) -> Flow:
        """Where responses go: the source (RFC 3581 section 4), or the sent-by port (section 18.2.2)."""
        if flow.reliable or self.settings.symmetric_responses or "rport" in via.params:
            return flow
        return Flow(flow.listener, flow.transport, flow.host, via.port or 5060, flow.conn)

    def reply_vias(self, request: Request, via: Via, flow: Flow) -> list[str]:
        """The request's Vias with received and rport filled in on the top one (RFC 3581 section 4)."""
        fields = request.get_all("Via")
        if "rport" in via.params:
            via.params["rport"] = str(flow.port)
            via.params["received"] = flow.host
        elif via.host.strip("[]") != flow.host:
            via.params["received"] = flow.host
        rest = split_values(fields[0])[1:]
        return [", ".join([str(via), *rest]), *fields[1:]]

    def bind(self, txn: Transaction, leg: Any) -> None:
        """Note whose transaction this is."""
        txn.leg = leg
        if leg is not None:
            leg.txns.add(txn)

    def retire(self, txn: Transaction) -> None:
        """Drop a terminated transaction."""
        if txn.leg is not None:
            txn.leg.txns.discard(txn)
        if isinstance(txn, ClientTransaction):
            if self.clients.get(txn.key) is txn:
                del self.clients[txn.key]
        elif isinstance(txn, ServerTransaction):
            if self.servers.get(txn.key) is txn:
                del self.servers[txn.key]
            if txn.id:
                self.waiting.pop(txn.id, None)

    # responses

    def response(
        self,
        request: Request,
        vias: Sequence[str],
        status: int,
        to_tag: str,
        reason: str | None = None,
        headers: HeaderFields = (),
        body: bytes = b"",
        content_type: str | None = None,
    ) -> Response:
        """A response to a request (section 8.2.6.2)."""
        fields: list[tuple[str, str]] = [("Via", value) for value in vias]
        to = request.get("To")
        if to_tag and status > 100 and not request.to_tag:
            to = f"{to};tag={to_tag}"
        fields += [("From", request.get("From")), ("To", to)]
        fields += [("Call-ID", request.call_id), ("CSeq", request.get("CSeq"))]
        if status == 100 and request.has("Timestamp"):
            fields.append(("Timestamp", request.get("Timestamp")))
        fields += headers
        if body or content_type:
            fields.append(("Content-Type", content_type or "application/sdp"))
        return Response(status, REASONS.get(status, "Unknown") if reason is None else reason, fields, body)

    def reply(
        self,
        txn: ServerTransaction,
        status: int,
        now: float,
        reason: str | None = None,
        headers: HeaderFields = (),
        body: bytes = b"",
        content_type: str | None = None,
    ) -> bytes:
        """Answer in a server transaction; returns the bytes."""
        if not txn.local_tag and status > 100:
            txn.local_tag = self.new_id()
        response = self.response(
            txn.request, txn.vias, status, txn.local_tag, reason, headers, body, content_type
        )
        data = response.serialise()
        self.count(f"out.{status // 100}xx")
        txn.reply(status, data, now)
        if status >= 200 and txn.id:
            self.waiting.pop(txn.id, None)
        return data

    def reply_statelessly(
        self,
        request: Request,
        via: Via,
        flow: Flow,
        status: int,
        headers: HeaderFields = (),
        reason: str | None = None,
    ) -> None:
        """Refuse a request without keeping anything (section 8.2.7); the tag is the same for a
        retransmission."""
        self.count(f"refused.{status}")
        if request.method == "ACK":
            return
        seed = f"{request.call_id}|{request.from_tag}|{request.get('CSeq')}|{via.branch}"
        tag = f"{zlib.crc32(seed.encode('utf-8', 'replace')):08x}"
        target = self.reply_flow(via, flow)
        vias = self.reply_vias(request, via, flow)
        response = self.response(request, vias, status, tag, reason, headers)
        self.count(f"out.{status // 100}xx")
        self.transmit(response.serialise(), target)


KNOWN_METHODS = frozenset(
    [
        "INVITE",
        "ACK",
        "BYE",
        "CANCEL",
        "OPTIONS",
        "REGISTER",
        "INFO",
        "UPDATE",
        "PRACK",
        "SUBSCRIBE",
        "NOTIFY",
        "REFER",
        "MESSAGE",
        "PUBLISH",
    ]
)
"""Methods counted by name; others are counted together, so that no peer can make the table grow."""
