"""Two writers change one row at once: the servers differ in silence, and their watchers have to tell."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ari_ha.cli.database_chaos import Stage

TABLE = "chaos_conflict"
SCHEMA = f"CREATE TABLE IF NOT EXISTS {TABLE} (id INT NOT NULL PRIMARY KEY, value VARCHAR(20) NOT NULL)"
ALARM_LIMIT_S = 120.0
SAME_LIMIT_S = 30.0


def conflict(stage: Stage) -> dict[str, Any]:
    """One run: `alarm_ms` from the healed connection until both watchers tell the table; mended by a new
    write to the row then, as an operator would, and seen to be the same again."""
    from ari_ha.cli.database_chaos import WELL_LIMIT_S
    from ari_ha.cli.lab_database import cut_peer

    target, (one, two) = stage.target, tuple(stage.target.servers)
    stage.wait("the pair is well", WELL_LIMIT_S, stage.well)
    target.ask(one, SCHEMA)
    target.ask(one, f"REPLACE INTO {TABLE} VALUES (1, 'same')")
    stage.wait("both have the row", SAME_LIMIT_S, lambda: _values(stage) == ["same", "same"])
    cut = cut_peer(stage.lab, one)
    try:
        for server in (one, two):
            target.ask(server, f"UPDATE {TABLE} SET value = %s WHERE id = 1", (f"of {server}",))
    finally:
        assert cut.mend is not None
        cut.mend()
    healed = time.time()
    stage.wait("both watchers tell", ALARM_LIMIT_S, lambda: _told(stage) == [True, True])
    alarm_ms, values = round((time.time() - healed) * 1000), _values(stage)
    target.ask(one, f"UPDATE {TABLE} SET value = 'mended' WHERE id = 1")
    stage.wait("the alarm is over", ALARM_LIMIT_S, lambda: _told(stage) == [False, False])
    stage.wait("the pair is well again", WELL_LIMIT_S, stage.well)
    same = _values(stage) == ["mended", "mended"]
    return {
        "fault": "conflict", "die": "", "died": [], "primary": one, "primary_after": one, "values": values,
        "alarm_ms": alarm_ms, "confirmed": 2, "lost": 0, "equal": same, "gap_ms": 0, "two_at_once": 0,
        "well_ms": round((time.time() - cut.at) * 1000), "rebuilt": 0, "tail": 0,
    }  # fmt: skip


def _values(stage: Stage) -> list[str]:
    """The row on either server."""
    found = (
        stage.target.ask(server, f"SELECT value FROM {TABLE} WHERE id = 1") for server in stage.target.servers
    )
    return [str(rows[0][0]) if rows else "" for rows in found]


def _told(stage: Stage) -> list[bool]:
    name = f"{stage.target.database}.{TABLE}"
    return [name in member["diverged"] for member in stage.pair()["members"]]
