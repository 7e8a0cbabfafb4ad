"""SIP URIs and name-addr values (RFC 3261 sections 19.1 and 20.10), read tolerantly and quickly."""

from __future__ import annotations

from ari_ha.sip.fields import SipParseError, split_host_port

SCHEMES = ("sip", "sips", "tel")
"""The schemes served; a Request-URI of another one is answered 416 (section 8.2.2.1)."""

Params = dict[str, str | None]


def parse_params(text: str) -> Params:
    """The `;name=value` parameters of a header value or URI; quoted values keep their quotes."""
    params: Params = {}
    for item in split_outside_quotes(text, ";"):
        name, equals, value = item.partition("=")
        name = name.strip().lower()
        if name:
            params[name] = value.strip() if equals else None
    return params


def format_params(params: Params) -> str:
    """The parameters with their leading semicolons."""
    return "".join(f";{name}" if value is None else f";{name}={value}" for name, value in params.items())


def split_outside_quotes(text: str, separator: str) -> list[str]:
    """Split outside quotes."""
    if '"' not in text:
        return text.split(separator)
    parts: list[str] = []
    start, quoted, skip = 0, False, False
    for position, char in enumerate(text):
        if skip:
            skip = False
        elif char == "\\" and quoted:
            skip = True
        elif char == '"':
            quoted = not quoted
        elif char == separator and not quoted:
            parts.append(text[start:position])
            start = position + 1
    parts.append(text[start:])
    return parts


class SipUri:
    """`scheme:user:password@host:port;params?headers`; a tel URI has its number as `user` and no host."""

    __slots__ = ("headers", "host", "params", "password", "port", "scheme", "user")

    def __init__(
        self,
        host: str,
        user: str = "",
        port: int | None = None,
        *,
        scheme: str = "sip",
        password: str = "",
        params: Params | None = None,
        headers: str = "",
    ) -> None:
        self.scheme = scheme
        self.user = user
        self.password = password
        self.host = host
        self.port = port
        self.params: Params = params if params is not None else {}
        self.headers = headers

    @classmethod
    def parse(cls, text: str) -> SipUri:
        """The URI in `text`; SipParseError (400, or 416 for a foreign scheme) when it is none."""
        text = text.strip()
        scheme, colon, rest = text.partition(":")
        scheme = scheme.lower()
        if not colon or not rest or not scheme.replace("+", "").replace("-", "").replace(".", "").isalnum():
            raise SipParseError("uri", 400)
        if scheme not in SCHEMES:
            raise SipParseError("uri-scheme", 416)
        if any(char in rest for char in ' \t<>"\r\n'):
            raise SipParseError("uri", 400)
        if scheme == "tel":
            user, _, raw = rest.partition(";")
            return cls("", user, scheme=scheme, params=parse_params(raw) if raw else {})
        user, password = "", ""
        before, at, after = rest.rpartition("@")
        if at:
            user, _, password = before.partition(":")
            rest = after
        rest, _, headers = rest.partition("?")
        address, _, raw = rest.partition(";")
        host, port = split_host_port(address)
        if not host:
            raise SipParseError("uri", 400)
        params = parse_params(raw) if raw else {}
        return cls(host, user, port, scheme=scheme, password=password, params=params, headers=headers)

    @property
    def loose(self) -> bool:
        """Whether the `lr` parameter is there (section 19.1.1)."""
        return "lr" in self.params

    @property
    def aor(self) -> str:
        """scheme:user@host without port and parameters, the host in lower case."""
        if self.scheme == "tel":
            return f"tel:{self.user}"
        return f"{self.scheme}:{self.user}@{self.host.lower()}" if self.user else f"{self.scheme}:{self.host}"

    def same_target(self, other: SipUri) -> bool:
        """Whether user, host and port agree (the part of section 19.1.4 that matters to authentication)."""
        mine = (self.user, self.host.lower(), self.port or 5060)
        return mine == (other.user, other.host.lower(), other.port or 5060)

    def __str__(self) -> str:
        if self.scheme == "tel":
            return f"tel:{self.user}{format_params(self.params)}"
        password = f":{self.password}" if self.password else ""
        user = f"{self.user}{password}@" if self.user or password else ""
        port = f":{self.port}" if self.port is not None else ""
        headers = f"?{self.headers}" if self.headers else ""
        return f"{self.scheme}:{user}{self.host}{port}{format_params(self.params)}{headers}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SipUri) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __repr__(self) -> str:
        return f"<SipUri {self}>"


class NameAddr:
    """`"display" <uri>;params` or the short form `uri;params` (where the parameters are the header's)."""

    __slots__ = ("display", "params", "uri")

    def __init__(self, uri: str, display: str = "", params: Params | None = None) -> None:
        self.uri = uri
        self.display = display
        self.params: Params = params if params is not None else {}

    @classmethod
    def parse(cls, text: str) -> NameAddr:
        """The first name-addr of a header value; SipParseError(400) when there is none."""
        text = text.strip()
        if text == "*":
            return cls("*")
        display = ""
        if text.startswith('"'):
            end = _closing_quote(text)
            display = unquote(text[: end + 1])
            text = text[end + 1 :].lstrip()
            if not text.startswith("<"):
                raise SipParseError("name-addr", 400)
        opening = text.find("<")
        if opening < 0:
            uri, _, raw = text.partition(";")
            if not uri.strip():
                raise SipParseError("name-addr", 400)
            return cls(uri.strip(), "", parse_params(raw) if raw else {})
        closing = text.find(">", opening)
        if closing < 0:
            raise SipParseError("name-addr", 400)
        uri = text[opening + 1 : closing].strip()
        if not uri:
            raise SipParseError("name-addr", 400)
        raw = text[closing + 1 :].partition(";")[2]
        return cls(uri, display or text[:opening].strip(), parse_params(raw) if raw else {})

    @property
    def tag(self) -> str:
        """The tag parameter, empty when absent."""
        return self.params.get("tag") or ""

    @property
    def sip_uri(self) -> SipUri:
        """The URI, parsed."""
        return SipUri.parse(self.uri)

    def __str__(self) -> str:
        name = f"{quote(self.display)} " if self.display else ""
        return f"{name}<{self.uri}>{format_params(self.params)}"

    def __repr__(self) -> str:
        return f"<NameAddr {self}>"


def _closing_quote(text: str) -> int:
    skip = False
    for position in range(1, len(text)):
        if skip:
            skip = False
        elif text[position] == "\\":
            skip = True
        elif text[position] == '"':
            return position
    raise SipParseError("name-addr", 400)


def quote(text: str) -> str:
    """A quoted-string (section 25.1)."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def unquote(text: str) -> str:
    """The content of a quoted-string; other text as it is."""
    text = text.strip()
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        return text
    inner = text[1:-1]
    if "\\" not in inner:
        return inner
    out: list[str] = []
    skip = False
    for char in inner:
        if char == "\\" and not skip:
            skip = True
            continue
        out.append(char)
        skip = False
    return "".join(out)
