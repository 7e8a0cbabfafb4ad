"""Is a node's Asterisk alive, hung, cut off, or gone: one opinion per node.

Certain words act at once: the app says its Asterisk's process is gone, or the
kernel of the node refuses our OPTIONS (ICMP). Silence needs two witnesses out
of: no OPTIONS reply, the app's own ARI ping (its `NodeState`), no word on the
link, no RTP of its calls (`Sentinels`). Rounds in which this process itself was
late prove nothing, and when more than half of the nodes fall silent together we
suspect ourselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ari_ha.core.ids import NodeId
from ari_ha.core.ports.probe import SendProbe
from ari_ha.machines.edge_config import EdgeNode
from ari_ha.machines.edge_context import EdgeContext
from ari_ha.machines.sentinels import Sentinels
from ari_ha.wire import link

UP, SILENT, LOST, UNSEEN = "up", "silent", "lost", "unseen"
NEVER_LINKED_S = 2.0
"""A node that never linked since our start may take this long."""


@dataclass(slots=True)
class WatchedNode:
    """What this edge knows of one node."""

    config: EdgeNode
    state: str = UNSEEN
    incarnation: str = ""
    app_ready: bool = False
    app_reason: str = ""
    asterisk_silent_by_app: bool = False
    store_away: bool = False
    """Its app does not reach etcd, or has not written yet what it kept meanwhile."""
    unwritten: frozenset[str] = frozenset()
    """Calls of which etcd does not have what its app knows."""
    cordoned: bool = False
    draining: bool = False
    link_up: bool = False
    link_silent: bool = False
    link_down_at: float = 0.0
    calls_elsewhere: int = 0
    last_reply: float = 0.0
    probe_n: int = 0
    lost_at: float = 0.0
    lost_why: str = ""
    suspect_until: float = 0.0
    """It ended legs nobody announced: probably stopping. Used last until then."""
    taking_up_until: float = 0.0
    """It was given calls of another node: slow for some seconds, not dead."""
    records: bool = False
    """It has a recorder."""
    lost_for_certain: bool = False
    """Its process is gone; False: it may only be silent, and wake again."""

    @property
    def id(self) -> NodeId:
        """Name and incarnation."""
        return NodeId(self.config.name, self.incarnation)

    @property
    def usable(self) -> bool:
        """Whether a new call or a survivor's leg may go there now."""
        return (
            self.state in (UP, UNSEEN) and self.link_up and self.app_ready and not self.asterisk_silent_by_app
        )

    @property
    def takes_new(self) -> bool:
        """Whether a call may be given to it: usable, and nobody wants it empty."""
        return self.usable and not self.cordoned and not self.draining


