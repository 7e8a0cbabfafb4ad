"""Every etcd key and value: a public contract, additive only.

Keys live under ``/ari-ha/<cluster>/v1/``. Values are JSON objects with a
``schema`` number; readers ignore what they do not know, and `unknown_fields`
keeps it where one process writes back what another has written. Times are UTC seconds (float).
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from ari_ha.wire.transfer import TransferValue

SCHEMA = 1
VALUE_MAX_BYTES = 256 * 1024


class Keys:
    """Builds and reads keys of one cluster."""

    def __init__(self, cluster: str) -> None:
        self.root = f"/ari-ha/{cluster}/v1/"

    def node(self, node: str) -> str:
        return f"{self.root}nodes/{node}"

    def host(self, host: str) -> str:
        return f"{self.root}hosts/{host}"

    def drain(self, node: str) -> str:
        return f"{self.root}drains/{node}"

    def edge(self, edge: str) -> str:
        return f"{self.root}edges/{edge}"

    def guard(self, edge: str) -> str:
        return f"{self.root}guards/{edge}"

    def vip(self, vip: str) -> str:
        return f"{self.root}vips/{vip}"

    def owner(self, call: str) -> str:
        return f"{self.root}calls/{call}/owner"

    def record(self, call: str) -> str:
        return f"{self.root}calls/{call}/record"

    def media(self, call: str) -> str:
        return f"{self.root}calls/{call}/media"

    def call(self, call: str) -> str:
        """Prefix of everything under one call."""
        return f"{self.root}calls/{call}/"

    def dialogs(self, pair: str, call: str) -> str:
        return f"{self.root}dialogs/{pair}/{call}"

    def binding(self, aor: str, contact_hash: str) -> str:
        return f"{self.root}bindings/{aor}/{contact_hash}"

    def agent(self, agent: str) -> str:
        return f"{self.root}agents/{agent}"

    def reach(self, agent: str) -> str:
        return f"{self.root}agents/{agent}/reach"

    def queue_config(self, queue: str) -> str:
        return f"{self.root}queues/{queue}/config"

    def ivr(self, menu: str) -> str:
        return f"{self.root}ivrs/{menu}"

    def supervisor(self, call: str) -> str:
        return f"{self.root}calls/{call}/supervisor"

    def waiting(self, queue: str, call: str) -> str:
        return f"{self.root}queues/{queue}/waiting/{call}"

    def trunk(self, trunk: str) -> str:
        return f"{self.root}trunks/{trunk}"

    def user(self, user: str) -> str:
        return f"{self.root}users/{user}"

    def secret_user(self, user: str) -> str:
        """Digest secrets (HA1): the ``secret/`` part has its own etcd role."""
        return f"{self.root}secret/users/{user}"

    def subscription(self, pair: str, ident: str) -> str:
        """A phone that wants to be told something."""
        return f"{self.root}subscriptions/{pair}/{ident}"

    def mailbox(self, mailbox: str) -> str:
        """How many messages wait."""
        return f"{self.root}mailboxes/{mailbox}"

    def secret_trunk(self, trunk: str) -> str:
        """Our digest secret at a carrier."""
        return f"{self.root}secret/trunks/{trunk}"

    def secret_dialog(self, pair: str, call: str) -> str:
        """Media crypto and auth state of a call's dialogs."""
        return f"{self.root}secret/dialogs/{pair}/{call}"

    def cdr(self, call: str) -> str:
        return f"{self.root}outbox/cdr/{call}"

    def queue_log(self, entry: str) -> str:
        return f"{self.root}outbox/queue_log/{entry}"

    def clerk(self) -> str:
        """Who writes the outbox into the database."""
        return f"{self.root}clerk/leader"

    def history(self, kind: str, ident: str) -> str:
        return f"{self.root}history/{kind}/{ident}"

    def prefix(self, family: str) -> str:
        """Prefix of a whole family: ``nodes``, ``calls``, ``agents`` …"""
        return f"{self.root}{family}/"

    def split(self, key: str) -> tuple[str, ...]:
        """The parts of ``key`` below the root; empty when it is not ours."""
        if not key.startswith(self.root):
            return ()
        return tuple(key[len(self.root) :].split("/"))


