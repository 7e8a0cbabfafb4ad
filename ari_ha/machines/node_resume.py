"""Taking up a call that is already going on: after a takeover, or after a restart
of the app. Channels are collected, the record is found, and the call is rebuilt
from the record and the edge's facts; where they differ the facts are true."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from ari_ha.core.ids import PRIMARY_LEG, Epoch, is_supervisor
from ari_ha.core.machine import Done, Outcome
from ari_ha.machines.acd_agents import IN_CALL, TRYING
from ari_ha.machines.node_call import NodeCall
from ari_ha.machines.node_call_base import CONTINUE, CallFacts
from ari_ha.machines.node_context import NodeContext
from ari_ha.machines.node_model import (
    DIALING,
    DIALPLAN,
    ENDED,
    FEATURE,
    HITLESS,
    IVR,
    LOST,
    NORMAL,
    QUEUED,
    RINGING,
    TALKING,
    THROUGH,
    UP,
    Attempt,
    Channel,
    Leg,
)
from ari_ha.machines.node_old_record import ANSWERED, OPEN_STATES, brought_up_to_date, handed_on, with_rung
from ari_ha.machines.node_outbound import stage_after
from ari_ha.machines.node_parts import Parts
from ari_ha.machines.node_records import Records
from ari_ha.machines.node_transfer import CUSTOMER
from ari_ha.wire.keyspace import LegValue, RecordValue
from ari_ha.wire.link import Asked, Rung
from ari_ha.wire.token import LegToken

HELD = "held"
TAKEOVER, ADOPTION = "takeover", "adoption"
MIRROR_BEHIND_S = 3.0
"""After the store was away its watch may be behind for so long."""


@dataclass(slots=True)
class Arriving:
    """A call being taken up."""

    call: str
    epoch: Epoch
    kind: str
    facts: dict[str, str]
    """leg -> ringing, up, held: legs that live, as the edge says (or, in an adoption
    before the edge has spoken, as the channels look)"""
    ended: dict[str, str]
    since: float
    trunk: str = ""
    """Of a takeover: the carrier the call came from; empty: a phone of ours makes it."""
    pair: str = ""
    """The pair whose call it is, where a token or the list of its edge has said so"""
    head: str = ""
    sides: dict[str, str] = field(default_factory=dict)
    lines: dict[str, str] = field(default_factory=dict)
    targets: dict[str, str] = field(default_factory=dict)
    rung: dict[str, Rung] = field(default_factory=dict)
    """The edge's word on legs the record does not know"""
    turned_down: str = ""
    """The last attempt that a phone ended: the record may not know it"""
    asking: list[str] | None = None
    """Legs whose phones wait for a transfer; None: their edge has not said"""
    caller: str = ""
    did: str = ""
    verb: tuple[str, ...] = ()
    context: str = ""
    channels: dict[str, Channel] = field(default_factory=dict)
    record: RecordValue | None = None
    record_known: bool = False
    agents_known: bool = False
    """Agents and queues have been read from the store, or nobody waits for that any more"""
    edge_known: bool = False
    unknown_to: list[str] = field(default_factory=list)
    """Edges that have said that they know no such call"""
    retired: list[str] = field(default_factory=list)
    snoops: int = 0
    """How many were made for its supervisors by this app's former life"""
    asked: list[Asked] = field(default_factory=list)
    """What phones asked for that its edge has told us meanwhile; it is not said again"""


