"""The record that every model answers with, and the levels that it answers at."""

import numpy as np
import pytest
import torch

from nocturnal_kedro.models import INTERVALS, LOWER_ENDS, MEDIAN, UPPER_ENDS, Forecast
from nocturnal_kedro.series.schema import QUANTILE_LEVELS


def test_levels_that_cross_are_sorted_and_their_median_is_the_point() -> None:
    levels_BHQ = torch.randn(2, 3, len(QUANTILE_LEVELS), generator=torch.manual_seed(0))
    said = Forecast.of_quantiles(levels_BHQ)
    assert said.quantiles_BHQ is not None
    assert said.loss_BH is None
    np.testing.assert_array_equal(said.quantiles_BHQ, np.sort(levels_BHQ.numpy(), axis=-1))
    np.testing.assert_array_equal(said.point_BH, np.median(levels_BHQ.numpy(), axis=-1))


def test_ends_of_central_intervals_are_the_levels_beside_the_median() -> None:
    of_ends = [
        0.5 + sign * interval / 200
        for sign, ends in ((-1, LOWER_ENDS), (1, UPPER_ENDS))
        for interval in (int(end[3:]) for end in ends)
    ]
    assert of_ends == pytest.approx([q for q in QUANTILE_LEVELS if q != QUANTILE_LEVELS[MEDIAN]])
    assert sorted(INTERVALS, reverse=True) == list(INTERVALS)
    assert (LOWER_ENDS[0], LOWER_ENDS[-1], UPPER_ENDS[0]) == ("lo-98", "lo-10", "hi-10")
