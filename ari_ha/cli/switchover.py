"""``ari-ha switchover``: hand an edge pair's addresses over, on purpose."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from ari_ha.cli.output import DEFAULT_SETTINGS, JsonFlag, SettingsFile, fail, print_json, say

LIMIT_S = 5.0
LOOK_EVERY_S = 0.02

_app = typer.Typer(no_args_is_help=True, help="Hand a role over on purpose; calls go on.")


def register(app: typer.Typer) -> None:
    """Adds ``switchover`` to the command line."""
    app.add_typer(_app, name="switchover")


@_app.callback()
def _verbs() -> None:
    """Hand a role over on purpose; calls go on."""


@_app.command("edge")
def edge(
    pair: Annotated[str, typer.Argument(help="The pair's name (vip); not needed when there is one.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    settings: SettingsFile = DEFAULT_SETTINGS,
    as_json: JsonFlag = False,
) -> None:
    """Moves a pair's addresses and its calls to the other edge. Nobody on the phone notices."""
    from ari_ha.cli.cluster import Cluster, ClusterError

    try:
        cluster = Cluster.open(settings)
        name, active, guard = _active(cluster, pair)
        if not yes and not as_json:
            calls = len(cluster.under(f"{cluster.keys.prefix('dialogs')}{name}/"))
            typer.confirm(f"{name}: {active} is active with {calls} calls; hand over?", abort=True)
        began = time.monotonic()
        cluster.http(guard, "/v1/switchover", "POST", {})
        while time.monotonic() < began + LIMIT_S:
            _, now_active, _ = _active(cluster, name)
            if now_active != active:
                break
            time.sleep(LOOK_EVERY_S)
        else:
            fail(f"{name}: still {active} after {LIMIT_S:.0f} s; its guard has called it off", as_json)
    except ClusterError as error:
        fail(str(error), as_json)
    took_ms = round((time.monotonic() - began) * 1000)
    if as_json:
        print_json({"vip": name, "from": active, "to": now_active, "took_ms": took_ms})
    else:
        say(f"{name}: {now_active} is active, after {took_ms} ms", "ok")


def _active(cluster: Any, pair: str) -> tuple[str, str, str]:
    """The pair's name, its active edge, and the HTTP address of that edge's guard."""
    from ari_ha.cli.cluster import ClusterError, decode_json

    vips = {item.key.rpartition("/")[2]: decode_json(item) for item in cluster.family("vips")}
    if pair and pair not in vips:
        raise ClusterError(f"no pair {pair}; there are: {', '.join(sorted(vips)) or 'none'}")
    if not pair and len(vips) != 1:
        raise ClusterError(f"name the pair: {', '.join(sorted(vips)) or 'there is none'}")
    name = pair or next(iter(vips))
    active = str(vips[name]["edge"])
    found = cluster.get(cluster.keys.guard(active))
    if found is None:
        raise ClusterError(f"{active} has no guard: a single edge cannot hand over")
    return name, active, str(decode_json(found)["http"])
