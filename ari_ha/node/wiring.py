"""Puts a node app together: machine, shell and adapters."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import signal
import time
from pathlib import Path

from ari_ha import __version__
from ari_ha.adapters.ari import AriAdapter
from ari_ha.adapters.ari_config import AriSettings
from ari_ha.adapters.control_socket import set_maintenance
from ari_ha.adapters.link import LinkListener, LinkSettings
from ari_ha.adapters.recorder import Recorder, RecorderOptions
from ari_ha.adapters.web import Web
from ari_ha.core.machine import Effect, Outcome, Refused
from ari_ha.core.ports.ari import AriCall, SetMaintenance
from ari_ha.core.ports.link import SendLink
from ari_ha.core.ports.operator import OperatorReply
from ari_ha.core.ports.probe import WallClock
from ari_ha.core.ports.recording import CloseRecording, OpenRecording
from ari_ha.core.ports.store import StoreRead, StoreTxn
from ari_ha.core.ports.web import WebRequest
from ari_ha.core.story import Story
from ari_ha.machines.node import FAMILIES, NodeMachine
from ari_ha.machines.node_config import NodeConfig
from ari_ha.node.settings import NodeSettings
from ari_ha.runtime.etcd import EtcdSettings, open_store
from ari_ha.runtime.health import Answer, Asked, Handler, HealthServer, OperatorDesk
from ari_ha.runtime.host import HostReport
from ari_ha.runtime.logs import tell
from ari_ha.runtime.metrics import Metrics
from ari_ha.runtime.settings import SettingsError, host_port
from ari_ha.runtime.shell import Shell
from ari_ha.wire.keyspace import Keys

log = logging.getLogger("ari_ha.node")
WALL_CLOCK_EVERY_S = 1.0
HOST_PATHS = ("/", "/var/spool/asterisk", "/var/log")
IDENT_BYTES = 5
AGENT_VERBS = ("login", "logout", "available", "not-ready", "toggle", "acw-done", "acw-extend", "force")


def new_id() -> str:
    """An identifier nobody has had before, short enough to read aloud."""
    return secrets.token_hex(IDENT_BYTES)


def machine_config(settings: NodeSettings) -> NodeConfig:
    """The machine's part of the settings. Raises SettingsError without a header key."""
    try:
        header_key = Path(settings.header_key_file).read_bytes().strip()
    except OSError as error:
        raise SettingsError(f"header_key_file: cannot be read: {error}") from None
    if not header_key:
        raise SettingsError(f"header_key_file: {settings.header_key_file} is empty")
    return NodeConfig(
        cluster=settings.cluster,
        node=settings.node,
        sip=settings.sip_address,
        link=settings.link.listen,
        http=f"http://{settings.http.listen}",
        version=__version__,
        app=settings.ari.app,
        edges=tuple((edge.name, edge.sip) for edge in settings.edges),
        header_key=header_key,
        trunk_context=settings.trunk_context,
        fallback_label=settings.fallback_label,
        new_call_endpoints=settings.asterisk.new_call_endpoints,
        records=bool(settings.recorder.spool),
        calls_max=settings.calls_max,
        capacity_calls=min(settings.capacity_calls, settings.calls_max),
        timings=settings.timings,
        acd=settings.acd,
    )


def ari_settings(settings: NodeSettings) -> AriSettings:
    """The ARI adapter's part."""
    ari = settings.ari
    return AriSettings(
        url=ari.url,
        username=ari.username,
        password_file=ari.password_file,
        app=ari.app,
        pid_file=settings.asterisk.pid_file,
        ping_every_ms=ari.ping_every_ms,
        silence_limit_ms=ari.silence_limit_ms,
    )


def recorder_options(settings: NodeSettings) -> RecorderOptions:
    """The recorder's part."""
    recorder = settings.recorder
    return RecorderOptions(
        node=settings.node,
        spool=recorder.spool,
        address=recorder.address or host_port(settings.sip_address)[0],
        ports=(recorder.port_first, recorder.port_last),
        free_min_mb=recorder.free_min_mb,
        recordings_max=recorder.recordings_max,
    )


