"""Whether this edge process is the active one of its pair, and by which revision.

With a guard on the host the guard decides, and says so twice: in etcd, and by a word on
the loopback that needs no stream of etcd to arrive. Without one (a single edge) the
process itself writes its name at the address.
"""

from __future__ import annotations

from collections.abc import Callable

from ari_ha.core.machine import Done, Outcome
from ari_ha.core.ports.guard import StandDown, TellGuard
from ari_ha.core.ports.store import Compare, KeyValue, Put, TxnResult
from ari_ha.machines.edge_context import EdgeContext
from ari_ha.machines.edge_pairs import hop_address
from ari_ha.wire.beat import EdgeWord, RoleWord
from ari_ha.wire.keyspace import BadValue, EdgeValue, VipValue, decode, encode

VIP_RETRY_S = 0.3
GUARD_WORD_EVERY_S = 0.2
STREAM_WAIT_S = 0.3
FEATURES = ("drain",)
"""What this edge can do that older ones could not; used once every member announces it."""


class Role:
    """The edge's role. ``taken`` runs when `EdgeContext.edge_revision` has a new value."""

    def __init__(self, context: EdgeContext, taken: Callable[[], None]) -> None:
        self._context = context
        self._taken = taken
        self._asked = False
        self._holder = ("", 0)
        self._edges: set[str] = set()
        """Edges whose leased key is in etcd"""
        self._seen: set[str] = set()
        self._told_standby = False
        self._promised = 0
        """The revision the guard has told us of"""
        self.down = False
        """Another edge is active: nothing is said any more, this life of the process ends."""

    def announce(self) -> None:
        """Writes our leased key: who we are, and that we live."""
        config, keys = self._context.config, self._context.keys
        value = EdgeValue(
            edge=config.edge,
            vip=config.vip,
            sip=f"{config.core_host}:{config.trunk_port}",
            public=f"{config.public_host}:{config.public_port}",
            http=config.http,
            version=config.version,
            process=config.process,
            features=list(FEATURES),
            hop=hop_address(config),
        )
        self._context.txn("edge", puts=(Put(keys.edge(config.edge), encode(value), leased=True),))

    def take(self) -> None:
        """Writes our name at the address: its revision is the first half of our epochs,
        and every later write of ours compares it. Taken only when it is nobody's, was
        ours (we are restarted), or its edge's own leased key is gone."""
        context, config = self._context, self._context.config
        if context.edge_revision or config.guarded:
            return
        # armed whatever becomes of this try: its answer may be lost
        context.at("vip", context.now + VIP_RETRY_S, self.take)
        if self._asked or not context.utc or "vips" not in self._seen or "edges" not in self._seen:
            return
        holder, revision = self._holder
        if holder not in ("", config.edge) and holder in self._edges:
            if not self._told_standby:
                self._told_standby = True
                context.note("edge", "standing by: another edge is active", vip=config.vip, active=holder)
            return
        self._asked = True
        key = context.keys.vip(config.vip)
        value = VipValue(edge=config.edge, since=context.utc, process=config.process)

        def taken(outcome: Outcome) -> None:
            self._asked = False
            if isinstance(outcome, Done) and isinstance(outcome.value, TxnResult) and outcome.value.succeeded:
                context.cancel("vip")
                context.edge_revision = outcome.value.revision
                context.note("edge", "active", vip=config.vip, revision=context.edge_revision)
                self._taken()

        context.txn("vip", taken, compares=(Compare(key, revision),), puts=(Put(key, encode(value)),))

    def begin_snapshot(self, family: str) -> None:
        """All keys of a family follow."""
        self._seen.add(family)
        if family == "edges":
            self._edges.clear()

    def stored(self, key: str, item: KeyValue | None) -> None:
        """Who holds our address, and which edges live."""
        config, process = self._context.config, ""
        parts = self._context.keys.split(key)
        if parts[:1] == ("edges",):
            (self._edges.add if item else self._edges.discard)(parts[1])
        elif key == self._context.keys.vip(self._context.config.vip):
            try:
                value = decode(item.value, VipValue, key) if item else VipValue(edge="", since=0.0)
                holder, process = value.edge, value.process
            except BadValue:
                holder = ""
            self._holder = (holder, item.mod_revision if item else 0)
            ours = holder == config.edge and process == config.process
            if item and config.guarded and ours:
                self._serve_by(item.mod_revision)
            elif item and 0 < self._context.edge_revision < item.mod_revision:
                self._context.note("edge", "another edge took our address", level="error", by=holder)
                self._context.count("edge_replaced")
                if config.guarded:
                    self._stand_down(f"etcd names {holder}")

    # --- the guard -----------------------------------------------------------------

    def tell_guard(self, warm: bool) -> None:
        """We are alive, and what we serve by."""
        config = self._context.config
        revision = self._context.edge_revision
        word = EdgeWord(edge=config.edge, process=config.process, warm=warm, revision=revision)
        self._context.emit(TellGuard(word=word))

    def guard_word(self, word: object) -> None:
        """The guard says by which revision we serve. etcd's stream says it too, behind
        the last writes of the edge before us; it is waited for, but not for long: the
        member it comes from may have died with that edge."""
        context, config = self._context, self._context.config
        if not config.guarded or not isinstance(word, RoleWord) or word.process != config.process:
            return
        if word.revision and context.edge_revision:
            self._serve_by(word.revision)
        elif word.revision and word.revision != self._promised:
            self._promised = word.revision
            context.at("role", context.now + STREAM_WAIT_S, lambda: self._serve_by(word.revision))
        elif not word.revision and context.edge_revision and word.after >= context.edge_revision:
            self._stand_down("the guard has given the address up")

    def _serve_by(self, revision: int) -> None:
        """We are active by this revision of the address's key; perhaps we were already,
        by an older one."""
        context = self._context
        if revision > context.edge_revision:
            context.cancel("role")
            context.edge_revision = revision
            context.note("edge", "active", vip=context.config.vip, revision=revision)
            self._taken()

    def _stand_down(self, why: str) -> None:
        """The address is another's: not a word more of ours may reach anybody."""
        self._context.take_effects()
        self.down = True
        self._context.note("edge", "stands down", level="warning", why=why)
        self._context.emit(StandDown(why=why))
