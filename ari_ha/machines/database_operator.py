"""Requests of operators to one watcher. Whoever asks gets one answer, and a reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ari_ha.core.machine import Done, Effect, Instant, Outcome
from ari_ha.core.ports.database import DatabaseDo
from ari_ha.core.ports.operator import OperatorReply, OperatorRequest
from ari_ha.core.ports.store import Compare, Delete, Put, StoreTxn, TxnResult
from ari_ha.machines.database_authority import Authority
from ari_ha.machines.database_config import CIRCULAR
from ari_ha.machines.database_context import Context
from ari_ha.machines.database_primary import Primary
from ari_ha.machines.database_publish import Publisher, errant_notes, history, status
from ari_ha.wire.database_keys import HoldValue, OrderValue, encode

OPERATOR_LANE = "operator"
CHECKSUM_LIMIT_S = 25.0
WAITING_MAX = 100

Answer = tuple[int, Any]


class Operator:
    """Answers operators."""

    def __init__(self, ctx: Context, authority: Authority, primary: Primary, publisher: Publisher) -> None:
        self._ctx = ctx
        self._authority = authority
        self._primary = primary
        self._publisher = publisher
        self._waiting: dict[str, Callable[[Outcome], Answer]] = {}
        self._verbs: dict[str, Callable[[OperatorRequest, Instant], Answer | None]] = {
            "status": lambda request, now: (200, status(ctx, authority, publisher, now)),
            "history": lambda request, now: (200, history(ctx)),
            "errant": lambda request, now: (200, errant_notes(ctx)),
            "hold": self._hold,
            "release": self._release,
            "switchover": self._switchover,
            "reinit": self._reinit,
            "failover": self._failover,
            "checksum": self._checksum,
        }

    def asked(self, request: OperatorRequest, now: Instant) -> None:
        """Answers now, or when what was asked for is written."""
        verb = self._verbs.get(request.verb)
        answer: Answer | None = (404, {"error": f"no such verb: {request.verb}"}) if verb is None else None
        if verb is not None:
            answer = verb(request, now)
        if answer is not None:
            self._reply(request.request, answer)

    def _reply(self, request: str, answer: Answer) -> None:
        status_, body = answer
        self._ctx.emit(OperatorReply(request=request, status=status_, body=body))

    def _later(
        self, request: OperatorRequest, effect: Effect, done: Callable[[Any], Answer]
    ) -> Answer | None:
        if len(self._waiting) >= WAITING_MAX:
            return 503, {"error": "too many requests wait"}

        def answer(outcome: Outcome) -> Answer:
            if not isinstance(outcome, Done):
                return 503, {"error": f"{type(outcome).__name__}: {outcome.reason}"}
            if isinstance(outcome.value, TxnResult) and not outcome.value.succeeded:
                return 409, {"error": "something changed meanwhile; look and ask again"}
            return done(outcome.value)

        self._waiting[request.request] = answer
        self._ctx.emit(effect)
        return None

    def outcome(self, tag: str, outcome: Outcome) -> bool:
        """The outcome of something asked for by an operator."""
        answer = (
            self._waiting.pop(tag.removeprefix("operator:"), None) if tag.startswith("operator:") else None
        )
        if answer is not None:
            self._reply(tag.removeprefix("operator:"), answer(outcome))
        return tag.startswith("operator:")

    def _write(self, request: OperatorRequest, txn: Mapping[str, Any], body: Any) -> Answer | None:
        effect = StoreTxn(**txn, tag=f"operator:{request.request}", lane=OPERATOR_LANE)
        return self._later(request, effect, lambda value: (202, body))

    # -- verbs

    def _hold(self, request: OperatorRequest, now: Instant) -> Answer | None:
        value = HoldValue(
            by=str(request.args.get("by", "")),
            reason=str(request.args.get("reason", "")),
            since=self._ctx.utc_s,
        )
        put = Put(self._ctx.model.keys.hold, encode(value))
        return self._write(request, {"puts": (put,)}, {"held": True})

    def _release(self, request: OperatorRequest, now: Instant) -> Answer | None:
        return self._write(request, {"deletes": (Delete(self._ctx.model.keys.hold),)}, {"held": False})

    def _order(self, request: OperatorRequest, kind: str, server: str, by: str = "") -> Answer | None:
        model = self._ctx.model
        value = OrderValue(id=request.request, kind=kind, server=server, by=by, since=self._ctx.utc_s)
        compares = [Compare(model.keys.order, model.order.mod_revision if model.order else 0)]
        if kind == "switchover":
            compares.append(model.compare_leader())
        txn = {"compares": tuple(compares), "puts": (Put(model.keys.order, encode(value)),)}
        return self._write(request, txn, {"order": kind, "server": server})

    def _switchover(self, request: OperatorRequest, now: Instant) -> Answer | None:
        """To be asked of the leader's watcher; refused when it cannot be without loss."""
        model = self._ctx.model
        server = str(request.args.get("to") or self._ctx.config.peer)
        if model.led_by_other:
            leader = model.members.get(model.led_by_other)
            return 421, {"error": f"{model.led_by_other} leads", "http": leader.http if leader else ""}
        why = self._primary.refusal(server, now)
        if why:
            return 409, {"error": why}
        return self._order(request, "switchover", server, self._ctx.config.process)

    def _reinit(self, request: OperatorRequest, now: Instant) -> Answer | None:
        model = self._ctx.model
        server = str(request.args.get("server", ""))
        if server not in self._ctx.config.servers:
            return 404, {"error": f"no server {server!r}"}
        if model.leader is None or model.leader.value.server == server or model.primary == server:
            return 409, {"error": f"{server} is primary, or nobody leads: there is nothing to copy from"}
        if model.order is not None:
            return 409, {"error": f"order {model.order.value.id} is under way"}
        return self._order(request, "reinit", server)

    def _failover(self, request: OperatorRequest, now: Instant) -> Answer | None:
        """By hand, to a server that may lack confirmed writes; only where nobody leads."""
        model = self._ctx.model
        server = str(request.args.get("to", ""))
        if server not in self._ctx.config.servers:
            return 404, {"error": f"no server {server!r}"}
        if model.leader is not None:
            return 409, {"error": f"{model.leader.value.server} leads: use switchover"}
        if not request.args.get("accept_loss"):
            return 409, {"error": f"{server} may lack confirmed writes; say accept_loss to go on"}
        return self._order(request, "failover", server)

    def _checksum(self, request: OperatorRequest, now: Instant) -> Answer | None:
        effect = DatabaseDo(
            verb="checksum", tag=f"operator:{request.request}", lane="checksum", limit_s=CHECKSUM_LIMIT_S
        )
        alarm = self._ctx.config.shape == CIRCULAR
        return self._later(
            request,
            effect,
            lambda tables: (200, {"server": self._ctx.model.me, "tables": tables, "alarm": alarm}),
        )
