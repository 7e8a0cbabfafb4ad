"""Chaos, calls with more people than a caller and his agent: how each state is set up, and what
the people do next once the fault is over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ari_ha.cli.chaos_inside import ended, expect
from ari_ha.cli.chaos_judge import (
    CONFERENCE,
    CONSULT,
    EARLY_MEDIA,
    TRANSFER,
    UNANSWERED_STATES,
    Pair,
    Verdict,
)
from ari_ha.cli.chaos_stage import CARRIER, SALES, SUPPORT, Stage, StageError, until
from ari_ha.farend.client import FarEndError

PARTY_STATES = (TRANSFER, CONSULT, CONFERENCE, *UNANSWERED_STATES)
CALLS_MAX = len(SALES)
CONFERENCE_DIGITS = "*3"
STATE_LIMIT_S = 20.0
RELEASE_LIMIT_S = 10.0
TRANSFERRED = "SIP/2.0 200 OK"
"""What the last NOTIFY of a transfer says (RFC 3515 section 2.4.5)"""


def place(stage: Stage, count: int, state: str, serial: int) -> list[Pair]:
    """Brings ``count`` calls to ``state``. The third person of each is a phone of `SALES`,
    at which no agent is logged in."""
    if count > CALLS_MAX:
        raise StageError(f"at most {CALLS_MAX} calls in state {state}")
    if state in UNANSWERED_STATES:
        return _ringing_out(stage, count, state, serial)
    pairs = stage.place(count, "talking", serial)
    others = SALES[:count]
    if state == TRANSFER:
        _transfer(stage, pairs, others)
        return pairs
    _consult(stage, pairs, others)
    if state == CONFERENCE:
        _confer(stage, pairs)
    return pairs


def _calls(stage: Stage, way: str) -> dict[str, dict[str, Any]]:
    """Living calls of far ends that came in or went out, by owner: the newest of each."""
    return {c["owner"]: c for c in stage.far.calls(living="1") if c["way"] == way}


def _ringing_out(stage: Stage, count: int, state: str, serial: int) -> list[Pair]:
    """Agents dial numbers at the carrier, who lets them ring; with early media he speaks meanwhile."""
    agents = SUPPORT[:count]
    stage.agents_in(agents)
    stage.far.manner([CARRIER], mode="early" if state == EARLY_MEDIA else "ring", ring=True)
    numbers = {agent: f"+49{serial:03}{agent}" for agent in agents}
    for agent, number in numbers.items():
        stage.far.phone_order(agent, "dial", number=number)
    pairs: dict[str, Pair] = {}

    def ring() -> bool:
        out = _calls(stage, "out")
        rung = {c["number"]: c for c in stage.far.calls(living="1", owner=CARRIER) if c["state"] == "ringing"}
        for agent, number in numbers.items():
            if number in rung and out.get(agent, {}).get("state") == "ringing":
                mine, theirs = out[agent]["call"], rung[number]["call"]
                pairs[agent] = Pair(theirs, agent, state, agent=agent, agent_call=mine, agent_leg="c")
        spoken = list(pairs.values()) if state == EARLY_MEDIA else []
        return len(pairs) == count and stage.agents_hear(spoken)

    until(f"{count} numbers ring", STATE_LIMIT_S, ring, 0.2)
    works = [stage.agents()[agent].get("work") for agent in agents]
    if set(works) != {"dialing"}:
        raise StageError(f"agents who dial are {works}")
    return list(pairs.values())


def _transfer(stage: Stage, pairs: Sequence[Pair], others: Sequence[str]) -> None:
    """The agents ask for a transfer and are released; the targets ring, the customers hear music."""
    stage.far.manner(others, mode="ring", ring=True)
    for pair, other in zip(pairs, others, strict=True):
        stage.far.order(pair.agent_call, "refer", number=other)
    agents = [pair.agent for pair in pairs]

    def reached() -> bool:
        rung, calls = _calls(stage, "in"), stage.far_calls()
        if any(calls[pair.agent_call]["state"] != "ended" for pair in pairs if pair.state != TRANSFER):
            return False
        return all(rung.get(other, {}).get("state") == "ringing" for other in others)

    until("the targets ring", STATE_LIMIT_S, reached, 0.2)
    rung, edge = _calls(stage, "in"), stage.edge_calls()
    for pair, other in zip(pairs, others, strict=True):
        pair.state, pair.agent, pair.agent_call = TRANSFER, other, rung[other]["call"]
        legs = edge[pair.caller]["legs"]
        pair.agent_leg = next(name for name, leg in legs.items() if leg["aor"] == other)
    until("music meanwhile", 10, lambda: stage.hearing_music(pairs), 0.2)

    def free() -> bool:
        known = stage.agents()
        return all(known[agent].get("work", "idle") == "idle" for agent in agents)

    until("whoever asked is free", 15, free, 0.2)


def _consult(stage: Stage, pairs: Sequence[Pair], others: Sequence[str]) -> None:
    """The agents hold their customers and talk to somebody else."""
    stage.far.manner(others, mode="answer", after_s=0.2)
    for pair in pairs:
        stage.far.order(pair.agent_call, "hold")
    until("music on hold", 10, lambda: stage.hearing_music(pairs), 0.2)
    for pair, other in zip(pairs, others, strict=True):
        stage.far.phone_order(pair.agent, "dial", number=other)

    def talk() -> bool:
        out, rung = _calls(stage, "out"), _calls(stage, "in")
        for pair, other in zip(pairs, others, strict=True):
            mine, theirs = out.get(pair.agent, {}), rung.get(other, {})
            if mine.get("state") != "up" or theirs.get("state") != "up":
                return False
            pair.side, pair.state = (mine["call"], theirs["call"]), CONSULT
        return stage.talking([side_of(pair) for pair in pairs])

    until("they consult", STATE_LIMIT_S, talk, 0.2)


def _confer(stage: Stage, pairs: Sequence[Pair]) -> None:
    """The agents take their customers into the second conversation."""
    stage.far.digits({pair.side[0]: CONFERENCE_DIGITS for pair in pairs})

    def joined() -> bool:
        calls = stage.far_calls()
        return all(calls[pair.agent_call]["state"] == "ended" for pair in pairs if pair.state == CONSULT)

    until("one dialog of each agent is left", 10, joined, 0.2)
    edge = stage.edge_calls()
    for pair in pairs:
        pair.state, pair.agent_call = CONFERENCE, pair.side[0]
        legs = edge[pair.caller]["legs"]
        pair.agent_leg = next(name for name, leg in legs.items() if leg["role"] == "user")
    until("all three hear", 10, lambda: hear_mix(stage, pairs), 0.2)


def side_of(pair: Pair) -> Pair:
    """The second conversation, as a pair of its own."""
    return Pair(pair.side[0], "", "talking", agent_call=pair.side[1])


def hear_mix(stage: Stage, pairs: Sequence[Pair]) -> bool:
    """Whether all three of each hear what Asterisk mixes: no voice's own packets."""
    ears = [Pair(ident, "") for pair in pairs for ident in (pair.customer, *pair.side)]
    return stage.hearing_music(ears)


