"""Quality of quantile forecasts, one value per point; reference and quantiles in mg/dL.

Shapes: any number of points, (...), and their quantiles, (..., Q) at the levels (Q,).
"""

from __future__ import annotations

import numpy as np

from nocturnal_kedro.series.schema import LOW_MG_DL


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
    short = np.asarray(reference_mg_dl)[..., None] - np.asarray(quantiles_mg_dl)
    # t s and, where s < 0, also -s: the mean of `pinball` without its two products
    total = short @ np.asarray(levels, short.dtype) + np.maximum(-short, 0).sum(axis=-1)
    return 2 * total / len(levels)


def crps_below(
    reference_mg_dl: np.ndarray,
    quantiles_mg_dl: np.ndarray,
    levels: np.ndarray,
    threshold_mg_dl: float = LOW_MG_DL,
) -> np.ndarray:
    """`crps` in mg/dL of what lies below the threshold alone: all above it counts as the threshold.

    The threshold-weighted CRPS of Gneiting & Ranjan 2011, J Bus Econ Stat 29:411, by the chaining
    function of Allen et al. 2023, SIAM/ASA J Uncertain Quantif 11:906: min(y, threshold). Worked
    at levels 0.25, 0.5, 0.75 and a threshold of 70: quantiles 60, 80, 100 and reference 90 give
    2 (0.25 x 10 + 0 + 0) / 3 = 1.667.
    """
    return crps(
        np.minimum(reference_mg_dl, threshold_mg_dl),
        np.minimum(quantiles_mg_dl, threshold_mg_dl),
        levels,
    )


def interval_covers(
    reference_mg_dl: np.ndarray, lower_mg_dl: np.ndarray, upper_mg_dl: np.ndarray
) -> np.ndarray:
    """100 where lower <= reference <= upper, else 0; its mean is the coverage in percent.

    A calibrated interval from the quantiles a/2 and 1 - a/2 has a mean of 100 (1 - a); below it,
    the forecast is surer than it may be. Worked: 100 in [90, 110] 100, 120 in [90, 110] 0.
    """
    reference = np.asarray(reference_mg_dl)
    return 100.0 * ((np.asarray(lower_mg_dl) <= reference) & (reference <= np.asarray(upper_mg_dl)))


def interval_score(
    reference_mg_dl: np.ndarray,
    lower_mg_dl: np.ndarray,
    upper_mg_dl: np.ndarray,
    share: float,
) -> np.ndarray:
    """Width of the interval that is to hold `share`, and 2 / (1 - share) x what it misses by.

    In mg/dL; Gneiting & Raftery 2007, JASA 102:359, eq. 43; least, on average, at the true
    quantiles. Worked: [90, 110] at 0.8 gives 20 for a reference of 100, and 20 + 10 x 5 = 70 for
    115.
    """
    reference, lower = np.asarray(reference_mg_dl), np.asarray(lower_mg_dl)
    upper = np.asarray(upper_mg_dl)
    missed = np.maximum(lower - reference, 0) + np.maximum(reference - upper, 0)
    return upper - lower + 2 / (1 - share) * missed


def central(
    quantiles_mg_dl: np.ndarray, levels: np.ndarray, share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of the central interval that is to hold `share`, (...) in mg/dL.

    Raises ValueError where its two ends are not among the levels: never the nearest ones.
    """
    ends = [np.flatnonzero(np.isclose(levels, end)) for end in ((1 - share) / 2, (1 + share) / 2)]
    if not all(len(end) == 1 for end in ends):
        raise ValueError(f"the central {share:.0%} has no quantiles among the levels {levels}")
    (low,), (high,) = ends
    quantiles = np.asarray(quantiles_mg_dl)
    return quantiles[..., low], quantiles[..., high]


def central_covers(
    reference_mg_dl: np.ndarray, quantiles_mg_dl: np.ndarray, levels: np.ndarray, share: float
) -> np.ndarray:
    """`interval_covers` of the central interval that is to hold `share` of what happens."""
    return interval_covers(reference_mg_dl, *central(quantiles_mg_dl, levels, share))


def central_width(
    reference_mg_dl: np.ndarray, quantiles_mg_dl: np.ndarray, levels: np.ndarray, share: float
) -> np.ndarray:
    """Width in mg/dL of the central interval that is to hold `share`; the reference is not used."""
    lower, upper = central(quantiles_mg_dl, levels, share)
    return upper - lower


def central_score(
    reference_mg_dl: np.ndarray, quantiles_mg_dl: np.ndarray, levels: np.ndarray, share: float
) -> np.ndarray:
    """`interval_score` of the central interval that is to hold `share` of what happens."""
    return interval_score(reference_mg_dl, *central(quantiles_mg_dl, levels, share), share)


def under_quantile(
    reference_mg_dl: np.ndarray, quantiles_mg_dl: np.ndarray, levels: np.ndarray, level: float
) -> np.ndarray:
    """100 where the reference is at or below the quantile of `level`, else 0; nominal 100 x level.

    More than that in the low tail: lows come more often than was said. Raises ValueError where the
    level is not among `levels`.
    """
    [at] = np.flatnonzero(np.isclose(levels, level))
    return 100.0 * (np.asarray(reference_mg_dl) <= np.asarray(quantiles_mg_dl)[..., at])


def randomised_pit(
    reference_mg_dl: np.ndarray, quantiles_mg_dl: np.ndarray, levels: np.ndarray, seed: int = 0
) -> np.ndarray:
    """Where in its forecast each reference fell, 0 to 1: uniform if the forecast is calibrated.

    The probability integral transform; between two quantiles anywhere, at random, since nothing is
    said of where (Czado et al. 2009, Biometrics 65:1254). Worked, levels 0.25, 0.5, 0.75 and
    quantiles 80, 90, 100: a reference of 85 falls between 0.25 and 0.5, one of 120 above 0.75.
    """
    quantiles = np.asarray(quantiles_mg_dl)
    reference = np.asarray(reference_mg_dl)[..., None]
    under = (quantiles < reference).sum(axis=-1)
    upto = np.maximum((quantiles <= reference).sum(axis=-1), under + 1)  # past equal quantiles
    edges = np.concatenate([[0.0], levels, [1.0]])
    drawn = np.random.default_rng(seed).random(under.shape)
    return edges[under] + drawn * (edges[upto] - edges[under])
