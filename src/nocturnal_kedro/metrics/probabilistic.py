"""Quality of quantile forecasts, one value per pair; reference and quantiles in mg/dL."""

from __future__ import annotations

import numpy as np


def interval_covers(
    reference_mg_dl: np.ndarray, lower_mg_dl: np.ndarray, upper_mg_dl: np.ndarray
) -> np.ndarray:
    """100 where lower <= reference <= upper, else 0; its mean is the coverage in percent.

    A calibrated interval from the quantiles a/2 and 1 - a/2 has a mean of 100 (1 - a); below it,
    the forecast is surer than it may be. Worked: 100 in [90, 110] 100, 120 in [90, 110] 0.
    """
    reference = np.asarray(reference_mg_dl)
    return 100.0 * ((np.asarray(lower_mg_dl) <= reference) & (reference <= np.asarray(upper_mg_dl)))
