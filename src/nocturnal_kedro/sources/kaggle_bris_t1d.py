"""BrisT1D as a Kaggle competition gave it: 9 people, a wide row per moment, and no date.

A row holds its moment and the 71 slots of 5 minutes before it. What the reader makes of that:

- The series is every moment on record: of each row its own and the lags that lie between it and
  the row before, of the first row of a stretch all six hours. People with a reading every 15
  minutes have their insulin in those lags.
- The clock going back means a new day; the dates are invented. Two rows are joined only where their
  windows overlap and agree there. Elsewhere lies a gap of unknown length, of days perhaps, and
  what follows is moved to the same clock time `GAP_DAYS` later: no night is put together from two.
- Insulin is basal and bolus in one amount. It is told as a rate of those 5 minutes, so that 0 stays
  0 and missing stays missing; what no basal rate gives is told as a bolus, with a rate of 0.

`test.csv` holds single windows in random order, no series, and is never read.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.schema import (
    STEP_MINUTES,
    Counted,
    Readings,
    make_tally,
    readings_frame,
)
from nocturnal_kedro.sources import Files
from nocturnal_kedro.sources._large import each
from nocturnal_kedro.sources._raw import RawTable, read_table, require_files, to_mg_dl

TITLE = (
    "the Kaggle competition 'BrisT1D Blood Glucose Prediction Competition' "
    "(kaggle.com/competitions/brist1d; James et al. 2025, arXiv:2507.17757)"
)
FILE = "kaggle_bris_t1d/train.csv"

CHANNELS = ("bg", "insulin", "carbs", "hr", "steps")
UNUSED = ("activity", "cals")
LAGS = 72  # slots of a row's window: -5:55 to -0:00
DAY_MINUTES = 24 * 60
GAP_DAYS = 3  # more than a context of 512 steps and a window of 6 hours
ENOUGH = 3  # values other than 0 that must agree before two windows are taken for one stretch


class Options(BaseModel, extra="forbid", frozen=True):
    """What the file does not say."""

    first_day: date = date(2024, 1, 1)  # everyone's, invented
    basal_highest_u_h: float = Field(default=8.0, gt=0)  # above: the 5 minutes hold a bolus


def find(root: Path, options: Options) -> list[Files]:
    """The training table, all people in it; raises `InputError` where it is absent."""
    return [(file,) for file in require_files("kaggle_bris_t1d", root, FILE, TITLE)]


def read(files: Files, options: Options) -> Readings:
    """Read the training table; raises `InputError` on a missing column or an unreadable cell."""
    [path] = files
    people, clock, windows, entries = _windows(_read_lean(path))
    first, joined, slots = _joined(people.codes, clock, windows)
    minutes = _invented_minutes(first, joined, clock)

    # Of each row the moments that none before it holds: own or lagged, if anything is on record.
    new = np.where(joined, slots, LAGS)
    row = np.repeat(np.arange(len(new)), new)
    lag = np.arange(len(row)) - np.repeat(np.cumsum(new) - new, new)
    said = np.any([~np.isnan(window[row, lag]) for window in windows.values()], axis=0)
    row, lag = row[(lag == 0) | said], lag[(lag == 0) | said]
    moments = {channel: window[row, lag] for channel, window in windows.items()}
    time = pd.Timestamp(options.first_day) + pd.to_timedelta(
        minutes[row] - STEP_MINUTES * lag, unit="min"
    )

    basal, bolus = _split_insulin(moments["insulin"], options.basal_highest_u_h)
    rated = ~np.isnan(basal)
    silent, unrated = np.full(rated.sum(), np.nan), np.full(len(row), np.nan)
    frame = readings_frame(
        {
            "subject": people[np.append(row, row[rated])],
            # Insulin of the 5 minutes before a moment: a rate that stands from their begin.
            "time": time.append(time[rated] - pd.Timedelta(minutes=STEP_MINUTES)),
            "glucose_mg_dl": np.append(to_mg_dl(moments["bg"]), silent),
            "basal_u_h": np.append(unrated, basal[rated]),
            "basal_minutes": np.append(unrated, np.full(rated.sum(), STEP_MINUTES)),
            "bolus_u": np.append(bolus, silent),
            "carbs_g": np.append(moments["carbs"], silent),
            "steps": np.append(moments["steps"], silent),
            "heart_rate": np.append(moments["hr"], silent),
        }
    )
    everyone = np.full(len(people), True)
    for whose, rows, effect, reason in (
        (people, joined & (slots == 0), "dropped", "rows repeated"),
        (people[row], lag > 0, "added", "moments between rows, from the lag columns"),
        (people[row], rated, "added", "insulin of the 5 minutes before, on a row at their begin"),
        (people[row], bolus > 0, "changed", "insulin above any basal rate, told as a bolus"),
        (people, ~first & ~joined, "noted", f"gaps of unknown length, {GAP_DAYS} days added"),
        (people, everyone, "noted", "rows with an invented date: the file has the clock alone"),
    ):
        entries += each(whose, rows, effect, reason)
    return Readings(frame, make_tally("read", entries))


def _windows(
    table: RawTable,
) -> tuple[pd.Categorical, np.ndarray, dict[str, np.ndarray], list[Counted]]:
    """Person, clock in minutes and windows of each row that a series can use; all are counted."""
    people, clock = pd.Categorical(table.frame["p_num"]), _clock_minutes(table)
    windows = {  # rows x lags, the row's own moment first
        channel: np.stack([table.numbers(_column(channel, lag)) for lag in range(LAGS)], axis=1)
        for channel in CHANNELS
    }
    nobody = people.codes < 0
    untimed = np.isnan(clock) & ~nobody
    empty = np.all([np.isnan(window).all(axis=1) for window in windows.values()], axis=0)
    empty &= ~nobody & ~untimed
    entries = [
        *each(people, np.full(len(people), True), "in", "rows of train.csv"),
        *each(people, nobody, "dropped", "rows that name no person"),
        *each(people, untimed, "dropped", "rows without a clock time"),
        *each(people, empty, "dropped", "rows whose six hours hold nothing"),
    ]
    for channel in UNUSED:
        if _column(channel, 0) in table.frame:
            filled = table.frame[_column(channel, 0)].notna().to_numpy()
            entries += each(people, filled, "noted", f"'{channel}' is not used")

    usable = np.flatnonzero(~nobody & ~untimed & ~empty)
    usable = usable[np.argsort(people.codes[usable], kind="stable")]  # each person's as in the file
    windows = {channel: window[usable] for channel, window in windows.items()}
    return people[usable], clock[usable], windows, entries


def _joined(
    person: np.ndarray, clock: np.ndarray, windows: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First row of a person; whether a row goes on from the one before it; slots between them.

    Slots are -1 where the clock tells no number of slots that the windows could overlap by.
    """
    first = np.append(True, person[1:] != person[:-1])[: len(person)]
    apart = np.append(0, np.diff(clock))[: len(clock)] % DAY_MINUTES
    slots = np.where(apart % STEP_MINUTES == 0, apart // STEP_MINUTES, -1).astype(np.int64)
    slots[first | (slots >= LAGS)] = -1
    joined = np.zeros(len(person), dtype=bool)
    for shift in np.unique(slots[slots >= 0]):
        rows = np.flatnonzero(slots == shift)
        agree, shared = zip(
            *(
                _agree(window[rows - 1, : LAGS - shift], window[rows, shift:])
                for window in windows.values()
            ),
            strict=True,
        )
        # Glucose alone decides where it can; elsewhere nothing on record may disagree.
        joined[rows] = np.where(
            shared[0] >= ENOUGH,
            agree[0],
            np.all(agree, axis=0) & (np.sum(shared, axis=0) >= ENOUGH),
        )
    return first, joined, slots


def _agree(earlier: np.ndarray, later: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per row, whether no moment holds two values, and how many hold the same one, not 0."""
    same = earlier == later
    no_conflict = (same | np.isnan(earlier) | np.isnan(later)).all(axis=1)
    return no_conflict, (same & (later != 0)).sum(axis=1)


def _invented_minutes(first: np.ndarray, joined: np.ndarray, clock: np.ndarray) -> np.ndarray:
    """Minutes of each row since midnight of its person's first day."""
    apart = np.append(0, np.diff(clock))[: len(clock)] % DAY_MINUTES
    apart = np.where(joined, apart, apart + GAP_DAYS * DAY_MINUTES)
    apart[first] = 0
    since = np.cumsum(apart)
    start = np.flatnonzero(first)[np.cumsum(first) - 1] if len(first) else np.array([], dtype=int)
    return since - since[start] + clock[start]


def _split_insulin(units: np.ndarray, basal_highest_u_h: float) -> tuple[np.ndarray, np.ndarray]:
    """U per 5 minutes as a rate in U/h and a bolus in U; all units are in one of them."""
    rate = units * 60 / STEP_MINUTES
    is_bolus = rate > basal_highest_u_h
    return np.where(is_bolus, 0.0, rate), np.where(is_bolus, units, np.nan)


def _clock_minutes(table: RawTable) -> np.ndarray:
    """Minutes since midnight of a clock time."""
    times = table.times("time", "%H:%M:%S", "%H:%M")
    return ((times - times.dt.normalize()).dt.total_seconds() / 60).to_numpy()


def _column(channel: str, lag: int) -> str:
    """The name of a channel's column `lag` slots before the row's moment."""
    hours, minutes = divmod(lag * STEP_MINUTES, 60)
    return f"{channel}-{hours}:{minutes:02d}"


def _read_lean(path: Path) -> RawTable:
    """The columns needed of some 500; cells that are no numbers are named by `RawTable`."""
    numbers = [_column(channel, lag) for channel in CHANNELS for lag in range(LAGS)]
    wanted = {"p_num", "time", *numbers, *(_column(channel, 0) for channel in UNUSED)}
    try:
        frame = pd.read_csv(
            path,
            encoding="utf-8-sig",
            usecols=lambda name: name.strip() in wanted,
            dtype=dict.fromkeys(wanted, str) | dict.fromkeys(numbers, np.float64),
        )
        frame.columns = frame.columns.str.strip()
        table = RawTable("kaggle_bris_t1d", path, frame)
    except (ValueError, TypeError):  # a cell that is no number, or no text: named below
        table = read_table("kaggle_bris_t1d", path, ("p_num", "time"), TITLE)
    lacking = [name for name in ("p_num", "time", *numbers) if name not in table.frame]
    if lacking:
        raise InputError(
            f"source 'kaggle_bris_t1d', file '{path}': no column '{lacking[0]}' ({len(lacking)} "
            f"lack). A row needs p_num, time and, from -5:55 to -0:00, {', '.join(CHANNELS)}. Use "
            f"the file as published: {TITLE}."
        )
    return table