class NodeProcess:
    """Everything one node app holds."""

    def __init__(self, settings: NodeSettings) -> None:
        self.settings = settings
        self.story = Story()
        self.metrics = Metrics({"node": settings.node})
        self.machine = NodeMachine(machine_config(settings), new_id, random.random)
        self.shell = Shell(
            self.machine,
            self._perform,
            story=self.story,
            perform_now=self._perform_now,
            metrics=self.metrics,
            log=log,
            instant=(SendLink, OperatorReply),
        )
        self.ari = AriAdapter(ari_settings(settings), self.shell.post, count=self.metrics.count)
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
        self.web = Web()
        self.recorder = Recorder(recorder_options(settings), self.shell.post, count=self.metrics.count)
        self.links = self._listener()
        self.desk = OperatorDesk(self.shell.post)

    def _listener(self) -> LinkListener:
        link = self.settings.link
        options = LinkSettings(
            ca_file=link.ca_file,
            cert_file=link.cert_file,
            key_file=link.key_file,
            silence_limit_ms=link.silence_limit_ms,
            ping_every_ms=link.silence_limit_ms // 4,
        )
        host, port = host_port(link.listen)
        return LinkListener(options, host, port, self.shell.post, count=self.metrics.count)

    # --- effects -------------------------------------------------------------------

    async def _perform(self, effect: Effect) -> Outcome:
        if isinstance(effect, AriCall):
            began = time.monotonic()
            outcome = await self.ari.perform(effect)
            self.metrics.observe("node_ari_seconds", time.monotonic() - began)
            return outcome
        if isinstance(effect, StoreTxn | StoreRead):
            return await self.store.perform(effect)
        if isinstance(effect, WebRequest):
            return await self.web.perform(effect)
        if isinstance(effect, OpenRecording | CloseRecording):
            return await self.recorder.perform(effect)
        if isinstance(effect, SetMaintenance):
            return await set_maintenance(self.settings.asterisk.control_socket, effect)
        return Refused(f"nobody performs {type(effect).__name__}")

    def _perform_now(self, effect: Effect) -> None:
        if isinstance(effect, SendLink):
            self.links.send(effect.peer, effect.frame)
        elif isinstance(effect, OperatorReply):
            self.desk.reply(effect)

    # --- HTTP ----------------------------------------------------------------------

    def routes(self) -> dict[str, Handler]:
        """The JSON routes, keyed by method and path."""

        async def explain(asked: Asked) -> Answer:
            return 200, [line.to_dict() for line in self.story.about(asked.path["subject"])]

        verbs = ("status", "calls", "agents", "queues")
        return {
            **{f"GET /v1/{verb}": self.desk.route(verb) for verb in verbs},
            **{f"POST /v1/{verb}": self.desk.route(verb) for verb in ("cordon", "uncordon")},
            **{f"POST /v1/agents/{{agent}}/{verb}": self.desk.route(verb) for verb in AGENT_VERBS},
            "POST /v1/agents/{agent}/supervise": self.desk.route("supervise"),
            "GET /v1/agents/{agent}": self.desk.route("agents"),
            "GET /v1/calls/{call}": self.desk.route("call"),
            "GET /v1/explain/{subject:.+}": explain,
        }

    def _ready(self) -> tuple[bool, str]:
        links = self.machine.links
        return links.ready, links.reason

    # --- life ----------------------------------------------------------------------

    async def run(self) -> None:
        """Serves until SIGTERM; calls stay in Asterisk. Raises OSError when an address
        is not ours."""
        settings, shell = self.settings, self.shell
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, shell.stop)
        shell.post(WallClock(utc_s=time.time()))
        running = asyncio.create_task(shell.run())
        clock = asyncio.create_task(self._tell_time())
        report = HostReport(
            self.store, self.metrics, settings.cluster, settings.node,
            (*HOST_PATHS, *([settings.recorder.spool] if settings.recorder.spool else [])),
            lambda: {"asterisk": self.ari.version} if self.ari.version else {},
        )  # fmt: skip
        keys = Keys(settings.cluster)
        for family in FAMILIES:
            self.store.mirror(keys.prefix(family))
        self.store.lease(settings.etcd.lease_ttl_s)
        self.store.start()
        reporting = asyncio.create_task(report.run())
        await self.links.start()
        await self.ari.start()
        token = Path(settings.http.token_file).read_text().strip() if settings.http.token_file else ""
        health = HealthServer(
            *host_port(settings.http.listen),
            self.metrics,
            ready=self._ready,
            routes=self.routes(),
            token=token,
        )
        await health.start()
        tell(log, "event", "started", node=settings.node)
        try:
            await running
        finally:
            clock.cancel()
            reporting.cancel()
            await health.stop()
            await self.ari.stop()
            await self.web.close()
            self.recorder.close()
            await self.links.stop()
            await self.store.close(revoke=False)

    async def _tell_time(self) -> None:
        while True:
            self.shell.post(WallClock(utc_s=time.time()))
            await asyncio.sleep(WALL_CLOCK_EVERY_S)
