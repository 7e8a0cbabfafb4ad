"""``ari-ha db migrate`` and ``ari-ha db records``: the tables the clerk writes.

Asked of the servers themselves, with the access of the settings' section ``records``; a
clerk's own settings file has it as ``database``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ari_ha.cli.output import DEFAULT_SETTINGS, GOOD, JsonFlag, SettingsFile, fail, print_json, say, table

if TYPE_CHECKING:
    from ari_ha.adapters.call_records import CallRecords, RecordsAccess

READ_LIMIT_S = 5.0
LAST_MAX = 1000
SHOWN = ("ended", "call", "caller", "did", "queue", "agents", "disposition", "talk", "moves")
PIECES = ("node", "ha_leg", "epoch", "start", "answer", "end", "disposition")


def register(app: typer.Typer) -> None:
    """Adds the verbs to ``db``."""
    app.command("migrate")(migrate)
    app.command("records")(records)


def access_of(path: str) -> RecordsAccess:
    """How the records are reached. Raises ClusterError when the settings do not say it."""
    from ari_ha.adapters.call_records import RecordsAccess
    from ari_ha.adapters.database import read_secret
    from ari_ha.cli.cluster import ClusterError, load_settings
    from ari_ha.runtime.settings import SettingsError, host_port

    file = Path(load_settings(path).source)
    document = json.loads(file.read_text())
    section = document.get("records") or (document.get("database") if "clerk" in document else None)
    if not isinstance(section, dict):
        raise ClusterError(f'{file} has no section "records": servers, schema, user, password_file, ca')

    def beside(name: str) -> str:
        value = str(section.get(name) or section.get(f"{name}_file") or "")
        return str(file.parent / value) if value else ""

    try:
        return RecordsAccess(
            servers=tuple(host_port(server) for server in section["servers"]),
            schema=section.get("schema", "acd"),
            user=section.get("user", "ari_ha_clerk"),
            password=read_secret(beside("password_file")),
            ca_file=beside("ca"),
        )
    except (KeyError, OSError, SettingsError) as error:
        raise ClusterError(f'{file}, section "records": {error}') from error


def _with(path: str, as_json: bool, work: Any) -> Any:
    """What ``work`` has done with the records. Ends the command when it was not done."""
    from ari_ha.adapters.call_records import CallRecords
    from ari_ha.cli.cluster import ClusterError
    from ari_ha.core.machine import Done

    try:
        found = CallRecords(access_of(path))
    except ClusterError as error:
        fail(str(error), as_json)
    try:
        outcome = asyncio.run(work(found))
    finally:
        found.close()
    if not isinstance(outcome, Done):
        fail(f"{type(outcome).__name__.lower()}: {outcome.reason}", as_json)
    return outcome.value


def migrate(settings: SettingsFile = DEFAULT_SETTINGS, as_json: JsonFlag = False) -> None:
    """Bring the tables up to date on the server that is writable; never on a replica. The
    clerk does it by itself unless its settings say no."""

    async def work(found: CallRecords) -> Any:
        return await found.migrate()

    applied = _with(settings, as_json, work)
    if as_json:
        print_json({"applied": applied})
    else:
        say("applied: " + (", ".join(applied) or "nothing, the tables are up to date"), GOOD)


def records(
    last: Annotated[int, typer.Option("--last", min=1, max=LAST_MAX, help="How many, newest first.")] = 20,
    call: Annotated[str, typer.Option("--call", help="Only this call's.")] = "",
    cdr: Annotated[bool, typer.Option("--cdr", help="What each Asterisk wrote of that call.")] = False,
    settings: SettingsFile = DEFAULT_SETTINGS,
    as_json: JsonFlag = False,
) -> None:
    """Ended calls as the database has them, one row each. Times are UTC."""
    if cdr and not call:
        fail("--cdr wants the call: --call ID", as_json, status=2)

    async def work(found: CallRecords) -> Any:
        if cdr:
            return await found.pieces(call, limit_s=READ_LIMIT_S)
        return await found.ended(last, call=call, limit_s=READ_LIMIT_S)

    rows = _with(settings, as_json, work)
    if as_json:
        print_json(rows)
        return
    if cdr:
        table(f"CDR of {call}", PIECES, [[str(row[name] or "") for name in PIECES] for row in rows])
        return
    table("ended calls", SHOWN, [_texts(row) for row in rows])


def _texts(row: Mapping[str, Any]) -> list[str]:
    return [
        row["ended"][:19].replace("T", " "), row["ha_call_id"], row["caller"], row["did"], row["queue"],
        row["agents"], row["disposition"], f"{row['talk_ms'] / 1000:.1f} s", str(row["moves"]),
    ]  # fmt: skip
