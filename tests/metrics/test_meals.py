"""Peaks after meals against hand values, a loop, the leaderboard, and what must not matter."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.metrics.calibration import LEVELS
from nocturnal_kedro.metrics.compare import MANDATORY, Comparison, build_leaderboard
from nocturnal_kedro.metrics.forecasts import NIGHT, PERSON, Forecasts
from nocturnal_kedro.metrics.meals import HEADLINES, describe_peaks, judge_meals, mean_courses
from nocturnal_kedro.metrics.scores import score_points

COMPARISON = Comparison(resamples=400, also_hours=())
NAN = np.nan


def after_meals(
    target: object, point: object, last: object = 100.0, grams: object = 45.0, **more: object
) -> tuple[Forecasts, pd.DataFrame]:
    """Forecasts after meals of one person, or of `subject`, and their outcomes."""
    target_NH, point_NH = (np.atleast_2d(np.asarray(of, float)) for of in (target, point))
    meals = len(target_NH)
    nights = pd.DataFrame(
        {
            "source": "s",
            "subject": "a",
            "origin": pd.date_range("2026-01-05 12:05", periods=meals, freq="5h"),
            "split": "temporal",
            **more,
        }
    )
    quantiles_NHQ = point_NH[..., None] + 40 * (LEVELS - 0.5)
    told = Forecasts(nights, target_NH, point_NH, quantiles_NHQ, None)
    return told, nights.assign(meal_g=grams, last_mg_dl=last)


def invent_meals(seed: int, people: int = 9, horizon: int = 36) -> tuple[Forecasts, pd.DataFrame]:
    """Meals of people of two splits; some readings are lost, and every third person's are rare."""
    draw = np.random.default_rng(seed)
    person_N = np.repeat(np.arange(people), draw.integers(1, 9, people))
    meals = len(person_N)
    steps = np.arange(1, horizon + 1)
    height, when = draw.uniform(-30, 120, (meals, 1)), draw.uniform(4, 40, (meals, 1))
    last = draw.uniform(70, 200, meals)
    target = last[:, None] + height * np.exp(-(((steps - when) / 12) ** 2))
    target = (target + draw.normal(0, 4, target.shape)).round()
    target[draw.random(target.shape) < 0.1] = NAN
    target[(person_N % 3 == 0)[:, None] & (steps % 3 != 1)] = NAN
    point = (
        last[:, None] + 40 * np.exp(-(((steps - 15) / 12) ** 2)) + draw.normal(0, 20, (meals, 1))
    )
    grams = draw.choice([12.0, 30, 59.9, 60, 95, NAN], meals)
    subject = [f"p{person}" for person in person_N]
    split = np.where(person_N % 2, "patient", "temporal")
    return after_meals(target, point, last, grams, subject=subject, split=split)


def of_model(meals: tuple[Forecasts, pd.DataFrame], model: str, **more: object) -> pd.DataFrame:
    return describe_peaks(*meals).assign(model=model, data="d", **more)


def shifted(forecasts: Forecasts, by: object, noise: float = 0.0, seed: int = 0) -> Forecasts:
    draw = np.random.default_rng(seed)
    point = forecasts.point_NH + by + draw.normal(0, noise, forecasts.point_NH.shape)
    return Forecasts(
        forecasts.nights, forecasts.target_NH, point, forecasts.quantiles_NHQ, forecasts.raw_NHQ
    )


def test_peaks_by_hand() -> None:
    target = [[120, 150, 150, 90], [97, NAN, 108, 106], [91, 85, 80, 60], [105, 110, 130, 140]]
    point = [[115, 130, 140, 135], [103, 999, 104, 104.05], [100] * 4, [160, 120, 120, 110]]
    grams = [29.9, 30, NAN, 90]
    told = describe_peaks(*after_meals(target, point, [100.0, 99, 100, NAN], grams))
    assert told["meal_size"].tolist() == ["below 30 g", "30 to 60 g", "not on record", "from 90 g"]
    assert told["peak_mg_dl"].tolist() == [150, 108, 91, 140]
    assert told["peak_minutes"].tolist() == [10, 15, 5, 20]  # a plateau's first
    assert told["rise_mg_dl"].tolist()[:3] == [50, 9, -9]
    # Nothing at the step that nobody read, and no later peak for 0.05 mg/dL.
    assert told["forecast_peak_mg_dl"].tolist() == [140, 104.05, 100, 160]
    assert told["forecast_peak_minutes"].tolist() == [15, 15, 5, 5]
    assert told["forecast_rise_mg_dl"].tolist()[:3] == [40, pytest.approx(5.05), 0]
    np.testing.assert_allclose(told["peak_error_mg_dl"], [-10, -3.95, 9, 20])
    # A rise of 9 may be noise, a fall has no peak, and of the last it is not known.
    assert told["rose"].tolist() == [True, False, False, False]
    assert told["peak_time_error_minutes"].tolist()[0] == 5
    assert told["peak_time_error_minutes"].isna().tolist() == [False, True, True, True]
    assert told["points"].tolist() == [4, 3, 4, 4]
    assert told["mse"].tolist()[0] == pytest.approx((25 + 400 + 100 + 2025) / 4)
    assert told["mse"].tolist()[1] == pytest.approx((36 + 16 + 1.95**2) / 3)
    assert not told["still_rising"].any()


