"""What the figures draw is what the frames hold."""

import re
from html import unescape

import numpy as np
import pandas as pd
import pytest

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.figures import MODEL_COLOURS, line_styles, sweeps, tint
from nocturnal_kedro.figures.alarms import (
    decision_curve,
    event_reliability,
    sensitivity_by_false_alarms,
)
from nocturnal_kedro.figures.calibration import quantile_reliability
from nocturnal_kedro.figures.cards import LINE_CHARACTERS, night_card
from nocturnal_kedro.figures.grids import LARGEST_SAMPLE, LETTERS, TOP, error_grid
from nocturnal_kedro.figures.horizon import bias_by_horizon, error_by_horizon
from nocturnal_kedro.figures.learning import learning_curves
from nocturnal_kedro.figures.nights import choose_nights, sample_nights
from nocturnal_kedro.figures.quality import nights_by_person
from nocturnal_kedro.figures.ranking import rmse_intervals
from nocturnal_kedro.metrics.cards import NightCard
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


def test_steps_are_clock_times_from_midnight_and_else_hours(
    forecasts: pd.DataFrame, origins: pd.DataFrame
) -> None:
    midnight = forecasts, origins
    evening = tuple(
        table.assign(origin=table["origin"] - pd.Timedelta(minutes=5)) for table in midnight
    )
    for (frame, table), ticks, title in (
        (midnight, ("00:00", "02:00", "04:00", "06:00", "08:00"), "clock time"),
        (evening, ("0", "2", "4", "6", "8"), "hours after the origin"),
    ):
        by_cell, _ = score_points(lay_out(frame, table, "m"))
        axis = error_by_horizon(by_cell.assign(model="m"), line_styles(["m"], [])).layout.xaxis
        assert (axis.ticktext, axis.title.text) == (ticks, title)
        assert axis.tickvals == (0, 24, 48, 72, 96)
        chosen = choose_nights(frame, table, "meal").head(1)
        figure = sample_nights({"m": frame}, chosen, STYLES)
        assert figure.layout.xaxis.ticktext == ticks
        at = "" if title == "clock time" else " 23:55"
        told = f"an easy meal, patient<br><sup>s/b, {chosen['origin'].iloc[0]:%Y-%m-%d}{at}</sup>"
        assert figure.layout.annotations[0].text == told


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
    assert figure.layout.yaxis.title.text == "nights"
    meals = nights_by_person(quality.replace({"nights kept": "meals kept", "why": "a gap"}))
    assert meals.data[0].name == "meals kept"
    assert meals.layout.yaxis.title.text == "meals"


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


def tonight(below: float, words: str, warnings: list[str], onset: dict | None) -> dict:
    return {
        "below_mg_dl": below, "probability": 0.31, "words": words, "usual_share": 0.09,
        "onset": onset, "expected_minutes": 12.4, "alarm_threshold": 0.28, "alarm_rings": True,
        "reliability": {
            "words": f"Of 34 validation nights told alike, 6 went below {below:.0f}: 18 %, 95 % "
            "interval 8 to 34 %.",
            "warnings": warnings, "said_from_pct": 30, "said_to_pct": 40, "nights": 34,
            "low_nights": 6, "people": 9, "happened_pct": 17.6, "happened_low_pct": 8.3,
            "happened_high_pct": 33.5, "validation_nights": 111, "validation_low_nights": 11,
            "brier_skill": 0.1,
        },
    }  # fmt: skip


@pytest.fixture
def card() -> NightCard:
    """From ten past eleven in the evening, two and a half hours ahead."""
    minutes = list(range(5, 155, 5))
    median = [120 - 0.3 * minute for minute in minutes]
    onset = {
        "median_minutes": 95, "from_minutes": 40, "to_minutes": 130,
        "median_clock": "00:45", "from_clock": "23:50", "to_clock": "01:20",
    }  # fmt: skip
    both = "No night of this person was in training."
    return NightCard.model_validate(
        {
            "experiment": "e", "model": "m & m", "source": "s", "subject": "<b>a" + 70 * "x",
            "origin": "2026-01-05T23:10:00", "split": "patient", "chosen": "by hand",
            "training_nights": 0, "last_mg_dl": 118.0, "minutes": minutes, "median_mg_dl": median,
            "bands": [
                {"share_pct": share, "lower_mg_dl": [value - off for value in median],
                 "upper_mg_dl": [value + off for value in median]}
                for share, off in ((50, 10), (80, 20), (90, 31))
            ],
            "low": tonight(70, "about 3 in 10 (31 %)", ["Few.", both], onset),
            "very_low": tonight(54, "under 1 in 100", [both, "Fewer."], None),
            "happened": {
                "glucose_mg_dl": [None, 250.0, *[68.0] * 28], "lowest_mg_dl": 68.0,
                "low": {"event": True, "onset_minutes": 15, "minutes": 140},
                "very_low": {"event": False, "onset_minutes": None, "minutes": 0},
            },
        }
    )  # fmt: skip


