"""The same saved forecasts scored under other papers' rules, each figure named by its rule.

A figure can be set beside a paper's where origin, horizon and cohort are the paper's, too; the
rule alone moves it by a factor of two.

Shapes: N nights, H steps.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from nocturnal_kedro.metrics.calibration import interpolated
from nocturnal_kedro.metrics.forecasts import PERSON, Forecasts
from nocturnal_kedro.metrics.point import squared_error
from nocturnal_kedro.series.schema import MG_DL_PER_MMOL_L, STEP_MINUTES, STEPS_PER_HOUR

MINUTES_AHEAD = (30, 60, 90, 120)  # of single steps that papers report
HOURS = (1.0, 2.0, 6.0)  # besides the whole horizon


def pooled_rmse(square_NH: np.ndarray, person_N: np.ndarray) -> float:
    """Root of the mean over all points of everybody, in mg/dL: people with more nights count more.

    What most papers print. Worked: errors 3 and 4 of one, 12 of another: sqrt(169 / 3) = 7.51.
    """
    return float(np.sqrt(np.nanmean(square_NH)))


def subject_macro_rmse(square_NH: np.ndarray, person_N: np.ndarray) -> float:
    """Mean over people of the root of each one's mean, in mg/dL: this project's headline.

    Worked: errors 3 and 4 of one, 12 of another: (3.54 + 12) / 2 = 7.77.
    """
    seen_NH = ~np.isnan(square_NH)
    total_P = np.bincount(person_N, np.where(seen_NH, square_NH, 0.0).sum(axis=1))
    count_P = np.bincount(person_N, seen_NH.sum(axis=1))
    return float(np.sqrt(total_P[count_P > 0] / count_P[count_P > 0]).mean())


def root_median_window_mse(square_NH: np.ndarray, person_N: np.ndarray) -> float:
    """Root of the median over windows of each one's mean, in mg/dL.

    What GlucoBench prints as RMSE (Sergazinov et al. 2024, ICLR): half of the windows, the hard
    ones, do not move it. Worked: windows with the errors (3, 4), (12), (1): sqrt(12.5) = 3.54.
    """
    return float(np.sqrt(np.nanmedian(_window_mse(square_NH))))


def mean_window_rmse(square_NH: np.ndarray, person_N: np.ndarray) -> float:
    """Mean over windows of the root of each one's mean, in mg/dL.

    Worked: windows with the errors (3, 4), (12), (1): (3.54 + 12 + 1) / 3 = 5.51.
    """
    return float(np.nanmean(np.sqrt(_window_mse(square_NH))))


RULES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "subject-macro RMSE": subject_macro_rmse,
    "pooled RMSE": pooled_rmse,
    "root median window MSE (GlucoBench)": root_median_window_mse,
    "mean window RMSE": mean_window_rmse,
}


def translate(forecasts: Forecasts) -> pd.DataFrame:
    """One row per split, horizon, rule and unit, over the frozen test and validation nights.

    Columns: split, steps (those scored, as "1 to 96" or "12"), minutes (of the last), targets
    ("observed", or "interpolated" as some do: with readings that nobody took), rule, rmse_mg_dl,
    rmse_mmol_l.
    """
    rows = []
    horizon = forecasts.target_NH.shape[1]
    reached = sorted({int(hours * STEPS_PER_HOUR) for hours in HOURS} | {horizon})
    spans = {f"1 to {last}": slice(0, last) for last in reached if last <= horizon}
    single = (minutes // STEP_MINUTES for minutes in MINUTES_AHEAD)
    spans |= {str(step): slice(step - 1, step) for step in single if step <= horizon}
    targets = {
        "observed": forecasts.target_NH,
        # Never a target of this project: it is smooth, and easy to forecast.
        "interpolated": interpolated(forecasts.target_NH),
    }
    for split, at in forecasts.nights.groupby("split").indices.items():
        person_N = forecasts.nights.iloc[at].groupby(PERSON).ngroup().to_numpy()
        for kind, target_NH in targets.items():
            square_NH = squared_error(target_NH[at], forecasts.point_NH[at])
            for steps, span in spans.items():
                if np.isnan(square_NH[:, span]).all():
                    continue
                for rule, score in RULES.items():
                    value = score(square_NH[:, span], person_N)
                    rows.append((split, steps, span.stop * STEP_MINUTES, kind, rule, value))
    columns = ["split", "steps", "minutes", "targets", "rule", "rmse_mg_dl"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(rmse_mmol_l=table["rmse_mg_dl"] / MG_DL_PER_MMOL_L)


def _window_mse(square_NH: np.ndarray) -> np.ndarray:
    """The mean of every window that has a reading, in (mg/dL)^2."""
    return np.nanmean(square_NH[~np.isnan(square_NH).all(axis=1)], axis=1)
