"""Every person's series as one resident array: time x channel, a mask, and segment offsets."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.grid import person_starts
from nocturnal_kedro.series.physiology import (
    ACTIONS,
    OF_CARBS,
    OF_INSULIN,
    Physiology,
    act,
    action_kernels,
    convolve,
)
from nocturnal_kedro.series.schema import STEP_MINUTES, STEPS_PER_DAY

# Order of the last axis. The amounts stand beside what they still do, so that a window can compute
# the decay-only future of its own origin.
CHANNELS = ("glucose_mg_dl", *ACTIONS, "insulin_u", "carbs_g", "steps", "heart_rate")
SLOW_STEPS = 3  # of a sensor that reads every 15 minutes; the others read every 5
LOST_U = 0.01  # of insulin on board that may be missing where it counts as known


@dataclass(frozen=True)
class Corpus:
    """T slots of all people, one after the other; a person is one row of `people`.

    `values_TC` float32, 0 where unobserved; `observed_TC` bool; `late_T` bool, the glucose
    reading is younger than its slot; `covered_T` bool, see `coverage`; `slot_of_day_T` int16, 0 at
    local midnight; `people` with source, subject, start (time of the first slot), first and last
    (rows, half open) and sampling_steps (slots between two readings, most of the time).
    """

    values_TC: np.ndarray
    observed_TC: np.ndarray
    late_T: np.ndarray
    covered_T: np.ndarray
    slot_of_day_T: np.ndarray
    people: pd.DataFrame
    kernels_4K: np.ndarray  # of physiology.ACTIONS, by slots since the dose
    made_from: dict[str, Any]  # raw files by their hashes, options and code; see sources.Part

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the content; equal corpora have equal fingerprints."""
        digest = hashlib.sha256()
        for array in (self.values_TC, self.observed_TC, self.late_T, self.kernels_4K):
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
        digest.update(self.people.to_csv(index=False).encode())
        return digest.hexdigest()

    def person_of(self, rows: np.ndarray) -> np.ndarray:
        """Whose each row is: the row of `people`."""
        return np.searchsorted(self.people["last"].to_numpy(), rows, side="right")


ARRAYS = ("values_TC", "observed_TC", "late_T", "covered_T", "slot_of_day_T", "kernels_4K")
LARGE = ("values_TC", "observed_TC")  # read from disk where memory cannot hold them


def read_corpus(folder: Path) -> Corpus:
    """What `write_corpus` wrote; the large arrays are mapped, and read where they are used.

    Raises `InputError` where a file is absent or damaged.
    """
    try:
        arrays = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r" if name in LARGE else None)
            for name in ARRAYS
        }
        described = json.loads((folder / "made_from.json").read_text())
        people = pd.read_csv(
            folder / "people.csv",
            dtype={"source": str, "subject": str},
            parse_dates=["start"],
            keep_default_na=False,
        )
        return Corpus(**arrays, people=people, made_from=described["made_from"])
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise InputError(
            f"corpus '{folder}' is incomplete or damaged ({error}). Run data_processing "
            f"again, or load another version with --load-versions."
        ) from error


def write_corpus(corpus: Corpus, folder: Path, earlier: Path | None = None) -> None:
    """Write a folder whole: one `.npy` per array, `people.csv` and `made_from.json`.

    An array that `earlier` holds unchanged is not written again: both share one file.
    """
    fresh = folder.with_name(folder.name + ".saving")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for name in ARRAYS:
        array, file = getattr(corpus, name), fresh / f"{name}.npy"
        if not _share(earlier and earlier / file.name, file, array):
            np.save(file, array)
    corpus.people.to_csv(fresh / "people.csv", index=False)
    described = {"fingerprint": corpus.fingerprint, "made_from": corpus.made_from}
    (fresh / "made_from.json").write_text(json.dumps(described, indent=2))
    fresh.rename(folder)


def _share(earlier: Path | None, file: Path, array: np.ndarray) -> bool:
    """Whether `file` could be made a second name of one that holds the same."""
    try:
        if isinstance(array, np.memmap):  # of a corpus that was itself read
            earlier = Path(str(array.filename))
            if np.load(earlier, mmap_mode="r").shape != array.shape:
                return False
        elif earlier is None or not np.array_equal(np.load(earlier, mmap_mode="r"), array):
            return False
        os.link(earlier, file)
    except (OSError, EOFError, ValueError):  # it is damaged, or the disk has no second names
        return False
    return True


