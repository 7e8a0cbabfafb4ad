"""The recorders of the world's nodes, and what must hold of them: every voice of a recorded call reaches
one at every moment, unless two nodes are lost at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ari_ha.core.machine import Done
from ari_ha.core.ports.media import NgCommand
from ari_ha.core.ports.recording import CloseRecording, OpenRecording
from ari_ha.machines.edge import EdgeMachine
from ari_ha.simulation.process import DEAD, MachineProcess, Settle
from ari_ha.simulation.world import World

if TYPE_CHECKING:
    from ari_ha.simulation.checkers_people import Lasting
    from ari_ha.simulation.cluster import Cluster, Node
    from ari_ha.simulation.faults import Faults

FIRST_PORT = 42_000
OPEN_S = 0.02
REPLACE_S = 4.0
"""After a loss, and after an edge is there to see it, another node records by then."""
TWICE_MAX_S = 4.0
RECORDER = "/rec@"
"""In rtpengine's tag of a recorder"""


class FakeRecorder:
    """A node's recorder: the app's child, gone with it. It goes on while the app stands still."""

    def __init__(self, world: World, app: MachineProcess, address: str) -> None:
        self.world = world
        self.app = app
        self.address = address
        self._open: dict[str, tuple[int, str, int]] = {}
        """recording -> (life of the app, call, port)"""
        self._port = FIRST_PORT

    def perform(self, effect: OpenRecording | CloseRecording, settle: Settle) -> None:
        """An order of the app."""
        if isinstance(effect, CloseRecording):
            self._open.pop(effect.recording, None)
            settle(Done())
            return
        self._port += 2
        self._open[effect.recording] = (self.app.life, effect.call, self._port)
        port = self._port
        self.world.after(OPEN_S, lambda: settle(Done((self.address, port))))

    def writing(self) -> dict[tuple[str, int], str]:
        """Where it listens -> which call it writes there."""
        if self.app.state == DEAD:
            return {}
        return {
            (self.address, port): call for life, call, port in self._open.values() if life == self.app.life
        }


@dataclass
class Tapes:
    """The checker."""

    cluster: Cluster
    faults: Faults
    problem: Callable[[str, str], None]
    lasting: Lasting
    forget: Callable[[str, set[str]], None]
    _bad_at: dict[str, float] = field(default_factory=dict)
    """node -> when it was last not whole"""
    _links: dict[str, int] = field(default_factory=dict)
    _relay_bad_at: float = -100.0
    _heard: set[tuple[str, str]] = field(default_factory=set)
    """(call, leg) written by two, or for long enough: no single loss may silence it from then on"""
    _since: dict[tuple[str, str], float] = field(default_factory=dict)
    """When it was first to be recorded"""

    def begin(self) -> None:
        """Looks at every fault, and whenever a copy is taken away, beside the looks now and then."""
        if self.cluster.shape.records:
            soon = self.cluster.world.after
            self.faults.on_fault.append(lambda kind: soon(0.001, self.look) and None)
            self.cluster.on_command.append(self._command)

    def _command(self, command: NgCommand) -> None:
        if command.command == "unsubscribe" and RECORDER in str(command.body.get("to-tag", "")):
            self.look()

    def look(self) -> None:
        """At this moment."""
        edge = self.cluster.edge.machine
        if not self.cluster.shape.records or not isinstance(edge, EdgeMachine):
            return
        self._weather()
        wanted, seen = set(), set()
        for call in edge.calls.by_id.values():
            for leg in call.recorded_legs():
                voice = (call.call, leg.leg)
                wanted.add(voice)
                count = self.writers(*voice)
                if not count and voice in self._heard and not self._excused():
                    self.problem("recorded without a hole", f"nobody writes {leg.leg} of {call.call}")
                since = self._since.setdefault(voice, self.cluster.world.now)
                if count > 1 or (count and self.cluster.world.now - since > REPLACE_S):
                    self._heard.add(voice)
                key = f"tape/{call.call}/{leg.leg}"
                seen.add(key)
                if self.lasting(key, count < min(2, self._whole()), TWICE_MAX_S):
                    self.problem("recorded twice", f"{leg.leg} of {call.call} is written {count} times")
        self._heard &= wanted
        self._since = {voice: since for voice, since in self._since.items() if voice in wanted}
        self.forget("tape/", seen)

    def writers(self, ident: str, leg: str) -> int:
        """Recorders that get this voice now."""
        relay, network = self.cluster.relay, self.cluster.network
        call = relay.calls.get(ident)
        if call is None:
            return 0
        count = 0
        for tag in call.tags.values():
            if leg not in relay.hears(ident, tag.name):
                continue
            for node in self.cluster.nodes:
                there = node.recorder.writing().get(tag.remote or ("", 0)) == ident
                count += there and not network.cut(self.cluster.ears.relay_host, node.host)
        return count

    def final(self) -> None:
        """Long after the last person hung up."""
        for node in self.cluster.nodes:
            for call in node.recorder.writing().values():
                self.problem("nothing is left", f"{node.name} records {call}")

    # -- what went wrong lately

    def _good(self, node: Node) -> bool:
        there = node.app.running and node.link.up and node.host not in self.cluster.wire.hosts_down
        return there and not any(node.host in pair for pair in self.cluster.network.cuts)

    def _weather(self) -> None:
        cluster, now = self.cluster, self.cluster.world.now
        if cluster.media_away or cluster.media_slow_s or any(now - at < REPLACE_S for at in cluster.rehomed):
            self._relay_bad_at = now
        for node in cluster.nodes:
            lately = now - self._bad_at.get(node.name, -100.0) < REPLACE_S
            again = self._links.get(node.name) != node.link.number
            # nobody replaces what was lost while there is no edge
            if not self._good(node) or again or (lately and not cluster.edge.running):
                self._bad_at[node.name] = now
            self._links[node.name] = node.link.number

    def _whole(self) -> int:
        now = self.cluster.world.now
        return sum(now - self._bad_at.get(node.name, -100.0) > REPLACE_S for node in self.cluster.nodes)

    def _excused(self) -> bool:
        two = len(self.cluster.nodes) - self._whole() >= 2
        return two or self.cluster.world.now - self._relay_bad_at < REPLACE_S
