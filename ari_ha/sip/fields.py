"""Header fields of SIP messages: their names, and the few values the engine reads on every message (RFC 3261
section 20)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ari_ha.sip.message import Request

SIP_VERSION = "SIP/2.0"

_COMPACT = {
    "a": "accept-contact",
    "b": "referred-by",
    "c": "content-type",
    "d": "request-disposition",
    "e": "content-encoding",
    "f": "from",
    "i": "call-id",
    "j": "reject-contact",
    "k": "supported",
    "l": "content-length",
    "m": "contact",
    "o": "event",
    "r": "refer-to",
    "s": "subject",
    "t": "to",
    "u": "allow-events",
    "v": "via",
    "x": "session-expires",
}
"""RFC 3261 section 7.3.3 and the IANA registry of header fields."""


_TAG = re.compile(r";\s*tag\s*=\s*([^\s;,>]+)", re.IGNORECASE)

CANONICAL: dict[str, str] = {}
for _name in [
    "Via",
    "From",
    "To",
    "Call-ID",
    "CSeq",
    "Contact",
    "Max-Forwards",
    "Content-Type",
    "Content-Length",
    "Allow",
    "Supported",
    "Require",
    "Route",
    "Record-Route",
    "User-Agent",
    "Server",
    "Session-Expires",
    "Min-SE",
    "Expires",
    "Authorization",
    "WWW-Authenticate",
    "Proxy-Authorization",
    "Proxy-Authenticate",
    "Reason",
    "Event",
    "Date",
    "Accept",
    "Retry-After",
    "Refer-To",
    "Replaces",
    "Warning",
]:
    CANONICAL[_name] = CANONICAL[_name.lower()] = _name.lower()
for _short, _long in _COMPACT.items():
    CANONICAL[_short] = CANONICAL[_short.upper()] = _long


def canonical(name: str) -> str:
    """The lower-case long form of a header field name."""
    known = CANONICAL.get(name)
    if known is not None:
        return known
    lower = name.lower()
    return _COMPACT.get(lower, lower)


class SipParseError(Exception):
    """Bytes that are no SIP message, or a header that cannot be read.

    `status` is the response a request of this kind deserves, None when it is to be dropped; `request` is what
    could be read of it, so that the response can be addressed.
    """

    def __init__(self, reason: str, status: int | None = None, request: Request | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.request = request


class Via:
    """One Via value (RFC 3261 section 20.42)."""

    __slots__ = ("host", "params", "port", "transport")

    def __init__(self, transport: str, host: str, port: int | None, params: dict[str, str | None]) -> None:
        self.transport = transport
        self.host = host
        self.port = port
        self.params = params

    @property
    def branch(self) -> str:
        """The branch parameter, empty when absent."""
        return self.params.get("branch") or ""

    @property
    def sent_by(self) -> str:
        """host:port as matched by transactions (section 17.2.3), with the default port filled in."""
        return f"{self.host.lower()}:{self.port or 5060}"

    def __str__(self) -> str:
        port = f":{self.port}" if self.port is not None else ""
        params = "".join(f";{k}" if v is None else f";{k}={v}" for k, v in self.params.items())
        return f"{SIP_VERSION}/{self.transport} {self.host}{port}{params}"


def parse_via(value: str) -> Via:
    """The first Via of a header value."""
    protocol, _, rest = value.strip().partition(" ")
    if rest.lstrip().startswith("/") or protocol.endswith("/") or protocol.count("/") < 2:
        # not by a regular expression: over a long run of spaces that takes the square of its length
        value = "/".join(part.strip() for part in value.strip().split("/", 2))
        protocol, _, rest = value.partition(" ")
    parts = protocol.split("/")
    if len(parts) != 3 or parts[0].upper() != "SIP" or not parts[2] or not rest:
        raise SipParseError("via", 400)
    sent_by, *raw = rest.split(";")
    host, port = split_host_port(sent_by)
    if not host:
        raise SipParseError("via", 400)
    params: dict[str, str | None] = {}
    for item in raw:
        name, equals, content = item.partition("=")
        params[name.strip().lower()] = content.strip() if equals else None
    return Via(parts[2].upper(), host, port, params)


def split_host_port(text: str) -> tuple[str, int | None]:
    """host and port of `host[:port]`, IPv6 references kept in brackets."""
    text = text.strip()
    if text.startswith("["):
        host, bracket, tail = text.partition("]")
        if not bracket:
            raise SipParseError("host", 400)
        host, port = host + "]", tail.strip().removeprefix(":").strip()
    else:
        host, _, port = text.partition(":")
        host, port = host.strip(), port.strip()
    if " " in host or "\t" in host:
        raise SipParseError("host", 400)
    if not port:
        return host, None
    if not (port.isascii() and port.isdigit()) or not 0 < int(port[:6]) < 65_536 or len(port) > 5:
        raise SipParseError("port", 400)
    return host, int(port)


def split_values(value: str) -> list[str]:
    """The comma-separated values of one header field, commas in quotes and angle brackets left alone."""
    if "," not in value:
        text = value.strip()
        return [text] if text else []
    values: list[str] = []
    start, quoted, depth, skip = 0, False, 0, False
    for position, char in enumerate(value):
        if skip:
            skip = False
        elif quoted:
            if char == "\\":
                skip = True
            elif char == '"':
                quoted = False
        elif char == '"':
            quoted = True
        elif char == "<":
            depth += 1
        elif char == ">":
            depth = max(0, depth - 1)
        elif char == "," and not depth:
            values.append(value[start:position].strip())
            start = position + 1
    values.append(value[start:].strip())
    return [item for item in values if item]


def tag_of(value: str) -> str:
    """The tag parameter of a From or To value, empty when absent."""
    close = value.rfind(">")
    found = _TAG.search(value, close + 1) if close >= 0 else _TAG.search(value)
    return found.group(1) if found else ""
