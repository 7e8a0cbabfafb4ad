"""``ari-ha run node``: a parent that kills a hung app and starts it again, and the app.

The app that starts again finds its calls in Asterisk and goes on.
"""

from __future__ import annotations

import asyncio
import os
import sys

from ari_ha.runtime import supervise
from ari_ha.runtime.settings import SettingsError

DEFAULT_SETTINGS = "/etc/ari-ha/settings.json"


def main(settings_path: str | None = None) -> None:
    """Runs until told to stop. Exits with `supervise.EXIT_CONFIG` on unusable settings."""
    path = settings_path or os.environ.get("ARI_HA_SETTINGS") or DEFAULT_SETTINGS
    if not supervise.is_child():
        command = [sys.executable, "-m", "ari_ha.node", str(path)]
        raise SystemExit(supervise.run(command, name="node"))
    _serve(str(path))


def _serve(path: str) -> None:
    import uvloop

    from ari_ha.node.settings import NodeSettings
    from ari_ha.node.wiring import NodeProcess
    from ari_ha.runtime import logs
    from ari_ha.runtime.settings import load

    lines = logs.setup("node")
    try:
        settings = load(NodeSettings, path).settings

        async def serve() -> None:
            beat = supervise.start_heartbeat(supervise.SuperviseSettings().beat_every_ms)
            await NodeProcess(settings).run()
            if beat:
                beat.cancel()

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())
    except SettingsError as error:
        print(f"node: {path}: {error}", file=sys.stderr)
        raise SystemExit(supervise.EXIT_CONFIG) from error
    finally:
        lines.close()
