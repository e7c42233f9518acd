import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.corpus import CHANNELS, Corpus, build_corpus
from nocturnal_kedro.series.grid import GridOptions, build_series
from nocturnal_kedro.series.origins import Task, build_origins, eligible_rows
from nocturnal_kedro.series.physiology import Physiology
from nocturnal_kedro.series.schema import SPLIT_TABLE
from nocturnal_kedro.series.splits import SplitOptions, build_splits
from nocturnal_kedro.series.variations import (
    keep_days,
    keep_people,
    learn_from,
    most_days,
    only,
    read_every_15_minutes,
    trained_people,
)
from tests.conftest import invent_readings

KEY = ["source", "subject"]
LEFT_ALONE = ("temporal", "patient", "validation")
shares = st.floats(0.01, 1)
numbers = st.integers(1, 40)


@st.composite
def tables(draw: st.DrawFn) -> pd.DataFrame:
    """Splits of two sources, whose people have records of different lengths."""
    begins = pd.Timestamp("2026-01-05 07:35")
    rows = [
        (source, f"p{person}", begins + pd.Timedelta(days=moment))
        for source in "ab"
        for person in range(draw(st.integers(3, 9)))
        for moment in (0, draw(st.integers(4, 60)))
    ]
    series = pd.DataFrame(rows, columns=[*KEY, "time"])
    series = series.astype(dict.fromkeys(KEY, "category"))
    return build_splits(series, SplitOptions(seed=draw(st.integers(0, 9))))


def days_of(splits: pd.DataFrame, *names: str) -> set[tuple[str, str, pd.Timestamp]]:
    """Every day of everybody that lies in one of these splits, by its midnight."""
    return {
        (row.source, row.subject, day)
        for row in splits[splits["split"].isin(names)].itertuples()
        for day in pd.date_range(row.start, row.end, freq="D", inclusive="left")
    }


def assert_learns_less(fewer: pd.DataFrame, splits: pd.DataFrame) -> None:
    """Training days have become unused; everything else is as it was, and no day is lost."""
    SPLIT_TABLE.validate(fewer)
    for name in LEFT_ALONE:
        assert days_of(fewer, name) == days_of(splits, name), name
    assert days_of(fewer, "train") <= days_of(splits, "train")
    whole = ("train", "unused")
    assert days_of(fewer, *whole) == days_of(splits, *whole)
    for _, own in fewer.groupby(KEY):
        assert (own["end"].to_numpy()[:-1] == own["start"].to_numpy()[1:]).all()
    midnights = fewer[["start", "end"]]
    assert (midnights == midnights.apply(lambda times: times.dt.floor("D"))).all().all()


def numbers_of_days(splits: pd.DataFrame) -> pd.Series:
    train = splits[splits["split"] == "train"].set_index(KEY)
    return (train["end"] - train["start"]) // pd.Timedelta("1D")


@settings(max_examples=10)
@given(splits=tables(), share=shares, other=shares, number=numbers, more=numbers)
def test_fewer_days_are_the_last_whole_ones_and_nested(
    splits: pd.DataFrame, share: float, other: float, number: int, more: int
) -> None:
    days = numbers_of_days(splits)
    by_share, by_number = keep_days(splits, share), most_days(splits, number)
    for fewer in (by_share, by_number):
        assert_learns_less(fewer, splits)
        last = fewer[fewer["split"] == "train"].set_index(KEY)["end"]
        assert last.equals(splits[splits["split"] == "train"].set_index(KEY)["end"])
    kept = numbers_of_days(by_share)
    assert (kept == kept.clip(lower=1)).all()
    assert ((kept - share * days).abs() <= 0.5).where(kept > 1, kept == 1).all()
    assert (numbers_of_days(by_number) == days.clip(upper=number)).all()
    for cut, less, greater in ((keep_days, share, other), (most_days, number, more)):
        few, many = (cut(splits, value) for value in sorted((less, greater)))
        assert days_of(few, "train") <= days_of(many, "train")


