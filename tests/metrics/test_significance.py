"""Tests of difference against hand values, other libraries, enumeration and their own promise."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, rankdata, t
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.multitest import multipletests

from nocturnal_kedro.metrics.significance import (
    bootstrap_means,
    diebold_mariano_z,
    holm,
    stouffer_z,
    wilcoxon_p,
    win_rate,
)


def covered(values: np.ndarray) -> float:
    """Percent of 95 % intervals, one a row, that hold the true mean 0."""
    held = []
    for number, some in enumerate(np.array_split(values, len(values) // 500)):
        low, high = np.quantile(bootstrap_means(some, 1000, seed=number), [0.025, 0.975], axis=0)
        held.append((low <= 0) & (high >= 0))
    return 100 * np.concatenate(held).mean()


def test_bootstrap_is_paired_seeded_and_centred() -> None:
    values = np.array([[10.0, 20, 30, 40], [11, 21, 31, 41]])
    samples = bootstrap_means(values, 10_000, seed=1)
    np.testing.assert_allclose(samples[:, 1] - samples[:, 0], 1.0)
    assert samples[:, 0].mean() == pytest.approx(25, abs=0.3)
    assert samples[:, 0].std() == pytest.approx(np.std([10, 20, 30, 40]) / 2, rel=0.05)
    np.testing.assert_array_equal(samples, bootstrap_means(values, 10_000, seed=1))


def test_bootstrap_of_one_seed_is_that_of_people_bit_for_bit() -> None:
    values = np.random.default_rng(0).gamma(4, 8, (7, 23))
    draws = np.random.default_rng(5).multinomial(23, np.full(23, 1 / 23), size=500)
    np.testing.assert_array_equal(bootstrap_means(values, 500, 5), draws @ values.T / 23)
    np.testing.assert_array_equal(bootstrap_means(values[:, None], 500, 5), draws @ values.T / 23)


def test_bootstrap_of_seeds_draws_them_apart_from_people() -> None:
    """Each mean taken one by one from the same draws; the second model has one of three seeds."""
    values = np.random.default_rng(0).gamma(4, 8, (3, 3, 5))
    values[1, [0, 2]] = np.nan
    got = bootstrap_means(values, 40, seed=2)
    people = np.random.default_rng(2).multinomial(5, np.full(5, 1 / 5), size=40)
    draw = np.random.default_rng([2, 1])
    draw.multinomial(1, [1.0], size=40)  # the one seed of the second model
    seeds = draw.multinomial(3, np.full(3, 1 / 3), size=40)
    for r, model in product(range(40), (0, 2)):
        drawn = [values[model, s] for s in range(3) for _ in range(seeds[r, s])]
        mean = np.mean([np.repeat(run, people[r]).mean() for run in drawn])
        assert got[r, model] == pytest.approx(mean, rel=1e-12)
    np.testing.assert_allclose(got[:, [1]], bootstrap_means(values[1:2, 1], 40, seed=2), rtol=1e-12)


@pytest.mark.parametrize(("people", "percent"), [(4, 81), (5, 84), (10, 90), (25, 93)])
def test_interval_holds_the_truth_as_often_as_documented(people: int, percent: float) -> None:
    values = np.random.default_rng(3).normal(size=(5000, people))
    assert covered(values) == pytest.approx(percent, abs=1.8)


@pytest.mark.parametrize(("seeds", "percent"), [(2, 75), (3, 85), (5, 91), (10, 93)])
def test_interval_over_few_seeds_is_as_narrow_as_documented(seeds: int, percent: float) -> None:
    draw = np.random.default_rng(4)
    person, seed = draw.normal(size=(2500, 1, 25)), draw.normal(size=(2500, seeds, 1))
    values = person + 0.6 * seed + 0.3 * draw.normal(size=(2500, seeds, 25))
    assert covered(values) == pytest.approx(percent, abs=2.5)
    if seeds == 3:  # 25 people alone would hold it far less often
        assert covered(values.mean(axis=1)) < 70


def test_win_rate_by_hand() -> None:
    rates = win_rate(np.array([[-3.0, -1, 0, 2], [5, 1, 3, -0.1]]))
    np.testing.assert_array_equal(rates, [0.625, 0.25])


def test_signed_ranks_by_hand() -> None:
    differences = np.array([[-3.0, -1, -4, -2, -6, 5], [0, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6]])
    np.testing.assert_allclose(wilcoxon_p(differences), [20 / 64, 1, 2 / 64], rtol=1e-12)


@pytest.mark.parametrize(("kind", "people"), [("apart", 11), ("with zeros", 16), ("with ties", 11)])
def test_signed_ranks_enumerated(kind: str, people: int) -> None:
    """Every way to sign the ranks of those who differ, counted."""
    draw = np.random.default_rng(6)
    difference = draw.normal(0.4, 1, people)
    if kind == "with ties":
        difference = draw.integers(1, 5, people) * 1.0
        difference[:3] *= -1
    if kind == "with zeros":
        difference[[4, 9]] = 0
    differing = difference[difference != 0]
    ranks = rankdata(np.abs(differing))
    sums = np.array(list(product([0, 1], repeat=len(ranks)))) @ ranks
    own = ranks[differing > 0].sum()
    expected = 2 * min((sums <= own + 1e-9).mean(), (sums >= own - 1e-9).mean())
    assert wilcoxon_p(difference[None])[0] == pytest.approx(min(expected, 1), rel=1e-9)


def test_signed_ranks_of_many_people_are_near_normal() -> None:
    difference = np.random.default_rng(7).normal(0.3, 1, 60)
    own = rankdata(np.abs(difference))[difference > 0].sum()
    z = (own - 60 * 61 / 4) / np.sqrt(60 * 61 * 121 / 24)
    assert wilcoxon_p(difference[None])[0] == pytest.approx(2 * norm.sf(abs(z)), rel=1e-9)


@settings(max_examples=6)  # theirs takes a tenth of a second
@given(st.lists(st.floats(1e-6, 1), min_size=2, max_size=12))
def test_holm_is_that_of_statsmodels(p: list[float]) -> None:
    np.testing.assert_allclose(holm(np.array(p)), multipletests(p, method="holm")[1], rtol=1e-12)


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03])), [0.03, 0.06, 0.06])
    assert len(holm(np.array([]))) == 0


def deviate(statistic: float, nights: int) -> float:
    return float(np.sign(statistic) * norm.isf(t.sf(abs(statistic), nights - 1)))


def test_diebold_mariano_by_hand_with_a_missing_night() -> None:
    difference, person = np.array([4.0, 1, 3, -2, 5, 7]), np.array([0, 0, 0, 0, 1, 1])
    day = np.array([0.0, 1.05, 2, 4, 5, 7])  # a bedtime is not always at the same minute
    z = diebold_mariano_z(difference, person, day)
    np.testing.assert_allclose(z[0], deviate(1.5 / np.sqrt(7.6 / 4), 4))
    np.testing.assert_allclose(z[0], 0.9228, atol=5e-5)
    np.testing.assert_allclose(z[1], deviate(6.0, 2))  # no two nights follow: the usual t


@given(st.integers(0, 2**32 - 1))
def test_diebold_mariano_in_closed_form(seed: int) -> None:
    """Person by person from the definition, and without gaps its variance is statsmodels' HAC."""
    draw = np.random.default_rng(seed)
    differences, people, days, expected = [], [], [], []
    for person in range(4):
        day = np.arange(14) if person == 0 else np.flatnonzero(draw.random(25) < 0.6) + 2
        while len(day) < 3:
            day = np.append(day, day[-1:] + 2) if len(day) else np.array([5])
        d, n = draw.normal(0.3, 2, len(day)) + draw.normal(), len(day)
        by_day = dict(zip(day.tolist(), d - d.mean(), strict=True))
        products = [e * by_day[k + 1] for k, e in by_day.items() if k + 1 in by_day]
        variance = (sum(e**2 for e in by_day.values()) + sum(products)) / n
        unbiased = variance / (1 - 1 / n - len(products) / n**2)
        expected.append(deviate(d.mean() / np.sqrt(unbiased / n), n))
        if person == 0:
            fit = OLS(d, np.ones(n)).fit(cov_type="HAC", cov_kwds={"maxlags": 1})
            assert fit.bse[0] ** 2 * n == pytest.approx(variance)
            # With full weight the correction is the one that Harvey et al. print, for lag 1: h = 2.
            assert 1 - 1 / n - 2 * (n - 1) / n**2 == pytest.approx((n + 1 - 4 + 2 / n) / n)
        differences, people, days = [*differences, *d], [*people, *[person] * n], [*days, *day]
    got = diebold_mariano_z(np.array(differences), np.array(people), np.array(days, float))
    np.testing.assert_allclose(got, expected, rtol=1e-7)


