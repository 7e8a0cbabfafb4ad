"""The node's recorder: writes what edges ask it to, whoever serves those calls.

A recording belongs to the call, not to the node that serves it: no channel, no bridge and no
epoch is part of it, and Asterisk may come and go. The edge decides where recordings are; here
they are begun, ended, told of, and given up when nobody has the call any more.
"""

from __future__ import annotations

from dataclasses import dataclass

from ari_ha.core.machine import Done, Outcome
from ari_ha.core.ports.recording import CloseRecording, OpenRecording, RecorderDown, RecordingFailed
from ari_ha.machines.node_context import NodeContext
from ari_ha.machines.node_records import Records
from ari_ha.wire import link

OPEN_LIMIT_S = 3.0
SWEEP_EVERY_S = 10.0
"""A recording whose call had no owner at two looks in a row is ended: its edge has deleted the call
and could not tell us."""


@dataclass(slots=True)
class Recording:
    """One leg being recorded."""

    recording: str
    call: str
    peer: str
    """The edge that asked for it last, or was told of it"""
    host: str = ""
    port: int = 0
    """Where it listens; 0: not yet"""
    ownerless: bool = False


class NodeRecorder:
    """See the module."""

    def __init__(self, context: NodeContext, records: Records) -> None:
        self._context = context
        self._records = records
        self._open: dict[str, Recording] = {}

    @property
    def count(self) -> int:
        """Recordings under way."""
        return len(self._open)

    # --- what edges ask --------------------------------------------------------------

    def asked(self, peer: str, frame: link.Record) -> None:
        """Begin one; asked again, the answer is the same."""
        known = self._open.get(frame.recording)
        if known is not None:
            known.peer = peer
            if known.port:
                self._tell_place(known)
            return
        if not self._context.config.records:
            over = link.RecordingOver(recording=frame.recording, call=frame.call, reason="no recorder here")
            self._context.tell(peer, over)
            return
        one = self._open[frame.recording] = Recording(frame.recording, frame.call, peer)
        effect = OpenRecording(
            lane=f"recording/{frame.recording}", limit_s=OPEN_LIMIT_S, recording=frame.recording,
            call=frame.call, leg=frame.leg, host=frame.host, port=frame.port, payload=frame.payload,
        )  # fmt: skip
        self._context.command(effect, lambda outcome: self._opened(one, frame.leg, outcome))
        if not self._context.armed("recordings"):
            self._context.after("recordings", SWEEP_EVERY_S, self._sweep)

    def _opened(self, one: Recording, leg: str, outcome: Outcome) -> None:
        if self._open.get(one.recording) is not one:
            if isinstance(outcome, Done):
                self._close(one)
            return
        if isinstance(outcome, Done):
            one.host, one.port = outcome.value
            self._context.note(f"call/{one.call}", "recording", leg=leg, recording=one.recording)
            self._context.count("node_recordings_begun")
            self._tell_place(one)
        else:
            self._over(one, outcome.reason)
            self._close(one)  # it may have begun after all

    def _tell_place(self, one: Recording) -> None:
        frame = link.RecorderAt(recording=one.recording, call=one.call, host=one.host, port=one.port)
        self._context.tell(one.peer, frame)

    def ended(self, frame: link.EndRecording) -> None:
        """The edge ends one."""
        one = self._open.pop(frame.recording, None)
        if one is not None:
            self._context.note(f"call/{one.call}", "recording ended", recording=one.recording)
            self._close(one)

    def _close(self, one: Recording) -> None:
        effect = CloseRecording(lane=f"recording/{one.recording}", recording=one.recording)
        self._context.command(effect, lambda outcome: None)

    def list_to(self, peer: str) -> None:
        """What is being written here, for an edge that serves (it has listed its calls) to compare."""
        if not self._context.config.records:
            return
        here = [one for one in self._open.values() if self._for(one, peer)]
        for one in here:
            one.peer = peer
        listed = {one.recording: one.call for one in here}
        self._context.tell(peer, link.NodeRecordings(recordings=listed))

    def _for(self, one: Recording, peer: str) -> bool:
        """Whether it is of that edge's pair. The edge that owns the call may be the one that has just died
        there: its heir writes itself into etcd while it already serves."""
        owner, pair = self._records.owner(one.call), self._context.links[peer].vip
        if owner is None:
            return True
        return owner.vip == pair if owner.vip and pair else owner.edge == peer

    # --- what the recorder says ------------------------------------------------------

    def failed(self, event: RecordingFailed) -> None:
        """One has ended by itself."""
        one = self._open.get(event.recording)
        if one is not None:
            self._over(one, event.reason)

    def down(self, event: RecorderDown) -> None:
        """All have."""
        for one in list(self._open.values()):
            self._over(one, event.reason)

    def _over(self, one: Recording, reason: str) -> None:
        self._open.pop(one.recording, None)
        self._context.note(
            f"call/{one.call}", "not recorded here any more", level="warning", recording=one.recording,
            why=reason,
        )  # fmt: skip
        self._context.count("node_recordings_failed")
        self._context.tell(
            one.peer, link.RecordingOver(recording=one.recording, call=one.call, reason=reason)
        )

    # --- recordings nobody ends ------------------------------------------------------

    def _sweep(self) -> None:
        if not self._open:
            return
        self._context.after("recordings", SWEEP_EVERY_S, self._sweep)
        certain = self._context.store_ok and self._records.seen
        for one in list(self._open.values()):
            gone = certain and self._records.owner(one.call) is None
            if gone and one.ownerless:
                self._context.note(f"call/{one.call}", "its call is over: recording ended", level="warning",
                                   recording=one.recording)  # fmt: skip
                del self._open[one.recording]
                self._close(one)
            one.ownerless = gone
