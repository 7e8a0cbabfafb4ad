"""The two flavours' SQL: which statements a verb is, and how an answer is read.

Tables of data; `ari_ha.adapters.database` runs them. Statements take named parameters,
so that no secret is ever part of a text that could be logged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ari_ha.core.ports.database import Observation

Row = Mapping[str, Any]

MYSQL, MARIADB = "mysql", "mariadb"
META = "ha_meta"
HEARTBEAT_SCHEMA = (
    f"CREATE DATABASE IF NOT EXISTS {META}",
    f"CREATE TABLE IF NOT EXISTS {META}.heartbeat (server_id INT UNSIGNED NOT NULL PRIMARY KEY,"
    " ts TIMESTAMP(6) NOT NULL, term BIGINT UNSIGNED NOT NULL) ENGINE=InnoDB",
)
"""Made by the primary when its first heartbeat finds no table."""
NO_TABLE = frozenset({1049, 1146})
CLONE_ENDED = frozenset({3707})
"""ER_CLONE_SHUTDOWN… : the copy is there, and nobody restarts the server but we."""

_HEARTBEAT = (
    f"INSERT INTO {META}.heartbeat (server_id, ts, term) SELECT @@server_id, NOW(6), %(term)s FROM DUAL"
    " WHERE @@global.read_only = 0 ON DUPLICATE KEY UPDATE ts = NOW(6), term = VALUES(term)"
)
"""MariaDB's read_only does not hold the watcher's user back: one that comes late, when the server was closed
meanwhile, would be a transaction that only this server has."""
_LAG = f"SELECT TIMESTAMPDIFF(MICROSECOND, MAX(ts), NOW(6)) / 1e6 AS lag_s FROM {META}.heartbeat"
_NUMBER = (
    "SET GLOBAL auto_increment_increment = %(increment)s",
    "SET GLOBAL auto_increment_offset = %(offset)s",
)
_LOCK_WAIT = "SET SESSION lock_wait_timeout = %(lock_wait_s)s"


@dataclass(frozen=True, slots=True)
class Flavour:
    """One flavour."""

    name: str
    verbs: Mapping[str, tuple[str, ...]]
    variables: str
    status: str
    replica: str
    lag: str
    applications: str
    """Ids of applications' connections, for ``disconnect``."""
    kill: str
    binlog_tool: str
    grants_refused: tuple[str, ...]
    """What the application's user must not have: it could write to a closed server."""


