"""A watcher that is told to end itself at a step does, there and once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ari_ha.core.machine import Done, Effect, Outcome, Refused
from ari_ha.core.ports.database import DatabaseDo
from ari_ha.machines.database_steps import Step, Steps
from sidecars.watcher.trial import DURING_S, CrashPoint


@pytest.mark.parametrize(
    ("told", "outcome", "takes_s", "ends"),
    [
        ("before promote/open", Done(), 0.0, 1),
        ("after promote/open", Done(), 0.0, 1),
        ("after promote/open", Refused("read-only"), 0.0, 0),
        ("during promote/open", Done(), DURING_S + 0.2, 1),
        ("during promote/open", Done(), 0.0, 0),
        ("after promote/close", Done(), 0.0, 0),
        ("", Done(), 0.0, 0),
    ],
)
async def test_it_ends_at_the_step_it_is_told(
    tmp_path: Path, told: str, outcome: Outcome, takes_s: float, ends: int
) -> None:
    file, effects, ended = tmp_path / "crash-step", [], []
    if told:
        file.write_text(told + "\n")

    async def perform(effect: Effect) -> Outcome:
        await asyncio.sleep(takes_s)
        return outcome

    steps = Steps(effects.append, lambda *what: None, lambda: 0, lambda *what: None)
    point = CrashPoint(str(file), steps, perform, lambda: ended.append(told))
    steps.begin("promote", [Step("open", lambda now: DatabaseDo(verb="open"))], lambda now: True, 0.0)
    assert await point.perform(effects[0]) == outcome
    assert await point.perform(DatabaseDo(verb="heartbeat", lane="heartbeat")) == outcome
    assert len(ended) == ends and file.exists() == (bool(told) and not ends)
