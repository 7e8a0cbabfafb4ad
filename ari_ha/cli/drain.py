"""``ari-ha drain``, ``undrain``, ``takeover``: moving living calls on purpose.

What is wanted is one etcd key per node (``drains/<node>``); the edges act on it and go on
with it whatever dies meanwhile, this command included."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ari_ha.cli.output import DEFAULT_SETTINGS, JsonFlag, SettingsFile, fail, print_json, say, table

if TYPE_CHECKING:
    from ari_ha.cli.cluster import Cluster
    from ari_ha.cli.view import View

FEATURE = "drain"
"""Announced by edges and node apps that know the key; before all do, it is not written."""
RATE_PER_S = 20.0
COLUMNS = ("call", "stage", "agent", "queue", "caller", "media")
"""Of each call that would be touched; ``agent``: everybody but the caller."""
LIMIT_S = 60.0
LOOK_EVERY_S = 0.1
NodeName = Annotated[str, typer.Argument(help="Name of the node.")]


def register(app: typer.Typer) -> None:
    """Adds the verbs to the command line."""
    app.command("drain")(drain)
    app.command("undrain")(undrain)
    app.command("takeover")(takeover)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a drain would do."""

    node: str
    calls: list[dict[str, Any]]
    """One flat line per call on the node."""
    others: list[str]
    """Nodes that can take them."""
    against: list[str]
    """Why it should not be done; empty: nothing is against it."""

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON."""
        rows = [{name: row[name] for name in COLUMNS} for row in self.calls]
        return {"node": self.node, "to": self.others, "calls": rows, "against": self.against}


def plan_of(view: View, node: str, capacity: int | None = None) -> Plan:
    """What draining ``node`` would touch, and what is against it. ``capacity``: calls each of the others may
    have, instead of what they announce."""
    rows = view.call_rows()
    others = [name for name in sorted(view.nodes) if name != node and view.node_state(name) == "ready"]
    against = []
    if not others:
        against.append("no other node takes calls: this is the last ready one")
    else:
        against += _too_many(len(rows), {name: view.nodes[name] for name in others}, capacity)
    against += [
        f"{name} does not know drains yet (version {value.get('version', '')})"
        for name, value in sorted({**view.edges, node: view.nodes.get(node, {})}.items())
        if FEATURE not in value.get("features", [])
    ]
    return Plan(node, [row for row in rows if row["node"] == node], others, against)


def _too_many(calls: int, others: Mapping[str, Mapping[str, Any]], capacity: int | None) -> list[str]:
    """Nodes that would have more calls than they may. An edge gives each the same number."""
    from ari_ha.wire.keyspace import NodeValue

    usual = NodeValue(node="", incarnation="", sip="", link="").capacity_calls
    share = -(-calls // len(others))
    limits = {name: capacity or int(value.get("capacity_calls", usual)) for name, value in others.items()}
    return [
        f"{name} would have {share} calls: more than its {limit} (`capacity_calls`)"
        for name, limit in limits.items()
        if share > limit
    ]


def drain(
    node: NodeName,
    when: Annotated[
        str, typer.Option("--when", help="now: move its calls; idle: wait until they have ended.")
    ] = "now",
    after_s: Annotated[
        float,
        typer.Option("--after", min=0, help="Let calls end by themselves for so many seconds, then move."),
    ] = 0.0,
    rate: Annotated[
        float, typer.Option("--rate", min=0.1, max=100, help="Calls moved per second.")
    ] = RATE_PER_S,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be touched.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Although something is against it.")] = False,
    capacity: Annotated[
        int | None,
        typer.Option("--capacity", min=1, help="Calls each other node may have, instead of its settings'."),
    ] = None,
    wait_s: Annotated[
        float, typer.Option("--wait", min=0, help="Watch it for so long; 0: do not wait.")
    ] = LIMIT_S,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    settings: SettingsFile = DEFAULT_SETTINGS,
    as_json: JsonFlag = False,
) -> None:
    """Empty a node: it gets no new calls, and its calls go on at other nodes. Nobody on the phone notices.
    Exit status 1: refused, or calls were left at the end of the wait; the drain goes on until `undrain`."""
    from ari_ha.cli import view as views
    from ari_ha.cli.cluster import Cluster, ClusterError

    if when not in ("now", "idle"):
        fail(f"--when {when!r} is not one of now, idle", as_json, 2)
    if when == "idle" and after_s:
        fail("--when idle moves no calls, --after says when they are moved: choose one", as_json, 2)
    try:
        cluster = Cluster.open(settings)
        view = views.read(cluster)
        if node not in view.nodes:
            fail(f"no node {node}; there are: {', '.join(sorted(view.nodes)) or 'none'}", as_json, 2)
        plan = plan_of(view, node, capacity)
        if dry_run:
            _show(plan, as_json)
            raise typer.Exit(1 if plan.against else 0)
        if plan.against and not force:
            fail(f"refused (--force overrides): {'; '.join(plan.against)}", as_json)
        if not yes and not as_json:
            _show(plan, as_json)
            typer.confirm(f"empty {node}?", abort=True)
        began = time.monotonic()
        move_at = time.time() + after_s if after_s else 0.0
        counted_on = () if force else plan.others
        write(cluster, node, counted_on, when=when, move_at=move_at, rate_per_s=rate)
        left = len(plan.calls)
        for left in _progress(cluster, node, began + wait_s):
            if not as_json:
                say(f"{node}: {left} calls left")
    except ClusterError as error:
        fail(str(error), as_json)
    took_ms = round((time.monotonic() - began) * 1000)
    if as_json:
        print_json({**plan.to_dict(), "left": left, "took_ms": took_ms})
    elif not left:
        say(f"{node} is empty after {took_ms} ms; `ari-ha undrain {node}` gives it calls again", "ok")
    raise typer.Exit(1 if left and wait_s else 0)


def _show(plan: Plan, as_json: bool) -> None:
    if as_json:
        print_json(plan.to_dict())
        return
    rows = [tuple(row[name] for name in COLUMNS) for row in plan.calls]
    table(f"calls on {plan.node}", COLUMNS, rows)
    say(f"{len(rows)} calls would go to {', '.join(plan.others) or 'nobody'}")
    for reason in plan.against:
        say(f"against it: {reason}", "bad")


def write(cluster: Cluster, node: str, counted_on: Iterable[str] = (), **how: Any) -> None:
    """Writes the node's drain; what is there is replaced. Nodes that were ``counted_on`` to take its calls
    must still not be drained: of two operators who empty two nodes in the same moment the second is
    refused. Raises ClusterError."""
    from ari_ha.cli.cluster import ClusterError
    from ari_ha.core.ports.store import Compare, Put
    from ari_ha.wire.keyspace import DrainValue, encode
    from ari_ha.wire.unknown_fields import merge_unknown

    key = cluster.keys.drain(node)
    found = cluster.get(key)
    value = encode(DrainValue(node=node, by="operator", since=time.time(), **how))
    value = merge_unknown(found.value, value, DrainValue) if found else value
    compares = [Compare(key, found.mod_revision if found else 0)]
    compares += [Compare(cluster.keys.drain(other), 0) for other in counted_on]
    result = cluster.txn(compares, [Put(key, value)])
    if not result.succeeded:
        changed = {item.key for item in result.current} - {key}
        others = ", ".join(cluster.keys.split(name)[1] for name in sorted(changed))
        raise ClusterError(f"somebody else has just changed the drain of {others or node}: look again")


def remove(cluster: Cluster, node: str) -> bool:
    """Calls the node's drain off; whether there was one. Raises ClusterError."""
    from ari_ha.cli.cluster import ClusterError
    from ari_ha.core.ports.store import Compare

    key = cluster.keys.drain(node)
    found = cluster.get(key)
    if found is None:
        return False
    if not cluster.txn([Compare(key, found.mod_revision)], [], deletes=[key]).succeeded:
        raise ClusterError(f"somebody else has just changed the drain of {node}: look again")
    return True


