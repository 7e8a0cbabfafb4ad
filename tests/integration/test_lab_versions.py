"""Two versions side by side: one node's app, or the edge, is an older commit of this repository."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence

import pytest

from ari_ha.cli import lab_versions as versions
from ari_ha.cli.chaos_judge import Pair
from ari_ha.cli.chaos_stage import Stage, until
from ari_ha.cli.drain import plan_of, remove, write
from ari_ha.cli.lab import EDGES, NODES
from ari_ha.core.ports.store import Compare, Put

pytestmark = [
    pytest.mark.lab,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not versions.there(), reason=f"no commit {versions.PREVIOUS[:12]} in this checkout"),
]

OLD, NEW, THIRD = NODES
LIMIT_S = 60.0


def use(stage: Stage, host: str, service: str, older: bool, drained: Collection[str] = ()) -> None:
    """The service is of that version, serves, and no call has moved. Nodes that are drained take no calls."""
    before = {caller: row["epoch"] for caller, row in stage.edge_calls().items()}
    if older:
        versions.run_other(stage.lab, host, service)
        until("the older version runs", LIMIT_S, lambda: versions.runs_other(stage.lab, host, service), 0.1)
    else:
        versions.run_own(stage.lab, host, service)
        until(
            "the present version runs",
            LIMIT_S,
            lambda: stage.lab.child_pid(host, service) and not versions.runs_other(stage.lab, host, service),
            0.1,
        )
    # An edge that has begun again has its links before etcd has told it its calls.
    until("the edge serves", LIMIT_S, lambda: stage.edge_status()["serving"], 0.1)
    until("nodes take calls", LIMIT_S, lambda: set(stage.usable_nodes()) >= {*NODES} - {*drained}, 0.2)
    assert {caller: row["epoch"] for caller, row in stage.edge_calls().items()} == before


def open_all(stage: Stage) -> None:
    """Nobody keeps new calls from any node."""
    stage.undrain()
    stage.uncordon(NODES)


@pytest.fixture
def old_app(stage: Stage) -> Iterator[Stage]:
    """A lab one of whose node apps is older than the rest."""
    use(stage, OLD, "app", older=True)
    yield stage
    open_all(stage)
    use(stage, OLD, "app", older=False)


@pytest.fixture
def old_apps(stage: Stage) -> Iterator[Stage]:
    """A lab all of whose node apps are older than the rest."""
    for node in NODES:
        use(stage, node, "app", older=True)
    yield stage
    open_all(stage)
    for node in NODES:
        if versions.runs_other(stage.lab, node, "app"):
            use(stage, node, "app", older=False)


@pytest.fixture
def old_edge(stage: Stage) -> Iterator[Stage]:
    """A lab whose edge is older than the nodes' apps."""
    use(stage, EDGES[0], "edge", older=True)
    yield stage
    open_all(stage)
    use(stage, EDGES[0], "edge", older=False)


def talk(
    stage: Stage, node: str, agent: str = "1001", caller: str = "15558501", busy: Sequence[str] = ()
) -> Pair:
    """Two people talk, served by that node; all nodes take calls then. Other agents are ``busy``, or out."""
    stage.agents_in([agent], busy)
    stage.far.manner(mode="answer", after_s=0.1)
    stage.only(node)
    (ident,) = stage.far.place("6000", caller)
    pair = Pair(ident, caller, "talking")
    until("they are connected", LIMIT_S, lambda: stage.reached([pair]), 0.2)
    until("they talk", LIMIT_S, lambda: stage.talking([pair]), 0.1)
    stage.uncordon(NODES)
    until("all nodes take calls", LIMIT_S, lambda: set(stage.usable_nodes()) >= set(NODES), 0.2)
    stage.refresh([pair])
    assert pair.node == node
    return pair


def served(stage: Stage, pair: Pair, before: str) -> bool:
    """Whether it is served under another epoch than that, whole."""
    row = stage.edge_call(pair.call)
    if row["epoch"] == before or row["lost"] or row["moving_to"]:
        return False
    stage.refresh([pair])
    return True


