"""What a sweep comes to: every cell, and how it differs from the one it is compared with.

Shapes: C cells, S seeds, N nights, P people, K pairs of cells, R resamples.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from nocturnal_kedro.errors import InputError, require_known
from nocturnal_kedro.metrics.compare import (
    REFERENCE,
    Comparison,
    require_same_data,
)
from nocturnal_kedro.metrics.events import auroc, count, resampled_auroc
from nocturnal_kedro.metrics.forecasts import NIGHT, PERSON
from nocturnal_kedro.metrics.scores import pool
from nocturnal_kedro.metrics.significance import (
    LEVEL,
    bootstrap_means,
    draw_people,
    holm,
    interval,
    wilcoxon_p,
    win_rate,
)
from nocturnal_kedro.series.schema import TEST_SPLITS

OWN_GROUP = "<group>"  # as what a cell is compared with: the cell named like the group of nights
EVERY_NIGHT = "all"  # the group that is always there
BASELINES = "baselines"  # the question whose cells are the baselines, each named like its model
CELL = ["question", "cell", "model"]
FORETOLD = ("low_probability", "low_happened")  # of the night; not every sweep has them
AVERAGED = ("mse", "mae_mg_dl", "bias_mg_dl", "crps_mg_dl", "coverage_80_pct")


@dataclass(frozen=True)
class Tested:
    """What was scored in one split: nights stand person after person."""

    nights: pd.DataFrame  # N rows: source, subject, origin
    points_N: np.ndarray
    measures: dict[str, np.ndarray]  # of AVERAGED, (C, S, N); NaN where not scored
    unseeded_C: np.ndarray  # what no training seed changes: it is compared with all seeds

    @property
    def scored(self) -> np.ndarray:
        """The nights of each cell, which are those of each of its seeds, (C, N)."""
        return ~np.isnan(self.measures["mse"]).all(axis=1)

    @property
    def trained(self) -> np.ndarray:
        """The seeds of each cell, (C, S)."""
        return ~np.isnan(self.measures["mse"]).all(axis=2)


def summarise(
    night_scores: pd.DataFrame, groups: pd.DataFrame, comparison: Comparison
) -> pd.DataFrame:
    """One row per test split, group of nights, question, cell and model, in order of appearance.

    `night_scores` has one row per question, cell, model, seed (NaN where none matters) and night:
    also number (the cell's place on an axis, or NaN), against (the cell it is compared with, "" or
    OWN_GROUP), split, source, subject, origin and what `scores.score_points` tells of the night.
    `groups` (group, source, subject, origin) says which nights make a table beside that of all.
    Columns: split, group, question, cell, model, number, against, people, nights, seeds;
    rmse_mg_dl, mae_mg_dl, bias_mg_dl, crps_mg_dl and coverage_80_pct, subject-macro and over seeds,
    with 95 % intervals rmse_low_mg_dl, crps_high_mg_dl and so on; skill_vs_last_value with
    skill_low to skill_high. Then, of people, nights and seeds that both cells have (paired_people,
    paired_nights, paired_seeds): difference_mg_dl of the RMSE, the cell's less that of against, and
    crps_difference_mg_dl, with intervals difference_low_mg_dl and so on; win_rate of the cell,
    wilcoxon_p, wilcoxon_holm_p (over all of a question), apart. NaN where nothing is in common.
    Where `night_scores` has low_probability and low_happened also lows (nights with one), auroc
    with auroc_low to auroc_high, and auroc_difference with its interval.
    Raises `InputError` where a cell to compare with is absent, or cells were scored on different
    readings of a night.
    """
    scores = _tested(night_scores)
    cells = scores.drop_duplicates(CELL)[[*CELL, "number", "against"]].reset_index(drop=True)
    cell_X = scores.groupby(CELL, sort=False, observed=True).ngroup().to_numpy()
    _require_opponents(cells, groups)
    tables = []
    for split in TEST_SPLITS:
        within_X = (scores["split"] == split).to_numpy()
        if not within_X.any():
            continue
        tested = _lay_out(scores[within_X], cell_X[within_X], cells)
        for group, of_group in _by_group(tested, groups):
            table = _tabulate(of_group, cells, _opponents(cells, group), comparison)
            table.insert(0, "split", split)
            table.insert(1, "group", group)
            tables.append(table)
    return pd.concat(tables, ignore_index=True)


def by_person(night_scores: pd.DataFrame) -> pd.DataFrame:
    """Each person's errors over their test nights, by cell, model and seed.

    Columns: split, source, subject, question, cell, number, model, seed, nights, rmse_mg_dl,
    crps_mg_dl; cells in order of appearance.
    """
    scores = _tested(night_scores)
    run = [*CELL, "number", "seed"]
    runs = scores[run].drop_duplicates().reset_index(drop=True)
    key = ["run", "split", *PERSON]
    nights = scores[["split", *PERSON, "points", "mse", "crps_mg_dl"]].assign(
        run=scores.groupby(run, sort=False, dropna=False, observed=True).ngroup()
    )
    people = pool(nights, key).merge(nights.groupby(key).size().rename("nights"), on=key)
    people = people.join(runs, on="run")
    names = ["question", "cell", "number", "model", "seed", "nights", "rmse_mg_dl", "crps_mg_dl"]
    return people[["split", *PERSON, *names]]


def _tested(night_scores: pd.DataFrame) -> pd.DataFrame:
    """The scores of test nights, with every measure that is told of."""
    scores = night_scores[night_scores["split"].isin(TEST_SPLITS)]
    if scores.empty:
        raise InputError(
            f"no test night was scored; splits: {', '.join(night_scores['split'].unique())}. Give "
            f"splits a share of people or nights to test on, and run the sweep again."
        )
    required = ("points", "reference_mg_dl", *AVERAGED)
    measured = [name for name in required if name in scores]
    # Cells of a sweep are fitted to different data on purpose; their nights are looked at below.
    require_same_data(scores[[*measured, "model"]].assign(data=""), required)
    return scores


def _require_opponents(cells: pd.DataFrame, groups: pd.DataFrame) -> None:
    """Raise `InputError` unless there is what cells are compared with."""
    baselines = cells.loc[cells["question"] == BASELINES, "cell"]
    if REFERENCE not in set(baselines):
        raise InputError(
            f"the sweep has no {REFERENCE}, which every cell's skill is measured against; "
            f"baselines: {', '.join(baselines) or 'none'}. Score it on the same nights."
        )
    for cell in cells[~cells["against"].isin(["", OWN_GROUP])].itertuples():
        what = f"cell (with which '{cell.cell}' of '{cell.question}' is compared)"
        require_known(what, cell.against, cells["cell"].unique())
    named = [EVERY_NIGHT, *groups["group"].unique()]
    if (cells["against"] == OWN_GROUP).any() and not cells["cell"].isin(named).any():
        raise InputError(
            f"cells are compared with the one named like the group of nights, and none is; "
            f"groups: {', '.join(named)}; cells: {', '.join(cells['cell'].unique())}."
        )


def _opponents(cells: pd.DataFrame, group: str) -> np.ndarray:
    """The place of the cell that each is compared with, (C,); -1 where with none.

    It is of the same model, or a baseline; of several of its name that of the same question.
    """
    opponent_C = np.full(len(cells), -1)
    for place, cell in enumerate(cells.itertuples()):
        name = group if cell.against == OWN_GROUP else cell.against
        alike = cells[cells["cell"] == name]
        if alike.empty:
            continue
        fitting = alike[(alike["model"] == cell.model) | (alike["question"] == BASELINES)]
        if fitting.empty:
            raise InputError(
                f"'{cell.cell}' of '{cell.question}' is compared with '{name}', which was not "
                f"scored with model '{cell.model}', only with {', '.join(alike['model'])}. Run the "
                f"sweep to its end."
            )
        same_question = fitting["question"] == cell.question
        chosen = fitting[same_question] if same_question.any() else fitting
        opponent_C[place] = -1 if place in chosen.index else chosen.index[0]
    return opponent_C


def _lay_out(scores: pd.DataFrame, cell_X: np.ndarray, cells: pd.DataFrame) -> Tested:
    """The scores of one split as arrays."""
    night_X = scores.groupby(NIGHT, observed=True).ngroup().to_numpy()
    _, first_N = np.unique(night_X, return_index=True)
    _require_same_readings(scores, night_X, first_N)
    seed_X, seeds = pd.factorize(scores["seed"], sort=True)
    shape = len(cells), max(len(seeds), 1), len(first_N)
    at_X = np.ravel_multi_index((cell_X, np.maximum(seed_X, 0), night_X), shape)
    if len(np.unique(at_X)) < len(at_X):
        twice = scores.iloc[np.flatnonzero(pd.Series(at_X).duplicated())[0]]
        raise InputError(
            f"'{twice['cell']}' of '{twice['question']}' ({twice['model']}) was scored twice on "
            f"the night of subject '{twice['subject']}', {twice['origin']}. Name cells of a "
            f"question differently."
        )
    measures = {name: np.full(shape, np.nan) for name in AVERAGED}
    measures |= {name: np.full(shape, np.nan) for name in FORETOLD if name in scores}
    for name, values_CSN in measures.items():
        values_CSN.flat[at_X] = scores[name].to_numpy(np.float64)
    tested = Tested(
        nights=scores[NIGHT].iloc[first_N].reset_index(drop=True),
        points_N=scores["points"].to_numpy(np.float64)[first_N],
        measures=measures,
        unseeded_C=(cells["question"] == BASELINES).to_numpy()
        | ~np.isin(np.arange(len(cells)), cell_X[seed_X >= 0]),
    )
    lost_CSN = np.isnan(measures["mse"]) & tested.scored[:, None] & tested.trained[..., None]
    if lost_CSN.any():
        cell = cells.iloc[np.argwhere(lost_CSN)[0][0]]
        raise InputError(
            f"'{cell['cell']}' of '{cell['question']}' ({cell['model']}) was scored on other "
            f"nights with one seed than with another. Run it again with every seed."
        )
    return tested


def _require_same_readings(scores: pd.DataFrame, night_X: np.ndarray, first_N: np.ndarray) -> None:
    """Raise `InputError` unless every cell was scored by the same readings of a night."""
    for name in ("points", "reference_mg_dl"):
        value_X = scores[name].to_numpy(np.float64)
        other_X = ~np.isclose(value_X, value_X[first_N][night_X], rtol=1e-6, atol=0)
        if other_X.any():
            place = np.flatnonzero(other_X)[0]
            odd, usual = scores.iloc[place], scores.iloc[first_N[night_X[place]]]
            raise InputError(
                f"'{odd['cell']}' of '{odd['question']}' was scored by other readings than "
                f"'{usual['cell']}' of '{usual['question']}': {name} of the night of subject "
                f"'{odd['subject']}', {odd['origin']}, is {odd[name]:g}, not {usual[name]:g}. Test "
                f"every cell on one frozen table of origins and one corpus."
            )


def _by_group(tested: Tested, groups: pd.DataFrame) -> Iterator[tuple[str, Tested]]:
    """All nights, then those of each group that has some."""
    yield EVERY_NIGHT, tested
    night_N = pd.MultiIndex.from_frame(tested.nights)
    for group, members in groups.groupby("group", sort=False, observed=True):
        within_N = night_N.isin(pd.MultiIndex.from_frame(members[NIGHT]))
        if within_N.any():
            yield (
                str(group),
                replace(
                    tested,
                    nights=tested.nights[within_N],
                    points_N=tested.points_N[within_N],
                    measures={n: values[..., within_N] for n, values in tested.measures.items()},
                ),
            )


def _tabulate(
    tested: Tested, cells: pd.DataFrame, opponent_C: np.ndarray, comparison: Comparison
) -> pd.DataFrame:
    """The table of one group of nights of one split; cells without a night are left out."""
    every_C = np.arange(len(cells))
    scored_CN, trained_CS = tested.scored, tested.trained
    of_people = {name: _people(tested, name, every_C, scored_CN, trained_CS) for name in AVERAGED}
    rmse_CSP, crps_CSP = np.sqrt(of_people["mse"]), of_people["crps_mg_dl"]
    rmse_low, rmse_high = interval(_resample(rmse_CSP, comparison))
    crps_low, crps_high = interval(_resample(crps_CSP, comparison))
    compared_K = np.flatnonzero(opponent_C >= 0)
    pairs = _compare(tested, compared_K, opponent_C[compared_K], comparison)
    table = pd.DataFrame(
        {
            **{name: cells[name] for name in (*CELL, "number")},
            "against": np.where(opponent_C >= 0, cells["cell"].to_numpy()[opponent_C], ""),
            "people": np.count_nonzero(~np.isnan(rmse_CSP).all(axis=1), axis=1),
            "nights": scored_CN.sum(axis=1),
            "seeds": trained_CS.sum(axis=1),
            "rmse_mg_dl": _macro(rmse_CSP),
            "rmse_low_mg_dl": rmse_low,
            "rmse_high_mg_dl": rmse_high,
            "mae_mg_dl": _macro(of_people["mae_mg_dl"]),
            "bias_mg_dl": _macro(of_people["bias_mg_dl"]),
            "crps_mg_dl": _macro(crps_CSP),
            "crps_low_mg_dl": crps_low,
            "crps_high_mg_dl": crps_high,
            "coverage_80_pct": _macro(of_people["coverage_80_pct"]),
            **_skill(tested, cells, comparison),
        }
    )
    if FORETOLD[0] in tested.measures:
        table["lows"] = _count_lows(tested)
        table["auroc"], auroc_RC = _auroc(tested, every_C, scored_CN, trained_CS, comparison)
        table["auroc_low"], table["auroc_high"] = _known_interval(auroc_RC)
    table = table.join(pairs.set_index(compared_K))
    counts = ["paired_people", "paired_nights", "paired_seeds"]
    table[counts] = table[counts].fillna(0).astype(np.int64)
    table["wilcoxon_holm_p"] = table.groupby("question", observed=True)["wilcoxon_p"].transform(
        _corrected
    )
    clear = (table["difference_low_mg_dl"] > 0) | (table["difference_high_mg_dl"] < 0)
    table["apart"] = clear & (table["wilcoxon_holm_p"] < LEVEL)  # of FEWEST_TO_TELL_APART at least
    return table[table["nights"] > 0]


def _compare(
    tested: Tested, first_K: np.ndarray, second_K: np.ndarray, comparison: Comparison
) -> pd.DataFrame:
    """One row per pair of cells, by what both have."""
    rmse = np.sqrt(_paired(tested, "mse", first_K, second_K))
    crps = _paired(tested, "crps_mg_dl", first_K, second_K)
    low, high = interval(np.subtract(*_resample_pairs(rmse, comparison)))
    crps_low, crps_high = interval(np.subtract(*_resample_pairs(crps, comparison)))
    difference_KP = _known_mean(rmse[0], axis=1) - _known_mean(rmse[1], axis=1)
    of_both = [difference_P[~np.isnan(difference_P)][None] for difference_P in difference_KP]
    seeds_KS = ~np.isnan(rmse).all(axis=3)
    foretold: dict[str, np.ndarray] = {}
    if FORETOLD[0] in tested.measures:
        counted = _counted(tested, first_K, second_K)
        own, own_RK = _auroc(tested, first_K, counted.nights_KN, counted.first_KS, comparison)
        other, other_RK = _auroc(tested, second_K, counted.nights_KN, counted.second_KS, comparison)
        foretold["auroc_difference"] = own - other
        ends = ("auroc_difference_low", "auroc_difference_high")
        foretold |= dict(zip(ends, _known_interval(own_RK - other_RK), strict=True))
    return pd.DataFrame(
        {
            "paired_people": [difference.size for difference in of_both],
            "paired_nights": (tested.scored[first_K] & tested.scored[second_K]).sum(axis=1),
            "paired_seeds": seeds_KS.any(axis=0).sum(axis=1),
            "difference_mg_dl": _known_mean(difference_KP, axis=1),
            "difference_low_mg_dl": low,
            "difference_high_mg_dl": high,
            "crps_difference_mg_dl": _macro(crps[0]) - _macro(crps[1]),
            "crps_difference_low_mg_dl": crps_low,
            "crps_difference_high_mg_dl": crps_high,
            "win_rate": [win_rate(d)[0] if d.size else np.nan for d in of_both],
            "wilcoxon_p": [wilcoxon_p(d)[0] if d.size else np.nan for d in of_both],
            **foretold,
        },
        dtype=np.float64,
    )


def _skill(tested: Tested, cells: pd.DataFrame, comparison: Comparison) -> dict[str, np.ndarray]:
    """Skill of every cell against last value, on the nights both have, with its interval."""
    is_reference = (cells["question"] == BASELINES) & (cells["cell"] == REFERENCE)
    reference_C = np.full(len(cells), np.flatnonzero(is_reference)[0])
    rmse = np.sqrt(_paired(tested, "mse", np.arange(len(cells)), reference_C))
    own_RC, last_RC = _resample_pairs(rmse, comparison)
    low, high = interval(1 - own_RC / last_RC)
    skill = 1 - _macro(rmse[0]) / _macro(rmse[1])
    return {"skill_vs_last_value": skill, "skill_low": low, "skill_high": high}


class Counted(NamedTuple):
    """What both of each pair have: nights, and of each the seeds."""

    nights_KN: np.ndarray
    first_KS: np.ndarray
    second_KS: np.ndarray


def _counted(tested: Tested, first_K: np.ndarray, second_K: np.ndarray) -> Counted:
    first_KS, second_KS = tested.trained[first_K], tested.trained[second_K]
    any_K = tested.unseeded_C[first_K] | tested.unseeded_C[second_K]
    shared_KS = (first_KS & second_KS) | any_K[:, None]
    nights_KN = tested.scored[first_K] & tested.scored[second_K]
    return Counted(nights_KN, first_KS & shared_KS, second_KS & shared_KS)


def _paired(tested: Tested, name: str, first_K: np.ndarray, second_K: np.ndarray) -> np.ndarray:
    """A measure of both of each pair by seed and person, (2, K, S, P), of what both have."""
    counted_KN, first_KS, second_KS = _counted(tested, first_K, second_K)
    return np.stack(
        [
            _people(tested, name, first_K, counted_KN, first_KS),
            _people(tested, name, second_K, counted_KN, second_KS),
        ]
    )


def _auroc(
    tested: Tested,
    cell_K: np.ndarray,
    counted_KN: np.ndarray,
    counted_KS: np.ndarray,
    comparison: Comparison,
) -> tuple[np.ndarray, np.ndarray]:
    """How well nights with a low were told from the others, (K,), and in resamples, (R, K).

    The mean over seeds; people are drawn, and the nights of all who are drawn stand together.
    """
    person_N = tested.nights.groupby(PERSON, observed=True).ngroup().to_numpy()
    told_CSN, happened_CSN = (tested.measures[name] for name in FORETOLD)
    value_K = np.full(len(cell_K), np.nan)
    sample_RK = np.full((comparison.resamples, len(cell_K)), np.nan)
    for number, (cell, counted_N) in enumerate(zip(cell_K, counted_KN, strict=True)):
        seeds = np.flatnonzero(counted_KS[number])
        if not counted_N.any() or not len(seeds):
            continue
        person, known = pd.factorize(person_N[counted_N])
        draws_RP = draw_people(len(known), comparison.resamples, comparison.seed)
        of_seeds = [
            count(
                told_CSN[cell, seed, counted_N],
                happened_CSN[cell, seed, counted_N] == 1,
                person,
                len(known),
            )
            for seed in seeds
        ]
        value_K[number] = np.mean([auroc(counts.pooled()) for counts in of_seeds])
        sample_RK[:, number] = np.mean(
            [resampled_auroc(counts, draws_RP) for counts in of_seeds], axis=0
        )
    return value_K, sample_RK


def _count_lows(tested: Tested) -> np.ndarray:
    """Nights of each cell with a low, (C,)."""
    happened_CN = (tested.measures[FORETOLD[1]] == 1).any(axis=1)
    return happened_CN.sum(axis=1)


def _known_interval(samples_RK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of those resamples that have nights of both kinds; NaN of none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a cell without any is all NaN
        ends = np.nanquantile(samples_RK, [0.025, 0.975], axis=0)
    low, high = ends.reshape(2, samples_RK.shape[1])  # of no cells numpy gives no ends at all
    return low, high


def _people(
    tested: Tested, name: str, cell_K: np.ndarray, counted_KN: np.ndarray, counted_KS: np.ndarray
) -> np.ndarray:
    """Means of a measure over the points of each person's counted nights, (K, S, P)."""
    person_N = tested.nights.groupby(PERSON, observed=True).ngroup().to_numpy()
    starts_P = np.flatnonzero(np.diff(person_N, prepend=-1))
    weight_KN = counted_KN * tested.points_N
    weighted_KSN = np.where(
        counted_KN[:, None], tested.measures[name][cell_K] * weight_KN[:, None], 0.0
    )
    with np.errstate(invalid="ignore"):  # who has no such night has no mean
        mean_KSP = (
            np.add.reduceat(weighted_KSN, starts_P, axis=2)
            / np.add.reduceat(weight_KN, starts_P, axis=1)[:, None]
        )
    return np.where(counted_KS[..., None], mean_KSP, np.nan)


