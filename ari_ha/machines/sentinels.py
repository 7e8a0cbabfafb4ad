"""Does a node's Asterisk still send audio? RTP of a few of its calls as a witness.

rtpengine counts what each party sends it, also what nobody hears (docs/internals/rtpengine.md).
So a call whose Asterisk must be sending all the time is a *sentinel*: two people who talk, because
what one says Asterisk passes on to the other's leg, in hitless as in through; or a caller alone who
hears music. A sentinel has stopped when none of its node legs sent anything for a while in which
the phones were heard: that shows that the relay was well, and that there was something to pass on.

A node's RTP has stopped when every sentinel of it has. That is a witness, no verdict: `NodeWatch`
decides. What was not seen, because the relay did not answer or we were late, proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from ari_ha.core.machine import Done, Outcome, Refused
from ari_ha.machines.edge_context import EdgeContext
from ari_ha.machines.edge_model import EdgeCall
from ari_ha.machines.media import HITLESS, packets_from

FLOWS, STOPPED, UNKNOWN = "flows", "stopped", ""
QUERY_LIMIT_S = 0.25
"""A relay that has not answered by then says nothing about anybody."""
SLOW_ANSWER_S = 0.1
"""An answer that took this long may have been counted at any time of it: it shows that
packets came, never that none did."""
STEADY_S = 1.0
"""A call must have been seen sending for this long before its silence means anything."""
STILL_ANSWERS_MIN = 2
"""Answers in a row without a packet: one may have been read in the middle of a burst."""
SHARE_MIN = 0.25
"""A node leg that sends less than this share of what its phone sends is not steady."""
LATE_PROBES = 1.5
"""OPTIONS unanswered for this many probe intervals: the node's sentinels are looked at closely."""
TAGS_MAX = 16
"""A call that has had more parties is no sentinel: rtpengine's answer tells of each, 1.7 kB."""

BY_THROUGH, BY_TALK, BY_MUSIC = range(3)
"""Kinds of sentinels, the best first: two who talk through Asterisk, two who talk, a caller alone."""

Ear = tuple[str, str]
"""(tag of a node leg, tag of the phone that must be heard for it to be expected to send)"""


@dataclass(frozen=True, slots=True)
class Sample:
    """What rtpengine answered, somewhere between ``asked`` and ``told``."""

    asked: float
    told: float
    packets: Mapping[str, int]


@dataclass(slots=True, eq=False)
class Sentinel:
    """One call that is looked at."""

    call: str
    kind: int
    ears: tuple[Ear, ...]
    last: Sample | None = None
    base: Sample | None = None
    """Since when it has been seen sending."""
    steady: bool = False
    still: int = 0
    """Answers in a row without a packet of its node legs"""
    still_since: float = 0.0
    """They had sent something until about then."""
    flowing: bool = False
    """Whether the last two answers that show anything show packets of its node legs"""
    moved_at: float = 0.0
    """The last time that packets were seen coming, by two answers close together"""
    failures: int = 0
    """How often it turned out not to send all the time"""

    def take(self, sample: Sample, close_s: float) -> None:
        """One more answer; ``close_s``: two nearer than this say when a packet came."""
        last, self.last = self.last, sample
        if last is None:
            self.base, self.still, self.still_since = self.base or sample, 0, sample.told
            return
        grown = self._grown(last, sample)
        if any(sent < 0 or heard < 0 for sent, heard in grown):  # another life of the relay
            self.forget(sample)
        elif any(sent for sent, _ in grown):
            self.flowing, self.still, self.still_since = True, 0, sample.told
            if sample.told - last.asked <= close_s:
                self.moved_at = sample.told
            self._judge_flow(sample)
        elif sample.told - sample.asked < SLOW_ANSWER_S and any(heard for _, heard in grown):
            self.flowing = False
            self.still += 1
            if not self.steady:
                self._fail(sample)

    def _grown(self, before: Sample, after: Sample) -> list[tuple[int, int]]:
        """Packets of each node leg, and of the phone it depends on."""
        return [
            (after.packets[node] - before.packets[node], after.packets[phone] - before.packets[phone])
            for node, phone in self.ears
        ]

    def _judge_flow(self, sample: Sample) -> None:
        base = self.base or sample
        if self.steady or sample.told - base.told < STEADY_S:
            return
        driven = [(sent, heard) for sent, heard in self._grown(base, sample) if heard]
        self.steady = bool(driven) and all(sent >= SHARE_MIN * heard for sent, heard in driven)
        if not self.steady:
            self._fail(sample)

    def _fail(self, sample: Sample) -> None:
        self.failures += 1
        self.base = sample

    def forget(self, base: Sample) -> None:
        """Nothing seen so far counts any more."""
        self.last = self.base = base
        self.steady = self.flowing = False
        self.still, self.still_since = 0, base.told
        self.failures += 1

    def discount(self) -> None:
        """The silence seen so far does not count."""
        self.last, self.still = None, 0


