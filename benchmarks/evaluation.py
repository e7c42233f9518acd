"""How fast saved forecasts are scored, against a loop over episodes with the same functions.

    python benchmarks/evaluation.py [--json PATH] [--check] [--nights N]

20,000 nights of 500 people, 96 steps, 21 quantiles of their own and calibrated: laid out, every
measure by cell and night, levels, other papers' rules, P(low tonight) from 1,000 joint paths; then
the tables with 10,000 bootstrap resamples: the leaderboard beside the four mandatory baselines, and
pairs, alarms, calibration and breakdown beside the last value. Wall time, with the cores that numpy
takes.

Targets, which `--check` holds (exit 1 where one is missed):
- All of it takes under 10 s and 4 GB of memory.
- Clarke zones: over 10 million points a second.
- At least 50 times as fast as a loop over episodes in NumPy, which is timed on some and scaled.
- Linear growth: twice the nights take at most 2.5 times as long.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil

from nocturnal_kedro.metrics import breakdown, compare
from nocturnal_kedro.metrics.alarms import rank_alarms
from nocturnal_kedro.metrics.calibration import SCORES_Q, Spread, draw_paths
from nocturnal_kedro.metrics.clinical import GRIDS, ZONES, clarke_zones
from nocturnal_kedro.metrics.compare import MANDATORY, Comparison
from nocturnal_kedro.metrics.events import LOWS, foresee_lows, low_events
from nocturnal_kedro.metrics.forecasts import QUANTILES, RAW, lay_out
from nocturnal_kedro.metrics.scores import (
    LEVELS,
    LOW_MEASURES,
    POINT_MEASURES,
    QUANTILE_MEASURES,
    score_levels,
    score_points,
)
from nocturnal_kedro.metrics.translate import translate

STEPS, NIGHTS_OF_ONE, LOOPED = 96, 40, 150
ALL = ("model", *MANDATORY)
TWO = ("model", MANDATORY[0])
AT_MOST = {"seconds": 10.0, "memory_gb": 4.0, "growth": 2.5}
AT_LEAST = {"clarke_million_a_s": 10.0, "times_faster_than_loop": 50.0}


def invent(nights: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Saved forecasts of some nights, the frozen table, and what came of each night."""
    draw = np.random.default_rng(0)
    people = -(-nights // NIGHTS_OF_ONE)
    origins = pd.DataFrame(
        {
            "source": "invented",
            "subject": np.repeat([f"p{k:05}" for k in range(people)], NIGHTS_OF_ONE)[:nights],
            "origin": np.tile(pd.date_range("2026-01-05", periods=NIGHTS_OF_ONE), people)[:nights],
        }
    )
    person = np.arange(nights) // NIGHTS_OF_ONE
    origins["split"] = np.array(["patient", "temporal", "validation"])[person % 3]
    path = draw.normal(140, 35, (nights, 1)) + draw.normal(0, 6, (nights, STEPS)).cumsum(axis=1)
    target = np.where(draw.random(path.shape) < 0.05, np.nan, path.clip(40, 400))
    point = path[:, :1] + draw.normal(0, 10, path.shape)
    size = 6 * np.sqrt(np.arange(1, STEPS + 1))[:, None]
    quantiles = (point[..., None] + size * SCORES_Q).astype(np.float32)
    forecasts = origins.drop(columns="split").loc[np.repeat(np.arange(nights), STEPS)]
    forecasts = forecasts.reset_index(drop=True).assign(
        step=np.tile(np.arange(1, STEPS + 1), nights),
        target_mg_dl=target.ravel(),
        forecast_mg_dl=point.ravel(),
    )
    levels = [
        pd.DataFrame(quantiles.reshape(-1, len(LEVELS)), columns=names)
        for names in (QUANTILES, RAW)
    ]
    outcomes = origins.assign(last_mg_dl=point[:, 0], carbs_after=0.0, suspended=0.0)
    for name, threshold in LOWS.items():
        events = low_events(target, threshold)
        outcomes[f"{name}_happened"], outcomes[f"{name}_onset"] = events.happened_N, events.onset_N
        outcomes[f"{name}_usual"] = events.happened_N.mean()
    return pd.concat([forecasts, *levels], axis=1), origins, outcomes


def spread() -> Spread:
    distance = np.abs(np.subtract.outer(np.arange(STEPS), np.arange(STEPS)))
    return Spread(np.zeros((STEPS, len(LEVELS))), np.exp(-distance / 20))


def evaluate(
    forecasts: pd.DataFrame, origins: pd.DataFrame, outcomes: pd.DataFrame
) -> dict[str, float]:
    """Seconds of each part; the models that the tables compare say the same here."""
    seconds: dict[str, float] = {}

    def timed(name: str, part: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        done = part()
        seconds[name] = time.perf_counter() - started
        return done

    laid_out = timed("lay_out", lambda: lay_out(forecasts, origins, "model"))
    by_cell, by_night = timed("score_points", lambda: score_points(laid_out))
    levels = timed("score_levels", lambda: score_levels(laid_out))
    timed("translate", lambda: translate(laid_out))
    told = timed("foresee_lows", lambda: foresee_lows(laid_out, spread()))

    def of(models: tuple[str, ...], table: pd.DataFrame) -> pd.DataFrame:
        return pd.concat([table.assign(model=name, data="d") for name in models], ignore_index=True)

    cells, nights, held, lows = (of(TWO, table) for table in (by_cell, by_night, levels, told))
    of_all = of(ALL, by_cell)
    people = origins[["source", "subject"]].drop_duplicates()
    quality = people.assign(sampling_minutes=5, daily_dose_u=40.0, median_mg_dl=150.0)
    comparison = Comparison()
    timed("build_leaderboard", lambda: compare.build_leaderboard(of_all, comparison))
    timed("compare_pairs", lambda: compare.compare_pairs(nights, comparison))
    timed("rank_alarms", lambda: rank_alarms(lows, outcomes, comparison))
    timed("summarise_levels", lambda: breakdown.summarise_levels(held, comparison))
    timed("break_down", lambda: breakdown.break_down(cells, nights, quality, comparison))
    return seconds


def loop(forecasts: pd.DataFrame, nights: int) -> float:
    """Seconds a night of the usual way: each episode by itself, with the same functions."""
    target, point = (
        forecasts[name].to_numpy().reshape(-1, STEPS)[:nights]
        for name in ("target_mg_dl", "forecast_mg_dl")
    )
    quantiles = forecasts[list(QUANTILES)].to_numpy().reshape(-1, STEPS, len(LEVELS))[:nights]
    own = spread()
    started = time.perf_counter()
    for night in range(nights):
        seen = ~np.isnan(target[night])
        r, p, q = target[night][seen], point[night][seen], quantiles[night][seen]
        scores = {name: measure(r, p).mean() for name, measure in POINT_MEASURES.items()}
        for name, measure in (QUANTILE_MEASURES | LOW_MEASURES).items():
            scores[name] = measure(r, q, LEVELS).mean()
        for name, grid in GRIDS.items():
            zones = grid.zones(r, p)
            scores |= {f"{name}_{zone}": (zones == zone).mean() for zone in ZONES}
        paths = draw_paths(quantiles[night][None], own, 1000, seed=0)[0]
        for threshold in LOWS.values():
            below = paths < threshold
            run = below[:, :-2] & below[:, 1:-1] & below[:, 2:]
            scores[f"p_{threshold}"] = run.any(axis=1).mean()
            low_events(target[night][None], threshold)
    return (time.perf_counter() - started) / nights


def clarke_speed(points: int = 10_000_000) -> float:
    """Millions of points a second, on one core."""
    draw = np.random.default_rng(0)
    reference, forecast = draw.uniform(40, 400, points), draw.uniform(20, 450, points)
    started = time.perf_counter()
    clarke_zones(reference, forecast)
    return points / 1e6 / (time.perf_counter() - started)


class Memory:
    """The most that the process held, looked at every 20 ms."""

    def __enter__(self) -> Memory:
        self.most, self._over = 0, threading.Event()
        self._watch = threading.Thread(target=self._look)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watch.join()

    def _look(self) -> None:
        process = psutil.Process()
        while not self._over.wait(0.02):
            self.most = max(self.most, process.memory_info().rss)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    parser.add_argument("--nights", type=int, default=20_000)
    asked = parser.parse_args()
    print(f"{platform.platform()}, {len(os.sched_getaffinity(0))} cores, numpy {np.__version__}")
    evaluate(*invent(20 * NIGHTS_OF_ONE))  # what is imported late is not to be timed
    half = evaluate(*invent(asked.nights // 2))
    forecasts, origins, outcomes = invent(asked.nights)
    with Memory() as memory:
        parts = evaluate(forecasts, origins, outcomes)
    seconds = sum(parts.values())
    of_one = ("lay_out", "score_points", "foresee_lows")
    figures = {f"{name}_s": value for name, value in parts.items()} | {
        "seconds": seconds,
        "memory_gb": memory.most / 1e9,
        "growth": seconds / sum(half.values()),
        "clarke_million_a_s": clarke_speed(),
        "loop_ms_a_night": 1000 * loop(forecasts, LOOPED),
        "ms_a_night": 1000 * sum(parts[name] for name in of_one) / asked.nights,
    }
    figures["times_faster_than_loop"] = figures["loop_ms_a_night"] / figures["ms_a_night"]
    for name, value in figures.items():
        print(f"{name:<28}{value:>12,.3f}")
    if asked.json:
        asked.json.write_text(json.dumps(figures, indent=2))
    missed = [
        f"{name} is {figures[name]:,.2f}, the target {limit:,.0f}"
        for limits, sign in ((AT_MOST, 1), (AT_LEAST, -1))
        for name, limit in limits.items()
        if sign * figures[name] > sign * limit
    ]
    print("; ".join(missed) or "every target is held")
    return int(asked.check and bool(missed))


if __name__ == "__main__":
    sys.exit(main())
