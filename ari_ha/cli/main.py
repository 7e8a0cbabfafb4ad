"""``ari-ha``: the command line. Verbs live in the modules beside this one and import
what they need when they are called, so that ``ari-ha --help`` answers at once and a
long-running process loads only its own code."""

from __future__ import annotations

import importlib
import importlib.util

import typer

from ari_ha.cli import (
    agents,
    calls,
    config,
    db,
    doctor,
    drain,
    explain,
    recording,
    run,
    simulate,
    status,
    switchover,
    topology,
)

app = typer.Typer(
    name="ari-ha",
    help="Call survival and high availability for Asterisk contact centers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for _module in (
    status, topology, calls, agents, explain, recording, doctor, config, db, run, simulate, drain, switchover,
):  # fmt: skip
    _module.register(app)

for _name in ("bench", "chaos", "database_chaos", "demo", "lab"):
    if importlib.util.find_spec(f"ari_ha.cli.{_name}") is not None:
        importlib.import_module(f"ari_ha.cli.{_name}").register(app)


def main() -> None:
    """Entry point of the ``ari-ha`` script."""
    app()


if __name__ == "__main__":
    main()
