"""The time of day that a process tells, whatever its wall clock does."""

from __future__ import annotations

import pytest

from ari_ha.adapters.rtpengine import Life
from ari_ha.core.ports.probe import WallClock
from ari_ha.core.utc import BACK, FOLLOWED, HOLD_S, STEPPED, Utc
from ari_ha.wire.keyspace import BindingValue, decode
from tests.support.edge_world import EdgeWorld

START = 1_800_000_000.0
HOUR = 3600.0


@pytest.fixture
def utc() -> Utc:
    found = Utc()
    assert not found.known and found.at(5.0) == 0.0
    assert found.told(START, 100.0) == ("", 0.0)
    return found


@pytest.mark.parametrize("by_s", [HOUR, -HOUR])
def test_a_step_that_is_taken_back_was_never_told(utc: Utc, by_s: float) -> None:
    assert utc.told(START + 10 + by_s, 110.0) == (STEPPED, by_s)
    for second in range(20, int(HOLD_S)):
        assert utc.told(START + second + by_s, 100.0 + second) == ("", 0.0)
        assert utc.at(100.0 + second) == START + second
    assert utc.told(START + 65, 165.0) == (BACK, -by_s)
    assert utc.at(170.0) == START + 70


def test_what_the_wall_clock_says_itself_goes_with_it(utc: Utc) -> None:
    assert utc.wall(101.0) == START + 1 and not utc.has_stepped
    utc.told(START + 2 - HOUR, 102.0)
    assert utc.wall(103.0) == START + 3 - HOUR and utc.has_stepped
    utc.told(START + 4, 104.0)
    assert utc.wall(105.0) == START + 5 and utc.has_stepped


def test_a_clock_that_stays_is_followed(utc: Utc) -> None:
    utc.told(START + HOUR, 100.0)
    assert utc.told(START + HOUR + HOLD_S - 1, 100.0 + HOLD_S - 1) == ("", 0.0)
    assert utc.told(START + HOUR + HOLD_S, 100.0 + HOLD_S) == (FOLLOWED, HOUR)
    assert utc.at(100.0 + HOLD_S) == START + HOUR + HOLD_S


def test_one_that_steps_again_is_watched_anew(utc: Utc) -> None:
    utc.told(START + HOUR, 100.0)
    assert utc.told(START + 50 - HOUR, 150.0) == (STEPPED, -2 * HOUR)
    assert utc.told(START + HOLD_S + 1 - HOUR, 101.0 + HOLD_S) == ("", 0.0)
    assert utc.at(101.0 + HOLD_S) == START + HOLD_S + 1


def test_what_is_small_is_followed_at_once_forwards(utc: Utc) -> None:
    assert utc.told(START + 11.5, 110.0) == ("", 0.0)
    assert utc.at(110.0) == START + 11.5
    assert utc.told(START + 22.0, 120.0) == ("", 0.0)
    assert utc.at(120.0) == START + 22.0


def test_it_goes_back_so_slowly_that_it_goes_on(utc: Utc) -> None:
    utc.told(START + 1.0 - 0.3, 101.0)
    assert utc.at(101.0) > START + 0.98, "told late"
    last = utc.at(101.0)
    for second in range(2, 200):
        utc.told(START + second - 1.0, 100.0 + second)
        assert last < utc.at(100.0 + second)
        last = utc.at(100.0 + second)
    assert abs(last - (START + 198.0)) < 0.001


@pytest.mark.parametrize("by_s", [HOUR, -HOUR, 600.0, -600.0])
@pytest.mark.parametrize("age_s", [100.0, 10_000.0])
def test_a_step_of_its_clock_is_no_new_life_of_rtpengine(by_s: float, age_s: float) -> None:
    life = Life()
    assert not life.began_anew(age_s, 50.0)
    name = life.name
    assert not life.began_anew(age_s + 1 + by_s, 51.0)
    assert not life.began_anew(age_s + 2 + by_s, 52.0)
    assert not life.began_anew(age_s + 3, 53.0)
    assert life.name == name
    assert life.began_anew(1, 54.5) and life.name != name
    assert not life.began_anew(2, 55.5)


def binding(world: EdgeWorld) -> BindingValue | None:
    """What etcd has of the phone."""
    found = [(item.value, key) for key, item in world.store.items() if "/bindings/1001/" in key]
    return decode(found[0][0], BindingValue, found[0][1]) if found else None


@pytest.mark.parametrize("by_s", [HOUR, -HOUR])
def test_phones_stay_registered_though_the_edges_clock_steps(by_s: float) -> None:
    world = EdgeWorld().with_users("1001")
    world.register("1001")
    before = binding(world)
    assert before
    left_s = before.expires - world.edge.context.utc

    def passes(seconds: int, off_s: float) -> None:
        for _ in range(seconds):
            world.post(WallClock(utc_s=START + world.now + off_s))
            world.run(1.0, step=0.5)

    passes(10, by_s)
    assert binding(world) == before, "a step is not believed at once"
    passes(5, 0.0)
    assert binding(world) == before
    passes(int(HOLD_S) + 10, by_s)
    after = binding(world)
    assert after and abs(after.expires - before.expires - by_s) < 0.1, "in the new time of day"
    assert abs(world.edge.context.utc - (START + world.now + by_s)) < 2.0
    passes(int(left_s) - 100, by_s)
    assert world.edge.registrar.binding_of("1001")
    passes(40, by_s)
    assert binding(world) is None and world.edge.registrar.binding_of("1001") is None
