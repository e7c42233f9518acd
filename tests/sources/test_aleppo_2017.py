"""Few-row tables in the published format, each with an oddity of the published tables."""

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
from nocturnal_kedro.sources import aleppo_2017, find_parts

FIRST = "RecID|ParentHDeviceUploadsID|PtID|SiteID|DeviceDtTmDaysFromEnroll|DeviceTm"
HEADS = {
    "HDeviceCGM": f"{FIRST}|DexInternalDtTmDaysFromEnroll|DexInternalTm|RecordType|GlucoseValue",
    "HDeviceBasal": (
        f"{FIRST}|BasalType|Duration|ExpectedDuration|Percnt|Rate|SuprBasalType|SuprDuration|SuprRate"
    ),
    "HDeviceBolus": (
        f"{FIRST}|BolusType|InjValue|Insulin|Normal|ExpectedNormal|Extended|ExpectedExtended"
        "|Duration|ExpectedDuration"
    ),
    "HDeviceWizard": (
        f"{FIRST.replace('PtID', 'PtId')}|RecommendedCarb|RecommendedCorrection|RecommendedNet"
        "|BgInput|CarbInput|InsulinOnBoard|InsulinCarbRatio|InsulinSensitivity"
    ),
}
HOUR_MS = 3_600_000


def moment(day: int, clock: str, person: int = 263, record: int = 1) -> str:
    return f"{record}|9|{person}|15|{day}|{clock}"


def cgm(day: int, clock: str, glucose: Any, kind: str = "CGM", person: int = 263) -> str:
    return f"{moment(day, clock, person)}|{day}|{clock}|{kind}|{glucose}"


def basal(
    day: int,
    clock: str,
    rate: Any,
    duration: Any = HOUR_MS,
    kind: str = "scheduled",
    supr: str = "||",
    **who: int,
) -> str:
    return f"{moment(day, clock, **who)}|{kind}|{duration}|||{rate}|{supr}"


def bolus(
    day: int, clock: str, normal: Any, extended: Any = "", duration: Any = "", **who: int
) -> str:
    given_and_expected = f"{normal}|9.9|{extended}|8.8|{duration}|7200000"
    return f"{moment(day, clock, **who)}|normal|||{given_and_expected}"


def wizard(day: int, clock: str, carbs: Any, person: int = 263) -> str:
    return f"{moment(day, clock, person)}|3.5|.00|3.5|8.38|{carbs}|.00|7.00|2.22"


CGM = [cgm(0, f"12:{minute:02d}:41", f"{100 + minute}.00") for minute in range(0, 60, 5)]
BASAL = [basal(0, "12:00:00", ".650", 1_800_000)]
BOLUS = [bolus(0, "12:10:00", "3.50")]
WIZARD = [wizard(0, "12:10:00", "25.00")]
NOON = pd.Timestamp("2020-01-01 12:00")


def write(
    root: Path,
    cgm: list[str] = CGM,
    basal: list[str] = BASAL,
    bolus: list[str] = BOLUS,
    wizard: list[str] = WIZARD,
    heads: dict[str, str] = HEADS,
) -> None:
    folder = root / aleppo_2017.FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    tables = zip((HEADS | heads).items(), (cgm, basal, bolus, wizard), strict=True)
    for (name, head), rows in tables:
        (folder / f"{name}.txt").write_text("\r\n".join([head, *rows]) + "\r\n", newline="")


def read(root: Path, **options: Any) -> Readings:
    [part] = find_parts(["aleppo_2017"], root, {"aleppo_2017": options})
    return part.read()


def counted(readings: Readings, reason: str, effect: str = ".*") -> int:
    tally = readings.tally
    rows = tally["reason"].str.contains(reason) & tally["effect"].str.fullmatch(effect)
    return int(tally.loc[rows, "rows"].sum())


def series_of(readings: Readings) -> pd.DataFrame:
    return build_series({"aleppo_2017": readings}, GridOptions())[0]


def test_reads_the_published_columns(tmp_path: Path) -> None:
    write(tmp_path)
    readings = read(tmp_path)
    frame = readings.frame
    assert frame["subject"].unique().tolist() == ["263"]
    assert frame["glucose_mg_dl"].dropna().tolist() == list(range(100, 160, 5))
    assert frame["time"].iloc[0] == pd.Timestamp("2020-01-01 12:00:41")
    for column, value in (
        ("basal_u_h", 0.65),
        ("basal_minutes", 30),
        ("bolus_u", 3.5),
        ("carbs_g", 25),
    ):
        assert frame[column].dropna().tolist() == [value]
    assert counted(readings, "rows in HDeviceCGM.txt", "in") == 12
    SERIES.validate(series_of(readings))


