"""After a meal: how high glucose goes and when, what was forecast of it, by the meal's size.

Shapes: N meals, H steps, M models, S training seeds, P people.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.metrics.calibration import steps_around
from nocturnal_kedro.metrics.compare import (
    FEWEST_TO_TELL_APART,
    RUN,
    Comparison,
    require_same_data,
    require_same_nights,
)
from nocturnal_kedro.metrics.forecasts import NIGHT, PERSON, Forecasts
from nocturnal_kedro.metrics.point import signed_error, squared_error
from nocturnal_kedro.metrics.significance import apart_from_best, bootstrap_means, interval
from nocturnal_kedro.series.schema import STEP_MINUTES, TEST_SPLITS

# Of the carbs, in g, by the least amount above a band: snacks, small meals, usual and large ones.
# They are counted by eye, and 10 g more or less do not show in glucose (Smart et al. 2009, Diabet
# Med 26:279): bands of 30 g keep most meals in their own.
MEAL_SIZES = {
    "below 30 g": 30.0,
    "30 to 60 g": 60.0,
    "60 to 90 g": 90.0,
    "from 90 g": np.inf,
}
UNKNOWN = "not on record"
ALL = "all"
LONGEST_GAP_STEPS = 4  # 20 minutes: a 15-minute sensor drifts, and now and then takes as long
COVERAGE = 0.8  # of the horizon, as of any origin's
ALIKE_MG_DL = 0.1  # no sensor tells less: a forecast that creeps up by less stands still
LEAST_RISE_MG_DL = 10.0  # what is less may be the sensor's noise, and its peak has no time
# What models are judged by, and in what; the root is taken per person.
HEADLINES = {
    "rmse": "mg_dl",
    "peak_mae": "mg_dl",
    "peak_bias": "mg_dl",
    "peak_time_mae": "minutes",
    "peak_time_bias": "minutes",
}


def describe_peaks(forecasts: Forecasts, outcomes: pd.DataFrame) -> pd.DataFrame:
    """One row per meal with a reading after it: what came, what was forecast, and the errors.

    `outcomes` has for every origin source, subject, origin, split, meal_g (carbs, NaN where not
    known) and last_mg_dl (newest reading at the origin).

    The peak is the highest reading after the origin, its time that of the first reading less than
    0.1 mg/dL below it. The forecast's is the highest at the same steps, so that a perfect one has
    no error whatever the sensor. The rise is the peak less last_mg_dl: below 0 where glucose fell.
    Worked: 100 at the origin, then 120, 150, 150, 90 has a peak of 150 after 10 minutes and a rise
    of 50; forecast 115, 130, 140, 135 errs by -10 mg/dL and 5 minutes.

    Columns: split, source, subject, origin, meal_g, meal_size (of MEAL_SIZES), points, mse (over
    all readings), peak_seen, rose, still_rising; peak_mg_dl, peak_minutes and rise_mg_dl, each
    also as forecast_…; peak_error_mg_dl and peak_time_error_minutes (forecast less what came).
    peak_seen: both the peak and 80 % of the horizon lie no further than 20 minutes from reading to
    reading, from the origin to the horizon's end; else everything of the peak is NaN. rose: it was
    seen, and the rise is at least 10 mg/dL; else the error of time is NaN, because a fall, or
    noise, has no time to peak. still_rising: it rose, and the last reading is the peak, so that
    the true one may come later. None depends on a forecast: models are judged on the same.
    """
    known = _with_outcomes(forecasts, outcomes)
    some_N = forecasts.observed.any(axis=1)
    seen_NH = forecasts.observed[some_N]
    target_NH, point_NH = forecasts.target_NH[some_N], forecasts.point_NH[some_N]
    meals = known[some_N].reset_index(drop=True)

    peak_N, at_N = _peaks(target_NH, seen_NH)
    forecast_N, forecast_at_N = _peaks(point_NH, seen_NH)
    sure_N = _sure(seen_NH, at_N)
    rise_N = peak_N - meals["last_mg_dl"].to_numpy()
    told = pd.DataFrame(
        {
            "peak_mg_dl": peak_N,
            "peak_minutes": (at_N + 1.0) * STEP_MINUTES,
            "rise_mg_dl": rise_N,
            "forecast_peak_mg_dl": forecast_N,
            "forecast_peak_minutes": (forecast_at_N + 1.0) * STEP_MINUTES,
            "forecast_rise_mg_dl": forecast_N - meals["last_mg_dl"].to_numpy(),
            "peak_error_mg_dl": signed_error(peak_N, forecast_N),
            "peak_time_error_minutes": signed_error(at_N, forecast_at_N) * float(STEP_MINUTES),
        }
    )
    rose_N = sure_N & (rise_N >= LEAST_RISE_MG_DL)
    told[~sure_N] = np.nan
    told.loc[~rose_N, "peak_time_error_minutes"] = np.nan
    return meals[["split", *NIGHT, "meal_g"]].assign(
        meal_size=_size(meals["meal_g"].to_numpy(np.float64)),
        points=seen_NH.sum(axis=1),
        mse=np.nanmean(squared_error(target_NH, point_NH), axis=1),
        peak_seen=sure_N,
        rose=rose_N,
        still_rising=rose_N & (at_N >= _last(seen_NH)),
        **told,
    )


def mean_courses(forecasts: Forecasts, outcomes: pd.DataFrame) -> pd.DataFrame:
    """Mean change of glucose since the origin, of what came and of the forecast at the same points.

    Each person counts once at each step. Columns: split, meal_size ("all", and each), minutes,
    people, meals, change_mg_dl, forecast_change_mg_dl.
    """
    known = _with_outcomes(forecasts, outcomes)
    last_N = known["last_mg_dl"].to_numpy()
    meal_X, step_X = np.nonzero(forecasts.observed & ~np.isnan(last_N)[:, None])
    points = known[["split", *PERSON]].iloc[meal_X].reset_index(drop=True)
    points["minutes"] = (step_X + 1) * STEP_MINUTES
    points["change_mg_dl"] = forecasts.target_NH[meal_X, step_X] - last_N[meal_X]
    points["forecast_change_mg_dl"] = forecasts.point_NH[meal_X, step_X] - last_N[meal_X]
    size_X = _size(known["meal_g"].to_numpy(np.float64))[meal_X]
    points = pd.concat([points.assign(meal_size=ALL), points.assign(meal_size=size_X)])
    step = ["split", "meal_size", "minutes"]
    by_person = points.groupby([*step, *PERSON])
    of_people = by_person.mean().assign(meals=by_person.size())
    courses = of_people.groupby(level=step).mean().drop(columns="meals")
    counted = of_people["meals"].groupby(level=step)
    courses.insert(0, "people", counted.size())
    courses.insert(1, "meals", counted.sum())
    return courses.reset_index()


def judge_meals(peaks: pd.DataFrame, comparison: Comparison) -> pd.DataFrame:
    """One row per test split, size of the meal and model, those of the best RMSE first.

    `peaks` are those of `describe_peaks` of all models, with the columns model, data and, where
    there are several training seeds, seed. Columns (see docs/metrics.md): split, meal_size ("all",
    and each), model, people, meals, peaks and rises (how many of the meals are judged by height
    and by time), each of HEADLINES with its 95 % interval over people, rmse_pooled_mg_dl,
    rise_mg_dl, still_rising_pct, time_to_peak_minutes, forecast_time_to_peak_minutes,
    tied_with_best by RMSE; and seeds where a model has several. Each person counts once, but in
    rmse_pooled_mg_dl, and from still_rising_pct (of the rises) to the times to peak (medians of
    the rises). Who has no such meal is not among the people, and
    an interval of fewer than six of them is NaN.
    Raises `InputError` where models were judged on other meals or fitted to different data.
    """
    meals = peaks[peaks["split"].isin(TEST_SPLITS)]
    if meals.empty:
        raise InputError(
            f"none of {len(peaks)} meals is of a test split ({', '.join(TEST_SPLITS)}): there is "
            f"nothing to judge models by. Give more people or days, or change the shares under "
            f"'splits'."
        )
    meals = meals.assign(seed=meals["seed"].fillna(0) if "seed" in meals else 0)
    require_same_data(meals, ("points", "mse"))
    meal = ["split", *NIGHT, "meal_size"]
    require_same_nights(meals.set_index([*meal, *RUN])["points"].unstack(RUN))
    sizes = [ALL, *MEAL_SIZES, UNKNOWN]
    meals = pd.concat([meals.assign(meal_size=ALL), meals])
    groups = dict(list(meals.groupby(["split", "meal_size"])))
    tables = []
    for split, size in sorted(groups, key=lambda key: (key[0], sizes.index(key[1]))):
        table = _judge(groups[split, size], comparison)
        table.insert(0, "split", split)
        table.insert(1, "meal_size", size)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _judge(meals: pd.DataFrame, comparison: Comparison) -> pd.DataFrame:
    """The models of one split and size, best first."""
    runs = meals.groupby(RUN)
    of_models = meals.groupby("model")
    people = _per_person(meals)
    one = meals[meals["seed"] == meals["seed"].iloc[0]]
    one = one[one["model"] == one["model"].iloc[0]]  # what came is the same for all
    seeds = people.index.droplevel(PERSON).unique().to_frame()["model"].value_counts().sort_index()
    table = pd.DataFrame(
        {
            "people": one.groupby(PERSON).ngroups,
            "meals": len(one),
            "peaks": int(one["peak_seen"].sum()),
            "rises": int(one["rose"].sum()),
        },
        index=seeds.index,
    )
    for name, unit in HEADLINES.items():
        values_MSP = _by_seed(people[name])
        table[f"{name}_{unit}"] = _over_people(values_MSP)
        few = values_MSP.shape[2] < FEWEST_TO_TELL_APART
        low, high = (np.nan, np.nan) if few else interval(_resample(values_MSP, comparison))
        table[f"{name}_low_{unit}"], table[f"{name}_high_{unit}"] = low, high
    squared = (meals["mse"] * meals["points"]).groupby(meals["model"]).sum()
    rose = meals[meals["rose"]].groupby("model")
    table["rmse_pooled_mg_dl"] = np.sqrt(squared / of_models["points"].sum())
    table["rise_mg_dl"] = _over_people(_by_seed(people["rise_mg_dl"]))
    table["still_rising_pct"] = 100 * rose["still_rising"].mean()
    table["time_to_peak_minutes"] = rose["peak_minutes"].median()
    table["forecast_time_to_peak_minutes"] = rose["forecast_peak_minutes"].median()
    rmse_MSP = _by_seed(people["rmse"])
    rmse_MP, boot_RM = np.nanmean(rmse_MSP, axis=1), _resample(rmse_MSP, comparison)
    table["tied_with_best"] = ~apart_from_best(rmse_MP, boot_RM)
    if runs.ngroups > of_models.ngroups:
        table["seeds"] = seeds
    return table.sort_values("rmse_mg_dl", kind="stable").reset_index(names="model")


def _per_person(meals: pd.DataFrame) -> pd.DataFrame:
    """Each of HEADLINES, and the rise, of every person, by model, seed, source and subject."""
    height, time = meals["peak_error_mg_dl"], meals["peak_time_error_minutes"]
    by_person = meals.assign(
        squared=meals["mse"] * meals["points"], height=height.abs(), time=time.abs()
    ).groupby([*RUN, *PERSON])
    total, mean = (
        by_person[["squared", "points"]].sum(),
        by_person[
            ["height", "time", "peak_error_mg_dl", "peak_time_error_minutes", "rise_mg_dl"]
        ].mean(),
    )
    return pd.DataFrame(
        {
            "rmse": np.sqrt(total["squared"] / total["points"]),
            "peak_mae": mean["height"],
            "peak_bias": mean["peak_error_mg_dl"],
            "peak_time_mae": mean["time"],
            "peak_time_bias": mean["peak_time_error_minutes"],
            "rise_mg_dl": mean["rise_mg_dl"],
        }
    )


def _by_seed(values: pd.Series) -> np.ndarray:
    """Values of everybody who has one, (M, S, P); NaN where a model has no such seed."""
    wide = values.unstack(PERSON).dropna(axis=1)
    models, seeds = (wide.index.unique(name).sort_values() for name in RUN)
    every = wide.reindex(pd.MultiIndex.from_product([models, seeds]))
    return every.to_numpy().reshape(len(models), len(seeds), -1)


def _over_people(values_MSP: np.ndarray) -> np.ndarray:
    """Mean over people of each one's mean over the seeds, (M,); NaN of nobody."""
    if not values_MSP.shape[2]:
        return np.full(len(values_MSP), np.nan)
    return np.nanmean(values_MSP, axis=1).mean(axis=1)


