"""Corpus and splits -> a fitted artifact."""

from __future__ import annotations

from typing import Any

import pandas as pd

from nocturnal_kedro.models import Artifact
from nocturnal_kedro.series.audit import require_audited
from nocturnal_kedro.series.corpus import Corpus
from nocturnal_kedro.series.origins import Task, data_fingerprint
from nocturnal_kedro.training.options import Training


def fit_model(
    corpus: Corpus,
    splits: pd.DataFrame,
    origins: pd.DataFrame,
    audit: pd.DataFrame,
    task: Task,
    training: Training,
    options: dict[str, Any],
    *,
    model: str,
) -> Artifact:
    """Train one model on the training split; validation nights choose the epoch."""
    from nocturnal_kedro.training import fit

    require_audited(audit, data_fingerprint(corpus, splits, origins))
    return fit.fit_model(model, options, corpus, splits, origins, task, training)


def fit_baseline(
    corpus: Corpus,
    splits: pd.DataFrame,
    origins: pd.DataFrame,
    audit: pd.DataFrame,
    task: Task,
    *,
    baseline: str,
) -> Artifact:
    """Fit one baseline on the training split."""
    from nocturnal_kedro.training import fit

    require_audited(audit, data_fingerprint(corpus, splits, origins))
    return fit.fit_baseline(baseline, {}, corpus, splits, origins, task)
