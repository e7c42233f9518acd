"""The default source: a simulated cohort of people with type 1 diabetes, from nothing but a seed.

The body is the published model in `_hovorka`; on top of it lies a life: meals and how they are
counted, boluses given late or never, a basal that does not quite fit, dawn, rescues, and a sensor
and a pump that lose part of what they record. The log and the body differ, as they do in
people: the frame holds what was counted and recorded, the body got what was eaten.

The habits are chosen, not measured: together they give nights like those of published cohorts,
within the ranges that tests/sources/test_simulated.py holds.

[1] Vettoretti et al., IEEE EMBC 2019, doi:10.1109/embc.2019.8856790: error of the Dexcom G6.
[2] Brazeau et al., Diabetes Res Clin Pract 2013, 99:e19: carbs are miscounted by 21 % on average.
[3] Visentin et al., J Diabetes Sci Technol 2018, 12:273: dawn, sensitivity through the day.

Shapes: T ticks of 5 minutes, N people.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from nocturnal_kedro.series.schema import (
    BASAL_RECORD_MINUTES,
    GLUCOSE_CEILING_MG_DL,
    GLUCOSE_FLOOR_MG_DL,
    MG_DL_PER_MMOL_L,
    STEP_MINUTES,
    STEPS_PER_DAY,
    STEPS_PER_HOUR,
    Readings,
    make_tally,
    readings_frame,
)
from nocturnal_kedro.sources import Files
from nocturnal_kedro.sources import _hovorka as hovorka
from nocturnal_kedro.sources._hovorka import Bodies, Floats

Bools = NDArray[np.bool_]
Record = TypeVar("Record")

TITLE = (
    "Simulated cohort: the model of Hovorka et al., Physiol Meas 2004, 25:905, "
    "doi:10.1088/0967-3334/25/4/010; nobody's data, free to use"
)


class Options(BaseModel, extra="forbid", frozen=True):
    """How many people, for how long, and which."""

    subjects: int = Field(default=30, ge=1, le=999)
    days: int = Field(default=30, ge=1, le=366)
    seed: int = Field(default=2004, ge=0)
    start: date = date(2024, 1, 1)  # a Monday
    slow_sensor_share: float = Field(default=0, ge=0, le=1)  # of the people: reads every 15 minutes


class Meal(NamedTuple):
    """A habit of eating."""

    hour: float
    hour_spread: float  # half the range between people
    hour_noise: float  # SD from day to day
    chance: float  # per day
    grams: float
    digestion: float  # factor on tmaxG: fat and protein slow a dinner


MEALS = (
    Meal(7.4, 0.9, 0.4, 0.93, 48, 0.9),  # breakfast
    Meal(10.3, 0.7, 0.7, 0.30, 15, 0.9),
    Meal(12.7, 0.7, 0.5, 0.97, 66, 1.1),  # lunch
    Meal(16.0, 0.8, 0.8, 0.40, 18, 0.9),
    Meal(19.0, 1.0, 0.6, 1.00, 76, 1.4),  # dinner
    Meal(21.7, 0.6, 0.7, 0.35, 20, 1.1),
)
GRAMS_NOISE, DIGESTION_NOISE = 0.30, 0.25  # SD of the logarithm
PROMPT_TICKS, LATE_TICKS = (-2, 2), (3, 13)  # bolus after the first bite

# Each person's habits lie uniformly between these.
HABITS = {
    "appetite": (0.7, 1.3),  # factor on grams
    "bedtime": (22.3, 24.5),  # hour
    "waking": (6.0, 7.8),  # hour
    "count_bias": (0.75, 1.10),  # counted / eaten [2]
    "count_noise": (0.10, 0.30),  # SD of the logarithm [2]
    "missed": (0.01, 0.12),  # share of meals without a bolus
    "late": (0.05, 0.35),  # share of boluses
    "carb_ratio_fit": (0.85, 1.30),  # prescribed / ideal
    "correction_fit": (0.9, 1.5),  # prescribed / ideal
    "basal_fit": (0.93, 1.06),  # prescribed / ideal
    "dawn": (0.00, 0.14),  # rise in EGP [3]
    "dawn_covered": (0.0, 0.8),  # share of it that the basal profile knows
    "circadian": (-0.06, 0.06),  # amplitude of the logarithm of sensitivity [3]
    "drift": (0.06, 0.14),  # SD of its slow change
    "active": (0.1, 0.5),  # share of days with an active afternoon
    "corrects_above": (200, 320),  # mg/dL, between meals
    "corrects": (0.01, 0.10),  # chance per tick
    "rescues_below": (63, 72),  # mg/dL
    "rescues_asleep": (0.02, 0.20),  # chance per tick
    "logs_rescue": (0.1, 0.7),  # share
    "dropouts": (0.2, 1.2),  # of the sensor, per day
}
AUTOMATED_SHARE = 0.5  # people whose pump adapts the basal
AUTOMATED_PER_MG_DL = 0.005  # relative change of that basal, between off and double
SUSPENDS_BELOW_MG_DL = 80.0
LOGS_NO_CARBS_SHARE = 0.07  # people
LOGS_MISSED_MEAL = 0.3  # meals

TARGET_MMOL_L = 7.0  # of basal and corrections
BOLUS_STEP_U = 0.05
ON_BOARD_HOURS = 2.0  # decay of insulin on board in the pump's reckoning
CORRECTION_PAUSE_TICKS = 30
RESCUE_G, RESCUE_PAUSE_TICKS = (10.0, 25.0), 4
RESCUES_AWAKE = 0.35  # chance per tick
FELT_BELOW_MMOL_L = 3.0  # a low that is felt without a sensor

DAWN_HOUR, DAWN_WIDTH_HOURS, DAWN_OF_A_DAY = 6.0, 2.0, (0.3, 1.7)  # peak, SD, factor on a day
CIRCADIAN_HOUR = 9.0  # where sensitivity crosses its mean
DRIFT_HOURS = 18.0  # correlation time
ACTIVE_HOUR, ACTIVE_BOOST, ACTIVE_HOURS = 17.0, (0.05, 0.20), 6.0  # logarithm of sensitivity

# Sensor error in mg/dL: two AR(2) processes, each (first, second coefficient, variance) [1].
SENSOR_NOISES = ((1.220, -0.331, 3.641), (1.340, -0.492, 5.538))
SENSOR_GAIN_SD = 0.05  # calibration, between sensors
SENSOR_DAYS, WARM_UP_HOURS = 10, 2
READING_LOST = 0.004  # chance
DROPOUT_LN_TICKS = (1.2, 1.3)  # mean and SD of the logarithm: median 17 min, at times hours
PUMP_GAPS_PER_DAY, PUMP_GAP_LN_TICKS = 0.06, (4.0, 1.0)  # median 4.5 h

SETTLING_DAYS = 1  # lived before the first day that is kept
SLOW_TICKS = 3  # of 5 minutes, between two readings of a slow sensor


@dataclass(frozen=True)
class Habits:
    """What the days of N people are lived by, each an (N,) array; see `HABITS`."""

    automated: Bools
    logs_carbs: Bools
    rescues_below: Floats
    rescues_asleep: Floats
    logs_rescue: Floats
    corrects_above: Floats
    corrects: Floats
    carb_ratio_fit: Floats
    correction_fit: Floats
    drift: Floats
    phase_s: Floats  # of the sensor's clock within 5 minutes


@dataclass(frozen=True)
class Plan:
    """What happens whatever glucose does, each a (T, N) array."""

    eaten_g: Floats
    counted_g: Floats  # at the time of the bolus
    logged_g: Floats
    digestion: Floats  # factor on tmaxG
    production: Floats  # factor on EGP0
    sensitivity: Floats  # logarithm, through the day
    activity: Floats  # rise of that logarithm at one tick, to decay
    drift: Floats  # white noise
    basal: Floats  # profile, as a factor
    asleep: Bools
    luck: Floats  # 0 .. 1, of corrections
    rescue_luck: Floats
    rescue_log_luck: Floats
    rescue_g: Floats
    sensor_noise_a: Floats  # white noise
    sensor_noise_b: Floats
    sensor_gain: Floats
    sensor_lost: Bools
    pump_lost: Bools
    jitter_s: Floats  # of a dose within 5 minutes


@dataclass
class Log:
    """What was recorded, each a (T, N) array; a reading or rate stands at the tick."""

    glucose_mg_dl: Floats
    basal_u_h: Floats
    bolus_u: Floats
    carbs_g: Floats


def find(root: Path, options: Options) -> list[Files]:
    """One part without a file: the cohort lives together."""
    return [()]


def read(files: Files, options: Options) -> Readings:
    """Simulate the cohort; the same options give the same frame."""
    days = options.days + SETTLING_DAYS
    people = [
        _draw_person(np.random.default_rng((options.seed, number)), days)
        for number in range(options.subjects)
    ]
    bodies, habits, plan = (_stack([person[part] for person in people]) for part in range(3))
    return _recorded(_live(bodies, habits, plan), habits, plan, options)


def _stack(records: list[Any]) -> Any:
    """One record of all people, along the last axis of every array."""
    kind = type(records[0])
    names = [f.name for f in fields(kind)]
    return kind(**{n: np.concatenate([getattr(r, n) for r in records], axis=-1) for n in names})


def _draw_person(rng: np.random.Generator, days: int) -> tuple[Bodies, Habits, Plan]:
    """One person and all their days: arrays of (1,) and (T, 1)."""
    trait: dict[str, Any] = {name: rng.uniform(*limits) for name, limits in HABITS.items()}
    trait["automated"] = rng.random() < AUTOMATED_SHARE
    trait["logs_carbs"] = rng.random() >= LOGS_NO_CARBS_SHARE
    trait["phase_s"] = rng.uniform(0, 60 * STEP_MINUTES)
    habits = Habits(**{f.name: np.array([trait[f.name]]) for f in fields(Habits)})

    ticks = days * STEPS_PER_DAY
    hour = np.arange(ticks) / STEPS_PER_HOUR % 24
    dawn = trait["dawn"] * np.exp(-0.5 * ((hour - DAWN_HOUR) / DAWN_WIDTH_HOURS) ** 2)
    dawn_of_day = np.repeat(rng.uniform(*DAWN_OF_A_DAY, days), STEPS_PER_DAY)
    active = np.where(rng.random(days) < trait["active"], rng.uniform(*ACTIVE_BOOST, days), 0)
    lost, gain = _draw_sensors(rng, trait["dropouts"], ticks)
    before_midnight = hour >= trait["bedtime"]
    after_midnight = (hour < trait["waking"]) & (hour >= trait["bedtime"] - 24)
    plan = {
        **_draw_meals(rng, trait, days),
        "production": 1 + dawn * dawn_of_day,
        "sensitivity": trait["circadian"] * np.sin((hour - CIRCADIAN_HOUR) / 24 * 2 * np.pi),
        "activity": np.where(hour == ACTIVE_HOUR, np.repeat(active, STEPS_PER_DAY), 0),
        "drift": rng.standard_normal(ticks),
        "basal": trait["basal_fit"] * (1 + dawn * trait["dawn_covered"]),
        "asleep": before_midnight | after_midnight,
        "luck": rng.random(ticks),
        "rescue_luck": rng.random(ticks),
        "rescue_log_luck": rng.random(ticks),
        "rescue_g": rng.uniform(*RESCUE_G, ticks),
        "sensor_noise_a": rng.standard_normal(ticks),
        "sensor_noise_b": rng.standard_normal(ticks),
        "sensor_gain": gain,
        "sensor_lost": lost,
        "pump_lost": _draw_gaps(rng, PUMP_GAPS_PER_DAY, PUMP_GAP_LN_TICKS, ticks),
        "jitter_s": rng.uniform(0, 60 * STEP_MINUTES, ticks),
    }
    body = hovorka.draw_body(rng)
    return body, habits, Plan(**{name: values[:, None] for name, values in plan.items()})


def _draw_meals(
    rng: np.random.Generator, trait: dict[str, Any], days: int
) -> dict[str, NDArray[Any]]:
    ticks = days * STEPS_PER_DAY
    eaten, counted, logged = np.zeros((3, ticks))
    digestion = np.full(ticks, np.nan)
    digestion[0] = 1.0
    for meal in MEALS:
        usual = meal.hour + meal.hour_spread * rng.uniform(-1, 1)
        hours = 24 * np.arange(days) + usual + meal.hour_noise * rng.standard_normal(days)
        grams = meal.grams * trait["appetite"] * np.exp(GRAMS_NOISE * rng.standard_normal(days))
        error = trait["count_bias"] * np.exp(trait["count_noise"] * rng.standard_normal(days))
        slowness = meal.digestion * np.exp(DIGESTION_NOISE * rng.standard_normal(days))
        late = rng.random(days) < trait["late"]
        lag = np.where(late, rng.integers(*LATE_TICKS, days), rng.integers(*PROMPT_TICKS, days))
        missed = rng.random(days) < trait["missed"]
        noted = ~missed | (rng.random(days) < LOGS_MISSED_MEAL)
        happens = rng.random(days) < meal.chance

        count = np.round(grams * error)
        bite = np.clip(np.round(hours * STEPS_PER_HOUR).astype(int), 0, ticks - 1)
        button = np.clip(bite + lag, 0, ticks - 1)
        np.add.at(eaten, bite[happens], grams[happens])
        np.add.at(counted, button[happens & ~missed], count[happens & ~missed])
        np.add.at(logged, button[happens & noted], count[happens & noted])
        digestion[bite[happens]] = slowness[happens]
    last_meal = np.maximum.accumulate(np.where(np.isnan(digestion), 0, np.arange(ticks)))
    logged *= trait["logs_carbs"]
    return {
        "eaten_g": eaten,
        "counted_g": counted,
        "logged_g": logged,
        "digestion": digestion[last_meal],
    }


def _draw_sensors(rng: np.random.Generator, dropouts: float, ticks: int) -> tuple[Bools, Floats]:
    """Which readings are lost, and the calibration of the sensor worn at each tick."""
    life = SENSOR_DAYS * STEPS_PER_DAY
    age = np.arange(ticks) + rng.integers(life)
    gain = 1 + SENSOR_GAIN_SD * rng.standard_normal(ticks // life + 2)
    lost = _draw_gaps(rng, dropouts, DROPOUT_LN_TICKS, ticks)
    lost |= (age % life < WARM_UP_HOURS * STEPS_PER_HOUR) | (rng.random(ticks) < READING_LOST)
    return lost, gain[age // life]


def _draw_gaps(
    rng: np.random.Generator, per_day: float, ln_ticks: tuple[float, float], ticks: int
) -> Bools:
    gap = np.zeros(ticks, dtype=bool)
    number = rng.poisson(per_day * ticks / STEPS_PER_DAY)
    starts = rng.integers(0, ticks, number)
    for start, length in zip(starts, rng.lognormal(*ln_ticks, number), strict=True):
        gap[start : start + 1 + int(length)] = True
    return gap


def _live(bodies: Bodies, habits: Habits, plan: Plan) -> Log:
    """Let T ticks pass: sense, dose, eat, and let the body work for 5 minutes."""
    T, N = plan.eaten_g.shape
    state = hovorka.equilibrium(bodies, TARGET_MMOL_L)
    target = TARGET_MMOL_L * MG_DL_PER_MMOL_L
    basal_mu_min = hovorka.basal_for(bodies, TARGET_MMOL_L) * plan.basal
    carb_ratio = hovorka.carb_ratio(bodies, TARGET_MMOL_L) * habits.carb_ratio_fit
    correction_factor = hovorka.correction_factor(bodies) * MG_DL_PER_MMOL_L * habits.correction_fit
    sensitivity = np.exp(plan.sensitivity + _activity(plan) + _drift(habits, plan))
    noise = _sensor_noise(plan)
    on_board = np.zeros(N)
    on_board_left = np.exp(-STEP_MINUTES / 60 / ON_BOARD_HOURS)
    since_bolus, since_rescue = np.full((2, N), T)
    log = Log(*np.empty((4, T, N)))

    for t in range(T):
        sensed = state[hovorka.C] * MG_DL_PER_MMOL_L * plan.sensor_gain[t] + noise[t]
        np.clip(sensed, GLUCOSE_FLOOR_MG_DL, GLUCOSE_CEILING_MG_DL, out=sensed)
        seen = np.where(plan.sensor_lost[t], np.nan, sensed)  # comparisons with NaN are false
        asleep, counted = plan.asleep[t], plan.counted_g[t]

        high = (seen > habits.corrects_above) & ~asleep & (since_bolus > CORRECTION_PAUSE_TICKS)
        corrects = (counted > 0) | (high & (plan.luck[t] < habits.corrects))
        excess = np.where(np.isnan(seen), 0, seen - target) / correction_factor
        excess = np.where(excess > 0, np.maximum(excess - on_board, 0), excess)
        units = np.where(corrects, counted / carb_ratio + excess, 0)
        bolus = np.maximum(np.round(units / BOLUS_STEP_U), 0) * BOLUS_STEP_U

        low = (seen < habits.rescues_below) | (state[hovorka.C] < FELT_BELOW_MMOL_L)
        notices = plan.rescue_luck[t] < np.where(asleep, habits.rescues_asleep, RESCUES_AWAKE)
        rescues = low & notices & (since_rescue > RESCUE_PAUSE_TICKS)
        rescue = np.where(rescues, plan.rescue_g[t], 0)
        rescue_logged = rescues & habits.logs_carbs & (plan.rescue_log_luck[t] < habits.logs_rescue)

        adapts = habits.automated & ~plan.sensor_lost[t]
        change = np.where(adapts, AUTOMATED_PER_MG_DL * (sensed - target), 0)
        basal = basal_mu_min[t] * np.clip(1 + change, 0, 2)
        basal[habits.automated & (seen < SUSPENDS_BELOW_MG_DL)] = 0

        log.glucose_mg_dl[t] = seen
        log.basal_u_h[t] = basal * 60 / 1000
        log.bolus_u[t] = bolus
        log.carbs_g[t] = plan.logged_g[t] + np.where(rescue_logged, np.round(rescue), 0)

        forces = basal, sensitivity[t], plan.production[t], plan.digestion[t]
        state = hovorka.step(state, bodies, STEP_MINUTES, *forces)
        hovorka.give(state, bodies, bolus, plan.eaten_g[t] + rescue)
        on_board = on_board * on_board_left + bolus
        since_bolus = np.where(bolus > 0, 0, since_bolus + 1)
        since_rescue = np.where(rescues, 0, since_rescue + 1)
    return log


def _activity(plan: Plan) -> Floats:
    return _autoregressive(plan.activity, np.exp(-STEP_MINUTES / 60 / ACTIVE_HOURS))


def _drift(habits: Habits, plan: Plan) -> Floats:
    left = np.exp(-STEP_MINUTES / 60 / DRIFT_HOURS)
    return _autoregressive(plan.drift * habits.drift * np.sqrt(1 - left**2), left)


def _sensor_noise(plan: Plan) -> Floats:
    whites = plan.sensor_noise_a, plan.sensor_noise_b
    parts = (
        _autoregressive(white * np.sqrt(variance), first, second)
        for white, (first, second, variance) in zip(whites, SENSOR_NOISES, strict=True)
    )
    return sum(parts, start=np.zeros(1))


def _autoregressive(noise_TN: Floats, first: float, second: float = 0.0) -> Floats:
    """y[t] = first y[t-1] + second y[t-2] + noise[t]."""
    values_TN = noise_TN.copy()
    for t in range(1, len(values_TN)):
        values_TN[t] += first * values_TN[t - 1]
        if t > 1:
            values_TN[t] += second * values_TN[t - 2]
    return values_TN


def _recorded(log: Log, habits: Habits, plan: Plan, options: Options) -> Readings:
    """The log as rows: one per tick for sensor and pump, one per dose, less what was lost."""
    kept = slice(SETTLING_DAYS * STEPS_PER_DAY, None)
    midnight = np.datetime64(options.start, "ns")
    frames, entries = [], []
    fast = options.subjects - round(options.slow_sensor_share * options.subjects)
    for person in range(options.subjects):
        subject = f"sim-{person + 1:03d}"
        glucose = log.glucose_mg_dl[kept, person]
        lost = int(np.isnan(glucose).sum())
        if person >= fast:
            glucose = np.where(np.arange(len(glucose)) % SLOW_TICKS, np.nan, glucose)
        pump_lost = plan.pump_lost[kept, person]
        basal = np.where(pump_lost, np.nan, log.basal_u_h[kept, person])
        bolus = np.where(pump_lost, 0, log.bolus_u[kept, person])
        carbs = log.carbs_g[kept, person]
        seconds = np.arange(len(glucose)) * 60 * STEP_MINUTES + habits.phase_s[person]
        present = ~(np.isnan(glucose) & np.isnan(basal))
        dose = np.flatnonzero((bolus > 0) | (carbs > 0))
        dose_seconds = seconds[dose] + plan.jitter_s[kept, person][dose]
        nothing = np.full(len(dose), np.nan)
        silent = np.full(int(present.sum()), np.nan)

        columns = {
            "time": np.concatenate([seconds[present], dose_seconds]),
            "glucose_mg_dl": np.concatenate([np.round(glucose[present]), nothing]),
            "basal_u_h": np.concatenate([np.round(basal[present], 3), nothing]),
            "basal_minutes": np.concatenate(
                [np.where(np.isnan(basal[present]), np.nan, BASAL_RECORD_MINUTES), nothing]
            ),
            "bolus_u": np.concatenate([silent, np.where(bolus[dose] > 0, bolus[dose], np.nan)]),
            "carbs_g": np.concatenate([silent, np.where(carbs[dose] > 0, carbs[dose], np.nan)]),
        }
        columns["time"] = midnight + columns["time"].astype("timedelta64[s]")
        columns["subject"] = np.full(len(columns["time"]), subject)
        frames.append(readings_frame(columns))
        entries += [
            (subject, "in", "rows simulated", len(frames[-1])),
            (subject, "noted", "glucose lost by the sensor", lost),
            (subject, "noted", "basal lost by the pump's log", int(pump_lost.sum())),
        ]
    return Readings(pd.concat(frames, ignore_index=True), make_tally("read", entries))
