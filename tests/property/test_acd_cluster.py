"""Any interleaving of several ACDs on one store, with lost and late transactions,
node deaths and the store away, keeps the invariants and comes to rest."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ari_ha.checkers.acd import check_failover
from ari_ha.core.ports.store import StoreTxn, TxnResult
from ari_ha.machines.acd_orders import AcdSettings
from ari_ha.machines.acd_queue import why_not_routable
from ari_ha.simulation.acd_cluster import FATES, Cluster, Memory
from tests.support.queue_log import wrong_in_log

NODES = 3
AGENTS = ("alice", "bob", "carol")
NO_ORDER_CHECK_S = 1e12
REST_S = 150.0
PHONE = ("ring", "pick_up", "pick_up", "reject", "busy", "unreachable", "end")
ORDINARY = ("ring", "answer", "hold", "end")
VERBS = ("login", "logout", "available", "not-ready", "toggle", "acw-done", "acw-extend")


class AcdCluster(RuleBasedStateMachine):
    """Chooses the next step; the cluster does nothing by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.cluster = Cluster(NODES, AcdSettings(queue_log=True), settle_s=NO_ORDER_CHECK_S)

    @initialize()
    def start(self) -> None:
        c = self.cluster
        c.queue("support", max_waiting=4, rona_max=2, no_answer_delay_ms=2000)
        c.queue("sales", wrapup_ms=0)
        c.agent("alice", "support")
        c.agent("bob", "support", "sales")
        c.agent("carol", "sales", login=False)
        c.start()
        c.flow()

    def _living(self) -> list[str]:
        return sorted(name for name, node in self.cluster.nodes.items() if node.alive)

    def _pick(self, data: st.DataObject, items: list[str]) -> str:
        return data.draw(st.sampled_from(items))

    # --- people ------------------------------------------------------------------------

    @rule(data=st.data(), queue=st.sampled_from(["support", "sales"]), priority=st.integers(0, 2))
    def call(self, data: st.DataObject, queue: str, priority: int) -> None:
        if len(self.cluster.phones) < 6:
            self.calls += 1
            self.cluster.call(f"k{self.calls}", queue, self._pick(data, self._living()), priority)

    @precondition(lambda self: self.cluster.phones)
    @rule(data=st.data())
    def hang_up(self, data: st.DataObject) -> None:
        self.cluster.hang_up(self._pick(data, sorted(self.cluster.phones)))

    @precondition(lambda self: self.cluster.legs)
    @rule(
        data=st.data(),
        what=st.sampled_from(["ring", "pick_up", "pick_up", "reject", "busy", "unreachable", "end"]),
    )
    def phone(self, data: st.DataObject, what: str) -> None:
        c = self.cluster
        leg = c.legs[self._pick(data, sorted(c.legs))]
        if leg.state in ("answered", "up"):
            if what == "end":
                c.agent_hangs_up(leg.attempt)
        elif what == "ring":
            c.ring(leg.attempt)
        elif what == "pick_up":
            c.pick_up(leg.attempt)
        elif what != "end":
            c.turn_down(leg.attempt, what)

    @precondition(lambda self: self.cluster.legs)
    @rule(data=st.data(), last=st.sampled_from(ORDINARY))
    def ordinary(self, data: st.DataObject, last: str) -> None:
        """A call goes its ordinary way as far as ``last``: chance alone seldom gets far."""
        c = self.cluster
        c.flow()
        if not c.legs:
            return
        attempt = self._pick(data, sorted(c.legs))
        for step in ORDINARY[: ORDINARY.index(last) + 1]:
            leg = c.legs.get(attempt)
            if leg is None:
                return
            state = leg.state
            if step == "ring" and state == "dialled":
                c.ring(attempt)
            elif step == "answer" and state == "ringing":
                c.pick_up(attempt)
            elif step == "hold" and state == "up":
                c.hold(attempt, True)
            elif step == "end" and state == "up":
                c.agent_hangs_up(attempt)
            c.flow()

    @precondition(lambda self: any(leg.state == "up" for leg in self.cluster.legs.values()))
    @rule(data=st.data(), held=st.booleans())
    def hold(self, data: st.DataObject, held: bool) -> None:
        up = sorted(leg.attempt for leg in self.cluster.legs.values() if leg.state == "up")
        self.cluster.hold(self._pick(data, up), held)

    @rule(
        data=st.data(), agent=st.sampled_from(AGENTS),
        verb=st.sampled_from(VERBS),
    )  # fmt: skip
    def verb(self, data: st.DataObject, agent: str, verb: str) -> None:
        args = {"device": f"dev-{agent}"} if verb == "login" else {}
        self.cluster.verb(self._pick(data, self._living()), verb, agent, **args)

    # --- the world ---------------------------------------------------------------------

    @rule(data=st.data(), fate=st.sampled_from(FATES))
    def perform(self, data: st.DataObject, fate: str) -> None:
        busy = sorted(name for name, node in self.cluster.nodes.items() if node.effects)
        if busy:
            self.cluster.perform(self.cluster.nodes[self._pick(data, busy)], fate)

    @rule(data=st.data(), count=st.integers(1, 5))
    def deliver(self, data: st.DataObject, count: int) -> None:
        self.cluster.deliver(self.cluster.nodes[self._pick(data, self._living())], count)

    @rule()
    def flow(self) -> None:
        self.cluster.flow()

    @rule()
    def arrive_late(self) -> None:
        self.cluster.arrive_late()

    @rule(seconds=st.sampled_from([0.05, 0.5, 3.0, 16.0]))
    def tick(self, seconds: float) -> None:
        self.cluster.tick(seconds)

    @precondition(lambda self: len(self._living()) > 1)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        self.cluster.kill(self._pick(data, self._living()))

    @rule(data=st.data())
    def lease_out(self, data: st.DataObject) -> None:
        dead = sorted(set(self.cluster.nodes) - set(self._living()))
        if dead:
            self.cluster.lease_out(self._pick(data, dead))

    @precondition(lambda self: self.cluster.phones)
    @rule(data=st.data())
    def take_over(self, data: st.DataObject) -> None:
        call = self._pick(data, sorted(self.cluster.phones))
        self.cluster.take_over(call, self._pick(data, self._living()))

    @precondition(lambda self: self.cluster.phones)
    @rule(data=st.data())
    def rebuilt(self, data: st.DataObject) -> None:
        self.cluster.rebuilt(self._pick(data, sorted(self.cluster.phones)))

    @rule(data=st.data())
    def restart(self, data: st.DataObject) -> None:
        dead = sorted(set(self.cluster.nodes) - set(self._living()))
        if dead:
            self._restart(self._pick(data, dead))

    def _restart(self, name: str) -> None:
        c = self.cluster
        moved = [call for call, phone in c.phones.items() if phone.node == name]
        c.start_node(name, str(int(c.nodes[name].incarnation) + 1))
        for call in moved:
            c.take_over(call, name)

    @rule()
    def lose_store(self) -> None:
        for name in self._living():
            if not self.cluster.nodes[name].store_away:
                self.cluster.lose_store(self.cluster.nodes[name])

    @rule()
    def find_store(self) -> None:
        for name in self._living():
            if self.cluster.nodes[name].store_away:
                self.cluster.find_store(self.cluster.nodes[name])

    # --- what must hold ----------------------------------------------------------------

    @invariant()
    def holds(self) -> None:
        found = self.cluster.findings()
        assert not found, found

    def teardown(self) -> None:
        c = self.cluster
        if not c.nodes:
            return
        self.find_store()
        while c.later:
            c.arrive_late()
        for name in sorted(set(c.nodes) - set(self._living())):
            c.lease_out(name)
            self._restart(name)
        c.advance(REST_S)
        for call in sorted(c.phones):
            c.rebuilt(call)
        c.advance(1.0)
        for _ in range(3):
            c.advance(REST_S)
        found = c.findings(quiet=True) + self._idle_beside_callers()
        assert not found, found
        assert not any(agent.recovering for agent in c.picture().agents.values())
        assert not any(node.acd._writes.ops for node in c.nodes.values()), "writes left over"

    def _idle_beside_callers(self) -> list[str]:
        now = self.cluster.picture()
        free = {
            queue
            for agent in now.agents.values()
            for queue in agent.queues
            if not why_not_routable(agent, self.cluster.utc, lambda aor: True)
        }
        return [
            f"{e.call} waits beside a free agent"
            for e in now.entries.values()
            if e.queue in free and not e.attempt
        ]


