"""What the tools make of reports and of docs/measured: cells, conditions, and what is said of them."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

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
    run = {"fault": "node-cut", "state": "barged", "at": at, "calls": rows, "left": [],
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
