"""rtpengine's NG protocol: a cookie, a space, a bencoded dictionary (UDP).

Source: rtpengine, docs/ng_control_protocol.md. Text is UTF-8; numbers are
integers. A request repeated with the same cookie gets the same reply, which is
what makes retransmission harmless; cookies are remembered by rtpengine across
clients, so their prefix must be new in every process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Union

NgValue = Union[str, int, "list[NgValue]", "dict[str, NgValue]"]

NG_MESSAGE_MAX_BYTES = 65_507
NG_NESTING_MAX = 32


class NgError(ValueError):
    """Bytes that are not an NG message."""


def encode(cookie: str, command: str, body: Mapping[str, object]) -> bytes:
    """One request. Raises NgError when it does not fit a datagram."""
    out: list[bytes] = [cookie.encode(), b" "]
    _bencode({"command": command, **body}, out)
    data = b"".join(out)
    if len(data) > NG_MESSAGE_MAX_BYTES:
        raise NgError(f"{command} is {len(data)} bytes, limit {NG_MESSAGE_MAX_BYTES}")
    return data


def decode(data: bytes) -> tuple[str, dict[str, NgValue]]:
    """Cookie and dictionary of one message. Raises NgError on anything else."""
    cookie, space, body = data.partition(b" ")
    if not space:
        raise NgError("no cookie")
    value, end = _bdecode(body, 0, 0)
    if not isinstance(value, dict) or end != len(body):
        raise NgError("not one dictionary")
    return cookie.decode("utf-8", "replace"), value


def _bencode(value: object, out: list[bytes]) -> None:
    if isinstance(value, str):
        raw = value.encode()
        out.append(b"%d:" % len(raw))
        out.append(raw)
    elif isinstance(value, bool):
        raise TypeError("NG has no booleans: use a flag")
    elif isinstance(value, int):
        out.append(b"i%de" % value)
    elif isinstance(value, Mapping):
        out.append(b"d")
        for key, item in value.items():
            _bencode(str(key), out)
            _bencode(item, out)
        out.append(b"e")
    elif isinstance(value, Sequence):
        out.append(b"l")
        for item in value:
            _bencode(item, out)
        out.append(b"e")
    else:
        raise TypeError(f"NG cannot carry {type(value).__name__}")


def _bdecode(data: bytes, at: int, depth: int) -> tuple[NgValue, int]:
    if depth > NG_NESTING_MAX:
        raise NgError("nested too deeply")
    lead = data[at : at + 1]
    if lead == b"i":
        end = data.find(b"e", at)
        return _integer(data[at + 1 : end] if end > 0 else b""), end + 1
    if lead == b"l":
        items: list[NgValue] = []
        at += 1
        while data[at : at + 1] != b"e":
            item, at = _bdecode(data, at, depth + 1)
            items.append(item)
        return items, at + 1
    if lead == b"d":
        table: dict[str, NgValue] = {}
        at += 1
        while data[at : at + 1] != b"e":
            key, at = _bdecode(data, at, depth + 1)
            if not isinstance(key, str):
                raise NgError("a key that is not text")
            table[key], at = _bdecode(data, at, depth + 1)
        return table, at + 1
    colon = data.find(b":", at, at + 12)
    if not lead.isdigit() or colon < 0:
        raise NgError(f"unexpected byte at {at}")
    length = _integer(data[at:colon])
    start = colon + 1
    if start + length > len(data):
        raise NgError("text runs past the end")
    return data[start : start + length].decode("utf-8", "replace"), start + length


def _integer(text: bytes) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise NgError(f"not a number: {text[:20]!r}") from error
