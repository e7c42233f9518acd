"""Where a model errs: the same scores by hour, glucose, weekday, source and group of people."""

from __future__ import annotations

import numpy as np
import pandas as pd

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.metrics.compare import Comparison
from nocturnal_kedro.metrics.forecasts import PERSON
from nocturnal_kedro.metrics.scores import LOW_TAIL, MEASURES, SHARES, pool
from nocturnal_kedro.metrics.significance import bootstrap_means
from nocturnal_kedro.series.schema import STEPS_PER_HOUR, TEST_SPLITS

# What a row of the table tells, where the evaluation has it; each a mean over people.
TOLD = (
    "rmse_mg_dl",
    "mae_mg_dl",
    "bias_mg_dl",
    "crps_mg_dl",
    "coverage_80_pct",
    "under_q0.05_pct",
)
AVERAGED = ("mse", *TOLD[1:])
GROUPS = ("sensor", "insulin", "median glucose")
HIGH_MEDIAN_MG_DL = 154.0  # an estimated HbA1c of 7 % (Nathan et al. 2008, Diabetes Care 31:1473)


def break_down(
    scores: pd.DataFrame,
    night_scores: pd.DataFrame,
    quality: pd.DataFrame,
    comparison: Comparison,
) -> pd.DataFrame:
    """One row per test split, model, dimension and value: split, model, by, value, people, points,
    each of TOLD, and the 95 % interval over people of the RMSE.

    `by` is hours ahead, clock hour, glucose band (of the reading: what came of it is not known
    when the forecast is made, so that extremes are always forecast too near the middle), weekday
    (of the origin), source, or one of the groups of people of `group_people`.
    """
    cells, nights = (
        table.loc[
            table["split"].isin(TEST_SPLITS),
            [name for name in table if name not in MEASURES or name in AVERAGED],
        ]
        for table in (scores, night_scores)
    )
    people = pool(cells, ["split", "model", *PERSON])
    people = people.merge(group_people(quality), on=PERSON, how="left", validate="many_to_one")
    unknown = people[people["sensor"].isna()]
    if len(unknown):
        first = unknown.iloc[0]
        raise InputError(
            f"nothing is known of the record of subject '{first['subject']}' (source "
            f"'{first['source']}'), who was scored: quality and scores are of different runs. Run "
            f"data_processing and evaluation again."
        )
    ahead = (cells["step"] - 1) // STEPS_PER_HOUR
    tables = {
        "hours ahead": cells.assign(value=ahead.map({h: f"{h + 1:02d}" for h in ahead.unique()})),
        "clock hour": cells.assign(
            value=cells["hour"].map({h: f"{h:02d}:00" for h in cells["hour"].unique()})
        ),
        "glucose band": cells.assign(value=cells["band"]),
        "weekday": nights.assign(value=nights["origin"].dt.strftime("%u %A")),
        **{by: people.assign(value=people[by]) for by in ("source", *GROUPS)},
    }
    broken = []
    for name, table in tables.items():
        of_values = _by_value(table, comparison)
        of_values.insert(2, "by", name)
        broken.append(of_values)
    return pd.concat(broken, ignore_index=True)


