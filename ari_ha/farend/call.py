"""One call as a far end sees it: its dialog, what each side may hear, and every SIP message of it."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from ari_ha.farend import rtp
from ari_ha.farend.media import Stream
from ari_ha.farend.srtp import Keys, new_key
from ari_ha.sip.sdp import SUITES, Crypto, Media, SdpError, SessionDescription, usable_crypto

MESSAGES_MAX = 400
EVENT_PT = 101

_CALL_ID = re.compile(rb"\r?\n(?:Call-ID|i)[ \t]*:[ \t]*([^\r\n]+)", re.IGNORECASE)
_CSEQ = re.compile(rb"\r?\nCSeq[ \t]*:[ \t]*\d+[ \t]+(\w+)", re.IGNORECASE)


@dataclass(slots=True)
class Message:
    """One SIP message: when, which way, and its first words (``INVITE``, ``200 INVITE``)."""

    at: float
    way: str
    """received or sent"""
    what: str

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"at": self.at, "way": self.way, "what": self.what}


def describe(data: bytes) -> tuple[str, str]:
    """(Call-ID, first words) of raw SIP; empty strings when it has none."""
    found = _CALL_ID.search(data)
    call_id = found.group(1).decode("utf-8", "replace").strip() if found else ""
    line = data.lstrip(b"\r\n").split(b"\n", 1)[0].split(b" ", 2)
    if line[0].startswith(b"SIP/"):
        method = _CSEQ.search(data)
        code = line[1].decode("ascii", "replace") if len(line) > 1 else "?"
        return call_id, f"{code} {method.group(1).decode() if method else '?'}"
    return call_id, line[0].decode("ascii", "replace").strip()[:20]


@dataclass(slots=True)
class Description:
    """Our side of a call's SDP: the same o= line for the whole call, its version counting up."""

    host: str
    port: int
    session: int
    version: int = 0
    event_pt: int = EVENT_PT
    codec: int = rtp.PT_PCMA
    direction: str = "sendrecv"
    crypto: Crypto | None = None
    """Our key; None: plain RTP."""

    def encrypt(self) -> None:
        """Offers SRTP."""
        self.crypto = Crypto(1, SUITES[0], new_key())

    def text(self) -> str:
        """The next version of the description."""
        self.version += 1
        name = "PCMA" if self.codec == rtp.PT_PCMA else "PCMU"
        lines = [
            "v=0",
            f"o=farend {self.session} {self.version} IN IP4 {self.host}",
            "s=-",
            f"c=IN IP4 {self.host}",
            "t=0 0",
            f"m=audio {self.port} RTP/{'SAVP' if self.crypto else 'AVP'} {self.codec} {self.event_pt}",
            *([f"a=crypto:{self.crypto.line()}"] if self.crypto else []),
            f"a=rtpmap:{self.codec} {name}/8000",
            f"a=rtpmap:{self.event_pt} telephone-event/8000",
            f"a=fmtp:{self.event_pt} 0-16",
            f"a=ptime:{rtp.PACKET_MS}",
            f"a={self.direction}",
        ]
        return "\r\n".join(lines) + "\r\n"


class CodecRefused(ValueError):
    """The other side's description has nothing we can speak."""


@dataclass(slots=True)
class RemoteSide:
    """What the other side's SDP says."""

    host: str
    port: int
    codec: int
    event_pt: int
    direction: str
    crypto: Crypto | None = None

    @classmethod
    def of(cls, text: str) -> RemoteSide:
        """Reads a description. Raises CodecRefused when it is none, has no G.711, or SRTP without a key
        for us."""
        try:
            session = SessionDescription.parse(text)
        except SdpError as error:
            raise CodecRefused(str(error)) from error
        audio: Media | None = session.audio()
        host = session.connection
        if audio is None or host is None:
            raise CodecRefused("no audio")
        codec = next((pt for pt in audio.payload_types if pt in (rtp.PT_PCMA, rtp.PT_PCMU)), None)
        if codec is None:
            raise CodecRefused("no G.711")
        crypto = usable_crypto(audio) if audio.proto == "RTP/SAVP" else None
        if audio.proto != "RTP/AVP" and crypto is None:
            raise CodecRefused(f"{audio.proto} without a key for us")
        event_pt = audio.telephone_event
        return cls(
            host, audio.port, codec, EVENT_PT if event_pt is None else event_pt, session.direction, crypto
        )

    @property
    def wants_audio(self) -> bool:
        """Whether the other side asks to hear us."""
        return self.direction in ("sendrecv", "recvonly") and self.host not in ("0.0.0.0", "")


