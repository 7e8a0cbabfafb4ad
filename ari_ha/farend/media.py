"""The far ends' RTP streams as their calls see them; the packets themselves are handled by worker
processes."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Protocol

from ari_ha.farend.measure import Report, report
from ari_ha.farend.media_worker import enable_timestamps
from ari_ha.farend.srtp import Keys
from ari_ha.farend.streamlog import StreamLog

RECEIVE_BUFFER_BYTES = 262_144
CLOSED_STREAMS_KEPT_MAX = 300
PORT_TRIES_MAX = 400


class Stream(Protocol):
    """One RTP stream of a call."""

    id: int
    host: str
    port: int

    def aim(
        self, host: str, port: int, pt: int, event_pt: int, event_pt_in: int, keys: Keys | None = None
    ) -> None:
        """Where to send, and the payload numbers to send and expect; an empty host: nowhere. With keys both
        directions are SRTP; a key already in use goes on."""
        ...

    def talk(self, on: bool) -> None:
        """Whether numbered voice is sent."""
        ...

    def digits(self, digits: str) -> None:
        """Sends RTP events while the voice goes on."""
        ...

    def close(self) -> None:
        """Ends the stream; what it heard can still be read for a while."""
        ...


class MediaHost(Protocol):
    """Whoever opens streams."""

    def open(self, host: str, hertz: int, sequence: int | None = None) -> Stream:
        """A new stream with a socket on ``host``; ``sequence`` is its first number, None: any of the lower
        half, so that it does not begin anew for ten minutes."""
        ...


@dataclass(slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    orders: socket.socket
    streams: int = 0


class LiveStream:
    """A stream of `Media`."""

    def __init__(
        self, media: Media, worker: _Worker, ident: int, hertz: int, host: str, port: int, log: StreamLog
    ) -> None:
        self.id = ident
        self.hertz = hertz
        self.host = host
        self.port = port
        self.log = log
        self.opened = time.time()
        self.closed = False
        self._media = media
        self._worker = worker

    def _order(self, do: str, **values: object) -> None:
        if not self.closed:
            order = json.dumps({"do": do, "stream": self.id, **values})
            self._worker.orders.send(order.encode())

    def aim(
        self, host: str, port: int, pt: int, event_pt: int, event_pt_in: int, keys: Keys | None = None
    ) -> None:
        """See `Stream.aim`."""
        self._order(
            "aim", host=host, port=port, pt=pt, event_pt=event_pt, event_pt_in=event_pt_in,
            keys=keys and asdict(keys),
        )  # fmt: skip

    def talk(self, on: bool) -> None:
        """See `Stream.talk`."""
        self._order("talk", on=on)

    def digits(self, digits: str) -> None:
        """See `Stream.digits`."""
        self._order("digits", digits=digits)

    def close(self) -> None:
        """See `Stream.close`."""
        self._order("close")
        if not self.closed:
            self.closed = True
            self._worker.streams -= 1
            self._media.forget_oldest_closed()


class Media:
    """Opens streams, spreads them over worker processes and reads their logs."""

    def __init__(self, workers: int = 1, port_first: int = 40_000, port_last: int = 49_998) -> None:
        self.streams: OrderedDict[int, LiveStream] = OrderedDict()
        self._port_first, self._port_last = port_first, port_last
        self._port_next = port_first
        self._next_id = 1
        self._workers = [_start_worker() for _ in range(workers)]

    def open(self, host: str, hertz: int, sequence: int | None = None) -> LiveStream:
        """See `MediaHost.open`."""
        sock = self._bind(host)
        worker = min(self._workers, key=lambda item: item.streams)
        ident = self._next_id
        self._next_id += 1
        fd = StreamLog.make_fd()
        log = StreamLog(fd)
        order = {
            "do": "open",
            "stream": ident,
            "ssrc": random.getrandbits(32),
            "sequence": random.getrandbits(15) if sequence is None else sequence,
            "timestamp": random.getrandbits(31),
            "hertz": hertz,
        }
        socket.send_fds(worker.orders, [json.dumps(order).encode()], [sock.fileno(), fd])
        stream = LiveStream(self, worker, ident, hertz, host, sock.getsockname()[1], log)
        os.close(fd)
        sock.close()
        worker.streams += 1
        self.streams[ident] = stream
        return stream

    def _bind(self, host: str) -> socket.socket:
        for _ in range(PORT_TRIES_MAX):
            port = self._port_next
            self._port_next = port + 2 if port + 2 <= self._port_last else self._port_first
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            try:
                sock.bind((host, port))
            except OSError:
                sock.close()
                continue
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
            enable_timestamps(sock)
            return sock
        raise OSError(f"no free RTP port on {host} between {self._port_first} and {self._port_last}")

    def report(
        self, ident: int, since: float, until: float, voices_of: Collection[int] = ()
    ) -> Report | None:
        """What a stream heard between two instants (UTC seconds), and of any of these others together; None
        when it is not known any more."""
        stream = self.streams.get(ident)
        if stream is None:
            return None
        known = {other: self.streams[other].hertz for other in voices_of if other in self.streams}
        return report(stream.log, self.log_of, int(since * 1e9), int(until * 1e9), known)

    def log_of(self, ident: int) -> StreamLog | None:
        """The log of a stream still known."""
        stream = self.streams.get(ident)
        return stream.log if stream else None

    def forget_oldest_closed(self) -> None:
        """Keeps the memory of closed streams within `CLOSED_STREAMS_KEPT_MAX`."""
        closed = [ident for ident, stream in self.streams.items() if stream.closed]
        for ident in closed[: max(0, len(closed) - CLOSED_STREAMS_KEPT_MAX)]:
            self.streams.pop(ident).log.close()

    def worker_pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.process.pid for worker in self._workers]

    def close(self) -> None:
        """Ends the worker processes: each stops when its order socket closes."""
        for worker in self._workers:
            worker.orders.close()
            try:
                worker.process.wait(2)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()


def _start_worker() -> _Worker:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, "-m", "ari_ha.farend.media_worker", str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
    )
    theirs.close()
    return _Worker(process, ours)
