"""From moments (UTC) to what a person's clock showed; no local time twice, none invented.

A clock is a step function: between two changes it is a fixed time ahead of UTC. Put forward, it
skips an hour, which is then absent. Put back, by summer time or on a journey, it shows an hour
twice, and the 5-minute grid has room for one. The first pass stands. Of the second

- levels (glucose, heart rate) are left out: their slots hold the first pass;
- amounts (bolus, carbs, steps) are kept, so that units are conserved, at the end of the repeated
  hour. At the time that their clock showed they would lie among readings from before they were
  given, and a forecast made there would know of a dose to come;
- a basal rate counts from the end of the hour on. What it delivered within is left out, like
  glucose: as a rate of the first pass it would be a dose to come, and as a bolus it would be none.

A basal rate that stands over a change is split there, so that it neither runs through an hour
that was skipped nor stands too long. All of this is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.schema import READING_COLUMNS, SLOT, Counted, readings_frame
from nocturnal_kedro.sources._raw import RawTable

Times = NDArray[np.datetime64]

REPEATED = "in the hour that a clock change repeats"

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY_S, YEAR_MINUTES = 24 * 60 * 60, 366 * 24 * 60
TICK = np.timedelta64(1, "ns")
LONG_AGO, FAR = np.datetime64("1678-01-01", "ns"), np.datetime64("2262-01-01", "ns")

ISO_TIME = r"^(\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?) ?([Zz]|[+-]\d\d(?::?\d\d)?)?$"


@dataclass(frozen=True)
class Clock:
    """A person's clock: N changes, and between them N + 1 steps."""

    changes: Times  # UTC, ascending
    ahead: NDArray[np.timedelta64]  # of UTC, in each step
    resumes: Times  # in each step the first local time that was not shown in an earlier one

    def step(self, utc: Times) -> NDArray[np.intp]:
        """In which step each moment lies."""
        return np.searchsorted(self.changes, utc, side="right")

    def local(self, utc: Times) -> Times:
        """What the clock showed, some of it twice."""
        return utc + self.ahead[self.step(utc)]


def zone_clock(where: str, zone: str, utc: Times) -> Clock:
    """The clock of an IANA time zone over the moments `utc`; `InputError` on an unknown zone.

    `where` says in the error who named the zone.
    """
    offset_s = _offsets(where, zone)
    known = utc[~np.isnat(utc)].astype("datetime64[s]").astype(np.int64)
    if not len(known):
        known = np.zeros(1, dtype=np.int64)
    days = np.arange(known.min() - DAY_S, known.max() + 2 * DAY_S, DAY_S)
    by_day = [offset_s(int(day)) for day in days]
    changes = [
        _change(offset_s, int(days[day]), int(days[day + 1]))
        for day in np.flatnonzero(np.diff(by_day))
    ]
    ahead_s = [by_day[0], *(offset_s(change) for change in changes)]
    at = np.array(changes, dtype="datetime64[s]").astype("datetime64[ns]")
    ahead = np.array(ahead_s, dtype="timedelta64[s]").astype("timedelta64[ns]")
    return _clock(at, ahead, shown_until=at + ahead[:-1])


