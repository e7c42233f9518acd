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
