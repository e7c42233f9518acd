"""All experiments in one table: what validation says of every model, with its tests beside it.

Shapes: R resamples, M rows that are ranked together, S training seeds, P people.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel

from nocturnal_kedro.errors import InputError, require_known
from nocturnal_kedro.metrics.compare import FEWEST_TO_TELL_APART, Comparison
from nocturnal_kedro.metrics.forecasts import PERSON
from nocturnal_kedro.metrics.significance import apart_from_best, bootstrap_means, interval
from nocturnal_kedro.series.schema import TEST_SPLITS, Words

METRICS = ("rmse_mg_dl", "mae_mg_dl", "crps_mg_dl")
# Of each person, as `build_overview` takes them; `scored_on` is the same number where the nights
# and their readings are the same.
COLUMNS = (
    "experiment", "model", "cell", "seed", "data", "version", "split", *PERSON, "nights", "points",
    "scored_on", *METRICS,
)  # fmt: skip
ROW = ["model", "cell", "version"]
SEVERAL = "several"  # as the data of a cell whose people were tested on data of their own
RANKED_BY = "validation"
COUNTS = [f"{RANKED_BY}_nights", f"{RANKED_BY}_people"]
TOO_FEW = "too few to tell apart"
SHOWN_DIGITS = 12  # of a fingerprint
SHOWN_ROWS = 12  # of each data on the screen


class Overview(BaseModel, extra="forbid", frozen=True):
    """What of all saved scores is shown, and by what it is ranked; nothing named is everything."""

    experiments: Words = ()
    models: Words = ()
    sources: Words = ()
    data: Words = ()  # the first digits of fingerprints
    versions: Literal["newest", "all"] = "newest"  # of each model, on the data chosen
    metric: Literal["rmse_mg_dl", "mae_mg_dl", "crps_mg_dl"] = "rmse_mg_dl"


def build_overview(saved: pd.DataFrame, options: Overview, comparison: Comparison) -> pd.DataFrame:
    """One row per experiment, data, source, model, cell and version, in order of validation.

    `saved` has a row of COLUMNS for each person. Columns: experiment, data, source ("all", and
    each), model, cell ("" outside sweeps), version, seeds; rank, ranked_among, chosen and
    tied_on_validation among the rows of the same experiment, data, source and validation nights
    (in a sweep, where data is what is varied, of the same version instead of data); note; and of
    validation, patient and temporal, as validation_people: people, nights, the metric with its 95 %
    interval over people and seeds, low_mg_dl to high_mg_dl. The metric is subject-macro: each
    person counts once. Tests are beside it to be read: nothing is ranked by them. Tied is what not
    both the interval of the difference from the chosen and the signed ranks, with Holm's
    correction, tell from it, as in `compare`.
    Raises `InputError` on an unknown name, and where nothing is of all that is named.
    """
    shown = select(saved, options)
    tables = []
    for (experiment, _), rows in shown.groupby(["experiment", _ranked_in(shown)]):
        sources = rows["source"].unique()
        whole = _table(rows, options.metric, comparison)
        tables.append(whole.assign(experiment=experiment, source="all"))
        for source in sorted(sources):
            own = rows[rows["source"] == source]
            table = whole if len(sources) == 1 else _table(own, options.metric, comparison)
            tables.append(table.assign(experiment=experiment, source=source))
    overview = pd.concat(tables, ignore_index=True)
    first = ["experiment", "data", "source"]
    return overview[[*first, *(name for name in overview if name not in first)]]


def select(saved: pd.DataFrame, options: Overview) -> pd.DataFrame:
    """What is named by the options; of versions the newest of what is named."""
    kept = saved
    for column, names in (
        ("experiment", options.experiments),
        ("model", options.models),
        ("source", options.sources),
    ):
        for name in names:
            require_known(f"{column} in overview.{column}s", name, saved[column].unique())
        kept = kept[kept[column].isin(names)] if names else kept
    fingerprints = saved["data"].unique()
    for digits in options.data:
        if not any(data.startswith(digits) for data in fingerprints):
            known = (data[:SHOWN_DIGITS] for data in fingerprints)
            require_known("data in overview.data", digits, known)
    if options.data:
        kept = kept[kept["data"].str.startswith(options.data)]
    if kept.empty:
        given = options.model_dump(include={"experiments", "models", "sources", "data"})
        told = ", ".join(f"{name}={' '.join(value)}" for name, value in given.items() if value)
        raise InputError(
            f"each is there, but no saved scores are of all of {told}. Name fewer in 'overview'."
        )
    return newest(kept) if options.versions == "newest" else kept


def newest(people: pd.DataFrame) -> pd.DataFrame:
    """The newest version of each model of an experiment, and of each sweep as a whole.

    Seeds and cells of one run have one version: those that a later run left out are not of it.
    """
    together = ["experiment", people["model"].where(people["cell"] == "", "")]
    return people[people["version"] == people.groupby(together)["version"].transform("max")]


def _ranked_in(rows: pd.DataFrame) -> pd.Series:
    """Within which rows of an experiment are ranked: their data, and in a sweep their version."""
    return rows["data"].where(rows["cell"] == "", "version " + rows["version"])


def _table(people: pd.DataFrame, metric: str, comparison: Comparison) -> pd.DataFrame:
    """The rows of one experiment, data and source, those best on validation first."""
    table = people.groupby(ROW).agg(data=("data", "first"), seeds=("seed", "nunique"))
    _rank(table, people[people["split"] == RANKED_BY], metric, comparison)
    for split in (RANKED_BY, *TEST_SPLITS):
        judged = _judge(people[people["split"] == split], metric, comparison)
        table = table.join(judged.add_prefix(f"{split}_"))
        counts = [f"{split}_people", f"{split}_nights"]
        table[counts] = table[counts].fillna(0).astype(int)
    return table.reset_index().sort_values(["rank", *ROW], ignore_index=True)


def _rank(
    table: pd.DataFrame, validation: pd.DataFrame, metric: str, comparison: Comparison
) -> None:
    """Add each row's standing among those of the very same nights: 1 is best, equals share it."""
    from scipy.stats import rankdata

    table["rank"] = pd.array([pd.NA] * len(table), dtype="Int64")
    table["ranked_among"], table["chosen"], table["tied_on_validation"] = 0, False, False
    table["note"] = "no validation nights: not ranked"
    groups = list(_same_nights(validation, metric))
    for rows, values_MSP in groups:
        values_MP = np.nanmean(values_MSP, axis=1)
        rank_M = rankdata(values_MP.mean(axis=1), method="min").astype(int)
        boot_RM = bootstrap_means(values_MSP, comparison.resamples, comparison.seed)
        people = values_MP.shape[1]
        notes = (
            f"validation of {people} people: {TOO_FEW}" * (people < FEWEST_TO_TELL_APART),
            "ranked apart from rows of other validation nights" * (len(groups) > 1),
        )
        table.loc[rows, "rank"] = rank_M
        table.loc[rows, "ranked_among"] = len(rows)
        table.loc[rows, "chosen"] = rank_M == 1
        table.loc[rows, "tied_on_validation"] = ~apart_from_best(values_MP, boot_RM)
        table.loc[rows, "note"] = "; ".join(filter(None, notes))


