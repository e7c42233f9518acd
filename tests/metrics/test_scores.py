import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal
from sklearn.metrics import brier_score_loss

from nocturnal_kedro.metrics.calibration import LEVELS, probability
from nocturnal_kedro.metrics.clinical import GRIDS
from nocturnal_kedro.metrics.forecasts import NIGHT, QUANTILES, RAW, lay_out
from nocturnal_kedro.metrics.scores import (
    BANDS,
    LOW_MEASURES,
    MEASURES,
    POINT_MEASURES,
    QUANTILE_MEASURES,
    count_low_readings,
    measures_of,
    pool,
    score_levels,
    score_points,
)

from .invented import PEOPLE, invent_forecasts, laid_out

CELL = ["split", "source", "subject", "step", "hour", "band"]


def unreduced(frame: pd.DataFrame, origins: pd.DataFrame) -> pd.DataFrame:
    """Every observed point with its measures and cell, in pandas alone."""
    points = frame.merge(origins, on=NIGHT).dropna(subset="target_mg_dl").reset_index(drop=True)
    reference = points["target_mg_dl"].to_numpy()
    forecast = points["forecast_mg_dl"].to_numpy()
    quantiles = points[list(QUANTILES)].to_numpy(np.float64)
    read_at = points["origin"] + pd.to_timedelta(5 * points["step"], "min")
    points["hour"] = (read_at - pd.Timedelta(minutes=5)).dt.hour.astype("int64")
    edges = [0, 53.999, 69.999, 180, 250, 1000]  # readings have one decimal
    points["band"] = pd.cut(reference, edges, labels=list(BANDS)).astype(str)
    points["reference_mg_dl"] = reference
    for name, measure in POINT_MEASURES.items():
        points[name] = measure(reference, forecast)
    for name, measure in QUANTILE_MEASURES.items():
        points[name] = measure(reference, quantiles, LEVELS)
    for threshold in (70, 54):
        below = probability(quantiles, float(threshold))
        points[f"brier_{threshold}"] = (below - (reference < threshold)) ** 2
    for name, grid in GRIDS.items():
        for zone in "ABCDE":
            points[f"{name}_{zone.lower()}_pct"] = 100.0 * (grid.zones(reference, forecast) == zone)
    return points


@pytest.mark.parametrize("at", ["00:00", "22:35", "any"])
def test_cells_and_nights_are_a_groupby_of_the_points(at: str) -> None:
    """From 22:35 the clock passes midnight, and an hour begins within the steps."""
    frame, origins = invent_forecasts(at="00:00" if at == "any" else at)
    if at == "any":  # each at its own time
        moved = pd.to_timedelta(95 * origins.groupby("subject").cumcount(), unit="min")
        moved = moved.set_axis(pd.MultiIndex.from_frame(origins[NIGHT]))
        for table in (frame, origins):
            table["origin"] += moved.loc[pd.MultiIndex.from_frame(table[NIGHT])].to_numpy()
    points = unreduced(frame, origins)
    averaged = ["reference_mg_dl", *MEASURES]
    by_cell, by_night = score_points(lay_out(frame, origins, "m"))
    for got, keys in ((by_cell, CELL), (by_night, ["split", *NIGHT])):
        grouped = points.groupby(keys)
        expected = grouped[averaged].mean().assign(points=grouped.size())
        got = got.set_index(keys).sort_index()
        assert_frame_equal(got[expected.columns], expected, check_dtype=False, rtol=1e-5)
    assert by_cell["hour"].between(0, 23).all()
    nights = origins.groupby(["split", "source", "subject"]).size()
    counted = by_cell.groupby(["split", "source", "subject"])["nights"].agg(["min", "max"])
    assert (counted["min"] == nights).all()
    assert (counted["max"] == nights).all()


@pytest.mark.parametrize(
    "by", [["split"], ["source", "band"], ["split", "source", "subject"], ["hour"], CELL]
)
def test_means_add_up_to_any_coarser_pooling(by: list[str]) -> None:
    frame, origins = invent_forecasts(1)
    points = unreduced(frame, origins)
    by_cell, _ = score_points(lay_out(frame, origins, "m"))
    pooled = pool(by_cell, by).set_index(by)
    grouped = points.groupby(by)
    expected = grouped[["reference_mg_dl", *MEASURES]].mean()
    assert_frame_equal(pooled[expected.columns], expected, rtol=1e-5)
    np.testing.assert_array_equal(pooled["points"], grouped.size())
    np.testing.assert_allclose(pooled["rmse_mg_dl"], np.sqrt(grouped["mse"].mean()))
    finer = list(dict.fromkeys(["split", "source", "subject", *by]))
    again = pool(pool(by_cell, finer), by).set_index(by)
    assert_frame_equal(again, pooled)  # in two goes as in one


def test_a_standard_evaluation_has_no_clinical_column() -> None:
    of_kind = {kind: score_points(laid_out(), kind) for kind in ("standard", "clinical")}
    clinical = [*LOW_MEASURES, *(f"{grid}_{zone}_pct" for grid in GRIDS for zone in "abcde")]
    assert len(clinical) == 2 + 3 * 5
    for standard, whole in zip(*of_kind.values(), strict=True):
        assert list(whole.columns.difference(standard.columns)) == sorted(clinical)
        assert_frame_equal(standard, whole[standard.columns])
        assert set(measures_of("standard")) == set(standard) & set(MEASURES)


