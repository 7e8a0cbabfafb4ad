"""The node's recorder: one child process that writes all recordings, started at the first of them."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ari_ha.adapters.mailbox import Outbox
from ari_ha.adapters.recorder_worker import ORDER_MAX_BYTES
from ari_ha.core.machine import Done, Event, Outcome, Refused, Unreachable
from ari_ha.core.ports.recording import CloseRecording, OpenRecording, RecorderDown, RecordingFailed

SILENCE_LIMIT_S = 5.0
"""It says that it lives every second; one that has not for so long hangs and is killed."""
DYING_MAX_COUNT = 2
"""A process that hangs in its disk does not die before the disk answers; as long as there are so many, no
other one is begun."""


@dataclass(frozen=True, slots=True)
class RecorderOptions:
    """What its child process is told."""

    node: str
    spool: str
    address: str
    ports: tuple[int, int]
    free_min_mb: int
    recordings_max: int


class Recorder:
    """Gives orders to the child, and tells the machine what became of them."""

    def __init__(
        self,
        options: RecorderOptions,
        post: Callable[[Event], object],
        count: Callable[..., None] = lambda name, by=1: None,
    ) -> None:
        self._options = options
        self._outbox = Outbox(post)
        self._count = count
        self._process: subprocess.Popen[bytes] | None = None
        self._dying: list[subprocess.Popen[bytes]] = []
        self._closing: set[str] = set()
        """Recordings whose end the child has not taken yet"""
        self._orders: socket.socket | None = None
        self._asked: dict[str, asyncio.Future[Outcome]] = {}
        self._heard_at = 0.0
        self._told: dict[str, Any] = {"packets": 0, "bytes": 0}

    @property
    def pid(self) -> int | None:
        """The child's process id, while there is one."""
        return self._process.pid if self._process else None

    async def perform(self, effect: OpenRecording | CloseRecording) -> Outcome:
        """Carries the order out."""
        if isinstance(effect, CloseRecording):
            self._end(effect.recording)
            return Done()
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        try:
            if self._orders is None:
                self._start()
            self._asked[effect.recording] = answer
            self._send({
                "do": "open", "recording": effect.recording, "call": effect.call, "leg": effect.leg,
                "host": effect.host, "port": effect.port, "payload": effect.payload,
            })  # fmt: skip
            return await answer
        except OSError as error:
            return Unreachable(f"recorder: {error}")
        finally:
            self._asked.pop(effect.recording, None)

    def _end(self, recording: str) -> None:
        if self._orders is None:
            return
        try:
            self._send({"do": "close", "recording": recording})
            self._closing.discard(recording)
        except OSError:
            self._closing.add(recording)  # its queue is full, or it has just ended: see `_look`

    def _start(self) -> None:
        """Raises OSError."""
        self._dying = [process for process in self._dying if process.poll() is None]
        if len(self._dying) >= DYING_MAX_COUNT:
            raise OSError(0, "its last processes hang and do not end")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ari_ha.adapters.recorder_worker", str(theirs.fileno()),
                 json.dumps(asdict(self._options))],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        self._orders, self._heard_at = ours, loop.time()
        self._told = {"packets": 0, "bytes": 0}
        loop.add_reader(ours.fileno(), self._read)
        loop.call_later(1.0, self._look, ours, loop.time())

    def _look(self, orders: socket.socket, asked_at: float) -> None:
        """Kills a child that says nothing; not when we ourselves were late."""
        if self._orders is not orders:
            return
        loop = asyncio.get_running_loop()
        if loop.time() - asked_at > 2.0:
            self._heard_at = loop.time()
        if loop.time() - self._heard_at > SILENCE_LIMIT_S:
            self._down(f"silent for {SILENCE_LIMIT_S:g} s")
        else:
            for recording in list(self._closing):
                self._end(recording)
            loop.call_later(1.0, self._look, orders, loop.time())

    def _send(self, order: dict[str, Any]) -> None:
        """Raises OSError when the child does not take it."""
        assert self._orders is not None
        self._orders.send(json.dumps(order).encode())

    def _read(self) -> None:
        assert self._orders is not None
        try:
            data = self._orders.recv(ORDER_MAX_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._down("its process ended")
            return
        self._heard_at = asyncio.get_running_loop().time()
        said = json.loads(data)
        match said["say"]:
            case "opened":
                self._answer(said["recording"], Done((self._options.address, said["port"])))
            case "refused":
                self._answer(said["recording"], Refused(said["why"]))
            case "failed":
                self._outbox.insist(RecordingFailed(recording=said["recording"], reason=said["why"]))
            case "alive":
                self._count("node_recorder_packets", by=said["packets"] - self._told["packets"])
                self._count("node_recorder_bytes", by=said["bytes"] - self._told["bytes"])
                self._told = said

    def _answer(self, recording: str, outcome: Outcome) -> None:
        answer = self._asked.get(recording)
        if answer is not None and not answer.done():
            answer.set_result(outcome)
        elif isinstance(outcome, Done):
            self._end(recording)  # nobody waits for it any more

    def _down(self, why: str) -> None:
        self.close()
        for answer in self._asked.values():
            if not answer.done():
                answer.set_result(Unreachable(f"recorder: {why}"))
        self._outbox.insist(RecorderDown(reason=why))

    def close(self) -> None:
        """Ends the child; what it wrote stays. Not waited for: it may hang in its disk, and whoever waited
        for that would hang as well, with all calls of the node."""
        orders, self._orders = self._orders, None
        self._closing.clear()
        if orders is not None:
            asyncio.get_running_loop().remove_reader(orders.fileno())
            orders.close()
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            self._dying.append(process)