def seen(*steps: int, horizon: int = 36, peak: int) -> dict[str, object]:
    """What is told of a meal with readings at some steps, the highest at `peak`."""
    target = np.full(horizon, NAN)
    target[np.array(steps) - 1] = 120.0
    target[peak - 1] = 180.0
    return describe_peaks(*after_meals(target, np.full(horizon, 150.0))).iloc[0].to_dict()


def without(*steps: int) -> list[int]:
    return [step for step in range(1, 37) if step not in steps]


@pytest.mark.parametrize(
    ("steps", "peak", "judged"),
    [
        (range(1, 37), 20, True),
        (range(3, 37, 3), 12, True),  # every 15 minutes
        (range(2, 37, 3), 35, True),  # the next one comes after the horizon
        (range(1, 35, 4), 13, True),  # it drifts: 20 minutes
        (range(1, 37, 5), 16, False),  # 25 minutes
        (without(17, 18, 19), 20, True),
        (without(16, 17, 18, 19), 20, False),  # 25 minutes before it
        (without(21, 22, 23, 24), 20, False),  # and after
        (without(21, 22, 23, 24), 30, True),  # elsewhere
        (without(1, 2, 3), 4, True),  # the origin is known
        (without(1, 2, 3, 4), 5, False),
        (without(*range(1, 8)), 20, True),  # 29 of 36 steps, 80.6 %
        (without(*range(1, 9)), 20, False),  # 28 of 36
    ],
)
def test_a_peak_is_judged_where_readings_suffice(steps: object, peak: int, judged: bool) -> None:
    told = seen(*steps, peak=peak)
    assert told["peak_seen"] == told["rose"] == judged
    assert np.isnan(told["peak_mg_dl"]) == np.isnan(told["peak_error_mg_dl"]) == (not judged)
    assert told["still_rising"] == (judged and peak == max(steps))
    assert told["points"] == len(list(steps))  # and every reading counts for the error


def test_a_meal_without_a_reading_is_no_meal_to_judge() -> None:
    told = describe_peaks(*after_meals([[NAN] * 4, [110, 120, 130, 120]], np.full((2, 4), 105.0)))
    assert told["peak_mg_dl"].tolist() == [130]
    assert told["origin"].dt.hour.tolist() == [17]


@pytest.mark.parametrize("seed", range(4))
def test_peaks_are_those_of_a_loop(seed: int) -> None:
    forecasts, outcomes = invent_meals(seed)
    told = describe_peaks(forecasts, outcomes).set_index(NIGHT)
    judged = 0
    for number, outcome in enumerate(outcomes.itertuples()):
        row = told.loc[outcome.source, outcome.subject, outcome.origin]
        readings = {k: g for k, g in enumerate(forecasts.target_NH[number], 1) if not np.isnan(g)}
        highest = max(readings.values())
        first = min(step for step, glucose in readings.items() if glucose > highest - 0.1)
        edges = [0, *readings, 37]
        holes = [(low, high) for low, high in pairwise(edges) if high > low + 4]
        lost = sum(high - low - 1 for low, high in holes)
        assert row["peak_seen"] == (lost <= 0.2 * 36 and not any(first in hole for hole in holes))
        if row["peak_seen"]:
            judged += 1
            assert (row["peak_mg_dl"], row["peak_minutes"]) == (highest, 5 * first)
            assert row["rose"] == (highest - outcome.last_mg_dl >= 10)
            forecast = {step: forecasts.point_NH[number, step - 1] for step in readings}
            top = max(forecast.values())
            at = min(step for step, glucose in forecast.items() if glucose > top - 0.1)
            assert row["peak_error_mg_dl"] == top - highest
            assert not row["rose"] or row["peak_time_error_minutes"] == 5 * (at - first)
    assert 0 < judged < len(outcomes)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(-20, 60).map(lambda by: round(by, 1)))
