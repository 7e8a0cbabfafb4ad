"""What the tools that write measured figures into the documentation share."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
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


def origin(report: dict[str, Any]) -> dict[str, Any]:
    """When, on what machine and with which versions a report was made."""
    return {
        "days": sorted({run["at"][:10] for run in report["runs"]}),
        "machine": report["machine"].split(", load")[0],
        "versions": {
            name: text.split(": ")[-1].removeprefix("Asterisk ") for name, text in report["versions"].items()
        },
    }


def kept(table: str, fresh: Mapping[str, dict[str, Any]] | None = None) -> dict[str, dict[str, Any]]:
    """What docs/measured has of a table, by key, each entry with its `origin`. With ``fresh`` those take the
    place of what was there, and the file is written. Reports stay on the machine that made them: with this
    file a table goes on elsewhere."""
    file = ROOT / "docs" / "measured" / f"{table}.json"
    found: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    if fresh:
        found = dict(sorted({**found, **fresh}.items()))
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return found


def conditions(entries: Iterable[Mapping[str, Any]]) -> str:
    """When, on what machines and with which versions the entries of a table were measured."""
    origins = [entry["origin"] for entry in entries]
    days = sorted({day for each in origins for day in each["days"]})
    machines = sorted({each["machine"] for each in origins})
    versions = max(origins, key=lambda each: each["days"])["versions"]
    when = " to ".join(sorted({days[0], days[-1]}))
    names = ", ".join(f"{name} {text}" for name, text in versions.items())
    return f"Measured {when} on {' and '.join(machines)}; {names}."


def put(file: Path, mark: str, lines: Iterable[str]) -> None:
    """Replaces what stands between ``<!-- mark:begin -->`` and ``<!-- mark:end -->`` in ``file``."""
    begin, end = f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->"
    before, found, rest = file.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{file}: no {begin} ... {end}")
    file.write_text(f"{before}{begin}\n" + "\n".join(lines) + f"\n{end}{after}")
