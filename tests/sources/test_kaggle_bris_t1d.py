"""Wide tables in the published format, cut from invented series as the publisher cut his."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.grid import GridOptions, build_series
from nocturnal_kedro.series.schema import MG_DL_PER_MMOL_L, SERIES, Readings
from nocturnal_kedro.sources import find_parts, kaggle_bris_t1d

LAGS = 72
CHANNELS = ("bg", "insulin", "carbs", "hr", "steps", "cals")
LAG_NAMES = [f"{lag // 12}:{lag % 12 * 5:02d}" for lag in range(LAGS)]


def life(start: str, slots: int, seed: int = 1, every: int = 1) -> pd.DataFrame:
    """An invented person's slots; glucose at each `every`th, the insulin of a pump in all."""
    draw = np.random.default_rng(seed)
    frame = pd.DataFrame(index=pd.date_range(start, periods=slots, freq="5min"))
    frame["bg"] = draw.uniform(4, 12, slots).round(1)
    frame.loc[np.arange(slots) % every > 0, "bg"] = np.nan
    frame["insulin"] = draw.uniform(0.01, 0.1, slots).round(3)
    frame["carbs"] = np.nan
    frame["hr"] = draw.uniform(60, 90, slots).round(1)
    frame["steps"] = draw.integers(0, 200, slots)
    return frame.assign(cals=5.0, activity="")


def rows_of(truth: pd.DataFrame, person: str = "p02", first: int = LAGS - 1) -> pd.DataFrame:
    """A row for each slot whose glucose an hour on is known, as in the competition."""
    hour_on = truth["bg"].shift(-12)
    at = np.flatnonzero(hour_on.notna() & (np.arange(len(truth)) >= first))
    columns = {
        "id": [f"{person}_{number}" for number in range(len(at))],
        "p_num": person,
        "time": truth.index[at].strftime("%H:%M:%S"),
    }
    for channel in (*CHANNELS, "activity"):
        for lag in reversed(range(LAGS)):
            columns[f"{channel}-{LAG_NAMES[lag]}"] = truth[channel].shift(lag).to_numpy()[at]
    return pd.DataFrame(columns | {"bg+1:00": hour_on.to_numpy()[at]})


def write(root: Path, *tables: pd.DataFrame) -> None:
    file = root / kaggle_bris_t1d.FILE
    file.parent.mkdir(parents=True)
    pd.concat(tables).to_csv(file, index=False)


def read(root: Path, **options: object) -> Readings:
    [part] = find_parts(["kaggle_bris_t1d"], root, {"kaggle_bris_t1d": options})
    return part.read()


def series_of(readings: Readings) -> pd.DataFrame:
    series, _ = build_series({"kaggle_bris_t1d": readings}, GridOptions())
    SERIES.validate(series)
    return series.set_index("time")


def counted(readings: Readings, reason: str) -> int:
    tally = readings.tally
    return int(tally.loc[tally["reason"].str.contains(reason), "rows"].sum())


def observed(series: pd.DataFrame) -> pd.Series:
    return series["glucose_mg_dl"].dropna()


def test_the_series_is_that_which_the_rows_were_cut_from(tmp_path: Path) -> None:
    truth = life("2024-01-01 18:00", slots=160)
    write(tmp_path, rows_of(truth))
    readings = read(tmp_path)
    series = series_of(readings)
    seen = truth.iloc[: 160 - 12]  # the last hour is a target alone
    pd.testing.assert_index_equal(series.index, seen.index, check_names=False, exact=False)
    np.testing.assert_allclose(series["glucose_mg_dl"], seen["bg"] * MG_DL_PER_MMOL_L)
    np.testing.assert_allclose(series["basal_u_h"], seen["insulin"] * 12)
    np.testing.assert_allclose(series["heart_rate"], seen["hr"])
    np.testing.assert_allclose(series["steps"], seen["steps"])
    assert counted(readings, "rows of train.csv") == 160 - 12 - 71
    assert counted(readings, "from the lag columns") == 71
    assert counted(readings, "invented date") == 160 - 12 - 71
    assert counted(readings, "gaps") == 0


def test_the_clock_going_back_is_a_new_day(tmp_path: Path) -> None:
    truth = life("2024-01-01 12:00", slots=2 * 288)
    write(tmp_path, rows_of(truth))
    series = series_of(read(tmp_path, first_day="2030-05-01"))
    assert series.index[0] == pd.Timestamp("2030-05-01 12:00")
    assert series.index[-1] == pd.Timestamp("2030-05-03 10:55")
    assert len(observed(series)) == 2 * 288 - 12


def test_a_reading_every_15_minutes_keeps_all_insulin(tmp_path: Path) -> None:
    truth = life("2024-01-01 06:00", slots=240, every=3)
    rows = rows_of(truth, "p01")
    assert rows["time"].iloc[:2].tolist() == ["12:00:00", "12:15:00"]
    write(tmp_path, rows)
    series = series_of(read(tmp_path))
    seen = truth.loc[series.index]
    assert len(observed(series)) == len(seen) // 3 + 1 == 75  # nothing invented between them
    np.testing.assert_allclose(series["basal_u_h"], seen["insulin"] * 12)


