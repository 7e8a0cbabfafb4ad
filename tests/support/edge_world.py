"""An edge machine between a carrier, phones and nodes, all in memory.

Everything that speaks SIP is a real `Endpoint`; rtpengine and etcd are the few
lines below, and node apps are scripted by the test.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

from ari_ha.core.machine import DeadlineReached, Done, Effect, Note, OutcomeOf, Refused, Unreachable
from ari_ha.core.ports.link import LinkDown, LinkReceived, LinkUp, SendLink
from ari_ha.core.ports.media import MediaReach, NgCommand
from ari_ha.core.ports.probe import ProbeRefused, ProbeReply, SendProbe, WallClock
from ari_ha.core.ports.sip import SendSip, SipBytes
from ari_ha.core.ports.store import KeyValue, StoreChanged, StoreReach, StoreSnapshot, StoreTxn, TxnResult
from ari_ha.machines.edge import FAMILIES, EdgeMachine
from ari_ha.machines.edge_config import EdgeConfig, EdgeNode
from ari_ha.sip import events as sip_events
from ari_ha.sip.auth import ha1
from ari_ha.sip.endpoint import Endpoint
from ari_ha.sip.flow import Flow, Listener
from ari_ha.sip.sdp import build_audio_sdp, build_fax_sdp
from ari_ha.sip.settings import EndpointSettings
from ari_ha.wire import link
from ari_ha.wire.keyspace import DrainValue, Keys, SecretUserValue, UserValue, encode
from ari_ha.wire.token import HEADER, LegToken, sign, verify

KEY = b"header key of the tests"
EDGE_PUBLIC = ("10.0.1.11", 5060)
EDGE_CORE = "10.0.2.11"


@dataclass(frozen=True)
class Home:
    """A host an edge may be on: its addresses, and its rtpengine's."""

    public: str
    core: str
    relay: str


HOMES = (Home(EDGE_PUBLIC[0], EDGE_CORE, "10.0.9.9"), Home("10.0.1.12", "10.0.2.12", "10.0.9.12"))
CARRIER = ("10.0.1.50", 5060)
NODES = {"ast1": "10.0.2.31", "ast2": "10.0.2.32", "ast3": "10.0.2.33"}


class Party:
    """A far SIP user agent."""

    def __init__(self, host: str, port: int, new_id: Callable[[], str]) -> None:
        self.host, self.port = host, port
        settings = EndpointSettings(owner_dialog_methods=("NOTIFY",))
        self.sip = Endpoint({"l": Listener("l", "udp", host, port)}, new_id, settings=settings)
        self.heard: list[Any] = []
        self.gone = False
        self.silent = False
        self.takes_changes = True
        """Whether a re-INVITE is accepted at once (the edge has another address)."""

    @property
    def reachable(self) -> bool:
        """Whether packets of and for this party arrive."""
        return not self.gone and not self.silent

    def of(self, kind: type) -> list[Any]:
        """Events of one type heard so far."""
        return [event for event in self.heard if isinstance(event, kind)]

    def sdp(self, port: int = 40_000, direction: str = "sendrecv") -> str:
        return build_audio_sdp(7, 1, self.host, port, direction=direction)

    def changed(self, offer: str | None) -> str:
        """Its answer to a re-INVITE."""
        return self.sdp()


class Node(Party):
    """An Asterisk with its app: SIP by an endpoint, the link by the test."""

    def __init__(self, name: str, host: str, new_id: Callable[[], str]) -> None:
        super().__init__(host, 5060, new_id)
        self.name = name
        self.frames: list[Any] = []
        self.auto_answer = self.auto_bridge = True
        self.auto_answer_new = True
        """Whether new calls are answered at once too (a dialling app waits)."""
        self.tokens: dict[str, LegToken] = {}
        self.records = False
        """Whether its app has a recorder."""
        self.recordings: dict[str, link.Record] = {}
        """What it records, by the edge's orders"""
        self.auto_record = True

    def got(self, kind: type) -> list[Any]:
        return [frame for frame in self.frames if isinstance(frame, kind)]


class Surroundings:
    """What edges of one cluster have in common: the hour, etcd, and whoever speaks SIP."""

    def __init__(self) -> None:
        counter = itertools.count(1)
        self.new_id = lambda: f"id{next(counter)}"
        self.now = 100.0
        self.store: dict[str, KeyValue] = {}
        self.revision = 10
        self.carrier = Party(*CARRIER, self.new_id)
        self.phones: dict[str, Party] = {}
        self.nodes = {name: Node(name, host, self.new_id) for name, host in NODES.items()}


