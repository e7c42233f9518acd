"""THE loop: optimizer, prepare, resume, step, validate, keep the best, return a value."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from nocturnal_kedro.errors import DivergedError, InputError, StoppedError
from nocturnal_kedro.models import Forecast
from nocturnal_kedro.series.schema import QUANTILE_LEVELS
from nocturnal_kedro.series.windows import Batch, WindowGatherer
from nocturnal_kedro.training.device import start_accelerator, with_autocast
from nocturnal_kedro.training.options import SettledHardware, Training
from nocturnal_kedro.training.resume import Checkpoints, Progress, State
from nocturnal_kedro.training.sampler import Sampler
from nocturnal_kedro.training.stop import StopRequest

# Initial weights and dropout come from torch's one generator: with a runner of threads, models are
# built and trained one after the other, or their numbers would mix.
ONE_AT_A_TIME = threading.Lock()
LOOK_STEPS = 10  # between looks at the losses and at who asks to stop: each waits for the device


@dataclass(frozen=True)
class Lessons:
    """What is taught: the windows of the steps, and those that choose the epoch.

    Rows are origins in the gatherer's corpus (int64).
    """

    gatherer: WindowGatherer
    sampler: Sampler
    validation_rows: np.ndarray
    objective: Objective


@dataclass(frozen=True)
class Manner:
    """How it is taught, and by what."""

    training: Training
    learning_rate: float
    hardware: SettledHardware
    judge_start: bool = False  # the log begins with the weights at the start, as epoch 0


@dataclass(frozen=True)
class Care:
    """Where a training is kept, who may stop it, and who is told of each epoch and its score."""

    checkpoints: Checkpoints | None = None
    stop: StopRequest | None = None
    watch: Callable[[int, float], None] | None = None


@dataclass(frozen=True)
class Best:
    """The best weights seen on validation, and the way there."""

    state: State
    log: pd.DataFrame  # epoch, both losses, the objective's score, learning_rate, seconds
    best_epoch: int
    seconds: float


def train(module: nn.Module, name: str, lessons: Lessons, manner: Manner, care: Care) -> Best:
    """Teach `module`; early stopping sees the validation rows alone.

    Epoch 0 is never the best. Every process of a training calls it; the first one's value counts.
    Raises `InputError` when the loss is no longer finite and where the hardware is not what was
    asked for, `StoppedError` when told to stop.
    """
    training, hardware, learning_rate = manner.training, manner.hardware, manner.learning_rate
    objective, checkpoints = lessons.objective, care.checkpoints
    total_steps = training.epochs * training.steps_per_epoch
    accelerator = start_accelerator(hardware, training)
    if accelerator.process_index:  # its dropout is to differ from the first one's
        torch.manual_seed(training.seed + accelerator.process_index)
    if hardware.gradient_checkpointing:
        checkpoint_gradients(module, name)
    ema = _start_ema(module, training.ema, accelerator)
    trainable = [weight for weight in module.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=learning_rate, weight_decay=training.weight_decay)
    with_autocast(module, hardware, accelerator)
    module, optimizer = accelerator.prepare(module, optimizer)
    trainable = [weight for weight in module.parameters() if weight.requires_grad]

    progress, best_state = Progress(), State()
    if checkpoints and checkpoints.restore(accelerator, progress, ema) and progress.best_epoch:
        best_state = checkpoints.best(progress.best_epoch)
    started = time.perf_counter() - progress.seconds

    def rate_at(step: int) -> float:
        return learning_rate * warmup_cosine(step, total_steps, training.warmup_share)

    def judge(losses: list[float]) -> None:
        """Score the weights as they are by validation, and keep them where they are the best."""
        nonlocal best_state
        scored = ema.module if ema is not None else module
        share = max(training.batch_size // accelerator.num_processes, 1)
        validation_loss, score = objective.validate(
            scored, lessons.gatherer, lessons.validation_rows, share, accelerator
        )
        epoch = progress.step // training.steps_per_epoch
        progress.epochs.append(
            {
                "epoch": epoch,
                "train_loss": float(np.mean(losses)) if losses else math.nan,
                "validation_loss": validation_loss,
                objective.score: score,
                "learning_rate": rate_at(progress.step),
                "seconds": time.perf_counter() - started,
            }
        )
        if epoch and score < progress.best:
            progress.best, progress.best_epoch = score, epoch
            best_state = _whole_state(scored, accelerator)
            if checkpoints:
                checkpoints.keep_best(accelerator, best_state, epoch)
        if care.watch and epoch:
            care.watch(epoch, score)
        late = epoch - progress.best_epoch >= training.patience
        progress.over = late or progress.step == total_steps

    losses: list[Tensor] = []  # not yet looked at
    with (
        care.stop or StopRequest() as stopping,
        progress_bar(total_steps, name, progress.step, accelerator.is_main_process) as bar,
    ):
        if manner.judge_start and not progress.step:
            judge([])
        module.train()
        while not progress.over:
            # A scheduler would be stepped once for each process, and have a state to keep.
            for group in optimizer.param_groups:
                group["lr"] = rate_at(progress.step)
            rows = lessons.sampler.rows_of_step(progress.step)
            losses.append(_backward(module, rows, lessons, accelerator, hardware.accumulate))
            accelerator.clip_grad_norm_(trainable, training.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            if ema is not None:
                ema.update_parameters(accelerator.unwrap_model(module))
            progress.step += 1
            bar.update()

            ends = progress.step % training.steps_per_epoch == 0
            due = checkpoints is not None and progress.step % checkpoints.every_steps == 0
            if not (progress.step % LOOK_STEPS == 0 or ends or due):
                continue
            progress.losses += _look_at(losses, accelerator, name, progress, learning_rate)
            told = f"loss {progress.losses[-1]:.3f}, best {progress.best:.3f}"
            bar.set_postfix_str(f"step {progress.step}, {told}", refresh=False)
            if ends:
                judge(progress.losses)
                module.train()
                progress.losses = []
            stopped = _agree(stopping.asked, accelerator)
            progress.seconds = time.perf_counter() - started
            if checkpoints and (due or progress.over or stopped):
                checkpoints.save(accelerator, progress, ema)
            if stopped and not progress.over:
                raise StoppedError(_how_to_go_on(name, progress.step, total_steps, checkpoints))
    log = pd.DataFrame(progress.epochs)
    return Best(best_state, log, progress.best_epoch, progress.seconds)


def _start_ema(
    module: nn.Module, decay: float | None, accelerator: Accelerator
) -> AveragedModel | None:
    if decay is None:
        return None
    # Copied before accelerate puts a forward of its own, bound to the original, into the module.
    return AveragedModel(
        module, accelerator.device, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True
    )


def _backward(
    module: nn.Module,
    rows_W: np.ndarray,
    lessons: Lessons,
    accelerator: Accelerator,
    parts: int,
) -> Tensor:
    """Gradients of the mean loss over all windows of a step; returns this process's part of it.

    The mean is over what is observed in all of them: a mean of the processes' means would differ.
    Each process has the corpus and counts by itself.
    """
    gatherer, objective = lessons.gatherer, lessons.objective
    processes, own = accelerator.num_processes, accelerator.process_index
    count = objective.count(gatherer, torch.from_numpy(rows_W).to(gatherer.device)).clamp(min=1)
    whole = torch.zeros((), device=gatherer.device)
    for number, part in enumerate(rows_W.reshape(parts, processes, -1)[:, own]):
        batch = gatherer.gather(torch.from_numpy(part).to(gatherer.device))
        with nullcontext() if number == parts - 1 else accelerator.no_sync(module):
            values, observed = objective.loss(module, batch)
            # Gradients are averaged over processes, so each one's sum is scaled up by their number.
            loss = (values * observed).sum() * processes / count
            accelerator.backward(loss)
        whole += loss.detach()
    return whole


def _look_at(
    losses: list[Tensor],
    accelerator: Accelerator,
    name: str,
    progress: Progress,
    learning_rate: float,
) -> list[float]:
    """The losses since the last look, as means over the processes; `losses` is emptied."""
    looked = accelerator.reduce(torch.stack(losses), reduction="mean").tolist()
    losses.clear()
    if not np.isfinite(looked).all():
        bad = next(loss for loss in looked if not math.isfinite(loss))
        raise DivergedError(
            f"model '{name}': the loss is {bad} before step {progress.step}. Lower "
            f"model_options.{name}.learning_rate (now {learning_rate:g})."
        )
    return looked


def _agree(asked: bool, accelerator: Accelerator) -> bool:
    """Whether any process was asked: all of them stop, or none."""
    count = torch.tensor(int(asked), device=accelerator.device)
    return bool(accelerator.reduce(count, reduction="sum").item())


def _whole_state(module: nn.Module, accelerator: Accelerator) -> State:
    """All weights by their own names on the CPU; of shards, in the first process alone."""
    state = accelerator.get_state_dict(module) or {}
    return {
        name.removeprefix("_orig_mod."): value.detach().cpu().clone()
        for name, value in state.items()
    }


def _how_to_go_on(name: str, step: int, total: int, checkpoints: Checkpoints | None) -> str:
    kept = (
        f"it is kept in '{checkpoints.folder}', and the same command goes on from there"
        if checkpoints
        else "nothing keeps it, since it was given no folder for checkpoints"
    )
    return f"model '{name}' was told to stop after step {step} of at most {total}: {kept}."


def checkpoint_gradients(module: nn.Module, name: str) -> None:
    """Keep less of the forward pass and compute it again; `InputError` where a model cannot."""
    able: list[Any] = [
        part for part in module.modules() if getattr(part, "supports_gradient_checkpointing", False)
    ]
    if not able:
        raise InputError(
            f"model '{name}' has no gradient checkpointing: set "
            f"hardware.gradient_checkpointing to false, or take a smaller batch in more parts "
            f"(hardware.accumulate)."
        )
    for part in able:
        part.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def warmup_cosine(step: int, total_steps: int, warmup_share: float) -> float:
    """Share of the learning rate: up in a line, then down along half a cosine to 0."""
    warmup = warmup_share * total_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(total_steps - warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def pointwise_loss(forecast: Forecast, batch: Batch) -> Tensor:
    """Loss of every point, (B, H): the model's own, else pinball, or else squared error."""
    if forecast.loss_BH is not None:
        return forecast.loss_BH
    if forecast.quantiles_BHQ is None:
        return (forecast.point_BH - batch.target_BH) ** 2
    level_Q = forecast.quantiles_BHQ.new_tensor(QUANTILE_LEVELS)
    short_BHQ = batch.target_BH[..., None] - forecast.quantiles_BHQ
    return 2 * torch.maximum(level_Q * short_BHQ, (level_Q - 1) * short_BHQ).mean(dim=-1)


