"""The node link's frames: what an edge and a node app say to each other.

A frame is one JSON object with its ``type``, after its length in four bytes,
big-endian. The vocabulary grows by adding: a field the reader does not know is
ignored, a field the writer does not know has a default, and a frame whose
``type`` the reader does not know is counted and skipped. Whatever a frame says
must be safe to miss: an edge sends a snapshot (`EdgeCalls`) each time the link
comes up, and when it begins to serve if it stood by. After each a node sends its
own (`NodeCalls`), and says again what it has said of its calls.

Epochs travel as text (``ari_ha.core.ids.Epoch``).
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

FRAME_MAX_BYTES: Final = 1024 * 1024
RECORD: Final = "record"
"""The feature of a node that has a recorder"""
_LENGTH: Final = struct.Struct("!I")


class LinkProtocolError(Exception):
    """The far end sent bytes that are not frames of this protocol."""


class Frame(msgspec.Struct, frozen=True, tag=True, tag_field="type", omit_defaults=True):
    """Base of every frame; its ``type`` on the wire is the class name."""


# --- parts of snapshots ---------------------------------------------------------------


class CallOnNode(msgspec.Struct, frozen=True, omit_defaults=True):
    """A call as a node app has it: ``legs`` maps a leg to its Asterisk channel."""

    epoch: str = ""
    legs: dict[str, str] = msgspec.field(default_factory=dict)


class LegAtEdge(msgspec.Struct, frozen=True, omit_defaults=True):
    """The edge's facts of one leg; they override what a record says of it.
    ``state`` is ``ringing`` or ``answered``."""

    state: str = ""
    held: bool = False
    muted: bool = False


class Rung(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a leg was rung: an agent's ``device``, for a caller of a queue."""

    attempt: str = ""
    agent: str = ""
    device: str = ""
    queue: str = ""


class CallAtEdge(msgspec.Struct, frozen=True, omit_defaults=True):
    """A call the edge has given to this node, with the legs that live."""

    epoch: str = ""
    legs: dict[str, LegAtEdge] = msgspec.field(default_factory=dict)
    ended: dict[str, str] = msgspec.field(default_factory=dict)
    """Legs that ended lately: leg -> who. Nobody rings them again."""
    head: str = ""
    """Whose end ends the call."""
    sides: dict[str, str] = msgspec.field(default_factory=dict)
    """Who consults: leg -> leg that leads it."""
    lines: dict[str, str] = msgspec.field(default_factory=dict)
    """Second lines: leg -> leg of the same phone."""
    targets: dict[str, str] = msgspec.field(default_factory=dict)
    """Whom legs were dialled to that no queue chose: ``device:`` or ``number:``."""
    rung: dict[str, Rung] = msgspec.field(default_factory=dict)
    """By which attempts legs were rung, whether they ring still or were answered."""
    turned_down: str = ""
    """The last attempt that a phone ended."""
    asking: list[str] | None = None
    """Legs whose phones asked for a transfer and have not heard how it went; None: it does not say."""


# --- both directions ------------------------------------------------------------------


class Ping(Frame, frozen=True):
    """Are you there? ``t`` is the asker's clock and comes back in `Pong`.
    Asked and answered by the adapters; machines never see it."""

    t: float = 0.0


class Pong(Frame, frozen=True):
    """I am; ``t`` is the one of the `Ping`."""

    t: float = 0.0


# --- node to edge ---------------------------------------------------------------------


class NodeHello(Frame, frozen=True):
    """First frame of a node app: who it is, in which life of its Asterisk."""

    node: str = ""
    incarnation: str = ""
    version: str = ""
    features: list[str] = msgspec.field(default_factory=list)


class NodeState(Frame, frozen=True):
    """Whether the node takes calls, and if not, why. ``asterisk`` is a word for
    people: ``up``, ``silent``, ``gone``."""

    ready: bool = False
    reason: str = ""
    cordoned: bool = False
    calls: int = 0
    asterisk: str = ""
    store_away: bool = False
    """It does not reach etcd, or has not written yet what it kept meanwhile."""
    unwritten: list[str] = msgspec.field(default_factory=list)
    """Calls of which etcd has not confirmed the newest record for a while."""


