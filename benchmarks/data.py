"""How fast data comes to be: the simulated cohort, all people at once against one by one.

    python benchmarks/data.py [--json PATH] [--check]

Target: 30 people for 30 days in under 20 s on one core. `--check` exits 1 where it is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

from nocturnal_kedro.sources import simulated

LIMIT_SECONDS = 20.0
PEOPLE, DAYS = 30, 30


def seconds(people: int) -> float:
    started = time.perf_counter()
    simulated.read((), simulated.Options(subjects=people, days=DAYS))
    return time.perf_counter() - started


def measure() -> dict[str, float]:
    seconds(1)  # imports and caches
    together, alone = seconds(PEOPLE), seconds(1)
    return {
        "cohort_s": together,
        "share_of_limit": together / LIMIT_SECONDS,
        "one_by_one_s": PEOPLE * alone,
        "times_faster_than_one_by_one": PEOPLE * alone / together,
        "person_days_per_s": PEOPLE * DAYS / together,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--check", action="store_true", help="exit 1 if the target is missed")
    given = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core
    figures = measure()
    print(f"{platform.platform()}, {platform.machine()}, one core, {PEOPLE} people, {DAYS} days")
    for name, value in figures.items():
        print(f"{name:<32}{value:>10.2f}")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2))
    missed = figures["cohort_s"] > LIMIT_SECONDS
    if missed:
        print(f"missed: {figures['cohort_s']:.1f} s, the limit is {LIMIT_SECONDS:.0f} s")
    return int(given.check and missed)


if __name__ == "__main__":
    sys.exit(main())
