"""A move on purpose leaves no hole: at every change of the media whoever hears something goes on hearing.

Looked at is each single command to rtpengine, before and after it. What people do at that moment (they
hold, answer, hang up) changes what is heard as well, and rightly; so only calls are judged whose
people have been doing nothing for a while, and whose two nodes are well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ari_ha.core.machine import Outcome
from ari_ha.core.ports.media import NgCommand
from ari_ha.machines.edge import EdgeMachine
from ari_ha.machines.edge_model import EdgeCall
from ari_ha.simulation.cluster import Cluster
from ari_ha.simulation.ears import ANNOUNCEMENT
from ari_ha.simulation.fake_phones import UP, Talk
from ari_ha.simulation.people import People

RULE = "a planned move leaves no hole"
CHANGES = ("connect", "unsubscribe")
STILL_S = 2.0
"""Nobody of the call has done anything for so long."""


@dataclass
class AtTheChange:
    """See the module."""

    cluster: Cluster
    people: People
    problem: Callable[[str, str], None]
    _did: dict[str, tuple[object, float]] = field(default_factory=dict)
    """call -> what its people were doing, and since when"""

    def begin(self) -> None:
        """Looks at every command from now on."""
        there = self.cluster.at_relay

        def at_relay(command: NgCommand) -> Outcome:
            heard = self._heard(command)
            outcome = there(command)
            for talk, before in heard:
                if self.hole(talk, before):
                    what = f"{command.command} {command.body['to-tag']} {command.body['from-tag']}"
                    call = command.body["call-id"]
                    self.problem(RULE, f"call {call}: {talk.leg} heard {before}, then nothing, by {what}")
            return outcome

        self.cluster.at_relay = at_relay

    def hole(self, talk: Talk, before: list[str]) -> bool:
        """Whether whoever heard this hears nothing now. What an Asterisk says to a caller has an end: where
        the relay takes longer than the next one's prompt, that is over, and it is the caller's turn."""
        ears = self.cluster.ears
        return not ears.heard_by(talk) and not (before == [ANNOUNCEMENT] and ears.was_told(talk))

    def look(self) -> None:
        """Notes what people are doing, every now and then."""
        calls = {talk.call: self._doing(talk.call) for talk in self.people.circles.everybody() if talk.call}
        for call, doing in calls.items():
            self._still(call, doing)

    def _still(self, call: str, doing: object) -> bool:
        """Whether its people have been doing this for a while."""
        now = self.cluster.world.now
        before, since = self._did.get(call, (None, now))
        if doing != before:
            self._did[call] = (doing, now)
            return False
        return now - since >= STILL_S

    def _doing(self, call: str) -> object:
        talks = [talk for talk in self.people.circles.everybody() if talk.call == call]
        return [(t.leg, t.state, t.held, t.busy, t.referred, t.joining) for t in talks]

    def _heard(self, command: NgCommand) -> list[tuple[Talk, list[str]]]:
        """Who of a call on the move hears something now, and what."""
        call = self._on_the_move(command)
        if call is None or not self._still(call.call, self._doing(call.call)):
            return []
        talks = [
            talk for talk in self.people.circles.everybody() if talk.call == call.call and talk.state == UP
        ]
        found = [(talk, self.cluster.ears.heard_by(talk)) for talk in talks]
        return [(talk, heard) for talk, heard in found if heard]

    def _on_the_move(self, command: NgCommand) -> EdgeCall | None:
        """The call, when it is just changing nodes and both are well."""
        edge = self.cluster.edge.machine
        if command.command not in CHANGES or not isinstance(edge, EdgeMachine):
            return None
        call = edge.calls.by_id.get(str(command.body["call-id"]))
        if (
            call is None
            or call.lost
            or call.ended
            or not (call.leaving or (call.move and call.move.handing_over))
        ):
            return None
        halves = [*call.halves.values(), *call.leaving, *(call.move.halves.values() if call.move else ())]
        nodes = {half.node.name for half in halves}
        return call if len(nodes) > 1 and all(self._well(name) for name in nodes) else None

    def _well(self, name: str) -> bool:
        cluster, node = self.cluster, self.cluster.by_name[name]
        whole = node.app.running and node.asterisk.running and node.link.up
        return whole and not any(node.host in pair for pair in cluster.network.cuts)
