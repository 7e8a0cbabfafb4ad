"""Settings of a clerk process (``clerk.json``)."""

from __future__ import annotations

from dataclasses import dataclass

from ari_ha.runtime.settings import SettingsError, check_lease, host_port


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
    lease_ttl_s: int = 6
    """Seconds another clerk waits after this one died."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordsDatabase:
    """Where the records are written."""

    servers: tuple[str, ...]
    """host:port of each server; the one that is writable is used. With a load balancer
    that knows the primary on this host: its address alone."""
    schema: str = "acd"
    """Database on the server; it is made where it is missing."""
    user: str = "ari_ha_clerk"
    """User; it needs CREATE, INSERT, UPDATE and SELECT there."""
    password_file: str
    """Path. Readable by its owner only."""
    ca_file: str = ""
    """Path. Authority of the servers' certificates; empty: no TLS."""
    migrate: bool = True
    """Bring the tables up to date by itself when beginning to write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Http:
    """The clerk's HTTP interface."""

    listen: str = "127.0.0.1:8089"
    """host:port of /metrics, /healthz and /readyz."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClerkSettings:
    """One clerk process."""

    cluster: str
    """Name of the cluster."""
    clerk: str
    """This clerk's name; several may run, one writes."""
    etcd: Etcd
    """etcd."""
    database: RecordsDatabase
    """The database."""
    http: Http = Http()
    """HTTP interface."""

    def check(self) -> None:
        """Refuses what cannot work."""
        if not self.database.servers:
            raise SettingsError("database.servers must name at least one host:port")
        for server in self.database.servers:
            host_port(server)
        ttl_ms = self.etcd.lease_ttl_s * 1000
        check_lease(
            "etcd.lease_ttl_s", ttl_ms=ttl_ms, renew_every_ms=ttl_ms // 3, election_ms=1000, fence_ms=1000
        )
