"""Quantiles that hold what they say, and nights whose steps hang together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from nocturnal_kedro.models import Answer
from nocturnal_kedro.series.schema import QUANTILE_LEVELS
from nocturnal_kedro.training.spread import (
    Spread,
    at_probability,
    draw_paths,
    fit_spread,
    probability,
    with_quantiles,
)

LEVELS = np.array(QUANTILE_LEVELS)


def walks(nights: int, horizon: int = 24, seed: int = 0, sd: float = 8.0) -> np.ndarray:
    """Glucose as a random walk from 120 mg/dL: neighbouring steps hang together."""
    steps = np.random.default_rng(seed).normal(0, sd, (nights, horizon))
    return 120 + steps.cumsum(axis=1)


def test_a_point_model_gets_the_residuals_quantiles() -> None:
    target = walks(3000)
    spread = fit_spread(Answer(np.full_like(target, 110.0)), target)
    # The residual of step h is normal with mean 10 and deviation 8 sqrt(h).
    middle = 12
    expected = 10 + 8 * np.sqrt(middle + 1) * norm.ppf(LEVELS)
    np.testing.assert_allclose(spread.offset_HQ[middle], expected, atol=3.5)
    np.testing.assert_allclose(spread.offset_HQ[0], 10 + 8 * norm.ppf(LEVELS), atol=2)
    new = walks(2000, seed=1)
    said = with_quantiles(Answer(np.full_like(new, 110.0)), spread).quantiles_NHQ
    held = (new[..., None] <= said)[:, 7:17].mean(axis=(0, 1))
    np.testing.assert_allclose(held, LEVELS, atol=0.03)


def test_quantiles_that_are_too_narrow_are_widened_and_the_point_is_left() -> None:
    target = walks(2000)
    narrow = 120 + 0.3 * 8 * np.sqrt(np.arange(1, 25))[:, None] * norm.ppf(LEVELS)
    answer = Answer(np.full_like(target, 121.5), np.repeat(narrow[None], len(target), axis=0))
    said = with_quantiles(answer, fit_spread(answer, target))
    covered = (said.quantiles_NHQ[..., 1] <= target) & (target <= said.quantiles_NHQ[..., -2])
    assert covered.mean() == pytest.approx(0.9, abs=0.01)
    np.testing.assert_array_equal(said.point_NH, answer.point_NH)


def test_unobserved_targets_say_nothing() -> None:
    target = walks(500)
    holes = target.copy()
    holes[::2, :] = np.nan
    answer = Answer(np.full_like(target, 120.0))
    half = Answer(answer.point_NH[1::2])
    for with_holes, without in zip(
        fit_spread(answer, holes), fit_spread(half, target[1::2]), strict=True
    ):
        # The number of nights weighs how far correlations are drawn to their mean.
        np.testing.assert_allclose(with_holes, without, atol=0.05)


def test_the_copula_finds_how_steps_hang_together() -> None:
    target = walks(4000)
    spread = fit_spread(Answer(np.full_like(target, 120.0)), target)
    step = np.arange(1, 25)
    expected = np.sqrt(np.minimum.outer(step, step) / np.maximum.outer(step, step))
    np.testing.assert_allclose(spread.correlation_HH, expected, atol=0.06)


def test_a_slow_sensor_has_a_correlation_for_every_pair_of_steps() -> None:
    target = walks(3000, horizon=36)
    slow = np.where(np.arange(36) % 3 == 1, target, np.nan)
    correlation = fit_spread(Answer(np.full_like(target, 120.0)), slow).correlation_HH
    assert np.linalg.eigvalsh(correlation).min() > 0
    np.testing.assert_allclose(np.diag(correlation), 1)
    step = np.arange(1, 37)
    expected = np.sqrt(np.minimum.outer(step, step) / np.maximum.outer(step, step))
    inner = slice(1, 34)
    np.testing.assert_allclose(correlation[inner, inner], expected[inner, inner], atol=0.15)


def test_paths_follow_quantiles_and_find_the_probability_of_an_event() -> None:
    """P(below 70 at any step) of a random walk: from paths as it is, not from single steps."""
    target, new = walks(4000), walks(20_000, seed=2)
    answer = Answer(np.full_like(target, 120.0))
    spread = fit_spread(answer, target)
    said = with_quantiles(Answer(np.full((3, 24), 120.0)), spread).quantiles_NHQ
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
    said = with_quantiles(Answer(np.full((2, 6), 120.0)), fit_spread(
        Answer(np.full((50, 6), 120.0)), walks(50, horizon=6)
    )).quantiles_NHQ  # fmt: skip
    spread = Spread(np.zeros((6, 21)), np.eye(6))
    first, again = (draw_paths(said, spread, 10, seed=1) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, draw_paths(said, spread, 10, seed=2))


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


def test_few_nights_still_give_a_valid_copula() -> None:
    target = walks(3)
    spread = fit_spread(Answer(np.full_like(target, 120.0)), target)
    assert np.isfinite(spread.offset_HQ).all()
    assert np.linalg.eigvalsh(spread.correlation_HH).min() > 0
