"""The edge guard's decisions, without time or network."""

from __future__ import annotations

from typing import Any

from ari_ha.core.machine import DeadlineReached, Done, Effect, Event, OutcomeOf, Unknown
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
    KeyValue,
    StoreChanged,
    StoreReach,
    StoreRead,
    StoreSnapshot,
    StoreTxn,
    TxnResult,
)
from ari_ha.machines.guard import ACTIVE, STANDBY, GuardMachine
from ari_ha.machines.guard_config import ANNOUNCE_AT_S, GuardConfig, GuardTimings
from ari_ha.wire.beat import Beat, EdgeWord
from ari_ha.wire.keyspace import Keys, VipValue, encode

KEYS = Keys("c")
VIP = KEYS.vip("pair1")
BEAT_S = GuardTimings().beat_every_s


class Bench:
    """One guard; everything it asks of the kernel and the relay is done at once."""

    def __init__(self, holder: str = "edge2", process: str = "p2", revision: int = 7) -> None:
        self.machine = GuardMachine(GuardConfig("c", "pair1", "edge1", "edge2", "g1"))
        self.now = 100.0
        self.out: list[Effect] = []
        self.peer_n = 0
        self.relay_returns = True
        self.say(WallClock(utc_s=1e9))
        vips = {VIP: item(holder, process, revision)} if holder else {}
        self.say(StoreSnapshot(prefix=KEYS.prefix("vips"), revision=revision, items=vips))
        edges = {KEYS.edge(e): KeyValue(KEYS.edge(e), b"{}", 1) for e in ("edge1", "edge2")}
        self.say(StoreSnapshot(prefix=KEYS.prefix("edges"), revision=revision, items=edges))
        guards = {KEYS.guard(e): KeyValue(KEYS.guard(e), b"{}", 1) for e in ("edge1", "edge2")}
        self.say(StoreSnapshot(prefix=KEYS.prefix("guards"), revision=revision, items=guards))
        self.say(MediaReach(reachable=True, started="1"))
        self.edge()

    def say(self, event: Event) -> list[Effect]:
        out = list(self.machine.handle(event, self.now))
        for effect in list(out):
            if isinstance(effect, AddressesUp | AddressesDown | RelayActive | RelayClean):
                out += self.say(OutcomeOf(effect=effect, outcome=Done()))
            if isinstance(effect, RelayClean) and self.relay_returns:
                out += self.say(MediaReach(reachable=True, started=f"after {self.now:.2f}"))
        self.machine.check()
        self.out += out
        return out

    def edge(self, process: str = "p1", warm: bool = True) -> None:
        self.say(PairWord(word=EdgeWord(edge="edge1", process=process, warm=warm)))

    def beat(self, **facts: Any) -> None:
        self.peer_n += 1
        given = {"process": "g2", "n": self.peer_n, "fit": True, **facts}
        self.say(PairWord(word=Beat(vip="pair1", edge="edge2", **given)))

    def run(self, seconds: float, *, peer: dict[str, Any] | None = None, edge: bool = True) -> list[Effect]:
        """Time passes in heartbeats; with ``peer`` it is heard each time."""
        before = len(self.out)
        for _ in range(round(seconds / BEAT_S)):
            then = self.now + BEAT_S
            while (due := self.machine.deadline()) is not None and self.now < due < then:
                self.now = due
                self.say(DeadlineReached())
            self.now = then
            if edge:
                self.edge()
            if peer is not None:
                self.beat(**peer)
            self.say(DeadlineReached())
        return self.out[before:]

    def claims(self) -> list[StoreTxn]:
        return [effect for effect in self.out if isinstance(effect, StoreTxn)]

    def answer(self, revision: int) -> None:
        effect = self.claims()[-1]
        self.say(OutcomeOf(effect=effect, outcome=Done(TxnResult(True, revision))))

    def become_active(self, revision: int = 8) -> None:
        self.run(1.5, peer={"active": True, "revision": 7})
        self.run(0.4)
        self.answer(revision)


