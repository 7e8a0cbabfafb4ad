"""What the parts of an endpoint share: the legs and their index, requests inside dialogs, the end of a
leg."""

from __future__ import annotations

from collections.abc import Sequence

from ari_ha.sip.auth import authorization
from ari_ha.sip.dialog import Dialog, without_tag
from ari_ha.sip.events import (
    LegCancelled,
    LegEnded,
    LegFailed,
    LocalError,
    SecondAnswer,
)
from ari_ha.sip.fields import SipParseError, canonical
from ari_ha.sip.flow import Flow, same_path
from ari_ha.sip.leg import LEG_TIMERS, IncomingInvite, Leg, Waiting, sdp_of, stored_request
from ari_ha.sip.message import Request, Response
from ari_ha.sip.nexthop import ROUTE
from ari_ha.sip.stack import HeaderFields, Stack
from ari_ha.sip.timers import SessionTimer
from ari_ha.sip.transaction import ClientTransaction, ServerTransaction

OWN_HEADERS = frozenset(
    ("via", "from", "to", "call-id", "cseq", "content-length", "content-type", "route", "record-route")
)
"""Headers of in-dialog messages and responses the engine writes itself and the owner may not give."""
TRYING_S = 0.2
"""Section 17.2.1: an INVITE that has no answer by then gets a 100. A re-INVITE gets none before that: its
sender would not repeat it, and where this process dies before it has answered, nobody ever would."""
SESSION_RETRY_S = 5.0
"""When a refresh finds something else open, look again after this."""
NAMED_WAYS_MAX_COUNT = 2
"""Places of a name that are tried before the source: each may cost a request its 32 s."""
_TARGET_REFRESH = frozenset(("INVITE", "UPDATE", "REFER", "SUBSCRIBE", "NOTIFY"))
"""In-dialog methods that carry Contact (sections 12.2.1.1; RFC 3311, 3515, 6665)."""


def owner_headers(headers: Sequence[tuple[str, str]], allowed: frozenset[str] = frozenset()) -> HeaderFields:
    """The owner's headers, refused when they are the engine's to write."""
    for name, _ in headers:
        key = canonical(name)
        if key in OWN_HEADERS and key not in allowed:
            raise LocalError(f"{name} is written by the engine")
    return headers


