import numpy as np
import pandas as pd
import pytest

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.corpus import Corpus, build_corpus
from nocturnal_kedro.series.origins import Task, build_origins, eligible_rows, origin_rows
from nocturnal_kedro.series.physiology import Physiology
from nocturnal_kedro.series.schema import ORIGIN_TABLE
from nocturnal_kedro.series.splits import SplitOptions, build_splits
from tests.conftest import grid, invent_readings


def test_every_origin_is_a_midnight_inside_its_split(
    corpus: Corpus, splits: pd.DataFrame, task: Task
) -> None:
    origins, _ = build_origins(corpus, splits, task)
    ORIGIN_TABLE.validate(origins)
    assert (origins["origin"].dt.time == pd.Timestamp("00:00").time()).all()
    joined = origins.merge(splits, on=["source", "subject", "split"])
    assert len(joined) == len(origins)
    day, horizon = pd.Timedelta("24h"), pd.Timedelta(minutes=5 * task.horizon_steps)
    assert (joined["origin"] - day >= joined["start"] - pd.Timedelta("5min")).all()
    assert (joined["origin"] + horizon < joined["end"]).all()


def test_coverage_rule_recomputed_from_the_series(task: Task) -> None:
    readings = invent_readings(people=4, days=14)
    lost = np.random.default_rng(1).random(len(readings.frame)) < 0.18
    readings.frame.loc[lost, "glucose_mg_dl"] = np.nan
    series = grid(readings)
    corpus = build_corpus(series, Physiology())
    splits = build_splits(series, SplitOptions())
    origins, tally = build_origins(corpus, splits, task)
    seen = series.set_index(["subject", "time"])["glucose_mg_dl"].notna()
    kept = 0
    for person, own in splits.groupby("subject"):
        flags = seen[person]
        for segment in own.itertuples():
            for night in pd.date_range(segment.start, segment.end, freq="D"):
                before = flags[night - pd.Timedelta("23h55min") : night]
                after = flags[night + pd.Timedelta("5min") : night + pd.Timedelta("8h")]
                inside = night - pd.Timedelta("23h55min") >= segment.start
                inside &= night + pd.Timedelta("8h") < segment.end
                if inside and before.sum() >= 0.8 * 288 and after.sum() >= 0.8 * 96:
                    kept += 1
    assert 0 < kept == len(origins)
    assert tally.loc[tally["reason"] == "nights kept", "rows"].sum() == kept
    midnights = (series["time"].dt.strftime("%H:%M") == "00:00").sum()
    assert tally["rows"].sum() == midnights  # every one is counted once


def test_a_15_minute_sensor_is_covered_by_its_own_sampling(task: Task) -> None:
    readings = invent_readings(people=4, days=14)
    every_third = readings.frame.groupby("subject").cumcount() % 3 == 0
    readings.frame.loc[~every_third, "glucose_mg_dl"] = np.nan
    series = grid(readings)
    corpus = build_corpus(series, Physiology())
    assert set(corpus.people["sampling_steps"]) == {3}
    origins, _ = build_origins(corpus, build_splits(series, SplitOptions()), task)
    full = grid(invent_readings(people=4, days=14))
    expected, _ = build_origins(
        build_corpus(full, Physiology()), build_splits(full, SplitOptions()), task
    )
    assert len(origins) == len(expected)


def test_training_windows_stay_in_training(
    corpus: Corpus, splits: pd.DataFrame, task: Task
) -> None:
    rows = eligible_rows(corpus, splits, task, "train")
    people = corpus.people.iloc[
        np.searchsorted(corpus.people["last"].to_numpy(), rows, side="right")
    ].reset_index(drop=True)
    moment = people["start"] + pd.to_timedelta(5 * (rows - people["first"].to_numpy()), unit="min")
    train = splits[splits["split"] == "train"].set_index("subject")
    assert set(people["subject"]) <= set(train.index)
    start, end = (train.loc[people["subject"], side].to_numpy() for side in ("start", "end"))
    assert (moment.to_numpy() - np.timedelta64(24 * 60 - 5, "m") >= start).all()
    assert (moment.to_numpy() + np.timedelta64(5 * task.horizon_steps, "m") < end).all()


def test_origin_rows_point_at_midnight(corpus: Corpus, splits: pd.DataFrame, task: Task) -> None:
    origins, _ = build_origins(corpus, splits, task)
    rows = origin_rows(corpus, origins)
    assert (corpus.slot_of_day_T[rows] == 0).all()


def test_no_eligible_night_says_why(task: Task) -> None:
    readings = invent_readings(people=4, days=14)
    readings.frame.loc[readings.frame["time"].dt.hour < 2, "glucose_mg_dl"] = np.nan
    series = grid(readings)
    with pytest.raises(InputError, match=r"no eligible night.*horizon observed.*task.coverage"):
        build_origins(
            build_corpus(series, Physiology()), build_splits(series, SplitOptions()), task
        )


def test_origins_of_another_corpus_are_refused(corpus: Corpus) -> None:
    stranger = pd.DataFrame(
        {"source": ["x"], "subject": ["y"], "origin": [pd.Timestamp("2026-01-08")]}
    )
    with pytest.raises(InputError, match="not in the corpus"):
        origin_rows(corpus, stranger)
