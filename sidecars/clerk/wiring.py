"""Puts a clerk process together: machine, shell and adapters."""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import time

from ari_ha.adapters.call_records import CallRecords, RecordsAccess
from ari_ha.adapters.database import read_secret
from ari_ha.core.machine import Effect, Outcome, Refused
from ari_ha.core.ports.probe import WallClock
from ari_ha.core.ports.records import MigrateTables, WriteRows
from ari_ha.core.ports.store import StoreRead, StoreTxn
from ari_ha.core.story import Story
from ari_ha.machines.clerk import ClerkMachine
from ari_ha.runtime.etcd import EtcdSettings, open_store
from ari_ha.runtime.health import HealthServer
from ari_ha.runtime.logs import tell
from ari_ha.runtime.metrics import Metrics
from ari_ha.runtime.settings import host_port
from ari_ha.runtime.shell import Shell
from sidecars.clerk.settings import ClerkSettings

log = logging.getLogger("ari_ha.clerk")
EVERY_SECOND_S = 1.0


class ClerkProcess:
    """Everything one clerk process holds."""

    def __init__(self, settings: ClerkSettings) -> None:
        self.settings = settings
        self.metrics = Metrics({"clerk": settings.clerk})
        database = settings.database
        self.machine = ClerkMachine(
            settings.cluster, settings.clerk, secrets.token_hex(4), migrate=database.migrate
        )
        self.shell = Shell(self.machine, self._perform, story=Story(), metrics=self.metrics, log=log)
        self.records = CallRecords(
            RecordsAccess(
                servers=tuple(host_port(server) for server in database.servers),
                schema=database.schema,
                user=database.user,
                password=read_secret(database.password_file),
                ca_file=database.ca_file,
            )
        )
        etcd = settings.etcd
        self.store = open_store(
            EtcdSettings(
                endpoints=etcd.endpoints,
                ca_file=etcd.ca_file,
                cert_file=etcd.cert_file,
                key_file=etcd.key_file,
            ),
            self.shell.post,
            note=self.shell.note,
        )

    async def _perform(self, effect: Effect) -> Outcome:
        if isinstance(effect, StoreTxn | StoreRead):
            return await self.store.perform(effect)
        if isinstance(effect, WriteRows | MigrateTables):
            return await self.records.perform(effect)
        return Refused(f"nobody performs {type(effect).__name__}")

    def _ready(self) -> tuple[bool, str]:
        return (True, "") if self.store_reached() else (False, "etcd does not answer")

    def store_reached(self) -> bool:
        """Whether etcd answers: a clerk that waits for its turn is ready too."""
        return self.machine.reachable

    async def run(self) -> None:
        """Writes until SIGTERM. Raises OSError when an address is not ours."""
        shell, keys = self.shell, self.machine.keys
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, shell.stop)
        shell.post(WallClock(utc_s=time.time()))
        running = asyncio.create_task(shell.run())
        self.store.mirror(keys.prefix("outbox"))
        self.store.mirror(keys.prefix("clerk"))
        self.store.lease(self.settings.etcd.lease_ttl_s)
        self.store.start()
        health = HealthServer(*host_port(self.settings.http.listen), self.metrics, ready=self._ready)
        await health.start()
        every_second = asyncio.create_task(self._every_second())
        tell(log, "event", "started", clerk=self.settings.clerk)
        try:
            await running
        finally:
            every_second.cancel()
            await health.stop()
            self.records.close()
            await self.store.close()

    async def _every_second(self) -> None:
        """The time for the machine, and gauges of what it knows."""
        while True:
            self.shell.post(WallClock(utc_s=time.time()))
            self.metrics.gauge("clerk_leads", self.machine.leads(time.monotonic()))
            self.metrics.gauge("clerk_waiting", len(self.machine.outbox))
            await asyncio.sleep(EVERY_SECOND_S)
