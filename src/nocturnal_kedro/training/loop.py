"""THE loop: seed, optimizer, prepare, step, validate, keep the best, return a value."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.models import QUANTILE_LEVELS, Forecast
from nocturnal_kedro.series.windows import Batch, WindowGatherer
from nocturnal_kedro.training.device import TORCH_NAME, require_device
from nocturnal_kedro.training.options import Training

# Initial weights and dropout come from torch's one generator: with a runner of threads, models are
# built and trained one after the other, or their numbers would mix.
ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Trained:
    """The best weights seen on validation, and the way there."""

    state: dict[str, Tensor]
    log: pd.DataFrame  # epoch, both losses, the objective's score, learning_rate, seconds
    best_epoch: int


def train(
    module: nn.Module,
    gatherer: WindowGatherer,
    train_rows: np.ndarray,
    validation_rows: np.ndarray,
    training: Training,
    learning_rate: float,
    name: str,
    objective: Objective | None = None,
) -> Trained:
    """Fit `module` to windows at `train_rows`; early stopping sees `validation_rows` alone.

    Rows are origins in the gatherer's corpus (int64). The objective is FORECAST where none is
    given. Raises `InputError` when the loss is no longer finite.
    """
    objective = objective or FORECAST
    total_steps = training.epochs * training.steps_per_epoch
    accelerator = start_accelerator(training)
    trainable = [weight for weight in module.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=learning_rate, weight_decay=training.weight_decay)
    # A prepared scheduler would step once per process: it stays as it is.
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, total_steps, training.warmup_share)
    )
    module, optimizer = accelerator.prepare(module, optimizer)

    batches = draw_rows(train_rows, training.batch_size, training.seed)
    epochs: list[dict[str, float]] = []
    best, best_epoch, best_state = math.inf, 0, {}
    started = time.perf_counter()
    with progress(total_steps, name) as bar:
        for epoch in range(1, training.epochs + 1):
            module.train()
            losses = []
            for _ in range(training.steps_per_epoch):
                batch = gatherer.gather(next(batches).to(accelerator.device))
                loss = masked_mean(*objective.loss(module, batch), accelerator)
                if not torch.isfinite(loss):
                    raise InputError(
                        f"model '{name}': the loss is {loss.item()} in epoch {epoch}. Lower "
                        f"model_options.{name}.learning_rate (now {learning_rate:g})."
                    )
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(trainable, training.clip_norm)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                losses.append(loss.item())
                bar.set_postfix_str(
                    f"epoch {epoch}, loss {losses[-1]:.3f}, best {best:.3f}",
                    refresh=False,
                )
                bar.update()

            validation_loss, score = objective.validate(
                module, gatherer, validation_rows, training.batch_size
            )
            epochs.append(
                {
                    "epoch": epoch,
                    "train_loss": float(np.mean(losses)),
                    "validation_loss": validation_loss,
                    objective.score: score,
                    "learning_rate": float(schedule.get_last_lr()[0]),
                    "seconds": time.perf_counter() - started,
                }
            )
            if score < best:
                best, best_epoch = score, epoch
                best_state = {
                    key: value.detach().cpu().clone()
                    for key, value in accelerator.unwrap_model(module).state_dict().items()
                }
            if epoch - best_epoch >= training.patience:
                break
    return Trained(best_state, pd.DataFrame(epochs), best_epoch)


def start_accelerator(training: Training) -> Accelerator:
    """An accelerator on the device that was asked for, or an error: never another one."""
    require_device(training.device)
    accelerator = Accelerator(cpu=training.device == "cpu")
    expected = TORCH_NAME[training.device]
    if accelerator.device.type != expected or accelerator.num_processes != 1:
        raise InputError(
            f"training asked for one process on {expected} and got "
            f"{accelerator.num_processes} on {accelerator.device}. Unset the ACCELERATE_* and "
            f"WORLD_SIZE variables of the environment, or start with `kedro run` alone."
        )
    return accelerator


def draw_rows(rows: np.ndarray, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Batches of origins for ever, each origin once before any comes twice."""
    generator = np.random.default_rng(seed)
    queue = np.empty(0, np.int64)
    while True:
        while len(queue) < batch_size:
            queue = np.concatenate([queue, generator.permutation(rows)])
        yield torch.from_numpy(queue[:batch_size])
        queue = queue[batch_size:]


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


def masked_mean(values: Tensor, observed: Tensor, accelerator: Accelerator) -> Tensor:
    """Mean over the observed points of all processes; the mean of their means would differ."""
    count = accelerator.reduce(observed.sum(), reduction="sum").clamp(min=1)
    # Gradients are averaged over processes, so each one's sum is scaled up by their number.
    return (values * observed).sum() * accelerator.num_processes / count


@torch.no_grad()
def validate(
    module: nn.Module, gatherer: WindowGatherer, rows: np.ndarray, batch_size: int
) -> tuple[float, float]:
    """Mean loss over all observed points, and RMSE as the mean over people; in scaled units."""
    module.eval()
    loss, squares, counts = [], [], []
    for part in torch.from_numpy(rows).split(batch_size):
        batch = gatherer.gather(part.to(gatherer.device))
        forecast = module(batch)
        observed = batch.target_observed_BH
        loss.append((pointwise_loss(forecast, batch) * observed).sum().item())
        square_BH = (forecast.point_BH - batch.target_BH) ** 2 * observed
        squares.append(square_BH.sum(dim=1).double().cpu())
        counts.append(observed.sum(dim=1).double().cpu())
    person = gatherer.person_of(rows)
    square_P, count_P = (np.bincount(person, torch.cat(part).numpy()) for part in (squares, counts))
    seen = count_P > 0
    return sum(loss) / count_P.sum(), float(np.sqrt(square_P[seen] / count_P[seen]).mean())


@dataclass(frozen=True)
class Objective:
    """What is learnt, and what chooses the epoch."""

    loss: Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]  # values, and which of them count
    validate: Callable[[nn.Module, WindowGatherer, np.ndarray, int], tuple[float, float]]
    score: str  # what the second number of `validate` is called in the log


def _forecast_loss(module: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    return pointwise_loss(module(batch), batch), batch.target_observed_BH


def _represent_loss(module: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    loss_B = module(batch)
    return loss_B, torch.ones_like(loss_B, dtype=torch.bool)


@torch.no_grad()
def _validate_representation(
    module: nn.Module, gatherer: WindowGatherer, rows: np.ndarray, batch_size: int
) -> tuple[float, float]:
    module.eval()
    parts = torch.from_numpy(rows).split(batch_size)
    losses = torch.cat([module(gatherer.gather(part.to(gatherer.device))) for part in parts])
    return float(losses.mean()), float(losses.mean())


# The epoch is chosen by the RMSE of validation in scaled units, each person counting once as in the
# leaderboard.
FORECAST = Objective(_forecast_loss, validate, "validation_rmse")
# Of a module that answers a batch with a loss for each window: `Forecaster.pretraining`.
REPRESENTATION = Objective(_represent_loss, _validate_representation, "validation_score")


def progress(total_steps: int, name: str) -> tqdm[NoReturn]:
    """A bar with speed and time left; in a log file it speaks every 15 seconds only."""
    interactive = sys.stderr.isatty()
    return tqdm(
        total=total_steps,
        desc=f"train {name}",
        unit="step",
        mininterval=0.5 if interactive else 15,
        ncols=None if interactive else 110,
    )