class EdgeWorld:
    """Runs an edge machine and its surroundings in virtual time."""

    def __init__(self, etcd: bool = True, around: Surroundings | None = None) -> None:
        self.around = around or Surroundings()
        self.new_id = self.around.new_id
        self.store = self.around.store
        self.etcd = etcd
        self.notes: list[Note] = []
        self.ng: list[NgCommand] = []
        self.hears: dict[str, set[tuple[str, str]]] = {}
        self.ports = itertools.count(30_000, 2)
        self.tag_ports: dict[tuple[str, str], int] = {}
        self.ng_refuse: Callable[[NgCommand], bool] = lambda command: False
        self.packets: Callable[[str, str], int | None] = lambda call, tag: None
        """(call, tag) -> packets rtpengine has had from it; None: it does not say"""
        self.sip_log: list[tuple[float, str, str, bytes]] = []
        self.carrier, self.phones, self.nodes = self.around.carrier, self.around.phones, self.around.nodes
        self.keys = Keys("test")
        self.home = HOMES[0]
        self.boot()

    @property
    def now(self) -> float:
        return self.around.now

    @now.setter
    def now(self, value: float) -> None:
        self.around.now = value

    @property
    def revision(self) -> int:
        return self.around.revision

    @revision.setter
    def revision(self, value: int) -> None:
        self.around.revision = value

    # --- the edge ------------------------------------------------------------------

    def config(self) -> EdgeConfig:
        return EdgeConfig(
            cluster="test", edge="edge1", vip="pair1", realm="test", public_host=self.home.public,
            public_port=EDGE_PUBLIC[1], core_host=self.home.core, trunk_port=5070, agent_port=5072,
            resume_port=5074, header_key=KEY,
            nodes={name: EdgeNode(name, host, 5060) for name, host in NODES.items()},
            trunks={"carrier1": {"hosts": [CARRIER[0]], "dids": ["6000", "6001"]}},
        )  # fmt: skip

    def machine(self) -> EdgeMachine:
        return EdgeMachine(self.config(), self.new_id)

    def boot(self) -> None:
        """A new edge process: reads etcd and begins to serve."""
        self.edge = self.machine()
        self.post(WallClock(utc_s=1_800_000_000 + self.now))
        self.post(StoreReach(reachable=self.etcd))
        if self.etcd:
            self.snapshots()
        for node in self.nodes.values():
            if node.reachable:
                self.link_up(node)
        self.settle()

    def lose_etcd(self, how: str) -> None:
        """``away``: the edge knows that it cannot be reached; ``silent``: no write is answered."""
        if how == "away":
            self.etcd = False
            self.post(StoreReach(reachable=False))
        elif how == "silent":
            perform = self.perform
            self.perform = lambda e: None if isinstance(e, StoreTxn) else perform(e)  # type: ignore[method-assign]

    @contextmanager
    def unwritten(self) -> Iterator[None]:
        """No write of the edge gets to etcd meanwhile."""
        perform = self.perform
        self.lose_etcd("silent")
        yield
        self.perform = perform  # type: ignore[method-assign]

    def rehome(self) -> None:
        """The edge's host is gone with its addresses and its rtpengine; the other one begins."""
        self.leave()
        self.boot()

    def leave(self) -> None:
        """The edge's host is gone."""
        self.home = HOMES[1 - HOMES.index(self.home)]
        self.hears.clear()
        self.tag_ports.clear()

    def relay_begins_anew(self) -> None:
        """rtpengine died, and its next life knows nothing."""
        self.post(MediaReach(reachable=False))
        self.hears.clear()
        self.tag_ports.clear()
        self.post(MediaReach(reachable=True, started="2"))
        self.run(0.3)

    def snapshots(self, families: Sequence[str] = FAMILIES) -> None:
        for family in families:
            prefix = self.keys.prefix(family)
            items = {key: item for key, item in self.store.items() if key.startswith(prefix)}
            self.post(StoreSnapshot(prefix=prefix, revision=self.revision, items=items))

    def link_up(self, node: Node) -> None:
        self.post_link(node, f"{node.name}-1")

    def post_link(self, node: Node, incarnation: str) -> None:
        """The node's app (re)connects and says that it is ready."""
        self.post(LinkUp(peer=node.name))
        features = [link.RECORD] if node.records else []
        self.say(node, link.NodeHello(node=node.name, incarnation=incarnation, features=features))
        self.say(node, link.NodeState(ready=True, asterisk="up"))

    def say(self, node: Node, frame: Any) -> None:
        self.post(LinkReceived(peer=node.name, frame=frame))

    def post(self, event: Any) -> None:
        for effect in self.edge.handle(event, self.now):
            self.perform(effect)
        self.edge.check()

    def perform(self, effect: Effect) -> None:
        match effect:
            case SendSip():
                self.sip_log.append((self.now, "edge", effect.flow.host, effect.data))
                self.deliver(effect.data, effect.flow)
            case NgCommand():
                self.post(OutcomeOf(effect=effect, outcome=self.relay(effect)))
            case StoreTxn():
                self.post(OutcomeOf(effect=effect, outcome=self.txn(effect)))
            case SendLink():
                node = self.nodes[effect.peer]
                if node.reachable:
                    node.frames.append(effect.frame)
                    self.recorder(node, effect.frame)
            case SendProbe():
                node = self.nodes[effect.node]
                if node.gone:
                    self.post(ProbeRefused(node=effect.node))
                elif not node.silent:
                    self.post(ProbeReply(node=effect.node, n=effect.n))
            case Note():
                self.notes.append(effect)

    def recorder(self, node: Node, frame: Any) -> None:
        """The node's recorder does as it is told."""
        if isinstance(frame, link.EdgeCalls) and node.records:
            here = {name: known.call for name, known in node.recordings.items()}
            self.say(node, link.NodeRecordings(recordings=here))
        elif isinstance(frame, link.EndRecording):
            node.recordings.pop(frame.recording, None)
        elif isinstance(frame, link.Record) and node.auto_record:
            node.recordings[frame.recording] = frame
            port = 42_000 + 2 * len(node.recordings)
            at = link.RecorderAt(recording=frame.recording, call=frame.call, host=node.host, port=port)
            self.say(node, at)

    # --- etcd and rtpengine --------------------------------------------------------

    def txn(self, effect: StoreTxn) -> Any:
        if not self.etcd:
            return Unreachable("etcd is away")
        for compare in effect.compares:
            item = self.store.get(compare.key)
            if (item.mod_revision if item else 0) != compare.mod_revision:
                current = (self.store[c.key] for c in effect.compares if c.key in self.store)
                return Done(TxnResult(False, self.revision, tuple(current)))
        self.revision += 1
        for put in effect.puts:
            self.store[put.key] = KeyValue(put.key, put.value, self.revision)
        for delete in effect.deletes:
            doomed = [k for k in self.store if delete.prefix and k.startswith(delete.key)]
            for key in [*doomed, delete.key]:
                self.store.pop(key, None)
        return Done(TxnResult(True, self.revision))

    def relay(self, command: NgCommand) -> Any:
        self.ng.append(command)
        if self.ng_refuse(command):
            return Unreachable("test")
        if command.command == "list":
            return Done({"result": "ok", "calls": list(self.hears)})
        call, tag = str(command.body["call-id"]), str(command.body.get("from-tag", ""))
        if command.command == "create":
            self.hears.setdefault(call, set())
        if call not in self.hears and command.command != "delete":
            return Refused("Unknown call-ID")
        graph = self.hears.get(call, set())
        pair = (str(command.body.get("to-tag", "")), tag)
        match command.command:
            case "create":
                port = self.tag_ports.setdefault((call, tag), next(self.ports))
                if command.body.get("transport-protocol") == "UDPTL":
                    return Done({"result": "ok", "sdp": build_fax_sdp(1, self.home.relay, port)})
                return Done({"result": "ok", "sdp": build_audio_sdp(1, 1, self.home.relay, port)})
            case "connect":
                graph.add(pair)
            case "unsubscribe":
                graph.discard(pair)
            case "delete":
                self.hears.pop(call, None)
            case "query":
                tags = {}
                for tag in [tag for known, tag in self.tag_ports if known == call]:
                    count = self.packets(call, tag)
                    stats = {} if count is None else {"stats": {"packets": count}}
                    streams = [{"local port": self.tag_ports[call, tag], **stats}]
                    tags[tag] = {"medias": [{"streams": streams}]}
                return Done({"result": "ok", "tags": tags})
        return Done({"result": "ok"})

    # --- time and the network ------------------------------------------------------

    def party_at(self, host: str, port: int) -> Party | None:
        if (host, port) == CARRIER:
            return self.carrier
        for party in (*self.nodes.values(), *self.phones.values()):
            if (party.host, party.port) == (host, port):
                return party
        return None

    def deliver(self, data: bytes, flow: Flow) -> None:
        party = self.party_at(flow.host, flow.port)
        if party is None or not party.reachable:
            return
        host, port = self.edge_address(flow.listener)
        party.sip.receive(data, Flow("l", "udp", host, port), self.now)

    def edge_address(self, listener: str) -> tuple[str, int]:
        ports = {"node-trunk": 5070, "node-agent": 5072, "node-resume": 5074}
        public = (self.home.public, EDGE_PUBLIC[1])
        return (self.home.core, ports[listener]) if listener in ports else public

    def settle(self) -> None:
        """Lets everybody answer until nobody has anything to say."""
        for _ in range(200):
            said = False
            for party in (self.carrier, *self.phones.values(), *self.nodes.values()):
                for event in party.sip.events():
                    party.heard.append(event)
                    if isinstance(party, Node):
                        self.node_heard(party, event)
                    if isinstance(event, sip_events.ReinviteReceived) and party.takes_changes:
                        party.sip.accept_reinvite(event.leg, party.changed(event.sdp), self.now)
                    said = True
                for data, flow in party.sip.output():
                    said = True
                    if party.reachable:
                        self.arrive(party, data, flow)
            if not said:
                return

    def arrive(self, party: Party, data: bytes, flow: Flow) -> None:
        names = {5070: "node-trunk", 5072: "node-agent", 5074: "node-resume"}
        if flow.host not in (self.home.public, self.home.core):
            return  # nobody is there any more
        listener = names.get(flow.port, "public-udp") if flow.host == self.home.core else "public-udp"
        self.post(SipBytes(data=data, flow=Flow(listener, "udp", party.host, party.port)))

    def run(self, seconds: float, step: float = 0.02) -> None:
        """Virtual time passes."""
        end = self.now + seconds
        while self.now < end:
            self.now += step
            self.tick()
            for party in (self.carrier, *self.phones.values(), *self.nodes.values()):
                if (when := party.sip.deadline()) is not None and when <= self.now:
                    party.sip.handle_timer(self.now)
            self.settle()

    def tick(self) -> None:
        """What is due at the edge."""
        deadline = self.edge.deadline()
        if deadline is not None and deadline <= self.now:
            self.post(DeadlineReached())

    # --- scripted node app ---------------------------------------------------------

    def node_heard(self, node: Node, event: Any) -> None:
        if not isinstance(event, sip_events.InviteReceived):
            return
        token = verify(event.request.get(HEADER), KEY)
        node.tokens[event.leg] = token
        if not node.auto_answer or not (node.auto_answer_new or token.kind == "resume"):
            return
        node.sip.answer(event.leg, node.sdp(), self.now)
        if token.kind == "resume" and node.auto_bridge:
            have = {t.leg for t in node.tokens.values() if (t.call, t.epoch) == (token.call, token.epoch)}
            if have == set(token.facts):
                self.say(node, link.Bridged(call=token.call, epoch=token.epoch, legs=sorted(have)))

    def dial(
        self, node: Node, call: Any, leg: str, aor: str, attempt: str = "t1", target: str = "",
        agent: str = "", consult: str = "", queue: str = "",
    ) -> str:  # fmt: skip
        """The node's app rings a phone, or whatever ``target`` names."""
        token = LegToken(kind="dial", call=call.call, leg=leg, epoch=str(call.epoch),
                         target=target or f"device:{aor}", attempt=attempt, agent=agent,
                         consult=consult, queue=queue)  # fmt: skip
        key = self.new_id()
        node.sip.invite(
            key, flow=Flow("l", "udp", self.home.core, 5070), target=f"sip:{leg}@{self.home.core}:5070",
            from_="<sip:app@node>", to=f"<sip:{leg}@edge>", sdp=node.sdp(),
            headers=((HEADER, sign(token, KEY)),), now=self.now,
        )  # fmt: skip
        self.settle()
        return key

    # --- people --------------------------------------------------------------------

    def add_user(self, user: str) -> None:
        for key, value in (
            (self.keys.user(user), UserValue(user=user, aor=user, agent=user)),
            (
                self.keys.secret_user(user),
                SecretUserValue(
                    user=user, realm="test", ha1_md5=ha1("MD5", user, "test", "pw"),
                    ha1_sha256=ha1("SHA-256", user, "test", "pw"),
                ),
            ),
        ):  # fmt: skip
            self.revision += 1
            self.store[key] = KeyValue(key, encode(value), self.revision)

    def with_users(self, *users: str) -> Self:
        """The same world, and these users in the directory."""
        for user in users:
            self.add_user(user)
        self.snapshots()
        return self

    def register(self, user: str) -> Party:
        """A phone registers with digest."""
        phone = self.phones.get(user) or Party("10.0.1.60", 6000 + len(self.phones) + 1, self.new_id)
        self.phones[user] = phone
        arguments: dict[str, Any] = {
            "flow": self.carrier_flow(), "target": "sip:test", "from_": f"<sip:{user}@test>",
            "to": f"<sip:{user}@test>", "now": self.now,
        }  # fmt: skip
        contact = ("Contact", f"<sip:{user}@{phone.host}:{phone.port}>")
        phone.sip.request("r1", "REGISTER", headers=(contact,), **arguments)
        self.settle()
        reply = phone.of(sip_events.ResponseReceived)[-1]
        header = digest_header(reply, user, "pw", "REGISTER", "sip:test")
        phone.sip.request("r2", "REGISTER", headers=(contact, ("Authorization", header)), **arguments)
        self.settle()
        return phone

    def carrier_flow(self) -> Flow:
        """The way from anybody outside to the edge."""
        return Flow("l", "udp", self.home.public, EDGE_PUBLIC[1])

    def call_in(self, did: str = "6000", sdp: bool = True) -> tuple[str, Any]:
        """The carrier calls; the caller's key and the edge's call."""
        key = self.new_id()
        before = set(self.edge.calls.by_id)
        self.carrier.sip.invite(
            key, flow=self.carrier_flow(), target=f"sip:{did}@{self.home.public}",
            from_="<sip:5551234@carrier>", to=f"<sip:{did}@edge>",
            sdp=self.carrier.sdp() if sdp else None, now=self.now,
        )  # fmt: skip
        self.settle()
        new = set(self.edge.calls.by_id) - before
        return key, self.edge.calls.by_id[new.pop()] if new else None


