"""What the figures of meals draw is what the tables hold."""

import numpy as np
import pandas as pd
import pytest

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.figures import line_styles
from nocturnal_kedro.figures.meals import TITLES, courses_after_meals, error_by_meal_size
from nocturnal_kedro.metrics.meals import HEADLINES

STYLES = line_styles(["m"], ["last_value", "damped_trend"])
JUDGED = pd.DataFrame(
    [
        # split, size, model, people, meals, rmse and its interval, time bias and its interval
        ("patient", "60 to 90 g", "m", 7, 20, 41.0, 30.0, 47.0, -20.0, -33.0, -11.0),
        ("patient", "all", "m", 9, 50, 36.0, 31.0, 40.0, -15.0, -25.0, -9.0),
        ("patient", "all", "last_value", 9, 50, 52.0, 45.0, 61.0, -80.0, -92.0, -71.0),
        ("temporal", "all", "m", 4, 12, 33.0, np.nan, np.nan, 5.0, np.nan, np.nan),
    ],
    columns=["split", "meal_size", "model", "people", "meals", "rmse_mg_dl", "rmse_low_mg_dl",
             "rmse_high_mg_dl", "peak_time_bias_minutes", "peak_time_bias_low_minutes",
             "peak_time_bias_high_minutes"],
)  # fmt: skip
COURSES = pd.DataFrame(
    [
        # split, size, minutes, people, meals, change, forecast, model
        *[("temporal", "all", 5 * k, 8, 30, 4.0 * k, 3.0 * k, "m") for k in (1, 2, 24)],
        *[("temporal", "all", 5 * k, 8, 30, 4.0 * k, -0.5 * k, "last_value") for k in (1, 2, 24)],
        ("temporal", "from 90 g", 5, 2, 6, 900.0, 700.0, "m"),
        ("temporal", "below 30 g", 5, 3, 7, -6.0, 2.0, "m"),
        ("temporal", "below 30 g", 10, 2, 5, 800.0, 600.0, "m"),
        ("patient", "below 30 g", 5, 5, 9, 11.0, 13.0, "m"),
        ("train", "all", 5, 20, 99, 500.0, 500.0, "m"),
        ("temporal", "all", 5, 8, 30, 4.0, 400.0, "not shown"),
    ],
    columns=["split", "meal_size", "minutes", "people", "meals", "change_mg_dl",
             "forecast_change_mg_dl", "model"],
)  # fmt: skip


def drawn(figure: object) -> dict[tuple[str, str], object]:
    """The traces by name and the axis of their panel."""
    return {(trace.name, trace.xaxis): trace for trace in figure.data}


def test_errors_stand_over_their_size_with_their_intervals() -> None:
    figure = error_by_meal_size(JUDGED, STYLES)
    assert list(figure.layout.xaxis.ticktext) == ["all meals", "60 to 90 g"]
    traces = drawn(figure)
    mine = traces["m", "x"]
    assert list(mine.y) == [36, 41]
    np.testing.assert_allclose(mine.error_y.array, [4, 6])
    np.testing.assert_allclose(mine.error_y.arrayminus, [5, 11])
    assert [list(told) for told in mine.customdata] == [[9, 50], [7, 20]]
    assert np.round(mine.x).tolist() == [0, 1]
    other = traces["last_value", "x"]
    assert (other.y[0], np.isnan(other.y[1])) == (52, True)  # nothing of that size was judged
    assert set(other.x).isdisjoint(mine.x)
    assert traces["m", "x2"].y[0] == 33
    assert np.isnan(traces["m", "x2"].error_y.array[0])  # too few people for an interval
    # Baselines are all grey: their marks differ.
    assert len({traces[name, "x"].marker.symbol for name in STYLES}) == 3


def test_any_headline_can_be_drawn_by_its_unit() -> None:
    assert set(TITLES) == set(HEADLINES)
    trace = error_by_meal_size(JUDGED, STYLES, "peak_time_bias").data[0]
    assert list(trace.y) == [-15, -20]
    np.testing.assert_allclose(trace.error_y.arrayminus, [10, 13])
    with pytest.raises(InputError, match="unknown measure of a meal 'peak'; known: peak_bias"):
        error_by_meal_size(JUDGED, STYLES, "peak")


def test_courses_show_nobody_alone() -> None:
    figure = courses_after_meals(COURSES, STYLES)
    titles = [title.text for title in figure.layout.annotations]
    assert titles == ["all meals", "below 30 g", "People never seen",
                      "Everybody else, later days"]  # fmt: skip
    traces = drawn(figure)
    # Panels by row: never seen, then later; what came once in each.
    assert len(figure.data) == len(traces)
    assert sorted(traces) == [
        ("last_value", "x3"), ("m", "x2"), ("m", "x3"), ("m", "x4"),
        ("truth", "x2"), ("truth", "x3"), ("truth", "x4"),
    ]  # fmt: skip
    assert list(traces["truth", "x3"].x) == [5, 10, 120]
    assert list(traces["truth", "x3"].y) == [4, 8, 96]
    assert list(traces["m", "x3"].y) == [3, 6, 72]
    assert list(traces["last_value", "x3"].y) == [-0.5, -1, -12]
    assert list(traces["truth", "x4"].y) == [-6]  # and not the 800 of two people
    assert list(traces["m", "x2"].y) == [13]
    low, high = figure.layout.yaxis.range
    assert (low, high) == pytest.approx((-12 - 0.05 * 108, 96 + 0.05 * 108))
    in_legend = [trace.name for trace in figure.data if trace.showlegend]
    assert sorted(in_legend) == ["last_value", "m", "truth"]


def test_a_course_of_too_few_is_said_to_be_so() -> None:
    figure = courses_after_meals(COURSES.assign(people=2), STYLES)
    assert not figure.data
    assert figure.layout.annotations[0].text == "No mean course: under 3 people have a meal."
