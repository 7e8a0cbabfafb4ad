"""``ari-ha lab``: breaking and mending the container lab, and asking it how it is.

Everything goes through the ``docker`` command. Each fault says at what instant it struck (the containers
share one clock), and everything broken here can be mended here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ari_ha.cli import lab_clock, lab_faults, lab_pair, lab_patience, lab_versions
from ari_ha.cli.output import fail, print_json, say, table

PREFIX = os.environ.get("ARI_HA_LAB", "ari-ha") + "-"
"""Of the containers; a second lab on the same machine has another name."""
NETWORK = os.environ.get("ARI_HA_LAB_NET", "172.30")
"""First half of every address of the lab."""
COMMAND_LIMIT_S = 15.0
NODES = ("ast1", "ast2", "ast3")
EDGES = ("edge1",)
PAIR = ("edge1", "edge2")
"""The edges of a lab with a pair."""
SECOND_PAIR = ("edge3", "edge4")
"""Those of its second pair, where it has one."""
ETCD = ("etcd1", "etcd2", "etcd3")
DATABASES = ("db1", "db2")
FAREND = "farend"
CUT_TABLE = "ari_ha_cut"
DATABASE_CUT_TABLE = "ari_ha_database_cut"
_CUT_RULES = f"""table inet {CUT_TABLE} {{
  chain in {{ type filter hook input priority -300; policy drop; iif "lo" accept; }}
  chain out {{ type filter hook output priority -300; policy drop; oif "lo" accept; }}
}}
"""

THAW = (
    "for p in /proc/[0-9]*; do "
    'case $(cut -d")" -f2 "$p/stat" 2>/dev/null) in " T"*) kill -CONT "${p#/proc/}";; esac; done'
)
CONTROL_SOCKET = "/run/asterisk/asterisk.ctl"


class LabError(Exception):
    """The lab could not do it; the text says why."""


@dataclass(slots=True)
class Struck:
    """A fault: when, and how to mend what does not mend itself."""

    at: float
    mend: Callable[[], None] | None = None


def wait_until(wrong: str, limit_s: float, look: Callable[[], bool], poll_s: float = 0.2) -> None:
    """Looks until it is so. Raises LabError with the words of ``wrong`` at the limit."""
    end = time.monotonic() + limit_s
    while not look():
        if time.monotonic() > end:
            raise LabError(wrong)
        time.sleep(poll_s)


def running_edges(lab: Lab) -> list[str]:
    """The edges of a lab with one pair that run now."""
    running = lab.running()
    return [edge for edge in PAIR if running.get(edge) == "running"]


class Lab:
    """The lab's containers."""

    # --- docker ---

    def docker(self, *arguments: str, limit_s: float = COMMAND_LIMIT_S, given: str | None = None) -> str:
        """Output of one docker command. Raises LabError when it fails or takes too long."""
        try:
            done = subprocess.run(
                ["docker", *arguments], capture_output=True, text=True, timeout=limit_s, input=given
            )
        except FileNotFoundError as error:
            raise LabError("docker is not installed") from error
        except subprocess.TimeoutExpired as error:
            raise LabError(f"docker {' '.join(arguments[:4])}: no end after {limit_s:.0f} s") from error
        if done.returncode:
            raise LabError(f"docker {' '.join(arguments[:4])}: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    def run(
        self, host: str, *command: str, limit_s: float = COMMAND_LIMIT_S, given: str | None = None
    ) -> str:
        """Output of a command inside a host of the lab."""
        options = ["-i"] if given is not None else []
        return self.docker("exec", *options, PREFIX + host, *command, limit_s=limit_s, given=given)

    def running(self) -> dict[str, str]:
        """The lab's containers and their state (running, paused, exited)."""
        # by project, not by name: servers of the contract tests have names that begin alike
        project = f"label=com.docker.compose.project={PREFIX.removesuffix('-')}"
        lines = self.docker("ps", "-a", "--filter", project, "--format", "{{.Names}} {{.State}}")
        pairs = (line.split() for line in lines.splitlines())
        return {name.removeprefix(PREFIX): state for name, state in pairs}

    @staticmethod
    def available() -> str:
        """Why Docker cannot be used here, or an empty text."""
        if shutil.which("docker") is None:
            return "docker is not installed"
        try:
            Lab().docker("version", "--format", "{{.Server.Version}}")
        except LabError as error:
            return str(error)
        return ""

    # --- processes of a host ---

    def signal(self, host: str, service: str, name: str) -> float:
        """Sends a signal to a service's process; returns when. Where the service is a parent that watches
        over one child, the child is meant."""
        script = (
            f'p=$(cat /service/{service}/supervise/pid) && [ -n "$p" ] && c=$(pgrep -P "$p" -n || echo "$p") '
            f'&& date +%s.%N && kill -{name} "$c"'
        )
        try:
            return float(self.run(host, "sh", "-c", script).split()[0])
        except (IndexError, ValueError) as error:
            raise LabError(f"{service} does not run on {host}") from error

    def pid(self, host: str, service: str) -> int:
        """Process id of a service, 0 when it is not up."""
        text = self.run(host, "sh", "-c", f"cat /service/{service}/supervise/pid").strip()
        return int(text) if text else 0

    def child_pid(self, host: str, service: str) -> int:
        """Process id of the child a service's parent watches over; 0 while there is none."""
        script = f'p=$(cat /service/{service}/supervise/pid) && [ -n "$p" ] && pgrep -P "$p" -n; true'
        text = self.run(host, "sh", "-c", script).strip()
        return int(text) if text else 0

    # --- faults ---

    def asterisk_kill(self, node: str) -> Struck:
        """SIGKILL; the supervisor starts it again after a second."""
        return Struck(self.signal(node, "asterisk", "KILL"))

    def asterisk_stop(self, node: str) -> Struck:
        """SIGTERM, as a service manager does it."""
        return Struck(self.signal(node, "asterisk", "TERM"))

    def asterisk_restart_now(self, node: str) -> Struck:
        """`core restart now` typed by an operator whose console is already open: the command goes to
        Asterisk's control socket, and the clock starts when it is sent."""
        script = (
            "import socket, time\n"
            "console = socket.socket(socket.AF_UNIX)\n"
            f"console.connect({CONTROL_SOCKET!r})\n"
            "console.recv(4096)\n"
            "print(time.time(), flush=True)\n"
            "console.sendall(b'core restart now\\0')\n"
            "time.sleep(0.2)\n"
        )
        return Struck(float(self.run(node, "/opt/ari-ha/bin/python", "-c", script).split()[0]))

    def asterisk_freeze(self, node: str) -> Struck:
        """SIGSTOP: the process is there and does nothing."""
        at = self.signal(node, "asterisk", "STOP")
        return Struck(at, lambda: self.thaw(node))

    def node_cut(self, node: str) -> Struck:
        """Nothing goes in or out of the node, as with its cable pulled."""
        self.assert_own_network(node)
        script = "cat > /run/cut.nft && date +%s.%N && nft -f /run/cut.nft"
        at = float(self.run(node, "sh", "-c", script, given=_CUT_RULES).split()[0])
        return Struck(at, lambda: self.node_heal(node))

    def node_heal(self, node: str) -> None:
        """The cable is plugged in again."""
        self.run(node, "sh", "-c", f"nft delete table inet {CUT_TABLE} 2>/dev/null || true")

    def assert_own_network(self, host: str) -> None:
        """Refuses to cut anything that is not a container's own network."""
        mode = self.docker("inspect", "--format", "{{.HostConfig.NetworkMode}}", PREFIX + host).strip()
        links = self.run(host, "ip", "-o", "link").splitlines()
        foreign = [line for line in links if "@if" not in line and ": lo:" not in line]
        name = self.run(host, "hostname").strip()
        if mode == "host" or foreign or name != host:
            raise LabError(f"{host} does not have a network of its own: not cut")

    def app_kill(self, node: str) -> Struck:
        """SIGKILL to the node app; it is started again after a second."""
        return Struck(self.signal(node, "app", "KILL"))

    def app_freeze(self, node: str) -> Struck:
        """SIGSTOP to the node app."""
        at = self.signal(node, "app", "STOP")
        return Struck(at, lambda: self.thaw(node))

    def thaw(self, host: str) -> None:
        """SIGCONT to every stopped process of a host: the one that was stopped may have been replaced."""
        self.run(host, "sh", "-c", f"{THAW}; true")

    def edge_process_kill(self, edge: str) -> Struck:
        """SIGKILL to the edge process; rtpengine goes on."""
        return Struck(self.signal(edge, "edge", "KILL"))

    def rtpengine_kill(self, edge: str) -> Struck:
        """SIGKILL to the media relay."""
        return Struck(self.signal(edge, "rtpengine", "KILL"))

    def etcd_kill(self, member: str) -> Struck:
        """SIGKILL to an etcd member; it stays dead until mended."""
        at = time.time()
        self.docker("kill", "-s", "KILL", PREFIX + member)
        return Struck(at, lambda: self.etcd_start(member))

    def etcd_start(self, member: str) -> None:
        """Starts a member again."""
        self.docker("start", PREFIX + member)

    def etcd_leader(self) -> str:
        """The member that leads."""
        for member in ETCD:
            try:
                text = self.run(
                    member, "etcdctl", "endpoint", "status", "--cluster", "-w", "json", "--command-timeout=3s"
                )
            except LabError:
                continue
            for status in json.loads(text):
                if status["Status"]["leader"] == status["Status"]["header"]["member_id"]:
                    return f"etcd{int(status['Endpoint'].rpartition(':')[0].rpartition('.')[2]) - 20}"
        raise LabError("no etcd member leads")

    def etcd_quorum_loss(self) -> Struck:
        """Freezes the leader and one more member."""
        leader = self.etcd_leader()
        other = next(member for member in ETCD if member != leader)
        at = time.time()
        self.docker("pause", PREFIX + leader, PREFIX + other)

        def mend() -> None:
            for member in (leader, other):
                self.unpause(member)

        return Struck(at, mend)

    def unpause(self, host: str) -> None:
        """A frozen host goes on."""
        if self.running().get(host) == "paused":
            self.docker("unpause", PREFIX + host)

    def heal(self) -> list[str]:
        """Mends whatever is broken; says what it was."""
        mended: list[str] = []
        for host, state in self.running().items():
            if state == "paused":
                self.unpause(host)
                mended.append(f"{host} unpaused")
            elif state != "running":
                self.docker("start", PREFIX + host)
                mended.append(f"{host} started")
        running = self.running()
        hosts = [host for host in (*NODES, *PAIR, *SECOND_PAIR, *DATABASES) if running.get(host) == "running"]
        with ThreadPoolExecutor(len(hosts) or 1) as together:
            for words in together.map(self._heal_host, hosts):
                mended += words
        return mended

    def _heal_host(self, host: str) -> list[str]:
        script = f"{THAW}; nft list tables; ls /run; rm -f {' '.join(lab_faults.FILLERS)}"
        found, mended = set(self.run(host, "sh", "-c", script).split()), []
        if found & {lab_pair.CABLE_TABLE, lab_pair.BEATS_TABLE}:
            lab_pair.heal(self, host)
            mended.append(f"{host} connected")
        for cut in found & {CUT_TABLE, DATABASE_CUT_TABLE}:
            self.run(host, "nft", "delete", "table", "inet", cut)
            mended.append(f"{host} connected")
        for service in ("app",) if host in NODES else ("edge", "guard"):
            if Path(lab_versions.SERVICES[service].words).name in found:
                lab_versions.run_own(self, host, service)
                mended.append(f"{host} runs its own version")
        if Path(lab_clock.OWN_CLOCK).name in found:
            lab_clock.take(self, host)
            mended.append(f"{host} has the machine's clock")
        if f"{Path(lab_patience.PATIENT).name}-edge" in found:
            lab_patience.take(self, host)
            mended.append(f"{host} has the timings of its settings")
        return mended

    # --- looking ---

    def channels(self, node: str) -> list[str]:
        """Channels of a node's Asterisk; raises LabError when it does not answer."""
        text = self.run(node, "timeout", "5", "asterisk", "-rx", "core show channels concise")
        return [line.split("!")[0] for line in text.splitlines() if "!" in line]

    def bridges(self, node: str) -> list[str]:
        """Ids of the bridges of a node's Asterisk."""
        text = self.run(node, "timeout", "5", "asterisk", "-rx", "bridge show all")
        return [line.split()[0] for line in text.splitlines()[1:] if line.strip()]

    def versions(self) -> dict[str, str]:
        """Versions of what is not ours."""
        wanted = {
            "asterisk": (NODES[0], "asterisk", "-V"),
            "rtpengine": (EDGES[0], "sh", "-c", "rtpengine --version 2>&1 | head -n 1"),
            "etcd": (ETCD[0], "etcdctl", "version"),
        }
        found: dict[str, str] = {}
        for name, (host, *command) in wanted.items():
            try:
                found[name] = self.run(host, *command).splitlines()[0].strip()
            except (LabError, IndexError) as error:
                found[name] = f"unknown: {error}"
        return found


