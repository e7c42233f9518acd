import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nocturnal_kedro.baselines import History, gradient_boosting
from nocturnal_kedro.errors import InputError
from nocturnal_kedro.models import Answer
from nocturnal_kedro.series.nights import UNSEEN, Nights
from nocturnal_kedro.series.schema import QUANTILE_LEVELS
from tests.baselines.invented import NAN, history, nights

HORIZON = 24
STEPS = np.arange(1, HORIZON + 1)
QUICK = {"rounds": 40, "least_per_leaf": 20, "feature_share": 1.0, "learning_rate": 0.2}


def flat(number: int, seed: int, **changes: np.ndarray) -> Nights:
    """Windows that stay where they are, each at its own level."""
    level = np.random.default_rng(seed).uniform(80, 250, number)
    people = np.arange(number) % 2
    window = np.repeat(level[:, None], 300, axis=1)
    return replace(nights(window, people, horizon=HORIZON), **changes)  # type: ignore[arg-type]


def fitted(windows: Nights, target_NH: np.ndarray, **options: object) -> dict[str, np.ndarray]:
    none = np.arange(0)
    few = replace(
        windows,
        glucose_NL=windows.glucose_NL[none],
        past={name: values[none] for name, values in windows.past.items()},
        ahead={name: values[none] for name, values in windows.ahead.items()},
        person_N=windows.person_N[none],
        slot_of_day_N=windows.slot_of_day_N[none],
    )
    learned = history(nights=few, target_NH=target_NH[none], sample=lambda: (windows, target_NH))
    return fit(learned, **options)


def fit(learned: History, **options: object) -> dict[str, np.ndarray]:
    given = gradient_boosting.Options.model_validate(QUICK | options)
    return gradient_boosting.fit(learned, given)


def levels(windows: Nights) -> np.ndarray:
    return windows.glucose_NL[:, -1:]


def on_board(windows: Nights, units: np.ndarray) -> Nights:
    """The same windows with insulin on board at the origin, used up within the horizon."""
    past = np.repeat(units[:, None], 300, axis=1)
    ahead = units[:, None] * (1 - STEPS / HORIZON)
    return replace(
        windows,
        past=windows.past | {"iob_u": past},
        ahead=windows.ahead | {"iob_u": ahead},
    )


def test_learns_that_glucose_falls_where_insulin_is_on_board() -> None:
    units = np.random.default_rng(1).uniform(0, 4, 500)
    windows = on_board(flat(500, 0), units)
    target = levels(windows) - 20 * units[:, None] * STEPS / HORIZON
    state = fitted(windows, target)
    asked = flat(2, 5)
    for amount in (0.5, 3.5):
        moved = gradient_boosting.forecast(state, on_board(asked, np.full(2, amount)))
        expected = levels(asked) - 20 * amount * STEPS / HORIZON
        np.testing.assert_allclose(moved.point_NH, expected, atol=6)
        assert moved.quantiles_NHQ is not None
        np.testing.assert_allclose(np.median(moved.quantiles_NHQ, axis=-1), expected, atol=8)


def test_learns_that_tonight_goes_as_last_night_went() -> None:
    draw = np.random.default_rng(2)
    size, peak = draw.uniform(-80, 80, (800, 1)), draw.uniform(4, 20, (800, 1))
    bump = size * np.exp(-(((STEPS - peak) / 4) ** 2))
    window = flat(800, 0).glucose_NL
    last_night = slice(300 - 288, 300 - 288 + HORIZON)
    window[:, last_night] += bump
    windows = nights(window, [0] * 800, horizon=HORIZON)
    target = levels(windows) + bump
    test, train = np.arange(800) < 100, np.arange(800) >= 100
    state = fitted(nights(window[train], [0] * 700, horizon=HORIZON), target[train], rounds=80)
    asked = nights(window[test], [UNSEEN] * 100, horizon=HORIZON)
    missed = gradient_boosting.forecast(state, asked).point_NH - target[test]
    assert np.sqrt((missed**2).mean()) < 0.4 * np.sqrt((bump[test] ** 2).mean())


def test_quantiles_ascend_and_cover() -> None:
    draw = np.random.default_rng(3)
    windows, later = flat(1500, 1), flat(600, 2)
    state = fitted(windows, levels(windows) + draw.normal(0, 2 * np.sqrt(STEPS), (1500, HORIZON)))
    happened = levels(later) + draw.normal(0, 2 * np.sqrt(STEPS), (600, HORIZON))
    answer = gradient_boosting.forecast(state, later)
    assert answer.quantiles_NHQ is not None
    assert (np.diff(answer.quantiles_NHQ, axis=-1) >= 0).all()
    below_Q = (happened[..., None] <= answer.quantiles_NHQ).mean(axis=(0, 1))
    np.testing.assert_allclose(below_Q, QUANTILE_LEVELS, atol=0.05)
    width_H = (answer.quantiles_NHQ[..., 15] - answer.quantiles_NHQ[..., 5]).mean(axis=0)
    assert width_H[-1] > 2 * width_H[0]


