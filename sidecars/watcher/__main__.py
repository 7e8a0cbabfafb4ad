"""``python -m sidecars.watcher``: a parent that restarts the watcher in place, and the
watcher. The database server is nobody's child: it goes on when either dies."""

from __future__ import annotations

import asyncio
import os
import sys

from ari_ha.runtime import supervise
from ari_ha.runtime.settings import SettingsError

DEFAULT_SETTINGS = "/etc/ari-ha/watcher.json"


def main(settings_path: str | None = None) -> None:
    """Runs until told to stop. Exits with `supervise.EXIT_CONFIG` on unusable settings."""
    path = settings_path or os.environ.get("ARI_HA_SETTINGS") or DEFAULT_SETTINGS
    if not supervise.is_child():
        command = [sys.executable, "-m", "sidecars.watcher", str(path)]
        raise SystemExit(supervise.run(command, name="watcher"))
    _serve(str(path))


def _serve(path: str) -> None:
    import uvloop

    from ari_ha.runtime import logs
    from ari_ha.runtime.settings import load
    from sidecars.watcher.config import WatcherSettings
    from sidecars.watcher.wiring import WatcherProcess

    logs.setup("watcher")
    try:
        settings = load(WatcherSettings, path).settings
    except SettingsError as error:
        print(f"watcher: {path}: {error}", file=sys.stderr)
        raise SystemExit(supervise.EXIT_CONFIG) from error

    async def serve() -> None:
        beat = supervise.start_heartbeat()
        await WatcherProcess(settings).run()
        if beat:
            beat.cancel()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