def test_band_edges() -> None:
    frame, origins = invent_forecasts(people=(("s", "a", "patient", 1),), horizon=11)
    readings = [53.9, 54, 69.9, 70, 180, 180.1, 250, 250.1, 400, 40, np.nan]
    scores, _ = score_points(lay_out(frame.assign(target_mg_dl=readings), origins, "m"))
    assert scores.sort_values("step")["band"].tolist() == [
        "below 54", "54 to 70", "54 to 70", "70 to 180", "70 to 180",
        "180 to 250", "180 to 250", "above 250", "above 250", "below 54",
    ]  # fmt: skip


def test_the_hour_is_the_clocks_past_midnight() -> None:
    frame, origins = invent_forecasts(people=(("s", "a", "patient", 1),), horizon=30, at="22:55")
    frame["target_mg_dl"] = 110.0
    hour = score_points(lay_out(frame, origins, "m"))[0].set_index("step")["hour"]
    assert [hour[step] for step in (1, 2, 13, 14, 25, 26)] == [22, 23, 23, 0, 0, 1]


def test_brier_below_is_that_of_scikit_learn() -> None:
    frame, origins = invent_forecasts(3)
    scores = pool(score_points(lay_out(frame, origins, "m"))[0], ["split"]).set_index("split")
    observed = frame.merge(origins, on=NIGHT).dropna(subset="target_mg_dl")
    for split, points in observed.groupby("split"):
        for threshold in (70.0, 54.0):
            said = probability(points[list(QUANTILES)].to_numpy(), threshold)
            expected = brier_score_loss(points["target_mg_dl"] < threshold, said)
            assert scores.loc[split, f"brier_{threshold:.0f}"] == pytest.approx(expected)


@settings(max_examples=10)
@given(st.integers(0, 100))
def test_scores_do_not_depend_on_the_order_of_rows(seed: int) -> None:
    people = (("s", "a", "patient", 2), ("t", "b", "temporal", 2))
    frame, origins = invent_forecasts(seed, people, horizon=12)
    shuffled = frame.sample(frac=1, random_state=seed)
    ordered, again = (score_points(lay_out(some, origins, "m")) for some in (frame, shuffled))
    for one, other in zip(ordered, again, strict=True):
        assert_frame_equal(one, other)


def test_a_perfect_forecast_scores_best() -> None:
    frame, origins = invent_forecasts()
    perfect = frame.copy()
    for name in ("forecast_mg_dl", *QUANTILES):
        perfect[name] = frame["target_mg_dl"].fillna(100.0)
    best, usual = (
        pool(score_points(lay_out(some, origins, "m"))[0], ["split"]) for some in (perfect, frame)
    )
    for name in ("rmse_mg_dl", "mae_mg_dl", "mape_pct", "crps_mg_dl", "crps_below_70_mg_dl"):
        assert best[name].abs().max() < 1e-5 < usual[name].min()
    assert (best["clarke_a_pct"] == 100).all()
    assert (best["interval_score_80_mg_dl"] < usual["interval_score_80_mg_dl"]).all()
    assert (best["brier_70"] < usual["brier_70"]).all()


def test_levels_by_hand_and_against_pandas() -> None:
    frame, origins = invent_forecasts(2)
    levels = score_levels(lay_out(frame, origins, "m"))
    assert len(levels) == 2 * 21 * len({person[:3] for person in PEOPLE})
    points = frame.merge(origins, on=NIGHT).dropna(subset="target_mg_dl")
    keys = ["split", "source", "subject"]
    for stage, names in (("calibrated", QUANTILES), ("raw", RAW)):
        of_stage = levels[levels["quantiles"] == stage].set_index(["level", *keys])
        for level, name in zip(LEVELS, names, strict=True):
            under = points["target_mg_dl"] <= points[name]
            expected = 100 * under.groupby([points[key] for key in keys]).mean()
            np.testing.assert_allclose(
                of_stage.loc[level, "under_pct"].loc[expected.index], expected
            )
            counted = of_stage.loc[level, "points"].loc[expected.index]
            assert (counted == points.groupby(keys).size()).all()


def test_whom_nothing_was_read_of_has_no_level() -> None:
    frame, origins = invent_forecasts()
    frame.loc[frame["subject"] == "b", "target_mg_dl"] = np.nan
    laid = lay_out(frame.drop(columns=list(RAW)), origins, "m")
    levels = score_levels(laid)
    assert set(levels["subject"]) == {"a"}
    assert set(levels["quantiles"]) == {"calibrated"}
    by_cell, by_night = score_points(laid)
    assert set(by_cell["subject"]) == set(by_night["subject"]) == {"a"}


def test_low_readings_are_counted_by_what_was_said_of_each() -> None:
    frame, origins = invent_forecasts(5)
    counted = count_low_readings(lay_out(frame, origins, "m"))
    points = frame.merge(origins, on=NIGHT).dropna(subset="target_mg_dl")
    for low, threshold in (("low", 70.0), ("very_low", 54.0)):
        said = probability(points[list(QUANTILES)].to_numpy(), threshold)
        expected = points.assign(
            column=np.rint(1000 * said).astype("int64"),
            events=points["target_mg_dl"] < threshold,
            others=points["target_mg_dl"] >= threshold,
        )
        keys = ["split", "source", "subject", "column"]
        expected = expected.groupby(keys)[["events", "others"]].sum()
        got = counted[counted["low"] == low].set_index(keys)[["events", "others"]].sort_index()
        assert_frame_equal(got, expected, check_dtype=False, check_index_type=False)