class Resumes:
    """Calls being taken up, by id. ``done`` gets each with its rebuilt call;
    ``refused`` each that cannot be: (arriving, leg missing)."""

    def __init__(
        self,
        context: NodeContext,
        records: Records,
        done: Callable[[Arriving], None],
        refused: Callable[[Arriving, str], None],
        agents_seen: Callable[[], bool],
    ) -> None:
        self._context = context
        self._records = records
        self._done = done
        self._refused = refused
        self._agents_seen = agents_seen
        self.by_call: dict[str, Arriving] = {}

    def takeover(self, token: LegToken, epoch: Epoch, channel: Channel) -> Arriving:
        """A leg of a moved call has come; true when the epoch is the newest seen."""
        arriving = self.by_call.get(token.call)
        if arriving is None or arriving.epoch < epoch:
            retired = list(arriving.retired) if arriving else []
            if arriving is not None:
                retired += [c.id for c in arriving.channels.values()]
            arriving = Arriving(
                token.call, epoch, TAKEOVER, dict(token.facts), dict(token.ended), self._context.now,
                caller=token.caller, did=token.did, edge_known=True, retired=retired,
                head=token.head, sides=dict(token.sides), lines=dict(token.lines),
                targets=dict(token.targets), rung=dict(token.rung), trunk=token.trunk,
                turned_down=token.turned_down, asking=token.asking, pair=token.pair,
            )  # fmt: skip
            self._begin(arriving, self._context.timings.resume_limit_s)
        arriving.channels[token.leg] = channel
        arriving.facts.setdefault(token.leg, UP)
        return arriving

    def adopt(self, call: str, epoch: Epoch) -> Arriving:
        """A call found in Asterisk after a restart of the app."""
        arriving = self.by_call.get(call)
        if arriving is None or arriving.epoch < epoch:
            retired = [*arriving.retired, *(c.id for c in arriving.channels.values())] if arriving else []
            arriving = Arriving(call, epoch, ADOPTION, {}, {}, self._context.now, retired=retired)
            self._begin(arriving, self._context.timings.adopt_limit_s)
        return arriving

    def _begin(self, arriving: Arriving, limit_s: float) -> None:
        self.by_call[arriving.call] = arriving
        self._context.after(f"resume/{arriving.call}", limit_s, lambda: self._limit(arriving))
        self._find_record(arriving)

    def _find_record(self, arriving: Arriving) -> None:
        """Mirror first; a linearizable read when it is not there, does not know a leg that lives, or has the
        caller in an IVR, of which a step may be done that the mirror does not know, and while the mirror
        may not have caught up with the store; not for long. An app that has just started waits until it
        knows whether there is a store, and until it has read its agents: without them a phone that rings
        would be taken for nobody's. One that has never read anything cannot say, with the store away, that
        there is no record: the store may be back at once."""
        context, records = self._context, self._records
        limit_s = context.timings.record_limit_s
        record = records.latest(arriving.call)
        caught_up = context.now - context.store_since > MIRROR_BEHIND_S
        fresh = record is not None and record.stage != IVR and caught_up
        fresh = fresh and all(leg in record.legs for leg in arriving.facts if leg != PRIMARY_LEG)
        away = context.store_heard and not context.store_ok and (records.seen or record is not None)
        arriving.agents_known = self._agents_seen() or (away and arriving.kind == TAKEOVER)
        if arriving.kind == ADOPTION:
            arriving.record, arriving.record_known = record, record is not None or records.seen
        elif fresh or away:
            arriving.record, arriving.record_known = record, True
        elif context.store_ok:
            key = context.keys.record(arriving.call)
            context.read(f"resume/{arriving.call}", key, lambda o: self._read(arriving, o), limit_s)
        if arriving.kind == TAKEOVER and not (arriving.record_known and arriving.agents_known):
            context.after(f"resume-record/{arriving.call}", limit_s, lambda: self._no_record(arriving))

    def _read(self, arriving: Arriving, outcome: Outcome) -> None:
        if arriving.record_known:
            return
        if isinstance(outcome, Done):
            for kv in outcome.value:
                if kv.key == self._context.keys.record(arriving.call):
                    self._records.learn(arriving.call, kv)
        arriving.record = self._records.latest(arriving.call)
        arriving.record_known = True
        self.look(arriving)

    def _no_record(self, arriving: Arriving) -> None:
        if not arriving.record_known:
            arriving.record = self._records.latest(arriving.call)
            arriving.record_known = True
        arriving.agents_known = True
        self.look(arriving)

    def agents_came(self) -> None:
        """Agents and queues may be there now."""
        if self.by_call and self._agents_seen():
            for arriving in list(self.by_call.values()):
                arriving.agents_known = True
                self.look(arriving)

    def store_heard(self) -> None:
        """It is known now whether the store is reachable."""
        for arriving in [a for a in self.by_call.values() if a.kind == TAKEOVER and not a.record_known]:
            self._find_record(arriving)
            self.look(arriving)

    def record_came(self, call: str) -> None:
        """The mirror has (or is known not to have) the record now."""
        arriving = self.by_call.get(call)
        if arriving is not None and not arriving.record_known:
            arriving.record, arriving.record_known = self._records.latest(call), True
            self.look(arriving)

    def records_seen(self) -> None:
        """The whole mirror is there."""
        for call in list(self.by_call):
            self.record_came(call)

    def look(self, arriving: Arriving) -> None:
        """Goes on when all is there."""
        known = arriving.record_known and arriving.agents_known
        known = known and (arriving.edge_known or self.is_over(arriving))
        known = known and all(leg in arriving.channels for leg in arriving.facts)
        if known and self.by_call.get(arriving.call) is arriving:
            self._end(arriving)
            self._done(arriving)

    def is_over(self, arriving: Arriving) -> bool:
        """Whether its edge knows no such call; where nobody can say which edge that is, none of those linked
        does: another pair's has never heard of it."""
        links, owner = self._context.links, self._records.owner(arriving.call)
        if owner is not None:
            return owner.edge in arriving.unknown_to
        said = {links[peer].vip for peer in arriving.unknown_to if peer in links}
        pairs = {arriving.pair} if arriving.pair else {edge.vip for edge in links.values()}
        return bool(said) and pairs <= said

    def _limit(self, arriving: Arriving) -> None:
        if self.by_call.get(arriving.call) is not arriving:
            return
        self._end(arriving)
        missing = sorted(leg for leg in arriving.facts if leg not in arriving.channels)
        if arriving.kind == ADOPTION and not (arriving.edge_known and missing):
            # nobody can say more: what is in Asterisk is what there is
            arriving.record = arriving.record or self._records.latest(arriving.call)
            for leg in [leg for leg in arriving.facts if leg not in arriving.channels]:
                del arriving.facts[leg]
            self._done(arriving)
            return
        self._refused(arriving, ",".join(missing))

    def _end(self, arriving: Arriving) -> None:
        self.by_call.pop(arriving.call, None)
        self._context.cancel(f"resume/{arriving.call}")
        self._context.cancel(f"resume-record/{arriving.call}")

    def drop(self, call: str) -> Arriving | None:
        """Forgets a call being taken up."""
        arriving = self.by_call.get(call)
        if arriving is not None:
            self._end(arriving)
        return arriving


