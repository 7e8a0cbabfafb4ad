"""A stateless proxy for requests that are another process's business (RFC 3261 §16.11).

Theory of operation. The owner says of every request whether it is to be passed on, and where to. Nothing is
kept of it: where its answer goes is in our Via, sealed with a key, and that we stay on the dialog's way is in
two Record-Routes (RFC 5658: one for each side). The branch is made of the one the request came with, so a
retransmission, a CANCEL and the ACK of a refusal find the transaction of their INVITE. So a process that
begins anew, or another one with the same address and key, passes on what belongs to calls it never saw.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass

from ari_ha.sip.fields import canonical
from ari_ha.sip.flow import Flow
from ari_ha.sip.message import Message, Request, Response
from ari_ha.sip.stack import Stack
from ari_ha.sip.transaction import COOKIE

SEALED_MAX_CHARS = 400
SEAL_BYTES = 12
BRANCH_HEX_CHARS = 24
PARAM = "flow"
"""Via parameter that says where the answer goes"""
_OURS_TO_SET = frozenset(("via", "max-forwards", "route"))


def sealed(key: bytes, text: str, about: str = "") -> str:
    """``text`` in characters a SIP token and a URI's user may have, with a seal over it and ``about``."""
    body = _plain(text.encode())
    return f"{body}.{_seal(key, body, about)}"


def opened(key: bytes, value: str, about: str = "") -> str | None:
    """What `sealed` was given; None when this is not its work."""
    body, dot, seal = value.partition(".")
    if not dot or len(value) > SEALED_MAX_CHARS or not value.isascii():
        return None
    if not hmac.compare_digest(_seal(key, body, about), seal):
        return None
    try:
        return base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None


def _plain(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _seal(key: bytes, body: str, about: str) -> str:
    return _plain(hmac.new(key, f"{about}\n{body}".encode(), hashlib.sha256).digest()[:SEAL_BYTES])


@dataclass(frozen=True, slots=True)
class Onward:
    """What is to become of a request that is not ours."""

    to: Flow | None
    """None: nothing, its sender tries again"""
    routes: int = 0
    """How many of its Route values name us; they are taken away"""
    record: str = ""
    """User part of our Record-Routes, by which `route` knows the way again"""
    refuse: int = 0
    """A status it is answered with instead"""
    add: str = ""
    """A Route value put before all others"""
    sender: tuple[str, ...] = ()
    """Who sent it, in two words for whom `Proxy.serve` was told to ask"""


class Proxy:
    """Passes messages on. Does nothing before `serve`."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._key, self._private = b"", ""
        self._route: Callable[[Request, Flow], Onward | None] = lambda request, flow: None
        self._now_at: Callable[[Flow, str, str], Flow] = lambda flow, one, two: flow

    def serve(
        self,
        key: bytes,
        route: Callable[[Request, Flow], Onward | None],
        private: str,
        now_at: Callable[[Flow, str, str], Flow],
    ) -> None:
        """From now on ``route`` is asked about every request; None: it is for us. Header fields whose
        lower-case name begins with ``private`` are taken away. ``now_at`` is asked where the sender of a
        request is when it is answered: his connection may be another one by then (section 18.2.2)."""
        self._key, self._route, self._private, self._now_at = key, route, private, now_at

    def takes(self, message: Message, flow: Flow) -> bool:
        """Whether the message was another's; then it is dealt with. Raises SipParseError."""
        if not self._key:
            return False
        if isinstance(message, Response):
            return self._back(message)
        return isinstance(message, Request) and self._on(message, flow)

    def _on(self, request: Request, flow: Flow) -> bool:
        onward = self._route(request, flow)
        if onward is None:
            return False
        via = request.top_via
        forwards = request.get("Max-Forwards", "70").strip()
        if onward.refuse:
            self._stack.reply_statelessly(request, via, flow, onward.refuse)
        elif not (forwards.isascii() and forwards.isdigit()) or len(forwards) > 3 or int(forwards) <= 0:
            self._stack.reply_statelessly(request, via, flow, 483)
        elif onward.to is None or onward.to.listener not in self._stack.listeners:
            self._stack.drop("hop-nowhere")
        else:
            self._send(request, flow, onward, onward.to, int(forwards) - 1)
        return True

    def _send(self, request: Request, came: Flow, onward: Onward, to: Flow, forwards: int) -> None:
        """§16.6, what of it needs no state."""
        stack, via = self._stack, request.top_via
        named = "|".join(stack.server_key(request, via, ""))
        branch = COOKIE + hashlib.sha256(named.encode("utf-8", "replace")).hexdigest()[:BRANCH_HEX_CHARS]
        back = stack.reply_flow(via, came)
        way = "\n".join((back.listener, back.transport, back.host, str(back.port), back.conn, *onward.sender))
        vias = [f"{stack.via(to, branch)};{PARAM}={sealed(self._key, way, branch)}"]
        vias += stack.reply_vias(request, via, came)
        headers = [("Via", value) for value in vias]
        headers.append(("Max-Forwards", str(forwards)))
        if onward.record and not request.to_tag:
            headers += [("Record-Route", self._record(onward.record, name)) for name in (to, came)]
        routes = [*([onward.add] if onward.add else []), *request.values("Route")[onward.routes :]]
        headers += [("Route", value) for value in routes]
        for name, value in request.headers:
            key = canonical(name)
            if key not in _OURS_TO_SET and not key.startswith(self._private):
                headers.append((name, value))
        stack.count("hop.requests")
        stack.transmit(Request(request.method, request.uri, headers, request.body).serialise(), to)

    def _record(self, user: str, flow: Flow) -> str:
        own = self._stack.listener(flow)
        transport = "" if flow.transport == "udp" else f";transport={flow.transport}"
        return f"<sip:{user}@{own.host}:{own.port}{transport};lr>"

    def _back(self, response: Response) -> bool:
        """§16.7: the answer to what was passed on goes where our Via says."""
        via = response.top_via
        said = via.params.get(PARAM)
        if not said or not self._stack.is_ours(via):
            return False
        parts = (opened(self._key, said, via.branch) or "").split("\n")
        if len(parts) not in (5, 7) or parts[0] not in self._stack.listeners:
            self._stack.drop("hop-unsealed")
            return True
        listener, transport, host, port, conn, *sender = parts
        to = Flow(listener, transport, host, int(port), conn)
        to = self._now_at(to, *sender) if sender else to
        headers = [("Via", value) for value in response.values("Via")[1:]]
        named = [(canonical(item[0]), item) for item in response.headers]
        headers += [item for key, item in named if key != "via" and not key.startswith(self._private)]
        passed = Response(response.status, response.reason, headers, response.body)
        self._stack.count("hop.responses")
        self._stack.transmit(passed.serialise(), to)
        return True
