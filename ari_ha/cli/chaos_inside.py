"""Chaos: what people do inside the gap, 100 ms after the fault, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ari_ha.cli.chaos_judge import VOICE_STATES, Verdict
from ari_ha.cli.chaos_stage import SALES, Stage, StageError, until

HANGUP_CALLER, HANGUP_AGENT, HOLD_AGENT = "hangup-caller", "hangup-agent", "hold-agent"
REFER_AGENT, CALLERS = "refer-agent", "callers"
DURING = ("", HANGUP_CALLER, HANGUP_AGENT, HOLD_AGENT, REFER_AGENT, CALLERS)
ACTS_OF_AGENT = (HANGUP_AGENT, HOLD_AGENT, REFER_AGENT)
HANGUPS = (HANGUP_CALLER, HANGUP_AGENT)
ASKED = (HOLD_AGENT, REFER_AGENT)
"""After these the calls' Asterisk dies: what the edge took up in the gap must survive that too."""
ACT_AFTER_S = 0.1
ANSWER_LIMIT_S = 10.0
TRANSFER_LIMIT_S = 15.0
AGAIN_LIMIT_S = 3.0
"""A phone that were called again after the end would ring by then."""


def hang_up(stage: Stage, verdicts: Iterable[Verdict], by_caller: bool, struck_at: float) -> None:
    """One side hangs up: the other must be ended too, and nobody is called again."""
    before = set(stage.far_calls())
    sides = []
    for verdict in verdicts:
        pair = verdict.pair
        mine, other = (pair.customer, pair.agent_call) if by_caller else (pair.agent_call, pair.customer)
        sides.append((verdict, mine or pair.customer, other if mine else ""))
    _wait(struck_at)
    for _, mine, _ in sides:
        stage.far.order(mine, "hangup")
    for verdict, mine, other in sides:
        verdict.same_agent = None
        if other:
            gone = f"{other} is ended too"
            expect(verdict, gone, ANSWER_LIMIT_S, lambda other=other: ended(stage, other, "them"))  # type: ignore[misc]
        if verdict.pair.state in VOICE_STATES:
            _answered(stage, verdict, mine, "BYE", struck_at)
    try:
        until("new calls at the phones", AGAIN_LIMIT_S, lambda: set(stage.far_calls()) - before)
    except StageError:
        return
    for verdict, _, _ in sides:
        verdict.against.append("a phone was called again after the end")


def hold(stage: Stage, verdicts: Iterable[Verdict], struck_at: float) -> None:
    """Agents put their customers on hold (a re-INVITE), and take them back when that is answered."""
    verdicts = list(verdicts)
    _wait(struck_at)
    for verdict in verdicts:
        stage.far.order(verdict.pair.agent_call, "hold")
    for verdict in verdicts:
        _answered(stage, verdict, verdict.pair.agent_call, "INVITE", struck_at)
    for verdict in verdicts:
        stage.far.order(verdict.pair.agent_call, "unhold")
    try:
        until("they talk again", ANSWER_LIMIT_S, lambda: stage.talking([v.pair for v in verdicts]), 0.1)
    except StageError as error:
        for verdict in verdicts:
            verdict.against.append(str(error))


def refer(stage: Stage, verdicts: Iterable[Verdict], struck_at: float) -> None:
    """Agents ask for a transfer to somebody who answers, and the customers talk to him. The third person of
    each is a phone of `SALES`, at which no agent is logged in."""
    verdicts = list(verdicts)
    others = dict(zip([v.pair.customer for v in verdicts], SALES, strict=False))
    stage.far.manner(others.values(), mode="answer", after_s=0.3)
    _wait(struck_at)
    for verdict in verdicts:
        stage.far.order(verdict.pair.agent_call, "refer", number=others[verdict.pair.customer])

    def there() -> bool:
        up, at_edge = stage.came_in("up"), stage.edge_calls()
        for verdict in verdicts:
            pair, other = verdict.pair, others[verdict.pair.customer]
            legs = at_edge[pair.caller]["legs"] if pair.caller in at_edge else {}
            leg = next((name for name, facts in legs.items() if facts["aor"] == other), "")
            if other not in up or not leg:
                return False
            pair.agent_call, pair.agent_leg = up[other], leg
        return stage.talking([v.pair for v in verdicts])

    try:
        until("customers talk to whom they were transferred to", TRANSFER_LIMIT_S, there, 0.1)
    except StageError as error:
        for verdict in verdicts:
            verdict.against.append(str(error))


def ended(stage: Stage, ident: str, by: str) -> bool:
    """Whether the far end's call is over, and by whom."""
    row = stage.far.call(ident)
    return row["state"] == "ended" and row["ended_by"] in (by, "canceled", "refused")


def expect(verdict: Verdict, what: str, limit_s: float, look: Callable[[], Any]) -> bool:
    """Waits for it; counts against the call when it does not come."""
    try:
        until(what, limit_s, look)
    except StageError as error:
        verdict.against.append(str(error))
        return False
    return True


def _wait(struck_at: float) -> None:
    time.sleep(max(0.0, struck_at + ACT_AFTER_S - time.time()))


def _answered(stage: Stage, verdict: Verdict, ident: str, method: str, since: float) -> None:
    """How long the request of this far end waited for its final answer."""

    def took() -> list[float]:
        return answer_times(stage.far.call(ident)["messages"], method, since)

    if expect(verdict, f"the {method} of {ident} is answered", ANSWER_LIMIT_S, took):
        verdict.answered_ms = took()[0] * 1000


def answer_times(messages: Iterable[Mapping[str, Any]], method: str, since: float) -> list[float]:
    """Seconds from the first ``method`` sent after ``since`` to each final answer of it."""
    later = [message for message in messages if message["at"] >= since]
    sent = [m["at"] for m in later if m["way"] == "sent" and m["what"] == method]
    answers = [m for m in later if m["way"] == "received" and m["what"].endswith(f" {method}")]
    return [m["at"] - sent[0] for m in answers if sent and m["at"] >= sent[0] and m["what"][0] in "23456"]
