"""What a watcher is told at start: its servers, its shape, its times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MYSQL, MARIADB = "mysql", "mariadb"
FLAVOURS = (MYSQL, MARIADB)
REPLICA, CIRCULAR, TWO_WRITERS = "replica", "circular", "two-writers"
SHAPES = (REPLICA, CIRCULAR, TWO_WRITERS)
SYNC, ASYNC, STRICT = "sync", "async", "strict"
MODES = (SYNC, ASYNC, STRICT)
SERVERS_MAX = 2


@dataclass(frozen=True, slots=True)
class DatabaseTimings:
    """Seconds, all of them on the watcher's monotonic clock."""

    lease_ttl_s: float = 5.0
    """A dead host costs one of these. Not below etcd's own floor of 2 s."""
    lease_margin_s: float = 0.5
    """What the etcd client takes off the lease for itself."""
    fence_before_s: float = 2.0
    """The fence begins this long before the lease may end: one wait for locks and a kill."""
    close_limit_s: float = 1.4
    """Until read-only is there, or the server is killed."""
    lock_wait_s: int = 1
    """Lock wait of the fence; the smallest servers know."""
    uncertain_s: float = 0.5
    """A primary whose commits wait for its standby may look for a lost lead this long:
    should the standby be promoted meanwhile, nothing of it is confirmed any more."""
    adopt_s: float = 1.5
    """A restarted watcher takes its primary's lead over within this time."""
    observe_s: float = 0.5
    """Between two looks at the server."""
    observe_fast_s: float = 0.1
    """The same while something is being changed."""
    observe_limit_s: float = 1.0
    """A server that has not answered by then is silent."""
    down_after_s: float = 2.0
    """Silence after which a server is published as not running."""
    unresponsive_s: float = 5.0
    """Silence after which a living process is killed."""
    ask_every_s: float = 0.3
    """Between questions to the standby's watcher while etcd is doubtful."""
    ask_below_s: float = 3.0
    """Lease left, below which the primary begins to ask."""
    promise_s: float = 2.0
    """Who confirms that it follows does not take the lead for this long."""
    confirm_s: float = 1.5
    """How long the primary builds on it, counted from the question: less than the
    promise by clock drift and the fence."""
    confirm_fresh_s: float = 1.5
    """Age of the standby's own look at its server, at most."""
    return_grace_s: float = 1.0
    """A returning primary leaves the lead this long to its standby, which is ready."""
    degrade_after_s: float = 2.0
    """Commits wait this long for a standby that its watcher says is well."""
    settle_s: float = 0.2
    """After commits began to wait, until the position counts: what was under way is over."""
    certify_limit_s: float = 10.0
    """Until the standby has everything since then, or commits wait no longer for it."""
    switchover_limit_s: float = 8.0
    """Until the standby has everything, or the primary opens again."""
    switchover_lock_wait_s: int = 3
    """A transaction that is open longer makes a switchover impossible."""
    handed_limit_s: float = 5.0
    """The lead handed over and not taken is taken back after this."""
    drain_limit_s: float = 600.0
    """Unapplied work at promotion."""
    retry_s: float = 0.3
    """Before anything that failed is tried again."""
    start_limit_s: float = 120.0
    """A server's crash recovery."""
    start_again_s: float = 1.0
    """Between starts of a server that does not stay."""
    start_wait_s: float = 2.0
    """MariaDB: for the standby's promotion, because it decides how the dead one starts."""
    rebuild_limit_s: float = 4 * 3600.0
    """A copy of everything."""
    rebuild_again_s: float = 5.0
    """Between attempts of it."""
    max_lag_s: float = 5.0
    """A replica further behind is no candidate, and not readable."""
    publish_s: float = 2.0
    """A member's value is written at least this often."""
    heartbeat_s: float = 1.0
    """Between heartbeat rows."""
    disk_free_share_min: float = 0.03
    """A standby with less is no candidate."""
    checksum_every_s: float = 300.0
    """Two writers: between checksums of every table. Each reads all there is."""
    checksum_limit_s: float = 600.0
    """Until they have to be there."""
    checksum_settle_s: float = 6.0
    """Two writers: a table that nobody has changed for this long is the same on both, or has diverged; more
    than the lag of a replica that is well."""

    def check(self) -> None:
        """Refuses times that do not add up."""
        lease_s = self.lease_ttl_s - self.lease_margin_s
        if self.fence_before_s < self.close_limit_s + 0.3:
            raise ValueError(
                f"fence_before_s {self.fence_before_s} leaves no time to kill after close_limit_s"
            )
        if lease_s - self.fence_before_s < self.lease_ttl_s / 3 + 0.5:
            raise ValueError(
                f"lease_ttl_s {self.lease_ttl_s}: without one renewal the fence would begin at"
                f" {lease_s - self.fence_before_s:g} s; an election of etcd must fit in between"
            )
        if self.ask_below_s <= self.fence_before_s:
            raise ValueError("ask_below_s must be more than fence_before_s: ask before it is too late")
        if self.confirm_s >= self.promise_s or self.confirm_s < 2 * self.ask_every_s:
            raise ValueError("confirm_s must lie between two questions and promise_s")


@dataclass(frozen=True, slots=True)
class Server:
    """One server of the pair."""

    host: str
    """Where the other server and clones reach it."""
    port: int = 3306


@dataclass(frozen=True, slots=True)
class DatabaseConfig:
    """One watcher."""

    cluster: str
    database: str
    server: str
    process: str
    """One life of this watcher."""
    servers: Mapping[str, Server] = field(default_factory=dict)
    flavour: str = MYSQL
    shape: str = REPLICA
    mode: str = SYNC
    auto_rebuild: bool = True
    http: str = ""
    version: str = ""
    timings: DatabaseTimings = DatabaseTimings()

    @property
    def offset(self) -> int:
        """The server's own auto_increment_offset."""
        return sorted(self.servers).index(self.server) + 1

    @property
    def peer(self) -> str:
        """The other server."""
        return next((name for name in self.servers if name != self.server), "")

    def check(self) -> None:
        """Refuses what cannot work."""
        if self.server not in self.servers:
            raise ValueError(f"server {self.server!r} is not among servers {sorted(self.servers)}")
        if len(self.servers) > SERVERS_MAX:
            raise ValueError(f"{len(self.servers)} servers: a database is a pair")
        for name, value, known in (
            ("flavour", self.flavour, FLAVOURS), ("shape", self.shape, SHAPES), ("mode", self.mode, MODES),
        ):  # fmt: skip
            if value not in known:
                raise ValueError(f"{name} {value!r}: one of {', '.join(known)}")
        if self.shape == TWO_WRITERS and self.mode != ASYNC:
            raise ValueError(
                "shape two-writers needs mode async: two writers that wait for each other both stop"
            )
        self.timings.check()
