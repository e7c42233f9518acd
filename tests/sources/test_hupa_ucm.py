"""Few-row files in the published format, drawn as the publisher drew them: readings and lines."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.grid import GridOptions, build_series
from nocturnal_kedro.series.schema import SERIES, Readings
from nocturnal_kedro.sources import find_parts, hupa_ucm

HEADER = "timestamp,glucose_value_mg_dl"
GAP = None  # a quarter hour without a reading
WAVY = [120.0, 131, 129, 140, 133, 125, 118, 124, 119, 107]  # no three of them on a line


def points(readings: list[float | None], step: int = 3) -> list[float]:
    """The publisher's points: straight lines between the readings and through every gap."""
    known = [k for k, value in enumerate(readings) if value is not None]
    at = np.arange((len(readings) - 1) * step + 1) / step
    return list(np.interp(at, known, [readings[k] for k in known]))


def write(
    root: Path,
    values: list[float],
    person: str = "HUPA0002P",
    start: str = "2018-06-13 00:00",
    header: str = HEADER,
) -> None:
    folder = root / hupa_ucm.FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    times = pd.date_range(start, periods=len(values), freq="5min")
    rows = [f"{time},{value}" for time, value in zip(times, values, strict=True)]
    (folder / f"{person}.csv").write_text("\n".join([header, *rows]) + "\n")


def read(root: Path, **options: object) -> Readings:
    [part] = find_parts(["hupa_ucm"], root, {"hupa_ucm": dict(options)})
    return part.read()


def counted(readings: Readings, reason: str) -> int:
    tally = readings.tally
    return int(tally.loc[tally["reason"].str.contains(reason), "rows"].sum())


def test_one_point_in_three_is_a_reading(tmp_path: Path) -> None:
    write(tmp_path, points(WAVY))
    readings = read(tmp_path)
    assert readings.frame["glucose_mg_dl"].tolist() == WAVY
    assert (readings.frame["time"].dt.minute % 15 == 0).all()
    assert readings.frame["subject"].unique().tolist() == ["HUPA0002P"]
    assert counted(readings, "between the 15-minute") == 18


def test_the_phase_is_the_persons_own(tmp_path: Path) -> None:
    write(tmp_path, points(WAVY)[2:], start="2018-06-13 00:00")  # readings at :05, :20, :35
    readings = read(tmp_path)
    assert readings.frame["glucose_mg_dl"].tolist() == WAVY[1:]
    assert (readings.frame["time"].dt.minute % 15 == 5).all()


def test_the_grid_leaves_two_of_three_slots_unobserved(tmp_path: Path) -> None:
    write(tmp_path, points(WAVY))
    series, _ = build_series({"hupa_ucm": read(tmp_path)}, GridOptions())
    SERIES.validate(series)
    assert series["glucose_mg_dl"].notna().tolist() == [True, False, False] * 9 + [True]


def test_a_line_through_a_gap_is_dropped_and_its_ends_are_kept(tmp_path: Path) -> None:
    readings = [*WAVY, GAP, GAP, GAP, 147.0, 140.0]  # 107, 117, 127, 137, 147: whole all along
    write(tmp_path, points(readings))
    got = read(tmp_path)
    assert got.frame["glucose_mg_dl"].tolist() == [*WAVY, 147.0, 140.0]
    assert counted(got, "through a gap") == 3
    assert len(read(tmp_path, gap_minutes=75).frame) == len(readings)


def test_a_short_line_with_a_fraction_on_it_is_a_gap(tmp_path: Path) -> None:
    write(tmp_path, points([*WAVY, GAP, GAP, 109.0, 140.0]))  # 107.67 and 108.33
    got = read(tmp_path)
    assert got.frame["glucose_mg_dl"].tolist() == [*WAVY, 109.0, 140.0]
    assert counted(got, "through a gap") == 2


def test_two_readings_may_lie_on_the_line_of_their_neighbours(tmp_path: Path) -> None:
    values = [*WAVY, 110.0, 113.0, 116.0, 100.0]
    write(tmp_path, points(values))
    assert read(tmp_path).frame["glucose_mg_dl"].tolist() == values


def test_two_gaps_with_a_reading_between_are_two_lines(tmp_path: Path) -> None:
    write(tmp_path, points([*WAVY, GAP, GAP, GAP, 147.0, GAP, GAP, GAP, 107.0, 130.0]))
    assert read(tmp_path).frame["glucose_mg_dl"].tolist() == [*WAVY, 147.0, 107.0, 130.0]


def test_a_long_stay_at_the_floor_is_a_low_and_not_a_gap(tmp_path: Path) -> None:
    write(tmp_path, points([*WAVY, *[40.0] * 8, 66.0, 80.0]))
    got = read(tmp_path)
    assert len(got.frame) == 20
    assert counted(got, "read as LOW") == 8
    series, _ = build_series({"hupa_ucm": got}, GridOptions())
    assert (series["glucose_mg_dl"] == 40.0).sum() == 8
    assert series["glucose_clipped"].sum() == 8


