"""The simulator's own parts: time, shell, store, network, links."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from ari_ha.core.machine import (
    DeadlineReached,
    Done,
    Effect,
    Event,
    OutcomeOf,
    Refused,
    ShellStall,
    Unknown,
    Unreachable,
)
from ari_ha.core.ports.link import LinkDown, LinkReceived, LinkUp
from ari_ha.core.ports.store import (
    Compare,
    Delete,
    KeyValue,
    LeaseState,
    Put,
    StoreChanged,
    StoreReach,
    StoreRead,
    StoreSnapshot,
    StoreTxn,
)
from ari_ha.simulation.checkers import Checkers
from ari_ha.simulation.checkers_moves import AtTheChange
from ari_ha.simulation.checkers_people import AtThePhones
from ari_ha.simulation.checkers_records import Books
from ari_ha.simulation.checkers_supervision import AtTheSupervisor
from ari_ha.simulation.circles import Circles, consulted
from ari_ha.simulation.cluster import SUPERVISOR, Cluster, Shape
from ari_ha.simulation.ears import ANNOUNCEMENT, MUSIC, Ears
from ari_ha.simulation.fake_phones import ENDED, RINGING, UP, Phones, Talk
from ari_ha.simulation.fake_rtpengine import FakeRtpengine
from ari_ha.simulation.fake_store import HOST, Store, StoreClient
from ari_ha.simulation.faults import Faults, Odds
from ari_ha.simulation.links import NodeLink
from ari_ha.simulation.process import MachineProcess
from ari_ha.simulation.sip_wire import Wire
from ari_ha.simulation.world import Clock, Network, World
from ari_ha.wire import link
from ari_ha.wire.keyspace import Keys, SupervisorValue, encode
from tests.support.edge_world import EdgeWorld


@dataclass(frozen=True, slots=True, kw_only=True)
class Go(Event):
    effects: tuple[Effect, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Act(Effect):
    name: str


class Recorder:
    """A machine that does what it is told and remembers what it heard."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.wants: float | None = None

    def handle(self, event: Event, now: float) -> list[Effect]:
        self.heard.append(event)
        if isinstance(event, DeadlineReached):
            self.wants = None
        return list(event.effects) if isinstance(event, Go) else []

    def deadline(self) -> float | None:
        return self.wants

    def check(self) -> None:
        pass

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.heard if isinstance(event, kind)]


class Bench:
    """One process whose effects are settled as the test says."""

    def __init__(self, seed: int = 1) -> None:
        self.world = World(seed)
        self.network = Network(self.world)
        self.performed: list[str] = []
        self.outcomes: dict[str, Any] = {}
        self.process = self.make("p", "host")
        self.process.start()

    def make(self, name: str, host: str) -> MachineProcess:
        return MachineProcess(
            self.world, name, host, make=lambda process: Recorder(), perform=self._perform,
            perform_now=lambda process, effect: None, instant=(),
        )  # fmt: skip

    def _perform(self, process: MachineProcess, effect: Effect, settle: Any) -> None:
        name = getattr(effect, "name", "")
        self.performed.append(name)
        outcome = self.outcomes.get(name, Done())
        if outcome is not None:
            self.world.after(0.01, lambda: settle(outcome))

    @property
    def machine(self) -> Recorder:
        return self.process.machine  # type: ignore[return-value]

    def go(self, *effects: Effect) -> None:
        self.process.post(Go(effects=effects))

    def run(self, for_s: float = 1.0) -> None:
        self.world.run_until(self.world.now + for_s)

    def outcomes_of(self, *names: str) -> list[str]:
        found = {event.effect.name: type(event.outcome).__name__ for event in self.machine.of(OutcomeOf)}
        return [found[name] for name in names]


def test_happenings_come_in_order_and_may_be_called_off() -> None:
    world, seen = World(1), []
    world.after(2.0, lambda: seen.append("late"))
    off = world.after(1.5, lambda: seen.append("never"))
    world.after(1.0, lambda: seen.append("early"))
    off.cancel()
    world.run_until(3.0)
    assert seen == ["early", "late"] and world.now == 3.0


def test_a_process_has_its_own_clocks() -> None:
    world = World(1)
    clock = Clock(world, rate=1.01, wall_offset_s=5.0)
    before = clock.monotonic(), clock.utc()
    world.run_until(100.0)
    assert clock.monotonic() - before[0] == pytest.approx(101.0)
    assert clock.utc() - before[1] == pytest.approx(100.0)
    assert clock.true(clock.monotonic()) == pytest.approx(world.now)


def test_a_lane_runs_in_order_and_stops_at_the_first_that_is_not_done() -> None:
    bench = Bench()
    bench.outcomes["b"] = Refused("no")
    bench.go(*(Act(lane="one", name=name) for name in "abcd"), Act(lane="two", name="e"))
    bench.run()
    assert bench.performed == ["a", "e", "b"]
    assert bench.outcomes_of(*"abcde") == ["Done", "Refused", "Refused", "Refused", "Done"]
    bench.go(Act(lane="one", name="f"))
    bench.run()
    assert bench.outcomes_of("f") == ["Done"]


def test_an_effect_without_an_answer_becomes_unknown_at_its_limit() -> None:
    bench = Bench()
    bench.outcomes["a"] = None
    bench.go(Act(lane="one", name="a", limit_s=0.5), Act(lane="one", name="b"))
    bench.run(0.4)
    assert not bench.machine.of(OutcomeOf)
    bench.run(0.2)
    assert isinstance(bench.machine.of(OutcomeOf)[0].outcome, Unknown)