REVERSED = {"sendrecv": "sendrecv", "sendonly": "recvonly", "recvonly": "sendonly", "inactive": "inactive"}


@dataclass(slots=True)
class Call:
    """A call of one far end."""

    id: str
    leg: str
    owner: str
    way: str
    """out: we called; in: we were called"""
    number: str
    """The number called."""
    caller: str
    stream: Stream
    ours: Description
    started: float
    state: str = "calling"
    """calling, ringing, up, ended"""
    sip_call_id: str = ""
    theirs: RemoteSide | None = None
    offered: bool = True
    """The INVITE brought an offer (False: ours goes into the 200)."""
    hold: bool = False
    early: bool = False
    """We speak before we have answered."""
    ringing_at: float = 0.0
    answered_at: float = 0.0
    ended_at: float = 0.0
    ended_by: str = ""
    """us, them, refused, canceled, lost"""
    status: int = 0
    cause: str = ""
    reinvites: int = 0
    reinvite_failures: int = 0
    leaked_headers: list[str] = field(default_factory=list)
    infos: list[tuple[float, str, str]] = field(default_factory=list)
    messages: deque[Message] = field(default_factory=lambda: deque(maxlen=MESSAGES_MAX))
    refer_answer: int = 0
    """The answer to our last REFER."""
    refer_said: list[str] = field(default_factory=list)
    """What the NOTIFYs said since, first lines of their sipfrags."""
    answer_due: float | None = None
    hangup_due: float | None = None
    hangup_after_s: float | None = None

    @property
    def living(self) -> bool:
        """Not ended."""
        return self.state != "ended"

    def media(self) -> None:
        """Aims the stream and opens or closes its mouth, as both descriptions and the state say."""
        theirs = self.theirs
        if theirs is None or not self.living:
            self.stream.talk(False)
            return
        self.stream.aim(
            theirs.host, theirs.port, theirs.codec, theirs.event_pt, self.ours.event_pt, self.keys()
        )
        open_mouth = self.state == "up" or (self.early and self.state == "ringing")
        self.stream.talk(open_mouth and not self.hold and theirs.wants_audio)

    def keys(self) -> Keys | None:
        """Both sides' keys, None where one speaks plain RTP."""
        ours, theirs = self.ours.crypto, self.theirs and self.theirs.crypto
        return Keys(theirs.suite, ours.key, theirs.key) if ours and theirs else None

    def answer_text(self) -> str:
        """Our answer to the description last taken from the other side: SRTP to SRTP, with the key we had."""
        if self.theirs is not None:
            if asked := self.theirs.crypto:
                key = self.ours.crypto.key if self.ours.crypto else new_key()
                self.ours.crypto = Crypto(asked.tag, asked.suite, key)
            self.ours.codec = self.theirs.codec
            self.ours.event_pt = self.theirs.event_pt
            allowed = REVERSED[self.theirs.direction]
            if self.hold:
                allowed = "sendonly" if allowed in ("sendrecv", "sendonly") else "inactive"
            self.ours.direction = allowed
        return self.ours.text()

    def to_dict(self, with_messages: bool = False) -> dict[str, Any]:
        """JSON values."""
        received = [message for message in self.messages if message.way == "received"]
        values = {
            "call": self.id,
            "owner": self.owner,
            "way": self.way,
            "number": self.number,
            "caller": self.caller,
            "state": self.state,
            "stream": self.stream.id,
            "sip_call_id": self.sip_call_id,
            "started": self.started,
            "ringing_at": self.ringing_at,
            "answered_at": self.answered_at,
            "ended_at": self.ended_at,
            "ended_by": self.ended_by,
            "status": self.status,
            "cause": self.cause,
            "hold": self.hold,
            "held_by_them": self.theirs is not None and self.theirs.direction in ("sendonly", "inactive"),
            "reinvites": self.reinvites,
            "reinvite_failures": self.reinvite_failures,
            "leaked_headers": self.leaked_headers,
            "infos": [{"at": at, "type": kind, "body": body} for at, kind, body in self.infos],
            "refer": {"answer": self.refer_answer, "said": self.refer_said},
            "sip_received": len(received),
        }
        if with_messages:
            values["messages"] = [message.to_dict() for message in self.messages]
        return values
