from typing import Any

import numpy as np
import pytest

from nocturnal_kedro import plugins
from nocturnal_kedro.baselines import History, last_observed
from nocturnal_kedro.errors import InputError
from nocturnal_kedro.models import Answer
from nocturnal_kedro.series.corpus import Corpus
from nocturnal_kedro.series.nights import UNSEEN, Nights
from nocturnal_kedro.series.schema import QUANTILE_LEVELS
from nocturnal_kedro.series.windows import WindowGatherer
from nocturnal_kedro.training import forecast as forecasting
from nocturnal_kedro.training.data import Data
from nocturnal_kedro.training.fit import fit_baseline
from nocturnal_kedro.training.forecast import EVERYTHING, answer_with, forecast
from nocturnal_kedro.training.history import gather_nights
from nocturnal_kedro.training.options import Training
from tests.baselines.invented import NAN, history, nights

QUICK = {"gradient_boosting": {"rounds": 5, "least_per_leaf": 1}}


def run(name: str, asked: Nights, learned: History | None = None, **options: object) -> Answer:
    module = plugins.load("baseline", name)
    given = plugins.options("baseline", name, QUICK.get(name, {}) | options)
    return module.forecast(module.fit(learned or history(), given), asked)


def test_last_value_skips_unobserved() -> None:
    asked = nights([[90, 120, NAN], [80, 85, 86]], [0, 1])
    np.testing.assert_array_equal(run("last_value", asked).point_NH, [[120] * 4, [86] * 4])
    np.testing.assert_array_equal(last_observed(asked.glucose_NL), [120, 86])


def test_subject_mean_of_training_or_of_the_context_of_a_stranger() -> None:
    asked = nights([[90, NAN, 110], [90, NAN, 110]], [1, UNSEEN])
    np.testing.assert_allclose(run("subject_mean", asked).point_NH, [[205] * 4, [100] * 4])


def test_climatology_knows_person_and_clock_and_wraps_midnight() -> None:
    asked = nights([[1.0], [1.0], [1.0]], [0, 1, UNSEEN], slot=286)
    point = run("climatology", asked).point_NH
    assert point.shape == (3, 4)
    # Slots 287 to 2: the hour around them is half late (ten higher) and half early.
    expected = 100 + 10 * np.array([7, 6, 5, 4]) / 13
    np.testing.assert_allclose(point[0], expected)
    np.testing.assert_allclose(point[1], expected + 100)
    np.testing.assert_allclose(point[2], expected + 50)


def test_climatology_names_the_time_of_day_that_nobody_has_a_reading_at() -> None:
    learned = history()
    unread = (learned.slot_of_day_T >= 30) & (learned.slot_of_day_T < 60)
    learned.glucose_T[unread] = NAN
    told = (
        r"around 03:00 \(18 of 288 times of day\) no training row of anybody has a reading.*"
        r"baseline_options\.climatology\.window_steps"
    )
    with pytest.raises(InputError, match=told):
        run("climatology", nights([[1.0]], [0]), learned)
    wide = run("climatology", nights([[1.0]], [0]), learned, window_steps=31)
    assert np.isfinite(wide.point_NH).all()


@pytest.mark.parametrize("windows", [0, 2])
def test_damped_trend_is_not_chosen_by_no_night(windows: int) -> None:
    line = nights(np.full((windows, 306), 100.0), [0] * windows)
    learned = history(nights=line, target_NH=np.full((windows, 4), NAN))
    with pytest.raises(InputError, match=r"'damped_trend': no training night.*'splits'"):
        run("damped_trend", nights([[100.0, 101]], [0]), learned)


def test_damped_trend_follows_a_line_less_and_less() -> None:
    asked = nights([[100, 101, 102, 103, 104, 105]], [0])
    steps = run("damped_trend", asked).point_NH[0] - 105
    assert (np.diff(steps) > 0).all()
    assert (np.diff(steps, n=2) < 0).all()
    # On a history that goes on in a line the least damping on offer fits best: 0.98.
    np.testing.assert_allclose(steps, np.cumsum(0.98 ** np.arange(1, 5)), atol=1e-9)


def test_damped_trend_of_one_reading_is_flat() -> None:
    asked = nights([[NAN] * 5 + [130.0]], [0])
    np.testing.assert_allclose(run("damped_trend", asked).point_NH, 130.0)


@pytest.mark.parametrize("name", plugins.names("baseline"))
def test_shapes_and_no_nan_with_gaps(name: str) -> None:
    window = np.full((3, 512), NAN)
    window[0, -5:], window[1, -5:] = [100, NAN, 120, NAN, NAN], [NAN, 90, NAN, NAN, 95]
    window[2, 1::3] = 100 + 30 * np.sin(np.arange(171) / 9)  # every 15 minutes
    answer = run(name, nights(window, [0, UNSEEN, 1], horizon=96))
    assert answer.point_NH.shape == (3, 96)
    assert np.isfinite(answer.point_NH).all()
    if answer.quantiles_NHQ is not None:
        assert answer.quantiles_NHQ.shape == (3, 96, len(QUANTILE_LEVELS))
        assert np.isfinite(answer.quantiles_NHQ).all()
        assert (np.diff(answer.quantiles_NHQ, axis=-1) >= 0).all()


@pytest.mark.parametrize("name", plugins.names("baseline"))
def test_some_windows_at_a_time_are_forecast_as_all_at_once(
    name: str, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So what is held at a time does not grow with the nights."""
    artifact = fit_baseline(name, QUICK.get(name, {}), data, Training())
    rows = np.concatenate([data.night_rows(split) for split in ("temporal", "patient")])[:12]
    nights, target_NH = gather_nights(
        data.corpus, data.gatherer(artifact.scaler, EVERYTHING), rows, artifact.people
    )
    whole = plugins.load("baseline", name).forecast(artifact.state, nights)
    gathered = []

    def gather(corpus: Corpus, gatherer: WindowGatherer, part: np.ndarray, people: Any) -> Any:
        gathered.append(len(part))
        return gather_nights(corpus, gatherer, part, people)

    monkeypatch.setattr(forecasting, "gather_nights", gather)
    monkeypatch.setattr(forecasting, "FORECAST_BATCH", 5)
    answer, happened_NH, _ = answer_with(artifact, data, rows)
    assert gathered == [5, 5, 2]
    np.testing.assert_array_equal(answer.point_NH, whole.point_NH)
    np.testing.assert_array_equal(happened_NH, target_NH)
    if whole.quantiles_NHQ is None:
        assert answer.quantiles_NHQ is None
    else:
        np.testing.assert_array_equal(answer.quantiles_NHQ, whole.quantiles_NHQ)


@pytest.mark.parametrize("name", ["auto_ets", "gradient_boosting"])
def test_fitted_to_a_corpus_and_forecast_from_it(name: str, data: Data) -> None:
    artifact = fit_baseline(name, QUICK.get(name, {}), data, Training())
    frame, _ = forecast(artifact, data.corpus, data.splits, data.origins)
    assert not frame.drop(columns="target_mg_dl").isna().any(axis=None)
    error = (frame["target_mg_dl"] - frame["forecast_mg_dl"]).abs().mean()
    assert error < frame["target_mg_dl"].std()
