"""The places of one carrier: one where its address is an address, several where it is a name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from ari_ha.machines.names import SERVICES, Place, Question, is_name
from ari_ha.wire.sip_values import TrunkValue

UP, DOWN, UNKNOWN = "up", "down", "unknown"
SIP_PORT, SIPS_PORT = 5060, 5061


@dataclass(slots=True)
class Target:
    """A place, and how it is there."""

    place: Place
    reach: str = UNKNOWN
    missed: int = 0
    """OPTIONS in a row without an answer"""
    rests_until: float = 0.0
    """It failed a request; used before then only if there is no other."""


def address_of(trunk: TrunkValue) -> tuple[str, int]:
    """Host and port of a trunk's address; without a port the default one."""
    host, _, port = trunk.address.rpartition(":")
    if not host:
        return trunk.address, SIPS_PORT if trunk.transport == "tls" else SIP_PORT
    return host, int(port) if port.isdigit() else SIP_PORT


def question_of(trunk: TrunkValue) -> Question | None:
    """What to ask DNS about the trunk's address; None where that is no name. With a port it
    is a host, without one a service (RFC 3263 §4.2)."""
    host, port = address_of(trunk)
    if not is_name(host):
        return None
    return Question(host, "" if ":" in trunk.address else SERVICES.get(trunk.transport, ""), port)


def kept(old: Sequence[Target], places: Sequence[Place]) -> list[Target]:
    """Targets for the places; what is known of one that stays is kept."""
    known = {target.place.text: target for target in old}
    found = []
    for place in places:
        target = known.get(place.text, Target(place))
        target.place = place
        found.append(target)
    return found


def reach_of(targets: Sequence[Target], before: str) -> str:
    """A carrier is up while one of its places is, and down when all are."""
    states = {target.reach for target in targets}
    if UP in states:
        return UP
    return DOWN if states == {DOWN} else before


def pick(
    targets: Sequence[Target], leave_out: Collection[str], prefer: str, now: float, rand: Callable[[], float]
) -> Target | None:
    """The place for the next request: one that is there and has not failed lately, else any
    that is left; ``prefer`` among those, else by priority and weight (RFC 2782)."""
    left = [target for target in targets if target.place.text not in leave_out]
    there = [target for target in left if target.reach != DOWN]
    well = [target for target in there if target.rests_until <= now] or there or left
    for target in well:
        if target.place.text == prefer:
            return target
    if not well:
        return None
    first = min(target.place.priority for target in well)
    group = [target for target in well if target.place.priority == first]
    total = sum(target.place.weight for target in group)
    if not total:
        return group[int(rand() * len(group))]
    drawn = rand() * total
    for target in group:
        drawn -= target.place.weight
        if drawn < 0:
            return target
    return group[-1]