def test_covariates_may_be_missing_at_fit_or_forecast() -> None:
    units = np.random.default_rng(1).uniform(0, 4, 200)
    bare, given = flat(200, 0), on_board(flat(200, 0), units)
    target = levels(bare) - units[:, None]
    for windows, asked in ((bare, given), (given, bare)):
        answer = gradient_boosting.forecast(fitted(windows, target), asked)
        assert np.isfinite(answer.point_NH).all()
        assert np.isfinite(answer.quantiles_NHQ).all()


def test_a_stranger_is_forecast_by_the_window_alone() -> None:
    windows = flat(200, 0)
    state = fitted(windows, levels(windows) - STEPS)
    stranger = replace(windows, person_N=np.full(200, UNSEEN))
    _same(gradient_boosting.forecast(state, windows), gradient_boosting.forecast(state, stranger))


def test_the_same_alone_and_in_company() -> None:
    windows = flat(200, 0)
    state = fitted(windows, levels(windows) - STEPS)
    asked = flat(3, 9)
    alone = nights(asked.glucose_NL[1:2], [UNSEEN], horizon=HORIZON)
    together = gradient_boosting.forecast(state, asked)
    assert together.quantiles_NHQ is not None
    _same(
        gradient_boosting.forecast(state, alone),
        Answer(together.point_NH[1:2], together.quantiles_NHQ[1:2]),
    )


def test_unobserved_targets_are_left_out() -> None:
    windows = flat(400, 0)
    target = levels(windows) - STEPS
    spoilt = np.where(np.arange(400)[:, None] % 2 == 0, target, NAN)
    answer = gradient_boosting.forecast(fitted(windows, spoilt), windows)
    np.testing.assert_allclose(answer.point_NH, target, atol=4)


def test_nothing_to_learn_from_is_said() -> None:
    windows = flat(20, 0)
    with pytest.raises(InputError, match="no training window has a reading in its horizon"):
        fitted(windows, np.full((20, HORIZON), NAN))


@pytest.mark.slow
def test_the_same_at_a_seed_for_any_number_of_threads_and_kept_as_arrays(tmp_path: Path) -> None:
    draw = np.random.default_rng(4)
    windows = on_board(flat(400, 0), draw.uniform(0, 4, 400))
    target = levels(windows) + draw.normal(0, 10, (400, HORIZON))
    given = {"feature_share": 0.5, "rounds": 3, "leaves": 7}
    first, again, threads, other = (
        fitted(windows, target, **given | options)
        for options in ({}, {}, {"threads": 2}, {"seed": 8})
    )
    assert {array.dtype for array in first.values()} == {np.dtype(np.uint8)}
    assert all(np.array_equal(first[name], again[name]) for name in first)
    save_file(first, tmp_path / "state.safetensors")
    kept = load_file(tmp_path / "state.safetensors")
    said = gradient_boosting.forecast(first, windows)
    _same(said, gradient_boosting.forecast(kept, windows))
    _same(said, gradient_boosting.forecast(threads, windows))
    assert not np.array_equal(said.point_NH, gradient_boosting.forecast(other, windows).point_NH)


@pytest.mark.slow
@pytest.mark.parametrize("order", [("learn", "boost", "learn"), ("boost", "learn", "boost")])
def test_shares_a_process_with_torch(order: tuple[str, ...]) -> None:
    """Each brings an OpenMP of its own, and both use two threads."""
    code = """
import sys
import numpy as np

def learn():
    import torch
    torch.set_num_threads(2)
    network = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.Linear(256, 1))
    steps = torch.optim.AdamW(network.parameters())
    for _ in range(20):
        network(torch.randn(512, 256)).square().mean().backward()
        steps.step()

def boost():
    from tests.baselines import test_gradient_boosting as t
    windows = t.flat(300, 0)
    state = t.fitted(windows, t.levels(windows) - t.STEPS, threads=2, rounds=1)
    assert np.isfinite(t.gradient_boosting.forecast(state, windows).point_NH).all()

for what in sys.argv[1:]:
    {"learn": learn, "boost": boost}[what]()
"""
    subprocess.run([sys.executable, "-c", code, *order], check=True, timeout=300)


def _same(one: Answer, other: Answer) -> None:
    np.testing.assert_array_equal(one.point_NH, other.point_NH)
    assert one.quantiles_NHQ is not None
    np.testing.assert_array_equal(one.quantiles_NHQ, other.quantiles_NHQ)
