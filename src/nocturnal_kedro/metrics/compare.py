"""Models side by side: the leaderboard, its bootstrap intervals over people, and its ties."""

from __future__ import annotations

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.metrics.scores import MEASURES
from nocturnal_kedro.series.schema import STEPS_PER_HOUR, TEST_SPLITS

PERSON = ["source", "subject"]
REFERENCE = "last_value"  # the baseline that skill is measured against
# With fewer people even a model that is better for each of them is no surprise at 5 %: a two-sided
# sign test over five gives 2 / 2^5 = 0.06, over six 0.03.
FEWEST_TO_TELL_APART = 6


class Comparison(BaseModel, extra="forbid", frozen=True):
    """How the table is made."""

    resamples: int = Field(default=10_000, ge=100)
    seed: int = 0
    # The same columns again up to here, as `*_6h`, where the horizon is longer than that.
    also_hours: tuple[float, ...] = (6.0,)


def build_leaderboard(scores: pd.DataFrame, comparison: Comparison) -> pd.DataFrame:
    """One row per test split and model, best first.

    Columns (see docs/metrics.md): model, split, nights, subjects, rmse_mg_dl with its 95 %
    interval rmse_low_mg_dl to rmse_high_mg_dl, rmse_pooled_mg_dl, crps_low_mg_dl to
    crps_high_mg_dl, skill_vs_last_value with its interval, every measure of
    `metrics.scores.MEASURES` but mse, clarke_ab_pct, tied_with_best; and all but the counts again
    to each of `also_hours`. All but `rmse_pooled_mg_dl` are subject-macro: each person counts once.
    Raises `InputError` where models were scored on different nights or fitted to different data, or
    last value is absent.
    """
    scores = scores[scores["split"].isin(TEST_SPLITS)]
    _require_same_data(scores)
    _require_same_nights(scores)
    tables = []
    for split, judged in scores.groupby("split"):
        table = _compare(judged, comparison)
        horizon_hours = judged["step"].max() / STEPS_PER_HOUR
        for hours in (hours for hours in comparison.also_hours if hours < horizon_hours):
            part = _compare(judged[judged["step"] <= hours * STEPS_PER_HOUR], comparison)
            table = table.join(part.drop(columns=["nights", "subjects"]).add_suffix(f"_{hours:g}h"))
        table.insert(0, "split", split)
        tables.append(table.sort_values("rmse_mg_dl").reset_index(names="model"))
    return pd.concat(tables, ignore_index=True)


def _compare(scores: pd.DataFrame, comparison: Comparison) -> pd.DataFrame:
    """The table of one split over the steps given; the index is the model."""
    by_person = per_person(scores)
    macro = by_person.groupby("model").mean()
    rmse_MP = by_person["rmse"].unstack(PERSON)
    if REFERENCE not in rmse_MP.index:
        raise InputError(
            f"'{REFERENCE}' was not scored, and every table carries it; "
            f"scored: {', '.join(rmse_MP.index)}."
        )
    boot_RM = bootstrap_means(rmse_MP.to_numpy(), comparison.resamples, comparison.seed)
    reference = rmse_MP.index.get_loc(REFERENCE)
    best = int(np.argmin(rmse_MP.mean(axis=1)))
    low, high = _interval(boot_RM)
    skill_low, skill_high = _interval(1 - boot_RM / boot_RM[:, [reference]])
    worse_low, _ = _interval(boot_RM - boot_RM[:, [best]])
    crps_MP = by_person["crps_mg_dl"].unstack(PERSON).loc[rmse_MP.index]
    crps_low, crps_high = _interval(
        bootstrap_means(crps_MP.to_numpy(), comparison.resamples, comparison.seed)
    )

    points = scores.groupby("model")["points"].sum()
    squared = (scores["mse"] * scores["points"]).groupby(scores["model"]).sum()
    nights = scores.drop_duplicates(["model", *PERSON]).groupby("model")["nights"].sum()
    return pd.DataFrame(
        {
            "nights": nights,
            "subjects": by_person.groupby("model").size(),
            "rmse_mg_dl": macro["rmse"],
            "rmse_low_mg_dl": low,
            "rmse_high_mg_dl": high,
            "rmse_pooled_mg_dl": np.sqrt(squared / points),
            "crps_low_mg_dl": crps_low,
            "crps_high_mg_dl": crps_high,
            "skill_vs_last_value": 1 - macro["rmse"] / macro["rmse"].iloc[reference],
            "skill_low": skill_low,
            "skill_high": skill_high,
            **{name: macro[name] for name in MEASURES if name != "mse"},
            "clarke_ab_pct": macro["clarke_a_pct"] + macro["clarke_b_pct"],
            "tied_with_best": (worse_low <= 0) | (rmse_MP.shape[1] < FEWEST_TO_TELL_APART),
        },
        index=rmse_MP.index,
    )


