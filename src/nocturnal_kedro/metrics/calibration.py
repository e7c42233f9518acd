"""How far what happens lies from a forecast: conformal quantiles and joint paths.

Shapes: N nights, H steps, Q levels (QUANTILE_LEVELS), K of them or 1, the same for all; P people,
S paths.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri

from nocturnal_kedro.series.schema import QUANTILE_LEVELS

LEVELS = np.array(QUANTILE_LEVELS)
SCORES_Q = ndtri(LEVELS)
LEAST_MG_DL = 20.0  # what is said to be lower counts as this: no sensor reads below 40
P_LOWEST, P_HIGHEST = 0.001, 0.999  # no validation split is large enough to say more
STEPS_AROUND = 6  # residuals of half an hour to either side have the shape of a step's
ENOUGH = 5000  # residuals show the shape; with more nights fewer steps around are needed
# Between the readings of a 15-minute sensor scores are interpolated.
STEPS_BETWEEN = 3
FOLDS = 10  # of people, each left out once to see what the others' residuals are worth for them
FOLD_STEPS = 5  # between steps that are looked at then; a 15-minute sensor reads at all of them


class Spread(NamedTuple):
    """Fitted on validation nights, after training; nothing of a test night is in it."""

    # Added to the logarithm of the model's own quantile, or of its point: 0.1 is 10.5 % more.
    log_offset_HQ: np.ndarray
    correlation_HH: np.ndarray  # of normal scores over the steps of a night

    @classmethod
    def none(cls, horizon: int) -> Spread:
        """Nothing added, every step for itself."""
        return cls(np.zeros((horizon, len(LEVELS))), np.eye(horizon))


def fit_spread(
    point_NH: np.ndarray,
    quantiles_NHQ: np.ndarray | None,
    target_NH: np.ndarray,
    person_N: np.ndarray,
) -> Spread:
    """What `calibrate` and `draw_paths` need, from forecasts of validation nights.

    `target_NH` in mg/dL is NaN where unobserved; `person_N` says whose a night is. The offset of a
    level is the empirical quantile of log target minus log forecast: split-conformal prediction,
    for a point model of Papadopoulos et al. 2002, for quantiles that of Romano et al. 2019
    (arXiv:1905.03222) for each tail alone. Errors grow with glucose, so it is their ratio that
    carries over from one night to another. Each person counts once, as in every table.

    Somebody new differs from those at hand, so residuals at the level itself would hold too
    little. The level that is taken is the one that holds, on average over people, for those who
    were left out: that of their probability integral transforms (Kuleshov et al. 2018,
    arXiv:1807.00263), from `FOLDS` fits without them. With one person there is nobody to leave
    out, and the level itself is taken.
    """
    base_NHK = _base(point_NH, quantiles_NHQ)
    residual_NHK = np.log(np.maximum(target_NH, LEAST_MG_DL))[..., None] - base_NHK
    levels_Q = _levels_that_hold(base_NHK, residual_NHK, target_NH, person_N)
    log_offset_HQ = _offsets(residual_NHK, person_N, levels_Q)
    fitted_NHQ = np.exp(np.sort(base_NHK + log_offset_HQ, axis=-1))
    scores_NH = ndtri(probability(fitted_NHQ, target_NH))
    return Spread(log_offset_HQ, _correlate(_bridge(scores_NH)))


def calibrate(point_NH: np.ndarray, quantiles_NHQ: np.ndarray | None, spread: Spread) -> np.ndarray:
    """Quantiles that hold what they say, ascending: (N, H, Q) in mg/dL."""
    return np.exp(np.sort(_base(point_NH, quantiles_NHQ) + spread.log_offset_HQ, axis=-1))


def draw_scores(spread: Spread, paths: int, seed: int) -> np.ndarray:
    """Normal scores of whole nights that may come, (S, H): a Gaussian copula over the steps.

    Steps hang together as they did on validation: Schefzik et al. 2013, Stat Sci 28:616. The
    probability of an event tonight is its share among the paths, never the largest of single
    steps. Every night is asked with the same scores, so that nights differ by forecast alone.
    """
    values, vectors = np.linalg.eigh(spread.correlation_HH)
    root_HH = vectors * np.sqrt(np.clip(values, 0, None))
    horizon = len(spread.correlation_HH)
    drawn_SH = np.random.default_rng(seed).standard_normal((paths, horizon)) @ root_HH.T
    return np.clip(drawn_SH, ndtri(P_LOWEST), ndtri(P_HIGHEST))


def draw_paths(quantiles_NHQ: np.ndarray, spread: Spread, paths: int, seed: int) -> np.ndarray:
    """`draw_scores` as glucose that follows each step's quantiles, (N, S, H) in mg/dL."""
    scores_SH = draw_scores(spread, paths, seed)
    return at_probability(
        quantiles_NHQ, np.broadcast_to(ndtr(scores_SH), (len(quantiles_NHQ), *scores_SH.shape))
    )


