"""The glucose-insulin model of Hovorka et al. 2004 for many people with type 1 diabetes at once.

[1] Hovorka et al., Physiol Meas 2004, 25:905, doi:10.1088/0967-3334/25/4/010: the equations.
[2] Hovorka et al., Am J Physiol 2002, 282:E992: the spread between people (n = 6).
[3] Wilinska et al., J Diabetes Sci Technol 2010, 4:132: meals, interstitial glucose.
[4] Boiroux, Model Predictive Control for Type 1 Diabetes, PhD thesis, DTU 2012: [2] as
    distributions, of which only draws within one standard deviation are kept.

Symbols are the paper's. N people; amounts of insulin in mU, of glucose in mmol, time in minutes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Mean and standard deviation between people, as tabled in [4]; rates in 1/min.
NORMAL = {
    "EGP0": (16.1e-3, 3.9e-3),  # glucose production at no insulin, mmol/kg/min
    "F01": (9.7e-3, 2.2e-3),  # insulin-independent uptake, mmol/kg/min
    "k12": (0.0649, 0.0282),  # return from the non-accessible compartment
    "ka1": (0.0055, 0.0056),  # onset of insulin's action on transport,
    "ka2": (0.0683, 0.0507),  # on disposal,
    "ka3": (0.0304, 0.0235),  # on production
    "SIT": (51.2e-4, 32.1e-4),  # insulin sensitivity of transport, L/min/mU,
    "SID": (8.2e-4, 7.84e-4),  # of disposal, L/min/mU,
    "SIE": (520e-4, 306.2e-4),  # of production, L/mU
    "ke": (0.14, 0.035),  # elimination of insulin
    "VI": (0.12, 0.012),  # volume of insulin, L/kg
    "per_tmaxI": (0.018, 0.0045),  # absorption of subcutaneous insulin
    "ln_VG": (np.log(0.15), 0.23),  # volume of glucose, L/kg
    "ln_per_tmaxG": (-3.689, 0.25),  # absorption of carbs
}
UNIFORM = {"AG": (0.7, 1.2), "weight_kg": (65.0, 95.0)}  # bioavailability of carbs [3], weight [4]

MMOL_PER_G = 1000 / 180.16  # glucose
F01_FALLS_BELOW = 4.5  # mmol/L [1]
RENAL_THRESHOLD, RENAL_CLEARANCE = 9.0, 0.003  # mmol/L, 1/min [1]
INTERSTITIAL_MINUTES = 10.7  # mean delay of interstitial behind plasma glucose, exp(2.372) [3]

# Who can live on a pump: between what holds these two glucose levels, basal may vary this much.
# Much less, and a tenth off the basal is a coma or a crisis: no counter-regulation is in [1].
HELD_MMOL_L = (5.0, 9.0)
LEAST_BASAL_RANGE = 1.1
BASAL_U_KG_DAY = (0.13, 0.6)  # what people with type 1 diabetes need

# How doses are fitted to a person.
FITTING_MEAL_G, LOWEST_CARB_RATIO, CORRECTION_U_KG = 60.0, 2.0, 0.02  # g, g/U, U/kg
FITTING_MINUTES, FITTING_STEPS = 5.0, 60  # five hours

STATES = ("S1", "S2", "I", "x1", "x2", "x3", "Q1", "Q2", "D1", "D2", "C")
S1, S2, I, X1, X2, X3, Q1, Q2, D1, D2, C = range(len(STATES))


@dataclass(frozen=True)
class Bodies:
    """The parameters of N people, each an (N,) array; volumes and flows are of the whole body."""

    EGP0: Floats
    F01: Floats
    k12: Floats
    ka1: Floats
    ka2: Floats
    ka3: Floats
    SIT: Floats
    SID: Floats
    SIE: Floats
    ke: Floats
    VI: Floats
    VG: Floats
    tmaxI: Floats
    tmaxG: Floats
    AG: Floats
    weight_kg: Floats


def draw_body(rng: np.random.Generator) -> Bodies:
    """One viable person: drawn from [4] until positive and able to live on a pump."""
    while True:
        drawn = {}
        for name, (mean, sd) in NORMAL.items():
            score = rng.standard_normal(1)
            while np.abs(score) > 1:
                score = rng.standard_normal(1)
            drawn[name] = mean + sd * score
        drawn |= {name: rng.uniform(*limits, size=1) for name, limits in UNIFORM.items()}
        weight = drawn["weight_kg"]
        body = Bodies(
            **{name: drawn[name] for name in ("k12", "ka1", "ka2", "ka3", "SIT", "SID", "SIE")},
            **{name: drawn[name] * weight for name in ("EGP0", "F01", "VI")},
            ke=drawn["ke"],
            VG=np.exp(drawn["ln_VG"]) * weight,
            tmaxI=1 / drawn["per_tmaxI"],
            tmaxG=np.exp(-drawn["ln_per_tmaxG"]),
            AG=drawn["AG"],
            weight_kg=weight,
        )
        if all(getattr(body, f.name) > 0 for f in fields(body)) and _is_viable(body):
            return body


def _is_viable(body: Bodies) -> bool:
    low, high = HELD_MMOL_L
    if body.EGP0[0] <= body.F01[0] + _renal(np.array([high]), body.VG)[0]:
        return False
    most, least = basal_for(body, low), basal_for(body, high)
    per_day = most * 60 * 24 / 1000 / body.weight_kg
    in_need = (BASAL_U_KG_DAY[0] < per_day) & (per_day < BASAL_U_KG_DAY[1])
    return bool(in_need[0] and most[0] / least[0] > LEAST_BASAL_RANGE)


def basal_for(bodies: Bodies, glucose_mmol_l: float) -> Floats:
    """Basal insulin in mU/min that holds a glucose level for ever."""
    return equilibrium(bodies, glucose_mmol_l)[I] * bodies.ke * bodies.VI


def equilibrium(bodies: Bodies, glucose_mmol_l: float) -> Floats:
    """The state (11, N) in which fasting glucose stays at this level.

    More insulin lowers production and raises uptake, so that bisection finds the one level of
    insulin at which they are equal.
    """
    b = bodies
    level = np.full_like(b.VG, glucose_mmol_l)
    amount = level * b.VG
    lost = b.F01 * np.minimum(level / F01_FALLS_BELOW, 1) + _renal(level, b.VG)
    below, above = np.zeros_like(level), 1 / b.SIE
    for _ in range(60):
        insulin = (below + above) / 2
        x1, x2 = b.SIT * insulin, b.SID * insulin
        surplus = b.EGP0 * (1 - b.SIE * insulin) - lost - amount * x1 * x2 / (b.k12 + x2)
        below, above = np.where(surplus > 0, insulin, below), np.where(surplus > 0, above, insulin)
    depot = insulin * b.ke * b.VI * b.tmaxI
    x1, x2, x3 = b.SIT * insulin, b.SID * insulin, b.SIE * insulin
    empty = np.zeros_like(level)
    q2 = amount * x1 / (b.k12 + x2)
    return np.stack([depot, depot, insulin, x1, x2, x3, amount, q2, empty, empty, level])


def _renal(glucose: Floats, vg: Floats) -> Floats:
    return RENAL_CLEARANCE * np.maximum(glucose - RENAL_THRESHOLD, 0) * vg


def derivative(
    state: Floats,
    bodies: Bodies,
    basal: Floats | float,
    sensitivity: Floats | float = 1.0,
    production: Floats | float = 1.0,
    digestion: Floats | float = 1.0,
) -> Floats:
    """Rate of change of the state (11, N) per minute [1].

    `basal` in mU/min; the others are factors on insulin's actions, on EGP0 and on tmaxG.
    """
    b = bodies
    rate = np.empty_like(state)
    glucose = state[Q1] / b.VG
    tmaxG = b.tmaxG * digestion
    effective = state[I] * sensitivity
    absorbed = state[S2] / b.tmaxI

    rate[S1] = basal - state[S1] / b.tmaxI
    rate[S2] = state[S1] / b.tmaxI - absorbed
    rate[I] = absorbed / b.VI - b.ke * state[I]
    rate[X1] = b.ka1 * (b.SIT * effective - state[X1])
    rate[X2] = b.ka2 * (b.SID * effective - state[X2])
    rate[X3] = b.ka3 * (b.SIE * effective - state[X3])

    uptake = b.F01 * np.minimum(glucose / F01_FALLS_BELOW, 1)
    made = b.EGP0 * production * np.maximum(1 - state[X3], 0)
    exchange = state[X1] * state[Q1] - b.k12 * state[Q2]
    rate[Q1] = state[D2] / tmaxG + made - uptake - exchange - _renal(glucose, b.VG)
    rate[Q2] = exchange - state[X2] * state[Q2]
    rate[D1] = -state[D1] / tmaxG
    rate[D2] = (state[D1] - state[D2]) / tmaxG
    rate[C] = (glucose - state[C]) / INTERSTITIAL_MINUTES
    return rate


def step(state: Floats, bodies: Bodies, minutes: float, *inputs: Floats | float) -> Floats:
    """The state after some minutes of constant inputs (those of `derivative`): one RK4 step."""
    a = derivative(state, bodies, *inputs)
    b = derivative(state + minutes / 2 * a, bodies, *inputs)
    c = derivative(state + minutes / 2 * b, bodies, *inputs)
    d = derivative(state + minutes * c, bodies, *inputs)
    return state + minutes / 6 * (a + 2 * (b + c) + d)


def give(state: Floats, bodies: Bodies, bolus_u: Floats, carbs_g: Floats) -> None:
    """Put a bolus into the depot and carbs into the gut, in place."""
    state[S1] += 1000 * bolus_u
    state[D1] += MMOL_PER_G * bodies.AG * carbs_g


def carb_ratio(bodies: Bodies, glucose_mmol_l: float) -> Floats:
    """Grams of carbs that one unit covers: five hours after a meal glucose is back where it was."""
    basal = basal_for(bodies, glucose_mmol_l)
    meal = np.full_like(bodies.VG, FITTING_MEAL_G)
    least, most = np.zeros_like(meal), meal / LOWEST_CARB_RATIO
    for _ in range(16):
        bolus = (least + most) / 2
        state = equilibrium(bodies, glucose_mmol_l)
        give(state, bodies, bolus, meal)
        for _ in range(FITTING_STEPS):
            state = step(state, bodies, FITTING_MINUTES, basal)
        high = state[Q1] / bodies.VG > glucose_mmol_l
        least, most = np.where(high, bolus, least), np.where(high, most, bolus)
    return meal / bolus


def correction_factor(bodies: Bodies) -> Floats:
    """Fall of glucose in mmol/L, from the upper of `HELD_MMOL_L`, five hours after one unit."""
    high = HELD_MMOL_L[1]
    basal = basal_for(bodies, high)
    state = equilibrium(bodies, high)
    bolus = CORRECTION_U_KG * bodies.weight_kg
    give(state, bodies, bolus, np.zeros_like(bolus))
    for _ in range(FITTING_STEPS):
        state = step(state, bodies, FITTING_MINUTES, basal)
    return (high - state[Q1] / bodies.VG) / bolus