class NodeCalls(Frame, frozen=True):
    """Snapshot: every call this node has, by call id."""

    calls: dict[str, CallOnNode] = msgspec.field(default_factory=dict)


class Bridged(Frame, frozen=True):
    """The legs of the call hear each other in Asterisk (or what its step asks
    for): after a move, the media may be moved now."""

    call: str = ""
    epoch: str = ""
    legs: list[str] = msgspec.field(default_factory=list)


class ResumeRefused(Frame, frozen=True):
    """The node cannot take up this leg of a moved call."""

    call: str = ""
    epoch: str = ""
    leg: str = ""
    reason: str = ""


class MoveWanted(Frame, frozen=True):
    """The node serves the call, and its channels are of no more use: it is to be moved, make before break.
    Said again every second while that is so."""

    call: str = ""
    epoch: str = ""
    reason: str = ""


class EndLeg(Frame, frozen=True):
    """The app wants this leg ended: only after this may a BYE of the node end
    the phone's side. ``cause`` is a SIP status or Q.850 number as text."""

    call: str = ""
    leg: str = ""
    epoch: str = ""
    cause: str = ""
    reason: str = ""


class WantMedia(Frame, frozen=True):
    """The media state the app needs, ``hitless``, ``through`` or ``coach``;
    answered by `MediaIs` with the same ``request``."""

    call: str = ""
    epoch: str = ""
    state: str = ""
    request: int = 0


class AsteriskGone(Frame, frozen=True):
    """This life of the node's Asterisk is over: its process is gone."""

    incarnation: str = ""
    reason: str = ""


class ClaimAgent(Frame, frozen=True):
    """May this attempt ring the agent's device? Asked of the edge that holds the
    device; the first attempt wins. Answered by `ClaimAnswer`."""

    agent: str = ""
    device: str = ""
    attempt: str = ""
    call: str = ""


class Conversations(Frame, frozen=True):
    """Who belongs to whom in the call, whole: ``head`` is the leg whose end ends it;
    ``consult`` maps legs of side conversations to the consulting phone's leg, and a leg
    that is not named belongs to the head's."""

    call: str = ""
    epoch: str = ""
    head: str = ""
    consult: dict[str, str] = msgspec.field(default_factory=dict)


class TransferIs(Frame, frozen=True):
    """How the transfer ``leg`` asked for is going: a SIP status (RFC 3515 §2.4.4)."""

    call: str = ""
    leg: str = ""
    epoch: str = ""
    transfer: str = ""
    status: int = 0


class DigitHeard(Frame, frozen=True):
    """Asterisk heard a DTMF digit on a leg."""

    call: str = ""
    leg: str = ""
    epoch: str = ""
    digit: str = ""
    number: int = 0
    """Which of the digits an IVR took from this caller it is; 0: of no IVR."""


class WantRecording(Frame, frozen=True):
    """Whether the call is to be recorded: its queue's word. Said again after a move and
    when the link comes up."""

    call: str = ""
    epoch: str = ""
    on: bool = False


class RecorderAt(Frame, frozen=True):
    """The recorder of ``recording`` takes its RTP here; answers `Record`."""

    recording: str = ""
    call: str = ""
    host: str = ""
    port: int = 0


class RecordingOver(Frame, frozen=True):
    """This node does not record it, or no longer; what was written stays."""

    recording: str = ""
    call: str = ""
    reason: str = ""


class NodeRecordings(Frame, frozen=True):
    """Snapshot: every recording this node's recorder is writing -> its call."""

    recordings: dict[str, str] = msgspec.field(default_factory=dict)


# --- edge to node ---------------------------------------------------------------------


