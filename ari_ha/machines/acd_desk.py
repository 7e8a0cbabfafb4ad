"""What all parts of the ACD share: the view, the clocks, the way out."""

from __future__ import annotations

from collections.abc import Callable
from zlib import crc32

from ari_ha.core.ids import NodeId
from ari_ha.core.machine import Count, Effect, Note
from ari_ha.machines.acd_orders import AcdSettings, Order
from ari_ha.machines.acd_view import View
from ari_ha.wire.keyspace import AgentValue, Keys, QueueConfigValue


class Desk:
    """State shared by the parts; `begin` sets the clocks of the current event."""

    def __init__(
        self,
        keys: Keys,
        me: NodeId,
        new_id: Callable[[], str],
        rand: Callable[[], float],
        settings: AcdSettings,
    ) -> None:
        self.keys = keys
        self.me = me
        self.new_id = new_id
        self.rand = rand
        self.settings = settings
        self.view = View(keys)
        self.orders: list[Order] = []
        self.effects: list[Effect] = []
        self.now = 0.0
        self.utc = 0.0
        self.live = False
        """Whether the current event is a change as it happened: what was written was written just now"""
        self.away = False
        self.away_utc = 0.0
        self.back_at: float | None = None
        """When the store came back (monotonic); None: it has always been there."""
        self.match_wanted = True
        self.changed: set[str] = set()
        """Keys to look at before this event is over."""
        self._offset: float | None = None
        self._stepped_at: float | None = None
        self._life = ""

    def begin(self, now: float, utc: float) -> None:
        """A new event; notices a step of the wall clock."""
        offset = utc - now
        if self._offset is not None and abs(offset - self._offset) > self.settings.clock_step_s:
            self._stepped_at = now
            self.note("acd", "the wall clock stepped", by_s=f"{offset - self._offset:+.3f}")
        self._offset = offset
        self.now, self.utc, self.live = now, utc, False

    @property
    def clock_trusted(self) -> bool:
        """Whether deadlines of others may be fired here."""
        return self._stepped_at is None or self.now - self._stepped_at >= self.settings.clock_hold_s

    def went_away(self) -> None:
        """The store is away from now on."""
        self.away_utc, self.away = self.binding_utc, True

    @property
    def binding_utc(self) -> float:
        """The time bindings are judged by: nobody can renew one while the store is
        away, so that time does not count."""
        if self.away:
            return self.away_utc
        if self.back_at is not None and self.now - self.back_at < self.settings.binding_return_grace_s:
            return self.away_utc
        return self.utc

    def device_ok(self, aor: str) -> bool:
        return self.view.device_ok(aor, self.binding_utc, self.settings.binding_grace_s)

    def is_me(self, text: str) -> bool:
        """Whether ``name#incarnation`` is this life of this node."""
        ident = NodeId.parse(text)
        return ident.name == self.me.name and ident.incarnation in ("", self.me.incarnation)

    def serves(self, agent: AgentValue) -> str:
        """The node that serves the agent's call: its owner key, else who began it."""
        if agent.attempt is None:
            return ""
        owner = self.view.owner(agent.attempt.call)
        return owner.node if owner is not None else agent.attempt.node

    def first_of_nodes(self, what: str) -> bool:
        """Whether this node is the one that should act first on ``what`` (the highest
        random weight among the registered nodes); the others do after a grace."""
        names = set(self.view.nodes()) | {self.me.name}
        return max(names, key=lambda name: (crc32(f"{name}|{what}".encode()), name)) == self.me.name

    def queue(self, name: str) -> QueueConfigValue:
        """The queue's configuration; defaults when it has none."""
        return self.view.queue(name) or QueueConfigValue(queue=name)

    def log_key(self, what: str) -> str:
        """A key in the queue log's outbox that nobody has used: not another node, nor an
        earlier life of this process, which numbered its writes from one too."""
        self._life = self._life or self.new_id()
        return self.keys.queue_log(f"{self.me.name}.{self._life}.{what}")

    def order(self, order: Order) -> None:
        self.orders.append(order)

    def note(self, subject: str, text: str, **facts: str) -> None:
        self.effects.append(Note(subject=subject, text=text, facts=tuple(facts.items())))

    def count(self, name: str, by: float = 1, **labels: str) -> None:
        self.effects.append(Count(name=name, by=by, labels=tuple(labels.items())))
