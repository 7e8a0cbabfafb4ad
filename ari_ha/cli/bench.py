"""``ari-ha bench``: what the edge and the node apps cost while nothing goes wrong."""

from __future__ import annotations

import json
import statistics
import time
import urllib.request
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ari_ha.cli.chaos_judge import percentile
from ari_ha.cli.lab import EDGES, ETCD, NODES
from ari_ha.cli.output import DEFAULT_SETTINGS, SettingsFile

BENCH_NUMBER = "6999"
"""Answered by the dialplan alone, with no app: the same work direct and through an edge."""
DIRECT_PORT = 5079
"""asterisk-conf/pjsip.conf takes an edge host's calls from this port as bench calls."""
CARRIER_PORT = 5099
HELD_CALLS = 10
STEADY_S = 0.5
WRAP_UP_LIMIT_S = 60.0
"""Of what was heard before an order, this much is looked at."""
SERVICES = {"asterisk": "asterisk", "rtpengine": "rtpengine", "app": "node app", "edge": "edge process"}


def register(parent: typer.Typer) -> None:
    """Adds ``bench`` to the command line."""
    parent.command("bench")(bench)


def bench(
    calls: Annotated[int, typer.Option(min=1, help="Calls talking at once while CPU is measured.")] = 20,
    seconds: Annotated[int, typer.Option(min=2, help="Seconds of talking measured.")] = 12,
    setups: Annotated[int, typer.Option(min=5, help="Calls one after the other for the set-up delay.")] = 60,
    as_json: Annotated[str, typer.Option("--json", help="Write the report here.")] = "",
    settings: SettingsFile = DEFAULT_SETTINGS,
) -> None:
    """Measure the steady cost of a call: CPU, set-up delay, etcd transactions."""
    from ari_ha.cli.chaos import machine, versions
    from ari_ha.cli.chaos_stage import Stage

    console = Console()
    stage = Stage(settings, lambda text: console.print(text, style="dim"))
    stage.check()
    stage.clean()
    report: dict[str, Any] = {
        "at": time.time(),
        "machine": machine(),
        "versions": versions(stage.lab.versions()),
        "setup": _setup_delay(stage, setups),
        "talking": _talking(stage, calls, seconds),
        "hold": _hold(stage, min(calls, HELD_CALLS)),
    }
    stage.clean()
    if as_json:
        Path(as_json).parent.mkdir(parents=True, exist_ok=True)
        Path(as_json).write_text(json.dumps(report, indent=1) + "\n")
    _print(console, report)


# --- set-up delay -------------------------------------------------------------------------


