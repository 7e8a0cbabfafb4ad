"""The queue log: lines in Asterisk's own format, made of what one transaction changes.

Nobody says "an agent was connected" here: a line follows from an agent's value or a
caller's place before and after, so whatever path leads there, the log tells it once,
because it is put in that very transaction.

Events and their data are those of ``queue_log`` (Asterisk's documentation, "Queue Logs");
what Asterisk has per queue for a pause is one line for all of an agent's queues.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from ari_ha.machines.acd_agents import IN_CALL, TRYING
from ari_ha.wire.keyspace import AgentValue, AttemptOfAgent, Value, WaitingValue
from ari_ha.wire.outbox import QueueLine

NONE = "NONE"
"""Asterisk's word for no queue, no agent or no call."""
BY_CALLER, BY_TRANSFER = "caller", "transfer"
BUSY_WITH_IT = TRYING | IN_CALL

Values = Mapping[str, Value | None]


@dataclass(frozen=True, slots=True)
class Around:
    """What the values themselves do not say."""

    utc: float
    cause: str = ""
    """Who ended a conversation: caller, agent, transfer."""
    position: Callable[[WaitingValue], int] = lambda place: 1
    """The place's rank in its queue."""
    connected: Collection[str] = ()
    """Calls of which it is told already that an agent took them."""


def lines(before: Values, after: Values, around: Around) -> list[tuple[str, QueueLine]]:
    """The lines of a transaction that makes ``after`` of ``before``, each with the key whose
    change it tells: agents first, so that a phone stops ringing before its caller is gone."""
    found: list[tuple[str, QueueLine]] = []
    for key, new in sorted(after.items()):
        old = before.get(key)
        if isinstance(old, AgentValue) and isinstance(new, AgentValue):
            found += [(key, line) for line in (*_work(old, new, around), *_intent(old, new, around.utc))]
    connected = {*around.connected} | {
        value.attempt.call
        for value in after.values()
        if isinstance(value, AgentValue) and value.work in IN_CALL and value.attempt is not None
    }
    for key, new in sorted(after.items()):
        found += [(key, line) for line in _place(before.get(key), new, connected, around)]
    return found


def _line(utc: float, event: str, *data: str, call: str = "", queue: str = "", agent: str = "") -> QueueLine:
    name = f"Agent/{agent}" if agent else NONE
    return QueueLine(
        time=utc, call=call or NONE, queue=queue or NONE, agent=name, event=event, data=list(data)
    )


def _seconds(duration: float) -> str:
    return str(round(max(0.0, duration)))


def _hold(attempt: AttemptOfAgent) -> str:
    """How long the caller waited until the agent was connected; 0 where it is not known."""
    return _seconds(attempt.since - attempt.entered if attempt.entered else 0.0)


# --- an agent ---------------------------------------------------------------------------------


def _work(old: AgentValue, new: AgentValue, around: Around) -> Iterator[QueueLine]:
    was, now = old.attempt, new.attempt
    stays = was is not None and now is not None and was.attempt == now.attempt
    if was is not None and was.queue and not (stays and new.work in BUSY_WITH_IT):
        if old.work in IN_CALL:
            yield completed(old, around)
        elif old.work in TRYING and new.work not in IN_CALL:
            yield from _not_reached(old, new, around.utc)
    if now is not None and now.queue and new.work in IN_CALL and not (stays and old.work in IN_CALL):
        rang = around.utc - old.work_since if old.work == "ringing" else 0.0
        yield _line(around.utc, "CONNECT", _hold(now), now.attempt, _seconds(rang),
                    call=now.call, queue=now.queue, agent=new.agent)  # fmt: skip


def completed(old: AgentValue, around: Around) -> QueueLine:
    """The end of his conversation, COMPLETEAGENT or COMPLETECALLER: hold, talk, position (not known any
    more), and the word ``transfer`` where the agent passed the caller on."""
    was = old.attempt
    assert was is not None
    event = "COMPLETECALLER" if around.cause == BY_CALLER else "COMPLETEAGENT"
    more = [BY_TRANSFER] if around.cause == BY_TRANSFER else []
    return _line(around.utc, event, _hold(was), _seconds(around.utc - was.since), "", *more,
                 call=was.call, queue=was.queue, agent=old.agent)  # fmt: skip


def _not_reached(old: AgentValue, new: AgentValue, utc: float) -> Iterator[QueueLine]:
    """His turn is over (he is the last among the idle): RINGNOANSWER. He keeps it: RINGCANCELED,
    if the phone rang at all."""
    assert old.attempt is not None
    rang = utc - old.work_since if old.work == "ringing" else 0.0
    his_turn = new.idle_since == old.idle_since
    if his_turn and old.work != "ringing":
        return
    event = "RINGCANCELED" if his_turn else "RINGNOANSWER"
    yield _line(utc, event, str(round(max(0.0, rang) * 1000)),
                call=old.attempt.call, queue=old.attempt.queue, agent=old.agent)  # fmt: skip


def _intent(old: AgentValue, new: AgentValue, utc: float) -> Iterator[QueueLine]:
    if (old.intent, old.reason) == (new.intent, new.reason):
        return
    if new.intent == "logged_out":
        since = _seconds(utc - old.logged_in if old.logged_in else 0.0)
        yield _line(utc, "AGENTLOGOFF", old.device, since, agent=new.agent)
        return
    if old.intent == "logged_out":
        yield _line(utc, "AGENTLOGIN", new.device, agent=new.agent)
    if new.intent == "not_ready":
        yield _line(utc, "PAUSEALL", new.reason, agent=new.agent)
    elif old.intent == "not_ready":
        yield _line(utc, "UNPAUSEALL", agent=new.agent)


# --- a place ----------------------------------------------------------------------------------


def _place(
    old: Value | None, new: Value | None, connected: Collection[str], around: Around
) -> Iterator[QueueLine]:
    """ENTERQUEUE url, caller, position; ABANDON position, position at first (not known), wait."""
    if old is None and isinstance(new, WaitingValue):
        rank = str(around.position(new))
        yield _line(around.utc, "ENTERQUEUE", "", new.caller, rank, call=new.call, queue=new.queue)
    elif isinstance(old, WaitingValue) and new is None and old.call not in connected:
        wait = _seconds(around.utc - old.entered)
        rank = str(around.position(old))
        yield _line(around.utc, "ABANDON", rank, "", wait, call=old.call, queue=old.queue)
