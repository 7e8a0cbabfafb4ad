"""Datagrams of the edge pair: between the two guards, and between a guard and the edge
process beside it. Small, authenticated, lost without harm.

On the wire: an HMAC-SHA256 of the rest (RFC 2104), then one JSON object with its
``type``. A field the reader does not know is ignored, one the writer does not know has a
default. Revisions are etcd's mod_revision of ``vips/<vip>``: the fencing token.
"""

from __future__ import annotations

import hashlib
import hmac

import msgspec

DATAGRAM_MAX_BYTES = 1200
TAG_BYTES = 32
KEY_MIN_BYTES = 16


class Beat(msgspec.Struct, frozen=True, tag=True, tag_field="type", omit_defaults=True):
    """One guard's heartbeat, sent on every path."""

    vip: str
    edge: str
    process: str
    """This life of the guard."""
    n: int
    """Counts beats of this life: an old datagram sent again is not heard."""
    heard: int = 0
    """The last ``n`` heard of the peer's present life."""
    heard_process: str = ""
    """That life."""
    active: bool = False
    """The addresses are held here."""
    revision: int = 0
    """While active: the revision they are held by."""
    fit: bool = False
    """Could serve: edge process and relay answer."""
    yields: bool = False
    """While active: please take the addresses."""


class EdgeWord(msgspec.Struct, frozen=True, tag=True, tag_field="type", omit_defaults=True):
    """The edge process to its guard, several times a second: it is alive."""

    edge: str
    process: str
    """This life of the edge process."""
    warm: bool = False
    """It has read every call, or serves them."""
    revision: int = 0
    """The revision it serves by; 0: it stands by."""


class RoleWord(msgspec.Struct, frozen=True, tag=True, tag_field="type", omit_defaults=True):
    """The guard to its edge process, at once when it changes and then again and again."""

    edge: str
    process: str
    """The life of the edge process that is meant; others ignore it."""
    revision: int = 0
    """Serve by this revision; 0: stand by."""
    after: int = 0
    """While standing by: the newest revision the guard knows of. A life that serves by a
    newer one has heard of it from etcd before its guard has."""


Word = Beat | EdgeWord | RoleWord
_DECODER = msgspec.json.Decoder(Word)
_ENCODER = msgspec.json.Encoder()


def seal(key: bytes, word: Word) -> bytes:
    """The datagram of a word."""
    body = _ENCODER.encode(word)
    return _tag(key, body) + body


def unseal(key: bytes, data: bytes) -> Word | None:
    """The word of a datagram; None when it is not from somebody with the key."""
    tag, body = data[:TAG_BYTES], data[TAG_BYTES:]
    if len(data) > DATAGRAM_MAX_BYTES or not hmac.compare_digest(tag, _tag(key, body)):
        return None
    try:
        return _DECODER.decode(body)
    except msgspec.DecodeError:
        return None


def _tag(key: bytes, body: bytes) -> bytes:
    return hmac.digest(key, body, hashlib.sha256)
