"""What an edge agrees on with one far end: codec, digits, and how the audio is protected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ari_ha.sip.sdp import SUITES, SdpError, SessionDescription, build_audio_sdp, usable_crypto
from ari_ha.sip.web_sdp import PROTO, WebMedia, secured

CODECS = {8: "PCMA", 0: "PCMU"}
"""Static payload types (RFC 3551 §6) carried end to end; PCMA preferred."""
MIRRORED = {"sendrecv": "sendrecv", "sendonly": "recvonly", "recvonly": "sendonly", "inactive": "inactive"}
"""RFC 3264 §6.1: the answer's direction to an offer's."""
DTLS = "DTLS"
"""`AudioSide.suite` of a browser: ICE, and keys by DTLS (RFC 5764) instead of in SDP"""
WEB_TRANSPORTS = ("ws", "wss")
WEB_FACTS = ("ufrag", "setup", "mid", "bundled")
"""Fields of `AudioSide` that only a browser has"""


class CodecRefused(ValueError):
    """The far end offers no audio we carry (SIP 488)."""


@dataclass(slots=True)
class AudioSide:
    """One phone leg's negotiated audio, as the phone numbers it."""

    payload: int = 8
    telephone_event: int | None = 101
    direction: str = "sendrecv"
    suite: str = ""
    """SRTP's suite (SDES, RFC 4568), or DTLS; empty: plain RTP"""
    crypto_tag: int = 1
    """Tag of the crypto line in use, as whoever made the offer numbered it"""
    relay_tag: int = 1
    """Tag of the crypto line between rtpengine and us. Under another one rtpengine makes another key
    (`edge_srtp`)."""
    ufrag: str = ""
    """With DTLS: the far end's ICE session. Empty: any, it has not said, or we began another."""
    setup: str = "actpass"
    """With DTLS: our role (RFC 4145); actpass until both are known"""
    mid: str = "0"
    """With DTLS: the stream's name"""
    bundled: bool = True
    """With DTLS: whether the name is in a BUNDLE group (RFC 9143)"""

    @property
    def codec(self) -> str:
        """The codec's name for rtpengine."""
        return CODECS[self.payload]

    @property
    def web(self) -> bool:
        """Whether it is a browser's."""
        return self.suite == DTLS

    @classmethod
    def of(cls, text: str, prefer: int | None = None) -> AudioSide:
        """What to use with the party that sent this SDP: its first codec that we carry,
        or ``prefer`` where it is among them. Raises CodecRefused."""
        try:
            session = SessionDescription.parse(text)
        except SdpError as error:
            raise CodecRefused(str(error)) from error
        audio = session.audio()
        if audio is None or audio.rejected or audio.proto not in ("RTP/AVP", "RTP/SAVP", PROTO):
            raise CodecRefused("no RTP audio stream")
        crypto = usable_crypto(audio) if audio.proto == "RTP/SAVP" else None
        web = WebMedia.of(session, audio) if audio.proto == PROTO else None
        if audio.proto != "RTP/AVP" and crypto is None and web is None:
            raise CodecRefused("no protection in common")
        offered = [payload for payload in audio.payload_types if payload in CODECS]
        if offered:
            payload = prefer if prefer in offered else offered[0]
            side = cls(payload, audio.telephone_event)
            if crypto:
                side.suite, side.crypto_tag = crypto.suite, crypto.tag
            if web:
                side.suite, side.ufrag, side.mid, side.bundled = DTLS, web.ufrag, web.mid, web.bundled
                side.setup = "active" if web.setup == "passive" else "passive"
            return side
        raise CodecRefused(f"no codec in common, offered {audio.formats}")

    def answered(self, text: str) -> AudioSide:
        """What to use with the party that answered our offer: SRTP stays SRTP and plain stays
        plain, and a browser's ICE session is another only where ours is. Raises CodecRefused."""
        side = self.changed(text)
        if self.other_ice(side):
            raise CodecRefused("another ICE session")
        return side

    def other_ice(self, side: AudioSide) -> bool:
        """Whether the far end has begun another ICE session since."""
        return bool(self.web and self.ufrag and side.ufrag != self.ufrag)

    def changed(self, text: str) -> AudioSide:
        """What to use with the party that makes a new offer, perhaps from another network.
        Raises CodecRefused."""
        side = AudioSide.of(text)
        if side.suite != self.suite:
            raise CodecRefused("not the transport that was agreed on")
        side.relay_tag = self.relay_tag
        if side.web and self.setup != "actpass" and "a=setup:actpass" in text:
            side.setup = self.setup  # the roles of a DTLS association stay (RFC 8842 §5.5)
        return side

    def web_facts(self) -> dict[str, Any]:
        """What `with_web_facts` needs; empty where no browser is."""
        return {name: getattr(self, name) for name in WEB_FACTS} if self.web else {}

    def with_web_facts(self, facts: Mapping[str, Any]) -> AudioSide:
        """A copy with what `web_facts` wrote."""
        # a newer edge may have written more
        known = {name: facts[name] for name in WEB_FACTS if name in facts}
        return replace(self, **known) if known else self


