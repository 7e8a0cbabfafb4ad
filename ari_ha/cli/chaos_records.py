"""Chaos, the call records: whatever died, each call of a run has one row, and it says who was on it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ari_ha.adapters.call_records import CallRecords
from ari_ha.checkers.queue_log import contradictions
from ari_ha.cli import db, records
from ari_ha.cli.chaos_judge import ALONE_STATES, RINGING_STATES, Verdict
from ari_ha.cli.chaos_stage import Stage, StageError, until
from ari_ha.core.machine import Done, Outcome

ROWS_LIMIT_S = 60.0
"""A failover of the database and the end of a dead clerk's lease, with room."""
READ_LIMIT_S = 5.0
ROWS_MAX = 1000
ONE_QUEUE = ("talking", "through", "held", "ringing", "queued")
TIMES_OF_CALL = ("started", "answered", "entered", "connected", "ended")
OF_NODE = "entered"
"""As the node tells the time; the others are the edge's."""
APART_S = 1.0
"""A process is told the time once a second, and on a busy machine late."""
FEATURE = "*"
"""What an agent dials to log in is a call of its own."""
NOBODY_ANSWERED = (*ALONE_STATES, *RINGING_STATES)

Rows = Sequence[Mapping[str, Any]]


def judge_rows(stage: Stage, verdicts: Iterable[Verdict], since: float) -> dict[str, int]:
    """Counts of rows that are missing and of rows too many. ``since``: UTC seconds before the first call."""
    verdicts = [verdict for verdict in verdicts if verdict.pair.call]
    rows: Rows = []

    def complete() -> bool:
        nonlocal rows
        rows = _read(stage, since)
        there = {row["ha_call_id"] for row in rows}
        return all(verdict.pair.call in there for verdict in verdicts) and not _waiting(stage)

    try:
        until("every call has its row, and the outbox is empty", ROWS_LIMIT_S, complete, 0.2)
    except StageError as error:
        stage.say(str(error))
    log = _told(stage, since)
    missing = twice = confused = 0
    for verdict in verdicts:
        found = [row for row in rows if row["caller"] == verdict.pair.caller and row["did"][:1] != FEATURE]
        missing += not any(row["ha_call_id"] == verdict.pair.call for row in found)
        twice += max(0, len(found) - 1)
        verdict.against += against(verdict, found)
        told = [row for row in log if row["callid"] == verdict.pair.call]
        verdict.against += times_against(found, told, since, time.time())
        wrong = log_against(verdict, told)
        confused += bool(wrong)
        verdict.against += wrong
    return {"calls_without_row": missing, "rows_too_many": twice, "queue_log_wrong": confused}


def against(verdict: Verdict, rows: Rows) -> list[str]:
    """What is wrong with the rows of this caller."""
    pair = verdict.pair
    if len(rows) != 1:
        return [f"{len(rows)} call records instead of one"]
    row = rows[0]
    if row["ha_call_id"] != pair.call:
        return [f"the call record is of {row['ha_call_id']}"]
    people = [*row["agents"].split(), row["caller"]]  # of a call that an agent made he is the caller
    named = not pair.agent or pair.state in NOBODY_ANSWERED or pair.agent in people
    return [] if named else [f"the call record does not name agent {pair.agent}"]


def times_against(rows: Rows, log: Rows, since: float, now: float) -> list[str]:
    """What is wrong with the times of a call that began after ``since`` and is over ``now`` (UTC seconds),
    whatever the clocks of those who wrote them did."""
    wrong = []
    for row in rows:
        at = {name: _utc(row[name]) for name in TIMES_OF_CALL if row.get(name)}
        edges = [at[name] for name in at if name != OF_NODE]
        entered = at.get(OF_NODE, at["started"])
        in_order = since <= edges[0] and edges == sorted(edges) and edges[-1] <= now
        if not in_order or not edges[0] - APART_S <= entered <= edges[-1] + APART_S:
            wrong.append(f"the call record has the times {', '.join(f'{n} {row[n]}' for n in at)}")
    strange = [row for row in log if not since - APART_S <= _utc(row["time"]) <= now + APART_S]
    return wrong + [f"the queue log says {row['event']} at {row['time']}" for row in strange]


def _utc(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def log_against(verdict: Verdict, log: Rows) -> list[str]:
    """What is wrong with the queue log of a call: its story, and, where one queue gave it to one agent or to
    none, that there is one."""
    wrong, waiting, talking = contradictions(log)
    wrong += ["the caller waits for ever"] if waiting else []
    wrong += [f"{agent} talks for ever" for agent, _ in sorted(talking)]
    if wrong or verdict.pair.state not in ONE_QUEUE:
        return [f"the queue log says: {', '.join(wrong)}"] if wrong else []
    events = [row["event"] for row in log]
    count = {name: events.count(name) for name in ("ENTERQUEUE", "CONNECT", "ABANDON")}
    good = count["ENTERQUEUE"] == 1 == count["CONNECT"] + count["ABANDON"]
    return [] if good else [f"the queue log says {', '.join(events) or 'nothing'}"]


def judge_pair_whole(stage: Stage) -> list[str]:
    """What is wrong with the databases once they have had their time to come back."""
    try:
        until("the databases are whole", ROWS_LIMIT_S, lambda: not _complaints(stage), 0.5)
    except StageError:
        return _complaints(stage)
    return []


def _complaints(stage: Stage) -> list[str]:
    pairs = db.document(db.read_pairs(stage.cluster))["clusters"]
    return [f"{pair['name']}: {reason}" for pair in pairs for reason in db.judge(pair)[1]]


def _waiting(stage: Stage) -> int:
    return len(stage.cluster.family("outbox"))


def _read(stage: Stage, since: float) -> Rows:
    """Rows of calls that began later; none while no server is writable."""
    return _asked(stage, lambda found: found.ended(ROWS_MAX, limit_s=READ_LIMIT_S, since=since))


def _told(stage: Stage, since: float) -> Rows:
    return _asked(stage, lambda found: found.told(since, limit_s=READ_LIMIT_S))


def _asked(stage: Stage, ask: Callable[[CallRecords], Coroutine[Any, Any, Outcome]]) -> Rows:
    found = CallRecords(records.access_of(stage.cluster.settings.source))
    try:
        outcome = asyncio.run(ask(found))
    finally:
        found.close()
    return outcome.value if isinstance(outcome, Done) else []
