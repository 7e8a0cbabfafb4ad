"""Two pairs side by side, each one edge: the same carrier, phones, nodes and etcd.

The second edge has addresses of its own. SIP between the edges goes from one machine to the
other, and every write is news to the other one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ari_ha.core.ports.sip import SipBytes
from ari_ha.core.ports.store import StoreChanged, StoreTxn
from ari_ha.machines.edge_config import EdgeConfig
from ari_ha.sip import events as sip_events
from ari_ha.sip.flow import Flow
from ari_ha.wire.token import HEADER, verify
from tests.support.edge_world import EDGE_PUBLIC, KEY, EdgeWorld, Home, Node, Party, Surroundings

HOP_PORT = 5076
HOMES = {
    "pair1": Home(EDGE_PUBLIC[0], "10.0.2.11", "10.0.9.9"),
    "pair2": Home("10.0.1.21", "10.0.2.21", "10.0.9.21"),
}


class PairEdge(EdgeWorld):
    """The edge of one pair; ``others`` are those of the other pairs."""

    def __init__(self, around: Surroundings, pair: str) -> None:
        self.pair = pair
        self.others: list[PairEdge] = []
        self.dead = False
        """Its process: nothing reaches it, nothing is due."""
        self.loses: Callable[[], bool] = lambda: False
        """Asked for every message to another edge or a phone: whether it gets lost"""
        super().__init__(around=around)

    def config(self) -> EdgeConfig:
        self.home = HOMES[self.pair]
        return replace(super().config(), edge=f"edge-{self.pair}", vip=self.pair, hop_port=HOP_PORT)

    # --- etcd ----------------------------------------------------------------------

    def txn(self, effect: StoreTxn) -> Any:
        before = dict(self.store)
        outcome = super().txn(effect)
        changed = [key for key in {**before, **self.store} if before.get(key) != self.store.get(key)]
        for other in self.others:
            if not other.dead:
                for key in changed:
                    other.post(StoreChanged(key=key, revision=self.revision, value=self.store.get(key)))
        return outcome

    # --- the network ---------------------------------------------------------------

    def deliver(self, data: bytes, flow: Flow) -> None:
        for other in self.others:
            if (flow.host, flow.port) == (other.home.core, HOP_PORT):
                assert flow.listener == "edge-hop", "to an edge from the port for edges only"
                if not other.dead and not self.loses():
                    came = Flow("edge-hop", "udp", self.home.core, HOP_PORT)
                    other.post(SipBytes(data=data, flow=came))
                return
        if not flow.listener.startswith("public-") or not self.loses():
            super().deliver(data, flow)

    def arrive(self, party: Party, data: bytes, flow: Flow) -> None:
        """To whichever edge has the address."""
        for edge in (self, *self.others):
            if flow.host in (edge.home.public, edge.home.core):
                if not edge.dead:
                    EdgeWorld.arrive(edge, party, data, flow)
                return

    def node_heard(self, node: Node, event: Any) -> None:
        """A node answers the edge that called it."""
        if isinstance(event, sip_events.InviteReceived):
            call = verify(event.request.get(HEADER), KEY).call
            mine = next(e for e in (self, *self.others) if not e.dead and call in e.edge.calls.by_id)
            EdgeWorld.node_heard(mine, node, event)

    def tick(self) -> None:
        for edge in (self, *self.others):
            if not edge.dead:
                EdgeWorld.tick(edge)

    def restart(self) -> None:
        """The next life of its process."""
        self.dead = False
        self.boot()


class TwoPairs:
    """``a`` and ``b``."""

    def __init__(self, *users: str) -> None:
        around = Surroundings()
        self.a = PairEdge(around, "pair1")
        self.b = PairEdge(around, "pair2")
        self.a.others, self.b.others = [self.b], [self.a]
        self.a.with_users(*users)
        self.b.snapshots()
        self.a.snapshots()
        self.carrier, self.nodes = around.carrier, around.nodes