def test_one_deadline_at_a_time() -> None:
    bench = Bench()
    bench.machine.wants = bench.process.clock.monotonic() + 0.5
    bench.go()
    bench.run(0.4)
    assert not bench.machine.of(DeadlineReached)
    bench.run(0.2)
    assert len(bench.machine.of(DeadlineReached)) == 1


def test_a_frozen_process_hears_everything_when_it_thaws_and_that_it_stood() -> None:
    bench = Bench()
    bench.go(Act(lane="one", name="a", limit_s=9.0))
    bench.world.run_until(0.005)
    bench.process.freeze()
    bench.process.deliver(Go())
    bench.run(2.0)
    assert len(bench.machine.heard) == 1
    bench.process.thaw()
    bench.run(0.1)
    assert bench.machine.of(ShellStall)[0].lag_s == pytest.approx(2.0, abs=0.01)
    assert len(bench.machine.of(Go)) == 2 and bench.outcomes_of("a") == ["Done"]


def test_a_killed_process_gets_nothing_of_its_earlier_life() -> None:
    bench = Bench()
    bench.go(Act(lane="one", name="a"))
    bench.world.run_until(0.001)
    bench.process.kill()
    bench.process.start()
    bench.run()
    assert bench.performed == ["a"] and not bench.machine.heard


def test_the_network_cuts_one_way_or_both() -> None:
    bench, arrived = Bench(), []
    bench.network.cut_off("a", ["b"], both_ways=False)
    bench.network.datagram("a", "b", lambda: arrived.append("a>b"))
    bench.network.datagram("b", "a", lambda: arrived.append("b>a"))
    bench.run()
    assert arrived == ["b>a"]
    bench.network.heal("a")
    bench.network.datagram("a", "b", lambda: arrived.append("a>b"))
    bench.run()
    assert arrived == ["b>a", "a>b"]


