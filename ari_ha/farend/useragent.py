"""A SIP user agent of the far end: its calls, and for a phone its registration. Told the time, opens no
socket."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from ari_ha.farend import rtp
from ari_ha.farend.call import (
    Call,
    CodecRefused,
    Description,
    Message,
    RemoteSide,
    describe,
)
from ari_ha.farend.media import MediaHost
from ari_ha.farend.registration import Registration
from ari_ha.sip import Credentials, Endpoint, Flow, Listener, LocalError, events

ENDED_CALLS_KEPT_MAX = 500
OTHER_MESSAGES_MAX = 2_000
LEAK_PREFIX = "x-ari-ha-"
UTC = Callable[[], float]
REFUSALS = {"busy": 486, "reject": 603, "unavailable": 480}


class NotPossible(Exception):
    """The order does not fit the call's state."""


@dataclass(slots=True)
class Manner:
    """What a far end does with a call it is offered."""

    mode: str = "answer"
    """answer, ring (for ever), early (for ever, with a voice before the answer), busy, reject, unavailable"""
    after_s: float = 0.5
    """answer: after this long."""
    ring: bool = True
    """Whether 180 is sent."""
    calls_max: int = 1
    """Further calls get 486."""
    sequence: int | None = None
    """First number of its RTP streams; None: any that does not begin anew soon."""


