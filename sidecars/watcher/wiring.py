"""Puts a watcher process together: machine, shell and adapters."""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import shutil
import signal
import time
from pathlib import Path

from ari_ha.adapters.database import DatabaseAccess, DatabaseServer, read_secret
from ari_ha.adapters.database_checks import DatabaseChecks
from ari_ha.adapters.database_peer import DatabasePeer
from ari_ha.adapters.database_process import ProcessOptions, ServerProcess
from ari_ha.core.machine import Effect, Event, Outcome, Refused
from ari_ha.core.ports.database import (
    ArchiveErrant,
    DatabaseDo,
    KillServer,
    Observe,
    Rebuild,
    SendPeer,
    StartServer,
)
from ari_ha.core.ports.operator import OperatorReply
from ari_ha.core.ports.probe import WallClock
from ari_ha.core.ports.store import StoreRead, StoreTxn
from ari_ha.core.story import Story
from ari_ha.machines.database import DatabaseMachine
from ari_ha.machines.database_config import MYSQL
from ari_ha.runtime.etcd import EtcdSettings, open_store
from ari_ha.runtime.health import Answer, Asked, Handler, HealthServer, OperatorDesk
from ari_ha.runtime.host import HostReport
from ari_ha.runtime.logs import tell
from ari_ha.runtime.metrics import Metrics
from ari_ha.runtime.settings import host_port
from ari_ha.runtime.shell import Shell
from sidecars.watcher.config import WatcherSettings
from sidecars.watcher.trial import CrashPoint

log = logging.getLogger("ari_ha.watcher")
EVERY_SECOND_S = 1.0
TIME_EVERY_S = 5
GRANTS_EVERY_S = 60
READS = ("status", "history", "errant")
WRITES = ("switchover", "hold", "release", "reinit", "failover", "checksum")