def item(edge: str, process: str, revision: int) -> KeyValue:
    return KeyValue(VIP, encode(VipValue(edge=edge, since=1.0, process=process)), revision)


def of(effects: list[Effect], kind: type) -> list[Any]:
    return [effect for effect in effects if isinstance(effect, kind)]


def test_a_standby_that_hears_the_owner_does_nothing() -> None:
    bench = Bench()
    bench.run(5, peer={"active": True, "revision": 7})
    assert bench.machine.role == STANDBY and not bench.claims()


def test_silence_of_six_heartbeats_is_a_death() -> None:
    bench = Bench()
    bench.run(2, peer={"active": True, "revision": 7})
    bench.run(0.25)
    assert not bench.claims()
    bench.run(0.1)
    claim = bench.claims()[-1]
    assert {(c.key, c.mod_revision, c.op) for c in claim.compares} == {
        (VIP, 7, "="),
        (KEYS.edge("edge1"), 0, ">"),
    }
    bench.answer(8)
    assert bench.machine.role == ACTIVE and bench.machine.revision == 8
    kinds = [type(effect) for effect in bench.out]
    for kind in (OpenFence, AddressesUp, AnnounceAddresses, RelayActive, TellEdge, SendBeat):
        assert kind in kinds, kind
    assert of(bench.out, TellEdge)[-1].word.revision == 8


def test_a_new_owner_says_again_and_again_that_the_address_is_his() -> None:
    """A neighbour may miss one gratuitous ARP frame, or several."""
    bench = Bench()
    bench.become_active()
    assert of(bench.out, AnnounceAddresses), "at once"
    soon = bench.run(ANNOUNCE_AT_S[-1] + 0.1, peer={})
    assert len(of(soon, AnnounceAddresses)) == len(ANNOUNCE_AT_S) - 1
    later = bench.run(3.5 * GuardTimings().announce_every_s, peer={})
    assert len(of(later, AnnounceAddresses)) == 3


def test_what_may_have_been_done_is_asked_again_and_found() -> None:
    bench = Bench()
    bench.run(1.5, peer={"active": True, "revision": 7})
    bench.run(0.4)
    bench.say(OutcomeOf(effect=bench.claims()[-1], outcome=Unknown("late")))
    bench.run(0.1)
    again = bench.claims()[-1]
    lost = TxnResult(False, 9, (item("edge1", "p1", 8), KeyValue(KEYS.edge("edge1"), b"{}", 1)))
    bench.say(OutcomeOf(effect=again, outcome=Done(lost)))
    assert (bench.machine.role, bench.machine.revision) == (ACTIVE, 8)


def test_a_peer_never_heard_is_left_alone_while_its_guard_is_registered() -> None:
    """Heartbeats that do not arrive: two who cannot hear each other must not take the
    address from each other in turn."""
    bench = Bench()
    bench.become_active()
    bench.run(1, peer={})
    bench.say(StoreChanged(key=VIP, value=item("edge2", "p2", 9), revision=9))
    claims = len(bench.claims())
    bench.run(20)
    assert bench.machine.role == STANDBY and len(bench.claims()) == claims
    bench.say(StoreChanged(key=KEYS.guard("edge2"), value=None, revision=10))
    assert len(bench.claims()) == claims + 1


def test_a_lost_race_leaves_the_address_to_the_winner() -> None:
    bench = Bench(holder="")
    bench.run(1.5)
    lost = TxnResult(False, 9, (item("edge2", "p2", 8), KeyValue(KEYS.edge("edge1"), b"{}", 1)))
    bench.say(OutcomeOf(effect=bench.claims()[-1], outcome=Done(lost)))
    bench.run(1, peer={"active": True, "revision": 8})
    assert bench.machine.role == STANDBY and len(bench.claims()) == 1


