import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.schema import SPLIT_TABLE
from nocturnal_kedro.series.splits import SplitOptions, build_splits


def spans(people: int, days: int) -> pd.DataFrame:
    """A series with only the first and the last slot of each person."""
    start = pd.Timestamp("2026-01-05 07:35")
    rows = [
        ("s", f"p{person}", start + pd.Timedelta(days=moment))
        for person in range(people)
        for moment in (0, days)
    ]
    return pd.DataFrame(rows, columns=["source", "subject", "time"])


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