@dataclass(slots=True)
class NodeRtp:
    """What is known of one node."""

    name: str
    answered_at: float = 0.0
    """Its last reply to OPTIONS"""
    lost: bool = False
    sentinels: list[Sentinel] = field(default_factory=list)
    to_ask: list[Sentinel] = field(default_factory=list)
    asking: bool = False
    """A question to the relay is open: there is never a second one."""
    closely: bool = False
    """Looked at every ``rtp_poll_s``"""
    due: float = 0.0
    word: str = UNKNOWN
    since: float = 0.0
    """When its RTP stopped, as far as seen"""


def fit(call: EdgeCall) -> tuple[int, tuple[Ear, ...]] | None:
    """What kind of sentinel the call is and what to look at; None: Asterisk may be silent
    in it by right. A change of the answer makes it another sentinel."""
    owner = call.owner
    if owner is None or call.lost or call.ended or call.move or call.by_dialplan:
        return None
    legs = call.living()
    if any(leg.held or leg.muted or leg.consult or leg.aside for leg in legs):
        return None
    up = [leg.leg for leg in legs if leg.state == "up"]
    tags = {
        half.leg: half.tag
        for half in call.halves.values()
        if half.state == "up" and half.node.name == owner.name
    }
    if not 1 <= len(up) <= 2 or any(leg not in tags for leg in up):
        return None
    if (len(call.legs) + len(call.tombstones)) * (1 + max(1, len(call.served))) > TAGS_MAX:
        return None
    if len(up) == 1:
        return None if call.in_menu else (BY_MUSIC, ((tags[up[0]], up[0]),))
    one, two = up
    kind = BY_TALK if call.media.state == HITLESS else BY_THROUGH
    return kind, ((tags[one], two), (tags[two], one))


