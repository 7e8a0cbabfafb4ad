"""A `NodeMachine` on a bench: its Asterisk, its store and its edge in a few lines each.

Effects are carried out in order, lanes stop as in the shell, outcomes and events
come back at once unless a fault was asked for.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ari_ha.core.ids import Epoch
from ari_ha.core.machine import (
    Count,
    DeadlineReached,
    Done,
    Effect,
    Event,
    Note,
    Outcome,
    OutcomeOf,
    Refused,
    Unknown,
    Unreachable,
)
from ari_ha.core.ports.ari import AriCall, AriDown, AriEvent, AriSnapshot
from ari_ha.core.ports.link import LinkDown, LinkReceived, LinkUp, SendLink
from ari_ha.core.ports.operator import OperatorReply, OperatorRequest
from ari_ha.core.ports.probe import WallClock
from ari_ha.core.ports.recording import CloseRecording, OpenRecording
from ari_ha.core.ports.store import (
    KeyValue,
    LeaseState,
    StoreChanged,
    StoreReach,
    StoreRead,
    StoreSnapshot,
    StoreTxn,
    TxnResult,
)
from ari_ha.core.ports.web import WebAnswer, WebRequest
from ari_ha.machines.node import FAMILIES, NodeMachine
from ari_ha.machines.node_config import NodeConfig
from ari_ha.wire import ari, link
from ari_ha.wire.keyspace import (
    AgentValue,
    BindingValue,
    Keys,
    OwnerValue,
    QueueConfigValue,
    RecordValue,
    UserValue,
    Value,
    decode,
    encode,
)
from ari_ha.wire.token import LegToken, sign, verify

CLUSTER, NODE, EDGE, KEY = "t", "ast1", "edge1", b"bench"
UTC0 = 1_900_000_000.0
ROUNDS_MAX = 20_000


class BenchStore:
    """etcd, as far as one node notices."""

    def __init__(self) -> None:
        self.keys = Keys(CLUSTER)
        self.data: dict[str, KeyValue] = {}
        self.revision = 10
        self.up = True

    def put(self, key: str, value: Value) -> KeyValue:
        """A write of somebody else."""
        self.revision += 1
        kv = KeyValue(key, encode(value), self.revision)
        self.data[key] = kv
        return kv

    def snapshot(self, family: str) -> StoreSnapshot:
        """All of a family."""
        prefix = self.keys.prefix(family)
        items = {key: kv for key, kv in self.data.items() if key.startswith(prefix)}
        return StoreSnapshot(prefix=prefix, revision=self.revision, items=items)

    def perform(self, effect: StoreTxn | StoreRead) -> tuple[Outcome, list[Event]]:
        """The outcome, and what the watch tells."""
        if not self.up:
            return Unreachable("away"), []
        if isinstance(effect, StoreRead):
            found = self.data.get(effect.key)
            return Done((found,) if found else ()), []
        current = [self.data.get(c.key) for c in effect.compares]
        wrong = [
            c
            for c, kv in zip(effect.compares, current, strict=True)
            if (kv.mod_revision if kv else 0) != c.mod_revision
        ]
        if wrong:
            known = tuple(kv for kv in current if kv is not None)
            return Done(TxnResult(False, self.revision, known)), []
        self.revision += 1
        events: list[Event] = []
        for put in effect.puts:
            self.data[put.key] = KeyValue(put.key, put.value, self.revision)
            events.append(StoreChanged(key=put.key, value=self.data[put.key], revision=self.revision))
        for gone in effect.deletes:
            for key in [k for k in self.data if k == gone.key or (gone.prefix and k.startswith(gone.key))]:
                del self.data[key]
                events.append(StoreChanged(key=key, value=None, revision=self.revision))
        return Done(TxnResult(True, self.revision)), events


class BenchAsterisk:
    """Channels and bridges, and ARI's answers about them."""

    def __init__(self) -> None:
        self.life = 1
        self.channels: dict[str, dict[str, Any]] = {}
        self.bridges: dict[str, set[str]] = {}
        self.numbers = itertools.count(1)
        self.fail: deque[Outcome] = deque()
        """Outcomes of the next operations, instead of carrying them out."""
        self.mute: Callable[[str], bool] = lambda operation: False

    @property
    def incarnation(self) -> str:
        return f"life{self.life}"

    def channel(self, ident: str) -> ari.Channel:
        """The channel as ARI shows it."""
        c = self.channels.get(ident, {"state": "Down", "app_data": "", "exten": ""})
        resumed = c["app_data"].startswith("ari-ha,resume,")
        where = ari.DialplanCEP(
            context="resume" if resumed else "from-trunk", exten=c["exten"], priority=2, app_name="Stasis",
            app_data=c["app_data"],
        )  # fmt: skip
        return ari.Channel(id=ident, name=f"PJSIP/{ident}", state=c["state"], dialplan=where)

    def snapshot(self) -> AriSnapshot:
        """What a reconnect reads."""
        bridges = [
            ari.Bridge(id=b, name=b.rsplit(".", 2)[0], channels=sorted(m)) for b, m in self.bridges.items()
        ]
        return AriSnapshot(
            incarnation=self.incarnation, channels=[self.channel(c) for c in self.channels], bridges=bridges
        )

    def enter(self, app_data: str, exten: str) -> ari.StasisStart:
        """A call comes in and enters the app."""
        ident = f"in-{self.life}-{next(self.numbers)}"
        self.channels[ident] = {
            "state": "Ring",
            "app_data": app_data,
            "exten": exten,
            "music": "",
            "in": True,
        }
        return ari.StasisStart(args=app_data.split(",")[1:], channel=self.channel(ident))

    def destroy(self, ident: str, cause: int = 16, status: int = 0) -> list[Event]:
        """The channel goes away, and what ARI says of it."""
        if ident not in self.channels:
            return []
        shown, ended = self.channel(ident), self.channels[ident]
        del self.channels[ident]
        events: list[Any] = [ari.ChannelHangupRequest(cause=cause, channel=shown)]
        for bridge, members in self.bridges.items():
            if ident in members:
                members.discard(ident)
                events.append(ari.ChannelLeftBridge(bridge=ari.Bridge(id=bridge), channel=shown))
        events.append(ari.StasisEnd(channel=shown))
        if not ended.get("in") and "spies" not in ended:
            events.append(ari.ChannelDestroyed(cause=cause, tech_cause=status, channel=shown))
        return [AriEvent(event=event) for event in events]

    def up(self, ident: str) -> list[Event]:
        """The far end of a dialled channel answered."""
        if ident not in self.channels:
            return []
        self.channels[ident]["state"] = "Up"
        return [AriEvent(event=ari.ChannelStateChange(channel=self.channel(ident)))]

    def perform(self, effect: AriCall) -> tuple[Outcome, list[Event]]:
        """ARI's answer and the events it causes."""
        if self.fail:
            return self.fail.popleft(), []
        p = effect.params
        ident = p.get("channelId", "")
        operation = effect.operation
        if operation.startswith("channels.") and operation not in ("channels.create", "channels.list"):
            if ident not in self.channels:
                return Refused("Channel not found", 404), []
        act = getattr(self, "_" + operation.replace(".", "_"), None)
        return act(p, ident) if act else (Done(None), [])

    def _channels_answer(self, p: Any, ident: str) -> tuple[Outcome, list[Event]]:
        return Done(None), self.up(ident)

    def _channels_startMoh(self, p: Any, ident: str) -> tuple[Outcome, list[Event]]:
        self.channels[ident]["music"] = p["mohClass"]
        return Done(None), []

    def _channels_stopMoh(self, p: Any, ident: str) -> tuple[Outcome, list[Event]]:
        self.channels[ident]["music"] = ""
        return Done(None), []

    def _channels_hangup(self, p: Any, ident: str) -> tuple[Outcome, list[Event]]:
        return Done(None), self.destroy(ident)

    def _channels_continueInDialplan(self, p: Any, ident: str) -> tuple[Outcome, list[Event]]:
        return Done(None), [AriEvent(event=ari.StasisEnd(channel=self.channel(ident)))]

    def _channels_create(self, p: Any, ident: str) -> tuple[Outcome, list[Event]]:
        if ident in self.channels:
            return Refused("exists", 409), []
        self.channels[ident] = {
            "state": "Down",
            "app_data": "ari-ha,dial",
            "exten": "",
            "music": "",
            "dialled": 0,
        }
        return Done(None), [AriEvent(event=ari.StasisStart(args=["dial"], channel=self.channel(ident)))]

    def _channels_snoopChannelWithId(self, p: Any, ident: str) -> tuple[Outcome, list[Event]]:
        snoop = p["snoopId"]
        self.channels[snoop] = {"state": "Up", "app_data": "", "exten": "", "music": "", "spies": ident,
                                "whisper": p["whisper"]}  # fmt: skip
        return Done(None), [AriEvent(event=ari.StasisStart(args=["snoop"], channel=self.channel(snoop)))]

    def _channels_dial(self, p: Any, ident: str) -> tuple[Outcome, list[Event]]:
        self.channels[ident]["dialled"] = 1
        return Done(None), []

    def _channels_list(self, p: Any, ident: str) -> tuple[Outcome, list[Event]]:
        return Done([self.channel(c) for c in self.channels]), []

    def _bridges_list(self, p: Any, ident: str) -> tuple[Outcome, list[Event]]:
        return Done(list(self.snapshot().bridges)), []

    def _bridges_createWithId(self, p: Any, ident: str) -> tuple[Outcome, list[Event]]:
        if p["bridgeId"] in self.bridges:
            return Refused("exists", 409), []
        self.bridges[p["bridgeId"]] = set()
        return Done(None), []

    def _bridges_destroy(self, p: Any, ident: str) -> tuple[Outcome, list[Event]]:
        if self.bridges.pop(p["bridgeId"], None) is None:
            return Refused("Bridge not found", 404), []
        return Done(None), [AriEvent(event=ari.BridgeDestroyed(bridge=ari.Bridge(id=p["bridgeId"])))]

    def _bridges_addChannel(self, p: Any, ident: str) -> tuple[Outcome, list[Event]]:
        members = self.bridges.get(p["bridgeId"])
        if members is None:
            return Refused("Bridge not found", 404), []
        wanted = p["channel"].split(",")
        if any(c not in self.channels for c in wanted):
            return Refused("Channel not found", 400), []
        events: list[Event] = []
        for c in wanted:
            for others in self.bridges.values():
                others.discard(c)
            members.add(c)
            entered = ari.ChannelEnteredBridge(bridge=ari.Bridge(id=p["bridgeId"]), channel=self.channel(c))
            events.append(AriEvent(event=entered))
        return Done(None), events

    def _bridges_removeChannel(self, p: Any, ident: str) -> tuple[Outcome, list[Event]]:
        members = self.bridges.get(p["bridgeId"], set())
        if p["channel"] not in members:
            return Refused("not in it", 422), []
        members.discard(p["channel"])
        return Done(None), []