# --- rebuilding --------------------------------------------------------------------------


def rebuild(parts: Parts, arriving: Arriving) -> NodeCall:
    """The call as it was, from the record and the edge's facts."""
    if arriving.record is not None:
        arriving.record = brought_up_to_date(parts, arriving.record, arriving.facts, arriving.ended)
    if arriving.rung:
        old = arriving.record or RecordValue(call=arriving.call, epoch="", node="", want_media=HITLESS)
        facts, rung, utc = arriving.facts, arriving.rung, parts.context.utc
        new = handed_on(old, rung, facts, arriving.head or old.head, arriving.sides, utc)
        arriving.record = with_rung(new, rung, facts, utc)
        arriving.rung = {leg: one for leg, one in arriving.rung.items() if one.attempt not in old.attempts}
    record = arriving.record or RecordValue(call=arriving.call, epoch="", node="")
    call = NodeCall(
        parts,
        CallFacts(
            call=arriving.call, epoch=arriving.epoch, caller=record.caller or arriving.caller,
            did=record.did or arriving.did, verb=tuple(record.verb) or arriving.verb,
            context=record.context or arriving.context, extension=record.extension,
            priority=record.priority, started=record.started or parts.context.utc,
        ),
    )  # fmt: skip
    call.queue, call.queue_priority, call.entered = record.queue, record.queue_priority, record.entered
    call.answered, call.variables = record.answered, dict(record.variables)
    call.ending = dict(record.ending)
    call.ivr.place = record.ivr
    if any(is_supervisor(leg) for leg in arriving.ended):
        call.supervision.left_by = parts.context.utc
    call.supervision.snoops = arriving.snoops
    config = parts.queue(record.queue) if record.queue else None
    call.head, call.transfers.now = record.head, record.transfer
    if arriving.asking is not None:
        call.transfers.asking(arriving.asking, [*arriving.facts])
    call.music = config.moh if config else call.music
    call.media_policy = THROUGH if record.want_media == THROUGH and arriving.record else HITLESS
    call.retired = list(arriving.retired)
    call.legs_used.update(record.legs, record.ending)
    for value in record.attempts.values():
        call.attempts[value.attempt] = Attempt(
            value.attempt, value.agent, value.device, value.leg, value.state, value.started,
            value.deadline, value.outcome,
        )  # fmt: skip
        call.legs_used.add(value.leg)
    _add_legs(call, arriving, record)
    call.transfers.lead_on(record, arriving.head)
    return call


