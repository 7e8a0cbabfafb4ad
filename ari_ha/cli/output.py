"""What verbs share: options, and printing for people or for programs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, NoReturn

import typer

DEFAULT_SETTINGS = "/etc/ari-ha/settings.json"
SETTINGS_VARIABLE = "ARI_HA_SETTINGS"

SettingsFile = Annotated[
    str,
    typer.Option("--settings", envvar=SETTINGS_VARIABLE, help="Settings file of this process or command."),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]

GOOD, WARN, BAD = "ok", "warn", "bad"
_STYLES = {GOOD: "green", WARN: "yellow", BAD: "bold red"}


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    typer.echo(json.dumps(document, indent=2, sort_keys=False, default=str))


def fail(message: str, as_json: bool = False, status: int = 1) -> NoReturn:
    """Ends the command: the message goes to standard error, as JSON when asked."""
    typer.echo(json.dumps({"error": message}) if as_json else f"ari-ha: {message}", err=True)
    raise typer.Exit(status)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table for people; ``rows`` hold anything that has a text."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    view = Table(header_style="bold", box=None, pad_edge=False)
    for column in columns:
        view.add_column(column, overflow="fold")
    for row in rows:
        view.add_row(*(escape(str(cell)) for cell in row))
    console = Console()
    console.print(Text(title, style="bold cyan"))
    console.print(view)


def say(text: str, level: str = "") -> None:
    """One line for people; ``level`` (ok, warn, bad) colours it."""
    from rich.console import Console
    from rich.text import Text

    Console().print(Text(text, style=_STYLES.get(level, "")), soft_wrap=True)


def ago(since_utc_s: float, now_utc_s: float | None = None) -> str:
    """How long ago, short: ``42s``, ``3m10s``, ``2h05m``; empty for a time never set."""
    if not since_utc_s:
        return ""
    now = time.time() if now_utc_s is None else now_utc_s
    seconds = max(0, int(now - since_utc_s))
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


def clock(at_utc_s: float) -> str:
    """A time of day with milliseconds, UTC."""
    whole = int(at_utc_s)
    return time.strftime("%H:%M:%S", time.gmtime(whole)) + f".{int((at_utc_s - whole) * 1000):03d}"
