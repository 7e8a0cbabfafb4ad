"""Faults of the container lab that are more than one process killed: several hosts at once, a bad network,
a slow etcd, a history that is gone; and the one that is no accident: a drain."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ari_ha.cli.lab import Lab, Struck

TAKEOVER_BEGUN_S = 0.15
"""After the first death, the survivors are taking the calls up."""
LOSS_SHARE = 5
"""Packets in a hundred that a bad network loses, each way."""
ETCD_STOPPED_S, ETCD_RUNS_S = 1.0, 0.5
"""Rhythm in which all members of a slow etcd stand still: of transactions in turn, one in a hundred takes
more than a second."""
BETWEEN_DEATHS_S = 2.0
"""A media relay that has just come back has lived so long when it dies again."""
RELAY_START_LIMIT_S = 10.0
VALKEY = "/run/valkey.conf"
"""Is there where a valkey runs beside rtpengine: the edges of a pair."""
STARVED_S = 60
"""How long a host is starved of processor time."""
STARVED_LOOPS, EDGE_STARVED_LOOPS = 8, 64
"""Busy processes beside those of the host. Eight leave each thread of a node a share of a fifth of a core, 64
leave one of an edge that does not go before them by its priority a thirtieth."""
DISKS = ("/var/log/asterisk", "/var/lib/asterisk", "/var/spool/asterisk")
"""What a node's Asterisk writes to: small file systems of their own in the lab."""
FILLERS = [f"{disk}/.chaos-filler" for disk in DISKS]
ETCD_PORT = 2379
UNREAD_CHANGES = 3
"""Made while nobody can read them: a watch that goes on from before them is behind the compaction."""
READ_AGAIN, READ_AGAIN_LIMIT_S = "compacted: reading prefix again", 15.0
"""What a process says that was behind; how long it has for it."""
COMPACT = (
    "r=$(etcdctl endpoint status -w json | sed 's/.*\"revision\":\\([0-9]*\\).*/\\1/') "
    '&& etcdctl compaction --physical "$r"'
)


def drain(lab: Lab, node: str) -> Struck:
    """What ``ari-ha drain`` does; mended by ``undrain``."""
    from ari_ha.cli.cluster import LAB_SETTINGS, Cluster
    from ari_ha.cli.drain import remove, write
    from ari_ha.cli.lab import Struck

    cluster = Cluster.open(LAB_SETTINGS)
    at = time.time()
    write(cluster, node)
    return Struck(at, lambda: void(remove(cluster, node)))


def void(_: object) -> None:
    """For acts whose answer nobody needs."""


def _next(node: str) -> str:
    from ari_ha.cli.lab import NODES

    return NODES[(NODES.index(node) + 1) % len(NODES)]


def two_nodes_kill(lab: Lab, node: str) -> Struck:
    """SIGKILL to the Asterisk of the node and of another one, together."""
    struck = lab.asterisk_kill(node)
    lab.asterisk_kill(_next(node))
    return struck


def survivor_kill(lab: Lab, node: str) -> Struck:
    """One of the survivors dies while it takes the calls up."""
    struck = lab.asterisk_kill(node)
    time.sleep(max(0.0, struck.at + TAKEOVER_BEGUN_S - time.time()))
    lab.asterisk_kill(_next(node))
    return struck


def all_nodes_kill(lab: Lab, node: str) -> Struck:
    """Every Asterisk at once: the calls wait until the first is back."""
    from ari_ha.cli.lab import NODES

    struck = lab.asterisk_kill(node)
    for other in NODES:
        if other != node:
            lab.asterisk_kill(other)
    return struck


def relay_kill_twice(lab: Lab, edge: str) -> Struck:
    """The media relay dies, comes back, and dies again some seconds later."""
    from ari_ha.cli.lab import wait_until

    old = lab.pid(edge, "rtpengine")
    struck = lab.rtpengine_kill(edge)
    wrong = f"{edge}: rtpengine was not started again"
    wait_until(wrong, RELAY_START_LIMIT_S, lambda: lab.pid(edge, "rtpengine") not in (0, old), 0.05)
    time.sleep(BETWEEN_DEATHS_S)
    lab.rtpengine_kill(edge)
    return struck


def relay_restart(lab: Lab, edge: str) -> Struck:
    """The media relay dies where no valkey keeps its calls: it comes back and knows none of them."""
    from ari_ha.cli.lab import LabError

    if lab.run(edge, "sh", "-c", f"[ ! -e {VALKEY} ] || echo there").strip():
        raise LabError(f"rtpengine of {edge} has a valkey beside it and finds its calls: rtpengine-kill")
    return lab.rtpengine_kill(edge)


def node_cut_in(lab: Lab, node: str) -> Struck:
    """Nothing reaches the node; what it says still arrives."""
    return _filter(lab, node, ("input",), "drop")


def node_cut_out(lab: Lab, node: str) -> Struck:
    """The node hears everything, and nothing it says arrives."""
    return _filter(lab, node, ("output",), "drop")


def node_loss(lab: Lab, node: str) -> Struck:
    """The node's network loses packets both ways."""
    return _filter(lab, node, ("input", "output"), f"numgen random mod 100 < {LOSS_SHARE} drop")


