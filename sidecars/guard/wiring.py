"""Puts a guard together: machine, shell and adapters."""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import time
from pathlib import Path

from ari_ha import __version__
from ari_ha.adapters.addresses import HostAddresses, device_of, nonlocal_bind
from ari_ha.adapters.datagrams import WordSocket
from ari_ha.adapters.fence import Fence, Fenced, FenceError
from ari_ha.adapters.relay_control import RelayControl, RelayControlSettings
from ari_ha.adapters.rtpengine import Rtpengine
from ari_ha.core.machine import Done, Effect, Outcome, Refused
from ari_ha.core.ports.guard import (
    AddressesDown,
    AddressesUp,
    AnnounceAddresses,
    CloseFence,
    OpenFence,
    RelayActive,
    RelayClean,
    SendBeat,
    TellEdge,
)
from ari_ha.core.ports.operator import OperatorReply
from ari_ha.core.ports.probe import WallClock
from ari_ha.core.ports.store import StoreRead, StoreTxn
from ari_ha.core.story import Story
from ari_ha.machines.guard import FAMILIES, GuardMachine
from ari_ha.machines.guard_config import GuardConfig
from ari_ha.runtime.etcd import EtcdSettings, open_store
from ari_ha.runtime.health import HealthServer, OperatorDesk
from ari_ha.runtime.logs import tell
from ari_ha.runtime.metrics import Metrics
from ari_ha.runtime.parallel_store import ParallelStore
from ari_ha.runtime.settings import SettingsError, host_port
from ari_ha.runtime.shell import Shell
from ari_ha.wire.keyspace import Keys
from sidecars.guard.settings import GuardSettings

log = logging.getLogger("ari_ha.guard")
WALL_CLOCK_EVERY_S = 1.0
HANDOVER_LIMIT_S = 2.0
"""A guard told to stop while active waits this long for the peer to take over."""
HANDOVER_LOOK_S = 0.01
INSTANT = (SendBeat, TellEdge, OpenFence, CloseFence, AnnounceAddresses, OperatorReply)


