"""SDP (RFC 8866) and the offer/answer facts of RFC 3264, as far as an audio call needs them.

Lines that are not understood are kept in place, so a description goes through parse and serialise unharmed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

SDP_LINES_MAX_COUNT = 1_000
"""Lines of one description."""
MEDIA_MAX_COUNT = 32
"""m-lines of one description."""
FORMATS_MAX_COUNT = 128
"""Formats of one m-line: as many as there are payload types."""
DIRECTIONS = ("sendrecv", "sendonly", "recvonly", "inactive")
REVERSED = {"sendrecv": "sendrecv", "sendonly": "recvonly", "recvonly": "sendonly", "inactive": "inactive"}
"""What each direction means seen from the other side."""
_ANSWERS = {
    "sendrecv": DIRECTIONS,
    "sendonly": ("recvonly", "inactive"),
    "recvonly": ("sendonly", "inactive"),
    "inactive": ("inactive",),
}
"""RFC 3264 section 6.1: the directions that may answer an offered one."""

STATIC_CODECS = {
    0: "PCMU/8000",
    3: "GSM/8000",
    4: "G723/8000",
    8: "PCMA/8000",
    9: "G722/8000",
    18: "G729/8000",
}
"""RFC 3551 payload types that need no rtpmap."""


class SdpError(ValueError):
    """A body that is no session description."""


@dataclass(slots=True)
class Media:
    """One m-line and the lines below it."""

    kind: str
    port: int
    proto: str
    formats: list[str]
    lines: list[str] = field(default_factory=list)
    """The lines after m=, without their line ends, in order."""
    ports: int = 1

    @property
    def rejected(self) -> bool:
        """Port 0: this stream is refused or removed (RFC 3264 section 6)."""
        return self.port == 0

    @property
    def payload_types(self) -> list[int]:
        """The numeric formats that are payload types (RFC 3551: below 128)."""
        short = [item for item in self.formats if len(item) < 4 and item.isascii() and item.isdigit()]
        return [int(item) for item in short if int(item) < 128]

    def attributes(self, name: str) -> list[str]:
        """The values of `a=name:value` (an empty string for `a=name`)."""
        prefix, flag = f"a={name}:", f"a={name}"
        return [
            line[len(prefix) :] if line.startswith(prefix) else ""
            for line in self.lines
            if line.startswith(prefix) or line == flag
        ]

    @property
    def rtpmap(self) -> dict[int, str]:
        """Payload type to encoding (`PCMU/8000`), static types filled in."""
        known = dict.fromkeys(self.payload_types)
        found = {pt: STATIC_CODECS[pt] for pt in known if pt in STATIC_CODECS}
        found.update(_numbered(self.attributes("rtpmap")))
        return {pt: name for pt, name in found.items() if pt in known}

    @property
    def fmtp(self) -> dict[int, str]:
        """Payload type to its format parameters."""
        return _numbered(self.attributes("fmtp"))

    @property
    def ptime(self) -> int | None:
        """Packet time in milliseconds."""
        for value in self.attributes("ptime"):
            text = value.strip().partition(".")[0]
            if text.isascii() and text.isdigit() and len(text) < 5:
                return int(text)
        return None

    @property
    def crypto(self) -> list[str]:
        """The SDES lines (RFC 4568)."""
        return self.attributes("crypto")

    @property
    def direction(self) -> str | None:
        """The direction of this m-line, None when it has none of its own."""
        for line in self.lines:
            if line.startswith("a=") and line[2:].strip() in DIRECTIONS:
                return line[2:].strip()
        return None

    @property
    def connection(self) -> str | None:
        """The address of its own c= line."""
        return _connection(self.lines)

    @property
    def telephone_event(self) -> int | None:
        """The payload number of telephone-event at 8 kHz (or the first one), RFC 4733."""
        events = {
            pt: name.lower() for pt, name in self.rtpmap.items() if name.lower().startswith("telephone-event")
        }
        for pt, name in events.items():
            if name.startswith("telephone-event/8000"):
                return pt
        return next(iter(events), None)


SUITES = ("AES_CM_128_HMAC_SHA1_80", "AES_CM_128_HMAC_SHA1_32")
"""SDES suites used, the better one first (RFC 4568 section 6.2)."""


@dataclass(frozen=True, slots=True)
class Crypto:
    """One a=crypto line that can be used."""

    tag: int
    suite: str
    key: str
    """The key parameter: `inline:...`, with lifetime and MKI where given."""

    def line(self) -> str:
        """The value of the attribute."""
        return f"{self.tag} {self.suite} {self.key}"


def usable_crypto(media: Media) -> Crypto | None:
    """The best of a stream's lines without session parameters (they would switch parts of the protection
    off, or ask for what we do not do), None when there is none."""
    found: list[Crypto] = []
    for value in media.crypto:
        parts = value.split()
        if len(parts) != 3 or not (parts[0].isascii() and parts[0].isdigit()) or len(parts[0]) > 9:
            continue
        if parts[1] in SUITES and parts[2].startswith("inline:") and ";" not in parts[2]:
            found.append(Crypto(int(parts[0]), parts[1], parts[2]))
    return min(found, key=lambda item: SUITES.index(item.suite), default=None)


@dataclass(slots=True)
class SessionDescription:
    """A whole description."""

    username: str
    session_id: str
    version: str
    origin_address: str
    """The rest of o=: nettype, addrtype and address."""
    lines: list[str]
    """Session-level lines after o=, in order."""
    media: list[Media]

    @classmethod
    def parse(cls, text: str) -> SessionDescription:
        """The description in `text`; SdpError when it is none."""
        lines = [line.rstrip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
        lines = [line for line in lines if line]
        if len(lines) > SDP_LINES_MAX_COUNT:
            raise SdpError("too many lines")
        if not lines or lines[0] != "v=0":
            raise SdpError("no v=0")
        origin: list[str] | None = None
        session: list[str] = []
        media: list[Media] = []
        for line in lines[1:]:
            if line[1:2] != "=" or not line[0].isalpha():
                raise SdpError("not a type=value line")
            if line.startswith("m="):
                media.append(_parse_media(line))
                if len(media) > MEDIA_MAX_COUNT:
                    raise SdpError("too many m-lines")
            elif media:
                media[-1].lines.append(line)
            elif line.startswith("o=") and origin is None:
                origin = line[2:].split(None, 3)
            else:
                session.append(line)
        if origin is None or len(origin) != 4:
            raise SdpError("o= line")
        return cls(origin[0], origin[1], origin[2], origin[3], session, media)

    def serialise(self) -> str:
        """The description with CRLF line ends."""
        lines = [
            "v=0",
            f"o={self.username} {self.session_id} {self.version} {self.origin_address}",
            *self.lines,
        ]
        for media in self.media:
            port = f"{media.port}/{media.ports}" if media.ports > 1 else str(media.port)
            lines.append(f"m={media.kind} {port} {media.proto} {' '.join(media.formats)}")
            lines.extend(media.lines)
        return "\r\n".join(lines) + "\r\n"

    def audio(self) -> Media | None:
        """The first audio stream that is not rejected."""
        for media in self.media:
            if media.kind == "audio" and not media.rejected:
                return media
        return None

    def media_direction(self, media: Media) -> str:
        """The direction in force for an m-line: its own, the session's, or sendrecv."""
        own = media.direction
        if own is not None:
            return own
        for line in self.lines:
            if line.startswith("a=") and line[2:].strip() in DIRECTIONS:
                return line[2:].strip()
        return "sendrecv"

    @property
    def direction(self) -> str:
        """The direction of the audio stream; inactive when there is none."""
        audio = self.audio()
        return "inactive" if audio is None else self.media_direction(audio)

    @property
    def connection(self) -> str | None:
        """The address the audio is to be sent to."""
        audio = self.audio()
        own = audio.connection if audio is not None else None
        return own or _connection(self.lines)

    def is_hold(self) -> bool:
        """The sender does not want to hear us: sendonly, inactive, or the 0.0.0.0 of RFC 2543 (which with ICE
        says only that its candidates are elsewhere)."""
        audio = self.audio()
        if audio is None:
            return False
        nowhere = self.connection in ("0.0.0.0", "::") and not audio.attributes("ice-ufrag")
        return self.direction in ("sendonly", "inactive") or nowhere


