import numpy as np
import pandas as pd
import pytest

from nocturnal_kedro.metrics.breakdown import TOLD, break_down, group_people, summarise_levels
from nocturnal_kedro.metrics.compare import Comparison
from nocturnal_kedro.metrics.forecasts import NIGHT, PERSON, lay_out
from nocturnal_kedro.metrics.scores import score_levels, score_points

from .invented import invent_forecasts

COMPARISON = Comparison(resamples=300)
PEOPLE = (
    ("s", "a", "patient", 3),
    ("s", "b", "patient", 2),
    ("t", "a", "patient", 4),
    ("s", "c", "temporal", 9),
    ("s", "c", "validation", 2),
)
QUALITY = pd.DataFrame(
    [("s", "a", 5, 153.9, 40.0), ("s", "b", 15, 154.0, np.nan), ("t", "a", 5, 180.0, 33.0),
     ("s", "c", 5, 120.0, np.nan), ("s", "unused", 5, 300.0, 1.0)],
    columns=[*PERSON, "sampling_minutes", "median_mg_dl", "daily_dose_u"],
)  # fmt: skip
Frames = dict[str, tuple[pd.DataFrame, pd.DataFrame]]


@pytest.fixture(scope="module")
def frames() -> Frames:
    """Of two models the forecasts and the frozen table; what came is the same."""
    return {"m": invent_forecasts(0, PEOPLE), "worse": _worse()}


def _worse() -> tuple[pd.DataFrame, pd.DataFrame]:
    frame, origins = invent_forecasts(0, PEOPLE)
    error = frame["forecast_mg_dl"] - frame["target_mg_dl"].fillna(0)
    return frame.assign(forecast_mg_dl=frame["forecast_mg_dl"] + 0.3 * error), origins


@pytest.fixture(scope="module")
def broken(frames: Frames) -> pd.DataFrame:
    scored = {model: score_points(lay_out(*of, model)) for model, of in frames.items()}
    cells, nights = (
        pd.concat([parts[k].assign(model=model) for model, parts in scored.items()]) for k in (0, 1)
    )
    return break_down(cells, nights, QUALITY, COMPARISON)


def points_of(frames: Frames, model: str) -> pd.DataFrame:
    frame, origins = frames[model]
    points = frame.merge(origins, on=NIGHT).dropna(subset="target_mg_dl")
    points["error"] = points["forecast_mg_dl"] - points["target_mg_dl"]
    clock = points["origin"] + pd.to_timedelta(5 * points["step"], "min")
    inside = (points["q0.1"] <= points["target_mg_dl"]) & (points["target_mg_dl"] <= points["q0.9"])
    quality = QUALITY.set_index(PERSON)
    person = pd.MultiIndex.from_frame(points[PERSON])
    of_person = quality.reindex(person).reset_index(drop=True)
    return points.assign(
        inside=100.0 * inside,
        **{
            "hours ahead": [f"{-(-step * 5 // 60):02d}" for step in points["step"]],
            "clock hour": (clock - pd.Timedelta(minutes=5)).dt.strftime("%H:00"),
            "weekday": points["origin"].dt.strftime("%u %A"),
            "sensor": np.where(of_person["sampling_minutes"] == 15, "every 15 min", "every 5 min"),
            "insulin": np.where(of_person["daily_dose_u"] > 0, "on record", "not on record"),
            "median glucose": np.where(
                of_person["median_mg_dl"] < 154, "below 154 mg/dL", "from 154 mg/dL"
            ),
        },
    )


DIMENSIONS = ["hours ahead", "clock hour", "weekday", "source", "sensor", "insulin",
              "median glucose"]  # fmt: skip


@pytest.mark.parametrize("by", DIMENSIONS)
def test_each_dimension_is_a_groupby_of_the_points(
    by: str, frames: Frames, broken: pd.DataFrame
) -> None:
    for model in frames:
        points = points_of(frames, model)
        points = points[points["split"] != "validation"]
        got = broken[(broken["by"] == by) & (broken["model"] == model)]
        got = got.set_index(["split", "value"]).sort_index()
        grouped = points.groupby(["split", by, *PERSON])
        people = pd.DataFrame(
            {
                "rmse_mg_dl": grouped["error"].apply(lambda error: np.sqrt((error**2).mean())),
                "mae_mg_dl": grouped["error"].apply(lambda error: error.abs().mean()),
                "bias_mg_dl": grouped["error"].mean(),
                "coverage_80_pct": grouped["inside"].mean(),
            }
        )
        expected = people.groupby(level=[0, 1]).mean()
        assert list(got.index) == list(expected.index)
        for name in expected:
            np.testing.assert_allclose(got[name], expected[name], rtol=1e-6)
        np.testing.assert_array_equal(got["people"], people.groupby(level=[0, 1]).size())
        np.testing.assert_array_equal(got["points"], points.groupby(["split", by]).size())


def test_rows_hold_intervals_and_every_figure(broken: pd.DataFrame) -> None:
    assert list(broken.columns) == [
        "split", "model", "by", "value", "people", "points", *TOLD, "rmse_low_mg_dl",
        "rmse_high_mg_dl",
    ]  # fmt: skip
    assert set(broken["by"]) == {*DIMENSIONS, "glucose band"}
    several = broken[broken["people"] > 1]
    assert (several["rmse_low_mg_dl"] < several["rmse_mg_dl"]).all()
    assert (several["rmse_mg_dl"] < several["rmse_high_mg_dl"]).all()
    alone = broken[broken["people"] == 1]
    np.testing.assert_allclose(alone["rmse_low_mg_dl"], alone["rmse_high_mg_dl"])
    assert set(broken["split"]) == {"patient", "temporal"}


def test_extremes_are_forecast_too_near_the_middle(broken: pd.DataFrame) -> None:
    bands = broken[broken["by"] == "glucose band"].groupby("value")["bias_mg_dl"].mean()
    assert bands["below 54"] > bands["70 to 180"] > bands["above 250"]
    assert bands["below 54"] > 0 > bands["above 250"]


def test_groups_by_hand() -> None:
    groups = group_people(QUALITY).set_index(PERSON)
    assert groups.loc[("s", "a")].tolist() == ["every 5 min", "on record", "below 154 mg/dL"]
    assert groups.loc[("s", "b")].tolist() == ["every 15 min", "not on record", "from 154 mg/dL"]


def test_levels_count_everybody_once(frames: Frames) -> None:
    levels = pd.concat(
        score_levels(lay_out(*of, model)).assign(model=model) for model, of in frames.items()
    )
    table = summarise_levels(levels, COMPARISON)
    assert len(table) == 2 * 2 * 2 * 21
    at = table.set_index(["split", "model", "quantiles", "level"])
    points = points_of(frames, "m").query("split == 'patient'")
    for stage, name in (("calibrated", "q0.1"), ("raw", "raw_q0.1")):
        under = 100 * (points["target_mg_dl"] <= points[name])
        of_people = under.groupby([points[key] for key in PERSON]).mean()
        row = at.loc[("patient", "m", stage, 0.1)]
        assert row["people"] == 3
        assert row["under_pct"] == pytest.approx(of_people.mean())
        low, high = row["under_low_pct"], row["under_high_pct"]
        assert of_people.min() <= low < row["under_pct"] < high <= of_people.max()
