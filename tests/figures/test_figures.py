"""What the figures draw is what the frames hold."""

import numpy as np
import pandas as pd
import pytest

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.figures import line_styles, tint
from nocturnal_kedro.figures.alarms import (
    decision_curve,
    event_reliability,
    sensitivity_by_false_alarms,
)
from nocturnal_kedro.figures.calibration import quantile_reliability
from nocturnal_kedro.figures.grids import LARGEST_SAMPLE, LETTERS, TOP, error_grid
from nocturnal_kedro.figures.horizon import bias_by_horizon, error_by_horizon
from nocturnal_kedro.figures.learning import learning_curves
from nocturnal_kedro.figures.nights import choose_nights, sample_nights
from nocturnal_kedro.figures.quality import nights_by_person
from nocturnal_kedro.figures.ranking import rmse_intervals
from nocturnal_kedro.metrics.clinical import GRIDS, ZONES
from nocturnal_kedro.metrics.forecasts import QUANTILES, lay_out
from nocturnal_kedro.metrics.scores import score_points

STYLES = line_styles(["m"], ["last_value"])


@pytest.fixture(scope="module")
def origins() -> pd.DataFrame:
    days = pd.date_range("2026-01-05", periods=6, freq="D")
    splits = ["patient"] * 3 + ["temporal"] * 3
    people = [*"bba", *"ccc"]
    return pd.DataFrame({"source": "s", "subject": people, "origin": days, "split": splits})


@pytest.fixture(scope="module")
def forecasts(origins: pd.DataFrame) -> pd.DataFrame:
    """Night k is k + 1 mg/dL off everywhere; the truth is lowest in night 1 and night 4."""
    frame = origins.drop(columns="split").merge(pd.DataFrame({"step": range(1, 97)}), how="cross")
    night = frame["origin"].dt.day - 5
    frame["target_mg_dl"] = np.where(night.isin([1, 4]), 65.0, 120.0) + frame["step"] / 10
    frame["forecast_mg_dl"] = frame["target_mg_dl"] + night + 1
    frame.loc[frame["step"] == 3, "target_mg_dl"] = np.nan
    for number, name in enumerate(QUANTILES):
        frame[name] = frame["forecast_mg_dl"] + 4 * (number - 10)
    return frame


@pytest.fixture(scope="module")
def scores(forecasts: pd.DataFrame, origins: pd.DataFrame) -> pd.DataFrame:
    by_cell, _ = score_points(lay_out(forecasts, origins, "m"))
    return pd.concat([by_cell.assign(model=name) for name in STYLES])


def test_error_and_bias_by_horizon(scores: pd.DataFrame) -> None:
    error, bias = error_by_horizon(scores, STYLES), bias_by_horizon(scores, STYLES)
    curves = {(trace.name, trace.xaxis): trace for trace in error.data}
    assert set(curves) == {(name, axis) for name in STYLES for axis in ("x", "x2")}
    patient = curves["m", "x"]
    assert 3 not in patient.x  # nothing was observed there
    # One has the nights that are 1 and 2 off, low and not; another the one that is 3 off.
    np.testing.assert_allclose(patient.y, (np.sqrt((1 + 4) / 2) + 3) / 2)
    np.testing.assert_allclose(bias.data[0].y, (1.5 + 3) / 2)
    assert curves["m", "x2"].y[0] == pytest.approx(np.sqrt(np.mean([16.0, 25, 36])))


def test_nights_are_chosen_by_their_error_and_by_the_lowest_reading(
    forecasts: pd.DataFrame, origins: pd.DataFrame
) -> None:
    chosen = choose_nights(forecasts, origins)
    patient = chosen[chosen["split"] == "patient"].set_index("why")["origin"].dt.day
    assert patient.to_dict() == {
        "an easy night": 5, "a usual night": 6, "a hard night": 7, "the lowest night": 6
    }  # fmt: skip
    assert set(chosen["split"]) == {"patient", "temporal"}


def test_sample_nights_draw_truth_forecast_and_bands(
    forecasts: pd.DataFrame, origins: pd.DataFrame
) -> None:
    chosen = choose_nights(forecasts, origins).head(2)
    without = forecasts.drop(columns=[c for c in forecasts if c.startswith("q")])
    figure = sample_nights({"m": forecasts, "last_value": without}, chosen, STYLES)
    bands = [trace for trace in figure.data if trace.fill == "toself"]
    assert len(bands) == 2 * 2  # two bands a night, of the one model that has quantiles
    truth = [trace for trace in figure.data if trace.name == "truth"]
    assert [trace.mode for trace in truth] == ["markers"] * 2  # gaps are not drawn over
    first = forecasts[forecasts["origin"] == chosen["origin"].iloc[0]]
    np.testing.assert_array_equal(truth[0].y, first["target_mg_dl"])
    lines = [trace for trace in figure.data if trace.name == "m"]
    np.testing.assert_array_equal(lines[0].y, first["forecast_mg_dl"])


