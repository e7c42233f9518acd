import numpy as np
import pytest

from nocturnal_kedro import plugins
from nocturnal_kedro.baselines import UNSEEN, History, Nights, last_observed

NAN = np.nan


def nights(
    glucose: list[list[float]], person: list[int], slot: int = 0, horizon: int = 4
) -> Nights:
    window = np.array(glucose, float)
    return Nights(window, np.array(person), np.full(len(window), slot), horizon)


def history(**changes: object) -> History:
    """Two people over two days: 100 and 200 mg/dL, ten higher in the second half of a day."""
    slot = np.tile(np.arange(288), 4)
    person = np.repeat([0, 1], 576)
    glucose = 100.0 * (person + 1) + 10 * (slot >= 144)
    values = {
        "glucose_T": glucose,
        "person_T": person,
        "slot_of_day_T": slot,
        "people": 2,
        "nights": nights([[100, 101, 102, 103, 104, 105]] * 2, [0, 1]),
        "target_NH": np.array([[106.0, 107, 108, 109]] * 2),
    }
    return History(**(values | changes))  # type: ignore[arg-type]


def run(name: str, asked: Nights, learned: History | None = None) -> np.ndarray:
    module = plugins.load("baseline", name)
    return module.forecast(module.fit(learned or history(), module.Options()), asked)


def test_last_value_skips_unobserved() -> None:
    asked = nights([[90, 120, NAN], [80, 85, 86]], [0, 1])
    np.testing.assert_array_equal(run("last_value", asked), [[120] * 4, [86] * 4])
    np.testing.assert_array_equal(last_observed(asked.glucose_NL), [120, 86])


def test_subject_mean_of_training_or_of_the_context_of_a_stranger() -> None:
    asked = nights([[90, NAN, 110], [90, NAN, 110]], [1, UNSEEN])
    np.testing.assert_allclose(run("subject_mean", asked), [[205] * 4, [100] * 4])


def test_climatology_knows_person_and_clock_and_wraps_midnight() -> None:
    asked = nights([[1.0], [1.0], [1.0]], [0, 1, UNSEEN], slot=286)
    forecast = run("climatology", asked)
    assert forecast.shape == (3, 4)
    # Slots 287 to 2: the hour around them is half late (ten higher) and half early.
    expected = 100 + 10 * np.array([7, 6, 5, 4]) / 13
    np.testing.assert_allclose(forecast[0], expected)
    np.testing.assert_allclose(forecast[1], expected + 100)
    np.testing.assert_allclose(forecast[2], expected + 50)


def test_damped_trend_follows_a_line_less_and_less() -> None:
    steps = run("damped_trend", nights([[100, 101, 102, 103, 104, 105]], [0]))[0] - 105
    assert (np.diff(steps) > 0).all()
    assert (np.diff(steps, n=2) < 0).all()
    # On a history that goes on in a line the least damping on offer fits best: 0.98.
    np.testing.assert_allclose(steps, np.cumsum(0.98 ** np.arange(1, 5)), atol=1e-9)


def test_damped_trend_of_one_reading_is_flat() -> None:
    np.testing.assert_allclose(run("damped_trend", nights([[NAN] * 5 + [130.0]], [0])), 130.0)


@pytest.mark.parametrize("name", plugins.names("baseline"))
def test_shape_and_no_nan_with_gaps(name: str) -> None:
    asked = nights([[100, NAN, 120, NAN, NAN], [NAN, 90, NAN, NAN, 95]], [0, UNSEEN], horizon=96)
    forecast = run(name, asked)
    assert forecast.shape == (2, 96)
    assert np.isfinite(forecast).all()
