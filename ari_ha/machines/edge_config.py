"""An edge's configuration as its machine needs it: values, no files."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class EdgeNode:
    """A node the edge may use: where its Asterisk and its app's link listen."""

    name: str
    sip_host: str
    sip_port: int
    link: str = ""


@dataclass(frozen=True, slots=True)
class EdgeTimings:
    """Limits and periods of an edge, in seconds unless the name says otherwise."""

    probe_interval_s: float = 0.1
    """OPTIONS to each node this often; a refusal (ICMP) is seen within one."""
    silence_s: float = 0.4
    """No OPTIONS reply for this long makes Asterisk silent: one witness. Under
    300 ms a starved host gives false alarms (measured)."""
    taking_up_s: float = 3.0
    """A survivor counts as busy for this long after each call it is given in a takeover."""
    taking_up_patience: float = 4.0
    """So many times longer may a busy survivor be silent: one that gets no processor while it takes up
    many calls must not be taken for dead, and its calls be given to the next (measured)."""
    rtp_sentinels_max: int = 3
    """Calls of each node whose RTP is looked at as a witness; 0: none."""
    rtp_idle_poll_s: float = 1.0
    """Each sentinel is asked for this often while nothing is wrong."""
    rtp_poll_s: float = 0.05
    """A node is looked at this often while people talk through it, or while its OPTIONS are late."""
    rtp_stop_s: float = 0.2
    """No packet of any sentinel for this long, while their phones are heard: RTP has stopped, one
    witness. At least three looks."""
    rtp_queries_per_second_max: float = 100.0
    """Questions to rtpengine by close looks, for all nodes together; where there are more, each node is
    looked at less often. One takes 0.7 ms, 0.5 ms of it our CPU (measured, four parties)."""
    link_silence_s: float = 0.6
    """No word on the node link for this long: the second witness."""
    bye_grace_s: float = 0.15
    """A node's unannounced BYE waits this long for the announcement on the link
    before it counts as the loss of a leg."""
    suspect_s: float = 3.0
    """A node that ended a leg unannounced is not chosen for this long while another
    one is ready: a stopping Asterisk says BYE first and goes away a second later."""
    persist_limit_s: float = 0.15
    """A 200 OK waits this long, at most, for the dialog to be in etcd."""
    invite_limit_s: float = 2.0
    """A phone or a number is rung this late, at most, because its INVITE is not in etcd yet."""
    end_limit_s: float = 3.0
    """The 200 OK to a BYE, and the word that a transfer failed, wait this long, at most, to be in etcd."""
    move_limit_s: float = 2.5
    """A survivor that has not bridged a call by then: another try elsewhere."""
    handover_limit_s: float = 0.6
    """A call that moves on purpose changes nodes when the next one's Asterisk is heard, or, if that has
    nothing to say, after this; its old node serves it until then."""
    move_retry_s: float = 0.2
    """Pause before the next try when no survivor, or no node for a new call, is ready."""
    direct_first_s: float = 0.03
    """When people who talked through a lost node are being connected directly, the moves to a
    survivor begin this much later: 20 such calls take rtpengine and us about that long."""
    moves_at_once_max: int = 20
    """Calls being taken over together; more only slow each other (two cores)."""
    setup_tries_max: int = 4
    """Nodes tried for a new call before the caller hears 503."""
    setup_patience_s: float = 2.0
    """A new call for which no node is ready waits this long for one before the caller hears 503."""
    app_absent_limit_s: float = 20.0
    """A node app away for longer: its calls are moved while they still run."""
    ring_limit_s: float = 180.0
    """Longest ringing of a phone; the app's own limit is shorter."""
    trunk_silence_s: float = 4.0
    """A carrier that has not even said 100 to an INVITE by then: another trunk is tried."""
    session_expires_s: int = 600
    """RFC 4028 session interval asked of phones: a phone that vanished without BYE is
    noticed at its next refresh, and its agent is free again."""
    registration_s: int = 120
    """Registration interval granted at most; short, so a lost phone is noticed."""
    registration_min_s: int = 10
    """Shorter ones get 423."""
    phone_options_s: float = 0.0
    """Registered phones are asked OPTIONS this often; 0: never. Under the time a NAT forgets
    (30 s are common) it keeps the way to the phone open."""
    phone_options_missed_max: int = 3
    """So many OPTIONS in a row without any answer make a phone unreachable."""
    rehome_limit_s: float = 60.0
    """A call of an edge with another address: a phone or carrier that has not accepted ours
    by then is lost. Long, because a phone on TCP has to notice first that its connection leads nowhere."""
    orphan_limit_s: float = 600.0
    """How long leftovers on a lost node are remembered, to be ended when it
    answers again."""
    stall_s: float = 0.25
    """Rounds in which this process itself was late by this much prove nothing."""


