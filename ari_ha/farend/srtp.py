"""SRTP of a far end's stream, with keys from SDP (RFC 3711, RFC 4568)."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass

KEY_BYTES = 30
"""Master key and salt of the AES_CM_128 suites."""


@dataclass(frozen=True, slots=True)
class Keys:
    """What the two descriptions agreed on; keys as SDP writes them: ``inline:...``."""

    suite: str
    ours: str
    theirs: str


def new_key() -> str:
    """A key of our own, as SDP writes it."""
    return "inline:" + base64.b64encode(os.urandom(KEY_BYTES)).decode()


class Sealer:
    """Both directions of one stream. A direction whose key stays goes on where it was; one with another
    key begins anew, its rollover counter at zero."""

    def __init__(self) -> None:
        # Only whoever speaks SRTP needs the library.
        from pylibsrtp import Error, Policy, Session

        self.Error = Error
        self._policy, self._session = Policy, Session
        self._keys: Keys | None = None
        self._out: Session | None = None
        self._in: Session | None = None

    def agree(self, keys: Keys) -> None:
        """Takes the keys of the newest description."""
        old = self._keys
        if old is None or (old.suite, old.ours) != (keys.suite, keys.ours):
            self._out = self._new(keys.suite, keys.ours, self._policy.SSRC_ANY_OUTBOUND)
        if old is None or (old.suite, old.theirs) != (keys.suite, keys.theirs):
            self._in = self._new(keys.suite, keys.theirs, self._policy.SSRC_ANY_INBOUND)
        self._keys = keys

    def _new(self, suite: str, key: str, direction: int):  # type: ignore[no-untyped-def]
        text = key.removeprefix("inline:").partition("|")[0]
        profile = getattr(self._policy, f"SRTP_PROFILE_{suite.replace('AES_CM_128_HMAC', 'AES128_CM')}")
        return self._session(self._policy(base64.b64decode(text), ssrc_type=direction, srtp_profile=profile))

    def seal(self, packet: bytes | bytearray) -> bytes:
        """An RTP packet as it goes out."""
        return self._out.protect(bytes(packet))  # type: ignore[union-attr]

    def unseal(self, packet: bytes) -> bytes | None:
        """An RTP packet that came, None when it cannot be read."""
        try:
            return self._in.unprotect(packet)  # type: ignore[union-attr]
        except self.Error:
            return None
