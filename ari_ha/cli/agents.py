"""``ari-ha agents`` and ``ari-ha agent``: who is there, and changing what they do.

Reading comes from etcd. Changing goes through a node app, whose ACD owns the rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ari_ha.cli.output import (
    DEFAULT_SETTINGS,
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

_agent = typer.Typer(no_args_is_help=True, help="One agent: show, login, logout, available, not-ready.")

AgentName = Annotated[str, typer.Argument(help="Name of the agent.")]


def register(app: typer.Typer) -> None:
    """Adds ``agents`` and ``agent`` to the command line."""
    app.command("agents")(agents)
    app.add_typer(_agent, name="agent")


def agents(settings: SettingsFile = DEFAULT_SETTINGS, as_json: JsonFlag = False) -> None:
    """All agents and what they are doing."""
    _, view = _open(settings, as_json)
    rows = view.agent_rows()
    if as_json:
        print_json({"agents": rows})
        return
    table(
        f"{len(rows)} agents",
        ("agent", "name", "state", "for", "reason", "device", "reach", "queues", "call", "handled", "missed"),
        [
            (
                row["agent"],
                row["name"],
                row["state"] + (" (recovering)" if row["recovering"] else ""),
                ago(row["since"]),
                row["reason"],
                row["device"],
                row["reach"],
                ", ".join(row["queues"]),
                row["call"],
                row["handled"],
                row["missed"],
            )
            for row in rows
        ],
    )


@_agent.command("show")
def show(agent: AgentName, settings: SettingsFile = DEFAULT_SETTINGS, as_json: JsonFlag = False) -> None:
    """Everything etcd holds about one agent."""
    _, view = _open(settings, as_json)
    value = view.agents.get(agent)
    if value is None:
        fail(f"no agent {agent}", as_json, 2)
    value = {k: v for k, v in value.items() if k != "pin_hash"}
    if as_json:
        print_json({**value, "reach": view.reach.get(agent, {})})
        return
    for name, content in {**value, "reach": view.reach.get(agent, {})}.items():
        say(f"{name:14}{content}")


@_agent.command("login")
def login(
    agent: AgentName,
    device: Annotated[str, typer.Option("--device", help="Address of record of the phone.")],
    settings: SettingsFile = DEFAULT_SETTINGS,
    as_json: JsonFlag = False,
) -> None:
    """Log an agent in on a phone; the agent becomes available."""
    _change(agent, "login", {"device": device}, settings, as_json)


@_agent.command("logout")
def logout(agent: AgentName, settings: SettingsFile = DEFAULT_SETTINGS, as_json: JsonFlag = False) -> None:
    """Log an agent out; after the call when there is one."""
    _change(agent, "logout", {}, settings, as_json)


@_agent.command("available")
def available(agent: AgentName, settings: SettingsFile = DEFAULT_SETTINGS, as_json: JsonFlag = False) -> None:
    """Let an agent take calls."""
    _change(agent, "available", {}, settings, as_json)


@_agent.command("not-ready")
def not_ready(
    agent: AgentName,
    reason: Annotated[str, typer.Argument(help="Why: lunch, meeting, ...")] = "",
    settings: SettingsFile = DEFAULT_SETTINGS,
    as_json: JsonFlag = False,
) -> None:
    """Take an agent out of the queues; after the call when there is one."""
    _change(agent, "not-ready", {"reason": reason}, settings, as_json)


@_agent.command("supervise")
def supervise(
    agent: AgentName,
    mode: Annotated[str, typer.Argument(help="listen, whisper, barge; stop.")] = "listen",
    device: Annotated[str, typer.Option("--device", help="The supervisor's phone.")] = "",
    settings: SettingsFile = DEFAULT_SETTINGS,
    as_json: JsonFlag = False,
) -> None:
    """Ring a supervisor's phone and let it hear the call an agent is in, whisper, or speak to both."""
    _change(agent, "supervise", {"mode": mode, "device": device}, settings, as_json)


def _open(settings: str, as_json: bool) -> tuple[Cluster, View]:
    from ari_ha.cli import view as views
    from ari_ha.cli.cluster import Cluster, ClusterError

    try:
        cluster = Cluster.open(settings)
        return cluster, views.read(cluster)
    except ClusterError as error:
        fail(str(error), as_json)


def _change(agent: str, verb: str, args: dict[str, Any], settings: str, as_json: bool) -> None:
    from ari_ha.cli.cluster import ClusterError, HttpRefused

    cluster, view = _open(settings, as_json)
    try:
        node, answer = ask_a_node(cluster, view, agent, verb, args)
    except HttpRefused as error:
        fail(str(error), as_json, 2)
    except ClusterError as error:
        fail(str(error), as_json)
    if as_json:
        print_json({"agent": agent, "verb": verb, "node": node, "answer": answer})
        return
    say(f"{agent}: {verb} ({node}: {answer})", "ok")


def ask_a_node(cluster: Cluster, view: View, agent: str, verb: str, args: dict[str, Any]) -> tuple[str, Any]:
    """The first node that carries the verb out: the node of the agent's call, then
    ready ones, then any. A refusal is final. Raises ClusterError when none answers."""
    from ari_ha.cli.cluster import ClusterError, HttpRefused, quote

    busy_at = str(((view.agents.get(agent) or {}).get("attempt") or {}).get("node", "")).partition("#")[0]
    order = sorted(view.nodes, key=lambda n: (n != busy_at, not view.nodes[n].get("ready"), n))
    errors = []
    for node in order:
        base = view.nodes[node].get("http", "")
        try:
            return node, cluster.http(base, f"/v1/agents/{quote(agent)}/{verb}", "POST", args)
        except HttpRefused as error:
            if error.status < 500:
                raise
            errors.append(f"{node}: {error}")
        except ClusterError as error:
            errors.append(f"{node}: {error}")
    raise ClusterError("no node app carried it out: " + ("; ".join(errors) or "none is registered"))