def _parse_media(line: str) -> Media:
    parts = line[2:].split()
    if len(parts) < 3:
        raise SdpError("m= line")
    if len(parts) > 3 + FORMATS_MAX_COUNT:
        raise SdpError("too many formats")
    port, _, count = parts[1].partition("/")
    if not (port.isascii() and port.isdigit()) or len(port) > 5 or int(port) > 65_535:
        raise SdpError("port")
    ports = int(count) if count.isascii() and count.isdigit() and len(count) < 4 else 1
    return Media(parts[0], int(port), parts[2], parts[3:], ports=max(1, ports))


def _connection(lines: Iterable[str]) -> str | None:
    for line in lines:
        if line.startswith("c="):
            parts = line[2:].split()
            if len(parts) == 3:
                return parts[2].partition("/")[0]
    return None


def address_of(text: str) -> str:
    """The address of the only c= line of a description of ours."""
    return _connection(text.splitlines()) or ""


def without_address(text: str) -> str:
    """The same description with 0.0.0.0 there: nothing is sent (RFC 3264 section 8.4)."""
    lines = text.split("\r\n")
    return "\r\n".join("c=IN IP4 0.0.0.0" if line.startswith("c=") else line for line in lines)


def _numbered(values: Iterable[str]) -> dict[int, str]:
    found: dict[int, str] = {}
    for value in values:
        number, _, rest = value.partition(" ")
        if number.isascii() and number.isdigit() and len(number) < 4:
            found.setdefault(int(number), rest.strip())
    return found


