"""What people do: customers call and wait or give up, agents answer, ignore, reject,
hold, hang up. Drawn from the world's seed; nobody here knows anything of the inside."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ari_ha.core.ports.operator import OperatorRequest
from ari_ha.simulation.circles import Circles
from ari_ha.simulation.cluster import IVR_NUMBER, NUMBER, PASSWORD, SUPERVISOR, Cluster
from ari_ha.simulation.fake_phones import UP, Talk
from ari_ha.simulation.work import Work
from ari_ha.sip.auth import Credentials

SUPERVISE_AGAIN_S = 1.0
SUPERVISED_UNTIL_S = 30.0
"""Nobody begins it later than that in a run."""


@dataclass
class Habits:
    """Odds and times of people, drawn per run."""

    calls: int = 4
    arrive_s: float = 12.0
    patience_min_s: float = 10.0
    patience_max_s: float = 40.0
    answer_min_s: float = 0.2
    answer_max_s: float = 3.0
    talk_min_s: float = 2.0
    talk_max_s: float = 25.0
    ignores: float = 0.05
    rejects: float = 0.05
    holds: float = 0.2
    hold_max_s: float = 1.5
    presses: float = 0.3
    customer_hangs_up: float = 0.5
    pauses: int = 0
    """Times an agent dials *24 (not ready) and, a little later, *23 (available)."""
    ivr: float = 0.0
    """Share of customers who call the number of the IVR; some type an account there."""
    supervises: int = 0
    """Times a supervisor begins to listen, whisper or speak, and leaves off a little later."""
    works: float = 0.0
    """Share of conversations in which somebody consults, transfers or confers (`work`)."""
    calls_out: int = 0
    """Times an agent calls a number outside, or a colleague."""
    startled: float = 0.0
    """How probable it is that somebody on the phone does something just after a fault."""
    pause_min_s: float = 1.0
    pause_max_s: float = 4.0


class People:
    """Everybody outside, for one run."""

    def __init__(self, cluster: Cluster, habits: Habits) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.habits = habits
        self.customers: list[Talk] = []
        self.not_answered: Counter[str] = Counter()
        """agent -> rings that the agent let go by or refused: what may count as missed"""
        self.answered: Counter[str] = Counter()
        self._will: dict[str, str] = {}
        """agent's leg -> what the agent means to do: answer, ignore, reject"""
        self.paused: set[str] = set()
        """Agents who dialled a code: what they are now is their own doing"""
        self.circles = Circles(cluster)
        self.work = Work(cluster, self.circles, habits)
        cluster.phones.on_ringing = self._rings
        cluster.phones.on_answered = self._agent_talks
        cluster.phones.on_ended = self._agent_over
        cluster.carrier.on_answered = self._customer_up
        cluster.carrier.on_ringing = self.work.number_rings

    def begin(self, from_s: float) -> None:
        """Customers will call from then on."""
        habits = self.habits
        for n in range(habits.calls):
            when = from_s + self.world.between(0.0, habits.arrive_s)
            self.world.at(when, lambda n=n: self._call(n))

    def begin_pauses(self, from_s: float) -> None:
        """Agents will take a break from then on, now and then."""
        for _ in range(self.habits.pauses):
            agent = self.world.rng.choice(self.cluster.agents)
            when = from_s + self.world.between(0.0, self.habits.arrive_s)
            back = when + self.world.between(self.habits.pause_min_s, self.habits.pause_max_s)
            self.world.at(when, lambda agent=agent: self._dial(agent, "*24"))
            self.world.at(back, lambda agent=agent: self._dial(agent, "*23"))

    def _dial(self, agent: str, code: str) -> None:
        """From a phone that is not in use."""
        phones = self.cluster.phones
        if not any(talk.alive and talk.who == agent for talk in phones.talks.values()):
            self.paused.add(agent)
            phones.call(code, agent, Credentials(agent, PASSWORD))

    def everybody_over(self) -> bool:
        """Nobody is on any phone."""
        return not any(talk.alive for talk in self.circles.everybody())

    def last_over_s(self) -> float:
        """When the last of them hung up, or was hung up on."""
        return max((talk.ended_s for talk in self.circles.everybody()), default=0.0)

    def send_home(self, within_s: float) -> None:
        """Everybody still on a phone hangs up within that time."""
        for phones in (self.cluster.carrier, self.cluster.phones):
            for talk in phones.talks.values():
                theirs = phones is self.cluster.carrier or talk.calls_out
                if talk.alive and (talk.state == UP or theirs):
                    self.world.after(self.world.between(0.0, within_s), lambda p=phones, t=talk: p.hang_up(t))

    # -- customers

    def _call(self, number: int) -> None:
        chosen = self.habits.ivr and self.world.chance(self.habits.ivr)
        talk = self.cluster.carrier.call(IVR_NUMBER if chosen else NUMBER, f"+4930{number:04d}")
        self.customers.append(talk)
        patience = self.world.between(self.habits.patience_min_s, self.habits.patience_max_s)
        self.world.after(patience, lambda: self._patience_over(talk))

    def _patience_over(self, talk: Talk) -> None:
        """Whoever still waits, gives up; whoever talks, talks on."""
        if talk.alive and not self.circles.with_whom(talk):
            self.cluster.carrier.hang_up(talk)

    def _customer_up(self, talk: Talk) -> None:
        self.circles.learn_call(talk)
        if not talk.dialled:
            return
        if talk.dialled == IVR_NUMBER:
            self._choose(talk)
        elif self.world.chance(self.habits.presses):
            self.world.after(self.world.between(0.5, 5.0), lambda: self._press(talk))

    def _choose(self, talk: Talk) -> None:
        """Types into the IVR, once: straight to the queue, an account, or nothing at all."""
        entry = self.world.rng.choice(("1", "24711#", "24711#", "24711#", "247", ""))
        when = self.world.between(0.2, 2.0)
        for digit in entry:
            self.world.after(when, lambda digit=digit: self._type(talk, digit))
            when += self.world.between(0.1, 0.8)

    def _type(self, talk: Talk, digit: str) -> None:
        if talk.state == UP:
            self.cluster.ears.press(talk, digit)

    # -- supervisors

    def begin_supervision(self, from_s: float) -> None:
        """Somebody will listen to, whisper to or speak with agents from then on."""
        for _ in range(self.habits.supervises):
            agent = self.world.rng.choice(self.cluster.agents)
            mode = self.world.rng.choice(("listen", "whisper", "barge"))
            begin = from_s + self.world.between(2.0, self.habits.arrive_s + 8.0)
            until = begin + self.world.between(4.0, 20.0)
            self.world.at(begin, lambda order=(agent, mode, until): self._supervise(*order))

    def _supervise(self, agent: str, mode: str, until_s: float) -> None:
        """An order about somebody who talks, and for as long as was meant from then on."""
        talking = {talk.who for talk in self.cluster.phones.talks.values() if talk.state == UP}
        agent = next((one for one in (agent, *self.cluster.agents) if one in talking), "")
        if agent:
            self._order(agent, mode)
            self.world.at(until_s, lambda: self._order(agent, "stop"))
        elif self.world.now < SUPERVISED_UNTIL_S:
            later = until_s + SUPERVISE_AGAIN_S
            self.world.after(SUPERVISE_AGAIN_S, lambda: self._supervise(agent, mode, later))

    def _order(self, agent: str, mode: str) -> None:
        """Asked of a node drawn at random."""
        node = self.world.rng.choice(self.cluster.nodes)
        if node.app.running:
            args = {"agent": agent, "mode": mode, "device": SUPERVISOR, "by": "boss"}
            request = f"supervise-{self.world.happened}"
            node.app.post(OperatorRequest(request=request, verb="supervise", args=args))

    def _press(self, talk: Talk) -> None:
        if talk.state == UP:
            self.cluster.ears.press(talk, self.world.rng.choice("0123456789"))

    # -- agents

    def _rings(self, talk: Talk) -> None:
        if talk.dialled:
            return
        self.circles.learn_call(talk)
        if talk.who == SUPERVISOR:
            self._will[talk.leg] = "answer"
            self.world.after(self.world.between(0.2, 2.0), lambda: self.cluster.phones.answer(talk))
            return
        habits, draw = self.habits, self.world.rng.random()
        delay = self.world.between(habits.answer_min_s, habits.answer_max_s)
        if draw < habits.ignores:
            self._will[talk.leg] = "ignore"
        elif draw < habits.ignores + habits.rejects:
            self._will[talk.leg] = "reject"
            status = self.world.rng.choice((486, 603))
            self.world.after(delay, lambda: self.cluster.phones.reject(talk, status))
        else:
            self._will[talk.leg] = "answer"
            self.world.after(delay, lambda: self.cluster.phones.answer(talk))

    def _agent_talks(self, talk: Talk) -> None:
        if talk.calls_out:
            self.circles.learn_call(talk)
            self.answered[talk.who] += talk.main is None
            self.work.reached(talk)
        if talk.dialled or talk.who == SUPERVISOR:
            return
        self.answered[talk.who] += 1
        habits = self.habits
        talk_s = self.world.between(habits.talk_min_s, habits.talk_max_s)
        self.world.after(talk_s, lambda: self._conversation_over(talk))
        self.work.talks(talk)
        if self.world.chance(habits.holds) and talk_s > 3.0:
            begin = self.world.between(0.5, talk_s - 2.0)
            self.world.after(begin, lambda: self.cluster.phones.hold(talk, True))
            end = begin + self.world.between(0.3, habits.hold_max_s)
            self.world.after(end, lambda: self.cluster.phones.hold(talk, False))

    def _conversation_over(self, talk: Talk) -> None:
        if not talk.alive:
            return
        customer = next((o for o in self.circles.with_whom(talk) if o.who == "customer"), None)
        if customer is not None and self.world.chance(self.habits.customer_hangs_up):
            self.cluster.carrier.hang_up(customer)
        else:
            self.cluster.phones.hang_up(talk)

    def _agent_over(self, talk: Talk) -> None:
        self.work.over(talk)
        if talk.calls_out and not talk.answered_s:
            # given up while nobody hears it, it may be answered all the same
            self.answered[talk.who] += 1
        if talk.dialled:
            return
        let_go = talk.answered_s == 0.0 and (talk.ended_by == "self" or self._will.get(talk.leg) == "ignore")
        unheard = talk.answered_s > 0.0 and talk.ended_by == "far" and talk.taken_back(self.world.now)
        if let_go or unheard:
            self.not_answered[talk.who] += 1