class StoreBench(Bench):
    """The same process with a client of the store."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store(self.world, self.network)
        self.store.put("/x/before", b"1")
        self.client = StoreClient(self.store, self.process, ["/x/"], ttl_s=3.0)
        self.run(0.5)

    def _perform(self, process: MachineProcess, effect: Effect, settle: Any) -> None:
        if isinstance(effect, StoreTxn | StoreRead):
            self.client.perform(effect, settle)
        else:
            super()._perform(process, effect, settle)

    def txn(self, **parts: Any) -> Any:
        self.go(StoreTxn(lane="store", **parts))
        self.run(2.5)
        return self.machine.of(OutcomeOf)[-1].outcome


def test_a_watch_leaves_nothing_out() -> None:
    """Cut off for a moment, and something else happens before it has caught up."""
    bench = StoreBench()
    bench.network.cut_off("host", [HOST])
    bench.store.put("/x/one", b"1")
    bench.network.heal()
    bench.store.put("/x/two", b"2")
    bench.run(1.0)
    assert [event.key for event in bench.machine.of(StoreChanged)] == ["/x/one", "/x/two"]


def test_a_watch_that_was_silent_and_is_cut_off_when_it_goes_on_leaves_nothing_out() -> None:
    bench = StoreBench()
    bench.client.stall()
    bench.store.put("/x/one", b"1")
    bench.run(0.5)
    assert not bench.machine.of(StoreChanged)
    bench.network.cut_off("host", [HOST])
    bench.client.resume()
    bench.network.heal()
    bench.store.put("/x/two", b"2")
    bench.run(1.0)
    assert [event.key for event in bench.machine.of(StoreChanged)] == ["/x/one", "/x/two"]


def test_a_client_says_reach_snapshot_and_lease_and_then_every_change() -> None:
    bench = StoreBench()
    assert bench.machine.of(StoreReach) == [StoreReach(reachable=True)]
    (snapshot,) = bench.machine.of(StoreSnapshot)
    assert list(snapshot.items) == ["/x/before"]
    assert bench.machine.of(LeaseState)[0].held
    bench.store.put("/x/after", b"2")
    bench.store.put("/y/other", b"3")
    bench.run()
    assert [event.key for event in bench.machine.of(StoreChanged)] == ["/x/after"]


def test_transactions_compare_and_show_what_stood_in_the_way() -> None:
    bench = StoreBench()
    first = bench.txn(compares=(Compare("/x/k", 0),), puts=(Put("/x/k", b"a"),))
    assert first.value.succeeded
    second = bench.txn(compares=(Compare("/x/k", 0),), puts=(Put("/x/k", b"b"),))
    assert not second.value.succeeded and second.value.current[0].value == b"a"
    third = bench.txn(
        compares=(Compare("/x/k", first.value.revision),), deletes=(Delete("/x/", prefix=True),)
    )
    assert third.value.succeeded and not bench.store.keys


def test_a_transaction_may_be_applied_and_its_outcome_unknown() -> None:
    bench = StoreBench()
    bench.store.reply_lost = 1.0
    assert isinstance(bench.txn(puts=(Put("/x/k", b"a"),)), Unknown)
    assert bench.store.keys["/x/k"].value == b"a"
    bench.store.reply_lost, bench.store.request_lost = 0.0, 1.0
    assert isinstance(bench.txn(puts=(Put("/x/l", b"a"),)), Unknown)
    assert "/x/l" not in bench.store.keys


def test_away_is_noticed_late_and_what_was_missed_comes_afterwards() -> None:
    bench = StoreBench()
    bench.network.cut_off("host", ["etcd"])
    bench.store.put("/x/missed", b"1")
    bench.run(2.0)
    assert not bench.machine.of(StoreReach)[-1].reachable
    assert isinstance(bench.txn(puts=(Put("/x/k", b"a"),)), Unreachable)
    bench.network.heal()
    bench.run(1.0)
    assert bench.machine.of(StoreReach)[-1].reachable
    assert [event.key for event in bench.machine.of(StoreChanged)] == ["/x/missed"]


def test_after_a_compaction_the_prefix_is_read_again() -> None:
    bench = StoreBench()
    bench.network.cut_off("host", ["etcd"])
    bench.store.put("/x/missed", b"1")
    bench.store.put("/x/more", b"1")
    bench.store.compact(bench.store.revision - 1)
    bench.run(2.0)
    bench.network.heal()
    bench.run(1.0)
    assert set(bench.machine.of(StoreSnapshot)[-1].items) == {"/x/before", "/x/missed", "/x/more"}


def test_a_lease_dies_with_its_holder_and_its_keys_with_it() -> None:
    bench = StoreBench()
    bench.txn(puts=(Put("/x/mine", b"a", leased=True),))
    bench.run(10.0)
    assert "/x/mine" in bench.store.keys
    bench.process.kill()
    bench.run(4.0)
    assert "/x/mine" not in bench.store.keys


def test_a_lease_cut_off_is_known_to_be_lost_before_the_server_drops_it() -> None:
    bench = StoreBench()
    bench.txn(puts=(Put("/x/mine", b"a", leased=True),))
    bench.network.cut_off("host", ["etcd"])
    for _ in range(50):
        bench.run(0.1)
        lost = not bench.machine.of(LeaseState)[-1].held
        assert lost or "/x/mine" in bench.store.keys
    assert lost


def test_no_lease_ends_without_a_leader_and_the_next_one_lets_them_begin_anew() -> None:
    bench = StoreBench()
    bench.txn(puts=(Put("/x/mine", b"a", leased=True),))
    bench.process.kill()
    bench.store.lose_leader()
    bench.run(10.0)
    bench.store.elect()
    bench.run(2.9)
    assert "/x/mine" in bench.store.keys
    bench.run(0.2)
    assert "/x/mine" not in bench.store.keys


def test_what_is_asked_during_an_election_is_done_late_or_nobody_knows() -> None:
    bench = StoreBench()
    for n in range(40):
        bench.go(StoreTxn(puts=(Put(f"/x/{n}", b"a"),)))
    bench.store.lose_leader()
    bench.run(0.19)
    assert not bench.machine.of(OutcomeOf) and not bench.machine.of(StoreChanged)
    bench.store.elect()
    bench.run(2.5)
    done = {o.effect.puts[0].key for o in bench.machine.of(OutcomeOf) if isinstance(o.outcome, Done)}
    unknown = {o.effect.puts[0].key for o in bench.machine.of(OutcomeOf) if isinstance(o.outcome, Unknown)}
    assert done and unknown and len(done | unknown) == 40
    assert done == set(bench.store.keys) - {"/x/before"}
    assert [event.key for event in bench.machine.of(StoreChanged)] == list(bench.store.keys)[1:]


def test_what_the_last_leader_had_passed_on_is_written_though_who_asked_gave_up() -> None:
    bench = StoreBench()
    for n in range(40):
        bench.go(StoreTxn(puts=(Put(f"/x/{n}", b"a"),)))
    bench.store.lose_leader()
    bench.run(2.5)
    assert all(isinstance(event.outcome, Unknown) for event in bench.machine.of(OutcomeOf))
    bench.store.elect()
    written = len(bench.store.keys)
    assert 1 < written < 41
    bench.run(2.5)
    assert len(bench.store.keys) == written, "nobody asks again when his time is over"


def test_a_watch_tells_after_the_election_what_was_committed_just_before() -> None:
    bench = StoreBench()
    bench.store.put("/x/one", b"1")
    bench.store.lose_leader()
    bench.run(0.1)
    assert not bench.machine.of(StoreChanged)
    bench.store.elect()
    bench.run(0.1)
    assert [event.key for event in bench.machine.of(StoreChanged)] == ["/x/one"]
    assert all(event.reachable for event in bench.machine.of(StoreReach)), "too short to be noticed"


def test_a_long_election_is_noticed_and_the_lease_is_not_sure_meanwhile() -> None:
    bench = StoreBench()
    bench.txn(puts=(Put("/x/mine", b"a", leased=True),))
    bench.store.lose_leader()
    bench.run(3.0)
    assert bench.machine.of(StoreReach)[-1] == StoreReach(reachable=False, no_leader=True, why="no leader")
    assert not bench.machine.of(LeaseState)[-1].held
    bench.store.elect()
    bench.run(1.0)
    assert bench.machine.of(StoreReach)[-1].reachable and bench.machine.of(LeaseState)[-1].held
    assert "/x/mine" in bench.store.keys


class LinkBench(Bench):
    def __init__(self) -> None:
        super().__init__()
        self.edge, self.app = self.make("edge1", "edge1"), self.make("ast1", "ast1")
        self.edge.start()
        self.app.start()
        self.link = NodeLink(self.world, self.network, self.edge, self.app)
        self.run()

    @staticmethod
    def heard(process: MachineProcess) -> Recorder:
        return process.machine  # type: ignore[return-value]


def test_a_link_opens_carries_frames_in_order_and_closes_with_its_process() -> None:
    bench = LinkBench()
    assert bench.heard(bench.edge).of(LinkUp) == [LinkUp(peer="ast1")]
    for n in range(20):
        bench.link.send(bench.app, link.NodeState(calls=n))
    bench.run()
    assert [e.frame.calls for e in bench.heard(bench.edge).of(LinkReceived)] == list(range(20))
    bench.app.kill()
    bench.run()
    (down,) = bench.heard(bench.edge).of(LinkDown)
    assert down.clean


def test_silence_breaks_a_link_for_both_ends_and_loses_what_was_said() -> None:
    bench = LinkBench()
    bench.network.cut_off("ast1", ["edge1"])
    bench.link.send(bench.app, link.NodeState(calls=1))
    bench.run(2.0)
    assert [event.clean for event in bench.heard(bench.edge).of(LinkDown)] == [False]
    assert [event.clean for event in bench.heard(bench.app).of(LinkDown)] == [False]
    bench.network.heal()
    bench.run(2.0)
    assert len(bench.heard(bench.edge).of(LinkUp)) == 2
    assert not bench.heard(bench.edge).of(LinkReceived)


def test_a_short_cut_only_delays() -> None:
    bench = LinkBench()
    bench.network.cut_off("ast1", ["edge1"])
    bench.link.send(bench.app, link.NodeState(calls=1))
    bench.run(0.3)
    bench.network.heal()
    bench.run(0.5)
    assert not bench.heard(bench.edge).of(LinkDown)
    assert len(bench.heard(bench.edge).of(LinkReceived)) == 1


def test_what_is_said_to_an_edge_that_became_the_other_one_is_lost_with_the_connection() -> None:
    bench = LinkBench()
    bench.network.cut_off("ast1", ["edge1", "edge2"])
    bench.edge.kill()
    bench.edge.name = bench.edge.host = "edge2"
    bench.edge.start()
    bench.link.send(bench.app, link.NodeState(calls=1))
    bench.run(2.0)
    bench.network.heal()
    bench.run(2.0)
    assert bench.heard(bench.edge).of(LinkUp) and not bench.heard(bench.edge).of(LinkReceived)


def test_an_app_drops_its_link_to_an_edge_before_it_takes_the_one_of_its_next_life() -> None:
    """Else the end of the first, heard late, would be the end of the second for it."""
    bench = LinkBench()
    bench.network.cut_off("edge1", ["ast1"])
    bench.edge.kill()
    edge = bench.make("edge1", "elsewhere")
    edge.start()
    second = NodeLink(bench.world, bench.network, edge, bench.app)
    second.before = bench.link
    bench.run(2.0)
    ups_and_downs = [e for e in bench.heard(bench.app).heard if isinstance(e, LinkUp | LinkDown)]
    assert [type(event) for event in ups_and_downs] == [LinkUp, LinkDown, LinkUp] and second.up


def test_a_frozen_end_is_silence_for_the_other_and_a_closed_socket_for_itself() -> None:
    bench = LinkBench()
    bench.app.freeze()
    bench.run(2.0)
    assert [event.clean for event in bench.heard(bench.edge).of(LinkDown)] == [False]
    bench.app.thaw()
    bench.run(0.1)
    assert [event.clean for event in bench.heard(bench.app).of(LinkDown)] == [True]


# --- who is with whom -----------------------------------------------------------------


def test_a_prompt_of_the_next_node_that_is_over_leaves_no_hole() -> None:
    """The relay took longer to change than the prompt: the caller, who heard the old node's, has his turn."""
    world = World(1)
    cluster = Cluster(world, Shape(nodes=1, agents=1))
    moves = AtTheChange(cluster, SimpleNamespace(), lambda rule, text: None)  # type: ignore[arg-type]
    cluster.start()
    world.run_until(1.0)
    caller = cluster.carrier.call("6200", "+49301")
    heard: list[tuple[list[str], bool]] = []
    for _ in range(40):
        world.run_until(world.now + 0.02)
        heard.append((cluster.ears.heard_by(caller), moves.hole(caller, [ANNOUNCEMENT])))
    assert ([], True) in heard, "before it, also when the leg is there"
    said = heard.index(([ANNOUNCEMENT], False))
    assert ([], False) in heard[said:] and ([], True) not in heard[said:]
    assert moves.hole(caller, [MUSIC]), "music has no end"


