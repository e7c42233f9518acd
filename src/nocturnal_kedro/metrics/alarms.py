"""Alarms for a low tonight, side by side: whom they find, whom they wake for nothing, and when.

Shapes: N nights, P people, T thresholds, R resamples, M models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.metrics.compare import (
    FEWEST_TO_TELL_APART,
    Comparison,
    night_numbers,
    require_same_data,
    require_same_nights,
)
from nocturnal_kedro.metrics.events import (
    LOWS,
    NIGHTS_A_WEEK,
    PATHS,
    Counts,
    alarms,
    at_least,
    auroc,
    average_precision,
    brier,
    count,
    from_table,
    lowest_threshold,
    resampled_auroc,
    resampled_average_precision,
)
from nocturnal_kedro.metrics.forecasts import NIGHT, PERSON
from nocturnal_kedro.metrics.significance import draw_people
from nocturnal_kedro.series.schema import STEP_MINUTES, TEST_SPLITS

# Nights that an alarm is judged on, by name: with all, and without those in which a rightly
# forecast low was, or may have been, turned away. What is not on record is not known to be without.
NIGHTS: dict[str, Callable[[pd.DataFrame, str], np.ndarray]] = {
    "all": lambda nights, low: np.ones(len(nights), bool),
    "no carbs after": lambda nights, low: (nights["carbs_after"] == 0).to_numpy(),
    "no rescue": lambda nights, low: (
        (nights["carbs_after"] == 0) & (nights["suspended"] == 0)
    ).to_numpy(),
    "not low at the origin": lambda nights, low: (nights["last_mg_dl"] >= LOWS[low]).to_numpy(),
}
READING = ["split", *PERSON, "low"]
RELIABILITY_EDGES = np.array([0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0])


def rank_alarms(told: pd.DataFrame, outcomes: pd.DataFrame, comparison: Comparison) -> pd.DataFrame:
    """One row per test split, kind of low, choice of nights and model, best AUROC first.

    `told` has the columns model and data beside those of `events.foresee_lows`; `outcomes` is of
    `outcomes.describe_nights`. Columns (see docs/metrics.md): split, low, nights_chosen, model,
    people, nights, lows, base_rate_pct; auroc, average_precision, brier and brier_skill (against
    each person's usual share) with their 95 % intervals over people; sensitivity_weekly_pct (on
    these nights, at no more than one false alarm a week); and of the alarm whose threshold was
    chosen so on validation: threshold, sensitivity_pct, precision_pct, f1, false_alarms_per_night,
    lead_minutes with its quartiles; tied_with_best by AUROC. Figures that need a night with a low,
    or one without, are NaN where there is none. Each origin is judged as a night; where a person
    has several in one from noon to noon, rates a night and a week add up the alarms of all.
    """
    judged = _joined(told, outcomes)
    rows: list[dict[str, Any]] = []
    for low in LOWS:
        thresholds = _thresholds(judged[judged["split"] == "validation"], low)
        for split in (split for split in TEST_SPLITS if (judged["split"] == split).any()):
            tested = judged[judged["split"] == split]
            for name, choose in NIGHTS.items():
                chosen = tested[choose(tested, low)]
                if len(chosen):
                    key = {"split": split, "low": low, "nights_chosen": name}
                    rows += _compare(chosen, low, thresholds, comparison, key)
    return pd.DataFrame(rows)


def rank_readings(low_readings: pd.DataFrame, comparison: Comparison) -> pd.DataFrame:
    """One row per test split, kind of low and model, best AUROC first: of single readings.

    `low_readings` as of `scores.count_low_readings`, with the columns model and data. Columns:
    split, low, model, people, readings, lows, base_rate_pct, auroc and average_precision with their
    95 % intervals over people, tied_with_best by AUROC. Raises `InputError` where models were
    fitted to different data or scored on different readings.
    """
    require_same_data(low_readings, ("events", "others"))
    totals = low_readings.assign(seed=0).groupby([*READING, "model", "seed"])[["events", "others"]]
    for _, of_models in totals.sum().items():
        require_same_nights(of_models.unstack(["model", "seed"]))
    rows: list[dict[str, Any]] = []
    tested = low_readings[low_readings["split"].isin(TEST_SPLITS)]
    for (split, low), of_low in tested.groupby(["split", "low"], sort=False):
        person = of_low.groupby(PERSON).ngroup()
        people = int(person.max()) + 1
        draws_RP = draw_people(people, comparison.resamples, comparison.seed)
        of_models, auroc_MR = [], []
        for model, table in of_low.assign(person=person).groupby("model"):
            counts = from_table(table, people)
            whole = counts.pooled()
            auroc_MR.append(resampled_auroc(counts, draws_RP))
            precision_R = resampled_average_precision(counts, draws_RP)
            readings, lows = int(whole.nights), int(whole.events.sum())
            of_models.append(
                {
                    "split": split,
                    "low": low,
                    "model": model,
                    "people": people,
                    "readings": readings,
                    "lows": lows,
                    "base_rate_pct": 100 * lows / readings,
                    "auroc": float(auroc(whole)),
                    **_interval("auroc", auroc_MR[-1]),
                    "average_precision": float(average_precision(whole)),
                    **_interval("average_precision", precision_R),
                }
            )
        rows += _ranked(of_models, auroc_MR, people)
    return pd.DataFrame(rows)


def _joined(told: pd.DataFrame, outcomes: pd.DataFrame) -> pd.DataFrame:
    """Raises `InputError` where models were not asked all nights of the table, and the same."""
    require_same_data(told, tuple(f"{low}_probability" for low in LOWS))
    judged = told.merge(outcomes, on=[*NIGHT, "split"], how="left", indicator=True)
    lost = judged[judged["_merge"] != "both"]
    if len(lost):
        first = lost.iloc[0]
        raise InputError(
            f"nothing is known of what came of {len(lost)} nights that were forecast, the first of "
            f"subject '{first['subject']}', {first['origin']}: the frozen table was made anew "
            f"since. Run training and evaluation again, or give the data_root of the old run."
        )
    nights_M = judged["model"].value_counts()
    odd = nights_M.index[nights_M != (outcomes["split"] != "train").sum()]
    if len(odd):
        raise InputError(
            f"{', '.join(odd)} foresaw other nights than the frozen table holds. Run evaluation "
            f"again for every model on the same origins."
        )
    return judged.drop(columns="_merge")


def _thresholds(validation: pd.DataFrame, low: str) -> dict[str, float]:
    """Each model's lowest threshold with at most one false alarm a week on validation nights."""
    found = {}
    for model, nights in validation.groupby("model"):
        column = lowest_threshold(_counts(nights, low).pooled(), one_a_week(nights))
        found[str(model)] = float(column) / PATHS
    return found


