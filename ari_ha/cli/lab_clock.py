"""A host's wall clock steps. Containers share the machine's clock, so the processes of one host are given a
clock of their own before: they are started again with libfaketime, which adds what stands in a file."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ari_ha.cli.lab import Lab, Struck

OWN_CLOCK = "/run/own-clock"
"""What the run scripts of a host's services read first."""
AHEAD = "/run/own-clock-ahead"
LIBRARY = "libfaketime"
SERVICES = {"ast": ("asterisk", "app"), "edge": ("edge", "guard")}
"""Whose clock it is, by the first letters of the host. rtpengine keeps the machine's."""
HOUR_S = 3600
EACH_S = 4.0
"""An hour ahead for so long, then as long an hour behind."""
START_LIMIT_S = 30.0
# The monotonic clock, and times of files, stay true. The file is read once a second.
_WORDS = f"""export FAKETIME_TIMESTAMP_FILE={AHEAD} FAKETIME_CACHE_DURATION=1 FAKETIME_DONT_FAKE_MONOTONIC=1
export NO_FAKE_STAT=1 FAKETIME_DISABLE_SHM=1 LD_PRELOAD='/usr/$LIB/faketime/{LIBRARY}MT.so.1'
"""


def services(host: str) -> tuple[str, ...]:
    """Whose clock steps on this host."""
    return next(names for letters, names in SERVICES.items() if host.startswith(letters))


def give(lab: Lab, host: str) -> None:
    """The host's processes are started again with a clock of their own, which is right until it steps.
    Raises LabError."""
    from ari_ha.cli.lab import wait_until

    lab.run(host, "sh", "-c", f"cat > {OWN_CLOCK} && echo +0 > {AHEAD}", given=_WORDS)
    _again(lab, host)
    wrong = f"{host}: its processes did not start with a clock of their own"
    wait_until(wrong, START_LIMIT_S, lambda: has(lab, host))


def give_edges(lab: Lab, _: str) -> None:
    """The same for every edge: whoever is active afterwards has one."""
    from ari_ha.cli.lab import running_edges

    for edge in running_edges(lab):
        give(lab, edge)


def has(lab: Lab, host: str) -> bool:
    """Whether all of them run with a clock of their own."""
    which = " ".join(f"/service/{name}/supervise/pid" for name in services(host))
    script = (
        f"for f in {which}; do p=$(cat $f); for q in $p $(pgrep -P $p); do "
        # only its own user may look into a process
        "[ $(cat /proc/$q/comm) = sleep ] || "
        f"chpst -u $(stat -c %U /proc/$q) grep -q {LIBRARY} /proc/$q/maps || exit 1; done; done; echo yes"
    )
    return lab.run(host, "sh", "-c", f"({script}) 2>/dev/null || true").strip() == "yes"


def take(lab: Lab, host: str) -> None:
    """They run with the machine's clock again."""
    lab.run(host, "rm", "-f", OWN_CLOCK, AHEAD)
    _again(lab, host)


def _again(lab: Lab, host: str) -> None:
    lab.run(host, "sv", "-w", "10", "force-restart", *services(host), limit_s=40.0)


def step(lab: Lab, host: str, each_s: float = EACH_S) -> Struck:
    """The clock goes an hour ahead, then two hours back, and is put right when mended."""
    from ari_ha.cli.lab import LabError, Struck

    if not has(lab, host):
        raise LabError(f"{host} has no clock of its own that could step: `ari-ha chaos run` gives it one")
    over = threading.Event()

    def rhythm() -> None:
        if not over.wait(each_s):
            put_ahead(lab, host, -HOUR_S)

    at = time.time()
    put_ahead(lab, host, HOUR_S)
    thread = threading.Thread(target=rhythm, daemon=True)
    thread.start()

    def mend() -> None:
        over.set()
        thread.join()
        put_ahead(lab, host, 0)

    return Struck(at, mend)


def put_ahead(lab: Lab, host: str, by_s: int) -> None:
    """The host's clock is so far ahead of the machine's from now on."""
    lab.run(host, "sh", "-c", f"echo {by_s:+d} > {AHEAD}.new && mv {AHEAD}.new {AHEAD}")
