"""The body against its equations: an independent solver, conservation, and what fasting means."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from nocturnal_kedro.sources import _hovorka as hovorka


@pytest.fixture(scope="module")
def bodies() -> hovorka.Bodies:
    people = [hovorka.draw_body(np.random.default_rng(seed)) for seed in range(6)]
    names = hovorka.Bodies.__dataclass_fields__
    return hovorka.Bodies(**{n: np.concatenate([getattr(p, n) for p in people]) for n in names})


def one(bodies: hovorka.Bodies, person: int) -> dict[str, float]:
    return {name: float(getattr(bodies, name)[person]) for name in bodies.__dataclass_fields__}


def paper(t: float, y: np.ndarray, p: dict[str, float], basal: float) -> list[float]:
    """Hovorka 2004 written out again for one person, in the order of `hovorka.STATES`."""
    s1, s2, i, x1, x2, x3, q1, q2, d1, d2, c = y
    g = q1 / p["VG"]
    f01 = p["F01"] * min(g / 4.5, 1)
    renal = 0.003 * (g - 9) * p["VG"] if g > 9 else 0
    kb1, kb2, kb3 = p["SIT"] * p["ka1"], p["SID"] * p["ka2"], p["SIE"] * p["ka3"]
    return [
        basal - s1 / p["tmaxI"],
        (s1 - s2) / p["tmaxI"],
        s2 / (p["tmaxI"] * p["VI"]) - p["ke"] * i,
        kb1 * i - p["ka1"] * x1,
        kb2 * i - p["ka2"] * x2,
        kb3 * i - p["ka3"] * x3,
        d2 / p["tmaxG"] - f01 - renal - x1 * q1 + p["k12"] * q2 + p["EGP0"] * max(1 - x3, 0),
        x1 * q1 - (p["k12"] + x2) * q2,
        -d1 / p["tmaxG"],
        (d1 - d2) / p["tmaxG"],
        (g - c) / 10.7,
    ]


def test_steps_follow_the_published_equations(bodies: hovorka.Bodies) -> None:
    basal = hovorka.basal_for(bodies, 7.0)
    state = hovorka.equilibrium(bodies, 7.0)
    hovorka.give(state, bodies, np.full(6, 4.0), np.full(6, 60.0))
    start = state.copy()
    for _ in range(48):  # four hours
        state = hovorka.step(state, bodies, 5.0, basal)
    for person in range(6):
        told = solve_ivp(
            paper, (0, 240), start[:, person], args=(one(bodies, person), float(basal[person])),
            method="LSODA", rtol=1e-9, atol=1e-9,
        )  # fmt: skip
        np.testing.assert_allclose(state[:, person], told.y[:, -1], rtol=0.01, atol=0.02)


@pytest.mark.parametrize("level", [5.0, 7.0, 9.0])
def test_fasting_glucose_stays_where_basal_holds_it(bodies: hovorka.Bodies, level: float) -> None:
    state = hovorka.equilibrium(bodies, level)
    basal = hovorka.basal_for(bodies, level)
    np.testing.assert_allclose(hovorka.derivative(state, bodies, basal), 0, atol=1e-9)
    for _ in range(288):
        state = hovorka.step(state, bodies, 5.0, basal)
    np.testing.assert_allclose(state[hovorka.Q1] / bodies.VG, level, rtol=1e-6)


def test_a_meal_raises_and_a_bolus_lowers(bodies: hovorka.Bodies) -> None:
    basal = hovorka.basal_for(bodies, 7.0)
    nothing, some = np.zeros(6), np.full(6, 50.0)
    levels = {}
    for name, (units, grams) in {"meal": (nothing, some), "bolus": (nothing + 3, nothing)}.items():
        state = hovorka.equilibrium(bodies, 7.0)
        hovorka.give(state, bodies, units, grams)
        for _ in range(24):
            state = hovorka.step(state, bodies, 5.0, basal)
        levels[name] = state[hovorka.C]
    assert (levels["meal"] > 8).all()
    assert (levels["bolus"] < 6.5).all()


def test_carbs_are_absorbed_whole(bodies: hovorka.Bodies) -> None:
    state = hovorka.equilibrium(bodies, 7.0)
    hovorka.give(state, bodies, np.zeros(6), np.full(6, 50.0))
    in_gut = state[hovorka.D1] + state[hovorka.D2]
    np.testing.assert_allclose(in_gut, 50 * 1000 / 180.16 * bodies.AG)
    absorbed = np.zeros(6)
    for _ in range(12 * 60):  # twelve hours in steps of a minute
        before = state[hovorka.D1] + state[hovorka.D2]
        state = hovorka.step(state, bodies, 1.0, hovorka.basal_for(bodies, 7.0))
        absorbed += before - state[hovorka.D1] - state[hovorka.D2]
    np.testing.assert_allclose(absorbed, in_gut, rtol=1e-3)


def test_the_carb_ratio_brings_glucose_back(bodies: hovorka.Bodies) -> None:
    ratio = hovorka.carb_ratio(bodies, 7.0)
    assert ((ratio > 3) & (ratio < 80)).all()
    basal = hovorka.basal_for(bodies, 7.0)
    state = hovorka.equilibrium(bodies, 7.0)
    meal = np.full(6, hovorka.FITTING_MEAL_G)
    hovorka.give(state, bodies, meal / ratio, meal)
    for _ in range(60):
        state = hovorka.step(state, bodies, 5.0, basal)
    np.testing.assert_allclose(state[hovorka.Q1] / bodies.VG, 7.0, atol=0.05)
    assert (hovorka.correction_factor(bodies) > 0).all()


def test_drawn_people_differ_and_can_live_on_a_pump(bodies: hovorka.Bodies) -> None:
    per_day = hovorka.basal_for(bodies, 5.0) * 1.44 / bodies.weight_kg
    low, high = hovorka.BASAL_U_KG_DAY
    assert ((per_day > low) & (per_day < high)).all()
    assert len(set(bodies.SIT)) == 6
