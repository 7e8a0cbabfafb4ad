"""The server's process: its life, its death, its start, its copy from the other server.

The watcher owns starting; systemd (or whoever) must not. What is configured are
commands, run without a shell, with no secret on a command line.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ari_ha.adapters.commands import run_command
from ari_ha.adapters.database import DatabaseServer, utc_stamp
from ari_ha.adapters.database_sql import CLONE_ENDED, FLAVOURS, MYSQL
from ari_ha.adapters.process_watch import ProcessWatch
from ari_ha.core.machine import Done, Effect, Event, Outcome, Refused, Unknown
from ari_ha.core.ports.database import ArchiveErrant, KillServer, Observe, Rebuild, ServerLife, StartServer

LOOK_EVERY_S = 0.2
STARTED_LOOKS_MAX = 10
"""Looks in a row that find no process, after a command that should have started one."""
KILL_LIMIT_MS = 4000
ARCHIVE_FILES_MAX = 3
"""Newest binary logs that are archived."""


@dataclass(frozen=True, slots=True)
class ProcessOptions:
    """How the server's process is handled."""

    flavour: str
    pid_file: str
    name: str
    """Name of the process (comm): a pid file may be old."""
    start: tuple[str, ...]
    """Command that starts the server and ends; it comes up read-only."""
    start_truncating: tuple[str, ...] = ()
    """MariaDB: the same with ``--init-rpl-role=SLAVE``."""
    rebuild: tuple[str, ...] = ()
    """MariaDB: stops the server, copies from ``ARI_HA_DONOR_HOST``:``ARI_HA_DONOR_PORT``,
    prepares, sets gtid_slave_pos; it ends with the server down or up."""
    errant_directory: str = "/var/lib/ari-ha/errant"
    datadir: str = ""
    """Where the binary logs are."""
    donors: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """Host and port by server."""
    clone_user: str = "repl"
    clone_password: str = field(default="", repr=False)
    clone_tls: bool = False
    """A copy must be encrypted on its way."""


