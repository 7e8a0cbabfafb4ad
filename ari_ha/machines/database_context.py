"""What the parts of a watcher share."""

from __future__ import annotations

from collections.abc import Callable

from ari_ha.core.machine import Effect, Instant, Note
from ari_ha.machines.database_config import DatabaseConfig
from ari_ha.machines.database_model import Model
from ari_ha.machines.database_steps import StepList, Steps


class Context:
    """One per machine."""

    def __init__(self, config: DatabaseConfig, ended: Callable[[StepList, str, Instant], None]) -> None:
        self.config = config
        self.timings = config.timings
        self.model = Model(config)
        self.out: list[Effect] = []
        self.counts: dict[str, int] = {}
        self.steps = Steps(self.emit, ended, lambda: self.model.lease, self.model.take_written)
        self.utc_s = 0.0

    def emit(self, effect: Effect) -> None:
        """Has it done."""
        self.out.append(effect)

    def note(self, text: str, level: str = "info", **facts: str) -> None:
        """A line of the story."""
        subject = f"database/{self.config.database}/{self.config.server}"
        self.out.append(Note(subject=subject, text=text, facts=tuple(facts.items()), level=level))

    def count(self, name: str) -> None:
        """One more of these."""
        self.counts[name] = self.counts.get(name, 0) + 1
