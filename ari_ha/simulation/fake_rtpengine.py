"""rtpengine as measured: calls, tags, ports, and who is subscribed to whom.

No packet flows here. `hears` answers whose voice reaches a port, which is what the
packets would show, and `received` is told how many came. Its traps are kept:
`unsubscribe` without a from-tag destroys the listener's media, and only `create` makes
them anew; `connect` without ``directional`` replaces what the two heard by earlier ones
like it, and made onto a directional subscription it leaves one behind that the next does
not take away; without media it says ok and does nothing; `delete` with a tag ends the
call. The same cases are put to it and to a real one (tests/contract).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ari_ha.core.machine import Done, Outcome, Refused
from ari_ha.sip.sdp import SessionDescription, build_audio_sdp, build_fax_sdp, usable_crypto
from ari_ha.sip.web_sdp import PROTO, secured

FIRST_PORT = 30_000
CODEC_NUMBERS = {"PCMU": 0, "PCMA": 8}
"""In the order offered when nothing is asked for."""
SAVP = "RTP/SAVP"
DEAF = ("sendonly", "inactive")
"""What a far end says of itself when it does not listen."""
NOTHING_DELETED = Done({"result": "ok", "warning": "Call-ID not found or tags didn't match"})


@dataclass(slots=True)
class Tag:
    """One party of a call: our port towards it and where it listens."""

    name: str
    host: str = ""
    port: int = 0
    """0: no media. It was only named, by a `connect` or `create answer`, or it was destroyed."""
    payload: int = 0
    ports: dict[str, int] = field(default_factory=dict)
    """interface -> its port there: back on an interface it has its old port again"""
    crypto: tuple[int, str, str] | None = None
    """With SRTP: the tag of its crypto line, the suite, and rtpengine's key"""
    remote: tuple[str, int] | None = None
    direction: str = "sendrecv"
    """The party's own word: ``sendonly`` does not listen."""
    packets: int = 0
    """RTP packets that came from the party, whether anybody hears it or not"""
    counted: tuple[float, bool] | None = None
    """When `packets` was right last, and whether the party sent then"""


@dataclass(slots=True)
class MediaCall:
    """One rtpengine call."""

    ident: str
    tags: dict[str, Tag] = field(default_factory=dict)
    subscriptions: dict[tuple[str, str], bool] = field(default_factory=dict)
    """(listener, speaker) -> whether a plain `connect` made it. It stays what it was made as."""

    def tag(self, name: str) -> Tag:
        """The tag of that name, made if it is not there."""
        return self.tags.setdefault(name, Tag(name))


