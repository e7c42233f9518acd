"""Saved scores and forecasts -> tables and report."""

from __future__ import annotations

from typing import Any

import pandas as pd

from nocturnal_kedro import plugins
from nocturnal_kedro.metrics import alarms, breakdown, compare, meals, sweeps
from nocturnal_kedro.metrics.compare import Comparison
from nocturnal_kedro.metrics.scores import Evaluation
from nocturnal_kedro.report.markdown import leaderboard_as_markdown, sweep_as_markdown
from nocturnal_kedro.series.origins import Task

# What of each model, and of all of them together, the report shows.
OF_MODELS = ("model", "forecasts", "cost", "scores", "translated")
TABLES = (
    "leaderboard", "pairs", "alarms", "trade_off", "reliability", "readings", "calibration",
    "bands", "breakdown",
)  # fmt: skip
ADDED = ("courses", "cards")  # of those experiments that add meals or cards
OF_DATA = ("origins", "tally", "quality", "audit")


def rank_models(
    comparison: Comparison, evaluation: Evaluation, origins: pd.DataFrame, *scores: pd.DataFrame
) -> pd.DataFrame:
    """One row per test split and model, best first; and again of each source where asked."""
    of_all = pd.concat(scores, ignore_index=True)
    compare.require_current(of_all, origins)
    return compare.build_leaderboards(of_all, comparison, evaluation.by_source)


def compare_pairs(comparison: Comparison, *night_scores: pd.DataFrame) -> pd.DataFrame:
    """One row per test split and pair of models."""
    return compare.compare_pairs(pd.concat(night_scores, ignore_index=True), comparison)


def judge_alarms(
    comparison: Comparison, outcomes: pd.DataFrame, *lows: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """How alarms for a low tonight did: side by side, by threshold, and how true they are."""
    told = pd.concat(lows, ignore_index=True)
    return (
        alarms.rank_alarms(told, outcomes, comparison),
        alarms.trade_off(told, outcomes),
        alarms.reliability(told, outcomes, comparison),
    )


def judge_readings(comparison: Comparison, *low_readings: pd.DataFrame) -> pd.DataFrame:
    """How well single readings below a threshold were told from the others."""
    return alarms.rank_readings(pd.concat(low_readings, ignore_index=True), comparison)


def check_levels(
    comparison: Comparison, *level_scores: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What each quantile, and each interval, held, before and after calibration."""
    of_all = pd.concat(level_scores, ignore_index=True)
    return (
        breakdown.summarise_levels(of_all, comparison),
        breakdown.summarise_bands(of_all, comparison),
    )


def break_down(
    comparison: Comparison, quality: pd.DataFrame, **of_models: pd.DataFrame
) -> pd.DataFrame:
    """Errors by hour, glucose, weekday, source and group; `of_models` are `ttm.scores` and such."""
    by_cell, by_night = (
        pd.concat([of_models[name] for name in of_models if name.endswith(kind)], ignore_index=True)
        for kind in (".scores", ".night_scores")
    )
    return breakdown.break_down(by_cell, by_night, quality, comparison)


def judge_meals(comparison: Comparison, *peaks: pd.DataFrame) -> pd.DataFrame:
    """How high and when glucose peaks after a meal: each model's errors, by size of the meal."""
    return meals.judge_meals(pd.concat(peaks, ignore_index=True), comparison)


def write_report(
    comparison: Comparison,
    evaluation: Evaluation,
    made_from: dict[str, Any],
    run_record: dict[str, Any],
    *,
    experiment: str,
    models: tuple[str, ...],
    baselines: tuple[str, ...],
    **of_experiment: Any,
) -> tuple[str, dict[str, Any]]:
    """The page and its figures.

    `of_experiment` are its tables, and of each model what it has, `ttm.forecasts`.
    """
    from nocturnal_kedro.report import Content, render_report

    names = (*models, *baselines)
    artifacts, forecasts, costs, scores, translated, courses, cards = (
        {name: of_experiment.pop(f"{name}.{kind}", None) for name in names}
        for kind in (*OF_MODELS, *ADDED)
    )
    if "meals" in of_experiment:
        of_experiment["courses"] = pd.concat(courses.values(), ignore_index=True)
    of_costs = [{"model": name, **cost} for name, cost in costs.items()]
    known = of_experiment["quality"]["source"].unique()
    return render_report(
        Content(
            experiment=experiment,
            models=models,
            baselines=baselines,
            tables=of_experiment
            | {"costs": pd.DataFrame(of_costs), "translated": pd.concat(translated.values())},
            scores=pd.concat(scores.values(), ignore_index=True),
            forecasts=forecasts,
            made_from=made_from,
            records={name: artifact.record for name, artifact in artifacts.items()},
            logs={name: artifacts[name].log for name in models},
            cards=cards[models[0]] if models else None,
            sources={name: plugins.load("source", name).TITLE for name in known},
            comparison=comparison,
            evaluation=evaluation,
            run_record=run_record,
        )
    )


def tell_in_markdown(leaderboard: pd.DataFrame, task: Task) -> str:
    """The leaderboard, to be pasted elsewhere."""
    return leaderboard_as_markdown(leaderboard, task.unit)


def summarise_cells(
    comparison: Comparison, cell_scores: pd.DataFrame, groups: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Every variant of a sweep and how it differs from another, also as Markdown; and by person."""
    summary = sweeps.summarise(cell_scores, groups, comparison)
    return summary, sweeps.by_person(cell_scores), sweep_as_markdown(summary)


def write_sweep_report(
    comparison: Comparison,
    summary: pd.DataFrame,
    by_person: pd.DataFrame,
    audit: pd.DataFrame,
    quality: pd.DataFrame,
    made_from: dict[str, Any],
    run_record: dict[str, Any],
    *,
    sweep: str,
) -> tuple[str, dict[str, Any]]:
    """The page of a sweep, and its figures."""
    from nocturnal_kedro.report.sweep import SweepContent, render_sweep
    from nocturnal_kedro.sweeps import Tables

    code, known = plugins.load("sweep", sweep), quality["source"].unique()
    return render_sweep(
        SweepContent(
            name=sweep,
            title=code.TITLE,
            method=code.METHOD,
            sections=code.sections(Tables(summary, by_person)),
            summary=summary,
            by_person=by_person,
            audit=audit,
            made_from=made_from,
            sources={name: plugins.load("source", name).TITLE for name in known},
            comparison=comparison,
            run_record=run_record,
        )
    )