@pytest.mark.parametrize("what", ["full", "its node cut off", "the edge cut off", "no relay"])
def test_of_a_drained_node_nobody_is_to_have_left_who_could_not_be_written_down(what: str) -> None:
    world = World(1)
    cluster = Cluster(world, Shape(nodes=2, agents=1))
    faults = Faults(cluster, Odds(kinds=()))
    cluster.start()
    world.run_until(1.0)
    cluster.carrier.call("6000", "+49301")
    world.run_until(8.0)
    (call,) = cluster.edge.machine.calls.by_id.values()  # type: ignore[union-attr]
    node = cluster.by_name[call.owner.name]
    assert len(faults.left_on(node)) == 1
    cluster.store.full, cluster.media_away = what == "full", what == "no relay"
    for cut, host in (("its node cut off", node.host), ("the edge cut off", cluster.edge.host)):
        if what == cut:
            cluster.network.cut_off(host, [HOST])
    assert faults.left_on(node) == []


def test_whoever_was_handed_over_by_a_line_that_never_answered_is_in_its_conversation() -> None:
    """Of such a line nobody knows by its media which call it was of."""
    phone = ("10.0.0.1", 4000)
    caller = Talk("caller", "customer", phone, UP, call="k", dialled="6000", started_s=1.0)
    first = Talk("first", "1001", phone, ENDED, call="k", started_s=2.0, ended_s=9.0, ended_by="self")
    stays = Talk("stays", "1003", phone, UP, call="k", started_s=3.0)
    second = Talk("second", "1001", phone, UP, call="k", started_s=4.0, dialled="1002", main=first)
    consulted = Talk("consulted", "1002", phone, ENDED, call="k", started_s=5.0, ended_s=12.0, attended=True)
    line = Talk("line", "1002", phone, ENDED, started_s=6.0, ended_s=12.0, dialled="1001", main=consulted)
    line.attended = True
    third = Talk("third", "1001", phone, UP, call="k", started_s=7.0)
    talks = {talk.leg: talk for talk in (first, stays, second, consulted, line, third)}
    nothing_heard = SimpleNamespace(call_of=lambda talk: None, heard_by=lambda talk: [])
    cluster: Any = SimpleNamespace(
        carrier=SimpleNamespace(talks={"caller": caller}), phones=SimpleNamespace(talks=talks),
        ears=nothing_heard,
    )  # fmt: skip
    circles = [{talk.leg for talk in circle} for circle in Circles(cluster).there_are()]
    assert circles == [{"caller", "stays"}, {"second", "third"}]


