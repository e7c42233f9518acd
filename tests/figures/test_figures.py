"""What the figures draw is what the frames hold."""

import numpy as np
import pandas as pd
import pytest

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.figures import line_styles, tint
from nocturnal_kedro.figures.grids import LARGEST_SAMPLE, LETTERS, TOP, error_grid
from nocturnal_kedro.figures.horizon import bias_by_horizon, error_by_horizon
from nocturnal_kedro.figures.learning import learning_curves
from nocturnal_kedro.figures.nights import choose_nights, sample_nights
from nocturnal_kedro.figures.quality import nights_by_person
from nocturnal_kedro.figures.ranking import rmse_intervals
from nocturnal_kedro.metrics.clinical import GRIDS, ZONES
from nocturnal_kedro.metrics.scores import score_forecasts

STYLES = line_styles(["m"], ["last_value"])


@pytest.fixture(scope="module")
def origins() -> pd.DataFrame:
    days = pd.date_range("2026-01-05", periods=6, freq="D")
    splits = ["patient"] * 3 + ["temporal"] * 3
    return pd.DataFrame({"source": "s", "subject": "a", "origin": days, "split": splits})


@pytest.fixture(scope="module")
def forecasts(origins: pd.DataFrame) -> pd.DataFrame:
    """Night k is k + 1 mg/dL off everywhere; the truth is lowest in night 1 and night 4."""
    frame = origins.drop(columns="split").merge(pd.DataFrame({"step": range(1, 97)}), how="cross")
    night = frame["origin"].dt.day - 5
    frame["target_mg_dl"] = np.where(night.isin([1, 4]), 65.0, 120.0) + frame["step"] / 10
    frame["forecast_mg_dl"] = frame["target_mg_dl"] + night + 1
    frame.loc[frame["step"] == 3, "target_mg_dl"] = np.nan
    for level, away in (
        (0.01, -40),
        (0.05, -30),
        (0.1, -20),
        (0.25, -10),
        (0.75, 10),
        (0.9, 20),
        (0.95, 30),
        (0.99, 40),
    ):
        frame[f"q{level:g}"] = frame["forecast_mg_dl"] + away
    return frame


@pytest.fixture(scope="module")
def scores(forecasts: pd.DataFrame, origins: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([score_forecasts(forecasts, origins, "e", name) for name in STYLES])


def test_error_and_bias_by_horizon(scores: pd.DataFrame) -> None:
    error, bias = error_by_horizon(scores, STYLES), bias_by_horizon(scores, STYLES)
    curves = {(trace.name, trace.xaxis): trace for trace in error.data}
    assert set(curves) == {(name, axis) for name in STYLES for axis in ("x", "x2")}
    patient = curves["m", "x"]
    assert 3 not in patient.x  # nothing was observed there
    np.testing.assert_allclose(patient.y, np.sqrt(np.mean([1.0, 4, 9])))
    np.testing.assert_allclose(bias.data[0].y, 2.0)
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
    without = forecasts.drop(columns=[c for c in forecasts if c.startswith("q0")])
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
