"""The frames that every room agrees on: readings, series, splits, origins."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import numpy as np
import pandas as pd
import pandera.pandas as pa
from pydantic import BeforeValidator

STEP_MINUTES = 5
# A rate written with every reading stands until the next is due, which may come a little late.
BASAL_RECORD_MINUTES = 1.5 * STEP_MINUTES
STEPS_PER_HOUR = 60 // STEP_MINUTES
STEPS_PER_DAY = 24 * STEPS_PER_HOUR
SLOT = pd.Timedelta(minutes=STEP_MINUTES)

MG_DL_PER_MMOL_L = 18.0182
LOW_MG_DL, VERY_LOW_MG_DL = 70.0, 54.0  # levels 1 and 2 of the international consensus
GLUCOSE_FLOOR_MG_DL, GLUCOSE_CEILING_MG_DL = 40.0, 400.0


def _as_words(given: object) -> object:
    return tuple(str(given).split()) if isinstance(given, str | int) else given or ()


# Names in a list, or, as on the command line, in one text with spaces between them.
Words = Annotated[tuple[str, ...], BeforeValidator(_as_words)]


def _as_numbers(given: object) -> object:
    return str(given).split() if isinstance(given, str | int | float) else given


# Numbers in a list, or, as on the command line, in one text with spaces between them.
Number = TypeVar("Number", int, float)
Numbers = Annotated[tuple[Number, ...], BeforeValidator(_as_numbers)]

# Of every forecast: WQL and CRPS integrate over them, 0.01 and 0.99 bound the 98 % interval.
QUANTILE_LEVELS = (0.01, *(round(0.05 * k, 2) for k in range(1, 20)), 0.99)

SPLITS = ("train", "validation", "temporal", "patient", "unused")
TEST_SPLITS = ("patient", "temporal")

# What a source may say about one moment; NaN means that it says nothing. A rate stands until the
# next, at most for its basal_minutes; basal_minutes without a rate end the one before.
READING_COLUMNS = (
    "glucose_mg_dl",
    "basal_u_h",
    "basal_minutes",
    "bolus_u",
    "carbs_g",
    "steps",
    "heart_rate",
)
# What the series holds for one 5-minute slot; NaN means unobserved.
SERIES_CHANNELS = ("glucose_mg_dl", "basal_u_h", "bolus_u", "carbs_g", "steps", "heart_rate")

# What one entry may say, lowest and highest; the grid sets anything else missing and counts it.
PLAUSIBLE = {
    "basal_u_h": (0.0, 50.0),
    "bolus_u": (0.0, 100.0),
    "carbs_g": (0.0, 1000.0),
    "steps": (0.0, 5000.0),
    "heart_rate": (20.0, 260.0),
}

# What became of rows: what came "in" and was "added", less what was "dropped", goes on to the
# next stage; "changed" and "noted" rows are among those.
EFFECTS = ("in", "added", "dropped", "changed", "noted")
TALLY_COLUMNS = ("subject", "stage", "effect", "reason", "rows")
Counted = tuple[str, str, str, int]  # subject ("" where a row names none), effect, reason, rows


@dataclass(frozen=True)
class Readings:
    """What a source read: irregular canonical rows, and a tally of every row on the way."""

    frame: pd.DataFrame  # subject, time and READING_COLUMNS, in any order of rows
    tally: pd.DataFrame  # TALLY_COLUMNS


def make_tally(stage: str, entries: Iterable[Counted]) -> pd.DataFrame:
    """A tally frame of one stage; entries of zero rows are left out."""
    rows = [(entry[0], stage, *entry[1:]) for entry in entries if entry[3]]
    unknown = {row[2] for row in rows} - set(EFFECTS)
    if unknown:
        raise ValueError(f"effects {sorted(unknown)}; known: {', '.join(EFFECTS)}")
    return pd.DataFrame(rows, columns=list(TALLY_COLUMNS)).astype({"rows": "int64"})


def readings_frame(columns: dict[str, Any]) -> pd.DataFrame:
    """A readings frame in canonical dtypes; columns that a source does not know become NaN."""
    length = len(columns["time"])
    frame = pd.DataFrame(
        {
            "subject": np.asarray(columns["subject"], dtype=object),
            "time": pd.DatetimeIndex(columns["time"]).as_unit("ns"),
        },
        index=pd.RangeIndex(length),
    )
    for name in READING_COLUMNS:
        frame[name] = np.asarray(columns.get(name, np.full(length, np.nan)), dtype=np.float64)
    return frame


def _on_grid(time: pd.Series) -> bool:
    return bool((time.to_numpy().view("int64") % SLOT.value == 0).all())


def _level(low: float, high: float) -> pa.Column:
    return pa.Column(float, pa.Check.in_range(low, high), nullable=True)


def _amount() -> pa.Column:  # several entries may fall into one slot
    return pa.Column(float, pa.Check.ge(0), nullable=True)


_KEY = {"source": pa.Column(str), "subject": pa.Column(str)}
_CATEGORY = {"source": pa.Column("category"), "subject": pa.Column("category")}

SERIES = pa.DataFrameSchema(
    {
        **_CATEGORY,  # names by the million would be a gigabyte of text
        "time": pa.Column("datetime64[ns]", pa.Check(_on_grid)),
        "glucose_mg_dl": _level(GLUCOSE_FLOOR_MG_DL, GLUCOSE_CEILING_MG_DL),
        "glucose_clipped": pa.Column(bool),
        "glucose_late": pa.Column(bool),
        "basal_u_h": _level(*PLAUSIBLE["basal_u_h"]),
        "bolus_u": _amount(),
        "carbs_g": _amount(),
        "steps": _amount(),
        "heart_rate": _level(*PLAUSIBLE["heart_rate"]),
        "insulin_flagged": pa.Column(bool),
    },
    unique=["source", "subject", "time"],
    strict=True,
    ordered=True,
)

TALLY = pa.DataFrameSchema(
    {
        "subject": pa.Column(str),
        "stage": pa.Column(str, pa.Check.isin(("read", "grid", "nights"))),
        "effect": pa.Column(str, pa.Check.isin(EFFECTS)),
        "reason": pa.Column(str),
        "rows": pa.Column(int, pa.Check.gt(0)),
        "source": pa.Column(str),
    },
    strict=True,
)

SPLIT_TABLE = pa.DataFrameSchema(
    {
        **_KEY,
        "split": pa.Column(str, pa.Check.isin(SPLITS)),
        "start": pa.Column("datetime64[ns]"),
        "end": pa.Column("datetime64[ns]"),
    },
    checks=pa.Check(lambda frame: frame["start"] < frame["end"], error="start must precede end"),
    strict=True,
    ordered=True,
)

ORIGIN_TABLE = pa.DataFrameSchema(
    {
        **_KEY,
        "origin": pa.Column("datetime64[ns]"),
        "split": pa.Column(str, pa.Check.isin(SPLITS)),
    },
    unique=["source", "subject", "origin"],
    strict=True,
    ordered=True,
)
