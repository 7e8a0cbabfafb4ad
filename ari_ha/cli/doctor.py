"""To be filled."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Adds this module's verbs to the command line."""
