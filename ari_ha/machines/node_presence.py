"""``nodes/<node>``: the node's leased word about itself."""

from __future__ import annotations

from ari_ha.core.machine import Done, Outcome
from ari_ha.core.ports.store import KeyValue, LeaseState, Put, StoreChanged, StoreSnapshot
from ari_ha.machines.node_core import NodeCore
from ari_ha.machines.node_links import Links
from ari_ha.machines.node_maintenance import Maintenance
from ari_ha.wire.keyspace import BadValue, NodeValue, decode, encode

RETRY_S = 1.0
CALLS_EVERY_S = 2.0
"""A change of nothing but the number of calls, or of what Asterisk says to a cordon, is
written this often at most."""


class Presence:
    """Writes the key whenever it would say something new, and whenever it is not there
    although the lease is held."""

    def __init__(self, core: NodeCore, links: Links, maintenance: Maintenance) -> None:
        self._core = core
        self._context = core.context
        self._links = links
        self._maintenance = maintenance
        self._held = False
        self._written: bytes = b""
        self._written_at = 0.0
        self._busy = False
        self._said: tuple[object, ...] = ()
        self._unwritten: tuple[bool, frozenset[str]] = (False, frozenset())
        self._mine = core.context.keys.node(core.config.node)
        self._first = True
        self._drains_seen = False

    @property
    def wish_known(self) -> bool:
        """Whether etcd has said since our start if this node is cordoned or drained."""
        return self._drains_seen and not self._first

    def lease(self, event: LeaseState) -> None:
        """The lease was got, renewed, or lost."""
        if self._held and not event.held:
            self._written = b""
        self._held = event.held
        if not event.held:
            self._written = b""

    def store(self, event: StoreSnapshot | StoreChanged) -> None:
        """Our own key, as the store has it: after a quick restart it still says whether
        we were cordoned; when somebody removed it, it is written again."""
        drain = self._context.keys.drain(self._core.config.node)
        if isinstance(event, StoreChanged):
            if event.key == drain:
                self._core.draining = event.value is not None
            if event.key == self._mine and event.value is None:
                self._written = b""
            return
        if self._context.keys.prefix("drains").startswith(event.prefix):
            self._core.draining, self._drains_seen = drain in event.items, True
        if self._context.keys.prefix("nodes").startswith(event.prefix):
            found = event.items.get(self._mine)
            if found is None:
                self._written = b""
            elif self._first:
                self._read(found)
            self._first = False

    def _read(self, kv: KeyValue) -> None:
        try:
            self._core.cordoned = decode(kv.value, NodeValue, kv.key).cordoned
        except BadValue as error:
            self._context.note("node", "our own key cannot be read", level="warning", error=error)

    def value(self) -> NodeValue:
        """What we say of ourselves."""
        config, context = self._core.config, self._context
        return NodeValue(
            node=config.node, incarnation=context.ari_state.incarnation, sip=config.sip, link=config.link,
            http=config.http, version=config.version, ready=self._links.ready, reason=self._links.reason,
            cordoned=self._core.cordoned, maintenance=self._maintenance.word, calls=len(self._core.calls),
            features=self._links.features, capacity_calls=config.capacity_calls,
        )  # fmt: skip

    def update(self) -> None:
        """Called at the end of every event: tells edges and the store what changed."""
        value = self.value()
        core = self._core
        unwritten = (self._links.store_away, frozenset(core.records.late))
        said = (value.ready, value.reason, core.cordoned, core.draining, core.refusing, value.incarnation)
        if said == self._said and unwritten != self._unwritten:
            self._links.state_to()
        self._unwritten = unwritten
        if said != self._said:
            self._said = said
            self._links.state_to()
            self._context.note(
                "node",
                "ready" if value.ready else "not ready",
                reason=value.reason,
                cordoned=value.cordoned,
                draining=self._core.draining,
            )
            self._written_at = 0.0
        data = encode(value)
        if not self._held or self._busy or data == self._written or not self._context.store_ok:
            return
        due = self._written_at + CALLS_EVERY_S
        if self._written and self._written_at and self._context.now < due:
            if not self._context.armed("presence"):
                self._context.at("presence", due, lambda: None)
            return
        self._write(data)

    def _write(self, data: bytes) -> None:
        self._busy = True

        def written(outcome: Outcome) -> None:
            self._busy = False
            if isinstance(outcome, Done):
                self._written, self._written_at = data, self._context.now
            else:
                self._busy = True
                self._context.after("presence-retry", RETRY_S, self._again)

        self._context.txn("presence", written, puts=(Put(self._mine, data, leased=True),))

    def _again(self) -> None:
        self._busy = False
