"""The signed header between edge and node: which call and leg an INVITE is for.

``X-ARI-HA-Token: <base64url(JSON)>.<hex HMAC-SHA256>``. Only processes holding
the cluster's header key can make one; the header is stripped from every message
that does not come from a node or an edge.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

import msgspec

from ari_ha.wire.link import Rung

HEADER = "X-ARI-HA-Token"
LEG_HEADER = "X-ARI-HA-Leg"
"""`LegToken.name` in the clear, for Asterisk's own records. Nothing trusts it."""
HEADER_PREFIX = "x-ari-ha-"
TOKEN_MAX_CHARS = 2_000
SIGNATURE_HEX_CHARS = 32


class LegToken(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What one INVITE between edge and node is about.

    ``kind``: ``trunk`` (a new call from a carrier), ``agent`` (a call made by an
    agent's phone), ``resume`` (a living leg of a call that moved), ``dial`` (the
    node asks the edge to ring ``target``).

    ``facts`` is the edge's word about every living leg of the call, and it
    overrides the record: leg -> ``ringing`` | ``up`` | ``held``. ``ended`` names
    legs that people ended: leg -> who. ``head``, ``sides``, ``lines`` and ``targets``
    are for legs the record does not know: whose end ends the call, who consults with
    whom (leg -> leg that leads it), of which leg's phone a leg is the second line, and
    whom a leg was dialled to; ``rung`` says it of legs that a queue had rung.
    ``turned_down``: the last attempt that a phone ended. ``asking``: legs whose phones
    asked for a transfer and have not heard how it went; None: the edge does not say.
    """

    kind: str
    call: str
    leg: str
    epoch: str
    target: str = ""
    caller: str = ""
    did: str = ""
    attempt: str = ""
    trunk: str = ""
    user: str = ""
    agent: str = ""
    """Whose phone ``dial`` rings, for the call's record"""
    queue: str = ""
    """Of which queue the caller is whom ``dial`` rings an agent for"""
    consult: str = ""
    """The consulting phone's leg this one is rung for"""
    facts: dict[str, str] = {}
    ended: dict[str, str] = {}
    head: str = ""
    sides: dict[str, str] = {}
    lines: dict[str, str] = {}
    targets: dict[str, str] = {}
    rung: dict[str, Rung] = {}
    turned_down: str = ""
    asking: list[str] | None = None
    pair: str = ""
    """Whose call it is: the edge's pair, known to the node without etcd"""

    @property
    def name(self) -> str:
        """Which leg of which call under which epoch, as a node names the channels it makes."""
        return f"{self.call}.{self.leg}.{self.epoch}"


class BadToken(ValueError):
    """Not a token of this cluster."""


def sign(token: LegToken, key: bytes) -> str:
    """The header value for ``token``. Of the legs that ended, the newest that there is room for: a call
    must not be lost because of its history."""
    text = _signed(token, key)
    while len(text) > TOKEN_MAX_CHARS and token.ended:
        newest = list(token.ended.items())[(len(token.ended) + 1) // 2 :]
        token = msgspec.structs.replace(token, ended=dict(newest))
        text = _signed(token, key)
    return text


def _signed(token: LegToken, key: bytes) -> str:
    body = base64.urlsafe_b64encode(msgspec.json.encode(token)).rstrip(b"=")
    return f"{body.decode()}.{_signature(body, key)}"


def verify(text: str, key: bytes) -> LegToken:
    """The token in a header value. Raises BadToken when it is not genuine."""
    if len(text) > TOKEN_MAX_CHARS:
        raise BadToken("too long")
    body, dot, signature = text.strip().partition(".")
    if not dot or not body.isascii() or not signature.isascii():
        raise BadToken("malformed")
    raw = body.encode()
    if not hmac.compare_digest(_signature(raw, key), signature):
        raise BadToken("wrong signature")
    try:
        data = base64.urlsafe_b64decode(raw + b"=" * (-len(raw) % 4))
        return msgspec.json.decode(data, type=LegToken)
    except (binascii.Error, msgspec.DecodeError) as error:
        raise BadToken(str(error)) from error


def _signature(body: bytes, key: bytes) -> str:
    return hmac.new(key, body, hashlib.sha256).hexdigest()[:SIGNATURE_HEX_CHARS]