FLAVOURS = {
    MYSQL: Flavour(
        name=MYSQL,
        verbs={
            "close": (_LOCK_WAIT, "SET GLOBAL super_read_only = ON"),
            "open": ("SET GLOBAL super_read_only = OFF", "SET GLOBAL read_only = OFF"),
            "semi_on": ("SET GLOBAL rpl_semi_sync_source_enabled = 1",),
            "semi_off": ("SET GLOBAL rpl_semi_sync_source_enabled = 0",),
            "receive_stop": ("STOP REPLICA IO_THREAD",),
            "apply_start": ("START REPLICA SQL_THREAD",),
            "follow_stop": ("STOP REPLICA",),
            "follow_forget": ("RESET REPLICA ALL",),
            "follow": (
                "CHANGE REPLICATION SOURCE TO SOURCE_HOST = %(host)s, SOURCE_PORT = %(port)s,"
                " SOURCE_USER = %(user)s, SOURCE_PASSWORD = %(password)s, SOURCE_SSL = %(ssl)s,"
                " SOURCE_AUTO_POSITION = 1, SOURCE_CONNECT_RETRY = 1, SOURCE_RETRY_COUNT = 0,"
                " SOURCE_HEARTBEAT_PERIOD = 1, GET_SOURCE_PUBLIC_KEY = 1",
            ),
            "follow_start": ("START REPLICA",),
            "tolerate": ("SET GLOBAL replica_exec_mode = 'IDEMPOTENT'",),
            "heartbeat": (_HEARTBEAT,),
            "number": _NUMBER,
            "disconnect": (),
            "checksum": (),
        },
        variables=(
            "SELECT @@global.read_only AS read_only, @@global.gtid_executed AS executed,"
            " @@server_uuid AS uuid, @@server_id AS server_id, @@version AS version,"
            " @@global.auto_increment_increment AS `increment`, @@global.auto_increment_offset AS `offset`,"
            " @@global.rpl_semi_sync_source_enabled AS semi_source,"
            " @@global.rpl_semi_sync_replica_enabled AS semi_replica,"
            " @@global.max_connections AS connections_max, @@datadir AS datadir"
        ),
        status=(
            "SHOW GLOBAL STATUS WHERE Variable_name IN ('Rpl_semi_sync_source_clients',"
            " 'Rpl_semi_sync_source_wait_sessions', 'Rpl_semi_sync_source_yes_tx', 'Threads_connected')"
        ),
        replica="SHOW REPLICA STATUS",
        lag=_LAG,
        applications=(
            "SELECT id FROM performance_schema.processlist WHERE id <> CONNECTION_ID()"
            " AND user NOT IN ('system user', 'event_scheduler', %(user)s, %(repl_user)s)"
            " AND command NOT LIKE 'Binlog Dump%%'"
        ),
        kill="KILL CONNECTION %(id)s",
        binlog_tool="mysqlbinlog",
        grants_refused=("SUPER", "CONNECTION_ADMIN", "SYSTEM_VARIABLES_ADMIN"),
    ),
    MARIADB: Flavour(
        name=MARIADB,
        verbs={
            "close": (_LOCK_WAIT, "SET GLOBAL read_only = ON"),
            "open": ("SET GLOBAL read_only = OFF",),
            "semi_on": ("SET GLOBAL rpl_semi_sync_master_enabled = 1",),
            "semi_off": ("SET GLOBAL rpl_semi_sync_master_enabled = 0",),
            "receive_stop": ("STOP SLAVE IO_THREAD",),
            "apply_start": ("START SLAVE SQL_THREAD",),
            "follow_stop": ("STOP SLAVE",),
            "follow_forget": ("RESET SLAVE ALL",),
            "follow": (
                "CHANGE MASTER TO MASTER_HOST = %(host)s, MASTER_PORT = %(port)s, MASTER_USER = %(user)s,"
                " MASTER_PASSWORD = %(password)s, MASTER_SSL = %(ssl)s, MASTER_USE_GTID = slave_pos,"
                " MASTER_CONNECT_RETRY = 1, MASTER_HEARTBEAT_PERIOD = 1",
            ),
            "follow_start": ("START SLAVE",),
            "tolerate": ("SET GLOBAL slave_exec_mode = 'IDEMPOTENT'",),
            "heartbeat": (_HEARTBEAT,),
            "number": _NUMBER,
            "disconnect": (),
            "checksum": (),
        },
        variables=(
            "SELECT @@global.read_only AS read_only, @@global.gtid_binlog_pos AS binlog_pos,"
            " @@global.gtid_slave_pos AS slave_pos, @@global.gtid_binlog_state AS binlog_state,"
            " @@server_id AS server_id, @@version AS version, '' AS uuid,"
            " @@global.auto_increment_increment AS `increment`, @@global.auto_increment_offset AS `offset`,"
            " @@global.rpl_semi_sync_master_enabled AS semi_source,"
            " @@global.rpl_semi_sync_slave_enabled AS semi_replica,"
            " @@global.max_connections AS connections_max, @@datadir AS datadir"
        ),
        status=(
            "SHOW GLOBAL STATUS WHERE Variable_name IN ('Rpl_semi_sync_master_clients',"
            " 'Rpl_semi_sync_master_wait_sessions', 'Rpl_semi_sync_master_yes_tx', 'Threads_connected')"
        ),
        replica="SHOW REPLICA STATUS",
        lag=_LAG,
        applications=(
            "SELECT id FROM information_schema.processlist WHERE id <> CONNECTION_ID()"
            " AND user NOT IN ('system user', 'event_scheduler', %(user)s, %(repl_user)s)"
            " AND command NOT LIKE 'Binlog Dump%%' AND command <> 'Daemon' AND command NOT LIKE 'Slave%%'"
        ),
        kill="KILL HARD CONNECTION %(id)s",
        binlog_tool="mariadb-binlog",
        grants_refused=("SUPER", "READ_ONLY ADMIN", "CONNECTION ADMIN"),
    ),
}
DEMOTE = ", MASTER_DEMOTE_TO_SLAVE = 1"
"""MariaDB: a former primary's own transactions count as its replication position."""
TABLES = (
    "SELECT table_schema AS s, table_name AS t FROM information_schema.tables"
    " WHERE table_type = 'BASE TABLE' AND table_schema NOT IN"
    " ('mysql', 'sys', 'performance_schema', 'information_schema', 'ha_meta') ORDER BY 1, 2"
)
GRANTS = (
    "SELECT grantee, privilege_type FROM information_schema.user_privileges WHERE grantee LIKE %(grantee)s"
)