def test_of_a_conversation_on_second_lines_one_hangs_up_the_line_beside_which_he_consults() -> None:
    """The others talk on, and so does he with whom he consulted: a conference was asked for too late."""
    phone = ("10.0.0.1", 4000)
    first = Talk("first", "1001", phone, ENDED, call="k", started_s=1.0, ended_s=3.0, ended_by="self")
    leads = Talk("leads", "1001", phone, UP, call="k", started_s=2.0, dialled="1002", main=first)
    second = Talk("second", "1002", phone, ENDED, call="k", started_s=2.1, ended_s=5.0, ended_by="far")
    joined = Talk("joined", "1002", phone, UP, call="k", started_s=4.0, dialled="1003", main=second)
    joined.joining = True
    third = Talk("third", "1003", phone, ENDED, call="k", started_s=4.1, ended_s=7.0, ended_by="self")
    beside = Talk("beside", "1003", phone, UP, call="k", started_s=6.0, dialled="1004", main=third)
    beside.joining = True
    party = Talk("party", "1004", phone, UP, call="k", started_s=6.1)
    talks = {talk.leg: talk for talk in (first, leads, second, joined, third, beside, party)}
    heard = {"leads": ["joined"], "joined": ["leads"], "beside": ["party"], "party": ["beside"]}
    cluster: Any = SimpleNamespace(
        carrier=SimpleNamespace(talks={}), phones=SimpleNamespace(talks=talks),
        ears=SimpleNamespace(call_of=lambda talk: None, heard_by=lambda talk: heard[talk.leg]),
    )  # fmt: skip
    circles = [{talk.leg for talk in circle} for circle in Circles(cluster).there_are()]
    assert circles == [{"leads", "joined"}, {"beside", "party"}]
    heard["beside"].append("leads")  # it was asked for in time
    circles = [{talk.leg for talk in circle} for circle in Circles(cluster).there_are()]
    assert circles == [{"leads", "joined", "beside", "party"}]


@pytest.mark.parametrize("beside_a_code", [False, True])
def test_a_second_line_of_a_phone_in_two_calls_is_of_the_one_the_edge_says(beside_a_code: bool) -> None:
    """The phone dials it beside its feature code, or beside nothing, and is called before its edge, which was
    dead, hears of it; his conversation is over before it is answered."""
    phone = ("10.0.0.1", 4000)
    caller = Talk("caller", "customer", phone, UP, call="k", dialled="6000", started_s=1.0, answered_s=1.0)
    agent = Talk("agent", "1001", phone, ENDED, call="k", started_s=2.0, answered_s=3.0, ended_s=6.0)
    code = Talk("code", "1001", phone, ENDED, call="code", dialled="*23", started_s=2.0, answered_s=2.5)
    second = Talk("second", "1001", phone, UP, started_s=5.0, answered_s=7.0, dialled="1002")
    second.main = code if beside_a_code else None
    cluster: Any = SimpleNamespace(
        carrier=SimpleNamespace(talks={"caller": caller}),
        phones=SimpleNamespace(talks={talk.leg: talk for talk in (agent, code, second)}),
        ears=SimpleNamespace(call_of=lambda talk: ("k", "k1")),
    )  # fmt: skip
    Circles(cluster).learn_call(second)
    assert second.main is agent


def test_whoever_is_consulted_is_no_company_though_the_line_that_called_him_is_not_answered() -> None:
    """The agent hangs up on his caller in the moment in which his party answers."""
    phone = ("10.0.0.1", 4000)
    caller = Talk("caller", "customer", phone, ENDED, dialled="6000", started_s=1.0, answered_s=1.0)
    agent = Talk("agent", "1001", phone, ENDED, started_s=2.0, answered_s=2.0, ended_s=9.0, ended_by="self")
    line = Talk("line", "1001", phone, RINGING, started_s=4.0, dialled="1002", main=agent)
    party = Talk("party", "1002", phone, UP, started_s=5.0, answered_s=8.9)
    company = AtThePhones._company(caller, [caller, agent, party], [caller, agent, line, party])
    assert company == [agent]


def test_of_two_who_call_the_same_person_he_came_by_the_line_that_was_not_refused() -> None:
    """Who dialled last has heard that he is busy, and has his caller still."""
    phone = ("10.0.0.1", 4000)
    caller = Talk("caller", "1001", phone, UP, started_s=1.0, dialled="1002")
    agent = Talk("agent", "1002", phone, UP, started_s=2.0)
    first = Talk("first", "1001", phone, UP, started_s=3.0, dialled="1003", main=caller)
    refused = Talk("refused", "1002", phone, ENDED, started_s=3.1, dialled="1003", main=agent, ended_s=4.0)
    party = Talk("party", "1003", phone, UP, started_s=3.2, answered_s=5.0)
    assert consulted(party, [caller, agent, first, refused, party]) is first