HEALTH = [HealthCheck.too_slow, HealthCheck.filter_too_much]
CONFIG = settings(
    max_examples=100, stateful_step_count=60, deadline=None, suppress_health_check=HEALTH,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)  # fmt: skip


def test_any_interleaving() -> None:
    run_state_machine_as_test(AcdCluster, settings=CONFIG)


class StoreThere(AcdCluster):
    """What nodes do without the store they tell each for itself, in no common order; with it the queue log
    is one story."""

    def lose_store(self) -> None:
        """Not in this world."""

    @invariant()
    def one_story(self) -> None:
        found = wrong_in_log(self.cluster)
        assert not found, found


def test_the_queue_log_tells_one_story() -> None:
    run_state_machine_as_test(StoreThere, settings=settings(CONFIG, max_examples=60))


# --- the test can fail ----------------------------------------------------------------


class BlindToAgents(Memory):
    """The planted mistake: a transaction that does not compare the agent."""

    def txn(self, effect: StoreTxn, utc: float) -> TxnResult:
        prefix = self.keys.prefix("agents")
        compares = tuple(c for c in effect.compares if not c.key.startswith(prefix))
        return super().txn(StoreTxn(compares=compares, puts=effect.puts, deletes=effect.deletes), utc)


class BlindCluster(AcdCluster):
    def __init__(self) -> None:
        super().__init__()
        self.cluster.store.__class__ = BlindToAgents