def build_corpus(
    series: pd.DataFrame, physiology: Physiology, made_from: dict[str, Any] | None = None
) -> Corpus:
    """Lay the gridded series, sorted by person and time, end to end and add what doses still do.

    Insulin that the grid flagged as implausible counts as unobserved.
    """
    kernels = action_kernels(physiology)
    basal, bolus = series["basal_u_h"].to_numpy(), series["bolus_u"].to_numpy()
    insulin = basal * (STEP_MINUTES / 60) + bolus
    insulin[series["insulin_flagged"].to_numpy()] = np.nan
    carbs = series["carbs_g"].to_numpy()

    starts = person_starts(series)
    ends = np.append(starts[1:], len(series))
    actions_4T = np.full((len(ACTIONS), len(series)), np.nan, np.float32)
    # A bolus where no basal is on record is in no amount of insulin, yet it acts.
    lost = np.where(np.isnan(basal), np.nan_to_num(bolus), 0.0)
    for first, last in zip(starts, ends, strict=True):
        for rows, amounts in ((OF_INSULIN, insulin), (OF_CARBS, carbs)):
            if not np.isnan(amounts[first:last]).all():
                actions_4T[rows, first:last] = act(
                    amounts[first:last], kernels[rows], physiology.observed_share
                )
        if lost[first:last].any():
            [acts] = convolve(lost[first:last], kernels[OF_INSULIN[:1]])
            actions_4T[np.ix_(OF_INSULIN, first + np.flatnonzero(acts > LOST_U))] = np.nan

    channels = [
        series["glucose_mg_dl"].to_numpy(),
        *actions_4T,
        insulin,
        carbs,
        series["steps"].to_numpy(),
        series["heart_rate"].to_numpy(),
    ]
    values = np.empty((len(series), len(CHANNELS)), np.float32)
    for number, channel in enumerate(channels):
        values[:, number] = channel
    observed = ~np.isnan(values)
    covered = np.empty(len(series), bool)
    sampling_steps = np.empty(len(starts), np.int64)
    for person, (first, last) in enumerate(zip(starts, ends, strict=True)):
        covered[first:last], sampling_steps[person] = coverage(observed[first:last, 0])
    time = series["time"].to_numpy()
    slot_of_day = time.view(np.int64) // (STEP_MINUTES * 60 * 10**9) % STEPS_PER_DAY
    return Corpus(
        values_TC=np.where(observed, values, np.float32(0)),
        observed_TC=observed,
        late_T=series["glucose_late"].to_numpy(),
        covered_T=covered,
        slot_of_day_T=slot_of_day.astype(np.int16),
        people=pd.DataFrame(
            {
                "source": series["source"].iloc[starts].astype(str).to_numpy(),
                "subject": series["subject"].iloc[starts].astype(str).to_numpy(),
                "start": time[starts],
                "first": starts,
                "last": ends,
                "sampling_steps": sampling_steps,
            }
        ),
        kernels_4K=kernels.astype(np.float32),
        made_from={"parts": made_from or {}, "physiology": physiology.model_dump()},
    )


def coverage(observed_t: np.ndarray) -> tuple[np.ndarray, int]:
    """Which slots of a person a reading speaks for, and the person's steps between two readings.

    A slot is covered by a reading in it or in the s - 1 slots before it. s is 3 where over half of
    the 24 hours up to the slot (less gaps of 25 minutes and longer) were spent in gaps of a
    15-minute sensor between readings, and else 1. So a 15-minute sensor's readings cover what lies
    between them, the scans between its readings add nothing, a 5-minute sensor's lost readings
    are missed, and a change of sensor is followed within a day.
    """
    at = np.flatnonzero(observed_t)
    gaps = np.diff(at)
    usual = gaps <= SLOW_STEPS + 1  # a 15-minute sensor drifts: now and then 4 slots
    slow = usual & (gaps >= SLOW_STEPS)
    index = np.arange(len(observed_t))
    day_before = np.maximum(index + 1 - STEPS_PER_DAY, 0)

    def spent(which: np.ndarray) -> np.ndarray:
        within = np.bincount(at[1:][which], weights=gaps[which], minlength=len(index))
        total = np.concatenate([[0], np.cumsum(within)])
        return total[index + 1] - total[day_before]

    steps_t = np.where(2 * spent(slow) > spent(usual), SLOW_STEPS, 1)
    last_reading_t = np.maximum.accumulate(np.where(observed_t, index, -STEPS_PER_DAY))
    mostly_slow = 2 * gaps[slow].sum() > gaps[usual].sum()
    return index - last_reading_t < steps_t, SLOW_STEPS if mostly_slow else 1


def fourier_clock(slot_of_day: np.ndarray) -> np.ndarray:
    """Time of day as (..., 2): sine and cosine of one turn a day."""
    angle = 2 * np.pi * slot_of_day / STEPS_PER_DAY
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1)
