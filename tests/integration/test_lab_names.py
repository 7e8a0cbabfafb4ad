"""A carrier by its name, as the name server of the lab's network has it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from ari_ha.cli.chaos_stage import Stage, until
from ari_ha.cli.lab import EDGES, FAREND, NETWORK, PREFIX

pytestmark = pytest.mark.lab

NAME = "named"


@pytest.fixture
def by_name(stage: Stage) -> Iterator[Any]:
    """Writes the trunk with an address, as an operator does."""

    def write(address: str) -> None:
        entry = {"trunk": NAME, "address": address, "prefixes": ["0099"], "options_interval_s": 1}
        command = ("ari-ha", "config", "load", "/dev/stdin")
        stage.lab.run("ast1", *command, given=json.dumps({"trunks": [entry]}))

    yield write
    stage.lab.run("etcd1", "etcdctl", "del", f"/ari-ha/lab/v1/trunks/{NAME}")


def seen(stage: Stage) -> dict[str, Any]:
    rows = stage.cluster.http(stage.cluster.settings.processes[EDGES[0]], "/v1/trunks")
    return next((row for row in rows if row["trunk"] == NAME), {})


def test_a_carrier_by_its_name(stage: Stage, by_name: Any) -> None:
    by_name(f"{PREFIX}{FAREND}:5060")
    until("it is found and answers", 20, lambda: seen(stage).get("at") == {f"{NETWORK}.1.50:5060": "up"}, 0.2)
    # no SRV record there: the address of the name, and the default port
    by_name(f"{PREFIX}{FAREND}")
    until("it is found and answers", 20, lambda: seen(stage).get("at") == {f"{NETWORK}.1.50:5060": "up"}, 0.2)
    by_name("nobody.invalid:5060")
    row = until(
        "it is down", 20, lambda: (r := seen(stage)).get("reach") == "down" and not r["at"] and r, 0.2
    )
    assert "nobody.invalid" in row["why"]