def _add_legs(call: NodeCall, arriving: Arriving, record: RecordValue) -> None:
    # a node without etcd may have given the name of a leg that was never rung to somebody it dialled
    by_leg = {a.leg: a for a in call.attempts.values() if a.leg not in arriving.targets}
    for name, fact in arriving.facts.items():
        known = record.legs.get(name)
        known = None if known and not known.target and name in arriving.targets else known
        attempt = by_leg.get(name)
        ours = "user" if arriving.kind == TAKEOVER and not arriving.trunk else CUSTOMER
        role = known.role if known else ours if name == PRIMARY_LEG else "agent"
        target = known.target if known else arriving.targets.get(name, "")
        leg = Leg(
            name, role, state=RINGING if fact == RINGING else UP, held=fact == HELD, unrecorded=known is None,
            agent=known.agent if known else "",
            attempt=attempt.attempt if attempt else "",
            target=target, consult=_side(known, arriving, name),
            of=known.of if known else arriving.lines.get(name, ""),
        )  # fmt: skip
        if not (record.stage == QUEUED and name == record.head):  # who waits in a queue is a caller there
            leg.agent = leg.agent or (attempt.agent if attempt else call.parts.agent_at(target))
        call.add_leg(leg)
        channel = arriving.channels.get(name)
        if channel is not None:
            leg.channel = channel
        if attempt is not None and leg.state == UP:
            attempt.state = ANSWERED
        elif attempt is not None:
            attempt.state = LOST if attempt.state in (ANSWERED, LOST) else RINGING
    for leg in [leg for leg in call.legs.values() if leg.of not in call.legs and not leg.agent]:
        if (main := record.legs.get(leg.of)) is not None:
            leg.agent = main.agent  # of his two lines this one is left, which the record does not know yet
    for attempt in call.attempts.values():
        here = attempt.leg in call.legs and by_leg.get(attempt.leg) is attempt
        if attempt.state in OPEN_STATES and not here:
            attempt.state = ENDED
    call.over_before = dict(arriving.ended)
    call.legs_used.update(arriving.ended)


def _side(known: LegValue | None, arriving: Arriving, leg: str) -> str:
    """The side conversation a leg is in. Who was brought into the main one never leaves it: what
    edge or record says of that is news, whichever says so."""
    at_edge = arriving.sides.get(leg, "") if arriving.head else known.consult if known else ""
    return at_edge if known is None or known.consult else ""


@dataclass(frozen=True, slots=True)
class Past:
    """What the record says was going on, against the facts."""

    stage: str
    alive: dict[str, str]
    """attempt -> ringing or up"""
    ended: tuple[str, ...]
    """attempts whose legs people ended meanwhile"""
    talking: tuple[str, ...]
    parties: tuple[str, ...]
    """agents who talk and whom no queue gave the caller: they were called by their number"""
    lost_agents: tuple[str, ...]
    """agents who were talking and whose legs are gone, ended by nobody"""
    left_agents: tuple[str, ...]
    """agents who were talking and hung up meanwhile"""
    unwilling: tuple[str, ...]
    """attempts of lost agents who turned down being rung again"""


