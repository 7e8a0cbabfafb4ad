"""The process that sends and receives the far ends' RTP.

Its loop wakes every 5 ms: sends what is due (a quarter of the streams each time, on an absolute schedule),
then reads what has come. Arrivals carry the kernel's timestamps, so its own sleep does not show as a gap.
Orders come over a socketpair, one JSON object each; sockets and the memory of the logs come with them as
descriptors."""

from __future__ import annotations

import gc
import json
import os
import select
import socket
import struct
import sys
import time
from typing import Any

from ari_ha.farend import rtp
from ari_ha.farend.srtp import Keys, Sealer
from ari_ha.farend.streamlog import StreamLog

SLOT_S = 0.005
SLOTS = 4
CATCH_UP_PACKETS_MAX = 25
"""Packets sent in a burst after the process itself was late; beyond it the rest is not sent (nor
numbered)."""
READ_ROUNDS_MAX = 16
ORDER_MAX_BYTES = 65_536
_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("qq")
_TIMESTAMP_SPACE = socket.CMSG_SPACE(_TIMESPEC.size)


class _Stream:
    """One RTP stream: a socket, where to send, what is being said."""

    def __init__(self, order: dict[str, Any], sock: socket.socket, log: StreamLog) -> None:
        self.id: int = order["stream"]
        self.sock = sock
        self.log = log
        self.remote: tuple[str, int] | None = None
        self.talking = False
        self.pt = rtp.PT_PCMA
        self.event_pt = 101
        self.event_pt_in = 101
        self.ssrc: int = order["ssrc"]
        self.sequence: int = order["sequence"]
        self.timestamp: int = order["timestamp"]
        self.number = 0
        self.packet = rtp.voice_buffer(self.id, self.ssrc, order["hertz"])
        self.digits: list[str] = []
        self.gap_packets = 0
        self.digit_step = -1
        self.digit_timestamp = 0
        self.first = True
        self.refused = 0
        self.sealer: Sealer | None = None
        """None: plain RTP"""

    def send(self) -> None:
        """The packets of one 20 ms."""
        if self.remote is None:
            return
        self.timestamp = (self.timestamp + rtp.SAMPLES_PER_PACKET) & 0xFFFFFFFF
        typing = bool(self.digits) and self._send_digit()
        if not self.talking:
            self.first = True
            return
        rtp.set_voice(self.packet, self.pt, self.sequence, self.timestamp, self.number + 1, self.first)
        self.first = False
        self.number += 1
        self.log.add_sent(time.time_ns(), typing)
        self._out(self.packet)

    def _send_digit(self) -> bool:
        """The digit's packet of one 20 ms; False between two digits."""
        if self.gap_packets:
            self.gap_packets -= 1
            return False
        self.digit_step += 1
        step = self.digit_step
        if step == 0:
            self.digit_timestamp = self.timestamp
        end = step >= rtp.DIGIT_PACKETS
        duration = min(step + 1, rtp.DIGIT_PACKETS) * rtp.SAMPLES_PER_PACKET
        for _ in range(rtp.DIGIT_END_PACKETS if end else 1):
            self._out(
                rtp.digit_packet(
                    self.digits[0],
                    self.event_pt,
                    self.sequence,
                    self.digit_timestamp,
                    self.ssrc,
                    duration,
                    first=step == 0,
                    end=end,
                )
            )
        if end:
            self.digits.pop(0)
            self.digit_step = -1
            self.gap_packets = 5
        return True

    def agree(self, keys: dict[str, str] | None) -> None:
        """SRTP with these keys from now on; None: plain RTP."""
        if keys is None:
            self.sealer = None
            return
        if self.sealer is None:
            self.sealer = Sealer()
        self.sealer.agree(Keys(**keys))

    def _out(self, packet: bytes | bytearray) -> None:
        if self.sealer is not None:
            packet = self.sealer.seal(packet)
        try:
            self.sock.sendto(packet, self.remote)  # type: ignore[arg-type]
        except OSError:
            self.refused += 1
        self.sequence = (self.sequence + 1) & 0xFFFF


