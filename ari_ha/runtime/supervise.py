"""A parent that keeps one child process alive, and kills it when it hangs.

    def main(settings_file):
        if not supervise.is_child():
            command = [sys.executable, "-m", "ari_ha.node", settings_file, "--child"]
            raise SystemExit(supervise.run(command, name="node"))
        asyncio.run(child(settings_file))      # begins with supervise.start_heartbeat()

The child beats from its event loop, so a loop that stands still (a deadlock, a
busy loop, SIGSTOP) is a child that is silent: it is killed and started again at
once. The parent does nothing else and imports little. A child never outlives its
parent (PR_SET_PDEATHSIG), so two of them never serve the same calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

BEAT_FD_VARIABLE = "ARI_HA_HEARTBEAT_FD"
EXIT_CONFIG = 78
"""Exit status (sysexits.h EX_CONFIG) of a child that starting again cannot help."""

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class SuperviseSettings:
    """How patient the parent is."""

    beat_every_ms: int = 250
    """Milliseconds between beats of the child."""

    silence_limit_ms: int = 2000
    """Milliseconds. A loop that stood still so long serves nobody; shorter would kill
    a child that only waits for a busy machine."""

    start_limit_ms: int = 30_000
    """Milliseconds until the first beat: imports and settings, on a machine that boots."""

    stop_limit_ms: int = 8000
    """Milliseconds a child that was asked to stop may take."""

    retry_first_ms: int = 50
    """Milliseconds before a child that died quickly is started again; doubled each time."""

    retry_last_ms: int = 2000
    """Milliseconds. The longest of these pauses."""

    steady_after_ms: int = 10_000
    """Milliseconds. A child that lived longer is started again without a pause."""

    stall_limit_ms: int = 500
    """Milliseconds. A parent that woke up later than this does not judge the child:
    perhaps both were held up."""


# --- the child ----------------------------------------------------------------------------


def is_child() -> bool:
    """Whether this process is run by `run`."""
    return BEAT_FD_VARIABLE in os.environ


def start_heartbeat(every_ms: int = SuperviseSettings().beat_every_ms) -> asyncio.Task[None] | None:
    """Beats from the running loop from now on; nothing without a parent."""
    fd = os.environ.get(BEAT_FD_VARIABLE)
    if fd is None:
        return None
    return asyncio.get_running_loop().create_task(_beat(int(fd), every_ms), name="heartbeat")


async def _beat(fd: int, every_ms: int) -> None:
    os.set_blocking(fd, False)
    os.set_inheritable(fd, False)
    while True:
        with contextlib.suppress(OSError):  # full: the parent is held up; broken: we are about to die
            os.write(fd, b".")
        await asyncio.sleep(every_ms / 1000)


# --- the parent ---------------------------------------------------------------------------


def run(command: Sequence[str], *, name: str, settings: SuperviseSettings | None = None) -> int:
    """Runs ``command`` until it ends by itself with 0 or `EXIT_CONFIG`, or until we
    get SIGTERM or SIGINT, which it gets too. Returns the exit status."""
    return _Parent(list(command), name, settings or SuperviseSettings()).run()


class _Parent:
    def __init__(self, command: list[str], name: str, settings: SuperviseSettings) -> None:
        self._command = command
        self._name = name
        self._settings = settings
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._stop_by: float | None = None
        self._child: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._signalled)
        pause_ms = self._settings.retry_first_ms
        while True:
            began = time.monotonic()
            status, why = self._one_life()
            lived_ms = (time.monotonic() - began) * 1000
            if self._stop_by is not None:
                return max(status, 0)
            if status in (0, EXIT_CONFIG):
                self._tell("ended", why=why, status=status)
                return status
            quick = lived_ms < self._settings.steady_after_ms
            pause_ms = pause_ms if quick else 0
            self._tell("restart", why=why, status=status, lived_ms=round(lived_ms), pause_ms=pause_ms)
            if self._pause(pause_ms / 1000):
                return 0
            first = self._settings.retry_first_ms
            pause_ms = min(max(pause_ms, first) * 2, self._settings.retry_last_ms) if quick else first

    def _one_life(self) -> tuple[int, str]:
        """Starts the child and returns how and why it ended."""
        read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._child = child = subprocess.Popen(
            self._command,
            env={**os.environ, BEAT_FD_VARIABLE: str(write)},
            pass_fds=(write,),
            process_group=0,
            preexec_fn=functools.partial(_die_with_parent, os.getpid()),
        )
        os.close(write)
        self._tell("started", pid=child.pid)
        try:
            why = self._watch(child, read)
        finally:
            self._kill(child)
            os.close(read)
        return child.wait(), why

    def _watch(self, child: subprocess.Popen[bytes], beats: int) -> str:
        """Returns when the child has ended or must end, with the reason."""
        poll = select.poll()
        pidfd = os.pidfd_open(child.pid)
        for fd in (pidfd, beats, self._wake_read):
            poll.register(fd, select.POLLIN)
        limit_s = self._settings.start_limit_ms / 1000
        heard_at = time.monotonic()
        try:
            while True:
                silent_at = heard_at + limit_s if self._stop_by is None else self._stop_by
                wait_s = max(0.0, silent_at - time.monotonic())
                ready = {fd for fd, _ in poll.poll(wait_s * 1000 + 1)}
                now = time.monotonic()
                if pidfd in ready:
                    return "ended by itself"
                _drain(self._wake_read)
                if beats in ready:
                    if not _drain(beats):
                        poll.unregister(beats)
                    heard_at, limit_s = now, self._settings.silence_limit_ms / 1000
                elif now >= silent_at:
                    if self._stop_by is not None:
                        return "did not stop in time"
                    if now - silent_at < self._settings.stall_limit_ms / 1000:
                        return f"silent for {(now - heard_at) * 1000:.0f} ms"
                    heard_at = now
        finally:
            os.close(pidfd)

    def _kill(self, child: subprocess.Popen[bytes]) -> None:
        """Ends the child and what it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)

    def _pause(self, seconds: float) -> bool:
        """Waits before the next start; True when we were asked to stop."""
        end = time.monotonic() + seconds
        while self._stop_by is None and (left := end - time.monotonic()) > 0:
            select.select([self._wake_read], [], [], left)
            _drain(self._wake_read)
        return self._stop_by is not None

    def _signalled(self, number: int, frame: Any) -> None:
        if number != signal.SIGHUP and self._stop_by is None:
            self._stop_by = time.monotonic() + self._settings.stop_limit_ms / 1000
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)

    def _tell(self, what: str, **facts: Any) -> None:
        """One line of the log, in the shape of ari_ha.runtime.logs."""
        line = {
            "at": round(time.time(), 6),
            "level": "info",
            "process": f"{self._name}-parent",
            "kind": "decision",
        }
        print(json.dumps({**line, "what": what, **facts}), file=sys.stderr, flush=True)


def _die_with_parent(parent: int) -> None:
    """In the child before its program starts: the kernel kills it when we are gone
    (prctl(2)); that stays in force across execve."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _drain(fd: int) -> bool:
    """Reads what there is; False at the end of the stream."""
    try:
        while data := os.read(fd, 4096):
            if len(data) < 4096:
                return True
    except BlockingIOError:
        return True
    return False
