"""The ACD of one node: who gets which caller, and what every agent is doing.

There is no leader. Each node app runs one `Acd` over mirrors of the store; a
decision is one transaction that compares the keys it read, so whoever comes
second re-reads and decides anew. The machine is pure: `now` is this process's
monotonic clock, `utc` the wall clock (UTC seconds).

Methods return effects for the shell; orders for the node machine are taken
with `commands` after every call. Outcomes of effects for which `owns` is true
go to `outcome`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ari_ha.core.ids import NodeId
from ari_ha.core.machine import Effect, OutcomeOf
from ari_ha.core.ports.store import Compare, Put, StoreChanged, StoreReach, StoreSnapshot
from ari_ha.machines.acd_orders import AcdSettings, Order
from ari_ha.wire.keyspace import AgentValue, Keys, WaitingValue

TAG = "acd:"

LiveCalls = Mapping[str, Collection[str]]
"""call -> agents with a living leg or attempt in it."""


class Acd:
    """See the module. `live_calls` returns what this node serves now, or None while
    that is not known (Asterisk away, snapshot not read)."""

    def __init__(
        self,
        keys: Keys,
        node: NodeId,
        *,
        new_id: Callable[[], str],
        rand: Callable[[], float],
        settings: AcdSettings | None = None,
        live_calls: Callable[[], LiveCalls | None] | None = None,
    ) -> None:
        self._orders: list[Order] = []

    # --- the world ---------------------------------------------------------------------

    @staticmethod
    def owns(effect: Effect) -> bool:
        """Whether the outcome of ``effect`` belongs to `outcome`."""
        return getattr(effect, "tag", "").startswith(TAG)

    def store(self, event: StoreSnapshot | StoreChanged | StoreReach, now: float, utc: float) -> list[Effect]:
        """Feed: nodes/, agents/, queues/, bindings/, users/, calls/ (owner and record keys)."""
        return []

    def outcome(self, event: OutcomeOf, now: float, utc: float) -> list[Effect]:
        """The outcome of one of our effects."""
        return []

    def asterisk_started(self, incarnation: str, now: float, utc: float) -> list[Effect]:
        """This node has a new incarnation; its old calls are forgotten, not ended."""
        return []

    # --- callers -----------------------------------------------------------------------

    def caller_enters(
        self, call: str, queue: str, entered: float, priority: int, caller: str, now: float, utc: float,
        *, with_puts: Sequence[Put] = (), with_compares: Sequence[Compare] = (),
    ) -> list[Effect]:  # fmt: skip
        """-> CallerQueued | QueueFull (| PutsRefused first)."""
        return []

    def caller_resumed(
        self, call: str, queue: str, entered: float, priority: int, caller: str, now: float, utc: float,
        *, alive: Mapping[str, str] | None = None, ended: Collection[str] = (),
        talking: Collection[str] = (), from_node: str = "",
    ) -> list[Effect]:  # fmt: skip
        """This node took the call over. ``alive``: attempt -> ``ringing``|``up`` whose
        legs live; ``ended``: attempts whose legs ended meanwhile; ``talking``: agents in
        conversation. ``queue`` is empty for a call that was never queued. Sets `recovering`
        until `call_recovered`."""
        return []

    def caller_leaves(self, call: str, why: str, now: float, utc: float) -> list[Effect]:
        """The caller is gone (abandoned, ended, continues in the dialplan)."""
        return []

    def call_moved(self, call: str, now: float, utc: float) -> list[Effect]:
        """Another node serves the call now: forget it, write nothing."""
        return []

    def call_recovered(self, call: str, now: float, utc: float) -> list[Effect]:
        """The call is whole again after a takeover: takes `recovering` away."""
        return []

    # --- attempts and conversations ----------------------------------------------------

    def attempt_ringing(self, attempt: str, now: float, utc: float) -> list[Effect]:
        """The agent's phone rings."""
        return []

    def attempt_answered(
        self, attempt: str, now: float, utc: float,
        *, with_puts: Sequence[Put] = (), with_compares: Sequence[Compare] = (),
    ) -> list[Effect]:  # fmt: skip
        """-> AttemptWon | CancelAttempt(why=lost)."""
        return []

    def attempt_failed(self, attempt: str, kind: str, now: float, utc: float) -> list[Effect]:
        """``kind``: no-answer, reject, busy, unreachable, canceled, edge-refused."""
        return []

    def conversation_hold(self, call: str, agent: str, held: bool, now: float, utc: float) -> list[Effect]:
        return []

    def conversation_ended(self, call: str, agent: str, cause: str, now: float, utc: float) -> list[Effect]:
        """The agent's part of the call is over: wrap-up or idle. The caller may go on;
        `caller_leaves` says when not."""
        return []

    def claim_answered(
        self, attempt: str, granted: bool, now: float, utc: float, holder: str = ""
    ) -> list[Effect]:
        """Answer to the order ClaimDevice."""
        return []

    # --- people ------------------------------------------------------------------------

    def agent_verb(
        self, request: str, verb: str, args: Mapping[str, Any], now: float, utc: float,
        *, agent: str = "", user: str = "",
    ) -> list[Effect]:  # fmt: skip
        """-> VerbResult(request). Verbs: login (device, take_over, available), logout,
        available, not-ready (reason), toggle, acw-done, acw-extend, force (intent, reason,
        by). The agent is named, or found by the phone's authenticated ``user``."""
        return []

    # --- time --------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When `fire` is wanted next (monotonic)."""
        return None

    def fire(self, now: float, utc: float) -> list[Effect]:
        """Timers, retries, and every 5 s the reconciler."""
        return []

    def reconcile(self, live: LiveCalls, now: float, utc: float) -> list[Effect]:
        """Compares every non-idle agent of this node's calls with what lives."""
        return []

    # --- reading -----------------------------------------------------------------------

    def commands(self) -> list[Order]:
        """The orders since the last call, in order."""
        orders, self._orders = self._orders, []
        return orders

    def agents(self) -> dict[str, AgentValue]:
        """Every agent as this node sees him."""
        return {}

    def waiting(self, queue: str = "") -> list[WaitingValue]:
        """Callers waiting (in ``queue``), in the order they are served."""
        return []

    def position(self, call: str) -> int:
        """1 for the next caller of his queue; 0 when the call does not wait."""
        return 0

    def check(self) -> None:
        """Raises InvariantBroken when the state contradicts itself."""
