"""Irregular readings onto the 5-minute grid: nothing invented, units conserved, rows counted.

A glucose reading belongs to the nearest slot. A slot `t` holds the insulin and carbs of
(t - 5 min, t], so a slot at or before an origin never holds a dose given after it; a glucose
reading may be up to 2.5 minutes younger than its slot, which `glucose_late` says.

All people of a part are gridded at once: their slots lie end to end, T in all, and every sum is
one `bincount` over them. Shapes: N entries of a channel, P people, T slots.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.schema import (
    GLUCOSE_CEILING_MG_DL,
    GLUCOSE_FLOOR_MG_DL,
    MG_DL_PER_MMOL_L,
    PLAUSIBLE,
    READING_COLUMNS,
    STEP_MINUTES,
    STEPS_PER_DAY,
    Counted,
    Readings,
    make_tally,
)

STEP_NS = STEP_MINUTES * 60 * 10**9

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class GridOptions(BaseModel, extra="forbid", frozen=True):
    """What the grid takes for real."""

    glucose_lowest_mg_dl: float = Field(default=10.0, ge=0)  # below: no reading at all
    glucose_highest_mg_dl: float = Field(default=1000.0, gt=0)
    bolus_highest_u_day: float = Field(default=100.0, gt=0)  # mean of a person, above: flagged
    bolus_days: int = Field(default=3, ge=1)  # on record, that the mean is over at least
    longest_days: int = Field(default=3660, ge=1)  # of one person, first to last reading


class Entries(NamedTuple):
    """What was recorded of one channel, by person and time."""

    person_N: Ints
    time_N: Ints  # ns since 1970, local
    value_N: Floats


@dataclass(frozen=True)
class Ordered:
    """The timed entries of a source, sorted by person and time where the order matters."""

    source: str
    subjects: list[str]
    untimed_P: Ints
    silent_P: Ints
    glucose: Entries  # of equal times the one read last comes last
    basal: Entries  # NaN where a record says that from here on the rate is not known
    basal_ns_N: Ints  # how long each of the rates stands at most
    others: dict[str, Entries]  # amounts and heart rate, in no order


def order_readings(source: str, readings: Readings) -> Ordered:
    """The entries of every channel apart. Raises `InputError` on a frame that is not canonical."""
    frame = readings.frame
    _require_canonical(source, frame)
    codes, names = pd.factorize(frame["subject"], sort=True)
    person = codes.astype(np.int64)
    time = frame["time"].to_numpy().view(np.int64)
    timed = time != np.iinfo(np.int64).min  # NaT
    untimed = np.bincount(person[~timed], minlength=len(names))
    silent = timed.copy()

    def entries(column: str, told_by: str = "") -> tuple[Entries, Ints]:
        values = frame[column].to_numpy(np.float64)
        told = timed & ~np.isnan(frame[told_by].to_numpy(np.float64) if told_by else values)
        silent[told] = False
        rows = np.flatnonzero(told)
        return Entries(person[rows], time[rows], values[rows]), rows

    glucose, _ = entries("glucose_mg_dl")
    basal, basal_rows = entries("basal_u_h", told_by="basal_minutes")
    stands = frame["basal_minutes"].to_numpy(np.float64)[basal_rows] * 60e9
    order = _order(basal)
    others = {c: entries(c)[0] for c in ("bolus_u", "carbs_g", "steps", "heart_rate")}
    return Ordered(
        source=source,
        subjects=[str(name) for name in names],
        untimed_P=untimed,
        silent_P=np.bincount(person[silent], minlength=len(names)),
        glucose=_take(glucose, _order(glucose)),
        basal=_take(basal, order),
        basal_ns_N=np.rint(stands).astype(np.int64)[order],
        others=others,
    )


def build_series(
    readings: dict[str, Readings], options: GridOptions
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The gridded series of every source, and the tally of every row on its way.

    The frame is in `schema.SERIES`, the tally has `schema.TALLY_COLUMNS` and the source. Raises
    `InputError` as `order_readings` and `grid_people` do, and when no reading is left.
    """
    gridded = [grid_people(order_readings(name, read), options) for name, read in readings.items()]
    tallies = [read.tally.assign(source=source) for source, read in readings.items()]
    series = join_series([frame for frame, _ in gridded])
    return series, pd.concat([*tallies, *(tally for _, tally in gridded)], ignore_index=True)