def offset_clock(utc: Times, minutes: NDArray[np.float64]) -> Clock:
    """The clock that rows tell: the `minutes` it was ahead of UTC, NaN where a row tells nothing.

    Between two that tell the earlier holds, before the first the first; of one moment the last.
    """
    order = np.argsort(utc, kind="stable")[: int((~np.isnat(utc)).sum())]
    at, ahead = utc[order], minutes[order]
    told = pd.Series(ahead, index=at).dropna()
    told = told[~told.index.duplicated(keep="last")]
    told = told[told.diff() != 0]  # the first, and every change
    steps = _minutes(told.to_numpy()) if len(told) else np.zeros(1, dtype="timedelta64[ns]")
    changes = told.index.to_numpy("datetime64[ns]")[1:]
    shown = at + steps[np.searchsorted(changes, at, side="right")]
    # When the clock was put back is known only by the rows. Half a slot beyond the last of all
    # rows before, nothing falls into that row's slot.
    newest = shown[np.searchsorted(at, changes) - 1]
    return _clock(changes, steps, newest + SLOT.to_timedelta64() // 2 + TICK)


def to_local(
    frame: pd.DataFrame, clocks: Mapping[str, Clock]
) -> tuple[pd.DataFrame, list[Counted]]:
    """Readings at UTC times on each person's own clock, and what became of rows on the way.

    Rows come back person by person in the order of time. Rows without a time stay as they are.
    """
    parts: list[pd.DataFrame] = []
    entries: list[Counted] = []
    for subject, rows in frame.groupby("subject", sort=False):
        person = str(subject)
        part, counted = _person_to_local(rows, clocks[person])
        parts.append(part)
        entries += [(person, *entry) for entry in counted]
    return (pd.concat(parts, ignore_index=True) if parts else frame), entries


def cut(start: Times, end: Times, points: Times) -> tuple[NDArray[np.intp], ...]:
    """Spans [start, end) cut at ascending `points`.

    Of each piece: its span, the number of points at or before it, its start, its end.
    """
    first = np.searchsorted(points, start, side="right")
    last = np.maximum(np.searchsorted(points, end, side="left"), first)
    pieces = last - first + 1
    span = np.repeat(np.arange(len(start)), pieces)
    before = np.cumsum(pieces) - pieces
    point = first[span] + np.arange(len(span)) - before[span]
    edges = np.concatenate([[LONG_AGO], points, [FAR]])
    return (
        span,
        point,
        np.maximum(start[span], edges[point]),
        np.minimum(end[span], edges[point + 1]),
    )


def iso_times(table: RawTable, column: str) -> tuple[Times, NDArray[np.float64]]:
    """A column of ISO 8601 times: the clock they show, and minutes ahead of UTC, NaN if untold.

    Empty cells are NaT. Raises `InputError` on anything else, a date without a time included.
    """
    cells = table.frame[column]
    texts = cells.astype("string").fillna("").str.strip().astype(object)
    parts = texts.str.extract(ISO_TIME)
    shown = pd.to_datetime(parts[0], format="ISO8601", errors="coerce")
    wrong = shown.isna() & (texts != "")
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise InputError(
            f"{table.where(column)}, row {cells.index[row] + 2}: '{cells.iloc[row]}' is no time in "
            f"ISO 8601, like '2023-12-31T23:59:58Z' or '2023-12-31 23:59:58+01:00' "
            f"({int(wrong.sum())} such cells). Correct these."
        )
    minutes = {text: _offset_minutes(text) for text in parts[1].dropna().unique()}
    return _ns(shown), parts[1].map(minutes).to_numpy(np.float64)


def moments(shown: Times, minutes: NDArray[np.float64]) -> Times:
    """UTC of what a clock shows that is `minutes` ahead; where that is NaN it shows UTC."""
    return shown - _minutes(np.nan_to_num(minutes))


def _person_to_local(
    rows: pd.DataFrame, clock: Clock
) -> tuple[pd.DataFrame, list[tuple[str, str, int]]]:
    rows = rows.sort_values("time", kind="stable")
    utc = rows["time"].to_numpy()
    step = clock.step(utc)
    shown, resumes = utc + clock.ahead[step], clock.resumes[step]
    again = shown < resumes
    spoke = rows[list(READING_COLUMNS)].notna().any(axis=1).to_numpy()
    glucose = again & rows["glucose_mg_dl"].notna().to_numpy()

    out = rows.assign(time=np.where(again, resumes, shown))
    out.loc[again, ["glucose_mg_dl", "heart_rate"]] = np.nan
    split, cut_short = _basal_to_local(rows, out, clock, step, again)

    silent = spoke & out[list(READING_COLUMNS)].isna().all(axis=1).to_numpy()
    counted = [
        ("dropped", f"glucose {REPEATED}", int((silent & glucose).sum())),
        ("dropped", f"basal or heart rate {REPEATED}", int((silent & ~glucose).sum())),
        ("changed", f"glucose {REPEATED}, set missing", int((~silent & glucose).sum())),
        ("changed", f"amounts {REPEATED}, put at its end", int((again & _amounts(rows)).sum())),
        ("noted", f"basal rates of which a part {REPEATED} is left out", cut_short),
        ("added", "basal rates split at a clock change", len(split)),
    ]
    return pd.concat([out[~silent], split], ignore_index=True), counted


def _basal_to_local(
    rows: pd.DataFrame,
    out: pd.DataFrame,
    clock: Clock,
    step: NDArray[np.intp],
    again: NDArray[np.bool_],
) -> tuple[pd.DataFrame, int]:
    """Mend in `out` the rates that a clock change touches; further rows, and how many lost a part.

    A rate stands until the next one, at most for its basal_minutes, as on the grid.
    """
    known = np.flatnonzero(rows["basal_u_h"].notna() & rows["time"].notna())
    start = rows["time"].to_numpy()[known]
    other = np.append(np.unique(start), FAR)
    following = other[np.searchsorted(other, start, side="right")]
    minutes = np.nan_to_num(rows["basal_minutes"].to_numpy()[known]).clip(0, YEAR_MINUTES)
    end = np.minimum(start + _minutes(minutes), following)

    touched = (clock.step(end) > step[known]) | again[known]
    known, start, end = known[touched], start[touched], end[touched]
    span, at, begins, ends = cut(start, end, clock.changes)
    shown = begins + clock.ahead[at]
    begins = np.maximum(shown, clock.resumes[at])
    lasts = (ends + clock.ahead[at] - begins) / np.timedelta64(1, "m")

    rates = rows["basal_u_h"].to_numpy()[known]
    own = (lasts > 0) & (at == step[known][span])
    mended = np.full((len(known), 2), np.nan)
    mended[span[own]] = np.stack([rates[span[own]], lasts[own]], axis=1)
    for number, column in enumerate(("basal_u_h", "basal_minutes")):
        out.iloc[known, out.columns.get_loc(column)] = mended[:, number]

    more = (lasts > 0) & ~own
    split: dict[str, Any] = {
        "subject": np.full(int(more.sum()), rows["subject"].iloc[0], dtype=object),
        "time": begins[more],
        "basal_u_h": rates[span[more]],
        "basal_minutes": lasts[more],
    }
    return readings_frame(split), len(np.unique(span[begins > shown]))


def _amounts(rows: pd.DataFrame) -> NDArray[np.bool_]:
    return rows[["bolus_u", "carbs_g", "steps"]].notna().any(axis=1).to_numpy()


def _clock(changes: Times, ahead: NDArray[np.timedelta64], shown_until: Times) -> Clock:
    resumes = np.maximum.accumulate(np.concatenate([[LONG_AGO], shown_until]))
    return Clock(changes, ahead, resumes)


def _offsets(where: str, zone: str) -> Callable[[int], int]:
    """The function from seconds since 1970 to the seconds that a zone is ahead of UTC."""
    try:
        info = ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        near = get_close_matches(zone, available_timezones(), n=1, cutoff=0.5)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise InputError(
            f"{where}: unknown time zone '{zone}'. Give an IANA name, like 'Europe/London' or "
            f"'America/New_York'.{hint}"
        ) from error

    def offset_s(second: int) -> int:
        ahead = (EPOCH + timedelta(seconds=second)).astimezone(info).utcoffset()
        assert ahead is not None
        return int(ahead.total_seconds())

    return offset_s


def _change(offset_s: Callable[[int], int], before: int, after: int) -> int:
    """The first second of the new offset, between two seconds whose offsets differ."""
    old = offset_s(before)
    while after - before > 1:
        middle = (before + after) // 2
        before, after = (middle, after) if offset_s(middle) == old else (before, middle)
    return after


def _offset_minutes(text: str) -> float:
    if text in "Zz":
        return 0.0
    digits = text[1:].replace(":", "").ljust(4, "0")
    minutes = 60 * int(digits[:2]) + int(digits[2:])
    return float(-minutes if text[0] == "-" else minutes)


def _minutes(minutes: NDArray[np.float64]) -> NDArray[np.timedelta64]:
    return np.round(minutes * 60e9).astype("timedelta64[ns]")


def _ns(times: Any) -> Times:
    return pd.DatetimeIndex(times).as_unit("ns").to_numpy()