def one_a_week(nights: pd.DataFrame) -> float:
    """The share of origins at which an alarm rings for nothing once a week."""
    return 1 / NIGHTS_A_WEEK / _origins_a_night(nights)


def _origins_a_night(nights: pd.DataFrame) -> float:
    """Of a person, in nights from noon to noon that have one: 1 of midnights and bedtimes."""
    when = nights[PERSON].assign(night=night_numbers(pd.DatetimeIndex(nights["origin"])))
    return len(when) / len(when.drop_duplicates())


def _counts(nights: pd.DataFrame, low: str) -> Counts:
    person_N = nights.groupby(PERSON).ngroup().to_numpy()
    return count(
        nights[f"{low}_probability"].to_numpy(),
        nights[f"{low}_happened"].to_numpy(),
        person_N,
        person_N.max() + 1,
    )


def _compare(
    nights: pd.DataFrame,
    low: str,
    thresholds: dict[str, float],
    comparison: Comparison,
    key: dict[str, str],
) -> list[dict[str, Any]]:
    """The rows of some nights of one split."""
    models = {str(model): of_model for model, of_model in nights.groupby("model")}
    people = nights.groupby(PERSON).ngroups
    draws_RP = draw_people(people, comparison.resamples, comparison.seed)
    rows, auroc_MR = [], []
    for model, of_model in models.items():
        counts = _counts(of_model, low)
        auroc_MR.append(resampled_auroc(counts, draws_RP))
        row = key | {"model": model} | _quality(of_model, low, counts, auroc_MR[-1], draws_RP)
        row |= _alarm(of_model, low, thresholds.get(model, np.nan))
        rows.append(row)
    return _ranked(rows, auroc_MR, people)