def join_series(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """The series of several sources or parts as one, sorted by source, subject and time.

    Raises `InputError` when no reading is in them.
    """
    frames = [frame for frame in frames if len(frame)]
    if not frames:
        raise InputError(
            "no glucose reading in any source: every person was dropped. Look at the raw files, "
            "their units and the tally of what was dropped."
        )
    frames = with_same_categories(frames)
    # A part is sorted within itself, so that sorting its people sorts all.
    people = []
    for number, frame in enumerate(frames):
        starts = person_starts(frame)
        keys = frame.iloc[starts][["source", "subject"]].astype(str).itertuples(index=False)
        ends = np.append(starts[1:], len(frame))
        people += [(*key, number, rows) for key, *rows in zip(keys, starts, ends, strict=True)]
    people.sort()
    for (*person, _, _), (*following, _, _) in pairwise(people):
        if person == following:
            raise InputError(
                f"source '{person[0]}', subject '{person[1]}' is in two parts of its files, and a "
                f"part holds whole people. Give that person one file, or two names."
            )
    return pd.concat(
        [frames[number].iloc[slice(*rows)] for *_, number, rows in people], ignore_index=True
    )


def with_same_categories(frames: list[pd.DataFrame]) -> list[pd.DataFrame]:
    """The frames with one set of categories each for source and subject: they can be joined."""
    names = {
        key: pd.CategoricalDtype(sorted(set().union(*(set(f[key].cat.categories) for f in frames))))
        for key in ("source", "subject")
    }
    return [frame.astype(names) for frame in frames]


def grid_people(ordered: Ordered, options: GridOptions) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The gridded series of every person of a source, and the tally of every entry on its way.

    Returns a frame in `schema.SERIES` (empty where nobody has a reading) and a tally in
    `schema.TALLY_COLUMNS`, both with the source. Raises `InputError` on glucose that is not in
    mg/dL and on a person whose readings span more than `options.longest_days`.
    """
    count = _Counter(ordered.subjects)
    count("dropped", "rows without a time", ordered.untimed_P)
    count("dropped", "rows that say nothing", ordered.silent_P)
    glucose = _real_glucose(ordered, options, count)
    slots = _lay_slots(ordered, glucose, options, count)

    nearest_N = (glucose.time_N + STEP_NS // 2) // STEP_NS
    row_N = slots.row_of_first_P[glucose.person_N] + nearest_N - slots.first_P[glucose.person_N]
    clipped_N = glucose.value_N.clip(GLUCOSE_FLOOR_MG_DL, GLUCOSE_CEILING_MG_DL)
    readings_T = np.bincount(row_N, minlength=slots.length)
    sums_T = np.bincount(row_N, weights=clipped_N, minlength=slots.length)
    observed_T = readings_T > 0
    shared_T = readings_T > 1
    averaged_P = np.bincount(slots.person_T[shared_T], (readings_T - 1)[shared_T], len(count))
    count("dropped", "glucose readings averaged into one slot", averaged_P)
    count.of("noted", "slots with a glucose reading", slots.person_T[observed_T])

    basal_T = _basal_rate(ordered, slots, count)
    placed = {
        name: _inside(_plausible(entries, name, count), slots, name, count)
        for name, entries in ordered.others.items()
    }
    bolus_T = _amounts(placed["bolus_u"], slots, recorded_T=~np.isnan(basal_T))
    flagged_T = _daily_until_now(bolus_T, slots, options) > options.bolus_highest_u_day
    reason = "slots of a person with implausible insulin (flagged)"
    count.of("changed", reason, slots.person_T[flagged_T])

    series = pd.DataFrame(
        {
            "source": pd.Categorical.from_codes(np.zeros(slots.length, np.int8), [ordered.source]),
            "subject": pd.Categorical.from_codes(slots.person_T, ordered.subjects),
            "time": slots.time_T.view("datetime64[ns]"),
            "glucose_mg_dl": np.where(observed_T, sums_T / readings_T.clip(1), np.nan),
            "glucose_clipped": _any(row_N[clipped_N != glucose.value_N], slots.length),
            "glucose_late": _any(row_N[glucose.time_N > nearest_N * STEP_NS], slots.length),
            "basal_u_h": basal_T,
            "bolus_u": bolus_T,
            "carbs_g": _amounts(placed["carbs_g"], slots, recorded_T=np.zeros(slots.length, bool)),
            "steps": _sums(placed["steps"], slots.length)[0],
            "heart_rate": _means(placed["heart_rate"], slots.length),
            "insulin_flagged": flagged_T,
        },
        copy=False,
    )
    return series, make_tally("grid", count.entries()).assign(source=ordered.source)


class _Counter:
    """Counts by person, in the order of what happened."""

    def __init__(self, subjects: list[str]) -> None:
        self._subjects = subjects
        self._counts: list[tuple[str, str, Ints]] = []

    def __call__(self, effect: str, reason: str, number_P: np.ndarray) -> None:
        self._counts.append((effect, reason, np.asarray(number_P).astype(np.int64)))

    def of(self, effect: str, reason: str, person_N: Ints) -> None:
        self(effect, reason, np.bincount(person_N, minlength=len(self)))

    def __len__(self) -> int:
        return len(self._subjects)

    def entries(self) -> Iterator[Counted]:
        for person, subject in enumerate(self._subjects):
            for effect, reason, number_P in self._counts:
                yield subject, effect, reason, int(number_P[person])


@dataclass(frozen=True)
class _Slots:
    """Where the slots of each person lie among all T."""

    first_P: Ints  # slots since 1970 of the first one of each person
    slots_P: Ints  # 0 for a person without a reading
    row_of_first_P: Ints
    person_T: Ints
    time_T: Ints  # ns since 1970

    @property
    def length(self) -> int:
        return len(self.person_T)


def person_starts(series: pd.DataFrame) -> Ints:
    """The row of each person's first slot, in a series whose people lie one after the other."""
    changes = np.zeros(len(series), bool)
    changes[:1] = True
    for key in ("source", "subject"):
        changes[1:] |= np.diff(series[key].cat.codes.to_numpy()) != 0
    return np.flatnonzero(changes)


def _require_canonical(source: str, frame: pd.DataFrame) -> None:
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
    nameless = frame["subject"].isna()
    if nameless.any():
        raise InputError(
            f"source '{source}': {int(nameless.sum())} readings without a subject. Drop and count "
            f"them in the source."
        )
    minutes, rates = (frame[c].to_numpy(np.float64) for c in ("basal_minutes", "basal_u_h"))
    unbounded = ~np.isnan(rates) & ~((minutes > 0) & (minutes < np.inf))
    if unbounded.any():
        first = frame[unbounded].iloc[0]
        raise InputError(
            f"source '{source}', subject '{first['subject']}', {first['time']}: a basal rate "
            f"without basal_minutes above 0 and finite. Say in the source how long a rate stands."
        )


def _order(entries: Entries) -> NDArray[np.intp] | slice:
    """By person, then time; equal times keep the order of the rows. Most files are sorted."""
    same = entries.person_N[1:] == entries.person_N[:-1]
    later = entries.time_N[1:] >= entries.time_N[:-1]
    if ((entries.person_N[1:] > entries.person_N[:-1]) | (same & later)).all():
        return slice(None)
    return np.lexsort((entries.time_N, entries.person_N))


def _take(entries: Entries, rows: NDArray[np.integer | np.bool_] | slice) -> Entries:
    return Entries(entries.person_N[rows], entries.time_N[rows], entries.value_N[rows])


def _plausible(entries: Entries, column: str, count: _Counter) -> Entries:
    """Entries within the limits; the others are missing, and counted."""
    low, high = PLAUSIBLE[column]
    odd = (entries.value_N < low) | (entries.value_N > high)
    count.of("dropped", f"{column} out of {low:g} to {high:g}, set missing", entries.person_N[odd])
    return _take(entries, ~odd) if odd.any() else entries


def _real_glucose(ordered: Ordered, options: GridOptions, count: _Counter) -> Entries:
    """Readings that a sensor can have given, one at a time."""
    glucose = ordered.glucose
    _require_mg_dl(ordered)
    real = (glucose.value_N >= options.glucose_lowest_mg_dl) & (
        glucose.value_N <= options.glucose_highest_mg_dl
    )
    count.of("dropped", "glucose out of any sensor's range", glucose.person_N[~real])
    if not real.all():
        glucose = _take(glucose, real)
    repeated = _same_as_next(glucose)
    count.of("dropped", "glucose at a time already read (last kept)", glucose.person_N[repeated])
    return _take(glucose, ~repeated) if repeated.any() else glucose


def _same_as_next(entries: Entries) -> Bools:
    """Entries that stand at the person and time of the one after them."""
    same = np.zeros(len(entries.time_N), bool)
    same[:-1] = (entries.person_N[1:] == entries.person_N[:-1]) & (
        entries.time_N[1:] == entries.time_N[:-1]
    )
    return same


def _require_mg_dl(ordered: Ordered) -> None:
    """A whole person under 35 mg/dL in the median is in mmol/L, not in a coma."""
    person_N, values = ordered.glucose.person_N, ordered.glucose.value_N
    edges = np.searchsorted(person_N, np.arange(len(ordered.subjects) + 1))
    for subject, first, last in zip(ordered.subjects, edges[:-1], edges[1:], strict=True):
        median = np.median(values[first:last]) if last > first else np.inf
        if median < 35:
            raise InputError(
                f"source '{ordered.source}', subject '{subject}': median glucose {median:.1f} "
                f"in a column of mg/dL looks like mmol/L. Convert it in the source "
                f"(1 mmol/L = {MG_DL_PER_MMOL_L} mg/dL) or correct the file."
            )


def _lay_slots(ordered: Ordered, glucose: Entries, options: GridOptions, count: _Counter) -> _Slots:
    """Each person's slots from the first to the last glucose reading."""
    nearest_N = (glucose.time_N + STEP_NS // 2) // STEP_NS
    edges = np.searchsorted(glucose.person_N, np.arange(len(ordered.subjects) + 1))
    begin, end = edges[:-1], edges[1:]
    present = end > begin
    count("noted", "person without a glucose reading", ~present)
    first_P = np.zeros(len(ordered.subjects), np.int64)
    slots_P = np.zeros(len(ordered.subjects), np.int64)
    first_P[present] = nearest_N[begin[present]]
    slots_P[present] = nearest_N[end[present] - 1] - first_P[present] + 1
    longest = int(slots_P.argmax()) if len(slots_P) else 0
    if len(slots_P) and slots_P[longest] > options.longest_days * STEPS_PER_DAY:
        span = glucose.time_N[[begin[longest], end[longest] - 1]].view("datetime64[ns]")
        raise InputError(
            f"source '{ordered.source}', subject '{ordered.subjects[longest]}': readings from "
            f"{str(span[0])[:16]} to {str(span[1])[:16]} span {slots_P[longest] // STEPS_PER_DAY} "
            f"days, more than grid.longest_days={options.longest_days}. Correct the year of the "
            f"first or last of them, or raise that limit."
        )
    row_of_first_P = np.cumsum(slots_P) - slots_P
    person_T = np.repeat(np.arange(len(slots_P)), slots_P)
    slot_T = np.arange(len(person_T)) + np.repeat(first_P - row_of_first_P, slots_P)
    return _Slots(first_P, slots_P, row_of_first_P, person_T, slot_T * STEP_NS)


class _Placed(NamedTuple):
    """Entries of one channel by the row of their slot."""

    row_N: Ints
    value_N: Floats


def _inside(entries: Entries, slots: _Slots, column: str, count: _Counter) -> _Placed:
    """Entries that fall into a slot of their person: what happened in (t - 5 min, t]."""
    steps_N = -(-entries.time_N // STEP_NS) - slots.first_P[entries.person_N]
    inside = (steps_N >= 0) & (steps_N < slots.slots_P[entries.person_N])
    count.of(
        "dropped",
        f"{column} before the first or after the last glucose reading",
        entries.person_N[~inside],
    )
    row_N = slots.row_of_first_P[entries.person_N] + steps_N
    return _Placed(row_N[inside], entries.value_N[inside])


def _any(row_N: Ints, length: int) -> Bools:
    flags_T = np.zeros(length, bool)
    flags_T[row_N] = True
    return flags_T


def _sums(placed: _Placed, length: int) -> tuple[Floats, Ints]:
    """Sum per slot, NaN where nothing was recorded, and how many entries it is of."""
    entries_T = np.bincount(placed.row_N, minlength=length)
    sums_T = np.bincount(placed.row_N, placed.value_N, length)
    return np.where(entries_T > 0, sums_T, np.nan), entries_T


def _means(placed: _Placed, length: int) -> Floats:
    sums_T, entries_T = _sums(placed, length)
    return sums_T / entries_T.clip(1)


def _amounts(placed: _Placed, slots: _Slots, recorded_T: Bools) -> Floats:
    """Sum of the amounts per slot; a slot without one is 0 only where silence means zero.

    Silence means zero where the device is recorded, and within a day after the last entry of a
    person who logs by hand. Elsewhere it is missing. The rule looks back alone.
    """
    total_T, entries_T = _sums(placed, slots.length)
    row_T = np.arange(slots.length)
    last_entry_T = np.maximum.accumulate(np.where(entries_T > 0, row_T, -1))
    of_person_T = last_entry_T >= slots.row_of_first_P[slots.person_T]
    recent_T = of_person_T & (row_T - last_entry_T <= STEPS_PER_DAY)
    return np.where((entries_T == 0) & (recorded_T | recent_T), 0.0, total_T)


def _daily_until_now(bolus_T: Floats, slots: _Slots, options: GridOptions) -> Floats:
    """Mean bolus a day of each person up to each slot, over the time that is on record.

    What is logged later must not judge what was logged before it.
    """
    begin_T = slots.row_of_first_P[slots.person_T]
    mean: list[Floats] = []
    for values_T in (np.nan_to_num(bolus_T), ~np.isnan(bolus_T)):
        total = np.concatenate([[0.0], np.cumsum(values_T)])
        mean.append(total[1:] - total[begin_T])
    units_T, slots_T = mean
    return units_T / np.maximum(slots_T / STEPS_PER_DAY, options.bolus_days)


def _basal_rate(ordered: Ordered, slots: _Slots, count: _Counter) -> Floats:
    """Mean rate in U/h delivered over (t - 5 min, t], NaN where no rate is on record.

    Each record stands until the next one, at most for its `basal_minutes`, so that a later record
    does not change what was on record before it. A record of an unknown or implausible rate ends
    the one before it. A slot that one record covers whole has exactly
    its rate; a slot at a change, or at an end, has the units delivered in it.
    """
    low, high = PLAUSIBLE["basal_u_h"]
    odd = (ordered.basal.value_N < low) | (ordered.basal.value_N > high)
    reason = f"basal_u_h out of {low:g} to {high:g}, set missing"
    count.of("dropped", reason, ordered.basal.person_N[odd])
    basal, stands_N = ordered.basal, ordered.basal_ns_N
    if odd.any():
        basal = basal._replace(value_N=np.where(odd, np.nan, basal.value_N))
    repeated = _same_as_next(basal)
    count.of("dropped", "basal rate at a time already told (last kept)", basal.person_N[repeated])
    if repeated.any():
        basal, stands_N = _take(basal, ~repeated), stands_N[~repeated]

    last_N = np.ones(len(stands_N), bool)
    last_N[:-1] = basal.person_N[1:] != basal.person_N[:-1]
    until_next_N = np.where(last_N, stands_N, np.append(np.diff(basal.time_N), 0))
    end_N = basal.time_N + np.minimum(until_next_N, stands_N)

    # In ns since the left edge of the person's first slot, cut to the person's slots.
    left_N = (slots.first_P[basal.person_N] - 1) * STEP_NS
    length_N = slots.slots_P[basal.person_N] * STEP_NS
    from_N = np.clip(basal.time_N - left_N, 0, length_N)
    to_N = np.clip(end_N - left_N, 0, length_N)
    known = ~np.isnan(basal.value_N)
    inside = known & (to_N > from_N)
    beyond = known & ((basal.time_N - left_N >= length_N) | (end_N <= left_N))
    reason = "basal_u_h before the first or after the last glucose reading"
    count.of("dropped", reason, basal.person_N[beyond])
    offset_N = slots.row_of_first_P[basal.person_N[inside]]
    from_N, to_N, rate_N = from_N[inside], to_N[inside], basal.value_N[inside]

    first_N, last_slot_N = from_N // STEP_NS, (to_N - 1) // STEP_NS
    in_first_N = np.minimum(to_N, (first_N + 1) * STEP_NS) - from_N
    in_last_N = np.where(last_slot_N > first_N, to_N - last_slot_N * STEP_NS, 0)
    whole_N = np.maximum(last_slot_N - first_N - 1, 0)
    whole_T = np.repeat(offset_N + first_N + 1 - (np.cumsum(whole_N) - whole_N), whole_N)
    whole_T += np.arange(len(whole_T))

    row_N = np.concatenate([offset_N + first_N, offset_N + last_slot_N])
    lasts_N = np.concatenate([in_first_N, in_last_N])
    on_record_T = np.bincount(row_N, lasts_N, slots.length)
    share_N = lasts_N / STEP_NS
    rate_T = np.bincount(row_N, np.concatenate([rate_N, rate_N]) * share_N, slots.length)
    rate_T[whole_T] = np.repeat(rate_N, whole_N)
    on_record_T[whole_T] = STEP_NS
    # Two shares of a slot may sum to a rounding above 1, and a rate to one above the limit.
    return np.where(on_record_T > 0, np.minimum(rate_T, high), np.nan)
