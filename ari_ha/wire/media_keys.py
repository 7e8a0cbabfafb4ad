"""SRTP keys kept apart: what is stored under ``dialogs/`` has marks in their place, and the
keys are in ``secret/dialogs/``, which has an etcd role of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence

KEYS_MAX = 256
"""Keys of one call; a record with more is not one of ours."""
_KEY = re.compile(rb"inline:([A-Za-z0-9+/=|^:]{16,160})")
_MARK = re.compile(rb"inline:@(\d{1,3})@")


def hide(data: bytes) -> tuple[bytes, list[str]]:
    """JSON with marks in place of keys, and the keys by number. Raises ValueError on more
    than `KEYS_MAX`."""
    keys: dict[bytes, int] = {}

    def mark(found: re.Match[bytes]) -> bytes:
        return b"inline:@%d@" % keys.setdefault(found.group(1), len(keys))

    hidden = _KEY.sub(mark, data)
    if len(keys) > KEYS_MAX:
        raise ValueError(f"{len(keys)} keys, limit {KEYS_MAX}")
    return hidden, [key.decode() for key in keys]


def show(data: bytes, keys: Sequence[str]) -> bytes:
    """The JSON as it was. Raises ValueError when a key is missing."""

    def key(found: re.Match[bytes]) -> bytes:
        number = int(found.group(1))
        if number >= len(keys):
            raise ValueError(f"key {number} of {len(keys)} is missing")
        return b"inline:" + keys[number].encode()

    return _MARK.sub(key, data)
