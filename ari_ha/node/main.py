"""``ari-ha run node``: a parent that kills a hung app and starts it again, and the app.

The app that starts again finds its calls in Asterisk and goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ari_ha.runtime import process


def main(settings_path: str | None = None) -> None:
    """Runs until told to stop; see `process.main`."""
    process.main("node", "ari_ha.node", _parts, settings_path)


def _parts() -> tuple[type, Callable[[Any], Any]]:
    from ari_ha.node.settings import NodeSettings
    from ari_ha.node.wiring import NodeProcess

    return NodeSettings, NodeProcess
