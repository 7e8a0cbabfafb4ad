"""Dialogs (RFC 3261 section 12) as plain records: everything another process needs to go on with one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ari_ha.sip.fields import SipParseError, tag_of
from ari_ha.sip.message import Message, Request, Response
from ari_ha.sip.uri import NameAddr, SipUri

ROUTES_MAX_COUNT = 32
"""Record-Route values kept in a route set."""


@dataclass(slots=True)
class Dialog:
    """One dialog; every field is JSON-able."""

    call_id: str
    local_tag: str
    local_uri: str
    """The whole From value of requests we send, without the tag."""
    remote_uri: str
    """The whole To value of requests we send, without the tag."""
    role: str
    """"uac" or "uas": who sent the INVITE that made the dialog."""
    remote_tag: str = ""
    remote_target: str = ""
    route_set: list[str] = field(default_factory=list)
    local_cseq: int = 0
    """The last number used."""
    remote_cseq: int | None = None
    """The last number seen; None before the first request of the far side."""
    secure: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The dialog as a JSON-able record."""
        # not asdict: its deep copies were half of what a takeover of twenty calls computes
        record = {name: getattr(self, name) for name in self.__slots__}
        record["route_set"] = list(self.route_set)
        return record

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Dialog:
        """The dialog of a record written by `to_dict`; unknown fields are ignored."""
        known = {name: record[name] for name in cls.__slots__ if name in record}
        known["route_set"] = list(known.get("route_set", ()))
        return cls(**known)

    @classmethod
    def for_uas(cls, request: Request, local_tag: str) -> Dialog:
        """The dialog an INVITE opens at its UAS (section 12.1.1)."""
        return cls(
            call_id=request.call_id,
            local_tag=local_tag,
            local_uri=request.get("To"),
            remote_uri=without_tag(request.get("From")),
            role="uas",
            remote_tag=request.from_tag,
            remote_target=contact_of(request),
            route_set=request.values("Record-Route")[:ROUTES_MAX_COUNT],
            remote_cseq=request.cseq[0],
            secure=request.uri.lower().startswith("sips:"),
        )

    def establish(self, response: Response) -> None:
        """Take over what a response to our INVITE says (section 12.1.2), a 2xx overruling what came
        before."""
        self.remote_tag = response.to_tag
        target = contact_of(response)
        if target:
            self.remote_target = target
        routes = response.values("Record-Route")[:ROUTES_MAX_COUNT]
        self.route_set = routes[::-1]

    def refresh_target(self, message: Message) -> None:
        """A target refresh (section 12.2.1.2, 12.2.2): a new Contact moves the remote target, nothing
        else."""
        target = contact_of(message)
        if target:
            self.remote_target = target

    def next_uri(self) -> str:
        """The URI requests in the dialog are sent to (section 12.2.1.1): the first route, or the target."""
        return _uri_of(self.route_set[0]) if self.route_set else self.remote_target

    def leads_to(self, host: str) -> bool:
        """Whether requests in the dialog are addressed to this host."""
        try:
            return SipUri.parse(self.next_uri()).host == host
        except SipParseError:
            return False

    def next_cseq(self) -> int:
        """The number of the next request."""
        self.local_cseq += 1
        return self.local_cseq

    def accepts(self, number: int) -> bool:
        """Whether a request with this number is in order (section 12.2.2); if so it becomes the last one."""
        if self.remote_cseq is not None and number <= self.remote_cseq:
            return False
        self.remote_cseq = number
        return True

    def build(self, method: str, cseq: int, via: str, max_forwards: int = 70) -> Request:
        """A request within the dialog (section 12.2.1.1), loose and strict routing."""
        uri, routes = self._route()
        headers = [("Via", via), ("Max-Forwards", str(max_forwards))]
        headers += [("Route", route) for route in routes]
        headers += [
            ("From", f"{self.local_uri};tag={self.local_tag}"),
            ("To", f"{self.remote_uri};tag={self.remote_tag}" if self.remote_tag else self.remote_uri),
            ("Call-ID", self.call_id),
            ("CSeq", f"{cseq} {method}"),
        ]
        return Request(method, uri, headers)

    def _route(self) -> tuple[str, list[str]]:
        target = self.remote_target or _uri_of(self.remote_uri) or "sip:unknown.invalid"
        if not self.route_set:
            return target, []
        first = _uri_of(self.route_set[0])
        try:
            loose = SipUri.parse(first).loose
        except SipParseError:
            loose = True
        if loose or not first:
            return target, list(self.route_set)
        bare = first.partition("?")[0]
        return bare, [*self.route_set[1:], f"<{target}>"]


def without_tag(value: str) -> str:
    """A From or To value without its tag parameter, everything else as it came."""
    if not tag_of(value):
        return value
    close = value.rfind(">")
    head, tail = value[: close + 1], value[close + 1 :]
    kept = [item for item in tail.split(";") if item.partition("=")[0].strip().lower() != "tag"]
    return (head + ";".join(kept)).rstrip()


def _uri_of(value: str) -> str:
    try:
        return NameAddr.parse(value).uri
    except SipParseError:
        return ""


def contact_of(message: Message) -> str:
    """The URI of the first Contact, empty when there is none that can be read."""
    value = message.get("Contact")
    if not value:
        return ""
    uri = _uri_of(value)
    return "" if uri == "*" or any(char.isspace() for char in uri) else uri