def test_a_share_of_days_by_hand() -> None:
    """Of 11 days a quarter is 2.75, so 3; of 9 it is 2.25, so 2; of 1 it is 1."""
    ends = pd.Timestamp("2026-03-01")
    splits = pd.DataFrame(
        [("a", f"p{n}", "train", ends - pd.Timedelta(days=n), ends) for n in (1, 9, 11)],
        columns=[*KEY, "split", "start", "end"],
    )
    assert numbers_of_days(keep_days(splits, 0.25)).to_dict() == {
        ("a", "p1"): 1, ("a", "p9"): 2, ("a", "p11"): 3,
    }  # fmt: skip
    assert keep_days(splits, 0.25)["split"].value_counts()["unused"] == 2  # none of no day
    assert keep_days(splits, 1.0)["split"].eq("train").all()


@settings(max_examples=10)
@given(splits=tables(), drawn=st.data(), seed=st.integers(0, 9))
def test_fewer_people_are_among_the_more(
    splits: pd.DataFrame, drawn: st.DataObject, seed: int
) -> None:
    people = trained_people(splits)
    few, many = sorted(drawn.draw(st.tuples(*[st.integers(1, len(people))] * 2)))
    fewer, more = keep_people(splits, few, seed), keep_people(splits, many, seed)
    assert_learns_less(fewer, splits)
    assert len(trained_people(fewer)) == few
    assert days_of(fewer, "train") <= days_of(more, "train")
    assert keep_people(splits, len(people), seed).equals(splits)
    for number in (0, len(people) + 1):
        with pytest.raises(InputError, match=f"of {len(people)} that there are. Give 1 to"):
            keep_people(splits, number, seed)


def test_who_is_kept_is_drawn_by_the_seed() -> None:
    series = pd.DataFrame(
        [
            ("a", f"p{person}", pd.Timestamp("2026-01-05") + pd.Timedelta(days=moment))
            for person in range(12)
            for moment in (0, 20)
        ],
        columns=[*KEY, "time"],
    ).astype(dict.fromkeys(KEY, "category"))
    splits = build_splits(series, SplitOptions())
    drawn = {tuple(trained_people(keep_people(splits, 3, seed))) for seed in range(6)}
    assert len(drawn) > 1


@settings(max_examples=10)
@given(splits=tables(), source=st.sampled_from("ab"))
def test_who_learns_alone_is_tested_with_all(splits: pd.DataFrame, source: str) -> None:
    people = {f"{source}/p{person}" for person in range(9)}
    alone = learn_from(splits, people)
    own = splits["source"] == source
    assert alone[own].equals(splits[own])
    others = set(alone.loc[~own, "split"])
    assert others <= {"unused", "patient", "temporal"}
    for name in ("temporal", "patient"):
        assert days_of(alone, name) == days_of(splits, name)
    held_out = splits.loc[splits["split"] == "patient", KEY].iloc[0]
    with pytest.raises(InputError, match=r"of 1 people, .* nobody has days for train"):
        learn_from(splits, {"/".join(held_out)})


@pytest.fixture(scope="module")
def mixed() -> pd.DataFrame:
    """Series of four people whose sensors read every 5 minutes, and of three every 15."""
    slow = invent_readings(people=3, days=10, seed=1)
    # Not at the minutes that a 15-minute sensor is told by here.
    between = slow.frame["time"].dt.minute % 15 != 5
    slow.frame.loc[between, "glucose_mg_dl"] = np.nan
    readings = {"fast": invent_readings(people=4, days=10), "slow": slow}
    series = build_series(readings, GridOptions())[0]
    return series.assign(glucose_late=np.arange(len(series)) % 7 == 3)


@pytest.fixture(scope="module")
def mixed_corpus(mixed: pd.DataFrame) -> Corpus:
    return build_corpus(mixed, Physiology())


TASK = Task(context_steps=288, horizon_steps=48)
CUT = SplitOptions(temporal_share=0.3, validation_temporal_share=0.3)