def _judge(people: pd.DataFrame, metric: str, comparison: Comparison) -> pd.DataFrame:
    """People, nights and the metric with its interval, by row, of one split."""
    columns = ["people", "nights", metric, "low_mg_dl", "high_mg_dl"]
    nights = people.groupby([*ROW, "seed"])["nights"].sum().groupby(ROW).max()
    table = pd.DataFrame(columns=columns, index=nights.index, dtype=float)
    for rows, values_MSP in _same_nights(people, metric):
        boot_RM = bootstrap_means(values_MSP, comparison.resamples, comparison.seed)
        table.loc[rows, "people"] = values_MSP.shape[2]
        table.loc[rows, metric] = np.nanmean(values_MSP, axis=1).mean(axis=1)
        table.loc[rows, ["low_mg_dl", "high_mg_dl"]] = np.transpose(interval(boot_RM))
    return table.assign(nights=nights)


def _same_nights(people: pd.DataFrame, metric: str) -> Iterator[tuple[pd.MultiIndex, np.ndarray]]:
    """Rows that were scored on the same nights of the same people, and their values, (M, S, P).

    Values are NaN for a seed that a row does not have. Raises `InputError` where the seeds of a row
    were scored on different nights.
    """
    if people.empty:
        return
    run = [*ROW, "seed"]
    wide = people.pivot(index=run, columns=PERSON, values=metric).sort_index()
    scored_on = people.pivot(index=run, columns=PERSON, values="scored_on").sort_index()
    of_runs = scored_on.fillna(-1).to_numpy(float)
    by_row = pd.Series([own.tobytes() for own in of_runs], index=wide.index).groupby(ROW)
    for (model, cell, version), count in by_row.nunique().items():
        if count > 1:
            raise InputError(
                f"the training seeds of {' '.join(filter(None, (model, cell)))} (version "
                f"{version}) were scored on different nights. Run its evaluation again for every "
                f"seed, or leave it out by overview.models or overview.experiments."
            )
    nights_of = by_row.first()
    for _, alike in nights_of.groupby(nights_of, sort=False):
        rows = alike.index
        seeds = people["seed"].sort_values().unique()
        every = [(*row, seed) for row in rows for seed in seeds]
        own = wide.reindex(every).dropna(axis="columns", how="all")
        yield rows, own.to_numpy(float).reshape(len(rows), len(seeds), -1)