def test_shifting_all_glucose_shifts_heights_and_nothing_else(seed: int, by: float) -> None:
    forecasts, outcomes = invent_meals(seed, people=3)
    moved = shifted(forecasts, by)
    moved = Forecasts(
        moved.nights, forecasts.target_NH + by, moved.point_NH, moved.quantiles_NHQ, None
    )
    was = describe_peaks(forecasts, outcomes)
    now = describe_peaks(moved, outcomes.assign(last_mg_dl=outcomes["last_mg_dl"] + by))
    heights = ["peak_mg_dl", "forecast_peak_mg_dl"]
    np.testing.assert_allclose(now[heights], was[heights] + by, rtol=1e-9)
    rest = [name for name in was if name not in heights]
    pd.testing.assert_frame_equal(now[rest], was[rest])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_a_perfect_forecast_has_no_error(seed: int) -> None:
    """Whatever it says where nobody read."""
    forecasts, outcomes = invent_meals(seed, people=4)
    perfect = np.where(forecasts.observed, forecasts.target_NH, 999.0)
    told = describe_peaks(
        Forecasts(forecasts.nights, forecasts.target_NH, perfect, forecasts.quantiles_NHQ, None),
        outcomes,
    )
    judged = told["peak_seen"]
    assert (told["mse"] == 0).all()
    assert (told.loc[judged, "peak_error_mg_dl"] == 0).all()
    assert (told.loc[told["rose"], "peak_time_error_minutes"] == 0).all()
    columns = ["peak_mg_dl", "peak_minutes", "rise_mg_dl"]
    np.testing.assert_array_equal(told[columns], told[[f"forecast_{name}" for name in columns]])


def test_tables_count_everybody_once_by_hand() -> None:
    """a has two meals of one size, b two of another, one of them with a single reading."""
    target = [[120, 150, 130], [160, 140, 130], [110, 115, 125], [130, NAN, NAN]]
    point = [[120, 140, 150], [150, 150, 150], [120, 135, 130], [140, 999, 999]]
    meals = after_meals(
        target, point, 100.0, [40.0, 50, 70, 70], subject=["a", "a", "b", "b"], split="patient"
    )
    table = judge_meals(of_model(meals, "m"), COMPARISON).set_index("meal_size")
    assert table.index.tolist() == ["all", "30 to 60 g", "60 to 90 g"]
    counts = table[["people", "meals", "peaks", "rises"]]
    assert counts.to_numpy().tolist() == [[2, 4, 4, 4], [1, 2, 2, 2], [1, 2, 2, 2]]
    # Peaks 150 at 10, 160 at 5; 125 at 15, 130 at 5. Forecast 150 at 15, 150 at 5; 135 at 10,
    # 140 at 5.
    row = table.loc["all"]
    assert row["peak_mae_mg_dl"] == (5 + 10) / 2
    assert row["peak_bias_mg_dl"] == (-5 + 10) / 2
    assert row["peak_time_mae_minutes"] == (2.5 + 2.5) / 2
    assert row["peak_time_bias_minutes"] == (2.5 - 2.5) / 2
    assert table.loc["60 to 90 g", "peak_time_bias_minutes"] == -2.5
    assert row["rise_mg_dl"] == (55 + 27.5) / 2
    a, b = (0 + 100 + 400 + 100 + 100 + 400) / 6, (100 + 400 + 25 + 100) / 4
    assert row["rmse_mg_dl"] == pytest.approx((np.sqrt(a) + np.sqrt(b)) / 2)
    assert row["rmse_pooled_mg_dl"] == pytest.approx(np.sqrt((6 * a + 4 * b) / 10))
    assert (row["time_to_peak_minutes"], row["forecast_time_to_peak_minutes"]) == (7.5, 7.5)
    assert row["still_rising_pct"] == 50
    assert table[[f"{name}_low_{unit}" for name, unit in HEADLINES.items()]].isna().all().all()
    assert table["tied_with_best"].all()


@pytest.fixture(scope="module")
def meals() -> tuple[Forecasts, pd.DataFrame]:
    return invent_meals(3, people=24)


