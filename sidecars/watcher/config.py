"""Settings of a watcher process (``watcher.json``)."""

from __future__ import annotations

from dataclasses import dataclass, field

from ari_ha.machines.database_config import (
    MARIADB,
    MYSQL,
    REPLICA,
    SYNC,
    DatabaseConfig,
    DatabaseTimings,
    Server,
)
from ari_ha.runtime.settings import SettingsError, check_lease


@dataclass(frozen=True, slots=True, kw_only=True)
class Etcd:
    """Where etcd is and who we are there."""

    endpoints: tuple[str, ...]
    """host:port of each member: the client goes round them when one is away."""
    ca_file: str = ""
    """Path. Authority of the members' certificates; empty: no TLS."""
    cert_file: str = ""
    """Path. Our certificate."""
    key_file: str = ""
    """Path. Its key."""
    election_ms: int = 300
    """Milliseconds. etcd's own election timeout: the death of its leader must cost no lease."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairServer:
    """One server of the pair, as the other one and its watcher reach it."""

    host: str
    """Address for replication and clones."""
    port: int = 3306
    """Port for replication and clones."""
    peer: str = ""
    """host:port of its watcher's datagrams."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """The server beside this watcher."""

    host: str = "127.0.0.1"
    """Address of its administrative port."""
    port: int = 33062
    """admin_port (MySQL) or extra_port (MariaDB): max_connections does not close it."""
    user: str = "ha"
    """The watcher's own user."""
    password_file: str
    """Path. Readable by its owner only."""
    repl_user: str = "repl"
    """User of replication and clones."""
    repl_password_file: str
    """Path. Readable by its owner only."""
    application_users: tuple[str, ...] = ()
    """Users of applications; a right with which they could write to a closed server is
    told in the log and as a gauge."""
    ca_file: str = ""
    """Path. Authority of the servers' certificates; empty: no TLS."""
    pid_file: str = "/run/mysqld/mysqld.pid"
    """Path. Names the server's process."""
    process_name: str = ""
    """Name of that process; empty: mysqld or mariadbd, by flavour."""
    datadir: str = "/var/lib/mysql"
    """Path. Where the binary logs are."""
    start: tuple[str, ...]
    """Command that starts the server and returns. The watcher owns starting."""
    start_truncating: tuple[str, ...] = ()
    """MariaDB: the same with --init-rpl-role=SLAVE; used only after another server was
    promoted that has every confirmed write."""
    rebuild: tuple[str, ...] = ()
    """MariaDB: command that replaces the data by a copy of the donor."""
    errant_directory: str = "/var/lib/ari-ha/errant"
    """Path. Archived transactions, as SQL to be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Http:
    """HTTP interfaces."""

    listen: str = "127.0.0.1:8089"
    """host:port of /metrics, /healthz, /readyz and the API."""
    checks: str = "0.0.0.0:8008"
    """host:port of /writable and /readable, for load balancers: no token."""
    token_file: str = ""
    """Path of the bearer token of the API; empty: no API."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatcherSettings:
    """One watcher process."""

    cluster: str
    """Name of the cluster."""
    database: str
    """Name of the pair."""
    server: str
    """This server's name."""
    servers: dict[str, PairServer]
    """Both servers by name."""
    flavour: str = MYSQL
    """mysql or mariadb."""
    shape: str = REPLICA
    """replica; circular: both follow each other, one writes; two-writers: both write."""
    mode: str = SYNC
    """sync: commits wait for the standby while there is one; strict: always; async: never."""
    auto_rebuild: bool = True
    """Replace a server's data when it cannot follow; what it has alone is archived first."""
    etcd: Etcd
    """etcd."""
    local: Local
    """The server beside us."""
    peer_key_file: str
    """Path. Key of the watchers' datagrams, at least 16 bytes."""
    http: Http = Http()
    """HTTP."""
    timings: DatabaseTimings = field(default_factory=DatabaseTimings)
    """Limits and periods."""
    crash_file: str = ""
    """Path. For trials only: a file that names the step at which this process ends itself; empty: none."""

    def check(self) -> None:
        """Refuses what cannot work, and times that do not add up."""
        timings = self.timings
        self.machine_config("check").check()
        check_lease(
            "timings.lease_ttl_s",
            ttl_ms=round(timings.lease_ttl_s * 1000),
            renew_every_ms=round(timings.lease_ttl_s * 1000 / 4),
            election_ms=self.etcd.election_ms,
            fence_ms=round((timings.fence_before_s + timings.lease_margin_s - timings.close_limit_s) * 1000),
        )
        for name, server in self.servers.items():
            if not server.peer:
                raise SettingsError(f"servers.{name}.peer: host:port of its watcher must be set")
        if self.flavour == MARIADB and self.mode != "async" and not self.local.start_truncating:
            raise SettingsError(
                "local.start_truncating must be set for MariaDB: a killed primary would come back with"
                " transactions nobody was told yes for, and be copied anew each time"
            )

    def machine_config(self, process: str) -> DatabaseConfig:
        """The machine's configuration."""
        return DatabaseConfig(
            cluster=self.cluster,
            database=self.database,
            server=self.server,
            process=process,
            servers={name: Server(server.host, server.port) for name, server in self.servers.items()},
            flavour=self.flavour,
            shape=self.shape,
            mode=self.mode,
            auto_rebuild=self.auto_rebuild,
            http=f"http://{self.http.listen}",
            timings=self.timings,
        )
