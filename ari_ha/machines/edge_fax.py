"""Fax over T.38 (UDPTL) between two carriers that may: passed through, never converted.

An offer of T.38 (a re-INVITE with ``m=image``, ITU-T T.38 Annex D) goes on to the other of the
two, with a port of ours; its answer comes back the same way, and rtpengine passes the packets
from one to the other as they are. The audio and the node's half stay as they were, silent, so
nothing of a takeover changes. A refusal anywhere leaves everybody in audio (RFC 3261 §14.1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ari_ha.core.ids import PRIMARY_LEG
from ari_ha.core.machine import Done, Outcome
from ari_ha.machines.edge_calls import Calls
from ari_ha.machines.edge_context import EdgeContext
from ari_ha.machines.edge_model import EdgeCall, PhoneLeg
from ari_ha.machines.trunks import Trunks
from ari_ha.sip.sdp import Media, SdpError, SessionDescription, address_of, build_fax_sdp, without_address

ANSWER_LIMIT_S = 8.0
"""The other end has this long to take T.38; a fax machine waits about so long for it."""
TAG = "{}/fax"
"""rtpengine's tag of a leg's fax, beside that of its audio"""


@dataclass(slots=True)
class Asked:
    """An offer on its way to the other end."""

    call: EdgeCall
    leg: PhoneLeg
    other: PhoneLeg
    session: SessionDescription
    image: Media
    over: bool = field(default=False)


def image_of(text: str) -> tuple[SessionDescription, Media] | None:
    """The T.38 stream of a description that has no audio; None where that is not so."""
    try:
        session = SessionDescription.parse(text)
    except SdpError:
        return None
    if session.audio() is not None:
        return None
    for media in session.media:
        if media.kind == "image" and media.proto.lower() == "udptl" and "t38" in media.formats:
            return None if media.rejected else (session, media)
    return None


def fax_sdp(leg: PhoneLeg, like: Media, lines: list[str]) -> str:
    """Our description to ``leg``: its fax port, and what the other end says of its fax. ``lines``
    as in `PhoneLeg.media_lines`."""
    leg.sdp_version += 1
    said = [line for line in like.lines if line.startswith("a=T38")]
    head, _, image = build_fax_sdp(leg.sdp_version, leg.fax["host"], leg.fax["port"], said).partition("m=")
    return head + "".join(line or f"m={image}" for line in lines)


def _far(session: SessionDescription, image: Media) -> str:
    """Where the far end takes its fax, alone."""
    host = image.connection or session.connection or "0.0.0.0"
    return build_fax_sdp(1, host, image.port)


def _lines(session: SessionDescription, image: Media) -> list[str]:
    """What answers an offer line by line: empty for the stream we take."""
    return [
        "" if media is image else f"m={media.kind} 0 {media.proto} {' '.join(media.formats)}\r\n"
        for media in session.media
    ]


class Fax:
    """T.38 in calls between two carriers."""

    def __init__(self, context: EdgeContext, calls: Calls, trunks: Trunks) -> None:
        self._context = context
        self._calls = calls
        self._trunks = trunks
        self._asked: dict[str, Asked] = {}
        """SIP key of the end that is asked"""

    # --- to T.38 -------------------------------------------------------------------

    def offered(self, call: EdgeCall, leg: PhoneLeg, sdp: str) -> bool:
        """Takes a leg's offer of T.38; False when it is none."""
        found, context = image_of(sdp), self._context
        if found is None:
            return False
        self._asked = {key: item for key, item in self._asked.items() if item.other.alive}
        other = self._partner(call, leg)
        if other is None or any(asked.call is call for asked in self._asked.values()):
            self._refuse_offer(leg, 488 if other is None else 491)
            return True
        if not context.sip.steady(other.key):
            self._refuse_offer(leg, 491)
            return True
        asked = Asked(call, leg, other, *found)
        self._asked[other.key] = asked
        context.at(f"fax/{call.call}", context.now + ANSWER_LIMIT_S, lambda: self._refused(asked))
        self._port(asked, leg, lambda: self._port(asked, other, lambda: self._ask(asked)))
        return True

    def _partner(self, call: EdgeCall, leg: PhoneLeg) -> PhoneLeg | None:
        """The other of two carriers that both may."""
        two = [item for item in call.up() if item.consult == leg.consult and not item.aside]
        if len(two) != 2 or leg not in two or not all(self._may(call, item) for item in two):
            return None
        return two[0] if two[1] is leg else two[1]

    def _may(self, call: EdgeCall, leg: PhoneLeg) -> bool:
        name = leg.trunk or (call.trunk if leg.leg == PRIMARY_LEG else "")
        trunk = self._trunks.table.get(name)
        return trunk is not None and trunk.t38 and not leg.side.suite

    def _refuse_offer(self, leg: PhoneLeg, status: int) -> None:
        self._context.count("edge_faxes", result="refused")
        self._context.sip.reject_reinvite(leg.key, status, self._context.now)

    def _port(self, asked: Asked, leg: PhoneLeg, then: Callable[[], None]) -> None:
        """A port for the leg's fax; kept as long as the leg."""
        if leg.fax:
            then()
            return

        def opened(outcome: Outcome) -> None:
            place = _place(outcome)
            if place is None or asked.over:
                self._unasked(asked)
            else:
                leg.fax = {"host": place[0], "port": place[1]}
                then()

        body: dict[str, object] = {
            "from-tag": TAG.format(leg.leg),
            "interface": self._context.config.public_interface,
            "medias": [{"type": "image", "codecs": ["t38"]}],
            "transport-protocol": "UDPTL",
            "ICE": "remove",
        }
        self._context.ng(asked.call.call, "create", body, opened)

    def _ask(self, asked: Asked) -> None:
        """The other end is asked, as it was offered."""
        context, other = self._context, asked.other
        if asked.over or asked.call.ended or not other.alive or not context.sip.steady(other.key):
            self._unasked(asked)
            return
        self._teach(asked.call, asked.leg, asked.session, asked.image)
        context.sip.reinvite(other.key, fax_sdp(other, asked.image, [""]), context.now)

    def _teach(self, call: EdgeCall, leg: PhoneLeg, session: SessionDescription, image: Media) -> None:
        sdp, context = _far(session, image), self._context
        if not context.takes_media(address_of(sdp), context.sip.leg_flow(leg.key)):
            context.count("edge_media_addresses_refused")
            sdp = without_address(sdp)
        body: dict[str, object] = {"from-tag": TAG.format(leg.leg), "sdp": sdp}
        self._context.ng(call.call, "create answer", body)

    def answered(self, key: str, sdp: str | None) -> bool:
        """A re-INVITE of ours was answered; whether it was one for T.38."""
        asked, context = self._asked.pop(key, None), self._context
        if asked is None:
            return False
        found = image_of(sdp or "")
        if found is None or asked.over or not asked.leg.alive:
            self._refused(asked)
            self._to_audio(asked.other)
            return True
        asked.over = True
        call, leg, other = asked.call, asked.leg, asked.other
        context.cancel(f"fax/{call.call}")
        self._teach(call, other, *found)
        self._connect(call, "connect", leg, other)
        for item, lines in ((leg, _lines(asked.session, asked.image)), (other, [""])):
            item.fax["on"] = True
            # back in audio the stream takes the audio's line, or the fax's where there is none
            item.media_lines = _audio_lines(asked.session) if item is leg else lines
        answer = fax_sdp(leg, found[1], _lines(asked.session, asked.image))
        context.sip.accept_reinvite(leg.key, answer, context.now)
        context.note(f"call/{call.call}", "fax by T.38", legs=f"{leg.leg} {other.leg}")
        context.count("edge_faxes", result="relayed")
        self._calls.touch(call)
        return True

    def failed(self, key: str) -> bool:
        """A re-INVITE came to nothing: the other end's, or the asker took his back; whether it was
        one for T.38."""
        asked = self._asked.pop(key, None)
        if asked is not None:
            self._refused(asked)
            return True
        taken_back = [asked for asked in self._asked.values() if asked.leg.key == key]
        for asked in taken_back:
            asked.over = True
        return bool(taken_back)

    def _unasked(self, asked: Asked) -> None:
        """Nothing was sent to the other end: no answer of it is waited for."""
        self._asked.pop(asked.other.key, None)
        self._refused(asked)

    def _refused(self, asked: Asked) -> None:
        if asked.over:
            return
        asked.over = True
        self._context.cancel(f"fax/{asked.call.call}")
        if asked.leg.alive and not asked.call.ended:
            self._refuse_offer(asked.leg, 488)

    def _connect(self, call: EdgeCall, command: str, one: PhoneLeg, two: PhoneLeg) -> None:
        tags = TAG.format(one.leg), TAG.format(two.leg)
        for speaker, listener in (tags, tags[::-1]):
            body: dict[str, object] = {"from-tag": speaker, "to-tag": listener, "flags": ["directional"]}
            self._context.ng(call.call, command, body)

    # --- and back ------------------------------------------------------------------

    def back(self, call: EdgeCall, leg: PhoneLeg) -> None:
        """A leg that faxed offers audio: the other one is taken back too."""
        if not leg.fax.get("on"):
            return
        leg.fax["on"] = False
        for other in [item for item in call.up() if item.fax.get("on") and item.consult == leg.consult]:
            other.fax["on"] = False
            self._connect(call, "unsubscribe", leg, other)
            self._to_audio(other)
        self._context.note(f"call/{call.call}", "back from T.38", leg=leg.leg)

    def _to_audio(self, leg: PhoneLeg) -> None:
        context = self._context
        if leg.alive and context.sip.steady(leg.key):
            context.sip.reinvite(leg.key, leg.local_sdp(bump=True), context.now)


def _audio_lines(session: SessionDescription) -> list[str]:
    lines, taken = [], any(media.kind == "audio" for media in session.media)
    for media in session.media:
        if media.kind == ("audio" if taken else "image") and "" not in lines:
            lines.append("")
        else:
            lines.append(f"m={media.kind} 0 {media.proto} {' '.join(media.formats)}\r\n")
    return lines


def _place(outcome: Outcome) -> tuple[str, int] | None:
    """Address and port of what rtpengine opened."""
    if not isinstance(outcome, Done):
        return None
    try:
        session = SessionDescription.parse(str(outcome.value["sdp"]))
        media = session.media[0]
    except (SdpError, KeyError, TypeError, IndexError):
        return None
    host = media.connection or session.connection
    return (host, media.port) if host and media.port else None
