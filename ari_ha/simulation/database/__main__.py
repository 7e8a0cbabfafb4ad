"""``python -m ari_ha.simulation.database --seeds 1000``: seeds of the simulated pair."""

from __future__ import annotations

import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from ari_ha.simulation.database.faults import KINDS, Odds
from ari_ha.simulation.database.run import Plan, run_seed

STORY_TAIL_LINES = 400
HARD = (1.5, 0.03, 0.5)
"""Pause between faults, share of transactions lost, lag of the watch."""


def main() -> int:
    """Runs seeds; 1 when one failed, with the way to see it again."""
    parser = argparse.ArgumentParser(prog="python -m ari_ha.simulation.database", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--seed", type=int, help="this one, with its story")
    parser.add_argument("--faults", default="", help="only these, comma separated")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between faults, in fair weather")
    parser.add_argument("--hard", action="store_true", help="every fault, every 1.5 s, etcd lossy and late")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    given = parser.parse_args()
    kinds = tuple(given.faults.split(",")) if given.faults else KINDS
    odds = Odds(kinds=kinds, pause_s=given.pause) if given.pause else None
    plan = Plan(kinds=kinds, odds=Odds(kinds, *HARD) if given.hard else odds)
    if given.seed is not None:
        result = run_seed(given.seed, plan, tell=True)
        for line in result.story[-STORY_TAIL_LINES:]:
            print(line)
        print(f"seed {given.seed}: {result.shape}: {'good' if result.good else result.problems}")
        return 0 if result.good else 1
    began = time.perf_counter()
    bad, acks, reigns = [], 0, 0
    seeds = range(given.first, given.first + given.seeds)
    with ProcessPoolExecutor(min(given.jobs, os.cpu_count() or 1)) as pool:
        work = partial(run_seed, plan=plan)
        results = pool.map(work, seeds, chunksize=8) if given.jobs > 1 else map(work, seeds)
        for result in results:
            acks, reigns = acks + result.acks, reigns + result.reigns
            if not result.good:
                bad.append(result)
                print(
                    f"seed {result.seed} ({result.shape})", *map(str, result.problems), sep="\n  ", flush=True
                )
    took = time.perf_counter() - began
    print(
        f"SIMULATED  {given.seeds} seeds, {acks} confirmed writes, {reigns} promotions:"
        f" {len(bad)} failed ({given.seeds / took:.1f} seeds/s)"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