def test_whoever_comes_to_a_caller_who_was_handed_over_is_not_with_him_who_consults() -> None:
    """He consulted somebody, transferred his caller to a colleague, and is left by whom he consulted."""
    phone = ("10.0.0.1", 4000)
    caller = Talk("caller", "customer", phone, UP, dialled="6000", started_s=1.0, answered_s=1.0)
    agent = Talk("agent", "1001", phone, ENDED, started_s=2.0, answered_s=2.0, ended_s=6.0, ended_by="far")
    agent.referred = "1003"
    line = Talk("line", "1001", phone, ENDED, started_s=4.0, answered_s=5.0, dialled="+49", main=agent)
    line.ended_s, line.ended_by = 9.1, "far"
    party = Talk("party", "+49", phone, ENDED, started_s=4.1, answered_s=5.0, ended_s=9.0, ended_by="self")
    later = Talk("later", "1002", phone, UP, started_s=7.0, answered_s=8.0)
    everybody = [caller, agent, line, party, later]
    assert AtThePhones._company(line, everybody, everybody) == [party]


def test_what_call_a_phone_was_on_is_known_also_when_its_relay_has_it_no_more() -> None:
    """A 200 OK that is repeated comes late, and its call is over by then."""
    relay = FakeRtpengine({"public": "192.0.2.11"})
    relay.command("create", {"call-id": "k1", "from-tag": "c"})
    ((at, _),) = relay.given.items()
    relay.command("delete", {"call-id": "k1"})
    network = Network(World(1))
    ears = Ears([relay], [], [], network, "edge1")
    late = Talk("late", "customer", ("10.0.0.1", 4000), UP, remote=at)
    assert ears.call_of(late) == ("k1", "c") and ears.heard_by(late) == []
    assert ears.call_of(Talk("other", "customer", ("10.0.0.1", 4002), UP, remote=(at[0], at[1] + 2))) is None
    ears.relays = [relay := FakeRtpengine({"public": "192.0.2.11"}, "2", relay)]
    relay.command("create", {"call-id": "k2", "from-tag": "c"})
    assert ears.call_of(late) == ("k1", "c"), "and when another life of it has other calls"


@pytest.mark.parametrize("asks", ["agent", "side"])
@pytest.mark.parametrize("accepted", [False, True])
def test_whoever_hangs_up_before_his_transfer_was_heard_may_have_asked_nobody(
    accepted: bool, asks: str
) -> None:
    """His REFER, in either line, is lost, and he hangs up before it is repeated; a 202 keeps his caller."""
    phone = ("10.0.0.1", 4000)
    caller = Talk("caller", "customer", phone, ENDED, call="k", dialled="6000", started_s=1.0, answered_s=1.0)
    caller.ended_by, caller.ended_s = "far", 9.1
    agent = Talk("agent", "1001", phone, ENDED, call="k", started_s=2.0, answered_s=2.0, ended_s=9.0)
    agent.ended_by = "self"
    side = Talk("side", "1001", phone, UP, call="k", started_s=4.0, answered_s=5.0, dialled="1002")
    side.main, side.attended = agent, True
    asking = agent if asks == "agent" else side
    asking.referred, asking.attended, asking.accepted = "1002", True, accepted
    party = Talk("party", "1002", phone, UP, call="k", started_s=5.0, answered_s=5.0)
    cluster: Any = SimpleNamespace(
        carrier=SimpleNamespace(talks={"caller": caller}), nodes=[], rehomed=[],
        phones=SimpleNamespace(talks={talk.leg: talk for talk in (agent, side, party)}),
    )  # fmt: skip
    people: Any = SimpleNamespace(circles=Circles(cluster))
    problems: list[str] = []
    phones = AtThePhones(
        cluster, people, lambda rule, text: problems.append(rule), lambda *a, **k: False, lambda *a: None
    )
    phones.over(caller)
    assert problems == (["only people end calls"] if accepted else [])


def at_the_phones(cluster: Any) -> AtThePhones:
    people: Any = SimpleNamespace(circles=Circles(cluster))
    return AtThePhones(cluster, people, lambda *a: None, lambda *a, **k: False, lambda *a: None)


def at_the_supervisor(talks: list[Talk], said: list[str]) -> AtTheSupervisor:
    """Of a supervisor who was asked to whisper to 1001 in the call ``k``."""
    keys, order = Keys("sim"), SupervisorValue(call="k", device=SUPERVISOR, mode="whisper", agent="1001")
    item = KeyValue(keys.supervisor("k"), encode(order), 1)
    cluster: Any = SimpleNamespace(
        carrier=SimpleNamespace(talks={talk.leg: talk for talk in talks if talk.who == "customer"}),
        phones=SimpleNamespace(talks={talk.leg: talk for talk in talks if talk.who != "customer"}),
        store=SimpleNamespace(keys={item.key: item}), keys=keys, nodes=[], rehomed=[],
        world=SimpleNamespace(now=9.0),
        ears=SimpleNamespace(call_of=lambda talk: None, heard_by=lambda talk: heard[talk.leg]),
    )  # fmt: skip
    heard = {talk.leg: ["s"] if talk.leg == "asked" else [] for talk in talks}
    heard["s"] = sorted(talk.leg for talk in talks if talk.leg != "s" and talk.state == UP)
    phones = at_the_phones(cluster)
    return AtTheSupervisor(
        cluster, phones.people, lambda rule, text: said.append(rule), phones.lasting, phones.forget, phones
    )


PHONE = ("10.0.0.1", 4000)


def on_the_phone(leg: str, who: str, since_s: float, **more: Any) -> Talk:
    times = {"started_s": since_s, "answered_s": since_s, "acked_s": 0.0 if "dialled" in more else since_s}
    return Talk(leg, who, PHONE, UP, call="k", **{**times, **more})


