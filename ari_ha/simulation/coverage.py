"""What a run has tried: in which state each call was when something went wrong, and what
people did while a call was without a node. Counts only; it changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from ari_ha.machines.edge import EdgeMachine
from ari_ha.machines.edge_model import EdgeCall
from ari_ha.simulation.circles import Circles, consulted
from ari_ha.simulation.cluster import SUPERVISOR, Cluster
from ari_ha.simulation.fake_phones import RINGING, UP, Talk
from ari_ha.wire.keyspace import BadValue, RecordValue, SupervisorValue, decode

Covered = Counter[tuple[str, str]]
"""(state, fault) -> how often"""
IN_THE_GAP = "in the gap: "
"""Begins what a person did, in place of a state, while the call was lost or on its way."""
STATES = (
    "set up", "ivr", "ivr with digits", "queued", "ringing", "talking", "held", "consult rings", "consult",
    "attended transfer", "blind transfer", "transfer rings", "conference", "agent dials", "trunk rings",
    "called out", "listen", "whisper", "barge", "moving", "draining",
)  # fmt: skip
ACTS = ("answers", "dials", "hangs up", "holds", "unholds", "refers", "types")


class Coverage:
    """Counts of one run."""

    def __init__(self, cluster: Cluster, circles: Circles) -> None:
        self.cluster = cluster
        self.circles = circles
        self.counted: Covered = Counter()
        self._last = "none"
        for phones in (cluster.carrier, cluster.phones):
            phones.on_act.append(self._acts)

    def fault(self, kind: str) -> None:
        """Something goes wrong now."""
        self._last = kind
        edge = self.cluster.edge.machine
        if not isinstance(edge, EdgeMachine):
            return
        for call in edge.calls.by_id.values():
            for state in sorted(self._states(edge, call)):
                self.counted[state, kind] += 1

    def _acts(self, talk: Talk, what: str) -> None:
        """A person does something: counted when nobody serves the call just then."""
        edge = self.cluster.edge.machine
        self.circles.learn_call(talk)
        call = edge.calls.by_id.get(talk.call) if isinstance(edge, EdgeMachine) else None
        if not self.cluster.edge.running or (call is not None and (call.lost or call.move)):
            self.counted[IN_THE_GAP + what, self._last] += 1

    # -- in which state a call is

    def _states(self, edge: EdgeMachine, call: EdgeCall) -> set[str]:
        talks = [talk for talk in self.circles.of_call(call.call) if talk.alive]
        record = self._record(call.call)
        found = {state for talk in talks for state in self._of_talk(talk, talks)}
        found |= self._of_stage(talks, record)
        found |= {"moving"} if call.move or call.lost else set()
        if call.primary is not None and call.primary.waits:
            found.add("set up" if call.kind == "trunk" else "agent dials")
        if call.owner and self.cluster.keys.drain(call.owner.name) in self.cluster.store.keys:
            found.add("draining")
        return found | self._supervised(call.call)

    def _record(self, call: str) -> RecordValue | None:
        item = self.cluster.store.keys.get(self.cluster.keys.record(call))
        try:
            return decode(item.value, RecordValue, item.key) if item else None
        except BadValue:
            return None

    @staticmethod
    def _of_stage(talks: list[Talk], record: RecordValue | None) -> set[str]:
        stage = record.stage if record else "setup"
        rings = any(talk.state == RINGING and not talk.dialled for talk in talks)
        if stage == "ivr" and record is not None and record.ivr is not None:
            return {"ivr with digits" if record.ivr.typed else "ivr"}
        if stage == "queued":
            return {"ringing" if rings else "queued"}
        return set()

    def _of_talk(self, talk: Talk, talks: list[Talk]) -> Iterable[str]:
        outside = talk.leg in self.cluster.carrier.talks and not talk.dialled
        if talk.state == RINGING and outside:
            yield "trunk rings"
        if talk.calls_out and talk.main is None and talk.state == UP:
            yield "called out"
        if talk.main is not None:
            yield "consult" if talk.state == UP else "consult rings"
        if talk.referred:
            yield "attended transfer" if talk.attended else "blind transfer"
        left = any(o.referred for o in self.circles.of_call(talk.call) if not o.alive)
        if talk.state == RINGING and not talk.dialled and left and consulted(talk, talks) is None:
            yield "transfer rings"
        if talk.state == UP:
            others = self.circles.with_whom(talk)
            if len(others) > 1:
                yield "conference"
            elif others:
                yield "held" if talk.held or others[0].held else "talking"

    def _supervised(self, call: str) -> set[str]:
        item = self.cluster.store.keys.get(self.cluster.keys.supervisor(call))
        talks = self.cluster.phones.talks.values()
        there = any(t.who == SUPERVISOR and t.state == UP and t.call == call for t in talks)
        return {decode(item.value, SupervisorValue, item.key).mode} if item and there else set()


def table(counted: Mapping[tuple[str, str], int]) -> list[tuple[str, int, int, str]]:
    """For people: state or act, how often, under how many kinds of faults, and the rarest kinds."""
    rows = []
    for state in (*STATES, *(IN_THE_GAP + act for act in ACTS)):
        kinds = {kind: n for (what, kind), n in counted.items() if what == state}
        most = sorted(kinds, key=lambda kind: (-kinds[kind], kind))[:3]
        rows.append((state, sum(kinds.values()), len(kinds), ", ".join(f"{k} {kinds[k]}" for k in most)))
    return rows


def never(counted: Mapping[tuple[str, str], int]) -> list[str]:
    """States and acts that no fault met."""
    return [state for state, times, *_ in table(counted) if not times]
