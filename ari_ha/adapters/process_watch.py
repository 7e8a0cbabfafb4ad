"""Is that process still there: watches the process a pid file names.

The kernel tells through a pidfd (pidfd_open(2)) in the moment the process has
ended, whoever its parent is. Where there are none, ``/proc`` is looked at.

A process with much memory is a while in dying: the kernel gives its pages back
before it closes its sockets and before it calls the process ended (15 to 180 ms
for an Asterisk on two busy cores). Its threads end at once, within a few milliseconds,
but for the one that clears up. A watch ``by_threads`` therefore also holds pidfds of some of its
oldest threads (Linux 6.9 and later): when one ends, the process is asked whether it is dying.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

LOOK_EVERY_MS = 5
THREADS_WATCHED_MAX = 8
"""The oldest ones: those a program starts first stay as long as it runs."""
THREADS_WATCHED_MIN = 4
"""Fewer prove nothing: some threads of a living process end at the same time."""
PF_EXITING = 0x4
"""linux/sched.h"""
SIGKILL_PENDING = 1 << (signal.SIGKILL - 1)


class ProcessWatch:
    """Watches one life of a process at a time. ``on_gone`` is called, once per
    life, from the event loop; with ``by_threads`` as soon as nothing of it runs,
    which is before its sockets and files are free."""

    def __init__(
        self, pid_file: str, name: str, on_gone: Callable[[], None], *, by_threads: bool = False
    ) -> None:
        self._pid_file = pid_file
        self._name = name
        self._on_gone = on_gone
        self._by_threads = by_threads
        self._pidfd: int | None = None
        self._threads: set[int] = set()
        """Pidfds of threads that have not ended"""
        self._life: tuple[int, str] | None = None
        self._ended = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """The process watched (or last watched), None when there was none."""
        return self._life[0] if self._life else None

    @property
    def gone(self) -> bool:
        """A process was watched and has ended."""
        return self._ended.is_set()

    def attach(self) -> bool:
        """Begins to watch the process the pid file names now; False when there is
        none. Keeps watching the same life when it is still the one."""
        life = self._living()
        if life is None:
            return False
        if life == self._life and not self.gone:
            return True
        self.detach()
        self._life = life
        self._ended.clear()
        try:
            self._pidfd = os.pidfd_open(life[0])
        except OSError:
            self._pidfd = None
        else:
            asyncio.get_running_loop().add_reader(self._pidfd, self._fired)
            self._watch_threads()
        return not self.look()

    def _watch_threads(self) -> None:
        assert self._life is not None
        if not self._by_threads:
            return
        held = _thread_pidfds(self._life[0])
        if len(held) < THREADS_WATCHED_MIN:
            for fd in held:
                os.close(fd)
            return
        self._threads = held
        for fd in held:
            asyncio.get_running_loop().add_reader(fd, self._thread_ended, fd)

    def _thread_ended(self, fd: int) -> None:
        assert self._life is not None
        self._drop_thread(fd)
        if not self._threads or _exits(self._life[0]):
            self._fired()

    def _drop_thread(self, fd: int) -> None:
        self._threads.discard(fd)
        asyncio.get_running_loop().remove_reader(fd)
        os.close(fd)

    def detach(self) -> None:
        """Stops watching."""
        if self._pidfd is not None:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        for fd in list(self._threads):
            self._drop_thread(fd)

    def look(self) -> bool:
        """Looks at ``/proc`` now: whether the watched process has ended, or is only
        there to write its core and will never do anything again."""
        if self._life is not None and not self.gone:
            pid, started = self._life
            if _started(pid) != started or _dumps_core(pid):
                self._fired()
        return self.gone

    async def wait_gone(self, limit_ms: int) -> bool:
        """Waits up to ``limit_ms`` for the end of the process: its sockets close a
        moment before it is gone. False when it is still there (or never was)."""
        if self._life is None:
            return False
        loop = asyncio.get_running_loop()
        end = loop.time() + limit_ms / 1000
        while not self.look() and loop.time() < end:
            try:
                async with asyncio.timeout(LOOK_EVERY_MS / 1000):
                    await self._ended.wait()
            except TimeoutError:
                continue
        return self.gone

    def nobody(self) -> bool:
        """The pid file names no living process (or is gone, as after a clean stop)."""
        return self._living() is None

    def _fired(self) -> None:
        self.detach()
        if not self.gone:
            self._ended.set()
            self._on_gone()

    def _living(self) -> tuple[int, str] | None:
        """Pid and start of the process in the pid file; a stale file names a dead
        process or, when the pid is in use again, one of another name."""
        try:
            pid = int(Path(self._pid_file).read_text())
            name = Path(f"/proc/{pid}/comm").read_text().strip()
        except (OSError, ValueError):
            return None
        started = _started(pid)
        if started is None or (self._name and name != self._name):
            return None
        if self._by_threads and _exits(pid):
            return None
        return pid, started


def _exits(pid: int) -> bool:
    """Whether the process is on its way out: its first thread is being cleared away (PF_EXITING among
    the flags of proc_pid_stat(5), field 9) or has SIGKILL before it (SigPnd of proc_pid_status(5)). One
    that replaced itself by exec is not."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    pending = int(status.partition("SigPnd:")[2].split()[0], 16)
    return bool(int(fields[6]) & PF_EXITING) or bool(pending & SIGKILL_PENDING)


def _thread_pidfds(pid: int) -> set[int]:
    """Pidfds (PIDFD_THREAD) of the oldest threads but the first: the kernel reports the
    first one only with the whole process. Empty where there are no such pidfds."""
    held: set[int] = set()
    try:
        others = sorted(int(task) for task in os.listdir(f"/proc/{pid}/task") if int(task) != pid)
        for thread in others[:THREADS_WATCHED_MAX]:
            held.add(os.pidfd_open(thread, os.O_EXCL))  # PIDFD_THREAD has the value of O_EXCL
    except OSError:
        for fd in held:
            os.close(fd)
        return set()
    return held


def _started(pid: int) -> str | None:
    """The start of a living process in clock ticks (proc_pid_stat(5), field 22);
    None when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields[19]


def _dumps_core(pid: int) -> bool:
    try:
        return "CoreDumping:\t1" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