@torch.no_grad()
def validate(
    module: nn.Module,
    gatherer: WindowGatherer,
    rows: np.ndarray,
    batch_size: int,
    accelerator: Accelerator | None = None,
) -> tuple[float, float]:
    """Mean loss over all observed points, and RMSE as the mean over people; in scaled units."""
    module.eval()
    person = gatherer.person_of(rows)
    loss_square_count_3P = np.zeros((3, person.max() + 1))
    for part, own in _shares(rows, batch_size, accelerator):
        batch = gatherer.gather(torch.from_numpy(part).to(gatherer.device))
        forecast = module(batch)
        observed = batch.target_observed_BH & torch.from_numpy(own).to(gatherer.device)[:, None]
        loss_BH = pointwise_loss(forecast, batch) * observed
        square_BH = (forecast.point_BH - batch.target_BH) ** 2 * observed
        whose = gatherer.person_of(part)
        for sums_P, values_BH in zip(
            loss_square_count_3P, (loss_BH, square_BH, observed), strict=True
        ):
            np.add.at(sums_P, whose, values_BH.sum(dim=1).double().cpu().numpy())
    loss_P, square_P, count_P = _over_processes(loss_square_count_3P, accelerator)
    seen = count_P > 0
    return (
        float(loss_P.sum() / count_P.sum()),
        float(np.sqrt(square_P[seen] / count_P[seen]).mean()),
    )