def suite_towards(transport: str, policy: str) -> str:
    """`AudioSide.suite` offered to a phone that registered over this transport. ``policy``:
    the setting ``srtp_to_phones``."""
    if transport in WEB_TRANSPORTS:
        return DTLS
    return SUITES[0] if policy == "always" or (policy == "tls" and transport == "tls") else ""


def narrowed(text: str, side: AudioSide) -> str:
    """The far end's SDP with only the codec and key in use, so that rtpengine never has
    a second one to choose; address, port and direction stay theirs. rtpengine made the
    offer as far as it knows, with a crypto tag of its own."""
    session = SessionDescription.parse(text)
    audio = session.audio()
    if audio is None:
        raise CodecRefused("no audio")
    crypto = usable_crypto(audio) if side.suite and not side.web else None
    plain = build_audio_sdp(
        1,
        1,
        audio.connection or session.connection or "0.0.0.0",
        audio.port,
        [(side.payload, f"{side.codec}/8000")],
        side.telephone_event,
        session.media_direction(audio),
        replace(crypto, tag=side.relay_tag).line() if crypto else "",
    )
    if not side.web:
        return plain
    web = WebMedia.of(session, audio)
    if web is None:
        raise CodecRefused("no ICE or no DTLS")
    return secured(plain, web.lines("passive" if side.setup == "active" else "active"))


def where_it_was(known: str, before: str | None) -> str:
    """What `narrowed` made of an SRTP party that holds by naming no address (RFC 2543, 0.0.0.0), with the
    address it had: rtpengine forgets how often numbers have gone round when a far end moves (26.0.1)."""
    nowhere = "c=IN IP4 0.0.0.0\r\n"
    if " RTP/SAVP " not in known or nowhere not in known or not before or nowhere in before:
        return known
    here, there = SessionDescription.parse(known).audio(), SessionDescription.parse(before)
    audio = there.audio()
    if here is None or audio is None:
        return known
    kept = known.replace(nowhere, f"c=IN IP4 {audio.connection or there.connection}\r\n")
    kept = kept.replace(f"m=audio {here.port} ", f"m=audio {audio.port} ")
    return kept.replace("a=sendrecv\r\n", "a=sendonly\r\n").replace("a=recvonly\r\n", "a=inactive\r\n")


def answer_lines(offer: str) -> list[str]:
    """What `PhoneLeg.media_lines` is for this offer. Raises SdpError."""
    lines, taken = [], False
    for media in SessionDescription.parse(offer).media:
        if media.kind == "audio" and not taken and not media.rejected:
            lines.append("")
            taken = True
        else:
            named = "".join(f"a=mid:{mid}\r\n" for mid in media.attributes("mid")[:1])
            lines.append(f"m={media.kind} 0 {media.proto} {' '.join(media.formats)}\r\n{named}")
    return lines
