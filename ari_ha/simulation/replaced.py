"""An edge process that another has replaced, and that runs on: its host stood still, or was cut off,
while the other took address and role.

What it can still do: its writes compare a revision that is gone; it reaches nodes from its host's own
address; its rtpengine is not the one that has the media; and SIP leaves its host until its guard has
closed the fence, from an address whose answers go to the other.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import TYPE_CHECKING

from ari_ha.core.machine import Effect, Unreachable
from ari_ha.core.ports.guard import PairWord, StandDown
from ari_ha.core.ports.link import SendLink
from ari_ha.core.ports.media import NgCommand
from ari_ha.core.ports.sip import SendSip
from ari_ha.core.ports.store import StoreRead, StoreTxn, StoreUnwatch
from ari_ha.simulation.fake_rtpengine import FakeRtpengine
from ari_ha.simulation.fake_store import HOST as ETCD
from ari_ha.simulation.process import DEAD, MachineProcess, Settle
from ari_ha.wire.beat import RoleWord

if TYPE_CHECKING:
    from ari_ha.simulation.cluster import Cluster

TAKEN_MIN_S, TAKEN_MAX_S = 0.3, 0.8
"""From the last word of an edge's host until the other has its place"""
WAKES_MAX_S, BEHIND_MAX_S = 2.0, 2.0
HEARD_MAX_S = 0.5
"""A host that was cut off may still send by an address that is another's; one that stood still may not:
its fence closed meanwhile"""
TOLD_MIN_S, TOLD_MAX_S = 0.05, 1.0
"""Until its guard is sure (`GuardTimings.hold_s`)"""
RELAY_S = 0.0005
STANDS_DOWN_WITHIN_S = 0.5
"""After its guard's first word. It says it every 200 ms."""
WORD_EVERY_S = 0.2


class Replaced:
    """The process and what is its own: the client of etcd, the links to nodes, the rtpengine of its host."""

    def __init__(self, cluster: Cluster, relay: FakeRtpengine) -> None:
        assert cluster.edge_client is not None
        self.cluster = cluster
        self.process: MachineProcess = cluster.edge
        self.client = cluster.edge_client
        self.links = {node.name: node.link for node in cluster.nodes}
        self.relay = relay
        self.name = f"{self.process.name} (life {self.process.life})"
        self.heard_until = 0.0
        """Its fence is open until then: what it sends leaves its host"""
        self.told_at: float | None = None
        """When its guard said for the first time that it is not the one any more"""
        self.wrote: list[StoreTxn] = []
        """Writes of it that were done since it was replaced"""
        self.client.on_write = self._wrote
        for link in self.links.values():
            link.last = True

    @property
    def alive(self) -> bool:
        """Whether it has not stood down yet."""
        return self.process.state != DEAD

    @property
    def late(self) -> bool:
        """Whether it goes on although its guard has said that it is not the one."""
        told = self.told_at is not None and self.cluster.world.now - self.told_at > STANDS_DOWN_WITHIN_S
        return told and self.process.running

    def wake(self, heard_s: float) -> None:
        """It stands still no more, or hears the others again; what it sends leaves its host for so long."""
        self.cluster.network.heal(self.process.host)
        self.heard_until = self.cluster.world.now + heard_s
        self.process.thaw()

    def tell(self) -> None:
        """Its guard says that the other has the address, and closes the fence."""
        world, cluster = self.cluster.world, self.cluster
        if self.alive:
            self.told_at = self.told_at or world.now
            self.heard_until = 0.0
            newest = cluster.store.keys[cluster.vip_key].mod_revision
            process = self.process
            word = RoleWord(edge=process.name, process=f"life{process.life}", revision=0, after=newest)
            process.deliver(PairWord(word=word))
            world.after(WORD_EVERY_S, self.tell)

    def _wrote(self, effect: StoreTxn) -> None:
        cluster = self.cluster
        unleased = effect.deletes or not all(put.leased for put in effect.puts)
        if unleased and cluster.vip_life != self.process.life:
            self.wrote.append(effect)

    # -- effects

    def perform(self, effect: Effect, settle: Settle) -> None:
        """A command to its own rtpengine, or something for etcd."""
        if isinstance(effect, StoreTxn | StoreRead):
            self.client.perform(effect, settle)
        elif isinstance(effect, NgCommand):
            self.cluster.world.after(RELAY_S, lambda: settle(self.relay.command(effect.command, effect.body)))
        else:
            self.cluster.world.after(0.0, lambda: settle(Unreachable("replaced")))

    def perform_now(self, effect: Effect) -> None:
        """SIP, as far as it leaves the host; frames to nodes; its end."""
        if isinstance(effect, SendSip):
            self._send(effect)
        elif isinstance(effect, SendLink) and effect.peer in self.links:
            self.links[effect.peer].send(self.process, effect.frame)
        elif isinstance(effect, StoreUnwatch):
            self.client.unwatch(effect.prefix)
        elif isinstance(effect, StandDown):
            self.process.kill()

    def _send(self, effect: SendSip) -> None:
        cluster, flow = self.cluster, effect.flow
        if cluster.world.now >= self.heard_until:
            return
        source = cluster.edge_at(flow.listener)
        cluster.wire.send(source, (flow.host, flow.port), effect.data, self.process.host)


class Comeback:
    """The fault: the edge's host is gone for a while, and the other one takes its place meanwhile."""

    def __init__(self, cluster: Cluster, later: Callable[[float, float, Callable[[], object]], None]) -> None:
        self.cluster = cluster
        self.later = later
        """Does something after a while, unless everything has been mended"""
        self.edge = cluster.edge
        self.cut = False

    def begin(self) -> None:
        """It is gone."""
        cluster = self.cluster
        self.cut = cluster.world.chance(0.5)
        relay = deepcopy(cluster.relay)
        if self.cut:
            nodes = (node.host for node in cluster.nodes)
            cluster.network.cut_off(self.edge.host, [ETCD, cluster.carrier.host, *nodes])
        else:
            self.edge.freeze()
        self.later(TAKEN_MIN_S, TAKEN_MAX_S, lambda: self._taken(relay))

    def _taken(self, relay: FakeRtpengine) -> None:
        """The other takes its place, if etcd lets it, with an rtpengine that has learned all until then."""
        cluster, world, edge = self.cluster, self.cluster.world, self.edge
        store = cluster.store
        gone = cluster.edge is edge and edge.state != DEAD and (self.cut or not edge.running)
        if not gone or store.electing or store.full or not store.available:
            cluster.network.heal(edge.host)
            edge.thaw()
            return
        old = cluster.replace_edge(relay)
        if world.chance(0.5):
            old.client.stall()
            self.later(WAKES_MAX_S, WAKES_MAX_S + BEHIND_MAX_S, old.client.resume)

        def wakes() -> None:
            old.wake(world.between(0.0, HEARD_MAX_S) if self.cut else 0.0)
            world.after(world.between(TOLD_MIN_S, TOLD_MAX_S), old.tell)

        self.later(0.0, WAKES_MAX_S, wakes)
