"""Chaos, what is known of each fault: what happens, whether calls have to move, and when it is mended."""

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
WHAT = {
    "asterisk-kill": "SIGKILL to a node's Asterisk; its supervisor starts it again after a second",
    "asterisk-stop": "SIGTERM to it, as a service manager sends it",
    "asterisk-restart-now": "`core restart now`, typed by an operator",
    "asterisk-freeze": "SIGSTOP to a node's Asterisk; then it goes on",
    "node-cut": "the node's cable is pulled, and plugged in again when its calls are served elsewhere",
    "node-cut-in": "nothing reaches the node; what it says still arrives",
    "node-cut-out": "the node hears everything; nothing it says arrives",
    "node-loss": "the node's network loses 5 % of its packets, each way",
    "app-kill": "SIGKILL to the node app; it is started again after a second",
    "app-freeze": "SIGSTOP to the node app, which its parent must kill and start again",
    "app-version-change": "the node app is ended and another version of it (an older commit of this "
    "repository) starts in its place; then the other way round",
    "edge-process-kill": "SIGKILL to the edge process; rtpengine goes on, its parent starts it again",
    "rtpengine-kill": "SIGKILL to rtpengine beside its valkey: it starts again and finds its calls",
    "rtpengine-kill-twice": "the same, and again 2 s after it was started again",
    "rtpengine-restart": "SIGKILL to rtpengine where no valkey keeps its calls: far ends get a re-INVITE",
    "edge-kill": "the active edge's host is gone at once, with everything on it; it comes back empty",
    "edge-freeze": "every process of the active edge's host stands still; its kernel does not",
    "edge-cut": "both cables of the active edge's host are pulled",
    "edge-heartbeats-lost": "heartbeats between the two guards are lost on every path; all else arrives",
    "edge-switchover": "a planned one, as `ari-ha switchover edge` asks for it",
    "edge-and-asterisk-kill": "the active edge's host and a node's Asterisk die in the same moment",
    "edge-and-etcd-leader-kill": "the active edge's host and etcd's leader die in the same moment",
    "etcd-member-kill": "SIGKILL to an etcd member that does not lead",
    "etcd-leader-kill": "SIGKILL to the member that leads",
    "etcd-quorum-loss": "the leader and one more of three members stand still: no majority",
    "etcd-slow": "all members stand still 0.7 s of every 1.2 s",
    "database-kill": "SIGKILL to the database server that is written to",
    "clerk-kill": "SIGKILL to the clerk that writes call records",
    "drain": "no fault: what `ari-ha drain` does, called off afterwards",
    "two-nodes-kill": "SIGKILL to the Asterisk of two nodes at once",
    "survivor-kill": "150 ms after one Asterisk another dies, while it takes calls up",
    "all-nodes-kill": "every Asterisk at once: calls wait until the first is back",
    "compaction": "a node app stands still, and what it has not read of etcd's history is compacted away",
    "disk-full": "no byte can be written where a node's Asterisk writes (small file systems of their own)",
    "edge-starved": "64 busy processes share the active edge's part of the processors: no edge may be "
    "replaced, not even there and back",
    "edge-starved-patient": "the control of that one: the same load, while no silence is ever long enough "
    "for edges and guards (`ari_ha/cli/lab_patience.py`). What calls lose here is not our detectors' doing",
    "node-starved": "8 busy processes share a node's part of the processors",
    "clock-step": "the wall clock of a node (Asterisk and app) is an hour ahead for 4 s, then an hour behind "
    "for 4 s",
    "edge-clock-step": "the same with an edge (edge and guard)",
}
"""What happens, in words."""
