"""Errors of a point forecast, one value per pair; reference and forecast in mg/dL.

Worked numbers for reference 100, forecast 120: squared 400, absolute 20, percentage 20, signed 20.
"""

from __future__ import annotations

import numpy as np


def signed_error(reference_mg_dl: np.ndarray, forecast_mg_dl: np.ndarray) -> np.ndarray:
    """forecast - reference in mg/dL; its mean is the bias, positive where too high."""
    return np.asarray(forecast_mg_dl) - np.asarray(reference_mg_dl)


def squared_error(reference_mg_dl: np.ndarray, forecast_mg_dl: np.ndarray) -> np.ndarray:
    """(forecast - reference)^2 in (mg/dL)^2."""
    return signed_error(reference_mg_dl, forecast_mg_dl) ** 2


def absolute_error(reference_mg_dl: np.ndarray, forecast_mg_dl: np.ndarray) -> np.ndarray:
    """|forecast - reference| in mg/dL."""
    return np.abs(signed_error(reference_mg_dl, forecast_mg_dl))


def percentage_error(reference_mg_dl: np.ndarray, forecast_mg_dl: np.ndarray) -> np.ndarray:
    """100 |forecast - reference| / reference in percent; its mean is the MAPE."""
    return 100 * absolute_error(reference_mg_dl, forecast_mg_dl) / np.asarray(reference_mg_dl)


def outside_range(reference_mg_dl: np.ndarray, forecast_mg_dl: np.ndarray) -> np.ndarray:
    """100 where the forecast lies outside 0 to 600 mg/dL, else 0; its mean is a share in percent.

    Forecasts are never clipped to look better; no sensor and no meter reads such values.
    """
    forecast = np.asarray(forecast_mg_dl)
    return 100.0 * ((forecast < 0) | (forecast > 600))
