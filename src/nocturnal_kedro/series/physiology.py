"""Insulin and carbs on board: convolution of what was given with a published decay curve."""

from __future__ import annotations

from typing import Self

import numpy as np
from pydantic import BaseModel, Field, model_validator

from nocturnal_kedro.series.schema import STEP_MINUTES

# What a dose still does, in the order of `action_kernels`: left of insulin and of carbs, then what
# is used of them per hour.
ACTIONS = ("iob_u", "cob_g", "insulin_activity_u_h", "carbs_appearance_g_h")
OF_INSULIN, OF_CARBS = [0, 2], [1, 3]


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


def insulin_activity(minutes: np.ndarray, action: float, peak: float) -> np.ndarray:
    """Share of a dose of insulin used per hour, `minutes` after it: the slope of what is left.

    The same model: activity(t) = S t (1 - t/d) exp(-t/tau) / tau^2 per minute, 0 from `action` on;
    it peaks at p and its integral is 1. Worked number: d = 360, p = 75, t = 75 min uses
    0.3428 of the dose per hour.
    """
    tau = peak * (1 - peak / action) / (1 - 2 * peak / action)
    a = 2 * tau / action
    s = 1 / (1 - a + (1 + a) * np.exp(-action / tau))
    t = np.clip(minutes, 0, action)
    return 60 * s * t * (1 - t / action) * np.exp(-t / tau) / tau**2


def carbs_appearance(minutes: np.ndarray, peak: float) -> np.ndarray:
    """Share of eaten carbs absorbed per hour: t/p^2 exp(-t/p) per minute (Hovorka 2004, eq. 4).

    Worked number: p = 40, t = 40 min absorbs 60 / (40 e) = 0.5518 of the carbs per hour.
    """
    t = np.maximum(minutes, 0)
    return 60 * t / peak**2 * np.exp(-t / peak)


def action_kernels(physiology: Physiology) -> np.ndarray:
    """Each of ACTIONS 0, 1, ... K - 1 slots after the slot of the dose, (4, K) per unit given.

    A slot's amount was given somewhere in its 5 minutes: on average 2.5 minutes before its time.
    """
    action, peak = physiology.insulin_action_minutes, physiology.insulin_peak_minutes
    longest = max(action, physiology.carbs_action_minutes)
    age = np.arange(np.ceil(longest / STEP_MINUTES)) * STEP_MINUTES + STEP_MINUTES / 2
    eaten = age < physiology.carbs_action_minutes
    return np.stack(
        [
            insulin_remaining(age, action, peak),
            np.where(eaten, carbs_remaining(age, physiology.carbs_peak_minutes), 0.0),
            insulin_activity(age, action, peak),
            np.where(eaten, carbs_appearance(age, physiology.carbs_peak_minutes), 0.0),
        ]
    )


def act(amounts_t: np.ndarray, kernels_JK: np.ndarray, observed_share: float) -> np.ndarray:
    """What amounts per slot still do in each slot, by each kernel: (J, t), NaN where unknown.

    `amounts_t` has NaN where nothing is on record. The first kernel is what is left; it is known,
    and the others with it, where at least `observed_share` of its weight falls on recorded slots;
    slots before the first are not recorded.
    """
    recorded_t = ~np.isnan(amounts_t)
    done_Jt = convolve(np.where(recorded_t, amounts_t, 0.0), kernels_JK)
    [weight_t] = convolve(recorded_t.astype(float), kernels_JK[:1])
    known_t = weight_t >= observed_share * kernels_JK[0].sum() - 1e-9
    return np.where(known_t, done_Jt, np.nan)


def convolve(values_t: np.ndarray, kernels_JK: np.ndarray) -> np.ndarray:
    """Causal convolution with each kernel, (J, t): out[t] = sum over k of kernel[k] values[t - k].

    By blocks of K slots it is two matrix products, tens of times faster than a loop over slots. A
    later value meets a zero of the matrix, and adds exactly nothing: an FFT would let its rounding
    into earlier slots.
    """
    steps = kernels_JK.shape[1]
    blocks = -(-len(values_t) // steps)
    padded = np.zeros((blocks + 1) * steps)
    padded[steps : steps + len(values_t)] = values_t
    padded_BK = padded.reshape(blocks + 1, steps)
    age_KK = (
        np.arange(steps)[None, :] - np.arange(steps)[:, None]
    )  # of a value of the same block, or of the one before
    kernels_JKK = kernels_JK[:, age_KK % steps]
    same_JKK = np.where(age_KK >= 0, kernels_JKK, 0.0)
    before_JKK = np.where(age_KK < 0, kernels_JKK, 0.0)
    out = [
        (padded_BK[1:] @ same_KK + padded_BK[:-1] @ before_KK).ravel()[: len(values_t)]
        for same_KK, before_KK in zip(same_JKK, before_JKK, strict=True)
    ]
    return np.stack(out)