def compare(call: NodeCall, arriving: Arriving) -> Past:
    """Decides which stage the call is in now."""
    record = arriving.record
    alive: dict[str, str] = {}
    ended, lost, left, unwilling = [], [], [], []
    attempts = record.attempts.values() if record else ()
    ended += [a.attempt for a in attempts if a.state == ENDED]  # the ACD may not have heard
    ended += [arriving.turned_down] if arriving.turned_down else []
    for value in [a for a in attempts if a.state in OPEN_STATES]:
        leg = call.legs.get(value.leg)
        if leg is not None and leg.alive and leg.attempt == value.attempt:
            alive[value.attempt] = UP if leg.state == UP else RINGING
        elif value.leg in arriving.ended:
            ended.append(value.attempt)
            # whom the app itself released was not the one who hung up on the caller
            if value.state == ANSWERED and arriving.ended[value.leg] != "app":
                left.append(value.agent)
            elif value.state == LOST:
                unwilling.append(value.attempt)
        elif value.state in (ANSWERED, LOST):
            lost.append(value.agent)
    if call.transfers.pending:
        lost, left, unwilling = [], [], []
    agents_up = [leg for leg in call.living() if leg.leg != call.head and leg.state == UP and not leg.aside]
    step = record.ivr.step if record is not None and record.ivr is not None else ""
    # a party there, or ringing, is news that the record of an IVR, or of the dialplan, does not know yet
    others = [leg for leg in call.living() if leg.leg not in (call.head, *call.ending)]
    alone = all(leg.aside for leg in others)
    if record is not None and alone and (record.stage == IVR or (record.stage == DIALPLAN and step)):
        stage = IVR
    elif record is not None and record.stage == DIALPLAN and alone:
        stage = DIALPLAN
    elif (record is not None and record.verb == ["agent"]) or call.facts.did.startswith("*"):
        stage = FEATURE
    elif record is not None and (dialling := stage_after(call, record)):
        stage = dialling
    elif (head := call.legs.get(call.head)) is not None and head.of and head.state == RINGING:
        stage = DIALING  # the main conversation ended meanwhile, and the side one is not answered yet
    elif any(not leg.consult for leg in agents_up) or call.transfers.pending:
        stage = TALKING
    elif head is not None and any(_is_party(leg) for leg in call.living() if leg is not head):
        stage = DIALING if head.state == RINGING else TALKING  # somebody rings for him
    elif record is not None and record.stage == TALKING and not left:
        stage = TALKING  # alone: the agent is rung again
    else:
        stage = QUEUED
    known = [leg for leg in agents_up if leg.agent and leg.leg not in call.ending]
    by_queue = {attempt.agent for attempt in call.attempts.values()}
    called = {leg.agent for leg in known if leg.target or (leg.of and leg.agent not in by_queue)}
    talking = tuple(leg.agent for leg in known if leg.attempt or leg.agent not in called)
    parties = tuple(leg.agent for leg in known if leg.agent not in talking)
    return Past(stage, alive, tuple(ended), talking, parties, tuple(lost), tuple(left), tuple(unwilling))


def _is_party(leg: Leg) -> bool:
    """Whether somebody asked for its number, for the main conversation."""
    return bool(leg.target) and not (leg.attempt or leg.consult or leg.aside)


def resume(call: NodeCall, arriving: Arriving) -> None:
    """Sets the rebuilt call going again."""
    past = compare(call, arriving)
    _go_on(call, arriving, past)
    _end_for_those_gone(call, arriving, past.ended)


