"""Writers that remember every write they were told yes for, and what became of it.

Each is a thread with a connection of its own; it asks the watchers' checks who is
writable, as a load balancer does, writes rows with numbers, and writes a row again
until it is told yes. So a confirmed row is exactly one number."""

from __future__ import annotations

import itertools
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pymysql

WRITERS = 4
PAUSE_S = 0.02
"""Between two writes of one writer."""
RETRY_S = 0.05
ANSWER_LIMIT_S = 3.0
CHECK_LIMIT_S = 0.3
REPEATED = 20
"""Writes that a writer repeats on a server that is new to it, as one does that knows of no answer."""
REPLICA, TWO_WRITERS = "replica", "two-writers"
TABLES = {True: ("chaos_writes", "UNIQUE KEY"), False: ("chaos_appends", "KEY")}
"""Name and kind of key, by whether a row may be written again. Where both are written to, a row that nobody
was told yes for may come back from the one that died: written again with the same key, it would collide with
itself."""
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS {} (id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,"
    " run CHAR(8) NOT NULL, writer SMALLINT NOT NULL, n INT NOT NULL,"
    " {} (run, writer, n)) ENGINE=InnoDB"
)


@dataclass(frozen=True, slots=True)
class Target:
    """How applications reach the pair."""

    servers: Mapping[str, str]
    """Address by server."""
    checks_port: int
    database: str
    user: str
    password: str = field(repr=False)
    ca_file: str = ""
    shape: str = "replica"

    @classmethod
    def of(cls, value: Mapping[str, Any], directory: Path) -> Target:
        """From the operator's settings; relative paths are relative to their file."""
        password = (directory / value["password_file"]).read_text().strip()
        return cls(
            dict(value["servers"]), int(value["checks_port"]), value["database"], value["user"], password,
            str(directory / value["ca"]), value.get("shape", "replica"),
        )  # fmt: skip

    def connect(self, server: str) -> Any:
        """A connection. Raises pymysql.err.MySQLError and OSError."""
        tls = ssl.create_default_context(cafile=self.ca_file) if self.ca_file else None
        return pymysql.connect(
            host=self.servers[server], port=3306, user=self.user, password=self.password,
            database=self.database, autocommit=True, ssl=tls, connect_timeout=1.0,
            read_timeout=ANSWER_LIMIT_S, write_timeout=ANSWER_LIMIT_S,
        )  # fmt: skip

    @property
    def table(self) -> str:
        """Where the rows go."""
        return TABLES[self.shape != TWO_WRITERS][0]

    def schema(self) -> str:
        """Makes that table."""
        return SCHEMA.format(*TABLES[self.shape != TWO_WRITERS])

    def writable(self, turn: int = 0) -> str:
        """The server its watcher calls writable, "" when none does. Where there are two, ``turn`` says which
        is asked first."""
        for server in [*self.servers][turn:] + [*self.servers][:turn]:
            address = self.servers[server]
            try:
                url = f"http://{address}:{self.checks_port}/writable"
                with urllib.request.urlopen(url, timeout=CHECK_LIMIT_S) as answer:
                    if answer.status == 200:
                        return server
            except (OSError, urllib.error.URLError):
                continue
        return ""

    def rows(self, server: str, run: str) -> set[tuple[int, int]]:
        """Writer and number of every row of a run that a server has. Raises OSError."""
        found = self.ask(server, f"SELECT writer, n FROM {self.table} WHERE run = %s", (run,))
        return {(int(writer), int(n)) for writer, n in found}

    def ask(self, server: str, text: str, args: tuple[Any, ...] = ()) -> list[Any]:
        """Rows of one statement. Raises OSError."""
        try:
            connection = self.connect(server)
            with connection, connection.cursor() as cursor:
                cursor.execute(text, args)
                return list(cursor.fetchall())
        except pymysql.err.MySQLError as error:
            raise OSError(f"{server}: {error}") from error


@dataclass(frozen=True, slots=True)
class Ack:
    """A write that was confirmed."""

    at: float
    """Seconds, wall clock."""
    asked: float
    server: str
    writer: int
    n: int


class Writers:
    """A group of them."""

    def __init__(self, target: Target, run: str) -> None:
        self.target, self.run = target, run
        self.acks: list[Ack] = []
        self.errors = 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(n,), daemon=True) for n in range(WRITERS)]

    def start(self) -> None:
        """Makes the table and begins. Raises OSError."""
        self.target.ask(self.target.writable(), self.target.schema())
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends them; what is under way may take its limit."""
        self._stop.set()
        for thread in self._threads:
            thread.join(ANSWER_LIMIT_S + 5)

    def since(self, at: float) -> set[int]:
        """Writers with a confirmed write after ``at``."""
        return {ack.writer for ack in self.acks if ack.asked > at}

    def gap_s(self, begin: float, end: float) -> float:
        """The longest time a writer was without a confirmation between ``begin`` and ``end``."""
        longest = 0.0
        for writer in range(WRITERS):
            times = [ack.at for ack in self.acks if ack.writer == writer and begin <= ack.at <= end]
            marks = [begin, *times, end]
            longest = max(longest, *(b - a for a, b in itertools.pairwise(marks)))
        return longest

    def two_at_once(self) -> int:
        """Confirmations of a server asked for after another one had begun to confirm: one change of
        server is a failover, and a server that comes again within the run was never closed."""
        if self.target.shape == TWO_WRITERS:
            return 0
        ordered = sorted(self.acks, key=lambda ack: ack.at)
        took_over: dict[str, float] = {}
        wrong = 0
        for ack in ordered:
            later = [
                at
                for server, at in took_over.items()
                if server != ack.server and at > took_over.get(ack.server, ack.at)
            ]
            wrong += any(ack.asked > at for at in later)
            took_over.setdefault(ack.server, ack.at)
        return wrong

    def _write(self, writer: int) -> None:
        n, connection, server, before = 0, None, "", ""
        turn = writer % len(self.target.servers) if self.target.shape == TWO_WRITERS else 0
        while not self._stop.is_set():
            if connection is None:
                server = self.target.writable(turn)
                try:
                    connection = self.target.connect(server) if server else None
                except (pymysql.err.MySQLError, OSError):
                    connection = None
                if connection is None:
                    self.errors += 1
                    time.sleep(RETRY_S)
                    continue
                if before not in ("", server) and self.target.shape != TWO_WRITERS:
                    n = max(0, n - REPEATED)
                before = server
            asked = time.time()
            try:
                with connection.cursor() as cursor:
                    cursor.execute(
                        f"INSERT INTO {self.target.table} (run, writer, n) VALUES (%s, %s, %s)"
                        " ON DUPLICATE KEY UPDATE n = VALUES(n)",
                        (self.run, writer, n),
                    )
            except (pymysql.err.MySQLError, OSError):
                self.errors += 1
                connection._force_close()
                connection = None
                time.sleep(RETRY_S)
                continue
            self.acks.append(Ack(time.time(), asked, server, writer, n))
            n += 1
            time.sleep(PAUSE_S)
