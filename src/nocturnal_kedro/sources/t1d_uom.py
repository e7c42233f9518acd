"""T1D-UOM: 17 people with type 1 diabetes in Manchester, five folders of CSVs, local time.

A part is a person: glucose, basal, bolus, nutrition and activity, whichever files there are.
Faults of the files that this reader mends, each counted in the tally:

- 2303 is 2304: of 2303's readings 99.6 % stand in 2304's file too, beside those of another sensor.
  2303 is left out and 2304 begins on 2023-12-01. With `exclude=[]` and `starts={}` the overlap is
  back, for an audit to find.
- 2301 and 2304 hold thousands of rows twice. From 2023-12-24 on each reading of 2301 stands there
  a third time, 1 to 3 minutes early by another device's clock: such an echo is dropped. The doubled
  rows go on as the single ones did before, so their clock is the right one.
- Typing errors in the year, from 2023 to 2204, and meals without a time of day: dropped.
- A bolus of 68 U, which is 2313's daily dose of long-acting insulin: set missing.
- The watch of 2310 began eight hours behind: those steps are dropped.

Dates are dd/mm/yyyy, whatever the dataset's own README says: no month in any file exceeds 12.

Flash-sensor users have a reading every 15 minutes, and each scan between. Both are kept: a scan is
what the person saw, and is fresher than the sensor's smoothed history.

Basal insulin is of two kinds. R is a pump's rate in U/h: a record says what begins, and stands
until the next (the last of several in one minute). L is a long-acting dose in U, of a person
without a pump: the reader spreads it evenly over the 24 hours after it. Doses that overlap add up,
nothing is said about a time before its dose, and without a dose in 24 hours basal is missing.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import ascii_letters

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.schema import Counted, Readings, Words, make_tally, readings_frame
from nocturnal_kedro.sources import Files
from nocturnal_kedro.sources._raw import RawTable, read_table, require_files, to_mg_dl

TITLE = (
    "T1D-UOM, Alsuhaymi et al., Scientific Data 2025, doi:10.5281/zenodo.15169263, licence "
    "CC BY 4.0 (Zenodo)"
)
FOLDER = "t1d_uom"
MINUTE, DAY_ONLY = "%d/%m/%Y %H:%M", "%d/%m/%Y"
SECOND = MINUTE + ":%S"

LONG_ACTING = np.timedelta64(24, "h")
ECHO = np.timedelta64(3, "m")
ECHO_MMOL_L = 0.1 + 1e-9  # the exports round differently
UK_OFFSETS_S = (0.0, 3600.0)  # winter, summer
TWINS = {"2303": "2304"}  # whose readings they are


class Options(BaseModel, extra="forbid", frozen=True, coerce_numbers_to_str=True):
    """Who and when: the overlap of two people, the study's months; and what a record means."""

    exclude: Words = ("2303",)
    starts: dict[str, dt.date] = {"2304": dt.date(2023, 12, 1)}  # nothing of a person before
    study_from: dt.date = dt.date(2023, 9, 1)  # a date outside is a typing error
    study_to: dt.date = dt.date(2024, 9, 30)
    rate_stands_hours: float = Field(default=16.0, gt=0)  # the longest block of any pump's day
    bolus_highest_u: float = Field(default=50.0, gt=0)  # above: a long-acting dose


def find(root: Path, options: Options) -> list[Files]:
    """The files of each person; raises `InputError` where a folder of the dataset is absent."""
    people: dict[str, list[Path]] = {}
    for kind in KINDS:
        for file in require_files("t1d_uom", root, f"{FOLDER}/{kind.folder}/UoM*.csv", TITLE):
            people.setdefault(_subject(file), []).append(file)
    return [tuple(people[subject]) for subject in sorted(people)]


def read(files: Files, options: Options) -> Readings:
    """Read one person's files; raises `InputError` on a cell that cannot be understood."""
    subject = _subject(files[0])
    entries: list[Counted] = []
    frames = [_read_file(subject, file, options, entries) for file in files]
    return Readings(pd.concat(frames, ignore_index=True), make_tally("read", entries))