FAULTS: dict[str, Callable[[Lab, str], Struck]] = {
    "asterisk-kill": Lab.asterisk_kill,
    "asterisk-stop": Lab.asterisk_stop,
    "asterisk-restart-now": Lab.asterisk_restart_now,
    "asterisk-freeze": Lab.asterisk_freeze,
    "node-cut": Lab.node_cut,
    "app-kill": Lab.app_kill,
    "app-freeze": Lab.app_freeze,
    "app-version-change": lab_versions.app_version_change,
    "edge-process-kill": Lab.edge_process_kill,
    "rtpengine-kill": Lab.rtpengine_kill,
    "rtpengine-kill-twice": lab_faults.relay_kill_twice,
    "rtpengine-restart": lab_faults.relay_restart,
    "edge-kill": lab_pair.kill,
    "edge-freeze": lab_pair.freeze,
    "edge-cut": lab_pair.cut,
    "edge-heartbeats-lost": lab_pair.deafen,
    "edge-switchover": lab_pair.switchover,
    "edge-and-asterisk-kill": lambda lab, hosts: lab_pair.both(lab, *hosts.split()),
    "edge-and-etcd-leader-kill": lab_pair.with_leader,
    "etcd-member-kill": lambda lab, host: lab.etcd_kill(host or _follower(lab)),
    "etcd-leader-kill": lambda lab, _: lab.etcd_kill(lab.etcd_leader()),
    "etcd-quorum-loss": lambda lab, _: lab.etcd_quorum_loss(),
    "etcd-slow": lab_faults.etcd_slow,
    "database-kill": lab_faults.database_kill,
    "clerk-kill": lab_faults.clerk_kill,
    "drain": lab_faults.drain,
    "two-nodes-kill": lab_faults.two_nodes_kill,
    "survivor-kill": lab_faults.survivor_kill,
    "all-nodes-kill": lab_faults.all_nodes_kill,
    "node-cut-in": lab_faults.node_cut_in,
    "node-cut-out": lab_faults.node_cut_out,
    "node-loss": lab_faults.node_loss,
    "compaction": lab_faults.compaction,
    "disk-full": lab_faults.disk_full,
    "edge-starved": lab_faults.host_starved,
    "edge-starved-patient": lab_faults.host_starved,
    "node-starved": lab_faults.host_starved,
    "clock-step": lab_clock.step,
    "edge-clock-step": lab_clock.step,
}
"""Every fault by name; the second argument is the host it strikes."""
PREPARED: dict[str, Callable[[Lab, str], None]] = {
    "clock-step": lab_clock.give,
    "edge-clock-step": lab_clock.give_edges,
    "edge-starved-patient": lab_patience.give_edges,
}
"""What has to be done to the host of some faults before there are calls."""