def per_person(scores: pd.DataFrame) -> pd.DataFrame:
    """Each person's metrics over all steps given, by model, source and subject.

    rmse = sqrt(sum points * mse / sum points); the others are means over points.
    """
    weighted = scores[list(MEASURES)].mul(scores["points"], axis=0)
    keys = [scores[name] for name in ("model", *PERSON)]
    means = weighted.groupby(keys).sum().div(scores["points"].groupby(keys).sum(), axis=0)
    return means.assign(rmse=np.sqrt(means["mse"]))


def bootstrap_means(values_MP: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Means of M models over people drawn with replacement, (resamples, M).

    Every model is averaged over the same draws, so differences are paired. One multinomial
    draw and one matrix product (Efron 1979).
    """
    people = values_MP.shape[1]
    draws_RP = np.random.default_rng(seed).multinomial(
        people, np.full(people, 1 / people), size=resamples
    )
    return draws_RP @ values_MP.T / people


def _interval(samples_RM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.quantile(samples_RM, [0.025, 0.975], axis=0)
    return low, high


def require_current(scores: pd.DataFrame, origins: pd.DataFrame) -> None:
    """Raise `InputError` if the scores are of other nights than the frozen table holds now."""
    key = ["split", *PERSON]
    tested = origins[origins["split"].isin(TEST_SPLITS)].groupby(key).size()
    scored = scores[scores["split"].isin(TEST_SPLITS)].groupby(key)["nights"].max()
    if not tested.sort_index().equals(scored.sort_index()):
        raise InputError(
            f"the scores are of {scored.sum()} test nights of {len(scored)} people, the frozen "
            f"table holds {tested.sum()} of {len(tested)}: it was made anew since. Run training "
            f"and evaluation again, or give the data_root of the old run."
        )


def _require_same_data(scores: pd.DataFrame) -> None:
    lacking = [name for name in ("data", *MEASURES) if name not in scores]
    if lacking or scores[["data", *MEASURES]].isna().any().any():
        raise InputError(
            f"some scores lack {', '.join(lacking) or 'a measure'}: they were made by another "
            f"version. Run evaluation again for every model."
        )
    models = scores.groupby("data")["model"].unique()
    if len(models) > 1:
        groups = "; ".join(f"{data[:12]}: {', '.join(names)}" for data, names in models.items())
        raise InputError(
            f"models were fitted to different readings, splits or origins ({groups}), so their "
            f"errors cannot be compared. Run training and evaluation again for all of them."
        )


def _require_same_nights(scores: pd.DataFrame) -> None:
    points = scores.pivot(index=["split", *PERSON, "step"], columns="model", values="points")
    usual = points.mode(axis=1)[0]
    odd = [str(model) for model in points if not points[model].equals(usual.rename(model))]
    if odd:
        raise InputError(
            f"{', '.join(odd)} was scored on other nights than the rest. Run evaluation again for "
            f"every model on the same origins."
        )
