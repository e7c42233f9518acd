from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy.special import ndtri
from statsforecast.models import AutoETS

from nocturnal_kedro import plugins
from nocturnal_kedro.baselines import auto_ets
from nocturnal_kedro.errors import InputError
from nocturnal_kedro.models import MEDIAN, Answer
from nocturnal_kedro.series.nights import UNSEEN
from nocturnal_kedro.series.schema import QUANTILE_LEVELS
from tests.baselines.invented import NAN, history, nights

STEPS = np.arange(288)


def walks(number: int, steps: int, alpha: float = 0.7) -> np.ndarray:
    """Paths of ETS(A,N,N) around 150 mg/dL: each error moves the level by alpha of it."""
    error = np.random.default_rng(3).normal(0, 3, (number, steps))
    return 150 + error + alpha * (np.cumsum(error, axis=1) - error)


def answer(glucose: np.ndarray, horizon: int = 12, **options: object) -> Answer:
    given = auto_ets.Options.model_validate(options)
    people = [UNSEEN] * len(glucose)
    return auto_ets.forecast(
        auto_ets.fit(history(), given), nights(glucose, people, horizon=horizon)
    )


def test_is_what_statsforecast_says() -> None:
    window = walks(1, 288)
    ours = answer(window)
    theirs = AutoETS(1, "ZAN", damped=True).forecast(window[0], h=12, level=[50, 98])
    np.testing.assert_array_equal(ours.point_NH[0], theirs["mean"])
    assert ours.quantiles_NHQ is not None
    for level, end in ((0.01, "lo-98"), (0.25, "lo-50"), (0.75, "hi-50"), (0.99, "hi-98")):
        at = QUANTILE_LEVELS.index(level)
        np.testing.assert_array_equal(ours.quantiles_NHQ[0, :, at], theirs[end])


def test_without_trend_it_is_flat_and_widens_as_the_square_root_of_the_horizon() -> None:
    ours = answer(walks(1, 288), model="ANN", damped=False)
    assert ours.quantiles_NHQ is not None
    np.testing.assert_allclose(ours.point_NH, ours.point_NH[0, 0])
    away_HQ = ours.quantiles_NHQ[0] - ours.point_NH[0][:, None]
    np.testing.assert_allclose(away_HQ[:, MEDIAN], 0, atol=1e-9)
    variance_H = (away_HQ[:, -1] / ndtri(0.99)) ** 2
    np.testing.assert_allclose(np.sqrt(variance_H[0]), 3, rtol=0.1)  # of the errors drawn
    growth_H = np.diff(variance_H) / variance_H[0]  # alpha squared at every step
    np.testing.assert_allclose(growth_H, 0.7**2, rtol=0.25)
    np.testing.assert_allclose(
        away_HQ / away_HQ[:, -1:], [ndtri(QUANTILE_LEVELS) / ndtri(0.99)] * 12
    )


def test_line_goes_on_and_dies_away() -> None:
    rise = np.diff(answer(100 + 0.5 * STEPS[None]).point_NH[0], prepend=100 + 0.5 * STEPS[-1])
    np.testing.assert_allclose(rise[0], 0.5, rtol=0.1)
    np.testing.assert_allclose(rise[2:] / rise[1:-1], 0.98, rtol=1e-3)  # the least damping there is
    straight = np.diff(answer(100 + 0.5 * STEPS[None], damped=False).point_NH[0])
    np.testing.assert_allclose(straight, 0.5, rtol=1e-3)


@pytest.mark.parametrize("read", [STEPS >= 0, STEPS == 200, STEPS >= 288 - 11, STEPS % 3 == 0])
def test_what_never_changes_is_held_without_spread(read: np.ndarray) -> None:
    ours = answer(np.where(read, 123.0, NAN)[None])
    np.testing.assert_array_equal(ours.point_NH, 123.0)
    np.testing.assert_array_equal(ours.quantiles_NHQ, 123.0)