def _follower(lab: Lab) -> str:
    leader = lab.etcd_leader()
    return next(member for member in ETCD if member != leader)


_app = typer.Typer(no_args_is_help=True, help="The container lab: break it, mend it, look at it.")


def register(parent: typer.Typer) -> None:
    """Adds ``lab`` to the command line."""
    parent.add_typer(_app, name="lab")


JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


@_app.command("status")
def status(as_json: JsonFlag = False) -> None:
    """Containers and their services."""
    lab = Lab()
    rows = []
    try:
        for host, state in sorted(lab.running().items()):
            services = ""
            if state == "running" and host not in ETCD:
                services = lab.run(host, "sh", "-c", "sv status /service/*; true").strip()
            rows.append({"host": host, "state": state, "services": services.splitlines()})
    except LabError as error:
        fail(str(error), as_json)
    if as_json:
        print_json({"hosts": rows})
        return
    table(
        "lab",
        ("host", "state", "services"),
        [(r["host"], r["state"], "\n".join(r["services"])) for r in rows],
    )


@_app.command("break")
def break_(
    fault: Annotated[str, typer.Argument(help="One of: " + ", ".join(FAULTS))],
    host: Annotated[str, typer.Argument(help="Which node, edge or etcd member.")] = "",
    for_s: Annotated[float, typer.Option("--for", help="Mend it after so many seconds; 0: leave it.")] = 0.0,
) -> None:
    """Cause one fault."""
    if fault not in FAULTS:
        fail(f"no fault {fault!r}; there are {', '.join(FAULTS)}", status=2)
    lab = Lab()
    try:
        struck = FAULTS[fault](lab, host or default_host(fault))
        say(f"{fault}: struck at {struck.at:.3f}")
        if for_s > 0:
            time.sleep(for_s)
            if struck.mend is not None:
                struck.mend()
            say("mended")
    except LabError as error:
        fail(str(error))


def default_host(fault: str) -> str:
    """The host a fault strikes when none is named."""
    if fault.startswith(("etcd", "database", "clerk")):
        return ""
    return EDGES[0] if fault.startswith(("edge", "rtpengine")) else NODES[0]


@_app.command("heal")
def heal() -> None:
    """Mend whatever is broken."""
    try:
        mended: Sequence[str] = Lab().heal()
    except LabError as error:
        fail(str(error))
    say("; ".join(mended) or "nothing was broken")
