"""Emptying a node on purpose: an operator's key says which, the edge moves its calls at a
bounded rate, make before break, and gives it no new ones while the key is there.

The wish is only in etcd, so an edge process killed in the middle goes on where it was,
and every edge acts on its own calls.

Nobody is moved on purpose while etcd takes no writes, while the app of his node knows something of him that
etcd has not confirmed, or while the media relay is away: what the app knows would be lost on the way, because
his next node goes by the record, and nobody could listen for that node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ari_ha.core.ports.store import KeyValue
from ari_ha.machines.edge_calls import Calls
from ari_ha.machines.edge_context import EdgeContext
from ari_ha.machines.edge_model import EdgeCall
from ari_ha.machines.node_watch import NodeWatch
from ari_ha.machines.takeover import Takeover
from ari_ha.wire import link
from ari_ha.wire.keyspace import BadValue, DrainValue, decode

DRAIN = "drained"
ASKED = "asked for by an operator"
RATE_MAX_PER_S = 100.0
RATE_MIN_PER_S = 0.1
LOOK_EVERY_S = 0.25
"""While calls are left that cannot be moved yet: their nodes have only just got them, or the hour is bad."""
AT_ONCE = 2
"""Calls on their way at a time. A move is work for two Asterisks, this edge, its relay and etcd; where they
have no processor to spare, more of it at once is heard by everybody as a hole. So hosts that are slow empty a
node more slowly than the rate allows."""
ON_THEIR_WAY_S = 0.02
"""Until it is looked again whether one of them has arrived."""
NOT_WAITED_FOR_S = 1.0
"""Whatever is on its way for longer keeps the others from going no more: its next node may not take it up."""


class Drains:
    """The drains there are, and their pace."""

    def __init__(self, context: EdgeContext, calls: Calls, watch: NodeWatch, takeover: Takeover) -> None:
        self._context = context
        self._calls = calls
        self._watch = watch
        self._takeover = takeover
        self._asked: dict[str, DrainValue] = {}
        self._begun: set[str] = set()
        self._held: set[str] = set()
        """Drains of which it has been said that they wait"""
        self._serving = False

    # --- what is asked -------------------------------------------------------------

    def begin_snapshot(self, family: str, items: Mapping[str, KeyValue]) -> None:
        """All of ``drains/`` follows: what is not in it is called off."""
        for name in list(self._asked) if family == "drains" else ():
            if self._context.keys.drain(name) not in items:
                self._call_off(name)

    def stored(self, key: str, item: KeyValue | None) -> None:
        """A drain was asked for, changed, or called off (the key is gone)."""
        parts = self._context.keys.split(key)
        if len(parts) != 2 or parts[0] != "drains":
            return
        name = parts[1]
        if item is None:
            self._call_off(name)
            return
        try:
            value = decode(item.value, DrainValue, key)
        except BadValue as error:
            self._context.note(f"node/{name}", "a drain cannot be read: only cordoned", level="error",
                               error=error)  # fmt: skip
            value = DrainValue(node=name, when="idle")
        self._asked[name] = value
        self._mark(name, True)
        self._next(name)

    def _call_off(self, name: str) -> None:
        if self._asked.pop(name, None) is None:
            return
        self._begun.discard(name)
        self._held.discard(name)
        self._mark(name, False)
        self._context.cancel(f"drain/{name}")
        self._takeover.stay(name, DRAIN)
        self._takeover.pump()

    def _mark(self, name: str, draining: bool) -> None:
        node = self._watch.nodes.get(name)
        if node and node.draining != draining:
            node.draining = draining
            text = "to be empty: no new calls" if draining else "takes calls again"
            self._context.note(f"node/{name}", text)

    def start(self) -> None:
        """Every call is known now: moving may begin, or go on."""
        self._serving = True
        for name in list(self._asked):
            self._next(name)

    # --- moving --------------------------------------------------------------------

    def _next(self, name: str) -> None:
        """One call of the node leaves; then the next, as fast as the rate allows."""
        context, drain = self._context, self._asked.get(name)
        if drain is None or not self._serving or drain.when != "now":
            context.cancel(f"drain/{name}")
            return
        wait_s = drain.move_at - context.utc if context.utc else 0.0
        if wait_s > 0:
            context.at(f"drain/{name}", context.now + wait_s, lambda: self._next(name))
            return
        if self._takeover.moving_since(context.now - NOT_WAITED_FOR_S, DRAIN) >= AT_ONCE:
            context.at(f"drain/{name}", context.now + ON_THEIR_WAY_S, lambda: self._next(name))
            return
        reasons = [(c, self._not_now(c)) for c in self._calls.of_node(name) if self._movable(c)]
        movable = [call for call, why in reasons if not why]
        if reasons and not movable:
            self._say_held(name, reasons[0][1])
        elif movable:
            self._held.discard(name)
            if name not in self._begun:
                self._begun.add(name)
                context.note(f"node/{name}", f"{len(movable)} calls move away")
            self._takeover.move(movable[0], DRAIN)
        rate = min(max(drain.rate_per_s, RATE_MIN_PER_S), RATE_MAX_PER_S)
        pause_s = 1.0 / rate if movable else LOOK_EVERY_S
        context.at(f"drain/{name}", context.now + pause_s, lambda: self._next(name))

    def _not_now(self, call: EdgeCall) -> str:
        """Why the call is not moved on purpose at the moment; empty: nothing is in the way."""
        if not self._context.store_ok:
            return "etcd takes no writes"
        node = self._watch.nodes.get(call.owner.name) if call.owner else None
        if node is not None and (node.store_away or call.call in node.unwritten):
            return "etcd has not confirmed what its node knows"
        return "" if self._context.media_ok else "the media relay is away"

    def _say_held(self, name: str, why: str) -> None:
        if name not in self._held:
            self._held.add(name)
            self._context.note(f"node/{name}", "its calls stay for now", level="warning", why=why)

    def _movable(self, call: EdgeCall) -> bool:
        """Its node serves it, it is not on its way already, and its node has answered the caller or called
        somebody for him: before that his INVITE is still open there, and what becomes of it is waited for."""
        leg = call.primary
        waits = call.move is not None or bool(call.lost) or self._takeover.waits(call.call)
        apart = call.ended or call.by_dialplan
        return leg is not None and leg.state != "trying" and not apart and not waits

    def wanted(self, node: str, frame: link.MoveWanted) -> None:
        """A node asks for its call to be moved, and asks again where that is not possible now."""
        call = self._calls.by_id.get(frame.call)
        if call is None or call.owner is None or (call.owner.name, str(call.epoch)) != (node, frame.epoch):
            return
        others = {other.config.name for other in self._watch.taking() if not other.store_away} - {node}
        if others and self._movable(call) and not self._not_now(call):
            self._takeover.move(call, frame.reason)

    def takeover(self, ident: str, to: str) -> tuple[int, Any]:
        """One call is moved now, to ``to`` or to the least loaded node."""
        call = self._calls.by_id.get(ident)
        if call is None:
            return 404, {"error": "no such call at this edge"}
        if not self._movable(call):
            return 409, {
                "error": "it is on its way already, or its node has neither answered it nor called anybody"
            }
        if why := self._not_now(call):
            return 409, {"error": f"{why}: it is not moved on purpose meanwhile"}
        own = call.owner.name if call.owner else ""
        taking = {node.config.name for node in self._watch.taking()} - {own}
        if not taking or (to and to not in taking):
            others = ", ".join(sorted(taking)) or "none"
            return 409, {"error": f"{to or 'no other node'} takes no calls now; these do: {others}"}
        self._takeover.move(call, ASKED, to)
        return 202, {"call": ident, "from": own, "to": call.move.to.name if call.move else to}
