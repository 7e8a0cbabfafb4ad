"""The tables of records, by PyMySQL in threads: `WriteRows`, and the schema's migrations.

The schema is numbered SQL files beside this module, applied in order, each once. They
are few and plain enough that a library for migrations would be more than they are.
"""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ari_ha.adapters.database import Connection, DatabaseAccess, DatabaseServer
from ari_ha.adapters.database_sql import MARIADB
from ari_ha.core.machine import Done, Effect, Outcome, Refused, Unknown, Unreachable
from ari_ha.core.ports.records import MigrateTables, WriteRows

LANE = "records"
TIMES = frozenset({"started", "answered", "entered", "connected", "ended", "time"})
DATA_ERRORS = frozenset({1048, 1264, 1265, 1292, 1366, 1406, 3140})
"""The row itself is not taken (too long, no such time …); asking again does not help."""
LOCK_S = 10
"""Seconds to wait for another one who is migrating."""
MIGRATE_LIMIT_S = 60.0


class Unwritable(Exception):
    """The server answers, and may not be written to now."""


@dataclass(frozen=True, slots=True)
class RecordsAccess:
    """How the databases of call records are reached."""

    servers: tuple[tuple[str, int], ...]
    """Host and port of each; the first that is writable is used."""
    schema: str
    user: str
    password: str = field(default="", repr=False)
    ca_file: str = ""


class CallRecords:
    """Performs `WriteRows` and `MigrateTables` on whichever server is writable."""

    def __init__(self, access: RecordsAccess) -> None:
        self._access = access
        self._servers = [
            DatabaseServer(
                DatabaseAccess(
                    flavour=MARIADB, host=host, port=port, user=access.user,
                    password=access.password, ca_file=access.ca_file,
                ),
                lambda: "",
            )
            for host, port in access.servers
        ]  # fmt: skip
        self._at = 0

    async def perform(self, effect: Effect) -> Outcome:
        """One outcome. A server that does not take it is the last to be asked next time."""
        if isinstance(effect, MigrateTables):
            return await self.migrate()
        if not isinstance(effect, WriteRows):
            return Refused(f"not for call records: {type(effect).__name__}")
        return await self._ask(functools.partial(_write, self._access.schema, effect), effect.limit_s)

    async def migrate(self) -> Outcome:
        """Brings the schema up to date: Done(list of the files applied)."""
        return await self._of_any(functools.partial(_migrate, self._access.schema), MIGRATE_LIMIT_S)

    async def ended(self, last: int, *, limit_s: float, call: str = "", since: float = 0.0) -> Outcome:
        """Done(list of rows as dicts), the newest first; times as ISO text in UTC. Only
        ``call``'s where one is given, and of calls that began after ``since`` (UTC
        seconds). From the writable server, so that nothing just written is missing."""
        work = functools.partial(_ended, self._access.schema, last, call, since)
        return await self._of_any(work, limit_s)

    async def pieces(self, call: str, *, limit_s: float) -> Outcome:
        """Done(list of rows as dicts): what each Asterisk's own CDR says of its part of the
        call, in order of their beginning."""
        return await self._of_any(functools.partial(_pieces, self._access.schema, call), limit_s)

    async def told(self, since: float, *, limit_s: float) -> Outcome:
        """Done(list of rows as dicts): the queue log after ``since`` (UTC seconds), in order."""
        return await self._of_any(functools.partial(_told, self._access.schema, since), limit_s)

    async def _of_any(self, work: Callable[[Connection], Any], limit_s: float) -> Outcome:
        """From the first server that takes it; otherwise what each said."""
        said = []
        for _ in self._servers:
            host, port = self._access.servers[self._at]
            outcome = await self._ask(work, limit_s)
            if not isinstance(outcome, Unreachable):
                return outcome
            said.append(f"{host}:{port}: {outcome.reason}")
        return Unreachable("; ".join(said) or "no server")

    async def _ask(self, work: Callable[[Connection], Any], limit_s: float) -> Outcome:
        server = self._servers[self._at]
        outcome = await server.work(LANE, functools.partial(_guarded, work), limit_s)
        if isinstance(outcome, Done) and isinstance(outcome.value, Unwritable):
            outcome = Unreachable(str(outcome.value))
        elif isinstance(outcome, Refused) and outcome.code not in DATA_ERRORS:
            outcome = Unreachable(outcome.reason)  # read-only by now, no table yet, no right
        if isinstance(outcome, Unreachable | Unknown):
            self._at = (self._at + 1) % len(self._servers)
        return outcome

    def close(self) -> None:
        """Closes every connection."""
        for server in self._servers:
            server.close()


