"""How many calls one edge process sets up in a second of one core, and how long its successor needs for the
calls it held: the whole machine (SIP, media, node, etcd effects), without sockets and without reading etcd (a
standby has done that before). Run: python -m tests.bench.bench_edge [calls [held]]"""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
import time
import tracemalloc
from typing import Any

from ari_ha import __version__
from ari_ha.core.ports.store import KeyValue
from ari_ha.machines.edge_config import EdgeConfig
from ari_ha.sip import events as sip
from ari_ha.wire.keyspace import Keys, encode
from ari_ha.wire.sip_values import TrunkValue
from tests.support.edge_world import CARRIER, EdgeWorld

CALLS = 1_000
HELD_AT_ONCE = 200
TAKEN_OVER = 2_000
CALLS_MAX = 100_000


class TimedWorld(EdgeWorld):
    """Counts the processor time spent inside the edge machine; everybody else's is left out."""

    def __init__(self) -> None:
        keys = Keys("test")
        trunk = TrunkValue(trunk="carrier1", hosts=[CARRIER[0]], dids=["6000"], max_calls=CALLS_MAX)
        key = keys.trunk("carrier1")
        super().__init__({key: KeyValue(key, encode(trunk), 1, 1)})

    def config(self) -> EdgeConfig:
        return dataclasses.replace(super().config(), calls_max=CALLS_MAX)

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


def measure_takeover(held: int) -> dict[str, float]:
    """So many answered calls, all of them in the store; then another process takes them over."""
    world = TimedWorld()
    callers = []
    for _ in range(held):
        world.now += 0.01
        callers.append(world.call_in()[0])
        world.carrier.heard.clear()
        world.sip_log.clear()
        world.ng.clear()
    world.run(1.0, step=0.1)
    stored = [item for item in world.store.values() if item.key.startswith(world.keys.prefix("dialogs"))]
    assert len(stored) == held
    begin = time.process_time()
    world.boot()
    taken_s = time.process_time() - begin
    inside_s = world.spent_s
    assert len(world.edge.calls.by_id) == held and world.edge.serving
    world.carrier.sip.hangup(callers[0], world.now)
    world.settle()
    assert len(world.edge.calls.by_id) == held - 1
    tracemalloc.start()
    world.boot()
    memory = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return {
        "held": held,
        "stored_bytes_per_call": round(sum(len(item.value) for item in stored) / held),
        "memory_kib_per_call": round(memory / held / 1024, 1),
        "takeover_s": round(inside_s, 2),
        "takeover_with_others_s": round(taken_s, 2),
    }


def main() -> None:
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else CALLS
    held = int(sys.argv[2]) if len(sys.argv) > 2 else TAKEN_OVER
    rounds = [measure(calls) for _ in range(3)]
    result = {name: round(max(r[name] for r in rounds)) for name in rounds[0]}
    where = {
        "version": __version__,
        "python": platform.python_version(),
        "machine": platform.processor() or platform.machine(),
    }
    print(json.dumps({"calls": calls, **result, **measure_takeover(held), **where}))


if __name__ == "__main__":
    main()
