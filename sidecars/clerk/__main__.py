"""``python -m sidecars.clerk``: a parent that restarts the clerk in place, and the clerk."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from ari_ha.runtime import process

DEFAULT_SETTINGS = "/etc/ari-ha/clerk.json"


def main(settings_path: str | None = None) -> None:
    """Runs until told to stop; see `process.main`."""
    process.main("clerk", "sidecars.clerk", _parts, settings_path, DEFAULT_SETTINGS)


def _parts() -> tuple[type, Callable[[Any], Any]]:
    from sidecars.clerk.settings import ClerkSettings
    from sidecars.clerk.wiring import ClerkProcess

    return ClerkSettings, ClerkProcess


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
