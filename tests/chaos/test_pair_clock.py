"""An edge pair one of whose hosts has a wrong clock (`ARI_HA_OVERLAYS=pair docker/lab up`)."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from ari_ha.cli import lab_clock, lab_pair
from ari_ha.cli.chaos_judge import Pair, lost_and_gap
from ari_ha.cli.chaos_stage import Stage, until
from ari_ha.cli.cluster import decode_json
from ari_ha.cli.lab import PAIR

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

CALLS = 3
LIMIT_S = 30.0
WRONG_FOR_S = 12.0
"""Longer than the lease of an edge and of a guard (10 s)."""
LOST_MAX_MS = 900
LATER, LATER_CALLER = "1004", "15558601"


@pytest.fixture
def pair(stage: Stage) -> Iterator[Stage]:
    """Both hosts have clocks of their own, which are right."""
    if len(stage.edges) < 2 or not stage.address_moves():
        pytest.skip("this lab has no pair with one address")
    lab_clock.give_edges(stage.lab, "")
    stage.whole()
    yield stage
    stage.lab.heal()
    until("the pair is whole again", LIMIT_S, stage.pair_is_whole, 0.2)


def leases(stage: Stage) -> dict[str, tuple[int, int]]:
    """Leased key of each edge and guard -> its lease, and since when it is there."""
    found = [item for family in ("edges", "guards") for item in stage.cluster.family(family)]
    return {item.key: (item.lease, item.create_revision) for item in found}


def registered(stage: Stage) -> bool:
    """Whether every phone is, by its own word and in etcd by a time that is not over."""
    health, now = stage.far.health(), time.time()
    bindings = [decode_json(item) for item in stage.cluster.family("bindings")]
    there = {value["aor"] for value in bindings if now < value["expires"] < now + lab_clock.HOUR_S / 2}
    return health["registered"] == health["phones"] <= len(there)


@pytest.mark.parametrize("by_s", [lab_clock.HOUR_S, -lab_clock.HOUR_S])
@pytest.mark.parametrize("whose", ["active", "standby"])
def test_a_pair_with_a_wrong_clock(pair: Stage, whose: str, by_s: int) -> None:
    """Nobody's lease ends and no address moves. Then the active host dies, so that in one case the one with
    the wrong clock takes over: calls and registrations go on, and a new call is served."""
    active = pair.active_edge()
    standby = next(edge for edge in PAIR if edge != active)
    pairs = pair.place(CALLS, "talking", 0)
    before, claims, since = leases(pair), pair.claims(), pair.far.now()
    assert set(before.values()) and registered(pair)
    lab_clock.put_ahead(pair.lab, active if whose == "active" else standby, by_s)
    time.sleep(WRONG_FOR_S)
    assert leases(pair) == before and pair.claims() == claims
    assert registered(pair) and pair.talking(pairs)
    struck = lab_pair.kill(pair.lab, active)
    until("the standby serves", LIMIT_S, lambda: pair.active_edge() == standby, 0.05)
    until("they talk", LIMIT_S, lambda: pair.talking(pairs), 0.1)
    end = pair.far.now()
    rows = pair.measure(since, pairs, end)
    lost = [lost_and_gap(rows[p.customer], p.agent_call, end - since)[0] for p in pairs]
    print(f"{whose} {by_s:+d} s: lost_ms={lost}")
    assert max(lost) <= LOST_MAX_MS
    later = answered_by_another(pair, [p.agent for p in pairs])
    assert pair.talking([*pairs, later]) and registered(pair)
    assert struck.mend is not None
    struck.mend()
    until("the pair is whole", 2 * LIMIT_S, pair.pair_is_whole, 0.2)


def answered_by_another(stage: Stage, busy: list[str]) -> Pair:
    """A new call, for an agent whose registration the edge that took over did not take itself."""
    stage.agents_in([LATER], busy)
    (ident,) = stage.far.place("6000", LATER_CALLER)
    later = Pair(ident, LATER_CALLER, "talking")
    until("it is served", LIMIT_S, lambda: stage.reached([later]), 0.2)
    return later
