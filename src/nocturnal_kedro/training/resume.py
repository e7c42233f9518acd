"""What an unfinished training needs to go on, on disk: each checkpoint is whole or absent."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from nocturnal_kedro.errors import InputError

logger = logging.getLogger(__name__)

State = dict[str, Tensor]
SAVING, EMA, PROGRESS = "saving", "ema.pt", "progress.json"


@dataclass
class Progress:
    """How far a training has come; with weights, optimizer and random numbers, all there is."""

    step: int = 0
    losses: list[float] = field(default_factory=list)  # of the steps of this epoch
    epochs: list[dict[str, float]] = field(default_factory=list)  # rows of the log
    best: float = float("inf")
    best_epoch: int = 0
    over: bool = False
    seconds: float = 0.0


class Checkpoints:
    """The last checkpoint of a training and the best weights so far, in one folder.

    `step-N/` holds what accelerate saves of weights and optimizer, the random numbers of each
    process, the running mean of the weights and `progress.json`; `best-N.pt` the weights of an
    epoch. What samples the windows needs no state but the step.
    """

    def __init__(self, folder: Path, every_steps: int) -> None:
        self.folder, self.every_steps = folder, every_steps

    def of_stage(self, name: str) -> Checkpoints:
        """Those of one of several trainings in a row."""
        return Checkpoints(self.folder / name, self.every_steps)

    def save(self, accelerator: Accelerator, progress: Progress, ema: nn.Module | None) -> None:
        """Write a checkpoint beside the last one, and take that away when it stands.

        Raises `InputError` on a full disk; the last checkpoint stays whole.
        """
        fresh, final = self.folder / SAVING, self.folder / f"step-{progress.step:08d}"
        if final.exists():  # this very step has been saved before
            return
        with self._writing(accelerator):
            if accelerator.is_main_process:
                shutil.rmtree(fresh, ignore_errors=True)
                fresh.mkdir(parents=True)
        with self._writing(accelerator):
            accelerator.save_state(str(fresh))
            torch.save(_random_numbers(), fresh / _random_file(accelerator))
            if accelerator.is_main_process:
                if ema is not None:
                    torch.save(ema.state_dict(), fresh / EMA)
                (fresh / PROGRESS).write_text(json.dumps(asdict(progress)))
        with self._writing(accelerator):
            if accelerator.is_main_process:
                fresh.rename(final)
                self._clean(final, progress.best_epoch)

    def restore(self, accelerator: Accelerator, progress: Progress, ema: nn.Module | None) -> bool:
        """Go back to the last checkpoint; False where there is none.

        Raises `InputError` where it cannot be read.
        """
        last = max(self.folder.glob("step-*"), default=None)
        if last is None:
            return False
        try:
            kept = json.loads((last / PROGRESS).read_text())
            for name in fields(Progress):
                setattr(progress, name.name, kept[name.name])
            accelerator.load_state(str(last))
            if ema is not None:
                ema.load_state_dict(torch.load(last / EMA, weights_only=True))
            processes = len(list(last.glob("random-*.pt")))
            if processes == accelerator.num_processes:
                _set_random_numbers(torch.load(last / _random_file(accelerator), weights_only=True))
        except Exception as error:  # torch, safetensors and DeepSpeed each raise their own
            raise InputError(
                f"checkpoint '{last}' cannot be read ({error}). Delete that folder: the training "
                f"then starts again."
            ) from error
        if accelerator.is_main_process:
            logger.info("the training goes on after step %d: '%s'", progress.step, last)
            if processes != accelerator.num_processes:
                logger.warning(
                    "it goes on with %d processes after %d: dropout draws other numbers than it "
                    "would have",
                    accelerator.num_processes,
                    processes,
                )
        return True

    def keep_best(self, accelerator: Accelerator, state: State, epoch: int) -> None:
        """Keep the weights of the best epoch; those before stay until the next checkpoint.

        Raises `InputError` on a full disk.
        """
        with self._writing(accelerator):
            if accelerator.is_main_process:
                self.folder.mkdir(parents=True, exist_ok=True)
                fresh = self.folder / "best.saving"
                torch.save(state, fresh)
                fresh.rename(self._best_file(epoch))

    def best(self, epoch: int) -> State:
        """The weights that `keep_best` kept; raises `InputError` where they cannot be read."""
        file = self._best_file(epoch)
        try:
            return torch.load(file, weights_only=True)
        except Exception as error:  # torch raises nothing narrower
            raise InputError(
                f"'{file}' cannot be read ({error}). Delete its folder: the training then starts "
                f"again."
            ) from error

    def _best_file(self, epoch: int) -> Path:
        return self.folder / f"best-{epoch:04d}.pt"

    def _clean(self, last: Path, best_epoch: int) -> None:
        for older in self.folder.glob("step-*"):
            if older != last:
                shutil.rmtree(older)
        for older in self.folder.glob("best-*.pt"):
            if older != self._best_file(best_epoch):
                older.unlink()

    @contextmanager
    def _writing(self, accelerator: Accelerator) -> Iterator[None]:
        """What one process cannot write, none goes on from."""
        failure: Exception | None = None
        try:
            yield
        except Exception as error:  # a full disk is an OSError, a RuntimeError or safetensors' own
            failure = error
        failed = torch.tensor(int(failure is not None), device=accelerator.device)
        if accelerator.reduce(failed, reduction="sum").item():
            if accelerator.is_main_process:
                shutil.rmtree(self.folder / SAVING, ignore_errors=True)
            raise InputError(
                f"a checkpoint cannot be written to '{self.folder}' ({failure or 'another process'}"
                f"). Make room on that disk and run the same command again: the training goes on "
                f"from the last checkpoint, which is whole."
            ) from failure


def _random_file(accelerator: Accelerator) -> str:
    return f"random-{accelerator.process_index}.pt"


def _random_numbers() -> dict[str, Any]:
    """The state of torch's generators, which initial weights and dropout are drawn from."""
    gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"cpu": torch.get_rng_state(), "gpu": gpu}


def _set_random_numbers(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["gpu"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["gpu"])
