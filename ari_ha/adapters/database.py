"""One local MySQL or MariaDB server, by PyMySQL in threads.

Each lane has its own connection and its own thread: a commit that waits, or a server
that stands still, holds up nobody else. A statement that did not come back in time is
Unknown, and its connection is not used again.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pymysql
import pymysql.cursors

from ari_ha.adapters import database_sql as sql
from ari_ha.core.machine import Done, Effect, Outcome, Refused, Unknown, Unreachable
from ari_ha.core.ports.database import DatabaseDo, Observe

CONNECT_LIMIT_S = 1.0
READ_SLACK_S = 0.2
"""Added to an effect's limit for the socket, so that the shell's limit comes first."""
LANES_MAX = 8
LOST = frozenset({2006, 2013, 2055})
"""The connection broke while a statement was under way (CR_SERVER_GONE, CR_SERVER_LOST)."""

Connection = Any
Connect = Callable[..., Connection]


@dataclass(frozen=True, slots=True)
class DatabaseAccess:
    """How the local server is reached, and as whom."""

    flavour: str
    host: str = "127.0.0.1"
    port: int = 33062
    """The watcher's own port (admin_port, extra_port): max_connections does not close it."""
    user: str = "ha"
    password: str = field(default="", repr=False)
    repl_user: str = "repl"
    repl_password: str = field(default="", repr=False)
    ca_file: str = ""
    """Authority of the servers' certificates; empty: no TLS."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Servers of the pair by host."""


class DatabaseServer:
    """Carries out `Observe` and `DatabaseDo`. ``life`` says which life of the server's
    process is the present one."""

    def __init__(
        self,
        access: DatabaseAccess,
        life: Callable[[], str],
        disk_free_share: Callable[[str], float] = lambda datadir: 1.0,
        connect: Connect = pymysql.connect,
    ) -> None:
        self._access = access
        self._flavour = sql.FLAVOURS[access.flavour]
        self._life = life
        self._disk_free_share = disk_free_share
        self._connect = connect
        self._lanes: dict[str, _Lane] = {}

    async def perform(self, effect: Effect) -> Outcome:
        """One outcome; the shell's limit may come first."""
        lane = self._lane(effect.lane or "free")
        if isinstance(effect, Observe):
            work: Callable[[Connection], Any] = functools.partial(self._observe, self._life())
        elif isinstance(effect, DatabaseDo):
            work = functools.partial(self._do, effect.verb, effect.args)
        else:
            return Refused(f"not for a database: {type(effect).__name__}")
        return await self.run(lane, work, effect.limit_s)

    async def statement(self, lane: str, text: str, args: Mapping[str, Any], limit_s: float) -> Outcome:
        """One statement outside the table (CLONE)."""
        return await self.run(self._lane(lane), lambda connection: _rows(connection, text, args), limit_s)

    async def work(self, lane: str, work: Callable[[Connection], Any], limit_s: float) -> Outcome:
        """Several statements on the lane's connection, in its thread."""
        return await self.run(self._lane(lane), work, limit_s)

    async def run(self, lane: _Lane, work: Callable[[Connection], Any], limit_s: float) -> Outcome:
        """``work`` in the lane's thread."""
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(lane.pool, functools.partial(self._in_thread, lane, work, limit_s))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            # Too late: what was asked may still happen; nothing else is asked on this connection.
            self._abandon(lane)
            raise

    async def refused_grants(self, users: tuple[str, ...], limit_s: float = 5.0) -> dict[str, list[str]]:
        """Rights by user with which an application could write to a closed server."""
        found: dict[str, list[str]] = {}
        for user in users:
            grantee = {"grantee": f"'{user}'@%"}
            outcome = await self.statement("grants", sql.GRANTS, grantee, limit_s)
            if isinstance(outcome, Done) and (
                rights := sql.refused_grants(self._flavour.name, outcome.value)
            ):
                found[user] = rights
        return found

    def close(self) -> None:
        """Closes every connection."""
        for lane in list(self._lanes.values()):
            lane.close()
        self._lanes.clear()

    # -- lanes

    def _lane(self, name: str) -> _Lane:
        if name not in self._lanes:
            if len(self._lanes) >= LANES_MAX:
                name = "free"
            self._lanes.setdefault(name, _Lane(name))
        return self._lanes[name]

    def _abandon(self, lane: _Lane) -> None:
        if self._lanes.get(lane.name) is lane:
            del self._lanes[lane.name]
        lane.close()

    # -- in threads

    def _in_thread(self, lane: _Lane, work: Callable[[Connection], Any], limit_s: float) -> Outcome:
        life = self._life()
        if lane.connection is not None and lane.life != life:
            # It was to a server that is no more; asked on it, nothing would be known to have happened.
            _shut(lane.connection)
            lane.connection = None
        try:
            connection = lane.connection or self._open(limit_s)
        except (pymysql.err.OperationalError, pymysql.err.InternalError, OSError) as error:
            return Unreachable(_text(error))
        lane.connection, lane.life = None, life
        try:
            _set_limit(connection, limit_s + READ_SLACK_S)
            value = work(connection)
        except pymysql.err.MySQLError as error:
            code = int(error.args[0]) if error.args and isinstance(error.args[0], int) else 0
            if code in LOST or not connection.open:
                _shut(connection)
                return Unknown(_text(error))
            lane.give(connection)
            return Refused(_text(error), code)
        except OSError as error:
            _shut(connection)
            return Unknown(_text(error))
        lane.give(connection)
        return Done(value)

    def _open(self, limit_s: float) -> Connection:
        access = self._access
        tls = ssl.create_default_context(cafile=access.ca_file) if access.ca_file else None
        if tls is not None and access.host in ("127.0.0.1", "::1", "localhost"):
            tls.check_hostname = False
        return self._connect(
            host=access.host, port=access.port, user=access.user, password=access.password,
            connect_timeout=CONNECT_LIMIT_S, read_timeout=limit_s + READ_SLACK_S,
            write_timeout=limit_s + READ_SLACK_S, autocommit=True,
            cursorclass=pymysql.cursors.DictCursor, ssl=tls, program_name="ari-ha-watcher",
        )  # fmt: skip

    def _observe(self, life: str, connection: Connection) -> Any:
        flavour = self._flavour
        variables = _rows(connection, flavour.variables)[0]
        replica = _rows(connection, flavour.replica)
        status = _rows(connection, flavour.status)
        try:
            found = _rows(connection, flavour.lag)[0]["lag_s"]
        except pymysql.err.MySQLError as error:
            if error.args[0] not in sql.NO_TABLE:
                raise
            found = None
        lag_s = None if found is None else float(found)
        share = self._disk_free_share(str(variables.get("datadir") or "/"))
        return sql.observation(
            flavour.name, life, variables, status, replica, lag_s, self._access.names, share
        )

    def _do(self, verb: str, args: Mapping[str, Any], connection: Connection) -> Any:
        if verb == "disconnect":
            return self._disconnect(connection)
        if verb == "checksum":
            return self._checksum(connection)
        if verb == "follow":
            return self._follow(args, connection)
        try:
            for text in self._flavour.verbs[verb]:
                _rows(connection, text, args)
        except pymysql.err.MySQLError as error:
            if verb != "heartbeat" or error.args[0] not in sql.NO_TABLE:
                raise
            for text in (*sql.HEARTBEAT_SCHEMA, *self._flavour.verbs[verb]):
                _rows(connection, text, args)
        return None

    def _follow(self, args: Mapping[str, Any], connection: Connection) -> None:
        access = self._access
        given = {
            "host": args["host"], "port": args["port"], "user": access.repl_user,
            "password": access.repl_password, "ssl": 1 if access.ca_file else 0,
        }  # fmt: skip
        (text,) = self._flavour.verbs["follow"]
        if self._flavour.name == sql.MARIADB:
            row = _rows(connection, "SELECT @@global.gtid_binlog_pos AS p, @@server_id AS i")[0]
            if sql.was_primary(str(row["p"] or ""), int(row["i"])):
                text += sql.DEMOTE
        _rows(connection, text, given)

    def _disconnect(self, connection: Connection) -> int:
        access = self._access
        users = {"user": access.user, "repl_user": access.repl_user}
        ended = 0
        for row in _rows(connection, self._flavour.applications, users):
            ident = next(iter(row.values()))
            try:
                _rows(connection, self._flavour.kill, {"id": int(ident)})
                ended += 1
            except pymysql.err.MySQLError as error:
                if error.args[0] != 1094:  # it has gone by itself (ER_NO_SUCH_THREAD)
                    raise
        return ended

    def _checksum(self, connection: Connection) -> dict[str, Any]:
        sums: dict[str, Any] = {}
        for row in _rows(connection, sql.TABLES):
            schema, table = str(row["s"]).replace("`", "``"), str(row["t"]).replace("`", "``")
            found = _rows(connection, f"CHECKSUM TABLE `{schema}`.`{table}`")[0]
            sums[f"{schema}.{table}"] = found.get("Checksum")
        return sums