def may_answer(offer: str, answer: str) -> bool:
    """Whether the audio direction of one description may answer the other's (RFC 3264 section 6.1)."""
    try:
        offered, answered = SessionDescription.parse(offer), SessionDescription.parse(answer)
    except SdpError:
        return False
    if len(offered.media) != len(answered.media):
        return False
    return answered.direction in _ANSWERS[offered.direction]


def same_media(one: str | None, other: str | None) -> bool:
    """Whether two descriptions ask for the same, the o= line and line ends aside."""
    if one is None or other is None:
        return one is other
    return _without_origin(one) == _without_origin(other)


def _without_origin(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines() if line.strip() and not line.startswith("o=")]


def build_fax_sdp(version: int, ip: str, port: int, said: Sequence[str] = ()) -> str:
    """A description of one T.38 stream over UDPTL (ITU-T T.38 Annex D); `said` are its attribute lines."""
    lines = ["v=0", f"o=- 1 {version} IN IP4 {ip}", "s=-", f"c=IN IP4 {ip}", "t=0 0"]
    return "\r\n".join([*lines, f"m=image {port} udptl t38", *said, ""])


def build_audio_sdp(
    session_id: int | str,
    version: int | str,
    ip: str,
    port: int,
    codecs: Sequence[tuple[int, str]] = ((8, "PCMA/8000"), (0, "PCMU/8000")),
    telephone_event_pt: int | None = 101,
    direction: str = "sendrecv",
    crypto: str = "",
    origin: str = "",
) -> str:
    """A description of one audio stream; `codecs` are payload type and encoding in order of preference.
    `crypto` is the value of an a=crypto line (RFC 4568) and makes the stream RTP/SAVP. `origin` is the
    address in o= where the stream has moved since: that line keeps its address (RFC 3264 section 8)."""
    family = "IP6" if ":" in ip else "IP4"
    numbers = [pt for pt, _ in codecs]
    lines = [f"a=rtpmap:{pt} {name}" for pt, name in codecs]
    if telephone_event_pt is not None:
        numbers.append(telephone_event_pt)
        lines += [f"a=rtpmap:{telephone_event_pt} telephone-event/8000", f"a=fmtp:{telephone_event_pt} 0-16"]
    formats = " ".join(map(str, numbers))
    return "\r\n".join(
        [
            "v=0",
            f"o=- {session_id} {version} IN {family} {origin or ip}",
            "s=-",
            f"c=IN {family} {ip}",
            "t=0 0",
            f"m=audio {port} RTP/{'SAVP' if crypto else 'AVP'} {formats}",
            *lines,
            *([f"a=crypto:{crypto}"] if crypto else []),
            "a=ptime:20",
            f"a={direction}",
            "",
        ]
    )
