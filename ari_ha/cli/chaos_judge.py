"""Chaos, the judging: from what the far ends and the edge said to the figures of a run. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

TRANSFER, CONSULT, CONFERENCE, RINGING_OUT = "transfer", "consult", "conference", "ringing-out"
EARLY_MEDIA = "early-media"
SUPERVISED = {"supervised": "listen", "whispered": "whisper", "barged": "barge"}
"""States with a supervisor, and his mode."""
MIXED = "mixed"
"""Calls in several of the other states at once"""
STATES = (
    "ringing", "queued", "talking", "through", "held", "ivr", TRANSFER, CONSULT, CONFERENCE, RINGING_OUT,
    EARLY_MEDIA, *SUPERVISED, MIXED,
)  # fmt: skip
RINGING_STATES = ("ringing", TRANSFER)
"""States in which the caller hears music and somebody's phone rings for him."""
UNANSWERED_STATES = (RINGING_OUT, EARLY_MEDIA)
"""States in which the number an agent has dialled has not answered yet."""
SERVED = "served"
"""Stands for a leg where nobody can type yet: the call has a node that serves it."""
VOICE_STATES = ("talking", "through", "supervised")
"""States in which both people hear each other."""
MIXED_STATES = ("conference", "barged")
"""States in which the customer hears a mix of voices, which Asterisk makes."""
ALONE_STATES = ("queued", "ivr")
"""States in which no agent is there yet."""
PRIMARY = "c"
SUPERVISOR = "s1"
HEARD_AGAIN_MIN_SHARE = 0.8
"""Share of a window's packets that must arrive before a voice counts as heard again."""
SPOKEN_MIN_SHARE = 0.4
"""A far end that gets no processor sends fewer packets than it should: they are not missed by the one who
listens. With fewer than this nothing can be said."""
PACKETS_PER_S = 50

MIXED_MIN_SHARE = 0.5
"""Share of a mix's packets in which more than one voice is."""

Measured = Mapping[str, Any]
"""One call's row of the far ends' ``/measure``."""