def tell_overview(overview: pd.DataFrame) -> str:
    """The rows of all sources in lines of text: validation, standing, and tests to be read."""
    metric = next(name for name in METRICS if f"{RANKED_BY}_{name}" in overview)
    whole = overview[overview["source"] == "all"].fillna({"cell": "", "note": ""})
    lines = []
    for (experiment, ranked_in), rows in whole.groupby(["experiment", _ranked_in(whole)]):
        within = ranked_in if rows["cell"].any() else f"data {ranked_in[:SHOWN_DIGITS]}"
        kind = metric.removesuffix("_mg_dl").upper()
        counts = rows.loc[rows["rank"].notna(), COUNTS].drop_duplicates().to_numpy()
        on = f", ranked on {counts[0, 0]} nights of {counts[0, 1]} people" * (len(counts) == 1)
        lines += [f"{experiment}, {within}: {kind} in mg/dL{on}"]
        lines += _tell_rows(rows, metric)
        lines += [*sorted(set(rows["note"]) - {""}), ""]
    return "\n".join([*lines, "Ranked by validation alone; tests stand beside it to be read.", ""])


def _tell_rows(rows: pd.DataFrame, metric: str) -> list[str]:
    several = rows.duplicated(["model", "cell"], keep=False)
    names = rows["model"] + ("  " + rows["cell"]).where(rows["cell"] != "", "")
    names += ("  " + rows["version"]).where(several, "")
    width = max(18, names.str.len().max() + 2)
    heads = "".join(f"{split:>11}" for split in TEST_SPLITS)
    lines = [f"{'':<{width}}{RANKED_BY:>11}{'95 % interval':>18}{heads}"]
    shown = rows.iloc[:SHOWN_ROWS].to_dict("records")
    for name, row in zip(names, shown, strict=False):
        low, high = (_shown(row[f"{RANKED_BY}_{end}_mg_dl"]) for end in ("low", "high"))
        tests = "".join(f"{_shown(row[f'{split}_{metric}']):>11}" for split in TEST_SPLITS)
        told = row["tied_on_validation"] and TOO_FEW not in row["note"]
        standing = "  best" if row["chosen"] else "  tied with the best" * told
        value = _shown(row[f"{RANKED_BY}_{metric}"])
        lines.append(f"{name:<{width}}{value:>11}{f'{low} to {high}':>18}{tests}{standing}")
    hidden = len(rows) - len(shown)
    return [*lines, *([f"and {hidden} more"] if hidden else [])]


def _shown(value: float) -> str:
    return "-" if pd.isna(value) else f"{value:.1f}"
