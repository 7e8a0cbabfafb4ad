"""Breaking the edge pair: the host dies, freezes or is cut off, or only its heartbeats are."""

from __future__ import annotations

import json
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ari_ha.cli.lab import Lab, Struck

CABLE_TABLE = "ari_ha_cable"
BEATS_TABLE = "ari_ha_beats"
BEAT_PORT = 7710
GUARD_PORT = 8088
CONTAINER_START_LIMIT_S = 30.0
_BEAT_RULES = f"""table inet {BEATS_TABLE} {{
  chain in {{ type filter hook input priority -300; udp dport {BEAT_PORT} drop; }}
  chain out {{ type filter hook output priority -300; udp dport {BEAT_PORT} drop; }}
}}
"""


def cable_rules(devices: list[str]) -> str:
    """Nothing passes these devices, ARP included: a cable that is pulled."""
    chains = "".join(
        f"  chain {hook}_{device} {{ type filter hook {hook} device {device} priority -510; policy drop; }}\n"
        for device in devices
        for hook in ("ingress", "egress")
    )
    return f"table netdev {CABLE_TABLE} {{\n{chains}}}\n"


def kill(lab: Lab, edge: str) -> Struck:
    """The host is gone at once, with everything on it."""
    from ari_ha.cli.lab import PREFIX, Struck

    at = time.time()
    lab.docker("kill", "-s", "KILL", PREFIX + edge)
    return Struck(at, lambda: lab.docker("start", PREFIX + edge, limit_s=CONTAINER_START_LIMIT_S) and None)


def freeze(lab: Lab, edge: str) -> Struck:
    """Every process of the host stands still; its kernel does not."""
    from ari_ha.cli.lab import PREFIX, Struck

    at = time.time()
    lab.docker("pause", PREFIX + edge)
    return Struck(at, lambda: lab.unpause(edge))


def cut(lab: Lab, edge: str) -> Struck:
    """Both cables are pulled."""
    from ari_ha.cli.lab import Struck

    lab.assert_own_network(edge)
    lines = lab.run(edge, "ip", "-o", "link").splitlines()
    devices = [line.split()[1].partition("@")[0] for line in lines if "@if" in line]
    script = "cat > /run/cut.nft && date +%s.%N && nft -f /run/cut.nft"
    at = float(lab.run(edge, "sh", "-c", script, given=cable_rules(devices)).split()[0])
    return Struck(at, lambda: heal(lab, edge))


def deafen(lab: Lab, edge: str) -> Struck:
    """Heartbeats are lost on every path; all else arrives."""
    from ari_ha.cli.lab import Struck

    script = "cat > /run/beats.nft && date +%s.%N && nft -f /run/beats.nft"
    at = float(lab.run(edge, "sh", "-c", script, given=_BEAT_RULES).split()[0])
    return Struck(at, lambda: heal(lab, edge))


def heal(lab: Lab, edge: str) -> None:
    """Cables and heartbeats are back."""
    for table in (f"netdev {CABLE_TABLE}", f"inet {BEATS_TABLE}"):
        lab.run(edge, "sh", "-c", f"nft delete table {table} 2>/dev/null; true")


def switchover(lab: Lab, edge: str) -> Struck:
    """A planned one: the guard is asked, as `ari-ha switchover edge` does it."""
    from ari_ha.cli.lab import PREFIX, LabError, Struck

    token = lab.run(edge, "cat", "/run/ari-ha/secrets/http-token").strip()
    address = lab.docker(
        "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}", PREFIX + edge
    ).split()
    at = time.time()
    request = urllib.request.Request(
        f"http://{_core(address)}:{GUARD_PORT}/v1/switchover",
        data=b"{}",
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=3) as reply:
            json.load(reply)
    except OSError as error:
        raise LabError(f"the guard of {edge} refused: {error}") from error
    return Struck(at)


def _core(addresses: list[str]) -> str:
    from ari_ha.cli.lab import NETWORK

    return next(address for address in addresses if address.startswith(f"{NETWORK}.2."))


def both(lab: Lab, edge: str, node: str) -> Struck:
    """The edge's host and a node's Asterisk in the same moment."""
    from ari_ha.cli.lab import Struck

    # one command after the other takes half a second on a busy machine
    with ThreadPoolExecutor(1) as beside:
        edge_dies = beside.submit(kill, lab, edge)
        at = lab.signal(node, "asterisk", "KILL")
        return Struck(min(at, edge_dies.result().at), edge_dies.result().mend)


def with_leader(lab: Lab, edge: str) -> Struck:
    """The edge's host and etcd's leader in the same moment."""
    from ari_ha.cli.lab import PREFIX, Struck

    leader = lab.etcd_leader()
    at = time.time()
    lab.docker("kill", "-s", "KILL", PREFIX + edge, PREFIX + leader)

    def mend() -> None:
        lab.docker("start", PREFIX + edge, PREFIX + leader, limit_s=CONTAINER_START_LIMIT_S)

    return Struck(at, mend)
