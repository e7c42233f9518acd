"""What is suspect is found, with its measure; what is not is left alone."""

import numpy as np
import pandas as pd
import pytest

from nocturnal_kedro.series.corpus import build_corpus
from nocturnal_kedro.series.grid import GridOptions, build_series, order_readings
from nocturnal_kedro.series.overlap import find_overlaps, mark_readings
from nocturnal_kedro.series.physiology import Physiology
from nocturnal_kedro.series.quality import measure_people
from nocturnal_kedro.series.schema import Readings, make_tally
from nocturnal_kedro.sources import simulated
from tests.conftest import invent_readings


def measured(readings: Readings) -> pd.DataFrame:
    series, tally = build_series({"s": readings}, GridOptions())
    overlaps = find_overlaps(mark_readings(order_readings("s", readings)))
    people = measure_people(series, build_corpus(series, Physiology()), tally, overlaps)
    return people.set_index("subject")


@pytest.fixture(scope="module")
def cohort() -> Readings:
    return simulated.read((), simulated.Options(subjects=6, days=10))


def only(cohort: Readings, subject: str, **changes: object) -> Readings:
    frame = cohort.frame[cohort.frame["subject"] == subject].reset_index(drop=True)
    return Readings(frame.assign(**changes), make_tally("read", []))


def test_plausible_people_have_no_finding(cohort: Readings) -> None:
    people = measured(cohort)
    assert people["findings"].tolist() == [""] * 6
    assert people["sampling_minutes"].tolist() == [5] * 6
    assert people["observed_pct"].between(85, 100).all()
    assert people["iob_correlation"].dropna().lt(0).all()  # insulin lowers glucose
    rows = cohort.frame.groupby("subject").size()
    pd.testing.assert_series_equal(people["rows_in"], rows, check_names=False)
    dose = cohort.frame.groupby("subject")["bolus_u"].sum() / 10
    # Per day with a pump on record, which is a little less than all days.
    bolus = people["daily_dose_u"] * (1 - people["basal_pct"] / 100)
    assert (bolus / dose).between(0.99, 1.35).all()


def test_interpolated_readings_are_found(cohort: Readings) -> None:
    real = cohort.frame[cohort.frame["subject"] == "sim-001"]["glucose_mg_dl"].dropna()
    thinned = real.reset_index(drop=True).where(lambda g: g.index % 3 == 0).interpolate()
    frame = only(cohort, "sim-001").frame.dropna(subset="glucose_mg_dl").reset_index(drop=True)
    person = measured(
        Readings(frame.assign(glucose_mg_dl=thinned.to_numpy()), make_tally("read", []))
    ).iloc[0]
    assert person["straight_pct"] > 60
    assert "interpolated" in person["findings"]


def test_gaps_and_flat_hours_are_measured() -> None:
    frame = invent_readings(people=1, days=3).frame
    frame["glucose_mg_dl"] = np.round(frame["glucose_mg_dl"], 2)
    frame.loc[100:200, "glucose_mg_dl"] = np.nan  # 101 slots
    frame.loc[300:500, "glucose_mg_dl"] = 120.0
    person = measured(Readings(frame, make_tally("read", []))).iloc[0]
    assert (person["gaps"], person["longest_gap_h"]) == (1, 102 / 12)
    assert person["flat_pct"] == pytest.approx(100 * 201 / (864 - 101))
    assert "hours without any change" in person["findings"]


def test_shared_readings_are_told_of_both(cohort: Readings) -> None:
    copy = cohort.frame[cohort.frame["subject"] == "sim-002"].assign(subject="other")
    people = measured(Readings(pd.concat([cohort.frame, copy]), make_tally("read", [])))
    suspect = people.index[people["findings"].str.contains("somebody else's too")]
    assert sorted(suspect) == ["other", "sim-002"]


def test_wrong_units_are_suspected(cohort: Readings) -> None:
    frame = only(cohort, "sim-003").frame
    milli = measured(only(cohort, "sim-003", basal_u_h=frame["basal_u_h"] * 20)).iloc[0]
    assert "U of insulin a day: wrong unit?" in milli["findings"]
    low = measured(only(cohort, "sim-003", glucose_mg_dl=frame["glucose_mg_dl"] / 3)).iloc[0]
    assert "wrong unit?" in low["findings"]


def test_insulin_at_the_wrong_time_is_suspected(cohort: Readings) -> None:
    """The clock of the pump an hour behind that of the sensor."""
    bolus = cohort.frame["bolus_u"].notna()
    sensor = cohort.frame.assign(bolus_u=np.nan)
    pump = cohort.frame[bolus].assign(glucose_mg_dl=np.nan, carbs_g=np.nan, basal_u_h=np.nan)
    pump["time"] -= pd.Timedelta("1h")
    people = measured(Readings(pd.concat([sensor, pump]), make_tally("read", [])))
    suspect = people["findings"].str.contains("insulin on board does not lower glucose")
    assert suspect.mean() > 0.5


def test_implausible_doses_are_told() -> None:
    frame = invent_readings(people=1, days=3).frame
    frame["bolus_u"] = np.where(np.arange(len(frame)) % 20 == 0, 20.0, np.nan)
    person = measured(Readings(frame, make_tally("read", []))).iloc[0]
    assert person["insulin_flagged"]
    assert "implausible doses of insulin" in person["findings"]
    assert person["flat_pct"] == 0  # nothing is wrong with the glucose