def _resample(values_KSP: np.ndarray, comparison: Comparison) -> np.ndarray:
    """`bootstrap_means` of cells that may have different people, (R, K)."""
    samples_RK = np.full((comparison.resamples, len(values_KSP)), np.nan)
    known_KP = ~np.isnan(values_KSP).all(axis=1)
    for known_P in np.unique(known_KP, axis=0):
        if known_P.any():
            alike_K = (known_KP == known_P).all(axis=1)
            samples_RK[:, alike_K] = bootstrap_means(
                values_KSP[alike_K][..., known_P], comparison.resamples, comparison.seed
            )
    return samples_RK


def _resample_pairs(values: np.ndarray, comparison: Comparison) -> tuple[np.ndarray, np.ndarray]:
    """The same of both of each pair, (2, K, S, P), over the same draws."""
    first_RK, second_RK = np.split(_resample(np.concatenate(values), comparison), 2, axis=1)
    return first_RK, second_RK


def _macro(values_KSP: np.ndarray) -> np.ndarray:
    return _known_mean(_known_mean(values_KSP, axis=1), axis=1)


def _known_mean(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean of what is not NaN; of nothing it is NaN."""
    with np.errstate(invalid="ignore"):
        return np.nansum(values, axis=axis) / np.count_nonzero(~np.isnan(values), axis=axis)


def _corrected(p: pd.Series) -> pd.Series:
    """`holm` of those comparisons that were made."""
    made = p.dropna()
    return pd.Series(holm(made.to_numpy()), index=made.index).reindex(p.index)