def normal_score(quantiles_NHQ: np.ndarray, value_NH: np.ndarray | float) -> np.ndarray:
    """The normal score of P(glucose <= value) of each forecast, (N, H): linear between levels.

    Beyond the outer levels the last two go on in a line, as the tails of a normal distribution do.
    NaN where the value is.
    """
    value_NH = np.broadcast_to(value_NH, quantiles_NHQ.shape[:-1])
    below = (quantiles_NHQ <= value_NH[..., None]).sum(axis=-1)
    lower = np.clip(below - 1, 0, len(LEVELS) - 2)
    low, high = (
        np.take_along_axis(quantiles_NHQ, (lower + k)[..., None], axis=-1)[..., 0] for k in (0, 1)
    )
    share = (value_NH - low) / np.maximum(high - low, 1e-6)
    return SCORES_Q[lower] + share * (SCORES_Q[lower + 1] - SCORES_Q[lower])


def probability(quantiles_NHQ: np.ndarray, value_NH: np.ndarray | float) -> np.ndarray:
    """P(glucose <= value) of each forecast, (N, H), kept inside 0.001 and 0.999; NaN as the value.

    Between levels it is linear in normal scores: see `normal_score`.
    """
    return chance(normal_score(quantiles_NHQ, value_NH))


def chance(score: np.ndarray) -> np.ndarray:
    """The probability of a normal score, kept inside 0.001 and 0.999."""
    return np.clip(ndtr(score), P_LOWEST, P_HIGHEST)


def at_probability(quantiles_NHQ: np.ndarray, p_NSH: np.ndarray) -> np.ndarray:
    """The inverse of `probability`: glucose at P = p, (N, S, H) in mg/dL."""
    score_NSH = ndtri(np.clip(p_NSH, P_LOWEST, P_HIGHEST))
    lower = np.clip(np.searchsorted(SCORES_Q, score_NSH) - 1, 0, len(LEVELS) - 2)
    night = np.arange(len(quantiles_NHQ))[:, None, None]
    step = np.arange(quantiles_NHQ.shape[1])
    low, high = quantiles_NHQ[night, step, lower], quantiles_NHQ[night, step, lower + 1]
    share = (score_NSH - SCORES_Q[lower]) / (SCORES_Q[lower + 1] - SCORES_Q[lower])
    return low + share * (high - low)


def weighted_quantile(
    values_XK: np.ndarray, weights_X: np.ndarray, levels_Q: np.ndarray
) -> np.ndarray:
    """The quantile of every column at its own level, (Q,); a value has the middle of its weight.

    Worked: of 10, 20, 40 with the weights 1, 2, 1 the values stand at 1/8, 1/2 and 7/8, so that
    the quantile at 0.5 is 20 and at 0.6875 is 30.
    """
    order_XK = np.argsort(values_XK, axis=0, kind="stable")
    weights_XK = weights_X[order_XK]
    place_XK = np.cumsum(weights_XK, axis=0) - weights_XK / 2
    place_XK /= weights_X.sum()
    sorted_XK = np.take_along_axis(values_XK, order_XK, axis=0)
    if values_XK.shape[1] == 1:
        return np.interp(levels_Q, place_XK[:, 0], sorted_XK[:, 0])
    return np.array(
        [np.interp(level, place_XK[:, q], sorted_XK[:, q]) for q, level in enumerate(levels_Q)]
    )


