"""Every kind of bad input that a table can hold: one clear error, or a repair that is counted.

The table is a researcher's own, read by the source `tidy`; the faults of published datasets stand
in the tests of their sources, those of a run in tests/pipelines.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.pipelines.data_processing.nodes import prepare_parts
from nocturnal_kedro.series.grid import GridOptions, build_series
from nocturnal_kedro.sources import find_parts

Fault = Callable[[pd.DataFrame], Any]
ROWS = 24


def plain() -> pd.DataFrame:
    """Two people, two hours each."""
    times = pd.date_range("2024-03-05 22:00", periods=ROWS, freq="5min")
    person = pd.DataFrame(
        {"time": times.strftime("%Y-%m-%d %H:%M:%S"), "glucose": np.arange(120, 120 + ROWS)}
    )
    person = person.assign(basal=0.8, bolus="", carbs="")
    person.loc[3, ["bolus", "carbs"]] = ["2.5", "30"]
    return pd.concat([person.assign(subject=name) for name in ("ann", "bob")], ignore_index=True)


def write(root: Path, frame: Any) -> None:
    folder = root / "tidy"
    folder.mkdir(parents=True)
    if isinstance(frame, bytes):
        (folder / "mine.csv").write_bytes(frame)
    elif frame is not None:
        frame.to_csv(folder / "mine.csv", index=False)


def gridded(root: Path, options: dict[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
    [part] = find_parts(["tidy"], root, {"tidy": options})
    return build_series({"tidy": part.read()}, GridOptions())


def set_cells(column: str, value: object, rows: slice = slice(5, 6)) -> Fault:
    def fault(frame: pd.DataFrame) -> pd.DataFrame:
        frame = frame.astype({column: object})
        frame.iloc[rows, frame.columns.get_loc(column)] = value
        return frame

    return fault


def text(frame: pd.DataFrame) -> bytes:
    return frame.to_csv(index=False).encode()


def cut(frame: pd.DataFrame) -> bytes:
    return text(frame) + b'2024-03-06 00:00:00,"12'


def mmol(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(glucose=(frame["glucose"] / 18.0182).round(1))


def repeat(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([frame, frame.iloc[10:15]])


def again(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([frame, frame.iloc[[10]].assign(glucose=200)])


def shifted(frame: pd.DataFrame) -> pd.DataFrame:
    times = pd.to_datetime(frame["time"]) + pd.Timedelta("90s")
    return pd.concat([frame, frame.iloc[[7]].assign(time=str(times[7]), glucose=200)])


def only_insulin(frame: pd.DataFrame) -> pd.DataFrame:
    return set_cells("glucose", "", slice(ROWS, None))(frame)


def clock_change(frame: pd.DataFrame) -> pd.DataFrame:
    """An hour before and two after London's clocks went back on 2024-10-27 at 01:00 UTC."""
    times = pd.date_range("2024-10-27 00:00", periods=ROWS, freq="10min", tz="UTC")
    return frame.assign(time=[str(time) for time in times] * 2)


# what, how the table is spoiled, options that are not the default, the error
ERRORS: list[tuple[str, Fault, dict[str, Any], str]] = [
    ("no file", lambda f: None, {}, r"no 'tidy/\*.csv' under .*raw_root"),
    ("empty file", lambda f: b"", {}, r"mine.csv': .*empty"),
    ("binary file", lambda f: bytes(range(256)) * 9, {}, r"mine.csv': .*(no text|cut short)"),
    ("file cut short", cut, {}, r"mine.csv': .*cut short"),
    ("no rows", lambda f: f.iloc[:0], {}, "no row below the names"),
    ("no column", lambda f: f.drop(columns="glucose"), {}, r"no column 'glucose'; it has: time, "),
    ("other separator", lambda f: text(f).replace(b",", b";"), {}, r"no column 'subject'"),
    ("column named that is not there", lambda f: f, {"columns": {"bolus": "dose"}}, "no column 'dose'"),
    ("unknown option", lambda f: f, {"unitt": "mg/dL"}, r"options of source 'tidy': 'unitt'"),
    ("word for a number", set_cells("glucose", "much"), {}, r"'glucose', row 7: 'much' is no number"),
    ("decimal comma", set_cells("basal", "0,8"), {}, r"'basal', row 7: '0,8' is no number"),
    ("unreadable time", set_cells("time", "yesterday"), {}, r"'time', row 7: 'yesterday' is no time"),
    ("day that is none", set_cells("time", "2024-02-30 10:00"), {}, r"row 7: '2024-02-30 10:00' is no"),
    ("day and month mixed up", lambda f: f.assign(time="25/03/2024 10:00"), {"time_format": "%m/%d/%Y %H:%M"}, r"'25/03/2024 10:00' is no time"),
    ("glucose in mmol/L, declared mg/dL", mmol, {"unit": "mg/dL"}, r"declared as mg/dL, but its median"),
    ("one person in mmol/L", set_cells("glucose", 7.1, slice(ROWS, None)), {}, r"subject 'bob' is 7.1"),
    ("year mistyped", set_cells("time", "2204-03-05 22:30:00", slice(ROWS - 1, ROWS)), {}, r"subject 'ann': readings from 2024-03-05T22:00 to 2204-.*longest_days"),
    ("unknown time zone", lambda f: f, {"zone": "Europe/Londn"}, "unknown time zone 'Europe/Londn'"),
    ("times in UTC, place unknown", lambda f: f.assign(time=f["time"] + "Z"), {}, "every time is in UTC"),
    ("some times with an offset", set_cells("time", "2024-03-05 22:30:00+01:00"), {}, "some times have an offset"),
    ("a rate that stands no time", lambda f: f.assign(basal_minutes=0), {}, "stands 0 minutes"),
]  # fmt: skip

