"""Fit a model, a service or a baseline: from the training split, and validation, to an artifact."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from nocturnal_kedro import plugins
from nocturnal_kedro.errors import InputError
from nocturnal_kedro.models import ModelOptions
from nocturnal_kedro.series.scaler import fit_scaler
from nocturnal_kedro.series.windows import WindowGatherer
from nocturnal_kedro.training.artifact import Artifact
from nocturnal_kedro.training.data import Data
from nocturnal_kedro.training.forecast import EVERYTHING, Answers, answer_of_module, answer_with
from nocturnal_kedro.training.history import gather_history
from nocturnal_kedro.training.loop import ONE_AT_A_TIME, REPRESENTATION, Trained, train
from nocturnal_kedro.training.options import Training
from nocturnal_kedro.training.spread import Spread, fit_spread
from nocturnal_kedro.training.start import Start, merge, start_model, tell_scale


def fit_model(
    name: str,
    given: dict[str, Any],
    data: Data,
    training: Training,
    answers: Answers | None = None,
) -> Artifact:
    """Start the model as its strategy says, train it, and learn from validation how it errs.

    `given` are its options that differ from the defaults. Raises `InputError` on unusable options
    or weights, an absent device, no window, a diverging loss, and where training changed nothing.
    """
    options: Any = plugins.options("model", name, given)
    data.require_frozen()
    validation_rows = data.night_rows("validation")
    _require_windows(name, "validation", validation_rows)
    if plugins.is_service(name):
        return _ask_service(name, options, data, validation_rows, answers)

    with ONE_AT_A_TIME:
        torch.manual_seed(training.seed)
        torch.use_deterministic_algorithms(training.device == "cpu")
        started = time.perf_counter()
        start = start_model(name, options, data.task)
        _require_apart(name, start, data)
        earlier = start.earlier
        scaler = earlier.scaler if earlier else fit_scaler(data.corpus, data.splits)
        tell_scale(start.module, scaler)
        gatherer = data.gatherer(scaler, start.channels, training.device)
        train_rows = np.empty(0, np.int64)
        trained, trained_parameters = Trained({}, pd.DataFrame(), 0), 0
        if options.strategy != "zero_shot":
            train_rows = data.rows_around_anchor(training.anchor_hours)
            _require_windows(name, "training", train_rows)
            trained, trained_parameters = _train(
                name, start, gatherer, train_rows, validation_rows, training
            )
        module = start.module.to(gatherer.device)
        parameters = [weight.numel() for weight in module.parameters()]
        state = _to_keep(start)
        train_seconds = time.perf_counter() - started
    answer, target_NH = answer_of_module(module, data.corpus, gatherer, validation_rows)
    return Artifact(
        name=name,
        kind="model",
        options=start.options.model_dump(mode="json"),
        architecture=start.architecture,
        base=start.base,
        scaler=scaler,
        people=tuple(
            sorted(
                {
                    *(earlier.people if earlier else ()),
                    *(data.trained_people() if trained.state else ()),
                }
            )
        ),
        state=state,
        spread=fit_spread(answer, target_NH),
        record={
            "data": data.fingerprint(),
            "task": data.task.model_dump(),
            "training": training.model_dump(),
            "parameters": sum(parameters),
            "trained_parameters": trained_parameters,
            "windows": len(train_rows),
            "best_epoch": trained.best_epoch,
            "train_seconds": train_seconds,
        },
        log=trained.log,
    )


def fit_baseline(name: str, given: dict[str, Any], data: Data, training: Training) -> Artifact:
    """Fit a baseline to the training rows and windows, and learn from validation how it errs."""
    started = time.perf_counter()
    options = plugins.options("baseline", name, given)
    data.require_frozen()
    validation_rows = data.night_rows("validation")
    _require_windows(name, "validation", validation_rows)
    scaler = fit_scaler(data.corpus, data.splits)
    people = data.trained_people()
    around_anchor = data.rows_around_anchor(training.anchor_hours)
    history = gather_history(
        data, data.gatherer(scaler, EVERYTHING), around_anchor, people, training.seed
    )
    state = plugins.load("baseline", name).fit(history, options)
    artifact = Artifact(
        name=name,
        kind="baseline",
        options=options.model_dump(mode="json"),
        architecture={},
        base=None,
        scaler=scaler,
        people=people,
        state=state,
        spread=Spread.none(data.task.horizon_steps),
        record={
            "data": data.fingerprint(),
            "task": data.task.model_dump(),
            "parameters": _count_numbers(state),
            "train_seconds": time.perf_counter() - started,
        },
        log=pd.DataFrame(),
    )
    answer, target_NH, _ = answer_with(artifact, data, validation_rows)
    return replace(artifact, spread=fit_spread(answer, target_NH))


def _count_numbers(state: dict[str, np.ndarray]) -> int | None:
    """How many numbers a baseline keeps; None where all that it has learnt is text, as of trees."""
    numbers = [array.size for array in state.values() if array.dtype != np.uint8]
    return None if state and not numbers else sum(numbers)


def _ask_service(
    name: str,
    options: ModelOptions,
    data: Data,
    validation_rows: np.ndarray,
    answers: Answers | None,
) -> Artifact:
    """Nothing is trained here; validation nights are asked for, to learn how it errs."""
    artifact = Artifact(
        name=name,
        kind="model",
        options=options.model_dump(mode="json"),
        architecture={},
        base=None,
        scaler=fit_scaler(data.corpus, data.splits),
        people=(),
        state={},
        spread=Spread.none(data.task.horizon_steps),
        record={
            "data": data.fingerprint(),
            "task": data.task.model_dump(),
            "parameters": None,  # not published
            "windows": 0,
            "best_epoch": 0,
            "train_seconds": 0.0,
        },
        log=pd.DataFrame(),
    )
    answer, target_NH, _ = answer_with(artifact, data, validation_rows, answers=answers)
    return replace(artifact, spread=fit_spread(answer, target_NH))


def _train(
    name: str,
    start: Start,
    gatherer: WindowGatherer,
    train_rows: np.ndarray,
    validation_rows: np.ndarray,
    training: Training,
) -> tuple[Trained, int]:
    """Train what may be trained, leave the best of it in the module, and say how much that is."""
    module, rate = start.module, start.options.learning_rate
    before = {n: w.detach().clone() for n, w in module.named_parameters() if w.requires_grad}
    pretraining: nn.Module | None = getattr(module, "pretraining", None)
    learning = {id(weight) for weight in module.parameters() if weight.requires_grad}
    logs = []
    if pretraining is not None and start.options.strategy == "from_scratch":
        # What is frozen while the module learns to forecast is what is learnt here.
        frozen = [weight for weight in pretraining.parameters() if not weight.requires_grad]
        pretraining.requires_grad_(True)
        learning |= {id(weight) for weight in pretraining.parameters()}
        represented = train(
            pretraining,
            gatherer,
            train_rows,
            validation_rows,
            training,
            rate,
            f"{name}, representation",
            REPRESENTATION,
        )
        pretraining.load_state_dict(represented.state)
        for weight in frozen:
            weight.requires_grad_(False)
        logs.append(represented.log.assign(stage="representation"))
    trained = train(module, gatherer, train_rows, validation_rows, training, rate, name)
    module.load_state_dict(trained.state)
    logs.append(trained.log.assign(stage="forecast"))
    after = dict(module.named_parameters())
    if all(torch.equal(weight, after[n].detach().cpu()) for n, weight in before.items()):
        raise InputError(
            f"model '{name}': {trained.log['epoch'].max()} epochs of training changed none of its "
            f"{len(before)} trainable weights. Raise model_options.{name}.learning_rate (now "
            f"{rate:g})."
        )
    size = sum(weight.numel() for weight in module.parameters() if id(weight) in learning)
    return replace(trained, log=pd.concat(logs, ignore_index=True)), size


def _to_keep(start: Start) -> dict[str, np.ndarray]:
    """The weights that an artifact holds: those that no checkpoint can give back."""
    if start.options.strategy == "zero_shot":
        return {}
    if start.options.lora and start.options.lora.merge:
        merge(start.module)
        names = set(start.module.state_dict())
    else:
        names = start.trained_weights()
    state = start.module.state_dict()
    return {name: state[name].detach().cpu().numpy() for name in sorted(names)}


def _require_windows(name: str, what: str, rows: np.ndarray) -> None:
    if not len(rows):
        raise InputError(
            f"'{name}': no window is left for {what}. Give more people or days, change the shares "
            f"under 'splits', or lower task.coverage."
        )


def _require_apart(name: str, start: Start, data: Data) -> None:
    """Weights fitted before must not have learnt from anybody that is tested on now."""
    if start.earlier is None or start.earlier.record["data"] == data.fingerprint():
        return
    known = sorted(set(start.earlier.people) & set(data.tested_people()))
    if known:
        raise InputError(
            f"model '{name}': the weights of '{start.options.weights}' have learnt from other "
            f"readings or splits of {len(known)} people who are tested on now, {known[0]} among "
            f"them. Start from weights of other people, or with the splits they were fitted to."
        )
