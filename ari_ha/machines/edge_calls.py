"""The calls of an edge: their media, their endings.

Setting a call up is edge_setup's, moving it to another node takeover's, its copy in etcd edge_store's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial

from ari_ha.core.ids import PRIMARY_LEG, Epoch
from ari_ha.core.machine import LANE_STOPPED, Done, Outcome, Refused, Unknown, Unreachable
from ari_ha.machines.edge_audio import where_it_was
from ari_ha.machines.edge_context import EdgeContext
from ari_ha.machines.edge_ended import ended_call
from ari_ha.machines.edge_model import DIGITS_KEPT_MAX, EdgeCall, NodeLeg, PhoneLeg
from ari_ha.machines.edge_store import CallStore
from ari_ha.machines.media import (
    COACH,
    DIRECT,
    HITLESS,
    THROUGH,
    CallMedia,
    Hears,
    ng_body,
    teaching,
    wanted_graph,
)
from ari_ha.sip.sdp import address_of, without_address
from ari_ha.wire import link
from ari_ha.wire.keyspace import BadValue, RecordValue, decode

MEDIA_RETRY_S = 0.1
MEDIA_RETRY_MAX_S = 2.0
MEDIA_FAILURES_TOLD = 10
DELETE_TRIES_MAX = 50
CAUSE_TO_STATUS = {"16": 487, "17": 486, "18": 408, "19": 480, "20": 480, "21": 603, "34": 503, "1": 404}
"""Q.850 causes an app may name, as SIP statuses (RFC 3398 §7.2.4.1)."""


def _nothing() -> None:
    """Nothing to do."""


class Calls:
    """Every call of this edge, by id and by SIP key."""

    def __init__(self, context: EdgeContext) -> None:
        self._context = context
        self.by_id: dict[str, EdgeCall] = {}
        self.by_key: dict[str, tuple[str, str]] = {}
        """SIP key of a phone leg or of a node half -> (call, leg)"""
        self.device_of: dict[str, tuple[str, str]] = {}
        """Address of record -> the one (call, leg) that has the device"""
        self.store = CallStore(context, self.by_id)
        self.on_facts_changed_in_move: Callable[[EdgeCall], None] = lambda call: None
        self.on_media_refused: Callable[[EdgeCall], None] = lambda call: None
        self.on_published: Callable[[EdgeCall, str, Done], None] = lambda call, tag, outcome: None
        """rtpengine was told of an SRTP leg's far end, and has said its own side"""
        self.on_finished: Callable[[EdgeCall], None] = lambda call: None
        self.on_move: Callable[[EdgeCall], None] = lambda call: None
        """Before another node is told of a call"""
        self.on_changed: Callable[[], None] = lambda: None
        self.on_people: Callable[[EdgeCall], None] = lambda call: None
        """Who is on the call, and may be heard, may have changed"""

    # --- making and finding --------------------------------------------------------

    def create(self, kind: str, caller: str, did: str, trunk: str) -> EdgeCall:
        """A new call with a new id."""
        call = EdgeCall(
            self._context.new_id(), kind, self._context.utc, CallMedia(), caller=caller, did=did, trunk=trunk
        )
        self.by_id[call.call] = call
        return call

    def adopt(self, call: EdgeCall) -> None:
        """A call read back from etcd."""
        self.by_id[call.call] = call
        for leg in call.living():
            self.index(call, leg)
        for half in call.halves.values():
            self.by_key[half.key] = (call.call, half.leg)

    def index(self, call: EdgeCall, leg: PhoneLeg) -> None:
        """Makes the leg findable by its SIP key and its device."""
        call.legs[leg.leg] = leg
        self.by_key[leg.key] = (call.call, leg.leg)
        if leg.aor:
            self.device_of[leg.aor] = (call.call, leg.leg)

    def phone(self, key: str) -> tuple[EdgeCall, PhoneLeg] | None:
        """The phone leg with this SIP key."""
        found = self.by_key.get(key)
        call = self.by_id.get(found[0]) if found else None
        if not call or not found:
            return None
        leg = call.legs.get(found[1])
        return (call, leg) if leg and leg.key == key else None

    def half(self, key: str) -> tuple[EdgeCall, NodeLeg] | None:
        """The half towards a node with this SIP key, current or of a move."""
        found = self.by_key.get(key)
        call = self.by_id.get(found[0]) if found else None
        if not call or not found:
            return None
        halves = [call.halves.get(found[1])]
        if call.move:
            halves.append(call.move.halves.get(found[1]))
        for half in halves:
            if half and half.key == key:
                return call, half
        return None

    def of_node(self, node: str) -> list[EdgeCall]:
        """Calls served by the node of that name, whatever its incarnation."""
        return [call for call in self.by_id.values() if call.owner and call.owner.name == node]

    def load(self, node: str) -> int:
        """Calls the node serves or is about to."""
        return self.loads()[node]

    def loads(self) -> Counter[str]:
        """Calls each node serves or is about to: one look at all of them for all nodes."""
        found: Counter[str] = Counter()
        for call in self.by_id.values():
            serves = call.owner.name if call.owner and not call.lost else ""
            if serves:
                found[serves] += 1
            if call.move and call.move.to.name != serves:
                found[call.move.to.name] += 1
        return found

    def rekey(self, call: EdgeCall, leg: PhoneLeg, key: str) -> None:
        """The leg is tried anew under another SIP key."""
        self.by_key.pop(leg.key, None)
        leg.key = key
        self.by_key[key] = (call.call, leg.leg)

    # --- media ---------------------------------------------------------------------

    def effective_state(self, call: EdgeCall, consult: str = "") -> str:
        """The media state a conversation is in, from what its app wants and what is true."""
        two = call.two_talking(consult)
        if call.lost:
            return HITLESS if call.media.state == HITLESS and two and not consult else DIRECT
        if call.owner and two and self._context.node_doubted(call.owner.name):
            # costs nothing when the doubt was wrong, and no more words when it was right
            return HITLESS
        held = any(leg.held for leg in call.up() if leg.consult == consult and not leg.aside)
        if held and call.want in (HITLESS, COACH):
            return THROUGH
        return call.want

    def _graph(self, call: EdgeCall, state: str) -> set[Hears]:
        """Who is to hear whom: each conversation by its own state."""
        graph = call.early_graph() | call.recorder_graph() | call.fading
        graph |= self._by_node(call, state, call.halves)
        if call.move and call.move.handing_over and not call.lost and len(call.up()) > 1:
            # who talks through a node reaches the next one as well; a caller alone has nothing to say
            # to it, and what he types is counted by one
            tags = {half.tag for half in call.move.halves.values()}
            graph |= {hears for hears in self._by_node(call, state, call.move.halves) if hears[0] in tags}
        muted = {leg.leg for leg in call.living() if leg.muted}
        return {(listener, speaker) for listener, speaker in graph if speaker not in muted}

    def _by_node(self, call: EdgeCall, state: str, halves: Mapping[str, NodeLeg]) -> set[Hears]:
        """The graph with these halves at a node."""
        graph: set[Hears] = set()
        for consult in ("", *call.consults()):
            heard = {leg.leg for leg in call.audible(consult)}
            legs = [leg.leg for leg in call.conversation(consult) if leg.leg in heard]
            tags = {
                leg: half.tag
                for leg, half in halves.items()
                if half.state == "up" or (half.calls_us and half.state == "calling" and leg in heard)
            }
            graph |= wanted_graph(self.effective_state(call, consult) if consult else state, legs, tags)
        return graph

    def voices_of_next(self, call: EdgeCall) -> set[str]:
        """Tags of the node the call moves to that some phone will hear."""
        assert call.move is not None
        tags = {half.tag for half in call.move.halves.values()}
        listening = {leg.leg for leg in call.up() if not leg.held}
        graph = self._by_node(call, self.effective_state(call), call.move.halves)
        return {speaker for listener, speaker in graph if listener in listening and speaker in tags}

    def in_hand(self, call: EdgeCall) -> set[Hears]:
        """Of two who talk through their node: each hears it. What it was given it still passes on;
        music and a mix never end by themselves."""
        people = {leg.leg for leg in call.up() if not leg.aside and call.two_talking(leg.consult)}
        return {
            (half.leg, half.tag) for half in call.halves.values() if half.leg in people
        } & call.media.applied

    def mute(self, call: EdgeCall, leg: PhoneLeg, muted: bool) -> None:
        """Nobody hears the leg, Asterisk included (or everybody again). An act of the edge:
        whatever serves the call, and in every state of the media."""
        if leg.muted == muted:
            return
        leg.muted = muted
        self._context.note(f"call/{call.call}", "muted" if muted else "heard again", leg=leg.leg)
        self.apply_media(call)
        self.touch(call)

    def apply_media(self, call: EdgeCall, then: Callable[[], None] | None = None) -> None:
        """Brings rtpengine to the call's state; ``then`` runs when it is there."""
        if call.ended:
            return
        self.on_people(call)
        state = self.effective_state(call)
        changed = state != call.media.state
        call.media.state = state
        taught = [
            (tag, *told)
            for tag, sdp in call.media.untaught()
            for told in teaching(tag, self._allowed(call, tag, sdp), self._interface(call, tag))
        ]
        graph = call.media.change_to(self._graph(call, state))
        if changed:
            self._context.note(f"call/{call.call}", f"media {state}")
            if not call.lost:
                self.touch(call)
        pending = [len(taught) + len(graph)]
        if then:
            call.media.waiting.append(then)
        if not pending[0]:
            if not call.media.rounds:
                self._media_there(call)
            return
        call.media.rounds += 1

        def settled(outcome: Outcome, confirm: Callable[[], None], deny: Callable[[], None]) -> None:
            pending[0] -= 1
            if isinstance(outcome, Done):
                confirm()
            else:
                call.media.doubtful = True
                deny()
                if isinstance(outcome, Refused) and outcome.reason != LANE_STOPPED:
                    self.on_media_refused(call)
            if pending[0]:
                return
            call.media.rounds -= 1
            if call.ended or call.media.rounds:
                return
            if call.media.doubtful:
                self._media_again(call)
            else:
                self._media_there(call)

        def said(tag: str, command: str, outcome: Outcome, deny: Callable[[], None]) -> None:
            if command == "publish" and isinstance(outcome, Done):
                self.on_published(call, tag, outcome)
            settled(outcome, _nothing, deny)

        media, ng = call.media, self._context.ng
        for tag, command, body in taught:
            deny = partial(media.not_taught, tag)
            ng(call.call, command, body, partial(said, tag, command, deny=deny))
        before = ""
        for command, hears in graph:
            confirm = partial(media.taken_away, hears) if command == "unsubscribe" else _nothing
            settle = partial(settled, confirm=confirm, deny=_nothing)
            # subscriptions do not depend on each other: all `+` together, then all `-`
            ng(call.call, command, ng_body(call.call, hears), settle, with_previous=command == before)
            before = command

    def _allowed(self, call: EdgeCall, tag: str, sdp: str) -> str:
        """The far end's SDP, without its address where nobody outside may have audio sent to."""
        leg = call.legs.get(tag)
        if leg is None or self._context.sip.leg_state(leg.key) == "ended":
            return sdp
        host, heard = address_of(sdp), self._context.sip.leg_flow(leg.key)
        itself = {
            f"\r\nm=audio {side.port} " for side in (*call.legs.values(), *call.halves.values()) if side.port
        }
        loops = host == leg.host and any(line in sdp for line in itself)
        if not loops and self._context.takes_media(host, heard):
            return sdp
        self._context.note(f"call/{call.call}", "audio would go to our own side", level="warning",
                           leg=leg.leg, address=host)  # fmt: skip
        self._context.count("edge_media_addresses_refused")
        return without_address(sdp)

    def teach(self, call: EdgeCall, tag: str, sdp: str) -> None:
        """The far end of ``tag`` has this SDP; rtpengine is told until it confirms. Not of a
        browser's old ICE session while it is asked for another: rtpengine would keep to that."""
        leg = call.legs.get(tag)
        if leg and leg.side.web and leg.elsewhere:
            return
        call.media.far_end(tag, where_it_was(sdp, call.media.remote.get(tag)))
        self.apply_media(call)

    def _interface(self, call: EdgeCall, tag: str) -> str:
        leg = call.legs.get(tag)
        return (leg.interface if leg else "") or self._context.config.public_interface

    def media_back(self) -> None:
        """rtpengine answers again, perhaps another life of it: it is asked what it has, and
        everything is said again."""
        for call in list(self.by_id.values()):
            call.media.failures, call.media.doubtful = 0, True
            self.on_media_refused(call)
            self.apply_media(call)

    def _media_there(self, call: EdgeCall) -> None:
        """rtpengine has confirmed everything: whoever waited goes on."""
        call.media.failures = 0
        waiting, call.media.waiting = call.media.waiting, []
        for act in waiting:
            act()

    def _media_again(self, call: EdgeCall) -> None:
        call.media.failures += 1
        self._context.count("edge_media_retries")
        if call.media.failures == MEDIA_FAILURES_TOLD:
            self._context.note(f"call/{call.call}", "rtpengine does not confirm the media", level="error")
        when = self._context.now + min(MEDIA_RETRY_S * call.media.failures, MEDIA_RETRY_MAX_S)
        self._context.at(f"media/{call.call}", when, lambda: self.apply_media(call))

    # --- calling -------------------------------------------------------------------

    def release(self, call: EdgeCall, key: str, then: Callable[[], None] = _nothing) -> None:
        """An INVITE that is held back is sent once it is in etcd: whoever takes this edge's place then
        sends the same one, which rings nobody twice, and hears its answer."""
        context = self._context

        def send() -> None:
            context.sip.release(key, context.now)
            then()

        self.store.when_written(call, send, context.timings.invite_limit_s)

    # --- endings -------------------------------------------------------------------

    def end_leg(self, call: EdgeCall, leg: PhoneLeg, by: str, cause: str, status: int = 0) -> None:
        """The leg is over, whoever ended it; the phone's dialog is ended here unless
        the phone itself did it. Ending the primary leg ends every other."""
        if not leg.alive:
            return
        context = self._context
        call.keep_times(context.utc)
        was = leg.state
        leg.state = "ended"
        call.tombstones[leg.leg] = by
        if leg.attempt and by not in ("app", "edge"):
            call.turned_down = leg.attempt
        if leg.leg == call.head:
            call.cause = cause
        if by not in ("phone", "cancelled", "failed"):
            context.sip.hangup(leg.key, context.now, status=status or CAUSE_TO_STATUS.get(cause, 603))
            call.farewells[leg.key] = leg.trunk or (call.trunk if leg.leg == PRIMARY_LEG else "")
        if self.device_of.get(leg.aor) == (call.call, leg.leg):
            del self.device_of[leg.aor]
        context.note(f"call/{call.call}", f"leg {leg.leg} ended", by=by, cause=cause, status=status, was=was)
        context.cancel(f"ring/{call.call}/{leg.leg}")
        half = call.halves.get(leg.leg)
        if half:
            self.end_half(call, half, status or 487)
        home = call.home()
        if by != "app" and home:
            frame = link.LegGone(
                call=call.call, leg=leg.leg, epoch=str(call.epoch), cause=cause, status=status, by=by,
                head=next(iter(call.consults()), "") if leg.leg == call.head else "",
            )  # fmt: skip
            context.link(home.name, frame)
            if call.move:
                call.move.ends.append(frame)
        self._end_others(call, leg)
        if not call.living():
            self.finish(call)
            return
        self._forget_leg(call, leg)
        self.apply_media(call)
        self.touch(call)
        moving = call.move.halves.get(leg.leg) if call.move else None
        if moving and moving.calls_us:
            self.end_half(call, moving, status or 487)
            call.move.halves.pop(leg.leg, None)  # type: ignore[union-attr]
        elif moving:
            self.on_facts_changed_in_move(call)

    def _end_others(self, call: EdgeCall, leg: PhoneLeg) -> None:
        """Whoever leads a conversation ends it; a side conversation outlives the main one
        and becomes it."""
        if leg.leg == call.head:
            for other in call.conversation(""):
                self.end_leg(call, other, "edge", "16")
            if call.consults():
                call.head = call.consults()[0]
                for other in call.conversation(call.head):
                    other.consult = ""
        elif leg.consult == leg.leg:
            for other in call.conversation(leg.leg):
                self.end_leg(call, other, "edge", "16")

    def _forget_leg(self, call: EdgeCall, leg: PhoneLeg) -> None:
        """Of an ended leg only its tombstone stays: a caller may outlive many attempts."""
        if leg.leg != call.head:
            call.legs.pop(leg.leg, None)
            self.by_key.pop(leg.key, None)
            call.media.forget_tag(leg.leg)

    def end_half(self, call: EdgeCall, half: NodeLeg, status: int = 487) -> None:
        """Ends a dialog with a node, silently where its Asterisk is gone (an INVITE still
        being repeated would reach the next one). Its tag may serve again."""
        half.state = "ended"
        if half.over:
            return
        half.over = True
        if self._context.asterisk_gone(half.node):
            self._context.sip.forget(half.key)
        else:
            self._context.sip.hangup(half.key, self._context.now, status=status)
        self.by_key.pop(half.key, None)
        call.free_tag(half.tag)
        call.media.forget_tag(half.tag)
        if call.halves.get(half.leg) is half:
            del call.halves[half.leg]

    def finish(self, call: EdgeCall) -> None:
        """Nobody is left: media, keys and memory of the call are given back."""
        if call.ended:
            return
        call.ended = True
        self.on_people(call)
        context = self._context
        for half in list(call.halves.values()):
            self.end_half(call, half)
        if call.move:
            for half in list(call.move.halves.values()):
                self.end_half(call, half)
            call.move = None
        for half in call.leaving:
            self.end_half(call, half)
        for name in ("media", "move"):
            context.cancel(f"{name}/{call.call}")
        self._delete_media(call.call)
        for leg in call.legs.values():
            self.by_key.pop(leg.key, None)
        self.by_id.pop(call.call, None)
        self.store.ended(call, ended_call(call, context) if context.config.call_records else b"")
        context.note(f"call/{call.call}", "ended", tombstones=dict(call.tombstones))
        context.count("edge_calls_ended")
        self.on_finished(call)
        self.on_changed()
        self.store.flush()

    def _delete_media(self, ident: str, tried: int = 0) -> None:
        """Gives the call's ports back; asked again until rtpengine has answered."""

        def deleted(outcome: Outcome) -> None:
            stopped = isinstance(outcome, Refused) and outcome.reason == LANE_STOPPED
            if (stopped or isinstance(outcome, Unreachable | Unknown)) and tried < DELETE_TRIES_MAX:
                when = self._context.now + MEDIA_RETRY_MAX_S
                self._context.at(f"delete/{ident}", when, lambda: self._delete_media(ident, tried + 1))

        self._context.ng(ident, "delete", {}, deleted)

    # --- what the app says ---------------------------------------------------------

    def announced_end(self, frame: link.EndLeg) -> None:
        """The app ends a leg: the only word of a node that ends a phone's side."""
        call = self.by_id.get(frame.call)
        if not call or not call.served_under(frame.epoch):
            self._context.count("edge_stale_frames", kind="EndLeg")
            return
        call.announced.add(frame.leg)
        leg = call.legs.get(frame.leg)
        if leg and leg.alive:
            status = int(frame.cause) if frame.cause.isdigit() and int(frame.cause) >= 300 else 0
            self.end_leg(call, leg, "app", frame.cause, status)

    def conversations(self, frame: link.Conversations) -> None:
        """The app says who belongs to whom from now on."""
        call = self.by_id.get(frame.call)
        if not call or not call.served_under(frame.epoch):
            self._context.count("edge_stale_frames", kind="Conversations")
            return
        self._regroup(call, frame.head, frame.consult, frame.epoch)

    def _regroup(self, call: EdgeCall, head: str, consult: Mapping[str, str], epoch: str) -> None:
        before = call.grouping()
        if head in call.legs and call.legs[head].alive:
            call.head = head
        # a line that rings leads its own conversation: unnamed, the node had not heard of it yet
        lines = [o for o in call.living() if o.consult == o.leg != call.head and o.leg not in consult]
        rings = {o.leg for o in lines if o.state != "up"}
        for leg in call.living():
            named = consult.get(leg.leg, leg.consult if leg.consult in rings else "")
            leg.consult = "" if named == call.head else named
        self.apply_media(call)
        self.touch(call)
        if call.move and epoch != str(call.epoch) and call.grouping() != before:
            self.on_facts_changed_in_move(call)  # the next node was told of the old conversations

    def record_stored(self, key: str, raw: bytes) -> None:
        """The app's record: ends it decided on count as announced even when its link is
        down (written before the act)."""
        parts = self._context.keys.split(key)
        call = self.by_id.get(parts[1]) if len(parts) == 3 and parts[2] == "record" else None
        if call is None:
            return
        call.record = raw
        if b'"ending"' not in raw:
            return
        try:
            record = decode(raw, RecordValue, key)
        except BadValue as error:
            self._context.note(f"call/{parts[1]}", "unreadable record", level="error", error=error)
            return
        if call.served_under(record.epoch):
            # who belongs to whom was decided before the end, and perhaps not heard either; the
            # record may be older than what was, and parts nobody who was brought together
            together = {leg.leg for leg in record.legs.values() if not leg.consult}
            sides = {leg.leg: leg.consult for leg in call.living() if leg.leg not in together}
            head = record.head if call.head in record.ending else ""
            self._regroup(call, head, sides, record.epoch)
        for leg, cause in record.ending.items():
            known = call.legs.get(leg)
            if known and known.alive:
                self.announced_end(link.EndLeg(call=call.call, leg=leg, epoch=record.epoch, cause=cause))

    def media_wanted(self, frame: link.WantMedia) -> None:
        """The app says which media state it needs; answered when it is there."""
        call = self.by_id.get(frame.call)
        if not call or str(call.epoch) != frame.epoch or frame.state not in ("hitless", "through", "coach"):
            self._context.count("edge_stale_frames", kind="WantMedia")
            return
        call.want = frame.state
        call.want_request = frame.request
        self.apply_media(call, None if call.lost else lambda: self.tell_media(call))

    def tell_media(self, call: EdgeCall) -> None:
        """Answers the app's last wish, once the call is where it should be. The app of a node it
        moves to may speak at once: it is heard as soon as it does."""
        home = call.home()
        if home and call.want_request and not call.ended and not call.lost:
            answer = link.MediaIs(
                call=call.call, epoch=str(call.epoch), state=call.media.state, request=call.want_request
            )
            self._context.link(home.name, answer)

    def digit_heard(self, node: str, frame: link.DigitHeard) -> None:
        """Asterisk heard a digit: proof, for people and tests, that it hears the leg."""
        call = self.by_id.get(frame.call)
        if call:
            entry = {"leg": frame.leg, "digit": frame.digit, "node": node, "epoch": frame.epoch,
                     "number": frame.number}  # fmt: skip
            call.digits.append({**entry, "at_utc": self._context.utc})
            del call.digits[:-DIGITS_KEPT_MAX]

    def touch(self, call: EdgeCall, then: Callable[[], None] | None = None) -> None:
        """The call changed: see `CallStore.touch`."""
        if not call.ended:
            self.on_changed()
            self.store.touch(call, then)

    def next_epoch(self, call: EdgeCall) -> Epoch:
        """The call's next epoch under this edge."""
        return call.newest.next(self._context.edge_revision)
