"""An embedded cohort: virtual people with type 1 diabetes who live, err and wear sensors.

The body is the model of Hovorka et al. 2004 (`_hovorka.py`); around it stand meals that are
counted wrong, boluses that are missed or late, a basal that does not quite fit, a dawn rise,
sensitivity that drifts, rescue carbs, and a sensor with delay, noise and gaps. What is logged is
what the person knew, not what the body got. Every person has a random stream of its own: the
first ten of thirty people are the same ten.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.schema import (
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
from nocturnal_kedro.sources._hovorka import (
    MMOL_PER_G_GLUCOSE,
    People,
    derivative,
    draw_person,
    steady_state,
)

TITLE = (
    "Simulated cohort of this project: Hovorka et al., Physiol Meas 2004, 25:905, with the "
    "spread between people of Wilinska et al., J Diabetes Sci Technol 2010, 4:132"
)

HELD_GLUCOSE_MMOL_L = 6.5  # where a fitting basal would hold the person
VIABLE_BASAL_U_H = (0.4, 2.0)
VIABLE_CARB_RATIO = (4.0, 16.0)  # g of carbs covered by one unit
TARGET_MG_DL = 120.0
SETTLE_DAYS = 1  # simulated before the first day and thrown away

# Clock hour, spread in hours, median grams, chance: three meals and two snacks
MEALS = (
    (7.3, 0.6, 32.0, 0.92),
    (12.6, 0.7, 55.0, 0.96),
    (18.8, 0.8, 65.0, 0.98),
    (15.8, 0.8, 18.0, 0.45),
    (21.8, 0.7, 20.0, 0.5),
)
AWAKE_HOURS = (7.0, 23.0)
RESCUE_G = 15.0
LOW_MG_DL, RESCUE_AWAKE_MG_DL = 70.0, 78.0
INSULIN_MEMORY_MINUTES = 130.0  # by which the person's own reckoning of active insulin fades
# Breton & Kovatchev 2008 (J Diabetes Sci Technol 2:853): first-order delay and autoregressive
# noise; the amplitude is that of present sensors, with a mean error of about 8 %.
SENSOR_DELAY_MINUTES = 10.0
SENSOR_NOISE_MEMORY = 0.9
SENSOR_NOISE_SHARE = 0.055


class Options(BaseModel, extra="forbid", frozen=True):
    """Size and seed of the cohort."""

    subjects: int = Field(default=30, ge=1, le=10_000)
    days: int = Field(default=30, ge=3, le=3650)
    seed: int = Field(default=2026, ge=0)
    start: datetime.date = datetime.date(2026, 1, 5)


def read(root: Path, options: Options) -> Readings:
    """Simulate the cohort; `root` is not read. The same options give the same frame."""
    streams = np.random.SeedSequence(options.seed).spawn(options.subjects)
    draws = [np.random.default_rng(stream) for stream in streams]
    people = People.stack([_viable_person(draw) for draw in draws])
    therapy = _fit_therapy(people)
    lives = [_draw_life(draw, options.days + SETTLE_DAYS) for draw in draws]
    course = _live(people, therapy, lives)
    parts = [
        _record(f"sim-{number + 1:03d}", course.of(number), life, draw, options)
        for number, (life, draw) in enumerate(zip(lives, draws, strict=True))
    ]
    return Readings(
        frame=pd.concat([part.frame for part in parts], ignore_index=True),
        tally=pd.concat([part.tally for part in parts], ignore_index=True),
    )


@dataclass(frozen=True)
class Therapy:
    """What the physiology asks for: fitting basal, carb ratio and correction factor, each (N,)."""

    basal_mu_min: np.ndarray
    carb_ratio_g_u: np.ndarray
    correction_mg_dl_u: np.ndarray
    state: np.ndarray  # (10, N), held at HELD_GLUCOSE_MMOL_L


@dataclass(frozen=True)
class Life:
    """One person's days, drawn before they are lived; arrays are (K,) over 5-minute slots."""

    carbs_g: np.ndarray  # eaten
    counted_g: np.ndarray  # what the person thinks it is, in the slot of its bolus; 0 if missed
    sensitivity: np.ndarray
    hepatic: np.ndarray
    basal_profile: np.ndarray  # share of the fitting basal
    noise: np.ndarray  # of the sensor, share of glucose
    chance: np.ndarray  # uniform, decides on corrections and rescues
    ratio_error: float  # the person's carb ratio over the fitting one
    correction_error: float
    logs_rescue: float  # chance that rescue carbs are logged


