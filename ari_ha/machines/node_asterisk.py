"""Makes Asterisk do what a call wants: compares the two and asks for the difference.

The same comparison serves a new call, a moved one, one found after a restart of
the app, and one whose requests were lost: whatever Asterisk does not do yet is
asked for; what was asked for is believed only when Asterisk confirms it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from ari_ha.core.ids import Epoch
from ari_ha.core.machine import Done, Outcome, Refused
from ari_ha.machines.node_context import NodeContext
from ari_ha.machines.node_model import HITLESS, NO_MUSIC, THROUGH, Leg, Wanted, bridge_id
from ari_ha.wire import link

BRIDGE_TYPE = "mixing,dtmf_events"
"""Plain ``mixing`` relays RTP natively and hides digits from ARI."""
COMPLAIN_EVERY = 10


class Side(Protocol):
    """What this module needs of a call."""

    call: str
    epoch: Epoch
    legs: dict[str, Leg]
    vip: str

    def wanted(self) -> Wanted:
        """What Asterisk should be doing now."""
        ...

    def quiet(self) -> bool:
        """Nothing is to be asked of Asterisk for this call now."""
        ...

    def channel_missing(self, leg: str) -> None:
        """Asterisk says it has no such channel."""
        ...

    def satisfied(self, wanted: Wanted) -> None:
        """Asterisk does what was wanted."""
        ...


@dataclass(slots=True)
class _Ask:
    operation: str
    params: dict[str, Any]
    done: Callable[[], None]
    leg: str = ""
    """The leg whose channel a 404 is about."""
    bridge: str = ""
    """A 404 is about this bridge; a 409 says that it is there."""


class MediaWish:
    """The media state the app wants of the edge, and what the edge last said."""

    def __init__(self, context: NodeContext, call: Side, want: str) -> None:
        self._context = context
        self._call = call
        self.want = want
        """Last asked for; empty: nothing yet, the edge does as before."""
        self.there = want
        self.request = 0
        self.on_limit: Callable[[], None] = lambda: None
        self._gate = 0.0

    def ask(self, state: str) -> None:
        """Tells the edge, when it is not what it was told last."""
        if state == self.want:
            return
        self.want = state
        self.request += 1
        call = self._call
        said = self._context.say(
            link.WantMedia(call=call.call, epoch=str(call.epoch), state=state, request=self.request), call.vip
        )
        self._gate = self._context.now
        if state != HITLESS and said:
            limit_s = self._context.timings.media_limit_s
            self._gate += limit_s
            self._context.after(f"media/{call.call}", limit_s, self.on_limit)

    def confirmed(self, frame: link.MediaIs) -> bool:
        """The edge's answer; False when it is to an older wish. In doubt about our node it goes where
        it is not asked to, and back later without a word: the limit stands."""
        if frame.request != self.request:
            return False
        self.there = frame.state
        if frame.state in (THROUGH, self.want):
            self._context.cancel(f"media/{self._call.call}")
        return True

    def may_speak(self) -> bool:
        """Whether Asterisk is heard: the edge said so, or its limit is over."""
        return self.there != HITLESS or self._context.now >= self._gate

    def heard(self, state: str = THROUGH) -> bool:
        """Whether what Asterisk says is heard from its first word: the edge has confirmed
        ``state`` (or ``through``, which is more), or its limit is over."""
        if self.there in (THROUGH, state):
            return True
        return self.want in (THROUGH, state) and self._context.now >= self._gate

    def ask_again(self) -> None:
        """A link came up: the wish is said once more."""
        if self.want:
            want, self.want = self.want, ""
            self.ask(want)


class AsteriskSide:
    """Asterisk's part of one call."""

    def __init__(self, context: NodeContext, call: Side, media: MediaWish) -> None:
        self._context = context
        self._call = call
        self._media = media
        self.existing: set[str] = set()
        """Bridges of this call that are in Asterisk"""
        self._pending = 0
        self._failures = 0
        self._failed = False
        """Something of the requests under way was not done."""

    def bridge(self, consult: str = "") -> str:
        """The id of a conversation's bridge."""
        return bridge_id(self._call.call, self._call.epoch, consult)

    def settle(self) -> None:
        """Asks for what is missing; says `satisfied` when nothing is."""
        if self._pending or self._call.quiet() or not self._context.ari_state.up:
            return
        if self._context.armed(f"settle/{self._call.call}"):
            return
        wanted = self._call.wanted()
        if wanted.media == THROUGH:
            self._media.ask(THROUGH)
        asks, waits = self._difference(wanted)
        if asks:
            self._pending, self._failed = len(asks), False
            for ask in asks:
                self._emit(ask)
        elif not waits:
            self._call.satisfied(wanted)

    def forget(self) -> None:
        """The connection to Asterisk is new: nothing is under way any more."""
        self._pending = 0
        self._failures = 0
        self._context.cancel(f"settle/{self._call.call}")

    # --- the difference ------------------------------------------------------------

    def _difference(self, wanted: Wanted) -> tuple[list[_Ask], bool]:
        """What to ask for, in order, and whether something waits for the edge."""
        asks = [self._answer(leg) for leg in self._channels() if leg.leg in wanted.answer]
        music = wanted.music if self._media.may_speak() else {}
        for leg in self._channels():
            if self._channel(leg).music not in (NO_MUSIC, wanted.music.get(leg.leg, NO_MUSIC)):
                asks.append(self._stop_music(leg))
        asks += self._membership(wanted)
        for leg in self._channels():
            chosen = music.get(leg.leg, NO_MUSIC)
            if chosen and self._channel(leg).music != chosen:
                asks.append(self._start_music(leg, chosen))
        return asks, len(music) < len(wanted.music)

    def _channels(self) -> list[Leg]:
        return [leg for leg in self._call.legs.values() if leg.alive and leg.channel is not None]

    @staticmethod
    def _channel(leg: Leg) -> Any:
        assert leg.channel is not None
        return leg.channel

    def _answer(self, leg: Leg) -> _Ask:
        channel = self._channel(leg)

        def done() -> None:
            channel.answered = channel.up = True

        return _Ask("channels.answer", {"channelId": channel.id}, done, leg.leg)

    def _stop_music(self, leg: Leg) -> _Ask:
        channel = self._channel(leg)

        def done() -> None:
            channel.music = NO_MUSIC

        return _Ask("channels.stopMoh", {"channelId": channel.id}, done, leg.leg)

    def _start_music(self, leg: Leg, name: str) -> _Ask:
        channel = self._channel(leg)

        def done() -> None:
            channel.music = name

        return _Ask("channels.startMoh", {"channelId": channel.id, "mohClass": name}, done, leg.leg)

    def _membership(self, wanted: Wanted) -> list[_Ask]:
        place = {leg: self.bridge(name) for name, legs in wanted.bridges.items() for leg in legs}
        asks = [
            self._remove(leg)
            for leg in self._channels()
            if not leg.aside
            and self._channel(leg).bridge
            and self._channel(leg).bridge != place.get(leg.leg, "")
        ]
        for name in wanted.bridges:
            asks += self._join(self.bridge(name), place)
        return asks

    def _join(self, bridge: str, place: dict[str, str]) -> list[_Ask]:
        """Whoever belongs into the bridge and is not there."""
        joining = [
            self._channel(leg)
            for leg in self._channels()
            if place.get(leg.leg) == bridge and self._channel(leg).bridge != bridge
        ]
        if not joining:
            return []
        asks: list[_Ask] = []
        if bridge not in self.existing:
            params = {"bridgeId": bridge, "type": BRIDGE_TYPE, "name": self._call.call}
            made = partial(self.existing.add, bridge)
            asks.append(_Ask("bridges.createWithId", params, made, bridge=bridge))

        def joined() -> None:
            for channel in joining:
                channel.bridge = bridge

        ids = ",".join(channel.id for channel in joining)
        # without inhibiting, Asterisk tells each end of the other by a re-INVITE
        params = {"bridgeId": bridge, "channel": ids, "inhibitConnectedLineUpdates": "true"}
        asks.append(_Ask("bridges.addChannel", params, joined, bridge=bridge))
        return asks

    def _remove(self, leg: Leg) -> _Ask:
        channel = self._channel(leg)

        def done() -> None:
            channel.bridge = ""

        return _Ask("bridges.removeChannel", {"bridgeId": channel.bridge, "channel": channel.id}, done)

    # --- asking --------------------------------------------------------------------

    def _emit(self, ask: _Ask) -> None:
        def told(outcome: Outcome) -> None:
            self._told(ask, outcome)

        self._context.ari(f"call/{self._call.call}", ask.operation, ask.params, told)

    def _told(self, ask: _Ask, outcome: Outcome) -> None:
        self._pending = max(0, self._pending - 1)
        if isinstance(outcome, Done) or (ask.operation == "bridges.createWithId" and _code(outcome) == 409):
            ask.done()
        else:
            self._not_done(ask, outcome)
        if not self._pending:
            if self._failed:
                self._pause()
            else:
                self.settle()

    def _not_done(self, ask: _Ask, outcome: Outcome) -> None:
        code = _code(outcome)
        if ask.operation == "bridges.removeChannel" and code in (400, 404, 409, 422):
            ask.done()  # not in it, or no such bridge or channel: it is not in it
            return
        if ask.bridge and code == 404:
            self.existing.discard(ask.bridge)
            for leg in self._channels():
                if self._channel(leg).bridge == ask.bridge:
                    self._channel(leg).bridge = ""
        elif ask.leg and code == 404:
            self._call.channel_missing(ask.leg)
        self._failed = True
        if getattr(outcome, "reason", "") == "lane stopped":
            return
        self._failures += 1
        self._context.count("node_asks_not_done", operation=ask.operation, code=str(code))
        # once is a channel or bridge that has just gone
        if self._failures == 2 or self._failures % COMPLAIN_EVERY == 0:
            self._context.note(
                f"call/{self._call.call}", f"Asterisk did not do {ask.operation}", level="warning",
                outcome=outcome, times=self._failures,
            )  # fmt: skip

    def _pause(self) -> None:
        """What was not done is asked for again, ever more slowly."""
        timings = self._context.timings
        delay_s = min(timings.retry_first_s * 2 ** min(max(self._failures - 1, 0), 8), timings.retry_last_s)
        name = f"settle/{self._call.call}"
        self._context.after(name, delay_s, self.settle)

    def succeeded(self) -> None:
        """Asterisk is as wanted: failures before that do not count any more."""
        self._failures = 0


def _code(outcome: Outcome) -> int:
    return outcome.code if isinstance(outcome, Refused) else 0
