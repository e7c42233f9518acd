"""From a model, a baseline or a service to forecasts in mg/dL."""

from __future__ import annotations

import time
from collections.abc import MutableMapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from nocturnal_kedro import plugins
from nocturnal_kedro.errors import InputError
from nocturnal_kedro.metrics.calibration import calibrate
from nocturnal_kedro.metrics.forecasts import QUANTILES, RAW
from nocturnal_kedro.models import Answer
from nocturnal_kedro.series.corpus import Corpus
from nocturnal_kedro.series.covariates import CLOCK, COVARIATES
from nocturnal_kedro.series.origins import Task, origin_rows
from nocturnal_kedro.series.windows import Channels, WindowGatherer
from nocturnal_kedro.training.artifact import Artifact
from nocturnal_kedro.training.data import Data
from nocturnal_kedro.training.history import gather_nights, targets
from nocturnal_kedro.training.loop import ONE_AT_A_TIME
from nocturnal_kedro.training.start import restore_model

FORECAST_BATCH = 256  # windows at a time
# What a baseline sees: all that a model can be given, but for the clock, which it has as a slot.
EVERYTHING = Channels(tuple(name for name in COVARIATES if name != CLOCK))

Answers = MutableMapping[str, bytes]  # of a service, by what it was asked


def forecast(
    artifact: Artifact,
    corpus: Corpus,
    splits: pd.DataFrame,
    origins: pd.DataFrame,
    device: str = "cpu",
    answers: Answers | None = None,
) -> tuple[pd.DataFrame, float]:
    """Forecast every origin of the frozen table that is not for training; and in how many seconds.

    Columns: source, subject, origin, step, target_mg_dl, forecast_mg_dl, q0.01 ... q0.99, which
    are calibrated, and, of what gives quantiles itself, raw_q0.01 ... as it gave them. One row per
    origin and step, in mg/dL, never clipped; the target is NaN where unobserved. The seconds are
    those of loading the weights and of all windows, no check counted. Raises `InputError` if the
    artifact was fitted to other readings, splits or origins: people and nights that it has seen
    could be among those tested here.
    """
    data = Data(corpus, splits, origins, Task.model_validate(artifact.record["task"]))
    if artifact.record["data"] != data.fingerprint():
        raise InputError(
            f"'{artifact.name}' was fitted to other readings, splits or origins "
            f"({artifact.record['data'][:12]}) than these ({data.fingerprint()[:12]}), and may "
            f"have seen what it would be tested on. Run the training pipeline again."
        )
    data.require_frozen()
    return forecast_origins(artifact, data, device, answers)


def forecast_origins(
    artifact: Artifact, data: Data, device: str = "cpu", answers: Answers | None = None
) -> tuple[pd.DataFrame, float]:
    """The same of data that the artifact need not have been fitted to: the caller sees to that."""
    tested = data.origins[data.origins["split"] != "train"]
    rows = origin_rows(data.corpus, tested)
    answer, target_NH, seconds = answer_with(artifact, data, rows, device, answers)

    horizon = data.task.horizon_steps
    frame = tested.loc[tested.index.repeat(horizon), ["source", "subject", "origin"]]
    frame = frame.reset_index(drop=True)
    frame["step"] = np.tile(np.arange(1, horizon + 1), len(tested))
    frame["target_mg_dl"] = target_NH.ravel()
    frame["forecast_mg_dl"] = answer.point_NH.ravel()
    quantiles = {QUANTILES: calibrate(answer.point_NH, answer.quantiles_NHQ, artifact.spread)}
    if answer.quantiles_NHQ is not None:
        quantiles[RAW] = answer.quantiles_NHQ
    levels = [
        pd.DataFrame(of_all.reshape(len(frame), -1).astype(np.float32), columns=columns)
        for columns, of_all in quantiles.items()
    ]
    return pd.concat([frame, *levels], axis=1), seconds


def answer_with(
    artifact: Artifact,
    data: Data,
    rows: np.ndarray,
    device: str = "cpu",
    answers: Answers | None = None,
) -> tuple[Answer, np.ndarray, float]:
    """What the artifact says of windows at `rows`, what happened, and in how many seconds."""
    if artifact.kind == "model" and not plugins.is_service(artifact.name):
        channels = Channels(tuple(artifact.options["covariates"]))
        gatherer = data.gatherer(artifact.scaler, channels, device)
        started = time.perf_counter()
        with ONE_AT_A_TIME:
            module = restore_model(artifact, data.task).to(gatherer.device)
        answer, target_NH = answer_of_module(module, data.corpus, gatherer, rows)
        return answer, target_NH, time.perf_counter() - started

    gatherer = data.gatherer(artifact.scaler, EVERYTHING)
    started = time.perf_counter()
    code = plugins.load(artifact.kind, artifact.name)
    if artifact.kind == "baseline":
        answer, target_NH = _answer_of_baseline(code, artifact, data, gatherer, rows)
    else:  # all nights at once: what may be asked, and what it costs, is told of the whole
        nights, target_NH = gather_nights(data.corpus, gatherer, rows, artifact.people)
        options = plugins.options("model", artifact.name, artifact.options)
        answer = code.answer(nights, options, {} if answers is None else answers)
    return answer, target_NH, time.perf_counter() - started


def _answer_of_baseline(
    code: Any, artifact: Artifact, data: Data, gatherer: WindowGatherer, rows: np.ndarray
) -> tuple[Answer, np.ndarray]:
    """Some windows at a time, of each of which a baseline speaks by itself; and what happened."""
    happened, points, quantiles = [], [], []
    for part in torch.from_numpy(rows).split(FORECAST_BATCH):
        nights, target_BH = gather_nights(data.corpus, gatherer, part.numpy(), artifact.people)
        answer = code.forecast(artifact.state, nights)
        happened.append(target_BH)
        points.append(answer.point_NH)
        if answer.quantiles_NHQ is not None:
            quantiles.append(answer.quantiles_NHQ)
    return _joined(points, quantiles), np.concatenate(happened)


@torch.no_grad()
def answer_of_module(
    module: nn.Module, corpus: Corpus, gatherer: WindowGatherer, rows: np.ndarray
) -> tuple[Answer, np.ndarray]:
    """The module's own answer to windows at `rows`, and what happened."""
    module.eval()
    happened, points, quantiles = [], [], []
    for part in torch.from_numpy(rows).split(FORECAST_BATCH):
        batch = gatherer.gather(part.to(gatherer.device))
        answer = module(batch)
        happened.append(targets(corpus, part.numpy(), batch))
        points.append(_to_mg_dl(gatherer, answer.point_BH))
        if answer.quantiles_BHQ is not None:
            quantiles.append(_to_mg_dl(gatherer, answer.quantiles_BHQ))
    return _joined(points, quantiles), np.concatenate(happened)


def _joined(points: list[np.ndarray], quantiles: list[np.ndarray]) -> Answer:
    return Answer(np.concatenate(points), np.concatenate(quantiles) if quantiles else None)


def _to_mg_dl(gatherer: WindowGatherer, scaled: torch.Tensor) -> np.ndarray:
    return gatherer.scaler.to_mg_dl(scaled.double()).cpu().numpy()