@pytest.fixture(scope="module")
def runs(meals: tuple[Forecasts, pd.DataFrame]) -> list[tuple[str, int, Forecasts]]:
    """Of the baselines one seed each, of two models three; one model is worse for everybody."""
    forecasts, _ = meals
    told = [(name, 0, shifted(forecasts, 3 * k, 8, k)) for k, name in enumerate(MANDATORY)]
    told += [("m", seed, shifted(forecasts, 0, 4, 10 + seed)) for seed in range(3)]
    return told + [("worst", seed, shifted(forecasts, 60, 4, 20 + seed)) for seed in range(3)]


@pytest.fixture(scope="module")
def peaks(
    meals: tuple[Forecasts, pd.DataFrame], runs: list[tuple[str, int, Forecasts]]
) -> pd.DataFrame:
    return pd.concat(
        [of_model((told, meals[1]), name, seed=seed) for name, seed, told in runs],
        ignore_index=True,
    )


def test_errors_and_ties_of_all_meals_are_those_of_the_leaderboard(
    peaks: pd.DataFrame, runs: list[tuple[str, int, Forecasts]]
) -> None:
    """Two ways to the same figures, also with several seeds."""
    scores = pd.concat(
        [
            score_points(told, "standard")[0].assign(model=name, seed=seed, data="d")
            for name, seed, told in runs
        ]
    )
    board = build_leaderboard(scores, COMPARISON)
    table = judge_meals(peaks, COMPARISON)
    whole = table[table["meal_size"] == "all"]
    names = ["split", "model", "rmse_mg_dl", "rmse_low_mg_dl", "rmse_high_mg_dl",
             "rmse_pooled_mg_dl", "tied_with_best", "seeds"]  # fmt: skip
    pd.testing.assert_frame_equal(
        whole[names].reset_index(drop=True), board[names], check_dtype=False
    )
    assert set(whole["tied_with_best"]) == {True, False}


def test_peaks_of_a_size_are_means_over_people_and_their_draws(peaks: pd.DataFrame) -> None:
    table = judge_meals(peaks, COMPARISON).set_index(["split", "meal_size", "model"])
    rows = peaks[peaks["peak_seen"]].assign(
        peak_mae=peaks["peak_error_mg_dl"].abs(),
        peak_bias=peaks["peak_error_mg_dl"],
        peak_time_mae=peaks["peak_time_error_minutes"].abs(),
        peak_time_bias=peaks["peak_time_error_minutes"],
    )
    compared = 0
    for (split, size, model), of_size in rows.groupby(["split", "meal_size", "model"]):
        people = of_size.groupby(PERSON)
        row = table.loc[split, size, model]
        assert row["meals"] == len(peaks.query("split == @split and meal_size == @size")) / 10
        rises = of_size[of_size["rose"]]
        for name in ("peak_minutes", "forecast_peak_minutes"):
            got = row[name.replace("peak", "time_to_peak")]
            assert got == pytest.approx(rises[name].median(), nan_ok=True)
        for name, unit in list(HEADLINES.items())[1:]:
            own = people[name].mean().dropna()  # every seed has the same meals
            assert row[f"{name}_{unit}"] == pytest.approx(own.mean(), nan_ok=True)
            low, high = row[f"{name}_low_{unit}"], row[f"{name}_high_{unit}"]
            if len(own) < 6:
                assert np.isnan([low, high]).all()
            elif of_size["seed"].nunique() == 1:
                draws = np.random.default_rng(0).multinomial(
                    len(own), np.full(len(own), 1 / len(own)), size=400
                )
                expected = np.quantile(draws @ own / len(own), [0.025, 0.975])
                np.testing.assert_allclose([low, high], expected)
                compared += 1
    assert compared > 20


def ties(rmse_MP: list[list[float]]) -> list[bool]:
    """Whether each model is tied with the first; everybody has one meal, off by as much."""
    rmse = np.array(rmse_MP)
    target = np.full((rmse.shape[1], 4), 120.0)
    subject = [f"p{person}" for person in range(rmse.shape[1])]
    told = [
        of_model(after_meals(target, target + of_people[:, None], subject=subject), f"m{number}")
        for number, of_people in enumerate(rmse)
    ]
    table = judge_meals(pd.concat(told), COMPARISON).set_index("model").sort_index()
    np.testing.assert_allclose(table.loc["m0", "rmse_mg_dl"].iloc[0], rmse[0].mean())
    whole = table[table["meal_size"] == "all"]
    assert whole.loc["m0", "tied_with_best"]
    return whole["tied_with_best"].tolist()[1:]


