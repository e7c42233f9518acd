"""Saved forecasts, laid out by night: what every metric reads.

Shapes: N nights, H steps, Q levels (QUANTILE_LEVELS).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.schema import QUANTILE_LEVELS

NIGHT = ["source", "subject", "origin"]
PERSON = ["source", "subject"]
# Columns of the forecasts: calibrated, and as a model gave them.
QUANTILES = tuple(f"q{level:g}" for level in QUANTILE_LEVELS)
RAW = tuple(f"raw_{name}" for name in QUANTILES)
AGAIN = "Run training and evaluation again."


@dataclass(frozen=True)
class Forecasts:
    """One model's forecasts and what happened, all in mg/dL."""

    nights: pd.DataFrame  # N rows: source, subject, origin, split
    target_NH: np.ndarray  # NaN where unobserved
    point_NH: np.ndarray
    quantiles_NHQ: np.ndarray  # calibrated, ascending
    raw_NHQ: np.ndarray | None  # as the model gave them; None of a point model

    @property
    def observed(self) -> np.ndarray:
        """Where there is a reading to score by, (N, H)."""
        return ~np.isnan(self.target_NH)


def lay_out(forecasts: pd.DataFrame, origins: pd.DataFrame, model: str) -> Forecasts:
    """Read saved forecasts as arrays; their order does not matter.

    Raises `InputError` if an origin is not in the frozen table, a step is missing or doubled, or a
    forecast or quantile is missing or not finite.
    """
    _require_quantiles(forecasts, model)
    if forecasts.empty:
        raise InputError(f"forecasts of '{model}' hold no night. {AGAIN}")
    horizon = int(forecasts["step"].max())
    if not _by_night(forecasts, horizon):
        forecasts = forecasts.sort_values([*NIGHT, "step"], ignore_index=True)
    nights = forecasts[NIGHT].iloc[::horizon].reset_index(drop=True)
    if not _by_night(forecasts, horizon) or nights.duplicated().any():
        raise InputError(
            f"forecasts of '{model}' do not hold the steps 1 to {horizon} of every night once: a "
            f"part of them is lost or doubled. {AGAIN}"
        )
    nights = nights.merge(origins[[*NIGHT, "split"]], on=NIGHT, how="left", validate="one_to_one")
    if nights["split"].isna().any():
        lost = nights[nights["split"].isna()].iloc[0]
        raise InputError(
            f"forecasts of '{model}' hold an origin that is not in the frozen table: subject "
            f"'{lost['subject']}', {lost['origin']}. Run data_processing and evaluation again."
        )
    shape = len(nights), horizon
    laid_out = Forecasts(
        nights,
        forecasts["target_mg_dl"].to_numpy(np.float64).reshape(shape),
        forecasts["forecast_mg_dl"].to_numpy(np.float64).reshape(shape),
        forecasts[list(QUANTILES)].to_numpy().reshape(*shape, -1),
        forecasts[list(RAW)].to_numpy().reshape(*shape, -1) if RAW[0] in forecasts else None,
    )
    _require_finite(laid_out, model)
    return laid_out


def _by_night(forecasts: pd.DataFrame, horizon: int) -> bool:
    """Whether each night's steps stand together, in order."""
    if len(forecasts) % horizon:
        return False
    step_NH = forecasts["step"].to_numpy().reshape(-1, horizon)
    if (step_NH != np.arange(1, horizon + 1)).any():
        return False
    keys = (forecasts[name].to_numpy().reshape(-1, horizon) for name in NIGHT)
    return all((key_NH == key_NH[:, :1]).all() for key_NH in keys)


def _require_quantiles(forecasts: pd.DataFrame, model: str) -> None:
    lacking = [name for name in QUANTILES if name not in forecasts]
    if lacking:
        raise InputError(
            f"forecasts of '{model}' lack the quantiles {', '.join(lacking)}: they were made by "
            f"another version. {AGAIN}"
        )


def _require_finite(forecasts: Forecasts, model: str) -> None:
    bad_NH = ~(np.isfinite(forecasts.point_NH) & np.isfinite(forecasts.quantiles_NHQ).all(axis=-1))
    if bad_NH.any():
        night, step = (int(where[0]) for where in np.nonzero(bad_NH))
        first = forecasts.nights.iloc[night]
        raise InputError(
            f"{bad_NH.sum()} forecasts of '{model}' are not finite, the first for subject "
            f"'{first['subject']}', origin {first['origin']}, step {step + 1}. A model: its "
            f"training diverged, lower its learning_rate. A baseline: its data have a hole."
        )
