"""Planted bugs, one of each kind the checkers are there for. A checker that does not
find its own bug checks nothing; the tests run each of these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from ari_ha.core.ids import NO_EPOCH, Epoch
from ari_ha.core.machine import Done, Unknown
from ari_ha.machines.clerk import ClerkMachine
from ari_ha.machines.edge import EdgeMachine
from ari_ha.machines.edge_model import EdgeCall, NodeLeg
from ari_ha.machines.node import NodeMachine
from ari_ha.machines.node_call import NodeCall
from ari_ha.machines.node_model import NORMAL, Leg
from ari_ha.simulation.cluster import Cluster
from ari_ha.simulation.faults import REHOME_KINDS, Odds
from ari_ha.simulation.run import Plan
from ari_ha.wire import link
from ari_ha.wire.ivr import IvrMenuValue


@dataclass(frozen=True)
class Planted:
    """A bug, the weather in which it shows, and the rules that must catch it."""

    what: str
    plant: Callable[[Cluster], None]
    kinds: tuple[str, ...]
    rules: tuple[str, ...]
    hard: bool = False
    """Shows only where people use everything there is."""
    transfers: float = 0.0
    doubt: float = 0.0
    """Share of the database's commits whose client does not hear of them."""

    @property
    def plan(self) -> Plan:
        """Runs that should fail."""
        odds = Odds(kinds=self.kinds, pause_s=2.0, doubt=self.doubt)
        return Plan(plant=self.plant, odds=odds, hard=self.hard, transfers=self.transfers)


def _same_epoch(cluster: Cluster) -> None:
    """A move does not count as a decision: two nodes serve under one epoch."""

    def change(machine: EdgeMachine) -> None:
        real = machine.calls.next_epoch

        def next_epoch(call: EdgeCall) -> Epoch:
            return call.epoch if call.epoch != NO_EPOCH else real(call)

        machine.calls.next_epoch = next_epoch  # type: ignore[method-assign]

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


PLANTED = {
    "kept-address": Planted(
        "far ends are not told the edge's other address", _kept_address, REHOME_KINDS,
        ("people hear each other", "only people end calls"),
    ),
    "unread-row": Planted(
        "a row whose commit is in doubt is taken to be there", _unread_row, ("app-kill",),
        ("every call has its record", "the queue log tells one story"), doubt=0.3,
    ),
    "dropped-transfer": Planted(
        "a transfer that fails ends the caller", _dropped_transfer, ("asterisk-kill",),
        ("only people end calls",), transfers=0.9,
    ),
    "double-owner": Planted(
        "two nodes serve one call under one epoch", _same_epoch, ("asterisk-kill",), ("one owner",)
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
    "left-behind": Planted(
        "channels stay on a node the call has left", _left_behind, ("node-cut",), ("nothing is left",)
    ),
}  # fmt: skip
