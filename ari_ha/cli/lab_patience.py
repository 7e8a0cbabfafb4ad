"""Edges whose detectors conclude nothing: the control of a run with load. Everything is sent, heard and
computed as always, but no silence is ever long enough. What calls lose then, the load alone has cost them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ari_ha.cli.lab import Lab

PATIENT = "/run/patient"
"""What the run scripts of edge and guard read first, with the service's name behind it."""
NEVER_S = 3600
WORDS = {
    # Six heartbeats become as many as an hour has; the kernel's fence stays open as long without a word.
    "guard": {
        "BEATS_MISSED_MAX": NEVER_S * 20,
        "FENCE_TTL_S": NEVER_S / 2,
        "HOLD_S": NEVER_S,
        "YIELD_AFTER_S": NEVER_S,
    },
    "edge": {"SILENCE_S": NEVER_S, "LINK_SILENCE_S": NEVER_S, "RTP_STOP_S": NEVER_S},
}
"""Service -> the timings that are another's, and their values in seconds."""
START_LIMIT_S = 30.0


def words(service: str) -> str:
    """What is read before the service starts: its settings of the environment."""
    return "".join(f"export ARI_HA__TIMINGS__{name}={value}\n" for name, value in WORDS[service].items())


def give_edges(lab: Lab, _: str) -> None:
    """Every edge and guard is started again with them. Raises LabError."""
    from ari_ha.cli.lab import running_edges

    for edge in running_edges(lab):
        give(lab, edge)


def give(lab: Lab, edge: str) -> None:
    """The edge's processes are started again with patience. Raises LabError when they do not come up so."""
    from ari_ha.cli.lab import wait_until

    for service in WORDS:
        lab.run(edge, "sh", "-c", f"cat > {PATIENT}-{service}", given=words(service))
    _again(lab, edge)
    wrong = f"{edge}: its processes did not start with other timings"
    wait_until(wrong, START_LIMIT_S, lambda: has(lab, edge))


def has(lab: Lab, edge: str) -> bool:
    """Whether edge and guard (where there is one) run with them."""
    script = "".join(
        f"p=$(cat /service/{service}/supervise/pid); [ $(cat /proc/$p/comm) = sleep ] || "
        f"for q in $p $(pgrep -P $p); do "
        # only its own user may look into a process
        f"chpst -u $(stat -c %U /proc/$q) grep -qz {next(iter(timings))} /proc/$q/environ || exit 1; done; "
        for service, timings in WORDS.items()
    )
    return lab.run(edge, "sh", "-c", f"({script} echo yes) 2>/dev/null || true").strip() == "yes"


def take(lab: Lab, edge: str) -> None:
    """They run with the timings of their settings again."""
    lab.run(edge, "rm", "-f", *(f"{PATIENT}-{service}" for service in WORDS))
    _again(lab, edge)


def _again(lab: Lab, edge: str) -> None:
    lab.run(edge, "sv", "-w", "10", "force-restart", *WORDS, limit_s=40.0)
