"""Gradient-boosted trees on features of a window: Ke et al. 2017, LightGBM, NeurIPS 30.

What won the Kaggle competition on BrisT1D. One ensemble of trees for the point (squared error) and
one for each quantile (pinball loss), of how far glucose moves from the newest reading. Every step
of the horizon is a row, with the step and the clock at it among the features; what is unobserved
stays NaN, which trees have a branch for.

Shapes: N windows, L context steps, H horizon steps, K of them, R = N K rows, W steps of a span.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field

from nocturnal_kedro.baselines import History, last_observed
from nocturnal_kedro.errors import InputError
from nocturnal_kedro.models import Answer
from nocturnal_kedro.series.nights import Nights
from nocturnal_kedro.series.physiology import ACTIONS
from nocturnal_kedro.series.schema import (
    QUANTILE_LEVELS,
    STEP_MINUTES,
    STEPS_PER_DAY,
    STEPS_PER_HOUR,
)

POINT = "point"
QUANTILES = {f"q{level:g}": level for level in QUANTILE_LEVELS}
CHANGES = (15, 30, 45, 60, 90, 120, 180, 240, 360)  # minutes back
SPANS = (1, 3, 6, 24)  # hours back
RATES = ("insulin_u", "carbs_g", "steps", "heart_rate")
LOW, HIGH = 70.0, 180.0  # mg/dL: the target range of Battelino et al. 2019
AROUND = STEPS_PER_HOUR // 2  # steps to either side of the same time yesterday


class Options(BaseModel, extra="forbid", frozen=True):
    """How much is learnt, and how finely.

    Chosen on AZT1D by validation nights and, where those could not tell, by training nights of
    people left out of the fit.
    """

    rounds: int = Field(default=150, ge=1)  # trees of an ensemble
    leaves: int = Field(default=15, ge=2)  # of a tree, at most
    learning_rate: float = Field(default=0.05, gt=0, le=1)
    least_per_leaf: int = Field(default=200, ge=1)  # rows
    shrinkage: float = Field(default=10.0, ge=0)  # L2 penalty on what a leaf says
    feature_share: float = Field(default=0.5, gt=0, le=1)  # drawn for every tree
    row_share: float = Field(default=0.5, gt=0, le=1)  # drawn for every tree
    steps_per_window: int = Field(default=4, ge=1)  # steps of the horizon that are learnt from
    # What is learnt is the same for any number; on a busy machine several wait for one another.
    threads: int = Field(default=1, ge=1)
    seed: int = 7


def fit(history: History, options: Options) -> dict[str, np.ndarray]:
    """One ensemble for the point and one for each quantile: LightGBM's text, as bytes.

    Nothing is held out to stop early: the number of rounds is an option.
    """
    import lightgbm

    draw = np.random.default_rng(options.seed)
    rows, targets = [], []
    for nights, target_NH in (
        history.sample(),
        (history.nights, history.target_NH),
    ):
        step_NK = _draw_steps(draw, target_NH.shape, options.steps_per_window)
        target_NK = np.take_along_axis(target_NH, step_NK - 1, axis=1)
        moved_R = (target_NK - last_observed(nights.glucose_NL)[:, None]).ravel()
        known_R = ~np.isnan(moved_R)
        rows.append(_features(nights, step_NK)[known_R])
        targets.append(moved_R[known_R])
    moved_R = np.concatenate(targets)
    if not len(moved_R):
        raise InputError(
            "baseline 'gradient_boosting': no training window has a reading in its horizon. Give "
            "more people or days, or change the shares under 'splits'."
        )
    learnt_from = lightgbm.Dataset(pd.concat(rows), moved_R, free_raw_data=False)
    common = {
        "learning_rate": options.learning_rate,
        "num_leaves": options.leaves,
        "min_data_in_leaf": options.least_per_leaf,
        "lambda_l2": options.shrinkage,
        "feature_fraction": options.feature_share,
        "bagging_fraction": options.row_share,
        "bagging_freq": 1,
        "seed": options.seed,
        "deterministic": True,
        "force_col_wise": True,  # or LightGBM times two ways, which round differently
        "num_threads": options.threads,
        "verbosity": -1,
    }
    objectives = {POINT: {"objective": "l2"}} | {
        name: {"objective": "quantile", "alpha": level} for name, level in QUANTILES.items()
    }
    state = {}
    for name, objective in objectives.items():
        ensemble = lightgbm.train(common | objective, learnt_from, options.rounds)
        state[name] = np.frombuffer(ensemble.model_to_string().encode(), np.uint8)
    return state


def forecast(state: dict[str, np.ndarray], nights: Nights) -> Answer:
    """Point, and quantiles that ascend: where the ensembles' cross, they are sorted."""
    import lightgbm

    shape = len(nights.glucose_NL), nights.horizon
    rows = _features(nights, np.broadcast_to(np.arange(1, nights.horizon + 1), shape))
    said = {}
    for name in (POINT, *QUANTILES):
        ensemble = lightgbm.Booster(model_str=state[name].tobytes().decode())
        moved_NH = ensemble.predict(rows, validate_features=True, num_threads=1).reshape(shape)
        said[name] = last_observed(nights.glucose_NL)[:, None] + moved_NH
    quantiles_NHQ = np.stack([said[name] for name in QUANTILES], axis=-1)
    return Answer(said[POINT], np.sort(quantiles_NHQ, axis=-1))


