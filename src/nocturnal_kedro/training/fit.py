"""Fit a model, a service or a baseline: from the training split, and validation, to an artifact."""

from __future__ import annotations

import logging
import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nocturnal_kedro import plugins
from nocturnal_kedro.errors import InputError
from nocturnal_kedro.metrics.calibration import Spread, fit_spread
from nocturnal_kedro.models import ModelOptions
from nocturnal_kedro.series.scaler import fit_scaler
from nocturnal_kedro.series.schema import TEST_SPLITS
from nocturnal_kedro.series.variations import LEARNT_FROM
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
from nocturnal_kedro.training.trained import Trained, key_of
from nocturnal_kedro.training.unfinished import Unfinished, only_one
from nocturnal_kedro.versions import versions

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """What outlives a run; None where it is not to be."""

    unfinished: Unfinished | None = (
        None  # trainings that were cut off: one goes on from where it was
    )
    trained: Trained | None = None  # whole ones: none is repeated
    answers: Answers | None = None  # of a service


NOTHING_KEPT = Kept()


def fit_model(
    name: str,
    given: dict[str, Any],
    data: Data,
    training: Training,
    hardware: Hardware | None = None,
    kept: Kept = NOTHING_KEPT,
) -> Artifact:
    """Start the model as its strategy says, train it, and learn from validation how it errs.

    `given` are its options that differ from the defaults. Raises `InputError` on unusable options
    or weights, hardware that is not there, no window, a diverging loss, and where training changed
    nothing; `StoppedError` where it was told to stop.
    """
    options: Any = plugins.options("model", name, given)
    data.require_frozen()
    validation_rows = data.night_rows("validation")
    require_windows(name, "validation", validation_rows)
    if plugins.is_service(name):
        return _ask_service(name, options, data, kept.answers)

    hardware = settle(hardware or Hardware(), training)
    # Nobody trains the same meanwhile: in another process until the artifact is kept.
    with ONE_AT_A_TIME, ExitStack() as alone:
        begun = begin(name, options, data, training, hardware)
        start, earlier = begun.start, begun.start.earlier
        if earlier:
            require_apart(earlier, data)
        what = describe(begun)
        key = key_of("model", name, what)
        if found := _find(key, name, kept.trained):
            return found
        learnt, checkpoints = Learnt.nothing(), None
        if options.strategy != "zero_shot":
            if kept.unfinished:
                # Of the same code, too: what another began is not gone on with.
                checkpoints = kept.unfinished.folder_of(what | {"key": key})
                alone.enter_context(only_one(checkpoints))
                if found := _find(key, name, kept.trained):  # another process kept it just now
                    shutil.rmtree(checkpoints, ignore_errors=True)
                    return found
            learnt = _learn(begun, checkpoints)
        gatherer = begun.gatherer
        module = start.module.to(gatherer.device)
        parameters = sum(weight.numel() for weight in module.parameters())
        state = _to_keep(start)
        answer, target_NH = answer_of_module(module, data.corpus, gatherer, validation_rows)
        learnt_from = set(data.trained_people()) if learnt.state else set()
        spans = _learnt_from(data, LEARNT_FROM if learnt.state else LEARNT_FROM[1:])
        artifact = Artifact(
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
                "key": key,
                "data": data.fingerprint(),
                "made_ready_by": data.made_ready_by(),
                "learnt_from": spans + (earlier.record["learnt_from"] if earlier else []),
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
            },
            log=learnt.log,
        )
        if kept.trained:
            kept.trained.keep(key, artifact)
            if checkpoints:
                # What they kept from being lost is on disk.
                shutil.rmtree(checkpoints, ignore_errors=True)
        return artifact


def _find(key: str, name: str, trained: Trained | None) -> Artifact | None:
    found = trained.find(key) if trained else None
    if trained and found:
        logger.info(
            "'%s' was trained before with the same data, settings and code; it is taken from '%s'",
            name,
            trained.folder_of(key),
        )
    return found


def _learn(begun: Begun, kept: Path | None) -> Learnt:
    """In this process where one is enough, else by processes of their own; loads the result."""
    start, hardware = begun.start, begun.hardware
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
        "precision": begun.hardware.precision,
    }