def plain(text: str) -> list[str]:
    return [unescape(re.sub("<.*?>", "", line)) for line in text.split("<br>")]


def test_a_night_card_draws_what_the_card_holds(card: NightCard) -> None:
    figure = night_card(card)
    traces = {trace.name: trace for trace in figure.data}
    assert list(traces) == [
        "central 90 %", "80 %", "50 %", "median", "readings", "onset of a low",
    ]  # fmt: skip
    for name, band in zip(("50 %", "80 %", "central 90 %"), card.bands, strict=True):
        assert list(traces[name].x) == [*card.minutes, *card.minutes[::-1]]
        assert list(traces[name].y) == [*band.lower_mg_dl, *band.upper_mg_dl[::-1]]
    assert list(traces["median"].y) == list(card.median_mg_dl)
    assert traces["readings"].mode == "markers"  # gaps are not drawn over
    assert list(traces["readings"].y) == list(card.happened.glucose_mg_dl)
    assert list(traces["onset of a low"].x) == [40, 95, 130]
    assert set(traces["onset of a low"].y) < set(np.arange(figure.layout.yaxis.range[0], 40))
    assert figure.layout.yaxis.range[1] > 250  # what happened is not cut off
    assert (list(figure.layout.xaxis.tickvals), list(figure.layout.xaxis.ticktext)) == (
        [50, 110], ["00:00", "01:00"],
    )  # fmt: skip
    lines = [shape.y0 for shape in figure.layout.shapes if shape.type == "line"]
    assert lines == [70, 54]


def test_a_night_card_can_be_read_alone(card: NightCard) -> None:
    figure = night_card(card)
    *_, title, words = figure.layout.annotations
    whose = plain(title.text)
    assert " ".join(whose[:-1]).startswith("Night of s/<b>axxx")  # a name is text
    assert whose[-1] == "e, m & m, patient; chosen: by hand"
    lines = plain(words.text)
    text = " ".join(lines).replace("\u00a0", " ")
    for said in (
        "Below 70 mg/dL tonight: about 3 in 10 (31 %). Usual for everybody: about 1 in 10 (9 %).",
        "If so, it would begin around 00:45 (8 in 10 times between 23:50 and 01:20).",
        "Minutes expected below: 12.",
        "The alarm of at most one false ring a week, from 28 % on, rings.",
        "6 went below 70: 18 %, 95 % interval 8 to 34 %. Few. No night of this person was",
        "Below 54 mg/dL tonight: under 1 in 100.",
        "What happened: below 70 from 23:25, 140 min of the night; not below 54 for 15 minutes; "
        "lowest reading 68 mg/dL.",
        "not a medical device",
    ):
        assert said in text
    assert text.count("No night of this person was in training.") == 1
    assert max(map(len, [*whose, *lines])) <= LINE_CHARACTERS
    # The drawing leaves room above and below it for each line.
    margin = figure.layout.margin
    assert margin.b >= -words.yshift + 16 * len(lines)
    assert margin.t >= title.yshift + 16 * len(whose)
    assert figure.layout.height - margin.t - margin.b == 300


def test_the_card_of_a_night_to_come_shows_no_readings(card: NightCard) -> None:
    figure = night_card(card.model_copy(update={"happened": None, "last_mg_dl": None}))
    assert "readings" not in {trace.name for trace in figure.data}
    assert "What happened" not in figure.layout.annotations[-1].text
    assert "last reading" not in figure.layout.annotations[-2].text


SWEEP_COLUMNS = ["split", "group", "question", "cell", "model", "number", "against", "people",
                 "paired_people", "rmse_mg_dl", "difference_mg_dl", "apart"]  # fmt: skip