def _filter(lab: Lab, node: str, ways: tuple[str, ...], rule: str) -> Struck:
    from ari_ha.cli.lab import CUT_TABLE, Struck

    lab.assert_own_network(node)
    local = {"input": "iif", "output": "oif"}
    chains = "\n".join(
        f'  chain {way} {{ type filter hook {way} priority -300; {local[way]} "lo" accept; {rule}; }}'
        for way in ways
    )
    script = "cat > /run/cut.nft && date +%s.%N && nft -f /run/cut.nft"
    at = float(
        lab.run(node, "sh", "-c", script, given=f"table inet {CUT_TABLE} {{\n{chains}\n}}\n").split()[0]
    )
    return Struck(at, lambda: lab.node_heal(node))


def etcd_slow(lab: Lab, _: str) -> Struck:
    """All members stand still again and again: every transaction is slow, elections begin."""
    from ari_ha.cli.lab import ETCD, PREFIX, LabError, Struck

    over = threading.Event()
    names = [PREFIX + member for member in ETCD]

    def rhythm() -> None:
        while not over.is_set():
            try:
                lab.docker("pause", *names)
                over.wait(ETCD_STOPPED_S)
                lab.docker("unpause", *names)
            except LabError:
                break
            over.wait(ETCD_RUNS_S)

    thread = threading.Thread(target=rhythm, daemon=True)
    at = time.time()
    thread.start()

    def mend() -> None:
        over.set()
        thread.join()
        for member in ETCD:
            lab.unpause(member)

    return Struck(at, mend)


def compaction(lab: Lab, node: str) -> Struck:
    """The node's app and the edges lose etcd, and what they have not read meanwhile is gone from its history
    when they find it again: they must read everything anew.

    Of a process that only stands still etcd keeps the watch, and what it has sent to it.
    """
    from ari_ha.cli.lab import ETCD, PREFIX, LabError, Struck, running_edges

    hosts = (node, *running_edges(lab))
    cuts = [_filter(lab, host, ("output",), f"tcp dport {ETCD_PORT} reject with tcp reset") for host in hosts]
    at = cuts[0].at
    for n in range(UNREAD_CHANGES):
        lab.run(ETCD[0], "etcdctl", "put", "/chaos/compaction", f"{at} {n}")
    lab.run(ETCD[0], "sh", "-c", COMPACT)

    def mend() -> None:
        for host in hosts:
            lab.node_heal(host)
        until, behind = time.monotonic() + READ_AGAIN_LIMIT_S, list(hosts)
        while behind:
            if time.monotonic() > until:
                raise LabError(f"{', '.join(behind)} did not find its history compacted: nothing was tried")
            time.sleep(0.2)
            behind = [
                h for h in behind if READ_AGAIN not in lab.docker("logs", "--since", str(at), PREFIX + h)
            ]

    return Struck(at, mend)


def disk_full(lab: Lab, node: str) -> Struck:
    """No byte can be written any more where the node's Asterisk writes."""
    from ari_ha.cli.lab import LabError, Struck

    at = time.time()
    for disk, filler in zip(DISKS, FILLERS, strict=True):
        kind = lab.run(node, "stat", "-f", "-c", "%T", disk).strip()
        if kind != "tmpfs":
            raise LabError(f"{disk} of {node} is not a file system of its own ({kind}): not filled")
        lab.run(node, "sh", "-c", f"cat /dev/zero > {filler} 2>/dev/null; true")
        if lab.run(node, "stat", "-f", "-c", "%f", disk).strip() != "0":
            raise LabError(f"{disk} of {node} is not full")
    return Struck(at, lambda: disk_mend(lab, node))


def disk_mend(lab: Lab, node: str) -> None:
    """There is space again."""
    lab.run(node, "rm", "-f", *FILLERS)


def host_starved(lab: Lab, host: str) -> Struck:
    """Other processes of the host take nearly all of its processor time for a minute."""
    from ari_ha.cli.lab import PREFIX, Struck

    count = EDGE_STARVED_LOOPS if host.startswith("edge") else STARVED_LOOPS
    loops = f"for n in $(seq {count}); do timeout {STARVED_S} sh -c 'while :; do :; done' & done; wait"
    # docker's own start of a command needs the host's processor: it is over before the loops begin
    lab.docker("exec", "-d", PREFIX + host, "sh", "-c", f"sleep 0.5; {loops}")
    return Struck(time.time())


def database_kill(lab: Lab, _: str) -> Struck:
    """SIGKILL to the process of the database server that is written to."""
    from ari_ha.cli.cluster import LAB_SETTINGS, Cluster
    from ari_ha.cli.db import document, read_pairs
    from ari_ha.cli.lab import LabError
    from ari_ha.cli.lab_database import kill

    pairs = document(read_pairs(Cluster.open(LAB_SETTINGS)))["clusters"]
    writable = [member["name"] for pair in pairs for member in pair["members"] if member["writable"]]
    if not writable:
        raise LabError("no database is writable")
    return kill(lab, writable[0])


def clerk_kill(lab: Lab, _: str) -> Struck:
    """SIGKILL to the clerk that writes; its parent starts it again, the other one writes meanwhile."""
    from ari_ha.cli.cluster import LAB_SETTINGS, Cluster
    from ari_ha.cli.lab import LabError, Struck
    from ari_ha.wire.keyspace import decode
    from ari_ha.wire.outbox import ClerkValue

    cluster = Cluster.open(LAB_SETTINGS)
    leader = cluster.get(cluster.keys.clerk())
    if leader is None:
        raise LabError("no clerk writes")
    return Struck(lab.signal(decode(leader.value, ClerkValue, leader.key).clerk, "clerk", "KILL"))