def test_a_long_flat_line_elsewhere_is_a_gap(tmp_path: Path) -> None:
    write(tmp_path, points([*WAVY, *[90.0] * 8, 66.0, 80.0]))
    got = read(tmp_path)
    assert (got.frame["glucose_mg_dl"] == 90.0).sum() == 2


def test_a_finger_stick_between_the_readings_is_dropped(tmp_path: Path) -> None:
    values = points(WAVY)
    values[13] = 255.0
    write(tmp_path, values)
    assert read(tmp_path).frame["glucose_mg_dl"].tolist() == WAVY


def test_a_bend_that_is_no_whole_number_is_no_reading(tmp_path: Path) -> None:
    write(tmp_path, points([*WAVY, 121.5, 130.0]))
    got = read(tmp_path)
    assert got.frame["glucose_mg_dl"].tolist() == [*WAVY, 130.0]
    assert counted(got, "no whole mg/dL") == 1


def test_a_second_device_between_the_quarter_hours_is_dropped(tmp_path: Path) -> None:
    values = points(WAVY)
    for k in range(len(values)):
        if k % 3:
            values[k] = round(values[k]) - 20.0 + k % 2
    write(tmp_path, values, "HUPA0001P")
    assert read(tmp_path).frame["glucose_mg_dl"].tolist() == WAVY


def test_an_excluded_person_is_counted_and_can_be_had(tmp_path: Path) -> None:
    write(tmp_path, points(WAVY), "HUPA0009P")
    left_out = read(tmp_path)
    assert left_out.frame.empty
    assert counted(left_out, "person excluded") == counted(left_out, "rows in file") == 28
    assert len(read(tmp_path, exclude=[]).frame) == 10


def test_a_line_does_not_reach_over_a_hole_in_the_grid(tmp_path: Path) -> None:
    write(tmp_path, points([*WAVY, 110.0, 113.0, 150.0, 116.0, 119.0, 122.0, 100.0]))
    file = tmp_path / hupa_ucm.FOLDER / "HUPA0002P.csv"
    lines = [line for line in file.read_text().splitlines() if " 03:00" not in line]  # the 150
    file.write_text("\n".join(lines) + "\n")
    assert len(read(tmp_path).frame) == 16


def test_a_file_of_one_row_is_read(tmp_path: Path) -> None:
    write(tmp_path, [120.0])
    assert len(read(tmp_path).frame) == 1


@pytest.mark.parametrize(
    "row", ["2018-06-13 00:17:00,120.0", "2018-06-13 00:10:00,120.0", ",120.0"]
)
def test_what_is_not_the_publishers_grid_is_refused(tmp_path: Path, row: str) -> None:
    write(tmp_path, points([120.0, 131.0]))
    file = tmp_path / hupa_ucm.FOLDER / "HUPA0002P.csv"
    file.write_text(file.read_text() + row + "\n")
    with pytest.raises(InputError, match=r"column 'timestamp', row 6: .* not on a full 5 minutes"):
        read(tmp_path)


def test_absent_files_say_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no 'hupa_ucm/.*10.17632/3hbcscwz44.1.*raw_root"):
        find_parts(["hupa_ucm"], tmp_path, {})


def test_absent_column_is_named(tmp_path: Path) -> None:
    write(tmp_path, points(WAVY), header="time;glucose")
    with pytest.raises(InputError, match=r"no column 'timestamp', 'glucose_value_mg_dl'; it has"):
        read(tmp_path)


def test_unreadable_number_is_named(tmp_path: Path) -> None:
    write(tmp_path, [*WAVY, "lots"])  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"column 'glucose_value_mg_dl', row 12: 'lots'"):
        read(tmp_path)


def test_unreadable_time_is_named(tmp_path: Path) -> None:
    write(tmp_path, points(WAVY))
    file = tmp_path / hupa_ucm.FOLDER / "HUPA0002P.csv"
    file.write_text(file.read_text().replace("2018-06-13 00:05:00", "13/06/2018 00:05"))
    with pytest.raises(InputError, match=r"column 'timestamp', row 3: '13/06/2018 00:05'"):
        read(tmp_path)


def test_days_under_two_dates_are_dropped_both(tmp_path: Path) -> None:
    """A day stored with day and month swapped: nothing says which date is true."""
    draw = np.random.default_rng(0)
    values = points(
        list(np.round(140 + 30 * np.sin(np.arange(97 * 66) / 9) + draw.normal(0, 9, 97 * 66)))
    )
    start = pd.Timestamp("2020-08-05")
    count = 65 * 288
    values = values[:count]
    true, other = ((pd.Timestamp(day) - start).days * 288 for day in ("2020-08-10", "2020-10-08"))
    values[other : other + 288] = values[true : true + 288]
    write(tmp_path, values, start=str(start))
    got = read(tmp_path)
    dates = set(got.frame["time"].dt.strftime("%Y-%m-%d"))
    assert not dates & {"2020-08-10", "2020-10-08"}
    assert len(dates) == 63
    assert counted(got, "under two dates") == 2 * 288
