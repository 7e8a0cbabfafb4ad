"""What the tools make of reports and of docs/measured: cells, conditions, and what is said of them."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ari_ha.cli.chaos_faults import ABOUT

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def load(name: str) -> ModuleType:
    """A tool, as a module."""
    loader = importlib.machinery.SourceFileLoader(
        name.replace("-", "_").removesuffix(".py"), str(TOOLS / name)
    )
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module
    loader.exec_module(module)
    return module


measured = load("measured.py")
matrix = load("chaos-matrix")
survival = load("survival-table")
CELL = "node-cut/barged"
RED = {"day": "2026-11-29", "at": "2026-11-29T10:00:00.000+00:00", "calls": 10, "survived": 8, "left": 0,
       "problems": ["2 × the supervisor hears nobody"], "load": 3.5}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Reports and docs/measured of a checkout of its own."""
    for module in (measured, matrix):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(matrix, "REPORTS", tmp_path / "reports/matrix")
    monkeypatch.setattr(matrix, "REASONS", tmp_path / "docs/measured/matrix-reasons.json")
    monkeypatch.setattr(matrix, "PAGE", tmp_path / "docs/matrix.md")
    (tmp_path / "reports/matrix").mkdir(parents=True)
    (tmp_path / "docs/measured").mkdir(parents=True)
    (tmp_path / "docs/matrix.md").write_text("<!-- chaos-matrix:begin -->\n<!-- chaos-matrix:end -->\n")
    return tmp_path


def measure(place: Path, survived: int, at: str) -> None:
    """As `tools/chaos-matrix run` does it."""
    together = place / "reports/matrix/node-cut.json"
    together.write_text(json.dumps(report(survived, at=at)))
    matrix.split(together)


def report(
    survived: int = 10, calls: int = 10, at: str = "2026-11-29T10:00:00.000+00:00", **more: Any
) -> dict[str, Any]:
    """A report of one cell, as `ari-ha chaos run` writes it."""
    why = ["", "f33a7061ec: the supervisor hears nobody"]
    rows = [
        {
            "call": f"{number:010x}",
            "survived": number < survived,
            "same_agent": True,
            "lost_audio_ms": {"to_customer": 0, "to_agent": 20},
            "resumed_ms": 300,
            "why": why[number >= survived].partition(": ")[2],
        }
        for number in range(calls)
    ]
    run = {"fault": "node-cut", "state": "barged", "at": at, "calls": rows, "left": [], "baseline": None,
           "after": {"agents_changed": 0, "stale_legs": 0}}  # fmt: skip
    total = {"calls": calls, "survived": survived, "same_agent": calls, "lost_audio_ms": {"p95": 20},
             "resumed_ms": {"p95": 300}}  # fmt: skip
    versions = {"ari-ha": "0.1.0", "etcd": "etcdctl version: 3.5.30", **more}
    return {
        "runs": [run],
        "summary": total,
        "versions": versions,
        "machine": "Linux, 2 x CPU, load 3.5, 2.0, 1.0",
    }


def test_the_conditions_name_every_commit_and_version_of_a_table() -> None:
    first, second = (measured.origin(report(commit=commit)) for commit in ("aaa", "bbb"))
    early = {
        "days": ["2026-11-20"],
        "machine": "Linux, 2 x CPU",
        "versions": {"ari-ha": "0.1.0", "etcd": "3.5.29"},
    }
    text = measured.conditions([{"origin": each} for each in (first, second, second, early)])
    assert "2026-11-20 to 2026-11-29" in text and "etcd 3.5.29 or 3.5.30" in text
    assert "of 3 commits (entries of each): aaa (1), bbb (2), not noted (1)" in text
    assert ", load 4 where it was noted" in text
    assert measured.conditions([{"origin": first}]).endswith("; commit aaa.")


def test_a_cell_measured_anew_keeps_what_it_said_before(place: Path) -> None:
    measure(place, 8, RED["at"])
    measure(place, 10, "2026-11-29T10:05:00.000+00:00")
    for _ in range(2):  # written twice, it is told once
        cell = matrix.found_cells()[CELL]
        assert (cell["survived"], cell["earlier"]) == (10, [RED])
    words = "\n".join(matrix.page(matrix.found_cells(), {}))
    row = f"| `{CELL}` | **8/10** (2026-11-29, load 4) | 2 × the supervisor hears nobody "
    assert f"{row}| 10/10 (2026-11-29, load 4) |  |" in words and "No cell is below 100 %." in words


def test_a_cell_measured_elsewhere_is_history_here(place: Path) -> None:
    """Also one of docs/measured that does not say at what time it was measured."""
    measure(place, 8, RED["at"])
    old = matrix.cell(json.loads((place / f"reports/matrix/{CELL}.json").read_text()))
    del old["at"]
    (place / f"reports/matrix/{CELL}.json").unlink()
    (place / "docs/measured/matrix.json").write_text(json.dumps({CELL: old}))
    assert "earlier" not in matrix.found_cells()[CELL]
    measure(place, 10, "2026-11-29T10:05:00.000+00:00")
    for _ in range(2):
        earlier = matrix.found_cells()[CELL]["earlier"]
        assert [each["survived"] for each in earlier] == [8]


