"""From saved forecasts to scores: means by cells that add up to any table.

Shapes: N nights, H steps, Q levels, X observed points of all nights, P people.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel

from nocturnal_kedro.metrics.calibration import LEVELS, probability
from nocturnal_kedro.metrics.clinical import GRIDS, ZONES
from nocturnal_kedro.metrics.events import LOWS, brier, count, tabulate
from nocturnal_kedro.metrics.forecasts import NIGHT, PERSON, Forecasts
from nocturnal_kedro.metrics.point import (
    absolute_error,
    outside_range,
    percentage_error,
    signed_error,
    squared_error,
)
from nocturnal_kedro.metrics.probabilistic import (
    central_covers,
    central_score,
    central_width,
    crps,
    crps_below,
    under_quantile,
)
from nocturnal_kedro.series.schema import STEP_MINUTES

# Of the reading, in mg/dL, by the least value above a band: 70 and 180 are in range (Battelino et
# al. 2019, Diabetes Care 42:1593).
BANDS = {
    "below 54": 54.0,
    "54 to 70": 70.0,
    "70 to 180": np.nextafter(180.0, np.inf),
    "180 to 250": np.nextafter(250.0, np.inf),
    "above 250": np.inf,
}
POINTS_AT_A_TIME = 16_000  # whose quantiles stay in the cache

# Name in scores and leaderboard -> function of (reference, forecast) in mg/dL, unreduced.
POINT_MEASURES: dict[str, Callable[..., np.ndarray]] = {
    "mse": squared_error,
    "mae_mg_dl": absolute_error,
    "mape_pct": percentage_error,
    "bias_mg_dl": signed_error,
    "outside_0_600_pct": outside_range,
}
SHARES = (0.5, 0.8, 0.9, 0.98)
LOW_TAIL = (0.01, 0.05, 0.1)
# Name -> function of (reference, quantiles, levels) in mg/dL, unreduced over points.
QUANTILE_MEASURES: dict[str, Callable[..., np.ndarray]] = {
    "crps_mg_dl": crps,
    "crps_below_70_mg_dl": crps_below,
    **{f"coverage_{100 * s:.0f}_pct": partial(central_covers, share=s) for s in SHARES},
    **{f"width_{100 * s:.0f}_mg_dl": partial(central_width, share=s) for s in SHARES},
    "interval_score_80_mg_dl": partial(central_score, share=0.8),
    **{f"under_q{level:g}_pct": partial(under_quantile, level=level) for level in LOW_TAIL},
}


def _brier_below(
    reference: np.ndarray, quantiles: np.ndarray, levels: np.ndarray, threshold: float
) -> np.ndarray:
    """`brier` of the quantiles' P(glucose < threshold) at each point."""
    return brier(probability(quantiles, threshold), reference < threshold)


# Of the clinical evaluation alone, as above; it has the shares of every error grid, too.
LOW_MEASURES: dict[str, Callable[..., np.ndarray]] = {
    f"brier_{threshold:.0f}": partial(_brier_below, threshold=threshold)
    for threshold in LOWS.values()
}
STANDARD = (*POINT_MEASURES, *QUANTILE_MEASURES)
ZONE_SHARES = tuple(f"{grid}_{zone.lower()}_pct" for grid in GRIDS for zone in ZONES)
MEASURES = (*STANDARD, *LOW_MEASURES, *ZONE_SHARES)


class Evaluation(BaseModel, extra="forbid", frozen=True):
    """What a run is judged by."""

    # standard: errors and quantiles; clinical: also error grids and Brier scores of lows, and
    # alarms in the report
    kind: Literal["standard", "clinical"] = "clinical"
    by_source: bool = False  # tables also for the test nights of each source alone


def measures_of(kind: str) -> tuple[str, ...]:
    """Names of the measures that an evaluation of a kind makes."""
    return MEASURES if kind == "clinical" else STANDARD


def score_points(forecasts: Forecasts, kind: str = "clinical") -> tuple[pd.DataFrame, pd.DataFrame]:
    """Means over observed points: by split, person, step, clock hour and band, and by night.

    Columns of the first: split, source, subject, nights (of the subject in the split), step, hour
    (by the clock, of the five minutes up to the reading), band (of the reading), points,
    reference_mg_dl, each measure of the kind. Of the second: split, source, subject, origin,
    points, reference_mg_dl and the measures. Means weighted by their points add up: those of any
    rows together are the mean over the points of all.
    """
    observed_NH = forecasts.observed
    night_X, step_X = np.nonzero(observed_NH)
    reference_X = forecasts.target_NH[observed_NH]
    values = _measure(
        reference_X, forecasts.point_NH[observed_NH], forecasts.quantiles_NHQ[observed_NH], kind
    )
    nights = forecasts.nights
    group_N, groups = _groups(nights, ["split", *PERSON])
    groups["nights"] = np.bincount(group_N, minlength=len(groups))
    band_X = np.searchsorted(list(BANDS.values()), reference_X, side="right")
    minutes_N = (nights["origin"].dt.hour * 60 + nights["origin"].dt.minute).to_numpy()
    hour_X = (minutes_N[night_X] + step_X * STEP_MINUTES) // 60 % 24
    shape = len(groups), observed_NH.shape[1], 24, len(BANDS)
    cell_X = np.ravel_multi_index((group_N[night_X], step_X, hour_X, band_X), shape)
    means, cells = _means(cell_X, values)
    group, step, hour, band = np.unravel_index(cells, shape)
    by_cell = groups.iloc[group].reset_index(drop=True)
    by_cell["step"] = step + 1
    by_cell["hour"] = hour
    by_cell["band"] = np.array(list(BANDS))[band]
    by_night, which = _means(night_X, values)
    told = nights[["split", *NIGHT]].iloc[which].reset_index(drop=True)
    return pd.concat([by_cell, means], axis=1), pd.concat([told, by_night], axis=1)


