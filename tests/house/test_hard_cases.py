"""docs/internals/hard-cases.md: all of them are there, and the tests it names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "internals" / "hard-cases.md"
ROW = re.compile(r"^\| (\d+) \| (.*?) \| (.*?) \| (.*?) ?\|$", re.MULTILINE)
CASES_COUNT = 57


def rows() -> list[tuple[str, ...]]:
    return [match.groups() for match in ROW.finditer(PAGE.read_text())]


def test_all_cases_are_there() -> None:
    assert [int(row[0]) for row in rows()] == list(range(1, CASES_COUNT + 1))


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_a_case_is_seen_or_said_not_to_be_handled(row: tuple[str, ...]) -> None:
    _, _, here, seen = row
    assert seen or here.startswith("not handled")
    for file, name in re.findall(r"`([\w.]+)::(\w+)`", seen):
        found = list((ROOT / "tests").rglob(file))
        assert found, f"there is no {file}"
        text = "".join(path.read_text() for path in found)
        assert re.search(rf"^(?:async )?def test_{name}\(", text, re.MULTILINE), f"{file} has no test_{name}"
