"""Posting to a mailbox that may be full.

Some events are worth nothing when late (a frame, an ARI event): the adapter
makes a refused one good by its own means. Others must arrive, in order (a link
went down): those are kept and offered again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from ari_ha.core.machine import Event

Post = Callable[[Event], Any]
"""Hands an event to the machine; answers False when it was not taken."""

Labels = tuple[tuple[str, str], ...]
Count = Callable[[str, float, Labels], None]
"""Adds to a counter (``runtime.metrics.Metrics.count``)."""

OFFER_AGAIN_MS = 20


def no_count(name: str, by: float, labels: Labels) -> None:
    """Counts nothing."""


class Outbox:
    """In front of ``post``: what must arrive does, and nothing overtakes it."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self._owed: deque[Event] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def offer(self, event: Event) -> bool:
        """Posts ``event`` now, or answers False and forgets it."""
        return not self._owed and self._post(event) is not False

    def insist(self, event: Event) -> None:
        """Posts ``event`` now or as soon as there is room."""
        if not self.offer(event):
            self._owed.append(event)
            self._arm()

    def close(self) -> None:
        """Posts nothing more."""
        self._post = lambda event: True
        self._owed.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(OFFER_AGAIN_MS / 1000, self._again)

    def _again(self) -> None:
        self._timer = None
        while self._owed and self._post(self._owed[0]) is not False:
            self._owed.popleft()
        if self._owed:
            self._arm()
