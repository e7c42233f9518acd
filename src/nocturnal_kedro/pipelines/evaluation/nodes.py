"""An artifact -> forecasts -> scores; scores read saved forecasts, never a model."""

from __future__ import annotations

import time

import pandas as pd

from nocturnal_kedro.metrics.scores import score_forecasts
from nocturnal_kedro.models import Artifact
from nocturnal_kedro.series.corpus import Corpus
from nocturnal_kedro.training.options import Training


def forecast_nights(
    artifact: Artifact,
    corpus: Corpus,
    splits: pd.DataFrame,
    origins: pd.DataFrame,
    training: Training,
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Forecasts of every night outside training, and what the model costs."""
    from nocturnal_kedro.training.fit import forecast

    nights = origins[origins["split"] != "train"]
    started = time.perf_counter()
    forecasts = forecast(artifact, corpus, splits, nights, training.device)
    seconds = time.perf_counter() - started
    return forecasts, {
        "parameters": artifact.record["parameters"],
        "train_seconds": artifact.record["train_seconds"],
        "forecast_ms_per_night": 1000 * seconds / max(len(nights), 1),
    }


def score(
    forecasts: pd.DataFrame, origins: pd.DataFrame, *, experiment: str, model: str
) -> pd.DataFrame:
    """Scores by split, person and step."""
    return score_forecasts(forecasts, origins, experiment, model)