def _setup_delay(stage: Any, count: int) -> dict[str, Any]:
    """The same dialplan answer, asked directly and through the edge, in turns."""
    node = next(iter(NODES))
    stage.only(node)
    edge = stage.cluster.settings.processes[EDGES[0]]
    core = edge.split("//")[1].split(":")[0]
    sip = stage.view().nodes[node]["sip"]
    public = stage.view().edges[EDGES[0]]["public"]
    carrier = stage.lab.run("farend", "sh", "-c", "hostname -i").split()[0]
    direct: list[float] = []
    through: list[float] = []
    half = max(1, count // 2)
    for _ in range(2):
        direct += _ask(stage, EDGES[0], f"{core}:{DIRECT_PORT}", sip, half)
        through += _ask(stage, "farend", f"{carrier}:{CARRIER_PORT}", public, half)
    stage.uncordon(NODES)
    return {
        "direct_ms": _spread(direct),
        "through_edge_ms": _spread(through),
        "added_ms_p50": round(statistics.median(through) - statistics.median(direct), 2),
        "ratio_p50": round(statistics.median(through) / statistics.median(direct), 2),
        "calls_each": count,
    }


def _ask(stage: Any, host: str, local: str, far: str, count: int) -> list[float]:
    text = stage.lab.run(
        host, "/opt/ari-ha/bin/python", "-m", "ari_ha.farend.setup_delay", "--from", local, "--to", far,
        "--number", BENCH_NUMBER, "--count", str(count), limit_s=30 + 2 * count,
    )  # fmt: skip
    answer = json.loads(text)
    if answer["failed"] or not answer["answer_ms"]:
        raise SystemExit(f"{len(answer['failed'])} bench calls from {host} failed: {answer['failed'][:3]}")
    return answer["answer_ms"]


def _spread(values: list[float]) -> dict[str, float]:
    return {f"p{int(share * 100)}": round(percentile(values, share), 2) for share in (0.5, 0.95)} | {
        "max": round(max(values), 2)
    }


# --- calls that talk ----------------------------------------------------------------------


def _talking(stage: Any, calls: int, seconds: int) -> dict[str, Any]:
    """CPU of each kind of process with and without calls, and etcd's commits per call."""
    quiet, began = _commits(stage), time.monotonic()
    idle = _cpu_share(stage, seconds)
    per_s = (_commits(stage) - quiet) / (time.monotonic() - began)
    # agents log in and phones settle before the counted calls: a warm-up call each way
    stage.place(calls, "talking", 900)
    stage.clean()
    _wrapped_up(stage)
    before, began = _commits(stage), time.monotonic()
    stage.place(calls, "talking", 901)
    up = _commits(stage) - before - per_s * (time.monotonic() - began)
    busy = _cpu_share(stage, seconds)
    before_end, began = _commits(stage), time.monotonic()
    stage.clean()
    _wrapped_up(stage)
    down = _commits(stage) - before_end - per_s * (time.monotonic() - began)
    return {
        "calls": calls,
        "seconds": seconds,
        "cpu_percent_of_a_core": {kind: round(busy[kind], 2) for kind in busy},
        "cpu_percent_idle": {kind: round(idle[kind], 2) for kind in idle},
        "cpu_percent_per_call": {kind: round((busy[kind] - idle[kind]) / calls, 3) for kind in busy},
        "etcd_txns_per_call": {
            "until_talking": round(up / calls, 1),
            "ending_and_wrap_up": round(down / calls, 1),
            "whole_call": round((up + down) / calls, 1),
        },
    }


def _wrapped_up(stage: Any) -> None:
    from ari_ha.cli.chaos_stage import until

    def idle() -> bool:
        return all(agent.get("work", "idle") == "idle" for agent in stage.agents().values())

    until("every wrap-up is over", WRAP_UP_LIMIT_S, idle, 0.2)


def _cpu_share(stage: Any, seconds: int) -> dict[str, float]:
    first = _cpu_seconds(stage)
    began = time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - began
    second = _cpu_seconds(stage)
    return {kind: (second[kind] - first[kind]) / took * 100 for kind in first}


def _cpu_seconds(stage: Any) -> dict[str, float]:
    """CPU seconds used so far, by kind of process over all hosts."""
    script = (
        'for s in /service/*; do p=$(cat "$s/supervise/pid" 2>/dev/null); [ -n "$p" ] || continue; '
        'for q in $p $(pgrep -P "$p"); do echo "${s##*/} $(cut -d" " -f14-15 "/proc/$q/stat")"; done; done'
    )
    total = dict.fromkeys(SERVICES.values(), 0.0)
    for host in (*NODES, *EDGES):
        for line in stage.lab.run(host, "sh", "-c", script).splitlines():
            service, user, system = line.split()
            kind = SERVICES.get(service)
            if kind:
                total[kind] += (int(user) + int(system)) / 100
    return total


def _commits(stage: Any) -> float:
    """Proposals etcd has committed so far (its own metric, the highest of its members)."""
    found = []
    for member in ETCD:
        address = stage.lab.run(member, "printenv", "ETCD_LISTEN_METRICS_URLS").strip()
        with urllib.request.urlopen(f"{address}/metrics", timeout=5) as reply:
            for line in reply.read().decode().splitlines():
                if line.startswith("etcd_server_proposals_committed_total"):
                    found.append(float(line.split()[-1]))
    return max(found)


# --- hold and back ------------------------------------------------------------------------


def _hold(stage: Any, calls: int) -> dict[str, Any]:
    """What a customer hears of being put on hold and taken back: silence between voice and music, and between
    music and voice, in milliseconds. The agent's phone is silent from its order on."""
    from ari_ha.cli.chaos_stage import until

    pairs = stage.place(calls, "talking", 902)
    agent_of = {pair.customer: pair.agent_call for pair in pairs}

    def heard(since: float) -> dict[str, tuple[float, float, float, float]]:
        """customer -> first and last voice of his agent, begin and end of the music (UTC seconds)"""
        found = {}
        for ident, row in stage.measure(since, pairs, stage.far.now()).items():
            voice = next((h for h in row["hears"] if h["call"] == agent_of.get(ident)), None)
            spans = row["other_audio"]
            if voice and spans:
                found[ident] = (voice["first"], voice["last"], spans[0]["from"], spans[-1]["until"])
        return found

    since = stage.far.now() - STEADY_S
    for pair in pairs:
        stage.far.order(pair.agent_call, "hold")
    until("every customer on hold hears music", 15, lambda: stage.hearing_music(pairs), 0.2)
    to_music = [(begin - last) * 1000 for _, last, begin, _ in heard(since).values()]
    time.sleep(STEADY_S)
    since = stage.far.now() - STEADY_S
    for pair in pairs:
        stage.far.order(pair.agent_call, "unhold")
    until("all talk again", 15, lambda: stage.talking(pairs), 0.2)
    to_voice = [(first - end) * 1000 for first, _, _, end in heard(since).values()]
    stage.clean()
    if len(to_music) < calls or len(to_voice) < calls:
        raise SystemExit("not every customer heard music on hold and his agent afterwards")
    return {"calls": calls, "voice_to_music_ms": _spread(to_music), "music_to_voice_ms": _spread(to_voice)}


def _print(console: Console, report: dict[str, Any]) -> None:
    setup, talking = report["setup"], report["talking"]
    table = Table("INVITE to 200, ms", "p50", "p95", "max", title="set-up delay")
    for name in ("direct_ms", "through_edge_ms"):
        figures = [str(setup[name][share]) for share in ("p50", "p95", "max")]
        table.add_row(name.removesuffix("_ms").replace("_", " "), *figures)
    console.print(table)
    added, ratio = setup["added_ms_p50"], setup["ratio_p50"]
    console.print(f"the edge adds {added} ms at the median, {ratio} times the direct call")
    title = f"CPU, {talking['calls']} calls talking"
    table = Table("process", "% of a core", "idle", "per call", title=title)
    for kind in SERVICES.values():
        table.add_row(
            kind,
            str(talking["cpu_percent_of_a_core"][kind]),
            str(talking["cpu_percent_idle"][kind]),
            str(talking["cpu_percent_per_call"][kind]),
        )
    console.print(table)
    console.print(f"etcd transactions per call: {talking['etcd_txns_per_call']}")
    hold = report["hold"]
    console.print(f"on hold, silence in ms: before the music {hold['voice_to_music_ms']}, after it ", end="")
    console.print(f"{hold['music_to_voice_ms']} ({hold['calls']} calls)")
