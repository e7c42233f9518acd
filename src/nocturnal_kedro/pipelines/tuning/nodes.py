"""Corpus and splits -> the trials of a search, and the run that takes the best of them."""

from __future__ import annotations

from typing import Any

import pandas as pd

from nocturnal_kedro.series.audit import require_audited
from nocturnal_kedro.series.corpus import Corpus
from nocturnal_kedro.series.origins import Task
from nocturnal_kedro.training.options import Hardware, Training
from nocturnal_kedro.training.space import Tuning
from nocturnal_kedro.training.unfinished import Unfinished

# Of this run alone: what was asked of the search, and where it ran.
LEFT_OUT = ("tuning", "trials", "hardware")


def search(
    corpus: Corpus,
    splits: pd.DataFrame,
    origins: pd.DataFrame,
    audit: pd.DataFrame,
    task: Task,
    training: Training,
    hardware: Hardware,
    options: dict[str, Any],
    tuning: Tuning,
    trials: int,
    searches: Unfinished,
    run_record: dict[str, Any],
    *,
    experiment: str,
    model: str,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Train one model again and again; validation nights choose among the trials."""
    from nocturnal_kedro.training.data import Data
    from nocturnal_kedro.training.tuning import search

    data = Data(corpus, splits, origins, task)
    require_audited(audit, data.fingerprint())
    found = search(model, options, data, training, hardware, tuning, trials, searches)
    return found.trials, _next_run(run_record, found.parameters, experiment, model)


def _next_run(
    run_record: dict[str, Any], best: dict[str, Any], experiment: str, model: str
) -> dict[str, Any]:
    """What `kedro run --config` takes: the very data and training, with the best options.

    Other splits could make a test of what validation has chosen by.
    """
    searched = run_record["stages"]["tuning"]["parameters"]
    made = run_record["stages"].get("data_processing", {}).get("parameters", {})
    kept = searched | made | {"data_root": searched["data_root"], "models": [model]}
    parameters = {name: value for name, value in kept.items() if name not in LEFT_OUT}
    return {"run": {"pipelines": experiment, "params": _merged(parameters, best)}}


def _merged(parameters: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """The parameters, with those of `over` in place of theirs at any depth."""
    both = dict(parameters)
    for name, value in over.items():
        nested = isinstance(both.get(name), dict) and isinstance(value, dict)
        both[name] = _merged(both[name], value) if nested else value
    return both
