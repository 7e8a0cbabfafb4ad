"""Who may ring an agent's phone while etcd is away: the pair that holds the phone says it."""

from __future__ import annotations

from ari_ha.machines.edge_calls import Calls
from ari_ha.machines.edge_context import EdgeContext
from ari_ha.machines.registrar import Registrar
from ari_ha.wire import link

CLAIM_S = 2.0


class Claims:
    """First attempt wins the device; it is free again when the attempt's leg ends."""

    def __init__(self, context: EdgeContext, calls: Calls, registrar: Registrar) -> None:
        self._context = context
        self._calls = calls
        self._registrar = registrar
        self._held: dict[str, tuple[str, float]] = {}
        """device -> the attempt that may ring it, and until when its dial must come"""

    def claim(self, node: str, frame: link.ClaimAgent, serving: bool) -> None:
        """A node asks. Of a phone at another pair we cannot know whether that pair rings it: no."""
        now = self._context.now
        self._held = {device: claim for device, claim in self._held.items() if claim[1] > now}
        holder = self._held.get(frame.device, ("", 0.0))[0]
        busy = self._calls.device_of.get(frame.device)
        if busy:
            holder = self._calls.by_id[busy[0]].legs[busy[1]].attempt or f"call {busy[0]}"
        elif pair := self._registrar.elsewhere(frame.device):
            holder = f"pair {pair}"
        granted = serving and holder in ("", frame.attempt)
        if granted:
            self._held[frame.device] = (frame.attempt, now + CLAIM_S)
        answer = link.ClaimAnswer(
            agent=frame.agent, attempt=frame.attempt, granted=granted, holder="" if granted else holder
        )
        self._context.link(node, answer)