class NodeWatch:
    """Watches all nodes; tells its owner about losses and returns."""

    def __init__(
        self,
        context: EdgeContext,
        sentinels: Sentinels,
        on_lost: Callable[[WatchedNode, str], None],
        on_back: Callable[[WatchedNode], None],
        on_absent: Callable[[WatchedNode], None],
        on_doubt: Callable[[WatchedNode], None],
    ) -> None:
        self._context = context
        self._on_lost = on_lost
        self._on_back = on_back
        self._on_absent = on_absent
        self._on_doubt = on_doubt
        self.sentinels = sentinels
        sentinels.on_word = self._rtp_word
        self.nodes: dict[str, WatchedNode] = {}
        self._round_at = 0.0
        for node in context.config.nodes.values():
            self.nodes[node.name] = WatchedNode(node)

    def start(self) -> None:
        """Begins to probe."""
        self._round_at = self._context.now
        for node in self.nodes.values():
            # whoever says nothing from now on is silent
            node.last_reply = max(node.last_reply, self._context.now)
            if not node.link_up:
                node.link_down_at = self._context.now
                self._arm_absent(node.config.name)
            if node.state == LOST and node.link_up:  # heard while we stood by, and knew nobody's calls
                self._on_lost(node, node.lost_why)
            elif node.state == LOST:  # it may live again, which nobody could tell us
                self._set(node, UNSEEN, "not heard of since")
        self.sentinels.start()
        self._round()

    def _arm_absent(self, name: str) -> None:
        limit = self._context.timings.app_absent_limit_s
        self._context.at(f"absent/{name}", self._context.now + limit, lambda: self._absent(name))

    def usable(self) -> Iterable[WatchedNode]:
        """Nodes that could serve now; cordoned and draining ones too."""
        return [node for node in self.nodes.values() if node.usable]

    def taking(self) -> Iterable[WatchedNode]:
        """Nodes a call may be given to now."""
        return [node for node in self.nodes.values() if node.takes_new]

    def standing(self) -> Iterable[WatchedNode]:
        """Nodes without an app whose Asterisk answers: their dialplan may serve a caller."""
        return [
            node
            for node in self.nodes.values()
            if node.state == UP and not node.app_ready and not node.asterisk_silent_by_app
            and not node.cordoned and not node.draining
        ]  # fmt: skip

    def suspect(self, name: str) -> None:
        """The node ended a leg its app had not announced: Asterisk may be on its way
        down, and the next word of it may take a while."""
        node = self.nodes.get(name)
        if node:
            node.suspect_until = self._context.now + self._context.timings.suspect_s

    def takes_up(self, node: WatchedNode) -> None:
        """The node is given a call that another one served."""
        node.taking_up_until = self._context.now + self._context.timings.taking_up_s

    # --- what we hear --------------------------------------------------------------

    def replied(self, name: str) -> None:
        """Asterisk answered an OPTIONS."""
        node = self.nodes.get(name)
        if not node:
            return
        node.last_reply = self._context.now
        self.sentinels.answered(name)
        if node.state in (SILENT, UNSEEN):
            self._set(node, UP, "answers OPTIONS")
        elif node.state == LOST and node.app_ready and not node.asterisk_silent_by_app:
            self._set(node, UP, "answers again")
            self._on_back(node)

    def refused(self, name: str) -> None:
        """The node's kernel says no process listens: Asterisk is gone."""
        node = self.nodes.get(name)
        if node and node.state != LOST:
            self.lose(node, "asterisk gone (refused)", certain=True)

    def asterisk_gone(self, name: str, incarnation: str, reason: str) -> None:
        """The app's word: this life of Asterisk is over."""
        node = self.nodes.get(name)
        if node and node.state != LOST and incarnation in ("", node.incarnation):
            node.app_ready = False
            self.lose(node, f"asterisk gone (app: {reason})", certain=True)

    def app_state(self, name: str, frame: link.NodeState) -> None:
        """The app's readiness, and what of it etcd does not have."""
        node = self.nodes.get(name)
        if not node:
            return
        ready, reason, cordoned, asterisk = frame.ready, frame.reason, frame.cordoned, frame.asterisk
        node.store_away = frame.store_away
        node.unwritten = frozenset(frame.unwritten)
        was = (node.app_ready, node.cordoned)
        node.app_ready, node.app_reason, node.cordoned = ready, reason, cordoned
        node.asterisk_silent_by_app = asterisk in ("silent", "gone")
        if was != (ready, cordoned):
            self._context.note(
                f"node/{name}", "app state", ready=ready, cordoned=cordoned, reason=reason, asterisk=asterisk
            )
        if node.asterisk_silent_by_app:
            self._judge(node)

    def hello(self, name: str, incarnation: str, features: Iterable[str] = ()) -> None:
        """The app named the life of its Asterisk, and what it can be asked for."""
        node = self.nodes.get(name)
        if not node:
            return
        node.records = link.RECORD in features
        if node.incarnation and incarnation and node.incarnation != incarnation:
            if not self._round_at:  # we stand by: calls of its new life may be there when we serve
                self._set(node, UNSEEN, "asterisk restarted")
            elif node.state != LOST:
                self.lose(node, "asterisk restarted", certain=True)
        if incarnation:
            node.incarnation = incarnation

    def link_up(self, name: str) -> None:
        """The node link is open."""
        node = self.nodes.get(name)
        if node:
            node.link_up, node.link_silent = True, False
            self._context.cancel(f"absent/{name}")

    def link_down(self, name: str, clean: bool, reason: str) -> None:
        """The node link closed. Closed by the far kernel: the app is gone, no call
        moves; by silence: a witness against the whole node."""
        node = self.nodes.get(name)
        if not node:
            return
        node.link_up, node.app_ready = False, False
        node.store_away, node.unwritten = False, frozenset()
        node.link_silent = not clean
        node.link_down_at = self._context.now
        self._context.note(f"node/{name}", "link down", level="warning", clean=clean, reason=reason)
        self._arm_absent(name)
        self._judge(node)

    def _absent(self, name: str) -> None:
        node = self.nodes[name]
        if not node.link_up and node.state != LOST:
            self._context.note(f"node/{name}", "app away for too long", level="warning")
            self._on_absent(node)

    def doubted(self, name: str) -> bool:
        """Whether a witness speaks against the node at the moment: not enough to move its
        calls, enough to let two people talk without it."""
        node = self.nodes.get(name)
        return node is not None and (node.state in (SILENT, LOST) or self.sentinels.stopped(name))

    def _rtp_word(self, name: str) -> None:
        """The node's RTP has stopped, or is there again."""
        node = self.nodes[name]
        if node.state == LOST:
            return
        if self.sentinels.stopped(name):
            self.suspect(name)
        self._on_doubt(node)
        self._judge(node)

    # --- opinion -------------------------------------------------------------------

    def _round(self) -> None:
        context, timings = self._context, self._context.timings
        late = context.now - self._round_at
        self._round_at = context.now + timings.probe_interval_s
        context.at("probe", self._round_at, self._round)
        stalled = late > timings.stall_s
        for node in self.nodes.values():
            node.probe_n += 1
            config = node.config
            context.emit(
                SendProbe(node=config.name, host=config.sip_host, port=config.sip_port, n=node.probe_n)
            )
            if stalled:
                # our own delay: give everybody a full period from now
                node.last_reply = max(node.last_reply, context.now)
        if stalled:
            context.count("edge_stalled_rounds")
            self.sentinels.discount()
            return
        self.sentinels.hasten()
        for node in self.nodes.values():
            self._judge(node)

    def stalled(self) -> None:
        """This process was late: what was not heard meanwhile proves nothing."""
        for node in self.nodes.values():
            node.last_reply = max(node.last_reply, self._context.now)
        self.sentinels.discount()

    def _judge(self, node: WatchedNode) -> None:
        context, timings = self._context, self._context.timings
        if node.state == LOST or not self._round_at:
            return
        patience = timings.taking_up_patience if context.now < node.taking_up_until else 1.0
        quiet = context.now - node.last_reply > timings.silence_s * patience
        if node.state in (UP, UNSEEN) and quiet:
            self._set(node, SILENT, "no OPTIONS reply")
        if node.state == SILENT and quiet:
            witnesses = ["OPTIONS", *self._second(node)]
        elif node.asterisk_silent_by_app and self.sentinels.stopped_s(node.config.name) > timings.silence_s:
            witnesses = ["RTP", "app's ARI ping"]
        else:
            return
        if len(witnesses) > 1 and not self._suspect_self():
            self.lose(node, f"silent ({' and '.join(witnesses)})")

    def _second(self, node: WatchedNode) -> list[str]:
        """The witness beside OPTIONS, if there is one."""
        if node.asterisk_silent_by_app:
            return ["app's ARI ping"]
        if self._no_link(node):
            return ["link"]
        return ["RTP"] if self.sentinels.stopped(node.config.name) else []

    def _no_link(self, node: WatchedNode) -> bool:
        """Silence of the link is a witness: it fell silent, or has not come since we
        began (a link its far kernel closed says only that the app is gone)."""
        never = not node.link_up and not node.incarnation
        return node.link_silent or (never and self._context.now - node.link_down_at > NEVER_LINKED_S)

    def _suspect_self(self) -> bool:
        """More than half of the nodes quiet at once, none of them for certain: the
        fault is more likely ours."""
        seen = [node for node in self.nodes.values() if node.state != UNSEEN]
        quiet = [n for n in seen if n.state == SILENT or self.sentinels.stopped(n.config.name)]
        lost_before = [node for node in seen if node.state == LOST]
        alive = len(seen) - len(lost_before)
        if alive > 1 and len(quiet) * 2 > alive:
            self._context.count("edge_suspects_itself")
            return True
        return False

    def gone(self, ident: NodeId) -> bool:
        """Whether that life of the node's Asterisk is certainly over."""
        node = self.nodes.get(ident.name)
        if node is None:
            return True
        if node.incarnation and ident.incarnation and ident.incarnation != node.incarnation:
            return True
        return node.state == LOST and node.lost_for_certain

    def lose(self, node: WatchedNode, why: str, certain: bool = False) -> None:
        """The node's Asterisk no longer serves its calls."""
        node.lost_at, node.lost_why, node.lost_for_certain = self._context.now, why, certain
        self._set(node, LOST, why)
        self._on_lost(node, why)

    def _set(self, node: WatchedNode, state: str, why: str) -> None:
        if node.state != state:
            level = "warning" if state in (SILENT, LOST) else "info"
            self._context.note(f"node/{node.config.name}", f"now {state}", level=level, why=why)
            was, node.state = node.state, state
            if LOST in (was, state):
                self.sentinels.lost(node.config.name, state == LOST)
            if SILENT in (was, state) and state != LOST:
                self._on_doubt(node)