def move(stage: Stage, pair: Pair, to: str) -> None:
    """What ``ari-ha takeover`` does."""
    before = pair.epoch
    edge = stage.cluster.settings.processes[stage.active_edge()]
    stage.cluster.http(edge, f"/v1/calls/{pair.call}/takeover", "POST", {"to": to})
    until(f"{to} serves", LIMIT_S, lambda: served(stage, pair, before), 0.1)
    assert pair.node == to
    whole(stage, pair)


def whole(stage: Stage, pair: Pair) -> None:
    """Both dialogs are what they were, both hear each other, and the node hears the digits of both."""
    until("they talk", LIMIT_S, lambda: stage.talking([pair]), 0.1)
    heard(stage, pair)


def heard(stage: Stage, pair: Pair) -> None:
    """The dialogs are what they were, and the node hears the digits of whoever is to be heard."""
    calls = [call for call in (pair.customer, pair.agent_call) if call]
    assert all(stage.far.call(call)["state"] == "up" for call in calls)
    since = stage.far.now()

    def hears() -> bool:
        stage.far.digits(dict(zip(calls, "12", strict=False)))
        digits = [d for d in stage.edge_call(pair.call)["digits"] if d["at_utc"] > since]
        return {d["leg"] for d in digits if d["epoch"] == pair.epoch} >= set(pair.legs)

    until("a node hears the digits", LIMIT_S, hears, 0.4)


def hang_up(stage: Stage, pair: Pair, by: str, *more: Pair) -> None:
    """Whoever hangs up, the other one is ended and nothing is left."""
    for one in (pair, *more):
        mine, other = (one.customer, one.agent_call) if by == "customer" else (one.agent_call, one.customer)
        stage.far.order(mine, "hangup")
        until(
            "the other is ended", LIMIT_S, lambda other=other: stage.far.call(other)["state"] == "ended", 0.1
        )  # type: ignore[misc]
    until("nobody has the call", LIMIT_S, lambda: not stage.edge_calls() and not stage.owned_calls(), 0.2)


def test_a_call_moves_between_apps_of_two_versions(old_app: Stage) -> None:
    """By takeover there and back, and by a drain of the older one."""
    pair = talk(old_app, OLD)
    move(old_app, pair, NEW)
    move(old_app, pair, OLD)
    before = pair.epoch
    write(old_app.cluster, OLD)
    try:
        until("it is served elsewhere", LIMIT_S, lambda: served(old_app, pair, before), 0.1)
        assert pair.node != OLD
        whole(old_app, pair)
    finally:
        remove(old_app.cluster, OLD)
    hang_up(old_app, pair, "customer")


def empty(stage: Stage, node: str) -> None:
    """What ``ari-ha drain`` does, until no call is left there."""
    plan = plan_of(stage.view(), node)
    assert not plan.against
    write(stage.cluster, node, plan.others)
    until(f"{node} is empty", LIMIT_S, lambda: not stage.view().calls_of()[node], 0.1)


@pytest.mark.timeout(900)
def test_an_upgrade_goes_round_all_nodes_and_every_call_survives_it(old_apps: Stage) -> None:
    """Drain, the present version, undrain, node by node, while people talk, are on hold and wait."""
    stage, pairs = old_apps, []
    for n, node in enumerate(NODES):
        agent, busy = str(1001 + n), [pair.agent for pair in pairs]
        pairs.append(talk(stage, node, agent, f"1555860{n}", busy))
    *talking, held = pairs
    stage.far.order(held.agent_call, "hold")
    held.state = "held"
    (ident,) = stage.far.place("6000", "15558609")
    waiting = Pair(ident, "15558609", "queued")
    until("the last one waits", LIMIT_S, lambda: stage.reached([waiting]), 0.2)
    everybody = [*pairs, waiting]
    for node in NODES:
        stage.refresh(everybody)
        here = [pair for pair in everybody if pair.node == node]
        assert here, "nothing would be shown by that node"
        empty(stage, node)
        use(stage, node, "app", older=False, drained=[node])
        remove(stage.cluster, node)
        until("all nodes take calls", LIMIT_S, lambda: set(stage.usable_nodes()) >= set(NODES), 0.2)
        stage.refresh(everybody)
        assert all(pair.node != node for pair in here)
        until("they hear each other", LIMIT_S, lambda: stage.talking(talking), 0.1)
        until("they hear music", LIMIT_S, lambda: stage.hearing_music([held, waiting]), 0.1)
        for pair in everybody:
            heard(stage, pair)
    stage.far.order(held.agent_call, "unhold")
    until("nobody is on hold", LIMIT_S, lambda: stage.talking(pairs), 0.1)
    stage.far.order(talking[0].customer, "hangup")
    waiting.state = "talking"
    until("a free agent gets who waits", LIMIT_S, lambda: stage.reached([waiting]), 0.2)
    assert waiting.agent == talking[0].agent
    hang_up(stage, held, "agent", waiting, *talking[1:])


