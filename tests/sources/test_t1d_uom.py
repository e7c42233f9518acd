"""Few-row files in the published format, each with a fault of the published files."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.grid import GridOptions, build_series
from nocturnal_kedro.series.schema import SERIES, Readings
from nocturnal_kedro.sources import find_parts

HEADERS = {
    "Glucose": "bg_ts,value",
    "Basal": "basal_ts,basal_dose,insulin_kind",
    "Bolus": "bolus_ts,bolus_dose",
    "Nutrition": "meal_ts,meal_type,meal_tag,carbs_g,prot_g,fat_g,fibre_g",
    "Activity": (
        "activity_ts,activity_type,active_Kcal,step_count,distance_m,duration_s,active_time_s,"
        "start_time_s,start_time_offset_s,met,intensity,motion_intensity_mean,motion_intensity_max"
    ),
}
FOLDERS = {
    "Glucose": "Glucose Data",
    "Basal": "Insulin Data/Basal Data",
    "Bolus": "Insulin Data/Bolus Data",
    "Nutrition": "Nutrition Data",
    "Activity": "Activity Data",
}
PLAIN = ["13/11/2023 00:00,6.9", "13/11/2023 00:05,6.6", "13/11/2023 00:10,7"]


def write(
    root: Path,
    subject: str = "2313",
    bom: bool = False,
    headers: dict[str, str] = HEADERS,
    **rows: list[str],
) -> None:
    """Write the tables given by name, and glucose; every folder has a file of another person."""
    for name, folder in FOLDERS.items():
        (root / "t1d_uom" / folder).mkdir(parents=True, exist_ok=True)
        if name in rows or name == "Glucose":
            lines = [headers[name], *rows.get(name, PLAIN)]
            text = ("\ufeff" if bom else "") + "\r\n".join(lines) + "\r\n"
            file = root / "t1d_uom" / folder / f"UoM{name}{subject}.csv"
            file.write_bytes(text.encode())
        other = root / "t1d_uom" / folder / f"UoM{name}9999.csv"
        other.write_text(HEADERS[name] + "\n")


def read(root: Path, subject: str = "2313", **options: object) -> Readings:
    for part in find_parts(["t1d_uom"], root, {"t1d_uom": dict(options)}):
        if part.files[0].stem.endswith(subject):
            return part.read()
    raise AssertionError(f"no part for {subject}")


def counted(readings: Readings, reason: str) -> int:
    tally = readings.tally
    return int(tally.loc[tally["reason"].str.contains(reason), "rows"].sum())


def rows_of(readings: Readings, column: str) -> pd.DataFrame:
    return readings.frame[readings.frame[column].notna()]


def steps_row(start: str, steps: int, kind: str = "WALKING", lasts: int = 900, offset: int = 0):
    return f"{start},{kind},3,{steps},9.5,{lasts},60,1699833600,{offset},1.5,ACTIVE,1,4"


def test_a_part_holds_every_table_of_a_person(tmp_path: Path) -> None:
    write(
        tmp_path,
        bom=True,
        Basal=["13/11/2023 00:00,0.8,R"],
        Bolus=["13/11/2023 00:05,4.5"],
        Nutrition=["13/11/2023 00:05,Snack,Toast & jam,21,2,1,"],
        Activity=[steps_row("13/11/2023 00:00", 120)],
    )
    parts = find_parts(["t1d_uom"], tmp_path, {})
    assert [len(part.files) for part in parts] == [5, 5]
    readings = read(tmp_path)
    assert readings.frame["subject"].unique().tolist() == ["2313"]
    np.testing.assert_allclose(
        rows_of(readings, "glucose_mg_dl")["glucose_mg_dl"], np.array([6.9, 6.6, 7]) * 18.0182
    )
    for column, amount in {"basal_u_h": 0.8, "bolus_u": 4.5, "carbs_g": 21.0, "steps": 120}.items():
        assert rows_of(readings, column)[column].tolist() == [amount]
    assert readings.frame["heart_rate"].isna().all()
    series, _ = build_series({"t1d_uom": readings}, GridOptions())
    SERIES.validate(series)
    assert series["bolus_u"].tolist()[1] == 4.5


def test_dates_are_day_first_with_or_without_seconds(tmp_path: Path) -> None:
    write(tmp_path, Glucose=["03/12/2023 00:04,5", "03/12/2023 00:09:30,5.2", "04/12/2023 00:01,6"])
    times = read(tmp_path).frame["time"].astype(str).tolist()
    assert times == ["2023-12-03 00:04:00", "2023-12-03 00:09:30", "2023-12-04 00:01:00"]


def test_empty_extra_columns_are_nothing(tmp_path: Path) -> None:
    headers = HEADERS | {"Basal": HEADERS["Basal"] + ",,"}
    write(tmp_path, bom=True, headers=headers, Basal=["13/11/2023 00:00,0.8,R,,"])
    assert rows_of(read(tmp_path), "basal_u_h")["basal_u_h"].tolist() == [0.8]


# --- people that overlap -------------------------------------------------------------------------


def write_twins(root: Path) -> None:
    mine = ["08/10/2023 00:03,11.1", "08/10/2023 00:08,11.3"]
    write(root, "2303", Glucose=mine)
    later = ["31/12/2023 10:00,6.1", "01/12/2023 00:00,6.2"]
    write(
        root,
        "2304",
        Glucose=[mine[0], "08/10/2023 00:04,19", mine[1], *later],
        Nutrition=["09/10/2023 12:33,Lunch,Soup,40,1,1,1", " 31/12/2023 12:00,Lunch,Soup,30,1,1,1"],
    )


def test_2303_is_left_out_and_2304_begins_in_december(tmp_path: Path) -> None:
    write_twins(tmp_path)
    left_out = read(tmp_path, "2303")
    assert left_out.frame.empty
    assert counted(left_out, "person excluded: the readings are those of 2304") == 2
    used = read(tmp_path, "2304")
    assert used.frame["time"].min() == pd.Timestamp("2023-12-01")
    assert len(used.frame) == 3
    assert counted(used, "before the person's start") == 4


def test_the_overlap_is_there_for_who_asks(tmp_path: Path) -> None:
    write_twins(tmp_path)
    frames = [
        read(tmp_path, subject, exclude=[], starts={}).frame.dropna(subset="glucose_mg_dl")
        for subject in ("2303", "2304")
    ]
    assert [len(frame) for frame in frames] == [2, 5]
    assert len(frames[0].merge(frames[1], on=["time", "glucose_mg_dl"])) == 2


def test_people_may_be_given_as_numbers(tmp_path: Path) -> None:
    write(tmp_path)
    assert read(tmp_path, exclude=[2313]).frame.empty
    readings = read(tmp_path, starts={2313: "2023-11-14"})
    assert counted(readings, "before the person's start") == 3
    assert counted(read(tmp_path, exclude=["2313"]), "person excluded$") == 3


# --- rows that are not what they seem ------------------------------------------------------------


def test_a_reading_by_another_clock_is_dropped_where_rows_are_doubled(tmp_path: Path) -> None:
    rows = [
        "24/12/2023 10:24,8.3",
        *["24/12/2023 10:29,8.3"] * 2,
        "24/12/2023 10:33,8",  # the echo of 10:34
        *["24/12/2023 10:34,8"] * 2,
        "24/12/2023 10:37,7.7",  # 10:39, two minutes early
        "24/12/2023 10:39,7.7",
        "24/12/2023 10:39,7.6",  # doubled, and rounded otherwise
        "24/12/2023 10:42,6.0",  # no echo: another value
        *["24/12/2023 10:44,7.4"] * 2,
        "24/12/2023 10:45,7.4",  # no echo: after, not before
        "24/12/2023 10:50,7.4",
        *["24/12/2023 10:54,7.4"] * 2,  # 4 minutes on
        "24/12/2023 10:59,7.4",  # after the last doubled row
    ]
    write(tmp_path, Glucose=rows)
    readings = read(tmp_path)
    kept = " ".join(readings.frame["time"].dt.strftime("%H:%M"))
    assert kept == "10:24 10:29 10:34 10:39 10:39 10:42 10:44 10:45 10:50 10:54 10:59"
    assert counted(readings, "another clock") == 2
    assert counted(readings, "exact duplicate") == 4


def test_scans_near_the_sensors_history_are_kept(tmp_path: Path) -> None:
    rows = ["04/09/2023 00:03,4", "04/09/2023 00:16,4.1", "04/09/2023 00:18,4.1"]
    write(tmp_path, Glucose=rows)
    assert len(read(tmp_path).frame) == 3


def test_years_that_cannot_be_are_dropped(tmp_path: Path) -> None:
    meals = [
        "02/12/2033 20:00,Snack,Wine,70,1,1,1",
        "22/04/2204 11:45,Lunch,Sandwich,37,1,1,1",
        "31/08/2023 23:59,Lunch,Sandwich,37,1,1,1",
        "01/09/2023 00:00,Lunch,Sandwich,37,1,1,1",
        "30/09/2024 23:59,Lunch,Sandwich,37,1,1,1",
        "01/10/2024 00:00,Lunch,Sandwich,37,1,1,1",
    ]
    write(tmp_path, Nutrition=meals, Bolus=["14/01/2023 19:50,6", "13/11/2023 08:45,3"])
    readings = read(tmp_path)
    assert rows_of(readings, "carbs_g")["time"].astype(str).tolist() == [
        "2023-09-01 00:00:00",
        "2024-09-30 23:59:00",
    ]
    assert rows_of(readings, "bolus_u")["bolus_u"].tolist() == [3]
    assert counted(readings, "date outside the study") == 5


def test_a_meal_without_a_time_of_day_is_not_at_midnight(tmp_path: Path) -> None:
    write(tmp_path, Nutrition=["13/11/2023,Snack,CupCake,30.1,2,12.1,0.8"])
    readings = read(tmp_path)
    assert readings.frame["carbs_g"].isna().all()
    assert counted(readings, "without a time of day") == 1


def test_no_carbs_and_no_dose_are_no_entries(tmp_path: Path) -> None:
    write(
        tmp_path,
        Nutrition=["13/11/2023 10:00,Breakfast,Coffee,0,0,1,0", "13/11/2023 11:00,,,,,,"],
        Bolus=["13/11/2023 10:00,0", "13/11/2023 10:00,2.5", "13/11/2023 11:00,"],
    )
    readings = read(tmp_path)
    assert readings.frame["carbs_g"].isna().all()
    assert rows_of(readings, "bolus_u")["bolus_u"].tolist() == [2.5]


def test_a_days_long_acting_dose_among_the_boluses_is_none(tmp_path: Path) -> None:
    write(tmp_path, Bolus=["13/11/2023 17:49,68", "13/11/2023 18:49,38"])
    readings = read(tmp_path)
    assert rows_of(readings, "bolus_u")["bolus_u"].tolist() == [38]
    assert counted(readings, "bolus above 50 U") == 1


def test_a_reading_below_any_sensor_goes_in_the_grid(tmp_path: Path) -> None:
    write(tmp_path, Glucose=[*PLAIN, "13/11/2023 00:15,0.1"])
    series, tally = build_series({"t1d_uom": read(tmp_path)}, GridOptions())
    assert len(series) == 3
    assert tally.loc[tally["reason"].str.contains("out of any sensor"), "rows"].sum() == 1


# --- steps ---------------------------------------------------------------------------------------


def test_steps_count_when_their_interval_is_over(tmp_path: Path) -> None:
    rows = [
        steps_row("13/11/2023 00:00", 120),
        steps_row("13/11/2023 00:00", 0, "SEDENTARY"),
        steps_row("13/11/2023 00:00", 300, "RUNNING", lasts=1800),
    ]
    glucose = [f"13/11/2023 00:{5 * k:02d},7" for k in range(8)]
    write(tmp_path, Glucose=glucose, Activity=rows)
    series, _ = build_series({"t1d_uom": read(tmp_path)}, GridOptions())
    expected = [np.nan, np.nan, np.nan, 120, np.nan, np.nan, 300, np.nan]
    np.testing.assert_array_equal(series["steps"], expected)


def test_steps_of_a_watch_that_is_hours_off_are_dropped(tmp_path: Path) -> None:
    rows = [
        steps_row("13/11/2023 00:00", 10, offset=-28800),
        steps_row("13/11/2023 00:15", 20, offset=3600),
        steps_row("13/11/2023 00:30", 30),
        steps_row("13/11/2023 00:30", 30),
    ]
    write(tmp_path, Activity=rows)
    readings = read(tmp_path)
    assert rows_of(readings, "steps")["steps"].tolist() == [20, 30]
    assert counted(readings, "watch not on UK time") == 1
    assert counted(readings, "exact duplicate") == 1


# --- basal ---------------------------------------------------------------------------------------


def test_a_pumps_rate_stands_until_the_next_and_zero_is_a_rate(tmp_path: Path) -> None:
    glucose = [f"{day}/11/2023 {hour:02d}:00,7" for day in (13, 14, 15) for hour in range(24)]
    write(tmp_path, Glucose=glucose, Basal=["13/11/2023 08:00,0.9,R", "13/11/2023 10:00,0,R"])
    series, _ = build_series({"t1d_uom": read(tmp_path)}, GridOptions())
    at = series.set_index("time")["basal_u_h"]
    assert np.isnan(at["2023-11-13 08:00"])
    assert at["2023-11-13 08:05":"2023-11-13 10:00"].tolist() == pytest.approx([0.9] * 24)
    assert (at["2023-11-13 10:05":"2023-11-14 02:00"] == 0).all()  # 16 hours, the longest block
    assert at["2023-11-14 02:05":].isna().all()


def test_a_pump_that_stops_starts_and_stops_in_one_minute_has_stopped(tmp_path: Path) -> None:
    basal = ["17/12/2023 15:53,0,R", "17/12/2023 15:53,0.78,R", "17/12/2023 15:53,0,R"]
    glucose = [f"17/12/2023 {15 + k // 12}:{5 * (k % 12):02d},7" for k in range(24)]
    write(tmp_path, Glucose=glucose, Basal=basal)
    readings = read(tmp_path)
    assert counted(readings, "exact duplicate") == 1
    series, _ = build_series({"t1d_uom": readings}, GridOptions())
    assert (series.set_index("time")["basal_u_h"]["2023-12-17 15:55":] == 0).all()


DOSES = ["13/11/2023 22:00,24,L", "14/11/2023 20:00,12,L", "16/11/2023 06:00,48,L"]


def long_acting(root: Path, doses: list[str], days: int = 5) -> pd.Series:
    """The gridded rate, U/h, at the end of each 5-minute slot."""
    times = pd.date_range("2023-11-13", periods=days * 288, freq="5min")
    write(root, Glucose=[f"{time:%d/%m/%Y %H:%M},7" for time in times], Basal=doses)
    series, _ = build_series({"t1d_uom": read(root)}, GridOptions())
    return series.set_index("time")["basal_u_h"]


def test_a_long_acting_dose_is_spread_over_the_day_after_it(tmp_path: Path) -> None:
    rate = long_acting(tmp_path, DOSES)
    assert rate[:"2023-11-13 22:00"].isna().all()
    assert rate["2023-11-13 22:05":"2023-11-14 20:00"].tolist() == pytest.approx([1.0] * 264)
    assert rate["2023-11-14 20:05":"2023-11-14 22:00"].tolist() == pytest.approx([1.5] * 24)
    assert rate["2023-11-14 22:05":"2023-11-15 20:00"].tolist() == pytest.approx([0.5] * 264)
    assert rate["2023-11-15 20:05":"2023-11-16 06:00"].isna().all()  # no dose on record
    assert rate.sum() * 5 / 60 == pytest.approx(24 + 12 + 48, rel=1e-12)
    readings = read(tmp_path)
    assert counted(readings, "long-acting rate after an earlier dose ended") == 1
    assert counted(readings, "spread over 24 hours") == 3


def test_units_are_conserved_whenever_doses_are_given(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    minutes = np.sort(rng.integers(0, 4 * 1440, 12))
    moments = pd.Timestamp("2023-11-13") + pd.to_timedelta(minutes, unit="min")
    units = rng.integers(3, 60, len(moments))
    doses = [f"{t:%d/%m/%Y %H:%M},{u},L" for t, u in zip(moments, units, strict=True)]
    doses.append(doses[4])  # a row that stands twice was given once
    readings_of = long_acting(tmp_path, doses, days=6)
    assert np.nansum(readings_of) * 5 / 60 == pytest.approx(units.sum(), rel=1e-9)


def test_the_rate_follows_from_earlier_doses_alone(tmp_path: Path) -> None:
    whole = long_acting(tmp_path / "whole", DOSES)
    for known in range(len(DOSES)):
        early = long_acting(tmp_path / str(known), DOSES[:known])
        until = pd.to_datetime(DOSES[known].split(",")[0], dayfirst=True)
        pd.testing.assert_series_equal(early[:until], whole[:until])


def test_doses_a_day_apart_and_at_one_time(tmp_path: Path) -> None:
    doses = ["13/11/2023 22:00,24,L", "14/11/2023 22:00,10,L", "14/11/2023 22:00,14,L"]
    rate = long_acting(tmp_path, doses)
    assert rate["2023-11-13 22:05":"2023-11-15 22:00"].tolist() == pytest.approx([1.0] * 576)
    assert rate["2023-11-15 22:05":].isna().all()
    assert counted(read(tmp_path), "earlier dose ended") == 0


def test_a_dose_without_a_time_or_an_amount_is_no_dose(tmp_path: Path) -> None:
    readings_of = long_acting(tmp_path, [*DOSES[:1], ",30,L", "15/11/2023 10:00,,L"])
    assert np.nansum(readings_of) * 5 / 60 == pytest.approx(24)


@pytest.mark.parametrize("kind", ["X", ""])
def test_an_unknown_kind_of_insulin_is_refused(tmp_path: Path, kind: str) -> None:
    write(tmp_path, Basal=["13/11/2023 00:00,9,L", f"13/11/2023 10:00,9,{kind}"])
    with pytest.raises(InputError, match=r"UoMBasal2313.csv', column 'insulin_kind'.*'R'.*'L'"):
        read(tmp_path)


def test_both_kinds_in_one_person_are_refused(tmp_path: Path) -> None:
    write(tmp_path, Basal=["13/11/2023 00:00,9,L", "13/11/2023 10:00,0.9,R"])
    with pytest.raises(InputError, match=r"column 'insulin_kind': 'L', 'R'; a person has either"):
        read(tmp_path)


# --- files that cannot be read -------------------------------------------------------------------


@pytest.mark.parametrize("folder", FOLDERS.values())
def test_an_absent_folder_says_where_to_get_it(tmp_path: Path, folder: str) -> None:
    write(tmp_path)
    (tmp_path / "t1d_uom" / folder).rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=rf"no 't1d_uom/{folder}/.*10.5281/zenodo.*raw_root"):
        find_parts(["t1d_uom"], tmp_path, {})


def test_an_absent_column_is_named(tmp_path: Path) -> None:
    headers = HEADERS | {"Bolus": "bolus_ts,dose"}
    write(tmp_path, headers=headers, Bolus=["13/11/2023 10:00,2.5"])
    with pytest.raises(InputError, match=r"UoMBolus2313.csv': no column 'bolus_dose'; it has"):
        read(tmp_path)


def test_an_unreadable_number_is_named(tmp_path: Path) -> None:
    write(tmp_path, Glucose=[PLAIN[0], *PLAIN, "13/11/2023 00:15,seven"])
    with pytest.raises(InputError, match=r"column 'value', row 6: 'seven' is no number"):
        read(tmp_path)


@pytest.mark.parametrize("time", ["11/13/2023 00:15", "13/11/2023", "2023-11-13 00:15"])
def test_an_unreadable_time_is_named(tmp_path: Path, time: str) -> None:
    write(tmp_path, Glucose=[*PLAIN, f"{time},7"])
    with pytest.raises(InputError, match=r"column 'bg_ts', row 5: '.*' is no time written like"):
        read(tmp_path)
