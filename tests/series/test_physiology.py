import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.integrate import quad

from nocturnal_kedro.series.physiology import (
    Physiology,
    carbs_remaining,
    decay_kernels,
    insulin_remaining,
    kernel_steps,
    on_board,
)


def test_worked_numbers_of_the_docstrings() -> None:
    assert insulin_remaining(np.array([120.0]), 360, 75)[0] == pytest.approx(0.4498, abs=1e-4)
    assert carbs_remaining(np.array([40.0]), 40)[0] == pytest.approx(2 / np.e)


def test_insulin_curve_is_what_its_published_activity_leaves() -> None:
    """IOB(t) = 1 - integral of the activity (S / tau^2) t (1 - t/d) exp(-t/tau)."""
    action, peak = 360.0, 75.0
    tau = peak * (1 - peak / action) / (1 - 2 * peak / action)
    a = 2 * tau / action
    s = 1 / (1 - a + (1 + a) * np.exp(-action / tau))

    def activity(t: float) -> float:
        return s / tau**2 * t * (1 - t / action) * np.exp(-t / tau)

    for minutes in (10.0, 75.0, 180.0, 300.0, 360.0):
        used = quad(activity, 0, minutes)[0]
        assert insulin_remaining(np.array([minutes]), action, peak)[0] == pytest.approx(1 - used)
    grid = np.arange(1, 360)
    assert grid[np.argmax([activity(t) for t in grid])] == peak


def test_duration_outlives_a_fifth_of_the_dose() -> None:
    physiology = Physiology()
    insulin, carbs = decay_kernels(physiology, kernel_steps(physiology))
    assert insulin[-1] < 0.2
    assert carbs[-1] < 0.2
    assert (np.diff(insulin) <= 0).all()
    assert (np.diff(carbs) <= 0).all()


@given(st.lists(st.floats(min_value=0, max_value=10), min_size=1, max_size=200))
def test_on_board_is_the_plain_sum_over_doses(doses: list[float]) -> None:
    amounts = np.array(doses)
    kernel, _ = decay_kernels(Physiology(), 72)
    got, known = on_board(amounts, kernel, observed_share=1e-6)
    expected = [
        sum(amounts[s] * kernel[t - s] for s in range(max(0, t - 71), t + 1))
        for t in range(len(amounts))
    ]
    np.testing.assert_allclose(got[known], np.array(expected)[known], atol=1e-9)


def test_missing_insulin_is_not_zero_insulin() -> None:
    kernel, _ = decay_kernels(Physiology(), 72)
    amounts = np.zeros(300)
    amounts[100:200] = np.nan
    got, known = on_board(amounts, kernel, observed_share=0.9)
    assert not known[:20].any()  # the hours before the record are not on record
    assert known[99]
    assert not known[150]
    assert np.isnan(got[150])
    assert known[-1]


def test_later_doses_do_not_touch_earlier_values() -> None:
    kernel, _ = decay_kernels(Physiology(), 72)
    amounts = np.random.default_rng(0).exponential(size=500)
    changed = amounts.copy()
    changed[300:] = 1e6
    before, _ = on_board(amounts, kernel, 0.9)
    after, _ = on_board(changed, kernel, 0.9)
    np.testing.assert_array_equal(before[:300], after[:300])  # bit for bit


def test_a_peak_beyond_half_of_the_action_is_refused() -> None:
    with pytest.raises(ValidationError, match="below half"):
        Physiology(insulin_peak_minutes=200)