def _shares(
    rows: np.ndarray, batch_size: int, accelerator: Accelerator | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """This process's batches, and which of their rows count.

    Sharded weights are gathered in each forward pass, so that every process needs equally many.
    """
    processes = accelerator.num_processes if accelerator else 1
    own = accelerator.process_index if accelerator else 0
    for first in range(0, len(rows), batch_size * processes):
        part = rows[first + own * batch_size :][:batch_size]
        yield (part, np.ones(len(part), bool)) if len(part) else (rows[:1], np.zeros(1, bool))


def _over_processes(sums: np.ndarray, accelerator: Accelerator | None) -> np.ndarray:
    if accelerator is None or accelerator.num_processes == 1:
        return sums
    whole = torch.from_numpy(sums).to(accelerator.device)
    return accelerator.reduce(whole, reduction="sum").cpu().numpy()


Validate = Callable[
    [nn.Module, WindowGatherer, np.ndarray, int, Accelerator | None], tuple[float, float]
]


@dataclass(frozen=True)
class Objective:
    """What is learnt, and what chooses the epoch."""

    loss: Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]  # values, and which of them count
    count: Callable[[WindowGatherer, Tensor], Tensor]  # how many will count in windows at rows
    validate: Validate
    score: str  # what the second number of `validate` is called in the log


