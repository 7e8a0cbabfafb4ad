"""Orders to supervise: from a person or a tool through HTTP, or from a supervisor's phone.

The order is a key of the call, written by any node; the node that serves the call reads
it there. It is written only while the call has an owner, and goes with the call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ari_ha.core.machine import Done, Outcome
from ari_ha.core.ports.store import Compare, Delete, Put, TxnResult
from ari_ha.machines.node_supervise import BARGE, LISTEN, MODES, WHISPER
from ari_ha.wire.keyspace import SupervisorValue, encode

if TYPE_CHECKING:
    from ari_ha.machines.node_core import NodeCore

STOP = "stop"
ROLE = "supervisor"
"""In ``users/<user>``: may supervise by dialling."""
CODES = {"*30": STOP, "*31": LISTEN, "*32": WHISPER, "*33": BARGE}
"""Followed by the agent: *311001 listens to 1001."""
TRIES_MAX = 3
"""An owner key that changes meanwhile (a takeover) is read again so often."""

Answer = Callable[[int, str], None]
"""HTTP status and words."""


class Supervisors:
    """Writes orders."""

    def __init__(self, core: NodeCore) -> None:
        self._core = core
        self._context = core.context

    def may(self, user: str) -> bool:
        """Whether the account of a phone may supervise."""
        known = self._core.user(user)
        return known is not None and ROLE in known.roles

    def give(self, agent: str, mode: str, device: str, by: str, answer: Answer, tried: int = 0) -> None:
        """One order about the call an agent is in; answered once."""
        value = self._core.acd.acd.agents().get(agent)
        call = value.attempt.call if value is not None and value.attempt is not None else ""
        if value is None or not call:
            answer(404 if value is None else 409, f"no agent {agent!r}" if value is None else "not on a call")
        elif mode not in (*MODES, STOP):
            answer(422, f"mode must be one of {', '.join((*MODES, STOP))}")
        elif mode != STOP and not device:
            answer(422, "which phone?")
        elif not self._context.store_ok:
            answer(503, "the store is away")
        else:
            owner, order = self._context.keys.owner(call), (agent, mode, device, by)

            def read(outcome: Outcome) -> None:
                found = [kv for kv in outcome.value if kv.key == owner] if isinstance(outcome, Done) else []
                if not found:
                    answer(503 if not isinstance(outcome, Done) else 409, "the call has no owner")
                    return
                self._write(order, call, found[0].mod_revision, answer, tried)

            self._context.read(f"supervise/{call}", owner, read)

    def _write(
        self, order: tuple[str, str, str, str], call: str, revision: int, answer: Answer, tried: int
    ) -> None:
        context, (agent, mode, device, by) = self._context, order
        key = context.keys.supervisor(call)

        def written(outcome: Outcome) -> None:
            result = outcome.value if isinstance(outcome, Done) else None
            if isinstance(result, TxnResult) and result.succeeded:
                context.note(f"call/{call}", "supervision ordered", mode=mode, device=device, by=by)
                answer(200, f"{mode} {call}")
            elif isinstance(outcome, Done) and tried + 1 < TRIES_MAX:
                self.give(agent, mode, device, by, answer, tried + 1)
            else:
                answer(503, "not written")

        compares = (Compare(context.keys.owner(call), revision),)
        if mode == STOP:
            context.txn(f"supervise/{call}", written, compares=compares, deletes=(Delete(key),))
            return
        value = SupervisorValue(call=call, mode=mode, device=device, by=by, agent=agent, since=context.utc)
        context.txn(f"supervise/{call}", written, compares=compares, puts=(Put(key, encode(value)),))
