"""What must be true of the rows that calls leave in the database, whatever died meanwhile:
one for each call, of a call that is over, with the people who talked; and a queue log that
tells one story."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ari_ha.checkers.queue_log import contradictions
from ari_ha.core.ports.records import Row
from ari_ha.core.ports.store import KeyValue
from ari_ha.machines.clerk import CALLS, QUEUE_LOG
from ari_ha.machines.edge import EdgeMachine
from ari_ha.machines.node import NodeMachine
from ari_ha.simulation.cluster import SUPERVISOR, Cluster
from ari_ha.simulation.fake_phones import Talk
from ari_ha.simulation.people import People
from ari_ha.wire.keyspace import OwnerValue, decode

TALKED_MIN_S = 2.0
"""Two people who were connected at least this long have talked, whatever moved meanwhile."""


@dataclass
class Books:
    """Follows which calls there were, and which rows came of them."""

    cluster: Cluster
    people: People
    problem: Callable[[str, str], None]
    _calls: set[str] = field(default_factory=set)
    _blind: set[str] = field(default_factory=set)
    """Calls that a node served which saw nothing of etcd"""
    _epochs: dict[str, set[str]] = field(default_factory=dict)

    def begin(self) -> None:
        """From now on."""
        self.cluster.store.on_commit.append(self._commit)
        self.cluster.office.database.on_row.append(self._row)

    def _commit(self, changes: list[tuple[int, str, KeyValue | None]]) -> None:
        for _, key, item in changes:
            parts = self.cluster.keys.split(key)
            if item is not None and parts[0] == "dialogs":
                self._calls.add(parts[2])
            if item is not None and parts[0] == "calls" and parts[2] == "owner":
                self._epochs.setdefault(parts[1], set()).add(decode(item.value, OwnerValue).epoch)

    def look(self) -> None:
        """Now and then."""
        for node in self.cluster.nodes:
            machine = node.app.machine
            if not isinstance(machine, NodeMachine):
                continue
            for ident, call in machine.core.calls.items():  # by its owner key, too, unless etcd was away
                self._epochs.setdefault(ident, set()).add(str(call.epoch))
            if self.cluster.clients[node.name].reachable is not True:
                self._blind |= machine.core.calls.keys()

    def _row(self, table: str, row: Row) -> None:
        edge = self.cluster.edge.machine
        if table == CALLS and isinstance(edge, EdgeMachine) and row["ha_call_id"] in edge.calls.by_id:
            self.problem("a record is of a call that is over", f"{row['ha_call_id']} has a row and goes on")

    def final(self) -> None:
        """Long after the last person hung up."""
        rows = self.cluster.office.database.rows
        for key in self.cluster.store.keys:
            parts = self.cluster.keys.split(key)
            if parts[0] == "outbox":
                self.problem("nothing is left", f"etcd has {'/'.join(parts)}")
        for call in self._calls - rows[CALLS].keys():
            self.problem("every call has its record", f"{call} has none")
        for customer, agent in self._talked():
            row = rows[CALLS].get(customer.call)
            if row is not None and agent.who not in str(row["agents"]).split():
                text = f"{agent.who} talked in {customer.call}, named: {row['agents'] or 'nobody'}"
                self.problem("every call has its record", text)
        # of a call that moved between nodes without etcd nobody knows who has told what
        moved = {call for call in self._blind if len(self._epochs.get(call, ())) > 1}
        lines = [row for row in rows[QUEUE_LOG].values() if row["callid"] not in moved]
        wrong, waiting, talking = contradictions(lines)
        wrong += [f"{call} waits for ever" for call in waiting]
        wrong += [f"{agent} talks for ever ({call})" for agent, call in talking]
        for text in wrong:
            self.problem("the queue log tells one story", text)

    def _talked(self) -> Iterable[tuple[Talk, Talk]]:
        now = self.cluster.world.now
        customers = {talk.call: talk for talk in self.people.customers if talk.call and talk.answered_s}
        for agent in self.cluster.phones.talks.values():
            customer = customers.get(agent.call)
            if customer is None or not agent.answered_s or agent.who == SUPERVISOR or agent.dialled:
                continue
            until = min(talk.ended_s or now for talk in (customer, agent))
            if until - max(customer.connected_s, agent.connected_s) >= TALKED_MIN_S:
                yield customer, agent
