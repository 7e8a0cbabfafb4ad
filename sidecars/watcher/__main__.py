"""``python -m sidecars.watcher``: a parent that restarts the watcher in place, and the
watcher. The database server is nobody's child: it goes on when either dies."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from ari_ha.runtime import process

DEFAULT_SETTINGS = "/etc/ari-ha/watcher.json"


def main(settings_path: str | None = None) -> None:
    """Runs until told to stop; see `process.main`."""
    process.main("watcher", "sidecars.watcher", _parts, settings_path, DEFAULT_SETTINGS)


def _parts() -> tuple[type, Callable[[Any], Any]]:
    from sidecars.watcher.config import WatcherSettings
    from sidecars.watcher.wiring import WatcherProcess

    return WatcherSettings, WatcherProcess


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