def sweep_of(rows: list[tuple]) -> pd.DataFrame:
    """A table as of `summarise`, with intervals from 2 below to 3 above."""
    table = pd.DataFrame(rows, columns=SWEEP_COLUMNS)
    for name in ("rmse", "difference"):
        table[f"{name}_low_mg_dl"] = table[f"{name}_mg_dl"] - 2
        table[f"{name}_high_mg_dl"] = table[f"{name}_mg_dl"] + 3
    return table


SWEEP = sweep_of(
    [
        (split, group, question, cell, model, number, against, 9, 8 if against else 0, rmse,
         difference, difference < -3)
        for split, group, more in (
            ("patient", "all", 0), ("patient", "s", 1), ("temporal", "all", 2)
        )
        for question, cell, model, number, against, rmse, difference in (
            ("context", "context 96", "m", 96.0, "context 512", 31.0 + more, 2.5),
            ("context", "context 512", "m", 512.0, "", 28.5 + more, np.nan),
            ("context", "context 2048", "m", 2048.0, "context 512", 27.0 + more, -1.5),
            ("days", "before", "m", 0.0, "", 30.0 + more, np.nan),
            ("days", "full, 7 days", "m", 7.0, "before", 26.0 + more, -4.0),
            ("days", "LoRA, 7 days", "m", 7.0, "before", 29.0 + more, -1.0),
            ("days", "full, 30 days of t1d", "k", 30.0, "context 512", 25.0 + more, -5.0),
            ("baselines", "last_value", "last_value", np.nan, "", 44.0 + more, np.nan),
        )
    ]
)  # fmt: skip


def test_effects_are_drawn_where_their_cell_is_written() -> None:
    figure = sweeps.effects(SWEEP)
    labels = figure.layout.yaxis.ticktext
    assert list(labels) == [
        "<b>context</b>, against context 512", "context 96", "context 2048", "<b>days</b>",
        "full, 7 days against before", "LoRA, 7 days against before",
        "full, 30 days of t1d against context 512",
    ]  # fmt: skip
    m, k = lines(figure, "m")["x"], lines(figure, "k")["x"]
    assert [labels[round(y)].split(" against")[0] for y in m.y] == [row[0] for row in m.customdata]
    assert list(m.x) == [2.5, -1.5, -4.0, -1.0]
    assert list(m.marker.symbol) == ["circle-open", "circle-open", "circle", "circle-open"]
    np.testing.assert_allclose(m.error_x.arrayminus, 2)
    np.testing.assert_allclose(m.error_x.array, 3)
    assert (labels[round(k.y[0])], k.x[0]) == (labels[-1], -5)
    assert k.y[0] - round(k.y[0]) > 0 > m.y[0] - round(m.y[0])  # side by side
    assert [m.marker.color, k.marker.color] == list(MODEL_COLOURS[:2])
    assert set(lines(figure, "m")) == {"x", "x2"}
    assert all(shape.x0 == shape.x1 == 0 for shape in figure.layout.shapes)
    with pytest.raises(InputError, match="unknown group of nights 'r'; known: all, s"):
        sweeps.effects(SWEEP, "r")
    with pytest.raises(InputError, match="no cell is compared with another on the nights of s"):
        sweeps.effects(SWEEP.assign(difference_mg_dl=np.nan), "s")


def test_curve_of_far_numbers_is_logarithmic_and_stands_beside_the_baselines() -> None:
    figure = sweeps.curve(SWEEP, "context", "all")
    curves, held = lines(figure, "m"), lines(figure, "last_value")
    np.testing.assert_allclose(curves["x"].x, [96, 512, 2048])
    assert list(curves["x"].y) == [31, 28.5, 27]
    assert list(curves["x2"].y) == [33, 30.5, 29]
    assert list(curves["x"].error_y.array) == [3, 3, 3]
    assert list(held["x"].y) == [44, 44]
    assert list(held["x"].x) == [96, 2048]
    assert figure.layout.xaxis.type == "log"
    assert list(figure.layout.xaxis.ticktext) == ["96", "512", "2048"]
    assert figure.layout.xaxis.title.text == "context"
    assert list(lines(sweeps.curve(SWEEP, "context", "s"), "m")["x"].y) == [32, 29.5, 28]


