"""Chaos, what is known of each fault: whether calls have to move, and when it is mended."""

from ari_ha.cli.lab_clock import EACH_S
from ari_ha.cli.lab_faults import STARVED_S

MOVING = (
    "edge-and-asterisk-kill",
    "asterisk-kill",
    "asterisk-stop",
    "asterisk-restart-now",
    "asterisk-freeze",
    "node-cut",
    "node-cut-in",
    "node-cut-out",
    "two-nodes-kill",
    "survivor-kill",
    "all-nodes-kill",
    "drain",
)
"""Faults after which another Asterisk (or another life of the same one) must serve the calls."""
STARVED_FAULTS = ("edge-starved", "edge-starved-patient", "node-starved")
"""`edge-starved-patient` is the control of `edge-starved`: the same load, detectors that conclude nothing."""
CLOCK_FAULTS = ("clock-step", "edge-clock-step")
MEND_AFTER_S = {
    "app-freeze": 3.0,
    "compaction": 3.0,
    "etcd-slow": 8.0,
    "node-loss": 6.0,
    "etcd-quorum-loss": 60.0,
    "asterisk-freeze": 10.0,
    "edge-freeze": 4.0,
    "edge-cut": 4.0,
    "edge-heartbeats-lost": 4.0,
    "disk-full": 5.0,
    **dict.fromkeys(STARVED_FAULTS, STARVED_S + 1.0),
    **dict.fromkeys(CLOCK_FAULTS, 2 * EACH_S),
}
"""Faults that are mended while the run still watches, after this long."""
APP_FAULTS = ("app-kill", "app-freeze", "app-version-change")
STAYING = (*APP_FAULTS, *CLOCK_FAULTS, *STARVED_FAULTS, "disk-full")
"""Faults that are over before a call need move."""
PAIR_FAULTS = (
    "edge-kill",
    "edge-freeze",
    "edge-cut",
    "edge-heartbeats-lost",
    "edge-switchover",
    "rtpengine-kill",
    "rtpengine-kill-twice",
    "edge-and-asterisk-kill",
    "edge-and-etcd-leader-kill",
)
"""What strikes one edge of two."""
ONE_EDGE_FAULTS = ("rtpengine-restart",)
"""What a lab with a pair cannot show: an edge without a valkey."""
COMING_BACK = ("asterisk-freeze", "node-cut", "node-cut-in", "node-cut-out")
"""Faults whose node wakes up with calls it has lost."""
