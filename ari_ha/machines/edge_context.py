"""What all parts of the edge machine share: the SIP endpoint, the effects being
gathered, timers, and continuations that wait for an effect's outcome."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

from ari_ha.core.ids import NodeId
from ari_ha.core.machine import Count, Done, Effect, Note, Outcome, OutcomeOf, Unknown, Unreachable
from ari_ha.core.ports.link import SendLink
from ari_ha.core.ports.media import NgCommand
from ari_ha.core.ports.names import LookUp
from ari_ha.core.ports.store import StoreTxn
from ari_ha.core.utc import FOLLOWED, Utc
from ari_ha.machines.edge_config import EdgeConfig
from ari_ha.sip.auth import Credentials
from ari_ha.sip.endpoint import Endpoint
from ari_ha.sip.flow import Flow, Listener
from ari_ha.sip.nexthop import SOURCE, Resolve, takes_media
from ari_ha.sip.settings import EndpointSettings
from ari_ha.wire.keyspace import Keys

Then = Callable[[Outcome], None]
NG_LIMIT_S = 1.5
STORE_LIMIT_S = 2.0
NAME_LIMIT_S = 4.0
HOP = "edge-hop"
"""Listener for edges of other pairs"""
INNER = ("node-", "edge-")
"""How the names of listeners begin on which no phone and no carrier is heard"""


class EdgeContext:
    """Shared by the edge's parts; owned by `EdgeMachine`."""

    def __init__(self, config: EdgeConfig, new_id: Callable[[], str], rand: Callable[[], float]) -> None:
        self.config = config
        self.timings = config.timings
        self.keys = Keys(config.cluster)
        self.new_id = new_id
        self.rand = rand
        listeners = {
            "public-udp": Listener("public-udp", "udp", config.public_host, config.public_port, "public"),
            "public-tcp": Listener("public-tcp", "tcp", config.public_host, config.public_port, "public"),
            "node-trunk": Listener("node-trunk", "udp", config.core_host, config.trunk_port),
            "node-agent": Listener("node-agent", "udp", config.core_host, config.agent_port),
            "node-resume": Listener("node-resume", "udp", config.core_host, config.resume_port),
        }
        if config.public_tls_port:
            listeners["public-tls"] = Listener(
                "public-tls", "tls", config.public_host, config.public_tls_port, "public"
            )
        if config.hop_port:
            listeners[HOP] = Listener(HOP, "udp", config.core_host, config.hop_port)
        for transport, port in (("ws", config.public_ws_port), ("wss", config.public_wss_port)):
            if port:
                name = f"public-{transport}"
                listeners[name] = Listener(name, transport, config.public_host, port, "public")
        settings = EndpointSettings(
            owner_dialog_methods=("SUBSCRIBE",),
            extensions=("timer", "replaces"),
            understood=("timer", "100rel", "replaces", "path"),
            owner_answers_bye=True,
        )
        self.inner_hosts = {config.core_host, *config.inner_hosts, config.public_host}
        """Ours, and those on the core network: nobody outside says what is sent there"""
        self.inner_hosts.update(node.sip_host for node in config.nodes.values())
        self.resolve: Resolve = lambda hop: ()
        """What is known of a name in a dialog"""
        self.sip = Endpoint(
            listeners, new_id, rand=rand, user_agent="ari-ha", settings=settings,
            resolve=lambda hop: self.resolve(hop), inner_hosts=self.inner_hosts,
        )  # fmt: skip
        self.now = 0.0
        self.cause = ""
        self._utc = Utc()
        self.on_time_moved: list[Callable[[float], None]] = []
        """Called with the seconds by which `utc` has jumped"""
        self.edge_revision = 0
        """mod_revision of our vip key; 0 until we are the active edge."""
        self.store_ok = False
        self.media_ok = True
        self.asterisk_gone: Callable[[NodeId], bool] = lambda node: False
        """Whether that life of a node's Asterisk is certainly over"""
        self.node_doubted: Callable[[str], bool] = lambda node: False
        """Whether a node is silent at the moment"""
        self.trunk_credentials: Callable[[str], Credentials | None] = lambda trunk: None
        """Who we are at a carrier that challenges us"""
        self.trunk_next_hop: Callable[[str], str] = lambda trunk: SOURCE
        """How a carrier's requests within a call find it"""
        self._out: list[Effect] = []
        self._then: dict[str, Then] = {}
        self._serial = 0
        self._timers: list[tuple[float, int, str]] = []
        self._armed: dict[str, tuple[int, Callable[[], None]]] = {}

    @property
    def utc(self) -> float:
        """UTC seconds now; 0 before the first word about the time."""
        return self._utc.at(self.now)

    def wall_clock(self, utc_s: float) -> None:
        """What the wall clock says now."""
        what, by_s = self._utc.told(utc_s, self.now)
        if what:
            self.note("clock", what, level="warning", by_s=f"{by_s:+.3f}")
        if what == FOLLOWED:
            for moved in self.on_time_moved:
                moved(by_s)

    def emit(self, effect: Effect) -> None:
        """Adds an effect to the answer of the event being handled."""
        self._out.append(effect)

    def take_effects(self) -> list[Effect]:
        """The effects gathered since the last call."""
        out, self._out = self._out, []
        return out

    def note(self, subject: str, text: str, level: str = "info", **facts: Any) -> None:
        """A line of the story."""
        pairs = tuple((name, str(value)) for name, value in facts.items())
        self.emit(Note(cause=self.cause, subject=subject, text=text, facts=pairs, level=level))

    def count(self, name: str, by: float = 1, **labels: str) -> None:
        """Adds to a counter."""
        self.emit(Count(name=name, by=by, labels=tuple(labels.items())))

    # --- continuations -------------------------------------------------------------

    def serial(self) -> int:
        """A number never given before by this process."""
        self._serial += 1
        return self._serial

    def _tag(self, then: Then | None) -> str:
        tag = f"{self.serial()}"
        if then:
            self._then[tag] = then
        return tag

    def ng(
        self,
        call: str,
        command: str,
        body: dict[str, object],
        then: Then | None = None,
        with_previous: bool = False,
    ) -> None:
        """One rtpengine command in the call's media lane."""
        self.emit(
            NgCommand(
                lane=f"media/{call}",
                with_previous=with_previous,
                cause=self.cause,
                limit_s=NG_LIMIT_S,
                command=command,
                body={"call-id": call, **body},
                tag=self._tag(then),
            )
        )

    def relay(self, command: str, body: dict[str, object], then: Then) -> None:
        """One rtpengine command about no call in particular."""
        self.emit(
            NgCommand(
                lane="media", cause=self.cause, limit_s=NG_LIMIT_S, command=command, body=body,
                tag=self._tag(then),
            )
        )  # fmt: skip

    def ng_free(self, command: str, body: dict[str, object], limit_s: float, then: Then) -> None:
        """One rtpengine command that depends on no other, and that none waits for."""
        self.emit(
            NgCommand(cause=self.cause, limit_s=limit_s, command=command, body=body, tag=self._tag(then))
        )

    def txn(self, lane: str, then: Then | None = None, **parts: Any) -> None:
        """One etcd transaction."""
        self.emit(StoreTxn(lane=lane, cause=self.cause, limit_s=STORE_LIMIT_S, tag=self._tag(then), **parts))

    def look_up(self, name: str, kind: str, then: Then) -> None:
        """One question to DNS; Unknown (too slow) counts as nobody there."""

        def answered(outcome: Outcome) -> None:
            then(Unreachable(outcome.reason) if isinstance(outcome, Unknown) else outcome)

        tag = self._tag(answered)
        # a lane of its own: one that is stopped would say Refused, which here means "there is none"
        lane = f"name/{tag}"
        self.emit(LookUp(lane=lane, cause=self.cause, limit_s=NAME_LIMIT_S, name=name, kind=kind, tag=tag))

    def outcome(self, event: OutcomeOf) -> None:
        """Gives an outcome to whoever waits for it."""
        tag = getattr(event.effect, "tag", "")
        then = self._then.pop(tag, None)
        if then:
            then(event.outcome)
        elif not isinstance(event.outcome, Done):
            self.count("edge_effects_failed", kind=type(event.effect).__name__)

    def link(self, node: str, frame: Any) -> None:
        """Sends a frame to a node app; lost when its link is down."""
        self.emit(SendLink(peer=node, frame=frame))

    # --- timers --------------------------------------------------------------------

    def at(self, name: str, when: float, act: Callable[[], None]) -> None:
        """Calls ``act`` at ``when``; a timer of the same name is replaced."""
        serial = self.serial()
        self._armed[name] = (serial, act)
        heapq.heappush(self._timers, (when, serial, name))

    def cancel(self, name: str) -> None:
        """Forgets the timer."""
        self._armed.pop(name, None)

    def deadline(self) -> float | None:
        """The earliest of our timers and the SIP engine's."""
        while self._timers and self._armed.get(self._timers[0][2], (0,))[0] != self._timers[0][1]:
            heapq.heappop(self._timers)
        times = [when for when in (self.sip.deadline(),) if when is not None]
        if self._timers:
            times.append(self._timers[0][0])
        return min(times) if times else None

    def fire(self) -> None:
        """Runs every timer that is due."""
        while self._timers and self._timers[0][0] <= self.now:
            _, serial, name = heapq.heappop(self._timers)
            armed = self._armed.get(name)
            if armed and armed[0] == serial:
                del self._armed[name]
                armed[1]()

    def takes_media(self, host: str, heard: Flow) -> bool:
        """Whether audio may go to an address that somebody heard by this flow named. To our own relay it
        may: a carrier may bring a call of ours back to us and stay out of its audio. Whom another pair's
        edge speaks for is not where that edge is."""
        if host in (self.config.public_host, self.config.public_listens):
            return takes_media(host, heard.host)
        if heard.listener == HOP and host in self.inner_hosts:
            return False
        return takes_media(host, heard.host, self.inner_hosts)