class GuardProcess:
    """Everything one guard holds. Raises SettingsError on a host it could do harm on."""

    def __init__(self, settings: GuardSettings) -> None:
        self.settings = settings
        self.story = Story()
        self.metrics = Metrics({"edge": settings.edge})
        config = GuardConfig(
            cluster=settings.cluster,
            vip=settings.vip,
            edge=settings.edge,
            peer=settings.peer,
            process=secrets.token_hex(4),
            http=f"http://{settings.http.listen}",
            version=__version__,
            timings=settings.timings,
        )
        self.machine = GuardMachine(config)
        self.shell = Shell(
            self.machine,
            self._perform,
            story=self.story,
            perform_now=self._perform_now,
            metrics=self.metrics,
            log=log,
            instant=INSTANT,
        )
        networks = settings.networks.values()
        moving = [network for network in networks if network.shared]
        if settings.address_moves and not nonlocal_bind():
            raise SettingsError(
                "net.ipv4.ip_nonlocal_bind is 0: edge process and rtpengine could not listen on an "
                "address this host does not have yet. Set it to 1 (sysctl.d) before they start."
            )
        key = Path(settings.key_file).read_bytes().strip()
        self.beats = [
            (network.own, WordSocket(key, (network.peer, settings.beat_port), self.shell.post))
            for network in networks
        ]
        self.words = WordSocket(key, host_port(settings.edge_words), self.shell.post)
        try:
            self.addresses = HostAddresses([(n.shared, n.own) for n in moving])
            fenced = [Fenced(n.shared or n.own, device_of(n.own)[0], n.ports) for n in networks]
        except OSError as error:
            raise SettingsError(f"networks: {error}") from error
        self.fence = Fence(fenced)
        self._open_relay(settings)
        etcd = EtcdSettings(
            endpoints=settings.etcd.endpoints,
            ca_file=settings.etcd.ca_file,
            cert_file=settings.etcd.cert_file,
            key_file=settings.etcd.key_file,
        )
        self.store = open_store(etcd, self.shell.post, note=self.shell.note)
        self.parallel = ParallelStore(etcd)
        self.desk = OperatorDesk(self.shell.post)

    def _open_relay(self, settings: GuardSettings) -> None:
        relay, store = settings.relay, settings.relay.store
        self.relay = Rtpengine(*host_port(relay.ng), self.shell.post)
        self.control = RelayControl(
            RelayControlSettings(
                cli=host_port(relay.cli),
                store=host_port(store.address) if store.address else None,
                password=Path(store.password_file).read_text().strip() if store.password_file else "",
                database=store.database,
                restart=relay.restart,
            )
        )

    # --- effects -------------------------------------------------------------------

    async def _perform(self, effect: Effect) -> Outcome:
        match effect:
            case StoreTxn() if any(put.leased for put in effect.puts):
                return await self.store.perform(effect)
            case StoreTxn() | StoreRead():
                return await self.parallel.perform(effect)
            case AddressesUp():
                return self._kernel(self.addresses.up)
            case AddressesDown():
                return self._kernel(self.addresses.down)
            case RelayActive():
                return await self.control.active()
            case RelayClean():
                return await self.control.clean()
        return Refused(f"nobody performs {type(effect).__name__}")

    @staticmethod
    def _kernel(act) -> Outcome:  # type: ignore[no-untyped-def]
        try:
            act()
        except OSError as error:
            return Refused(str(error), code=error.errno or 0)
        return Done()

    def _perform_now(self, effect: Effect) -> None:
        match effect:
            case SendBeat(beat=beat):
                for _, socket in self.beats:
                    socket.send(beat)
            case TellEdge(word=word):
                self.words.send(word)
            case OperatorReply():
                self.desk.reply(effect)
            case _:
                self._kernel_now(effect)

    def _kernel_now(self, effect: Effect) -> None:
        """Not done is fenced, or announced again: safe either way."""
        try:
            match effect:
                case OpenFence(ttl_s=ttl_s):
                    self.fence.open(ttl_s)
                case CloseFence():
                    self.fence.close()
                case AnnounceAddresses():
                    self.addresses.announce()
        except (FenceError, OSError) as error:
            self.metrics.count("guard_kernel_refused", 1, (("effect", type(effect).__name__),))
            tell(log, "outcome", "kernel refused", effect=type(effect).__name__, why=str(error))

    # --- life ----------------------------------------------------------------------

    async def run(self) -> None:
        """Guards until SIGTERM. Raises OSError when an address is not ours, SettingsError
        when the host is not fit for a pair."""
        settings, shell = self.settings, self.shell
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, lambda: loop.create_task(self._leave()))
        self.fence.build()
        if settings.address_moves and (complaint := await self.control.complaint()):
            raise SettingsError(f"relay.store: {complaint}")
        shell.post(WallClock(utc_s=time.time()))
        for own, socket in self.beats:
            await socket.start(own, settings.beat_port)
        await self.words.start(*host_port(settings.listen))
        running = asyncio.create_task(shell.run())
        clock = asyncio.create_task(self._tell_time())
        keys = Keys(settings.cluster)
        for family in FAMILIES:
            self.store.mirror(keys.prefix(family))
        self.store.lease(settings.etcd.lease_ttl_s)
        self.store.start()
        self.parallel.start()
        await self.relay.start()
        health = self._health()
        await health.start()
        tell(log, "event", "started", edge=settings.edge, vip=settings.vip)
        try:
            await running
        finally:
            clock.cancel()
            await health.stop()
            for _, socket in self.beats:
                socket.close()
            self.words.close()
            self.relay.close()
            await self.parallel.close()
            await self.store.close(revoke=False)
            self.fence.free()
            self.addresses.close()

    def _health(self) -> HealthServer:
        settings = self.settings
        token = Path(settings.http.token_file).read_text().strip() if settings.http.token_file else ""
        routes = {
            "GET /v1/status": self.desk.route("status"),
            "POST /v1/switchover": self.desk.route("switchover"),
        }
        address = host_port(settings.http.listen)
        return HealthServer(*address, self.metrics, ready=self._ready, routes=routes, token=token)

    def _ready(self) -> tuple[bool, str]:
        """Active, or able to be: what a rolling upgrade waits for."""
        machine, now = self.machine, time.monotonic()
        if machine.conflict:
            return False, machine.conflict
        if not machine.fit(now):
            return False, "the edge process or rtpengine does not answer"
        if machine.role == "active" or (machine.peer_fresh(now) and machine.peer.active):
            return True, ""
        return False, "nobody holds the address yet"

    async def _leave(self) -> None:
        """A planned end: the peer takes over first, if it can."""
        status, _ = await self.desk.ask("switchover", {})
        end = time.monotonic() + (HANDOVER_LIMIT_S if status == 202 else 0.0)
        while self.machine.role == "active" and time.monotonic() < end:
            await asyncio.sleep(HANDOVER_LOOK_S)
        self.shell.stop()

    async def _tell_time(self) -> None:
        while True:
            self.shell.post(WallClock(utc_s=time.time()))
            await asyncio.sleep(WALL_CLOCK_EVERY_S)
