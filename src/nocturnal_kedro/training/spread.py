"""How far what happens lies from a forecast: conformal quantiles and joint paths, in numpy.

Shapes: N nights, H steps, Q levels (QUANTILE_LEVELS), S paths.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri

from nocturnal_kedro.models import Answer
from nocturnal_kedro.series.schema import QUANTILE_LEVELS

LEVELS = np.array(QUANTILE_LEVELS)
STEPS_AROUND = 6  # residuals of half an hour to either side have the shape of a step's
# Between the readings of a 15-minute sensor scores are interpolated.
STEPS_BETWEEN = 3


class Spread(NamedTuple):
    """Fitted on validation nights, after training; nothing of a test night is in it."""

    offset_HQ: np.ndarray  # mg/dL, added to the model's own quantile, or to its point
    correlation_HH: np.ndarray  # of normal scores over the steps of a night

    @classmethod
    def none(cls, horizon: int) -> Spread:
        """Nothing added, every step for itself."""
        return cls(np.zeros((horizon, len(LEVELS))), np.eye(horizon))


def fit_spread(answer: Answer, target_NH: np.ndarray) -> Spread:
    """What `with_quantiles` and `draw_paths` need, from forecasts of validation nights.

    `target_NH` in mg/dL is NaN where unobserved. The offset of a level is the empirical quantile,
    at that level, of target minus forecast: split-conformal prediction, for a point model of
    Papadopoulos et al. 2002, for quantiles that of Romano et al. 2019 (arXiv:1905.03222) for each
    tail alone. Few nights do not show a tail at each step, so the shape is taken from the steps
    around, and centre and size are each step's own.
    """
    residual_NHQ = target_NH[..., None] - _base(answer)
    horizon = target_NH.shape[1]
    observed_NH = ~np.isnan(target_NH)
    seen_H = observed_NH.any(axis=0)
    centre_HQ = _every_step(np.median, residual_NHQ, observed_NH, seen_H)
    size_HQ = _every_step(np.mean, np.abs(residual_NHQ - centre_HQ), observed_NH, seen_H)
    size_HQ = np.maximum(size_HQ, 1e-6)
    shape_NHQ = (residual_NHQ - centre_HQ) / size_HQ
    offset_HQ = np.empty((horizon, len(LEVELS)))
    for step in range(horizon):
        around = slice(max(step - STEPS_AROUND, 0), step + STEPS_AROUND + 1)
        shape_XQ = shape_NHQ[:, around][observed_NH[:, around]]
        if not len(shape_XQ):  # no reading for over an hour in any night
            shape_XQ = shape_NHQ[observed_NH]
        for number, level in enumerate(LEVELS):
            offset_HQ[step, number] = np.quantile(
                shape_XQ[:, number], level, method="median_unbiased"
            )
    offset_HQ = centre_HQ + size_HQ * offset_HQ
    fitted = with_quantiles(answer, Spread(offset_HQ, np.eye(horizon)))
    assert fitted.quantiles_NHQ is not None
    scores_NH = ndtri(probability(fitted.quantiles_NHQ, target_NH))
    return Spread(offset_HQ, _correlate(_bridge(scores_NH)))


def with_quantiles(answer: Answer, spread: Spread) -> Answer:
    """The same points, with quantiles that are calibrated and ascend."""
    quantiles_NHQ = _base(answer) + spread.offset_HQ
    return Answer(answer.point_NH, np.sort(quantiles_NHQ, axis=-1))


def draw_paths(quantiles_NHQ: np.ndarray, spread: Spread, paths: int, seed: int) -> np.ndarray:
    """Whole nights that may come, (N, S, H) in mg/dL, from a Gaussian copula over the steps.

    Each step's values follow its quantiles, and steps hang together as they did on validation:
    Schefzik et al. 2013, Stat Sci 28:616. The probability of an event tonight is its share among
    the paths.
    """
    nights, horizon, _ = quantiles_NHQ.shape
    values, vectors = np.linalg.eigh(spread.correlation_HH)
    root_HH = vectors * np.sqrt(np.clip(values, 0, None))
    drawn = np.random.default_rng(seed).standard_normal((nights, paths, horizon))
    return at_probability(quantiles_NHQ, ndtr(drawn @ root_HH.T))


def probability(quantiles_NHQ: np.ndarray, value_NH: np.ndarray) -> np.ndarray:
    """P(glucose <= value) of each forecast, (N, H): linear between levels, in their normal scores.

    Beyond the outer levels the last two go on in a line, as the tails of a normal distribution do;
    the result is kept inside 0.001 and 0.999. NaN where the value is.
    """
    scores_Q = ndtri(LEVELS)
    below = (quantiles_NHQ <= value_NH[..., None]).sum(axis=-1)
    lower = np.clip(below - 1, 0, len(LEVELS) - 2)[..., None]
    low, high = (np.take_along_axis(quantiles_NHQ, lower + k, axis=-1)[..., 0] for k in (0, 1))
    width = np.maximum(high - low, 1e-6)
    share = (value_NH - low) / width
    lower = lower[..., 0]
    score = scores_Q[lower] + share * (scores_Q[lower + 1] - scores_Q[lower])
    return np.clip(ndtr(score), 0.001, 0.999)


def at_probability(quantiles_NHQ: np.ndarray, p_NSH: np.ndarray) -> np.ndarray:
    """The inverse of `probability`: glucose at P = p, (N, S, H) in mg/dL."""
    scores_Q = ndtri(LEVELS)
    score_NSH = ndtri(np.clip(p_NSH, 0.001, 0.999))
    lower = np.clip(np.searchsorted(scores_Q, score_NSH) - 1, 0, len(LEVELS) - 2)
    night = np.arange(len(quantiles_NHQ))[:, None, None]
    step = np.arange(quantiles_NHQ.shape[1])
    low, high = quantiles_NHQ[night, step, lower], quantiles_NHQ[night, step, lower + 1]
    share = (score_NSH - scores_Q[lower]) / (scores_Q[lower + 1] - scores_Q[lower])
    return low + share * (high - low)


def _every_step(
    summary: Callable[..., np.ndarray],
    values_NHQ: np.ndarray,
    observed_NH: np.ndarray,
    seen_H: np.ndarray,
) -> np.ndarray:
    """A summary over nights of each step and level, (H, Q); between steps where none was seen."""
    steps = np.flatnonzero(seen_H)
    known = np.stack([summary(values_NHQ[observed_NH[:, h], h], axis=0) for h in steps])
    every = np.arange(len(seen_H))
    return np.stack([np.interp(every, steps, known[:, q]) for q in range(known.shape[1])], axis=1)


def _base(answer: Answer) -> np.ndarray:
    if answer.quantiles_NHQ is not None:
        return answer.quantiles_NHQ
    return np.repeat(answer.point_NH[..., None], len(LEVELS), axis=-1)


def _bridge(scores_NH: np.ndarray) -> np.ndarray:
    """Scores in a line over up to STEPS_BETWEEN - 1 steps without a reading, within a night."""
    steps = np.arange(scores_NH.shape[1])
    observed = ~np.isnan(scores_NH)
    before = np.maximum.accumulate(np.where(observed, steps, -1), axis=1)
    after = np.where(observed, steps, len(steps))[:, ::-1]
    after = np.minimum.accumulate(after, axis=1)[:, ::-1]
    bridged = (before >= 0) & (after < len(steps)) & (after - before <= STEPS_BETWEEN)
    first, last = (
        np.take_along_axis(scores_NH, at.clip(0, len(steps) - 1), axis=1) for at in (before, after)
    )
    share = (steps - before) / np.maximum(after - before, 1)
    return np.where(bridged, first + share * (last - first), np.nan)


def _correlate(scores_NH: np.ndarray) -> np.ndarray:
    """Correlation of the steps' normal scores, (H, H), positive semi-definite with unit diagonal.

    From pairs of steps seen in the same night, drawn towards the mean correlation at the same
    distance by H / (H + N): few nights cannot tell each of the H (H - 1) / 2 pairs.
    """
    seen = ~np.isnan(scores_NH)
    filled = np.where(seen, scores_NH, 0.0)
    products = filled.T @ filled
    squares = (filled**2).T @ seen
    scale = np.sqrt(squares * squares.T)
    pairs = np.divide(products, scale, out=np.zeros_like(products), where=scale > 0)
    nights, horizon = scores_NH.shape
    distance = np.abs(np.subtract.outer(np.arange(horizon), np.arange(horizon)))
    known = scale > 0
    total = np.bincount(distance[known], pairs[known], minlength=horizon)
    mean_H = total / np.maximum(np.bincount(distance[known], minlength=horizon), 1)
    weight = horizon / (horizon + nights)
    drawn = np.where(known, (1 - weight) * pairs + weight * mean_H[distance], mean_H[distance])
    values, vectors = np.linalg.eigh(drawn)
    positive = (vectors * np.clip(values, 1e-6, None)) @ vectors.T
    size = np.sqrt(np.diag(positive))
    return positive / np.outer(size, size)
