import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.integrate import quad

from nocturnal_kedro.series.physiology import (
    OF_CARBS,
    OF_INSULIN,
    Physiology,
    act,
    action_kernels,
    carbs_appearance,
    carbs_remaining,
    convolve,
    insulin_activity,
    insulin_remaining,
)

INSULIN = action_kernels(Physiology())[OF_INSULIN]


def test_worked_numbers_of_the_docstrings() -> None:
    assert insulin_remaining(np.array([120.0]), 360, 75)[0] == pytest.approx(0.4498, abs=1e-4)
    assert carbs_remaining(np.array([40.0]), 40)[0] == pytest.approx(2 / np.e)
    assert insulin_activity(np.array([75.0]), 360, 75)[0] == pytest.approx(0.3428, abs=1e-4)
    assert carbs_appearance(np.array([40.0]), 40)[0] == pytest.approx(0.5518, abs=1e-4)


def test_insulin_curve_is_what_its_published_activity_leaves() -> None:
    """IOB(t) = 1 - integral of the activity, which peaks at the peak and uses the whole dose."""
    action, peak = 360.0, 75.0

    def activity(minutes: float) -> float:
        return float(insulin_activity(np.array([minutes]), action, peak)[0]) / 60

    for minutes in (10.0, 75.0, 180.0, 300.0, 360.0):
        used = quad(activity, 0, minutes)[0]
        assert insulin_remaining(np.array([minutes]), action, peak)[0] == pytest.approx(1 - used)
    grid = np.arange(1, 360)
    assert grid[np.argmax(insulin_activity(grid, action, peak))] == peak


def test_carbs_appear_as_fast_as_they_cease_to_be_left() -> None:
    for minutes in (5.0, 40.0, 200.0):
        appeared = quad(lambda t: float(carbs_appearance(np.array([t]), 40)[0]) / 60, 0, minutes)[0]
        assert carbs_remaining(np.array([minutes]), 40)[0] == pytest.approx(1 - appeared)


@pytest.mark.parametrize(
    ("minutes", "left"), [(0, 1.0), (60, 0.7792), (120, 0.4498), (180, 0.2085), (300, 0.0144)]
)
def test_insulin_left_as_tabulated_for_six_hours_and_a_peak_at_75_minutes(
    minutes: float, left: float
) -> None:
    assert insulin_remaining(np.array([minutes]), 360, 75)[0] == pytest.approx(left, abs=5e-4)


def test_duration_outlives_a_fifth_of_the_dose() -> None:
    insulin, carbs, *_ = action_kernels(Physiology())
    assert insulin[-1] < 0.2
    assert carbs[-1] < 0.2
    assert (np.diff(insulin) <= 0).all()
    assert (np.diff(carbs) <= 0).all()


def test_what_is_used_sums_to_the_dose() -> None:
    _, _, activity, appearance = action_kernels(Physiology())
    assert activity.sum() / 12 == pytest.approx(1, abs=2e-3)  # U/h over 5-minute slots
    assert appearance.sum() / 12 == pytest.approx(1, abs=6e-3)  # cut at five hours


@given(st.lists(st.floats(min_value=0, max_value=10), min_size=1, max_size=200))
def test_what_is_on_board_is_the_plain_sum_over_doses(doses: list[float]) -> None:
    amounts = np.array(doses)
    got = act(amounts, INSULIN, observed_share=1e-6)
    for kernel, values in zip(INSULIN, got, strict=True):
        expected = [
            sum(amounts[s] * kernel[t - s] for s in range(max(0, t - 71), t + 1))
            for t in range(len(amounts))
        ]
        np.testing.assert_allclose(values, expected, atol=1e-9)


@given(st.integers(1, 40), st.integers(1, 200), st.integers(0, 99))
def test_the_convolution_is_that_of_numpy(steps: int, length: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    kernels, values = draw.normal(size=(3, steps)), draw.normal(size=length)
    for kernel, got in zip(kernels, convolve(values, kernels), strict=True):
        np.testing.assert_allclose(got, np.convolve(values, kernel)[:length], atol=1e-12)


def test_missing_insulin_is_not_zero_insulin() -> None:
    amounts = np.zeros(300)
    amounts[100:200] = np.nan
    for got in act(amounts, INSULIN, observed_share=0.9):
        assert np.isnan(got[:20]).all()  # the hours before the record are not on record
        assert got[99] == 0
        assert np.isnan(got[150])
        assert got[-1] == 0


def test_later_doses_do_not_touch_earlier_values() -> None:
    amounts = np.random.default_rng(0).exponential(size=500)
    changed = amounts.copy()
    changed[300:] = 1e6
    before, after = (act(given, INSULIN, 0.9) for given in (amounts, changed))
    np.testing.assert_array_equal(before[:, :300], after[:, :300])  # bit for bit


def test_insulin_and_carbs_have_their_own_kernels() -> None:
    kernels = action_kernels(Physiology(insulin_action_minutes=300, carbs_action_minutes=240))
    assert kernels[OF_CARBS, 48:].max() == 0
    assert kernels[OF_INSULIN, 48:].max() > 0


def test_a_peak_beyond_half_of_the_action_is_refused() -> None:
    with pytest.raises(ValidationError, match="below half"):
        Physiology(insulin_peak_minutes=200)
