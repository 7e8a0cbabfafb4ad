"""Settings of a node app (``settings.json``)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ari_ha.machines.acd_orders import AcdSettings
from ari_ha.machines.node_config import NodeTimings
from ari_ha.runtime.settings import SettingsError, check_lease

ENDPOINT_NAME = re.compile(r"[A-Za-z0-9_.-]{1,79}")
"""What may stand in a command; Asterisk's names may be longer and odder."""
KEPT_OPEN = {
    "all": "calls that live here would not reach agents any more",
    "edge-in-resume": "calls of other nodes would not be taken up",
    "edge-in-agent": "who talks here could not consult; the app itself refuses new calls there",
    "edge-out": "calls that live here would not reach agents any more",
}
"""Endpoints that stay open on a cordoned node, and why."""


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
    lease_ttl_s: int = 10
    """Seconds. Longer than an election and a few lost keep-alives together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ari:
    """The Asterisk beside us."""

    url: str = "http://127.0.0.1:8088"
    """URL of Asterisk's HTTP server. Loopback: ARI is for the app and nobody else."""
    username: str = "ari-ha"
    """Name. The user in ari.conf."""
    password_file: str
    """Path. Read at every connect, so that a changed password needs no restart."""
    app: str = "ari-ha"
    """Name. The Stasis application the dialplan names; one process only may use it."""
    ping_every_ms: int = 200
    """Milliseconds. Four chances to answer within the silence limit."""
    silence_limit_ms: int = 800
    """Milliseconds. Longer than any pause of an Asterisk that still serves calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asterisk:
    """Asterisk's process."""

    pid_file: str = "/run/asterisk/asterisk.pid"
    """Path. Its end is known in the same millisecond; empty: never for certain."""
    control_socket: str = "/run/asterisk/asterisk.ctl"
    """Path. For what ARI cannot do: endpoint maintenance."""
    new_call_endpoints: tuple[str, ...] = ("edge-in-trunk",)
    """Names. PJSIP endpoints that refuse new calls by themselves while the node is cordoned or
    drained; add those through which others call this Asterisk directly. None: the app and the
    edges see to it alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """Where edges connect to."""

    listen: str
    """host:port on the network of edges and nodes."""
    ca_file: str
    """Path. Authority of the edges' certificates."""
    cert_file: str
    """Path. Our certificate; its name is ours on the link."""
    key_file: str
    """Path. Its key."""
    silence_limit_ms: int = 1000
    """Milliseconds an edge may be silent before its link counts as closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """An edge known without asking etcd."""

    name: str
    """Its name, as in its certificate."""
    sip: str
    """host:port where nodes send INVITEs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorder:
    """Recordings of calls, written by this node whoever serves them."""

    spool: str = ""
    """Path of the directory for their parts, made if it is not there; empty: this node records nothing."""
    address: str = ""
    """Address on the network of edges and nodes that takes the RTP; empty: that of `sip_address`."""
    port_first: int = 42_000
    """First UDP port for it; apart from Asterisk's own."""
    port_last: int = 49_998
    """Last one."""
    free_min_mb: int = 500
    """Megabytes of the file system that stay free: with less recordings end here, and the edge begins them
    elsewhere. A conversation takes 1.1 MB a minute."""
    recordings_max: int = 1_000
    """Voices recorded at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Http:
    """The app's HTTP interface."""

    listen: str = "127.0.0.1:8089"
    """host:port."""
    token_file: str = ""
    """Path of the bearer token; empty: only /metrics, /healthz and /readyz are served."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """One node app."""

    cluster: str
    """Name of the cluster: the part of the key space this node lives in."""
    node: str
    """This node's name."""
    etcd: Etcd
    """etcd."""
    ari: Ari
    """ARI."""
    asterisk: Asterisk = Asterisk()
    """Asterisk's process."""
    link: Link
    """The node link."""
    sip_address: str
    """host:port of Asterisk's SIP listener on the network of edges and nodes."""
    edges: tuple[Edge, ...] = ()
    """Edges in order of preference: agents can be dialled without etcd."""
    header_key_file: str
    """Path. Key of the signed header between edges and nodes."""
    http: Http = Http()
    """HTTP interface."""
    recorder: Recorder = Recorder()
    """Recordings of calls."""
    trunk_context: str = "from-trunk"
    """Dialplan context of numbers: where a caller goes on when nothing else is known."""
    fallback_label: str = "apology"
    """Dialplan label that serves a caller the app cannot serve."""
    calls_max: int = 1_000
    """Calls at once; a further one is refused to the edge, which asks another node."""
    capacity_calls: int = 100
    """Calls this node may have when others are drained: `ari-ha drain` refuses to leave it with more. Well
    below what its machine can do, which the death of one more node would ask of it."""
    timings: NodeTimings = NodeTimings()
    """Limits and periods."""
    acd: AcdSettings = field(default_factory=AcdSettings)
    """The ACD's limits and periods."""

    def check(self) -> None:
        """Refuses timings that do not add up."""
        timings = self.timings
        if timings.record_limit_s >= timings.resume_limit_s:
            raise SettingsError(
                f"timings.record_limit_s is {timings.record_limit_s} s: a moved call is refused after"
                f" timings.resume_limit_s ({timings.resume_limit_s} s). Make the first much smaller."
            )
        for name in self.asterisk.new_call_endpoints:
            if not ENDPOINT_NAME.fullmatch(name):
                raise SettingsError(f"asterisk.new_call_endpoints: {name!r} is no endpoint's name")
            if why := KEPT_OPEN.get(name):
                raise SettingsError(f"asterisk.new_call_endpoints: not {name}: {why}")
        if self.capacity_calls < 1:
            raise SettingsError(
                f"capacity_calls is {self.capacity_calls}: no node could be drained to this one"
            )
        recorder = self.recorder
        if not 1024 <= recorder.port_first < recorder.port_last <= 65_535:
            raise SettingsError(
                f"recorder: ports {recorder.port_first} to {recorder.port_last} are no range of UDP ports"
            )
        if timings.refusal_grace_s >= timings.lost_leg_limit_s:
            raise SettingsError("timings.refusal_grace_s must be shorter than timings.lost_leg_limit_s")
        check_lease(
            "etcd.lease_ttl_s",
            ttl_ms=self.etcd.lease_ttl_s * 1000,
            renew_every_ms=self.etcd.lease_ttl_s * 1000 // 3,
            election_ms=1000,
            fence_ms=500,
        )
