"""Chaos, one run: set the stage, strike, watch, mend, act, end, look for what is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

from ari_ha.cli import chaos_after as after
from ari_ha.cli import chaos_inside as inside
from ari_ha.cli import chaos_judge as judge
from ari_ha.cli import chaos_mixed as mixed
from ari_ha.cli import chaos_party as party
from ari_ha.cli import chaos_records as rows
from ari_ha.cli.chaos_acts import Acts
from ari_ha.cli.chaos_callers import WATCHED_AT_LEAST_S, Callers
from ari_ha.cli.chaos_commits import Quiet, Watched
from ari_ha.cli.chaos_faults import ABOUT, About
from ari_ha.cli.chaos_judge import (
    ALONE_STATES,
    CONFERENCE,
    CONSULT,
    MIXED,
    RINGING_STATES,
    SERVED,
    SUPERVISED,
    UNANSWERED_STATES,
    VOICE_STATES,
    Pair,
    Verdict,
)
from ari_ha.cli.chaos_menu import Typed
from ari_ha.cli.chaos_stage import RING_LONG_MS, Stage, StageError, until
from ari_ha.cli.cluster import ClusterError
from ari_ha.cli.lab import FAULTS, NODES, PREPARED, LabError, Struck
from ari_ha.farend.client import FarEndError

BASELINE_S = 2.0
PROBE_EVERY_S = 0.25
"""A digit takes 0.14 s, and there is 0.1 s between two."""
LOOK_EVERY_S = 0.75
"""The edge notes when it heard a digit: asking more often would only keep it from its work."""
PROBE_LIMIT_S = 30.0
STEADY_S = 1.5
DIGIT_OF_CUSTOMER, DIGIT_OF_AGENT, DIGIT_OF_SUPERVISOR = "1", "2", "3"


@dataclass(slots=True)
class Run:
    """One fault against calls in one state."""

    stage: Stage
    fault: str
    state: str
    count: int
    serial: int
    during: str = ""
    with_baseline: bool = True
    host: str = ""
    address_moves: bool = True
    pairs: list[Pair] = field(default_factory=list)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    typed: Typed = field(default_factory=Typed)
    struck_at: float = 0.0
    after: dict[str, int] = field(default_factory=dict)
    mended_at: float = field(default_factory=time.monotonic)
    """Monotonic seconds"""
    node_empty_ms: int | None = None
    """From the fault until the edge had given the last call another home; None: not all have moved."""
    left: list[str] = field(default_factory=list)
    """What was left behind, in words."""
    commits: Watched = field(init=False)
    callers: Callers = field(init=False)

    def __post_init__(self) -> None:
        self.commits = Watched(self.stage)
        self.callers = Callers(self.stage, f"1557{self.serial % 1_000:03}")

    @property
    def about(self) -> About:
        """What is known of the fault."""
        return ABOUT[self.fault]

    def perform(self) -> dict[str, Any]:
        """The whole run; its report. Raises StageError when the stage could not be set."""
        try:
            return self._perform()
        finally:
            self.commits.reader.end()

    def _perform(self) -> dict[str, Any]:
        stage, say, began = self.stage, self.stage.say, time.time()
        say(f"{self.fault} / {self.state}: cleaning up")
        stage.clean()
        self._prepare()
        self.host, self.address_moves = self._victim(), stage.address_moves()
        self.commits.begin()
        say(f"placing {self.count} calls")
        stage.only(NODES[self.serial % len(NODES)])
        rings = stage.ring_long(RING_LONG_MS) if self.state in ("ringing", MIXED) else {}
        try:
            place = stage.place
            if self.state in party.PARTY_STATES:
                place = partial(party.place, stage)
            elif self.state == MIXED:
                place = partial(mixed.place, stage)
            self.pairs = place(self.count, self.state, self.serial % 1_000)
            stage.uncordon(NODES)
            until("all nodes take calls", 20, lambda: set(stage.usable_nodes()) >= set(NODES), 0.2)
            stage.refresh(self.pairs)
            if self.state in ("queued", MIXED):
                self.pairs = judge.as_served(self.pairs, stage.view().waiting)
            if "wrapped" in stage.ends:
                stage.wrapped([pair for pair in self.pairs if pair.state in VOICE_STATES], began)
            if self.during == inside.CALLERS:
                self.callers.agents_in([pair.agent for pair in self.pairs])
            baseline = self._baseline() if self.with_baseline else None
            self.verdicts = {pair.customer: Verdict(pair) for pair in self.pairs}
            self.typed.begin(stage, self.pairs)
            then = after.before(stage, self.host if self.about.of_app else "")
            at = time.time()
            self._strike_and_watch(then)
            if self.during not in inside.HANGUPS:
                stage.say("hanging up")
                self._acts().hang_up()
        finally:
            stage.ring_as_before(rings)
        self._leftovers()
        self.judge_commits()
        self.after |= rows.judge_rows(stage, self.verdicts.values(), began)
        if self.fault.startswith("database"):
            self.left += rows.judge_pair_whole(stage)
        return {
            "fault": self.fault,
            "state": self.state,
            "at": datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds"),
            "host": self.host,
            "during": self.during,
            "ends": sorted(stage.ends),
            "node_empty_ms": self.node_empty_ms,
            "new_calls": self.callers.to_dict() if self.during == inside.CALLERS else None,
            "baseline": baseline,
            "calls": [verdict.to_dict() for verdict in self.verdicts.values()],
            "after": self.after,
            "left": self.left,
            "commits": {"seen": len(self.commits.reader.commits), "not_seen": self.commits.reader.not_seen},
        }

    def _prepare(self) -> None:
        if self.fault in PREPARED:
            PREPARED[self.fault](self.stage.lab, self._victim())
            self.stage.whole()

    def _victim(self) -> str:
        if self.fault.startswith(("etcd", "database", "clerk")):
            return ""
        if self.fault.startswith(("edge", "rtpengine")):
            edge = self.stage.active_edge()
            return f"{edge} {NODES[self.serial % len(NODES)]}" if "-and-asterisk" in self.fault else edge
        return NODES[self.serial % len(NODES)]

    # --- before ---

    def _baseline(self) -> dict[str, Any]:
        """The same calls, the same digits, the same figures; only nothing is broken."""
        self.stage.say("measuring without a fault")
        since = self.stage.far.now()
        verdicts = {pair.customer: Verdict(pair) for pair in self.pairs}
        self._probe(since, verdicts, Struck(since), moved=False, at_least_s=BASELINE_S)
        self._judge_audio(verdicts, since)
        lost = [value for v in verdicts.values() for value in judge.worse(v.lost_ms)]
        gaps = [value for v in verdicts.values() for value in judge.worse(v.gap_ms)]
        return {
            "lost_ms_max": round(max(lost, default=0)),
            "longest_gap_ms": judge.spread(gaps),
            "heard_ms": judge.spread([v.resumed_ms for v in verdicts.values() if v.resumed_ms is not None]),
            "against": sorted({reason for v in verdicts.values() for reason in v.against}),
        }

    # --- the fault ---

    def _strike_and_watch(self, then: after.Before) -> None:
        stage = self.stage
        stage.say(f"striking: {self.fault} {self.host}")
        # a hold is an agent's own act: it has its trace in what he is doing
        fields = after.OWN_FIELDS if self.during else ()
        self.commits.strike(Quiet(then.revision, fields=fields, places=not self.during))
        struck = FAULTS[self.fault](stage.lab, self.host)
        self.struck_at = struck.at
        try:
            if self.during in inside.HANGUPS:
                by_caller = self.during == inside.HANGUP_CALLER
                inside.hang_up(stage, self.verdicts.values(), by_caller, struck.at)
            elif self.during == inside.CALLERS:
                self._receive(struck.at)
            elif self.during == inside.REFER_AGENT:
                inside.refer(stage, self.verdicts.values(), struck.at)
            elif self.during:
                inside.hold(stage, self.verdicts.values(), struck.at)
            else:
                self.watch(struck)
                self._judge_app(then)
        finally:
            self._mend(struck)
        if self.about.comes_back:
            kept = after.channels_kept(stage, self.host, self.mended_at)
            self.left += kept
            self.after["kept_channels"] = len(kept)
        stage.say("the broken part is back: do the calls mind?")
        if self.during in inside.HANGUPS:
            self._judge_owners()
            return
        self._after_mending()
        if self.during in inside.ASKED:
            self._strike_again()
        self._judge_owners()
        if self.about.stays:
            after.judge_stayed(stage, self.verdicts.values())
            self.after["needless_switchovers"], words = after.needless_claims(stage, then)
            self.left += words
        stage.say("acting: what people do next must work")
        self.commits.acting()
        self._acts().everything()

    def _receive(self, since: float) -> None:
        """New callers are served while the fault lasts, and the others do not mind."""
        self.callers.come(since + max(self.about.mend_after_s or 0.0, WATCHED_AT_LEAST_S))
        self.left += self.callers.against
        self.after["not_served"] = len(self.callers.against)
        self._judge_audio(self.verdicts, since)
        self._judge_dialogs(since)

    def _strike_again(self) -> None:
        """What the edge took up again is whole: the calls survive the death of their Asterisk too."""
        stage = self.stage
        stage.refresh(self.pairs)
        nodes = sorted({pair.node for pair in self.pairs})
        stage.say(f"striking again: asterisk-kill {' '.join(nodes)}")
        strikes = [FAULTS["asterisk-kill"](stage.lab, node) for node in nodes]
        struck = strikes[0]
        self._probe(struck.at, self.verdicts, struck, moved=True)
        self._judge_audio(self.verdicts, struck.at)
        self._judge_dialogs(struck.at)
        self._after_mending()

    def _judge_owners(self) -> None:
        self.commits.is_quiet_until_now()
        double = after.double_owners(self.stage, self.pairs)
        self.left += [
            f"call {call} is served by {', '.join(sorted(nodes))}" for call, nodes in double.items()
        ]
        self.after["double_owners"] = len(double)

    def judge_commits(self) -> None:
        """What every commit since before the first call tells."""
        counts, words = self.commits.judge(self.verdicts.values())
        self.after |= counts
        self.left += words

    def _judge_app(self, then: after.Before) -> None:
        """A hung app must have been replaced by now, not woken up by us."""
        if self.about.of_app and self.stage.lab.child_pid(self.host, "app") == then.app_pid:
            for verdict in self.verdicts.values():
                verdict.against.append("the hung app was not killed and started again")

    def watch(self, struck: Struck) -> None:
        """Probes until every call is served again, then judges what was heard meanwhile."""
        on_purpose = self.fault == "drain"
        if on_purpose:
            # no digits meanwhile: Asterisk puts them in the place of voice, and every packet counts here
            until("the node is empty", PROBE_LIMIT_S, lambda: self._emptied(struck.at), 0.3)
            time.sleep(STEADY_S)
            self._judge_audio(self.verdicts, struck.at)
        self._probe(struck.at, self.verdicts, struck, moved=self.about.moves)
        if not on_purpose:
            self._judge_audio(self.verdicts, struck.at)
        if not self.address_moves and self.state in RINGING_STATES:
            self.stage.rung_anew(self.pairs)
        self._judge_dialogs(struck.at)

    def _emptied(self, since: float) -> bool:
        """Whether every call has another home; and when the edge had given the last one its own."""
        rows = self.stage.edge_calls().values()
        moved = [[m["at_utc"] for m in row["moves"] if m["at_utc"] > since] for row in rows]
        if not moved or not all(moved):
            return False
        self.node_empty_ms = round((max(times[-1] for times in moved) - since) * 1000)
        return True

    def _mend(self, struck: Struck) -> None:
        if struck.mend is not None:
            struck.mend()
            struck.mend = None
            self.mended_at = time.monotonic()

    def _probe(
        self,
        since: float,
        verdicts: Mapping[str, Verdict],
        struck: Struck,
        *,
        moved: bool,
        at_least_s: float = 0.0,
    ) -> None:
        """Sends digits from both ends until a node has heard them of every call; then a steady while more."""
        heard: dict[tuple[str, str], float] = {}
        wanted = {(v.pair.customer, leg) for v in verdicts.values() for leg in v.pair.legs}
        mend_after_s = self.about.mend_after_s
        by_looking = any(leg == SERVED for _, leg in wanted)
        looked = begin = time.monotonic()
        while time.monotonic() < begin + PROBE_LIMIT_S:
            round_began = time.monotonic()
            # whoever was heard keeps silent: his digits would keep the nodes from the others
            digits = self._digits_of({customer for customer, _ in wanted - heard.keys()})
            self.typed.note(digits)
            self.stage.far.digits(digits)
            if by_looking or round_began >= looked + LOOK_EVERY_S:
                looked = round_began
                self._collect(heard, verdicts, since, moved)
            if mend_after_s is not None and time.time() - since > mend_after_s:
                self._mend(struck)
            if not wanted - heard.keys() and time.monotonic() >= begin + at_least_s:
                break
            time.sleep(max(0.0, PROBE_EVERY_S - (time.monotonic() - round_began)))
        if mend_after_s is not None:
            time.sleep(max(0.0, since + mend_after_s - time.time()))
            self._mend(struck)
        time.sleep(STEADY_S)  # nothing but voices: digits take their place where Asterisk passes them on
        for verdict in verdicts.values():
            times = [heard.get((verdict.pair.customer, leg)) for leg in verdict.pair.legs]
            known = [at for at in times if at is not None]
            verdict.resumed_ms = max(known) if len(known) == len(times) else None
            if verdict.resumed_ms is None:
                verdict.against.append("no node heard a digit of both sides afterwards")

    def _digits_of(self, customers: Container[str]) -> dict[str, str]:
        """What the two, or three, on the calls of these customers press."""
        digits: dict[str, str] = {}
        for pair in self.pairs:
            if pair.customer not in customers:
                continue
            digits[pair.customer] = DIGIT_OF_CUSTOMER
            if pair.agent_leg in pair.legs:
                digits[pair.agent_call] = DIGIT_OF_AGENT
            if pair.supervisor_call:
                digits[pair.supervisor_call] = DIGIT_OF_SUPERVISOR
        return digits

    def _collect(
        self,
        heard: dict[tuple[str, str], float],
        verdicts: Mapping[str, Verdict],
        since: float,
        moved: bool,
    ) -> None:
        try:
            rows = self.stage.edge_calls()
        except ClusterError:
            return
        for verdict in verdicts.values():
            pair = verdict.pair
            row = rows.get(pair.caller)
            for leg in pair.legs:
                if row is None or (pair.customer, leg) in heard:
                    continue
                if leg == SERVED:
                    there = row["node"] and not row["lost"] and not row["moving_to"]
                    if there and (not moved or row["epoch"] != pair.epoch):
                        heard[pair.customer, leg] = (time.time() - since) * 1000
                    continue
                at = judge.first_digit_ms(row["digits"], leg, since, pair.epoch if moved else "")
                if at is not None:
                    heard[pair.customer, leg] = at

    def _judge_audio(self, verdicts: Mapping[str, Verdict], since: float) -> None:
        stage = self.stage
        end = stage.far.now()
        rows = stage.measure(since - 0.5, self.pairs, end)
        last = stage.heard_lately(self.pairs)
        for verdict in verdicts.values():
            judge.judge_audio(verdict, rows, end - since, last)
            party.judge_side(stage, verdict, since)
            if verdict.pair.state not in ALONE_STATES:
                verdict.same_agent = self._same_agent(verdict.pair, last)

    def _same_agent(self, pair: Pair, rows: Mapping[str, Any]) -> bool:
        """Whether the two who were connected (or were being connected) still are."""
        if pair.state in (*RINGING_STATES, *UNANSWERED_STATES):
            return True  # judged again when the phone is answered
        if pair.state in ("held", CONSULT, CONFERENCE, *SUPERVISED):
            legs = self.stage.edge_call(pair.call)["legs"]
            return pair.agent_leg in legs or any(leg["aor"] == pair.agent for leg in legs.values())
        return judge.hears_now(rows.get(pair.customer), pair.agent_call, 1.0)

    def _judge_dialogs(self, since: float) -> None:
        calls = self.stage.far_calls()
        rows = self.stage.measure(since, self.pairs)
        for verdict in self.verdicts.values():
            pair = verdict.pair
            judge.judge_dialogs(verdict, calls)
            verdict.carrier_messages = _messages(rows.get(pair.customer))
            verdict.phone_messages = _messages(rows.get(pair.agent_call))

    # --- afterwards ---

    def _after_mending(self) -> None:
        """The broken part returns; living calls must not notice."""
        stage = self.stage
        # an edge may still think well of an app that is just being started again
        until("every app answers", 90, lambda: [stage.node_http(node, "/v1/calls") for node in NODES], 0.2)
        until("all nodes take calls again", 90, lambda: set(stage.usable_nodes()) >= set(NODES), 0.2)
        until("the pair is whole again", 60, stage.pair_is_whole, 0.2)
        time.sleep(STEADY_S)
        calls, last = stage.far_calls(), stage.heard_lately(self.pairs)
        for verdict in self.verdicts.values():
            again = Verdict(verdict.pair)
            judge.judge_dialogs(again, calls)
            judge.judge_hearing(again, last, 1.0)
            verdict.against += [
                f"after mending: {reason}" for reason in again.against if reason not in verdict.against
            ]

    def _acts(self) -> Acts:
        return Acts(self.stage, list(self.verdicts.values()), self.typed, self.struck_at)

    def _leftovers(self) -> None:
        """What is still there when nothing should be."""
        self.stage.say("looking for what is left")
        counts, words = after.leftovers(self.stage)
        self.after |= counts
        self.left += words


def _messages(row: Mapping[str, Any] | None) -> int:
    return row["sip_received_in_window"] if row else 0


def run_all(
    stage: Stage,
    plan: Sequence[tuple[str, str]],
    count: int,
    repeat: int,
    during: str,
    with_baseline: bool,
    done: Callable[[list[dict[str, Any]]], None],
) -> list[dict[str, Any]]:
    """Every fault and state of the plan, as often as asked; ``done`` gets the runs so far after each."""
    runs: list[dict[str, Any]] = []
    stage.check()
    for fault, state in plan:
        for _ in range(repeat):
            run = Run(stage, fault, state, count, len(runs), during, with_baseline)
            try:
                runs.append(run.perform())
            except (StageError, ClusterError, FarEndError, LabError) as error:
                runs.append(_failed(run, str(error)))
            done(runs)
    stage.clean()
    return runs


def _failed(run: Run, why: str) -> dict[str, Any]:
    """A run that could not be carried through counts as calls that did not survive."""
    run.judge_commits()
    verdicts = list(run.verdicts.values()) or [Verdict(pair) for pair in run.pairs] or [Verdict(Pair("", ""))]
    for verdict in verdicts:
        verdict.against.append(f"the run stopped: {why}")
    return {
        "fault": run.fault,
        "state": run.state,
        "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "host": run.host,
        "during": run.during,
        "ends": sorted(run.stage.ends),
        "baseline": None,
        "calls": [verdict.to_dict() for verdict in verdicts],
        "after": {"double_owners": 0, "stale_legs": 0, "ghost_agents": 0, "agents_changed": 0, **run.after},
        "left": run.left,
    }
