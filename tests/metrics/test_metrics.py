import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.metrics import scores as metrics_scores
from nocturnal_kedro.metrics.point import (
    absolute_error,
    outside_range,
    percentage_error,
    signed_error,
    squared_error,
)
from nocturnal_kedro.metrics.probabilistic import central_covers, crps, interval_covers, pinball

LEVELS = np.array([0.01, *np.arange(1, 20) / 20, 0.99])


def test_point_errors_by_hand() -> None:
    reference, forecast = np.array([100.0, 80.0]), np.array([120.0, 60.0])
    np.testing.assert_array_equal(signed_error(reference, forecast), [20, -20])
    np.testing.assert_array_equal(squared_error(reference, forecast), [400, 400])
    np.testing.assert_array_equal(absolute_error(reference, forecast), [20, 20])
    np.testing.assert_array_equal(percentage_error(reference, forecast), [20, 25])
    far = np.array([-0.1, 0, 600, 601])
    np.testing.assert_array_equal(outside_range(np.full(4, 100.0), far), [100, 0, 0, 100])


def test_coverage_by_hand_and_of_a_calibrated_interval() -> None:
    reference = np.array([100.0, 120, 90, 110])
    covered = interval_covers(reference, np.full(4, 90.0), np.full(4, 110.0))
    np.testing.assert_array_equal(covered, [100, 0, 100, 100])
    normal = np.random.default_rng(0).normal(140, 30, 40_000)
    lower, upper = 140 - 1.6449 * 30, 140 + 1.6449 * 30
    assert interval_covers(normal, lower, upper).mean() == pytest.approx(90, abs=0.5)


PEOPLE = (("a", "patient", 3), ("b", "temporal", 2), ("c", "temporal", 5))


def frames(seed: int = 0, people: tuple = PEOPLE) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Forecasts of three people over two splits, some targets unobserved."""
    draw = np.random.default_rng(seed)
    origins = pd.DataFrame(
        [
            ("s", person, pd.Timestamp("2026-01-05") + pd.Timedelta(days=day), split)
            for person, split, nights in people
            for day in range(nights)
        ],
        columns=["source", "subject", "origin", "split"],
    )
    forecasts = origins.drop(columns="split").merge(
        pd.DataFrame({"step": range(1, 97)}), how="cross"
    )
    forecasts["target_mg_dl"] = draw.uniform(50, 300, len(forecasts))
    forecasts.loc[draw.random(len(forecasts)) < 0.1, "target_mg_dl"] = np.nan
    forecasts["forecast_mg_dl"] = draw.uniform(50, 300, len(forecasts))
    offsets = 60 * norm.ppf(LEVELS)
    for level, offset in zip(LEVELS, offsets, strict=True):
        forecasts[f"q{level:g}"] = forecasts["forecast_mg_dl"] + offset
    return forecasts, origins


def score_forecasts(forecasts: pd.DataFrame, origins: pd.DataFrame, *names: str) -> pd.DataFrame:
    return metrics_scores.score_forecasts(forecasts, origins, *names).assign(data="d")


def test_scores_do_not_depend_on_the_order_of_rows() -> None:
    forecasts, origins = frames()
    shuffled = forecasts.sample(frac=1, random_state=1)
    pd.testing.assert_frame_equal(
        score_forecasts(forecasts, origins, "e", "m"), score_forecasts(shuffled, origins, "e", "m")
    )


def test_a_bad_forecast_is_named() -> None:
    forecasts, origins = frames()
    forecasts.loc[5, "forecast_mg_dl"] = np.nan
    with pytest.raises(InputError, match=r"1 forecasts of 'm' are not finite.*subject 'a'.*step 6"):
        score_forecasts(forecasts, origins, "e", "m")


def test_a_bad_quantile_is_named_and_absent_ones_are_refused() -> None:
    forecasts, origins = frames()
    bad = forecasts.assign(**{"q0.3": np.inf})
    with pytest.raises(InputError, match=r"forecasts of 'm' are not finite"):
        score_forecasts(bad, origins, "e", "m")
    with pytest.raises(InputError, match=r"have no quantiles.*another version"):
        score_forecasts(forecasts.drop(columns=list(bad.filter(regex="^q"))), origins, "e", "m")


def test_pinball_and_crps_by_hand() -> None:
    levels = np.array([0.1, 0.5, 0.9])
    quantiles = np.array([[80.0, 90, 120], [100, 110, 130]])
    loss = pinball(np.array([100.0, 90]), quantiles, levels)
    np.testing.assert_allclose(loss, [[2, 5, 2], [9, 10, 4]])
    np.testing.assert_allclose(crps(np.array([100.0, 90]), quantiles, levels), [6, 46 / 3])


def test_crps_of_a_normal_forecast_is_near_its_closed_form() -> None:
    """sigma (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)); 21 levels leave a few percent."""
    for reference in (95.0, 140.0, 210.0):
        z = (reference - 140) / 40
        exact = 40 * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))
        got = crps(np.array([reference]), (140 + 40 * norm.ppf(LEVELS))[None], LEVELS)
        assert got[0] == pytest.approx(exact, rel=0.06)


def test_a_central_interval_takes_its_own_ends_or_none() -> None:
    quantiles = np.arange(21.0)[None]
    assert central_covers(np.array([2.0]), quantiles, LEVELS, 0.8)[0] == 100
    assert central_covers(np.array([1.0]), quantiles, LEVELS, 0.8)[0] == 0
    with pytest.raises(ValueError, match="central 95% has no quantiles"):
        central_covers(np.array([1.0]), quantiles, LEVELS, 0.95)


def test_an_unknown_origin_is_named() -> None:
    forecasts, origins = frames()
    with pytest.raises(InputError, match="not in the frozen table: subject 'a'"):
        score_forecasts(forecasts, origins[origins["subject"] != "a"], "e", "m")