@pytest.mark.parametrize("clock", ["13:05:09", "01:05:09 PM", "1:05:09 pm", " 13:05:09 "])
def test_every_form_of_a_time_of_day(tmp_path: Path, clock: str) -> None:
    write(tmp_path, cgm=[cgm(31, clock, 120)])
    assert read(tmp_path).frame["time"].iloc[0] == pd.Timestamp("2020-02-01 13:05:09")


def test_only_cgm_from_enrolment_on_is_kept(tmp_path: Path) -> None:
    run_in = [cgm(-6, "12:00:41", 162), cgm(-1, "23:59:59", 90)]
    others = [cgm(0, "12:02:00", 155, "Calibration"), cgm(0, "12:03:00", 156, "")]
    write(
        tmp_path,
        cgm=[*run_in, *others, *CGM],
        basal=[basal(-3, "08:00:00", 9), *BASAL],
        bolus=[bolus(-3, "08:00:00", 9), *BOLUS],
        wizard=[wizard(-3, "08:00:00", 90), *WIZARD],
    )
    readings = read(tmp_path)
    assert readings.frame["glucose_mg_dl"].max() == 155  # that of the last reading, at 12:55
    assert readings.frame["time"].min() >= pd.Timestamp("2020-01-01")
    assert counted(readings, "without CGM", "dropped") == 2
    for table, rows in (("CGM", 2), ("Basal", 1), ("Bolus", 1), ("Wizard", 1)):
        assert counted(readings, f"HDevice{table}.txt before enrolment", "dropped") == rows


def test_sensor_values_beyond_the_range_are_clipped(tmp_path: Path) -> None:
    write(tmp_path, cgm=[*CGM, cgm(0, "13:00:41", "39.00"), cgm(0, "13:05:41", "401.00")])
    series = series_of(read(tmp_path))
    assert series.loc[series["glucose_clipped"], "glucose_mg_dl"].tolist() == [40, 400]


@pytest.mark.parametrize("rate", ["", ".000", "0.4"])
def test_suspended_is_0_and_the_suppressed_rate_is_not_given(tmp_path: Path, rate: str) -> None:
    suspended = basal(0, "12:30:00", rate, 900_000, "suspend", supr="scheduled|900000|.650")
    write(tmp_path, basal=[*BASAL, suspended])
    readings = read(tmp_path)
    rates = series_of(readings)["basal_u_h"].to_numpy()
    np.testing.assert_allclose(rates[1:7], 0.65)
    assert (rates[7:10] == 0).all()
    assert np.isnan(rates[10:]).all()
    assert counted(readings, "suspensions") == (rate != ".000")


def test_temporary_rate_is_delivered_and_the_schedule_below_is_not(tmp_path: Path) -> None:
    temp = basal(0, "12:30:00", ".325", 900_000, "temp", supr="scheduled|900000|.650")
    untold = basal(0, "12:45:00", "", 900_000, "temp", supr="scheduled|900000|.650")
    write(tmp_path, basal=[*BASAL, temp, untold])
    readings = read(tmp_path)
    rates = series_of(readings)["basal_u_h"].to_numpy()
    np.testing.assert_allclose(rates[7:10], 0.325)
    assert np.isnan(rates[10:]).all()
    assert counted(readings, "records without a rate") == 1


def test_absurd_and_absent_durations(tmp_path: Path) -> None:
    rows = [
        basal(0, "12:00:00", 0.5, 250 * 24 * HOUR_MS),
        basal(0, "12:20:00", 0.6, ""),
        basal(0, "12:40:00", 0.7, 0),
    ]
    write(tmp_path, basal=rows)
    readings = read(tmp_path, basal_longest_hours=12)
    known = readings.frame[readings.frame["basal_u_h"].notna()]
    assert known["basal_u_h"].tolist() == [0.5, 0.6]
    assert known["basal_minutes"].tolist() == [720, 720]
    for reason in ("over 12 h, cut", "no time, set missing", "without a duration"):
        assert counted(readings, reason) == 1


def test_the_newest_of_several_rates_at_one_time_stands(tmp_path: Path) -> None:
    rows = [basal(0, "12:00:00", 0.9, record=12), basal(0, "12:00:00", 0.5, record=11)]
    write(tmp_path, basal=rows)
    readings = read(tmp_path)
    np.testing.assert_allclose(series_of(readings)["basal_u_h"].iloc[1:], 0.9)
    assert counted(readings, "newer record") == 1


