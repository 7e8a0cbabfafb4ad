"""What an `Endpoint` tells its owner: a closed family of frozen events.

Every leg's life closes with exactly one of `LegFailed`, `LegCancelled` or `LegEnded`; only `forget` closes it
without an event. Header sequences are those of the message the event reports, in wire order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ari_ha.sip.flow import Flow
from ari_ha.sip.message import Request

HeaderList: TypeAlias = tuple[tuple[str, str], ...]


class LocalError(Exception):
    """The owner asked for something a leg's state forbids: our own mistake, never the far side's."""


@dataclass(frozen=True, slots=True)
class InviteReceived:
    """A new call: 100 Trying is already on its way."""

    leg: str
    request: Request
    flow: Flow


@dataclass(frozen=True, slots=True)
class LegRinging:
    """A provisional response above 100 to our INVITE."""

    leg: str
    status: int
    sdp: str | None
    headers: HeaderList


@dataclass(frozen=True, slots=True)
class LegAnswered:
    """The first 2xx to our INVITE; the ACK is sent, except when the INVITE had no offer: then call `ack`."""

    leg: str
    sdp: str | None
    headers: HeaderList


@dataclass(frozen=True, slots=True)
class LegAcked:
    """The ACK to our 2xx came; `sdp` is the answer when the offer was ours (late offer)."""

    leg: str
    sdp: str | None


@dataclass(frozen=True, slots=True)
class LegFailed:
    """Final: our INVITE was refused (status >= 300), timed out (408) or could not be sent (503)."""

    leg: str
    status: int
    reason: str
    headers: HeaderList


@dataclass(frozen=True, slots=True)
class LegCancelled:
    """Final: the caller sent CANCEL (or its Expires passed); it already has 200 and the INVITE 487."""

    leg: str
    reason_header: str | None = None


@dataclass(frozen=True, slots=True)
class LegEnded:
    """Final. Cause: "bye", "no-ack", "session-expired", "gone" (481 or 408 in the dialog) or "local".
    ``txn``: the BYE, where its answer is the owner's."""

    leg: str
    cause: str
    reason_header: str | None = None
    txn: str = ""


@dataclass(frozen=True, slots=True)
class ReinviteReceived:
    """A re-INVITE, or an UPDATE or PRACK with an offer (also before the final response), that changes
    something: call accept_reinvite or reject_reinvite."""

    leg: str
    sdp: str | None
    headers: HeaderList


@dataclass(frozen=True, slots=True)
class EarlyAnswer:
    """The PRACK of a reliable provisional response with our offer brought the answer (RFC 3262 section 5)."""

    leg: str
    sdp: str


@dataclass(frozen=True, slots=True)
class ReinviteAcked:
    """The ACK of a re-INVITE the owner has answered: nothing of it is open any more, so a stored copy of the
    leg should be written again."""

    leg: str


@dataclass(frozen=True, slots=True)
class ReinviteAnswered:
    """2xx to our re-INVITE (or to a refresh whose answer changed); after a re-INVITE without SDP call
    `ack`."""

    leg: str
    sdp: str | None


@dataclass(frozen=True, slots=True)
class ReinviteFailed:
    """Our re-INVITE failed, or (487) the far side cancelled the one it had sent; the leg goes on."""

    leg: str
    status: int


@dataclass(frozen=True, slots=True)
class InfoReceived:
    """An INFO in the dialog, already answered with 200."""

    leg: str
    content_type: str
    body: bytes
    headers: HeaderList


@dataclass(frozen=True, slots=True)
class InDialogRequest:
    """Another request in the dialog (REFER, NOTIFY, MESSAGE, ...): answer it with `respond`."""

    leg: str
    txn: str
    request: Request


@dataclass(frozen=True, slots=True)
class RequestReceived:
    """A request outside any leg (REGISTER, OPTIONS, SUBSCRIBE, ...): answer it with `respond`."""

    txn: str
    request: Request
    flow: Flow


@dataclass(frozen=True, slots=True)
class ResponseReceived:
    """A response to `request` (key as given) or to `request_in_dialog` (key is the leg)."""

    key: str
    status: int
    reason: str
    headers: HeaderList
    body: bytes


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """No response: reason is "timeout" or what the transport said. Key as in `ResponseReceived`."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class SecondAnswer:
    """Informational: a forked or late 2xx beyond the first got ACK and BYE."""

    leg: str
    to_tag: str


@dataclass(frozen=True, slots=True)
class StreamBroken:
    """A TCP stream cannot be framed any more: the owner should close the connection."""

    flow: Flow
    reason: str


SipEvent: TypeAlias = (
    InviteReceived
    | LegRinging
    | LegAnswered
    | LegAcked
    | LegFailed
    | LegCancelled
    | LegEnded
    | ReinviteReceived
    | EarlyAnswer
    | ReinviteAcked
    | ReinviteAnswered
    | ReinviteFailed
    | InfoReceived
    | InDialogRequest
    | RequestReceived
    | ResponseReceived
    | RequestFailed
    | SecondAnswer
    | StreamBroken
)