@dataclass(slots=True)
class Pair:
    """One call of a run: its customer, its agent, and its name inside."""

    customer: str
    """The customer's call at the far ends."""
    caller: str
    state: str = "talking"
    """One of `STATES`: what the call was brought to."""
    call: str = ""
    agent: str = ""
    agent_call: str = ""
    """The agent's call at the far ends; empty while queued."""
    agent_leg: str = ""
    """The agent's leg at the edge."""
    node: str = ""
    epoch: str = ""
    queue: str = "support"
    side: tuple[str, str] = ("", "")
    """In a consultation or conference: the agent's second call and the third person's."""
    supervisor_call: str = ""
    """The supervisor's call at the far ends."""

    @property
    def legs(self) -> list[str]:
        """Legs of which a node must hear a digit."""
        if self.state in UNANSWERED_STATES:
            return [SERVED]
        if self.state in SUPERVISED:
            return [PRIMARY, self.agent_leg, SUPERVISOR]
        return [PRIMARY, self.agent_leg] if self.state in VOICE_STATES else [PRIMARY]

    @property
    def ears(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Who hears what Asterisk mixes: direction -> his call, and the calls of which he should hear any."""
        customer, agent, supervisor = self.customer, self.agent_call, self.supervisor_call
        found: dict[str, tuple[str, tuple[str, ...]]] = {}
        if self.state == CONFERENCE:
            found["to_third"] = self.side[1], (customer, agent)
            found["to_customer"], found["to_agent"] = (customer, self.side), (agent, (customer, self.side[1]))
        if self.state in SUPERVISED:
            found["to_supervisor"] = supervisor, (customer, agent)
        if self.state in ("whispered", "barged"):
            found["to_agent"] = agent, (customer, supervisor)
        if self.state == "barged":
            found["to_customer"] = customer, (agent, supervisor)
        return found


@dataclass(slots=True)
class Verdict:
    """What became of one call."""

    pair: Pair
    lost_ms: dict[str, float | None] = field(default_factory=lambda: {"to_customer": None, "to_agent": None})
    """Per direction, those of a third person or a supervisor beside these two; None: not measured."""
    gap_ms: dict[str, float | None] = field(default_factory=lambda: {"to_customer": None, "to_agent": None})
    same_agent: bool | None = None
    carrier_messages: int | None = None
    phone_messages: int | None = None
    answered_ms: float | None = None
    """What somebody asked for inside the gap was answered after this long."""
    resumed_ms: float | None = None
    against: list[str] = field(default_factory=list)
    """Why it did not survive; empty: it did."""

    def to_dict(self) -> dict[str, Any]:
        """The call as the report has it."""
        return {
            "call": self.pair.call or self.pair.customer,
            "survived": not self.against,
            "same_agent": self.same_agent,
            "lost_audio_ms": {name: _rounded(value, 0) for name, value in self.lost_ms.items()},
            "longest_gap_ms": {name: _rounded(value, 1) for name, value in self.gap_ms.items()},
            "carrier_messages": self.carrier_messages,
            "phone_messages": self.phone_messages,
            "answered_ms": _rounded(self.answered_ms, 0),
            "resumed_ms": None if self.resumed_ms is None else round(self.resumed_ms),
            "why": "; ".join(self.against),
        }


def _rounded(value: float | None, digits: int) -> float | None:
    if value is None:
        return None
    return round(value, digits) if digits else round(value)


def worse(directions: Mapping[str, float | None]) -> list[float]:
    """The worse direction's figure, as a list that is empty when neither was measured."""
    known = [value for value in directions.values() if value is not None]
    return [max(known)] if known else []


def worst(calls: Iterable[Mapping[str, Any]], name: str) -> list[float]:
    """Each call's worse direction in ``lost_audio_ms`` or ``longest_gap_ms``, where measured."""
    return [value for call in calls for value in worse(call[name])]


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile; 0 of nothing."""
    if not values:
        return 0
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def spread(values: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and max; empty where nothing was measured."""
    if not values:
        return {}
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {name: round(percentile(values, share)) for name, share in shares.items()}


def hearing(row: Measured | None, source_call: str) -> Mapping[str, Any] | None:
    """What a call heard of another call."""
    if row is None:
        return None
    return next((heard for heard in row["hears"] if heard["call"] == source_call), None)


def lost_and_gap(row: Measured | None, source_call: str, window_s: float) -> tuple[float, float]:
    """Lost audio and longest gap of one direction; all of the window when nothing of it was heard."""
    heard = hearing(row, source_call)
    if heard is None:
        return window_s * 1000, window_s * 1000
    return heard["lost_ms"], heard["longest_gap_ms"]


def music_lost_and_gap(row: Measured | None, window_s: float) -> tuple[float, float]:
    """The same for music, whose packets carry no numbers: time without it."""
    if row is None or not row["other_audio"]:
        return window_s * 1000, window_s * 1000
    return row["other_silent_ms"], row["other_longest_gap_ms"]


def voices_lost_and_gap(row: Measured | None, window_s: float) -> tuple[float, float]:
    """The same for voices that Asterisk mixes: time without any of them."""
    if row is None or row["any_voice"] is None:
        return window_s * 1000, window_s * 1000
    return row["any_voice"]["silent_ms"], row["any_voice"]["longest_gap_ms"]


def hears_now(row: Measured | None, source_call: str, window_s: float) -> bool:
    """Whether nearly all of a voice that was sent arrived in a (short, last) window."""
    heard = hearing(row, source_call)
    if heard is None:
        return False
    return heard["received"] >= _spoken(heard.get("sent"), window_s) * HEARD_AGAIN_MIN_SHARE


def _spoken(sent: int | None, window_s: float) -> float:
    """Packets of a voice that may be missed in a window."""
    due = window_s * PACKETS_PER_S
    return due if sent is None else min(due, max(sent, due * SPOKEN_MIN_SHARE))


def music_now(row: Measured | None, window_s: float) -> bool:
    """Whether music came for most of a window."""
    if row is None:
        return False
    packets = sum(span["packets"] for span in row["other_audio"])
    return packets >= window_s * PACKETS_PER_S * HEARD_AGAIN_MIN_SHARE


def mixed_now(row: Measured | None, speakers: Iterable[Measured | None], window_s: float) -> bool:
    """Whether voices came for most of a window, and for half of what came more than one at a time: where
    the packets of one are late, Asterisk passes the other on as it was sent."""
    if row is None:
        return False
    mixed = sum(span["packets"] for span in row["other_audio"])
    packets = mixed + sum(heard["received"] for heard in row["hears"])
    sent = [one["sent"] for one in speakers if one is not None and one.get("sent") is not None]
    spoken = _spoken(max(sent, default=None), window_s)
    return packets >= spoken * HEARD_AGAIN_MIN_SHARE and mixed >= packets * MIXED_MIN_SHARE


def strangers(row: Measured | None, expected: str) -> list[str]:
    """Voices heard that are not the other side's: cross-talk."""
    if row is None:
        return []
    return [heard["call"] for heard in row["hears"] if heard["call"] != expected and heard["received"] > 1]


def judge_audio(
    verdict: Verdict, rows: Mapping[str, Measured], window_s: float, last: Mapping[str, Measured]
) -> None:
    """Fills in what was lost in the window, and whether the right people hear each other at its end."""
    pair = verdict.pair
    state = pair.state
    customer, agent = rows.get(pair.customer), rows.get(pair.agent_call)
    if state in VOICE_STATES:
        for name, row, source in (
            ("to_customer", customer, pair.agent_call),
            ("to_agent", agent, pair.customer),
        ):
            verdict.lost_ms[name], verdict.gap_ms[name] = lost_and_gap(row, source, window_s)
    elif state == "whispered":
        verdict.lost_ms["to_customer"], verdict.gap_ms["to_customer"] = lost_and_gap(
            customer, pair.agent_call, window_s
        )
    elif state == EARLY_MEDIA:
        verdict.lost_ms["to_agent"], verdict.gap_ms["to_agent"] = lost_and_gap(agent, pair.customer, window_s)
    elif state not in (RINGING_OUT, *MIXED_STATES):
        verdict.lost_ms["to_agent"] = verdict.gap_ms["to_agent"] = 0
        verdict.lost_ms["to_customer"], verdict.gap_ms["to_customer"] = music_lost_and_gap(customer, window_s)
    for name, (ear, _) in pair.ears.items():
        verdict.lost_ms[name], verdict.gap_ms[name] = voices_lost_and_gap(rows.get(ear), window_s)
    judge_strangers(verdict, rows)
    judge_hearing(verdict, last, 1.0)


def judge_strangers(verdict: Verdict, rows: Mapping[str, Measured]) -> None:
    """Customer and agent hear nobody who does not speak to them."""
    pair = verdict.pair
    customer, agent = rows.get(pair.customer), rows.get(pair.agent_call)
    both = ("to_customer", customer, pair.agent_call), ("to_agent", agent, pair.customer)
    for name, row, expected in both:
        _, voices = pair.ears.get(name, ("", ()))
        friends = {*pair.side, *voices}
        for stranger in [s for s in strangers(row, expected) if s not in friends or not s]:
            verdict.against.append(f"heard {stranger or 'an unknown voice'}")


def judge_hearing(verdict: Verdict, last: Mapping[str, Measured], window_s: float) -> None:
    """Everybody hears at the end what the state says, and nothing else."""
    pair, state = verdict.pair, verdict.pair.state
    customer, agent = last.get(pair.customer), last.get(pair.agent_call)
    if state in VOICE_STATES:
        judge_talking(verdict, last, window_s)
    elif state == "whispered":
        if not hears_now(customer, pair.agent_call, window_s):
            verdict.against.append("the customer does not hear the agent")
        if music_now(customer, window_s):
            verdict.against.append("the customer hears the supervisor")
        if not mixed_now(agent, [customer], window_s):
            verdict.against.append("the agent does not hear Asterisk")
    elif state in MIXED_STATES:
        if not mixed_now(customer, [agent], window_s):
            verdict.against.append("the customer does not hear the others")
    elif state == EARLY_MEDIA and not hears_now(last.get(pair.agent_call), pair.customer, window_s):
        verdict.against.append("the agent does not hear the early media")
    elif state not in UNANSWERED_STATES and not music_now(customer, window_s):
        verdict.against.append("the customer hears no music")
    if state in SUPERVISED and not mixed_now(last.get(pair.supervisor_call), [customer, agent], window_s):
        verdict.against.append("the supervisor hears nobody")


def judge_talking(verdict: Verdict, last: Mapping[str, Measured], window_s: float) -> None:
    """Both hear each other at the end."""
    pair = verdict.pair
    if not hears_now(last.get(pair.customer), pair.agent_call, window_s):
        verdict.against.append("the customer does not hear the agent")
    if not hears_now(last.get(pair.agent_call), pair.customer, window_s):
        verdict.against.append("the agent does not hear the customer")


def judge_dialogs(verdict: Verdict, calls: Mapping[str, Measured]) -> None:
    """Neither side's dialog has ended."""
    pair = verdict.pair
    state = pair.state
    wanted = {pair.customer: "up"}
    if pair.agent_call:
        wanted[pair.agent_call] = "ringing" if state in (*RINGING_STATES, *UNANSWERED_STATES) else "up"
    if state in UNANSWERED_STATES:
        wanted[pair.customer] = "ringing"
    for third in [ident for ident in (*pair.side, pair.supervisor_call) if ident]:
        wanted[third] = "up"
    if state == "ringing":
        wanted[pair.customer] = ""
    for ident, expected in wanted.items():
        call = calls.get(ident)
        if call is None or call["state"] == "ended":
            cause = f"{call['ended_by']} {call['status']} {call['cause']}" if call else "unknown"
            verdict.against.append(f"{ident} ended: {cause.strip()}")
        elif expected and call["state"] != expected:
            verdict.against.append(f"{ident} is {call['state']}")
        if call is not None and call["leaked_headers"]:
            verdict.against.append(f"{ident} saw {', '.join(call['leaked_headers'])}")


def first_digit_ms(
    digits: Iterable[Mapping[str, Any]], leg: str, struck_at: float, old_epoch: str
) -> float | None:
    """Milliseconds from the fault to the first digit of ``leg`` a node heard afterwards; with ``old_epoch``
    only one heard under a later decision about who serves the call counts."""
    for digit in digits:
        if digit["leg"] == leg and digit["at_utc"] > struck_at and digit["epoch"] != old_epoch:
            return (digit["at_utc"] - struck_at) * 1000
    return None


def as_served(pairs: Iterable[Pair], waiting: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Pair]:
    """The callers as their queues will serve them; ``waiting``: queue -> its entries in order. Who has no
    place comes last.

    Not the order in which they were placed: calls some 10 ms apart may overtake each other on their way to
    the app, on a busy machine (load 20) some 200 ms apart. It is the queue's own order, as it was before the
    fault, that must survive."""
    place = {entry["call"]: number for entries in waiting.values() for number, entry in enumerate(entries)}
    return sorted(pairs, key=lambda pair: place.get(pair.call, len(place)))


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All runs in a few figures; a call's lost audio is that of its worse direction."""
    calls = [call for run in runs for call in run["calls"]]
    lost = worst(calls, "lost_audio_ms")
    resumed = [call["resumed_ms"] for call in calls if call["resumed_ms"] is not None]
    return {
        "calls": len(calls),
        "survived": sum(call["survived"] for call in calls),
        "same_agent": sum(call["same_agent"] is True for call in calls),
        "lost_audio_ms": spread(lost),
        "resumed_ms": spread(resumed),
        "answered_ms": spread([c["answered_ms"] for c in calls if c.get("answered_ms") is not None]),
        "baseline_lost_ms": max(
            (run["baseline"]["lost_ms_max"] for run in runs if run["baseline"]), default=0
        ),
    }


def messages_of(calls: Sequence[Mapping[str, Any]]) -> str:
    """SIP messages to carrier and phones; a dash where they were not counted."""
    if any(call["carrier_messages"] is None for call in calls):
        return "–"
    return f"{sum(c['carrier_messages'] for c in calls)} / {sum(c['phone_messages'] for c in calls)}"


def passed(runs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether every call survived and nothing was left behind."""
    return bool(runs) and all(
        run["calls"] and all(call["survived"] for call in run["calls"]) and not any(run["after"].values())
        for run in runs
    )
