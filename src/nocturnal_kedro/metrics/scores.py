"""From saved forecasts to scores: means by split, person and step that add up to any table."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.metrics.clinical import ZONES, clarke_zones
from nocturnal_kedro.metrics.point import (
    absolute_error,
    outside_range,
    percentage_error,
    signed_error,
    squared_error,
)
from nocturnal_kedro.metrics.probabilistic import central_covers, crps

KEY = ["source", "subject", "origin"]
QUANTILE = re.compile(r"q0\.\d+")  # their columns are named by level
CELL = ["split", "source", "subject", "step"]

# Name in scores and leaderboard -> function of (reference, forecast) in mg/dL, unreduced.
POINT_MEASURES = {
    "mse": squared_error,
    "mae_mg_dl": absolute_error,
    "mape_pct": percentage_error,
    "bias_mg_dl": signed_error,
    "outside_0_600_pct": outside_range,
}
# Name -> function of (reference, quantiles, levels) in mg/dL, unreduced over points.
QUANTILE_MEASURES: dict[str, Callable[..., np.ndarray]] = {
    "crps_mg_dl": crps,
    "coverage_50_pct": partial(central_covers, share=0.5),
    "coverage_80_pct": partial(central_covers, share=0.8),
    "coverage_90_pct": partial(central_covers, share=0.9),
    "coverage_98_pct": partial(central_covers, share=0.98),
}
ZONE_SHARES = tuple(f"clarke_{zone.lower()}_pct" for zone in ZONES)
MEASURES = (*POINT_MEASURES, *QUANTILE_MEASURES, *ZONE_SHARES)


def score_forecasts(
    forecasts: pd.DataFrame, origins: pd.DataFrame, experiment: str, model: str
) -> pd.DataFrame:
    """One row per split, source, subject and step, over that cell's observed points.

    Columns: experiment, model, split, source, subject, step, nights (of the subject in the
    split), points, each of MEASURES. Raises `InputError` if an origin of the forecasts is unknown,
    or a forecast or quantile is missing or not finite.
    """
    judged = forecasts.merge(origins, on=KEY, how="left", validate="many_to_one")
    _require_complete(judged, model)
    judged["nights"] = judged.groupby(["split", "source", "subject"])["origin"].transform("nunique")
    judged = judged[judged["target_mg_dl"].notna()]
    reference, forecast = judged["target_mg_dl"].to_numpy(), judged["forecast_mg_dl"].to_numpy()

    names = [name for name in judged if QUANTILE.fullmatch(name)]
    levels = np.array([float(name[1:]) for name in names])
    quantiles = judged[names].to_numpy()

    values = {name: measure(reference, forecast) for name, measure in POINT_MEASURES.items()}
    values |= {
        name: measure(reference, quantiles, levels) for name, measure in QUANTILE_MEASURES.items()
    }
    zones = clarke_zones(reference, forecast)
    values |= {
        share: 100.0 * (zones == zone) for share, zone in zip(ZONE_SHARES, ZONES, strict=True)
    }
    cells = judged[[*CELL, "nights"]].assign(points=1, **values)
    means = cells.groupby([*CELL, "nights"]).agg(
        points=("points", "sum"), **{name: (name, "mean") for name in values}
    )
    scores = means.reset_index()
    scores.insert(0, "experiment", experiment)
    scores.insert(1, "model", model)
    return scores


def _require_complete(judged: pd.DataFrame, model: str) -> None:
    if judged["split"].isna().any():
        lost = judged[judged["split"].isna()].iloc[0]
        raise InputError(
            f"forecasts of '{model}' hold an origin that is not in the frozen table: subject "
            f"'{lost['subject']}', {lost['origin']}. Run data_processing and evaluation again."
        )
    names = [name for name in judged if QUANTILE.fullmatch(name)]
    if not names:
        raise InputError(
            f"forecasts of '{model}' have no quantiles: they were made by another version. Run "
            f"training and evaluation again."
        )
    bad = judged[~np.isfinite(judged[["forecast_mg_dl", *names]]).all(axis=1)]
    if len(bad):
        first = bad.iloc[0]
        raise InputError(
            f"{len(bad)} forecasts of '{model}' are not finite, the first for subject "
            f"'{first['subject']}', origin {first['origin']}, step {first['step']}. A model: its "
            f"training diverged, lower its learning_rate. A baseline: its data have a hole."
        )
