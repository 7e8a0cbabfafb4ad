"""What no commit may do, whichever processes live and die meanwhile: told every commit of a store in its
order, it says which rule one broke.

- agents: every transition is counted, and an intent is what the agent (or somebody for him) asked for
- queues: their order is kept, and a caller's place in them
- calls: an epoch never goes back, and under one epoch one node writes the record
- agents and places agree, but for a while (`look`)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ari_ha.checkers.acd import History, Picture, check_store
from ari_ha.core.ids import NO_EPOCH, Epoch
from ari_ha.wire.keyspace import AgentValue, Keys, OwnerValue, RecordValue, decode

DISAGREE_MAX_S = 10.0
"""An agent whose conversation ended while etcd was away is freed by the reconciler, which looks
twice; an app that was frozen meanwhile begins anew (9 s seen, from the first disagreement)."""
SETTLE_S = 3.0
"""A caller is passed over when he could have been served so long before, and is not so long after."""


class Commits:
    """See the module. ``problem`` takes a rule and what happened; ``asked`` says whether an agent's new
    intent is his own; ``there`` whether a caller who was passed over could have been served."""

    def __init__(
        self,
        keys: Keys,
        problem: Callable[[str, str], None],
        asked: Callable[[AgentValue], bool],
        there: Callable[[str], bool],
    ) -> None:
        self.keys = keys
        self.problem = problem
        self.asked = asked
        self.history = History(keys, SETTLE_S, there)
        self._epochs: dict[str, Epoch] = {}
        self._writers: dict[str, dict[str, str]] = {}
        """call -> epoch -> the node that wrote its record first"""
        self._disagree: dict[str, float] = {}
        """finding -> since when"""

    @property
    def picture(self) -> Picture:
        """What the store holds now of agents and queues."""
        return self.history.picture

    def begin(self, items: Mapping[str, bytes]) -> None:
        """What is there before the first commit."""
        self.history.begin(items)
        for key, data in items.items():
            self._call(key, data)

    def commit(self, changes: Mapping[str, bytes | None], utc: float) -> None:
        """One revision of the store: key -> value, None when deleted."""
        intents = {name: agent.intent for name, agent in self.picture.agents.items()}
        places = {call: entry.entered for call, entry in self.picture.entries.items()}
        self.history.commit(changes, utc)
        for text in self.history.found:
            self.problem("queue and agents' history", text)
        self.history.found.clear()
        for name, agent in self.picture.agents.items():
            if agent.intent != intents.get(name, agent.intent) and not self.asked(agent):
                text = f"{name} became {agent.intent} ({agent.reason}), by {agent.by}"
                self.problem("agents keep their state", text)
        for call, entry in self.picture.entries.items():
            if entry.entered > places.get(call, entry.entered):
                self.problem("places are kept", f"{call} waits since {entry.entered}, was {places[call]}")
        for key, data in changes.items():
            self._call(key, data)

    def _call(self, key: str, data: bytes | None) -> None:
        match self.keys.split(key), data:
            case ("calls", call, "owner"), None:
                self._epochs.pop(call, None)
                self._writers.pop(call, None)
            case ("calls", call, "owner"), bytes(there):
                epoch = Epoch.parse(decode(there, OwnerValue, key).epoch)
                if epoch < self._epochs.get(call, NO_EPOCH):
                    self.problem("epochs only grow", f"{call}: {self._epochs[call]} then {epoch}")
                self._epochs[call] = epoch
            case ("calls", call, "record"), bytes(there):
                record = decode(there, RecordValue, key)
                first = self._writers.setdefault(call, {}).setdefault(record.epoch, record.node)
                if record.node != first:
                    text = f"{first} and {record.node} write the record of {call} under {record.epoch}"
                    self.problem("one owner", text)

    def look(self, now_s: float) -> None:
        """Time passed: agents and places agree, but for a moment, while what was done without etcd is
        being merged."""
        self._disagree = {text: self._disagree.get(text, now_s) for text in check_store(self.picture)}
        for text, since in self._disagree.items():
            if now_s - since > DISAGREE_MAX_S:
                self.problem("agents and places agree", text)
