"""What happened in each night, whatever was forecast: lows, rescues, and how usual lows are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from nocturnal_kedro.metrics.events import LOWS, PROLONGED_STEPS, LowEvents, low_events
from nocturnal_kedro.series.corpus import CHANNELS, Corpus
from nocturnal_kedro.series.origins import Task, origin_rows
from nocturnal_kedro.series.schema import STEP_MINUTES, STEPS_PER_DAY

SUSPENDED_STEPS = 6  # half an hour without insulin: shorter ones are part of any pump's work
# How much everybody's share of low nights weighs beside somebody's own, in nights: a person with
# few training nights is not said to never be low.
PRIOR_NIGHTS = 5.0
MOST = 0.5  # of a night's slots


def describe_nights(corpus: Corpus, origins: pd.DataFrame, task: Task) -> pd.DataFrame:
    """One row per frozen origin: source, subject, origin, split, and what came of it.

    last_mg_dl (newest reading up to the origin), meal_g (carbs of the origin's slot, NaN where none
    are on record), lowest_mg_dl; and for each of LOWS, as `low_…` or `very_low_…`: happened, onset
    (step, 0 without), minutes, prolonged, usual (the share of such nights in the person's training
    nights, drawn to everybody's by PRIOR_NIGHTS; of people outside training everybody's).
    carbs_after and suspended: whether carbs were logged after the origin, and insulin stopped for
    half an hour; NaN where neither that nor most of the night is on record. Both can turn a low
    away that was rightly forecast. A night is the horizon of an origin: those of meals and of
    sliding origins may overlap.
    """
    rows_N = origin_rows(corpus, origins)
    window_NH = rows_N[:, None] + np.arange(1, task.horizon_steps + 1)
    glucose_NH = _channel(corpus, "glucose_mg_dl", window_NH)
    nights = origins[["source", "subject", "origin", "split"]].reset_index(drop=True)
    nights["last_mg_dl"] = _last_reading(corpus, rows_N)
    nights["meal_g"] = _channel(corpus, "carbs_g", rows_N)
    nights["lowest_mg_dl"] = np.fmin.reduce(glucose_NH, axis=1)
    for name, threshold in LOWS.items():
        nights = nights.join(_low(low_events(glucose_NH, threshold)).add_prefix(f"{name}_"))
        nights[f"{name}_usual"] = _usual(nights, nights[f"{name}_happened"])
    nights["carbs_after"] = _known(
        _channel(corpus, "carbs_g", window_NH), lambda carbs_NH: np.any(carbs_NH > 0, axis=1)
    )
    nights["suspended"] = _known(_channel(corpus, "insulin_u", window_NH), _suspended)
    return nights


def _channel(corpus: Corpus, name: str, rows: np.ndarray) -> np.ndarray:
    at = CHANNELS.index(name)
    values = corpus.values_TC[rows, at].astype(np.float64)
    return np.where(corpus.observed_TC[rows, at], values, np.nan)


def _last_reading(corpus: Corpus, rows_N: np.ndarray) -> np.ndarray:
    """The newest reading that was there at the origin, of the day before it."""
    window_NL = (rows_N[:, None] - np.arange(STEPS_PER_DAY)).clip(min=0)
    glucose_NL = _channel(corpus, "glucose_mg_dl", window_NL)
    glucose_NL[corpus.late_T[rows_N], 0] = np.nan
    newest_N = (~np.isnan(glucose_NL)).argmax(axis=1)
    return glucose_NL[np.arange(len(rows_N)), newest_N]


def _low(events: LowEvents) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "happened": events.happened_N,
            "onset": events.onset_N,
            "minutes": events.minutes_N,
            "prolonged": events.longest_N > PROLONGED_STEPS * STEP_MINUTES,
        }
    )


def _usual(nights: pd.DataFrame, happened: pd.Series) -> pd.Series:
    train = nights["split"] == "train"
    everybody = happened[train].mean()
    keys = [nights["source"], nights["subject"]]
    lows = (happened & train).groupby(keys).transform("sum")
    known = train.groupby(keys).transform("sum")
    return (lows + PRIOR_NIGHTS * everybody) / (known + PRIOR_NIGHTS)


def _known(values_NH: np.ndarray, told: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """1 of a night where it is seen, 0 where it is not and most is on record, else NaN."""
    seen_N = told(values_NH)
    on_record_N = (~np.isnan(values_NH)).mean(axis=1) > MOST
    return np.where(seen_N, 1.0, np.where(on_record_N, 0.0, np.nan))


def _suspended(insulin_NH: np.ndarray) -> np.ndarray:
    stopped_N = np.zeros(len(insulin_NH), np.int64)
    longest_N = stopped_N.copy()
    for insulin_N in insulin_NH.T:
        stopped_N = np.where(insulin_N == 0, stopped_N + 1, 0)
        longest_N = np.maximum(longest_N, stopped_N)
    return longest_N >= SUSPENDED_STEPS
