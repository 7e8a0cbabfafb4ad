"""The agent's states: a table of transitions and the pure functions behind it.

Intent is the agent's word, work is the ACD's; neither ever changes the other
except where the table says so (a pending intent on leaving work, a run of
misses). `recovering` is an overlay: setting it is not a transition and does
not count in `seq`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from ari_ha.core.utc import STEP_S
from ari_ha.wire.keyspace import AgentValue, AttemptOfAgent

BUSY = frozenset({"reserved", "ringing", "talking", "hold", "consult", "dialing"})
"""Work that belongs to a living call or attempt."""
TRYING = frozenset({"reserved", "ringing"})
IN_CALL = frozenset({"talking", "hold", "consult", "dialing"})

BY_ACD = "acd"
REASON_RONA = "rona"
REASON_DEVICE = "device"


@dataclass(frozen=True, slots=True)
class Not:
    """No transition, and why. ``already``: the state asked for is there."""

    why: str
    already: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a transition needs to know besides the agent."""

    attempt: str = ""
    call: str = ""
    queue: str = ""
    node: str = ""
    deadline: float = 0.0
    entered: float = 0.0
    delay_s: float = 0.0
    wrapup_s: float = 0.0
    rona_max: int = 1
    intent: str = ""
    reason: str = ""
    by: str = ""
    device: str = ""
    take_over: bool = False
    extend_s: float = 0.0
    acw_max_s: float = 0.0


Change = Callable[[AgentValue, Facts, float], AgentValue | Not]


@dataclass(frozen=True, slots=True)
class Rule:
    """One row: from any work of ``works`` (and this agent's own attempt or call, by
    ``own``) to ``to``. What it means in the queue log: `acd_log`."""

    name: str
    works: frozenset[str]
    to: str
    apply: Change
    own: str = ""
    """``attempt``: the attempt must be the agent's; ``call``: the call must be."""


def _with(agent: AgentValue, **changes: Any) -> AgentValue:
    return msgspec.structs.replace(agent, **changes)


# --- leaving work ---------------------------------------------------------------------


def _set_intent(agent: AgentValue, intent: str, reason: str, by: str, utc: float) -> AgentValue:
    changes: dict[str, Any] = {
        "intent": intent, "reason": reason, "intent_since": utc, "by": by,
        "next_intent": "", "next_reason": "",
    }  # fmt: skip
    if intent == "available":
        changes.update(misses=0, idle_since=utc)
    if intent == "logged_out":
        changes.update(device="", logged_in=0.0, misses=0, delay_until=0.0)
    return _with(agent, **changes)


def to_idle(agent: AgentValue, utc: float, **changes: Any) -> AgentValue:
    """Leaves work: the pending intent takes effect now."""
    new = _with(
        agent, work="idle", work_since=utc, attempt=None, acw_deadline=0.0, recovering=None, **changes
    )
    if not new.next_intent:
        return new
    kept = new.idle_since
    new = _set_intent(new, new.next_intent, new.next_reason, new.by, utc)
    return _with(new, idle_since=kept) if agent.intent == "available" else new


# --- work -----------------------------------------------------------------------------


def in_delay(agent: AgentValue, utc: float) -> bool:
    """Whether an idle agent is left in peace: from when he left work, by the clock of the node where that
    was. If that is still to come here, one of the two clocks is wrong, and nobody knows by how long."""
    return agent.work_since - STEP_S <= utc < agent.delay_until


def _reserve(agent: AgentValue, facts: Facts, utc: float) -> AgentValue | Not:
    if agent.intent != "available":
        return Not(f"agent is {agent.intent}")
    if in_delay(agent, utc):
        return Not("agent is in a delay")
    attempt = AttemptOfAgent(
        attempt=facts.attempt, call=facts.call, queue=facts.queue, node=facts.node,
        since=utc, deadline=facts.deadline, entered=facts.entered,
    )  # fmt: skip
    return _with(agent, work="reserved", work_since=utc, attempt=attempt)


def _ring(agent: AgentValue, facts: Facts, utc: float) -> AgentValue:
    assert agent.attempt is not None
    attempt = msgspec.structs.replace(agent.attempt, deadline=facts.deadline)
    return _with(agent, work="ringing", work_since=utc, attempt=attempt)


