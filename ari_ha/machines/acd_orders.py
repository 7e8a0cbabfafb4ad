"""What the ACD tells the node machine to do, and the numbers it works by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ari_ha.core.ports.store import KeyValue
from ari_ha.wire.keyspace import AgentValue, AttemptValue


@dataclass(frozen=True, slots=True)
class AcdSettings:
    """Times and limits of the ACD. Seconds are of the monotonic clock unless the
    value is written into the store, where it becomes a UTC deadline."""

    reserve_ttl_s: float = 5.0
    """Reserved but not ringing after this: the phone cannot be reached."""
    others_grace_min_s: float = 0.150
    others_grace_max_s: float = 0.400
    """The caller's own node matches first; any other node waits this long."""
    timer_grace_s: float = 2.0
    """A deadline of another living node's agent is fired here only this much later."""
    orphan_grace_s: float = 5.0
    """A node's key must be gone this long before its reservations are undone: an
    app that restarts its lease keeps them, and a takeover has happened by then."""
    ghost_grace_s: float = 10.0
    """An agent's call must be nowhere this long before he is freed: a call's keys
    are written while it is already being served."""
    ghost_return_grace_s: float = 30.0
    """After the store was away the edges write their journals first."""
    reconcile_every_s: float = 5.0
    retry_s: float = 0.5
    """Wait before a write is tried again that nobody took."""
    watch_wait_s: float = 1.0
    """After `tries_max` lost compares the watch is waited for, this long at most."""
    tries_max: int = 4
    ops_max: int = 5000
    """Writes in progress or waiting; more are refused (people) or left to the
    reconciler (timers)."""
    verb_limit_s: float = 3.0
    answer_limit_s: float = 0.4
    """An answered agent and his caller are connected after this even when the
    store has not confirmed it: certainty lost never keeps people apart."""
    claim_limit_s: float = 1.0
    avoid_s: float = 2.0
    """A device an edge refused is left alone this long."""
    unreachable_delay_s: float = 5.0
    binding_grace_s: float = 10.0
    binding_return_grace_s: float = 60.0
    """After the store was away, bindings are judged by the time it went away."""
    device_grace_s: float = 90.0
    """A device lost this long makes its agent not ready (reason ``device``)."""
    device_return_s: float = 900.0
    """Within this he becomes available again by himself."""
    acw_extend_s: float = 60.0
    acw_max_s: float = 300.0
    resumed_ring_min_s: float = 5.0
    """A phone that rang through a takeover rings at least this much longer."""
    recovering_after_s: float = 1.0
    """Agents of a call that moves are marked as recovering when it takes longer than this."""
    clock_step_s: float = 2.0
    clock_hold_s: float = 10.0
    """After the wall clock stepped, no deadline of others is fired for this long."""
    queue_log: bool = False
    """Whether what happens is left in the outbox as lines of a queue_log, for the clerk."""
    log_backlog_max: int = 5_000
    """Lines kept while the store is away; what is more is dropped, and counted. All of them may have to go
    into one transaction, of which etcd takes 1.5 MiB."""
    login_available: bool = True
    """Whether an agent who logs in is available at once, or not ready (``login``)."""
    reasons: Mapping[str, str] = field(
        default_factory=lambda: {"1": "break", "2": "lunch", "3": "meeting", "4": "training", "5": "admin"}
    )
    """Digit dialled after the not-ready code -> reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Base of the orders; taken with ``Acd.commands()``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerQueued(Order):
    """The caller has his place. ``revision`` is that of the transaction, which also
    wrote the puts handed in; 0: it could not be stored, the puts were *not* written."""

    call: str
    queue: str
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueFull(Order):
    """The caller cannot wait here. ``action``: the queue's full_action; ``why`` is
    ``full`` or ``no such queue``."""

    call: str
    queue: str
    action: str
    why: str = "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class StartAttempt(Order):
    """Ring ``device`` for ``call``. ``attempt.leg`` is empty: the node chooses it.
    ``again``: the attempt began on another node and keeps its id; ring only if its
    leg does not live."""

    call: str
    attempt: AttemptValue
    agent: str
    device: str
    queue: str
    ring_timeout_s: float
    again: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelAttempt(Order):
    """Stop ringing (EndLeg, then the channel). The ACD has already done its part;
    nothing need be reported back. ``why``: no-answer, unreachable, caller-left, lost.
    ``agent`` and ``call`` may be empty for an attempt the ACD does not know."""

    call: str
    attempt: str
    agent: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptWon(Order):
    """The agent who answered has the caller: connect them. ``certain`` False: the
    store has not said so (yet); ``revision`` 0 then, and puts handed in are not written."""

    call: str
    attempt: str
    agent: str
    revision: int
    certain: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class PutsRefused(Order):
    """The puts handed in with an act were not written, because their own compares
    failed; the act went on without them. ``current``: those keys as they are."""

    call: str
    current: tuple[KeyValue, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimDevice(Order):
    """The store is away: ask the edge that holds the device (frame ClaimAgent), then
    call ``Acd.claim_answered``."""

    call: str
    attempt: str
    agent: str
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentNotice(Order):
    """An agent's state changed, or something he should see; for the desktop feed."""

    agent: str
    text: str
    value: AgentValue | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VerbResult(Order):
    """The answer to ``Acd.agent_verb`` with this ``request``. ``status`` is an HTTP
    status: 200 done, 202 kept here until the store is back, 404, 409, 422, 503."""

    request: str
    status: int
    text: str
    agent: str = ""
    value: AgentValue | None = None