@pytest.mark.parametrize("grid", GRIDS)
def test_error_grid_counts_every_point_and_draws_some(grid: str, forecasts: pd.DataFrame) -> None:
    """The wide one has points in every zone, and outside the drawing."""
    random = np.random.default_rng(0)
    target, forecast = random.uniform(0, 500, 6000), random.uniform(-20, 900, 6000)
    wide = pd.DataFrame({"target_mg_dl": target, "forecast_mg_dl": forecast})
    figure = error_grid({"m": forecasts, "wide": wide}, grid)
    for frame, title in zip((forecasts, wide), figure.layout.annotations, strict=False):
        observed = frame.dropna(subset="target_mg_dl")
        zones = GRIDS[grid].zones(*observed[["target_mg_dl", "forecast_mg_dl"]].to_numpy().T)
        for zone in ZONES:
            assert f"{zone} {100 * np.mean(zones == zone):.1f} %" in title.text
    counts = [len(trace.x) for trace in figure.data if trace.type == "scattergl"]
    assert counts == [len(forecasts) - 6, LARGEST_SAMPLE]
    shown = figure.data[-1 - len(GRIDS[grid].lines)]
    assert (shown.y.min(), shown.y.max(), shown.x.max()) == (0, TOP, TOP)


@pytest.mark.parametrize("grid", GRIDS)
def test_letters_stand_in_their_zone(grid: str) -> None:
    zone, r, p = zip(*LETTERS[grid], strict=True)
    assert tuple(GRIDS[grid].zones(np.array(r), np.array(p))) == zone


def test_an_unknown_error_grid_is_named(forecasts: pd.DataFrame) -> None:
    with pytest.raises(InputError, match="unknown error grid 'park'; known: clarke, dts, parkes"):
        error_grid({"m": forecasts}, "park")


def test_ranking_shows_intervals(scores: pd.DataFrame) -> None:
    board = pd.DataFrame(
        {"split": ["patient"] * 2, "model": list(STYLES), "rmse_mg_dl": [20.0, 30.0],
         "rmse_low_mg_dl": [15.0, 28.0], "rmse_high_mg_dl": [27.0, 33.0]}
    )  # fmt: skip
    trace = rmse_intervals(board, STYLES).data[0]
    assert dict(zip(trace.y, trace.x, strict=True)) == {"m": 20.0, "last_value": 30.0}
    assert list(trace.error_x.array) == [3.0, 7.0]
    assert list(trace.error_x.arrayminus) == [2.0, 5.0]


def test_quality_bars_add_up_to_the_midnights() -> None:
    quality = pd.DataFrame(
        [("s", "a", "nights", "nights kept", 20), ("s", "a", "nights", "why", 3),
         ("s", "b", "nights", "nights kept", 9), ("s", "b", "read", "rows in file", 999)],
        columns=["source", "subject", "stage", "reason", "rows"],
    )  # fmt: skip
    figure = nights_by_person(quality)
    assert [bar.name for bar in figure.data] == ["nights kept", "why"]
    assert [list(bar.y) for bar in figure.data] == [[20, 9], [3, 0]]


def test_learning_curve_marks_the_epoch_that_was_kept() -> None:
    log = pd.DataFrame({"epoch": [1, 2, 3], "validation_rmse": [0.9, 0.5, 0.6]})
    earlier = pd.DataFrame({"epoch": [1], "validation_score": [7.0], "stage": "representation"})
    log = pd.concat([earlier, log.assign(stage="forecast")])
    untrained = pd.DataFrame()
    curve, ring = learning_curves({"last_value": untrained, "m": log}, STYLES).data
    assert list(curve.y) == [0.9, 0.5, 0.6]
    assert (ring.x[0], ring.y[0]) == (2, 0.5)


def test_tint() -> None:
    assert tint("#0072B2", 0.3) == "rgba(0,114,178,0.3)"


TRADE = pd.DataFrame(
    [
        # split, low, model, threshold, sensitivity, false alarms a week, net benefit, always
        ("patient", "low", "m", 0.0, 100, 4.2, 0.40, 0.40),
        ("patient", "low", "m", 0.2, 90, 2.1, 0.29, 0.25),
        ("patient", "low", "m", 0.4, 50, 0.7, 0.13, 0.0),
        ("patient", "low", "last_value", 0.3, 60, 3.5, 0.05, 0.14),
        ("temporal", "low", "m", 0.1, 80, 1.4, 0.15, 0.11),
        ("temporal", "low", "m", 0.7, 10, 0.2, 0.01, -0.9),
        ("temporal", "very_low", "m", 0.1, 33, 0.3, 0.02, 0.9),
    ],
    columns=["split", "low", "model", "threshold", "sensitivity_pct", "false_alarms_per_week",
             "net_benefit", "net_benefit_always"],
)  # fmt: skip


