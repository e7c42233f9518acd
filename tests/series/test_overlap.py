"""A copy is found whatever was done to it; two people are not taken for one."""

import numpy as np
import pandas as pd
import pytest

from nocturnal_kedro.series.grid import order_readings
from nocturnal_kedro.series.overlap import OVERLAP_COLUMNS, find_overlaps, is_copy, mark_readings
from nocturnal_kedro.series.schema import Readings, make_tally, readings_frame
from tests.conftest import invent_readings


def overlaps(*frames: pd.DataFrame) -> pd.DataFrame:
    readings = Readings(pd.concat(frames, ignore_index=True), make_tally("read", []))
    return find_overlaps(mark_readings(order_readings("s", readings)))


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return invent_readings(people=4, days=20).frame


def of(frame: pd.DataFrame, subject: str, **changes: object) -> pd.DataFrame:
    return frame[frame["subject"] == subject].assign(subject="copy", **changes)


def test_different_people_share_next_to_nothing(frame: pd.DataFrame) -> None:
    found = overlaps(frame)
    assert list(found) == list(OVERLAP_COLUMNS)
    assert not is_copy(found).any()


def test_a_copy_is_found(frame: pd.DataFrame) -> None:
    worst = overlaps(frame, of(frame, "p2")).iloc[0]
    assert {worst["subject"], worst["other_subject"]} == {"p2", "copy"}
    assert worst["shared_pct"] == worst["other_shared_pct"] == 100


def test_a_copy_with_other_dates_is_found(frame: pd.DataFrame) -> None:
    own = frame[frame["subject"] == "p1"]
    worst = overlaps(frame, of(frame, "p1", time=own["time"] + pd.Timedelta("37D"))).iloc[0]
    assert {worst["subject"], worst["other_subject"]} == {"p1", "copy"}
    assert worst["shared_pct"] > 95


def test_a_copy_converted_with_another_factor_is_found(frame: pd.DataFrame) -> None:
    own = frame[frame["subject"] == "p1"]
    mmol = np.round(own["glucose_mg_dl"] / 18.0182, 1)
    frame = frame.assign(glucose_mg_dl=frame["glucose_mg_dl"].mask(frame["subject"] == "p1"))
    frame.loc[own.index, "glucose_mg_dl"] = mmol * 18.0182
    worst = overlaps(frame, of(frame, "p1", glucose_mg_dl=mmol * 18.0)).iloc[0]
    assert worst["shared_pct"] > 99


def test_readings_mixed_into_another_persons_are_found_with_their_part(frame: pd.DataFrame) -> None:
    """As in one published dataset: one file holds another's readings between its own."""
    own = of(frame, "p3", time=frame["time"] + pd.Timedelta("2min"))
    guest = of(frame, "p0")
    guest = guest[guest["time"] < guest["time"].min() + pd.Timedelta("5D")]
    found = overlaps(frame[frame["subject"] == "p0"], own, guest)
    worst = found.iloc[0]
    shares = dict(zip(
        (worst["subject"], worst["other_subject"]),
        (worst["shared_pct"], worst["other_shared_pct"]), strict=True,
    ))  # fmt: skip
    assert shares["copy"] == pytest.approx(100 * 5 / 25, abs=4)
    assert shares["p0"] == pytest.approx(100 * 5 / 20, abs=4)
    assert worst["end"] - worst["start"] < pd.Timedelta("5D")


def test_straight_lines_are_nobodys_own() -> None:
    times = pd.date_range("2026-01-05", periods=4000, freq="5min")
    lines = 100.0 + np.abs(np.arange(4000) % 200 - 100)
    frames = [
        readings_frame({"subject": [name] * 4000, "time": times + shift, "glucose_mg_dl": lines})
        for name, shift in (("a", pd.Timedelta(0)), ("b", pd.Timedelta("3D")))
    ]
    assert not is_copy(overlaps(*frames)).any()


def test_a_crowd_is_not_taken_for_copies() -> None:
    """Fifty people in whole mg/dL at the same times: chance shares moments."""
    found = overlaps(invent_readings(people=50, days=6).frame.round())
    assert not is_copy(found).any()


@pytest.mark.parametrize("copies", [2, 6])
def test_many_copies_are_found_as_few_are(frame: pd.DataFrame, copies: int) -> None:
    own = frame[frame["subject"] == "p1"]
    found = overlaps(*(own.assign(subject=f"name{number}") for number in range(copies)))
    assert is_copy(found).sum() >= copies * (copies - 1) / 2
