"""Which nodes record a call, and that always two of them do.

Of each person on a recorded call rtpengine sends copies to the recorders of two nodes. They only
listen: whoever serves the call, and however often it moves, they go on. When one of them is gone
another one is begun while the other writes; the packets both have join the parts afterwards.
"""

from __future__ import annotations

from collections import Counter

from ari_ha.core.machine import Outcome
from ari_ha.machines.edge_audio import AudioSide
from ari_ha.machines.edge_calls import Calls
from ari_ha.machines.edge_context import EdgeContext
from ari_ha.machines.edge_model import EdgeCall, PhoneLeg
from ari_ha.machines.edge_recorder import RecorderLeg
from ari_ha.machines.edge_setup import Setup
from ari_ha.machines.node_watch import NodeWatch, WatchedNode
from ari_ha.wire import link

RECORDERS = 2
"""Of each voice: one more than may be lost"""
LOOK_EVERY_S = 0.5
OPEN_LIMIT_S = 3.0
"""A recorder that has not said where it listens by then is asked no more."""
REFUSED_S, REFUSED_MAX_S = 5.0, 60.0
"""A node that did not record is left in peace for so long, each time for twice as long: where no other
is left it is asked for every voice of every call."""
LINK_GRACE_S = 3.0
"""After our own start: links come up meanwhile."""
TAG = "{}/rec"
"""A leg's name in rtpengine's tags of its copies: ``c/rec@ast2.1``"""

Frame = link.WantRecording | link.RecorderAt | link.RecordingOver | link.NodeRecordings


