"""Transactions (RFC 3261 section 17, as amended by RFC 6026 and RFC 4320).

Theory of operation. A transaction is one row of a table: what it does is looked up by (state, event) and is a
next state and a list of actions. The four tables below are the four automata of section 17, with the
`accepted`
states RFC 6026 adds so that a 2xx and its retransmissions never reach a stranger. Events are

- `timer X` for the timers A to M of the standard,
- `1xx`, `2xx`, `final` for responses received (`final` is 300 and above; in the non-INVITE client, anything
final),
- `request` for a retransmission of the request and `ack` for its ACK,
- `reply ...` for responses our own user agent sends,
- `error` for what the transport reports.

A pair that is not in a table is absorbed: that is the standard's answer in each of these cases. Actions are
`send` and `resend` (the transaction's current bytes), `ack` (the ACK of a refused INVITE), `start X`, `stop`
(all timers), and at most one verdict for the transaction user: `pass`, `timeout`, `failed` or `unanswered`.
Reaching `terminated` removes the transaction.
"""

from __future__ import annotations

from typing import Any, Protocol

from ari_ha.sip.flow import Flow
from ari_ha.sip.message import Request, Response
from ari_ha.sip.settings import EndpointSettings
from ari_ha.sip.timers import TimerQueue

COOKIE = "z9hG4bK"
"""RFC 3261 section 8.1.1.7: a branch that begins so is unique; others are of RFC 2543."""
TIMER_D_S = 32.0
"""Section 17.1.1.2: at least 32 seconds over unreliable transports."""

Table = dict[tuple[str, str], tuple[str, ...]]

INVITE_CLIENT: Table = {
    ("calling", "timer A"): ("calling", "resend", "start A"),
    ("calling", "timer B"): ("terminated", "timeout"),
    ("calling", "error"): ("terminated", "failed"),
    ("calling", "1xx"): ("proceeding", "stop", "pass"),
    ("calling", "2xx"): ("accepted", "stop", "start M", "pass"),
    ("calling", "final"): ("completed", "stop", "ack", "start D", "pass"),
    ("proceeding", "1xx"): ("proceeding", "pass"),
    ("proceeding", "2xx"): ("accepted", "start M", "pass"),
    ("proceeding", "final"): ("completed", "ack", "start D", "pass"),
    ("proceeding", "error"): ("terminated", "failed"),
    ("calling", "abandon"): ("abandoned", "stop", "start N"),
    ("proceeding", "abandon"): ("abandoned", "start N"),
    ("abandoned", "2xx"): ("accepted", "stop", "start M", "pass"),
    ("abandoned", "final"): ("completed", "stop", "ack", "start D"),
    ("abandoned", "error"): ("terminated",),
    ("abandoned", "timer N"): ("terminated",),
    ("completed", "final"): ("completed", "ack"),
    ("completed", "error"): ("terminated",),
    ("completed", "timer D"): ("terminated",),
    ("accepted", "2xx"): ("accepted", "pass"),
    ("accepted", "timer M"): ("terminated",),
}
"""Section 17.1.1 with figure 5 of RFC 6026. `abandon` is ours: nobody waits for the final response any
more, but should one come within 64*T1 (timer N) it is still acknowledged; the standard would wait for
ever."""

CLIENT: Table = {
    ("trying", "timer E"): ("trying", "resend", "start E"),
    ("trying", "timer F"): ("terminated", "timeout"),
    ("trying", "error"): ("terminated", "failed"),
    ("trying", "1xx"): ("proceeding", "pass"),
    ("trying", "2xx"): ("completed", "stop", "start K", "pass"),
    ("trying", "final"): ("completed", "stop", "start K", "pass"),
    ("proceeding", "timer E"): ("proceeding", "resend", "start E"),
    ("proceeding", "timer F"): ("terminated", "timeout"),
    ("proceeding", "error"): ("terminated", "failed"),
    ("proceeding", "1xx"): ("proceeding", "pass"),
    ("proceeding", "2xx"): ("completed", "stop", "start K", "pass"),
    ("proceeding", "final"): ("completed", "stop", "start K", "pass"),
    ("completed", "timer K"): ("terminated",),
}
"""Section 17.1.2."""