def _go_on(call: NodeCall, arriving: Arriving, past: Past) -> None:
    parts, context = call.parts, call.parts.context
    parts.records.open(call.call, call.epoch)
    record = arriving.record
    call.note(
        "taken up", why=arriving.kind, epoch=call.epoch, stage=past.stage, facts=dict(arriving.facts),
        ended=dict(arriving.ended), record=bool(record), was_on=record.node if record else "",
        after_ms=round((context.now - arriving.since) * 1000),
    )  # fmt: skip
    call.stage = past.stage if past.stage in (TALKING, FEATURE, DIALING, IVR) else QUEUED
    call.media.want = ""
    call.media.there = ""
    call.recovering = True
    primary = call.legs.get(call.head)
    if primary is None or call.head in call.ending:
        _nobody_to_serve(call)
        return
    # whoever talks is in no queue, even when nobody knows which agent it is; nor is who is in a menu
    nobody = past.stage in (DIALING, IVR)
    nobody = nobody or (past.stage == TALKING and not (past.talking or past.lost_agents))
    queue = "" if nobody else call.queue
    over = _in_it_no_more(call, arriving, past)
    for name in over if past.stage == QUEUED else ():
        parts.acd.conversation_ended(call.call, name, "transfer")
    parts.acd.caller_resumed(
        call.call, queue, call.entered, call.queue_priority, call.caller, alive=past.alive,
        ended=(*past.ended, *over.values()), talking=(*past.talking, *past.lost_agents),
        from_node=record.node if record else "", waits=not nobody, rung=[*arriving.rung.values()],
    )  # fmt: skip
    for agent in past.parties:
        parts.acd.conversation_state(call.call, agent, "join")
    if past.stage == FEATURE:
        call.end_leg(primary, NORMAL, "feature code interrupted")
        call.over("interrupted")
        return
    _end_leftovers(call)
    if past.stage == DIALPLAN or (record is None and len(call.living()) == 1):
        _into_dialplan(call, record, arriving)
        return
    call.save()
    if past.stage == IVR:
        call.ivr.resume()
        return
    for attempt in [a for a in call.attempts.values() if a.state == LOST or a.attempt in past.unwilling]:
        attempt.state = LOST
        call.dialling.watch_redial(attempt, attempt.attempt in past.unwilling)
    if past.left_agents and past.stage == QUEUED:
        _agents_left(call, past)
    elif past.lost_agents and not (past.talking or past.parties):
        _agents_lost(call, past)
    consults = call.stage == QUEUED and any(leg.consult for leg in call.living())
    if record is not None and (consults or call.stage in (DIALING, TALKING)):
        call.outbound.resumed(arriving.ended, record)
        call.transfers.resumed(record, arriving.ended)
    _end_lines_to_nobody(call)
    call.touch()


def _in_it_no_more(call: NodeCall, arriving: Arriving, past: Past) -> dict[str, str]:
    """Agents who are in this call, the store says, and by which attempt, and are not. For a caller in a menu
    nobody is rung: the node that had him before led him into a queue without the store, and wrote what it did
    with an agent, but not that. And for whom a queue has a phone rung, of which the record knows nothing, he
    talks to nobody: whoever had him before, or he himself, is free."""
    rings = any(past.alive.get(one.attempt) == RINGING for one in arriving.rung.values())
    works = TRYING if past.stage == IVR else IN_CALL if past.stage == QUEUED and rings else ()
    here = {leg.agent for leg in call.living()} if past.stage == QUEUED else ()
    agents = [(n, a) for n, a in call.parts.acd.acd.agents().items() if a.work in works and n not in here]
    parts = [(name, agent.attempt) for name, agent in agents if agent.attempt is not None]
    return {
        name: part.attempt
        for name, part in parts
        if part.call == call.call and part.attempt not in past.alive
    }