def test_equal_and_constant_differentials() -> None:
    person, day = np.repeat([0, 1], 9), np.tile(np.arange(9.0), 2)
    z = diebold_mariano_z(np.repeat([0.0, -0.5], 9), person, day)
    assert z[0] == 0
    assert -40 < z[1] < -30
    assert len(diebold_mariano_z(*np.empty((3, 0)))) == 0


def test_stouffer_by_hand() -> None:
    assert stouffer_z(np.array([1.0, 2]), np.array([9, 16])) == pytest.approx(2.2)
    assert np.isnan(stouffer_z(np.array([]), np.array([])))


def test_signed_ranks_of_nothing_are_low_one_time_in_twenty() -> None:
    differences = np.random.default_rng(8).standard_t(3, (1000, 25))
    assert (wilcoxon_p(differences) < 0.05).mean() == pytest.approx(0.05, abs=0.018)


@pytest.mark.parametrize(
    ("nights", "missing", "echo", "rate"),
    [(8, 0.0, 0.0, 0.065), (40, 0.0, 0.0, 0.053), (40, 0.3, 0.0, 0.053), (40, 0.0, 0.2, 0.085)],
)
def test_diebold_mariano_of_nothing_is_low_as_often_as_documented(
    nights: int, missing: float, echo: float, rate: float
) -> None:
    """1500 tables of 20 people; with `echo` a night's differential passes that share on."""
    draw = np.random.default_rng(9)
    loss = draw.normal(size=(1500 * 20, nights + 20))
    for night in range(1, nights + 20):
        loss[:, night] += echo * loss[:, night - 1]
    kept = draw.random((1500 * 20, nights)) >= missing
    person, day = np.nonzero(kept)
    z = diebold_mariano_z(loss[:, 20:][kept], person, day.astype(float)).reshape(1500, 20)
    counts = kept.sum(axis=1).reshape(1500, 20)
    combined = np.array([stouffer_z(*table) for table in zip(z, counts, strict=True)])
    assert (np.abs(combined) > 1.96).mean() == pytest.approx(rate, abs=0.018)
