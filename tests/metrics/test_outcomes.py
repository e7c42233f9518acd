"""What came of nights that were planted in an invented corpus."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from nocturnal_kedro.metrics.events import low_events
from nocturnal_kedro.metrics.outcomes import PRIOR_NIGHTS, describe_nights
from nocturnal_kedro.series.corpus import CHANNELS, Corpus
from nocturnal_kedro.series.origins import Task, origin_rows
from nocturnal_kedro.training.data import Data

GLUCOSE, INSULIN, CARBS = map(CHANNELS.index, ("glucose_mg_dl", "insulin_u", "carbs_g"))


@pytest.fixture
def planted(data: Data) -> Corpus:
    """A copy to write into; nobody is low, insulin runs, and nobody logs carbs."""
    values, observed = data.corpus.values_TC.copy(), data.corpus.observed_TC.copy()
    values[:, GLUCOSE] = np.maximum(values[:, GLUCOSE], 80)
    values[:, INSULIN], observed[:, INSULIN] = 0.07, True
    values[:, CARBS], observed[:, CARBS] = 0, True
    late = np.zeros_like(data.corpus.late_T)
    return replace(data.corpus, values_TC=values, observed_TC=observed, late_T=late)


def first_night(corpus: Corpus, data: Data, split: str) -> tuple[int, int]:
    """The first row of the table in a split, and its origin's row in the corpus."""
    night = int(np.flatnonzero(data.origins["split"] == split)[0])
    return night, int(origin_rows(corpus, data.origins)[night])


def test_lows_are_told_of_the_night_that_had_them(planted: Corpus, data: Data) -> None:
    night, row = first_night(planted, data, "patient")
    low, very_low = slice(row + 10, row + 40), slice(row + 60, row + 64)
    planted.values_TC[low, GLUCOSE] = 65
    planted.values_TC[very_low, GLUCOSE] = 50
    planted.values_TC[row - 40 : row + 1, GLUCOSE] = 51  # up to the origin: not tonight's
    planted.values_TC[row + 97 : row + 120, GLUCOSE] = 41  # after the horizon
    nights = describe_nights(planted, data.origins, Task())
    assert nights[["source", "subject", "origin", "split"]].equals(data.origins)
    told = nights.loc[night]
    assert told["low_happened"]
    assert (told["low_onset"], told["low_minutes"]) == (10, 170)
    assert told["low_prolonged"]  # 150 minutes
    assert (told["very_low_onset"], told["very_low_minutes"]) == (60, 20)
    assert not told["very_low_prolonged"]
    assert told["last_mg_dl"] == 51
    assert told["lowest_mg_dl"] == 50
    others = nights.drop(index=night)
    assert not others["low_happened"].any()
    assert (others["low_onset"] == 0).all()
    assert (others["lowest_mg_dl"] >= 80).all()


def test_carbs_of_the_origins_own_slot_are_its_meal(planted: Corpus, data: Data) -> None:
    night, row = first_night(planted, data, "patient")
    planted.values_TC[row - 1 : row + 2, CARBS] = 12, 34, 56
    assert describe_nights(planted, data.origins, Task()).loc[night, "meal_g"] == 34
    planted.values_TC[row, CARBS] = 0
    assert describe_nights(planted, data.origins, Task()).loc[night, "meal_g"] == 0
    planted.observed_TC[row, CARBS] = False
    told = describe_nights(planted, data.origins, Task())["meal_g"]
    assert np.isnan(told[night])
    assert (told.drop(index=night) == 0).all()


def test_lows_of_all_nights_are_those_of_their_readings(data: Data, task: Task) -> None:
    nights = describe_nights(data.corpus, data.origins, task)
    at = origin_rows(data.corpus, data.origins)[:, None] + np.arange(1, 97)
    seen = data.corpus.observed_TC[at, GLUCOSE]
    glucose = np.where(seen, data.corpus.values_TC[at, GLUCOSE], np.nan)
    np.testing.assert_array_equal(nights["low_minutes"], low_events(glucose, 70.0).minutes_N)
    np.testing.assert_allclose(nights["lowest_mg_dl"], np.nanmin(glucose, axis=1))


@pytest.mark.parametrize(("steps", "prolonged"), [(24, False), (25, True)])
def test_prolonged_is_longer_than_two_hours(
    steps: int, prolonged: bool, planted: Corpus, data: Data
) -> None:
    night, row = first_night(planted, data, "temporal")
    planted.values_TC[row + 5 : row + 5 + steps, GLUCOSE] = 66
    assert describe_nights(planted, data.origins, Task())["low_prolonged"][night] == prolonged


