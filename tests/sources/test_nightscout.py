"""Exports in Nightscout's own format: uploads twice, error codes, temporary basals, clocks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.grid import GridOptions, build_series
from nocturnal_kedro.series.schema import SERIES, Readings
from nocturnal_kedro.sources import Part, find_parts

Objects = list[dict[str, Any]]
DAY = "2024-02-01"  # winter: New York is 300 minutes behind UTC
BERLIN = {"zone": "Europe/Berlin"}  # then 60 minutes ahead


def ms(time: str) -> int:
    return int(pd.Timestamp(time, tz="UTC").timestamp() * 1000)


def sgv(clock: str, value: Any = 120, offset: int | None = -300, **more: Any) -> dict[str, Any]:
    time = f"{DAY} {clock}" if len(clock) == 5 else clock
    entry = {
        "_id": f"e{time}{value}",
        "device": "share2",
        "date": ms(time),
        "dateString": f"{time.replace(' ', 'T')}:00.000Z",
        "sgv": value,
        "direction": "Flat",
        "type": "sgv",
        "utcOffset": offset,
    }
    return {name: cell for name, cell in (entry | more).items() if cell is not None}


def event(clock: str, kind: str, **more: Any) -> dict[str, Any]:
    time = f"{DAY}T{clock}:00.000Z" if len(clock) == 5 else clock
    return {"_id": f"t{time}{kind}{more}", "eventType": kind, "created_at": time} | more


def every_five_minutes(start: str = "00:00", count: int = 288, **more: Any) -> Objects:
    times = pd.date_range(f"{DAY} {start}", periods=count, freq="5min")
    return [sgv(f"{time:%Y-%m-%d %H:%M}", 120, **more) for time in times]


def write(
    root: Path, entries: Any, treatments: Any = None, person: str = "anna", **options: Any
) -> list[Part]:
    folder = root / "nightscout" / person
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "entries.json").write_text(json.dumps(entries))
    if treatments is not None:
        (folder / "treatments.json").write_text(json.dumps(treatments))
    return find_parts(["nightscout"], root, {"nightscout": options})


def read(root: Path, entries: Any, treatments: Any = None, **options: Any) -> Readings:
    [part] = write(root, entries, treatments, **options)
    return part.read()


def counted(readings: Readings, effect: str) -> dict[str, int]:
    tally = readings.tally[readings.tally["effect"] == effect]
    return tally.groupby("reason")["rows"].sum().to_dict()


def rates(readings: Readings) -> list[tuple[str, float, float]]:
    known = readings.frame[readings.frame["basal_u_h"].notna()].sort_values("time")
    cells = known[["time", "basal_u_h", "basal_minutes"]].itertuples(index=False)
    return [(f"{t:%H:%M}", round(rate, 9), minutes) for t, rate, minutes in cells]


def amounts(readings: Readings, column: str) -> dict[str, float]:
    known = readings.frame[readings.frame[column].notna()]
    return {
        f"{time:%H:%M}": value for time, value in zip(known["time"], known[column], strict=True)
    }


def test_reads_glucose_in_the_local_time_of_utc_offset(tmp_path: Path) -> None:
    entries = [sgv("13:10", 131), sgv("13:05", 130), sgv("13:00", 125)]  # newest first
    readings = read(tmp_path, entries)
    assert amounts(readings, "glucose_mg_dl") == {"08:00": 125, "08:05": 130, "08:10": 131}
    assert readings.frame["subject"].unique().tolist() == ["anna"]
    assert counted(readings, "in") == {"entries": 3}
    assert counted(readings, "noted") == {"no treatments.json: insulin and carbs missing": 1}
    series, _ = build_series({"nightscout": readings}, GridOptions())
    SERIES.validate(series)
    assert series[["bolus_u", "carbs_g", "basal_u_h"]].isna().all(axis=None)


def test_a_folder_is_a_person_and_a_part(tmp_path: Path) -> None:
    write(tmp_path, [sgv("13:00")], [])
    parts = write(tmp_path, [sgv("13:00")], person="ben")
    assert [[file.name for file in part.files] for part in parts] == [
        ["entries.json", "treatments.json"],
        ["entries.json"],
    ]
    assert [part.read().frame["subject"].tolist() for part in parts] == [["anna"], ["ben"]]


def test_what_is_no_reading_is_counted(tmp_path: Path) -> None:
    entries = [
        sgv("13:00", 120),
        sgv("13:05", 10),  # code: power deviation
        sgv("13:10", 38),  # code: no estimate
        sgv("13:15", 39),  # low
        sgv("13:20", 500, type="mbg", sgv=None, mbg=140),
        sgv("13:25", 1, type="cal", sgv=None),
        sgv("13:30", 1, type=None, sgv=None),
        sgv("13:35", 121, type=None),  # an old uploader without types
        sgv("13:40", "HIGH"),
    ]
    readings = read(tmp_path, entries)
    assert readings.frame["glucose_mg_dl"].tolist() == [120, 39, 121, 401]
    assert counted(readings, "dropped") == {
        "codes of sensor errors (sgv below 39)": 2,
        "finger sticks (mbg)": 1,
        "entries that are no reading (cal)": 1,
        "entries that are no reading (untyped)": 1,
    }


def test_uploads_twice_count_once(tmp_path: Path) -> None:
    bolus = event("13:00", "Meal Bolus", insulin=4, carbs=40)
    entries = [sgv("13:00", 120, _id="a"), sgv("13:00", 120, _id="b"), sgv("13:05", 9, _id="a")]
    treatments = [
        bolus,
        bolus | {"insulin": 4.1},  # by _id
        bolus | {"_id": "other"},  # by all that it says
        event("13:00", "Correction Bolus", insulin=4),
    ]
    readings = read(tmp_path, entries, treatments)
    assert readings.frame["bolus_u"].sum() == 8
    assert readings.frame["carbs_g"].sum() == 40
    assert counted(readings, "dropped") == {
        "entries uploaded twice": 2,
        "treatments uploaded twice": 2,
    }


def test_treatments_take_the_offset_of_the_entry_before(tmp_path: Path) -> None:
    entries = [sgv("12:00", offset=0), sgv("13:00", offset=120), sgv("14:00", offset=None)]
    treatments = [
        event(f"{DAY}T12:59:00+00:00", "Snack Bolus", insulin=1),
        event(f"{DAY}T09:01:00-04:00", "Snack Bolus", insulin=2),
        event("", "Snack Bolus", insulin=3, created_at=None, timestamp=f"{DAY}T14:10:00Z"),
        event("", "Snack Bolus", insulin=4, created_at=None, timestamp=ms(f"{DAY} 14:20")),
        event("", "Snack Bolus", insulin=5, created_at=None, mills=ms(f"{DAY} 14:30")),
        event("", "Snack Bolus", insulin=6, created_at=None, date=str(ms(f"{DAY} 14:40"))),
        event(f"{DAY}T14:50:00", "Snack Bolus", insulin=7),
    ]
    readings = read(tmp_path, entries, treatments)
    assert amounts(readings, "glucose_mg_dl").keys() == {"12:00", "15:00", "16:00"}
    assert amounts(readings, "bolus_u") == {
        "12:59": 1, "15:01": 2, "16:10": 3, "16:20": 4, "16:30": 5, "16:40": 6, "16:50": 7,
    }  # fmt: skip
    assert counted(readings, "noted") == {
        "treatments whose time names no offset, read as UTC": 1,
    }


def test_date_string_where_date_is_absent(tmp_path: Path) -> None:
    readings = read(tmp_path, [sgv("13:00", date=None), sgv("13:05")])
    assert amounts(readings, "glucose_mg_dl").keys() == {"08:00", "08:05"}


def test_the_option_zone_goes_before_the_offsets(tmp_path: Path) -> None:
    entries = [sgv("13:00", offset=0)]
    assert amounts(read(tmp_path, entries, **BERLIN), "glucose_mg_dl") == {"14:00": 120}
    by_person = {"zone": {"anna": "Asia/Kathmandu"}}
    assert amounts(read(tmp_path, entries, **by_person), "glucose_mg_dl") == {"18:45": 120}
    assert amounts(read(tmp_path, entries, zone="UTC"), "glucose_mg_dl") == {"13:00": 120}


def test_summer_time_ends_by_zone_and_by_offset(tmp_path: Path) -> None:
    times = pd.date_range("2023-11-05 05:00", periods=36, freq="5min")  # 01:00 to 01:55 twice
    entries = [
        sgv(f"{time:%Y-%m-%d %H:%M}", 100 + k, -240 if k < 12 else -300)
        for k, time in enumerate(times)
    ]
    dose = [event("2023-11-05T06:10:00Z", "Correction Bolus", insulin=3)]
    for options in ({}, {"zone": "America/New_York"}):
        readings = read(tmp_path, entries, dose, **options)
        glucose = readings.frame.dropna(subset="glucose_mg_dl")
        assert glucose["time"].diff().dropna().eq(pd.Timedelta(minutes=5)).all()
        assert glucose["glucose_mg_dl"].tolist() == [*range(100, 112), *range(124, 136)]
        assert counted(readings, "dropped") == {
            "glucose in the hour that a clock change repeats": 12
        }
        series, _ = build_series({"nightscout": readings}, GridOptions())
        assert series["bolus_u"].sum() == 3


@pytest.mark.parametrize("offset", [None, 0])
def test_offsets_absent_or_zero_need_a_zone(tmp_path: Path, offset: int | None) -> None:
    with pytest.raises(
        InputError, match=r"'utcOffset': absent or 0 in every.*Give the option zone"
    ):
        read(tmp_path, [sgv("13:00", offset=offset)])


def test_uploaders_that_disagree_need_a_zone(tmp_path: Path) -> None:
    entries = [
        e | {"utcOffset": -300 * (k % 2)} for k, e in enumerate(every_five_minutes(count=40))
    ]
    with pytest.raises(InputError, match=r"it changes 39 times in 0 days.*several uploaders"):
        read(tmp_path, entries)
    with pytest.raises(InputError, match=r"more than 840 minutes from UTC"):
        read(tmp_path, [sgv("13:00", offset=-18000)])


def test_boluses_and_carbs(tmp_path: Path) -> None:
    treatments = [
        event("13:00", "Meal Bolus", insulin=4.5, carbs="45"),  # text, by some uploaders
        event("13:05", "Carb Correction", carbs=12, insulin=0),
        event("13:10", "Note", notes="nothing here"),
        event("13:15", "", insulin=None, carbs=None),
        event("13:20", "Combo Bolus", insulin=2, enteredinsulin="5", relative=1.5, duration=120),
        event("13:25", "Combo Bolus", enteredinsulin=0.1, duration=3, isEmulatingTempBasal=True),
        event("13:30", "Meal Bolus", insulin=1, enteredinsulin=7),
    ]
    readings = read(tmp_path, [sgv("13:00")], treatments)
    assert amounts(readings, "bolus_u") == {"08:00": 4.5, "08:20": 5, "08:30": 1}
    assert amounts(readings, "carbs_g") == {"08:00": 45, "08:05": 12}
    assert counted(readings, "dropped") == {
        "treatments without insulin, carbs or a rate: Note": 1,
        "treatments without insulin, carbs or a rate: untyped": 1,
        "treatments without insulin, carbs or a rate: Combo Bolus": 1,
    }
    assert counted(readings, "noted") == {
        "combo boluses, counted whole at their time": 1,
        "insulin of temporary basals, told by their rate": 1,
    }


TEMPS = [
    event("01:00", "Temp Basal", absolute=1.2, rate=1.2, duration=30),
    event("01:10", "Temp Basal", rate=0, duration=30),  # replaces the one before
    event("01:20", "Temp Basal", duration=0),  # ends it
    event("02:00", "Temp Basal", absolute=0.5, duration=60, insulin=0.5),
    event("04:00", "Suspend Pump"),
    event("04:30", "Resume Pump"),
    event("05:00", "Temp Basal", percent=-50, duration=60),
    event("07:00", "Temp Basal", absolute=3, duration=5),
    event("07:00", "Temp Basal", absolute=2, duration=10),
]


def test_temporary_basals_without_a_schedule(tmp_path: Path) -> None:
    readings = read(tmp_path, every_five_minutes(offset=60), TEMPS)
    assert rates(readings) == [
        ("02:00", 1.2, 10), ("02:10", 0, 10), ("03:00", 0.5, 60), ("05:00", 0, 30),
        ("08:00", 2, 10),
    ]  # fmt: skip
    assert readings.frame["bolus_u"].isna().all()
    assert counted(readings, "dropped") == {
        "ends of temporary basals": 2,
        "temporary basals relative to a schedule that is not given": 1,
        "temporary basals replaced at the same moment": 1,
    }
    assert counted(readings, "noted") == {"insulin of temporary basals, told by their rate": 1}
    series, _ = build_series({"nightscout": readings}, GridOptions())
    basal = series.set_index("time")["basal_u_h"]
    assert basal[:"2024-02-01 02:00"].isna().all()  # the profile is not in the export
    assert basal["2024-02-01 02:05"] == 1.2
    assert basal["2024-02-01 02:15":"2024-02-01 02:20"].tolist() == [0, 0]  # a real zero
    assert basal["2024-02-01 02:25":"2024-02-01 03:00"].isna().all()


SCHEDULE = [["00:00", 0.8], ["03:30", 1.0], ["06:30", 0.6]]


def test_the_schedule_stands_between_temporary_basals(tmp_path: Path) -> None:
    readings = read(
        tmp_path, every_five_minutes(offset=60), TEMPS, scheduled_basal_u_h={"anna": SCHEDULE}
    )
    assert rates(readings) == [
        ("01:00", 0.8, 60),
        ("02:00", 1.2, 10), ("02:10", 0, 10), ("02:20", 0.8, 40), ("03:00", 0.5, 60),
        ("04:00", 1, 60), ("05:00", 0, 30), ("05:30", 1, 30),
        ("06:00", 0.5, 30), ("06:30", 0.3, 30),  # half of the schedule, before and after 06:30
        ("07:00", 0.6, 60), ("08:00", 2, 10), ("08:10", 0.6, 950),
        ("00:00", 0.8, 55),
    ]  # fmt: skip


def test_a_schedule_goes_by_the_local_clock(tmp_path: Path) -> None:
    """In the night that summer time begins, 03:30 comes an hour earlier."""
    times = pd.date_range("2024-03-30 22:00", "2024-03-31 06:00", freq="5min")
    entries = [sgv(f"{time:%Y-%m-%d %H:%M}", 120) for time in times]
    readings = read(tmp_path, entries, [], scheduled_basal_u_h=SCHEDULE, **BERLIN)
    assert rates(readings) == [
        ("23:00", 0.6, 60), ("00:00", 0.8, 120), ("03:00", 0.8, 30), ("03:30", 1, 180),
        ("06:30", 0.6, 90),
    ]  # fmt: skip
    series, _ = build_series({"nightscout": readings}, GridOptions())
    basal = series.set_index("time")["basal_u_h"]
    assert basal["2024-03-31 02:05":"2024-03-31 03:00"].isna().all()  # 02:00 to 03:00 never was
    total = series["basal_u_h"].sum() / 12
    assert total == pytest.approx(0.6 * 1 + 0.8 * 2.5 + 1.0 * 3 + 0.6 * 1.5)


def test_a_suspension_without_an_end_is_believed_for_hours(tmp_path: Path) -> None:
    treatments = [event("01:00", "Suspend Pump")]
    readings = read(tmp_path, every_five_minutes(offset=60), treatments)
    assert rates(readings) == [("02:00", 0, 240)]


def test_a_temporary_basal_without_a_rate_runs_as_scheduled(tmp_path: Path) -> None:
    treatments = [event("01:00", "Temp Basal", duration=30)]  # a percent of 0 is not stored
    entries = [sgv("00:30", offset=60), sgv("02:00", offset=60)]
    readings = read(tmp_path, entries, treatments, scheduled_basal_u_h=[["00:00", 0.7]])
    assert rates(readings) == [("01:30", 0.7, 30), ("02:00", 0.7, 30), ("02:30", 0.7, 30)]
    assert counted(readings, "added") == {
        "scheduled basal rates between and within temporary ones": 2
    }


def test_a_treatment_without_a_time_is_left_to_the_grid_or_counted(tmp_path: Path) -> None:
    treatments = [
        event("", "Meal Bolus", insulin=1, created_at=None),
        event("", "Temp Basal", absolute=1, duration=30, created_at=None),
    ]
    readings = read(tmp_path, [sgv("13:00")], treatments)
    assert readings.frame["time"].isna().sum() == 1
    assert counted(readings, "dropped") == {"treatments without a time, insulin or carbs": 1}


def test_absent_files_say_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"no 'nightscout/\*/entries.json' .*Get Nightscout exports"
    ):
        find_parts(["nightscout"], tmp_path, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sgv": "much"}, r"column 'sgv', row 2: 'much' is no number"),
        ({"sgv": {"value": 3}}, r"column 'sgv', row 2: .* is no number"),
        ({"date": "soon"}, r"column 'date', row 2: 'soon' is no number"),
        ({"date": 1706792400}, r"column 'date', row 2: 1706792400 as milliseconds .* before 2000"),
        ({"date": None, "dateString": "1 Feb"}, r"'dateString', row 2: '1 Feb' is no time"),
        ({"utcOffset": "far"}, r"column 'utcOffset', row 2: 'far' is no number"),
    ],
)
def test_an_unusable_cell_of_an_entry_is_named(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=rf"anna/entries.json', .*{message}"):
        read(tmp_path, [sgv("13:00"), sgv("13:05") | change])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"insulin": "some"}, r"'insulin', row 1: 'some' is no number"),
        ({"created_at": "Thu Feb 01 2024"}, r"'created_at', row 1: 'Thu Feb 01 2024' is no time"),
        ({"created_at": ms(DAY)}, r"'created_at', row 1: .* is no time"),
        ({"created_at": None, "timestamp": "soon"}, r"'timestamp', row 1: 'soon' is no time"),
        ({"duration": [3]}, r"'duration', row 1: .* is no number"),
    ],
)
def test_an_unusable_cell_of_a_treatment_is_named(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=rf"anna/treatments.json', column {message}"):
        read(tmp_path, [sgv("13:00")], [event("13:00", "Meal Bolus", insulin=1) | change])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"cut short or no JSON"),
        ('[{"sgv": 1}, ', r"cut short or no JSON"),
        ('{"sgv": 1}', r"no JSON array of objects"),
        ("[1, 2]", r"no JSON array of objects"),
        ("[]", r"no entry of the type sgv"),
        ('[{"type": "mbg", "mbg": 100}]', r"no entry of the type sgv"),
    ],
)
def test_a_file_that_is_no_export_is_named(tmp_path: Path, text: str, message: str) -> None:
    [part] = write(tmp_path, [])
    part.files[0].write_text(text)
    with pytest.raises(InputError, match=rf"anna/entries.json': .*{message}"):
        part.read()
    part.files[0].write_bytes(b"\xff\xfe\xfd[")
    with pytest.raises(InputError, match=r"cut short or no JSON"):
        part.read()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"zone": {"berta": "Europe/Berlin"}}, r"nobody is called 'berta'; folders .* anna"),
        ({"scheduled_basal_u_h": {"x": SCHEDULE}}, r"'scheduled_basal_u_h': nobody is called 'x'"),
        ({"scheduled_basal_u_h": [["8:00", 1]]}, r"scheduled_basal_u_h"),
        ({"scheduled_basal_u_h": [["08:00", -1]]}, r"scheduled_basal_u_h"),
        ({"scheduled_basal_u_h": []}, r"scheduled_basal_u_h"),
        ({"offset": 60}, r"Allowed: zone, scheduled_basal_u_h"),
    ],
)
def test_unusable_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        write(tmp_path, [sgv("13:00")], **options)


def test_an_unknown_zone_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"option 'zone', person 'anna': unknown .* 'Berlin'"):
        read(tmp_path, [sgv("13:00")], zone="Berlin")


def test_no_row_is_lost(tmp_path: Path) -> None:
    """Random exports: Part.read would raise, and doses and carbs are all there."""
    random = np.random.default_rng(7)
    kinds = ["Temp Basal", "Meal Bolus", "Suspend Pump", "Resume Pump", "Note", "Combo Bolus"]
    for schedule in (None, SCHEDULE):
        treatments = [
            event(
                f"2024-03-31T{random.integers(0, 24):02d}:{random.integers(0, 60):02d}:00Z",
                str(random.choice(kinds)), _id=k, **{
                    str(name): int(random.integers(0, 90))
                    for name in random.choice(
                        ["absolute", "percent", "duration", "insulin", "carbs"], 3, replace=False
                    )
                },
            )
            for k in range(300)
        ]  # fmt: skip
        readings = read(
            tmp_path, [sgv("2024-03-31 12:00")], treatments, scheduled_basal_u_h=schedule, **BERLIN
        )
        unique = pd.DataFrame(treatments).drop(columns="_id").drop_duplicates()
        assert readings.frame["carbs_g"].sum() == unique["carbs"].sum()
        bolus = unique.loc[unique["eventType"] != "Temp Basal", "insulin"].sum()
        assert readings.frame["bolus_u"].sum() == bolus
        known = readings.frame[readings.frame["basal_u_h"].notna()].sort_values("time")
        assert known["basal_minutes"].gt(0).all()
        gaps = known["time"].diff().shift(-1) / pd.Timedelta(minutes=1)
        assert (known["basal_minutes"] <= gaps.fillna(np.inf) + 1e-9).all()  # none twice
