"""An artifact -> forecasts -> scores; scores read saved forecasts, never a model."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import pandas as pd

from nocturnal_kedro import plugins
from nocturnal_kedro.metrics.scores import score_forecasts
from nocturnal_kedro.series.corpus import Corpus
from nocturnal_kedro.training.artifact import Artifact
from nocturnal_kedro.training.options import Hardware


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
        "parameters": artifact.record["parameters"],
        "train_seconds": artifact.record["train_seconds"],
        "forecast_ms_per_night": 1000 * seconds / nights,
    }


def score(
    forecasts: pd.DataFrame,
    origins: pd.DataFrame,
    cost: dict[str, Any],
    *,
    experiment: str,
    model: str,
) -> pd.DataFrame:
    """Scores by split, person and step, marked with the data that they are of."""
    return score_forecasts(forecasts, origins, experiment, model).assign(data=cost["data"])
