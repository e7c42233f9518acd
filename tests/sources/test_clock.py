"""Local time: never twice, never invented, whatever is known conserved."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.grid import GridOptions, build_series
from nocturnal_kedro.series.schema import Readings, make_tally, readings_frame
from nocturnal_kedro.sources._clock import (
    Clock,
    cut,
    iso_times,
    moments,
    offset_clock,
    to_local,
    zone_clock,
)
from nocturnal_kedro.sources._raw import RawTable

# Zone, the UTC moment of a change back and of a change forward, and by how many minutes.
CHANGES = [
    ("Europe/London", "2023-10-29 01:00", "2024-03-31 01:00", 60),
    ("America/New_York", "2023-11-05 06:00", "2024-03-10 07:00", 60),
    ("Australia/Lord_Howe", "2024-04-06 15:00", "2023-09-30 15:30", 30),  # half an hour
    ("America/Havana", "2023-11-05 05:00", "2024-03-10 05:00", 60),  # at 1:00, to midnight
]
AMOUNTS = ["bolus_u", "carbs_g", "steps"]


def every(start: str, minutes: int, count: int) -> np.ndarray:
    return pd.date_range(start, periods=count, freq=f"{minutes}min").to_numpy("datetime64[ns]")


def frame_of(times: Any, **columns: Any) -> pd.DataFrame:
    times = np.asarray(times, dtype="datetime64[ns]")
    return readings_frame({"subject": np.full(len(times), "p"), "time": times} | columns)


def localised(frame: pd.DataFrame, clock: Clock) -> tuple[pd.DataFrame, dict[str, int]]:
    out, entries = to_local(frame, {"p": clock})
    count = dict.fromkeys(("added", "dropped", "changed", "noted"), 0)
    for subject, effect, _, rows in entries:
        assert subject == "p"
        count[effect] += rows
    assert len(out) == len(frame) + count["added"] - count["dropped"]
    return out, {reason: rows for _, _, reason, rows in entries if rows}


@pytest.mark.parametrize(("zone", "back", "forward", "minutes"), CHANGES)
def test_zone_clock_agrees_with_pandas(zone: str, back: str, forward: str, minutes: int) -> None:
    for change in (back, forward):
        utc = every(change, 1, 600) - np.timedelta64(5, "h")
        expected = pd.DatetimeIndex(utc, tz="UTC").tz_convert(zone).tz_localize(None)
        np.testing.assert_array_equal(zone_clock("here", zone, utc).local(utc), expected)


@pytest.mark.parametrize(("zone", "back", "forward", "minutes"), CHANGES)
def test_a_repeated_hour_keeps_its_first_pass(
    zone: str, back: str, forward: str, minutes: int
) -> None:
    utc = every(back, 5, 48) - np.timedelta64(2, "h")
    clock = zone_clock("here", zone, utc)
    out, reasons = localised(frame_of(utc, glucose_mg_dl=np.arange(100.0, 148)), clock)
    lost = minutes // 5
    assert reasons == {"glucose in the hour that a clock change repeats": lost}
    assert out["time"].diff().dropna().eq(pd.Timedelta(minutes=5)).all()
    # 24 readings before the change, then the second pass is gone
    assert out["glucose_mg_dl"].tolist() == [*range(100, 124), *range(124 + lost, 148)]


@pytest.mark.parametrize(("zone", "back", "forward", "minutes"), CHANGES)
def test_a_skipped_hour_is_absent(zone: str, back: str, forward: str, minutes: int) -> None:
    utc = every(forward, 5, 48) - np.timedelta64(2, "h")
    frame = frame_of(utc, glucose_mg_dl=120.0 + np.zeros(48), bolus_u=np.ones(48))
    out, reasons = localised(frame, zone_clock("here", zone, utc))
    assert reasons == {}
    steps = out["time"].diff().dropna() / pd.Timedelta(minutes=1)
    assert steps.tolist() == [5] * 23 + [5 + minutes] + [5] * 23
    series, _ = build_series({"s": Readings(out, make_tally("read", []))}, GridOptions())
    hole = series["glucose_mg_dl"].isna()
    assert int(hole.sum()) == minutes // 5
    assert series["bolus_u"].sum() == 48


def test_amounts_of_the_second_pass_come_after_the_first() -> None:
    """An origin within the repeated hour must not know of a dose that is yet to come."""
    utc = every("2023-10-29 00:00", 5, 36)  # London: 01:00 to 01:55 twice
    bolus = np.full(36, np.nan)
    bolus[14] = 4.0  # 01:10 UTC, shown as 01:10 like 00:10 UTC before it
    out, reasons = localised(
        frame_of(utc, glucose_mg_dl=100.0 + np.arange(36), bolus_u=bolus, steps=np.ones(36)),
        zone_clock("here", "Europe/London", utc),
    )
    assert reasons == {
        "glucose in the hour that a clock change repeats, set missing": 12,
        "amounts in the hour that a clock change repeats, put at its end": 12,
    }
    assert out.loc[out["bolus_u"].notna(), "time"].tolist() == [pd.Timestamp("2023-10-29 02:00")]
    assert out["steps"].sum() == 36
    assert out["time"].is_monotonic_increasing


def test_heart_rate_of_the_second_pass_is_a_level_too() -> None:
    utc = every("2023-10-29 00:00", 30, 6)
    out, reasons = localised(
        frame_of(utc, heart_rate=np.full(6, 70.0)), zone_clock("here", "Europe/London", utc)
    )
    assert reasons == {"basal or heart rate in the hour that a clock change repeats": 2}
    assert out["time"].dt.strftime("%H:%M").tolist() == ["01:00", "01:30", "02:00", "02:30"]


def basal(out: pd.DataFrame) -> list[tuple[str, float, float]]:
    rates = out[out["basal_u_h"].notna()].sort_values("time")
    return [
        (time.strftime("%H:%M"), rate, minutes)
        for time, rate, minutes in rates[["time", "basal_u_h", "basal_minutes"]].itertuples(
            index=False
        )
    ]


def test_a_rate_over_a_skipped_hour_is_split_and_conserved() -> None:
    utc = np.array(["2024-03-31T00:30"], dtype="datetime64[ns]")  # London: 01:00 to 02:00 absent
    frame = frame_of(utc, basal_u_h=[1.2], basal_minutes=[120.0])
    out, reasons = localised(frame, zone_clock("here", "Europe/London", utc))
    assert basal(out) == [("00:30", 1.2, 30), ("02:00", 1.2, 90)]
    assert reasons == {"basal rates split at a clock change": 1}


def test_a_rate_until_the_moment_of_a_change_does_not_run_through_the_skipped_hour() -> None:
    utc = np.array(["2024-03-31T00:30", "2024-03-31T01:00"], dtype="datetime64[ns]")
    frame = frame_of(utc, basal_u_h=[1.0, 2.0], basal_minutes=[120.0, 120.0])
    out, _ = localised(frame, zone_clock("here", "Europe/London", utc))
    assert basal(out) == [("00:30", 1.0, 30), ("02:00", 2.0, 120)]


def test_a_rate_over_a_repeated_hour_ends_when_it_ended() -> None:
    utc = np.array(["2023-10-29T00:30"], dtype="datetime64[ns]")  # London: 01:30 summer time
    frame = frame_of(utc, basal_u_h=[1.2], basal_minutes=[120.0])
    out, reasons = localised(frame, zone_clock("here", "Europe/London", utc))
    # 30 minutes to 02:00, an hour that has no place, and 30 minutes from 02:00 on
    assert basal(out) == [("01:30", 1.2, 30), ("02:00", 1.2, 30)]
    assert reasons == {
        "basal rates of which a part in the hour that a clock change repeats is left out": 1,
        "basal rates split at a clock change": 1,
    }


def test_rates_within_a_repeated_hour_count_from_its_end_on() -> None:
    utc = np.array(
        ["2023-10-29T00:50", "2023-10-29T01:20", "2023-10-29T01:50"], dtype="datetime64[ns]"
    )
    frame = frame_of(utc, basal_u_h=[1.0, 2.0, 3.0], basal_minutes=[30.0, 30.0, 30.0])
    out, _ = localised(frame, zone_clock("here", "Europe/London", utc))
    assert basal(out) == [("01:50", 1.0, 10), ("02:00", 3.0, 20)]


def test_a_rate_touched_by_no_change_stays_as_it_is() -> None:
    utc = every("2023-10-28 12:00", 5, 12)
    frame = frame_of(utc, basal_u_h=np.ones(12), basal_minutes=np.full(12, 7.5))
    out, reasons = localised(frame, zone_clock("here", "Europe/London", utc))
    assert out["basal_minutes"].tolist() == [7.5] * 12
    assert reasons == {}


def test_a_journey_west_by_offsets_of_rows() -> None:
    utc = every("2024-05-01 10:00", 30, 12)
    minutes = np.where(np.arange(12) < 4, 120.0, -60.0)
    minutes[[0, 5]] = np.nan  # rows that do not tell; the first takes the next, others the last
    out, reasons = localised(
        frame_of(utc, glucose_mg_dl=np.arange(100.0, 112)), offset_clock(utc, minutes)
    )
    # 12:00 to 13:30 here, then 11:00 there; what is not after 13:30 is left out.
    assert out["time"].dt.strftime("%H:%M").tolist() == [
        "12:00", "12:30", "13:00", "13:30", "14:00", "14:30",
    ]  # fmt: skip
    assert out["glucose_mg_dl"].tolist() == [100, 101, 102, 103, 110, 111]
    assert sum(reasons.values()) == 6


def test_no_slot_holds_both_passes_of_a_journey() -> None:
    utc = np.array(["2024-05-01T10:54", "2024-05-01T11:55", "2024-05-01T12:00"], "datetime64[ns]")
    clock = offset_clock(utc, np.array([60.0, 0.0, 0.0]))
    frame = frame_of(utc, glucose_mg_dl=[100, 200, 201], bolus_u=[np.nan, 5, np.nan])
    out, _ = localised(frame, clock)  # 11:54, then 11:55, which is the slot of 11:54
    series, _ = build_series({"s": Readings(out, make_tally("read", []))}, GridOptions())
    assert series["glucose_mg_dl"].tolist() == [100, 201]
    # the dose is younger than the reading of 11:55, and stands after it
    assert series["bolus_u"].fillna(0).tolist() == [0, 5]


def test_rows_without_a_time_stay() -> None:
    frame = frame_of(["NaT", "2024-01-01T00:00"], glucose_mg_dl=[1, 2], basal_u_h=[1, np.nan])
    out, reasons = localised(frame, zone_clock("here", "Asia/Kathmandu", frame["time"].to_numpy()))
    assert out["time"].tolist()[0] == pd.Timestamp("2024-01-01 05:45")
    assert out["time"].isna().sum() == 1
    assert reasons == {}
    nothing = np.array(["NaT"], dtype="datetime64[ns]")
    assert len(zone_clock("here", "Europe/London", nothing).changes) == 0
    assert np.isnat(offset_clock(nothing, np.array([60.0])).local(nothing)).all()


@pytest.mark.parametrize("zone", ["Europe/Londn", "", "../etc/passwd", "Europe", "/x", "a\0b"])
def test_an_unknown_zone_is_named(zone: str) -> None:
    with pytest.raises(InputError, match=r"option 'zone': unknown time zone .*IANA"):
        zone_clock("option 'zone'", zone, every("2024-01-01", 5, 2))


def test_the_nearest_zone_is_proposed() -> None:
    with pytest.raises(InputError, match=r"Did you mean 'Europe/London'\?"):
        zone_clock("here", "Europe/Londn", every("2024-01-01", 5, 2))


def table(*cells: Any) -> RawTable:
    return RawTable("tidy", Path("a.csv"), pd.DataFrame({"t": cells}, dtype=object))


def test_iso_times_in_every_way_they_are_written() -> None:
    shown, minutes = iso_times(
        table(
            "2024-01-05T03:04:05.123Z", "2024-01-05 03:04:05.123456+00", "2024-01-05 03:04-0330",
            "2024-01-05T03:04:05 +05:45", " 2024-01-05 03:04:05 ", None, "",
        ),
        "t",
    )  # fmt: skip
    np.testing.assert_array_equal(minutes, [0, 0, -210, 345, np.nan, np.nan, np.nan])
    assert np.isnat(shown).tolist() == [False] * 5 + [True] * 2
    utc = moments(shown, minutes)
    assert utc[2] == np.datetime64("2024-01-05T06:34")
    assert utc[3] == np.datetime64("2024-01-04T21:19:05")
    assert utc[4] == np.datetime64("2024-01-05T03:04:05")


@pytest.mark.parametrize(
    "cell", ["2024-01-05", "20240105", "05/01/2024 03:04", "noon", "2024-13-01 00:00", 17, {}]
)
def test_what_is_no_iso_time_is_named(cell: Any) -> None:
    with pytest.raises(InputError, match=r"file 'a.csv', column 't', row 3: .* no time in ISO"):
        iso_times(table("2024-01-05 00:00", cell), "t")


def test_spans_are_cut_at_points_within_them() -> None:
    day = np.datetime64("2024-01-01", "ns")
    at = [day + np.timedelta64(hours, "h") for hours in range(10)]
    span, point, start, end = cut(
        np.array([at[0], at[3], at[5]]), np.array([at[3], at[4], at[5]]), np.array([at[1], at[3]])
    )
    assert span.tolist() == [0, 0, 1, 2]
    assert point.tolist() == [0, 1, 2, 2]
    assert start.tolist() == [t.astype(int) for t in (at[0], at[1], at[3], at[5])]
    assert end.tolist() == [t.astype(int) for t in (at[1], at[3], at[4], at[5])]


@st.composite
def lives(draw: st.DrawFn, journeys: bool = True) -> tuple[pd.DataFrame, Clock]:
    """Irregular rows around a change of a zone's clock, or with any `journeys`."""
    zone, back, forward, _ = draw(st.sampled_from(CHANGES))
    change = np.datetime64(draw(st.sampled_from([back, forward])), "ns")
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    rows = draw(st.integers(1, 60))
    # Several rows at one moment, and gaps up to an hour
    gaps = random.choice([0, 0, 61, 300, 300, 1800, 3600], rows)
    utc = change + np.cumsum(gaps).astype("timedelta64[s]") - np.timedelta64(4, "h")

    def column() -> np.ndarray:
        return np.where(random.random(rows) < 0.5, np.nan, random.integers(0, 9, rows))

    rate = column()
    frame = frame_of(
        utc, glucose_mg_dl=column() + 100, bolus_u=column(), carbs_g=column(), steps=column(),
        basal_u_h=rate, basal_minutes=np.where(np.isnan(rate), np.nan, draw(st.integers(1, 300))),
    )  # fmt: skip
    if not journeys or draw(st.booleans()):
        return frame, zone_clock("here", zone, utc)
    return frame, offset_clock(utc, random.choice([np.nan, 0, 60, -300, 345], rows))


