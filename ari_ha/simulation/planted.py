"""Planted bugs, one of each kind the checkers are there for. A checker that does not
find its own bug checks nothing; the tests run each of these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from ari_ha.core.ids import NO_EPOCH, Epoch
from ari_ha.core.machine import Done, Unknown
from ari_ha.machines.acd_agents import Not
from ari_ha.machines.acd_attempts import Caller
from ari_ha.machines.acd_writes import Plan as AcdPlan
from ari_ha.machines.clerk import ClerkMachine
from ari_ha.machines.edge import EdgeMachine
from ari_ha.machines.edge_model import EdgeCall, NodeLeg, PhoneLeg
from ari_ha.machines.node import NodeMachine
from ari_ha.machines.node_call import NodeCall
from ari_ha.machines.node_model import NORMAL, Leg
from ari_ha.machines.node_resume import Arriving
from ari_ha.simulation.cluster import Cluster
from ari_ha.simulation.faults import REHOME_KINDS, REPLACED_KINDS, Odds
from ari_ha.simulation.run import Plan
from ari_ha.wire import link
from ari_ha.wire.ivr import IvrMenuValue
from ari_ha.wire.keyspace import RecordValue


@dataclass(frozen=True)
class Planted:
    """A bug, the weather in which it shows, and the rules that must catch it."""

    what: str
    plant: Callable[[Cluster], None]
    kinds: tuple[str, ...]
    rules: tuple[str, ...]
    hard: bool = False
    """Shows only where people use everything there is."""
    name: str = ""
    full: bool = False
    """Shows only where agents do all they can do."""
    records: bool = False
    """Shows only where calls are recorded."""
    pause_s: float = 2.0
    aimed: float = 0.0
    doubt: float = 0.0
    """Share of the database's commits whose client does not hear of them."""

    @property
    def plan(self) -> Plan:
        """Runs that should fail."""
        odds = Odds(kinds=self.kinds, pause_s=self.pause_s, doubt=self.doubt, aimed=self.aimed)
        return Plan(
            kinds=self.kinds, plant=self.plant, planted=self.name, odds=odds, hard=self.hard, full=self.full,
            records=self.records,
        )  # fmt: skip


def _same_epoch(cluster: Cluster) -> None:
    """A move does not count as a decision: two nodes serve under one epoch."""

    def change(machine: EdgeMachine) -> None:
        real = machine.calls.next_epoch

        def next_epoch(call: EdgeCall) -> Epoch:
            return call.epoch if call.epoch != NO_EPOCH else real(call)

        machine.calls.next_epoch = next_epoch  # type: ignore[method-assign]

    cluster.on_edge.append(change)


def _early_change(cluster: Cluster) -> None:
    """A call that moves on purpose changes nodes before the next one is heard."""

    def change(machine: EdgeMachine) -> None:
        machine.calls.voices_of_next = lambda call: set()  # type: ignore[method-assign]

    cluster.on_edge.append(change)


def _lost_ring(cluster: Cluster) -> None:
    """The edge's word that a moved call's phone was picked up gets lost for good."""

    def drop(sender: str, frame: Any) -> bool:
        return isinstance(frame, link.LegAnswered)

    for node in cluster.nodes:
        node.link.drop = drop


def _late_bye(cluster: Cluster) -> None:
    """A node's BYE ends the phone although no app announced it."""

    def change(machine: EdgeMachine) -> None:
        def half_lost(call: EdgeCall, half: NodeLeg, cause: str) -> None:
            leg = call.legs.get(half.leg)
            if leg is not None and not call.ended:
                machine.calls.end_leg(call, leg, "app", "16")

        machine.takeover.half_lost = half_lost  # type: ignore[method-assign]

    cluster.on_edge.append(change)


def _double_attempt(cluster: Cluster) -> None:
    """etcd applies transactions whose compares do not hold."""
    cluster.store.compares = False


def _left_behind(cluster: Cluster) -> None:
    """Dialogs at a node that no longer serves a call are never ended: neither by the edge
    nor by the node's own Asterisk when its app asks."""

    def change(machine: EdgeMachine) -> None:
        def leave(call: EdgeCall, half: NodeLeg) -> None:
            half.state = "ended"
            machine.calls.by_key.pop(half.key, None)
            call.free_tag(half.tag)

        machine.takeover._leave = leave  # type: ignore[method-assign]

    cluster.on_edge.append(change)
    for node in cluster.nodes:
        node.ari.ari.refuse("channels.hangup")