class Core:
    """Legs and what happens to all of them."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.legs: dict[str, Leg] = {}
        self.dialogs: dict[tuple[str, str], Leg] = {}
        """(Call-ID, local tag) to leg."""
        self.callers: dict[tuple[str, str], Leg] = {}
        """(Call-ID, From tag of the INVITE) of incoming legs: finds merged requests (section 8.2.2.2)."""
        self.past: dict[tuple[str, str], str] = {}
        """(Call-ID, local tag) to remote tag of dialogs that ended, the last ones."""
        self.strays: dict[tuple[str, str], bytes] = {}
        """(Call-ID, To tag) of answers to INVITEs of no leg, with the ACK they got."""

    # the table of legs

    def add(self, leg: Leg) -> None:
        """Take a leg in."""
        if leg.key in self.legs:
            raise LocalError(f"leg {leg.key!r} exists")
        self.legs[leg.key] = leg
        self.dialogs[leg.dialog.call_id, leg.dialog.local_tag] = leg
        if leg.role == "uas":
            self.callers[leg.dialog.call_id, leg.dialog.remote_tag] = leg

    def owned(self, key: str) -> Leg | None:
        """The leg a command is for. None when it is gone or going: the command crossed the final event, which
        is
        nobody's mistake, so the command is counted and does nothing."""
        leg = self.legs.get(key)
        if leg is None or leg.state == "ending":
            self.stack.count("command.leg-gone")
            return None
        return leg

    def named(self, call_id: str, one: str, other: str) -> str | None:
        """The key of the leg whose dialog has this Call-ID and these two tags; empty when it ended lately,
        None when there was none. Either tag may be ours: between two phones stands a B2BUA, and each writes
        the name as it sees it."""
        ended = None
        for local, remote in ((one, other), (other, one)):
            leg = self.dialogs.get((call_id, local))
            if leg is not None and leg.dialog.remote_tag == remote:
                return "" if leg.state == "ending" else leg.key
            if self.past.get((call_id, local)) == remote:
                ended = ""
        return ended

    def alive(self, leg: Leg) -> bool:
        """Whether a leg is still in the table."""
        return self.legs.get(leg.key) is leg

    def _remove(self, leg: Leg) -> None:
        if not self.alive(leg):
            return
        del self.legs[leg.key]
        identity = (leg.dialog.call_id, leg.dialog.local_tag)
        if self.dialogs.get(identity) is leg:
            del self.dialogs[identity]
            self.past[identity] = leg.dialog.remote_tag
            while len(self.past) > self.stack.settings.past_dialogs_max:
                del self.past[next(iter(self.past))]
        caller = (leg.dialog.call_id, leg.dialog.remote_tag)
        if self.callers.get(caller) is leg:
            del self.callers[caller]
        for name in LEG_TIMERS:
            self.stack.timers.stop((leg.key, name))
        leg.state = "ended"

    def finish(self, leg: Leg, event: LegEnded | LegFailed | LegCancelled, now: float) -> None:
        """The leg's one final event. An INVITE of the far side still open gets its final response."""
        if not self.alive(leg):
            return
        self._remove(leg)
        if leg.inc is not None and not leg.inc.txn.final:
            self.stack.reply(leg.inc.txn, 487, now)
        if leg.changing is not None:
            self.stack.reply(leg.changing.txn, 487, now)
        leg.inc = leg.changing = None
        if leg.out is not None:
            leg.out.txn.step("abandon", now)
            leg.out = None
        self.stack.emit(event)

    def end(self, leg: Leg, cause: str, now: float, reason_header: str | None = None) -> None:
        """Finish with LegEnded."""
        self.finish(leg, LegEnded(leg.key, cause, reason_header), now)

    def forget(self, leg: Leg) -> None:
        """Drop a leg and send nothing: its client transactions go, its server transactions only absorb."""
        self._remove(leg)
        for txn in list(leg.txns):
            if isinstance(txn, ServerTransaction) and txn.invite:
                txn.step("mute", self.stack.now)
            elif txn.state not in ("completed", "accepted"):
                txn.end()

    # timers

    def start(self, leg: Leg, name: str, at: float) -> None:
        """Start one of a leg's timers."""
        self.stack.timers.start((leg.key, name), at)

    def stop(self, leg: Leg, *names: str) -> None:
        """Stop some of a leg's timers."""
        for name in names:
            self.stack.timers.stop((leg.key, name))

    def arm_session(self, leg: Leg, timer: SessionTimer | None, now: float) -> None:
        """A refresh has happened: count anew (RFC 4028 section 7.2 and 10)."""
        leg.timer = timer
        self.stop(leg, "session", "session-end")
        if timer is not None and leg.state in ("answered", "confirmed"):
            self.start(leg, "session", timer.action_at(now))
            if timer.refresher == "local":
                self.start(leg, "session-end", timer.expires_at(now))

    # requests inside a dialog

    def send(
        self,
        leg: Leg,
        method: str,
        purpose: str,
        now: float,
        headers: HeaderFields = (),
        body: bytes = b"",
        content_type: str | None = None,
    ) -> ClientTransaction:
        """Send a request within the leg's dialog (section 12.2.1.1)."""
        flow = self.way(leg)
        branch = self.stack.new_branch()
        via = self.stack.via(flow, branch)
        request = leg.dialog.build(method, leg.dialog.next_cseq(), via, self.stack.settings.max_forwards)
        given = {canonical(name) for name, _ in headers}
        fields = request.headers
        if method in _TARGET_REFRESH and "contact" not in given:
            fields.append(("Contact", self.stack.contact(flow, leg.contact_user)))
        if method in ("INVITE", "UPDATE"):
            fields += [item for item in self.stack.capabilities() if canonical(item[0]) not in given]
        elif "user-agent" not in given:
            fields.append(("User-Agent", self.stack.user_agent))
        fields += headers
        if body or content_type:
            fields.append(("Content-Type", content_type or "application/sdp"))
        request.body = body
        return self.stack.open_client(request, branch, flow, purpose, leg, now)

    def send_again(
        self, leg: Leg, txn: ClientTransaction, response: Response, now: float
    ) -> ClientTransaction | None:
        """Answer a 401 or 407 once (section 22.2): the same request with credentials and the next CSeq."""
        extra = self.credentials_for(leg, txn.request, response)
        if extra is None:
            return None
        return self.resend(leg, txn, [extra], now)

    def resend(
        self,
        leg: Leg,
        txn: ClientTransaction,
        extra: HeaderFields,
        now: float,
        without: frozenset[str] = frozenset(),
        flow: Flow | None = None,
    ) -> ClientTransaction:
        """The same request in a new transaction with the next CSeq, by another ``flow`` if there is one."""
        old, flow = txn.request, flow or txn.flow
        branch = self.stack.new_branch()
        request = Request(old.method, old.uri, old.headers, old.body)
        for name in without:
            request.remove(name)
        request.set("Via", self.stack.via(flow, branch))
        if flow.listener != txn.flow.listener and request.has("Contact"):
            request.set("Contact", self.stack.contact(flow, leg.contact_user))
        request.set("CSeq", f"{leg.dialog.next_cseq()} {old.method}")
        for name, value in extra:
            request.set(name, value)
        return self.stack.open_client(request, branch, flow, txn.purpose, leg, now)

    def sent_elsewhere(self, leg: Leg, txn: ClientTransaction, now: float) -> bool:
        """Nobody is where a request within a dialog was sent (section 8.1.3.1): it goes where else the far
        side may be (RFC 3263 section 4.3), each way once. False when there is none left."""
        tried = (*txn.tried, txn.flow)
        if leg.next_hop == ROUTE and not same_path(txn.flow, leg.flow):
            leg.passes_over(txn.flow)
            self.stack.count("next-hops-silent")
        for flow in self.ways(leg):
            if any(same_path(flow, before) for before in tried):
                continue
            new = self.resend(leg, txn, (), now, flow=flow)
            new.tried = tried
            if leg.out is not None and leg.out.txn is txn:
                leg.out.txn, leg.out.request = new, new.request
                self.start(leg, "change", now + self.stack.settings.reinvite_limit_s)
            return True
        return False

    def credentials_for(self, leg: Leg, request: Request, response: Response) -> tuple[str, str] | None:
        """The header that answers a challenge, None when we cannot or already tried."""
        field = "Proxy-Authorization" if response.status == 407 else "Authorization"
        if leg.credentials is None:
            return None
        if request.has(field) and not _stale(response):
            return None
        challenges = response.get_all("Proxy-Authenticate" if response.status == 407 else "WWW-Authenticate")
        cnonce = self.stack.new_id()
        value = authorization(leg.credentials, challenges, request.method, request.uri, cnonce)
        if value is None or (request.get(field) and _nonce(request.get(field)) == _nonce(value)):
            return None
        return field, value

    def bye(self, leg: Leg, now: float, purpose: str = "bye") -> None:
        """Send BYE (section 15.1.1)."""
        headers = [("Reason", leg.reason_header)] if leg.reason_header else []
        self.send(leg, "BYE", purpose, now, headers)

    def bye_and_end(self, leg: Leg, cause: str, now: float) -> None:
        """The leg is over now; the far side is told with a BYE nobody waits for."""
        self.bye(leg, now, "none")
        self.end(leg, cause, now)

    def begin_ending(self, leg: Leg, now: float) -> None:
        """Hang up: BYE now, LegEnded when it is answered."""
        leg.state = "ending"
        leg.waiting = None
        self.stop(
            leg, "answer", "no-ack", "session", "session-end", "reinvite", "change", "remind", "expires"
        )
        if leg.inc is not None and not leg.inc.txn.final:
            self.stack.reply(leg.inc.txn, 487, now)
        leg.inc = None
        self.bye(leg, now)

    # the ACK of a 2xx

    def ack(self, leg: Leg, cseq: int, sdp: str | None) -> None:
        """Send the ACK of a 2xx (section 13.2.2.4) and keep it for retransmissions."""
        flow = self.way(leg)
        via = self.stack.via(flow, self.stack.new_branch())
        request = leg.dialog.build("ACK", cseq, via, self.stack.settings.max_forwards)
        request.headers += leg.authorization
        if sdp is not None:
            request.add("Content-Type", "application/sdp")
            request.body = sdp.encode("utf-8", "replace")
        leg.remember_ack(cseq, self.stack.send_ack(request, flow))

    def ack_again(self, leg: Leg, cseq: int) -> bool:
        """The 2xx came again: so does its ACK, by every way there is. It was lost, or the way it went leads
        nowhere, and nothing would ever say so."""
        data = leg.acks.get(cseq)
        if data is None:
            return False
        self.stack.count("retransmissions")
        found = self.ways(leg)
        for flow in dict.fromkeys((found[0], found[-1])):
            self.stack.transmit(self._by(data, flow), flow)
        return True

    def _by(self, data: bytes, flow: Flow) -> bytes:
        """An ACK as it is sent by a flow: its Via names the transport."""
        via = f"Via: SIP/2.0/{flow.transport.upper()} ".encode()
        if via in data:
            return data
        request = stored_request(data.decode("latin-1"))
        request.set("Via", self.stack.via(flow, self.stack.new_branch()))
        return request.serialise()

    # where the far side is

    def ways(self, leg: Leg) -> list[Flow]:
        """The ways to a leg's far side, the first to be tried first, the last where it was last heard."""
        if leg.next_hop != ROUTE:
            return [leg.flow]
        named = self.stack.ways(leg.dialog, leg.flow)
        found = [flow for flow in named if f"{flow.host}:{flow.port}" not in leg.silent]
        del found[max(0, NAMED_WAYS_MAX_COUNT - (len(named) - len(found))) :]
        return found if any(same_path(flow, leg.flow) for flow in found) else [*found, leg.flow]

    def way(self, leg: Leg) -> Flow:
        """Where the next request of a leg goes."""
        return self.ways(leg)[0]

    def ack_late(self, leg: Leg, cseq: int, now: float) -> None:
        """ACK a 2xx nobody waited for any more; to the far side the session is refreshed, so it is to us."""
        self.ack(leg, cseq, None)
        self.arm_session(leg, leg.timer, now)

    def second_answer(self, leg: Leg, response: Response, flow: Flow, now: float) -> None:
        """A 2xx of another fork (section 13.2.2.4): ACK it and end it."""
        tag = response.to_tag
        if leg.next_hop == ROUTE:
            fork = Dialog.from_dict(leg.dialog.to_dict())
            fork.establish(response)
            flow = next(iter(self.stack.ways(fork, flow)), flow)
        known = leg.forks.get(tag)
        if known is not None:
            self.stack.transmit(known, flow)
            return
        data = self.refuse_answer(response, flow, now)
        if len(leg.forks) < self.stack.settings.early_dialogs_max:
            leg.forks[tag] = data
        self.stack.emit(SecondAnswer(leg.key, tag))

    def stray_answer(self, response: Response, flow: Flow, now: float) -> None:
        """A 2xx to an INVITE of no leg: ACK, then BYE, and nothing else is touched."""
        identity = (response.call_id, response.to_tag)
        known = self.strays.get(identity)
        if known is not None:
            self.stack.transmit(known, flow)
            return
        if len(self.strays) >= self.stack.settings.stray_answers_max:
            self.stack.drop("stray-answers-limit")
            return
        self.stack.count("stray-answers")
        self.strays[identity] = self.refuse_answer(response, flow, now)
        self.stack.timers.start(("stray", *identity), now + 64 * self.stack.settings.t1_s)

    def refuse_answer(self, response: Response, flow: Flow, now: float) -> bytes:
        """ACK and BYE for an answer nobody wants; returns the ACK."""
        cseq = response.cseq[0]
        dialog = Dialog(
            call_id=response.call_id,
            local_tag=response.from_tag,
            local_uri=without_tag(response.get("From")),
            remote_uri=without_tag(response.get("To")),
            role="uac",
            local_cseq=cseq,
        )
        dialog.establish(response)
        forwards = self.stack.settings.max_forwards
        via = self.stack.via(flow, self.stack.new_branch())
        data = self.stack.send_ack(dialog.build("ACK", cseq, via, forwards), flow)
        if response.to_tag:
            branch = self.stack.new_branch()
            bye = dialog.build("BYE", dialog.next_cseq(), self.stack.via(flow, branch), forwards)
            self.stack.open_client(bye, branch, flow, "none", None, now)
        return data

    # our 2xx

    def accept(
        self, leg: Leg, inc: IncomingInvite, sdp: str | None, now: float, headers: HeaderFields
    ) -> None:
        """Answer an INVITE, re-INVITE or UPDATE with 200; INVITEs until the ACK comes (section 13.3.1.4)."""
        body = b"" if sdp is None else sdp.encode("utf-8", "replace")
        inc.response = self.stack.reply(inc.txn, 200, now, None, headers, body)
        leg.local_sdp = sdp if sdp is not None else leg.local_sdp
        leg.remote_sdp = inc.sdp if inc.sdp is not None else leg.remote_sdp
        if inc.request.method != "INVITE":
            leg.inc = None
            return
        inc.accepted = True
        self.await_ack(leg, inc, now)

    def await_ack(self, leg: Leg, inc: IncomingInvite, now: float) -> None:
        """Start the retransmission of a 2xx, over any transport."""
        settings = self.stack.settings
        inc.interval_s = settings.t1_s
        self.start(leg, "answer", now + inc.interval_s)
        self.start(leg, "no-ack", now + 64 * settings.t1_s)

    def answer_again(self, leg: Leg, now: float) -> None:
        """Send the 2xx again, the wait doubling up to T2."""
        inc = leg.inc
        if inc is None or not inc.accepted:
            return
        self.stack.count("retransmissions")
        self.stack.transmit(inc.response, inc.txn.flow)
        inc.interval_s = min(2 * inc.interval_s, self.stack.settings.t2_s)
        self.start(leg, "answer", now + inc.interval_s)

    def postpone(self, leg: Leg, waiting: Waiting, at: float) -> None:
        """Send a re-INVITE later."""
        leg.waiting = waiting
        self.start(leg, "reinvite", at)

    def unsupported(self, request: Request) -> list[str]:
        """Option tags of Require we do not understand (section 8.2.2.3)."""
        known = {item.lower() for item in self.stack.settings.understood}
        return [item for item in request.values("Require") if item.lower() not in known]


def unacceptable_body(request: Request) -> bool:
    """Whether an INVITE's body is of a kind we cannot read (section 8.2.3)."""
    if not request.body:
        return False
    coding = request.get("Content-Encoding").strip().lower()
    return coding not in ("", "identity") or sdp_of(request) is None


def _stale(response: Response) -> bool:
    values = response.get_all("Proxy-Authenticate") + response.get_all("WWW-Authenticate")
    return any("stale=true" in value.lower().replace('"', "").replace(" ", "") for value in values)


def _nonce(value: str) -> str:
    return value.partition("nonce=")[2].partition(",")[0]


def cseq_of(response: Response) -> tuple[int, str]:
    """CSeq of a response, (0, "") when it cannot be read."""
    try:
        return response.cseq
    except SipParseError:
        return 0, ""
