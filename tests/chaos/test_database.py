"""The lab's pair of databases: killed, moved, and its watcher killed, while writers write.

`ari-ha db-chaos` has every fault; these are the ones looked at each time."""

from __future__ import annotations

import pytest

from ari_ha.cli.chaos_stage import Stage as Calls
from ari_ha.cli.cluster import Cluster, load_settings
from ari_ha.cli.database_chaos import SWITCHOVER, Stage, good
from ari_ha.cli.lab import Lab
from ari_ha.cli.lab_database import AS_WATCHER, kill, watcher_stop

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


@pytest.mark.parametrize("point", ["after promote/open", "during start/start"])
def test_a_watcher_that_dies_at_a_step_is_gone_on_from(pair: Stage, point: str) -> None:
    """`--die all` has every step. One that dies at a start must not have a second server started."""
    row = pair.until_taken("primary-kill", point)
    assert good(row), row


def test_numbers_that_could_collide_are_mended(pair: Stage) -> None:
    """On the running standby, as somebody with all rights would."""
    before = pair.wait("the pair is well", 180.0, pair.well)
    standby = before["standby"]
    ask(pair.lab, standby, "SET GLOBAL auto_increment_increment = 1; SET GLOBAL auto_increment_offset = 1")
    ask(pair.lab, before["primary"], "SET GLOBAL auto_increment_offset = 1")
    wanted = {"db1": "2 1", "db2": "2 2"}
    numbers = "SELECT CONCAT(@@global.auto_increment_increment, ' ', @@global.auto_increment_offset)"

    def mended() -> bool:
        return all(ask(pair.lab, server, numbers).split("\n")[-1] == wanted[server] for server in wanted)

    assert pair.wait("both are numbered apart again", 60.0, mended)


def test_a_server_with_the_identity_of_the_other_neither_follows_nor_is_promoted(pair: Stage) -> None:
    before = pair.wait("the pair is well", 180.0, pair.well)
    standby, primary = before["standby"], before["primary"]
    number = primary.removeprefix("db")
    stopped = watcher_stop(pair.lab, standby)
    try:
        kill(pair.lab, standby)
        pair.lab.run(standby, "env", f"ARI_HA_SERVER_ID={number}", "ari-ha-database", "start", limit_s=60.0)
    finally:
        assert stopped.mend is not None
        stopped.mend()

    def told() -> bool:
        member = next(m for m in pair.pair()["members"] if m["name"] == standby)
        problems = " ".join(member["problems"])
        return f"server_id {number} is also {primary}'s" in problems and member["io"] != "yes"

    assert pair.wait("it is told", 60.0, told)
    pair.wait("it is no standby any more", 60.0, lambda: pair.pair()["standby"] != standby)
    assert pair.pair()["primary"] == primary, "who writes goes on"
    kill(pair.lab, standby)  # its watcher starts it as it should be
    assert pair.wait("the pair is well again", 180.0, pair.well)


def ask(lab: Lab, server: str, text: str) -> str:
    """One statement of the watcher's user."""
    return lab.run(server, "bash", "-c", AS_WATCHER, given=text).strip()
