"""``ari-ha chaos``: break something on purpose while people talk, and let the far ends judge.

The report is JSON: per run the fault, the state and one entry per call; then a summary. The exit status is
0 only when every call survived and nothing was left behind."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ari_ha.cli.output import DEFAULT_SETTINGS, SettingsFile, fail, say, table

_app = typer.Typer(no_args_is_help=True, help="Cause faults while people talk; the far ends judge.")

PLAN_FAULTS = (
    "asterisk-kill",
    "asterisk-stop",
    "asterisk-restart-now",
    "asterisk-freeze",
    "node-cut",
    "app-kill",
    "app-freeze",
    "edge-process-kill",
    "etcd-member-kill",
    "etcd-leader-kill",
    "etcd-quorum-loss",
)
"""What runs when no fault is named; `lab.FAULTS` has these and more."""
DEFAULT_CALLS = 10
CHECKOUT = Path(__file__).parents[2]
CODE = ("ari_ha", "sidecars", "asterisk-conf", "docker")
"""What the lab runs."""


def register(parent: typer.Typer) -> None:
    """Adds ``chaos`` to the command line."""
    parent.add_typer(_app, name="chaos")


@_app.command("run")
def run(
    fault: Annotated[
        list[str] | None,
        typer.Option(
            "--fault", help="May be given several times; when left out those that `chaos list` marks with *."
        ),
    ] = None,
    state: Annotated[
        list[str] | None, typer.Option("--state", help="May be given several times; all when left out.")
    ] = None,
    calls: Annotated[int, typer.Option("--calls", min=1, help="Calls per run.")] = DEFAULT_CALLS,
    repeat: Annotated[int, typer.Option("--repeat", min=1, help="Runs of each fault and state.")] = 1,
    during: Annotated[
        str,
        typer.Option(
            "--during",
            help="What is done in the gap: hangup-caller, hangup-agent, hold-agent or refer-agent; callers: "
            "new ones come until it is mended, and are served.",
        ),
    ] = "",
    json_file: Annotated[str, typer.Option("--json", help="Write the report here; '-': print it.")] = "",
    baseline: Annotated[
        bool, typer.Option("--baseline/--no-baseline", help="Measure the same calls without a fault first.")
    ] = True,
    ends: Annotated[
        list[str] | None,
        typer.Option(
            "--ends", help="How people speak: pcmu, event-numbers, srtp (customers), wrapped (old streams)."
        ),
    ] = None,
    settings: SettingsFile = DEFAULT_SETTINGS,
) -> None:
    """Strike calls and report what their far ends noticed. Exit status 1 when a call did not survive."""
    from ari_ha.cli.chaos_judge import passed
    from ari_ha.cli.chaos_run import run_all
    from ari_ha.cli.chaos_stage import ENDS, Stage, StageError
    from ari_ha.cli.cluster import ClusterError
    from ari_ha.cli.lab import Lab, LabError
    from ari_ha.farend.client import FarEndError

    plan = plan_of(fault or [], state or [], calls, during)
    ways = frozenset(words_of(ends or [], ENDS))
    quiet = json_file == "-"
    if why := Lab.available():
        fail(f"the lab cannot run here: {why}", quiet)
    try:
        stage = Stage(settings, (lambda _: None) if quiet else say)
        stage.ends = ways
        programs, where = versions(stage.lab.versions()), machine()

        def write(runs: Sequence[Mapping[str, Any]]) -> None:
            if json_file and not quiet:
                Path(json_file).write_text(json.dumps(report(runs, programs, where), indent=2) + "\n")
            if not quiet:
                _print_run(runs[-1])

        runs = run_all(stage, plan, calls, repeat, during, baseline, write)
    except (StageError, ClusterError, FarEndError, LabError) as error:
        fail(str(error), quiet)
    if quiet:
        typer.echo(json.dumps(report(runs, programs, where), indent=2))
    else:
        _print(report(runs, programs, where))
    raise typer.Exit(0 if passed(runs) else 1)


@_app.command("list")
def list_() -> None:
    """Faults and states there are; * runs when no fault is named."""
    from ari_ha.cli.chaos_faults import ABOUT
    from ari_ha.cli.chaos_judge import STATES
    from ari_ha.cli.lab import FAULTS

    def row(fault: str) -> tuple[str, str, str]:
        return (
            fault,
            "*" * (fault in PLAN_FAULTS),
            ABOUT[fault].what + ("; needs a pair" if ABOUT[fault].edges == 2 else ""),
        )

    table("faults", ("fault", "", "what happens"), [row(fault) for fault in FAULTS])
    say("states: " + ", ".join(STATES))


def plan_of(faults: Sequence[str], states: Sequence[str], calls: int, during: str) -> list[tuple[str, str]]:
    """Fault and state of every run; words separated by commas count as several."""
    from ari_ha.cli.chaos_callers import AGENTS as AGENTS_OF_CALLERS
    from ari_ha.cli.chaos_inside import ACTS_OF_AGENT, CALLERS, DURING, HOLD_AGENT, REFER_AGENT
    from ari_ha.cli.chaos_judge import ALONE_STATES, STATES
    from ari_ha.cli.chaos_party import CALLS_MAX as THIRD_PERSONS_MAX
    from ari_ha.cli.chaos_stage import CALLS_MAX, SUPPORT
    from ari_ha.cli.lab import FAULTS

    chosen_faults = words_of(faults, FAULTS) or list(PLAN_FAULTS)
    chosen_states = words_of(states, STATES) or list(STATES)
    words_of([during], DURING)
    if calls > CALLS_MAX:
        fail(f"the lab has {CALLS_MAX} agents: at most {CALLS_MAX} calls", status=2)
    if during in ACTS_OF_AGENT and {*ALONE_STATES} & {*chosen_states}:
        fail("a queued call has no agent who could do that", status=2)
    if during == CALLERS and (
        calls > (most := len(SUPPORT) - AGENTS_OF_CALLERS) or {*chosen_states} & {*ALONE_STATES}
    ):
        fail(f"new callers need agents: at most {most} calls beside them, nobody waiting", status=2)
    if during in (HOLD_AGENT, REFER_AGENT) and {*chosen_states} - {"talking"}:
        fail("only people who talk can be put on hold or be transferred", status=2)
    if during == REFER_AGENT and calls > THIRD_PERSONS_MAX:
        fail(f"there are {THIRD_PERSONS_MAX} phones to transfer to", status=2)
    return [(fault, state) for fault in chosen_faults for state in chosen_states]


def words_of(texts: Sequence[str], known: Collection[str]) -> list[str]:
    """What was asked for; words separated by commas count as several. Exits with 2 at one not ``known``."""
    words = [word for text in texts for word in text.split(",")]
    for unknown in set(words) - set(known):
        fail(f"{unknown!r} is not one of {', '.join(filter(None, known))}", status=2)
    return words


def report(runs: Sequence[Mapping[str, Any]], versions: Mapping[str, str], machine: str) -> dict[str, Any]:
    """The document of the design, section 12."""
    from ari_ha.cli.chaos_judge import summary

    return {"runs": list(runs), "summary": summary(runs), "versions": dict(versions), "machine": machine}


def versions(outside: Mapping[str, str]) -> dict[str, str]:
    """What was measured: our version and commit, and the versions of what is not ours."""
    from ari_ha import __version__

    ours = {"ari-ha": __version__}
    if found := commit():
        ours["commit"] = found
    return {**ours, "python": platform.python_version(), **outside}


def commit(checkout: Path = CHECKOUT) -> str:
    """The checkout's commit, with ``-dirty`` where code that runs in the lab differs from it: a page that
    was measured and written meanwhile makes no other program. Empty where there is no repository."""

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", "-C", str(checkout), *words], capture_output=True, text=True, check=False
        )

    try:
        found = git("rev-parse", "--short=10", "HEAD")
        differs = git("diff", "--quiet", "HEAD", "--", *CODE).returncode
    except FileNotFoundError:
        return ""
    return "" if found.returncode else found.stdout.strip() + ("-dirty" if differs else "")


def machine() -> str:
    """Where it was measured, for the reader of the report."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    model = ""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        pass
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    processor = f"{os.cpu_count()} x {model or platform.machine()}"
    return f"{platform.system()} {platform.release()}, {processor}, {memory:.0f} GiB, load {load}"


