"""``ari-ha db``: database pairs. What is shown comes from etcd; what is asked for goes to
the watchers, which refuse what is not safe and say why."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ari_ha.cli import records
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

_app = typer.Typer(no_args_is_help=True, help="Database pairs, and the call records in them.")

Database = Annotated[str, typer.Option("--database", help="Which pair, where there are several.")]
WAIT_S = 30.0
FINE = ("primary and certified standby", "two writers that follow each other")
LOOK_EVERY_S = 0.2


def register(app: typer.Typer) -> None:
    """Adds ``db`` to the command line."""
    records.register(_app)
    app.add_typer(_app, name="db")


# --- looking ------------------------------------------------------------------------------


def read_pairs(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """Every pair's keys as JSON: database -> path below it -> value."""
    from ari_ha.cli import view

    return view.build((cluster.keys.split(item.key), item) for item in cluster.family("databases")).databases


def document(pairs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What ``db status --json`` prints."""
    return {"clusters": [pair_document(name, keys) for name, keys in sorted(pairs.items())]}


def pair_document(name: str, keys: dict[str, Any]) -> dict[str, Any]:
    """One pair."""
    sync, leader = keys.get("sync", {}), keys.get("leader", {})
    members = {
        path.removeprefix("members/"): value for path, value in keys.items() if path.startswith("members/")
    }
    known = sorted({*members, *filter(None, (sync.get("primary"), sync.get("standby")))})
    return {
        "name": name,
        "mode": sync.get("mode", "sync") if sync else "unknown",
        "shape": next((str(value["shape"]) for value in members.values() if "shape" in value), "replica"),
        "leader": leader.get("server"),
        "primary": sync.get("primary"),
        "standby": sync.get("standby"),
        "term": sync.get("term", 0),
        "held": "hold" in keys,
        "order": keys.get("order", {}).get("kind"),
        "members": [member_document(server, members.get(server)) for server in known],
    }


def member_document(server: str, value: dict[str, Any] | None) -> dict[str, Any]:
    """One server; one whose watcher is not registered is ``lost``."""
    value = {"role": "lost"} if value is None else value
    return {
        "name": server,
        "role": value.get("role", "unknown"),
        "running": bool(value.get("running", False)),
        "writable": bool(value.get("writable", False)),
        "follows": value.get("source"),
        "io": value.get("io", "no"),
        "applying": bool(value.get("applying", False)),
        "lag_ms": value.get("lag_ms"),
        "errant": value.get("errant"),
        "error": value.get("error"),
        "problems": value.get("problems", []),
        "diverged": value.get("diverged", []),
        "waiting": value.get("semi_waiting", 0),
        "confirming": value.get("confirming"),
        "position": value.get("position", ""),
        "version": value.get("version", ""),
        "disk_free_share": value.get("disk_free_share", 1.0),
        "http": value.get("http", ""),
    }


def judge(pair: dict[str, Any]) -> tuple[str, list[str]]:
    """How a pair is: bad when nobody can write, warn when the next fault would be felt."""
    writable = [member["name"] for member in pair["members"] if member["writable"]]
    bad, warn = [], []
    if not writable:
        bad.append("no server is writable")
    elif len(writable) > 1 and pair["shape"] != "two-writers":
        bad.append(f"more than one is writable: {', '.join(writable)}")
    if pair["mode"] == "sync" and not pair["standby"]:
        warn.append("no standby is certified: the next fault is not survived")
    if pair["held"]:
        warn.append("automation is held")
    for member in pair["members"]:
        if not member["running"]:
            warn.append(f"{member['name']} is {member['role']}")
        for what in ("errant", "error"):
            if member[what]:
                warn.append(f"{member['name']}: {what} {member[what]}")
        warn += [f"{member['name']}: {problem}" for problem in member["problems"]]
        if member["diverged"]:
            warn.append(f"{member['name']}: tables differ: {', '.join(member['diverged'])}")
    return (BAD if bad else WARN if warn else GOOD), [*bad, *warn]


@_app.command("status")
def status(
    settings: SettingsFile = DEFAULT_SETTINGS, database: Database = "", as_json: JsonFlag = False
) -> None:
    """Who is primary, who follows, how far behind. Exit status 1 when nobody can write."""
    found = _asked(lambda cluster: document(read_pairs(cluster)), settings, as_json)
    if database:
        found["clusters"] = [pair for pair in found["clusters"] if pair["name"] == database]
    levels = [judge(pair) for pair in found["clusters"]]
    if as_json:
        print_json(found)
    for pair, (level, reasons) in zip(found["clusters"], levels, strict=True):
        if not as_json:
            _print(pair, level, reasons)
    if not levels:
        if not as_json:
            say("no database is registered", WARN)
        raise typer.Exit(1)
    raise typer.Exit(1 if any(level == BAD for level, _ in levels) else 0)


def _print(pair: dict[str, Any], level: str, reasons: list[str]) -> None:
    rows = [
        (
            member["name"],
            member["role"],
            "yes" if member["writable"] else "",
            member["follows"] or "",
            "" if member["lag_ms"] is None else f"{member['lag_ms']} ms",
            member["errant"] or "",
            member["version"],
        )
        for member in pair["members"]
    ]
    title = f"{pair['name']} ({pair['mode']}, term {pair['term']})"
    table(title, ("server", "role", "writable", "follows", "lag", "errant", "version"), rows)
    say(f"{level}: " + ("; ".join(reasons) or FINE[pair["shape"] == "two-writers"]), level)


@_app.command("history")
def history(
    settings: SettingsFile = DEFAULT_SETTINGS, database: Database = "", as_json: JsonFlag = False
) -> None:
    """Changes of primary, the newest last."""
    _list("history/", settings, database, as_json, ("term", "old", "new", "at", "took_ms", "why"))


@_app.command("errant")
def errant(
    settings: SettingsFile = DEFAULT_SETTINGS, database: Database = "", as_json: JsonFlag = False
) -> None:
    """Transactions that were taken out of a server before it was rebuilt, and the file
    on that server where they can be read as SQL."""
    _list("errant/", settings, database, as_json, ("server", "gtids", "file", "at"))


def _list(prefix: str, settings: str, database: str, as_json: bool, columns: tuple[str, ...]) -> None:
    pairs = _asked(read_pairs, settings, as_json)
    rows = [
        {"database": name, **value}
        for name, keys in sorted(pairs.items())
        if not database or name == database
        for path, value in sorted(keys.items())
        if path.startswith(prefix)
    ]
    if as_json:
        print_json(rows)
        return
    texts = [
        [row["database"], *(ago(row["at"]) if c == "at" and "at" in row else row.get(c, "") for c in columns)]
        for row in rows
    ]
    table(prefix.rstrip("/"), ("database", *columns), texts)


# --- asking -------------------------------------------------------------------------------


@_app.command("switchover")
def switchover(
    to: Annotated[
        str, typer.Argument(help="The server to become primary; the other one when left out.")
    ] = "",
    settings: SettingsFile = DEFAULT_SETTINGS,
    database: Database = "",
    as_json: JsonFlag = False,
) -> None:
    """Move the primary without losing a write: applications wait for about a second.
    Refused, with the reason, when it cannot be; the old primary opens again when it
    fails half-way."""

    def ask(cluster: Cluster) -> dict[str, Any]:
        pair = _pair(cluster, database)
        old = pair["primary"]
        leader = _member(pair, pair["leader"] or "")
        began = time.monotonic()
        cluster.http(leader["http"], "/v1/switchover", "POST", {"to": to} if to else {})
        while time.monotonic() < began + WAIT_S:
            time.sleep(LOOK_EVERY_S)
            now = _pair(cluster, pair["name"])
            primary = next((m for m in now["members"] if m["writable"]), None)
            if primary and not now["order"] and now["leader"] == primary["name"]:
                moved = primary["name"] != old
                took_ms = round((time.monotonic() - began) * 1000)
                return {"from": old, "primary": primary["name"], "moved": moved, "took_ms": took_ms}
        return {"from": old, "primary": None, "moved": False}

    found = _asked(ask, settings, as_json)
    if as_json:
        print_json(found)
    elif found["moved"]:
        say(f"{found['primary']} is primary, after {found['took_ms']} ms", GOOD)
    else:
        say(f"{found['primary'] or 'nobody'} is primary: the switchover did not happen", BAD)
    raise typer.Exit(0 if found["moved"] else 1)


@_app.command("hold")
def hold(
    reason: Annotated[str, typer.Option("--reason", help="Why; shown in status.")] = "",
    settings: SettingsFile = DEFAULT_SETTINGS,
    database: Database = "",
    as_json: JsonFlag = False,
) -> None:
    """No failover and no rebuild by itself until released. A primary without a lease is
    still closed."""
    _post("hold", {"reason": reason}, settings, database, as_json)


@_app.command("release")
def release(
    settings: SettingsFile = DEFAULT_SETTINGS, database: Database = "", as_json: JsonFlag = False
) -> None:
    """End a hold."""
    _post("release", {}, settings, database, as_json)


@_app.command("reinit")
def reinit(
    server: Annotated[str, typer.Argument(help="The server whose data is replaced by the primary's.")],
    settings: SettingsFile = DEFAULT_SETTINGS,
    database: Database = "",
    as_json: JsonFlag = False,
) -> None:
    """Replace a replica's data by a copy of the primary's. What it has alone is archived."""
    _post("reinit", {"server": server}, settings, database, as_json)


@_app.command("failover")
def failover(
    to: Annotated[str, typer.Argument(help="The server to become primary.")],
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Confirmed writes may be missing there.")
    ] = False,
    settings: SettingsFile = DEFAULT_SETTINGS,
    database: Database = "",
    as_json: JsonFlag = False,
) -> None:
    """Make a server primary that may lack confirmed writes; only where nobody leads."""
    _post("failover", {"to": to, "accept_loss": accept_loss}, settings, database, as_json)


@_app.command("checksum")
def checksum(
    settings: SettingsFile = DEFAULT_SETTINGS, database: Database = "", as_json: JsonFlag = False
) -> None:
    """Compare the tables of both servers. Run it when little is written: a table that
    changes meanwhile differs. Exit status 1 when one does."""

    def ask(cluster: Cluster) -> dict[str, Any]:
        pair = _pair(cluster, database)
        sums = {
            member["name"]: cluster.http(member["http"], "/v1/checksum", "POST", {})["tables"]
            for member in pair["members"]
            if member["running"]
        }
        tables = sorted({table for found in sums.values() for table in found})
        differ = [t for t in tables if len({json.dumps(found.get(t)) for found in sums.values()}) > 1]
        return {"servers": sorted(sums), "tables": len(tables), "differ": differ}

    found = _asked(ask, settings, as_json)
    if as_json:
        print_json(found)
    elif found["differ"]:
        say(f"{len(found['differ'])} of {found['tables']} tables differ: {', '.join(found['differ'])}", BAD)
    else:
        say(f"{found['tables']} tables are equal on {', '.join(found['servers'])}", GOOD)
    raise typer.Exit(1 if found["differ"] or len(found["servers"]) < 2 else 0)


# --- ways ---------------------------------------------------------------------------------


def _asked(ask: Callable[[Cluster], Any], settings: str, as_json: bool) -> Any:
    from ari_ha.cli.cluster import Cluster, ClusterError

    try:
        return ask(Cluster.open(settings))
    except ClusterError as error:
        fail(str(error), as_json)


def _pair(cluster: Cluster, database: str) -> dict[str, Any]:
    from ari_ha.cli.cluster import ClusterError

    pairs = document(read_pairs(cluster))["clusters"]
    found = [pair for pair in pairs if not database or pair["name"] == database]
    if len(found) != 1:
        names = ", ".join(pair["name"] for pair in pairs) or "none"
        raise ClusterError(f"which database? There are: {names}")
    return found[0]


def _member(pair: dict[str, Any], server: str) -> dict[str, Any]:
    from ari_ha.cli.cluster import ClusterError

    for member in pair["members"]:
        if member["name"] == server:
            return member
    raise ClusterError(f"nobody leads {pair['name']}")


def _post(verb: str, body: dict[str, Any], settings: str, database: str, as_json: bool) -> None:
    """Asks the first watcher that answers."""

    def ask(cluster: Cluster) -> Any:
        from ari_ha.cli.cluster import ClusterError, HttpRefused

        why = "no watcher is registered"
        for member in _pair(cluster, database)["members"]:
            try:
                return cluster.http(member["http"], f"/v1/{verb}", "POST", body)
            except HttpRefused:
                raise
            except ClusterError as error:
                why = str(error)
        raise ClusterError(why)

    answer = _asked(ask, settings, as_json)
    if as_json:
        print_json(answer)
    else:
        say(f"{verb}: " + ", ".join(f"{name} {value}" for name, value in answer.items()), GOOD)