def test_curve_has_a_line_for_each_kind_of_cell_from_what_they_share() -> None:
    """Not adapted is where all begin; another model has one cell a number, so it has one line."""
    figure = sweeps.curve(SWEEP, "days")
    full, lora = (lines(figure, f"m, {kind}, … days")["x"] for kind in ("full", "LoRA"))
    assert (list(full.y), list(lora.y)) == ([30, 26], [30, 29])
    np.testing.assert_allclose(full.x, [0, 7], atol=0.5)
    assert full.x[1] < lora.x[1]  # their bars stand side by side
    assert full.marker.symbol != lora.marker.symbol
    assert list(lines(figure, "k")["x"].y) == [25]
    assert figure.layout.xaxis.type == "linear"  # 0 has no logarithm
    names = {"before": "full, 14 days", "LoRA, 7 days": "LoRA, 7 days of lynch_2022"}
    more = SWEEP.replace({"cell": names}).assign(number=SWEEP["number"].replace(0, 14))
    figure = sweeps.curve(more, "days")
    assert list(lines(figure, "m, full, … days")["x"].y) == [26, 30]  # in order of numbers
    assert list(lines(figure, "m, LoRA, … days of lynch_2022")["x"].y) == [29]
    with pytest.raises(InputError, match="no cell of 'baselines' has a number"):
        sweeps.curve(SWEEP, "baselines")
    with pytest.raises(InputError, match=r"unknown question 'day'; .*Did you mean 'days'"):
        sweeps.curve(SWEEP, "day")


def test_matrix_has_a_box_for_each_cell_and_group() -> None:
    part = SWEEP[SWEEP["question"].isin(["days", "baselines"])]
    figure = sweeps.matrix(part, ["s", "all"])
    titles = [title.text for title in figure.layout.annotations]
    assert titles == [f"{model}: {split}" for model in "mk" for split in
                      ("People never seen", "Everybody else, later days")]  # fmt: skip
    seen, later, of_k, _ = figure.data
    assert list(seen.x) == ["s", "all"]
    assert list(seen.y) == ["before", "full, 7 days", "LoRA, 7 days", "last_value"]
    np.testing.assert_allclose(seen.z, [[31, 30], [27, 26], [30, 29], [45, 44]])
    np.testing.assert_allclose(later.z[1], [np.nan, 28])
    assert list(of_k.y) == ["full, 30 days of t1d", "last_value"]
    assert seen.text[1][1] == "26.0<br>24.0 to 29.0"
    assert later.text[1][0] == ""
    compared = sweeps.matrix(part, ["all"], "difference_mg_dl").data[0]
    assert list(compared.y) == ["full, 7 days", "LoRA, 7 days"]
    assert list(compared.text[:, 0]) == ["<b>-4.0</b><br>-6.0 to -1.0", "-1.0<br>-3.0 to +2.0"]
    with pytest.raises(InputError, match="unknown measure 'rmse'; known: crps_difference_mg_dl"):
        sweeps.matrix(part, ["all"], "rmse")


def test_learning_curves_are_each_persons_and_the_mean_of_who_has_all() -> None:
    """Of three one has no 30 days; two seeds are averaged, and nobody is named."""
    rows = [("patient", "s", who, "days", f"{days:g} days", days, "m", seed, rmse + seed)
            for who, own in (("a", (30, 26, 20)), ("b", (40, 38)), ("c", (50, 40, 37)))
            for days, rmse in zip((0.0, 7.0, 30.0), own, strict=False)
            for seed in (1, 2)]  # fmt: skip
    columns = ["split", "source", "subject", "question", "cell", "number", "model", "seed"]
    people = pd.DataFrame(rows, columns=[*columns, "rmse_mg_dl"])
    figure = sweeps.learning_curves(people, "days")
    each, mean = figure.data
    np.testing.assert_array_equal(
        each.y, [31.5, 27.5, 21.5, np.nan, 41.5, 39.5, np.nan, np.nan, 51.5, 41.5, 38.5, np.nan]
    )
    assert list(each.x[:4]) == [0, 7, 30, None]
    assert list(mean.y) == [41.5, 34.5, 30]
    assert mean.line.width > each.line.width
    [title] = figure.layout.annotations
    assert "people never seen: mean of 2 of 3" in title.text
    assert figure.layout.xaxis.title.text == "days"