@given(lives())
def test_amounts_are_conserved_and_glucose_times_increase(life: tuple[pd.DataFrame, Clock]) -> None:
    frame, clock = life
    out, _ = localised(frame, clock)
    pd.testing.assert_series_equal(out[AMOUNTS].sum(), frame[AMOUNTS].sum())

    utc = frame["time"].to_numpy()
    first_pass = clock.local(utc) >= clock.resumes[clock.step(utc)]
    left = frame[first_pass & frame["glucose_mg_dl"].notna()]
    glucose = out[out["glucose_mg_dl"].notna()]
    assert glucose["glucose_mg_dl"].tolist() == left["glucose_mg_dl"].tolist()
    assert glucose["time"].is_monotonic_increasing
    assert glucose["time"].nunique() == left["time"].nunique()  # no two moments at one time


@given(lives())
def test_the_order_of_moments_stays(life: tuple[pd.DataFrame, Clock]) -> None:
    """No dose stands before a reading that was there when it was given."""
    frame, clock = life
    out, _ = localised(frame.assign(basal_u_h=np.nan, steps=np.arange(len(frame))), clock)
    assert out["steps"].tolist() == list(range(len(frame)))  # by moments
    assert out["time"].is_monotonic_increasing


@given(lives(journeys=False))
def test_rates_stand_when_they_stood(life: tuple[pd.DataFrame, Clock]) -> None:
    """At every local time the rate of its moment, of the first of two; in a skipped hour none."""
    frame, clock = life
    out, _ = localised(frame, clock)
    moments_ = every(str(frame["time"].min()), 7, 100)
    kept = clock.local(moments_) >= clock.resumes[clock.step(moments_)]
    np.testing.assert_array_equal(
        _rate_at(out, clock.local(moments_)[kept]), _rate_at(frame, moments_[kept])
    )
    change = clock.changes[-1:]
    skipped = change + clock.ahead[:1] + np.timedelta64(1, "m")
    if len(change) and clock.ahead[-1] > clock.ahead[0]:
        assert np.isnan(_rate_at(out, skipped)).all()


def _rate_at(frame: pd.DataFrame, times: np.ndarray) -> np.ndarray:
    """The rate that stands by the grid's rule: until the next record, at most its minutes."""
    known = frame[frame["basal_u_h"].notna()].sort_values("time", kind="stable")
    known = known[~known["time"].duplicated(keep="last")]
    at = np.searchsorted(known["time"].to_numpy(), times, side="right") - 1
    rates, starts = known["basal_u_h"].to_numpy(), known["time"].to_numpy()
    minutes = known["basal_minutes"].to_numpy()
    stands = np.array(
        [k >= 0 and times[n] < starts[k] + np.timedelta64(round(minutes[k] * 60e9), "ns")
         for n, k in enumerate(at)],
        dtype=bool,
    )  # fmt: skip
    return np.where(stands, rates[at] if len(rates) else np.nan, np.nan)
