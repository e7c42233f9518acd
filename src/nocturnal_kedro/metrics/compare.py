"""Models side by side: the leaderboard, its intervals over people, its ties, and every pair."""

from __future__ import annotations

from collections.abc import Collection
from statistics import mode
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.metrics.clinical import GRIDS
from nocturnal_kedro.metrics.forecasts import PERSON
from nocturnal_kedro.metrics.scores import LOW_MEASURES, MEASURES, STANDARD, pool
from nocturnal_kedro.metrics.significance import (
    FEWEST_NIGHTS,
    LEVEL,
    apart_from_best,
    bootstrap_means,
    diebold_mariano_z,
    holm,
    interval,
    stouffer_z,
    wilcoxon_p,
    win_rate,
)
from nocturnal_kedro.series.schema import STEPS_PER_HOUR, TEST_SPLITS

RUN = ["model", "seed"]
REFERENCE = "last_value"  # the baseline that skill and win rate are measured against
USUAL = "climatology"  # each person's training nights: what Brier scores are measured against
MANDATORY = (REFERENCE, "subject_mean", "damped_trend", USUAL)
# With fewer people even a model that is better for each of them is no surprise at 5 %: the signed
# ranks of five give 2 / 2^5 = 0.06 at best, of six 0.03. More models to tell apart take more.
FEWEST_TO_TELL_APART = 6


class Comparison(BaseModel, extra="forbid", frozen=True):
    """How the tables are made."""

    resamples: int = Field(default=10_000, ge=100)
    seed: int = 0
    # The same columns again up to here, as `*_6h`, where the horizon is longer than that.
    also_hours: tuple[float, ...] = (6.0,)
    night_loss: Literal["mse", "crps_mg_dl"] = "mse"  # what nights are compared by
    rank_by: Literal["rmse_mg_dl", "crps_mg_dl"] = "rmse_mg_dl"  # and who is tied with the best


def build_leaderboards(
    scores: pd.DataFrame, comparison: Comparison, by_source: bool = False
) -> pd.DataFrame:
    """`build_leaderboard` of all test nights, with a column source, "all"; and of each source's.

    The latter only where it is asked for, and there are several sources.
    """
    tables = [build_leaderboard(scores, comparison).assign(source="all")]
    sources = scores["source"].unique() if by_source else ()
    if len(sources) > 1:
        for source, of_source in scores.groupby("source"):
            if of_source["split"].isin(TEST_SPLITS).any():
                tables.append(build_leaderboard(of_source, comparison).assign(source=source))
    return pd.concat(tables, ignore_index=True)


def build_leaderboard(scores: pd.DataFrame, comparison: Comparison) -> pd.DataFrame:
    """One row per test split and model, best first by `rank_by`.

    Columns (see docs/metrics.md): model, split, nights, subjects, rmse_mg_dl with its 95 %
    interval rmse_low_mg_dl to rmse_high_mg_dl, rmse_pooled_mg_dl, crps_low_mg_dl to
    crps_high_mg_dl, skill_vs_last_value with its interval, win_rate, wql, each of
    `metrics.scores.MEASURES` that was scored but mse, brier_skill_70 and brier_skill_54 against
    climatology, clarke_ab_pct and so on, tied_with_best; and all but the counts again to each of
    `also_hours`. Where a model has several training seeds (a column `seed` of the scores), also
    seeds and rmse_seed_sd_mg_dl. All but `rmse_pooled_mg_dl` are subject-macro: each person counts
    once. The cells of the scores may be finer than a step of a person.
    Raises `InputError` where models were scored on different nights or fitted to different data, or
    a mandatory baseline is absent.
    """
    scores = _with_seed(scores[scores["split"].isin(TEST_SPLITS)])
    require_same_data(scores, ("points", "reference_mg_dl", *STANDARD))
    _require_mandatory(scores["model"].unique())
    cell = ["split", *PERSON, "step"]
    scores = pool(scores, [*cell, *RUN, "nights"])
    require_same_nights(scores.set_index([*cell, *RUN])["points"].unstack(RUN))
    tables = []
    for split, judged in scores.groupby("split"):
        table = _compare(judged, comparison)
        horizon_hours = judged["step"].max() / STEPS_PER_HOUR
        for hours in (hours for hours in comparison.also_hours if hours < horizon_hours):
            part = _compare(judged[judged["step"] <= hours * STEPS_PER_HOUR], comparison)
            counts = [name for name in ("nights", "subjects", "seeds") if name in part]
            table = table.join(part.drop(columns=counts).add_suffix(f"_{hours:g}h"))
        table.insert(0, "split", split)
        table = table.sort_values(comparison.rank_by, kind="stable")
        tables.append(table.reset_index(names="model"))
    return pd.concat(tables, ignore_index=True)


