"""A system of the site that IVR steps ask for something with effects: it takes its time,
it does what it is asked, once per request, and answers, unless the answer is lost."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from ari_ha.core.machine import Done, Outcome, Refused, Unreachable
from ari_ha.core.ports.web import WebAnswer, WebRequest
from ari_ha.simulation.world import World

WORKS_MIN_S, WORKS_MAX_S = 0.05, 1.5
DOWN_SHARE, SAYS_NO_SHARE, ANSWER_LOST_SHARE = 0.05, 0.05, 0.1


class FakeSite:
    """Counts what it did, by call and by key."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.done: dict[str, list[str]] = {}
        """call -> keys of what was done for it, in order"""
        self._keys: set[str] = set()

    def perform(self, effect: WebRequest, settle: Callable[[Outcome], None]) -> None:
        """One request on its way. Whoever sent it may be dead when it arrives."""
        world = self.world
        if world.chance(DOWN_SHARE):
            world.after(0.001, lambda: settle(Unreachable("connection refused")))
        elif effect.body:
            world.after(world.between(WORKS_MIN_S, WORKS_MAX_S), lambda: self._does(effect, settle))
        else:
            world.after(world.between(0.005, 0.1), lambda: self._looks(effect, settle))

    def _does(self, effect: WebRequest, settle: Callable[[Outcome], None]) -> None:
        if self.world.chance(SAYS_NO_SHARE):
            settle(Refused("not today", 409))
            return
        call = msgspec.json.decode(effect.body)["call"]
        self.done.setdefault(call, []).append(effect.key)
        self._keys.add(effect.key)
        self.world.say("site", f"done for {call}: {effect.key}")
        if not self.world.chance(ANSWER_LOST_SHARE):
            settle(Done(WebAnswer(200)))

    def _looks(self, effect: WebRequest, settle: Callable[[Outcome], None]) -> None:
        known = effect.key in self._keys
        settle(Done(WebAnswer(200)) if known else Refused("nothing of that key", 404))