def test_ties_take_people_and_both_tests() -> None:
    best = [20.0, 23, 19, 31, 25, 27]
    worse = [rmse + 5 + 0.1 * rmse for rmse in best]
    assert ties([best, worse]) == [False]  # 2 / 2^6 = 0.03
    assert ties([best[:5], worse[:5]]) == [True]  # 2 / 2^5 = 0.06
    assert ties([best, worse, [rmse + 9 for rmse in worse]]) == [True, True]  # 0.06 by Holm
    # Of 14 people 13 do a little worse, one so much better that the mean tells nothing: p = 0.01.
    many = [20.0 + person for person in range(14)]
    little = [rmse + 1 + 0.01 * k for k, rmse in enumerate(many[:13])] + [many[13] - 12]
    assert ties([many, little]) == [True]


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10**6))
def test_people_apart_and_together(seed: int) -> None:
    """The mean over all is that of two halves, by how many of each are judged."""
    told = of_model(invent_meals(seed, people=8), "m", meal_size="from 90 g", split="patient")
    first = told["subject"].isin(["p0", "p3", "p5"])
    whole, *halves = (
        judge_meals(part, COMPARISON).iloc[0] for part in (told, told[first], told[~first])
    )
    for name in ("people", "meals", "peaks", "rises"):
        assert whole[name] == sum(half[name] for half in halves)
    people = [half["people"] for half in halves]
    assert whole["rmse_mg_dl"] == pytest.approx(
        np.average([half["rmse_mg_dl"] for half in halves], weights=people)
    )
    judged = told[told["peak_seen"]].groupby(first)["subject"].nunique()
    parts = [half["peak_bias_mg_dl"] for half in halves]
    weights = [judged.get(True, 0), judged.get(False, 0)]
    kept = [k for k in range(2) if weights[k]]
    expected = sum(weights[k] * parts[k] for k in kept) / max(sum(weights), 1)
    assert whole["peak_bias_mg_dl"] == pytest.approx(expected if kept else NAN, nan_ok=True)


def test_models_must_be_judged_on_the_same(meals: tuple[Forecasts, pd.DataFrame]) -> None:
    forecasts, outcomes = meals
    told = [of_model(meals, name) for name in ("m", "n", "o")]
    for odd in (told[2].iloc[1:], told[2].assign(meal_size="from 90 g")):
        with pytest.raises(InputError, match="o was scored on other nights than the rest"):
            judge_meals(pd.concat([*told[:2], odd]), COMPARISON)
    with pytest.raises(InputError, match="fitted to different readings"):
        judge_meals(pd.concat([told[0], told[1].assign(data="e")]), COMPARISON)
    with pytest.raises(InputError, match=r"none of \d+ meals is of a test split"):
        judge_meals(told[0].assign(split="validation"), COMPARISON)
    with pytest.raises(InputError, match=r"nothing is known of 2 meals .* subject 'p0'"):
        describe_peaks(forecasts, outcomes.iloc[2:])


def test_mean_courses_count_everybody_once() -> None:
    target = [[110, NAN, 130], [90, 95, 120], [140, 150, 160]]
    point = [[105, 100, 120], [110, 95, 100], [150, 170, 190]]
    last = [100.0, 80, 120]
    told, outcomes = after_meals(target, point, last, [20.0, 40, 20], subject=["a", "a", "b"])
    courses = mean_courses(told, outcomes).set_index(["split", "meal_size", "minutes"])
    whole = courses.loc["temporal", "all"]
    assert whole["change_mg_dl"].tolist() == [15, 22.5, 37.5]  # of a 10, 15, 35; of b 20, 30, 40
    assert whole["forecast_change_mg_dl"].tolist() == [23.75, 32.5, 45]
    assert whole[["people", "meals"]].to_numpy().tolist() == [[2, 3], [2, 2], [2, 3]]
    small = courses.loc["temporal", "below 30 g"]
    assert small["change_mg_dl"].tolist() == [15, 30, 35]
    assert small["people"].tolist() == [2, 1, 2]
    unknown = mean_courses(told, outcomes.assign(last_mg_dl=[NAN, 80, 120]))
    assert unknown.query("meal_size == 'all'")["meals"].tolist() == [2, 2, 2]
