"""Chaos, what is known of each fault."""

from __future__ import annotations

from dataclasses import dataclass

from ari_ha.cli.lab_clock import EACH_S
from ari_ha.cli.lab_faults import STARVED_S


@dataclass(frozen=True, slots=True)
class About:
    """One fault."""

    what: str
    """What happens, in words"""
    moves: bool = False
    """Another Asterisk, or another life of the same one, must serve the calls afterwards."""
    stays: bool = False
    """It is over before a call need move: none may."""
    mend_after_s: float | None = None
    """It is mended while the run still watches, after this long; None: when the calls are served again."""
    of_app: bool = False
    """It strikes a node app, which its parent must start again."""
    comes_back: bool = False
    """The node wakes up with calls it has lost."""
    edges: int | None = None
    """It strikes one edge of two (2), or can be seen only where there is one (1); None: both will do."""


ABOUT: dict[str, About] = {
    "asterisk-kill": About(
        "SIGKILL to a node's Asterisk; its supervisor starts it again after a second",
        moves=True,
    ),
    "asterisk-stop": About(
        "SIGTERM to it, as a service manager sends it",
        moves=True,
    ),
    "asterisk-restart-now": About(
        "`core restart now`, typed by an operator",
        moves=True,
    ),
    "asterisk-freeze": About(
        "SIGSTOP to a node's Asterisk; then it goes on",
        moves=True,
        mend_after_s=10.0,
        comes_back=True,
    ),
    "node-cut": About(
        "the node's cable is pulled, and plugged in again when its calls are served elsewhere",
        moves=True,
        comes_back=True,
    ),
    "node-cut-in": About(
        "nothing reaches the node; what it says still arrives",
        moves=True,
        comes_back=True,
    ),
    "node-cut-out": About(
        "the node hears everything; nothing it says arrives",
        moves=True,
        comes_back=True,
    ),
    "node-loss": About(
        "the node's network loses 5 % of its packets, each way",
        mend_after_s=6.0,
    ),
    "app-kill": About(
        "SIGKILL to the node app; it is started again after a second",
        stays=True,
        of_app=True,
    ),
    "app-freeze": About(
        "SIGSTOP to the node app, which its parent must kill and start again",
        stays=True,
        mend_after_s=3.0,
        of_app=True,
    ),
    "app-version-change": About(
        "the node app is ended and another version of it (an older commit of this repository) "
        "starts in its place; then the other way round",
        stays=True,
        of_app=True,
    ),
    "edge-process-kill": About(
        "SIGKILL to the edge process; rtpengine goes on, its parent starts it again",
    ),
    "rtpengine-kill": About(
        "SIGKILL to rtpengine beside its valkey: it starts again and finds its calls",
        edges=2,
    ),
    "rtpengine-kill-twice": About(
        "the same, and again 2 s after it was started again",
        edges=2,
    ),
    "rtpengine-restart": About(
        "SIGKILL to rtpengine where no valkey keeps its calls: far ends get a re-INVITE",
        edges=1,
    ),
    "edge-kill": About(
        "the active edge's host is gone at once, with everything on it; it comes back empty",
        edges=2,
    ),
    "edge-freeze": About(
        "every process of the active edge's host stands still; its kernel does not",
        mend_after_s=4.0,
        edges=2,
    ),
    "edge-cut": About(
        "both cables of the active edge's host are pulled",
        mend_after_s=4.0,
        edges=2,
    ),
    "edge-heartbeats-lost": About(
        "heartbeats between the two guards are lost on every path; all else arrives",
        mend_after_s=4.0,
        edges=2,
    ),
    "edge-switchover": About(
        "a planned one, as `ari-ha switchover edge` asks for it",
        edges=2,
    ),
    "edge-and-asterisk-kill": About(
        "the active edge's host and a node's Asterisk die in the same moment",
        moves=True,
        edges=2,
    ),
    "edge-and-etcd-leader-kill": About(
        "the active edge's host and etcd's leader die in the same moment",
        edges=2,
    ),
    "etcd-member-kill": About(
        "SIGKILL to an etcd member that does not lead",
    ),
    "etcd-leader-kill": About(
        "SIGKILL to the member that leads",
    ),
    "etcd-quorum-loss": About(
        "the leader and one more of three members stand still: no majority",
        mend_after_s=60.0,
    ),
    "etcd-slow": About(
        "all members stand still 1 s of every 1.5 s",
        mend_after_s=8.0,
    ),
    "database-kill": About(
        "SIGKILL to the database server that is written to",
    ),
    "clerk-kill": About(
        "SIGKILL to the clerk that writes call records",
    ),
    "drain": About(
        "no fault: what `ari-ha drain` does, called off afterwards",
        moves=True,
    ),
    "two-nodes-kill": About(
        "SIGKILL to the Asterisk of two nodes at once",
        moves=True,
    ),
    "survivor-kill": About(
        "150 ms after one Asterisk another dies, while it takes calls up",
        moves=True,
    ),
    "all-nodes-kill": About(
        "every Asterisk at once: calls wait until the first is back",
        moves=True,
    ),
    "compaction": About(
        "a node app and the edge lose etcd, and what they have not read of its history is compacted away: "
        "calls stay where they are, both read everything anew",
        stays=True,
        mend_after_s=4.0,
    ),
    "disk-full": About(
        "no byte can be written where a node's Asterisk writes (small file systems of their own)",
        stays=True,
        mend_after_s=5.0,
    ),
    "edge-starved": About(
        "64 busy processes share the active edge's part of the processors: no edge may be "
        "replaced, not even there and back",
        stays=True,
        mend_after_s=STARVED_S + 1.0,
    ),
    "edge-starved-patient": About(
        "the control of that one: the same load, while no silence is ever long enough for edges "
        "and guards (`ari_ha/cli/lab_patience.py`). What calls lose here is not our detectors' "
        "doing",
        stays=True,
        mend_after_s=STARVED_S + 1.0,
    ),
    "node-starved": About(
        "8 busy processes share a node's part of the processors",
        stays=True,
        mend_after_s=STARVED_S + 1.0,
    ),
    "clock-step": About(
        "the wall clock of a node (Asterisk and app) is an hour ahead for 4 s, then an hour behind for 4 s. "
        "Only calls in which somebody typed while it was ahead are moved, for that Asterisk hears no digit "
        "of theirs until it is there again",
        stays=True,
        mend_after_s=2 * EACH_S,
    ),
    "edge-clock-step": About(
        "the same with an edge (edge and guard)",
        stays=True,
        mend_after_s=2 * EACH_S,
    ),
}