def _read_file(subject: str, file: Path, options: Options, entries: list[Counted]) -> pd.DataFrame:
    """The readings of one table, what became of its rows appended to `entries`."""
    kind = next(kind for kind in KINDS if kind.folder.endswith(file.parent.name))
    table = read_table("t1d_uom", file, [kind.time, *kind.columns], TITLE, may_be_empty=True)
    rows = table.frame.assign(time=table.times(kind.time, *kind.formats))
    rows["times_written"] = rows.groupby("time")["time"].transform("size")
    entries.append((subject, "in", f"rows in {kind.folder}", len(rows)))

    def drop(reason: str, wrong: pd.Series) -> None:
        nonlocal rows
        entries.append((subject, "dropped", reason, int(wrong.sum())))
        rows = rows[~wrong]

    if subject in options.exclude:
        whose = f": the readings are those of {TWINS[subject]}" if subject in TWINS else ""
        drop(f"person excluded{whose}", pd.Series(True, index=rows.index))
    drop("date outside the study", _outside(rows["time"], options.study_from, options.study_to))
    drop("before the person's start", _outside(rows["time"], options.starts.get(subject), None))
    drop("date without a time of day", ~rows[kind.time].str.contains(":", na=True))
    # The last of equal rows: a pump that stops, starts and stops in one minute has stopped.
    drop("exact duplicate rows", rows.duplicated(keep="last"))
    return kind.read(subject, RawTable("t1d_uom", file, rows), options, entries)


def _read_glucose(
    subject: str, table: RawTable, options: Options, entries: list[Counted]
) -> pd.DataFrame:
    mmol_l = table.glucose("value")
    echo = _echoes(table.frame, mmol_l)
    entries.append((subject, "dropped", "same reading by another clock", int(echo.sum())))
    return _frame(subject, table.frame["time"][~echo], glucose_mg_dl=to_mg_dl(mmol_l[~echo]))


def _read_bolus(
    subject: str, table: RawTable, options: Options, entries: list[Counted]
) -> pd.DataFrame:
    units = table.numbers("bolus_dose")
    long_acting = units > options.bolus_highest_u
    reason = f"bolus above {options.bolus_highest_u:g} U, set missing"
    entries.append((subject, "changed", reason, int(long_acting.sum())))
    given = (units > 0) & ~long_acting  # 0 says that none was given
    return _frame(subject, table.frame["time"], bolus_u=np.where(given, units, np.nan))


def _read_nutrition(
    subject: str, table: RawTable, options: Options, entries: list[Counted]
) -> pd.DataFrame:
    carbs = table.numbers("carbs_g")
    return _frame(subject, table.frame["time"], carbs_g=np.where(carbs > 0, carbs, np.nan))


def _read_activity(
    subject: str, table: RawTable, options: Options, entries: list[Counted]
) -> pd.DataFrame:
    """Steps at the end of their interval, when they are known; one row per kind of movement."""
    elsewhere = ~np.isin(table.numbers("start_time_offset_s"), UK_OFFSETS_S)
    entries.append((subject, "dropped", "watch not on UK time", int(elsewhere.sum())))
    lasts = pd.to_timedelta(table.numbers("duration_s"), unit="s")
    ends = (table.frame["time"] + lasts)[~elsewhere]
    return _frame(subject, ends, steps=table.numbers("step_count")[~elsewhere])


def _read_basal(
    subject: str, table: RawTable, options: Options, entries: list[Counted]
) -> pd.DataFrame:
    kinds = set(table.frame["insulin_kind"].str.strip())
    if not (kinds <= {"R"} or kinds <= {"L"}):
        raise InputError(
            f"{table.where('insulin_kind')}: {', '.join(sorted(map(repr, kinds)))}; a person has "
            f"either 'R' (a pump's rate) or 'L' (long-acting doses), and no other kind. Use the "
            f"file as published, or correct these."
        )
    times, doses = table.frame["time"], table.numbers("basal_dose")
    if kinds <= {"R"}:
        minutes = np.where(np.isnan(doses), np.nan, 60 * options.rate_stands_hours)
        return _frame(subject, times, basal_u_h=doses, basal_minutes=minutes)
    moments, rates, minutes = _spread(times.to_numpy(), doses)
    frame = _frame(subject, moments, basal_u_h=rates, basal_minutes=minutes)
    added = len(frame) - len(times)
    entries.append((subject, "changed", "long-acting dose spread over 24 hours", len(times)))
    entries.append((subject, "added", "long-acting rate after an earlier dose ended", added))
    return frame


