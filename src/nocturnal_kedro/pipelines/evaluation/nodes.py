"""An artifact -> forecasts -> scores; scores read saved forecasts, never a model."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import pandas as pd

from nocturnal_kedro import plugins
from nocturnal_kedro.errors import InputError
from nocturnal_kedro.metrics.cards import cards_to_json, choose_nights, make_cards
from nocturnal_kedro.metrics.events import foresee_lows
from nocturnal_kedro.metrics.forecasts import lay_out
from nocturnal_kedro.metrics.meals import describe_peaks, mean_courses
from nocturnal_kedro.metrics.scores import (
    Evaluation,
    count_low_readings,
    score_levels,
    score_points,
)
from nocturnal_kedro.metrics.translate import translate
from nocturnal_kedro.pipelines.experiments import Sweep
from nocturnal_kedro.series.corpus import Corpus
from nocturnal_kedro.series.origins import Task
from nocturnal_kedro.series.splits import SplitOptions
from nocturnal_kedro.training.artifact import Artifact
from nocturnal_kedro.training.options import Hardware, Training
from nocturnal_kedro.training.trained import Trained


def forecast_nights(
    artifact: Artifact,
    corpus: Corpus,
    splits: pd.DataFrame,
    origins: pd.DataFrame,
    hardware: Hardware,
    answers: MutableMapping[str, bytes],
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Forecasts of every night outside training, what they are of, and what the model costs."""
    from nocturnal_kedro.training.forecast import forecast

    plugins.load(artifact.kind, artifact.name)  # importing is not forecasting
    forecasts, seconds = forecast(artifact, corpus, splits, origins, hardware.device, answers)
    nights = forecasts.groupby(["source", "subject", "origin"]).ngroups
    return forecasts, {
        "data": artifact.record["data"],
        "key": artifact.record["key"],  # whose forecasts these are
        "parameters": artifact.record["parameters"],
        "train_seconds": artifact.record["train_seconds"],
        "forecast_ms_per_night": 1000 * seconds / nights,
    }


def foresee(
    artifact: Artifact, forecasts: pd.DataFrame, origins: pd.DataFrame, cost: dict[str, Any]
) -> pd.DataFrame:
    """What the forecasts say of tonight's lows, by joint paths as the artifact knows their steps
    to hang together."""
    if artifact.record["data"] != cost["data"] or artifact.record["key"] != cost.get("key"):
        raise InputError(
            f"the forecasts of '{artifact.name}' were made by another model than the one at hand: "
            f"they are of different runs. Run evaluation again, whole."
        )
    told = foresee_lows(lay_out(forecasts, origins, artifact.name), artifact.spread)
    told.insert(0, "model", artifact.name)
    told.insert(1, "data", cost["data"])
    return told


def score(
    forecasts: pd.DataFrame,
    origins: pd.DataFrame,
    cost: dict[str, Any],
    evaluation: Evaluation,
    *,
    experiment: str,
    model: str,
    seed: int | None,
) -> tuple[pd.DataFrame, ...]:
    """Scores by person, step, hour and band, by night, by level, and of single low readings; and
    under other papers' rules."""
    laid_out = lay_out(forecasts, origins, model)
    tables = (
        *score_points(laid_out, evaluation.kind),
        score_levels(laid_out),
        count_low_readings(laid_out),
        translate(laid_out),
    )
    marks = {"experiment": experiment, "model": model, "data": cost["data"]}
    marks |= {} if seed is None else {"seed": seed}
    return tuple(
        pd.concat([pd.DataFrame(marks, index=table.index), table], axis=1) for table in tables
    )


def after_meals(
    forecasts: pd.DataFrame,
    origins: pd.DataFrame,
    outcomes: pd.DataFrame,
    cost: dict[str, Any],
    *,
    model: str,
    seed: int | None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Of every meal the peak that came and that was forecast; and the mean courses after meals."""
    laid_out = lay_out(forecasts, origins, model)
    marks = {"model": model, "data": cost["data"]} | ({} if seed is None else {"seed": seed})
    peaks = describe_peaks(laid_out, outcomes).assign(**marks)
    return peaks, mean_courses(laid_out, outcomes).assign(model=model)


def draw_cards(
    artifact: Artifact,
    forecasts: pd.DataFrame,
    origins: pd.DataFrame,
    lows: pd.DataFrame,
    outcomes: pd.DataFrame,
    *,
    experiment: str,
    model: str,
) -> list[dict[str, Any]]:
    """Cards of test nights that show what the model can and cannot do."""
    laid_out = lay_out(forecasts, origins, model)
    chosen = choose_nights(laid_out, lows, outcomes)
    return cards_to_json(
        make_cards(
            laid_out, lows, outcomes, artifact.spread, chosen, experiment=experiment, model=model
        )
    )


def score_cells(
    corpus: Corpus,
    splits: pd.DataFrame,
    origins: pd.DataFrame,
    task: Task,
    cut: SplitOptions,
    training: Training,
    hardware: Hardware,
    options: dict[str, Any],
    model_options: dict[str, dict[str, Any]],
    baseline_options: dict[str, dict[str, Any]],
    trained: Trained,
    forecasted: MutableMapping[str, bytes],
    cells: list[dict[str, Any]],
    *,
    sweep: Sweep,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores by night of every cell of a sweep, and the groups of nights that are told apart."""
    from nocturnal_kedro.training.cells import Bench
    from nocturnal_kedro.training.data import Data
    from nocturnal_kedro.training.fit import Kept

    data = Data(corpus, splits, origins, task)
    grounds, planned = sweep.plan(data, cut, training, options, model_options, baseline_options)
    bench = Bench(hardware, Kept(trained=trained), forecasted)
    scores = bench.score_all(planned, cells, corpus)
    code = plugins.load("sweep", sweep.name)
    if hasattr(code, "derive"):
        scores = code.derive(scores)
    scores.insert(0, "experiment", sweep.name)
    return scores, code.groups(grounds, plugins.options("sweep", sweep.name, options))