def test_an_owner_keeps_the_fence_open_while_it_hears_the_peer() -> None:
    bench = Bench()
    bench.become_active()
    effects = bench.run(3, peer={})
    assert len(of(effects, OpenFence)) >= 59 and bench.machine.role == ACTIVE
    assert not of(effects[20:], StoreRead), "etcd is not asked while the peer answers"


def test_a_peer_with_a_newer_revision_ends_it_at_once() -> None:
    bench = Bench()
    bench.become_active()
    bench.run(1, peer={})
    bench.out.clear()
    bench.beat(active=True, revision=9)
    assert bench.machine.role == STANDBY
    assert of(bench.out, CloseFence) and of(bench.out, AddressesDown)
    assert of(bench.out, TellEdge)[-1].word.revision == 0


def test_etcd_naming_another_ends_it_at_once() -> None:
    bench = Bench()
    bench.become_active()
    bench.say(StoreChanged(key=VIP, value=item("edge2", "p2", 9), revision=9))
    assert bench.machine.role == STANDBY


def test_an_isolated_owner_lets_go_within_its_limit() -> None:
    bench = Bench()
    bench.become_active()
    bench.run(1, peer={})
    effects = bench.run(0.9)
    assert of(effects, StoreRead) and bench.machine.role == ACTIVE
    bench.run(0.2)
    assert bench.machine.role == STANDBY


def test_etcds_word_keeps_an_owner_whose_peer_is_silent() -> None:
    bench = Bench()
    bench.become_active()
    for _ in range(60):
        for read in of(bench.run(BEAT_S), StoreRead):
            bench.say(OutcomeOf(effect=read, outcome=Done((item("edge1", "p1", 8),))))
    assert bench.machine.role == ACTIVE


def test_without_a_leader_nobody_can_take_it_so_it_is_kept() -> None:
    bench = Bench()
    bench.become_active()
    bench.say(StoreReach(reachable=False, no_leader=True))
    effects = bench.run(5)
    assert bench.machine.role == ACTIVE and len(of(effects, OpenFence)) >= 99


def test_with_no_standby_registered_it_is_kept() -> None:
    bench = Bench()
    bench.become_active()
    bench.say(StoreChanged(key=KEYS.edge("edge2"), value=None, revision=9))
    bench.run(5)
    assert bench.machine.role == ACTIVE


def test_an_owner_that_stood_still_is_silent_until_proven() -> None:
    """Heartbeats that waited in the socket meanwhile prove nothing."""
    bench = Bench()
    bench.become_active()
    bench.run(1, peer={})
    bench.now += 5
    bench.out.clear()
    bench.beat(heard=3, heard_process="g1")
    bench.say(DeadlineReached())
    assert not of(bench.out, OpenFence)
    bench.run(0.15)
    assert not of(bench.out, OpenFence) and of(bench.out, StoreRead)
    sent = of(bench.out, SendBeat)[-1].beat.n
    bench.beat(heard=sent, heard_process="g1")
    assert of(bench.out, OpenFence), "packets wait: not with the next heartbeat"
    bench.run(BEAT_S)
    assert bench.machine.role == ACTIVE


def test_an_owner_that_slept_through_a_takeover_steps_down() -> None:
    bench = Bench()
    bench.become_active()
    bench.now += 5
    bench.out.clear()
    bench.beat(heard=3, heard_process="g1")
    bench.beat(active=True, revision=12)
    assert bench.machine.role == STANDBY and not of(bench.out, OpenFence)


def test_a_switchover_is_asked_for_and_taken() -> None:
    owner = Bench()
    owner.become_active()
    owner.run(1, peer={})
    owner.out.clear()
    owner.say(OperatorRequest(request="r", verb="switchover"))
    assert of(owner.out, OperatorReply)[0].status == 202
    assert of(owner.out, SendBeat)[-1].beat.yields
    standby = Bench()
    standby.run(2, peer={"active": True, "revision": 7})
    standby.beat(active=True, revision=7, yields=True)
    assert standby.claims()
    standby.answer(8)
    assert standby.machine.role == ACTIVE