def _ranked(
    rows: list[dict[str, Any]], auroc_MR: list[np.ndarray], people: int
) -> list[dict[str, Any]]:
    """The rows by their AUROC, each marked where it cannot be told from the best."""
    order = np.argsort([-row["auroc"] for row in rows], kind="stable")  # NaN last
    best = order[0]
    for number, row in enumerate(rows):
        worse_R = auroc_MR[best] - auroc_MR[number]
        known = np.isfinite(worse_R).any()
        clear = known and np.nanquantile(worse_R, 0.025) > 0
        row["tied_with_best"] = not clear or people < FEWEST_TO_TELL_APART
    return [rows[number] for number in order]


def _quality(
    nights: pd.DataFrame, low: str, counts: Counts, auroc_R: np.ndarray, draws_RP: np.ndarray
) -> dict[str, Any]:
    """How well the probabilities tell nights apart, and how true they are."""
    whole = counts.pooled()
    happened_N = nights[f"{low}_happened"].to_numpy()
    person_N = nights.groupby(PERSON).ngroup().to_numpy()
    said_P, usual_P = (
        np.bincount(person_N, brier(nights[f"{low}_{kind}"].to_numpy(), happened_N))
        for kind in ("probability", "usual")
    )
    nights_P = np.bincount(person_N)
    skill_R = _skill(draws_RP @ said_P, draws_RP @ usual_P)
    weekly = int(lowest_threshold(whole, one_a_week(nights)))
    return {
        "people": len(nights_P),
        "nights": len(nights),
        "lows": int(happened_N.sum()),
        "base_rate_pct": 100 * happened_N.mean(),
        "auroc": float(auroc(whole)),
        **_interval("auroc", auroc_R),
        "average_precision": float(average_precision(whole)),
        **_interval("average_precision", resampled_average_precision(counts, draws_RP)),
        "brier": said_P.sum() / nights_P.sum(),
        **_interval("brier", (draws_RP @ said_P) / (draws_RP @ nights_P)),
        "brier_skill": float(_skill(said_P.sum(), usual_P.sum())),
        **_interval("brier_skill", skill_R),
        "sensitivity_weekly_pct": 100 * float(alarms(whole).sensitivity[weekly]),
    }


