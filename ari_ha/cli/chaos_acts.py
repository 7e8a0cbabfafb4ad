"""Chaos, afterwards: what people do next must work. They take calls back from hold, answer, serve the next
caller, choose in a menu, complete or give up a transfer, send a supervisor away, type; and hang up."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ari_ha.cli import chaos_judge as judge
from ari_ha.cli import chaos_party as party
from ari_ha.cli.chaos_inside import ended, expect
from ari_ha.cli.chaos_judge import ALONE_STATES, SUPERVISED, Pair, Verdict
from ari_ha.cli.chaos_menu import Typed, leave_menu
from ari_ha.cli.chaos_stage import AGENTS, Stage, StageError, until
from ari_ha.farend.client import FarEndError


@dataclass(slots=True)
class Acts:
    """What the people of these calls do."""

    stage: Stage
    verdicts: Sequence[Verdict]
    typed: Typed
    struck_at: float
    """UTC"""

    @property
    def _pairs(self) -> list[Pair]:
        return [verdict.pair for verdict in self.verdicts]

    def everything(self) -> None:
        """What people do next works: digits, unhold, answering."""
        actions: dict[str, Callable[[Sequence[Verdict]], None]] = {
            "held": self._unhold, "ringing": self._answer, "queued": self._serve, "ivr": self._choose,
            **dict.fromkeys(party.PARTY_STATES, self._go_on), **dict.fromkeys(SUPERVISED, self._unsupervise),
        }  # fmt: skip
        living: dict[str, list[Verdict]] = {}
        for verdict in self.living():
            living.setdefault(verdict.pair.state, []).append(verdict)
        for state, verdicts in living.items():
            if state in actions:
                actions[state](verdicts)
        self._digits_both_ways([v for v in self.living() if v.pair.state not in ALONE_STATES])

    def living(self) -> list[Verdict]:
        """Calls whose customer is still there."""
        calls = self.stage.far_calls()
        return [v for v in self.verdicts if calls[v.pair.customer]["state"] != "ended"]

    def _agents(self, verdicts: Sequence[Verdict], order: str, what: str) -> None:
        """Every agent's phone gets an order."""
        for verdict in verdicts:
            try:
                self.stage.far.order(verdict.pair.agent_call, order)
            except FarEndError as error:
                verdict.against.append(f"{what}: {error}")

    def _unhold(self, verdicts: Sequence[Verdict]) -> None:
        self._agents(verdicts, "unhold", "unhold")
        self._expect_talking(verdicts, 5)

    def _answer(self, verdicts: Sequence[Verdict]) -> None:
        self._agents(verdicts, "answer", "answering")
        self._expect_talking(verdicts, 10)
        last = self.stage.heard_lately(self._pairs)
        for verdict in verdicts:
            pair = verdict.pair
            verdict.same_agent = judge.hears_now(last.get(pair.customer), pair.agent_call, 1.0)

    def _expect_talking(self, verdicts: Sequence[Verdict], limit_s: float) -> None:
        """Everybody hears the other within the limit, and for a second on nobody else."""
        try:
            until("they talk", limit_s, lambda: self.stage.talking([v.pair for v in verdicts]), 0.1)
        except StageError:
            pass  # judged below, call by call
        time.sleep(1.2)
        last = self.stage.heard_lately(self._pairs)
        for verdict in verdicts:
            judge.judge_talking(verdict, last, 1.0)
            judge.judge_strangers(verdict, last)

    def _serve(self, verdicts: Sequence[Verdict]) -> None:
        """Agents come: callers are connected in the order they had in the queue before the fault."""
        stage = self.stage
        stage.far.manner(mode="answer", after_s=0.1)
        view = stage.view()
        there = {n for n, value in view.agents.items() if value.get("intent", "logged_out") != "logged_out"}
        free = {queue: iter([a for a in agents if a not in there]) for queue, agents in AGENTS.items()}
        for verdict in verdicts:
            pair = verdict.pair
            agent = next(free[pair.queue])
            stage.order_agent(view, agent, "login", device=agent)
            if expect(verdict, "the next caller is connected", 10, lambda a=agent: self._phone_up(a)):
                pair.agent, pair.agent_call = agent, self._phone_up(agent)
        self._expect_talking(verdicts, 5)

    def _go_on(self, verdicts: Sequence[Verdict]) -> None:
        party.go_on(self.stage, verdicts)
        self._expect_talking(verdicts, 10)

    def _choose(self, verdicts: Sequence[Verdict]) -> None:
        """The menu still knows what was typed; then as any caller who waits."""
        leave_menu(self.stage, verdicts, self.typed, self.struck_at)
        self._serve(verdicts)

    def _unsupervise(self, verdicts: Sequence[Verdict]) -> None:
        """The supervisor is sent away; the people talk on as before."""
        for verdict in verdicts:
            self.stage.supervise(verdict.pair, "stop")
            other = verdict.pair.supervisor_call
            gone = f"{other} is ended"
            expect(verdict, gone, 10, lambda other=other: ended(self.stage, other, "them"))  # type: ignore[misc]
            verdict.pair.state = "talking"
        self._expect_talking(verdicts, 10)

    def _phone_up(self, agent: str) -> str:
        call = self.stage.far.phone(agent)["call"]
        return call["call"] if call and call["state"] == "up" else ""

    def _digits_both_ways(self, living: Sequence[Verdict]) -> None:
        stage = self.stage
        since = stage.far.now()
        stage.far.digits(
            {v.pair.customer: "7" for v in living}
            | {v.pair.agent_call: "8" for v in living if v.pair.agent_call}
        )
        wanted = {v.pair.customer: "8" for v in living} | {v.pair.agent_call: "7" for v in living}

        def missing() -> list[str]:
            rows = stage.measure(since, self._pairs)
            return [
                ident
                for ident, digit in wanted.items()
                if digit not in {d["digit"] for d in rows.get(ident, {"digits": []})["digits"]}
            ]

        try:
            until("digits reach the other side", 4, lambda: not missing(), 0.2)
        except StageError:
            silent = set(missing())
            for verdict in living:
                for ident in silent & {verdict.pair.customer, verdict.pair.agent_call}:
                    verdict.against.append(f"no digit reached {ident}")

    def hang_up(self) -> None:
        """Half the calls are ended by the customer, half by the agent; the other side must be ended too."""
        enders: dict[str, tuple[Verdict, str]] = {}
        for index, verdict in enumerate(self.living()):
            pair = verdict.pair
            by_customer = index % 2 == 0 or not pair.agent_call
            mine, other = (
                (pair.customer, pair.agent_call) if by_customer else (pair.agent_call, pair.customer)
            )
            try:
                self.stage.far.order(mine, "hangup")
            except FarEndError as error:
                verdict.against.append(f"hanging up: {error}")
                continue
            if other:
                enders[other] = (verdict, mine)
        for other, (verdict, mine) in enders.items():
            gone = f"{other} is ended by {mine}"
            expect(verdict, gone, 5, lambda other=other: ended(self.stage, other, "them"))  # type: ignore[misc]
