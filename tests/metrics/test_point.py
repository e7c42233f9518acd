import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    mean_absolute_error,
    mean_absolute_percentage_error,
    root_mean_squared_error,
)

from nocturnal_kedro.metrics.point import (
    absolute_error,
    outside_range,
    percentage_error,
    signed_error,
    squared_error,
)
from nocturnal_kedro.series.schema import MG_DL_PER_MMOL_L

GLUCOSE = st.lists(st.tuples(st.floats(20, 600), st.floats(20, 600)), min_size=2, max_size=30)


def test_point_errors_by_hand() -> None:
    reference, forecast = np.array([100.0, 80.0]), np.array([120.0, 60.0])
    np.testing.assert_array_equal(signed_error(reference, forecast), [20, -20])
    np.testing.assert_array_equal(squared_error(reference, forecast), [400, 400])
    np.testing.assert_array_equal(absolute_error(reference, forecast), [20, 20])
    np.testing.assert_array_equal(percentage_error(reference, forecast), [20, 25])
    far = np.array([-0.1, 0, 600, 601])
    np.testing.assert_array_equal(outside_range(np.full(4, 100.0), far), [100, 0, 0, 100])


@given(GLUCOSE)
def test_means_are_those_of_scikit_learn(pairs: list[tuple[float, float]]) -> None:
    reference, forecast = np.array(pairs).T
    close = np.testing.assert_allclose
    close(
        np.sqrt(squared_error(reference, forecast).mean()),
        root_mean_squared_error(reference, forecast),
    )
    close(absolute_error(reference, forecast).mean(), mean_absolute_error(reference, forecast))
    close(
        percentage_error(reference, forecast).mean(),
        100 * mean_absolute_percentage_error(reference, forecast),
    )
    close(signed_error(reference, forecast).mean(), forecast.mean() - reference.mean(), atol=1e-9)


@given(GLUCOSE)
def test_another_unit_scales_errors_and_leaves_shares(pairs: list[tuple[float, float]]) -> None:
    reference, forecast = np.array(pairs).T
    in_mmol = reference / MG_DL_PER_MMOL_L, forecast / MG_DL_PER_MMOL_L
    for measure, power in (
        (signed_error, 1),
        (absolute_error, 1),
        (squared_error, 2),
        (percentage_error, 0),
    ):
        expected = measure(reference, forecast) / MG_DL_PER_MMOL_L**power
        np.testing.assert_allclose(measure(*in_mmol), expected, rtol=1e-9, atol=1e-9)
