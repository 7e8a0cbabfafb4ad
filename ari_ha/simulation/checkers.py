"""What must hold in every run, whatever goes wrong. They look from outside where they
can: at the phones, at who hears whom, at what is in etcd; at machines only to see that
they agree with each other.

- at every commit (`ari_ha.checkers.commits`, to which the container lab is held as well): epochs
  never go back, queue order and places are kept, agents keep their state
- one owner speaks per call and epoch; no agent in two calls
- at the phones (`checkers_people`): an answered call is never ended by us, only people end
  calls; people on one call hear each other, once, within a limit after any fault; nobody is
  called twice
- a supervisor hears them, and is heard by whom he speaks to (`checkers_supervision`)
- a move on purpose leaves no hole: whoever hears something goes on hearing (`checkers_moves`)
- nothing is sent to a carrier or a phone because a node was lost
- agents' states and counters tell only what agents did
- every voice of a recorded call reaches a recorder at every moment (`recorders`)
- nothing is left of a call 30 s after it, but its rows in the database (`checkers_records`)
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ari_ha.checkers.acd import check_counters
from ari_ha.checkers.commits import Commits
from ari_ha.core.ports.store import KeyValue
from ari_ha.machines.edge import EdgeMachine
from ari_ha.simulation.checkers_moves import AtTheChange
from ari_ha.simulation.checkers_people import AtThePhones
from ari_ha.simulation.checkers_records import Books
from ari_ha.simulation.checkers_supervision import AtTheSupervisor
from ari_ha.simulation.cluster import EDGES, SUPERVISOR, Cluster
from ari_ha.simulation.fake_phones import Phones, Talk
from ari_ha.simulation.faults import Faults
from ari_ha.simulation.people import People
from ari_ha.simulation.recorders import Tapes
from ari_ha.simulation.world import UTC_AT_START_S
from ari_ha.wire import link
from ari_ha.wire.keyspace import AgentValue, decode

LOOK_EVERY_S = 0.25
CALM_S = 6.0
"""After a fault, what must be true again by then. Longer than a move's limit and its
retry, and than the retransmissions of a lost BYE."""
TWO_RINGS_MAX_S = 4.5
"""A lost CANCEL is repeated by then (RFC 3261 timer E)."""
TELLING_MAX_S = 9.0
"""Phones may be told an edge's other address, or port, for so long, or when they answer: twice a phone that
has not got our ACK yet may answer 491, and up to 4 s are waited for that (RFC 3261 section 14.1)."""
SPEAKING = (link.Bridged, link.EndLeg, link.WantMedia)


@dataclass(frozen=True, slots=True)
class Problem:
    """A rule that did not hold."""

    rule: str
    text: str
    at_s: float

    def __str__(self) -> str:
        return f"[{self.at_s:.3f} s] {self.rule}: {self.text}"


@dataclass
class Checkers:
    """All checkers of one run."""

    cluster: Cluster
    people: People
    faults: Faults
    problems: list[Problem] = field(default_factory=list)
    unserved: int = 0
    """Callers refused before anybody answered, while things were going wrong."""
    _said: set[str] = field(default_factory=set)
    _speakers: dict[tuple[str, str], str] = field(default_factory=dict)
    _since: dict[str, float] = field(default_factory=dict)
    _frames_seen: int = 0

    def begin(self) -> None:
        """Looks from now on, now and then and at every commit."""
        cluster = self.cluster
        self.commits = Commits(cluster.keys, self.problem, self._asked, self._could_be_served)
        self.commits.begin({item.key: item.value for item in cluster.store.keys.values()})
        cluster.store.on_commit.append(self._commit)
        self.books = Books(cluster, self.people, self.problem)
        self.books.begin()
        self.phones = AtThePhones(cluster, self.people, self.problem, self._lasting, self._forget)
        self.supervision = AtTheSupervisor(
            cluster, self.people, self.problem, self._lasting, self._forget, self.phones
        )
        self.moves = AtTheChange(cluster, self.people, self.problem)
        self.moves.begin()
        was_ended = cluster.phones.on_ended

        def agent_over(talk: Talk) -> None:
            was_ended(talk)
            (self.supervision if talk.who == SUPERVISOR else self.phones).over(talk)

        cluster.phones.on_ended = agent_over
        cluster.carrier.on_ended = self._customer_over
        for phones in (cluster.carrier, cluster.phones):
            self._watch_rings(phones)
        self.tapes = Tapes(cluster, self.faults, self.problem, self._lasting, self._forget)
        self.tapes.begin()
        cluster.world.after(LOOK_EVERY_S, self._look)

    def _watch_rings(self, phones: Phones) -> None:
        was_ringing = phones.on_ringing

        def rings(talk: Talk) -> None:
            self.phones.rings(talk)
            was_ringing(talk)

        phones.on_ringing = rings

    def problem(self, rule: str, text: str) -> None:
        """Something is wrong; said once."""
        if text not in self._said:
            self._said.add(text)
            self.problems.append(Problem(rule, text, self.cluster.world.now))
            self.cluster.world.say("checker", f"{rule}: {text}")

    @property
    def calm(self) -> bool:
        """Nothing has gone wrong for a while."""
        return self.cluster.world.now - self.faults.calm_since > CALM_S

    # -- now and then

    def _look(self) -> None:
        self._still_moving()
        self._frames()
        self._two_calls()
        self.phones.hearing()
        self.supervision.look()
        self.moves.look()
        self.commits.look(self.cluster.world.now)
        self._untouched()
        self._replaced()
        self.books.look()
        self.tapes.look()
        self.cluster.world.after(LOOK_EVERY_S, self._look)

    def _lasting(self, key: str, true: bool, limit_s: float, calm: bool = True) -> bool:
        """Whether something has been true for longer than ``limit_s``, in calm."""
        now = self.cluster.world.now
        if not true:
            self._since.pop(key, None)
            return False
        since = self._since.setdefault(key, now)
        return now - since > limit_s and (self.calm or not calm)

    def _frames(self) -> None:
        """Only one node speaks under one epoch of a call."""
        frames = self.cluster.traffic.frames
        for at, sender, _, frame in frames[self._frames_seen :]:
            if isinstance(frame, SPEAKING) and sender not in EDGES:
                first = self._speakers.setdefault((frame.call, frame.epoch), sender)
                if first != sender:
                    self.problem(
                        "one owner",
                        f"{first} and {sender} speak for {frame.call} under {frame.epoch} ({at:.3f})",
                    )
        self._frames_seen = len(frames)

    def _two_calls(self) -> None:
        """An agent's phone has one call: for the edge always, for the phone in the end."""
        edge = self.cluster.edge.machine
        if isinstance(edge, EdgeMachine):
            devices: dict[str, str] = {}
            for call in edge.calls.by_id.values():
                for leg in call.living():
                    if not leg.aor:
                        continue
                    other = devices.setdefault(leg.aor, f"{call.call}/{leg.leg}")
                    if other != f"{call.call}/{leg.leg}":
                        self.problem("one call per agent", f"{leg.aor}: {other} and {call.call}/{leg.leg}")
        alive: dict[str, list[Talk]] = {}
        for talk in self.cluster.phones.talks.values():
            if talk.alive and not talk.dialled and not self.phones.answered_to_nobody(talk):
                alive.setdefault(talk.who, []).append(talk)
        for who in self.cluster.agents:
            talks = alive.get(who, [])
            if self._lasting(f"two/{who}", len(talks) > 1, TWO_RINGS_MAX_S):
                legs = ", ".join(f"{talk.leg} {talk.state}" for talk in talks)
                self.problem("one call per agent", f"the phone of {who} has {legs}")

    def _forget(self, prefix: str, seen: set[str]) -> None:
        for key in [key for key in self._since if key.startswith(prefix) and key not in seen]:
            del self._since[key]

    def _still_moving(self) -> None:
        """Nobody is told of another address before an edge serves there: without etcd it knows of no call."""
        now, rehomed, edge = self.cluster.world.now, self.cluster.rehomed, self.cluster.edge.machine
        serves = isinstance(edge, EdgeMachine) and edge.serving
        if rehomed and now - rehomed[-1] < TELLING_MAX_S and not serves:
            rehomed.append(now)

    def _untouched(self) -> None:
        """No phone hears of a takeover: re-INVITEs from the edge are never needed, but to say
        that it has another address."""
        for phones in (self.cluster.carrier, self.cluster.phones):
            for talk in phones.talks.values():
                for at, method in talk.requests:
                    told = any(
                        moved <= at < max(moved, talk.answered_s) + TELLING_MAX_S
                        for moved in self.cluster.rehomed
                    )
                    if method != "BYE" and not (method == "INVITE" and told):
                        self.problem("phones are left alone", f"{talk.leg} got {method} at {at:.3f}")

    def _replaced(self) -> None:
        """An edge that another has replaced writes nothing, and is gone when it is told. Whom it ends is
        looked at as whom anybody ends: a node may have asked for that before it was replaced."""
        old = self.cluster.replaced
        if old is None:
            return
        for txn in old.wrote:
            keys = ", ".join(change.key for change in (*txn.puts, *txn.deletes))
            self.problem("a replaced edge does nothing", f"{old.name} wrote {keys}")
        if old.late:
            self.problem("a replaced edge does nothing", f"{old.name} has not stood down")

    # -- endings

    def _customer_over(self, talk: Talk) -> None:
        if talk.ended_by != "self" and not talk.answered_s and talk.who == "customer":
            self._never_answered(talk)
        else:
            self.phones.over(talk)

    def _never_answered(self, talk: Talk) -> None:
        self.unserved += 1
        node_lives = any(node.asterisk.running and node.app.running for node in self.cluster.nodes)
        if self.calm and node_lives:
            self.problem("callers are served", f"{talk.leg} got {talk.status} in calm")

    # -- etcd

    def _commit(self, changes: list[tuple[int, str, KeyValue | None]]) -> None:
        self.supervision.commit(changes)
        utc = UTC_AT_START_S + self.cluster.world.now
        self.commits.commit({key: item.value if item else None for _, key, item in changes}, utc)

    def _asked(self, agent: AgentValue) -> bool:
        """What an agent wants to be is what he dialled, or what too many unanswered rings made of it."""
        rona = self.people.not_answered[agent.agent] >= self.cluster.shape.rona_max
        return agent.agent in self.people.paused or rona

    def _could_be_served(self, passed_over: str) -> bool:
        """Whether whoever was passed over is still there, in calm."""
        edge = self.cluster.edge.machine
        return self.calm and isinstance(edge, EdgeMachine) and passed_over in edge.calls.by_id

    # -- at the end

    def records_left(self) -> list[str]:
        """Calls that etcd or rtpengine still have; the sweeps for them take their time."""
        keys = self.cluster.keys
        left = [key for key in self.cluster.store.keys if keys.split(key)[0] in ("calls", "dialogs")]
        return ["etcd has " + "/".join(keys.split(key)) for key in left] + [
            f"rtpengine has call {ident}" for ident in self.cluster.relay.calls
        ]

    def _effects(self) -> None:
        """Nobody typed his account twice: what is done for a call outside is done once."""
        for call, keys in self.cluster.site.done.items():
            if len(keys) > 1:
                self.problem("an effect happens once", f"{call}: {', '.join(keys)}")

    def final(self) -> None:
        """Long after the last person hung up: nothing is left."""
        self._effects()
        for text in self.faults.not_emptied:
            self.problem("a drained node gets empty", text)
        self._leftovers()
        self.tapes.final()
        self._agents()
        self.books.final()

    def swept(self) -> None:
        """After the sweeps: not even a record."""
        for text in self.records_left():
            self.problem("nothing is left", text)

    def _leftovers(self) -> None:
        cluster = self.cluster
        for node in cluster.nodes:
            for channel in node.asterisk.channels.values():
                where = channel.context or "dialled"
                self.problem(
                    "nothing is left", f"channel {channel.ident} on {node.name} ({channel.state}, {where})"
                )
            for ident in node.asterisk.bridges:
                self.problem("nothing is left", f"bridge {ident} on {node.name}")
        edge = cluster.edge.machine
        if isinstance(edge, EdgeMachine):
            for ident in edge.calls.by_id:
                self.problem("nothing is left", f"call {ident} at the edge")
        for ident, tag in cluster.relay.destroyed:
            self.problem("media is never destroyed", f"tag {tag} of {ident}")
        for key in cluster.store.keys:
            parts = cluster.keys.split(key)
            if parts[0] == "queues" and "waiting" in parts:
                self.problem("nothing is left", f"etcd has {'/'.join(parts)}")

    def _agents(self) -> None:
        """Agents are idle, and their states and counters tell what they did."""
        cluster = self.cluster
        for agent in cluster.agents:
            value = decode(cluster.store.keys[cluster.keys.agent(agent)].value, AgentValue)
            if value.work != "idle" or value.attempt is not None:
                self.problem("no ghost agents", f"{agent} is {value.work}, attempt {value.attempt}")
            if value.recovering is not None:
                self.problem("no ghost agents", f"{agent} is still recovering")
            missed = self.people.not_answered[agent]
            answered = self.people.answered[agent]
            for text in check_counters(agent, value.missed, value.handled, missed, answered):
                self.problem("counters tell the truth", text)
            own_doing = agent in self.people.paused or missed >= cluster.shape.rona_max
            if value.intent != "available" and not own_doing:
                self.problem("agents keep their state", f"{agent} is {value.intent} ({value.reason})")
