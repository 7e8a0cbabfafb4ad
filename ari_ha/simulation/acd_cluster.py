"""Several ACDs on one store, and phones: every step is chosen by the caller.

Nothing happens by itself. Effects wait until `perform` gives them a fate,
watched changes until `deliver`, timers until `advance`. The phones and their
edge are the truth: who rings, who talks, who waits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ari_ha.checkers.acd import (
    History,
    Picture,
    check_alive,
    check_store,
    check_talks,
)
from ari_ha.core.ids import NodeId
from ari_ha.core.machine import Done, Effect, Outcome, OutcomeOf, Refused, Unknown, Unreachable
from ari_ha.core.ports.store import (
    KeyValue,
    StoreChanged,
    StoreReach,
    StoreRead,
    StoreSnapshot,
    StoreTxn,
    TxnResult,
)
from ari_ha.machines.acd import Acd
from ari_ha.machines.acd_orders import (
    AcdSettings,
    AttemptWon,
    CancelAttempt,
    ClaimDevice,
    Order,
    QueueFull,
    StartAttempt,
    VerbResult,
)
from ari_ha.wire.keyspace import (
    AgentValue,
    BindingValue,
    Keys,
    NodeValue,
    OwnerValue,
    QueueConfigValue,
    RecordValue,
    UserValue,
    Value,
    encode,
)

UTC_AT_START = 1_700_000_000.0
SETTLE_STEPS_MAX = 20_000
FATES = ("ok", "request-lost", "reply-lost", "late", "unreachable")
"""What may become of a transaction: done; never arrived, and nobody knows; applied, and
nobody knows; not known, and applied later; certainly not taken."""


class Memory:
    """The store: one linear history."""

    def __init__(self, keys: Keys, history: History) -> None:
        self.keys = keys
        self.items: dict[str, KeyValue] = {}
        self.revision = 1
        self.log: list[StoreChanged] = []
        self.history = history

    def put(self, changes: Mapping[str, bytes | None], utc: float) -> None:
        """Commits ``changes`` as one revision."""
        self.revision += 1
        for key, data in changes.items():
            if data is None:
                self.items.pop(key, None)
            else:
                self.items[key] = KeyValue(key, data, self.revision)
            self.log.append(StoreChanged(key=key, value=self.items.get(key), revision=self.revision))
        self.history.commit(changes, utc)

    def txn(self, effect: StoreTxn, utc: float) -> TxnResult:
        """Applies ``effect`` if its compares hold."""
        for compare in effect.compares:
            kv = self.items.get(compare.key)
            if (kv.mod_revision if kv is not None else 0) != compare.mod_revision:
                current = tuple(self.items[c.key] for c in effect.compares if c.key in self.items)
                return TxnResult(False, self.revision, current)
        changes: dict[str, bytes | None] = {put.key: put.value for put in effect.puts}
        changes.update({delete.key: None for delete in effect.deletes})
        self.put(changes, utc)
        return TxnResult(True, self.revision)

    def data(self) -> dict[str, bytes]:
        return {key: kv.value for key, kv in self.items.items()}


@dataclass
class Leg:
    """An agent's phone in a call, as the edge knows it."""

    call: str
    agent: str
    attempt: str
    state: str = "dialled"
    """dialled, ringing, answered (the node was not told it won), up"""


@dataclass
class Phone:
    """A caller at the edge."""

    call: str
    queue: str
    entered: float
    priority: int
    node: str = ""


@dataclass
class Node:
    """One node app with its Asterisk."""

    name: str
    incarnation: str
    acd: Acd
    effects: list[Effect] = field(default_factory=list)
    seen: int = 0
    alive: bool = True
    store_away: bool = False
    results: dict[str, VerbResult] = field(default_factory=dict)
    orders: list[Order] = field(default_factory=list)
    wrong_s: float = 0.0
    """How far its wall clock is ahead."""

    @property
    def ident(self) -> str:
        return f"{self.name}#{self.incarnation}"


