"""The node link: what edges say, and what both sides compare when it comes up."""

from __future__ import annotations

from ari_ha.core.ids import Epoch
from ari_ha.machines.acd_orders import ClaimDevice
from ari_ha.machines.node_call import NodeCall
from ari_ha.machines.node_context import EdgeLink
from ari_ha.machines.node_core import NodeCore
from ari_ha.machines.node_model import OVER, RINGING, UP
from ari_ha.machines.node_records import epoch_of
from ari_ha.machines.node_resume import ADOPTION, HELD, Arriving
from ari_ha.wire import link
from ari_ha.wire.link import RECORD

LegFrame = link.LegRinging | link.LegAnswered | link.LegGone | link.LegHeld | link.LegDigit
YOUNG_S = 1.0
"""A call that began so lately may be on its way into its edge's list."""
ASKED_KEPT_MAX = 1_000
"""What phones have asked for is kept of an edge until Asterisk has been seen; few ask in that second."""
FEATURES = ("queue", "through", "ivr", "resume", "agent", "dial", "drain")


class Links:
    """The edge side of `NodeMachine`."""

    def __init__(self, core: NodeCore) -> None:
        self._core = core
        self._context = core.context

    # --- up and down ---------------------------------------------------------------

    def up(self, peer: str) -> None:
        """A link is open: we say who we are."""
        self._context.replaced.discard(peer)
        self._context.links[peer] = EdgeLink(peer, opened=self._context.now)
        self._context.note("node", "link up", edge=peer)
        self.hello(peer)
        self.state_to(peer)

    def _say_again(self, call: NodeCall) -> None:
        """What the edge may have missed while there was no link, or while it did not serve: one that stands
        by has its link already, and what was said meanwhile was said to nobody. Who belongs to whom comes
        before the ends: of a line that leads others it would end these as well."""
        announced = [leg for leg in call.legs.values() if leg.announced]
        if announced:
            call.transfers.say_conversations()
        for leg in announced:  # its channel may be gone: the edge, which has not heard why, keeps the phone
            cause = call.ending.get(leg.leg, "16")
            frame = link.EndLeg(
                call=call.call, leg=leg.leg, epoch=str(call.epoch), cause=cause, reason="said again"
            )
            call.say(frame)
        if call.media.request:
            call.media.ask_again()
        call.recording_said = None
        call.touch()
        if call.bridged_said:
            call.bridged_said = ()
            call.touch()

    def down(self, peer: str, reason: str, clean: bool) -> None:
        """The link is gone; no call is touched."""
        self._context.links.pop(peer, None)
        self._context.replaced.discard(peer)
        self._context.note("node", "link down", level="warning", edge=peer, reason=reason, clean=clean)

    def hello(self, peer: str = "") -> None:
        """Who we are, in which life of Asterisk."""
        config = self._core.config
        frame = link.NodeHello(
            node=config.node, incarnation=self._context.ari_state.incarnation, version=config.version,
            features=self.features,
        )  # fmt: skip
        for name in [peer] if peer else list(self._context.links):
            self._context.tell(name, frame)

    @property
    def features(self) -> list[str]:
        """What this node can be asked for."""
        return [*FEATURES, *([RECORD] if self._core.config.records else [])]

    def state(self) -> link.NodeState:
        """Whether we take calls."""
        state = self._context.ari_state
        return link.NodeState(
            ready=self.ready, reason=self.reason, calls=len(self._core.calls),
            cordoned=self._core.closed or self._core.refusing, asterisk=state.word,
            store_away=self.store_away, unwritten=sorted(self._core.records.late),
        )  # fmt: skip

    @property
    def store_away(self) -> bool:
        """We do not reach the store, or have not written what we kept meanwhile."""
        return not self._context.store_ok or self._core.acd.acd.unwritten

    @property
    def ready(self) -> bool:
        """ARI is connected, its snapshot is taken in, and nothing is missing."""
        state = self._context.ari_state
        return state.up and not state.missing

    @property
    def reason(self) -> str:
        """Why not."""
        state = self._context.ari_state
        if not state.up:
            return state.trouble
        return f"Asterisk lacks {' '.join(state.missing)}" if state.missing else ""

    def state_to(self, peer: str = "") -> None:
        """Tells one edge, or all."""
        frame = self.state()
        for name in [peer] if peer else list(self._context.links):
            self._context.tell(name, frame)

    def _calls_to(self, peer: str) -> None:
        calls = {
            call.call: link.CallOnNode(
                epoch=str(call.epoch),
                legs={leg.leg: leg.channel.id for leg in call.living() if leg.channel is not None},
            )
            for call in self._core.calls.values()
            if call.stage != OVER and not self._is_anothers(call.call, peer)
        }
        for arriving in self._core.resumes.by_call.values():
            if self._is_anothers(arriving.call, peer):
                continue
            legs = {leg: channel.id for leg, channel in arriving.channels.items()}
            calls[arriving.call] = link.CallOnNode(epoch=str(arriving.epoch), legs=legs)
        self._context.tell(peer, link.NodeCalls(calls=calls))

    def _is_anothers(self, ident: str, peer: str) -> bool:
        """Whether the call is certainly another edge's: ``peer`` has no word about it."""
        owner, edge = self._core.records.owner(ident), self._context.links.get(peer)
        if owner is not None:
            return owner.edge != peer
        call, arriving = self._core.calls.get(ident), self._core.resumes.by_call.get(ident)
        pair = call.vip if call else arriving.pair if arriving else ""
        return bool(pair and edge and edge.vip) and edge.vip != pair

    # --- frames --------------------------------------------------------------------

    def frame(self, peer: str, frame: object) -> None:
        """One frame of an edge."""
        if peer in self._context.replaced:
            self._context.count("node_frames_of_replaced_edges", type=type(frame).__name__)
            return
        edge = self._context.links.get(peer)
        match frame:
            case link.EdgeHello():
                if edge is not None:
                    edge.vip, edge.hello = frame.vip, True
                    edge.sip, edge.revision = frame.sip, frame.edge_revision
                    self._context.active_is(frame.vip, frame.edge_revision, peer)
            case link.EdgeCalls():
                self._edge_calls(peer, frame)
            case link.CallMoved(call=ident, epoch=epoch, to_node=to):
                self._core.moved(ident, epoch_of(epoch), to)
            case link.Relinquish(call=ident, epoch=epoch):
                if not self._is_anothers(ident, peer):
                    self._relinquish(peer, ident, epoch_of(epoch))
            case link.ClaimAnswer():
                self._core.acd.claim_answered(frame.attempt, frame.granted, frame.holder)
            case link.MediaIs(call=ident):
                call = self._call(ident, frame.epoch)
                if call is not None and call.media.confirmed(frame):
                    call.touch()
            case link.TransferAsked() | link.ConsultAsked() | link.LegTaken():
                self._asked(edge, frame)
            case link.Record():
                self._core.recorder.asked(peer, frame)
            case link.EndRecording():
                self._core.recorder.ended(frame)
            case link.LegRinging() | link.LegAnswered() | link.LegGone() | link.LegHeld() | link.LegDigit():
                self._leg(frame)
            case _:
                self._context.count("node_frames_ignored", type=type(frame).__name__)

    def _call(self, ident: str, epoch: str) -> NodeCall | None:
        call = self._core.calls.get(ident)
        if call is None or str(call.epoch) != epoch:
            return None
        return call

    def _asked(self, edge: EdgeLink | None, frame: link.Asked) -> None:
        """Also of a call that is just being taken up, or will be when Asterisk has been seen: it is not said
        again."""
        arriving, call = self._core.resumes.by_call.get(frame.call), self._call(frame.call, frame.epoch)
        if arriving is not None and str(arriving.epoch) == frame.epoch:
            arriving.asked.append(frame)
        elif call is not None:
            call.transfers.heard(frame)
        elif edge is not None and not edge.compared and len(edge.asked) < ASKED_KEPT_MAX:
            edge.asked.append(frame)

    def _leg(self, frame: LegFrame) -> None:
        arriving = self._core.resumes.by_call.get(frame.call)
        if arriving is not None and str(arriving.epoch) == frame.epoch:
            self._arriving_leg(arriving, frame)
            return
        call = self._call(frame.call, frame.epoch)
        leg = call.legs.get(frame.leg) if call else None
        if call is None or leg is None:
            self._context.count("node_frames_stale", type=type(frame).__name__)
            return
        match frame:
            case link.LegRinging():
                call.leg_rings(leg)
            case link.LegAnswered():
                call.leg_answered(leg)
            case link.LegGone():
                call.phone_gone(leg, frame)
                call.touch()
            case link.LegHeld(held=held):
                call.phone_held(leg, held)
            case link.LegDigit(digit=digit):
                if not frame.again:
                    call.note("digit by INFO", leg=leg.leg, digit=digit)
                    call.transfers.digit(leg, digit)
                call.ivr.digit(leg.leg, digit, frame.heard, frame.told)

    def _arriving_leg(self, arriving: Arriving, frame: object) -> None:
        match frame:
            case link.LegAnswered(leg=leg):
                arriving.facts[leg] = UP
            case link.LegHeld(leg=leg, held=held):
                arriving.facts[leg] = HELD if held else UP
            case link.LegGone(leg=leg, by=by):
                arriving.facts.pop(leg, None)
                arriving.ended[leg] = by or "phone"
                if (channel := arriving.channels.pop(leg, None)) is not None:
                    arriving.retired.append(channel.id)  # the edge's BYE may not come through
                self._core.resumes.look(arriving)

    def _relinquish(self, peer: str, ident: str, epoch: Epoch) -> None:
        call, arriving = self._core.calls.get(ident), self._core.resumes.by_call.get(ident)
        if arriving is not None and arriving.epoch <= epoch:
            arriving.unknown_to.append(peer)
            self._core.resumes.look(arriving)
            return
        if call is not None and call.epoch <= epoch:
            self._core.drop(call, "relinquished", unless_wanted=True)

    # --- comparing -----------------------------------------------------------------

    def _edge_calls(self, peer: str, frame: link.EdgeCalls) -> None:
        edge = self._context.links.get(peer)
        if edge is None:
            return
        edge.calls, edge.calls_at, edge.compared = frame, self._context.now, False
        self._context.note("node", "the edge's list of our calls", edge=peer, calls=len(frame.calls))
        self._core.recorder.list_to(peer)
        for call in self._core.calls.values():
            if call.stage != OVER and call.vip in ("", edge.vip):
                self._say_again(call)
        self.compare(peer)

    def compare(self, peer: str) -> None:
        """The edge's list against what is here, once, and ours against what it has: it serves, or
        would not have said a list. Waits for Asterisk's own snapshot."""
        edge = self._context.links.get(peer)
        if edge is None or edge.calls is None or edge.compared or not self._context.ari_state.up:
            return
        edge.compared = True
        asked, edge.asked = edge.asked, []
        for frame in asked:
            self._asked(edge, frame)
        for ident, fact in edge.calls.calls.items():
            self._listed(peer, ident, fact)
        for call in list(self._core.calls.values()):
            if call.call not in edge.calls.calls and self._is_of(call, peer):
                self._unlisted(call, peer)
        self._calls_to(peer)

    def _listed(self, peer: str, ident: str, fact: link.CallAtEdge) -> None:
        call, arriving = self._core.calls.get(ident), self._core.resumes.by_call.get(ident)
        epoch = epoch_of(fact.epoch)
        if arriving is not None and arriving.epoch >= epoch:
            if arriving.kind == ADOPTION and arriving.epoch == epoch:
                self._facts_for(arriving, fact, self._context.links[peer].vip)
            return
        if call is not None and call.epoch == epoch:
            self._apply(call, fact, self._context.links[peer].revision)
        elif call is None or call.epoch < epoch:
            # a call we do not have, or have only under an older epoch
            frame = link.ResumeRefused(call=ident, epoch=fact.epoch, leg="", reason="unknown call")
            self._context.tell(peer, frame)

    @staticmethod
    def _state_of(leg: link.LegAtEdge) -> str:
        if leg.state == RINGING:
            return RINGING
        return HELD if leg.held else UP

    def _facts_for(self, arriving: Arriving, fact: link.CallAtEdge, pair: str) -> None:
        arriving.facts = {leg: self._state_of(value) for leg, value in fact.legs.items()}
        arriving.ended |= fact.ended
        arriving.head, arriving.sides = fact.head, dict(fact.sides)
        arriving.lines, arriving.targets = dict(fact.lines), dict(fact.targets)
        arriving.rung = dict(fact.rung)
        arriving.turned_down, arriving.asking = fact.turned_down, fact.asking
        arriving.edge_known, arriving.pair, arriving.unknown_to = True, pair, []
        self._core.resumes.look(arriving)

    def _apply(self, call: NodeCall, fact: link.CallAtEdge, revision: int) -> None:
        """The edge's facts of the legs, when frames were missed. Whom it does not know it has ended,
        but who was dialled just now: it may not know him yet; or never, if it is another life by now."""
        for name, value in fact.legs.items():
            leg = call.legs.get(name)
            if leg is None or not leg.alive:
                continue
            if value.state != RINGING and leg.state == RINGING:
                call.leg_answered(leg)
            call.phone_held(leg, value.held)
        for leg in [leg for leg in call.living() if leg.leg not in fact.legs]:
            if leg.state != "trying":
                gone = link.LegGone(call=call.call, leg=leg.leg, epoch=str(call.epoch), cause="16", by="edge")
                call.phone_gone(leg, gone)
            elif leg.channel is not None and 0 < leg.channel.through < revision:
                call.dialling.anew(leg)
        call.touch()

    def _is_of(self, call: NodeCall, peer: str) -> bool:
        """Whether ``peer`` is the edge whose word about this call counts."""
        owner = self._core.records.owner(call.call)
        if owner is not None:
            return owner.edge == peer
        return not self._core.listed(call.call) and len(self._core.config.edges) <= 1

    def _unlisted(self, call: NodeCall, peer: str) -> None:
        """Its edge does not know it: dropped, unless that changes within the limit."""
        if call.stage == OVER or abs(self._context.utc - call.facts.started) < YOUNG_S:
            return
        epoch = call.epoch

        def still() -> None:
            found = self._core.calls.get(call.call)
            if found is call and call.epoch == epoch and not self._core.listed(call.call):
                self._core.drop(call, f"{peer} does not know it", unless_wanted=True)

        self._context.after(f"stale/{call.call}", self._context.timings.stale_limit_s, still)

    # --- claims while the store is away --------------------------------------------

    def claim(self, order: ClaimDevice) -> None:
        """Asks the edge that holds the device; without a link nobody can say yes."""
        frame = link.ClaimAgent(
            agent=order.agent, device=order.device, attempt=order.attempt, call=order.call
        )
        call = self._core.calls.get(order.call)
        linked = [e for e in self._core.edges_of(call) if e in self._context.links] if call else []
        if not linked:
            self._core.acd.claim_answered(order.attempt, False, "")
            return
        self._context.tell(linked[0], frame)  # one answers: a standby would say no
