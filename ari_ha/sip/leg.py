"""A leg: one INVITE dialog usage, as this engine holds it and as another process can go on with it.

States: `calling` (INVITE sent or received, nothing above 100 yet), `early` (a provisional response),
`answered` (2xx without its ACK), `confirmed`, `ending` (we hung up and wait for the far side's last word),
`ended` (gone).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ari_ha.sip.auth import Credentials
from ari_ha.sip.dialog import Dialog
from ari_ha.sip.fields import SipParseError
from ari_ha.sip.flow import Flow
from ari_ha.sip.message import Message, Request, parse_message
from ari_ha.sip.nexthop import ROUTE, SOURCE
from ari_ha.sip.timers import SessionTimer
from ari_ha.sip.transaction import ClientTransaction, ServerTransaction, Transaction

LEG_STATES = ("calling", "early", "answered", "confirmed", "ending", "ended")
LEG_TIMERS = (
    "answer",
    "no-ack",
    "cancel",
    "expires",
    "remind",
    "session",
    "session-end",
    "reinvite",
    "change",
    "trying",
    "reliable",
    "no-prack",
)
"""Every timer a leg may have."""
SILENT_MAX_COUNT = 8
"""Places of one leg that are passed over because nobody answered there."""
ACKS_MAX_COUNT = 4
"""ACKs kept to be sent again when the 2xx comes again."""
RECORD_SCHEMA = 1
"""Version of the exported record; fields are only ever added."""

HeaderFields = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class OutgoingInvite:
    """Our INVITE or re-INVITE without a final response."""

    request: Request
    purpose: str
    """"invite", "reinvite" (the owner's) or "refresh" (the session timer's)."""
    sdp: str | None
    txn: ClientTransaction
    headers: HeaderFields = ()
    provisional: bool = False
    cancel: str = ""
    """"", "wanted" (no provisional response yet, section 9.1) or "sent"."""
    attempts: int = 1
    authenticated: bool = False
    rseqs: dict[str, int] = field(default_factory=dict)
    """To tag of an early dialog -> RSeq of its last reliable response (RFC 3262)."""
    unheard: bool = False
    """Its responses go to an address we do not have: it may have been answered."""
    holds_ack: bool = False
    """The owner says when its 2xx is acknowledged."""
    held: bool = False
    """Not sent yet: the owner says when. Another process that takes the leg over sends it."""

    @property
    def cseq(self) -> int:
        """The number of the request."""
        return self.request.cseq[0]


@dataclass(slots=True)
class IncomingInvite:
    """The far side's INVITE, re-INVITE or UPDATE that is not over: unanswered, or its 2xx not yet ACKed."""

    request: Request
    txn: ServerTransaction
    sdp: str | None
    initial: bool
    response: bytes = b""
    """The last response sent."""
    accepted: bool = False
    """2xx sent, ACK awaited."""
    interval_s: float = 0.0
    """Wait before the 2xx is sent again."""
    told: bool = False
    """The owner answers it (a session refresh is answered by the engine alone)."""

    @property
    def cseq(self) -> int:
        """The number of the request."""
        return self.request.cseq[0]


@dataclass(slots=True)
class Provisional:
    """The last reliable provisional response we sent (RFC 3262). Its RSeq is part of the record: the next
    one is one higher, whoever sends it."""

    rseq: int
    cseq: int
    data: bytes
    has_sdp: bool
    interval_s: float
    acknowledged: bool = False
    waiting: list[tuple[int, str | None, list[tuple[str, str]], bytes]] = field(default_factory=list)
    """Further ones, sent when this one has its PRACK."""


@dataclass(slots=True)
class Waiting:
    """A re-INVITE to be sent later: glare (section 14.1), or something else is open just now."""

    purpose: str
    sdp: str | None
    headers: HeaderFields
    attempts: int