class UserAgent:
    """One address with a SIP listener of its own."""

    def __init__(
        self,
        name: str,
        listener: Listener,
        proxy: Flow,
        media: MediaHost,
        *,
        new_id: Callable[[], str],
        utc: UTC,
        domain: str,
        hertz: int,
        manner: Manner,
        credentials: Credentials | None = None,
        registration: Registration | None = None,
    ) -> None:
        self.name = name
        self.listener = listener
        self.proxy = proxy
        self.domain = domain
        self.hertz = hertz
        self.manner = manner
        self.credentials = credentials
        self.registration = registration
        self.endpoint = Endpoint({listener.name: listener}, new_id, user_agent="ari-ha-farend")
        self.calls: OrderedDict[str, Call] = OrderedDict()
        self.power = True
        """Off: says and hears nothing, like a phone whose plug was pulled."""
        self.other_messages: deque[Message] = deque(maxlen=OTHER_MESSAGES_MAX)
        self.received_total = 0
        self._media = media
        self._utc = utc
        self._new_id = new_id
        self._legs: dict[str, Call] = {}
        self._by_call_id: dict[str, Call] = {}
        self._serial = 0

    # --- bytes and time ---

    def receive(self, data: bytes, flow: Flow, now: float) -> None:
        """A datagram arrived."""
        if self.power:
            self._log(data, "received")
            self.endpoint.receive(data, flow, now)
            self._react(now)

    def receive_stream(self, data: bytes, flow: Flow, now: float) -> None:
        """Bytes of a TCP connection arrived."""
        if self.power:
            self._log(data, "received")
            self.endpoint.receive_stream(data, flow, now)
            self._react(now)

    def stream_closed(self, flow: Flow, now: float) -> None:
        """The TCP connection is gone."""
        self.endpoint.stream_closed(flow, now)
        self._react(now)

    def deadline(self) -> float | None:
        """When `fire` is wanted."""
        times = [self.endpoint.deadline()]
        if self.registration is not None and self.power:
            times.append(self.registration.due)
        for call in self._legs.values():
            times += [call.answer_due, call.hangup_due]
        return min((at for at in times if at is not None), default=None)

    def fire(self, now: float) -> None:
        """The instant has come."""
        due = self.endpoint.deadline()
        if due is not None and due <= now:
            self.endpoint.handle_timer(now)
        registration = self.registration
        if (
            registration is not None
            and self.power
            and registration.due is not None
            and registration.due <= now
        ):
            registration.send(self, now)
        for call in list(self._legs.values()):
            if call.answer_due is not None and call.answer_due <= now:
                call.answer_due = None
                self.answer(call, now)
            if call.hangup_due is not None and call.hangup_due <= now:
                call.hangup_due = None
                self.hangup(call, now)
        self._react(now)

    def output(self) -> list[tuple[bytes, Flow]]:
        """What is to be sent."""
        sent = self.endpoint.output()
        for data, _ in sent:
            self._log(data, "sent")
        return sent if self.power else []

    def _log(self, data: bytes, way: str) -> None:
        call_id, what = describe(data)
        if way == "received":
            self.received_total += 1
        call = self._by_call_id.get(call_id)
        if call is None and way == "sent" and what == "INVITE":
            call = next((c for c in self._legs.values() if c.way == "out" and not c.sip_call_id), None)
            if call is not None:
                call.sip_call_id = call_id
                self._by_call_id[call_id] = call
        if call is not None:
            call.messages.append(Message(self._utc(), way, what))
        else:
            self.other_messages.append(Message(self._utc(), way, what))

    # --- orders ---

    def dial(
        self,
        number: str,
        caller: str,
        now: float,
        *,
        event_pt: int = 101,
        codec: int = rtp.PT_PCMA,
        srtp: bool = False,
        hangup_after_s: float | None = None,
    ) -> Call:
        """Calls ``number`` through the proxy; with ``srtp`` the offer has a key."""
        call = self._new_call("out", number, caller, self._new_id())
        call.ours.event_pt = event_pt
        call.ours.codec = codec
        if srtp:
            call.ours.encrypt()
        call.hangup_after_s = hangup_after_s
        self.endpoint.invite(
            call.leg,
            flow=self.proxy,
            target=f"sip:{number}@{self.proxy.host}:{self.proxy.port}",
            from_=f"<sip:{caller}@{self.domain}>",
            to=f"<sip:{number}@{self.domain}>",
            sdp=call.ours.text(),
            credentials=self.credentials,
            contact_user=self.name,
            now=now,
        )
        self._react(now)
        return call

    def answer(self, call: Call, now: float) -> None:
        """Answers a ringing call."""
        if call.way != "in" or call.state not in ("calling", "ringing"):
            raise NotPossible(f"{call.id} is {call.state}")
        call.answer_due = None
        self.endpoint.answer(call.leg, call.answer_text(), now)
        self._up(call, now)
        self._react(now)

    def refuse(self, call: Call, status: int, now: float) -> None:
        """Refuses a ringing call."""
        if call.way != "in" or call.state not in ("calling", "ringing"):
            raise NotPossible(f"{call.id} is {call.state}")
        self.endpoint.reject(call.leg, status, now)
        self._ended(call, "us", status, "refused")
        self._react(now)

    def hangup(self, call: Call, now: float) -> None:
        """CANCEL, refusal or BYE, whichever ends it."""
        if not call.living:
            raise NotPossible(f"{call.id} has ended")
        self.endpoint.hangup(call.leg, now)
        self._ended(call, "us", 0, "hangup")
        self._react(now)

    def hold(self, call: Call, on: bool, now: float) -> None:
        """Puts the other side on hold, or takes it back."""
        if call.state != "up" or call.hold == on:
            raise NotPossible(f"{call.id} is {call.state}{', on hold' if call.hold else ''}")
        call.hold = on
        call.ours.direction = "sendonly" if on else "sendrecv"
        try:
            self.endpoint.reinvite(call.leg, call.ours.text(), now)
        except LocalError as error:
            call.hold = not on
            raise NotPossible(str(error)) from error
        call.media()
        self._react(now)

    def digits(self, call: Call, digits: str) -> None:
        """Sends RTP events."""
        if call.state != "up":
            raise NotPossible(f"{call.id} is {call.state}")
        call.stream.digits(digits)

    def info(self, call: Call, content_type: str, body: str, now: float) -> None:
        """Sends INFO."""
        if call.state != "up":
            raise NotPossible(f"{call.id} is {call.state}")
        self.endpoint.info(call.leg, content_type, body.encode(), now)
        self._react(now)

    def refer(self, call: Call, number: str, other: Call | None, now: float) -> None:
        """Asks that the far side of ``call`` be connected to ``number`` (RFC 3515), or to the far side of
        ``other``, whose dialog the target is to replace (RFC 3891)."""
        if call.state != "up":
            raise NotPossible(f"{call.id} is {call.state}")
        target = f"sip:{number}@{self.domain}"
        if other is not None:
            dialog = self.endpoint.dialog_of(other.leg)
            if dialog is None:
                raise NotPossible(f"{other.id} has no dialog")
            value = f"{dialog[0]};to-tag={dialog[2]};from-tag={dialog[1]}"
            target += f"?Replaces={quote(value, safe='')}"
        call.refer_answer, call.refer_said = 0, []
        headers = (("Refer-To", f"<{target}>"), ("Referred-By", f"<sip:{self.name}@{self.domain}>"))
        self.endpoint.request_in_dialog(call.leg, "REFER", now, headers=headers)
        self._react(now)

    def living_call(self) -> Call | None:
        """The newest call that has not ended."""
        return next((call for call in reversed(self.calls.values()) if call.living), None)

    # --- what the engine tells ---

    def _react(self, now: float) -> None:
        for event in self.endpoint.events():
            self._on(event, now)

    def _on(self, event: events.SipEvent, now: float) -> None:
        if isinstance(event, events.InviteReceived):
            self._invited(event, now)
            return
        if isinstance(event, events.RequestReceived):
            status = 200 if event.request.method in ("OPTIONS", "NOTIFY", "MESSAGE") else 405
            self.endpoint.respond(event.txn, status, now)
            return
        if isinstance(event, events.ResponseReceived | events.RequestFailed):
            if self.registration is not None and event.key == self.registration.key:
                self.registration.on(event, self, now)
            elif (asked := self._legs.get(event.key)) is not None:
                asked.refer_answer = event.status if isinstance(event, events.ResponseReceived) else 408
            return
        if isinstance(event, events.StreamBroken):
            return
        call = self._legs.get(event.leg)
        if call is not None:
            self._on_leg(event, call, now)

    def _on_leg(self, event: Any, call: Call, now: float) -> None:
        match event:
            case events.LegRinging():
                call.state = "ringing"
                call.ringing_at = call.ringing_at or self._utc()
                call.status = event.status
                if event.sdp:
                    self._take(call, event.sdp)
            case events.LegAnswered():
                call.status = 200
                if event.sdp is None or not self._take(call, event.sdp):
                    self.endpoint.hangup(call.leg, now)
                    self._ended(call, "us", 488, "no usable answer")
                    return
                self._check_leaks(call, event.headers)
                self._up(call, now)
            case events.LegAcked():
                if event.sdp and not self._take(call, event.sdp):
                    self.endpoint.hangup(call.leg, now)
                    self._ended(call, "us", 488, "no usable answer")
            case events.LegFailed():
                self._ended(call, "refused", event.status, event.reason)
            case events.LegCancelled():
                self._ended(call, "canceled", 487, event.reason_header or "")
            case events.LegEnded():
                by = "them" if event.cause == "bye" else "lost"
                self._ended(call, by, 0, event.reason_header or event.cause)
            case events.ReinviteReceived():
                self._reinvited(event, call, now)
            case events.ReinviteAnswered():
                if event.sdp:
                    self._take(call, event.sdp)
            case events.ReinviteFailed():
                call.reinvite_failures += 1
                call.cause = f"re-INVITE failed: {event.status}"
            case events.InfoReceived():
                call.infos.append(
                    (self._utc(), event.content_type, event.body.decode("utf-8", "replace")[:200])
                )
            case events.InDialogRequest():
                if event.request.method == "NOTIFY":
                    call.refer_said.append(event.request.body.decode("utf-8", "replace").split("\r\n")[0])
                self.endpoint.respond(event.txn, 200, now)

    def _invited(self, event: events.InviteReceived, now: float) -> None:
        request = event.request
        number = request.uri.partition(":")[2].partition("@")[0]
        caller = request.get("From")
        living = sum(1 for other in self.calls.values() if other.living)
        call = self._new_call("in", number, caller, event.leg)
        call.sip_call_id = request.call_id
        self._by_call_id[request.call_id] = call
        call.messages.append(Message(self._utc(), "received", "INVITE"))
        self._check_leaks(call, request.headers)
        status = REFUSALS.get(self.manner.mode, 0)
        if living >= self.manner.calls_max:
            status = 486
        body = request.body.decode("utf-8", "replace")
        call.offered = bool(body.strip())
        if not status and call.offered and not self._take(call, body):
            status = 488
        if status:
            self.endpoint.reject(call.leg, status, now)
            self._ended(call, "us", status, "refused")
            return
        early = self.manner.mode == "early" and call.offered
        if early or self.manner.ring:
            sdp = call.answer_text() if early else None
            self.endpoint.ring(call.leg, now, 183 if early else 180, sdp=sdp)
            call.state, call.early = "ringing", early
            call.ringing_at = self._utc()
            call.media()
        if self.manner.mode == "answer":
            call.answer_due = now + self.manner.after_s

    def _reinvited(self, event: events.ReinviteReceived, call: Call, now: float) -> None:
        call.reinvites += 1
        if event.sdp is None:
            call.ours.direction = "sendonly" if call.hold else "sendrecv"
            self.endpoint.accept_reinvite(call.leg, call.ours.text(), now)
            return
        if not self._take(call, event.sdp):
            self.endpoint.reject_reinvite(call.leg, 488, now)
            return
        self.endpoint.accept_reinvite(call.leg, call.answer_text(), now)
        call.media()

    # --- state ---

    def _new_call(self, way: str, number: str, caller: str, leg: str) -> Call:
        self._serial += 1
        stream = self._media.open(self.listener.host, self.hertz, self.manner.sequence)
        ours = Description(self.listener.host, stream.port, session=self._serial + 1_000)
        call = Call(
            f"{self.name}-{self._serial}", leg, self.name, way, number, caller, stream, ours, self._utc()
        )
        self.calls[call.id] = call
        self._legs[leg] = call
        return call

    def _take(self, call: Call, text: str) -> bool:
        try:
            call.theirs = RemoteSide.of(text)
        except CodecRefused:
            return False
        call.media()
        return True

    def _up(self, call: Call, now: float) -> None:
        call.state = "up"
        call.answered_at = self._utc()
        if call.hangup_after_s is not None:
            call.hangup_due = now + call.hangup_after_s
        call.media()

    def _ended(self, call: Call, by: str, status: int, cause: str) -> None:
        if not call.living:
            return
        call.state = "ended"
        call.ended_at = self._utc()
        call.ended_by, call.status, call.cause = by, status or call.status, cause
        call.answer_due = call.hangup_due = None
        call.media()
        call.stream.close()
        self._legs.pop(call.leg, None)
        ended = [ident for ident, other in self.calls.items() if not other.living]
        for ident in ended[: max(0, len(ended) - ENDED_CALLS_KEPT_MAX)]:
            self._by_call_id.pop(self.calls.pop(ident).sip_call_id, None)

    def _check_leaks(self, call: Call, headers: Any) -> None:
        call.leaked_headers += [name for name, _ in headers if name.lower().startswith(LEAK_PREFIX)]


__all__ = ["Manner", "NotPossible", "UserAgent"]