class WatcherProcess:
    """Everything one watcher process holds."""

    def __init__(self, settings: WatcherSettings) -> None:
        self.settings = settings
        self.story = Story()
        self.metrics = Metrics({"database": settings.database, "server": settings.server})
        config = settings.machine_config(secrets.token_hex(4))
        self.machine = DatabaseMachine(config, time.monotonic())
        perform = self._perform
        if settings.crash_file:
            perform = CrashPoint(settings.crash_file, self.machine.ctx.steps, perform).perform
        self.shell = Shell(
            self.machine,
            perform,
            story=self.story,
            perform_now=self._perform_now,
            metrics=self.metrics,
            log=log,
            instant=(SendPeer, OperatorReply),
        )
        local, hosts = settings.local, {server.host: name for name, server in settings.servers.items()}
        repl_password = read_secret(local.repl_password_file)
        self.process = ServerProcess(
            ProcessOptions(
                flavour=settings.flavour, pid_file=local.pid_file,
                name=local.process_name or ("mysqld" if settings.flavour == MYSQL else "mariadbd"),
                start=local.start, start_truncating=local.start_truncating, rebuild=local.rebuild,
                errant_directory=local.errant_directory, datadir=local.datadir,
                donors={name: (server.host, server.port) for name, server in settings.servers.items()},
                clone_user=local.repl_user, clone_password=repl_password, clone_tls=bool(local.ca_file),
            ),
            self._post,
            lambda: self.server,
        )  # fmt: skip
        self.server = DatabaseServer(
            DatabaseAccess(
                flavour=settings.flavour, host=local.host, port=local.port, user=local.user,
                password=read_secret(local.password_file), repl_user=local.repl_user,
                repl_password=repl_password, ca_file=local.ca_file, names=hosts,
            ),
            lambda: self.process.life,
            disk_free_share,
        )  # fmt: skip
        peers = {name: host_port(server.peer) for name, server in settings.servers.items()}
        key = Path(settings.peer_key_file).read_bytes().strip()
        self.peer = DatabasePeer(settings.server, peers, key, self._post)
        self.store = open_store(
            EtcdSettings(
                endpoints=settings.etcd.endpoints,
                ca_file=settings.etcd.ca_file,
                cert_file=settings.etcd.cert_file,
                key_file=settings.etcd.key_file,
            ),
            self.shell.post,
            note=self.shell.note,
        )
        self.desk = OperatorDesk(self.shell.post)

    def _post(self, event: Event) -> None:
        self.shell.post(event)

    # --- effects -------------------------------------------------------------------

    async def _perform(self, effect: Effect) -> Outcome:
        if isinstance(effect, StoreTxn | StoreRead):
            return await self.store.perform(effect)
        if isinstance(effect, Observe | DatabaseDo):
            return await self.server.perform(effect)
        if isinstance(effect, StartServer | KillServer | ArchiveErrant | Rebuild):
            return await self.process.perform(effect)
        return Refused(f"nobody performs {type(effect).__name__}")

    def _perform_now(self, effect: Effect) -> None:
        if isinstance(effect, SendPeer):
            self.peer.send(effect)
        elif isinstance(effect, OperatorReply):
            self.desk.reply(effect)

    # --- HTTP ----------------------------------------------------------------------

    def _writable(self) -> tuple[bool, str]:
        return self.machine.writable(time.monotonic())

    def _readable(self) -> tuple[bool, str]:
        return self.machine.readable(time.monotonic())

    def _ready(self) -> tuple[bool, str]:
        now = time.monotonic()
        if self.machine.model.running(now):
            return True, ""
        return False, "the server does not answer"

    def _routes(self) -> dict[str, Handler]:
        async def explain(asked: Asked) -> Answer:
            return 200, [line.to_dict() for line in self.story.about(asked.path["subject"])]

        prefix = "/v1/"
        routes: dict[str, Handler] = {f"GET {prefix}{verb}": self.desk.route(verb) for verb in READS}
        routes |= {f"POST {prefix}{verb}": self.desk.route(verb) for verb in WRITES}
        routes[f"GET {prefix}explain/{{subject:.+}}"] = explain
        return routes

    # --- life ----------------------------------------------------------------------

    async def run(self) -> None:
        """Watches until SIGTERM. Raises OSError when an address is not ours.

        The server goes on without us: its lead ends with the lease, and in the two
        modes with confirmations nothing more is confirmed once the other one takes it."""
        settings, shell = self.settings, self.shell
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, shell.stop)
        shell.post(WallClock(utc_s=time.time()))
        running = asyncio.create_task(shell.run())
        await self.peer.start(*host_port(settings.servers[settings.server].peer))
        self.process.start()
        self.store.mirror(self.machine.model.keys.root)
        self.store.lease(round(settings.timings.lease_ttl_s))
        self.store.start()
        token = Path(settings.http.token_file).read_text().strip() if settings.http.token_file else ""
        health = HealthServer(
            *host_port(settings.http.listen),
            self.metrics,
            ready=self._ready,
            routes=self._routes(),
            token=token,
        )
        checks = DatabaseChecks(
            *host_port(settings.http.checks), {"/writable": self._writable, "/readable": self._readable}
        )
        await health.start()
        await checks.start()
        every_second = asyncio.create_task(self._every_second())
        report = HostReport(
            self.store, self.metrics, settings.cluster, settings.server, (settings.local.datadir, "/"),
            self._versions, lambda: self.peer.ahead_s,
        )  # fmt: skip
        reporting = asyncio.create_task(report.run())
        tell(log, "event", "started", database=settings.database, server=settings.server)
        try:
            await running
        finally:
            every_second.cancel()
            reporting.cancel()
            await checks.stop()
            await health.stop()
            self.peer.close()
            self.process.close()
            self.server.close()
            await self.store.close(revoke=False)

    def _versions(self) -> dict[str, str]:
        seen = self.machine.model.server
        return {self.settings.flavour: seen.version} if seen is not None else {}

    async def _every_second(self) -> None:
        """The time for the machine, and gauges of what it knows."""
        for second in itertools.count():
            self.shell.post(WallClock(utc_s=time.time()))
            self._measure()
            if second % TIME_EVERY_S == 0:
                self.peer.tell_time()
            if second % GRANTS_EVERY_S == 0:
                await self._look_at_grants()
            await asyncio.sleep(EVERY_SECOND_S)

    async def _look_at_grants(self) -> None:
        """Applications must not be able to write to a closed server."""
        users = self.settings.local.application_users
        if not users or self.machine.model.server is None:
            return
        found = await self.server.refused_grants(users)
        self.metrics.gauge("database_grants_refused", sum(map(len, found.values())))
        for user, rights in found.items():
            tell(log, "event", "application could write to a closed server", user=user, rights=rights)

    def _measure(self) -> None:
        now, model, gauge = time.monotonic(), self.machine.model, self.metrics.gauge
        gauge("database_writable", self._writable()[0])
        gauge("database_readable", self._readable()[0])
        gauge("database_leads", model.leads)
        gauge("database_lease_left_seconds", max(0.0, model.lease_until - now) if model.lease_held else 0.0)
        gauge("database_term", model.sync.value.term if model.sync else 0)
        gauge("database_certified", bool(model.standby))
        gauge("database_held", bool(model.hold))
        gauge("database_errant", bool(model.errant()))
        gauge("database_tables_diverged", len(self.machine.checksums.diverged))
        gauge("database_problems", len(model.problems()))
        for name, value in self.machine.ctx.counts.items():
            gauge(f"database_{name}", value)
        seen = model.server
        if seen is None:
            return
        gauge("database_lag_seconds", -1.0 if seen.lag_s is None else seen.lag_s)
        gauge("database_commits_wait", seen.semi_source)
        gauge("database_commits_waiting", seen.semi_waiting)
        gauge("database_standbys_connected", seen.semi_clients)
        gauge("database_connections", seen.connections)
        gauge("database_connections_max", seen.connections_max)
        gauge("database_disk_free_share", seen.disk_free_share)


def disk_free_share(path: str) -> float:
    """Free share of the file system of ``path``; 1 where it cannot be seen."""
    try:
        usage = shutil.disk_usage(path)
    except OSError:
        return 1.0
    return usage.free / usage.total if usage.total else 1.0
