"""Irregular readings onto the 5-minute grid: nothing invented, units conserved, rows counted.

A glucose reading belongs to the nearest slot. A slot `t` holds the insulin and carbs of
(t - 5 min, t], so a slot at or before an origin never holds a dose given after it; a glucose
reading may be up to 2.5 minutes younger than its slot, which `glucose_late` says.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.schema import (
    GLUCOSE_CEILING_MG_DL,
    GLUCOSE_FLOOR_MG_DL,
    MG_DL_PER_MMOL_L,
    PLAUSIBLE,
    READING_COLUMNS,
    SLOT,
    STEP_MINUTES,
    STEPS_PER_DAY,
    Readings,
    make_tally,
)

STEP_NS = STEP_MINUTES * 60 * 10**9


class GridOptions(BaseModel, extra="forbid", frozen=True):
    """What the grid takes for real."""

    glucose_lowest_mg_dl: float = Field(default=10.0, ge=0)  # below: no reading at all
    glucose_highest_mg_dl: float = Field(default=1000.0, gt=0)
    bolus_highest_u_day: float = Field(default=100.0, gt=0)  # mean of a person, above: flagged


def build_series(
    readings: dict[str, Readings], options: GridOptions
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The gridded series of every source and person, and the tally of every row on its way.

    Returns a frame in `schema.SERIES` and a tally with columns source, subject, stage, reason,
    rows. Raises `InputError` on a missing column, on glucose that is not in mg/dL and when no
    reading is left.
    """
    frames, tallies = [], []
    for source, read in readings.items():
        _require_columns(source, read.frame)
        entries: list[tuple[str, str, str, int]] = []
        for subject, rows in read.frame.groupby("subject", sort=False):
            frame = _grid_subject(source, str(subject), rows, options, entries)
            if frame is not None:
                frames.append(frame)
        for tally in (read.tally, make_tally(entries)):
            tallies.append(tally.assign(source=source))
    if not frames:
        raise InputError(
            f"no glucose reading in {', '.join(readings) or 'any source'}: every person was "
            f"dropped. Look at the raw files and their units."
        )
    series = pd.concat(frames, ignore_index=True).sort_values(
        ["source", "subject", "time"], ignore_index=True
    )
    tally = pd.concat(tallies, ignore_index=True)
    return series, tally[["source", "subject", "stage", "reason", "rows"]]


def _require_columns(source: str, frame: pd.DataFrame) -> None:
    missing = [c for c in ("subject", "time", *READING_COLUMNS) if c not in frame]
    if missing:
        raise InputError(
            f"source '{source}': readings lack the column {', '.join(missing)}; "
            f"they have {', '.join(frame.columns)}. See series/schema.py for all columns."
        )
    if frame["time"].dtype != "datetime64[ns]":
        raise InputError(
            f"source '{source}': times are {frame['time'].dtype}; naive local time "
            f"(datetime64[ns]) is expected. Convert to each person's local time in the source."
        )
    unbounded = frame["basal_u_h"].notna() & ~(frame["basal_minutes"] > 0)
    if unbounded.any():
        first = frame[unbounded].iloc[0]
        raise InputError(
            f"source '{source}', subject '{first['subject']}', {first['time']}: a basal rate "
            f"without basal_minutes above 0. Say in the source how long each rate stands."
        )


def _grid_subject(
    source: str,
    subject: str,
    rows: pd.DataFrame,
    options: GridOptions,
    entries: list[tuple[str, str, str, int]],
) -> pd.DataFrame | None:
    """One person's series from the first to the last glucose reading; None if there is none."""

    def count(reason: str, number: int) -> None:
        entries.append((subject, "grid", reason, int(number)))

    untimed = rows["time"].isna()
    count("rows without a time", untimed.sum())
    rows = rows[~untimed].sort_values("time", kind="stable")

    for column, limits in PLAUSIBLE.items():
        odd = rows[column].notna() & ~rows[column].between(*limits)
        count(f"{column} out of {limits[0]:g} to {limits[1]:g}, set missing", odd.sum())
        if odd.any():
            rows = rows.assign(**{column: rows[column].mask(odd)})

    glucose = rows.loc[rows["glucose_mg_dl"].notna(), ["time", "glucose_mg_dl"]]
    _require_mg_dl(source, subject, glucose["glucose_mg_dl"])
    real = glucose["glucose_mg_dl"].between(
        options.glucose_lowest_mg_dl, options.glucose_highest_mg_dl
    )
    count("glucose out of any sensor's range", (~real).sum())
    glucose = glucose[real]
    repeated = glucose["time"].duplicated(keep="last")
    count("glucose at a time already read (last kept)", repeated.sum())
    glucose = glucose[~repeated]
    if glucose.empty:
        count("person without a glucose reading", 1)
        return None

    nearest = (glucose["time"] + SLOT / 2).dt.floor(SLOT)
    times = pd.date_range(nearest.iloc[0], nearest.iloc[-1], freq=SLOT)
    frame = pd.DataFrame({"source": source, "subject": subject, "time": times})

    slot = _slot_index(nearest, times)
    clipped = glucose["glucose_mg_dl"].clip(GLUCOSE_FLOOR_MG_DL, GLUCOSE_CEILING_MG_DL)
    readings_in_slot = np.bincount(slot, minlength=len(times))
    count("glucose readings averaged into one slot", (readings_in_slot - 1).clip(0).sum())
    sums = np.bincount(slot, weights=clipped, minlength=len(times))
    observed = readings_in_slot > 0
    frame["glucose_mg_dl"] = np.where(observed, sums / readings_in_slot.clip(1), np.nan)
    frame["glucose_clipped"] = _any_in_slot(slot, glucose["glucose_mg_dl"] != clipped, len(times))
    frame["glucose_late"] = _any_in_slot(slot, glucose["time"] > nearest, len(times))

    count("slots with a glucose reading", observed.sum())
    beyond = (rows["time"] <= times[0] - SLOT) | (rows["time"] > times[-1])
    entered = rows[[name for name in PLAUSIBLE if name != "basal_u_h"]].notna().any(axis=1)
    count("entries before the first or after the last glucose reading", (beyond & entered).sum())
    frame["basal_u_h"] = _basal_rate(rows, times)
    pump = frame["basal_u_h"].notna().to_numpy()
    frame["bolus_u"] = _amounts(rows, "bolus_u", times, recorded=pump)
    frame["carbs_g"] = _amounts(rows, "carbs_g", times, recorded=np.zeros(len(times), bool))
    frame["steps"] = _sums(rows, "steps", times)
    frame["heart_rate"] = _means(rows, "heart_rate", times)

    days = max(len(times) / STEPS_PER_DAY, 1.0)
    flagged = frame["bolus_u"].sum() / days > options.bolus_highest_u_day
    count("slots of a person with implausible insulin (flagged)", len(times) if flagged else 0)
    frame["insulin_flagged"] = bool(flagged)
    return frame


