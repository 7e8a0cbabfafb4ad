"""A node's configuration as its machine needs it: values, no files."""

from __future__ import annotations

from dataclasses import dataclass, field

from ari_ha.machines.acd_orders import AcdSettings


@dataclass(frozen=True, slots=True)
class NodeTimings:
    """Limits and periods of a node, in seconds unless the name says otherwise."""

    media_limit_s: float = 0.5
    """Asterisk speaks after this even when the edge has not confirmed ``through``."""
    end_limit_s: float = 1.0
    """A channel whose end was announced and that is still there is hung up by us."""
    resume_limit_s: float = 3.0
    """A moved call whose legs have not all arrived by then is refused: the edge
    makes them anew."""
    record_limit_s: float = 0.3
    """A record that is not in the mirror is asked for this long."""
    intent_limit_s: float = 0.3
    """An attempt is dialled after this even when its intent is not stored yet."""
    lost_leg_limit_s: float = 3.0
    """A channel that went away unannounced: how long we wait for the edge's word."""
    refusal_grace_s: float = 0.15
    """An unanswered leg that failed waits this long for the edge's own words on it."""
    stale_limit_s: float = 2.0
    """A call its edge does not know is dropped after this."""
    adopt_limit_s: float = 2.0
    """After a restart of the app: how long records and the edge's facts are waited for."""
    sweep_every_s: float = 5.0
    """Orphans are looked for this often; one seen twice is ended."""
    dial_margin_s: float = 86_400.0
    """Asterisk's own limit of a ringing leg is this much longer than ours: its end of a leg is unannounced
    and must never come first. A day, because that limit follows the wall clock: Asterisk ends a phone that
    rings when the clock steps past it."""
    retry_first_s: float = 0.1
    retry_last_s: float = 2.0
    """Pauses between tries of what Asterisk did not do."""
    tone_s: float = 0.8
    """How long an agent hears the answer to a feature code."""
    verb_limit_s: float = 5.0
    """A verb not answered by then is answered 503."""


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """One node."""

    cluster: str
    node: str
    sip: str
    """host:port of its Asterisk on the core network."""
    link: str = ""
    http: str = ""
    version: str = ""
    app: str = "ari-ha"
    edges: tuple[tuple[str, str], ...] = ()
    """(name, sip host:port) of edges known without etcd, in order of preference."""
    header_key: bytes = b""
    trunk_context: str = "from-trunk"
    """Where a call goes on in the dialplan when nothing but its number is known."""
    fallback_label: str = "apology"
    """Label at which the dialplan serves a caller the app cannot serve."""
    out_endpoint: str = "edge-out"
    new_call_endpoints: tuple[str, ...] = ()
    """PJSIP endpoints that are in maintenance while the node is cordoned or drained."""
    records: bool = False
    """Whether there is a recorder here."""
    calls_max: int = 1_000
    """Calls served at once; more are refused to the edge, which asks another node."""
    capacity_calls: int = 100
    """Calls a drain of other nodes may leave this one with."""
    dirty_max: int = 5_000
    """Records kept while the store is away; with more the oldest are dropped."""
    timings: NodeTimings = NodeTimings()
    acd: AcdSettings = field(default_factory=AcdSettings)
