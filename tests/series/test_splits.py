import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.schema import SPLIT_TABLE
from nocturnal_kedro.series.splits import SplitOptions, build_splits, recut_splits


def spans(people: int, days: int) -> pd.DataFrame:
    """A series with only the first and the last slot of each person."""
    start = pd.Timestamp("2026-01-05 07:35")
    rows = [
        ("s", f"p{person}", start + pd.Timedelta(days=moment))
        for person in range(people)
        for moment in (0, days)
    ]
    frame = pd.DataFrame(rows, columns=["source", "subject", "time"])
    return frame.astype({"source": "category", "subject": "category"})


@settings(max_examples=40)
@given(
    people=st.integers(3, 40),
    days=st.integers(3, 60),
    seed=st.integers(0, 99),
    patient=st.sampled_from([0.0, 0.15, 0.3]),
    temporal=st.sampled_from([0.0, 0.2, 0.4]),
)
def test_splits_are_disjoint_whole_and_as_large_as_asked(
    people: int, days: int, seed: int, patient: float, temporal: float
) -> None:
    options = SplitOptions(seed=seed, patient_share=patient, temporal_share=temporal)
    table = build_splits(spans(people, days), options)
    SPLIT_TABLE.validate(table)
    for _, own in table.groupby("subject"):
        own = own.sort_values("start")
        assert (
            own["end"].to_numpy()[:-1] == own["start"].to_numpy()[1:]
        ).all()  # no hole, no overlap
        assert own["start"].iloc[0] <= pd.Timestamp("2026-01-05 07:35")
        assert own["end"].iloc[-1] > pd.Timestamp("2026-01-05 07:35") + pd.Timedelta(days=days)
        assert (own["start"] == own["start"].dt.floor("D")).all()
    held_out = set(table.loc[table["split"] == "patient", "subject"])
    others = set(table.loc[table["split"] != "patient", "subject"])
    assert not held_out & others
    expected = max(1, int(people * patient + 0.5)) if patient else 0
    assert len(held_out) == expected


def test_the_same_seed_gives_the_same_table_and_another_another() -> None:
    series = spans(20, 30)
    same = [build_splits(series, SplitOptions(seed=1)) for _ in range(2)]
    pd.testing.assert_frame_equal(*same)
    assert not build_splits(series, SplitOptions(seed=2)).equals(same[0])


def test_nobody_left_for_training_is_an_error_with_the_remedy() -> None:
    with pytest.raises(InputError, match=r"source 's' has 2 person.*splits.patient_share"):
        build_splits(spans(2, 30), SplitOptions())


def test_the_people_named_are_held_out_and_nobody_else() -> None:
    table = build_splits(spans(10, 30), SplitOptions(hold_out="s/p3 s/p7"))
    assert set(table.loc[table["split"] == "patient", "subject"]) == {"p3", "p7"}
    drawn = build_splits(spans(10, 30), SplitOptions())
    assert len(set(drawn.loc[drawn["split"] == "patient", "subject"])) == 2


def two_sources(first: int, second: int, days: tuple[int, int] = (30, 30)) -> pd.DataFrame:
    frames = [
        spans(people, length).assign(source=name)
        for name, people, length in (("a", first, days[0]), ("b", second, days[1]))
    ]
    frame = pd.concat(frames, ignore_index=True).astype({"subject": str})
    return frame.astype({"source": "category", "subject": "category"})


def test_leaving_one_source_out_holds_out_all_its_people() -> None:
    table = build_splits(two_sources(6, 4), SplitOptions(hold_out=("b",)))
    assert set(table.loc[table["source"] == "b", "split"]) == {"patient"}
    assert set(table.loc[table["source"] == "a", "split"]) == {"train", "validation", "temporal"}


def train_days(table: pd.DataFrame) -> pd.Series:
    train = table[table["split"] == "train"]
    days = (train["end"] - train["start"]) // pd.Timedelta("1D")
    return days.groupby([train["source"], train["subject"]]).sum()


