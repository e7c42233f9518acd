"""The cohort is like life, and the same seed is the same cohort."""

import numpy as np
import pandas as pd
import pytest

from nocturnal_kedro import plugins
from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.grid import GridOptions, build_series
from nocturnal_kedro.series.schema import SERIES, Readings
from nocturnal_kedro.sources import simulated


@pytest.fixture(scope="module")
def cohort() -> Readings:
    return simulated.read((), simulated.Options())


@pytest.fixture(scope="module")
def series(cohort: Readings) -> pd.DataFrame:
    return build_series({"simulated": cohort}, GridOptions())[0]


def nights(series: pd.DataFrame) -> pd.DataFrame:
    """SD and minimum of glucose of every night, 00:00 to 06:00, with 80 % of it observed."""
    asleep = series[series["time"].dt.hour < 6]
    night = asleep.groupby([asleep["subject"], asleep["time"].dt.floor("D")], observed=True)[
        "glucose_mg_dl"
    ]
    table = night.agg(["count", "std", "min"])
    return table[table["count"] >= 0.8 * 72]


def test_default_cohort_is_thirty_people_for_thirty_days(series: pd.DataFrame) -> None:
    SERIES.validate(series)
    assert series["subject"].nunique() == 30
    days = series.groupby("subject", observed=True)["time"].agg(lambda t: (t.max() - t.min()).days)
    assert days.between(29, 30).all()


def test_glucose_is_like_that_of_people(series: pd.DataFrame) -> None:
    glucose = series["glucose_mg_dl"].dropna()
    assert 0.60 <= glucose.between(70, 180).mean() <= 0.75
    assert 15 <= nights(series)["std"].mean() <= 30
    assert 0.10 <= (nights(series)["min"] < 70).mean() <= 0.35
    assert 45 <= glucose.std() <= 75
    assert 0.005 < series["glucose_mg_dl"].isna().mean() < 0.10  # gaps


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_another_cohort_is_like_people_too(seed: int) -> None:
    read = simulated.read((), simulated.Options(seed=seed))
    series = build_series({"simulated": read}, GridOptions())[0]
    glucose = series["glucose_mg_dl"].dropna()
    assert 0.58 <= glucose.between(70, 180).mean() <= 0.77
    assert 15 <= nights(series)["std"].mean() <= 30
    assert 0.10 <= (nights(series)["min"] < 70).mean() <= 0.35


def test_people_differ(series: pd.DataFrame) -> None:
    per_person = series.groupby("subject", observed=True).agg(
        glucose=("glucose_mg_dl", "mean"), basal=("basal_u_h", "mean"), bolus=("bolus_u", "sum")
    )
    assert (per_person.std() / per_person.mean() > [0.05, 0.2, 0.2]).all()


def test_insulin_and_carbs_act(series: pd.DataFrame) -> None:
    """After a meal glucose rises, and the log holds it."""
    eaten = series[series["carbs_g"] >= 40]
    later = series.set_index(["subject", "time"])["glucose_mg_dl"]
    moved = [
        later.get((row.subject, row.time + pd.Timedelta("1h")), np.nan) - row.glucose_mg_dl
        for row in eaten.itertuples()
    ]
    assert np.nanmean(moved) > 20


def test_some_log_no_carbs_and_some_meals_are_not_logged(cohort: Readings) -> None:
    logged = cohort.frame.groupby("subject")["carbs_g"].sum()
    assert 1 <= (logged == 0).sum() <= 5
    assert logged[logged > 0].mean() / 30 > 100  # g a day


def test_the_same_options_give_the_same_frame_and_another_seed_another(cohort: Readings) -> None:
    again = simulated.read((), simulated.Options())
    pd.testing.assert_frame_equal(cohort.frame, again.frame, check_exact=True)
    pd.testing.assert_frame_equal(cohort.tally, again.tally)
    other = simulated.read((), simulated.Options(seed=5))
    assert not other.frame.equals(cohort.frame)


def test_a_person_does_not_depend_on_who_else_is_there(cohort: Readings) -> None:
    few = simulated.read((), simulated.Options(subjects=3)).frame
    of_many = cohort.frame[cohort.frame["subject"].isin(few["subject"].unique())]
    pd.testing.assert_frame_equal(few, of_many.reset_index(drop=True))


def test_unknown_option_and_impossible_number() -> None:
    with pytest.raises(InputError, match=r"'subjects' Input should be greater.*Allowed: subjects"):
        plugins.options("source", "simulated", {"subjects": 0})