def _print_run(run_: Mapping[str, Any]) -> None:
    from ari_ha.cli.chaos_judge import worst

    calls = run_["calls"]
    survived = sum(call["survived"] for call in calls)
    lost = worst(calls, "lost_audio_ms")
    resumed = [call["resumed_ms"] for call in calls if call["resumed_ms"] is not None]
    clean = not any(run_["after"].values())
    text = f"{run_['fault']} / {run_['state']}: {survived} of {len(calls)} survived"
    if lost:
        text += f", lost at most {max(lost)} ms"
    if resumed:
        text += f", heard again after at most {max(resumed)} ms"
    if new := run_.get("new_calls"):
        text += f", {new['served']} of {new['came']} new callers served"
    say(
        text + ("" if clean else f", left behind: {run_['after']}"),
        "ok" if survived == len(calls) and clean else "bad",
    )
    for call in calls:
        if call["why"]:
            say(f"  {call['call']}: {call['why']}", "bad")
    for line in run_["left"]:
        say(f"  {line}", "bad")


def _middle_and_max(values: Sequence[float]) -> str:
    from ari_ha.cli.chaos_judge import spread

    return f"{spread(values)['p50']:g} / {spread(values)['max']:g}" if values else "not measured"


def _print(document: Mapping[str, Any]) -> None:
    from ari_ha.cli.chaos_judge import messages_of, worst

    rows = []
    for run_ in document["runs"]:
        calls = run_["calls"]
        lost = worst(calls, "lost_audio_ms")
        gaps = worst(calls, "longest_gap_ms")
        resumed = [c["resumed_ms"] for c in calls if c["resumed_ms"] is not None]
        after = ", ".join(f"{name} {count}" for name, count in run_["after"].items() if count)
        rows.append(
            (
                run_["fault"],
                run_["state"] + (f" ({run_['during']})" if run_["during"] else ""),
                f"{sum(c['survived'] for c in calls)}/{len(calls)}",
                f"{sum(c['same_agent'] is True for c in calls)}",
                _middle_and_max(lost),
                _middle_and_max(gaps),
                run_["baseline"]["lost_ms_max"] if run_["baseline"] else "",
                messages_of(calls),
                _middle_and_max(resumed),
                after or "nothing",
            )
        )
    columns = ("fault", "state", "survived", "same agent", "lost ms p50/max", "gap ms p50/max",
               "baseline lost ms", "SIP to carrier/phones", "resumed ms p50/max", "left behind")  # fmt: skip
    table("what the far ends noticed", columns, rows)
    total = document["summary"]
    good = total["calls"] == total["survived"]
    say(f"{total['survived']} of {total['calls']} calls survived", "ok" if good else "bad")
