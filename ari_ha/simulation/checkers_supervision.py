"""What must hold of a supervisor on a call: he hears the people, each once, and whom he speaks to hears
him and nobody else does, in the mode that was ordered, whatever has served the call since. And nobody
but he, or who ordered it, ends that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ari_ha.core.ports.store import KeyValue
from ari_ha.simulation.checkers_people import DEAF_MAX_S, AtThePhones, Lasting
from ari_ha.simulation.cluster import SUPERVISOR, Cluster
from ari_ha.simulation.fake_phones import UP, Talk
from ari_ha.simulation.people import People
from ari_ha.wire.keyspace import BadValue, SupervisorValue, decode

RULE = "supervisors hear and are heard"
STAY = "supervisors stay"
PREFIX = "supervisor/"


@dataclass
class AtTheSupervisor:
    """See the module."""

    cluster: Cluster
    people: People
    problem: Callable[[str, str], None]
    lasting: Lasting
    forget: Callable[[str, set[str]], None]
    phones: AtThePhones
    _stopped: dict[str, float] = field(default_factory=dict)
    """call -> when an order about it was taken back last"""

    def commit(self, changes: list[tuple[int, str, KeyValue | None]]) -> None:
        """What has just changed in etcd."""
        for _, key, item in changes:
            parts = self.cluster.keys.split(key)
            if item is None and parts[0] == "calls" and parts[2] == "supervisor":
                self._stopped[parts[1]] = self.cluster.world.now

    def look(self) -> None:
        """Every supervisor on the phone, now."""
        seen: set[str] = set()
        talks = [talk for talk in self.cluster.phones.talks.values() if _is_there(talk)]
        circles = self.people.circles.there_are() if talks else []
        for talk in talks:
            self.people.circles.learn_call(talk)
            order = self._order(talk.call)
            around = [circle for circle in circles if circle[0].call == talk.call]
            restless = any(one.held or one.busy for circle in around for one in circle)
            talking = [circle for circle in around if len(circle) > 1]
            if order is None or restless or not talking:
                continue
            good = any(self._good(talk, circle, order) for circle in talking)
            key = f"{PREFIX}{talk.leg}/{order.mode}/{order.since}"
            seen |= {key, f"{key}/served"}
            served = not good and self.phones.served(talk.call)
            long = self.lasting(f"{key}/served", served, DEAF_MAX_S, calm=False)
            if self.lasting(key, not good, DEAF_MAX_S) or long:
                ears = self.cluster.ears
                heard = {one.leg: ears.heard_by(one) for circle in talking for one in (talk, *circle)}
                text = ", ".join(f"{leg} hears {what}" for leg, what in heard.items())
                self.problem(RULE, f"call {talk.call}, {order.mode} at {order.agent}: {text}")
        self.forget(PREFIX, seen)

    def _order(self, call: str) -> SupervisorValue | None:
        item = self.cluster.store.keys.get(self.cluster.keys.supervisor(call))
        try:
            return decode(item.value, SupervisorValue, item.key) if item else None
        except BadValue:
            return None

    def _good(self, talk: Talk, circle: list[Talk], order: SupervisorValue) -> bool:
        ears = self.cluster.ears
        if ears.heard_by(talk) != sorted(one.leg for one in circle):
            return False
        by = [one for one in circle if talk.leg in ears.heard_by(one)]
        if order.mode == "listen":
            return not by
        if order.mode == "barge":
            return len(by) == len(circle)
        # who was supervised may have handed the caller over: to another agent, or to a number outside
        asked = [one for one in circle if one.who == order.agent]
        return len(by) == 1 and (by[0] in asked or (not asked and by[0].who != "customer"))

    def over(self, talk: Talk) -> None:
        """His phone's dialog has ended."""
        self.people.circles.learn_call(talk)
        order = self._order(talk.call)
        if talk.ended_by == "self" or talk.taken_back(self.cluster.world.now) or order is None:
            return
        if self._stopped.get(talk.call, 0.0) > talk.started_s:
            return  # ordered anew since, which is another ring
        circles = self.people.circles.split(self.people.circles.of_call(talk.call))
        # a consultation that outlives the conversation he heard is another, and a transfer ends that
        apart = [c for c in circles if len(c) > 1 and not any(one.main or one.referred for one in c)]
        if any(not self.phones.is_left(circle[0]) for circle in apart):
            self.problem(STAY, f"{talk.leg} (call {talk.call}, {order.mode}) was ended: {talk.ended_by}")


def _is_there(talk: Talk) -> bool:
    return talk.who == SUPERVISOR and not talk.dialled and talk.state == UP
