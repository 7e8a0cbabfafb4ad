"""SIP messages (RFC 3261 section 7): a quick, tolerant splitter and the two message classes.

Nothing is validated on the way in beyond what framing and safety need: header values stay strings, and each
typed view (`cseq`, `top_via`, tags) is computed when first asked for. A view that cannot be read raises
`SipParseError`, whose status is what a UAS answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ari_ha.sip.fields import (
    CANONICAL,
    SIP_VERSION,
    SipParseError,
    Via,
    canonical,
    parse_via,
    split_values,
    tag_of,
)

__all__ = [
    "HEADERS_MAX_COUNT",
    "LINE_MAX_BYTES",
    "MESSAGE_MAX_BYTES",
    "SIP_VERSION",
    "Message",
    "Request",
    "Response",
    "SipParseError",
    "Via",
    "canonical",
    "parse_message",
    "parse_via",
    "split_values",
    "tag_of",
]

MESSAGE_MAX_BYTES = 65_535
"""The largest message taken: the largest UDP datagram."""
HEADERS_MAX_COUNT = 256
"""Header fields of one message."""
LINE_MAX_BYTES = 8_192
"""The longest header line, after unfolding, in characters."""


_TOKEN = re.compile(r"[A-Za-z0-9\-.!%*_+`'~]+\Z")
_VERSION = re.compile(r"SIP/\d+\.\d+\Z", re.IGNORECASE)
_LENGTH_NAMES = frozenset(("Content-Length", "content-length", "l", "L"))
_BREAKS = re.compile(r"[\r\n\0]+")


class Message:
    """What requests and responses share: an ordered header list and a body.

    Change headers through `add`, `set` and `remove` only: look-ups keep an index.
    """

    __slots__ = ("_index", "_indexed", "body", "headers")

    def __init__(self, headers: Iterable[tuple[str, str]] = (), body: bytes = b"") -> None:
        self.headers: list[tuple[str, str]] = list(headers)
        self.body = body
        self._index: dict[str, list[str]] = {}
        self._indexed = -1

    def _look(self) -> dict[str, list[str]]:
        if self._indexed != len(self.headers):
            index: dict[str, list[str]] = {}
            known = CANONICAL
            for name, value in self.headers:
                key = known.get(name) or canonical(name)
                if key in index:
                    index[key].append(value)
                else:
                    index[key] = [value]
            self._index = index
            self._indexed = len(self.headers)
        return self._index

    def get(self, name: str, default: str = "") -> str:
        """The first field of that name, long or compact, in any case."""
        found = self._look().get(CANONICAL.get(name) or canonical(name))
        return found[0] if found else default

    def has(self, name: str) -> bool:
        """Whether a field of that name is there."""
        return canonical(name) in self._look()

    def get_all(self, name: str) -> list[str]:
        """All fields of that name, not split at commas."""
        return list(self._look().get(canonical(name), ()))

    def values(self, name: str) -> list[str]:
        """All values of that name, split at commas (RFC 3261 section 7.3.1)."""
        return [item for field in self._look().get(canonical(name), ()) for item in split_values(field)]

    def repeated(self, names: Iterable[str]) -> bool:
        """Whether one of these fields (canonical names) is there more than once."""
        index = self._look()
        return any(len(index.get(name, ())) > 1 for name in names)

    def tokens(self, name: str) -> set[str]:
        """The values of a token list such as Supported or Require, in lower case."""
        return {item.lower() for item in self.values(name)}

    def add(self, name: str, value: str) -> None:
        """Append a field."""
        self.headers.append((name, value))
        self._indexed = -1

    def set(self, name: str, value: str) -> None:
        """Replace all fields of that name by one, at the place of the first."""
        key = canonical(name)
        kept: list[tuple[str, str]] = []
        done = False
        for field in self.headers:
            if canonical(field[0]) != key:
                kept.append(field)
            elif not done:
                kept.append((name, value))
                done = True
        if not done:
            kept.append((name, value))
        self.headers = kept
        self._indexed = -1

    def remove(self, name: str) -> None:
        """Take all fields of that name away."""
        key = canonical(name)
        self.headers = [field for field in self.headers if canonical(field[0]) != key]
        self._indexed = -1

    @property
    def call_id(self) -> str:
        """The Call-ID."""
        return self.get("Call-ID")

    @property
    def cseq(self) -> tuple[int, str]:
        """Sequence number and method of CSeq (section 20.16: below 2**31)."""
        number, _, method = self.get("CSeq").strip().partition(" ")
        method = method.strip()
        if not (number.isascii() and number.isdigit()) or len(number) > 10 or not method:
            raise SipParseError("cseq", 400)
        value = int(number)
        if value >= 2**31:
            raise SipParseError("cseq", 400)
        return value, method

    @property
    def from_tag(self) -> str:
        """The tag of From."""
        return tag_of(self.get("From"))

    @property
    def to_tag(self) -> str:
        """The tag of To."""
        return tag_of(self.get("To"))

    @property
    def top_via(self) -> Via:
        """The topmost Via."""
        fields = self._look().get("via")
        if not fields:
            raise SipParseError("via", 400)
        first = split_values(fields[0])
        if not first:
            raise SipParseError("via", 400)
        return parse_via(first[0])

    def _start_line(self) -> str:
        raise NotImplementedError

    def serialise(self) -> bytes:
        """The bytes on the wire, Content-Length computed; no header can smuggle in a line break."""
        lines = [self._start_line()]
        lines += [f"{name}: {value}" for name, value in self.headers if name not in _LENGTH_NAMES]
        text = "\r\n".join(lines)
        breaks = len(lines) - 1
        if text.count("\n") != breaks or text.count("\r") != breaks or "\0" in text:
            return self._serialise_carefully()
        return f"{text}\r\nContent-Length: {len(self.body)}\r\n\r\n".encode("utf-8", "replace") + self.body

    def _serialise_carefully(self) -> bytes:
        lines = [_BREAKS.sub(" ", self._start_line())]
        for name, value in self.headers:
            if canonical(name) != "content-length":
                lines.append(f"{_BREAKS.sub('', name)}: {_BREAKS.sub(' ', value)}")
        lines.append(f"Content-Length: {len(self.body)}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "replace") + self.body


class Request(Message):
    """A SIP request."""

    __slots__ = ("method", "uri")

    def __init__(
        self, method: str, uri: str, headers: Iterable[tuple[str, str]] = (), body: bytes = b""
    ) -> None:
        super().__init__(headers, body)
        self.method = method
        self.uri = uri

    def _start_line(self) -> str:
        return f"{self.method} {self.uri} {SIP_VERSION}"

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.uri} {self.call_id}>"


class Response(Message):
    """A SIP response."""

    __slots__ = ("reason", "status")

    def __init__(
        self, status: int, reason: str, headers: Iterable[tuple[str, str]] = (), body: bytes = b""
    ) -> None:
        super().__init__(headers, body)
        self.status = status
        self.reason = reason

    def _start_line(self) -> str:
        return f"{SIP_VERSION} {self.status:03d} {self.reason}"

    def __repr__(self) -> str:
        return f"<Response {self.status} {self.get('CSeq')} {self.call_id}>"


def _split_head(data: bytes) -> tuple[str, bytes]:
    """Header text with lone line feeds tolerated, and what follows it."""
    end = data.find(b"\r\n\r\n")
    if end >= 0:
        return data[:end].decode("utf-8", "replace"), data[end + 4 :]
    end = data.find(b"\n\n")
    if end >= 0:
        head, body = data[:end], data[end + 2 :]
    else:
        head, body = data.rstrip(b"\r\n"), b""
    text = head.decode("utf-8", "replace")
    return text.replace("\r\n", "\n").replace("\n", "\r\n"), body


def _read_headers(lines: Sequence[str], headers: list[tuple[str, str]]) -> None:
    """Fill in the fields of the header lines, folded ones joined (section 7.3.1).

    A line that is none does not hide those after it: a 400 needs them to find its way back.
    """
    problem: SipParseError | None = None
    for line in lines:
        name, colon, value = line.partition(":")
        if colon and name in CANONICAL and len(line) <= LINE_MAX_BYTES:
            headers.append((name, value.strip(" \t")))
            continue
        try:
            _read_header(line, headers)
        except SipParseError as error:
            problem = error
    if problem is not None:
        raise problem


def _read_header(line: str, headers: list[tuple[str, str]]) -> None:
    """One header line; LINE_MAX_BYTES holds for what folding joins too."""
    if len(line) > LINE_MAX_BYTES:
        raise SipParseError("line-too-long", 400)
    if line[:1] in (" ", "\t"):
        if not headers:
            raise SipParseError("folding", 400)
        name, value = headers[-1]
        joined = f"{value} {line.strip()}".strip()
        if len(joined) > LINE_MAX_BYTES:
            raise SipParseError("line-too-long", 400)
        headers[-1] = (name, joined)
        return
    name, colon, value = line.partition(":")
    name = name.rstrip(" \t")
    if not colon or (name not in CANONICAL and not _TOKEN.match(name)):
        raise SipParseError("header-name", 400)
    if len(name) == 14 and name.lower() == "content-length":
        name = "Content-Length"
    headers.append((name, value.strip(" \t")))


def _start(line: str) -> Request | Response:
    """The message a start line opens."""
    first, _, rest = line.partition(" ")
    if first == SIP_VERSION or _VERSION.match(first):
        if first.upper() != SIP_VERSION:
            raise SipParseError("version")
        code, _, reason = rest.partition(" ")
        if len(code) != 3 or not (code.isascii() and code.isdigit()) or not 100 <= int(code) <= 699:
            raise SipParseError("status-line")
        return Response(int(code), reason.strip())
    uri, _, version = rest.strip().rpartition(" ")
    uri = uri.strip()
    request = Request(first, uri)
    if not _VERSION.match(version) or not _TOKEN.match(first):
        raise SipParseError("start-line")
    if version.upper() != SIP_VERSION:
        raise SipParseError("version", 505, request)
    if not uri or " " in uri or "\t" in uri or uri.startswith("<"):
        raise SipParseError("request-uri", 400, request)
    return request


def parse_message(data: bytes) -> Request | Response:
    """One whole message; Content-Length is enforced, bytes beyond it are dropped (section 18.3)."""
    if len(data) > MESSAGE_MAX_BYTES:
        raise SipParseError("message-too-large")
    text, body = _split_head(data.lstrip(b"\r\n") if data[:1] in (b"\r", b"\n") else data)
    lines = text.split("\r\n")
    problem: SipParseError | None = None
    try:
        message = _start(lines[0])
    except SipParseError as error:
        if error.request is None:
            raise
        problem, message = error, error.request
    request = message if isinstance(message, Request) else None
    breaks = len(lines) - 1
    if breaks > HEADERS_MAX_COUNT:
        raise SipParseError("too-many-headers")
    if text.count("\n") != breaks or text.count("\r") != breaks or "\0" in text:
        raise SipParseError("control-character")
    try:
        _read_headers(lines[1:], message.headers)
        _take_body(message, body)
    except SipParseError as error:
        error.request = request
        raise
    if problem is not None:
        raise problem
    return message


def _take_body(message: Request | Response, body: bytes) -> None:
    length = message.get("Content-Length", "")
    if not length:
        message.body = body
        return
    if not (length.isascii() and length.isdigit()) or len(length) > 9:
        raise SipParseError("content-length", 400)
    size = int(length)
    if size > len(body):
        raise SipParseError("content-length", 400)
    message.body = body[:size]
