"""What must be true of the queue log: it tells one story."""

from __future__ import annotations

from collections.abc import Iterable

from ari_ha.core.ports.records import Row

ENDS_WAITING = ("ABANDON", "CONNECT")
ENDS_TALKING = ("COMPLETEAGENT", "COMPLETECALLER")


def contradictions(lines: Iterable[Row]) -> tuple[list[str], set[str], set[tuple[str, str]]]:
    """What no queue can have done: nobody enters twice, is connected twice, or is completed
    who was not connected. And who waits (calls) and who talks (agent, call) at the end.
    ``lines``: rows of queue_log, in their order; of one call they are told in the order in
    which it happened, of two calls of one agent perhaps not."""
    waiting: set[str] = set()
    talking: set[tuple[str, str]] = set()
    wrong = []
    for line in lines:
        call, agent, event = line["callid"], line["agent"], line["event"]
        if event == "ENTERQUEUE":
            wrong += [f"{call} enters twice"] if call in waiting else []
            waiting.add(call)
        if event in ENDS_WAITING:
            wrong += [f"{call} leaves twice"] if event == "ABANDON" and call not in waiting else []
            waiting.discard(call)
        if event == "CONNECT":
            wrong += [f"{agent} is connected to {call} twice"] if (agent, call) in talking else []
            talking.add((agent, call))
        if event in ENDS_TALKING:
            stranger = (agent, call) not in talking
            wrong += [f"{agent} completes {call} without being connected"] if stranger else []
            talking.discard((agent, call))
    return wrong, waiting, talking