@pytest.mark.parametrize("dies", [OLD, NEW])
def test_an_asterisk_dies_and_an_app_of_the_other_version_goes_on(old_app: Stage, dies: str) -> None:
    pair = talk(old_app, dies)
    heir = NEW if dies == OLD else OLD
    old_app.node_http(THIRD, "/v1/cordon", "POST", {})
    until("there is one heir", LIMIT_S, lambda: old_app.usable_nodes() == sorted([dies, heir]), 0.1)
    before = pair.epoch
    old_app.lab.asterisk_kill(dies)
    until("the heir serves", LIMIT_S, lambda: served(old_app, pair, before), 0.05)
    assert pair.node == heir
    whole(old_app, pair)
    hang_up(old_app, pair, "agent")


def test_an_app_is_replaced_by_the_other_version_while_people_talk(stage: Stage) -> None:
    """Its calls stay where they are (`use` looks), whichever way the version changes."""
    pair = talk(stage, OLD)
    use(stage, OLD, "app", older=True)
    whole(stage, pair)
    use(stage, OLD, "app", older=False)
    whole(stage, pair)
    hang_up(stage, pair, "customer")


def test_what_an_older_app_does_not_know_stays_in_etcd(old_app: Stage) -> None:
    """A field of a newer version in the call's record and in the agent's: written back, and still there."""
    pair = talk(old_app, OLD)
    cluster = old_app.cluster
    keys = (cluster.keys.record(pair.call), cluster.keys.agent(pair.agent))
    for key in keys:
        until(f"{key} has more than it knows", LIMIT_S, lambda key=key: add(old_app, key), 0.1)  # type: ignore[misc]
    revisions = {key: cluster.get(key).mod_revision for key in keys}
    old_app.far.order(pair.agent_call, "hold")

    def written() -> bool:
        return all(cluster.get(key).mod_revision > revision for key, revision in revisions.items())

    until("the app has written both", LIMIT_S, written, 0.2)
    for key in keys:
        assert json.loads(cluster.get(key).value)["newer"] == {"of": "a newer version"}, key


def add(stage: Stage, key: str) -> bool:
    """Somebody newer writes more into a value."""
    item = stage.cluster.get(key)
    value = json.dumps({**json.loads(item.value), "newer": {"of": "a newer version"}}).encode()
    return bool(stage.cluster.txn([Compare(key, item.mod_revision)], [Put(key, value)]).succeeded)


def test_an_older_edge_with_newer_apps(old_edge: Stage) -> None:
    """A new call, a takeover, a node's death, and then the edge itself becomes the present one."""
    pair = talk(old_edge, NEW)
    move(old_edge, pair, THIRD)
    before = pair.epoch
    old_edge.lab.asterisk_kill(THIRD)
    until("another node serves", LIMIT_S, lambda: served(old_edge, pair, before), 0.05)
    whole(old_edge, pair)
    until("all nodes take calls", LIMIT_S, lambda: set(old_edge.usable_nodes()) >= set(NODES), 0.2)
    use(old_edge, EDGES[0], "edge", older=False)
    whole(old_edge, pair)
    move(old_edge, pair, OLD if pair.node != OLD else NEW)
    hang_up(old_edge, pair, "customer")


def test_the_edge_goes_back_to_the_older_version_while_people_talk(stage: Stage) -> None:
    pair = talk(stage, NEW)
    use(stage, EDGES[0], "edge", older=True)
    try:
        whole(stage, pair)
        move(stage, pair, OLD)
    finally:
        use(stage, EDGES[0], "edge", older=False)
    whole(stage, pair)
    hang_up(stage, pair, "agent")