class EdgeHello(Frame, frozen=True):
    """First frame of an edge: who it is, for which address, under which
    revision of the address's key it is (or was last) active."""

    edge: str = ""
    vip: str = ""
    edge_revision: int = 0
    version: str = ""
    sip: str = ""
    """Where this edge takes INVITEs of nodes, host:port."""
    features: list[str] = msgspec.field(default_factory=list)


class EdgeCalls(Frame, frozen=True):
    """Snapshot: every call this edge thinks the node serves, by call id."""

    calls: dict[str, CallAtEdge] = msgspec.field(default_factory=dict)


class MediaIs(Frame, frozen=True):
    """The call's media is in this state now; answers `WantMedia`."""

    call: str = ""
    epoch: str = ""
    state: str = ""
    request: int = 0


class LegRinging(Frame, frozen=True):
    """The phone of this leg rings."""

    call: str = ""
    leg: str = ""
    epoch: str = ""


class LegAnswered(Frame, frozen=True):
    """The phone of this leg has answered."""

    call: str = ""
    leg: str = ""
    epoch: str = ""


class LegGone(Frame, frozen=True):
    """The leg ended and will not come back. ``by`` is who ended it; ``head`` who leads the call from
    now on, where a consultation outlives the conversation that this leg led."""

    call: str = ""
    leg: str = ""
    epoch: str = ""
    cause: str = ""
    status: int = 0
    by: str = ""
    head: str = ""


class LegHeld(Frame, frozen=True):
    """The phone put its far end on hold, or took it back."""

    call: str = ""
    leg: str = ""
    epoch: str = ""
    held: bool = False


class TransferAsked(Frame, frozen=True):
    """The phone of ``leg`` asks that its partner be connected to ``number`` (REFER), or to
    the partner of its other leg ``other`` (REFER with Replaces). Said again until `TransferIs`
    says that it is over."""

    call: str = ""
    leg: str = ""
    epoch: str = ""
    transfer: str = ""
    number: str = ""
    other: str = ""


class ConsultAsked(Frame, frozen=True):
    """The phone of ``of`` calls ``number`` while it is in the call: its second dialog is
    ``leg`` of the same call. Said again after a move while nobody has been rung."""

    call: str = ""
    leg: str = ""
    epoch: str = ""
    of: str = ""
    number: str = ""


class LegTaken(Frame, frozen=True):
    """Another phone, ``device:<aor>``, has taken the leg over (INVITE with Replaces); if the
    leg rang, `LegAnswered` follows. Said again after a move."""

    call: str = ""
    leg: str = ""
    epoch: str = ""
    device: str = ""


Asked = TransferAsked | ConsultAsked | LegTaken
"""What phones do that is a matter of transfers"""


class LegDigit(Frame, frozen=True):
    """The phone sent a digit by SIP INFO; it went to the other side already. After a move
    the digits typed lately are said once more, those an IVR's Asterisk heard too: the
    node knows by their numbers which it has taken."""

    call: str = ""
    leg: str = ""
    epoch: str = ""
    digit: str = ""
    told: int = 0
    """Which of the leg's digits by INFO it is."""
    heard: int = 0
    """`DigitHeard.number` of a digit that Asterisk heard."""
    again: bool = False
    """Said before, perhaps to another node."""


class CallMoved(Frame, frozen=True):
    """``to_node`` serves the call since ``epoch``: drop its channels and announce
    nothing about it again."""

    call: str = ""
    epoch: str = ""
    to_node: str = ""


class Relinquish(Frame, frozen=True):
    """Give the call up without ending anybody: it ended or went elsewhere."""

    call: str = ""
    epoch: str = ""


class Record(Frame, frozen=True):
    """Record what comes from ``host:port``, the voice of ``leg`` in RTP of this payload type. A
    node need not serve the call for that. Answered by `RecorderAt` or `RecordingOver`."""

    recording: str = ""
    call: str = ""
    leg: str = ""
    host: str = ""
    port: int = 0
    payload: int = 8


class EndRecording(Frame, frozen=True):
    """The recording is over."""

    recording: str = ""
    call: str = ""


