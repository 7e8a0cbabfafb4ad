"""``ari-ha explain``: why did this happen. Asks every process for its story of a
subject and lays them side by side in time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ari_ha.cli.output import DEFAULT_SETTINGS, JsonFlag, SettingsFile, clock, fail, print_json, say

if TYPE_CHECKING:
    from ari_ha.cli.cluster import Cluster
    from ari_ha.cli.view import View

NOT_FACTS = ("at", "subject", "text", "cause", "by")


def register(app: typer.Typer) -> None:
    """Adds ``explain`` to the command line."""
    app.command("explain")(explain)


def explain(
    subject: Annotated[str, typer.Argument(help="A call, an agent, a node, an edge.")],
    settings: SettingsFile = DEFAULT_SETTINGS,
    as_json: JsonFlag = False,
) -> None:
    """The story of a call, an agent, a node or an edge, from everybody who was there."""
    from ari_ha.cli import view as views
    from ari_ha.cli.cluster import Cluster, ClusterError

    try:
        cluster = Cluster.open(settings)
        lines, silent = gather(cluster, views.read(cluster), subject)
        lines = merge([*lines, *_history(cluster, subject)])
    except ClusterError as error:
        fail(str(error), as_json)
    if as_json:
        print_json({"subject": subject, "lines": lines, "silent": silent})
        return
    for line in lines:
        facts = " ".join(f"{k}={v}" for k, v in line.items() if k not in NOT_FACTS)
        say(f"{clock(line['at'])}  {line['by']:<12} {line['text']}  {facts}".rstrip())
    for process, why in silent.items():
        say(f"not heard: {process}: {why}", "warn")
    if not lines:
        say(f"nobody remembers {subject}", "warn")


def gather(cluster: Cluster, view: View, subject: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The lines of every process that answers, and why the others did not."""
    from ari_ha.cli.cluster import ClusterError, HttpRefused, quote

    lines: list[dict[str, Any]] = []
    silent: dict[str, str] = {}
    for process, value in [*sorted(view.nodes.items()), *sorted(view.edges.items())]:
        try:
            answer = cluster.http(value.get("http", ""), f"/v1/explain/{quote(subject)}")
        except HttpRefused as error:
            if error.status != 404:
                silent[process] = str(error)
            continue
        except ClusterError as error:
            silent[process] = str(error)
            continue
        found = answer.get("lines", []) if isinstance(answer, dict) else answer
        lines += [{**line, "by": process} for line in found if isinstance(line, dict)]
    return lines, silent


def merge(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """In order of time; a line without a time goes first."""
    return sorted(
        ({"at": 0.0, "by": "", "text": "", **line} for line in lines), key=lambda line: float(line["at"])
    )


def _history(cluster: Cluster, subject: str) -> list[dict[str, Any]]:
    """Claims and takeovers that etcd remembers about the subject."""
    from ari_ha.cli.cluster import decode_json

    lines = []
    for item in cluster.family("history"):
        if subject in cluster.keys.split(item.key)[1:]:
            value = decode_json(item)
            lines.append({**value, "by": "history", "at": value.get("at", value.get("since", 0.0))})
    return lines