def test_a_result_without_its_load_is_no_other_one(place: Path) -> None:
    """The load was not always kept, so one result may stand here with it and there without."""
    measure(place, 8, RED["at"])
    measure(place, 10, "2026-11-29T10:05:00.000+00:00")
    old = {name: value for name, value in RED.items() if name != "load"}
    known = matrix.cell(report(10, at="2026-11-29T10:05:00.000+00:00")) | {"earlier": [old]}
    (place / "docs/measured/matrix.json").write_text(json.dumps({CELL: known}))
    assert matrix.found_cells()[CELL]["earlier"] == [RED]
    assert matrix.once(old) == "**8/10** (2026-11-29)"


def test_the_newest_measurement_is_the_cell_wherever_it_was_made(place: Path) -> None:
    measure(place, 8, RED["at"])
    newer = matrix.cell(report(10, at="2026-11-29T10:05:00.000+00:00"))
    (place / "docs/measured/matrix.json").write_text(json.dumps({CELL: newer}))
    cell = matrix.found_cells()[CELL]
    assert (cell["survived"], cell["earlier"]) == (10, [RED])


def test_reports_of_another_checkout_count_too(place: Path) -> None:
    """The newest is the cell, in whatever order they are read."""
    measure(place, 10, "2026-11-29T10:05:00.000+00:00")
    other = place / "other"
    (other / "node-cut").mkdir(parents=True)
    (other / f"{CELL}.json").write_text(json.dumps(report(8, at=RED["at"])))
    for _ in range(2):
        cell = matrix.found_cells([other])[CELL]
        assert (cell["survived"], cell["earlier"]) == (10, [RED])


def test_a_cell_below_all_needs_a_reason(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measure(place, 8, RED["at"])
    assert matrix.write() == 1
    assert CELL in capsys.readouterr().out
    row = f"| `{CELL}` | **8/10** | 2 × the supervisor hears nobody |"
    assert f"{row} **not explained** |" in (place / "docs/matrix.md").read_text()
    (place / "docs/measured/matrix-reasons.json").write_text(json.dumps({CELL: "physics"}))
    assert matrix.write() == 0
    assert f"{row} physics |" in (place / "docs/matrix.md").read_text()
    (place / "docs/measured/matrix-reasons.json").write_text(
        json.dumps({CELL: {"why": "law", "expected": ""}})
    )
    assert matrix.write() == 0
    assert f"{row} law |" in (place / "docs/matrix.md").read_text()


def test_only_calls_that_have_an_agent_count_for_the_same_agent() -> None:
    got = matrix.cell(report()) | {"same_agent": 8}
    assert matrix.text(got, "mixed") == "10/10 · 8/8 · 20 · 300"
    assert matrix.text(got | {"same_agent": None}, "queued") == "10/10 · – · 20 · 300"
    assert matrix.text(got | {"survived": 9}, "talking") == "**9/10** · 8/10 · 20 · 300"


def test_what_was_not_measured_is_not_what_cannot_be() -> None:
    none = {"same_agent": None, "lost_ms_p95": None}
    got = matrix.cell(report()) | none
    assert matrix.text(got | {"same_agent": 10}, "ringing-out") == "10/10 · 10/10 · – · 300"
    assert matrix.text(got, "barged") == "10/10 · ? · ? · 300"
    page = "\n".join(matrix.page({CELL: got}, {}))
    assert "`?`: there should be a figure" in page
    assert "`?`" not in "\n".join(matrix.page({CELL: matrix.cell(report())}, {}))


def test_problems_are_told_without_the_names_of_calls() -> None:
    why = ["heard f33a7061ec; no digit reached carrier-21", "heard ca60039027", ""]
    left = ["agent 1001 changed: work", "agent 1002 changed: work"]
    runs = [{"calls": [{"why": each} for each in why], "left": left}]
    assert matrix.problems(runs) == ["2 × heard …", "2 × agent … changed: work", "1 × no digit reached …"]


def test_the_figures_kept_in_this_repository_can_be_read() -> None:
    found = measured.kept("matrix")
    assert found and all(matrix.text(got, name.partition("/")[2]) for name, got in found.items())
    assert matrix.page(found, {})


class Bench:
    """Stands for the lab and for `ari-ha chaos run`, which writes a report of what it is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pair: bool = False) -> None:
        self.pair, self.broken = pair, ""
        self.red = ""
        """The cell whose calls do not all survive."""
        self.measured: list[tuple[str, str, bool]] = []
        monkeypatch.setattr(matrix, "lab_has_pair", lambda: self.pair)
        monkeypatch.setattr(matrix, "bring_up", self.bring_up)
        monkeypatch.setattr(matrix, "chaos", self.chaos)

    def bring_up(self, pair: bool) -> bool:
        self.pair = pair
        return True

    def chaos(self, words: list[str], file: Path) -> bool:
        fault, states = words[1], words[3].split(",")
        if fault == self.broken:
            return False
        self.measured += [(fault, state, self.pair) for state in states]
        runs = {state: report(8 if f"{fault}/{state}" == self.red else 10)["runs"][0] for state in states}
        one = report()
        one["runs"] = [{**run, "fault": fault, "state": state} for state, run in runs.items()]
        file.write_text(json.dumps(one))
        return all(call["survived"] for run in runs.values() for call in run["calls"])


def test_all_cells_are_measured_anew_each_in_its_lab(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever docs/measured has; what this checkout has measured it does not measure again."""
    bench, cells = Bench(monkeypatch), list(matrix.cells())
    (place / "docs/measured/matrix.json").write_text(json.dumps({CELL: {}}))
    measure(place, 10, RED["at"])
    assert matrix.everything() == 0
    assert sorted(bench.measured) == sorted(
        (fault, state, ABOUT[fault].edges == 2) for fault, state in cells if f"{fault}/{state}" != CELL
    )
    bench.measured.clear()
    assert matrix.everything() == 0 and not bench.measured


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        (None, 1),
        ("it was so once, and is mended", 1),
        ({"why": "physics", "expected": "something else"}, 1),
        ({"why": "physics", "expected": "the supervisor hears nobody"}, 0),
    ],
    ids=["no-reason", "mended", "another-wrong", "expected"],
)
def test_a_cell_may_be_below_all_for_what_is_expected_of_it(
    place: Path, monkeypatch: pytest.MonkeyPatch, reason: Any, status: int
) -> None:
    """Who measures what the page says has no failure, also where he was stopped in between."""
    bench = Bench(monkeypatch)
    bench.red = CELL
    monkeypatch.setattr(matrix, "cells", lambda: iter([("node-cut", "barged"), ("edge-kill", "held")]))
    if reason is not None:
        (place / "docs/measured/matrix-reasons.json").write_text(json.dumps({CELL: reason}))
    assert matrix.everything() == status
    assert matrix.everything() == status
    bench.pair = False
    assert matrix.run([CELL]) == status


