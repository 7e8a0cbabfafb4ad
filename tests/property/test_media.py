"""Media states: whatever order they come in, the graph is the wanted one, nobody
who talks hitless ever loses the other, and every `+` comes before every `-`."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ari_ha.machines.media import DIRECT, HITLESS, STATES, THROUGH, CallMedia, wanted_graph

TAGS = {"c": "c@n1.1", "a1": "a1@n1.1"}
MOVED = {"c": "c@n2.1", "a1": "a1@n2.1"}


@given(st.lists(st.tuples(st.sampled_from(STATES), st.sampled_from([TAGS, MOVED, {}])), max_size=12))
def test_commands_lead_to_the_wanted_graph(steps):
    media, relay = CallMedia(), set()
    for state, tags in steps:
        wanted = wanted_graph(state, ["c", "a1"], tags)
        commands = media.change_to(wanted)
        kinds = [command for command, _ in commands]
        assert kinds == sorted(kinds), "every + before every -"
        for command, hears in commands:
            (relay.add if command == "connect" else relay.discard)(hears)
            if state in (HITLESS, DIRECT) and command == "unsubscribe":
                assert {("c", "a1"), ("a1", "c")} <= relay
        assert relay == wanted == media.applied


@given(st.sampled_from([HITLESS, DIRECT]), st.sampled_from([TAGS, MOVED, {}]))
def test_people_hear_each_other_without_a_node(state, tags):
    graph = wanted_graph(state, ["c", "a1"], tags)
    assert {("c", "a1"), ("a1", "c")} <= graph


def test_nobody_hears_two_speakers():
    for state in STATES:
        graph = wanted_graph(state, ["c", "a1"], TAGS)
        for listener in ("c", "a1"):
            assert len([1 for who, _ in graph if who == listener]) == 1


def test_forks_stay_when_the_state_changes():
    forks = {("c@n1.1", "c"), ("a1@n1.1", "a1")}
    media = CallMedia()
    media.change_to(wanted_graph(HITLESS, ["c", "a1"], TAGS))
    for state in (THROUGH, HITLESS):
        commands = media.change_to(wanted_graph(state, ["c", "a1"], TAGS))
        assert not forks & {hears for _, hears in commands}


def test_a_doubtful_change_is_sent_whole():
    media = CallMedia()
    wanted = wanted_graph(HITLESS, ["c", "a1"], TAGS)
    media.change_to(wanted)
    media.doubtful = True
    assert {hears for _, hears in media.change_to(wanted)} == wanted
    assert media.change_to(wanted) == []
