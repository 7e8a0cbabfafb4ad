"""The parent process, run for real with children of a few lines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CHILD = """
import asyncio, os, signal, sys, time
from ari_ha.runtime import supervise
assert supervise.is_child()
with open({record!r}, "a") as file:
    print(os.getpid(), file=file)
lives = len(open({record!r}).readlines())
def ready():
    open({record!r} + ".ready", "w").close()
async def main():
    supervise.start_heartbeat(20)
    await asyncio.sleep(0)
{body}
asyncio.run(main())
"""

PARENT = """
import sys
from ari_ha.runtime.supervise import SuperviseSettings, run
settings = SuperviseSettings(
    beat_every_ms=20, silence_limit_ms=300, start_limit_ms=5000, stop_limit_ms=500,
    retry_first_ms=10, retry_last_ms=50, steady_after_ms=5000, stall_limit_ms=200,
)
sys.exit(run([sys.executable, "-c", {child!r}], name="demo", settings=settings))
"""


class Parent:
    """A parent whose child runs ``body`` (inside an async function)."""

    def __init__(self, directory: Path, body: str) -> None:
        self._record = directory / "pids"
        self._ready = directory / "pids.ready"
        self._record.touch()
        indented = "\n".join("    " + line for line in body.splitlines())
        child = CHILD.format(record=str(self._record), body=indented)
        code = PARENT.format(child=child)
        self.process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)

    def ready(self, limit_s: float = 30.0) -> None:
        """Returns when the child has said that it stands."""
        end = time.monotonic() + limit_s
        while not self._ready.exists():
            assert time.monotonic() < end, "the child does not come up"
            time.sleep(0.01)

    def pids(self, number: int = 1, limit_s: float = 30.0) -> list[int]:
        """Pids of the children so far, at least ``number``."""
        end = time.monotonic() + limit_s
        while len(found := self._record.read_text().split()) < number:
            assert time.monotonic() < end, f"{len(found)} children, not {number}"
            time.sleep(0.01)
        return [int(pid) for pid in found]

    def stop(self) -> tuple[int, list[dict]]:
        self.process.send_signal(signal.SIGTERM)
        return self.ended()

    def ended(self, limit_s: float = 30.0) -> tuple[int, list[dict]]:
        """Exit status, and the lines it wrote."""
        _, text = self.process.communicate(timeout=limit_s)
        return self.process.returncode, [
            json.loads(line) for line in text.splitlines() if line.startswith("{")
        ]


@pytest.fixture
def parent(tmp_path):
    parents = []

    def start(body: str) -> Parent:
        parents.append(Parent(tmp_path, body))
        return parents[-1]

    yield start
    for one in parents:
        one.process.kill()
        one.process.wait()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int, limit_s: float = 30.0) -> bool:
    end = time.monotonic() + limit_s
    while alive(pid):
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def test_killed_child_is_started_again(parent):
    one = parent("ready()\nawait asyncio.sleep(60)")
    (first,) = one.pids()
    one.ready()
    os.kill(first, signal.SIGKILL)
    one.pids(2)
    _, lines = one.stop()
    restart = next(line for line in lines if line["what"] == "restart")
    assert restart["why"] == "ended by itself" and restart["status"] == -signal.SIGKILL


@pytest.mark.parametrize("freeze", ["time.sleep(60)", "os.kill(os.getpid(), signal.SIGSTOP)"])
def test_frozen_child_is_killed_and_started_again(parent, freeze):
    one = parent(f"if lives == 1:\n    await asyncio.sleep(0.1)\n    {freeze}\nawait asyncio.sleep(60)")
    first = one.pids(2)[0]
    assert gone(first)
    _, lines = one.stop()
    restart = next(line for line in lines if line["what"] == "restart")
    assert int(restart["why"].removeprefix("silent for ").removesuffix(" ms")) >= 300
    assert restart["status"] == -signal.SIGKILL


def test_child_that_dies_quickly_is_started_with_growing_pauses(parent):
    one = parent("sys.exit(3)")
    one.pids(5, 20)
    _, lines = one.stop()
    pauses = [line["pause_ms"] for line in lines if line["what"] == "restart"]
    assert pauses[:4] == [10, 20, 40, 50]


@pytest.mark.parametrize("status", [0, 78])
def test_child_that_ends_on_purpose_is_not_started_again(parent, status):
    one = parent(f"sys.exit({status})")
    assert one.ended()[0] == status
    assert len(one.pids()) == 1


def test_sigterm_is_passed_on_and_waited_for(parent):
    body = (
        "asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, sys.exit, 0)\nready()\n"
        "await asyncio.sleep(60)"
    )
    one = parent(body)
    (pid,) = one.pids()
    one.ready()
    status, _ = one.stop()
    assert status == 0 and not alive(pid)


def test_child_that_does_not_stop_is_killed(parent):
    one = parent("signal.signal(signal.SIGTERM, signal.SIG_IGN)\nready()\nawait asyncio.sleep(60)")
    (pid,) = one.pids()
    one.ready()
    began = time.monotonic()
    one.stop()
    assert time.monotonic() - began > 0.4
    assert not alive(pid)


def test_child_does_not_survive_its_parent(parent):
    one = parent("ready()\nawait asyncio.sleep(60)")
    (pid,) = one.pids()
    one.ready()
    one.process.kill()
    assert gone(pid)


def test_what_the_child_started_ends_with_it(parent, tmp_path):
    note = tmp_path / "grandchild"
    body = (
        f"import subprocess\ngrandchild = subprocess.Popen(['sleep', '60'])\n"
        f"open({str(note)!r}, 'w').write(str(grandchild.pid))\n"
        f"await asyncio.sleep(60 if lives > 1 else 0.1)\nsys.exit(1)"
    )
    one = parent(body)
    one.pids(1)
    end = time.monotonic() + 30
    while not note.exists() or not note.read_text():
        assert time.monotonic() < end, "the child starts nothing"
        time.sleep(0.01)
    grandchild = int(note.read_text())
    one.pids(2)
    assert gone(grandchild)
    one.stop()


def test_without_a_parent_there_is_no_heartbeat(monkeypatch):
    from ari_ha.runtime import supervise

    monkeypatch.delenv(supervise.BEAT_FD_VARIABLE, raising=False)
    assert not supervise.is_child() and supervise.start_heartbeat() is None
