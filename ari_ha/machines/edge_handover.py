"""A call that moves on purpose changes nodes when its next one is heard, so that nobody hears a hole.

A node says that it has bridged a call when its Asterisk has been asked for everything. The first packet
of music, of a prompt or of a voice comes later: Asterisk answers before it plays, and a stream begins a
packet's time after it is asked for. So until then the old node serves. Meanwhile the next one
hears whoever talks through it, and rtpengine, which counts also what nobody hears, is asked whether
each voice of it comes.

What the old node has in hand at the change is not cut off either: it hears nobody any more, but is heard
until its last packet must have come.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ari_ha.core.machine import Done, Outcome
from ari_ha.machines.edge_calls import Calls
from ari_ha.machines.edge_context import EdgeContext
from ari_ha.machines.edge_model import EdgeCall, Move
from ari_ha.machines.media import Hears, packets_from

LOOK_AGAIN_S = 0.02
"""A packet's time; every further look comes after half as much again."""
LOOK_SLOWER = 1.5
QUERY_LIMIT_S = 0.25
"""A relay that has not answered by then is not waited for."""
FADE_S = 0.06
"""What an Asterisk that hears nobody any more still has in hand is sent by then, on a busy machine too."""


@dataclass(slots=True)
class Listening:
    """One call whose next node is listened for."""

    call: EdgeCall
    move: Move
    since: float
    until: float
    then: Callable[[EdgeCall], None]
    silent: set[str]
    """Tags of the next node of which nothing has come yet"""
    counts: dict[str, int] = field(default_factory=dict)
    """tag -> packets at the first look"""
    pause_s: float = LOOK_AGAIN_S
    open_questions: int = 0


class Handover:
    """The last step of a move on purpose."""

    def __init__(self, context: EdgeContext, calls: Calls) -> None:
        self._context = context
        self._calls = calls
        self._listening: dict[str, Listening] = {}

    def begin(self, call: EdgeCall, then: Callable[[EdgeCall], None]) -> None:
        """The next node has every leg: ``then`` is called when whatever phones are to hear of it comes,
        at once where that is nothing, and at the latest after ``handover_limit_s``: it may have nothing
        to say. A relay that was away is asked as well: it gave the call its ports just now."""
        move, context = call.move, self._context
        assert move is not None
        context.cancel(f"move/{call.call}")
        move.handing_over = True
        voices = self._calls.voices_of_next(call)
        if not voices:
            then(call)
            return
        until = context.now + context.timings.handover_limit_s
        listening = Listening(call, move, context.now, until, then, voices)
        self._listening[call.call] = listening
        self._calls.apply_media(call)
        self._look(listening)

    def hasten(self, call: EdgeCall) -> None:
        """The old node serves no more: nothing is waited for."""
        if found := self._listening.get(call.call):
            now = found.until = self._context.now
            why = "the old one is lost"
            self._context.at(f"handover/{call.call}", now, lambda: self._done(found, why))

    def stop(self, call: EdgeCall) -> None:
        """The move is off, or done."""
        self._listening.pop(call.call, None)
        self._context.cancel(f"handover/{call.call}")

    def _over(self, listening: Listening) -> bool:
        return self._listening.get(listening.call.call) is not listening

    def _look(self, listening: Listening) -> None:
        if self._over(listening):
            return
        call = listening.call
        if call.ended or call.move is not listening.move:
            self.stop(call)
            return
        silent = sorted(listening.silent)
        listening.open_questions = len(silent)
        for tag in silent:
            self._ask(listening, tag)

    def _ask(self, listening: Listening, tag: str) -> None:
        def told(outcome: Outcome) -> None:
            if self._over(listening):
                return
            count = packets_from(outcome.value, tag) if isinstance(outcome, Done) else None
            if count is None:
                self._done(listening, "the relay does not tell")
                return
            if count > listening.counts.setdefault(tag, count):
                listening.silent.discard(tag)
            listening.open_questions -= 1
            if not listening.open_questions:
                self._judge(listening)

        # with its name the answer is about it and whom it hears, however many parties there have been
        body: dict[str, object] = {"call-id": listening.call.call, "from-tag": tag}
        self._context.count("edge_handover_queries")
        self._context.ng_free("query", body, QUERY_LIMIT_S, told)

    def _judge(self, listening: Listening) -> None:
        context = self._context
        if not listening.silent:
            self._done(listening, "")
        elif context.now >= listening.until:
            self._done(listening, "nothing comes of " + ",".join(sorted(listening.silent)))
        else:
            when = min(context.now + listening.pause_s, listening.until)
            listening.pause_s *= LOOK_SLOWER
            context.at(f"handover/{listening.call.call}", when, lambda: self._look(listening))

    def _done(self, listening: Listening, why: str) -> None:
        if self._over(listening):
            return
        call = listening.call
        self.stop(call)
        if call.ended or call.move is not listening.move:
            return
        context = self._context
        if why:
            context.note(f"call/{call.call}", "its next node is not waited for", why=why)
            context.count("edge_handovers_unheard")
        else:
            after_ms = round((context.now - listening.since) * 1000)
            context.note(f"call/{call.call}", "its next node is heard", after_ms=after_ms)
        listening.then(call)

    # --- what the old node has in hand -----------------------------------------------

    def fade(self, call: EdgeCall, fading: set[Hears], epoch: str, then: Callable[[], None]) -> None:
        """The media is at the next node: ``then`` runs when what the old one had in hand has been heard."""
        if not fading:
            then()
            return

        def faded() -> None:
            call.fading -= fading
            self._calls.apply_media(call, then)

        self._context.at(f"fade/{call.call}/{epoch}", self._context.now + FADE_S, faded)