@dataclass(slots=True)
class Leg:
    """Everything about one leg."""

    key: str
    role: str
    flow: Flow
    dialog: Dialog
    state: str = "calling"
    local_sdp: str | None = None
    remote_sdp: str | None = None
    copied: bool = False
    """Continued from a copy, which may be older than the last offer: what looks like the one in it may
    be news, and is told."""
    credentials: Credentials | None = None
    contact_user: str = ""
    timer: SessionTimer | None = None
    next_hop: str = SOURCE
    """`nexthop.ROUTE` or `nexthop.SOURCE`: where our requests go."""
    silent: list[str] = field(default_factory=list)
    """host:port where the dialog leads and nobody answered: not tried again."""
    wanted_expires_s: int | None = None
    """The session interval to ask for in our INVITEs."""
    min_se_s: int | None = None
    """The Min-SE a 422 taught us."""
    out: OutgoingInvite | None = None
    inc: IncomingInvite | None = None
    unheard: tuple[bytes, Flow] | None = None
    """Our 2xx to its INVITE, sent from an address we do not have: whether it was heard nobody knows."""
    early: str = ""
    """How far offer and answer are before the final response (`early`)."""
    changing: IncomingInvite | None = None
    """The far side's PRACK or UPDATE with an offer, before the final response."""
    waiting: Waiting | None = None
    provisional: Provisional | None = None
    held_answer: tuple[str | None, HeaderFields] | None = None
    """The owner's answer, which waits for a PRACK, or for the answer to an earlier offer."""
    ack_owed: int | None = None
    """CSeq of a 2xx whose offer the owner has to answer in the ACK."""
    acks: dict[int, bytes] = field(default_factory=dict)
    """ACK by CSeq, for 2xx retransmissions."""
    forks: dict[str, bytes] = field(default_factory=dict)
    """ACK by To tag of answers beyond the first."""
    authorization: HeaderFields = ()
    """Credentials of the INVITE, repeated in its ACK (section 22.1)."""
    bye_wanted: bool = False
    """Hang up as soon as the ACK is there (section 15)."""
    reason_header: str | None = None
    txns: set[Transaction] = field(default_factory=set)
    """Transactions not yet terminated."""

    @property
    def in_dialog(self) -> bool:
        """Whether there is a dialog, early or confirmed, to send requests in."""
        return bool(self.dialog.remote_tag) and self.state != "calling"

    def answered_from(self, flow: Flow) -> None:
        """The far side answered an INVITE by ``flow``, and its Contact is known. It stays where it was asked,
        because a cluster may only send from another address, but where another host answers that wants to be
        reached there: a call that was taken over."""
        if flow.host != self.flow.host and self.dialog.leads_to(flow.host):
            self.flow = flow

    def passes_over(self, flow: Flow) -> None:
        """Nobody answers at a place the dialog names: the source is tried instead, from now on."""
        place = f"{flow.host}:{flow.port}"
        if place not in self.silent:
            self.silent = [*self.silent, place][-SILENT_MAX_COUNT:]

    def remember_ack(self, cseq: int, data: bytes) -> None:
        """Keep an ACK for retransmissions of its 2xx."""
        self.acks[cseq] = data
        while len(self.acks) > ACKS_MAX_COUNT:
            del self.acks[next(iter(self.acks))]


def sdp_of(message: Message) -> str | None:
    """The SDP a message carries, alone or as a part of a multipart body (RFC 5621); None without one."""
    if not message.body:
        return None
    kind, _, params = message.get("Content-Type").partition(";")
    kind = kind.strip().lower()
    if kind == "application/sdp" or (not kind and message.body.startswith(b"v=0")):
        return message.body.decode("utf-8", "replace")
    if kind.startswith("multipart/"):
        return _sdp_part(message.body, params)
    return None


def _sdp_part(body: bytes, params: str) -> str | None:
    for item in params.split(";"):
        name, _, value = item.partition("=")
        if name.strip().lower() == "boundary" and value.strip().strip('"'):
            mark = b"--" + value.strip().strip('"').encode("utf-8", "replace")
            break
    else:
        return None
    for part in body.split(mark)[1:]:
        head, _, content = part.lstrip(b"\r\n").partition(b"\r\n\r\n")
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-type:") and line.partition(b":")[2].strip().startswith(
                b"application/sdp"
            ):
                return content.rstrip(b"\r\n").decode("utf-8", "replace") + "\r\n"
    return None


def header_list(message: Message) -> HeaderFields:
    """The headers of a message as events carry them."""
    return tuple(message.headers)


def plain(headers: Sequence[tuple[str, str]]) -> HeaderFields:
    """Headers read back from JSON, where tuples are lists."""
    return tuple((str(name), str(value)) for name, value in headers)


def export_record(leg: Leg) -> dict[str, Any]:
    """The leg as a JSON-able record; credentials are not in it, they are no business of the record."""
    return {
        "schema": RECORD_SCHEMA,
        "role": leg.role,
        "state": leg.state,
        "flow": leg.flow.to_dict(),
        "dialog": leg.dialog.to_dict(),
        "local_sdp": leg.local_sdp,
        "remote_sdp": leg.remote_sdp,
        "contact_user": leg.contact_user,
        "next_hop": leg.next_hop,
        "early": leg.early,
        "silent": list(leg.silent),
        "timer": None if leg.timer is None else [leg.timer.interval_s, leg.timer.refresher],
        "wanted_expires_s": leg.wanted_expires_s,
        "min_se_s": leg.min_se_s,
        "ack_owed": leg.ack_owed,
        "acks": [[cseq, _text(data)] for cseq, data in leg.acks.items()],
        "authorization": [list(item) for item in leg.authorization],
        "bye_wanted": leg.bye_wanted,
        "reason_header": leg.reason_header,
        "out": None if leg.out is None else _export_out(leg.out),
        "inc": None if leg.inc is None else _export_inc(leg.inc),
        "unheard": None if leg.unheard is None else [_text(leg.unheard[0]), leg.unheard[1].to_dict()],
        "waiting": None if leg.waiting is None else _export_waiting(leg.waiting),
        "provisional": None if leg.provisional is None else _export_provisional(leg.provisional),
    }