def lines(figure: object, name: str) -> dict[str, object]:
    """The traces of a name, by the axis of their panel."""
    return {trace.xaxis: trace for trace in figure.data if trace.name == name}


def test_sensitivity_is_drawn_by_false_alarms() -> None:
    found = lines(sensitivity_by_false_alarms(TRADE, STYLES), "m")
    assert list(found["x"].x) == [4.2, 2.1, 0.7]
    assert list(found["x"].y) == [100, 90, 50]
    assert list(found["x2"].y) == [80, 10]
    np.testing.assert_allclose(found["x"].customdata, [0, 20, 40])
    [very_low] = sensitivity_by_false_alarms(TRADE, STYLES, "very_low").select_traces(
        {"name": "m", "xaxis": "x2"}
    )
    assert list(very_low.y) == [33]


def test_between_two_alarms_the_one_with_fewer_false_ones_is_drawn() -> None:
    """With 1 a week the alarm of 2.1 cannot be had: 50 % are found, not 90 %."""
    curve = lines(sensitivity_by_false_alarms(TRADE, STYLES), "m")["x"]
    assert list(curve.x) == sorted(curve.x, reverse=True)
    assert curve.line.shape == "vh"  # down first, then to fewer false alarms


def test_decision_curve_stands_beside_always_and_never() -> None:
    figure = decision_curve(TRADE, STYLES)
    curves, always = lines(figure, "m"), lines(figure, "an alarm each night")
    np.testing.assert_allclose(curves["x"].x, [20, 40])  # at 0 nobody decides
    assert list(curves["x"].y) == [0.29, 0.13]
    np.testing.assert_allclose(always["x"].x, [20, 30, 40])
    assert list(always["x"].y) == [0.25, 0.14, 0.0]
    assert list(curves["x2"].y) == [0.15]  # thresholds up to a half
    assert [shape.y0 for shape in figure.layout.shapes] == [0, 0]
    assert figure.layout.yaxis.range[1] == pytest.approx(1.1 * 0.40)


def test_reliability_of_events_has_its_intervals() -> None:
    table = pd.DataFrame(
        [("patient", "low", "m", 30, 12.0, 20.0, 11.0, 34.0),
         ("patient", "low", "m", 9, 55.0, 44.0, 22.0, 60.0),
         ("patient", "low", "last_value", 39, 25.0, 26.0, 10.0, 40.0),
         ("patient", "very_low", "m", 39, 5.0, 6.0, 1.0, 9.0)],
        columns=["split", "low", "model", "nights", "said_pct", "happened_pct",
                 "happened_low_pct", "happened_high_pct"],
    )  # fmt: skip
    figure = event_reliability(table, ("m",), STYLES)
    diagonal, curve = figure.data
    assert list(diagonal.x) == list(diagonal.y) == [0, 100]
    assert (list(curve.x), list(curve.y)) == ([12, 55], [20, 44])
    assert list(curve.error_y.array) == [14, 16]
    assert list(curve.error_y.arrayminus) == [9, 22]
    assert list(curve.customdata) == [30, 9]


def test_quantile_reliability_is_the_share_less_the_level() -> None:
    levels = [0.05, 0.5, 0.95]
    table = pd.DataFrame(
        {
            "split": "temporal",
            "model": ["m"] * 6 + ["last_value"] * 3,
            "quantiles": ["calibrated"] * 3 + ["raw"] * 3 + ["calibrated"] * 3,
            "level": levels * 3,
            "under_pct": [7.0, 52, 93, 20, 60, 70, 1, 2, 3],
            "under_low_pct": [4.0, 45, 90, 10, 50, 60, 0, 1, 2],
            "under_high_pct": [9.0, 58, 97, 30, 70, 80, 2, 3, 4],
        }
    )
    band, curve, raw = quantile_reliability(table, ("m",), STYLES).data
    assert curve.name == "m"
    np.testing.assert_allclose(curve.x, [5, 50, 95])
    np.testing.assert_allclose(curve.y, [2, 2, -2])
    np.testing.assert_allclose(raw.y, [15, 10, -25])
    assert (curve.line.dash, raw.line.dash) == ("solid", "dot")
    np.testing.assert_allclose(band.x, [5, 50, 95, 95, 50, 5])
    np.testing.assert_allclose(band.y, [-1, -5, -5, 2, 8, 4])