class Cluster:
    """See the module."""

    def __init__(self, nodes: int = 2, settings: AcdSettings | None = None, settle_s: float = 1.0) -> None:
        self.keys = Keys("test")
        self.history = History(self.keys, settle_s)
        self.store = Memory(self.keys, self.history)
        self.settings = settings or AcdSettings()
        self.now = 1000.0
        self.nodes: dict[str, Node] = {}
        self.phones: dict[str, Phone] = {}
        self.legs: dict[str, Leg] = {}
        self.full: list[str] = []
        self.counted: dict[str, float] = {}
        self.later: list[StoreTxn] = []
        self.acd_type: type[Acd] = Acd
        self._ids = 0
        self._epochs = 0
        self._nodes_wanted = nodes

    @property
    def utc(self) -> float:
        return UTC_AT_START + self.now - 1000.0

    def _clocks(self, node: Node) -> tuple[float, float]:
        return self.now, self.utc + node.wrong_s

    # --- setting up --------------------------------------------------------------------

    def put(self, key: str, value: Value | None) -> None:
        self.store.put({key: encode(value) if value is not None else None}, self.utc)

    def start(self) -> Cluster:
        """Starts the nodes; agents and queues are to be put before or after."""
        for number in range(1, self._nodes_wanted + 1):
            self.start_node(f"n{number}")
        return self

    def queue(self, name: str, **config: object) -> None:
        self.put(self.keys.queue_config(name), QueueConfigValue(queue=name, **config))  # type: ignore[arg-type]

    def agent(self, name: str, *queues: str, login: bool = True, **fields: object) -> None:
        """An agent with a registered phone ``dev-<name>``."""
        device = f"dev-{name}"
        self.put(self.keys.user(device), UserValue(user=device, aor=device, agent=name))
        self.register(name)
        state = {"intent": "available", "device": device, "logged_in": self.utc, "idle_since": self.utc}
        values = {**(state if login else {}), **fields}
        self.put(self.keys.agent(name), AgentValue(agent=name, queues={q: 0 for q in queues}, **values))

    def register(self, agent: str, expires: float = 0.0) -> None:
        device = f"dev-{agent}"
        binding = BindingValue(
            aor=device, contact=f"sip:{device}@10.0.0.9", host="10.0.0.9", port=5060, expires=expires
        )
        self.put(self.keys.binding(device, "1"), binding)

    def start_node(self, name: str, incarnation: str = "1") -> Node:
        """A new process; it reads everything before it acts."""
        acd = self.acd_type(
            self.keys, NodeId(name, incarnation),
            new_id=self._new_id, rand=lambda: 0.5, settings=self.settings,
            live_calls=lambda: self.live_at(name),
        )  # fmt: skip
        node = self.nodes[name] = Node(name, incarnation, acd)
        ident = NodeValue(
            node=name, incarnation=incarnation, sip=f"{name}:5060", link=f"{name}:1", ready=True
        )
        self.put(self.keys.node(name), ident)
        self.read_all(node)
        return node

    def read_all(self, node: Node) -> None:
        node.seen = len(self.store.log)
        snapshot = StoreSnapshot(
            prefix=self.keys.root, revision=self.store.revision, items=dict(self.store.items)
        )
        self._took(node, node.acd.store(snapshot, *self._clocks(node)))

    def _new_id(self) -> str:
        self._ids += 1
        return f"t{self._ids}"

    # --- stepping ----------------------------------------------------------------------

    def _took(self, node: Node, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, StoreTxn | StoreRead):
                node.effects.append(effect)
            elif hasattr(effect, "by"):
                self.counted[effect.name] = self.counted.get(effect.name, 0.0) + effect.by  # type: ignore[attr-defined]
        for order in node.acd.commands():
            node.orders.append(order)
            self._obey(node, order)
        node.acd.check()

    def perform(self, node: Node, fate: str = "ok") -> None:
        """The node's oldest effect meets its ``fate``."""
        effect = node.effects.pop(0)
        outcome: Outcome
        if node.store_away:
            outcome = Unknown("no answer") if fate in ("request-lost", "reply-lost") else Unreachable("away")
        elif isinstance(effect, StoreRead):
            found = tuple(kv for kv in (self.store.items.get(effect.key),) if kv is not None)
            outcome = Done(found) if fate == "ok" else Unknown("no answer")
        elif isinstance(effect, StoreTxn):
            outcome = self._txn(effect, fate)
        else:
            outcome = Refused("what is this?")
        if node.alive:
            self._took(node, node.acd.outcome(OutcomeOf(effect=effect, outcome=outcome), *self._clocks(node)))

    def _txn(self, effect: StoreTxn, fate: str) -> Outcome:
        if fate == "ok":
            return Done(self.store.txn(effect, self.utc))
        if fate == "unreachable":
            return Unreachable("nobody there")
        if fate == "reply-lost":
            self.store.txn(effect, self.utc)
        if fate == "late":
            self.later.append(effect)
        return Unknown("no answer")

    def arrive_late(self) -> None:
        """A transaction everybody has given up arrives after all."""
        if self.later:
            self.store.txn(self.later.pop(0), self.utc)

    def deliver(self, node: Node, count: int = 1) -> None:
        """Delivers watched changes."""
        while count and node.seen < len(self.store.log) and node.alive and not node.store_away:
            event = self.store.log[node.seen]
            node.seen += 1
            count -= 1
            self._took(node, node.acd.store(event, *self._clocks(node)))

    def advance(self, seconds: float) -> None:
        """Time passes; timers fire at their time, everything else at once."""
        until = self.now + seconds
        for _ in range(SETTLE_STEPS_MAX):
            self.flow()
            times = [node.acd.deadline() for node in self.nodes.values() if node.alive]
            due = min((time for time in times if time is not None), default=until)
            if due > until:
                self.now = until
                self.history.settle(self.utc)
                return
            self.now = max(self.now, due)
            self.fire()
        raise AssertionError("timers do not come to rest")

    def tick(self, seconds: float) -> None:
        """Time passes and timers fire; nothing that is under way arrives."""
        until = self.now + seconds
        for _ in range(SETTLE_STEPS_MAX):
            times = [node.acd.deadline() for node in self.nodes.values() if node.alive]
            due = min((time for time in times if time is not None), default=until)
            if due > until:
                self.now = until
                return
            self.now = max(self.now, due)
            self.fire()
        raise AssertionError("timers do not come to rest")

    def fire(self) -> None:
        """Fires the timers that are due."""
        for node in list(self.nodes.values()):
            deadline = node.acd.deadline()
            if node.alive and deadline is not None and deadline <= self.now:
                self._took(node, node.acd.fire(*self._clocks(node)))

    def flow(self) -> None:
        """Everything under way arrives, without faults."""
        for _ in range(SETTLE_STEPS_MAX):
            busy = False
            for node in list(self.nodes.values()):
                if node.effects:
                    self.perform(node)
                    busy = True
                elif node.alive and not node.store_away and node.seen < len(self.store.log):
                    self.deliver(node)
                    busy = True
            if not busy:
                return
        raise AssertionError("the cluster does not come to rest")

    # --- the store goes and comes ------------------------------------------------------

    def lose_store(self, node: Node) -> None:
        node.store_away = True
        event = StoreReach(reachable=False, no_leader=True, why="no leader")
        self._took(node, node.acd.store(event, *self._clocks(node)))

    def find_store(self, node: Node) -> None:
        node.store_away = False
        event = StoreReach(reachable=True)
        self._took(node, node.acd.store(event, *self._clocks(node)))

    # --- callers and phones ------------------------------------------------------------

    def live_at(self, name: str) -> dict[str, set[str]]:
        """What the node serves: call -> agents with a leg."""
        calls = {phone.call: set() for phone in self.phones.values() if phone.node == name}
        for leg in self.legs.values():
            if leg.call in calls:
                calls[leg.call].add(leg.agent)
        return calls

    def live(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {call: set() for call in self.phones}
        for leg in self.legs.values():
            found.setdefault(leg.call, set()).add(leg.agent)
        return found

    def _own(self, phone: Phone, **more: object) -> None:
        self._epochs += 1
        node = self.nodes[phone.node]
        owner = OwnerValue(call=phone.call, node=node.ident, epoch=f"1.{self._epochs}", edge="e1", **more)  # type: ignore[arg-type]
        self.put(self.keys.owner(phone.call), owner)

    def call(self, call: str, queue: str, node: str, priority: int = 0) -> None:
        """A caller arrives at a node."""
        phone = self.phones[call] = Phone(call, queue, self.utc, priority, node)
        self._own(phone)
        at = self.nodes[node]
        self.put(self.keys.record(call), RecordValue(call=call, epoch="1.1", node=at.ident))
        effects = at.acd.caller_enters(call, queue, phone.entered, priority, "4930", *self._clocks(at))
        self._took(at, effects)

    def hang_up(self, call: str) -> None:
        """The caller ends it."""
        phone = self.phones.pop(call)
        for leg in [leg for leg in self.legs.values() if leg.call == call]:
            del self.legs[leg.attempt]
        node = self.nodes[phone.node]
        self.store.put({self.keys.owner(call): None, self.keys.record(call): None}, self.utc)
        if node.alive:
            self._took(node, node.acd.caller_leaves(call, "abandoned", *self._clocks(node)))

    def _obey(self, node: Node, order: Order) -> None:
        match order:
            case StartAttempt():
                self._dial(node, order)
            case CancelAttempt(attempt=attempt):
                leg = self.legs.get(attempt)
                if leg is not None and leg.state != "up":
                    del self.legs[attempt]
            case AttemptWon(attempt=attempt):
                if attempt in self.legs:
                    self.legs[attempt].state = "up"
            case ClaimDevice(attempt=attempt, agent=agent):
                holder = next((leg.attempt for leg in self.legs.values() if leg.agent == agent), attempt)
                granted = holder == attempt
                self._took(node, node.acd.claim_answered(attempt, granted, *self._clocks(node), holder))
            case QueueFull(call=call):
                self.full.append(call)
                self.phones.pop(call, None)
                self.store.put({self.keys.owner(call): None, self.keys.record(call): None}, self.utc)
            case VerbResult(request=request):
                node.results[request] = order

    def _dial(self, node: Node, order: StartAttempt) -> None:
        """The edge refuses a second attempt at a device that has one."""
        ident = order.attempt.attempt
        if any(leg.agent == order.agent and leg.attempt != ident for leg in self.legs.values()):
            self._took(node, node.acd.attempt_failed(ident, "edge-refused", *self._clocks(node)))
        elif order.call in self.phones:
            self.legs[ident] = Leg(order.call, order.agent, ident)

    def _node_of(self, leg: Leg) -> Node | None:
        phone = self.phones.get(leg.call)
        node = self.nodes.get(phone.node) if phone is not None else None
        return node if node is not None and node.alive else None

    def ring(self, attempt: str) -> None:
        leg = self.legs[attempt]
        node = self._node_of(leg)
        leg.state = "ringing"
        if node is not None:
            self._took(node, node.acd.attempt_ringing(attempt, *self._clocks(node)))

    def pick_up(self, attempt: str) -> None:
        leg = self.legs[attempt]
        node = self._node_of(leg)
        leg.state = "answered"
        if node is not None:
            self._took(node, node.acd.attempt_answered(attempt, *self._clocks(node)))

    def turn_down(self, attempt: str, kind: str = "reject") -> None:
        leg = self.legs.pop(attempt)
        node = self._node_of(leg)
        if node is not None:
            self._took(node, node.acd.attempt_failed(attempt, kind, *self._clocks(node)))

    def agent_hangs_up(self, attempt: str) -> None:
        """The agent ends the conversation; the caller is ended with it."""
        leg = self.legs.pop(attempt)
        node = self._node_of(leg)
        if node is not None:
            effects = node.acd.conversation_ended(leg.call, leg.agent, "16", *self._clocks(node))
            self._took(node, effects)
        self.hang_up(leg.call)

    def hold(self, attempt: str, held: bool) -> None:
        leg = self.legs[attempt]
        node = self._node_of(leg)
        if node is not None:
            self._took(node, node.acd.conversation_hold(leg.call, leg.agent, held, *self._clocks(node)))

    def verb(self, node: str, verb: str, agent: str, **args: object) -> str:
        """Asks at a node; the request's id finds the answer in ``results``."""
        request = self._new_id()
        at = self.nodes[node]
        self._took(at, at.acd.agent_verb(request, verb, args, *self._clocks(at), agent=agent))
        return request

    # --- death and takeover ------------------------------------------------------------

    def kill(self, name: str) -> None:
        """The node is gone at once; its key will be when its lease runs out."""
        node = self.nodes[name]
        node.alive = False
        node.effects.clear()

    def lease_out(self, name: str) -> None:
        if self.keys.node(name) in self.store.items:
            self.put(self.keys.node(name), None)

    def take_over(self, call: str, to: str) -> None:
        """The edge gives a call to another node, with its facts."""
        phone = self.phones[call]
        came_from = self.nodes[phone.node]
        phone.node = to
        node = self.nodes[to]
        self._own(phone)
        if came_from is not node and came_from.alive:
            self._took(came_from, came_from.acd.call_moved(call, *self._clocks(came_from)))
        legs = [leg for leg in self.legs.values() if leg.call == call]
        alive = {
            leg.attempt: "ringing" if leg.state == "ringing" else "up"
            for leg in legs
            if leg.state != "dialled"
        }
        for leg in [leg for leg in legs if leg.state == "dialled"]:
            del self.legs[leg.attempt]
        talking = [leg.agent for leg in legs if leg.state == "up"]
        effects = node.acd.caller_resumed(
            call, phone.queue, phone.entered, phone.priority, "4930", *self._clocks(node),
            alive=alive, talking=talking, from_node=came_from.ident,
        )  # fmt: skip
        self._took(node, effects)
        for leg in [leg for leg in legs if leg.state == "answered" and leg.attempt in self.legs]:
            self.pick_up(leg.attempt)

    def rebuilt(self, call: str) -> None:
        node = self.nodes[self.phones[call].node]
        if node.alive:
            self._took(node, node.acd.call_recovered(call, *self._clocks(node)))

    # --- looking -----------------------------------------------------------------------

    def picture(self) -> Picture:
        return self.history.picture

    def agent_now(self, name: str) -> AgentValue:
        return self.picture().agents[name]

    def agents_data(self) -> dict[str, bytes]:
        prefix = self.keys.prefix("agents")
        return {k: v for k, v in self.store.data().items() if k.startswith(prefix) and k.count("/") == 5}

    def talks(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for leg in self.legs.values():
            if leg.state == "up":
                found.setdefault(leg.call, []).append(leg.agent)
        return found

    def findings(self, quiet: bool = False) -> list[str]:
        """What the checkers say; ``quiet``: everything has settled."""
        found = check_store(self.picture()) + check_talks(self.talks()) + list(self.history.found)
        return found + check_alive(self.picture(), self.live()) if quiet else found
