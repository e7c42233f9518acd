"""AZT1D: 25 people on automated insulin delivery, one CSV each, local time.

Faults of the files that this reader mends, each counted in the tally:
basal written in mU/h, basal in no usable unit, rows repeated up to 1,872 times, a second name for
the glucose column, zeros where others leave a cell empty, and people whose logged bolus insulin
is implausible (their glucose is kept, their insulin is flagged by the grid). Subject 14's finger
sticks are not marked, and nothing tells them from the sensor: where a time holds two readings, the
grid keeps the last.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import BaseModel

from nocturnal_kedro.series.schema import BASAL_RECORD_MINUTES, Readings, make_tally, readings_frame
from nocturnal_kedro.sources import Files
from nocturnal_kedro.sources._raw import RawTable, read_table, require_files

TITLE = (
    "AZT1D, Khamesian et al., IEEE BSN 2025, doi:10.17632/gk9m674wcx.1, licence CC BY 4.0 "
    "(Mendeley Data)"
)
FOLDER = "azt1d/CGM Records"

GLUCOSE_NAMES = ("CGM", "Readings (CGM / BGM)")  # subject 14 uses the second
REQUIRED = ("EventDateTime", "Basal", "TotalBolusInsulinDelivered", "CarbSize")


class Options(BaseModel, extra="forbid", frozen=True):
    """What counts as usable insulin; the defaults hold for the published files."""

    basal_milliunits_from: float = 30.0  # U/h; as written from here on it is mU/h
    basal_highest_u_h: float = 8.0  # between this and the above no unit makes sense


def find(root: Path, options: Options) -> list[Files]:
    """Every `Subject N/Subject N.csv`, a person each; raises `InputError` where there is none."""
    files = require_files("azt1d", root, f"{FOLDER}/Subject */Subject *.csv", TITLE)
    return [(file,) for file in sorted(files, key=lambda file: (len(file.stem), file.stem))]


def read(files: Files, options: Options) -> Readings:
    """Read one person's file; raises `InputError` on a missing column or an unreadable cell."""
    [path] = files
    subject = path.stem.removeprefix("Subject ")
    table = read_table("azt1d", path, [*REQUIRED, GLUCOSE_NAMES], TITLE)
    raw = table.frame
    glucose_column = next(name for name in GLUCOSE_NAMES if name in raw)

    # Rows are repeated at one timestamp, boluses with them: an amount that stands twice at the
    # same time was given once. The last row of each kind keeps the newest glucose reading.
    amounts = ["EventDateTime", "TotalBolusInsulinDelivered", "CarbSize"]
    repeated = raw.duplicated(amounts, keep="last")
    if repeated.any():  # a rate that only an earlier of them tells is kept
        raw["Basal"] = raw.groupby(amounts, dropna=False)["Basal"].transform("last")
    kept = RawTable("azt1d", path, raw[~repeated])

    basal, milliunits, unusable = _mend_basal(kept.numbers("Basal"), options)
    bolus = kept.numbers("TotalBolusInsulinDelivered")
    carbs = kept.numbers("CarbSize")
    frame = readings_frame(
        {
            "subject": np.full(len(kept.frame), subject),
            "time": kept.times("EventDateTime", "%Y-%m-%d %H:%M:%S"),
            "glucose_mg_dl": kept.glucose(glucose_column),
            "basal_u_h": basal,
            "basal_minutes": np.where(np.isnan(basal), np.nan, BASAL_RECORD_MINUTES),
            "bolus_u": np.where(bolus > 0, bolus, np.nan),  # 0 here means "no bolus in this row"
            "carbs_g": np.where(carbs > 0, carbs, np.nan),
        }
    )
    entries = [
        (subject, "in", "rows in file", len(raw)),
        (subject, "dropped", "rows repeated at one time", int(repeated.sum())),
        (subject, "changed", "basal rewritten from mU/h to U/h", milliunits),
        (subject, "changed", "basal in no usable unit, set missing", unusable),
    ]
    return Readings(frame, make_tally("read", entries))


def _mend_basal(basal: np.ndarray, options: Options) -> tuple[np.ndarray, int, int]:
    """Basal in U/h, how many values were mU/h, how many had no usable unit."""
    milliunits = basal >= options.basal_milliunits_from
    mended = np.where(milliunits, basal / 1000, basal)
    unusable = (mended > options.basal_highest_u_h) | (mended < 0)
    return np.where(unusable, np.nan, mended), int(milliunits.sum()), int(unusable.sum())