def _end_for_those_gone(call: NodeCall, arriving: Arriving, ended: Collection[str]) -> None:
    """Who talks in this call, the store says, by an attempt that is over, or by none and his leg is over, and
    is on none of its lines: a node that had the call before us without the store wrote it late, or did not
    write the end, or our mirror is behind."""
    if [leg for leg in call.living() if leg.of and leg.of not in call.legs and not leg.agent]:
        return  # he may be on one of those second lines
    known = arriving.record.legs if arriving.record is not None else {}
    gone = {known[name].agent for name in arriving.ended if name in known}
    over = set() if call.nameless() else set(ended)  # he may be the one whose name nobody knows
    here = {leg.agent for leg in call.living()}
    for name, agent in call.parts.acd.acd.agents().items():
        part = agent.attempt
        if part is None or part.call != call.call or name in here:
            continue
        if part.attempt in over or (part.attempt == call.call and name in gone):
            call.parts.acd.conversation_ended(call.call, name, "agent")


def _end_lines_to_nobody(call: NodeCall) -> None:
    """A second line is answered when its party is there. Where it has nobody, he has left meanwhile, or was
    brought to the others, and the end of the line was not heard."""
    for leg in [leg for leg in call.living() if leg.consult == leg.leg and leg.state == UP]:
        if not any(other.consult == leg.leg for other in call.living() if other is not leg):
            call.end_leg(leg, NORMAL, "the consultation is over")
            if (main := call.legs.get(leg.of)) is not None and main.agent:
                call.parts.acd.conversation_state(call.call, main.agent, "consult-end")


def _end_leftovers(call: NodeCall) -> None:
    """Ends that were announced and not seen to happen are announced again, after who belongs to whom:
    with a line that a transfer ends its edge would end whomever it had on it before. And of
    several phones that ring for one caller the one tried last goes on."""
    leftovers = [leg for leg in call.living() if leg.leg in call.ending]
    if leftovers:
        call.transfers.say_conversations()
    for leg in leftovers:
        call.end_leg(leg, call.ending[leg.leg], "announced before")
        call.left_by(leg, "transfer")
        call.attempt_over(leg)
    ringing = [a for a in call.attempts.values() if a.state == RINGING]
    for attempt in sorted(ringing, key=lambda a: a.started)[:-1]:
        attempt.state = ENDED
        if (leg := call.legs.get(attempt.leg)) is not None and leg.alive:
            call.end_leg(leg, NORMAL, "another is rung")


def _nobody_to_serve(call: NodeCall) -> None:
    """The customer is gone, or was being sent away: end what is left."""
    for leg in call.living():
        call.end_leg(leg, call.ending.get(leg.leg, NORMAL), "the call was ending")
    call.over("ended meanwhile")


def _into_dialplan(call: NodeCall, record: RecordValue | None, arriving: Arriving) -> None:
    """Where the dialplan had it; without any record: where its number leads."""
    if record is None and arriving.kind == TAKEOVER and not arriving.trunk and arriving.ended:
        call.note("no record, and whoever was called is gone: nobody is called again", level="warning")
        call.end_leg(call.legs[call.head], "480", "the other side is gone")
        call.over("the party left meanwhile")
    elif record is None and call.head != PRIMARY_LEG:
        call.note("no record, and who is left was called by us: nobody is there for him", level="warning")
        call.end_leg(call.legs[call.head], NORMAL, "the other side is gone")
        call.over("the caller left meanwhile")
    elif record is None:
        call.note("no record: the dialplan serves the caller anew", level="warning")
        call.to_dialplan("no record", call.context_name, call.facts.did)
    elif record.variables.get(CONTINUE) == "extension":
        call.to_dialplan("resumed", record.context, record.extension)
    else:
        call.to_dialplan("resumed")


def _agents_left(call: NodeCall, past: Past) -> None:
    """The agent hung up while the call moved: the conversation is over."""
    for agent in past.left_agents:
        call.parts.acd.conversation_ended(call.call, agent, "agent")
    call.end_leg(call.legs[call.head], NORMAL, "the other side hung up")
    call.over("ended by the agent")


def _agents_lost(call: NodeCall, past: Past) -> None:
    """The agent's leg went with the node, ended by nobody: he is rung again."""
    for attempt in [a for a in call.attempts.values() if a.agent in past.lost_agents]:
        call.dialling.redial(attempt)
        return
