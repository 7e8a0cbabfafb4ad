"""Moving calls from one node to another: because theirs is lost, or on purpose.

For every living leg a survivor is INVITEd with the edge's facts; when its app
says `Bridged`, the media is moved to it and the old dialogs become orphans.
Callers who hear silence go first; people who talk hitless lose nothing and go
last. The edge decides and acts at once; etcd is told in parallel.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from ari_ha.core.ids import PRIMARY_LEG, Epoch
from ari_ha.machines.edge_calls import Calls
from ari_ha.machines.edge_context import EdgeContext
from ari_ha.machines.edge_handover import Handover
from ari_ha.machines.edge_model import MOVES_KEPT_MAX, EdgeCall, Move, NodeLeg
from ari_ha.machines.edge_setup import Setup
from ari_ha.machines.edge_transfer import asked_frames
from ari_ha.machines.media import DIRECT, HITLESS
from ari_ha.machines.node_watch import WatchedNode
from ari_ha.wire import link

BYES_OF_A_STOP = 3
"""Calls with an unannounced BYE within the grace: one app decision ends one call's legs."""
SAID_TOGETHER_S = 0.02
"""What the next node says in one breath, as both ends of a transfer, is heard before a move begins anew:
under the epoch after that it would be a stale word."""
MOVED_KEPT_MAX = 4_000
"""Calls remembered per node that left it; the oldest are forgotten first."""


