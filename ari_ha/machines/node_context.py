"""What all parts of the node machine share: the effects being gathered, timers,
continuations that wait for an outcome, and the links."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ari_ha.core.machine import DEFAULT_EFFECT_LIMIT_S, Count, Done, Effect, Note, Outcome, OutcomeOf
from ari_ha.core.ports.ari import AriCall, SetMaintenance
from ari_ha.core.ports.link import SendLink
from ari_ha.core.ports.recording import CloseRecording, OpenRecording
from ari_ha.core.ports.store import StoreRead, StoreTxn
from ari_ha.core.ports.web import WebRequest
from ari_ha.core.utc import Utc
from ari_ha.machines.node_config import NodeConfig
from ari_ha.wire.keyspace import Keys
from ari_ha.wire.link import Asked, EdgeCalls

Then = Callable[[Outcome], None]
ARI_LIMIT_S = 2.0
STORE_LIMIT_S = 2.0


@dataclass(slots=True)
class EdgeLink:
    """One edge that has a link to us."""

    peer: str
    vip: str = ""
    sip: str = ""
    revision: int = 0
    """By which it serves, or served; 0: it stands by."""
    hello: bool = False
    calls: EdgeCalls | None = None
    """Its last list of the calls we serve; None until it has sent one."""
    calls_at: float = 0.0
    compared: bool = False
    """Whether that list has been compared with what is here: it is true only for the
    moment it was made, and is used once."""
    asked: list[Asked] = field(default_factory=list)
    """What phones have asked for in calls that are not known here before that"""
    opened: float = 0.0


@dataclass(slots=True)
class AriState:
    """What is known of our Asterisk."""

    up: bool = False
    incarnation: str = ""
    missing: tuple[str, ...] = ()
    trouble: str = "not connected yet"
    word: str = "gone"
    """For people: up, silent, gone."""
    adopting: bool = False
    """After our own start: calls found in Asterisk are still being rebuilt."""


class NodeContext:
    """Shared by the node's parts; owned by `NodeMachine`."""

    def __init__(self, config: NodeConfig, new_id: Callable[[], str], rand: Callable[[], float]) -> None:
        self.config = config
        self.timings = config.timings
        self.keys = Keys(config.cluster)
        self.new_id = new_id
        self.rand = rand
        self.now = 0.0
        self.cause = ""
        self._utc = Utc()
        self.ari_state = AriState()
        self.store_ok = False
        self.store_heard = False
        """Whether it is known if the store is reachable: not in the first moments of a process"""
        self.store_since = 0.0
        """Since when the store is reachable"""
        self.links: dict[str, EdgeLink] = {}
        self.replaced: set[str] = set()
        """Edges that are connected though another has taken their address: nothing they say counts"""
        self._actives: dict[str, tuple[int, str]] = {}
        """Address -> the newest revision of its key that we have heard of, and whose it is"""
        self._out: list[Effect] = []
        self._then: dict[str, Then] = {}
        self._serial = 0
        self._timers: list[tuple[float, int, str]] = []
        self._armed: dict[str, tuple[int, Callable[[], None]]] = {}

    @property
    def utc(self) -> float:
        """UTC seconds now; 0 before the first word about the time."""
        return self._utc.at(self.now)

    @property
    def stepped_clock(self) -> float | None:
        """What the wall clock says, in UTC seconds, if it has ever stepped."""
        return self._utc.wall(self.now) if self._utc.has_stepped else None

    def wall_clock(self, utc_s: float) -> None:
        """What the wall clock says now."""
        what, by_s = self._utc.told(utc_s, self.now)
        if what:
            self.note("clock", what, level="warning", by_s=f"{by_s:+.3f}")

    @property
    def me(self) -> str:
        """``name#incarnation``."""
        return f"{self.config.node}#{self.ari_state.incarnation}"

    # --- effects -------------------------------------------------------------------

    def emit(self, effect: Effect) -> None:
        """Adds an effect to the answer of the event being handled."""
        self._out.append(effect)

    def extend(self, effects: list[Effect]) -> None:
        """Adds effects another machine decided."""
        self._out.extend(effects)

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

    def _tag(self, then: Then) -> str:
        self._serial += 1
        tag = f"node:{self._serial}"
        self._then[tag] = then
        return tag

    def ari(self, lane: str, operation: str, params: Mapping[str, Any], then: Then | None = None) -> None:
        """One ARI operation. Without ``then``: its outcome changes nothing."""
        self.emit(
            AriCall(
                lane=lane,
                cause=self.cause,
                limit_s=ARI_LIMIT_S,
                operation=operation,
                params=dict(params),
                tag=self._tag(then) if then else "",
            )
        )

    def command(self, effect: SetMaintenance | OpenRecording | CloseRecording, then: Then) -> None:
        """Something ARI has no operation for."""
        self.emit(replace(effect, cause=self.cause, tag=self._tag(then)))

    def txn(self, lane: str, then: Then, **parts: Any) -> None:
        """One etcd transaction."""
        self.count("node_store_txns")
        self.emit(StoreTxn(lane=lane, cause=self.cause, limit_s=STORE_LIMIT_S, tag=self._tag(then), **parts))

    def read(self, lane: str, key: str, then: Then, limit_s: float = DEFAULT_EFFECT_LIMIT_S) -> None:
        """One linearizable read."""
        self.emit(StoreRead(lane=lane, cause=self.cause, limit_s=limit_s, key=key, tag=self._tag(then)))

    def web(self, lane: str, url: str, key: str, body: bytes, limit_s: float, then: Then) -> None:
        """One request to a system of the site."""
        self.emit(
            WebRequest(
                lane=lane, cause=self.cause, limit_s=limit_s, url=url, key=key, body=body, tag=self._tag(then)
            )
        )

    def outcome(self, event: OutcomeOf) -> None:
        """Gives an outcome to whoever waits for it."""
        then = self._then.pop(getattr(event.effect, "tag", ""), None)
        if then:
            then(event.outcome)
        elif not isinstance(event.outcome, Done):
            self.count("node_effects_not_done", kind=type(event.effect).__name__)

    def hang_up(self, channel: str, cause: int = 16) -> None:
        """Asks Asterisk to end a channel; 404 means it has."""
        self.ari(f"hangup/{channel}", "channels.hangup", {"channelId": channel, "reason_code": str(cause)})

    # --- links ---------------------------------------------------------------------

    def active_is(self, vip: str, revision: int, edge: str) -> None:
        """Etcd or the edge itself says whose the address is. Who had it by an older revision has stood
        still, or was cut off, and is back before anybody has told him: he knows of no end and no answer
        since, and his list of calls would end people who talk."""
        self._actives[vip] = newest, active = max(self._actives.get(vip, (0, "")), (revision, edge))
        for one in list(self.links.values()):
            if one.vip == vip and one.peer != active and 0 < one.revision < newest:
                del self.links[one.peer]
                self.replaced.add(one.peer)
                self.note("node", "an edge that was replaced", level="warning", edge=one.peer, active=active)

    def revision_of(self, vip: str) -> int:
        """The newest revision of an address's key that we have heard of; 0: none."""
        return self._actives.get(vip, (0, ""))[0]

    def etcd_read(self, revision: int) -> None:
        """Whose addresses are has been read whole. Who has them by a newer revision has them in an etcd that
        was restored from a backup since."""
        self._actives = {vip: known for vip, known in self._actives.items() if known[0] <= revision}

    def say(self, frame: Any, vip: str = "") -> bool:
        """Sends a frame about a call to the edges that may serve it (all of ``vip``'s
        pair; all of them while the pair is unknown). False: no link is up."""
        peers = [link.peer for link in self.links.values() if not vip or not link.vip or link.vip == vip]
        for peer in peers:
            self.emit(SendLink(peer=peer, frame=frame))
        return bool(peers)

    def tell(self, peer: str, frame: Any) -> None:
        """Sends a frame to one edge."""
        if peer in self.links:
            self.emit(SendLink(peer=peer, frame=frame))

    # --- timers --------------------------------------------------------------------

    def at(self, name: str, when: float, act: Callable[[], None]) -> None:
        """Calls ``act`` at ``when``; a timer of the same name is replaced."""
        self._serial += 1
        self._armed[name] = (self._serial, act)
        heapq.heappush(self._timers, (when, self._serial, name))

    def after(self, name: str, delay_s: float, act: Callable[[], None]) -> None:
        """Calls ``act`` after ``delay_s``; a timer of the same name is replaced."""
        self.at(name, self.now + delay_s, act)

    def armed(self, name: str) -> bool:
        """Whether the timer is set."""
        return name in self._armed

    def cancel(self, name: str) -> None:
        """Forgets the timer."""
        self._armed.pop(name, None)

    def cancel_all(self, prefix: str) -> None:
        """Forgets every timer whose name begins so."""
        for name in [name for name in self._armed if name.startswith(prefix)]:
            del self._armed[name]

    def deadline(self) -> float | None:
        """The earliest timer."""
        while self._timers and self._armed.get(self._timers[0][2], (0,))[0] != self._timers[0][1]:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def fire(self) -> None:
        """Runs every timer that is due."""
        while self._timers and self._timers[0][0] <= self.now:
            _, serial, name = heapq.heappop(self._timers)
            armed = self._armed.get(name)
            if armed and armed[0] == serial:
                del self._armed[name]
                armed[1]()
