"""The lab's stepping clock: what is written where, and what is refused. (In the lab: tests/chaos.)"""

from __future__ import annotations

import re
import time

import pytest

from ari_ha.cli import lab_clock
from ari_ha.cli.lab import FAULTS, PREPARED, LabError


class Host:
    """What is asked of a host; ``ready``: its processes have a clock of their own."""

    def __init__(self, ready: bool) -> None:
        self.ready = ready
        self.asked: list[str] = []

    def run(self, host: str, *command: str, given: str | None = None, limit_s: float = 0.0) -> str:
        self.asked.append(" ".join(command))
        return "yes" if self.ready and "echo yes" in command[-1] else ""

    def steps(self) -> list[str]:
        return [found[1] for asked in self.asked if (found := re.match(r"sh -c echo ([+-]\d+) > ", asked))]


def test_it_goes_ahead_back_and_is_put_right() -> None:
    host = Host(ready=True)
    struck = lab_clock.step(host, "ast1", each_s=0.02)  # type: ignore[arg-type]
    end = time.monotonic() + 10
    while len(host.steps()) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    assert struck.mend is not None
    struck.mend()
    assert host.steps() == ["+3600", "-3600", "+0"]


def test_one_that_is_mended_early_does_not_step_again() -> None:
    host = Host(ready=True)
    struck = lab_clock.step(host, "edge1", each_s=60.0)  # type: ignore[arg-type]
    assert struck.mend is not None
    struck.mend()
    assert host.steps() == ["+3600", "+0"]


def test_a_host_without_a_clock_of_its_own_is_refused() -> None:
    host = Host(ready=False)
    with pytest.raises(LabError, match="chaos run"):
        lab_clock.step(host, "ast1")  # type: ignore[arg-type]
    assert host.steps() == []


def test_its_processes_are_started_again_with_one() -> None:
    host = Host(ready=True)
    lab_clock.give(host, "ast2")  # type: ignore[arg-type]
    assert any("force-restart asterisk app" in asked for asked in host.asked)
    assert set(PREPARED) <= set(FAULTS)
