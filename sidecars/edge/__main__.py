"""``ari-ha run edge``: a parent that restarts the edge process in place, and the process.

The restarted process reads its calls from etcd and goes on; rtpengine, a process
of its own, never stopped forwarding meanwhile.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from ari_ha.runtime import process


def main(settings_path: str | None = None) -> None:
    """Runs until told to stop; see `process.main`."""
    process.main("edge", "sidecars.edge", _parts, settings_path)


def _parts() -> tuple[type, Callable[[Any], Any]]:
    from sidecars.edge.settings import EdgeSettings
    from sidecars.edge.wiring import EdgeProcess

    return EdgeSettings, EdgeProcess


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
