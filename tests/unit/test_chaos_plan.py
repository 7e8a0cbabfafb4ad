"""What `ari-ha chaos run` makes of its options, and which host a fault strikes."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

from ari_ha.cli import chaos, lab
from ari_ha.cli.chaos_faults import ABOUT
from ari_ha.cli.chaos_judge import STATES
from ari_ha.cli.chaos_mixed import shares


def test_everything_when_nothing_is_named() -> None:
    plan = chaos.plan_of([], [], 10, "")
    assert len(plan) == len(chaos.PLAN_FAULTS) * len(STATES)
    assert ("asterisk-kill", "talking") in plan


def test_the_list_says_what_each_fault_does_and_which_run_when_none_is_named() -> None:
    app = Typer()
    chaos.register(app)
    text = CliRunner().invoke(app, ["chaos", "list"]).output
    assert all(fault in text for fault in lab.FAULTS) and "early-media" in text
    assert text.count("*") >= len(chaos.PLAN_FAULTS)


def test_commas_and_repetition_both_count() -> None:
    plan = chaos.plan_of(["asterisk-kill,node-cut", "app-kill"], ["held"], 10, "")
    assert plan == [("asterisk-kill", "held"), ("node-cut", "held"), ("app-kill", "held")]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--fault", "meteor"],
        ["--state", "asleep"],
        ["--during", "lunch"],
        ["--calls", "61"],
        ["--calls", "0"],
        ["--during", "hangup-agent", "--state", "queued"],
        ["--during", "callers", "--state", "queued"],
        ["--during", "callers", "--state", "talking", "--calls", "33"],
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_touched(arguments: list[str]) -> None:
    app = Typer()
    chaos.register(app)
    result = CliRunner().invoke(app, ["chaos", "run", *arguments])
    assert result.exit_code == 2


@pytest.mark.skipif(shutil.which("git") is None, reason="no git here")
def test_the_report_names_the_commit_and_whether_the_code_differs_from_it(tmp_path: Path) -> None:
    assert chaos.commit(tmp_path) == ""

    def git(*words: str) -> None:
        who = ["-c", "user.name=x", "-c", "user.email=x@x"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    code, page = tmp_path / "ari_ha/a.py", tmp_path / "docs/matrix.md"
    for file in (code, page):
        file.parent.mkdir()
        file.write_text("one")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    clean = chaos.commit(tmp_path)
    assert len(clean) == 10
    page.write_text("two")
    assert chaos.commit(tmp_path) == clean
    code.write_text("two")
    assert chaos.commit(tmp_path) == f"{clean}-dirty"
    assert chaos.versions({})["python"]


def test_every_fault_of_the_plan_exists() -> None:
    assert set(chaos.PLAN_FAULTS) <= set(lab.FAULTS)
    assert set(ABOUT) == set(lab.FAULTS)


@pytest.mark.parametrize(
    ("fault", "host"),
    [
        ("asterisk-kill", "ast1"),
        ("edge-process-kill", "edge1"),
        ("rtpengine-kill", "edge1"),
        ("etcd-leader-kill", ""),
    ],
)
def test_the_host_a_fault_strikes(fault: str, host: str) -> None:
    assert lab.default_host(fault) == host


class ScriptedLab(lab.Lab):
    """Answers commands from a table instead of Docker."""

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def docker(self, *arguments: str, limit_s: float = 0, given: str | None = None) -> str:
        text = " ".join(arguments)
        self.asked.append(text)
        return next((answer for words, answer in self.answers.items() if words in text), "")


OWN_NETWORK = {
    "NetworkMode": "ari-ha_core\n",
    "ip -o link": "1: lo: x\n2: eth0@if7: y\n",
    "hostname": "ast1\n",
}


def test_a_cut_says_when_and_can_be_mended() -> None:
    scripted = ScriptedLab({**OWN_NETWORK, "nft -f": "1700000000.5\n"})
    struck = scripted.node_cut("ast1")
    assert struck.at == 1_700_000_000.5
    assert struck.mend is not None
    struck.mend()
    assert f"nft delete table inet {lab.CUT_TABLE}" in scripted.asked[-1]


@pytest.mark.parametrize(
    "wrong",
    [
        {"NetworkMode": "host\n"},
        {"ip -o link": "1: lo: x\n2: eth0: physical\n"},
        {"hostname": "somewhere-else\n"},
    ],
)
def test_nothing_but_a_containers_own_network_is_ever_cut(wrong: dict[str, str]) -> None:
    scripted = ScriptedLab({**OWN_NETWORK, **wrong})
    with pytest.raises(lab.LabError, match="not cut"):
        scripted.node_cut("ast1")
    assert not any("nft -f" in asked for asked in scripted.asked)


def test_a_relay_that_finds_its_calls_is_not_one_that_starts_anew() -> None:
    alone = ScriptedLab({"kill -KILL": "1700000000.5\n"})
    assert lab.FAULTS["rtpengine-restart"](alone, "edge1").at == 1_700_000_000.5
    beside_a_valkey = ScriptedLab({"valkey.conf": "there\n", "kill -KILL": "1700000000.5\n"})
    with pytest.raises(lab.LabError, match="valkey"):
        lab.FAULTS["rtpengine-restart"](beside_a_valkey, "edge1")
    assert not any("kill -KILL" in asked for asked in beside_a_valkey.asked)


def test_the_leader_is_found_by_its_address() -> None:
    statuses = [
        {"Endpoint": f"https://172.30.2.2{n}:2379", "Status": {"leader": 8, "header": {"member_id": 6 + n}}}
        for n in (1, 2, 3)
    ]
    assert ScriptedLab({"endpoint status": json.dumps(statuses)}).etcd_leader() == "etcd2"


@pytest.mark.parametrize("count", [1, 3, 10, 20, 37])
def test_mixed_calls_are_as_many_as_asked_for(count: int) -> None:
    found = shares(count)
    assert sum(found.values()) == count and min(found.values()) >= 0
    assert count < 10 or all(found.values())
