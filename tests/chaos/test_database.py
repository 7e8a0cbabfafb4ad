"""The lab's pair of databases: killed, moved, and its watcher killed, while writers write.

`ari-ha db-chaos` has every fault; these are the ones looked at each time."""

from __future__ import annotations

import pytest

from ari_ha.cli.chaos_stage import Stage as Calls
from ari_ha.cli.cluster import Cluster, load_settings
from ari_ha.cli.database_chaos import SWITCHOVER, Stage, good
from ari_ha.cli.lab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]


@pytest.fixture
def pair(running_lab: Calls) -> Stage:
    return Stage(Cluster(load_settings(running_lab.cluster.settings.source)), Lab())


def test_a_killed_primary_loses_no_confirmed_write_and_comes_back(pair: Stage) -> None:
    row = pair.one("primary-kill")
    assert good(row), row
    assert row["primary"] != row["primary_after"] and row["confirmed"] > 50


def test_a_switchover_loses_nothing(pair: Stage) -> None:
    row = pair.one(SWITCHOVER)
    assert good(row), row
    assert row["primary"] != row["primary_after"]


def test_a_killed_watcher_moves_nothing(pair: Stage) -> None:
    row = pair.one("watcher-kill")
    assert good(row), row
    assert row["primary"] == row["primary_after"]
