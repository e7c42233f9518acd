from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.grid import GridOptions, build_series
from nocturnal_kedro.series.schema import SERIES, Readings, make_tally, readings_frame

START = pd.Timestamp("2026-01-05")


def grid(times: list[str], **columns: list[float]) -> tuple[pd.DataFrame, pd.DataFrame]:
    stamps = [START + pd.Timedelta(time) for time in times]
    data: dict[str, Any] = {"subject": ["a"] * len(times), "time": stamps, **columns}
    return build_series(
        {"s": Readings(readings_frame(data), make_tally("read", []))}, GridOptions()
    )


def reasons(tally: pd.DataFrame) -> dict[str, int]:
    return dict(zip(tally["reason"], tally["rows"], strict=True))


def test_a_reading_belongs_to_the_nearest_slot_and_says_if_it_is_late() -> None:
    series, _ = grid(["2m29s", "7m31s", "15m"], glucose_mg_dl=[100, 110, 120])
    assert series["time"].dt.minute.tolist() == [0, 5, 10, 15]
    np.testing.assert_array_equal(series["glucose_mg_dl"], [100, np.nan, 110, 120])
    assert series["glucose_late"].tolist() == [True, False, False, False]


def test_mean_of_different_times_last_of_equal_times() -> None:
    series, tally = grid(["0m", "1m", "5m", "5m"], glucose_mg_dl=[100, 110, 150, 160])
    assert series["glucose_mg_dl"].tolist() == [105, 160]
    assert reasons(tally)["glucose at a time already read (last kept)"] == 1
    assert reasons(tally)["glucose readings averaged into one slot"] == 1


def test_floor_and_ceiling_are_flagged_and_nonsense_is_counted() -> None:
    series, tally = grid(["0m", "5m", "10m", "15m"], glucose_mg_dl=[39, 401, 100, 2000])
    np.testing.assert_array_equal(series["glucose_mg_dl"], [40, 400, 100])
    assert series["glucose_clipped"].tolist() == [True, True, False]
    assert reasons(tally)["glucose out of any sensor's range"] == 1


def test_unsorted_rows_and_rows_without_a_time() -> None:
    frame = readings_frame(
        {
            "subject": ["a"] * 3,
            "time": [START + pd.Timedelta("5m"), pd.NaT, START],
            "glucose_mg_dl": [110, 1, 100],
        }
    )
    series, tally = build_series({"s": Readings(frame, make_tally("read", []))}, GridOptions())
    assert series["glucose_mg_dl"].tolist() == [100, 110]
    assert reasons(tally)["rows without a time"] == 1


def test_person_without_glucose_is_dropped_and_counted_and_nobody_is_an_error() -> None:
    frame = readings_frame({"subject": ["a"], "time": [START], "bolus_u": [1.0]})
    with pytest.raises(InputError, match="no glucose reading in any source"):
        build_series({"s": Readings(frame, make_tally("read", []))}, GridOptions())


def test_missing_canonical_column_is_named() -> None:
    frame = readings_frame({"subject": ["a"], "time": [START]}).drop(columns="carbs_g")
    with pytest.raises(InputError, match="source 's': readings lack the column carbs_g"):
        build_series({"s": Readings(frame, make_tally("read", []))}, GridOptions())


@pytest.mark.parametrize(
    ("column", "odd", "fine"),
    [
        ("basal_u_h", 51.0, 50.0),
        ("bolus_u", -1.0, 0.0),
        ("bolus_u", 101.0, 100.0),
        ("carbs_g", 1001.0, 1000.0),
        ("steps", -5.0, 0.0),
        ("heart_rate", 19.0, 20.0),
    ],
)
def test_implausible_entries_are_missing_and_counted(column: str, odd: float, fine: float) -> None:
    times = ["0m", "5m", "10m", "15m"]
    entries = {column: [np.nan, odd, fine, np.nan], "basal_minutes": [5.0] * 4}
    series, tally = grid(times, glucose_mg_dl=[100.0] * 4, **entries)
    SERIES.validate(series)
    counted = {reason: rows for reason, rows in reasons(tally).items() if "set missing" in reason}
    assert list(counted.values()) == [1]
    assert next(iter(counted)).startswith(column)
    assert (series[column] == fine).any()
    assert not (series[column] == odd).any()


def test_doses_outside_the_glucose_record_are_counted() -> None:
    series, tally = grid(
        ["0m", "2h", "3h"], glucose_mg_dl=[np.nan, 100, np.nan], bolus_u=[1.0, 2.0, 3.0]
    )
    assert series["bolus_u"].tolist() == [2.0]
    assert reasons(tally)["bolus_u before the first or after the last glucose reading"] == 2


