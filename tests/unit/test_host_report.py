"""What a host says of itself, and what status makes of it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from ari_ha.cli.status import document, judge
from ari_ha.cli.view import View, build
from ari_ha.core.machine import Done, Outcome, Unreachable
from ari_ha.core.ports.store import KeyValue, StoreTxn, TxnResult
from ari_ha.runtime import host
from ari_ha.runtime.metrics import Metrics
from ari_ha.wire.host import HostValue
from ari_ha.wire.keyspace import Keys, decode, encode

MEMBERS = [{"endpoint": f"e{n}", "healthy": True} for n in range(3)]


def test_memory_is_what_can_be_had(tmp_path: Path) -> None:
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:  1000 kB\nMemFree:  10 kB\nMemAvailable:  250 kB\nHugePages_Total:  0\n")
    assert host.memory_free_share(str(file)) == 0.25
    assert host.memory_free_share(str(tmp_path / "none")) == 1.0


def test_each_file_system_once_and_none_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    found = host.disks([str(tmp_path), str(tmp_path / "below"), "/no/such/path"])
    assert list(found) == [str(tmp_path)] and 0.0 <= found[str(tmp_path)] <= 1.0


async def test_a_version_is_the_first_line_a_program_says(tmp_path: Path) -> None:
    program = tmp_path / "relay"
    program.write_text('#!/bin/sh\necho "Version: 26.0 $1"\necho more\n')
    program.chmod(0o755)
    assert await host.version_of(str(program)) == "26.0 --version"
    assert await host.version_of(str(tmp_path / "none")) == ""


class Store:
    def __init__(self, *outcomes: Outcome) -> None:
        self.outcomes, self.asked = list(outcomes), []  # type: ignore[var-annotated]
        self.enough = asyncio.Event()

    async def perform(self, effect: StoreTxn) -> Outcome:
        self.asked.append(effect)
        if len(self.asked) == len(self.outcomes):
            self.enough.set()
        return self.outcomes[len(self.asked) - 1]


async def test_it_is_said_again_whatever_came_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "EVERY_S", 0.0)
    store = Store(Unreachable("away"), Done(TxnResult(True, 5)))
    more = (lambda: {"mariadb": "11.8"}, lambda: {"db2": -0.0207})
    report = host.HostReport(store, Metrics(), "test", "db1", ["/"], *more)
    task = asyncio.create_task(report.run())
    await asyncio.wait_for(store.enough.wait(), 30)
    task.cancel()
    (put,) = store.asked[1].puts
    value = decode(put.value, HostValue, put.key)
    assert put.key == "/ari-ha/test/v1/hosts/db1" and put.leased
    assert value.clocks_ahead_ms == {"db2": -21}
    assert value.versions["mariadb"] == "11.8" and value.cpus >= 1 and value.disks


async def test_a_file_system_that_hangs_stops_nobody_but_who_looks_at_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = threading.Event()
    looks: list[list[str]] = []

    def disks(paths: Any) -> dict[str, float]:
        looks.append(list(paths))
        there.wait(30)
        return {"/spool": 0.5}

    monkeypatch.setattr(host, "disks", disks)
    monkeypatch.setattr(host, "DISKS_LIMIT_S", 0.1)
    report = host.HostReport(Store(), Metrics(), "test", "ast1", ["/spool"])
    looking = asyncio.create_task(report.look_at_disks())
    await asyncio.sleep(0)
    assert looks and not looking.done(), "others go on meanwhile"
    assert await asyncio.wait_for(looking, 10) == {}
    assert await report.look_at_disks() == {} and len(looks) == 1, "nobody else is sent after it"
    there.set()
    monkeypatch.setattr(host, "DISKS_LIMIT_S", 10.0)
    end = asyncio.get_running_loop().time() + 10
    while not (found := await report.look_at_disks()):
        assert asyncio.get_running_loop().time() < end
    assert found == {"/spool": 0.5}


def view_of(**hosts: HostValue) -> View:
    keys = Keys("test")
    items = [KeyValue(keys.host(name), encode(value), 1) for name, value in hosts.items()]
    return build((keys.split(item.key), item) for item in items)


def reasons(view: View) -> list[str]:
    return judge(view, MEMBERS)[1]


def test_a_disk_or_memory_nearly_full_is_a_warning() -> None:
    good = HostValue(host="ast1", disks={"/": 0.5}, memory_free_share=0.4)
    bad = HostValue(host="db1", disks={"/": 0.5, "/var/lib/mysql": 0.04}, memory_free_share=0.03)
    found = reasons(view_of(ast1=good, db1=bad))
    assert "db1: /var/lib/mysql has 4% free" in found and "db1: 3% of its memory is free" in found
    assert not [reason for reason in found if reason.startswith("ast1")]


def test_a_pair_that_nobody_can_write_to_is_a_warning() -> None:
    view = View()
    view.databases["asterisk"] = {
        "sync": {"primary": "db1", "mode": "sync"},
        "members/db1": {"server": "db1", "running": True, "role": "replica"},
    }
    found = reasons(view)
    assert "database asterisk: no server is writable" in found
    pair: dict[str, Any] = document("test", view, MEMBERS, "warn", [])["databases"][0]
    assert (pair["name"], pair["primary"]) == ("asterisk", "db1")