def _require_mg_dl(source: str, subject: str, glucose: pd.Series) -> None:
    """A whole person under 35 mg/dL in the median is in mmol/L, not in a coma."""
    if len(glucose) and glucose.median() < 35:
        raise InputError(
            f"source '{source}', subject '{subject}': median glucose {glucose.median():.1f} "
            f"in a column of mg/dL looks like mmol/L. Convert it in the source "
            f"(1 mmol/L = {MG_DL_PER_MMOL_L} mg/dL) or correct the file."
        )


def _slot_index(times: pd.Series, slots: pd.DatetimeIndex) -> np.ndarray:
    return ((times.to_numpy() - slots[0].to_datetime64()).astype(np.int64)) // STEP_NS


def _any_in_slot(slot: np.ndarray, what: pd.Series, length: int) -> np.ndarray:
    return np.bincount(slot, weights=what.to_numpy(float), minlength=length) > 0


def _events(rows: pd.DataFrame, column: str, slots: pd.DatetimeIndex) -> tuple[np.ndarray, ...]:
    """Slot and value of each recorded event; a slot holds what happened in (t - 5 min, t]."""
    known = rows.loc[rows[column].notna(), ["time", column]]
    slot = _slot_index(known["time"].dt.ceil(SLOT), slots)
    inside = (slot >= 0) & (slot < len(slots))
    return slot[inside], known[column].to_numpy()[inside]


def _sums(rows: pd.DataFrame, column: str, slots: pd.DatetimeIndex) -> np.ndarray:
    slot, value = _events(rows, column, slots)
    total = np.bincount(slot, weights=value, minlength=len(slots))
    return np.where(np.bincount(slot, minlength=len(slots)) > 0, total, np.nan)


def _means(rows: pd.DataFrame, column: str, slots: pd.DatetimeIndex) -> np.ndarray:
    slot, _ = _events(rows, column, slots)
    return _sums(rows, column, slots) / np.bincount(slot, minlength=len(slots)).clip(1)


def _amounts(
    rows: pd.DataFrame, column: str, slots: pd.DatetimeIndex, recorded: np.ndarray
) -> np.ndarray:
    """Sum of the amounts per slot; a slot without one is 0 only where silence means zero.

    Silence means zero where the device is `recorded`, and within a day after the last entry of a
    person who logs by hand. Elsewhere it is missing. The rule looks back alone.
    """
    total = _sums(rows, column, slots)
    entered = np.flatnonzero(~np.isnan(total))
    last_entry = np.full(len(slots), -STEPS_PER_DAY - 1)
    last_entry[entered] = entered
    age = np.arange(len(slots)) - np.maximum.accumulate(last_entry)
    silent_zero = recorded | (age <= STEPS_PER_DAY)
    return np.where(np.isnan(total) & silent_zero, 0.0, total)


def _basal_rate(rows: pd.DataFrame, slots: pd.DatetimeIndex) -> np.ndarray:
    """Mean rate in U/h delivered over (t - 5 min, t], NaN where no rate is on record.

    Each record stands until the next one, at most for its `basal_minutes`, so that a later record
    does not change what was on record before it. The integral of the rate is
    piecewise linear in time, so its differences at the slot edges conserve the units exactly.
    """
    known = rows.loc[rows["basal_u_h"].notna(), ["time", "basal_u_h", "basal_minutes"]]
    known = known[~known["time"].duplicated(keep="last")]
    if known.empty:
        return np.full(len(slots), np.nan)
    minutes = (known["time"].to_numpy() - slots[0].to_datetime64()).astype(np.int64) / 60e9
    stands = known["basal_minutes"].to_numpy()
    lasts = np.minimum(np.diff(minutes, append=np.inf), stands)
    rate = known["basal_u_h"].to_numpy() / 60

    knots = np.stack([minutes, minutes + lasts], axis=1).ravel()
    units = np.cumsum(np.stack([np.zeros_like(rate), rate * lasts], axis=1).ravel())
    covered = np.cumsum(np.stack([np.zeros_like(rate), lasts], axis=1).ravel())
    edges = np.arange(-1, len(slots)) * float(STEP_MINUTES)
    delivered = np.diff(np.interp(edges, knots, units))
    on_record = np.diff(np.interp(edges, knots, covered))
    return np.where(on_record > 1e-9, delivered / STEP_MINUTES * 60, np.nan)
