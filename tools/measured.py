"""What the tools that write measured figures into the documentation share."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NO_COMMIT = "not noted"
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
    """When, on what machine (how busy it was) and with which versions a report was made."""
    machine, _, load = report["machine"].partition(", load ")
    found = {
        "days": sorted({run["at"][:10] for run in report["runs"]}),
        "machine": machine,
        "versions": {
            name: text.split(": ")[-1].removeprefix("Asterisk ") for name, text in report["versions"].items()
        },
    }
    return found | ({"load": float(load.split(",")[0])} if load else {})


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
    """When, on what machines, with which versions and commits the entries of a table were measured."""
    origins = [entry["origin"] for entry in entries]
    days = sorted({day for each in origins for day in each["days"]})
    machines = sorted({each["machine"] for each in origins})
    loads = [each["load"] for each in origins if "load" in each]
    names = list(dict.fromkeys(name for each in origins for name in each["versions"] if name != "commit"))
    versions = ", ".join(f"{name} {' or '.join(_values(origins, name))}" for name in names)
    when = " to ".join(sorted({days[0], days[-1]}))
    span = " to ".join(dict.fromkeys(f"{load:.0f}" for load in (min(loads), max(loads)))) if loads else ""
    busy = f", load {span} where it was noted" if loads else ""
    return f"Measured {when} on {' and '.join(machines)}{busy}; {versions}; {_commits(origins)}."


def _values(origins: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    return sorted({each["versions"][name] for each in origins if name in each["versions"]})


def _commits(origins: Sequence[Mapping[str, Any]]) -> str:
    """Of which commits, and how many entries each has where there are several."""
    counts = Counter(each["versions"].get("commit", NO_COMMIT) for each in origins)
    if len(counts) == 1:
        return f"commit {next(iter(counts))}"
    words = ", ".join(f"{commit} ({count})" for commit, count in sorted(counts.items()))
    return f"of {len(counts)} commits (entries of each): {words}"


def put(file: Path, mark: str, lines: Iterable[str]) -> None:
    """Replaces what stands between ``<!-- mark:begin -->`` and ``<!-- mark:end -->`` in ``file``."""
    begin, end = f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->"
    before, found, rest = file.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{file}: no {begin} ... {end}")
    file.write_text(f"{before}{begin}\n" + "\n".join(lines) + f"\n{end}{after}")
