"""What is left of a call when nobody is on it any more: its one record.

The edge knows times, legs and who answered and served; the queue is the node's word,
from the call's record as the edge last saw it in etcd.
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
    agents = list(call.agents)
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
