"""`Endpoint`: a sans-IO SIP user agent core that manages transactions and legs.

Theory of operation. Bytes come in by `receive` or `receive_stream`, time by `handle_timer`; what is to be
sent is
drained by `output`, what the owner should know by `events`, and `deadline` says when `handle_timer` wants to
be
called. Nothing that comes from the network raises. A command that crosses a leg's final event (the leg is
gone,
the owner has not read so yet) does nothing and is counted; a command a leg's state forbids raises
`LocalError`.

The engine answers by itself what needs no decision: 100 to INVITE, 200 to BYE, CANCEL, INFO and OPTIONS
within a
dialog, ACKs, session refreshes that change nothing, challenges to us, and everything malformed or out of
place.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

from ari_ha.sip.auth import Credentials
from ari_ha.sip.core import Core, owner_headers
from ari_ha.sip.dialog import Dialog, without_tag
from ari_ha.sip.dispatch import Dispatch
from ari_ha.sip.events import LocalError, SipEvent
from ari_ha.sip.fields import canonical
from ari_ha.sip.flow import Flow, Listener, same_path
from ari_ha.sip.handover import Handover
from ari_ha.sip.incoming import Incoming
from ari_ha.sip.leg import Leg, export_record
from ari_ha.sip.message import Request
from ari_ha.sip.modify import Modify
from ari_ha.sip.nexthop import ROUTE, SOURCE, Hop, Resolve, hop_of
from ari_ha.sip.outgoing import INITIAL_ROUTE, Outgoing
from ari_ha.sip.settings import DEFAULT_ALLOW, EndpointSettings
from ari_ha.sip.stack import Stack

Headers = Sequence[tuple[str, str]]


class Endpoint:
    """A user agent for any number of calls on any number of listeners."""

    def __init__(
        self,
        listeners: Mapping[str, Listener],
        new_id: Callable[[], str],
        *,
        rand: Callable[[], float] = lambda: 0.5,
        user_agent: str = "ari-ha",
        allow: Sequence[str] = DEFAULT_ALLOW,
        settings: EndpointSettings = EndpointSettings(),
        resolve: Resolve = lambda hop: (),
        inner_hosts: Container[str] = (),
    ) -> None:
        """`new_id` yields unique tokens (for tags, branches, Call-IDs and leg keys), `rand` numbers in [0,
        1), `resolve` says what is known of a name in a route set or a Contact, and has it asked for; no
        route set or Contact of the outside leads to `inner_hosts`."""
        self._stack = Stack(listeners, new_id, rand, user_agent, allow, settings, resolve, inner_hosts)
        self._core = Core(self._stack)
        self._outgoing = Outgoing(self._core)
        self._incoming = Incoming(self._core)
        self._modify = Modify(self._core)
        self._dispatch = Dispatch(self._core, self._outgoing, self._incoming, self._modify)
        self._handover = Handover(self._core, self._outgoing)
        self.proxy = self._dispatch.proxy
        """What is not for us, and is passed on"""

    # the world

    @property
    def counters(self) -> dict[str, int]:
        """`in.<method>`, `in.<n>xx`, `out.…`, `drop.<reason>`, `refused.<status>`, `retransmissions` and
        others."""
        return self._stack.counters

    def receive(self, data: bytes, flow: Flow, now: float) -> None:
        """One datagram."""
        self._stack.now = now
        self._dispatch.receive(data, flow, now)

    def receive_stream(self, data: bytes, flow: Flow, now: float) -> None:
        """Bytes of a TCP connection."""
        self._stack.now = now
        self._dispatch.receive_stream(data, flow, now)

    def stream_closed(self, flow: Flow, now: float) -> None:
        """A TCP connection is gone."""
        self._stack.now = now
        self._dispatch.stream_closed(flow, now)

    def connected(self, flow: Flow) -> bool:
        """Whether its connection was heard, and is not closed."""
        key = (flow.listener, flow.conn)
        return key in self._dispatch.streams or key in self._dispatch.framed

    def transport_error(self, flow: Flow, reason: str, now: float) -> None:
        """What was sent to a flow was refused, or could not be sent."""
        self._stack.now = now
        self._dispatch.transport_error(flow, reason, now)

    def deadline(self) -> float | None:
        """When `handle_timer` is to be called next."""
        return self._stack.timers.deadline()

    def handle_timer(self, now: float) -> None:
        """Do what is due."""
        self._stack.now = now
        while (name := self._stack.timers.pop_due(now)) is not None:
            self._dispatch.on_timer(name, now)

    def events(self) -> list[SipEvent]:
        """What happened since the last call, in order."""
        return self._stack.drain_events()

    def output(self) -> list[tuple[bytes, Flow]]:
        """What is to be sent since the last call, in order."""
        return self._stack.drain_output()

    def has_listener(self, name: str) -> bool:
        """Whether flows of that listener can be used."""
        return name in self._stack.listeners

    def contact(self, flow: Flow, user: str = "") -> str:
        """Our Contact for somebody reached by this flow."""
        return self._stack.contact(flow, user)

    # calls

    def invite(
        self,
        leg: str,
        *,
        flow: Flow,
        target: str,
        from_: str,
        to: str,
        sdp: str | None,
        headers: Headers = (),
        credentials: Credentials | None = None,
        session_expires: int | None = None,
        contact_user: str = "",
        next_hop: str = SOURCE,
        holds_ack: bool = False,
        held: bool = False,
        now: float,
    ) -> None:
        """Call `target` through `flow`. Ends in LegAnswered or LegFailed; a Max-Forwards, Contact, Allow,
        Supported, User-Agent or Route among `headers` takes the place of the engine's own. `next_hop`: as
        of `set_next_hop`. With `holds_ack` the 2xx is acknowledged by `acknowledge`: until then the far
        side sends it again, to whoever has taken the leg over. With `held` the INVITE itself is sent by
        `release`: whoever has taken the leg over before sends the same, and nobody is rung twice."""
        self._stack.now = now
        self._outgoing.invite(
            leg, flow, target, from_, to, sdp, headers, credentials, session_expires, contact_user, next_hop,
            held, now,
        )  # fmt: skip
        self._outgoing.hold_ack(leg, holds_ack)

    def release(self, leg: str, now: float) -> None:
        """The INVITE that `invite` was told to hold back; nothing when it was sent, or the leg is gone."""
        self._stack.now = now
        found = self._core.owned(leg)
        if found is not None:
            self._outgoing.release(found, now)

    def acknowledge(self, leg: str, now: float) -> None:
        """The ACK that `invite` was told to hold back; nothing when none is owed."""
        self._stack.now = now
        found = self._core.owned(leg)
        if found is not None:
            self._outgoing.acknowledge(found)

    def set_next_hop(self, leg: str, rule: str) -> None:
        """Where our requests in the leg's dialog go from now on: `nexthop.ROUTE`, where its route set or
        remote target leads (section 12.2.1.1), or `nexthop.SOURCE`, where its far side was last heard."""
        found = self._core.legs.get(leg)
        if found is not None:
            found.next_hop = rule
            self._core.ways(found)  # a name in it is asked for at once

    def named_hops(self) -> set[Hop]:
        """The hops of legs that go by their dialogs."""
        hops = [hop_of(leg.dialog, leg.flow) for leg in self._core.legs.values() if leg.next_hop == ROUTE]
        return {hop for hop in hops if hop is not None}

    def next_hop(self, dialog: Dialog, heard: Flow, names: bool = True) -> Flow:
        """Where a request goes in a dialog the owner keeps itself, by its route set or remote target.
        Without `names` an address there is followed, and a name is not."""
        return next(iter(self._stack.ways(dialog, heard, None if names else lambda hop: ())), heard)

    def ack(self, leg: str, sdp: str, now: float) -> None:
        """The answer to an offer that came in a 2xx (LegAnswered or ReinviteAnswered to one without SDP)."""
        self._stack.now = now
        found = self._core.owned(leg)
        if found is not None:
            self._outgoing.ack(found, sdp, now)

    def ring(
        self,
        leg: str,
        now: float,
        status: int = 180,
        reason: str | None = None,
        sdp: str | None = None,
        headers: Headers = (),
    ) -> None:
        """A provisional response to the caller."""
        self._stack.now = now
        found = self._core.owned(leg)
        if found is not None:
            self._incoming.ring(found, now, status, reason, sdp, headers)

    def answer(self, leg: str, sdp: str | None, now: float, headers: Headers = ()) -> None:
        """200 to the caller, again and again until the ACK: LegAcked, or LegEnded (no-ack)."""
        self._stack.now = now
        found = self._core.owned(leg)
        if found is not None:
            self._incoming.answer(found, sdp, now, headers)

    def reject(
        self, leg: str, status: int, now: float, reason: str | None = None, headers: Headers = ()
    ) -> None:
        """Refuse the caller; LegEnded (local) follows at once."""
        self._stack.now = now
        found = self._core.owned(leg)
        if found is not None:
            self._incoming.reject(found, status, now, reason, headers)

    def reinvite(self, leg: str, sdp: str | None, now: float, headers: Headers = ()) -> None:
        """Change the call: ReinviteAnswered or ReinviteFailed. One at a time; glare is retried by the
        engine."""
        self._stack.now = now
        found = self._core.owned(leg)
        if found is not None:
            self._modify.reinvite(found, sdp, now, headers)

    def accept_reinvite(self, leg: str, sdp: str, now: float, headers: Headers = ()) -> None:
        """200 to the far side's re-INVITE or UPDATE."""
        self._stack.now = now
        found = self._core.owned(leg)
        if found is not None:
            self._modify.accept(found, sdp, now, headers)
            self._incoming.go_on(found, now)

    def reject_reinvite(self, leg: str, status: int, now: float, headers: Headers = ()) -> None:
        """Refuse it: the call goes on unchanged."""
        self._stack.now = now
        found = self._core.owned(leg)
        if found is not None:
            self._modify.reject(found, status, now, headers)
            self._incoming.go_on(found, now)

    def info(self, leg: str, content_type: str, body: bytes, now: float, headers: Headers = ()) -> None:
        """Send an INFO nobody waits for (a 481 ends the leg)."""
        self._send_in_dialog(leg, "INFO", "info", now, headers, body, content_type)

    def request_in_dialog(
        self,
        leg: str,
        method: str,
        now: float,
        headers: Headers = (),
        content_type: str | None = None,
        body: bytes = b"",
    ) -> None:
        """Send REFER, NOTIFY, MESSAGE, OPTIONS ...: ResponseReceived or RequestFailed with the leg as key."""
        if method in ("INVITE", "ACK", "CANCEL", "BYE", "PRACK"):
            raise LocalError(f"{method} is not sent this way")
        self._send_in_dialog(leg, method, "request", now, headers, body, content_type)

    def _send_in_dialog(
        self, leg: str, method: str, purpose: str, now: float, headers: Headers, body: bytes, kind: str | None
    ) -> None:
        self._stack.now = now
        owner_headers(headers)
        found = self._core.owned(leg)
        if found is None:
            return
        if not found.in_dialog:
            raise LocalError(f"leg {leg!r} has no dialog yet")
        self._core.send(found, method, purpose, now, headers, body, kind)

    def hangup(self, leg: str, now: float, *, status: int = 603, reason_header: str | None = None) -> None:
        """End the leg in whatever state it is, the right way; LegEnded (local) follows when it is over."""
        self._stack.now = now
        found = self._core.owned(leg)
        if found is None:
            return
        found.reason_header = reason_header
        if found.role == "uas" and found.state in ("calling", "early"):
            headers = [("Reason", reason_header)] if reason_header else []
            self._incoming.reject(found, status, now, None, headers)
        elif found.role == "uac" and found.state in ("calling", "early"):
            self._outgoing.cancel(found, reason_header, now)
        elif found.role == "uas" and found.state == "answered":
            found.bye_wanted = True
        else:
            if found.ack_owed is not None:
                self._core.ack(found, found.ack_owed, None)
                found.ack_owed = None
            self._core.begin_ending(found, now)

    def forget(self, leg: str) -> None:
        """Drop a leg without a word and without an event; its far side is left as it is."""
        found = self._core.legs.get(leg)
        if found is not None:
            self._core.forget(found)

    # what is known of a leg

    def leg_state(self, leg: str) -> str:
        """ "calling", "early", "answered", "confirmed", "ending", or "ended" (also: never heard of)."""
        found = self._core.legs.get(leg)
        return "ended" if found is None else found.state

    def unanswered(self, leg: str) -> bool:
        """Whether an INVITE of the far side waits for our final answer."""
        found = self._core.legs.get(leg)
        return found is not None and found.inc is not None and found.state in ("calling", "early")

    def steady(self, leg: str) -> bool:
        """Whether a re-INVITE of ours may be sent: the dialog is confirmed and nothing in it is open."""
        found = self._core.legs.get(leg)
        if found is None or found.state != "confirmed" or found.ack_owed is not None:
            return False
        return found.inc is None and found.out is None and found.waiting is None

    def has_dialog(self, leg: str) -> bool:
        """Whether requests can be sent in the leg's dialog."""
        found = self._core.legs.get(leg)
        return found is not None and found.in_dialog

    def leg_tried(self, leg: str) -> bool:
        """Whether the far side has said anything, 100 included, to our INVITE."""
        found = self._core.legs.get(leg)
        return found is not None and (found.out is None or found.out.provisional)

    def legs(self) -> Iterable[str]:
        """The keys of all legs that are not ended."""
        return tuple(self._core.legs)

    def local_sdp(self, leg: str) -> str | None:
        """The last SDP we sent that counts."""
        return self._known(leg).local_sdp

    def remote_sdp(self, leg: str) -> str | None:
        """The last SDP we received that counts."""
        return self._known(leg).remote_sdp

    def dialog_of(self, leg: str) -> tuple[str, str, str] | None:
        """Call-ID, local and remote tag of a leg's dialog; None when there is none."""
        found = self._core.legs.get(leg)
        if found is None:
            return None
        return found.dialog.call_id, found.dialog.local_tag, found.dialog.remote_tag

    def dialog_named(self, call_id: str, one_tag: str, other_tag: str) -> str | None:
        """The leg whose dialog this is, whichever tag is ours; empty: it ended, None: never heard of."""
        return self._core.named(call_id, one_tag, other_tag)

    def first_route(self, leg: str) -> str:
        """The first entry of a leg's route set; empty where there is none."""
        return next(iter(self._known(leg).dialog.route_set), "")

    def leg_flow(self, leg: str) -> Flow:
        """Where the leg's far side was last heard."""
        return self._known(leg).flow

    def move_flow(self, leg: str, flow: Flow) -> None:
        """The far side of a leg is reached by another flow from now on, also by the answer it may not have
        heard (section 18.2.2: where the connection is gone, by another one)."""
        self._stack.listener(flow)
        found = self._known(leg)
        if found.inc is not None and same_path(found.inc.txn.flow, found.flow):
            found.inc.txn.flow = flow
        found.flow = flow

    def _known(self, leg: str) -> Leg:
        found = self._core.legs.get(leg)
        if found is None:
            raise LocalError(f"no leg {leg!r}")
        return found

    # other processes

    def export_leg(self, leg: str) -> dict[str, Any]:
        """The leg as a JSON-able record for another process; credentials are not in it."""
        return export_record(self._known(leg))

    def import_leg(
        self,
        leg: str,
        record: dict[str, Any],
        now: float,
        cseq_margin: int = 10,
        credentials: Credentials | None = None,
        moved: bool = False,
    ) -> None:
        """Go on with a leg another process has exported. `moved`: the far side knows that process by an
        address we do not have. It learns ours by `reinvite`; an INVITE of its own that is unanswered can be
        refused, one of ours cancelled."""
        self._stack.now = now
        self._handover.take(leg, record, now, cseq_margin, credentials, moved)

    # outside dialogs

    def request(
        self,
        key: str,
        method: str,
        *,
        flow: Flow,
        target: str,
        from_: str,
        to: str,
        headers: Headers = (),
        body: bytes = b"",
        content_type: str | None = None,
        now: float,
        call_id: str | None = None,
        cseq: int | None = None,
    ) -> None:
        """Send a request outside any dialog: ResponseReceived or RequestFailed with `key`."""
        self._stack.now = now
        owner_headers(headers, INITIAL_ROUTE)
        if method in ("INVITE", "ACK", "CANCEL"):
            raise LocalError(f"{method} is not sent this way")
        stack = self._stack
        branch = stack.new_branch()
        own = [
            ("Via", stack.via(flow, branch)),
            ("Max-Forwards", str(stack.settings.max_forwards)),
            ("From", f"{without_tag(from_)};tag={stack.new_id()}"),
            ("To", to),
            ("Call-ID", call_id or stack.new_id()),
            ("CSeq", f"{cseq if cseq is not None else 1} {method}"),
            ("User-Agent", stack.user_agent),
        ]
        given = {canonical(name) for name, _ in headers}
        fields = [item for item in own if canonical(item[0]) not in given]
        request = Request(method, target, [*fields, *headers], body)
        if body or content_type:
            request.add("Content-Type", content_type or "text/plain")
        stack.open_client(request, branch, flow, "outside", None, now, key)

    def request_of(
        self,
        key: str,
        dialog: Dialog,
        method: str,
        *,
        flow: Flow,
        headers: Headers = (),
        body: bytes = b"",
        content_type: str | None = None,
        now: float,
    ) -> None:
        """Send a request in a dialog the owner keeps itself (a subscription's), with its `local_cseq`:
        ResponseReceived or RequestFailed with `key`."""
        self._stack.now = now
        owner_headers(headers)
        stack = self._stack
        branch = stack.new_branch()
        via = stack.via(flow, branch)
        request = dialog.build(method, dialog.local_cseq, via, stack.settings.max_forwards)
        request.headers += [("User-Agent", stack.user_agent), *headers]
        request.body = body
        if body:
            request.add("Content-Type", content_type or "text/plain")
        stack.open_client(request, branch, flow, "outside", None, now, key)

    def respond(
        self,
        txn: str,
        status: int,
        now: float,
        reason: str | None = None,
        headers: Headers = (),
        body: bytes = b"",
        content_type: str | None = None,
        to_tag: str = "",
    ) -> None:
        """Answer a RequestReceived or InDialogRequest; one that is over meanwhile is counted, not raised.
        `to_tag` names our end of a dialog the owner keeps itself."""
        self._stack.now = now
        if not 100 <= status < 700:
            raise LocalError(f"{status} is no status")
        owner_headers(headers)
        found = self._stack.waiting.get(txn)
        if found is None:
            self._stack.count("command.request-gone")
            return
        found.local_tag = to_tag or found.local_tag
        self._stack.reply(found, status, now, reason, headers, body, content_type)
