"""Fixtures of the tests that need the container lab (marker ``lab``).

Without Docker they are skipped and say why; in continuous integration (``CI`` is set) that is an error.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ari_ha.cli.chaos_stage import Stage

ROOT = Path(__file__).resolve().parents[1]
LAB_SETTINGS = ROOT / ".lab/operator/settings.json"
LAB_UP_LIMIT_S = 1_200


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs the lab where Docker cannot run."""
    wanting = [item for item in items if item.get_closest_marker("lab")]
    if not wanting:
        return
    from ari_ha.cli.lab import Lab

    why = Lab.available()
    if not why:
        return
    if os.environ.get("CI"):
        raise pytest.UsageError(f"the tests marked 'lab' must run here, and Docker cannot: {why}")
    for item in wanting:
        item.add_marker(pytest.mark.skip(reason=f"no container lab: {why}"))


@pytest.fixture(scope="session")
def running_lab() -> Stage:
    """The lab, up and serving; brought up with ``make lab-up`` when it is not."""
    from ari_ha.cli.chaos_stage import Stage, StageError
    from ari_ha.cli.cluster import ClusterError
    from ari_ha.cli.lab import LabError

    try:
        stage = Stage(str(LAB_SETTINGS))
        if not stage.lab.running():
            raise StageError("not up")
    except (StageError, ClusterError, LabError, OSError):
        done = subprocess.run(
            ["make", "lab-up"], cwd=ROOT, timeout=LAB_UP_LIMIT_S, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        stage = Stage(str(LAB_SETTINGS))
    stage.check()
    return stage


_clean: list[bool] = []
"""Not empty: nobody has used the lab since a test cleaned it."""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Notes the tests that use the lab and do not clean it themselves."""
    if item.get_closest_marker("lab") and "stage" not in getattr(item, "fixturenames", ()):
        _clean.clear()


@pytest.fixture
def stage(running_lab: Stage) -> Iterator[Stage]:
    """The lab without calls and without faults, before and after each test."""
    if not _clean:
        running_lab.clean()
    _clean.clear()
    yield running_lab
    running_lab.clean()
    _clean.append(True)
