"""Asking somebody by OPTIONS whether he is there (RFC 3261 §11)."""

from __future__ import annotations

from collections.abc import Iterable

from ari_ha.machines.edge_context import EdgeContext
from ari_ha.sip.flow import Flow

ANSWER_LIMIT_S = 4.0
"""No answer by then counts as missed; SIP's own timeout is 32 s."""


def ask(
    context: EdgeContext, key: str, flow: Flow, target: str, host: str, to: str,
    routes: Iterable[tuple[str, str]] = (),
) -> None:  # fmt: skip
    """Sends OPTIONS to ``target``. The answer has ``key``; ``host``: whose name we ask in."""
    context.sip.request(
        key,
        "OPTIONS",
        flow=flow,
        target=target,
        from_=f"<sip:ping@{host}>",
        to=f"<{to}>",
        headers=(*routes, ("Contact", context.sip.contact(flow)), ("Accept", "application/sdp")),
        now=context.now,
    )