def _measure(
    reference_X: np.ndarray, forecast_X: np.ndarray, quantiles_XQ: np.ndarray, kind: str
) -> dict[str, np.ndarray]:
    """Every measure of every point, (X,), some points at a time."""
    names = ("reference_mg_dl", *measures_of(kind))
    values = {name: np.empty(len(reference_X)) for name in names}

    def fill(first: int) -> None:
        at = slice(first, first + POINTS_AT_A_TIME)
        part = _measure_part(reference_X[at], forecast_X[at], quantiles_XQ[at], kind)
        for name in names:
            values[name][at] = part[name]

    with ThreadPoolExecutor() as threads:  # numpy computes outside of Python's lock
        list(threads.map(fill, range(0, len(reference_X), POINTS_AT_A_TIME)))
    return values


def _measure_part(
    reference_X: np.ndarray, forecast_X: np.ndarray, quantiles_XQ: np.ndarray, kind: str
) -> dict[str, np.ndarray]:
    of_quantiles = QUANTILE_MEASURES | (LOW_MEASURES if kind == "clinical" else {})
    values = {
        "reference_mg_dl": reference_X,
        **{name: measure(reference_X, forecast_X) for name, measure in POINT_MEASURES.items()},
        **{name: of(reference_X, quantiles_XQ, LEVELS) for name, of in of_quantiles.items()},
    }
    if kind == "clinical":
        for name, grid in GRIDS.items():
            zones_X = grid.zones(reference_X, forecast_X)
            values |= {f"{name}_{zone.lower()}_pct": 100.0 * (zones_X == zone) for zone in ZONES}
    return values


def score_levels(forecasts: Forecasts) -> pd.DataFrame:
    """How often the reading lies at or below each quantile: calibrated, and as the model gave it.

    Columns: split, source, subject, quantiles ("calibrated" or "raw"), level, under_pct (nominal
    is 100 x level), points.
    """
    group_N, groups = _groups(forecasts.nights, ["split", *PERSON])
    points = np.bincount(group_N, forecasts.observed.sum(axis=1)).astype(np.int64)
    tables = []
    for stage, quantiles_NHQ in (
        ("calibrated", forecasts.quantiles_NHQ),
        ("raw", forecasts.raw_NHQ),
    ):
        if quantiles_NHQ is None:
            continue
        # What is unobserved is under nothing.
        under_NQ = (forecasts.target_NH[..., None] <= quantiles_NHQ).sum(axis=1)
        for level, under_N in zip(LEVELS, under_NQ.T, strict=True):
            share = 100 * np.bincount(group_N, under_N) / np.maximum(points, 1)
            tables.append(
                groups.assign(quantiles=stage, level=level, under_pct=share, points=points)
            )
    return pd.concat(tables, ignore_index=True).query("points > 0", engine="python")


def count_low_readings(forecasts: Forecasts) -> pd.DataFrame:
    """Readings by what was said of each: that it would be below a threshold, to a thousandth.

    Columns: split, source, subject, low (of LOWS), column (1000 x the probability), events (those
    that were below) and others.
    """
    observed_NH = forecasts.observed
    group_N, groups = _groups(forecasts.nights, ["split", *PERSON])
    group_X = group_N[np.nonzero(observed_NH)[0]]
    reference_X = forecasts.target_NH[observed_NH]
    tables = []
    for low, threshold in LOWS.items():
        said_X = probability(forecasts.quantiles_NHQ, threshold)[observed_NH]
        rows = tabulate(count(said_X, reference_X < threshold, group_X, len(groups)))
        people = groups.iloc[rows.pop("person")].reset_index(drop=True)
        tables.append(pd.concat([people.assign(low=low), rows], axis=1))
    return pd.concat(tables, ignore_index=True)


def pool(scores: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Scores of coarser cells: means over the points of all cells of each group of `by`.

    Adds rmse_mg_dl, the root of the mean squared error of the group.
    """
    averaged = [name for name in ("reference_mg_dl", *MEASURES) if name in scores]
    group, groups = _groups(scores, by)
    points_X = scores["points"].to_numpy(np.float64)
    points = np.bincount(group, points_X)
    means = {
        name: np.bincount(group, scores[name].to_numpy() * points_X) / points for name in averaged
    }
    return groups.assign(points=points.astype(np.int64), **means, rmse_mg_dl=np.sqrt(means["mse"]))


def _groups(rows: pd.DataFrame, by: list[str]) -> tuple[np.ndarray, pd.DataFrame]:
    """The number of each row's group, and the groups in order."""
    coded = [pd.factorize(rows[name], sort=True) for name in by]
    shape = tuple(len(known) for _, known in coded)
    at = np.ravel_multi_index([code for code, _ in coded], shape)
    found, number = np.unique(at, return_inverse=True)
    codes = np.unravel_index(found, shape)
    return number, pd.DataFrame(
        {name: known[code] for name, code, (_, known) in zip(by, codes, coded, strict=True)}
    )


def _means(cell_X: np.ndarray, values: dict[str, np.ndarray]) -> tuple[pd.DataFrame, np.ndarray]:
    """Means of every measure by cell, and which cells have a point."""
    points = np.bincount(cell_X)
    cells = np.flatnonzero(points)
    means = {
        name: np.bincount(cell_X, value_X)[cells] / points[cells]
        for name, value_X in values.items()
    }
    return pd.DataFrame({"points": points[cells], **means}), cells