def _progress(cluster: Cluster, node: str, until: float) -> Iterator[int]:
    """How many calls the node still owns, whenever that changes, until none or the limit."""
    from ari_ha.cli.view import node_of, read

    last = -1
    while True:
        left = sum(node_of(parts) == node for parts in read(cluster).calls.values())
        if left != last:
            yield left
        last = left
        if not left or time.monotonic() >= until:
            return
        time.sleep(LOOK_EVERY_S)


def undrain(node: NodeName, settings: SettingsFile = DEFAULT_SETTINGS, as_json: JsonFlag = False) -> None:
    """Call a drain off: the node takes calls again. Calls on their way finish moving; the others stay."""
    from ari_ha.cli.cluster import Cluster, ClusterError

    try:
        was = remove(Cluster.open(settings), node)
    except ClusterError as error:
        fail(str(error), as_json)
    if as_json:
        print_json({"node": node, "was_draining": was})
    else:
        say(f"{node} takes calls again" if was else f"{node} was not being drained", "ok")


def takeover(
    call: Annotated[str, typer.Argument(help="The call.")],
    to: Annotated[str, typer.Option("--to", help="Node; the least loaded one when left out.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    settings: SettingsFile = DEFAULT_SETTINGS,
    as_json: JsonFlag = False,
) -> None:
    """Move one living call to another node, make before break."""
    from ari_ha.cli import view as views
    from ari_ha.cli.cluster import Cluster, ClusterError, quote

    try:
        cluster = Cluster.open(settings)
        view = views.read(cluster)
        parts = view.calls.get(call, {})
        if "owner" not in parts:
            fail(f"no call {call} has an owner", as_json, 2)
        own = views.node_of(parts)
        if not yes and not as_json:
            typer.confirm(f"{call} leaves {own} for {to or 'another node'}?", abort=True)
        base = view.edges.get(view.edge_of(call), {}).get("http", "")
        cluster.http(base, f"/v1/calls/{quote(call)}/takeover", "POST", {"to": to})
        moved = _moved(cluster, call, own)
    except ClusterError as error:
        fail(str(error), as_json)
    if not moved:
        fail(f"{call} is still at {own}: see `ari-ha explain {call}`", as_json)
    if as_json:
        print_json({"call": call, "from": own, "to": moved})
    else:
        say(f"{call}: {own} -> {moved}", "ok")


def _moved(cluster: Cluster, call: str, own: str) -> str:
    """The node that serves the call now; empty when it has not moved within the limit."""
    from ari_ha.cli.cluster import decode_json

    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        found = cluster.get(cluster.keys.owner(call))
        owner: Mapping[str, Any] = decode_json(found) if found else {}
        now = str(owner.get("node", "")).partition("#")[0]
        if now and now != own and not owner.get("moving"):
            return now
        if not owner:
            return ""
        time.sleep(LOOK_EVERY_S)
    return ""