def _compare(scores: pd.DataFrame, comparison: Comparison) -> pd.DataFrame:
    """The table of one split over the steps given; the index is the model."""
    by_person = per_person(scores)
    macro = by_person.groupby("model").mean()
    rmse_MSP = _by_seed(by_person["rmse_mg_dl"].unstack(PERSON))
    rmse_MP = np.nanmean(rmse_MSP, axis=1)
    boot_RM = bootstrap_means(rmse_MSP, comparison.resamples, comparison.seed)
    reference = macro.index.get_loc(REFERENCE)
    low, high = interval(boot_RM)
    skill_low, skill_high = interval(1 - boot_RM / boot_RM[:, [reference]])
    crps_MSP = _by_seed(by_person["crps_mg_dl"].unstack(PERSON))
    crps_RM = bootstrap_means(crps_MSP, comparison.resamples, comparison.seed)
    crps_low, crps_high = interval(crps_RM)
    by_rmse = comparison.rank_by == "rmse_mg_dl"
    judged_RM = boot_RM if by_rmse else crps_RM
    judged_MP = rmse_MP if by_rmse else np.nanmean(crps_MSP, axis=1)

    points = scores.groupby("model")["points"].sum()
    squared = (scores["mse"] * scores["points"]).groupby(scores["model"]).sum()
    nights = scores.groupby(["model", *PERSON])["nights"].max().groupby("model").sum()
    macro_MS = rmse_MSP.mean(axis=2)
    seeds = (~np.isnan(macro_MS)).sum(axis=1)
    of_seeds = {"seeds": seeds, "rmse_seed_sd_mg_dl": pd.DataFrame(macro_MS.T).std().to_numpy()}
    return pd.DataFrame(
        {
            "nights": nights,
            "subjects": rmse_MP.shape[1],
            "rmse_mg_dl": macro["rmse_mg_dl"],
            "rmse_low_mg_dl": low,
            "rmse_high_mg_dl": high,
            "rmse_pooled_mg_dl": np.sqrt(squared / points),
            "crps_low_mg_dl": crps_low,
            "crps_high_mg_dl": crps_high,
            "skill_vs_last_value": 1 - macro["rmse_mg_dl"] / macro["rmse_mg_dl"].iloc[reference],
            "skill_low": skill_low,
            "skill_high": skill_high,
            "win_rate": win_rate(rmse_MP - rmse_MP[reference]),
            "wql": macro["wql"],
            **macro.drop(columns=["mse", "rmse_mg_dl", "wql"]),
            **{
                name.replace("brier", "brier_skill"): 1 - macro[name] / macro.loc[USUAL, name]
                for name in LOW_MEASURES
                if name in macro
            },
            **{
                f"{grid}_ab_pct": macro[f"{grid}_a_pct"] + macro[f"{grid}_b_pct"]
                for grid in GRIDS
                if f"{grid}_a_pct" in macro
            },
            "tied_with_best": ~apart_from_best(judged_MP, judged_RM),
            **(of_seeds if seeds.max() > 1 else {}),
        },
        index=macro.index,
    )


def per_person(scores: pd.DataFrame) -> pd.DataFrame:
    """Each person's metrics over all cells given, by model, seed, source and subject.

    rmse_mg_dl = sqrt(sum points * mse / sum points), wql = sum points * crps_mg_dl / sum of the
    readings; the others are means over points.
    """
    keys = [*RUN, *PERSON]
    means = pool(_with_seed(scores), keys).set_index(keys)
    means["wql"] = means["crps_mg_dl"] / means["reference_mg_dl"]
    return means.drop(columns=["points", "reference_mg_dl"])


