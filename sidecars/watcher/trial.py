"""For trials only: the watcher ends itself at a step it is told, so that whoever comes after it can be seen
going on.

``crash_file`` names a file with one line, ``after promote/open``: when the list ``promote`` has taken its
step ``open``, and before the watcher knows, its process is killed. ``before`` is before the step is taken,
``during`` while it is under way. The file is removed first, so it strikes once. An empty setting: none of
this is there.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

from ari_ha.core.machine import Done, Effect, Outcome
from ari_ha.machines.database_steps import LANE, Steps

DURING_S = 0.1
"""After the beginning of a step, for ``during``: a server that was killed a moment ago is up after 0.2 s."""

Perform = Callable[[Effect], Awaitable[Outcome]]


def _end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class CrashPoint:
    """Around one watcher's effects. ``steps``: what its machine is doing."""

    def __init__(self, file: str, steps: Steps, perform: Perform, end: Callable[[], None] = _end) -> None:
        self._file = Path(file)
        self._steps = steps
        self._perform = perform
        self._end = end

    async def perform(self, effect: Effect) -> Outcome:
        """The effect's outcome, if this process lives to see it."""
        running = self._steps.current
        if effect.lane != LANE or running is None or running.under_way != getattr(effect, "tag", ""):
            return await self._perform(effect)
        step = f"{running.kind}/{running.step}"
        self._strike(f"before {step}")
        loop = asyncio.get_running_loop()
        timer = loop.call_later(DURING_S, self._strike, f"during {step}")
        try:
            outcome = await self._perform(effect)
        finally:
            timer.cancel()
        if isinstance(outcome, Done):
            self._strike(f"after {step}")
        return outcome

    def _strike(self, point: str) -> None:
        try:
            wanted = self._file.read_text().strip()
        except OSError:
            return
        if wanted == point:
            self._file.unlink()
            self._end()
