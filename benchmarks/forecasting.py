"""How fast each model forecasts, against its own library's way on the same windows and weights.

    python benchmarks/forecasting.py [--json PATH] [--check] [--nights N] [--models NAME ...]

Small preset, fresh weights, on the CPU with all its cores; a night is a window of 512 steps of
context and 96 of horizon. Loading the weights is counted, the library's import is not.

Targets, which `--check` holds (exit 1 where one is missed):
- `ttm` forecasts 2,000 nights in under 5 s.
- Adapter, targets and mg/dL together are at least half as fast as the library on the same windows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from nocturnal_kedro import plugins
from nocturnal_kedro.series.corpus import build_corpus
from nocturnal_kedro.series.grid import GridOptions, grid_people, order_readings
from nocturnal_kedro.series.origins import Task, build_origins, eligible_rows
from nocturnal_kedro.series.physiology import Physiology
from nocturnal_kedro.series.scaler import fit_scaler
from nocturnal_kedro.series.splits import SplitOptions, build_splits
from nocturnal_kedro.series.windows import Batch, Channels, WindowGatherer
from nocturnal_kedro.sources import simulated
from nocturnal_kedro.training.data import Data
from nocturnal_kedro.training.forecast import FORECAST_BATCH, answer_of_module
from nocturnal_kedro.training.start import start_model

SECONDS_FOR_TTM = 5.0
AT_LEAST = 0.5  # times as fast as the library


def simulated_data() -> Data:
    readings = simulated.read((), simulated.Options(subjects=20, days=30))
    series, _ = grid_people(order_readings("simulated", readings), GridOptions())
    splits = build_splits(series, SplitOptions())
    corpus = build_corpus(series, Physiology())
    return Data(corpus, splits, build_origins(corpus, splits, Task())[0], Task())


def measure(name: str, data: Data, nights: int) -> dict[str, Any]:
    """Seconds of our way and of the library's, and parameters."""
    torch.manual_seed(0)
    options: Any = plugins.options("model", name, {})
    start = start_model(name, options, data.task)
    scaler = fit_scaler(data.corpus, data.splits)
    gatherer = data.gatherer(scaler, start.channels)
    rows = eligible_rows(data.corpus, data.splits, data.task, "train")
    rows = rows[np.linspace(0, len(rows) - 1, nights).astype(int)]
    state = start.module.state_dict()

    def ours() -> None:
        start.module.load_state_dict(state)
        answer_of_module(start.module, data.corpus, gatherer, rows)

    figures: dict[str, Any] = {
        "parameters": sum(weight.numel() for weight in start.module.parameters()),
        "seconds": _seconds(ours),
        "ms_per_night": 0.0,
    }
    figures["ms_per_night"] = 1000 * figures["seconds"] / nights
    if name in LIBRARY:
        with tempfile.TemporaryDirectory() as folder:
            start.module.network.save_pretrained(folder)
            predict = LIBRARY[name](Path(folder), start.channels)
            # The library's way has its windows from us, and gives scaled values without targets.
            figures["library_seconds"] = _seconds(
                lambda: [predict(batch) for batch in _batches(gatherer, rows)]
            )
        figures["times_as_fast"] = figures["library_seconds"] / figures["seconds"]
    return figures


def _seconds(work: Callable[[], object]) -> float:
    """The better of two runs: the first also asks the system for the memory."""
    times = []
    for _ in range(2):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def _batches(gatherer: WindowGatherer, rows: np.ndarray) -> Iterator[Batch]:
    return (gatherer.gather(part) for part in torch.from_numpy(rows).split(FORECAST_BATCH))


def _ttm(folder: Path, channels: Channels) -> Callable[[Batch], object]:
    """granite-tsfm's pipeline takes a frame per series: its model is called on ready windows."""
    from tsfm_public.models.tinytimemixer import TinyTimeMixerForPrediction

    model = TinyTimeMixerForPrediction.from_pretrained(folder).eval()

    def predict(batch: Batch) -> object:
        future = torch.nn.functional.pad(batch.future_BHF, (1, 0))
        with torch.no_grad():
            return model(
                past_values=batch.context_BLC,
                past_observed_mask=batch.context_observed_BLC,
                future_values=future,
                return_loss=False,
            )

    return predict


def _chronos2(folder: Path, channels: Channels) -> Callable[[Batch], object]:
    from chronos import Chronos2Pipeline

    pipeline = Chronos2Pipeline.from_pretrained(folder, device_map="cpu")

    def predict(batch: Batch) -> object:
        past, ahead = batch.context_BLC.numpy(), batch.future_BHF.numpy()
        inputs = [
            {
                "target": past[window, :, 0],
                "past_covariates": {
                    name: past[window, :, channel]
                    for channel, name in enumerate(channels.context)
                    if channel
                },
                "future_covariates": {
                    name: ahead[window, :, channel] for channel, name in enumerate(channels.future)
                },
            }
            for window in range(len(past))
        ]
        return pipeline.predict(inputs, prediction_length=ahead.shape[1], batch_size=FORECAST_BATCH)

    return predict


def _chronos(folder: Path, channels: Channels) -> Callable[[Batch], object]:
    from chronos import ChronosBoltPipeline

    pipeline = ChronosBoltPipeline.from_pretrained(folder, device_map="cpu")

    def predict(batch: Batch) -> object:
        return pipeline.predict(
            batch.context_BLC[..., 0], prediction_length=batch.target_BH.shape[1]
        )

    return predict


LIBRARY = {"ttm": _ttm, "chronos2": _chronos2, "chronos_bolt": _chronos}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    parser.add_argument("--nights", type=int, default=2000)
    trained = [name for name in plugins.names("model") if not plugins.is_service(name)]
    parser.add_argument("--models", nargs="+", default=trained, choices=trained)
    given = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    print(f"{platform.platform()}, {platform.machine()}, {cores} cores, torch {torch.__version__}")
    data = simulated_data()
    figures = {name: measure(name, data, given.nights) for name in given.models}
    print(pd.DataFrame(figures).T.to_string(float_format=lambda value: f"{value:,.2f}"))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2))
    slow = [
        f"{name} is {told['times_as_fast']:.2f} times as fast as its library"
        for name, told in figures.items()
        if told.get("times_as_fast", 1) < AT_LEAST
    ]
    if figures.get("ttm", {"seconds": 0})["seconds"] * 2000 / given.nights > SECONDS_FOR_TTM:
        slow.append(f"ttm takes over {SECONDS_FOR_TTM} s for 2,000 nights")
    print("; ".join(slow) or "every target is held")
    return int(given.check and bool(slow))


if __name__ == "__main__":
    raise SystemExit(main())