def _text(data: bytes) -> str:
    """Bytes as JSON can hold them, one character each."""
    return data.decode("latin-1")


def _export_out(out: OutgoingInvite) -> dict[str, Any]:
    return {
        "request": _text(out.txn.data),
        "branch": out.txn.branch,
        "flow": out.txn.flow.to_dict(),
        "purpose": out.purpose,
        "sdp": out.sdp,
        "headers": [list(item) for item in out.headers],
        "provisional": out.provisional,
        "cancel": out.cancel,
        "attempts": out.attempts,
        "authenticated": out.authenticated,
        "rseqs": dict(out.rseqs),
        "holds_ack": out.holds_ack,
    }


def _export_inc(inc: IncomingInvite) -> dict[str, Any]:
    return {
        "request": _text(inc.request.serialise()),
        "flow": inc.txn.flow.to_dict(),
        "vias": list(inc.txn.vias),
        "key": list(inc.txn.key),
        "sdp": inc.sdp,
        "initial": inc.initial,
        "response": _text(inc.response),
        "accepted": inc.accepted,
        "local_tag": inc.txn.local_tag,
    }


def _export_provisional(provisional: Provisional) -> dict[str, Any]:
    """Without what waits: the owner of the next process says again what is due."""
    return {
        "rseq": provisional.rseq,
        "cseq": provisional.cseq,
        "data": _text(provisional.data),
        "has_sdp": provisional.has_sdp,
        "interval_s": provisional.interval_s,
        "acknowledged": provisional.acknowledged,
    }


def _import_provisional(record: dict[str, Any]) -> Provisional:
    return Provisional(
        int(record["rseq"]),
        int(record["cseq"]),
        str(record["data"]).encode("latin-1"),
        bool(record["has_sdp"]),
        float(record["interval_s"]),
        bool(record["acknowledged"]),
    )


def _export_waiting(waiting: Waiting) -> dict[str, Any]:
    return {
        "purpose": waiting.purpose,
        "sdp": waiting.sdp,
        "headers": [list(item) for item in waiting.headers],
        "attempts": waiting.attempts,
    }


def import_plain(key: str, record: dict[str, Any], cseq_margin: int) -> Leg:
    """The leg of a record, without its transactions; a record that is none raises ValueError."""
    state = record["state"]
    if state not in LEG_STATES:
        raise ValueError(f"leg state {state!r}")
    dialog = Dialog.from_dict(record["dialog"])
    dialog.local_cseq += cseq_margin
    timer, waiting = record.get("timer"), record.get("waiting")
    leg = Leg(
        key=key,
        role=record["role"],
        flow=Flow.from_dict(record["flow"]),
        dialog=dialog,
        state=state,
        local_sdp=record.get("local_sdp"),
        remote_sdp=record.get("remote_sdp"),
        copied=True,
        contact_user=record.get("contact_user", ""),
        next_hop=ROUTE if record.get("next_hop") == ROUTE else SOURCE,
        early=str(record.get("early", "")),
        silent=[str(place) for place in record.get("silent", ())][:SILENT_MAX_COUNT],
        timer=None if timer is None else SessionTimer(int(timer[0]), str(timer[1])),
        wanted_expires_s=record.get("wanted_expires_s"),
        min_se_s=record.get("min_se_s"),
        ack_owed=record.get("ack_owed"),
        authorization=plain(record.get("authorization", ())),
        bye_wanted=bool(record.get("bye_wanted")),
        reason_header=record.get("reason_header"),
    )
    if (unheard := record.get("unheard")) is not None:
        leg.unheard = str(unheard[0]).encode("latin-1"), Flow.from_dict(unheard[1])
    leg.acks = {int(cseq): data.encode("latin-1") for cseq, data in record.get("acks", ())}
    if record.get("provisional") is not None:
        leg.provisional = _import_provisional(record["provisional"])
    if waiting is not None:
        headers = plain(waiting["headers"])
        leg.waiting = Waiting(waiting["purpose"], waiting["sdp"], headers, int(waiting["attempts"]))
    return leg


def stored_request(text: str) -> Request:
    """A request kept in a record."""
    try:
        message = parse_message(text.encode("latin-1"))
    except SipParseError as error:
        raise ValueError(f"stored request: {error.reason}") from error
    if not isinstance(message, Request):
        raise ValueError("stored request: a response")
    return message
