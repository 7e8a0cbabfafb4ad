"""rtpengine as measured: calls, tags, ports, and who is subscribed to whom.

No packet flows here. `hears` answers whose voice reaches a port, which is what the
packets would show. Its traps are kept: `unsubscribe` without a from-tag destroys the
listener's media; `connect` without ``directional`` replaces whatever the two heard;
`delete` with a tag destroys the call; a plain `connect` onto a directional
subscription leaves that one behind, so the listener hears twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ari_ha.core.machine import Done, Outcome, Refused
from ari_ha.sip.sdp import SessionDescription, build_audio_sdp

FIRST_PORT = 30_000
CODEC_NUMBERS = {"PCMA": 8, "PCMU": 0}


@dataclass(slots=True)
class Tag:
    """One party of a call: our port towards it and where it listens."""

    name: str
    host: str
    port: int
    payload: int
    remote: tuple[str, int] | None = None
    direction: str = "sendrecv"
    """The party's own word: ``sendonly`` does not listen."""
    destroyed: bool = False


@dataclass(slots=True)
class MediaCall:
    """One rtpengine call. A subscription is (listener, speaker, directional)."""

    ident: str
    tags: dict[str, Tag] = field(default_factory=dict)
    subscriptions: set[tuple[str, str, bool]] = field(default_factory=set)


class FakeRtpengine:
    """One life of a media relay with a public and a core interface."""

    def __init__(self, interfaces: Mapping[str, str], started: str = "1") -> None:
        self.interfaces = dict(interfaces)
        self.started = started
        self.calls: dict[str, MediaCall] = {}
        self.destroyed: list[tuple[str, str]] = []
        """(call, tag) whose media a command of ours destroyed"""
        self._next_port = FIRST_PORT

    def command(self, command: str, body: Mapping[str, Any]) -> Outcome:
        """One NG command."""
        if command == "ping":
            return Done({"result": "pong"})
        ident = str(body.get("call-id", ""))
        act = getattr(self, "_" + command.replace(" ", "_"), None)
        if act is None:
            return Refused(f"Unrecognized command {command}")
        call = self.calls.get(ident)
        if call is None:
            if command != "create":
                return Refused("Unknown call-id")
            call = self.calls[ident] = MediaCall(ident)
        return act(call, body)

    # -- commands

    def _create(self, call: MediaCall, body: Mapping[str, Any]) -> Outcome:
        name = str(body["from-tag"])
        tag = call.tags.get(name)
        offered = list(body.get("codec", {}).get("offer", ["PCMU"]))
        if tag is None:
            host = self.interfaces.get(str(body.get("interface", "")))
            if host is None:
                return Refused("Unknown interface")
            number = next((CODEC_NUMBERS[codec] for codec in offered if codec in CODEC_NUMBERS), 0)
            tag = call.tags[name] = Tag(name, host, self._next_port, number)
            self._next_port += 2
        codec = "PCMA" if tag.payload == 8 else "PCMU"
        event = 96 if "telephone-event" in offered else None
        sdp = build_audio_sdp(
            tag.port, 1, tag.host, tag.port, [(tag.payload, f"{codec}/8000")], event, "sendrecv"
        )
        return Done({"result": "ok", "sdp": sdp})

    def _create_answer(self, call: MediaCall, body: Mapping[str, Any]) -> Outcome:
        tag = call.tags.get(str(body["from-tag"]))
        if tag is None:
            return Refused("Unknown from-tag")
        session = SessionDescription.parse(str(body["sdp"]))
        audio = session.audio()
        if audio is None:
            return Refused("no audio")
        tag.remote = (audio.connection or session.connection or "", audio.port)
        tag.direction = session.media_direction(audio)
        return Done({"result": "ok"})

    def _connect(self, call: MediaCall, body: Mapping[str, Any]) -> Outcome:
        speaker, listener = str(body["from-tag"]), str(body["to-tag"])
        for name in (speaker, listener):
            if name not in call.tags:
                return Refused("Unknown from-tag" if name == speaker else "Unknown to-tag")
        if "directional" in body.get("flags", ()):
            call.subscriptions.add((listener, speaker, True))
            return Done({"result": "ok"})
        both = {speaker, listener}
        kept = {s for s in call.subscriptions if s[2] or not both & {s[0], s[1]}}
        call.subscriptions = kept | {(listener, speaker, False), (speaker, listener, False)}
        return Done({"result": "ok"})

    def _unsubscribe(self, call: MediaCall, body: Mapping[str, Any]) -> Outcome:
        listener = str(body.get("to-tag", ""))
        if listener not in call.tags:
            return Refused("Unknown to-tag")
        if "from-tag" not in body or "directional" not in body.get("flags", ()):
            call.tags[listener].destroyed = True
            self.destroyed.append((call.ident, listener))
            return Done({"result": "ok"})
        speaker = str(body["from-tag"])
        call.subscriptions = {s for s in call.subscriptions if s[:2] != (listener, speaker)}
        return Done({"result": "ok"})

    def _delete(self, call: MediaCall, body: Mapping[str, Any]) -> Outcome:
        if body.get("from-tag") or body.get("to-tag"):
            self.destroyed += [(call.ident, name) for name in call.tags]
        del self.calls[call.ident]
        return Done({"result": "ok"})

    def _query(self, call: MediaCall, body: Mapping[str, Any]) -> Outcome:
        return Done({"result": "ok", "tags": {name: {} for name in call.tags}})

    # -- what the packets would show

    def hears(self, ident: str, listener: str) -> list[str]:
        """The tags whose voice goes out of ``listener``'s port, doubled ones twice."""
        call = self.calls.get(ident)
        if call is None or listener not in call.tags or call.tags[listener].destroyed:
            return []
        return sorted(
            speaker
            for heard_by, speaker, _ in call.subscriptions
            if heard_by == listener and speaker in call.tags and not call.tags[speaker].destroyed
        )

    def tag_at(self, host: str, port: int) -> tuple[MediaCall, Tag] | None:
        """The call and tag that own a local address."""
        for call in self.calls.values():
            for tag in call.tags.values():
                if (tag.host, tag.port) == (host, port):
                    return call, tag
        return None
