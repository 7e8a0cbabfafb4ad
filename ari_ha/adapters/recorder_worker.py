"""The process that takes the RTP of recorded legs and appends it to files (`rtpdump`).

It wakes every 40 ms and writes what has come, one write per leg; arrivals carry the kernel's timestamps. So a
node app that is busy, or restarting its event loop, does not make it late. Orders and answers are JSON
objects over a socketpair; it ends when that closes. What is written is in the kernel's hands: only the
machine's own death can lose it.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import sys
import time
from collections import deque
from datetime import UTC, datetime
from typing import Any

from ari_ha.wire import rtpdump
from ari_ha.wire.recording import PartName

ROUND_S = 0.04
IDLE_WAIT_S = 1.0
TELL_EVERY_S = 1.0
ROUND_PACKETS_MAX = 50
"""Of one leg in one round: a second of audio, so that none keeps the others waiting"""
ORDERS_ROUND_MAX = 200
RECEIVE_BUFFER_BYTES = 262_144
ORDER_MAX_BYTES = 65_536
PORT_TRIES_MAX = 400
MEGABYTE = 1_000_000
_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("qq")
_TIMESTAMP_SPACE = socket.CMSG_SPACE(_TIMESPEC.size)


class _Recording:
    """One leg: a socket and a file."""

    def __init__(self, name: str, sock: socket.socket, fd: int, payload: int, began: float) -> None:
        self.name = name
        self.sock = sock
        self.fd = fd
        self.payload = payload
        self.began = began
        """By the monotonic clock, like all times within the file"""
        self.last = 0.0
        """Seconds after that of the last packet"""

    def read(self) -> tuple[bytes, int]:
        """What has come since the last time, as it is appended, and how many packets."""
        chunks: list[bytes] = []
        now = time.monotonic()
        ahead = time.time() - now
        for _ in range(ROUND_PACKETS_MAX):
            try:
                packet, ancillary, _, _ = self.sock.recvmsg(rtpdump.PACKET_MAX_BYTES, _TIMESTAMP_SPACE)
            except BlockingIOError:
                break
            except OSError:
                continue  # an ICMP error of something we never sent
            if rtpdump.audio_type(packet) != self.payload:
                continue  # digits are not kept
            at = now
            if ancillary:
                seconds, nanoseconds = _TIMESPEC.unpack(ancillary[0][2])
                at = seconds + nanoseconds / 1e9 - ahead
            self.last = since_start(at, self.began, self.last, now + ROUND_S)
            chunks.append(rtpdump.record(packet, self.last))
        return b"".join(chunks), len(chunks)

    def close(self) -> None:
        self.sock.close()
        os.close(self.fd)


def since_start(arrived: float, began: float, last: float, limit: float) -> float:
    """Seconds into the file of a packet that ``arrived``, all by the monotonic clock. The kernel's stamps are
    of the wall clock: where that stepped between the packet and our look at it, it is taken for no older
    than the ``last`` one, and for no later than ``limit``."""
    return max(min(arrived, limit) - began, last)


class Worker:
    """All recordings of a node."""

    def __init__(self, orders: socket.socket, options: dict[str, Any]) -> None:
        self.orders = orders
        self.spool: str = options["spool"]
        self.node: str = options["node"]
        self.address: str = options["address"]
        self.ports: tuple[int, int] = tuple(options["ports"])
        self.free_min_bytes: int = options["free_min_mb"] * MEGABYTE
        self.recordings_max: int = options["recordings_max"]
        self.recordings: dict[str, _Recording] = {}
        self.by_fd: dict[int, _Recording] = {}
        self.epoll = select.epoll()
        self.epoll.register(orders.fileno(), select.EPOLLIN)
        self.port_next = self.ports[0]
        self.packets = self.octets = 0
        self.told_at = 0.0
        self.unsaid: deque[bytes] = deque()
        """What the parent has had no room for: at most two words for each of its orders, and it gives none
        while it stands still"""
        self.stopped = False

    def run(self) -> None:
        """Until the parent goes away."""
        while not self.stopped:
            for fd, _ in self.epoll.poll(IDLE_WAIT_S):
                one = self.by_fd.get(fd)
                if one is None:
                    self._take_orders()
                else:
                    self._write(one)
            self._send_unsaid()
            if time.monotonic() - self.told_at >= TELL_EVERY_S:
                self.told_at = time.monotonic()
                self._look_after()
            if self.recordings:
                time.sleep(ROUND_S)

    def _say(self, **facts: Any) -> None:
        self.unsaid.append(json.dumps(facts).encode())
        self._send_unsaid()

    def _send_unsaid(self) -> None:
        try:
            while self.unsaid:
                self.orders.send(self.unsaid[0])
                self.unsaid.popleft()
        except BlockingIOError:
            pass  # the parent stands still
        except OSError:
            self.stopped = True

    def _look_after(self) -> None:
        if not self.unsaid:
            self._say(say="alive", open=len(self.recordings), packets=self.packets, bytes=self.octets)
        if self.recordings and (why := self._no_room()):
            for one in list(self.recordings.values()):
                self._fail(one, why)

    def _no_room(self) -> str:
        try:
            there = os.statvfs(self.spool)
        except OSError as error:
            return f"{self.spool}: {error.strerror}"
        free = there.f_bavail * there.f_frsize
        return (
            f"{self.spool}: {free // MEGABYTE} MB free, {self.free_min_bytes // MEGABYTE} are to stay free"
            if free < self.free_min_bytes
            else ""
        )

    def _take_orders(self) -> None:
        """All that have come: when a node is lost the others are asked for all its recordings at once."""
        for _ in range(ORDERS_ROUND_MAX):
            try:
                data = self.orders.recv(ORDER_MAX_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.stopped = True
                return
            self._order(json.loads(data))

    def _order(self, order: dict[str, Any]) -> None:
        if order["do"] == "open":
            self._open(order)
        elif one := self.recordings.get(order["recording"]):
            self._write(one)
            if one.name in self.recordings:
                self._append_or_fail(one, rtpdump.end_mark(time.monotonic() - one.began))
                self._close(one)

    def _open(self, order: dict[str, Any]) -> None:
        ident = order["recording"]
        if ident in self.recordings:
            self._say(say="opened", recording=ident, port=self.recordings[ident].sock.getsockname()[1])
            return
        start, began = time.time(), time.monotonic()
        stamp = datetime.fromtimestamp(start, UTC).strftime("%Y%m%dT%H%M%S-%fZ")
        part = PartName(order["call"], order["leg"], stamp, ident, self.node)
        try:
            if not part.is_sound:
                raise ValueError(f"{part.text!r} is no name of a file")
            head = rtpdump.header(order["host"], order["port"], start)
            os.makedirs(self.spool, mode=0o700, exist_ok=True)
            if len(self.recordings) >= self.recordings_max:
                raise OSError(0, f"{self.recordings_max} recordings already")
            if why := self._no_room():
                raise OSError(0, why)
            sock = self._bind(order["host"], order["port"])
        except (OSError, ValueError) as error:
            self._say(say="refused", recording=ident, why=getattr(error, "strerror", "") or str(error))
            return
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            fd = os.open(os.path.join(self.spool, part.text), flags, 0o600)
            try:
                self._append(fd, head)
            except OSError:
                os.close(fd)
                raise
        except OSError as error:
            sock.close()
            self._say(say="refused", recording=ident, why=f"{part.text}: {error.strerror}")
            return
        one = _Recording(ident, sock, fd, order["payload"], began)
        self.recordings[ident] = self.by_fd[sock.fileno()] = one
        self.epoll.register(sock.fileno(), select.EPOLLIN)
        self._say(say="opened", recording=ident, port=sock.getsockname()[1])

    def _bind(self, host: str, port: int) -> socket.socket:
        """A socket that hears ``host:port`` and nobody else."""
        first, last = self.ports
        for _ in range(PORT_TRIES_MAX):
            ours = self.port_next
            self.port_next = ours + 2 if ours + 2 <= last else first
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            try:
                sock.bind((self.address, ours))
            except OSError:
                sock.close()
                continue
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
            sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            sock.connect((host, port))
            return sock
        raise OSError(0, f"no free port on {self.address} between {first} and {last}")

    @staticmethod
    def _append(fd: int, data: bytes) -> None:
        if os.write(fd, data) != len(data):
            raise OSError(0, "written only in part")

    def _write(self, one: _Recording) -> None:
        data, packets = one.read()
        if not data:
            return
        self._append_or_fail(one, data)
        self.packets += packets
        self.octets += len(data)

    def _append_or_fail(self, one: _Recording, data: bytes) -> None:
        try:
            self._append(one.fd, data)
        except OSError as error:
            self._fail(one, error.strerror or str(error))

    def _fail(self, one: _Recording, why: str) -> None:
        self._close(one)
        self._say(say="failed", recording=one.name, why=why)

    def _close(self, one: _Recording) -> None:
        if self.recordings.pop(one.name, None) is None:
            return
        del self.by_fd[one.sock.fileno()]
        self.epoll.unregister(one.sock.fileno())
        one.close()


def main() -> None:
    """Entry point of the process: the descriptor of the order socket and the options are its arguments."""
    orders = socket.socket(fileno=int(sys.argv[1]))
    orders.setblocking(False)
    Worker(orders, json.loads(sys.argv[2])).run()


if __name__ == "__main__":
    main()
