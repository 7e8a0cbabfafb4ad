"""What must hold at the phones: who talks together hears each other, nobody is cut off whom
nobody hung up on, and nobody is called twice. Judged by what people did and heard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from ari_ha.machines.edge import EdgeMachine
from ari_ha.simulation.circles import group, others_stay
from ari_ha.simulation.cluster import HEADER_KEY, SUPERVISOR, Cluster
from ari_ha.simulation.ears import MUSIC
from ari_ha.simulation.fake_phones import RINGING, UP, Talk
from ari_ha.simulation.people import People
from ari_ha.wire.token import BadToken, verify

DEAF_MAX_S = 4.0
NO_MUSIC_MAX_S = 3.5
NOBODY_HEARS_S = 1.0
"""An edge at another address serves by then."""
ALONE_MAX_S = 6.0
TALKING = b'"stage":"talking"'


class Lasting(Protocol):
    """Whether something has been true for longer than a limit, in calm or not."""

    def __call__(self, key: str, true: bool, limit_s: float, calm: bool = True) -> bool:
        """See the class."""


@dataclass
class AtThePhones:
    """The checkers of one run that look at people only."""

    cluster: Cluster
    people: People
    problem: Callable[[str, str], None]
    lasting: Lasting
    forget: Callable[[str, set[str]], None]
    """Drops what has not lasted: (prefix, keys seen)"""
    _rang: dict[str, Talk] = field(default_factory=dict)

    # -- hearing

    def hearing(self) -> None:
        """Everybody of a conversation hears every other, exactly once; whoever is on hold
        hears music."""
        seen: set[str] = set()
        for everybody in self.people.circles.there_are():
            circle = [talk for talk in everybody if not self._unheard(talk)]
            if len(circle) < 2:
                for talk in circle:
                    self._alone(talk, seen)
                continue
            key = "deaf/" + "/".join(talk.leg for talk in circle)
            seen.add(key)
            held = any(talk.held or talk.busy for talk in circle)
            heard = {talk.leg: self.cluster.ears.heard_by(talk) for talk in circle} if not held else {}
            good = held or all(self._good(talk, circle, heard[talk.leg]) for talk in circle)
            served = not good and self.served(circle[0].call)
            seen.add(f"{key}/served")
            long = self.lasting(f"{key}/served", served, DEAF_MAX_S, calm=False)
            if self.lasting(key, not good, DEAF_MAX_S) or long:
                text = ", ".join(f"{leg} hears {what}" for leg, what in heard.items())
                self.problem("people hear each other", f"call {circle[0].call}: {text}")
            self._music(circle, seen)
        self.forget("deaf/", seen)

    def _unheard(self, talk: Talk) -> bool:
        """Whether nobody can know that it has answered. Who was called from an address that the edge has left
        is to be called again."""
        return talk.unheard and not any(moved > talk.started_s for moved in self.cluster.rehomed)

    def _good(self, talk: Talk, circle: list[Talk], heard: list[str]) -> bool:
        others = sorted(other.leg for other in circle if other is not talk)
        if heard == others:
            return True
        supervisors = {
            other.leg for other in self.cluster.phones.talks.values()
            if other.who == SUPERVISOR and other.state == UP and other.call == talk.call
        }  # fmt: skip
        once = all(heard.count(other) == 1 for other in others)
        return bool(supervisors) and once and set(heard) <= {*others, *supervisors}

    def _alone(self, talk: Talk, seen: set[str]) -> None:
        """Somebody whose call is for its node a conversation, and for him alone, waits for ever.
        Where phones give a BYE up that was refused, nobody can know of it."""
        if self.cluster.shape.refusals:
            return
        others = self.people.circles.of_call(talk.call)
        rings = any(other.state == RINGING for other in others)
        record = self.cluster.store.keys.get(self.cluster.keys.record(talk.call))
        talking = record is not None and TALKING in record.value
        key = f"deaf/alone/{talk.leg}"
        seen.add(key)
        if self.lasting(key, talking and not rings, ALONE_MAX_S):
            self.problem("nobody is left alone", f"call {talk.call}: {talk.leg} ({talk.who})")

    def _music(self, circle: list[Talk], seen: set[str]) -> None:
        """Of two, the one who is held."""
        if len(circle) != 2 or circle[0].held == circle[1].held or any(talk.busy for talk in circle):
            return
        waits = next(talk for talk in circle if not talk.held)
        key = f"deaf/music/{waits.leg}"
        seen.add(key)
        heard = self.cluster.ears.heard_by(waits)
        silent = MUSIC not in heard and self.served(waits.call)
        if self.lasting(key, silent, NO_MUSIC_MAX_S, calm=False):
            self.problem("whoever is held hears music", f"call {waits.call}: {waits.leg} hears {heard}")

    def served(self, call: str) -> bool:
        """Whether everything the call needs is there, whatever goes wrong elsewhere."""
        cluster, edge = self.cluster, self.cluster.edge.machine
        known = edge.calls.by_id.get(call) if isinstance(edge, EdgeMachine) else None
        if known is None or known.owner is None or known.lost or known.move or not cluster.edge.running:
            return False
        node = cluster.by_name[known.owner.name]
        whole = node.app.running and node.asterisk.running and node.link.up
        cut = any(node.host in pair for pair in cluster.network.cuts)
        return whole and not cut and not cluster.media_away and not cluster.media_slow_s

    # -- endings

    def over(self, talk: Talk) -> None:
        """A conversation ends because a person ended it, or left it as was asked for."""
        if talk.ended_by == "self" or not talk.answered_s or not _is_person(talk):
            return
        self.people.circles.learn_call(talk)
        if not self._excused(talk):
            text = f"{talk.leg} ({talk.who}, call {talk.call}) was ended: {talk.ended_by}"
            self.problem("only people end calls", text)

    def _excused(self, talk: Talk) -> bool:
        all_lines = self.people.circles.of_call(talk.call)
        everybody = [o for o in all_lines if o.answered_s or o is talk]
        lines = [o for o in everybody if o.main is talk or talk.main is o]
        if talk.referred or any(line.referred and line.attended for line in lines):
            return True  # asked to be out of it
        if talk.joining or any(line.joining for line in lines):
            return True  # of two lines of one phone one stays in the conference
        company = self._company(talk, everybody, all_lines)
        if _is_left(company):
            return True
        if any(o.joining for o in everybody) and _is_left([o for o in everybody if o is not talk]):
            return True  # all may have been brought together, which no phone has heard of yet
        unheard = [o for o in everybody if o.referred and not o.accepted]
        if any(o.ended_by == "self" or (o.main and o.main.ended_by == "self") for o in unheard):
            return True  # whoever asked, in this line or his other, hung up before it was accepted
        if talk.call in self.apologised():
            return True
        if self.answered_to_nobody(talk):
            return True
        if not talk.dialled and not company:
            return True  # picked up when whoever called had gone already
        if talk.who != "customer":
            # somebody else has the caller: this one came second, or just when it was taken back
            second = any(o.state == UP and o.who != "customer" and not o.dialled for o in company)
            if not talk.dialled and (second or talk.taken_back(self.cluster.world.now)):
                return True
        # nobody took a transfer, and there is no queue to go back to
        return all(o.who != "customer" for o in everybody) and any(o.referred for o in company)

    def is_left(self, talk: Talk) -> bool:
        """Whether nobody is with this one any more, or whoever made the call has hung up, which ends it
        for all who were brought together in it."""
        everybody = self.people.circles.of_call(talk.call)
        return _is_left(self._company(talk, [o for o in everybody if o.answered_s], everybody))

    def answered_to_nobody(self, talk: Talk) -> bool:
        """Whether it was answered to an address nobody had: whoever was called there is rung again."""
        return any(0 <= talk.answered_s - moved < NOBODY_HEARS_S for moved in self.cluster.rehomed)

    @staticmethod
    def _company(talk: Talk, everybody: list[Talk], all_lines: list[Talk]) -> list[Talk]:
        """Who was in the conversation with this one: of a consultation its own people, until
        it was brought into the main one. ``all_lines``: also who was not answered (yet): it may be
        the line by which one of the others was called."""
        mine = group(talk, all_lines, over=True)
        leads = next((o for o in all_lines if o.leg == mine), None)
        main = leads.main if leads else None
        # once the main conversation is over, whoever comes in later comes into this one; it is not where
        # he who leads this one has handed over whom he talked to, or left others who go on
        over = main is not None and not main.alive and not (main.referred and main.ended_by == "far")
        over = over and leads is not None and not others_stay(leads, all_lines)
        since = main.ended_s if main is not None and over else float("inf")
        return [
            o for o in everybody
            if o is not talk
            and ((of := group(o, all_lines, over=True)) == mine or (not of and o.started_s >= since))
        ]  # fmt: skip

    def apologised(self) -> set[str]:
        """Calls that ended in the dialplan's fallback."""
        found = set()
        for node in self.cluster.nodes:
            for token in node.asterisk.apologies:
                try:
                    found.add(verify(token, HEADER_KEY).call)
                except BadToken:
                    continue
        return found

    # -- calling

    def rings(self, talk: Talk) -> None:
        """A phone, or a number outside, is called: once, whatever died since; and whoever refused
        an attempt, or hung up, is not rung by it again."""
        if talk.dialled or self.cluster.rehomed:
            return  # what was answered to an address nobody has is rung again
        found = self.cluster.ears.call_of(talk)
        whats = [f"number {talk.who}"] if talk.leg.startswith(self.cluster.carrier.name) else []
        if found is not None:
            call, leg = found
            whats.append(f"leg {call}/{leg}")
            edge = self.cluster.edge.machine
            known = edge.calls.by_id.get(call) if isinstance(edge, EdgeMachine) else None
            if known is not None and leg in known.legs and known.legs[leg].attempt:
                whats.append(f"attempt {known.legs[leg].attempt}")
        for what in whats:
            first = self._rang.setdefault(what, talk)
            if first is not talk and (first.ended_by == "self" or not what.startswith("attempt")):
                self.problem("nobody is called twice", f"{what}: {first.leg} and {talk.leg}")


def _is_left(company: list[Talk]) -> bool:
    """Whether nobody of them is there any more, or whoever made the call has hung up."""
    left = [o for o in company if o.ended_by == "self"]
    return bool(left) and (not any(o.state == UP for o in company) or any(o.dialled for o in left))


def _is_person(talk: Talk) -> bool:
    return talk.who != SUPERVISOR and not talk.dialled.startswith("*")