def _challenges(reply: Any) -> list[tuple[str, str]]:
    return [item for item in reply.headers if item[0].lower() == "www-authenticate"]


def digest_header(reply: Any, user: str, password: str, method: str, uri: str) -> str:
    """An Authorization value for the MD5 challenge in a 401 (RFC 7616 §3.4)."""
    value = next(v for _, v in _challenges(reply) if "algorithm=MD5" in v)
    nonce = re.search(r'nonce="([^"]+)"', value).group(1)  # type: ignore[union-attr]
    realm = re.search(r'realm="([^"]+)"', value).group(1)  # type: ignore[union-attr]

    def h(text: str) -> str:
        return hashlib.md5(text.encode()).hexdigest()

    response = h(f"{h(f'{user}:{realm}:{password}')}:{nonce}:00000001:cn:auth:{h(f'{method}:{uri}')}")
    return (
        f'Digest username="{user}", realm="{realm}", nonce="{nonce}", uri="{uri}", algorithm=MD5, '
        f'qop=auth, nc=00000001, cnonce="cn", response="{response}"'
    )


def kill(world: EdgeWorld, name: str) -> None:
    """SIGKILL of a node's Asterisk and app: its kernel closes and refuses."""
    node = world.nodes[name]
    node.gone = True
    world.post(LinkDown(peer=name, reason="closed", clean=True))
    world.run(0.2)


def drain(world: EdgeWorld, node: str, **how: Any) -> None:
    """An operator wants the node empty."""
    world.revision += 1
    key = world.keys.drain(node)
    item = world.store[key] = KeyValue(key, encode(DrainValue(node=node, **how)), world.revision)
    world.post(StoreChanged(key=key, value=item, revision=world.revision))
    world.settle()
