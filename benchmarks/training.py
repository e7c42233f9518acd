"""How fast models are trained, against the usual way with the same weights and windows.

    python benchmarks/training.py [--json PATH] [--check] [--quick]

TTM of the released size on the CPU, a step of 64 windows of 512 steps of context and 96 of horizon;
with glucose alone, where the loop weighs most, and with TTM's usual covariates (5 channels). Both
sides are timed in turn, and the median of the ratios of neighbours counts. Time is the processor's,
of which other work on the machine takes none; give OMP_NUM_THREADS=1, so that it is the wall's too.

Targets, which `--check` holds (exit 1 where one is missed):
- Windows are fed at least 30 times as fast as by granite-tsfm's ForecastDFDataset, filled forward,
  and torch's DataLoader, without workers: the same windows with the same values.
- Under 5 % of the time of a step passes outside of forward, backward and optimizer.
- Steps take no longer than in transformers.Trainer, which is given the same module, the same
  optimizer (adamw_torch) and its windows ready in memory: at least 0.97 times as fast, which is
  once and noise. Beside it, without a target, the Trainer with its default, adamw_torch_fused.
- Memory is flat: from step 1,000 to step 10,000 it grows by under 4 MiB.

Where torch sees GPUs: windows per second on one, which share that is of its speed in multiplying
large matrices, and how much more all of them do; without a target. `--quick` leaves memory out.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
import transformers
from accelerate import Accelerator
from forecasting import simulated_data
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from nocturnal_kedro import plugins
from nocturnal_kedro.series.corpus import CHANNELS, fourier_clock
from nocturnal_kedro.series.scaler import Scaler
from nocturnal_kedro.series.windows import Batch, Channels
from nocturnal_kedro.training.data import Data
from nocturnal_kedro.training.launch import Job, learn_on_processes
from nocturnal_kedro.training.learn import Begun, begin
from nocturnal_kedro.training.loop import (
    FORECAST,
    Care,
    Lessons,
    Manner,
    Objective,
    pointwise_loss,
    train,
)
from nocturnal_kedro.training.options import SettledHardware, Training
from nocturnal_kedro.training.resume import Checkpoints

WINDOWS = 64  # to a step
ALONE: dict[str, Any] = {"preset": "released", "covariates": ()}
USUAL: dict[str, Any] = {"preset": "released"}
WARM_UP, STEPS = 1_000, 10_000  # where memory is looked at
AT_LEAST = {"times_faster_than_dataset": 30.0, "times_as_fast_as_trainer": 0.97}
AT_MOST = {"share_outside": 0.05, "memory_growth_mib": 4.0}
UNJUDGED = replace(FORECAST, validate=lambda *_: (0.0, 0.0))  # a step is timed, not the validation


def feed(data: Data, given: dict[str, Any], rounds: int = 12) -> dict[str, float]:
    """Windows per second, from the sampler's rows to the batch, and as the library's dataset."""
    begun = _begin(data, given)
    training, gatherer, channels = begun.training, begun.gatherer, begun.start.channels
    rows = data.rows_around_anchor(training.anchor_hours)
    dataset = _dataset(data, channels, begun.scaler)
    # The dataset has no window that begins before its person does.
    place_of = _places(data, dataset)
    sampler = data.sampler(np.array([row for row in rows if row in place_of]), training)

    batches = 20  # between looks at the clock
    steps = range(3 + rounds * batches)
    places = [place_of[row] for step in steps for row in sampler.rows_of_step(step)]
    ours = (gatherer.gather(torch.from_numpy(sampler.rows_of_step(step))) for step in steps)
    theirs = iter(DataLoader(dataset, WINDOWS, sampler=places))
    late_T = torch.from_numpy(data.corpus.late_T)
    for step in range(3):
        late_B = late_T[torch.from_numpy(sampler.rows_of_step(step))]
        _require_same(next(ours), next(theirs), late_B, channels)

    def seconds(side: Iterator[object]) -> float:
        started = time.process_time()
        for _ in range(batches):
            next(side)
        return time.process_time() - started

    per_s = np.array([(seconds(ours), seconds(theirs)) for _ in range(rounds)])
    per_s = WINDOWS * batches / per_s
    return {
        "windows_per_s": float(np.median(per_s[:, 0])),
        "dataset_windows_per_s": float(np.median(per_s[:, 1])),
        "times_faster_than_dataset": float(np.median(per_s[:, 0] / per_s[:, 1])),
    }


def _begin(data: Data, given: dict[str, Any], **more: Any) -> Begun:
    more = {"training": Training(batch_size=WINDOWS), "hardware": SettledHardware()} | more
    return begin("ttm", plugins.options("model", "ttm", given), data, **more)


def _dataset(data: Data, channels: Channels, scaler: Scaler) -> Any:
    """Of one frame, scaled before; without times, which torch's DataLoader does not collate."""
    from tsfm_public.toolkit.dataset import ForecastDFDataset

    corpus = data.corpus
    length = corpus.people["last"] - corpus.people["first"]
    columns = {"person": np.repeat(np.arange(len(length)), length)}
    clock_T2 = fourier_clock(corpus.slot_of_day_T)
    for name in channels.context:
        if name in CHANNELS:
            at = CHANNELS.index(name)
            scaled_T = (corpus.values_TC[:, at] - scaler.mean[name]) / scaler.std[name]
            columns[name] = np.where(corpus.observed_TC[:, at], scaled_T, np.nan)
        else:
            columns[name] = clock_T2[:, ("clock_sin", "clock_cos").index(name)]
    return ForecastDFDataset(
        pd.DataFrame(columns),
        id_columns=["person"],
        target_columns=[channels.context[0]],
        observable_columns=list(channels.context[1:]),
        context_length=data.task.context_steps,
        prediction_length=data.task.horizon_steps,
        impute_method="forward_fill",
    )


