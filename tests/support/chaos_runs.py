"""Small runs of chaos, and what every one of them has to show."""

from __future__ import annotations

from typing import Any

from ari_ha.cli.chaos_run import Run
from ari_ha.cli.chaos_stage import Stage


def survives(
    stage: Stage, fault: str, state: str, calls: int, serial: int = 0, **more: Any
) -> dict[str, Any]:
    """The report of a run in which every call survived and nothing was left behind. Nobody looks at the
    baseline, so it is measured only when asked for (``with_baseline``)."""
    report = Run(stage, fault, state, calls, serial, **{"with_baseline": False, **more}).perform()
    against = {call["call"]: call["why"] for call in report["calls"] if not call["survived"]}
    assert not against, against
    assert not any(report["after"].values()), (report["after"], report["left"])
    assert len(report["calls"]) == calls, report["calls"]
    return report


def survives_within(
    stage: Stage, fault: str, state: str, calls: int, serial: int, lost_max_ms: dict[str, int]
) -> None:
    """The same; people who talk lose no more than the fault may cost."""
    report = survives(stage, fault, state, calls, serial)
    if state == "talking":
        for call in report["calls"]:
            assert max(call["lost_audio_ms"].values()) <= lost_max_ms[fault], call
