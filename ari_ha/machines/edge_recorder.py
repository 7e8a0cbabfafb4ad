"""The copy of one voice that goes to one recorder: plain data that exports to etcd and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ari_ha.machines.edge_audio import AudioSide
from ari_ha.sip.sdp import build_audio_sdp


@dataclass(slots=True)
class RecorderLeg:
    """A copy of one leg's voice on its way to a node's recorder: listens, and is no part of the call."""

    recording: str
    leg: str
    node: str
    tag: str
    side: AudioSide
    on: bool = False
    """Its recorder has said where it listens."""
    host: str = ""
    port: int = 0
    """Our end, as of a `PhoneLeg`"""
    at: tuple[str, int] = ("", 0)
    """Where the recorder listens"""
    since: float = 0.0

    def remote_sdp(self) -> str:
        """What rtpengine is told of the recorder. It takes digits' packets as such, so that nothing has a
        reason to make them audible; they are not kept."""
        host, port = self.at
        rates = [(self.side.payload, f"{self.side.codec}/8000")]
        return build_audio_sdp(1, 1, host, port, rates, 96, "recvonly")

    def to_dict(self) -> dict[str, Any]:
        """JSON facts of the copy."""
        return {
            "leg": self.leg, "node": self.node, "tag": self.tag, "payload": self.side.payload,
            "host": self.host, "port": self.port, "at": list(self.at),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, recording: str, data: dict[str, Any]) -> RecorderLeg:
        """The copy of a record written by `to_dict`."""
        host, port = data["at"]
        side = AudioSide(data.get("payload", 8))
        return cls(recording, data["leg"], data["node"], data["tag"], side, True, data.get("host", ""),
                   data.get("port", 0), (str(host), int(port)))  # fmt: skip
