"""Faults of the lab's database pair. Applications always reach both servers: what is cut
is a server's way to etcd, to its peer, or the whole host for a while."""

from __future__ import annotations

import time
from collections.abc import Callable

from ari_ha.cli.lab import DATABASE_CUT_TABLE, DATABASES, ETCD, NETWORK, PREFIX, Lab, Struck

CRASH_FILE = "/run/ari-ha/crash-step"
"""What the lab's watchers have as ``crash_file``."""
TAIL_S = 1.0
"""Written alone."""
ERRANT_ID = 99
"""A server no pair has."""
PROMOTION = (
    "after take/take", "after promote/receive_stop", "after promote/follow_stop",
    "after promote/follow_forget", "after promote/alone in etcd", "before promote/open", "after promote/open",
    "after promote/opened in etcd",
)  # fmt: skip
FOLLOWING = ("after rejoin/follow", "after rejoin/follow_start")
CERTIFYING = ("after certify/semi_on", "after certify/standby in etcd")
STEPS: dict[str, tuple[str, ...]] = {
    "primary-kill": (
        "after release/release", *PROMOTION, "during start/start", "after start/start",
        *FOLLOWING, *CERTIFYING,
    ),
    "switchover": (
        "after switchover/close", "after switchover/disconnect", "after switchover/hand over", *PROMOTION,
        "after disarm/semi_off", *FOLLOWING, *CERTIFYING,
    ),
    "replica-kill": (
        "after degrade/alone in etcd", "after degrade/semi_off", "after start/start",
        "after restart/follow_start", *CERTIFYING,
    ),
    "replica-errant": (
        "after intend/intend", "after rebuild/archive", "after rebuild/archived",
        "during rebuild/copy", "after rebuild/copy", "after rebuild/rebuilt", *FOLLOWING,
    ),
}  # fmt: skip
"""Every step of what a pair does, by the fault that has it done."""
ETCD_ADDRESSES = ", ".join(f"{NETWORK}.2.{20 + n}" for n in range(1, len(ETCD) + 1))


def address(server: str) -> str:
    """A server's address on the core network."""
    return f"{NETWORK}.2.{40 + int(server.removeprefix('db'))}"


def peer(server: str) -> str:
    """The other server."""
    return next(name for name in DATABASES if name != server)


def kill(lab: Lab, server: str) -> Struck:
    """SIGKILL to the server's process."""
    # The time after it: what a writer is told yes for later than that, another server said.
    script = "kill -KILL $(cat /run/mysqld/mysqld.pid) && date +%s.%N"
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


AS_WATCHER = """
options=$(mktemp); trap 'rm -f $options' EXIT
printf '[client]\\nuser=ha\\npassword=%s\\nhost=127.0.0.1\\nport=33062\\nssl-ca=/run/mysqld/ca.pem\\n' \\
    "$(tr -d '\\n' < /run/ari-ha/secrets/database-ha)" > $options
client=mysql; [ "$ARI_HA_FLAVOUR" = mysql ] || client=mariadb
$client --defaults-extra-file=$options -N
"""
"""SQL from standard input, as the watcher's user."""
ERRANT = (
    f"INSERT INTO ha_meta.heartbeat (server_id, ts, term) VALUES ({ERRANT_ID}, '2001-01-01', 0)"
    " ON DUPLICATE KEY UPDATE term = term + 1"
)


def tail_kill(lab: Lab, server: str) -> Struck:
    """The primary goes on writing without its way to the other one, and is killed then."""
    cut = cut_peer(lab, server)
    time.sleep(TAIL_S)
    return Struck(kill(lab, server).at, cut.mend)


def replica_errant(lab: Lab, server: str) -> Struck:
    """Somebody with all rights writes on the replica."""
    replica = peer(server)
    mysql = lab.run(replica, "printenv", "ARI_HA_FLAVOUR").strip() == "mysql"
    closed = "SET GLOBAL super_read_only = {};" if mysql else ""
    text, at = f"{closed.format('OFF')} {ERRANT}; {closed.format('ON')}", time.time()
    lab.run(replica, "bash", "-c", AS_WATCHER, given=text)
    return Struck(at)


def arm(lab: Lab, point: str) -> None:
    """Both watchers: whoever comes to ``point`` (``after promote/open``) first ends itself there."""
    for server in DATABASES:
        lab.run(server, "sh", "-c", f"cat > {CRASH_FILE}", given=point + "\n")


def disarm(lab: Lab) -> list[str]:
    """Who ended itself; nobody does any more."""
    script = f"test -e {CRASH_FILE} && rm -f {CRASH_FILE} && echo armed || true"
    return [server for server in DATABASES if not lab.run(server, "sh", "-c", script).strip()]


FAULTS: dict[str, Callable[[Lab, str], Struck]] = {
    "primary-kill": kill,
    "tail-kill": tail_kill,
    "primary-freeze": freeze,
    "primary-cut-etcd": cut_etcd,
    "primary-cut-peer": cut_peer,
    "primary-cut-both": cut_both,
    "primary-cut-one-way": cut_one_way,
    "watcher-stop": watcher_stop,
    "watcher-kill": watcher_kill,
    "replica-kill": lambda lab, server: kill(lab, peer(server)),
    "replica-freeze": lambda lab, server: freeze(lab, peer(server)),
    "replica-errant": replica_errant,
    "db-etcd-leader-kill": lambda lab, server: lab.etcd_kill(lab.etcd_leader()),
    "db-etcd-quorum-loss": lambda lab, server: lab.etcd_quorum_loss(),
    "db-etcd-and-standby-loss": quorum_loss_and_standby,
}
"""What breaks, given the name of the primary."""
