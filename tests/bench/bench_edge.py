"""How many calls one edge process sets up in a second of one core: the whole machine (SIP, media, node, etcd
effects), without sockets. Run: python -m tests.bench.bench_edge [calls]"""

from __future__ import annotations

import json
import platform
import sys
import time
from typing import Any

from ari_ha import __version__
from ari_ha.sip import events as sip
from tests.support.edge_world import EdgeWorld

CALLS = 1_000
HELD_AT_ONCE = 200


class TimedWorld(EdgeWorld):
    """Counts the processor time spent inside the edge machine; everybody else's is left out."""

    def boot(self) -> None:
        self.spent_s = 0.0
        super().boot()

    def post(self, event: Any) -> None:
        begin = time.process_time()
        effects = self.edge.handle(event, self.now)
        self.spent_s += time.process_time() - begin
        for effect in effects:
            self.perform(effect)


def measure(calls: int) -> dict[str, float]:
    """Sets up and ends that many calls, some held at any time."""
    world = TimedWorld()
    setup_s = ending_s = 0.0
    living: list[str] = []
    for number in range(calls):
        world.now += 0.01
        before = world.spent_s
        key, call = world.call_in()
        assert call is not None and world.carrier.of(sip.LegAnswered)
        setup_s += world.spent_s - before
        world.carrier.heard.clear()
        living.append(key)
        if len(living) > HELD_AT_ONCE:
            before = world.spent_s
            world.carrier.sip.hangup(living.pop(0), world.now)
            world.settle()
            ending_s += world.spent_s - before
        if number % 100 == 99:
            world.run(1.0, step=0.1)
            world.sip_log.clear()
            world.ng.clear()
    ended = calls - len(living)
    return {"setups_per_core_s": calls / setup_s, "endings_per_core_s": ended / ending_s}


def main() -> None:
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else CALLS
    rounds = [measure(calls) for _ in range(3)]
    result = {name: round(max(r[name] for r in rounds)) for name in rounds[0]}
    print(json.dumps({"calls": calls, **result, "version": __version__, "python": platform.python_version(),
                      "machine": platform.processor() or platform.machine()}))  # fmt: skip


if __name__ == "__main__":
    main()