def test_an_agent_not_compared_is_found() -> None:
    config = settings(CONFIG, max_examples=200, phases=[Phase.generate], derandomize=True, database=None)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(BlindCluster, settings=config)


# --- every interrupted prefix ---------------------------------------------------------

STEPS_MAX = 14


def way_of_a_call(c: Cluster, cut: int) -> bool:
    """A call's way on node n1 until ``cut`` of its effects are done; False when it is
    over before."""
    node, done = c.nodes["n1"], 0
    acts = iter(("ring", "pick up", "hold", "take back", "hang up"))
    c.call("k1", "support", "n1")
    while True:
        if node.effects:
            if done == cut:
                return True
            c.perform(node)
            done += 1
            continue
        act = next(acts, None)
        attempt = next(iter(c.legs), "")
        match act:
            case "ring":
                c.ring(attempt)
            case "pick up":
                c.pick_up(attempt)
            case "hold" | "take back":
                c.hold(attempt, act == "hold")
            case "hang up":
                c.agent_hangs_up(attempt)
            case _:
                return False


@pytest.mark.parametrize("caller", ["stays", "hangs up"])
@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("cut", range(STEPS_MAX))
def test_every_interrupted_prefix_converges(cut: int, applied: bool, caller: str) -> None:
    """The node dies at any of its effects, which arrived or not."""
    c = Cluster(2)
    c.queue("support")
    c.agent("alice", "support")
    c.start()
    c.advance(1.0)
    if not way_of_a_call(c, cut):
        return
    if applied:
        c.perform(c.nodes["n1"], "reply-lost")
    c.kill("n1")
    before, busy = c.agents_data(), c.agent_now("alice").work != "idle"
    c.advance(0.6)
    if caller == "hangs up" and "k1" in c.phones:
        c.hang_up("k1")
    elif "k1" in c.phones:
        c.take_over("k1", "n2")
        c.flow()
        if applied and busy:
            assert check_failover(before, c.agents_data()) == []
        c.rebuilt("k1")
    c.advance(0.5)
    c.lease_out("n1")
    c.advance(120.0)
    assert c.findings(quiet=True) == []
    agent = c.agent_now("alice")
    assert (agent.missed, agent.misses, agent.intent, agent.recovering) == (0, 0, "available", None)
