"""``ari-ha run guard``: a parent that restarts the guard in place, and the guard.

A process of its own beside the edge process: a busy B2BUA must not delay a heartbeat.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from ari_ha.runtime import process

DEFAULT_SETTINGS = "/etc/ari-ha/guard.json"


def main(settings_path: str | None = None) -> None:
    """Runs until told to stop; see `process.main`."""
    process.main("guard", "sidecars.guard", _parts, settings_path, DEFAULT_SETTINGS)


def _parts() -> tuple[type, Callable[[Any], Any]]:
    from sidecars.guard.settings import GuardSettings
    from sidecars.guard.wiring import GuardProcess

    return GuardSettings, GuardProcess


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
