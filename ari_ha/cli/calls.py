"""``ari-ha calls``, ``call`` and ``queues``: who is on the line, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ari_ha.cli.output import (
    DEFAULT_SETTINGS,
    JsonFlag,
    SettingsFile,
    ago,
    clock,
    fail,
    print_json,
    say,
    table,
)

if TYPE_CHECKING:
    from ari_ha.cli.cluster import Cluster
    from ari_ha.cli.view import View


def register(app: typer.Typer) -> None:
    """Adds ``calls``, ``call`` and ``queues`` to the command line."""
    app.command("calls")(calls)
    app.command("call")(call)
    app.command("mute")(mute)
    app.command("queues")(queues)


def _view(settings: str, as_json: bool) -> tuple[Cluster, View]:
    from ari_ha.cli import view as views
    from ari_ha.cli.cluster import Cluster, ClusterError

    try:
        cluster = Cluster.open(settings)
        return cluster, views.read(cluster)
    except ClusterError as error:
        fail(str(error), as_json)


def calls(settings: SettingsFile = DEFAULT_SETTINGS, as_json: JsonFlag = False) -> None:
    """All living calls."""
    _, view = _view(settings, as_json)
    rows = view.call_rows()
    if as_json:
        print_json({"calls": rows})
        return
    columns = ("call", "stage", "node", "epoch", "media", "queue", "agent", "caller")
    table(
        f"{len(rows)} calls",
        (*columns, "for"),
        [
            (*(f"{row[c]} (moving)" if c == "node" and row["moving"] else row[c] for c in columns),
             ago(row["started"]))
            for row in rows
        ],
    )  # fmt: skip


def call(
    call: Annotated[str, typer.Argument(help="Id of the call, as `ari-ha calls` prints it.")],
    settings: SettingsFile = DEFAULT_SETTINGS,
    as_json: JsonFlag = False,
) -> None:
    """Everything known about one call: etcd's keys and the edge's own facts."""
    from ari_ha.cli.cluster import ClusterError

    cluster, view = _view(settings, as_json)
    parts = view.calls.get(call)
    if parts is None:
        fail(f"no call {call}", as_json, 2)
    try:
        dialogs = _dialogs(cluster, view, call)
    except ClusterError as error:
        fail(str(error), as_json)
    facts = edge_facts(cluster, view, call)
    if as_json:
        print_json({"call": call, **parts, "dialogs": dialogs, "edge": facts})
        return
    from ari_ha.cli.view import call_row

    for name, value in call_row(call, parts, view.agents).items():
        say(f"{name:9}{clock(value) if name == 'started' else value}")
    table(
        "legs (the edge's word)" if "legs" in facts else f"legs (record; {facts.get('error', '')})",
        ("leg", "role", "state", "agent", "held"),
        [
            (leg, v.get("role", ""), v.get("state", ""), v.get("agent", ""), v.get("held", ""))
            for leg, v in (facts.get("legs") or parts.get("record", {}).get("legs", {})).items()
        ],
    )
    if facts.get("digits"):
        say(f"digits heard by the node: {facts['digits']}")
    for move in facts.get("moves", []):
        say(f"moved: {move}")


def mute(
    call: Annotated[str, typer.Argument(help="Id of the call, as `ari-ha calls` prints it.")],
    leg: Annotated[str, typer.Argument(help="The leg nobody is to hear: c, a1, ...")],
    off: Annotated[bool, typer.Option("--off", help="It is heard again.")] = False,
    settings: SettingsFile = DEFAULT_SETTINGS,
    as_json: JsonFlag = False,
) -> None:
    """Let nobody hear a leg of a call: neither the others on it nor Asterisk."""
    from ari_ha.cli.cluster import ClusterError, quote

    cluster, view = _view(settings, as_json)
    if call not in view.calls:
        fail(f"no call {call}", as_json, 2)
    edge = view.edge_of(call)
    base = view.edges.get(edge, {}).get("http", "")
    try:
        answer = cluster.http(base, f"/v1/calls/{quote(call)}/mute", "POST", {"leg": leg, "muted": not off})
    except ClusterError as error:
        fail(str(error), as_json)
    if as_json:
        print_json(answer)
        return
    say(f"{call}/{leg}: {'heard again' if off else 'muted'} ({edge})", "ok")


def _dialogs(cluster: Cluster, view: View, call: str) -> dict[str, Any]:
    """The dialogs of a call, whichever pair holds them."""
    from ari_ha.cli.cluster import decode_json

    vip = str(view.calls[call].get("owner", {}).get("vip", ""))
    for pair in [vip] if vip else sorted(view.vips):
        item = cluster.get(cluster.keys.dialogs(pair, call))
        if item is not None:
            return decode_json(item)
    return {}


def edge_facts(cluster: Cluster, view: View, call: str) -> dict[str, Any]:
    """What the call's edge says of it, or why it says nothing."""
    from ari_ha.cli.cluster import ClusterError, quote

    owner = view.edge_of(call)
    error = "no edge is registered"
    for edge in sorted(view.edges, key=lambda name: name != owner):
        try:
            answer = cluster.http(view.edges[edge].get("http", ""), f"/v1/calls/{quote(call)}")
        except ClusterError as found:
            error = f"{edge}: {found}"
            continue
        if isinstance(answer, dict):
            return answer
    return {"error": error}


def queues(settings: SettingsFile = DEFAULT_SETTINGS, as_json: JsonFlag = False) -> None:
    """All queues: callers who wait and agents who may take them."""
    _, view = _view(settings, as_json)
    rows = view.queue_rows()
    if as_json:
        print_json({"queues": [{**row, "entries": view.waiting.get(row["queue"], [])} for row in rows]})
        return
    table(
        f"{len(rows)} queues",
        ("queue", "strategy", "waiting", "longest", "free", "logged in", "members"),
        [
            (
                row["queue"],
                row["strategy"],
                row["waiting"],
                ago(row["oldest"]),
                row["free"],
                row["logged_in"],
                row["members"],
            )
            for row in rows
        ],
    )
