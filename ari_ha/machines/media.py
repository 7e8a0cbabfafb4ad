"""Who hears whom in one call, and the commands that make it so.

rtpengine is told about one subscription at a time: "X hears Y" is `+` with
``connect`` (from-tag Y, to-tag X, ``directional``) and is undone by `-` with
``unsubscribe`` and the same tags. Every change is first all its `+`, then its
`-`: at worst a packet is repeated, none is lost (measured; see
docs/internals). ``unsubscribe`` without a from-tag destroys the tag's media and
is never sent.

The wanted graph is a function of the call's media state; the difference to the
applied graph is what is sent. So a lost reply or a restart costs a repetition,
and a repeated `+` does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ari_ha.core.ids import is_supervisor
from ari_ha.sip.web_sdp import PROTO, without_ice

HITLESS, THROUGH, COACH, DIRECT = "hitless", "through", "coach", "direct"
STATES = (HITLESS, THROUGH, COACH, DIRECT)

WEB_PORT: dict[str, object] = {
    "transport-protocol": PROTO, "ICE": "force", "rtcp-mux": ["require"], "SDES": ["only-none"],
    "flags": ["no-tls-id"],
}  # fmt: skip
"""What `create` needs more for a browser. ``SDES: off`` would not keep its keys out of the SDP (26.0.1)."""

BESIDE_ICE: dict[str, object] = {"rtcp-mux": ["require"], "flags": ["no-tls-id"]}
"""What ``publish`` needs more for a browser. Without the flag another ICE session would be the end of its
DTLS association, which the browser, seeing the certificate of before, does not renew."""

Hears = tuple[str, str]
"""(listener's tag, speaker's tag)"""


def wanted_graph(state: str, up: Iterable[str], tags: Mapping[str, str]) -> set[Hears]:
    """The subscriptions of a state.

    ``up``: answered phone legs, the primary leg first. ``tags``: leg -> tag of
    its half at the serving node, for those halves that are up.
    """
    legs = list(up)
    graph: set[Hears] = set()
    if state != DIRECT:
        graph |= {(tags[leg], leg) for leg in legs if leg in tags}
        # a supervisor hears and is heard in Asterisk alone
        graph |= {(leg, tags[leg]) for leg in legs if leg in tags and is_supervisor(leg)}
    legs = [leg for leg in legs if not is_supervisor(leg)]
    pair = legs if len(legs) == 2 else None
    if pair and state in (HITLESS, DIRECT):
        one, two = pair
        return graph | {(one, two), (two, one)}
    if state == DIRECT and len(legs) > 2:
        # no node mixes them: two go on talking, the others listen to the first
        one, two, *others = legs
        return graph | {(one, two), (two, one)} | {(other, one) for other in others}
    if pair and state == COACH:
        one, two = pair
        graph.add((one, two))
        graph.add((two, tags[two]) if two in tags else (two, one))
        return graph
    if state != DIRECT:
        graph |= {(leg, tags[leg]) for leg in legs if leg in tags}
    return graph


@dataclass(slots=True)
class CallMedia:
    """The applied graph of one rtpengine call."""

    state: str = THROUGH
    applied: set[Hears] = field(default_factory=set)
    doubtful: bool = False
    """A command of the last change failed or was never answered."""
    leftover: set[Hears] = field(default_factory=set)
    """Subscriptions taken away whose end rtpengine has not confirmed"""
    waiting: list[Callable[[], None]] = field(default_factory=list)
    """Continuations that run when rtpengine has confirmed everything"""
    rounds: int = 0
    """Rounds of commands under way"""
    failures: int = 0
    """Rounds in a row that rtpengine did not confirm"""
    remote: dict[str, str] = field(default_factory=dict)
    """tag -> SDP of the far end that rtpengine must know"""
    taught: dict[str, str] = field(default_factory=dict)
    """tag -> SDP it has confirmed, or is being told"""

    def change_to(self, wanted: set[Hears]) -> list[tuple[str, Hears]]:
        """Commands that lead to ``wanted``: ``("connect"|"unsubscribe", (x, y))`` in
        the order they must be sent; the applied graph is what they lead to."""
        plus = wanted if self.doubtful else wanted - self.applied
        minus = (self.applied | self.leftover) - wanted
        self.leftover = set(minus)
        self.applied = set(wanted)
        self.doubtful = False
        return [("connect", hears) for hears in sorted(plus)] + [
            ("unsubscribe", hears) for hears in sorted(minus)
        ]

    def taken_away(self, hears: Hears) -> None:
        """rtpengine has confirmed a `-`."""
        self.leftover.discard(hears)

    def far_end(self, tag: str, sdp: str) -> None:
        """Where the far end of ``tag`` is; rtpengine has to be told."""
        self.remote[tag] = sdp
        self.taught.pop(tag, None)

    def untaught(self) -> list[tuple[str, str]]:
        """Far ends rtpengine has to be told of (again); they count as told from now."""
        due = [(tag, sdp) for tag, sdp in self.remote.items() if self.taught.get(tag) != sdp]
        self.taught.update(due)
        return due

    def not_taught(self, tag: str) -> None:
        """The telling failed, or nobody knows: it is said again."""
        self.taught.pop(tag, None)
        self.doubtful = True

    def confirmed(self, tag: str) -> bool:
        """Whether rtpengine has confirmed all that was said, and where the far end of ``tag`` is, too."""
        return tag in self.taught and not self.rounds and not self.doubtful

    def forget_tag(self, tag: str) -> None:
        """The dialog behind the tag has ended."""
        self.remote.pop(tag, None)
        self.taught.pop(tag, None)

    def relay_has(self, tags: set[str]) -> None:
        """rtpengine has these tags: what was said of others is nowhere."""
        self.applied = {hears for hears in self.applied if tags.issuperset(hears)}
        self.leftover = {hears for hears in self.leftover if tags.issuperset(hears)}
        self.taught = {tag: sdp for tag, sdp in self.taught.items() if tag in tags}

    def assume(self, graph: set[Hears]) -> None:
        """What rtpengine probably has, after a restart of ours: everything wanted is
        sent again, everything else known is taken away."""
        self.applied = set(graph)
        self.doubtful = True


def local_ports(reply: Mapping[str, Any]) -> dict[str, set[int]]:
    """The tags with media in rtpengine's reply to ``query``, and their ports. A tag that was
    only named in a command has none."""
    found: dict[str, set[int]] = {}
    for tag, party in reply.get("tags", {}).items():
        for media in party.get("medias", ()):
            ports = {int(stream.get("local port", 0)) for stream in media.get("streams", ())} - {0}
            found[tag] = found.get(tag, set()) | ports
    return {tag: ports for tag, ports in found.items() if ports}


def ng_body(call: str, hears: Hears) -> dict[str, object]:
    """The NG dictionary of one `+` or `-`."""
    listener, speaker = hears
    return {"call-id": call, "from-tag": speaker, "to-tag": listener, "flags": ["directional"]}


def teaching(tag: str, sdp: str, interface: str) -> list[tuple[str, dict[str, object]]]:
    """The commands that tell rtpengine where the far end of ``tag`` is. Its ``create
    answer`` leaves the far end's SRTP key unused (26.0.1, measured): ``publish`` on the tag
    takes the key and keeps our port and ours, but knows one codec and no digits, so
    ``create answer`` follows it."""
    body: dict[str, object] = {"from-tag": tag, "sdp": sdp}
    told: list[tuple[str, dict[str, object]]] = [("create answer", body)]
    if f" {PROTO} " in sdp:
        told.insert(0, ("publish", {**body, "interface": interface, "ICE": "force", **BESIDE_ICE}))
    elif " RTP/SAVP " in sdp:
        told.insert(0, ("publish", {**body, "interface": interface, "ICE": "remove", "DTLS": "off"}))
    return told


def ending_ice(tag: str, sdp: str, interface: str) -> dict[str, object]:
    """The ``publish`` after which ``create`` begins another ICE session on ``tag``, on the same port and
    with the keys there are. rtpengine does not follow a browser that begins one by itself (26.0.1)."""
    return {"from-tag": tag, "sdp": without_ice(sdp), "interface": interface, "ICE": "remove", **BESIDE_ICE}


def packets_from(reply: Any, tag: str) -> int | None:
    """RTP packets that rtpengine has had from the far end of ``tag``, by its answer to
    ``query``; None: the answer does not tell."""
    try:
        return int(reply["tags"][tag]["medias"][0]["streams"][0]["stats"]["packets"])
    except (KeyError, IndexError, TypeError, ValueError):
        return None