class ClaimAnswer(Frame, frozen=True):
    """Answers `ClaimAgent`; ``holder`` is the attempt that has the device."""

    agent: str = ""
    attempt: str = ""
    granted: bool = False
    holder: str = ""


NODE_FRAMES: Final = (
    NodeHello, NodeState, NodeCalls, Bridged, ResumeRefused, MoveWanted, EndLeg, WantMedia,
    AsteriskGone, ClaimAgent, DigitHeard, Conversations, TransferIs,
    WantRecording, RecorderAt, RecordingOver, NodeRecordings, Ping, Pong,
)  # fmt: skip
"""What a node app says."""

EDGE_FRAMES: Final = (
    EdgeHello, EdgeCalls, MediaIs, LegRinging, LegAnswered, LegGone, LegHeld, LegDigit,
    TransferAsked, ConsultAsked, LegTaken, CallMoved, Relinquish, ClaimAnswer, Record, EndRecording,
    Ping, Pong,
)  # fmt: skip
"""What an edge says."""

AnyFrame = (
    NodeHello | NodeState | NodeCalls | Bridged | ResumeRefused | MoveWanted | EndLeg | WantMedia
    | AsteriskGone | ClaimAgent | DigitHeard | Conversations | TransferIs
    | WantRecording | RecorderAt | RecordingOver | NodeRecordings
    | EdgeHello | EdgeCalls | MediaIs | LegRinging | LegAnswered | LegGone | LegHeld | LegDigit
    | TransferAsked | ConsultAsked | LegTaken
    | CallMoved | Relinquish | ClaimAnswer | Record | EndRecording
    | Ping | Pong
)  # fmt: skip


class _OnlyType(msgspec.Struct):
    type: str


_TYPES: Final = frozenset(cls.__name__ for cls in (*NODE_FRAMES, *EDGE_FRAMES))
_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(AnyFrame)
_TYPE_DECODER: Final = msgspec.json.Decoder(_OnlyType)
_DECODE_ERRORS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def encode(frame: Frame) -> bytes:
    """The bytes of ``frame`` with its length. Raises ValueError when it is larger
    than `FRAME_MAX_BYTES`: a snapshot that big is a local mistake."""
    body = _ENCODER.encode(frame)
    if len(body) > FRAME_MAX_BYTES:
        raise ValueError(f"{type(frame).__name__} of {len(body)} bytes; the limit is {FRAME_MAX_BYTES}")
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Cuts a byte stream into frames."""

    def __init__(self, frame_max_bytes: int = FRAME_MAX_BYTES) -> None:
        self._frame_max_bytes = frame_max_bytes
        self._buffer = bytearray()
        self.skipped = 0
        """Frames of a type this version does not know, so far."""

    def feed(self, data: bytes) -> list[AnyFrame]:
        """Takes bytes as they come and returns the frames they complete. Raises
        `LinkProtocolError`; the stream is of no use after that."""
        buffer = self._buffer
        buffer += data
        frames: list[AnyFrame] = []
        start = 0
        while len(buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, start)
            if length > self._frame_max_bytes:
                raise LinkProtocolError(f"frame of {length} bytes; the limit is {self._frame_max_bytes}")
            end = start + _LENGTH.size + length
            if len(buffer) < end:
                break
            frame = self._decode(bytes(buffer[start + _LENGTH.size : end]))
            if frame is not None:
                frames.append(frame)
            start = end
        del buffer[:start]
        return frames

    def _decode(self, body: bytes) -> AnyFrame | None:
        try:
            return _DECODER.decode(body)
        except _DECODE_ERRORS as error:
            self._skip_if_unknown(body, error)
            return None

    def _skip_if_unknown(self, body: bytes, error: Exception) -> None:
        """Counts a frame of a newer version; anything else is a protocol error."""
        try:
            name = _TYPE_DECODER.decode(body).type
        except _DECODE_ERRORS:
            raise LinkProtocolError(f"not a frame: {error}") from None
        if name in _TYPES:
            raise LinkProtocolError(f"bad {name}: {error}") from None
        self.skipped += 1