class Recordings:
    """See the module."""

    def __init__(self, context: EdgeContext, calls: Calls, setup: Setup, watch: NodeWatch) -> None:
        self._context = context
        self._calls = calls
        self._setup = setup
        self._watch = watch
        self._refused: dict[str, tuple[float, float]] = {}
        """node -> until when it is asked for nothing, and how long that is"""
        self._began: float | None = None
        """When we began to serve"""
        self._load: Counter[str] = Counter()
        """node -> copies it gets"""
        self._short: set[str] = set()
        """Calls of which it was told that too few nodes record them"""
        calls.on_people = self.look

    # --- what nodes say --------------------------------------------------------------

    def heard(self, node: str, frame: Frame) -> None:
        """One frame about recordings. Before every call has been read back nothing is known of any, and
        a standby knows none: nodes list theirs again when we serve."""
        if self._began is None:
            return
        match frame:
            case link.WantRecording():
                self._wanted(frame)
            case link.RecorderAt():
                self._listens(node, frame)
            case link.RecordingOver():
                self._over(node, frame)
            case link.NodeRecordings():
                self._compare(node, frame)

    def _wanted(self, frame: link.WantRecording) -> None:
        call = self._calls.by_id.get(frame.call)
        if call is None or not call.served_under(frame.epoch):
            self._context.count("edge_stale_frames", kind="WantRecording")
            return
        if call.recorded != frame.on:
            call.recorded = frame.on
            self._context.note(f"call/{call.call}", "to be recorded" if frame.on else "recorded no more")
            self._calls.apply_media(call)
            self._calls.touch(call)

    def _find(self, frame: link.RecorderAt | link.RecordingOver) -> tuple[EdgeCall, RecorderLeg] | None:
        call = self._calls.by_id.get(frame.call)
        one = call.recorders.get(frame.recording) if call else None
        return (call, one) if call and one else None

    def _listens(self, node: str, frame: link.RecorderAt) -> None:
        found = self._find(frame)
        if found is None:
            self._end(node, frame.recording, frame.call)
            return
        call, one = found
        if one.on and one.at == (frame.host, frame.port):
            return
        one.on, one.at = True, (frame.host, frame.port)
        self._refused.pop(node, None)
        self._context.note(f"call/{call.call}", f"recorded by {node}", leg=one.leg, recording=one.recording)
        self._context.count("edge_recordings_begun")
        self._calls.teach(call, one.tag, one.remote_sdp())
        self._calls.touch(call)

    def _over(self, node: str, frame: link.RecordingOver) -> None:
        found = self._find(frame)
        if found is not None:
            self._leave_in_peace(node)
            self._lose(*found, f"recorder: {frame.reason}")
            self._calls.apply_media(found[0])

    def _leave_in_peace(self, node: str) -> None:
        until, length_s = self._refused.get(node, (0.0, REFUSED_S / 2))
        if until <= self._context.now:
            length_s = min(2 * length_s, REFUSED_MAX_S)
            self._refused[node] = (self._context.now + length_s, length_s)

    def _compare(self, node: str, frame: link.NodeRecordings) -> None:
        """What the node writes, against what it should."""
        for recording, ident in frame.recordings.items():
            call = self._calls.by_id.get(ident)
            if call is None or recording not in call.recorders:
                self._end(node, recording, ident)
        for call in list(self._calls.by_id.values()):
            gone = [one for one in call.recorders.values() if one.node == node]
            gone = [one for one in gone if one.on and one.recording not in frame.recordings]
            for one in gone:
                self._lose(call, one, "the node does not have it")
            if gone:
                self._calls.apply_media(call)

    def node_unlinked(self, node: str) -> None:
        """The app, and with it the recorder, is gone or cut off; the next one is asked anew."""
        self._refused.pop(node, None)
        for call in list(self._calls.by_id.values()):
            gone = [one for one in call.recorders.values() if one.node == node]
            for one in gone:
                self._lose(call, one, "link down")
            if gone:
                self._calls.apply_media(call)

    def relay_has(self, call: EdgeCall, tags: set[str]) -> None:
        """rtpengine was asked what it has: copies it has lost are made anew, in new parts."""
        for one in [one for one in call.recorders.values() if one.port and one.tag not in tags]:
            self._lose(call, one, "lost by rtpengine", said=True)

    # --- what should be --------------------------------------------------------------

    def start(self) -> None:
        """We serve: what was recorded before goes on being looked after."""
        self._began = self._context.now
        self._count()
        self._look_later()

    def _look_later(self) -> None:
        self._context.at("recordings", self._context.now + LOOK_EVERY_S, self._look_all)

    def _look_all(self) -> None:
        self._look_later()
        self._count()
        for call in list(self._calls.by_id.values()):
            if call.recorders or call.recorded:
                before = call.recorder_graph()
                self.look(call)
                if call.recorder_graph() != before:
                    self._calls.apply_media(call)

    def _count(self) -> None:
        """Anew, though every change is counted: calls that were read back bring theirs with them."""
        calls = self._calls.by_id.values()
        self._load = Counter(one.node for call in calls for one in call.recorders.values())

    def look(self, call: EdgeCall) -> None:
        """Ends copies of whoever is not to be recorded (any more), and begins those that are missing. The
        graph of the call's media follows: see `Calls.apply_media`."""
        legs = {} if call.ended else {leg.leg: leg for leg in call.recorded_legs()}
        for one in list(call.recorders.values()):
            if one.leg not in legs:
                self._lose(call, one, "", said=True)
            elif not self._reached(one.node):
                self._lose(call, one, "no link")
            elif not one.on and self._context.now > one.since + OPEN_LIMIT_S:
                self._leave_in_peace(one.node)
                self._lose(call, one, "no answer", said=True)
        for leg in legs.values():
            self._look_leg(call, leg)
        if not legs:
            self._short.discard(call.call)

    def _look_leg(self, call: EdgeCall, leg: PhoneLeg) -> None:
        have = [one for one in call.recorders.values() if one.leg == leg.leg]
        lasting = [one for one in have if not self._leaving(one.node)]
        if len(lasting) < RECORDERS:
            spare = self._spare(call, {one.node for one in have})
            if have or not all(node.draining for node in spare):
                # one that is to be empty is better than none, and no more than that
                spare = [node for node in spare if not node.draining]
            lasting += [self._begin(call, leg, node) for node in spare[: RECORDERS - len(lasting)]]
        # where its recorder listens is said before rtpengine sends anything there
        if sum(call.media.confirmed(one.tag) for one in lasting) >= RECORDERS:
            for one in have:
                if one not in lasting:
                    self._lose(call, one, "drained", said=True)
        self._tell_shortage(call, leg, len({one.node for one in (*have, *lasting)}))

    def _tell_shortage(self, call: EdgeCall, leg: PhoneLeg, nodes: int) -> None:
        if nodes < RECORDERS and call.call not in self._short:
            self._short.add(call.call)
            text = "recorded by one node only" if nodes else "no node records it"
            self._context.note(f"call/{call.call}", text, level="warning", leg=leg.leg)
            self._context.count("edge_recordings_short")
        elif nodes >= RECORDERS:
            self._short.discard(call.call)

    def _reached(self, name: str) -> bool:
        node = self._watch.nodes.get(name)
        if node is None:
            return False
        young = self._began is None or self._context.now < self._began + LINK_GRACE_S
        return node.link_up or (young and not node.incarnation)

    def _leaving(self, name: str) -> bool:
        node = self._watch.nodes.get(name)
        return node is None or node.draining

    def _spare(self, call: EdgeCall, taken: set[str]) -> list[WatchedNode]:
        """Nodes that could record too: those that leave last, first those that record others on the call, so
        that two losses are needed to lose any voice, then the least busy."""
        here = {one.node for one in call.recorders.values()}
        now = self._context.now
        able = [
            node
            for node in self._watch.nodes.values()
            if node.link_up and node.records and node.config.name not in taken
            and self._refused.get(node.config.name, (0.0,))[0] <= now
        ]  # fmt: skip

        def order(node: WatchedNode) -> tuple[bool, bool, bool, int, str]:
            name = node.config.name
            return node.draining, node.cordoned, name not in here, self._load[name], name

        return sorted(able, key=order)

    # --- one copy --------------------------------------------------------------------

    def _begin(self, call: EdgeCall, leg: PhoneLeg, node: WatchedNode) -> RecorderLeg:
        context, name = self._context, node.config.name
        tag = call.take_tag(TAG.format(leg.leg), name)
        one = RecorderLeg(
            context.new_id(), leg.leg, name, tag, AudioSide(leg.side.payload), since=context.now
        )
        call.recorders[one.recording] = one
        self._load[name] += 1

        def opened(outcome: Outcome) -> None:
            if call.ended or call.recorders.get(one.recording) is not one:
                return
            if not self._setup.take_port(outcome, one):
                self._lose(call, one, "rtpengine gave no port")
                return
            frame = link.Record(
                recording=one.recording, call=call.call, leg=one.leg, host=one.host, port=one.port,
                payload=one.side.payload,
            )  # fmt: skip
            context.link(name, frame)

        body = self._setup.create_body(tag, one.side, context.config.core_interface)
        self._setup.create(call, body, opened)
        return one

    def _lose(self, call: EdgeCall, one: RecorderLeg, why: str, said: bool = False) -> None:
        """The copy ends; ``said``: its recorder has to be told. ``why``: empty where it is no loss."""
        if call.recorders.pop(one.recording, None):
            self._load[one.node] -= 1
        call.free_tag(one.tag)
        call.media.forget_tag(one.tag)
        if said:
            self._end(one.node, one.recording, call.call)
        if why and not call.ended:
            level = "info" if why == "drained" else "warning"
            self._context.note(f"call/{call.call}", f"no longer recorded by {one.node}", level=level,
                               leg=one.leg, why=why)  # fmt: skip
            self._context.count("edge_recordings_lost", why=why.partition(":")[0])
            self._calls.touch(call)

    def _end(self, node: str, recording: str, call: str) -> None:
        self._context.link(node, link.EndRecording(recording=recording, call=call))
