"""Puts an edge process together: machine, shell and adapters."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import signal
import ssl
import time
from pathlib import Path

from ari_ha import __version__
from ari_ha.adapters.certificates import Certificates
from ari_ha.adapters.datagrams import WordSocket
from ari_ha.adapters.link import LinkDialer, LinkSettings
from ari_ha.adapters.names import Names
from ari_ha.adapters.probe import Probes
from ari_ha.adapters.rtpengine import Rtpengine
from ari_ha.adapters.sip import SipSockets
from ari_ha.adapters.sip_websocket import WebSocketListener
from ari_ha.core.machine import Effect, Outcome, Refused
from ari_ha.core.ports.guard import StandDown, TellGuard
from ari_ha.core.ports.link import SendLink
from ari_ha.core.ports.media import NgCommand
from ari_ha.core.ports.names import LookUp
from ari_ha.core.ports.operator import OperatorReply
from ari_ha.core.ports.probe import SendProbe, WallClock
from ari_ha.core.ports.sip import CloseSip, SendSip
from ari_ha.core.ports.store import StoreRead, StoreTxn, StoreUnwatch
from ari_ha.core.story import Story
from ari_ha.machines.edge import FAMILIES, EdgeMachine
from ari_ha.machines.edge_config import EdgeConfig, EdgeNode
from ari_ha.machines.edge_context import HOP
from ari_ha.runtime.etcd import EtcdSettings, open_store
from ari_ha.runtime.health import Answer, Asked, Handler, HealthServer, OperatorDesk
from ari_ha.runtime.host import HostReport, version_of
from ari_ha.runtime.logs import tell
from ari_ha.runtime.metrics import Metrics
from ari_ha.runtime.settings import host_port
from ari_ha.runtime.shell import Shell
from ari_ha.wire.keyspace import Keys
from sidecars.edge.settings import EdgeSettings

log = logging.getLogger("ari_ha.edge")
WALL_CLOCK_EVERY_S = 1.0
HOST_PATHS = ("/", "/var/log")
CERTIFICATE_LOOK_S = 5.0
IDENT_CHARS = 10
LINK_SILENCE_MS_PER_PING = 4
STOOD_DOWN_STATUS = 3
"""Exit status of a life that is not the active edge any more; the parent starts the next."""


def machine_config(settings: EdgeSettings) -> EdgeConfig:
    """The machine's configuration out of the process's settings."""
    nodes = {}
    for name, node in settings.nodes.items():
        host, port = host_port(node.sip, 5060)
        nodes[name] = EdgeNode(name, host, port, node.link)
    inner = [host_port(at)[0] for at in (*settings.etcd.endpoints, settings.rtpengine.ng)]
    inner += [host_port(node.link)[0] for node in settings.nodes.values()]
    return EdgeConfig(
        cluster=settings.cluster,
        edge=settings.edge,
        vip=settings.vip,
        realm=settings.realm,
        public_host=settings.public.advertised or settings.public.host,
        public_port=settings.public.port,
        public_tls_port=settings.public.tls.port if settings.public.tls.cert_file else 0,
        public_ws_port=settings.public.websocket.port,
        public_wss_port=settings.public.websocket.tls_port,
        srtp_to_phones=settings.public.srtp_to_phones,
        core_host=settings.core.host,
        trunk_port=settings.core.trunk_port,
        agent_port=settings.core.agent_port,
        resume_port=settings.core.resume_port,
        hop_port=settings.core.hop_port,
        nodes=nodes,
        trunks={
            name: {"hosts": list(trunk.hosts), "dids": list(trunk.dids)}
            for name, trunk in settings.trunks.items()
        },
        public_listens=settings.public.host,
        inner_hosts=frozenset((settings.public.host, *inner)),
        header_key=Path(settings.header_key_file).read_bytes().strip(),
        http=f"http://{settings.http.listen}",
        version=__version__,
        process=secrets.token_hex(4),
        public_interface=settings.rtpengine.public_interface,
        spare_public_interfaces=settings.rtpengine.spare_public_interfaces,
        core_interface=settings.rtpengine.core_interface,
        guarded=bool(settings.guard.listen),
        calls_max=settings.calls_max,
        contacts_rung_max=settings.contacts_rung_max,
        call_records=settings.call_records,
        timings=settings.timings,
        protection=settings.protection,
    )


def new_id() -> str:
    """An identifier nobody has had before, short enough to read aloud."""
    return secrets.token_hex(IDENT_CHARS // 2)


class EdgeProcess:
    """Everything one edge process holds."""

    def __init__(self, settings: EdgeSettings) -> None:
        self.settings = settings
        self.story = Story()
        self.metrics = Metrics({"edge": settings.edge})
        self.machine = EdgeMachine(machine_config(settings), new_id, random.random)
        self.shell = Shell(
            self.machine,
            self._perform,
            story=self.story,
            perform_now=self._perform_now,
            metrics=self.metrics,
            log=log,
            instant=(
                SendSip,
                CloseSip,
                SendLink,
                SendProbe,
                OperatorReply,
                TellGuard,
                StandDown,
                StoreUnwatch,
            ),
        )
        self.sip = SipSockets(self.shell.post)
        host, port = host_port(settings.rtpengine.ng)
        self.relay = Rtpengine(host, port, self.shell.post)
        self.names = Names()
        self.probes = Probes(settings.core.host, self.shell.post)
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
        self.links = {name: self._dialer(name) for name in settings.nodes}
        self.desk = OperatorDesk(self.shell.post)
        self.stood_down = False
        self.guard: WordSocket | None = None
        if settings.guard.listen:
            key = Path(settings.guard.key_file).read_bytes().strip()
            self.guard = WordSocket(key, host_port(settings.guard.send), self.shell.post)
        self._web: list[WebSocketListener] = []
        self._background: list[asyncio.Task[None]] = []

    def _dialer(self, name: str) -> LinkDialer:
        link, silence_ms = self.settings.link, int(self.settings.timings.link_silence_s * 1000)
        options = LinkSettings(
            ca_file=link.ca_file,
            cert_file=link.cert_file,
            key_file=link.key_file,
            silence_limit_ms=silence_ms,
            ping_every_ms=silence_ms // LINK_SILENCE_MS_PER_PING,
        )
        host, port = host_port(self.settings.nodes[name].link)
        return LinkDialer(options, name, host, port, self.shell.post, count=self.metrics.count)

    # --- effects -------------------------------------------------------------------

    async def _perform(self, effect: Effect) -> Outcome:
        if isinstance(effect, NgCommand):
            return await self.relay.perform(effect)
        if isinstance(effect, StoreTxn | StoreRead):
            return await self.store.perform(effect)
        if isinstance(effect, LookUp):
            return await self.names.perform(effect)
        return Refused(f"nobody performs {type(effect).__name__}")

    def _perform_now(self, effect: Effect) -> None:
        if isinstance(effect, SendSip):
            self.sip.send(effect.data, effect.flow, effect.name)
        elif isinstance(effect, CloseSip):
            self.sip.drop(effect.flow)
        elif isinstance(effect, SendLink):
            dialer = self.links.get(effect.peer)
            if dialer:
                dialer.send(effect.peer, effect.frame)
        elif isinstance(effect, SendProbe):
            self.probes.send(effect)
        elif isinstance(effect, OperatorReply):
            self.desk.reply(effect)
        elif isinstance(effect, StoreUnwatch):
            self.store.unmirror(effect.prefix)
        elif isinstance(effect, TellGuard) and self.guard:
            self.guard.send(effect.word)
        elif isinstance(effect, StandDown):
            self.stood_down = True
            self.shell.stop()

    # --- HTTP ----------------------------------------------------------------------

    def _routes(self) -> dict[str, Handler]:
        async def explain(asked: Asked) -> Answer:
            return 200, [line.to_dict() for line in self.story.about(asked.path["subject"])]

        verbs = ("status", "calls", "nodes", "bindings", "trunks")
        return {
            **{f"GET /v1/{verb}": self.desk.route(verb) for verb in verbs},
            "GET /v1/calls/{call}": self.desk.route("call"),
            "POST /v1/calls/{call}/mute": self.desk.route("mute"),
            "POST /v1/calls/{call}/takeover": self.desk.route("takeover"),
            "GET /v1/explain/{subject:.+}": explain,
        }

    # --- life ----------------------------------------------------------------------

    async def run(self) -> None:
        """Serves until SIGTERM, or until another edge is active: then the process exits,
        and its next life stands by. Raises OSError when an address is not ours."""
        settings, shell = self.settings, self.shell
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, shell.stop)
        shell.post(WallClock(utc_s=time.time()))
        running = asyncio.create_task(shell.run())
        clock = asyncio.create_task(self._tell_time())
        keys = Keys(settings.cluster)
        for family in FAMILIES:
            prefix = f"{keys.prefix(family)}{settings.vip}/" if family == "dialogs" else keys.prefix(family)
            self.store.mirror(prefix)
        self.store.lease(settings.etcd.lease_ttl_s)
        self.store.start()
        self._background.append(asyncio.create_task(self._report_host()))
        await self.relay.start()
        if self.guard:
            await self.guard.start(*host_port(settings.guard.listen))
        public, core = settings.public, settings.core
        await self.sip.listen_udp("public-udp", public.host, public.port)
        await self.sip.listen_tcp("public-tcp", public.host, public.port)
        if public.websocket.port:
            await self._listen_web("ws", public.websocket.port)
        if public.tls.cert_file:
            certificates = Certificates(public.tls.cert_file, public.tls.key_file, public.tls.ca_file)
            await self.sip.listen_tls("public-tls", public.host, public.tls.port, certificates)
            if public.websocket.tls_port:
                await self._listen_web("wss", public.websocket.tls_port, certificates.server)
            self._background.append(asyncio.create_task(self._renew(certificates)))
        await self.sip.listen_udp("node-trunk", core.host, core.trunk_port)
        await self.sip.listen_udp("node-agent", core.host, core.agent_port)
        await self.sip.listen_udp("node-resume", core.host, core.resume_port)
        if core.hop_port:
            await self.sip.listen_udp(HOP, core.host, core.hop_port)
        for dialer in self.links.values():
            await dialer.start()
        token = Path(settings.http.token_file).read_text().strip() if settings.http.token_file else ""
        health = HealthServer(
            *host_port(settings.http.listen),
            self.metrics,
            ready=self._ready,
            routes=self._routes(),
            token=token,
        )
        await health.start()
        tell(log, "event", "started", edge=settings.edge)
        try:
            await running
        finally:
            clock.cancel()
            for task in self._background:
                task.cancel()
            await health.stop()
            self.sip.close()
            for listener in self._web:
                await listener.stop()
            self.probes.close()
            self.relay.close()
            if self.guard:
                self.guard.close()
            for dialer in self.links.values():
                await dialer.stop()
            await self.store.close(revoke=False)
        if self.stood_down:
            raise SystemExit(STOOD_DOWN_STATUS)

    async def _listen_web(self, transport: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        listener = WebSocketListener(self.sip, f"public-{transport}", transport)
        await listener.start(self.settings.public.host, port, tls)
        self._web.append(listener)

    async def _renew(self, certificates: Certificates) -> None:
        """Certificates are renewed by somebody else; we only look."""
        while True:
            await asyncio.sleep(CERTIFICATE_LOOK_S)
            try:
                if certificates.reload():
                    tell(log, "event", "certificate read again")
            except (OSError, ssl.SSLError) as error:
                tell(log, "event", "certificate not usable, the old one stays", error=str(error))

    def _ready(self) -> tuple[bool, str]:
        """Serving, or standing by with every call at hand."""
        ready = self.machine.warm if self.guard else self.machine.serving
        return ready, "" if ready else "calls not read from etcd yet"

    async def _report_host(self) -> None:
        """Beside the rest: a restarted edge's calls do not wait for a program's version."""
        relay, settings = await version_of("rtpengine"), self.settings
        report = HostReport(
            self.store, self.metrics, settings.cluster, settings.edge, HOST_PATHS,
            lambda: {"rtpengine": relay} if relay else {},
        )  # fmt: skip
        await report.run()

    async def _tell_time(self) -> None:
        while True:
            self.shell.post(WallClock(utc_s=time.time()))
            await asyncio.sleep(WALL_CLOCK_EVERY_S)
