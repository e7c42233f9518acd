"""Few-row files in the published format, each with a fault of the published files."""

from pathlib import Path

import numpy as np
import pytest

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.grid import GridOptions, build_series
from nocturnal_kedro.series.schema import SERIES, Readings
from nocturnal_kedro.sources import bris_t1d_open, find_parts

HEADER = "timestamp,glucose_value_mg_dl"
PLAIN = ["2023-07-01 00:02:00,90.0", "2023-07-01 00:07:00,91.8", "2023-07-01 00:12:00,95.4"]


def write(root: Path, rows: list[str], person: str = "P02", header: str = HEADER) -> None:
    folder = root / bris_t1d_open.FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{person}.csv").write_text("\n".join([header, *rows]) + "\n")


def read(root: Path, **options: object) -> Readings:
    [part] = find_parts(["bris_t1d_open"], root, {"bris_t1d_open": dict(options)})
    return part.read()


def counted(readings: Readings, reason: str) -> int:
    tally = readings.tally
    return int(tally.loc[tally["reason"].str.contains(reason), "rows"].sum())


def test_the_publishers_factor_of_18_is_undone(tmp_path: Path) -> None:
    write(tmp_path, PLAIN)
    readings = read(tmp_path)
    assert readings.frame["subject"].unique().tolist() == ["P02"]
    np.testing.assert_allclose(
        readings.frame["glucose_mg_dl"], np.array([5.0, 5.1, 5.3]) * 18.0182, rtol=1e-12
    )
    assert counted(readings, "18.0182 instead of 18") == 3
    assert counted(readings, "rows in file") == 3


def test_the_sensors_ceiling_and_floor_are_flagged_once_the_factor_is_right(tmp_path: Path) -> None:
    write(tmp_path, ["2023-07-01 00:00:00,399.6", "2023-07-01 00:05:00,39.6", *PLAIN[2:]])
    series, _ = build_series({"bris_t1d_open": read(tmp_path)}, GridOptions())
    SERIES.validate(series)
    assert series["glucose_clipped"].tolist() == [True, True, False]  # 22.2 and 2.2 mmol/L
    assert series["glucose_mg_dl"].tolist()[:2] == [400.0, 40.0]


def test_each_file_is_a_part_and_other_files_are_none(tmp_path: Path) -> None:
    write(tmp_path, PLAIN, "P02")
    write(tmp_path, PLAIN, "P10")
    (tmp_path / "bris_t1d_open" / "Bris-T1D_Open-metadata.csv").write_text("person_id\nP02\n")
    parts = find_parts(["bris_t1d_open"], tmp_path, {})
    assert [part.read().frame["subject"].iloc[0] for part in parts] == ["P02", "P10"]


def test_hours_that_stand_twice_are_dropped_where_they_disagree(tmp_path: Path) -> None:
    twice = [
        "2023-10-29 01:02:00,180.0",
        "2023-10-29 01:02:00,90.0",  # the same hour again, another glucose
        "2023-10-29 01:07:00,90.0",
        "2023-10-29 01:09:00,178.2",  # two minutes later
        "2023-10-29 01:12:00,108.0",  # 01:09 is not of this series either
        "2023-10-29 01:15:00,180.0",  # 3 minutes: may be a real interval
    ]
    readings = read_after_write(tmp_path, twice)
    assert readings.frame["time"].dt.strftime("%H:%M").tolist() == ["01:12", "01:15"]
    assert counted(readings, "disagree") == 4


def test_the_second_of_two_series_may_stand_anywhere_in_the_file(tmp_path: Path) -> None:
    shuffled = ["2023-10-29 01:02:00,90.0", "2023-10-29 01:07:00,90.0", "2023-10-29 01:02:30,180.0"]
    readings = read_after_write(tmp_path, shuffled)
    assert readings.frame["time"].dt.strftime("%H:%M").tolist() == ["01:07"]


def test_readings_at_once_that_agree_are_kept(tmp_path: Path) -> None:
    rows = ["2023-10-29 01:02:00,61.2", "2023-10-29 01:02:00,79.2", "2023-10-29 01:03:00,79.2"]
    readings = read_after_write(tmp_path, rows)
    assert len(readings.frame) == 3  # 1 mmol/L apart, not more
    series, _ = build_series({"bris_t1d_open": readings}, GridOptions())
    assert len(series) == 2


def test_exact_duplicate_rows_are_counted(tmp_path: Path) -> None:
    readings = read_after_write(tmp_path, [PLAIN[0], *PLAIN])
    assert (len(readings.frame), counted(readings, "duplicate")) == (3, 1)


def test_an_option_says_when_two_readings_clash(tmp_path: Path) -> None:
    write(tmp_path, ["2023-07-01 00:00:00,90.0", "2023-07-01 00:04:00,180.0"])
    assert len(read(tmp_path).frame) == 2
    assert len(read(tmp_path, clash_minutes=5).frame) == 0


def test_values_of_another_conversion_are_refused(tmp_path: Path) -> None:
    write(tmp_path, [*PLAIN, "2023-07-01 00:17:00,97.3"])
    with pytest.raises(
        InputError, match=r"P02.csv', column 'glucose_value.*row 5: 97.3 is no tent"
    ):
        read(tmp_path)


def test_absent_files_say_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no 'bris_t1d_open/.*10.5523/bris.*raw_root"):
        find_parts(["bris_t1d_open"], tmp_path, {})


def test_absent_column_is_named(tmp_path: Path) -> None:
    write(tmp_path, PLAIN, header="timestamp,glucose")
    with pytest.raises(InputError, match=r"P02.csv': no column 'glucose_value_mg_dl'; it has"):
        read(tmp_path)


def test_unreadable_number_is_named(tmp_path: Path) -> None:
    write(tmp_path, [*PLAIN, "2023-07-01 00:17:00,many"])
    with pytest.raises(InputError, match=r"column 'glucose_value_mg_dl', row 5: 'many'"):
        read(tmp_path)


def test_unreadable_time_is_named(tmp_path: Path) -> None:
    write(tmp_path, [*PLAIN, "01/07/2023 00:17,90.0"])
    with pytest.raises(InputError, match=r"column 'timestamp', row 5: '01/07/2023 00:17'"):
        read(tmp_path)


def read_after_write(root: Path, rows: list[str]) -> Readings:
    write(root, rows)
    return read(root)