INVITE_SERVER: Table = {
    ("proceeding", "request"): ("proceeding", "resend"),
    ("proceeding", "reply 1xx"): ("proceeding", "send"),
    ("proceeding", "reply 2xx"): ("accepted", "send", "start L"),
    ("proceeding", "reply final"): ("completed", "send", "start G", "start H"),
    ("proceeding", "mute"): ("accepted", "start L"),
    ("accepted", "ack"): ("accepted", "pass"),
    ("accepted", "timer L"): ("terminated",),
    ("completed", "request"): ("completed", "resend"),
    ("completed", "timer G"): ("completed", "resend", "start G"),
    ("completed", "timer H"): ("terminated",),
    ("completed", "ack"): ("confirmed", "stop", "start I"),
    ("completed", "mute"): ("confirmed", "stop", "start I"),
    ("confirmed", "timer I"): ("terminated",),
}
"""Section 17.2.1 with figure 7 of RFC 6026; `mute` is the owner forgetting the leg: absorb, say nothing."""

SERVER: Table = {
    ("trying", "timer P"): ("terminated", "unanswered"),
    ("trying", "reply 1xx"): ("proceeding", "send"),
    ("trying", "reply 2xx"): ("completed", "stop", "send", "start J"),
    ("trying", "reply final"): ("completed", "stop", "send", "start J"),
    ("proceeding", "timer P"): ("terminated", "unanswered"),
    ("proceeding", "request"): ("proceeding", "resend"),
    ("proceeding", "reply 1xx"): ("proceeding", "send"),
    ("proceeding", "reply 2xx"): ("completed", "stop", "send", "start J"),
    ("proceeding", "reply final"): ("completed", "stop", "send", "start J"),
    ("completed", "request"): ("completed", "resend"),
    ("completed", "timer J"): ("terminated",),
}
"""Section 17.2.2; timer P is ours: an answer after 64*T1 helps nobody (RFC 4320), so waiting for it ends."""

TABLES: dict[str, Table] = {
    "INVITE client": INVITE_CLIENT,
    "client": CLIENT,
    "INVITE server": INVITE_SERVER,
    "server": SERVER,
}
"""For whoever draws the diagrams."""

VERDICTS = frozenset(("pass", "timeout", "failed", "unanswered"))
_RETRANSMIT = frozenset("AEG")
"""Timers that retransmit: never started over a reliable transport."""
_LINGER = frozenset("DIJK")
"""Timers that absorb retransmissions: zero over a reliable transport."""


class TransactionHost(Protocol):
    """What a transaction needs from the stack that holds it."""

    settings: EndpointSettings
    timers: TimerQueue

    def transmit(self, data: bytes, flow: Flow) -> None:
        """Send bytes."""

    def count(self, name: str) -> None:
        """Count something."""

    def retire(self, txn: Any) -> None:
        """Drop a terminated transaction from the tables."""


class Transaction:
    """What client and server transactions share: the table walk and the timers."""

    __slots__ = (
        "_armed",
        "_interval",
        "data",
        "flow",
        "host",
        "invite",
        "key",
        "leg",
        "request",
        "state",
        "table",
    )

    def __init__(
        self, host: TransactionHost, key: Any, request: Request, flow: Flow, table: Table, state: str
    ) -> None:
        self.host = host
        self.key = key
        self.request = request
        self.flow = flow
        self.table = table
        self.state = state
        self.data = b""
        self.leg: Any = None
        """The leg this belongs to, if any."""
        self._armed: list[str] = []
        self._interval = 0.0

    def step(self, event: str, now: float) -> str:
        """Walk the table; returns the verdict for the transaction user, or an empty string."""
        rule = self.table.get((self.state, event))
        if rule is None:
            return ""
        verdict = ""
        self.state = rule[0]
        for action in rule[1:]:
            if action in VERDICTS:
                verdict = action
            elif action == "send" or action == "resend":
                self._send(action)
            elif action == "ack":
                self._ack()
            elif action == "stop":
                self._stop()
            else:
                self._start(action[-1], now)
        if self.state == "terminated":
            self._stop()
            self.host.retire(self)
        return verdict

    def end(self) -> None:
        """Leave without a word."""
        self.state = "terminated"
        self._stop()
        self.host.retire(self)

    def _send(self, action: str) -> None:
        if self.data:
            self.host.transmit(self.data, self.flow)
            if action == "resend":
                self.host.count("retransmissions")

    def _ack(self) -> None:
        raise NotImplementedError

    def _start(self, letter: str, now: float) -> None:
        reliable = self.flow.reliable
        if reliable and letter in _RETRANSMIT:
            return
        if reliable and letter in _LINGER:
            self.state = "terminated"
            return
        self._armed.append(letter) if letter not in self._armed else None
        self.host.timers.start((self, letter), now + self._delay(letter))

    def _delay(self, letter: str) -> float:
        settings = self.host.settings
        if letter in _RETRANSMIT:
            self._interval = settings.t1_s if not self._interval else self._interval * 2
            if letter == "E" and self.state == "proceeding":
                self._interval = settings.t2_s
            elif letter != "A":
                self._interval = min(self._interval, settings.t2_s)
            return self._interval
        if letter == "D":
            return max(TIMER_D_S, 64 * settings.t1_s)
        return settings.t4_s if letter in "IK" else 64 * settings.t1_s

    def _stop(self) -> None:
        for letter in self._armed:
            self.host.timers.stop((self, letter))
        self._armed.clear()


