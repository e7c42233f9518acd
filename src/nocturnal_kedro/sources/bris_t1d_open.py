"""BrisT1D-Open: 20 young adults with type 1 diabetes, glucose alone, one CSV each, local time.

Read from the harmonised copy of Glucose-ML. Faults of the files that this reader mends, each
counted in the tally:

- The publisher converted mmol/L to mg/dL with the factor 18. Every value is brought back to mmol/L
  and converted with 18.0182: without that the sensors' ceiling of 22.2 mmol/L stays below 400.
- When a person's clock was set back (the end of summer time, a flight), or two sensors were worn,
  the same hours stand in the file twice, one series between the readings of the other. Two
  readings within 3 minutes that differ by more than 1 mmol/L cannot be of one series, and nothing
  tells whose time is right: both are dropped.

Fifteen people have a reading every 5 minutes, five every 15; one changes from 15 to 5 on the way.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.schema import Readings, make_tally, readings_frame
from nocturnal_kedro.sources import Files
from nocturnal_kedro.sources._raw import RawTable, read_table, require_files, to_mg_dl

TITLE = (
    "BrisT1D-Open, James et al. 2025, doi:10.5523/bris.33z5jc8fa6tob21ptrugzqog08, licence "
    "CC BY 4.0 (the harmonised copy of Glucose-ML)"
)
FOLDER = "bris_t1d_open/Bris-T1D_Open-extracted-glucose-files"
TIME, GLUCOSE = "timestamp", "glucose_value_mg_dl"
PUBLISHED_FACTOR = 18.0  # mg/dL per mmol/L, by which the publisher multiplied


class Options(BaseModel, extra="forbid", frozen=True):
    """When two readings cannot be of one series."""

    clash_minutes: float = Field(default=3.0, ge=0)  # nearer than this ...
    clash_mmol_l: float = Field(default=1.0, gt=0)  # ... and further apart than this


def find(root: Path, options: Options) -> list[Files]:
    """Every `PNN.csv`, a person each; raises `InputError` where there is none."""
    return [(file,) for file in require_files("bris_t1d_open", root, f"{FOLDER}/P*.csv", TITLE)]


def read(files: Files, options: Options) -> Readings:
    """Read one person's file; raises `InputError` on a value that was not converted by 18."""
    [path] = files
    subject = path.stem
    table = read_table("bris_t1d_open", path, [TIME, GLUCOSE], TITLE, numeric=[GLUCOSE])
    times = table.times(TIME, "%Y-%m-%d %H:%M:%S")
    mmol_l = _published_mmol_l(table)
    repeated = table.frame.duplicated([TIME, GLUCOSE], keep="last").to_numpy()
    clash = np.zeros(len(times), bool)
    clash[~repeated] = _clashes(times[~repeated], mmol_l[~repeated], options)
    kept = ~repeated & ~clash
    frame = readings_frame(
        {
            "subject": np.full(int(kept.sum()), subject),
            "time": times[kept],
            "glucose_mg_dl": to_mg_dl(mmol_l[kept]),
        }
    )
    converted = int(np.isfinite(mmol_l[kept]).sum())
    entries = [
        (subject, "in", "rows in file", len(times)),
        (subject, "dropped", "exact duplicate rows", int(repeated.sum())),
        (
            subject,
            "dropped",
            "two readings at once that disagree: clock set back",
            int(clash.sum()),
        ),
        (subject, "changed", "glucose converted with 18.0182 instead of 18", converted),
    ]
    return Readings(frame, make_tally("read", entries))


def _published_mmol_l(table: RawTable) -> np.ndarray:
    """The sensor's own value in mmol/L, to one decimal, from what the publisher made of it."""
    mg_dl = table.numbers(GLUCOSE)
    mmol_l = np.round(mg_dl / PUBLISHED_FACTOR, 1)
    foreign = np.abs(mg_dl - mmol_l * PUBLISHED_FACTOR) > 0.01
    if foreign.any():
        row = int(np.flatnonzero(foreign)[0])
        raise InputError(
            f"{table.where(GLUCOSE)}, row {row + 2}: {mg_dl[row]:g} is no tenth of a mmol/L times "
            f"18 ({int(foreign.sum())} such cells). The published values all are; another copy "
            f"may have been converted otherwise. Use the file as published: {TITLE}."
        )
    return mmol_l


def _clashes(times: pd.Series, mmol_l: np.ndarray, options: Options) -> np.ndarray:
    """Whether a reading contradicts the one before or after it in time."""
    order = np.argsort(times.to_numpy(), kind="stable")
    minutes = np.diff(times.to_numpy()[order]) / np.timedelta64(1, "m")
    apart = np.abs(np.diff(mmol_l[order]))
    pair = (minutes < options.clash_minutes) & (apart > options.clash_mmol_l + 1e-9)
    clash = np.zeros(len(times), bool)
    clash[order[:-1][pair]] = True
    clash[order[1:][pair]] = True
    return clash
