"""The ACD as the node's calls use it: with the clocks of the current event, its
effects sent on, its orders collected."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ari_ha.core.machine import Effect, OutcomeOf
from ari_ha.core.ports.store import Compare, Put, StoreChanged, StoreReach, StoreSnapshot
from ari_ha.machines.acd import Acd
from ari_ha.machines.acd_orders import Order
from ari_ha.machines.node_context import NodeContext
from ari_ha.wire.link import Rung


class AcdDesk:
    """See the module."""

    def __init__(self, context: NodeContext, acd: Acd) -> None:
        self._context = context
        self.acd = acd
        self.orders: deque[Order] = deque()

    def _took(self, effects: list[Effect]) -> None:
        self._context.extend(effects)
        self.orders.extend(self.acd.commands())

    @property
    def _clocks(self) -> tuple[float, float]:
        return self._context.now, self._context.utc

    # --- the world -----------------------------------------------------------------

    def store(self, event: StoreSnapshot | StoreChanged | StoreReach) -> None:
        """News of the store."""
        self._took(self.acd.store(event, *self._clocks))

    def outcome(self, event: OutcomeOf) -> bool:
        """Takes the outcome of an effect of the ACD's; False when it is not."""
        if not self.acd.owns(event.effect):
            return False
        self._took(self.acd.outcome(event, *self._clocks))
        return True

    def asterisk_started(self, incarnation: str) -> None:
        """A new life of our Asterisk."""
        self._took(self.acd.asterisk_started(incarnation, *self._clocks))

    def fire(self) -> None:
        """Time has passed."""
        deadline = self.acd.deadline()
        if deadline is not None and deadline <= self._context.now:
            self._took(self.acd.fire(*self._clocks))

    # --- callers -------------------------------------------------------------------

    def caller_enters(
        self, call: str, queue: str, entered: float, priority: int, caller: str,
        puts: Sequence[Put] = (), compares: Sequence[Compare] = (),
    ) -> None:  # fmt: skip
        """A caller wants an agent of ``queue``."""
        self._took(
            self.acd.caller_enters(
                call, queue, entered, priority, caller, *self._clocks, with_puts=puts, with_compares=compares
            )
        )

    def caller_resumed(
        self, call: str, queue: str, entered: float, priority: int, caller: str, *,
        alive: Mapping[str, str], ended: Collection[str], talking: Collection[str], from_node: str,
        waits: bool = True, rung: Sequence[Rung] = (),
    ) -> None:  # fmt: skip
        """The call came from another node (or another life of ours)."""
        self._took(
            self.acd.caller_resumed(
                call, queue, entered, priority, caller, *self._clocks,
                alive=alive, ended=ended, talking=talking, from_node=from_node, waits=waits, rung=rung,
            )
        )  # fmt: skip

    def caller_leaves(self, call: str, why: str, goes_on: bool = False) -> None:
        """The caller is gone; whether others go on in his call."""
        self._took(self.acd.caller_leaves(call, why, *self._clocks, goes_on=goes_on))

    def call_moved(self, call: str) -> None:
        """Another node serves the call."""
        self._took(self.acd.call_moved(call, *self._clocks))

    def call_recovered(self, call: str) -> None:
        """The call is whole again."""
        self._took(self.acd.call_recovered(call, *self._clocks))

    # --- attempts ------------------------------------------------------------------

    def attempt_ringing(self, attempt: str) -> None:
        """The phone rings."""
        self._took(self.acd.attempt_ringing(attempt, *self._clocks))

    def attempt_answered(
        self, attempt: str, puts: Sequence[Put] = (), compares: Sequence[Compare] = ()
    ) -> None:
        """The phone was answered."""
        self._took(self.acd.attempt_answered(attempt, *self._clocks, with_puts=puts, with_compares=compares))

    def attempt_failed(self, attempt: str, kind: str) -> None:
        """The phone was not answered, and why."""
        self._took(self.acd.attempt_failed(attempt, kind, *self._clocks))

    def conversation_hold(self, call: str, agent: str, held: bool) -> None:
        """The agent holds his caller, or took him back."""
        self._took(self.acd.conversation_hold(call, agent, held, *self._clocks))

    def conversation_ended(self, call: str, agent: str, cause: str) -> None:
        """The agent's part is over."""
        if agent:
            self._took(self.acd.conversation_ended(call, agent, cause, *self._clocks))

    def conversation_state(self, call: str, agent: str, rule: str) -> None:
        """An agent's part in a call that no queue gave him: dial, connect, join."""
        self._took(self.acd.conversation_state(call, agent, rule, *self._clocks))

    def claim_answered(self, attempt: str, granted: bool, holder: str) -> None:
        """An edge's answer about a device."""
        self._took(self.acd.claim_answered(attempt, granted, *self._clocks, holder=holder))

    def agent_verb(
        self, request: str, verb: str, args: Mapping[str, Any], agent: str = "", user: str = ""
    ) -> None:
        """Somebody wants to change an agent's state."""
        self._took(self.acd.agent_verb(request, verb, args, *self._clocks, agent=agent, user=user))
