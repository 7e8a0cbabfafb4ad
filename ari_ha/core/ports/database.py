"""One database server as its watcher sees it: what it is, and what can be done to it.

Verbs are the same for MySQL and MariaDB; the adapter has a table of statements for
each. Positions are GTID sets in the server's own writing (ari_ha.machines.database_gtid
reads both). All verbs are idempotent: doing one again changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ari_ha.core.machine import Effect, Event

LOCKED = 1205
"""Error code of a server where something waits longer than we want to
(ER_LOCK_WAIT_TIMEOUT): read-only is not possible while commits wait for the standby."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What a server said of itself at one moment."""

    life: str
    """One life of the server process: what it received and had not applied may be gone
    in the next one."""
    uuid: str = ""
    server_id: int = 0
    version: str = ""
    writable: bool = False
    """Applications can write."""
    position: str = ""
    """Transactions it has; what is compared when somebody asks whether it has more."""
    history: str = ""
    """Everything it knows to have had; what others' positions are compared with."""
    received: str = ""
    """`history` and what lies in its relay log."""
    source: str = ""
    """The server it is told to follow, "" for none."""
    io: str = "no"
    """yes, connecting, no: does it receive"""
    io_error: str = ""
    applying: bool = False
    apply_error: str = ""
    semi_source: bool = False
    """Its commits wait for a standby."""
    semi_clients: int = 0
    semi_waiting: int = 0
    """Commits that wait right now."""
    semi_acked: int = 0
    """Counts commits a standby has confirmed."""
    semi_replica: bool = False
    """It confirms what it receives."""
    lag_s: float | None = None
    """Age of the newest heartbeat row; None when there is none."""
    increment: int = 1
    offset: int = 1
    disk_free_share: float = 1.0
    connections: int = 0
    connections_max: int = 0

    @property
    def follows(self) -> str:
        """Whom it receives from and applies, "" when it does not."""
        return self.source if self.io == "yes" and self.applying else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLife(Event):
    """The server's process appeared or ended. Its death is known in the moment."""

    alive: bool
    life: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSaid(Event):
    """Another watcher's datagram, authenticated."""

    peer: str
    message: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observe(Effect):
    """Ask the server for everything. Outcome: Done(Observation), or why not."""

    tag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseDo(Effect):
    """One verb of `VERBS` on the local server."""

    verb: str
    args: Mapping[str, Any] = field(default_factory=dict)
    tag: str = ""


VERBS = {
    "close": "read-only for everybody, waiting `lock_wait_s` for locks; Refused(1205) when commits wait",
    "disconnect": "end the connections of applications",
    "open": "accept writes",
    "semi_on": "commits wait for the standby's confirmation, for ever",
    "semi_off": "commits wait for nobody; those waiting now are told yes, so etcd must know it first",
    "receive_stop": "stop receiving; what was received stays",
    "apply_start": "apply what was received; receive nothing",
    "follow_stop": "stop applying too",
    "follow_forget": "forget whom to follow, and the relay log with it",
    "follow": "follow `source` by GTID; drops a relay log that is not applied",
    "follow_start": "start receiving and applying",
    "tolerate": "apply a row that is there already over it, and pass over one that is gone",
    "heartbeat": "write the heartbeat row",
    "number": "set auto_increment `increment` and `offset`",
    "checksum": "checksum of every application table; Done({table: checksum})",
}
"""What a verb means. Both flavours have all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartServer(Effect):
    """Start the server process; it comes up read-only. ``truncate``: what only its
    binary log has is taken back at recovery (MariaDB; only where another server was
    promoted that has everything confirmed). Done(life) when it runs."""

    truncate: bool = False
    tag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class KillServer(Effect):
    """SIGKILL. Done when the process is gone, whatever it was doing."""

    tag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveErrant(Effect):
    """Write the transactions ``gtids`` of the local binary logs to a file of readable
    SQL. Outcome: Done(path)."""

    gtids: str
    tag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuild(Effect):
    """Replace everything the local server has by a copy of ``donor`` (CLONE, or
    mariadb-backup), and start it. Outcome: Done(life)."""

    donor: str
    tag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SendPeer(Effect):
    """One datagram to another watcher. Fire and forget."""

    peer: str
    message: Mapping[str, Any]
