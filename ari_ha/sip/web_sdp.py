"""What a browser's description has beside the audio: ICE (RFC 8839) and DTLS-SRTP (RFC 5763, RFC 8842), for
one stream with RTP and RTCP on one port (RFC 8834)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address

from ari_ha.sip.sdp import Media, SessionDescription

PROTO = "UDP/TLS/RTP/SAVPF"
"""The m-line's transport (RFC 5764 section 8)."""
CANDIDATES_MAX_COUNT = 16
"""Of one stream; further ones are left out."""
_ICE = re.compile(r"[A-Za-z0-9+/]{4,256}")
"""ice-ufrag and ice-pwd (RFC 8839 section 5.4)."""
_FINGERPRINT = re.compile(r"(?i)sha-(?:1|224|256|384|512) [0-9a-f]{2}(?::[0-9a-f]{2}){19,63}")
_MID = re.compile(r"[A-Za-z0-9_-]{1,32}")
_CANDIDATE = re.compile(
    r"[A-Za-z0-9+/]{1,32} 1 (?i:udp) [0-9]{1,10} (?P<address>[0-9.]{7,15}) (?P<port>[0-9]{1,5}) "
    r"typ (?:host|srflx|prflx|relay)"
)
_RELAY_SAYS = ("ice-ufrag", "ice-pwd", "fingerprint", "candidate")
"""Attributes of rtpengine's that a phone is told as they are."""


@dataclass(frozen=True, slots=True)
class WebMedia:
    """One stream's ICE and DTLS facts."""

    ufrag: str
    pwd: str
    fingerprint: str
    setup: str
    """Its role in DTLS: active, passive, or actpass (RFC 4145)."""
    mid: str
    """Its name (RFC 9143); empty: none, or one we do not repeat."""
    bundled: bool
    candidates: tuple[str, ...] = ()

    @classmethod
    def of(cls, session: SessionDescription, audio: Media) -> WebMedia | None:
        """What a stream says; None when something needed is missing or odd."""

        def one(name: str) -> str:
            prefix = f"a={name}:"
            above = [line[len(prefix) :] for line in session.lines if line.startswith(prefix)]
            return next(iter([*audio.attributes(name), *above]), "").strip()

        ufrag, pwd, printed, setup = map(one, ("ice-ufrag", "ice-pwd", "fingerprint", "setup"))
        if not (_ICE.fullmatch(ufrag) and _ICE.fullmatch(pwd) and _FINGERPRINT.fullmatch(printed)):
            return None
        if setup not in ("active", "passive", "actpass") or not audio.attributes("rtcp-mux"):
            return None
        mid = one("mid")
        mid = mid if _MID.fullmatch(mid) else ""
        groups = [line.split() for line in session.lines if line.startswith("a=group:BUNDLE")]
        bundled = bool(mid) and any(mid in group[1:] for group in groups)
        usable = [known for value in audio.attributes("candidate") if (known := _usable(value))]
        return cls(ufrag, pwd, printed, setup, mid, bundled, tuple(usable[:CANDIDATES_MAX_COUNT]))

    def lines(self, setup: str) -> list[str]:
        """Its attributes for rtpengine, in this role. Never its name: rtpengine 26.0.1 dies of `connect`
        on a tag that was published with one."""
        ice = [f"ice-ufrag:{self.ufrag}", f"ice-pwd:{self.pwd}", *(f"candidate:{c}" for c in self.candidates)]
        return [*ice, f"fingerprint:{self.fingerprint}", f"setup:{setup}", "rtcp-mux"]


def _usable(candidate: str) -> str:
    """What is told of it; empty when it is no IPv4, UDP, RTP: others (names of mDNS, TCP, IPv6) lead
    nowhere from here. Nothing beyond what the grammar says (RFC 8839 section 5.1): it comes from outside,
    and rtpengine reads it."""
    parts = candidate.split()[:8]
    found = _CANDIDATE.fullmatch(" ".join(parts))
    if found is None or not 0 < int(found["port"]) < 65_536:
        return ""
    try:
        IPv4Address(found["address"])
    except AddressValueError:
        return ""
    return found[0]


def relay_lines(audio: Media) -> list[str]:
    """What a phone is to be told of rtpengine's ICE and certificate; empty when it said none."""
    found = [f"{name}:{value}" for name in _RELAY_SAYS for value in audio.attributes(name)]
    return found if all(audio.attributes(name) for name in _RELAY_SAYS) else []


def secured(plain: str, lines: Sequence[str], mid: str = "", bundled: bool = False) -> str:
    """A description of one stream of plain RTP, made one of DTLS-SRTP with these attributes."""
    head, _, stream = plain.partition("m=")
    group = f"a=group:BUNDLE {mid}\r\n" if mid and bundled else ""
    named = [f"mid:{mid}"] if mid else []
    stream = stream.replace(" RTP/AVP ", f" {PROTO} ", 1)
    return f"{head}{group}m={stream}" + "".join(f"a={line}\r\n" for line in (*lines, *named))


def without_ice(text: str) -> str:
    """The same description without its ICE session."""
    kept = [line for line in text.splitlines() if not line.startswith(("a=ice-", "a=candidate"))]
    return "\r\n".join([*kept, ""])