def _guarded(work: Callable[[Connection], Any], connection: Connection) -> Any:
    """A user with enough rights may write to a closed server: we never do."""
    if int(_rows(connection, "SELECT @@global.read_only AS closed")[0]["closed"]):
        return Unwritable("read-only: not the primary")
    return work(connection)


def _rows(connection: Connection, text: str, args: Sequence[Any] | None = None) -> list[Mapping[str, Any]]:
    with connection.cursor() as cursor:
        cursor.execute(text, args)
        return list(cursor.fetchall())


# --- writing ----------------------------------------------------------------------------------


def _write(schema: str, effect: WriteRows, connection: Connection) -> frozenset[str]:
    """One statement, so one commit; then what is really there. A row that is there
    already is written over: a retry says the same."""
    connection.select_db(schema)
    key, rows = effect.key, effect.rows
    names = list(rows[0])
    columns = ", ".join(f"`{name}`" for name in names)
    one = "(" + ", ".join(["%s"] * len(names)) + ")"
    again = ", ".join(f"`{name}` = VALUES(`{name}`)" for name in names if name != key)
    values = [_value(name, row[name]) for row in rows for name in names]
    many = ", ".join([one] * len(rows))
    _rows(
        connection,
        f"INSERT INTO `{effect.table}` ({columns}) VALUES {many} ON DUPLICATE KEY UPDATE {again}",
        values,
    )
    ids = [row[key] for row in rows]
    marks = ", ".join(["%s"] * len(ids))
    found = _rows(connection, f"SELECT `{key}` FROM `{effect.table}` WHERE `{key}` IN ({marks})", ids)
    return frozenset(str(row[key]) for row in found)


def _ended(schema: str, last: int, call: str, since: float, connection: Connection) -> list[dict[str, Any]]:
    connection.select_db(schema)
    found = _rows(
        connection,
        "SELECT * FROM calls WHERE %s IN ('', ha_call_id) AND started >= %s"
        " ORDER BY ended DESC, ha_call_id LIMIT %s",
        (call, _value("started", since), last),
    )
    return _with_times(found)


def _pieces(schema: str, call: str, connection: Connection) -> list[dict[str, Any]]:
    connection.select_db(schema)
    text = "SELECT * FROM cdr WHERE ha_call_id = %s ORDER BY `start`, id"
    return _with_times(_rows(connection, text, (call,)))


def _told(schema: str, since: float, connection: Connection) -> list[dict[str, Any]]:
    connection.select_db(schema)
    text = "SELECT * FROM queue_log WHERE `time` >= %s ORDER BY id"
    return _with_times(_rows(connection, text, (_value("time", since),)))


def _with_times(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {name: value.isoformat(timespec="milliseconds") if isinstance(value, datetime) else value
         for name, value in row.items()}
        for row in found
    ]  # fmt: skip


def _value(name: str, value: Any) -> Any:
    if name in TIMES and value is not None:
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
    return value


# --- schema -----------------------------------------------------------------------------------


def migrations() -> list[tuple[int, str, str]]:
    """(number, name, SQL) in order."""
    directory = importlib.resources.files("ari_ha.adapters") / "migrations"
    found = [(item.name, item.read_text()) for item in directory.iterdir() if item.name.endswith(".sql")]
    return sorted((int(name.split("_")[0]), name, text) for name, text in found)


def statements(text: str) -> list[str]:
    """The statements of a migration; comments are whole lines."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("--")]
    return [part.strip() for part in "\n".join(lines).split(";") if part.strip()]


def _migrate(schema: str, connection: Connection) -> list[str]:
    """DDL commits by itself: every statement can be repeated, and a file is marked as
    applied after its last one."""
    if not schema.replace("_", "").isalnum():
        raise ValueError(f"not a schema's name: {schema!r}")
    _rows(connection, f"CREATE DATABASE IF NOT EXISTS `{schema}` CHARACTER SET utf8mb4")
    connection.select_db(schema)
    lock = f"ari-ha-{schema}"
    if not _rows(connection, "SELECT GET_LOCK(%s, %s) AS got", (lock, LOCK_S))[0]["got"]:
        return []
    try:
        _rows(
            connection,
            "CREATE TABLE IF NOT EXISTS ha_schema (version INT NOT NULL PRIMARY KEY,"
            " name VARCHAR(128) NOT NULL, applied TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP)",
        )
        there = {int(row["version"]) for row in _rows(connection, "SELECT version FROM ha_schema")}
        applied = []
        for number, name, text in migrations():
            if number in there:
                continue
            for statement in statements(text):
                _rows(connection, statement)
            _rows(connection, "INSERT IGNORE INTO ha_schema (version, name) VALUES (%s, %s)", (number, name))
            applied.append(name)
        return applied
    finally:
        _rows(connection, "DO RELEASE_LOCK(%s)", (lock,))