class ServerProcess:
    """One per watcher. ``post`` gets `ServerLife` whenever it changes."""

    def __init__(
        self,
        options: ProcessOptions,
        post: Callable[[Event], object],
        server: Callable[[], DatabaseServer],
    ) -> None:
        self._options = options
        self._post = post
        self._server = server
        self._watch = ProcessWatch(options.pid_file, options.name, self._gone)
        self._look: asyncio.Task[None] | None = None
        self._told: tuple[bool, str] | None = None

    @property
    def life(self) -> str:
        """The present life, "" while there is none."""
        pid = self._watch.pid
        if pid is None or self._watch.gone:
            return ""
        return f"{pid}.{_started(pid)}"

    def start(self) -> None:
        """Begins to watch."""
        self._look = asyncio.create_task(self._looking(), name="server-process")

    def close(self) -> None:
        """Stops watching; the server goes on."""
        if self._look is not None:
            self._look.cancel()
        self._watch.detach()

    async def perform(self, effect: Effect) -> Outcome:
        """One outcome."""
        match effect:
            case StartServer(truncate=truncate):
                return await self._start(truncate, effect.limit_s)
            case KillServer():
                return await self._kill()
            case ArchiveErrant(gtids=gtids):
                return await self._archive(gtids, effect.limit_s)
            case Rebuild(donor=donor):
                return await self._rebuild(donor, effect.limit_s)
        return Refused(f"not for the server's process: {type(effect).__name__}")

    # -- life

    async def _looking(self) -> None:
        while True:
            self._see()
            await asyncio.sleep(LOOK_EVERY_S)

    def _see(self) -> None:
        alive = self._watch.attach()
        self._tell(alive, self.life if alive else "")

    def _gone(self) -> None:
        self._tell(False, "")

    def _tell(self, alive: bool, life: str) -> None:
        if (alive, life) != self._told:
            self._told = (alive, life)
            self._post(ServerLife(alive=alive, life=life))

    # -- acts

    async def _start(self, truncate: bool, limit_s: float) -> Outcome:
        if self._watch.attach():
            return Done(self.life)
        command = self._options.start_truncating if truncate else self._options.start
        if not command:
            return Refused("no command to start the server is configured")
        outcome = await run_command(command, limit_s)
        if not isinstance(outcome, Done):
            return outcome
        return await self._answers()

    async def _answers(self) -> Outcome:
        """Waits until the server answers (the shell's limit ends it), or is no more."""
        missed = 0
        while missed < STARTED_LOOKS_MAX:
            missed += 1
            if self._watch.attach():
                missed = 0
                found = await self._server().perform(Observe(lane="start", limit_s=2.0))
                if isinstance(found, Done):
                    self._see()
                    return Done(self.life)
            await asyncio.sleep(LOOK_EVERY_S)
        return Refused("the server ended at its start")

    async def _kill(self) -> Outcome:
        if not self._watch.attach():
            return Done()
        pid = self._watch.pid
        assert pid is not None
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return Done()
        except PermissionError as error:
            return Refused(str(error))
        if await self._watch.wait_gone(KILL_LIMIT_MS):
            return Done()
        return Unknown("killed, and still there")

    async def _archive(self, gtids: str, limit_s: float) -> Outcome:
        """The newest binary logs as readable SQL: rather too much than too little."""
        options = self._options
        found = Path(options.datadir).glob("binlog.[0-9]*")
        logs = sorted(log for log in found if log.suffix[1:].isdigit())[-ARCHIVE_FILES_MAX:]  # no .idx
        if not logs:
            return Refused(f"no binary logs in {options.datadir}")
        directory = Path(options.errant_directory)
        directory.mkdir(parents=True, exist_ok=True, mode=0o750)
        file = directory / f"{utc_stamp()}.sql"
        tool = FLAVOURS[options.flavour].binlog_tool
        command = [tool, "--base64-output=decode-rows", "-v"]
        if options.flavour == MYSQL:
            command.append(f"--include-gtids={gtids}")
        outcome = await run_command([*command, *map(str, logs)], limit_s, output=file)
        return Done(str(file)) if isinstance(outcome, Done) else outcome

    async def _rebuild(self, donor: str, limit_s: float) -> Outcome:
        host, port = self._options.donors[donor]
        if self._options.flavour == MYSQL:
            return await self._clone(host, port, limit_s)
        if not self._options.rebuild:
            return Refused("no command to rebuild is configured")
        env = {"ARI_HA_DONOR_HOST": host, "ARI_HA_DONOR_PORT": str(port)}
        outcome = await run_command(self._options.rebuild, limit_s, env=env)
        if not isinstance(outcome, Done):
            return outcome
        return await self._start(False, limit_s)

    async def _clone(self, host: str, port: int, limit_s: float) -> Outcome:
        """MySQL CLONE: the server replaces its own data and goes down."""
        server = self._server()
        if not self._watch.attach():
            up = await self._start(False, limit_s)
            if not isinstance(up, Done):
                return up
        steps: list[tuple[str, dict[str, object]]] = [
            ("STOP REPLICA", {}),
            ("SET GLOBAL super_read_only = OFF", {}),
            ("SET GLOBAL clone_valid_donor_list = %(donor)s", {"donor": f"{host}:{port}"}),
        ]
        for text, args in steps:
            outcome = await server.statement("clone", text, args, 10.0)
            if not isinstance(outcome, Done):
                return outcome
        text = "CLONE INSTANCE FROM %(user)s@%(host)s:" + str(int(port)) + " IDENTIFIED BY %(password)s"
        text += " REQUIRE SSL" if self._options.clone_tls else " REQUIRE NO SSL"
        given = {"user": self._options.clone_user, "host": host, "password": self._options.clone_password}
        outcome = await server.statement("clone", text, given, limit_s)
        ended = isinstance(outcome, Refused) and outcome.code in CLONE_ENDED
        if not (isinstance(outcome, Done | Unknown) or ended):
            return outcome
        await self._watch.wait_gone(KILL_LIMIT_MS)
        up = await self._start(False, limit_s)
        if not isinstance(up, Done):
            return up
        state = await server.statement("clone", "SELECT state FROM performance_schema.clone_status", {}, 5.0)
        if isinstance(state, Done) and state.value and "Completed" in map(str, state.value[0].values()):
            return Done(self.life)
        return Refused(f"the copy is not complete: {state}")


def _started(pid: int) -> str:
    """Start of the process (proc_pid_stat(5), field 22)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return "0"
