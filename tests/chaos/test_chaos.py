"""Representative chaos: small runs of what `ari-ha chaos run` does at large, with the same judge."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ari_ha.cli.chaos_faults import ABOUT
from ari_ha.cli.chaos_judge import ALONE_STATES, EARLY_MEDIA, MIXED, percentile, worst
from ari_ha.cli.chaos_mixed import shares
from ari_ha.cli.chaos_stage import Stage
from ari_ha.cli.lab_versions import there
from tests.support.chaos_runs import survives

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

CALLS = 3
MIXED_CALLS = 10
"""Some in each of six states"""
DRAINED_CALLS = 20
EMPTY_MAX_MS, DRAIN_LOST_MAX_MS = 3_000, 100
"""A drain has emptied its node within 1.1 s and lost nothing, on two busy cores (docs/index.md), and every
cell of it in docs/matrix.md has a 95th percentile of 0, at loads of 8 to 14. Where no processor is free an
ear misses a packet or two, and music has halted for 56 ms with nothing drained: no fault of the move."""
NOTHING_LOST_SHARE = 0.75
"""Of the calls. A move that is heard at all is heard in the calls that Asterisk bridges or plays something
to, 14 of these 20; the others are hitless, and a median could hide it."""


def perform(stage: Stage, fault: str, state: str, serial: int = 0, **more: Any) -> dict[str, Any]:
    return survives(stage, fault, state, MIXED_CALLS if state == MIXED else CALLS, serial, **more)


@pytest.mark.parametrize(
    "state", ["talking", MIXED, "transfer", "consult", "conference", EARLY_MEDIA, "whispered"]
)
def test_asterisk_killed(running_lab: Stage, state: str) -> None:
    """The other states stand in docs/matrix.md: what `make chaos` measured."""
    report = perform(running_lab, "asterisk-kill", state, 0, with_baseline=state == "talking")
    alone = sum(shares(MIXED_CALLS)[each] for each in ALONE_STATES) if state == MIXED else 0
    assert sum(call["same_agent"] is None for call in report["calls"]) == alone
    for call in report["calls"]:
        assert call["resumed_ms"] is not None
        assert (call["carrier_messages"], call["phone_messages"]) == (0, 0)
        assert call["same_agent"] in (None, True)
        if state == "talking":
            assert call["lost_audio_ms"] == {"to_customer": 0, "to_agent": 0}
    if state == "talking":
        assert not report["baseline"]["against"] and report["baseline"]["lost_ms_max"] == 0


@pytest.mark.parametrize("fault", ["asterisk-stop", "asterisk-restart-now", "asterisk-freeze", "node-cut"])
def test_asterisk_lost_in_other_ways(running_lab: Stage, fault: str) -> None:
    report = perform(running_lab, fault, "talking", 1)
    for call in report["calls"]:
        assert call["lost_audio_ms"] == {"to_customer": 0, "to_agent": 0}
        assert (call["carrier_messages"], call["phone_messages"]) == (0, 0)


@pytest.mark.parametrize("fault", ["asterisk-freeze", "node-cut"])
def test_a_silent_loss_while_people_talk_through_asterisk(running_lab: Stage, fault: str) -> None:
    perform(running_lab, fault, "through", 2)


@pytest.mark.parametrize(
    "fault",
    [
        "app-kill",
        "app-freeze",
        pytest.param(
            "app-version-change", marks=pytest.mark.skipif(not there(), reason="no older commit here")
        ),
        "edge-process-kill",
        "etcd-member-kill",
        "etcd-leader-kill",
        "etcd-quorum-loss",
    ],
)
def test_what_nobody_on_the_phone_may_notice(
    running_lab: Stage, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        ABOUT, "etcd-quorum-loss", replace(ABOUT["etcd-quorum-loss"], mend_after_s=15.0)
    )  # the matrix has the whole minute
    report = perform(running_lab, fault, "talking", 1)
    for call in report["calls"]:
        assert call["lost_audio_ms"] == {"to_customer": 0, "to_agent": 0}
        assert (call["carrier_messages"], call["phone_messages"]) == (0, 0)


@pytest.mark.parametrize("during", ["hangup-caller", "hangup-agent"])
@pytest.mark.parametrize("fault", ["asterisk-kill", "edge-process-kill"])
def test_somebody_hangs_up_inside_the_gap(running_lab: Stage, fault: str, during: str) -> None:
    perform(running_lab, fault, "talking", 2, during=during)


def test_a_transfer_is_asked_for_inside_the_gap_and_survives_the_next_death(running_lab: Stage) -> None:
    perform(running_lab, "asterisk-kill", "talking", 2, during="refer-agent")


def test_a_node_is_emptied_of_calls_in_many_states(running_lab: Stage) -> None:
    report = survives(running_lab, "drain", MIXED, DRAINED_CALLS, 0)
    assert report["node_empty_ms"] is not None and report["node_empty_ms"] <= EMPTY_MAX_MS
    lost = sorted(worst(report["calls"], "lost_audio_ms"))
    assert len(lost) == DRAINED_CALLS, report["calls"]
    assert percentile(lost, NOTHING_LOST_SHARE) == 0 and lost[-1] <= DRAIN_LOST_MAX_MS, lost


def test_a_full_disk_is_no_matter(running_lab: Stage) -> None:
    perform(running_lab, "disk-full", "talking", 1)


@pytest.mark.parametrize(
    ("fault", "state"),
    [("clock-step", "talking"), ("clock-step", "queued"), ("edge-clock-step", "talking")],
)
def test_a_wall_clock_steps_an_hour_either_way(running_lab: Stage, fault: str, state: str) -> None:
    """The node's Asterisk and app, or the edge; every run looks at the times in its call records."""
    report = perform(running_lab, fault, state, 1)
    for call in report["calls"]:
        assert (call["carrier_messages"], call["phone_messages"]) == (0, 0)
        assert all(lost in (0, None) for lost in call["lost_audio_ms"].values()), call


def test_a_caller_gives_up_inside_the_gap_while_it_rings(running_lab: Stage) -> None:
    perform(running_lab, "asterisk-kill", "ringing", 1, during="hangup-caller")


def test_calls_end_while_the_database_fails_over(running_lab: Stage) -> None:
    """One row each: the outbox waits for the new primary. (Every run here counts its rows.)"""
    perform(running_lab, "database-kill", "talking", 0, during="hangup-caller")


def test_the_clerk_dies_while_calls_end(running_lab: Stage) -> None:
    perform(running_lab, "clerk-kill", "talking", 0, during="hangup-agent")