def steps_around(seen_NH: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The last step that was seen up to each, and the first from it on, (N, H); -1 and H: none."""
    horizon = seen_NH.shape[1]
    steps_H = np.arange(horizon)
    before_NH = np.maximum.accumulate(np.where(seen_NH, steps_H, -1), axis=1)
    after_NH = np.where(seen_NH, steps_H, horizon)[:, ::-1]
    return before_NH, np.minimum.accumulate(after_NH, axis=1)[:, ::-1]


def interpolated(values_NH: np.ndarray) -> np.ndarray:
    """Values in a line over the holes between them; NaN before the first and after the last."""
    steps_H = np.arange(values_NH.shape[1])
    before_NH, after_NH = steps_around(~np.isnan(values_NH))
    first_NH, last_NH = (
        np.take_along_axis(values_NH, at_NH.clip(0, len(steps_H) - 1), axis=1)
        for at_NH in (before_NH, after_NH)
    )
    share_NH = (steps_H - before_NH) / np.maximum(after_NH - before_NH, 1)
    inside_NH = (before_NH >= 0) & (after_NH < len(steps_H))
    return np.where(inside_NH, first_NH + share_NH * (last_NH - first_NH), np.nan)


def _base(point_NH: np.ndarray, quantiles_NHQ: np.ndarray | None) -> np.ndarray:
    """What the offsets are added to."""
    base_NHK = point_NH[..., None] if quantiles_NHQ is None else quantiles_NHQ
    return np.log(np.maximum(base_NHK, LEAST_MG_DL))


def _levels_that_hold(
    base_NHK: np.ndarray, residual_NHK: np.ndarray, target_NH: np.ndarray, person_N: np.ndarray
) -> np.ndarray:
    people, person_N = np.unique(person_N, return_inverse=True)
    if len(people) < 2:
        return LEVELS
    fold_P = np.random.default_rng(0).permutation(len(people)) % min(FOLDS, len(people))
    looked_at = slice(None, None, FOLD_STEPS)
    pit_NH = np.full(target_NH[:, looked_at].shape, np.nan)
    for fold in np.unique(fold_P):
        out_N = fold_P[person_N] == fold
        if np.isnan(target_NH[~out_N]).all():
            continue
        log_offset_HQ = _offsets(residual_NHK[~out_N], person_N[~out_N], LEVELS, FOLD_STEPS)
        without_NHQ = np.exp(np.sort(base_NHK[out_N, looked_at] + log_offset_HQ, axis=-1))
        pit_NH[out_N] = probability(without_NHQ, target_NH[out_N, looked_at])
    seen_NH = ~np.isnan(pit_NH)
    if not seen_NH.any():
        return LEVELS
    weights_X = _once_per_person(person_N, seen_NH)[seen_NH]
    levels_Q = weighted_quantile(pit_NH[seen_NH][:, None], weights_X, LEVELS)
    return np.clip(levels_Q, P_LOWEST, P_HIGHEST)


def _offsets(
    residual_NHK: np.ndarray, person_N: np.ndarray, levels_Q: np.ndarray, every: int = 1
) -> np.ndarray:
    """The quantile at each level of the residuals of `every` so many steps, (H, Q).

    Few nights do not show a tail at each step, so the shape is taken from the steps around, and
    centre and size are each step's own.
    """
    nights, horizon, columns = residual_NHK.shape
    observed_NH = ~np.isnan(residual_NHK[..., 0])
    weights_NH = _once_per_person(person_N, observed_NH)
    steps = np.flatnonzero(observed_NH.any(axis=0))
    half_K = np.full(columns, 0.5)
    centres, sizes = [], []
    for step in steps:
        residual_XK = residual_NHK[observed_NH[:, step], step]
        weights_X = weights_NH[observed_NH[:, step], step]
        centre_K = weighted_quantile(residual_XK, weights_X, half_K)
        centres.append(centre_K)
        sizes.append(np.average(np.abs(residual_XK - centre_K), axis=0, weights=weights_X))
    centre_HK, size_HK = (_every_step(steps, known, horizon) for known in (centres, sizes))
    size_HK = np.maximum(size_HK, 1e-6)
    shape_NHK = (residual_NHK - centre_HK) / size_HK
    reach = min(STEPS_AROUND, ENOUGH // nights)
    quantiles = []
    for at in range(0, horizon, every):
        around = slice(max(at - reach, 0), at + reach + 1)
        if not observed_NH[:, around].any():  # no reading for over an hour in any night
            around = slice(None)
        seen_NX = observed_NH[:, around]
        quantiles.append(
            weighted_quantile(
                shape_NHK[:, around][seen_NX], weights_NH[:, around][seen_NX], levels_Q
            )
        )
    return centre_HK[::every] + size_HK[::every] * np.stack(quantiles)


def _once_per_person(person_N: np.ndarray, observed_NH: np.ndarray) -> np.ndarray:
    """Weights with which everybody's readings together count once, (N, H)."""
    readings_P = np.bincount(person_N, observed_NH.sum(axis=1))
    weight_P = np.divide(1.0, readings_P, out=np.zeros_like(readings_P), where=readings_P > 0)
    return np.broadcast_to(weight_P[person_N][:, None], observed_NH.shape)


def _every_step(steps: np.ndarray, known: list[np.ndarray], horizon: int) -> np.ndarray:
    """What is known of some steps at every step, (H, K); between them in a line."""
    columns = np.stack(known).T
    return np.stack([np.interp(np.arange(horizon), steps, column) for column in columns], axis=1)


def _bridge(scores_NH: np.ndarray) -> np.ndarray:
    """Scores in a line over up to STEPS_BETWEEN - 1 steps without a reading, within a night."""
    before_NH, after_NH = steps_around(~np.isnan(scores_NH))
    return np.where(after_NH - before_NH <= STEPS_BETWEEN, interpolated(scores_NH), np.nan)


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
