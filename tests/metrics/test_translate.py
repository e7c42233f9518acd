"""Errors by night: (3, 4) and (12) of one, (1) of another; of one more night nothing is known."""

import numpy as np
import pytest

from nocturnal_kedro.metrics.calibration import interpolated
from nocturnal_kedro.metrics.forecasts import PERSON, Forecasts
from nocturnal_kedro.metrics.translate import (
    RULES,
    mean_window_rmse,
    pooled_rmse,
    root_median_window_mse,
    subject_macro_rmse,
    translate,
)
from nocturnal_kedro.series.schema import MG_DL_PER_MMOL_L

from .invented import laid_out

NAN = np.nan


def test_each_rule_by_its_worked_number() -> None:
    two_people = np.array([[3.0, 4], [12, NAN], [NAN, NAN]]) ** 2, np.array([0, 1, 1])
    assert pooled_rmse(*two_people) == pytest.approx(np.sqrt(169 / 3))
    assert subject_macro_rmse(*two_people) == pytest.approx((np.sqrt(12.5) + 12) / 2)
    windows = np.array([[3.0, 4], [12, NAN], [1, NAN], [NAN, NAN]]) ** 2, np.array([0, 1, 0, 1])
    assert root_median_window_mse(*windows) == pytest.approx(np.sqrt(12.5))
    assert mean_window_rmse(*windows) == pytest.approx((np.sqrt(12.5) + 12 + 1) / 3)
    # What the docstrings print.
    got = [f"{rule(*of):.2f}" for rule, of in (
        (pooled_rmse, two_people), (subject_macro_rmse, two_people),
        (root_median_window_mse, windows), (mean_window_rmse, windows),
    )]  # fmt: skip
    assert got == ["7.51", "7.77", "3.54", "5.51"]


def test_the_median_is_not_moved_by_hard_windows() -> None:
    square = np.random.default_rng(0).uniform(1, 400, (9, 12))
    person = np.zeros(9, int)
    usual = root_median_window_mse(square, person)
    assert usual == pytest.approx(np.sqrt(sorted(square.mean(axis=1))[4]))
    square[square.mean(axis=1).argmax()] *= 50
    assert root_median_window_mse(square, person) == pytest.approx(usual)
    assert pooled_rmse(square, person) > 2 * usual


def by_hand(forecasts: Forecasts, split: str, first: int, last: int) -> dict[str, float]:
    """Every rule over the steps first to last, point by point."""
    people: dict[tuple, list[float]] = {}
    windows = []
    for night, row in forecasts.nights.iterrows():
        pairs = zip(forecasts.target_NH[night], forecasts.point_NH[night], strict=True)
        errors = [(f - t) ** 2 for t, f in list(pairs)[first - 1 : last] if t == t]
        if row["split"] == split and errors:
            people.setdefault(tuple(row[PERSON]), []).extend(errors)
            windows.append(np.mean(errors))
    everything = [error for errors in people.values() for error in errors]
    return {
        "subject-macro RMSE": np.mean([np.sqrt(np.mean(errors)) for errors in people.values()]),
        "pooled RMSE": np.sqrt(np.mean(everything)),
        "root median window MSE (GlucoBench)": np.sqrt(np.median(windows)),
        "mean window RMSE": np.mean(np.sqrt(windows)),
    }


def test_every_figure_is_that_of_its_steps_and_split() -> None:
    people = (("s", "a", "temporal", 3), ("t", "a", "temporal", 4), ("s", "b", "patient", 2))
    forecasts = laid_out(2, people)
    table = translate(forecasts)
    spans = {"1 to 12": (1, 12), "1 to 24": (1, 24), "1 to 72": (1, 72), "1 to 96": (1, 96),
             "6": (6, 6), "12": (12, 12), "18": (18, 18), "24": (24, 24)}  # fmt: skip
    assert set(table["steps"]) == set(spans)
    assert len(table) == len(spans) * len(RULES) * 2 * 2
    at = table.set_index(["split", "targets", "steps", "rule"])
    assert at.index.is_unique
    for split in ("temporal", "patient"):
        for steps, (first, last) in spans.items():
            for rule, value in by_hand(forecasts, split, first, last).items():
                row = at.loc[(split, "observed", steps, rule)]
                assert row["rmse_mg_dl"] == pytest.approx(value)
                assert row["minutes"] == 5 * last
    np.testing.assert_allclose(table["rmse_mmol_l"] * 18.0182, table["rmse_mg_dl"])
    assert MG_DL_PER_MMOL_L == 18.0182


def test_a_short_horizon_has_no_later_steps() -> None:
    table = translate(laid_out(horizon=20))
    assert set(table["steps"]) == {"1 to 12", "1 to 20", "6", "12", "18"}


def test_interpolated_stays_between_readings() -> None:
    holes = np.array([[NAN, 100, NAN, NAN, 130, NAN], [NAN] * 6, [50, 60, 70, 80, 90, 95]])
    expected = np.array([[NAN, 100, 110, 120, 130, NAN], [NAN] * 6, [50, 60, 70, 80, 90, 95]])
    given = holes.copy()
    np.testing.assert_allclose(interpolated(holes), expected)
    np.testing.assert_array_equal(holes, given)


def test_interpolated_targets_are_easier() -> None:
    """Of noisy readings a line between two is smoother than those that nobody took."""
    forecasts = laid_out(3, (("s", "a", "temporal", 40),))
    draw = np.random.default_rng(0)
    forecasts.target_NH[:] = forecasts.point_NH[:] = 150
    forecasts.target_NH[:] += draw.normal(0, 20, forecasts.target_NH.shape)
    forecasts.target_NH[draw.random(forecasts.target_NH.shape) < 0.5] = NAN
    table = translate(forecasts).set_index(["rule", "steps", "targets"])["rmse_mg_dl"]
    for rule in RULES:
        assert table[rule, "1 to 96", "interpolated"] < 0.95 * table[rule, "1 to 96", "observed"]