def _effect_twice(cluster: Cluster) -> None:
    """A step whose outcome is not known is run again, as if it were harmless."""

    def change(machine: NodeMachine) -> None:
        real = machine.core.ivr

        def ivr(name: str) -> IvrMenuValue | None:
            menu = real(name)
            step = menu.collected if menu is not None else None
            if menu is None or step is None:
                return menu
            careless = msgspec.structs.replace(step, lookup="", idempotent=True)
            return msgspec.structs.replace(menu, collected=careless)

        machine.core.ivr = ivr  # type: ignore[method-assign]

    cluster.on_node.append(change)


def _dropped_transfer(cluster: Cluster) -> None:
    """A caller whom nobody takes is sent away, instead of back to whoever had him."""

    def change(machine: NodeMachine) -> None:
        real = machine.core.begin

        def begin(call: NodeCall) -> None:
            def failed(leg: Leg, kind: str) -> bool:
                call.end_leg(call.legs[call.head], NORMAL, "nobody took the transfer")
                call.over("nobody took the transfer")
                return True

            call.transfers.party_failed = failed  # type: ignore[method-assign]
            real(call)

        machine.core.begin = begin  # type: ignore[method-assign]

    cluster.on_node.append(change)


def _unread_row(cluster: Cluster) -> None:
    """The clerk takes an entry out of the outbox though nobody told it that the row is there."""

    def change(machine: ClerkMachine) -> None:
        real = machine._wrote

        def wrote(outcome: Any, now: float) -> None:
            batch = machine._batch
            keys = [key for entry in batch.entries for key in entry.keys] if batch else []
            real(Done(frozenset(keys)) if isinstance(outcome, Unknown) else outcome, now)

        machine._wrote = wrote  # type: ignore[method-assign]

    cluster.office.on_clerk.append(change)


def _kept_address(cluster: Cluster) -> None:
    """An edge at another address goes on as if far ends found it there by themselves."""

    def change(machine: EdgeMachine) -> None:
        machine.rehome.moved = lambda call: machine.calls.apply_media(call)  # type: ignore[method-assign]

    cluster.on_edge.append(change)


def _dead_epoch(cluster: Cluster) -> None:
    """A node that learns that its call is another's ends it aloud, and the edge listens to
    words of any epoch."""

    def believe(machine: EdgeMachine) -> None:
        def announced_end(frame: link.EndLeg) -> None:
            call = machine.calls.by_id.get(frame.call)
            leg = call.legs.get(frame.leg) if call else None
            if call is not None and leg is not None and leg.alive:
                call.announced.add(frame.leg)
                machine.calls.end_leg(call, leg, "app", frame.cause)

        machine.calls.announced_end = announced_end  # type: ignore[method-assign]

    def talk(machine: NodeMachine) -> None:
        real = machine.core.moved

        def moved(ident: str, epoch: Epoch, to: str) -> None:
            call = machine.core.calls.get(ident)
            if call is not None and call.epoch < epoch:
                for leg in call.living():
                    frame = link.EndLeg(call=ident, leg=leg.leg, epoch=str(call.epoch), cause="16")
                    call.say(frame)
            real(ident, epoch, to)

        machine.core.moved = moved  # type: ignore[method-assign]

    cluster.on_edge.append(believe)
    cluster.on_node.append(talk)


def _on_begin(change: Callable[[NodeMachine, NodeCall], None]) -> Callable[[Cluster], None]:
    """Puts ``change`` into every call that a node begins to serve."""

    def begins(machine: NodeMachine) -> None:
        real = machine.core.begin

        def begin(call: NodeCall) -> None:
            change(machine, call)
            real(call)

        machine.core.begin = begin  # type: ignore[method-assign]

    return lambda cluster: cluster.on_node.append(begins)


def _on_resumed(change: Callable[[NodeMachine, NodeCall], None]) -> Callable[[Cluster], None]:
    """Puts ``change`` into every call that a node takes up, once it has."""

    def takes_up(machine: NodeMachine) -> None:
        real = machine.core.resumes._done

        def done(arriving: Arriving) -> None:
            real(arriving)
            call = machine.core.calls.get(arriving.call)
            if call is not None:
                change(machine, call)

        machine.core.resumes._done = done

    return lambda cluster: cluster.on_node.append(takes_up)