def test_who_has_handed_over_does_not_take_it_back() -> None:
    """The successor is in etcd before its first heartbeat says so."""
    bench = Bench()
    bench.become_active()
    bench.run(3, peer={})
    claims = len(bench.claims())
    bench.say(StoreChanged(key=VIP, value=item("edge2", "p2", 9), revision=9))
    bench.run(0.5, peer={})
    bench.run(3, peer={"active": True, "revision": 9})
    assert bench.machine.role == STANDBY and len(bench.claims()) == claims


def test_no_switchover_to_a_peer_that_cannot_serve() -> None:
    bench = Bench()
    bench.become_active()
    bench.run(1, peer={"fit": False})
    bench.say(OperatorRequest(request="r", verb="switchover"))
    assert of(bench.out, OperatorReply)[0].status == 409


def test_a_half_dead_owner_asks_a_fit_peer() -> None:
    bench = Bench()
    bench.become_active()
    bench.run(1, peer={})
    bench.run(6, peer={}, edge=False)
    assert of(bench.out, SendBeat)[-1].beat.yields


def test_a_new_life_of_the_edge_process_gets_a_new_revision() -> None:
    bench = Bench()
    bench.become_active()
    bench.run(1, peer={})
    bench.edge("p9")
    assert len(bench.claims()) == 2
    bench.answer(20)
    assert (bench.machine.role, bench.machine.revision) == (ACTIVE, 20)
    assert of(bench.out, TellEdge)[-1].word.revision == 20


def test_a_relay_that_is_not_clean_is_emptied_once_the_peer_serves() -> None:
    bench = Bench()
    bench.become_active()
    bench.run(1, peer={})
    bench.beat(active=True, revision=9)
    bench.out.clear()
    bench.run(0.5, peer={"active": True, "revision": 9})
    assert not of(bench.out, RelayClean)
    bench.run(2, peer={"active": True, "revision": 9})
    assert len(of(bench.out, RelayClean)) == 1


def test_a_relay_that_was_emptied_is_not_fit_before_its_next_life_answers() -> None:
    """Nobody hands over to a host whose relay is just being started again."""
    bench = Bench()
    bench.become_active()
    bench.run(1, peer={})
    bench.relay_returns = False
    bench.run(3, peer={"active": True, "revision": 9})
    assert of(bench.out, RelayClean) and bench.machine.clean
    assert not bench.machine.fit(bench.now) and not of(bench.out, SendBeat)[-1].beat.fit
    bench.say(MediaReach(reachable=True, started="2"))
    assert bench.machine.fit(bench.now)


def test_heartbeats_that_wait_in_our_own_socket_are_read_before_the_peer_is_silent() -> None:
    """Our loop was late by 150 ms, the peer by 100: the timer is looked at before the sockets."""
    bench = Bench()
    bench.run(2, peer={"active": True, "revision": 7})
    bench.run(0.15)
    bench.now += 0.16
    bench.say(DeadlineReached())
    assert not bench.machine.peer_fresh(bench.now) and not bench.claims()
    bench.beat(active=True, revision=7)
    bench.run(0.25)
    assert not bench.claims()
    bench.run(0.1)
    assert bench.claims(), "and a death is one"


def test_two_guards_of_one_name_take_nothing() -> None:
    bench = Bench()
    bench.say(PairWord(word=Beat(vip="pair1", edge="edge1", process="other", n=1)))
    bench.run(5)
    assert not bench.claims() and bench.machine.conflict


def test_an_old_heartbeat_is_not_heard_again() -> None:
    bench = Bench()
    bench.run(2, peer={"active": True, "revision": 7})
    for _ in range(12):
        bench.now += BEAT_S
        bench.edge()
        bench.say(PairWord(word=Beat(vip="pair1", edge="edge2", process="g2", n=3, active=True, revision=7)))
        bench.say(DeadlineReached())
    assert bench.claims()
