"""Few-row files in the published format, each with a fault of the published files."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.grid import GridOptions, build_series
from nocturnal_kedro.series.schema import SERIES, Readings
from nocturnal_kedro.sources import azt1d, find_parts

HEADER = (
    "EventDateTime,DeviceMode,BolusType,Basal,CorrectionDelivered,TotalBolusInsulinDelivered,"
    "FoodDelivered,CarbSize,CGM"
)
PLAIN = [
    "2023-12-10 00:04:56,,,,,,,,196",
    "2023-12-10 00:09:56,sleep,,0.5,,,,,199",
    "2023-12-10 00:14:56,sleep,Standard,0.5,0.0,2.0,2.0,20.0,201",
    "2023-12-10 00:19:56,sleep,,0.0,,,,,204",
    "2023-12-10 00:24:56,sleep,,0.0,,,,,205",
]


def write(root: Path, rows: list[str], subject: int = 2, header: str = HEADER) -> None:
    folder = root / azt1d.FOLDER / f"Subject {subject}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"Subject {subject}.csv").write_text("\n".join([header, *rows]) + "\n")


def read(root: Path) -> Readings:
    [part] = find_parts(["azt1d"], root, {})
    return part.read()


def counted(readings: Readings, reason: str) -> int:
    tally = readings.tally
    return int(tally.loc[tally["reason"].str.contains(reason), "rows"].sum())


def test_reads_the_published_columns(tmp_path: Path) -> None:
    write(tmp_path, PLAIN)
    frame = read(tmp_path).frame
    assert frame["subject"].unique().tolist() == ["2"]
    assert frame["glucose_mg_dl"].tolist() == [196, 199, 201, 204, 205]
    np.testing.assert_array_equal(frame["basal_u_h"], [np.nan, 0.5, 0.5, 0.0, 0.0])
    np.testing.assert_array_equal(frame["bolus_u"], [np.nan, np.nan, 2.0, np.nan, np.nan])
    np.testing.assert_array_equal(frame["carbs_g"], [np.nan, np.nan, 20.0, np.nan, np.nan])


def test_basal_in_milliunits_is_divided_and_nonsense_is_missing(tmp_path: Path) -> None:
    write(tmp_path, ["2024-01-01 00:00:00,,,861,,,,,120", "2024-01-01 00:05:00,,,12.5,,,,,121"])
    readings = read(tmp_path)
    np.testing.assert_allclose(readings.frame["basal_u_h"], [0.861, np.nan])
    assert counted(readings, "mU/h") == 1
    assert counted(readings, "no usable unit") == 1


def test_second_name_of_the_glucose_column(tmp_path: Path) -> None:
    header = (
        "EventDateTime,Basal,BolusType,CarbSize,CorrectionDelivered,FoodDelivered,"
        "Readings (CGM / BGM),TotalBolusInsulinDelivered,DeviceMode"
    )
    write(tmp_path, ["2024-01-13 00:03:00,0.3,,30,,,128,2.5,"], subject=14, header=header)
    frame = read(tmp_path).frame
    assert frame.loc[0, ["glucose_mg_dl", "bolus_u", "carbs_g"]].tolist() == [128, 2.5, 30]


def test_a_bolus_repeated_at_one_time_was_given_once(tmp_path: Path) -> None:
    row = "2024-02-02 23:08:00,,Standard,0.708,0.0,3.0,0.0,0.0,105"
    write(tmp_path, [row] * 80 + ["2024-02-02 23:13:00,,,0.7,,,,,107"])
    readings = read(tmp_path)
    assert readings.frame["bolus_u"].sum() == 3.0
    assert counted(readings, "rows in file") == 81
    assert counted(readings, "repeated") == 79


def test_a_rate_told_by_one_of_the_repeated_rows_is_kept(tmp_path: Path) -> None:
    write(tmp_path, ["2024-02-02 23:08:00,,,0.7,,3.0,,0,105", "2024-02-02 23:08:00,,,,,3.0,,0,106"])
    frame = read(tmp_path).frame
    assert frame[["basal_u_h", "bolus_u", "glucose_mg_dl"]].to_numpy().tolist() == [[0.7, 3, 106]]


def test_two_different_boluses_at_one_time_both_count(tmp_path: Path) -> None:
    write(
        tmp_path, ["2024-02-02 23:08:00,,,0.7,,3.0,,,105", "2024-02-02 23:08:00,,,0.7,,1.0,,,106"]
    )
    series, _ = build_series({"azt1d": read(tmp_path)}, GridOptions())
    assert series["bolus_u"].sum() == 4.0
    assert series["glucose_mg_dl"].tolist() == [106.0]  # the last of equal times


def test_zero_where_others_leave_empty_says_the_same(tmp_path: Path) -> None:
    empty = ["2024-01-12 00:04:00,,,0.485,,,,,162", "2024-01-12 00:09:00,,,0.485,,,,,161"]
    zeros = [row.replace(",,,0.485,,,,,", ",0,0,0.485,0.0,0.0,0.0,0,") for row in empty]
    write(tmp_path / "empty", empty, subject=8)
    write(tmp_path / "zeros", zeros, subject=8)
    pd.testing.assert_frame_equal(read(tmp_path / "empty").frame, read(tmp_path / "zeros").frame)


def test_missing_basal_is_missing_and_zero_is_zero(tmp_path: Path) -> None:
    write(tmp_path, PLAIN)
    series, _ = build_series({"azt1d": read(tmp_path)}, GridOptions())
    SERIES.validate(series)
    assert np.isnan(series["basal_u_h"].iloc[0])  # before the pump's record begins
    assert series["basal_u_h"].iloc[-1] < 0.01  # the suspended pump, but for the first seconds
    assert np.isnan(series["bolus_u"].iloc[0])
    assert series["bolus_u"].iloc[1] == 0  # the pump was there and gave none


def test_implausible_insulin_is_flagged_and_glucose_kept(tmp_path: Path) -> None:
    times = pd.date_range("2024-01-01", periods=6 * 288, freq="5min")
    rows = [
        f"{time},,,1.0,,{25.0 if number % 40 == 0 else ''},,,120"
        for number, time in enumerate(times)
    ]
    write(tmp_path, rows, subject=11)
    series, tally = build_series({"azt1d": read(tmp_path)}, GridOptions())
    assert not series["insulin_flagged"][:288].any()  # as much may be true, of one day
    assert series["insulin_flagged"][3 * 288 :].all()
    assert series["glucose_mg_dl"].notna().all()
    assert tally["reason"].str.contains("implausible insulin").any()


def test_person_who_logs_no_carbs_has_missing_carbs(tmp_path: Path) -> None:
    write(
        tmp_path, ["2024-02-02 00:01:42,,,0.4,,2.0,,0.0,164", "2024-02-02 00:06:42,,,0.4,,,,,161"]
    )
    series, _ = build_series({"azt1d": read(tmp_path)}, GridOptions())
    assert series["carbs_g"].isna().all()


def test_missing_folder_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no 'azt1d/CGM Records/.*' under .*Get AZT1D"):
        read(tmp_path)


def test_missing_column_names_file_and_column(tmp_path: Path) -> None:
    write(tmp_path, PLAIN, header=HEADER.replace("Basal", "Rate"))
    with pytest.raises(InputError, match=r"Subject 2.csv': no column 'Basal'; it has:.*Rate"):
        read(tmp_path)


def test_a_word_in_a_number_column_is_named(tmp_path: Path) -> None:
    write(tmp_path, ["2024-01-01 00:00:00,,,much,,,,,120"])
    with pytest.raises(InputError, match=r"column 'Basal'.*much"):
        read(tmp_path)


def test_an_unreadable_time_is_named(tmp_path: Path) -> None:
    write(tmp_path, ["01/13/2024 00:00,,,1,,,,,120"])
    with pytest.raises(InputError, match=r"column 'EventDateTime'"):
        read(tmp_path)


def test_mmol_in_the_mg_dl_column_is_refused(tmp_path: Path) -> None:
    rows = [f"2024-01-01 00:{5 * k:02d}:00,,,,,,,,{5 + k / 10}" for k in range(10)]
    write(tmp_path, rows)
    with pytest.raises(InputError, match=r"subject '2': median glucose 5.* looks like mmol/L"):
        build_series({"azt1d": read(tmp_path)}, GridOptions())
