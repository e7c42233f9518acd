"""Saved scores and forecasts -> leaderboard and report."""

from __future__ import annotations

from typing import Any

import pandas as pd

from nocturnal_kedro import plugins
from nocturnal_kedro.metrics.compare import Comparison, build_leaderboard, require_current


def rank_models(
    comparison: Comparison, origins: pd.DataFrame, *scores: pd.DataFrame
) -> pd.DataFrame:
    """One row per test split and model, best first."""
    of_all = pd.concat(scores, ignore_index=True)
    require_current(of_all, origins)
    return build_leaderboard(of_all, comparison)


def write_report(
    leaderboard: pd.DataFrame,
    origins: pd.DataFrame,
    tally: pd.DataFrame,
    quality: pd.DataFrame,
    audit: pd.DataFrame,
    made_from: dict[str, Any],
    comparison: Comparison,
    run_record: dict[str, Any],
    *of_models: Any,
    experiment: str,
    models: tuple[str, ...],
    baselines: tuple[str, ...],
) -> str:
    """The page; `of_models` are all artifacts, then all forecasts, costs and scores, in order."""
    from nocturnal_kedro.report import Content, render_report

    names = (*models, *baselines)
    artifacts, forecasts, costs, scores = (
        dict(zip(names, of_models[start : start + len(names)], strict=True))
        for start in range(0, len(of_models), len(names))
    )
    return render_report(
        Content(
            experiment=experiment,
            models=models,
            baselines=baselines,
            leaderboard=leaderboard,
            scores=pd.concat(scores.values(), ignore_index=True),
            forecasts=forecasts,
            origins=origins,
            tally=tally,
            quality=quality,
            audit=audit,
            made_from=made_from,
            costs=pd.DataFrame([{"model": name, **cost} for name, cost in costs.items()]),
            records={name: artifact.record for name, artifact in artifacts.items()},
            logs={name: artifacts[name].log for name in models},
            sources={
                name: plugins.load("source", name).TITLE for name in quality["source"].unique()
            },
            comparison=comparison,
            run_record=run_record,
        )
    )
