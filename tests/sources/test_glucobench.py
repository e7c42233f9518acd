"""Few-row files in the format of the benchmark, each with an oddity of its files."""

from pathlib import Path

import pandas as pd
import pytest

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.grid import GridOptions, build_series
from nocturnal_kedro.series.schema import SERIES, Readings
from nocturnal_kedro.sources import find_parts

PLAIN = ['"001",2015-06-01 00:04:00,120.5', '"001",2015-06-01 00:09:00,122']


def write(root: Path, rows: list[str], name: str = "Some2018", header: str = "id,time,gl") -> None:
    file = root / "glucobench" / f"{name}.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([header, *rows]) + "\n")


def read(root: Path) -> Readings:
    [part] = find_parts(["glucobench"], root, {})
    return part.read()


def counted(readings: Readings, reason: str) -> int:
    tally = readings.tally
    return int(tally.loc[tally["reason"].str.contains(reason), "rows"].sum())


def test_reads_the_three_columns(tmp_path: Path) -> None:
    write(tmp_path, PLAIN, header='"id","time","gl"')
    readings = read(tmp_path)
    assert readings.frame["subject"].tolist() == ["Some2018-001"] * 2
    assert readings.frame["glucose_mg_dl"].tolist() == [120.5, 122]
    assert readings.tally["reason"].tolist() == ["rows in file"]
    series, _ = build_series({"glucobench": readings}, GridOptions())
    SERIES.validate(series)
    assert series["time"].iloc[0] == pd.Timestamp("2015-06-01 00:05")


def test_one_id_in_two_files_is_two_people(tmp_path: Path) -> None:
    write(tmp_path, ["1,2015-06-01 00:04:00,120"], name="a")
    write(tmp_path, ["1,2015-06-01 00:04:00,130"], name="b")
    parts = find_parts(["glucobench"], tmp_path, {})
    assert [part.read().frame["subject"].tolist() for part in parts] == [["a-1"], ["b-1"]]


def test_an_id_once_read_as_a_float_is_whole(tmp_path: Path) -> None:
    write(
        tmp_path,
        ["1.0,2015-06-01 00:04:00,120", "Subject 1,2015-06-01 00:04:00,120"],
        header="id,time,gl",
    )
    write(tmp_path, ["1636-69-001.5,2015-06-01 00:04:00,120"], name="other")
    subjects = [
        subject
        for part in find_parts(["glucobench"], tmp_path, {})
        for subject in part.read().frame["subject"]
    ]
    assert subjects == ["Some2018-1", "Some2018-Subject 1", "other-1636-69-001.5"]


def test_covariates_are_noted_by_name(tmp_path: Path) -> None:
    write(
        tmp_path,
        ["0,1,2015-06-01 00:04:00,120,61.5,", "1,1,2015-06-01 00:09:00,121,,"],
        header=",id,time,gl,Weight,Vitamin D",
    )
    readings = read(tmp_path)
    assert counted(readings, "column 'Weight' of 'Some2018.csv' not used") == 1
    assert counted(readings, "Vitamin D") == 0  # empty throughout
    assert readings.frame[["steps", "carbs_g", "bolus_u"]].isna().all(axis=None)


def test_times_in_every_iso_form(tmp_path: Path) -> None:
    times = ["2015-06-01", "2015-06-01 00:05", "2015-06-01T00:10:00", "2015-06-01 00:15:00.0"]
    write(tmp_path, [f"1,{time},120" for time in times])
    read_times = read(tmp_path).frame["time"]
    assert read_times.tolist() == list(pd.date_range("2015-06-01", periods=4, freq="5min"))


def test_rows_without_an_id_are_counted_and_without_a_reading_kept(tmp_path: Path) -> None:
    write(tmp_path, [",2015-06-01 00:04:00,120", "1,2015-06-01 00:09:00,"])
    readings = read(tmp_path)
    assert readings.frame["subject"].tolist() == ["Some2018-1"]
    assert counted(readings, "without an id") == 2  # in and dropped


def test_absent_files_say_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no 'glucobench/\*.csv' under .*arXiv:2410.05780"):
        find_parts(["glucobench"], tmp_path, {})


def test_absent_column_is_named(tmp_path: Path) -> None:
    write(tmp_path, PLAIN, header="id,time,glucose")
    with pytest.raises(InputError, match=r"Some2018.csv': no column 'gl'; it has: id, time, gluc"):
        read(tmp_path)


def test_a_word_in_a_number_column_is_named(tmp_path: Path) -> None:
    write(tmp_path, [*PLAIN, "1,2015-06-01 00:14:00,none"])
    with pytest.raises(InputError, match=r"column 'gl', row 4: 'none' is no number"):
        read(tmp_path)


def test_an_unreadable_time_is_named(tmp_path: Path) -> None:
    write(tmp_path, [*PLAIN, "1,01/06/2015 00:14,120"])
    with pytest.raises(InputError, match=r"column 'time', row 4: '01/06/2015 00:14' is no time"):
        read(tmp_path)


def test_mmol_is_refused(tmp_path: Path) -> None:
    write(tmp_path, [f"1,2015-06-01 00:{5 * k:02d}:00,{5 + k / 10}" for k in range(10)])
    with pytest.raises(InputError, match=r"subject 'Some2018-1': median glucose 5.*mmol/L"):
        build_series({"glucobench": read(tmp_path)}, GridOptions())
