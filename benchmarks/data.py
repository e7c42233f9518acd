"""How fast raw files become a corpus, against a loop over rows and against how data grow.

    python benchmarks/data.py [--json PATH] [--check] [--quick]

Targets, which `--check` holds (exit 1 where one is missed):
- A cohort as large as the largest closed-loop trial (168 people, 9 million CGM rows, the logs of
  125 pumps), in its raw format, becomes a corpus in under 150 s and 8 GB: `kedro run
  --pipelines=data_processing`, with splits, origins, quality report and leak audit.
- Time grows linearly: four times the data take at most 4.4 times as long.
- Grid and physiology alone: over 2 million rows a second on one core, and at least 1,000 times
  faster than a loop over rows with the same equations, the usual way, which gives the same numbers.
- The simulated cohort of 30 people and 30 days in under 20 s on one core.

`--quick` leaves out the large cohort.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from _brown import write_cohort

from nocturnal_kedro.series.corpus import CHANNELS, Corpus, build_corpus
from nocturnal_kedro.series.grid import GridOptions, grid_people, order_readings
from nocturnal_kedro.series.physiology import Physiology, carbs_remaining, insulin_remaining
from nocturnal_kedro.series.schema import Readings
from nocturnal_kedro.sources import find_parts, simulated

PROJECT = Path(__file__).parents[1]
PEOPLE, CGM_ROWS = 168, 9_000_000
FRACTIONS = (4, 2, 1)  # of the whole
LIMITS = {
    "corpus_s": 150.0,
    "corpus_gb": 8.0,
    "growth_by_4": 4.4,
    "cohort_s": 20.0,
}
AT_LEAST = {"rows_per_s": 2e6, "times_faster_than_a_row_loop": 1000.0}


def simulate() -> dict[str, float]:
    """The simulated cohort, all people at once against one by one; on one core."""

    def seconds(people: int) -> float:
        started = time.perf_counter()
        simulated.read((), simulated.Options(subjects=people, days=30))
        return time.perf_counter() - started

    seconds(1)  # imports and caches
    together, alone = seconds(30), seconds(1)
    return {"cohort_s": together, "times_faster_than_one_by_one": 30 * alone / together}


def grow(folder: Path) -> dict[str, float]:
    """A quarter, half and the whole of the large cohort, each from raw files to a corpus."""
    figures: dict[str, float] = {}
    for fraction in FRACTIONS:
        root, out = folder / f"raw{fraction}", folder / f"out{fraction}"
        rows = write_cohort(
            root / "brown_2019" / "Data Files", PEOPLE // fraction, CGM_ROWS // fraction
        )
        started = time.perf_counter()
        gigabytes = _run(root, out)
        seconds = time.perf_counter() - started
        told = f"{rows['people']:>5} people {rows['cgm_rows']:>10,} CGM rows"
        print(f"{told} {seconds:>7.1f} s {gigabytes:>5.2f} GB")
        figures[f"corpus_of_1_in_{fraction}_s"] = seconds
    figures["corpus_s"], figures["corpus_gb"] = seconds, gigabytes
    figures["growth_by_4"] = figures["corpus_of_1_in_1_s"] / figures["corpus_of_1_in_4_s"]
    return figures


def _run(raw_root: Path, data_root: Path) -> float:
    """Run data_processing in a process of its own; its peak memory in GB."""
    given = f"sources=brown_2019,raw_root={raw_root},data_root={data_root}"
    command = [sys.executable, "-m", "kedro", "run", "--pipelines=data_processing"]
    child = subprocess.Popen(
        [*command, f"--params={given}"], cwd=PROJECT, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    told = child.stdout.read() if child.stdout else ""
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(told)
    return usage.ru_maxrss / 1e6


def compute(folder: Path | None) -> dict[str, float]:
    """Grid and physiology alone on one core, and the same by a loop over rows."""
    if folder is None:
        readings = simulated.read((), simulated.Options(subjects=100, days=60))
    else:
        [part] = find_parts(["brown_2019"], folder / "raw1", {})
        readings = part.read()
    # The first run also asks the system for the memory, which is no work of the grid's.
    seconds = min(_vectorised(readings)[0] for _ in range(2))

    few = simulated.read((), simulated.Options(subjects=1, days=3))
    started = time.perf_counter()
    expected = _by_row(few.frame)
    by_row = (time.perf_counter() - started) / len(few.frame)
    _, corpus = _vectorised(few)
    for name, values in expected.items():
        channel = CHANNELS.index(name)
        got = np.where(corpus.observed_TC[:, channel], corpus.values_TC[:, channel], np.nan)
        known = ~np.isnan(got)
        np.testing.assert_allclose(got[known], values[known], rtol=1e-4, atol=1e-4)
    return {
        "rows": len(readings.frame),
        "rows_per_s": len(readings.frame) / seconds,
        "row_loop_rows_per_s": 1 / by_row,
        "times_faster_than_a_row_loop": by_row * len(readings.frame) / seconds,
    }


def _vectorised(readings: Readings) -> tuple[float, Corpus]:
    started = time.perf_counter()
    series, _ = grid_people(order_readings("s", readings), GridOptions())
    corpus = build_corpus(series, Physiology())
    return time.perf_counter() - started, corpus


def _by_row(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """The usual way: one row after the other, and for every slot one dose after the other."""
    slot_length = pd.Timedelta("5min")
    glucose: dict[pd.Timestamp, list[float]] = {}
    insulin: dict[pd.Timestamp, float] = {}
    carbs: dict[pd.Timestamp, float] = {}
    basal: list[tuple[pd.Timestamp, float, float]] = []
    for _, row in frame.sort_values("time", kind="stable").iterrows():
        slot = row["time"].ceil("5min")
        if not np.isnan(row["glucose_mg_dl"]):
            nearest = (row["time"] + slot_length / 2).floor("5min")
            glucose.setdefault(nearest, []).append(row["glucose_mg_dl"])
        if not np.isnan(row["basal_u_h"]):
            basal.append((row["time"], row["basal_u_h"], row["basal_minutes"]))
        if not np.isnan(row["bolus_u"]):
            insulin[slot] = insulin.get(slot, 0.0) + row["bolus_u"]
        if not np.isnan(row["carbs_g"]):
            carbs[slot] = carbs.get(slot, 0.0) + row["carbs_g"]
    for number, (begin, rate, minutes) in enumerate(basal):
        end = begin + pd.Timedelta(minutes=minutes)
        if number + 1 < len(basal):
            end = min(end, basal[number + 1][0])
        slot = begin.ceil("5min")
        while begin < end:
            until = min(end, slot)
            units = rate * (until - begin) / pd.Timedelta("1h")
            insulin[slot] = insulin.get(slot, 0.0) + units
            begin, slot = until, slot + slot_length
    physiology = Physiology()
    action, peak = physiology.insulin_action_minutes, physiology.insulin_peak_minutes
    slots = pd.date_range(min(glucose), max(glucose), freq=slot_length)
    iob, cob = [], []
    for slot in slots:
        on_board = eaten = 0.0
        for back in range(72):
            age = back * 5 + 2.5
            dose = slot - back * slot_length
            on_board += insulin.get(dose, 0.0) * float(insulin_remaining(age, action, peak))
            if age < physiology.carbs_action_minutes:
                eaten += carbs.get(dose, 0.0) * float(
                    carbs_remaining(age, physiology.carbs_peak_minutes)
                )
        iob.append(on_board)
        cob.append(eaten)
    means = [float(np.mean(glucose[slot])) if slot in glucose else np.nan for slot in slots]
    return {
        "glucose_mg_dl": np.array(means),
        "iob_u": np.array(iob),
        "cob_g": np.array(cob),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    parser.add_argument("--quick", action="store_true", help="without the large cohort")
    given = parser.parse_args()
    cores = os.sched_getaffinity(0)
    print(f"{platform.platform()}, {platform.machine()}, {len(cores)} cores")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures = {} if given.quick else grow(folder)
        os.sched_setaffinity(0, {min(cores)})  # from here on, one core
        figures |= compute(None if given.quick else folder) | simulate()
    for name, value in figures.items():
        print(f"{name:<34}{value:>16,.2f}")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2))
    unmeasured = [name for name in LIMITS if name not in figures]
    if unmeasured:
        print(f"not measured: {', '.join(unmeasured)}")
    missed = [n for n, limit in LIMITS.items() if figures.get(n, 0) > limit]
    missed += [n for n, limit in AT_LEAST.items() if figures[n] < limit]
    for name in missed:
        limit = LIMITS.get(name, AT_LEAST.get(name, 0))
        print(f"missed: {name} is {figures[name]:,.2f}, the target {limit:,.2f}")
    return int(given.check and bool(missed))


if __name__ == "__main__":
    sys.exit(main())