# what, how the table is spoiled, options, the reason that is counted, how many of whom
REPAIRS: list[tuple[str, Fault, dict[str, Any], str, dict[str, int]]] = [
    ("rows twice", repeat, {}, "rows repeated exactly", {"ann": 5}),
    ("two values at one time", again, {}, r"glucose at a time already read \(last kept\)", {"ann": 1}),
    ("two readings in a slot", shifted, {}, "averaged into one slot", {"ann": 1}),
    ("rows unsorted", lambda f: f.sample(frac=1, random_state=0), {}, "slots with a glucose reading", {"ann": ROWS, "bob": ROWS}),
    ("no subject", set_cells("subject", ""), {}, "rows without a subject", {"": 1}),
    ("no time", set_cells("time", ""), {}, "rows without a time", {"ann": 1}),
    ("person without glucose", only_insulin, {}, "person without a glucose reading", {"bob": 1}),
    ("glucose no sensor reads", set_cells("glucose", 3), {}, "out of any sensor's range", {"ann": 1}),
    ("glucose in mmol/L", mmol, {}, "glucose inferred to be mmol/L", {"ann": ROWS, "bob": ROWS}),
    ("negative dose", set_cells("bolus", -1), {}, "bolus_u out of 0 to 100", {"ann": 1}),
    ("basal in mU/h", set_cells("basal", 800), {}, "basal_u_h out of 0 to 50", {"ann": 1}),
    ("carbs in mg", set_cells("carbs", 30_000), {}, "carbs_g out of 0 to 1000", {"ann": 1}),
    ("dose after the last reading", set_cells("glucose", "", slice(3, ROWS)), {}, "bolus_u before the first or after", {"ann": 1}),
    ("too much insulin to be true", lambda f: f.assign(bolus=20), {}, "implausible insulin", {"ann": 9, "bob": 9}),
    ("clocks go back", clock_change, {"zone": "Europe/London"}, "^glucose in the hour that a clock change repeats", {"ann": 6, "bob": 6}),
    ("columns that nobody reads", lambda f: f.assign(mood="fine"), {}, "columns not used: mood", {"": 2 * ROWS}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("what", "fault", "options", "message"),
    ERRORS,
    ids=lambda v: v if isinstance(v, str) and len(v) < 40 else "",
)
def test_what_cannot_be_used_is_one_clear_error(
    what: str, fault: Fault, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write(tmp_path, fault(plain()))
    with pytest.raises(InputError, match=message) as raised:
        gridded(tmp_path, options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("what", "fault", "options", "reason", "counts"),
    REPAIRS,
    ids=lambda v: v if isinstance(v, str) and len(v) < 40 else "",
)
def test_what_can_be_mended_is_counted(
    what: str,
    fault: Fault,
    options: dict[str, Any],
    reason: str,
    counts: dict[str, int],
    tmp_path: Path,
) -> None:
    write(tmp_path, fault(plain()))
    [part] = find_parts(["tidy"], tmp_path, {"tidy": options})
    [make] = prepare_parts([part], GridOptions()).values()
    prepared = make()  # checks that every raw row is accounted for
    told = prepared.tally[prepared.tally["reason"].str.contains(reason)]
    assert told.groupby("subject")["rows"].sum().to_dict() == counts
    assert len(prepared.series) > 0


def test_the_table_itself_is_fine(tmp_path: Path) -> None:
    write(tmp_path, plain())
    series, tally = gridded(tmp_path, {})
    assert len(series) == 2 * ROWS
    dropped = tally[tally["effect"] == "dropped"]  # the rate that begins with the last reading
    assert dropped["reason"].unique() == [
        "basal_u_h before the first or after the last glucose reading"
    ]
