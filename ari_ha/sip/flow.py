"""Where SIP bytes come from and go to.

A `Flow` names one way to one far address (RFC 5626 uses the word the same way); a `Listener` is our own end
of
it. Both are plain values: no socket is ever seen by this package.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Flow:
    """One far address as seen from one of our listeners."""

    listener: str
    """Name of the local listener, for example "public-udp" or "node-trunk"."""
    transport: str
    """"udp", "tcp", "tls", "ws" or "wss"."""
    host: str
    """Address of the far end; for something received, the packet's source (RFC 3261 section 18.2.1)."""
    port: int
    conn: str = ""
    """Id of the connection; empty for UDP, and before a connection exists."""

    @property
    def reliable(self) -> bool:
        """Whether the transport retransmits by itself (RFC 3261 section 17)."""
        return self.transport != "udp"

    @property
    def framed(self) -> bool:
        """Whether what arrives at once is one message: a datagram, or a WebSocket's message (RFC 7118
        section 5.2)."""
        return self.transport not in ("tcp", "tls")

    def to_dict(self) -> dict[str, Any]:
        """The flow as a JSON-able record."""
        return {
            "listener": self.listener,
            "transport": self.transport,
            "host": self.host,
            "port": self.port,
            "conn": self.conn,
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Flow:
        """The flow of a record written by `to_dict`."""
        return cls(
            str(record["listener"]),
            str(record["transport"]),
            str(record["host"]),
            int(record["port"]),
            str(record.get("conn", "")),
        )


def same_path(one: Flow, other: Flow) -> bool:
    """Whether two flows lead to the same place, an unknown connection id matching any."""
    mine = (one.listener, one.transport, one.host, one.port)
    if mine != (other.listener, other.transport, other.host, other.port):
        return False
    return not one.conn or not other.conn or one.conn == other.conn


@dataclass(frozen=True, slots=True)
class Listener:
    """One local listener: the address is the advertised one, as Via and Contact carry it."""

    name: str
    transport: str
    host: str
    port: int
    side: str = ""
    """Listeners of one side lead to the same far ends, by other transports."""