def test_times_with_a_zone_and_rates_without_a_length_are_refused() -> None:
    columns = {"subject": ["a"], "time": [START], "glucose_mg_dl": [100.0], "basal_u_h": [1.0]}
    frame = readings_frame(columns)
    with pytest.raises(InputError, match=r"subject 'a'.*a basal rate without basal_minutes"):
        build_series({"s": Readings(frame, make_tally("read", []))}, GridOptions())
    frame["time"] = frame["time"].dt.tz_localize("Europe/Berlin")
    with pytest.raises(InputError, match=r"Europe/Berlin.*naive local time"):
        build_series({"s": Readings(frame, make_tally("read", []))}, GridOptions())


def test_suspended_pump_stays_zero_and_a_missing_record_stays_missing() -> None:
    nothing = [np.nan] * 4
    series, _ = grid(
        ["0m", "5m", "10m", "30m"],
        glucose_mg_dl=[100, 100, 100, 100],
        basal_u_h=[1.2, 0.0, 0.0, np.nan],
        basal_minutes=[5, 5, 5, np.nan],
        bolus_u=nothing,
    )
    np.testing.assert_allclose(
        series["basal_u_h"], [np.nan, 1.2, 0.0, 0.0, np.nan, np.nan, np.nan], atol=1e-12
    )


def test_hand_logged_carbs_are_zero_for_a_day_after_an_entry_then_missing() -> None:
    hours = 60
    times = [f"{5 * slot}m" for slot in range(hours * 12)]
    carbs = [np.nan] * len(times)
    carbs[24] = 30.0  # entered at 02:00 of the first day
    series, _ = grid(times, glucose_mg_dl=[100.0] * len(times), carbs_g=carbs)
    assert series["carbs_g"][:24].isna().all()
    assert series["carbs_g"][24] == 30
    assert (series["carbs_g"][25 : 24 + 289] == 0).all()
    assert series["carbs_g"][24 + 289 :].isna().all()


@given(
    st.lists(
        st.tuples(
            st.integers(min_value=0, max_value=2 * 86_400),
            st.floats(min_value=0.01, max_value=20),
            st.floats(min_value=0, max_value=5),
            st.integers(min_value=1, max_value=240),
        ),
        min_size=1,
        max_size=60,
        unique_by=lambda event: event[0],
    )
)
def test_units_in_equal_units_out(events: list[tuple[int, float, float, int]]) -> None:
    events = sorted(events)
    seconds, bolus, rate, minutes = (np.array(part, float) for part in zip(*events, strict=True))
    begin = START + pd.Timedelta("1h")
    frame = readings_frame(
        {
            "subject": ["a"] * (len(events) + 2),
            "time": [
                START,
                *(begin + pd.to_timedelta(seconds, unit="s")),
                begin + pd.Timedelta("4d"),
            ],
            "glucose_mg_dl": [100.0, *[np.nan] * len(events), 100.0],
            "basal_u_h": [np.nan, *rate, np.nan],
            "basal_minutes": [np.nan, *minutes, np.nan],
            "bolus_u": [np.nan, *bolus, np.nan],
        }
    )
    series, _ = build_series({"s": Readings(frame, make_tally("read", []))}, GridOptions())
    SERIES.validate(series)
    np.testing.assert_allclose(series["bolus_u"].sum(), bolus.sum(), atol=1e-6)
    # A record stands until the next one, at most for its own length.
    lasts = np.minimum(np.diff(seconds, append=np.inf) / 60, minutes)
    np.testing.assert_allclose(
        (series["basal_u_h"] * 5 / 60).sum(), (rate * lasts / 60).sum(), atol=1e-6
    )


def some(draw: np.random.Generator, length: int, low: float, high: float) -> np.ndarray:
    return np.where(draw.random(length) < 0.5, draw.uniform(low, high, length), np.nan)


@pytest.mark.slow
@given(st.integers(0, 10_000), st.integers(2, 5))
def test_people_gridded_together_are_as_gridded_alone(seed: int, people: int) -> None:
    draw = np.random.default_rng(seed)
    length = int(draw.integers(1, 80))
    frame = readings_frame(
        {
            "subject": [f"p{k}" for k in draw.integers(0, people, length)],
            "time": START + pd.to_timedelta(draw.integers(0, 3 * 86_400, length), unit="s"),
            "glucose_mg_dl": some(draw, length, 40, 400),
            "basal_u_h": some(draw, length, 0, 3),
            "basal_minutes": draw.integers(1, 600, length).astype(float),
            **{
                name: some(draw, length, 20, 60)
                for name in ("bolus_u", "carbs_g", "steps", "heart_rate")
            },
        }
    )  # fmt: skip
    frame.loc[0, "glucose_mg_dl"] = 100.0
    both, tally = build_series({"s": Readings(frame, make_tally("read", []))}, GridOptions())
    SERIES.validate(both)
    for subject, own in both.groupby("subject", observed=True):
        readings = Readings(frame[frame["subject"] == subject], make_tally("read", []))
        alone, counted = build_series({"s": readings}, GridOptions())
        pd.testing.assert_frame_equal(
            own.reset_index(drop=True).astype({"subject": str}), alone.astype({"subject": str})
        )
        # What is counted of one person does not depend on who else is there.
        pd.testing.assert_frame_equal(
            tally[tally["subject"] == subject].reset_index(drop=True), counted
        )