def _trunk_twice(machine: NodeMachine, call: NodeCall) -> None:
    """A survivor dials anew what the record says was dialled, under a new leg's name."""

    def resumed(ended: Mapping[str, str], record: RecordValue) -> None:
        for value in record.legs.values():
            if value.target.startswith("number:") and value.state != "ended":
                call.outbound.ring(value.target.removeprefix("number:"), value.consult)

    call.outbound.resumed = resumed  # type: ignore[method-assign]


def _unasked_bye(cluster: Cluster) -> None:
    """The end of the main conversation ends the one beside it."""

    def change(machine: EdgeMachine) -> None:
        def end_others(call: EdgeCall, leg: PhoneLeg) -> None:
            if leg.leg == call.head:
                for other in call.living():
                    machine.calls.end_leg(call, other, "edge", "16")

        machine.calls._end_others = end_others  # type: ignore[method-assign]

    cluster.on_edge.append(change)


def _ghost_agent(cluster: Cluster) -> None:
    """Nobody frees an agent whose conversation ended unseen."""

    def change(machine: NodeMachine) -> None:
        machine.core.acd.acd._care._free = lambda name, seen, why: None  # type: ignore[method-assign]

    cluster.on_node.append(change)


def _changed_intent(machine: NodeMachine, call: NodeCall) -> None:
    """An agent whose call had to be taken up is taken to need a break."""
    for leg in call.living():
        if leg.agent:
            request = f"planted/{call.call}/{call.epoch}"
            machine.core.acd.agent_verb(request, "not-ready", {"by": "planted"}, agent=leg.agent)


def _charged_miss(machine: NodeMachine, call: NodeCall) -> None:
    """A ring that had to be taken up counts as one the agent let go by."""
    for attempt in [a for a in call.attempts.values() if a.state == "ringing"]:
        known = machine.core.acd.acd._calls.find(attempt.attempt)
        if known is not None:
            known.resumed = False
        machine.core.acd.attempt_failed(attempt.attempt, "no-answer")


def _hold_forgotten(machine: NodeMachine, call: NodeCall) -> None:
    """A survivor takes whoever is on hold for one who talks, whatever the edge says."""
    call.phone_held = lambda leg, held: None  # type: ignore[method-assign]
    for leg in call.living():
        leg.held = False


def _third_forgotten(machine: NodeMachine, call: NodeCall) -> None:
    """A survivor brings only two of a conference together."""
    for leg in [leg for leg in call.people() if not leg.consult][2:]:
        leg.consult = leg.leg


def _supervisor_forgotten(machine: NodeMachine, call: NodeCall) -> None:
    """A survivor has the supervisor on the line, and nobody for him to hear."""
    call.supervision._join = lambda order, leg: None  # type: ignore[method-assign]


def _lost_place(cluster: Cluster) -> None:
    """A caller who is taken up waits as if he had just come."""

    def change(machine: NodeMachine) -> None:
        calls = machine.core.acd.acd._calls
        real = calls._plan_place

        def plan_place(caller: Caller) -> AcdPlan | Not:
            plan = real(caller)
            if isinstance(plan, AcdPlan) and plan.text.startswith("keeps"):
                ((key, entry),) = plan.writes.items()
                late = msgspec.structs.replace(entry, entered=calls.desk.utc)
                return AcdPlan({key: late}, plan.text)
            return plan

        calls._plan_place = plan_place  # type: ignore[method-assign]

    cluster.on_node.append(change)


def _unfenced_write(cluster: Cluster) -> None:
    """The edge's writes do not compare whose the address is."""

    def change(machine: EdgeMachine) -> None:
        machine.calls.store._fence = lambda: ()  # type: ignore[method-assign]

    cluster.on_edge.append(change)


def _one_recorder(cluster: Cluster) -> None:
    """Every voice is recorded by one node."""

    def change(machine: EdgeMachine) -> None:
        real = machine.recordings._spare
        machine.recordings._spare = lambda call, taken: [] if taken else real(call, taken)[:1]  # type: ignore[method-assign]

    cluster.on_edge.append(change)