def test_the_last_reading_was_there_at_the_origin(planted: Corpus, data: Data) -> None:
    """Not one of the origin's slot that came late, nor one that nobody took."""
    night, row = first_night(planted, data, "patient")
    planted.values_TC[row - 2 : row + 2, GLUCOSE] = 101, 102, 103, 104

    def last() -> float:
        return describe_nights(planted, data.origins, Task())["last_mg_dl"][night]

    assert last() == 103
    planted.late_T[row] = True
    assert last() == 102
    planted.late_T[row - 1] = True  # late for its own slot, and there all the same
    assert last() == 102
    planted.observed_TC[row - 1, GLUCOSE] = False
    assert last() == 101


def test_carbs_after_the_origin(planted: Corpus, data: Data) -> None:
    night, row = first_night(planted, data, "patient")
    other, other_row = first_night(planted, data, "temporal")
    planted.values_TC[[row, row + 97], CARBS] = 40  # at the origin, and after the night
    planted.values_TC[other_row + 96, CARBS] = 15
    unknown = int(np.flatnonzero(data.origins["split"] == "validation")[0])
    at = origin_rows(planted, data.origins)[unknown]
    planted.observed_TC[at + 1 : at + 97, CARBS] = False
    carbs = describe_nights(planted, data.origins, Task())["carbs_after"]
    assert (carbs[night], carbs[other]) == (0, 1)
    assert np.isnan(carbs[unknown])  # nothing on record is not none
    assert carbs.isna().sum() == 1


@pytest.mark.parametrize(
    ("stopped", "seen", "expected"),
    [(6, True, 1), (5, True, 0), (96, False, np.nan)],
)
def test_suspended_is_half_an_hour_of_insulin_on_record(
    stopped: int, seen: bool, expected: float, planted: Corpus, data: Data
) -> None:
    night, row = first_night(planted, data, "temporal")
    some = slice(row + 97 - stopped, row + 97)
    planted.values_TC[some, INSULIN] = 0
    planted.observed_TC[some, INSULIN] = seen
    planted.values_TC[row - 30 : row + 1, INSULIN] = 0  # before the night
    suspended = describe_nights(planted, data.origins, Task())["suspended"]
    np.testing.assert_equal(suspended[night], expected)
    assert (suspended.drop(index=night) == 0).all()


def test_a_hole_in_the_record_does_not_join_two_stops(planted: Corpus, data: Data) -> None:
    night, row = first_night(planted, data, "temporal")
    planted.values_TC[row + 10 : row + 17, INSULIN] = 0
    planted.observed_TC[row + 13, INSULIN] = False
    assert describe_nights(planted, data.origins, Task())["suspended"][night] == 0


def test_usual_by_hand_and_from_training_nights_alone(planted: Corpus, data: Data) -> None:
    rows = origin_rows(planted, data.origins)
    of_train = np.flatnonzero(data.origins["split"] == "train")
    for night in of_train[::3]:
        planted.values_TC[rows[night] + 20 : rows[night] + 30, GLUCOSE] = 60
    nights = describe_nights(planted, data.origins, Task())
    train = nights.loc[of_train]
    everybody = train["low_happened"].mean()
    assert 0.3 < everybody < 0.4
    learnt = train.groupby("subject")["low_happened"].agg(["sum", "count"])
    for person, usual in nights.groupby("subject")["low_usual"]:
        lows, known = learnt.loc[person] if person in learnt.index else (0, 0)
        np.testing.assert_allclose(
            usual, (lows + PRIOR_NIGHTS * everybody) / (known + PRIOR_NIGHTS)
        )
    held_out = nights[nights["split"] == "patient"]
    assert not held_out["subject"].isin(learnt.index).any()
    np.testing.assert_allclose(held_out["low_usual"], everybody)

    for night in np.flatnonzero(data.origins["split"] != "train"):
        planted.values_TC[rows[night] + 1 : rows[night] + 97, GLUCOSE] = 50
    again = describe_nights(planted, data.origins, Task())
    assert again.loc[again["split"] != "train", "very_low_happened"].all()
    pd.testing.assert_series_equal(again["low_usual"], nights["low_usual"])
    assert (again["very_low_usual"] == 0).all()


def test_a_night_without_a_reading_has_no_lowest(planted: Corpus, data: Data) -> None:
    night, row = first_night(planted, data, "patient")
    planted.observed_TC[row + 1 : row + 97, GLUCOSE] = False
    told = describe_nights(planted, data.origins, Task()).loc[night]
    assert np.isnan(told["lowest_mg_dl"])
    assert not told["low_happened"]
