"""Chaos, the stage: a clean lab, agents at their phones, calls in the state wanted, all on one node."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from ari_ha.cli import view as views
from ari_ha.cli.agents import ask_a_node
from ari_ha.cli.chaos_judge import ALONE_STATES, SUPERVISED, VOICE_STATES, Pair, hearing, hears_now, music_now
from ari_ha.cli.cluster import Cluster, ClusterError, EtcdAway, decode_json, quote
from ari_ha.cli.drain import remove
from ari_ha.cli.lab import NODES, PAIR, Lab, LabError
from ari_ha.core.ports.store import Compare, Put
from ari_ha.farend.client import FarEndClient, FarEndError

POLL_S = 0.05
CARRIER = "carrier"
SUPPORT = [str(number) for number in range(1001, 1041)]
SALES = [str(number) for number in range(1041, 1061)]
AGENTS = {"support": SUPPORT, "sales": SALES}
DIDS = {"support": {"hitless": "6000", "through": "6001"}, "sales": {"hitless": "6100", "through": "6101"}}
IVR_DID = "6201"
"""A menu that listens for long, and then leads to `support`."""
CALLS_MAX = len(SUPPORT) + len(SALES)
FEATURE_CODE_AGENTS = 2
"""Agents of each run who log in by dialling instead of through the HTTP interface."""
RING_LONG_MS = 120_000
ENDS = {
    "pcmu": {"codec": "pcmu"},
    "event-numbers": {"event_pt": 96},
    "srtp": {"srtp": True},
    "wrapped": {},
}
"""How people may speak otherwise than usual (PCMA, telephone-event as 101 on both sides, RTP), and what
customers' ends are told for it. `wrapped`: sequence numbers have begun anew, as on any call older than 22
minutes."""
WRAPS_AFTER = 200
"""Packets: longer than people need to be connected, so that it is the stream they hear that begins anew."""
CALL_SPACING_MS = 40
CLEAN_LIMIT_S = 40.0
RESERVE_LIMIT_S = 1_800.0
STATE_LIMIT_S = 30.0

T = TypeVar("T")


EDGE_LIMIT_S = 1.5
"""A dead edge host does not refuse a connection: asking it must not hold the run up."""


class StageError(Exception):
    """The stage could not be set; the text says what was missing."""


def until(what: str, limit_s: float, look: Callable[[], T], poll_s: float = POLL_S) -> T:
    """The first true answer of ``look``. Raises StageError at the limit, with the last error seen."""
    end = time.monotonic() + limit_s
    why = ""
    while True:
        try:
            found = look()
            if found:
                return found
        except (ClusterError, FarEndError, LabError) as error:
            why = f" ({error})"
        if time.monotonic() >= end:
            raise StageError(f"gave up after {limit_s:.0f} s waiting until {what}{why}")
        time.sleep(poll_s)


class Stage:
    """The lab as a run sees it."""

    def __init__(self, settings: str, say: Callable[[str], None] = lambda _: None) -> None:
        self.cluster = Cluster.open(settings)
        document = _document(self.cluster.settings.source)
        self.far = FarEndClient(
            str(document["farend"]["http"]), Path(self.cluster.settings.http_token_file).read_text().strip()
        )
        self.lab = Lab()
        self.say = say
        self._lock: IO[str] | None = None
        self._active = ""
        self.ends: frozenset[str] = frozenset()
        """How people speak: words of `ENDS`."""
        self.orders: list[tuple[str, str]] = []
        """What agents were asked for since somebody cleared it: agent and verb"""

    # --- looking ---

    def view(self) -> views.View:
        """What etcd holds."""
        return views.read(self.cluster)

    def node_http(self, node: str, path: str, method: str = "GET", body: Any = None) -> Any:
        """A node app's answer."""
        return self.cluster.http(self.cluster.settings.processes[node], path, method, body)

    @property
    def edges(self) -> list[str]:
        """The lab's edges: one, or the two of a pair. Of pairs side by side (edges without guards)
        the one the carrier calls."""
        processes = self.cluster.settings.processes
        found = [edge for edge in PAIR if edge in processes]
        return found if any(name.startswith("guard") for name in processes) else found[:1]

    def active_edge(self) -> str:
        """The edge that serves. Raises ClusterError while none does."""
        if len(self.edges) < 2:
            return self.edges[0]
        for edge in sorted(self.edges, key=lambda edge: edge != self._active):
            try:
                answer = self.cluster.http(self.cluster.settings.processes[edge], "/v1/status", limit_s=0.5)
            except ClusterError:
                continue
            if answer["serving"]:
                self._active = edge
                return edge
        raise ClusterError("no edge serves")

    def claims(self) -> int:
        """How often the place of an edge has been claimed: takeovers, and new lives of the active edge."""
        return self.cluster.writes_under(self.cluster.keys.prefix("vips"))

    def address_moves(self) -> bool:
        """Whether the pair's edges have one address; true of a single edge. Asked while both live."""
        edges = self.view().edges
        return len({edges[name].get("public", "") for name in self.edges if name in edges}) < 2

    def pair_is_whole(self) -> bool:
        """One edge is active, and the other could take over now, in every pair; true of a single edge."""
        if len(self.edges) < 2:
            return True
        roles: dict[str, list[str]] = {}
        for name, base in self.cluster.settings.processes.items():
            if name.startswith("guard"):
                try:
                    said = self.cluster.http(base, "/v1/status", limit_s=0.5)
                except ClusterError:
                    return False
                ready = said["fit"] and said["peer"]["heard"] and said["peer"]["fit"]
                if not ready or (said["role"] == "standby" and not said["clean"]):
                    return False
                roles.setdefault(said["vip"], []).append(said["role"])
        return bool(roles) and all(sorted(pair) == ["active", "standby"] for pair in roles.values())

    def _edge_http(self, path: str) -> Any:
        base = self.cluster.settings.processes[self.active_edge()]
        return self.cluster.http(base, path, limit_s=EDGE_LIMIT_S)

    def edge_calls(self) -> dict[str, dict[str, Any]]:
        """The edge's living calls by caller."""
        answer = self._edge_http("/v1/calls")
        rows = answer["calls"] if isinstance(answer, dict) else answer
        return {str(row["caller"]): row for row in rows}

    def edge_call(self, call: str) -> dict[str, Any]:
        """The edge's word about one call."""
        return self._edge_http(f"/v1/calls/{quote(call)}")

    def edge_status(self) -> dict[str, Any]:
        """The edge's word about itself."""
        return self._edge_http("/v1/status")

    def far_calls(self) -> dict[str, dict[str, Any]]:
        """All calls of the far ends by id."""
        return {call["call"]: call for call in self.far.calls()}

    def came_in(self, state: str) -> dict[str, str]:
        """Calls in this state that somebody made to a phone, by the phone."""
        calls = self.far_calls().values()
        return {c["owner"]: c["call"] for c in calls if (c["way"], c["state"]) == ("in", state)}

    def measure(self, since: float, pairs: Sequence[Pair], until: float | None = None) -> dict[str, Any]:
        """The far ends' rows of these calls, by id."""
        idents = [
            ident
            for pair in pairs
            for ident in (pair.customer, pair.agent_call, pair.supervisor_call, *pair.side)
            if ident
        ]
        ears = {ear: voices for pair in pairs for ear, voices in pair.ears.values() if ear}
        return {row["call"]: row for row in self.far.measure(since, until, idents, ears)["calls"]}

    def heard_lately(self, pairs: Sequence[Pair], window_s: float = 1.0) -> dict[str, Any]:
        """What these calls heard in the last moments, packets under way left out."""
        end = self.far.now() - 0.1
        return self.measure(end - window_s, pairs, end)

    def usable_nodes(self) -> list[str]:
        """Nodes the edge would give a call to."""
        answer = self._edge_http("/v1/nodes")
        rows = answer["nodes"] if isinstance(answer, dict) else answer
        return sorted(row["node"] for row in rows if row["usable"] and not row["cordoned"])

    # --- clean ---

    def reserve(self) -> None:
        """Keeps the lab for this process until it ends: two runs at once would hang up each other's calls."""
        if self._lock is not None:
            return
        self._lock = Path(self.cluster.settings.source).with_name("stage.lock").open("w")
        lock = self._lock

        def taken() -> bool:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        if not taken():
            self.say("the lab is in use by another run: waiting for its end")
            until("the lab is free", RESERVE_LIMIT_S, taken, 0.5)

    def check(self) -> None:
        """The lab is up, serves and is ours. Raises StageError."""
        self.reserve()
        running = self.lab.running()
        if not running:
            raise StageError("the lab is not up: make lab-up")
        until("the far ends answer", 10, self.far.health)
        self.lab.heal()
        self.undrain()
        self.uncordon(NODES)
        until("all nodes take calls", 60, lambda: set(self.usable_nodes()) >= set(NODES), 0.2)
        until(
            "the phones are registered",
            60,
            lambda: (h := self.far.health())["registered"] == h["phones"],
            0.2,
        )

    def clean(self) -> None:
        """No calls, no channels, nothing broken, nobody cordoned."""
        self.lab.heal()
        self.undrain()
        sequence = (1 << 16) - WRAPS_AFTER if "wrapped" in self.ends else None
        self.far.manner(mode="answer", after_s=0.3, ring=True, sequence=sequence)
        self.far.manner([CARRIER], sequence=sequence)
        self.far.hang_up_everything()
        self.uncordon(NODES)
        until("an edge serves", 60, lambda: bool(self.active_edge()), 0.2)
        until("no call is left at the edge", CLEAN_LIMIT_S, lambda: not self.edge_calls())
        until("no call in etcd has an owner", CLEAN_LIMIT_S, lambda: not self.owned_calls(), 0.2)
        until("no channel is left", CLEAN_LIMIT_S, lambda: not self.channels(), 0.3)
        self.whole()

    def whole(self) -> None:
        """Every node takes calls, and so does an edge, with its other one ready."""
        until("an edge serves", 60, lambda: bool(self.active_edge()), 0.2)
        until("all nodes take calls", 60, lambda: set(self.usable_nodes()) >= set(NODES), 0.2)
        until("the pair is whole", 60, self.pair_is_whole, 0.2)

    def owned_calls(self) -> list[str]:
        """Calls in etcd that somebody serves; the record of one that ended may stay until it is swept."""
        return [call for call, parts in self.view().calls.items() if "owner" in parts]

    def channels(self) -> dict[str, list[str]]:
        """Channels left, by node; nodes without any are left out."""
        found = {node: self.lab.channels(node) for node in NODES}
        return {node: names for node, names in found.items() if names}

    def undrain(self) -> None:
        """Nobody wants a node empty any more."""
        for node in NODES:
            until(f"{node} is not drained", 20, lambda node=node: (remove(self.cluster, node), True), 0.2)  # type: ignore[misc]

    def uncordon(self, nodes: Iterable[str]) -> None:
        """Nodes take calls again."""
        for node in nodes:
            until(f"{node} is uncordoned", 20, lambda node=node: self._cordon(node, "uncordon"), 0.2)  # type: ignore[misc]

    def only(self, victim: str) -> None:
        """New calls go to one node."""
        for node in NODES:
            if node != victim:
                self._cordon(node, "cordon")
        until(f"only {victim} takes calls", 10, lambda: self.usable_nodes() == [victim])

    def _cordon(self, node: str, verb: str) -> bool:
        self.node_http(node, f"/v1/{verb}", "POST", {})
        return True

    # --- agents ---

    def agents_in(self, wanted: Sequence[str], busy: Sequence[str] = ()) -> None:
        """Exactly these agents are logged in, idle and available, besides the busy ones; the first few log in
        by dialling."""
        view = self.view()
        for name, value in view.agents.items():
            if name not in (*wanted, *busy) and value.get("intent", "logged_out") != "logged_out":
                self.order_agent(view, name, "logout")
        for name in wanted:
            value = view.agents.get(name, {})
            if value.get("intent") == "not_ready":
                self.order_agent(view, name, "available")
            elif value.get("intent", "logged_out") == "logged_out":
                if name in wanted[:FEATURE_CODE_AGENTS]:
                    self.orders.append((name, "login"))
                    self.far.phone_order(name, "dial", number="*21")
                else:
                    self.order_agent(view, name, "login", device=name)
        until(f"{len(wanted)} agents are free", 30, lambda: self._free(wanted, busy), 0.1)
        self._phones_on_hook(wanted)

    def order_agent(self, view: views.View, agent: str, verb: str, **body: str) -> None:
        """An agent, or somebody for him, wants him logged in or out, or available."""
        self.orders.append((agent, verb))
        ask_a_node(self.cluster, view, agent, verb, body)

    def _phones_on_hook(self, agents: Sequence[str]) -> None:
        """Waits for the short calls of feature codes to end; hangs up the phone where that takes long."""

        def off_hook() -> list[str]:
            return [call["call"] for call in self.far.calls(living="1") if call["owner"] in agents]

        try:
            until("no agent's phone is in a call", 3, lambda: not off_hook())
        except StageError:
            for call in off_hook():
                self.far.order(call, "hangup")
            until("no agent's phone is in a call", 5, lambda: not off_hook())

    def _free(self, wanted: Sequence[str], busy: Sequence[str]) -> bool:
        agents = self.view().agents
        free = [
            n for n, v in agents.items() if v.get("intent") == "available" and v.get("work", "idle") == "idle"
        ]
        leaving = [
            n
            for n, v in agents.items()
            if n not in (*wanted, *busy)
            and (v.get("intent", "logged_out"), v.get("work", "idle")) != ("logged_out", "idle")
        ]
        delayed = [n for n in wanted if agents[n].get("delay_until", 0.0) > time.time()]
        return sorted(free) == sorted(wanted) and not delayed and not leaving

    def agents_out(self) -> None:
        """Nobody is logged in."""
        self.agents_in([])

    def ring_long(self, ms: int) -> dict[str, int]:
        """Phones may ring this long; returns what it was per queue, for `ring_as_before`."""
        old: dict[str, int] = {}
        for queue in DIDS:
            item = self.cluster.get(self.cluster.keys.queue_config(queue))
            if item is None:
                raise StageError(f"queue {queue} is not configured")
            value = decode_json(item)
            old[queue] = int(value.get("ring_timeout_ms", 15_000))
            self._set_ring(queue, ms)
        return old

    def ring_as_before(self, old: Mapping[str, int]) -> None:
        """Puts the ring times back."""
        for queue, ms in old.items():
            self._set_ring(queue, ms)

    def _set_ring(self, queue: str, ms: int) -> None:
        key = self.cluster.keys.queue_config(queue)
        item = self.cluster.get(key)
        if item is None:
            return
        value = {**decode_json(item), "ring_timeout_ms": ms}
        put = Put(key, _json(value))
        if not self.cluster.txn([Compare(key, item.mod_revision)], [put]).succeeded:
            raise StageError(f"{key} changed meanwhile")

    # --- calls ---

    def place(self, count: int, state: str, serial: int) -> list[Pair]:
        """Customers call and reach the state wanted."""
        support = count if state == "ivr" else min(count, len(SUPPORT))
        sales = count - support
        if state in ALONE_STATES:
            self.agents_out()
        else:
            self.agents_in([*SUPPORT[:support], *SALES[:sales]])
        self.far.manner(mode="ring" if state == "ringing" else "answer", after_s=0.3)
        pairs = self.dial("support", support, state, f"1555{serial:03}0")
        pairs += self.dial("sales", sales, state, f"1555{serial:03}{support // 40}")
        self.bring(pairs, state)
        return pairs

    def dial(self, queue: str, count: int, state: str, first: str) -> list[Pair]:
        """So many customers call the queue's number for ``state``, one after the other."""
        if not count:
            return []
        number = IVR_DID if state == "ivr" else DIDS[queue]["through" if state == "through" else "hitless"]
        ways = {name: value for word in self.ends for name, value in ENDS[word].items()}
        idents = self.far.place(number, first, count, spacing_ms=CALL_SPACING_MS, **ways)
        callers = [first] if count == 1 else [f"{first}{n:03}" for n in range(count)]
        return [
            Pair(ident, caller, state, queue=queue) for ident, caller in zip(idents, callers, strict=True)
        ]

    def bring(self, pairs: Sequence[Pair], state: str) -> None:
        """Waits until calls just placed are in ``state``."""
        until(f"{len(pairs)} calls are {state}", STATE_LIMIT_S, lambda: self.reached(pairs), 0.2)
        if state == "held":
            self._hold(pairs)
        if state in SUPERVISED:
            self._supervise(pairs)

    def reached(self, pairs: Sequence[Pair]) -> bool:
        """Whether every call is where it should be; fills in who is connected to whom."""
        at_edge = self.edge_calls()
        far = self.far_calls()
        by_owner = {c["owner"]: c for c in far.values() if c["way"] == "in" and c["state"] != "ended"}
        for pair in pairs:
            if far[pair.customer]["state"] == "ended":
                row = far[pair.customer]
                raise StageError(f"{pair.customer} ended: {row['ended_by']} {row['status']} {row['cause']}")
            row = at_edge.get(pair.caller)
            if row is None:
                return False
            pair.call, pair.node, pair.epoch = row["call"], row["node"], row["epoch"]
            leg, agent = next(
                ((leg, facts["aor"]) for leg, facts in row["legs"].items() if facts["role"] == "agent"),
                ("", ""),
            )
            phone = by_owner.get(agent)
            state = pair.state
            if state in ALONE_STATES:
                if far[pair.customer]["state"] != "up":
                    return False
                continue
            if phone is None or phone["state"] != ("ringing" if state == "ringing" else "up"):
                return False
            pair.agent, pair.agent_call, pair.agent_leg = agent, phone["call"], leg
            wanted = "through" if state in ("through", "ringing") else "hitless"
            if row["media"] != wanted:
                return False
        talking = [pair for pair in pairs if pair.state in (*VOICE_STATES, *SUPERVISED, "held")]
        waiting = [pair for pair in pairs if pair.state in ("ringing", *ALONE_STATES)]
        return self.talking(talking) and self.hearing_music(waiting)

    def rung_anew(self, pairs: Sequence[Pair]) -> None:
        """An edge at another address rings the same phones anew: for the far ends another call."""
        rings = self.came_in("ringing")
        for pair in pairs:
            pair.agent_call = rings.get(pair.agent, pair.agent_call)

    def talking(self, pairs: Sequence[Pair]) -> bool:
        """Whether all of them hear each other now."""
        rows = self.heard_lately(pairs, 0.5) if pairs else {}
        return all(
            hears_now(rows.get(p.customer), p.agent_call, 0.5)
            and hears_now(rows.get(p.agent_call), p.customer, 0.5)
            for p in pairs
        )

    def agents_hear(self, pairs: Sequence[Pair]) -> bool:
        """Whether every agent hears the other side now."""
        rows = self.heard_lately(pairs, 0.5) if pairs else {}
        return all(hears_now(rows.get(p.agent_call), p.customer, 0.5) for p in pairs)

    def hearing_music(self, pairs: Sequence[Pair]) -> bool:
        """Whether all the customers hear music now."""
        rows = self.heard_lately(pairs, 0.5) if pairs else {}
        return all(music_now(rows.get(p.customer), 0.5) for p in pairs)

    def wrapped(self, pairs: Sequence[Pair], since: float) -> None:
        """Waits until the numbers of all streams have begun anew; ``since``: before the first was sent."""

        def all_have() -> bool:
            rows = self.measure(since, pairs)
            ways = [(p.customer, p.agent_call) for p in pairs] + [(p.agent_call, p.customer) for p in pairs]
            heard = [hearing(rows.get(ear), mouth) for ear, mouth in ways]
            return all(one is not None and one["sent"] > WRAPS_AFTER for one in heard)

        until("sequence numbers have begun anew", 15, all_have, 0.2)

    def _hold(self, pairs: Sequence[Pair]) -> None:
        for pair in pairs:
            self.far.order(pair.agent_call, "hold")
        until("every customer on hold hears music", 15, lambda: self.hearing_music(pairs), 0.2)

    def supervise(self, pair: Pair, mode: str, device: str = "") -> None:
        """An order about the call of the pair's agent."""
        body = {"mode": mode, "device": device, "by": "chaos"}
        ask_a_node(self.cluster, self.view(), pair.agent, "supervise", body)

    def _supervise(self, pairs: Sequence[Pair]) -> None:
        """Each call gets a supervisor: the phones of `sales` from the last on."""
        media = {"listen": "hitless", "whisper": "coach", "barge": "through"}
        devices = {pair.customer: SALES[-1 - n] for n, pair in enumerate(pairs)}
        for pair in pairs:
            self.supervise(pair, SUPERVISED[pair.state], devices[pair.customer])

        def there() -> bool:
            up = self.came_in("up")
            at_edge = self.edge_calls()
            for pair in pairs:
                pair.supervisor_call = up.get(devices[pair.customer], "")
                if at_edge[pair.caller]["media"] != media[SUPERVISED[pair.state]]:
                    return False
            rows = self.heard_lately(pairs, 0.5)
            return all(p.supervisor_call and music_now(rows.get(p.supervisor_call), 0.5) for p in pairs)

        until("every supervisor is there", STATE_LIMIT_S, there, 0.2)

    def refresh(self, pairs: Sequence[Pair]) -> None:
        """Reads node and epoch of each call again."""
        at_edge = self.edge_calls()
        for pair in pairs:
            row = at_edge.get(pair.caller)
            if row is not None:
                pair.call, pair.node, pair.epoch = row["call"], row["node"], row["epoch"]

    def agents(self) -> dict[str, dict[str, Any]]:
        """Agents' records; raises EtcdAway when they cannot be read."""
        return {name: dict(value) for name, value in self.view().agents.items()}


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode()


def _document(path: str) -> dict[str, Any]:
    document = json.loads(Path(path).read_text())
    if "farend" not in document:
        raise StageError(f"{path} does not say where the far ends are")
    return document


__all__ = ["CALLS_MAX", "EtcdAway", "Stage", "StageError", "until"]