def _resample(values_MSP: np.ndarray, comparison: Comparison) -> np.ndarray:
    return bootstrap_means(values_MSP, comparison.resamples, comparison.seed)


def _with_outcomes(forecasts: Forecasts, outcomes: pd.DataFrame) -> pd.DataFrame:
    """The meals that were forecast, with meal_g and last_mg_dl."""
    key = [*NIGHT, "split"]
    known = forecasts.nights[key].merge(
        outcomes[[*key, "meal_g", "last_mg_dl"]],
        on=key,
        how="left",
        validate="one_to_one",
        indicator=True,
    )
    lost = known[known["_merge"] != "both"]
    if len(lost):
        first = lost.iloc[0]
        raise InputError(
            f"nothing is known of {len(lost)} meals that were forecast, the first of subject "
            f"'{first['subject']}', {first['origin']}: the frozen table was made anew since. Run "
            f"training and evaluation again, or give the data_root of the old run."
        )
    return known


def _peaks(glucose_NH: np.ndarray, seen_NH: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The highest value of each meal where it was seen, and its first place from 0, (N,)."""
    known_NH = np.where(seen_NH, glucose_NH, -np.inf)
    highest_N = known_NH.max(axis=1)
    return highest_N, (known_NH > highest_N[:, None] - ALIKE_MG_DL).argmax(axis=1)


def _last(seen_NH: np.ndarray) -> np.ndarray:
    """The place of the last reading, from 0, (N,)."""
    return seen_NH.shape[1] - 1 - seen_NH[:, ::-1].argmax(axis=1)


def _sure(seen_NH: np.ndarray, at_N: np.ndarray) -> np.ndarray:
    """Whether readings are close enough around the peak, and over the horizon, (N,)."""
    # The origin and the end are no holes: what lies beside them is known as well as between.
    meals, horizon = seen_NH.shape
    ended_NE = np.pad(seen_NH, ((0, 0), (1, 1)), constant_values=True)
    before_NE, after_NE = steps_around(ended_NE)
    told_NH = (after_NE - before_NE <= LONGEST_GAP_STEPS)[:, 1 : horizon + 1]
    meal_N, place_N = np.arange(meals), at_N + 1
    since_N = place_N - before_NE[meal_N, place_N - 1]
    until_N = after_NE[meal_N, place_N + 1] - place_N
    beside_N = np.maximum(since_N, until_N) <= LONGEST_GAP_STEPS
    return beside_N & (told_NH.mean(axis=1) >= COVERAGE)


def _size(meal_g_N: np.ndarray) -> np.ndarray:
    names = np.array([*MEAL_SIZES, UNKNOWN], dtype=object)
    band_N = np.searchsorted(list(MEAL_SIZES.values()), meal_g_N, side="right")
    return names[np.where(np.isnan(meal_g_N), len(MEAL_SIZES), band_N)]