def _places(data: Data, dataset: Any) -> dict[int, int]:
    """By the row of the corpus that is its origin: which of the dataset's windows it is."""
    origins = [
        first + data.task.context_steps - 1 + np.arange(len(windows))
        for first, windows in zip(data.corpus.people["first"], dataset.datasets, strict=True)
    ]
    return {int(row): place for place, row in enumerate(np.concatenate(origins))}


def _require_same(
    ours: Batch, theirs: dict[str, Tensor], late_B: Tensor, channels: Channels
) -> None:
    """But for readings that were not there yet at the origin, and doses that came after it."""
    not_yet_BLC = torch.zeros_like(ours.context_observed_BLC)
    not_yet_BLC[:, -1, 0] = late_B
    target_BH = theirs["future_values"][..., 0]
    clock = [at for at, name in enumerate(channels.future) if name.startswith("clock")]
    clock_of_theirs = [channels.known_ahead[at] for at in clock]
    for one, other in (
        (ours.context_BLC, theirs["past_values"].where(~not_yet_BLC, ours.context_BLC)),
        (ours.context_observed_BLC, theirs["past_observed_mask"] & ~not_yet_BLC),
        (ours.target_BH, target_BH),
        (ours.target_observed_BH, theirs["future_observed_mask"][..., 0]),
        (ours.future_BHF[..., clock], theirs["future_values"][..., clock_of_theirs]),
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, check_dtype=False)


def share_outside(data: Data, given: dict[str, Any], steps: int) -> dict[str, float]:
    """Seconds of a step, and which share passes outside of forward, backward and optimizer."""
    training = Training(batch_size=WINDOWS, epochs=6, steps_per_epoch=steps)
    begun = _begin(data, given, training=training)
    spent = [0.0]
    marks: list[tuple[float, float]] = []
    with (
        _timed(begun.start.module, "forward", spent),
        _timed(Accelerator, "backward", spent),
        _timed(torch.optim.AdamW, "step", spent),
    ):
        _teach(begun, watch=lambda epoch, score: marks.append((time.process_time(), spent[0])))
    whole, inside = np.diff(marks, axis=0).T  # without the first epoch, which asks for memory
    return {
        "step_ms": 1000 * float(np.median(whole)) / steps,
        "share_outside": float(np.median(1 - inside / whole)),
    }


@contextmanager
def _timed(owner: Any, name: str, spent: list[float]) -> Iterator[None]:
    """Adds the seconds in a method to `spent`."""
    method = getattr(owner, name)

    def timed(*args: Any, **more: Any) -> Any:
        started = time.process_time()
        answer = method(*args, **more)
        spent[0] += time.process_time() - started
        return answer

    setattr(owner, name, timed)
    yield
    if isinstance(owner, type):
        setattr(owner, name, method)
    else:
        delattr(owner, name)


def _teach(begun: Begun, objective: Objective = UNJUDGED, **care: Any) -> pd.DataFrame:
    """THE loop as `learn` calls it; the log."""
    data = begun.data
    training = begun.training.model_copy(update={"patience": begun.training.epochs})
    sampler = data.sampler(data.rows_around_anchor(training.anchor_hours), training)
    lessons = Lessons(begun.gatherer, sampler, data.night_rows("validation"), objective)
    manner = Manner(training, begun.start.options.learning_rate, begun.hardware)
    return train(begun.start.module, "ttm", lessons, manner, Care(**care)).log