def compare_pairs(night_scores: pd.DataFrame, comparison: Comparison) -> pd.DataFrame:
    """One row per test split and pair of models, those of the best first.

    `night_scores` has one row per model and night: model, split, source, subject, origin, points,
    mse, crps_mg_dl, data, and seed where there are several. Columns (see docs/metrics.md): split,
    first, second, people, nights, rmse_difference_mg_dl (the first's less the second's,
    subject-macro) with its 95 % interval, win_rate of the first, wilcoxon_p, wilcoxon_holm_p, dm_z,
    dm_p, dm_holm_p, dm_left_out (people with too few nights for it; where anybody has two origins
    in one night, everybody), apart.
    Raises `InputError` where models were scored on different nights or fitted to different data.
    """
    nights = _with_seed(night_scores[night_scores["split"].isin(TEST_SPLITS)])
    require_same_data(nights, ("points", "mse", "crps_mg_dl"))
    wide = nights.pivot(
        index=["split", *PERSON, "origin"],
        columns=RUN,
        values=list(dict.fromkeys(["points", "mse", comparison.night_loss])),
    )
    require_same_nights(wide["points"])
    tables = []
    for split, judged in wide.groupby(level="split"):
        table = _pairs(judged.droplevel("split"), comparison)
        table.insert(0, "split", split)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _pairs(nights: pd.DataFrame, comparison: Comparison) -> pd.DataFrame:
    """The pairs of one split, from points, mse and loss of every night by model and seed."""
    from scipy.stats import norm

    person_N = nights.groupby(level=PERSON).ngroup().to_numpy()
    starts_P = np.flatnonzero(np.diff(person_N, prepend=-1))
    points_N1 = nights["points"].iloc[:, :1].to_numpy()
    squared = np.add.reduceat(nights["mse"].to_numpy() * points_N1, starts_P)
    rmse = np.sqrt(squared / np.add.reduceat(points_N1, starts_P))
    rmse_MSP = _by_seed(pd.DataFrame(rmse.T, index=nights["mse"].columns))
    by_rmse = np.argsort(np.nanmean(rmse_MSP, axis=1).mean(axis=1), kind="stable")
    models = nights["mse"].columns.unique("model").sort_values()[by_rmse]
    rmse_MSP = rmse_MSP[by_rmse]
    boot_RM = bootstrap_means(rmse_MSP, comparison.resamples, comparison.seed)
    first, second = np.triu_indices(len(models), 1)
    low, high = interval(boot_RM[:, first] - boot_RM[:, second])
    rmse_MP = np.nanmean(rmse_MSP, axis=1)
    difference_KP = rmse_MP[first] - rmse_MP[second]
    p = wilcoxon_p(difference_KP)

    nights_P = np.diff(starts_P, append=len(person_N))
    day_N = night_numbers(nights.index.get_level_values("origin"))
    # Of overlapping horizons the losses hang together by more than a lag of one night can tell.
    overlap = (np.diff(person_N) == 0) & (np.diff(day_N) == 0)
    enough_P = (nights_P >= FEWEST_NIGHTS) & (not overlap.any())
    enough_N = np.repeat(enough_P, nights_P)
    loss_MN = np.nanmean(_by_seed(nights[comparison.night_loss].T), axis=1)[by_rmse][:, enough_N]
    dm_z = np.array(
        [
            stouffer_z(
                diebold_mariano_z(
                    loss_MN[one] - loss_MN[other], person_N[enough_N], day_N[enough_N]
                ),
                nights_P[enough_P],
            )
            for one, other in zip(first, second, strict=True)
        ]
    )
    dm_p = 2 * norm.sf(np.abs(dm_z))
    wilcoxon_holm_p = holm(p)
    return pd.DataFrame(
        {
            "first": models[first],
            "second": models[second],
            "people": len(nights_P),
            "nights": len(nights),
            "rmse_difference_mg_dl": difference_KP.mean(axis=1),
            "rmse_difference_low_mg_dl": low,
            "rmse_difference_high_mg_dl": high,
            "win_rate": win_rate(difference_KP),
            "wilcoxon_p": p,
            "wilcoxon_holm_p": wilcoxon_holm_p,
            "dm_z": dm_z,
            "dm_p": dm_p,
            "dm_holm_p": holm(dm_p),
            "dm_left_out": int((~enough_P).sum()),
            "apart": ((low > 0) | (high < 0)) & (wilcoxon_holm_p < LEVEL),
        }
    )


def night_numbers(origins: pd.DatetimeIndex) -> np.ndarray:
    """The night that each origin is of, from noon to noon, in days since 1970 (int64).

    A bedtime at 22:00 and the next, at 00:10, are 26 hours apart and of nights one after the other.
    """
    noon = origins.as_unit("ns").asi8 + pd.Timedelta(hours=12).value
    return np.asarray(noon // pd.Timedelta(days=1).value)


def _with_seed(scores: pd.DataFrame) -> pd.DataFrame:
    """Scores that say no training seed are of one, 0."""
    if "seed" in scores and scores["seed"].notna().all():
        return scores
    return scores.assign(seed=scores["seed"].fillna(0) if "seed" in scores else 0)


def _by_seed(values: pd.DataFrame) -> np.ndarray:
    """Rows by model and seed as (M, S, P), models and seeds in order; NaN for no such seed."""
    models, seeds = (values.index.unique(name).sort_values() for name in RUN)
    every = values.reindex(pd.MultiIndex.from_product([models, seeds]))
    return every.to_numpy().reshape(len(models), len(seeds), -1)


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


def require_same_data(scores: pd.DataFrame, measures: tuple[str, ...]) -> None:
    """Raise `InputError` unless the measures are whole, and all models fitted to the same data."""
    lacking = [name for name in ("data", *measures) if name not in scores]
    judged = [name for name in scores if name in ("data", *measures, *MEASURES)]
    if lacking or scores[judged].isna().any().any():
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


def _require_mandatory(models: Collection[str]) -> None:
    missing = [name for name in MANDATORY if name not in models]
    if missing:
        raise InputError(
            f"{', '.join(missing)} was not scored, and every table carries {', '.join(MANDATORY)}; "
            f"scored: {', '.join(models)}. Run training and evaluation for every baseline."
        )


def require_same_nights(points: pd.DataFrame) -> None:
    """Raise `InputError` unless all models were scored at the same points.

    `points` are rows by night or cell and columns by model and seed, NaN where not scored.
    """
    of_runs = {run: points[run].to_numpy(float).tobytes() for run in points}
    usual = mode(of_runs.values())
    odd = list(dict.fromkeys(str(model) for (model, _), own in of_runs.items() if own != usual))
    if odd:
        raise InputError(
            f"{', '.join(odd)} was scored on other nights than the rest. Run evaluation again for "
            f"every model on the same origins."
        )
