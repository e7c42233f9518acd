"""Few-row files in the published format, each with an oddity of the published files."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.grid import GridOptions, build_series
from nocturnal_kedro.series.schema import SERIES, Readings
from nocturnal_kedro.sources import brown_2019, find_parts

CGM = [
    "7|1. Baseline|11DEC17:23:54:25|120",
    "7|1. Baseline|11DEC17:23:59:25|125",
    "7|2. Post Randomization|12DEC17:00:04:25|131",
    "21|2. Post Randomization|2018-03-01 08:00:02|99",
    "21|2. Post Randomization|2018-03-01 08:05:02|101",
]
BASAL = [
    "501|7|2017-12-11 23:50:00|0.8|",
    "502|7|2017-12-11 23:55:00|0|",
    "503|7|2017-12-12 00:00:00|1.25|",
]
BOLUS = ["901|7|2017-12-11 23:57:10|2.5||Standard"]


HEADS = {
    "cgm": "PtID|Period|DataDtTm|CGM",
    "Pump_BasalRateChange": "RecID|PtID|DataDtTm|CommandedBasalRate|DataDtTm_adjusted",
    "Pump_BolusDelivered": "RecID|PtID|DataDtTm|BolusAmount|DataDtTm_adjusted|BolusType",
}


def write(
    root: Path,
    cgm: list[str] = CGM,
    basal: list[str] = BASAL,
    bolus: list[str] = BOLUS,
    heads: dict[str, str] = HEADS,
) -> None:
    folder = root / brown_2019.FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for (name, head), rows in zip((HEADS | heads).items(), (cgm, basal, bolus), strict=True):
        (folder / f"{name}.txt").write_text("\n".join([head, *rows]) + "\n")


def read(root: Path, **options: Any) -> Readings:
    [part] = find_parts(["brown_2019"], root, {"brown_2019": options})
    return part.read()


def counted(readings: Readings, reason: str, subject: str = ".*") -> int:
    tally = readings.tally
    rows = tally["reason"].str.contains(reason) & tally["subject"].str.fullmatch(subject)
    return int(tally.loc[rows, "rows"].sum())


def series_of(readings: Readings) -> pd.DataFrame:
    return build_series({"brown_2019": readings}, GridOptions())[0]


def test_reads_the_published_columns(tmp_path: Path) -> None:
    write(tmp_path)
    readings = read(tmp_path)
    frame = readings.frame
    glucose = frame[frame["glucose_mg_dl"].notna()]
    assert glucose["subject"].tolist() == ["7", "7", "7", "21", "21"]
    assert glucose["glucose_mg_dl"].tolist() == [120, 125, 131, 99, 101]
    assert glucose["time"].iloc[[0, -1]].tolist() == [
        pd.Timestamp("2017-12-11 23:54:25"),
        pd.Timestamp("2018-03-01 08:05:02"),
    ]
    basal = frame[frame["basal_u_h"].notna()]
    assert basal["basal_u_h"].tolist() == [0.8, 0.0, 1.25]
    assert basal["basal_minutes"].unique().tolist() == [720.0]
    assert frame["bolus_u"].dropna().tolist() == [2.5]
    assert counted(readings, "rows in cgm.txt", "7") == 3
    assert counted(readings, "readings of '1. Baseline'") == 2  # all periods are kept


@pytest.mark.parametrize(
    "written",
    [
        "11DEC17:23:59:25",
        "11dec17:23:59:25",
        "11Dec2017:23:59:25",
        "2017-12-11 23:59:25",
        "2017-12-11T23:59:25",
        " 11DEC17:23:59:25",
        "2017-12-11 23:59:25.000",
        "11DEC2017:23:59:25.000",
    ],
)
def test_every_form_of_a_time(tmp_path: Path, written: str) -> None:
    write(tmp_path, cgm=[f"7|1. Baseline|{written}|120"], basal=[f"1|7|{written}|0.5|"])
    times = read(tmp_path).frame["time"]
    assert set(times[:2]) == {pd.Timestamp("2017-12-11 23:59:25")}


def test_a_day_without_a_time_of_day_is_midnight(tmp_path: Path) -> None:
    write(tmp_path, basal=["1|7|2017-12-12|0.5|"])
    frame = read(tmp_path).frame
    assert frame.loc[frame["basal_u_h"].notna(), "time"].tolist() == [pd.Timestamp("2017-12-12")]


def test_the_fourth_column_is_glucose_whatever_its_name(tmp_path: Path) -> None:
    for head, end in (("PtID|Period|DataDtTm|Value", ""), ("PtID|Period|DataDtTm||", "|")):
        rows = [row + end for row in CGM]
        write(tmp_path, cgm=rows, heads={"cgm": head})
        assert read(tmp_path).frame["glucose_mg_dl"].sum() == 576


def test_words_at_the_end_of_the_range(tmp_path: Path) -> None:
    write(tmp_path, cgm=[*CGM, "7|1. Baseline|12DEC17:00:09:25|LOW", "7||12DEC17:00:14:25|High"])
    series = series_of(read(tmp_path))
    assert series.loc[series["glucose_clipped"], "glucose_mg_dl"].tolist() == [40, 400]


def test_a_point_is_an_empty_cell(tmp_path: Path) -> None:
    write(tmp_path, cgm=[*CGM, "7|.|12DEC17:00:09:25|."], basal=["1|7|2017-12-11 23:50:00|0.8|."])
    frame = read(tmp_path).frame
    assert frame["glucose_mg_dl"].count() == 5
    assert frame["basal_u_h"].count() == 1


def test_adjusted_time_goes_before_the_raw_one(tmp_path: Path) -> None:
    basal = ["1|7|2010-01-05 10:00:00|0.8|2017-12-11 23:50:00", "2|7|2017-12-11 23:55:00|0.9| "]
    bolus = ["1|7|broken clock|2|11DEC17:23:57:00|Standard"]
    write(tmp_path, basal=basal, bolus=bolus)
    readings = read(tmp_path)
    assert readings.frame["time"].dt.year.min() == 2017
    assert counted(readings, "Pump_BasalRateChange.txt taken from DataDtTm_adjusted", "7") == 1
    assert counted(readings, "Pump_BolusDelivered.txt taken from DataDtTm_adjusted", "7") == 1


def test_records_that_stand_twice_count_once(tmp_path: Path) -> None:
    bolus = [
        "1|7|2017-12-11 23:57:00|2||Standard",
        "1|7|2017-12-11 23:58:00|2||Standard",  # its RecID again
        "2|7|11DEC17:23:57:00|2||Standard",  # another RecID, the same dose
        "3|7|2017-12-11 23:57:00|2||Extended",  # the other part of a dual bolus
        "4|7|2017-12-11 23:57:00|2.5||Standard",  # another dose
        "|7|2017-12-11 23:59:00|1||Standard",
        "|7|2017-12-11 23:59:30|1||Standard",  # no RecID is not the same RecID
    ]
    write(tmp_path, basal=[*BASAL, BASAL[0]], bolus=bolus)
    readings = read(tmp_path)
    assert readings.frame["bolus_u"].sum() == 2 + 2 + 2.5 + 1 + 1
    assert counted(readings, "repeated in Pump_BolusDelivered.txt", "7") == 2
    assert counted(readings, "repeated in Pump_BasalRateChange.txt", "7") == 1


def test_one_record_number_of_two_people_is_two_records(tmp_path: Path) -> None:
    write(tmp_path, bolus=["1|7|2017-12-11 23:57:00|2||", "1|21|2018-03-01 08:03:00|3||"])
    assert read(tmp_path).frame["bolus_u"].sum() == 5


def test_extended_and_empty_boluses_are_noted(tmp_path: Path) -> None:
    bolus = ["1|7|2017-12-11 23:57:00|2||Extended", "2|7|2017-12-11 23:58:00|0||Standard"]
    write(tmp_path, bolus=bolus)
    readings = read(tmp_path)
    assert readings.frame["bolus_u"].dropna().tolist() == [2.0]
    assert counted(readings, "extended", "7") == counted(readings, "0 units", "7") == 1


def test_person_without_a_pump_log_has_missing_insulin(tmp_path: Path) -> None:
    write(tmp_path)
    readings = read(tmp_path)
    series = series_of(readings)
    SERIES.validate(series)
    of_21 = series[series["subject"] == "21"]
    assert of_21[["basal_u_h", "bolus_u"]].isna().all(axis=None)
    assert counted(readings, "without a pump log", "21") == 1
    assert counted(readings, "without a pump log", "7") == 0


def test_a_rate_of_0_is_a_rate(tmp_path: Path) -> None:
    write(tmp_path)
    series = series_of(read(tmp_path))
    rates = series.loc[series["subject"] == "7", "basal_u_h"]
    np.testing.assert_allclose(rates, [0.8, 0.0, 1.25])


def test_a_silent_pump_has_lost_its_log_after_some_hours(tmp_path: Path) -> None:
    times = pd.date_range("2017-12-11 20:00", periods=24 * 12, freq="5min")
    cgm = [f"7|1. Baseline|{time}|120" for time in times]
    write(tmp_path, cgm=cgm, basal=["1|7|2017-12-11 20:00:00|0.6|"], bolus=BOLUS)
    assert series_of(read(tmp_path))["basal_u_h"].count() == 12 * 12
    assert series_of(read(tmp_path, basal_longest_hours=2))["basal_u_h"].count() == 2 * 12


def test_rows_that_name_nobody_are_dropped_and_counted(tmp_path: Path) -> None:
    write(tmp_path, cgm=[*CGM, "|1. Baseline|11DEC17:23:59:25|90"])
    readings = read(tmp_path)
    assert counted(readings, "cgm.txt without a PtID", "") == 1
    assert 90 not in readings.frame["glucose_mg_dl"].to_numpy()


def test_other_encodings_and_line_ends(tmp_path: Path) -> None:
    write(tmp_path)
    expected = read(tmp_path)
    for name, encoding in (("cgm", "utf-16"), ("Pump_BolusDelivered", "utf-8-sig")):
        file = tmp_path / brown_2019.FOLDER / f"{name}.txt"
        file.write_bytes(file.read_text().replace("\n", "\r\n").encode(encoding))
    pd.testing.assert_frame_equal(read(tmp_path).frame, expected.frame)


@pytest.mark.parametrize("name", ["cgm", "Pump_BasalRateChange", "Pump_BolusDelivered"])
def test_absent_file_says_where_to_get_it(tmp_path: Path, name: str) -> None:
    write(tmp_path)
    (tmp_path / brown_2019.FOLDER / f"{name}.txt").unlink()
    with pytest.raises(InputError, match=rf"no 'brown_2019/Data Files/{name}.txt' under .*JAEB"):
        read(tmp_path)


def test_absent_column_names_file_and_column(tmp_path: Path) -> None:
    write(tmp_path, heads={"Pump_BasalRateChange": "RecID|PtID|DataDtTm|Rate|DataDtTm_adjusted"})
    with pytest.raises(
        InputError, match=r"BasalRateChange.txt': no column 'CommandedBasalRate'; it has:.*Rate"
    ):
        read(tmp_path)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("PtID|Period|DataDtTm", "no column 'column 4'"),
        ("Period|CGM|DataDtTm|PtID", "the fourth column is 'PtID', where glucose"),
        ("", "no column 'PtID'"),
    ],
)
def test_a_fourth_column_that_cannot_be_glucose(tmp_path: Path, head: str, message: str) -> None:
    write(tmp_path, heads={"cgm": head})
    with pytest.raises(InputError, match=rf"cgm.txt': {message}"):
        read(tmp_path)


def test_an_unreadable_number_is_named(tmp_path: Path) -> None:
    write(tmp_path, cgm=[*CGM, "7|1. Baseline|12DEC17:00:09:25|much"])
    with pytest.raises(InputError, match=r"cgm.txt', column 'CGM', row 7: 'much' is no number"):
        read(tmp_path)
    write(tmp_path, bolus=["1|7|2017-12-11 23:57:00|2,5||Standard"])
    with pytest.raises(InputError, match=r"column 'BolusAmount', row 2: '2,5' is no number"):
        read(tmp_path)


def test_an_unreadable_time_is_named(tmp_path: Path) -> None:
    write(tmp_path, cgm=[*CGM, "7|1. Baseline|12/12/2017 00:09|120"])
    with pytest.raises(InputError, match=r"'DataDtTm', row 7: '12/12/2017 00:09' is no time"):
        read(tmp_path)
    write(tmp_path, basal=[*BASAL, "9|7|2017-12-11 23:50:00|0.8|later"])
    with pytest.raises(InputError, match=r"'DataDtTm_adjusted', row 5: 'later' is no time"):
        read(tmp_path)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    write(tmp_path, cgm=[*CGM, "7|1. Base"])
    with pytest.raises(InputError, match=r"cgm.txt'.*cut short or damaged. Get it again"):
        read(tmp_path)
    write(tmp_path, basal=[])
    with pytest.raises(InputError, match=r"BasalRateChange.txt': no row below the names"):
        read(tmp_path)


def test_mmol_in_the_glucose_column_is_refused(tmp_path: Path) -> None:
    write(tmp_path, cgm=["7|1. Baseline|11DEC17:23:54:25|6.7"])
    with pytest.raises(InputError, match=r"subject '7': median glucose 6.7 .* looks like mmol/L"):
        series_of(read(tmp_path))


START = pd.Timestamp("2018-05-01")
SECONDS = st.integers(0, 24 * 3600)


@settings(max_examples=25)
@given(
    changes=st.dictionaries(SECONDS, st.integers(0, 3000), min_size=1, max_size=30),
    doses=st.dictionaries(SECONDS, st.integers(1, 2000), max_size=20),
    longest_hours=st.sampled_from([0.5, 4.0, 12.0]),
)
def test_units_are_conserved_and_0_stays_0(
    tmp_path_factory: pytest.TempPathFactory,
    changes: dict[int, int],
    doses: dict[int, int],
    longest_hours: float,
) -> None:
    """The gridded series holds the units of the raw files, and 0 wherever the pump gave nothing."""
    at = sorted(changes)
    rates = np.array([changes[second] / 1000 for second in at])
    lasts = np.minimum(np.diff(at, append=np.inf), 3600 * longest_hours)
    cgm = [f"1|x|{START + pd.Timedelta(minutes=5 * k)}|{100 + k % 50}" for k in range(-2, 440)]
    basal = [
        f"{k}|1|{START + pd.Timedelta(seconds=s)}|{changes[s] / 1000}|" for k, s in enumerate(at)
    ]
    bolus = [
        f"{k}|1|{START + pd.Timedelta(seconds=s)}|{dose / 100}||Standard"
        for k, (s, dose) in enumerate(doses.items())
    ]
    root = tmp_path_factory.mktemp("raw")
    write(root, cgm=cgm, basal=basal, bolus=bolus or BOLUS)
    series = series_of(read(root, basal_longest_hours=longest_hours))

    assert series["basal_u_h"].sum() * 5 / 60 == pytest.approx(
        (rates * lasts).sum() / 3600, abs=1e-6
    )
    assert series["bolus_u"].sum() == pytest.approx(sum(doses.values()) / 100, abs=1e-6)
    ends = (series["time"] - START).dt.total_seconds().to_numpy()
    for start, stands in zip(np.array(at)[rates == 0], lasts[rates == 0], strict=True):
        within = (ends - 300 >= start) & (ends <= start + stands)
        assert (series.loc[within, "basal_u_h"] == 0).all()