def against_trainer(
    data: Data, given: dict[str, Any], steps: int = 15, rounds: int = 7
) -> dict[str, float]:
    """Steps per second of our loop and of transformers.Trainer, in turn."""
    training = Training(batch_size=WINDOWS, epochs=2, steps_per_epoch=steps)
    begun = _begin(data, given, training=training)
    start = begun.start
    state = {name: weight.clone() for name, weight in start.module.state_dict().items()}
    rows = data.rows_around_anchor(training.anchor_hours)
    ready = Ready(begun.gatherer.gather(torch.from_numpy(rows[::8])))

    def ours() -> float:
        torch.use_deterministic_algorithms(True)  # as `begin` has it on the CPU
        start.module.load_state_dict(state)
        ends: list[float] = []
        _teach(begun, watch=lambda *_: ends.append(time.process_time()))
        return ends[1] - ends[0]

    def theirs(optimizer: str) -> float:
        torch.use_deterministic_algorithms(False)
        start.module.load_state_dict(state)
        rate = start.options.learning_rate
        return _trainer(Taught(start.module), ready, training, rate, optimizer)

    optimizers = ("adamw_torch", "adamw_torch_fused")
    seconds = np.array([[ours(), *map(theirs, optimizers)] for _ in range(rounds)])
    times, times_fused = np.median(seconds[:, 1:] / seconds[:, :1], axis=0)
    return {
        "steps_per_s": steps / float(np.median(seconds[:, 0])),
        "trainer_steps_per_s": steps / float(np.median(seconds[:, 1])),
        "times_as_fast_as_trainer": float(times),
        "times_as_fast_as_trainer_fused": float(times_fused),
    }


class Ready(Dataset[dict[str, Tensor]]):
    """Windows that stand ready in memory, taken a batch at a time."""

    def __init__(self, windows: Batch) -> None:
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows.target_BH)

    def __getitems__(self, numbers: list[int]) -> dict[str, Tensor]:
        at = torch.tensor(numbers)
        return {name: part[at] for name, part in self.windows._asdict().items()}