@dataclass(frozen=True)
class Course:
    """What was lived, (K, N): sensor glucose in mg/dL, boluses in U, logged carbs in g, basal."""

    sensor_mg_dl: np.ndarray
    bolus_u: np.ndarray
    logged_g: np.ndarray
    basal_u_h: np.ndarray

    def of(self, number: int) -> Course:
        """One person's columns."""
        arrays = (self.sensor_mg_dl, self.bolus_u, self.logged_g, self.basal_u_h)
        return Course(*(array[:, number] for array in arrays))


def _viable_person(draw: np.random.Generator) -> People:
    """Draw until basal and carb ratio are such as clinics see."""
    for _ in range(1000):
        person = draw_person(draw)
        _, basal = steady_state(person, HELD_GLUCOSE_MMOL_L)
        basal_u_h = basal[0] * 60 / 1000
        if not VIABLE_BASAL_U_H[0] <= basal_u_h <= VIABLE_BASAL_U_H[1]:  # NaN fails too
            continue
        ratio = _fit_therapy(person).carb_ratio_g_u[0]
        if VIABLE_CARB_RATIO[0] <= ratio <= VIABLE_CARB_RATIO[1]:
            return person
    raise InputError("simulated: no viable person in 1000 draws; choose another seed.")


def _fit_therapy(people: People) -> Therapy:
    """Fitting doses from the model itself: what one unit lowers, what ten grams raise."""
    state, basal = steady_state(people, HELD_GLUCOSE_MMOL_L)
    hours, unit_mu, carbs_mmol = 5, 300.0, 10 * MMOL_PER_G_GLUCOSE
    start = np.stack([state, state])  # (2, 10, N): insulin alone, carbs alone
    start[0, 0] += unit_mu
    start[1, 8] += carbs_mmol * people.bioavailability
    usual = np.ones_like(basal)
    ends = []
    for course in start:
        reached = course
        for _ in range(hours * 60):
            reached = reached + derivative(reached, people, basal, 0 * basal, usual, usual)
        # Compartments that are still returning count with the accessible one.
        ends.append((reached[6] - state[6] + reached[7] - state[7]) / people.vg)
    lowered, raised = -ends[0] * 1000 / unit_mu, ends[1] / 10  # mmol/L per U and per g
    return Therapy(
        basal_mu_min=basal,
        carb_ratio_g_u=lowered / np.maximum(raised, 1e-9),
        correction_mg_dl_u=np.maximum(lowered * MG_DL_PER_MMOL_L, 5.0),
        state=state,
    )


def _draw_life(draw: np.random.Generator, days: int) -> Life:
    """Everything about one person's days that does not depend on how they go."""
    slots = days * STEPS_PER_DAY
    hour = np.arange(slots) / STEPS_PER_HOUR % 24
    carbs, counted = _draw_meals(draw, days)

    # Sensitivity: lower in the morning, drifting over hours and days, raised after exercise.
    morning = np.exp(-(((hour - 7.5) / 2.5) ** 2))
    drift = draw.uniform(0.22, 0.38) * _red_noise(draw, slots, memory_hours=4.0)
    between_days = draw.uniform(0.02, 0.10) * _red_noise(draw, slots, memory_hours=60.0)
    exercise = _draw_exercise(draw, days)
    sensitivity = np.exp(drift + between_days - draw.uniform(0.0, 0.15) * morning) * exercise

    # Dawn: hepatic output rises from about four o'clock, and not every day alike.
    strength = draw.uniform(0.05, 0.25) * draw.lognormal(-0.06, 0.35, size=days)
    dawn = np.exp(-(((hour - 6.0) / 2.2) ** 2)) * np.repeat(strength, STEPS_PER_DAY)

    # The pump's profile follows the dawn and the level only as well as it was set.
    level, follows_dawn = draw.lognormal(-0.12, 0.10), draw.uniform(0.2, 1.1)
    profile = level * (1 + follows_dawn * strength.mean() * np.exp(-(((hour - 5.0) / 2.5) ** 2)))
    return Life(
        carbs_g=carbs,
        counted_g=counted,
        sensitivity=sensitivity,
        hepatic=1 + dawn,
        basal_profile=profile,
        noise=SENSOR_NOISE_SHARE * _autoregressive(draw, slots, SENSOR_NOISE_MEMORY),
        chance=draw.random(slots),
        ratio_error=draw.lognormal(0.05, 0.12),
        correction_error=draw.lognormal(0.15, 0.2),
        logs_rescue=draw.uniform(0.1, 0.7),
    )