def fit_baseline(
    name: str,
    given: dict[str, Any],
    data: Data,
    training: Training,
    trained: Trained | None = None,
) -> Artifact:
    """Fit a baseline to the training rows and windows, and learn from validation how it errs."""
    options = plugins.options("baseline", name, given)
    data.require_frozen()
    validation_rows = data.night_rows("validation")
    require_windows(name, "validation", validation_rows)
    what = {
        "options": options.model_dump(mode="json"),
        "data": data.fingerprint(),
        "task": data.task.model_dump(),
        "anchor_hours": training.anchor_hours,
        "seed": training.seed,
    }
    key = key_of("baseline", name, what)
    if found := _find(key, name, trained):
        return found
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
            "key": key,
            "data": data.fingerprint(),
            "made_ready_by": data.made_ready_by(),
            "learnt_from": _learnt_from(data),
            "task": data.task.model_dump(),
            "versions": versions(),
            "parameters": _count_numbers(state),
            "train_seconds": seconds,
        },
        log=pd.DataFrame(),
    )
    artifact = with_spread(artifact, data)
    if trained:
        trained.keep(key, artifact)
    return artifact


def with_spread(
    artifact: Artifact, data: Data, device: str = "cpu", answers: Answers | None = None
) -> Artifact:
    """The artifact with the spread that its errors have on the validation nights of `data`."""
    rows = data.night_rows("validation")
    answer, target_NH, _ = answer_with(artifact, data, rows, device, answers)
    return replace(artifact, spread=fit_spread(*answer, target_NH, data.corpus.person_of(rows)))


def _count_numbers(state: dict[str, np.ndarray]) -> int | None:
    """How many real numbers a baseline has learnt; None where all it knows is text, as of trees."""
    if state and all(array.dtype == np.uint8 for array in state.values()):
        return None
    return sum(array.size for array in state.values() if array.dtype.kind == "f")


def _ask_service(
    name: str,
    options: ModelOptions,
    data: Data,
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
            "key": key_of("model", name, {"options": options.model_dump(mode="json")}),
            "data": data.fingerprint(),
            "made_ready_by": data.made_ready_by(),
            "learnt_from": [],
            "task": data.task.model_dump(),
            "parameters": None,  # not published
            "windows": 0,
            "best_epoch": 0,
            "train_seconds": 0.0,
        },
        log=pd.DataFrame(),
    )
    return with_spread(artifact, data, answers=answers)


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


def _learnt_from(data: Data, splits: tuple[str, ...] = LEARNT_FROM) -> list[dict[str, str]]:
    """Whose readings a model learns from, or is set right by, and from when to when (half open)."""
    own = data.splits[data.splits["split"].isin(splits)]
    return own[["source", "subject", "start", "end"]].astype(str).to_dict("records")


def require_apart(artifact: Artifact, data: Data) -> None:
    """Raise `InputError` if it has learnt from, or was chosen by, time that is tested on now."""
    learnt_from = artifact.record.get("learnt_from")
    if learnt_from is None:
        raise InputError(
            f"the artifact of '{artifact.name}' does not tell which days it has learnt from: it "
            f"was written by another version, or elsewhere. Run the training pipeline again, or "
            f"migrate_ttm with migration.learnt_from."
        )
    tested = data.splits[data.splits["split"].isin(TEST_SPLITS)]
    # Of a model from elsewhere no more is known than the source.
    whole = {row["source"] for row in learnt_from if row["subject"] is None}
    for source in sorted(whole & set(tested["source"])):
        raise InputError(
            f"the weights of '{artifact.name}' have learnt from the source '{source}', and nobody "
            f"knows from whose days: those that are tested on now may be among them. Start from "
            f"other weights, or test on other sources."
        )
    learnt = pd.DataFrame(learnt_from, columns=["source", "subject", "start", "end"])
    learnt[["start", "end"]] = learnt[["start", "end"]].apply(pd.to_datetime)
    both = learnt.merge(tested, on=["source", "subject"], suffixes=("", "_tested"))
    known = both[(both["start"] < both["end_tested"]) & (both["start_tested"] < both["end"])]
    if len(known):
        people = sorted(set(known["source"] + "/" + known["subject"]))
        raise InputError(
            f"the weights of '{artifact.name}' have learnt from days of {len(people)} people that "
            f"are tested on now, {people[0]} among them. Start from weights of other people, or "
            f"with the splits they were fitted to."
        )