def test_thinned_readings_are_one_of_three_of_fast_sensors_alone(
    mixed: pd.DataFrame, mixed_corpus: Corpus
) -> None:
    before = mixed_corpus.fingerprint
    thinned = read_every_15_minutes(mixed_corpus)
    del mixed_corpus.__dict__["fingerprint"]
    assert mixed_corpus.fingerprint == before  # the whole is as it was
    fast = (mixed["source"] == "fast").to_numpy()
    seen, read = thinned.observed_TC[:, 0], mixed_corpus.observed_TC[:, 0]
    quarter = (mixed["time"].dt.minute % 15 == 0).to_numpy()
    np.testing.assert_array_equal(seen, read & (quarter | ~fast))
    assert seen[fast].sum() == read[fast].sum() / 3
    assert seen[~fast].sum() == fast.sum() / 4  # of three people in place of four
    np.testing.assert_array_equal(
        thinned.values_TC[seen, 0], mixed["glucose_mg_dl"].to_numpy(np.float32)[seen]
    )
    assert (thinned.values_TC[~seen, 0] == 0).all()
    np.testing.assert_array_equal(thinned.values_TC[:, 1:], mixed_corpus.values_TC[:, 1:])
    np.testing.assert_array_equal(thinned.observed_TC[:, 1:], mixed_corpus.observed_TC[:, 1:])
    assert thinned.observed_TC[:, 1:].any(axis=0)[CHANNELS.index("carbs_g") - 1]
    assert thinned.people["sampling_steps"].tolist() == [3] * 7
    assert mixed_corpus.people["sampling_steps"].tolist() == [1] * 4 + [3] * 3
    assert thinned.fingerprint != mixed_corpus.fingerprint


def test_the_same_origins_are_eligible_whatever_is_read_in_between(
    mixed: pd.DataFrame, mixed_corpus: Corpus
) -> None:
    splits = build_splits(mixed, CUT)
    thinned = read_every_15_minutes(mixed_corpus)
    whole, fewer = (build_origins(corpus, splits, TASK)[0] for corpus in (mixed_corpus, thinned))
    assert set(whole["split"]) == {"train", "validation", "temporal", "patient"}
    pd.testing.assert_frame_equal(fewer, whole)
    for split in ("train", "temporal"):
        np.testing.assert_array_equal(
            eligible_rows(thinned, splits, TASK, split),
            eligible_rows(mixed_corpus, splits, TASK, split),
        )


@settings(max_examples=12)
@given(chosen=st.sets(st.integers(0, 6), min_size=1))
def test_a_corpus_of_some_is_that_of_their_readings_alone(
    mixed: pd.DataFrame, mixed_corpus: Corpus, chosen: set[int]
) -> None:
    everybody = mixed_corpus.people["source"] + "/" + mixed_corpus.people["subject"]
    people = set(everybody.iloc[sorted(chosen)])
    cut = only(mixed_corpus, people)
    rows = (mixed["source"].astype(str) + "/" + mixed["subject"].astype(str)).isin(people)
    own = mixed[rows].reset_index(drop=True)
    alone = build_corpus(own, Physiology())
    pd.testing.assert_frame_equal(cut.people, alone.people)
    for name in ("values_TC", "observed_TC", "late_T", "covered_T", "slot_of_day_T"):
        np.testing.assert_array_equal(getattr(cut, name), getattr(alone, name), err_msg=name)
    assert cut.fingerprint == alone.fingerprint
    if len(people) < len(everybody):
        assert cut.fingerprint != mixed_corpus.fingerprint
    splits = build_splits(mixed, CUT.model_copy(update={"hold_out": ("fast/p1", "slow/p2")}))
    named = (splits["source"] + "/" + splits["subject"]).isin(people)
    whole = build_origins(mixed_corpus, splits, TASK)[0]
    tested = (whole["source"] + "/" + whole["subject"]).isin(people)
    pd.testing.assert_frame_equal(
        build_origins(cut, splits[named], TASK)[0], whole[tested].reset_index(drop=True)
    )
