"""``ari-ha topology``: who stands where, and who serves how much, as one picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from ari_ha.cli.output import DEFAULT_SETTINGS, JsonFlag, SettingsFile, fail, print_json, say

if TYPE_CHECKING:
    from ari_ha.cli.view import View


def register(app: typer.Typer) -> None:
    """Adds ``topology`` to the command line."""
    app.command("topology")(topology)


def topology(settings: SettingsFile = DEFAULT_SETTINGS, as_json: JsonFlag = False) -> None:
    """Edge pairs with their edges, nodes, and the calls between them."""
    from ari_ha.cli import view as views
    from ari_ha.cli.cluster import Cluster, ClusterError

    try:
        view = views.read(Cluster.open(settings))
    except ClusterError as error:
        fail(str(error), as_json)
    found = document(view)
    if as_json:
        print_json(found)
        return
    for name, pair in found["pairs"].items():
        say(f"{name}: {pair['calls']} calls", "ok" if pair["active"] else "bad")
        for edge, value in pair["edges"].items():
            say(f"  {edge} ({value['role']}, {value['public']})")
        for node, calls in sorted(pair["calls_by_node"].items()):
            say(f"    -> {node or 'no node'}: {calls} calls")
    for node, value in found["nodes"].items():
        say(f"{node}: {value['state']}, {value['sip']}, {value['calls']} calls")


def document(view: View) -> dict[str, Any]:
    """The picture as JSON."""
    from ari_ha.cli.view import node_of

    pairs: dict[str, dict[str, Any]] = {
        vip: {"active": view.active_edge(vip), "calls": 0, "calls_by_node": {}, "edges": {}}
        for vip in sorted({*view.vips, *(str(e.get("vip", "")) for e in view.edges.values())})
    }
    for edge, value in sorted(view.edges.items()):
        pair = pairs[str(value.get("vip", ""))]
        role = "active" if pair["active"] == edge else "standby"
        pair["edges"][edge] = {"role": role, "public": value.get("public", ""), "core": value.get("sip", "")}
    for parts in view.calls.values():
        owner = parts.get("owner")
        if owner and (pair := pairs.get(str(owner.get("vip", "")))):
            node = node_of(parts)
            pair["calls"] += 1
            pair["calls_by_node"][node] = pair["calls_by_node"].get(node, 0) + 1
    counts = view.calls_of()
    nodes = {
        name: {"state": view.node_state(name), "sip": value.get("sip", ""), "calls": counts[name]}
        for name, value in sorted(view.nodes.items())
    }
    return {"pairs": pairs, "nodes": nodes}
