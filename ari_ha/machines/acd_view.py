"""What one node knows of the store: mirrors, our own writes, and what is not yet written.

A value here is always something the store has confirmed (a snapshot, a watched
change, the answer to a transaction or a read) except for *dirty* keys: those
were changed while the store was away and wait to be merged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ari_ha.core.ids import NodeId
from ari_ha.core.ports.store import KeyValue, StoreChanged, StoreSnapshot
from ari_ha.wire.keyspace import (
    AgentValue,
    BadValue,
    BindingValue,
    Keys,
    NodeValue,
    OwnerValue,
    QueueConfigValue,
    ReachValue,
    UserValue,
    Value,
    WaitingValue,
    decode,
)
from ari_ha.wire.outbox import QueueLine

FAMILIES = ("nodes", "agents", "queues", "bindings", "users", "calls")

_TYPES: dict[str, type[Value]] = {
    "node": NodeValue,
    "agent": AgentValue,
    "reach": ReachValue,
    "queue": QueueConfigValue,
    "waiting": WaitingValue,
    "binding": BindingValue,
    "user": UserValue,
    "owner": OwnerValue,
    "record": Value,
}
_KEEP_RAW = frozenset({"agent", "reach", "waiting"})
GONE = float("-inf")
"""Stands for the expiry of a binding whose phone answers nothing."""


class Stored(NamedTuple):
    """A confirmed value; ``raw`` only where we write the key too."""

    value: Any
    raw: bytes
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Dirty:
    """A value the store does not have yet; ``base`` is what it was made from."""

    base: Any
    value: Any
    lines: tuple[tuple[int, QueueLine], ...] = ()
    """What the queue log would have been told on the way, numbered in the order of it all"""
    had: frozenset[str] = frozenset()
    """The attempts an agent has had on the way, whatever became of them"""

    def then(self, value: Any) -> Dirty:
        """The same, and ``value`` after it."""
        part = value.attempt if isinstance(value, AgentValue) else None
        had = self.had | {part.attempt} if part is not None else self.had
        return replace(self, value=value, had=had)


class View:
    """The mirrors. Reads answer dirty values first."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.dirty: dict[str, Dirty] = {}
        self.bad: dict[str, str] = {}
        self._tables: dict[str, dict[str, Stored]] = {kind: {} for kind in _TYPES}
        self._floors: dict[str, dict[str, int]] = {family: {} for family in FAMILIES}
        self._seen: set[str] = set()
        self._bindings: dict[str, dict[str, float]] = {}
        self._places: dict[str, str] = {}

    # --- learning ----------------------------------------------------------------------

    def snapshot(self, event: StoreSnapshot) -> list[str]:
        """Takes a snapshot; returns the keys that changed."""
        changed = []
        for family in FAMILIES:
            prefix = self.keys.prefix(family)
            if prefix.startswith(event.prefix):
                self._seen.add(family)
        stale = [key for key in self._known(event.prefix) if key not in event.items]
        for key in stale:
            if self._take(key, None, event.revision):
                changed.append(key)
        for key, kv in event.items.items():
            if self._take(key, kv, max(kv.mod_revision, event.revision)):
                changed.append(key)
        return changed

    def changed(self, event: StoreChanged) -> bool:
        """Takes a watched change; False when it says nothing new."""
        fresh = self._take(event.key, event.value, event.revision)
        floors = self._floors.get(self._family(event.key))
        if floors:
            for key in [key for key, floor in floors.items() if floor <= event.revision]:
                del floors[key]
        return fresh

    def learn(self, key: str, kv: KeyValue | None, revision: int) -> bool:
        """Takes what an answer of the store said about ``key`` as of ``revision``; the
        watch may still be behind, its older changes are ignored from now on."""
        fresh = self._take(key, kv, revision)
        family = self._family(key)
        if family in self._floors:
            floor = kv.mod_revision if kv is not None else revision
            self._floors[family][key] = max(floor, self._floors[family].get(key, 0))
        return fresh

    def _take(self, key: str, kv: KeyValue | None, revision: int) -> bool:
        kind, ident = self._place(key)
        if not kind:
            return False
        if revision < self._floors[self._family(key)].get(key, 0):
            return False
        table = self._tables[kind]
        old = table.get(ident)
        if kv is None:
            if old is None or old.mod_revision > revision:
                return False
            del table[ident]
            self._unindex(kind, ident)
            return True
        if old is not None and old.mod_revision >= kv.mod_revision:
            return False
        try:
            value = None if kind == "record" else decode(kv.value, _TYPES[kind], key)
        except BadValue as error:
            self.bad[key] = str(error)
            table.pop(ident, None)
            self._unindex(kind, ident)
            return True
        self.bad.pop(key, None)
        table[ident] = Stored(value, kv.value if kind in _KEEP_RAW else b"", kv.mod_revision)
        self._index(kind, ident, key, value)
        return True

    def _index(self, kind: str, ident: str, key: str, value: Any) -> None:
        if kind == "binding":
            aor, _, contact = ident.rpartition("/")
            self._bindings.setdefault(aor, {})[contact] = GONE if value.unreachable else value.expires
        elif kind == "waiting":
            self._places[value.call] = key

    def _unindex(self, kind: str, ident: str) -> None:
        head, _, tail = ident.rpartition("/")
        if kind == "binding":
            self._bindings.get(head, {}).pop(tail, None)
            if not self._bindings.get(head, True):
                del self._bindings[head]
        elif kind == "waiting" and self._places.get(tail) == self.keys.waiting(head, tail):
            del self._places[tail]

    def _family(self, key: str) -> str:
        parts = self.keys.split(key)
        return parts[0] if parts else ""

    def _place(self, key: str) -> tuple[str, str]:
        match self.keys.split(key):
            case ("nodes", name):
                return "node", name
            case ("agents", name):
                return "agent", name
            case ("agents", name, "reach"):
                return "reach", name
            case ("queues", name, "config"):
                return "queue", name
            case ("queues", name, "waiting", call):
                return "waiting", f"{name}/{call}"
            case ("bindings", aor, contact):
                return "binding", f"{aor}/{contact}"
            case ("users", name):
                return "user", name
            case ("calls", call, "owner" | "record" as what):
                return what, call
        return "", ""

    def _known(self, prefix: str) -> list[str]:
        keys = self.keys
        found = [keys.node(i) for i in self._tables["node"]] + [keys.agent(i) for i in self._tables["agent"]]
        found += [keys.reach(i) for i in self._tables["reach"]]
        found += [keys.queue_config(i) for i in self._tables["queue"]]
        found += [keys.waiting(*i.rsplit("/", 1)) for i in self._tables["waiting"]]
        found += [keys.binding(*i.rsplit("/", 1)) for i in self._tables["binding"]]
        found += [keys.user(i) for i in self._tables["user"]]
        found += [keys.owner(i) for i in self._tables["owner"]]
        found += [keys.record(i) for i in self._tables["record"]]
        return [key for key in found if key.startswith(prefix)]

    # --- reading -----------------------------------------------------------------------

    def seen(self, *families: str) -> bool:
        """Whether a snapshot of each of ``families`` has come."""
        return all(family in self._seen for family in families)

    def stored(self, key: str) -> Stored | None:
        """What the store has under ``key``, as far as we know."""
        kind, ident = self._place(key)
        return self._tables[kind].get(ident) if kind else None

    def value(self, key: str) -> Any:
        """The value of ``key``: dirty, else confirmed, else None."""
        if key in self.dirty:
            return self.dirty[key].value
        stored = self.stored(key)
        return stored.value if stored is not None else None

    def revision(self, key: str) -> int:
        """The mod_revision of ``key``, 0 when it does not exist."""
        stored = self.stored(key)
        return stored.mod_revision if stored is not None else 0

    def agent(self, name: str) -> AgentValue | None:
        return self.value(self.keys.agent(name))

    def agents(self) -> Iterator[tuple[str, AgentValue]]:
        """Every agent, dirty values first."""
        if not self.dirty:
            for name, stored in self._tables["agent"].items():
                yield name, stored.value
            return
        for name in list(self._tables["agent"]):
            value = self.agent(name)
            if value is not None:
                yield name, value

    def agents_of(self, call: str) -> list[tuple[str, AgentValue]]:
        """Agents busy with ``call`` (wrap-up is not)."""
        return [
            (name, agent)
            for name, agent in self.agents()
            if agent.attempt is not None and agent.attempt.call == call and agent.work not in ("idle", "acw")
        ]

    def entry(self, call: str) -> WaitingValue | None:
        """The place of ``call``, in whichever queue."""
        key = self.entry_key(call)
        return self.value(key) if key else None

    def entry_key(self, call: str) -> str:
        for key, dirty in self.dirty.items():
            if isinstance(dirty.value, WaitingValue) and dirty.value.call == call:
                return key
        return self._places.get(call, "")

    def entries(self) -> Iterator[WaitingValue]:
        """Every waiting entry."""
        for stored in self._tables["waiting"].values():
            key = self.keys.waiting(stored.value.queue, stored.value.call)
            if key not in self.dirty:
                yield stored.value
        for dirty in self.dirty.values():
            if isinstance(dirty.value, WaitingValue):
                yield dirty.value

    def queue(self, name: str) -> QueueConfigValue | None:
        return self.value(self.keys.queue_config(name))

    def owner(self, call: str) -> OwnerValue | None:
        return self.value(self.keys.owner(call))

    def call_exists(self, call: str) -> bool:
        """Whether anything of the call is in the store."""
        return call in self._tables["owner"] or call in self._tables["record"]

    def user(self, name: str) -> UserValue | None:
        return self.value(self.keys.user(name))

    def reach(self, agent: str) -> ReachValue | None:
        return self.value(self.keys.reach(agent))

    def nodes(self) -> Mapping[str, NodeValue]:
        return {name: stored.value for name, stored in self._tables["node"].items()}

    def node_alive(self, text: str) -> bool:
        """Whether this life (``name#incarnation``) of a node is registered."""
        ident = NodeId.parse(text)
        stored = self._tables["node"].get(ident.name)
        return stored is not None and ident.incarnation in ("", stored.value.incarnation)

    def node_ready(self, text: str) -> bool:
        """Whether it is registered and takes calls."""
        return self.node_alive(text) and self._tables["node"][NodeId.parse(text).name].value.ready

    def device_ok(self, aor: str, utc: float, grace_s: float) -> bool:
        """Whether ``aor`` has a binding that has not expired (0: never does) and answers."""
        expiries = self._bindings.get(aor, {}).values()
        return any(expires == 0.0 or expires + grace_s > utc for expires in expiries)

    def device_users(self, aor: str) -> list[str]:
        """Agents logged in at ``aor``, the earliest first."""
        found = [(a.logged_in, name) for name, a in self.agents() if a.device == aor and aor]
        return [name for _, name in sorted(found)]