def test_what_is_left_behind_is_not_expected(place: Path) -> None:
    reason = {CELL: {"why": "physics", "expected": "the supervisor hears nobody"}}
    (place / "docs/measured/matrix-reasons.json").write_text(json.dumps(reason))
    red = matrix.cell(report(8))
    assert matrix.expected(CELL, red) and not matrix.expected(CELL, red | {"left": 1})
    assert not matrix.expected(CELL, red | {"problems": [*red["problems"], "1 × the run stopped: no lab"]})


def test_a_cell_that_cannot_be_measured_anew_is_not_the_one_of_before(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure(place, 10, RED["at"])
    bench = Bench(monkeypatch)
    bench.broken = "node-cut"
    assert matrix.run([CELL]) == 1


def test_nothing_is_left_out_in_silence(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(monkeypatch)
    bench.broken = "edge-cut"
    assert matrix.everything() == 1
    assert "not measured: edge-cut/ringing, edge-cut/queued" in capsys.readouterr().out
    bench.pair = False
    assert matrix.run(["edge-kill/held"]) == 1
    assert "edge-kill (1 cells)" in capsys.readouterr().out
    bench.pair = True
    assert matrix.run(["rtpengine-restart"]) == 1
    assert "rtpengine-restart (15 cells)" in capsys.readouterr().out
    assert matrix.run([CELL]) == 0 and bench.measured[-1] == ("node-cut", "barged", True)


def test_a_row_that_was_never_measured_is_in_the_tables_all_the_same() -> None:
    rows = {row.key: row for row in survival.ROWS}
    assert len(rows) == len(survival.ROWS)
    row = rows["asterisk-kill-talking-hold-agent-10x1"]
    assert f"| {row.title} | 10 | not measured |" in "\n".join(survival.table({}))
    assert f"| {row.title} | not measured | |" in survival.short_table({})
    assert len({line.count("|") for line in survival.table(measured.kept("survival"))}) == 1


def test_a_drained_nodes_row_says_when_it_was_empty() -> None:
    row = next(row for row in survival.ROWS if row.fault == "drain")
    one = report()
    one["runs"] = [{**one["runs"][0], "node_empty_ms": after} for after in (1200, 1900, None)]
    one["runs"][0]["calls"] = [
        {**call, "carrier_messages": 0, "phone_messages": 0} for call in one["runs"][0]["calls"]
    ]
    figures = {"p50": 0, "p95": 0, "max": 20}
    one["summary"] |= {"lost_audio_ms": figures, "resumed_ms": figures, "baseline_lost_ms": 0}
    for run in one["runs"]:
        run["calls"] = one["runs"][0]["calls"]
    assert any(
        "| node empty after 1900 |" in line for line in survival.table({row.key: survival.figures(row, one)})
    )