class Bench:
    """The machine with all it needs, ready to serve."""

    def __init__(
        self,
        agents: tuple[str, ...] = ("1001", "1002"),
        *,
        start: bool = True,
        records: bool = True,
        **queue: Any,
    ) -> None:
        self.records = records
        self.now = 100.0
        self.store = BenchStore()
        self.asterisk = BenchAsterisk()
        self.keys = self.store.keys
        self.sent: list[Any] = []
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.notes: list[Note] = []
        self.replies: dict[str, OperatorReply] = {}
        self.link_up = False
        self.answers_media = True
        self.requests: list[WebRequest] = []
        self.recorder: Callable[[OpenRecording], Outcome | None] = lambda order: Done(("10.0.0.31", 42_000))
        self.recording: dict[str, OpenRecording] = {}
        """What its recorder was told to begin and not to end"""
        self.web: Callable[[WebRequest], Outcome | None] = lambda request: Done(WebAnswer(200))
        self.device_busy: Callable[[str], bool] = lambda device: False
        self.ids = itertools.count(1)
        values: dict[str, Any] = {"wrapup_ms": 1000, "ring_timeout_ms": 4000, **queue}
        self.store.put(self.keys.queue_config("support"), QueueConfigValue(queue="support", **values))
        for agent in agents:
            self.store.put(self.keys.user(agent), UserValue(user=agent, aor=agent, agent=agent))
            binding = BindingValue(aor=agent, contact="sip:x", host="h", port=5060)
            self.store.put(self.keys.binding(agent, "h"), binding)
            idle = AgentValue(
                agent=agent, intent="available", device=agent, logged_in=1.0, idle_since=1.0,
                queues={"support": 0},
            )  # fmt: skip
            self.store.put(self.keys.agent(agent), idle)
        self.machine = self._machine()
        if start:
            self.start()

    def _machine(self) -> NodeMachine:
        config = NodeConfig(
            cluster=CLUSTER,
            node=NODE,
            sip="10.0.0.31:5060",
            edges=((EDGE, "10.0.0.11:5070"),),
            header_key=KEY,
            records=self.records,
        )
        return NodeMachine(config, lambda: f"id{next(self.ids)}", lambda: 0.5)

    def start(self) -> None:
        """Everything comes up."""
        self.post(WallClock(utc_s=UTC0 + self.now))
        self.store_back()
        self.post(self.asterisk.snapshot())
        self.link()

    # --- the shell -----------------------------------------------------------------

    def post(self, *events: Event) -> None:
        """Handles events and all that follows from them now."""
        queue: deque[Event] = deque(events)
        work: deque[Effect] = deque()
        for _ in range(ROUNDS_MAX):
            if queue:
                effects = self.machine.handle(queue.popleft(), self.now)
                self.machine.check()
                work.extend(effects)
            elif work:
                self._perform(work, queue)
            else:
                return
        tail = [f"{note.subject}: {note.text} {dict(note.facts)}" for note in self.notes[-12:]]
        raise AssertionError(f"the bench does not come to rest: {self.asked[-6:]} {tail}")

    def _perform(self, work: deque[Effect], queue: deque[Event]) -> None:
        effect = work.popleft()
        if isinstance(effect, Note):
            self.notes.append(effect)
        elif isinstance(effect, Count):
            pass
        elif isinstance(effect, SendLink):
            self._said(effect, queue)
        elif isinstance(effect, OperatorReply):
            assert effect.request not in self.replies, "answered twice"
            self.replies[effect.request] = effect
        else:
            if isinstance(effect, WebRequest):
                self.requests.append(effect)
                outcome, events = self.web(effect), []
                if outcome is None:
                    return  # whoever waits for it is told by the test, or never
            elif isinstance(effect, OpenRecording):
                self.recording[effect.recording] = effect
                outcome, events = self.recorder(effect), []
                if outcome is None:
                    return
            elif isinstance(effect, CloseRecording):
                self.recording.pop(effect.recording, None)
                outcome, events = Done(), []
            elif isinstance(effect, AriCall):
                self.asked.append((effect.operation, dict(effect.params)))
                outcome, events = self.asterisk.perform(effect)
            else:
                assert isinstance(effect, StoreTxn | StoreRead), effect
                outcome, events = self.store.perform(effect)
                if outcome is None:
                    return
            queue.append(OutcomeOf(effect=effect, outcome=outcome))
            queue.extend(events)
            if not isinstance(outcome, Done):
                for behind in [e for e in work if e.lane is not None and e.lane == effect.lane]:
                    work.remove(behind)
                    queue.append(OutcomeOf(effect=behind, outcome=Refused("lane stopped")))

    def _said(self, effect: SendLink, queue: deque[Event]) -> None:
        if not self.link_up:
            return
        frame = effect.frame
        self.sent.append(frame)
        if isinstance(frame, link.WantMedia) and self.answers_media:
            answer = link.MediaIs(frame.call, frame.epoch, frame.state, frame.request)
            queue.append(LinkReceived(peer=EDGE, frame=answer))
        elif isinstance(frame, link.ClaimAgent):
            free = not self.device_busy(f"device:{frame.device}")
            answer = link.ClaimAnswer(frame.agent, frame.attempt, free, frame.attempt)
            queue.append(LinkReceived(peer=EDGE, frame=answer))
        elif isinstance(frame, link.EndLeg):
            for ident in self.channels_of(frame.call, frame.leg, frame.epoch):
                queue.extend(self.asterisk.destroy(ident))

    def sleep(self, seconds: float) -> None:
        """Time passes; deadlines fire when they come."""
        end = self.now + seconds
        for _ in range(ROUNDS_MAX):
            due = self.machine.deadline()
            if due is None or due > end:
                break
            self.now = max(self.now + 0.001, due)
            self.post(DeadlineReached())
        self.now = max(self.now, end)
        self.post(WallClock(utc_s=UTC0 + self.now))

    # --- the store, the link, Asterisk ---------------------------------------------

    def store_away(self) -> None:
        self.store.up = False
        self.post(StoreReach(reachable=False, why="away"))

    def store_back(self, families: Sequence[str] = FAMILIES) -> None:
        self.store.up = True
        self.post(StoreReach(reachable=True))
        self.read(*families)
        self.post(LeaseState(held=True, until=self.now + 10, lease=1))

    def read(self, *families: str) -> None:
        """These families of keys have been read."""
        self.post(*(self.store.snapshot(family) for family in families))

    def link(self, calls: dict[str, link.CallAtEdge] | None = None, revision: int = 7) -> None:
        """The edge's link comes up; a life of its own has a ``revision`` of its own."""
        self.link_up = True
        self.post(LinkUp(peer=EDGE))
        self.frame(link.EdgeHello(edge=EDGE, vip="v1", edge_revision=revision))
        self.frame(link.EdgeCalls(calls=calls or {}))

    def link_down(self) -> None:
        self.link_up = False
        self.post(LinkDown(peer=EDGE, reason="closed"))

    def frame(self, frame: link.Frame) -> None:
        """The edge says something."""
        self.post(LinkReceived(peer=EDGE, frame=frame))

    def restart_app(self, families: Sequence[str] = FAMILIES, sees_asterisk: bool = True) -> None:
        """The app is killed and starts again; Asterisk and the store stay. Of the store it has read
        ``families``; it may not have heard yet what Asterisk has."""
        self.link_up = False
        self.asterisk.fail.clear()
        self.machine = self._machine()
        self.post(WallClock(utc_s=UTC0 + self.now))
        if self.store.up:
            self.store_back(families)
        if sees_asterisk:
            self.post(self.asterisk.snapshot())

    def asterisk_dies(self) -> None:
        """Its process is gone, and everything in it."""
        self.asterisk.channels.clear()
        self.asterisk.bridges.clear()
        self.asterisk.life += 1
        self.post(AriDown(reason="process gone", process_gone=True))

    def asterisk_back(self) -> None:
        self.post(self.asterisk.snapshot())

    # --- calls ---------------------------------------------------------------------

    def token(self, call: str, leg: str = "c", epoch: str = "7.1", kind: str = "trunk", **more: Any) -> str:
        more = {"did": "6000", "caller": "+49301", **more}
        return sign(LegToken(kind=kind, call=call, leg=leg, epoch=epoch, **more), KEY)

    def own(self, call: str, node: str = NODE, epoch: str = "7.1") -> None:
        """The edge writes who serves the call."""
        owner = OwnerValue(call=call, node=node, epoch=epoch, edge=EDGE, vip="v1")
        kv = self.store.put(self.keys.owner(call), owner)
        if self.store.up:
            self.post(StoreChanged(key=kv.key, value=kv, revision=kv.mod_revision))

    def disown(self, call: str) -> None:
        """The edge deletes the keys of an ended call; while the store is away, later."""
        for key in (self.keys.owner(call), self.keys.record(call), self.keys.media(call)):
            if self.store.data.pop(key, None) is not None and self.store.up:
                self.store.revision += 1
                self.post(StoreChanged(key=key, value=None, revision=self.store.revision))

    def trunk(
        self, call: str = "k1", verb: str = "queue,support", epoch: str = "7.1", own: bool = True
    ) -> str:
        """A carrier's call; returns its channel."""
        if own:
            self.own(call, epoch=epoch)
        start = self.asterisk.enter(f"ari-ha,trunk,{self.token(call, epoch=epoch)},{verb}", "6000")
        self.post(AriEvent(event=start))
        return start.channel.id

    def resume(
        self, call: str, epoch: str, facts: dict[str, str], legs: list[str] | None = None,
        ended: dict[str, str] | None = None, **more: Any,
    ) -> dict[str, str]:  # fmt: skip
        """The edge INVITEs us for the living legs of a moved call."""
        channels = {}
        for leg in legs if legs is not None else list(facts):
            token = self.token(call, leg, epoch, "resume", facts=facts, ended=ended or {}, **more)
            start = self.asterisk.enter(f"ari-ha,resume,{token}", "6000")
            channels[leg] = start.channel.id
            self.post(AriEvent(event=start))
        return channels

    def channels_of(self, call: str, leg: str, epoch: str) -> list[str]:
        """Channels in Asterisk of a leg under an epoch."""
        found = []
        for ident, c in self.asterisk.channels.items():
            if ident == f"{call}.{leg}.{epoch}":
                found.append(ident)
            elif c.get("in"):
                known = self.machine.core.by_channel.get(ident)
                served = self.machine.core.calls.get(call)
                if known == (call, leg) and served is not None and str(served.epoch) == epoch:
                    found.append(ident)
        return found

    def dialled(self) -> list[str]:
        """Channels we dialled that ring."""
        return [c for c, v in self.asterisk.channels.items() if v.get("dialled") and v["state"] != "Up"]

    def target(self, channel: str) -> str:
        """Whom a channel of ours dials."""
        return self.token_of(channel).target

    def token_of(self, channel: str) -> LegToken:
        """What the edge is told of a channel of ours."""
        created = [p for p in self.operations("channels.create") if p["channelId"] == channel]
        return verify(created[-1]["variables"]["PJSIP_HEADER(add,X-ARI-HA-Token)"], KEY)

    def ring(self, channel: str) -> None:
        call, leg, epoch = _parts(channel)
        self.frame(link.LegRinging(call, leg, epoch))

    def pick_up(self, channel: str) -> None:
        """The agent's phone is answered: the edge answers the node and says so."""
        call, leg, epoch = _parts(channel)
        self.post(*self.asterisk.up(channel))
        self.frame(link.LegAnswered(call, leg, epoch))

    def gone(self, call: str, leg: str, epoch: str = "7.1", by: str = "phone", status: int = 0) -> None:
        """A phone ended a leg: the edge says so and ends the node's dialog."""
        channels = self.channels_of(call, leg, epoch)
        self.frame(link.LegGone(call, leg, epoch, cause="16", status=status, by=by))
        for channel in channels:
            self.post(*self.asterisk.destroy(channel, 16, status))

    def talk(self, call: str = "k1") -> tuple[str, str]:
        """A call whose agent has answered: the two channels."""
        customer = self.trunk(call)
        (agent,) = self.dialled()
        self.ring(agent)
        self.pick_up(agent)
        return customer, agent

    # --- looking -------------------------------------------------------------------

    def said(self, kind: type, **facts: Any) -> list[Any]:
        """Frames of a kind the node sent, in order."""
        return [
            f for f in self.sent if isinstance(f, kind) and all(getattr(f, n) == v for n, v in facts.items())
        ]

    def hears(self, channel: str) -> str:
        """What the channel hears in Asterisk: music, people, nothing."""
        if self.asterisk.channels[channel]["music"]:
            return "music"
        return (
            "people"
            if any(channel in m and len(m) > 1 for m in self.asterisk.bridges.values())
            else "nothing"
        )

    def agent(self, agent: str = "1001") -> AgentValue:
        return decode(self.store.data[self.keys.agent(agent)].value, AgentValue)

    def record(self, call: str = "k1") -> RecordValue | None:
        kv = self.store.data.get(self.keys.record(call))
        return decode(kv.value, RecordValue) if kv else None

    def waiting(self) -> list[str]:
        return sorted(k.rpartition("/")[2] for k in self.store.data if "/waiting/" in k)

    def ask(self, verb: str, **args: Any) -> OperatorReply:
        request = f"r{next(self.ids)}"
        self.post(OperatorRequest(request=request, verb=verb, args=args))
        return self.replies[request]

    def ask_later(self, verb: str, **args: Any) -> str:
        """Asks without waiting for the answer."""
        request = f"r{next(self.ids)}"
        self.post(OperatorRequest(request=request, verb=verb, args=args))
        return request

    @property
    def asterisk_up(self) -> bool:
        """Whether the node thinks so."""
        return self.machine.context.ari_state.up

    def operations(self, name: str) -> list[dict[str, Any]]:
        return [params for operation, params in self.asked if operation == name]


def _parts(channel: str) -> tuple[str, str, str]:
    call, leg, revision, n = channel.rsplit(".", 3)
    return call, leg.partition("~")[0], str(Epoch.parse(f"{revision}.{n}"))


LOST = Unknown("no reply within 2 s")