class Sentinels:
    """The sentinels of every node."""

    def __init__(self, context: EdgeContext, calls: Mapping[str, EdgeCall]) -> None:
        self._context = context
        self._calls = calls
        self._nodes = {name: NodeRtp(name) for name in context.config.nodes}
        self._failed: dict[str, float] = {}
        """Calls that were looked at and did not send steadily -> when: tried last again"""
        self.on_word: Callable[[str], None] = lambda node: None
        """Called when a node's RTP has stopped, or is there again"""

    def start(self) -> None:
        """Begins to look."""
        if self._context.timings.rtp_sentinels_max > 0:
            for node in self._nodes.values():
                node.answered_at = self._context.now
            self._round()

    # --- what we are told ----------------------------------------------------------

    def answered(self, name: str) -> None:
        """Asterisk answered an OPTIONS."""
        self._nodes[name].answered_at = self._context.now

    def lost(self, name: str, lost: bool) -> None:
        """The node's calls are being moved away, or it is used again."""
        node = self._nodes[name]
        node.lost, node.answered_at = lost, self._context.now
        self._dismiss(node)

    def discount(self) -> None:
        """We were late: no silence that spans it counts."""
        self._context.count("edge_rtp_rounds_discarded")
        for node in self._nodes.values():
            node.answered_at = self._context.now
            for sentinel in node.sentinels:
                sentinel.discount()

    def hasten(self) -> None:
        """Another probe is on its way: whoever has not answered the one before it is
        looked at closely."""
        for node in self._nodes.values():
            if self._late(node):
                self._closely(node)

    # --- what we say ---------------------------------------------------------------

    def stopped(self, name: str) -> bool:
        """Whether the node's RTP has stopped."""
        node = self._nodes.get(name)
        return node is not None and node.word == STOPPED

    def stopped_s(self, name: str) -> float:
        """Seconds since it stopped; 0: it has not."""
        return self._context.now - self._nodes[name].since if self.stopped(name) else 0.0

    def view(self, name: str) -> dict[str, object]:
        """For people: ``flows``, ``stopped`` or nothing known, and by which calls."""
        node = self._nodes[name]
        return {"rtp": node.word, "sentinels": [s.call for s in node.sentinels if s.steady]}

    # --- choosing ------------------------------------------------------------------

    def _round(self) -> None:
        """Chooses sentinels and asks each once: how they are when nothing is wrong."""
        context = self._context
        context.at("rtp", context.now + context.timings.rtp_idle_poll_s, self._round)
        self._failed = {call: at for call, at in self._failed.items() if call in self._calls}
        looking = {name: self._settled(node) for name, node in self._nodes.items() if not node.lost}
        found: dict[str, list[Sentinel]] = {name: [] for name in looking}
        for call in self._calls.values():
            name = call.owner.name if call.owner else ""
            if name not in looking or (looking[name] and call.media.state == HITLESS):
                continue
            if fitting := fit(call):
                found[name].append(Sentinel(call.call, *fitting))
        for name, others in found.items():
            node = self._nodes[name]
            self._choose(node, others)
            self._ask(node, node.sentinels)

    def _settled(self, node: NodeRtp) -> bool:
        """Whether only people who talk through the node would be better sentinels."""
        many = len(node.sentinels) >= self._context.timings.rtp_sentinels_max
        return many and all(s.steady and s.kind <= BY_TALK for s in node.sentinels)

    def _choose(self, node: NodeRtp, others: Iterable[Sentinel]) -> None:
        """Those we know stay; a caller alone who did not send steadily makes room."""
        if node.word == STOPPED:
            return
        known = [s for s in node.sentinels if self._fits(s)]
        for sentinel in known:
            if sentinel.failures and not sentinel.steady:
                self._failed[sentinel.call] = self._context.now
        names = {s.call for s in known}
        chosen = known + [s for s in others if s.call not in names]
        chosen.sort(key=lambda s: (s.kind, not s.steady, self._failed.get(s.call, 0.0)))
        node.sentinels = chosen[: self._context.timings.rtp_sentinels_max]
        self._say(node)

    def _fits(self, sentinel: Sentinel) -> bool:
        call = self._calls.get(sentinel.call)
        found = fit(call) if call else None
        if found is None or found[1] != sentinel.ears:
            return False
        sentinel.kind = found[0]
        return True

    def _dismiss(self, node: NodeRtp) -> None:
        node.sentinels, node.to_ask = [], []
        self._say(node)

    # --- asking --------------------------------------------------------------------

    def _late(self, node: NodeRtp) -> bool:
        timings = self._context.timings
        silence_s = self._context.now - node.answered_at
        return not node.lost and silence_s > LATE_PROBES * timings.probe_interval_s

    def _suspicious(self, node: NodeRtp) -> bool:
        """Whether all sentinels are to be asked at each look. A caller alone may hear
        nothing by right: his silence makes nobody suspicious."""
        return self._late(node) or any(s.still and s.steady and s.kind != BY_MUSIC for s in node.sentinels)

    def _worth_it(self, node: NodeRtp) -> bool:
        """Whether looking closely may help anybody: two people would be connected
        directly, or a silent node would be known sooner."""
        if node.lost or not node.sentinels:
            return False
        through = any(s.kind == BY_THROUGH for s in node.sentinels)
        return through or node.word == STOPPED or self._suspicious(node)

    def _closely(self, node: NodeRtp) -> None:
        if not node.closely and self._worth_it(node):
            node.closely, node.due = True, self._context.now
            self._look(node)

    def _look(self, node: NodeRtp) -> None:
        """One close look."""
        context = self._context
        if context.now - node.due > 2 * context.timings.rtp_poll_s:
            self.discount()
        node.sentinels = [s for s in node.sentinels if self._fits(s)]
        node.closely = self._worth_it(node)
        if not node.closely:
            self._say(node)
            return
        self._ask(node, node.sentinels if self._suspicious(node) else self._lookout(node))
        node.due = context.now + self._pause_s()
        context.at(f"rtp/{node.name}", node.due, lambda: self._look(node))

    def _lookout(self, node: NodeRtp) -> list[Sentinel]:
        """The one that is asked while nothing looks wrong."""
        return sorted(node.sentinels, key=lambda s: not s.steady)[:1]

    def _pause_s(self) -> float:
        """Seconds between two looks: longer where many nodes are looked at."""
        timings = self._context.timings
        questions = sum(
            len(node.sentinels) if self._suspicious(node) else 1
            for node in self._nodes.values()
            if node.closely
        )
        return max(timings.rtp_poll_s, questions / timings.rtp_queries_per_second_max)

    def _ask(self, node: NodeRtp, sentinels: Iterable[Sentinel]) -> None:
        if not self._context.media_ok:
            self._unknown(node)
        elif not node.asking:
            node.to_ask = list(sentinels)
            self._ask_next(node)

    def _ask_next(self, node: NodeRtp) -> None:
        while node.to_ask:
            sentinel = node.to_ask.pop(0)
            if sentinel in node.sentinels and self._fits(sentinel):
                self._query(node, sentinel)
                return

    def _query(self, node: NodeRtp, sentinel: Sentinel) -> None:
        context, asked = self._context, self._context.now
        node.asking = True

        def told(outcome: Outcome) -> None:
            node.asking = False
            if isinstance(outcome, Done | Refused):
                self._told(node, sentinel, asked, outcome)
                self._say(node)
                self._ask_next(node)
            else:
                context.count("edge_rtp_unanswered")
                self._unknown(node)
            self._closely(node)

        context.count("edge_rtp_queries")
        context.ng_free("query", {"call-id": sentinel.call}, QUERY_LIMIT_S, told)

    def _told(self, node: NodeRtp, sentinel: Sentinel, asked: float, outcome: Outcome) -> None:
        if not any(known is sentinel for known in node.sentinels):
            return
        reply = outcome.value if isinstance(outcome, Done) else {}
        counts = {tag: packets_from(reply, tag) for ear in sentinel.ears for tag in ear}
        packets = {tag: count for tag, count in counts.items() if count is not None}
        if len(packets) < len(counts) or not self._fits(sentinel):
            node.sentinels = [known for known in node.sentinels if known is not sentinel]
            return
        sample = Sample(asked, self._context.now, packets)
        sentinel.take(sample, self._context.timings.rtp_stop_s)
        if sentinel.kind == BY_MUSIC and sentinel.still:
            # an Asterisk that answers has nothing to say to this caller
            if node.answered_at > sentinel.still_since + self._context.timings.rtp_stop_s:
                sentinel.forget(sample)

    def _unknown(self, node: NodeRtp) -> None:
        """The relay says nothing: neither does what it said before."""
        node.to_ask = []
        for sentinel in node.sentinels:
            sentinel.discount()
        self._now(node, UNKNOWN)

    # --- the word ------------------------------------------------------------------

    def _say(self, node: NodeRtp) -> None:
        """What the sentinels show. Where they show nothing new, the last word holds."""
        steady = [s for s in node.sentinels if s.steady]
        if not steady:
            self._now(node, UNKNOWN)
        elif self._all_still(node, steady):
            self._now(node, STOPPED)
        elif any(s.flowing for s in node.sentinels):
            self._now(node, FLOWS)

    def _now(self, node: NodeRtp, word: str) -> None:
        context, before = self._context, node.word
        node.word = word
        if word == before or STOPPED not in (word, before):
            return
        steady = [s for s in node.sentinels if s.steady]
        calls = ",".join(s.call for s in steady)
        if word == STOPPED:
            node.since = min(s.still_since for s in steady)
            context.count("edge_rtp_stops")
            context.note(
                f"node/{node.name}", "RTP has stopped", level="warning", calls=calls,
                for_ms=round((context.now - node.since) * 1000),
            )  # fmt: skip
        else:
            what = "RTP flows again" if word == FLOWS else "RTP: nothing known any more"
            context.note(f"node/{node.name}", what, calls=calls)
        self.on_word(node.name)

    def _all_still(self, node: NodeRtp, steady: list[Sentinel]) -> bool:
        """Whether every sentinel has stopped, for long enough, and no other call of the
        node was seen sending meanwhile. Callers alone are heard only beside OPTIONS."""
        limit_s = self._context.timings.rtp_stop_s
        if all(s.kind == BY_MUSIC for s in steady) and not self._late(node):
            return False
        if any(s.still < STILL_ANSWERS_MIN or s.last is None for s in steady):
            return False
        seen = max(s.last.asked for s in steady if s.last)
        if any(s.moved_at > seen - limit_s for s in node.sentinels if not s.steady):
            return False
        return seen - min(s.still_since for s in steady) >= limit_s
