"""A table of one's own: CSV or Parquet, one row a reading, columns named in the options.

All files are read as one part, so that a person may stand in several of them. What the reader
decides by itself is counted: glucose in mmol/L (by each file's median; a declared unit is checked
against it), rows repeated exactly, rows without a subject, times on their way to local time.
A 0 stays a 0: if it means "not recorded" in your table, leave the cell empty.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.schema import (
    BASAL_RECORD_MINUTES,
    READING_COLUMNS,
    Counted,
    Readings,
    make_tally,
    readings_frame,
)
from nocturnal_kedro.sources import Files
from nocturnal_kedro.sources._clock import (
    Times,
    iso_times,
    moments,
    offset_clock,
    to_local,
    zone_clock,
)
from nocturnal_kedro.sources._raw import (
    GLUCOSE_WORDS,
    RawTable,
    read_table,
    require_files,
    to_mg_dl,
)

TITLE = "your own table as CSV or Parquet (columns subject, time, glucose, or name them in columns)"
FOLDER = "tidy"

Column = Literal[
    "subject", "time", "glucose", "basal", "basal_minutes", "bolus", "carbs", "steps", "heart_rate"
]
REQUIRED: tuple[Column, ...] = ("subject", "time", "glucose")
OPTIONAL: tuple[Column, ...] = (
    "basal", "basal_minutes", "bolus", "carbs", "steps", "heart_rate",
)  # fmt: skip
UNIT_BORDER = 35.0  # a median below is mmol/L: no cohort has lived at 35 mg/dL, none at 35 mmol/L


class Options(BaseModel, extra="forbid", frozen=True):
    """Where the files lie, what their columns are called and what they mean."""

    # A file or pattern below raw_root/tidy; else every *.csv and *.parquet. Not called `path`:
    # Kedro takes a value of that name for one of its own and makes it absolute.
    files: str | None = None
    separator: str = Field(default=",", min_length=1, max_length=1)  # of a CSV
    columns: dict[Column, str] = {}  # what your table calls them; otherwise by these names
    unit: Literal["infer", "mg/dL", "mmol/L"] = "infer"  # of glucose
    time_format: str | None = None  # strptime, e.g. "%d.%m.%Y %H:%M"; else ISO 8601
    zone: str | None = None  # IANA: times are UTC, or have an offset, and people live there
    basal_minutes: float = Field(default=BASAL_RECORD_MINUTES, gt=0)  # how long a rate stands


def find(root: Path, options: Options) -> list[Files]:
    """All files as one part; raises `InputError` where there is none."""
    if options.files is None:
        files = [f for end in ("csv", "parquet") for f in sorted(root.glob(f"{FOLDER}/*.{end}"))]
        files = files or require_files("tidy", root, f"{FOLDER}/*.csv", TITLE)
    elif Path(options.files).is_absolute() or ".." in Path(options.files).parts:
        raise InputError(
            f"source 'tidy', option 'files': '{options.files}' leads out of raw_root/{FOLDER}. Put "
            f"the files there, e.g. as links, and give a name or pattern below it."
        )
    else:
        files = require_files("tidy", root, f"{FOLDER}/{options.files}", TITLE)
    for file in files:
        if not file.is_file() or file.suffix.lower() not in (".csv", ".parquet"):
            raise InputError(
                f"source 'tidy': '{file}' is no .csv or .parquet file. Give a pattern that finds "
                f"such files alone; for those within a folder, 'FOLDER/*.parquet'."
            )
    return [tuple(files)]


def read(files: Files, options: Options) -> Readings:
    """Read all files; raises `InputError` on an absent column or an unreadable cell."""
    entries: list[Counted] = []
    rows = pd.concat([_read_file(f, options, entries) for f in files], ignore_index=True)

    counts = rows["subject"].value_counts()
    entries += [(subject, "in", "rows in files", n) for subject, n in counts.items()]
    nameless = rows["subject"] == ""
    entries.append(("", "dropped", "rows without a subject", int(nameless.sum())))
    rows = rows[~nameless]
    repeated = rows.duplicated()
    counts = rows.loc[repeated, "subject"].value_counts()
    entries += [(s, "dropped", "rows repeated exactly", n) for s, n in counts.items()]
    rows = rows[~repeated]

    frame, on_the_way = _local(rows, options)
    return Readings(frame, make_tally("read", [*entries, *on_the_way]))


def _read_file(path: Path, options: Options, entries: list[Counted]) -> pd.DataFrame:
    """One file in canonical columns; `minutes` is how far `time` is ahead of UTC, NaN if untold."""
    named: dict[str, str] = {name: options.columns.get(name, name) for name in REQUIRED}
    named |= {str(name): column for name, column in options.columns.items()}
    numeric = [column for name, column in named.items() if name not in ("subject", "time")]
    table = _open(path, list(named.values()), numeric, options.separator)
    named |= {c: c for c in OPTIONAL if c not in named and c in table.frame}
    unused = [str(c) for c in table.frame if c not in named.values()]
    if unused:
        reason = f"columns not used: {', '.join(sorted(unused))}"
        entries.append(("", "noted", reason, len(table.frame)))

    def numbers(name: str) -> NDArray[np.float64]:
        known = name in named
        return table.numbers(named[name]) if known else np.full(len(table.frame), np.nan)

    shown, minutes = _times(table, named["time"], options)
    subjects = _subjects(table.frame[named["subject"]])
    return pd.DataFrame(
        {
            "subject": subjects,
            "time": shown,
            "minutes": minutes,
            "glucose_mg_dl": _glucose(table, named["glucose"], subjects, options, entries),
            "basal_u_h": numbers("basal"),
            "basal_minutes": _basal_minutes(table, named, options),
            "bolus_u": numbers("bolus"),
            "carbs_g": numbers("carbs"),
            "steps": numbers("steps"),
            "heart_rate": numbers("heart_rate"),
        }
    )


def _open(path: Path, required: list[str], numeric: list[str], separator: str) -> RawTable:
    if path.suffix.lower() == ".csv":
        return read_table("tidy", path, required, TITLE, sep=separator, numeric=numeric)
    try:
        frame = pd.read_parquet(path)
    except (ValueError, OSError) as error:
        raise InputError(
            f"source 'tidy', file '{path}': {error}. The file is cut short or no Parquet."
        ) from error
    if any(frame.index.names):  # pandas writes an index as well
        frame = frame.reset_index()
    lacking = [name for name in required if name not in frame]
    if lacking:
        raise InputError(
            f"source 'tidy', file '{path}': no column {', '.join(map(repr, lacking))}; it has: "
            f"{', '.join(map(str, frame.columns))}. Name them in the option columns."
        )
    # RawTable counts a header line, which Parquet lacks.
    return RawTable("tidy", path, frame.set_index(pd.RangeIndex(-1, len(frame) - 1)))


def _subjects(cells: pd.Series) -> pd.Series:
    """Names as text, '' where empty.

    A column of numbers that has an empty cell is often written as 1.0, 2.0: they are 1 and 2.
    """
    names = cells.astype("string").fillna("").str.strip().astype(object).reset_index(drop=True)
    given = names[names != ""]
    if len(given) and given.str.fullmatch(r"\d+(\.0)?").all():
        return names.str.removesuffix(".0")
    return names


def _times(table: RawTable, column: str, options: Options) -> tuple[Times, NDArray[np.float64]]:
    """What the clock of a column shows, and minutes ahead of UTC, NaN where untold."""
    cells = table.frame[column]
    untold = np.full(len(cells), np.nan)
    if isinstance(cells.dtype, pd.DatetimeTZDtype):
        shown = cells.dt.tz_localize(None).astype("datetime64[ns]")
        utc = cells.dt.tz_convert("UTC").dt.tz_localize(None).astype("datetime64[ns]")
        return shown.to_numpy(), ((shown - utc) / pd.Timedelta(minutes=1)).to_numpy()
    if pd.api.types.is_datetime64_dtype(cells):
        return cells.astype("datetime64[ns]").to_numpy(), untold
    table = replace(table, frame=cells.astype("string").astype(object).to_frame())
    if options.time_format is None:
        return iso_times(table, column)
    if "%z" not in options.time_format.lower():
        return table.times(column, options.time_format).to_numpy(), untold
    if options.zone is None:
        raise InputError(
            f"{table.where(column)}: times with an offset in a time_format of their own need the "
            f"option zone, the IANA name of the place that people live in, like 'Europe/London'."
        )
    return _utc(table, column, options.time_format), untold


def _utc(table: RawTable, column: str, time_format: str) -> Times:
    cells = table.frame[column].str.strip()
    utc = pd.to_datetime(cells, format=time_format, errors="coerce", utc=True)
    wrong = utc.isna() & cells.notna() & (cells != "")
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise InputError(
            f"{table.where(column)}, row {cells.index[row] + 2}: '{cells.iloc[row]}' is no time "
            f"written like time_format '{time_format}' ({int(wrong.sum())} such cells). "
            f"Correct these, or the option."
        )
    return utc.dt.tz_localize(None).astype("datetime64[ns]").to_numpy()


def _glucose(
    table: RawTable, column: str, subjects: pd.Series, options: Options, entries: list[Counted]
) -> NDArray[np.float64]:
    """Glucose in mg/dL; raises `InputError` where the unit contradicts the option or itself."""
    glucose = table.glucose(column)
    read = pd.Series(np.where(np.isin(glucose, list(GLUCOSE_WORDS.values())), np.nan, glucose))
    typical = read.median()
    looks = "mmol/L" if typical < UNIT_BORDER else "mg/dL"
    if options.unit not in ("infer", looks) and not np.isnan(typical):
        raise InputError(
            f"{table.where(column)}: declared as {options.unit}, but its median is {typical:.1f}, "
            f"which looks like {looks}. Correct the option unit or the file."
        )
    unit = looks if options.unit == "infer" else options.unit
    by_person = read.groupby(subjects.to_numpy()).median().dropna()
    other = by_person[(by_person < UNIT_BORDER) != (unit == "mmol/L")]
    if len(other):
        raise InputError(
            f"{table.where(column)}: in {unit} by its median of {typical:.1f}, but the median of "
            f"subject '{other.index[0]}' is {other.iloc[0]:.1f} ({len(other)} such subjects). One "
            f"file holds one unit: put them into files of their own."
        )
    if unit == "mg/dL":
        return glucose
    if options.unit == "infer":
        counts = subjects[(~np.isnan(glucose)) & (subjects != "").to_numpy()].value_counts()
        reason = "glucose inferred to be mmol/L"
        entries.extend((str(s), "changed", reason, int(n)) for s, n in counts.items())
    return to_mg_dl(glucose)


def _basal_minutes(table: RawTable, named: dict[str, str], options: Options) -> NDArray[np.float64]:
    """How long each rate stands, NaN where there is none."""
    if "basal" not in named:
        return np.full(len(table.frame), np.nan)
    rate = table.numbers(named["basal"])
    minutes = np.full(len(rate), np.nan)
    if "basal_minutes" in named:
        minutes = table.numbers(named["basal_minutes"])
        wrong = ~np.isnan(rate) & (minutes <= 0)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise InputError(
                f"{table.where(named['basal_minutes'])}, row {table.frame.index[row] + 2}: a rate "
                f"that stands {minutes[row]:g} minutes ({int(wrong.sum())} such cells). Give "
                f"minutes above 0, or leave the cell empty for {options.basal_minutes:g}."
            )
    minutes = np.where(np.isnan(minutes), options.basal_minutes, minutes)
    return np.where(np.isnan(rate), np.nan, minutes)


def _local(rows: pd.DataFrame, options: Options) -> tuple[pd.DataFrame, list[Counted]]:
    """Canonical readings in local time, and what became of rows on the way."""
    shown, minutes = rows["time"].to_numpy(), rows["minutes"].to_numpy()
    columns: dict[str, Any] = {"subject": rows["subject"], "time": shown}
    columns |= {name: rows[name] for name in READING_COLUMNS}
    told = ~np.isnan(minutes)
    if options.zone is not None:
        columns["time"] = moments(shown, minutes)
        clock = zone_clock("source 'tidy', option 'zone'", options.zone, columns["time"])
        return to_local(readings_frame(columns), dict.fromkeys(rows["subject"], clock))
    if not told.any():
        return readings_frame(columns), []

    if (~told & ~np.isnat(shown)).any():
        raise InputError(
            "source 'tidy': some times have an offset from UTC and some have none. Give the "
            "option zone (those without an offset are then UTC), or write all of them alike."
        )
    if not minutes[told].any():
        raise InputError(
            "source 'tidy': every time is in UTC, and midnight is needed where people live. Give "
            "the option zone, an IANA name like 'America/New_York' ('UTC' if they live by it)."
        )
    columns["time"] = moments(shown, minutes)
    clocks = {
        subject: offset_clock(columns["time"][at], minutes[at])
        for subject, at in rows.groupby("subject").indices.items()
    }
    counts = rows.loc[told, "subject"].value_counts()
    reason = "times with an offset and no zone, read as what the clock showed"
    entries: list[Counted] = [(s, "noted", reason, n) for s, n in counts.items()]
    frame, on_the_way = to_local(readings_frame(columns), clocks)
    return frame, [*entries, *on_the_way]