def _answer(agent: AgentValue, facts: Facts, utc: float) -> AgentValue:
    assert agent.attempt is not None
    attempt = msgspec.structs.replace(agent.attempt, since=utc, deadline=0.0)
    return _with(agent, work="talking", work_since=utc, attempt=attempt, misses=0)


def _adopt(agent: AgentValue, facts: Facts, utc: float) -> AgentValue:
    """He *is* in the conversation: the state follows reality. One that was ended already goes on: what was
    booked for it is taken back."""
    was = agent.attempt
    if was is not None and agent.work == "acw" and was.attempt == facts.attempt:
        talked = agent.last_end - was.since if was.since else 0.0
        booked = {"handled": max(0, agent.handled - 1), "talk_s": max(0.0, agent.talk_s - max(0.0, talked))}
        return _with(agent, work="talking", work_since=utc, acw_deadline=0.0, **booked)
    attempt = AttemptOfAgent(
        attempt=facts.attempt, call=facts.call, queue=facts.queue, node=facts.node, since=utc,
        entered=facts.entered,
    )  # fmt: skip
    return _with(agent, work="talking", work_since=utc, attempt=attempt, acw_deadline=0.0, misses=0)


def _release(agent: AgentValue, facts: Facts, utc: float) -> AgentValue:
    """Nobody's fault: not a miss, and the agent keeps his place among the idle."""
    return to_idle(agent, utc, **_delayed(agent, facts, utc))


def _turned_down(agent: AgentValue, facts: Facts, utc: float) -> AgentValue:
    return to_idle(agent, utc, idle_since=utc, **_delayed(agent, facts, utc))


def _delayed(agent: AgentValue, facts: Facts, utc: float) -> dict[str, Any]:
    return {"delay_until": utc + facts.delay_s} if facts.delay_s > 0 else {}


def _missed(agent: AgentValue, facts: Facts, utc: float) -> AgentValue:
    misses = agent.misses + 1
    new = to_idle(
        agent, utc, misses=misses, missed=agent.missed + 1, idle_since=utc, **_delayed(agent, facts, utc)
    )
    if new.intent == "available" and facts.rona_max > 0 and misses >= facts.rona_max:
        new = _with(new, intent="not_ready", reason=REASON_RONA, intent_since=utc, by=BY_ACD)
    return new


def _void(agent: AgentValue, facts: Facts, utc: float) -> AgentValue | Not:
    """Busy with nothing: a value no version of this table writes."""
    return to_idle(agent, utc) if agent.attempt is None else Not("has an attempt")


def _hold(agent: AgentValue, facts: Facts, utc: float) -> AgentValue:
    return _with(agent, work="hold", work_since=utc)


def _unhold(agent: AgentValue, facts: Facts, utc: float) -> AgentValue:
    return _with(agent, work="talking", work_since=utc)


def _dial(agent: AgentValue, facts: Facts, utc: float) -> AgentValue:
    """He calls somebody himself: no queue gives him a caller meanwhile."""
    return _with(_adopt(agent, facts, utc), work="dialing", misses=agent.misses)


def _connect(agent: AgentValue, facts: Facts, utc: float) -> AgentValue:
    assert agent.attempt is not None
    attempt = msgspec.structs.replace(agent.attempt, since=utc)
    return _with(agent, work="talking", work_since=utc, attempt=attempt)


def _undial(agent: AgentValue, facts: Facts, utc: float) -> AgentValue:
    """Nobody answered him: nothing to wrap up."""
    return to_idle(agent, utc)


def _consult(agent: AgentValue, facts: Facts, utc: float) -> AgentValue:
    return _with(agent, work="consult", work_since=utc)


def _end(agent: AgentValue, facts: Facts, utc: float) -> AgentValue:
    assert agent.attempt is not None
    talked = max(0.0, utc - agent.attempt.since) if agent.attempt.since else 0.0
    booked = {"handled": agent.handled + 1, "talk_s": agent.talk_s + talked, "last_end": utc}
    if facts.wrapup_s > 0:
        deadline = utc + facts.wrapup_s
        return _with(agent, work="acw", work_since=utc, acw_deadline=deadline, recovering=None, **booked)
    return to_idle(agent, utc, idle_since=utc, **booked)


def _acw_done(agent: AgentValue, facts: Facts, utc: float) -> AgentValue | Not:
    if facts.deadline and agent.acw_deadline != facts.deadline:
        return Not("wrap-up was extended")
    return to_idle(agent, utc, idle_since=utc)


