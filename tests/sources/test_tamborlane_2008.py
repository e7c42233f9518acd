"""Few-row tables in the published format, each with a fault of the published ones."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.grid import GridOptions, build_series
from nocturnal_kedro.series.schema import SERIES, Readings
from nocturnal_kedro.sources import find_parts

HEADER = "RecID,PtID,DeviceDtTm,Glucose"
NAME = "tblADataRTCGM_Blind_Baseline.csv"


def write(
    root: Path, rows: list[str], name: str = NAME, header: str = HEADER, encoding: str = "utf-8"
) -> None:
    file = root / "tamborlane_2008" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([header, *rows]) + "\n", encoding=encoding)


def read(root: Path) -> Readings:
    [part] = find_parts(["tamborlane_2008"], root, {})
    return part.read()


def counted(readings: Readings, reason: str) -> int:
    tally = readings.tally
    return int(tally.loc[tally["reason"].str.contains(reason), "rows"].sum())


def test_a_person_is_put_together_from_all_tables(tmp_path: Path) -> None:
    write(tmp_path, ["1,12,2000-03-01 00:07:31,120", "2,3,2000-03-01 00:01:00,90"])
    write(
        tmp_path,
        ["3,12,2000-03-01 00:02:31,118"],
        name="tblADataRTCGM_Unblinded_RTCGMGroup_1.csv",
    )
    readings = read(tmp_path)
    rows = readings.frame.set_index("time")["glucose_mg_dl"]
    assert rows.loc["2000-03-01 00:02:31"] == 118
    assert readings.frame["subject"].tolist() == ["12", "3", "12"]
    assert counted(readings, "rows of all tables") == 3
    assert counted(readings, "tables absent") == 17
    series, _ = build_series({"tamborlane_2008": readings}, GridOptions())
    SERIES.validate(series)
    of_12 = series[series["subject"] == "12"]
    assert of_12["glucose_mg_dl"].tolist() == [118, 120]
    assert of_12["time"].iloc[0] == pd.Timestamp("2000-03-01 00:05")
    assert series["basal_u_h"].isna().all()


def test_rows_that_stand_twice_are_dropped_over_the_borders_of_files(tmp_path: Path) -> None:
    twice = "12,2000-03-01 00:07:31,120"
    write(tmp_path, [f"1,{twice}", f"2,{twice}", "3,12,2000-03-01 00:07:31,121"])
    write(tmp_path, [f"9,{twice}", "10,13,2000-03-01 00:07:31,121"], name="tblADataRTCGM_B.csv")
    readings = read(tmp_path)
    assert counted(readings, "stand twice") == 2
    assert sorted(readings.frame["glucose_mg_dl"]) == [120, 121, 121]
    assert sorted(readings.frame["subject"]) == ["12", "12", "13"]


def test_rows_without_a_time_or_a_reading_are_left_to_the_grid(tmp_path: Path) -> None:
    write(tmp_path, ["1,12,,120", "2,12,,120", "3,12,2000-03-01 00:05:00,", "4,12,2000-03-01,99"])
    readings = read(tmp_path)
    assert len(readings.frame) == 4
    _, tally = build_series({"tamborlane_2008": readings}, GridOptions())
    assert tally.loc[tally["reason"] == "rows without a time", "rows"].tolist() == [2]


def test_times_in_every_known_form(tmp_path: Path) -> None:
    forms = (
        "2000-03-01 13:05:00",
        "2000-03-01 13:10:00.0000000",
        "2000-03-01 13:15",
        "3/1/2000 13:20",
        "3/1/2000 1:25:00 PM",
        "03/01/2000 13:30:00",
    )
    write(tmp_path, [f"{number},12,{form},100" for number, form in enumerate(forms)])
    times = read(tmp_path).frame["time"]
    np.testing.assert_array_equal(times, pd.date_range("2000-03-01 13:05", periods=6, freq="5min"))


def test_latin_1_is_read_and_noted(tmp_path: Path) -> None:
    header = HEADER + ",Site"
    write(
        tmp_path,
        ["1,12,2000-03-01 00:00:00,120,Montréal", "2,12,2000-03-01 00:05:00,121,"],
        header=header,
        encoding="latin-1",
    )
    write(tmp_path, ["3,12,2000-03-01 00:10:00,122,Montréal"], "tblADataRTCGM_B.csv", header)
    readings = read(tmp_path)
    assert sorted(readings.frame["glucose_mg_dl"]) == [120, 121, 122]
    assert counted(readings, "Latin-1") == 2


def test_a_sensors_word_at_the_end_of_its_range(tmp_path: Path) -> None:
    write(tmp_path, ["1,12,2000-03-01 00:00:00,LOW", "2,12,2000-03-01 00:05:00,150"])
    assert read(tmp_path).frame["glucose_mg_dl"].tolist() == [39, 150]


def test_rows_that_name_no_person_are_counted(tmp_path: Path) -> None:
    row = ",2000-03-01 00:00:00,120"
    write(tmp_path, [f"1,{row}", f"2,{row}", "3,12,2000-03-01 00:00:00,120"])
    readings = read(tmp_path)
    assert readings.frame["subject"].tolist() == ["12"]
    dropped = readings.tally[readings.tally["effect"] == "dropped"]
    assert dropped["rows"].tolist() == [2]


def test_tables_in_a_folder_of_the_download_are_found(tmp_path: Path) -> None:
    write(tmp_path, ["1,12,2000-03-01 00:00:00,120"], name=f"DataTables/{NAME}")
    assert len(read(tmp_path).frame) == 1


def test_absent_tables_say_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tblADataRTCGM_\*.csv' under .*10.1056/NEJMoa0805017"):
        find_parts(["tamborlane_2008"], tmp_path, {})


def test_absent_column_is_named(tmp_path: Path) -> None:
    write(tmp_path, ["1,12,2000-03-01 00:00:00,120"], header="RecID,PtID,DeviceDtTm,CGM")
    with pytest.raises(InputError, match=r"Blind_Baseline.csv': no column 'Glucose'; it has:.*CGM"):
        read(tmp_path)


def test_a_word_in_a_number_column_is_named(tmp_path: Path) -> None:
    write(tmp_path, ["1,12,2000-03-01 00:00:00,120", "2,12,2000-03-01 00:05:00,error"])
    with pytest.raises(InputError, match=r"column 'Glucose', row 3: 'error' is no number"):
        read(tmp_path)


def test_an_unreadable_time_is_named(tmp_path: Path) -> None:
    write(tmp_path, ["1,12,2000-03-01 00:00:00,120", "2,12,1 March 2000,121"])
    with pytest.raises(InputError, match=r"column 'DeviceDtTm', row 3: '1 March 2000'"):
        read(tmp_path)


def test_mmol_in_the_mg_dl_column_is_refused(tmp_path: Path) -> None:
    write(tmp_path, [f"{k},12,2000-03-01 00:{5 * k:02d}:00,{5 + k / 10}" for k in range(10)])
    with pytest.raises(InputError, match=r"subject '12': median glucose 5.* looks like mmol/L"):
        build_series({"tamborlane_2008": read(tmp_path)}, GridOptions())
