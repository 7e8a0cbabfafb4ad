"""`Endpoint`: a sans-IO SIP user agent that manages transactions and legs (skeleton; bodies follow)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ari_ha.sip.auth import Credentials
from ari_ha.sip.events import LocalError as LocalError
from ari_ha.sip.events import SipEvent
from ari_ha.sip.flow import Flow, Listener
from ari_ha.sip.settings import DEFAULT_ALLOW, EndpointSettings

Headers = Sequence[tuple[str, str]]


class Endpoint:
    def __init__(
        self,
        listeners: Mapping[str, Listener],
        new_id: Callable[[], str],
        *,
        rand: Callable[[], float] = lambda: 0.5,
        user_agent: str = "ari-ha",
        allow: Sequence[str] = DEFAULT_ALLOW,
        settings: EndpointSettings = EndpointSettings(),
    ) -> None:
        self.counters: dict[str, int] = {}

    def receive(self, data: bytes, flow: Flow, now: float) -> None: ...
    def receive_stream(self, data: bytes, flow: Flow, now: float) -> None: ...
    def stream_closed(self, flow: Flow, now: float) -> None: ...
    def transport_error(self, flow: Flow, reason: str, now: float) -> None: ...
    def deadline(self) -> float | None: ...
    def handle_timer(self, now: float) -> None: ...
    def events(self) -> list[SipEvent]: ...
    def output(self) -> list[tuple[bytes, Flow]]: ...
    def invite(
        self,
        leg: str,
        *,
        flow: Flow,
        target: str,
        from_: str,
        to: str,
        sdp: str | None,
        headers: Headers = (),
        credentials: Credentials | None = None,
        session_expires: int | None = None,
        contact_user: str = "",
        now: float,
    ) -> None: ...
    def ack(self, leg: str, sdp: str, now: float) -> None: ...
    def ring(
        self,
        leg: str,
        now: float,
        status: int = 180,
        reason: str | None = None,
        sdp: str | None = None,
        headers: Headers = (),
    ) -> None: ...
    def answer(self, leg: str, sdp: str | None, now: float, headers: Headers = ()) -> None: ...
    def reject(
        self, leg: str, status: int, now: float, reason: str | None = None, headers: Headers = ()
    ) -> None: ...
    def reinvite(self, leg: str, sdp: str | None, now: float, headers: Headers = ()) -> None: ...
    def accept_reinvite(self, leg: str, sdp: str, now: float, headers: Headers = ()) -> None: ...
    def reject_reinvite(self, leg: str, status: int, now: float, headers: Headers = ()) -> None: ...
    def info(
        self, leg: str, content_type: str, body: bytes, now: float, headers: Headers = ()
    ) -> None: ...
    def request_in_dialog(
        self,
        leg: str,
        method: str,
        now: float,
        headers: Headers = (),
        content_type: str | None = None,
        body: bytes = b"",
    ) -> None: ...
    def hangup(
        self, leg: str, now: float, *, status: int = 603, reason_header: str | None = None
    ) -> None: ...
    def forget(self, leg: str) -> None: ...
    def export_leg(self, leg: str) -> dict[str, Any]: ...
    def import_leg(
        self,
        leg: str,
        record: dict[str, Any],
        now: float,
        cseq_margin: int = 10,
        credentials: Credentials | None = None,
    ) -> None: ...
    def leg_state(self, leg: str) -> str: ...
    def legs(self) -> Iterable[str]: ...
    def request(
        self,
        key: str,
        method: str,
        *,
        flow: Flow,
        target: str,
        from_: str,
        to: str,
        headers: Headers = (),
        body: bytes = b"",
        content_type: str | None = None,
        now: float,
        call_id: str | None = None,
        cseq: int | None = None,
    ) -> None: ...
    def respond(
        self,
        txn: str,
        status: int,
        now: float,
        reason: str | None = None,
        headers: Headers = (),
        body: bytes = b"",
        content_type: str | None = None,
    ) -> None: ...
