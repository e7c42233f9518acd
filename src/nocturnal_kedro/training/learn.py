"""What every process of a training does: the model's start, and the loop, once or twice."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from torch import nn
from torch.utils import deterministic

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.scaler import Scaler, fit_scaler
from nocturnal_kedro.series.windows import WindowGatherer
from nocturnal_kedro.training.data import Data
from nocturnal_kedro.training.loop import (
    FORECAST,
    REPRESENTATION,
    Best,
    Care,
    Lessons,
    Manner,
    Objective,
    train,
)
from nocturnal_kedro.training.options import Hardware, SettledHardware, Training
from nocturnal_kedro.training.resume import State
from nocturnal_kedro.training.start import Start, start_model, tell_scale

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Begun:
    """A model before its first step, and all that its training follows from."""

    name: str
    start: Start
    scaler: Scaler
    data: Data
    training: Training
    hardware: SettledHardware

    @cached_property
    def gatherer(self) -> WindowGatherer:
        """Its windows, on the device: laid out when they are first asked for."""
        return self.data.gatherer(self.scaler, self.start.channels, self.hardware.device)


@dataclass(frozen=True)
class Learnt:
    """What came of a training, wherever it ran."""

    state: State  # of the best epoch, all of the module's
    log: pd.DataFrame  # one row per epoch
    best_epoch: int
    trained_parameters: int
    windows: int
    seconds: float

    @classmethod
    def nothing(cls) -> Learnt:
        """Where there was nothing to train."""
        return cls({}, pd.DataFrame(), 0, 0, 0, 0.0)


def begin(
    name: str, options: Any, data: Data, training: Training, hardware: SettledHardware
) -> Begun:
    """The model before its first step, the same in every process of the same seed."""
    torch.manual_seed(training.seed)
    torch.use_deterministic_algorithms(is_deterministic(hardware))
    # Else it fills whatever it allocates, to show reads of what was never written: a fifth of the
    # time of a batch of windows.
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    start = start_model(name, options, data.task)
    scaler = start.earlier.scaler if start.earlier else fit_scaler(data.corpus, data.splits)
    tell_scale(start.module, scaler)
    return Begun(name, start, scaler, data, training, hardware)


def is_deterministic(hardware: Hardware) -> bool:
    """Whether torch is held to the same bits: not on a GPU, which lacks some of the kernels."""
    return hardware.device == "cpu"


def learn(begun: Begun, care: Care) -> Learnt:
    """Train what may be trained and leave the best of it in the module.

    Raises `InputError` where no window is left, and where training changed nothing.
    """
    name, data, hardware = begun.name, begun.data, begun.hardware
    module, options = begun.start.module, begun.start.options
    rate, from_scratch = options.learning_rate, options.strategy == "from_scratch"
    rows = data.rows_around_anchor(begun.training.anchor_hours)
    require_windows(name, "training", rows)
    validation_rows = data.night_rows("validation")
    manner = Manner(begun.training, rate, hardware, judge_start=options.strategy == "fine_tune")

    def run(part: nn.Module, told: str, stage: str, objective: Objective) -> Best:
        sampler = data.sampler(rows, begun.training)
        lessons = Lessons(begun.gatherer, sampler, validation_rows, objective)
        kept = care.checkpoints and care.checkpoints.of_stage(stage)
        watch = care.watch if objective is FORECAST else None
        trained = train(part, told, lessons, manner, Care(kept, care.stop, watch))
        if hardware.parallel == "ddp":  # shards stay with their processes
            part.load_state_dict(trained.state)
        logs.append(trained.log.assign(stage=stage))
        return trained

    logs: list[pd.DataFrame] = []
    before = {n: w.detach().clone() for n, w in module.named_parameters() if w.requires_grad}
    learning = {id(w): w.numel() for w in module.parameters() if w.requires_grad}
    pretraining: nn.Module | None = getattr(module, "pretraining", None)
    seconds = 0.0
    if pretraining is not None and from_scratch:
        if hardware.parallel != "ddp":
            raise InputError(
                f"model '{name}' is trained in two stages, and parallel {hardware.parallel} keeps "
                f"the weights of the first in shards. Choose parallel ddp."
            )
        # What is frozen while the module learns to forecast is what is learnt here.
        frozen = [weight for weight in pretraining.parameters() if not weight.requires_grad]
        pretraining.requires_grad_(True)
        learning |= {id(weight): weight.numel() for weight in pretraining.parameters()}
        told, stage = f"{name}, representation", "representation"
        seconds += run(pretraining, told, stage, REPRESENTATION).seconds
        for weight in frozen:
            weight.requires_grad_(False)
    trained = run(module, name, "forecast", FORECAST)
    if trained.state:  # of shards, the first process alone has the whole
        _require_changed(name, before, trained, rate)
        _warn_of_harm(name, trained, rate)
    return Learnt(
        state=trained.state,
        log=pd.concat(logs, ignore_index=True),
        best_epoch=trained.best_epoch,
        trained_parameters=sum(learning.values()),
        windows=len(rows),
        seconds=seconds + trained.seconds,
    )


def require_windows(name: str, what: str, rows: Any) -> None:
    """Raise `InputError` where there is nothing to learn from, or to choose by."""
    if not len(rows):
        raise InputError(
            f"'{name}': no window is left for {what}. Give more people or days, change the shares "
            f"under 'splits', or lower task.coverage."
        )


def _require_changed(name: str, before: State, trained: Best, rate: float) -> None:
    if all(torch.equal(weight.cpu(), trained.state[n]) for n, weight in before.items()):
        raise InputError(
            f"model '{name}': {trained.best_epoch} epochs of training changed none of its "
            f"{len(before)} trainable weights. Raise model_options.{name}.learning_rate (now "
            f"{rate:g})."
        )


def _warn_of_harm(name: str, trained: Best, rate: float) -> None:
    scores = trained.log.set_index("epoch")[FORECAST.score]
    if 0 in scores and scores.idxmin() == 0:
        logger.warning(
            "model '%s': training made it worse, and it is scored as such: %s was %.4g at the "
            "start and %.4g in the best epoch. Lower model_options.%s.learning_rate (now %g), "
            "train longer, or take the weights as they are, by strategy zero_shot.",
            name,
            FORECAST.score,
            scores[0],
            scores[trained.best_epoch],
            name,
            rate,
        )
