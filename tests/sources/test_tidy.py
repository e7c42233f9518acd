"""A table of one's own, in every way that people write one."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.grid import GridOptions, build_series
from nocturnal_kedro.series.schema import SERIES, Readings
from nocturnal_kedro.sources import Part, find_parts

THREE = "subject,time,glucose\n"
PLAIN = """subject,time,glucose,basal,bolus,carbs,steps,heart_rate
anna,2024-01-05 08:00:00,120,0.8,,,12,70
anna,2024-01-05 08:05:00,125,0.8,2.5,30,0,71
anna,2024-01-05 08:10:00,130,0,,,,72
ben,2024-01-05 08:00:00,LOW,,,,,
ben,2024-01-05 08:05:00,HIGH,,0,0,,
"""


def parts(root: Path, text: str | None = None, name: str = "a.csv", **options: Any) -> list[Part]:
    if text is not None:
        path = root / "tidy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return find_parts(["tidy"], root, {"tidy": options})


def read(root: Path, text: str | None = None, **options: Any) -> Readings:
    [part] = parts(root, text, **options)
    return part.read()


def counted(readings: Readings, effect: str) -> dict[str, int]:
    tally = readings.tally[readings.tally["effect"] == effect]
    return tally.groupby("reason")["rows"].sum().to_dict()


def test_reads_the_default_columns(tmp_path: Path) -> None:
    readings = read(tmp_path, PLAIN)
    frame = readings.frame
    assert frame["subject"].tolist() == ["anna"] * 3 + ["ben"] * 2
    assert frame["time"].iloc[0] == pd.Timestamp("2024-01-05 08:00")
    assert frame["glucose_mg_dl"].tolist() == [120, 125, 130, 39, 401]
    np.testing.assert_array_equal(frame["basal_u_h"], [0.8, 0.8, 0.0, np.nan, np.nan])
    np.testing.assert_array_equal(frame["basal_minutes"], [7.5, 7.5, 7.5, np.nan, np.nan])
    np.testing.assert_array_equal(frame["bolus_u"], [np.nan, 2.5, np.nan, np.nan, 0])
    np.testing.assert_array_equal(frame["carbs_g"], [np.nan, 30, np.nan, np.nan, 0])
    np.testing.assert_array_equal(frame["steps"], [12, 0, np.nan, np.nan, np.nan])
    assert frame["heart_rate"].tolist()[:3] == [70, 71, 72]
    tally = readings.tally
    assert tally[tally["effect"] == "in"].set_index("subject")["rows"].to_dict() == {
        "anna": 3,
        "ben": 2,
    }
    assert set(tally["effect"]) == {"in"}


def test_goes_onto_the_grid(tmp_path: Path) -> None:
    series, _ = build_series({"tidy": read(tmp_path, PLAIN)}, GridOptions())
    SERIES.validate(series)
    anna = series[series["subject"] == "anna"]
    np.testing.assert_allclose(anna["basal_u_h"], [np.nan, 0.8, 0.8])
    assert anna["bolus_u"].sum() == 2.5
    ben = series[series["subject"] == "ben"]
    assert ben["glucose_mg_dl"].tolist() == [40, 400]
    assert ben["glucose_clipped"].all()
    assert ben["basal_u_h"].isna().all()


def test_only_the_required_columns(tmp_path: Path) -> None:
    frame = read(tmp_path, "subject,time,glucose\n7,2024-01-05T08:00,120\n").frame
    assert frame["subject"].tolist() == ["7"]
    assert frame.drop(columns=["subject", "time", "glucose_mg_dl"]).isna().all(axis=None)


def test_columns_by_other_names_and_separator(tmp_path: Path) -> None:
    text = (
        "ID;Zeit;BZ;Rate;Dauer;Notiz\n1;05.01.2024 08:00;120;0.5;30;x\n1;05.01.2024 08:05;121;;;\n"
    )
    readings = read(
        tmp_path, text, separator=";", time_format="%d.%m.%Y %H:%M",
        columns={"subject": "ID", "time": "Zeit", "glucose": "BZ", "basal": "Rate",
                 "basal_minutes": "Dauer"},
    )  # fmt: skip
    frame = readings.frame
    assert frame["time"].tolist()[1] == pd.Timestamp("2024-01-05 08:05")
    np.testing.assert_array_equal(frame["basal_minutes"], [30, np.nan])
    assert counted(readings, "noted") == {"columns not used: Notiz": 2}


def test_how_long_a_rate_stands_is_an_option(tmp_path: Path) -> None:
    text = "subject,time,glucose,basal,basal_minutes\n1,2024-01-05T08:00,120,0.5,\n"
    assert read(tmp_path, text, basal_minutes=60).frame["basal_minutes"].tolist() == [60]
    with pytest.raises(InputError, match=r"'basal_minutes', row 2: a rate that stands 0 minutes"):
        read(tmp_path, text.replace("0.5,", "0.5,0"))


def test_glucose_in_mmol_is_inferred_and_counted(tmp_path: Path) -> None:
    text = THREE + "1,2024-01-05T08:00,5.5\n2,2024-01-05T08:00,LOW\n2,2024-01-05T08:05,10\n"
    readings = read(tmp_path, text)
    np.testing.assert_allclose(
        readings.frame["glucose_mg_dl"], [5.5 * 18.0182, 39, 180.182], rtol=1e-12
    )
    tally = readings.tally[readings.tally["effect"] == "changed"]
    assert tally["reason"].unique().tolist() == ["glucose inferred to be mmol/L"]
    assert tally.set_index("subject")["rows"].to_dict() == {"1": 1, "2": 2}
    declared = read(tmp_path, text, unit="mmol/L")
    pd.testing.assert_frame_equal(declared.frame, readings.frame)
    assert counted(declared, "changed") == {}


def test_each_file_has_its_unit(tmp_path: Path) -> None:
    parts(tmp_path, "subject,time,glucose\n1,2024-01-05T08:00,5\n", name="a.csv")
    parts(tmp_path, "subject,time,glucose\n2,2024-01-05T08:00,90\n", name="b.csv")
    np.testing.assert_allclose(read(tmp_path).frame["glucose_mg_dl"], [90.091, 90])


@pytest.mark.parametrize(
    ("unit", "glucose", "looks"), [("mg/dL", 6, "mmol/L"), ("mmol/L", 99, "mg/dL")]
)
def test_a_declared_unit_is_checked(tmp_path: Path, unit: str, glucose: float, looks: str) -> None:
    text = f"subject,time,glucose\n1,2024-01-05T08:00,{glucose}\n"
    with pytest.raises(InputError, match=rf"declared as {unit}, but its median .* like {looks}"):
        read(tmp_path, text, unit=unit)


def test_two_units_in_one_file_are_refused(tmp_path: Path) -> None:
    text = (
        "subject,time,glucose\nx,2024-01-05T08:00,90\nx,2024-01-05T08:05,91\ny,2024-01-05T08:00,5\n"
    )
    with pytest.raises(InputError, match=r"in mg/dL by its median .* subject 'y' is 5.0"):
        read(tmp_path, text)


def test_numbers_as_subjects_lose_their_point(tmp_path: Path) -> None:
    text = THREE + "1.0,2024-01-05T08:00,6\n,2024-01-05T08:00,6\n2.0,2024-01-05T08:00,6\n"
    readings = read(tmp_path, text)
    assert readings.frame["subject"].tolist() == ["1", "2"]
    assert counted(readings, "dropped") == {"rows without a subject": 1}
    assert set(readings.tally["subject"]) == {"", "1", "2"}
    text = THREE + "1.0,2024-01-05T08:00,99\n1.1,2024-01-05T08:00,99\n007,2024-01-05T08:00,99\n"
    names = read(tmp_path, text).frame["subject"]
    assert names.tolist() == ["1.0", "1.1", "007"]


def test_rows_repeated_exactly_count_once(tmp_path: Path) -> None:
    row = "1,2024-01-05T08:00,120,2.0\n"
    other = "1,2024-01-05T08:00,120,1.0\n"
    parts(tmp_path, "subject,time,glucose,bolus\n" + row + row + other, name="a.csv")
    parts(tmp_path, "subject,time,glucose,bolus\n" + row, name="b.csv")
    readings = read(tmp_path)  # a person may stand in two files
    assert readings.frame["bolus_u"].sum() == 3.0
    assert counted(readings, "dropped") == {"rows repeated exactly": 2}


def parquet(root: Path, frame: pd.DataFrame, **options: Any) -> Readings:
    (root / "tidy").mkdir(exist_ok=True)
    frame.to_parquet(root / "tidy" / "a.parquet")
    return read(root, **options)


def test_parquet_says_the_same_as_csv(tmp_path: Path) -> None:
    (tmp_path / "csv").mkdir()
    (tmp_path / "parquet").mkdir()
    text = "subject,time,glucose,bolus\n1,2024-01-05T08:00,120,\n2,2024-01-05T08:05,121,1.5\n"
    frame = pd.DataFrame(
        {
            "subject": [1.0, 2.0],
            "time": pd.to_datetime(["2024-01-05 08:00", "2024-01-05 08:05"]),
            "glucose": np.array([120, 121], dtype=np.int16),
            "bolus": [None, 1.5],
        }
    )
    typed = parquet(tmp_path / "parquet", frame)
    pd.testing.assert_frame_equal(read(tmp_path / "csv", text).frame, typed.frame)
    as_text = frame.astype({"time": str, "subject": "category"}).set_index("time")
    pd.testing.assert_frame_equal(parquet(tmp_path / "parquet", as_text).frame, typed.frame)


def test_parquet_rows_are_counted_from_one(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"subject": "a", "time": ["2024-01-05 08:00", "soon"], "glucose": ["100", "101"]}
    )
    with pytest.raises(InputError, match=r"a.parquet', column 'time', row 2: 'soon' is no time"):
        parquet(tmp_path, frame)
    with pytest.raises(InputError, match=r"a.parquet': no column 'bg'; it has: subject, time"):
        parquet(tmp_path, frame, columns={"glucose": "bg"})


def test_parquet_times_with_a_zone(tmp_path: Path) -> None:
    london = pd.date_range("2024-07-01 12:00", periods=2, freq="5min", tz="Europe/London")
    frame = pd.DataFrame({"subject": "a", "time": london, "glucose": 100.0})
    shown = parquet(tmp_path, frame)
    assert shown.frame["time"].tolist() == list(london.tz_localize(None))
    there = parquet(tmp_path, frame, zone="America/New_York")
    assert there.frame["time"].iloc[0] == pd.Timestamp("2024-07-01 07:00")


AUTUMN = "\n".join(  # London: 00:30 UTC is 01:30, 01:30 UTC is 01:30 again
    f"1,2023-10-29T{h:02d}:{m:02d}:00{{}},{100 + h},{1 if m == 30 else ''}"
    for h in range(4)
    for m in (0, 30)
)
HEADER = "subject,time,glucose,bolus\n"


@pytest.mark.parametrize("suffix", ["", "Z", "+00:00"])
def test_times_in_utc_and_a_zone(tmp_path: Path, suffix: str) -> None:
    readings = read(tmp_path, HEADER + AUTUMN.replace("{}", suffix), zone="Europe/London")
    frame = readings.frame
    glucose = frame[frame["glucose_mg_dl"].notna()]
    assert glucose["time"].dt.strftime("%H:%M").tolist() == [
        "01:00", "01:30", "02:00", "02:30", "03:00", "03:30",
    ]  # fmt: skip
    assert frame["bolus_u"].sum() == 4
    assert counted(readings, "dropped") == {"glucose in the hour that a clock change repeats": 1}
    assert counted(readings, "changed") == {
        "glucose in the hour that a clock change repeats, set missing": 1,
        "amounts in the hour that a clock change repeats, put at its end": 1,
    }


def test_times_with_an_offset_and_no_zone(tmp_path: Path) -> None:
    text = HEADER + (
        "1,2023-10-29T01:30:00+01:00,100,\n"
        "1,2023-10-29T01:30:00+00:00,101,2\n"  # an hour later, the clock was put back
        "1,2023-10-29T02:00:00+00:00,102,\n"
    )
    readings = read(tmp_path, text)
    glucose = readings.frame.dropna(subset="glucose_mg_dl")
    assert glucose["glucose_mg_dl"].tolist() == [100, 102]
    assert glucose["time"].dt.strftime("%H:%M").tolist() == ["01:30", "02:00"]
    assert readings.frame["bolus_u"].sum() == 2
    noted = counted(readings, "noted")
    assert noted == {"times with an offset and no zone, read as what the clock showed": 3}


def test_utc_alone_tells_no_midnight(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"every time is in UTC.*Give the option zone"):
        read(tmp_path, HEADER + AUTUMN.replace("{}", "Z"))


def test_times_with_and_without_an_offset_are_refused(tmp_path: Path) -> None:
    text = HEADER + "1,2023-10-29T01:30:00+01:00,100,\n1,2023-10-29T02:00:00,101,\n"
    with pytest.raises(InputError, match=r"some times have an offset from UTC and some have none"):
        read(tmp_path, text)
    assert len(read(tmp_path, text, zone="Europe/London").frame) == 2


def test_an_offset_in_a_format_of_ones_own(tmp_path: Path) -> None:
    text = HEADER + "1,05.01.2024 08:00 +0100,100,\n1,05.01.2024 08:05 +0000,101,\n1,,102,\n"
    given = {"time_format": "%d.%m.%Y %H:%M %z"}
    frame = read(tmp_path, text, zone="Europe/Berlin", **given).frame
    assert frame["time"].dropna().dt.strftime("%H:%M").tolist() == ["08:00", "09:05"]
    with pytest.raises(InputError, match=r"need the option zone"):
        read(tmp_path, text, **given)
    with pytest.raises(InputError, match=r"row 2: '05/01' is no time written like time_format"):
        read(tmp_path, HEADER + "1,05/01,100,\n", zone="Europe/Berlin", **given)


def test_rows_without_a_time_are_left_to_the_grid(tmp_path: Path) -> None:
    text = HEADER + "1,,100,\n1,2024-01-05T08:00,101,\n"
    series, tally = build_series({"tidy": read(tmp_path, text)}, GridOptions())
    assert series["glucose_mg_dl"].tolist() == [101]
    assert "rows without a time" in set(tally["reason"])


def test_a_path_may_be_a_file_or_a_pattern(tmp_path: Path) -> None:
    for name in ("a.csv", "study/b.csv", "study/c.csv"):
        parts(tmp_path, PLAIN.replace("anna", name), name=name)
    [part] = parts(tmp_path, files="study/*.csv")
    assert [file.name for file in part.files] == ["b.csv", "c.csv"]
    assert len(parts(tmp_path)[0].files) == 1
    for outside in (str(tmp_path), "../b.csv"):
        with pytest.raises(InputError, match=r"leads out of raw_root/tidy"):
            parts(tmp_path, files=outside)
    with pytest.raises(InputError, match=r"study' is no .csv or .parquet file"):
        parts(tmp_path, files="study")


def test_absent_files_say_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no 'tidy/\*.csv' under .*your own table"):
        parts(tmp_path)
    with pytest.raises(InputError, match=r"no 'tidy/x.csv' under"):
        parts(tmp_path, files="x.csv")


def test_an_absent_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a.csv': no column 'glucose'; it has: subject, time, bg"):
        read(tmp_path, "subject,time,bg\n1,2024-01-05T08:00,120\n")
    with pytest.raises(InputError, match=r"no column 'insulin'"):
        read(tmp_path, PLAIN, columns={"bolus": "insulin"})


@pytest.mark.parametrize(
    ("cell", "column"), [("much", "bolus"), ("1,5", "bolus"), ("?", "glucose"), ("-", "carbs")]
)
def test_an_unreadable_number_is_named(tmp_path: Path, cell: str, column: str) -> None:
    cells = {"glucose": "100", "bolus": "", "carbs": ""} | {column: f'"{cell}"'}
    text = "subject,time,glucose,bolus,carbs\n1,2024-01-05T08:00,101,,\n1,2024-01-05T08:05," + (
        ",".join(cells.values())
    )
    with pytest.raises(InputError, match=rf"'{column}', row 3: '{cell.replace('?', '.')}' is no n"):
        read(tmp_path, text)


@pytest.mark.parametrize("cell", ["2024-01-05", "05/01/2024 08:00", "1704441600000"])
def test_an_unreadable_time_is_named(tmp_path: Path, cell: str) -> None:
    with pytest.raises(InputError, match=rf"column 'time', row 2: '{cell}' is no time in ISO 8601"):
        read(tmp_path, f"subject,time,glucose\n1,{cell},120\n")
    with pytest.raises(
        InputError, match=rf"column 'time', row 2: '{cell}' is no time written like"
    ):
        read(tmp_path, f"subject,time,glucose\n1,{cell},120\n", time_format="%H:%M %d %m %Y")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "tidy").mkdir()
    (tmp_path / "tidy" / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match=r"a.parquet': .*cut short or no Parquet"):
        read(tmp_path)
    (tmp_path / "tidy" / "a.parquet").unlink()
    with pytest.raises(InputError, match=r"a.csv': .*empty"):
        read(tmp_path, "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": {"insulin": "x"}}, r"columns"),
        ({"unit": "mg"}, r"unit"),
        ({"basal_minutes": 0}, r"basal_minutes"),
        ({"zome": "Europe/London"}, r"Allowed: files, separator, columns"),
    ],
)
def test_unusable_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parts(tmp_path, PLAIN, **options)


def test_an_unknown_zone_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"source 'tidy', option 'zone': unknown time zone 'CET1'"):
        read(tmp_path, PLAIN, zone="CET1")
