"""What the media relay holds and nobody knows: calls that ended in the gap between two edge processes, or
that the dead edge of a pair had just begun. Their ports would stay taken until the relay is started anew."""

from __future__ import annotations

from ari_ha.core.machine import Done, Outcome
from ari_ha.machines.edge_calls import Calls
from ari_ha.machines.edge_context import EdgeContext

SWEEP_AFTER_S = 5.0
"""After service began: the audio of living calls comes first, and nobody is in a hurry."""
LISTED_MAX = 20_000


class RelaySweep:
    """Deletes the relay's calls that are not ours. The relay belongs to this edge alone."""

    def __init__(self, context: EdgeContext, calls: Calls) -> None:
        self._context = context
        self._calls = calls

    def start(self) -> None:
        """We serve: every stored call has been read."""
        self._context.at("sweep", self._context.now + SWEEP_AFTER_S, self._ask)

    def _ask(self) -> None:
        self._context.relay("list", {"limit": LISTED_MAX}, self._listed)

    def _listed(self, outcome: Outcome) -> None:
        if not isinstance(outcome, Done):
            self.start()
            return
        known = self._calls.by_id
        unknown = sorted({str(call) for call in outcome.value.get("calls", ())} - known.keys())
        for call in unknown:
            self._context.ng(call, "delete", {})
        if unknown:
            self._context.note("edge", "the media relay held calls nobody knows: deleted", calls=len(unknown))
            self._context.count("edge_relay_calls_swept", by=len(unknown))