def test_durations_in_minutes_are_refused(tmp_path: Path) -> None:
    write(tmp_path, basal=[basal(0, f"{hour}:00:00", 0.5, 60) for hour in range(10, 14)])
    with pytest.raises(InputError, match=r"column 'Duration': .* milliseconds are expected"):
        read(tmp_path)


def test_extended_bolus_is_delivered_over_its_duration(tmp_path: Path) -> None:
    write(tmp_path, bolus=[bolus(0, "12:10:00", 1.5, 2.4, 12 * 60_000)])
    readings = read(tmp_path)
    units = series_of(readings).set_index("time")["bolus_u"]
    np.testing.assert_allclose(
        units[NOON + pd.Timedelta("10min") : NOON + pd.Timedelta("30min")], [1.5, 1, 1, 0.4, 0]
    )
    assert counted(readings, "5-minute parts", "added") == 3


@pytest.mark.parametrize("duration", ["", 0, 9 * HOUR_MS])
def test_extended_bolus_of_unknown_duration_is_given_at_its_time(
    tmp_path: Path, duration: Any
) -> None:
    write(tmp_path, bolus=[bolus(0, "12:10:00", 1.5, 2.4, duration)])
    readings = read(tmp_path)
    assert readings.frame["bolus_u"].dropna().tolist() == [3.9]
    assert counted(readings, "given at their time") == 1


def test_what_was_expected_is_not_delivered(tmp_path: Path) -> None:
    write(tmp_path, bolus=[bolus(0, "12:10:00", "", "", ""), bolus(0, "12:20:00", 0)])
    assert read(tmp_path).frame["bolus_u"].isna().all()


def test_doses_that_stand_twice_were_given_once(tmp_path: Path) -> None:
    doses = [bolus(0, "12:10:00", "2.0", record=n) for n in (1, 2)]
    meals = [wizard(0, "12:10:00", "30"), wizard(0, "12:10:00", "30.00")]
    write(tmp_path, bolus=[*doses, bolus(0, "12:10:00", 0.5)], wizard=meals)
    readings = read(tmp_path)
    assert readings.frame["bolus_u"].sum() == 2.5
    assert readings.frame["carbs_g"].sum() == 30
    assert counted(readings, "HDeviceBolus.txt repeated", "dropped") == 1
    assert counted(readings, "HDeviceWizard.txt repeated", "dropped") == 1


def test_carbs_in_milligrams_are_found_by_their_size(tmp_path: Path) -> None:
    meals = [
        wizard(0, f"12:{minute}:00", carbs)
        for minute, carbs in ((10, 25_000), (20, 0), (30, 8_500), (40, ""))
    ]
    write(tmp_path, wizard=meals)
    readings = read(tmp_path)
    np.testing.assert_array_equal(readings.frame["carbs_g"].dropna(), [25, 8.5])
    assert counted(readings, "inferred to be milligrams", "changed") == 2
    assert counted(readings, "without carbs") == 2  # 0 carbs is no meal


def test_person_without_a_pump_has_missing_insulin(tmp_path: Path) -> None:
    write(tmp_path, cgm=[*CGM, *(row.replace("|263|", "|101|") for row in CGM)])
    series = series_of(read(tmp_path))
    assert series.loc[series["subject"] == "101", ["basal_u_h", "bolus_u"]].isna().all(axis=None)


def test_a_row_without_a_time_is_counted_by_the_grid(tmp_path: Path) -> None:
    row = moment(0, "12:03:00").replace("|0|", "||") + "|||CGM|99"
    write(tmp_path, cgm=[*CGM, row, cgm(0, "", 98)])
    _, tally = build_series({"aleppo_2017": read(tmp_path)}, GridOptions())
    assert tally.loc[tally["reason"] == "rows without a time", "rows"].sum() == 2


@pytest.mark.parametrize("name", ["HDeviceCGM", "HDeviceBolus", "HDeviceWizard"])
def test_absent_table_says_where_to_get_it(tmp_path: Path, name: str) -> None:
    write(tmp_path)
    (tmp_path / aleppo_2017.FOLDER / f"{name}.txt").unlink()
    with pytest.raises(InputError, match=rf"no 'aleppo_2017/Data Tables/{name}.txt' .*JAEB"):
        read(tmp_path)


