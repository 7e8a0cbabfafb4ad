"""Two versions within an edge pair: edge and guard of one host are an older commit of this repository, and
calls go from it and to it, as in a rolling upgrade (`ARI_HA_OVERLAYS=pair docker/lab up`)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from test_lab_versions import LIMIT_S, hang_up, move, served, talk, whole

from ari_ha.cli import lab_pair
from ari_ha.cli import lab_versions as versions
from ari_ha.cli.chaos_stage import Stage, until
from ari_ha.cli.lab import NODES, PAIR, Struck

pytestmark = [
    pytest.mark.lab,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not versions.there(), reason=f"no commit {versions.PREVIOUS[:12]} in this checkout"),
]

SERVICES = ("edge", "guard")
HERE, OTHER, THIRD = NODES


def standby(stage: Stage) -> str:
    active = stage.active_edge()
    return next(edge for edge in PAIR if edge != active)


def replace(stage: Stage, host: str, older: bool) -> None:
    """Edge and guard of that host, which stands by, are of that version, and the pair is whole."""
    assert host == standby(stage)
    for service in SERVICES:
        (versions.run_other if older else versions.run_own)(stage.lab, host, service)
    until("they run", LIMIT_S, lambda: all(runs(stage, host, service, older) for service in SERVICES), 0.1)
    until("the pair is whole", LIMIT_S, stage.pair_is_whole, 0.2)


def runs(stage: Stage, host: str, service: str, older: bool) -> bool:
    alive = bool(stage.lab.child_pid(host, service))
    return alive and versions.runs_other(stage.lab, host, service) is older


def hand_over(stage: Stage) -> None:
    """A planned switchover, asked for until the guard agrees; the pair is whole again then."""
    heir, active = standby(stage), stage.active_edge()
    until("it hands over", LIMIT_S, lambda: lab_pair.switchover(stage.lab, active), 0.5)
    serves(stage, heir)
    until("the pair is whole", LIMIT_S, stage.pair_is_whole, 0.2)


def serves(stage: Stage, heir: str) -> None:
    until(f"{heir} serves", LIMIT_S, lambda: stage.active_edge() == heir, 0.05)
    until("all nodes take calls", LIMIT_S, lambda: set(stage.usable_nodes()) >= set(NODES), 0.2)


def kill_active(stage: Stage) -> Struck:
    heir, struck = standby(stage), lab_pair.kill(stage.lab, stage.active_edge())
    serves(stage, heir)
    return struck


@pytest.fixture
def pair(stage: Stage) -> Iterator[Stage]:
    """A pair whose standby is older. All is of the present version again afterwards (`Lab.heal`)."""
    if len(stage.edges) < 2:
        pytest.skip("this lab has one edge")
    replace(stage, standby(stage), older=True)
    yield stage
    stage.lab.heal()
    until("the pair is whole again", LIMIT_S, stage.pair_is_whole, 0.2)


def test_a_pair_goes_back_and_is_upgraded_while_people_talk(pair: Stage) -> None:
    """Host by host to the older version and back again: standby, switchover, the other."""
    call, claims = talk(pair, HERE), pair.claims()
    for older in (True, False):
        hand_over(pair)
        whole(pair, call)
        replace(pair, standby(pair), older)
        whole(pair, call)
        if older:
            assert all(runs(pair, edge, service, True) for edge in PAIR for service in SERVICES)
            move(pair, call, OTHER)
            replace(pair, standby(pair), False)
    assert pair.claims() == claims + 2, "only what was asked for"
    assert all(runs(pair, edge, service, False) for edge in PAIR for service in SERVICES)
    whole(pair, call)
    hang_up(pair, call, "customer")


def test_a_host_dies_and_the_other_version_goes_on(pair: Stage) -> None:
    """First the newer one, then, when it is back, the older one."""
    call = talk(pair, HERE)
    old = standby(pair)
    struck = kill_active(pair)
    assert pair.active_edge() == old and runs(pair, old, "edge", True)
    whole(pair, call)
    move(pair, call, THIRD)
    assert struck.mend is not None
    struck.mend()
    until("the pair is whole", LIMIT_S, pair.pair_is_whole, 0.2)
    kill_active(pair)
    whole(pair, call)
    assert pair.edge_call(call.call)["epoch"] == call.epoch
    hang_up(pair, call, "agent")


def test_an_asterisk_dies_while_the_pair_has_two_versions(pair: Stage) -> None:
    """The older edge, just switched to, moves the call; the newer one has it when it serves again."""
    hand_over(pair)
    call = talk(pair, HERE)
    before = call.epoch
    pair.lab.asterisk_kill(HERE)
    until("another node serves", LIMIT_S, lambda: served(pair, call, before), 0.05)
    whole(pair, call)
    until("all nodes take calls", LIMIT_S, lambda: set(pair.usable_nodes()) >= set(NODES), 0.2)
    hand_over(pair)
    whole(pair, call)
    hang_up(pair, call, "agent")