@given(st.integers(0, 10_000))
def test_every_entry_is_kept_or_counted(seed: int) -> None:
    draw = np.random.default_rng(seed)
    length = int(draw.integers(2, 60))
    times = START + pd.to_timedelta(draw.integers(0, 6 * 3600, length), unit="s")
    frame = readings_frame(
        {
            "subject": ["a"] * length,
            "time": times.where(draw.random(length) < 0.95),
            "glucose_mg_dl": draw.choice([5.0, 80.0, 120.0, 399.0, 2000.0], length),
            "carbs_g": draw.choice([np.nan, 10.0, -1.0], length),
        }
    )
    frame.loc[0, ["time", "glucose_mg_dl"]] = [START, 100.0]
    assume(frame["glucose_mg_dl"].median() > 35)  # else the whole person is refused
    series, tally = build_series({"s": Readings(frame, make_tally("read", []))}, GridOptions())
    dropped = tally[tally["effect"] == "dropped"].groupby("reason")["rows"].sum()
    lost = dropped[[r for r in dropped.index if "glucose" in r or "without a time" in r]]
    lost = lost.drop([r for r in lost.index if r.startswith("carbs")])
    assert series["glucose_mg_dl"].notna().sum() == length - lost.sum()
    timed = frame.dropna(subset="time")
    entered = timed["carbs_g"].notna().sum()
    carbs = dropped[[r for r in dropped.index if r.startswith("carbs_g")]].sum()
    assert series["carbs_g"].sum() == 10 * (entered - carbs)


def test_a_typo_in_the_year_is_refused_and_not_gridded_for_centuries() -> None:
    with pytest.raises(
        InputError, match=r"subject 'a': readings from 2026-01-05T00:00 to 2203-12-24T00:00 span"
    ):
        grid(["0m", f"{65000 * 24}h"], glucose_mg_dl=[100, 100])


def test_readings_without_a_subject_are_refused() -> None:
    frame = readings_frame({"subject": [None], "time": [START], "glucose_mg_dl": [100.0]})
    with pytest.raises(InputError, match="1 readings without a subject"):
        build_series({"s": Readings(frame, make_tally("read", []))}, GridOptions())


def test_an_unknown_or_implausible_rate_ends_the_one_before() -> None:
    """Basal set missing is missing: the rate before it does not run on."""
    times = [f"{5 * slot}m" for slot in range(13)]
    rate = [np.nan] * 13
    stands = [np.nan] * 13
    rate[1], stands[1] = 1.0, 600
    for odd in (np.nan, 800.0):
        rate[5], stands[5] = odd, 600
        rate[9], stands[9] = 0.5, 600
        series, tally = grid(
            times, glucose_mg_dl=[100.0] * 13, basal_u_h=rate, basal_minutes=stands
        )
        expected = [np.nan] * 2 + [1.0] * 4 + [np.nan] * 4 + [0.5] * 3
        np.testing.assert_array_equal(series["basal_u_h"], expected)
        dropped = reasons(tally).get("basal_u_h out of 0 to 50, set missing", 0)
        assert dropped == (not np.isnan(odd))


def test_rows_that_say_nothing_are_counted() -> None:
    series, tally = grid(["0m", "5m", "10m"], glucose_mg_dl=[100, np.nan, 100])
    assert reasons(tally)["rows that say nothing"] == 1
    assert len(series) == 3


def test_what_is_logged_later_does_not_judge_what_was_logged_before() -> None:
    times = [f"{2 * step}h" for step in range(12 * 40)]
    bolus = [
        1.0 if step < 12 * 20 else 40.0 for step in range(len(times))
    ]  # 12 U, then 480 U a day
    glucose = [100.0] * len(times)
    whole, tally = grid(times, glucose_mg_dl=glucose, bolus_u=bolus)
    cut, _ = grid(times[: 12 * 25], glucose_mg_dl=glucose[: 12 * 25], bolus_u=bolus[: 12 * 25])
    flags = whole["insulin_flagged"]
    assert not flags[: 288 * 20].any()
    assert flags[288 * 30 :].all()
    assert flags[: len(cut)].equals(cut["insulin_flagged"])
    assert reasons(tally)["slots of a person with implausible insulin (flagged)"] == flags.sum()
