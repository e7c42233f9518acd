"""Quantiles that hold what they say, and nights whose steps hang together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from nocturnal_kedro.metrics.calibration import (
    LEVELS,
    Spread,
    at_probability,
    calibrate,
    draw_paths,
    draw_scores,
    fit_spread,
    normal_score,
    probability,
    weighted_quantile,
)


def walks(nights: int, horizon: int = 24, seed: int = 0, sd: float = 0.07) -> np.ndarray:
    """Log glucose as a random walk from 120 mg/dL: neighbouring steps hang together."""
    steps = np.random.default_rng(seed).normal(0, sd, (nights, horizon))
    return 120 * np.exp(steps.cumsum(axis=1))


def fit(target: np.ndarray, point: float = 120.0, people: int | None = None) -> Spread:
    """Of a model that always says `point`; each night is somebody's, or `people` share them."""
    nights = np.arange(len(target)) % (people or len(target))
    return fit_spread(np.full_like(target, point), None, target, nights)


def test_a_point_model_gets_the_residuals_quantiles() -> None:
    spread = fit(walks(3000), point=110.0)
    # The log residual of step h is normal, its mean log(120 / 110) and its deviation 0.07 sqrt(h).
    middle, ratio = 12, np.log(120 / 110)
    expected = ratio + 0.07 * np.sqrt(middle + 1) * norm.ppf(LEVELS)
    np.testing.assert_allclose(spread.log_offset_HQ[middle], expected, atol=0.03)
    np.testing.assert_allclose(spread.log_offset_HQ[0], ratio + 0.07 * norm.ppf(LEVELS), atol=0.02)
    new = walks(2000, seed=1)
    said = calibrate(np.full_like(new, 110.0), None, spread)
    held = (new[..., None] <= said)[:, 7:17].mean(axis=(0, 1))
    np.testing.assert_allclose(held, LEVELS, atol=0.03)


def test_quantiles_that_are_too_narrow_are_widened() -> None:
    target = walks(2000)
    narrow = 120 * np.exp(0.3 * 0.07 * np.sqrt(np.arange(1, 25))[:, None] * norm.ppf(LEVELS))
    quantiles = np.repeat(narrow[None], len(target), axis=0)
    point = np.full_like(target, 121.5)
    said = calibrate(
        point, quantiles, fit_spread(point, quantiles, target, np.arange(len(target)) % 40)
    )
    covered = (said[..., 1] <= target) & (target <= said[..., -2])
    assert covered.mean() == pytest.approx(0.9, abs=0.015)


def test_each_person_counts_once() -> None:
    """One has ten times the nights of each other, and they are easy: nobody else is held less."""
    target = walks(400)
    easy = 120 * (walks(1000, seed=3) / 120) ** 0.1
    person = np.concatenate([np.arange(400) % 8, np.full(1000, 8)])
    both = np.concatenate([target, easy])
    spread = fit_spread(np.full_like(both, 120.0), None, both, person)
    said = calibrate(np.full_like(both, 120.0), None, spread)
    inside = (said[..., 2] <= both) & (both <= said[..., -3])  # the central 80 %
    of_people = [inside[person == number].mean() for number in range(9)]
    assert np.mean(of_people) == pytest.approx(0.8, abs=0.04)
    assert inside.mean() > 0.9


def test_somebody_new_is_held_as_promised() -> None:
    """People differ: of few, the residuals' own quantiles hold too little of the next one."""
    held, plain = [], []
    for seed in range(40):
        draw = np.random.default_rng(seed)
        person = np.repeat(np.arange(8), 15)
        size = np.exp(draw.normal(0, 0.5, 9))
        level = 120 * np.exp(draw.normal(0, 0.12, 9))
        target = level[person, None] * (walks(120, 12, seed) / 120) ** size[person, None]
        spread = fit_spread(np.full_like(target, 120.0), None, target, person)
        new = level[8] * (walks(200, 12, seed + 1000) / 120) ** size[8]
        said = calibrate(np.full_like(new, 120.0), None, spread)
        held.append(((said[..., 2] <= new) & (new <= said[..., -3])).mean())
        low, high = np.quantile(target - 120, [0.1, 0.9], axis=0)
        plain.append(((low <= new - 120) & (new - 120 <= high)).mean())
    assert np.mean(held) == pytest.approx(0.8, abs=0.03)
    assert np.mean(plain) < np.mean(held)


def test_weighted_quantile_by_hand() -> None:
    values, weights = np.array([[20.0, 1], [10, 3], [40, 7]]), np.array([2.0, 1, 1])
    np.testing.assert_allclose(weighted_quantile(values, weights, np.array([0.5, 0.25])), [20, 1])
    got = weighted_quantile(values, weights, np.array([0.6875, 0.999]))
    np.testing.assert_allclose(got, [30, 7])


