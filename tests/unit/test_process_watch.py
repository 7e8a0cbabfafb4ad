"""A process's end, told by its threads before the kernel has cleared it away."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ari_ha.adapters.process_watch import THREADS_WATCHED_MAX, ProcessWatch

PROGRAM = """
import os, signal, sys, threading, time
def again(*_):
    os.execv(sys.executable, [sys.executable, "-c", sys.argv[3], *sys.argv[1:]])
signal.signal(signal.SIGUSR1, again)
def body(n):
    if n < int(sys.argv[1]):
        sys.stdin.readline()
    else:
        time.sleep(60)
for n in range(10):
    threading.Thread(target=body, args=(n,), daemon=True).start()
block = bytearray(int(sys.argv[2]) << 20)
for at in range(0, len(block), 4096):
    block[at] = 1
print("up", flush=True)
time.sleep(60)
"""


def started(tmp_path: Path, ending: int = 0, mebibytes: int = 1) -> subprocess.Popen[str]:
    """Ten threads, of which the first ``ending`` end when something is written to them."""
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(ending), str(mebibytes), PROGRAM],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout and child.stdout.readline() == "up\n"
    (tmp_path / "pid").write_text(str(child.pid))
    return child


@pytest.fixture
def thread_pidfds() -> Iterator[None]:
    try:
        os.close(os.pidfd_open(os.getpid(), os.O_EXCL))
    except OSError:
        pytest.skip("this kernel has no pidfds of threads (Linux 6.9)")
    yield


async def gone(watch: ProcessWatch, limit_s: float = 5.0) -> bool:
    until = time.monotonic() + limit_s
    while not watch.gone and time.monotonic() < until:
        await asyncio.sleep(0.005)
    return watch.gone


@pytest.mark.parametrize("by_threads", [False, True])
async def test_a_kill_is_told_once(tmp_path: Path, by_threads: bool) -> None:
    child, told = started(tmp_path), []
    watch = ProcessWatch(str(tmp_path / "pid"), "", lambda: told.append(1), by_threads=by_threads)
    assert watch.attach() and watch.attach()
    child.send_signal(signal.SIGKILL)
    assert await gone(watch)
    assert not watch.attach(), "the same life is not watched again"
    child.wait(5)
    await asyncio.sleep(0.05)
    assert told == [1]


async def test_a_program_that_replaces_itself_is_another_life(tmp_path: Path, thread_pidfds: None) -> None:
    """As ``core restart now`` does: same process, its threads are gone, and it is watched again."""
    child, told = started(tmp_path), []
    watch = ProcessWatch(str(tmp_path / "pid"), "", lambda: told.append(1), by_threads=True)
    assert watch.attach()
    child.send_signal(signal.SIGUSR1)
    assert child.stdout and child.stdout.readline() == "up\n"
    assert await gone(watch)
    assert watch.attach() and not watch.gone
    child.kill()
    assert await gone(watch)
    child.wait(5)
    assert told == [1, 1]


async def test_threads_tell_before_the_memory_is_given_back(tmp_path: Path, thread_pidfds: None) -> None:
    """Both kinds of watch on one process with much memory: the threads are not later."""
    child, order = started(tmp_path, mebibytes=400), []
    whole = ProcessWatch(str(tmp_path / "pid"), "", lambda: order.append("whole"))
    parts = ProcessWatch(str(tmp_path / "pid"), "", lambda: order.append("threads"), by_threads=True)
    assert whole.attach() and parts.attach()
    child.send_signal(signal.SIGKILL)
    assert await gone(parts) and await gone(whole)
    child.wait(5)
    assert order == ["threads", "whole"]


async def test_threads_that_end_do_not_end_the_process(tmp_path: Path, thread_pidfds: None) -> None:
    """Seven of the eight watched threads end by themselves; the process lives on."""
    child = started(tmp_path, ending=THREADS_WATCHED_MAX - 1)
    watch = ProcessWatch(str(tmp_path / "pid"), "", lambda: None, by_threads=True)
    assert watch.attach()
    assert child.stdin
    child.stdin.write("\n" * THREADS_WATCHED_MAX)
    child.stdin.flush()
    tasks = Path(f"/proc/{child.pid}/task")
    until = time.monotonic() + 5
    while len(list(tasks.iterdir())) > 11 - (THREADS_WATCHED_MAX - 1) and time.monotonic() < until:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert not watch.gone
    child.kill()
    assert await gone(watch)
    child.wait(5)