@settings(max_examples=40)
@given(
    people=st.tuples(st.integers(3, 12), st.integers(3, 12)),
    days=st.tuples(st.integers(10, 90), st.integers(10, 90)),
    share=st.floats(0.25, 0.75),
)
def test_sources_have_their_shares_of_the_training_days(
    people: tuple[int, int], days: tuple[int, int], share: float
) -> None:
    series = two_sources(*people, days)
    table = build_splits(series, SplitOptions(source_shares={"a": share, "b": 1 - share}))
    SPLIT_TABLE.validate(table)
    kept, all_days = train_days(table), train_days(build_splits(series, SplitOptions()))
    assert (kept <= all_days.reindex(kept.index)).all()
    of_a, of_b = (kept.loc[source].sum() if source in kept.index else 0 for source in "ab")
    assert of_a / share == pytest.approx(of_b / (1 - share), abs=1.01 / min(share, 1 - share))
    other = table[table["split"] != "train"].query("split != 'unused'")
    before = build_splits(series, SplitOptions()).query("split != 'train'")
    pd.testing.assert_frame_equal(other.reset_index(drop=True), before.reset_index(drop=True))


def test_a_cap_keeps_the_last_days_and_names_the_others() -> None:
    table = build_splits(spans(6, 60), SplitOptions(most_train_days=10))
    assert (train_days(table) == 10).all()
    for _, own in table.groupby("subject"):
        own = own.sort_values("start")
        assert (own["end"].to_numpy()[:-1] == own["start"].to_numpy()[1:]).all()
        if "train" in set(own["split"]):
            assert own["split"].tolist() == ["unused", "train", "validation", "temporal"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hold_out": "s/p33"}, r"unknown person or source in splits.hold_out 's/p33'"),
        ({"hold_out": "s"}, "nobody is left to train on"),
        ({"source_shares": {"t": 1}}, r"source in splits.source_shares 't'; known: s"),
    ],
)
def test_names_that_are_not_there_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_splits(spans(8, 30), SplitOptions(**options))


def test_a_share_of_no_day_is_refused() -> None:
    shares = {"a": 0.999, "b": 0.001}
    with pytest.raises(InputError, match="leaves source 'b' not one of its"):
        build_splits(two_sources(4, 4), SplitOptions(source_shares=shares))


def test_a_source_without_a_share_is_named_and_no_share_is_zero() -> None:
    with pytest.raises(InputError, match="no share for b"):
        build_splits(two_sources(4, 4), SplitOptions(source_shares={"a": 1}))
    with pytest.raises(ValueError, match="above 0"):
        SplitOptions(source_shares={"a": 0})


@settings(max_examples=25)
@given(
    people=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    days=st.tuples(st.integers(4, 60), st.integers(4, 60)),
    first=st.integers(0, 9),
    options=st.sampled_from(
        [
            {},
            {"hold_out": "a/p1 b/p0 b/p2"},
            {"hold_out": "b"},
            {"patient_share": 0.4, "temporal_share": 0.3, "validation_patient_share": 0},
            {"most_train_days": 3},
            {"source_shares": {"a": 0.5, "b": 0.5}},
        ]
    ),
)
def test_splits_cut_again_are_those_of_the_series(
    people: tuple[int, int], days: tuple[int, int], first: int, options: dict
) -> None:
    """However they were cut before, `unused` days and all."""
    series = two_sources(*people, days)
    before = build_splits(series, SplitOptions(seed=first, most_train_days=first + 1))
    cut = SplitOptions(seed=4, **options)
    pd.testing.assert_frame_equal(recut_splits(before, cut), build_splits(series, cut))


@pytest.mark.parametrize("options", [{"hold_out": "s/p33"}, {"patient_share": 0.9}])
def test_what_cannot_be_cut_cannot_be_cut_again(options: dict) -> None:
    series, cut = spans(3, 30), SplitOptions(**options)
    with pytest.raises(InputError) as at_first:
        build_splits(series, cut)
    with pytest.raises(InputError) as again:
        recut_splits(build_splits(series, SplitOptions()), cut)
    assert str(again.value) == str(at_first.value)