def test_a_release_without_basal_must_be_told(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / aleppo_2017.FOLDER / "HDeviceBasal.txt").unlink()
    with pytest.raises(InputError, match=r"no '.*HDeviceBasal.txt' under .*basal=false"):
        read(tmp_path)
    series = series_of(read(tmp_path, basal=False))
    assert series["basal_u_h"].isna().all()
    assert series["bolus_u"].sum() == 3.5


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("HDeviceCGM", "RecordType"),
        ("HDeviceBasal", "Duration"),
        ("HDeviceBolus", "Extended"),
        ("HDeviceWizard", "PtId"),
    ],
)
def test_absent_column_names_table_and_column(tmp_path: Path, table: str, column: str) -> None:
    head = HEADS[table].replace(f"|{column}|", "|Other|", 1)
    write(tmp_path, heads={table: head})
    with pytest.raises(
        InputError, match=rf"(?i){table}.txt': no column '{column}'; it has:.*Other"
    ):
        read(tmp_path)


def test_an_unreadable_number_is_named(tmp_path: Path) -> None:
    write(tmp_path, basal=[*BASAL, basal(0, "12:30:00", "much")])
    with pytest.raises(InputError, match=r"HDeviceBasal.txt', column 'Rate', row 3: 'much' is no"):
        read(tmp_path)
    write(tmp_path, cgm=[*CGM, cgm(0, "13:00:41", "high-ish")])
    with pytest.raises(InputError, match=r"column 'GlucoseValue', row 14: 'high-ish' is no number"):
        read(tmp_path)


def test_an_unreadable_time_is_named(tmp_path: Path) -> None:
    write(tmp_path, cgm=[*CGM, cgm(0, "noon", 120)])
    with pytest.raises(InputError, match=r"column 'DeviceTm', row 14: 'noon' is no time written"):
        read(tmp_path)
    write(tmp_path, bolus=[bolus(0, "12:10:00", 1).replace("|0|12", "|first|12")])
    with pytest.raises(InputError, match=r"'DeviceDtTmDaysFromEnroll', row 2: 'first' is no num"):
        read(tmp_path)


def test_a_table_cut_short_is_refused(tmp_path: Path) -> None:
    write(tmp_path, bolus=[*BOLUS, "12|9|263|15|0"])
    with pytest.raises(InputError, match=r"HDeviceBolus.txt'.*cut short or damaged. Get it again"):
        read(tmp_path)


SECONDS = st.integers(0, 24 * 3600 - 1)
DOSE = st.tuples(st.integers(0, 900), st.integers(0, 900), st.integers(0, 10 * 3600))


def clock(second: int) -> str:
    return f"{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}"


@settings(max_examples=25)
@given(
    rates=st.dictionaries(
        SECONDS,
        st.tuples(st.integers(0, 3000), st.integers(60, 30 * 3600)),
        min_size=1,
        max_size=20,
    ),
    doses=st.dictionaries(SECONDS, DOSE, max_size=15),
)
def test_units_are_conserved_and_0_stays_0(
    tmp_path_factory: pytest.TempPathFactory,
    rates: dict[int, tuple[int, int]],
    doses: dict[int, tuple[int, int, int]],
) -> None:
    """The gridded series holds the units of the raw tables, and 0 where the pump gave nothing."""
    at = sorted(rates)
    rate = np.array([rates[second][0] / 1000 for second in at])
    said = np.array([rates[second][1] for second in at])
    lasts = np.minimum(np.minimum(np.diff(at, append=np.inf), said), 24 * 3600)
    root = tmp_path_factory.mktemp("raw")
    write(
        root,
        cgm=[cgm(s // 86400, clock(s % 86400), 100) for s in range(0, 3 * 86400, 300)],
        basal=[
            basal(0, "00:00:00", 0, 0),
            *(basal(0, clock(s), rates[s][0] / 1000, 1000 * rates[s][1]) for s in at),
        ],
        bolus=[
            bolus(0, clock(s), now / 100, later / 100, 1000 * seconds)
            for s, (now, later, seconds) in doses.items()
        ]
        or [bolus(0, "00:00:00", 0)],
    )
    series = series_of(read(root))

    assert series["basal_u_h"].sum() * 5 / 60 == pytest.approx(
        (rate * lasts).sum() / 3600, abs=1e-6
    )
    units = sum(now + later for now, later, _ in doses.values()) / 100
    assert series["bolus_u"].sum() == pytest.approx(units, abs=1e-6)
    ends = (series["time"] - pd.Timestamp("2020-01-01")).dt.total_seconds().to_numpy()
    for start, stands in zip(np.array(at)[rate == 0], lasts[rate == 0], strict=True):
        within = (ends - 300 >= start) & (ends <= start + stands)
        assert (series.loc[within, "basal_u_h"] == 0).all()
