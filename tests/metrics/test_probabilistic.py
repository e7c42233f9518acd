import numpy as np
import pytest
import scoringrules
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import kstest, norm
from sklearn.metrics import mean_pinball_loss

from nocturnal_kedro.metrics.calibration import LEVELS
from nocturnal_kedro.metrics.probabilistic import (
    central,
    central_covers,
    central_score,
    central_width,
    crps,
    crps_below,
    interval_covers,
    interval_score,
    pinball,
    randomised_pit,
    under_quantile,
)
from nocturnal_kedro.series.schema import MG_DL_PER_MMOL_L


def invent(points: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    centre, size = draw.uniform(60, 250, (points, 1)), draw.uniform(5, 60, (points, 1))
    return draw.uniform(45, 320, points), centre + size * norm.ppf(LEVELS)


def test_pinball_and_crps_by_hand() -> None:
    levels = np.array([0.1, 0.5, 0.9])
    quantiles = np.array([[80.0, 90, 120], [100, 110, 130]])
    loss = pinball(np.array([100.0, 90]), quantiles, levels)
    np.testing.assert_allclose(loss, [[2, 5, 2], [9, 10, 4]])
    np.testing.assert_allclose(crps(np.array([100.0, 90]), quantiles, levels), [6, 46 / 3])
    assert crps(np.array(100.0), np.full(3, 120.0), np.array([0.25, 0.5, 0.75])) == 20


def test_pinball_is_that_of_scikit_learn_and_scoringrules() -> None:
    reference, quantiles = invent()
    loss = pinball(reference, quantiles, LEVELS)
    for number, level in enumerate(LEVELS):
        quantile = quantiles[:, number]
        expected = scoringrules.quantile_score(reference, quantile, level)
        np.testing.assert_allclose(loss[:, number], expected)
        by_sklearn = mean_pinball_loss(reference, quantile, alpha=level)
        assert loss[:, number].mean() == pytest.approx(by_sklearn)


def test_crps_is_the_plain_mean_of_scoringrules() -> None:
    reference, quantiles = invent()
    expected = scoringrules.crps_quantile(reference, quantiles, LEVELS)
    np.testing.assert_allclose(crps(reference, quantiles, LEVELS), expected)


@pytest.mark.parametrize("reference", [95.0, 140.0, 210.0])
def test_crps_of_a_normal_forecast(reference: float) -> None:
    """Of many even levels it is the closed form. The 21 are uneven: the outermost two count as
    much as the others and speak for less, so that the plain mean is up to 6 % away."""
    exact = scoringrules.crps_normal(reference, 140, 40)
    even = (np.arange(2000) + 0.5) / 2000
    for levels, away in ((even, 0.001), (LEVELS, 0.06)):
        got = crps(np.array([reference]), (140 + 40 * norm.ppf(levels))[None], levels)
        assert got[0] == pytest.approx(exact, rel=away)
    spoken_for = np.diff([0, *(LEVELS[1:] + LEVELS[:-1]) / 2, 1])  # of the probability, by level
    loss = pinball(np.array([reference]), (140 + 40 * norm.ppf(LEVELS))[None], LEVELS)
    assert 2 * loss[0] @ spoken_for == pytest.approx(exact, rel=0.015)


def test_crps_below_by_hand() -> None:
    levels, quantiles = np.array([0.25, 0.5, 0.75]), np.array([60.0, 80, 100])
    assert crps_below(np.array(90.0), quantiles, levels) == pytest.approx(5 / 3)
    # 62 lies 2 above 60, and 8 below the two that are cut to 70.
    expected = 2 * (0.25 * 2 + 0.5 * 8 + 0.25 * 8) / 3
    assert crps_below(np.array(62.0), quantiles, levels) == pytest.approx(expected)
    assert crps_below(np.array(150.0), quantiles + 40, levels) == 0


def test_crps_below_is_the_threshold_weighted_one() -> None:
    """Of a sample as quantiles at even levels, and of a normal the integral that defines it."""
    draw = np.random.default_rng(0)
    sample, reference = np.sort(draw.normal(75, 20, (50, 40))), draw.normal(75, 25, 50)
    even = (np.arange(40) + 0.5) / 40
    expected = scoringrules.twcrps_ensemble(reference, sample, b=70.0)
    np.testing.assert_allclose(crps_below(reference, sample, even), expected)

    even = (np.arange(2000) + 0.5) / 2000
    for below in (58.0, 66.0, 95.0):
        exact, _ = quad(
            lambda x, y=below: (norm.cdf(x, 80, 15) - (y <= x)) ** 2, -50, 70, points=[58, 66]
        )
        got = crps_below(np.array([below]), (80 + 15 * norm.ppf(even))[None], even)
        assert got[0] == pytest.approx(exact, rel=0.005)


def test_coverage_by_hand_and_of_a_calibrated_interval() -> None:
    reference = np.array([100.0, 120, 90, 110])
    covered = interval_covers(reference, np.full(4, 90.0), np.full(4, 110.0))
    np.testing.assert_array_equal(covered, [100, 0, 100, 100])
    normal = np.random.default_rng(0).normal(140, 30, 40_000)
    lower, upper = 140 - 1.6449 * 30, 140 + 1.6449 * 30
    assert interval_covers(normal, lower, upper).mean() == pytest.approx(90, abs=0.5)


def test_interval_score_by_hand_and_of_scoringrules() -> None:
    reference = np.array([100.0, 115, 84])
    np.testing.assert_allclose(interval_score(reference, 90, 110, 0.8), [20, 70, 80])
    reference, quantiles = invent()
    for share, low, high in ((0.5, 5, 15), (0.8, 2, 18), (0.98, 0, 20)):
        expected = scoringrules.interval_score(
            reference, quantiles[:, low], quantiles[:, high], 1 - share
        )
        np.testing.assert_allclose(central_score(reference, quantiles, LEVELS, share), expected)


def test_a_central_interval_takes_its_own_ends_or_none() -> None:
    quantiles = np.arange(21.0)[None] ** 2
    assert central_covers(np.array([4.0]), quantiles, LEVELS, 0.8)[0] == 100
    assert central_covers(np.array([3.9]), quantiles, LEVELS, 0.8)[0] == 0
    assert central_width(np.array([1.0]), quantiles, LEVELS, 0.8)[0] == 18**2 - 2**2
    assert central(quantiles, LEVELS, 0.98)[1][0] == 400
    with pytest.raises(ValueError, match="central 95% has no quantiles"):
        central_covers(np.array([1.0]), quantiles, LEVELS, 0.95)


def test_under_quantile_by_hand() -> None:
    quantiles = np.repeat((100 + 10 * np.arange(21.0))[None], 3, axis=0)
    reference = np.array([109.9, 110, 300])
    np.testing.assert_array_equal(under_quantile(reference, quantiles, LEVELS, 0.05), [100, 100, 0])
    with pytest.raises(ValueError):
        under_quantile(reference, quantiles, LEVELS, 0.02)


def test_randomised_pit_by_hand_and_uniform_where_calibrated() -> None:
    levels, quantiles = np.array([0.25, 0.5, 0.75]), np.array([[80.0, 90, 100]])
    for reference, low, high in ((85.0, 0.25, 0.5), (120.0, 0.75, 1), (79.0, 0, 0.25)):
        pit = randomised_pit(np.full(500, reference), np.repeat(quantiles, 500, axis=0), levels)
        assert low <= pit.min() < low + 0.01
        assert high - 0.01 < pit.max() <= high
    draw = np.random.default_rng(1)
    centre = draw.uniform(80, 200, (4000, 1))
    reference = draw.normal(centre[:, 0], 30)
    calibrated, narrow = (
        kstest(randomised_pit(reference, centre + size * norm.ppf(LEVELS), LEVELS), "uniform")[1]
        for size in (30, 20)
    )
    assert calibrated > 0.01 > narrow


def test_randomised_pit_of_what_is_certain() -> None:
    """Where all quantiles are one value and it came, it may have come anywhere among them."""
    pit = randomised_pit(np.full(4000, 100.0), np.full((4000, 21), 100.0), LEVELS)
    assert kstest(pit, "uniform", args=(0, 0.99))[1] > 0.01


@given(st.integers(0, 1000), st.floats(0.5, 30))
def test_scores_scale_with_the_unit_and_none_beats_what_came(seed: int, off: float) -> None:
    reference, quantiles = invent(20, seed)
    scores = {
        "pinball": pinball,
        "crps": crps,
        "width": lambda *given: central_width(*given, 0.8),
        "interval": lambda *given: central_score(*given, 0.8),
    }
    for score in scores.values():
        in_mmol = score(reference / MG_DL_PER_MMOL_L, quantiles / MG_DL_PER_MMOL_L, LEVELS)
        np.testing.assert_allclose(
            in_mmol, score(reference, quantiles, LEVELS) / MG_DL_PER_MMOL_L, atol=1e-9
        )
    certain = np.repeat(reference[:, None], 21, axis=1)
    for score in (pinball, crps, crps_below, scores["interval"]):
        assert np.abs(score(reference, certain, LEVELS)).max() == 0
        assert (score(reference, quantiles, LEVELS) >= 0).all()
    assert (crps(reference, certain + off, LEVELS) > 0).all()


def test_none_is_better_on_average_than_the_true_quantiles() -> None:
    reference = np.random.default_rng(2).normal(90, 25, 20_000)
    true = 90 + 25 * norm.ppf(LEVELS)
    for score in (crps, crps_below, lambda *given: central_score(*given, 0.8)):
        best = score(reference, np.repeat(true[None], 20_000, axis=0), LEVELS).mean()
        for wrong in (true + 6, true - 6, 90 + 17 * norm.ppf(LEVELS), 90 + 36 * norm.ppf(LEVELS)):
            assert score(reference, np.repeat(wrong[None], 20_000, axis=0), LEVELS).mean() > best
