"""How every long-running process begins: a parent that restarts it, and the process."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from typing import Any

from ari_ha.runtime import supervise
from ari_ha.runtime.settings import SettingsError

DEFAULT_SETTINGS = "/etc/ari-ha/settings.json"

Parts = Callable[[], tuple[type, Callable[[Any], Any]]]
"""Gives the settings class, and what makes of settings a process with ``run()``; called
in the child only, so that the parent imports little."""


def main(
    name: str, module: str, parts: Parts, settings_path: str | None, default: str = DEFAULT_SETTINGS
) -> None:
    """Runs ``python -m module SETTINGS`` under a parent until told to stop. Exits with
    `supervise.EXIT_CONFIG` on unusable settings: starting again cannot help there."""
    path = str(settings_path or os.environ.get("ARI_HA_SETTINGS") or default)
    if not supervise.is_child():
        raise SystemExit(supervise.run([sys.executable, "-m", module, path], name=name))
    _serve(name, path, parts)


def _serve(name: str, path: str, parts: Parts) -> None:
    # Before gRPC is loaded. We fork only to run another program, and its handlers were seen to abort such
    # a child before it did (*Check failed: channel_ != nullptr*).
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    import uvloop

    from ari_ha.runtime import logs
    from ari_ha.runtime.settings import load

    settings_class, make = parts()
    lines = logs.setup(name)
    try:
        settings = load(settings_class, path).settings

        async def serve() -> None:
            beat = supervise.start_heartbeat()
            await make(settings).run()
            if beat:
                beat.cancel()

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())
    except SettingsError as error:
        print(f"{name}: {path}: {error}", file=sys.stderr)
        raise SystemExit(supervise.EXIT_CONFIG) from error
    finally:
        lines.close()
