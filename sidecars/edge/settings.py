"""Settings of an edge process (``settings.json``)."""

from __future__ import annotations

from dataclasses import dataclass, field

from ari_ha.machines.edge_config import EdgeTimings, Protection
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
    lease_ttl_s: int = 10
    """Seconds. Longer than an election and a few lost keep-alives together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """SIP over TLS towards phones and carriers."""

    cert_file: str = ""
    """Path. Our certificate and what leads to its authority; read again when it changes.
    Empty: no TLS."""
    key_file: str = ""
    """Path. Its key."""
    ca_file: str = ""
    """Path. Authorities of carriers' certificates; empty: the system's."""
    port: int = 5061
    """TCP port."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSocket:
    """SIP over WebSocket (RFC 7118), for phones in browsers."""

    port: int = 0
    """TCP port without TLS, for a lab, or behind a proxy on this host; 0: none."""
    tls_port: int = 0
    """TCP port with TLS, by the certificate of `public.tls`; 0: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Public:
    """The side of carriers and phones."""

    host: str
    """Address listened on and advertised in Via, Contact and SDP."""
    advertised: str = ""
    """Advertised instead, where a NAT in front maps it to `host` port by port (a cloud's
    public address); rtpengine needs it too: `--interface=public/HOST!ADVERTISED`."""
    port: int = 5060
    """UDP and TCP port."""
    tls: Tls = Tls()
    """SIP over TLS."""
    websocket: WebSocket = WebSocket()
    """Phones in browsers."""
    srtp_to_phones: str = "tls"
    """``tls``: phones registered over TLS are offered SRTP (SDES); ``always``; ``off``. Browsers are
    always offered DTLS-SRTP. What a phone offers itself is answered in kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """The side of the nodes. Asterisk tells what an INVITE is by our source port."""

    host: str
    """Address on the nodes' network."""
    trunk_port: int = 5070
    """UDP. New calls from carriers leave here, and nodes dial to it."""
    agent_port: int = 5072
    """UDP. New calls from agents' phones."""
    resume_port: int = 5074
    """UDP. Legs of calls that move."""
    hop_port: int = 5076
    """UDP. Edges of other pairs, for phones and carriers of this one; 0: no other pair uses them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relay:
    """rtpengine."""

    ng: str = "127.0.0.1:2223"
    """host:port of the NG listener: loopback, because NG has no password."""
    public_interface: str = "public"
    """rtpengine's logical interface towards phones."""
    spare_public_interfaces: tuple[str, ...] = ()
    """Further logical interfaces at the same address. Each time a call's SRTP key has to be changed its port
    moves to the next: to some phones only that is a new stream (RFC 4568 section 7.1.4). When none is left,
    and where none is named, the port stays."""
    core_interface: str = "core"
    """rtpengine's logical interface towards nodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """Certificates of the node link."""

    ca_file: str
    """Path. Authority of the nodes' certificates."""
    cert_file: str
    """Path. Our certificate; its name is ours on the link."""
    key_file: str
    """Path. Its key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node."""

    sip: str
    """host:port of its Asterisk."""
    link: str
    """host:port of its app's link listener."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trunk:
    """A carrier known without asking etcd."""

    hosts: tuple[str, ...] = ()
    """Addresses its INVITEs come from."""
    dids: dict[str, str] = field(default_factory=dict)
    """Number -> what the dialplan does with it; empty accepts every number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """The guard on this host, in a pair."""

    listen: str = ""
    """host:port on loopback for the guard's words; empty: a single edge, which takes its
    address by itself."""
    send: str = "127.0.0.1:7712"
    """host:port of the guard's `listen`."""
    key_file: str = ""
    """Path. The pair's key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Http:
    """The edge's HTTP interface."""

    listen: str = "127.0.0.1:8089"
    """host:port."""
    token_file: str = ""
    """Path of the bearer token; empty: only /metrics, /healthz and /readyz are served."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeSettings:
    """One edge process."""

    cluster: str
    """Name of the cluster: the part of the key space this edge lives in."""
    edge: str
    """This edge's name."""
    vip: str
    """The address (pair) this edge serves; calls' dialogs are stored under it."""
    realm: str
    """Digest realm; the HA1s in etcd are made for it."""
    etcd: Etcd
    """etcd."""
    public: Public
    """Carriers and phones."""
    core: Core
    """Nodes."""
    rtpengine: Relay = Relay()
    """The media relay on this host."""
    link: Link
    """The node link."""
    header_key_file: str
    """Path. Key of the signed header between edges and nodes."""
    nodes: dict[str, Node]
    """Nodes by name: known without etcd, because calls are served without it."""
    trunks: dict[str, Trunk] = field(default_factory=dict)
    """Trunks by name, beside those in etcd."""
    http: Http = Http()
    """HTTP interface."""
    guard: Guard = Guard()
    """The guard, in a pair."""
    timings: EdgeTimings = EdgeTimings()
    """Limits and periods."""
    protection: Protection = Protection()
    """What the public side does about sources that ask too much."""
    calls_max: int = 2_000
    """Calls at once; a further one gets 503."""
    contacts_rung_max: int = 1
    """Contacts of one phone that ring at once, the newest; 1: only the newest."""
    call_records: bool = False
    """Whether each ended call is left in etcd for the clerk to write into the database.
    Off by default: without a clerk the outbox would fill etcd."""

    def check(self) -> None:
        """Refuses timings that do not add up, and words that mean nothing."""
        if self.public.srtp_to_phones not in ("tls", "always", "off"):
            raise SettingsError("public.srtp_to_phones must be tls, always or off")
        if self.public.websocket.tls_port and not self.public.tls.cert_file:
            raise SettingsError("public.websocket.tls_port needs public.tls.cert_file")
        timings = self.timings
        if timings.silence_s < round(3 * timings.probe_interval_s, 6):
            raise SettingsError(
                f"timings.silence_s is {timings.silence_s} s: less than three probes of "
                f"{timings.probe_interval_s} s; one lost datagram would count as silence. Raise it."
            )
        if timings.rtp_stop_s < round(3 * timings.rtp_poll_s, 6):
            raise SettingsError(
                f"timings.rtp_stop_s is {timings.rtp_stop_s} s: less than three looks of "
                f"{timings.rtp_poll_s} s; one burst would look like an end. Raise it."
            )
        if timings.rtp_queries_per_second_max <= 0:
            raise SettingsError("timings.rtp_queries_per_second_max must be above 0; "
                                "timings.rtp_sentinels_max = 0 asks nothing")  # fmt: skip
        if self.guard.listen and not self.guard.key_file:
            raise SettingsError("guard.key_file is missing: words without a key are not heard")
        check_lease(
            "etcd.lease_ttl_s",
            ttl_ms=self.etcd.lease_ttl_s * 1000,
            renew_every_ms=self.etcd.lease_ttl_s * 1000 // 3,
            election_ms=1000,
            fence_ms=500,
        )
