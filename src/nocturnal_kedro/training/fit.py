"""Fit a model, a service or a baseline: from the training split, and validation, to an artifact."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nocturnal_kedro import plugins
from nocturnal_kedro.errors import InputError
from nocturnal_kedro.metrics.calibration import Spread, fit_spread
from nocturnal_kedro.models import ModelOptions
from nocturnal_kedro.series.scaler import fit_scaler
from nocturnal_kedro.training.artifact import Artifact
from nocturnal_kedro.training.data import Data
from nocturnal_kedro.training.device import device_name, settle
from nocturnal_kedro.training.forecast import EVERYTHING, Answers, answer_of_module, answer_with
from nocturnal_kedro.training.history import gather_history
from nocturnal_kedro.training.launch import Job, learn_on_processes
from nocturnal_kedro.training.learn import (
    Begun,
    Learnt,
    begin,
    is_deterministic,
    learn,
    require_windows,
)
from nocturnal_kedro.training.loop import ONE_AT_A_TIME, Care
from nocturnal_kedro.training.options import Hardware, Training
from nocturnal_kedro.training.resume import Checkpoints
from nocturnal_kedro.training.start import Start, merge
from nocturnal_kedro.training.unfinished import Unfinished, only_one
from nocturnal_kedro.versions import versions


def fit_model(
    name: str,
    given: dict[str, Any],
    data: Data,
    training: Training,
    hardware: Hardware | None = None,
    unfinished: Unfinished | None = None,
    answers: Answers | None = None,
) -> Artifact:
    """Start the model as its strategy says, train it, and learn from validation how it errs.

    `given` are its options that differ from the defaults; `unfinished` keeps its
    trainings that were cut off, and this one goes on from where it is one of them. Raises
    `InputError` on unusable options or weights, hardware that is not there, no window, a diverging
    loss, and where training changed nothing; `StoppedError` where it was told to stop.
    """
    options: Any = plugins.options("model", name, given)
    data.require_frozen()
    validation_rows = data.night_rows("validation")
    require_windows(name, "validation", validation_rows)
    if plugins.is_service(name):
        return _ask_service(name, options, data, validation_rows, answers)

    hardware = settle(hardware or Hardware(), training)
    with ONE_AT_A_TIME:
        begun = begin(name, options, data, training, hardware)
        start, earlier = begun.start, begun.start.earlier
        require_apart(begun)
        learnt, kept = Learnt.nothing(), None
        if options.strategy != "zero_shot":
            if unfinished:
                kept = unfinished.folder_of(describe(begun))
            learnt = _learn(begun, kept)
        gatherer = begun.gatherer
        module = start.module.to(gatherer.device)
        parameters = sum(weight.numel() for weight in module.parameters())
        state = _to_keep(start)
    answer, target_NH = answer_of_module(module, data.corpus, gatherer, validation_rows)
    learnt_from = set(data.trained_people()) if learnt.state else set()
    return Artifact(
        name=name,
        kind="model",
        options=start.options.model_dump(mode="json"),
        architecture=start.architecture,
        base=start.base,
        scaler=begun.scaler,
        people=tuple(sorted(learnt_from.union(earlier.people if earlier else ()))),
        state=state,
        spread=fit_spread(*answer, target_NH, data.corpus.person_of(validation_rows)),
        record={
            "data": data.fingerprint(),
            "task": data.task.model_dump(),
            "training": training.model_dump(),
            "hardware": hardware.model_dump() | {"name": device_name(hardware.device)},
            "deterministic": is_deterministic(hardware),
            "versions": versions(),
            "parameters": parameters,
            "trained_parameters": learnt.trained_parameters,
            "windows": learnt.windows,
            "best_epoch": learnt.best_epoch,
            "train_seconds": learnt.seconds,
            "checkpoints": kept and str(kept.resolve()),  # in the way once this is saved
        },
        log=learnt.log,
    )


def _learn(begun: Begun, kept: Path | None) -> Learnt:
    """In this process where one is enough, else by processes of their own; loads the result."""
    start, hardware = begun.start, begun.hardware
    with only_one(kept):
        if hardware.world > 1:
            job = Job(
                name=begun.name,
                options=start.options.model_dump(mode="json"),
                task=begun.data.task,
                training=begun.training,
                hardware=hardware,
                checkpoints=str(kept) if kept else None,
            )
            learnt = learn_on_processes(job, begun.data)
            start.module.load_state_dict(learnt.state)
            return learnt
        return learn(begun, Care(Checkpoints(kept, hardware.checkpoint_steps) if kept else None))


def describe(begun: Begun) -> dict[str, Any]:
    """Whatever would make it another training, were it another."""
    return {
        "model": begun.name,
        "options": begun.start.options.model_dump(mode="json"),
        "base": begun.start.base,
        "architecture": begun.start.architecture,
        "data": begun.data.fingerprint(),
        "task": begun.data.task.model_dump(),
        "training": begun.training.model_dump(),
        "parallel": begun.hardware.parallel if begun.hardware.world > 1 else "ddp",
    }


def fit_baseline(name: str, given: dict[str, Any], data: Data, training: Training) -> Artifact:
    """Fit a baseline to the training rows and windows, and learn from validation how it errs."""
    options = plugins.options("baseline", name, given)
    data.require_frozen()
    validation_rows = data.night_rows("validation")
    require_windows(name, "validation", validation_rows)
    scaler = fit_scaler(data.corpus, data.splits)
    people = data.trained_people()
    around_anchor = data.rows_around_anchor(training.anchor_hours)
    history = gather_history(
        data, data.gatherer(scaler, EVERYTHING), around_anchor, people, training.seed
    )
    code = plugins.load("baseline", name)
    started = time.perf_counter()
    state = code.fit(history, options)
    seconds = time.perf_counter() - started
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
            "versions": versions(),
            "parameters": _count_numbers(state),
            "train_seconds": seconds,
        },
        log=pd.DataFrame(),
    )
    answer, target_NH, _ = answer_with(artifact, data, validation_rows)
    return replace(
        artifact, spread=fit_spread(*answer, target_NH, data.corpus.person_of(validation_rows))
    )


def _count_numbers(state: dict[str, np.ndarray]) -> int | None:
    """How many real numbers a baseline has learnt; None where all it knows is text, as of trees."""
    if state and all(array.dtype == np.uint8 for array in state.values()):
        return None
    return sum(array.size for array in state.values() if array.dtype.kind == "f")


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
    return replace(
        artifact, spread=fit_spread(*answer, target_NH, data.corpus.person_of(validation_rows))
    )


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


def require_apart(begun: Begun) -> None:
    """Weights fitted before must not have learnt from anybody that is tested on now."""
    earlier, data = begun.start.earlier, begun.data
    if earlier is None or earlier.record["data"] == data.fingerprint():
        return
    known = sorted(set(earlier.people) & set(data.tested_people()))
    if known:
        raise InputError(
            f"model '{begun.name}': the weights of '{begun.start.options.weights}' have learnt "
            f"from other readings or splits of {len(known)} people who are tested on now, "
            f"{known[0]} among them. Start from weights of other people, or with the splits they "
            f"were fitted to."
        )