class Takeover:
    """Queues and carries out moves; at most a named number together."""

    def __init__(self, context: EdgeContext, calls: Calls, setup: Setup) -> None:
        self._context = context
        self._calls = calls
        self._setup = setup
        self._handover = Handover(context, calls)
        self._waiting: dict[str, str] = {}
        """call -> why, in no order: the order is decided when a place is free"""
        self._moving: set[str] = set()
        self._not_before = 0.0
        self._byes: dict[str, dict[str, float]] = {}
        """node -> calls whose legs it ended just now, unannounced"""
        self._moved: dict[str, dict[str, tuple[Epoch, str, float]]] = {}
        """node name -> call -> where it went: told to the node when it is back"""
        self.on_served: Callable[[EdgeCall], None] = lambda call: None
        """The call has another home"""
        calls.on_facts_changed_in_move = self._again
        calls.on_finished = self._finished

    # --- loss ----------------------------------------------------------------------

    def node_lost(self, node: WatchedNode, why: str) -> None:
        """Every call of the node needs a new home."""
        calls = self._calls.of_node(node.config.name)
        cut_off = any(call.two_talking() and call.media.state not in (HITLESS, DIRECT) for call in calls)
        for call in calls:
            self._mark_lost(call, why)
        movers = [c for c in self._calls.by_id.values() if c.move and c.move.to.name == node.config.name]
        for call in movers:
            self._retry(call, "survivor lost")
        if calls or movers:
            self._context.note(
                f"node/{node.config.name}", f"{len(calls)} calls to take over", level="warning", why=why
            )
        if cut_off:
            # People who hear silence wait for rtpengine: nothing else may compete with its commands.
            self._not_before = self._context.now + self._context.timings.direct_first_s
            name = f"moves/{node.config.name}"
            self._context.at(name, self._not_before, lambda: self._move_lost(calls))
        else:
            self._move_lost(calls)

    def _move_lost(self, calls: list[EdgeCall]) -> None:
        for call in calls:
            self._calls.touch(call)
        self.pump()

    def lose(self, call: EdgeCall, why: str) -> None:
        """This call's node does not serve it any more."""
        self._mark_lost(call, why)
        self._calls.touch(call)

    def _mark_lost(self, call: EdgeCall, why: str) -> None:
        """Two people talking through Asterisk are connected directly at once."""
        leg = call.primary
        if call.ended or leg is None:
            return
        if call.fresh and call.move is None:
            self._start_afresh(call, why)
            return
        if not call.lost:
            call.lost, call.lost_at = why, self._context.now
            self._context.count("edge_calls_lost_node")
        self._calls.apply_media(call)
        if call.move is None:
            self._waiting.setdefault(call.call, why)
        else:
            self._handover.hasten(call)

    def _start_afresh(self, call: EdgeCall, why: str) -> None:
        """A caller not yet answered: another node gets the same INVITE; the caller
        only keeps hearing ringing."""
        self._context.note(f"call/{call.call}", "unanswered at a lost node: asked anew", why=why)
        for half in list(call.halves.values()):
            self._leave(call, half)
        call.halves.clear()
        call.tries = 0
        call.refused_by.clear()
        self._setup.choose_node(call)

    def half_lost(self, call: EdgeCall, half: NodeLeg, cause: str) -> None:
        """A node ended a leg it had not announced: loss of a leg, after a grace in
        which the announcement may still come. Where the dialplan has the caller, as far as is known, an app
        may say in it that it has taken him, or it turns out that this Asterisk stops."""
        if half.state == "ended" or call.ended:
            return
        half.state = "ended"
        unannounced = half.leg not in call.announced and not call.by_dialplan
        if unannounced:
            self._setup.suspect(half.node.name)
        name = f"bye/{call.call}/{half.leg}"
        when = self._context.now + self._context.timings.bye_grace_s
        self._context.at(name, when, lambda: self._unannounced(call, half, cause))
        if unannounced and self._many_byes(half.node.name, call.call):
            self._stopping(half.node.name, cause)

    def _many_byes(self, node: str, ident: str) -> bool:
        """Whether this node has ended legs of so many calls within the grace that it must
        be stopping; then nobody waits for announcements."""
        now = self._context.now
        recent = self._byes.setdefault(node, {})
        recent[ident] = now
        for old in [name for name, at in recent.items() if now - at > self._context.timings.bye_grace_s]:
            del recent[old]
        return len(recent) >= BYES_OF_A_STOP

    def _stopping(self, node: str, cause: str) -> None:
        for call in [call for call in self._calls.of_node(node) if not call.by_dialplan]:
            for half in [h for h in call.halves.values() if h.state == "ended" and not h.over]:
                self._context.cancel(f"bye/{call.call}/{half.leg}")
                self._unannounced(call, half, cause)

    def _unannounced(self, call: EdgeCall, half: NodeLeg, cause: str) -> None:
        leg = call.legs.get(half.leg)
        if call.ended or not leg or not leg.alive:
            return
        if call.halves.get(half.leg) is not half:
            return
        if half.leg in call.announced:
            self._calls.end_leg(call, leg, "app", "16")
            return
        if call.by_dialplan and not call.lost:  # there is no app that could announce it
            self._calls.end_leg(call, leg, "dialplan", "16")
            return
        self._context.count("edge_unannounced_ends")
        self._context.note(
            f"call/{call.call}", "node ended a leg unannounced: kept, made again",
            level="warning", leg=half.leg, cause=cause,
        )  # fmt: skip
        self.lose(call, "leg lost")
        self.pump()

    # --- moving --------------------------------------------------------------------

    def _urgency(self, ident: str) -> tuple[int, float]:
        """Who hears silence goes first: alone or held callers, then the rest, then
        people talking hitless."""
        call = self._calls.by_id[ident]
        if call.media.state == HITLESS and call.two_talking():
            return (2, call.lost_at)
        return (0 if not call.two_talking() else 1, call.lost_at)

    def pump(self) -> None:
        """Starts as many waiting moves as there are places and survivors."""
        context, limit = self._context, self._context.timings.moves_at_once_max
        if not self._waiting:
            return
        if context.now < self._not_before:
            context.at("pump", self._not_before, self.pump)
            return
        order = sorted((i for i in self._waiting if i in self._calls.by_id), key=self._urgency)
        for ident in set(self._waiting) - set(order):
            del self._waiting[ident]
        for ident in order:
            if len(self._moving) >= limit:
                return
            call = self._calls.by_id[ident]
            if call.move:
                del self._waiting[ident]
                continue
            survivor = self._survivor(call)
            if survivor is None:
                context.count("edge_moves_without_survivor")
                context.at("pump", context.now + context.timings.move_retry_s, self.pump)
                continue
            self._start(call, survivor, self._waiting.pop(ident))

    def _survivor(self, call: EdgeCall) -> WatchedNode | None:
        """Another node than the one it leaves on purpose, and than those that failed to
        take it up; once all have failed, any of them again."""
        own: set[str] = set()
        if call.owner and not call.lost:  # nobody moves on purpose to a node that cannot read of it
            own = {call.owner.name, *self._setup.without_store()}
        if call.prefer and call.prefer not in own | call.refused_by:
            wanted = self._setup.taking(call.prefer)
            if wanted:
                return wanted
        found = self._setup.least_loaded(leave_out=own | call.refused_by)
        if found is None and call.refused_by:
            call.refused_by.clear()
            found = self._setup.least_loaded(leave_out=own)
        return found

    def stay(self, node: str, why: str) -> None:
        """The node's app is back, or its drain was called off: calls that only waited to
        leave it because of that stay."""
        for ident in [ident for ident, reason in self._waiting.items() if reason == why]:
            call = self._calls.by_id.get(ident)
            if call and not call.lost and call.owner and call.owner.name == node:
                del self._waiting[ident]

    def move(self, call: EdgeCall, why: str, to: str = "") -> None:
        """Moves a call whose node still serves it: make before break. ``to``: a node to
        prefer while it takes calls."""
        if call.move is None and call.call not in self._waiting:
            call.prefer = to
            self._waiting[call.call] = why
            self.pump()

    def _start(self, call: EdgeCall, node: WatchedNode, why: str) -> None:
        self._calls.on_move(call)
        context = self._context
        epoch = self._calls.next_epoch(call)
        call.move = Move(epoch, node.id, why, context.now, call.epoch)
        call.epoch, call.by_dialplan = epoch, False
        self._moving.add(call.call)
        self._setup.takes_up(node)
        context.note(
            f"call/{call.call}", f"taken over by {node.config.name}", epoch=epoch, why=why, facts=call.facts()
        )
        context.count("edge_moves_started")
        for leg in call.living():
            self._setup.invite_node(call, leg, node, epoch, "resume", call.move.halves)
        name, limit = f"move/{call.call}", context.timings.move_limit_s
        context.at(name, context.now + limit, lambda: self._retry(call, "not bridged in time"))
        self._calls.touch(call)

    def half_answered(self, call: EdgeCall, half: NodeLeg, sdp: str | None) -> None:
        """The survivor took up a leg."""
        half.state = "up"
        self._setup.learn_node_media(call, half, sdp)
        move = call.move
        if move and move.bridged and move.taken_up:
            self._taken_up(call)

    def half_failed(self, call: EdgeCall, half: NodeLeg, status: int, reason: str) -> None:
        """The survivor refused a leg (its app was not there yet, or it died too)."""
        half.state = "ended"
        self._retry(call, f"survivor answered {status} {reason}")

    def refused(self, frame: link.ResumeRefused) -> None:
        """The survivor's app cannot take the call up."""
        call = self._calls.by_id.get(frame.call)
        if call and call.move and str(call.move.epoch) == frame.epoch:
            self._retry(call, f"refused: {frame.reason}")
        elif call and call.owner and str(call.epoch) == frame.epoch:
            # it should serve the call and says it does not have it
            self.lose(call, f"unknown to its node: {frame.reason}")
            self.pump()

    def _again(self, call: EdgeCall) -> None:
        """The facts changed while the call was moving: begin again with true ones."""
        self._retry(call, "its legs or conversations changed meanwhile", pause=SAID_TOGETHER_S)
        call.refused_by.clear()

    def _retry(self, call: EdgeCall, why: str, pause: float | None = None) -> None:
        context, move = self._context, call.move
        if call.ended or move is None:
            return
        context.note(f"call/{call.call}", "move begun anew", level="warning", why=why, to=move.to)
        context.count("edge_moves_retried")
        for half in list(move.halves.values()):
            self._leave(call, half)
        call.refused_by.add(move.to.name)
        self._handover.stop(call)
        call.move = None
        if move.handing_over:
            self._calls.apply_media(call)
        self._moving.discard(call.call)
        context.cancel(f"move/{call.call}")
        self._waiting.setdefault(call.call, move.why)
        if not call.lost and call.owner is not None:
            # its node serves it on, perhaps for long, and knows no other epoch; whatever the survivor wrote
            # under the one of the move is older than what is decided now
            call.spent, call.epoch = self._calls.next_epoch(call), move.before
            for frame in move.ends:
                context.link(call.owner.name, replace(frame, epoch=str(call.epoch)))
            self._say_facts(call)
            self._calls.touch(call)
        if pause is None:
            pause = context.timings.move_retry_s
        context.at("pump", context.now + pause, self.pump)

    def bridged(self, frame: link.Bridged) -> None:
        """The app says its Asterisk has the call as it was."""
        call = self._calls.by_id.get(frame.call)
        if not call or not call.move or str(call.move.epoch) != frame.epoch:
            return
        call.move.bridged = True
        if call.move.taken_up:
            self._taken_up(call)

    def _taken_up(self, call: EdgeCall) -> None:
        """The next home has all of the call: at once where nobody serves it, else when it is heard."""
        assert call.move is not None
        if call.lost:
            self._complete(call)
        elif not call.move.handing_over:
            self._handover.begin(call, self._complete)

    def _complete(self, call: EdgeCall) -> None:
        """The new home serves: media moves over, the old dialogs become orphans."""
        context, move = self._context, call.move
        assert move is not None
        took = context.now - (call.lost_at if call.lost else move.started)
        on_purpose = not call.lost
        old_owner, old = call.owner, list(call.halves.values())
        fading = self._calls.in_hand(call) if on_purpose else set()
        self._handover.stop(call)
        call.halves = move.halves
        call.owner, call.lost, call.move, call.prefer = move.to, "", None, ""
        self._moving.discard(call.call)
        context.cancel(f"move/{call.call}")
        call.announced.clear()
        call.refused_by.clear()
        call.leaving += old
        call.fading |= fading
        entry = {"from": str(old_owner or ""), "to": str(move.to), "epoch": str(move.epoch),
                 "why": move.why, "took_ms": round(took * 1000, 1), "at_utc": context.utc}  # fmt: skip
        call.moves.append(entry)
        del call.moves[:-MOVES_KEPT_MAX]
        context.note(f"call/{call.call}", f"served by {move.to.name}", took_ms=entry["took_ms"])
        context.count("edge_moves_done")
        self._say_facts(call)
        if old_owner and old_owner.name != move.to.name:
            self._remember_moved(old_owner.name, call.call, move)

        def told() -> None:
            self._calls.touch(call)
            if old_owner and old_owner.name != move.to.name:
                frame = link.CallMoved(call=call.call, epoch=str(move.epoch), to_node=move.to.name)
                context.link(old_owner.name, frame)

        if not on_purpose:
            told()

        def settled() -> None:
            self._settled(call)
            if on_purpose:  # the old node speaks and listens until the media has moved
                told()

        def moved() -> None:
            self._handover.fade(call, fading, str(move.epoch), settled)

        self._calls.apply_media(call, moved)
        self.on_served(call)
        self.pump()

    def _say_facts(self, call: EdgeCall) -> None:
        """What changed between the signing of the tokens and now, or during a move, said again: the app
        may have heard it before it knew the call."""
        assert call.owner is not None
        for leg in call.up():
            base = {"call": call.call, "leg": leg.leg, "epoch": str(call.epoch)}
            if leg.leg != PRIMARY_LEG or len(call.up()) > 1:
                self._context.link(call.owner.name, link.LegAnswered(**base))
            self._context.link(call.owner.name, link.LegHeld(**base, held=leg.held))
            self._say_digits(call, leg.leg, call.owner.name)
        for frame in asked_frames(call):
            self._context.link(call.owner.name, frame)

    def _say_digits(self, call: EdgeCall, leg: str, node: str) -> None:
        """What the phone typed lately: a digit may have reached the lost node and not its
        record, or nobody at all."""
        base = {"call": call.call, "leg": leg, "epoch": str(call.epoch), "again": True}
        for entry in call.digits:
            if entry["leg"] == leg and entry.get("number"):
                frame = link.LegDigit(**base, digit=entry["digit"], heard=entry["number"])
                self._context.link(node, frame)
        for number, digit in call.told.get(leg, ()):
            self._context.link(node, link.LegDigit(**base, digit=digit, told=number))

    def _remember_moved(self, node: str, ident: str, move: Move) -> None:
        """Told to the old node when it is back; old and surplus entries are forgotten."""
        now = self._context.now
        limit = now - self._context.timings.orphan_limit_s
        known = self._moved.setdefault(node, {})
        known[ident] = (move.epoch, move.to.name, now)
        for name in [n for n, (_, _, at) in known.items() if at < limit]:
            del known[name]
        while len(known) > MOVED_KEPT_MAX:
            del known[next(iter(known))]

    def _settled(self, call: EdgeCall) -> None:
        old, call.leaving = call.leaving, []
        for half in old:
            self._leave(call, half)
        self._calls.tell_media(call)

    def _leave(self, call: EdgeCall, half: NodeLeg) -> None:
        """Ends a dialog at a node that may be dead or hung: the BYE is repeated for half
        a minute (RFC 3261 §17.1.2); later than that `CallMoved` does it."""
        self._calls.end_half(call, half)

    def _finished(self, call: EdgeCall) -> None:
        self._waiting.pop(call.call, None)
        self._moving.discard(call.call)
        self.pump()

    # --- the node is back ----------------------------------------------------------

    def node_back(self, name: str) -> None:
        """A node answers again: tell it what it no longer has."""
        context = self._context
        limit = context.now - context.timings.orphan_limit_s
        for ident, (epoch, to, at) in self._moved.pop(name, {}).items():
            if at > limit:
                context.link(name, link.CallMoved(call=ident, epoch=str(epoch), to_node=to))
        self.pump()

    def waits(self, ident: str) -> bool:
        """Whether the call waits for its move."""
        return ident in self._waiting

    def waiting_count(self) -> int:
        """Calls without a serving node that wait for their move."""
        return len(self._waiting)

    def moving_count(self) -> int:
        """Moves under way."""
        return len(self._moving)

    def moving_since(self, since: float, why: str) -> int:
        """Moves under way for this reason that began after that."""
        calls = (self._calls.by_id.get(ident) for ident in self._moving)
        moves = [call.move for call in calls if call is not None and call.move is not None]
        return sum(move.why == why and move.started > since for move in moves)