def judge_side(stage: Stage, verdict: Verdict, since: float) -> None:
    """What the other people of the call lost, and whether they are still together."""
    pair = verdict.pair
    if pair.state == CONFERENCE:
        if not hear_mix(stage, [pair]):
            verdict.against.append("not all three hear the others")
    elif pair.state == CONSULT:
        one, other = pair.side
        rows = {row["call"]: row for row in stage.far.measure(since, None, [one, other])["calls"]}
        heard = [
            next((h for h in rows[mine]["hears"] if h["call"] == theirs), None) if mine in rows else None
            for mine, theirs in ((one, other), (other, one))
        ]
        if None in heard or not stage.talking([side_of(pair)]):
            verdict.against.append("the consultation is not heard")
        lost = [h for h in heard if h is not None]
        verdict.lost_ms["to_agent"] = max((h["lost_ms"] for h in lost), default=None)
        verdict.gap_ms["to_agent"] = max((h["longest_gap_ms"] for h in lost), default=None)


def go_on(stage: Stage, verdicts: Sequence[Verdict]) -> None:
    """What the people do next, until caller and agent (or target) should hear each other. Of those who
    consult one half connects the two, the other comes back to the customer."""
    consulting = [verdict.pair.customer for verdict in verdicts if verdict.pair.state == CONSULT]
    transferring = consulting[: (len(consulting) + 1) // 2]
    released: list[tuple[Verdict, str]] = []
    for verdict in verdicts:
        pair, far = verdict.pair, stage.far
        try:
            if pair.state in UNANSWERED_STATES:
                far.order(pair.customer, "answer")
            elif pair.state == TRANSFER:
                far.order(pair.agent_call, "answer")
            elif pair.customer in transferring:
                released += [(verdict, ident) for ident in _connect(stage, verdict)]
            elif pair.state == CONSULT:
                far.order(pair.side[0], "hangup")
                far.order(pair.agent_call, "unhold")
                released.append((verdict, pair.side[1]))
            else:
                far.order(pair.side[1], "hangup")
        except FarEndError as error:
            verdict.against.append(f"going on: {error}")
    for verdict, ident in released:
        gone = f"{ident} is released"
        expect(verdict, gone, RELEASE_LIMIT_S, lambda ident=ident: ended(stage, ident, "them"))  # type: ignore[misc]
    for verdict, ident in released:
        asked = stage.far.call(ident)["refer"]
        if asked["answer"] and asked["said"][-1:] != [TRANSFERRED]:
            verdict.against.append(
                f"{ident} was told {asked['answer']}, {', '.join(asked['said']) or 'nothing'}"
            )


def _connect(stage: Stage, verdict: Verdict) -> tuple[str, str]:
    """The agent completes the transfer, as phones do: REFER in the customer's dialog, with a Replaces that
    names the consultation's. Returns his two calls, of which he is released."""
    pair, far = verdict.pair, stage.far
    second, third = pair.side
    far.order(pair.agent_call, "refer", number=far.call(third)["owner"], other=second)
    released = (pair.agent_call, second)
    pair.agent_call = third
    return released