def test_rows_absent_for_hours_are_recovered_from_the_lags(tmp_path: Path) -> None:
    truth = life("2024-01-01 06:00", slots=240)
    rows = rows_of(truth)
    write(tmp_path, rows.drop(index=range(30, 90)))
    readings = read(tmp_path)
    np.testing.assert_allclose(
        series_of(readings)["glucose_mg_dl"], truth["bg"].iloc[:228] * MG_DL_PER_MMOL_L
    )
    assert counted(readings, "from the lag columns") == 71 + 60


def test_a_gap_of_days_that_the_clock_hides_is_not_joined(tmp_path: Path) -> None:
    before = rows_of(life("2024-01-01 06:00", slots=150, seed=1))
    after = rows_of(life("2024-01-05 06:00", slots=200, seed=2))
    after = after[after["time"] > before["time"].iloc[-1]]  # the clock goes on by 5 minutes
    assert after["time"].iloc[0] == "17:30:00"
    write(tmp_path, before, after)
    readings = read(tmp_path)
    assert counted(readings, "gaps of unknown length") == 1
    seen = observed(series_of(readings))
    apart = seen.index.to_series().diff()
    assert (apart > pd.Timedelta("1d")).sum() == 1
    assert apart.max() > pd.Timedelta("2d")
    late = seen[seen.index > pd.Timestamp("2024-01-03")]
    assert late.index[71].strftime("%H:%M") == "17:30"  # the clock time is that of the file
    np.testing.assert_allclose(late.iloc[71], after["bg-0:00"].iloc[0] * MG_DL_PER_MMOL_L)


def test_windows_without_glucose_are_told_apart_by_the_rest(tmp_path: Path) -> None:
    first = life("2024-01-01 06:00", slots=150, seed=1)
    second = life("2024-01-02 06:00", slots=200, seed=2)
    second.iloc[:138, 0] = np.nan  # the sensor was off; the heart rate is another day's
    first["insulin"] = second["insulin"] = 0.05
    before, after = rows_of(first), rows_of(second)
    after = after[after["time"] > before["time"].iloc[-1]]
    write(tmp_path, before, after)
    assert counted(read(tmp_path), "gaps of unknown length") == 1


def test_a_sensor_that_starts_anew_is_joined_by_the_rest(tmp_path: Path) -> None:
    truth = life("2024-01-01 06:00", slots=240)
    truth.iloc[90:160, 0] = np.nan  # the windows beside it share one reading, too few
    write(tmp_path, rows_of(truth))
    readings = read(tmp_path)
    assert counted(readings, "gaps of unknown length") == 0
    assert len(observed(series_of(readings))) == 240 - 70 - 12


def test_windows_that_do_not_overlap_are_not_joined(tmp_path: Path) -> None:
    truth = life("2024-01-01 06:00", slots=288)
    rows = rows_of(truth)
    write(tmp_path, rows.drop(index=range(30, 30 + LAGS)))
    assert counted(read(tmp_path), "gaps of unknown length") == 1


def test_zeros_alone_join_no_windows(tmp_path: Path) -> None:
    truth = life("2024-01-01 06:00", slots=90)
    truth[["bg", "hr"]] = np.nan
    truth[["insulin", "steps"]] = 0.0
    rows = rows_of(truth.assign(bg=np.where(np.arange(90) == 85, 6.0, np.nan)))
    again = rows.assign(time="12:10:00", id="p02_1")
    write(tmp_path, rows, again)
    assert len(rows) == 1
    assert counted(read(tmp_path), "gaps of unknown length") == 1


def test_a_row_that_stands_twice_is_dropped(tmp_path: Path) -> None:
    rows = rows_of(life("2024-01-01 06:00", slots=100))
    write(tmp_path, rows, rows.iloc[[-1]])
    readings = read(tmp_path)
    assert counted(readings, "rows repeated") == 1
    assert len(observed(series_of(readings))) == 100 - 12


def test_a_row_whose_window_is_empty_is_dropped(tmp_path: Path) -> None:
    rows = rows_of(life("2024-01-01 06:00", slots=100))
    windows = [name for name in rows if "-" in name]
    rows.loc[3, windows] = np.nan
    write(tmp_path, rows)
    readings = read(tmp_path)
    assert counted(readings, "hold nothing") == 1
    assert counted(readings, "gaps") == 0


def test_a_stopped_pump_is_zero_and_a_silent_one_is_missing(tmp_path: Path) -> None:
    truth = life("2024-01-01 06:00", slots=120)
    truth.iloc[80:90, 1] = 0.0
    truth.iloc[90:100, 1] = np.nan
    write(tmp_path, rows_of(truth))
    series = series_of(read(tmp_path))
    assert series["basal_u_h"].iloc[80:90].tolist() == [0] * 10
    assert series["basal_u_h"].iloc[90:100].isna().all()
    assert series["bolus_u"].iloc[80:90].isna().sum() == 0
    assert series["bolus_u"].iloc[90:100].isna().all()


