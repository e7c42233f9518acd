"""The person's usual glucose at this clock time; for a person never seen, everybody's."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, Field

from nocturnal_kedro.baselines import History
from nocturnal_kedro.errors import InputError
from nocturnal_kedro.models import Answer
from nocturnal_kedro.series.nights import Nights
from nocturnal_kedro.series.schema import STEP_MINUTES, STEPS_PER_DAY


class Options(BaseModel, extra="forbid", frozen=True):
    """How far around a clock time its mean reaches."""

    window_steps: int = Field(default=13, ge=1)  # slots, centred: about an hour


def fit(history: History, options: Options) -> dict[str, np.ndarray]:
    """Mean by person and clock slot, (people + 1, 288) in mg/dL; the last row is everybody's.

    Raises `InputError` where nobody has a reading around a time of day.
    """
    observed = ~np.isnan(history.glucose_T)
    cell = history.person_T[observed] * STEPS_PER_DAY + history.slot_of_day_T[observed]
    shape = (history.people, STEPS_PER_DAY)
    size = history.people * STEPS_PER_DAY
    count = np.bincount(cell, minlength=size).reshape(shape).astype(float)
    total = np.bincount(cell, history.glucose_T[observed], minlength=size).reshape(shape)
    count, total = (_around_the_clock(table, options.window_steps) for table in (count, total))
    if not count.any(axis=0).all():
        unread = np.flatnonzero(~count.any(axis=0)) * STEP_MINUTES
        raise InputError(
            f"baseline 'climatology': around {unread[0] // 60:02d}:{unread[0] % 60:02d} "
            f"({len(unread)} of {STEPS_PER_DAY} times of day) no training row of anybody has a "
            f"reading. Give more people or days, change the shares under 'splits', or raise "
            f"baseline_options.climatology.window_steps."
        )
    everybody = total.sum(axis=0) / count.sum(axis=0)
    own = np.divide(total, count, out=np.tile(everybody, (len(count), 1)), where=count > 0)
    return {"mean_PD": np.vstack([own, everybody])}


def forecast(state: dict[str, np.ndarray], nights: Nights) -> Answer:
    """Points alone."""
    slot_NH = nights.slot_of_day_N[:, None] + np.arange(1, nights.horizon + 1)
    return Answer(state["mean_PD"][nights.person_N[:, None], slot_NH % STEPS_PER_DAY])


def _around_the_clock(table_PD: np.ndarray, window: int) -> np.ndarray:
    """Sum over a centred window of slots that wraps around midnight."""
    shifts = np.arange(window) - window // 2
    return np.sum([np.roll(table_PD, shift, axis=1) for shift in shifts], axis=0)