def test_under_an_hour_of_readings_the_newest_is_held() -> None:
    window = np.where(STEPS >= 288 - 11, 100.0 + STEPS, NAN)[None]
    np.testing.assert_array_equal(answer(window).point_NH, 387.0)
    assert (answer(np.where(STEPS >= 288 - 12, 100.0 + STEPS, NAN)[None]).point_NH > 387).all()


def test_without_any_reading_there_is_no_forecast() -> None:
    ours = answer(np.full((1, 288), NAN))
    assert np.isnan(ours.point_NH).all()
    assert np.isnan(ours.quantiles_NHQ).all()


def test_a_gap_before_the_origin_is_forecast_not_made_up() -> None:
    window = walks(3, 288)
    cut = window.copy()
    cut[:, -6:] = NAN
    ours = answer(cut)
    earlier = answer(window[:, :-6], horizon=18, context_steps=282)
    np.testing.assert_array_equal(ours.point_NH, earlier.point_NH[:, 6:])
    np.testing.assert_array_equal(ours.quantiles_NHQ, earlier.quantiles_NHQ[:, 6:])


def test_a_gap_holds_the_reading_before_it() -> None:
    read = np.arange(0, 286, 3)  # by a sensor of 15 minutes
    held = np.stack([knots[np.arange(286) // 3] for knots in walks(2, len(read))])
    sparse = np.where(np.isin(np.arange(286), read), held, NAN)
    np.testing.assert_array_equal(answer(sparse).quantiles_NHQ, answer(held).quantiles_NHQ)


def test_a_series_starts_at_its_first_reading() -> None:
    window = walks(2, 200)
    late = np.concatenate([np.full((2, 88), NAN), window], axis=1)
    np.testing.assert_array_equal(answer(late).quantiles_NHQ, answer(window).quantiles_NHQ)


def test_a_long_gap_inside_the_context_is_bridged() -> None:
    window = walks(4, 288)
    window[:, 60:250] = NAN
    ours = answer(window, horizon=96)
    assert np.isfinite(ours.quantiles_NHQ).all()
    np.testing.assert_allclose(ours.point_NH[:, 0], window[:, -1], atol=15)


def test_intervals_cover_what_they_say() -> None:
    paths = walks(300, 144 + 12)
    ours = answer(paths[:, :144], model="ANN", damped=False)
    assert ours.quantiles_NHQ is not None
    for low, high, share in ((0.01, 0.99, 0.98), (0.1, 0.9, 0.8), (0.25, 0.75, 0.5)):
        ends = ours.quantiles_NHQ[..., [QUANTILE_LEVELS.index(low), QUANTILE_LEVELS.index(high)]]
        inside = (ends[..., 0] <= paths[:, 144:]) & (paths[:, 144:] <= ends[..., 1])
        assert abs(inside.mean() - share) < 0.06


def test_only_the_newest_context_counts() -> None:
    window = walks(2, 400)
    other = np.concatenate([walks(2, 112)[::-1] + 90, window[:, 112:]], axis=1)
    np.testing.assert_array_equal(answer(window).point_NH, answer(other).point_NH)


def test_the_same_alone_in_company_and_in_threads() -> None:
    windows = walks(8, 288)
    together = answer(windows).quantiles_NHQ
    with ThreadPoolExecutor(4) as pool:
        alone = list(pool.map(lambda row: answer(row[None]).quantiles_NHQ, windows))
    np.testing.assert_array_equal(together, np.concatenate(alone))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": "ANN"}, "no trend that could be damped"),
        ({"model": "ZMN"}, "'model'"),  # multiplicative trends are not searched
        ({"model": "ZZZ"}, "'model'"),
        ({"context_steps": 6}, "'context_steps'"),
    ],
)
def test_refuses_models_that_there_are_not(given: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        plugins.options("baseline", "auto_ets", given)
