"""What one RTP stream sent and heard, in memory shared between the process that writes and the one that
reads.

Two rings: when each numbered packet was sent, and whether a digit went with it; and every packet heard with
the kernel's arrival time. The writer only appends; the reader looks whenever it likes and asks nobody. The
oldest entries are overwritten.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

HEARD_MAX_RECORDS = 32_768
"""About ten minutes of one voice."""
SENT_MAX_RECORDS = 32_768

_HEARD = struct.Struct("<qIIII")
_SENT = struct.Struct("<q?")
COUNTS_BYTES = 16
_HEARD_AT = COUNTS_BYTES
_SENT_AT = _HEARD_AT + HEARD_MAX_RECORDS * _HEARD.size
LOG_BYTES = _SENT_AT + SENT_MAX_RECORDS * _SENT.size


class Heard(NamedTuple):
    """One received packet; see `rtp.classify` for the last three."""

    at_ns: int
    kind: int
    source: int
    number: int
    extra: int


class StreamLog:
    """The two rings of one stream over a file descriptor of `LOG_BYTES` bytes of memory."""

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, LOG_BYTES)
        # One store of eight bytes each. `struct` clears a field before it fills it: a reader in between would
        # see a stream that has heard nothing.
        self._counts = memoryview(self._memory)[:COUNTS_BYTES].cast("Q")
        self._heard, self._sent = self._counts

    @staticmethod
    def make_fd() -> int:
        """A descriptor of fresh shared memory; the caller closes it."""
        fd = os.memfd_create("ari-ha-stream")
        os.ftruncate(fd, LOG_BYTES)
        return fd

    def close(self) -> None:
        """Lets go of the memory."""
        self._counts.release()
        self._memory.close()

    # --- the writer's side ---

    def add_heard(self, at_ns: int, kind: int, source: int, number: int, extra: int) -> None:
        """A packet arrived."""
        slot = self._heard % HEARD_MAX_RECORDS
        _HEARD.pack_into(self._memory, _HEARD_AT + slot * _HEARD.size, at_ns, kind, source, number, extra)
        self._heard += 1
        self._counts[0] = self._heard

    def add_sent(self, at_ns: int, typing: bool = False) -> None:
        """The next number was sent, and a packet of a digit beside it or not."""
        slot = self._sent % SENT_MAX_RECORDS
        _SENT.pack_into(self._memory, _SENT_AT + slot * _SENT.size, at_ns, typing)
        self._sent += 1
        self._counts[1] = self._sent

    # --- the reader's side ---

    def heard(self, since_ns: int = 0, until_ns: int = 1 << 62) -> Iterator[Heard]:
        """Packets that arrived in the window, oldest first."""
        count = self.heard_total()
        first = max(0, count - HEARD_MAX_RECORDS + 64)
        for index in range(self._first_since(first, count, since_ns), count):
            record = Heard(
                *_HEARD.unpack_from(self._memory, _HEARD_AT + index % HEARD_MAX_RECORDS * _HEARD.size)
            )
            if record.at_ns >= until_ns:
                return
            yield record

    def _first_since(self, low: int, high: int, since_ns: int) -> int:
        """Index of the first record not older than ``since_ns``: arrivals are in order to within
        milliseconds."""
        since_ns -= 1
        while low < high:
            middle = (low + high) // 2
            (at_ns,) = struct.unpack_from(
                "<q", self._memory, _HEARD_AT + middle % HEARD_MAX_RECORDS * _HEARD.size
            )
            if at_ns < since_ns:
                low = middle + 1
            else:
                high = middle
        return low

    def heard_total(self) -> int:
        """Packets heard since the stream began."""
        return self._counts[0]

    def sent_total(self) -> int:
        """Numbers sent since the stream began: the last number used."""
        return self._counts[1]

    def sent_at(self, number: int) -> int | None:
        """When ``number`` was sent; None when it was not, or too long ago to be known."""
        record = self._sent_record(number)
        return None if record is None else record[0]

    def typed_with(self, number: int) -> bool:
        """Whether a packet of a digit went with ``number``; also False when that is not known any more."""
        record = self._sent_record(number)
        return record is not None and record[1]

    def _sent_record(self, number: int) -> tuple[int, bool] | None:
        count = self.sent_total()
        if not max(0, count - SENT_MAX_RECORDS) < number <= count:
            return None
        slot = (number - 1) % SENT_MAX_RECORDS
        at_ns, typing = _SENT.unpack_from(self._memory, _SENT_AT + slot * _SENT.size)
        return at_ns, typing

    def sent(self, since_ns: int = 0, until_ns: int = 1 << 62) -> list[tuple[int, int]]:
        """(number, when) of the packets sent in the window."""
        count = self.sent_total()
        found: list[tuple[int, int]] = []
        for number in range(count, max(0, count - SENT_MAX_RECORDS), -1):
            at_ns = self.sent_at(number)
            if at_ns is None or at_ns < since_ns:
                break
            if at_ns < until_ns:
                found.append((number, at_ns))
        found.reverse()
        return found