def summarise_levels(level_scores: pd.DataFrame, comparison: Comparison) -> pd.DataFrame:
    """How often readings lie at or under each quantile, everybody counting once.

    `level_scores` as of `scores.score_levels`, with a column model. Columns: split, model,
    quantiles ("calibrated", or "raw": as the model gave them), level, people, under_pct (nominal
    is 100 x level) with its 95 % interval over people, under_low_pct to under_high_pct.
    """
    tested = level_scores[level_scores["split"].isin(TEST_SPLITS)]
    tables = []
    for split, of_split in tested.groupby("split"):
        wide = of_split.pivot(
            index=["model", "quantiles", "level"], columns=PERSON, values="under_pct"
        )
        boot = bootstrap_means(wide.to_numpy(), comparison.resamples, comparison.seed)
        low, high = np.quantile(boot, [0.025, 0.975], axis=0)
        table = pd.DataFrame(
            {
                "people": wide.shape[1],
                "under_pct": wide.mean(axis=1),
                "under_low_pct": low,
                "under_high_pct": high,
            }
        ).reset_index()
        table.insert(0, "split", split)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def summarise_bands(level_scores: pd.DataFrame, comparison: Comparison) -> pd.DataFrame:
    """What central intervals and the low tail held, before and after calibration.

    `level_scores` as above. Columns: split, model, quantiles, people; held_50_pct … held_98_pct of
    the central intervals, under_1_pct, under_5_pct and under_10_pct of the low tail, and error_pct,
    the mean distance of all levels from what they held, of the mean over people; all but the last
    with their 95 % intervals over people, as held_80_low_pct and so on.
    """
    tested = level_scores[level_scores["split"].isin(TEST_SPLITS)]
    wide = tested.pivot(
        index=["split", "model", "quantiles", *PERSON], columns="level", values="under_pct"
    )
    held = pd.DataFrame(
        {
            **{f"held_{100 * share:.0f}": _between(wide, share) for share in SHARES},
            **{f"under_{100 * level:.0f}": wide[level] for level in LOW_TAIL},
        }
    )
    rows = []
    for key, of_people in held.groupby(["split", "model", "quantiles"]):
        boot = bootstrap_means(of_people.to_numpy().T, comparison.resamples, comparison.seed)
        low, high = np.quantile(boot, [0.025, 0.975], axis=0)
        row = dict(zip(("split", "model", "quantiles"), key, strict=True))
        row["people"] = len(of_people)
        for number, name in enumerate(of_people):
            row[f"{name}_pct"] = of_people[name].mean()
            row[f"{name}_low_pct"], row[f"{name}_high_pct"] = low[number], high[number]
        mean_Q = wide.loc[key].mean()
        row["error_pct"] = float(np.abs(mean_Q - 100 * mean_Q.index).mean())
        rows.append(row)
    return pd.DataFrame(rows)


def _between(wide: pd.DataFrame, share: float) -> pd.Series:
    low, high = (
        wide.columns[np.isclose(wide.columns, (1 + sign * share) / 2)][0] for sign in (-1, 1)
    )
    return wide[high] - wide[low]


def group_people(quality: pd.DataFrame) -> pd.DataFrame:
    """Of each person: source, subject, sensor (minutes between readings), insulin (whether it is
    on record) and median glucose (below, or from, that of an HbA1c of 7 %)."""
    high = quality["median_mg_dl"] >= HIGH_MEDIAN_MG_DL
    edge = f"{HIGH_MEDIAN_MG_DL:.0f} mg/dL"
    return pd.DataFrame(
        {
            **{name: quality[name] for name in PERSON},
            "sensor": quality["sampling_minutes"].map("every {:.0f} min".format),
            "insulin": np.where(quality["daily_dose_u"].notna(), "on record", "not on record"),
            "median glucose": np.where(high, f"from {edge}", f"below {edge}"),
        }
    )


def _by_value(cells: pd.DataFrame, comparison: Comparison) -> pd.DataFrame:
    people = pool(cells, ["split", "value", "model", *PERSON])
    told = [name for name in TOLD if name in people]
    rows = []
    for (split, value), group in people.groupby(["split", "value"]):
        rmse_MP = group.pivot(index="model", columns=PERSON, values="rmse_mg_dl")
        boot_RM = bootstrap_means(rmse_MP.to_numpy(), comparison.resamples, comparison.seed)
        low_M, high_M = np.quantile(boot_RM, [0.025, 0.975], axis=0)
        table = group.groupby("model")[told].mean()
        table.insert(0, "people", rmse_MP.shape[1])
        table.insert(1, "points", group.groupby("model")["points"].sum())
        table["rmse_low_mg_dl"], table["rmse_high_mg_dl"] = low_M, high_M
        table.insert(0, "split", split)
        table.insert(1, "value", value)
        rows.append(table.reset_index())
    return pd.concat(rows, ignore_index=True)[
        ["split", "model", "value", *(c for c in rows[0] if c not in ("split", "model", "value"))]
    ]