class _Lane:
    """One connection and the thread that uses it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pool = ThreadPoolExecutor(1, thread_name_prefix=f"database-{name}")
        self.connection: Connection | None = None
        self.life = ""
        """Life of the server's process that it was opened to"""
        self._closed = False
        self._lock = threading.Lock()

    def give(self, connection: Connection) -> None:
        """Back for the next statement."""
        with self._lock:
            if not self._closed:
                self.connection = connection
                return
        _shut(connection)

    def close(self) -> None:
        """Nothing more in this lane."""
        with self._lock:
            self._closed = True
            connection, self.connection = self.connection, None
        if connection is not None:
            _shut(connection)
        self.pool.shutdown(wait=False)


def _rows(connection: Connection, text: str, args: Mapping[str, Any] | None = None) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(text, dict(args) if args else None)
        return list(cursor.fetchall())


def _set_limit(connection: Connection, limit_s: float) -> None:
    """PyMySQL sets its read timeout on the socket before each read."""
    connection._read_timeout = limit_s


def _shut(connection: Connection) -> None:
    """Without a goodbye: the far end may not be listening."""
    connection._force_close()


def _text(error: BaseException) -> str:
    """Without the statement: it may hold a password."""
    return ": ".join(str(part) for part in error.args[:2]) or type(error).__name__


def read_secret(path: str) -> str:
    """A password from a file that only we can read."""
    file = Path(path)
    if file.stat().st_mode & 0o077:
        raise ValueError(f"{path}: readable by others than its owner")
    return file.read_text().strip()


def utc_stamp() -> str:
    """For file names."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
