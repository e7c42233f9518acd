"""HUPA-UCM: 25 people with type 1 diabetes and a FreeStyle Libre 2, glucose alone, local time.

Read from the harmonised copy of Glucose-ML, in which every file is a complete 5-minute grid: the
publisher put the sensor's 15-minute readings on the quarter hours, drew straight lines between
them and through every gap. This reader keeps what can be a reading of the sensor:

1. One point in three. 66 to 98 % of the points of everyone but 0001P have a zero second
   difference. Of the 21 people beside 0001P, 0009P and 0010P, 16 have bends at :00, :15, :30 and
   :45 alone, for up to 141 days. Five have 24 to 79 bends between, values up to 260 mg/dL off the
   sensor's line: finger sticks or scans. The phase is taken from each person's bends all the same.
2. Whole mg/dL. The sensor writes no fractions; a fraction is a point on a line, or a mean.
3. Not on a long straight line. 6 % of the readings lie on the line of their neighbours, three in a
   row in 0.04 % of cases, so a line of an hour or more was drawn through a gap, as was one with a
   fraction on it. The longest lasts 11 days. Of 452 nights that look complete, 330 are.

A flat line at the sensor's floor of 40 or ceiling of 400 is kept however long: that is what it
writes through a deep low. A gap between two floors would look the same. 40 stands 15 times as
often as 41, so it is the sensor's LOW. A reading's true time is within some minutes of its quarter
hour; which way the publisher rounded is not said.

0026P has days twice, under the date with day and month swapped. Nothing says which is true: both
are dropped, or a test night would be a copy of a training night.

0001P looks like a 5-minute sensor but is two devices in one file: its quarter hours differ from
the points beside them by 31 mg/dL (standard deviation), up to 40 in the mean of a day. The same
rule keeps the quarter hours. 0009P and 0010P are almost all lines, and left out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.schema import (
    GLUCOSE_CEILING_MG_DL,
    GLUCOSE_FLOOR_MG_DL,
    STEP_MINUTES,
    Readings,
    Words,
    make_tally,
    readings_frame,
)
from nocturnal_kedro.sources import Files
from nocturnal_kedro.sources._raw import GLUCOSE_WORDS, RawTable, read_table, require_files

TITLE = (
    "HUPA-UCM, Hidalgo et al. 2024, doi:10.17632/3hbcscwz44.1, licence CC BY 4.0 (the harmonised "
    "copy of Glucose-ML)"
)
FOLDER = "hupa_ucm/HUPA-UCM-extracted-glucose-files"
TIME, GLUCOSE = "timestamp", "glucose_value_mg_dl"

CYCLE = 3  # points of the publisher's grid from one reading to the next
SWAPPED_SHARE, SWAPPED_POINTS = 0.3, 24  # of a day's points; chance makes one in fifty the same
ROUNDING_MG_DL = 1e-6  # of the publisher's arithmetic


class Options(BaseModel, extra="forbid", frozen=True):
    """Who is left out, and which lines are gaps."""

    exclude: Words = ("HUPA0009P", "HUPA0010P")  # hardly a reading among their points
    gap_minutes: float = Field(default=60.0, gt=15)  # a straight line of this length or more


def find(root: Path, options: Options) -> list[Files]:
    """Every `HUPANNNNP.csv`, a person each; raises `InputError` where there is none."""
    return [(file,) for file in require_files("hupa_ucm", root, f"{FOLDER}/HUPA*P.csv", TITLE)]


def read(files: Files, options: Options) -> Readings:
    """Read one person's file; raises `InputError` where it is not the publisher's 5-minute grid."""
    [path] = files
    subject = path.stem
    table = read_table("hupa_ucm", path, [TIME, GLUCOSE], TITLE, numeric=[GLUCOSE])
    times = table.times(TIME, "%Y-%m-%d %H:%M:%S")
    glucose = table.numbers(GLUCOSE)
    slot = _grid_slots(table, times)

    due = slot % CYCLE == _reading_phase(slot, glucose)
    whole = ~(np.abs(glucose - np.round(glucose)) > ROUNDING_MG_DL)
    in_gap = np.zeros(len(slot), bool)
    in_gap[due] = _on_gap_lines(slot[due], glucose[due], whole[due], options)
    twice = _under_two_dates(times, glucose)
    excluded = subject in options.exclude
    kept = due & whole & ~in_gap & ~twice & (not excluded)
    low = kept & (glucose <= GLUCOSE_FLOOR_MG_DL)
    frame = readings_frame(
        {
            "subject": np.full(int(kept.sum()), subject),
            "time": times[kept],
            "glucose_mg_dl": np.where(low, GLUCOSE_WORDS["LOW"], glucose)[kept],
        }
    )
    entries = [(subject, "in", "rows in file", len(slot))]
    if excluded:
        entries += [(subject, "dropped", "person excluded: hardly a real reading", len(slot))]
    else:
        entries += [
            (subject, "dropped", "on a day that stands under two dates", int(twice.sum())),
            (
                subject,
                "dropped",
                "between the 15-minute sensor's readings",
                int((~twice & ~due).sum()),
            ),
            (
                subject,
                "dropped",
                "on a straight line through a gap",
                int((~twice & due & in_gap).sum()),
            ),
            (subject, "dropped", "no whole mg/dL", int((~twice & due & ~in_gap & ~whole).sum())),
            (subject, "changed", "at the sensor's floor: read as LOW", int(low.sum())),
        ]
    return Readings(frame, make_tally("read", entries))


def _under_two_dates(times: pd.Series, glucose: np.ndarray) -> np.ndarray:
    """Rows of days of which a good part stands on the date with day and month swapped too."""
    date, day, month = times.dt.normalize(), times.dt.day, times.dt.month
    swapped = pd.to_datetime(
        {"year": times.dt.year, "month": day, "day": month}, errors="coerce"
    ).where(day != month)
    other = swapped + (times - date)
    there = pd.Series(glucose, index=times.to_numpy()).reindex(other).to_numpy()
    by_day = pd.DataFrame({"date": date, "there": ~np.isnan(there), "same": there == glucose})
    counts = by_day.groupby("date")[["there", "same"]].transform("sum")
    compared = counts["there"] >= SWAPPED_POINTS
    return np.asarray(compared & (counts["same"] >= SWAPPED_SHARE * counts["there"]))


def _grid_slots(table: RawTable, times: pd.Series) -> np.ndarray:
    """Which 5-minute slot each row is, counted from a midnight; rows must ascend on the grid."""
    since = (times - times.min().normalize()) / pd.Timedelta(minutes=STEP_MINUTES)
    wrong = since.isna() | (since % 1 != 0) | (since.diff() <= 0)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise InputError(
            f"{table.where(TIME)}, row {row + 2}: '{table.frame[TIME].iloc[row]}' is empty, not on "
            f"a full 5 minutes or not after the row before ({int(wrong.sum())} such rows). The "
            f"published grid is regular, and real readings cannot be told from interpolated ones "
            f"without it. Use the file as published: {TITLE}."
        )
    return since.to_numpy().astype(np.int64)


def _reading_phase(slot: np.ndarray, glucose: np.ndarray) -> int:
    """The place in the cycle of three points where the line bends most often."""
    return int(np.argmax(np.bincount(slot[_bends(slot, glucose, 1)] % CYCLE, minlength=CYCLE)))


def _on_gap_lines(
    slot: np.ndarray, glucose: np.ndarray, whole: np.ndarray, options: Options
) -> np.ndarray:
    """Whether a point is within a line that was drawn through a gap; its ends are readings."""
    within = ~_bends(slot, glucose, CYCLE)
    starts = within & ~np.r_[False, within[:-1]]
    line = np.cumsum(starts) * within  # number of the line that a point is within, 0 for none
    points = np.bincount(line)
    at_limit = (glucose <= GLUCOSE_FLOOR_MG_DL) | (glucose >= GLUCOSE_CEILING_MG_DL)
    flat = np.bincount(line, weights=at_limit) == points
    broken = np.bincount(line, weights=~whole) > 0
    long = (points + 1) * CYCLE * STEP_MINUTES >= options.gap_minutes
    gap = (long & ~flat) | broken
    gap[0] = False
    return np.asarray(gap[line])


def _bends(slot: np.ndarray, glucose: np.ndarray, step: int) -> np.ndarray:
    """Whether a point is off the line of its neighbours `step` slots away, or lacks one."""
    bends = np.ones(len(slot), bool)
    if len(slot) > 2:
        adjacent = (np.diff(slot)[1:] == step) & (np.diff(slot)[:-1] == step)
        straight = np.abs(np.diff(glucose, 2)) < ROUNDING_MG_DL * 3
        bends[1:-1] = ~(adjacent & straight)
    return bends
