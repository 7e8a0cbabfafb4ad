"""Values of the outbox: what waits in etcd for the clerk to write it into the database."""

from __future__ import annotations

import msgspec

from ari_ha.wire.keyspace import Value


class CdrValue(Value):
    """``outbox/cdr/<call>``: a finished call, to be written once by the clerk. Times that
    did not come are 0."""

    call: str
    started: float
    answered: float = 0.0
    """When the first phone was answered, or our Asterisk answered the caller."""
    ended: float = 0.0
    caller: str = ""
    did: str = ""
    trunk: str = ""
    queue: str = ""
    agent: str = ""
    disposition: str = ""
    """answered, abandoned (in a queue), unanswered"""
    nodes: list[str] = msgspec.field(default_factory=list)
    """node#incarnation that served it, in order"""
    epoch: str = ""
    kind: str = ""
    vip: str = ""
    edge: str = ""
    entered: float = 0.0
    """When the caller entered the queue."""
    connected: float = 0.0
    """When two people could first talk."""
    agents: list[str] = msgspec.field(default_factory=list)
    """Agents who answered it, in order."""
    ended_by: str = ""
    """caller, callee, app, or the edge's word for it"""
    cause: str = ""


class QueueLine(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One line of Asterisk's queue_log. ``time``: UTC seconds."""

    time: float
    call: str
    queue: str
    agent: str
    event: str
    data: list[str] = []


class QueueLogValue(Value):
    """``outbox/queue_log/<entry>``: what one transaction means in the queue log, to be written
    once by the clerk, in the order of the transactions."""

    lines: list[QueueLine]


class ClerkValue(Value):
    """``clerk/leader``, leased: the one process that empties the outbox."""

    clerk: str
    process: str
    since: float = 0.0