def _skill(brier_said: np.ndarray, brier_usual: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(brier_usual > 0, 1 - np.divide(brier_said, brier_usual), np.nan)


def _alarm(nights: pd.DataFrame, low: str, threshold: float) -> dict[str, Any]:
    """The alarm that was chosen on validation; its lead is from the origin to the onset."""
    names = ("sensitivity_pct", "precision_pct", "f1", "false_alarms_per_night")
    rung_N = (nights[f"{low}_probability"] >= threshold - 0.5 / PATHS).to_numpy()
    happened_N = nights[f"{low}_happened"].to_numpy()
    if np.isnan(threshold):
        values = [np.nan] * len(names)
    else:
        true, false = (rung_N & happened_N).sum(), (rung_N & ~happened_N).sum()
        lows = happened_N.sum()
        values = [
            100 * true / lows if lows else np.nan,
            100 * true / (true + false) if true + false else np.nan,
            2 * true / (true + false + lows) if true + false + lows else np.nan,
            false / len(nights) * _origins_a_night(nights),
        ]
    lead_X = nights[f"{low}_onset"].to_numpy()[rung_N & happened_N] * STEP_MINUTES
    quartiles = np.quantile(lead_X, [0.5, 0.25, 0.75]) if len(lead_X) else [np.nan] * 3
    leads = ("lead_minutes", "lead_quartile_1_minutes", "lead_quartile_3_minutes")
    return (
        {"threshold": threshold}
        | dict(zip(names, values, strict=True))
        | dict(zip(leads, map(float, quartiles), strict=True))
    )


def _interval(name: str, samples_R: np.ndarray) -> dict[str, float]:
    """The 95 % interval over people; resamples without a night of either kind say nothing."""
    known_R = samples_R[np.isfinite(samples_R)]
    low, high = np.quantile(known_R, [0.025, 0.975]) if len(known_R) else (np.nan, np.nan)
    return {f"{name}_low": float(low), f"{name}_high": float(high)}


def trade_off(told: pd.DataFrame, outcomes: pd.DataFrame) -> pd.DataFrame:
    """What every threshold of an alarm would have done, of each model, split and kind of low.

    Columns: split, low, model, threshold, sensitivity_pct, precision_pct, f1,
    false_alarms_per_week, net_benefit, and net_benefit_always, that of an alarm at each origin; a
    row at every percent, where an alarm less rings, and before it: in between net benefit alone
    falls, nearly in a line. For the decision curve see `events.Alarms`.
    """
    judged = _joined(told, outcomes)
    tables = []
    for split, low, model, nights in _tested(judged):
        whole = _counts(nights, low).pooled()
        curve = alarms(whole)
        table = pd.DataFrame(
            {
                "split": split,
                "low": low,
                "model": model,
                "threshold": curve.threshold_T,
                "sensitivity_pct": 100 * curve.sensitivity,
                "precision_pct": 100 * curve.precision,
                "f1": curve.f1,
                "false_alarms_per_week": (
                    NIGHTS_A_WEEK * _origins_a_night(nights) * curve.false_alarms_per_night
                ),
                "net_benefit": curve.net_benefit,
                "net_benefit_always": curve.net_benefit_always,
            }
        )
        rung = at_least(whole.events + whole.others)
        changes = np.diff(rung, prepend=-1, append=rung[-1]) != 0
        percent = np.arange(PATHS + 1) % (PATHS // 100) == 0
        tables.append(table[changes[:-1] | changes[1:] | percent])
    return pd.concat(tables, ignore_index=True)


def reliability(told: pd.DataFrame, outcomes: pd.DataFrame, comparison: Comparison) -> pd.DataFrame:
    """How often a low came of nights that were told alike, with bands from people drawn anew.

    Columns: split, low, model, nights, said_pct (mean probability of the nights of a bin),
    happened_pct with its 95 % interval happened_low_pct to happened_high_pct, which is NaN where
    too few people have a night in the bin to say how they differ.
    """
    judged = _joined(told, outcomes)
    rows = []
    for split, low, model, nights in _tested(judged):
        said_N = nights[f"{low}_probability"].to_numpy()
        bin_N = np.searchsorted(RELIABILITY_EDGES[1:-1], said_N, side="right")
        person_N = nights.groupby(PERSON).ngroup().to_numpy()
        people = person_N.max() + 1
        draws_RP = draw_people(people, comparison.resamples, comparison.seed)
        for number in np.unique(bin_N):
            here_N = bin_N == number
            happened_N = nights[f"{low}_happened"].to_numpy()[here_N]
            lows_P = np.bincount(person_N[here_N], happened_N, minlength=people)
            nights_P = np.bincount(person_N[here_N], minlength=people)
            with np.errstate(invalid="ignore"):
                share_R = 100 * (draws_RP @ lows_P) / (draws_RP @ nights_P)
            if np.count_nonzero(nights_P) < FEWEST_TO_TELL_APART:
                share_R = np.full(1, np.nan)
            rows.append(
                {
                    "split": split,
                    "low": low,
                    "model": model,
                    "nights": int(here_N.sum()),
                    "said_pct": 100 * said_N[here_N].mean(),
                    "happened_pct": 100 * happened_N.mean(),
                }
                | {f"{name}_pct": value for name, value in _interval("happened", share_R).items()}
            )
    return pd.DataFrame(rows)


def _tested(judged: pd.DataFrame) -> Iterator[tuple[str, str, str, pd.DataFrame]]:
    """Split, kind of low and model, and the test nights to be judged so."""
    for low in LOWS:
        for (split, model), nights in judged.groupby(["split", "model"]):
            if split in TEST_SPLITS:
                yield split, low, model, nights
