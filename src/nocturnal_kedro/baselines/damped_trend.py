"""The newest reading plus a slope that dies away: Gardner & McKenzie 1985, Mgmt Sci 31:1237.

forecast(h) = last + slope * (phi + phi^2 + ... + phi^h), the slope by least squares over the
newest readings. The damping phi and the length of the fit are those with the least squared error
on the training nights.
"""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel

from nocturnal_kedro.baselines import History, last_observed
from nocturnal_kedro.errors import InputError
from nocturnal_kedro.models import Answer
from nocturnal_kedro.series.nights import Nights


class Options(BaseModel, extra="forbid", frozen=True):
    """The grid that `fit` searches."""

    dampings: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
    slope_steps: tuple[int, ...] = (4, 7, 13)  # slots: 15, 30, 60 minutes


def fit(history: History, options: Options) -> dict[str, np.ndarray]:
    """The damping and slope length that fit the training nights best.

    Raises `InputError` where no training night has a reading in its horizon.
    """
    if np.isnan(history.target_NH).all():
        raise InputError(
            "baseline 'damped_trend': no training night has a reading in its horizon. Give more "
            "people or days, or change the shares under 'splits'."
        )
    candidates = [
        {"damping": np.asarray(damping), "slope_steps": np.asarray(steps)}
        for damping in options.dampings
        for steps in options.slope_steps
    ]
    errors = [
        np.nanmean((forecast(state, history.nights).point_NH - history.target_NH) ** 2)
        for state in candidates
    ]
    return candidates[int(np.argmin(errors))]


def forecast(state: dict[str, np.ndarray], nights: Nights) -> Answer:
    """Points alone."""
    slope_N = _slope(nights.glucose_NL[:, -int(state["slope_steps"]) :])
    grown_H = np.cumsum(float(state["damping"]) ** np.arange(1, nights.horizon + 1))
    return Answer(last_observed(nights.glucose_NL)[:, None] + slope_N[:, None] * grown_H)


def _slope(glucose_NK: np.ndarray) -> np.ndarray:
    """Least-squares slope in mg/dL per step over the observed values; 0 with fewer than two."""
    observed = ~np.isnan(glucose_NK)
    count = np.maximum(observed.sum(axis=1, keepdims=True), 1)
    step = np.arange(glucose_NK.shape[1]) * observed
    step = (step - step.sum(axis=1, keepdims=True) / count) * observed
    spread = (step**2).sum(axis=1)
    covariance = (step * np.where(observed, glucose_NK, 0.0)).sum(axis=1)
    return np.divide(covariance, spread, out=np.zeros_like(spread), where=spread > 0)