def _acw_extend(agent: AgentValue, facts: Facts, utc: float) -> AgentValue | Not:
    deadline = min(agent.acw_deadline + facts.extend_s, agent.work_since + facts.acw_max_s)
    if deadline <= agent.acw_deadline:
        return Not("wrap-up cannot be longer")
    return _with(agent, acw_deadline=deadline)


# --- intent ---------------------------------------------------------------------------


def _intend(agent: AgentValue, facts: Facts, utc: float) -> AgentValue | Not:
    """Available, not ready or logged out: at once when idle, else on leaving work."""
    if agent.intent == "logged_out":
        return Not("agent is not logged in", already=facts.intent == "logged_out")
    now = (agent.intent, agent.reason)
    pending = (agent.next_intent, agent.next_reason)
    wanted = (facts.intent, facts.reason)
    if agent.work == "idle":
        if now == wanted:
            return Not(f"agent is {facts.intent}", already=True)
        return _set_intent(agent, facts.intent, facts.reason, facts.by, utc)
    if now == wanted:
        if not agent.next_intent:
            return Not(f"agent is {facts.intent}", already=True)
        return _with(agent, next_intent="", next_reason="", by=facts.by)
    if pending == wanted:
        return Not(f"{facts.intent} is pending", already=True)
    return _with(agent, next_intent=facts.intent, next_reason=facts.reason, by=facts.by)


def _login(agent: AgentValue, facts: Facts, utc: float) -> AgentValue | Not:
    if not facts.device:
        return Not("no device to log in at")
    if agent.intent == "logged_out":
        new = _set_intent(agent, facts.intent, facts.reason, facts.by, utc)
        return _with(new, device=facts.device, logged_in=utc)
    if agent.device == facts.device:
        if agent.next_intent == "logged_out":
            return _with(agent, next_intent="", next_reason="", by=facts.by)
        return Not("agent is logged in here", already=True)
    if not facts.take_over:
        return Not(f"agent is logged in at {agent.device}")
    if agent.work != "idle":
        return Not(f"agent is busy at {agent.device}")
    return _with(agent, device=facts.device, logged_in=utc, by=facts.by)


def _device_lost(agent: AgentValue, facts: Facts, utc: float) -> AgentValue | Not:
    if agent.intent != "available":
        return Not(f"agent is {agent.intent}")
    return _with(agent, intent="not_ready", reason=REASON_DEVICE, intent_since=utc, by=BY_ACD)


def _device_back(agent: AgentValue, facts: Facts, utc: float) -> AgentValue | Not:
    if (agent.intent, agent.reason, agent.by) != ("not_ready", REASON_DEVICE, BY_ACD):
        return Not("not ready for another reason")
    return _with(agent, intent="available", reason="", intent_since=utc, by=BY_ACD)


def _device_taken(agent: AgentValue, facts: Facts, utc: float) -> AgentValue | Not:
    """Two agents on one phone, found afterwards: the later one is logged out."""
    if agent.device != facts.device:
        return Not("agent uses another device", already=True)
    return _set_intent(agent, "logged_out", "", BY_ACD, utc)


# --- the table ------------------------------------------------------------------------

_IDLE = frozenset({"idle"})
_ANY = BUSY | _IDLE | {"acw"}

RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("reserve", _IDLE, "reserved", _reserve),
        Rule("ring", frozenset({"reserved"}), "ringing", _ring, "attempt"),
        Rule("answer", TRYING, "talking", _answer, "attempt"),
        Rule("adopt", _IDLE | {"acw"} | TRYING, "talking", _adopt),
        Rule("release", TRYING, "idle", _release, "attempt"),
        Rule("excused", TRYING, "idle", _turned_down, "attempt"),
        Rule("no-answer", TRYING, "idle", _missed, "attempt"),
        Rule("reject", TRYING, "idle", _turned_down, "attempt"),
        Rule("busy", TRYING, "idle", _turned_down, "attempt"),
        Rule("unreachable", TRYING, "idle", _release, "attempt"),
        Rule("hold", frozenset({"talking"}), "hold", _hold, "call"),
        Rule("unhold", frozenset({"hold"}), "talking", _unhold, "call"),
        Rule("dial", _IDLE | {"acw"}, "dialing", _dial),
        Rule("connect", frozenset({"dialing"}), "talking", _connect, "call"),
        Rule("join", _IDLE | {"acw"}, "talking", _adopt),
        Rule("consult", frozenset({"talking", "hold"}), "consult", _consult, "call"),
        Rule("consult-end", frozenset({"consult"}), "talking", _unhold, "call"),
        Rule("undial", frozenset({"dialing"}), "idle", _undial, "call"),
        Rule("end", IN_CALL - {"dialing"}, "acw", _end, "call"),
        Rule("void", BUSY, "idle", _void),
        Rule("acw-done", frozenset({"acw"}), "idle", _acw_done),
        Rule("acw-extend", frozenset({"acw"}), "acw", _acw_extend),
        Rule("intend", _ANY, "", _intend),
        Rule("login", _ANY, "", _login),
        Rule("device-lost", _IDLE, "", _device_lost),
        Rule("device-back", _IDLE, "", _device_back),
        Rule("device-taken", _IDLE, "", _device_taken),
    )
}
"""Every transition there is. An empty ``to`` leaves work as it is."""

_ALREADY: dict[str, frozenset[str]] = {
    "reserve": BUSY,
    "ring": frozenset({"ringing"}) | IN_CALL,
    "answer": IN_CALL,
    "adopt": IN_CALL,
    "dial": IN_CALL,
    "connect": frozenset({"talking", "hold", "consult"}),
    "join": IN_CALL,
    "consult": frozenset({"consult"}),
    "consult-end": frozenset({"talking", "hold"}),
    "hold": frozenset({"hold", "consult"}),
    "unhold": frozenset({"talking", "consult"}),
}
"""Work in which the rule has already had its effect, for the same attempt or call."""

_GONE_IS_DONE = frozenset(
    {"release", "excused", "no-answer", "reject", "busy", "unreachable", "undial", "end"}
)
"""Rules that end an attempt or a call: when it is not the agent's any more, it was done."""


def _is_own(rule: Rule, agent: AgentValue, facts: Facts) -> bool:
    if agent.attempt is None:
        return False
    if facts.attempt and rule.own != "call":
        return agent.attempt.attempt == facts.attempt
    return agent.attempt.call == facts.call


def advance(agent: AgentValue, name: str, facts: Facts, utc: float) -> AgentValue | Not:
    """``agent`` after transition ``name`` with ``seq`` counted on, or why not. Asking
    again after it happened answers Not(already): every transition is idempotent by
    its attempt or call."""
    rule = RULES[name]
    own = _is_own(rule, agent, facts)
    if own and agent.work in _ALREADY.get(name, ()):
        return Not(f"already {agent.work}", already=True)
    if rule.own and not own:
        return Not("attempt is not the agent's", already=name in _GONE_IS_DONE)
    if agent.work not in rule.works:
        return Not(f"agent is {agent.work}", already=name in _GONE_IS_DONE or name.startswith("acw-"))
    new = rule.apply(agent, facts, utc)
    return new if isinstance(new, Not) else _with(new, seq=agent.seq + 1)


def ending_rule(agent: AgentValue) -> str:
    """How the agent's part in a call ends, by what he does in it."""
    if agent.work in TRYING:
        return "release"
    return "undial" if agent.work == "dialing" else "end"


def recover(agent: AgentValue, call: str, since: float, from_node: str) -> AgentValue | Not:
    """Sets the overlay while ``call`` is being rebuilt. The only thing failover changes."""
    if agent.attempt is None or agent.attempt.call != call or agent.work not in BUSY:
        return Not("not in this call", already=True)
    if agent.recovering is not None:
        return Not("already recovering", already=True)
    return _with(agent, recovering={"since": since, "from": from_node})


def recovered(agent: AgentValue) -> AgentValue | Not:
    """Takes the overlay away."""
    if agent.recovering is None:
        return Not("not recovering", already=True)
    return _with(agent, recovering=None)


def diagram() -> str:
    """The table as a Mermaid state diagram of ``work``."""
    lines = ["stateDiagram-v2", "    [*] --> idle"]
    for rule in RULES.values():
        if rule.to:
            lines += [f"    {work} --> {rule.to}: {rule.name}" for work in sorted(rule.works)]
    return "\n".join(lines) + "\n"
