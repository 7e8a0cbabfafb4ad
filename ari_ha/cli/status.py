"""``ari-ha status``: the cluster on one screen, and one line that says how it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from ari_ha.cli import db
from ari_ha.cli.output import (
    BAD,
    DEFAULT_SETTINGS,
    GOOD,
    WARN,
    JsonFlag,
    SettingsFile,
    ago,
    fail,
    print_json,
    say,
    table,
)

if TYPE_CHECKING:
    from ari_ha.cli.cluster import Cluster
    from ari_ha.cli.view import View

READY_NODES_WANTED = 2
ETCD_MEMBERS_WANTED = 3
DISK_FREE_MIN_SHARE, MEMORY_FREE_MIN_SHARE = 0.10, 0.05


def register(app: typer.Typer) -> None:
    """Adds ``status`` to the command line."""
    app.command("status")(status)


def status(settings: SettingsFile = DEFAULT_SETTINGS, as_json: JsonFlag = False) -> None:
    """Nodes, edges, etcd, calls and agents, and a verdict. Exit status 1 when it is bad."""
    from ari_ha.cli import view as views
    from ari_ha.cli.cluster import Cluster, ClusterError, EtcdAway

    try:
        cluster = Cluster.open(settings)
        members = etcd_members(cluster)
        view = views.read(cluster)
    except EtcdAway as error:
        _without_etcd(cluster, str(error), as_json)
    except ClusterError as error:
        fail(str(error), as_json)
    level, reasons = judge(view, members)
    if as_json:
        print_json(document(cluster.settings.cluster, view, members, level, reasons))
    else:
        _print(view, members)
        say(f"{level}: " + "; ".join(reasons), level)
    raise typer.Exit(1 if level == BAD else 0)


def _without_etcd(cluster: Cluster, why: str, as_json: bool) -> NoReturn:
    """What the processes themselves say while etcd is away: calls go on without it."""
    from ari_ha.cli.cluster import ClusterError

    said: dict[str, Any] = {}
    for process, base in sorted(cluster.settings.processes.items()):
        try:
            said[process] = cluster.http(base, "/v1/status")
        except ClusterError as error:
            said[process] = {"error": str(error)}
    if as_json:
        print_json({"verdict": BAD, "reasons": [why], "processes": said})
    else:
        for process, answer in said.items():
            say(f"{process:10}{answer}")
        say(f"{BAD}: {why}", BAD)
    raise typer.Exit(1)


def etcd_members(cluster: Cluster) -> list[dict[str, Any]]:
    """One line per configured etcd member: does it answer, does it lead, what does it say."""
    from ari_ha.cli.cluster import ClusterError

    members = []
    for endpoint in cluster.settings.endpoints:
        member: dict[str, Any] = {"endpoint": endpoint, "healthy": False, "leader": False, "why": ""}
        try:
            reply = cluster.ask("maintenance/status", {}, endpoint)
        except ClusterError as error:
            member["why"] = str(error).removeprefix(f"{endpoint}: ")
        else:
            leader = str(reply.get("leader", "0"))
            me = str(reply.get("header", {}).get("member_id", ""))
            errors = reply.get("errors") or []
            member |= {
                "healthy": leader != "0" and not errors,
                "leader": leader == me != "",
                "why": "; ".join(errors) or ("no leader" if leader == "0" else ""),
                "version": reply.get("version", ""),
                "db_bytes": int(reply.get("dbSize", 0)),
                "raft_term": int(reply.get("raftTerm", 0)),
            }
        members.append(member)
    return members


def judge(view: View, members: list[dict[str, Any]]) -> tuple[str, list[str]]:
    """The verdict and its reasons: bad when calls cannot be served or are about to be
    lost, warn when the next single fault would not be survived."""
    bad: list[str] = []
    warn: list[str] = []
    ready = [name for name in view.nodes if view.node_state(name) == "ready"]
    if not ready:
        bad.append("no node takes calls")
    elif len(ready) < READY_NODES_WANTED:
        warn.append(f"only {ready[0]} takes calls: nowhere to go when it dies")
    for name, value in sorted(view.nodes.items()):
        if not value.get("ready"):
            warn.append(f"{name} is not ready: {value.get('reason') or 'no reason given'}")
    if not view.vips:
        bad.append("no edge has ever been active")
    for vip, value in sorted(view.vips.items()):
        if not view.active_edge(vip):
            bad.append(f"{vip}: its active edge {value.get('edge', '')!r} is not registered")
        pair = [edge for edge, v in view.edges.items() if v.get("vip") == vip]
        if len(pair) == 1:
            warn.append(f"{vip}: {pair[0]} has no standby")
    lost = [call for call, node in _owners(view) if node not in view.nodes]
    if lost:
        bad.append(f"{len(lost)} calls belong to a node that is not registered")
    moving = sum(bool(parts.get("owner", {}).get("moving")) for parts in view.calls.values())
    if moving:
        warn.append(f"{moving} calls are being moved")
    sick = [member["endpoint"] for member in members if not member["healthy"]]
    if sick:
        warn.append("etcd members without health: " + ", ".join(sick))
    elif len(members) < ETCD_MEMBERS_WANTED:
        warn.append(f"etcd: {len(members)} of at least {ETCD_MEMBERS_WANTED} members configured here")
    warn += [f"database {pair['name']}: {reason}" for pair in pairs(view) for reason in db.judge(pair)[1]]
    for name, value in sorted(view.hosts.items()):
        full = [path for path, share in value.get("disks", {}).items() if share < DISK_FREE_MIN_SHARE]
        warn += [f"{name}: {path} has {value['disks'][path]:.0%} free" for path in full]
        if value.get("memory_free_share", 1.0) < MEMORY_FREE_MIN_SHARE:
            warn.append(f"{name}: {value['memory_free_share']:.0%} of its memory is free")
    level = BAD if bad else WARN if warn else GOOD
    return level, [*bad, *warn] or [f"{len(ready)} nodes ready, {len(view.calls)} calls"]


def pairs(view: View) -> list[dict[str, Any]]:
    """The database pairs, as ``db status`` shows them."""
    return list(db.document(view.databases)["clusters"])


def document(
    cluster: str, view: View, members: list[dict[str, Any]], level: str, reasons: list[str]
) -> dict[str, Any]:
    """What ``--json`` prints."""
    counts = view.calls_of()
    return {
        "cluster": cluster,
        "verdict": level,
        "reasons": reasons,
        "nodes": {name: {**value, "calls_owned": counts[name]} for name, value in view.nodes.items()},
        "edges": {
            name: {**value, "active": view.active_edge(value.get("vip", "")) == name}
            for name, value in view.edges.items()
        },
        "drains": view.drains,
        "vips": view.vips,
        "etcd": members,
        "databases": pairs(view),
        "hosts": view.hosts,
        "calls": {"total": len(view.calls), "by_node": dict(counts)},
        "waiting": {queue: len(entries) for queue, entries in view.waiting.items()},
        "agents": dict(view.agent_states()),
    }


def _owners(view: View) -> list[tuple[str, str]]:
    from ari_ha.cli.view import node_of

    return [(call, node_of(parts)) for call, parts in view.calls.items() if "owner" in parts]


def _print(view: View, members: list[dict[str, Any]]) -> None:
    counts = view.calls_of()
    table(
        "nodes",
        ("node", "state", "calls", "version", "why"),
        [
            (name, view.node_state(name), counts[name], value.get("version", ""), _why(value))
            for name, value in sorted(view.nodes.items())
        ],
    )
    table(
        "edges",
        ("edge", "vip", "role", "since", "calls"),
        [
            (
                name,
                value.get("vip", ""),
                "active" if view.active_edge(value.get("vip", "")) == name else "standby",
                ago(view.vips.get(value.get("vip", ""), {}).get("since", 0.0)),
                value.get("calls", 0),
            )
            for name, value in sorted(view.edges.items())
        ],
    )
    table(
        "etcd",
        ("member", "state", "version", "size"),
        [
            (
                member["endpoint"],
                ("leader" if member["leader"] else "ok") if member["healthy"] else member["why"],
                member.get("version", ""),
                f"{member.get('db_bytes', 0) / 1e6:.1f} MB",
            )
            for member in members
        ],
    )
    table(
        "databases",
        ("server", "pair", "role", "writable", "follows", "lag"),
        [
            (
                member["name"],
                pair["name"],
                member["role"],
                "yes" if member["writable"] else "",
                member["follows"] or "",
                "" if member["lag_ms"] is None else f"{member['lag_ms']} ms",
            )
            for pair in pairs(view)
            for member in pair["members"]
        ],
    )
    table("hosts", ("host", "load", "memory free", "disk free", "clock", "runs"), _host_rows(view))
    waiting = ", ".join(f"{queue}: {len(entries)}" for queue, entries in sorted(view.waiting.items()))
    agents = ", ".join(f"{count} {word}" for word, count in view.agent_states().most_common())
    say(f"calls    {len(view.calls)}")
    say(f"waiting  {waiting or 'nobody'}")
    say(f"agents   {agents or 'none'}")


def _why(node: Mapping[str, Any]) -> str:
    """Why it is not ready; of a cordoned node, what its Asterisk does about it."""
    maintenance = str(node.get("maintenance", ""))
    return str(node.get("reason", "")) or (f"endpoint maintenance: {maintenance}" if maintenance else "")


def _clock(host: Mapping[str, Any]) -> str:
    words = ["ok" if host.get("clock_synchronized") else "not kept by NTP"]
    apart = host.get("clocks_ahead_ms", {}).items()
    return "; ".join([*words, *(f"{peer} {ahead:+d} ms" for peer, ahead in sorted(apart))])


def _host_rows(view: View) -> list[tuple[str, ...]]:
    rows = []
    for name, value in sorted(view.hosts.items()):
        disks = value.get("disks", {})
        versions = value.get("versions", {})
        runs = [f"{what} {versions[what]}" for what in versions if what not in ("python", "kernel")]
        rows.append(
            (
                name,
                f"{value.get('load_1m', 0.0):.1f} of {value.get('cpus', 1)}",
                f"{value.get('memory_free_share', 1.0):.0%}",
                f"{min(disks.values()):.0%}" if disks else "",
                _clock(value),
                ", ".join(runs),
            )
        )
    return rows
