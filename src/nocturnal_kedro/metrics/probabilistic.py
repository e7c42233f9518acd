"""Quality of quantile forecasts, one value per point; reference and quantiles in mg/dL.

Shapes: any number of points, (...), and their quantiles, (..., Q) at the levels (Q,).
"""

from __future__ import annotations

import numpy as np


def pinball(
    reference_mg_dl: np.ndarray, quantiles_mg_dl: np.ndarray, levels: np.ndarray
) -> np.ndarray:
    """Loss of each quantile, (..., Q) in mg/dL: t (y - q) where y >= q, else (1 - t) (q - y).

    Koenker & Bassett 1978, Econometrica 46:33; least, on average, at the true quantile. Worked
    numbers at level 0.9: reference 100 and quantile 90 give 9, reference 100 and quantile 120 2.
    """
    short = np.asarray(reference_mg_dl)[..., None] - np.asarray(quantiles_mg_dl)
    return np.maximum(levels * short, (levels - 1) * short)


def crps(
    reference_mg_dl: np.ndarray, quantiles_mg_dl: np.ndarray, levels: np.ndarray
) -> np.ndarray:
    """Continuous ranked probability score in mg/dL: 2 x the mean pinball loss over the levels.

    Gneiting & Raftery 2007, JASA 102:359, eq. 20 and Laio & Tamea 2007: its integral over levels,
    here their plain mean as docs/metrics.md defines it. All quantiles at the same value give twice
    the mean of levels or of 1 - level times the distance: with levels 0.25, 0.5, 0.75 and all
    quantiles at 120, reference 100 gives 20.
    """
    return 2 * pinball(reference_mg_dl, quantiles_mg_dl, levels).mean(axis=-1)


def interval_covers(
    reference_mg_dl: np.ndarray, lower_mg_dl: np.ndarray, upper_mg_dl: np.ndarray
) -> np.ndarray:
    """100 where lower <= reference <= upper, else 0; its mean is the coverage in percent.

    A calibrated interval from the quantiles a/2 and 1 - a/2 has a mean of 100 (1 - a); below it,
    the forecast is surer than it may be. Worked: 100 in [90, 110] 100, 120 in [90, 110] 0.
    """
    reference = np.asarray(reference_mg_dl)
    return 100.0 * ((np.asarray(lower_mg_dl) <= reference) & (reference <= np.asarray(upper_mg_dl)))


def central_covers(
    reference_mg_dl: np.ndarray, quantiles_mg_dl: np.ndarray, levels: np.ndarray, share: float
) -> np.ndarray:
    """`interval_covers` of the central interval that is to hold `share` of what happens.

    Raises ValueError where its two ends are not among the levels: never the nearest ones.
    """
    ends = [np.flatnonzero(np.isclose(levels, end)) for end in ((1 - share) / 2, (1 + share) / 2)]
    if not all(len(end) == 1 for end in ends):
        raise ValueError(f"the central {share:.0%} has no quantiles among the levels {levels}")
    (low,), (high,) = ends
    quantiles = np.asarray(quantiles_mg_dl)
    return interval_covers(reference_mg_dl, quantiles[..., low], quantiles[..., high])