def _draw_meals(draw: np.random.Generator, days: int) -> tuple[np.ndarray, np.ndarray]:
    """Carbs eaten and carbs counted, (K,); the count stands in the slot of its bolus."""
    carbs, counted = np.zeros(days * STEPS_PER_DAY), np.zeros(days * STEPS_PER_DAY)
    appetite, bias = draw.lognormal(0.0, 0.2), draw.lognormal(-0.05, 0.10)
    missed, late_minutes = draw.uniform(0.02, 0.12), draw.uniform(-18.0, 8.0)
    for hour, spread, grams, likely in MEALS:
        eaten = draw.random(days) < likely
        when = np.arange(days) * 24 + hour + draw.normal(0, spread, size=days)
        size = appetite * grams * draw.lognormal(0.0, 0.35, size=days)
        guess = size * bias * draw.lognormal(0.0, 0.20, size=days)
        bolused = eaten & (draw.random(days) >= missed)
        delay = (late_minutes + draw.normal(0, 8.0, size=days)) / 60
        for chosen, hours, amount, into in (
            (eaten, when, size, carbs),
            (bolused, when + delay, np.round(guess), counted),
        ):
            slot = np.clip((hours * STEPS_PER_HOUR).astype(int), 0, len(into) - 1)
            np.add.at(into, slot[chosen], amount[chosen])
    return carbs, counted


def _draw_exercise(draw: np.random.Generator, days: int) -> np.ndarray:
    """Factor on sensitivity, (K,): up at once, fading over the following night."""
    slots = days * STEPS_PER_DAY
    often, strength = draw.uniform(0.05, 0.35), draw.uniform(0.15, 0.5)
    begins = (np.arange(days) * 24 + draw.normal(17.0, 1.5, size=days)) * STEPS_PER_HOUR
    age = np.arange(slots)[:, None] - begins[draw.random(days) < often]
    fading = np.where(age >= 0, np.exp(-np.maximum(age, 0) / (7 * STEPS_PER_HOUR)), 0.0)
    return 1 + strength * np.minimum(fading.sum(axis=1), 1.5)


def _autoregressive(draw: np.random.Generator, slots: int, memory: float) -> np.ndarray:
    """First-order autoregressive noise of unit variance, (K,)."""
    steps = draw.normal(size=slots) * np.sqrt(1 - memory**2)
    steps[0] = draw.normal()
    noise = np.empty(slots)
    last = 0.0
    for slot, step in enumerate(steps):
        last = memory * last + step
        noise[slot] = last
    return noise


def _red_noise(draw: np.random.Generator, slots: int, memory_hours: float) -> np.ndarray:
    """The same, slow: drawn by the hour and joined by lines."""
    hours = slots // STEPS_PER_HOUR + 2
    by_hour = _autoregressive(draw, hours, float(np.exp(-1 / memory_hours)))
    return np.interp(np.arange(slots) / STEPS_PER_HOUR, np.arange(hours), by_hour)


def _live(people: People, therapy: Therapy, lives: list[Life]) -> Course:
    """Go through time once, all people at a time: decide every 5 minutes, integrate by the minute."""

    def columns(name: str) -> np.ndarray:
        return np.stack([getattr(life, name) for life in lives], axis=-1)

    carbs_g, counted_g, chance = columns("carbs_g"), columns("counted_g"), columns("chance")
    sensitivity, hepatic, noise = columns("sensitivity"), columns("hepatic"), columns("noise")
    basal_mu_min = columns("basal_profile") * therapy.basal_mu_min
    carb_ratio = therapy.carb_ratio_g_u * columns("ratio_error")
    correction = therapy.correction_mg_dl_u * columns("correction_error")
    logs_rescue = columns("logs_rescue")

    slots, number = carbs_g.shape
    state, active_u = therapy.state, np.zeros(number)
    interstitial = state[6] / people.vg
    fades = np.exp(-STEP_MINUTES / INSULIN_MEMORY_MINUTES)
    sensor, bolus = np.empty((slots, number)), np.zeros((slots, number))
    logged = np.zeros((slots, number))
    last_bolus = np.full(number, -STEPS_PER_DAY)
    last_rescue = np.full(number, -STEPS_PER_DAY)

    for slot in range(slots):
        seen = interstitial * MG_DL_PER_MMOL_L * (1 + noise[slot])
        sensor[slot] = seen
        awake = AWAKE_HOURS[0] <= slot / STEPS_PER_HOUR % 24 < AWAKE_HOURS[1]

        # Boluses: for what was counted, more or less by the glucose seen; and corrections alone.
        counted = counted_g[slot]
        excess_u = (seen - TARGET_MG_DL) / correction - active_u
        alone = awake & (seen > 200) & (slot - last_bolus > 2 * STEPS_PER_HOUR)
        alone &= chance[slot] < 0.06
        wanted = np.where(counted > 0, counted / carb_ratio + excess_u, 0.0)
        wanted = np.where(alone & (counted == 0), excess_u, wanted)
        bolus[slot] = np.round(np.maximum(wanted, 0.0), 2)
        logged[slot] = counted
        last_bolus = np.where(bolus[slot] > 0, slot, last_bolus)
        active_u = active_u * fades + bolus[slot]

        # Rescue carbs on a low that is seen: nearly always by day; at night an alarm must wake.
        likely = 0.5 if awake else np.where(seen < 55, 0.25, 0.06)
        rescued = (seen < (RESCUE_AWAKE_MG_DL if awake else LOW_MG_DL)) & (slot - last_rescue > 4) & (chance[slot] < likely)
        last_rescue = np.where(rescued, slot, last_rescue)
        # The same draw decides whether it is logged: its place below `likely` is uniform.
        logged[slot] += np.where(rescued & (chance[slot] < likely * logs_rescue), RESCUE_G, 0.0)

        eaten_mmol = (carbs_g[slot] + RESCUE_G * rescued) * MMOL_PER_G_GLUCOSE
        insulin = basal_mu_min[slot] + bolus[slot] * 1000 / STEP_MINUTES
        for _ in range(STEP_MINUTES):
            change = derivative(
                state, people, insulin, eaten_mmol / STEP_MINUTES, sensitivity[slot], hepatic[slot]
            )
            state = np.maximum(state + change, 0.0)
            interstitial += (state[6] / people.vg - interstitial) / SENSOR_DELAY_MINUTES
    return Course(sensor, bolus, logged, basal_mu_min * 60 / 1000)


