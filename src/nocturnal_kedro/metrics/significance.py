"""Whether a difference is more than chance: functions of arrays, M models over P people.

Errors are the values: lower is better, and a difference is the first's minus the second's.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

LEVEL = 0.05
# A person's nights are too few to tell how they vary; see docs/metrics.md, "Pairs".
FEWEST_NIGHTS = 8


@lru_cache(maxsize=8)
def draw_people(people: int, resamples: int, seed: int) -> np.ndarray:
    """How often each person is drawn in each resample, (R, P): shared by every model and metric."""
    draws_RP = np.random.default_rng(seed).multinomial(
        people, np.full(people, 1 / people), size=resamples
    )
    draws_RP = draws_RP.astype(np.float64)  # as what it is multiplied with
    draws_RP.flags.writeable = False
    return draws_RP


def bootstrap_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Means of M models over people, and training seeds, drawn with replacement, (resamples, M).

    `values` are (M, P), or (M, S, P) with NaN where a model was not trained with that seed. Every
    model is averaged over the same draws, so differences are paired. One multinomial draw and one
    matrix product for people (Efron 1979). A resample draws seeds apart from people and gives each
    person the same ones (Owen 2007, Ann Appl Stat 1:386); models of the same seeds share them.
    """
    values_MSP = values if values.ndim == 3 else values[:, None]
    models, seeds, people = values_MSP.shape
    draws_RP = draw_people(people, resamples, seed)
    draw = np.random.default_rng([seed, 1])
    by_seed = draws_RP @ values_MSP.reshape(models * seeds, people).T / people
    by_seed_RMS = by_seed.reshape(resamples, models, seeds)

    means_RM = np.empty((resamples, models))
    trained_MS = ~np.isnan(values_MSP).any(axis=2)
    for trained_S in np.unique(trained_MS, axis=0):
        alike_M = (trained_MS == trained_S).all(axis=1)
        own = int(trained_S.sum())
        draws_RS = draw.multinomial(own, np.full(own, 1 / own), size=resamples)
        own_RMS = by_seed_RMS[:, alike_M][:, :, trained_S]
        means_RM[:, alike_M] = np.einsum("rms,rs->rm", own_RMS, draws_RS) / own
    return means_RM


