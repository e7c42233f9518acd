"""Fit a model or a baseline on the training split, and forecast from an artifact of either."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pandas as pd
import torch

from nocturnal_kedro import plugins
from nocturnal_kedro.baselines import UNSEEN, History, Nights
from nocturnal_kedro.errors import InputError
from nocturnal_kedro.models import QUANTILE_LEVELS, Artifact
from nocturnal_kedro.series.corpus import Corpus
from nocturnal_kedro.series.origins import (
    Task,
    data_fingerprint,
    eligible_rows,
    origin_rows,
    require_frozen,
    rows_of_split,
)
from nocturnal_kedro.series.schema import STEPS_PER_DAY, STEPS_PER_HOUR
from nocturnal_kedro.series.windows import Batch, Scaler, WindowGatherer, fit_scaler
from nocturnal_kedro.training.device import TORCH_NAME, require_device
from nocturnal_kedro.training.loop import train
from nocturnal_kedro.training.options import Training

FORECAST_BATCH = 256  # windows at a time
# Initial weights and dropout come from torch's one generator: with a runner of threads, models are
# built and trained one after the other, or their numbers would mix.
_RANDOM_NUMBERS = threading.Lock()


def fit_model(
    name: str,
    given: dict[str, Any],
    corpus: Corpus,
    splits: pd.DataFrame,
    origins: pd.DataFrame,
    task: Task,
    training: Training,
) -> Artifact:
    """Train the model from fresh weights; `given` are its options that differ from the defaults.

    Raises `InputError` on unusable options, an absent device, no window, or a diverging loss.
    """
    options: Any = plugins.options("model", name, given)
    require_frozen(corpus, splits, origins, task)
    gatherer = _gatherer(corpus, splits, task, fit_scaler(corpus, splits), training.device)
    train_rows = near_anchor(corpus, eligible_rows(corpus, splits, task, "train"), training)
    validation_rows = origin_rows(corpus, origins[origins["split"] == "validation"])
    _require_windows(name, train_rows, validation_rows)

    build = plugins.load("model", name).build
    with _RANDOM_NUMBERS:
        torch.manual_seed(training.seed)
        torch.use_deterministic_algorithms(training.device == "cpu")
        started = time.perf_counter()
        module = build(options, task)
        trained = train(
            module, gatherer, train_rows, validation_rows, training, options.learning_rate, name
        )
        train_seconds = time.perf_counter() - started
    return Artifact(
        name=name,
        kind="model",
        options=options.model_dump(),
        scaler=gatherer.scaler,
        people=trained_people(splits),
        state={key: value.numpy() for key, value in trained.state.items()},
        record={
            "data": data_fingerprint(corpus, splits, origins),
            "task": task.model_dump(),
            "training": training.model_dump(),
            "parameters": sum(parameter.numel() for parameter in module.parameters()),
            "windows": len(train_rows),
            "best_epoch": trained.best_epoch,
            "train_seconds": train_seconds,
        },
        log=trained.log,
    )


def fit_baseline(
    name: str,
    given: dict[str, Any],
    corpus: Corpus,
    splits: pd.DataFrame,
    origins: pd.DataFrame,
    task: Task,
) -> Artifact:
    """Fit a baseline to the training rows and the training nights."""
    started = time.perf_counter()
    options = plugins.options("baseline", name, given)
    require_frozen(corpus, splits, origins, task)
    gatherer = _gatherer(corpus, splits, task, fit_scaler(corpus, splits), "cpu")
    people = trained_people(splits)
    history = _history(corpus, splits, origins, gatherer, people)
    state = plugins.load("baseline", name).fit(history, options)
    return Artifact(
        name=name,
        kind="baseline",
        options=options.model_dump(),
        scaler=gatherer.scaler,
        people=people,
        state=state,
        record={
            "data": data_fingerprint(corpus, splits, origins),
            "task": task.model_dump(),
            "parameters": sum(array.size for array in state.values()),
            "train_seconds": time.perf_counter() - started,
        },
        log=pd.DataFrame(),
    )


def forecast(
    artifact: Artifact,
    corpus: Corpus,
    splits: pd.DataFrame,
    origins: pd.DataFrame,
    device: str = "cpu",
) -> tuple[pd.DataFrame, float]:
    """Forecast every origin of the frozen table that is not for training; and in how many seconds.

    Columns: source, subject, origin, step, target_mg_dl, forecast_mg_dl; quantile models add
    q0.01 ... q0.99. One row per origin and step, in mg/dL, never clipped; the target is NaN where
    unobserved. The seconds are those of loading the weights and of all windows, no check counted.
    Raises `InputError` if the artifact was fitted to other readings, splits or origins: people and
    nights that it has seen could be among those tested here.
    """
    data = data_fingerprint(corpus, splits, origins)
    if artifact.record["data"] != data:
        raise InputError(
            f"'{artifact.name}' was fitted to other readings, splits or origins "
            f"({artifact.record['data'][:12]}) than these ({data[:12]}), and may have seen what it "
            f"would be tested on. Run the training pipeline again."
        )
    task = Task.model_validate(artifact.record["task"])
    require_frozen(corpus, splits, origins, task)
    origins = origins[origins["split"] != "train"]
    if artifact.kind == "baseline":
        device = "cpu"  # baselines are numpy
    gatherer = _gatherer(corpus, splits, task, artifact.scaler, device)
    rows = torch.from_numpy(origin_rows(corpus, origins))
    answer = _answer_model if artifact.kind == "model" else _answer_baseline
    started = time.perf_counter()
    target_NH, point_NH, quantiles_NHQ = answer(artifact, corpus, gatherer, rows)
    seconds = time.perf_counter() - started

    horizon = task.horizon_steps
    frame = origins.loc[origins.index.repeat(horizon), ["source", "subject", "origin"]]
    frame = frame.reset_index(drop=True)
    frame["step"] = np.tile(np.arange(1, horizon + 1), len(origins))
    frame["target_mg_dl"] = target_NH.ravel()
    frame["forecast_mg_dl"] = point_NH.ravel()
    if quantiles_NHQ is not None:
        names = [f"q{level:g}" for level in QUANTILE_LEVELS]
        frame[names] = quantiles_NHQ.reshape(-1, len(names))
    return frame, seconds


def trained_people(splits: pd.DataFrame) -> tuple[str, ...]:
    """'source/subject' of everybody with a training segment."""
    train = splits[splits["split"] == "train"]
    return tuple(sorted(set(train["source"] + "/" + train["subject"])))


def near_anchor(corpus: Corpus, rows: np.ndarray, training: Training) -> np.ndarray:
    """Those rows whose clock time lies within `anchor_hours` of midnight."""
    slot = corpus.slot_of_day_T[rows].astype(int)
    distance = np.minimum(slot, STEPS_PER_DAY - slot)
    return rows[distance <= training.anchor_hours * STEPS_PER_HOUR]


def _gatherer(
    corpus: Corpus, splits: pd.DataFrame, task: Task, scaler: Scaler, device: str
) -> WindowGatherer:
    require_device(device)
    return WindowGatherer(corpus, splits, scaler, task, TORCH_NAME[device])


def _require_windows(name: str, train_rows: np.ndarray, validation_rows: np.ndarray) -> None:
    for what, rows in (("training", train_rows), ("validation", validation_rows)):
        if not len(rows):
            raise InputError(
                f"model '{name}': no window is left for {what}. Give more people or days, change "
                f"the shares under 'splits', or lower task.coverage."
            )


def _history(
    corpus: Corpus,
    splits: pd.DataFrame,
    origins: pd.DataFrame,
    gatherer: WindowGatherer,
    people: tuple[str, ...],
) -> History:
    rows = rows_of_split(corpus, splits, "train")
    rows_of_nights = origin_rows(corpus, origins[origins["split"] == "train"])
    batch = gatherer.gather(torch.from_numpy(rows_of_nights))
    return History(
        glucose_T=np.where(corpus.observed_TC[rows, 0], corpus.values_TC[rows, 0], np.nan),
        person_T=_person_index(corpus, people)[rows],
        slot_of_day_T=corpus.slot_of_day_T[rows].astype(int),
        people=len(people),
        nights=_nights(corpus, gatherer, rows_of_nights, batch, people),
        target_NH=_targets(corpus, rows_of_nights, batch),
    )


def _nights(
    corpus: Corpus,
    gatherer: WindowGatherer,
    rows: np.ndarray,
    batch: Batch,
    people: tuple[str, ...],
) -> Nights:
    """The same windows that the models get, glucose alone and in mg/dL."""
    steps_L = np.arange(1 - gatherer.task.context_steps, 1)
    return Nights(
        glucose_NL=_glucose(corpus, rows, steps_L, batch.context_observed_BLC[..., 0]),
        person_N=_person_index(corpus, people)[rows],
        slot_of_day_N=corpus.slot_of_day_T[rows].astype(int),
        horizon=gatherer.task.horizon_steps,
    )


def _person_index(corpus: Corpus, people: tuple[str, ...]) -> np.ndarray:
    """For every row of the corpus the index of its person among `people`, or UNSEEN."""
    index = {person: number for number, person in enumerate(people)}
    names = corpus.people["source"] + "/" + corpus.people["subject"]
    lengths = (corpus.people["last"] - corpus.people["first"]).to_numpy()
    return np.repeat([index.get(name, UNSEEN) for name in names], lengths)


def _targets(corpus: Corpus, rows: np.ndarray, batch: Batch) -> np.ndarray:
    """What happened in the horizon, (N, H) in mg/dL; NaN where unobserved."""
    steps_H = np.arange(1, batch.target_BH.shape[1] + 1)
    return _glucose(corpus, rows, steps_H, batch.target_observed_BH)


def _glucose(
    corpus: Corpus, rows: np.ndarray, steps: np.ndarray, observed: torch.Tensor
) -> np.ndarray:
    """Readings as they are: scaled and back, 70 mg/dL would no longer be 70."""
    row_NS = (rows[:, None] + steps).clip(0, len(corpus.values_TC) - 1)
    return np.where(observed.cpu().numpy(), corpus.values_TC[row_NS, 0].astype(float), np.nan)


Answer = tuple[np.ndarray, np.ndarray, np.ndarray | None]


@torch.no_grad()
def _answer_model(
    artifact: Artifact, corpus: Corpus, gatherer: WindowGatherer, rows: torch.Tensor
) -> Answer:
    options = plugins.options("model", artifact.name, artifact.options)
    build = plugins.load("model", artifact.name).build
    with _RANDOM_NUMBERS:
        module = build(options, gatherer.task)
    try:
        module.load_state_dict({key: torch.from_numpy(v) for key, v in artifact.state.items()})
    except RuntimeError as error:
        raise InputError(
            f"the weights of '{artifact.name}' do not fit its options {artifact.options}: the "
            f"artifact is damaged, or of another version. Run the training pipeline again."
        ) from error
    module.to(gatherer.device).eval()
    targets, points, quantiles = [], [], []
    for part in rows.split(FORECAST_BATCH):
        batch = gatherer.gather(part.to(gatherer.device))
        answer = module(batch)
        targets.append(_targets(corpus, part.numpy(), batch))
        points.append(_to_numpy(gatherer, answer.point_BH))
        if answer.quantiles_BHQ is not None:
            quantiles.append(_to_numpy(gatherer, answer.quantiles_BHQ))
    return (
        np.concatenate(targets),
        np.concatenate(points),
        np.concatenate(quantiles) if quantiles else None,
    )


def _answer_baseline(
    artifact: Artifact, corpus: Corpus, gatherer: WindowGatherer, rows: torch.Tensor
) -> Answer:
    batch = gatherer.gather(rows)
    nights = _nights(corpus, gatherer, rows.numpy(), batch, artifact.people)
    point_NH = plugins.load("baseline", artifact.name).forecast(artifact.state, nights)
    return _targets(corpus, rows.numpy(), batch), point_NH, None


def _to_numpy(gatherer: WindowGatherer, scaled: torch.Tensor) -> np.ndarray:
    return gatherer.scaler.to_mg_dl(scaled.double()).cpu().numpy()
