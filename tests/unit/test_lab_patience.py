"""Edges whose detectors conclude nothing: what they are started with is taken, and given back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ari_ha.cli import lab_patience as patience
from ari_ha.cli.lab import LabError
from ari_ha.machines.edge_config import EdgeTimings
from ari_ha.machines.guard_config import GuardTimings
from ari_ha.runtime.settings import load
from sidecars.edge.settings import EdgeSettings
from sidecars.guard.settings import GuardSettings

SIDECARS = Path(__file__).resolve().parents[2] / "sidecars"


def environment(service: str) -> dict[str, str]:
    return dict(re.findall(r"^export (\S+)=(\S+)$", patience.words(service), re.MULTILINE))


def test_the_guard_takes_them_and_its_budget_adds_up() -> None:
    """Nothing it concludes from silence can come true in a run of some minutes."""
    example = SIDECARS / "guard/guard.example.json"
    timings = load(GuardSettings, example, environ=environment("guard")).settings.timings
    usual = GuardTimings()
    assert min(timings.detect_s, timings.hold_s, timings.fence_ttl_s, timings.yield_after_s) >= 1_800
    assert (timings.beat_every_s, timings.care_every_s) == (usual.beat_every_s, usual.care_every_s)


def test_the_edge_takes_them_and_probes_as_always() -> None:
    example = SIDECARS / "edge/settings.example.json"
    timings = load(EdgeSettings, example, environ=environment("edge")).settings.timings
    usual = EdgeTimings()
    assert min(timings.silence_s, timings.link_silence_s, timings.rtp_stop_s) >= 1_800
    for name in ("probe_interval_s", "rtp_sentinels_max", "rtp_poll_s"):
        assert getattr(timings, name) == getattr(usual, name)


class Host:
    """What is asked of a host; ``patient``: its processes run with the words."""

    def __init__(self, patient: bool) -> None:
        self.patient = patient
        self.asked: list[str] = []

    def run(self, host: str, *command: str, given: str | None = None, limit_s: float = 0.0) -> str:
        self.asked.append(" ".join(command))
        return "yes" if self.patient and "echo yes" in command[-1] else ""

    def running(self) -> dict[str, str]:
        return {"edge1": "running"}


def test_every_running_edge_is_started_again_with_them() -> None:
    host = Host(patient=True)
    patience.give_edges(host, "")  # type: ignore[arg-type]
    assert [a for a in host.asked if "force-restart" in a] == ["sv -w 10 force-restart guard edge"]


def test_one_that_does_not_take_them_is_no_control(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "START_LIMIT_S", 0.0)
    with pytest.raises(LabError, match="other timings"):
        patience.give(Host(patient=False), "edge1")  # type: ignore[arg-type]