class Worker:
    """The loop over all streams of this process."""

    def __init__(self, orders: socket.socket) -> None:
        self.orders = orders
        self.streams: dict[int, _Stream] = {}
        self.by_fd: dict[int, _Stream] = {}
        self.slots: list[list[_Stream]] = [[] for _ in range(SLOTS)]
        self.epoll = select.epoll()
        self.epoll.register(orders.fileno(), select.EPOLLIN)
        self.buffer = bytearray(2048)
        self.stopped = False
        self.late_max_s = 0.0

    def run(self) -> None:
        """Until the parent goes away."""
        begin = time.monotonic()
        slot = 0
        while not self.stopped:
            due = begin + slot * SLOT_S
            now = time.monotonic()
            if now < due:
                time.sleep(due - now)
            elif now - due > CATCH_UP_PACKETS_MAX * SLOT_S * SLOTS:
                begin, slot = now, 0
                continue
            self.late_max_s = max(self.late_max_s, time.monotonic() - due)
            for stream in self.slots[slot % SLOTS]:
                stream.send()
            slot += 1
            self._read()

    def _read(self) -> None:
        for _ in range(READ_ROUNDS_MAX):
            ready = self.epoll.poll(0)
            if not ready:
                return
            for fd, _events in ready:
                stream = self.by_fd.get(fd)
                if stream is None:
                    self._order()
                else:
                    self._receive(stream)

    def _receive(self, stream: _Stream) -> None:
        try:
            size, ancillary, _, _ = stream.sock.recvmsg_into((self.buffer,), _TIMESTAMP_SPACE)
        except BlockingIOError:
            return
        except OSError:
            stream.refused += 1
            return
        if ancillary:
            seconds, nanoseconds = _TIMESPEC.unpack(ancillary[0][2])
            at_ns = seconds * 1_000_000_000 + nanoseconds
        else:
            at_ns = time.time_ns()
        packet: bytes | bytearray = self.buffer
        if stream.sealer is not None:
            plain = stream.sealer.unseal(bytes(self.buffer[:size]))
            if plain is None:
                stream.refused += 1
                return
            packet, size = plain, len(plain)
        stream.log.add_heard(at_ns, *rtp.classify(packet, size, stream.event_pt_in))

    def _order(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self.orders, ORDER_MAX_BYTES, 2)
        except BlockingIOError:
            return
        if not data:
            self.stopped = True
            return
        order = json.loads(data)
        kind = order["do"]
        if kind == "open":
            self._open(order, fds)
            return
        stream = self.streams.get(order["stream"])
        if stream is None:
            return
        if kind == "aim":
            stream.remote = (order["host"], order["port"]) if order["host"] else None
            stream.pt, stream.event_pt = order["pt"], order["event_pt"]
            stream.event_pt_in = order["event_pt_in"]
            stream.agree(order["keys"])
        elif kind == "talk":
            stream.talking = order["on"]
        elif kind == "digits":
            stream.digits.extend(order["digits"])
        elif kind == "close":
            self._close(stream)

    def _open(self, order: dict[str, Any], fds: list[int]) -> None:
        sock = socket.socket(fileno=fds[0])
        sock.setblocking(False)
        log = StreamLog(fds[1])
        os.close(fds[1])
        stream = _Stream(order, sock, log)
        self.streams[stream.id] = stream
        self.by_fd[sock.fileno()] = stream
        min(self.slots, key=len).append(stream)
        self.epoll.register(sock.fileno(), select.EPOLLIN)

    def _close(self, stream: _Stream) -> None:
        del self.streams[stream.id]
        del self.by_fd[stream.sock.fileno()]
        for slot in self.slots:
            if stream in slot:
                slot.remove(stream)
        self.epoll.unregister(stream.sock.fileno())
        stream.sock.close()
        stream.log.close()


def enable_timestamps(sock: socket.socket) -> None:
    """Asks the kernel for each datagram's arrival time."""
    sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)


def main() -> None:
    """Entry point of the process: the descriptor of the order socket is its argument."""
    orders = socket.socket(fileno=int(sys.argv[1]))
    orders.setblocking(False)
    try:
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    except PermissionError:
        pass
    gc.freeze()
    gc.disable()
    Worker(orders).run()


if __name__ == "__main__":
    main()