def _spread(times: np.ndarray, doses: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Long-acting doses as a rate: moments, U/h from then on, minutes it stands at most.

    Each dose adds 1/24 of itself per hour for 24 hours. A row stands at each dose, and one more
    where an earlier dose ends while another goes on. A row says what follows from doses up to it:
    its rate holds until the oldest of them ends.
    """
    order = np.argsort(times, kind="stable")[: int((~np.isnat(times)).sum())]
    known, units = times[order], np.nan_to_num(doses[order])
    ends = np.setdiff1d(known + LONG_ACTING, known)  # a dose at that very moment has its own row

    moments = np.r_[times, ends]
    oldest = np.searchsorted(known, moments - LONG_ACTING, side="right")  # of those that act
    newest = np.searchsorted(known, moments, side="right")
    given = np.r_[0.0, np.cumsum(units)]
    oldest_ends = np.r_[known, np.datetime64("NaT")][oldest] + LONG_ACTING
    acts = ~np.isnat(moments) & (newest > oldest)
    rates = np.where(acts, (given[newest] - given[oldest]) / 24, np.nan)
    minutes = np.where(acts, (oldest_ends - moments) / np.timedelta64(1, "m"), np.nan)
    keep = acts | (np.arange(len(moments)) < len(times))
    return moments[keep], rates[keep], minutes[keep]


def _echoes(rows: pd.DataFrame, mmol_l: np.ndarray) -> np.ndarray:
    """Whether a reading written once stands again, written twice, within the next 3 minutes."""
    twice = (rows["times_written"] > 1).to_numpy()
    written = pd.DataFrame({"time": rows["time"].to_numpy(), "mmol_l": mmol_l})
    doubled = written[twice].sort_values("time", kind="stable").drop_duplicates("time", keep="last")
    if doubled.empty:
        return np.zeros(len(rows), bool)
    position = np.searchsorted(doubled["time"].to_numpy(), written["time"].to_numpy())
    next_ = doubled.iloc[np.minimum(position, len(doubled) - 1)]
    wait = next_["time"].to_numpy() - written["time"].to_numpy()
    near = (wait > np.timedelta64(0)) & (wait <= ECHO)
    return near & (np.abs(next_["mmol_l"].to_numpy() - mmol_l) <= ECHO_MMOL_L)


def _outside(times: pd.Series, first: dt.date | None, last: dt.date | None) -> pd.Series:
    """Whether a time lies before the first or after the last day."""
    outside = pd.Series(False, index=times.index)
    if first is not None:
        outside |= times < pd.Timestamp(first)
    if last is not None:
        outside |= times >= pd.Timestamp(last) + pd.Timedelta(days=1)
    return outside


def _frame(subject: str, times: pd.Series | np.ndarray, **columns: np.ndarray) -> pd.DataFrame:
    return readings_frame({"subject": np.full(len(times), subject), "time": times, **columns})


def _subject(file: Path) -> str:
    return file.stem.lstrip(ascii_letters)


@dataclass(frozen=True)
class Kind:
    """One of the dataset's folders, and how its tables are read."""

    folder: str
    time: str
    columns: tuple[str, ...]
    read: Callable[[str, RawTable, Options, list[Counted]], pd.DataFrame]
    formats: tuple[str, ...] = (MINUTE, SECOND)


KINDS = (
    Kind("Glucose Data", "bg_ts", ("value",), _read_glucose),
    Kind("Insulin Data/Basal Data", "basal_ts", ("basal_dose", "insulin_kind"), _read_basal),
    Kind("Insulin Data/Bolus Data", "bolus_ts", ("bolus_dose",), _read_bolus),
    Kind("Nutrition Data", "meal_ts", ("carbs_g",), _read_nutrition, (MINUTE, SECOND, DAY_ONLY)),
    Kind(
        "Activity Data",
        "activity_ts",
        ("step_count", "duration_s", "start_time_offset_s"),
        _read_activity,
    ),
)