def _forecast_loss(module: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    return pointwise_loss(module(batch), batch), batch.target_observed_BH


def _represent_loss(module: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    loss_B = module(batch)
    return loss_B, torch.ones_like(loss_B, dtype=torch.bool)


def _count_windows(gatherer: WindowGatherer, rows: Tensor) -> Tensor:
    return torch.tensor(len(rows), device=gatherer.device)


@torch.no_grad()
def _validate_representation(
    module: nn.Module,
    gatherer: WindowGatherer,
    rows: np.ndarray,
    batch_size: int,
    accelerator: Accelerator | None = None,
) -> tuple[float, float]:
    module.eval()
    sum_count = np.zeros(2)
    for part, own in _shares(rows, batch_size, accelerator):
        loss_B = module(gatherer.gather(torch.from_numpy(part).to(gatherer.device)))
        sum_count += loss_B.double().cpu().numpy() @ own, own.sum()
    whole, count = _over_processes(sum_count, accelerator)
    return whole / count, whole / count


# The epoch is chosen by the RMSE of validation in scaled units, each person counting once as in the
# leaderboard.
FORECAST = Objective(_forecast_loss, WindowGatherer.count_targets, validate, "validation_rmse")
# Of a module that answers a batch with a loss for each window: `Forecaster.pretraining`.
REPRESENTATION = Objective(
    _represent_loss, _count_windows, _validate_representation, "validation_score"
)


def progress_bar(total_steps: int, name: str, done: int, shown: bool) -> tqdm[NoReturn]:
    """A bar with speed and time left; in a log file it speaks every 15 seconds only."""
    interactive = sys.stderr.isatty()
    return tqdm(
        total=total_steps,
        initial=done,
        disable=not shown,
        desc=f"train {name}",
        unit="step",
        mininterval=0.5 if interactive else 15,
        ncols=None if interactive else 110,
    )
