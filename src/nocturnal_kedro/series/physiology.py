"""Insulin and carbs on board: convolution of what was given with a published decay curve."""

from __future__ import annotations

from typing import Self

import numpy as np
from pydantic import BaseModel, Field, model_validator

from nocturnal_kedro.series.schema import STEP_MINUTES


class Physiology(BaseModel, extra="forbid", frozen=True):
    """Action curves; the defaults are those of rapid-acting insulin and a mixed meal."""

    insulin_action_minutes: float = Field(default=360.0, ge=300, le=480)
    insulin_peak_minutes: float = Field(default=75.0, gt=0)
    carbs_peak_minutes: float = Field(default=40.0, gt=0)  # t_max,G of Hovorka 2004
    carbs_action_minutes: float = Field(default=300.0, gt=0)
    observed_share: float = Field(default=0.9, gt=0, le=1)

    @model_validator(mode="after")
    def _peak_inside_action(self) -> Self:
        if not self.insulin_peak_minutes < self.insulin_action_minutes / 2:
            raise ValueError("insulin_peak_minutes must be below half of insulin_action_minutes")
        return self


def insulin_remaining(minutes: np.ndarray, action: float, peak: float) -> np.ndarray:
    """Share of a dose of insulin not yet used `minutes` after it; 1 at 0, 0 from `action` on.

    The exponential model of open-source closed-loop systems (LoopKit issue 388, K. Vargas;
    oref0): with tau = p(1 - p/d)/(1 - 2p/d), a = 2 tau/d, S = 1/(1 - a + (1 + a)exp(-d/tau)),
    IOB(t) = 1 - S(1 - a)((t^2/(tau d (1 - a)) - t/tau - 1) exp(-t/tau) + 1), p peak, d action.
    Worked number: d = 360, p = 75, t = 120 min leaves 0.4498 of the dose.
    """
    tau = peak * (1 - peak / action) / (1 - 2 * peak / action)
    a = 2 * tau / action
    s = 1 / (1 - a + (1 + a) * np.exp(-action / tau))
    t = np.clip(minutes, 0, action)
    bracket = (t**2 / (tau * action * (1 - a)) - t / tau - 1) * np.exp(-t / tau) + 1
    return np.where(np.asarray(minutes) < action, 1 - s * (1 - a) * bracket, 0.0)


def carbs_remaining(minutes: np.ndarray, peak: float) -> np.ndarray:
    """Share of eaten carbs not yet absorbed: (1 + t/p) exp(-t/p), p the time of the peak.

    Two equal gut compartments of Hovorka et al. 2004, Physiol Meas 25:905, eq. 4.
    Worked number: p = 40, t = 40 min leaves 2/e = 0.7358 of the carbs.
    """
    t = np.maximum(minutes, 0)
    return (1 + t / peak) * np.exp(-t / peak)


def decay_kernels(physiology: Physiology, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Share of insulin and of carbs left 0, 1, ... `steps` - 1 slots after the slot of the dose.

    A slot's amount was given somewhere in its 5 minutes: on average 2.5 minutes before its time.
    """
    age = np.arange(steps) * STEP_MINUTES + STEP_MINUTES / 2
    insulin = insulin_remaining(
        age, physiology.insulin_action_minutes, physiology.insulin_peak_minutes
    )
    carbs = np.where(
        age < physiology.carbs_action_minutes,
        carbs_remaining(age, physiology.carbs_peak_minutes),
        0.0,
    )
    return insulin, carbs


def kernel_steps(physiology: Physiology) -> int:
    """Slots until nothing is left of any dose."""
    longest = max(physiology.insulin_action_minutes, physiology.carbs_action_minutes)
    return int(np.ceil(longest / STEP_MINUTES))


def on_board(
    amounts_t: np.ndarray, kernel: np.ndarray, observed_share: float
) -> tuple[np.ndarray, np.ndarray]:
    """What is on board in each slot, and whether enough of the past is on record to say so.

    `amounts_t` has NaN where nothing is on record. On board is known where at least
    `observed_share` of the kernel's weight falls on recorded slots; slots before the first one
    are not recorded. Returns arrays of the shape of `amounts_t` in its unit.
    """
    recorded = ~np.isnan(amounts_t)
    # A direct convolution: an FFT would let the rounding of later values into earlier ones.
    remaining = np.convolve(np.where(recorded, amounts_t, 0.0), kernel)[: len(amounts_t)]
    weight = np.convolve(recorded.astype(float), kernel)[: len(amounts_t)]
    known = weight >= observed_share * kernel.sum() - 1e-9
    return np.where(known, remaining, np.nan), known
