"""The host a process runs on, for people and monitoring: load, memory, disks, clock, versions.

Published as a leased key, so that a host that is gone is gone there too, and as gauges.
Nothing is decided by it.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import platform
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from ari_ha import __version__
from ari_ha.core.machine import Outcome
from ari_ha.core.ports.store import Put, StoreTxn
from ari_ha.runtime.metrics import Metrics
from ari_ha.wire.host import HostValue
from ari_ha.wire.keyspace import Keys, encode

EVERY_S = 10.0
STORE_LIMIT_S = VERSION_LIMIT_S = DISKS_LIMIT_S = 2.0
DISKS_LOOK_S = 0.02
STA_UNSYNC = 0x0040
"""adjtimex(2): the kernel's clock is not synchronized."""


class Store(Protocol):
    """What is needed of the store's adapter."""

    async def perform(self, effect: StoreTxn) -> Outcome:
        """One outcome."""


class HostReport:
    """Looks at the host every `EVERY_S` seconds and publishes what it sees.

    ``paths``: whose file systems are of interest; one that cannot be seen is left out.
    ``versions``: of what runs here besides us, ``ahead_s``: peers' clocks; asked each time.
    """

    def __init__(
        self,
        store: Store,
        metrics: Metrics,
        cluster: str,
        host: str,
        paths: Iterable[str],
        versions: Callable[[], Mapping[str, str]] = dict,
        ahead_s: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._key = Keys(cluster).host(host)
        self._host = host
        self._paths = tuple(paths)
        self._versions = versions
        self._ahead_s = ahead_s
        self._looking: threading.Thread | None = None

    async def run(self) -> None:
        """Until cancelled. What etcd does not take is said again the next time."""
        while True:
            value = self.look(await self.look_at_disks())
            self._measure(value)
            put = Put(self._key, encode(value), leased=True)
            await self._store.perform(StoreTxn(lane="host", limit_s=STORE_LIMIT_S, tag="host", puts=(put,)))
            await asyncio.sleep(EVERY_S)

    async def look_at_disks(self) -> dict[str, float]:
        """`disks`, by a thread: where a file system hangs (its server is away) whoever looks at it hangs too,
        and cannot be ended. None of them is told of then, and nobody looks again before that one is back."""
        if self._looking is not None and self._looking.is_alive():
            return {}
        found: dict[str, float] = {}
        self._looking = threading.Thread(target=lambda: found.update(disks(self._paths)), daemon=True)
        self._looking.start()
        end = time.monotonic() + DISKS_LIMIT_S
        while self._looking.is_alive() and time.monotonic() < end:
            await asyncio.sleep(DISKS_LOOK_S)
        return {} if self._looking.is_alive() else found

    def look(self, disks: Mapping[str, float]) -> HostValue:
        """The host now."""
        synchronized, error_ms = clock()
        return HostValue(
            host=self._host,
            at=time.time(),
            cpus=os.cpu_count() or 1,
            load_1m=round(os.getloadavg()[0], 2),
            memory_free_share=memory_free_share(),
            disks=dict(disks),
            clock_synchronized=synchronized,
            clock_error_ms=error_ms,
            clocks_ahead_ms={peer: round(ahead * 1000) for peer, ahead in self._ahead_s().items()},
            versions={
                "ari-ha": __version__,
                "python": platform.python_version(),
                "kernel": platform.release(),
                **self._versions(),
            },
        )

    def _measure(self, value: HostValue) -> None:
        gauge = self._metrics.gauge
        gauge("host_load_1m", value.load_1m)
        gauge("host_memory_free_share", value.memory_free_share)
        gauge("host_clock_synchronized", value.clock_synchronized)
        for peer, ahead_ms in value.clocks_ahead_ms.items():
            gauge("host_clock_of_peer_ahead_seconds", ahead_ms / 1000, (("peer", peer),))
        for path, share in value.disks.items():
            gauge("host_disk_free_share", share, (("path", path),))


async def version_of(program: str) -> str:
    """What ``program --version`` says on its first line; empty where it does not run."""
    try:
        asked = await asyncio.create_subprocess_exec(
            program, "--version", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        said, _ = await asyncio.wait_for(asked.communicate(), VERSION_LIMIT_S)
    except (OSError, TimeoutError):
        return ""
    return said.decode("utf-8", "replace").partition("\n")[0].removeprefix("Version:").strip()


def memory_free_share(path: str = "/proc/meminfo") -> float:
    """MemAvailable of MemTotal (proc(5)); 1 where it cannot be read."""
    try:
        with open(path) as file:
            fields = {line.partition(":")[0]: int(line.split()[1]) for line in file if ":" in line}
        return round(fields["MemAvailable"] / fields["MemTotal"], 3)
    except (OSError, KeyError, ValueError, IndexError, ZeroDivisionError):
        return 1.0


def disks(paths: Iterable[str]) -> dict[str, float]:
    """Free share of the file system of each path, each file system once."""
    found: dict[str, float] = {}
    seen: set[int] = set()
    for path in paths:
        try:
            device, usage = os.stat(path).st_dev, shutil.disk_usage(path)
        except OSError:
            continue
        if device not in seen and usage.total:
            seen.add(device)
            found[path] = round(usage.free / usage.total, 3)
    return found


class _Timex(ctypes.Structure):
    """The head of struct timex (adjtimex(2)); the rest is room."""

    _fields_ = (
        ("modes", ctypes.c_uint), ("offset", ctypes.c_long), ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long), ("esterror", ctypes.c_long), ("status", ctypes.c_int),
        ("room", ctypes.c_char * 256),
    )  # fmt: skip


def clock() -> tuple[bool, int]:
    """Whether the kernel's clock is synchronized, and its maximum error in ms, as whoever
    disciplines it has told the kernel (adjtimex(2) with modes 0: reading only)."""
    timex = _Timex()
    try:
        ctypes.CDLL(None).adjtimex(ctypes.byref(timex))
    except (OSError, AttributeError):
        return False, 0
    return not timex.status & STA_UNSYNC, round(timex.maxerror / 1000)