class Taught(nn.Module):
    """Our module, with its loss as the Trainer asks for it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(
        self,
        context_BLC: Tensor,
        context_observed_BLC: Tensor,
        future_BHF: Tensor,
        future_observed_BHF: Tensor,
        target_BH: Tensor,
        target_observed_BH: Tensor,
    ) -> dict[str, Tensor]:
        batch = Batch(
            context_BLC, context_observed_BLC, future_BHF, future_observed_BHF, target_BH,
            target_observed_BH,
        )  # fmt: skip
        values = pointwise_loss(self.module(batch), batch) * target_observed_BH
        return {"loss": values.sum() / target_observed_BH.sum().clamp(min=1)}


def _trainer(
    module: nn.Module, ready: Ready, training: Training, rate: float, optimizer: str
) -> float:
    """Seconds of the second half of the steps."""
    ends: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **more: Any) -> None:
            ends.append(time.process_time())

    steps = training.steps_per_epoch
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=training.batch_size,
            max_steps=2 * steps,
            learning_rate=rate,
            weight_decay=training.weight_decay,
            max_grad_norm=training.clip_norm,
            lr_scheduler_type="cosine",
            optim=optimizer,
            use_cpu=True,
            save_strategy="no",
            report_to=[],
            remove_unused_columns=False,
            disable_tqdm=True,
        )
        transformers.Trainer(
            module,
            arguments,
            data_collator=lambda batch: batch,
            train_dataset=ready,
            callbacks=[Clock()],
        ).train()
    return ends[-1] - ends[steps - 1]


def memory(data: Data) -> dict[str, float]:
    """What the process holds at the end of a long training beyond what it held after a warm-up."""
    process = psutil.Process()
    held: list[int] = []  # bytes, after each epoch
    training = Training(batch_size=8, epochs=STEPS // 100, steps_per_epoch=100)
    begun = _begin(data, {"preset": "tiny", "covariates": ()}, training=training)
    with tempfile.TemporaryDirectory() as folder:
        _teach(
            begun, FORECAST, checkpoints=Checkpoints(Path(folder), 100),
            watch=lambda epoch, score: held.append(process.memory_info().rss),
        )  # fmt: skip
    tenth = WARM_UP // 100
    before, after = np.median(held[tenth : 2 * tenth]), np.median(held[-tenth:])
    return {"memory_mib": after / 2**20, "memory_growth_mib": float(after - before) / 2**20}


def on_gpus(
    data: Data, device: Any = "gpu", windows: int = 1024, steps: int = 20
) -> dict[str, float]:
    """Windows per second in a large batch, in both precisions, and of all GPUs together."""
    figures: dict[str, float] = {}
    for precision in ("fp32", "bf16"):
        hardware = SettledHardware(device=device, precision=precision)
        training = Training(batch_size=windows, epochs=4, steps_per_epoch=steps)
        begun = _begin(data, USUAL, training=training, hardware=hardware)
        per_s = windows * steps / float(_teach(begun)["seconds"].diff().median())
        per_window = _operations(begun)
        peak = _peak(hardware)
        figures |= {
            f"gpu_{precision}_windows_per_s": per_s,
            f"gpu_{precision}_matmul_tflops": peak / 1e12,
            f"gpu_{precision}_share_of_matmul": per_s * per_window / peak,
        }
    gpus = torch.cuda.device_count() if device == "gpu" else 2
    if gpus > 1:
        every = _per_s_of(data, SettledHardware(device=device, processes=gpus), windows, steps)
        figures |= {"gpus": gpus, "times_one_gpu": every / figures["gpu_fp32_windows_per_s"]}
    return figures


def _operations(begun: Begun) -> float:
    """Floating point operations to learn from one window, counted on the CPU."""
    module = begun.start.module.cpu()
    rows = torch.from_numpy(begun.data.night_rows("validation")[:8])
    batch = begun.data.gatherer(begun.scaler, begun.start.channels).gather(rows)
    with FlopCounterMode(display=False) as counter:
        pointwise_loss(module(batch), batch).mean().backward()
    return counter.get_total_flops() / len(rows)


def _peak(hardware: SettledHardware, size: int = 8192) -> float:
    """Operations per second in the product of two large matrices."""
    if hardware.device == "cpu":
        size //= 16
    kind = torch.bfloat16 if hardware.precision == "bf16" else torch.float32
    one = torch.rand(size, size, dtype=kind, device="cuda" if hardware.device == "gpu" else "cpu")
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        (one @ one)[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / float(np.median(seconds))


def _per_s_of(data: Data, hardware: SettledHardware, windows: int, steps: int) -> float:
    """Windows per second of processes that take as many windows each as the one alone did."""
    whole = windows * hardware.processes
    job = Job(
        name="ttm",
        options=plugins.options("model", "ttm", USUAL).model_dump(mode="json"),
        task=data.task,
        training=Training(batch_size=whole, epochs=4, steps_per_epoch=steps),
        hardware=hardware,
        checkpoints=None,
    )
    return whole * steps / float(learn_on_processes(job, data).log["seconds"].diff().median())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    parser.add_argument("--quick", action="store_true", help="without memory over 10,000 steps")
    asked = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    for name in ("accelerate", "root"):
        logging.getLogger(name).setLevel(logging.WARNING)
    print(
        f"{platform.platform()}, {platform.machine()}, {len(os.sched_getaffinity(0))} cores, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )
    data = simulated_data()
    parts: dict[str, Callable[[], dict[str, float]]] = {
        "alone": lambda: (
            feed(data, ALONE) | share_outside(data, ALONE, 20) | against_trainer(data, ALONE)
        ),
        "usual": lambda: feed(data, USUAL) | share_outside(data, USUAL, 5),
    }
    if not asked.quick:
        parts["tiny"] = lambda: memory(data)
    if torch.cuda.is_available():
        parts["gpu"] = lambda: on_gpus(data)
    else:
        print("no GPU")
    figures = {}
    for part, measure in parts.items():
        for name, value in measure().items():
            figures[f"{part}_{name}"] = value
            print(f"{part + '_' + name:<40}{value:>14,.3f}", flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(figures, indent=2))
    missed = [
        f"{name} is {value:,.3f}, the target {limit:,.2f}"
        for name, value in figures.items()
        for limits, worse in ((AT_LEAST, value.__lt__), (AT_MOST, value.__gt__))
        for ending, limit in limits.items()
        if name.endswith(ending) and worse(limit)
    ]
    print("; ".join(missed) or "every target is held")
    return int(asked.check and bool(missed))


if __name__ == "__main__":
    sys.exit(main())
