"""Corpus and splits -> a fitted artifact."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import pandas as pd

from nocturnal_kedro.pipelines.experiments import Sweep
from nocturnal_kedro.series.audit import require_audited
from nocturnal_kedro.series.corpus import Corpus
from nocturnal_kedro.series.origins import Task
from nocturnal_kedro.series.splits import SplitOptions
from nocturnal_kedro.training.artifact import Artifact
from nocturnal_kedro.training.options import Hardware, Training
from nocturnal_kedro.training.trained import Trained
from nocturnal_kedro.training.unfinished import Unfinished


def fit_model(
    corpus: Corpus,
    splits: pd.DataFrame,
    origins: pd.DataFrame,
    audit: pd.DataFrame,
    task: Task,
    training: Training,
    hardware: Hardware,
    options: dict[str, Any],
    answers: MutableMapping[str, bytes],
    unfinished: Unfinished,
    trained: Trained,
    *,
    model: str,
    seed: int | None,
) -> Artifact:
    """Train one model on the training split; validation nights choose the epoch."""
    from nocturnal_kedro.training.data import Data
    from nocturnal_kedro.training.fit import Kept, fit_model

    data = Data(corpus, splits, origins, task)
    require_audited(audit, data.fingerprint())
    kept = Kept(unfinished, trained, answers)
    return fit_model(model, options, data, training.with_seed(seed), hardware, kept)


def fit_baseline(
    corpus: Corpus,
    splits: pd.DataFrame,
    origins: pd.DataFrame,
    audit: pd.DataFrame,
    task: Task,
    training: Training,
    options: dict[str, Any],
    trained: Trained,
    *,
    baseline: str,
) -> Artifact:
    """Fit one baseline on the training split; `options` are those of all baselines by name."""
    from nocturnal_kedro.training.data import Data
    from nocturnal_kedro.training.fit import fit_baseline

    data = Data(corpus, splits, origins, task)
    require_audited(audit, data.fingerprint())
    return fit_baseline(baseline, options.get(baseline, {}), data, training, trained)


def train_cells(
    corpus: Corpus,
    splits: pd.DataFrame,
    origins: pd.DataFrame,
    audit: pd.DataFrame,
    task: Task,
    cut: SplitOptions,
    training: Training,
    hardware: Hardware,
    options: dict[str, Any],
    model_options: dict[str, dict[str, Any]],
    baseline_options: dict[str, dict[str, Any]],
    unfinished: Unfinished,
    trained: Trained,
    share: str,
    *,
    sweep: Sweep,
) -> list[dict[str, Any]]:
    """Train every variant of a sweep, or this run's share of them; what is whole is not repeated.

    Returns what each cell is, and the key of its artifact.
    """
    from nocturnal_kedro.training.cells import Bench, share_of
    from nocturnal_kedro.training.data import Data
    from nocturnal_kedro.training.fit import Kept

    data = Data(corpus, splits, origins, task)
    require_audited(audit, data.fingerprint())
    _, cells = sweep.plan(data, cut, training, options, model_options, baseline_options)
    return Bench(hardware, Kept(unfinished, trained)).train_all(share_of(cells, share))