def _draw_steps(draw: np.random.Generator, shape: tuple[int, int], number: int) -> np.ndarray:
    """For each window one step out of each of `number` equal parts of the horizon, (N, K)."""
    nights, horizon = shape
    part = horizon / number
    return 1 + ((np.arange(number) + draw.random((nights, number))) * part).astype(int)


def _features(nights: Nights, step_NK: np.ndarray) -> pd.DataFrame:
    """What is known of each window at its origin, and of each of its steps: R rows, float32."""
    columns = {
        name: np.repeat(value_N, step_NK.shape[1]) for name, value_N in _of_windows(nights).items()
    } | {name: value_NK.ravel() for name, value_NK in _of_steps(nights, step_NK).items()}
    return pd.DataFrame(columns, dtype=np.float32)


def _of_windows(nights: Nights) -> dict[str, np.ndarray]:
    """Each feature that every step of a window has in common, (N,)."""
    glucose_NL, past = nights.glucose_NL, nights.past
    last_N = last_observed(glucose_NL)
    found = {
        "last": last_N,
        "minutes_since_last": np.argmax(~np.isnan(glucose_NL[:, ::-1]), axis=1) * STEP_MINUTES,
    }
    for minutes in CHANGES:
        # The mean of three slots: of a 15-minute sensor every one of these holds a reading.
        newest = glucose_NL.shape[1] - minutes // STEP_MINUTES
        found[f"change_{minutes}min"] = last_N - _mean(glucose_NL[:, newest - 3 : newest])
    for hours in SPANS:
        span_NW = glucose_NL[:, -hours * STEPS_PER_HOUR :]
        found[f"sd_{hours}h"] = _sd(span_NW)
        found[f"mean_{hours}h"] = _mean(span_NW) - last_N
        found[f"lowest_{hours}h"] = np.fmin.reduce(span_NW, axis=1) - last_N
        found[f"highest_{hours}h"] = np.fmax.reduce(span_NW, axis=1) - last_N
        for name in RATES:
            found[f"{name}_{hours}h"] = _mean(past[name][:, -hours * STEPS_PER_HOUR :])
    day_NW = glucose_NL[:, -STEPS_PER_DAY:]
    observed_NW = ~np.isnan(day_NW)
    found["share_low_24h"] = _mean(np.where(observed_NW, day_NW < LOW, np.nan))
    found["share_high_24h"] = _mean(np.where(observed_NW, day_NW > HIGH, np.nan))
    found["mean"] = _mean(glucose_NL)
    found["sd"] = _sd(glucose_NL)
    return found | {f"{name}_now": past[name][:, -1] for name in ACTIONS}


def _of_steps(nights: Nights, step_NK: np.ndarray) -> dict[str, np.ndarray]:
    """Each feature that differs from step to step, (N, K)."""
    half_day = STEPS_PER_DAY // 2
    slot_NK = nights.slot_of_day_N[:, None] + step_NK
    around_NL = _mean_around(nights.glucose_NL)
    # The newest time of the same clock that lies in the context: a day before, for a night.
    same_clock_NK = (step_NK - 1) % STEPS_PER_DAY - STEPS_PER_DAY
    yesterday_NK = np.take_along_axis(around_NL, around_NL.shape[1] + same_clock_NK, axis=1)
    found = {
        "step": step_NK,
        "clock": (slot_NK + half_day) % STEPS_PER_DAY - half_day,  # slots from midnight
        "yesterday": yesterday_NK - last_observed(nights.glucose_NL)[:, None],
        "change_since_yesterday": yesterday_NK - around_NL[:, -STEPS_PER_DAY][:, None],
    }
    for name in ACTIONS:
        found[f"{name}_then"] = np.take_along_axis(nights.ahead[name], step_NK - 1, axis=1)
    for name in ("iob_u", "cob_g"):
        found[f"{name}_used_by_then"] = nights.past[name][:, -1:] - found[f"{name}_then"]
    return found


def _mean(values_NW: np.ndarray) -> np.ndarray:
    """Mean of what is observed, (N,); NaN where nothing is."""
    observed = ~np.isnan(values_NW)
    count_N = observed.sum(axis=1)
    total_N = np.where(observed, values_NW, 0.0).sum(axis=1, dtype=float)
    return np.divide(total_N, count_N, out=np.full(len(count_N), np.nan), where=count_N > 0)


def _sd(values_NW: np.ndarray) -> np.ndarray:
    return np.sqrt(_mean((values_NW - _mean(values_NW)[:, None]) ** 2))


def _mean_around(glucose_NL: np.ndarray) -> np.ndarray:
    """Mean over AROUND slots to either side, inside the context, (N, L); NaN where none is read."""
    steps = np.arange(glucose_NL.shape[1])
    begin, end = np.maximum(steps - AROUND, 0), np.minimum(steps + AROUND + 1, len(steps))
    observed = ~np.isnan(glucose_NL)
    total_NL, count_NL = (
        np.pad(np.cumsum(values, axis=1, dtype=float), ((0, 0), (1, 0)))
        for values in (np.where(observed, glucose_NL, 0.0), observed)
    )
    count_NL = count_NL[:, end] - count_NL[:, begin]
    total_NL = total_NL[:, end] - total_NL[:, begin]
    return np.divide(total_NL, count_NL, out=np.full_like(total_NL, np.nan), where=count_NL > 0)