def _record(
    subject: str, course: Course, life: Life, draw: np.random.Generator, options: Options
) -> Readings:
    """What the devices kept of one person's course, with their gaps."""
    kept = slice(SETTLE_DAYS * STEPS_PER_DAY, None)
    sensor, bolus = course.sensor_mg_dl[kept], course.bolus_u[kept]
    logged, basal = course.logged_g[kept], course.basal_u_h[kept]
    slots = len(sensor)
    sensor_lost = _sensor_gaps(draw, slots)
    pump_lost = _pump_gaps(draw, slots)

    # A sensor reads at its own phase, a little off the grid.
    phase = pd.Timedelta(seconds=int(draw.integers(0, 60 * STEP_MINUTES)))
    time = pd.date_range(options.start, periods=slots, freq=f"{STEP_MINUTES}min") + phase
    clipped = np.clip(np.round(sensor), GLUCOSE_FLOOR_MG_DL - 1, GLUCOSE_CEILING_MG_DL + 1)
    frame = readings_frame(
        {
            "subject": np.full(slots, subject),
            "time": time,
            "glucose_mg_dl": np.where(sensor_lost, np.nan, clipped),
            "basal_u_h": np.where(pump_lost, np.nan, np.round(basal, 3)),
            "basal_minutes": np.where(pump_lost, np.nan, STEP_MINUTES),
            "bolus_u": np.where(pump_lost | (bolus == 0), np.nan, bolus),
            "carbs_g": np.where(pump_lost | (logged == 0), np.nan, logged),
        }
    )
    return Readings(
        frame=frame,
        tally=make_tally(
            [
                (subject, "read", "rows simulated", slots),
                (subject, "read", "glucose lost in a sensor gap", int(sensor_lost.sum())),
                (subject, "read", "insulin lost in a pump gap", int(pump_lost.sum())),
            ]
        ),
    )


def _sensor_gaps(draw: np.random.Generator, slots: int) -> np.ndarray:
    """Lost signal now and then, a few of hours, and a warm-up every ten days."""
    lost = np.zeros(slots, bool)
    number = draw.poisson(0.5 * slots / STEPS_PER_DAY)
    begins = draw.integers(0, slots, size=number)
    lasts = np.ceil(draw.lognormal(1.6, 1.1, size=number)).astype(int)
    changes = np.arange(draw.integers(0, 10 * STEPS_PER_DAY), slots, 10 * STEPS_PER_DAY)
    begins = np.concatenate([begins, changes])
    lasts = np.concatenate([lasts, np.full(len(changes), 2 * STEPS_PER_HOUR)])
    for begin, length in zip(begins, lasts, strict=True):
        lost[begin : begin + length] = True
    return lost


def _pump_gaps(draw: np.random.Generator, slots: int) -> np.ndarray:
    """One person in five connects the pump late; everybody's log has a hole now and then."""
    lost = np.zeros(slots, bool)
    if draw.random() < 0.2:
        lost[: int(draw.uniform(0.1, 0.4) * slots)] = True
    for begin in draw.integers(0, slots, size=draw.poisson(slots / (15 * STEPS_PER_DAY))):
        lost[begin : begin + int(draw.integers(6, 8 * STEPS_PER_HOUR))] = True
    return lost