def interval(samples_RM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The central 95 % of resamples, (M,) and (M,)."""
    low_M, high_M = np.quantile(samples_RM, [0.025, 0.975], axis=0)
    return low_M, high_M


def apart_from_best(values_MP: np.ndarray, samples_RM: np.ndarray) -> np.ndarray:
    """Which of M models are told apart from the best of them, (M,) bool; the best is not.

    The 95 % interval of the paired difference to the best lies above 0, and Wilcoxon's test over
    people, corrected by Holm, is below LEVEL, which takes six people at least. `samples_RM` are
    means of the same values over people that were drawn: see `bootstrap_means`.
    """
    best = int(np.argmin(values_MP.mean(axis=1)))
    worse_low_M, _ = interval(samples_RM - samples_RM[:, [best]])
    others_M = np.arange(len(values_MP)) != best
    p_M = np.ones(len(values_MP))
    p_M[others_M] = holm(wilcoxon_p(values_MP[others_M] - values_MP[best]))
    return (worse_low_M > 0) & (p_M < LEVEL)


def win_rate(difference_KP: np.ndarray) -> np.ndarray:
    """Share of people for whom the first is better; who is equal counts half, (K,).

    Worked: differences -3, -1, 0, 2 give (1 + 1 + 0.5) / 4 = 0.625.
    """
    return np.mean((difference_KP < 0) + 0.5 * (difference_KP == 0), axis=1)


def wilcoxon_p(difference_KP: np.ndarray) -> np.ndarray:
    """Two-sided p of the signed rank test over people (Wilcoxon 1945, Biometrics Bull 1:80), (K,).

    Who differs by exactly 0 is left out, as Wilcoxon did; if nobody differs p is 1. Exact up to 50
    people, or 13 where sizes repeat; above, the normal approximation.
    Worked: differences -3, -1, -4, -2, -6, 5 have rank sums 16 and 5; of the 64 ways to sign six
    ranks 20 sum to 5 or less, or to 16 or more, in all 20 / 64 = 0.3125.
    """
    from scipy.stats import wilcoxon

    differing = [difference_P[difference_P != 0] for difference_P in difference_KP]
    return np.array([wilcoxon(some_P).pvalue if len(some_P) else 1.0 for some_P in differing])


def holm(p_K: np.ndarray) -> np.ndarray:
    """p-values of one family, corrected (Holm 1979, Scand J Stat 6:65), (K,).

    Worked: 0.01, 0.04, 0.03 become 3 * 0.01 = 0.03, and max(2 * 0.03, 1 * 0.04) = 0.06 twice.
    """
    order = np.argsort(p_K)
    corrected_K = np.empty(len(p_K))
    stepped_K = p_K[order] * np.arange(len(p_K), 0, -1)
    corrected_K[order] = np.minimum(np.maximum.accumulate(stepped_K), 1)
    return corrected_K


def diebold_mariano_z(
    difference_N: np.ndarray, person_N: np.ndarray, day_N: np.ndarray
) -> np.ndarray:
    """How far each person's mean nightly loss differential is from 0, as a normal deviate, (P,).

    The nights lie person after person, each person's in order of date. The variance of the mean has
    Bartlett weights up to lag 1 (Newey & West 1987, Econometrica 55:703): that of the nights, plus
    the products of nights one day apart, both over the number of nights n. A missing night leaves
    its products out (Parzen 1963). It is divided by what it expects of independent nights,
    1 - 1/n - m/n² with m such products; for unweighted lags without gaps that is the correction of
    Harvey, Leybourne & Newbold 1997 (Int J Forecasting 13:281). The statistic of Diebold & Mariano
    1995 (J Bus Econ Stat 13:253) is then read from Student's t with n - 1 degrees of freedom.
    Worked: differentials 4, 1, 3, -2 of nights 0, 1, 2 and 4 have the mean 1.5, squares 21 / 4,
    products -2 / 4, variance (5.25 - 0.5) / (1 - 1/4 - 2/16) = 7.6, t = 1.5 / √(7.6 / 4) = 1.0882,
    p = 0.3561, z = 0.9228.
    """
    from scipy.stats import norm, t

    starts_P = np.flatnonzero(np.diff(person_N, prepend=-1))
    nights_P = np.diff(starts_P, append=len(person_N))
    mean_P = np.add.reduceat(difference_N, starts_P) / nights_P
    centred_N = difference_N - np.repeat(mean_P, nights_P)
    follows_N = (np.diff(person_N, prepend=-1) == 0) & (np.round(np.diff(day_N, prepend=0)) == 1)
    product_N = np.where(follows_N, centred_N * np.roll(centred_N, 1), 0.0)
    varied_P = np.add.reduceat(centred_N**2 + product_N, starts_P) / nights_P
    expected_P = 1 - 1 / nights_P - np.add.reduceat(follows_N, starts_P, dtype=int) / nights_P**2
    with np.errstate(divide="ignore", invalid="ignore"):
        t_P = mean_P / np.sqrt(np.maximum(varied_P, 0) / expected_P / nights_P)
    t_P = np.where(mean_P == 0, 0.0, t_P)
    smallest = np.finfo(float).tiny  # where every night differs by the same, p is not 0
    return np.sign(t_P) * norm.isf(np.maximum(t.sf(np.abs(t_P), nights_P - 1), smallest))


def stouffer_z(z_P: np.ndarray, nights_P: np.ndarray) -> float:
    """One normal deviate from those of people, weighted by the root of their nights; NaN of nobody.

    sum √n z / √(sum n) (Stouffer 1949; Liptak 1958). Worked: 1 and 2 of 9 and 16 nights give
    (3 + 8) / 5 = 2.2.
    """
    return float(np.sqrt(nights_P) @ z_P / np.sqrt(nights_P.sum())) if len(z_P) else np.nan