@pytest.mark.parametrize("gone", [False, True])
def test_whoever_called_hangs_up_and_three_and_their_supervisor_are_done(gone: bool) -> None:
    """The agent made a conference of his caller and a colleague; the supervisor's phone hears of it first."""
    caller = on_the_phone("caller", "customer", 1.0, dialled="6000")
    agent, party = on_the_phone("agent", "1001", 2.0), on_the_phone("party", "1002", 4.0)
    side = on_the_phone("side", "1001", 3.0, dialled="1002", main=agent, joining=True)
    side.state, side.ended_by, side.ended_s = ENDED, "far", 5.0
    listens = on_the_phone("s", SUPERVISOR, 6.0)
    listens.state, listens.ended_by = ENDED, "far"
    if gone:
        caller.state, caller.ended_by, caller.ended_s = ENDED, "self", 7.0
    said: list[str] = []
    at_the_supervisor([caller, agent, side, party, listens], said).over(listens)
    assert said == ([] if gone else ["supervisors stay"])


@pytest.mark.parametrize("other", ["1001", "1002"])
def test_a_whisper_to_an_agent_on_two_lines_of_one_conversation_is_heard_on_one(other: str) -> None:
    """Whom he had called handed him over to himself."""
    talks = [on_the_phone("asked", other, 3.0), on_the_phone("line", "1001", 1.0, dialled="1002")]
    whispers = on_the_phone("s", SUPERVISOR, 2.0)
    looks = at_the_supervisor([*talks, whispers], [])
    order = looks._order("k")
    assert order is not None and looks._good(whispers, talks, order) == (other == "1001")


@pytest.mark.parametrize(("serves_s", "told_s", "wrong"), [(14.0, 18.1, 0), (9.0, 18.1, 1), (14.0, 23.5, 1)])
def test_an_address_is_told_when_an_edge_serves_there(serves_s: float, told_s: float, wrong: int) -> None:
    """It moved at 8.0, and etcd was away before the next edge had read any call."""
    talk, late = on_the_phone("told", "1001", 5.0), on_the_phone("late", "1002", 7.0)
    late.answered_s = 12.0
    edge: Any = SimpleNamespace(machine=None)
    cluster: Any = SimpleNamespace(
        edge=edge, carrier=SimpleNamespace(talks={}), phones=SimpleNamespace(talks={"told": talk}),
        rehomed=[8.0], world=World(1),
    )  # fmt: skip
    people: Any = SimpleNamespace()
    faults: Any = SimpleNamespace()
    checkers = Checkers(cluster, people, faults)
    next_one = EdgeWorld().machine()
    next_one.serving = True
    for quarter in range(32, 100):
        cluster.world.now = quarter / 4
        edge.machine = next_one if cluster.world.now >= serves_s else None
        talk.requests = [(told_s, "INVITE")] if cluster.world.now >= told_s else []
        checkers._still_moving()
        checkers._untouched()
    assert [problem.rule for problem in checkers.problems] == ["phones are left alone"] * wrong
    assert at_the_phones(cluster).answered_to_nobody(late) == (serves_s > 12.0)


@pytest.mark.parametrize(("answered_s", "wrong"), [(10.1, 0), (8.0, 1)])
def test_whoever_answers_an_address_that_nobody_has_is_rung_again(answered_s: float, wrong: int) -> None:
    """His phone repeats the answer to nobody for half a minute, and has two calls meanwhile."""
    first, again = on_the_phone("first", "1001", 7.0), on_the_phone("again", "1001", 11.0)
    first.answered_s = answered_s
    cluster: Any = SimpleNamespace(
        edge=SimpleNamespace(machine=None), phones=SimpleNamespace(talks={"first": first, "again": again}),
        agents=["1001"], rehomed=[10.0], world=World(1),
    )  # fmt: skip
    people: Any = SimpleNamespace(circles=None)
    faults: Any = SimpleNamespace(calm_since=0.0)
    checkers = Checkers(cluster, people, faults)
    checkers.phones = at_the_phones(cluster)
    for cluster.world.now in (12.0, 40.0):
        checkers._two_calls()
    assert [problem.rule for problem in checkers.problems] == ["one call per agent"] * wrong


@pytest.mark.parametrize(("acked_s", "wrong"), [(6.0, 1), (8.5, 0), (0.0, 0)])
def test_a_supervisor_whose_answer_nobody_heard_was_not_there_to_stay(acked_s: float, wrong: int) -> None:
    """He answers an edge that is dead: the next one rings him again, and ends what it knows nothing of."""
    talks = [on_the_phone("caller", "customer", 1.0, dialled="6000"), on_the_phone("agent", "1001", 2.0)]
    listens = on_the_phone("s", SUPERVISOR, 6.0, acked_s=acked_s)
    listens.state, listens.ended_by, listens.ended_s = ENDED, "far", 9.0
    said: list[str] = []
    at_the_supervisor([*talks, listens], said).over(listens)
    assert said == ["supervisors stay"] * wrong


@pytest.mark.parametrize(("stopped_s", "wrong"), [(5.0, 1), (8.0, 0)])
def test_a_supervisor_who_was_sent_away_and_asked_back_at_once_is_rung_again(
    stopped_s: float, wrong: int
) -> None:
    """The order that there is when he hears of his end is another one's."""
    talks = [on_the_phone("caller", "customer", 1.0, dialled="6000"), on_the_phone("agent", "1001", 2.0)]
    listens, said = on_the_phone("s", SUPERVISOR, 6.0), list[str]()
    listens.state, listens.ended_by = ENDED, "far"
    looks = at_the_supervisor([*talks, listens], said)
    looks.cluster.world.now = stopped_s
    looks.commit([(7, looks.cluster.keys.supervisor("k"), None)])
    looks.cluster.world.now = 9.0
    looks.over(listens)
    assert said == ["supervisors stay"] * wrong