@dataclass(frozen=True, slots=True)
class Protection:
    """What the public side does about sources that ask too much of it."""

    messages_per_second: float = 50.0
    """Per unknown source address, each KiB of a longer one or of a connection counting as one more; further
    ones are dropped. A phone needs a handful, many phones behind one address are known after their first
    registration."""
    known_messages_per_second: float = 20_000.0
    """The same for hosts of trunks and of registered phones."""
    burst_s: float = 4.0
    """Seconds of silence that may be made up for at once."""
    auth_failures_max: int = 20
    """Wrong digests of one unknown source, for users there are, within the window before
    it is banned."""
    unknown_users_max: int = 200
    """The same for users there are not: many phones behind one address may come before
    the directory has them."""
    auth_window_s: float = 60.0
    """Seconds in which they are counted."""
    ban_s: float = 600.0
    """Seconds in which a banned source gets no answer. Hosts of trunks and of registered
    phones are never banned: over UDP an address is easily forged."""
    sources_max: int = 20_000
    """Source addresses remembered; those not heard for longest are forgotten first."""
    scanners: tuple[str, ...] = (
        "friendly-scanner", "sipvicious", "sipcli", "sundayddr", "vaxsipuseragent", "pplsip", "sip-scan",
        "siparmyknife", "sipptk", "iwar",
    )  # fmt: skip
    """Words in a message of an unknown source that get silence and a ban."""
    options_for_strangers: bool = False
    """Whether OPTIONS of unknown sources are answered: they are how scanners look."""


@dataclass(frozen=True, slots=True)
class EdgeConfig:
    """One edge."""

    cluster: str
    edge: str
    vip: str
    realm: str
    public_host: str
    public_port: int
    core_host: str
    trunk_port: int
    agent_port: int
    resume_port: int
    nodes: dict[str, EdgeNode] = field(default_factory=dict)
    trunks: dict[str, dict[str, object]] = field(default_factory=dict)
    """Trunks known without etcd: name -> {"hosts": [...], "dids": [...]}"""
    public_listens: str = ""
    """Where `public_host` is mapped to by a NAT in front, if there is one"""
    inner_hosts: frozenset[str] = frozenset()
    """Addresses of our side beside those named here: no Contact and no SDP of the outside leads to them"""
    header_key: bytes = b""
    http: str = ""
    version: str = ""
    process: str = ""
    public_interface: str = "public"
    spare_public_interfaces: tuple[str, ...] = ()
    core_interface: str = "core"
    guarded: bool = False
    """A guard on this host holds the address and says when to serve."""
    public_tls_port: int = 0
    """0: no TLS"""
    hop_port: int = 0
    """Where edges of other pairs send requests for our phones and carriers; 0: nowhere"""
    public_ws_port: int = 0
    """0: no WebSocket"""
    public_wss_port: int = 0
    """0: no WebSocket over TLS"""
    srtp_to_phones: str = "tls"
    """``tls``: phones registered over TLS are offered SRTP; ``always``; ``off``"""
    calls_max: int = 2_000
    """New calls beyond this get 503: a full edge keeps the calls it has."""
    contacts_rung_max: int = 1
    """Contacts of one phone that ring at once: its newest registrations"""
    call_records: bool = False
    """Whether an ended call is left in the outbox for the clerk."""
    timings: EdgeTimings = EdgeTimings()
    protection: Protection = Protection()
