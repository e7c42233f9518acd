"""Few-row tables in the published format, each with a fault of the published one."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.grid import GridOptions, build_series
from nocturnal_kedro.series.schema import SERIES, Readings
from nocturnal_kedro.sources import find_parts, lynch_2022

HEADER = (
    "RecID|PtID|DeviceDtTm|CGMVal|BGTarget|BasalDelivPrev|BolusDelivPrev|MealBolusDelivPrev|"
    "MealSize"
)
PLAIN = [
    "1|7|9/5/2020 11:55:10 PM|140|120|0.1|0|0|",
    "2|7|9/6/2020 12:00:10 AM|145|120|0.1|0.25|3|Usual for me",
    "3|7|9/6/2020 12:05:10 AM|150|120|0|0|0|",
    "4|7|9/6/2020 12:10:10 AM||120|0.1|0.5|0|",
    "5|7|9/6/2020 12:15:10 AM|155|120|||0|",
]


def write(root: Path, rows: list[str], header: str = HEADER, encoding: str = "utf-8") -> None:
    file = root / lynch_2022.FILE
    file.parent.mkdir(parents=True)
    file.write_text("\n".join([header, *rows]) + "\n", encoding=encoding)


def read(root: Path) -> Readings:
    [part] = find_parts(["lynch_2022"], root, {})
    return part.read()


def counted(readings: Readings, reason: str) -> int:
    tally = readings.tally
    return int(tally.loc[tally["reason"].str.contains(reason), "rows"].sum())


def units_on_record(series: pd.DataFrame) -> float:
    return float((series["basal_u_h"] / 12).sum() + series["bolus_u"].sum())


def test_insulin_is_that_of_the_step_before(tmp_path: Path) -> None:
    write(tmp_path, PLAIN)
    readings = read(tmp_path)
    frame = readings.frame
    glucose = frame[frame["glucose_mg_dl"].notna()]
    assert glucose["glucose_mg_dl"].tolist() == [140, 145, 150, 155]
    assert glucose["time"].iloc[0] == pd.Timestamp("2020-09-05 23:55:10")
    insulin = frame[frame["basal_u_h"].notna()].sort_values("time")
    assert insulin["time"].iloc[0] == pd.Timestamp("2020-09-05 23:50:10")
    np.testing.assert_allclose(insulin["basal_u_h"], [1.2, 1.2, 0, 1.2])
    np.testing.assert_array_equal(insulin["bolus_u"], [np.nan, 3.25, np.nan, 0.5])
    assert counted(readings, "rows of the pump's table") == 5
    assert counted(readings, "on a row 5 minutes earlier") == 3


def test_all_units_are_on_record_also_of_rows_without_a_reading(tmp_path: Path) -> None:
    write(tmp_path, PLAIN)
    series, _ = build_series({"lynch_2022": read(tmp_path)}, GridOptions())
    SERIES.validate(series)
    assert units_on_record(series) == pytest.approx(0.3 + 3.75)


def test_a_stopped_pump_is_zero_and_a_silent_one_is_missing(tmp_path: Path) -> None:
    rows = [
        "1|7|9/6/2020 12:00:00 AM|140|120|0|0|0|",
        "2|7|9/6/2020 12:05:00 AM|141|120|0|0|0|",
        "3|7|9/6/2020 12:10:00 AM|142|120||||",
    ]
    write(tmp_path, rows)
    series, _ = build_series({"lynch_2022": read(tmp_path)}, GridOptions())
    np.testing.assert_array_equal(series["basal_u_h"], [0, 0, np.nan])
    np.testing.assert_array_equal(series["bolus_u"], [0, 0, np.nan])


def test_low_and_high_are_clipped_by_the_grid_and_not_dropped(tmp_path: Path) -> None:
    rows = [
        "1|7|9/6/2020 12:00:00 AM|39|120|0.1|0|0|",
        "2|7|9/6/2020 12:05:00 AM|401|120|0.1|0|0|",
    ]
    write(tmp_path, rows)
    readings = read(tmp_path)
    assert readings.frame["glucose_mg_dl"].dropna().tolist() == [39, 401]
    series, _ = build_series({"lynch_2022": readings}, GridOptions())
    assert series["glucose_mg_dl"].tolist() == [40, 400]
    assert series["glucose_clipped"].all()


def test_minus_one_means_that_nothing_was_measured(tmp_path: Path) -> None:
    rows = ["1|7|9/6/2020 12:00:00 AM|-1|120|0.1|0|0|", "2|7|9/6/2020 12:05:00 AM|99|120|-1|-1|-1|"]
    write(tmp_path, rows)
    readings = read(tmp_path)
    assert len(readings.frame) == 2
    assert readings.frame["glucose_mg_dl"].dropna().tolist() == [99]
    np.testing.assert_allclose(readings.frame["basal_u_h"].dropna(), [1.2])
    assert counted(readings, "glucose below 0") == 1
    assert counted(readings, "basal below 0") == 1


def test_a_dose_that_stands_twice_was_given_once(tmp_path: Path) -> None:
    rows = [
        "1|7|9/6/2020 12:00:10 AM|140|120|0.1|0|2|",
        "2|7|9/6/2020 12:00:10 AM||120|0.1|0|2|",
        "3|7|9/6/2020 12:00:10 AM|140|120|0.1|0|2|",
        "4|7|9/6/2020 12:05:10 AM|141|120|||0|",
    ]
    write(tmp_path, rows)
    readings = read(tmp_path)
    assert readings.frame["bolus_u"].sum() == 2
    assert counted(readings, "dose repeated at one time") == 2
    series, _ = build_series({"lynch_2022": readings}, GridOptions())
    assert series["bolus_u"].sum() == 2


def test_two_doses_at_one_time_are_added_up(tmp_path: Path) -> None:
    rows = [
        "0|7|9/5/2020 11:55:00 PM|139|120||||",
        "1|7|9/6/2020 12:00:00 AM|140|120|0.1|0|2|",
        "2|7|9/6/2020 12:00:00 AM||120|0.2|0|1|",
        "3|7|9/6/2020 12:05:00 AM|141|120|0.1|0|0|",
    ]
    write(tmp_path, rows)
    readings = read(tmp_path)
    assert counted(readings, "dose added to another") == 1
    series, _ = build_series({"lynch_2022": readings}, GridOptions())
    np.testing.assert_allclose(series["basal_u_h"], [np.nan, 3.6, 1.2])
    assert series["bolus_u"].tolist() == [3, 0, 0]


def test_a_short_step_keeps_its_units(tmp_path: Path) -> None:
    rows = [
        "1|7|9/6/2020 12:00:00 AM|140|120|0.1|0|0|",
        "2|7|9/6/2020 12:02:00 AM|140|120|0.2|0|0|",
        "3|7|9/6/2020 12:10:00 AM|141|120|0.3|0|0|",
    ]
    write(tmp_path, rows)
    readings = read(tmp_path)
    assert counted(readings, "under 5 minutes") == 1
    series, _ = build_series({"lynch_2022": readings}, GridOptions())
    assert units_on_record(series) == pytest.approx(0.6)


def test_a_step_of_seconds_is_told_as_a_bolus(tmp_path: Path) -> None:
    rows = [
        "1|7|9/6/2020 12:00:00 AM|140|120|0.1|0|0|",
        "2|7|9/6/2020 12:00:02 AM|140|120|0.2|0|0|",
    ]
    write(tmp_path, rows)
    readings = read(tmp_path)
    assert readings.frame["basal_u_h"].max() < 50
    assert counted(readings, "step of seconds") == 1
    insulin = readings.frame[readings.frame["basal_u_h"].notna()]
    units = insulin["basal_u_h"] * insulin["basal_minutes"] / 60
    assert units.sum() + insulin["bolus_u"].sum() == pytest.approx(0.3)


def test_a_day_alone_is_midnight_and_iso_is_read(tmp_path: Path) -> None:
    rows = [
        "1|7|9/6/2020|140|120||||",
        "2|7|9/6/2020 12:05:00 AM|140|120||||",
        "3|7|09/06/2020 01:05:00 PM|140|120||||",
        "4|7|2020-09-06 14:05:00|140|120||||",
    ]
    write(tmp_path, rows)
    times = read(tmp_path).frame["time"].dt.strftime("%Y-%m-%d %H:%M").tolist()
    clocks = ("00:00", "00:05", "13:05", "14:05")
    assert times == [f"2020-09-06 {clock}" for clock in clocks]


def test_a_day_that_no_month_has_is_refused(tmp_path: Path) -> None:
    write(tmp_path, ["1|7|2/30/2020 12:00:00 AM|140|120|0.1|0|0|"])
    with pytest.raises(InputError, match=r"column 'DeviceDtTm', row 2: '2/30/2020 12:00:00 AM'"):
        read(tmp_path)


def test_utf_16_is_read(tmp_path: Path) -> None:
    write(tmp_path, PLAIN, encoding="utf-16")
    assert read(tmp_path).frame["glucose_mg_dl"].sum() == 590


def test_a_meal_in_words_gives_no_carbs(tmp_path: Path) -> None:
    write(tmp_path, PLAIN)
    readings = read(tmp_path)
    assert readings.frame["carbs_g"].isna().all()
    assert counted(readings, "meals announced by a word") == 1


def test_persons_are_kept_apart_in_any_order_of_rows(tmp_path: Path) -> None:
    rows = [
        "1|8|9/6/2020 12:05:00 AM|180|120|0.2|0|0|",
        "2|7|9/6/2020 12:02:00 AM|140|120|0.1|0|0|",
        "3|8|9/6/2020 12:00:00 AM|181|120|0.2|0|0|",
    ]
    write(tmp_path, rows)
    frame = read(tmp_path).frame
    insulin = frame[frame["basal_u_h"].notna()].sort_values(["subject", "time"])
    assert insulin["subject"].tolist() == ["7", "8", "8"]
    assert insulin["basal_minutes"].tolist() == [5, 5, 5]
    assert frame.loc[frame["glucose_mg_dl"] == 140, "subject"].tolist() == ["7"]


def test_rows_that_say_nothing_are_counted(tmp_path: Path) -> None:
    rows = [
        "1||9/6/2020 12:00:00 AM|140|120|0.1|0|0|",
        "2|7||140|120|0.1|0|0|",
        "3|7|9/6/2020 12:05:00 AM||120||0|0|",
        "4|7|9/6/2020 12:10:00 AM|99|120||||",
    ]
    write(tmp_path, rows)
    readings = read(tmp_path)
    assert len(readings.frame) == 1
    assert counted(readings, "name no person") == 1
    assert counted(readings, "rows without a time") == 1
    assert counted(readings, "neither glucose nor insulin") == 1


def test_absent_table_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"IOBP2DeviceiLet.txt' under .*10.1089/dia.2022.0341"):
        find_parts(["lynch_2022"], tmp_path, {})


def test_absent_column_is_named(tmp_path: Path) -> None:
    write(tmp_path, PLAIN, header=HEADER.replace("BasalDelivPrev", "Basal"))
    with pytest.raises(InputError, match=r"no column 'BasalDelivPrev'; it has:.*BGTarget"):
        read(tmp_path)


def test_a_word_in_a_number_column_is_named(tmp_path: Path) -> None:
    write(tmp_path, [PLAIN[0], "2|7|9/6/2020 12:00:10 AM|145|120|much|0.25|3|"])
    with pytest.raises(InputError, match=r"column 'BasalDelivPrev', row 3: 'much'"):
        read(tmp_path)


def test_an_unreadable_time_is_named(tmp_path: Path) -> None:
    write(tmp_path, [PLAIN[0], "2|7|yesterday|145|120|0.1|0.25|3|"])
    with pytest.raises(InputError, match=r"column 'DeviceDtTm', row 3: 'yesterday' is no time"):
        read(tmp_path)
