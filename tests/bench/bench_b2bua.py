"""Call set-ups per second of one core: the lab's edge process, Asterisk bridging two SIP legs by its
dialplan, and sippy's B2BUA, under the same SIPp scenario in one run.

The edge does more per call: it writes the dialogs to etcd before it answers, asks rtpengine for ports, and
its node leg carries a signed token. Its figure is that of the edge process alone; rtpengine's is given beside
it. The other two know nothing of a call that is not in their memory.

Needs the lab. Run: python -m tests.bench.bench_b2bua [calls [calls a second]]"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from ari_ha.cli.bench import BENCH_NUMBER
from ari_ha.cli.chaos import machine
from ari_ha.cli.chaos_stage import Stage
from ari_ha.cli.lab import EDGES, FAREND, NETWORK, PREFIX, Lab
from ari_ha.cli.output import DEFAULT_SETTINGS

ROOT = Path(__file__).resolve().parents[2]
CALLS, PER_SECOND, TALK_MS = 400, 20, 500
CONTAINER = "bench-b2bua"
FULL_NAME = PREFIX + CONTAINER
SIPP_PORT = 5096
READY_LIMIT_S = 30.0
SCENARIO = (ROOT / "docker/scenarios/sipp/customer.xml").read_text()
OTHERS = {
    "asterisk": ("127.0.0.1:5062", "cp /bench/*.conf /etc/asterisk/ && exec asterisk -f"),
    "sippy": (
        "127.0.0.1:5061",
        "SIPLOG_BEND=none exec /opt/sippy/bin/b2bua_simple -f -l 127.0.0.1 -p 5061 -n 127.0.0.1:5070",
    ),
}
"""Name -> where it listens, and its command in the container."""


def cpu_s(lab: Lab, host: str, pid: str) -> float:
    """Processor time a process has used, user and system (proc(5))."""
    return sum(map(int, lab.run(host, "sh", "-c", f"cut -d' ' -f14-15 /proc/{pid}/stat").split())) / 100


def sipp(lab: Lab, host: str, target: str, local: str, calls: int, per_s: int) -> float:
    """Runs the scenario; seconds it took. Raises LabError when a call failed."""
    begin = time.monotonic()
    lab.run(host, "sh", "-c", "cat > /tmp/bench.xml", given=SCENARIO)
    command = (
        f"cd /tmp && sipp {target} -sf bench.xml -i {local} -p {SIPP_PORT} -s {BENCH_NUMBER} "
        f"-m {calls} -r {per_s} -d {TALK_MS} -nostdin -max_retrans 4 -timeout 120 -timeout_error "
        "> bench.out 2>&1 || { tail -n 40 bench.out >&2; false; }"
    )
    lab.run(host, "sh", "-c", command, limit_s=150)
    return time.monotonic() - begin


def figures(calls: int, used_s: float, took_s: float) -> dict[str, float]:
    return {
        "cpu_ms_per_call": round(used_s / calls * 1000, 2),
        "setups_per_core_s": round(calls / used_s),
        "calls_per_s": round(calls / took_s, 1),
    }


def the_edge(stage: Stage, calls: int, per_s: int) -> dict[str, dict[str, float]]:
    """Through the lab's edge, to the dialplan of its nodes."""
    lab, host = stage.lab, EDGES[0]
    pids = {"edge": str(lab.child_pid(host, "edge")), "rtpengine": str(lab.pid(host, "rtpengine"))}
    before = {name: cpu_s(lab, host, pid) for name, pid in pids.items()}
    took = sipp(lab, FAREND, f"{NETWORK}.1.11:5060", f"{NETWORK}.1.50", calls, per_s)
    return {name: figures(calls, cpu_s(lab, host, pid) - before[name], took) for name, pid in pids.items()}


def others(calls: int, per_s: int) -> dict[str, dict[str, float]]:
    """The two others, each on loopback in a container without a network."""
    subprocess.run([ROOT / "docker/build", "--bench"], check=True, stdout=sys.stderr)
    found: dict[str, dict[str, float]] = {}
    lab = Lab()
    lab.docker("run", "-d", "--init", "--network", "none", "--entrypoint", "sleep", "--name", FULL_NAME,
               "ari-ha/bench", "infinity")  # fmt: skip
    try:
        uas = "sipp -sf /bench/uas.xml -i 127.0.0.1 -p 5070 -nostdin > /tmp/uas.out 2>&1"
        lab.docker("exec", "-d", FULL_NAME, "sh", "-c", uas)
        for name, (target, command) in OTHERS.items():
            script = f"echo $$ > /tmp/{name}.pid; {command} > /tmp/{name}.out 2>&1"
            lab.docker("exec", "-d", FULL_NAME, "sh", "-c", script)
            port = target.rpartition(":")[2]
            end = time.monotonic() + READY_LIMIT_S
            while f"{int(port):04X}" not in lab.run(CONTAINER, "cat", "/proc/net/udp"):
                if time.monotonic() > end:
                    raise SystemExit(
                        f"{name} does not listen: " + lab.run(CONTAINER, "cat", f"/tmp/{name}.out")
                    )
                time.sleep(0.2)
            pid = lab.run(CONTAINER, "cat", f"/tmp/{name}.pid").strip()
            sipp(lab, CONTAINER, target, "127.0.0.1", per_s, per_s)  # a second of warming up
            before = cpu_s(lab, CONTAINER, pid)
            took = sipp(lab, CONTAINER, target, "127.0.0.1", calls, per_s)
            found[name] = figures(calls, cpu_s(lab, CONTAINER, pid) - before, took)
    finally:
        lab.docker("rm", "-f", FULL_NAME)
    return found


def main() -> None:
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else CALLS
    per_s = int(sys.argv[2]) if len(sys.argv) > 2 else PER_SECOND
    stage = Stage(DEFAULT_SETTINGS, lambda text: print(text, file=sys.stderr))
    stage.check()
    stage.clean()
    result = {**the_edge(stage, calls, per_s), **others(calls, per_s)}
    print(json.dumps({"calls": calls, "calls_a_second": per_s, **result, "machine": machine()}))


if __name__ == "__main__":
    main()