PLANTED = {
    "one-recorder": Planted(
        "only one node records", _one_recorder, ("app-kill",),
        ("recorded without a hole", "recorded twice"), records=True, pause_s=6.0,
    ),
    "kept-address": Planted(
        "far ends are not told the edge's other address", _kept_address, REHOME_KINDS,
        ("people hear each other", "only people end calls"),
    ),
    "dead-epoch": Planted(
        "a node that serves a call no more ends it", _dead_epoch,
        ("asterisk-freeze", "app-freeze", "node-cut"),
        ("only people end calls",),
    ),
    "trunk-twice": Planted(
        "a number that was dialled is dialled again after a takeover", _on_begin(_trunk_twice),
        ("asterisk-kill",), ("nobody is called twice",), full=True,
    ),
    "unasked-bye": Planted(
        "whoever consults is cut off with his caller", _unasked_bye, ("asterisk-kill",),
        ("only people end calls",), full=True,
    ),
    "ghost-agent": Planted(
        "an agent stays busy after his call", _ghost_agent, ("app-kill", "host-crash"), ("no ghost agents",),
        full=True,
    ),
    "changed-intent": Planted(
        "a takeover sends the agent on a break", _on_resumed(_changed_intent), ("asterisk-kill",),
        ("agents keep their state",),
    ),
    "charged-miss": Planted(
        "a takeover counts as the agent's missed call", _on_resumed(_charged_miss), ("asterisk-kill",),
        ("counters tell the truth",),
    ),
    "hold-forgotten": Planted(
        "held is not held after a takeover", _on_resumed(_hold_forgotten), ("asterisk-kill",),
        ("whoever is held hears music",), full=True, pause_s=5.0, aimed=0.4,
    ),
    "third-forgotten": Planted(
        "of three people two are left after a takeover", _on_resumed(_third_forgotten),
        ("drain",),
        ("people hear each other", "nobody is left alone"), full=True,
        pause_s=1.0, aimed=0.9,
    ),
    "supervisor-forgotten": Planted(
        "a supervisor hears nobody after a takeover", _on_resumed(_supervisor_forgotten), ("asterisk-kill",),
        ("supervisors hear and are heard",), hard=True, pause_s=5.0,
    ),
    "lost-place": Planted(
        "a takeover puts a waiting caller behind the others", _lost_place, ("asterisk-kill",),
        ("places are kept",),
    ),
    "unread-row": Planted(
        "a row whose commit is in doubt is taken to be there", _unread_row, ("app-kill",),
        ("every call has its record", "the queue log tells one story"), doubt=0.3,
    ),
    "dropped-transfer": Planted(
        "a transfer that fails ends the caller", _dropped_transfer, ("asterisk-kill",),
        ("only people end calls",), full=True,
    ),
    "double-owner": Planted(
        "two nodes serve one call under one epoch", _same_epoch, ("asterisk-kill",), ("one owner",)
    ),
    "early-change": Planted(
        "a drained call changes nodes before the next one is heard", _early_change, ("drain",),
        ("a planned move leaves no hole",), full=True,
    ),
    "lost-ring": Planted(
        "an answer after a takeover is lost", _lost_ring, ("asterisk-kill",),
        ("people hear each other", "only people end calls"),
    ),
    "late-bye": Planted(
        "an unannounced BYE of a node ends the call", _late_bye, ("asterisk-stop",),
        ("only people end calls",),
    ),
    "double-attempt": Planted(
        "transactions do not compare", _double_attempt, ("asterisk-kill", "node-cut"),
        ("agents and places agree", "queue and agents' history", "one call per agent"),
    ),
    "effect-twice": Planted(
        "a step with effects is run again", _effect_twice, ("asterisk-kill", "app-kill"),
        ("an effect happens once",), hard=True,
    ),
    "unfenced-write": Planted(
        "a replaced edge goes on writing", _unfenced_write, REPLACED_KINDS, ("a replaced edge does nothing",),
        full=True,
    ),
    "left-behind": Planted(
        "channels stay on a node the call has left", _left_behind, ("node-cut",), ("nothing is left",)
    ),
}  # fmt: skip
PLANTED = {name: replace(bug, name=name) for name, bug in PLANTED.items()}