class Value(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Base of all values."""

    schema: int = SCHEMA


class NodeValue(Value):
    """``nodes/<node>``, leased by its node app. ``maintenance``: of a cordoned or drained
    node, ``on`` when its Asterisk itself refuses new calls, else why it does not.
    ``capacity_calls``: how many calls it may have when other nodes are drained."""

    node: str
    incarnation: str
    sip: str
    link: str
    http: str = ""
    version: str = ""
    ready: bool = False
    reason: str = ""
    cordoned: bool = False
    maintenance: str = ""
    calls: int = 0
    features: list[str] = []
    capacity_calls: int = 100


class DrainValue(Value):
    """``drains/<node>``, written by an operator: the node takes no new calls while the key
    is there, and its calls leave it. ``when``: ``now`` (from ``move_at`` on) or ``idle``
    (calls are not moved, they end by themselves). Removing the key undoes it."""

    node: str
    when: str = "now"
    move_at: float = 0.0
    rate_per_s: float = 20.0
    by: str = ""
    since: float = 0.0


class EdgeValue(Value):
    """``edges/<edge>``, leased by its edge process. ``sip`` is where nodes send
    INVITEs, ``hop`` where other pairs' edges do (host:port on the node network)."""

    edge: str
    vip: str
    sip: str
    public: str = ""
    http: str = ""
    version: str = ""
    calls: int = 0
    process: str = ""
    features: list[str] = []
    hop: str = ""


class GuardValue(Value):
    """``guards/<edge>``, leased by the guard of that edge's host: it lives, even where its
    heartbeats do not arrive."""

    edge: str
    vip: str
    process: str = ""
    http: str = ""
    version: str = ""


class VipValue(Value):
    """``vips/<vip>``: which edge is active, and which life of its process; written by
    that process itself, or by its guard where there are two hosts. Its mod_revision is
    the first half of every epoch that edge hands out."""

    edge: str
    since: float
    process: str = ""


class OwnerValue(Value):
    """``calls/<call>/owner``, written by the active edge: who serves the call."""

    call: str
    node: str
    epoch: str
    edge: str
    vip: str = ""
    since: float = 0.0
    moving: bool = False
    moving_from: str = ""
    moving_until: float = 0.0
    why: str = ""
    by_dialplan: bool = False
    """No app was there: the node's dialplan serves the call by itself"""


class AttemptValue(Value):
    """One ringing of one agent for one call; keeps its id across takeovers."""

    attempt: str
    agent: str
    device: str
    leg: str
    state: str = "intent"
    """intent, ringing, answered, ended"""
    deadline: float = 0.0
    started: float = 0.0
    outcome: str = ""


class LegValue(Value):
    """What the node knows of a leg. The edge owns the facts of phone legs."""

    leg: str
    role: str
    """customer or agent"""
    agent: str = ""
    state: str = "up"
    """ringing, up, held, ended"""
    channel: str = ""
    ended_by: str = ""
    target: str = ""
    """What was dialled because somebody asked for it: ``device:<aor>``, ``number:<number>``"""
    consult: str = ""
    """The consulting phone's leg of the side conversation it belongs to"""
    of: str = ""
    """On a consulting leg: the same phone's leg in the main conversation"""


class IvrPlace(msgspec.Struct, omit_defaults=True):
    """Where a caller is in an IVR, written before anything is done about it."""

    menu: str
    typed: str = ""
    tries: int = 0
    steps: int = 0
    """Steps taken so far: grows with every one, and names requests."""
    heard: int = 0
    """Digits taken that Asterisk heard."""
    told: int = 0
    """Digits taken that the edge told of (SIP INFO)."""
    plays: int = 0
    """Prompts begun: names the last one, which another app may have to end."""
    step: str = ""
    """Path of the step under way whose outcome is not known."""


class RecordValue(Value):
    """``calls/<call>/record``, written by the serving node: all a survivor needs,
    together with the edge's facts of the legs, to rebuild the call."""

    call: str
    epoch: str
    node: str
    verb: list[str] = []
    stage: str = "setup"
    """setup, dialing, queued, talking, ended"""
    caller: str = ""
    did: str = ""
    context: str = ""
    extension: str = ""
    priority: int = 0
    started: float = 0.0
    answered: float = 0.0
    queue: str = ""
    queue_priority: int = 0
    entered: float = 0.0
    """When the caller entered the queue; never moves."""
    attempts: dict[str, AttemptValue] = {}
    legs: dict[str, LegValue] = {}
    bridge: str = ""
    want_media: str = "through"
    head: str = "c"
    """The leg whose end ends the call."""
    transfer: TransferValue | None = None
    ending: dict[str, str] = {}
    """leg -> cause: ends the app has decided on, written before the act."""
    variables: dict[str, str] = {}
    ivr: IvrPlace | None = None


class SupervisorValue(Value):
    """``calls/<call>/supervisor``: somebody is to hear the call, or speak into it. Gone: nobody
    (any more). It ends with the call."""

    call: str
    mode: str
    """listen, whisper (the agent hears it), barge (everybody does)"""
    device: str
    """Address of record of the supervisor's phone."""
    by: str = ""
    agent: str = ""
    """Whose call it was; empty: an older node wrote it"""
    since: float = 0.0


class MediaValue(Value):
    """``calls/<call>/media``, written by the edge before it changes media."""

    call: str
    ng_call: str
    state: str
    """hitless, through, coach, direct"""
    epoch: str = ""
    node_tags: dict[str, str] = {}
    """leg -> rtpengine tag of its leg towards the serving node"""
    tags: dict[str, int] = {}
    """node -> highest n used in <leg>@<node>.<n>"""
    muted: list[str] = []


class DialogsValue(Value):
    """``dialogs/<pair>/<call>``: all a standby or a restarted edge needs."""

    call: str
    started: float
    at: str = ""
    """The public address of the edge that wrote it: one with another address has to tell
    the far ends its own."""
    trunk: str = ""
    caller: str = ""
    did: str = ""
    legs: dict[str, dict[str, Any]] = {}
    """leg -> {"sip": exported leg, "role", "state", "agent", "held", ...}"""
    node_legs: dict[str, dict[str, Any]] = {}
    tombstones: dict[str, str] = {}
    """leg -> who ended it; such a leg is never dialled again"""
    turned_down: str = ""
    """The last attempt that a phone ended; it is not made again"""
    kind: str = "trunk"
    """trunk: from a carrier; agent: an agent's phone dialled"""
    want: str = "through"
    """The media state its node asked for last."""
    head: str = "c"
    """The leg whose end ends the call."""
    identity: dict[str, str] = {}
    """Kept of the caller's identity headers: asserted, privacy, diversion."""
    answered: float = 0.0
    connected: float = 0.0
    served: list[str] = []
    agents: list[str] = []
    """For the call's record: when it was answered and connected, on which nodes, by whom."""
    recorded: bool = False
    """Whether its node said that the call is to be recorded."""
    recorders: dict[str, dict[str, Any]] = {}
    """recording -> {"leg", "node", "tag", where it takes RTP}"""
    byes: dict[str, dict[str, Any]] = {}
    """SIP key -> {"sip": exported leg, "trunk"}: legs this edge has ended and whose BYE or CANCEL had no
    answer yet. A call without legs is over, and only they are left of it"""


class SecretDialogsValue(Value):
    """``secret/dialogs/<pair>/<call>``: SRTP keys, in the order of the marks that stand for
    them in ``dialogs/<pair>/<call>``."""

    call: str
    keys: list[str] = []


class BindingValue(Value):
    """``bindings/<aor>/<hash>``: a registered contact."""

    aor: str
    contact: str
    host: str
    port: int
    listener: str = "public-udp"
    transport: str = "udp"
    expires: float = 0.0
    call_id: str = ""
    cseq: int = 0
    user_agent: str = ""
    conn: str = ""
    """Name of the connection it registered over, known to its edge process only."""
    pair: str = ""
    edge: str = ""
    unreachable: float = 0.0
    """Since when it answers no OPTIONS; 0: it does, or is not asked."""
    path: list[str] = []
    """Proxies on the way to it, the nearest first (RFC 3327); requests to it carry them as Route."""


class AttemptOfAgent(Value):
    """The one attempt or call an agent is busy with."""

    attempt: str = ""
    call: str = ""
    queue: str = ""
    node: str = ""
    leg: str = ""
    since: float = 0.0
    deadline: float = 0.0
    entered: float = 0.0
    """When the caller entered the queue"""


class AgentValue(Value):
    """``agents/<agent>``: four independent fields; each change is one transaction
    that compares mod_revision. Failover may set `recovering` and nothing else."""

    agent: str
    name: str = ""
    # intent: only the agent or a supervisor changes it
    intent: str = "logged_out"
    """logged_out, available, not_ready"""
    reason: str = ""
    intent_since: float = 0.0
    by: str = ""
    next_intent: str = ""
    next_reason: str = ""
    device: str = ""
    """Address of record bound at login."""
    logged_in: float = 0.0
    # work: only the ACD changes it
    work: str = "idle"
    """idle, reserved, ringing, talking, hold, consult, dialing, acw"""
    work_since: float = 0.0
    attempt: AttemptOfAgent | None = None
    acw_deadline: float = 0.0
    delay_until: float = 0.0
    idle_since: float = 0.0
    last_end: float = 0.0
    misses: int = 0
    handled: int = 0
    missed: int = 0
    talk_s: float = 0.0
    # membership
    queues: dict[str, int] = {}
    """queue -> penalty"""
    skills: dict[str, int] = {}
    # overlay
    recovering: dict[str, Any] | None = None
    """{"since": utc, "from": node}; the only thing failover may set"""
    seq: int = 0
    """Counts this agent's transitions, gapless."""
    pin_hash: str = ""


class ReachValue(Value):
    """``agents/<agent>/reach``: can we reach the agent. A key of its own, so that
    heartbeats disturb nothing."""

    agent: str
    device: str = "lost"
    """ok, lost"""
    device_since: float = 0.0
    desktop: str = "lost"
    desktop_since: float = 0.0


class QueueConfigValue(Value):
    """``queues/<queue>/config``."""

    queue: str
    strategy: str = "longest-idle"
    ring_timeout_ms: int = 15_000
    wrapup_ms: int = 3_000
    rona_max: int = 1
    """Misses after which an agent becomes not ready (reason ``rona``)."""
    no_answer_delay_ms: int = 10_000
    reject_delay_ms: int = 10_000
    busy_delay_ms: int = 60_000
    max_waiting: int = 100
    full_action: str = "busy"
    """What a caller gets who finds the queue full: busy (486), or an extension."""
    numbers: list[str] = []
    """Numbers by which an agent transfers a caller into this queue."""
    moh: str = "default"
    media: str = "hitless"
    """hitless, or through: two people talk through Asterisk."""
    record: bool = False
    """Whether its conversations are recorded."""
    weight: int = 0


class WaitingValue(Value):
    """``queues/<queue>/waiting/<call>``: a caller's place."""

    call: str
    queue: str
    entered: float
    priority: int = 0
    caller: str = ""
    node: str = ""
    attempt: str = ""
    """Set while an agent is being tried for this caller."""
    agent: str = ""


class UserValue(Value):
    """``users/<user>``: an account that may register or use the API."""

    user: str
    aor: str = ""
    agent: str = ""
    roles: list[str] = msgspec.field(default_factory=lambda: ["device"])


class SecretUserValue(Value):
    """``secret/users/<user>``: digest HA1s (RFC 7616: H(user:realm:password))."""

    user: str
    realm: str
    ha1_md5: str = ""
    ha1_sha256: str = ""


_encoder = msgspec.json.Encoder()
V = TypeVar("V", bound=Value)


class BadValue(ValueError):
    """A stored value that cannot be read; says which key and why."""


def encode(value: Value) -> bytes:
    """The JSON bytes stored for ``value``. Raises ValueError over `VALUE_MAX_BYTES`."""
    data = _encoder.encode(value)
    if len(data) > VALUE_MAX_BYTES:
        raise ValueError(f"{type(value).__name__} is {len(data)} bytes, limit {VALUE_MAX_BYTES}")
    return data


def decode(data: bytes, kind: type[V], key: str = "") -> V:
    """The value stored under ``key``. Raises BadValue when it is not one."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise BadValue(f"{key or kind.__name__}: {error}") from error
