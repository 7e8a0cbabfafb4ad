"""Text between the two people of a call (MESSAGE in the dialog, RFC 3428)."""

from __future__ import annotations

from ari_ha.machines.edge_calls import Calls
from ari_ha.machines.edge_context import EdgeContext
from ari_ha.machines.edge_model import EdgeCall, PhoneLeg
from ari_ha.sip.events import InDialogRequest
from ari_ha.sip.settings import DEFAULT_ALLOW

BODY_MAX_BYTES = 1_300
"""RFC 3428 §8: longer ones are no business of MESSAGE."""
ALLOW_OUTSIDE = (("Allow", ", ".join(method for method in DEFAULT_ALLOW if method != "MESSAGE")),)
"""What is served where no call is, or nobody to talk to: 405 names the rest (RFC 3261 §21.4.6)."""


class Messages:
    """Passes text on; nothing of it is kept."""

    def __init__(self, context: EdgeContext, calls: Calls) -> None:
        self._context = context
        self._calls = calls

    def in_dialog(self, event: InDialogRequest) -> None:
        """202: passed on, and no more is known (§7). The node is asked nothing, so it works in
        the gap; what a node sends goes to its phone."""
        context, request = self._context, event.request
        if len(request.body) > BODY_MAX_BYTES:
            context.sip.respond(event.txn, 413, context.now)
            return
        to = self._listener(event.leg)
        if to is None:
            context.sip.respond(event.txn, 405, context.now, headers=ALLOW_OUTSIDE)
            return
        if not context.sip.has_dialog(to.key):  # his answer is just being written down
            context.sip.respond(event.txn, 480, context.now)
            return
        context.sip.respond(event.txn, 202, context.now)
        context.count("edge_messages")
        context.sip.request_in_dialog(
            to.key,
            "MESSAGE",
            context.now,
            content_type=request.get("content-type") or None,
            body=request.body,
        )

    def _listener(self, key: str) -> PhoneLeg | None:
        """Whom it is for: the other of two, or the phone of a node's half."""
        if found := self._calls.phone(key):
            call, leg = found
            others = [other for other in _people(call, leg.consult) if other is not leg]
            return others[0] if len(others) == 1 and leg.state == "up" else None
        half = self._calls.half(key)
        leg_at_node = half[0].legs.get(half[1].leg) if half else None
        return leg_at_node if leg_at_node and leg_at_node.state == "up" else None


def _people(call: EdgeCall, consult: str) -> list[PhoneLeg]:
    return [leg for leg in call.up() if leg.consult == consult and not leg.aside]
