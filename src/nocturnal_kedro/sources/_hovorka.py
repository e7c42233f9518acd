"""The glucose-insulin model of Hovorka et al. 2004 (Physiol Meas 25:905), many people at once.

Units: glucose mmol, insulin mU, time minutes, volumes L. Shapes: N people; a state is (10, N).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

MMOL_PER_G_GLUCOSE = 1000 / 180.16
STATES = ("s1", "s2", "plasma_insulin", "x1", "x2", "x3", "q1", "q2", "d1", "d2")

# Mean and standard deviation between people: Hovorka et al. 2002 (Am J Physiol 282:E992) and 2004,
# as tabulated for virtual cohorts by Wilinska et al. 2010 (J Diabetes Sci Technol 4:132) and
# Boiroux et al. 2012. Drawn log-normally with these two moments, so that all stay positive. The
# spread of the glucose volume and of carb absorption, wider or unstated there, is set to 20 %.
SPREAD: dict[str, tuple[float, float]] = {
    "egp0": (0.0161, 0.0039),  # mmol/kg/min, hepatic glucose output at zero insulin
    "f01": (0.0097, 0.0022),  # mmol/kg/min, glucose flux that needs no insulin
    "k12": (0.0649, 0.0282),  # 1/min, between the glucose compartments
    "ka1": (0.0055, 0.0056),  # 1/min, insulin action on distribution
    "ka2": (0.0683, 0.0507),  # 1/min, on disposal
    "ka3": (0.0304, 0.0235),  # 1/min, on hepatic output
    "sit": (51.2e-4, 32.09e-4),  # L/min/mU, sensitivity of distribution
    "sid": (8.2e-4, 7.84e-4),  # L/min/mU, of disposal
    "sie": (520e-4, 306.2e-4),  # L/mU, of hepatic output
    "ke": (0.14, 0.035),  # 1/min, insulin elimination
    "vi": (0.12, 0.012),  # L/kg, insulin volume
    "vg": (0.16, 0.032),  # L/kg, glucose volume
    "absorption_insulin": (0.018, 0.0045),  # 1/min, 1 / t_max,I
    "absorption_carbs": (0.025, 0.005),  # 1/min, 1 / t_max,G
}
WEIGHT_KG = (55.0, 95.0)
BIOAVAILABILITY = (0.7, 1.0)  # share of the carbs that reaches the blood
RENAL_THRESHOLD, RENAL_RATE = 9.0, 0.003  # mmol/L, 1/min
NEURAL_THRESHOLD = 4.5  # mmol/L, below it the insulin-independent flux falls with glucose


@dataclass(frozen=True)
class People:
    """Parameters of N people, each an (N,) array; names as in SPREAD, fluxes and volumes whole."""

    egp0: np.ndarray
    f01: np.ndarray
    k12: np.ndarray
    ka1: np.ndarray
    ka2: np.ndarray
    ka3: np.ndarray
    sit: np.ndarray
    sid: np.ndarray
    sie: np.ndarray
    ke: np.ndarray
    vi: np.ndarray
    vg: np.ndarray
    absorption_insulin: np.ndarray
    absorption_carbs: np.ndarray
    bioavailability: np.ndarray
    weight: np.ndarray

    @classmethod
    def stack(cls, people: list[People]) -> People:
        """Several groups as one."""
        names = [field.name for field in fields(cls)]
        return cls(**{n: np.concatenate([getattr(p, n) for p in people]) for n in names})


def draw_person(draw: np.random.Generator) -> People:
    """One person from the published spread, before it is known whether the person is viable."""
    weight = draw.uniform(*WEIGHT_KG)
    values: dict[str, float] = {}
    for name, (mean, deviation) in SPREAD.items():
        variance = np.log1p((deviation / mean) ** 2)
        values[name] = draw.lognormal(np.log(mean) - variance / 2, np.sqrt(variance))
    for per_kg in ("egp0", "f01", "vi", "vg"):
        values[per_kg] *= weight
    values |= {"bioavailability": draw.uniform(*BIOAVAILABILITY), "weight": weight}
    return People(**{name: np.array([value]) for name, value in values.items()})


def derivative(
    state: np.ndarray,
    people: People,
    insulin_mu_min: np.ndarray,
    carbs_mmol_min: np.ndarray,
    sensitivity: np.ndarray,
    hepatic: np.ndarray,
) -> np.ndarray:
    """Right-hand side of the ten equations, (10, N) per minute.

    `sensitivity` scales the three insulin actions, `hepatic` the hepatic output; 1 is usual.
    """
    s1, s2, plasma, x1, x2, x3, q1, q2, d1, d2 = state
    p = people
    glucose = q1 / p.vg
    neural = p.f01 * np.minimum(glucose / NEURAL_THRESHOLD, 1.0)
    renal = RENAL_RATE * np.maximum(glucose - RENAL_THRESHOLD, 0.0) * p.vg
    produced = hepatic * p.egp0 * np.maximum(1.0 - x3, 0.0)
    exchanged = x1 * q1
    returned = p.k12 * q2
    felt = sensitivity * plasma
    from_gut = p.absorption_carbs * d2
    return np.stack(
        [
            insulin_mu_min - p.absorption_insulin * s1,
            p.absorption_insulin * (s1 - s2),
            p.absorption_insulin * s2 / p.vi - p.ke * plasma,
            p.ka1 * (p.sit * felt - x1),
            p.ka2 * (p.sid * felt - x2),
            p.ka3 * (p.sie * felt - x3),
            produced + returned + from_gut - neural - renal - exchanged,
            exchanged - returned - x2 * q2,
            p.bioavailability * carbs_mmol_min - p.absorption_carbs * d1,
            p.absorption_carbs * (d1 - d2),
        ]
    )


def steady_state(people: People, glucose_mmol_l: float) -> tuple[np.ndarray, np.ndarray]:
    """State (10, N) held at a glucose, and the basal in mU/min that holds it.

    Basal is NaN for people whom no basal holds there: without insulin they would fall below it.
    """
    p = people

    def balance(plasma: np.ndarray) -> np.ndarray:
        x1, x2, x3 = p.sit * plasma, p.sid * plasma, p.sie * plasma
        q1 = glucose_mmol_l * p.vg
        q2 = x1 * q1 / (p.k12 + x2)
        return p.egp0 * np.maximum(1 - x3, 0) + p.k12 * q2 - p.f01 - x1 * q1

    low, high = np.zeros_like(p.vg), np.full_like(p.vg, 200.0)
    viable = balance(low) > 0
    for _ in range(60):  # bisection: insulin only ever lowers the balance
        middle = (low + high) / 2
        rises = balance(middle) > 0
        low, high = np.where(rises, middle, low), np.where(rises, high, middle)
    plasma = np.where(viable, (low + high) / 2, np.nan)
    basal = plasma * p.ke * p.vi
    q1 = glucose_mmol_l * p.vg
    x1, x2, x3 = p.sit * plasma, p.sid * plasma, p.sie * plasma
    depot = basal / p.absorption_insulin
    nothing = np.zeros_like(plasma)
    state = [depot, depot, plasma, x1, x2, x3, q1, x1 * q1 / (p.k12 + x2), nothing, nothing]
    return np.stack(state), basal
