"""``ari-ha run``: the long-running processes, one per word."""

from __future__ import annotations

import typer

from ari_ha.cli.output import DEFAULT_SETTINGS, SettingsFile

_app = typer.Typer(no_args_is_help=True, help="Run one of the processes in the foreground.")


def register(app: typer.Typer) -> None:
    """Adds ``run`` to the command line."""
    app.add_typer(_app, name="run")


@_app.command("node")
def node(settings: SettingsFile = DEFAULT_SETTINGS) -> None:
    """The node app: runs beside one Asterisk and serves its calls."""
    from ari_ha.node.main import main

    main(settings)


@_app.command("edge")
def edge(settings: SettingsFile = DEFAULT_SETTINGS) -> None:
    """The edge: SIP towards carriers, phones and nodes, and the media between them."""
    from sidecars.edge.__main__ import main

    main(settings)


@_app.command("guard")
def guard(settings: SettingsFile = "/etc/ari-ha/guard.json") -> None:
    """The edge guard: holds the pair's addresses on this host, or leaves them to the peer."""
    from sidecars.guard.__main__ import main

    main(settings)


@_app.command("clerk")
def clerk(settings: SettingsFile = "/etc/ari-ha/clerk.json") -> None:
    """The clerk: writes ended calls from etcd into the database, each once."""
    from sidecars.clerk.__main__ import main

    main(settings)


@_app.command("watcher")
def watcher(settings: SettingsFile = "/etc/ari-ha/watcher.json") -> None:
    """The database watcher: beside one MySQL or MariaDB server of a pair."""
    from sidecars.watcher.__main__ import main

    main(settings)


@_app.command("farend")
def farend(settings: SettingsFile = DEFAULT_SETTINGS) -> None:
    """The lab's far ends: carriers and agents' phones that measure what people hear."""
    from ari_ha.farend.main import main

    main(settings)