class FakeRtpengine:
    """One life of a media relay with a public and a core interface. ``before``: the life before it, whose
    ports are not given again, so that a phone that still sends to one of them tells which call it is on."""

    def __init__(
        self, interfaces: Mapping[str, str], started: str = "1", before: FakeRtpengine | None = None
    ) -> None:
        self.interfaces = dict(interfaces)
        self.started = started
        self.calls: dict[str, MediaCall] = {}
        self.destroyed: list[tuple[str, str]] = []
        """(call, tag) whose media a command of ours destroyed"""
        self.given: dict[tuple[str, int], tuple[str, str]] = dict(before.given) if before else {}
        """Which call and tag a port is, or was, of; no port is given twice."""
        self._next_port = before._next_port if before else FIRST_PORT
        self._keys = 0

    def command(self, command: str, body: Mapping[str, Any]) -> Outcome:
        """One NG command."""
        if command == "ping":
            return Done({"result": "pong"})
        if command == "list":
            return Done({"result": "ok", "calls": [*self.calls][: int(body.get("limit", 32))]})
        ident = str(body.get("call-id", ""))
        act = getattr(self, "_" + command.replace(" ", "_"), None)
        if act is None:
            return Refused("Unrecognized command")
        call = self.calls.get(ident)
        if call is None:
            if command == "delete":
                return NOTHING_DELETED
            if command != "create":
                return Refused("Unknown call-ID")
            call = self.calls[ident] = MediaCall(ident)
        return act(call, body)

    # -- commands

    def _create(self, call: MediaCall, body: Mapping[str, Any]) -> Outcome:
        tag = call.tag(str(body["from-tag"]))
        offered = list(body.get("codec", {}).get("offer", CODEC_NUMBERS))
        if not tag.ports:
            tag.payload = next((CODEC_NUMBERS[codec] for codec in offered if codec in CODEC_NUMBERS), 0)
        self._place(call, tag, body)
        if body.get("transport-protocol") == "UDPTL":
            sdp = build_fax_sdp(tag.port, tag.host, tag.port)
            return Done({"result": "ok", "sdp": sdp.replace(" udptl t38", " udptl ")})
        codec = "PCMA" if tag.payload == 8 else "PCMU"
        event = 96 if "telephone-event" in offered else None
        if body.get("transport-protocol") == SAVP and tag.crypto is None:
            tag.crypto = (1, str(body["SDES"][0]).removeprefix("only-"), self._new_key())
        line = "{} {} {}".format(*tag.crypto) if tag.crypto else ""
        sdp = build_audio_sdp(
            tag.port, 1, tag.host, tag.port, [(tag.payload, f"{codec}/8000")], event, "sendrecv", line
        )
        if body.get("transport-protocol") == PROTO:
            sdp = secured(sdp, ["setup:actpass", *self._web_lines(tag)])
        return Done({"result": "ok", "sdp": sdp})

    def _place(self, call: MediaCall, tag: Tag, body: Mapping[str, Any]) -> None:
        """Its port on the interface asked for. What comes to one it had before is still heard."""
        interface = str(body.get("interface", ""))
        if interface not in self.interfaces:
            interface = next(iter(self.interfaces))
        if interface not in tag.ports:
            tag.ports[interface] = self._next_port
            self._next_port += 2
        tag.host, tag.port = self.interfaces[interface], tag.ports[interface]
        self.given[tag.host, tag.port] = (call.ident, tag.name)

    def _new_key(self) -> str:
        self._keys += 1
        return f"inline:{self.started[-8:]:0>8}{self._keys:032d}"

    def _web_lines(self, tag: Tag) -> list[str]:
        """ICE and certificate: the same for a tag's life, and others in another life of the relay."""
        life = f"{tag.port:08d}{self.started[-8:]:0>8}"
        return [
            f"fingerprint:sha-256 {':'.join([f'{int(self.started) % 256:02X}'] * 32)}",
            f"ice-ufrag:{life}",
            f"ice-pwd:{life * 2}",
            f"candidate:{life} 1 UDP 2130706431 {tag.host} {tag.port} typ host",
            "rtcp-mux",
        ]

    def _publish(self, call: MediaCall, body: Mapping[str, Any]) -> Outcome:
        """Takes the far end's keys as well; its answer has the port of the interface, and our key: another
        one when the far end's comes under another crypto tag."""
        told = self._create_answer(call, body)
        tag = call.tag(str(body["from-tag"]))
        if not isinstance(told, Done) or not tag.port:
            return told if tag.port else Refused("no media")
        if "interface" in body:
            self._place(call, tag, body)
        audio = SessionDescription.parse(str(body["sdp"])).audio()
        theirs = usable_crypto(audio) if audio and audio.proto == SAVP else None
        if theirs and (tag.crypto is None or tag.crypto[:2] != (theirs.tag, theirs.suite)):
            tag.crypto = (theirs.tag, theirs.suite, self._new_key())
        line = "{} {} {}".format(*tag.crypto) if tag.crypto else ""
        sdp = build_audio_sdp(tag.port, 1, tag.host, tag.port, telephone_event_pt=None, crypto=line)
        lines = ["setup:passive", *self._web_lines(tag)]
        return Done({"result": "ok", "sdp": secured(sdp, lines) if f" {PROTO} " in str(body["sdp"]) else sdp})

    def _create_answer(self, call: MediaCall, body: Mapping[str, Any]) -> Outcome:
        session = SessionDescription.parse(str(body["sdp"]))
        stream = session.audio() or next((m for m in session.media if m.kind == "image"), None)
        if stream is None:
            return Refused("no audio")
        tag = call.tag(str(body["from-tag"]))
        tag.remote = (stream.connection or session.connection or "", stream.port)
        tag.direction = session.media_direction(stream)
        return Done({"result": "ok"})

    def _connect(self, call: MediaCall, body: Mapping[str, Any]) -> Outcome:
        speaker, listener = str(body["from-tag"]), str(body["to-tag"])
        if speaker not in call.tags:
            return Refused("From-tag given, but no such tag exists")
        audible = call.tag(listener).port and call.tags[speaker].port
        if "directional" in body.get("flags", ()):
            if audible:
                call.subscriptions.setdefault((listener, speaker), False)
            return Done({"result": "ok"})
        for heard, plain in list(call.subscriptions.items()):
            # judged by who hears the two; their own hearing goes with it
            if plain and heard[1] in (speaker, listener):
                call.subscriptions.pop(heard, None)
                call.subscriptions.pop((heard[1], heard[0]), None)
        if audible:
            call.subscriptions.setdefault((listener, speaker), True)
            call.subscriptions.setdefault((speaker, listener), True)
        return Done({"result": "ok"})

    def _unsubscribe(self, call: MediaCall, body: Mapping[str, Any]) -> Outcome:
        listener = str(body.get("to-tag", ""))
        for role in ("from-tag", "to-tag"):
            if role in body and body[role] not in call.tags:
                return Refused(f"{role.capitalize()} not found")
        if "from-tag" not in body or "directional" not in body.get("flags", ()):
            call.tags[listener] = Tag(listener)
            call.subscriptions = {h: plain for h, plain in call.subscriptions.items() if listener not in h}
            self.destroyed.append((call.ident, listener))
        else:
            call.subscriptions.pop((listener, str(body["from-tag"])), None)
        return Done({"result": "ok"})

    def _delete(self, call: MediaCall, body: Mapping[str, Any]) -> Outcome:
        if body.get("from-tag", "") not in ("", *call.tags):
            return NOTHING_DELETED
        if body.get("from-tag") or body.get("to-tag"):
            self.destroyed += [(call.ident, name) for name in call.tags]
        del self.calls[call.ident]
        return Done({"result": "ok"})

    def _query(self, call: MediaCall, body: Mapping[str, Any]) -> Outcome:
        """What is known of the tag asked for and of those it hears, or of all."""
        asked, told = str(body.get("to-tag") or body.get("from-tag") or ""), list(call.tags)
        if asked:
            told = [name for name in call.tags if name == asked or (asked, name) in call.subscriptions]
        return Done({"result": "ok", "tags": {name: self._told(call, call.tags[name]) for name in told}})

    @staticmethod
    def _told(call: MediaCall, tag: Tag) -> dict[str, Any]:
        streams = [
            {"local port": tag.port, "stats": {"packets": tag.packets}},
            {"local port": tag.port + 1, "stats": {"packets": 0}},
        ]
        return {
            "tag": tag.name,
            "subscriptions": [
                {"tag": speaker, "type": "offer/answer" if plain else "pub/sub"}
                for (listener, speaker), plain in call.subscriptions.items()
                if listener == tag.name
            ],
            "medias": [{"index": 1, "type": "audio", "streams": streams}] if tag.port else [],
        }

    # -- what the packets would show

    def received(self, ident: str, tag: str, packets: int) -> None:
        """So many packets came from the party."""
        self.calls[ident].tags[tag].packets += packets

    def hears(self, ident: str, listener: str) -> list[str]:
        """The tags whose voice goes out of ``listener``'s port."""
        call = self.calls.get(ident)
        own = call.tags.get(listener) if call else None
        if call is None or own is None or own.direction in DEAF:
            return []
        return sorted(speaker for heard_by, speaker in call.subscriptions if heard_by == listener)

    def tag_at(self, host: str, port: int) -> tuple[MediaCall, Tag] | None:
        """The call and tag that own a local address."""
        for call in self.calls.values():
            for tag in call.tags.values():
                if (host, port) in [(self.interfaces[name], at) for name, at in tag.ports.items()]:
                    return call, tag
        return None
