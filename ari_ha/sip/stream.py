"""Framing of SIP over a byte stream (RFC 3261 section 18.3, keep-alives of RFC 5626 section 4.4.1)."""

from __future__ import annotations

import re

from ari_ha.sip.message import MESSAGE_MAX_BYTES

HEAD_MAX_BYTES = MESSAGE_MAX_BYTES
"""Start line and headers of one message."""
PINGS_MAX_COUNT = 64
"""Keep-alive pings answered per read; the rest are one peer's nonsense."""

_LENGTH = re.compile(rb"\r?\n(?:content-length|l)[ \t]*:[ \t]*(\d{1,9})[ \t]*\r?\n", re.IGNORECASE)
_END = re.compile(rb"\r?\n\r?\n")


class StreamFramer:
    """Cuts the bytes of one connection into messages.

    A stream that cannot be framed sets `broken` to the reason and yields nothing any more: nobody can know
    where
    the next message begins, so the connection has to be closed.
    """

    __slots__ = ("_buffer", "_need", "_searched", "broken", "pings")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._need = 0
        """Bytes that must be there before looking again."""
        self._searched = 0
        """Bytes in which no end of the head begins."""
        self.broken: str | None = None
        self.pings = 0
        """Double-CRLF pings seen and not yet taken."""

    def take_pings(self) -> int:
        """How many pings arrived since the last call; each is answered with one CRLF."""
        count, self.pings = self.pings, 0
        return count

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that are complete now."""
        if self.broken is not None:
            return []
        buffer = self._buffer
        buffer += data
        messages: list[bytes] = []
        while self.broken is None:
            self._skip_line_ends()
            if len(buffer) < max(self._need, 1):
                break
            message = self._cut()
            if message is None:
                break
            messages.append(message)
        if self.broken is not None:
            buffer.clear()
        return messages

    def _skip_line_ends(self) -> None:
        """Line ends before a start line are ignored (section 7.5); four bytes of them are a ping."""
        buffer = self._buffer
        while buffer[:4] == b"\r\n\r\n":
            del buffer[:4]
            self.pings = min(self.pings + 1, PINGS_MAX_COUNT)
        if buffer[:2] == b"\r\n" and len(buffer) > 3:
            del buffer[:2]
            self._skip_line_ends()

    def _cut(self) -> bytes | None:
        buffer = self._buffer
        if buffer[:2] == b"\r\n" or buffer == b"\r":
            return None
        end = _END.search(buffer, self._searched)
        if end is None:
            self._searched = max(0, len(buffer) - 3)
            if len(buffer) > HEAD_MAX_BYTES:
                self.broken = "head-too-large"
            return None
        if end.end() > HEAD_MAX_BYTES:
            self.broken = "head-too-large"
            return None
        length = _LENGTH.search(buffer, 0, end.end())
        if length is None:
            self.broken = "no-content-length"
            return None
        total = end.end() + int(length.group(1))
        if total > MESSAGE_MAX_BYTES:
            self.broken = "message-too-large"
            return None
        if len(buffer) < total:
            self._need, self._searched = total, end.start()
            return None
        self._need = self._searched = 0
        message = bytes(buffer[:total])
        del buffer[:total]
        return message
