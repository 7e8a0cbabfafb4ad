"""A record that is older than what the edge knows. Who was here last could not write, or what was written is
not read yet: the edge's facts about legs tell what has been decided since."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from ari_ha.core.ids import is_supervisor
from ari_ha.machines.node_model import AGENT_LEG, DIALING, ENDED, LOST, QUEUED, RINGING, TALKING, UP
from ari_ha.machines.node_outbound import PARTY
from ari_ha.machines.node_parts import Parts
from ari_ha.machines.node_transfer import ASKED, OVER
from ari_ha.wire.keyspace import AttemptValue, LegValue, RecordValue
from ari_ha.wire.link import Rung

ANSWERED = "answered"
OPEN_STATES = ("intent", RINGING, ANSWERED, LOST)
"""States of an attempt that is not over."""


def brought_up_to_date(
    parts: Parts, record: RecordValue, facts: Mapping[str, str], ended: Mapping[str, str]
) -> RecordValue:
    """The record, with what must have been decided since. ``facts``: the legs that live, and how (ringing,
    up, held); ``ended``: those that are over, in their order, and who ended them."""
    return _with_the_line_left(_with_target(parts, record, facts, ended), facts, ended)


def with_rung(
    record: RecordValue, rung: Mapping[str, Rung], facts: Mapping[str, str], utc: float
) -> RecordValue:
    """A queue had agents rung by attempts of which the record knows nothing, or not by which leg."""
    attempts, legs = dict(record.attempts), dict(record.legs)
    for leg, one in [(leg, one) for leg, one in rung.items() if leg in facts]:
        known = attempts.get(one.attempt)
        if known is None:
            known = AttemptValue(
                attempt=one.attempt, agent=one.agent, device=one.device, leg=leg, started=utc,
                state=RINGING if facts[leg] == RINGING else ANSWERED,
            )  # fmt: skip
        elif known.state == ENDED or known.leg in facts:
            continue
        attempts[one.attempt] = replace(known, leg=leg)
        legs.pop(leg, None)  # of that name the record knows a leg that was never rung
        if not record.queue:
            record = replace(record, queue=one.queue, entered=utc)
    return replace(record, attempts=attempts, legs=legs)


def handed_on(
    record: RecordValue, rung: Mapping[str, Rung], facts: Mapping[str, str], head: str,
    sides: Mapping[str, str], utc: float,
) -> RecordValue:  # fmt: skip
    """A queue had a phone rung by an attempt that the record does not know, and nobody else is there for
    whoever leads the call: who talked to him, or was called for him, handed him on into that queue. He is a
    caller there, an agent too."""
    news = {leg: one for leg, one in rung.items() if leg in facts and one.attempt not in record.attempts}
    up = [leg for leg, fact in facts.items() if fact != RINGING and not is_supervisor(leg)]
    up = [leg for leg in up if leg not in (head, *news)]
    if not news or record.stage not in (TALKING, DIALING) or any(not sides.get(leg) for leg in up):
        return record
    attempts, legs, t = dict(record.attempts), dict(record.legs), record.transfer
    for value in [a for a in record.attempts.values() if a.state in OPEN_STATES and a.leg not in facts]:
        attempts[value.attempt] = replace(value, state=ENDED)
    first = legs[head].of if head in legs else ""
    for name in {head, first} & set(legs):  # of his first line too, which may be over
        legs[name] = replace(legs[name], agent="")
    stage = QUEUED if all(facts[leg] == RINGING for leg in news) else TALKING
    queue = [one.queue for one in news.values()][-1] or record.queue
    return replace(
        record, stage=stage, queue=queue, entered=utc, attempts=attempts, legs=legs,
        transfer=replace(t, state=OVER, left=True) if t is not None else None,
    )  # fmt: skip


def _with_target(
    parts: Parts, record: RecordValue, facts: Mapping[str, str], ended: Mapping[str, str]
) -> RecordValue:
    """The record is as old as somebody's wish to transfer, and he is gone. Whoever was dialled since, and
    is over, was the target: it is not dialled again."""
    t = record.transfer
    open_yet = t is not None and t.state == ASKED and not (t.party or t.other)
    if t is None or not open_yet or t.leg in facts or parts.queue_of_number(t.number):
        return record
    dialled = [name for name in ended if name[0] == AGENT_LEG and name not in record.legs]
    if not dialled:
        return record
    name, talked = dialled[-1], ended[dialled[-1]] == "phone"
    state, target = UP if talked else RINGING, parts.dial_target(t.number)
    legs = {**record.legs, name: LegValue(leg=name, role=PARTY, state=state, target=target)}
    return replace(record, legs=legs, transfer=replace(t, party=name, state=OVER if talked else ASKED))


def _with_the_line_left(
    record: RecordValue, facts: Mapping[str, str], ended: Mapping[str, str]
) -> RecordValue:
    """Three were brought together, and of the two lines of whoever did that one was to be ended, the record
    says. The edge has that one, and the other was ended by the app: the next node, which had not read of the
    conference, ended the consultation, and was lost too. He is on the line that is left."""
    for name in [name for name in record.ending if name in facts and name in record.legs]:
        here = record.legs[name]
        lines = [leg for leg in record.legs.values() if name == leg.of or leg.leg == here.of]
        over = [leg for leg in lines if leg.leg not in record.ending and ended.get(leg.leg) == "app"]
        if not over:
            continue
        other = over[0]
        legs = {
            **record.legs,
            name: replace(here, state=facts[name], agent=other.agent, ended_by=""),
            other.leg: replace(other, state=ENDED, agent="", ended_by="app"),
        }
        attempts = {
            key: replace(value, leg=name) if value.leg == other.leg else value
            for key, value in record.attempts.items()
        }
        ending = {leg: cause for leg, cause in record.ending.items() if leg != name}
        head = name if record.head == other.leg else record.head
        record = replace(record, legs=legs, attempts=attempts, ending=ending, head=head)
    return record
