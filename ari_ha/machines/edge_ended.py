"""What is left of a call when nobody is on it any more: its one record.

The edge knows times, legs and who served; queue and agents are the node's word, from
the call's record as the edge last saw it in etcd.
"""

from __future__ import annotations

from ari_ha.machines.edge_context import EdgeContext
from ari_ha.machines.edge_model import EdgeCall
from ari_ha.wire.keyspace import BadValue, RecordValue, decode, encode
from ari_ha.wire.outbox import CdrValue

BY_PHONE = ("phone", "cancelled")


def ended_call(call: EdgeCall, context: EdgeContext) -> bytes:
    """The outbox's value for an ended call."""
    record = _record(call)
    agents = _agents(record) if record else []
    queue = record.queue if record else ""
    value = CdrValue(
        call=call.call,
        kind=call.kind,
        vip=context.config.vip,
        edge=context.config.edge,
        started=call.started_utc,
        answered=call.answered_utc,
        entered=record.entered if record else 0.0,
        connected=call.connected_utc,
        ended=context.utc,
        caller=call.caller,
        did=call.did,
        trunk=call.trunk,
        queue=queue,
        agent=agents[-1] if agents else "",
        agents=agents,
        disposition=_disposition(call, queue),
        nodes=list(call.served),
        epoch=str(call.epoch),
        ended_by=ended_by(call),
        cause=call.cause,
    )
    return encode(value)


def _record(call: EdgeCall) -> RecordValue | None:
    try:
        return decode(call.record, RecordValue) if call.record else None
    except BadValue:
        return None  # the edge's own facts are a record too


def _agents(record: RecordValue) -> list[str]:
    """Who answered the call, in the order they were rung, and who is on it now."""
    answered = [a for a in record.attempts.values() if "answered" in (a.state, a.outcome)]
    names = [attempt.agent for attempt in sorted(answered, key=lambda attempt: attempt.started)]
    names += [leg.agent for leg in record.legs.values() if leg.agent and leg.state in ("up", "held")]
    return list(dict.fromkeys(names))


def _disposition(call: EdgeCall, queue: str) -> str:
    if call.connected_utc:
        return "answered"
    if queue:
        return "abandoned"
    return "answered" if call.answered_utc else "unanswered"


def ended_by(call: EdgeCall) -> str:
    """Who hung up first of those whose end ended the call."""
    by = call.tombstones.get(call.head, "")
    if by in BY_PHONE:
        return "caller"
    before = [word for leg, word in call.tombstones.items() if leg != call.head]
    return "callee" if before and before[-1] == "phone" else by
