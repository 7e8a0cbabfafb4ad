"""The edge guard: which of two hosts has the pair's addresses.

etcd's key ``vips/<vip>`` names the owner; its mod_revision is the fencing token. The
owner keeps the addresses while it has a proof that they are still its own: a heartbeat
of the peer that claims nothing newer, or etcd's own word. A standby takes them by
compare-and-swap when the owner is silent or asks for it. Everything done about it is
idempotent, and repeated until it is confirmed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ari_ha.core.machine import (
    Count,
    DeadlineReached,
    Done,
    Effect,
    Event,
    Instant,
    InvariantBroken,
    Note,
    OutcomeOf,
)
from ari_ha.core.ports.guard import (
    AddressesDown,
    AddressesUp,
    AnnounceAddresses,
    CloseFence,
    OpenFence,
    PairWord,
    RelayActive,
    RelayClean,
    SendBeat,
    TellEdge,
)
from ari_ha.core.ports.media import MediaReach
from ari_ha.core.ports.operator import OperatorReply, OperatorRequest
from ari_ha.core.ports.probe import WallClock
from ari_ha.core.ports.store import (
    Compare,
    KeyValue,
    LeaseState,
    Put,
    StoreChanged,
    StoreReach,
    StoreRead,
    StoreSnapshot,
    StoreTxn,
    TxnResult,
)
from ari_ha.machines.guard_config import ANNOUNCE_AT_S, GuardConfig
from ari_ha.machines.guard_peer import NEVER, Peer
from ari_ha.machines.guard_view import guard_view
from ari_ha.wire.beat import Beat, EdgeWord, RoleWord
from ari_ha.wire.keyspace import BadValue, GuardValue, Keys, VipValue, decode, encode

FAMILIES = ("vips", "edges", "guards")
"""Prefixes the process mirrors for this machine."""
STANDBY, ACTIVE = "standby", "active"
SURE, DOUBT, LOST = "sure", "doubt", "lost"
ROLE_WORDS_EVERY_BEATS = 4


class GuardMachine:
    """One guard."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.timings = config.timings
        self.keys = Keys(config.cluster)
        self.role = STANDBY
        self.revision = 0
        """The revision the addresses are held by; 0 while standing by."""
        self.peer = Peer()
        self.vip = VipValue(edge="", since=0.0)
        self.vip_revision = 0
        self.conflict = ""
        self._seen: set[str] = set()
        self._edges: set[str] = set()
        self._guards: set[str] = set()
        self._utc_offset_s: float | None = None
        self._out: list[Effect] = []
        self._n = 0
        self._next_beat: float | None = None
        self._last_at: float | None = None
        self._evidence_at = NEVER
        self._doubt_since: float | None = None
        self._floor_n = 0
        """Only a peer's heartbeat that has heard this number of ours is a proof"""
        self._no_leader = False
        self._claiming = False
        self._claim_sent = NEVER
        self._edge_process = ""
        self.edge_at = NEVER
        self.edge_warm = False
        self.relay = False
        self._relay_started = ""
        self._unfit_since: float | None = None
        self._yield_until = NEVER
        self.addresses = "unknown"
        """up, down or unknown: what the kernel last confirmed"""
        self._address_asked = False
        self._relay_told = False
        self._relay_asked = False
        self.clean = False
        self._announce_at: list[float] = []
        self._care_at = NEVER
        self._retry_at = NEVER
        self._gave_up = False
        """This life of ours has let go of the addresses once: the edge must have, too"""
        self._routes: dict[type[Event], Callable[[Any, float], None]] = {
            PairWord: self._word,
            OutcomeOf: self._outcome,
            StoreSnapshot: self._snapshot,
            StoreChanged: lambda event, now: self._stored(event.key, event.value, now),
            StoreReach: self._reach,
            LeaseState: self._lease,
            MediaReach: self._media,
            OperatorRequest: self._operator,
        }

    # --- the machine ---------------------------------------------------------------

    def handle(self, event: Event, now: Instant) -> Sequence[Effect]:
        """One event in, what to do out."""
        if self._last_at is None:
            self._begin(now)
        elif now - self._last_at > self.timings.fence_ttl_s - self.timings.beat_every_s:
            self._stood_still(now - self._last_at, now)
        self._last_at = now
        if isinstance(event, WallClock):
            self._utc_offset_s = event.utc_s - now
        elif route := self._routes.get(type(event)):
            route(event, now)
        elif not isinstance(event, DeadlineReached) and type(event).__name__ != "ShellStall":
            self._out.append(Count(name="guard_events_unknown", labels=(("kind", type(event).__name__),)))
        if self._next_beat is not None and now >= self._next_beat:
            self._tick(now)
        self._claim_if_due(now)
        out, self._out = self._out, []
        return out

    def deadline(self) -> Instant | None:
        """The next heartbeat, and the instant from which the peer counts as silent."""
        look = self.peer.next_look(self.timings.detect_s)
        if self.role == STANDBY and self._next_beat is not None and (self._last_at or 0.0) < look:
            return min(self._next_beat, look)
        return self._next_beat

    def check(self) -> None:
        """Active exactly while there is a revision to be active by."""
        if (self.role == ACTIVE) != bool(self.revision):
            raise InvariantBroken(f"{self.role} with revision {self.revision}")

    def _begin(self, now: float) -> None:
        """What an earlier life of ours left is taken away first."""
        self._next_beat = now
        self.peer.passive_since = now
        self.peer.at = now + self.timings.start_wait_s - self.timings.detect_s
        self._out.append(CloseFence())
        self._addresses_down()

    def _stood_still(self, lag_s: float, now: float) -> None:
        """We were late ourselves: the fence has closed, silence proves nothing, and what
        waits to be read may be old. Proofs from before do not count any more."""
        self._note("stood still", lag_ms=round(lag_s * 1000))
        self.peer.at = max(self.peer.at, now)
        self._evidence_at = NEVER
        self._floor_n = self._n + 1
        self._doubt_since = now
        self._no_leader = False

    def _tick(self, now: float) -> None:
        timings = self.timings
        while self._next_beat is not None and self._next_beat <= now:
            self._next_beat += timings.beat_every_s
            if self._next_beat < now - 1.0:
                self._next_beat = now
        self._fitness(now)
        if self.role == ACTIVE:
            self._hold(now)
        if self.role == ACTIVE:
            self._look_after(now)
        else:
            self._stand_by(now)
        self._beat(now)
        if self._n % ROLE_WORDS_EVERY_BEATS == 0:
            self._tell_edge()

    def _beat(self, now: float) -> None:
        config, peer = self.config, self.peer
        self._n += 1
        self._out.append(
            SendBeat(
                beat=Beat(
                    vip=config.vip,
                    edge=config.edge,
                    process=config.process,
                    n=self._n,
                    heard=peer.n,
                    heard_process=peer.process,
                    active=self.role == ACTIVE,
                    revision=self.revision,
                    fit=self.fit(now),
                    yields=self._yields(now),
                )
            )
        )

    # --- what we know --------------------------------------------------------------

    def fit(self, now: float) -> bool:
        """Our edge process answers and has the calls, and the relay answers."""
        return self.edge_warm and now - self.edge_at <= self.timings.edge_silence_s and self.relay

    def peer_fresh(self, now: float) -> bool:
        """Whether the peer has been heard lately."""
        return now - self.peer.at <= self.timings.detect_s

    def _fitness(self, now: float) -> None:
        if self.fit(now):
            self._unfit_since = None
        elif self._unfit_since is None:
            self._unfit_since = now

    def _unfit_for(self, now: float) -> float:
        return 0.0 if self._unfit_since is None else now - self._unfit_since

    def _yields(self, now: float) -> bool:
        """The peer shall take over: somebody asked, or we are half dead and it is not."""
        if self.role != ACTIVE or not self.peer_fresh(now) or not self.peer.fit:
            return False
        return now < self._yield_until or self._unfit_for(now) > self.timings.yield_after_s

    # --- words ---------------------------------------------------------------------

    def _word(self, event: PairWord, now: float) -> None:
        word = event.word
        if isinstance(word, Beat):
            self._beat_heard(word, now)
        elif isinstance(word, EdgeWord) and word.edge == self.config.edge:
            changed = word.process != self._edge_process
            self._edge_process, self.edge_at, self.edge_warm = word.process, now, word.warm
            if changed or (self.role == ACTIVE and word.revision != self.revision):
                self._tell_edge()

    def _beat_heard(self, beat: Beat, now: float) -> None:
        config, peer = self.config, self.peer
        if beat.vip != config.vip or beat.process == config.process:
            return
        if beat.edge == config.edge:
            if not self.conflict:
                self.conflict = f"another guard calls itself {config.edge}"
                self._note("conflict: no address will be taken", level="error", why=self.conflict)
            return
        if beat.edge != config.peer:
            return
        known = peer.process
        if not peer.hear(beat, now):
            return
        if peer.process != known:
            self._note("peer heard", peer=beat.edge, life=beat.process, active=beat.active)
        if self.role != ACTIVE:
            return
        if beat.active and beat.revision > self.revision:
            self._step_down("the peer is active by a newer revision", now)
        elif self._floor_n == 0 or (beat.heard_process == config.process and beat.heard >= self._floor_n):
            self._proven(now)

    def _proven(self, at: float) -> None:
        self._evidence_at = max(self._evidence_at, at)
        if self._doubt_since is not None and self.role == ACTIVE:
            # every packet waits for it, so not only with the next heartbeat
            self._out.append(OpenFence(ttl_s=self.timings.fence_ttl_s))
        self._doubt_since, self._floor_n = None, 0

    # --- etcd ----------------------------------------------------------------------

    def _snapshot(self, event: StoreSnapshot, now: float) -> None:
        family = (self.keys.split(event.prefix) or ("",))[0]
        self._seen.add(family)
        if family == "edges":
            self._edges.clear()
        elif family == "guards":
            self._guards.clear()
        elif family == "vips" and self.keys.vip(self.config.vip) not in event.items:
            self._vip_is(None, now)
        for key, item in event.items.items():
            self._stored(key, item, now)

    def _stored(self, key: str, item: KeyValue | None, now: float) -> None:
        parts = self.keys.split(key)
        if parts[:1] == ("edges",):
            (self._edges.add if item else self._edges.discard)(parts[1])
        elif parts[:1] == ("guards",):
            (self._guards.add if item else self._guards.discard)(parts[1])
        elif key == self.keys.vip(self.config.vip):
            self._vip_is(item, now)

    def _vip_is(self, item: KeyValue | None, now: float) -> None:
        """The key as somebody saw it; an older sight than ours changes nothing."""
        revision = item.mod_revision if item else 0
        if item and revision < self.vip_revision:
            return
        try:
            value = decode(item.value, VipValue, item.key) if item else VipValue(edge="", since=0.0)
        except BadValue as error:
            self._note("unreadable key of the address", level="error", error=error)
            value = VipValue(edge="", since=0.0)
        if revision != self.vip_revision and not self.peer.active:
            self.peer.passive_since = now  # whoever has just been named gets time to hold it
        self.vip, self.vip_revision = value, revision
        if self.role == ACTIVE and revision > self.revision and value.edge != self.config.edge:
            self._step_down(f"etcd names {value.edge or 'nobody'}", now)

    def _lease(self, event: LeaseState, now: float) -> None:
        if event.held:
            config = self.config
            value = GuardValue(
                edge=config.edge,
                vip=config.vip,
                process=config.process,
                http=config.http,
                version=config.version,
            )
            put = Put(self.keys.guard(config.edge), encode(value), leased=True)
            self._out.append(StoreTxn(lane="guard", puts=(put,), tag="guard"))

    def _reach(self, event: StoreReach, now: float) -> None:
        self._no_leader = event.no_leader and not event.reachable

    def _nobody_can_take(self) -> bool:
        """etcd cannot commit for anybody, or no standby was registered when it last could
        be read: then the addresses are kept whatever is silent."""
        return self._no_leader or ("edges" in self._seen and self.config.peer not in self._edges)

    # --- holding -------------------------------------------------------------------

    def sureness(self, now: float) -> str:
        """Whether an owner may go on: `SURE`, `DOUBT` (keeps still) or `LOST`."""
        timings = self.timings
        if now - self._evidence_at < timings.hold_s:
            return SURE
        doubting = self._doubt_since is not None
        if doubting and now - self._doubt_since < timings.doubt_s:  # type: ignore[operator]
            return DOUBT
        if self._nobody_can_take():
            return SURE
        if doubting and now - self._doubt_since < timings.hold_s:  # type: ignore[operator]
            return DOUBT
        return LOST

    def _hold(self, now: float) -> None:
        sure = self.sureness(now)
        if sure == LOST:
            self._step_down("neither the peer nor etcd is heard", now)
            return
        if sure == SURE:
            self._out.append(OpenFence(ttl_s=self.timings.fence_ttl_s))
        if now - self._evidence_at > self.timings.detect_s / 2:
            self._out.append(
                StoreRead(
                    limit_s=self.timings.call_limit_s, key=self.keys.vip(self.config.vip), tag=f"proof/{now}"
                )
            )

    def _look_after(self, now: float) -> None:
        """Addresses, announcements and relay, until each is confirmed."""
        if now >= self._care_at:
            self._care_at = now + self.timings.care_every_s
            self.addresses = "unknown"
        if self.addresses != "up":
            self._addresses_up()
        elif self._announce_at and now >= self._announce_at[0]:
            while self._announce_at and now >= self._announce_at[0]:
                self._announce_at.pop(0)
            self._announce_at = self._announce_at or [now + self.timings.announce_every_s]
            self._out.append(AnnounceAddresses())
        if not self._relay_told and not self._relay_asked:
            self._relay_asked = True
            self._out.append(RelayActive(lane="relay", limit_s=1.0))

    def _stand_by(self, now: float) -> None:
        if self.addresses != "down":
            self._addresses_down()
        peer = self.peer
        settled = peer.active and now - peer.active_since > self.timings.clean_after_s
        if not self.clean and not self._relay_asked and settled and self.peer_fresh(now):
            self._relay_asked = True
            self._out.append(RelayClean(lane="relay", limit_s=5.0))

    def _addresses_up(self) -> None:
        if not self._address_asked:
            self._address_asked = True
            self._out.append(AddressesUp(lane="addresses"))

    def _addresses_down(self) -> None:
        if not self._address_asked:
            self._address_asked = True
            self._out.append(AddressesDown(lane="addresses"))

    def _tell_edge(self) -> None:
        if self._edge_process:
            serves = self.role == ACTIVE and self.vip.process == self._edge_process
            word = RoleWord(
                edge=self.config.edge,
                process=self._edge_process,
                revision=self.revision if serves else 0,
                after=self.vip_revision if self._gave_up or self.vip.edge != self.config.edge else 0,
            )
            self._out.append(TellEdge(word=word))

    # --- taking --------------------------------------------------------------------

    def reason_to_claim(self, now: float) -> str:
        """Why the addresses should be taken now; empty: they should not."""
        config, peer, timings = self.config, self.peer, self.timings
        if self.conflict or self._utc_offset_s is None or self._seen < set(FAMILIES):
            return ""
        if config.edge not in self._edges or not self._edge_process:
            return ""  # an edge that was never there cannot serve, and etcd would refuse
        if self.role == ACTIVE:
            alive = now - self.edge_at <= timings.edge_silence_s and self.edge_warm
            other = self.vip.process != self._edge_process
            return "a new life of our edge process" if alive and other else ""
        silent_s = now - peer.at
        waits_s = 0.0 if self.fit(now) else timings.unfit_wait_s
        holder, fresh = self.vip.edge, silent_s <= timings.detect_s
        if fresh and peer.active and not (peer.yields and self.fit(now)):
            return ""
        if fresh and peer.active:
            return "the peer asks"
        if holder in ("", config.edge):
            return "it is ours" if holder and self._unfit_for(now) <= waits_s else self._vacant(now, waits_s)
        if holder == config.peer and not fresh:
            return self._silence(silent_s, waits_s)
        if holder == config.peer:
            waited = self.fit(now) and now - peer.passive_since > timings.vacant_wait_s
            return "the peer lives and does not hold it" if waited else ""
        return "" if holder in self._edges else "its edge is gone"

    def _silence(self, silent_s: float, waits_s: float) -> str:
        """Silence is a death only of a peer that was heard since it took the address: where
        heartbeats never arrive it may well live, and its leased key is looked at."""
        if silent_s <= self.timings.detect_s + waits_s:
            return ""
        if self.peer.active and self.peer.revision >= self.vip_revision:
            return f"the peer is silent for {silent_s * 1000:.0f} ms"
        return "" if self.config.peer in self._guards else "the peer's guard is gone"

    def _vacant(self, now: float, waits_s: float) -> str:
        return "nobody holds it" if waits_s == 0.0 or self._unfit_for(now) > waits_s else ""

    def _claim_if_due(self, now: float) -> None:
        unread = self.peer.just_silent(now, self.timings.detect_s)
        if self._claiming or now < self._retry_at or unread:
            return
        why = self.reason_to_claim(now)
        if not why:
            return
        config = self.config
        self._claiming, self._claim_sent = True, now
        self._retry_at = now + self.timings.beat_every_s
        key = self.keys.vip(config.vip)
        since = now + (self._utc_offset_s or 0.0)
        value = VipValue(edge=config.edge, since=since, process=self._edge_process)
        self._note("claims the address", why=why, over=self.vip_revision)
        self._out.append(
            StoreTxn(
                lane="claim",
                limit_s=self.timings.call_limit_s,
                compares=(Compare(key, self.vip_revision), Compare(self.keys.edge(config.edge), 0, ">")),
                puts=(Put(key, encode(value)),),
                tag=self._edge_process,
            )
        )

    def _claimed(self, event: OutcomeOf, now: float) -> None:
        self._claiming = False
        outcome, process = event.outcome, event.effect.tag  # type: ignore[attr-defined]
        result = outcome.value if isinstance(outcome, Done) else None
        if not isinstance(result, TxnResult):
            return  # nobody answered, or perhaps it was done: asked again, and our own name found is a yes
        if result.succeeded:
            put = event.effect.puts[0]  # type: ignore[attr-defined]
            self._vip_is(KeyValue(put.key, put.value, result.revision), now)
        else:
            key = self.keys.vip(self.config.vip)
            found = next((item for item in result.current if item.key == key), None)
            self._vip_is(found, now)
            if not any(item.key == self.keys.edge(self.config.edge) for item in result.current):
                self._edges.discard(self.config.edge)
        if self.vip.edge == self.config.edge and self.vip.process == process:
            self._activate(now)

    def _activate(self, now: float) -> None:
        if self.vip_revision == self.revision:
            return
        was, self.role, self.revision = self.role, ACTIVE, self.vip_revision
        self._proven(self._claim_sent)
        self._note("active", revision=self.revision, renewed=was == ACTIVE)
        if was != ACTIVE:
            self._out.append(Count(name="guard_takeovers"))
            self._out.append(OpenFence(ttl_s=self.timings.fence_ttl_s))
            self._yield_until = NEVER
            self.addresses, self._relay_told, self.clean = "unknown", False, False
            self._care_at = now + self.timings.care_every_s
            self._announce_at = [now + wait for wait in ANNOUNCE_AT_S]
            self._look_after(now)
            self._beat(now)
        self._tell_edge()

    def _step_down(self, why: str, now: float) -> None:
        self._gave_up = True
        self._note("steps down", level="warning", why=why, revision=self.revision)
        self._out.append(Count(name="guard_step_downs"))
        self.role, self.revision, self._yield_until = STANDBY, 0, NEVER
        self._evidence_at, self.clean, self.addresses = NEVER, False, "unknown"
        self._out.append(CloseFence())
        self._addresses_down()
        self._tell_edge()

    # --- outcomes ------------------------------------------------------------------

    def _outcome(self, event: OutcomeOf, now: float) -> None:
        effect, done = event.effect, isinstance(event.outcome, Done)
        match effect:
            case StoreTxn(lane="guard"):
                pass  # written again with the next lease; the peer only waits longer without it
            case StoreTxn():
                self._claimed(event, now)
            case StoreRead(tag=tag):
                if isinstance(event.outcome, Done):
                    self._vip_read(event.outcome.value, float(tag.partition("/")[2]), now)
            case AddressesUp() | AddressesDown():
                self._address_asked = False
                self.addresses = "unknown"
                if done:
                    self.addresses = "up" if isinstance(effect, AddressesUp) else "down"
                if self.role == ACTIVE and self.addresses == "up":
                    self._look_after(now)
                elif self.role == ACTIVE and self.addresses == "down":
                    self._addresses_up()
            case RelayActive():
                self._relay_asked = False
                self._relay_told = done and self.role == ACTIVE
            case RelayClean():
                self._relay_asked = False
                self.clean = done and self.role != ACTIVE
                if done:
                    self.relay = False  # until its next life answers
                    self._note("relay and its store emptied")

    def _vip_read(self, items: Sequence[KeyValue], sent: float, now: float) -> None:
        key = self.keys.vip(self.config.vip)
        self._vip_is(next((item for item in items if item.key == key), None), now)
        newer = self._doubt_since is None or sent >= self._doubt_since
        if self.role == ACTIVE and newer and self.vip.edge == self.config.edge:
            self._proven(sent)

    def _media(self, event: MediaReach, now: float) -> None:
        self.relay = event.reachable
        if event.reachable and event.started != self._relay_started:
            self._relay_started = event.started
            self._relay_told = False

    # --- people --------------------------------------------------------------------

    def _operator(self, event: OperatorRequest, now: float) -> None:
        status, body = self._answer(event.verb, now)
        self._out.append(OperatorReply(request=event.request, status=status, body=body))

    def _answer(self, verb: str, now: float) -> tuple[int, Any]:
        if verb == "status":
            return 200, guard_view(self, now)
        if verb != "switchover":
            return 404, {"error": f"unknown verb {verb}"}
        if self.role != ACTIVE:
            return 409, {"error": "not active", "active": self.vip.edge}
        if not self.peer_fresh(now) or not self.peer.fit:
            return 409, {"error": "the peer is not ready", "peer": self.config.peer}
        self._yield_until = now + self.timings.yield_limit_s
        self._note("switchover asked for")
        self._beat(now)
        return 202, {"to": self.config.peer, "limit_s": self.timings.yield_limit_s}

    def _note(self, text: str, level: str = "info", **facts: Any) -> None:
        pairs = tuple((name, str(value)) for name, value in facts.items())
        self._out.append(Note(subject=f"vip/{self.config.vip}", text=text, facts=pairs, level=level))
