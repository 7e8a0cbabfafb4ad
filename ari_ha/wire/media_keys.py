"""SRTP keys kept apart: what is stored under ``dialogs/`` has marks in their place, and the
keys are in ``secret/dialogs/``, which has an etcd role of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence

KEYS_MAX = 256
"""Keys of one call. A far end may say more of them; those are nobody's, and not kept."""
_KEY = re.compile(rb"inline:([A-Za-z0-9+/=|^:]{16,160}|@(?:\d{1,3})?@)")
"""A key; or what looks like a mark in what a far end says: it must not become a key when it is read back"""
_MARK = re.compile(rb"inline:@(\d{1,3})@")


def hide(data: bytes) -> tuple[bytes, list[str]]:
    """JSON with marks in place of keys, and the keys by number."""
    keys: dict[bytes, int] = {}

    def mark(found: re.Match[bytes]) -> bytes:
        key = found.group(1)
        if key not in keys and len(keys) == KEYS_MAX:
            return b"inline:@@"
        return b"inline:@%d@" % keys.setdefault(key, len(keys))

    return _KEY.sub(mark, data), [key.decode() for key in keys]


def show(data: bytes, keys: Sequence[str]) -> bytes:
    """The JSON as it was. Raises ValueError when a key is missing."""

    def key(found: re.Match[bytes]) -> bytes:
        number = int(found.group(1))
        if number >= len(keys):
            raise ValueError(f"key {number} of {len(keys)} is missing")
        return b"inline:" + keys[number].encode()

    return _MARK.sub(key, data)