def refused_grants(flavour: str, rows: list[Row]) -> list[str]:
    """Rights of the application's user with which it could write to a closed server."""
    held = {str(row["privilege_type"]).upper() for row in _lower(rows)}
    return [grant for grant in FLAVOURS[flavour].grants_refused if grant in held]


def was_primary(binlog_pos: str, server_id: int) -> bool:
    """MariaDB: the last transaction of some domain is the server's own."""
    return any(part.split("-")[1] == str(server_id) for part in binlog_pos.split(",") if part.count("-") == 2)


def _lower(rows: list[Row]) -> list[dict[str, Any]]:
    return [{str(name).lower(): value for name, value in row.items()} for row in rows]


def observation(
    flavour: str,
    life: str,
    variables: Row,
    status: list[Row],
    replica: list[Row],
    lag_s: float | None,
    names: Mapping[str, str],
    disk_free_share: float,
) -> Observation:
    """What a server's answers say. ``names``: servers by host."""
    counters = {row["variable_name"]: row["value"] for row in _lower(status)}
    line = _lower(replica)[0] if replica else {}
    word = "source" if flavour == MYSQL else "master"
    if flavour == MYSQL:
        position = history = _plain(variables["executed"])
        retrieved = _plain(line.get("retrieved_gtid_set"))
    else:
        position = _plain(variables["binlog_pos"]) or _plain(variables["slave_pos"])
        history = _joined(_plain(variables["binlog_state"]), _plain(variables["slave_pos"]))
        retrieved = _plain(line.get("gtid_io_pos"))
    host = str(line.get("source_host") or line.get("master_host") or "")
    return Observation(
        life=life,
        uuid=str(variables.get("uuid") or ""),
        server_id=int(variables["server_id"]),
        version=str(variables["version"]),
        writable=not _on(variables["read_only"]),
        position=position,
        history=history,
        received=_joined(history, retrieved),
        source=names.get(host, host),
        io=_thread(line.get("replica_io_running") or line.get("slave_io_running")),
        io_error=_error(line.get("last_io_errno"), line.get("last_io_error")),
        applying=_thread(line.get("replica_sql_running") or line.get("slave_sql_running")) == "yes",
        apply_error=_error(line.get("last_sql_errno"), line.get("last_sql_error")),
        semi_source=_on(variables["semi_source"]),
        semi_clients=int(counters.get(f"Rpl_semi_sync_{word}_clients", 0)),
        semi_waiting=int(counters.get(f"Rpl_semi_sync_{word}_wait_sessions", 0)),
        semi_acked=int(counters.get(f"Rpl_semi_sync_{word}_yes_tx", 0)),
        semi_replica=_on(variables["semi_replica"]),
        lag_s=lag_s,
        increment=int(variables["increment"]),
        offset=int(variables["offset"]),
        disk_free_share=disk_free_share,
        connections=int(counters.get("Threads_connected", 0)),
        connections_max=int(variables["connections_max"]),
    )


def _plain(value: Any) -> str:
    return "".join(str(value or "").split())


def _joined(*texts: str) -> str:
    return ",".join(text for text in texts if text)


def _on(value: Any) -> bool:
    return str(value).lower() in ("1", "on", "true")


def _thread(value: Any) -> str:
    text = str(value or "no").lower()
    return text if text in ("yes", "no") else "connecting"


def _error(number: Any, text: Any) -> str:
    return f"{number} {text}".strip() if number and str(number) != "0" else ""