def test_insulin_that_no_basal_rate_gives_is_a_bolus_and_units_are_kept(tmp_path: Path) -> None:
    truth = life("2024-01-01 06:00", slots=120)
    truth.iloc[75, 1] = 6.5
    truth.iloc[76, 1] = 0.5  # 6 U/h
    write(tmp_path, rows_of(truth))
    readings = read(tmp_path)
    assert counted(readings, "told as a bolus") == 1
    series = series_of(readings)
    assert series["bolus_u"].iloc[75] == 6.5
    assert series["basal_u_h"].iloc[75] == 0
    assert series["basal_u_h"].iloc[76] == pytest.approx(6)
    units = series["basal_u_h"].sum() / 12 + series["bolus_u"].sum()
    assert units == pytest.approx(truth["insulin"].iloc[: 120 - 12].sum())
    lower = read(tmp_path, basal_highest_u_h=5)
    assert counted(lower, "told as a bolus") == 2


def test_carbs_are_grams_and_activity_is_noted(tmp_path: Path) -> None:
    truth = life("2024-01-01 06:00", slots=120)
    truth.iloc[80, 2] = 45
    truth.iloc[80:83, 6] = "Walk"
    write(tmp_path, rows_of(truth))
    readings = read(tmp_path)
    assert readings.frame["carbs_g"].sum() == 45
    assert counted(readings, "'activity' is not used") == 3
    assert series_of(readings)["carbs_g"].iloc[80] == 45


def test_persons_are_kept_apart(tmp_path: Path) -> None:
    one, other = life("2024-01-01 06:00", 100, seed=1), life("2024-01-01 09:00", 100, seed=2)
    rows = pd.concat([rows_of(one, "p03"), rows_of(other, "p10")]).sort_values(
        "time", kind="stable"
    )
    write(tmp_path, rows)
    series = series_of(read(tmp_path))
    for subject, truth in (("p03", one), ("p10", other)):
        np.testing.assert_allclose(
            series.loc[series["subject"] == subject, "glucose_mg_dl"],
            truth["bg"].iloc[:88] * MG_DL_PER_MMOL_L,
        )


def test_test_csv_is_never_read(tmp_path: Path) -> None:
    rows = rows_of(life("2024-01-01 06:00", slots=100))
    write(tmp_path, rows)
    (tmp_path / "kaggle_bris_t1d" / "test.csv").write_text("no table at all")
    [part] = find_parts(["kaggle_bris_t1d"], tmp_path, {})
    assert [file.name for file in part.files] == ["train.csv"]


def test_rows_without_a_person_or_a_clock_time_are_counted(tmp_path: Path) -> None:
    rows = rows_of(life("2024-01-01 06:00", slots=100)).astype({"p_num": object, "time": object})
    rows.loc[2, "p_num"] = np.nan
    rows.loc[4, "time"] = np.nan
    write(tmp_path, rows)
    readings = read(tmp_path)
    assert counted(readings, "name no person") == 1
    assert counted(readings, "without a clock time") == 1
    assert len(observed(series_of(readings))) == 100 - 12  # the lags of the next rows hold them


def test_absent_table_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train.csv' under .*kaggle.com/competitions/brist1d"):
        find_parts(["kaggle_bris_t1d"], tmp_path, {})


def test_absent_column_is_named(tmp_path: Path) -> None:
    rows = rows_of(life("2024-01-01 06:00", slots=90))
    write(tmp_path, rows.drop(columns=["bg-5:55", "steps-0:10"]))
    with pytest.raises(InputError, match=r"train.csv': no column 'bg-5:55' \(2 lack\)"):
        read(tmp_path)


def test_a_word_in_a_number_column_is_named(tmp_path: Path) -> None:
    rows = rows_of(life("2024-01-01 06:00", slots=90)).astype({"hr-0:05": object})
    rows.loc[1, "hr-0:05"] = "fast"
    write(tmp_path, rows)
    with pytest.raises(InputError, match=r"column 'hr-0:05', row 3: 'fast' is no number"):
        read(tmp_path)


def test_an_unreadable_time_is_named(tmp_path: Path) -> None:
    rows = rows_of(life("2024-01-01 06:00", slots=90))
    rows.loc[0, "time"] = "noon"
    write(tmp_path, rows)
    with pytest.raises(InputError, match=r"column 'time', row 2: 'noon' is no time"):
        read(tmp_path)


def test_an_unknown_option_is_refused(tmp_path: Path) -> None:
    write(tmp_path, rows_of(life("2024-01-01 06:00", slots=90)))
    with pytest.raises(InputError, match=r"first_date"):
        read(tmp_path, first_date="2024-01-01")
