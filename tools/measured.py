"""What the tools that write measured figures into the documentation share."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LAB_SETTINGS = ROOT / ".lab/operator/settings.json"


def lab_has_pair() -> bool:
    """Whether the lab that is up has two edges (`ARI_HA_OVERLAYS=pair docker/lab up`)."""
    return "guards" in json.loads(LAB_SETTINGS.read_text())


def chaos(words: Sequence[str], file: Path) -> bool:
    """Runs ``ari-ha chaos run`` with its report in ``file``; False when it did not pass."""
    print(f"\n== ari-ha chaos run {' '.join(words)}", flush=True)
    command = [str(ROOT / ".venv/bin/ari-ha"), "chaos", "run", *words, "--json", str(file)]
    passed = subprocess.run(command, check=False).returncode == 0
    if not passed:
        print(f"== {file.stem} did not pass", flush=True)
    return passed


def conditions(reports: Sequence[dict[str, Any]]) -> str:
    """When, on what machine and with which versions the reports were made."""
    versions = reports[-1]["versions"]
    days = sorted({run["at"][:10] for report in reports for run in report["runs"]})
    names = ", ".join(
        f"{name} {text.split(': ')[-1].removeprefix('Asterisk ')}" for name, text in versions.items()
    )
    when = " to ".join(sorted({days[0], days[-1]}))
    return f"Measured {when} on {reports[-1]['machine'].split(', load')[0]}; {names}."


def put(file: Path, mark: str, lines: Iterable[str]) -> None:
    """Replaces what stands between ``<!-- mark:begin -->`` and ``<!-- mark:end -->`` in ``file``."""
    begin, end = f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->"
    before, found, rest = file.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{file}: no {begin} ... {end}")
    file.write_text(f"{before}{begin}\n" + "\n".join(lines) + f"\n{end}{after}")