class ClientTransaction(Transaction):
    """A request we sent. `purpose` names who hears of the response."""

    __slots__ = ("ack_data", "owner_key", "purpose", "tried")

    def __init__(
        self, host: TransactionHost, branch: str, request: Request, flow: Flow, purpose: str
    ) -> None:
        self.invite = request.method == "INVITE"
        table, state = (INVITE_CLIENT, "calling") if self.invite else (CLIENT, "trying")
        super().__init__(host, (branch, request.method), request, flow, table, state)
        self.purpose = purpose
        self.owner_key = ""
        """What the owner calls it, outside dialogs."""
        self.ack_data = b""
        self.tried: tuple[Flow, ...] = ()
        """Where the same request went before, and nobody was"""

    @property
    def branch(self) -> str:
        """Our branch."""
        branch: str = self.key[0]
        return branch

    def open(self, data: bytes, now: float) -> None:
        """Send the request and start the timers (sections 17.1.1.2 and 17.1.2.2)."""
        self.data = data
        self._send("send")
        for letter in ("A", "B") if self.invite else ("E", "F"):
            self._start(letter, now)

    def resume(self, data: bytes, provisional: bool, now: float) -> None:
        """Go on with a request another process has sent."""
        if not provisional:
            self.open(data, now)
            return
        self.data = data
        self.state = "proceeding"
        if not self.invite:
            for letter in ("E", "F"):
                self._start(letter, now)

    def receive(self, response: Response, now: float) -> str:
        """A response with our branch arrived."""
        status = response.status
        if status < 200:
            return self.step("1xx", now)
        if status < 300:
            return self.step("2xx", now)
        if self.invite and not self.ack_data:
            self.ack_data = build_ack(self.request, response).serialise()
        return self.step("final", now)

    def _ack(self) -> None:
        self.host.transmit(self.ack_data, self.flow)
        self.host.count("out.ACK")


class ServerTransaction(Transaction):
    """A request we received."""

    __slots__ = ("id", "local_tag", "vias")

    def __init__(
        self, host: TransactionHost, key: Any, request: Request, flow: Flow, vias: list[str]
    ) -> None:
        self.invite = request.method == "INVITE"
        table, state = (INVITE_SERVER, "proceeding") if self.invite else (SERVER, "trying")
        super().__init__(host, key, request, flow, table, state)
        self.vias = vias
        """The Via values responses carry, received and rport filled in."""
        self.id = ""
        """What the owner calls it, when the owner has to answer."""
        self.local_tag = ""

    def wait_for_owner(self, now: float) -> None:
        """Start the limit on the owner's answer (non-INVITE only)."""
        if not self.invite:
            self._start("P", now)

    def reply(self, status: int, data: bytes, now: float) -> str:
        """Our user agent answers."""
        kind = "1xx" if status < 200 else "2xx" if status < 300 else "final"
        if (self.state, f"reply {kind}") in self.table:
            self.data = data
        return self.step(f"reply {kind}", now)

    @property
    def final(self) -> bool:
        """Whether a final response went out (or nothing will go out any more)."""
        return self.state not in ("trying", "proceeding")


def build_ack(request: Request, response: Response) -> Request:
    """The ACK of a refused INVITE: same branch, same URI and Routes (section 17.1.1.3)."""
    headers = [("Via", request.get("Via")), ("Max-Forwards", "70")]
    headers += [("Route", route) for route in request.get_all("Route")]
    headers += [
        ("From", request.get("From")),
        ("To", response.get("To") or request.get("To")),
        ("Call-ID", request.call_id),
        ("CSeq", f"{request.get('CSeq').partition(' ')[0]} ACK"),
    ]
    return Request("ACK", request.uri, headers)


def build_cancel(request: Request, reason_header: str | None) -> Request:
    """The CANCEL of an INVITE (section 9.1): the same in everything but the method of CSeq."""
    headers = [("Via", request.get("Via")), ("Max-Forwards", "70")]
    headers += [("Route", route) for route in request.get_all("Route")]
    headers += [
        ("From", request.get("From")),
        ("To", request.get("To")),
        ("Call-ID", request.call_id),
        ("CSeq", f"{request.get('CSeq').partition(' ')[0]} CANCEL"),
    ]
    if reason_header:
        headers.append(("Reason", reason_header))
    return Request("CANCEL", request.uri, headers)
