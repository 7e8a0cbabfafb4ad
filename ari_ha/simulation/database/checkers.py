"""What must never be, and what must be in the end."""

from __future__ import annotations

from dataclasses import dataclass

from ari_ha.machines.database_config import ASYNC, CIRCULAR
from ari_ha.simulation.database.clients import Clients
from ari_ha.simulation.database.fake_server import FakeServer
from ari_ha.simulation.database.pair import NAMES, Pair
from ari_ha.simulation.process import DEAD

PROBLEMS_MAX = 10
JUST_NOW_S = 0.2
"""Who goes on writing with all rights while the copy begins is not waited for."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A broken rule."""

    rule: str
    text: str
    at_s: float

    def __str__(self) -> str:
        return f"{self.at_s:.3f}  {self.rule}: {self.text}"


class Checkers:
    """Watches one run."""

    def __init__(self, pair: Pair, clients: Clients) -> None:
        self.pair = pair
        self.clients = clients
        self.problems: list[Problem] = []
        self.lost = 0
        self.unwatched = False
        """A watcher was killed, or stood still."""
        for server in pair.servers.values():
            server.on_rebuild = self._rebuild

    def problem(self, rule: str, text: str) -> None:
        """One more."""
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(Problem(rule, text, self.pair.world.now))
            self.pair.world.say("checkers", f"{rule}: {text}")

    def _rebuild(self, server: FakeServer, donor: FakeServer) -> None:
        """Nothing is overwritten that was not archived."""
        old = {txn.gtid for txn in server.disk.log if txn.at_s < self.pair.world.now - JUST_NOW_S}
        gone = old - donor.disk.has - server.archived
        if gone and not server.disk.broken:
            self.problem("nothing is overwritten silently", f"{server.name} had {sorted(gone)[:5]}")

    def acks(self) -> None:
        """Who said yes, and when. Without confirmations a server whose watcher does not run
        cannot be kept from saying it."""
        if self.pair.shape.mode == ASYNC and self.unwatched:
            return
        for ack in self.clients.acks:
            if ack.reign < ack.newest:
                self.problem(
                    "one server says yes",
                    f"{ack.server} for {ack.ident} at {ack.at_s:.3f} in reign {ack.reign},"
                    f" after a yes in reign {ack.newest}",
                )
                return

    def together(self) -> str:
        """Why the pair has not come together; "" when it has."""
        pair = self.pair
        if any(server.state == DEAD for server in pair.servers.values()):
            return "a server is down"
        writable = [name for name in NAMES if pair.servers[name].writable]
        if len(writable) != 1:
            return f"writable: {writable}"
        primary = pair.servers[writable[0]]
        replica = pair.servers[NAMES[1 - NAMES.index(writable[0])]]
        leader, sync = pair.value(pair.keys.leader) or {}, pair.value(pair.keys.sync) or {}
        if leader.get("server") != primary.name or leader.get("stage") != "open":
            return f"leader {leader}, writable {primary.name}"
        if not pair.says_writable(primary.name):
            return "its watcher does not say writable"
        seen = replica.observation()
        if seen.follows != primary.name:
            return f"{replica.name} follows {seen.source!r}, io {seen.io}, applying {seen.applying}"
        if pair.value(pair.keys.rebuild(replica.name)):
            return "a rebuild is under way"
        if pair.value(pair.keys.order):
            return "an order is left"
        if pair.shape.mode != ASYNC:
            wanted = (replica.name, replica.life_name)
            if (sync.get("standby"), sync.get("standby_life")) != wanted or not primary.semi_source:
                return f"sync {sync}, {replica.life_name}, waits {primary.semi_source}"
        if pair.shape.shape == CIRCULAR and primary.observation().follows != replica.name:
            return "the primary does not follow back"
        return ""

    def final(self) -> None:
        """After the faults, and after clients have stopped writing."""
        self.acks()
        why = self.together()
        if why:
            self.problem("comes together", why)
            return
        primary = next(server for server in self.pair.servers.values() if server.writable)
        replica = next(server for server in self.pair.servers.values() if not server.writable)
        if primary.disk.has != replica.disk.has:
            odd = sorted(primary.disk.has ^ replica.disk.has)[:5]
            self.problem("comes together", f"the servers differ: {odd}")
        kept = {txn.ident for txn in primary.disk.log}
        lost = [ack for ack in self.clients.acks if ack.ident not in kept]
        self.lost = len(lost)
        if self.pair.shape.mode != ASYNC or self.pair.shape.shape == CIRCULAR:
            if lost:
                first = lost[0]
                self.problem(
                    "no confirmed write is lost",
                    f"{len(lost)} of {len(self.clients.acks)}, the first {first.ident} by {first.server}"
                    f" at {first.at_s:.3f}",
                )
