"""Faults of the lab's database pair. Applications always reach both servers: what is cut
is a server's way to etcd, to its peer, or the whole host for a while."""

from __future__ import annotations

import time
from collections.abc import Callable

from ari_ha.cli.lab import DATABASE_CUT_TABLE, DATABASES, ETCD, NETWORK, PREFIX, Lab, Struck

ETCD_ADDRESSES = ", ".join(f"{NETWORK}.2.{20 + n}" for n in range(1, len(ETCD) + 1))


def address(server: str) -> str:
    """A server's address on the core network."""
    return f"{NETWORK}.2.{40 + int(server.removeprefix('db'))}"


def peer(server: str) -> str:
    """The other server."""
    return next(name for name in DATABASES if name != server)


def kill(lab: Lab, server: str) -> Struck:
    """SIGKILL to the server's process."""
    script = "date +%s.%N && kill -KILL $(cat /run/mysqld/mysqld.pid)"
    return Struck(float(lab.run(server, "sh", "-c", script).split()[0]))


def freeze(lab: Lab, server: str) -> Struck:
    """The whole host stands still."""
    at = time.time()
    lab.docker("pause", PREFIX + server)
    return Struck(at, lambda: lab.unpause(server))


def _cut(lab: Lab, server: str, addresses: str, inbound_only: bool = False) -> Struck:
    lab.assert_own_network(server)
    out = "" if inbound_only else f"ip daddr {{ {addresses} }} drop;"
    rules = f"""table inet {DATABASE_CUT_TABLE} {{
  chain in {{ type filter hook input priority -300; ip saddr {{ {addresses} }} drop; }}
  chain out {{ type filter hook output priority -300; {out} }}
}}
"""
    script = "cat > /run/cut.nft && date +%s.%N && nft -f /run/cut.nft"
    at = float(lab.run(server, "sh", "-c", script, given=rules).split()[0])
    return Struck(at, lambda: heal(lab, server))


def heal(lab: Lab, server: str) -> None:
    """Connected again."""
    lab.run(server, "sh", "-c", f"nft delete table inet {DATABASE_CUT_TABLE} 2>/dev/null || true")


def cut_etcd(lab: Lab, server: str) -> Struck:
    """Nothing between the server's host and etcd."""
    return _cut(lab, server, ETCD_ADDRESSES)


def cut_peer(lab: Lab, server: str) -> Struck:
    """Nothing between the two servers."""
    return _cut(lab, server, address(peer(server)))


def cut_both(lab: Lab, server: str) -> Struck:
    """Neither etcd nor the peer."""
    return _cut(lab, server, f"{ETCD_ADDRESSES}, {address(peer(server))}")


def cut_one_way(lab: Lab, server: str) -> Struck:
    """What etcd and the peer say does not arrive; what the server's host says does."""
    return _cut(lab, server, f"{ETCD_ADDRESSES}, {address(peer(server))}", inbound_only=True)


def watcher_stop(lab: Lab, server: str) -> Struck:
    """SIGSTOP to the watcher and its parent: nobody starts it again."""
    script = "date +%s.%N; p=$(cat /service/watcher/supervise/pid); kill -STOP $p $(pgrep -P $p)"
    at = float(lab.run(server, "sh", "-c", script).split()[0])
    return Struck(at, lambda: lab.thaw(server))


def watcher_kill(lab: Lab, server: str) -> Struck:
    """SIGKILL to the watcher; its parent starts it again."""
    return Struck(lab.signal(server, "watcher", "KILL"))


def quorum_loss_and_standby(lab: Lab, server: str) -> Struck:
    """etcd without a majority, and the standby's host frozen."""
    lost = lab.etcd_quorum_loss()
    other = peer(server)
    lab.docker("pause", PREFIX + other)

    def mend() -> None:
        if lost.mend is not None:
            lost.mend()
        lab.unpause(other)

    return Struck(lost.at, mend)


FAULTS: dict[str, Callable[[Lab, str], Struck]] = {
    "primary-kill": kill,
    "primary-freeze": freeze,
    "primary-cut-etcd": cut_etcd,
    "primary-cut-peer": cut_peer,
    "primary-cut-both": cut_both,
    "primary-cut-one-way": cut_one_way,
    "watcher-stop": watcher_stop,
    "watcher-kill": watcher_kill,
    "replica-kill": lambda lab, server: kill(lab, peer(server)),
    "replica-freeze": lambda lab, server: freeze(lab, peer(server)),
    "db-etcd-leader-kill": lambda lab, server: lab.etcd_kill(lab.etcd_leader()),
    "db-etcd-quorum-loss": lambda lab, server: lab.etcd_quorum_loss(),
    "db-etcd-and-standby-loss": quorum_loss_and_standby,
}
"""What breaks, given the name of the primary."""