@pytest.mark.parametrize("caller_stays", [False, True])
def test_who_comes_later_is_with_the_caller_who_stays_not_with_those_who_consult(caller_stays: bool) -> None:
    """An agent leaves his caller while he calls somebody else, and another agent is rung for that caller:
    the one he called hangs up, and nobody is left whom he talked to; with none, the other came to him."""
    phone = ("10.0.0.1", 4000)
    caller = Talk("caller", "customer", phone, UP, call="k", dialled="6000", started_s=1.0, answered_s=1.0)
    if not caller_stays:
        caller.state, caller.ended_by, caller.ended_s = ENDED, "self", 8.9
    agent = Talk("agent", "1001", phone, ENDED, call="k", started_s=2.0, answered_s=2.0, ended_s=9.0)
    agent.ended_by = "self" if caller_stays else "far"
    side = Talk(
        "side", "1001", phone, ENDED, call="k", started_s=4.0, answered_s=5.0, dialled="+1", ended_s=20.0
    )
    side.main, side.ended_by = agent, "far"
    party = Talk("party", "+1", phone, ENDED, call="k", started_s=4.5, answered_s=5.0, ended_s=20.0)
    party.ended_by = "self"
    other = Talk("other", "1002", phone, UP, call="k", started_s=9.8, answered_s=10.0)
    cluster: Any = SimpleNamespace(
        carrier=SimpleNamespace(talks={talk.leg: talk for talk in (caller, party)}), nodes=[], rehomed=[],
        phones=SimpleNamespace(talks={talk.leg: talk for talk in (agent, side, other)}),
        world=SimpleNamespace(now=20.0),
    )  # fmt: skip
    people: Any = SimpleNamespace(circles=Circles(cluster))
    problems: list[str] = []
    AtThePhones(
        cluster, people, lambda rule, text: problems.append(rule), lambda *a, **k: False, lambda *a: None
    ).over(side)
    assert problems == ([] if caller_stays else ["only people end calls"])


@pytest.mark.parametrize("acked_s", [5.0, 8.5, 0.0])
def test_whose_answer_nobody_heard_was_in_no_conversation(acked_s: float) -> None:
    """His 200 OK is lost until the ring has been given up: the ACK comes with the BYE, or after it. One that
    was heard at once had his caller, and lost him."""
    phone = ("10.0.0.1", 4000)
    caller = Talk("caller", "customer", phone, UP, call="k", dialled="6000", started_s=1.0, answered_s=1.0)
    agent = Talk("agent", "1001", phone, ENDED, call="k", started_s=2.0, answered_s=5.0, ended_s=8.6)
    agent.acked_s, agent.ended_by = acked_s, "far"
    cluster: Any = SimpleNamespace(
        carrier=SimpleNamespace(talks={"caller": caller}), phones=SimpleNamespace(talks={"agent": agent}),
        nodes=[], rehomed=[], world=SimpleNamespace(now=8.6),
    )  # fmt: skip
    people: Any = SimpleNamespace(circles=Circles(cluster), customers=[caller])
    problems: list[str] = []
    AtThePhones(
        cluster, people, lambda rule, text: problems.append(rule), lambda *a, **k: False, lambda *a: None
    ).over(agent)
    talked = list(Books(cluster, people, lambda rule, text: None)._talked())
    heard = acked_s == 5.0
    assert problems == (["only people end calls"] if heard else [])
    assert talked == ([(caller, agent)] if heard else [])


@pytest.mark.parametrize(("unheard", "rehomed", "wrong"), [(False, 0.0, 1), (True, 0.0, 0), (True, 2.5, 1)])
def test_whose_answer_is_lost_again_and_again_is_in_no_conversation_yet(
    unheard: bool, rehomed: float, wrong: int
) -> None:
    """Nobody can know that he is there; but an edge that has another address calls again."""
    caller = on_the_phone("caller", "customer", 1.0, dialled="6000")
    agent = on_the_phone("agent", "1001", 2.0, unheard=unheard)
    cluster: Any = SimpleNamespace(
        carrier=SimpleNamespace(talks={"caller": caller}), phones=SimpleNamespace(talks={"agent": agent}),
        edge=SimpleNamespace(machine=None), shape=SimpleNamespace(refusals=True), rehomed=[rehomed],
        ears=SimpleNamespace(heard_by=lambda talk: []),
    )  # fmt: skip
    people: Any = SimpleNamespace(circles=Circles(cluster))
    problems: list[str] = []
    AtThePhones(
        cluster, people, lambda rule, text: problems.append(rule), lambda key, true, *a, **k: true,
        lambda *a: None,
    ).hearing()  # fmt: skip
    assert problems == ["people hear each other"] * wrong


def test_whether_an_answer_was_heard_is_known_by_who_reads_it() -> None:
    """The phone repeats it until then, whatever becomes of the ACK."""
    world = World(1)
    network = Network(world)
    wire = Wire(world, network)
    edge = Phones(world, wire, "edge", "192.0.2.1", ("192.0.2.2", 5060))
    phone = Phones(world, wire, "phone", "192.0.2.2", ("192.0.2.1", 5060))
    edge.host = "elsewhere"
    for process in (edge, phone):
        process.begin()
    edge.call("1001", "customer")
    world.run_until(0.1)
    (talk,) = phone.talks.values()
    network.loss = 1.0
    phone.answer(talk)
    world.run_until(3.0)
    assert talk.unheard
    network.loss = 0.0
    world.run_until(4.0)
    assert talk.state == "up" and not talk.unheard