def test_errors_carry_over_by_their_ratio() -> None:
    """A band fitted at 200 mg/dL is half as wide at 100, and is never below zero."""
    target = walks(500) * 200 / 120
    spread = fit(target, point=200.0, people=25)
    high, low, zero = (
        calibrate(np.full((1, 24), point), None, spread)[0] for point in (200.0, 100.0, -5.0)
    )
    np.testing.assert_allclose(low, high / 2)
    np.testing.assert_allclose(zero, high / 10)  # as of 20 mg/dL
    nothing = Spread.none(24)
    np.testing.assert_allclose(calibrate(np.full((1, 24), 87.0), None, nothing), 87.0)


def test_unobserved_targets_say_nothing() -> None:
    target = walks(500)
    holes = target.copy()
    holes[::2, :] = np.nan
    person = np.arange(500) // 2 % 25
    for with_holes, without in zip(
        fit_spread(np.full_like(target, 120.0), None, holes, person),
        fit_spread(np.full((250, 24), 120.0), None, target[1::2], person[1::2]),
        strict=True,
    ):
        # The number of nights weighs how far correlations are drawn to their mean.
        np.testing.assert_allclose(with_holes, without, atol=0.05)


def test_the_copula_finds_how_steps_hang_together() -> None:
    spread = fit(walks(4000), people=40)
    step = np.arange(1, 25)
    expected = np.sqrt(np.minimum.outer(step, step) / np.maximum.outer(step, step))
    np.testing.assert_allclose(spread.correlation_HH, expected, atol=0.06)


def test_a_slow_sensor_has_a_correlation_for_every_pair_of_steps() -> None:
    target = walks(3000, horizon=36)
    slow = np.where(np.arange(36) % 3 == 1, target, np.nan)
    correlation = fit(slow, people=40).correlation_HH
    assert np.linalg.eigvalsh(correlation).min() > 0
    np.testing.assert_allclose(np.diag(correlation), 1)
    step = np.arange(1, 37)
    expected = np.sqrt(np.minimum.outer(step, step) / np.maximum.outer(step, step))
    inner = slice(1, 34)
    np.testing.assert_allclose(correlation[inner, inner], expected[inner, inner], atol=0.15)


def test_paths_follow_quantiles_and_find_the_probability_of_an_event() -> None:
    """P(below 70 at any step) of a random walk: from paths as it is, not from single steps."""
    new = walks(20_000, seed=2)
    spread = fit(walks(4000), people=40)
    said = calibrate(np.full((3, 24), 120.0), None, spread)
    paths = draw_paths(said, spread, paths=4000, seed=5)
    assert paths.shape == (3, 4000, 24)
    for level in (0.1, 0.5, 0.9):
        held = (paths[0] <= said[0, :, LEVELS.tolist().index(level)]).mean(axis=0)
        np.testing.assert_allclose(held, level, atol=0.03)
    truth = (new.min(axis=1) < 70).mean()
    assert (paths.min(axis=2) < 70).mean() == pytest.approx(truth, abs=0.02)
    steps_alone = 1 - np.prod([1 - (new[:, h] < 70).mean() for h in range(24)])
    assert steps_alone > truth + 0.2  # independent steps would be far off


def test_paths_are_those_of_the_seed() -> None:
    said = calibrate(np.full((2, 6), 120.0), None, fit(walks(50, horizon=6)))
    spread = Spread(np.zeros((6, 21)), np.eye(6))
    first, again = (draw_paths(said, spread, 10, seed=1) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, draw_paths(said, spread, 10, seed=2))


def test_a_path_is_below_a_threshold_where_its_score_is() -> None:
    """So that events are counted in scores, without a path in mg/dL."""
    spread = fit(walks(200, horizon=12), people=20)
    said = calibrate(np.random.default_rng(4).normal(95, 20, (7, 12)), None, spread)
    paths_NSH = draw_paths(said, spread, 300, seed=1)
    scores_SH = draw_scores(spread, 300, seed=1)
    threshold_NH = normal_score(said, 70.0)
    np.testing.assert_array_equal(paths_NSH < 70, scores_SH < threshold_NH[:, None])
    assert 0.05 < (paths_NSH < 70).mean() < 0.95


@given(st.floats(0.002, 0.998), st.integers(0, 50))
def test_probability_and_its_inverse(p: float, seed: int) -> None:
    draw = np.random.default_rng(seed)
    quantiles = np.sort(draw.normal(140, 40, (1, 1, 21)), axis=-1)
    value = at_probability(quantiles, np.full((1, 1, 1), p))[:, 0]
    assert probability(quantiles, value)[0, 0] == pytest.approx(p, abs=1e-6)


def test_probability_by_hand() -> None:
    quantiles = (100 + 20 * norm.ppf(LEVELS))[None, None]
    for value in (60.0, 100.0, 133.3, 175.0):
        expected = np.clip(norm.cdf((value - 100) / 20), 0.001, 0.999)
        got = probability(quantiles, np.array([[value]]))
        assert got[0, 0] == pytest.approx(expected, abs=1e-9)
    assert np.isnan(probability(quantiles, np.array([[np.nan]]))).all()


@pytest.mark.parametrize("people", [1, 3])
def test_few_nights_still_give_a_valid_copula(people: int) -> None:
    spread = fit(walks(3), people=people)
    assert np.isfinite(spread.log_offset_HQ).all()
    assert np.linalg.eigvalsh(spread.correlation_HH).min() > 0
