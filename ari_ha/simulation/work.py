"""What agents do beside taking callers: they call colleagues and numbers outside, consult
while the caller waits, hand callers over, bring three people together. And what people do
just when something goes wrong, which they cannot know: they hang up, hold, type, transfer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ari_ha.simulation.circles import Circles
from ari_ha.simulation.cluster import PASSWORD, QUEUE_NUMBER, SUPERVISOR, Cluster
from ari_ha.simulation.fake_phones import RINGING, UP, Phones, Talk
from ari_ha.sip.auth import Credentials

OUTSIDE = "+4940{:04d}"
"""Numbers at the carrier; each is dialled by one person once, so that it may ring once."""
CONFERENCE_DIGITS = "*3"
JOIN_TRIES, JOIN_AGAIN_S = 3, 3.0
"""Digits typed while no node listens are typed again."""
GAP_S = 1.2
"""Just after a fault: until a call has usually been taken up."""


class WorkHabits(Protocol):
    """What is drawn for the run; see `people.Habits`."""

    arrive_s: float
    ignores: float
    rejects: float
    talk_min_s: float
    talk_max_s: float
    answer_max_s: float
    works: float
    calls_out: int
    startled: float


class Work:
    """See the module; one per run."""

    def __init__(self, cluster: Cluster, circles: Circles, habits: WorkHabits) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.circles = circles
        self.habits = habits
        self.phones = cluster.phones
        self._numbers = 0

    def begin(self, from_s: float) -> None:
        """Agents call out from then on."""
        for _ in range(self.habits.calls_out):
            agent = self.world.rng.choice(self.cluster.agents)
            when = from_s + self.world.between(0.0, self.habits.arrive_s)
            self.world.at(when, lambda agent=agent: self._call_out(agent))

    def _later(self, least_s: float, most_s: float, act: Callable[[], None]) -> None:
        self.world.after(self.world.between(least_s, most_s), act)

    # -- calling

    def _call_out(self, agent: str) -> None:
        """From a phone that is not in use."""
        if not any(talk.alive and talk.who == agent for talk in self.phones.talks.values()):
            self._dial(agent, self._somebody(agent), None)

    def _dial(self, agent: str, number: str, main: Talk | None) -> None:
        talk = self.phones.call(number, agent, Credentials(agent, PASSWORD), main)
        self._later(4.0, 12.0, lambda: self.phones.hang_up(talk) if talk.state != UP else None)

    def _somebody(self, agent: str) -> str:
        """A colleague, or a number nobody has dialled yet."""
        colleagues = [other for other in self.cluster.agents if other != agent]
        if colleagues and self.world.chance(0.6):
            return self.world.rng.choice(colleagues)
        self._numbers += 1
        return OUTSIDE.format(self._numbers)

    def number_rings(self, talk: Talk) -> None:
        """Somebody outside is called: answers, does not, does not want to."""
        if talk.dialled:
            return
        self.circles.learn_call(talk)
        carrier, draw = self.cluster.carrier, self.world.rng.random()
        if draw < self.habits.ignores:
            return
        if draw < self.habits.ignores + self.habits.rejects:
            self._later(0.2, 2.0, lambda: carrier.reject(talk, self.world.rng.choice((486, 603))))
            return

        def answer() -> None:
            carrier.answer(talk)
            self._ends_some_day(carrier, talk)

        self._later(0.2, self.habits.answer_max_s, answer)

    def reached(self, talk: Talk) -> None:
        """Whoever an agent called is there."""
        self.circles.learn_call(talk)
        if talk.main is not None:
            self._later(0.2, 2.5, lambda: self._consulted(talk))
        else:
            self._ends_some_day(self.phones, talk)
            self.talks(talk)

    def _ends_some_day(self, phones: Phones, talk: Talk) -> None:
        habits = self.habits
        self._later(habits.talk_min_s, habits.talk_max_s, lambda: phones.hang_up(talk))

    # -- in a conversation

    def talks(self, talk: Talk) -> None:
        """An agent talks: perhaps to do more than that."""
        if self.habits.works and self.world.chance(self.habits.works):
            act = self._transfer if self.world.chance(0.3) else self._consult
            self._later(0.2, 2.5, lambda: act(talk))

    def _beside(self, talk: Talk) -> list[Talk]:
        """Dialogs of the same phone that consult."""
        return [k for k in self.phones.talks.values() if k.main is talk and k.alive]

    def _transfer(self, talk: Talk) -> None:
        """Without asking anybody: to a colleague, a number, back into the queue."""
        if talk.state == UP and not talk.held and not self._beside(talk):
            number = QUEUE_NUMBER if self.world.chance(0.2) else self._somebody(talk.who)
            self.phones.refer(talk, number)

    def _consult(self, talk: Talk) -> None:
        """Puts the caller on hold and calls somebody, on the second line of his phone."""
        if talk.state != UP or talk.main is not None or talk.referred or self._beside(talk):
            return
        self.phones.hold(talk, True)

        def dial() -> None:
            if talk.state == UP and not talk.referred and not self._beside(talk):
                self._dial(talk.who, self._somebody(talk.who), talk)
                if self.world.chance(0.15):
                    self._later(1.0, 4.0, lambda: self._complete(talk))  # while it rings

        self._later(0.1, 0.6, dial)

    def _consulted(self, side: Talk) -> None:
        """They have spoken."""
        main = side.main
        assert main is not None
        draw = self.world.rng.random()
        if draw < 0.3:
            self._complete(main)
        elif draw < 0.5:
            self.phones.hang_up(side)
        elif draw < 0.85:
            self._confer(side, JOIN_TRIES)
        elif draw < 0.95:
            self._ends_some_day(self.phones, side)
        else:
            self.phones.hang_up(main)  # hangs up the wrong line

    def _complete(self, main: Talk) -> None:
        """Attended transfer: caller and consulted party are to be connected (REFER with
        Replaces), asked for in either dialog."""
        side = next(iter(self._beside(main)), None)
        if side is None or side.state not in (UP, RINGING) or main.referred or side.referred:
            return
        asks, other = (side, main) if side.state == UP and self.world.chance(0.3) else (main, side)
        self.phones.refer(asks, side.dialled, replaces=other)

    def _confer(self, side: Talk, tries: int) -> None:
        """Types the digits that bring all three together."""
        main = side.main
        if side.state != UP or main is None or not main.alive or main.referred or side.referred:
            return
        side.joining = tries > 0
        if side.joining:
            self.phones.acts(side, "types")
            for n, digit in enumerate(CONFERENCE_DIGITS):
                self.world.after(0.2 * n, lambda digit=digit: self._type(side, digit))
            self.world.after(JOIN_AGAIN_S, lambda: self._confer(side, tries - 1))
        else:
            self.phones.hang_up(side)

    def _type(self, talk: Talk, digit: str) -> None:
        if talk.state == UP:
            reached = self.cluster.ears.press(talk, digit)
            self.world.say("phones", f"{talk.leg} ({talk.who}) types {digit}, heard by {reached}")

    def over(self, talk: Talk) -> None:
        """A phone's dialog is over: whoever consulted takes his caller back."""
        if talk.main is not None and not talk.attended:
            self._later(0.1, 0.6, lambda: self._take_back(talk.main, 4))

    def _take_back(self, main: Talk | None, tries: int) -> None:
        if main is None or main.state != UP or main.referred or not main.held or self._beside(main):
            return
        self.phones.hold(main, False)
        if main.held and tries:
            self.world.after(0.5, lambda: self._take_back(main, tries - 1))

    # -- at the worst moment

    def startle(self) -> None:
        """Something has just gone wrong: some people happen to act now."""
        if self.habits.startled:
            for phones in (self.cluster.carrier, self.phones):
                for talk in phones.talks.values():
                    if talk.alive and talk.who != SUPERVISOR and self.world.chance(self.habits.startled):
                        self._later(0.0, GAP_S, lambda p=phones, t=talk: self._acts(p, t))

    def _acts(self, phones: Phones, talk: Talk) -> None:
        if talk.state == RINGING and not talk.dialled:
            phones.answer(talk) if self.world.chance(0.6) else phones.reject(talk, 486)
        elif talk.state != UP or phones is self.cluster.carrier:
            phones.hang_up(talk)
        elif talk.main is not None:
            self._consulted(talk)
        else:
            acts = (self._consult, self._transfer, self._toggle, self._toggle, phones.hang_up)
            self.world.rng.choice(acts)(talk)

    def _toggle(self, talk: Talk) -> None:
        self.phones.hold(talk, not talk.held)
