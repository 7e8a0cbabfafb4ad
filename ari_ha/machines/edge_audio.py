"""The audio agreed on with one far end: codec, payload numbers, direction, key."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ari_ha.sip.sdp import SdpError, SessionDescription, build_audio_sdp, usable_crypto

CODECS = {8: "PCMA", 0: "PCMU"}
"""Static payload types (RFC 3551 §6) carried end to end; PCMA preferred."""


class CodecRefused(ValueError):
    """The far end offers no audio we carry (SIP 488)."""


@dataclass(slots=True)
class AudioSide:
    """One phone leg's negotiated audio, as the phone numbers it."""

    payload: int = 8
    telephone_event: int | None = 101
    direction: str = "sendrecv"
    suite: str = ""
    """SRTP's suite (SDES, RFC 4568); empty: plain RTP"""
    crypto_tag: int = 1
    """Tag of the crypto line in use, as whoever made the offer numbered it"""

    @property
    def codec(self) -> str:
        """The codec's name for rtpengine."""
        return CODECS[self.payload]

    @classmethod
    def of(cls, text: str, prefer: int | None = None) -> AudioSide:
        """What to use with the party that sent this SDP: its first codec that we carry,
        or ``prefer`` where it is among them. Raises CodecRefused."""
        try:
            audio = SessionDescription.parse(text).audio()
        except SdpError as error:
            raise CodecRefused(str(error)) from error
        if audio is None or audio.rejected or audio.proto not in ("RTP/AVP", "RTP/SAVP"):
            raise CodecRefused("no RTP audio stream")
        crypto = usable_crypto(audio) if audio.proto == "RTP/SAVP" else None
        if audio.proto == "RTP/SAVP" and crypto is None:
            raise CodecRefused("no SRTP suite in common")
        offered = [payload for payload in audio.payload_types if payload in CODECS]
        if offered:
            payload = prefer if prefer in offered else offered[0]
            side = cls(payload, audio.telephone_event)
            if crypto:
                side.suite, side.crypto_tag = crypto.suite, crypto.tag
            return side
        raise CodecRefused(f"no codec in common, offered {audio.formats}")

    def answered(self, text: str) -> AudioSide:
        """What to use with the party that answered our offer, or makes a new one: SRTP
        stays SRTP and plain stays plain. Raises CodecRefused."""
        side = AudioSide.of(text)
        if side.suite != self.suite:
            raise CodecRefused("not the transport that was agreed on")
        return side


def narrowed(text: str, side: AudioSide) -> str:
    """The far end's SDP with only the codec and key in use, so that rtpengine never has
    a second one to choose; address, port and direction stay theirs. rtpengine made the
    offer as far as it knows, with crypto tag 1."""
    session = SessionDescription.parse(text)
    audio = session.audio()
    if audio is None:
        raise CodecRefused("no audio")
    host = audio.connection or session.connection or "0.0.0.0"
    crypto = usable_crypto(audio) if side.suite else None
    return build_audio_sdp(
        1,
        1,
        host,
        audio.port,
        [(side.payload, f"{side.codec}/8000")],
        side.telephone_event,
        session.media_direction(audio),
        replace(crypto, tag=1).line() if crypto else "",
    )


def answer_lines(offer: str) -> list[str]:
    """What `PhoneLeg.media_lines` is for this offer. Raises SdpError."""
    lines, taken = [], False
    for media in SessionDescription.parse(offer).media:
        if media.kind == "audio" and not taken and not media.rejected:
            lines.append("")
            taken = True
        else:
            lines.append(f"m={media.kind} 0 {media.proto} {' '.join(media.formats)}\r\n")
    return lines


MIRRORED = {"sendrecv": "sendrecv", "sendonly": "recvonly", "recvonly": "sendonly", "inactive": "inactive"}
"""RFC 3264 §6.1: the answer's direction to an offer's."""
