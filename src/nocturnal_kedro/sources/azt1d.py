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
import pandas as pd
from pydantic import BaseModel

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.schema import BASAL_RECORD_MINUTES, Readings, make_tally, readings_frame

TITLE = (
    "AZT1D, Khamesian et al., IEEE BSN 2025, doi:10.17632/gk9m674wcx.1, licence CC BY 4.0 "
    "(Mendeley Data)"
)
FOLDER = Path("azt1d") / "CGM Records"

GLUCOSE_NAMES = ("CGM", "Readings (CGM / BGM)")  # subject 14 uses the second
REQUIRED = ("EventDateTime", "Basal", "TotalBolusInsulinDelivered", "CarbSize")


class Options(BaseModel, extra="forbid", frozen=True):
    """What counts as usable insulin; the defaults hold for the published files."""

    basal_milliunits_from: float = 30.0  # U/h; as written from here on it is mU/h
    basal_highest_u_h: float = 8.0  # between this and the above no unit makes sense


def read(root: Path, options: Options) -> Readings:
    """Read every `Subject N/Subject N.csv`; raises `InputError` on a missing folder or column."""
    folder = root / FOLDER
    files = sorted(folder.glob("Subject */Subject *.csv"), key=lambda path: int(path.stem[8:]))
    if not files:
        raise InputError(
            f"source 'azt1d': no 'Subject N/Subject N.csv' under '{folder}'. Download {TITLE} and "
            f"unpack it so that this folder exists, or give its parent as raw_root, e.g. "
            f'--params="sources=azt1d,raw_root=path/to/data".'
        )
    parts = [_read_subject(path, options) for path in files]
    return Readings(
        frame=pd.concat([part.frame for part in parts], ignore_index=True),
        tally=pd.concat([part.tally for part in parts], ignore_index=True),
    )


def _read_subject(path: Path, options: Options) -> Readings:
    subject = path.stem.removeprefix("Subject ")
    raw = pd.read_csv(path)
    glucose_column = next((name for name in GLUCOSE_NAMES if name in raw), None)
    missing = [name for name in REQUIRED if name not in raw]
    if glucose_column is None:
        missing.append(" or ".join(GLUCOSE_NAMES))
    if missing:
        raise InputError(
            f"source 'azt1d', file '{path}': no column {', '.join(map(repr, missing))}; "
            f"it has: {', '.join(raw.columns)}. Use the file as published: {TITLE}."
        )

    # Rows are repeated at one timestamp, boluses with them: an amount that stands twice at the
    # same time was given once. The last row of each kind keeps the newest glucose reading.
    amounts = ["EventDateTime", "TotalBolusInsulinDelivered", "CarbSize"]
    repeated = raw.duplicated(amounts, keep="last")
    if repeated.any():  # a rate that only an earlier of them tells is kept
        raw["Basal"] = raw.groupby(amounts, dropna=False)["Basal"].transform("last")
    kept = raw[~repeated]

    basal, milliunits, unusable = _mend_basal(_numbers(kept, "Basal", path), options)
    bolus = _numbers(kept, "TotalBolusInsulinDelivered", path)
    carbs = _numbers(kept, "CarbSize", path)
    frame = readings_frame(
        {
            "subject": np.full(len(kept), subject),
            "time": _times(kept, path),
            "glucose_mg_dl": _numbers(kept, str(glucose_column), path),
            "basal_u_h": basal,
            "basal_minutes": np.where(np.isnan(basal), np.nan, BASAL_RECORD_MINUTES),
            "bolus_u": np.where(bolus > 0, bolus, np.nan),  # 0 here means "no bolus in this row"
            "carbs_g": np.where(carbs > 0, carbs, np.nan),
        }
    )
    return Readings(
        frame=frame,
        tally=make_tally(
            [
                (subject, "read", "rows in file", len(raw)),
                (subject, "read", "rows repeated at one time", int(repeated.sum())),
                (subject, "read", "basal rewritten from mU/h to U/h", milliunits),
                (subject, "read", "basal in no usable unit, set missing", unusable),
            ]
        ),
    )


def _mend_basal(basal: np.ndarray, options: Options) -> tuple[np.ndarray, int, int]:
    """Basal in U/h, how many values were mU/h, how many had no usable unit."""
    milliunits = basal >= options.basal_milliunits_from
    mended = np.where(milliunits, basal / 1000, basal)
    unusable = (mended > options.basal_highest_u_h) | (mended < 0)
    return np.where(unusable, np.nan, mended), int(milliunits.sum()), int(unusable.sum())


def _times(raw: pd.DataFrame, path: Path) -> pd.Series:
    try:
        return pd.to_datetime(raw["EventDateTime"], format="%Y-%m-%d %H:%M:%S")
    except ValueError as error:
        raise InputError(
            f"source 'azt1d', file '{path}', column 'EventDateTime': {error}. "
            f"Times are written like '2023-12-08 00:04:00'."
        ) from error


def _numbers(raw: pd.DataFrame, column: str, path: Path) -> np.ndarray:
    try:
        return pd.to_numeric(raw[column]).to_numpy(dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"source 'azt1d', file '{path}', column '{column}': {error}. "
            f"Only numbers and empty cells are allowed there."
        ) from error
