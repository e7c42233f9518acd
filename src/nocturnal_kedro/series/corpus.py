"""Every person's series as one resident array: time x channel, a mask, and segment offsets."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from nocturnal_kedro.series.physiology import Physiology, decay_kernels, kernel_steps, on_board
from nocturnal_kedro.series.schema import STEP_MINUTES, STEPS_PER_DAY

# Order of the last axis. The amounts stand beside what is on board so that a window can compute
# the decay-only future of its own origin.
CHANNELS = ("glucose_mg_dl", "iob_u", "cob_g", "insulin_u", "carbs_g")


@dataclass(frozen=True)
class Corpus:
    """T slots of all people, one after the other; a person is one row of `people`.

    `values_TC` float32, 0 where unobserved; `observed_TC` bool; `late_T` bool, the glucose
    reading is younger than its slot; `slot_of_day_T` int16, 0 at local midnight; `people` with
    source, subject, start (time of the first slot), first and last (rows, half open) and
    sampling_steps (slots between two readings of the sensor).
    """

    values_TC: np.ndarray
    observed_TC: np.ndarray
    late_T: np.ndarray
    slot_of_day_T: np.ndarray
    people: pd.DataFrame
    kernels_2K: np.ndarray  # share of insulin and of carbs left, by slots since the dose

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the content; equal corpora have equal fingerprints."""
        digest = hashlib.sha256()
        for array in (self.values_TC, self.observed_TC, self.late_T, self.kernels_2K):
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(self.people.to_csv(index=False).encode())
        return digest.hexdigest()


def build_corpus(series: pd.DataFrame, physiology: Physiology) -> Corpus:
    """Lay the gridded series end to end and add what is on board.

    Insulin that the grid flagged as implausible counts as unobserved.
    """
    series = series.sort_values(["source", "subject", "time"], ignore_index=True)
    kernels = decay_kernels(physiology, kernel_steps(physiology))
    insulin = (series["basal_u_h"] * STEP_MINUTES / 60 + series["bolus_u"]).to_numpy()
    insulin[series["insulin_flagged"].to_numpy()] = np.nan
    carbs = series["carbs_g"].to_numpy()

    starts = series.groupby(["source", "subject"], sort=False).head(1).index.to_numpy()
    ends = np.append(starts[1:], len(series))
    on_board_2T = np.full((2, len(series)), np.nan)
    for first, last in zip(starts, ends, strict=True):
        for row, (amounts, kernel) in enumerate(zip((insulin, carbs), kernels, strict=True)):
            on_board_2T[row, first:last], _ = on_board(
                amounts[first:last], kernel, physiology.observed_share
            )

    channels = [series["glucose_mg_dl"].to_numpy(), *on_board_2T, insulin, carbs]
    values = np.stack(channels, axis=1).astype(np.float32)
    observed = ~np.isnan(values)
    time = series["time"]
    minute = time.dt.hour * 60 + time.dt.minute
    return Corpus(
        values_TC=np.where(observed, values, np.float32(0)),
        observed_TC=observed,
        late_T=series["glucose_late"].to_numpy(),
        slot_of_day_T=(minute // STEP_MINUTES).to_numpy(np.int16),
        people=pd.DataFrame(
            {
                "source": series["source"].to_numpy()[starts],
                "subject": series["subject"].to_numpy()[starts],
                "start": time.to_numpy()[starts],
                "first": starts,
                "last": ends,
                "sampling_steps": [
                    _sampling_steps(observed[first:last, 0])
                    for first, last in zip(starts, ends, strict=True)
                ],
            }
        ),
        kernels_2K=np.stack(kernels).astype(np.float32),
    )


def _sampling_steps(observed_t: np.ndarray) -> int:
    """Slots from one reading to the next, in the median; 1 for a 5-minute sensor, 3 for 15."""
    between = np.diff(np.flatnonzero(observed_t))
    return int(np.median(between)) if len(between) else 1


def fourier_clock(slot_of_day: np.ndarray) -> np.ndarray:
    """Time of day as (..., 2): sine and cosine of one turn a day."""
    angle = 2 * np.pi * slot_of_day / STEPS_PER_DAY
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1)
